//! The device that an experiment runs on, and work that is the same on every device.

use super::locked::Locked;
use super::member;
use crate::experiment::{DeviceKind, Experiment};
use crate::ops::cuda::{self, Cuda};
use crate::ops::mirror::Mirror;
use crate::ops::{DeviceError, Dtype, Ops, Role, cpu::Cpu};
use crate::plan::advice::what_fits;
use crate::plan::memory::{MemoryPlan, Share, Storage};

/// A device that is open.
pub enum Device {
    Cpu(Cpu),
    Cuda(Box<Cuda>),
    Mirror(Mirror),
}

/// Work that is the same on every device.
pub trait OnDevice: Send {
    type Output: Send;

    /// Does it. `peak_flops` is the device's peak rate at its precision, where that is known.
    fn on<O: Locked>(
        self,
        ops: O,
        storage: &Storage,
        peak_flops: Option<f64>,
    ) -> anyhow::Result<Self::Output>;
}

impl Device {
    /// Opens the device that the experiment names.
    pub fn open(experiment: &Experiment) -> anyhow::Result<Device> {
        Device::open_part(experiment, 0, 1)
    }

    /// Opens the device of rank `number` of the `of` ranks of this machine: the GPU of this number, or a part
    /// of the CPU.
    pub fn open_part(experiment: &Experiment, number: usize, of: usize) -> anyhow::Result<Device> {
        let mut cpu = experiment.device.clone();
        let of_cpu = of * member::jobs();
        if of_cpu > 1 && cpu.threads == 0 {
            cpu.threads =
                std::thread::available_parallelism().map_or(1, |threads| threads.get().div_ceil(of_cpu));
        }
        let mut options = cuda_options(experiment);
        let cuda = matches!(experiment.device.kind, DeviceKind::Cuda | DeviceKind::Auto);
        if number > 0
            && cuda
            && let Ok(gpus) = cuda::driver::gpus()
        {
            // A launcher may make only its own GPU visible to each rank.
            options.ordinal = number % gpus.len().max(1);
        }
        match experiment.device.kind {
            DeviceKind::Cpu => Ok(Device::Cpu(Cpu::new(&cpu)?)),
            DeviceKind::Cuda => Ok(Device::Cuda(Box::new(Cuda::open(&options)?))),
            DeviceKind::Mirror => Ok(Device::Mirror(Mirror::new(&cpu)?)),
            DeviceKind::Auto => match Cuda::open(&options) {
                Ok(cuda) => Ok(Device::Cuda(Box::new(cuda))),
                Err(DeviceError::Unavailable(_)) => Ok(Device::Cpu(Cpu::new(&cpu)?)),
                Err(error) => Err(error.into()),
            },
        }
    }

    /// The warning where fewer threads work than `device.threads` says.
    pub fn fewer_threads(&self, experiment: &Experiment) -> Option<String> {
        let threads = match self {
            Device::Cpu(cpu) => cpu.threads(),
            Device::Mirror(mirror) => mirror.threads(),
            Device::Cuda(_) => return None,
        };
        let asked = experiment.device.threads;
        (threads < asked).then(|| {
            format!(
                "`device.threads` is {asked}, far more than there are CPUs here: {threads} threads work, and \
                 no bit is another"
            )
        })
    }

    /// Does `work` for an experiment on this device.
    ///
    /// # Errors
    /// The experiment does not fit the GPU; errors of the work itself.
    pub fn with<W: OnDevice>(self, experiment: &Experiment, work: W) -> anyhow::Result<W::Output> {
        match self {
            Device::Cpu(cpu) => {
                let storage = Storage::cpu(experiment, cpu.threads());
                cpu.pool().install(|| work.on(cpu, &storage, None))
            }
            Device::Cuda(cuda) => {
                let storage = Storage::cuda(experiment);
                require_memory(&cuda, experiment, memory_plan(experiment, &storage).total())?;
                let peak_flops = peak_flops(&cuda);
                work.on(*cuda, &storage, peak_flops)
            }
            Device::Mirror(mirror) => mirror.pool().install(|| work.on(mirror, &Storage::mirror(), None)),
        }
    }
}

/// How the device of an experiment stores parameters; either of two, where it takes what there is and none
/// has been opened yet.
pub fn param_types(experiment: &Experiment) -> [Dtype; 2] {
    let (cpu, gpu) = (Dtype::F32, Storage::cuda(experiment).param);
    match experiment.device.kind {
        DeviceKind::Cpu => [cpu; 2],
        DeviceKind::Cuda => [gpu; 2],
        DeviceKind::Mirror => [Storage::mirror().param; 2],
        DeviceKind::Auto => [gpu, cpu],
    }
}

fn cuda_options(experiment: &Experiment) -> cuda::CudaOptions {
    let Experiment { precision, kernels, .. } = experiment;
    let (gelu_fusion, cuda_graph) = (kernels.gelu_fusion, kernels.cuda_graph);
    cuda::CudaOptions { compute: precision.compute, gelu_fusion, cuda_graph, ..cuda::CudaOptions::default() }
}

/// Refuses an experiment that does not fit the GPU before anything is allocated, and suggests settings that
/// fit.
pub fn require_memory(cuda: &Cuda, experiment: &Experiment, planned: u64) -> anyhow::Result<()> {
    let (free, gpu) = (cuda.free_bytes()?, cuda.gpu());
    if planned <= free {
        return Ok(());
    }
    anyhow::bail!(
        "`{}` needs {} MiB, {} of {}'s {} MiB are free{}",
        experiment.name,
        planned >> 20,
        free >> 20,
        gpu.name,
        gpu.total_bytes >> 20,
        what_fits(experiment, &gpu.name, free)
    );
}

/// The GPU's dense bf16 peak, when that is the precision at work and the GPU is known.
pub fn peak_flops(cuda: &Cuda) -> Option<f64> {
    cuda.gpu().peak_bf16_flops().filter(|_| cuda.dtype(Role::Activation) == Dtype::BF16)
}

/// Everything that training allocates on one of the experiment's devices.
pub fn memory_plan(experiment: &Experiment, storage: &Storage) -> MemoryPlan {
    MemoryPlan::shared(experiment, storage, Share { devices: experiment.parallel.ranks.max(1) as u64 })
}
