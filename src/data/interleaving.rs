//! Which source of a mixture each position of the stream of samples has: a pure function, in whole numbers.
//!
//! Sources are the leaves of a binary tree. At a node whose left part has l of w parts of the weight,
//! `⌊(2nl + w) / 2w⌋` of the first n positions that come there go left, which is nl/w to the nearest whole
//! number; the others go right. So the number of positions of each source before any position is known at
//! once, and with it the place within the source: nothing is stored or counted.
//!
//! Every division errs by half a position at most, and a part's error is shared out below it. So over any
//! stretch from the start the count of each of two sources is within a half of what its weight makes of it, of
//! each of three within one. With any number it is within two: the tree joins the two lightest parts again and
//! again (Huffman 1952), so a part has at most half of its grandparent's weight.

#![forbid(unsafe_code)]

/// The tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interleaving(Subtree);

/// A source, or two subtrees.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Subtree {
    Source(usize),
    Split(Box<Split>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Split {
    parts: [Subtree; 2],
    /// l and w.
    left: u64,
    weight: u64,
}

impl Split {
    /// How many of the first `positions` that come here go left. At most 2^64 of them, and weights up to 2^63,
    /// so nothing overflows.
    fn lefts(&self, positions: u128) -> u128 {
        let weight = u128::from(self.weight);
        (2 * positions * u128::from(self.left) + weight) / (2 * weight)
    }
}

impl Interleaving {
    /// Of sources with these weights above 0, whose sum is at most 2^63.
    ///
    /// # Panics
    ///
    /// Without a source.
    pub fn of(weights: &[u64]) -> Interleaving {
        // By weight; parts of one weight by the first of their sources.
        let mut parts: Vec<(u64, usize, Subtree)> =
            weights.iter().enumerate().map(|(at, weight)| (*weight, at, Subtree::Source(at))).collect();
        while parts.len() > 1 {
            parts.sort_by_key(|(weight, first, _)| std::cmp::Reverse((*weight, *first)));
            let (Some(a), Some(b)) = (parts.pop(), parts.pop()) else { break };
            let (left, right) = if a.1 < b.1 { (a, b) } else { (b, a) };
            let weight = left.0 + right.0;
            let split = Split { parts: [left.2, right.2], left: left.0, weight };
            parts.push((weight, left.1, Subtree::Split(Box::new(split))));
        }
        let (_, _, root) = parts.pop().expect("a mixture has sources");
        Interleaving(root)
    }

    /// The source of a position, and how many positions before it are of that source.
    pub fn at(&self, position: u64) -> (usize, u64) {
        let (mut part, mut place) = (&self.0, u128::from(position));
        loop {
            let split = match part {
                // At most `position`.
                Subtree::Source(source) => return (*source, place as u64),
                Subtree::Split(split) => split,
            };
            let left = split.lefts(place);
            let goes_left = split.lefts(place + 1) > left;
            (part, place) = match goes_left {
                true => (&split.parts[0], left),
                false => (&split.parts[1], place - left),
            };
        }
    }

    /// How many of the first `positions` positions are of each source.
    pub fn counts(&self, positions: u64) -> Vec<u64> {
        let mut counts = Vec::new();
        count(&self.0, positions.into(), &mut counts);
        counts.sort_unstable();
        counts.into_iter().map(|(_, count)| count).collect()
    }
}

/// Adds each source below `part`, which has this many positions, and its count.
fn count(part: &Subtree, positions: u128, counts: &mut Vec<(usize, u64)>) {
    match part {
        Subtree::Source(source) => counts.push((*source, positions as u64)),
        Subtree::Split(split) => {
            let left = split.lefts(positions);
            count(&split.parts[0], left, counts);
            count(&split.parts[1], positions - left, counts);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sources(weights: &[u64], positions: u64) -> Vec<usize> {
        let interleaving = Interleaving::of(weights);
        (0..positions).map(|position| interleaving.at(position).0).collect()
    }

    #[test]
    fn sources_alternate_as_their_weights_say() {
        assert_eq!(sources(&[1, 1], 6), [0, 1, 0, 1, 0, 1]);
        assert_eq!(sources(&[7, 3], 10), [0, 1, 0, 0, 0, 1, 0, 0, 1, 0]);
        assert_eq!(sources(&[5], 3), [0, 0, 0]);
        let rare = sources(&[1, 999], 3000);
        assert_eq!(rare.iter().filter(|source| **source == 0).count(), 3);
    }

    /// How far the count of a source is from its share, over all stretches from the start.
    fn worst(weights: &[u64], positions: u64) -> f64 {
        let interleaving = Interleaving::of(weights);
        let sum: u64 = weights.iter().sum();
        let off = |position: u64| {
            let shares = weights.iter().map(move |weight| (position * weight) as f64 / sum as f64);
            let pairs = interleaving.counts(position).into_iter().zip(shares);
            pairs.map(|(count, share)| (count as f64 - share).abs()).fold(0.0, f64::max)
        };
        (0..positions).map(off).fold(0.0, f64::max)
    }

    #[test]
    fn two_sources_have_their_share_within_half_a_sequence_three_within_one_and_many_within_two() {
        for weights in [[7, 3], [1, 1], [1, 999], [13, 14]] {
            assert!(worst(&weights, 3000) <= 0.5, "{weights:?}: {}", worst(&weights, 3000));
        }
        for weights in [[1, 1, 1], [5, 3, 1], [1, 8, 9], [98, 1, 1], [2, 3, 4]] {
            assert!(worst(&weights, 3000) < 1.0, "{weights:?}: {}", worst(&weights, 3000));
        }
        let many: Vec<u64> = (1..=64).map(|n| n * n % 61 + 1).collect();
        let falling: Vec<u64> = (0..30).map(|n| 1 << n).collect();
        for weights in [&[1, 8, 9, 9][..], &many, &falling] {
            assert!(worst(weights, 5000) < 2.0, "{weights:?}: {}", worst(weights, 5000));
        }
    }

    #[test]
    fn the_last_positions_and_the_largest_weights_do_not_overflow() {
        let interleaving = Interleaving::of(&[1, (1 << 63) - 1]);
        assert_eq!(interleaving.at(u64::MAX).0, 1);
        assert_eq!(interleaving.counts(u64::MAX).iter().sum::<u64>(), u64::MAX);
        assert_eq!(interleaving.counts(u64::MAX)[0], 2);
    }

    proptest! {
        #[test]
        fn places_are_counted_without_gaps(
            weights in prop::collection::vec(1u64..1000, 1..9),
            from in 0u64..1 << 40,
        ) {
            let interleaving = Interleaving::of(&weights);
            let mut counts = interleaving.counts(from);
            prop_assert_eq!(counts.iter().sum::<u64>(), from);
            for position in from..from + 300 {
                let (source, place) = interleaving.at(position);
                prop_assert_eq!(place, counts[source]);
                counts[source] += 1;
                prop_assert_eq!(&interleaving.counts(position + 1), &counts);
            }
        }
    }
}
