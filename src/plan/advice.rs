//! What to change when a plan does not fit: changes that do, the cheapest first.

use serde::Serialize;

use super::run_plan::storage;
use crate::experiment::{Compute, Experiment, PartialSums};
use crate::plan::cost::{Place, cost};
use crate::plan::hardware::{Gpu, H100};
use crate::plan::memory::{MemoryPlan, Share};

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
    let place = Place::Gpu(Gpu::find(gpu).unwrap_or(H100));
    let found = advice(experiment, place, Share::ALONE, usable).unwrap_or_default();
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

/// Changes of one kind each that fit into `usable` bytes; changes of bits last.
pub fn advice(
    experiment: &Experiment,
    place: Place,
    share: Share,
    usable: u64,
) -> anyhow::Result<Vec<Advice>> {
    let before = cost(experiment, &storage(experiment, place), place, share)?.step.total();
    let mut found = Vec::new();
    let mut try_out =
        |changed: &Experiment, share: Share, change: String, changes_bits: bool| -> anyhow::Result<bool> {
            let storage = storage(changed, place);
            let total_bytes = MemoryPlan::shared(changed, &storage, share).total();
            if total_bytes > usable {
                return Ok(false);
            }
            let step_factor = cost(changed, &storage, place, share)?.step.total() / before;
            found.push(Advice { change, total_bytes, step_factor, changes_bits });
            Ok(true)
        };

    if share.workers(experiment) > 1
        && experiment.memory.partial_sums == PartialSums::Device
        && matches!(place, Place::Gpu(_))
    {
        let mut changed = experiment.clone();
        changed.memory.partial_sums = PartialSums::Host;
        try_out(&changed, share, "memory.partial_sums = host".into(), false)?;
    }
    // Fused, GELU is not computed again; the two exclude each other in bf16.
    let levels = if experiment.kernels.gelu_fusion == 0 { experiment.memory.recompute + 1..3 } else { 0..0 };
    for recompute in levels {
        let mut changed = experiment.clone();
        changed.memory.recompute = recompute;
        if try_out(&changed, share, format!("memory.recompute = {recompute}"), false)? {
            break;
        }
    }
    for gpus in [2, 4, 8].into_iter().filter(|gpus| *gpus > share.devices && matches!(place, Place::Gpu(_))) {
        if try_out(
            experiment,
            Share { devices: gpus },
            format!("--gpus {gpus}"),
            experiment.parallel.workers < gpus as usize,
        )? {
            break;
        }
    }
    let most = if experiment.kernels.gelu_fusion == 0 { 2 } else { experiment.memory.recompute };
    for recompute in
        if most > experiment.memory.recompute { vec![experiment.memory.recompute, most] } else { vec![most] }
    {
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
            if try_out(&changed, share, change, true)? {
                break;
            }
        }
    }
    let bf16 = matches!(experiment.precision.compute, Compute::Auto | Compute::Bf16);
    if experiment.precision.master_weights && bf16 && matches!(place, Place::Gpu(_)) {
        let mut changed = experiment.clone();
        changed.precision.master_weights = false;
        try_out(&changed, share, "precision.master_weights = false".into(), true)?;
    }
    found.sort_by(|a, b| a.changes_bits.cmp(&b.changes_bits).then(a.step_factor.total_cmp(&b.step_factor)));
    Ok(found)
}
