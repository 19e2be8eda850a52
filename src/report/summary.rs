//! The state of a run, read from its folder: progress, results, and whether its files are whole.
//!
//! Folders are read without a lock: a run may be going on in another process, and a damaged one has a row
//! too. A file that cannot be read makes the run `broken`, with the reason.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::run_data::{mark_resumes, unverified};
use super::sources::{SourceRead, sources_read};
use super::{Figures, ReportError};
use crate::experiment::{self, Experiment};
use crate::model::weights::Weights;
use crate::proof::ledger::{self, Log, NOT_FINITE, Note};
use crate::proof::lock::Lock;
use crate::proof::{Entry, LockError};
use crate::store::metrics::{self, MetricsRow};
use crate::store::sweep_folder::is_sweep;
use crate::store::{self, RunPaths, StoreError, checkpoint, run_folder};
use crate::train::run::INIT_UPDATES;
use crate::units;

/// The state of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// A process has locked the folder.
    Running,
    /// The last step is made, and its state was saved.
    Done,
    /// No process works on it; `runner resume` would go on.
    Stopped,
    /// Something in the folder is damaged or missing.
    Broken,
}

impl State {
    pub const ALL: [State; 4] = [State::Running, State::Done, State::Stopped, State::Broken];

    pub fn name(self) -> &'static str {
        match self {
            State::Running => "running",
            State::Done => "done",
            State::Stopped => "stopped",
            State::Broken => "broken",
        }
    }
}

/// A checkpoint, from its manifest.
#[derive(Clone, Debug, Serialize)]
pub struct CheckpointSummary {
    pub step: u64,
    pub bytes: u64,
    pub root: Option<String>,
    /// What is wrong with it, as far as that is found without reading the state.
    pub problem: Option<String>,
}

/// A step with an event.
#[derive(Clone, Debug, Serialize)]
pub struct Incident {
    pub step: u64,
    pub what: String,
}

/// One run.
#[derive(Clone, Debug, Serialize)]
pub struct RunSummary {
    pub name: String,
    #[serde(serialize_with = "crate::units::serialize_path")]
    pub folder: PathBuf,
    pub state: State,
    /// Why it is broken, or stopped before its end.
    pub why: Option<String>,
    /// The descriptor, or the sizes: `4x128`, layers by channels.
    pub model: String,
    pub parameters: Option<u64>,
    /// The model that training started from, and what the lock has of it; none of random weights.
    pub init: Option<String>,
    /// Optimizer steps done, and in all.
    pub step: u64,
    pub steps: Option<u64>,
    /// Training tokens of all its steps.
    #[serde(skip)]
    pub all_tokens: Option<u64>,
    pub tokens: u64,
    /// What was read of each source of a mixture.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<SourceRead>,
    /// Steps that were skipped.
    pub skipped: u64,
    /// One number for each column of the metrics.
    #[serde(flatten)]
    pub figures: Figures,
    pub best_val_loss: Option<f64>,
    /// Where the figures disagree with the ledger; none if they agree.
    pub unverified: Option<String>,
    /// State root after the last step that was hashed.
    pub root: Option<String>,
    pub numerics_id: Option<String>,
    pub device: Option<String>,
    pub checkpoints: Vec<CheckpointSummary>,
    pub incidents: Vec<Incident>,
}

/// The folders of the runs under `runs`, by name. Folders without a file of a run are skipped; of one that
/// holds `sweep.toml`, the members are runs.
///
/// # Errors
/// The folder is there and cannot be listed, or is none.
pub fn folders(runs: &Path) -> Result<Vec<PathBuf>, ReportError> {
    let unlisted = |source: io::Error| match source.kind() {
        io::ErrorKind::NotADirectory => ReportError::NoFolder { path: runs.to_owned() },
        _ => ReportError::Io { action: "list", path: runs.to_owned(), source },
    };
    let entries = match std::fs::read_dir(runs) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(unlisted)?,
    };
    let mut folders = Vec::new();
    for entry in entries {
        let entry = entry.map_err(unlisted)?;
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let paths = RunPaths::new(&entry.path());
        if is_sweep(paths.folder()) {
            folders.extend(self::folders(paths.folder())?);
        } else if paths.are_of_a_run()
            || [paths.metrics_jsonl(), paths.ledger(), paths.lock_file()].iter().any(|file| file.is_file())
        {
            folders.push(entry.path());
        }
    }
    folders.sort();
    Ok(folders)
}

/// What lies in different folders: one that links lead to too counts once, under its own path if it is there.
pub fn once<T>(mut items: Vec<T>, folder: impl Fn(&T) -> &Path) -> Vec<T> {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    // A run that is a link, or the member of a sweep that is one.
    let is_linked = |path: &Path| path.is_symlink() || path.parent().is_some_and(Path::is_symlink);
    let own: BTreeSet<PathBuf> =
        items.iter().map(&folder).filter(|path| !is_linked(path)).map(real).collect();
    let mut seen = BTreeSet::new();
    items.retain(|item| {
        let (path, place) = (folder(item), real(folder(item)));
        !(is_linked(path) && own.contains(&place)) && seen.insert(place)
    });
    items
}

impl RunSummary {
    /// Reads the run in `folder`. Never fails: what is wrong is in the summary.
    pub fn read(folder: &Path) -> RunSummary {
        let paths = RunPaths::new(folder);
        let mut faults: Vec<String> = Vec::new();
        let mut fault = |problem: String| faults.push(problem.lines().next().unwrap_or_default().to_owned());

        let experiment = match read_experiment(&paths) {
            Ok(experiment) => Some(experiment),
            Err(problem) => {
                fault(problem);
                None
            }
        };
        let running = run_folder::holder(folder).is_some();
        let RecordedRun { rows, log, entries, unverified } = RecordedRun::read(&paths, running, &mut fault);
        let lock = match Lock::read(&paths.lock_file()) {
            Ok(lock) => Some(lock),
            Err(LockError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
            Err(problem) => {
                fault(problem.to_string());
                None
            }
        };
        let checkpoints = read_checkpoints(&paths);
        if let Some(newest) = checkpoints.last()
            && let Some(problem) = &newest.problem
        {
            fault(problem.clone());
        }
        if let Some(step) = unrepeatable(folder) {
            fault(format!("a step did not repeat: both states are in `unrepeatable/{step}`"));
        }

        let steps =
            experiment.as_ref().map(|experiment| experiment.schedule.steps).filter(|steps| *steps > 0);
        let step = rows.last().map_or(0, |row| row.step + u64::from(row.action != metrics::Action::Evaluate));
        let finished = match checkpoints.last() {
            Some(newest) => {
                newest.problem.is_none() && Some(newest.step) == steps && has_ended(lock.as_ref())
            }
            // Who deletes every checkpoint means to: outputs came into the lock when the last was saved.
            None => Some(step) == steps && lock.as_ref().is_some_and(|lock| !lock.outputs.is_empty()),
        };
        let patience = experiment.as_ref().map(|experiment| experiment.guards.patience);
        let noted: Vec<&Note> = log.notes().iter().filter(|note| note.after == log.size()).collect();
        let failed = failed(&rows, &noted, patience);
        let (state, why) = match (running, faults.into_iter().next()) {
            (true, _) => (State::Running, None),
            (false, Some(problem)) => (State::Broken, Some(problem)),
            (false, None) if finished && failed.is_none() => (State::Done, None),
            (false, None) => (State::Stopped, failed),
        };
        RunSummary {
            name: paths.name(),
            folder: folder.to_owned(),
            state,
            why,
            model: experiment.as_ref().map_or_else(|| "?".to_owned(), model_name),
            parameters: experiment.as_ref().map(|experiment| Weights::of(&experiment.model).parameters()),
            init: experiment.as_ref().and_then(|experiment| lineage(experiment, lock.as_ref())),
            step,
            steps,
            all_tokens: steps.zip(experiment.as_ref()).map(|(steps, it)| it.tokens_before(steps)),
            tokens: rows.last().map_or(0, |row| row.tokens),
            sources: experiment.as_ref().map_or_else(Vec::new, |experiment| {
                sources_read(&entries, lock.as_ref(), experiment.batch.seq_len as u64)
            }),
            skipped: rows.iter().filter(|row| row.action.is_skip()).count() as u64,
            figures: Figures::of(&rows),
            best_val_loss: (rows.iter().filter_map(|row| row.val_loss))
                .filter(|loss| loss.is_finite())
                .min_by(f64::total_cmp),
            unverified,
            root: last_root(&entries, &checkpoints),
            numerics_id: lock.as_ref().map(|lock| lock.numerics_id().to_string()),
            device: lock.as_ref().and_then(|lock| lock.environment.get("device").cloned()),
            checkpoints,
            incidents: incidents(&rows),
        }
    }
}

/// `runs/base/checkpoints/step_00010000, root 1f7a…`: `model.init` and its digest in the lock; and the
/// updates that its optimizer had made, where the run goes on with it.
fn lineage(experiment: &Experiment, lock: Option<&Lock>) -> Option<String> {
    const PINNED: &str = "model.init_";
    let path = experiment.model.init.clone()?;
    let mut numerics = lock.into_iter().flat_map(|lock| &lock.numerics);
    let pinned = numerics.find_map(|(key, value)| Some(format!(", {} {value}", key.strip_prefix(PINNED)?)));
    let updates = lock.and_then(|lock| lock.numerics.get(INIT_UPDATES));
    let made = |updates: &String| if updates == "1" { "update" } else { "updates" };
    let updates = updates.map(|updates| format!(", with its optimizer after {updates} {}", made(updates)));
    Some(path + &pinned.unwrap_or_default() + &updates.unwrap_or_default())
}

/// The facts in the metrics and the ledger of a run.
struct RecordedRun {
    rows: Vec<MetricsRow>,
    log: Log,
    entries: Vec<Entry>,
    /// Where the rows disagree with the ledger.
    unverified: Option<String>,
}

impl RecordedRun {
    fn read(paths: &RunPaths, running: bool, fault: &mut dyn FnMut(String)) -> RecordedRun {
        // The lock first, which says whether the run has ended; the ledger before the rows: what a run adds
        // meanwhile are rows without an entry, which are no fault.
        let lock = Lock::read(&paths.lock_file()).ok();
        let ledger = paths.ledger().exists().then(|| ledger::read(&paths.ledger()));
        let mut rows = match metrics::read(paths.folder()) {
            Ok(rows) => rows,
            Err(problem) => {
                // A run that was just started has none yet.
                let begun = std::fs::metadata(paths.ledger()).is_ok_and(|file| file.len() > 0);
                if begun || !matches!(problem, metrics::MetricsError::Missing { .. }) {
                    fault(problem.to_string());
                }
                Vec::new()
            }
        };
        let unverified = unverified(paths, &rows, ledger.as_ref(), lock.as_ref(), running);
        let (log, entries) = match ledger {
            Some(Ok(read)) => read,
            Some(Err(problem)) => {
                fault(problem.to_string());
                Default::default()
            }
            None => Default::default(),
        };
        mark_resumes(&mut rows, &log);
        RecordedRun { rows, log, entries, unverified }
    }
}

pub(super) fn read_experiment(paths: &RunPaths) -> Result<Experiment, String> {
    let path = paths.experiment();
    if paths.lack_experiment() {
        return Err(format!("`{}` is gone: restore it from a copy of the run", path.display()));
    }
    experiment::load_recorded(&path).map(|loaded| loaded.experiment).map_err(|error| {
        let message = error.to_string();
        let first = message.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        format!("`{}`: {first}", path.display())
    })
}

pub(super) fn model_name(experiment: &Experiment) -> String {
    let model = &experiment.model;
    model.descriptor.clone().unwrap_or_else(|| format!("{}x{}", model.layers, model.channels))
}

fn read_checkpoints(paths: &RunPaths) -> Vec<CheckpointSummary> {
    let found = store::list(&paths.checkpoints()).unwrap_or_default();
    let summary = |(step, folder): (u64, PathBuf)| match checkpoint::inspect(&folder) {
        Ok(manifest) => CheckpointSummary {
            step,
            bytes: manifest.file.bytes,
            root: Some(manifest.state_root.to_string()),
            problem: None,
        },
        Err(problem) => CheckpointSummary { step, bytes: 0, root: None, problem: Some(first_line(&problem)) },
    };
    found.into_iter().map(summary).collect()
}

fn first_line(problem: &StoreError) -> String {
    problem.to_string().lines().next().unwrap_or_default().to_owned()
}

/// The folder of a step that gave other bits when it was made again.
pub(super) fn unrepeatable(folder: &Path) -> Option<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder.join("unrepeatable"))
        .ok()?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names.into_iter().next()
}

fn skips_at_the_end(rows: &[MetricsRow]) -> u64 {
    rows.iter().rev().filter(|row| row.loss.is_some()).take_while(|row| row.action.is_skip()).count() as u64
}

/// Whether a run whose last checkpoint is there wrote all that belongs to its end: its lock then has outputs.
pub(super) fn has_ended(lock: Option<&Lock>) -> bool {
    lock.is_none_or(|lock| !lock.outputs.is_empty())
}

/// Why a run stopped early, or ended with numbers that are not finite; none if nothing failed. `noted` are
/// the notes behind the last entry of the ledger; `patience` is the number of skipped steps in a row that
/// ends a run.
pub(super) fn failed(rows: &[MetricsRow], noted: &[&Note], patience: Option<u64>) -> Option<String> {
    let skips = skips_at_the_end(rows);
    if patience.is_some_and(|patience| skips >= patience) {
        let (steps, were) = (units::noun(skips, "step"), units::were(skips));
        return Some(format!("diverged: {skips} {steps} in a row {were} skipped"));
    }
    if let Some(note) = noted.iter().rev().find(|note| note.kind == NOT_FINITE) {
        return Some(format!("not finite: {}", note.text));
    }
    let trained = rows.iter().rev().find(|row| row.loss.is_some());
    if let Some(row) = trained.filter(|row| row.action == metrics::Action::SkipNonfinite) {
        return Some(format!("not finite: loss or gradient norm of step {}", row.step));
    }
    let val_loss = rows.iter().rev().find_map(|row| row.val_loss.map(|loss| (row.step, loss)));
    val_loss
        .filter(|(_, loss)| !loss.is_finite())
        .map(|(step, loss)| format!("not finite: the validation loss at step {step} is {loss}"))
}

fn last_root(entries: &[Entry], checkpoints: &[CheckpointSummary]) -> Option<String> {
    let recorded = entries.iter().rev().find_map(|entry| entry.root.map(|root| root.to_string()));
    recorded.or_else(|| checkpoints.iter().rev().find_map(|checkpoint| checkpoint.root.clone()))
}

fn incidents(rows: &[MetricsRow]) -> Vec<Incident> {
    let mut incidents = Vec::new();
    for row in rows {
        incidents.extend(row.events.iter().map(|event| Incident { step: row.step, what: event.clone() }));
        if row.action.is_skip() {
            let z = match row.action {
                metrics::Action::SkipLossZ => row.loss_z,
                metrics::Action::SkipGradZ => row.grad_z,
                _ => None,
            };
            let z = z.map_or(String::new(), |z| format!(" {z:.1}"));
            incidents.push(Incident { step: row.step, what: format!("{}{z}", row.action) });
        }
    }
    incidents
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::metrics::{Action, MetricsWriter};

    const EXPERIMENT: &str = "[model]\nlayers = 2\nheads = 2\nchannels = 32\n[data]\ncorpus = \
                              'kjv'\ntokenizer = 'byte'\n\
        [schedule]\nsteps = 10\n[guards]\npatience = 3\n";

    fn run(root: &Path, name: &str, rows: impl Fn(&mut MetricsWriter)) -> PathBuf {
        let folder = root.join(name);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("experiment.toml"), EXPERIMENT).unwrap();
        rows(&mut MetricsWriter::create(&folder).unwrap());
        folder
    }

    fn row(step: u64, action: Action) -> MetricsRow {
        MetricsRow { loss: Some(5.0 - 0.1 * step as f64), ..MetricsRow::new(step, (step + 1) * 64, action) }
    }

    #[test]
    fn a_run_that_nobody_holds_is_stopped_and_says_so_when_it_diverged() {
        let root = tempfile::tempdir().unwrap();
        run(root.path(), "b", |rows| {
            (0..4).for_each(|step| rows.append(&row(step, Action::Update)).unwrap())
        });
        run(root.path(), "a", |rows| {
            (0..4).for_each(|step| rows.append(&row(step, Action::SkipGradZ)).unwrap())
        });
        std::fs::create_dir(root.path().join("not_a_run")).unwrap();
        std::fs::create_dir(root.path().join(".del.c")).unwrap();
        let runs: Vec<RunSummary> =
            folders(root.path()).unwrap().iter().map(|folder| RunSummary::read(folder)).collect();
        let names: Vec<(&str, State)> = runs.iter().map(|run| (run.name.as_str(), run.state)).collect();
        assert_eq!(names, [("a", State::Stopped), ("b", State::Stopped)]);
        assert_eq!(runs[0].why.as_deref(), Some("diverged: 4 steps in a row were skipped"));
        assert_eq!((runs[0].incidents.len(), runs[1].incidents.len()), (4, 0));
        assert_eq!(
            (runs[1].step, runs[1].steps, runs[1].tokens, runs[1].model.as_str()),
            (4, Some(10), 256, "2x32")
        );
        assert_eq!(runs[1].figures.get("mean_loss"), Some(5.0 - 0.1 * 3.0));
        assert_eq!(runs[1].unverified.as_deref(), Some("there is no ledger"));
        assert_eq!((runs[0].skipped, runs[1].skipped), (4, 0));
    }

    #[test]
    fn a_run_that_ended_in_numbers_that_are_not_finite_is_not_done() {
        let root = tempfile::tempdir().unwrap();
        for (name, last) in [
            ("loss", row(1, Action::SkipNonfinite)),
            ("val", MetricsRow { val_loss: Some(f64::NAN), ..row(1, Action::Update) }),
        ] {
            let folder = run(root.path(), name, |rows| {
                rows.append(&row(0, Action::Update)).unwrap();
                rows.append(&last).unwrap();
            });
            let summary = RunSummary::read(&folder);
            assert_eq!(summary.state, State::Stopped);
            assert!(summary.why.is_some_and(|why| why.starts_with("not finite: ")), "{name}");
        }
    }

    #[test]
    fn a_damaged_file_makes_a_run_broken_and_is_named() {
        let root = tempfile::tempdir().unwrap();
        let folder = run(root.path(), "x", |rows| rows.append(&row(0, Action::Update)).unwrap());
        for (file, text, says) in [
            ("metrics.jsonl", "{}\n", "metrics.jsonl` line 1"),
            ("ledger.jsonl", "nonsense\n", "ledger.jsonl` line 1"),
            ("experiment.toml", &format!("{EXPERIMENT}[log]\nevry = 3\n"), "unknown key `log.evry`"),
            ("lock.toml", "no lock", "lock.toml"),
        ] {
            let before = std::fs::read(folder.join(file)).ok();
            std::fs::write(folder.join(file), text).unwrap();
            let summary = RunSummary::read(&folder);
            assert_eq!(summary.state, State::Broken, "{file}");
            assert!(summary.why.as_ref().is_some_and(|why| why.contains(says)), "{file}: {:?}", summary.why);
            match before {
                Some(bytes) => std::fs::write(folder.join(file), bytes).unwrap(),
                None => std::fs::remove_file(folder.join(file)).unwrap(),
            }
        }
        assert_eq!(RunSummary::read(&folder).state, State::Stopped);
    }

    #[test]
    fn a_folder_that_a_process_holds_is_running_and_stays_unlocked_by_looking() {
        let root = tempfile::tempdir().unwrap();
        let folder = run(root.path(), "x", |rows| rows.append(&row(0, Action::Update)).unwrap());
        let begun = format!("# x.toml, resolved: keys\n{EXPERIMENT}");
        std::fs::write(folder.join("experiment.toml"), begun).unwrap();
        std::fs::create_dir(folder.join("checkpoints")).unwrap();
        let held = store::RunFolder::open(&folder).unwrap();
        assert_eq!(RunSummary::read(&folder).state, State::Running);
        drop(held);
        assert_eq!(RunSummary::read(&folder).state, State::Stopped);
    }

    #[test]
    fn a_file_is_no_folder_of_runs_and_one_that_is_missing_has_none() {
        let root = tempfile::tempdir().unwrap();
        assert!(folders(&root.path().join("none")).unwrap().is_empty());
        let file = root.path().join("tiny.toml");
        std::fs::write(&file, "").unwrap();
        let says = folders(&file).unwrap_err().to_string();
        assert!(says.contains("tiny.toml` is not a folder"), "{says}");
    }
}
