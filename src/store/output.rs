//! A file that the user names for a result: a plot, a page, a statement, a lock.
//!
//! It replaces an earlier result of the same kind and nothing else; into a device or a pipe, such as
//! `/dev/stdout`, the result is written.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::Path;

use super::{Result, StoreError, atomic};

/// The bytes at the start of a file in which a result is recognised.
const START_BYTES: u64 = 4096;

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputKind {
    /// A picture in PNG or SVG.
    Picture,
    /// A page in HTML.
    Page,
    /// An in-toto statement.
    Statement,
    Lock,
    /// Golden roots.
    Roots,
    /// JSON lines with the decisions of HellaSwag.
    Decisions,
}

impl OutputKind {
    fn name(self) -> &'static str {
        match self {
            OutputKind::Picture => "a picture in PNG or SVG",
            OutputKind::Page => "a page in HTML",
            OutputKind::Statement => "an in-toto statement",
            OutputKind::Lock => "a lock",
            OutputKind::Roots => "a file of golden roots",
            OutputKind::Decisions => "JSON lines of an evaluation",
        }
    }

    /// Whether a file that begins so is an earlier result of this kind.
    fn begins(self, start: &[u8]) -> bool {
        let text = String::from_utf8_lossy(start);
        match self {
            OutputKind::Picture => start.starts_with(b"\x89PNG") || text.starts_with("<svg"),
            OutputKind::Page => text.starts_with("<!DOCTYPE html>"),
            OutputKind::Statement => text.contains("https://in-toto.io/Statement/"),
            OutputKind::Lock => text.contains("format = \"runner/lock/"),
            OutputKind::Roots => text.starts_with("# Golden roots of "),
            OutputKind::Decisions => text.starts_with("{\""),
        }
    }
}

/// Writes a whole result to `path`. An empty file and an earlier result are replaced.
///
/// # Errors
/// Another file, or a folder, is there; it cannot be written.
pub fn write(path: &Path, bytes: &[u8], kind: OutputKind) -> Result<()> {
    let Ok(found) = fs::metadata(path) else { return atomic::write(path, bytes) };
    if !found.is_file() && !found.is_dir() {
        let written = File::options().write(true).open(path).and_then(|mut file| file.write_all(bytes));
        return written.map_err(StoreError::io(path, "write"));
    }
    let mut start = Vec::new();
    if found.is_file() {
        let read = File::open(path).and_then(|file| file.take(START_BYTES).read_to_end(&mut start));
        read.map_err(StoreError::io(path, "read"))?;
    }
    if found.is_dir() || !(start.is_empty() || kind.begins(&start)) {
        return Err(StoreError::OtherFile { path: path.into(), kind: kind.name() });
    }
    // Of a symbolic link the file that it names.
    let target = fs::canonicalize(path).map_err(StoreError::io(path, "find"))?;
    atomic::write(&target, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_earlier_result_is_replaced_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("notes.txt"), "mine").unwrap();
        fs::create_dir(path("folder")).unwrap();
        for name in ["notes.txt", "folder"] {
            let refused = write(&path(name), b"<svg/>", OutputKind::Picture).unwrap_err().to_string();
            assert!(refused.contains(name) && refused.contains("a picture in PNG or SVG"), "{refused}");
        }
        assert_eq!(fs::read(path("notes.txt")).unwrap(), b"mine");
        fs::write(path("empty"), "").unwrap();
        for name in ["new.svg", "new.svg", "empty"] {
            write(&path(name), b"<svg/>", OutputKind::Picture).unwrap();
            assert_eq!(fs::read(path(name)).unwrap(), b"<svg/>");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_link_stays_one_and_a_device_is_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, "<svg>old</svg>").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write(&link, b"<svg/>", OutputKind::Picture).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"<svg/>");
        std::os::unix::fs::symlink("/dev/null", folder.path().join("null")).unwrap();
        write(&folder.path().join("null"), b"<svg/>", OutputKind::Picture).unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }
}
