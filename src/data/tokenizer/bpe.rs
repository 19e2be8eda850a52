//! GPT-2's byte-pair encoding: a text is cut into pieces, and each piece merged.
//!
//! Most pieces are a token as they stand, so the first thing is one look-up of the whole piece. Others start
//! as single bytes, and the two neighbours that make the token of the lowest rank become one, until no two
//! neighbours make a token; ties go to the left. Ids are ranks. The vocabulary is tiktoken's `r50k_base`,
//! and the tests compare every id with that library's.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::OnceLock;

use super::pieces::Pieces;

/// Tokens with bytes; the one after them is `<|endoftext|>`.
const TOKENS: usize = 50_256;
/// Slots of the hash table, a power of two, about a third of them used.
const SLOTS: usize = 1 << 17;
/// An empty slot, and no token.
const NONE: u16 = u16::MAX;
/// Pieces up to this many bytes are merged by looking at all neighbours again; longer ones by a heap, because
/// the first takes time that grows with the square of the length.
const SHORT: usize = 48;

/// The vocabulary and the pre-tokeniser.
pub struct Bpe {
    /// The bytes of all tokens, one after the other.
    bytes: Vec<u8>,
    /// Where each token starts in `bytes`, and the end.
    starts: Vec<u32>,
    /// Tokens by the hash of their bytes; open addressing.
    slots: Vec<u16>,
    pieces: Pieces,
}

impl Bpe {
    /// GPT-2's; made at the first call and shared.
    pub fn gpt2() -> &'static Bpe {
        static GPT2: OnceLock<Bpe> = OnceLock::new();
        GPT2.get_or_init(|| {
            let ranks = tiktoken_rs::r50k_base_singleton();
            Bpe::new((0..TOKENS as u32).map(|rank| ranks.decode_bytes(&[rank]).unwrap_or_default()))
        })
    }

    /// From the bytes of each token in the order of the ranks.
    fn new(tokens: impl Iterator<Item = Vec<u8>>) -> Bpe {
        let mut bpe =
            Bpe { bytes: Vec::new(), starts: vec![0], slots: vec![NONE; SLOTS], pieces: Pieces::new() };
        for (rank, token) in tokens.enumerate() {
            let mut slot = hash(&token) % SLOTS;
            while bpe.slots[slot] != NONE {
                slot = (slot + 1) % SLOTS;
            }
            bpe.slots[slot] = rank as u16;
            bpe.bytes.extend(token);
            bpe.starts.push(bpe.bytes.len() as u32);
        }
        bpe
    }

    /// The bytes of a token below [`TOKENS`].
    pub fn token(&self, token: u16) -> Option<&[u8]> {
        let at = usize::from(token);
        let (start, end) = (*self.starts.get(at)?, *self.starts.get(at + 1)?);
        Some(&self.bytes[start as usize..end as usize])
    }

    /// The token that these bytes are; [`NONE`] if they are none.
    #[inline]
    fn lookup(&self, bytes: &[u8]) -> u16 {
        let mut slot = hash(bytes) % SLOTS;
        loop {
            let token = self.slots[slot];
            if token == NONE || self.token(token) == Some(bytes) {
                return token;
            }
            slot = (slot + 1) % SLOTS;
        }
    }

    /// Appends the tokens of a text.
    pub fn encode(&self, text: &str, tokens: &mut Vec<u16>) {
        let mut at = 0;
        while at < text.len() {
            let end = self.pieces.end(text, at);
            let piece = &text.as_bytes()[at..end];
            match self.lookup(piece) {
                NONE if piece.len() <= SHORT => self.merge_short(piece, tokens),
                NONE => self.merge_long(piece, tokens),
                token => tokens.push(token),
            }
            at = end;
        }
    }

    /// Merges a piece of at most [`SHORT`] bytes.
    fn merge_short(&self, piece: &[u8], tokens: &mut Vec<u16>) {
        // Part i is piece[starts[i]..starts[i + 1]]; ranks[i] is what it makes with the part after it.
        let mut starts: [u8; SHORT + 1] = std::array::from_fn(|i| i as u8);
        let mut ranks = [NONE; SHORT + 1];
        let mut parts = piece.len();
        let rank = |starts: &[u8; SHORT + 1], parts: usize, i: usize| {
            if i + 2 <= parts {
                self.lookup(&piece[usize::from(starts[i])..usize::from(starts[i + 2])])
            } else {
                NONE
            }
        };
        for (i, slot) in ranks[..parts].iter_mut().enumerate() {
            *slot = rank(&starts, parts, i);
        }
        while let Some((at, &lowest)) = ranks[..parts].iter().enumerate().min_by_key(|(_, rank)| **rank)
            && lowest != NONE
        {
            starts.copy_within(at + 2..parts + 1, at + 1);
            ranks.copy_within(at + 2..parts.max(at + 2), at + 1);
            parts -= 1;
            ranks[at] = rank(&starts, parts, at);
            if at > 0 {
                ranks[at - 1] = rank(&starts, parts, at - 1);
            }
        }
        tokens.extend(
            (0..parts).map(|i| self.lookup(&piece[usize::from(starts[i])..usize::from(starts[i + 1])])),
        );
    }

    /// Merges a piece of any length.
    fn merge_long(&self, piece: &[u8], tokens: &mut Vec<u16>) {
        // Part i begins at byte i and ends at ends[i]; `before` and `ends` link neighbours. A dead part has
        // end 0.
        let len = piece.len();
        let mut ends: Vec<usize> = (1..=len).collect();
        let mut before: Vec<usize> = (0..len).map(|i| i.wrapping_sub(1)).collect();
        let mut heap: BinaryHeap<Reverse<(u16, usize, usize)>> = BinaryHeap::with_capacity(len);
        let offer = |heap: &mut BinaryHeap<_>, ends: &[usize], i: usize| {
            if let Some(&end) = ends.get(ends[i]) {
                let rank = self.lookup(&piece[i..end]);
                if rank != NONE {
                    heap.push(Reverse((rank, i, end)));
                }
            }
        };
        for i in 0..len {
            offer(&mut heap, &ends, i);
        }
        while let Some(Reverse((_, i, end))) = heap.pop() {
            // An offer is stale when either part has changed since: the pair no longer ends there.
            let next = ends[i];
            if next == 0 || next >= len || ends[next] != end {
                continue;
            }
            ends[i] = end;
            ends[next] = 0;
            if end < len {
                before[end] = i;
            }
            offer(&mut heap, &ends, i);
            if i > 0 {
                offer(&mut heap, &ends, before[i]);
            }
        }
        let mut at = 0;
        while at < len {
            tokens.push(self.lookup(&piece[at..ends[at]]));
            at = ends[at];
        }
    }
}

/// A hash of a few bytes. Its value is not part of any result.
#[inline]
fn hash(bytes: &[u8]) -> usize {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let (words, rest) = bytes.as_chunks::<8>();
    let mut hash = bytes.len() as u64;
    for word in words {
        hash = (hash.rotate_left(23) ^ u64::from_le_bytes(*word)).wrapping_mul(ODD);
    }
    let last = rest.iter().rev().fold(0u64, |word, &byte| word << 8 | u64::from(byte));
    hash = (hash.rotate_left(23) ^ last).wrapping_mul(ODD);
    (hash >> 40) as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rng::Key;

    fn ours(text: &str) -> Vec<u16> {
        let mut tokens = Vec::new();
        Bpe::gpt2().encode(text, &mut tokens);
        tokens
    }

    fn theirs(text: &str) -> Vec<u16> {
        tiktoken_rs::r50k_base_singleton().encode_ordinary(text).into_iter().map(|rank| rank as u16).collect()
    }

    #[track_caller]
    fn same(text: &str) {
        assert_eq!(ours(text), theirs(text), "{text:?}");
    }

    #[test]
    fn every_token_encodes_to_itself_where_it_is_text() {
        let bpe = Bpe::gpt2();
        let texts = (0..TOKENS as u16).filter_map(|token| std::str::from_utf8(bpe.token(token)?).ok());
        assert!(texts.inspect(|text| same(text)).count() > 49_000);
    }

    /// Characters between letters, numbers, spaces and marks: their class decides where they are cut. All up
    /// to the last plane with letters, and samples of the planes after it.
    #[test]
    fn every_character_is_cut_as_the_pattern_cuts_it() {
        let mut text = String::new();
        for char in (0..0x34_000).chain((0x34_000..0x11_0000).step_by(997)).filter_map(char::from_u32) {
            text.push_str(&"a{}b 1{}2 {} !{}?\n{}\n'{}s".replace("{}", char.encode_utf8(&mut [0; 4])));
            if text.len() > 200_000 {
                assert!(ours(&text) == theirs(&text), "near {char:?}");
                text.clear();
            }
        }
        assert!(ours(&text) == theirs(&text), "at the end");
    }

    #[test]
    fn long_and_repetitive_pieces_are_merged_alike() {
        for part in [
            "a",
            "ab",
            "aaab",
            "é",
            "=",
            "-=",
            " ",
            "\n",
            "漢字",
            "0123456789",
            "antidisestablishmentarianism",
        ] {
            for times in [2, 5, 13, 40, 47, 48, 49, 50, 120, 1000] {
                same(&part.repeat(times));
                same(&format!("x {} y", part.repeat(times)));
            }
        }
    }

    #[test]
    fn random_bytes_of_few_letters_are_merged_alike() {
        for (case, letters) in
            [&b"abc"[..], b"etaoin ", b" \t\n.'", b"sdmtlrve'", b"0123456789abcdef"].into_iter().enumerate()
        {
            for length in [3, 20, 47, 49, 70, 300] {
                for sample in 0..40 {
                    let pick = |i: usize| {
                        letters[Key([7, case as u32]).block_at(sample, i as u64)[0] as usize % letters.len()]
                    };
                    same(&String::from_utf8((0..length).map(pick).collect()).unwrap());
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn any_text_gives_tiktokens_ids(text: String) {
            prop_assert_eq!(ours(&text), theirs(&text));
        }

        #[test]
        fn text_of_the_pattern_s_own_characters_gives_tiktokens_ids(
            text in "[a-d '\"stmdrvel01²é漢ǅ\u{301}\u{a0}\u{2003}\u{85}\n\t\r.!_🦀-]{0,60}",
        ) {
            prop_assert_eq!(ours(&text), theirs(&text));
        }
    }
}
