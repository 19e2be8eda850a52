//! `runner eval MODEL…`: how good saved models are.

use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::str::FromStr;
use std::time::Instant;

use serde_json::{Value, json};

use super::reporter::reporter;
use super::streams::{self, say};
use super::{exit, named};
use crate::experiment::{Experiment, Tokenizer};
use crate::report::compare::NamedRun;
use crate::run::error::is_damage;
use crate::run::evaluate::{
    AskedTask, EvalData, EvalTask, Evaluated, HeldOut, HeldOutLoss, MeasuredSubject, Measurement, Subject,
    evaluate,
};
use crate::run::messages::Report;
use crate::run::model::{self, ModelArgument};
use crate::run::{UsageError, require_usage};
use crate::store::output::{self, OutputKind};
use crate::store::{self, Manifest, RunPaths};
use crate::units;

/// Measure saved models: validation loss, HellaSwag, LAMBADA, ARC-easy, PIQA.
#[derive(clap::Args)]
pub struct Args {
    #[arg(value_name = "MODEL", required = true, help = help())]
    models: Vec<PathBuf>,
    /// Steps of the checkpoints to measure, such as `100,200`, or `all`; the newest whole one by default.
    #[arg(long, value_name = "STEP", value_delimiter = ',')]
    checkpoint: Vec<CheckpointArg>,
    /// Measure the average of the weights, which a run with `optimizer.ema_decay` keeps.
    #[arg(long)]
    ema: bool,
    /// What to measure: `val`, the mean loss on held-out tokens; `hellaswag`, which of four endings is the
    /// likeliest; `lambada`, `arc_easy` and `piqa` as lm-eval has them, from the jsonl that `=FILE` names. By
    /// default `val`, and `hellaswag` when the experiment names its file. May be repeated.
    #[arg(long, value_name = "NAME[=FILE]")]
    task: Vec<AskedTask>,
    /// The one task's data instead of the experiment's: a pattern of shards for `val`; a jsonl file or
    /// llm.c's `.bin` for `hellaswag`; a jsonl file for the others.
    #[arg(long, value_name = "FILE", requires = "task")]
    data: Option<String>,
    /// Measure the loss on each source of a mixture too: on the shards of `data.mix.NAME.val`, or on what an
    /// embedded text holds out.
    #[arg(long)]
    by_source: bool,
    /// Write the numbers behind every decision of the tasks to this file, a JSON line a task.
    #[arg(long, value_name = "FILE")]
    details: Option<PathBuf>,
    /// Change a key first: `--set device.kind=cpu`. May be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Folder that holds the run folders.
    #[arg(long, default_value = "runs", value_name = "DIR")]
    runs: PathBuf,
    /// Print the result as JSON on stdout, a line a model. What is measured and not known is null.
    #[arg(long)]
    json: bool,
}

fn help() -> String {
    format!("{}. A sweep is its members", model::help())
}

impl FromStr for AskedTask {
    type Err = String;

    fn from_str(text: &str) -> Result<AskedTask, String> {
        let (name, file) = text.split_once('=').map_or((text, None), |(name, file)| (name, Some(file)));
        let Some(task) = EvalTask::ALL.into_iter().find(|task| task.name() == name) else {
            return Err(format!(
                "expected one of `{}`, with `=FILE` or without",
                EvalTask::ALL.map(EvalTask::name).join("`, `")
            ));
        };
        match file {
            Some("") => Err("there is no file behind `=`".into()),
            file => Ok(AskedTask { task, file: file.map(str::to_owned) }),
        }
    }
}

/// A checkpoint that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CheckpointArg {
    All,
    Step(u64),
}

impl FromStr for CheckpointArg {
    type Err = String;

    fn from_str(text: &str) -> Result<CheckpointArg, String> {
        match text {
            "all" => Ok(CheckpointArg::All),
            step => step.parse().map(CheckpointArg::Step).map_err(|_| "expected a step or `all`".into()),
        }
    }
}

/// A model of the command line, its data, and which of its checkpoints.
struct ModelAtStep {
    /// As the command line calls it.
    name: String,
    argument: Rc<ModelArgument>,
    experiment: Experiment,
    data: Rc<EvalData>,
    step: Option<u64>,
    ema: bool,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let report = reporter(args.json);
    let asked = asked(&args)?;
    let candidates = candidates(&args, &asked, report)?;
    let alone = candidates.len() == 1;
    let decided = candidates.iter().all(|of| of.data.hellaswag.is_some() || !of.data.benchmarks.is_empty());
    require_usage(args.details.is_none() || decided, || {
        "`--details` needs HellaSwag or a task of lm-eval\n  hint: add `--task hellaswag`".into()
    })?;
    require_usage(args.details.is_none() || alone, || {
        "`--details` is for one model\n  hint: name one, and one `--checkpoint` of it".into()
    })?;

    say_sets(&candidates);
    if let Some(path) = &args.details {
        output::require(path, OutputKind::Decisions)?;
    }
    let started = Instant::now();
    let mut device = String::new();
    let (mut failed, mut worst) = (0, exit::FAILED);
    let mut table = ResultTable::of(&candidates);
    let subjects = candidates.iter().map(|candidate| candidate.load(alone, report));
    evaluate(subjects, report, |MeasuredSubject { name, manifest, data, results }| {
        let results = match results {
            Err(error) if alone => return Err(error),
            Err(error) => {
                failed += 1;
                if is_damage(&error) {
                    worst = exit::PROOF;
                }
                exit::report(&match &manifest {
                    Some(manifest) => error.context(format!("{name}, step {}", manifest.step)),
                    None => error.context(name),
                });
                return Ok(());
            }
            Ok(results) => results,
        };
        if alone {
            let took = units::duration(started.elapsed().as_secs_f64());
            say!("measured on {} in {took}", results.device);
        }
        if let Some(path) = &args.details {
            output::write(path, results.decisions(&data).as_bytes(), OutputKind::Decisions)?;
        }
        let numbers = results.numbers(&data);
        streams::print(&match (args.json, alone) {
            (true, _) => {
                let mut json = to_json(&results, &data, &name, manifest.as_ref());
                if args.ema {
                    json["weights"] = "average".into();
                }
                format!("{json}\n")
            }
            (false, true) => to_text(&numbers),
            (false, false) => table.row(&name, manifest.as_ref(), &numbers),
        })?;
        device = results.device;
        Ok(())
    })?;
    if alone {
        return Ok(ExitCode::SUCCESS);
    }
    let (all, took) = (candidates.len(), units::duration(started.elapsed().as_secs_f64()));
    if failed > 0 {
        exit::print(&format!("{failed} of {all} models could not be measured"));
        return Ok(ExitCode::from(worst));
    }
    say!("measured {all} models on {device} in {took}");
    Ok(ExitCode::SUCCESS)
}

/// Says of models in one table that are not measured in or on the same tokens.
fn say_sets(candidates: &[ModelAtStep]) {
    if let [first, others @ ..] = candidates
        && let Some(odd) = others.iter().find(|of| of.tokenizer() != first.tokenizer())
    {
        let (first, odd) = (&first.name, &odd.name);
        say!("`{first}` and `{odd}` have different tokenizers: losses in nats a token do not compare");
        return;
    }
    let mut sets: Vec<(&str, &HeldOut)> = Vec::new();
    for ModelAtStep { name, data, .. } in candidates {
        if let Some(held_out) = &data.validation
            && sets.iter().all(|(_, other)| other.set.sha256() != held_out.set.sha256())
        {
            sets.push((name, held_out));
        }
    }
    if sets.len() > 1 {
        let on = |(name, held_out): &(&str, &HeldOut)| {
            let tokens = units::thousands(held_out.set.tokens());
            format!("`{name}` on {tokens} tokens of {}", held_out.from)
        };
        let sets = sets.iter().map(on).collect::<Vec<_>>().join(", ");
        say!("the losses do not compare: {sets}");
    }
}

/// The tasks, each at most once; `--data` is the file of the only one.
fn asked(args: &Args) -> anyhow::Result<Vec<AskedTask>> {
    let mut asked = args.task.clone();
    if let Some(file) = &args.data {
        require_usage(matches!(&asked[..], [AskedTask { file: None, .. }]), || {
            "`--data` is the file of one `--task` without a file\n  hint: `--task NAME=FILE` for each".into()
        })?;
        asked[0].file = Some(file.clone());
    }
    let twice = (1..args.checkpoint.len()).find(|i| args.checkpoint[..*i].contains(&args.checkpoint[*i]));
    require_usage(twice.is_none(), || "a step is given twice in `--checkpoint`".into())?;
    let twice = (1..asked.len()).find(|i| asked[..*i].iter().any(|other| other.task == asked[*i].task));
    require_usage(twice.is_none(), || {
        format!("`--task {}` is given twice", asked[twice.unwrap_or(0)].task.name())
    })?;
    Ok(asked)
}

/// Every model and checkpoint of the command line. All data are opened; models of the same data share them.
fn candidates(args: &Args, asked: &[AskedTask], report: Report) -> anyhow::Result<Vec<ModelAtStep>> {
    let mut candidates: Vec<ModelAtStep> = Vec::new();
    for NamedRun { name, folder } in models(args)? {
        let argument = Rc::new(model::find(&folder, &args.runs, report)?);
        let experiment = argument.experiment(&args.set)?;
        let same = |of: &&ModelAtStep| {
            let (a, b) = (&of.experiment, &experiment);
            (&a.data, &a.eval, a.batch.seq_len, a.model.vocab)
                == (&b.data, &b.eval, b.batch.seq_len, b.model.vocab)
        };
        let data = match candidates.last().filter(same) {
            Some(of) => of.data.clone(),
            None => {
                let data = EvalData::open(&experiment, asked, args.by_source, report)?;
                if let (ModelArgument::Foreign(_), Some(held_out)) = (&*argument, &data.validation) {
                    say!("{}", note(held_out));
                }
                Rc::new(data)
            }
        };
        let own = args.set.is_empty() && asked.iter().all(|asked| asked.file.is_none());
        if let (ModelArgument::Run(paths), true) = (&*argument, own) {
            data.compare(&experiment, paths, report);
        }
        let steps = steps(&args.checkpoint, &argument, &name)?;
        candidates.extend(steps.into_iter().map(|step| ModelAtStep {
            name: name.clone(),
            argument: argument.clone(),
            experiment: experiment.clone(),
            data: data.clone(),
            step,
            ema: args.ema,
        }));
    }
    Ok(candidates)
}

/// The models, with the members that have begun in place of a sweep.
fn models(args: &Args) -> anyhow::Result<Vec<NamedRun>> {
    let mut models = Vec::new();
    for model in &args.models {
        let Some(sweep) = named::sweep(model, &args.runs) else {
            models.push(NamedRun { name: model.display().to_string(), folder: model.clone() });
            continue;
        };
        let members = named::members(&sweep)?;
        let all = members.len();
        let (begun, rest): (Vec<NamedRun>, Vec<NamedRun>) =
            members.into_iter().partition(|member| RunPaths::new(&member.folder).experiment().is_file());
        let (lost, rest): (Vec<NamedRun>, Vec<NamedRun>) =
            rest.into_iter().partition(|member| RunPaths::new(&member.folder).lack_experiment());
        for member in lost {
            say!("{} is left out: its `experiment.toml` is gone, restore it from a copy", member.name);
        }
        require_usage(!begun.is_empty(), || {
            format!("no member of the sweep `{}` has begun", model.display())
        })?;
        models.extend(begun);
        if !rest.is_empty() {
            say!("{} of {all} members of `{}` have not begun", rest.len(), model.display());
        }
    }
    Ok(models)
}

/// The checkpoints of a model that are asked for: none is the newest whole one.
fn steps(asked: &[CheckpointArg], argument: &ModelArgument, name: &str) -> anyhow::Result<Vec<Option<u64>>> {
    if !asked.contains(&CheckpointArg::All) {
        let steps = asked.iter().filter_map(|asked| match asked {
            CheckpointArg::All => None,
            CheckpointArg::Step(step) => Some(Some(*step)),
        });
        return Ok(if asked.is_empty() { vec![None] } else { steps.collect() });
    }
    require_usage(asked.len() == 1, || "`--checkpoint all` names every step already".into())?;
    let ModelArgument::Run(paths) = argument else {
        return Err(UsageError(format!("`{name}` is a model, not a run: it has no checkpoints")).into());
    };
    let there = store::list(&paths.checkpoints())?;
    require_usage(!there.is_empty(), || format!("`{name}` has no checkpoint"))?;
    Ok(there.into_iter().map(|(step, _)| Some(step)).collect())
}

impl ModelAtStep {
    fn tokenizer(&self) -> Tokenizer {
        self.experiment.data.tokenizer
    }

    /// Reads the parameters; says what they are of where there is one model.
    fn load(&self, alone: bool, report: Report) -> Subject {
        let model = self.argument.parameters(self.experiment.clone(), self.step, self.ema, report);
        if let (true, Ok(model)) = (alone, &model) {
            say!("{}", model.title());
        }
        Subject { name: self.name.clone(), model, data: self.data.clone() }
    }
}

/// Results of several models, a row each, printed as they come.
struct ResultTable {
    name_width: usize,
    /// The title of the models.
    models: &'static str,
    /// The columns' names: all that any of the models is measured by.
    columns: Vec<String>,
    begun: bool,
}

impl ResultTable {
    fn of(candidates: &[ModelAtStep]) -> ResultTable {
        let mut columns = Vec::new();
        for name in candidates.iter().flat_map(|of| of.data.names()) {
            if !columns.contains(&name) {
                columns.push(name);
            }
        }
        let widths = candidates.iter().map(|of| units::printable(&of.name).chars().count());
        let models = if candidates.iter().any(|of| of.ema) { "average of" } else { "model" };
        ResultTable { name_width: widths.max().unwrap_or(0).max(models.len()), models, columns, begun: false }
    }

    /// A row, behind the header where it is the first.
    fn row(&mut self, name: &str, manifest: Option<&Manifest>, numbers: &[Measurement]) -> String {
        let line = |name: &str, step: &str, cells: Vec<String>| {
            let cells = self.columns.iter().zip(cells);
            let cells: String =
                cells.map(|(column, cell)| format!("  {cell:>0$}", column.len().max(8))).collect();
            format!("{name:<0$}  {step:>8}{cells}\n", self.name_width)
        };
        let header = line(self.models, "step", self.columns.clone());
        let of = |column: &String| numbers.iter().find(|number| number.name == *column);
        let cells = self.columns.iter().map(|column| of(column).map_or("-".into(), value)).collect();
        let step = manifest.map_or("-".into(), |manifest| manifest.step.to_string());
        let row = line(&units::printable(name), &step, cells);
        if std::mem::replace(&mut self.begun, true) { row } else { header + &row }
    }
}

/// Losses have six decimals, scores four; a perplexity may be of any size.
fn value(Measurement { name, value, .. }: &Measurement) -> String {
    match name.starts_with("val_") {
        true => format!("{value:.6}"),
        false if *value < 1e6 => format!("{value:.4}"),
        false => format!("{value:.4e}"),
    }
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
fn to_text(numbers: &[Measurement]) -> String {
    let line = |number: &Measurement| {
        let Measurement { name, count, of, .. } = number;
        format!("{name:<25}  {:>8}  {} {of}\n", value(number), units::thousands(*count))
    };
    numbers.iter().map(line).collect()
}

fn to_json(results: &Evaluated, data: &EvalData, model: &str, manifest: Option<&Manifest>) -> Value {
    let mut json = json!({"model": model, "experiment": results.experiment, "device": results.device});
    if let Some(manifest) = manifest {
        json["step"] = manifest.step.into();
        json["tokens"] = manifest.tokens.into();
        json["state_root"] = manifest.state_root.to_string().into();
    }
    if let Some(HeldOutLoss { tokens, bytes, from, .. }) = &results.validation {
        json["val_tokens"] = (*tokens).into();
        json["val_data"] = from.as_str().into();
        json["val_bytes"] = json!(bytes);
    }
    if let Some((scores, _)) = &results.hellaswag {
        json["hellaswag_tasks"] = scores.tasks.into();
    }
    for set in &data.benchmarks {
        json[format!("{}_tasks", set.benchmark().name())] = set.questions().len().into();
    }
    // What is asked for and not known is null.
    data.names().into_iter().for_each(|name| json[name] = Value::Null);
    for Measurement { name, value, .. } in results.numbers(data) {
        json[name] = value.into();
    }
    json
}
