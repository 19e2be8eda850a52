//! All token shards of a run as one space of sequences.
//!
//! Shards come in the order of their file names. Shard i holds `⌊(tokens − 1)/T⌋` sequences of T+1
//! tokens that overlap by one, so only a tail shorter than T is unused, and shards may differ in size.
//! The space is computed from T at each call: a dataset does not know batch or sequence length.
//!
//! Opening checks every header and length, and reads no token. [`super::DigestCache::manifest`] reads every
//! token and refuses one outside the vocabulary; what is read later is checked again.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::num::NonZeroU64;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::error::DataError;
use super::passages::PassageSketch;
use super::shard::{Scan, Shard};
use super::tokenizer::Tokenizer;

/// Token shards, or tokens in memory. `Send + Sync`; share it in an `Arc`.
#[derive(Debug)]
pub struct Dataset {
    shards: Vec<Shard>,
    vocab: usize,
    tokens: u64,
    /// The sources of a mixture in order, each with the number of its shards; none of data without.
    sources: Vec<(String, usize)>,
    /// Names of shards that more than one pattern matches; each is there once.
    matched_again: Vec<String>,
}

/// The facts about a shard that need no reading of its tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardInfo {
    /// File name, or the name given to tokens in memory.
    pub name: String,
    /// `None` for tokens in memory.
    pub path: Option<PathBuf>,
    pub tokens: u64,
    /// Length as a file, the header included.
    pub bytes: u64,
    /// Whether its header records the tokenizer.
    pub recorded: bool,
}

/// One line of the data manifest: equal lines mean equal tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardDigest {
    pub name: String,
    pub tokens: u64,
    /// SHA-256 of the file; tokens in memory count as the file they would make.
    pub sha256: [u8; 32],
    pub largest_token: u16,
    pub passages: PassageSketch,
}

impl Dataset {
    /// Opens every file that a pattern matches, sorted by file name, each once.
    ///
    /// Files of the same name in several folders are ordered by the pattern that found them, then by
    /// path. `vocab` is the number of tokens of the vocabulary: larger ones are errors when read.
    ///
    /// # Errors
    ///
    /// A pattern that matches nothing, a wrong header or length, and a shard that records another tokenizer;
    /// see [`DataError`].
    pub fn open(patterns: &[String], vocab: usize, tokenizer: &Tokenizer) -> Result<Dataset, DataError> {
        let (paths, again) = find(patterns)?;
        let open = |path: &PathBuf| Shard::open(path, tokenizer);
        let shards: Vec<Shard> = paths.iter().map(open).collect::<Result<_, _>>()?;
        let again =
            shards.iter().filter(|shard| shard.path.as_ref().is_some_and(|path| again.contains(path)));
        let matched_again = again.map(|shard| shard.name.clone()).collect();
        Ok(Dataset { matched_again, ..Dataset::new(shards, vocab) })
    }

    /// A dataset of tokens that are in memory, as one shard called `name`.
    ///
    /// # Errors
    ///
    /// A token outside the vocabulary, at once.
    pub fn from_tokens(name: &str, tokens: Vec<u16>, vocab: usize) -> Result<Dataset, DataError> {
        if let Some(position) = tokens.iter().position(|&token| usize::from(token) >= vocab) {
            let (shard, token, byte) = (name.to_owned(), tokens[position], 2 * position as u64);
            return Err(DataError::OutOfVocabulary { shard, position: position as u64, byte, token, vocab });
        }
        Ok(Dataset::new(vec![Shard::from_tokens(name, tokens)], vocab))
    }

    /// The shards of several sources, in their order, for a vocabulary of `vocab` tokens.
    pub fn mixed(sources: Vec<(String, Dataset)>, vocab: usize) -> Dataset {
        let names = sources.iter().map(|(name, data)| (name.clone(), data.shards.len())).collect();
        let matched_again = sources.iter().flat_map(|(_, data)| data.matched_again.clone()).collect();
        let shards = sources.into_iter().flat_map(|(_, data)| data.shards).collect();
        Dataset { sources: names, matched_again, ..Dataset::new(shards, vocab) }
    }

    fn new(shards: Vec<Shard>, vocab: usize) -> Dataset {
        let tokens = shards.iter().map(|shard| shard.tokens).sum();
        Dataset { shards, vocab, tokens, sources: Vec::new(), matched_again: Vec::new() }
    }

    /// Names of shards that more than one pattern of the data, or of a source, matches.
    pub fn matched_again(&self) -> &[String] {
        &self.matched_again
    }

    /// The places of each source's shards in [`Dataset::shards`], by its name; none of data without sources.
    pub fn sources(&self) -> impl Iterator<Item = (&str, Range<usize>)> {
        let mut end = 0;
        self.sources.iter().map(move |(name, shards)| {
            end += shards;
            (name.as_str(), end - shards..end)
        })
    }

    /// S of one source, whose shards lie at `places`.
    pub fn sequences_of(&self, places: Range<usize>, seq_len: usize) -> u64 {
        self.shards[places].iter().map(|shard| sequences_in(shard.tokens, seq_len)).sum()
    }

    /// Tokens in all shards.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Tokens in the shards that give a sequence of `seq_len` tokens.
    pub fn usable_tokens(&self, seq_len: usize) -> u64 {
        let tokens = self.shards.iter().map(|shard| shard.tokens);
        tokens.filter(|tokens| sequences_in(*tokens, seq_len) > 0).sum()
    }

    /// S: sequences of `seq_len` tokens in all shards. May be 0; see [`Dataset::require_sequences`].
    pub fn sequences(&self, seq_len: usize) -> u64 {
        self.sequences_of(0..self.shards.len(), seq_len)
    }

    /// S, refused when it is 0: what [`super::SampleOrder::new`] takes.
    pub fn require_sequences(&self, seq_len: usize) -> Result<NonZeroU64, DataError> {
        NonZeroU64::new(self.sequences(seq_len)).ok_or_else(|| DataError::NoSequences {
            name: self.name(),
            tokens: self.tokens,
            seq_len,
        })
    }

    /// Copies one sequence: T inputs, and T targets shifted by one. T is the length of both slices.
    ///
    /// # Errors
    ///
    /// A sequence past the end, and a token outside the vocabulary.
    ///
    /// # Panics
    ///
    /// When the slices differ in length, which is a bug of the caller.
    pub fn read(&self, sequence: u64, inputs: &mut [u16], targets: &mut [u16]) -> Result<(), DataError> {
        assert_eq!(inputs.len(), targets.len(), "inputs and targets have one length");
        let seq_len = inputs.len();
        let mut local = sequence;
        for shard in &self.shards {
            let held = sequences_in(shard.tokens, seq_len);
            if local < held {
                let mut window = vec![0; seq_len + 1];
                shard.read(local * seq_len as u64, &mut window, self.vocab)?;
                inputs.copy_from_slice(&window[..seq_len]);
                targets.copy_from_slice(&window[1..]);
                return Ok(());
            }
            local -= held;
        }
        Err(DataError::SequenceOutOfRange { sequence, sequences: self.sequences(seq_len), seq_len })
    }

    /// The shards in order.
    pub fn shards(&self) -> impl Iterator<Item = ShardInfo> {
        self.shards.iter().map(|shard| ShardInfo {
            name: shard.name.clone(),
            path: shard.path.clone(),
            tokens: shard.tokens,
            bytes: shard.bytes(),
            recorded: shard.recorded,
        })
    }

    /// Reads every byte of one shard, by its place in [`Dataset::shards`].
    pub(super) fn scan(&self, at: usize) -> Result<Scan, DataError> {
        self.shards[at].scan()
    }

    /// Refuses a shard whose largest token is outside the vocabulary, with the first such token's position.
    pub(super) fn require_vocab(&self, at: usize, largest: u16) -> Result<(), DataError> {
        if usize::from(largest) < self.vocab { Ok(()) } else { self.shards[at].require_vocab(self.vocab) }
    }

    /// The name of the data in messages.
    pub(super) fn name(&self) -> String {
        match self.shards.as_slice() {
            [only] => only.label(),
            [first, .., last] => format!("{} … {}", first.label(), last.name),
            [] => "no shards".to_owned(),
        }
    }
}

/// Sequences of `seq_len` inputs, each with its shifted targets, in a shard.
fn sequences_in(tokens: u64, seq_len: usize) -> u64 {
    tokens.saturating_sub(1).checked_div(seq_len as u64).unwrap_or(0)
}

/// Files that the patterns match, each once, by file name, then pattern, then path; and those among them that
/// more than one pattern matches.
fn find(patterns: &[String]) -> Result<(Vec<PathBuf>, BTreeSet<PathBuf>), DataError> {
    if patterns.is_empty() {
        return Err(DataError::NoPatterns);
    }
    let mut found: BTreeMap<(OsString, usize, PathBuf), ()> = BTreeMap::new();
    let mut first_pattern: BTreeMap<PathBuf, usize> = BTreeMap::new();
    let mut again = BTreeSet::new();
    for (at, pattern) in patterns.iter().enumerate() {
        let matches = glob::glob(pattern).map_err(|e| DataError::BadPattern {
            pattern: pattern.clone(),
            at: e.pos + 1,
            message: e.msg,
        })?;
        let mut any = false;
        for entry in matches {
            let path = entry.map_err(|e| {
                let path = e.path().to_owned();
                DataError::Io { action: "look into", path, reason: e.into() }
            })?;
            any = true;
            let name = path.file_name().unwrap_or(path.as_os_str()).to_owned();
            let first = *first_pattern.entry(path.clone()).or_insert(at);
            if first != at {
                again.insert(path.clone());
            }
            found.insert((name, first, path), ());
        }
        if !any {
            let folder = fixed_folder(pattern);
            return Err(DataError::NoMatch { pattern: pattern.clone(), found: describe(&folder), folder });
        }
    }
    Ok((found.into_keys().map(|(_, _, path)| path).collect(), again))
}

/// The part of a pattern before its first wildcard, up to a folder.
fn fixed_folder(pattern: &str) -> PathBuf {
    let fixed: PathBuf = Path::new(pattern)
        .components()
        .take_while(|part| !part.as_os_str().to_string_lossy().contains(['*', '?', '[']))
        .collect();
    let folder = if fixed == Path::new(pattern) {
        fixed.parent().map(Path::to_owned).unwrap_or_default()
    } else {
        fixed
    };
    if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder }
}

/// A description of a folder's content, for the message that nothing matches.
fn describe(folder: &Path) -> String {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return if folder.exists() { "cannot be read".into() } else { "does not exist".into() };
    };
    match entries.count() {
        0 => "is empty".into(),
        1 => "holds 1 other entry".into(),
        n => format!("holds {n} other entries"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::super::shard::header;
    use super::*;

    fn write_shard(dir: &Path, name: &str, tokens: &[u16]) {
        let mut bytes = header(tokens.len() as u64).to_vec();
        bytes.extend(tokens.iter().flat_map(|t| t.to_le_bytes()));
        fs::write(dir.join(name), bytes).unwrap();
    }

    fn pattern(dir: &TempDir, tail: &str) -> Vec<String> {
        vec![dir.path().join(tail).display().to_string()]
    }

    fn read(data: &Dataset, sequence: u64, seq_len: usize) -> (Vec<u16>, Vec<u16>) {
        let (mut inputs, mut targets) = (vec![0; seq_len], vec![0; seq_len]);
        data.read(sequence, &mut inputs, &mut targets).unwrap();
        (inputs, targets)
    }

    #[test]
    fn shards_of_different_sizes_form_one_space_and_lose_only_short_tails() {
        let dir = tempfile::tempdir().unwrap();
        write_shard(dir.path(), "t_000002.bin", &[20, 21, 22]);
        write_shard(dir.path(), "t_000001.bin", &[10, 11, 12, 13, 14, 15]);
        write_shard(dir.path(), "t_000003.bin", &[30, 31]);
        write_shard(dir.path(), "t_000004.bin", &[40, 41, 42, 43, 44]);
        let data = Dataset::open(&pattern(&dir, "t_*.bin"), 100, &Tokenizer::Byte).unwrap();
        assert_eq!(data.tokens(), 16);
        assert_eq!(data.sequences(2), 2 + 1 + 2, "(6-1)/2 + (3-1)/2 + 0 + (5-1)/2");
        assert_eq!(read(&data, 1, 2), (vec![12, 13], vec![13, 14]));
        assert_eq!(read(&data, 2, 2), (vec![20, 21], vec![21, 22]));
        assert_eq!(read(&data, 3, 2), (vec![40, 41], vec![41, 42]));
        assert_eq!(read(&data, 4, 2), (vec![42, 43], vec![43, 44]));
        let past = data.read(5, &mut [0; 2], &mut [0; 2]).unwrap_err();
        assert!(matches!(past, DataError::SequenceOutOfRange { sequence: 5, sequences: 5, seq_len: 2 }));
    }

    #[test]
    fn shards_are_sorted_by_file_name_across_folders_and_patterns_and_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["b", "a"] {
            fs::create_dir(dir.path().join(sub)).unwrap();
        }
        write_shard(&dir.path().join("b"), "t_1.bin", &[1, 2]);
        write_shard(&dir.path().join("a"), "t_2.bin", &[1, 2]);
        write_shard(&dir.path().join("a"), "t_1.bin", &[1, 2]);
        let patterns =
            [pattern(&dir, "b/*.bin"), pattern(&dir, "a/*.bin"), pattern(&dir, "b/t_1.bin")].concat();
        let data = Dataset::open(&patterns, 10, &Tokenizer::Byte).unwrap();
        let paths: Vec<_> =
            data.shards().map(|s| s.path.unwrap().strip_prefix(dir.path()).unwrap().to_owned()).collect();
        assert_eq!(paths, [Path::new("b/t_1.bin"), Path::new("a/t_1.bin"), Path::new("a/t_2.bin")]);
        assert_eq!(data.matched_again(), ["t_1.bin"], "that of `b`");
        let mixed = Dataset::mixed(vec![("source".to_owned(), data)], 10);
        assert_eq!(mixed.matched_again(), ["t_1.bin"]);
        let once = Dataset::open(&pattern(&dir, "?/*.bin"), 10, &Tokenizer::Byte).unwrap();
        assert!(once.matched_again().is_empty());
    }

    #[test]
    fn a_pattern_without_match_names_pattern_and_folder() {
        let dir = tempfile::tempdir().unwrap();
        write_shard(dir.path(), "val.bin", &[1, 2]);
        let folder = dir.path().display().to_string();
        let message =
            |tail: &str| Dataset::open(&pattern(&dir, tail), 10, &Tokenizer::Byte).unwrap_err().to_string();
        let text = message("train_*.bin");
        assert!(
            text.contains(&format!("no file matches `{folder}/train_*.bin`: looked in `{folder}`")),
            "{text}"
        );
        assert!(text.contains("holds 1 other entry"), "{text}");
        assert!(
            message("train.bin").contains(&format!("looked in `{folder}`, which holds")),
            "{}",
            message("train.bin")
        );
        assert!(
            message("no/*.bin").contains(&format!("looked in `{folder}/no`, which does not exist")),
            "{}",
            message("no/*.bin")
        );
        assert!(
            message("x*/y/*.bin").contains(&format!("looked in `{folder}`,")),
            "{}",
            message("x*/y/*.bin")
        );
    }

    #[test]
    fn a_name_with_a_bracket_is_written_as_a_pattern_of_itself() {
        let dir = tempfile::tempdir().unwrap();
        write_shard(dir.path(), "a[1].bin", &[1, 2]);
        let open = |names: &[String]| Dataset::open(names, 10, &Tokenizer::Byte);
        let text = open(&pattern(&dir, "a[1].bin")).unwrap_err().to_string();
        assert!(text.contains("is there, but `[` begins a set: write `"), "{text}");
        assert!(text.ends_with("/a[[]1[]].bin`"), "{text}");
        assert!(open(&pattern(&dir, "a[[]1[]].bin")).is_ok());
        let text = open(&["a[1.bin".to_owned()]).unwrap_err().to_string();
        assert!(text.contains("`[[]`"), "{text}");
        let text = open(&["$HOME/a.bin".to_owned()]).unwrap_err().to_string();
        assert!(text.contains("by a shell alone"), "{text}");
    }

    #[test]
    fn one_pattern_without_match_among_good_ones_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        write_shard(dir.path(), "val.bin", &[1, 2]);
        let patterns = [pattern(&dir, "val.bin"), pattern(&dir, "other*.bin")].concat();
        assert!(matches!(Dataset::open(&patterns, 10, &Tokenizer::Byte), Err(DataError::NoMatch { .. })));
    }

    #[test]
    fn a_malformed_or_missing_pattern_is_refused() {
        assert!(matches!(
            Dataset::open(&["a/[.bin".into()], 10, &Tokenizer::Byte),
            Err(DataError::BadPattern { .. })
        ));
        assert!(matches!(Dataset::open(&[], 10, &Tokenizer::Byte), Err(DataError::NoPatterns)));
    }

    #[test]
    fn a_bad_shard_among_good_ones_is_found_at_start() {
        let dir = tempfile::tempdir().unwrap();
        write_shard(dir.path(), "t_1.bin", &[1, 2]);
        fs::write(dir.path().join("t_2.bin"), "<html>").unwrap();
        assert!(matches!(
            Dataset::open(&pattern(&dir, "*.bin"), 10, &Tokenizer::Byte),
            Err(DataError::Html { .. })
        ));
    }

    #[test]
    fn no_sequence_is_refused_where_one_is_required() {
        let data = Dataset::from_tokens("tiny", vec![1, 2, 3], 10).unwrap();
        assert_eq!(data.require_sequences(2).unwrap().get(), 1);
        let message = data.require_sequences(3).unwrap_err().to_string();
        assert!(message.contains("3 tokens in `tiny` hold no sequence of 3"), "{message}");
        assert_eq!(
            (data.sequences(0), Dataset::from_tokens("none", vec![], 10).unwrap().sequences(1)),
            (0, 0)
        );
    }

    #[test]
    fn a_bad_last_target_is_found_too() {
        let dir = tempfile::tempdir().unwrap();
        write_shard(dir.path(), "t.bin", &[1, 2, 99]);
        let data = Dataset::open(&pattern(&dir, "t.bin"), 50, &Tokenizer::Byte).unwrap();
        let error = data.read(0, &mut [0; 2], &mut [0; 2]).unwrap_err();
        assert!(
            matches!(error, DataError::OutOfVocabulary { position: 2, byte: 1028, token: 99, .. }),
            "{error}"
        );
        assert!(matches!(
            Dataset::from_tokens("m", vec![1, 60], 50),
            Err(DataError::OutOfVocabulary { position: 1, .. })
        ));
    }
}
