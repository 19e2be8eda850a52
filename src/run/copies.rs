//! Copies of a run's checkpoints in another place: made by a thread while training goes on, and a run that
//! is brought back from there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;

use super::messages::{LongWork, Message, Report};
use super::{ProofRefusal, UsageError, parent, require_usage};
use crate::experiment::{self, CopyPlace, Experiment, HAS_BUCKETS, Loaded};
use crate::parallel::launch;
use crate::proof::Ledger;
use crate::store::atomic::NewFolder;
use crate::store::checkpoint::{self, STATE_FILE};
use crate::store::copies::Copies;
use crate::store::run_folder::is_copy;
use crate::store::sweep_folder::is_sweep;
use crate::store::{self, RunFolder, RunPaths, StoreError};
use crate::train::{Event, Listener, RunError};

/// How often a process that waits looks.
const LOOK: Duration = Duration::from_millis(100);
/// How long ranks wait for rank 0 to bring a run back.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Copies the checkpoints of a run. Dropped, it waits until all are copied, or cannot be.
pub struct Copier {
    news: Option<Sender<u64>>,
    thread: Option<JoinHandle<()>>,
    state: Arc<CopierState>,
    report: Report,
}

/// What the thread and its owner share.
#[derive(Default)]
struct CopierState {
    /// Whether no more checkpoints come.
    ending: AtomicBool,
    /// Bytes that are to be copied, and that are.
    bytes: AtomicU64,
    done_bytes: AtomicU64,
}

impl Copier {
    /// Starts copying the checkpoints in a run's folder, if its experiment wants that: those that are not
    /// copied yet, and those that come.
    pub fn start(experiment: &Experiment, folder: &Path, report: Report) -> anyhow::Result<Option<Copier>> {
        let Some(place) = place(experiment)? else { return Ok(None) };
        let paths = RunPaths::new(folder);
        let copies = Copies::open(&place, &name(&paths))?;
        let (news, heard) = mpsc::channel();
        let state = Arc::<CopierState>::default();
        let work =
            CopyWork { copies, paths, copied: BTreeSet::new(), known: false, state: state.clone(), report };
        let thread = thread::Builder::new().name("copies".into()).spawn(move || work.run(&heard));
        let thread = Some(thread.context("cannot start a thread to copy checkpoints")?);
        Ok(Some(Copier { news: Some(news), thread, state, report }))
    }

    /// What tells the thread of each checkpoint.
    pub fn listener(&self) -> Option<Box<dyn Listener>> {
        self.news.clone().map(|news| Box::new(News(news)) as Box<dyn Listener>)
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        self.state.ending.store(true, Ordering::SeqCst);
        drop(self.news.take());
        let Some(thread) = self.thread.take() else { return };
        let mut shown = None;
        while !thread.is_finished() {
            thread::sleep(LOOK);
            let [bytes, done] =
                [&self.state.bytes, &self.state.done_bytes].map(|count| count.load(Ordering::Relaxed));
            if bytes > done && shown.is_none() {
                shown = Some((self.report.progress(LongWork::Copying, bytes - done), done));
            }
            if let Some((show, before)) = &mut shown {
                show(done.saturating_sub(*before));
                *before = done;
            }
        }
        let _ = thread.join();
    }
}

/// Passes on which checkpoints are whole.
struct News(Sender<u64>);

impl Listener for News {
    fn on(&mut self, event: &Event) -> Result<(), RunError> {
        if let Event::CheckpointSaved { step, .. } = event {
            // The thread lives longer than training.
            let _ = self.0.send(*step);
        }
        Ok(())
    }
}

/// The thread's own.
struct CopyWork {
    copies: Copies,
    paths: RunPaths,
    /// The steps of copies that are known to be right.
    copied: BTreeSet<u64>,
    /// Whether the place was found to hold no other run's copies.
    known: bool,
    state: Arc<CopierState>,
    report: Report,
}

impl CopyWork {
    fn run(mut self, heard: &Receiver<u64>) {
        // Of a resumed run, what an earlier process could not copy.
        let mut wanted = BTreeSet::new();
        let mut was_said = false;
        loop {
            let failed = self.copy(&mut wanted).err();
            let is_last = self.state.ending.load(Ordering::SeqCst);
            if let Some(why) = failed.as_ref().filter(|_| !was_said && !is_last) {
                self.report.tell(&Message::CopyFailed { place: &self.copies.address(), why });
            }
            was_said = failed.is_some();
            let Ok(step) = heard.recv() else {
                // What came while the last ones were copied is looked for once more.
                let failed = if is_last { failed } else { self.copy(&mut wanted).err() };
                return self.conclude(&wanted, failed);
            };
            wanted.insert(step);
            wanted.extend(heard.try_iter());
        }
    }

    /// Copies what is not copied, oldest first; `wanted` keeps what is not.
    fn copy(&mut self, wanted: &mut BTreeSet<u64>) -> store::Result<()> {
        let here: BTreeMap<u64, PathBuf> = store::list(&self.paths.checkpoints())?.into_iter().collect();
        wanted.extend(here.keys().filter(|step| !self.copied.contains(step)));
        // A step that was saved again, after training went back, is another one.
        self.copied.retain(|step| !wanted.contains(step));
        if wanted.is_empty() && self.known {
            return Ok(());
        }
        let there = self.copies.steps()?;
        if !self.known {
            self.copies.require_of(&self.paths, &there)?;
            self.known = true;
        }
        for step in there.into_iter().filter(|step| here.contains_key(step)) {
            let own = checkpoint::inspect(&here[&step]).ok().filter(|_| wanted.contains(&step));
            if own.is_some_and(|own| self.copies.manifest(step).is_ok_and(|copy| copy == own)) {
                wanted.remove(&step);
                self.copied.insert(step);
            }
        }
        let sizes = wanted.iter().filter_map(|step| fs::metadata(here.get(step)?.join(STATE_FILE)).ok());
        self.state.done_bytes.store(0, Ordering::Relaxed);
        self.state.bytes.store(sizes.map(|file| file.len()).sum(), Ordering::Relaxed);
        let count = |bytes: u64| {
            self.state.done_bytes.fetch_add(bytes, Ordering::Relaxed);
        };
        let mut failed = None;
        for step in wanted.clone().into_iter().filter(|step| here.contains_key(step)) {
            match self.copies.save(&self.paths, step, &count) {
                Ok(()) => {
                    wanted.remove(&step);
                    self.copied.insert(step);
                }
                // Deleted or replaced meanwhile.
                Err(StoreError::Missing { .. } | StoreError::NotOnLedger { .. }) => {}
                Err(why) if is_of_the_place(&why) => return Err(why),
                // The others may be whole.
                Err(why) => failed = failed.or(Some(why)),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Lists what is not copied.
    fn conclude(&self, wanted: &BTreeSet<u64>, failed: Option<StoreError>) {
        let is_here = |step: &&u64| self.paths.checkpoints().join(checkpoint::folder_name(**step)).is_dir();
        let (left, gone): (Vec<&u64>, Vec<&u64>) = wanted.iter().partition(is_here);
        let place = self.copies.address();
        if !gone.is_empty() {
            let steps = gone.iter().map(|step| step.to_string()).collect::<Vec<_>>().join(", ");
            let what = "not copied, because they were deleted here before: the checkpoints of steps";
            self.report.tell(&Message::Remark(&format!("{what} {steps} (to `{place}`)")));
        }
        if let Some(why) = failed {
            let left: Vec<u64> = left.into_iter().copied().collect();
            self.report.tell(&Message::NotCopied {
                place: &place,
                steps: &left,
                why: &why,
                run: &self.paths,
                name: &name(&self.paths),
            });
        }
    }
}

/// Whether nothing else could be read or written either.
fn is_of_the_place(why: &StoreError) -> bool {
    matches!(why, StoreError::Object { .. } | StoreError::Io { .. } | StoreError::DiskFull { .. })
}

/// Where an experiment's checkpoints are copied.
///
/// # Errors
/// To a bucket, of which this program knows nothing.
pub fn place(experiment: &Experiment) -> Result<Option<CopyPlace>, UsageError> {
    let Some(text) = &experiment.checkpoint.copy_to else { return Ok(None) };
    let place = CopyPlace::parse(text).map_err(|why| UsageError(format!("`checkpoint.copy_to` {why}")))?;
    require_usage(HAS_BUCKETS || !matches!(place, CopyPlace::Bucket(_)), || {
        let missing = StoreError::NoBuckets { url: place.to_string() };
        format!("`checkpoint.copy_to`: {missing}, and `--set checkpoint.copy_to=` copies nothing")
    })?;
    Ok(Some(place))
}

/// Refuses copies that would lie in the folder `run` of their run itself.
pub fn require_elsewhere(experiment: &Experiment, run: &Path) -> Result<(), UsageError> {
    let Some(CopyPlace::Folder(folder)) = place(experiment)? else { return Ok(()) };
    // Neither needs to be there yet.
    let real = |path: &Path| {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let found = path.ancestors().find_map(|above| Some((above, above.canonicalize().ok()?)));
        found.map_or(path.clone(), |(above, real)| match path.strip_prefix(above) {
            Ok(rest) if !rest.as_os_str().is_empty() => real.join(rest),
            _ => real,
        })
    };
    let copies = real(&folder.join(name(&RunPaths::new(run))));
    require_usage(!copies.starts_with(real(run)), || {
        format!(
            "`checkpoint.copy_to` is `{}`: copies would lie in the run's own folder, `{}`\n  hint: name a \
             place that does not go with it, on another disk",
            folder.display(),
            copies.display()
        )
    })
}

/// The name of a run among copies: of a member of a sweep with the sweep's.
fn name(paths: &RunPaths) -> String {
    let sweep = paths.folder().parent().filter(|above| is_sweep(above));
    match sweep {
        Some(sweep) => format!("{}/{}", RunPaths::new(sweep).name(), paths.name()),
        None => paths.name(),
    }
}

/// The copies that an argument names, if it names some: a URL, or a folder with copies in it.
pub fn named(run: &Path) -> Option<String> {
    let text = run.to_str()?;
    (CopyPlace::is_url(text) || has_copies(run)).then(|| text.to_owned())
}

fn has_copies(folder: &Path) -> bool {
    !RunPaths::new(folder).are_of_a_run()
        && store::list(folder).is_ok_and(|found| found.iter().any(|(_, folder)| is_copy(folder)))
}

/// Whether a folder holds copies of the members of a sweep.
pub fn are_of_a_sweep(folder: &Path) -> bool {
    let inside = fs::read_dir(folder).into_iter().flatten().flatten();
    inside.into_iter().any(|entry| has_copies(&entry.path()))
}

/// Brings the run of an address back into a folder of `runs`: its newest copy that is whole and undamaged.
/// Returns the run's folder, also where it is there already and no copy is ahead of it.
///
/// # Errors
/// There is no whole copy, all are damaged, or the folder holds something else.
pub fn fetch(address: &str, runs: &Path, report: Report) -> anyhow::Result<PathBuf> {
    let absolute = |place| match place {
        CopyPlace::Folder(path) => std::path::absolute(path).map(CopyPlace::Folder),
        bucket => Ok(bucket),
    };
    let place =
        absolute(CopyPlace::parse(address).map_err(|why| UsageError(format!("a run's copies: {why}")))?)?;
    let named = place.split_name().filter(|(_, name)| experiment::name_problem(name).is_none());
    let (above, name) = named
        .ok_or_else(|| UsageError(format!("`{place}` does not end with the name of a run: `PLACE/NAME`")))?;
    let folder = runs.join(&name);
    let var = |name: &str| std::env::var(name).ok();
    let rank = launch::place(&var, &runs.join(parent::FOLDER))?.map_or(0, |place| place.rank);
    let is_there = if rank > 0 {
        is_brought(&folder)
    } else {
        bring(&Copies::open(&above, &name)?, &folder, None, report)?
    };
    require_usage(is_there, || {
        format!(
            "there is no whole copy of a run in `{place}`\n  hint: a run's copies are in the folder or \
             bucket of its `checkpoint.copy_to`, below the name of its folder"
        )
    })?;
    Ok(folder)
}

/// Waits for a run that another rank brings: the parent of ranks has, of those that a launcher started rank 0
/// does.
fn is_brought(folder: &Path) -> bool {
    (0..PATIENCE.as_millis() / LOOK.as_millis()).any(|_| {
        let is_there = RunPaths::new(folder).are_of_a_run();
        is_there || {
            thread::sleep(LOOK);
            false
        }
    })
}

/// Brings the run of a folder, which is not there, back from where its experiment copies to; whether there is
/// a whole copy.
///
/// # Errors
/// As [`fetch`]; the copies are of a run with other bits.
pub fn fetch_own(loaded: &Loaded, folder: &Path, report: Report) -> anyhow::Result<bool> {
    let Some(place) = place(&loaded.experiment)? else { return Ok(false) };
    bring(&Copies::open(&place, &name(&RunPaths::new(folder)))?, folder, Some(loaded), report)
}

/// Refuses a copy with other bits than are asked for.
fn require_asked(copy: &RunPaths, asked: &Loaded, place: &str) -> anyhow::Result<()> {
    let experiment = experiment::load_recorded(&copy.experiment())?.experiment;
    experiment::other_bits(&experiment, asked).map_or(Ok(()), |(key, has, is)| {
        Err(UsageError(format!(
            "`{place}` holds copies of a run with `{key}` = {has}, and {is} is asked for\n  hint: another \
             `--name` begins a run of its own; `runner resume {place}` brings that one back"
        ))
        .into())
    })
}

/// Makes a run's folder of its newest copy that is whole and undamaged; whether there is a whole one. Where
/// an experiment is `asked` for, the run must have its bits.
fn bring(copies: &Copies, folder: &Path, asked: Option<&Loaded>, report: Report) -> anyhow::Result<bool> {
    let steps = copies.steps()?;
    let Some(&newest) = steps.last() else { return Ok(false) };
    // A kill may have left a folder in which nothing had begun: it is replaced.
    let runs = folder.parent().unwrap_or(Path::new("."));
    if RunFolder::check_new(runs, &RunPaths::new(folder).name()).is_err() {
        return require_same(copies, newest, &RunPaths::new(folder)).map(|()| true);
    }
    let mut damaged = Vec::new();
    for step in steps.into_iter().rev() {
        let new = NewFolder::create(folder)?;
        let bytes = copies.manifest(step).map_or(0, |manifest| manifest.file.bytes);
        let progress = report.progress(LongWork::Copying, bytes);
        match copies.restore(step, &RunPaths::new(new.path()), &|bytes| progress(bytes)) {
            Ok(()) => {
                let address = copies.address();
                asked.map_or(Ok(()), |asked| require_asked(&RunPaths::new(new.path()), asked, &address))?;
                new.commit()?;
                report.tell(&Message::Fetched { from: &address, step, folder });
                return Ok(true);
            }
            Err(why) if is_of_the_place(&why) => return Err(why.into()),
            Err(why) => {
                report.tell(&Message::CheckpointPassedOver { step, why: &why });
                damaged.push(step.to_string());
            }
        }
    }
    Err(ProofRefusal(format!(
        "no copy in `{}` is undamaged, of steps {}",
        copies.address(),
        damaged.join(", ")
    ))
    .into())
}

/// Refuses a folder that is not of the same run, or behind its newest copy.
fn require_same(copies: &Copies, newest: u64, paths: &RunPaths) -> anyhow::Result<()> {
    let manifest = copies.manifest(newest)?;
    let is_of_it = Ledger::require(&paths.ledger(), Some(&manifest.ledger)).is_ok();
    let saved = store::list(&paths.checkpoints()).unwrap_or_default();
    let is_there = saved.iter().any(|(step, folder)| *step >= newest && checkpoint::inspect(folder).is_ok());
    Ok(require_usage(is_of_it && is_there, || {
        format!(
            "`{}` is there, and is not the run of `{}` at step {newest} or later\n  hint: name another \
             folder with `--runs`, or move this one away; `runner resume` with its name goes on with it",
            paths.folder().display(),
            copies.address()
        )
    })?)
}
