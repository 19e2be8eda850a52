//! The experiment file: as written, its layers, and the resolved form the program runs on.

mod resolved;

pub use resolved::*;
