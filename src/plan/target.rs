//! The device that a plan is for: a GPU model from the table, or this machine's CPU.

use super::PlanError;
use super::hardware::{GPUS, GpuSpec, H100};
use super::memory::Storage;
use crate::experiment::{DeviceKind, Experiment};
use crate::ops::cpu;
use crate::ops::cuda::driver;

/// The kind of device that does the work.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    Cpu { threads: usize },
    Gpu(&'static GpuSpec),
}

impl Target {
    /// The device of this name (`h100`, `cpu`, …). Without a name: the CPU for an experiment on it, else this
    /// machine's first GPU if the table knows it, else an H100 for an experiment on CUDA and this CPU for one
    /// that takes what there is.
    ///
    /// # Errors
    /// No GPU of the table has this name.
    pub fn choose(name: Option<&str>, experiment: &Experiment) -> Result<Target, PlanError> {
        let cpu = || Target::Cpu { threads: cpu::threads(experiment.device.threads) };
        match name {
            Some("cpu") => Ok(cpu()),
            Some(name) => GpuSpec::find(name)
                .map(Target::Gpu)
                .ok_or_else(|| PlanError::UnknownGpu { name: name.to_owned() }),
            None if matches!(experiment.device.kind, DeviceKind::Cpu | DeviceKind::Mirror) => Ok(cpu()),
            None => {
                let here = driver::gpus().ok().and_then(|gpus| GpuSpec::find(&gpus.first()?.name));
                Ok(match (here, experiment.device.kind) {
                    (Some(gpu), _) => Target::Gpu(gpu),
                    (None, DeviceKind::Cuda) => Target::Gpu(H100),
                    (None, _) => cpu(),
                })
            }
        }
    }

    /// How this device stores an experiment.
    pub fn storage(self, experiment: &Experiment) -> Storage {
        match self {
            Target::Cpu { .. } if experiment.device.kind == DeviceKind::Mirror => Storage::mirror(),
            Target::Cpu { threads } => Storage::cpu(experiment, threads),
            Target::Gpu(_) => Storage::cuda(experiment),
        }
    }

    /// Bytes of its memory that a run may take; not known for a CPU.
    pub fn usable_bytes(self) -> Option<u64> {
        match self {
            Target::Cpu { .. } => None,
            Target::Gpu(gpu) => Some(gpu.usable_bytes()),
        }
    }
}

/// The names that [`Target::choose`] takes, for its refusal.
pub(super) fn known_gpus() -> String {
    GPUS.iter().map(|gpu| gpu.key).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::shipped;

    #[test]
    fn an_unknown_gpu_is_refused_with_those_that_are_known() {
        let experiment = shipped("ci.toml", &[]);
        let error = Target::choose(Some("h9000"), &experiment).expect_err("no such GPU").to_string();
        assert!(error.contains("`h9000`") && error.contains("h100, h100-pcie"), "{error}");
        assert!(matches!(Target::choose(None, &experiment), Ok(Target::Cpu { .. })), "its device is the CPU");
    }
}
