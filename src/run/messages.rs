//! Messages of a run, as values: the caller of a run decides how they are shown.

use std::path::Path;
use std::process::ExitStatus;
use std::sync::Arc;

use super::sensors;
use crate::data::mixture::SourceUse;
use crate::eval::Benchmark;
use crate::experiment::Experiment;
use crate::parallel::ExchangeError;
use crate::plan::MemoryPlan;
use crate::proof::lock::Difference;
use crate::store::{RunPaths, StoreError};
use crate::train::Listener;

/// Receives messages from any thread of a run.
pub trait Reporter: Send + Sync {
    /// Shows a message.
    fn tell(&self, message: &Message<'_>);

    /// Long work begins; returns a function to call with each part of `total` that is done.
    fn progress(&self, work: LongWork, total: u64) -> Box<dyn Fn(u64) + Sync>;

    /// The listener to the training of this experiment, which also passes the current step to the sensors'
    /// thread.
    fn training(&self, experiment: &Experiment, sensors: Arc<sensors::SharedReadings>) -> Box<dyn Listener>;
}

/// The reporter of a process: threads keep it to its end.
pub type Report = &'static dyn Reporter;

/// Work with a length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LongWork {
    /// Bytes of data whose SHA-256 is not cached.
    Hashing,
    /// Parts of steps that an audit kept.
    Auditing,
    /// Steps that are trained again.
    Replaying,
    /// Sequences whose loss is measured.
    Validating,
    /// Rows of HellaSwag's tasks.
    HellaSwag,
    /// Bytes of checkpoints, from or to another place.
    Copying,
    /// Rows of another task.
    Scoring(Benchmark),
}

/// How the line of [`Message::NotCopied`] begins, by which a sweep finds it in the log of a member.
pub const NOT_COPIED: &str = "not copied to ";

/// A message of a run.
#[derive(Debug)]
pub enum Message<'a> {
    /// A damaged checkpoint was skipped.
    CheckpointPassedOver { step: u64, why: &'a StoreError },
    /// The state of this checkpoint has no root in the ledger that it could be held to.
    CheckpointUnbound { step: u64 },
    /// There is no ledger that this checkpoint could be held to.
    LedgerMissing { step: u64 },
    /// The run, which has made so many steps, is resumed from the checkpoint of this step; without one, from
    /// its start.
    Resuming { folder: &'a Path, from: Option<u64>, made: u64 },
    /// The run is finished, and what was asked for changes nothing in it.
    NothingToDo { folder: &'a Path, steps: u64 },
    /// What is about to be trained.
    Training(ExperimentSummary<'a>),
    /// How tensors on devices are exchanged.
    Exchange(&'a str),
    /// The numerics are equal, what changes no bit differs: from the lock of this name, or the run's own.
    MadeElsewhere { lock: Option<&'a str>, differences: &'a [Difference] },
    /// The state is that of the lock of this name; the ledger has other evaluations.
    OtherEvaluations(&'a str),
    /// A name was taken for a run, though a file or folder of that name exists too.
    RunBeforeFile { name: &'a Path, folder: &'a Path },
    /// A warning.
    Remark(&'a str),
    /// A file or folder among the checkpoints that is not a checkpoint.
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
    /// Checkpoints cannot be copied now; it is tried again.
    CopyFailed { place: &'a str, why: &'a StoreError },
    /// The run ends, and these checkpoints are not copied.
    NotCopied {
        place: &'a str,
        steps: &'a [u64],
        why: &'a StoreError,
        run: &'a RunPaths,
        /// As `runner resume` takes it.
        name: &'a str,
    },
    /// A run was brought back from a copy.
    Fetched { from: &'a str, step: u64, folder: &'a Path },
    /// Another rank has failed, and this one cannot end by itself.
    RankLost(&'a ExchangeError),
}

/// An experiment in short, before its first step.
#[derive(Debug)]
pub struct ExperimentSummary<'a> {
    /// The name of the run: that of its folder.
    pub name: String,
    pub experiment: &'a Experiment,
    pub device: String,
    pub train_tokens: u64,
    /// What the run reads of each source of a mixture.
    pub sources: Vec<SourceUse>,
    /// None are validated on without a validation set.
    pub val_tokens: u64,
    pub parameters: u64,
    pub memory: MemoryPlan,
}
