//! The events in the ledger: each must be one that the run could have made. A replay copies them.

use std::ops::Range;

use crate::experiment::{self, Experiment, largest};
use crate::proof::Entry;
use crate::proof::entry::rewind_of;
use crate::proof::lock::{DifferenceText, Table};
pub use crate::proof::lock::{is_lost_lock, lost_lock};
use crate::units::{counted, were};

/// Sections of what numerics have beside the keys of an experiment.
const FACTS: [&str; 3] = ["cpu", "cuda", "train"];

/// The numerics of a run by the number of steps after which they were these, rising.
pub type Known<'a> = (u64, &'a Table);

/// The first entry of a step with an event that no run of `experiment` makes: its step, and what is wrong.
/// What is `known` of the numerics is of the steps; without any behind the last one, less is held to them.
pub fn fault(experiment: &Experiment, known: &[Known<'_>], steps: &[Entry]) -> Option<(u64, String)> {
    let judged = Judged { experiment, known, steps };
    (0..steps.len()).find_map(|at| Some((steps[at].step, judged.fault(at)?)))
}

/// The entries of steps, and what they are held to.
struct Judged<'a> {
    experiment: &'a Experiment,
    known: &'a [Known<'a>],
    steps: &'a [Entry],
}

impl<'a> Judged<'a> {
    /// What is wrong with the events of an entry.
    fn fault(&self, at: usize) -> Option<String> {
        let mut went_back = false;
        for event in &self.steps[at].events {
            if let Some(text) = event.strip_prefix("drift ") {
                let Some(change) = DifferenceText::parse(text) else {
                    return Some(format!("the event `{event}`, which names no change of a key"));
                };
                if let Some(why) = self.unfounded(at, text, change) {
                    return Some(format!("the event `{event}`, which cannot be: {why}"));
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

    /// Changes of a key in the entries of a range, with their places.
    fn changes(
        &self,
        places: Range<usize>,
        key: &'a str,
    ) -> impl DoubleEndedIterator<Item = (usize, DifferenceText<'a>)> {
        let steps = self.steps;
        let of_entry = move |at: usize| steps[at].drifts().map(move |text| (at, text));
        let found = places.flat_map(of_entry);
        found.filter_map(move |(at, text)| Some((at, DifferenceText::of_key(text, key)?)))
    }

    /// Why a key cannot have changed so before the entry at `at`.
    fn unfounded(&self, at: usize, text: &str, change: DifferenceText<'a>) -> Option<String> {
        let key = change.key;
        if self.changes(at..at + 1, key).count() > 1 {
            return Some(format!("`{key}` changes twice there"));
        }
        if is_lost_lock(text) {
            let is_told = text == lost_lock().to_string();
            return (!is_told).then(|| format!("a run writes `{}` alone of it", lost_lock()));
        }
        if !self.is_of_numerics(key) {
            return Some("no lock has such a key".into());
        }
        if change.changes_nothing() {
            return Some("it has one value twice".into());
        }
        let step = self.steps[at].step;
        let before = self.changes(0..at, key).next_back();
        if before.is_some_and(|(_, before)| !change.follows(before)) {
            return Some(format!("the change of `{key}` before it ends in another value"));
        }
        let since = before.map_or(0, |(before, _)| self.steps[before].step + 1);
        let was = self.known.iter().rev().find(|(made, _)| (since..=step).contains(made));
        let next = self.changes(at + 1..self.steps.len(), key).next();
        let until = next.map_or(u64::MAX, |(next, _)| self.steps[next].step);
        let is = self.known.iter().find(|(made, _)| (step + 1..=until).contains(made));
        let other = was.filter(|(_, table)| !change.was(table.get(key)));
        let other = other.or(is.filter(|(_, table)| !change.is(table.get(key))));
        other.map(|(made, table)| {
            let value = table.get(key).map_or("not set", String::as_str);
            format!("after {} `{key}` was {value}", counted(*made, "step"))
        })
    }

    /// Whether numerics can have a key, of this program or of an older one.
    fn is_of_numerics(&self, key: &str) -> bool {
        FACTS.contains(&section(key))
            || experiment::keys().any(|known| section(known) == section(key))
            || self.known.iter().any(|(_, table)| table.contains_key(key))
    }

    /// The value of a key before the entry at `at`, as the first change behind it says, or the numerics
    /// behind the steps; none where neither knows it.
    fn value(&self, at: usize, key: &'static str) -> Option<&'a str> {
        match self.changes(at + 1..self.steps.len(), key).next() {
            Some((_, change)) => change.was_text(),
            None => {
                let made = self.steps[at].step;
                let (_, table) = self.known.last().filter(|(known, _)| *known > made)?;
                table.get(key).map(String::as_str)
            }
        }
    }

    fn number(&self, at: usize, key: &'static str) -> Option<u64> {
        self.value(at, key)?.parse().ok()
    }

    /// Why the run cannot have gone back so before the entry at `at`, by the settings that it had there.
    fn impossible(&self, at: usize, from: u64, to: u64) -> Option<String> {
        let step = self.steps[at].step;
        if to != step || to == 0 || from < to {
            return Some("a rewind goes back to the step of its entry, where a checkpoint was".into());
        }
        if self.value(at, "guards.on_diverge").is_some_and(|action| action != "rewind") {
            return Some("`guards.on_diverge` is not `rewind`".into());
        }
        let steps = self.number(at, "schedule.steps").unwrap_or(largest("schedule.steps"));
        if from >= steps {
            return Some(format!("the run has {}", counted(steps, "step")));
        }
        // Those of an older program have no such key: its runs went back to other checkpoints too.
        let every = self.number(at, "checkpoint.every");
        let expected = every.map(|every| experiment::scheduled_before(every, from));
        if let Some(expected) = expected.filter(|expected| *expected != to) {
            return Some(format!("`checkpoint.every` makes it go back to step {expected} from there"));
        }
        // Skips before the checkpoint count: its state has them.
        let skipped = self.steps[..at].iter().rev().take_while(|entry| entry.action.is_skip()).count() as u64;
        let inherits = skipped == to && self.experiment.optimizer.from_init;
        let skips = from - to + 1 + skipped;
        let patience = self.number(at, "guards.patience").filter(|_| !inherits);
        let patience = patience.filter(|patience| skips < *patience)?;
        Some(format!(
            "at most {} in a row {} skipped, and `guards.patience` is {patience}",
            counted(skips, "step"),
            were(skips),
        ))
    }
}

/// What stands before the first dot of a key.
fn section(key: &str) -> &str {
    key.split_once('.').map_or(key, |(section, _)| section)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proof::Action;
    use crate::run::lock::resolved_numerics;

    const TEXT: &str = "[model]\nlayers=1\nheads=1\nchannels=64\n[data]\ncorpus='kjv'\n[schedule]\nsteps=20\n\
                        [guards]\npatience=3\non_diverge='rewind'\n[checkpoint]\nevery=5\n";

    fn numerics(text: &str) -> Table {
        resolved_numerics(&loaded(text))
    }

    fn loaded(text: &str) -> Experiment {
        experiment::load_text("t", text, &[]).expect("a whole experiment").experiment
    }

    /// What is said of 20 steps with these events in the entries of steps, where the numerics are known;
    /// nothing where a run makes them.
    fn judged(text: &str, known: &[Known<'_>], events: &[(usize, &str)]) -> Option<String> {
        let mut entries: Vec<Entry> = (0..20).map(|at| Entry::new(at, at + 1, Action::Update)).collect();
        events.iter().for_each(|(step, event)| entries[*step].events.push((*event).to_owned()));
        let found = fault(&loaded(text), known, &entries);
        found.map(|(step, why)| format!("the entry of step {step} has {why}"))
    }

    /// As [`judged`], with the numerics at the end alone.
    fn said(text: &str, step: usize, events: &[&str]) -> Option<String> {
        let events: Vec<_> = events.iter().map(|event| (step, *event)).collect();
        judged(text, &[(20, &numerics(text))], &events)
    }

    #[test]
    fn events_that_a_run_writes_pass() {
        for event in [
            "rewind from step 7 to step 5",
            "rewind from step 9 to step 5",
            "drift `seed` was 1, is 1337",
            "drift `older.key` was 1, is not set",
            "drift `lock.toml` was missing, is made of what was here at the resume",
        ] {
            let known = numerics(TEXT);
            let older = Table::from([("older.key".to_owned(), "1".to_owned())]);
            let known: [Known<'_>; 2] = [(5, &older), (20, &known)];
            let known = if event.contains("older") { &known[..] } else { &known[1..] };
            assert_eq!(judged(TEXT, known, &[(5, event)]), None, "{event}");
        }
        assert_eq!(said(TEXT, 5, &["drift `seed` was 1, is 1337", "rewind from step 8 to step 5"]), None);
        assert_eq!(said(TEXT, 3, &[]), None);
        let stops = TEXT.replace("rewind", "stop");
        let changed =
            [(5, "rewind from step 8 to step 5"), (6, "drift `guards.on_diverge` was rewind, is stop")];
        assert_eq!(judged(&stops, &[(20, &numerics(&stops))], &changed), None);
        // Before the first step of a resume whose lock is of steps to come, nothing is known of the end.
        assert_eq!(judged(TEXT, &[], &[(3, "drift `seed` was 1, is 2"), changed[0]]), None);
    }

    #[test]
    fn a_key_may_change_often_and_back() {
        let [first, other, last] = ["1", "2", "1337"].map(|seed| numerics(&format!("seed={seed}\n{TEXT}")));
        let known: [Known<'_>; 3] = [(5, &first), (12, &other), (20, &last)];
        let events = [
            (5, "drift `seed` was 1, is 3"),
            (8, "drift `seed` was 3, is 1"),
            (10, "drift `seed` was 1, is 2"),
            (12, "drift `seed` was 2, is 1337"),
        ];
        assert_eq!(judged(TEXT, &known, &events), None);
        assert_eq!(judged(TEXT, &known[2..], &events), None);
        let without = |at: usize| {
            let left: Vec<_> = events.iter().enumerate().filter(|(place, _)| *place != at).collect();
            let left: Vec<_> = left.into_iter().map(|(_, event)| *event).collect();
            judged(TEXT, &known, &left).unwrap_or_default()
        };
        assert!(without(0).contains("the entry of step 8 has") && without(0).contains("after 5 steps"));
        assert!(without(1).contains("the entry of step 10 has") && without(1).contains("ends in another"));
        assert!(without(2).contains("the entry of step 8 has") && without(2).contains("after 12 steps"));
    }

    #[test]
    fn drift_that_no_run_writes_is_found_and_excuses_no_rewind() {
        let table: [(&str, &str); 9] = [
            ("drift `weather.sky` was blue, is grey", "no lock has such a key"),
            ("drift `seed` was 1, is 2", "after 20 steps `seed` was 1337"),
            ("drift `seed` was 1337, is 1337", "it has one value twice"),
            ("drift `log.every` was 1, is 5", "after 20 steps `log.every` was not set"),
            ("drift `lock.toml` was missing, is forged", "a run writes `"),
            ("drift `cuda.sm_count` was 1, is 2", "after 20 steps `cuda.sm_count` was not set"),
            ("drift `guards.on_diverge` was rewind, is rewind", "it has one value twice"),
            ("drift `guards.patience` was 1, is 2", "after 20 steps `guards.patience` was 3"),
            ("drift `seed`: 1, is 2", "names no change of a key"),
        ];
        for (event, says) in table {
            let why = said(TEXT, 5, &[event]).unwrap_or_default();
            assert!(why.contains("the entry of step 5") && why.contains(says), "{event}: {why}");
        }
        let twice = said(TEXT, 5, &["drift `seed` was 1, is 1337", "drift `seed` was 1, is 1337"]);
        assert!(twice.is_some_and(|why| why.contains("changes twice")));
        // A change before the rewind says what the setting was there.
        let stops = TEXT.replace("rewind", "stop");
        let excuse =
            [(3, "drift `guards.on_diverge` was rewind, is stop"), (5, "rewind from step 8 to step 5")];
        let why = judged(&stops, &[(20, &numerics(&stops))], &excuse).unwrap_or_default();
        assert!(why.contains("the entry of step 5") && why.contains("is not `rewind`"), "{why}");
        // What a checkpoint before it has is what the key was.
        let known: [Known<'_>; 2] = [(5, &numerics(&stops)), (20, &numerics(&stops))];
        let excuse =
            [(5, "rewind from step 8 to step 5"), (6, "drift `guards.on_diverge` was rewind, is stop")];
        let why = judged(&stops, &known, &excuse).unwrap_or_default();
        assert!(why.contains("the entry of step 6") && why.contains("after 5 steps"), "{why}");
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
        let mut unsaved = numerics(TEXT);
        unsaved.insert("checkpoint.every".into(), "0".into());
        let unsaved = judged(TEXT, &[(20, &unsaved)], &[(5, "rewind from step 7 to step 5")]);
        assert!(unsaved.is_some_and(|why| why.contains("makes it go back to step 0")));
        let twice = said(TEXT, 5, &["rewind from step 7 to step 5", "rewind from step 8 to step 5"]);
        assert!(twice.is_some_and(|why| why.contains("a second rewind")));
        let stops = said(&TEXT.replace("rewind", "stop"), 5, &["rewind from step 7 to step 5"]);
        assert!(stops.is_some_and(|why| why.contains("`guards.on_diverge` is not `rewind`")));
    }
}
