//! What `run` and `resume` share: device, data, records, signals, and the training between them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;

use super::console::Console;
use super::events_json::JsonEvents;
use super::exit;
use crate::data::{Dataset, Plan, Prefetcher, SampleOrder, Sources, Tokenizer, ValidationSet};
use crate::eval::TaskSet;
use crate::experiment::{self, DeviceKind, Experiment, Loaded, Order};
use crate::model::gpt2::scratch_shape;
use crate::model::plan::{Category, MemoryPlan, Storage};
use crate::model::weights::Weights;
use crate::ops::cuda::{self, Cuda};
use crate::ops::{DeviceError, Dtype, Ops, Role, Rows, ScratchShape, cpu::Cpu};
use crate::proof::Ledger;
use crate::report::{self, PlotOptions, ReportError, RunData};
use crate::store::main_log::MainLogWriter;
use crate::store::metrics::MetricsWriter;
use crate::store::{self, Retention, RunFolder, Writer};
use crate::train::run::{Outcome, Records, Run};
use crate::train::{Listener, Trainer};
use crate::units;

/// An experiment with its device, data and folder, ready to train.
pub struct Session {
    pub experiment: Experiment,
    pub device: Device,
    pub data: Data,
    pub folder: RunFolder,
    pub json: bool,
}

/// The device an experiment runs on.
pub enum Device {
    Cpu(Cpu),
    Cuda(Box<Cuda>),
}

impl Device {
    /// Opens the device that the experiment names.
    pub fn open(experiment: &Experiment) -> anyhow::Result<Device> {
        match experiment.device.kind {
            DeviceKind::Cpu => Ok(Device::Cpu(Cpu::new(&experiment.device)?)),
            DeviceKind::Cuda => Ok(Device::Cuda(Box::new(Cuda::open(&cuda_options(experiment))?))),
            DeviceKind::Auto => match Cuda::open(&cuda_options(experiment)) {
                Ok(cuda) => Ok(Device::Cuda(Box::new(cuda))),
                Err(DeviceError::Unavailable(_)) => Ok(Device::Cpu(Cpu::new(&experiment.device)?)),
                Err(error) => Err(error.into()),
            },
        }
    }
}

fn cuda_options(experiment: &Experiment) -> cuda::Options {
    let Experiment { precision, kernels, .. } = experiment;
    cuda::Options { compute: precision.compute, gelu_fusion: kernels.gelu_fusion, ..cuda::Options::default() }
}

/// Where a resumed run goes on.
pub struct Resume {
    /// The newest whole checkpoint; none starts at step 0.
    pub found: Option<store::Loaded>,
    /// What the bits depend on and has changed, by leave of the user.
    pub drift: Vec<String>,
}

/// The tokens of an experiment.
pub struct Data {
    train: Arc<Dataset>,
    validation: Option<ValidationSet>,
    hellaswag: Option<TaskSet>,
    tokenizer: Tokenizer,
}

impl Data {
    /// Opens and checks shards, or the embedded corpus, and turns epochs into steps.
    pub fn open(loaded: &mut Loaded) -> anyhow::Result<Data> {
        let experiment = &loaded.experiment;
        let seq_len = experiment.batch.seq_len;
        let Sources { train, val, tokenizer } = Sources::open(&experiment.data, experiment.model.vocab)?;
        let sequences = train.require_sequences(seq_len)?;
        let wanted = val.filter(|_| experiment.eval.every > 0);
        let validation = wanted.map(|val| ValidationSet::new(&val, experiment.eval.val_tokens, seq_len)).transpose()?;
        let tasks = experiment.eval.hellaswag.as_ref().filter(|_| experiment.eval.every > 0);
        let hellaswag =
            tasks.map(|path| TaskSet::open(Path::new(path), &tokenizer, experiment.model.vocab, seq_len)).transpose()?;
        loaded.resolve_epochs(sequences.get())?;
        Ok(Data { train, validation, hellaswag, tokenizer })
    }
}

/// What the bits of a run depend on, key by key.
pub fn numerics(experiment: &Experiment) -> BTreeMap<String, String> {
    experiment::flatten(experiment)
        .into_iter()
        .filter(|(key, _)| experiment::reaches_the_bits(key))
        .map(|(key, value)| (key, value.to_string()))
        .collect()
}

impl Session {
    /// Trains to the end, or until asked to stop, on the device that the experiment names.
    pub fn train(self, resume: Option<Resume>) -> anyhow::Result<ExitCode> {
        let Session { experiment, device, data, folder, json } = self;
        match device {
            Device::Cpu(cpu) => {
                let storage = cpu_storage(&cpu, &experiment);
                Prepared { experiment, data, folder, json }.on(cpu, &storage, None, resume)
            }
            Device::Cuda(cuda) => {
                let storage = cuda_storage(&cuda, &experiment);
                cuda.require_free(&experiment.name, memory_plan(&experiment, &storage).total())?;
                let peak_flops = peak_flops(&cuda);
                Prepared { experiment, data, folder, json }.on(*cuda, &storage, peak_flops, resume)
            }
        }
    }
}

/// How the CPU stores an experiment.
pub fn cpu_storage(cpu: &Cpu, experiment: &Experiment) -> Storage {
    Storage { param: Dtype::F32, activation: Dtype::F32, masters: false, scratch: cpu.scratch_plan(&training_shape(experiment)) }
}

/// How a GPU stores an experiment at its precision.
pub fn cuda_storage(cuda: &Cuda, experiment: &Experiment) -> Storage {
    let (param, activation) = (cuda.dtype(Role::Param), cuda.dtype(Role::Activation));
    let masters = param != Dtype::F32 && experiment.precision.master_weights;
    Storage { param, activation, masters, scratch: cuda.scratch_plan(&training_shape(experiment)) }
}

/// The GPU's dense bf16 peak, when that is the precision at work and the GPU is known.
pub fn peak_flops(cuda: &Cuda) -> Option<f64> {
    cuda.gpu().peak_bf16_flops().filter(|_| cuda.dtype(Role::Activation) == Dtype::BF16)
}

/// Everything that training allocates.
pub fn memory_plan(experiment: &Experiment, storage: &Storage) -> MemoryPlan {
    MemoryPlan::of(experiment, storage)
}

fn training_shape(experiment: &Experiment) -> ScratchShape {
    let rows = Rows { batch: experiment.batch.micro, seq: experiment.batch.seq_len };
    scratch_shape(&experiment.model, rows, true)
}

/// The part of a session that does not depend on the device's type.
struct Prepared {
    experiment: Experiment,
    data: Data,
    folder: RunFolder,
    json: bool,
}

impl Prepared {
    fn on<O: Ops>(self, ops: O, storage: &Storage, peak_flops: Option<f64>, resume: Option<Resume>) -> anyhow::Result<ExitCode> {
        let Prepared { experiment, data, folder, json } = self;
        let stop = stop_flag()?;
        describe(&experiment, &folder, &data, &ops, storage);

        let mut trainer = Trainer::new(ops, &experiment)?;
        let mut head = None;
        let mut drift = Vec::new();
        let resumed = resume.is_some();
        if let Some(Resume { found, drift: changed }) = resume {
            drift = changed;
            if let Some((manifest, state)) = found {
                trainer.restore(state)?;
                head = Some(manifest.ledger);
            }
        }
        let progress = trainer.progress().clone();
        let records = Records::open(&experiment, &folder, head, progress.step, resumed, &drift)?;
        let feed = feed(&experiment, &data, progress.step, progress.data_offset)?;
        let mut listener: Box<dyn Listener> =
            if json { Box::new(JsonEvents) } else { Box::new(Console::new(experiment.log.every)) };
        let Data { validation, hellaswag, tokenizer, .. } = data;
        let run = Run { experiment, trainer, feed, validation, hellaswag, tokenizer, records, stop, peak_flops };
        let outcome = run.finish(listener.as_mut())?;

        let plots = draw(&folder).context("the run is whole, but its plot could not be drawn")?;
        for plot in plots.iter().filter(|_| !json) {
            anstream::eprintln!("plot: {}", plot.display());
        }
        Ok(ExitCode::from(match outcome {
            Outcome::Finished { root } => {
                if !json {
                    println!("{root}");
                }
                0
            }
            Outcome::Interrupted { .. } => exit::INTERRUPTED,
            Outcome::Diverged { .. } => exit::DIVERGED,
        }))
    }
}

fn draw(folder: &RunFolder) -> Result<Vec<PathBuf>, ReportError> {
    let run = RunData::from_folder(folder.paths.folder())?;
    report::plot_runs(&[run], &PlotOptions::default(), &folder.paths.plots())
}

impl Records {
    /// Opens the files of a run at `step`, dropping what they say of later steps: it will come again.
    fn open(
        experiment: &Experiment,
        folder: &RunFolder,
        head: Option<crate::proof::Head>,
        step: u64,
        resumed: bool,
        drift: &[String],
    ) -> anyhow::Result<Records> {
        let mut ledger = match head {
            Some(head) => Ledger::resume(&folder.paths.ledger(), &head)?,
            None => {
                let mut ledger = Ledger::open(&folder.paths.ledger())?;
                ledger.truncate_to(0)?;
                ledger
            }
        };
        if resumed {
            ledger.note("resume", &format!("at step {step}"))?;
        }
        for change in drift {
            ledger.note("drift", change)?;
        }
        let run = folder.paths.folder();
        Ok(Records {
            ledger,
            // A run that was killed before its first row has no files to go on with.
            metrics: if folder.paths.metrics_jsonl().exists() {
                MetricsWriter::resume(run, step)?
            } else {
                MetricsWriter::create(run)?
            },
            main_log: if folder.paths.main_log().exists() {
                MainLogWriter::resume(run, step)?
            } else {
                MainLogWriter::create(run)?
            },
            paths: folder.paths.clone(),
            writer: Writer::new(
                &folder.paths.checkpoints(),
                Retention { keep_last: experiment.checkpoint.keep_last, keep_every: experiment.checkpoint.keep_every },
            ),
            numerics: numerics(experiment),
        })
    }
}

/// Micro-batches from `step` on, read ahead.
pub fn feed(experiment: &Experiment, data: &Data, step: u64, offset: u64) -> anyhow::Result<Prefetcher> {
    let sequences = data.train.require_sequences(experiment.batch.seq_len)?;
    let plan = Plan {
        order: SampleOrder::new(experiment.seed, sequences, experiment.data.order == Order::Shuffled),
        seq_len: experiment.batch.seq_len,
        micro_batch: experiment.batch.micro,
        step_sequences: experiment.sequences_per_step(),
        share: 0..experiment.sequences_per_step(),
        overfit_single_batch: experiment.data.overfit_single_batch,
        depth: experiment.data.prefetch,
    };
    Ok(Prefetcher::start(data.train.clone(), plan, step, offset)?)
}

/// A flag that the first SIGINT or SIGTERM sets; the second exits at once.
fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, i32::from(exit::INTERRUPTED), stop.clone())?;
        signal_hook::flag::register(signal, stop.clone())?;
    }
    Ok(stop)
}

/// The few lines that say what is about to be trained, on what, and in how much memory.
fn describe<O: Ops>(experiment: &Experiment, folder: &RunFolder, data: &Data, ops: &O, storage: &Storage) {
    let m = &experiment.model;
    let plan = memory_plan(experiment, storage);
    let part = |category| units::bytes(plan.category(category));
    anstream::eprintln!(
        "{}: GPT-2 with {} parameters: {} layers, {} heads, {} channels, {} tokens of context",
        experiment.name,
        units::count(Weights::of(m).parameters()),
        m.layers,
        m.heads,
        m.channels,
        m.context,
    );
    anstream::eprintln!("device: {}", ops.device_name());
    anstream::eprintln!(
        "data: {} training tokens, {} steps of {}, {} to validate on",
        units::thousands(data.train.tokens()),
        units::thousands(experiment.schedule.steps),
        units::thousands(experiment.batch.tokens),
        units::thousands(data.validation.as_ref().map_or(0, ValidationSet::tokens)),
    );
    anstream::eprintln!(
        "memory: {} planned: weights {}, gradients {}, optimizer {}, activations {}, scratch {}",
        units::bytes(plan.total()),
        part(Category::Parameters),
        part(Category::Gradients),
        part(Category::Optimizer),
        part(Category::Activations),
        part(Category::Scratch),
    );
    anstream::eprintln!("folder: {}", folder.paths.folder().display());
}
