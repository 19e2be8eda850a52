//! What can end a training run.

use crate::data::DataError;
use crate::ops::DeviceError;

/// Why the trainer could not go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Data(#[from] DataError),
    /// A saved state that this experiment cannot take.
    #[error("the saved tensor `{tensor}` {problem}")]
    State { tensor: String, problem: String },
}

/// Why a run could not go on: the trainer, or its files.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Train(#[from] TrainError),
    #[error(transparent)]
    Eval(#[from] crate::eval::EvalError),
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    #[error(transparent)]
    Ledger(#[from] crate::proof::LedgerError),
    #[error(transparent)]
    Log(#[from] crate::store::append::AppendError),
    #[error(transparent)]
    Metrics(#[from] crate::store::metrics::MetricsError),
}

impl From<DeviceError> for RunError {
    fn from(error: DeviceError) -> RunError {
        RunError::Train(error.into())
    }
}
