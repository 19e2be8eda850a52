//! `runner sample MODEL`: text from a saved model, shown as it is generated.
//!
//! The same weights, prompt, settings and seed give the same text, whatever is written beside it; on the CPU
//! also on every machine.

mod page;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use serde_json::json;

use super::reporter::reporter;
use super::streams::{self, Unstyled, say};
use crate::data::Tokenizer;
use crate::eval::parameters;
use crate::generate::{self, Sampling, Texts, generate};
use crate::model::decode::{Decoder, NewToken, Room};
use crate::model::weights::Weights;
use crate::ops::Ops;
use crate::rng::Key;
use crate::run::device::Device;
use crate::run::model::{self, LoadedModel};
use crate::run::require_usage;
use crate::units;
use page::Page;

/// Texts that are written side by side. No bit depends on it.
const STREAMS: usize = 8;

/// Generate text with a saved model.
#[derive(clap::Args)]
pub struct Args {
    #[arg(value_name = "MODEL", help = model::help())]
    model: PathBuf,
    /// Text to continue; empty starts a document. The model reads `<|endoftext|>` before it, as before every
    /// document in training. By default the experiment's `sample.prompt`, as for the next four.
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Tokens at most; the model may end its text earlier.
    #[arg(long, value_name = "N")]
    tokens: Option<usize>,
    /// Above 1 is bolder, below 1 safer; 0 takes the likeliest token.
    #[arg(long, value_name = "X")]
    temperature: Option<f64>,
    /// Only the K likeliest tokens; 0 is all.
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Only the likeliest tokens that together have this probability; 1 is all.
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f64,
    /// Another seed, another text. By default the experiment's.
    #[arg(long)]
    seed: Option<u64>,
    /// How many texts; the first is the one that `--samples 1` gives.
    #[arg(long, value_name = "N", default_value_t = 1)]
    samples: usize,
    /// Print one JSON line for each text on stdout, when all are written.
    #[arg(long)]
    json: bool,
    /// Print the prompt's tokens, `<|endoftext|>` first, and the logits of the next one as JSON, and write
    /// nothing.
    #[arg(long)]
    logits: bool,
    /// Step of the checkpoint to read; the newest whole one by default.
    #[arg(long, value_name = "STEP")]
    checkpoint: Option<u64>,
    /// Change a key first: `--set device.kind=cpu`. May be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Folder that holds the run folders.
    #[arg(long, default_value = "runs", value_name = "DIR")]
    runs: PathBuf,
}

/// The settings of generation, without defaults.
struct Request {
    prompt: String,
    /// At most so many new ones.
    tokens: usize,
    samples: usize,
    sampling: Sampling,
    json: bool,
    logits: bool,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let argument = model::find(&args.model, &args.runs, reporter(args.json))?;
    let experiment = argument.experiment(&args.set)?;
    let defaults = &experiment.sample;
    let sampling = Sampling {
        temperature: args.temperature.unwrap_or(defaults.temperature),
        top_k: args.top_k.unwrap_or(defaults.top_k),
        top_p: args.top_p,
        key: Key::new(args.seed.unwrap_or(experiment.seed), "sample"),
    };
    let temperature = sampling.temperature;
    require_usage(temperature.is_finite() && temperature >= 0.0, || {
        format!("`--temperature` is {temperature}, expected a number from 0 on")
    })?;
    require_usage(sampling.top_p > 0.0 && sampling.top_p <= 1.0, || {
        format!("`--top-p` is {}, expected above 0 and at most 1", args.top_p)
    })?;
    require_usage(args.samples >= 1, || "`--samples` is 0, expected at least 1".into())?;
    let request = Request {
        prompt: args.prompt.unwrap_or_else(|| defaults.prompt.clone()),
        tokens: args.tokens.unwrap_or(defaults.tokens),
        samples: args.samples,
        sampling,
        json: args.json,
        logits: args.logits,
    };
    let model = argument.parameters(experiment, args.checkpoint, reporter(args.json))?;
    say!("{}", model.title());
    match Device::open(&model.experiment)? {
        Device::Cpu(cpu) => write(cpu, model, &request)?,
        Device::Mirror(mirror) => write(mirror, model, &request)?,
        Device::Cuda(cuda) => write(*cuda, model, &request)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn write<O: Ops>(mut ops: O, model: LoadedModel, request: &Request) -> anyhow::Result<()> {
    let LoadedModel { experiment, state, .. } = model;
    let params = parameters::load(&mut ops, &experiment.model, &state)?;
    drop(state);
    let room = Room { streams: request.samples.min(STREAMS), positions: experiment.trained_positions() };
    let mut decoder = Decoder::new(&mut ops, &experiment.model, room)?;
    let tokenizer = Tokenizer::new(experiment.data.tokenizer);
    let mut prompt = vec![tokenizer.eot()];
    prompt.extend(tokenizer.encode(&request.prompt));
    if request.logits {
        return logits(&mut ops, &mut decoder, &params, &prompt);
    }

    let numbers: Vec<u64> = (0..request.samples as u64).collect();
    let mut page = Page::new(request, tokenizer, Unstyled::stdout());
    let started = Instant::now();
    let texts =
        Texts { prompt: &prompt, count: request.tokens, numbers: &numbers, sampling: &request.sampling };
    generate(&mut ops, &mut decoder, &params, texts, |text, token| page.push(text, token))?;
    let seconds = started.elapsed().as_secs_f64();
    let (written, longest) = (page.written(), prompt.len() + page.longest());
    streams::unless_unread(page.finish())?;
    let speed = written as f64 / seconds;
    say!("{written} tokens on {} in {}, {speed:.0} tok/s", ops.device_name(), units::duration(seconds));
    let positions = decoder.room().positions;
    if longest > positions {
        say!("past {positions} tokens a text goes on from its newer half: the model has learned no further");
    }
    Ok(())
}

/// The prompt's tokens and the logits of the next one, as JSON.
fn logits<O: Ops>(
    ops: &mut O,
    decoder: &mut Decoder<O>,
    params: &Weights<O::Buf>,
    prompt: &[u16],
) -> anyhow::Result<()> {
    let room = decoder.room().positions;
    require_usage(prompt.len() <= room, || {
        format!("the prompt has {} tokens, the model has learned {room} positions", prompt.len())
    })?;
    let last = prompt.len() - 1;
    decoder.read(ops, params, 0, 0, &prompt[..last])?;
    let logits =
        decoder.logits(ops, params, &[NewToken { token: prompt[last], stream: 0, position: last }])?;
    generate::require_finite(&logits, 0, 0)?;
    streams::print(&format!("{}\n", json!({"tokens": prompt, "logits": logits})))
}
