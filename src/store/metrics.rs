//! The measurements of every step: `metrics.jsonl`, one row a step, and `metrics.parquet`.
//!
//! The numbers are those of [`super::columns`]. An exact one has two keys: `loss` as a decimal for
//! people and scripts, `loss_bits` as the 16 hexadecimal digits of its IEEE 754 double for proofs. The
//! decimal is the shortest that reads back to the same bits. JSON knows neither NaN nor infinity: there the
//! decimal is `null` and the bits say which it was, so a column stays numeric for every reader. A value
//! that was not measured is `null` in both. Timings have no bits: they are not part of the proof.
//!
//! Steps are counted from 0: row `s` is the update that turns the weights after `s` updates into those after
//! `s + 1`; validation and HellaSwag in row `s` were measured before that update. The evaluation after the
//! last update is a row of its own, with [`Action::Evaluate`] and no training values.
//!
//! The jsonl is complete at every moment; the parquet is a copy for data-frame readers, made at checkpoints
//! and at the end. This module does not decide when.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt::{self, Write};
use std::io;
use std::path::{Path, PathBuf};

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::append::{AppendError, AppendFile, KeptRecords};
use super::columns::{ColumnKind, Timing, Turn};
use super::metrics_parquet;

pub use super::columns::{COLUMNS, Column, MetricsRow};
pub use crate::proof::Action;
use crate::proof::{Entry, json, regular};

/// The file of rows in a run folder.
pub const JSONL: &str = "metrics.jsonl";
/// The copy for data-frame readers.
pub const PARQUET: &str = "metrics.parquet";

impl MetricsRow {
    /// The row of an entry of the ledger. Events are the first words of the entry's.
    pub fn of(entry: &Entry, timing: Option<Timing>) -> MetricsRow {
        let mut row = MetricsRow::new(entry.step, entry.tokens, entry.action);
        let turn = Turn { entry, timing };
        for column in COLUMNS {
            (column.set)(&mut row, (column.from)(&turn));
        }
        let words = entry.events.iter().filter_map(|event| event.split(' ').next());
        row.events = words.map(str::to_owned).collect();
        row
    }

    /// Whether two rows are of the same training, bit for bit. Timings and events may differ.
    pub fn same_bits(&self, other: &MetricsRow) -> bool {
        let bits = |row: &MetricsRow, column: &Column| (column.get)(row).map(f64::to_bits);
        self.step == other.step
            && self.tokens == other.tokens
            && self.action == other.action
            && COLUMNS.iter().filter(|column| column.is_exact()).all(|c| bits(self, c) == bits(other, c))
    }

    /// The row as a line of `metrics.jsonl`, newline included.
    pub fn to_line(&self) -> String {
        self.to_line_of(|column| column.kind != ColumnKind::Average || (column.get)(self).is_some())
    }

    /// Whether a line is the text of this row. Keys of columns in which nothing was measured may be missing:
    /// a program that did not have them wrote none.
    pub(super) fn is_written_as(&self, line: &str) -> bool {
        let has = |column: &Column| line.contains(&format!("\"{}\":", column.name));
        self.to_line_of(|column| (column.get)(self).is_some() || has(column)).trim_end() == line
    }

    fn to_line_of(&self, has: impl Fn(&Column) -> bool) -> String {
        let mut line = format!(r#"{{"step":{},"tokens":{}"#, self.step, self.tokens);
        self.push_columns(&mut line, ColumnKind::Training, &has);
        write!(line, r#","action":"{}""#, self.action).expect("a string takes all");
        self.push_columns(&mut line, ColumnKind::Evaluation, &has);
        self.push_columns(&mut line, ColumnKind::Average, &has);
        self.push_columns(&mut line, ColumnKind::Timing, &has);
        let events = serde_json::to_string(&self.events).expect("strings become JSON");
        line.push_str(&format!(",\"events\":{events}}}\n"));
        line
    }

    fn push_columns(&self, line: &mut String, kind: ColumnKind, has: impl Fn(&Column) -> bool) {
        for column in COLUMNS.iter().filter(|column| column.kind == kind && has(column)) {
            let (name, value) = (column.name, (column.get)(self));
            // serde_json writes a number that is not finite as `null`.
            let decimal = serde_json::to_string(&value).expect("a number becomes JSON");
            write!(line, r#","{name}":{decimal}"#).expect("a string takes all");
            if column.is_exact() {
                let bits = value.map_or("null".to_owned(), |v| format!(r#""0x{:016x}""#, v.to_bits()));
                write!(line, r#","{name}_bits":{bits}"#).expect("a string takes all");
            }
        }
    }

    /// Reads a line of `metrics.jsonl`. Fails on unreadable JSON, on a key that stands twice, and where
    /// decimal and bits disagree.
    pub fn from_line(line: &str) -> Result<MetricsRow, String> {
        serde_json::from_str(line)
            .map_err(|error: serde_json::Error| json::fault_in_line(line.as_bytes(), &error))
    }
}

/// Unknown keys are ignored, and missing columns count as not measured: the file may be from an older or a
/// newer program.
impl<'de> Deserialize<'de> for MetricsRow {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<MetricsRow, D::Error> {
        deserializer.deserialize_map(RowVisitor)
    }
}

struct RowVisitor;

impl<'de> Visitor<'de> for RowVisitor {
    type Value = MetricsRow;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a row of metrics")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<MetricsRow, A::Error> {
        let (mut step, mut tokens, mut action, mut events) = (None, None, None, None);
        let mut decimals: Vec<Option<f64>> = vec![None; COLUMNS.len()];
        let mut bits: Vec<Option<Cow<'de, str>>> = vec![None; COLUMNS.len()];
        // Whether each key stood already: the four, then every column and its bits.
        let mut stood = vec![false; 4 + 2 * COLUMNS.len()];
        let mut unknown = BTreeSet::new();
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            let at = |name: &str| COLUMNS.iter().position(|column| column.name == name);
            let known = match key.as_ref() {
                "step" => Some(0),
                "tokens" => Some(1),
                "action" => Some(2),
                "events" => Some(3),
                name => match name.strip_suffix("_bits") {
                    Some(exact) => at(exact).map(|column| 5 + 2 * column),
                    None => at(name).map(|column| 4 + 2 * column),
                },
            };
            let twice = match known {
                Some(index) => std::mem::replace(&mut stood[index], true),
                None => !unknown.insert(key.clone()),
            };
            if twice {
                return Err(A::Error::custom(format!("`{key}` stands twice")));
            }
            match known {
                Some(0) => step = Some(map.next_value()?),
                Some(1) => tokens = Some(map.next_value()?),
                Some(2) => action = Some(map.next_value()?),
                Some(3) => events = Some(map.next_value()?),
                Some(index) if index % 2 == 0 => decimals[(index - 4) / 2] = map.next_value()?,
                Some(index) => bits[(index - 5) / 2] = map.next_value()?,
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        let missing = A::Error::missing_field;
        let mut row = MetricsRow::new(
            step.ok_or_else(|| missing("step"))?,
            tokens.ok_or_else(|| missing("tokens"))?,
            action.ok_or_else(|| missing("action"))?,
        );
        row.events = events.ok_or_else(|| missing("events"))?;
        for ((column, decimal), bits) in COLUMNS.iter().zip(decimals).zip(bits) {
            let value = match column.is_exact() {
                true => exact(column.name, decimal, bits.as_deref()).map_err(A::Error::custom)?,
                false => decimal,
            };
            (column.set)(&mut row, value);
        }
        Ok(row)
    }
}

/// The value that a decimal and its bits give, which must be the same number.
fn exact(key: &str, decimal: Option<f64>, bits: Option<&str>) -> Result<Option<f64>, String> {
    let value = match bits {
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

/// What helps where a file that is made from the ledger is lost or damaged.
pub const REBUILD: &str = "`runner verify RUN --rebuild` writes it again from the ledger, but for timings \
                           that are lost; or restore it from a copy";

/// Why metrics cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    #[error(transparent)]
    Append(#[from] AppendError),
    #[error(transparent)]
    Store(#[from] super::StoreError),
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("`{}` has neither {JSONL} nor {PARQUET}\n  hint: is it the folder of a run that has \
             started?", folder.display())]
    Missing { folder: PathBuf },
    #[error("`{}` {place}: {message}", path.display())]
    Row { path: PathBuf, place: RowPlace, message: String },
    #[error("cannot append to `{}`: {message}", path.display())]
    Order { path: PathBuf, message: String },
    #[error("`{}`: {message}", path.display())]
    Parquet { path: PathBuf, message: String },
    #[error("`{}` ends at {}, but the run resumes at step {resume}: rows in between are lost\n  hint: \
             {REBUILD}",
        path.display(), last.map_or("no row".to_owned(), |step| format!("step {step}")))]
    Incomplete { path: PathBuf, last: Option<u64>, resume: u64 },
}

/// The place of a row in a file, counted from 1.
#[derive(Clone, Copy, Debug)]
pub enum RowPlace {
    Line(usize),
    Row(usize),
}

impl fmt::Display for RowPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RowPlace::Line(number) => write!(f, "line {number}"),
            RowPlace::Row(number) => write!(f, "row {number}"),
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

    /// Looks for the rows that stay when a run goes on at `step`, and changes nothing. Refuses a file in
    /// which rows before `step` are missing.
    pub fn look(run_dir: &Path, step: u64) -> Result<KeptRecords, MetricsError> {
        let path = run_dir.join(JSONL);
        let kept = AppendFile::look(&path, step, |line| MetricsRow::from_line(line).map(|row| row.step))?;
        require_up_to(step, path, kept)
    }

    /// Opens the metrics of a run whose next step is `step`: drops a torn last line and every row of that
    /// step and later.
    ///
    /// # Errors
    /// As [`MetricsWriter::look`]; then nothing is dropped.
    pub fn resume(run_dir: &Path, step: u64) -> Result<MetricsWriter, MetricsError> {
        let kept = MetricsWriter::look(run_dir, step)?;
        Ok(MetricsWriter { last_step: kept.last, file: kept.open()? })
    }

    /// Appends a row; steps must grow. Once this returns, the row survives the end of the process.
    pub fn append(&mut self, row: &MetricsRow) -> Result<(), MetricsError> {
        check_order(self.last_step, row.step)
            .map_err(|message| MetricsError::Order { path: self.file.path().to_owned(), message })?;
        self.file.write(&row.to_line())?;
        self.last_step = Some(row.step);
        Ok(())
    }

    /// Returns when every row is on the disk; call it before writing a checkpoint.
    pub fn sync(&self) -> Result<(), MetricsError> {
        Ok(self.file.sync()?)
    }

    /// Writes all rows so far as parquet, atomically: temporary file, sync, rename.
    pub fn write_parquet(&self, path: &Path) -> Result<(), MetricsError> {
        metrics_parquet::write(path, &read_jsonl(self.file.path())?)
    }
}

/// Refuses records that do not reach up to `step`.
pub(super) fn require_up_to(
    step: u64,
    path: PathBuf,
    kept: KeptRecords,
) -> Result<KeptRecords, MetricsError> {
    match kept.last {
        last if last.map_or(0, |last| last + 1) == step => Ok(kept),
        last => Err(MetricsError::Incomplete { path, last, resume: step }),
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
    let cannot_read = |source| MetricsError::Io { action: "read", path: path.to_owned(), source };
    let mut lines = regular::Lines::open(path).map_err(cannot_read)?;
    let mut rows: Vec<MetricsRow> = Vec::new();
    while let Some(line) = lines.next_line().map_err(cannot_read)? {
        let row = std::str::from_utf8(line)
            .map_err(|error| error.to_string())
            .and_then(MetricsRow::from_line)
            .and_then(|row| check_order(rows.last().map(|last| last.step), row.step).map(|()| row))
            .map_err(|message| MetricsError::Row {
                path: path.to_owned(),
                place: RowPlace::Line(rows.len() + 1),
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
