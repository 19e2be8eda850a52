//! The Merkle tree of RFC 9162, section 2.1.1, over hashes of leaves.
//!
//! A tree of n > 1 leaves splits at the largest power of two below n. Pairing neighbours level by
//! level, an odd last one moving up alone, builds the same tree; so does replacing every aligned
//! run of 2^k leaves by its root. The first gives [`tree_root`], the second the [`Frontier`] and
//! the parallel hashing in [`super::digest`].

use std::ops::Range;

use super::hash::{AT_ONCE, Hash, NODE};

/// `SHA256(tag("runner/node/v1") ‖ left ‖ right)`.
pub fn node(left: &Hash, right: &Hash) -> Hash {
    let [node] = NODE.hash_each([&pair(left, right)]);
    node
}

fn pair(left: &Hash, right: &Hash) -> [u8; 64] {
    let mut pair = [0; 64];
    pair.as_chunks_mut().0.copy_from_slice(&[left.0, right.0]);
    pair
}

/// Root of the tree with these leaves; `SHA256("")` without any.
pub fn tree_root(leaves: &[Hash]) -> Hash {
    let mut level = leaves.to_vec();
    while level.len() > 1 {
        level = parents(&level);
    }
    level.first().copied().unwrap_or_else(empty_root)
}

/// The nodes over a level of the tree.
fn parents(level: &[Hash]) -> Vec<Hash> {
    let mut parents = Vec::with_capacity(level.len().div_ceil(2));
    let (fours, rest) = level.as_chunks::<{ 2 * AT_ONCE }>();
    for four in fours {
        let pairs: [[u8; 64]; AT_ONCE] = std::array::from_fn(|i| pair(&four[2 * i], &four[2 * i + 1]));
        parents.extend(NODE.hash_each(pairs.each_ref().map(|pair| &pair[..])));
    }
    let (pairs, odd) = rest.as_chunks::<2>();
    parents.extend(pairs.iter().map(|[left, right]| node(left, right)));
    parents.extend(odd);
    parents
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

/// Cuts a range of leaves into the fewest runs that are nodes of every tree that reaches at least to its
/// end: each has a power of two of leaves and starts at a multiple of its length. For hashing a tree in
/// parts, [`join`]ed afterwards.
pub fn aligned_runs(leaves: Range<u64>) -> Vec<Range<u64>> {
    let mut runs = Vec::new();
    let mut at = leaves.start;
    while at < leaves.end {
        let room = 1 << (leaves.end - at).ilog2();
        let aligned = if at == 0 { room } else { 1 << at.trailing_zeros() };
        let next = at + room.min(aligned);
        runs.push(at..next);
        at = next;
    }
    runs
}

/// Root of a tree from the roots of [`aligned_runs`] that cover all its leaves in order, each with
/// its number of leaves.
pub fn join(runs: impl IntoIterator<Item = (u64, Hash)>) -> Hash {
    let mut peaks: Vec<(u64, Hash)> = Vec::new();
    for mut run in runs {
        while let Some((leaves, left)) = peaks.pop_if(|(leaves, _)| *leaves == run.0) {
            run = (2 * leaves, node(&left, &run.1));
        }
        peaks.push(run);
    }
    peaks
        .into_iter()
        .rev()
        .map(|(_, root)| root)
        .reduce(|right, left| node(&left, &right))
        .unwrap_or_else(empty_root)
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
    fn a_tree_hashed_in_parts_has_the_root_of_the_whole() {
        let leaves: Vec<Hash> = (0..133u32).map(|i| Hash::of(&i.to_le_bytes())).collect();
        for n in [0, 1, 2, 7, 64, 100, 133] {
            for cuts in [vec![], vec![1], vec![16, 32, 48], vec![5, 6, 77, 99], (0..n).collect()] {
                let bounds: Vec<u64> =
                    [0].into_iter().chain(cuts).chain([n]).map(|cut: u64| cut.min(n)).collect();
                let runs = bounds.windows(2).flat_map(|pair| aligned_runs(pair[0]..pair[1]));
                let roots = runs.map(|run| {
                    (run.end - run.start, tree_root(&leaves[run.start as usize..run.end as usize]))
                });
                assert_eq!(join(roots), tree_root(&leaves[..n as usize]), "{n} leaves, cut at {bounds:?}");
            }
        }
        assert_eq!(aligned_runs(3..16), [3..4, 4..8, 8..16]);
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
