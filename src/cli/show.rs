//! `runner show`: all runs as a table, or one of them in full.
//!
//! Reads folders without locking them, so it may be run at any time. A damaged run is shown as `broken`, with
//! the reason below the table.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ratatui::crossterm::terminal;
use serde::Serialize;

use super::named::require_runs;
use super::streams::{self, say};
use crate::experiment;
use crate::report::best_loss;
use crate::report::compare::notes_on_losses;
use crate::report::glance::{self, RunGlance};
use crate::report::listing;
use crate::report::summary::{self, RunSummary};
use crate::report::sweep_listing::{self, MemberSummary};
use crate::report::table::{self, Filter, RunTable, Sort, TableColumn};
use crate::run::sweep::require_declared;
use crate::run::{find, require_usage};
use crate::store::contents;
use crate::store::notes::Notes;
use crate::store::sweep_folder::members;
use crate::store::{RunPaths, SweepPaths};
use crate::units::{noun, path_text};
use crate::verify::sweep::kept_hash;

/// List runs, or show one in full.
#[derive(clap::Args)]
#[command(after_help = after_help())]
pub struct Args {
    /// The run to show in full, or the sweep whose members to list: a name under `--runs`, or a folder. With
    /// a sweep the options below are of the table of its members.
    run: Option<PathBuf>,
    /// Columns of the table, behind the name.
    #[arg(long, value_name = "COLUMN,…", value_delimiter = ',')]
    columns: Vec<String>,
    /// Keys of the experiments in which the runs differ, as columns.
    #[arg(long)]
    differing: bool,
    /// Order of the table; with `-` before the column the highest comes first.
    #[arg(long, value_name = "[-]COLUMN", allow_hyphen_values = true)]
    sort: Option<String>,
    /// Only runs of which this is true. May be repeated; all must be.
    #[arg(long, value_name = "COLUMN OP VALUE")]
    filter: Vec<String>,
    /// A line for each value of a column, with the means of its runs that are done. Runs that failed or are
    /// unfinished are counted beside them, and `3.2231 (1 of 2)` is a mean of the one run that has a value.
    #[arg(long, value_name = "COLUMN", conflicts_with_all = ["differing", "sort"])]
    group_by: Option<String>,
    /// Print JSON: with `--columns`, `--differing` or `--group-by` what the table has, else every run in
    /// full.
    #[arg(long)]
    json: bool,
    /// Print comma-separated values.
    #[arg(long, conflicts_with_all = ["json", "group_by"])]
    csv: bool,
    /// Folder that holds the run folders.
    #[arg(long, default_value = "runs", value_name = "DIR")]
    runs: PathBuf,
}

impl Args {
    /// Whether something is asked of the table.
    fn is_of_table(&self) -> bool {
        let Args { columns, differing, sort, filter, group_by, csv, .. } = self;
        !columns.is_empty()
            || *differing
            || sort.is_some()
            || !filter.is_empty()
            || group_by.is_some()
            || *csv
    }
}

/// Examples, and the columns there are.
fn after_help() -> String {
    let columns = table::names().join(", ");
    format!(
        "Examples:
  runner show
  runner show --sort val_loss --filter 'state == done' --filter 'tokens > 1_000_000'
  runner show --columns schedule.learning_rate,seed,val_loss --sort -val_loss
  runner show --differing --filter 'tags ~ baseline'
  runner show --group-by schedule.learning_rate
  runner show quickstart
  runner show lr --columns schedule.learning_rate,seed,ema_val_loss --sort ema_val_loss
  runner show --csv > runs.csv

A column is a key of the experiment (`schedule.learning_rate`, or `learning_rate` where one section has \
         it), a metric, of which it is the last value, or one of {columns}. `mean_loss` is the mean of the \
         last hundredth of the updates, at most 100; `tokens_per_s`, `step_ms` and `mfu` are the medians of \
         the last 100 steps. On a terminal a table is fitted to its width; elsewhere it is whole. In JSON a \
         number that is not finite is null, with its bits beside it as in metrics.jsonl. In CSV a run is one \
         line: a line break in a note is a blank, a control character `�`. A list of long runs \
         holds the rows that it shows to the ledgers' lines and checks no head: `runner show RUN` and \
         `runner verify RUN` do. Operators: =, !=, <, <=, >, >=, and ~ for text that contains another."
    )
}

/// A run with what a person said of it and what it takes on the disk.
#[derive(Serialize)]
struct ShownRun {
    #[serde(flatten)]
    run: RunSummary,
    #[serde(flatten)]
    notes: Notes,
    disk_bytes: u64,
}

impl ShownRun {
    /// Notes that cannot be read are left out: a line on stderr says so.
    fn read(folder: &Path) -> ShownRun {
        let notes = Notes::read(folder).unwrap_or_default();
        ShownRun { run: RunSummary::read(folder), notes, disk_bytes: contents::bytes_in(folder) }
    }
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let sweep = args.run.as_ref().and_then(|run| find::find_sweep(Some(run), &args.runs));
    if let Some(folder) = sweep.as_ref().filter(|_| !args.is_of_table()) {
        return show_sweep(folder, args.json);
    }
    if let (Some(run), None) = (&args.run, &sweep) {
        let folder = find::find(Some(run), &args.runs)?;
        require_usage(!args.is_of_table(), || {
            format!(
                "`--columns`, `--differing`, `--sort`, `--filter`, `--group-by` and `--csv` are of a table \
                 of runs, and `{}` is one run\n  hint: leave it out, or name a sweep",
                run.display()
            )
        })?;
        let run = RunSummary::read(&folder);
        // The text has its own line on notes that cannot be read.
        if let (true, Err(odd)) = (args.json, Notes::read(&folder)) {
            say!("{odd}");
        }
        let text = if args.json { pretty(&ShownRun::read(&folder))? } else { listing::in_full(&run) };
        streams::print(&text)?;
        warn_unverified([(run.name.as_str(), run.step, run.unverified.as_deref())]);
        return Ok(ExitCode::SUCCESS);
    }
    // What is asked wrong is said before anything is read.
    let columns = args.columns.iter().map(|name| TableColumn::find(name)).collect::<Result<Vec<_>, _>>()?;
    let filters = args.filter.iter().map(|text| Filter::parse(text)).collect::<Result<Vec<_>, _>>()?;
    let sort = args.sort.as_deref().map(Sort::parse).transpose()?;
    let by = args.group_by.as_deref().map(TableColumn::find).transpose()?;

    let runs = match &sweep {
        None => {
            require_runs(&args.runs)?;
            glance::all(&args.runs)?
        }
        Some(sweep) => begun(sweep)?,
    };
    let runs = match by {
        Some(_) => summary::once(runs, |run| &run.folder),
        None => runs,
    };
    let is_empty = runs.is_empty();
    let asked: Vec<TableColumn> = columns.iter().copied().chain(by).collect();
    let mut table = RunTable::of(runs, &asked, &filters, sort.as_ref())?;
    for filter in &filters {
        table = table.filter(filter)?;
    }
    if let Some(sort) = &sort {
        table = table.sort(sort);
    }
    if table.runs().next().is_none() {
        let what = if is_empty { "there is no run" } else { "no run passes the filter" };
        say!("{what} in `{}`", sweep.as_ref().unwrap_or(&args.runs).display());
    }
    for odd in table.runs().filter_map(|run| run.odd_notes.as_ref()) {
        say!("{odd}");
    }
    let chosen = chosen(&args, columns, &table);
    for group in by.iter().flat_map(|by| table.groups(by)) {
        let runs: Vec<_> = group.runs().map(|run| (run.name.as_str(), run.folder.as_path())).collect();
        notes_on_losses(&runs).iter().for_each(|note| say!("in one group {note}"));
    }
    streams::print(&match &by {
        Some(by) => grouped(&table, by, chosen.as_deref(), args.json)?,
        None => listed(&table, chosen.as_deref(), &args)?,
    })?;
    best_loss::remember();
    warn_unverified(table.runs().map(|run| (run.name.as_str(), run.step, run.unverified.as_deref())));
    Ok(ExitCode::SUCCESS)
}

/// The members of a sweep that have begun; says how many have not.
fn begun(sweep: &Path) -> anyhow::Result<Vec<RunGlance>> {
    let members = members(sweep)?;
    let begun = glance::of_members(&members, sweep);
    match members.len() - begun.len() {
        0 => {}
        1 => say!("1 member has not begun"),
        n => say!("{n} members have not begun"),
    }
    Ok(begun)
}

/// The members of a sweep with their settings, and its hash.
fn show_sweep(folder: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let folders = members(folder)?;
    let declared = experiment::load_recorded_sweep(&SweepPaths::new(folder).declaration())?;
    for (member, declared) in folders.iter().zip(&declared.members) {
        let run = experiment::load_recorded(&RunPaths::new(&member.folder).experiment());
        if let Err(why) = run.map_or(Ok(()), |run| require_declared(&run.experiment, &declared.loaded)) {
            say!("{} is not what the sweep declares: {why}", member.name);
        }
    }
    let members: Vec<MemberSummary> = folders.iter().map(MemberSummary::read).collect();
    let hash = kept_hash(folder).map(|hash| hash.to_string());
    // They were there when the hash was made.
    let gone = members.iter().filter(|member| hash.is_some() && member.run.is_none()).count();
    if json {
        let sweep =
            serde_json::json!({"folder": path_text(folder), "hash": hash, "gone": gone, "members": members});
        streams::print(&(serde_json::to_string_pretty(&sweep)? + "\n"))?;
    } else {
        let of = match gone {
            0 => String::new(),
            n => {
                let (all, are) = (members.len(), if n == 1 { "is" } else { "are" });
                format!(", of {all} {} of which {n} {are} no longer there", noun(all, "member"))
            }
        };
        let hash = hash.map_or(String::new(), |hash| format!("sweep hash {hash}{of}\n"));
        streams::print(&(sweep_listing::text(&members, width()) + &hash))?;
    }
    let runs = members.iter().filter_map(|member| member.run.as_ref());
    warn_unverified(runs.map(|run| (run.name.as_str(), run.step, run.unverified.as_deref())));
    Ok(ExitCode::SUCCESS)
}

/// The columns that were asked for, behind the name; none where none were.
fn chosen(args: &Args, columns: Vec<TableColumn>, table: &RunTable) -> Option<Vec<TableColumn>> {
    let mut chosen = if args.differing {
        let differing = table.differing();
        if differing.is_empty() {
            say!("the runs differ in no key");
        }
        let results =
            if columns.is_empty() { find_all(&["state", "mean_loss", "val_loss"]) } else { columns };
        [differing, results].concat()
    } else if columns.is_empty() {
        return None;
    } else {
        columns
    };
    if chosen.iter().all(|column| column.name != "name") {
        chosen.splice(0..0, find_all(&["name"]));
    }
    Some(chosen)
}

fn find_all(names: &[&str]) -> Vec<TableColumn> {
    names.iter().map(|name| TableColumn::find(name).expect("it is in the table")).collect()
}

fn listed(table: &RunTable, chosen: Option<&[TableColumn]>, args: &Args) -> anyhow::Result<String> {
    Ok(if args.csv {
        table.to_csv(chosen.unwrap_or(&table::columns()))
    } else if args.json {
        match chosen {
            Some(columns) => pretty(&table.to_json(columns))?,
            None => pretty(&table.runs().map(|run| ShownRun::read(&run.folder)).collect::<Vec<_>>())?,
        }
    } else {
        listing::table(table, chosen, width())
    })
}

fn grouped(
    table: &RunTable,
    by: &TableColumn,
    chosen: Option<&[TableColumn]>,
    json: bool,
) -> anyhow::Result<String> {
    if !json {
        return Ok(listing::groups(table, by, chosen, width()));
    }
    let columns = chosen.map_or_else(listing::group_columns, <[TableColumn]>::to_vec);
    let columns: Vec<TableColumn> = columns.into_iter().filter(|column| column.name != "name").collect();
    pretty(&table.groups(by).iter().map(|group| group.to_json(by, &columns)).collect::<Vec<_>>())
}

fn pretty(value: &impl Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// How wide the terminal is; none where stdout goes elsewhere, and tables are printed in full.
fn width() -> Option<usize> {
    let asked = || terminal::size().ok().map(|(width, _)| usize::from(width)).filter(|width| *width > 0);
    std::io::stdout().is_terminal().then(|| asked().unwrap_or(80))
}

/// Warns on stderr of figures that disagree with the ledgers. A run without a step has none to verify.
fn warn_unverified<'a>(runs: impl IntoIterator<Item = (&'a str, u64, Option<&'a str>)>) {
    for (name, _, why) in runs.into_iter().filter(|(_, step, _)| *step > 0) {
        if let Some(why) = why {
            say!("the figures of {name} are not verified: {why}");
        }
    }
}
