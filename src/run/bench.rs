//! How fast an experiment trains here, and where the time goes.
//!
//! Steps are whole optimizer steps on the experiment's own data, each ended by the one wait for the
//! device that every step has. The operations come from one more step in which each is waited for; see
//! [`crate::ops::timed`]. Beside each stands its floor: what its floating-point operations take at the clock
//! that the GPU ran at in that step, or its bytes at the peak of the memory, whichever is longer.

use std::time::{Duration, Instant};

use super::data::Data;
use super::device::{Device, memory_plan, peak_flops, require_memory};
use super::sensors::{GpuLoad, LoadMeter};
use crate::data::Prefetcher;
use crate::experiment::{Experiment, Loaded};
use crate::model::flops::flops_per_token;
use crate::ops::cuda::driver::GpuInfo;
use crate::ops::timed::{Label, OperationTime, Timed};
use crate::ops::{Family, Ops, Role};
use crate::plan::memory::Storage;
use crate::train::{TrainError, Trainer};

/// Times `steps` steps of an experiment, after two that warm up, on one device, also where a run would use
/// more. They are as large as those after the warm-ups of `[batch]`.
///
/// # Errors
/// Data or device cannot be opened, or a step fails.
pub fn bench(mut loaded: Loaded, steps: usize) -> anyhow::Result<Measured> {
    let data = Data::open(&mut loaded)?;
    loaded.experiment.parallel.ranks = 1;
    loaded.experiment.batch = loaded.experiment.batch.after_warmups();
    let experiment = &loaded.experiment;
    let feed = data.feed(experiment, 0, 0)?;
    let setup = |planned_bytes, peak_flops, gpu| Setup { experiment, steps, planned_bytes, peak_flops, gpu };
    Ok(match Device::open(experiment)? {
        Device::Cpu(cpu) => {
            let planned = memory_plan(experiment, &Storage::cpu(experiment, cpu.threads())).total();
            measure(Timed::new(cpu), feed, &setup(planned, None, None), |_| peak_resident_bytes())?
        }
        Device::Mirror(mirror) => {
            let planned = memory_plan(experiment, &Storage::mirror()).total();
            measure(Timed::new(mirror), feed, &setup(planned, None, None), |_| peak_resident_bytes())?
        }
        Device::Cuda(cuda) => {
            let planned = memory_plan(experiment, &Storage::cuda(experiment)).total();
            require_memory(&cuda, experiment, planned)?;
            let setup = setup(planned, peak_flops(&cuda), Some(cuda.gpu().clone()));
            measure(Timed::new(*cuda), feed, &setup, |timed| Some(timed.inner.taken_bytes()))?
        }
    })
}

/// What is to be measured.
struct Setup<'a> {
    experiment: &'a Experiment,
    steps: usize,
    planned_bytes: u64,
    /// At the activations' precision.
    peak_flops: Option<f64>,
    gpu: Option<GpuInfo>,
}

impl Setup<'_> {
    /// Peak FLOP/s at the clock of this load. In fp32 products have other peaks, which no table has.
    fn peak_at(&self, load: Option<GpuLoad>) -> Option<f64> {
        self.peak_flops.and(self.gpu.as_ref()?.bf16_flops_at(load?.sm_mhz))
    }

    /// The least time of an operation under this load, where that is known: none of those on the host.
    fn floor(&self, family: Family, work: &OperationTime, load: Option<GpuLoad>) -> Option<Duration> {
        let gpu = self.gpu.as_ref().filter(|gpu| gpu.memory_bytes_per_s > 0 && family != Family::Host)?;
        let moved = work.bytes / gpu.memory_bytes_per_s as f64;
        let computed = match work.flops > 0.0 {
            true => work.flops / self.peak_at(load)?,
            false => 0.0,
        };
        Some(Duration::from_secs_f64(moved.max(computed))).filter(|floor| !floor.is_zero())
    }
}

/// One kind of operation of a step.
pub struct StepPart {
    pub name: String,
    pub record: OperationTime,
    /// The least that a GPU of this peak takes at the clock of this step.
    pub floor: Option<Duration>,
}

/// What was measured.
pub struct Measured {
    /// The experiment.
    pub name: String,
    /// Sequences of a micro-batch.
    pub micro_batch: usize,
    /// Tokens of a sequence.
    pub seq_len: usize,
    pub step_tokens: u64,
    /// The device, and how it stores activations.
    pub device: String,
    /// Milliseconds of a step, the median.
    pub step_ms: f64,
    /// The same of steps that end with the state digest.
    pub hashed_step_ms: f64,
    pub tokens_per_s: f64,
    pub mfu: Option<f64>,
    /// Of a GPU, over the steps without the digest.
    pub load: Option<GpuLoad>,
    /// `mfu` of the peak at the clock that it ran at.
    pub mfu_at_clock: Option<f64>,
    pub planned_bytes: u64,
    pub peak_bytes: Option<u64>,
    /// How many steps waited for data.
    pub data_waits: u64,
    /// Operations of one step, by time, the longest first.
    pub operations: Vec<StepPart>,
}

fn measure<O: Ops>(
    device: Timed<O>,
    mut feed: Prefetcher,
    setup: &Setup<'_>,
    peak_bytes: impl Fn(&Timed<O>) -> Option<u64>,
) -> Result<Measured, TrainError> {
    let &Setup { experiment, steps, planned_bytes, peak_flops, .. } = setup;
    let mut trainer = Trainer::new(device, experiment)?;
    for _ in 0..2 {
        trainer.step(&mut feed)?;
    }
    // Without NVML there is no load, and no floor of what is computed.
    let meter = setup.gpu.as_ref().and_then(|gpu| LoadMeter::start(&gpu.uuid).ok());
    let load_since = || meter.as_ref().and_then(LoadMeter::take);
    load_since();
    let step_ms = median_ms(steps, || trainer.step(&mut feed).map(|_| ()))?;
    let load = load_since();
    let hashed_step_ms = median_ms(steps, || {
        trainer.step(&mut feed)?;
        trainer.state_root().map(|_| ())
    })?;
    let peak_bytes = peak_bytes(&trainer.ops);
    trainer.ops.start();
    load_since();
    trainer.step(&mut feed)?;
    trainer.state_root()?;
    let waiting = load_since();
    let part = |(label, record): (Label, OperationTime)| {
        let floor = setup.floor(label.family, &record, waiting);
        StepPart { name: label.name, record, floor }
    };
    let mut operations: Vec<StepPart> = trainer.ops.finish().into_iter().map(part).collect();
    operations.sort_by_key(|part| std::cmp::Reverse(part.record.time));

    let tokens_per_s = experiment.batch.tokens as f64 / step_ms * 1e3;
    let flops = flops_per_token(&experiment.model, experiment.batch.seq_len);
    Ok(Measured {
        name: experiment.name.clone(),
        micro_batch: experiment.batch.micro,
        seq_len: experiment.batch.seq_len,
        step_tokens: experiment.batch.tokens,
        device: format!("{}, {} activations", trainer.ops.device_name(), trainer.ops.dtype(Role::Activation)),
        step_ms,
        hashed_step_ms,
        tokens_per_s,
        mfu: peak_flops.map(|peak| tokens_per_s * flops / peak),
        load,
        mfu_at_clock: setup.peak_at(load).map(|peak| tokens_per_s * flops / peak),
        planned_bytes,
        peak_bytes,
        data_waits: feed.waits().waits,
        operations,
    })
}

fn median_ms(count: usize, mut step: impl FnMut() -> Result<(), TrainError>) -> Result<f64, TrainError> {
    let mut times = Vec::new();
    for _ in 0..count.max(1) {
        let start = Instant::now();
        step()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// Peak memory of this process in bytes, where the system reports it.
fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::DeviceError;

    #[test]
    fn room_for_times_is_not_taken_before_they_are_there() {
        let fails = || Err(TrainError::Device(DeviceError::Unavailable("none".into())));
        assert!(median_ms(usize::MAX, fails).is_err());
    }
}
