//! A run from opened to trained, in steps of which each takes the result of the one before:
//!
//! 1. [`Opened`]: data, device, lock file and, for a resume, the newest whole checkpoint;
//! 2. [`Agreed`]: everything is allocated, and the numerics of ranks, lock and checkpoint agree;
//! 3. [`Prepared`]: the folder is written, the state loaded, the records open;
//! 4. [`Trained`]: the last step is done, or training was stopped or diverged.

use std::path::PathBuf;

use anyhow::Context;

use super::agree::Agreed;
use super::copies::Copier;
use super::device::OnDevice;
use super::locked::Locked;
use super::messages::Report;
use super::open::{Job, Opened};
use super::outputs;
use super::prepare::{Kept, Prepared};
use super::stop;
use crate::ops::Ops;
use crate::plan::memory::Storage;
use crate::report::{self, PlotOptions, RunData};
use crate::store::run_folder::Whereabouts;
use crate::train::run::Outcome;
use crate::train::{Event, Listener, Listeners, RunError};

/// A run whose training has ended, its device closed.
pub struct Trained {
    pub outcome: Outcome,
    /// What this rank has to close; only rank 0 has any.
    pub kept: Option<Kept>,
    /// Waits, when it is dropped, until the checkpoints are copied.
    pub copier: Option<Copier>,
    /// The step that the run was found to have ended at: rank 0's, where there was nothing to train.
    pub found_finished: Option<u64>,
}

/// Trains to the end, or until a stop is requested.
///
/// # Errors
/// Those of every step; the checkpoints that were saved before stay whole.
pub fn train(opened: Opened) -> anyhow::Result<Trained> {
    match opened {
        Opened::Ready { device, job } => {
            let experiment = job.experiment.clone();
            device.with(&experiment, *job)
        }
        Opened::Finished { root, step, first_rank, copier } => Ok(Trained {
            outcome: Outcome::Finished { root },
            kept: None,
            copier,
            found_finished: first_rank.then_some(step),
        }),
    }
}

impl OnDevice for Job {
    type Output = Trained;

    fn on<O: Locked>(self, ops: O, storage: &Storage, peak_flops: Option<f64>) -> anyhow::Result<Trained> {
        let agreed = Agreed::of(self, ops, storage)?;
        let prepared = Prepared::of(agreed, peak_flops)?;
        Trained::of(prepared)
    }
}

impl Trained {
    fn of<O: Ops>(prepared: Prepared<O>) -> anyhow::Result<Trained> {
        let Prepared { mut run, recorder, kept, sensors, watch, copier, report } = prepared;
        let mut listeners: Vec<Box<dyn Listener>> = Vec::new();
        // First, so that the others write into no other run's folder.
        listeners.extend(
            kept.iter().map(|kept| Box::new(InPlace(kept.folder.whereabouts())) as Box<dyn Listener>),
        );
        if let Some(recorder) = recorder {
            listeners.push(Box::new(recorder));
            listeners.push(report.training(&run.experiment, sensors));
        }
        listeners.extend(copier.as_ref().and_then(Copier::listener));
        stop::training_begins();
        let outcome = run.finish(&mut Listeners(listeners));
        drop(watch);
        match outcome {
            Ok(outcome) => {
                run.trainer.link().finish();
                Ok(Trained { outcome, kept, copier, found_finished: None })
            }
            Err(error) => {
                run.trainer.link().fail(&error.to_string());
                Err(error.into())
            }
        }
    }
}

/// Ends a run whose folder is not where it was.
struct InPlace(Whereabouts);

impl Listener for InPlace {
    fn on(&mut self, _: &Event) -> Result<(), RunError> {
        Ok(self.0.require()?)
    }
}

impl Kept {
    /// Draws the run; the pictures' paths.
    pub fn draw(&self) -> anyhow::Result<Vec<PathBuf>> {
        let draw = || {
            let run = RunData::from_folder(self.folder.paths.folder())?;
            report::plot_runs(&[run], &PlotOptions::default(), &self.folder.paths.plots())
        };
        draw().context("the run is whole, but its plot could not be drawn")
    }

    /// Writes the outputs of a finished run into its lock.
    ///
    /// # Errors
    /// The lock that the run must match has other outputs.
    pub fn keep_outputs(&self, report: Report) -> anyhow::Result<()> {
        self.folder.whereabouts().require()?;
        let lock = outputs::with_outputs(self.lock.clone(), &self.folder.paths)?;
        if let Some(expected) = &self.expected {
            expected.require_outputs(&lock.outputs, report)?;
        }
        Ok(())
    }
}
