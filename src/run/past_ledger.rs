//! What the ledger of a run says of the steps made so far, for a resume.

use super::error::ProofRefusal;
use super::events::{self, Known};
use super::lock::{TASKS, VALIDATION_SET};
use crate::experiment;
use crate::proof::ledger::{self, Log, Note};
use crate::proof::lock::{DifferenceText, Lock, NOT_SET, Table};
use crate::proof::{Entry, entry};
use crate::store::{Manifest, RunPaths};

/// The ledger of a run that goes on.
pub struct PastLedger {
    log: Log,
    entries: Vec<Entry>,
}

impl PastLedger {
    /// All of it, or where its end is damaged the entries of the checkpoint of `saved`; none where these
    /// cannot be read either.
    pub fn read(paths: &RunPaths, saved: Option<&Manifest>) -> Option<PastLedger> {
        let size = saved.map_or(0, |saved| saved.ledger.size);
        let path = paths.ledger();
        let read = ledger::read(&path).or_else(|_| ledger::read_up_to(&path, size));
        read.ok().map(|(log, entries)| PastLedger { log, entries })
    }

    /// Refuses a ledger in which an entry up to the checkpoint of `saved` has an event that no run makes.
    pub fn require_events(&self, paths: &RunPaths, saved: &Manifest) -> Result<(), ProofRefusal> {
        let size = usize::try_from(saved.ledger.size).unwrap_or(usize::MAX);
        let entries = &self.entries[..self.entries.len().min(size)];
        require_made(paths, (saved.step, &saved.numerics), entries)
    }

    /// Whether a lock was made again, by leave, behind the `size` entries that a checkpoint has: a kill has
    /// taken the entry that said so, and not the note.
    pub fn lost_lock_behind(&self, size: u64) -> bool {
        let is_told =
            |note: &Note| note.after >= size && note.kind == "drift" && events::is_lost_lock(&note.text);
        self.log.notes().iter().any(is_told)
    }

    /// What the steps before step `from` were measured on: as the lock has it, or the last note of a measure
    /// that was turned off.
    pub fn measured_on(&self, from: u64, lock: &Lock) -> Table {
        let evaluations = || {
            self.entries
                .iter()
                .filter(|entry| entry.step < from)
                .filter_map(|entry| entry.evaluation.as_ref())
        };
        let validated = evaluations().any(|evaluation| evaluation.validation.is_some());
        let scored = evaluations().any(|evaluation| evaluation.hellaswag.is_some());
        let turned_off = |key: &str| {
            let was = |note: &Note| {
                let change = DifferenceText::of_key(&note.text, key)?;
                change.was_before(NOT_SET).filter(|set| *set != NOT_SET).map(str::to_owned)
            };
            self.log.notes().iter().rev().filter(|note| note.kind == "environment").find_map(was)
        };
        let sets =
            [(validated, VALIDATION_SET), (scored, TASKS)].into_iter().filter(|(measured, _)| *measured);
        let found = sets.filter_map(|(_, key)| {
            let set = lock.environment.get(key).cloned().or_else(|| turned_off(key))?;
            Some((key.to_owned(), set))
        });
        found.collect()
    }
}

/// Refuses `entries` of which one has an event that no run makes, by the numerics that are `known` behind
/// them.
pub fn require_made(paths: &RunPaths, known: Known<'_>, entries: &[Entry]) -> Result<(), ProofRefusal> {
    // What is wrong with it is said when the run goes on.
    let Ok(own) = experiment::load_recorded(&paths.experiment()) else { return Ok(()) };
    let found = events::fault(&own.experiment, &[known], entry::steps(entries));
    found.map_or(Ok(()), |(step, why)| {
        Err(ProofRefusal(format!(
            "`{}`: the entry of step {step} has {why}\n  hint: the ledger was edited, or is of another run; \
             restore it from a copy",
            paths.ledger().display()
        )))
    })
}

/// Whether a run has made steps, by its ledger; `saved` is whether a checkpoint was found. That a ledger is
/// missing is said when the run goes on.
pub fn has_trained(paths: &RunPaths, saved: bool) -> bool {
    (saved && paths.ledger().exists()) || steps_made(paths) > 0
}

/// How many steps a run has made, by the end of its ledger.
pub fn steps_made(paths: &RunPaths) -> u64 {
    ledger::last_step(&paths.ledger()).map_or(0, |last| last.step + 1)
}
