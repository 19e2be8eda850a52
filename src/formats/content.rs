//! What stands under a path that should be a model: looked at before anything is read as one.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

use super::{FormatError, Result};

/// As much of a file as is looked at.
const START_BYTES: u64 = 1024;

/// What a path leads to.
pub enum Content {
    Folder,
    /// A plain file, and its first bytes.
    File(Vec<u8>),
}

/// Looks at a path without waiting: a pipe is not opened.
///
/// # Errors
///
/// Nothing is there, it cannot be read, or it is a pipe, socket or device.
pub fn look(path: &Path) -> Result<Content> {
    let io = |source| FormatError::Io { path: path.into(), source };
    let kind = fs::metadata(path).map_err(io)?.file_type();
    if kind.is_dir() {
        return Ok(Content::Folder);
    }
    if !kind.is_file() {
        return Err(FormatError::NotAModel {
            path: path.into(),
            found: "it is a pipe, a socket or a device".into(),
            hint: "a model is read more than once: save it as a file first".into(),
        });
    }
    let mut start = Vec::new();
    File::open(path).map_err(io)?.take(START_BYTES).read_to_end(&mut start).map_err(io)?;
    Ok(Content::File(start))
}
