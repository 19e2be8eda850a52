//! The events in the ledger, as [`crate::run::events`] judges them.

use super::Checks;
use super::lock::Drift;
use crate::experiment::Experiment;
use crate::proof::Entry;
use crate::proof::entry;
use crate::proof::lock::Lock;
use crate::run::events;

/// Judges every event of the entries; `drift` is what the ledger says of drift.
pub(super) fn verify(
    experiment: &Experiment,
    lock: &Lock,
    drift: &Drift,
    entries: &[Entry],
    checks: &mut Checks<'_>,
) {
    let steps = entry::steps(entries);
    let has_changed = |key: &str| drift.names(key);
    if let Some((step, why)) = events::fault(experiment, &lock.numerics, &has_changed, steps) {
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
