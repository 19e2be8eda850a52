//! A file that is being fetched: `NAME.part`, and beside it `NAME.part.json` with its source.
//!
//! The file appears under its final name by a rename, complete. A part may be left at any moment, also by a
//! kill or a power cut: its length on disk is where the next attempt continues, and the digest of the whole
//! finds damage by a power cut.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::FetchError;
use crate::store::atomic;

/// The source of a part, written before its first byte.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PartSource {
    /// The address that was asked for, before redirects.
    pub url: String,
    /// Of the whole file.
    pub bytes: Option<u64>,
    /// For `If-Range`.
    pub validator: Option<String>,
    /// Published for the whole file, in hex.
    pub sha256: Option<String>,
}

/// An open part, locked against other processes.
#[derive(Debug)]
pub(super) struct Part {
    path: PathBuf,
    file: File,
    len: u64,
    origin: Option<PartSource>,
}

impl Part {
    /// Opens the part of `target`, or starts an empty one. Bytes from another address than `url`, or of
    /// unknown source, are dropped.
    ///
    /// # Errors
    ///
    /// Another process holds it; errors of the operating system.
    pub fn open(target: &Path, url: &str) -> Result<Part, FetchError> {
        let path = with_suffix(target, ".part");
        let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(FetchError::io("make folder", folder, 0))?;
        let file = File::options().append(true).read(true).create(true).open(&path);
        let file = file.map_err(FetchError::io("write", &path, 0))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(FetchError::Busy { path }),
            // The file system has no locks: then two downloads of one file are not prevented.
            Err(TryLockError::Error(_)) => {}
        }
        let len = file.metadata().map_err(FetchError::io("read", &path, 0))?.len();
        let origin = fs::read(with_suffix(target, ".part.json"))
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok());
        let mut part = Part { path, file, len, origin };
        let known = part
            .origin
            .as_ref()
            .is_some_and(|o: &PartSource| o.url == url && o.bytes.is_none_or(|b| len <= b));
        if !known {
            part.restart(None)?;
        }
        Ok(part)
    }

    /// Bytes that are there.
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn origin(&self) -> Option<&PartSource> {
        self.origin.as_ref()
    }

    /// Where the bytes are.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Drops what is there. With an origin, a new file begins.
    pub fn restart(&mut self, origin: Option<PartSource>) -> Result<(), FetchError> {
        if self.len > 0 {
            self.file.set_len(0).map_err(FetchError::io("write", &self.path, 0))?;
            self.len = 0;
        }
        if let Some(origin) = &origin {
            let text = serde_json::to_vec_pretty(origin).expect("strings and numbers become JSON");
            let path = sidecar(&self.path);
            let need = text.len() as u64;
            atomic::write(&path, &text)
                .map_err(|e| FetchError::io("write", &path, need)(std::io::Error::other(e)))?;
        }
        self.origin = origin;
        Ok(())
    }

    /// Adds bytes at the end.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), FetchError> {
        let need = self
            .origin
            .as_ref()
            .and_then(|o| o.bytes)
            .map_or(bytes.len() as u64, |b| b.saturating_sub(self.len));
        self.file.write_all(bytes).map_err(FetchError::io("write", &self.path, need))?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Waits until the disk has all bytes.
    pub fn sync(&self) -> Result<(), FetchError> {
        self.file.sync_all().map_err(FetchError::io("write", &self.path, 0))
    }

    /// Gives the file its name.
    pub fn finish(self, target: &Path) -> Result<(), FetchError> {
        fs::rename(&self.path, target).map_err(FetchError::io("write", target, 0))?;
        // Without its part the sidecar is ignored; if it is left by a failure here, the next download
        // replaces it.
        let _ = fs::remove_file(sidecar(&self.path));
        let folder = target.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
        atomic::sync_folder(folder).map_err(|e| FetchError::io("write", folder, 0)(std::io::Error::other(e)))
    }

    /// Deletes all of it.
    pub fn discard(self) {
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(sidecar(&self.path));
    }
}

fn sidecar(part: &Path) -> PathBuf {
    with_suffix(part, ".json")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(url: &str, bytes: u64) -> PartSource {
        PartSource { url: url.to_owned(), bytes: Some(bytes), validator: None, sha256: None }
    }

    #[test]
    fn a_part_goes_on_where_it_was_left() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("sub/x.bin");
        let mut part = Part::open(&target, "u").unwrap();
        part.restart(Some(origin("u", 6))).unwrap();
        part.write(b"abc").unwrap();
        drop(part);
        let mut part = Part::open(&target, "u").unwrap();
        assert_eq!((part.len(), part.origin()), (3, Some(&origin("u", 6))));
        part.write(b"def").unwrap();
        part.finish(&target).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"abcdef");
        assert_eq!(fs::read_dir(dir.path().join("sub")).unwrap().count(), 1);
    }

    #[test]
    fn bytes_of_unknown_or_other_origin_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("x.bin");
        fs::write(dir.path().join("x.bin.part"), "stray").unwrap();
        assert_eq!(Part::open(&target, "u").unwrap().len(), 0);
        for (url, bytes, left) in [("u", 9, 5), ("other", 9, 0), ("u", 4, 0)] {
            let mut part = Part::open(&target, "u").unwrap();
            part.restart(Some(origin("u", bytes))).unwrap();
            part.write(b"bytes").unwrap();
            drop(part);
            assert_eq!(Part::open(&target, url).unwrap().len(), left, "{url} {bytes}");
        }
        fs::write(dir.path().join("x.bin.part.json"), "{").unwrap();
        assert_eq!(Part::open(&target, "u").unwrap().len(), 0);
    }

    #[test]
    fn two_downloads_of_one_file_exclude_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("x.bin");
        let held = Part::open(&target, "u").unwrap();
        assert!(matches!(Part::open(&target, "u"), Err(FetchError::Busy { .. })));
        held.discard();
        assert!(Part::open(&target, "u").is_ok());
    }
}
