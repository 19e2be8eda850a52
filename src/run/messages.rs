//! What a run says while it goes on, as values: the caller of a run decides how they read.

use std::path::Path;
use std::process::ExitStatus;
use std::sync::Arc;

use super::sensors;
use crate::experiment::Experiment;
use crate::parallel::ExchangeError;
use crate::plan::MemoryPlan;
use crate::proof::lock::Difference;
use crate::store::StoreError;
use crate::train::Listener;

/// Takes messages from any thread of a run.
pub trait Reporter: Send + Sync {
    /// Something happened that a person may want to know.
    fn tell(&self, message: &Message<'_>);

    /// Work that may take long begins: what to call with each part of `total` that is done.
    fn progress(&self, work: Work, total: u64) -> Box<dyn Fn(u64) + Sync>;

    /// Who listens to the training of this experiment, and says to the sensors' thread which step it is at.
    fn training(&self, experiment: &Experiment, sensors: Arc<sensors::Shared>) -> Box<dyn Listener>;
}

/// The reporter of a process: threads keep it to its end.
pub type Report = &'static dyn Reporter;

/// Work with a length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Bytes of data whose SHA-256 no earlier run has remembered.
    Hashing,
    /// Steps that are trained again.
    Replaying,
}

/// What a run has to say.
#[derive(Debug)]
pub enum Message<'a> {
    /// A damaged checkpoint is not what the run goes on from.
    CheckpointPassedOver { step: u64, why: &'a StoreError },
    /// The run goes on from the checkpoint of this step; from its start without one.
    Resuming { folder: &'a Path, from: Option<u64> },
    /// The run is finished, and what was asked for changes nothing in it.
    NothingToDo { folder: &'a Path, steps: u64 },
    /// What is about to be trained.
    Training(Summary<'a>),
    /// How tensors on devices are exchanged.
    Exchange(&'a str),
    /// The numerics are equal, what changes no bit differs: from the lock of this name, or the run's own.
    MadeElsewhere { lock: Option<&'a str>, differences: &'a [Difference] },
    /// The state is that of the lock of this name, the ledger has other evaluations.
    OtherEvaluations(&'a str),
    /// A name means a run, though there is a file or folder of that name too.
    RunBeforeFile { name: &'a Path, folder: &'a Path },
    /// Something odd about the data.
    Remark(&'a str),
    /// A file or folder among the checkpoints that is none.
    NotACheckpoint(&'a Path),
    /// The run's files are here.
    Folder(&'a Path),
    /// The GPU's sensors cannot be read.
    NoSensors(&'a str),
    /// GPUs that no power-of-two number of ranks can use.
    GpusLeftOver { used: usize, gpus: usize, workers: usize },
    /// The process that started this rank has ended.
    LauncherGone,
    /// A rank was ended by a signal.
    RankKilled { rank: usize, process: u32, status: ExitStatus },
    /// A rank did not end in time and is killed.
    RankStuck { rank: usize, process: u32 },
    /// Another rank is lost, and this one cannot end by itself.
    RankLost(&'a ExchangeError),
}

/// An experiment in short, before its first step.
#[derive(Debug)]
pub struct Summary<'a> {
    pub experiment: &'a Experiment,
    pub device: String,
    pub train_tokens: u64,
    /// None are validated on without a validation set.
    pub val_tokens: u64,
    pub parameters: u64,
    pub memory: MemoryPlan,
}
