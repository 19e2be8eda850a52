//! GPT-2's pre-tokeniser by hand: where a text is cut before anything is merged.
//!
//! The pattern is `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`. In words: a
//! contraction; a run of letters, of numbers, or of neither, each with one space before it; a run of white
//! space at the end of the text; and a longer run of white space before text in two parts, of which the
//! second is its last character, which goes with the text if it is a space.
//!
//! A backtracking regular expression takes most of the time of an encoder. Here one table look-up a character
//! decides, and ASCII is not even decoded.

use super::unicode::{LETTERS, NUMBERS};

/// The class of a character in the pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Letter,
    Number,
    Space,
    Other,
}

/// The classes of all characters that are not [`Class::Other`], and some that are.
pub(super) struct Pieces {
    classes: Vec<Class>,
}

impl Pieces {
    pub fn new() -> Pieces {
        let end = LETTERS.iter().chain(NUMBERS).copied().max().unwrap_or(0) as usize;
        let mut classes = vec![Class::Other; end];
        for (edges, class) in [(LETTERS, Class::Letter), (NUMBERS, Class::Number)] {
            for range in edges.as_chunks::<2>().0 {
                classes[range[0] as usize..range[1] as usize].fill(class);
            }
        }
        for (at, class) in classes.iter_mut().enumerate() {
            if char::from_u32(at as u32).is_some_and(char::is_whitespace) {
                *class = Class::Space;
            }
        }
        Pieces { classes }
    }

    /// The class and length in bytes of the character at `at`; none at the end.
    #[inline]
    fn class(&self, text: &str, at: usize) -> Option<(Class, usize)> {
        let byte = *text.as_bytes().get(at)?;
        if byte < 0x80 {
            return Some((self.classes[usize::from(byte)], 1));
        }
        let char = text[at..].chars().next()?;
        Some((self.classes.get(char as usize).copied().unwrap_or(Class::Other), char.len_utf8()))
    }

    /// Where the run of `class` that includes `at` ends.
    #[inline]
    fn run(&self, text: &str, mut at: usize, class: Class) -> usize {
        while let Some((next, len)) = self.class(text, at)
            && next == class
        {
            at += len;
        }
        at
    }

    /// Where the piece that starts at `at` ends. `at` is before the end, between two pieces.
    #[inline]
    pub fn end(&self, text: &str, at: usize) -> usize {
        let Some((class, len)) = self.class(text, at) else { return at };
        match class {
            Class::Other => match contraction(text.as_bytes(), at) {
                0 => self.run(text, at + len, Class::Other),
                contraction => at + contraction,
            },
            Class::Letter | Class::Number => self.run(text, at + len, class),
            Class::Space => self.space(text, at, len),
        }
    }

    fn space(&self, text: &str, at: usize, len: usize) -> usize {
        match self.class(text, at + len) {
            None => at + len,
            Some((Class::Space, _)) => {
                let end = self.run(text, at + len, Class::Space);
                if end == text.len() {
                    return end;
                }
                let last = text[at..end].chars().next_back().map_or(0, char::len_utf8);
                end - last
            }
            Some((class, next)) if text.as_bytes()[at] == b' ' => self.run(text, at + len + next, class),
            Some(_) => at + len,
        }
    }
}

/// Bytes of the contraction at `at`; 0 if there is none.
#[inline]
fn contraction(bytes: &[u8], at: usize) -> usize {
    match &bytes[at..bytes.len().min(at + 3)] {
        [b'\'', b's' | b't' | b'm' | b'd', ..] => 2,
        [b'\'', b'r' | b'v', b'e'] | [b'\'', b'l', b'l'] => 3,
        _ => 0,
    }
}
