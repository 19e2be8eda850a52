//! The tokens of each source of a mixture that the ledger counts, against those that the experiment makes.

use std::collections::BTreeMap;

use super::Checks;
use crate::data::mixture::tokens_of_sources;
use crate::experiment::Experiment;
use crate::proof::Entry;
use crate::proof::entry::{self, rewind_of};
use crate::units::{self, noun};

/// Compares every entry: a run has one mixture, whatever drift was allowed. It needs no data: which source a
/// position has follows from the weights, and the position from the step and the rewinds before it.
pub fn verify(experiment: &Experiment, entries: &[Entry], checks: &mut Checks<'_>) {
    let steps = entry::steps(entries);
    if experiment.data.mix.is_empty() && steps.iter().all(|entry| entry.sources.is_empty()) {
        return;
    }
    let mut offset = experiment.data.offset;
    for entry in steps {
        offset = offset.saturating_add(passed_over(experiment, entry));
        let expected = tokens_of_sources(experiment, entry.step + 1, offset);
        if entry.sources != expected {
            let step = entry.step;
            let (found, expected) = (shown(&entry.sources), shown(&expected));
            checks.failed(
                "sources",
                format!(
                    "the entry of step {step} has the tokens {found}; weights and steps make {expected}\n  \
                     do: ledger or experiment were edited, or are of another run; restore them from a copy"
                ),
            );
            return;
        }
    }
    if let Some(last) = steps.last() {
        checks.passed(
            "sources",
            format!("{} {}, {}", steps.len(), noun(steps.len(), "step"), shown(&last.sources)),
        );
    }
}

/// Sequences by which the rewinds that an entry records moved the stream.
pub(super) fn passed_over(experiment: &Experiment, entry: &Entry) -> u64 {
    let rewinds = entry.events.iter().filter_map(|event| rewind_of(event));
    let before = |step| experiment.sequences_before(step);
    let passed = rewinds.map(|(from, _)| before(from.saturating_add(1)).saturating_sub(before(entry.step)));
    passed.fold(0, u64::saturating_add)
}

fn shown(sources: &BTreeMap<String, u64>) -> String {
    if sources.is_empty() {
        return "of no source".to_owned();
    }
    let each = sources.iter().map(|(name, tokens)| format!("{name} {}", units::thousands(*tokens)));
    each.collect::<Vec<_>>().join(", ")
}
