//! What `run` and `resume` share: device, data, records, signals, and the training between them.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use super::console::Console;
use super::events_json::JsonEvents;
use super::exit;
use super::gpu_watch::{self, GpuWatch};
use super::initial::Initial;
use super::locking::{self, Expected, Locked};
use super::past::{self, Past};
use super::plan;
use super::stop;
use super::team::{self, Begin, Team};
use crate::data::{Dataset, Plan, Prefetcher, SampleOrder, Sources, Tokenizer, ValidationSet};
use crate::eval::TaskSet;
use crate::experiment::{self, DeviceKind, Experiment, Loaded, Order};
use crate::model::weights::Weights;
use crate::ops::cuda::{self, Cuda};
use crate::ops::mirror::Mirror;
use crate::ops::{DeviceError, Dtype, Ops, Role, cpu::Cpu};
use crate::parallel::{Exchange, Solo};
use crate::plan::memory::{Category, MemoryPlan, Share, Storage};
use crate::proof::{Ledger, Lock};
use crate::report::{self, PlotOptions, ReportError, RunData};
use crate::store::main_log::MainLogWriter;
use crate::store::metrics::MetricsWriter;
use crate::store::tensorboard::EventWriter;
use crate::store::{self, Retention, RunFolder, RunPaths, Writer, checkpoint};
use crate::train::run::{Outcome, Pending, Records, Run};
use crate::train::{Event, Listener, Trainer};
use crate::units;

/// An experiment with its device, data and folder, ready to train.
pub struct Session {
    pub loaded: Loaded,
    pub device: Device,
    pub data: Data,
    /// The model that training starts from, when it is not noise.
    pub initial: Option<Initial>,
    pub place: Place,
    /// A lock that the run is held to.
    pub expected: Option<Expected>,
    pub team: Team,
    pub json: bool,
}

/// Where a run's files go.
pub enum Place {
    /// A folder that is this run's.
    Open(RunFolder),
    /// The folder of another run, deleted when nothing can refuse this one any more.
    Replace { runs: PathBuf, name: String },
    /// Rank 0's affair, which tells this rank.
    Told,
}

impl Place {
    fn take(self) -> anyhow::Result<Option<RunFolder>> {
        match self {
            Place::Open(folder) => Ok(Some(folder)),
            Place::Replace { runs, name } => Ok(Some(RunFolder::create(&runs, &name, true)?)),
            Place::Told => Ok(None),
        }
    }
}

/// The device an experiment runs on.
pub enum Device {
    Cpu(Cpu),
    Cuda(Box<Cuda>),
    Mirror(Mirror),
}

impl Device {
    /// Opens the device that the experiment names.
    pub fn open(experiment: &Experiment) -> anyhow::Result<Device> {
        Device::open_one(experiment, 0, 1)
    }

    /// Opens this rank's device: the GPU of its number on this machine, or its part of the CPU.
    pub fn open_for(experiment: &Experiment, team: &Team) -> anyhow::Result<Device> {
        let (number, of) = team.local();
        Device::open_one(experiment, number, of)
    }

    fn open_one(experiment: &Experiment, number: usize, of: usize) -> anyhow::Result<Device> {
        let mut cpu = experiment.device.clone();
        if of > 1 && cpu.threads == 0 {
            cpu.threads =
                std::thread::available_parallelism().map_or(1, |threads| threads.get().div_ceil(of));
        }
        let mut options = cuda_options(experiment);
        if let (1.., Ok(gpus)) = (number, cuda::driver::gpus()) {
            // A launcher may show each rank its own GPU alone.
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
}

fn cuda_options(experiment: &Experiment) -> cuda::Options {
    let Experiment { precision, kernels, .. } = experiment;
    let (gelu_fusion, cuda_graph) = (kernels.gelu_fusion, kernels.cuda_graph);
    cuda::Options { compute: precision.compute, gelu_fusion, cuda_graph, ..cuda::Options::default() }
}

/// Where a resumed run goes on.
pub struct Resume {
    /// The newest whole checkpoint; none starts at step 0.
    pub found: Option<store::Loaded>,
    /// Whether what the bits depend on may have changed.
    pub allow_drift: bool,
    /// Whether a key was set that the run's own experiment does not have so.
    pub edited: bool,
}

/// The tokens of an experiment.
pub struct Data {
    pub train: Arc<Dataset>,
    pub validation: Option<ValidationSet>,
    hellaswag: Option<TaskSet>,
    pub tokenizer: Tokenizer,
}

impl Data {
    /// Opens and checks shards, or the embedded corpus, and turns epochs into steps.
    pub fn open(loaded: &mut Loaded) -> anyhow::Result<Data> {
        let experiment = &loaded.experiment;
        let seq_len = experiment.batch.seq_len;
        let Sources { train, val, tokenizer } = Sources::open(&experiment.data, experiment.model.vocab)?;
        let sequences = train.require_sequences(seq_len)?;
        let wanted = val.filter(|_| experiment.eval.every > 0);
        let validation =
            wanted.map(|val| ValidationSet::new(&val, experiment.eval.val_tokens, seq_len)).transpose()?;
        let tasks = experiment.eval.hellaswag.as_ref().filter(|_| experiment.eval.every > 0);
        let hellaswag = tasks
            .map(|path| TaskSet::open(Path::new(path), &tokenizer, experiment.model.vocab, seq_len))
            .transpose()?;
        loaded.resolve_epochs(sequences.get())?;
        Ok(Data { train, validation, hellaswag, tokenizer })
    }
}

impl Session {
    /// Trains to the end, or until asked to stop, on the device that the experiment names.
    pub fn train(self, resume: Option<Resume>) -> anyhow::Result<ExitCode> {
        let Session { loaded, device, data, initial, place, expected, team, json } = self;
        // What is planned is one rank's part.
        let mut experiment = loaded.experiment.clone();
        experiment.parallel.ranks = team.size();
        device.with(
            &experiment,
            Training {
                experiment: experiment.clone(),
                loaded,
                data,
                place,
                expected,
                team,
                json,
                initial,
                resume,
            },
        )
    }
}

/// Work that is the same on every device.
pub trait OnDevice {
    type Output;

    /// Does it. `peak_flops` is the device's peak rate at its precision, where that is known.
    fn on<O: Locked>(
        self,
        ops: O,
        storage: &Storage,
        peak_flops: Option<f64>,
    ) -> anyhow::Result<Self::Output>;
}

impl Device {
    /// Does `work` for an experiment on this device.
    pub fn with<W: OnDevice>(self, experiment: &Experiment, work: W) -> anyhow::Result<W::Output> {
        match self {
            Device::Cpu(cpu) => {
                let storage = cpu_storage(&cpu, experiment);
                work.on(cpu, &storage, None)
            }
            Device::Cuda(cuda) => {
                let storage = Storage::cuda(experiment);
                require_memory(&cuda, experiment, memory_plan(experiment, &storage).total())?;
                let peak_flops = peak_flops(&cuda);
                work.on(*cuda, &storage, peak_flops)
            }
            Device::Mirror(mirror) => work.on(mirror, &Storage::mirror(experiment), None),
        }
    }
}

/// Refuses an experiment that the GPU has no room for, before anything is allocated, with settings that fit.
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
        plan::what_fits(experiment, &gpu.name, free)
    );
}

/// How the CPU stores an experiment.
pub fn cpu_storage(cpu: &Cpu, experiment: &Experiment) -> Storage {
    Storage::cpu(experiment, cpu.threads())
}

/// The GPU's dense bf16 peak, when that is the precision at work and the GPU is known.
pub fn peak_flops(cuda: &Cuda) -> Option<f64> {
    cuda.gpu().peak_bf16_flops().filter(|_| cuda.dtype(Role::Activation) == Dtype::BF16)
}

/// Everything that training allocates.
pub fn memory_plan(experiment: &Experiment, storage: &Storage) -> MemoryPlan {
    MemoryPlan::shared(experiment, storage, Share { devices: experiment.parallel.ranks.max(1) as u64 })
}

/// A session whose device has a type.
struct Training {
    /// As loaded, with the number of ranks at work.
    experiment: Experiment,
    loaded: Loaded,
    data: Data,
    place: Place,
    expected: Option<Expected>,
    team: Team,
    json: bool,
    initial: Option<Initial>,
    resume: Option<Resume>,
}

impl OnDevice for Training {
    type Output = ExitCode;

    fn on<O: Locked>(
        self,
        mut ops: O,
        storage: &Storage,
        peak_flops: Option<f64>,
    ) -> anyhow::Result<ExitCode> {
        let Training { experiment, loaded, data, place, expected, team, json, initial, resume } = self;
        let (first, ranks) = (team.is_first(), team.size());
        let stop = stop::flag(ranks > 1 || super::ranks::is_launched())?;
        if first {
            describe(&experiment, &data, &ops, storage);
        }
        let mut exchange: Box<dyn Exchange<O>> = match team.link {
            Some(link) => ops.join(link)?,
            None => Box::new(Solo),
        };
        let past = Past::of(&place, resume)?;
        // What is still to be chosen, such as algorithms, rank 0 chooses.
        let heard = if first { None } else { Some(team::hear_numerics(exchange.link())?) };
        let locked = expected.as_ref().map(|expected| &expected.lock.numerics);
        let pinned = heard.as_ref().or(locked).or(past.numerics());
        if let Some(numerics) = pinned {
            ops.pin(numerics)?;
        }
        let mut trainer = Trainer::join(ops, &experiment, exchange)?;
        let mut lock = locking::lock(&loaded, &data, initial.as_ref(), &trainer.ops, locking::user_cache())?;
        lock.environment.insert("ranks".into(), ranks.to_string());
        match &heard {
            Some(numerics) => team::require_same(trainer.link().rank(), numerics, &lock.numerics)?,
            None => team::tell_lock(trainer.link(), &lock)?,
        }
        if let Some(expected) = expected.as_ref().filter(|_| first) {
            expected.require(&lock)?;
            expected.tell(&lock);
        }
        let changed = past.changed(&lock)?;
        let lock = past.keep_config(lock);
        let folder = place.take()?;
        if let Some(folder) = &folder {
            anstream::eprintln!("folder: {}", folder.paths.folder().display());
            // The lock first: a folder with an experiment is one that can be resumed.
            store::atomic::write(&folder.paths.lock_file(), lock.to_text().as_bytes())?;
            if !past.resumed || past.edited {
                store::atomic::write(&folder.paths.experiment(), loaded.to_toml().as_bytes())?;
            }
        }
        let begin = folder.as_ref().map(|folder| Begin {
            folder: folder.paths.folder().to_owned(),
            step: past.found.as_ref().map(|(manifest, _)| manifest.step),
        });
        let begin = Begin::agree(trainer.link(), begin)?;
        let paths = RunPaths::new(&begin.folder);
        let found = match (past.found, begin.step) {
            (None, Some(step)) => {
                let folder = paths.checkpoints().join(checkpoint::folder_name(step));
                Some(store::load_some(&folder, |name| trainer.needs(name))?)
            }
            (found, _) => found,
        };
        let (head, saved) =
            found.as_ref().map(|(manifest, _)| (manifest.ledger, manifest.state_root)).unzip();
        match (found, initial) {
            (Some((_, state)), _) => trainer.restore(state)?,
            (None, Some(initial)) => initial.start(&mut trainer)?,
            (None, None) => {}
        }
        // All ranks start from the same bits, or not at all; one rank that begins anew has nothing to
        // compare.
        if ranks > 1 || saved.is_some() {
            let root = trainer.state_root()?;
            if let Some(expected) = saved.filter(|saved| *saved != root) {
                return Err(store::StoreError::RootDiffers {
                    path: paths.checkpoints(),
                    expected,
                    found: root,
                }
                .into());
            }
        }
        let progress = trainer.progress().clone();
        let records = match &folder {
            Some(folder) => {
                let mut records = Records::open(&experiment, folder, head, progress.step, &lock)?;
                changed.write(&mut records, past.resumed.then_some(progress.step))?;
                Some(records)
            }
            None => None,
        };
        let feed = feed_share(&experiment, &data, trainer.share(), progress.step, progress.data_offset)?;
        let sensors = Arc::<gpu_watch::Shared>::default();
        let _watch = folder.as_ref().and_then(|folder| watch_gpu(&experiment, &lock, folder, &sensors));
        let mut listener: Box<dyn Listener> = match (first, json) {
            (false, _) => Box::new(Silence),
            (true, true) => Box::new(JsonEvents { sensors }),
            (true, false) => Box::new(Console::new(experiment.log.every, sensors)),
        };
        let experiment::Checkpoint { keep_last, keep_every, .. } = experiment.checkpoint;
        let writer = Writer::new(&paths.checkpoints(), Retention { keep_last, keep_every });
        let peak_flops = peak_flops.map(|peak| peak * ranks as f64);
        let Data { validation, hellaswag, tokenizer, .. } = data;
        let mut run = Run {
            experiment,
            trainer,
            feed,
            validation,
            hellaswag,
            tokenizer,
            paths,
            writer,
            records,
            stop,
            peak_flops,
        };
        let outcome = match run.finish(listener.as_mut()) {
            Ok(outcome) => outcome,
            Err(error) => {
                run.trainer.link().fail(&error.to_string());
                return Err(error.into());
            }
        };
        run.trainer.link().finish();
        drop(run);
        let Some(folder) = folder else { return Ok(ExitCode::from(exit_code(&outcome))) };

        let plots = draw(&folder).context("the run is whole, but its plot could not be drawn")?;
        for plot in plots.iter().filter(|_| !json) {
            anstream::eprintln!("plot: {}", plot.display());
        }
        if let Outcome::Finished { root } = outcome {
            if !json {
                println!("{root}");
            }
            let lock = past::with_outputs(lock, &folder.paths)?;
            if let Some(expected) = &expected {
                expected.require_outputs(&lock.outputs)?;
            }
        }
        Ok(ExitCode::from(exit_code(&outcome)))
    }
}

fn exit_code(outcome: &Outcome) -> u8 {
    match outcome {
        Outcome::Finished { .. } => 0,
        Outcome::Interrupted { .. } => exit::INTERRUPTED,
        Outcome::Diverged { .. } => exit::DIVERGED,
    }
}

/// The listener of every rank but the first.
struct Silence;

impl Listener for Silence {
    fn on(&mut self, _: &Event) {}
}

/// Reads the sensors of the GPU at work, if that is wanted and there is one.
fn watch_gpu(
    experiment: &Experiment,
    lock: &Lock,
    folder: &RunFolder,
    shared: &Arc<gpu_watch::Shared>,
) -> Option<GpuWatch> {
    let uuid = lock.environment.get("gpu.uuid").filter(|_| experiment.log.gpu_every > 0)?;
    let every = Duration::from_secs(experiment.log.gpu_every);
    GpuWatch::start(uuid, every, &folder.paths.gpu_log(), Arc::clone(shared))
        .inspect_err(|why| anstream::eprintln!("the GPU's sensors cannot be read: {why}"))
        .ok()
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
        lock: &Lock,
    ) -> anyhow::Result<Records> {
        let ledger = match head {
            Some(head) => Ledger::resume(&folder.paths.ledger(), &head).map_err(past::refuse_ledger)?,
            None => {
                let mut ledger = Ledger::open(&folder.paths.ledger()).map_err(past::refuse_ledger)?;
                ledger.truncate_to(0)?;
                ledger
            }
        };
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
            tensorboard: match experiment.log.tensorboard {
                true => Some(EventWriter::resume(&folder.paths.tensorboard(), step)?),
                false => None,
            },
            paths: folder.paths.clone(),
            numerics: lock.numerics.clone(),
            pending: Pending::default(),
        })
    }
}

/// Micro-batches from `step` on, read ahead.
pub fn feed(experiment: &Experiment, data: &Data, step: u64, offset: u64) -> anyhow::Result<Prefetcher> {
    feed_share(experiment, data, 0..experiment.sequences_per_step(), step, offset)
}

/// The same for one rank's share of each step's sequences.
pub fn feed_share(
    experiment: &Experiment,
    data: &Data,
    share: Range<u64>,
    step: u64,
    offset: u64,
) -> anyhow::Result<Prefetcher> {
    let sequences = data.train.require_sequences(experiment.batch.seq_len)?;
    let plan = Plan {
        order: SampleOrder::new(experiment.seed, sequences, experiment.data.order == Order::Shuffled),
        seq_len: experiment.batch.seq_len,
        micro_batch: experiment.batch.micro,
        step_sequences: experiment.sequences_per_step(),
        share,
        overfit_single_batch: experiment.data.overfit_single_batch,
        depth: experiment.data.prefetch,
    };
    Ok(Prefetcher::start(data.train.clone(), plan, step, offset)?)
}

/// The few lines that say what is about to be trained, on what, and in how much memory.
fn describe<O: Ops>(experiment: &Experiment, data: &Data, ops: &O, storage: &Storage) {
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
    match experiment.parallel.ranks {
        0 | 1 => anstream::eprintln!("device: {}", ops.device_name()),
        ranks => anstream::eprintln!("devices: {ranks} ranks, the first {}", ops.device_name()),
    }
    anstream::eprintln!(
        "data: {} training tokens, {} steps of {}, {} to validate on",
        units::thousands(data.train.tokens()),
        units::thousands(experiment.schedule.steps),
        units::thousands(experiment.batch.tokens),
        units::thousands(data.validation.as_ref().map_or(0, ValidationSet::tokens)),
    );
    let samples = plan.category(Category::Samples);
    anstream::eprintln!(
        "memory: {} planned: weights {}, gradients {}, optimizer {}, activations {}{}, scratch {}; {} on the host",
        units::bytes(plan.total()),
        part(Category::Parameters),
        part(Category::Gradients),
        part(Category::Optimizer),
        part(Category::Activations),
        if samples > 0 { format!(", samples {}", units::bytes(samples)) } else { String::new() },
        part(Category::Scratch),
        part(Category::Host),
    );
}
