//! How good a saved model is: the data that it is measured on, and what was measured.
//!
//! Reads a checkpoint's parameters and nothing else of its training state, takes no lock and writes nothing
//! into the run, so that a run may be evaluated while it is training.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use serde_json::json;

use super::device::Device;
use super::error::UsageError;
use super::messages::{LongWork, Message, Report};
use super::model::LoadedModel;
use crate::data::{Dataset, Sources, Tokenizer, ValidationSet};
use crate::eval::multiple_choice::{self, TaskOutcome, names};
use crate::eval::{self, Scores, TaskSet, parameters};
use crate::experiment::Experiment;
use crate::model::Gpt2;
use crate::ops::{Ops, Role, Rows};

/// Something that a model is measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvalTask {
    /// Mean loss on held-out tokens.
    Validation,
    /// Which of four endings is the likeliest.
    HellaSwag,
}

/// The data to measure on.
pub struct EvalData {
    pub validation: Option<HeldOut>,
    pub hellaswag: Option<TaskSet>,
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
    pub validation: Option<HeldOutLoss>,
    pub hellaswag: Option<(Scores, Vec<TaskOutcome>)>,
}

/// The mean loss on held-out tokens in nats a token, and where these come from.
pub struct HeldOutLoss {
    pub loss: f64,
    pub tokens: u64,
    /// Bytes of the text that the tokens stand for.
    pub bytes: u64,
    pub from: String,
}

impl HeldOutLoss {
    /// The loss of all tokens, ends of texts included, in bits for each byte of the text: comparable among
    /// tokenizers. None where there is no text.
    pub fn bits_per_byte(&self) -> Option<f64> {
        let bits = self.loss * self.tokens as f64 / std::f64::consts::LN_2;
        (self.bytes > 0).then(|| bits / self.bytes as f64)
    }
}

impl EvalData {
    /// Opens the data of `task`; without one the validation set, and HellaSwag where the experiment names its
    /// file. `file` is the task's data in place of the experiment's.
    ///
    /// # Errors
    /// There is no such data, or it is damaged.
    pub fn open(
        experiment: &Experiment,
        task: Option<EvalTask>,
        file: Option<&String>,
        report: Report,
    ) -> anyhow::Result<EvalData> {
        let given = |of| file.filter(|_| task == Some(of));
        let tasks = given(EvalTask::HellaSwag).or(experiment.eval.hellaswag.as_ref());
        let hellaswag = match (task, tasks) {
            (Some(EvalTask::Validation), _) | (None, None) => None,
            (Some(EvalTask::HellaSwag), None) => {
                return Err(UsageError(
                    "the experiment names no HellaSwag file\n  hint: give one with `--data`, or set \
                     `eval.hellaswag`"
                        .into(),
                )
                .into());
            }
            (_, Some(file)) => {
                let tokenizer = Tokenizer::new(experiment.data.tokenizer);
                let (vocab, seq_len) = (experiment.model.vocab, experiment.batch.seq_len);
                Some(TaskSet::open(Path::new(file), &tokenizer, vocab, seq_len)?)
            }
        };
        let validation = match task {
            Some(EvalTask::HellaSwag) => None,
            _ => Some(HeldOut::open(given(EvalTask::Validation), experiment, report)?),
        };
        Ok(EvalData { validation, hellaswag })
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
            (None, Some(corpus)) => {
                let val = Sources::open(&experiment.data, vocab)?
                    .val
                    .context("the corpus has no validation text")?;
                (val, corpus.clone())
            }
            (None, None) => shards(&experiment.data.val)?,
        };
        let set = ValidationSet::new(&data, experiment.eval.val_tokens, experiment.batch.seq_len)?;
        if let Some(shortfall) = set.shortfall(experiment.eval.val_tokens) {
            report.tell(&Message::Remark(&shortfall));
        }
        Ok(HeldOut { set, corpus, from })
    }
}

impl Evaluated {
    /// A JSON line for each HellaSwag task of `set`: under each score's name the four numbers, of which the
    /// lowest wins, and the winner. None where HellaSwag was not measured.
    pub fn decisions(&self, set: &TaskSet) -> Option<String> {
        let (_, outcomes) = self.hellaswag.as_ref()?;
        let line = |(i, (task, outcome)): (usize, (_, &TaskOutcome))| {
            let task: &multiple_choice::Task = task;
            let mut line = json!({"task": i, "label": task.label});
            for (name, decision) in names(set.has_harness()).into_iter().zip(outcome.decisions(task)) {
                line[name] = json!({"values": decision.values, "picked": decision.picked});
            }
            format!("{line}\n")
        };
        Some(set.tasks().iter().zip(outcomes).enumerate().map(line).collect())
    }
}

/// Measures a model on the device that its experiment names.
///
/// # Errors
/// The device cannot be opened or fails, or the loss is not finite.
pub fn evaluate(model: LoadedModel, data: &EvalData, report: Report) -> anyhow::Result<Evaluated> {
    match Device::open(&model.experiment)? {
        Device::Cpu(cpu) => evaluate_on(cpu, model, data, report),
        Device::Cuda(cuda) => evaluate_on(*cuda, model, data, report),
        Device::Mirror(mirror) => evaluate_on(mirror, model, data, report),
    }
}

fn evaluate_on<O: Ops>(
    mut ops: O,
    model: LoadedModel,
    data: &EvalData,
    report: Report,
) -> anyhow::Result<Evaluated> {
    let LoadedModel { experiment, state, .. } = model;
    let rows = Rows { batch: experiment.batch.micro, seq: experiment.batch.seq_len };
    let mut model = Gpt2::zeroed(&mut ops, &experiment.model, rows, experiment.memory.recompute, false)?;
    parameters::restore(&mut ops, &model.specs, &mut model.params, &state)?;
    drop(state);
    let mut losses = ops.alloc(Role::F32, rows.count())?;
    let mut results = Evaluated { device: ops.device_name(), ..Evaluated::default() };
    if let Some(HeldOut { set, from, .. }) = &data.validation {
        let progress = steps_of(report.progress(LongWork::Validating, set.sequences() as u64));
        let loss = eval::validation_loss(&mut ops, &mut model, &mut losses, set, progress)?;
        ensure!(
            loss.is_finite(),
            "the validation loss is not finite ({loss}): the model's numbers overflow\n  hint: its training \
             diverged, or its weights are not what they were"
        );
        let bytes = set.text_bytes(&Tokenizer::new(experiment.data.tokenizer));
        results.validation = Some(HeldOutLoss { loss, tokens: set.tokens(), bytes, from: from.clone() });
    }
    if let Some(set) = &data.hellaswag {
        let mut progress = steps_of(report.progress(LongWork::HellaSwag, set.rows() as u64));
        let outcomes =
            multiple_choice::outcomes(&mut ops, &mut model, &mut losses, set, |done, _| progress(done))?;
        results.hellaswag = Some((Scores::of(set, &outcomes), outcomes));
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
