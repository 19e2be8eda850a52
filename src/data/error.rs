//! Errors in data, and what to do about them.
//!
//! Every message names the file, where in it, what was expected and what was found. Faults of a shard's
//! header and length are found when it is opened; a token outside the vocabulary when it is hashed, before
//! the first step.

#![forbid(unsafe_code)]

use std::io;
use std::path::{Path, PathBuf};

use super::shard::{HEADER_BYTES, MAGIC, VERSION};
use crate::store::StoreError;
use crate::units::noun;

/// An error in the data, or in a request for it.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// An error of the operating system.
    #[error("cannot {action} `{path}`: {reason}")]
    Io { action: &'static str, path: PathBuf, reason: io::Error },
    /// A place that cannot be written to.
    #[error(transparent)]
    Store(#[from] StoreError),

    // ---- finding shards ----
    /// No pattern at all.
    #[error(
        "no token shards are named\n  hint: set `data.train` and `data.val` to glob patterns, or \
         `data.corpus` to an embedded text"
    )]
    NoPatterns,
    /// The pattern itself is malformed.
    #[error(
        "`{pattern}` is not a glob pattern: {message} at character {at}\n  hint: {}",
        crate::experiment::THEMSELVES
    )]
    BadPattern { pattern: String, at: usize, message: &'static str },
    /// A pattern that matches nothing.
    #[error(
        "no file matches `{pattern}`: looked in `{folder}`, which {found}\n  hint: {}",
        no_match_hint(pattern)
    )]
    NoMatch { pattern: String, folder: PathBuf, found: String },
    /// A folder, pipe or device where a file is read more than once, and not from its start to its end.
    #[error(
        "`{path}` is {what}, but it is read at several positions and more than once: expected a file\n  \
         hint: {}",
        if *what == "a folder" {
            "name its files, for example with `*.bin`"
        } else {
            "write it to a file first"
        }
    )]
    NotAFile { path: PathBuf, what: &'static str },
    /// A file that is not what it was when it was opened.
    #[error(
        "`{path}` changed while it was read: {}\n  hint: another program wrote to it, cut or replaced it; \
         put the file back, then `runner resume`",
        change(*expected_bytes, *got_bytes)
    )]
    Changed { path: PathBuf, expected_bytes: u64, got_bytes: u64 },

    // ---- the header of a shard ----
    /// A web page under a shard's name.
    #[error(
        "`{path}` is a web page saved as a token shard: it starts with `{start}` where magic {MAGIC} was \
         expected (byte 0)\n  hint: the download gave an error or login page; fetch the file again"
    )]
    Html { path: PathBuf, start: String },
    /// Fewer bytes than a header has.
    #[error(
        "`{path}` ends inside its header: expected at least {HEADER_BYTES} bytes, got {got_bytes}\n  hint: \
         the download or copy was cut off; fetch the file again"
    )]
    HeaderTruncated { path: PathBuf, got_bytes: u64 },
    /// Another kind of file.
    #[error("`{path}` is not a token shard: expected magic {MAGIC} at byte 0, got {got}\n  hint: {hint}")]
    Magic { path: PathBuf, got: u32, hint: &'static str },
    /// A shard that another tokenizer made.
    #[error(
        "`{path}` was made with the tokenizer `{recorded}`{}, as its header says (byte 12): expected \
         `{wanted}`, which `data.tokenizer` names\n  hint: set `data.tokenizer = \"{recorded}\"`, or \
         prepare the text again with `--tokenizer {wanted}`",
        if recorded == wanted { format!(" of SHA-256 {sha256}") } else { String::new() }
    )]
    OtherTokenizer { path: PathBuf, recorded: String, sha256: String, wanted: &'static str },
    /// A version of the format that is not known.
    #[error(
        "`{path}` has an unknown shard version: expected {VERSION} at byte 4, got {got}\n  hint: only \
         16-bit shards of version {VERSION} can be read"
    )]
    Version { path: PathBuf, got: u32 },
    /// A header with 0 tokens.
    #[error(
        "`{path}` holds no tokens: its header says 0 at byte 8\n  hint: remove the file, or prepare it again"
    )]
    Empty { path: PathBuf },
    /// Fewer tokens than the header says.
    #[error(
        "`{path}` is truncated: its header (byte 8) promises {tokens} tokens, that is {expected_bytes} \
         bytes, but the file ends at byte {got_bytes}\n  hint: the download or copy was cut off; fetch the \
         file again"
    )]
    Truncated { path: PathBuf, tokens: u64, expected_bytes: u64, got_bytes: u64 },
    /// More bytes than the header says.
    #[error(
        "`{path}` is too long: its header (byte 8) promises {tokens} tokens, that is {expected_bytes} \
         bytes, but the file has {got_bytes}\n  hint: the header was not updated, or two files were joined; \
         prepare or fetch it again"
    )]
    TooLong { path: PathBuf, tokens: u64, expected_bytes: u64, got_bytes: u64 },

    // ---- files of other kinds ----
    /// Bytes that are not a file of the kind they should be.
    #[error("`{path}` is not a {format}: {problem}")]
    WrongFormat { path: PathBuf, format: &'static str, problem: String },

    /// A file whose start is right and whose content is not.
    #[error("`{path}` is damaged: {problem}\n  hint: fetch or copy the file again")]
    Damaged { path: PathBuf, problem: String },

    // ---- reading ----
    /// A token outside the vocabulary.
    #[error(
        "`{shard}` holds token {token} at position {position} (byte {byte}): expected less than {vocab}, \
         the vocabulary\n  hint: the shard was made with another tokenizer, or is damaged"
    )]
    OutOfVocabulary { shard: String, position: u64, byte: u64, token: u16, vocab: usize },
    /// No sequence fits.
    #[error(
        "{tokens} {} in `{name}` hold no sequence of {seq_len}: expected a shard with at least {} \
         tokens\n  hint: lower `batch.seq_len` or add data", noun(*tokens, "token"), seq_len + 1
    )]
    NoSequences { name: String, tokens: u64, seq_len: usize },
    /// A sequence index past the end.
    #[error(
        "sequence {sequence} does not exist: the data hold {sequences} {} of {seq_len} {}",
        noun(*sequences, "sequence"),
        noun(*seq_len, "token")
    )]
    SequenceOutOfRange { sequence: u64, sequences: u64, seq_len: usize },
    /// A reading plan that cannot be carried out.
    #[error("cannot read micro-batches: {reason}")]
    Plan { reason: String },
    /// The reading thread has ended.
    #[error("the thread that reads data has stopped: no batch follows the error it reported")]
    ReaderStopped,

    // ---- mixtures ----
    /// An error in one source.
    #[error("in the source `{source_name}` of `data.mix`: {why}")]
    OfSource { source_name: String, why: Box<DataError> },
    /// No sequence of a source fits.
    #[error(
        "the source `{name}` of `data.mix` holds no sequence of {seq_len}: expected a shard with at least {} \
         tokens\n  hint: lower `batch.seq_len`, or give the source more data", seq_len + 1
    )]
    SourceTooShort { name: String, seq_len: usize },
    /// The run would read a source more often than it may.
    #[error(
        "the run reads {read} sequences of the source `{source_name}`{}, which is {epochs:.2} epochs: \
         `data.mix.{source_name}.max_epochs` allows {max_epochs}, {allowed} sequences\n  hint: {fits}; or \
         {}raise `max_epochs`, lower the source's `weight`, or give it more data",
        match passed_over {
            0 => String::new(),
            passed_over => format!(
                ", with {passed_over} that `data.offset` and rewinds pass over"
            ),
        },
        if *passed_over > 0 { "lower `data.offset`, " } else { "" }
    )]
    EpochLimit {
        source_name: String,
        read: u64,
        /// Of these, before the first step or in rewinds.
        passed_over: u64,
        epochs: f64,
        max_epochs: u64,
        allowed: u64,
        fits: String,
    },

    // ---- embedded text ----
    /// This build has no embedded text.
    #[error(
        "corpus `{name}` is not in this build: the feature `corpus` is off\n  hint: build with `--features \
         corpus`, or name shards in `data.train`"
    )]
    CorpusNotBuilt { name: String },
    /// The model has no rows for some of the tokenizer's tokens.
    #[error(
        "`model.vocab` is {vocab}: expected at least {needed}, the tokens of `data.tokenizer` = `{tokenizer}`"
    )]
    VocabTooSmall { vocab: usize, needed: usize, tokenizer: &'static str },
    /// No such embedded text.
    #[error("unknown corpus `{name}`: expected `kjv`, `kjv_ot` or `kjv_nt`")]
    UnknownCorpus { name: String },
    /// The embedded text is not what it should be.
    #[error("the embedded corpus is damaged: {reason}")]
    CorpusDamaged { reason: String },

    // ---- preparing shards ----
    /// Content of a format that is not read, or of another than the declared one.
    #[error("`{path}` is {found}: expected {expected}\n  hint: {hint}")]
    Content { path: PathBuf, found: String, expected: &'static str, hint: String },
    /// Text that is not UTF-8.
    #[error(
        "`{path}` is not UTF-8 text: invalid at byte {byte} (0x{value:02x})\n  hint: convert it, for \
         example with `iconv -f WINDOWS-1252 -t UTF-8`"
    )]
    NotUtf8 { path: PathBuf, byte: u64, value: u8 },
    /// Nothing to encode.
    #[error("`{path}` holds no text: {found}\n  hint: every input must have at least one document")]
    NoText { path: PathBuf, found: String },
    /// A line that is not an object with text.
    #[error("`{path}` line {line} is no document: {problem}")]
    Line { path: PathBuf, line: u64, problem: String },
    /// More rows without text than may be left out.
    #[error("{why}\n  hint: this is one bad row more than `--skip-bad-rows {allowed}` leaves out")]
    BadRows { why: String, allowed: u64 },
    /// A table without the column.
    #[error("`{path}` has no column `{column}`, but {has}\n  hint: name one with `--column`")]
    NoColumn { path: PathBuf, column: String, has: String },
    /// A table with more than one column of the name.
    #[error(
        "`{path}` has the column `{column}` {times} times: expected it once\n  hint: write the table again \
         with a name for each"
    )]
    ColumnTwice { path: PathBuf, column: String, times: usize },
    /// A column of something else than text.
    #[error(
        "the column `{column}` of `{path}` holds {got}: expected strings\n  hint: name another with \
         `--column`"
    )]
    ColumnType { path: PathBuf, column: String, got: String },
    /// A row without text.
    #[error(
        "row {row} of `{path}` (counted from 0) has no text: its `{column}` is null\n  hint: \
         `--skip-bad-rows N` leaves out up to N such rows"
    )]
    NullText { path: PathBuf, column: String, row: usize },
    /// A file that would be replaced and is not a shard.
    #[error(
        "`{path}` has a shard's name, but is none: `--overwrite` replaces shards alone\n  hint: move it \
         away, or give another `--name`"
    )]
    NotOurs { path: PathBuf },
    /// Shards are there already.
    #[error(
        "`{path}` exists already ({count} shards named `{prefix}_…` are in the folder)\n  hint: give \
         another `--name` or `--out`, or replace them with `--overwrite`"
    )]
    ShardsExist { path: PathBuf, prefix: String, count: usize },
    /// A request to stop `prepare`.
    #[error("stopped as asked: the shards that were begun are removed")]
    Stopped,
    /// An option of `prepare` out of its range.
    #[error("`{option}` is {got}: expected {expected}")]
    Option { option: &'static str, got: String, expected: &'static str },
    /// The split leaves no training data.
    #[error(
        "no tokens are left to train on: validation took all {tokens}\n  hint: lower `--val-tokens`, or \
         `--val-fraction` where the text has white space: it is divided there alone, `--val-tokens` anywhere"
    )]
    NoTraining { tokens: u64 },
}

impl DataError {
    /// Whether a pattern matches no file, of a source perhaps.
    pub fn is_no_match(&self) -> bool {
        match self {
            DataError::NoMatch { .. } => true,
            DataError::OfSource { why, .. } => why.is_no_match(),
            _ => false,
        }
    }

    /// Where a bad row is and why, in one line.
    pub(super) fn row_text(&self) -> String {
        let first_line = |text: &str| text.lines().next().unwrap_or_default().to_owned();
        match self {
            DataError::Line { path, line, problem } => {
                format!("{}:{line}: {}", path.display(), first_line(problem))
            }
            other => first_line(&other.to_string()),
        }
    }

    /// For `map_err` on calls to the operating system.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataError {
        move |reason| DataError::Io { action, path: path.to_owned(), reason }
    }
}

/// What to do where no file matches a pattern.
fn no_match_hint(pattern: &str) -> String {
    if Path::new(pattern).exists() {
        let escaped = glob::Pattern::escape(pattern);
        return format!("a file of this very name is there, but `[` begins a set: write `{escaped}`");
    }
    let (folder, name) = pattern.rsplit_once('/').unwrap_or((".", pattern));
    if name.starts_with("edu_fineweb_") {
        return format!(
            "`runner data fetch fineweb-edu-100b --out {folder}` fetches these shards; in a file relative \
             patterns start at its folder"
        );
    }
    crate::experiment::not_expanded(pattern).map_or_else(
        || {
            "in a file relative patterns start at its folder, on the command line and in variables where the \
             program was started; `runner data prepare` writes shards"
                .to_owned()
        },
        str::to_owned,
    )
}

/// How a file is not what it was when it was opened.
fn change(expected_bytes: u64, got_bytes: u64) -> String {
    if expected_bytes == got_bytes {
        return "it was written to since it was opened".into();
    }
    format!("it had {expected_bytes} bytes when it was opened, and has {got_bytes} bytes now")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_shards_of_fineweb_edu_name_what_fetches_them() {
        let hint = no_match_hint("/none/such/edu_fineweb_train_*.bin");
        assert!(hint.contains("`runner data fetch fineweb-edu-100b --out /none/such`"), "{hint}");
        assert!(no_match_hint("/none/such/x_*.bin").contains("runner data prepare"));
    }
}
