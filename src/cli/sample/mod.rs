//! `runner sample MODEL`: text from a saved model, shown as it is generated.

mod page;

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use super::numbers::from_zero;
use super::reporter::reporter;
use super::streams::{self, Unstyled, say};
use crate::data::Tokenizer;
use crate::generate::Sampling;
use crate::rng::Key;
use crate::run::model;
use crate::run::require_usage;
use crate::run::sample::{NextLogits, SampleRequest, Sampled, next_logits, sample};
use crate::units::{self, noun};
use page::SamplePage;

/// Texts of one call.
const MOST_SAMPLES: usize = 1_000_000;

/// Generate text with a saved model.
#[derive(clap::Args)]
pub struct Args {
    #[arg(value_name = "MODEL", help = model::help())]
    model: PathBuf,
    /// Text to continue; empty starts a document. The model reads `<|endoftext|>` before it, as before every
    /// document in training. By default the experiment's `sample.prompt`, as for the options below whose keys
    /// it has.
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Tokens at most; the model may end its text earlier.
    #[arg(long, value_name = "N", value_parser = from_zero::<usize>)]
    tokens: Option<usize>,
    /// Above 1 is bolder, below 1 safer; 0 takes the likeliest token.
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    temperature: Option<f64>,
    /// Only the K likeliest tokens; 0 is all.
    #[arg(long, value_name = "K", value_parser = from_zero::<usize>)]
    top_k: Option<usize>,
    /// Only the likeliest tokens that together have this probability; 1 is all.
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_hyphen_values = true)]
    top_p: f64,
    /// Another seed, another text. By default the experiment's.
    #[arg(long, value_parser = from_zero::<u64>)]
    seed: Option<u64>,
    /// How many texts; the first is the one that `--samples 1` gives.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = from_zero::<usize>)]
    samples: usize,
    /// Print one JSON line for each text on stdout, when all are written.
    #[arg(long)]
    json: bool,
    /// Print the prompt's tokens, `<|endoftext|>` first, and the logits of the next one as JSON, and write
    /// nothing.
    #[arg(long, conflicts_with_all = ["tokens", "temperature", "top_k", "top_p", "seed", "samples"])]
    logits: bool,
    /// Step of the checkpoint to read; the newest whole one by default.
    #[arg(long, value_name = "STEP", value_parser = from_zero::<u64>)]
    checkpoint: Option<u64>,
    /// Take the average of the weights, which a run with `optimizer.ema_decay` keeps.
    #[arg(long)]
    ema: bool,
    /// Change a key first: `--set device.kind=cpu`. May be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Folder that holds the run folders.
    #[arg(long, default_value = "runs", value_name = "DIR")]
    runs: PathBuf,
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
    require_usage((1..=MOST_SAMPLES).contains(&args.samples), || {
        format!("`--samples` is {}, expected 1 to {MOST_SAMPLES}", args.samples)
    })?;
    let request = SampleRequest {
        prompt: args.prompt.unwrap_or_else(|| defaults.prompt.clone()),
        tokens: args.tokens.unwrap_or(defaults.tokens),
        samples: args.samples,
        sampling,
    };
    let tokenizer = Tokenizer::new(experiment.data.tokenizer);
    let model = argument.parameters(experiment, args.checkpoint, args.ema, reporter(args.json))?;
    say!("{}", model.title());
    if args.logits {
        let NextLogits { tokens, logits } = next_logits(model, &request.prompt)?;
        streams::print(&format!("{}\n", json!({"tokens": tokens, "logits": logits})))?;
        return Ok(ExitCode::SUCCESS);
    }

    let mut page = SamplePage::new(&request, tokenizer, args.json, Unstyled::stdout());
    let Sampled { device, took, written, longest, positions } =
        sample(model, &request, |text, token| page.push(text, token))?;
    streams::unless_unread(page.finish())?;
    let seconds = took.as_secs_f64();
    let speed = written as f64 / seconds;
    let (tokens, took) = (noun(written, "token"), units::duration(seconds));
    say!("{written} {tokens} on {device} in {took}, {speed:.0} tok/s");
    if longest > positions {
        let tokens = noun(positions, "token");
        say!(
            "past {positions} {tokens} a text goes on from its newer half: the model has learned no further"
        );
    }
    Ok(ExitCode::SUCCESS)
}
