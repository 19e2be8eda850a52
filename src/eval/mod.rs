//! How good a model is: validation loss and multiple choice. Reads weights, never changes training state.
//!
//! Ranks share the work batch by batch and exchange the losses themselves, so that every rank adds the same
//! numbers in the same order and has the scores of one.
//!
//! * [`validation`]: mean loss over a fixed set of tokens.
//! * [`hellaswag`]: the tasks as text, and as the tokens of both wordings. [`eval_bin`]: llm.c's file.
//! * [`multiple_choice`]: those tasks, how they are decided and counted.
//! * [`benchmark`]: LAMBADA, ARC-easy and PIQA. [`harness`]: what all of lm-eval's tasks have in common.
//! * [`rows`]: how texts are packed and scored.
//! * [`parameters`]: weights, and nothing else, out of a checkpoint.

pub mod benchmark;
pub mod error;
pub mod eval_bin;
pub mod harness;
pub mod hellaswag;
pub mod multiple_choice;
pub mod parameters;
pub mod rows;
pub mod validation;

pub use benchmark::{Benchmark, QuestionSet};
pub use error::EvalError;
pub use multiple_choice::{Scores, TaskSet, hellaswag};
pub use validation::validation_loss;
