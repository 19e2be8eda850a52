//! What a run reports. The loop emits events; records, the console and the JSON stream are listeners.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::RunError;
use super::trainer::StepReport;
use crate::data::Waits;
use crate::eval::Scores;
use crate::proof::{Hash, Head};
use crate::store::Timing;

/// What is evaluated in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evaluatee {
    Weights,
    /// The average of the weights.
    Average,
}

impl Evaluatee {
    /// What the names of its numbers begin with, in metrics and in JSON.
    pub fn prefix(self) -> &'static str {
        match self {
            Evaluatee::Weights => "",
            Evaluatee::Average => "ema_",
        }
    }

    /// Whose loss a number is, for people: nothing is said of the weights'.
    pub fn whose(self) -> &'static str {
        match self {
            Evaluatee::Weights => "",
            Evaluatee::Average => " of the average",
        }
    }
}

/// Something that happened in a run.
#[derive(Clone, Debug)]
pub enum Event {
    /// Everything is allocated; training goes on at `step` of `steps`.
    Began {
        step: u64,
        steps: u64,
        /// Training tokens of the steps before `step`, and of all.
        tokens: u64,
        all_tokens: u64,
    },
    /// An optimizer step is done.
    Stepped {
        report: StepReport,
        /// Training tokens seen, this step's included.
        tokens: u64,
        timing: Timing,
        /// State root after the step, where it was hashed.
        root: Option<Hash>,
        /// Root of what its audited micro-batch computed, in an audited step.
        audit: Option<Hash>,
        /// Of a mixture: tokens of each source in the stream up to here.
        sources: BTreeMap<String, u64>,
    },
    /// All steps are done, and what was due after the last has been measured and written.
    Completed { steps: u64, tokens: u64 },
    /// Progress through a set, such as validation: `what` names it.
    Evaluating { what: &'static str, done: usize, sequences: usize },
    /// Validation loss before step `step`.
    Evaluated { step: u64, of: Evaluatee, val_loss: f64, val_tokens: u64 },
    /// HellaSwag before step `step`.
    HellaSwag { step: u64, of: Evaluatee, scores: Scores },
    /// Text the model wrote.
    Sampled { step: u64, prompt: String, text: String },
    /// A checkpoint is being hashed and written in the background.
    Saving { step: u64, done_bytes: u64, bytes: u64 },
    /// A checkpoint is safely on disk.
    CheckpointSaved { step: u64, path: PathBuf, bytes: u64 },
    /// Training went back to a checkpoint, at which the ledger had `entries` entries, and continues behind
    /// the bad data.
    Rewound { from_step: u64, to_step: u64, entries: u64 },
    /// Training was to go back to a checkpoint after divergence at `step`, and did not.
    NotRewound { step: u64, why: String },
    /// Too many steps in a row were skipped.
    Diverged { step: u64, skips: u64 },
    /// A loss, a weight or a validation loss is NaN or infinite, and the run ends, with `step` steps done.
    NotFinite { step: u64, why: String },
    /// A stop was requested: the current step is done and saved.
    Interrupted { step: u64 },
    /// The last step is done; `skipped` steps were skipped in all.
    Finished { step: u64, skipped: u64, root: Hash, seconds: f64, waits: Waits },
}

/// Receives each event. An error stops the run.
pub trait Listener {
    fn on(&mut self, event: &Event) -> Result<(), RunError>;

    /// Returns when everything reported so far is on the disk, so that a checkpoint may refer to it.
    /// The listener that writes the ledger returns its head.
    fn make_durable(&mut self) -> Result<Option<Head>, RunError> {
        Ok(None)
    }
}

/// Several listeners: an event goes to one after the other, up to the first that fails.
pub struct Listeners(pub Vec<Box<dyn Listener>>);

impl Listener for Listeners {
    fn on(&mut self, event: &Event) -> Result<(), RunError> {
        self.0.iter_mut().try_for_each(|listener| listener.on(event))
    }

    fn make_durable(&mut self) -> Result<Option<Head>, RunError> {
        let mut head = None;
        for listener in &mut self.0 {
            head = listener.make_durable()?.or(head);
        }
        Ok(head)
    }
}
