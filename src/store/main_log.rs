//! `main.log`: the log of llm.c, so that notebooks written for it read our runs, and the reader by which
//! llm.c's runs are plotted beside ours.
//!
//! One record a line, a step and one stream:
//!
//! ```text
//! s:250 tel:4.5123                               validation loss
//! s:250 eval:0.2650                              HellaSwag accuracy
//! s:250 trl:4.4801 lr:0.000214 norm:0.89         training loss, learning rate, gradient norm
//! s:251 skip_loss_z:7.3100                       the update was skipped, and the number that was too large
//! ```
//!
//! The last is ours: llm.c leaves no trace of a skipped step. Its notebook splits the second word at the
//! colon, expects a number behind it, and four words in a `trl` line and two in any other; so the reason is
//! the stream's name (`skip_loss_z`, `skip_grad_z`, `skip_nonfinite`) and the value its number. Numbers are
//! rounded: the exact ones are in `metrics.jsonl`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::File;
use std::path::{Path, PathBuf};

use super::append::{AppendError, AppendFile, KeptRecords};
use super::metrics::{Action, MetricsError, MetricsRow, require_up_to};
use crate::proof::regular::Lines;

/// The file in a run folder.
pub const MAIN_LOG: &str = "main.log";

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum MainLogError {
    #[error("cannot read `{}`: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("`{}` line {line}: {message}", path.display())]
    Line { path: PathBuf, line: usize, message: String },
}

/// Appends to a run's `main.log`.
#[derive(Debug)]
pub struct MainLogWriter {
    file: AppendFile,
}

impl MainLogWriter {
    /// Starts the log of a new run; a folder that has one already is refused.
    pub fn create(run_dir: &Path) -> Result<MainLogWriter, AppendError> {
        Ok(MainLogWriter { file: AppendFile::create(&run_dir.join(MAIN_LOG))? })
    }

    /// Looks for the lines that stay when a run goes on at `step`, and changes nothing. Refuses a log that
    /// ends before the step before it: each step has a line.
    pub fn look(run_dir: &Path, step: u64) -> Result<KeptRecords, MetricsError> {
        let path = run_dir.join(MAIN_LOG);
        let kept = AppendFile::look(&path, step, |line| parse(line).map(|(step, _)| step))?;
        require_up_to(step, path, kept)
    }

    /// Opens the log of a run whose next step is `step`: drops a torn last line and every line of that step
    /// and later.
    ///
    /// # Errors
    /// As [`MainLogWriter::look`]; then nothing is dropped.
    pub fn resume(run_dir: &Path, step: u64) -> Result<MainLogWriter, MetricsError> {
        Ok(MainLogWriter { file: MainLogWriter::look(run_dir, step)?.open()? })
    }

    /// Writes the lines of a row.
    pub fn append(&mut self, row: &MetricsRow) -> Result<(), AppendError> {
        let lines = format(row);
        if lines.is_empty() { Ok(()) } else { self.file.write(&lines) }
    }

    /// Returns when every line is on the disk.
    pub fn sync(&self) -> Result<(), AppendError> {
        self.file.sync()
    }
}

/// The lines of a row: evaluations first, since they come before the update.
pub fn format(row: &MetricsRow) -> String {
    let (step, mut lines) = (row.step, String::new());
    let mut line = |arguments: std::fmt::Arguments<'_>| {
        lines.write_fmt(arguments).expect("writing to a String does not fail");
    };
    if let Some(loss) = row.val_loss {
        line(format_args!("s:{step} tel:{}\n", decimal(loss, 4)));
    }
    if let Some(accuracy) = row.hellaswag {
        line(format_args!("s:{step} eval:{}\n", decimal(accuracy, 4)));
    }
    if let Some(loss) = row.loss {
        let (rate, norm) = (row.learning_rate.unwrap_or(f64::NAN), row.grad_norm.unwrap_or(f64::NAN));
        line(format_args!(
            "s:{step} trl:{} lr:{} norm:{}\n",
            decimal(loss, 4),
            decimal(rate, 6),
            decimal(norm, 2)
        ));
    }
    if row.action.is_skip() {
        let value = match row.action {
            Action::SkipLossZ => row.loss_z,
            Action::SkipGradZ => row.grad_z,
            _ => [row.loss, row.grad_norm].into_iter().flatten().find(|value| !value.is_finite()),
        };
        line(format_args!("s:{step} {}:{}\n", row.action, decimal(value.unwrap_or(f64::NAN), 4)));
    }
    lines
}

/// A number as C's `printf` writes it: `nan`, `inf` and `-inf` in small letters, without a sign on NaN.
fn decimal(value: f64, digits: usize) -> String {
    if value.is_nan() { "nan".to_owned() } else { format!("{value:.digits$}") }
}

/// Reads a log into rows, one for each step, in order of the steps. `tokens` is 0 in all, because the log has
/// none.
///
/// A run that crashed and was resumed has steps twice; the later line counts, as in llm.c's notebook. Streams
/// with other names are left out. A torn last line is left out.
pub fn read(path: &Path) -> Result<Vec<MetricsRow>, MainLogError> {
    let io = |source| MainLogError::Io { path: path.to_owned(), source };
    let mut lines = File::open(path).map(Lines::of).map_err(io)?;
    let (mut rows, mut number): (BTreeMap<u64, MetricsRow>, usize) = Default::default();
    while let Some(line) = lines.next_line().map_err(io)? {
        number += 1;
        let (step, record) = std::str::from_utf8(line)
            .map_err(|error| error.to_string())
            .and_then(parse)
            .map_err(|message| MainLogError::Line { path: path.to_owned(), line: number, message })?;
        let row = rows.entry(step).or_insert_with(|| MetricsRow::new(step, 0, Action::Evaluate));
        match record {
            MainLogRecord::Validation(loss) => row.val_loss = Some(loss),
            MainLogRecord::Hellaswag(accuracy) => row.hellaswag = Some(accuracy),
            MainLogRecord::Train { loss, learning_rate, grad_norm } => {
                (row.loss, row.learning_rate, row.grad_norm) = (Some(loss), learning_rate, grad_norm);
                row.action = Action::Update;
            }
            MainLogRecord::Skip(action, value) => {
                row.action = action;
                match action {
                    Action::SkipLossZ => row.loss_z = Some(value),
                    Action::SkipGradZ => row.grad_z = Some(value),
                    _ => {}
                }
            }
            MainLogRecord::Other => {}
        }
    }
    Ok(rows.into_values().collect())
}

enum MainLogRecord {
    Validation(f64),
    Hellaswag(f64),
    Train { loss: f64, learning_rate: Option<f64>, grad_norm: Option<f64> },
    Skip(Action, f64),
    Other,
}

fn parse(line: &str) -> Result<(u64, MainLogRecord), String> {
    let mut words = line.split_whitespace().map(|word| {
        word.split_once(':')
            .ok_or_else(|| format!("expected `name:value` words such as `s:250 tel:4.5123`, got `{word}`"))
    });
    let number = |name: &str, text: &str| {
        text.parse::<f64>().map_err(|_| format!("`{name}`: expected a number, got `{text}`"))
    };
    let step = match words.next().transpose()? {
        Some(("s", text)) => text.parse().map_err(|_| format!("`s`: expected a step, got `{text}`"))?,
        Some((name, _)) => return Err(format!("expected the step `s:` first, got `{name}:`")),
        None => return Err("the line is empty".to_owned()),
    };
    let (stream, text) = words.next().transpose()?.ok_or("nothing follows the step")?;
    let value = number(stream, text)?;
    let record = match stream {
        "tel" => MainLogRecord::Validation(value),
        "eval" => MainLogRecord::Hellaswag(value),
        "trl" => {
            let (mut learning_rate, mut grad_norm) = (None, None);
            for word in words {
                match word? {
                    ("lr", text) => learning_rate = Some(number("lr", text)?),
                    ("norm", text) => grad_norm = Some(number("norm", text)?),
                    _ => {}
                }
            }
            MainLogRecord::Train { loss: value, learning_rate, grad_norm }
        }
        name => match Action::from_name(name) {
            Some(action) if action.is_skip() => MainLogRecord::Skip(action, value),
            _ => MainLogRecord::Other,
        },
    };
    Ok((step, record))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(step: u64) -> MetricsRow {
        let train = MetricsRow::new(step, 0, Action::Update);
        MetricsRow { loss: Some(4.48009), learning_rate: Some(0.0002142), grad_norm: Some(0.888), ..train }
    }

    #[test]
    fn lines_are_those_of_llm_c() {
        let row = MetricsRow { val_loss: Some(4.51234), hellaswag: Some(0.265), ..row(250) };
        assert_eq!(
            format(&row),
            "s:250 tel:4.5123\ns:250 eval:0.2650\ns:250 trl:4.4801 lr:0.000214 norm:0.89\n"
        );
    }

    #[test]
    fn a_skipped_step_leaves_a_line_that_llm_c_s_notebook_can_take_apart() {
        let skip = MetricsRow { action: Action::SkipLossZ, loss_z: Some(7.31), ..row(251) };
        assert!(format(&skip).ends_with("\ns:251 skip_loss_z:7.3100\n"));
        let broken = MetricsRow { action: Action::SkipNonfinite, loss: Some(-f64::NAN), ..row(252) };
        assert_eq!(format(&broken), "s:252 trl:nan lr:0.000214 norm:0.89\ns:252 skip_nonfinite:nan\n");
        // What the notebook requires: the number of words, and a float in the second.
        for line in [format(&skip), format(&broken)].concat().lines() {
            let words: Vec<_> = line.split(' ').collect();
            assert_eq!(words.len(), if words[1].starts_with("trl:") { 4 } else { 2 });
            words[1].split(':').nth(1).unwrap().parse::<f64>().unwrap();
        }
    }

    #[test]
    fn a_log_reads_back_and_what_was_written_later_wins() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(MAIN_LOG);
        let text = "s:0 tel:11.0\ns:0 trl:11.1 lr:0.1 norm:43.6\ns:1 trl:9.0\ns:1 trl:8.5 lr:0.2 \
                    norm:2.0\ns:2 skip_grad_z:6.5\ns:9 gpu:5.0\ns:3 trl:7";
        std::fs::write(&path, text).unwrap();
        let rows = read(&path).unwrap();
        assert_eq!(rows.iter().map(|row| row.step).collect::<Vec<_>>(), [0, 1, 2, 9]);
        assert_eq!((rows[0].val_loss, rows[0].grad_norm), (Some(11.0), Some(43.6)));
        assert_eq!((rows[1].loss, rows[1].learning_rate), (Some(8.5), Some(0.2)));
        assert_eq!((rows[2].action, rows[2].grad_z), (Action::SkipGradZ, Some(6.5)));
    }

    #[test]
    fn resuming_drops_the_steps_to_repeat() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = MainLogWriter::create(folder.path()).unwrap();
        (0..4).for_each(|step| log.append(&MetricsRow { val_loss: Some(4.0), ..row(step) }).unwrap());
        let path = folder.path().join(MAIN_LOG);
        let whole = std::fs::read_to_string(&path).unwrap();
        let mut log = MainLogWriter::resume(folder.path(), 2).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 4);
        (2..4).for_each(|step| log.append(&MetricsRow { val_loss: Some(4.0), ..row(step) }).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), whole);
    }

    #[test]
    fn a_fault_names_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(MAIN_LOG);
        for (text, hint) in [
            ("s:1 tel:x\n", "`tel`"),
            ("tel:1\n", "`s:`"),
            ("\n", "empty"),
            ("s:1\n", "nothing"),
            ("step 1\n", "`step`"),
        ] {
            std::fs::write(&path, format!("s:0 tel:1.0\n{text}")).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains("line 2") && error.contains(hint), "{error}");
        }
    }
}
