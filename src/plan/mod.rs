//! What a run will take, known before anything is allocated: memory, and time.
//!
//! [`memory`] lists every buffer a trainer allocates, [`cost`] runs the model on a device that only counts
//! and gives each operation the time that its rate in [`hardware`] says. Neither needs a GPU or data.

pub mod advice;
pub mod cost;
pub mod hardware;
pub mod memory;
pub mod run_plan;

pub use memory::MemoryPlan;
