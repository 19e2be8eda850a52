//! One token shard: 1024 bytes of header, then 16-bit tokens, all little-endian.
//!
//! The header is 256 `int32`: magic 20240520, version 1, number of tokens, zeros. It is the format of llm.c,
//! which reads only these three words, so each program opens the other's shards. A count is read as unsigned,
//! so a shard may hold up to 2^32 - 1 tokens (8.6 GB); [`MAX_TOKENS`] is what may be written, so that readers
//! of a signed count agree.
//!
//! Where llm.c has zeros, shards that `runner data prepare` writes record their tokenizer:
//!
//! | bytes | content |
//! |---|---|
//! | 12..16 | `TOK1` |
//! | 16..32 | the tokenizer's name (`gpt2`, `byte`), filled up with zeros |
//! | 32..64 | [`Tokenizer::sha256`] |

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::error::DataError;
use super::passages::{PassageSketch, PassageSketcher};
use super::read_at::ReadAt;
use super::tokenizer::Tokenizer;

/// First word of a token shard.
pub const MAGIC: u32 = 20_240_520;
/// Second word: 16-bit tokens.
pub const VERSION: u32 = 1;
/// Bytes before the first token.
pub const HEADER_BYTES: u64 = 1024;
/// Most tokens a shard is written with: what a signed 32-bit count can say.
pub const MAX_TOKENS: u64 = i32::MAX as u64;

/// Magics of llm.c's other files, and of newer shards, with what to do instead.
const KNOWN_MAGICS: [(u32, &str); 3] = [
    (20_240_522, "this is a multiple-choice evaluation file: name it in `eval.hellaswag`"),
    (20_240_326, "this is a model checkpoint: name it in `model.init`"),
    (20_240_801, "this is a shard of 32-bit tokens (Llama 3): only 16-bit GPT-2 shards can be read"),
];

/// Marks a header that records its tokenizer, at byte 12.
const RECORDED: &[u8; 4] = b"TOK1";

/// The header of a shard with this many tokens, made with `tokenizer`.
pub fn recorded_header(tokens: u64, tokenizer: &Tokenizer) -> [u8; HEADER_BYTES as usize] {
    let mut bytes = header(tokens);
    let name = tokenizer.name().as_bytes();
    bytes[12..16].copy_from_slice(RECORDED);
    bytes[16..16 + name.len()].copy_from_slice(name);
    bytes[32..64].copy_from_slice(&tokenizer.sha256());
    bytes
}

/// The tokenizer that a header records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedTokenizer {
    pub name: String,
    pub sha256: [u8; 32],
}

/// The content of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardHeader {
    pub tokens: u64,
    /// `None` in shards of llm.c's tools and of older versions.
    pub tokenizer: Option<RecordedTokenizer>,
}

/// The result of reading a whole shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scan {
    /// Of the shard as a file.
    pub sha256: [u8; 32],
    /// The largest token; 0 for a shard without any.
    pub largest: u16,
    pub passages: PassageSketch,
}

/// The header of a shard with this many tokens and no record of its tokenizer.
pub fn header(tokens: u64) -> [u8; HEADER_BYTES as usize] {
    let count = u32::try_from(tokens).expect("writers close a shard at MAX_TOKENS");
    let mut bytes = [0; HEADER_BYTES as usize];
    for (at, word) in [MAGIC, VERSION, count].into_iter().enumerate() {
        bytes[4 * at..4 * at + 4].copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// Tokens in order, on disk or in memory.
#[derive(Debug)]
pub(super) struct Shard {
    /// File name, or the name of an embedded corpus.
    pub name: String,
    /// `None` for tokens in memory.
    pub path: Option<PathBuf>,
    pub tokens: u64,
    /// Whether its header records its tokenizer; tokens in memory were just made with it.
    pub recorded: bool,
    content: ShardContent,
}

#[derive(Debug)]
enum ShardContent {
    File(ReadAt),
    Owned(Vec<u16>),
}

impl Shard {
    /// Opens a file and checks its header against its length and `tokenizer`. Reads no token.
    ///
    /// # Errors
    ///
    /// What [`check`] finds, and a shard that records another tokenizer.
    pub fn open(path: &Path, tokenizer: &Tokenizer) -> Result<Shard, DataError> {
        let file = ReadAt::open(path)?;
        let mut head = vec![0; file.bytes().min(HEADER_BYTES) as usize];
        file.read(0, &mut head)?;
        let header = check(path, &head, file.bytes())?;
        if let Some(recorded) = &header.tokenizer
            && (recorded.name != tokenizer.name() || recorded.sha256 != tokenizer.sha256())
        {
            return Err(DataError::OtherTokenizer {
                path: path.to_owned(),
                recorded: recorded.name.clone(),
                sha256: hex::encode(recorded.sha256),
                wanted: tokenizer.name(),
            });
        }
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let (tokens, recorded) = (header.tokens, header.tokenizer.is_some());
        Ok(Shard { name, path: Some(path.to_owned()), tokens, recorded, content: ShardContent::File(file) })
    }

    /// Tokens that are in memory already.
    pub fn from_tokens(name: &str, tokens: Vec<u16>) -> Shard {
        Shard {
            name: name.to_owned(),
            path: None,
            tokens: tokens.len() as u64,
            recorded: true,
            content: ShardContent::Owned(tokens),
        }
    }

    /// Bytes that the shard has as a file.
    pub fn bytes(&self) -> u64 {
        HEADER_BYTES + 2 * self.tokens
    }

    /// Copies tokens from `position` on, as many as `out` takes, and checks each against `vocab`.
    ///
    /// The caller stays within the shard.
    ///
    /// # Errors
    ///
    /// A token outside the vocabulary, and a file that has changed since it was opened.
    pub fn read(&self, position: u64, out: &mut [u16], vocab: usize) -> Result<(), DataError> {
        match &self.content {
            ShardContent::Owned(tokens) => {
                let at = position as usize;
                out.copy_from_slice(&tokens[at..at + out.len()]);
            }
            ShardContent::File(file) => {
                file.read(HEADER_BYTES + 2 * position, bytemuck::cast_slice_mut(out))?;
                out.iter_mut().for_each(|token| *token = u16::from_le(*token));
            }
        }
        match out.iter().position(|&token| usize::from(token) >= vocab) {
            None => Ok(()),
            Some(bad) => Err(self.out_of_vocabulary(position + bad as u64, out[bad], vocab)),
        }
    }

    fn out_of_vocabulary(&self, position: u64, token: u16, vocab: usize) -> DataError {
        let byte = HEADER_BYTES + 2 * position;
        DataError::OutOfVocabulary { shard: self.label(), position, byte, token, vocab }
    }

    /// Reads every byte: the SHA-256 of the shard as a file (tokens in memory are hashed as the file without
    /// a record of its tokenizer that they would make), its largest token, and its passages.
    pub fn scan(&self) -> Result<Scan, DataError> {
        let mut hash = Sha256::new();
        let mut largest = 0;
        let mut passages = PassageSketcher::new();
        match &self.content {
            ShardContent::File(file) => {
                let mut skip = HEADER_BYTES as usize;
                file.scan(|part| {
                    hash.update(part);
                    // Parts have an even length, so no token is divided.
                    let (pairs, _) = part[skip.min(part.len())..].as_chunks::<2>();
                    for token in pairs.iter().map(|pair| u16::from_le_bytes(*pair)) {
                        largest = largest.max(token);
                        passages.push(token);
                    }
                    skip = skip.saturating_sub(part.len());
                })?;
            }
            ShardContent::Owned(tokens) => {
                hash.update(header(self.tokens));
                for part in tokens.chunks(1 << 15) {
                    hash.update(part.iter().flat_map(|t| t.to_le_bytes()).collect::<Vec<u8>>());
                }
                largest = tokens.iter().copied().max().unwrap_or(0);
                tokens.iter().for_each(|token| passages.push(*token));
            }
        }
        Ok(Scan { sha256: hash.finalize().into(), largest, passages: passages.finish() })
    }

    /// Finds the first token outside the vocabulary, for the message, after [`Shard::scan`] has found that
    /// there is one.
    pub fn require_vocab(&self, vocab: usize) -> Result<(), DataError> {
        let mut part = vec![0; 1 << 19];
        let mut position = 0;
        while position < self.tokens {
            let length = (self.tokens - position).min(part.len() as u64);
            self.read(position, &mut part[..length as usize], vocab)?;
            position += length;
        }
        Ok(())
    }

    /// Its name in messages: the path, else the name.
    pub fn label(&self) -> String {
        self.path.as_ref().map_or_else(|| self.name.clone(), |path| path.display().to_string())
    }
}

/// Checks the start of a shard (its first [`HEADER_BYTES`], or all of a shorter file) against the file's
/// length, `got_bytes`.
///
/// # Errors
///
/// A wrong header, or a length that differs from the header's. `path` is for the message.
pub fn check(path: &Path, head: &[u8], got_bytes: u64) -> Result<ShardHeader, DataError> {
    let path = path.to_owned();
    if let Some(start) = html_start(head) {
        return Err(DataError::Html { path, start });
    }
    let word = |at: usize| Some(u32::from_le_bytes(head.get(4 * at..4 * at + 4)?.try_into().ok()?));
    if let Some(got) = word(0).filter(|&magic| magic != MAGIC) {
        return Err(DataError::Magic { path, got, hint: magic_hint(got, head, got_bytes) });
    }
    if let Some(got) = word(1).filter(|&version| version != VERSION) {
        return Err(DataError::Version { path, got });
    }
    let Some(tokens) = word(2).filter(|_| got_bytes >= HEADER_BYTES) else {
        return Err(DataError::HeaderTruncated { path, got_bytes });
    };
    let tokens = u64::from(tokens);
    let expected_bytes = HEADER_BYTES + 2 * tokens;
    match got_bytes.cmp(&expected_bytes) {
        _ if tokens == 0 && got_bytes == expected_bytes => Err(DataError::Empty { path }),
        std::cmp::Ordering::Less => Err(DataError::Truncated { path, tokens, expected_bytes, got_bytes }),
        std::cmp::Ordering::Greater => Err(DataError::TooLong { path, tokens, expected_bytes, got_bytes }),
        std::cmp::Ordering::Equal => Ok(ShardHeader { tokens, tokenizer: recorded(head) }),
    }
}

fn recorded(head: &[u8]) -> Option<RecordedTokenizer> {
    let record = head.get(12..64)?.strip_prefix(RECORDED)?;
    let (name, sha256) = record.split_at(16);
    let name = String::from_utf8_lossy(name).trim_end_matches('\0').to_owned();
    Some(RecordedTokenizer { name, sha256: sha256.try_into().ok()? })
}

fn magic_hint(got: u32, bytes: &[u8], file_bytes: u64) -> &'static str {
    if let Some((_, hint)) = KNOWN_MAGICS.iter().find(|(magic, _)| *magic == got) {
        return hint;
    }
    if bytes.starts_with(b"version https://git-lfs") {
        return "this is a pointer of Git LFS: run `git lfs pull`";
    }
    if bytes.starts_with(&[0x1f, 0x8b])
        || bytes.starts_with(b"\xfd7zXZ")
        || bytes.starts_with(b"\x28\xb5\x2f\xfd")
    {
        return "the file is compressed: unpack it first";
    }
    let (pairs, _) = bytes.as_chunks::<2>();
    let are_tokens = pairs.iter().all(|pair| u16::from_le_bytes(*pair) < 50_257);
    // Text has no zero bytes.
    if file_bytes.is_multiple_of(2) && bytes.contains(&0) && are_tokens {
        return "it looks like uint16 tokens without a header, as nanoGPT writes them: make shards from the \
                text that they came from with `runner data prepare`";
    }
    "make shards from text with `runner data prepare`"
}

/// The start of a file that looks like a web page.
pub(super) fn html_start(bytes: &[u8]) -> Option<String> {
    let head = bytes.get(..bytes.len().min(512))?;
    let text = String::from_utf8_lossy(head);
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let lower = text.to_ascii_lowercase();
    let is_page = ["<!doctype", "<html", "<head", "<body", "<?xml"].iter().any(|tag| lower.starts_with(tag));
    is_page.then(|| text.lines().next().unwrap_or("").chars().take(40).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    fn file(content: &[u8]) -> (TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x_train_000001.bin");
        fs::write(&path, content).unwrap();
        (dir, path)
    }

    fn shard(tokens: &[u16]) -> Vec<u8> {
        let mut bytes = header(tokens.len() as u64).to_vec();
        bytes.extend(tokens.iter().flat_map(|t| t.to_le_bytes()));
        bytes
    }

    fn refusal(content: &[u8]) -> String {
        let (_dir, path) = file(content);
        let message = Shard::open(&path, &Tokenizer::Byte).unwrap_err().to_string();
        assert!(message.contains(&path.display().to_string()), "no file in: {message}");
        message
    }

    #[test]
    fn the_header_is_the_one_of_the_format() {
        let h = header(338_025);
        assert_eq!(h.len(), 1024);
        assert_eq!(h[..12], [0x88, 0xd8, 0x34, 0x01, 1, 0, 0, 0, 0x69, 0x28, 0x05, 0]);
        assert!(h[12..].iter().all(|&b| b == 0));
    }

    #[test]
    fn tokens_come_back_from_any_position() {
        let (_dir, path) = file(&shard(&[5, 50256, 0, 7]));
        let shard = Shard::open(&path, &Tokenizer::Byte).unwrap();
        assert_eq!((shard.tokens, shard.bytes()), (4, 1032));
        let mut out = [0; 3];
        shard.read(1, &mut out, 50257).unwrap();
        assert_eq!(out, [50256, 0, 7]);
    }

    #[test]
    fn a_truncated_shard_is_refused_with_both_lengths() {
        let mut bytes = shard(&[1, 2, 3, 4]);
        bytes.truncate(1031);
        let message = refusal(&bytes);
        assert!(
            message.contains("promises 4 tokens, that is 1032 bytes, but the file ends at byte 1031"),
            "{message}"
        );
    }

    #[test]
    fn an_absurd_count_is_a_length_that_the_file_does_not_have() {
        let mut bytes = shard(&[1, 2, 3, 4]);
        bytes[8..12].copy_from_slice(&(-1i32).to_le_bytes());
        let message = refusal(&bytes);
        assert!(message.contains("promises 4294967295 tokens, that is 8589935614 bytes, but"), "{message}");
    }

    #[test]
    fn a_shard_longer_than_its_header_says_is_refused() {
        let mut bytes = shard(&[1, 2]);
        bytes.extend([0, 0]);
        let message = refusal(&bytes);
        assert!(
            message.contains("too long") && message.contains("1028 bytes, but the file has 1030"),
            "{message}"
        );
    }

    #[test]
    fn a_cut_header_is_refused_wherever_it_is_cut() {
        let whole = shard(&[1]);
        for len in [0, 3, 4, 7, 11, 12, 1023] {
            let message = refusal(&whole[..len]);
            assert!(message.contains(&format!("at least 1024 bytes, got {len}")), "{len}: {message}");
        }
    }

    #[test]
    fn a_web_page_is_named_as_one() {
        for page in
            ["<!DOCTYPE html>\n<title>404</title>", "\u{feff}\n <HTML><body>", "<?xml version='1.0'?><Error>"]
        {
            let message = refusal(page.as_bytes());
            assert!(message.contains("web page saved as a token shard"), "{message}");
        }
    }

    #[test]
    fn tokens_without_a_header_are_explained() {
        let message = refusal(&[0, 0, 1, 0, 2, 0, 3, 0]);
        assert!(message.contains("uint16 tokens without a header, as nanoGPT writes them"), "{message}");
        assert!(!refusal(b"some text here").contains("nanoGPT"));
    }

    #[test]
    fn a_foreign_magic_is_refused_and_known_ones_are_explained() {
        let mut bytes = shard(&[1]);
        bytes[..4].copy_from_slice(&20_240_522u32.to_le_bytes());
        let message = refusal(&bytes);
        assert!(message.contains("expected magic 20240520 at byte 0, got 20240522"), "{message}");
        assert!(message.contains("eval.hellaswag"), "{message}");
        assert!(refusal(b"version https://git-lfs.github.com/spec/v1\n").contains("git lfs pull"));
        assert!(refusal(&[0x1f, 0x8b, 8, 0]).contains("unpack"));
    }

    #[test]
    fn an_unknown_version_is_refused() {
        let mut bytes = shard(&[1]);
        bytes[4] = 7;
        let message = refusal(&bytes);
        assert!(message.contains("expected 1 at byte 4, got 7"), "{message}");
    }

    #[test]
    fn a_shard_without_tokens_is_refused() {
        assert!(refusal(&shard(&[])).contains("holds no tokens"));
    }

    #[test]
    fn a_folder_is_not_a_shard() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Shard::open(dir.path(), &Tokenizer::Byte), Err(DataError::NotAFile { .. })));
    }

    #[test]
    fn a_recorded_tokenizer_is_held_to_and_read_by_its_name() {
        let gpt2 = Tokenizer::new(crate::experiment::Tokenizer::Gpt2);
        let mut bytes = recorded_header(2, &Tokenizer::Byte).to_vec();
        assert_eq!(bytes[..12], header(2)[..12], "llm.c reads these alone");
        assert_eq!(&bytes[12..32], b"TOK1byte\0\0\0\0\0\0\0\0\0\0\0\0");
        assert!(bytes[64..].iter().all(|&b| b == 0));
        bytes.extend([1, 0, 2, 0]);
        let (_dir, path) = file(&bytes);
        assert!(Shard::open(&path, &Tokenizer::Byte).unwrap().recorded);
        let error = Shard::open(&path, &gpt2).unwrap_err().to_string();
        assert!(
            error.contains("made with the tokenizer `byte`") && error.contains("expected `gpt2`"),
            "{error}"
        );
        // Another tokenizer of the same name.
        bytes[40] ^= 1;
        let (_dir, path) = file(&bytes);
        let error = Shard::open(&path, &Tokenizer::Byte).unwrap_err().to_string();
        assert!(error.contains("`byte` of SHA-256"), "{error}");
    }

    #[test]
    fn the_largest_token_is_found_in_every_part_of_a_large_shard() {
        for at in [0, 523_775, 523_776, 700_000, 1_299_999] {
            let mut tokens = vec![3; 1_300_000];
            tokens[at] = 40_000;
            let (_dir, path) = file(&shard(&tokens));
            let shard = Shard::open(&path, &Tokenizer::Byte).unwrap();
            assert_eq!(shard.scan().unwrap().largest, 40_000, "{at}");
            let error = shard.require_vocab(40_000).unwrap_err().to_string();
            assert!(error.contains(&format!("holds token 40000 at position {at} ")), "{error}");
            shard.require_vocab(40_001).unwrap();
        }
    }

    #[test]
    fn a_token_outside_the_vocabulary_is_named_by_position_and_byte() {
        let (_dir, path) = file(&shard(&[1, 2, 50257, 3]));
        let message = Shard::open(&path, &Tokenizer::Byte)
            .unwrap()
            .read(1, &mut [0; 3], 50257)
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("token 50257 at position 2 (byte 1028): expected less than 50257"),
            "{message}"
        );
        assert!(message.contains("x_train_000001.bin"), "{message}");
    }

    #[test]
    fn tokens_in_memory_hash_as_the_file_they_would_make() {
        let tokens: Vec<u16> = (0..40_000).map(|i| (i % 977) as u16).collect();
        let (_dir, path) = file(&shard(&tokens));
        let file = Shard::open(&path, &Tokenizer::Byte).unwrap().scan().unwrap();
        assert_eq!(file, Shard::from_tokens("x", tokens).scan().unwrap());
        assert_eq!(file.largest, 976);
    }

    /// Sparse, so it takes no room: 2^31 + 8 tokens, 4.29 GB, past every signed and 32-bit limit.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_shard_over_four_gigabytes_is_read_at_its_end() {
        use std::os::unix::fs::FileExt;
        let (_dir, path) = file(&[]);
        let tokens = (1u64 << 31) + 8;
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&header(tokens), 0).unwrap();
        file.set_len(HEADER_BYTES + 2 * tokens).unwrap();
        file.write_all_at(&[0x34, 0x12], HEADER_BYTES + 2 * (tokens - 1)).unwrap();
        let shard = Shard::open(&path, &Tokenizer::Byte).unwrap();
        assert_eq!(shard.tokens, tokens);
        let mut out = [9; 2];
        shard.read(tokens - 2, &mut out, 50257).unwrap();
        assert_eq!(out, [0, 0x1234]);
        let error = shard.read(tokens - 2, &mut out, 100).unwrap_err().to_string();
        assert!(error.contains("position 2147483655 (byte 4294968334)"), "{error}");
    }
}
