//! Where text comes from: mapped files, or bytes that were read already (standard input); and what they are.

use std::path::{Path, PathBuf};

use super::super::error::DataError;
use super::super::mmap::MappedFile;
use super::super::shard::{self, MAGIC};
use super::parquet::Table;

/// What an input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputFormat {
    /// UTF-8, documents apart by a literal `<|endoftext|>`.
    Text,
    /// One JSON object a line, each a document.
    Jsonl,
    /// One row a document.
    Parquet,
}

impl InputFormat {
    /// By the end of the name; whatever says nothing else is text.
    pub fn of(path: &Path) -> InputFormat {
        match path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase).as_deref() {
            Some("jsonl" | "ndjson") => InputFormat::Jsonl,
            Some("parquet") => InputFormat::Parquet,
            _ => InputFormat::Text,
        }
    }
}

/// A source of documents.
#[derive(Debug)]
pub struct Input {
    path: PathBuf,
    format: InputFormat,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Mapped(MappedFile),
    Owned(Vec<u8>),
}

impl Input {
    /// A file, mapped; its format follows from its name.
    pub fn file(path: &Path) -> Result<Input, DataError> {
        Input::file_as(path, InputFormat::of(path))
    }

    /// A file, mapped.
    pub fn file_as(path: &Path, format: InputFormat) -> Result<Input, DataError> {
        if path.is_dir() {
            let reason =
                std::io::Error::new(std::io::ErrorKind::IsADirectory, "it is a folder; name its files");
            return Err(DataError::Io { action: "read", path: path.to_owned(), reason });
        }
        let map = MappedFile::open(path).map_err(DataError::io("read", path))?;
        Ok(Input { path: path.to_owned(), format, content: Content::Mapped(map) })
    }

    /// Bytes in memory, called `name` in messages.
    pub fn bytes(name: &str, format: InputFormat, bytes: Vec<u8>) -> Input {
        Input { path: PathBuf::from(name), format, content: Content::Owned(bytes) }
    }

    /// Length in bytes. Progress and the share that is held out count in these.
    pub fn len(&self) -> u64 {
        self.content().len() as u64
    }

    /// Whether there is no byte at all.
    pub fn is_empty(&self) -> bool {
        self.content().is_empty()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn format(&self) -> InputFormat {
        self.format
    }

    fn raw(&self) -> &[u8] {
        match &self.content {
            Content::Mapped(map) => map.bytes(),
            Content::Owned(bytes) => bytes,
        }
    }

    /// The bytes without a byte order mark, which is part of no text.
    pub(super) fn content(&self) -> &[u8] {
        let raw = self.raw();
        match self.format {
            InputFormat::Parquet => raw,
            InputFormat::Text | InputFormat::Jsonl => raw.strip_prefix("\u{feff}".as_bytes()).unwrap_or(raw),
        }
    }

    /// Looks for what can be found without encoding: text is read to its last byte, of the others the start.
    pub(super) fn check(&self, column: &str) -> Result<(), DataError> {
        if self.raw().is_empty() {
            return Err(self.no_text());
        }
        match self.format {
            InputFormat::Text => self.text().map(|_| ()),
            InputFormat::Jsonl => match shard::html_start(self.raw()) {
                Some(start) => Err(DataError::WrongFormat {
                    path: self.path.clone(),
                    format: "file of JSON lines",
                    problem: format!("it is a web page, which starts with `{start}`"),
                }),
                None => Ok(()),
            },
            InputFormat::Parquet => match Table::open(&self.path, self.raw(), column)?.rows() {
                0 => Err(self.no_text()),
                _ => Ok(()),
            },
        }
    }

    /// The text, checked to be UTF-8 to its last byte.
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
        let found = match (self.raw().len(), self.format) {
            (0, _) => "it is empty".to_owned(),
            (n, InputFormat::Text) => format!("its {n} bytes are white space and document marks"),
            (_, InputFormat::Jsonl) => "every line's text is empty or white space".to_owned(),
            (_, InputFormat::Parquet) => "it has no row with text".to_owned(),
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
        (b"PAR1", "the file is Parquet: name it `….parquet`, or say `--format parquet`"),
        (&MAGIC.to_le_bytes(), "the file is a token shard already: name it in `data.train`"),
        (&[0xff, 0xfe], "the file is UTF-16: `iconv -f UTF-16 -t UTF-8 FILE`"),
        (&[0xfe, 0xff], "the file is UTF-16: `iconv -f UTF-16 -t UTF-8 FILE`"),
    ];
    let known = KNOWN.iter().find(|(magic, _)| raw.starts_with(magic));
    known.map_or("convert it, for example `iconv -f WINDOWS-1252 -t UTF-8 FILE`", |(_, hint)| hint)
}
