//! Files as byte slices, without reading them: the only `unsafe` of the data module.
//!
//! Shards and the texts that `prepare` reads are larger than memory may be, and are read here and
//! there. The kernel pages them in; nothing is copied, and a run over a thousand shards opens at once.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;

/// A whole file, read-only.
#[derive(Debug)]
pub struct MappedFile {
    /// `None` for an empty file, which the system refuses to map.
    map: Option<Mmap>,
}

impl MappedFile {
    /// Maps `path`. The descriptor is closed again: a map does not need it.
    pub fn open(path: &Path) -> io::Result<MappedFile> {
        let file = File::open(path)?;
        if file.metadata()?.len() == 0 {
            return Ok(MappedFile { map: None });
        }
        // SAFETY: The map is private to this type, read-only, and lives as long as the slices that
        // borrow from it. What Rust cannot rule out is another process writing or truncating the
        // file meanwhile: files are inputs that a run does not own, `prepare` replaces shards by
        // rename and never in place, and every token is checked against the vocabulary after it has
        // been copied out, so a foreign write gives wrong tokens or an error and a truncation ends
        // the process with SIGBUS; neither lets a value of an invalid type arise from plain bytes.
        let map = unsafe { Mmap::map(&file)? };
        Ok(MappedFile { map: Some(map) })
    }

    /// The content.
    pub fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_an_empty_slice() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(MappedFile::open(file.path()).unwrap().bytes(), b"");
    }

    #[test]
    fn the_slice_is_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"In the beginning").unwrap();
        assert_eq!(MappedFile::open(file.path()).unwrap().bytes(), b"In the beginning");
    }
}
