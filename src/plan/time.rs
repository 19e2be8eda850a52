//! How long a run takes and what it costs: the steps, the evaluations between them, and the copies of the
//! state that checkpoints wait for.

use serde::{Serialize, Serializer};

use super::cost::Cost;
use super::data_facts::DataFacts;
use super::disk;
use super::memory::Share;
use super::target::Target;
use crate::experiment::{Compute, Experiment, Tokenizer};
use crate::model::flops::flops_per_token;

/// Milliseconds of a step after any warm-up, seconds and dollars of the run.
#[derive(Debug, Serialize)]
pub struct Time {
    pub gradients_ms: f64,
    pub update_ms: f64,
    pub digest_ms: f64,
    pub exchange_ms: f64,
    pub step_ms: f64,
    pub tokens_per_s: f64,
    pub mfu: Option<f64>,
    pub training_s: f64,
    pub evaluations: u64,
    pub evaluation_s: f64,
    pub total_s: f64,
    #[serde(serialize_with = "priced")]
    pub dollars_per_hour: f64,
    #[serde(serialize_with = "priced")]
    pub dollars: f64,
    #[serde(rename = "reference")]
    pub llmc: Option<LlmcTime>,
}

/// The same run at the speed that llm.c was measured at on an H100; training alone.
#[derive(Debug, Serialize)]
pub struct LlmcTime {
    pub tokens_per_s_per_gpu: f64,
    pub total_s: f64,
    #[serde(serialize_with = "priced")]
    pub dollars: f64,
}

/// Dollars in JSON: `null` where the device has no price.
pub(super) fn priced<S: Serializer>(dollars: &f64, to: S) -> Result<S::Ok, S::Error> {
    Some(*dollars).filter(|dollars| *dollars != 0.0).serialize(to)
}

/// llm.c with cuDNN on an H100, tokens a second and GPU by layers and channels: docs/log.md.
const LLMC: [(usize, usize, f64); 2] = [(12, 768, 533_500.0), (48, 1600, 49_550.0)];

/// Bytes a second from a device to its host, while a checkpoint copies the state.
const COPY_BYTES_PER_S: f64 = 10e9;

impl Time {
    /// The time of an experiment whose operations take `cost` and whose training state has `state_bytes`.
    pub fn of(
        experiment: &Experiment,
        target: Target,
        share: Share,
        cost: &Cost,
        data: &DataFacts,
        state_bytes: u64,
    ) -> Time {
        let step_s = cost.step.total();
        let tokens_per_s = experiment.batch.tokens as f64 / step_s;
        let devices = share.devices as f64;
        let (evaluations, evaluation_s) = evaluation(experiment, share, cost, data);
        let training_s = cost.run;
        // The trainer waits for the copy of the state to the host; writing goes on in the background.
        let saves = disk::saves(&experiment.checkpoint, experiment.schedule.steps);
        let copies_s = saves as f64 * state_bytes as f64 / COPY_BYTES_PER_S;
        let total_s = training_s + evaluation_s + copies_s / devices;
        let dollars_per_hour = match target {
            Target::Cpu { .. } => 0.0,
            Target::Gpu(_) => experiment.plan.dollars_per_gpu_hour * devices,
        };
        let peak = match target {
            Target::Gpu(gpu) if matches!(experiment.precision.compute, Compute::Auto | Compute::Bf16) => {
                Some(gpu.bf16() * devices)
            }
            _ => None,
        };
        let flops = flops_per_token(&experiment.model, experiment.batch.seq_len);
        Time {
            gradients_ms: 1e3 * cost.step.gradients,
            update_ms: 1e3 * cost.step.update,
            digest_ms: 1e3 * cost.step.digest,
            exchange_ms: 1e3 * cost.step.exchange,
            step_ms: 1e3 * step_s,
            tokens_per_s,
            mfu: peak.map(|peak| tokens_per_s * flops / peak),
            training_s,
            evaluations,
            evaluation_s,
            total_s,
            dollars_per_hour,
            dollars: dollars_per_hour * total_s / 3600.0,
            llmc: LlmcTime::of(experiment, target, share, dollars_per_hour),
        }
    }
}

/// How many evaluations a run has, and the seconds that all take.
fn evaluation(experiment: &Experiment, share: Share, cost: &Cost, data: &DataFacts) -> (u64, f64) {
    let evaluations = match experiment.eval.every {
        0 => 0,
        every => experiment.schedule.steps.div_ceil(every) + 1,
    };
    let micro_tokens = (experiment.batch.micro * experiment.batch.seq_len) as u64;
    let wanted = experiment.eval.val_tokens;
    let val_tokens = data.val_tokens.map_or(wanted, |have| have.min(wanted));
    let read = val_tokens + data.hellaswag_tokens.unwrap_or(0);
    // The weights, and their average where one is kept.
    let models = if experiment.optimizer.ema_decay > 0.0 { 2.0 } else { 1.0 };
    let micro_batches = evaluations as f64 * models * read.div_ceil(micro_tokens) as f64;
    (evaluations, micro_batches * cost.forward / share.devices as f64)
}

impl LlmcTime {
    /// None for training or a device on which llm.c was not measured: it was in bf16, on GPT-2's blocks and
    /// tokens, 1,024 of them a sequence.
    fn of(experiment: &Experiment, target: Target, share: Share, dollars_per_hour: f64) -> Option<LlmcTime> {
        let (model, precision) = (&experiment.model, experiment.precision.compute);
        let size = (model.layers, model.channels);
        let (.., speed) = LLMC.iter().find(|(layers, channels, _)| (*layers, *channels) == size)?;
        let is_measured = matches!(target, Target::Gpu(gpu) if gpu.is_measured());
        let is_gpt2 = model.has_gpt2_blocks() && experiment.data.tokenizer == Tokenizer::Gpt2;
        let is_bf16 = matches!(precision, Compute::Auto | Compute::Bf16);
        if !(is_measured && is_gpt2 && is_bf16 && experiment.batch.seq_len == 1024) {
            return None;
        }
        let tokens = experiment.tokens_before(experiment.schedule.steps) as f64;
        let total_s = tokens / (speed * share.devices as f64);
        let dollars = dollars_per_hour * total_s / 3600.0;
        Some(LlmcTime { tokens_per_s_per_gpu: *speed, total_s, dollars })
    }
}
