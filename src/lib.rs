//! `runner`: declarative, bit-for-bit reproducible pre-training of GPT-2. A tour, in reading order.
//!
//! * [`experiment`]: the TOML a person writes, its layers, and the resolved experiment.
//! * [`rng`]: counter-based random numbers; nothing random has state.
//! * [`ops`]: the operations a device offers; `ops::cpu` and `ops::cuda`.

pub mod experiment;
pub mod model;
pub mod ops;
pub mod optim;
pub mod parallel;
pub mod rng;

pub mod cli {
    pub mod doctor;
}
