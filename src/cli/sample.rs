//! `runner sample RUN`: text from a saved model, shown as it comes.
//!
//! The same checkpoint, prompt, settings and seed give the same text, and on the CPU every machine gives
//! it. The whole window is computed again for each token: there is no KV cache.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::ensure;
use serde_json::json;

use super::run_argument;
use super::session::Device;
use crate::data::{StreamDecoder, Tokenizer};
use crate::eval::parameters;
use crate::experiment::{self, Experiment};
use crate::generate::{Sampling, generate};
use crate::model::Gpt2;
use crate::ops::{Ops, Rows};
use crate::rng::Key;
use crate::store::{RunPaths, Tensor};

/// Let a saved model write.
#[derive(clap::Args)]
pub struct Args {
    /// The run: a name under `--runs`, or a folder.
    run: PathBuf,
    /// Text to go on from; empty starts a document. By default the experiment's `sample.prompt`, as for
    /// the next four.
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Tokens at most; the model may end its text before.
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
    /// Print the prompt's tokens and the logits of the next one as JSON, and write nothing.
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

/// What to write, with nothing left to default.
struct Request {
    prompt: String,
    tokens: usize,
    sampling: Sampling,
    logits: bool,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let paths = RunPaths::new(&run_argument::find(Some(&args.run), &args.runs)?);
    let experiment = experiment::load(&paths.experiment(), &args.set)?.experiment;
    let defaults = &experiment.sample;
    let sampling = Sampling {
        temperature: args.temperature.unwrap_or(defaults.temperature),
        top_k: args.top_k.unwrap_or(defaults.top_k),
        top_p: args.top_p,
        key: Key::new(args.seed.unwrap_or(experiment.seed), "sample"),
    };
    let temperature = sampling.temperature;
    ensure!(temperature.is_finite() && temperature >= 0.0, "`--temperature` is {temperature}, expected a number from 0 on");
    ensure!(sampling.top_p > 0.0 && sampling.top_p <= 1.0, "`--top-p` is {}, expected above 0 and at most 1", args.top_p);
    let request = Request {
        prompt: args.prompt.unwrap_or_else(|| defaults.prompt.clone()),
        tokens: args.tokens.unwrap_or(defaults.tokens),
        sampling,
        logits: args.logits,
    };
    let (manifest, state) = run_argument::load_checkpoint(&paths, args.checkpoint)?;
    anstream::eprintln!("{}, step {}, state root {}", experiment.name, manifest.step, manifest.state_root);
    match Device::open(&experiment)? {
        Device::Cpu(cpu) => write(cpu, &experiment, state, &request)?,
        Device::Cuda(cuda) => write(*cuda, &experiment, state, &request)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn write<O: Ops>(mut ops: O, experiment: &Experiment, state: Vec<Tensor>, request: &Request) -> anyhow::Result<()> {
    // Positions that training never saw would only do harm.
    let rows = Rows { batch: 1, seq: experiment.batch.seq_len };
    let mut model = Gpt2::new(&mut ops, &experiment.model, rows, experiment.memory.recompute, false, experiment.seed)?;
    parameters::restore(&mut ops, &mut model, &state)?;
    drop(state);
    let tokenizer = Tokenizer::new(experiment.data.tokenizer);
    let mut prompt = vec![tokenizer.eot()];
    prompt.extend(tokenizer.encode(&request.prompt));

    let mut out = io::stdout().lock();
    let mut show = move |text: &str| out.write_all(text.as_bytes()).and_then(|()| out.flush());
    if request.logits {
        ensure!(prompt.len() <= rows.seq, "the prompt has {} tokens, at most {} fit `batch.seq_len`", prompt.len(), rows.seq);
        let logits = model.next_token_logits(&mut ops, &prompt)?;
        return Ok(show(&format!("{}\n", json!({"tokens": prompt, "logits": logits})))?);
    }
    let mut decoder = StreamDecoder::new(tokenizer);
    let mut shown = show(&request.prompt);
    generate(&mut ops, &mut model, &prompt, request.tokens, &request.sampling, |token| {
        if token != tokenizer.eot() && shown.is_ok() {
            shown = show(&decoder.push(token));
        }
        token != tokenizer.eot() && shown.is_ok()
    })?;
    match shown.and_then(|()| show(&format!("{}\n", decoder.finish()))) {
        // Whoever read the text has enough of it.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        shown => Ok(shown?),
    }
}
