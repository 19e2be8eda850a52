//! Text to tokens and back: GPT-2's byte-pair encoding, and plain bytes.
//!
//! Text is data and never markup: a literal `<|endoftext|>` inside a text is encoded as its characters. Code
//! that joins documents inserts the token of that name, [`Tokenizer::eot`]. The vocabulary is tiktoken's
//! `r50k_base`, which is GPT-2's; the encoder over it is ours ([`bpe`], [`pieces`]), several times as fast
//! and equal in every id.

#![forbid(unsafe_code)]

mod bpe;
mod pieces;
mod unicode;

use sha2::{Digest, Sha256};

pub use bpe::Bpe;

use crate::experiment;

/// The name of the end of a document in text.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// A way to write text as 16-bit tokens.
#[derive(Clone, Copy)]
pub enum Tokenizer {
    /// GPT-2's byte-pair encoding: 50,256 byte strings, and `<|endoftext|>` = 50256.
    Gpt2(&'static Bpe),
    /// One token a byte of UTF-8, and `<|endoftext|>` = 256.
    Byte,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Tokenizer {
    /// The tokenizer an experiment names. GPT-2's tables are built at the first call and shared.
    pub fn new(kind: experiment::Tokenizer) -> Tokenizer {
        match kind {
            experiment::Tokenizer::Gpt2 => Tokenizer::Gpt2(Bpe::gpt2()),
            experiment::Tokenizer::Byte => Tokenizer::Byte,
        }
    }

    /// The name in the TOML.
    pub fn name(&self) -> &'static str {
        match self {
            Tokenizer::Gpt2(_) => "gpt2",
            Tokenizer::Byte => "byte",
        }
    }

    /// Tokens there are, `<|endoftext|>` included.
    pub fn vocab(&self) -> usize {
        match self {
            Tokenizer::Gpt2(_) => 50_257,
            Tokenizer::Byte => 257,
        }
    }

    /// The token `<|endoftext|>`, which precedes each document.
    pub fn eot(&self) -> u16 {
        match self {
            Tokenizer::Gpt2(_) => 50_256,
            Tokenizer::Byte => 256,
        }
    }

    /// The tokens of a text; never [`Tokenizer::eot`].
    pub fn encode(&self, text: &str) -> Vec<u16> {
        match self {
            Tokenizer::Gpt2(bpe) => {
                let mut tokens = Vec::with_capacity(text.len() / 4 + 1);
                bpe.encode(text, &mut tokens);
                tokens
            }
            Tokenizer::Byte => text.bytes().map(u16::from).collect(),
        }
    }

    /// The bytes of tokens. `<|endoftext|>` gives its name; a token that does not exist gives the
    /// replacement character, so that a model with a padded vocabulary can be shown.
    pub fn decode_bytes(&self, tokens: &[u16]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(4 * tokens.len());
        for &token in tokens {
            match self {
                _ if token == self.eot() => bytes.extend(END_OF_TEXT.as_bytes()),
                Tokenizer::Byte if token < 256 => bytes.push(token as u8),
                Tokenizer::Gpt2(bpe) => bytes.extend(bpe.token(token).unwrap_or("\u{fffd}".as_bytes())),
                Tokenizer::Byte => bytes.extend("\u{fffd}".as_bytes()),
            }
        }
        bytes
    }

    /// The bytes of the text that tokens stand for: `<|endoftext|>` is none of it. None where a token does not
    /// exist, which stands for nothing.
    pub fn text_bytes(&self, tokens: &[u16]) -> Option<u64> {
        if tokens.iter().any(|token| usize::from(*token) >= self.vocab()) {
            return None;
        }
        let of_text = tokens.iter().filter(|token| **token != self.eot());
        Some(of_text.map(|token| self.decode_bytes(&[*token]).len() as u64).sum())
    }

    /// Why tokens of which this is the largest do not look like the tokenizer's; none where they do.
    pub fn doubt(&self, largest: u16) -> Option<&'static str> {
        match self {
            _ if usize::from(largest) >= self.vocab() => Some("more than it has"),
            Tokenizer::Gpt2(_) if usize::from(largest) < Tokenizer::Byte.vocab() => Some("as with `byte`"),
            _ => None,
        }
    }

    /// The text of tokens; invalid UTF-8 gives replacement characters.
    pub fn decode(&self, tokens: &[u16]) -> String {
        String::from_utf8_lossy(&self.decode_bytes(tokens)).into_owned()
    }

    /// SHA-256 of what the tokenizer is: `"runner/tokenizer/v1"`, its name, then each token's length
    /// as `u32` LE and bytes. The pre-tokenising pattern is fixed by the name.
    pub fn sha256(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(b"runner/tokenizer/v1");
        hash.update(self.name());
        for token in 0..self.vocab() {
            let bytes = self.decode_bytes(&[token as u16]);
            hash.update((bytes.len() as u32).to_le_bytes());
            hash.update(bytes);
        }
        hash.finalize().into()
    }
}

/// Turns a stream of tokens into text, holding bytes back until they form whole characters.
#[derive(Debug)]
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    pending: Vec<u8>,
}

impl StreamDecoder {
    pub fn new(tokenizer: Tokenizer) -> StreamDecoder {
        StreamDecoder { tokenizer, pending: Vec::new() }
    }

    /// The text that is complete with this token; empty while a character is unfinished.
    pub fn push(&mut self, token: u16) -> String {
        self.pending.extend(self.tokenizer.decode_bytes(&[token]));
        let keep = unfinished(&self.pending);
        let rest = self.pending.split_off(self.pending.len() - keep);
        let whole = std::mem::replace(&mut self.pending, rest);
        String::from_utf8_lossy(&whole).into_owned()
    }

    /// What was held back, when no token follows.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}

/// Bytes at the end that may be the start of a character.
fn unfinished(bytes: &[u8]) -> usize {
    match bytes.utf8_chunks().last() {
        Some(chunk) => {
            let tail = chunk.invalid();
            // A cut character lacks bytes at the very end; anything else invalid will never be valid.
            let cut = std::str::from_utf8(tail).is_err_and(|error| error.error_len().is_none());
            if cut { tail.len() } else { 0 }
        }
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn gpt2() -> Tokenizer {
        Tokenizer::new(experiment::Tokenizer::Gpt2)
    }

    /// Expected ids are those of OpenAI's tiktoken for Python, `get_encoding("gpt2").encode_ordinary`.
    #[test]
    fn gpt2_gives_the_published_ids() {
        assert_eq!(gpt2().encode("Hello, world!"), [15496, 11, 995, 0]);
        assert_eq!(gpt2().encode("First Citizen:\nBefore we"), [5962, 22307, 25, 198, 8421, 356]);
        assert_eq!(gpt2().encode(""), [0u16; 0]);
    }

    #[test]
    fn the_bytes_of_a_text_are_counted_whatever_its_tokens_are() {
        let text = "Rye déjà vu; 🌾 is cut in July.\n";
        for tokenizer in [gpt2(), Tokenizer::Byte] {
            let tokens = [tokenizer.encode(text), vec![tokenizer.eot()], tokenizer.encode("a")].concat();
            assert_eq!(tokenizer.text_bytes(&tokens), Some(text.len() as u64 + 1));
            assert_eq!(tokenizer.text_bytes(&[tokenizer.eot()]), Some(0));
            assert_eq!(tokenizer.text_bytes(&[65, tokenizer.eot() + 1]), None, "a token that does not exist");
        }
    }

    #[test]
    fn a_literal_end_of_text_is_text() {
        for tokenizer in [gpt2(), Tokenizer::Byte] {
            let tokens = tokenizer.encode("a<|endoftext|>b");
            assert!(!tokens.contains(&tokenizer.eot()));
            assert_eq!(tokenizer.decode(&tokens), "a<|endoftext|>b");
            assert_eq!(tokenizer.decode(&[tokenizer.eot()]), END_OF_TEXT);
        }
    }

    #[test]
    fn bytes_are_themselves() {
        assert_eq!(Tokenizer::Byte.encode("é!"), [0xc3, 0xa9, 0x21]);
        assert_eq!((Tokenizer::Byte.vocab(), Tokenizer::Byte.eot()), (257, 256));
    }

    #[test]
    fn tokens_that_do_not_exist_are_shown_and_do_not_fail() {
        assert_eq!(gpt2().decode(&[15496, 50_300, u16::MAX]), "Hello\u{fffd}\u{fffd}");
        assert_eq!(Tokenizer::Byte.decode(&[65, 300]), "A\u{fffd}");
    }

    #[test]
    fn a_run_of_two_million_spaces_is_encoded() {
        let text = format!("a{}b", " ".repeat(2_000_000));
        assert_eq!(gpt2().decode(&gpt2().encode(&text)), text);
    }

    #[test]
    fn the_stream_withholds_cut_characters_and_loses_none() {
        for tokenizer in [gpt2(), Tokenizer::Byte] {
            let text = "naïve 🦀 漢字 end";
            let mut stream = StreamDecoder::new(tokenizer);
            let mut shown = String::new();
            for token in tokenizer.encode(text) {
                let part = stream.push(token);
                assert!(!part.contains('\u{fffd}'), "{part:?}");
                shown += &part;
            }
            assert_eq!(shown, text);
            assert_eq!(stream.finish(), "");
        }
    }

    #[test]
    fn the_stream_shows_invalid_bytes_once_they_are_hopeless() {
        let mut stream = StreamDecoder::new(Tokenizer::Byte);
        assert_eq!(stream.push(0xe6), "");
        assert_eq!(stream.push(0x41), "\u{fffd}A");
        assert_eq!(stream.push(0xff), "\u{fffd}");
        assert_eq!(stream.push(0xf0), "");
        assert_eq!(stream.finish(), "\u{fffd}");
    }

    #[test]
    fn the_tokenizers_are_pinned() {
        assert_eq!(
            hex::encode(gpt2().sha256()),
            "a6481a7a20ef272dce463a95c1b8d2fe317c29a8d928dfb42c256e6c8c88e8f3"
        );
        assert_eq!(
            hex::encode(Tokenizer::Byte.sha256()),
            "cdb83a1e046bf23c52ddfb6e389460ac628c85804065ff98d3d8672d511f3e26"
        );
    }

    proptest! {
        #[test]
        fn text_survives(text: String) {
            for tokenizer in [gpt2(), Tokenizer::Byte] {
                prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&text)), text.clone());
            }
        }
    }
}
