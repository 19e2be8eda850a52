//! `runner`: declarative, bit-for-bit reproducible pre-training of GPT-2. A tour, in reading order.
//!
//! * [`experiment`]: the TOML a person writes, its layers, and the resolved experiment.
//! * [`rng`]: counter-based random numbers; nothing random has state.
//! * [`ops`]: the operations a device offers; `ops::cpu` and `ops::cuda`.
//! * [`store`]: the files of a run folder: metrics and the reference's `main.log`.
//! * [`report`]: a run as a picture.
//! * [`cli`]: one file a verb.

pub mod cli;
pub mod experiment;
pub mod ops;
pub mod report;
pub mod rng;
pub mod store;
