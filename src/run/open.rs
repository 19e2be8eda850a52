//! The first step of a run: every check that can be made before anything is allocated or written.

use std::path::{Path, PathBuf};

use super::branches::Branch;
use super::copies::{self, Copier};
use super::data::Data;
use super::destination::Destination;
pub use super::destination::Existing;
use super::device::Device;
use super::expected::Expected;
use super::find::{self, passed_over};
use super::initial::{self, Initial};
use super::messages::{Message, Report};
use super::past_ledger::{self, PastLedger};
use super::resume::{self, Resume};
use super::team::Team;
use super::{UsageError, require_usage};
use crate::experiment::{Experiment, Loaded};
use crate::parallel::RankPlace;
use crate::proof::Hash;
use crate::store::contents::{self, beside_checkpoints};
use crate::store::{self, Manifest, RunFolder, RunPaths, StoreError, newest_whole, output};

/// A run that can be trained, or one that is finished.
pub enum Opened {
    /// The device is open.
    Ready { device: Device, job: Box<Job> },
    /// A run whose last step is done, as its files show.
    Finished { root: Hash, step: u64, first_rank: bool, copier: Option<Copier> },
}

/// The parts of an opened run that do not depend on the device.
pub struct Job {
    /// As loaded, with the actual number of ranks: plans are for one rank's part.
    pub experiment: Experiment,
    pub loaded: Loaded,
    pub data: Data,
    /// The model that training starts from, if the weights are not random.
    pub initial: Option<Initial>,
    pub destination: Destination,
    /// A lock that the run must match.
    pub expected: Option<Expected>,
    pub resume: Option<Resume>,
    pub team: Team,
    pub report: Report,
}

/// The request for a new run.
pub struct RunRequest {
    /// The folder of the run is `name` in `runs`.
    pub runs: PathBuf,
    pub name: String,
    pub existing: Existing,
    /// The lock that the run must match.
    pub lock: Option<PathBuf>,
}

/// The request to resume a run.
pub struct Continuation {
    /// Whether the experiment may have other keys than the run's own.
    pub edited: bool,
    pub allow_drift: bool,
    /// Whether the command that began the run goes on with it: once it has ended, that has nothing to do.
    pub started_again: bool,
    /// The lock that the run must match.
    pub expected: Option<Expected>,
}

impl Opened {
    /// Opens a run from its first step.
    ///
    /// # Errors
    /// Data, model, device or lock cannot be opened, or there is a run of this name.
    pub fn start(
        mut loaded: Loaded,
        request: RunRequest,
        place: Option<&RankPlace>,
        report: Report,
    ) -> anyhow::Result<Opened> {
        copies::require_elsewhere(&loaded.experiment, &request.runs.join(&request.name))?;
        let mut team = Team::join(place, &loaded.experiment, report)?;
        let RunRequest { runs, name, existing, lock } = request;
        let path = runs.join(&name);
        let expected = lock.as_deref().map(|lock| Expected::read(lock, &loaded.path)).transpose()?;
        // Rank 0 checks for all, because it creates the folder soon.
        let mut is_run = RunPaths::new(&path).experiment().exists();
        if existing == Existing::Resume && team.is_first() && !is_run {
            is_run = copies::fetch_own(&loaded, &path, report)?;
        }
        if existing == Existing::Resume && team.agree("whether there is a run", is_run)? {
            let how = Continuation { edited: true, allow_drift: false, started_again: true, expected };
            return Opened::go_on(team, &path, loaded, how, report);
        }
        match existing {
            Existing::Refuse if team.is_first() => {
                // What a kill left of a run that had not begun is in nobody's way.
                RunFolder::clear_unbegun(&runs, &name)?;
                RunFolder::check_new(&runs, &name)?;
            }
            Existing::Replace if team.is_first() => {
                initial::require_kept(&loaded.experiment, &path)?;
                RunFolder::check_overwrite(&runs, &name)?;
                for branch in Branch::all(&runs)?.iter().filter(|branch| branch.starts_in(&path)) {
                    let (name, init) = (&branch.name, branch.init.display());
                    report
                        .tell(&Message::Remark(&format!("`{name}` starts from `{init}`, which is deleted")));
                }
            }
            _ => {}
        }
        if team.is_first() {
            output::require_folder(&runs.join(&name))?;
        }
        let data = Data::open(&mut loaded)?;
        let initial = initial::read(&loaded.experiment, None, false)?;
        if let Some(remark) = initial.as_ref().and_then(Initial::remark).filter(|_| team.is_first()) {
            report.tell(&Message::Remark(remark));
        }
        let device = team.open_device(&loaded.experiment)?;
        loaded.remarks.extend(device.fewer_threads(&loaded.experiment));
        initial.iter().try_for_each(|initial| initial.place(&mut loaded, &data, report))?;
        let destination = match team.is_first() {
            true => Destination::New { runs, name, existing },
            false => Destination::OfRankZero,
        };
        let resume = None;
        let experiment = with_ranks(&loaded, &team);
        let job = Job { experiment, loaded, data, initial, destination, expected, resume, team, report };
        Ok(Opened::Ready { device, job: Box::new(job) })
    }

    /// Opens the run at `path`, to go on from its newest whole checkpoint.
    ///
    /// # Errors
    /// There is no run, another process has locked it, or data, model or device cannot be opened.
    pub fn resume(
        mut loaded: Loaded,
        path: &Path,
        mut how: Continuation,
        place: Option<&RankPlace>,
        report: Report,
    ) -> anyhow::Result<Opened> {
        copies::require_elsewhere(&loaded.experiment, path)?;
        let paths = RunPaths::new(path);
        how.edited |= resume::note_edits(&mut loaded, &paths);
        if how.edited {
            resume::keep_origins(&mut loaded, &paths);
        }
        Opened::go_on(Team::join(place, &loaded.experiment, report)?, path, loaded, how, report)
    }

    fn go_on(
        mut team: Team,
        path: &Path,
        mut loaded: Loaded,
        how: Continuation,
        report: Report,
    ) -> anyhow::Result<Opened> {
        resume::keep_offset(&mut loaded, &RunPaths::new(path));
        // Data turn epochs into steps, and are needed for nothing else while it is not known what is left.
        let data = loaded.epochs.is_some().then(|| Data::open(&mut loaded)).transpose()?;
        let root = match team.is_first() {
            true => {
                let expected = how.expected.as_ref();
                resume::finished(&RunPaths::new(path), &loaded, expected, how.started_again, report)?
            }
            false => None,
        };
        let first_rank = team.is_first();
        if let Some(root) = team.finished(root)? {
            let step = loaded.experiment.schedule.steps;
            if first_rank {
                report.tell(&Message::NothingToDo { folder: path, steps: step });
            }
            // What could not be copied when it ended may be now.
            let copier = first_rank.then(|| Copier::start(&loaded.experiment, path, report));
            let copier = copier.transpose()?.flatten();
            return Ok(Opened::Finished { root, step, first_rank, copier });
        }
        let (destination, found, ledger) = if team.is_first() {
            let folder = RunFolder::open(path)?;
            for path in beside_checkpoints(&folder.paths.checkpoints())? {
                report.tell(&Message::NotACheckpoint(&path));
            }
            let (found, broken) = newest_whole(&folder.paths.checkpoints())?;
            passed_over(&broken, report);
            require_replaceable(&folder.paths, found.as_ref().map_or(0, |it| it.0.step), &loaded)?;
            let ledger = PastLedger::read(&folder.paths, found.as_ref().map(|(manifest, _)| manifest));
            match &found {
                Some((manifest, _)) => {
                    require_name(manifest, &loaded)?;
                    find::require_root(&folder.paths, manifest, report)?;
                    if let Some(ledger) = &ledger {
                        ledger.require_events(&folder.paths, manifest)?;
                    }
                }
                None => resume::require_not_done(&folder.paths, &broken)?,
            }
            let saved = found.as_ref().map(|(manifest, _)| manifest.step);
            resume::require_lock(&folder.paths, saved, loaded.experiment.schedule.steps, how.allow_drift)?;
            (Destination::Open(folder), found, ledger)
        } else {
            (Destination::OfRankZero, None, None)
        };
        let data = data.map_or_else(|| Data::open(&mut loaded), Ok)?;
        let past = team.past(found.as_ref().map(|(manifest, _)| &manifest.numerics))?;
        let initial = initial::read(&loaded.experiment, past.as_ref(), past.is_some())?;
        let device = team.open_device(&loaded.experiment)?;
        loaded.remarks.extend(device.fewer_threads(&loaded.experiment));
        if team.is_first() {
            let from = found.as_ref().map(|(manifest, _)| manifest.step);
            let made = past_ledger::steps_made(&RunPaths::new(path));
            report.tell(&Message::Resuming { folder: path, from, made });
        }
        let Continuation { edited, allow_drift, expected, .. } = how;
        let resume = Some(Resume { found, ledger, allow_drift, edited });
        let experiment = with_ranks(&loaded, &team);
        let job = Job { experiment, loaded, data, initial, destination, expected, resume, team, report };
        Ok(Opened::Ready { device, job: Box::new(job) })
    }
}

/// Refuses folders of checkpoints behind that of step `from` which the run would delete or never reach: with
/// something in them that this program did not write, or of a step beyond its last.
fn require_replaceable(paths: &RunPaths, from: u64, loaded: &Loaded) -> anyhow::Result<()> {
    let steps = loaded.experiment.schedule.steps;
    for (step, path) in store::list(&paths.checkpoints())?.into_iter().filter(|(step, _)| *step > from) {
        let found = match contents::foreign_in_checkpoint(&path)?.first() {
            Some(foreign) => format!("it is not whole, and holds `{foreign}`, which runner did not write"),
            None if step > steps && from <= steps => {
                format!("it is not whole, and of a step beyond the run's last, {steps}")
            }
            None => continue,
        };
        return Err(StoreError::NotACheckpoint { path, found }.into());
    }
    Ok(())
}

/// A run keeps its experiment's name, which every checkpoint has.
fn require_name(manifest: &Manifest, loaded: &Loaded) -> Result<(), UsageError> {
    let (was, is) = (&manifest.experiment, &loaded.experiment.name);
    require_usage(was == is, || {
        format!(
            "this run is of the experiment `{was}`, not of `{is}`\n  hint: leave `name` as it is, or start \
             another run; the folder of a run may be renamed"
        )
    })
}

fn with_ranks(loaded: &Loaded, team: &Team) -> Experiment {
    let mut experiment = loaded.experiment.clone();
    experiment.parallel.ranks = team.size();
    experiment
}
