//! How good saved models are: the data that they are measured on, and what was measured.
//!
//! Reads a checkpoint's parameters and nothing else of its training state, takes no lock and writes nothing
//! into the run, so that a run may be evaluated while it is training.

use std::collections::BTreeSet;
use std::iter::Peekable;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::ensure;
use serde_json::json;

use super::data::{SHARDS, remembered};
use super::device::Device;
use super::error::{UsageError, require_usage};
use super::lock::{TASKS, VALIDATION_SET, is_same_set};
use super::messages::{LongWork, Message, Report};
use super::model::LoadedModel;
use crate::data::{Dataset, Tokenizer, ValidationSet, sources};
use crate::eval::multiple_choice::{self, TaskOutcome};
use crate::eval::rows::Surprise;
use crate::eval::{self, Benchmark, QuestionSet, Scores, TaskSet, parameters};
use crate::experiment::{DataKeys, Experiment};
use crate::model::Gpt2;
use crate::ops::{Ops, Role, Rows};
use crate::parallel::Solo;
use crate::proof::lock::Lock;
use crate::store::{Manifest, RunPaths};

/// Something that a model is measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvalTask {
    /// Mean loss on held-out tokens.
    Validation,
    /// Which of four endings is the likeliest.
    HellaSwag,
    /// A task of lm-eval.
    Benchmark(Benchmark),
}

impl EvalTask {
    /// Every task.
    pub const ALL: [EvalTask; 5] = [
        EvalTask::Validation,
        EvalTask::HellaSwag,
        EvalTask::Benchmark(Benchmark::Lambada),
        EvalTask::Benchmark(Benchmark::ArcEasy),
        EvalTask::Benchmark(Benchmark::Piqa),
    ];

    /// The word by which it is asked for.
    pub fn name(self) -> &'static str {
        match self {
            EvalTask::Validation => "val",
            EvalTask::HellaSwag => "hellaswag",
            EvalTask::Benchmark(benchmark) => benchmark.name(),
        }
    }
}

/// A task, and where its data are if not where the experiment says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskedTask {
    pub task: EvalTask,
    pub file: Option<String>,
}

/// The data to measure on.
pub struct EvalData {
    pub validation: Option<HeldOut>,
    /// Of the sources of a mixture, where that was asked for.
    pub sources: Vec<(String, ValidationSet)>,
    pub hellaswag: Option<TaskSet>,
    pub benchmarks: Vec<QuestionSet>,
}

/// Tokens to measure the loss on, and where they come from: a corpus's name, or patterns of shards.
pub struct HeldOut {
    pub set: ValidationSet,
    /// The name of the embedded text, if that is it.
    pub corpus: Option<String>,
    pub from: String,
}

/// What was measured.
#[derive(Default)]
pub struct Evaluated {
    pub device: String,
    /// The name of the model's experiment.
    pub experiment: String,
    pub validation: Option<HeldOutLoss>,
    /// In the order of the data's.
    pub sources: Vec<HeldOutLoss>,
    pub hellaswag: Option<(Scores, Vec<TaskOutcome>)>,
    /// The surprises at all continuations, in the order of the data's benchmarks.
    pub benchmarks: Vec<Vec<Vec<Surprise>>>,
}

/// A model to be measured, if it could be loaded, and the data for it.
pub struct Subject {
    pub name: String,
    pub model: anyhow::Result<LoadedModel>,
    pub data: Rc<EvalData>,
}

/// A subject that was measured, or could not be.
pub struct MeasuredSubject {
    pub name: String,
    pub manifest: Option<Manifest>,
    pub data: Rc<EvalData>,
    pub results: anyhow::Result<Evaluated>,
}

/// The mean loss on held-out tokens in nats a token, and where these come from.
pub struct HeldOutLoss {
    pub loss: f64,
    pub tokens: u64,
    /// Bytes of the text that the tokens stand for; none where the tokenizer does not have all of them.
    pub bytes: Option<u64>,
    pub from: String,
}

impl HeldOutLoss {
    /// The loss of all tokens, ends of texts included, in bits for each byte of the text: comparable among
    /// tokenizers. None where there is no text, or its bytes are not known.
    pub fn bits_per_byte(&self) -> Option<f64> {
        let bits = self.loss * self.tokens as f64 / std::f64::consts::LN_2;
        self.bytes.filter(|bytes| *bytes > 0).map(|bytes| bits / bytes as f64)
    }

    /// Under these names the loss, and the bits for each byte where there is text.
    fn measurements(&self, [loss, bits]: [String; 2]) -> Vec<Measurement> {
        let HeldOutLoss { tokens, bytes, .. } = *self;
        let loss = Measurement { name: loss, value: self.loss, count: tokens, of: "tokens" };
        let count = bytes.unwrap_or(0);
        let bits = self.bits_per_byte().map(|value| Measurement { name: bits, value, count, of: "bytes" });
        std::iter::once(loss).chain(bits).collect()
    }
}

impl EvalData {
    /// Opens the data of the tasks that were asked for; without any the validation set, and HellaSwag where
    /// the experiment names its file. `by_source` is whether each source of a mixture is measured too.
    ///
    /// # Errors
    /// There is no such data, or it is damaged.
    pub fn open(
        experiment: &Experiment,
        asked: &[AskedTask],
        by_source: bool,
        report: Report,
    ) -> anyhow::Result<EvalData> {
        let of = |task| asked.iter().find(|asked| asked.task == task);
        let tokenizer = Tokenizer::new(experiment.data.tokenizer);
        let (vocab, seq_len) = (experiment.model.vocab, experiment.batch.seq_len);
        let hellaswag = match (of(EvalTask::HellaSwag), &experiment.eval.hellaswag) {
            (Some(AskedTask { file: Some(file), .. }), _) => Some(file),
            (Some(_), None) => {
                return Err(UsageError(
                    "the experiment names no HellaSwag file\n  hint: give one with `--data`, or set \
                     `eval.hellaswag`"
                        .into(),
                )
                .into());
            }
            (Some(_), named) => named.as_ref(),
            (None, named) => named.as_ref().filter(|_| asked.is_empty()),
        };
        let hellaswag =
            hellaswag.map(|file| TaskSet::open(Path::new(file), &tokenizer, vocab, seq_len)).transpose()?;
        let validation = match of(EvalTask::Validation) {
            None if !asked.is_empty() => None,
            asked => Some(HeldOut::open(asked.and_then(|asked| asked.file.as_ref()), experiment, report)?),
        };
        let mut benchmarks = Vec::new();
        for AskedTask { task, file } in asked {
            let EvalTask::Benchmark(benchmark) = task else { continue };
            let name = benchmark.name();
            let file = file.as_ref().ok_or_else(|| {
                UsageError(format!("`--task {name}` needs its file\n  hint: `--task {name}=FILE`"))
            })?;
            benchmarks.push(QuestionSet::open(Path::new(file), *benchmark, &tokenizer, vocab, seq_len)?);
        }
        let equal = hellaswag.as_ref().and_then(TaskSet::equal_completions).into_iter();
        for remark in equal.chain(benchmarks.iter().filter_map(QuestionSet::equal_choices)) {
            report.tell(&Message::Remark(&remark));
        }
        let sources = if by_source { held_out_of_sources(experiment, report)? } else { Vec::new() };
        Ok(EvalData { validation, sources, hellaswag, benchmarks })
    }

    /// Names of all numbers of [`Evaluated::numbers`].
    pub fn names(&self) -> Vec<String> {
        let validation = self.validation.iter().flat_map(|_| LOSSES.map(str::to_owned));
        let sources = self.sources.iter().flat_map(|(source, _)| LOSSES.map(|name| of_source(name, source)));
        let hellaswag = self.hellaswag.iter().flat_map(|set| multiple_choice::names(set.has_harness()));
        let benchmarks = self.benchmarks.iter().flat_map(|set| set.benchmark().scores());
        let scores = hellaswag.chain(benchmarks).map(str::to_owned);
        validation.chain(sources).chain(scores).collect()
    }
}

/// The names of the loss on held-out tokens, in nats a token and in bits a byte.
const LOSSES: [&str; 2] = ["val_loss", "val_bits_per_byte"];

/// `val_loss/web`: a number of one source of a mixture.
fn of_source(name: &str, source: &str) -> String {
    format!("{name}/{source}")
}

/// What the sources of a mixture are measured by.
fn held_out_of_sources(
    experiment: &Experiment,
    report: Report,
) -> anyhow::Result<Vec<(String, ValidationSet)>> {
    let Experiment { data, eval, batch, model, .. } = experiment;
    let held_out = sources::held_out_of_sources(data, model.vocab)?;
    require_usage(!held_out.is_empty(), || match data.mix.is_empty() {
        true => format!("`{}` was not trained on a mixture: it has no sources to measure", experiment.name),
        false => {
            "no source of the mixture has validation data\n  hint: `--set data.mix.NAME.val=SHARDS` names \
                  those of a source"
                .into()
        }
    })?;
    let set = |(name, data): (String, Dataset)| {
        let set = ValidationSet::new(&data, eval.val_tokens, batch.seq_len)?;
        if let Some(doubtful) = set.doubtful(&data, &Tokenizer::new(experiment.data.tokenizer)) {
            report.tell(&Message::Remark(&format!("of the source `{name}`: {doubtful}")));
        }
        Ok((name, set))
    };
    held_out.into_iter().map(set).collect()
}

impl EvalData {
    /// Says what of the sets that a run's experiment names is not what its lock has.
    pub fn compare(&self, experiment: &Experiment, paths: &RunPaths, report: Report) {
        // What is wrong with a lock, `verify` says.
        let Ok(lock) = Lock::read(&paths.lock_file()) else { return };
        let validation = self.validation.iter().map(|of| (VALIDATION_SET, hex::encode(of.set.sha256())));
        let tasks = experiment.eval.hellaswag.iter().filter(|_| self.hellaswag.is_some());
        let tasks = tasks.filter_map(|file| {
            let sha256 = remembered(SHARDS).file(Path::new(file)).ok()?;
            Some((TASKS, format!("sha256 {}", hex::encode(sha256))))
        });
        for (key, is) in validation.chain(tasks) {
            if lock.environment.get(key).is_some_and(|was| !is_same_set(was, &is)) {
                report.tell(&Message::Remark(&format!(
                    "this is another set than `{}` was measured on while it trained (`{key}` in its lock): \
                     its figures are of that one",
                    paths.name()
                )));
            }
        }
    }
}

impl HeldOut {
    /// The validation set that training uses, or one from other shards.
    fn open(pattern: Option<&String>, experiment: &Experiment, report: Report) -> anyhow::Result<HeldOut> {
        let vocab = experiment.model.vocab;
        let tokenizer = Tokenizer::new(experiment.data.tokenizer);
        let shards = |patterns: &[String]| {
            anyhow::Ok((Arc::new(Dataset::open(patterns, vocab, &tokenizer)?), patterns.join(", ")))
        };
        let corpus = experiment.data.corpus.clone().filter(|_| pattern.is_none());
        let (data, from) = match (pattern, &corpus) {
            (Some(pattern), _) => shards(std::slice::from_ref(pattern))?,
            (None, None) if !experiment.data.val.is_empty() => shards(&experiment.data.val)?,
            (None, _) => match sources::held_out(&experiment.data, vocab)? {
                Some(val) => (Arc::new(val), texts(&experiment.data)),
                None => shards(&[])?,
            },
        };
        let set = ValidationSet::new(&data, experiment.eval.val_tokens, experiment.batch.seq_len)?;
        if let Some(shortfall) = set.shortfall(experiment.eval.val_tokens) {
            report.tell(&Message::Remark(&shortfall));
        }
        for remark in set.unreached(&data).into_iter().chain(set.doubtful(&data, &tokenizer)) {
            report.tell(&Message::Remark(&remark));
        }
        let from = match set.reached(&data) {
            texts if texts.is_empty() => from,
            texts => texts.join(", "),
        };
        Ok(HeldOut { set, corpus, from })
    }
}

/// The names of the embedded texts of an experiment, each once.
fn texts(data: &DataKeys) -> String {
    let texts = data.corpus.iter().chain(data.mix.values().filter_map(|source| source.corpus.as_ref()));
    texts.collect::<BTreeSet<_>>().into_iter().cloned().collect::<Vec<_>>().join(", ")
}

impl Evaluated {
    /// Every number by its name, with the number of things that it is of and their name, in the order in
    /// which they were measured.
    pub fn numbers(&self, data: &EvalData) -> Vec<Measurement> {
        let mut numbers = Vec::new();
        let [loss, bits] = LOSSES;
        if let Some(of) = &self.validation {
            numbers.extend(of.measurements([loss.to_owned(), bits.to_owned()]));
        }
        for ((source, _), of) in data.sources.iter().zip(&self.sources) {
            numbers.extend(of.measurements([of_source(loss, source), of_source(bits, source)]));
        }
        if let Some((scores, _)) = &self.hellaswag {
            let count = scores.tasks as u64;
            let named = scores.named().map(|(name, value)| (name.to_owned(), value));
            numbers.extend(named.map(|(name, value)| Measurement { name, value, count, of: "tasks" }));
        }
        for (set, surprises) in data.benchmarks.iter().zip(&self.benchmarks) {
            let named = set.benchmark().scores().into_iter().zip(set.scores(surprises));
            let count = set.questions().len() as u64;
            let named = named.map(|(name, value)| (name.to_owned(), value));
            numbers.extend(named.map(|(name, value)| Measurement { name, value, count, of: "tasks" }));
        }
        numbers
    }

    /// A JSON line for each task with choices, and each word of LAMBADA: under each score's name the numbers
    /// of the choices, of which the lowest wins, and the winner. Empty where neither was measured.
    pub fn decisions(&self, data: &EvalData) -> String {
        let mut lines = Vec::new();
        if let (Some(set), Some((_, outcomes))) = (&data.hellaswag, &self.hellaswag) {
            for (i, (task, outcome)) in set.tasks().iter().zip(outcomes).enumerate() {
                let mut line = json!({"task": i, "label": task.label});
                let names = multiple_choice::names(set.has_harness());
                for (name, decision) in names.into_iter().zip(outcome.decisions(task)) {
                    line[name] = json!({"values": decision.values, "picked": decision.picked});
                }
                lines.push(line);
            }
        }
        let details = data.benchmarks.iter().zip(&self.benchmarks);
        lines.extend(details.flat_map(|(set, surprises)| set.details(surprises)));
        lines.iter().map(|line| format!("{line}\n")).collect()
    }
}

/// A number that was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurement {
    pub name: String,
    pub value: f64,
    /// How many tokens, bytes or tasks it was measured on, and which of these.
    pub count: u64,
    pub of: &'static str,
}

/// Measures models one after the other, each on the device that its experiment names. `each` is given what
/// was measured before the next model is loaded. A device stays open while models of one shape follow each
/// other.
///
/// # Errors
/// A device cannot be opened, or has no room; those of `each`. What fails with one model alone is in
/// [`MeasuredSubject`].
pub fn evaluate(
    subjects: impl Iterator<Item = Subject>,
    report: Report,
    mut each: impl FnMut(MeasuredSubject) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut subjects = subjects.peekable();
    while let Some(Subject { model, .. }) = subjects.peek() {
        let Ok(model) = model else {
            if let Some(Subject { name, model: Err(error), data }) = subjects.next() {
                each(MeasuredSubject { name, manifest: None, data, results: Err(error) })?;
            }
            continue;
        };
        let experiment = model.experiment.clone();
        match Device::open(&experiment)? {
            Device::Cpu(cpu) => evaluate_on(cpu, &experiment, &mut subjects, report, &mut each)?,
            Device::Cuda(cuda) => evaluate_on(*cuda, &experiment, &mut subjects, report, &mut each)?,
            Device::Mirror(mirror) => evaluate_on(mirror, &experiment, &mut subjects, report, &mut each)?,
        }
    }
    Ok(())
}

/// Measures the subjects of this experiment's shape, up to the first that needs another device or other
/// memory on it.
fn evaluate_on<O: Ops>(
    mut ops: O,
    experiment: &Experiment,
    subjects: &mut Peekable<impl Iterator<Item = Subject>>,
    report: Report,
    each: &mut impl FnMut(MeasuredSubject) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let rows = Rows { batch: experiment.batch.micro, seq: experiment.batch.seq_len };
    let mut model = Gpt2::zeroed(&mut ops, &experiment.model, rows, experiment.memory.recompute, false)?;
    let mut losses = ops.alloc(Role::F32, rows.count())?;
    let fits =
        |next: &Subject| next.model.as_ref().is_ok_and(|next| same_shape(&next.experiment, experiment));
    while let Some(Subject { name, model: Ok(loaded), data }) = subjects.next_if(fits) {
        let LoadedModel { experiment, state, manifest, .. } = loaded;
        let restored = parameters::restore(&mut ops, &model.specs, &mut model.params, &state);
        drop(state);
        let results = restored
            .map_err(anyhow::Error::from)
            .and_then(|()| measure(&mut ops, &mut model, &mut losses, &experiment, &data, report));
        each(MeasuredSubject { name, manifest, data, results })?;
    }
    Ok(())
}

/// Whether two models can be measured one after the other in the same memory of the same device.
fn same_shape(a: &Experiment, b: &Experiment) -> bool {
    let sizes = |of: &Experiment| {
        let (model, batch) = (&of.model, &of.batch);
        let widths = [model.layers, model.heads, model.channels, model.context, model.vocab];
        (widths, model.parts(), batch.micro, batch.seq_len, of.memory.recompute)
    };
    sizes(a) == sizes(b) && (&a.device, &a.precision, &a.kernels) == (&b.device, &b.precision, &b.kernels)
}

fn measure<O: Ops>(
    ops: &mut O,
    model: &mut Gpt2<O>,
    losses: &mut O::Buf,
    experiment: &Experiment,
    data: &EvalData,
    report: Report,
) -> anyhow::Result<Evaluated> {
    let (device, name) = (ops.device_name(), experiment.name.clone());
    let mut results = Evaluated { device, experiment: name, ..Evaluated::default() };
    let mut held_out = |ops: &mut O, set: &ValidationSet, from: &str| {
        let mut progress = steps_of(report.progress(LongWork::Validating, set.sequences() as u64));
        let loss = eval::validation_loss(ops, model, losses, &mut Solo, set, &mut progress)?;
        ensure!(
            loss.is_finite(),
            "the validation loss is not finite ({loss}): the model's numbers overflow\n  hint: its training \
             diverged, or its weights are not what they were"
        );
        let bytes = set.text_bytes(&Tokenizer::new(experiment.data.tokenizer));
        Ok(HeldOutLoss { loss, tokens: set.tokens(), bytes, from: from.to_owned() })
    };
    if let Some(HeldOut { set, from, .. }) = &data.validation {
        results.validation = Some(held_out(ops, set, from)?);
    }
    for (source, set) in &data.sources {
        results.sources.push(held_out(ops, set, source)?);
    }
    if let Some(set) = &data.hellaswag {
        let mut progress = steps_of(report.progress(LongWork::HellaSwag, set.rows() as u64));
        let mut progress = |done, _| progress(done);
        let outcomes = multiple_choice::outcomes(ops, model, losses, &mut Solo, set, &mut progress)?;
        results.hellaswag = Some((Scores::of(set, &outcomes), outcomes));
    }
    for set in &data.benchmarks {
        let mut progress = steps_of(report.progress(LongWork::Scoring(set.benchmark()), set.rows() as u64));
        results.benchmarks.push(set.surprises(ops, model, losses, &mut |done, _| progress(done))?);
    }
    Ok(results)
}

/// From how much is done to how much that is more than before.
fn steps_of(more: Box<dyn Fn(u64) + Sync>) -> impl FnMut(usize) {
    let mut before = 0;
    move |done| {
        more((done - before) as u64);
        before = done;
    }
}
