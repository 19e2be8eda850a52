//! `runner eval MODEL`: how good a saved model is.
//!
//! Reads a checkpoint's parameters and nothing else of its training state, takes no lock and writes
//! nothing into the run, so that a run may be evaluated while it is training.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use super::reporter::reporter;
use super::streams::{self, say};
use crate::data::{Dataset, Sources, Tokenizer, ValidationSet};
use crate::eval::multiple_choice::{self, TaskOutcome, names};
use crate::eval::{self, Scores, TaskSet, parameters};
use crate::experiment::Experiment;
use crate::model::Gpt2;
use crate::ops::{Ops, Role, Rows};
use crate::run::UsageError;
use crate::run::device::Device;
use crate::run::model::{self, LoadedModel, ModelArgument};
use crate::store::{self, Manifest, Tensor};
use crate::units;

/// Measure a saved model: validation loss, HellaSwag.
#[derive(clap::Args)]
pub struct Args {
    #[arg(value_name = "MODEL", help = model::help())]
    model: PathBuf,
    /// Step of the checkpoint to measure; the newest whole one by default.
    #[arg(long, value_name = "STEP")]
    checkpoint: Option<u64>,
    /// What to measure. By default the validation loss, and HellaSwag when the experiment names its file.
    #[arg(long, value_enum)]
    task: Option<TaskArg>,
    /// The task's data instead of the experiment's: a pattern of shards for `val`; a jsonl file or llm.c's
    /// `.bin` for `hellaswag`.
    #[arg(long, value_name = "FILE", requires = "task")]
    data: Option<String>,
    /// Write the numbers behind every HellaSwag decision to this file, a JSON line a task.
    #[arg(long, value_name = "FILE")]
    details: Option<PathBuf>,
    /// Change a key first: `--set device.kind=cpu`. May be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Folder that holds the run folders.
    #[arg(long, default_value = "runs", value_name = "DIR")]
    runs: PathBuf,
    /// Print the result as JSON on stdout.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TaskArg {
    /// Mean loss on held-out tokens.
    Val,
    /// Which of four endings is the likeliest; four scores.
    Hellaswag,
}

/// The data to measure on.
struct Tasks {
    validation: Option<HeldOut>,
    hellaswag: Option<TaskSet>,
}

/// Tokens to measure the loss on, and where they come from: a corpus's name, or patterns of shards.
struct HeldOut {
    set: ValidationSet,
    corpus: Option<String>,
    from: String,
}

impl HeldOut {
    /// For a model without data of its own: the data that it is measured on.
    fn note(&self) -> String {
        match &self.corpus {
            Some(corpus) => format!(
                "val_loss is that of the built-in text `{corpus}`: the model names no other\n  hint: `--task \
                 val --data SHARDS` or `--set data.val=SHARDS` measures on yours"
            ),
            None => format!("val_loss is that of {}", self.from),
        }
    }
}

/// What was measured.
#[derive(Default)]
struct Results {
    device: String,
    validation: Option<HeldOutLoss>,
    hellaswag: Option<(Scores, Vec<TaskOutcome>)>,
}

/// The loss on held-out tokens, and where these come from.
struct HeldOutLoss {
    loss: f64,
    tokens: u64,
    from: String,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let argument = model::find(&args.model, &args.runs, reporter(args.json))?;
    let experiment = argument.experiment(&args.set)?;
    let tasks = open_tasks(&args, &experiment)?;
    if args.details.is_some() && tasks.hellaswag.is_none() {
        return Err(UsageError("`--details` needs HellaSwag\n  hint: add `--task hellaswag`".into()).into());
    }
    let loaded = argument.parameters(experiment, args.checkpoint, reporter(args.json))?;
    say!("{}", loaded.title());
    if let (ModelArgument::Foreign(_), Some(held_out)) = (&argument, &tasks.validation) {
        say!("{}", held_out.note());
    }
    let LoadedModel { experiment, state, manifest } = loaded;

    let started = Instant::now();
    let results = match Device::open(&experiment)? {
        Device::Cpu(cpu) => measure(cpu, &experiment, state, &tasks)?,
        Device::Cuda(cuda) => measure(*cuda, &experiment, state, &tasks)?,
        Device::Mirror(mirror) => measure(mirror, &experiment, state, &tasks)?,
    };
    say!("measured on {} in {}", results.device, units::duration(started.elapsed().as_secs_f64()));

    if let (Some(path), Some(set), Some((_, outcomes))) =
        (&args.details, &tasks.hellaswag, &results.hellaswag)
    {
        store::atomic::write(path, details(set, outcomes).as_bytes())?;
    }
    if args.json {
        streams::print(&format!("{}\n", results.to_json(&experiment, manifest.as_ref())))?;
    } else {
        streams::print(&results.to_text())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn open_tasks(args: &Args, experiment: &Experiment) -> anyhow::Result<Tasks> {
    let (vocab, seq_len) = (experiment.model.vocab, experiment.batch.seq_len);
    let tokenizer = Tokenizer::new(experiment.data.tokenizer);
    let given = |task| args.data.as_ref().filter(|_| args.task == Some(task));

    let file = given(TaskArg::Hellaswag).or(experiment.eval.hellaswag.as_ref());
    let hellaswag = match (args.task, file) {
        (Some(TaskArg::Val), _) | (None, None) => None,
        (Some(TaskArg::Hellaswag), None) => {
            return Err(UsageError(
                "the experiment names no HellaSwag file\n  hint: give one with `--data`, or set \
                 `eval.hellaswag`"
                    .into(),
            )
            .into());
        }
        (_, Some(file)) => Some(TaskSet::open(Path::new(file), &tokenizer, vocab, seq_len)?),
    };
    let validation = match args.task {
        Some(TaskArg::Hellaswag) => None,
        _ => Some(held_out(given(TaskArg::Val), experiment)?),
    };
    Ok(Tasks { validation, hellaswag })
}

/// The validation set that training uses, or one from other shards.
fn held_out(pattern: Option<&String>, experiment: &Experiment) -> anyhow::Result<HeldOut> {
    let vocab = experiment.model.vocab;
    let tokenizer = Tokenizer::new(experiment.data.tokenizer);
    let shards = |patterns: &[String]| {
        anyhow::Ok((Arc::new(Dataset::open(patterns, vocab, &tokenizer)?), patterns.join(", ")))
    };
    let corpus = experiment.data.corpus.clone().filter(|_| pattern.is_none());
    let (data, from) = match (pattern, &corpus) {
        (Some(pattern), _) => shards(std::slice::from_ref(pattern))?,
        (None, Some(corpus)) => {
            let val =
                Sources::open(&experiment.data, vocab)?.val.context("the corpus has no validation text")?;
            (val, corpus.clone())
        }
        (None, None) => shards(&experiment.data.val)?,
    };
    let set = ValidationSet::new(&data, experiment.eval.val_tokens, experiment.batch.seq_len)?;
    if let Some(shortfall) = set.shortfall(experiment.eval.val_tokens) {
        say!("note: {shortfall}");
    }
    Ok(HeldOut { set, corpus, from })
}

fn measure<O: Ops>(
    mut ops: O,
    experiment: &Experiment,
    state: Vec<Tensor>,
    tasks: &Tasks,
) -> anyhow::Result<Results> {
    let rows = Rows { batch: experiment.batch.micro, seq: experiment.batch.seq_len };
    let mut model = Gpt2::zeroed(&mut ops, &experiment.model, rows, experiment.memory.recompute, false)?;
    parameters::restore(&mut ops, &model.specs, &mut model.params, &state)?;
    drop(state);
    let mut losses = ops.alloc(Role::F32, rows.count())?;
    let mut results = Results { device: ops.device_name(), ..Results::default() };
    if let Some(HeldOut { set, from, .. }) = &tasks.validation {
        let bar = bar("validating", set.sequences());
        let loss = eval::validation_loss(&mut ops, &mut model, &mut losses, set, |done| {
            bar.set_position(done as u64)
        })?;
        bar.finish_and_clear();
        ensure!(
            loss.is_finite(),
            "the validation loss is not finite ({loss}): the model's numbers overflow\n  hint: its training \
             diverged, or its weights are not what they were"
        );
        results.validation = Some(HeldOutLoss { loss, tokens: set.tokens(), from: from.clone() });
    }
    if let Some(set) = &tasks.hellaswag {
        let bar = bar("HellaSwag", set.rows());
        let outcomes = multiple_choice::outcomes(&mut ops, &mut model, &mut losses, set, |done, _| {
            bar.set_position(done as u64)
        })?;
        bar.finish_and_clear();
        results.hellaswag = Some((Scores::of(set, &outcomes), outcomes));
    }
    Ok(results)
}

/// A bar on standard error, if that is a terminal.
fn bar(what: &'static str, len: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(len as u64), ProgressDrawTarget::stderr()).with_prefix(what);
    let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {eta}");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

impl Results {
    /// Name, value and amount of data, a line each.
    fn to_text(&self) -> String {
        let mut lines = Vec::new();
        if let Some(HeldOutLoss { loss, tokens, .. }) = &self.validation {
            lines.push(("val_loss", format!("{loss:.6}"), format!("{} tokens", units::thousands(*tokens))));
        }
        if let Some((scores, _)) = &self.hellaswag {
            let tasks = format!("{} tasks", units::thousands(scores.tasks as u64));
            lines.extend(scores.named().map(|(name, score)| (name, format!("{score:.4}"), tasks.clone())));
        }
        lines.iter().map(|(name, value, on)| format!("{name:<25}  {value:>8}  {on}\n")).collect()
    }

    fn to_json(&self, experiment: &Experiment, manifest: Option<&Manifest>) -> Value {
        let mut value = json!({
            "experiment": experiment.name,
            "device": self.device,
        });
        if let Some(manifest) = manifest {
            value["step"] = manifest.step.into();
            value["tokens"] = manifest.tokens.into();
            value["state_root"] = manifest.state_root.to_string().into();
        }
        if let Some(HeldOutLoss { loss, tokens, from }) = &self.validation {
            value["val_loss"] = (*loss).into();
            value["val_tokens"] = (*tokens).into();
            value["val_data"] = from.as_str().into();
        }
        if let Some((scores, _)) = &self.hellaswag {
            for (name, score) in scores.named() {
                value[name] = score.into();
            }
            value["hellaswag_tasks"] = scores.tasks.into();
        }
        value
    }
}

/// A JSON line for each task: under each score's name the four numbers, of which the lowest wins, and the
/// winner.
fn details(set: &TaskSet, outcomes: &[TaskOutcome]) -> String {
    let mut text = String::new();
    for (i, (task, outcome)) in set.tasks().iter().zip(outcomes).enumerate() {
        let mut line = json!({"task": i, "label": task.label});
        for (name, decision) in names(set.has_harness()).into_iter().zip(outcome.decisions(task)) {
            line[name] = json!({"values": decision.values, "picked": decision.picked});
        }
        text.push_str(&line.to_string());
        text.push('\n');
    }
    text
}
