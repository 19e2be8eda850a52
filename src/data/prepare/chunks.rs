//! Cutting text into chunks that can be encoded alone and give the tokens of the whole.
//!
//! GPT-2's pre-tokeniser ends a piece wherever white space follows something else, and looks neither back
//! past that place nor, from a piece that ends there, ahead of it. So documents are cut only there. The
//! chunks are a function of the text alone, never of threads.

use std::ops::Range;

use super::super::tokenizer::END_OF_TEXT;

/// Bytes a chunk has at most, where the text has a place to cut at.
const CHUNK_BYTES: usize = 1 << 20;

/// A part of one document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    /// Bytes of the text.
    pub range: Range<usize>,
    /// `<|endoftext|>` comes before it.
    pub starts_document: bool,
    /// It lies in the share of the text that is held out.
    pub validation: bool,
}

/// The chunks of all documents in order. About the first `val_bytes` bytes of text are validation.
pub(super) fn plan(text: &str, val_bytes: u64) -> Vec<Chunk> {
    plan_with(text, val_bytes, CHUNK_BYTES)
}

fn plan_with(text: &str, val_bytes: u64, chunk_bytes: usize) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    // Where the held-out share ends.
    let val_end = usize::try_from(val_bytes).unwrap_or(usize::MAX).min(text.len());
    for document in documents(text) {
        let mut start = document.start;
        while start < document.end {
            let mut limit = start.saturating_add(chunk_bytes);
            if start < val_end {
                limit = limit.min(val_end);
            }
            let end = cut(text, start, limit, document.end);
            let (starts_document, validation) = (start == document.start, start < val_end);
            chunks.push(Chunk { range: start..end, starts_document, validation });
            start = end;
        }
    }
    chunks
}

/// The documents of a text, those of white space alone left out.
fn documents(text: &str) -> impl Iterator<Item = Range<usize>> {
    let mut next = 0;
    text.split(END_OF_TEXT).filter_map(move |document| {
        let start = next;
        next += document.len() + END_OF_TEXT.len();
        (!document.trim().is_empty()).then(|| start..start + document.len())
    })
}

/// The last place to cut in `start..=limit`, else the first after it, else `end`.
fn cut(text: &str, start: usize, limit: usize, end: usize) -> usize {
    if limit >= end {
        return end;
    }
    let window = text.floor_char_boundary(limit);
    let mut ahead = text[window..end].char_indices().map(|(at, _)| window + at);
    let mut back = text[start..window].char_indices().rev().map(|(at, _)| start + at);
    let is_cut = |&at: &usize| is_cut(text, start, at);
    ahead.next().filter(is_cut).or_else(|| back.find(is_cut)).or_else(|| ahead.find(is_cut)).unwrap_or(end)
}

/// Whether white space follows something else at `at`.
fn is_cut(text: &str, start: usize, at: usize) -> bool {
    let before = text[start..at].chars().next_back();
    let after = text[at..].chars().next();
    before.is_some_and(|c| !c.is_whitespace()) && after.is_some_and(char::is_whitespace)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::super::tokenizer::Tokenizer;
    use super::*;
    use crate::experiment;

    fn parts<'a>(text: &'a str, chunks: &[Chunk]) -> Vec<&'a str> {
        chunks.iter().map(|chunk| &text[chunk.range.clone()]).collect()
    }

    #[test]
    fn documents_end_at_the_mark_and_blank_ones_vanish() {
        let text = "<|endoftext|>one<|endoftext|> \n<|endoftext|>two\n<|endoftext|>";
        let chunks = plan(text, 0);
        assert_eq!(parts(text, &chunks), ["one", "two\n"]);
        assert!(chunks.iter().all(|chunk| chunk.starts_document));
    }

    #[test]
    fn long_documents_are_cut_before_white_space() {
        let text = "alpha beta  gamma delta";
        let chunks = plan_with(text, 0, 8);
        assert_eq!(parts(text, &chunks), ["alpha", " beta", "  gamma", " delta"]);
        assert_eq!(chunks.iter().map(|c| c.starts_document).collect::<Vec<_>>(), [true, false, false, false]);
    }

    #[test]
    fn a_word_longer_than_a_chunk_stays_whole() {
        let text = "abcdefghijklmnop xyz";
        assert_eq!(parts(text, &plan_with(text, 0, 4)), ["abcdefghijklmnop", " xyz"]);
        assert_eq!(parts("abcdefgh", &plan_with("abcdefgh", 0, 4)), ["abcdefgh"]);
    }

    #[test]
    fn the_held_out_share_ends_at_the_first_cut_that_completes_it() {
        let text = "one two three four five";
        let val: Vec<_> = plan(text, 14).into_iter().map(|c| (&text[c.range], c.validation)).collect();
        assert_eq!(val, [("one two three", true), (" four", true), (" five", false)]);
        assert!(plan(text, 0).iter().all(|c| !c.validation));
    }

    proptest! {
        #[test]
        fn chunks_encode_to_the_tokens_of_the_whole(text in "[ab'.1é漢 \n\t\u{a0}]{0,80}", size in 1usize..12) {
            let tokenizer = Tokenizer::new(experiment::Tokenizer::Gpt2);
            let chunks = plan_with(&text, 0, size);
            if !text.trim().is_empty() {
                prop_assert_eq!(parts(&text, &chunks).concat(), text.clone());
                let tokens: Vec<u16> = parts(&text, &chunks).iter().flat_map(|part| tokenizer.encode(part)).collect();
                prop_assert_eq!(tokens, tokenizer.encode(&text));
            }
        }
    }
}
