//! How good a model is: validation loss. Reads weights, never changes training state.

pub mod validation;

pub use validation::validation_loss;
