//! The folder of a run: where everything is, and the lock that keeps a second process out.
//!
//! The lock is the operating system's, on `.lock`, and ends with the process however it ends; the process id
//! inside is only for messages. Starting over moves the whole old folder away in one rename before anything
//! new is written, so no old checkpoint can be taken for a new one.

use std::fs::{self, File, Metadata, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::checkpoint::STATE_FILE;
use super::main_log::MAIN_LOG;
use super::metrics::{JSONL, PARQUET};
use super::{Result, StoreError, atomic, contents};
use crate::experiment;
use crate::proof::regular;

/// The file that makes a folder a run.
pub(super) const EXPERIMENT: &str = "experiment.toml";
pub(super) const LOCK_FILE: &str = "lock.toml";
pub(super) const LEDGER: &str = "ledger.jsonl";
/// TensorBoard finds a file by `tfevents` in its name; the rest is fixed, not time and host.
pub(super) const TENSORBOARD: &str = "events.out.tfevents.0.runner";
pub(super) const GPU_LOG: &str = "gpu.jsonl";
pub(super) const NOTES: &str = "notes.jsonl";
pub(super) const REPORT: &str = "report.html";
/// The sums of a copy's files.
pub(super) const SUMS: &str = "SHA256SUMS";

/// Whether an argument names a place, and no run by its name: a path that begins with `.` or `..`, that goes
/// up anywhere, or that is absolute. It is not looked for in the folder of runs.
pub fn is_place(path: &Path) -> bool {
    let goes_up = path.components().any(|part| part == Component::ParentDir);
    goes_up || path.starts_with(".") || path.is_absolute()
}

/// Whether a folder is a copy of a checkpoint with a run's records up to it, or what a kill left of one: the
/// state is copied first, and stands in no run's own folder.
pub fn is_copy(folder: &Path) -> bool {
    folder.join(STATE_FILE).is_file() && folder.join(EXPERIMENT).is_file()
}

pub(super) const LOCK: &str = ".lock";

/// The files of a run. Readers (`plot`, `verify`, `diff`) take no lock and use only this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunPaths {
    folder: PathBuf,
}

impl RunPaths {
    /// The files of the run in `folder`, which need not exist.
    pub fn new(folder: &Path) -> RunPaths {
        RunPaths { folder: folder.into() }
    }

    /// The folder itself.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The run's name: that of its folder, also where that is the working folder (`.`).
    pub fn name(&self) -> String {
        let folder = std::path::absolute(&self.folder).unwrap_or_else(|_| self.folder.clone());
        folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Whether this is the folder of a run, or one that this process may not look into: then what is read
    /// first says so. A copy of a checkpoint holds a run's files too, and is none.
    pub fn are_of_a_run(&self) -> bool {
        if is_copy(&self.folder) {
            return false;
        }
        match fs::metadata(self.experiment()) {
            Ok(found) => found.is_file(),
            Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
        }
    }

    /// Whether steps or a checkpoint of a run are here, and its experiment is gone. What a kill leaves of a
    /// run that has not begun is a lock, or half of one.
    pub fn lack_experiment(&self) -> bool {
        let is_gone = matches!(self.experiment().try_exists(), Ok(false));
        // A folder of checkpoints that cannot be listed may hold some.
        let has_saved = || !super::list(&self.checkpoints()).is_ok_and(|saved| saved.is_empty());
        let has_steps = || self.ledger().exists() || self.metrics_jsonl().exists() || has_saved();
        is_gone && has_steps()
    }

    /// Whether a run has begun here, be it one whose experiment is gone.
    pub fn have_begun(&self) -> bool {
        self.are_of_a_run() || self.lack_experiment()
    }

    /// The resolved configuration.
    pub fn experiment(&self) -> PathBuf {
        self.folder.join(EXPERIMENT)
    }

    /// What the bits depend on.
    pub fn lock_file(&self) -> PathBuf {
        self.folder.join(LOCK_FILE)
    }

    pub fn ledger(&self) -> PathBuf {
        self.folder.join(LEDGER)
    }

    pub fn metrics_jsonl(&self) -> PathBuf {
        self.folder.join(JSONL)
    }

    pub fn metrics_parquet(&self) -> PathBuf {
        self.folder.join(PARQUET)
    }

    /// llm.c's line format.
    pub fn main_log(&self) -> PathBuf {
        self.folder.join(MAIN_LOG)
    }

    pub fn tensorboard(&self) -> PathBuf {
        self.folder.join(TENSORBOARD)
    }

    /// Readings of the GPU's sensors.
    pub fn gpu_log(&self) -> PathBuf {
        self.folder.join(GPU_LOG)
    }

    pub fn checkpoints(&self) -> PathBuf {
        self.folder.join("checkpoints")
    }

    /// Both states of a step that gave other bits when repeated.
    pub fn unrepeatable(&self, step: u64) -> PathBuf {
        self.folder.join("unrepeatable").join(super::checkpoint::folder_name(step))
    }

    /// What is kept of audited steps.
    pub fn audits(&self) -> PathBuf {
        self.folder.join("audit")
    }

    pub fn samples(&self) -> PathBuf {
        self.folder.join("samples")
    }

    pub fn plots(&self) -> PathBuf {
        self.folder.join("plots")
    }

    pub fn report(&self) -> PathBuf {
        self.folder.join(REPORT)
    }

    /// What a person says of the run; no part of the proof.
    pub fn notes(&self) -> PathBuf {
        self.folder.join(NOTES)
    }
}

/// A run's folder, locked for this process until dropped.
#[derive(Debug)]
pub struct RunFolder {
    pub paths: RunPaths,
    lock: File,
}

/// Tells whether the folder of a run is still where it was.
#[derive(Debug)]
pub struct Whereabouts {
    folder: PathBuf,
    /// Of the lock file that this process holds.
    inode: Option<u64>,
}

impl Whereabouts {
    /// # Errors
    /// The folder was moved, renamed or removed; another run may have its name now.
    pub fn require(&self) -> Result<()> {
        match inode(&self.folder.join(LOCK)) {
            found if found.is_some() && found == self.inode => Ok(()),
            _ if cfg!(not(unix)) => Ok(()),
            _ => Err(StoreError::Moved { path: self.folder.clone() }),
        }
    }
}

impl RunFolder {
    /// Makes the folder `root/name` for a new run and locks it.
    ///
    /// # Errors
    /// The folder holds a run and `overwrite` is false; it is not a run, or holds what this program did not
    /// write; or another process has locked it.
    pub fn create(root: &Path, name: &str, overwrite: bool) -> Result<RunFolder> {
        check_name(name)?;
        let folder = root.join(name);
        if folder.is_dir() && is_used(&folder)? {
            // Before locking, which would leave a lock file in it.
            contents::require_run(&folder)?;
        }
        fs::create_dir_all(&folder).map_err(StoreError::io(&folder, "create"))?;
        let mut lock = lock(&folder)?;
        if is_used(&folder)? {
            if !overwrite {
                return Err(StoreError::RunExists { path: folder });
            }
            // The old folder is moved away with its lock, which holds until the new folder is locked.
            let old = set_aside(&folder, contents::require_ours)?;
            lock = lock_new(&folder, &old)?;
        }
        RunFolder::with(folder, lock)
    }

    /// Like [`RunFolder::create`], and also replaces what a kill left of a run that had not begun: a lock, or
    /// half of one, and no experiment.
    pub fn create_again(root: &Path, name: &str) -> Result<RunFolder> {
        RunFolder::clear_unbegun(root, name)?;
        RunFolder::create(root, name, false)
    }

    /// Removes what a kill left of a run that had not begun.
    ///
    /// # Errors
    /// A run has begun there all the same, the folder holds what this program did not write, or another
    /// process has locked it.
    pub fn clear_unbegun(root: &Path, name: &str) -> Result<()> {
        check_name(name)?;
        let folder = root.join(name);
        let paths = RunPaths::new(&folder);
        // Where nothing is, no lock file is left.
        if !folder.is_dir() || paths.experiment().exists() || !is_used(&folder)? {
            return Ok(());
        }
        match contents::require_unbegun(&folder) {
            // Another process has begun it since.
            Err(_) if paths.experiment().exists() => return Ok(()),
            judged => judged?,
        }
        let _held = lock(&folder)?;
        // Another process may have begun it before this one had the lock.
        if !paths.experiment().exists() {
            atomic::clean(&folder, contents::is_known)?;
            atomic::remove_if_there(&paths.lock_file())?;
        }
        Ok(())
    }

    /// Checks early what [`RunFolder::create`] would refuse later: a run of this name.
    pub fn check_new(root: &Path, name: &str) -> Result<()> {
        check_name(name)?;
        let folder = root.join(name);
        if !folder.is_dir() || !is_used(&folder)? {
            return Ok(());
        }
        contents::require_run(&folder)?;
        Err(StoreError::RunExists { path: folder })
    }

    /// Checks early what [`RunFolder::create`] with `overwrite` would refuse later.
    pub fn check_overwrite(root: &Path, name: &str) -> Result<()> {
        check_name(name)?;
        let folder = root.join(name);
        if folder.is_dir() && is_used(&folder)? { contents::require_ours(&folder) } else { Ok(()) }
    }

    /// Locks the folder of an existing run, and removes unfinished files that a kill left.
    ///
    /// # Errors
    /// There is no run, another process has locked it, or a folder among its checkpoints is not one.
    pub fn open(folder: &Path) -> Result<RunFolder> {
        if !folder.is_dir() || !is_used(folder)? {
            return Err(StoreError::NoSuchRun { path: folder.into() });
        }
        contents::require_run(folder)?;
        let lock = lock(folder)?;
        let run = RunFolder::with(folder.into(), lock)?;
        own_files(folder)?;
        contents::require_checkpoints(&run.paths.checkpoints())?;
        Ok(run)
    }

    /// Removes the run in `folder`, with everything in it; `act` false only checks that it could be.
    ///
    /// # Errors
    /// The folder is not a run, holds what this program did not write, or another process has locked it.
    pub fn remove(folder: &Path, act: bool) -> Result<()> {
        remove(folder, act, contents::require_ours)
    }

    fn with(folder: PathBuf, lock: File) -> Result<RunFolder> {
        let paths = RunPaths::new(&folder);
        for part in [paths.checkpoints(), paths.samples(), paths.plots()] {
            fs::create_dir_all(&part).map_err(StoreError::io(&part, "create"))?;
        }
        atomic::clean(paths.folder(), contents::is_known)?;
        atomic::clean(&paths.checkpoints(), contents::is_checkpoint)?;
        Ok(RunFolder { paths, lock })
    }

    /// What tells later whether the folder is still here.
    pub fn whereabouts(&self) -> Whereabouts {
        let held = self.lock.metadata().ok();
        Whereabouts { inode: held.as_ref().and_then(inode_of), folder: self.paths.folder().to_owned() }
    }

    /// Deletes the folder of a run that has not begun.
    pub fn abandon(&self) -> Result<()> {
        atomic::remove_if_there(self.paths.folder())
    }
}

/// Removes a folder in which `require_ours` refuses what this program did not write; `act` false only checks.
pub(super) fn remove(folder: &Path, act: bool, require_ours: fn(&Path) -> Result<()>) -> Result<()> {
    require_ours(folder)?;
    atomic::require_removable(folder)?;
    if !act {
        return match holder(folder) {
            Some(pid) => Err(StoreError::Locked { path: folder.into(), pid: Some(pid) }),
            None => Ok(()),
        };
    }
    let held = lock(folder)?;
    let old = set_aside(folder, require_ours)?;
    atomic::remove_if_there(&old)?;
    drop(held);
    Ok(())
}

/// Makes a folder in place of `old`, which was moved away from there, locks it and deletes `old`.
pub(super) fn lock_new(folder: &Path, old: &Path) -> Result<File> {
    // Another process that wants the name may be quicker, and then has the lock.
    match fs::create_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.map_err(StoreError::io(folder, "create"))?,
    }
    let locked = lock(folder);
    atomic::remove_if_there(old)?;
    locked
}

/// Moves a folder away in one rename, if all in it is this program's; returns where it is now.
pub(super) fn set_aside(folder: &Path, require_ours: fn(&Path) -> Result<()>) -> Result<PathBuf> {
    require_ours(folder)?;
    atomic::set_aside(folder)
}

/// Makes copies of the files in a run's folder that have other names too, as `cp -al` makes them: what is
/// appended here must not grow another run's.
#[cfg(unix)]
fn own_files(folder: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    for (name, path) in contents::entries(folder, contents::is_known)? {
        let found = fs::symlink_metadata(&path).map_err(StoreError::io(&path, "examine"))?;
        if found.is_file() && found.nlink() > 1 && name != LOCK && contents::is_known(&name) {
            let bytes = fs::read(&path).map_err(StoreError::io(&path, "read"))?;
            atomic::write(&path, &bytes)?;
        }
    }
    Ok(())
}

#[cfg(not(unix))]
fn own_files(_: &Path) -> Result<()> {
    Ok(())
}

/// The run under `root` that was changed last, by the time of its ledger or else its configuration.
pub fn newest_run(root: &Path) -> Result<Option<PathBuf>> {
    let entries = match fs::read_dir(root) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries.map_err(StoreError::io(root, "list"))?,
    };
    let mut newest: Option<(SystemTime, PathBuf)> = None;
    for entry in entries {
        let entry = entry.map_err(StoreError::io(root, "list"))?;
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        let modified = worked_on(&entry.path());
        // Equal times: the later name, so that the result does not depend on the order of the folder.
        newest = newest.max(modified.filter(|_| !hidden).map(|time| (time, entry.path())));
    }
    Ok(newest.map(|(_, folder)| folder))
}

/// When the run in `folder` was changed last, if there is one.
pub(super) fn worked_on(folder: &Path) -> Option<SystemTime> {
    let paths = RunPaths::new(folder);
    let files = [paths.ledger(), paths.experiment()];
    files.iter().find_map(|file| fs::metadata(file).and_then(|m| m.modified()).ok())
}

/// The names of the runs under `root`, in order; none where it cannot be read.
pub fn run_names(root: &Path) -> Vec<String> {
    let runs = fs::read_dir(root).into_iter().flatten().flatten();
    let runs = runs.filter(|entry| RunPaths::new(&entry.path()).are_of_a_run());
    let mut names: Vec<String> = runs.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The process that has locked a run's folder, found without taking the lock, which could make a run that is
/// just starting fail. Only Linux lists its locks; elsewhere none is found.
pub fn holder(folder: &Path) -> Option<u32> {
    let path = folder.join(LOCK);
    let pid: u32 = String::from_utf8(regular::read(&path).ok()?).ok()?.trim().parse().ok()?;
    // Most runs of a list have ended, and their processes too.
    if !Path::new("/proc").join(pid.to_string()).exists() {
        return None;
    }
    let inode = inode(&path)?;
    let locks = fs::read_to_string("/proc/locks").ok()?;
    // `1: FLOCK  ADVISORY  WRITE 26025 fe:00:10133511 0 EOF`; the device's numbers differ on some file
    // systems.
    let held = locks.lines().any(|line| {
        let mut words = line.split_whitespace().skip_while(|word| *word != "WRITE").skip(1);
        let owner = words.next();
        let file = words.next().and_then(|file| file.rsplit(':').next());
        owner == Some(pid.to_string().as_str()) && file == Some(inode.to_string().as_str())
    });
    held.then_some(pid)
}

#[cfg(unix)]
fn inode_of(file: &Metadata) -> Option<u64> {
    Some(std::os::unix::fs::MetadataExt::ino(file))
}

#[cfg(not(unix))]
fn inode_of(_: &Metadata) -> Option<u64> {
    None
}

fn inode(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().as_ref().and_then(inode_of)
}

/// Whether anything is in the folder but the lock, empty folders and what a kill left half written, which a
/// run that failed before its first byte leaves.
pub(super) fn is_used(folder: &Path) -> Result<bool> {
    for entry in fs::read_dir(folder).map_err(StoreError::io(folder, "list"))? {
        let entry = entry.map_err(StoreError::io(folder, "list"))?;
        let empty_folder = fs::read_dir(entry.path()).is_ok_and(|mut content| content.next().is_none());
        let name = entry.file_name();
        let leftover = name
            .to_str()
            .and_then(atomic::leftover)
            .is_some_and(|name| contents::is_known(name) || contents::is_of_sweep(name));
        if entry.file_name() != LOCK && !empty_folder && !leftover {
            return Ok(true);
        }
    }
    Ok(false)
}

pub(super) fn lock(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK);
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(StoreError::io(&path, "open"))?;
    match try_lock_patiently(&file) {
        // The folder was replaced while this process waited, and what it locked is of no run any more.
        Ok(()) if file.metadata().ok().as_ref().and_then(inode_of) != inode(&path) => {
            Err(StoreError::Locked { path: folder.into(), pid: holder(folder) })
        }
        Ok(()) => {
            let write = file
                .set_len(0)
                .and_then(|()| file.rewind())
                .and_then(|()| writeln!(file, "{}", std::process::id()));
            write.map_err(StoreError::io(&path, "write"))?;
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // Unreadable or just being written: then the message names no process.
            let _ = file.read_to_string(&mut pid);
            Err(StoreError::Locked { path: folder.into(), pid: pid.trim().parse().ok() })
        }
        Err(TryLockError::Error(source)) => Err(StoreError::io(&path, "lock")(source)),
    }
}

/// Tries for a moment: a process that was just killed, or a child between fork and exec, may hold on for
/// some milliseconds.
fn try_lock_patiently(file: &File) -> Result<(), TryLockError> {
    for _ in 0..20 {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
            outcome => return outcome,
        }
    }
    file.try_lock()
}

pub(super) fn check_name(name: &str) -> Result<()> {
    match experiment::name_problem(name) {
        Some(why) => Err(StoreError::BadName { name: name.into(), why }),
        None => Ok(()),
    }
}

#[cfg(test)]
#[path = "run_folder_tests.rs"]
mod tests;
