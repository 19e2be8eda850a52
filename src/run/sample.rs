//! Text from a saved model, and the logits behind its next token.
//!
//! The same weights, prompt, settings and seed give the same text, whatever is written beside it; on the CPU
//! also on every machine.

use std::time::{Duration, Instant};

use super::device::Device;
use super::error::require_usage;
use super::model::LoadedModel;
use crate::data::Tokenizer;
use crate::eval::parameters;
use crate::generate::{self, Sampling, Texts, generate};
use crate::model::decode::{Decoder, NewToken, Room};
use crate::model::weights::Weights;
use crate::ops::Ops;
use crate::units::noun;

/// Texts that are written side by side. No bit depends on it.
const STREAMS: usize = 8;

/// The texts to write.
pub struct SampleRequest {
    /// Read after `<|endoftext|>`, as every document in training.
    pub prompt: String,
    /// At most so many new ones.
    pub tokens: usize,
    pub samples: usize,
    pub sampling: Sampling,
}

/// What was written.
#[derive(Clone, Debug)]
pub struct Sampled {
    pub device: String,
    /// Time of the decoding alone.
    pub took: Duration,
    /// New tokens of all texts.
    pub written: usize,
    /// Tokens of the longest text, with the prompt's.
    pub longest: usize,
    /// Positions that the model has learned.
    pub positions: usize,
}

/// The prompt's tokens, `<|endoftext|>` first, and the logits of the next one (V).
pub struct NextLogits {
    pub tokens: Vec<u16>,
    pub logits: Vec<f32>,
}

/// A device with a model that is ready to decode.
struct LoadedDecoder<O: Ops> {
    ops: O,
    params: Weights<O::Buf>,
    decoder: Decoder<O>,
    tokenizer: Tokenizer,
}

/// Writes texts with a model on the device that its experiment names. Each token is passed to `emit` with the
/// number of its text, which ends when `emit` returns `false`.
///
/// # Errors
/// The device cannot be opened or fails, or logits are not finite.
pub fn sample(
    model: LoadedModel,
    request: &SampleRequest,
    emit: impl FnMut(usize, u16) -> bool,
) -> anyhow::Result<Sampled> {
    match Device::open(&model.experiment)? {
        Device::Cpu(cpu) => LoadedDecoder::new(cpu, model, request.samples)?.write(request, emit),
        Device::Cuda(cuda) => LoadedDecoder::new(*cuda, model, request.samples)?.write(request, emit),
        Device::Mirror(mirror) => LoadedDecoder::new(mirror, model, request.samples)?.write(request, emit),
    }
}

/// The logits of the token after a prompt.
///
/// # Errors
/// As [`sample`], and a prompt of more tokens than the model has learned positions.
pub fn next_logits(model: LoadedModel, prompt: &str) -> anyhow::Result<NextLogits> {
    match Device::open(&model.experiment)? {
        Device::Cpu(cpu) => LoadedDecoder::new(cpu, model, 1)?.logits(prompt),
        Device::Cuda(cuda) => LoadedDecoder::new(*cuda, model, 1)?.logits(prompt),
        Device::Mirror(mirror) => LoadedDecoder::new(mirror, model, 1)?.logits(prompt),
    }
}

impl<O: Ops> LoadedDecoder<O> {
    fn new(mut ops: O, model: LoadedModel, samples: usize) -> anyhow::Result<LoadedDecoder<O>> {
        let LoadedModel { experiment, state, manifest, .. } = model;
        let params = parameters::load(&mut ops, &experiment.model, &state)?;
        drop(state);
        let positions = manifest
            .map_or(experiment.trained_positions(), |saved| experiment.trained_positions_after(saved.step));
        let room = Room { streams: samples.min(STREAMS), positions };
        let decoder = Decoder::new(&mut ops, &experiment.model, room)?;
        Ok(LoadedDecoder { ops, params, decoder, tokenizer: Tokenizer::new(experiment.data.tokenizer) })
    }

    fn prompt(&self, text: &str) -> Vec<u16> {
        let mut prompt = vec![self.tokenizer.eot()];
        prompt.extend(self.tokenizer.encode(text));
        prompt
    }

    fn write(
        mut self,
        request: &SampleRequest,
        mut emit: impl FnMut(usize, u16) -> bool,
    ) -> anyhow::Result<Sampled> {
        let prompt = self.prompt(&request.prompt);
        let numbers: Vec<u64> = (0..request.samples as u64).collect();
        let mut lengths = vec![0; request.samples];
        let started = Instant::now();
        let positions = self.decoder.room().positions;
        let (count, sampling, vocab) = (request.tokens, &request.sampling, self.tokenizer.vocab());
        let texts = Texts { prompt: &prompt, count, numbers: &numbers, sampling, vocab, positions };
        generate(&mut self.ops, &mut self.decoder, &self.params, texts, |text, token| {
            lengths[text] += 1;
            emit(text, token)
        })?;
        Ok(Sampled {
            device: self.ops.device_name(),
            took: started.elapsed(),
            written: lengths.iter().sum(),
            longest: prompt.len() + lengths.iter().max().copied().unwrap_or(0),
            positions,
        })
    }

    fn logits(mut self, prompt: &str) -> anyhow::Result<NextLogits> {
        let (prompt, room) = (self.prompt(prompt), self.decoder.room().positions);
        require_usage(prompt.len() <= room, || {
            let positions = noun(room, "position");
            format!("the prompt has {} tokens, the model has learned {room} {positions}", prompt.len())
        })?;
        let last = prompt.len() - 1;
        self.decoder.read(&mut self.ops, &self.params, 0, 0, &prompt[..last])?;
        let next = NewToken { token: prompt[last], stream: 0, position: last };
        let logits = self.decoder.logits(&mut self.ops, &self.params, &[next])?;
        generate::require_finite(logits, 0, 0)?;
        Ok(NextLogits { tokens: prompt, logits: logits.to_vec() })
    }
}
