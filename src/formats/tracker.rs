//! A run as programs that keep and compare experiments have it: [`mlflow`](super::mlflow) and
//! [`wandb`](super::wandb) write it into their files.
//!
//! Each step stands in it once, as the metrics have it, however often the run was resumed or rewound. An id
//! names it: exported again, a run replaces what was written of it before.

use std::fs;
use std::io;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::error::{FormatError, Result};
use crate::experiment::Hyperparameters;
use crate::store::metrics::{COLUMNS, MetricsRow};

/// The experiment of MLflow and the project of Weights & Biases under which runs are filed.
pub const PROJECT: &str = "runner";

/// What a run or sweep is called, and the digest that tells it from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrackedName {
    /// The name of its folder; of a member that of the sweep before it: `lr/003`.
    pub name: String,
    id: [u8; 32],
}

impl TrackedName {
    /// The name of the run or sweep that has begun so: what `beginning` says must stay the same when it goes
    /// on.
    pub fn new(name: &str, beginning: &[u8]) -> TrackedName {
        let digest = Sha256::new().chain_update(name).chain_update([0]).chain_update(beginning).finalize();
        TrackedName { name: name.to_owned(), id: digest.into() }
    }

    /// So many hexadecimal digits of the id, at most 64.
    pub fn id(&self, digits: usize) -> String {
        let all: String = self.id.iter().map(|byte| format!("{byte:02x}")).collect();
        all[..digits].to_owned()
    }
}

/// Whether a run has ended, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrackedStatus {
    Running,
    Finished,
    /// It diverged, or something of it is damaged.
    Failed,
    /// No process works on it; `runner resume` would go on.
    Stopped,
}

/// A sweep of which runs are members.
#[derive(Clone, Debug)]
pub struct TrackedSweep {
    pub name: TrackedName,
    pub status: TrackedStatus,
    /// The hash of the whole, once all members have ended.
    pub hash: Option<String>,
    /// When it began, and ended or was last seen, seconds since 1970.
    pub span: (f64, f64),
}

/// A run.
pub struct TrackedRun {
    pub name: TrackedName,
    pub sweep: Option<TrackedSweep>,
    pub status: TrackedStatus,
    pub hyperparameters: Hyperparameters,
    /// What is known of it besides, by short names: `root`, `numerics_id`, `device`.
    pub facts: Vec<(&'static str, String)>,
    /// Those that a person gave it.
    pub tags: Vec<String>,
    pub note: Option<String>,
    /// The commit of the program that made it.
    pub commit: Option<String>,
    /// The numbers by which `runner show` sums it up, by column.
    pub figures: Vec<(&'static str, f64)>,
    /// By step.
    pub rows: Vec<MetricsRow>,
    /// When the last row was written, seconds since 1970.
    pub last_row: f64,
    /// Files that tell all of it: names and contents.
    pub files: Vec<(&'static str, Vec<u8>)>,
}

impl TrackedRun {
    /// When each row was written, seconds since 1970: back from the last one by what the steps took, for rows
    /// have no clock. Waits between a stop and a resume do not show.
    pub fn times(&self) -> Vec<f64> {
        let mut time = self.last_row;
        let mut times: Vec<f64> = (self.rows.iter().rev())
            .map(|row| {
                let written = time;
                time -= row.step_ms.filter(|ms| ms.is_finite()).unwrap_or(0.0) / 1e3;
                written
            })
            .collect();
        times.reverse();
        times
    }

    /// When its first step began and when its last row was written, seconds since 1970.
    pub fn span(&self) -> (f64, f64) {
        let first = self.rows.first().and_then(|row| row.step_ms).filter(|ms| ms.is_finite());
        let began = self.times().first().copied().unwrap_or(self.last_row) - first.unwrap_or(0.0) / 1e3;
        (began, self.last_row)
    }
}

/// Whether `out` holds files of a tracker already, which have names that are `theirs`. An empty folder holds
/// none, nor does one that is not there yet.
///
/// # Errors
/// It is something else: `what` is written into no other folder.
pub(super) fn holds(out: &Path, what: &'static str, theirs: impl Fn(&str) -> bool) -> Result<bool> {
    let entries = match fs::read_dir(out) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(_) => return Err(FormatError::NotAStore { path: out.into(), what }),
        Ok(entries) => entries,
    };
    let mut names = entries.flatten().map(|entry| entry.file_name()).peekable();
    match (names.peek().is_none(), names.any(|name| theirs(&name.to_string_lossy()))) {
        (true, _) => Ok(false),
        (false, true) => Ok(true),
        (false, false) => Err(FormatError::NotAStore { path: out.into(), what }),
    }
}

/// The numbers of a row that trackers are given, by their tags: those of the event file.
pub fn points(row: &MetricsRow) -> impl Iterator<Item = (&'static str, f64)> {
    let tagged = COLUMNS.iter().filter(|column| !column.tag.is_empty());
    tagged.filter_map(|column| Some((column.tag, (column.get)(row)?)))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::store::metrics::Action;

    /// A run of three steps and an evaluation behind them, with a member's name.
    pub fn run() -> TrackedRun {
        let row = |step: u64, loss: f64| MetricsRow {
            loss: Some(loss),
            step_ms: Some(500.0),
            ..MetricsRow::new(step, 64 * (step + 1), Action::Update)
        };
        let mut rows = vec![row(0, 3.0), row(1, f64::NAN), row(2, 2.5)];
        rows.push(MetricsRow { val_loss: Some(2.75), ..MetricsRow::new(3, 192, Action::Evaluate) });
        let text = |text: &str| text.to_owned();
        TrackedRun {
            name: TrackedName::new("lr/001", b"first entry"),
            sweep: Some(TrackedSweep {
                name: TrackedName::new("lr", b"declaration"),
                status: TrackedStatus::Stopped,
                hash: None,
                span: (990.0, 1000.25),
            }),
            status: TrackedStatus::Finished,
            hyperparameters: [(text("seed"), 7.into()), (text("schedule.kind"), "wsd".into())].into(),
            facts: vec![("root", text("1f7a"))],
            tags: vec![text("keep"), text("../../../up")],
            note: Some(text("odd: \"quoted\"")),
            commit: None,
            figures: vec![("mean_loss", 2.5)],
            rows,
            last_row: 1_000.25,
            files: vec![("lock.toml", b"x".to_vec())],
        }
    }

    #[test]
    fn the_clock_of_rows_goes_back_from_the_last_by_what_steps_took() {
        let run = run();
        assert_eq!(run.times(), [999.25, 999.75, 1000.25, 1000.25]);
        assert_eq!(run.span(), (998.75, 1000.25));
    }

    #[test]
    fn a_name_with_another_beginning_or_another_cut_is_another_id() {
        let id = |name, beginning: &[u8]| TrackedName::new(name, beginning).id(32);
        assert_eq!(id("a", b"x"), id("a", b"x"));
        assert_eq!(id("a", b"x").len(), 32);
        assert!(id("a", b"x") != id("a", b"y") && id("a", b"xy") != id("ax", b"y"));
    }
}
