//! Refusals: the bits differ, or would differ, from the required ones.

use crate::formats::FormatError;
use crate::proof::{LedgerError, LockError};
use crate::store::{Broken, StoreError};
use crate::train::{RunError, TrainError};

/// What a hint begins with.
pub const HINT: &str = "\n  hint: ";

/// The refusal to continue because something that the bits depend on has changed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ProofRefusal(pub String);

/// A request that is wrong or names something missing: an error of usage, not of the system.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// A signal asked to stop, and nothing was worth saving.
#[derive(Debug, thiserror::Error)]
#[error("stopped on request")]
pub struct StoppedOnRequest;

/// A usage error unless `fine`.
pub fn require_usage(fine: bool, wrong: impl FnOnce() -> String) -> Result<(), UsageError> {
    if fine { Ok(()) } else { Err(UsageError(wrong())) }
}

/// The error of training that an error is.
pub fn train_error(error: &anyhow::Error) -> Option<&TrainError> {
    match error.downcast_ref::<RunError>() {
        Some(RunError::Train(train) | RunError::Step { error: train, .. }) => Some(train),
        _ => error.downcast_ref(),
    }
}

/// An error and its causes on one line, and their hints. Most errors of this program quote their cause: it is
/// not repeated.
pub fn in_words(error: &anyhow::Error) -> (String, String) {
    let (mut text, mut hints) = (String::new(), String::new());
    for cause in error.chain().map(ToString::to_string) {
        let (what, hint) = cause.split_at(cause.find(HINT).unwrap_or(cause.len()));
        if !text.contains(what) {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.push_str(what);
        }
        if !hints.contains(hint) {
            hints.push_str(hint);
        }
    }
    (text, hints)
}

/// Whether bits are not what they must be: a file of a model or a checkpoint is damaged, or a proof refuses.
pub fn is_damage(error: &anyhow::Error) -> bool {
    let of_run = match error.downcast_ref() {
        Some(RunError::Store(store)) => Some(store),
        _ => None,
    };
    error.is::<ProofRefusal>()
        || error.downcast_ref().or(of_run).is_some_and(StoreError::is_damage)
        || error.downcast_ref().is_some_and(FormatError::is_damage)
}

/// A damaged lock is a mismatch, not a failure of the system.
pub fn refuse_lock(error: LockError) -> anyhow::Error {
    match error {
        LockError::Io { .. } => error.into(),
        damaged => ProofRefusal(damaged.to_string()).into(),
    }
}

/// The refusal for want of a whole checkpoint: where one of those there is damaged a mismatch, else of usage.
pub fn refuse_without_checkpoint(broken: &Broken, message: String) -> anyhow::Error {
    match broken.iter().any(|(_, why)| why.is_damage()) {
        true => ProofRefusal(message).into(),
        false => UsageError(message).into(),
    }
}

/// A ledger that disagrees with the checkpoint is a mismatch, not a failure of the system.
pub fn refuse_ledger(error: LedgerError) -> anyhow::Error {
    match error {
        LedgerError::Io { .. } | LedgerError::Missing { .. } => error.into(),
        damaged => ProofRefusal(damaged.to_string()).into(),
    }
}
