//! `runner show`: all runs as a table, or one of them in full.
//!
//! Reads folders without locking them, so it may be run at any time. A damaged run is shown as `broken`, with
//! the reason below the table.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ratatui::crossterm::terminal;

use super::streams::{self, say};
use crate::report::listing;
use crate::report::summary::{self, RunSummary};
use crate::report::sweep_listing::{self, MemberSummary};
use crate::report::table::{Filter, RunTable};
use crate::run::find;
use crate::store::sweep_folder::members;
use crate::verify::sweep::kept_hash;

/// List runs, or show one in full.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  runner show
  runner show --sort val_loss --filter 'state == done' --filter 'tokens > 1_000_000'
  runner show quickstart
  runner show --csv > runs.csv

Columns: name, model, state, step, steps, tokens, loss, val_loss, hellaswag, hellaswag_acc, \
hellaswag_acc_norm,
hellaswag_acc_bytes, step_ms, tokens_per_s, mfu, skipped, root, parameters, why. Operators: ==, !=, <, <=, \
>, >=, and ~ for text that contains another.")]
pub struct Args {
    /// The run to show in full, or the sweep whose members to list: a name under `--runs`, or a folder.
    run: Option<PathBuf>,
    /// Order of the table.
    #[arg(long, value_name = "COLUMN[:desc]", conflicts_with = "run")]
    sort: Option<String>,
    /// Only runs of which this is true. May be repeated; all must be.
    #[arg(long, value_name = "COLUMN OP VALUE", conflicts_with = "run")]
    filter: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Print comma-separated values.
    #[arg(long, conflicts_with_all = ["json", "run"])]
    csv: bool,
    /// Folder that holds the run folders.
    #[arg(long, default_value = "runs", value_name = "DIR")]
    runs: PathBuf,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    if let Some(folder) = args.run.as_ref().and_then(|run| find::find_sweep(Some(run), &args.runs)) {
        return show_sweep(&folder, args.json);
    }
    if let Some(run) = &args.run {
        let run = RunSummary::read(&find::find(Some(run), &args.runs)?);
        let text =
            if args.json { serde_json::to_string_pretty(&run)? + "\n" } else { listing::in_full(&run) };
        streams::print(&text)?;
        warn_unverified(&[&run]);
        return Ok(ExitCode::SUCCESS);
    }
    let runs = summary::all(&args.runs)?;
    let mut table = RunTable::of(&runs)?;
    for filter in &args.filter {
        table = table.filter(&Filter::parse(filter)?)?;
    }
    if let Some(by) = &args.sort {
        table = table.sort(by)?;
    }
    let names = table.names()?;
    let chosen: Vec<&RunSummary> =
        names.iter().filter_map(|name| runs.iter().find(|run| run.name == *name)).collect();
    let text = if args.json {
        serde_json::to_string_pretty(&chosen)? + "\n"
    } else if args.csv {
        table.to_csv()?
    } else {
        let width = terminal::size().map_or(80, |(width, _)| usize::from(width).max(60));
        if chosen.is_empty() {
            let what = if runs.is_empty() { "there is no run" } else { "no run passes the filter" };
            say!("{what} in `{}`", args.runs.display());
        }
        listing::table(&chosen, width)
    };
    streams::print(&text)?;
    warn_unverified(&chosen);
    Ok(ExitCode::SUCCESS)
}

/// The members of a sweep with their settings, and its hash.
fn show_sweep(folder: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let members: Vec<MemberSummary> = members(folder)?.iter().map(MemberSummary::read).collect();
    let hash = kept_hash(folder).map(|hash| hash.to_string());
    if json {
        let sweep = serde_json::json!({"folder": folder, "hash": hash, "members": members});
        streams::print(&(serde_json::to_string_pretty(&sweep)? + "\n"))?;
    } else {
        let hash = hash.map_or(String::new(), |hash| format!("sweep hash {hash}\n"));
        streams::print(&(sweep_listing::text(&members) + &hash))?;
    }
    let runs: Vec<&RunSummary> = members.iter().filter_map(|member| member.run.as_ref()).collect();
    warn_unverified(&runs);
    Ok(ExitCode::SUCCESS)
}

/// Warns on stderr of figures that disagree with the ledgers. A run without a figure has none to verify.
fn warn_unverified(runs: &[&RunSummary]) {
    for run in runs.iter().filter(|run| run.step > 0) {
        if let Some(why) = &run.unverified {
            say!("the figures of {} are not verified: {why}", run.name);
        }
    }
}
