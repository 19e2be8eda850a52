//! Changes that make a plan fit, the cheapest first.

use serde::Serialize;

use super::cost::cost;
use super::hardware::{GpuSpec, H100};
use super::memory::{MemoryPlan, Share};
use super::target::Target;
use crate::experiment::{Compute, Experiment, PartialSums};
use crate::ops::DeviceError;

/// A change that makes the experiment fit.
#[derive(Debug, Serialize)]
pub struct Advice {
    /// Keys to set, or more GPUs to take.
    pub change: String,
    pub total_bytes: u64,
    /// Step time as a factor of the time before.
    pub step_factor: f64,
    pub changes_bits: bool,
}

/// The changes of an experiment that fit into `usable` bytes of the GPU of this name, for the refusal of one
/// that does not: a line each.
pub fn what_fits(experiment: &Experiment, gpu: &str, usable: u64) -> String {
    let target = Target::Gpu(GpuSpec::find(gpu).unwrap_or(H100));
    let share = Share { devices: experiment.parallel.ranks.max(1) as u64 };
    let found = advice(experiment, target, share, usable).unwrap_or_default();
    let line = |advice: Advice| {
        let sets: String =
            advice.change.split(", ").map(|set| format!(" --set {}", set.replace(' ', ""))).collect();
        let bits = if advice.changes_bits { "other bits" } else { "the same bits" };
        format!(
            "\n  fits:{sets} ({} MiB, {bits}, {:.2} times as long a step)",
            advice.total_bytes >> 20,
            advice.step_factor
        )
    };
    let here = found.into_iter().filter(|advice| !advice.change.starts_with("--"));
    let lines: String = here.map(line).collect();
    if lines.is_empty() {
        "\n  hint: no micro-batch, no level of recomputation and no place of partial sums fits".into()
    } else {
        lines
    }
}

/// A changed experiment, or more devices for it.
struct Candidate {
    experiment: Experiment,
    share: Share,
    change: String,
    changes_bits: bool,
}

/// Changes of one kind each that fit into `usable` bytes; changes of bits last.
///
/// # Errors
/// None that could happen: operations are counted by a device that refuses nothing.
pub fn advice(
    experiment: &Experiment,
    target: Target,
    share: Share,
    usable: u64,
) -> Result<Vec<Advice>, DeviceError> {
    let before = cost(experiment, &target.storage(experiment), target, share)?.step.total();
    let bytes = |candidate: &Candidate| {
        MemoryPlan::shared(&candidate.experiment, &target.storage(&candidate.experiment), candidate.share)
            .total()
    };
    let mut found = Vec::new();
    for kind in candidates(experiment, target, share) {
        let Some(candidate) = kind.into_iter().find(|candidate| bytes(candidate) <= usable) else { continue };
        let total_bytes = bytes(&candidate);
        let Candidate { experiment, share, change, changes_bits } = candidate;
        let step = cost(&experiment, &target.storage(&experiment), target, share)?.step.total();
        found.push(Advice { change, total_bytes, step_factor: step / before, changes_bits });
    }
    found.sort_by(|a, b| a.changes_bits.cmp(&b.changes_bits).then(a.step_factor.total_cmp(&b.step_factor)));
    Ok(found)
}

/// Changes by their kind; of each kind the one that changes least goes first.
fn candidates(experiment: &Experiment, target: Target, share: Share) -> Vec<Vec<Candidate>> {
    let on_gpu = matches!(target, Target::Gpu(_));
    let with = |change: String, changes_bits: bool, make: &dyn Fn(&mut Experiment)| {
        let mut changed = experiment.clone();
        make(&mut changed);
        Candidate { experiment: changed, share, change, changes_bits }
    };
    let mut kinds = Vec::new();
    if on_gpu && share.workers(experiment) > 1 && experiment.memory.partial_sums == PartialSums::Device {
        let make = |changed: &mut Experiment| changed.memory.partial_sums = PartialSums::Host;
        kinds.push(vec![with("memory.partial_sums = host".into(), false, &make)]);
    }
    let now = experiment.memory.recompute;
    // Fused, GELU is not computed again; the two exclude each other in bf16.
    let most = if experiment.kernels.gelu_fusion == 0 { now.max(2) } else { now };
    let recompute = |level| {
        with(format!("memory.recompute = {level}"), false, &move |changed| changed.memory.recompute = level)
    };
    kinds.push((now + 1..=most).map(recompute).collect());
    let more = [2, 4, 8].into_iter().filter(|gpus| on_gpu && *gpus > share.devices);
    let gpus = |gpus| Candidate {
        experiment: experiment.clone(),
        share: Share { devices: gpus },
        change: format!("--gpus {gpus}"),
        changes_bits: experiment.parallel.workers < gpus as usize,
    };
    kinds.push(more.map(gpus).collect());
    kinds.push(smaller_micro_batches(experiment, share, now));
    if most > now {
        kinds.push(smaller_micro_batches(experiment, share, most));
    }
    let bf16 = matches!(experiment.precision.compute, Compute::Auto | Compute::Bf16);
    if on_gpu && bf16 && experiment.precision.master_weights {
        let make = |changed: &mut Experiment| changed.precision.master_weights = false;
        kinds.push(vec![with("precision.master_weights = false".into(), true, &make)]);
    }
    kinds
}

/// The micro-batch halved, and halved again while it can be, at one level of recomputation.
fn smaller_micro_batches(experiment: &Experiment, share: Share, recompute: u8) -> Vec<Candidate> {
    let mut found = Vec::new();
    let mut changed = experiment.clone();
    changed.memory.recompute = recompute;
    while changed.batch.micro.is_multiple_of(2) {
        changed.batch.micro /= 2;
        let mut change = format!("batch.micro = {}", changed.batch.micro);
        if experiment.parallel.zero > 1 {
            // A smaller micro-batch makes a second micro-step.
            changed.parallel.zero = 1;
            change.push_str(", parallel.zero = 1");
        }
        if recompute != experiment.memory.recompute {
            change.push_str(&format!(", memory.recompute = {recompute}"));
        }
        found.push(Candidate { experiment: changed.clone(), share, change, changes_bits: true });
    }
    found
}
