//! Text, JSON lines and Parquet to token shards, many cores, the same bytes for any number of them.
//!
//! The format of an input follows from its content ([`kind`]), and gzip and zstd are undone on the way
//! ([`input`]). Text is checked whole before the first token is written; then a few megabytes at a time are
//! cut into chunks at places where GPT-2's pre-tokeniser cuts anyway ([`chunks`]). Of JSON lines ([`jsonl`])
//! a few megabytes are taken at a time, of Parquet ([`parquet`]) a row group. Each batch is encoded in
//! parallel, and the tokens are written in order ([`writer`]). Memory holds a batch, whatever the size of the
//! input; only pipes are read whole.
//!
//! Shards are written under temporary names, flushed to disk, and renamed together at the end: a
//! prepare that is cut off, or meets a fault in the last line, leaves no shard behind.

#![forbid(unsafe_code)]

mod chunks;
mod command;
mod input;
mod jsonl;
mod kind;
mod lines;
mod parquet;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use input::Examined;
pub use input::Input;
pub use lines::{json_lines, read_whole};
use writer::ShardWriter;
pub use writer::is_shard_name;

use super::error::DataError;
use super::shard::MAX_TOKENS;
use super::tokenizer::Tokenizer;
use crate::experiment::LONGEST_NAME;

/// How documents lie in an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputFormat {
    /// UTF-8, documents apart by a literal `<|endoftext|>`.
    Text,
    /// One JSON object a line, each a document.
    Jsonl,
    /// One row a document.
    Parquet,
}

/// Which tokens are held out. They are taken from the front, as llm.c does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ValSplit {
    /// This many tokens from the start.
    Tokens(u64),
    /// The tokens of about this share of the text, by bytes.
    Fraction(f64),
}

/// What to write, and where.
#[derive(Clone, Debug)]
pub struct PrepareOptions {
    /// Folder of the shards; made when missing.
    pub out: PathBuf,
    /// Shards are named `<prefix>_train_000001.bin` and `<prefix>_val_000000.bin`.
    pub prefix: String,
    pub tokenizer: Tokenizer,
    /// Tokens a shard; the last may be shorter.
    pub shard_tokens: u64,
    pub val: ValSplit,
    /// The field of JSON lines, or the column of Parquet, that holds the text; in Parquet `a.b` is `b` in
    /// `a`.
    pub column: String,
    /// Replace all shards of this prefix.
    pub overwrite: bool,
    /// JSON lines and Parquet rows without text that may be left out; one more is an error.
    pub skip_bad_rows: u64,
    /// Ends it before all is written.
    pub stop: PrepareStop,
}

/// A request to end a prepare, which removes what it has begun to write and gives [`DataError::Stopped`].
#[derive(Clone, Debug, Default)]
pub struct PrepareStop(Arc<StopFlags>);

#[derive(Debug, Default)]
struct StopFlags {
    writing: AtomicBool,
    asked: AtomicBool,
}

impl PrepareStop {
    /// Asks; false where nobody hears it: nothing is written that would have to be removed, or it was asked
    /// before.
    pub fn ask(&self) -> bool {
        self.0.writing.load(Ordering::SeqCst) && !self.0.asked.swap(true, Ordering::SeqCst)
    }

    fn begin(&self) {
        self.0.writing.store(true, Ordering::SeqCst);
    }

    fn heed(&self) -> Result<(), DataError> {
        if self.0.asked.load(Ordering::SeqCst) { Err(DataError::Stopped) } else { Ok(()) }
    }
}

/// A shard that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenShard {
    pub path: PathBuf,
    pub tokens: u64,
    pub bytes: u64,
}

/// The result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrepareSummary {
    pub documents: u64,
    /// Bytes of text in those documents.
    pub text_bytes: u64,
    /// `<|endoftext|>` before each document included.
    pub train_tokens: u64,
    pub val_tokens: u64,
    /// Validation first.
    pub shards: Vec<WrittenShard>,
    /// Documents of white space alone, left out.
    pub blank: u64,
    /// Why each row was left out that `skip_bad_rows` allowed.
    pub skipped: Vec<String>,
    /// Warnings about the inputs.
    pub notes: Vec<String>,
}

/// Bytes of text that are encoded at a time, for each thread.
const BATCH_BYTES: usize = 4 << 20;

/// Encodes the inputs into shards. `progress` is called with the bytes of input that have been encoded since
/// the last call, and with the bytes of all inputs.
///
/// Text is split into documents at a literal `<|endoftext|>`, and at the end of each input; a row of the
/// other formats is a document, and such a mark in it is text. The token of that name is put before each
/// document. Documents of white space alone are left out.
///
/// # Errors
///
/// Input that is not of its format, not UTF-8, or holds no document; shards that exist already, options out
/// of range, a request to stop, and what the operating system refuses. In every case no shard has been
/// written or replaced.
pub fn prepare(
    inputs: &[Input],
    options: &PrepareOptions,
    progress: impl FnMut(u64, u64),
) -> Result<PrepareSummary, DataError> {
    options.require_possible()?;
    let examine = |at: usize| {
        inputs[at].examine(&options.column).map_err(|refused| options.refuse(inputs, at, refused))
    };
    let examined: Vec<Examined> = (0..inputs.len()).into_par_iter().map(examine).collect::<Result<_, _>>()?;
    if examined.iter().all(|input| input.format == InputFormat::Text) {
        options.require_no_rows()?;
    }
    let total: u64 = examined.iter().map(|input| input.bytes).sum();
    let mut val_bytes = match options.val {
        ValSplit::Fraction(fraction) => (total as f64 * fraction) as u64,
        ValSplit::Tokens(_) => 0,
    };
    let notes = examined.iter().filter_map(|input| input.note.clone()).chain(twice(inputs)).collect();
    let summary = PrepareSummary { notes, ..PrepareSummary::default() };
    options.stop.begin();
    let mut sink = Sink { options, writer: ShardWriter::new(options)?, summary, progress, total };
    for input in &examined {
        let (documents, skipped) = (sink.summary.documents, sink.summary.skipped.len());
        let rows = match input.format {
            InputFormat::Text => sink.text(input, val_bytes)?,
            InputFormat::Jsonl => sink.jsonl(input, val_bytes)?,
            InputFormat::Parquet => sink.parquet(input, val_bytes)?,
        };
        input.require_unchanged()?;
        if sink.summary.documents == documents {
            // One part of many may be empty; rows without text are a fault.
            let empty_part = input.format == InputFormat::Parquet && rows == 0 && examined.len() > 1;
            if !empty_part || sink.summary.skipped.len() > skipped {
                return Err(input.no_text(&sink.summary.skipped[skipped..]));
            }
            sink.summary.notes.push(format!("`{}` has no rows", input.input.path().display()));
        }
        val_bytes = val_bytes.saturating_sub(input.bytes);
    }
    sink.finish()
}

/// Files that are named more than once.
fn twice(inputs: &[Input]) -> Vec<String> {
    let mut seen = std::collections::BTreeSet::new();
    let files = inputs.iter().filter(|input| input.is_file());
    files
        .filter(|input| input.path().canonicalize().is_ok_and(|path| !seen.insert(path)))
        .map(|input| format!("`{}` is named more than once, and is encoded as often", input.path().display()))
        .collect()
}

/// A document or a part of one, that can be encoded alone.
struct DocumentPiece<'a> {
    text: &'a str,
    /// `<|endoftext|>` comes before it.
    starts_document: bool,
    validation: bool,
}

impl<'a> DocumentPiece<'a> {
    /// A whole document; none if it is white space alone.
    fn document(text: &'a str, validation: bool) -> Option<DocumentPiece<'a>> {
        (!text.trim().is_empty()).then_some(DocumentPiece { text, starts_document: true, validation })
    }
}

/// Encodes pieces and writes their tokens, batch by batch.
struct Sink<'a, P> {
    options: &'a PrepareOptions,
    writer: ShardWriter<'a>,
    summary: PrepareSummary,
    progress: P,
    total: u64,
}

impl<P: FnMut(u64, u64)> Sink<'_, P> {
    /// Encodes text; returns its documents, those left out not counted.
    fn text(&mut self, input: &Examined<'_>, val_bytes: u64) -> Result<u64, DataError> {
        let before = self.summary.documents;
        let mut stream = input.stream()?;
        // Any size gives the same tokens; this one keeps every thread busy.
        let window = BATCH_BYTES * rayon::current_num_threads();
        let (mut target, mut open) = (window, None);
        loop {
            stream.fill(target)?;
            let text = stream.text()?;
            let end = if stream.done { Some(text.len()) } else { chunks::last_cut(text) };
            let Some(end) = end else {
                // A word that is longer than the window.
                target *= 2;
                continue;
            };
            let text = &text[..end];
            let plan = chunks::plan(text, open, val_bytes.saturating_sub(stream.at));
            let piece = |chunk: &chunks::Chunk| DocumentPiece {
                text: &text[chunk.range.clone()],
                starts_document: chunk.starts_document,
                validation: chunk.validation,
            };
            self.write(&plan.chunks.iter().map(piece).collect::<Vec<_>>())?;
            self.summary.blank += plan.blank;
            (self.progress)(end as u64, self.total);
            if stream.done {
                return Ok(self.summary.documents - before);
            }
            stream.consume(end);
            (target, open) = (window, Some(plan.open));
        }
    }

    /// Encodes JSON lines; returns how many there are.
    fn jsonl(&mut self, input: &Examined<'_>, val_bytes: u64) -> Result<u64, DataError> {
        let (path, column) = (input.input.path(), &self.options.column);
        let mut stream = input.stream()?;
        let window = BATCH_BYTES * rayon::current_num_threads();
        let (mut target, mut first, mut rows) = (window, 1, 0);
        loop {
            stream.fill(target)?;
            let bytes = &stream.bytes[..];
            let end = match bytes.iter().rposition(|&byte| byte == b'\n') {
                _ if stream.done => bytes.len(),
                Some(last) => last + 1,
                None => {
                    target *= 2;
                    continue;
                }
            };
            let lines: Vec<jsonl::JsonLine> = jsonl::lines(&bytes[..end], first, stream.at).collect();
            // Collected before the first error is looked for, so that it is the first in the file.
            let texts: Vec<Result<_, DataError>> =
                lines.par_iter().map(|line| jsonl::text(path, *line, column)).collect();
            let mut pieces = Vec::new();
            let texts = texts.into_iter().map(|text| self.good(text)).collect::<Result<Vec<_>, _>>()?;
            for (line, text) in lines.iter().zip(&texts) {
                let Some(text) = text else { continue };
                let piece = DocumentPiece::document(text, line.start < val_bytes);
                self.summary.blank += u64::from(piece.is_none());
                pieces.extend(piece);
            }
            self.write(&pieces)?;
            rows += lines.len() as u64;
            (self.progress)(end as u64, self.total);
            if stream.done {
                return Ok(rows);
            }
            first += bytes[..end].iter().filter(|&&byte| byte == b'\n').count() as u64;
            stream.consume(end);
            target = window;
        }
    }

    /// Encodes the rows of a Parquet file; returns how many there are.
    fn parquet(&mut self, input: &Examined<'_>, val_bytes: u64) -> Result<u64, DataError> {
        let mut table = parquet::ParquetTable::open(input.input, &self.options.column)?;
        // Compressed as it is, a file's bytes belong to its rows in proportion.
        let rows = table.rows();
        let bytes_before = |row: usize| (u128::from(input.bytes) * row as u128 / rows.max(1) as u128) as u64;
        for at in 0..table.groups() {
            let group = table.group(at)?;
            let mut pieces = Vec::new();
            for (row, text) in (group.start..).zip(group.texts()) {
                let Some(text) = self.good(text.ok_or_else(|| table.null(row)))? else { continue };
                let piece = DocumentPiece::document(text, bytes_before(row) < val_bytes);
                self.summary.blank += u64::from(piece.is_none());
                pieces.extend(piece);
            }
            self.write(&pieces)?;
            (self.progress)(bytes_before(group.start + group.rows) - bytes_before(group.start), self.total);
        }
        Ok(rows as u64)
    }

    /// A row's text; none of a bad row while those may be left out.
    fn good<T>(&mut self, row: Result<T, DataError>) -> Result<Option<T>, DataError> {
        let allowed = self.options.skip_bad_rows;
        match row {
            Ok(text) => Ok(Some(text)),
            Err(why) if (self.summary.skipped.len() as u64) < allowed => {
                self.summary.skipped.push(why.row_text());
                Ok(None)
            }
            Err(why) if allowed == 0 => Err(why),
            Err(why) => Err(DataError::BadRows { why: why.row_text(), allowed }),
        }
    }

    /// Encodes pieces in parallel and writes them in order.
    fn write(&mut self, pieces: &[DocumentPiece<'_>]) -> Result<(), DataError> {
        self.options.stop.heed()?;
        let encode = |piece: &DocumentPiece<'_>| encode(piece, &self.options.tokenizer);
        let encoded: Vec<Vec<u16>> = pieces.par_iter().map(encode).collect();
        for (piece, tokens) in pieces.iter().zip(encoded) {
            self.writer.write(&tokens, piece.validation)?;
            self.summary.documents += u64::from(piece.starts_document);
            self.summary.text_bytes += piece.text.len() as u64;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<PrepareSummary, DataError> {
        let summary = &mut self.summary;
        (summary.train_tokens, summary.val_tokens) = (self.writer.train_tokens(), self.writer.val_tokens());
        if summary.train_tokens == 0 {
            return Err(DataError::NoTraining { tokens: summary.val_tokens });
        }
        self.options.stop.heed()?;
        self.summary.shards = self.writer.finish()?;
        Ok(self.summary)
    }
}

fn encode(piece: &DocumentPiece<'_>, tokenizer: &Tokenizer) -> Vec<u16> {
    let tokens = tokenizer.encode(piece.text);
    if piece.starts_document { std::iter::once(tokenizer.eot()).chain(tokens).collect() } else { tokens }
}

impl PrepareOptions {
    /// Shards of 100 M tokens called `prefix` in `out`, about a hundredth of the text held out.
    pub fn new(out: &Path, prefix: &str, tokenizer: Tokenizer) -> PrepareOptions {
        PrepareOptions {
            out: out.to_owned(),
            prefix: prefix.to_owned(),
            tokenizer,
            shard_tokens: 100_000_000,
            val: ValSplit::Fraction(0.01),
            column: "text".to_owned(),
            overwrite: false,
            skip_bad_rows: 0,
            stop: PrepareStop::default(),
        }
    }

    /// Refuses what is said of rows where no input has any.
    fn require_no_rows(&self) -> Result<(), DataError> {
        let expected = "JSON lines or Parquet, and these are plain text without fields or rows";
        if self.column != "text" {
            return Err(DataError::Option {
                option: "--column",
                got: format!("`{}`", self.column),
                expected,
            });
        }
        match self.skip_bad_rows {
            0 => Ok(()),
            rows => Err(DataError::Option { option: "--skip-bad-rows", got: rows.to_string(), expected }),
        }
    }

    /// Refuses what no input could mend, before any is read.
    ///
    /// # Errors
    ///
    /// Options out of range, shards that exist already, a destination that is no folder or cannot be written
    /// in.
    pub fn require_possible(&self) -> Result<(), DataError> {
        self.check()?;
        writer::require_free(self)
    }

    fn check(&self) -> Result<(), DataError> {
        if !(1..=MAX_TOKENS).contains(&self.shard_tokens) {
            let got = self.shard_tokens.to_string();
            return Err(DataError::Option { option: "--shard-tokens", got, expected: "1 to 2147483647" });
        }
        if let ValSplit::Fraction(fraction) = self.val
            && !(0.0..1.0).contains(&fraction)
        {
            let got = fraction.to_string();
            return Err(DataError::Option {
                option: "--val-fraction",
                got,
                expected: "at least 0 and less than 1",
            });
        }
        let good = |c: char| c.is_alphanumeric() || "-_. ".contains(c);
        let length = self.prefix.len();
        if length > LONGEST_NAME {
            let got = format!("a name of {length} bytes");
            return Err(DataError::Option { option: "--name", got, expected: "at most 200" });
        }
        if self.prefix.is_empty() || self.prefix.starts_with(['.', ' ']) || !self.prefix.chars().all(good) {
            let expected = "letters, digits, `-`, `_`, `.` and spaces, not starting with `.` or a space";
            return Err(DataError::Option { option: "--name", got: format!("`{}`", self.prefix), expected });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
