//! Files that are read at any position during a run.
//!
//! Shards are larger than memory may be and are read a sequence at a time. They are not mapped: a file that
//! another program truncates would end the process with SIGBUS, while a read at a position gives an error
//! that can name the file. A sequence of 1024 tokens takes 4 µs from the page cache, 15 µs where its file is
//! opened for it (two busy cores of a server): 1.5 M tokens/s read 1,500 of them a second.
//!
//! The first [`KEPT`] files of the process stay open; more are opened for each read, so that a thousand
//! shards do not exceed the system's limit of open files (1024 on many Linux systems, 256 on macOS).

#![forbid(unsafe_code)]

use std::fs::{File, Metadata};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use super::error::DataError;

/// Files that stay open.
const KEPT: usize = 128;

static OPEN: AtomicUsize = AtomicUsize::new(0);

/// A regular file and what it was when it was opened.
#[derive(Debug)]
pub(super) struct ReadAt {
    path: PathBuf,
    bytes: u64,
    modified: Option<SystemTime>,
    /// `None` where too many files are open already.
    kept: Option<File>,
}

impl ReadAt {
    /// Opens `path`, which must be a regular file.
    ///
    /// # Errors
    ///
    /// A folder, a pipe or a device by its name, and what the operating system refuses.
    pub fn open(path: &Path) -> Result<ReadAt, DataError> {
        let io = || DataError::io("open", path);
        // Before opening: that of a pipe would wait for its writer.
        let kind = path.metadata().map_err(io())?;
        if let Some(what) = irregular(&kind) {
            return Err(DataError::NotAFile { path: path.to_owned(), what });
        }
        let file = File::open(path).map_err(io())?;
        let found = file.metadata().map_err(io())?;
        let keep = OPEN.fetch_add(1, Ordering::Relaxed) < KEPT;
        if !keep {
            OPEN.fetch_sub(1, Ordering::Relaxed);
        }
        let (bytes, modified) = (found.len(), found.modified().ok());
        Ok(ReadAt { path: path.to_owned(), bytes, modified, kept: keep.then_some(file) })
    }

    /// Length in bytes when it was opened.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Fills `out` from byte `at` on.
    ///
    /// # Errors
    ///
    /// A file that has become shorter or was written to since, or is another than the one that was opened.
    pub fn read(&self, at: u64, out: &mut [u8]) -> Result<(), DataError> {
        match &self.kept {
            Some(file) => self.read_from(file, at, out),
            None => {
                let file = File::open(&self.path).map_err(DataError::io("open", &self.path))?;
                self.read_from(&file, at, out)
            }
        }
    }

    fn read_from(&self, file: &File, at: u64, out: &mut [u8]) -> Result<(), DataError> {
        read_exact_at(file, at, out).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => self.changed(file.metadata().map_or(0, |found| found.len())),
            _ => DataError::io("read", &self.path)(error),
        })?;
        // Looked at afterwards: what was written before the bytes were read has changed the time by now.
        let found = file.metadata().map_err(DataError::io("read", &self.path))?;
        match (found.len(), found.modified().ok()) == (self.bytes, self.modified) {
            true => Ok(()),
            false => Err(self.changed(found.len())),
        }
    }

    fn changed(&self, got_bytes: u64) -> DataError {
        DataError::Changed { path: self.path.clone(), expected_bytes: self.bytes, got_bytes }
    }

    /// Gives the whole file to `take`, about a megabyte at a time, in order.
    pub fn scan(&self, mut take: impl FnMut(&[u8])) -> Result<(), DataError> {
        let mut buffer = vec![0; 1 << 20];
        let mut at = 0;
        while at < self.bytes {
            let part = (self.bytes - at).min(buffer.len() as u64);
            let part = &mut buffer[..part as usize];
            self.read(at, part)?;
            take(part);
            at += part.len() as u64;
        }
        // The digest of this file would be remembered for another one that has come to its place.
        match (&self.kept, self.path.metadata()) {
            (Some(file), Ok(there)) => {
                let here = file.metadata().map_err(DataError::io("read", &self.path))?;
                if is_same(&here, &there) { Ok(()) } else { Err(self.changed(there.len())) }
            }
            _ => Ok(()),
        }
    }
}

#[cfg(unix)]
fn is_same(a: &Metadata, b: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// Windows tells no such number of a file.
#[cfg(not(unix))]
fn is_same(_: &Metadata, _: &Metadata) -> bool {
    true
}

impl Drop for ReadAt {
    fn drop(&mut self) {
        if self.kept.is_some() {
            OPEN.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, at: u64, out: &mut [u8]) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, at)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut at: u64, mut out: &mut [u8]) -> std::io::Result<()> {
    while !out.is_empty() {
        let read = std::os::windows::fs::FileExt::seek_read(file, out, at)?;
        if read == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        (at, out) = (at + read as u64, &mut out[read..]);
    }
    Ok(())
}

/// Refuses a path to something else than a regular file, such as a pipe. A path to nothing is no error here;
/// opening it is.
pub fn require_file(path: &Path) -> Result<(), DataError> {
    match path.metadata().ok().as_ref().and_then(irregular) {
        Some(what) => Err(DataError::NotAFile { path: path.to_owned(), what }),
        None => Ok(()),
    }
}

/// The name of a kind of file that is not a regular one.
pub(super) fn irregular(found: &Metadata) -> Option<&'static str> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kind = found.file_type();
        if kind.is_fifo() {
            return Some("a pipe");
        }
        if kind.is_socket() {
            return Some("a socket");
        }
        if kind.is_char_device() || kind.is_block_device() {
            return Some("a device");
        }
    }
    found.is_dir().then_some("a folder")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_cut_short_while_it_is_open_gives_an_error_with_both_lengths() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.bin");
        fs::write(&path, vec![7; 5000]).unwrap();
        let mut file = ReadAt::open(&path).unwrap();
        let mut out = [0; 10];
        file.read(4990, &mut out).unwrap();
        assert_eq!(out, [7; 10]);
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(4995).unwrap();
        for kept in [true, false] {
            let error = file.read(4990, &mut out).unwrap_err().to_string();
            assert!(error.contains("had 5000 bytes") && error.contains("4995 bytes now"), "{kept}: {error}");
            assert!(matches!(file.scan(|_| ()), Err(DataError::Changed { .. })), "{kept}");
            // As with more files than stay open.
            if file.kept.take().is_some() {
                OPEN.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Else the run would go on with other tokens than those that were hashed.
    #[test]
    fn a_file_written_to_while_it_is_open_gives_an_error_at_the_same_length_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.bin");
        fs::write(&path, vec![7; 5000]).unwrap();
        let past = SystemTime::now() - std::time::Duration::from_secs(60);
        let writer = fs::OpenOptions::new().write(true).open(&path).unwrap();
        writer.set_modified(past).unwrap();
        let file = ReadAt::open(&path).unwrap();
        let mut out = [0; 10];
        file.read(0, &mut out).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&writer, &[8; 10], 4000).unwrap();
        let error = file.read(0, &mut out).unwrap_err().to_string();
        assert!(
            error.contains("changed while it was read: it was written to since it was opened"),
            "{error}"
        );
    }

    /// Else its digest would be taken for that of the file which is there now.
    #[test]
    fn a_file_that_another_has_replaced_is_not_hashed_in_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("t.bin"), dir.path().join("other"));
        fs::write(&path, vec![7; 5000]).unwrap();
        fs::write(&other, vec![8; 5000]).unwrap();
        let file = ReadAt::open(&path).unwrap();
        let kept = file.kept.is_some();
        file.scan(|_| ()).unwrap();
        fs::rename(&other, &path).unwrap();
        // Where many files are open, this one was not kept, and is found out by its time if that differs.
        if kept {
            assert!(matches!(file.scan(|_| ()), Err(DataError::Changed { .. })));
        }
    }

    #[test]
    fn more_files_than_stay_open_are_read_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let files: Vec<ReadAt> = (0..2 * KEPT)
            .map(|i| {
                let path = dir.path().join(i.to_string());
                fs::write(&path, [i as u8; 3]).unwrap();
                ReadAt::open(&path).unwrap()
            })
            .collect();
        assert!(files.iter().filter(|file| file.kept.is_some()).count() <= KEPT);
        for (i, file) in files.iter().enumerate() {
            let mut out = [0; 2];
            file.read(1, &mut out).unwrap();
            assert_eq!(out, [i as u8; 2]);
        }
        fs::write(dir.path().join((2 * KEPT - 1).to_string()), "longer").unwrap();
        assert!(matches!(files[2 * KEPT - 1].read(0, &mut [0]), Err(DataError::Changed { .. })));
    }

    #[test]
    fn a_folder_and_a_pipe_are_refused_by_what_they_are() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(ReadAt::open(dir.path()), Err(DataError::NotAFile { what: "a folder", .. })));
        assert!(matches!(
            ReadAt::open(Path::new("/dev/null")),
            Err(DataError::NotAFile { what: "a device", .. })
        ));
        let pipe = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert!(matches!(ReadAt::open(&pipe), Err(DataError::NotAFile { what: "a pipe", .. })));
    }
}
