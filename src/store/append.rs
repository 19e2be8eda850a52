//! A text file that only grows, one record a line, and survives `kill -9`.
//!
//! Every record goes to the kernel in one `write`, newline included, so a killed process leaves at
//! most one torn line, at the end and without its newline. Going on cuts that line and every record of
//! the steps that will be trained again. Nothing here knows what is in a record:
//! the caller reads the step out of a line.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::proof::regular::{self, Lines};

/// Why a grown file cannot be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("`{}` exists already\n  hint: resume the run, or start it over with --overwrite", path.display())]
    Exists { path: PathBuf },
    #[error("`{}` line {line}: {message}", path.display())]
    Line { path: PathBuf, line: usize, message: String },
    #[error(transparent)]
    Store(#[from] super::StoreError),
}

/// An open file at whose end records are written.
#[derive(Debug)]
pub struct AppendFile {
    file: File,
    path: PathBuf,
}

impl AppendFile {
    /// Starts a file; one that exists already is left alone and is an error.
    pub fn create(path: &Path) -> Result<AppendFile, AppendError> {
        let file =
            OpenOptions::new().append(true).create_new(true).open(path).map_err(|source| {
                match source.kind() {
                    io::ErrorKind::AlreadyExists => AppendError::Exists { path: path.to_owned() },
                    _ => AppendError::Io { action: "create", path: path.to_owned(), source },
                }
            })?;
        Ok(AppendFile { file, path: path.to_owned() })
    }

    /// Looks for what of a file stays when it goes on at step `resume`: all before a torn last line, and
    /// before the first record whose step is `resume` or later. Changes nothing.
    pub fn look(
        path: &Path,
        resume: u64,
        step_of: impl Fn(&str) -> Result<u64, String>,
    ) -> Result<KeptRecords, AppendError> {
        let io_error = |source| AppendError::Io { action: "read", path: path.to_owned(), source };
        let file = regular::open(path).map_err(io_error)?;
        let of = file.metadata().map_err(io_error)?.len();
        let (mut lines, mut kept, mut last, mut number) = (Lines::of(file), 0, None, 0);
        while let Some(line) = lines.next_line().map_err(io_error)? {
            number += 1;
            let step = std::str::from_utf8(line)
                .map_err(|error| error.to_string())
                .and_then(&step_of)
                .map_err(|message| AppendError::Line { path: path.to_owned(), line: number, message })?;
            if step >= resume {
                break;
            }
            kept += line.len() as u64 + 1;
            last = Some(step);
        }
        Ok(KeptRecords { path: path.to_owned(), last, kept, of })
    }

    /// Writes whole lines, each ending in a newline, in one call to the kernel.
    pub fn write(&mut self, lines: &str) -> Result<(), AppendError> {
        debug_assert!(lines.ends_with('\n'), "a record without its newline reads as torn");
        self.file.write_all(lines.as_bytes()).map_err(|source| AppendError::Io {
            action: "append to",
            path: self.path.clone(),
            source,
        })
    }

    /// Returns when every record is on the disk. Call it before saving a checkpoint that depends on them.
    pub fn sync(&self) -> Result<(), AppendError> {
        self.file.sync_all().map_err(|source| AppendError::Io {
            action: "sync",
            path: self.path.clone(),
            source,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The records of a file that stay when it goes on.
#[derive(Debug)]
pub struct KeptRecords {
    path: PathBuf,
    /// The step of the last one.
    pub last: Option<u64>,
    /// Their bytes, and those of the file.
    kept: u64,
    of: u64,
}

impl KeptRecords {
    /// Opens the file behind them and cuts the rest.
    ///
    /// The cut is one `set_len`, so a crash leaves the file as it was or as it should be.
    pub fn open(self) -> Result<AppendFile, AppendError> {
        let KeptRecords { path, kept, of, .. } = self;
        let io_error = |action| {
            let path = path.clone();
            move |source| AppendError::Io { action, path, source }
        };
        let file = OpenOptions::new().append(true).open(&path).map_err(io_error("open"))?;
        if kept < of {
            file.set_len(kept).map_err(io_error("truncate"))?;
            file.sync_all().map_err(io_error("sync"))?;
        }
        Ok(AppendFile { file, path })
    }
}

/// The lines that end in a newline, without it; what follows the last newline is torn and left out.
pub fn complete_lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let end = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    bytes[..end].split_inclusive(|&byte| byte == b'\n').map(|line| &line[..line.len() - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(line: &str) -> Result<u64, String> {
        line.parse().map_err(|_| format!("expected a step, got `{line}`"))
    }

    #[test]
    fn a_torn_line_and_the_steps_to_repeat_are_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, "0\n1\n2\n3\n4").unwrap();
        let kept = AppendFile::look(&path, 2, number).unwrap();
        assert_eq!(kept.last, Some(1));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "0\n1\n2\n3\n4", "looking cuts nothing");
        let mut file = kept.open().unwrap();
        file.write("2\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "0\n1\n2\n");

        std::fs::write(&path, "0\n1\n2").unwrap();
        let kept = AppendFile::look(&path, 9, number).unwrap();
        assert_eq!(kept.last, Some(1));
        kept.open().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "0\n1\n");
    }

    #[test]
    fn a_damaged_line_in_the_middle_is_reported_with_its_number_and_nothing_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, "0\nx\n2\n").unwrap();
        let error = AppendFile::look(&path, 9, number).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("`x`"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "0\nx\n2\n");
    }

    #[test]
    fn creating_over_a_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, "0\n").unwrap();
        assert!(matches!(AppendFile::create(&path), Err(AppendError::Exists { .. })));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "0\n");
    }
}
