//! The folder of a sweep: `sweep.toml`, which makes a folder a sweep, and a run folder for each member.
//!
//! `sweep.toml` is the sweep as it was resolved when it began: the keys that its members share, and under
//! `[sweep.zip]` a list for each swept key, with a value for each member. Members are numbered from 1 in the
//! order of the lists; the folder of member 1 of 24 is `001`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::run_folder::{
    self, RunFolder, RunPaths, check_name, holder, is_used, lock, lock_new, set_aside, worked_on,
};
use super::{Result, StoreError, atomic, contents};
use crate::proof::regular;

/// Bytes of the longest `sweep.toml` that is read: of some hundred thousand members.
const LONGEST: u64 = 64 << 20;
/// Digits of a member's number, at least.
const DIGITS: usize = 3;

/// The files of a sweep. Readers take no lock and use only this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SweepPaths {
    folder: PathBuf,
}

/// A member of a sweep: its number from 1, its settings and the folder of its run, which need not exist yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberFolder {
    pub number: usize,
    /// The name of its folder: the number with leading zeros.
    pub name: String,
    /// The swept keys, in the order in which the sweep was written, each with its value as TOML.
    pub settings: Vec<(String, String)>,
    pub folder: PathBuf,
}

impl SweepPaths {
    /// The files of the sweep in `folder`, which need not exist.
    pub fn new(folder: &Path) -> SweepPaths {
        SweepPaths { folder: folder.into() }
    }

    /// The folder itself.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The name of the folder.
    pub fn name(&self) -> String {
        RunPaths::new(&self.folder).name()
    }

    /// The sweep as it was resolved.
    pub fn declaration(&self) -> PathBuf {
        self.folder.join(contents::SWEEP)
    }

    /// What came out of all members.
    pub fn lock_file(&self) -> PathBuf {
        self.folder.join("sweep.lock")
    }

    /// What members write to stderr.
    pub fn logs(&self) -> PathBuf {
        self.folder.join("logs")
    }

    /// What a member writes to stderr.
    pub fn log(&self, member: &str) -> PathBuf {
        self.logs().join(format!("{member}.log"))
    }
}

/// A sweep's folder, locked for this process until dropped.
#[derive(Debug)]
pub struct SweepFolder {
    pub paths: SweepPaths,
    _lock: File,
}

impl SweepFolder {
    /// Makes the folder `root/name` for a new sweep, locks it and writes its declaration. What a kill left of
    /// a sweep that had no declaration yet is no sweep.
    ///
    /// # Errors
    /// The folder holds a sweep and `overwrite` is false; it holds something else, or what this program did
    /// not write; or another process has locked it or one of its members.
    pub fn create(root: &Path, name: &str, overwrite: bool, declaration: &str) -> Result<SweepFolder> {
        check_name(name)?;
        let folder = root.join(name);
        if folder.is_dir() && is_used(&folder)? {
            // Before locking, which would leave a lock file in it.
            require_sweep(&folder)?;
        }
        fs::create_dir_all(&folder).map_err(StoreError::io(&folder, "create"))?;
        let mut held = lock(&folder)?;
        if is_used(&folder)? {
            require_sweep(&folder)?;
            if !overwrite {
                return Err(StoreError::SweepExists { path: folder });
            }
            // The old folder is moved away with its lock, which holds until the new folder is locked.
            let old = set_aside(&folder, require_ours)?;
            held = lock_new(&folder, &old)?;
        }
        let sweep = SweepFolder::with(&folder, held)?;
        atomic::write(&sweep.paths.declaration(), declaration.as_bytes())?;
        Ok(sweep)
    }

    /// Locks the folder of an existing sweep, and removes unfinished files that a kill left.
    ///
    /// # Errors
    /// There is no sweep, or another process has locked it.
    pub fn open(folder: &Path) -> Result<SweepFolder> {
        if !is_sweep(folder) {
            return Err(StoreError::NoSuchSweep { path: folder.into() });
        }
        require_sweep(folder)?;
        SweepFolder::with(folder, lock(folder)?)
    }

    /// Removes the sweep in `folder` with its runs; `act` false only checks that it could be.
    ///
    /// # Errors
    /// The folder is not a sweep, holds what this program did not write, or a process works on it or a
    /// member.
    pub fn remove(folder: &Path, act: bool) -> Result<()> {
        if !is_sweep(folder) {
            return Err(StoreError::NoSuchSweep { path: folder.into() });
        }
        require_sweep(folder)?;
        run_folder::remove(folder, act, require_ours)
    }

    /// Removes the run of a member; `act` false only checks that it could be.
    ///
    /// # Errors
    /// As [`RunFolder::remove`], or a process works on the sweep.
    pub fn remove_member(sweep: &Path, member: &Path, act: bool) -> Result<()> {
        let held = match (act, holder(sweep)) {
            (true, _) => Some(lock(sweep)?),
            (false, None) => None,
            (false, pid) => return Err(StoreError::Locked { path: sweep.into(), pid }),
        };
        RunFolder::remove(member, act)?;
        drop(held);
        Ok(())
    }

    fn with(folder: &Path, lock: File) -> Result<SweepFolder> {
        let paths = SweepPaths::new(folder);
        fs::create_dir_all(paths.logs()).map_err(StoreError::io(&paths.logs(), "create"))?;
        atomic::clean(folder, contents::is_of_sweep)?;
        Ok(SweepFolder { paths, _lock: lock })
    }
}

/// Refuses a folder that is not a sweep's: a run, or something else.
fn require_sweep(folder: &Path) -> Result<()> {
    match contents::require_run(folder) {
        Ok(()) => Err(StoreError::RunExists { path: folder.into() }),
        Err(StoreError::SweepExists { .. }) => Ok(()),
        Err(other) => Err(other),
    }
}

/// Refuses a sweep that holds something that this program did not write, or a member that is in use.
fn require_ours(folder: &Path) -> Result<()> {
    let mut foreign = Vec::new();
    // Of a declaration that cannot be read any number may be a member's.
    let declared = members(folder).map_or(usize::MAX, |members| members.len());
    for (name, path) in contents::entries(folder, contents::is_of_sweep)? {
        let foreign_in = |is_known: fn(&str) -> bool| -> Result<Vec<String>> {
            let inside = contents::entries(&path, |_| false)?.into_iter().map(|(file, _)| file);
            Ok(inside.filter(|file| !is_known(file)).map(|file| format!("{name}/{file}")).collect())
        };
        match (name.as_str(), path.is_dir()) {
            (contents::SWEEP, false) if !contents::is_resolved(&path) => foreign.push(name),
            (name, false) if contents::is_of_sweep(name) => {}
            ("logs", true) => {
                foreign.extend(foreign_in(|file| file.strip_suffix(".log").is_some_and(is_number))?);
            }
            ("plots", true) => {
                foreign.extend(foreign_in(|file| ["sweep.png", "sweep.svg"].contains(&file))?);
            }
            (number, true) if is_number(number) && is_one_of(number, declared) => {
                if let Some(pid) = holder(&path) {
                    return Err(StoreError::Locked { path, pid: Some(pid) });
                }
                if is_used(&path)? {
                    contents::require_ours(&path)?;
                }
            }
            _ => foreign.push(name),
        }
    }
    match foreign.is_empty() {
        true => Ok(()),
        false => Err(StoreError::Foreign { path: folder.into(), names: contents::listed(&foreign) }),
    }
}

/// Folders with the number of a member beyond the `declared`.
///
/// # Errors
/// The folder cannot be listed.
pub fn undeclared(folder: &Path, declared: usize) -> Result<Vec<String>> {
    let entries = contents::entries(folder, contents::is_of_sweep)?.into_iter();
    let beyond =
        entries.filter(|(name, path)| path.is_dir() && is_number(name) && !is_one_of(name, declared));
    Ok(beyond.map(|(name, _)| name).collect())
}

/// Whether a number is that of one of so many members.
fn is_one_of(number: &str, declared: usize) -> bool {
    number.parse().is_ok_and(|number: usize| (1..=declared).contains(&number))
}

/// Whether a name is the number of a member.
fn is_number(name: &str) -> bool {
    name.len() >= DIGITS && name.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether a folder is a sweep's.
pub fn is_sweep(folder: &Path) -> bool {
    SweepPaths::new(folder).declaration().is_file()
}

/// The sweep under `root` that was worked on last, if no run beside it was worked on later.
pub fn newest_sweep(root: &Path) -> Option<PathBuf> {
    let inside =
        |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let time = |folder: &PathBuf| match is_sweep(folder) {
        true => inside(folder).filter_map(|member| worked_on(&member)).max(),
        false => worked_on(folder),
    };
    let hidden =
        |folder: &PathBuf| folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
    let folders = inside(root).filter(|folder| !hidden(folder));
    let newest = folders.filter_map(|folder| Some((time(&folder)?, folder))).max()?.1;
    is_sweep(&newest).then_some(newest)
}

/// The name of the folder of a member's run, in a sweep of `count` members.
pub fn member_name(number: usize, count: usize) -> String {
    let digits = count.to_string().len().max(DIGITS);
    format!("{number:0digits$}")
}

/// The members of the sweep in `folder`, by number. Reads `sweep.toml` alone, and no run.
///
/// # Errors
/// `sweep.toml` cannot be read, or is not as this program writes it.
pub fn members(folder: &Path) -> Result<Vec<MemberFolder>> {
    let path = SweepPaths::new(folder).declaration();
    let bytes = regular::read_within(&path, LONGEST).map_err(StoreError::io(&path, "read"))?;
    let damaged = |why: String| StoreError::BadSweep { path: path.clone(), why };
    let text = std::str::from_utf8(&bytes).map_err(|_| damaged("it is not UTF-8".into()))?;
    let columns = columns(text).map_err(damaged)?;
    let count = columns.first().map_or(0, |(_, values)| values.len());
    if count == 0 || columns.iter().any(|(_, values)| values.len() != count) {
        return Err(damaged("`[sweep.zip]` needs lists of one length".into()));
    }
    let member = |at: usize| {
        let name = member_name(at + 1, count);
        let settings = columns.iter().map(|(key, values)| (key.clone(), values[at].clone())).collect();
        MemberFolder { number: at + 1, folder: folder.join(&name), name, settings }
    };
    Ok((0..count).map(member).collect())
}

/// The lists under `[sweep.zip]` in the order of the text, their values as they are written.
fn columns(text: &str) -> Result<Vec<(String, Vec<String>)>, String> {
    let table = DeTable::parse(text).map_err(|error| error.message().to_owned())?;
    let sweep = table.get_ref().get("sweep").map(|sweep| sweep.get_ref());
    let zip = sweep.and_then(|sweep| sweep.get("zip")).map(|zip| zip.get_ref());
    let Some(DeValue::Table(zip)) = zip else { return Err("it has no `[sweep.zip]`".into()) };
    let mut lists: Vec<_> = zip.iter().collect();
    lists.sort_by_key(|(key, _)| key.span().start);
    let list = |(key, value): (&toml::Spanned<toml::de::DeString<'_>>, &toml::Spanned<DeValue<'_>>)| {
        let values =
            value.get_ref().as_array().ok_or_else(|| format!("`{}` is not a list", key.get_ref()))?;
        let values = values.iter().map(|value| text[value.span()].to_owned()).collect();
        Ok((key.get_ref().to_string(), values))
    };
    lists.into_iter().map(list).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# lr.toml, resolved: keys\nname = \"lr\"\n[sweep.zip] # 2 members\n\
                        \"schedule.learning_rate\" = [0.001, 3e-4]\n\
                        \"data.train\" = [[\"a\", \"b\"], [\"c]\"]]\nseed = [0, 1]\n";

    #[test]
    fn members_have_numbers_settings_in_the_order_written_and_folders() {
        let root = tempfile::tempdir().unwrap();
        assert!(!is_sweep(root.path()));
        std::fs::write(root.path().join("sweep.toml"), TEXT).unwrap();
        assert!(is_sweep(root.path()));
        let members = members(root.path()).unwrap();
        assert_eq!(members.len(), 2);
        assert_eq!((members[1].number, members[1].name.as_str()), (2, "002"));
        assert_eq!(members[1].folder, root.path().join("002"));
        let settings = [("schedule.learning_rate", "3e-4"), ("data.train", "[\"c]\"]"), ("seed", "1")];
        assert_eq!(members[1].settings, settings.map(|(key, value)| (key.to_owned(), value.to_owned())));
        assert_eq!((member_name(7, 24), member_name(7, 12_345)), ("007".into(), "00007".into()));
    }

    #[test]
    fn a_sweep_is_begun_once_and_started_over_only_when_asked() {
        let root = tempfile::tempdir().unwrap();
        // What a kill leaves before the declaration is there.
        fs::create_dir_all(root.path().join("lr/logs")).unwrap();
        fs::write(root.path().join("lr/.tmp.sweep.toml"), "half").unwrap();
        let create = |overwrite| SweepFolder::create(root.path(), "lr", overwrite, TEXT);
        let first = create(false).unwrap();
        assert!(matches!(create(true), Err(StoreError::Locked { .. })));
        assert!(matches!(SweepFolder::open(first.paths.folder()), Err(StoreError::Locked { .. })));
        drop(first);
        assert!(matches!(create(false), Err(StoreError::SweepExists { .. })));
        let run = super::super::RunFolder::create(root.path(), "lr", true);
        assert!(
            matches!(run, Err(StoreError::SweepExists { .. })),
            "a run does not replace a sweep: {run:?}"
        );
        let member = super::super::RunFolder::create(&root.path().join("lr"), "001", false).unwrap();
        fs::write(member.paths.experiment(), "").unwrap();
        assert!(matches!(create(true), Err(StoreError::Locked { .. })), "a member is in use");
        drop(member);
        for mine in ["notes.txt", "logs/mine.txt", "001/mine.txt"] {
            fs::write(root.path().join("lr").join(mine), "").unwrap();
            let error = create(true).unwrap_err().to_string();
            assert!(error.contains(mine.rsplit('/').next().unwrap()), "{error}");
            fs::remove_file(root.path().join("lr").join(mine)).unwrap();
        }
        let again = create(true).unwrap();
        assert!(!root.path().join("lr/001").exists());
        let sweep = root.path().join("lr");
        let member = super::super::RunFolder::create(&sweep, "001", false).unwrap();
        let folder = member.paths.folder().to_owned();
        drop(member);
        let removed = SweepFolder::remove_member(&sweep, &folder, true);
        assert!(matches!(removed, Err(StoreError::Locked { .. })), "the sweep trains: {removed:?}");
        drop(again);
        assert!(folder.is_dir());
        SweepFolder::remove(&root.path().join("lr"), false).unwrap();
        assert!(root.path().join("lr/sweep.toml").exists());
        SweepFolder::remove(&root.path().join("lr"), true).unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
        fs::create_dir(root.path().join("other")).unwrap();
        fs::write(root.path().join("other/experiment.toml"), "").unwrap();
        let run = SweepFolder::create(root.path(), "other", true, TEXT);
        assert!(matches!(run, Err(StoreError::NotARun { .. })), "a file alone is neither: {run:?}");
        fs::write(root.path().join("other/lock.toml"), "").unwrap();
        fs::write(root.path().join("other/ledger.jsonl"), "").unwrap();
        let run = SweepFolder::create(root.path(), "other", true, TEXT);
        assert!(matches!(run, Err(StoreError::RunExists { .. })), "a sweep does not replace a run");
    }

    #[test]
    fn a_damaged_declaration_is_named() {
        let root = tempfile::tempdir().unwrap();
        assert!(matches!(members(root.path()), Err(StoreError::Io { .. })));
        for (bad, why) in [
            (TEXT.replace("[0, 1]", "[0]"), "one length"),
            (TEXT.replace("[0, 1]", "1"), "`seed` is not a list"),
            (TEXT.replace("zip", "grid"), "no `[sweep.zip]`"),
            (TEXT.replace("[sweep", "[[sweep"), "unclosed"),
        ] {
            std::fs::write(root.path().join("sweep.toml"), &bad).unwrap();
            let error = members(root.path()).unwrap_err().to_string();
            assert!(error.contains("sweep.toml") && error.contains(why), "{error}");
        }
    }
}
