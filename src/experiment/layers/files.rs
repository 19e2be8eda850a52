//! The files of an experiment: their bytes, and the folders that paths in them start from.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// An experiment is smaller; a model file given by mistake is larger.
const MAX_FILE_BYTES: u64 = 1 << 20;

pub(super) fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        Err("it is over 1 MiB, so it is no experiment".into())
    } else {
        Ok(bytes)
    }
}

/// The same of a file that another extends, where nobody writes into a pipe.
pub(super) fn read_base(path: &Path) -> Result<Vec<u8>, String> {
    match path.metadata() {
        Ok(found) if !found.is_file() && !found.is_dir() => {
            Err("it is a pipe or a device, and no file".into())
        }
        _ => read_file(path),
    }
}

/// The folder that relative paths in a file start from: absolute, links resolved where it exists.
pub(super) fn folder_of(path: &Path) -> PathBuf {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    parent.canonicalize().or_else(|_| std::path::absolute(parent)).unwrap_or_else(|_| parent.to_path_buf())
}

/// The identity of a file, equal for two paths to it.
pub(super) fn identity(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_path_buf())
}
