//! The files that a run writes while it trains: ledger, metrics, `main.log`, the event file and samples.
//!
//! They are opened, written and cut together at the same step, so that they hold the same steps. Each step is
//! written to the ledger first; the other files are derived from it.

use std::path::PathBuf;

use super::append::AppendError;
use super::columns::Timing;
use super::hparams::SessionStatus;
use super::main_log::MainLogWriter;
use super::metrics::{MetricsError, MetricsRow, MetricsWriter};
use super::tensorboard::EventWriter;
use super::{RunPaths, StoreError, atomic};
use crate::experiment::Hyperparameters;
use crate::proof::lock::is_lost_lock;
use crate::proof::{Entry, Head, Ledger, LedgerError, ledger};

/// Why a record cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    #[error(transparent)]
    Log(#[from] AppendError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The files, open at the step that comes next.
#[derive(Debug)]
pub struct Records {
    paths: RunPaths,
    ledger: Ledger,
    metrics: MetricsWriter,
    main_log: MainLogWriter,
    /// None when no event file is wanted.
    tensorboard: Option<EventWriter>,
}

impl Records {
    /// Opens the files of a run at `step`, or starts them, and drops that step and later ones, which will be
    /// trained again. `tensorboard` has what an event file begins with, where one is wanted; `head` is the
    /// ledger's at the checkpoint that the run goes on from.
    pub fn open(
        paths: &RunPaths,
        tensorboard: Option<Hyperparameters>,
        head: Option<Head>,
        step: u64,
    ) -> Result<Records, RecordsError> {
        let ledger = match head {
            Some(head) => Ledger::resume(&paths.ledger(), &head)?,
            None => {
                let mut ledger = Ledger::open(&paths.ledger())?;
                ledger.truncate_to(0)?;
                ledger
            }
        };
        let run = paths.folder();
        let metrics = match is_there(paths.metrics_jsonl(), step)? {
            true => MetricsWriter::resume(run, step)?,
            false => MetricsWriter::create(run)?,
        };
        let main_log = match is_there(paths.main_log(), step)? {
            true => MainLogWriter::resume(run, step)?,
            false => MainLogWriter::create(run)?,
        };
        // Rows that were cut must not stay in the table; what was brought back from a copy has none.
        if step > 0 || paths.metrics_parquet().exists() {
            metrics.write_parquet(&paths.metrics_parquet())?;
        }
        let tensorboard =
            tensorboard.map(|keys| EventWriter::resume(&paths.tensorboard(), keys, step)).transpose()?;
        Ok(Records { paths: paths.clone(), ledger, metrics, main_log, tensorboard })
    }

    /// Refuses what [`Records::open`] would, and changes nothing.
    pub fn require(paths: &RunPaths, head: Option<Head>, step: u64) -> Result<(), RecordsError> {
        Ledger::require(&paths.ledger(), head.as_ref())?;
        if is_there(paths.metrics_jsonl(), step)? {
            MetricsWriter::look(paths.folder(), step)?;
        }
        if is_there(paths.main_log(), step)? {
            MainLogWriter::look(paths.folder(), step)?;
        }
        Ok(())
    }

    /// Records a step, or the evaluation after the last, which has no timing.
    pub fn add(&mut self, entry: &Entry, timing: Option<Timing>) -> Result<(), RecordsError> {
        self.ledger.append(entry)?;
        self.append(&MetricsRow::of(entry, timing))
    }

    fn append(&mut self, row: &MetricsRow) -> Result<(), RecordsError> {
        self.metrics.append(row)?;
        if let Some(events) = &mut self.tensorboard {
            events.append(row)?;
        }
        Ok(self.main_log.append(row)?)
    }

    /// Writes into the event file that training ended, with `step` steps made.
    pub fn end(&mut self, step: u64, status: SessionStatus) -> Result<(), RecordsError> {
        match &mut self.tensorboard {
            Some(events) => Ok(events.end(step, status)?),
            None => Ok(()),
        }
    }

    /// Writes a note into the ledger: something that changed no bit. It enters no hash.
    pub fn note(&mut self, kind: &str, text: &str) -> Result<(), RecordsError> {
        Ok(self.ledger.note(kind, text)?)
    }

    /// Whether one of the entries from the one at `entries` on tells of a lock that was lost.
    pub fn lost_lock_since(&self, entries: u64) -> Result<bool, RecordsError> {
        let (_, all) = ledger::read(&self.paths.ledger())?;
        let at = all.len().min(usize::try_from(entries).unwrap_or(usize::MAX));
        Ok(all[at..].iter().any(|entry| entry.drifts().any(is_lost_lock)))
    }

    /// Writes a note, unless it stands behind the last entry already.
    pub fn note_again(&mut self, kind: &str, text: &str) -> Result<(), RecordsError> {
        let log = self.ledger.log();
        let mut behind = log.notes().iter().filter(|note| note.after == log.size());
        match behind.any(|note| note.kind == kind && note.text == text) {
            true => Ok(()),
            false => self.note(kind, text),
        }
    }

    /// Saves a text that the model wrote before `step`.
    pub fn sample(&self, step: u64, text: &str) -> Result<(), RecordsError> {
        let path = self.paths.samples().join(format!("step_{step:08}.txt"));
        Ok(atomic::write(&path, text.as_bytes())?)
    }

    /// Drops `step` and later ones from the files. The ledger then has `entries` entries.
    pub fn rewind(&mut self, entries: u64, step: u64) -> Result<(), RecordsError> {
        let run = self.paths.folder();
        self.ledger.truncate_to(entries)?;
        self.metrics = MetricsWriter::resume(run, step)?;
        self.main_log = MainLogWriter::resume(run, step)?;
        if self.paths.metrics_parquet().exists() {
            self.metrics.write_parquet(&self.paths.metrics_parquet())?;
        }
        if let Some(events) = &mut self.tensorboard {
            events.rewind(step)?;
        }
        Ok(())
    }

    /// Returns when every entry and row is on the disk, the copy in parquet too, with the ledger's head:
    /// a checkpoint that refers to it may follow.
    pub fn sync(&self) -> Result<Head, RecordsError> {
        self.ledger.sync()?;
        self.metrics.sync()?;
        self.main_log.sync()?;
        self.metrics.write_parquet(&self.paths.metrics_parquet())?;
        Ok(self.ledger.head())
    }
}

/// Whether there is a file to go on with at `step`. A run that was killed before its first row has none.
/// After a checkpoint they were on the disk: a file that begins there would pass for the whole run's, and its
/// parquet copy be lost.
fn is_there(path: PathBuf, step: u64) -> Result<bool, MetricsError> {
    match path.exists() {
        false if step > 0 => Err(MetricsError::Incomplete { path, last: None, resume: step }),
        there => Ok(there),
    }
}

#[cfg(test)]
mod tests {
    use super::super::RunFolder;
    use super::*;
    use crate::proof::{Action, Evaluation};

    fn entry(step: u64) -> Entry {
        Entry {
            step,
            tokens: (step + 1) * 1024,
            root: None,
            loss: Some(5.0),
            grad_norm: Some(1.0),
            learning_rate: Some(6e-4),
            loss_z: None,
            grad_z: None,
            action: Action::Update,
            events: vec![],
            evaluation: Some(Evaluation::default()),
            audit: None,
            sources: Default::default(),
        }
    }

    #[test]
    fn a_run_that_goes_on_from_a_checkpoint_does_not_begin_a_file_that_was_lost() {
        let root = tempfile::tempdir().unwrap();
        let paths = RunFolder::create(root.path(), "run", false).unwrap().paths.clone();
        let mut records = Records::open(&paths, None, None, 0).unwrap();
        let timing = Timing { step_ms: 1.0, tokens_per_s: 1.0, mfu: None };
        (0..3).for_each(|step| records.add(&entry(step), Some(timing)).unwrap());
        let head = records.sync().unwrap();
        drop(records);
        for lost in [paths.metrics_jsonl(), paths.main_log()] {
            let (kept, parquet) =
                (std::fs::read(&lost).unwrap(), std::fs::read(paths.metrics_parquet()).unwrap());
            std::fs::remove_file(&lost).unwrap();
            let error = Records::open(&paths, None, Some(head), 3).unwrap_err().to_string();
            assert!(error.contains(&lost.display().to_string()) && error.contains("--rebuild"), "{error}");
            assert!(!lost.exists() && std::fs::read(paths.metrics_parquet()).unwrap() == parquet);
            std::fs::write(&lost, kept).unwrap();
        }
        Records::open(&paths, None, Some(head), 3).unwrap();
    }
}
