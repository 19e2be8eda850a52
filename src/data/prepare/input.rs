//! Where text comes from: mapped files, or bytes that were read already (standard input).

use std::path::{Path, PathBuf};

use super::super::error::DataError;
use super::super::mmap::MappedFile;
use super::super::shard::MAGIC;

/// A text to encode.
#[derive(Debug)]
pub struct Input {
    path: PathBuf,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Mapped(MappedFile),
    Owned(Vec<u8>),
}

impl Input {
    /// A file, mapped.
    pub fn file(path: &Path) -> Result<Input, DataError> {
        if path.is_dir() {
            let reason = std::io::Error::new(std::io::ErrorKind::IsADirectory, "it is a folder; name its files");
            return Err(DataError::Io { action: "read", path: path.to_owned(), reason });
        }
        let map = MappedFile::open(path).map_err(DataError::io("read", path))?;
        Ok(Input { path: path.to_owned(), content: Content::Mapped(map) })
    }

    /// Bytes in memory, called `name` in messages.
    pub fn bytes(name: &str, bytes: Vec<u8>) -> Input {
        Input { path: PathBuf::from(name), content: Content::Owned(bytes) }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.raw().len() as u64
    }

    /// Whether there is no byte at all.
    pub fn is_empty(&self) -> bool {
        self.raw().is_empty()
    }

    fn raw(&self) -> &[u8] {
        match &self.content {
            Content::Mapped(map) => map.bytes(),
            Content::Owned(bytes) => bytes,
        }
    }

    /// The text, checked to be UTF-8 to its last byte. A byte order mark is not part of it.
    pub(super) fn text(&self) -> Result<&str, DataError> {
        let raw = self.raw();
        let text = std::str::from_utf8(raw).map_err(|error| {
            let at = error.valid_up_to();
            DataError::NotUtf8 { path: self.path.clone(), byte: at as u64, value: raw[at], hint: hint(raw) }
        })?;
        Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
    }

    /// The error that nothing in here can be encoded.
    pub(super) fn no_text(&self) -> DataError {
        let found = match self.len() {
            0 => "it is empty".to_owned(),
            n => format!("its {n} bytes are white space and document marks"),
        };
        DataError::NoText { path: self.path.clone(), found }
    }
}

/// What a file that is not text most likely is.
fn hint(raw: &[u8]) -> &'static str {
    const KNOWN: [(&[u8], &str); 8] = [
        (&[0x1f, 0x8b], "the file is gzip-compressed: `gzip -dc FILE | runner data prepare … -`"),
        (b"\xfd7zXZ", "the file is xz-compressed: `xz -dc FILE | runner data prepare … -`"),
        (b"\x28\xb5\x2f\xfd", "the file is zstd-compressed: `zstd -dc FILE | runner data prepare … -`"),
        (b"PK\x03\x04", "the file is a zip archive: unpack it first"),
        (b"PAR1", "the file is Parquet: export its text column first"),
        (&MAGIC.to_le_bytes(), "the file is a token shard already: name it in `data.train`"),
        (&[0xff, 0xfe], "the file is UTF-16: `iconv -f UTF-16 -t UTF-8 FILE`"),
        (&[0xfe, 0xff], "the file is UTF-16: `iconv -f UTF-16 -t UTF-8 FILE`"),
    ];
    let known = KNOWN.iter().find(|(magic, _)| raw.starts_with(magic));
    known.map_or("convert it, for example `iconv -f WINDOWS-1252 -t UTF-8 FILE`", |(_, hint)| hint)
}
