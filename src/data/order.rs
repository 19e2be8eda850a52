//! The sequence at each position of the endless stream of samples: a pure function.
//!
//! Position `p` lies in epoch `e = ⌊p/S⌋`; its sequence is `π_e(p mod S)`, with `π_e` a permutation of
//! `[0, S)` keyed by seed and epoch. So every sequence is seen once an epoch, the data state of a run
//! is its step number, and neither micro-batch nor devices can change what is read.
//!
//! `π_e` is a Feistel network over the smallest square power of two that holds S, with Philox as the
//! round function, walked along its cycle until it lands below S (Black and Rogaway, "Ciphers with
//! arbitrary finite domains", CT-RSA 2002). No table is built: S may be any 64-bit number, and a
//! position costs a few dozen Philox blocks.

#![forbid(unsafe_code)]

use std::num::NonZeroU64;

use crate::rng::Key;

/// Four rounds make a strong pseudo-random permutation of a large domain (Luby and Rackoff 1988);
/// the margin is for small domains, whose halves have few bits.
const ROUNDS: u32 = 8;

/// The order of samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleOrder {
    sequences: NonZeroU64,
    /// `None` reads in file order, the same every epoch.
    key: Option<Key>,
    /// Bits of one half of the Feistel domain, 1 to 32.
    half_bits: u32,
}

impl SampleOrder {
    /// The order of `sequences` sequences under `seed`; in file order when not `shuffled`.
    pub fn new(seed: u64, sequences: NonZeroU64, shuffled: bool) -> SampleOrder {
        let last = sequences.get() - 1;
        let bits = u64::BITS - last.leading_zeros();
        SampleOrder {
            sequences,
            key: shuffled.then(|| Key::new(seed, "data order")),
            half_bits: bits.div_ceil(2).max(1),
        }
    }

    /// S: sequences in one epoch.
    pub fn sequences(&self) -> u64 {
        self.sequences.get()
    }

    /// The sequence at a position of the stream, in `[0, S)`.
    pub fn sequence_at(&self, position: u64) -> u64 {
        let (epoch, index) = (position / self.sequences, position % self.sequences);
        let Some(key) = self.key else { return index };
        let mut x = self.feistel(key, epoch, index);
        // The domain is less than 4·S + 4 wide and the network permutes it, so the walk comes back below S.
        while x >= self.sequences.get() {
            x = self.feistel(key, epoch, x);
        }
        x
    }

    /// One pass of the network: a permutation of `[0, 2^(2·half_bits))`.
    fn feistel(&self, key: Key, epoch: u64, x: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (x >> self.half_bits, x & mask);
        for round in 0..ROUNDS {
            let [word, ..] = key.block([right as u32, round, epoch as u32, (epoch >> 32) as u32]);
            (left, right) = (right, left ^ (u64::from(word) & mask));
        }
        left << self.half_bits | right
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn order(seed: u64, sequences: u64) -> SampleOrder {
        SampleOrder::new(seed, NonZeroU64::new(sequences).unwrap(), true)
    }

    fn epoch(order: &SampleOrder, epoch: u64) -> Vec<u64> {
        let s = order.sequences();
        (0..s).map(|i| order.sequence_at(epoch * s + i)).collect()
    }

    #[test]
    fn every_epoch_is_a_permutation_for_sizes_around_powers_of_two() {
        let mut sizes: Vec<u64> = (1..=70).collect();
        for bits in 7..=14 {
            sizes.extend([(1 << bits) - 1, 1 << bits, (1 << bits) + 1]);
        }
        for s in sizes {
            for e in [0, 1, 1000] {
                let seen: BTreeSet<u64> = epoch(&order(3, s), e).into_iter().collect();
                assert_eq!(seen.len() as u64, s, "S {s} epoch {e}: a sequence came twice");
                assert_eq!(seen.last(), Some(&(s - 1)), "S {s} epoch {e}");
            }
        }
    }

    #[test]
    fn epochs_and_seeds_differ() {
        let base = epoch(&order(1, 500), 0);
        assert_ne!(base, epoch(&order(1, 500), 1));
        assert_ne!(base, epoch(&order(2, 500), 0));
        assert_ne!(base, (0..500).collect::<Vec<_>>());
        assert_eq!(base, epoch(&order(1, 500), 0));
    }

    #[test]
    fn two_sequences_come_in_both_orders() {
        let order = order(0, 2);
        let firsts: BTreeSet<u64> = (0..64).map(|e| order.sequence_at(2 * e)).collect();
        assert_eq!(firsts.len(), 2);
    }

    /// A shuffle that left neighbours together, or favoured a position, would fail here: chi-squared of
    /// the positions of 64 sequences over 4096 epochs, 63 degrees of freedom a sequence.
    #[test]
    fn every_place_is_equally_likely() {
        let order = order(9, 64);
        let mut counts = vec![0u32; 64 * 64];
        for p in 0..64 * 4096u64 {
            counts[(order.sequence_at(p) * 64 + p % 64) as usize] += 1;
        }
        for row in counts.chunks(64) {
            let chi2: f64 = row.iter().map(|&c| (f64::from(c) - 64.0) * (f64::from(c) - 64.0) / 64.0).sum();
            assert!((20.0..125.0).contains(&chi2), "chi-squared {chi2}");
        }
    }

    #[test]
    fn sequential_order_is_file_order_in_every_epoch() {
        let order = SampleOrder::new(5, NonZeroU64::new(3).unwrap(), false);
        assert_eq!((0..7).map(|p| order.sequence_at(p)).collect::<Vec<_>>(), [0, 1, 2, 0, 1, 2, 0]);
    }

    // From an independent implementation in Python, with big integers.
    const GOLDEN_1000: [u64; 8] = [259, 662, 216, 820, 227, 700, 229, 593];
    const GOLDEN_1000_EPOCH_1: [u64; 8] = [338, 389, 617, 944, 1, 64, 888, 349];
    const GOLDEN_2_40: [u64; 8] = [
        708093030446,
        550777222385,
        812618591666,
        340057209986,
        676821737548,
        221545837163,
        835232943017,
        1099408302791,
    ];
    const GOLDEN_MAX: [u64; 8] = [
        14849954000015926740,
        1185680477873726382,
        5569512894144776753,
        7380093440758296792,
        18414135608201139116,
        8699057056280596552,
        5312970007279939516,
        12716162386294526945,
    ];

    #[test]
    fn the_order_is_pinned() {
        let first =
            |seed, s, from: u64| (from..from + 8).map(|p| order(seed, s).sequence_at(p)).collect::<Vec<_>>();
        assert_eq!(first(42, 1000, 0), GOLDEN_1000);
        assert_eq!(first(42, 1000, 1000), GOLDEN_1000_EPOCH_1);
        assert_eq!(first(0, 1 << 40, 7), GOLDEN_2_40);
        assert_eq!(first(7, u64::MAX, 0), GOLDEN_MAX);
    }

    proptest! {
        #[test]
        fn any_size_and_position_stay_in_range(seed: u64, s in 1u64.., position: u64) {
            prop_assert!(order(seed, s).sequence_at(position) < s);
        }

        #[test]
        fn distinct_positions_of_an_epoch_are_distinct(seed: u64, s in 2u64..1 << 40, a: u64, b: u64) {
            let (a, b) = (a % s, b % s);
            let order = order(seed, s);
            prop_assert_eq!(a == b, order.sequence_at(a) == order.sequence_at(b));
        }
    }
}
