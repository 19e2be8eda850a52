//! Errors that end a training run.

use crate::data::DataError;
use crate::ops::DeviceError;

/// Why the trainer could not go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Exchange(#[from] crate::parallel::ExchangeError),
    /// Ranks differ in what all must hold equally.
    #[error(
        "at step {step} the ranks differ in weights or counters: {differing}\n  hint: suspect that machine; \
         the last checkpoint is whole, `runner resume` without it"
    )]
    RanksDiffer { step: u64, differing: String },
    /// The two passes of an audited micro-batch differ: memory or arithmetic is faulty.
    #[error(
        "the audited micro-batch gave other bits when it was computed again: {matrix}\n  \
         hint: suspect the hardware; the last checkpoint is whole, `runner resume` it on another machine"
    )]
    NotAgain { matrix: String },
    /// A saved state that does not fit this experiment.
    #[error("the saved tensor `{tensor}` {problem}")]
    State { tensor: String, problem: String },
}

/// Why a run could not go on: an error of the trainer, or of its files.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Train(#[from] TrainError),
    /// A step that failed. Nothing of it is saved; the checkpoints before it are whole.
    #[error(
        "step {step}: {error}\n  \
         hint: the checkpoints before it are whole; `runner resume` goes on from the newest"
    )]
    Step { step: u64, error: TrainError },
    #[error(transparent)]
    Eval(#[from] crate::eval::EvalError),
    /// A step made twice gave other bits: memory or arithmetic is faulty.
    #[error(
        "step {step}, made twice from one state, gave other bits:{differences}\n  kept: both states in \
         `{}`\n  hint: suspect the hardware; the newest checkpoint is from before this step, `runner \
         resume` it on another machine", folder.display()
    )]
    Unrepeatable { step: u64, differences: String, folder: std::path::PathBuf },
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    /// An error of a listener that could not write.
    #[error(transparent)]
    Records(#[from] crate::store::RecordsError),
}

impl From<DeviceError> for RunError {
    fn from(error: DeviceError) -> RunError {
        RunError::Train(error.into())
    }
}
