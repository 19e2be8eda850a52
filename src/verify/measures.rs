//! What the ledger has of evaluations, held to what the run was measured on.

use super::Checks;
use super::lock::Drift;
use crate::experiment::Experiment;
use crate::proof::lock::{DifferenceText, Lock, NOT_SET};
use crate::proof::{Entry, Evaluation, ledger::Note};
use crate::run::data::Data;
use crate::run::{lock, recorded};
use crate::units::counted;

/// One measure: the key of its set in a lock, and what it is called.
struct MeasuredSet {
    key: &'static str,
    figure: &'static str,
    unit: &'static str,
    /// The size of the set that an entry has a figure of.
    size: fn(&Evaluation) -> Option<u64>,
    /// The size of the set that is here.
    here: fn(&Data) -> Option<u64>,
}

const MEASURES: [MeasuredSet; 2] = [
    MeasuredSet {
        key: lock::VALIDATION_SET,
        figure: "a validation loss",
        unit: "token",
        size: |evaluation| Some(evaluation.validation?.tokens),
        here: |data| Some(data.validation.as_ref()?.tokens()),
    },
    MeasuredSet {
        key: lock::TASKS,
        figure: "a score of HellaSwag",
        unit: "task",
        size: |evaluation| Some(evaluation.hellaswag?.tasks),
        here: |data| Some(data.hellaswag.as_ref()?.tasks().len() as u64),
    },
];

/// Refuses figures of sets that the lock does not name, or of other sizes than the sets here have, which are
/// the lock's. A set that a note says was changed or turned off meanwhile is not judged.
pub(super) fn verify(lock: &Lock, notes: &[Note], data: &Data, entries: &[Entry], checks: &mut Checks<'_>) {
    if !recorded::knows_all(lock) {
        return;
    }
    let has_changed = |key: &str| {
        let is_of_it = |note: &Note| DifferenceText::of_key(&note.text, key).is_some();
        notes.iter().any(|note| note.kind == "environment" && is_of_it(note))
    };
    for MeasuredSet { key, figure, unit, size, here } in MEASURES {
        if has_changed(key) {
            continue;
        }
        let named = lock.environment.get(key).is_some_and(|set| set != NOT_SET);
        let here = if named { here(data) } else { None };
        let other = entries.iter().find_map(|entry| {
            let size = size(entry.evaluation.as_ref()?)?;
            (!named || here.is_some_and(|here| here != size)).then_some((entry.step, size))
        });
        let Some((step, size)) = other else { continue };
        let of = match here {
            Some(here) => format!("the set of the run has {}", counted(here, unit)),
            None => format!("the lock names none (`{key}`)"),
        };
        let what = format!(
            "the entry of step {step} has {figure} on {}, and {of}\n  do: one of them was edited; restore it \
             from a copy",
            counted(size, unit)
        );
        checks.failed("evaluations", what);
    }
}

/// Refuses figures of an average in a run that never kept one.
pub(super) fn of_average(experiment: &Experiment, drift: &Drift, entries: &[Entry], checks: &mut Checks<'_>) {
    const KEY: &str = "optimizer.ema_decay";
    if experiment.optimizer.ema_decay != 0.0 || drift.names(KEY) {
        return;
    }
    let has = |entry: &&Entry| {
        entry.evaluation.is_some_and(|of| of.ema_loss.is_some() || of.ema_hellaswag.is_some())
    };
    if let Some(entry) = entries.iter().find(has) {
        let what = format!(
            "the entry of step {} has a figure of the average of the weights, and the run keeps none \
             (`{KEY}`)\n  do: the ledger was edited; restore it from a copy",
            entry.step
        );
        checks.failed("evaluations", what);
    }
}
