//! The SHA-256 of a large file by all threads at once.
//!
//! SHA-256 is a chain, and one chain over the 20 GB of a model of 1.5 billion parameters takes longer than a
//! fast disk. So a file is hashed in parts of 256 MiB, each by itself, as
//! `split -b 256M --filter=sha256sum FILE` prints them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::proof::Hash;

/// Bytes of a part; the last may have fewer.
pub const PART_BYTES: u64 = 256 << 20;

/// Plain SHA-256 of each part of a file whose bytes come in order.
pub struct PartsHasher {
    part_bytes: u64,
    whole: Vec<Hash>,
    /// The part being filled, and how many bytes it has.
    open: Sha256,
    filled: u64,
}

impl Default for PartsHasher {
    fn default() -> PartsHasher {
        PartsHasher::of(PART_BYTES)
    }
}

impl PartsHasher {
    /// Hashes in parts of so many bytes, at least one.
    pub fn of(part_bytes: u64) -> PartsHasher {
        PartsHasher { part_bytes, whole: Vec::new(), open: Sha256::new(), filled: 0 }
    }

    /// Takes the next bytes of the file, piece after piece; parts that they complete are hashed side by side.
    pub fn push(&mut self, pieces: &[&[u8]]) {
        let mut parts = vec![(std::mem::take(&mut self.open), Vec::new())];
        for piece in pieces {
            let mut rest = *piece;
            while !rest.is_empty() {
                if self.filled == self.part_bytes {
                    parts.push((Sha256::new(), Vec::new()));
                    self.filled = 0;
                }
                let room = usize::try_from(self.part_bytes - self.filled).unwrap_or(usize::MAX);
                let (now, later) = rest.split_at(rest.len().min(room));
                parts.last_mut().expect("there is always one").1.push(now);
                self.filled += now.len() as u64;
                rest = later;
            }
        }
        let mut parts: Vec<Sha256> = parts
            .into_par_iter()
            .map(|(hasher, bytes)| bytes.iter().fold(hasher, |hasher, bytes| hasher.chain_update(bytes)))
            .collect();
        self.open = parts.pop().expect("there is always one");
        self.whole.extend(parts.into_iter().map(|part| Hash(part.finalize().into())));
    }

    /// The hashes of all parts; of an empty file that of no bytes.
    pub fn finish(mut self) -> Vec<Hash> {
        self.whole.push(Hash(self.open.finalize().into()));
        self.whole
    }
}

/// The plain SHA-256 of a file, and of its parts.
#[derive(Debug, PartialEq, Eq)]
pub struct FileHashes {
    pub whole: Hash,
    pub parts: Vec<Hash>,
}

/// Hashes a file, whose position stays where it is, to its end; none when `stop` is set before that.
pub fn hash_file(file: &File, part_bytes: u64, stop: &AtomicBool) -> io::Result<Option<FileHashes>> {
    let (mut whole, mut parts) = (Sha256::new(), PartsHasher::of(part_bytes));
    let (mut buffer, mut at) = (vec![0; 1 << 20], 0);
    while !stop.load(Ordering::Relaxed) {
        let bytes = match file.read_at(&mut buffer, at)? {
            0 => {
                let whole = Hash(whole.finalize().into());
                return Ok(Some(FileHashes { whole, parts: parts.finish() }));
            }
            read => &buffer[..read],
        };
        rayon::join(|| whole.update(bytes), || parts.push(&[bytes]));
        at += bytes.len() as u64;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_those_of_the_bytes_however_they_come() {
        let bytes: Vec<u8> = (0..1000u32).map(|i| (i * 31 % 251) as u8).collect();
        for part in [1, 7, 100, 999, 1000, 1001, u64::MAX] {
            let expected: Vec<Hash> =
                bytes.chunks(part.try_into().unwrap_or(usize::MAX)).map(Hash::of).collect();
            for step in [1, 3, 100, 1000] {
                let mut hasher = PartsHasher::of(part);
                let pieces: Vec<&[u8]> = bytes.chunks(step).collect();
                pieces.chunks(5).for_each(|pieces| hasher.push(pieces));
                assert_eq!(hasher.finish(), expected, "parts of {part}, pieces of {step}");
            }
        }
        assert_eq!(PartsHasher::default().finish(), [Hash::of(b"")]);
    }

    #[test]
    fn a_file_is_hashed_whole_and_in_parts_until_it_is_stopped() {
        let bytes: Vec<u8> = (0..3_000_000u32).map(|i| (i ^ i >> 8) as u8).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        let hashed = |stop| hash_file(file.as_file(), 1_000_001, &AtomicBool::new(stop)).unwrap();
        let parts = bytes.chunks(1_000_001).map(Hash::of).collect();
        assert_eq!(hashed(false), Some(FileHashes { whole: Hash::of(&bytes), parts }));
        assert_eq!(hashed(true), None);
    }
}
