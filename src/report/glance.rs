//! A run as a list has it: read from the ends of its files, so that a thousand long runs take no longer than
//! their last rows.
//!
//! What a glance says is what [`RunSummary`] says. Of a run whose files are short, or in which anything is
//! odd, the summary is read: it names the fault. Every row that a figure is made of is held to the ledger. A
//! list does not read the middle of long files, so damage there is found by `runner show RUN` and `runner
//! verify`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::Value as Json;

use super::ReportError;
use super::figures::{Figures, TIMED, tail};
use super::run_data::{edited, is_unended};
use super::summary::{self, RunSummary, State};
use crate::experiment::{self, Experiment};
use crate::model::weights::Weights;
use crate::proof::ledger::{self, EntryLine, LedgerEnd, Note};
use crate::proof::lock::Lock;
use crate::proof::regular;
use crate::store::metrics::{self, Action, MetricsRow};
use crate::store::notes::Notes;
use crate::store::{self, Manifest, MemberFolder, RunPaths, checkpoint, derived, run_folder};

/// Files up to this length are read in full; of longer ones so much is read first.
const WINDOW: u64 = 96 << 10;

/// The last entries of the ledger that rows are compared with.
const COMPARED: usize = 8;

/// A run in a list.
#[derive(Clone, Debug)]
pub struct RunGlance {
    /// The folder below the folder of runs.
    pub name: String,
    pub folder: PathBuf,
    pub state: State,
    /// Why it is broken, or stopped before its end.
    pub why: Option<String>,
    pub model: String,
    pub parameters: Option<u64>,
    /// Optimizer steps done, and in all.
    pub step: u64,
    pub steps: Option<u64>,
    pub tokens: u64,
    pub skipped: u64,
    pub figures: Figures,
    /// The row of the last step.
    pub last: Option<MetricsRow>,
    /// Where the figures disagree with the ledger; none if they agree.
    pub unverified: Option<String>,
    pub root: Option<String>,
    pub numerics_id: Option<String>,
    pub device: Option<String>,
    /// The keys of the experiment; empty where it cannot be read.
    pub settings: BTreeMap<String, Json>,
    pub notes: Notes,
    /// Why the notes cannot be read.
    pub odd_notes: Option<String>,
}

/// Every run under `runs`, by name.
///
/// # Errors
/// The folder is there and cannot be listed, or is none.
pub fn all(runs: &Path) -> Result<Vec<RunGlance>, ReportError> {
    let folders = summary::folders(runs)?;
    Ok(folders.par_iter().map(|folder| RunGlance::read(folder, runs)).collect())
}

/// Those members of `sweep` that have begun, in their order.
pub fn of_members(members: &[MemberFolder], sweep: &Path) -> Vec<RunGlance> {
    let runs = sweep.parent().unwrap_or(Path::new(""));
    let begun = members.par_iter().filter(|member| RunPaths::new(&member.folder).have_begun());
    begun.map(|member| RunGlance::read(&member.folder, runs)).collect()
}

impl RunGlance {
    /// Reads the run in `folder`, which lies below `runs`. Never fails: what is wrong is in `why`.
    pub fn read(folder: &Path, runs: &Path) -> RunGlance {
        let paths = RunPaths::new(folder);
        let experiment = summary::read_experiment(&paths).ok();
        let mut glance = match experiment.as_ref().and_then(|experiment| at_end(&paths, experiment)) {
            Some(glance) => glance,
            None => in_full(&paths),
        };
        if let Ok(below) = folder.strip_prefix(runs)
            && let Some(name) = below.to_str().filter(|name| !name.is_empty())
        {
            glance.name = name.to_owned();
        }
        match Notes::read(folder) {
            Ok(notes) => glance.notes = notes,
            Err(why) => glance.odd_notes = Some(why.to_string()),
        }
        glance.settings = experiment.as_ref().map(experiment::flatten).unwrap_or_default();
        glance
    }
}

fn in_full(paths: &RunPaths) -> RunGlance {
    let run = RunSummary::read(paths.folder());
    let rows = metrics::read(paths.folder()).unwrap_or_default();
    RunGlance {
        name: run.name,
        folder: run.folder,
        state: run.state,
        why: run.why,
        model: run.model,
        parameters: run.parameters,
        step: run.step,
        steps: run.steps,
        tokens: run.tokens,
        skipped: run.skipped,
        figures: run.figures,
        last: rows.into_iter().rev().find(|row| row.loss.is_some()),
        unverified: run.unverified,
        root: run.root,
        numerics_id: run.numerics_id,
        device: run.device,
        settings: BTreeMap::new(),
        notes: Notes::default(),
        odd_notes: None,
    }
}

/// The run from the ends of its files; none where they are short, or anything in them is not as it should be.
fn at_end(paths: &RunPaths, experiment: &Experiment) -> Option<RunGlance> {
    let long = |path: &Path| std::fs::metadata(path).is_ok_and(|file| file.len() > WINDOW);
    if !long(&paths.metrics_jsonl())
        || !long(&paths.ledger())
        || summary::unrepeatable(paths.folder()).is_some()
    {
        return None;
    }
    let running = run_folder::holder(paths.folder()).is_some();
    let lock = Lock::read(&paths.lock_file()).ok()?;
    if edited(experiment, &lock).is_some() {
        return None;
    }
    let newest = match store::list(&paths.checkpoints()).unwrap_or_default().pop() {
        Some((_, folder)) => Some(checkpoint::inspect(&folder).ok()?),
        None => None,
    };
    let end = RowsEnd::read(paths, experiment, newest.as_ref())?;
    let last = end.rows.last()?;
    let ledger = ledger::read_end(&paths.ledger(), COMPARED)?;
    let is_end = |root: &String| ledger.root.is_some_and(|found| found.to_string() == *root);
    let unended = is_unended(running, Some(&lock));
    let is_as_locked = unended || lock.outputs.get("end_root").is_none_or(is_end);
    if !is_as_locked || !agree(&end.rows, &ledger, unended) {
        return None;
    }
    // What the last entries do not tell: older rows that a figure is of, and the newest checkpoint's head.
    let saved_after = newest.as_ref().and_then(|manifest| manifest.step.checked_sub(1));
    let oldest = end.rows.first().map(|row| row.step);
    let lines = ledger::lines_from(&paths.ledger(), saved_after.into_iter().chain(oldest).min()?)?;
    if let (Some(step), Some(manifest)) = (saved_after, &newest)
        && lines.get(&step)?.parse()?.1 != manifest.ledger.root
    {
        return None;
    }
    let is_told = |row: &MetricsRow| lines.get(&row.step).map_or(unended, |line| tells(line, row));
    if !end.rows.iter().all(is_told) {
        return None;
    }
    let root = match ledger.entries.iter().rev().find_map(|entry| entry.root) {
        Some(root) => Some(root),
        // The state was hashed before the rows that were read, or at checkpoints alone.
        None if experiment.proof.digest_every > 0 => return None,
        None => newest.as_ref().map(|manifest| manifest.state_root),
    };
    let step = last.step + u64::from(last.action != Action::Evaluate);
    let steps = Some(experiment.schedule.steps).filter(|steps| *steps > 0);
    let noted: Vec<&Note> = ledger.notes.iter().collect();
    let failed = summary::failed(&end.rows, &noted, Some(experiment.guards.patience));
    let saved = newest.is_some_and(|manifest| Some(manifest.step) == steps);
    let finished = saved && summary::has_ended(Some(&lock));
    let (state, why) = match (running, failed) {
        (true, _) => (State::Running, None),
        (false, None) if finished => (State::Done, None),
        (false, failed) => (State::Stopped, failed),
    };
    Some(RunGlance {
        name: paths.name(),
        folder: paths.folder().to_owned(),
        state,
        why,
        model: summary::model_name(experiment),
        parameters: Some(Weights::of(&experiment.model).parameters()),
        step,
        steps,
        tokens: last.tokens,
        skipped: step.saturating_sub(end.updates as u64),
        figures: Figures::of_end(&end.rows, end.updates),
        last: end.rows.into_iter().rev().find(|row| row.loss.is_some()),
        unverified: None,
        root: root.map(|root| root.to_string()),
        numerics_id: Some(lock.numerics_id().to_string()),
        device: lock.environment.get("device").cloned(),
        settings: BTreeMap::new(),
        notes: Notes::default(),
        odd_notes: None,
    })
}

/// Whether the rows are what the entries of their steps say, as far back as there are entries.
fn agree(rows: &[MetricsRow], ledger: &LedgerEnd, running: bool) -> bool {
    let Some(first) = ledger.entries.first().map(|entry| entry.step) else { return false };
    let rows: Vec<MetricsRow> = rows.iter().filter(|row| row.step >= first).cloned().collect();
    let from = rows.first().and_then(|row| ledger.entries.iter().position(|entry| entry.step == row.step));
    from.is_some_and(|from| derived::unverified(&rows, &ledger.entries[from..], running).is_none())
}

/// Whether a row is what the ledger's line of its step says, in what figures are made of.
fn tells(line: &EntryLine, row: &MetricsRow) -> bool {
    let is_plain = row.loss.is_some_and(f64::is_finite) && line.contains("\"evaluation\":null");
    if is_plain && row.val_loss.is_none() && row.hellaswag.is_none() {
        return line.bits("loss") == row.loss.map(f64::to_bits)
            && line.contains(&format!("\"action\":\"{}\"", row.action));
    }
    line.parse()
        .is_some_and(|(entry, _)| derived::unverified(std::slice::from_ref(row), &[entry], true).is_none())
}

/// The last rows of a run, as many as its figures take.
struct RowsEnd {
    /// By step, with those of the last evaluation and of the last hundred steps; rows between may be missing.
    rows: Vec<MetricsRow>,
    /// Updates of the whole run.
    updates: usize,
}

impl RowsEnd {
    /// Reads from the end until nothing is missing. How many updates the run made before `newest` stands in
    /// that checkpoint, and lines after it are counted. None where a line is no row.
    fn read(paths: &RunPaths, experiment: &Experiment, newest: Option<&Manifest>) -> Option<RowsEnd> {
        let mut window = WINDOW;
        loop {
            let (bytes, whole) = regular::read_last_lines(&paths.metrics_jsonl(), window).ok()?;
            match RowsEnd::of(&bytes, whole, experiment, newest) {
                Ok(end) => return Some(end),
                Err(Short::OfLines) => window *= 4,
                Err(Short::OfSense) => return None,
            }
        }
    }

    fn of(
        bytes: &[u8],
        whole: bool,
        experiment: &Experiment,
        newest: Option<&Manifest>,
    ) -> Result<RowsEnd, Short> {
        let lines: Vec<&str> = std::str::from_utf8(bytes).map_err(|_| Short::OfSense)?.lines().collect();
        let first = lines.first().ok_or(if whole { Short::OfSense } else { Short::OfLines })?;
        let (counted_from, before) = newest.map_or((0, 0), |manifest| (manifest.step, manifest.updates));
        if !whole && step_of(first).ok_or(Short::OfSense)? > counted_from {
            return Err(Short::OfLines);
        }
        let mut updates = before as usize;
        for line in lines.iter().filter(|line| line.contains(r#""action":"update""#)) {
            updates += usize::from(step_of(line).ok_or(Short::OfSense)? >= counted_from);
        }
        let (mut rows, mut wanted, mut timed) = (Vec::new(), tail(updates), TIMED);
        let mut evaluation = experiment.eval.every > 0;
        for line in lines.iter().rev() {
            let last_steps = wanted > 0 || timed > 0;
            if !(last_steps || evaluation && is_evaluation(line)) {
                if !evaluation {
                    break;
                }
                continue;
            }
            let row = MetricsRow::from_line(line).map_err(|_| Short::OfSense)?;
            wanted -= usize::from(wanted > 0 && row.action == Action::Update);
            timed -= usize::from(timed > 0 && row.step_ms.is_some());
            evaluation &= row.val_loss.is_none() && row.hellaswag.is_none();
            rows.push(row);
        }
        rows.reverse();
        let enough = whole || (wanted == 0 && timed == 0 && !evaluation);
        if enough { Ok(RowsEnd { rows, updates }) } else { Err(Short::OfLines) }
    }
}

/// Why lines are not the end of a run.
enum Short {
    /// More of them are needed.
    OfLines,
    /// One of them is no row.
    OfSense,
}

/// Whether something was measured before the step of this line.
fn is_evaluation(line: &str) -> bool {
    [r#""val_loss":"#, r#""hellaswag":"#]
        .iter()
        .any(|key| line.find(key).is_some_and(|at| !line[at + key.len()..].starts_with("null")))
}

/// The step of a line, which stands first.
fn step_of(line: &str) -> Option<u64> {
    line.strip_prefix(r#"{"step":"#)?.split(',').next()?.parse().ok()
}
