//! How a run's process ends. The parent of several ranks reads the exit codes, and scripts rely on them.

use crate::train::run::Outcome;

/// The exit code of a process that has no usable device.
pub const NO_DEVICE: u8 = 3;

/// The ends of a process that trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Finished,
    Failed,
    /// Training diverged, or ended in numbers that are not finite; the last good checkpoint is kept.
    Diverged,
    /// Stopped on request; a checkpoint was saved.
    Interrupted,
}

impl Ending {
    /// The exit code.
    pub const fn code(self) -> u8 {
        match self {
            Ending::Finished => 0,
            Ending::Failed => 1,
            Ending::Diverged => 4,
            Ending::Interrupted => 130,
        }
    }

    /// Ends this process without running the exit handlers of its libraries: those of CUDA wait for the
    /// device, which may be waiting for a rank that has ended.
    pub fn at_once(self) -> ! {
        signal_hook::low_level::exit(i32::from(self.code()))
    }
}

impl From<&Outcome> for Ending {
    fn from(outcome: &Outcome) -> Ending {
        match outcome {
            Outcome::Finished { .. } => Ending::Finished,
            Outcome::Interrupted { .. } => Ending::Interrupted,
            Outcome::Diverged { .. } | Outcome::NotFinite { .. } => Ending::Diverged,
        }
    }
}
