//! The events in the ledger: each must be one that the run could have made. A replay copies them.

use crate::experiment::{Experiment, OnDiverge, largest};
use crate::proof::Entry;
use crate::proof::entry::rewind_of;
use crate::proof::lock::Table;
use crate::units::{counted, were};

/// The first entry of a step with an event that no run of `experiment` makes: its step, and what is wrong.
/// `numerics` are those that the steps were made with, `has_changed` tells keys that had other values before.
pub fn fault(
    experiment: &Experiment,
    numerics: &Table,
    has_changed: &dyn Fn(&str) -> bool,
    steps: &[Entry],
) -> Option<(u64, String)> {
    let judged = Judged { experiment, numerics, has_changed, steps };
    (0..steps.len()).find_map(|at| Some((steps[at].step, judged.fault(at)?)))
}

/// The entries of steps, and what they are held to.
struct Judged<'a> {
    experiment: &'a Experiment,
    numerics: &'a Table,
    has_changed: &'a dyn Fn(&str) -> bool,
    steps: &'a [Entry],
}

impl Judged<'_> {
    /// What is wrong with the events of an entry.
    fn fault(&self, at: usize) -> Option<String> {
        let mut went_back = false;
        for event in &self.steps[at].events {
            if let Some(text) = event.strip_prefix("drift ") {
                let is_change = text.starts_with('`') && text.contains("` was ") && text.contains(", is ");
                if !is_change {
                    return Some(format!("the event `{event}`, which names no change of a key"));
                }
                continue;
            }
            let Some((from, to)) = rewind_of(event) else {
                return Some(format!("the event `{event}`, and a run writes `rewind …` and `drift …` alone"));
            };
            if went_back {
                return Some(format!("a second rewind, `{event}`: a run goes back to a checkpoint once"));
            }
            went_back = true;
            if let Some(why) = self.impossible(at, from, to) {
                return Some(format!("the event `{event}`, which cannot be: {why}"));
            }
        }
        None
    }

    /// Why the run cannot have gone back so before the entry at `at`. What has changed by leave since is not
    /// held against it.
    fn impossible(&self, at: usize, from: u64, to: u64) -> Option<String> {
        let Experiment { guards, schedule, optimizer, .. } = self.experiment;
        let step = self.steps[at].step;
        if to != step || to == 0 || from < to {
            return Some("a rewind goes back to the step of its entry, where a checkpoint was".into());
        }
        if self.holds("guards.on_diverge") && guards.on_diverge != OnDiverge::Rewind {
            return Some("`guards.on_diverge` is not `rewind`".into());
        }
        let steps = if self.holds("schedule.steps") { schedule.steps } else { largest("schedule.steps") };
        if from >= steps {
            return Some(format!("the run has {}", counted(steps, "step")));
        }
        // Those of an older program have no such key: its runs went back to other checkpoints too.
        let scheduled = self.numerics.contains_key("checkpoint.every") && self.holds("checkpoint.every");
        let expected = self.experiment.scheduled_before(from);
        if scheduled && to != expected {
            return Some(format!("`checkpoint.every` makes it go back to step {expected} from there"));
        }
        // Skips before the checkpoint count: its state has them.
        let skipped = self.steps[..at].iter().rev().take_while(|entry| entry.action.is_skip()).count() as u64;
        let inherits = skipped == to && optimizer.from_init;
        let skips = from - to + 1 + skipped;
        if self.holds("guards.patience") && !inherits && skips < guards.patience {
            return Some(format!(
                "at most {} in a row {} skipped, and `guards.patience` is {}",
                counted(skips, "step"),
                were(skips),
                guards.patience
            ));
        }
        None
    }

    /// Whether a key had one value in all steps.
    fn holds(&self, key: &str) -> bool {
        let begin = format!("`{key}` was ");
        !(self.has_changed)(key)
            && !self.steps.iter().flat_map(Entry::drifts).any(|text| text.starts_with(&begin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment;
    use crate::proof::Action;

    const TEXT: &str = "[model]\nlayers=1\nheads=1\nchannels=64\n[data]\ncorpus='kjv'\n[schedule]\nsteps=20\n\
                        [guards]\npatience=3\non_diverge='rewind'\n[checkpoint]\nevery=5\n";

    /// What is said of 20 steps with these events in the entry of a step; nothing where a run makes them.
    fn said(text: &str, step: usize, events: &[&str]) -> Option<String> {
        let loaded = experiment::load_text("t", text, &[]).expect("a whole experiment");
        let mut entries: Vec<Entry> = (0..20).map(|at| Entry::new(at, at + 1, Action::Update)).collect();
        entries[step].events = events.iter().map(|event| (*event).to_owned()).collect();
        let numerics = Table::from([("checkpoint.every".to_owned(), "5".to_owned())]);
        let found = fault(&loaded.experiment, &numerics, &|_| false, &entries);
        found.map(|(step, why)| format!("the entry of step {step} has {why}"))
    }

    #[test]
    fn events_that_a_run_writes_pass() {
        for event in
            ["rewind from step 7 to step 5", "rewind from step 9 to step 5", "drift `seed` was 1, is 2"]
        {
            assert_eq!(said(TEXT, 5, &[event]), None, "{event}");
        }
        assert_eq!(said(TEXT, 5, &["drift `seed` was 1, is 2", "rewind from step 8 to step 5"]), None);
        assert_eq!(said(TEXT, 3, &[]), None);
        let changed = ["drift `guards.on_diverge` was rewind, is stop", "rewind from step 8 to step 5"];
        assert_eq!(said(&TEXT.replace("rewind", "stop"), 5, &changed), None);
    }

    #[test]
    fn events_that_no_run_writes_are_found() {
        let table: [(&str, &str); 9] = [
            ("certified by the audit office", "`rewind …` and `drift …` alone"),
            ("rewind from step 07 to step 5", "`rewind …` and `drift …` alone"),
            ("drift of the weather", "names no change of a key"),
            ("rewind from step 504 to step 5", "the run has 20 steps"),
            ("rewind from step 18446744073709551615 to step 5", "the run has 20 steps"),
            ("rewind from step 7 to step 4", "back to the step of its entry"),
            ("rewind from step 4 to step 5", "back to the step of its entry"),
            ("rewind from step 6 to step 5", "at most 2 steps in a row were skipped"),
            ("rewind from step 12 to step 5", "makes it go back to step 10"),
        ];
        for (event, says) in table {
            let why = said(TEXT, 5, &[event]).unwrap_or_default();
            assert!(why.contains("the entry of step 5") && why.contains(says), "{event}: {why}");
        }
        let twice = said(TEXT, 5, &["rewind from step 7 to step 5", "rewind from step 8 to step 5"]);
        assert!(twice.is_some_and(|why| why.contains("a second rewind")));
        let stops = said(&TEXT.replace("rewind", "stop"), 5, &["rewind from step 7 to step 5"]);
        assert!(stops.is_some_and(|why| why.contains("`guards.on_diverge` is not `rewind`")));
    }
}
