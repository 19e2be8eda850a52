//! `runner plan EXPERIMENT`: what a run will take, in memory, time, money and disk, before anything is
//! started.
//!
//! Needs neither the GPU nor the data. Memory is the trainer's own plan ([`MemoryPlan`]); time is [`cost`] at
//! rates measured on an H100, and an estimate anywhere else. What this file decides: which device is meant,
//! how often things happen in a run, and what they add up to.

mod advice;
pub use advice::what_fits;
mod text;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{bail, ensure};
use serde::Serialize;

use self::advice::Advice;
use super::stdout;
use crate::data::{Sources, Tokenizer};
use crate::eval::TaskSet;
use crate::experiment::{self, Checkpoint, Compute, DeviceKind, Experiment, Loaded};
use crate::model::flops::flops_per_token;
use crate::model::weights::Weights;
use crate::ops::cuda::driver;
use crate::plan::cost::{Cost, Place, cost};
use crate::plan::hardware::{GPUS, Gpu, H100};
use crate::plan::memory::{Category, MemoryPlan, PlanEntry, Share, Storage, state_bytes};

/// Say what a run will take: memory, steps, time, money, disk. Needs no GPU and no data.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  runner plan experiments/gpt2_33b.toml --gpu h100 --gpus 8
  runner plan experiments/gpt2_124m.toml --gpu rtx4090 --set batch.micro=16
  runner plan experiments/gpt2_124m.toml --json | jq .memory.total_bytes")]
pub struct Args {
    /// The experiment's TOML file.
    experiment: PathBuf,
    /// Set a key, over file and environment. May be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Plan for this GPU: h100, h100-pcie, h200, gh200, b200, a100, a100-40, l40s, a10, l4, rtx4090, rtx3090,
    /// or `cpu`. By default this machine's GPU; without one, h100 for an experiment on CUDA and else this
    /// CPU.
    #[arg(long, value_name = "GPU")]
    gpu: Option<String>,
    /// How many of them, in one machine.
    #[arg(long, value_name = "N", default_value_t = 1)]
    gpus: u64,
    /// Print the plan as JSON on stdout.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut loaded = experiment::load(&args.experiment, &args.set)?;
    let place = place(args.gpu.as_deref(), &loaded.experiment)?;
    let share = Share { devices: args.gpus };
    ensure!(
        args.gpus.is_power_of_two(),
        "`--gpus` is {}, expected a power of two: it divides the virtual workers",
        args.gpus
    );
    if let Place::Cpu { .. } = place {
        ensure!(
            args.gpus == 1,
            "`--gpus` is {}, but the plan is for a CPU\n  hint: name the GPU with `--gpu h100`",
            args.gpus
        );
    }
    let data = DataFacts::look(&mut loaded)?;
    let plan = Plan::of(&loaded.experiment, place, share, data)?;
    let text = if args.json { serde_json::to_string_pretty(&plan)? + "\n" } else { plan.to_text() };
    stdout::write(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Which device the plan is for.
fn place(name: Option<&str>, experiment: &Experiment) -> anyhow::Result<Place> {
    let cpu = || {
        let here = std::thread::available_parallelism().map_or(1, usize::from);
        Place::Cpu { threads: if experiment.device.threads == 0 { here } else { experiment.device.threads } }
    };
    match name {
        Some("cpu") => Ok(cpu()),
        Some(name) => match Gpu::find(name) {
            Some(gpu) => Ok(Place::Gpu(gpu)),
            None => {
                let known: Vec<&str> = GPUS.iter().map(|gpu| gpu.key).collect();
                bail!("no GPU is known as `{name}`\n  hint: `--gpu` takes {}, or cpu", known.join(", "))
            }
        },
        None if matches!(experiment.device.kind, DeviceKind::Cpu | DeviceKind::Mirror) => Ok(cpu()),
        None => {
            let here = driver::gpus().ok().and_then(|gpus| Gpu::find(&gpus.first()?.name));
            Ok(match (here, experiment.device.kind) {
                (Some(gpu), _) => Place::Gpu(gpu),
                (None, DeviceKind::Cuda) => Place::Gpu(H100),
                (None, _) => cpu(),
            })
        }
    }
}

/// What can be known of the data: they need not be there yet.
#[derive(Debug, Default, Serialize)]
struct DataFacts {
    train_tokens: Option<u64>,
    val_tokens: Option<u64>,
    hellaswag_tokens: Option<u64>,
    /// Why the data could not be looked at.
    problem: Option<String>,
}

/// Tokens that scoring all of HellaSwag reads, 10,042 tasks in both wordings, while the file is not there.
const HELLASWAG_TOKENS: u64 = 6_094_168;

impl DataFacts {
    /// Looks at headers and lengths, and turns epochs into steps.
    fn look(loaded: &mut Loaded) -> anyhow::Result<DataFacts> {
        let mut facts = DataFacts::default();
        let experiment = &loaded.experiment;
        match Sources::open(&experiment.data, experiment.model.vocab) {
            Ok(Sources { train, val, .. }) => {
                facts.train_tokens = Some(train.tokens());
                facts.val_tokens = val.map(|val| val.tokens());
                let sequences = train.require_sequences(experiment.batch.seq_len)?;
                loaded.resolve_epochs(sequences.get())?;
            }
            Err(problem) if loaded.epochs.is_some() => {
                bail!("`schedule.epochs` becomes steps only with the data at hand: {problem}")
            }
            Err(problem) => {
                let problem = problem.to_string();
                facts.problem = problem.lines().next().map(str::to_owned);
            }
        }
        let experiment = &loaded.experiment;
        if let Some(path) = &experiment.eval.hellaswag {
            let tokenizer = Tokenizer::new(experiment.data.tokenizer);
            let set =
                TaskSet::open(Path::new(path), &tokenizer, experiment.model.vocab, experiment.batch.seq_len);
            facts.hellaswag_tokens = Some(set.map_or(HELLASWAG_TOKENS, |set| set.tokens()));
        }
        Ok(facts)
    }
}

/// Everything that the plan says.
#[derive(Debug, Serialize)]
struct Plan {
    experiment: String,
    model: ModelFacts,
    device: DeviceFacts,
    memory: Memory,
    work: Work,
    time: Time,
    disk: Disk,
    data: DataFacts,
    /// What is assumed, or must be changed first.
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ModelFacts {
    parameters: u64,
    layers: usize,
    heads: usize,
    channels: usize,
    context: usize,
    /// To train on one token: 6 N + 6 L C T.
    flops_per_token: f64,
}

#[derive(Debug, Serialize)]
struct DeviceFacts {
    name: String,
    count: u64,
    precision: &'static str,
    /// Whether the rates were measured on this device; else they are scaled from an H100's.
    measured: bool,
}

/// Bytes of one device.
#[derive(Debug, Serialize)]
struct Memory {
    entries: Vec<PlanEntry>,
    total_bytes: u64,
    /// What the device has, less what the driver takes; not known for the CPU.
    usable_bytes: Option<u64>,
    fits: Option<bool>,
    /// On the host, of one device.
    host_bytes: u64,
    advice: Vec<Advice>,
}

#[derive(Debug, Serialize)]
struct Work {
    steps: u64,
    tokens_per_step: u64,
    micro_steps_per_device: u64,
    tokens: u64,
    flops: f64,
    epochs: Option<f64>,
}

/// Milliseconds of a step, seconds and dollars of the run.
#[derive(Debug, Serialize)]
struct Time {
    gradients_ms: f64,
    update_ms: f64,
    digest_ms: f64,
    exchange_ms: f64,
    step_ms: f64,
    tokens_per_s: f64,
    mfu: Option<f64>,
    training_s: f64,
    evaluations: u64,
    evaluation_s: f64,
    total_s: f64,
    dollars_per_hour: f64,
    dollars: f64,
    reference: Option<ReferenceTime>,
}

/// The same run at the speed that llm.c was measured at on an H100; training alone.
#[derive(Debug, Serialize)]
struct ReferenceTime {
    tokens_per_s_per_gpu: f64,
    total_s: f64,
    dollars: f64,
}

#[derive(Debug, Serialize)]
struct Disk {
    checkpoint_bytes: u64,
    checkpoints_saved: u64,
    /// At most at one time: what is kept, and the one being written.
    checkpoints_kept: u64,
    records_bytes: u64,
    total_bytes: u64,
}

/// llm.c with cuDNN on an H100, tokens a second and GPU by layers and channels: docs/log.md.
const REFERENCE: [(usize, usize, f64); 2] = [(12, 768, 533_500.0), (48, 1600, 49_550.0)];
/// Metrics in both forms, ledger, main.log and TensorBoard's events of a step.
const RECORD_BYTES: u64 = 1_600;

impl Plan {
    fn of(experiment: &Experiment, place: Place, share: Share, data: DataFacts) -> anyhow::Result<Plan> {
        let storage = storage(experiment, place);
        let memory = MemoryPlan::shared(experiment, &storage, share);
        let cost = cost(experiment, &storage, place, share)?;
        let usable_bytes = usable_bytes(place);
        let steps = experiment.schedule.steps;
        let tokens = steps * experiment.batch.tokens;
        let flops = flops_per_token(&experiment.model, experiment.batch.seq_len);
        let m = &experiment.model;
        Ok(Plan {
            experiment: experiment.name.clone(),
            model: ModelFacts {
                parameters: Weights::of(m).parameters(),
                layers: m.layers,
                heads: m.heads,
                channels: m.channels,
                context: m.context,
                flops_per_token: flops,
            },
            device: DeviceFacts::of(experiment, place, share),
            memory: Memory {
                total_bytes: memory.total(),
                usable_bytes,
                fits: usable_bytes.map(|usable| memory.total() <= usable),
                host_bytes: memory.category(Category::Host),
                advice: match usable_bytes {
                    Some(usable) if memory.total() > usable => {
                        advice::advice(experiment, place, share, usable)?
                    }
                    _ => Vec::new(),
                },
                entries: memory.entries,
            },
            work: Work {
                steps,
                tokens_per_step: experiment.batch.tokens,
                micro_steps_per_device: experiment
                    .sequences_per_step()
                    .div_ceil(experiment.batch.micro as u64 * share.devices),
                tokens,
                flops: flops * tokens as f64,
                epochs: data.train_tokens.map(|have| tokens as f64 / have as f64),
            },
            time: Time::of(experiment, place, share, &cost, &data, state_bytes(experiment, &storage)),
            disk: Disk::of(experiment, state_bytes(experiment, &storage)),
            notes: notes(experiment, share),
            data,
        })
    }
}

fn storage(experiment: &Experiment, place: Place) -> Storage {
    match place {
        Place::Cpu { threads } => Storage::cpu(experiment, threads),
        Place::Gpu(_) => Storage::cuda(experiment),
    }
}

fn usable_bytes(place: Place) -> Option<u64> {
    match place {
        Place::Cpu { .. } => None,
        Place::Gpu(gpu) => Some(gpu.usable_bytes()),
    }
}

fn notes(experiment: &Experiment, share: Share) -> Vec<String> {
    let mut notes = Vec::new();
    let (workers, gpus) = (experiment.parallel.workers as u64, share.devices);
    if workers < gpus {
        notes
            .push(format!("`parallel.workers` is {workers}: {gpus} GPUs need {gpus}, which changes bits; planned as if it were"));
    }
    let micro_batches = experiment.sequences_per_step() / experiment.batch.micro as u64;
    if micro_batches < gpus {
        notes.push(format!(
            "a step has {micro_batches} micro-batches, too few for {gpus} GPUs: lower `batch.micro`"
        ));
    }
    notes
}

impl DeviceFacts {
    fn of(experiment: &Experiment, place: Place, share: Share) -> DeviceFacts {
        let precision = match (place, experiment.precision.compute) {
            (Place::Cpu { .. }, _) | (_, Compute::Fp32) => "fp32",
            (_, Compute::Tf32) => "tf32",
            (_, Compute::Auto | Compute::Bf16) => "bf16",
        };
        let (name, measured) = match place {
            Place::Cpu { threads } => (format!("CPU, {threads} threads"), false),
            Place::Gpu(gpu) => {
                (gpu.name.to_owned(), gpu.is_measured() && precision == "bf16" && share.devices == 1)
            }
        };
        DeviceFacts { name, count: share.devices, precision, measured }
    }
}

impl Time {
    fn of(
        experiment: &Experiment,
        place: Place,
        share: Share,
        cost: &Cost,
        data: &DataFacts,
        state_bytes: u64,
    ) -> Time {
        let step_s = cost.step.total();
        let (steps, tokens) = (experiment.schedule.steps as f64, experiment.batch.tokens as f64);
        let tokens_per_s = tokens / step_s;
        let flops = flops_per_token(&experiment.model, experiment.batch.seq_len);
        let evaluations = match experiment.eval.every {
            0 => 0,
            every => experiment.schedule.steps.div_ceil(every) + 1,
        };
        let micro_tokens = (experiment.batch.micro * experiment.batch.seq_len) as u64;
        let val_tokens =
            data.val_tokens.map_or(experiment.eval.val_tokens, |have| have.min(experiment.eval.val_tokens));
        let read = val_tokens + data.hellaswag_tokens.unwrap_or(0);
        let evaluation_s =
            (evaluations * read.div_ceil(micro_tokens)) as f64 * cost.forward / share.devices as f64;
        let training_s = steps * step_s;
        // The trainer waits for the copy of the state to the host; writing goes on behind its back.
        let copies_s =
            Disk::saves(&experiment.checkpoint, experiment.schedule.steps) as f64 * state_bytes as f64 / 10e9;
        let total_s = training_s + evaluation_s + copies_s / share.devices as f64;
        let price = match place {
            Place::Cpu { .. } => 0.0,
            Place::Gpu(_) => experiment.plan.dollars_per_gpu_hour * share.devices as f64,
        };
        let reference = REFERENCE
            .iter()
            .find(|(layers, channels, _)| {
                (*layers, *channels) == (experiment.model.layers, experiment.model.channels)
            })
            .filter(|_| matches!(place, Place::Gpu(gpu) if gpu.is_measured()))
            .map(|(_, _, speed)| {
                let total_s = steps * tokens / (speed * share.devices as f64);
                ReferenceTime { tokens_per_s_per_gpu: *speed, total_s, dollars: price * total_s / 3600.0 }
            });
        let peak = match place {
            Place::Gpu(gpu) if matches!(experiment.precision.compute, Compute::Auto | Compute::Bf16) => {
                Some(gpu.bf16() * share.devices as f64)
            }
            _ => None,
        };
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
            dollars_per_hour: price,
            dollars: price * total_s / 3600.0,
            reference,
        }
    }
}

impl Disk {
    fn of(experiment: &Experiment, state_bytes: u64) -> Disk {
        let steps = experiment.schedule.steps;
        let saved = Disk::saves(&experiment.checkpoint, steps);
        let kept = Disk::kept(&experiment.checkpoint, steps);
        // Names, shapes and digests of a few hundred tensors.
        let checkpoint_bytes = state_bytes + (256 << 10);
        let records_bytes = steps * RECORD_BYTES;
        Disk {
            checkpoint_bytes,
            checkpoints_saved: saved,
            checkpoints_kept: kept,
            records_bytes,
            total_bytes: kept * checkpoint_bytes + records_bytes,
        }
    }

    /// Checkpoints that a run saves: every so many steps, and the last.
    fn saves(checkpoint: &Checkpoint, steps: u64) -> u64 {
        match checkpoint.every {
            0 => 1,
            every => steps.div_ceil(every),
        }
    }

    /// Checkpoints on the disk at the worst moment: before the oldest goes, the newest is there.
    fn kept(checkpoint: &Checkpoint, steps: u64) -> u64 {
        let saved = Disk::saves(checkpoint, steps);
        let last = checkpoint.keep_last as u64;
        if last == 0 || saved <= last {
            return saved;
        }
        let older = saved - last;
        let forever = match (checkpoint.keep_every, checkpoint.every) {
            (0, _) | (_, 0) => 0,
            (keep, every) => older * every / (keep / gcd(keep, every) * every),
        };
        last + forever + u64::from(forever < older)
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::shipped;

    fn plan(name: &str, gpu: &str, gpus: u64, sets: &[&str]) -> Plan {
        let facts = DataFacts { hellaswag_tokens: Some(HELLASWAG_TOKENS), ..DataFacts::default() };
        let place = Place::Gpu(Gpu::find(gpu).expect("known"));
        Plan::of(&shipped(name, sets), place, Share { devices: gpus }, facts).expect("a plan")
    }

    /// The recipe: 24 hours and $672 for 33.6 billion tokens on 8 H100s at $28 an hour.
    #[test]
    fn the_headline_run_comes_out_near_the_reference() {
        let too_few = plan("gpt2_33b.toml", "h100", 8, &["parallel.workers=1"]);
        let plan = plan("gpt2_33b.toml", "h100", 8, &[]);
        assert_eq!(plan.work.tokens, 32_000 * 1_048_576);
        let reference = plan.time.reference.as_ref().expect("the size is known");
        assert!((reference.total_s / 3600.0 - 24.0).abs() < 0.75, "{reference:?}");
        assert!((reference.dollars - 672.0).abs() < 25.0, "{reference:?}");
        assert!(plan.time.total_s < reference.total_s, "ours is faster: {:?}", plan.time);
        assert_eq!(plan.memory.fits, Some(true));
        assert!(
            plan.memory.total_bytes < 60 << 30,
            "ZeRO-1 leaves room: {} MiB",
            plan.memory.total_bytes >> 20
        );
        assert!(plan.notes.is_empty(), "{:?}", plan.notes);
        assert!(too_few.notes[0].contains("`parallel.workers`"), "{:?}", too_few.notes);
        let text = plan.to_text();
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn what_does_not_fit_comes_with_changes_that_fit() {
        let plan = plan("gpt2_33b.toml", "a100-40", 1, &[]);
        assert_eq!(plan.memory.fits, Some(false));
        assert!(!plan.memory.advice.is_empty());
        for advice in &plan.memory.advice {
            assert!(advice.total_bytes <= plan.memory.usable_bytes.expect("a GPU"), "{advice:?}");
        }
        let text = plan.to_text();
        assert!(
            text.contains("does not fit") && text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
    }

    #[test]
    fn a_refusal_names_settings_that_fit() {
        let experiment = shipped("gpt2_124m.toml", &[]);
        let text = what_fits(&experiment, "a GPU that nobody knows", 12 << 30);
        assert!(text.contains("fits: --set batch.micro=") && text.contains("other bits"), "{text}");
        assert!(
            what_fits(&experiment, "NVIDIA H100 80GB HBM3", 1 << 20).contains("no micro-batch"),
            "a megabyte is too little"
        );
    }

    #[test]
    fn retention_decides_what_lies_on_the_disk() {
        let checkpoint = |every, keep_last, keep_every| Checkpoint { every, keep_last, keep_every };
        for (policy, steps, saves, kept) in [
            (checkpoint(2000, 0, 0), 32_000, 16, 16),
            (checkpoint(0, 0, 0), 100, 1, 1),
            (checkpoint(30, 0, 0), 100, 4, 4),
            (checkpoint(10, 2, 0), 100, 10, 3),
            (checkpoint(10, 2, 20), 100, 10, 2 + 4 + 1),
            (checkpoint(10, 20, 0), 100, 10, 10),
        ] {
            assert_eq!(
                (Disk::saves(&policy, steps), Disk::kept(&policy, steps)),
                (saves, kept),
                "{policy:?}"
            );
        }
    }

    #[test]
    fn an_unknown_gpu_is_refused_with_those_that_are_known() {
        let error = place(Some("h9000"), &shipped("ci.toml", &[])).expect_err("no such GPU").to_string();
        assert!(error.contains("`h9000`") && error.contains("h100, h100-pcie"), "{error}");
        assert!(
            matches!(place(None, &shipped("ci.toml", &[])), Ok(Place::Cpu { .. })),
            "its device is the CPU"
        );
    }
}
