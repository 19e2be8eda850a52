//! Everything that `runner plan` says of an experiment: memory, work, time, dollars and disk on one kind of
//! device.
//!
//! Needs neither the GPU nor the data. Memory is the trainer's own plan ([`MemoryPlan`]); time is [`cost`] at
//! rates measured on an H100, and an estimate anywhere else. Serialised, this is the JSON of `runner plan`.

use serde::Serialize;

use super::PlanError;
use super::advice::{Advice, advice};
use super::cost::cost;
use super::data_facts::DataFacts;
use super::disk::Disk;
use super::memory::{Category, MemoryPlan, PlanEntry, Share, state_bytes};
use super::target::Target;
use super::time::Time;
use crate::experiment::{Compute, DeviceKind, Experiment};
use crate::model::flops::flops_per_token;
use crate::model::weights::Weights;
use crate::units::{counted, noun};

/// Everything that the plan says.
#[derive(Debug, Serialize)]
pub struct RunPlan {
    pub experiment: String,
    pub model: ModelSizes,
    pub device: TargetFacts,
    pub memory: DeviceBytes,
    pub work: TrainingWork,
    pub time: Time,
    pub disk: Disk,
    pub data: DataFacts,
    /// Assumptions, and what must be changed first.
    pub notes: Vec<String>,
}

/// The model's sizes.
#[derive(Debug, Serialize)]
pub struct ModelSizes {
    /// GPT-2, or what its blocks have that GPT-2's have not.
    pub kind: String,
    pub parameters: u64,
    pub layers: usize,
    pub heads: usize,
    pub channels: usize,
    pub context: usize,
    /// To train on one token: 6 N + 6 L C T.
    pub flops_per_token: f64,
}

/// The device of the plan.
#[derive(Debug, Serialize)]
pub struct TargetFacts {
    pub name: String,
    pub count: u64,
    pub precision: &'static str,
    /// Whether the rates were measured on this device; else they are scaled from an H100's.
    pub measured: bool,
}

/// Bytes of one device.
#[derive(Debug, Serialize)]
pub struct DeviceBytes {
    pub entries: Vec<PlanEntry>,
    pub total_bytes: u64,
    /// Bytes of the device, less what the driver takes; not known for the CPU.
    pub usable_bytes: Option<u64>,
    pub fits: Option<bool>,
    /// On the host, of one device.
    pub host_bytes: u64,
    pub advice: Vec<Advice>,
}

/// Steps, tokens and floating-point operations of the run.
#[derive(Debug, Serialize)]
pub struct TrainingWork {
    pub steps: u64,
    /// Of a step after any warm-up, as its micro-batches.
    pub tokens_per_step: u64,
    /// Where the batch warms up, fewer than `tokens_per_step`.
    pub first_step_tokens: u64,
    /// Tokens of the pieces of the first step, where it has shorter ones than `batch.seq_len`.
    pub first_seq_len: Option<usize>,
    pub micro_steps_per_device: u64,
    pub tokens: u64,
    pub flops: f64,
    /// Not of a mixture: each source has its own.
    pub epochs: Option<f64>,
}

impl RunPlan {
    /// The plan of an experiment, spread over devices of one kind as `share` says.
    ///
    /// # Errors
    /// None that could happen: operations are counted by a device that refuses nothing.
    pub fn of(
        experiment: &Experiment,
        target: Target,
        share: Share,
        data: DataFacts,
    ) -> Result<RunPlan, PlanError> {
        let storage = target.storage(experiment);
        let cost = cost(experiment, &storage, target, share)?;
        let state_bytes = state_bytes(experiment, &storage);
        Ok(RunPlan {
            experiment: experiment.name.clone(),
            model: ModelSizes::of(experiment),
            device: TargetFacts::of(experiment, target, share),
            memory: DeviceBytes::of(experiment, target, share)?,
            work: TrainingWork::of(experiment, share, &data),
            time: Time::of(experiment, target, share, &cost, &data, state_bytes),
            disk: Disk::of(experiment, &storage),
            notes: notes(experiment, share, &data),
            data,
        })
    }
}

impl ModelSizes {
    fn of(experiment: &Experiment) -> ModelSizes {
        let m = &experiment.model;
        ModelSizes {
            kind: m.kind(),
            parameters: Weights::of(m).parameters(),
            layers: m.layers,
            heads: m.heads,
            channels: m.channels,
            context: m.context,
            flops_per_token: flops_per_token(m, experiment.batch.seq_len),
        }
    }
}

impl TargetFacts {
    fn of(experiment: &Experiment, target: Target, share: Share) -> TargetFacts {
        let precision = match (target, experiment.precision.compute) {
            (Target::Cpu { .. }, _) if experiment.device.kind == DeviceKind::Mirror => "bf16",
            (Target::Cpu { .. }, _) | (_, Compute::Fp32) => "fp32",
            (_, Compute::Tf32) => "tf32",
            (_, Compute::Auto | Compute::Bf16) => "bf16",
        };
        let (name, measured) = match target {
            Target::Cpu { threads } => (format!("CPU, {threads} {}", noun(threads, "thread")), false),
            Target::Gpu(gpu) => {
                (gpu.name.to_owned(), gpu.is_measured() && precision == "bf16" && share.devices == 1)
            }
        };
        TargetFacts { name, count: share.devices, precision, measured }
    }
}

impl DeviceBytes {
    fn of(experiment: &Experiment, target: Target, share: Share) -> Result<DeviceBytes, PlanError> {
        let memory = MemoryPlan::shared(experiment, &target.storage(experiment), share);
        let (total_bytes, usable_bytes) = (memory.total(), target.usable_bytes());
        let advice = match usable_bytes {
            Some(usable) if total_bytes > usable => advice(experiment, target, share, usable)?,
            _ => Vec::new(),
        };
        Ok(DeviceBytes {
            total_bytes,
            usable_bytes,
            fits: usable_bytes.map(|usable| total_bytes <= usable),
            host_bytes: memory.category(Category::Host),
            advice,
            entries: memory.entries,
        })
    }
}

impl TrainingWork {
    fn of(experiment: &Experiment, share: Share, data: &DataFacts) -> TrainingWork {
        let steps = experiment.schedule.steps;
        let tokens = experiment.tokens_before(steps);
        let flops = experiment.piece_stages().into_iter().map(|(steps, seq_len)| {
            let tokens = experiment.tokens_before(steps.end) - experiment.tokens_before(steps.start);
            flops_per_token(&experiment.model, seq_len) * tokens as f64
        });
        let largest = experiment.largest_step_tokens() / experiment.batch.seq_len as u64;
        let at_once = experiment.batch.micro as u64 * share.devices;
        TrainingWork {
            steps,
            tokens_per_step: experiment.largest_step_tokens(),
            first_step_tokens: experiment.tokens_of(0),
            first_seq_len: Some(experiment.batch.seq_len_of(0))
                .filter(|first| *first < experiment.batch.seq_len),
            micro_steps_per_device: largest.div_ceil(at_once),
            tokens,
            flops: flops.sum(),
            epochs: data
                .train_tokens
                .filter(|_| data.sources.is_empty())
                .map(|have| tokens as f64 / have as f64),
        }
    }
}

fn notes(experiment: &Experiment, share: Share, data: &DataFacts) -> Vec<String> {
    let mut notes = Vec::new();
    let (workers, gpus) = (experiment.parallel.workers as u64, share.devices);
    if workers < gpus {
        notes.push(format!(
            "`parallel.workers` is {workers}: {gpus} GPUs need {gpus}, which changes bits; planned as if it \
             were"
        ));
    }
    let micro_batches = experiment.tokens_of(0) / (experiment.batch.micro * experiment.batch.seq_len) as u64;
    if micro_batches < gpus {
        notes.push(format!(
            "a step has {}, too few for {gpus} GPUs: lower `batch.micro`",
            counted(micro_batches, "micro-batch")
        ));
    }
    notes.extend(experiment.unfinished_warmups());
    notes.extend(data.passed_over.clone());
    if let Some(problem) = &data.problem {
        notes.push(format!("a run would be refused: {problem}"));
    }
    if let Some(problem) = &data.hellaswag_problem {
        notes.push(format!(
            "a run would be refused: {problem}; planned as if it had all of HellaSwag's tasks"
        ));
    }
    notes
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::experiment::{largest, shipped};
    use crate::plan::advice::what_fits;
    use crate::plan::data_facts::HELLASWAG_TOKENS;
    use crate::plan::hardware::GpuSpec;

    pub(crate) fn plan(name: &str, gpu: &str, gpus: u64, sets: &[&str]) -> RunPlan {
        let facts = DataFacts { hellaswag_tokens: Some(HELLASWAG_TOKENS), ..DataFacts::default() };
        let target = Target::Gpu(GpuSpec::find(gpu).expect("known"));
        RunPlan::of(&shipped(name, sets), target, Share { devices: gpus }, facts).expect("a plan")
    }

    /// llm.c's published run: 24 hours and $672 for 33.6 billion tokens on 8 H100s at $28 an hour.
    #[test]
    fn the_headline_run_takes_what_llmc_was_measured_to_take_or_less() {
        let too_few = plan("gpt2_33b.toml", "h100", 8, &["parallel.workers=1"]);
        let plan = plan("gpt2_33b.toml", "h100", 8, &[]);
        assert_eq!(plan.work.tokens, 32_000 * 1_048_576);
        let llmc = plan.time.llmc.as_ref().expect("the size is known");
        assert!((llmc.total_s / 3600.0 - 24.0).abs() < 0.75, "{llmc:?}");
        assert!((llmc.dollars - 672.0).abs() < 25.0, "{llmc:?}");
        assert!(plan.time.total_s < llmc.total_s, "ours is faster: {:?}", plan.time);
        assert_eq!(plan.memory.fits, Some(true));
        assert!(
            plan.memory.total_bytes < 60 << 30,
            "ZeRO-1 leaves room: {} MiB",
            plan.memory.total_bytes >> 20
        );
        assert!(plan.notes.is_empty(), "{:?}", plan.notes);
        assert!(too_few.notes[0].contains("`parallel.workers`"), "{:?}", too_few.notes);
    }

    #[test]
    fn what_has_no_price_has_no_dollars_in_json() {
        let dollars = |sets: &[&str]| {
            let time = plan("gpt2_124m.toml", "h100", 1, sets).time;
            serde_json::to_value(time).expect("JSON")["dollars"].as_f64()
        };
        assert!(dollars(&[]) > Some(0.0));
        assert_eq!(dollars(&["plan.dollars_per_gpu_hour=0"]), None);
    }

    #[test]
    fn llmc_has_a_time_for_nothing_that_it_was_not_measured_on() {
        let of = |sets: &[&str]| plan("gpt2_124m.toml", "h100", 1, sets).time.llmc.is_some();
        assert!(of(&[]));
        for other in
            ["batch.seq_len=512", "precision.compute=fp32", "data.tokenizer=byte", "model.qk_norm=true"]
        {
            assert!(!of(&[other]), "{other}");
        }
    }

    #[test]
    fn the_largest_values_of_the_schema_have_a_plan() {
        let keys = [
            "model.layers",
            "model.heads",
            "model.channels",
            "model.context",
            "batch.micro",
            "batch.seq_len",
            "batch.tokens",
            "schedule.steps",
            "data.prefetch",
            "eval.val_tokens",
            "checkpoint.keep_every",
        ];
        let largest = keys.map(|key| format!("{key}={}", largest(key)));
        let often = ["parallel.workers=256", "eval.every=1", "sample.every=1", "optimizer.ema_decay=0.9"];
        let saved = ["checkpoint.every=140737488355327", "checkpoint.keep_last=1"];
        let wider = ["model.positions=rotary", "model.activation=swiglu", "model.qk_norm=true"];
        for more in [&[][..], &wider] {
            let sets = [&largest.each_ref().map(String::as_str)[..], &often, &saved, more].concat();
            let (experiment, target) = (shipped("gpt2_124m.toml", &sets), Target::Cpu { threads: 4096 });
            let plan = RunPlan::of(&experiment, target, Share::ALONE, DataFacts::default()).expect("a plan");
            assert_eq!(
                (plan.memory.total_bytes, plan.work.tokens),
                (u64::MAX, u64::MAX),
                "more than 64 bits"
            );
            assert_eq!((plan.disk.checkpoints_saved, plan.disk.checkpoints_kept), (3, 2));
            let seconds = [plan.time.training_s, plan.time.evaluation_s, plan.time.total_s];
            assert!(seconds.iter().all(|s| s.is_finite() && *s > 1e20), "{seconds:?}");
        }
    }

    #[test]
    fn what_does_not_fit_comes_with_changes_that_fit() {
        let plan = plan("gpt2_33b.toml", "a100-40", 1, &[]);
        assert_eq!(plan.memory.fits, Some(false));
        assert!(!plan.memory.advice.is_empty());
        for advice in &plan.memory.advice {
            assert!(advice.total_bytes <= plan.memory.usable_bytes.expect("a GPU"), "{advice:?}");
        }
    }

    #[test]
    fn a_refusal_names_settings_that_fit() {
        let experiment = shipped("gpt2_124m.toml", &[]);
        let text = what_fits(&experiment, "a GPU of no table", 12 << 30);
        assert!(text.contains("fits: --set batch.micro=") && text.contains("other bits"), "{text}");
        assert!(
            what_fits(&experiment, "NVIDIA H100 80GB HBM3", 1 << 20).contains("no micro-batch"),
            "a megabyte is too little"
        );
    }
}
