//! Multiple choice by likelihood: which of four completions does the model find the least surprising?
//!
//! A row is the context and one completion; only the losses of the completion's tokens count. Rows are
//! packed into micro-batches that all have as many tokens as the model has room for, in a few
//! lengths, so that the matrix multiplications see the one shape that training uses and short rows do
//! not pay for long ones. Attention is causal and every other operation works row by row, so neither
//! the padding behind a row nor its neighbours reach its losses.
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

use super::{EvalError, eval_bin};
use crate::data::Tokenizer;
use crate::model::Gpt2;
use crate::model::gpt2::MicroBatch;
use crate::ops::{Ops, Rows};
use crate::parallel::exchange::all_gather;
use crate::parallel::{Link, Solo};

/// Completions of a task.
pub const COMPLETIONS: usize = 4;

/// Sequences times heads in one batch: what a grid of every GPU holds.
const MOST_HEADS: usize = 65_535;

/// The shortest rows that batches are made for; longer ones double.
const SHORTEST: usize = 64;

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
        let io = |reason| EvalError::Io { path: path.into(), reason };
        TaskSet::parse(path, &std::fs::read(path).map_err(io)?, tokenizer, vocab, seq_len)
    }

    /// [`TaskSet::open`] of a file that is in memory.
    pub fn parse(
        path: &Path,
        bytes: &[u8],
        tokenizer: &Tokenizer,
        vocab: usize,
        seq_len: usize,
    ) -> Result<TaskSet, EvalError> {
        let (tasks, unit) = if eval_bin::is_eval_bin(bytes) {
            (eval_bin::parse(path, bytes)?, Unit::Example)
        } else {
            let text = std::str::from_utf8(bytes).map_err(|error| {
                let byte = error.valid_up_to();
                EvalError::Damaged {
                    path: path.into(),
                    byte,
                    expected: format!("UTF-8 text, or magic {} at byte 0", eval_bin::MAGIC),
                    got: format!("0x{:02x}", bytes[byte]),
                }
            })?;
            (super::hellaswag::parse(path, text, tokenizer)?, Unit::Line)
        };
        if tasks.is_empty() {
            let found = if bytes.is_empty() { "the file is empty" } else { "its header counts none" };
            return Err(EvalError::Empty { path: path.into(), found });
        }
        let set = TaskSet { path: path.into(), tasks, unit, seq_len };
        set.check(vocab)?;
        Ok(set)
    }

    fn check(&self, vocab: usize) -> Result<(), EvalError> {
        for (i, task) in self.tasks.iter().enumerate() {
            for prompt in task.prompts() {
                let tokens = prompt.completions.iter().chain([&prompt.context]).flatten();
                if let Some(&token) = tokens.into_iter().find(|token| usize::from(**token) >= vocab) {
                    return Err(EvalError::OutOfVocabulary {
                        path: self.path.clone(),
                        place: self.place(i),
                        token,
                        vocab,
                    });
                }
                let longest = prompt.completions.iter().map(Vec::len).max().unwrap_or(0);
                // One token of context precedes the first that is predicted.
                let (path, place) = (self.path.clone(), self.place(i));
                if longest > self.seq_len {
                    return Err(EvalError::TooLong { path, place, tokens: longest, limit: self.seq_len });
                }
                if prompt.context.is_empty() {
                    return Err(EvalError::NoContext { path, place });
                }
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

    /// Rows to be scored: the completions of every wording.
    pub fn rows(&self) -> usize {
        self.tasks.iter().map(|task| task.prompts().count() * COMPLETIONS).sum()
    }

    /// Tokens that the model reads to score all rows.
    pub fn tokens(&self) -> u64 {
        self.make_rows().iter().map(|row| row.inputs() as u64).sum()
    }

    /// Every completion of every wording, in the file's order.
    fn make_rows(&self) -> Vec<ScoredRow> {
        let mut rows = Vec::with_capacity(self.rows());
        for (task, t) in self.tasks.iter().enumerate() {
            for (wording, prompt) in t.prompts().enumerate() {
                for (completion, tokens) in prompt.completions.iter().enumerate() {
                    let all = prompt.context.len() + tokens.len();
                    // T inputs and the target of the last.
                    let cut = all.saturating_sub(self.seq_len + 1);
                    let row = prompt.context[cut..].iter().chain(tokens).copied().collect();
                    rows.push(ScoredRow { task, wording, completion, tokens: row, scored: tokens.len() });
                }
            }
        }
        rows
    }
}

/// A context with one of its completions.
struct ScoredRow {
    task: usize,
    wording: usize,
    completion: usize,
    tokens: Vec<u16>,
    /// Tokens at the end that are the completion.
    scored: usize,
}

impl ScoredRow {
    /// Tokens that the model reads: all but the last.
    fn inputs(&self) -> usize {
        self.tokens.len() - 1
    }
}

/// The surprise at one completion.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Surprise {
    /// Sum of its tokens' losses in nats, in f64 from first to last: minus its log-likelihood.
    pub nats: f64,
    pub tokens: usize,
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

/// Four numbers and the lowest of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision {
    pub values: [f64; COMPLETIONS],
    pub picked: usize,
}

impl Decision {
    fn of(values: [f64; COMPLETIONS]) -> Decision {
        let picked = (1..COMPLETIONS).fold(0, |best, i| if values[i] < values[best] { i } else { best });
        Decision { values, picked }
    }
}

/// The number of scores.
pub const SCORES: usize = 4;

/// Shares of tasks decided right.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scores {
    /// llm.c's score: by the mean loss a token.
    pub llmc: f64,
    /// By the sum of log-likelihoods.
    pub acc: f64,
    /// By the sum of log-likelihoods a character.
    pub acc_norm: f64,
    /// By the sum of log-likelihoods a byte.
    pub acc_bytes: f64,
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
        let mut right = [0usize; SCORES];
        for (task, outcome) in set.tasks.iter().zip(outcomes) {
            for (right, decision) in right.iter_mut().zip(outcome.decisions(task)) {
                *right += usize::from(decision.picked == task.label);
            }
        }
        let [llmc, acc, acc_norm, acc_bytes] = right.map(|right| right as f64 / set.tasks.len() as f64);
        Scores { llmc, acc, acc_norm, acc_bytes, harness: set.has_harness(), tasks: set.tasks.len() }
    }

    /// Each score under its own name.
    pub fn named(&self) -> [(&'static str, f64); SCORES] {
        let scores = [self.llmc, self.acc, self.acc_norm, self.acc_bytes];
        let names = names(self.harness);
        std::array::from_fn(|i| (names[i], scores[i]))
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
    progress: impl FnMut(usize, usize),
) -> Result<Scores, EvalError> {
    Ok(Scores::of(set, &outcomes_of_ranks(ops, model, losses, link, set, progress)?))
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
    set: &TaskSet,
    progress: impl FnMut(usize, usize),
) -> Result<Vec<TaskOutcome>, EvalError> {
    outcomes_of_ranks(ops, model, losses, &mut Solo, set, progress)
}

/// [`outcomes`] by several ranks, each of which does every Nth batch.
fn outcomes_of_ranks<O: Ops>(
    ops: &mut O,
    model: &mut Gpt2<O>,
    losses: &mut O::Buf,
    link: &mut dyn Link,
    set: &TaskSet,
    mut progress: impl FnMut(usize, usize),
) -> Result<Vec<TaskOutcome>, EvalError> {
    let (rank, ranks) = (link.rank(), link.size());
    let capacity = model.capacity();
    if capacity.seq < set.seq_len {
        return Err(EvalError::Capacity { capacity: capacity.seq, limit: set.seq_len });
    }
    let rows = set.make_rows();
    let mut host = vec![0.0f32; capacity.count()];
    let (mut done, mut shorter) = (0, 0);
    let mut batches: Vec<Vec<&ScoredRow>> = Vec::new();
    let mut mine: Vec<u8> = Vec::new();
    let mut failure: Option<NonFiniteLoss> = None;
    for shape in shapes(capacity, model.config.heads) {
        let fitting: Vec<&ScoredRow> =
            rows.iter().filter(|row| row.inputs() > shorter && row.inputs() <= shape.seq).collect();
        shorter = shape.seq;
        for batch in fitting.chunks(shape.batch) {
            batches.push(batch.to_vec());
            done += batch.len();
            if (batches.len() - 1) % ranks != rank {
                continue;
            }
            if failure.is_some() {
                // The other ranks wait for as many numbers.
                mine.extend(batch.iter().flat_map(|_| f64::NAN.to_le_bytes()));
                continue;
            }
            let (inputs, targets) = pack(batch, shape);
            model.forward(
                ops,
                &MicroBatch { inputs: &inputs, targets: &targets, rows: shape, losses_at: 0 },
                losses,
            )?;
            ops.download(losses, &mut host)?;
            for (at, (row, losses)) in batch.iter().zip(host.chunks_exact(shape.seq)).enumerate() {
                let scored = &losses[row.inputs() - row.scored..row.inputs()];
                mine.extend_from_slice(&nats(scored).to_le_bytes());
                if let Some(token) = scored.iter().position(|loss| !loss.is_finite()) {
                    let new = NonFiniteLoss { batch: batches.len() - 1, at, token, loss: scored[token] };
                    failure.get_or_insert(new);
                }
            }
            progress(done, rows.len());
        }
    }
    let all = all_gather(link, "the gathering of scores", mine)?;
    // Sums of finite losses are finite, so that every rank sees whether any has failed.
    if all
        .iter()
        .flat_map(|bytes| bytes.as_chunks::<8>().0)
        .any(|nats| !f64::from_le_bytes(*nats).is_finite())
    {
        let failures = all_gather(link, "the gathering of failures", NonFiniteLoss::to_bytes(failure))?;
        let first = failures
            .iter()
            .filter_map(|bytes| NonFiniteLoss::from_bytes(bytes))
            .min_by_key(NonFiniteLoss::place);
        if let Some(failure) = first {
            return Err(failure.error(set, batches[failure.batch][failure.at]));
        }
    }
    let mut rest: Vec<_> = all
        .iter()
        .map(|bytes| bytes.as_chunks::<8>().0.iter().map(|nats| f64::from_le_bytes(*nats)))
        .collect();
    let empty = [Surprise::default(); COMPLETIONS];
    let mut outcomes =
        vec![TaskOutcome { plain: empty, harness: set.has_harness().then_some(empty) }; set.tasks.len()];
    for (number, batch) in batches.iter().enumerate() {
        for (row, nats) in batch.iter().zip(&mut rest[number % ranks]) {
            let outcome = &mut outcomes[row.task];
            let of_wording =
                if row.wording == 0 { Some(&mut outcome.plain) } else { outcome.harness.as_mut() };
            of_wording.expect("a set has one wording or two")[row.completion] =
                Surprise { nats, tokens: row.scored };
        }
    }
    Ok(outcomes)
}

/// Batches of exactly the capacity's tokens, by rising length of their rows; the last is the capacity's own.
fn shapes(capacity: Rows, heads: usize) -> Vec<Rows> {
    let lengths = std::iter::successors(Some(SHORTEST), |length| Some(2 * length))
        .take_while(|length| *length < capacity.seq);
    let whole = lengths.filter(|length| capacity.count().is_multiple_of(*length));
    let batches = whole.map(|seq| Rows { batch: capacity.count() / seq, seq });
    batches.filter(|rows| rows.batch * heads <= MOST_HEADS).chain([capacity]).collect()
}

/// Rows side by side, filled up with zeros behind each of them and below.
fn pack(rows: &[&ScoredRow], shape: Rows) -> (Vec<u16>, Vec<u16>) {
    let (mut inputs, mut targets) = (vec![0; shape.count()], vec![0; shape.count()]);
    let lanes = inputs.chunks_exact_mut(shape.seq).zip(targets.chunks_exact_mut(shape.seq));
    for (row, (input, target)) in rows.iter().zip(lanes) {
        input[..row.inputs()].copy_from_slice(&row.tokens[..row.inputs()]);
        target[..row.inputs()].copy_from_slice(&row.tokens[1..]);
    }
    (inputs, targets)
}

/// The sum of the losses at a row's completion.
fn nats(scored: &[f32]) -> f64 {
    scored.iter().map(|&loss| f64::from(loss)).sum()
}

/// The first loss of a rank that is not finite.
#[derive(Clone, Copy, Debug, PartialEq)]
struct NonFiniteLoss {
    /// The batch, counted over all ranks, and the row in it.
    batch: usize,
    at: usize,
    /// Token of the completion.
    token: usize,
    loss: f32,
}

impl NonFiniteLoss {
    /// Orders failures as one rank alone would come to them.
    fn place(&self) -> (usize, usize) {
        (self.batch, self.at)
    }

    /// What a rank sends: nothing where it has not failed.
    fn to_bytes(failure: Option<NonFiniteLoss>) -> Vec<u8> {
        let numbers = |NonFiniteLoss { batch, at, token, loss }| {
            [batch as u64, at as u64, token as u64, u64::from(f32::to_bits(loss))]
        };
        failure.map(numbers).into_iter().flatten().flat_map(u64::to_le_bytes).collect()
    }

    fn from_bytes(bytes: &[u8]) -> Option<NonFiniteLoss> {
        let numbers: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|n| u64::from_le_bytes(*n)).collect();
        let &[batch, at, token, loss] = numbers.as_slice() else { return None };
        let [batch, at, token] = [batch, at, token].map(|number| number as usize);
        Some(NonFiniteLoss { batch, at, token, loss: f32::from_bits(loss as u32) })
    }

    fn error(&self, set: &TaskSet, row: &ScoredRow) -> EvalError {
        EvalError::NotFinite {
            path: set.path.clone(),
            place: set.place(row.task),
            completion: row.completion,
            token: self.token,
            loss: self.loss,
        }
    }
}

#[cfg(test)]
#[path = "multiple_choice_tests.rs"]
mod tests;
