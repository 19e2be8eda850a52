//! Errors of an exchange: which rank, on which host, in which operation.

use crate::ops::DeviceError;

/// Why an exchange failed.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// Another rank has died, does not answer, or reports that it cannot go on.
    #[error(
        "rank {rank} on `{host}` {why}; last operation: {operation}\n  hint: its own output may say more; \
         what was saved is intact, go on with `runner resume`"
    )]
    Lost {
        rank: usize,
        host: String,
        operation: String,
        why: String,
        /// Whether another rank found the failure and reported it to this one.
        reported: bool,
    },
    /// A message that no rank of this run would send.
    #[error(
        "rank {rank} sent {found} in {operation}, expected {expected}\n  hint: the ranks run different \
         programs or experiments"
    )]
    Protocol { rank: usize, operation: String, expected: String, found: String },
    /// The device could not send or receive the bytes.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Reasons of a rank that is there and does nothing.
pub(super) const SILENT: &str = "has given no sign of life";
pub(super) const NO_FURTHER: &str = "has come no further";
pub(super) const WAITED_FOR: &str = "was waited for";

impl ExchangeError {
    /// Whether a rank hangs, and has not ended.
    pub fn is_hang(&self) -> bool {
        let hangs = |why: &str| [SILENT, NO_FURTHER, WAITED_FOR].iter().any(|reason| why.contains(reason));
        matches!(self, ExchangeError::Lost { why, .. } if hangs(why))
    }
}
