//! A SHA-256 value, and hashing under a tag.
//!
//! Tags keep hashes of different kinds apart: bytes that make a leaf can never make a node. A tag
//! is hashed twice over (64 bytes, one SHA-256 block), so its state is computed once and copied.

use std::io::{self, Read, Write};
use std::{fmt, str::FromStr, sync::LazyLock};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256, block_api::compress256};

/// 32 bytes of SHA-256, written as 64 lowercase hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// Plain SHA-256 of `bytes`, as `sha256sum` prints it.
    pub fn of(bytes: &[u8]) -> Hash {
        Hash(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text is not a hash.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a hash: expected 64 lowercase hexadecimal digits, got {} characters",
    text.chars().count()
)]
pub struct NotAHash {
    pub text: String,
}

impl FromStr for Hash {
    type Err = NotAHash;

    fn from_str(text: &str) -> Result<Hash, NotAHash> {
        let mut bytes = [0; 32];
        // One value has one spelling, so that files holding hashes stay byte-stable.
        let lowercase = !text.bytes().any(|b| b.is_ascii_uppercase());
        match hex::decode_to_slice(text, &mut bytes) {
            Ok(()) if lowercase => Ok(Hash(bytes)),
            _ => Err(NotAHash { text: text.to_owned() }),
        }
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Hash, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A reader or writer, and plain SHA-256 of the bytes that went through it.
pub struct Hashed<T> {
    through: T,
    hasher: Sha256,
}

impl<T> Hashed<T> {
    pub fn new(through: T) -> Hashed<T> {
        Hashed { through, hasher: Sha256::new() }
    }

    /// What the bytes went through, and their hash.
    pub fn finish(self) -> (T, Hash) {
        (self.through, Hash(self.hasher.finalize().into()))
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.through.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.through.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.through.flush()
    }
}

/// Messages that [`Tag::hash_each`] is given where there are many.
pub(super) const AT_ONCE: usize = 2;

/// Bytes of a block of SHA-256.
const BLOCK: usize = 64;

/// SHA-256 after a tag: `SHA256(name) ‖ SHA256(name)`, one block, already absorbed.
pub(crate) struct Tag(LazyLock<Tagged>);

struct Tagged {
    hasher: Sha256,
    /// The same as words.
    state: [u32; 8],
}

impl Tag {
    /// A tag as a static. `new` must be [`tagged`] of the tag's name.
    const fn new(new: fn() -> Tagged) -> Tag {
        Tag(LazyLock::new(new))
    }

    /// A hasher that has read the tag and goes on from there.
    pub(super) fn hasher(&self) -> Sha256 {
        self.0.hasher.clone()
    }

    /// The words of SHA-256's state after the tag.
    pub(crate) fn state(&self) -> [u32; 8] {
        self.0.state
    }

    /// The tagged hash of each of the messages, which have one length of whole blocks.
    ///
    /// Rounds of one message wait for each other longer than a core is busy with them. Blocks of the messages
    /// in turn let it work on two at a time.
    pub(super) fn hash_each<const N: usize>(&self, messages: [&[u8]; N]) -> [Hash; N] {
        let blocks = messages.map(|message| {
            let (blocks, rest) = message.as_chunks::<BLOCK>();
            assert!(rest.is_empty(), "a message of {} bytes is not of whole blocks", message.len());
            blocks
        });
        let mut states = [self.state(); N];
        for at in 0..blocks[0].len() {
            for (state, blocks) in states.iter_mut().zip(blocks) {
                compress256(state, &blocks[at..=at]);
            }
        }
        let end = [padding(BLOCK + messages[0].len())];
        states.map(|mut state| {
            compress256(&mut state, &end);
            let mut hash = [0; 32];
            hash.as_chunks_mut().0.iter_mut().zip(state).for_each(|(to, word)| *to = word.to_be_bytes());
            Hash(hash)
        })
    }
}

/// What follows a message of `len` bytes, a whole number of blocks: a one bit, zeros, its length in bits
/// (FIPS 180-4, 5.1.1).
fn padding(len: usize) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[0] = 0x80;
    block[BLOCK - 8..].copy_from_slice(&(8 * len as u64).to_be_bytes());
    block
}

fn tagged(name: &str) -> Tagged {
    // FIPS 180-4, 5.3.3.
    let mut state = [
        0x6a09_e667,
        0xbb67_ae85,
        0x3c6e_f372,
        0xa54f_f53a,
        0x510e_527f,
        0x9b05_688c,
        0x1f83_d9ab,
        0x5be0_cd19,
    ];
    let once: [u8; 32] = Sha256::digest(name).into();
    let mut block = [0; BLOCK];
    block.as_chunks_mut().0.fill(once);
    compress256(&mut state, &[block]);
    Tagged { hasher: Sha256::new().chain_update(block), state }
}

pub(crate) static LEAF: Tag = Tag::new(|| tagged("runner/leaf/v1"));
pub(crate) static NODE: Tag = Tag::new(|| tagged("runner/node/v1"));
pub(super) static TENSOR: Tag = Tag::new(|| tagged("runner/tensor/v1"));
pub(super) static STEP: Tag = Tag::new(|| tagged("runner/step/v1"));
pub(super) static LOCK: Tag = Tag::new(|| tagged("runner/lock/v1"));
pub(super) static SWEEP: Tag = Tag::new(|| tagged("runner/sweep/v1"));
pub(super) static MANIFEST: Tag = Tag::new(|| tagged("runner/manifest/v1"));

/// Digest of a checkpoint manifest's text, up to its seal: `SHA256(tag("runner/manifest/v1") ‖ text)`.
pub fn manifest_seal(text: &[u8]) -> Hash {
    Hash(MANIFEST.hasher().chain_update(text).finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seal_of_a_manifest_is_the_documented_one() {
        let seal = manifest_seal(b"{\n  \"format\": \"runner/checkpoint/v1\",\n");
        assert!(
            include_str!("../../docs/digest.md")
                .contains(&format!("`  \"format\": \"runner/checkpoint/v1\",` | `{seal}`"))
        );
    }

    #[test]
    fn tagged_hashes_are_those_of_the_tag_twice_hashed_before_the_message() {
        let bytes: Vec<u8> = (0..4 * 640u32).map(|i| ((i * i) >> 3) as u8).collect();
        for len in [0, 64, 128, 640] {
            let messages = [0, 1, 2, 3].map(|i| &bytes[i * 640..][..len]);
            let once = Sha256::digest("runner/leaf/v1");
            let expected = messages.map(|message| Hash::of(&[&once[..], &once[..], message].concat()));
            assert_eq!(LEAF.hash_each(messages), expected, "{len} bytes");
            assert_eq!(LEAF.hash_each([messages[2]]), [expected[2]], "{len} bytes, alone");
        }
    }

    #[test]
    fn what_goes_through_is_hashed_however_it_comes() {
        let bytes: Vec<u8> = (0..100_000u32).map(|i| (i * 31 % 251) as u8).collect();
        let mut from = Hashed::new(&bytes[..]);
        let mut into = Hashed::new(Vec::new());
        io::copy(&mut from, &mut into).unwrap();
        assert_eq!(from.finish().1, Hash::of(&bytes));
        assert_eq!(into.finish(), (bytes.clone(), Hash::of(&bytes)));
    }

    #[test]
    fn a_hash_reads_back_what_it_prints_and_nothing_else() {
        let hash = Hash::of(b"abc");
        assert_eq!(hash.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(hash.to_string().parse(), Ok(hash));
        assert_eq!(serde_json::from_str::<Hash>(&serde_json::to_string(&hash).unwrap()).unwrap(), hash);
        for wrong in ["", "ba78", &hash.to_string().to_uppercase(), &format!("{hash}00"), &"zz".repeat(32)] {
            assert!(wrong.parse::<Hash>().is_err(), "{wrong}");
        }
    }
}
