//! Text that two shards have in common, estimated from a few thousand numbers of each.
//!
//! Every passage of [`PASSAGE`] consecutive tokens has a hash of its own, whichever shard it stands in and
//! wherever. A shard keeps the [`KEPT`] smallest of its passages' hashes, which are as good as drawn by lot.
//! Of two shards the hashes up to where both lists reach are complete: the share of one's that the other has
//! too is an estimate of the share of its text (a bottom-k sketch: Broder, "On the resemblance and
//! containment of documents", 1997).

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::sync::Arc;

/// Tokens of a passage: long enough that equal ones are copies and no turns of phrase.
pub const PASSAGE: usize = 128;
/// Hashes that are kept of a shard.
const KEPT: usize = 4096;

/// Of the rolling hash: an odd number without a pattern in its bits.
const BASE: u64 = 0x9e37_79b9_7f4a_7c15;

/// The smallest hashes of a shard's passages, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PassageSketch(Arc<[u64]>);

/// Makes a [`PassageSketch`] of tokens that come one after another.
pub struct PassageSketcher {
    /// The last tokens: token `n` is at `n % PASSAGE`.
    window: [u16; PASSAGE],
    seen: usize,
    /// Σ (token + 1) · BASE^(place from the end) over the window, modulo 2^64.
    rolling: u64,
    /// BASE^PASSAGE.
    leaving: u64,
    smallest: BTreeSet<u64>,
    /// No hash from it on is kept.
    limit: u64,
}

impl PassageSketcher {
    pub fn new() -> PassageSketcher {
        let leaving = (0..PASSAGE).fold(1, |power: u64, _| power.wrapping_mul(BASE));
        let (window, smallest) = ([0; PASSAGE], BTreeSet::new());
        PassageSketcher { window, seen: 0, rolling: 0, leaving, smallest, limit: u64::MAX }
    }

    pub fn push(&mut self, token: u16) {
        let value = |token: u16| u64::from(token) + 1;
        let first = std::mem::replace(&mut self.window[self.seen % PASSAGE], token);
        let left = if self.seen < PASSAGE { 0 } else { value(first).wrapping_mul(self.leaving) };
        self.rolling = self.rolling.wrapping_mul(BASE).wrapping_add(value(token).wrapping_sub(left));
        self.seen += 1;
        let hash = mixed(self.rolling);
        if self.seen >= PASSAGE && hash < self.limit && self.smallest.insert(hash) {
            self.shorten();
        }
    }

    fn shorten(&mut self) {
        if self.smallest.len() > KEPT {
            self.smallest.pop_last();
            self.limit = self.smallest.last().copied().unwrap_or(u64::MAX);
        }
    }

    pub fn finish(self) -> PassageSketch {
        PassageSketch(self.smallest.into_iter().collect())
    }
}

/// Every bit of a number into every other (the finalizer of SplitMix64).
fn mixed(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl PassageSketch {
    /// Whether this passage's hash is one of the smallest.
    pub fn has(&self, hash: u64) -> bool {
        self.0.binary_search(&hash).is_ok()
    }

    /// Up to where the list is complete.
    fn reach(&self) -> u64 {
        if self.0.len() < KEPT { u64::MAX } else { self.0.last().copied().unwrap_or(u64::MAX) }
    }

    /// The hashes of this list as far as all `others` reach.
    pub fn drawn<'a>(&'a self, others: impl Iterator<Item = &'a PassageSketch>) -> &'a [u64] {
        let reach = others.map(PassageSketch::reach).min().unwrap_or(0);
        &self.0[..self.0.partition_point(|hash| *hash <= reach)]
    }

    /// 16 hexadecimal digits a hash.
    pub fn to_text(&self) -> String {
        self.0.iter().map(|hash| format!("{hash:016x}")).collect()
    }

    /// None where the text is not one of [`PassageSketch::to_text`].
    pub fn parse(text: &str) -> Option<PassageSketch> {
        let bytes = hex::decode(text).ok()?;
        let (hashes, rest) = bytes.as_chunks::<8>();
        let hashes: Vec<u64> = hashes.iter().map(|bytes| u64::from_be_bytes(*bytes)).collect();
        (rest.is_empty() && hashes.is_sorted_by(|a, b| a < b) && hashes.len() <= KEPT)
            .then(|| PassageSketch(hashes.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Key;

    fn text(seed: u64, tokens: u64) -> Vec<u16> {
        let key = Key::new(seed, "passages");
        (0..tokens).map(|at| key.block_at(0, at)[0] as u16 % 5_000).collect()
    }

    fn sketch(tokens: &[u16]) -> PassageSketch {
        let mut sketcher = PassageSketcher::new();
        tokens.iter().for_each(|token| sketcher.push(*token));
        sketcher.finish()
    }

    fn share(of: &PassageSketch, other: &PassageSketch) -> (usize, usize) {
        let drawn = of.drawn(std::iter::once(other));
        (drawn.iter().filter(|hash| other.has(**hash)).count(), drawn.len())
    }

    #[test]
    fn the_share_of_a_text_that_stands_in_another_is_found_wherever_it_stands() {
        let (train, other) = (text(1, 400_000), text(2, 60_000));
        let all = sketch(&train);
        // Cut from the middle, at no boundary of anything.
        let (found, drawn) = share(&sketch(&train[123_457..183_457]), &all);
        assert!(found == drawn && (450..800).contains(&drawn), "{found} of {drawn}");
        assert_eq!(share(&sketch(&other), &all).0, 0);
        let half = [&train[50_001..80_001], &other[..30_000]].concat();
        let (found, drawn) = share(&sketch(&half), &all);
        assert!((0.42..0.58).contains(&(found as f64 / drawn as f64)), "{found} of {drawn}");
    }

    #[test]
    fn short_texts_are_compared_in_full_and_those_below_a_passage_have_none() {
        let train = text(1, 1_000);
        assert_eq!(share(&sketch(&train[300..700]), &sketch(&train)), (273, 273));
        assert_eq!(sketch(&train[..PASSAGE - 1]), PassageSketch::default());
        // One passage, however often.
        assert_eq!(sketch(&[7; 5_000]).0.len(), 1);
    }

    #[test]
    fn a_sketch_reads_back_and_anything_else_does_not() {
        let sketch = sketch(&text(3, 20_000));
        assert_eq!(PassageSketch::parse(&sketch.to_text()), Some(sketch.clone()));
        assert_eq!(PassageSketch::parse(""), Some(PassageSketch::default()));
        for bad in ["0", "zz", "00000000000000ff0000000000000001", &sketch.to_text()[1..]] {
            assert_eq!(PassageSketch::parse(bad), None, "{bad}");
        }
    }
}
