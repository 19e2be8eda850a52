//! One checkpoint written by several ranks at once, into one file.
//!
//! Rank 0 prepares a hidden folder with the state's file: header in place, length set. Every rank writes its
//! own byte ranges and creates a marker file when they are on the disk. When all markers exist, rank 0 reads
//! the whole file back, which gives its sums and proves that the bytes on the disk are the state that was
//! hashed on the devices; then it writes the manifest and renames the folder into place. The bytes are those
//! that a single rank would write, so any number of ranks can read them.
//!
//! Needs a file system that all ranks share, on which a file that was synchronised and closed by one machine
//! can be read by another.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::atomic::{self, NewFolder};
use super::checkpoint::{MANIFEST_FILE, STATE_FILE, folder_name, manifest_of, read_whole};
use super::manifest::{Facts, Manifest};
use super::safetensors::{Info, Layout};
use super::{Result, StoreError};

/// Bytes of a tensor, and where in it they begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    pub tensor: String,
    pub at: u64,
    pub bytes: Vec<u8>,
}

/// Where a checkpoint is being written, the same on every rank.
#[derive(Clone, Debug)]
pub struct Site {
    folder: PathBuf,
    target: PathBuf,
    layout: Layout,
    offsets: BTreeMap<String, u64>,
}

fn mark(folder: &Path, rank: usize) -> PathBuf {
    folder.join(format!("rank_{rank:05}.done"))
}

impl Site {
    /// The site of the checkpoint of `step` for a state with these tensors.
    pub fn new(checkpoints: &Path, step: u64, tensors: &[Info]) -> Result<Site> {
        let target = checkpoints.join(folder_name(step));
        let layout = Layout::of(tensors, &BTreeMap::new())?;
        let offsets =
            tensors.iter().enumerate().map(|(i, info)| (info.name.clone(), layout.offset(i))).collect();
        Ok(Site { folder: atomic::temporary(&target), target, layout, offsets })
    }

    /// Rank 0, before any rank writes: folder, header and length.
    pub fn prepare(&self) -> Result<NewFolder> {
        let folder = NewFolder::create(&self.target)?;
        let path = folder.path().join(STATE_FILE);
        let need_bytes = self.layout.file_bytes();
        let create = || -> io::Result<()> {
            let mut file = File::create(&path)?;
            file.write_all(self.layout.header())?;
            file.set_len(need_bytes)?;
            file.sync_all()
        };
        create().map_err(StoreError::write(&self.target.join(STATE_FILE), need_bytes))?;
        atomic::sync_folder(folder.path())?;
        Ok(folder)
    }

    /// Any rank: writes its extents, counted in `done_bytes`, and creates its marker.
    pub fn write(&self, rank: usize, extents: &[Extent], done_bytes: &AtomicU64) -> Result<()> {
        let path = self.folder.join(STATE_FILE);
        let write = || -> io::Result<()> {
            let mut file = File::options().write(true).open(&path)?;
            for Extent { tensor, at, bytes } in extents {
                let offset = self
                    .offsets
                    .get(tensor)
                    .ok_or_else(|| io::Error::other(format!("there is no tensor `{tensor}`")))?;
                file.seek(SeekFrom::Start(offset + at))?;
                file.write_all(bytes)?;
                done_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            }
            file.sync_all()
        };
        let need_bytes = extents.iter().map(|extent| extent.bytes.len() as u64).sum();
        write().map_err(StoreError::write(&self.target.join(STATE_FILE), need_bytes))?;
        let mark = mark(&self.folder, rank);
        File::create(&mark).and_then(|file| file.sync_all()).map_err(StoreError::io(&mark, "write"))
    }

    /// Rank 0: waits for the markers of all `ranks`, reads the file back and completes the checkpoint.
    ///
    /// # Errors
    /// A marker does not appear within `timeout` or before `abandon` is set, or the file is not the state
    /// with the root in `facts`.
    pub fn complete(
        &self,
        folder: NewFolder,
        ranks: usize,
        facts: &Facts,
        timeout: Duration,
        abandon: &AtomicBool,
    ) -> Result<Manifest> {
        let began = Instant::now();
        loop {
            let missing: Vec<usize> = (0..ranks).filter(|rank| !mark(&self.folder, *rank).exists()).collect();
            if missing.is_empty() {
                break;
            }
            if abandon.load(Ordering::SeqCst) || began.elapsed() > timeout {
                return Err(StoreError::PartsMissing { path: self.target.clone(), ranks: missing });
            }
            thread::sleep(Duration::from_millis(10));
        }
        let path = self.folder.join(STATE_FILE);
        let manifest = manifest_of(facts, self.layout.file_bytes(), read_whole(&path)?)?;
        for rank in 0..ranks {
            let mark = mark(&self.folder, rank);
            fs::remove_file(&mark).map_err(StoreError::io(&mark, "remove"))?;
        }
        atomic::write(&folder.path().join(MANIFEST_FILE), manifest.to_text().as_bytes())?;
        folder.commit()?;
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::super::checkpoint::{self, tests::*};
    use super::super::safetensors::Tensor;
    use super::*;

    fn infos(state: &[Tensor]) -> Vec<Info> {
        state.iter().map(Info::of).collect()
    }

    /// Every `ranks`th byte run of each tensor, uneven and partly empty.
    fn extents(state: &[Tensor], rank: usize, ranks: usize) -> Vec<Extent> {
        let mut extents = Vec::new();
        for tensor in state {
            let (from, to) = (tensor.bytes.len() * rank / ranks, tensor.bytes.len() * (rank + 1) / ranks);
            extents.push(Extent {
                tensor: tensor.name.clone(),
                at: from as u64,
                bytes: tensor.bytes[from..to].to_vec(),
            });
        }
        extents
    }

    #[test]
    fn several_ranks_write_the_bytes_of_one() {
        let (alone, together) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let manifest = checkpoint::save(alone.path(), &state(7), &facts(7)).unwrap();
        let site = Site::new(together.path(), 7, &infos(&state(7))).unwrap();
        let folder = site.prepare().unwrap();
        thread::scope(|scope| {
            for rank in 0..4 {
                let site = &site;
                scope.spawn(move || {
                    site.write(rank, &extents(&state(7), rank, 4), &AtomicU64::new(0)).unwrap()
                });
            }
        });
        let never = AtomicBool::new(false);
        assert_eq!(site.complete(folder, 4, &facts(7), Duration::from_secs(9), &never).unwrap(), manifest);
        for file in [STATE_FILE, MANIFEST_FILE] {
            let read = |root: &Path| fs::read(root.join(folder_name(7)).join(file)).unwrap();
            assert_eq!(read(alone.path()), read(together.path()), "{file}");
        }
        let names = fs::read_dir(together.path().join(folder_name(7))).unwrap().count();
        assert_eq!(names, 2, "no marks stay");
    }

    #[test]
    fn a_rank_that_does_not_write_is_named_and_nothing_stands_in_the_folder() {
        let root = tempfile::tempdir().unwrap();
        let site = Site::new(root.path(), 7, &infos(&state(7))).unwrap();
        let folder = site.prepare().unwrap();
        site.write(0, &extents(&state(7), 0, 2), &AtomicU64::new(0)).unwrap();
        let abandon = AtomicBool::new(true);
        let error = site.complete(folder, 2, &facts(7), Duration::from_secs(9), &abandon).unwrap_err();
        assert!(error.to_string().contains("rank 1"), "{error}");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn bytes_that_are_not_the_state_that_was_hashed_are_found_before_the_checkpoint_stands() {
        let root = tempfile::tempdir().unwrap();
        let manifest = checkpoint::save(root.path(), &state(6), &facts(6)).unwrap();
        let site = Site::new(root.path(), 7, &infos(&state(6))).unwrap();
        let folder = site.prepare().unwrap();
        let mut wrong = extents(&state(6), 0, 1);
        wrong.iter_mut().find(|extent| !extent.bytes.is_empty()).unwrap().bytes[0] ^= 1;
        site.write(0, &wrong, &AtomicU64::new(0)).unwrap();
        let facts = Facts { state_root: Some(manifest.state_root), ..facts(7) };
        let never = AtomicBool::new(false);
        let error = site.complete(folder, 1, &facts, Duration::from_secs(9), &never).unwrap_err();
        assert!(matches!(error, StoreError::StateChanged { .. }), "{error}");
        assert_eq!(checkpoint::list(root.path()).unwrap().len(), 1);
    }
}
