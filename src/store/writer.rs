//! Saving in the background: one checkpoint at a time.
//!
//! The trainer hands over a copy of the state and goes on; hashing and writing happen on a thread of their
//! own. No error is lost: the outcome of each save is returned exactly once, from [`Writer::poll`],
//! [`Writer::submit`] or [`Writer::wait`], whichever is called first after it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::atomic::NewFolder;
use super::audit::{self, AuditFile};
use super::manifest::{Facts, Manifest};
use super::retention::{self, Retention, prune};
use super::safetensors::{self, Info, Tensor};
use super::shared::{Extent, Site};
use super::{LoadedCheckpoint, Result, RunPaths, StoreError, checkpoint, contents};

/// A state to be saved.
#[derive(Debug)]
pub struct SaveJob {
    pub state: Vec<Tensor>,
    pub facts: Facts,
}

/// A checkpoint that is on the disk.
#[derive(Debug)]
pub struct SavedCheckpoint {
    pub manifest: Manifest,
    pub folder: PathBuf,
    /// Steps whose checkpoints were deleted afterwards.
    pub pruned: Vec<u64>,
    /// From the start of hashing to the end of deleting.
    pub took: Duration,
    /// The tensors, returned so that their memory can be reused; none of a checkpoint that several ranks
    /// wrote.
    pub state: Vec<Tensor>,
}

/// A save in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SaveProgress {
    pub step: u64,
    /// Bytes of tensors written, and in all.
    pub done_bytes: u64,
    pub bytes: u64,
}

/// Saves checkpoints on a background thread.
#[derive(Debug)]
pub struct Writer {
    checkpoints: PathBuf,
    retention: Retention,
    in_flight: Option<InFlight>,
    /// Set when the checkpoint that several ranks write will not be completed.
    abandon: Arc<AtomicBool>,
}

/// One rank's part of a checkpoint that several write.
#[derive(Debug)]
pub struct PartJob {
    pub site: Site,
    pub step: u64,
    pub rank: usize,
    pub extents: Vec<Extent>,
    /// Rank 0 completes the checkpoint.
    pub completion: Option<Completion>,
}

/// What only rank 0 needs, beside its part.
#[derive(Debug)]
pub struct Completion {
    pub folder: NewFolder,
    pub facts: Facts,
    pub ranks: usize,
    /// How long the other ranks may take to write.
    pub timeout: Duration,
}

#[derive(Debug)]
struct InFlight {
    thread: JoinHandle<Result<Option<SavedCheckpoint>>>,
    step: u64,
    bytes: u64,
    done_bytes: Arc<AtomicU64>,
}

impl Writer {
    /// A writer into the folder `checkpoints` that deletes, after each save, what `retention` does not keep.
    pub fn new(checkpoints: &Path, retention: Retention) -> Writer {
        Writer { checkpoints: checkpoints.into(), retention, in_flight: None, abandon: Arc::default() }
    }

    /// Starts saving. Waits for the save before and returns its outcome; if that failed, `job` is
    /// not started.
    pub fn submit(&mut self, job: SaveJob) -> Result<Option<SavedCheckpoint>> {
        let (checkpoints, retention) = (self.checkpoints.clone(), self.retention);
        let (step, bytes) = (job.facts.step, job.state.iter().map(|tensor| tensor.bytes.len() as u64).sum());
        self.start(step, bytes, move |done_bytes| run(&checkpoints, retention, job, done_bytes).map(Some))
    }

    /// [`Writer::submit`] for one rank's part. Only rank 0's has an outcome.
    pub fn submit_part(&mut self, job: PartJob) -> Result<Option<SavedCheckpoint>> {
        let (checkpoints, retention, abandon) =
            (self.checkpoints.clone(), self.retention, self.abandon.clone());
        let (step, bytes) = (job.step, job.extents.iter().map(|extent| extent.bytes.len() as u64).sum());
        self.start(step, bytes, move |done_bytes| {
            run_part(&checkpoints, retention, job, done_bytes, &abandon)
        })
    }

    fn start(
        &mut self,
        step: u64,
        bytes: u64,
        work: impl FnOnce(&AtomicU64) -> Result<Option<SavedCheckpoint>> + Send + 'static,
    ) -> Result<Option<SavedCheckpoint>> {
        let before = self.wait()?;
        let done_bytes = Arc::<AtomicU64>::default();
        let count = Arc::clone(&done_bytes);
        let thread = thread::Builder::new().name("checkpoint".into()).spawn(move || work(&count));
        let thread = thread.map_err(StoreError::io(&self.checkpoints, "start a thread to write"))?;
        self.in_flight = Some(InFlight { thread, step, bytes, done_bytes });
        Ok(before)
    }

    /// The outcome of the save in flight if it is done; does not wait.
    pub fn poll(&mut self) -> Result<Option<SavedCheckpoint>> {
        if self.in_flight.as_ref().is_some_and(|save| save.thread.is_finished()) {
            self.wait()
        } else {
            Ok(None)
        }
    }

    /// Progress of the save in flight; none when there is none, or it is done and its outcome not yet taken.
    pub fn saving(&self) -> Option<SaveProgress> {
        let save = self.in_flight.as_ref().filter(|save| !save.thread.is_finished())?;
        Some(SaveProgress {
            step: save.step,
            done_bytes: save.done_bytes.load(Ordering::Relaxed),
            bytes: save.bytes,
        })
    }

    /// Where several ranks write the checkpoint of `step`, of a state with these tensors.
    pub fn site(&self, step: u64, tensors: &[Info]) -> Result<Site> {
        Site::new(&self.checkpoints, step, tensors)
    }

    /// The checkpoint of `step`; none where there is no such folder.
    pub fn load(&self, step: u64) -> Result<Option<LoadedCheckpoint>> {
        let folder = self.checkpoints.join(checkpoint::folder_name(step));
        folder.is_dir().then(|| checkpoint::load(&folder)).transpose()
    }

    /// Deletes the checkpoints behind `step`, the newest first: after a kill, those that are left are of one
    /// ledger. A folder that holds what this program did not write is kept.
    pub fn drop_after(&self, step: u64) -> Result<()> {
        let mut behind: Vec<(u64, PathBuf)> = checkpoint::list(&self.checkpoints)?;
        behind.retain(|(at, folder)| {
            *at > step && contents::foreign_in_checkpoint(folder).is_ok_and(|found| found.is_empty())
        });
        let steps: Vec<u64> = behind.iter().rev().map(|(at, _)| *at).collect();
        retention::remove(&self.checkpoints, &steps)
    }

    /// The tensors that are `wanted`, of the checkpoint of `step`.
    pub fn load_some(&self, step: u64, wanted: &dyn Fn(&str) -> bool) -> Result<LoadedCheckpoint> {
        checkpoint::load_some(&self.checkpoints.join(checkpoint::folder_name(step)), wanted)
    }

    /// Keeps both states that `step` gave when it was made twice; returns their folder.
    pub fn keep_unrepeatable(&self, step: u64, first: &[Tensor], second: &[Tensor]) -> Result<PathBuf> {
        let folder = self.unrepeatable(step);
        std::fs::create_dir_all(&folder).map_err(StoreError::io(&folder, "create"))?;
        for (name, state) in [("first", first), ("second", second)] {
            safetensors::write(&folder.join(format!("{name}.safetensors")), state, &Default::default())?;
        }
        Ok(folder)
    }

    /// The folder of [`Writer::keep_unrepeatable`].
    pub fn unrepeatable(&self, step: u64) -> PathBuf {
        self.run().unrepeatable(step)
    }

    /// Writes what is kept of an audited step.
    pub fn keep_audit(&self, audit: &AuditFile) -> Result<()> {
        audit.write(&audit::path(&self.run(), audit.step))
    }

    /// Deletes what is kept of the audits of `step` and later steps.
    pub fn drop_audits(&self, step: u64) -> Result<()> {
        audit::drop_from(&self.run().audits(), step)
    }

    fn run(&self) -> RunPaths {
        RunPaths::new(self.checkpoints.parent().unwrap_or(Path::new(".")))
    }

    /// Waits for the save in flight, if any.
    pub fn wait(&mut self) -> Result<Option<SavedCheckpoint>> {
        let Some(save) = self.in_flight.take() else { return Ok(None) };
        save.thread.join().map_err(|panic| {
            let text =
                panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            StoreError::WriterDied { why: text.unwrap_or("it panicked").to_owned() }
        })?
    }
}

impl Drop for Writer {
    /// Lets the save in flight finish: an interrupted run still has its last checkpoint. A checkpoint that
    /// needs other ranks is given up, because this one is ending.
    fn drop(&mut self) {
        self.abandon.store(true, Ordering::SeqCst);
        let _ = self.wait();
    }
}

fn run(
    checkpoints: &Path,
    retention: Retention,
    job: SaveJob,
    done_bytes: &AtomicU64,
) -> Result<SavedCheckpoint> {
    let start = Instant::now();
    let manifest = checkpoint::save_counting(checkpoints, &job.state, &job.facts, done_bytes)?;
    let pruned = prune(checkpoints, retention)?;
    let folder = checkpoints.join(checkpoint::folder_name(manifest.step));
    Ok(SavedCheckpoint { manifest, folder, pruned, took: start.elapsed(), state: job.state })
}

fn run_part(
    checkpoints: &Path,
    retention: Retention,
    job: PartJob,
    done_bytes: &AtomicU64,
    abandon: &AtomicBool,
) -> Result<Option<SavedCheckpoint>> {
    let start = Instant::now();
    let PartJob { site, rank, extents, completion, .. } = job;
    site.write(rank, &extents, done_bytes)?;
    drop(extents);
    let Some(Completion { folder, facts, ranks, timeout }) = completion else { return Ok(None) };
    let manifest = site.complete(folder, ranks, &facts, timeout, abandon)?;
    let pruned = prune(checkpoints, retention)?;
    let folder = checkpoints.join(checkpoint::folder_name(manifest.step));
    Ok(Some(SavedCheckpoint { manifest, folder, pruned, took: start.elapsed(), state: Vec::new() }))
}

#[cfg(test)]
mod tests {
    use super::super::checkpoint::{load, tests::*};
    use super::*;

    const KEEP_TWO: Retention = Retention { keep_last: 2, keep_every: 0, rewind_every: 0 };

    #[test]
    fn each_outcome_comes_back_once_and_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(folder.path(), KEEP_TWO);
        let mut done = Vec::new();
        for step in 1..=4 {
            let before = writer.submit(SaveJob { state: state(step), facts: facts(step) }).unwrap();
            done.extend(before.map(|saved| (saved.manifest.step, saved.pruned)));
        }
        let last = writer.wait().unwrap().unwrap();
        assert_eq!(last.state, state(4), "the memory comes back");
        assert_eq!(load(&last.folder).unwrap(), (last.manifest, state(4)));
        assert_eq!(done, [(1, vec![]), (2, vec![]), (3, vec![1])]);
        assert_eq!(last.pruned, [2]);
        assert!(writer.wait().unwrap().is_none() && writer.poll().unwrap().is_none());
    }

    #[test]
    fn a_failed_save_surfaces_at_the_next_call() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(folder.path(), KEEP_TWO);
        let mut bad = state(1);
        bad[0].bytes.pop();
        writer.submit(SaveJob { state: bad, facts: facts(1) }).unwrap();
        assert!(matches!(
            writer.submit(SaveJob { state: state(2), facts: facts(2) }),
            Err(StoreError::BadTensor { .. })
        ));
        assert!(writer.wait().unwrap().is_none(), "the second was not started");
    }

    #[test]
    fn polling_reports_a_finished_save() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(folder.path(), KEEP_TWO);
        writer.submit(SaveJob { state: state(1), facts: facts(1) }).unwrap();
        let began = std::time::Instant::now();
        let saved = loop {
            if let Some(saved) = writer.poll().unwrap() {
                break saved;
            }
            assert!(began.elapsed().as_secs() < 60, "the save never ends");
            thread::yield_now();
        };
        assert_eq!(saved.manifest.step, 1);
    }

    #[test]
    fn what_lies_behind_a_rewind_is_deleted() {
        let folder = tempfile::tempdir().unwrap();
        for step in [1, 2, 3] {
            checkpoint::save(folder.path(), &state(step), &facts(step)).unwrap();
        }
        let writer = Writer::new(folder.path(), KEEP_TWO);
        writer.drop_after(1).unwrap();
        assert_eq!(writer.load(1).unwrap().unwrap().1, state(1));
        assert!(writer.load(2).unwrap().is_none() && writer.load(3).unwrap().is_none());
    }

    #[test]
    fn a_dropped_writer_finishes_its_save() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(folder.path(), KEEP_TWO);
        writer.submit(SaveJob { state: state(1), facts: facts(1) }).unwrap();
        drop(writer);
        load(&folder.path().join(checkpoint::folder_name(1))).unwrap();
    }
}
