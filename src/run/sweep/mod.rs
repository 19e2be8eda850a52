//! A sweep from its folder to its lock.
//!
//! The folder holds the declaration as it was resolved, and everything begins from that: a sweep that goes on
//! trains what it began with, whatever has become of the experiment's file. Members train in child processes
//! of this program, so that one that fails or diverges does not stop the others. [`found`] looks at what is
//! there of each, [`children`] starts what is missing, [`places`] divides the machine.

mod children;
mod found;
mod places;

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::Context;

use self::children::{MemberProcess, Starter};
use self::found::FoundMember;
use super::copies::{self, Copier};
use super::destination::Existing;
use super::error::{ProofRefusal, UsageError, require_usage};
use super::initial;
use super::messages::{Message, Report};
use super::stop;
use crate::experiment::{self, Member, Sweep};
use crate::proof::lock::Table;
use crate::proof::{Hash, SweepLock};
use crate::store::{self, MemberFolder, RunPaths, SweepFolder, SweepPaths, sweep_folder};

pub use found::{require_declared, require_no_drift, row};

/// How often the processes of members are looked at.
const LOOK: Duration = Duration::from_millis(20);

/// How members are trained.
pub struct ChildOptions {
    /// Members that train at the same time; at least 1.
    pub jobs: usize,
    /// Processes that share a member, as `--ranks` asks.
    pub ranks: Option<usize>,
    /// Whether members report events as JSON.
    pub json: bool,
}

/// The end of a member's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberEnd {
    Finished,
    /// Stopped on request; a checkpoint was saved.
    Stopped,
    /// Its exit code, none where a signal ended it, and why.
    Failed {
        code: Option<i32>,
        why: String,
    },
}

/// What happens in a sweep.
pub enum SweepEvent<'a> {
    /// The folder is there.
    Opened {
        folder: &'a Path,
        members: usize,
    },
    /// A member was finished before, and its files agree.
    Verified(&'a MemberFolder),
    /// A member's process has started.
    Began {
        member: &'a MemberFolder,
        resumed: bool,
    },
    /// An event of a member's run, as a line of JSON.
    Said {
        number: usize,
        line: &'a str,
    },
    Ended {
        member: &'a MemberFolder,
        end: &'a MemberEnd,
        seconds: f64,
    },
}

/// Receives the events of a sweep.
pub type OnSweepEvent<'a> = &'a mut dyn FnMut(&SweepEvent<'_>);

/// The end of a sweep.
pub struct SweepOutcome {
    pub paths: SweepPaths,
    /// Its hash, when all members are finished.
    pub hash: Option<Hash>,
    /// Members that have failed, and how.
    pub failed: Vec<(MemberFolder, MemberEnd)>,
    /// Members that are neither finished nor failed: the sweep was stopped.
    pub left: usize,
    /// Whether all was done before.
    pub nothing_to_do: bool,
}

/// Begins a sweep in the folder `name` of `runs`, or goes on with the one there as `existing` says.
///
/// # Errors
/// There is something else of this name; files cannot be written; a process cannot be started.
pub fn start(
    sweep: &Sweep,
    (runs, name): (&Path, &str),
    existing: Existing,
    options: &ChildOptions,
    report: Report,
    on: OnSweepEvent<'_>,
) -> anyhow::Result<SweepOutcome> {
    // Refused before anything is written.
    divide(sweep, options.jobs)?;
    if !(existing == Existing::Resume && sweep_folder::is_sweep(&runs.join(name))) {
        places::require_device(sweep.members.iter().map(|member| &member.loaded.experiment))?;
    }
    let folder = begin(sweep, (runs, name), existing, report)?;
    let recorded = recorded(&folder.paths, Some(sweep))?;
    if existing == Existing::Resume {
        bring_back(&folder.paths, &recorded, report)?;
    }
    train(&folder.paths, &recorded, options, report, on)
}

/// Brings members that are not there back from their copies.
fn bring_back(paths: &SweepPaths, sweep: &Sweep, report: Report) -> anyhow::Result<()> {
    for (folder, member) in sweep_folder::members(paths.folder())?.iter().zip(&sweep.members) {
        if !RunPaths::new(&folder.folder).experiment().exists() {
            copies::fetch_own(&member.loaded, &folder.folder, report)?;
        }
    }
    Ok(())
}

/// Goes on with the sweep in `folder`.
///
/// # Errors
/// Those of [`start`]; a variable of the environment sets a key, which changes no sweep.
pub fn resume(
    folder: &Path,
    options: &ChildOptions,
    report: Report,
    on: OnSweepEvent<'_>,
) -> anyhow::Result<SweepOutcome> {
    let set = experiment::setting_variables();
    require_usage(set.is_empty(), || {
        format!(
            "`{}` sets a key, and a sweep goes on as it was declared\n  hint: unset it, or resume one member \
             with it: `runner resume NAME/001`",
            set.join("`, `")
        )
    })?;
    let folder = SweepFolder::open(folder)?;
    let recorded = recorded(&folder.paths, None)?;
    train(&folder.paths, &recorded, options, report, on)
}

/// The folder of one member of a sweep, and its experiment; the sweep's folder is made first where it is not
/// there. The sweep itself is not locked: any number of processes may train members of it.
///
/// # Errors
/// There is no such member, or the folder holds another sweep.
pub fn member(
    sweep: &Sweep,
    (runs, name): (&Path, &str),
    number: usize,
    report: Report,
) -> anyhow::Result<(SweepPaths, MemberFolder, Member)> {
    let count = sweep.members.len();
    require_usage((1..=count).contains(&number), || {
        format!("there is no member {number}: the sweep has {count}, counted from 1")
    })?;
    let paths = SweepPaths::new(&runs.join(name));
    if !sweep_folder::is_sweep(paths.folder()) {
        match begin(sweep, (runs, name), Existing::Refuse, report) {
            // Another process was quicker.
            Err(error) if !sweep_folder::is_sweep(paths.folder()) => return Err(error),
            _ => {}
        }
    }
    let mut recorded = recorded(&paths, Some(sweep))?;
    let folder = sweep_folder::members(paths.folder())?.swap_remove(number - 1);
    Ok((paths, folder, recorded.members.swap_remove(number - 1)))
}

fn begin(
    sweep: &Sweep,
    (runs, name): (&Path, &str),
    existing: Existing,
    report: Report,
) -> anyhow::Result<SweepFolder> {
    let folder = runs.join(name);
    if existing == Existing::Resume && sweep_folder::is_sweep(&folder) {
        return Ok(SweepFolder::open(&folder)?);
    }
    sweep.require_recordable()?;
    initial::require_members(sweep, report)?;
    if existing == Existing::Replace {
        // A state that many members start from is read once.
        let mut seen = BTreeSet::new();
        let experiments = sweep.members.iter().map(|member| &member.loaded.experiment);
        let mut starts = experiments
            .filter(|experiment| seen.insert((&experiment.model.init, experiment.optimizer.from_init)));
        starts.try_for_each(|experiment| initial::require_kept(experiment, &folder))?;
    }
    Ok(SweepFolder::create(runs, name, existing == Existing::Replace, &sweep.to_toml())?)
}

/// The GPUs of each of `jobs` processes.
fn divide(sweep: &Sweep, jobs: usize) -> anyhow::Result<Vec<Option<String>>> {
    places::places(sweep.members.iter().map(|member| &member.loaded.experiment), jobs)
}

/// The declaration in a sweep's folder, which must have the members of `asked`.
fn recorded(paths: &SweepPaths, asked: Option<&Sweep>) -> anyhow::Result<Sweep> {
    let recorded = experiment::load_recorded_sweep(&paths.declaration())?;
    let Some(asked) = asked else { return Ok(recorded) };
    let Some(number) = recorded.first_difference(asked) else { return Ok(recorded) };
    let members = (recorded.members.get(number - 1)).zip(asked.members.get(number - 1));
    let how = members.map_or_else(
        || format!("it has {} members, not {}", recorded.members.len(), asked.members.len()),
        |(held, asked)| {
            let keys = experiment::differences(&held.loaded.experiment, &asked.loaded.experiment);
            let keys: Vec<String> =
                keys.into_iter().map(|(key, was, is)| format!("`{key}` = {was}, not {is}")).collect();
            match keys.as_slice() {
                // What differs is how the same experiment is said.
                [] => format!("its member {number} is declared by other settings"),
                keys => format!("its member {number} has {}", keys.join(", ")),
            }
        },
    );
    Err(UsageError(format!(
        "`{}` holds another sweep than `{}`: {how}\n  hint: `runner resume` goes on with what is there, \
         `--name` begins another, `--overwrite` deletes it",
        paths.folder().display(),
        asked.path.display(),
    ))
    .into())
}

/// Trains what is missing, and writes the lock when nothing is.
fn train(
    paths: &SweepPaths,
    sweep: &Sweep,
    options: &ChildOptions,
    report: Report,
    on: OnSweepEvent<'_>,
) -> anyhow::Result<SweepOutcome> {
    // Counted before anything starts, so that no signal falls between.
    let requests = Arc::new(AtomicUsize::new(0));
    let count = requests.clone();
    stop::on_requests(move || {
        count.fetch_add(1, Ordering::SeqCst);
    })?;
    let folders = sweep_folder::members(paths.folder())?;
    on(&SweepEvent::Opened { folder: paths.folder(), members: folders.len() });
    let mut training = Training { folders, rows: Vec::new(), failed: Vec::new(), queue: VecDeque::new() };
    for (at, declared) in sweep.members.iter().enumerate() {
        let folder = &training.folders[at];
        let found = found::find(folder, declared, report);
        match &found {
            FoundMember::Finished(_) => {
                on(&SweepEvent::Verified(folder));
                // What could not be copied when it ended may be now; dropped, it waits for that.
                drop(Copier::start(&declared.loaded.experiment, &folder.folder, report)?);
            }
            FoundMember::Missing => training.queue.push_back((at, false)),
            FoundMember::Begun => training.queue.push_back((at, true)),
            FoundMember::Refused(why) => {
                let end = MemberEnd::Failed { code: None, why: why.clone() };
                on(&SweepEvent::Ended { member: folder, end: &end, seconds: 0.0 });
                training.failed.push((at, end));
            }
        }
        training.rows.push(if let FoundMember::Finished(row) = found { Some(row) } else { None });
    }
    let nothing_to_do = training.queue.is_empty() && training.failed.is_empty();
    let places = divide(sweep, options.jobs.min(training.queue.len()).max(1))?;
    let (said, heard) = mpsc::channel();
    let program = std::env::current_exe().context("cannot find this program to start members")?;
    let starter = Starter { program, paths, options, places: &places, said };
    training.run(sweep, &starter, &heard, &requests, report, on)?;
    training.outcome(paths, nothing_to_do)
}

/// The members of a sweep while they are trained.
struct Training {
    folders: Vec<MemberFolder>,
    /// The rows of finished members in the sweep's lock.
    rows: Vec<Option<Table>>,
    /// By their places in the list of members, as in the queue.
    failed: Vec<(usize, MemberEnd)>,
    /// What is left to start, and whether it was begun before.
    queue: VecDeque<(usize, bool)>,
}

impl Training {
    /// Starts what is queued, as many as there are places, and waits for all.
    fn run(
        &mut self,
        sweep: &Sweep,
        starter: &Starter<'_>,
        heard: &mpsc::Receiver<(usize, String)>,
        requests: &AtomicUsize,
        report: Report,
        on: OnSweepEvent<'_>,
    ) -> anyhow::Result<()> {
        let mut running: Vec<MemberProcess> = Vec::new();
        let mut passed_on = 0;
        loop {
            let asked = requests.load(Ordering::SeqCst);
            if asked > 1 {
                // A second request: what runs is killed with this list.
                return Ok(());
            }
            if asked > passed_on {
                running.iter_mut().for_each(MemberProcess::ask_to_stop);
                passed_on = asked;
            }
            let free = (0..starter.places.len()).find(|place| running.iter().all(|one| one.place != *place));
            if let (Some(place), 0) = (free, asked)
                && let Some((at, begun)) = self.queue.pop_front()
            {
                // Somebody may have trained it by itself since the sweep began.
                if !begun
                    && let FoundMember::Finished(row) =
                        found::find(&self.folders[at], &sweep.members[at], report)
                {
                    self.rows[at] = Some(row);
                    let (member, end) = (&self.folders[at], &MemberEnd::Finished);
                    on(&SweepEvent::Ended { member, end, seconds: 0.0 });
                    continue;
                }
                on(&SweepEvent::Began { member: &self.folders[at], resumed: begun });
                running.push(starter.start(at, &self.folders[at], begun, place)?);
                continue;
            }
            let done = running.is_empty();
            if !done {
                std::thread::sleep(LOOK);
            }
            let ended = self.look(&mut running, asked > 0, report)?;
            // What a member said before its end is passed on before its end is.
            for (number, line) in heard.try_iter() {
                on(&SweepEvent::Said { number, line: &line });
            }
            for (at, mut end, seconds) in ended {
                if end == MemberEnd::Finished {
                    match row(&self.folders[at]) {
                        Ok(row) => self.rows[at] = Some(row),
                        Err(why) => end = MemberEnd::Failed { code: Some(0), why: format!("{why:#}") },
                    }
                }
                on(&SweepEvent::Ended { member: &self.folders[at], end: &end, seconds });
                if matches!(end, MemberEnd::Failed { .. }) {
                    self.failed.push((at, end));
                }
            }
            if done {
                return Ok(());
            }
        }
    }

    /// Takes the processes that have ended from the list.
    fn look(
        &self,
        running: &mut Vec<MemberProcess>,
        asked: bool,
        report: Report,
    ) -> anyhow::Result<Vec<(usize, MemberEnd, f64)>> {
        let mut ended = Vec::new();
        let mut still = Vec::new();
        for mut process in running.drain(..) {
            match process.ended(asked)? {
                Some(end) => {
                    if let Some(what) = process.not_copied() {
                        let name = &self.folders[process.member].name;
                        report.tell(&Message::Remark(&format!("{name}: {what}")));
                    }
                    ended.push((process.member, end, process.began.elapsed().as_secs_f64()));
                }
                None => still.push(process),
            }
        }
        *running = still;
        Ok(ended)
    }

    /// Writes the lock where every member is finished, and holds it to the one that is there.
    fn outcome(mut self, paths: &SweepPaths, nothing_to_do: bool) -> anyhow::Result<SweepOutcome> {
        self.failed.sort_by_key(|(at, _)| *at);
        let failed: Vec<_> =
            self.failed.into_iter().map(|(at, end)| (self.folders[at].clone(), end)).collect();
        let finished = self.rows.iter().flatten().count();
        let left = self.folders.len() - finished - failed.len();
        let rows: Option<Vec<Table>> = self.rows.into_iter().collect();
        let hash = rows.map(|members| keep_lock(&paths.lock_file(), &SweepLock { members })).transpose()?;
        Ok(SweepOutcome { paths: paths.clone(), hash, failed, left, nothing_to_do })
    }
}

/// Writes a sweep's lock; its hash.
///
/// # Errors
/// There is one with another hash, or it is damaged.
fn keep_lock(path: &Path, lock: &SweepLock) -> anyhow::Result<Hash> {
    let hash = lock.hash();
    if path.exists() {
        let kept = SweepLock::read(path).map_err(|error| ProofRefusal(error.to_string()))?;
        if kept.hash() != hash {
            return Err(ProofRefusal(format!(
                "the members of this sweep give {hash}, and `{}` says {}\n  hint: a member was changed after \
                 the sweep was locked; `runner verify` says which",
                path.display(),
                kept.hash()
            ))
            .into());
        }
    } else {
        store::atomic::write(path, lock.to_text().as_bytes())?;
    }
    Ok(hash)
}
