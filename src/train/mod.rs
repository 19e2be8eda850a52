//! Training: what one optimizer step is ([`trainer`], [`shapes`]), its audit ([`audit`]), all that it
//! reads as named tensors ([`state`], with the host's values in [`progress`]), the loop around it ([`run`],
//! [`saving`]), what the loop reports ([`events`]) and the listener that records it ([`record`]). Prints
//! nothing, and knows no file names: the store does.

pub mod audit;
mod averaged;
#[cfg(test)]
mod cuda_tests;
mod error;
pub mod events;
pub mod finite;
pub mod progress;
#[cfg(test)]
mod ranks_tests;
#[cfg(test)]
mod rates_tests;
pub mod record;
mod replay;
pub mod run;
mod saving;
pub mod shapes;
pub mod state;
pub mod trainer;
#[cfg(test)]
mod warmups_tests;

pub use error::{RunError, TrainError};
pub use events::{Evaluatee, Event, Listener, Listeners};
pub use progress::Progress;
pub use record::Recorder;
pub use trainer::{StepReport, Trainer};

/// Raised whenever a change above the device changes a bit: the model's order of operations, initial
/// values, schedules, guards, the order of samples. Part of every lock.
pub const NUMERICS_VERSION: u32 = 1;
