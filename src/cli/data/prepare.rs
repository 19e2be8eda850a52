//! `runner data prepare`: token shards from text.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::numbers::from_zero;
use crate::cli::streams::{self, say};
use crate::data::Tokenizer;
use crate::data::prepare::{Input, InputFormat, PrepareOptions, PrepareSummary, ValSplit, prepare};
use crate::experiment;
use crate::run::ending::Ending;
use crate::run::require_usage;
use crate::run::stop::on_requests;
use crate::units::{noun, were};

#[derive(Debug, Args)]
pub struct PrepareArgs {
    /// Text in UTF-8, JSON lines or Parquet; text and JSON lines may be compressed with gzip or zstd. `-`
    /// reads standard input, and a pipe such as `<(…)` is read as one
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Folder to write the shards into
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
    /// Shards are named NAME_train_000001.bin … and NAME_val_000000.bin [default: the first file's name]
    #[arg(long)]
    name: Option<String>,
    /// The field of each JSON line, or the Parquet column (`a.b` where nested), that holds the text
    /// [default: text]
    #[arg(long, value_name = "NAME")]
    column: Option<String>,
    /// What the files are [default: what they hold, by their content]
    #[arg(long, value_enum)]
    format: Option<FormatArg>,
    /// How text becomes tokens
    #[arg(long, value_enum, default_value_t = TokenizerArg::Gpt2)]
    tokenizer: TokenizerArg,
    /// Tokens a shard
    #[arg(long, value_name = "N", default_value_t = 100_000_000, value_parser = from_zero::<u64>)]
    shard_tokens: u64,
    /// Hold out the first N tokens for validation; 0 holds out none
    #[arg(long, value_name = "N", conflicts_with = "val_fraction", value_parser = from_zero::<u64>)]
    val_tokens: Option<u64>,
    /// Hold out about this share of the text, from its start
    #[arg(long, value_name = "F", default_value_t = 0.01, allow_hyphen_values = true)]
    val_fraction: f64,
    /// Replace all shards of this name
    #[arg(long)]
    overwrite: bool,
    /// Leave out up to N JSON lines and Parquet rows that have no text, and list them
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = from_zero::<u64>)]
    skip_bad_rows: u64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TokenizerArg {
    /// GPT-2's byte-pair encoding, 50257 tokens
    Gpt2,
    /// One token a byte, 257 tokens
    Byte,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FormatArg {
    /// Documents separated by a literal `<|endoftext|>`
    Text,
    /// One JSON object a line, each a document
    Jsonl,
    /// One row a document
    Parquet,
}

/// Runs `runner data prepare …`.
pub fn run(args: PrepareArgs) -> anyhow::Result<()> {
    let format = args.format.map(|format| match format {
        FormatArg::Text => InputFormat::Text,
        FormatArg::Jsonl => InputFormat::Jsonl,
        FormatArg::Parquet => InputFormat::Parquet,
    });
    let kind = match args.tokenizer {
        TokenizerArg::Gpt2 => experiment::Tokenizer::Gpt2,
        TokenizerArg::Byte => experiment::Tokenizer::Byte,
    };
    require_usage(args.column.is_none() || !matches!(args.format, Some(FormatArg::Text)), || {
        "`--column` is of JSON lines and Parquet: with `--format text` there are no columns".into()
    })?;
    let prefix = args.name.unwrap_or_else(|| default_name(&args.files));
    let options = PrepareOptions {
        shard_tokens: args.shard_tokens,
        val: args.val_tokens.map_or(ValSplit::Fraction(args.val_fraction), ValSplit::Tokens),
        column: args.column.unwrap_or_else(|| "text".to_owned()),
        overwrite: args.overwrite,
        skip_bad_rows: args.skip_bad_rows,
        ..PrepareOptions::new(&args.out, &prefix, Tokenizer::new(kind))
    };
    // Opening reads pipes to their ends.
    options.require_possible()?;
    let inputs = args.files.iter().map(|file| open(file, format)).collect::<anyhow::Result<Vec<Input>>>()?;
    streams::print(&encode(&inputs, &options)?)
}

/// Prepares shards with a bar, and says what is to be known of them; returns what was made, as a table. The
/// first signal ends it without what was begun, a second one at once.
pub(super) fn encode(inputs: &[Input], options: &PrepareOptions) -> anyhow::Result<String> {
    let asked = options.stop.clone();
    on_requests(move || {
        if !asked.ask() {
            Ending::Interrupted.at_once();
        }
    })?;
    let bar = progress_bar();
    let start = Instant::now();
    let summary = prepare(inputs, options, |bytes, total| {
        bar.set_length(total);
        bar.inc(bytes);
    });
    bar.finish_and_clear();
    Ok(summarize(&summary?, options, start.elapsed().as_secs_f64()))
}

fn open(file: &Path, format: Option<InputFormat>) -> anyhow::Result<Input> {
    if file == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_to_end(&mut bytes).context("cannot read standard input")?;
        return Ok(Input::bytes("standard input", format, bytes));
    }
    Ok(Input::file(file, format)?)
}

/// The first file's name without its extensions; `data` for standard input and other pipes.
fn default_name(files: &[PathBuf]) -> String {
    let Some(file) = files.first().filter(|file| file.is_file()) else { return "data".to_owned() };
    let stem = |name: &Path| name.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let compressed =
        file.extension().is_some_and(|end| ["gz", "zst"].iter().any(|known| end.eq_ignore_ascii_case(known)));
    let name = stem(file);
    if compressed { stem(Path::new(&name)) } else { name }
}

/// A bar on standard error, if that is a terminal.
fn progress_bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style =
        ProgressStyle::with_template("encoding {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn summarize(summary: &PrepareSummary, options: &PrepareOptions, seconds: f64) -> String {
    for note in &summary.notes {
        say!("note: {note}");
    }
    if summary.blank > 0 {
        let (blank, were) = (noun(summary.blank, "document"), were(summary.blank));
        say!("note: {} {blank} of white space alone {were} left out", summary.blank);
    }
    if let ValSplit::Tokens(wanted) = options.val
        && summary.val_tokens < wanted
    {
        say!("note: `--val-tokens` is {wanted}, but only {} are there", summary.val_tokens);
    }
    if !summary.skipped.is_empty() {
        let count = summary.skipped.len();
        say!("note: {count} {} {} left out:", noun(count, "bad row"), were(count));
        summary.skipped.iter().for_each(|row| say!("  {row}"));
    }
    let width = summary.shards.iter().map(|s| s.path.display().to_string().len()).max().unwrap_or(0).max(5);
    let mut table = format!("{:width$}  {:>13}  {:>14}\n", "shard", "tokens", "bytes");
    for shard in &summary.shards {
        table.push_str(&format!(
            "{:width$}  {:>13}  {:>14}\n",
            shard.path.display(),
            shard.tokens,
            shard.bytes
        ));
    }
    let tokens = summary.train_tokens + summary.val_tokens;
    table.push_str(&format!(
        "{} {}, {} {} of text, {tokens} {} ({} train, {} val), {} {}, {:.1} MB/s\n",
        summary.documents,
        noun(summary.documents, "document"),
        summary.text_bytes,
        noun(summary.text_bytes, "byte"),
        noun(tokens, "token"),
        summary.train_tokens,
        summary.val_tokens,
        summary.shards.len(),
        noun(summary.shards.len(), "shard"),
        summary.text_bytes as f64 / 1e6 / seconds.max(1e-9),
    ));
    table
}
