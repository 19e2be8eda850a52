//! Runs as other programs that keep experiments have them, read from their folders.
//!
//! Takes no lock: a run may be exported while it is training, and again when it has ended.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context;

use super::error::{ProofRefusal, UsageError, refuse_ledger};
use super::find;
use crate::experiment;
use crate::formats::tracker::{TrackedName, TrackedRun, TrackedStatus, TrackedSweep};
use crate::proof::ledger::Note;
use crate::proof::lock::Lock;
use crate::proof::sweep::SweepLock;
use crate::proof::{Entry, ledger};
use crate::report::summary::{RunSummary, State};
use crate::report::{is_unended, unbound};
use crate::store::metrics::{self, MetricsRow};
use crate::store::notes::Notes;
use crate::store::sweep_folder::{is_sweep, members};
use crate::store::{RunPaths, SweepPaths, derived};

/// The folders of the runs that an argument names: a run's, or those of the members of a sweep that have
/// begun. The second number is how many have not.
///
/// # Errors
/// There is no such run or sweep, or no member has begun.
pub fn folders(asked: &Path, runs: &Path) -> anyhow::Result<(Vec<PathBuf>, usize)> {
    let Some(sweep) = find::find_sweep(Some(asked), runs) else {
        return Ok((vec![find::find(Some(asked), runs)?], 0));
    };
    let members = members(&sweep)?;
    let begun = |folder: &PathBuf| RunPaths::new(folder).ledger().metadata().is_ok_and(|file| file.len() > 0);
    let all = members.len();
    let folders: Vec<PathBuf> = members.into_iter().map(|member| member.folder).filter(begun).collect();
    if folders.is_empty() {
        return Err(
            UsageError(format!("no member of the sweep `{}` has made a step", sweep.display())).into()
        );
    }
    let missing = all - folders.len();
    Ok((folders, missing))
}

/// What was changed by leave on the way: the keys are those after it.
fn drift(entries: &[Entry], notes: &[Note]) -> Option<String> {
    let of = |entry: &Entry| {
        let changes = entry.drifts();
        changes.map(|change| format!("from step {} on {change}", entry.step)).collect::<Vec<_>>()
    };
    let pending = notes.iter().filter(|note| note.kind == "drift" && note.after >= entries.len() as u64);
    let pending = pending.map(|note| format!("for the steps to come {}", note.text));
    let changes: Vec<String> = entries.iter().flat_map(of).chain(pending).collect();
    (!changes.is_empty()).then(|| changes.join("; "))
}

/// Reads the run in `folder`.
///
/// # Errors
/// A file cannot be read, the run has made no step, or its metrics are not what its ledger says.
pub fn read(folder: &Path) -> anyhow::Result<TrackedRun> {
    let paths = RunPaths::new(folder);
    let summary = RunSummary::read(folder);
    let experiment = experiment::load_recorded(&paths.experiment())?.experiment;
    let lock = Lock::read(&paths.lock_file())?;
    let running = is_unended(summary.state == State::Running, Some(&lock));
    let (log, entries) = ledger::read(&paths.ledger()).map_err(refuse_ledger)?;
    let Some(first) = entries.first() else {
        return Err(UsageError(format!("the run in `{}` has made no step yet", folder.display())).into());
    };
    let mut rows = metrics::read(folder)?;
    if let [.., last] = &entries[..]
        && rows.len() + 1 == entries.len()
        && summary.state == State::Stopped
    {
        // A kill came between the two files.
        rows.push(MetricsRow::of(last, None));
    }
    if let Some(why) = derived::unverified(&rows, &entries, running) {
        return Err(ProofRefusal(format!(
            "the metrics of `{}` are not what its ledger says: {why}\n  hint: {}",
            folder.display(),
            metrics::REBUILD
        ))
        .into());
    }
    let notes = Notes::read(folder)?;
    if let Some(why) = unbound(&paths, &log, Some(&lock), running) {
        return Err(ProofRefusal(format!(
            "the figures of `{}` are not verified: {why}\n  hint: `runner verify {}` says what was changed",
            folder.display(),
            paths.name()
        ))
        .into());
    }
    let last_row = last_written(&paths.metrics_jsonl())?;
    let sweep = sweep_of(folder, last_row)?;
    let name =
        sweep.as_ref().map_or_else(|| paths.name(), |sweep| format!("{}/{}", sweep.name.name, paths.name()));
    let facts = [
        ("state", Some(summary.state.name().to_owned())),
        ("why", summary.why),
        ("root", summary.root),
        ("numerics_id", summary.numerics_id),
        ("device", summary.device),
        ("model", Some(summary.model)),
        ("parameters", summary.parameters.map(|count| count.to_string())),
        ("init", summary.init),
        ("version", lock.source.get("version").cloned()),
        ("drift", drift(&entries, log.notes())),
    ];
    let best = summary.best_val_loss.map(|loss| ("best_val_loss", loss));
    let file = |name: &'static str, path: PathBuf| {
        std::fs::read(&path)
            .map(|bytes| (name, bytes))
            .with_context(|| format!("cannot read `{}`", path.display()))
    };
    Ok(TrackedRun {
        name: TrackedName::new(&name, beginning(first).as_bytes()),
        sweep,
        status: match summary.state {
            State::Running => TrackedStatus::Running,
            State::Done => TrackedStatus::Finished,
            State::Stopped if facts[1].1.is_none() => TrackedStatus::Stopped,
            State::Stopped | State::Broken => TrackedStatus::Failed,
        },
        hyperparameters: experiment::hyperparameters(&experiment),
        facts: facts.into_iter().filter_map(|(key, value)| Some((key, value?))).collect(),
        tags: notes.tags.into_iter().collect(),
        note: Some(notes.notes.join("\n")).filter(|note| !note.is_empty()),
        commit: lock.source.get("git_commit").filter(|commit| *commit != "unknown").cloned(),
        figures: summary.figures.measured().chain(best).collect(),
        rows,
        last_row,
        files: vec![file("experiment.toml", paths.experiment())?, file("lock.toml", paths.lock_file())?],
    })
}

/// What tells a run from another of its name, and stays when it is resumed, rewound or made longer: its first
/// step.
fn beginning(first: &Entry) -> String {
    let bits = |number: Option<f64>| number.map(f64::to_bits);
    let numbers = [first.loss, first.grad_norm, first.learning_rate].map(bits);
    format!("{} {} {numbers:?} {:?}", first.step, first.tokens, first.root.map(|root| root.to_string()))
}

/// The sweep of which the run in `folder`, whose last row was written then, is a member.
fn sweep_of(folder: &Path, last_row: f64) -> anyhow::Result<Option<TrackedSweep>> {
    let folder = std::path::absolute(folder)?;
    let Some(above) = folder.parent().filter(|above| is_sweep(above)) else { return Ok(None) };
    let paths = SweepPaths::new(above);
    let declaration = paths.declaration();
    let declared =
        std::fs::read(&declaration).with_context(|| format!("cannot read `{}`", declaration.display()))?;
    let hash = match paths.lock_file().is_file() {
        true => Some(SweepLock::read(&paths.lock_file())?.hash().to_string()),
        false => None,
    };
    let status = if hash.is_some() { TrackedStatus::Finished } else { TrackedStatus::Stopped };
    let began = last_written(&declaration)?;
    let ended = if hash.is_some() { last_written(&paths.lock_file())? } else { last_row };
    let (name, span) = (TrackedName::new(&paths.name(), &declared), (began, ended.max(began)));
    Ok(Some(TrackedSweep { name, status, hash, span }))
}

/// When a file was last written, seconds since 1970.
fn last_written(path: &Path) -> anyhow::Result<f64> {
    let written = std::fs::metadata(path).and_then(|file| file.modified());
    let written = written.with_context(|| format!("cannot read `{}`", path.display()))?;
    Ok(written.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64())
}
