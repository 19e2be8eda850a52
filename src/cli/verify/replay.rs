//! Steps of a run trained again, nothing written: each must end in the ledger's entry.

use std::ops::Range;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Report;
use super::files::{WholeRun, checkpoint_folder};
use crate::cli::diff::state_text;
use crate::cli::initial;
use crate::cli::locking::{self, Locked, list};
use crate::cli::session::{self, Data, Device, OnDevice};
use crate::data::Prefetcher;
use crate::experiment::Loaded;
use crate::ops::Ops;
use crate::plan::memory::Storage;
use crate::proof::Entry;
use crate::proof::entry::rewound_from;
use crate::proof::lock::{Lock, differences};
use crate::store::{self, RunPaths, compare};
use crate::train::Trainer;
use crate::train::run::ledger_entry;

/// Trains steps `steps` of a run again and compares each with the ledger.
pub fn verify(run: WholeRun, steps: Range<u64>, report: &mut Report) -> anyhow::Result<()> {
    let WholeRun { paths, lock, entries, loaded, data } = run;
    let Some(data) = data else {
        report.failed("replay", "not begun: the data are not here");
        return Ok(());
    };
    if (entries.len() as u64) < steps.end {
        anyhow::bail!(
            "the run has {} steps, so {}..{} cannot be replayed",
            entries.len(),
            steps.start,
            steps.end
        );
    }
    let drifted = |entry: &&Entry| {
        entry.step > steps.start && entry.events.iter().any(|event| event.starts_with("drift "))
    };
    if let Some(entry) = entries.iter().take(steps.end as usize).rev().find(drifted) {
        anyhow::bail!(
            "the steps before {0} were made with other numerics: drift was allowed there\n  hint: replay from a checkpoint of step {0} on",
            entry.step
        );
    }
    let folder = checkpoint_folder(&paths, steps.start);
    if steps.start > 0 && !folder.is_dir() {
        let have: Vec<String> =
            store::list(&paths.checkpoints())?.iter().map(|(step, _)| step.to_string()).collect();
        anyhow::bail!(
            "there is no checkpoint of step {} to start from\n  hint: there are those of steps 0 (the start), {}",
            steps.start,
            have.join(", ")
        );
    }
    // One device makes the bits of any number.
    let mut experiment = loaded.experiment.clone();
    experiment.parallel.ranks = 1;
    let outcome = Device::open(&experiment)?
        .with(&experiment, Replay { loaded, data, paths, lock, entries, steps: steps.clone() })?;
    match outcome {
        Ok(()) => {
            report.ok("replay", format!("steps {} to {} gave the same bits again", steps.start, steps.end))
        }
        Err(why) => report.failed("replay", why),
    }
    Ok(())
}

struct Replay {
    loaded: Loaded,
    data: Data,
    paths: RunPaths,
    lock: Lock,
    entries: Vec<Entry>,
    steps: Range<u64>,
}

impl OnDevice for Replay {
    /// What differs, and since when.
    type Output = Result<(), String>;

    fn on<O: Locked>(self, mut ops: O, _: &Storage, _: Option<f64>) -> anyhow::Result<Self::Output> {
        let experiment = &self.loaded.experiment;
        ops.pin(&self.lock.numerics)?;
        let initial = initial::read(experiment, Some(&self.lock.numerics), self.steps.start > 0)?;
        let mut trainer = Trainer::new(ops, experiment)?;
        let manifest = self.data.manifest(locking::user_cache())?;
        let here = locking::lock(&self.loaded, &self.data, &manifest, initial.as_ref(), &trainer.ops)?;
        let changed = differences(&self.lock.numerics, &here.numerics);
        if !changed.is_empty() {
            return Ok(Err(format!("not begun: the bits cannot be made here:{}", list(&changed))));
        }
        if self.steps.start > 0 {
            trainer.restore(store::load(&checkpoint_folder(&self.paths, self.steps.start))?.1)?;
        } else if let Some(initial) = initial {
            initial.start(&mut trainer)?;
        }
        let mut feed =
            session::feed(experiment, &self.data, self.steps.start, trainer.progress().data_offset)?;
        let bar = ProgressBar::with_draw_target(
            Some(self.steps.end - self.steps.start),
            ProgressDrawTarget::stderr(),
        );
        let style = ProgressStyle::with_template("replaying {bar:32.cyan/dim} {pos}/{len} steps  {eta} left");
        bar.set_style(style.expect("the template is valid").progress_chars("━╸─"));
        for step in self.steps.clone() {
            let recorded = &self.entries[step as usize];
            let again = self.step(&mut trainer, &mut feed, recorded)?;
            if again != *recorded {
                bar.finish_and_clear();
                return Ok(Err(self.mismatch(&mut trainer, recorded, &again)?));
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(Ok(()))
    }
}

impl Replay {
    fn step<O: Ops>(
        &self,
        trainer: &mut Trainer<O>,
        feed: &mut Prefetcher,
        recorded: &Entry,
    ) -> anyhow::Result<Entry> {
        let experiment = &self.loaded.experiment;
        // Where the run went back to this step, it went on with other data.
        if let Some(from) = recorded.events.iter().find_map(|event| rewound_from(event)) {
            trainer.skip_data((from + 1 - recorded.step) * experiment.sequences_per_step());
            feed.seek(recorded.step, trainer.progress().data_offset)?;
        }
        let report = trainer.step(feed)?;
        let root = recorded.root.map(|_| trainer.state_root()).transpose()?;
        let tokens = (report.step + 1) * experiment.batch.tokens;
        Ok(ledger_entry(&report, tokens, root, recorded.events.clone()))
    }

    /// Names what differs, down to the element where the run has a checkpoint of this step.
    fn mismatch<O: Ops>(
        &self,
        trainer: &mut Trainer<O>,
        recorded: &Entry,
        again: &Entry,
    ) -> anyhow::Result<String> {
        let done = recorded.step + 1;
        let mut text = format!("step {} gave other bits (recorded and now):", recorded.step);
        text.extend(recorded.differences(again).iter().map(|field| format!("\n  {field}")));
        let folder = checkpoint_folder(&self.paths, done);
        if folder.is_dir() {
            let (_, saved) = store::load(&folder)?;
            if let Some(state) = compare::states(&saved, &trainer.state()?) {
                text.push_str(&format!("\n  {}", state_text(done, &state).trim_end()));
            }
        }
        text.push_str("\n  do: the lock is equal, so suspect the hardware: replay again, then on another machine; or a change of the program has changed bits without saying so");
        Ok(text)
    }
}
