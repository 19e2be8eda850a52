//! What a run reports. The loop emits events; the console, a JSON stream or anything else listens.

use std::path::PathBuf;

use super::trainer::StepReport;
use crate::data::Waits;
use crate::eval::Scores;
use crate::proof::Hash;

/// Something that happened in a run.
#[derive(Clone, Debug)]
pub enum Event {
    /// Everything is allocated; training goes on at `step` of `steps`.
    Began { step: u64, steps: u64 },
    /// An optimizer step is done.
    Stepped {
        report: StepReport,
        steps: u64,
        step_ms: f64,
        tokens_per_s: f64,
        mfu: Option<f64>,
        root: Option<Hash>,
    },
    /// A set is being worked through: `what` names it.
    Evaluating { what: &'static str, done: usize, sequences: usize },
    /// Validation loss before step `step`.
    Evaluated { step: u64, val_loss: f64, val_tokens: u64 },
    /// HellaSwag before step `step`.
    HellaSwag { step: u64, scores: Scores },
    /// Text the model wrote.
    Sampled { step: u64, prompt: String, text: String },
    /// A checkpoint is being hashed and written behind the trainer's back.
    Saving { step: u64, done_bytes: u64, bytes: u64 },
    /// A checkpoint is safely on disk.
    CheckpointSaved { step: u64, path: PathBuf, bytes: u64 },
    /// Training went back to a checkpoint, and on behind the bad data.
    Rewound { from_step: u64, to_step: u64 },
    /// Too many steps in a row were skipped.
    Diverged { step: u64, skips: u64 },
    /// Asked to stop: the step at hand is done and saved.
    Interrupted { step: u64 },
    /// The last step is done.
    Finished { step: u64, root: Hash, seconds: f64, waits: Waits },
}

/// Takes events as they come.
pub trait Listener {
    fn on(&mut self, event: &Event);
}
