//! HellaSwag, multiple choice by likelihood: which of four completions does the model find the least
//! surprising?
//!
//! Four scores are computed from the same losses, each with its own name, because they choose differently:
//!
//! * `hellaswag`: llm.c's. The plain wording; lowest mean loss a token.
//! * `hellaswag_acc`: lm-eval's `acc`. Its wording; highest sum of log-likelihoods.
//! * `hellaswag_acc_norm`: lm-eval's `acc_norm`, the sum divided by the completion's characters (Unicode code
//!   points, Python's `len` of a `str`), without the space before it.
//! * `hellaswag_acc_bytes`: lm-eval's `acc_bytes`, the sum divided by the completion's bytes of UTF-8.
//!
//! llm.c's file holds only the plain wording. Sums of its losses are not lm-eval's scores and are called
//! `hellaswag_plain_acc`, `hellaswag_plain_acc_norm` and `hellaswag_plain_acc_bytes`.

use std::path::{Path, PathBuf};

use super::harness::equal_continuations;
use super::rows::{self, ScoredRow, Scorer, Surprise};
use super::{EvalError, eval_bin};
use crate::data::{DataError, Tokenizer, prepare};
use crate::model::Gpt2;
use crate::ops::Ops;
use crate::parallel::Link;

/// Completions of a task.
pub const COMPLETIONS: usize = 4;

/// Tokens for the model: a context and the completions to choose from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    pub context: Vec<u16>,
    pub completions: [Vec<u16>; COMPLETIONS],
}

/// One task, in one wording or two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Context and completions as they stand in the file.
    pub plain: Prompt,
    /// As lm-eval words them; none in llm.c's file.
    pub harness: Option<Prompt>,
    /// The right completion.
    pub label: usize,
    /// Length of each completion without the space before it.
    pub lengths: [Length; COMPLETIONS],
}

/// How long a text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Length {
    /// Unicode code points.
    pub chars: usize,
    /// Bytes of UTF-8.
    pub bytes: usize,
}

impl Length {
    /// The length of a text in both units.
    pub fn of(text: &str) -> Length {
        Length { chars: text.chars().count(), bytes: text.len() }
    }
}

impl Task {
    fn prompts(&self) -> impl Iterator<Item = &Prompt> {
        std::iter::once(&self.plain).chain(&self.harness)
    }
}

/// A file of tasks, checked against the model it is for.
#[derive(Clone, Debug)]
pub struct TaskSet {
    path: PathBuf,
    tasks: Vec<Task>,
    /// How messages number tasks: lines from 1, examples from 0.
    unit: Unit,
    /// T: tokens of the longest sequence the model was trained on.
    seq_len: usize,
}

#[derive(Clone, Copy, Debug)]
enum Unit {
    Line,
    Example,
}

impl TaskSet {
    /// Reads HellaSwag's jsonl or llm.c's `.bin`, recognised by how the file starts.
    ///
    /// A row longer than `seq_len`, the sequences that the model was trained on, loses the start of its
    /// context: positions that were never trained would make noise of the score.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, has no tasks or is faulty; a token outside `vocab`; a completion that
    /// does not fit.
    pub fn open(
        path: &Path,
        tokenizer: &Tokenizer,
        vocab: usize,
        seq_len: usize,
    ) -> Result<TaskSet, EvalError> {
        let bytes = prepare::read_whole(path).map_err(|error| match error {
            DataError::Io { reason, .. } => EvalError::Io { path: path.into(), reason },
            other => other.into(),
        })?;
        TaskSet::parse(path, &bytes, tokenizer, vocab, seq_len)
    }

    /// [`TaskSet::open`] of a file that is in memory.
    pub fn parse(
        path: &Path,
        bytes: &[u8],
        tokenizer: &Tokenizer,
        vocab: usize,
        seq_len: usize,
    ) -> Result<TaskSet, EvalError> {
        let (tasks, unit, vocab) = if eval_bin::is_eval_bin(bytes) {
            // What lies behind GPT-2's tokens has no length.
            let gpt2 = Tokenizer::new(crate::experiment::Tokenizer::Gpt2).vocab();
            (eval_bin::parse(path, bytes)?, Unit::Example, vocab.min(gpt2))
        } else {
            let text = prepare::json_lines(path, bytes)?;
            (super::hellaswag::parse(path, &text, tokenizer)?, Unit::Line, vocab)
        };
        if tasks.is_empty() {
            let found = match unit {
                Unit::Line => "the file is empty",
                Unit::Example => "its header counts none",
            };
            return Err(EvalError::Empty { path: path.into(), found });
        }
        let set = TaskSet { path: path.into(), tasks, unit, seq_len };
        set.check(vocab)?;
        Ok(set)
    }

    fn check(&self, vocab: usize) -> Result<(), EvalError> {
        for (i, task) in self.tasks.iter().enumerate() {
            for Prompt { context, completions } in task.prompts() {
                rows::check(&self.path, || self.place(i), context, completions, vocab, self.seq_len)?;
            }
        }
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn tasks(&self) -> &[Task] {
        &self.tasks
    }

    /// A remark on tasks with equal completions.
    pub fn equal_completions(&self) -> Option<String> {
        let prompts = self.tasks.iter().enumerate().flat_map(|(i, task)| {
            task.prompts().map(move |prompt| (self.place(i), prompt.completions.as_slice()))
        });
        equal_continuations(&self.path, prompts)
    }

    /// The place of task `i` in the file.
    pub fn place(&self, i: usize) -> String {
        match self.unit {
            Unit::Line => format!("line {}", i + 1),
            Unit::Example => format!("example {i}"),
        }
    }

    /// Whether the tasks have lm-eval's wording.
    pub fn has_harness(&self) -> bool {
        matches!(self.unit, Unit::Line)
    }

    /// Rows to be scored for a task: the completions of every wording.
    fn rows_a_task(&self) -> usize {
        COMPLETIONS * (1 + usize::from(self.has_harness()))
    }

    /// Rows to be scored.
    pub fn rows(&self) -> usize {
        self.tasks.len() * self.rows_a_task()
    }

    /// Tokens that the model reads to score all rows.
    pub fn tokens(&self) -> u64 {
        self.make_rows().iter().map(|row| row.inputs() as u64).sum()
    }

    /// Every completion of every wording, in the file's order.
    fn make_rows(&self) -> Vec<ScoredRow> {
        let prompts = self.tasks.iter().flat_map(Task::prompts);
        let row = |prompt: &Prompt, completion: &Vec<u16>| {
            ScoredRow::new(&prompt.context, completion, self.seq_len)
        };
        prompts.flat_map(|prompt| prompt.completions.iter().map(move |tokens| row(prompt, tokens))).collect()
    }
}

/// The surprises at a task's completions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TaskOutcome {
    pub plain: [Surprise; COMPLETIONS],
    pub harness: Option<[Surprise; COMPLETIONS]>,
}

impl TaskOutcome {
    /// What each score chooses, and from which numbers: the lowest, and the first of equals.
    pub fn decisions(&self, task: &Task) -> [Decision; SCORES] {
        let summed = self.harness.unwrap_or(self.plain);
        let per = |length: [usize; COMPLETIONS]| {
            Decision::of([0, 1, 2, 3].map(|i| summed[i].nats / length[i] as f64))
        };
        [
            Decision::of(self.plain.map(|s| s.nats / s.tokens as f64)),
            Decision::of(summed.map(|s| s.nats)),
            per(task.lengths.map(|length| length.chars)),
            per(task.lengths.map(|length| length.bytes)),
        ]
    }
}

/// A number for each completion, and the lowest of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    pub values: Vec<f64>,
    pub picked: usize,
}

impl Decision {
    /// The first of equals is picked.
    pub fn of(values: impl Into<Vec<f64>>) -> Decision {
        let values = values.into();
        let picked = (1..values.len()).fold(0, |best, i| if values[i] < values[best] { i } else { best });
        Decision { values, picked }
    }
}

/// The number of scores.
pub const SCORES: usize = 4;

/// How many tasks were decided right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scores {
    /// By the mean loss a token, llm.c's rule; by the sum of log-likelihoods, `acc`; by that sum a character,
    /// `acc_norm`, and a byte, `acc_bytes`.
    pub correct: [usize; SCORES],
    /// Whether all but the first read lm-eval's wording.
    pub harness: bool,
    pub tasks: usize,
}

/// Names of the scores for a set with lm-eval's wording, and for one without.
const NAMES: [[&str; SCORES]; 2] = [
    ["hellaswag", "hellaswag_acc", "hellaswag_acc_norm", "hellaswag_acc_bytes"],
    ["hellaswag", "hellaswag_plain_acc", "hellaswag_plain_acc_norm", "hellaswag_plain_acc_bytes"],
];

/// Names of the scores, in the order of [`TaskOutcome::decisions`].
pub fn names(harness: bool) -> [&'static str; SCORES] {
    NAMES[usize::from(!harness)]
}

impl Scores {
    /// Counts the right decisions.
    pub fn of(set: &TaskSet, outcomes: &[TaskOutcome]) -> Scores {
        let mut correct = [0; SCORES];
        for (task, outcome) in set.tasks.iter().zip(outcomes) {
            for (correct, decision) in correct.iter_mut().zip(outcome.decisions(task)) {
                *correct += usize::from(decision.picked == task.label);
            }
        }
        Scores { correct, harness: set.has_harness(), tasks: set.tasks.len() }
    }

    /// Each share of the tasks under its own name.
    pub fn named(&self) -> [(&'static str, f64); SCORES] {
        let names = names(self.harness);
        std::array::from_fn(|i| (names[i], self.correct[i] as f64 / self.tasks as f64))
    }
}

/// The scores of a model, by all ranks together. `losses` holds at least the model's capacity; `progress` is
/// called with how many of how many rows are done.
pub fn hellaswag<O: Ops>(
    ops: &mut O,
    model: &mut Gpt2<O>,
    losses: &mut O::Buf,
    link: &mut dyn Link,
    set: &TaskSet,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Scores, EvalError> {
    Ok(Scores::of(set, &outcomes(ops, model, losses, link, set, progress)?))
}

/// The surprises at every completion of every task, in the file's order.
///
/// # Errors
///
/// A loss that is not finite, whatever the device finds, and a model with less room than the tasks were
/// read for.
pub fn outcomes<O: Ops>(
    ops: &mut O,
    model: &mut Gpt2<O>,
    losses: &mut O::Buf,
    link: &mut dyn Link,
    set: &TaskSet,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<TaskOutcome>, EvalError> {
    let not_finite = |loss: rows::NotFiniteLoss| EvalError::NotFinite {
        path: set.path.clone(),
        place: set.place(loss.row / set.rows_a_task()),
        completion: loss.row % COMPLETIONS,
        token: loss.token,
        loss: loss.loss,
    };
    let scorer = Scorer { ops, model, losses, likeliest: None };
    let surprises = rows::surprises(scorer, link, &set.make_rows(), &not_finite, progress)?;
    let mut rest = surprises.into_iter();
    let mut next = || std::array::from_fn(|_| rest.next().expect("a surprise a row"));
    let outcome = |task: &Task| TaskOutcome { plain: next(), harness: task.harness.as_ref().map(|_| next()) };
    Ok(set.tasks.iter().map(outcome).collect())
}

#[cfg(test)]
#[path = "multiple_choice_tests.rs"]
pub(super) mod tests;
