//! Training: what one optimizer step is ([`trainer`]), all that it reads as named tensors ([`state`]),
//! the loop around it ([`run`]) and what the loop reports ([`events`]). Prints nothing.

mod error;
pub mod events;
pub mod run;
mod state;
pub mod trainer;

pub use error::{RunError, TrainError};
pub use events::{Event, Listener};
pub use trainer::{Progress, StepReport, Trainer};
