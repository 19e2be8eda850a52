//! The runs of a comparison: what each reached, and why one cannot be compared with the others.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use rayon::prelude::*;
use serde::Serialize;

use super::Measure;
use super::common_ground::{self, COMMON_GROUND, TASKS, notes_on};
use crate::experiment::is_given_by_descriptor;
use crate::proof::lock::Lock;
use crate::report::ReportError;
use crate::report::figures::Figures;
use crate::report::groups::{self, DRIFT, RunKeys, SEED};
use crate::report::summary::{RunSummary, State};
use crate::store::RunPaths;
use crate::store::columns::ColumnKind;
use crate::store::metrics::{self, Action, Column, MetricsRow};
use crate::units;

/// The keys that set how many tokens a run is trained on. Groups by one of them are meant to differ in that.
pub(super) const BUDGET: [&str; 4] =
    ["schedule.steps", "batch.tokens", "batch.tokens_start", "batch.tokens_warmup_steps"];

/// A run by its folder, with the name that messages give it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedRun {
    pub name: String,
    pub folder: PathBuf,
}

/// A validation during a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ValidationPoint {
    pub step: u64,
    /// Trained on before it.
    pub tokens: u64,
    /// Of training steps before it; none where no clock was read.
    pub hours: Option<f64>,
    #[serde(skip)]
    pub val_loss: f64,
}

/// A finished run.
#[derive(Clone, Debug)]
pub struct ComparedRun {
    pub name: String,
    pub keys: RunKeys,
    pub steps: u64,
    pub tokens: u64,
    /// State root after the last step.
    pub root: Option<String>,
    pub device: Option<String>,
    /// Where its figures disagree with its ledger; none if they agree.
    pub unverified: Option<String>,
    /// After the last step.
    pub val_loss: f64,
    /// The lowest of its validations.
    pub best_val_loss: f64,
    /// After the last step, llm.c's score.
    pub hellaswag: Option<f64>,
    /// One number for each column of its metrics, and the row after the last step, where what was evaluated
    /// then stands.
    pub(in crate::report) figures: Figures,
    last: MetricsRow,
    /// Finite ones, ascending.
    pub validations: Vec<ValidationPoint>,
    /// Hashes of the validation set, of the tokenizer and of HellaSwag's tasks.
    pub(super) validation_set: String,
    pub(super) tokenizer: String,
    pub(super) tasks: Option<String>,
}

/// A run that is not compared.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LeftOutRun {
    pub run: String,
    pub why: String,
    /// Whether its training failed, so that leaving it out makes its group look better than it is.
    pub failed: bool,
    #[serde(skip)]
    pub keys: Option<RunKeys>,
}

/// A run that takes part, or why it does not.
pub(super) type ReadRun = Result<ComparedRun, LeftOutRun>;

fn keys_of(run: &ReadRun) -> Option<&RunKeys> {
    match run {
        Ok(run) => Some(&run.keys),
        Err(run) => run.keys.as_ref(),
    }
}

/// Runs of one kind.
#[derive(Clone, Debug)]
pub struct RunGroup {
    /// Of the keys that make the groups, in their order.
    pub values: Vec<String>,
    pub runs: Vec<ComparedRun>,
    /// Runs of this kind whose training failed.
    pub failed: usize,
}

/// Runs that can be compared, in groups, and what else is to be known of them.
#[derive(Clone, Debug)]
pub struct ComparedRuns {
    /// The keys that make the groups.
    pub by: Vec<String>,
    /// The keys of a pair: runs of two groups belong together where these are equal.
    pub pair_by: Vec<String>,
    /// What the verdict is about.
    pub measure: Measure,
    pub groups: Vec<RunGroup>,
    pub left_out: Vec<LeftOutRun>,
    pub notes: Vec<String>,
}

impl ComparedRuns {
    /// Reads runs and groups those that can be compared in `measure`: by the keys `by`, or where that is none
    /// by all keys that they differ in but the seed.
    ///
    /// # Errors
    /// `by` names no key of an experiment. What is wrong with a run leaves that run out, and is said.
    pub fn read(
        runs: &[NamedRun],
        by: Option<&[String]>,
        measure: Measure,
    ) -> Result<ComparedRuns, ReportError> {
        let (runs, notes) = once(runs);
        let read_one = |run: &NamedRun| ComparedRun::read(run)?.with(measure);
        let mut read: Vec<ReadRun> = runs.par_iter().map(read_one).collect();
        let keys: Vec<RunKeys> = read.iter().map(|run| keys_of(run).cloned().unwrap_or_default()).collect();
        let by = by.map(|by| groups::named_keys(by, read.iter().filter_map(keys_of))).transpose()?;
        let by = by.as_deref();
        let is_budget = by.is_some_and(|by| by.iter().any(|key| BUDGET.contains(&key.as_str())));
        let everyone = vec![(Vec::new(), (0..read.len()).collect())];
        let by_budget =
            if is_budget { groups::group_by(by.unwrap_or_default(), keys.iter()) } else { everyone.clone() };
        let [tokenizer, validation, tokens] = &COMMON_GROUND;
        for (common, groups) in [(tokenizer, &everyone), (validation, &everyone), (tokens, &by_budget)] {
            groups.iter().for_each(|(_, members)| common.hold(&mut read, members));
        }
        if measure.key().contains("hellaswag") && matches!(measure, Measure::Metric(_)) {
            TASKS.hold(&mut read, &everyone[0].1);
        }
        let (mut compared, mut left_out) = (Vec::new(), Vec::new());
        for run in read {
            match run {
                Ok(run) => compared.push(run),
                Err(run) => left_out.push(run),
            }
        }
        Ok(ComparedRuns::group(compared, left_out, by, measure, notes))
    }

    /// Groups runs that can be compared in `measure`, which every run must have.
    pub fn group(
        compared: Vec<ComparedRun>,
        left_out: Vec<LeftOutRun>,
        by: Option<&[String]>,
        measure: Measure,
        mut notes: Vec<String>,
    ) -> ComparedRuns {
        // A failed run makes a group of its own kind too, and is no member of the others'.
        let failed =
            || left_out.iter().filter(|run| run.failed).filter_map(|run| Some((run, run.keys.as_ref()?)));
        let all = compared.iter().map(|run| &run.keys).chain(failed().map(|(_, keys)| keys));
        let differing = groups::differing(all);
        let by = by.map_or_else(|| differing.clone(), <[String]>::to_vec);
        let others = std::iter::once(SEED.to_owned()).chain(differing);
        // Where a run goes on in its data follows from the checkpoint that it goes on with.
        let is_of_by = |key: &String| {
            by.contains(key) || (key == "data.offset" && by.iter().any(|key| key == "model.init"))
        };
        let pair_by: Vec<String> = others.filter(|key| !is_of_by(key)).collect();
        let mut grouped: Vec<RunGroup> = groups::group_by(&by, compared.iter().map(|run| &run.keys))
            .into_iter()
            .map(|(values, members)| RunGroup {
                failed: failed().filter(|(_, keys)| keys.values(&by) == values).count(),
                runs: members.into_iter().map(|member| compared[member].clone()).collect(),
                values,
            })
            .collect();
        let mut lost: BTreeMap<Vec<String>, Vec<&str>> = BTreeMap::new();
        for (run, keys) in failed() {
            let values = keys.values(&by);
            if grouped.iter().all(|group| group.values != values) {
                lost.entry(values).or_default().push(&run.run);
            }
        }
        notes.extend(lost.into_iter().map(|(values, runs)| {
            let kind: Vec<String> =
                by.iter().zip(&values).map(|(key, value)| format!("{key} = {value}")).collect();
            format!(
                "every run of {} has failed, so it is no group here: {}",
                kind.join(", "),
                runs.join(", ")
            )
        }));
        notes.extend(notes_on_confounded(&by, &pair_by, &grouped));
        for group in grouped.iter_mut().filter(|_| !measure.is_timing()) {
            notes.extend(group.count_equal_bits_once());
        }
        notes.extend(notes_on(&by, &mut grouped));
        ComparedRuns { by, pair_by, measure, groups: grouped, left_out, notes }
    }

    /// Which groups are no samples of seeds: of timings every run is one of its own.
    pub fn notes_on_samples(&self) -> Vec<String> {
        let groups = if self.measure.is_timing() { &[][..] } else { &self.groups };
        common_ground::notes_on_samples(&self.by, &self.pair_by, groups)
    }

    /// The number of a run in which it is compared.
    pub fn value(&self, run: &ComparedRun) -> f64 {
        self.measure.of(run).unwrap_or(f64::NAN)
    }

    /// Every run that is compared.
    pub fn all(&self) -> impl Iterator<Item = &ComparedRun> + Clone {
        self.groups.iter().flat_map(|group| &group.runs)
    }
}

/// The keys of a pair that go with two groups: no value of one is in the other. By them no two of their
/// runs would belong together, and what is said of the groups is said of them too.
pub(super) fn confounded<'a>(pair_by: &'a [String], a: &RunGroup, b: &RunGroup) -> Vec<&'a String> {
    let goes_with = |key: &&String| {
        let [ours, theirs] = [a, b].map(|group| values_in(group, key));
        **key != SEED && ours.is_disjoint(&theirs)
    };
    pair_by.iter().filter(goes_with).collect()
}

fn values_in<'a>(group: &'a RunGroup, key: &str) -> BTreeSet<&'a str> {
    group.runs.iter().map(|run| run.keys.get(key)).collect()
}

/// In what else groups differ, by key: all of them, or which pairs.
fn notes_on_confounded(by: &[String], pair_by: &[String], groups: &[RunGroup]) -> Vec<String> {
    /// Pairs that are named.
    const NAMED: usize = 3;
    let pairs = || (0..groups.len()).flat_map(|a| (a + 1..groups.len()).map(move |b| (a, b)));
    let note = |key: &String| {
        let is_of_key = |(a, b): &(usize, usize)| {
            confounded(std::slice::from_ref(key), &groups[*a], &groups[*b]).len() == 1
        };
        let found: Vec<(usize, usize)> = pairs().filter(is_of_key).collect();
        let of = |group: usize| values_in(&groups[group], key).into_iter().collect::<Vec<_>>().join(" or ");
        let label = |group: usize| groups::label(by, &groups[group].values);
        let says = format!("nothing here tells what {} does from what that does", by.join(", "));
        if found.is_empty() {
            return None;
        }
        if groups.iter().all(|group| values_in(group, key).len() == 1) {
            let mut values: Vec<String> = (0..groups.len()).map(of).collect();
            values.dedup();
            return Some(format!("groups differ in {key} too ({}): {says}", values.join(", ")));
        }
        let named = found
            .iter()
            .take(NAMED)
            .map(|(a, b)| format!("{} and {} ({}, {})", label(*a), label(*b), of(*a), of(*b)));
        let more = match found.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more pairs"),
        };
        let named: Vec<String> = named.collect();
        Some(format!("{}{more} differ in {key} too: {says}", named.join("; ")))
    };
    // What a descriptor is made of is no other difference.
    let by_descriptor = by.iter().any(|key| key == "model.descriptor");
    pair_by.iter().filter(|key| !(by_descriptor && is_given_by_descriptor(key))).filter_map(note).collect()
}

/// Runs without those that are named a second time, and what is said of them.
fn once(runs: &[NamedRun]) -> (Vec<NamedRun>, Vec<String>) {
    let (mut seen, mut kept, mut notes) = (BTreeSet::new(), Vec::new(), Vec::new());
    for run in runs {
        if seen.insert(run.folder.canonicalize().unwrap_or_else(|_| run.folder.clone())) {
            kept.push(run.clone());
        } else {
            notes.push(format!("{} was named twice and counts once", run.name));
        }
    }
    (kept, notes)
}

impl RunGroup {
    /// Leaves one of the runs that ended in the same bits: the same experiment, made again, is no second
    /// sample.
    fn count_equal_bits_once(&mut self) -> Vec<String> {
        let mut notes = Vec::new();
        let mut kept: Vec<ComparedRun> = Vec::new();
        for run in std::mem::take(&mut self.runs) {
            match kept.iter().find(|other| run.root.is_some() && other.root == run.root) {
                Some(other) => notes.push(format!(
                    "{} ended in the bits of {}: it is the same run, and counts once",
                    run.name, other.name
                )),
                None => kept.push(run),
            }
        }
        self.runs = kept;
        notes
    }
}

impl ComparedRun {
    /// Reads a run; an error is why it cannot take part.
    fn read(run: &NamedRun) -> ReadRun {
        let summary = RunSummary::read(&run.folder);
        let lock = Lock::read(&RunPaths::new(&run.folder).lock_file()).ok();
        let keys = RunKeys::read(&run.folder, lock.as_ref()).ok();
        let refused =
            |why: String, failed: bool| LeftOutRun { run: run.name.clone(), why, failed, keys: keys.clone() };
        if !RunPaths::new(&run.folder).have_begun() {
            return Err(refused("it has not begun".to_owned(), false));
        }
        let steps = summary.steps.map_or("?".to_owned(), units::thousands);
        let at = format!("step {} of {steps}", units::thousands(summary.step));
        match (summary.state, &summary.why) {
            (State::Done, _) => {}
            (State::Running, _) => return Err(refused(format!("still running, at {at}"), false)),
            (State::Broken, why) => {
                return Err(refused(format!("broken: {}", why.as_deref().unwrap_or("?")), false));
            }
            (State::Stopped, Some(why)) => return Err(refused(format!("{why}, at {at}"), true)),
            (State::Stopped, None) => {
                return Err(refused(format!("stopped at {at}: `runner resume` goes on"), false));
            }
        }
        if let Some(drift) = summary.incidents.iter().find(|incident| incident.what == DRIFT) {
            let why = format!(
                "it went on under other settings from step {} on (`runner show {}`), and is a run of neither",
                drift.step, run.name
            );
            return Err(refused(why, false));
        }
        let (Some(lock), Some(keys)) = (lock, keys.clone()) else {
            return Err(refused(
                "there is no lock, which names the data it was validated on".to_owned(),
                false,
            ));
        };
        let rows = metrics::read(&run.folder).map_err(|error| refused(error.to_string(), false))?;
        let last = rows.last().filter(|row| row.action == Action::Evaluate);
        let Some((last, val_loss)) = last.and_then(|row| Some((row, row.val_loss?))) else {
            return Err(refused("it was not validated after its last step".to_owned(), false));
        };
        let validations = validations(&rows);
        Ok(ComparedRun {
            name: run.name.clone(),
            keys,
            steps: summary.step,
            tokens: summary.tokens,
            root: summary.root,
            device: summary.device,
            unverified: summary.unverified,
            val_loss,
            best_val_loss: validations.iter().map(|at| at.val_loss).fold(val_loss, f64::min),
            hellaswag: last.hellaswag,
            figures: summary.figures,
            last: last.clone(),
            validations,
            validation_set: common_ground::validation_set(&lock).cloned().unwrap_or_default(),
            tokenizer: common_ground::tokenizer(&lock).cloned().unwrap_or_default(),
            tasks: lock.environment.get("data.hellaswag").cloned(),
        })
    }
}

impl ComparedRun {
    /// Its number in a column: of what is evaluated that after the last step.
    pub(super) fn metric(&self, column: &'static Column) -> Option<f64> {
        let value = match column.kind {
            ColumnKind::Evaluation | ColumnKind::Average => (column.get)(&self.last),
            ColumnKind::Training | ColumnKind::Timing => self.figures.get(column.figure_name()),
        };
        value.filter(|value| value.is_finite())
    }

    /// Itself where it has a number in `measure`, and else why it cannot take part.
    fn with(self, measure: Measure) -> ReadRun {
        match measure.of(&self) {
            None if matches!(measure, Measure::Metric(_)) => Err(LeftOutRun {
                why: format!("it has no `{}` after its last step", measure.key()),
                run: self.name,
                failed: false,
                keys: Some(self.keys),
            }),
            _ => Ok(self),
        }
    }
}

/// The validations in rows, each with what was trained before it.
fn validations(rows: &[MetricsRow]) -> Vec<ValidationPoint> {
    let (mut tokens, mut hours) = (0, Some(0.0));
    let mut points = Vec::new();
    for row in rows {
        if let Some(val_loss) = row.val_loss.filter(|loss| loss.is_finite()) {
            points.push(ValidationPoint { step: row.step, tokens, hours, val_loss });
        }
        tokens = row.tokens;
        hours = hours.zip(row.step_ms).map(|(hours, step_ms)| hours + step_ms / 3.6e6);
    }
    points
}

#[cfg(test)]
impl ComparedRun {
    /// A run of a learning rate, a seed and a final loss, with the losses of its validations before.
    pub fn made_up(rate: &str, seed: u64, before: &[f64], val_loss: f64) -> ComparedRun {
        let name = format!("{rate}-{seed}");
        let at = |(index, val_loss): (usize, &f64)| ValidationPoint {
            step: 10 * index as u64,
            tokens: 5120 * index as u64,
            hours: Some(0.5 * index as f64),
            val_loss: *val_loss,
        };
        let validations: Vec<ValidationPoint> =
            before.iter().chain([&val_loss]).enumerate().map(at).collect();
        let seed = seed.to_string();
        ComparedRun {
            keys: RunKeys::made_up(&[("schedule.learning_rate", rate), (SEED, &seed), ("eval.every", "10")]),
            root: Some(name.clone()),
            name,
            steps: 20,
            tokens: 10_240,
            device: None,
            unverified: None,
            val_loss,
            best_val_loss: validations.iter().map(|at| at.val_loss).fold(val_loss, f64::min),
            hellaswag: None,
            figures: Figures::default(),
            last: MetricsRow { val_loss: Some(val_loss), ..MetricsRow::new(20, 10_240, Action::Evaluate) },
            validations,
            validation_set: "v".into(),
            tokenizer: "t".into(),
            tasks: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_end_where_a_row_has_no_time_and_a_loss_that_is_no_number_is_no_validation() {
        let row = |step: u64, val_loss, step_ms| MetricsRow {
            val_loss,
            step_ms,
            ..MetricsRow::new(step, 512 * (step + 1), Action::Update)
        };
        let rows =
            [row(0, Some(5.0), Some(3.6e6)), row(1, Some(f64::NAN), None), row(2, Some(4.0), Some(1.0))];
        let points = validations(&rows);
        let found: Vec<_> = points.iter().map(|at| (at.step, at.tokens, at.hours)).collect();
        assert_eq!(found, [(0, 0, Some(0.0)), (2, 1024, None)]);
    }
}
