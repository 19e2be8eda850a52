//! Whether the files that are derived from the ledger agree with it: `metrics.jsonl`, `metrics.parquet` and
//! `main.log`.
//!
//! Row i of the metrics is entry i of the ledger. Every row is computed again from its entry and compared
//! column by column, except timings, which are any finite numbers from 0. Lines of `main.log` are computed
//! again from the rows. So a row that is missing, cut off, added, doubled, out of order or changed is found,
//! and the first such one is named. Entries of version 1 hold no evaluation: those numbers are counted as
//! unproven.

use std::fmt;
use std::io;
use std::path::Path;

use super::RunPaths;
use super::columns::ColumnKind;
use super::main_log::{self, MAIN_LOG};
use super::metrics::{Action, COLUMNS, JSONL, MetricsRow, PARQUET};
use super::metrics_parquet;
use crate::proof::Entry;
use crate::proof::entry::canonical_bits;
use crate::proof::regular::Lines;

/// How much of the files must exist.
#[derive(Clone, Copy, Debug)]
pub struct Reach {
    /// The step of the newest checkpoint: what was written before it is on the disk.
    pub saved: u64,
    /// The run has ended, and nothing may be missing.
    pub ended: bool,
    /// A process is still writing the run: the files may be ahead of the ledger that was read, or behind it.
    pub running: bool,
}

impl Reach {
    /// Whether the line of a step may still be missing because a process is about to write it.
    fn may_lag(self, step: u64) -> bool {
        self.running && step >= self.saved
    }
}

/// The parts that agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AgreedRows {
    pub rows: usize,
    /// Rows with an evaluation that the ledger, written by an older program, does not hold.
    pub unproven: usize,
}

/// The first place where a file disagrees with the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disagreement {
    pub file: &'static str,
    /// Line or row, counted from 1; none of the file as a whole.
    pub row: Option<usize>,
    pub column: Option<String>,
    pub what: String,
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.file)?;
        if let Some(row) = self.row {
            let unit = if self.file == PARQUET { "row" } else { "line" };
            write!(f, " {unit} {row}")?;
        }
        if let Some(column) = &self.column {
            write!(f, ", `{column}`")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// A fault of a row; the caller adds the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowFault {
    /// Counted from 0.
    index: usize,
    column: Option<&'static str>,
    what: String,
}

impl RowFault {
    fn in_file(self, file: &'static str) -> Disagreement {
        Disagreement {
            file,
            row: Some(self.index + 1),
            column: self.column.map(str::to_owned),
            what: self.what,
        }
    }
}

impl fmt::Display for RowFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "row {}", self.index + 1)?;
        if let Some(column) = self.column {
            write!(f, ", `{column}`")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// Compares the three files of a run with the entries of its ledger. A file that need not have any row yet
/// may be missing.
pub fn check(
    paths: &RunPaths,
    entries: &[Entry],
    extent: Reach,
) -> Vec<(&'static str, Result<AgreedRows, Disagreement>)> {
    let mut checked = Vec::new();
    // Where the metrics are damaged, the rows are made from the ledger, if it holds every column.
    let (rows, jsonl) = match jsonl(&paths.metrics_jsonl(), entries, extent) {
        Ok((rows, agreed)) => (Some(rows), Ok(agreed)),
        Err(fault) if entries.iter().all(|entry| entry.evaluation.is_some()) => {
            (Some(entries.iter().map(|entry| MetricsRow::of(entry, None)).collect()), Err(fault))
        }
        Err(fault) => (None, Err(fault)),
    };
    checked.push((JSONL, jsonl));
    if extent.saved > 0 || extent.ended || paths.metrics_parquet().exists() {
        checked.push((PARQUET, parquet(&paths.metrics_parquet(), entries, extent)));
    }
    if let Some(rows) = rows {
        checked.push((MAIN_LOG, main_log(&paths.main_log(), &rows, extent)));
    }
    checked
}

/// Where the rows of a run disagree with its ledger; none if they agree. Missing last rows are no fault while
/// the run is still being written.
pub fn unverified(rows: &[MetricsRow], entries: &[Entry], running: bool) -> Option<String> {
    let rows = if running { &rows[..rows.len().min(entries.len())] } else { rows };
    match compare(rows, entries) {
        Err(fault) => Some(fault.to_string()),
        Ok(_) if running => None,
        Ok(_) => entries.get(rows.len()).map(|entry| format!("the row of step {} is missing", entry.step)),
    }
}

/// Compares rows with as many entries from the first on.
fn compare(rows: &[MetricsRow], entries: &[Entry]) -> Result<AgreedRows, RowFault> {
    let mut agreed = AgreedRows::default();
    for (index, row) in rows.iter().enumerate() {
        let fault = |column, what| RowFault { index, column, what };
        let Some(entry) = entries.get(index).filter(|entry| entry.step == row.step) else {
            if is_unproven_end(row, index, entries) {
                agreed.unproven += 1;
                continue;
            }
            return Err(fault(Some("step"), misplaced(index, rows, entries)));
        };
        let expected = MetricsRow::of(entry, None);
        let step = entry.step;
        if row.tokens != entry.tokens {
            let what = format!("{} at step {step}, the ledger has {}", row.tokens, entry.tokens);
            return Err(fault(Some("tokens"), what));
        }
        if row.action != entry.action {
            let what = format!("{} at step {step}, the ledger has {}", row.action, entry.action);
            return Err(fault(Some("action"), what));
        }
        let recorded = entry.evaluation.is_some();
        let mut unproven = false;
        for column in COLUMNS.iter().filter(|column| column.is_exact()) {
            let (found, expected) = ((column.get)(row), (column.get)(&expected));
            if column.kind == ColumnKind::Evaluation && !recorded {
                unproven |= found.is_some();
            } else if found.map(canonical_bits) != expected.map(canonical_bits) {
                let show = |value: Option<f64>| value.map_or("nothing".to_owned(), |value| value.to_string());
                let what = format!("{} at step {step}, the ledger has {}", show(found), show(expected));
                return Err(fault(Some(column.name), what));
            }
        }
        for column in COLUMNS.iter().filter(|column| !column.is_exact()) {
            if let Some(found) = (column.get)(row).filter(|value| !is_time(value)) {
                return Err(fault(Some(column.name), format!("{found} at step {step} is no measurement")));
            }
        }
        // An older program recorded a resume in the row; its ledger has it as a note.
        let events = match row.events.split_first() {
            Some((first, rest)) if first == "resume" && !recorded => rest,
            _ => &row.events,
        };
        if events != expected.events {
            let what = format!("{:?} at step {step}, the ledger has {:?}", row.events, expected.events);
            return Err(fault(Some("events"), what));
        }
        agreed.unproven += usize::from(unproven);
    }
    agreed.rows = rows.len();
    Ok(agreed)
}

/// Whether a number can be a timing.
pub(super) fn is_time(value: &f64) -> bool {
    value.is_finite() && *value >= 0.0
}

/// Whether a row is the evaluation after the last step, of which a ledger of version 1 has no entry.
fn is_unproven_end(row: &MetricsRow, index: usize, entries: &[Entry]) -> bool {
    let last = entries.last().filter(|entry| entry.evaluation.is_none() && entry.step + 1 == row.step);
    index == entries.len() && row.action == Action::Evaluate && last.is_some()
}

/// Why the row at `index` is not at the position of its entry.
fn misplaced(index: usize, rows: &[MetricsRow], entries: &[Entry]) -> String {
    let step = rows[index].step;
    if rows[..index].iter().any(|row| row.step == step) {
        return format!("the row of step {step} stands a second time");
    }
    if entries.iter().all(|entry| entry.step != step) {
        return format!("a row of step {step} was added, which the ledger does not have");
    }
    match entries.get(index).map(|entry| entry.step) {
        Some(expected) if rows[index..].iter().any(|row| row.step == expected) => {
            format!("the row of step {step} stands before that of step {expected}")
        }
        Some(expected) => format!("the row of step {expected} is missing; step {step} stands there"),
        None => format!("the row of step {step} does not belong here"),
    }
}

/// A text file that is read line by line.
struct TextFile {
    file: &'static str,
    /// None of a file that is missing and may be.
    lines: Option<Lines>,
}

impl TextFile {
    fn open(file: &'static str, path: &Path, needed: bool) -> Result<TextFile, Disagreement> {
        match Lines::open(path) {
            Ok(lines) => Ok(TextFile { file, lines: Some(lines) }),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !needed => {
                Ok(TextFile { file, lines: None })
            }
            Err(error) => Err(cannot_read(file, &error)),
        }
    }

    fn next_line(&mut self) -> Result<Option<&[u8]>, Disagreement> {
        let Some(lines) = &mut self.lines else { return Ok(None) };
        lines.next_line().map_err(|error| cannot_read(self.file, &error))
    }

    fn is_torn(&self) -> bool {
        self.lines.as_ref().is_some_and(Lines::is_torn)
    }
}

fn cannot_read(file: &'static str, error: &io::Error) -> Disagreement {
    whole_file(file, format!("cannot be read: {error}"))
}

fn whole_file(file: &'static str, what: String) -> Disagreement {
    Disagreement { file, row: None, column: None, what }
}

fn jsonl(
    path: &Path,
    entries: &[Entry],
    extent: Reach,
) -> Result<(Vec<MetricsRow>, AgreedRows), Disagreement> {
    let mut lines = TextFile::open(JSONL, path, !entries.is_empty())?;
    let mut rows: Vec<MetricsRow> = Vec::new();
    while let Some(line) = lines.next_line()? {
        let index = rows.len();
        if extent.running && index >= entries.len() {
            break;
        }
        let fault = |what| Disagreement { file: JSONL, row: Some(index + 1), column: None, what };
        let text = std::str::from_utf8(line).map_err(|error| fault(error.to_string()))?;
        let row = MetricsRow::from_line(text).map_err(fault)?;
        let recorded = entries.get(index).is_some_and(|entry| entry.evaluation.is_some());
        if recorded && !row.is_written_as(text) {
            return Err(fault("not the text that is written of its values: keys were added or moved".into()));
        }
        rows.push(row);
    }
    let agreed = compare(&rows, entries).map_err(|fault| fault.in_file(JSONL))?;
    let torn = lines.is_torn();
    if let Some(missing) = entries.get(rows.len()) {
        let killed = torn && rows.len() + 1 == entries.len() && may_be_torn(missing.step, extent);
        if !killed && !extent.may_lag(missing.step) {
            return Err(cut(JSONL, rows.len(), missing.step));
        }
    } else if torn && !extent.running {
        let row = Some(rows.len() + 1);
        return Err(Disagreement {
            file: JSONL,
            row,
            column: None,
            what: "an unfinished line was added".into(),
        });
    }
    Ok((rows, agreed))
}

/// Whether a kill may have left the last line, of this step, unfinished.
fn may_be_torn(step: u64, extent: Reach) -> bool {
    !extent.ended && step >= extent.saved
}

fn cut(file: &'static str, lines: usize, step: u64) -> Disagreement {
    let what = match lines {
        0 => format!("the file has no row: that of step {step} is missing"),
        _ => format!("the row of step {step} is missing: the file ends before it"),
    };
    Disagreement { file, row: Some(lines + 1), column: Some("step".into()), what }
}

fn parquet(path: &Path, entries: &[Entry], extent: Reach) -> Result<AgreedRows, Disagreement> {
    if !path.exists() {
        return Err(whole_file(PARQUET, "the file is missing".into()));
    }
    let rows = metrics_parquet::read(path).map_err(|error| whole_file(PARQUET, error.to_string()))?;
    let seen = if extent.running { rows.len().min(entries.len()) } else { rows.len() };
    let agreed = compare(&rows[..seen], entries).map_err(|fault| fault.in_file(PARQUET))?;
    let must = |entry: &&Entry| extent.ended || entry.step < extent.saved;
    match entries.get(seen).filter(must) {
        Some(missing) => Err(cut(PARQUET, seen, missing.step)),
        None => Ok(agreed),
    }
}

fn main_log(path: &Path, rows: &[MetricsRow], extent: Reach) -> Result<AgreedRows, Disagreement> {
    let lines_of = |row: &MetricsRow| {
        let lines = main_log::format(row);
        lines.lines().map(|line| (row.step, line.to_owned())).collect::<Vec<_>>()
    };
    let mut expected = rows.iter().flat_map(lines_of).peekable();
    let mut lines = TextFile::open(MAIN_LOG, path, expected.peek().is_some())?;
    let mut agreed = 0;
    while let Some(line) = lines.next_line()? {
        let fault = |column, what| Disagreement { file: MAIN_LOG, row: Some(agreed + 1), column, what };
        let found = String::from_utf8_lossy(line);
        match expected.next() {
            Some((_, expected)) if expected == found => {}
            None if extent.running => break,
            None => return Err(fault(None, format!("`{found}` was added"))),
            Some((step, expected)) => {
                let words = expected.split(' ').zip(found.split(' '));
                let differing = words.skip_while(|(a, b)| a == b).map(|(word, _)| word).next();
                let column = differing.and_then(|word| word.split(':').next()).map(str::to_owned);
                let what = format!("`{found}`, the ledger has `{expected}` of step {step}");
                return Err(fault(column, what));
            }
        }
        agreed += 1;
    }
    let torn = lines.is_torn();
    let last = rows.iter().rfind(|row| !main_log::format(row).is_empty()).map(|row| row.step);
    match expected.next() {
        Some((step, _))
            if extent.may_lag(step) || (torn && Some(step) == last && may_be_torn(step, extent)) => {}
        Some((step, _)) => return Err(cut(MAIN_LOG, agreed, step)),
        None if torn && !extent.running => {
            let row = Some(agreed + 1);
            return Err(Disagreement {
                file: MAIN_LOG,
                row,
                column: None,
                what: "an unfinished line was added".into(),
            });
        }
        None => {}
    }
    Ok(AgreedRows { rows: agreed, unproven: 0 })
}

#[cfg(test)]
#[path = "derived_tests.rs"]
mod tests;
