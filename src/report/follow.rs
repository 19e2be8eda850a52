//! The state of a run that goes on, kept up to date by reading only the new parts of its files.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::proof::ledger::RESUME;
use crate::report::TIMED;
use crate::report::statistics::median;
use crate::report::summary::{RunSummary, State};
use crate::store::gpu_log::{self, GpuSample};
use crate::store::metrics::MetricsRow;
use crate::store::{self, RunPaths, run_folder};

/// A file that grows by lines, read from where the last read ended.
struct Tail {
    path: PathBuf,
    offset: u64,
    /// The last line before `offset`, with its newline.
    last: Vec<u8>,
}

/// The result of reading a [`Tail`].
struct Grown {
    lines: Vec<String>,
    /// Whether the file was cut, as a resume does: what was read before is then invalid.
    restarted: bool,
}

impl Tail {
    fn new(path: PathBuf) -> Tail {
        Tail { path, offset: 0, last: Vec::new() }
    }

    /// Whether what was read last does not stand where it stood: the file was cut, and may have grown since.
    fn was_cut(&self) -> bool {
        let Ok(mut file) = File::open(&self.path) else { return false };
        let mut there = vec![0; self.last.len()];
        let start = self.offset - self.last.len() as u64;
        file.seek(SeekFrom::Start(start)).and_then(|_| file.read_exact(&mut there)).is_err()
            || there != self.last
    }

    /// The whole lines since the last read. A missing file has none.
    fn read(&mut self) -> Grown {
        let restarted = self.was_cut();
        if restarted {
            (self.offset, self.last) = (0, Vec::new());
        }
        let mut bytes = Vec::new();
        let read = File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.offset))?;
            file.read_to_end(&mut bytes)
        });
        if read.is_err() {
            bytes.clear();
        }
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.offset += whole as u64;
        if let Some(last) = bytes[..whole].split_inclusive(|byte| *byte == b'\n').next_back() {
            self.last = last.to_owned();
        }
        let lines = String::from_utf8_lossy(&bytes[..whole]).lines().map(str::to_owned).collect();
        Grown { lines, restarted }
    }
}

/// The values of a step that curves need.
#[derive(Clone, Copy, Debug)]
pub struct FollowedStep {
    pub step: u64,
    pub loss: f64,
    pub tokens_per_s: Option<f64>,
    pub mfu: Option<f64>,
}

/// A run that is being watched.
pub struct Followed {
    paths: RunPaths,
    metrics: Tail,
    ledger: Tail,
    pub name: String,
    pub model: String,
    pub device: String,
    pub state: State,
    /// Why it is broken or stopped.
    pub why: Option<String>,
    /// The step of the newest checkpoint when last read.
    saved: Option<u64>,
    pub steps: Option<u64>,
    /// Training tokens of all steps.
    all_tokens: Option<u64>,
    /// Steps done.
    pub done: u64,
    pub tokens: u64,
    pub points: Vec<FollowedStep>,
    /// Steps and validation losses.
    pub val: Vec<(u64, f64)>,
    pub hellaswag: Option<(u64, f64)>,
    /// The last step that was trained.
    pub last: Option<MetricsRow>,
    /// Steps and what happened at them, oldest first.
    pub events: Vec<(u64, String)>,
    /// Entries in the ledger, and the last root in it.
    pub entries: u64,
    pub root: Option<String>,
    /// Step and text of the newest sample.
    pub sample: Option<(u64, String)>,
    pub gpu: Option<GpuSample>,
}

impl Followed {
    /// A run whose files have not been read yet.
    pub fn open(folder: &Path) -> Followed {
        let paths = RunPaths::new(folder);
        let summary = RunSummary::read(folder);
        Followed {
            metrics: Tail::new(paths.metrics_jsonl()),
            ledger: Tail::new(paths.ledger()),
            paths,
            name: summary.name,
            model: summary.model,
            device: summary.device.unwrap_or_default(),
            state: summary.state,
            why: summary.why,
            saved: summary.checkpoints.last().map(|checkpoint| checkpoint.step),
            steps: summary.steps,
            all_tokens: summary.all_tokens,
            done: 0,
            tokens: 0,
            points: Vec::new(),
            val: Vec::new(),
            hellaswag: None,
            last: None,
            events: Vec::new(),
            entries: 0,
            root: None,
            sample: None,
            gpu: None,
        }
    }

    /// Reads what is new.
    pub fn refresh(&mut self) {
        let Grown { lines, restarted } = self.metrics.read();
        if restarted {
            self.forget_from(0);
        }
        for line in lines {
            match MetricsRow::from_line(&line) {
                Ok(row) => self.take(row),
                Err(why) => self.why = Some(format!("metrics.jsonl: {why}")),
            }
        }
        let Grown { lines, restarted } = self.ledger.read();
        if restarted {
            self.entries = 0;
        }
        lines.iter().for_each(|line| self.take_entry(line));
        self.look_at_state();
        self.sample = newest_sample(&self.paths.samples()).or(self.sample.take());
        self.gpu = gpu_log::last(&self.paths.gpu_log());
    }

    fn take(&mut self, row: MetricsRow) {
        // A resumed run may have cut its file and extended it again between two reads.
        if self.points.last().is_some_and(|last| row.step <= last.step) {
            self.forget_from(row.step);
        }
        self.tokens = row.tokens;
        self.val.extend(row.val_loss.map(|loss| (row.step, loss)));
        self.hellaswag = row.hellaswag.map(|score| (row.step, score)).or(self.hellaswag);
        for event in &row.events {
            self.events.push((row.step, event.clone()));
        }
        if row.action.is_skip() {
            self.events.push((row.step, row.action.name().to_owned()));
        }
        if let Some(loss) = row.loss {
            self.done = row.step + 1;
            self.points.push(FollowedStep {
                step: row.step,
                loss,
                tokens_per_s: row.tokens_per_s,
                mfu: row.mfu,
            });
            self.last = Some(row);
        }
    }

    /// Drops `step` and later ones.
    fn forget_from(&mut self, step: u64) {
        self.points.retain(|point| point.step < step);
        self.val.retain(|(at, _)| *at < step);
        self.events.retain(|(at, _)| *at < step);
        self.hellaswag = self.hellaswag.filter(|(at, _)| *at < step);
    }

    fn take_entry(&mut self, line: &str) {
        let Ok(value) = serde_json::from_str::<serde_json::Value>(line) else { return };
        if let Some(entry) = value.get("entry") {
            self.entries += 1;
            if let Some(root) = entry["root"].as_str() {
                self.root = Some(root.to_owned());
            }
        } else if let Some(note) = value.get("note") {
            let (kind, text) =
                (note["kind"].as_str().unwrap_or_default(), note["text"].as_str().unwrap_or_default());
            let what = if kind == RESUME { kind.to_owned() } else { format!("{kind}: {text}") };
            let noted = (note["after"].as_u64().unwrap_or(0), what);
            // A file that was cut is read again, and rows of older programs record a resume too.
            if !self.events.contains(&noted) {
                self.events.push(noted);
                self.events.sort_by_key(|(step, _)| *step);
            }
        }
    }

    fn look_at_state(&mut self) {
        let saved =
            store::list(&self.paths.checkpoints()).ok().and_then(|found| found.last().map(|(step, _)| *step));
        if run_folder::holder(self.paths.folder()).is_some() {
            self.state = State::Running;
        } else if self.state == State::Running || saved != self.saved {
            // It has ended, or was resumed unnoticed: read everything once, for the state and its reason.
            let summary = RunSummary::read(self.paths.folder());
            (self.state, self.why) = (summary.state, summary.why);
        }
        self.saved = saved;
    }

    /// Tokens a second and MFU, the medians of the last steps, as `runner show` has them.
    pub fn speed(&self) -> (Option<f64>, Option<f64>) {
        let last = || self.points.iter().rev();
        let speed = median(last().filter_map(|point| point.tokens_per_s).take(TIMED));
        (speed, median(last().filter_map(|point| point.mfu).take(TIMED)))
    }

    /// Seconds to the last step at the pace of the last steps.
    pub fn seconds_left(&self) -> Option<f64> {
        let all_tokens = self.all_tokens.filter(|_| self.state == State::Running)?;
        let speed = self.speed().0.filter(|speed| *speed > 0.0)?;
        Some(all_tokens.saturating_sub(self.tokens) as f64 / speed)
    }
}

/// The text that the model wrote last, and after which step.
fn newest_sample(folder: &Path) -> Option<(u64, String)> {
    let files = std::fs::read_dir(folder).ok()?.flatten();
    let step = |name: &str| name.strip_prefix("step_")?.strip_suffix(".txt")?.parse::<u64>().ok();
    let (step, path) =
        files.filter_map(|file| Some((step(file.file_name().to_str()?)?, file.path()))).max()?;
    Some((step, String::from_utf8_lossy(&std::fs::read(path).ok()?).trim_end().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proof::Ledger;
    use crate::store::metrics::{Action, MetricsWriter};

    fn row(step: u64) -> MetricsRow {
        let val_loss = step.is_multiple_of(2).then_some(3.0);
        MetricsRow {
            loss: Some(4.0),
            val_loss,
            tokens_per_s: Some(100.0),
            ..MetricsRow::new(step, 64 * (step + 1), Action::Update)
        }
    }

    #[test]
    fn rows_are_taken_as_they_come_and_a_resume_takes_some_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = MetricsWriter::create(folder.path()).unwrap();
        (0..3).for_each(|step| writer.append(&row(step)).unwrap());
        let mut followed = Followed::open(folder.path());
        followed.refresh();
        assert_eq!(
            (followed.points.len(), followed.val.len(), followed.done, followed.tokens),
            (3, 2, 3, 192)
        );
        (3..9).for_each(|step| writer.append(&row(step)).unwrap());
        followed.refresh();
        assert_eq!((followed.points.len(), followed.done), (9, 9));
        followed.points[8].tokens_per_s = Some(900.0);
        assert_eq!(followed.speed(), (Some(100.0), None), "the median, and not the last");

        // Cut and extended past its old end, between two reads.
        let mut writer = MetricsWriter::resume(folder.path(), 4).unwrap();
        writer.append(&row(4)).unwrap();
        Ledger::open(&folder.path().join("ledger.jsonl")).unwrap().note(RESUME, "at step 4").unwrap();
        followed.refresh();
        assert_eq!((followed.points.len(), followed.done), (5, 5), "a shorter file is read anew");
        assert_eq!(followed.events, [(0, "resume".to_owned())], "the ledger has no entry yet");
        let steps: Vec<u64> = followed.points.iter().map(|point| point.step).collect();
        assert_eq!(steps, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_line_that_is_being_written_waits_for_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, "one\ntw").unwrap();
        let mut tail = Tail::new(path.clone());
        assert_eq!(tail.read().lines, ["one"]);
        std::fs::write(&path, "one\ntwo\nthree\n").unwrap();
        assert_eq!(tail.read().lines, ["two", "three"]);
        std::fs::write(&path, "x\n").unwrap();
        let grown = tail.read();
        assert!(grown.restarted && grown.lines == ["x"]);
        // Cut, and longer than before at the next look.
        std::fs::write(&path, "y\nz\n").unwrap();
        let grown = tail.read();
        assert!(grown.restarted && grown.lines == ["y", "z"], "{:?}", grown.lines);
    }

    #[test]
    fn the_newest_sample_is_shown() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(newest_sample(folder.path()), None);
        for (name, text) in
            [("step_00000500.txt", "old"), ("step_00001000.txt", "new\n"), ("notes.txt", "no")]
        {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        assert_eq!(newest_sample(folder.path()), Some((1000, "new".to_owned())));
    }
}
