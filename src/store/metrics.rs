//! What was measured at every step: `metrics.jsonl`, one row a step, and `metrics.parquet`.
//!
//! A number that the training computes stands in two keys: `loss` as a decimal for people and
//! scripts, `loss_bits` as the 16 hexadecimal digits of its IEEE 754 double for proofs. The decimal
//! is the shortest that reads back to the same bits. JSON knows neither NaN nor infinity: there the
//! decimal is `null` and the bits tell which it was, so a column stays numeric for every reader. A
//! value that was not measured is `null` in both. Timings have no bits: nobody proves them.
//!
//! Step numbers are the reference's: row `s` is the update that turns the weights after `s` updates
//! into those after `s + 1`; validation and HellaSwag in row `s` were measured before that update.
//! The evaluation after the last update is a row of its own, with [`Action::Evaluate`] and no
//! training values.
//!
//! The jsonl is complete at every moment; the parquet is a copy for data-frame readers, made at
//! checkpoints and at the end. This module does not decide when.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::append::{AppendError, AppendFile, complete_lines};
use super::metrics_parquet;

/// The file of rows in a run folder.
pub const JSONL: &str = "metrics.jsonl";
/// The copy for data-frame readers.
pub const PARQUET: &str = "metrics.parquet";

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// The weights were updated.
    Update,
    /// The loss stood out too far from its window; no update.
    SkipLossZ,
    /// The gradient norm stood out too far from its window; no update.
    SkipGradZ,
    /// Loss or gradient norm was NaN or infinite; no update.
    SkipNonfinite,
    /// No training: the evaluation after the last update.
    Evaluate,
}

impl Action {
    pub const ALL: [Action; 5] =
        [Action::Update, Action::SkipLossZ, Action::SkipGradZ, Action::SkipNonfinite, Action::Evaluate];

    /// As written in files.
    pub fn name(self) -> &'static str {
        match self {
            Action::Update => "update",
            Action::SkipLossZ => "skip_loss_z",
            Action::SkipGradZ => "skip_grad_z",
            Action::SkipNonfinite => "skip_nonfinite",
            Action::Evaluate => "evaluate",
        }
    }

    pub fn from_name(name: &str) -> Option<Action> {
        Action::ALL.into_iter().find(|action| action.name() == name)
    }

    /// Whether a guard kept the update from the weights.
    pub fn is_skip(self) -> bool {
        matches!(self, Action::SkipLossZ | Action::SkipGradZ | Action::SkipNonfinite)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One step. `None` is "not measured"; NaN and infinity are values.
#[derive(Clone, Debug)]
pub struct MetricsRow {
    pub step: u64,
    /// Tokens trained on, this step's included.
    pub tokens: u64,
    /// Mean training loss of the step, nats a token.
    pub loss: Option<f64>,
    /// Global gradient norm before clipping.
    pub grad_norm: Option<f64>,
    pub learning_rate: Option<f64>,
    /// Standard deviations of this loss from the mean of the window before it; `None` while the window fills.
    pub loss_z: Option<f64>,
    pub grad_z: Option<f64>,
    pub action: Action,
    /// Mean validation loss before this step's update, nats a token.
    pub val_loss: Option<f64>,
    /// HellaSwag before this step's update, 0 to 1: the reference's score.
    pub hellaswag: Option<f64>,
    /// The published harness's `acc` and `acc_norm`; `None` where the tasks lack its wording.
    pub hellaswag_acc: Option<f64>,
    pub hellaswag_acc_norm: Option<f64>,
    pub step_ms: Option<f64>,
    pub tokens_per_s: Option<f64>,
    /// Model FLOPs utilisation, 0 to 1; `None` on a device whose peak is unknown.
    pub mfu: Option<f64>,
    /// What else happened, a word each: `resume`, `drift`, `rewind`.
    pub events: Vec<String>,
}

impl MetricsRow {
    /// A row in which nothing but the position is measured yet.
    pub fn new(step: u64, tokens: u64, action: Action) -> MetricsRow {
        MetricsRow {
            step,
            tokens,
            loss: None,
            grad_norm: None,
            learning_rate: None,
            loss_z: None,
            grad_z: None,
            action,
            val_loss: None,
            hellaswag: None,
            hellaswag_acc: None,
            hellaswag_acc_norm: None,
            step_ms: None,
            tokens_per_s: None,
            mfu: None,
            events: Vec::new(),
        }
    }

    /// The values that have bits, with their names, in file order.
    pub fn exact_values(&self) -> [(&'static str, Option<f64>); 9] {
        [
            ("loss", self.loss),
            ("grad_norm", self.grad_norm),
            ("learning_rate", self.learning_rate),
            ("loss_z", self.loss_z),
            ("grad_z", self.grad_z),
            ("val_loss", self.val_loss),
            ("hellaswag", self.hellaswag),
            ("hellaswag_acc", self.hellaswag_acc),
            ("hellaswag_acc_norm", self.hellaswag_acc_norm),
        ]
    }

    /// Whether two rows tell of the same training, bit for bit. Timings and events may differ: a
    /// resumed run has other ones.
    pub fn same_bits(&self, other: &MetricsRow) -> bool {
        let bits = |row: &MetricsRow| row.exact_values().map(|(_, value)| value.map(f64::to_bits));
        self.step == other.step
            && self.tokens == other.tokens
            && self.action == other.action
            && bits(self) == bits(other)
    }

    /// The row as a line of `metrics.jsonl`, newline included.
    pub fn to_line(&self) -> String {
        let mut line = serde_json::to_string(&Line::from(self))
            .expect("a struct of numbers and strings always serialises");
        line.push('\n');
        line
    }

    /// Reads a line of `metrics.jsonl`. Fails on unreadable JSON and where decimal and bits disagree.
    pub fn from_line(line: &str) -> Result<MetricsRow, String> {
        serde_json::from_str::<Line>(line).map_err(|error| error.to_string())?.try_into()
    }
}

/// A row as JSON has it. Field order is file order.
#[derive(Serialize, Deserialize)]
struct Line {
    step: u64,
    tokens: u64,
    loss: Option<f64>,
    loss_bits: Option<String>,
    grad_norm: Option<f64>,
    grad_norm_bits: Option<String>,
    learning_rate: Option<f64>,
    learning_rate_bits: Option<String>,
    loss_z: Option<f64>,
    loss_z_bits: Option<String>,
    grad_z: Option<f64>,
    grad_z_bits: Option<String>,
    action: Action,
    val_loss: Option<f64>,
    val_loss_bits: Option<String>,
    hellaswag: Option<f64>,
    hellaswag_bits: Option<String>,
    hellaswag_acc: Option<f64>,
    hellaswag_acc_bits: Option<String>,
    hellaswag_acc_norm: Option<f64>,
    hellaswag_acc_norm_bits: Option<String>,
    step_ms: Option<f64>,
    tokens_per_s: Option<f64>,
    mfu: Option<f64>,
    events: Vec<String>,
}

impl From<&MetricsRow> for Line {
    fn from(row: &MetricsRow) -> Line {
        let bits = |value: Option<f64>| value.map(|value| format!("0x{:016x}", value.to_bits()));
        // serde_json writes a number that is not finite as `null`.
        Line {
            step: row.step,
            tokens: row.tokens,
            loss: row.loss,
            loss_bits: bits(row.loss),
            grad_norm: row.grad_norm,
            grad_norm_bits: bits(row.grad_norm),
            learning_rate: row.learning_rate,
            learning_rate_bits: bits(row.learning_rate),
            loss_z: row.loss_z,
            loss_z_bits: bits(row.loss_z),
            grad_z: row.grad_z,
            grad_z_bits: bits(row.grad_z),
            action: row.action,
            val_loss: row.val_loss,
            val_loss_bits: bits(row.val_loss),
            hellaswag: row.hellaswag,
            hellaswag_bits: bits(row.hellaswag),
            hellaswag_acc: row.hellaswag_acc,
            hellaswag_acc_bits: bits(row.hellaswag_acc),
            hellaswag_acc_norm: row.hellaswag_acc_norm,
            hellaswag_acc_norm_bits: bits(row.hellaswag_acc_norm),
            step_ms: row.step_ms,
            tokens_per_s: row.tokens_per_s,
            mfu: row.mfu,
            events: row.events.clone(),
        }
    }
}

impl TryFrom<Line> for MetricsRow {
    type Error = String;

    fn try_from(line: Line) -> Result<MetricsRow, String> {
        Ok(MetricsRow {
            step: line.step,
            tokens: line.tokens,
            loss: exact("loss", line.loss, line.loss_bits)?,
            grad_norm: exact("grad_norm", line.grad_norm, line.grad_norm_bits)?,
            learning_rate: exact("learning_rate", line.learning_rate, line.learning_rate_bits)?,
            loss_z: exact("loss_z", line.loss_z, line.loss_z_bits)?,
            grad_z: exact("grad_z", line.grad_z, line.grad_z_bits)?,
            action: line.action,
            val_loss: exact("val_loss", line.val_loss, line.val_loss_bits)?,
            hellaswag: exact("hellaswag", line.hellaswag, line.hellaswag_bits)?,
            hellaswag_acc: exact("hellaswag_acc", line.hellaswag_acc, line.hellaswag_acc_bits)?,
            hellaswag_acc_norm: exact(
                "hellaswag_acc_norm",
                line.hellaswag_acc_norm,
                line.hellaswag_acc_norm_bits,
            )?,
            step_ms: line.step_ms,
            tokens_per_s: line.tokens_per_s,
            mfu: line.mfu,
            events: line.events,
        })
    }
}

/// The value behind a decimal and its bits, which must tell the same.
fn exact(key: &str, decimal: Option<f64>, bits: Option<String>) -> Result<Option<f64>, String> {
    let value = match &bits {
        None => None,
        Some(text) => {
            let digits = text.strip_prefix("0x").filter(|digits| digits.len() == 16);
            let parsed = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
            Some(parsed.map(f64::from_bits).ok_or_else(|| {
                format!("`{key}_bits`: expected 0x and 16 hexadecimal digits, got `{text}`")
            })?)
        }
    };
    let expected = value.filter(|value| value.is_finite());
    if decimal.map(f64::to_bits) == expected.map(f64::to_bits) {
        return Ok(value);
    }
    let show = |decimal: Option<f64>| decimal.map_or("null".to_owned(), |decimal| decimal.to_string());
    Err(match bits {
        None => format!("`{key}` is {} but `{key}_bits` is missing", show(decimal)),
        Some(text) => {
            format!("`{key}` is {} but `{key}_bits` is {text}, which is {}", show(decimal), show(value))
        }
    })
}

/// Why metrics cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    #[error(transparent)]
    Append(#[from] AppendError),
    #[error(transparent)]
    Store(#[from] super::StoreError),
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("`{}` has neither {JSONL} nor {PARQUET}\n  hint: is it the folder of a run that has started?", folder.display())]
    Missing { folder: PathBuf },
    #[error("`{}` {place}: {message}", path.display())]
    Row { path: PathBuf, place: Place, message: String },
    #[error("cannot append to `{}`: {message}", path.display())]
    Order { path: PathBuf, message: String },
    #[error("`{}`: {message}", path.display())]
    Parquet { path: PathBuf, message: String },
    #[error("`{}` ends at {}, but the run resumes at step {resume}: rows in between are lost\n  hint: resume from an earlier checkpoint",
        path.display(), last.map_or("no row".to_owned(), |step| format!("step {step}")))]
    Incomplete { path: PathBuf, last: Option<u64>, resume: u64 },
}

/// Where in a file a row stands, counted from 1.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    Line(usize),
    Row(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line(number) => write!(f, "line {number}"),
            Place::Row(number) => write!(f, "row {number}"),
        }
    }
}

/// Appends rows to a run's `metrics.jsonl`.
#[derive(Debug)]
pub struct MetricsWriter {
    file: AppendFile,
    last_step: Option<u64>,
}

impl MetricsWriter {
    /// Starts the metrics of a new run; a folder that has some already is refused.
    pub fn create(run_dir: &Path) -> Result<MetricsWriter, MetricsError> {
        Ok(MetricsWriter { file: AppendFile::create(&run_dir.join(JSONL))?, last_step: None })
    }

    /// Opens the metrics of a run whose next step is `step`: drops a torn last line and every row of
    /// that step and later. Refuses a file in which rows before `step` are missing.
    pub fn resume(run_dir: &Path, step: u64) -> Result<MetricsWriter, MetricsError> {
        let path = run_dir.join(JSONL);
        let (file, last_step) =
            AppendFile::reopen(&path, step, |line| MetricsRow::from_line(line).map(|row| row.step))?;
        if last_step.map_or(0, |last| last + 1) != step {
            return Err(MetricsError::Incomplete { path, last: last_step, resume: step });
        }
        Ok(MetricsWriter { file, last_step })
    }

    /// Appends a row; steps must grow. A row survives the death of the process as soon as this returns.
    pub fn append(&mut self, row: &MetricsRow) -> Result<(), MetricsError> {
        check_order(self.last_step, row.step)
            .map_err(|message| MetricsError::Order { path: self.file.path().to_owned(), message })?;
        self.file.write(&row.to_line())?;
        self.last_step = Some(row.step);
        Ok(())
    }

    /// Returns when every row is on the disk; a checkpoint counts on that, so sync before writing one.
    pub fn sync(&self) -> Result<(), MetricsError> {
        Ok(self.file.sync()?)
    }

    /// Writes all rows so far as parquet, atomically: temporary file, sync, rename.
    pub fn write_parquet(&self, path: &Path) -> Result<(), MetricsError> {
        metrics_parquet::write(path, &read_jsonl(self.file.path())?)
    }
}

/// The rows of a run: from `metrics.jsonl`, which is complete, else from `metrics.parquet`.
pub fn read(run_dir: &Path) -> Result<Vec<MetricsRow>, MetricsError> {
    let (jsonl, parquet) = (run_dir.join(JSONL), run_dir.join(PARQUET));
    if jsonl.exists() {
        read_jsonl(&jsonl)
    } else if parquet.exists() {
        metrics_parquet::read(&parquet)
    } else {
        Err(MetricsError::Missing { folder: run_dir.to_owned() })
    }
}

/// The rows of a jsonl file. A torn last line, as a killed process leaves it, is left out.
pub fn read_jsonl(path: &Path) -> Result<Vec<MetricsRow>, MetricsError> {
    let bytes = std::fs::read(path).map_err(|source| MetricsError::Io {
        action: "read",
        path: path.to_owned(),
        source,
    })?;
    let mut rows: Vec<MetricsRow> = Vec::new();
    for (index, line) in complete_lines(&bytes).enumerate() {
        let row = std::str::from_utf8(line)
            .map_err(|error| error.to_string())
            .and_then(MetricsRow::from_line)
            .and_then(|row| check_order(rows.last().map(|last| last.step), row.step).map(|()| row))
            .map_err(|message| MetricsError::Row {
                path: path.to_owned(),
                place: Place::Line(index + 1),
                message,
            })?;
        rows.push(row);
    }
    Ok(rows)
}

/// Steps grow strictly, in every file and in either format.
pub(super) fn check_order(last: Option<u64>, step: u64) -> Result<(), String> {
    match last {
        Some(last) if step <= last => Err(format!("step {step} follows step {last}; expected a later step")),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
