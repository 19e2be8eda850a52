//! Text from a model: one token after the other, each chosen by a counter-based random number.
//!
//! Sampling reads the weights and nothing else of the training state. A text is a function of prompt,
//! settings, key and its own number: written alone, beside others, or as the last of a thousand, it has the
//! same bits.
//!
//! A text that outgrows the decoder's positions goes on from its newer half, which is read again from
//! position 0: the model then remembers less, and no position past the decoder's room is ever used. How many
//! positions are worth using is the caller's to say ([`crate::experiment::Experiment::trained_positions`]).

mod choose;

use rayon::prelude::*;

pub use choose::Sampling;

use choose::ChoiceRoom;

use crate::model::decode::{Decoder, NewToken};
use crate::model::weights::Weights;
use crate::ops::{DeviceError, Ops};

/// Why a text was not written to its end.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(
        "the logits of text {text}, token {token} are not finite ({logit}): the model's numbers overflow\n  \
         hint: its training diverged, or its weights are not what they were"
    )]
    NotFinite { text: u64, token: u64, logit: f32 },
}

/// Refuses logits that hold NaN or infinity, by which no token can be chosen. `text` is the text's number,
/// `token` how many new tokens it has.
pub fn require_finite(logits: &[f32], text: u64, token: u64) -> Result<(), GenerateError> {
    // Without a branch, and so by vectors.
    if logits.iter().fold(true, |finite, logit| finite & logit.is_finite()) {
        return Ok(());
    }
    let logit = logits.iter().copied().find(|logit| !logit.is_finite()).unwrap_or(f32::NAN);
    Err(GenerateError::NotFinite { text, token, logit })
}

/// A text that is being written.
struct TextStream {
    /// Its number: the high word of the counters of its random numbers.
    number: u64,
    /// The newest tokens, at most as many as the decoder has positions; position 0 first.
    tokens: Vec<u16>,
    /// How many of them the decoder has read.
    read: usize,
    written: u64,
    room: ChoiceRoom,
}

impl TextStream {
    /// Makes room for the newest token by forgetting the older half, when there is none.
    fn fit(&mut self, window: usize) {
        if self.tokens.len() > window {
            let keep = (window / 2).max(1);
            self.tokens.drain(..self.tokens.len() - keep);
            self.read = 0;
        }
    }
}

/// The texts to write: `prompt`, of at least one token, goes on by up to `count` tokens, once for each of
/// `numbers`.
#[derive(Clone, Copy)]
pub struct Texts<'a> {
    pub prompt: &'a [u16],
    pub count: usize,
    pub numbers: &'a [u64],
    pub sampling: &'a Sampling,
    /// Tokens there are. A model may have rows for more, which are never chosen.
    pub vocab: usize,
    /// How many positions are worth using, at least 1; the decoder has no room for more.
    pub positions: usize,
}

/// Writes `texts`.
///
/// Each token is passed to `emit` with the index of its text in `numbers`; the text ends when `emit` returns
/// `false`. Texts are written side by side, as many at a time as the decoder has streams.
///
/// # Errors
///
/// Errors of the device, and logits that are not finite.
pub fn generate<O: Ops>(
    ops: &mut O,
    decoder: &mut Decoder<O>,
    params: &Weights<O::Buf>,
    texts: Texts<'_>,
    mut emit: impl FnMut(usize, u16) -> bool,
) -> Result<(), GenerateError> {
    let Texts { prompt, count, numbers, sampling, vocab, positions } = texts;
    let window = decoder.room().positions.min(positions);
    let prompt = &prompt[prompt.len().saturating_sub(window)..];
    for (group, numbers) in numbers.chunks(decoder.room().streams).enumerate() {
        let first = group * decoder.room().streams;
        let start = |&number| TextStream {
            number,
            tokens: prompt.to_vec(),
            read: 0,
            written: 0,
            room: ChoiceRoom::default(),
        };
        let mut streams: Vec<Option<TextStream>> = numbers.iter().map(|number| Some(start(number))).collect();
        for _ in 0..count {
            let mut live: Vec<(usize, &mut TextStream)> = streams
                .iter_mut()
                .enumerate()
                .filter_map(|(place, stream)| Some((place, stream.as_mut()?)))
                .collect();
            if live.is_empty() {
                break;
            }
            let mut new = Vec::with_capacity(live.len());
            for (place, stream) in &mut live {
                stream.fit(window);
                let last = stream.tokens.len() - 1;
                if stream.read < last {
                    decoder.read(ops, params, *place, stream.read, &stream.tokens[stream.read..last])?;
                }
                stream.read = last + 1;
                new.push(NewToken { token: stream.tokens[last], stream: *place, position: last });
            }
            let logits = decoder.logits(ops, params, &new)?;
            let rows = logits.par_chunks_exact(logits.len() / live.len());
            let choose = |(logits, (_, stream)): (&[f32], &mut (usize, &mut TextStream))| {
                let TextStream { number, written, room, .. } = &mut **stream;
                require_finite(logits, *number, *written)?;
                let there_are = &logits[..vocab.min(logits.len())];
                Ok(sampling.choose(there_are, *number, *written, room))
            };
            let chosen: Vec<Result<u16, GenerateError>> = rows.zip(&mut live).map(choose).collect();
            let mut ended = Vec::new();
            for ((place, stream), token) in live.into_iter().zip(chosen) {
                let token = token?;
                stream.tokens.push(token);
                stream.written += 1;
                if !emit(first + place, token) {
                    ended.push(place);
                }
            }
            ended.into_iter().for_each(|place| streams[place] = None);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;
    use crate::experiment::{DeviceKeys, DeviceKind, Model, Simd};
    use crate::model::Gpt2;
    use crate::model::decode::Room;
    use crate::ops::Rows;
    use crate::ops::cpu::Cpu;
    use crate::rng::Key;

    static MODEL: LazyLock<Model> = LazyLock::new(|| Model::gpt2(2, 2, 32, 40, 60));
    const PROMPT: [u16; 5] = [3, 1, 4, 1, 5];

    struct Writer {
        ops: Cpu,
        params: Weights<<Cpu as Ops>::Buf>,
        vocab: usize,
    }

    impl Writer {
        fn new() -> Writer {
            let mut ops =
                Cpu::new(&DeviceKeys { kind: DeviceKind::Cpu, threads: 2, simd: Simd::Auto }).expect("a CPU");
            let mut params =
                Gpt2::new(&mut ops, &MODEL, Rows { batch: 1, seq: 1 }, 0, false, 3).expect("a model").params;
            for buf in params.iter_mut() {
                buf.as_mut_slice().iter_mut().for_each(|x| *x *= 8.0);
            }
            Writer { ops, params, vocab: MODEL.vocab }
        }

        /// The texts `numbers`, as many at a time as there is room for; each ends with the token `end`.
        fn write(&mut self, room: Room, numbers: &[u64], count: usize, end: Option<u16>) -> Vec<Vec<u16>> {
            let mut decoder = Decoder::new(&mut self.ops, &MODEL, room).expect("a decoder");
            let sampling = Sampling { temperature: 1.0, top_k: 20, top_p: 0.95, key: Key::new(1, "test") };
            let mut texts = vec![Vec::new(); numbers.len()];
            let (vocab, positions) = (self.vocab, usize::MAX);
            let asked = Texts { prompt: &PROMPT, count, numbers, sampling: &sampling, vocab, positions };
            generate(&mut self.ops, &mut decoder, &self.params, asked, |place, token| {
                texts[place].push(token);
                Some(token) != end
            })
            .expect("it writes");
            texts
        }
    }

    #[test]
    fn a_text_is_the_same_alone_and_among_others_in_any_batch() {
        let mut writer = Writer::new();
        let room = |streams| Room { streams, positions: 40 };
        let endless = writer.write(room(6), &[0, 1, 2, 3, 4, 5], 30, None);
        assert!(endless.iter().all(|text| text.len() == 30) && endless[0] != endless[1]);
        // A token that text 0 meets on its way: texts end at different times.
        let end = Some(endless[0][9]);
        let all = writer.write(room(6), &[0, 1, 2, 3, 4, 5], 30, end);
        assert!(all[0].len() <= 10 && all.iter().any(|text| text.len() != all[0].len()), "{all:?}");
        for (number, text) in all.iter().enumerate() {
            assert_eq!(
                writer.write(room(1), &[number as u64], 30, end),
                std::slice::from_ref(text),
                "text {number}"
            );
            assert!(endless[number].starts_with(text), "text {number} is cut, not changed");
        }
        assert_eq!(writer.write(room(4), &[0, 1, 2, 3, 4, 5], 30, end), all, "in two groups");
    }

    #[test]
    fn a_text_past_the_window_goes_on_from_its_newer_half() {
        let mut writer = Writer::new();
        let room = Room { streams: 1, positions: 12 };
        let long = writer.write(room, &[5], 60, None).remove(0);
        assert_eq!(long.len(), 60);
        // The window is full after 12 - 5 + 1 new tokens; the next is chosen after the newest 6.
        let sampling = Sampling { temperature: 1.0, top_k: 20, top_p: 0.95, key: Key::new(1, "test") };
        let seen: Vec<u16> = PROMPT.iter().chain(&long[..8]).copied().collect();
        let mut model =
            Gpt2::new(&mut writer.ops, &MODEL, Rows { batch: 1, seq: 12 }, 0, false, 3).expect("a model");
        std::mem::swap(&mut model.params, &mut writer.params);
        let mut after = |tokens: &[u16], position| {
            let logits = model.next_token_logits(&mut writer.ops, tokens).expect("it runs");
            sampling.choose(&logits, 5, position, &mut ChoiceRoom::default())
        };
        assert_eq!(after(&seen[..12], 7), long[7], "the whole window is used");
        assert_eq!(after(&seen[7..13], 8), long[8], "then its newer half");
        std::mem::swap(&mut model.params, &mut writer.params);
        let tiny = writer.write(Room { streams: 1, positions: 1 }, &[5], 9, None);
        assert_eq!(tiny[0].len(), 9, "a window of one token is one");
    }

    /// Of a model with more rows than there are tokens.
    #[test]
    fn a_token_that_does_not_exist_is_never_chosen() {
        let mut writer = Writer::new();
        let room = || Room { streams: 4, positions: 40 };
        let texts = writer.write(room(), &[0, 1, 2, 3], 30, None);
        let largest = texts.iter().flatten().copied().max().expect("tokens");
        assert!(largest > 5, "the prompt's are kept");
        writer.vocab = 1000;
        assert_eq!(writer.write(room(), &[0, 1, 2, 3], 30, None), texts, "more than the model has is all");
        writer.vocab = usize::from(largest);
        let fewer = writer.write(room(), &[0, 1, 2, 3], 30, None);
        assert!(fewer.iter().flatten().all(|token| *token < largest) && fewer != texts, "{fewer:?}");
    }

    #[test]
    fn no_token_is_chosen_by_logits_that_are_not_finite() {
        let mut writer = Writer::new();
        writer.params.ln_f.weight.as_mut_slice().fill(f32::MAX);
        let mut decoder =
            Decoder::new(&mut writer.ops, &MODEL, Room { streams: 1, positions: 40 }).expect("a decoder");
        let sampling = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, key: Key::new(1, "test") };
        let (params, mut written) = (&writer.params, 0);
        let (vocab, positions) = (MODEL.vocab, 40);
        let texts = Texts { prompt: &PROMPT, count: 3, numbers: &[7], sampling: &sampling, vocab, positions };
        let error = generate(&mut writer.ops, &mut decoder, params, texts, |_, _| {
            written += 1;
            true
        });
        let error = error.expect_err("refused").to_string();
        assert!(error.contains("the logits of text 7, token 0 are not finite"), "{error}");
        assert_eq!(written, 0);
    }
}
