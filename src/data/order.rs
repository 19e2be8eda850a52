//! The sequence at each position of the endless stream of samples: a pure function.
//!
//! Position `p` lies in epoch `e = ⌊p/S⌋`; its sequence is `π_e(p mod S)`, with `π_e` a permutation of
//! `[0, S)` keyed by seed and epoch. So every sequence is seen once an epoch, the data state of a run
//! is its step number, and neither micro-batch nor devices can change what is read.
//!
//! In a mixture, [`Interleaving`] gives the source of position `p` and the place `n` within that source, and
//! the source's own permutations, under a key of its own, give the sequence at `n`.
//!
//! `π_e` is a Feistel network over the smallest square power of two that holds S, with Philox as the
//! round function, walked along its cycle until it lands below S (Black and Rogaway, "Ciphers with
//! arbitrary finite domains", CT-RSA 2002). No table is built: S may be any 64-bit number, and a
//! position costs a few dozen Philox blocks.

#![forbid(unsafe_code)]

use std::num::NonZeroU64;

use super::interleaving::Interleaving;
use crate::rng::Key;

/// Four rounds make a strong pseudo-random permutation of a large domain (Luby and Rackoff 1988);
/// the margin is for small domains, whose halves have few bits.
const ROUNDS: u32 = 8;

/// The order of samples, from one source or several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampleOrder {
    /// Each with the number of its first sequence among those of all sources.
    sources: Vec<(u64, Shuffle)>,
    interleaving: Interleaving,
}

/// A source of a mixture, as far as its order depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MixedSource<'a> {
    pub name: &'a str,
    pub sequences: NonZeroU64,
    /// Above 0.
    pub weight: u64,
}

impl SampleOrder {
    /// The order of `sequences` sequences under `seed`; in file order when not `shuffled`.
    pub fn new(seed: u64, sequences: NonZeroU64, shuffled: bool) -> SampleOrder {
        let key = shuffled.then(|| Key::new(seed, "data order"));
        SampleOrder { sources: vec![(0, Shuffle::new(sequences, key))], interleaving: Interleaving::of(&[1]) }
    }

    /// The order of a mixture, whose sequences are numbered source after source. The sequences of the source
    /// `web` are ordered under the key of the purpose `data order of web`, so that neither its weight nor
    /// other sources change which of its sequences comes first.
    pub fn mixed(seed: u64, sources: &[MixedSource<'_>], shuffled: bool) -> SampleOrder {
        let weights: Vec<u64> = sources.iter().map(|source| source.weight).collect();
        let mut first = 0;
        let sources = sources.iter().map(|MixedSource { name, sequences, .. }| {
            let key = shuffled.then(|| Key::new(seed, &format!("data order of {name}")));
            first += sequences.get();
            (first - sequences.get(), Shuffle::new(*sequences, key))
        });
        SampleOrder { sources: sources.collect(), interleaving: Interleaving::of(&weights) }
    }

    /// The sequence at a position of the stream, in `[0, S)`, S being the sequences of all sources.
    pub fn sequence_at(&self, position: u64) -> u64 {
        let (source, place) = self.interleaving.at(position);
        let (first, shuffle) = &self.sources[source];
        first + shuffle.sequence_at(place)
    }

    /// S of each source: its sequences in one epoch.
    pub fn sequences(&self) -> impl Iterator<Item = u64> {
        self.sources.iter().map(|(_, shuffle)| shuffle.sequences.get())
    }

    /// How many of the first `positions` positions are of each source.
    pub fn counts(&self, positions: u64) -> Vec<u64> {
        self.interleaving.counts(positions)
    }
}

/// The order of one source: a permutation an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shuffle {
    sequences: NonZeroU64,
    /// `None` reads in file order, the same every epoch.
    key: Option<Key>,
    /// Bits of one half of the Feistel domain, 1 to 32.
    half_bits: u32,
}

impl Shuffle {
    fn new(sequences: NonZeroU64, key: Option<Key>) -> Shuffle {
        let last = sequences.get() - 1;
        let bits = u64::BITS - last.leading_zeros();
        Shuffle { sequences, key, half_bits: bits.div_ceil(2).max(1) }
    }

    /// The sequence at a place of the source's own stream, in `[0, S)`.
    fn sequence_at(&self, position: u64) -> u64 {
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
        let s: u64 = order.sequences().sum();
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

    fn mixture(seed: u64) -> SampleOrder {
        let source = |name, sequences, weight| MixedSource {
            name,
            sequences: NonZeroU64::new(sequences).unwrap(),
            weight,
        };
        SampleOrder::mixed(seed, &[source("books", 50, 7), source("web", 1000, 3)], true)
    }

    #[test]
    fn each_source_of_a_mixture_has_its_own_shuffled_epochs() {
        let order = mixture(3);
        let books = |epoch: usize| -> Vec<u64> {
            let all = (0..400).map(|p| order.sequence_at(p)).filter(|sequence| *sequence < 50);
            all.skip(50 * epoch).take(50).collect()
        };
        for epoch in 0..4 {
            assert_eq!(books(epoch).into_iter().collect::<BTreeSet<_>>().len(), 50, "epoch {epoch}");
        }
        assert_ne!(books(0), books(1));
        let web: Vec<u64> = (0..400).map(|p| order.sequence_at(p)).filter(|s| *s >= 50).collect();
        assert_eq!((web.len(), web.iter().collect::<BTreeSet<_>>().len()), (120, 120));
        assert!(web.iter().all(|sequence| *sequence < 1050));
        assert_ne!(order.sequence_at(0), mixture(4).sequence_at(0));
    }

    #[test]
    fn the_position_alone_decides_in_whatever_order_it_is_asked_for() {
        let (one, other) = (mixture(1), mixture(1));
        let forwards: Vec<u64> = (0..500).map(|p| one.sequence_at(p)).collect();
        let backwards: Vec<u64> = (0..500).rev().map(|p| other.sequence_at(p)).collect();
        assert!(forwards.iter().eq(backwards.iter().rev()));
    }

    // From an independent implementation in Python, with big integers:
    // `tests/mixture_order.py 42 95 12 books:50:0.7 web:1000:0.3`.
    const GOLDEN_MIXTURE: [u64; 12] = [120, 14, 49, 400, 11, 8, 490, 1, 36, 37, 905, 45];

    #[test]
    fn the_order_of_a_mixture_is_pinned() {
        let order = mixture(42);
        assert_eq!((95..107).map(|p| order.sequence_at(p)).collect::<Vec<_>>(), GOLDEN_MIXTURE);
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
