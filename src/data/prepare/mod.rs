//! Text, JSON lines and parquet to token shards, many cores, the same bytes for any number of them.
//!
//! The inputs are mapped. Text is checked whole before the first token is written and cut into chunks of
//! about a megabyte at places where GPT-2's pre-tokeniser cuts anyway ([`chunks`]); of JSON lines ([`jsonl`])
//! a few megabytes are taken at a time, of parquet ([`parquet`]) a row group. Each batch is encoded in
//! parallel, and the tokens are written in order ([`writer`]). Memory holds a batch, whatever the size of the
//! input; only standard input is read whole.
//!
//! Shards are written under temporary names, flushed to disk, and renamed together at the end: a
//! prepare that is cut off, or meets a fault in the last line, leaves no shard behind.

#![forbid(unsafe_code)]

mod chunks;
mod input;
mod jsonl;
mod parquet;
mod writer;

use std::path::PathBuf;

use rayon::prelude::*;

pub use input::{Input, InputFormat};
use writer::ShardWriter;

use super::error::DataError;
use super::shard::MAX_TOKENS;
use super::tokenizer::Tokenizer;

/// Which tokens are held out. They are taken from the front, as the reference does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ValSplit {
    /// The first so many tokens.
    Tokens(u64),
    /// The tokens of about this share of the text, by bytes.
    Fraction(f64),
}

/// What to write, and where.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder of the shards; made when missing.
    pub out: PathBuf,
    /// Shards are named `<prefix>_train_000001.bin` and `<prefix>_val_000000.bin`.
    pub prefix: String,
    pub tokenizer: Tokenizer,
    /// Tokens a shard; the last may be shorter.
    pub shard_tokens: u64,
    pub val: ValSplit,
    /// The field of JSON lines, or the column of parquet, that holds the text.
    pub column: String,
    /// Replace all shards of this prefix.
    pub overwrite: bool,
}

/// A shard that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    pub path: PathBuf,
    pub tokens: u64,
    pub bytes: u64,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    pub documents: u64,
    /// Bytes of text in those documents.
    pub text_bytes: u64,
    /// `<|endoftext|>` before each document included.
    pub train_tokens: u64,
    pub val_tokens: u64,
    /// Validation first.
    pub shards: Vec<Written>,
}

/// Bytes of text that are encoded at a time, for each thread.
const BATCH_BYTES: usize = 4 << 20;

/// Encodes the inputs into shards. `progress` is told how many bytes of input have been encoded.
///
/// Text is split into documents at a literal `<|endoftext|>`, and at the end of each input; a row of the
/// other formats is a document, and such a mark in it is text. The token of that name is put before each
/// document. Documents of white space alone are left out.
///
/// # Errors
///
/// Input that is not of its format, not UTF-8, or holds no document; shards that exist already, options out
/// of range, and what the operating system refuses. In every case no shard has been written or replaced.
pub fn prepare(inputs: &[Input], options: &Options, progress: impl FnMut(u64)) -> Result<Summary, DataError> {
    options.check()?;
    inputs.par_iter().try_for_each(|input| input.check(&options.column))?;
    let total: u64 = inputs.iter().map(Input::len).sum();
    let mut val_bytes = match options.val {
        ValSplit::Fraction(fraction) => (total as f64 * fraction) as u64,
        ValSplit::Tokens(_) => 0,
    };
    let summary = Summary { documents: 0, text_bytes: 0, train_tokens: 0, val_tokens: 0, shards: Vec::new() };
    let mut sink = Sink { options, writer: ShardWriter::new(options)?, summary, progress };
    for input in inputs {
        let documents = sink.summary.documents;
        match input.format() {
            InputFormat::Text => sink.text(input, val_bytes)?,
            InputFormat::Jsonl => sink.jsonl(input, val_bytes)?,
            InputFormat::Parquet => sink.parquet(input, val_bytes)?,
        }
        if sink.summary.documents == documents {
            return Err(input.no_text());
        }
        val_bytes = val_bytes.saturating_sub(input.len());
    }
    sink.finish()
}

/// A document or a part of one, that can be encoded alone.
struct Piece<'a> {
    text: &'a str,
    /// `<|endoftext|>` comes before it.
    starts_document: bool,
    validation: bool,
}

impl<'a> Piece<'a> {
    /// A whole document; none if it is white space alone.
    fn document(text: &'a str, validation: bool) -> Option<Piece<'a>> {
        (!text.trim().is_empty()).then_some(Piece { text, starts_document: true, validation })
    }
}

/// Where pieces go, batch by batch.
struct Sink<'a, P> {
    options: &'a Options,
    writer: ShardWriter<'a>,
    summary: Summary,
    progress: P,
}

impl<P: FnMut(u64)> Sink<'_, P> {
    fn text(&mut self, input: &Input, val_bytes: u64) -> Result<(), DataError> {
        let text = input.text()?;
        let chunks = chunks::plan(text, val_bytes);
        let mut done = 0;
        // Any batch size gives the same bytes; this one keeps every thread busy.
        for batch in chunks.chunks(4 * rayon::current_num_threads()) {
            let piece = |chunk: &chunks::Chunk| Piece {
                text: &text[chunk.range.clone()],
                starts_document: chunk.starts_document,
                validation: chunk.validation,
            };
            self.write(&batch.iter().map(piece).collect::<Vec<_>>())?;
            let end = batch.last().map_or(done, |chunk| chunk.range.end);
            (self.progress)((end - done) as u64);
            done = end;
        }
        (self.progress)((text.len() - done) as u64);
        Ok(())
    }

    fn jsonl(&mut self, input: &Input, val_bytes: u64) -> Result<(), DataError> {
        let bytes = input.content();
        let mut lines = jsonl::lines(bytes).peekable();
        let mut done = 0;
        while lines.peek().is_some() {
            let mut size = 0;
            let mut batch = Vec::new();
            while size < BATCH_BYTES * rayon::current_num_threads()
                && let Some(line) = lines.next()
            {
                size += line.bytes.len();
                batch.push(line);
            }
            let column = &self.options.column;
            // Collected before the first error is looked for, so that it is the first in the file.
            let texts: Vec<Result<_, DataError>> =
                batch.par_iter().map(|line| jsonl::text(input.path(), *line, column)).collect();
            let texts = texts.into_iter().collect::<Result<Vec<_>, _>>()?;
            let pieces = batch
                .iter()
                .zip(&texts)
                .filter_map(|(line, text)| Piece::document(text, line.start < val_bytes));
            self.write(&pieces.collect::<Vec<_>>())?;
            let end = batch.last().map_or(done, |line| line.start + line.bytes.len() as u64);
            (self.progress)(end - done);
            done = end;
        }
        (self.progress)(bytes.len() as u64 - done);
        Ok(())
    }

    fn parquet(&mut self, input: &Input, val_bytes: u64) -> Result<(), DataError> {
        let table = parquet::Table::open(input.path(), input.content(), &self.options.column)?;
        // Compressed as it is, a file's bytes belong to its rows in proportion.
        let bytes_before =
            |row: usize| (u128::from(input.len()) * row as u128 / table.rows().max(1) as u128) as u64;
        for group in table.groups() {
            let group = group?;
            let texts = group.texts(input.path())?;
            let rows = (group.start..).zip(&texts);
            let pieces = rows.filter_map(|(row, text)| Piece::document(text, bytes_before(row) < val_bytes));
            self.write(&pieces.collect::<Vec<_>>())?;
            (self.progress)(bytes_before(group.start + texts.len()) - bytes_before(group.start));
        }
        Ok(())
    }

    /// Encodes pieces in parallel and writes them in order.
    fn write(&mut self, pieces: &[Piece<'_>]) -> Result<(), DataError> {
        let encode = |piece: &Piece<'_>| encode(piece, &self.options.tokenizer);
        let encoded: Vec<Vec<u16>> = pieces.par_iter().map(encode).collect();
        for (piece, tokens) in pieces.iter().zip(encoded) {
            self.writer.write(&tokens, piece.validation)?;
            self.summary.documents += u64::from(piece.starts_document);
            self.summary.text_bytes += piece.text.len() as u64;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Summary, DataError> {
        let summary = &mut self.summary;
        (summary.train_tokens, summary.val_tokens) = (self.writer.train_tokens(), self.writer.val_tokens());
        if summary.train_tokens == 0 {
            return Err(DataError::NoTraining { tokens: summary.val_tokens });
        }
        self.summary.shards = self.writer.finish()?;
        Ok(self.summary)
    }
}

fn encode(piece: &Piece<'_>, tokenizer: &Tokenizer) -> Vec<u16> {
    let tokens = tokenizer.encode(piece.text);
    if piece.starts_document { std::iter::once(tokenizer.eot()).chain(tokens).collect() } else { tokens }
}

impl Options {
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
        let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if self.prefix.is_empty() || self.prefix.starts_with('.') || !self.prefix.chars().all(good) {
            let expected = "letters, digits, `-`, `_` and `.`, not starting with `.`";
            return Err(DataError::Option { option: "--name", got: format!("`{}`", self.prefix), expected });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
