//! Errors of an exchange: which rank, on which host, in which operation.

use std::fmt;

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
        why: Loss,
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

/// Why a rank is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    pub why: String,
    /// Whether the rank is there and does nothing, and has not ended.
    pub hangs: bool,
}

impl Loss {
    pub(super) fn ended(why: impl Into<String>) -> Loss {
        Loss { why: why.into(), hangs: false }
    }

    pub(super) fn hangs(why: String) -> Loss {
        Loss { why, hangs: true }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl ExchangeError {
    /// Whether a rank hangs, and has not ended.
    pub fn is_hang(&self) -> bool {
        matches!(self, ExchangeError::Lost { why: Loss { hangs: true, .. }, .. })
    }
}
