//! Steps of a run trained again, nothing written: each must end in the ledger's entry. With the last step
//! goes the evaluation after it, which stands behind the head in the last checkpoint: nothing else ties it to
//! the run.

use std::ops::Range;
use std::path::Path;

use anyhow::Context as _;

use super::Checks;
use super::diff::state_text;
use super::files::{WholeRun, checkpoint_folder};
use super::sources;
use crate::data::{Prefetcher, mixture};
use crate::eval;
use crate::experiment::{self, Loaded};
use crate::ops::Ops;
use crate::plan::memory::Storage;
use crate::proof::entry::{self, rewind_of};
use crate::proof::lock::{Lock, differences};
use crate::proof::{Action, Entry, Evaluation, HellaSwag, Validation};
use crate::run::data::{Data, SHARDS, remembered};
use crate::run::device::{Device, OnDevice};
use crate::run::events::is_lost_lock;
use crate::run::locked::Locked;
use crate::run::messages::{LongWork, Report};
use crate::run::recorded::is_known;
use crate::run::{UsageError, initial, lock, require_usage};
use crate::store::{self, Manifest, RunPaths, compare};
use crate::train::Trainer;
use crate::train::record::{correct_counts, ledger_entry};
use crate::units::noun;

/// Trains steps `steps` of a run again, with the keys `sets` over its own, and compares each with the ledger.
/// Keys that change bits are refused by the comparison of numerics.
pub fn verify(
    run: WholeRun,
    steps: Range<u64>,
    sets: &[String],
    checks: &mut Checks<'_>,
    report: Report,
) -> anyhow::Result<()> {
    let WholeRun { paths, lock, manifests, entries, mut loaded, data, .. } = run;
    if !sets.is_empty() {
        loaded = experiment::load_recorded_here(&paths.experiment(), sets)?;
    }
    let Some(data) = data else {
        checks.failed("replay", "not begun: the data are not here");
        return Ok(());
    };
    require_steps(&steps, entry::steps(&entries).len() as u64)?;
    // The lock has the numerics after the last drift.
    let is_drift = |text: &str| !is_lost_lock(text);
    let drifted = |entry: &&Entry| entry.step > steps.start && entry.drifts().any(is_drift);
    if let Some(entry) = entries.iter().rev().find(drifted) {
        return Err(UsageError(format!(
            "the steps before {0} were made with other numerics: drift was allowed there\n  hint: replay \
             from a checkpoint of step {0} on",
            entry.step
        ))
        .into());
    }
    require_checkpoint(&paths, &steps)?;
    // One device makes the bits of any number.
    let mut experiment = loaded.experiment.clone();
    experiment.parallel.ranks = 1;
    let elsewhere = super::lock::mirror_hint(&lock, &experiment);
    let steps_again = steps.clone();
    let replay =
        Replay { loaded, data, paths, lock, manifests, entries, steps: steps_again, report, unmeasured: 0 };
    let same = match steps.end - 1 {
        last if last == steps.start => format!("step {last} gave the same bits again"),
        last => format!("steps {} to {last} gave the same bits again", steps.start),
    };
    let device = Device::open(&experiment).with_context(|| format!("no step is replayed{elsewhere}"))?;
    match device.with(&experiment, replay)? {
        Ok(0) => checks.passed("replay", same),
        Ok(unmeasured) => checks.passed(
            "replay",
            format!(
                "{same}, but for {unmeasured} {} of other sets than `data.val`, `eval.val_tokens` and \
                 `eval.hellaswag` give now",
                noun(unmeasured, "evaluation")
            ),
        ),
        Err(why) => checks.failed("replay", format!("{why}{elsewhere}")),
    }
    Ok(())
}

/// Refuses steps that the run in `folder` cannot have, before any of its files is read to its end.
pub fn require_possible(folder: &Path, steps: &Range<u64>) -> anyhow::Result<()> {
    let paths = RunPaths::new(folder);
    // What is wrong with the experiment is said where all is checked.
    if let Ok(loaded) = experiment::load_recorded(&paths.experiment()) {
        require_steps(steps, loaded.experiment.schedule.steps)?;
    }
    require_checkpoint(&paths, steps)
}

/// Refuses steps behind the last of a run that has so many.
fn require_steps(steps: &Range<u64>, trained: u64) -> Result<(), UsageError> {
    require_usage(steps.end <= trained, || {
        format!(
            "the run has {trained} {}, so {}..{} cannot be replayed\n  hint: its last step is {}",
            noun(trained, "step"),
            steps.start,
            steps.end,
            trained.saturating_sub(1)
        )
    })
}

/// Refuses steps that begin where the run has no checkpoint.
fn require_checkpoint(paths: &RunPaths, steps: &Range<u64>) -> anyhow::Result<()> {
    if steps.start == 0 || checkpoint_folder(paths, steps.start).is_dir() {
        return Ok(());
    }
    let there = store::list(&paths.checkpoints())?;
    let others = match there.is_empty() {
        true => ", and it has no checkpoint".to_owned(),
        false => {
            let steps: Vec<String> = there.iter().map(|(step, _)| step.to_string()).collect();
            format!(", and from those of steps {}", steps.join(", "))
        }
    };
    Err(UsageError(format!(
        "there is no checkpoint of step {} to start from\n  hint: a run is replayed from its start, \
         `--replay 0..{}`{others}",
        steps.start, steps.end
    ))
    .into())
}

struct Replay {
    loaded: Loaded,
    data: Data,
    paths: RunPaths,
    lock: Lock,
    manifests: Vec<Manifest>,
    entries: Vec<Entry>,
    steps: Range<u64>,
    report: Report,
    /// Evaluations of sets that are not those of the experiment as it is now, and could not be made again.
    unmeasured: usize,
}

impl OnDevice for Replay {
    /// How many evaluations could not be made again; or what differs, and since when.
    type Output = Result<usize, String>;

    fn on<O: Locked>(mut self, mut ops: O, _: &Storage, _: Option<f64>) -> anyhow::Result<Self::Output> {
        let experiment = &self.loaded.experiment;
        ops.pin(&self.lock.numerics)?;
        let initial = initial::read(experiment, Some(&self.lock.numerics), self.steps.start > 0)?;
        let mut trainer = Trainer::new(ops, experiment)?;
        let manifest = self.data.manifest(remembered(SHARDS), self.report)?;
        let mut here = lock::lock(&self.loaded, &self.data, &manifest, initial.as_ref(), &trainer.ops)?;
        // A replay goes back where the ledger says.
        here.numerics.retain(|key, _| is_known(key, &self.lock.numerics));
        let changed = differences(&self.lock.numerics, &here.numerics);
        if !changed.is_empty() {
            return Ok(Err(format!("not begun: the bits cannot be made here:{}", lock::list(&changed))));
        }
        if self.steps.start > 0 {
            trainer.restore(store::load(&checkpoint_folder(&self.paths, self.steps.start))?.1)?;
        } else if let Some(initial) = initial {
            initial.start(&mut trainer)?;
        }
        let mut feed = self.data.feed(experiment, self.steps.start, trainer.progress().data_offset)?;
        let replayed = self.report.progress(LongWork::Replaying, self.steps.end - self.steps.start);
        for step in self.steps.clone() {
            let recorded = self.entries[step as usize].clone();
            if let Some(other) = self.other_rewind(&mut trainer, &mut feed, &recorded)? {
                return Ok(Err(other));
            }
            let again = self.step(&mut trainer, &mut feed, &recorded)?;
            if again != recorded {
                return Ok(Err(self.mismatch(&mut trainer, &recorded, &again)?));
            }
            // The root of a step that has one is its checkpoint's too.
            if recorded.root.is_none()
                && let Some(other) = self.other_state(&mut trainer)?
            {
                return Ok(Err(other));
            }
            replayed(1);
        }
        let last = self.entries.get(self.steps.end as usize).filter(|entry| entry.action == Action::Evaluate);
        if let Some(recorded) = last.cloned() {
            let evaluation = recorded.evaluation.map(|it| self.evaluate(&mut trainer, it)).transpose()?;
            let again = Entry { evaluation, ..recorded.clone() };
            if again != recorded {
                return Ok(Err(self.mismatch(&mut trainer, &recorded, &again)?));
            }
        }
        Ok(Ok(self.unmeasured))
    }
}

impl Replay {
    /// Where the run went back to the next step, makes the steps again that were dropped for it, which must
    /// diverge where the ledger says, and goes back. Says how they did otherwise.
    fn other_rewind<O: Ops>(
        &self,
        trainer: &mut Trainer<O>,
        feed: &mut Prefetcher,
        recorded: &Entry,
    ) -> anyhow::Result<Option<String>> {
        let Some((from, to)) = recorded.events.iter().find_map(|event| rewind_of(event)) else {
            return Ok(None);
        };
        // What was dropped was made before the change.
        if recorded.drifts().any(|text| !is_lost_lock(text)) {
            return Ok(None);
        }
        let state = trainer.state()?;
        let mut diverged = None;
        while diverged.is_none() && trainer.progress().step <= from {
            let step = trainer.step(feed)?.step;
            diverged = trainer.progress().guards.diverged().then_some(step);
        }
        trainer.restore(state)?;
        if diverged == Some(from) {
            return Ok(None);
        }
        let found = diverged.map_or("do not diverge".to_owned(), |step| format!("diverge at step {step}"));
        Ok(Some(format!(
            "the run went back from step {from} to step {to}, and these steps {found} when they are made \
             again\n  do: the ledger or the guards were edited; restore both from a copy"
        )))
    }

    fn step<O: Ops>(
        &mut self,
        trainer: &mut Trainer<O>,
        feed: &mut Prefetcher,
        recorded: &Entry,
    ) -> anyhow::Result<Entry> {
        let experiment = &self.loaded.experiment;
        // Where the run went back to this step, it went on with other data.
        if recorded.events.iter().any(|event| rewind_of(event).is_some()) {
            trainer.skip_data(sources::passed_over(experiment, recorded));
            feed.seek(recorded.step, trainer.progress().data_offset)?;
        }
        let evaluation = recorded.evaluation.map(|recorded| self.evaluate(trainer, recorded)).transpose()?;
        let report = trainer.step(feed)?;
        let root = recorded.root.map(|_| trainer.state_root()).transpose()?;
        let tokens = self.loaded.experiment.tokens_before(report.step + 1);
        let events = recorded.events.clone();
        // What was audited is not traced again.
        let audit = recorded.audit;
        let offset = trainer.progress().data_offset;
        let sources = mixture::tokens_of_sources(&self.loaded.experiment, report.step + 1, offset);
        Ok(Entry { root, events, evaluation, audit, sources, ..ledger_entry(&report, tokens) })
    }

    /// Measures again what was measured before a step, on sets of the sizes that were recorded: a resumed run
    /// may have been given others since, and an evaluation of another set is counted as not measured.
    fn evaluate<O: Ops>(
        &mut self,
        trainer: &mut Trainer<O>,
        recorded: Evaluation,
    ) -> anyhow::Result<Evaluation> {
        let (validation, hellaswag) = self.measure(trainer, recorded.validation, recorded.hellaswag)?;
        let mut again = Evaluation { validation, hellaswag, ..recorded };
        if !trainer.keeps_average() {
            (again.ema_loss, again.ema_hellaswag) = (None, None);
        } else if recorded.ema_loss.is_some() || recorded.ema_hellaswag.is_some() {
            let loss = |loss| recorded.validation.map(|set| Validation { loss, ..set });
            let recorded_loss = recorded.ema_loss.and_then(loss);
            let (average, hellaswag) = trainer
                .with_average(|trainer| self.measure(trainer, recorded_loss, recorded.ema_hellaswag))??;
            again.ema_loss = average.map(|average| average.loss);
            again.ema_hellaswag = hellaswag;
        }
        Ok(again)
    }

    /// Measures what the trainer's model holds again.
    fn measure<O: Ops>(
        &mut self,
        trainer: &mut Trainer<O>,
        mut validation: Option<Validation>,
        mut hellaswag: Option<HellaSwag>,
    ) -> anyhow::Result<(Option<Validation>, Option<HellaSwag>)> {
        let (ops, model, losses, link) = trainer.for_evaluation();
        let mut unmeasured = false;
        if let Some(Validation { tokens, loss }) = &mut validation {
            match self.data.validation.as_ref().filter(|set| set.tokens() == *tokens) {
                Some(set) => *loss = eval::validation_loss(ops, model, losses, link, set, &mut |_| ())?,
                None => unmeasured = true,
            }
        }
        if let Some(counts) = &mut hellaswag {
            let set = self.data.hellaswag.as_ref();
            let scores =
                set.map(|set| eval::hellaswag(ops, model, losses, link, set, &mut |_, _| ())).transpose()?;
            match scores.filter(|scores| scores.tasks as u64 == counts.tasks) {
                Some(scores) => *counts = correct_counts(&scores).as_counted_in(counts),
                None => unmeasured = true,
            }
        }
        self.unmeasured += usize::from(unmeasured);
        Ok((validation, hellaswag))
    }

    /// What differs between the state after the step just made and the run's checkpoint of it.
    fn other_state<O: Ops>(&self, trainer: &mut Trainer<O>) -> anyhow::Result<Option<String>> {
        let done = trainer.progress().step;
        let Some(manifest) = self.manifests.iter().find(|manifest| manifest.step == done) else {
            return Ok(None);
        };
        let root = trainer.state_root()?;
        if root == manifest.state_root {
            return Ok(None);
        }
        let element = self.other_element(trainer, done)?;
        Ok(Some(format!(
            "the checkpoint of step {done} has the state root {}, and its steps gave {root}{element}",
            manifest.state_root
        )))
    }

    /// Where the state differs from the checkpoint of step `done`, down to the element; empty without one.
    fn other_element<O: Ops>(&self, trainer: &mut Trainer<O>, done: u64) -> anyhow::Result<String> {
        let folder = checkpoint_folder(&self.paths, done);
        if !folder.is_dir() {
            return Ok(String::new());
        }
        let (_, saved) = store::load(&folder)?;
        let state = compare::states(&saved, &trainer.state()?);
        Ok(state.map_or(String::new(), |state| format!("\n  {}", state_text(done, &state).trim_end())))
    }

    /// Names what differs, down to the element where the run has a checkpoint of this step.
    fn mismatch<O: Ops>(
        &self,
        trainer: &mut Trainer<O>,
        recorded: &Entry,
        again: &Entry,
    ) -> anyhow::Result<String> {
        let done = recorded.step + 1;
        let what = match recorded.action {
            Action::Evaluate => "the evaluation after the last step".to_owned(),
            _ => format!("step {}", recorded.step),
        };
        let mut text = format!("{what} gave other bits (recorded and now):");
        text.extend(recorded.differences(again).iter().map(|field| format!("\n  {field}")));
        text.push_str(&self.other_element(trainer, done)?);
        text.push_str(
            "\n  do: the lock is equal, so suspect the hardware: replay again, then on another \
             machine; or a change of the program has changed bits without saying so",
        );
        Ok(text)
    }
}
