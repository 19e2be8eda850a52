//! The Merkle tree of RFC 9162, section 2.1.1, over hashes that are leaves already.
//!
//! A tree of n > 1 leaves splits at the largest power of two below n. Pairing neighbours level by
//! level, an odd last one moving up alone, builds the same tree; so does replacing every aligned
//! run of 2^k leaves by its root. The first gives [`tree_root`], the second the [`Frontier`] and
//! the parallel hashing in [`super::digest`].

use sha2::Digest;

use super::hash::{Hash, NODE};

/// `SHA256(tag("runner/node/v1") ‖ left ‖ right)`.
pub fn node(left: &Hash, right: &Hash) -> Hash {
    Hash(NODE.hasher().chain_update(left.0).chain_update(right.0).finalize().into())
}

/// Root of the tree with these leaves; `SHA256("")` without any.
pub fn tree_root(leaves: &[Hash]) -> Hash {
    let mut level = leaves.to_vec();
    while level.len() > 1 {
        let half = level.len().div_ceil(2);
        for i in 0..half {
            level[i] = match level.get(2 * i + 1) {
                Some(right) => node(&level[2 * i], right),
                None => level[2 * i],
            };
        }
        level.truncate(half);
    }
    level.first().copied().unwrap_or_else(empty_root)
}

/// Root of a tree without leaves: `SHA256("")`.
pub fn empty_root() -> Hash {
    Hash::of(b"")
}

/// A tree that grows by one leaf at a time and keeps only what its root needs.
///
/// `peaks` are the roots of the perfect subtrees that the binary digits of `size` name, largest
/// first: at most 64 hashes for any number of leaves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    peaks: Vec<Hash>,
}

impl Frontier {
    pub fn new() -> Frontier {
        Frontier::default()
    }

    /// Leaves so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds a leaf on the right. Amortised one node a leaf.
    pub fn push(&mut self, leaf: Hash) {
        let mut root = leaf;
        // Each trailing one of the size is a perfect subtree as large as the one just completed.
        for _ in 0..self.size.trailing_ones() {
            let left = self.peaks.pop().expect("a peak for every binary digit of the size");
            root = node(&left, &root);
        }
        self.peaks.push(root);
        self.size += 1;
    }

    /// Root of all leaves so far, equal to [`tree_root`] over them.
    pub fn root(&self) -> Hash {
        self.peaks.iter().rev().copied().reduce(|right, left| node(&left, &right)).unwrap_or_else(empty_root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition in RFC 9162, word for word.
    fn by_definition(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => empty_root(),
            [only] => *only,
            _ => {
                let mut split = 1;
                while split * 2 < leaves.len() {
                    split *= 2;
                }
                node(&by_definition(&leaves[..split]), &by_definition(&leaves[split..]))
            }
        }
    }

    #[test]
    fn pairing_and_growing_build_the_tree_of_rfc_9162() {
        let leaves: Vec<Hash> = (0..130u32).map(|i| Hash::of(&i.to_le_bytes())).collect();
        let mut growing = Frontier::new();
        for n in 0..=leaves.len() {
            let expected = by_definition(&leaves[..n]);
            assert_eq!(tree_root(&leaves[..n]), expected, "{n} leaves, paired");
            assert_eq!((growing.size(), growing.root()), (n as u64, expected), "{n} leaves, growing");
            if let Some(next) = leaves.get(n) {
                growing.push(*next);
            }
        }
    }

    #[test]
    fn three_leaves_split_after_the_second() {
        let [a, b, c] = [b"a", b"b", b"c"].map(|x| Hash::of(x));
        assert_eq!(tree_root(&[a, b, c]), node(&node(&a, &b), &c));
        assert_ne!(tree_root(&[a, b, c]), node(&a, &node(&b, &c)));
    }

    #[test]
    fn the_order_of_leaves_counts() {
        let [a, b] = [b"a", b"b"].map(|x| Hash::of(x));
        assert_ne!(tree_root(&[a, b]), tree_root(&[b, a]));
    }
}
