//! `sweep.lock`: what the members of a sweep were and what came out of them, under one hash.
//!
//! A table of names and texts for each member, in the order of their numbers. The hash is a function of the
//! tables alone, so two people who made the same sweep compare their work by it. The text of the file is a
//! function of the tables as well: any other spelling is refused. Callers decide what is in the tables.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::hash::{Hash, SWEEP};
use super::lock::{Table, quoted, texts_digest};
use super::regular;
use super::tree::tree_root;

/// The format that this version writes and reads.
const FORMAT: &str = "runner/sweep/v1";
/// Bytes of the longest file that is read.
const LONGEST: u64 = 64 << 20;

const HEAD: &str = "\
# The members of a sweep, with their settings and what came out. Written by runner, checked to the byte.
# Equal hashes mean equal settings, numerics, ledgers and states of all members.
";

/// The content of `sweep.lock`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SweepLock {
    /// A table a member, in the order of their numbers.
    pub members: Vec<Table>,
}

/// An error in a sweep's lock.
#[derive(Debug, thiserror::Error)]
pub enum SweepLockError {
    #[error("cannot read `{}`: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("`{}` is not the lock of a sweep as runner writes it: {why}\n  hint: it was edited or damaged; \
             delete it, and `runner resume` makes it again from the members", path.display())]
    Damaged { path: PathBuf, why: String },
}

/// The file as serde reads it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenSweepLock {
    format: String,
    hash: Hash,
    member: Vec<Table>,
}

impl SweepLock {
    /// `tree(digest of each member)`, a digest being
    /// `SHA256(tag("runner/sweep/v1") ‖ each key ‖ each value)`, every text behind its length as u32.
    pub fn hash(&self) -> Hash {
        let digest = |member: &Table| {
            let texts = member.iter().flat_map(|(key, value)| [key.as_str(), value]);
            texts_digest(SWEEP.hasher(), texts)
        };
        tree_root(&self.members.iter().map(digest).collect::<Vec<Hash>>())
    }

    /// The text of the file.
    pub fn to_text(&self) -> String {
        let mut text = format!("{HEAD}format = \"{FORMAT}\"\nhash = \"{}\"\n", self.hash());
        for member in &self.members {
            text.push_str("\n[[member]]\n");
            for (key, value) in member {
                text.push_str(&format!("{} = {}\n", quoted(key), quoted(value)));
            }
        }
        text
    }

    /// Reads and checks the file at `path`.
    pub fn read(path: &Path) -> Result<SweepLock, SweepLockError> {
        let bytes = regular::read_within(path, LONGEST)
            .map_err(|source| SweepLockError::Io { path: path.into(), source })?;
        let damaged = |why: String| SweepLockError::Damaged { path: path.into(), why };
        let text = String::from_utf8(bytes).map_err(|_| damaged("it is not UTF-8".into()))?;
        let written: WrittenSweepLock =
            toml::from_str(&text).map_err(|error| damaged(error.message().to_owned()))?;
        if written.format != FORMAT {
            return Err(damaged(format!("its format is `{}`, expected `{FORMAT}`", written.format)));
        }
        let lock = SweepLock { members: written.member };
        if lock.hash() != written.hash {
            return Err(damaged(format!("its members give {}, its head says {}", lock.hash(), written.hash)));
        }
        let expected = lock.to_text();
        if expected != text {
            let same = expected.lines().zip(text.lines()).take_while(|(a, b)| a == b).count();
            return Err(damaged(format!("line {} is spelt otherwise", same + 1)));
        }
        Ok(lock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock() -> SweepLock {
        let member = |number: &str, seed: &str| {
            [("number", number), ("setting.seed", seed), ("state_root", "ab")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into()
        };
        SweepLock { members: vec![member("1", "0"), member("2", "1"), member("3", "\"a\"\u{1b}")] }
    }

    #[test]
    fn a_sweeps_lock_reads_back_equal_and_every_bit_of_it_is_guarded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sweep.lock");
        let good = lock().to_text();
        std::fs::write(&path, &good).unwrap();
        assert_eq!(SweepLock::read(&path).unwrap(), lock());
        for byte in 0..good.len() {
            for bit in 0..7 {
                let mut bad = good.clone().into_bytes();
                bad[byte] ^= 1 << bit;
                std::fs::write(&path, &bad).unwrap();
                let error = SweepLock::read(&path).expect_err("it is damaged").to_string();
                assert!(error.contains("sweep.lock") && error.contains("hint: "), "{error}");
            }
        }
    }

    #[test]
    fn the_hash_is_the_documented_one_and_depends_on_every_text_and_their_order() {
        let hash = lock().hash();
        assert!(include_str!("../../docs/digest.md").contains(&format!("`ab` | `{}`", {
            let mut two = lock();
            two.members.pop();
            two.hash()
        })));
        let mut other = lock();
        other.members.swap(0, 1);
        assert_ne!(other.hash(), hash);
        let mut other = lock();
        other.members[2].insert("setting.seed".into(), "2".into());
        assert_ne!(other.hash(), hash);
    }
}
