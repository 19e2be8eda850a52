//! Shows the texts: the first as it is generated, each of the others when those before it have ended.

use std::io::{self, Write};

use serde_json::json;

use crate::data::{StreamDecoder, Tokenizer};
use crate::run::sample::SampleRequest;

/// Between texts.
const SEPARATOR: &str = "\n---\n";

/// The texts of a request, and the writer that they go to.
pub struct SamplePage<'a, W> {
    request: &'a SampleRequest,
    tokenizer: Tokenizer,
    /// Whether a JSON line for each text is written at the end, in place of the texts as they come.
    json: bool,
    texts: Vec<SampleText>,
    /// The first text that is not shown to its end, and how many of its bytes are.
    at: usize,
    shown_bytes: usize,
    out: W,
    shown: io::Result<()>,
}

struct SampleText {
    decoder: StreamDecoder,
    /// The prompt and what was written after it.
    text: String,
    tokens: Vec<u16>,
    ended: bool,
}

impl<W: Write> SamplePage<'_, W> {
    pub fn new(request: &SampleRequest, tokenizer: Tokenizer, json: bool, out: W) -> SamplePage<'_, W> {
        let text = |_| SampleText {
            decoder: StreamDecoder::new(tokenizer),
            text: request.prompt.clone(),
            tokens: Vec::new(),
            ended: request.tokens == 0,
        };
        let texts = (0..request.samples).map(text).collect();
        SamplePage { request, tokenizer, json, texts, at: 0, shown_bytes: 0, out, shown: Ok(()) }
    }

    /// Takes the next token of a text; says whether the text goes on.
    pub fn push(&mut self, number: usize, token: u16) -> bool {
        let text = &mut self.texts[number];
        text.tokens.push(token);
        if token != self.tokenizer.eot() {
            text.text.push_str(&text.decoder.push(token));
        }
        text.ended = token == self.tokenizer.eot() || text.tokens.len() == self.request.tokens;
        if text.ended {
            let decoder = std::mem::replace(&mut text.decoder, StreamDecoder::new(self.tokenizer));
            text.text.push_str(&decoder.finish());
        }
        let goes_on = !text.ended;
        self.advance();
        goes_on && self.shown.is_ok()
    }

    /// Shows what can be shown by now.
    fn advance(&mut self) {
        if self.json {
            return;
        }
        while let Some(text) = self.texts.get(self.at)
            && self.shown.is_ok()
        {
            let mut piece = text.text[self.shown_bytes..].to_owned();
            self.shown_bytes = text.text.len();
            let ended = text.ended;
            if ended {
                (self.at, self.shown_bytes) = (self.at + 1, 0);
                piece.push_str(if self.at < self.texts.len() { SEPARATOR } else { "\n" });
            }
            self.shown = self.out.write_all(piece.as_bytes()).and_then(|()| self.out.flush());
            if !ended {
                break;
            }
        }
    }

    /// Writes what was kept for the end.
    pub fn finish(mut self) -> io::Result<()> {
        self.advance();
        self.shown?;
        if self.json {
            for (number, text) in self.texts.iter().enumerate() {
                let SampleText { text, tokens, .. } = text;
                let ended = tokens.last() == Some(&self.tokenizer.eot());
                let prompt = &self.request.prompt;
                let text = &text[prompt.len()..];
                let line = json!({
                    "sample": number, "prompt": prompt, "text": text, "tokens": tokens, "ended": ended,
                });
                writeln!(self.out, "{line}")?;
            }
        }
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment;
    use crate::generate::Sampling;
    use crate::rng::Key;

    fn request(samples: usize) -> SampleRequest {
        let sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, key: Key::new(1, "t") };
        SampleRequest { prompt: "A".into(), tokens: 3, samples, sampling }
    }

    /// What is shown after each of some tokens, given as (text, byte); 256 ends a text.
    fn shown(samples: usize, json: bool, tokens: &[(usize, u16)]) -> Vec<String> {
        let request = request(samples);
        let mut out = Vec::new();
        let mut after = Vec::new();
        for n in 0..=tokens.len() {
            out.clear();
            let mut page =
                SamplePage::new(&request, Tokenizer::new(experiment::Tokenizer::Byte), json, &mut out);
            tokens[..n].iter().for_each(|&(text, token)| _ = page.push(text, token));
            page.finish().expect("a vector takes all");
            after.push(String::from_utf8(out.clone()).expect("UTF-8"));
        }
        after
    }

    #[test]
    fn one_text_is_shown_as_it_comes_and_ends_with_its_line() {
        assert_eq!(shown(1, false, &[(0, 98), (0, 99), (0, 100)]), ["A", "Ab", "Abc", "Abcd\n"]);
        assert_eq!(shown(1, false, &[(0, 98), (0, 256)]), ["A", "Ab", "Ab\n"]);
    }

    #[test]
    fn a_character_is_shown_when_its_bytes_are_there() {
        let bytes: Vec<(usize, u16)> = "é".bytes().map(|byte| (0, u16::from(byte))).collect();
        assert_eq!(shown(1, false, &bytes), ["A", "A", "Aé"]);
    }

    #[test]
    fn several_texts_are_shown_in_order_whichever_comes_first() {
        let order = [(1, 120), (0, 98), (1, 121), (0, 99), (1, 122), (0, 256)];
        let after = shown(2, false, &order);
        assert_eq!(after[5], "Abc", "the second has ended and waits");
        assert_eq!(after[6], "Abc\n---\nAxyz\n");
    }

    #[test]
    fn json_has_a_line_a_text() {
        let text = shown(2, true, &[(0, 98), (1, 256), (0, 99), (0, 100)]).pop().expect("the last");
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(
            lines[0],
            json!({"sample": 0, "prompt": "A", "text": "bcd", "tokens": [98, 99, 100], "ended": false})
        );
        assert_eq!(lines[1], json!({"sample": 1, "prompt": "A", "text": "", "tokens": [256], "ended": true}));
    }
}
