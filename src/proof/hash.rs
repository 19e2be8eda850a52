//! A SHA-256 value, and hashing under a tag.
//!
//! Tags keep hashes of different kinds apart: bytes that make a leaf can never make a node. A tag
//! is hashed twice over (64 bytes, one SHA-256 block), so its state is computed once and copied.

use std::{fmt, str::FromStr, sync::LazyLock};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};

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

/// A tag's SHA-256 state: `SHA256(name) ‖ SHA256(name)` already absorbed.
pub(super) struct Tag(LazyLock<Sha256>);

impl Tag {
    /// A tag as a static. `new` must absorb [`tagged`] of the tag's name.
    const fn new(new: fn() -> Sha256) -> Tag {
        Tag(LazyLock::new(new))
    }

    /// A hasher that has read the tag and goes on from there.
    pub(super) fn hasher(&self) -> Sha256 {
        Sha256::clone(&self.0)
    }
}

fn tagged(name: &str) -> Sha256 {
    let once = Sha256::digest(name.as_bytes());
    Sha256::new().chain_update(once).chain_update(once)
}

pub(super) static LEAF: Tag = Tag::new(|| tagged("runner/leaf/v1"));
pub(super) static NODE: Tag = Tag::new(|| tagged("runner/node/v1"));
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
