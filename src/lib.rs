//! `runner`: declarative, bit-for-bit reproducible pre-training of GPT-2. A tour, in reading order.
//! `docs/architecture.md` has the order in which modules may use each other, and how to add to them.
//!
//! * [`experiment`]: the TOML a person writes, its layers, and the resolved experiment.
//! * [`data`]: text to tokens, tokens to shards, shards to the micro-batches of a step.
//! * [`rng`]: counter-based random numbers; nothing random has state.
//! * [`ops`]: the operations a device offers, each a struct, and the devices that offer them.
//! * [`model`]: GPT-2, written once over those operations.
//! * [`optim`]: learning rates, optimizers, the guards.
//! * [`parallel`]: virtual workers, the tree that adds them, and the ranks that share them.
//! * [`train`]: what one optimizer step is, the loop around it, and what the loop reports.
//! * [`eval`], [`generate`]: how good the model is, and what it writes.
//! * [`proof`]: what a run can prove: the state digest and the ledger.
//! * [`store`]: what a run leaves on disk: folders, checkpoints, metrics.
//! * [`formats`]: models of other programs. [`plan`]: what a run will take.
//! * [`report`]: pictures of a run, and a page.
//! * [`run`]: a run from its folder to its end. [`verify`]: what can be proven of one.
//! * [`cli`]: the verbs, one file each. [`units`]: numbers for people.

// Those macros panic where their stream is closed; `cli::streams` is what writes.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod cli;
pub mod data;
pub mod eval;
pub mod experiment;
pub mod formats;
pub mod generate;
pub mod model;
pub mod ops;
pub mod optim;
pub mod parallel;
pub mod plan;
pub mod proof;
pub mod report;
pub mod rng;
pub mod run;
pub mod store;
pub mod train;
pub mod units;
pub mod verify;
