//! Files that are derived from the ledger, written again: `metrics.jsonl`, `metrics.parquet` and `main.log`.
//!
//! The ledger has every exact number. Timings are taken from what is left of the metrics, where a row of them
//! is that of its entry; else they stay empty.

use super::columns::COLUMNS;
use super::derived::is_time;
use super::main_log::{self, MAIN_LOG};
use super::metrics::{JSONL, MetricsError, MetricsRow, PARQUET};
use super::{RunPaths, atomic, metrics_parquet};
use crate::proof::Entry;
use crate::proof::regular::Lines;

/// Writes `files`, of those three names, of the run's ledger. Gives the number of steps without a timing.
///
/// # Errors
/// A file cannot be written; what stood there is then still there.
pub fn rebuild(paths: &RunPaths, entries: &[Entry], files: &[&str]) -> Result<usize, MetricsError> {
    let mut rows: Vec<MetricsRow> = entries.iter().map(|entry| MetricsRow::of(entry, None)).collect();
    for old in left(paths) {
        let same = rows.binary_search_by_key(&old.step, |row| row.step).ok();
        let Some(row) = same.map(|at| &mut rows[at]).filter(|row| row.same_bits(&old)) else { continue };
        for column in COLUMNS.iter().filter(|column| !column.is_exact()) {
            let time = (column.get)(&old).filter(is_time);
            (column.set)(row, time.or((column.get)(row)));
        }
    }
    if files.contains(&JSONL) {
        let text: String = rows.iter().map(MetricsRow::to_line).collect();
        atomic::write(&paths.metrics_jsonl(), text.as_bytes())?;
    }
    if files.contains(&PARQUET) {
        metrics_parquet::write(&paths.metrics_parquet(), &rows)?;
    }
    if files.contains(&MAIN_LOG) {
        let text: String = rows.iter().map(main_log::format).collect();
        atomic::write(&paths.main_log(), text.as_bytes())?;
    }
    Ok(rows.iter().filter(|row| row.loss.is_some() && row.step_ms.is_none()).count())
}

/// The rows that can still be read, those of the parquet file first.
fn left(paths: &RunPaths) -> Vec<MetricsRow> {
    let mut rows = metrics_parquet::read(&paths.metrics_parquet()).unwrap_or_default();
    let Ok(mut lines) = Lines::open(&paths.metrics_jsonl()) else { return rows };
    while let Ok(Some(line)) = lines.next_line() {
        rows.extend(std::str::from_utf8(line).ok().and_then(|line| MetricsRow::from_line(line).ok()));
    }
    rows
}
