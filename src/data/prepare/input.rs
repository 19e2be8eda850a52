//! Inputs of text: files, pipes, or bytes in memory; and what they hold.
//!
//! Files are read from their start to their end, decompressed on the way, a few megabytes in memory at a
//! time. A pipe cannot be read twice, and so is read whole first.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read, Seek};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use flate2::bufread::GzDecoder;

use super::super::error::DataError;
use super::super::read_at::irregular;
use super::InputFormat;
use super::kind::{Compression, HEAD_BYTES, InputKind, extension};
use super::parquet::ParquetTable;
use crate::units::{noun, were};

/// The byte order mark of UTF-8, which is part of no text.
const BOM: &[u8] = "\u{feff}".as_bytes();

/// A source of documents.
#[derive(Debug)]
pub struct Input {
    path: PathBuf,
    declared: Option<InputFormat>,
    content: InputContent,
}

#[derive(Debug)]
enum InputContent {
    File,
    /// A pipe's, or standard input's.
    Read(Vec<u8>),
}

/// A source that can be read at any position, which Parquet needs.
pub(super) trait ReadSeek: Read + Seek {}

impl<T: Read + Seek> ReadSeek for T {}

impl Input {
    /// A file, or a pipe that is read to its end. What it holds is recognised, unless `format` declares it.
    ///
    /// # Errors
    ///
    /// A folder or device, and what the operating system refuses.
    pub fn file(path: &Path, format: Option<InputFormat>) -> Result<Input, DataError> {
        let io = || DataError::io("read", path);
        let content = match irregular(&path.metadata().map_err(io())?) {
            None => {
                // Checked now, and not after other inputs were encoded.
                File::open(path).map_err(io())?;
                InputContent::File
            }
            Some("a pipe" | "a socket") => InputContent::Read(std::fs::read(path).map_err(io())?),
            Some(what) => {
                let reason = std::io::Error::other(format!("it is {what}; name files"));
                return Err(io()(reason));
            }
        };
        Ok(Input { path: path.to_owned(), declared: format, content })
    }

    /// Bytes in memory, called `name` in messages.
    pub fn bytes(name: &str, format: Option<InputFormat>, bytes: Vec<u8>) -> Input {
        Input { path: PathBuf::from(name), declared: format, content: InputContent::Read(bytes) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it can be named on a command line.
    pub(super) fn is_file(&self) -> bool {
        matches!(self.content, InputContent::File)
    }

    pub(super) fn declared(&self) -> Option<InputFormat> {
        self.declared
    }

    /// Length and time of the last change; none of what is no file.
    fn stamp(&self) -> Option<(u64, SystemTime)> {
        let found = self.path.metadata().ok().filter(|_| self.is_file())?;
        Some((found.len(), found.modified().ok()?))
    }

    /// The bytes as they are.
    pub(super) fn open(&self) -> Result<Box<dyn ReadSeek + '_>, DataError> {
        Ok(match &self.content {
            InputContent::File => {
                Box::new(File::open(&self.path).map_err(DataError::io("read", &self.path))?)
            }
            InputContent::Read(bytes) => Box::new(Cursor::new(bytes)),
        })
    }

    /// All bytes as they are.
    pub(super) fn read(self) -> Result<Vec<u8>, DataError> {
        match self.content {
            InputContent::File => std::fs::read(&self.path).map_err(DataError::io("read", &self.path)),
            InputContent::Read(bytes) => Ok(bytes),
        }
    }

    /// Checks what can be checked without encoding: text and compressed files are read to the last byte,
    /// others at their start.
    ///
    /// # Errors
    ///
    /// Content that is not read, or is not what was declared; text that is not UTF-8; an empty input.
    pub(super) fn examine(&self, column: &str) -> Result<Examined<'_>, Refused> {
        let stamp = self.stamp();
        let mut raw = BufReader::with_capacity(HEAD_BYTES, self.open()?);
        let start = std::io::BufRead::fill_buf(&mut raw).map_err(DataError::io("read", &self.path))?;
        let compression = Compression::of(start);
        drop(raw);
        let format = InputFormat::Text;
        let mut examined = Examined { input: self, format, compression, bytes: 0, note: None, stamp };
        let mut stream = examined.stream()?;
        stream.fill(HEAD_BYTES)?;
        if stream.bytes.is_empty() && stream.done {
            return Err(Refused::Error(examined.no_text(&[])));
        }
        let name = extension(&self.path);
        let kind = InputKind::of(&stream.bytes, stream.done).named(if self.is_file() { &name } else { "" });
        let named = match name.as_str() {
            "jsonl" | "ndjson" => Some(InputFormat::Jsonl),
            "parquet" => Some(InputFormat::Parquet),
            "txt" | "text" | "md" => Some(InputFormat::Text),
            _ => None,
        };
        let format = match (self.declared, kind.format()) {
            (Some(declared), _) if kind.can_be(declared) => declared,
            (None, Some(InputFormat::Text)) => match named {
                Some(named) if kind.can_be(named) => named,
                _ => InputFormat::Text,
            },
            (None, Some(format)) => format,
            _ => return Err(Refused::Kind { kind, compression }),
        };
        if format == InputFormat::Parquet && compression.is_some() {
            return Err(Refused::Kind { kind, compression });
        }
        examined.format = format;
        let says_more = self.declared.is_none() && (name == "json" || named.is_some_and(|n| n != format));
        examined.note = says_more.then(|| {
            format!(
                "`{}` is {}, whatever its name says, and is read as such; `--format` reads it otherwise",
                self.path.display(),
                kind.name()
            )
        });
        examined.bytes = match format {
            InputFormat::Parquet => ParquetTable::open(self, column)?.bytes(),
            InputFormat::Text => check_text(&mut stream)?,
            InputFormat::Jsonl if compression.is_some() => stream.count()?,
            InputFormat::Jsonl => {
                let mut raw = self.open()?;
                let bytes = raw.seek(std::io::SeekFrom::End(0)).map_err(DataError::io("read", &self.path))?;
                bytes - stream.skipped
            }
        };
        drop(stream);
        Ok(examined)
    }
}

/// Why an input cannot be read.
pub(super) enum Refused {
    Error(DataError),
    /// Its format is not read; the caller knows what to do instead.
    Kind {
        kind: InputKind,
        compression: Option<Compression>,
    },
}

impl From<DataError> for Refused {
    fn from(error: DataError) -> Refused {
        Refused::Error(error)
    }
}

/// An input whose content is known.
pub(super) struct Examined<'a> {
    pub input: &'a Input,
    pub format: InputFormat,
    pub compression: Option<Compression>,
    /// Length without compression and byte order mark. Progress and the share that is held out count in
    /// these.
    pub bytes: u64,
    /// The warning that its name suggests another format.
    pub note: Option<String>,
    /// What tells that it is still the file that was examined.
    pub stamp: Option<(u64, SystemTime)>,
}

impl<'a> Examined<'a> {
    /// Refuses a file that is another one, or longer or shorter, than when it was examined.
    pub fn require_unchanged(&self) -> Result<(), DataError> {
        if self.input.stamp() == self.stamp {
            return Ok(());
        }
        let why = "it changed while it was read\n  hint: prepare it when nothing writes to it any more";
        Err(DataError::io("read", self.input.path())(io::Error::other(why)))
    }

    /// The text from its start, decompressed.
    pub fn stream(&self) -> Result<InputStream<'a>, DataError> {
        let (path, raw) = (self.input.path(), self.input.open()?);
        let reader: Box<dyn Read + 'a> = match self.compression {
            None => raw,
            Some(Compression::Gzip) => Box::new(GzipMembers::new(BufReader::with_capacity(1 << 18, raw))),
            Some(Compression::Zstd) => {
                Box::new(zstd::Decoder::new(raw).map_err(DataError::io("read", path))?)
            }
        };
        let mut stream = InputStream {
            path,
            compression: self.compression,
            reader,
            bytes: Vec::new(),
            at: 0,
            skipped: 0,
            done: false,
        };
        stream.fill(BOM.len())?;
        if stream.bytes.starts_with(BOM) {
            stream.bytes.drain(..BOM.len());
            stream.skipped = BOM.len() as u64;
        }
        Ok(stream)
    }

    /// The error that nothing in here can be encoded; `skipped` is why rows of it were left out.
    pub fn no_text(&self, skipped: &[String]) -> DataError {
        let found = match (self.bytes, self.format) {
            _ if !skipped.is_empty() => {
                let (rows, were) = (noun(skipped.len(), "bad row"), were(skipped.len()));
                format!("{} {rows} {were} left out, and no other has text: {}", skipped.len(), skipped[0])
            }
            (0, _) => "it is empty".to_owned(),
            (n, InputFormat::Text) => {
                format!("it has white space and document marks alone, {n} {}", noun(n, "byte"))
            }
            (_, InputFormat::Jsonl) => "every line's text is empty or white space".to_owned(),
            (_, InputFormat::Parquet) => "it has no row with text".to_owned(),
        };
        DataError::NoText { path: self.input.path.clone(), found }
    }
}

/// The content of gzip's members, one behind another. Zeros alone may follow the last, as for gzip itself:
/// tapes and disks fill blocks with them.
struct GzipMembers<R> {
    /// None behind the last.
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> GzipMembers<R> {
    fn new(packed: R) -> GzipMembers<R> {
        GzipMembers { member: Some(GzDecoder::new(packed)) }
    }
}

impl<R: BufRead> Read for GzipMembers<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let read = member.read(out)?;
            if read > 0 || out.is_empty() {
                return Ok(read);
            }
            let is_last = only_zeros_follow(member.get_mut())?;
            let packed = self.member.take().map(GzDecoder::into_inner);
            self.member = packed.filter(|_| !is_last).map(GzDecoder::new);
        }
        Ok(0)
    }
}

/// Whether no member follows: zeros, which are read, and nothing else.
fn only_zeros_follow(packed: &mut impl BufRead) -> io::Result<bool> {
    let mut padded = false;
    loop {
        let bytes = packed.fill_buf()?;
        if bytes.is_empty() {
            return Ok(true);
        }
        if !padded && bytes[0] != 0 {
            return Ok(false);
        }
        if bytes.iter().any(|byte| *byte != 0) {
            let why = "zeros follow their end, and other bytes these";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let read = bytes.len();
        packed.consume(read);
        padded = true;
    }
}

/// The bytes of an input, a window in memory at a time.
pub(super) struct InputStream<'a> {
    path: &'a Path,
    compression: Option<Compression>,
    reader: Box<dyn Read + 'a>,
    /// The window.
    pub bytes: Vec<u8>,
    /// Bytes before the window, those of a byte order mark not counted.
    pub at: u64,
    /// Bytes of a byte order mark.
    skipped: u64,
    /// Whether nothing follows the window.
    pub done: bool,
}

impl InputStream<'_> {
    /// Reads on until the window has `target` bytes, or nothing follows.
    pub fn fill(&mut self, target: usize) -> Result<(), DataError> {
        let missing = target.saturating_sub(self.bytes.len()) as u64;
        if self.done || missing == 0 {
            return Ok(());
        }
        let read = (&mut self.reader).take(missing).read_to_end(&mut self.bytes);
        let read = read.map_err(|error| match self.compression {
            Some(compression) if error.kind() != std::io::ErrorKind::NotFound => DataError::Damaged {
                path: self.path.to_owned(),
                problem: format!(
                    "after {} bytes of text its {} data go wrong or were cut off: {error}",
                    self.end(),
                    compression.command()
                ),
            },
            _ => DataError::io("read", self.path)(error),
        })?;
        self.done = (read as u64) < missing;
        Ok(())
    }

    /// Bytes up to the end of the window.
    fn end(&self) -> u64 {
        self.at + self.bytes.len() as u64
    }

    /// Drops the first `bytes` of the window.
    pub fn consume(&mut self, bytes: usize) {
        self.bytes.drain(..bytes);
        self.at += bytes as u64;
    }

    /// The text in the window, less a character that is cut at its end.
    ///
    /// # Errors
    ///
    /// Bytes that are not UTF-8.
    pub fn text(&self) -> Result<&str, DataError> {
        match std::str::from_utf8(&self.bytes) {
            Ok(text) => Ok(text),
            Err(error) if error.error_len().is_none() && !self.done => {
                Ok(std::str::from_utf8(&self.bytes[..error.valid_up_to()]).expect("it is valid up to there"))
            }
            Err(error) => {
                let at = error.valid_up_to();
                let byte = self.at + at as u64 + self.skipped;
                Err(DataError::NotUtf8 { path: self.path.to_owned(), byte, value: self.bytes[at] })
            }
        }
    }

    /// Reads to the end; the length of the whole.
    fn count(&mut self) -> Result<u64, DataError> {
        while !self.done {
            self.consume(self.bytes.len());
            self.fill(1 << 20)?;
        }
        Ok(self.end())
    }
}

/// Reads text to its last byte; its length.
fn check_text(stream: &mut InputStream<'_>) -> Result<u64, DataError> {
    loop {
        let read = stream.text()?.len();
        stream.consume(read);
        if stream.done {
            return Ok(stream.at);
        }
        stream.fill(1 << 20)?;
    }
}
