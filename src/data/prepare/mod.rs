//! Text files to token shards, many cores, the same bytes for any number of them.
//!
//! The inputs are mapped and checked whole before the first token is written. Then the text is cut into
//! chunks of about a megabyte at places where GPT-2's pre-tokeniser cuts anyway ([`chunks`]), the chunks
//! are encoded in parallel, and their tokens are written in order ([`writer`]). Memory holds a batch of
//! chunks, whatever the size of the input; only standard input is read whole.
//!
//! Shards are written under temporary names, flushed to disk, and renamed together at the end: a
//! prepare that is cut off leaves no shard behind.

#![forbid(unsafe_code)]

mod chunks;
mod input;
mod writer;

use std::path::PathBuf;

use rayon::prelude::*;

use chunks::Chunk;
pub use input::Input;
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

/// Encodes the inputs into shards. `progress` is told how many bytes of input have been encoded.
///
/// Text is split into documents at a literal `<|endoftext|>`, and at the end of each input; the token of
/// that name is put before each document. Documents of white space alone are left out.
///
/// # Errors
///
/// Input that is not UTF-8 or holds no document, shards that exist already, options out of range, and
/// what the operating system refuses. In every case no shard has been written or replaced.
pub fn prepare(inputs: &[Input], options: &Options, mut progress: impl FnMut(u64)) -> Result<Summary, DataError> {
    options.check()?;
    let texts = inputs.par_iter().map(Input::text).collect::<Result<Vec<&str>, DataError>>()?;
    let total: u64 = texts.iter().map(|text| text.len() as u64).sum();
    let val_bytes = match options.val {
        ValSplit::Fraction(fraction) => (total as f64 * fraction) as u64,
        ValSplit::Tokens(_) => 0,
    };
    let chunks = chunks::plan(&texts, val_bytes);
    for (at, input) in inputs.iter().enumerate() {
        if !chunks.iter().any(|chunk| chunk.input == at) {
            return Err(input.no_text());
        }
    }
    let mut writer = ShardWriter::new(options)?;
    let mut summary = Summary { documents: 0, text_bytes: 0, train_tokens: 0, val_tokens: 0, shards: Vec::new() };
    // Any batch size gives the same bytes; this one keeps every thread busy.
    for batch in chunks.chunks(4 * rayon::current_num_threads()) {
        let encode = |chunk: &Chunk| encode(chunk, texts[chunk.input], &options.tokenizer);
        let encoded: Vec<Vec<u16>> = batch.par_iter().map(encode).collect();
        for (chunk, tokens) in batch.iter().zip(encoded) {
            writer.write(&tokens, chunk.validation)?;
            summary.documents += u64::from(chunk.starts_document);
            summary.text_bytes += chunk.range.len() as u64;
        }
        progress(batch.iter().map(|chunk| chunk.range.len() as u64).sum());
    }
    (summary.train_tokens, summary.val_tokens) = (writer.train_tokens(), writer.val_tokens());
    if summary.train_tokens == 0 {
        return Err(DataError::NoTraining { tokens: summary.val_tokens });
    }
    summary.shards = writer.finish()?;
    Ok(summary)
}

fn encode(chunk: &Chunk, text: &str, tokenizer: &Tokenizer) -> Vec<u16> {
    let tokens = tokenizer.encode(&text[chunk.range.clone()]);
    if chunk.starts_document { std::iter::once(tokenizer.eot()).chain(tokens).collect() } else { tokens }
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
            return Err(DataError::Option { option: "--val-fraction", got, expected: "at least 0 and less than 1" });
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
