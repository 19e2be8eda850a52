//! Refusals: the bits are not, or would not be, what they must be.

use crate::proof::{LedgerError, LockError};

/// A refusal to go on because something that the bits depend on has changed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ProofRefusal(pub String);

/// What was asked for is wrong or not there: a matter of the command line, not of the system.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// Refuses what was asked for unless `fine`.
pub fn require_usage(fine: bool, wrong: impl FnOnce() -> String) -> Result<(), UsageError> {
    if fine { Ok(()) } else { Err(UsageError(wrong())) }
}

/// A damaged lock is a mismatch, not a failure of the system.
pub fn refuse_lock(error: LockError) -> anyhow::Error {
    match error {
        LockError::Io { .. } => error.into(),
        damaged => ProofRefusal(damaged.to_string()).into(),
    }
}

/// A ledger that is not what the checkpoint says is a mismatch, not a failure of the system.
pub fn refuse_ledger(error: LedgerError) -> anyhow::Error {
    match error {
        LedgerError::Io { .. } => error.into(),
        damaged => ProofRefusal(damaged.to_string()).into(),
    }
}
