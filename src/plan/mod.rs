//! What a run will need, computed before anything is allocated: memory, time, dollars, disk.
//!
//! * [`run_plan`] puts everything together for an experiment on a [`target`], [`sweep_plan`] for a sweep;
//!   [`data_facts`] is what it knows of the data, [`advice`] suggests changes when it does not fit.
//! * [`memory`] lists every buffer that a trainer allocates.
//! * [`cost`] runs the model on a device that only counts and gives each operation the time that its rate in
//!   [`hardware`] says; [`time`] makes a run of the steps.
//! * [`disk`]: checkpoints and records.
//!
//! Nothing here opens a device, and missing data are planned for as if they were there.

pub mod advice;
pub mod cost;
pub mod data_facts;
pub mod disk;
pub mod hardware;
pub mod memory;
pub mod run_plan;
pub mod sweep_plan;
pub mod target;
pub mod time;

use crate::data::DataError;
use crate::experiment::ExperimentError;
use crate::ops::DeviceError;

pub use memory::MemoryPlan;
pub use run_plan::RunPlan;
pub use sweep_plan::SweepPlan;
pub use target::Target;

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("no GPU is known as `{name}`\n  hint: `--gpu` takes {}, or cpu", target::known_gpus())]
    UnknownGpu { name: String },
    #[error("`schedule.epochs` becomes steps only with the data at hand: {0}")]
    EpochsWithoutData(DataError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Experiment(#[from] ExperimentError),
    #[error(transparent)]
    Device(#[from] DeviceError),
}
