//! The third step of a run: the state of its first step, then its folder and its records. What can be refused
//! is refused before anything is written.

use std::sync::Arc;
use std::time::Duration;

use super::agree::Agreed;
use super::copies::Copier;
use super::error::refuse_ledger;
use super::expected::Expected;
use super::initial::Initial;
use super::messages::{Message, Report};
use super::sensors::{self, GpuWatch};
use super::team::Begin;
use crate::experiment::{self, Experiment};
use crate::ops::Ops;
use crate::proof::{Lock, entry, ledger};
use crate::store::{
    self, LoadedCheckpoint, Records, RecordsError, Retention, RunFolder, RunPaths, StoreError, Writer,
    checkpoint,
};
use crate::train::finite::LastState;
use crate::train::run::Run;
use crate::train::{Recorder, Trainer};

/// A run that is about to make its next step.
pub struct Prepared<O: Ops> {
    pub(super) run: Run<O>,
    /// Records the run; on rank 0.
    pub(super) recorder: Option<Recorder>,
    /// What only rank 0 has.
    pub(super) kept: Option<Kept>,
    /// What the sensors' thread and the listener share.
    pub(super) sensors: Arc<sensors::SharedReadings>,
    /// Reads the GPU's sensors until it is dropped.
    pub(super) watch: Option<GpuWatch>,
    /// Copies the checkpoints; on rank 0, if they are to be.
    pub(super) copier: Option<Copier>,
    pub(super) report: Report,
}

/// The folder of a run, its own lock, and the one that it must match.
pub struct Kept {
    pub(super) folder: RunFolder,
    pub(super) lock: Lock,
    pub(super) expected: Option<Expected>,
}

impl<O: Ops> Prepared<O> {
    /// Loads the state, takes the folder, opens the records. `peak_flops` is the peak rate of one device.
    ///
    /// # Errors
    /// Files cannot be read or written; a checkpoint or the ledger is damaged; ranks differ in their states.
    pub fn of(agreed: Agreed<O>, peak_flops: Option<f64>) -> anyhow::Result<Prepared<O>> {
        let Agreed { experiment, loaded, data, initial, destination, .. } = agreed;
        let Agreed { expected, past, changed, lock, mut trainer, stop, report, .. } = agreed;
        let begin = destination
            .path()
            .map(|folder| Begin { folder, step: past.found.as_ref().map(|(manifest, _)| manifest.step) });
        let begin = Begin::agree(trainer.link(), begin)?;
        let paths = RunPaths::new(&begin.folder);
        let found = match (past.found, begin.step) {
            (None, Some(step)) => {
                let folder = paths.checkpoints().join(checkpoint::folder_name(step));
                Some(store::load_some(&folder, &|name| trainer.needs(name))?)
            }
            (found, _) => found,
        };
        let head = found.as_ref().map(|(manifest, _)| manifest.ledger);
        begin_state(&mut trainer, found, initial, &paths)?;
        let progress = trainer.progress().clone();
        let feed = data.feed_share(&experiment, trainer.share(), progress.step, progress.data_offset)?;
        if past.resumed {
            Records::require(&paths, head, progress.step).map_err(refuse_records)?;
        }
        // Nothing was written up to here, so that a refusal leaves all as it was.
        let folder = destination.take()?;
        let begin_files = |folder: &RunFolder| -> anyhow::Result<Recorder> {
            let write_lock = || store::atomic::write(&folder.paths.lock_file(), lock.to_text().as_bytes());
            let write_experiment =
                || store::atomic::write(&folder.paths.experiment(), loaded.to_toml().as_bytes());
            // The lock first: once a folder has an experiment, it can be resumed.
            if !past.resumed {
                write_lock()?;
                write_experiment()?;
            }
            let tensorboard = experiment.log.tensorboard.then(|| experiment::hyperparameters(&experiment));
            let records = Records::open(&folder.paths, tensorboard, head, progress.step);
            let mut recorder = Recorder::new(records.map_err(refuse_records)?);
            changed.write(&mut recorder, past.resumed.then_some(progress.step), report)?;
            // Then the lock last: what it does not hold any more, the ledger's notes have.
            if past.resumed {
                write_lock()?;
                if past.edited {
                    write_experiment()?;
                }
            }
            Ok(recorder)
        };
        let recorder = match &folder {
            Some(folder) => {
                report.tell(&Message::Folder(folder.paths.folder()));
                let begun = begin_files(folder).inspect_err(|_| {
                    if !past.resumed {
                        // Nothing of the run is there yet. Why it cannot begin is what is told.
                        let _ = folder.abandon();
                    }
                });
                Some(begun?)
            }
            None => None,
        };
        let sensors = Arc::<sensors::SharedReadings>::default();
        let watch =
            folder.as_ref().and_then(|folder| watch_gpu(&experiment, &lock, folder, &sensors, report));
        let experiment::CheckpointKeys { keep_last, keep_every, .. } = experiment.checkpoint;
        let rewind_every = experiment.rewind_every();
        let writer = Writer::new(&paths.checkpoints(), Retention { keep_last, keep_every, rewind_every });
        // Rank 0 chooses where to go back to. The ledger ends at the checkpoint now.
        let rewound_to = match &folder {
            Some(folder) if past.resumed && rewind_every > 0 => {
                let (_, entries) = ledger::read(&folder.paths.ledger()).map_err(refuse_ledger)?;
                entry::last_rewound_to(&entries)
            }
            _ => None,
        };
        let run = Run {
            peak_flops: peak_flops.map(|peak| peak * experiment.parallel.ranks as f64),
            experiment,
            trainer,
            feed,
            validation: data.validation,
            hellaswag: data.hellaswag,
            tokenizer: data.tokenizer,
            writer,
            numerics: lock.numerics.clone(),
            last_state: LastState::default(),
            rewound_to,
            stop,
        };
        let copier =
            folder.as_ref().map(|folder| Copier::start(&run.experiment, folder.paths.folder(), report));
        let copier = copier.transpose()?.flatten();
        let kept = folder.map(|folder| Kept { folder, lock, expected });
        Ok(Prepared { run, recorder, kept, sensors, watch, copier, report })
    }
}

/// A record that disagrees with the checkpoint is a mismatch, not a failure of the system.
fn refuse_records(error: RecordsError) -> anyhow::Error {
    match error {
        RecordsError::Ledger(error) => refuse_ledger(error),
        error => error.into(),
    }
}

/// Puts the state of the checkpoint, or of the model to start from, into a trainer.
///
/// All ranks must start from the same bits; a single rank that starts a new run has nothing to compare.
fn begin_state<O: Ops>(
    trainer: &mut Trainer<O>,
    found: Option<LoadedCheckpoint>,
    initial: Option<Initial>,
    paths: &RunPaths,
) -> anyhow::Result<()> {
    let saved = found.as_ref().map(|(manifest, _)| manifest.state_root);
    match (found, initial) {
        (Some((_, state)), _) => trainer.restore(state)?,
        (None, Some(initial)) => initial.start(trainer)?,
        (None, None) => {}
    }
    if trainer.link().size() > 1 || saved.is_some() {
        let root = trainer.state_root()?;
        if let Some(expected) = saved.filter(|saved| *saved != root) {
            return Err(StoreError::RootDiffers { path: paths.checkpoints(), expected, found: root }.into());
        }
    }
    Ok(())
}

/// Reads the sensors of the GPU at work, if that is wanted and there is one.
fn watch_gpu(
    experiment: &Experiment,
    lock: &Lock,
    folder: &RunFolder,
    shared: &Arc<sensors::SharedReadings>,
    report: Report,
) -> Option<GpuWatch> {
    let uuid = lock.environment.get("gpu.uuid").filter(|_| experiment.log.gpu_every > 0)?;
    let every = Duration::from_secs(experiment.log.gpu_every);
    GpuWatch::start(uuid, every, &folder.paths.gpu_log(), Arc::clone(shared))
        .inspect_err(|why| report.tell(&Message::NoSensors(why)))
        .ok()
}
