//! The digest of a training state: leaves of 4096 bytes, a tree a tensor, a tree over the tensors.
//!
//! The specification with test vectors is `docs/digest.md`; this module and `tests/verify_digest.py` were
//! written from it independently. Nothing here depends on threads, on how a tensor is cut into pushes, or on
//! where the bytes came from: a GPU may hash the leaves or whole tensors itself and enter at
//! [`super::tree::tree_root`] or [`tensor_digest_from_root`].

use rayon::prelude::*;
use sha2::Digest;

use super::hash::{AT_ONCE, Hash, LEAF, TENSOR};
use super::tree::tree_root;

/// Bytes a leaf covers; the last leaf of a tensor may cover fewer, never none.
pub const LEAF_BYTES: usize = 4096;

/// Leaves that one parallel task hashes: 1 MiB of tensor. Must be a power of two, so that the
/// root of each task's leaves is a node of the tensor's tree.
const TASK_LEAVES: usize = 256;

/// `SHA256(tag("runner/leaf/v1") ‖ chunk)`, for a chunk of 1 to 4096 bytes.
pub fn leaf(chunk: &[u8]) -> Hash {
    debug_assert!(!chunk.is_empty() && chunk.len() <= LEAF_BYTES, "a leaf covers 1 to {LEAF_BYTES} bytes");
    Hash(LEAF.hasher().chain_update(chunk).finalize().into())
}

/// Merkle root of a tensor's bytes, hashed on all threads of the current rayon pool.
pub fn merkle_root(bytes: &[u8]) -> Hash {
    let subtree = |block: &[u8]| tree_root(&leaves(block));
    let roots: Vec<Hash> = bytes.par_chunks(TASK_LEAVES * LEAF_BYTES).map(subtree).collect();
    tree_root(&roots)
}

/// [`leaf`] of every 4096 bytes.
fn leaves(bytes: &[u8]) -> Vec<Hash> {
    let mut leaves = Vec::with_capacity(bytes.len().div_ceil(LEAF_BYTES));
    let mut groups = bytes.chunks_exact(AT_ONCE * LEAF_BYTES);
    for group in &mut groups {
        let chunks = std::array::from_fn(|i| &group[i * LEAF_BYTES..][..LEAF_BYTES]);
        leaves.extend(LEAF.hash_each::<AT_ONCE>(chunks));
    }
    leaves.extend(groups.remainder().chunks(LEAF_BYTES).map(leaf));
    leaves
}

/// Digest of a tensor: name, type as safetensors writes it, shape and the Merkle root of its bytes
/// (little-endian, dense, unpadded and unsharded).
pub fn tensor_digest(name: &str, dtype: &str, shape: &[u64], bytes: &[u8]) -> Hash {
    tensor_digest_from_root(name, dtype, shape, bytes.len() as u64, &merkle_root(bytes))
}

/// [`tensor_digest`] of a tensor whose `byte_len` bytes were hashed to `root` elsewhere.
///
/// `SHA256(tag("runner/tensor/v1") ‖ u32 length of name ‖ name ‖ u32 length of dtype ‖ dtype ‖ u32 rank
/// ‖ each dimension as u64 ‖ u64 byte_len ‖ root)`, integers little-endian.
pub fn tensor_digest_from_root(name: &str, dtype: &str, shape: &[u64], byte_len: u64, root: &Hash) -> Hash {
    let mut hasher = TENSOR.hasher();
    for text in [name, dtype] {
        hasher.update(length_u32(text.len()));
        hasher.update(text.as_bytes());
    }
    hasher.update(length_u32(shape.len()));
    for dimension in shape {
        hasher.update(dimension.to_le_bytes());
    }
    hasher.update(byte_len.to_le_bytes());
    hasher.update(root.0);
    Hash(hasher.finalize().into())
}

/// Names, types and ranks come from this program's own tables or from headers of less than 4 GiB.
fn length_u32(length: usize) -> [u8; 4] {
    u32::try_from(length).expect("names and ranks are far shorter than 2^32").to_le_bytes()
}

/// A state that has no digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    #[error("the state has two tensors named `{name}`\n  hint: every name must be given once")]
    DuplicateName { name: String },
}

/// The tree over the tensor digests, in byte order of the names; the order given does not matter.
pub fn state_root<'a>(tensors: impl IntoIterator<Item = (&'a str, Hash)>) -> Result<Hash, DigestError> {
    let mut tensors: Vec<(&str, Hash)> = tensors.into_iter().collect();
    tensors.sort_unstable();
    if let Some(pair) = tensors.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(DigestError::DuplicateName { name: pair[0].0.to_owned() });
    }
    Ok(tree_root(&tensors.iter().map(|(_, digest)| *digest).collect::<Vec<_>>()))
}

#[cfg(test)]
#[path = "digest_tests.rs"]
mod tests;
