//! The events in the ledger, as [`crate::run::events`] judges them.

use super::Checks;
use super::lock::Drift;
use crate::experiment::Experiment;
use crate::proof::Entry;
use crate::proof::entry;
use crate::proof::lock::Lock;
use crate::run::events::{self, Known};
use crate::store::Manifest;

/// Judges every event of the entries, by the numerics of the checkpoints, and those of the lock unless
/// `drift` says that they are of steps to come.
pub(super) fn verify(
    experiment: &Experiment,
    lock: &Lock,
    drift: &Drift,
    manifests: &[Manifest],
    entries: &[Entry],
    checks: &mut Checks<'_>,
) {
    let steps = entry::steps(entries);
    let mut known: Vec<Known<'_>> =
        manifests.iter().map(|manifest| (manifest.step, &manifest.numerics)).collect();
    if !drift.is_pending() {
        known.push((steps.len() as u64, &lock.numerics));
    }
    if let Some((step, why)) = events::fault(experiment, &known, steps) {
        let what = format!(
            "the entry of step {step} has {why}\n  do: the ledger was edited, or is of another run; restore \
             it from a copy"
        );
        return checks.failed("events", what);
    }
    let drifts = steps.iter().flat_map(Entry::drifts).count();
    let rewinds = steps.iter().flat_map(|entry| &entry.events).count() - drifts;
    if rewinds + drifts > 0 {
        checks.passed("events", format!("rewinds: {rewinds}, changes by leave: {drifts}"));
    }
}
