//! `runner`: declarative, bit-for-bit reproducible pre-training of GPT-2. A tour, in reading order.
//!
//! * [`experiment`]: the TOML a person writes, its layers, and the resolved experiment.
//! * [`rng`]: counter-based random numbers; nothing random has state.
//! * [`ops`]: the operations a device offers; `ops::cpu` and `ops::cuda`.
//! * [`proof`]: what a run can prove: the state digest and the ledger.
//! * [`store`]: what a run leaves on disk: folders, checkpoints, atomic files.

pub mod experiment;
pub mod model;
pub mod ops;
pub mod optim;
pub mod parallel;
pub mod proof;
pub mod rng;
pub mod store;
