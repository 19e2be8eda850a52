//! What can be proven of a run: its files, its steps made again, an experiment that repeats.

pub mod diff;
pub mod files;
pub mod golden;
pub mod replay;
pub mod twice;
