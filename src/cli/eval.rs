//! `runner eval MODEL`: how good a saved model is.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::ValueEnum;
use serde_json::{Value, json};

use super::reporter::reporter;
use super::streams::{self, say};
use crate::run::evaluate::{EvalData, EvalTask, Evaluated, HeldOut, HeldOutLoss, evaluate};
use crate::run::model::{self, ModelArgument};
use crate::run::require_usage;
use crate::store::Manifest;
use crate::store::output::{self, OutputKind};
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

impl From<TaskArg> for EvalTask {
    fn from(task: TaskArg) -> EvalTask {
        match task {
            TaskArg::Val => EvalTask::Validation,
            TaskArg::Hellaswag => EvalTask::HellaSwag,
        }
    }
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let report = reporter(args.json);
    let argument = model::find(&args.model, &args.runs, report)?;
    let experiment = argument.experiment(&args.set)?;
    let data = EvalData::open(&experiment, args.task.map(EvalTask::from), args.data.as_ref(), report)?;
    require_usage(args.details.is_none() || data.hellaswag.is_some(), || {
        "`--details` needs HellaSwag\n  hint: add `--task hellaswag`".into()
    })?;
    let model = argument.parameters(experiment, args.checkpoint, report)?;
    say!("{}", model.title());
    if let (ModelArgument::Foreign(_), Some(held_out)) = (&argument, &data.validation) {
        say!("{}", note(held_out));
    }
    let (name, manifest) = (model.experiment.name.clone(), model.manifest.clone());

    let started = Instant::now();
    let results = evaluate(model, &data, report)?;
    say!("measured on {} in {}", results.device, units::duration(started.elapsed().as_secs_f64()));

    if let (Some(path), Some(set)) = (&args.details, &data.hellaswag)
        && let Some(decisions) = results.decisions(set)
    {
        output::write(path, decisions.as_bytes(), OutputKind::Decisions)?;
    }
    if args.json {
        streams::print(&format!("{}\n", to_json(&results, &name, manifest.as_ref())))?;
    } else {
        streams::print(&to_text(&results))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// For a model without data of its own: the data that it is measured on.
fn note(held_out: &HeldOut) -> String {
    match &held_out.corpus {
        Some(corpus) => format!(
            "val_loss is that of the built-in text `{corpus}`: the model names no other\n  hint: `--task \
             val --data SHARDS` or `--set data.val=SHARDS` measures on yours"
        ),
        None => format!("val_loss is that of {}", held_out.from),
    }
}

/// Name, value and amount of data, a line each.
fn to_text(results: &Evaluated) -> String {
    let mut lines = Vec::new();
    if let Some(of @ HeldOutLoss { loss, tokens, bytes, .. }) = &results.validation {
        lines.push(("val_loss", format!("{loss:.6}"), format!("{} tokens", units::thousands(*tokens))));
        let bytes = format!("{} bytes", units::thousands(*bytes));
        lines.extend(of.bits_per_byte().map(|bits| ("val_bits_per_byte", format!("{bits:.6}"), bytes)));
    }
    if let Some((scores, _)) = &results.hellaswag {
        let tasks = format!("{} tasks", units::thousands(scores.tasks as u64));
        lines.extend(scores.named().map(|(name, score)| (name, format!("{score:.4}"), tasks.clone())));
    }
    lines.iter().map(|(name, value, on)| format!("{name:<25}  {value:>8}  {on}\n")).collect()
}

fn to_json(results: &Evaluated, experiment: &str, manifest: Option<&Manifest>) -> Value {
    let mut value = json!({
        "experiment": experiment,
        "device": results.device,
    });
    if let Some(manifest) = manifest {
        value["step"] = manifest.step.into();
        value["tokens"] = manifest.tokens.into();
        value["state_root"] = manifest.state_root.to_string().into();
    }
    if let Some(of @ HeldOutLoss { loss, tokens, bytes, from }) = &results.validation {
        value["val_loss"] = (*loss).into();
        value["val_tokens"] = (*tokens).into();
        value["val_data"] = from.as_str().into();
        value["val_bytes"] = (*bytes).into();
        value["val_bits_per_byte"] = of.bits_per_byte().into();
    }
    if let Some((scores, _)) = &results.hellaswag {
        for (name, score) in scores.named() {
            value[name] = score.into();
        }
        value["hellaswag_tasks"] = scores.tasks.into();
    }
    value
}
