//! Cutting text into chunks that can be encoded alone and give the tokens of the whole.
//!
//! GPT-2's pre-tokeniser ends a piece wherever white space follows another character; no piece depends on
//! text on the other side of that place. So documents are cut only there, and a text is read a part at a time
//! that ends there too: parts, chunks and threads change no token.

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
    /// It belongs to the held-out share of the text.
    pub validation: bool,
}

/// The content of a part of a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Chunks {
    pub chunks: Vec<Chunk>,
    /// Documents of white space alone between two marks, which are left out.
    pub blank: u64,
    /// Whether the last document has begun and goes on in what follows the part.
    pub open: bool,
}

/// The chunks of all documents in a part of a text, in order. About the first `val_bytes` bytes of it are
/// validation. `before` says what came before the part: nothing, or whether a document goes on from there.
pub(super) fn plan(text: &str, before: Option<bool>, val_bytes: u64) -> Chunks {
    plan_with(text, before, val_bytes, CHUNK_BYTES)
}

fn plan_with(text: &str, before: Option<bool>, val_bytes: u64, chunk_bytes: usize) -> Chunks {
    let mut plan = Chunks { open: before.unwrap_or(false), ..Chunks::default() };
    // Where the held-out share ends.
    let val_end = usize::try_from(val_bytes).unwrap_or(usize::MAX).min(text.len());
    let mut next = 0;
    let mut after_mark = before.is_some();
    while next <= text.len() {
        let length = text[next..].find(END_OF_TEXT);
        let document = next..length.map_or(text.len(), |length| next + length);
        let content = &text[document.clone()];
        let goes_on = plan.open;
        plan.open |= !content.trim().is_empty();
        if plan.open {
            let mut start = document.start;
            while start < document.end {
                let mut limit = start.saturating_add(chunk_bytes);
                if start < val_end {
                    limit = limit.min(val_end);
                }
                let end = cut(text, start, limit, document.end);
                let starts_document = start == document.start && !goes_on;
                plan.chunks.push(Chunk { range: start..end, starts_document, validation: start < val_end });
                start = end;
            }
        }
        if length.is_none() {
            break;
        }
        plan.blank += u64::from(!plan.open && after_mark);
        plan.open = false;
        after_mark = true;
        next = document.end + END_OF_TEXT.len();
    }
    plan
}

/// The last place in a text where it can be divided and both parts be planned alone.
pub(super) fn last_cut(text: &str) -> Option<usize> {
    text.char_indices().rev().map(|(at, _)| at).find(|&at| is_cut(text, 0, at))
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

    fn whole(text: &str, val_bytes: u64, chunk_bytes: usize) -> Vec<Chunk> {
        plan_with(text, None, val_bytes, chunk_bytes).chunks
    }

    #[test]
    fn documents_end_at_the_mark_and_blank_ones_are_counted_and_left_out() {
        let text = "<|endoftext|>one<|endoftext|> \n<|endoftext|>two\n<|endoftext|>\n";
        let plan = plan(text, None, 0);
        assert_eq!(parts(text, &plan.chunks), ["one", "two\n"]);
        assert!(plan.chunks.iter().all(|chunk| chunk.starts_document));
        assert_eq!(
            (plan.blank, plan.open),
            (1, false),
            "before the first mark and after the last is no document"
        );
    }

    #[test]
    fn a_document_goes_on_from_the_part_before() {
        let text = "  <|endoftext|> <|endoftext|>two";
        let going_on = plan(text, Some(true), 0);
        assert_eq!(parts(text, &going_on.chunks), ["  ", "two"], "its white space is text");
        assert_eq!((going_on.chunks[0].starts_document, going_on.blank, going_on.open), (false, 1, true));
        let new = plan(text, Some(false), 0);
        assert_eq!((parts(text, &new.chunks), new.blank), (vec!["two"], 2));
        assert!(plan("", Some(true), 0).open && !plan("<|endoftext|>", Some(true), 0).open);
    }

    #[test]
    fn long_documents_are_cut_before_white_space() {
        let text = "alpha beta  gamma delta";
        let chunks = whole(text, 0, 8);
        assert_eq!(parts(text, &chunks), ["alpha", " beta", "  gamma", " delta"]);
        assert_eq!(chunks.iter().map(|c| c.starts_document).collect::<Vec<_>>(), [true, false, false, false]);
    }

    #[test]
    fn a_word_longer_than_a_chunk_stays_whole() {
        let text = "abcdefghijklmnop xyz";
        assert_eq!(parts(text, &whole(text, 0, 4)), ["abcdefghijklmnop", " xyz"]);
        assert_eq!(parts("abcdefgh", &whole("abcdefgh", 0, 4)), ["abcdefgh"]);
    }

    #[test]
    fn the_held_out_share_ends_at_the_first_cut_that_completes_it() {
        let text = "one two three four five";
        let val: Vec<_> =
            plan(text, None, 14).chunks.into_iter().map(|c| (&text[c.range], c.validation)).collect();
        assert_eq!(val, [("one two three", true), (" four", true), (" five", false)]);
        assert!(plan(text, None, 0).chunks.iter().all(|c| !c.validation));
    }

    /// Tokens with marks, and where validation ends, of a text in parts of about `window` bytes.
    fn in_windows(text: &str, val_bytes: u64, size: usize, window: usize) -> (Vec<u16>, usize, u64) {
        let tokenizer = Tokenizer::new(experiment::Tokenizer::Gpt2);
        let (mut tokens, mut held_out, mut blank, mut before, mut at) = (Vec::new(), 0, 0, None, 0);
        while at < text.len() {
            let end = text.floor_char_boundary((at + window).min(text.len()));
            let end = match end == text.len() {
                true => Some(end),
                false => last_cut(&text[at..end]).map(|cut| at + cut),
            };
            let part = &text[at..end.unwrap_or(text.len())];
            let plan = plan_with(part, before, val_bytes.saturating_sub(at as u64), size);
            for chunk in &plan.chunks {
                tokens.extend(chunk.starts_document.then(|| tokenizer.eot()));
                tokens.extend(tokenizer.encode(&part[chunk.range.clone()]));
                held_out = if chunk.validation { tokens.len() } else { held_out };
            }
            (before, blank, at) = (Some(plan.open), blank + plan.blank, at + part.len());
        }
        (tokens, held_out, blank)
    }

    proptest! {
        #[test]
        fn chunks_encode_to_the_tokens_of_the_whole(
            text in "[ab'.1é漢 \n\t\u{a0}]{0,80}",
            size in 1usize..12,
        ) {
            let tokenizer = Tokenizer::new(experiment::Tokenizer::Gpt2);
            let chunks = whole(&text, 0, size);
            if !text.trim().is_empty() {
                prop_assert_eq!(parts(&text, &chunks).concat(), text.clone());
                let parts = parts(&text, &chunks);
                let tokens: Vec<u16> = parts.iter().flat_map(|part| tokenizer.encode(part)).collect();
                prop_assert_eq!(tokens, tokenizer.encode(&text));
            }
        }

        #[test]
        fn any_window_gives_the_tokens_the_split_and_the_count_of_the_whole(
            words in prop::collection::vec("[ab'1é ]{0,6}|<\\|endoftext\\|>|[ \n]{1,3}", 0..24),
            val_bytes in 0u64..120,
            size in 1usize..12,
            window in 1usize..60,
        ) {
            let text = words.concat();
            let expected = in_windows(&text, val_bytes, 1 << 20, 1 << 20);
            prop_assert_eq!(in_windows(&text, val_bytes, size, window), expected, "{:?}", text);
        }
    }
}
