//! The time of a step, estimated without the device: operations counted by running the model on
//! [`Dry`], each at the rate of its [`Family`].
//!
//! Because the model itself is run, a change of its operations changes the plan with it. What is not an
//! operation of the model (the optimizer, the norm, the digest, sums over workers, the exchange between
//! devices) is counted here by its bytes.

use super::hardware::{self, H100, Rate, UNDISTURBED};
use super::memory::{Share, Storage, state_bytes};
use super::target::Target;
use crate::experiment::{Compute, DeviceKind, Experiment};
use crate::model::gpt2::{Gpt2, MicroBatch};
use crate::model::weights::{ParamSpec, Weights};
use crate::ops::dry::Dry;
use crate::ops::timed::{Label, OperationTime, TOKEN_UPLOAD, Timed};
use crate::ops::{DeviceError, Family, Ops, Role, Rows, Write};
use crate::optim::{MASTER, UpdateRule, update_rule};

/// Seconds by what they are spent on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepTime {
    /// Forward and backward passes of all micro-batches that one device works through, and their sums.
    pub gradients: f64,
    /// Gradient norm and the optimizer's update.
    pub update: f64,
    /// The state digest, spread over the steps between digests.
    pub digest: f64,
    /// Gradients and new weights between devices, less what the backward pass hides.
    pub exchange: f64,
}

impl StepTime {
    pub fn total(&self) -> f64 {
        self.gradients + self.update + self.digest + self.exchange
    }
}

/// The times of an experiment on one kind of device.
#[derive(Clone, Debug, PartialEq)]
pub struct Cost {
    /// Of a step as the last ones are, after any warm-up.
    pub step: StepTime,
    /// Seconds of all steps of the run.
    pub run: f64,
    /// Seconds for the loss of one micro-batch, without gradients.
    pub forward: f64,
    /// Operations of one micro-batch with their shapes, and the seconds each kind takes.
    pub operations: Vec<(String, OperationTime, f64)>,
}

/// Of the links' peak rate, what large copies reach. Assumed, not measured.
const LINK_SHARE: f64 = 0.75;

/// The times of an experiment on `target`, spread as `share` says.
///
/// # Errors
///
/// None that could happen: the model runs on a device that refuses nothing.
pub fn cost(
    experiment: &Experiment,
    storage: &Storage,
    target: Target,
    share: Share,
) -> Result<Cost, DeviceError> {
    let rates = Rates { experiment, target };
    let whole = Rows { batch: experiment.batch.micro, seq: experiment.batch.seq_len };
    let backward = counted(experiment, storage, whole, true)?;
    let forward = counted(experiment, storage, whole, false)?;
    let element = storage.activation.size() as f64;
    let seconds = |family: Family, record: &OperationTime| {
        let logits = (experiment.batch.micro * experiment.batch.seq_len * experiment.model.vocab_padded)
            as f64
            * element;
        let bytes = if family == Family::Classifier { logits } else { record.bytes };
        rates.seconds(family, record.calls as f64, record.flops, bytes)
    };
    let sum = |records: &[(Label, OperationTime)]| {
        records.iter().map(|(label, record)| seconds(label.family, record)).sum::<f64>()
    };

    let workers = share.workers(experiment);
    let largest = experiment.batch.tokens / experiment.batch.seq_len as u64;
    let micro_steps = largest.div_ceil(experiment.batch.micro as u64 * share.devices) as f64;
    let specs = Weights::of(&experiment.model);
    let n = specs.parameters() as f64;
    let shard = n / share.devices as f64;
    let param = storage.param.size() as f64;
    let update_bytes = update_bytes(experiment, &specs, storage) / share.devices as f64;
    let once = |family, bytes: f64| rates.seconds(family, 1.0, 0.0, bytes);
    let digests = match experiment.proof.digest_every {
        0 => 0.0,
        every => 1.0 / every as f64,
    };
    let state = state_bytes(experiment, storage) as f64 / share.devices as f64;
    let losses = once(Family::Host, 4.0 * experiment.batch.tokens as f64 / share.devices as f64);
    let exchange = match target {
        Target::Gpu(gpu) if share.devices > 1 => {
            let over_links = |bytes: f64| {
                bytes * (share.devices - 1) as f64 / share.devices as f64 / (LINK_SHARE * gpu.link)
            };
            // Gradients leave while those of the blocks before are computed; the token table's are the last.
            let tables = (experiment.model.vocab_padded * experiment.model.channels) as f64;
            let hidden = over_links(4.0 * (n - tables)).min(sum(&backward) - sum(&forward));
            over_links((4.0 + param) * n) - hidden
        }
        _ => 0.0,
    };
    let step = StepTime {
        gradients: micro_steps * sum(&backward) + (workers - 1) as f64 * once(Family::Sum, 12.0 * n) + losses,
        update: once(Family::GradientNorm, 4.0 * shard) + once(Family::Optimizer, update_bytes),
        digest: digests * once(Family::Digest, state),
        exchange,
    };
    // Beside its micro-batches, a step takes as long as any other.
    let mut run = experiment.schedule.steps as f64 * (step.total() - micro_steps * sum(&backward));
    for (steps, seq) in experiment.piece_stages() {
        let pieces = Rows { batch: whole.count() / seq, seq };
        let backward = counted(experiment, storage, pieces, true)?;
        let sequences = experiment.sequences_before(steps.end) - experiment.sequences_before(steps.start);
        run += sequences as f64 / largest as f64 * micro_steps * sum(&backward);
    }
    Ok(Cost {
        step,
        run,
        forward: sum(&forward)
            + once(Family::Host, 4.0 * (experiment.batch.micro * experiment.batch.seq_len) as f64),
        operations: backward
            .iter()
            .map(|(label, record)| (label.name.clone(), *record, seconds(label.family, record)))
            .collect(),
    })
}

/// Bytes that an update of all parameters moves: gradients are read, what the optimizer keeps is read and
/// written, and so are the weights, unless they are rounded from masters and only written.
fn update_bytes(experiment: &Experiment, specs: &Weights<ParamSpec>, storage: &Storage) -> f64 {
    let rule = update_rule(experiment, storage.param);
    let (gradient, kept, param) = (4, 8, storage.param.size());
    let bytes = |spec: &ParamSpec| {
        let state = rule.state(&spec.parameter());
        let weights = if state.contains(&MASTER) { param } else { 2 * param };
        spec.len * (gradient + kept * state.len() + weights)
    };
    specs.iter().map(bytes).sum::<usize>() as f64
}

/// The operations of one micro-batch: with gradients that are added to, or the loss alone.
fn counted(
    experiment: &Experiment,
    storage: &Storage,
    rows: Rows,
    backward: bool,
) -> Result<Vec<(Label, OperationTime)>, DeviceError> {
    let mut ops = Timed::new(Dry::new(storage.activation));
    let mut model = Gpt2::zeroed(&mut ops, &experiment.model, rows, experiment.memory.recompute, true)?;
    let mut grads = model.specs.try_map(|spec| ops.alloc(Role::F32, spec.len))?;
    let mut losses = ops.alloc(Role::F32, rows.count())?;
    // Nothing reads token ids here, and of the largest micro-batches they would fill the host's memory.
    let batch = MicroBatch { inputs: &[], targets: &[], rows, losses_at: 0 };
    ops.start();
    if backward {
        model.forward_backward(&mut ops, &batch, &mut losses, &mut grads, 1.0, Write::Add)?;
    } else {
        model.forward(&mut ops, &batch, &mut losses)?;
    }
    let mut records: Vec<_> = ops.finish().into_iter().collect();
    for (_, upload) in records.iter_mut().filter(|(label, _)| label.name == TOKEN_UPLOAD) {
        // The inputs and the targets, of two bytes each.
        upload.bytes = 4.0 * rows.count() as f64;
    }
    Ok(records)
}

/// Rates of a device at an experiment's precision.
struct Rates<'a> {
    experiment: &'a Experiment,
    target: Target,
}

impl Rates<'_> {
    /// Whether the experiment has cuBLASLt do the GELU of such an operation inside its product.
    fn fused(&self, family: Family) -> bool {
        let bf16 = matches!(self.experiment.precision.compute, Compute::Auto | Compute::Bf16);
        let fusion = if bf16 { self.experiment.kernels.gelu_fusion } else { 0 };
        match family {
            Family::LinearGelu => fusion >= 1,
            Family::InputGradientGelu => fusion >= 2,
            _ => false,
        }
    }

    fn seconds(&self, family: Family, calls: f64, flops: f64, bytes: f64) -> f64 {
        let time = |rate: Rate, speed: f64, width: f64| {
            let part = |work: f64, rate: f64| if rate > 0.0 { work / rate } else { 0.0 };
            calls * rate.call + part(flops, rate.flops * speed) + part(bytes, rate.bytes * width)
        };
        match self.target {
            // Bytes and FLOPs of a CPU both grow with its threads, if memory keeps up.
            Target::Cpu { threads } => {
                let is_mirror = self.experiment.device.kind == DeviceKind::Mirror;
                let speed = if is_mirror { hardware::MIRROR } else { 1.0 };
                time(hardware::cpu(family), threads as f64 * speed, threads as f64)
            }
            Target::Gpu(gpu) => {
                let rate = hardware::h100(family, self.fused(family));
                if family == Family::Host {
                    return time(rate, 1.0, 1.0);
                }
                let peak = match self.experiment.precision.compute {
                    Compute::Auto | Compute::Bf16 => gpu.bf16(),
                    // Attention has no tensor cores in fp32.
                    Compute::Tf32 if !matches!(family, Family::Attention | Family::AttentionBackward) => {
                        gpu.tf32
                    }
                    Compute::Tf32 | Compute::Fp32 => gpu.fp32,
                };
                let width = if family == Family::Digest {
                    gpu.bf16() / H100.bf16()
                } else {
                    gpu.bandwidth / H100.bandwidth
                };
                UNDISTURBED * time(rate, peak / H100.bf16(), width)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::{self, shipped};
    use crate::plan::hardware::GpuSpec;

    fn on_h100(experiment: &Experiment, devices: u64) -> Cost {
        cost(experiment, &Storage::cuda(experiment), Target::Gpu(H100), Share { devices })
            .expect("nothing can fail")
    }

    /// Speeds that `runner bench` measured on an H100: docs/log.md, 2026-11-24. With and without
    /// the digest.
    #[test]
    fn the_estimate_is_what_was_measured_on_an_h100() {
        let (one, d48) = ("parallel.workers=1", "batch.tokens=131072");
        for (name, sets, step_ms, hashed_ms) in [
            ("gpt2_124m.toml", &[one][..], 852.0, 852.7),
            ("gpt2_124m.toml", &[], 856.0, 857.3),
            ("gpt2_124m.toml", &[one, "kernels.gelu_fusion=2"], 866.7, 866.3),
            ("gpt2_33b.toml", &[one, d48], 2381.2, 2430.4),
            ("gpt3_125m.toml", &[one], 943.8, 944.6),
        ] {
            let step = on_h100(&shipped(name, sets), 1).step;
            let off = 1e3 * (step.total() - step.digest) / step_ms - 1.0;
            assert!(off.abs() < 0.05, "{name} {sets:?}: {step:?}, {off:+.3} of {step_ms} ms");
            let off = 1e3 * step.total() / hashed_ms - 1.0;
            assert!(
                off.abs() < 0.05,
                "{name} {sets:?}: {step:?}, {off:+.3} of {hashed_ms} ms with the digest"
            );
        }
    }

    #[test]
    fn every_operation_of_the_model_takes_time() {
        let cost = on_h100(&shipped("gpt2_124m.toml", &["memory.recompute=2", "kernels.gelu_fusion=0"]), 1);
        for (name, record, seconds) in &cost.operations {
            assert!(*seconds > 0.0 && record.calls > 0, "{name}");
        }
        assert!(cost.operations.len() > 15, "{}", cost.operations.len());
    }

    #[test]
    fn token_ids_are_counted_and_not_made() {
        let mut experiment = shipped("gpt2_124m.toml", &[]);
        (experiment.batch.micro, experiment.batch.seq_len) = (1 << 20, 1 << 14);
        (experiment.model.context, experiment.batch.tokens) = (1 << 14, 1 << 34);
        let cost = cost(&experiment, &Storage::mirror(), Target::Gpu(H100), Share::ALONE);
        let operations = cost.expect("nothing can fail").operations;
        let (_, upload, _) = operations.iter().find(|(name, ..)| name == TOKEN_UPLOAD).expect("one");
        assert_eq!((upload.calls, upload.bytes), (2, 4.0 * (1u64 << 34) as f64));
    }

    #[test]
    fn the_largest_sizes_of_the_schema_are_counted() {
        let keys = [
            "model.layers",
            "model.heads",
            "model.channels",
            "model.context",
            "model.vocab",
            "batch.micro",
            "batch.seq_len",
            "batch.tokens",
        ];
        let largest = keys.map(|key| format!("{key}={}", experiment::largest(key)));
        let sets: Vec<&str> = largest.iter().map(String::as_str).chain(["parallel.workers=1"]).collect();
        let cost = on_h100(&shipped("gpt2_124m.toml", &sets), 1);
        let flops = |called: &str| {
            let found = cost.operations.iter().find(|(name, ..)| name == called);
            found.map(|(_, record, _)| record.flops).expect("an operation of the model")
        };
        // 1024 layers, each 2^20 sequences of 2^20 tokens in 1024 heads of 128 channels, or 2^40 rows.
        assert_eq!(flops("attention"), 1024.0 * 2.0 * 2f64.powi(77));
        assert_eq!(flops("attention backward"), 1024.0 * 5.0 * 2f64.powi(77));
        assert_eq!(flops("classifier, forward and backward"), 6.0 * 2f64.powi(40 + 17 + 16));
        let (step, run) = (cost.step.total(), cost.run);
        assert!(step > 1e9 && step.is_finite() && run > step && run.is_finite(), "{step} s, {run} s");
    }

    #[test]
    fn fusion_changes_the_time_of_gelu_alone() {
        let times = |fusion: &str| on_h100(&shipped("gpt2_124m.toml", &[fusion]), 1).operations;
        let (apart, fused) = (times("kernels.gelu_fusion=0"), times("kernels.gelu_fusion=2"));
        assert_eq!(apart.len(), fused.len());
        for ((name, _, apart), (_, _, fused)) in apart.iter().zip(&fused) {
            assert_eq!(apart != fused, name.contains("gelu"), "{name}: {apart} and {fused} s");
        }
    }

    #[test]
    fn work_is_shared_and_what_is_exchanged_grows() {
        // With eight workers one device would add up what eight exchange.
        let experiment = shipped("gpt2_33b.toml", &["parallel.workers=1"]);
        let (one, eight) = (on_h100(&experiment, 1), on_h100(&experiment, 8));
        assert!((one.step.gradients / eight.step.gradients - 8.0).abs() < 0.01, "{one:?} {eight:?}");
        assert!((one.step.update / eight.step.update - 8.0).abs() < 0.1);
        assert!(
            one.step.exchange == 0.0
                && eight.step.exchange > 0.0
                && eight.step.exchange < 0.1 * eight.step.total()
        );
        assert!(
            eight.forward > 0.2 * eight.step.gradients / 8.0
                && eight.forward < 0.4 * eight.step.gradients / 8.0
        );
    }

    #[test]
    fn another_gpu_is_slower_by_its_peaks() {
        let experiment = shipped("gpt2_124m.toml", &[]);
        let a100 = GpuSpec::find("a100").expect("known");
        let slow = cost(&experiment, &Storage::cuda(&experiment), Target::Gpu(a100), Share::ALONE)
            .expect("nothing can fail");
        let factor = slow.step.total() / on_h100(&experiment, 1).step.total();
        assert!(factor > 1.6 && factor < 3.2, "{factor}");
    }
}
