//! Files and folders that appear whole or not at all.
//!
//! New content is written beside its target under a temporary name, synchronised, and renamed over
//! it; then the folder is synchronised, so that after a power cut there is the old content or the
//! new. Folders are deleted by renaming them first: a kill in the middle leaves nothing that looks
//! whole. What a kill does leave is found by its name and removed by [`clean`] at the next start.
//!
//! One writer for each folder is assumed; the run folder's lock ensures it. Nothing here knows what is in
//! the files.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use tempfile::NamedTempFile;

use super::{Result, StoreError, mounts};

/// Being written.
const TEMPORARY: &str = ".tmp.";
/// A folder that is being replaced, until its successor stands.
const REPLACED: &str = ".old.";
/// Being deleted.
const DELETED: &str = ".del.";

/// Writes a whole file, or leaves what was there.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, bytes.len() as u64, |file| file.write_all(bytes))
}

/// [`write()`] for content that is streamed; `need_bytes` is its length, for the message of a full disk.
pub fn write_with(
    path: &Path,
    need_bytes: u64,
    content: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<()> {
    let temporary = beside(path, TEMPORARY);
    let stream =
        || File::create(&temporary).and_then(|mut file| content(&mut file).and_then(|()| file.sync_all()));
    let written = stream()
        .map_err(StoreError::write(path, need_bytes))
        .and_then(|()| fs::rename(&temporary, path).map_err(StoreError::io(path, "rename into place")));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
        return written;
    }
    sync_folder(parent(path))
}

/// The temporary path at which the content of `target` is being written.
pub fn temporary(target: &Path) -> PathBuf {
    beside(target, TEMPORARY)
}

/// A folder being written. Dropped without [`NewFolder::commit`], it is removed again.
#[derive(Debug)]
pub struct NewFolder {
    target: PathBuf,
    temporary: PathBuf,
    committed: bool,
}

impl NewFolder {
    /// Starts a folder that [`NewFolder::commit`] renames to `target`; what a kill left of an earlier attempt
    /// is removed.
    pub fn create(target: &Path) -> Result<NewFolder> {
        let temporary = temporary(target);
        remove_if_there(&temporary)?;
        fs::create_dir_all(&temporary).map_err(StoreError::write(&temporary, 0))?;
        Ok(NewFolder { target: target.into(), temporary, committed: false })
    }

    /// [`NewFolder::create`] where other processes may be making the same folder, or have files of their own.
    pub fn create_alone(target: &Path) -> Result<NewFolder> {
        let mut name = temporary(target).into_os_string();
        name.push(format!(".{}", std::process::id()));
        let temporary = PathBuf::from(name);
        fs::create_dir_all(parent(target)).map_err(StoreError::write(parent(target), 0))?;
        fs::create_dir(&temporary).map_err(StoreError::write(&temporary, 0))?;
        Ok(NewFolder { target: target.into(), temporary, committed: false })
    }

    /// Where to write the files. Each must be synchronised by its writer before the commit.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Renames the folder to its target, replacing a folder that is there.
    pub fn commit(mut self) -> Result<()> {
        let folder = parent(&self.target);
        sync_folder(&self.temporary)?;
        let replaced = beside(&self.target, REPLACED);
        remove_if_there(&replaced)?;
        if self.target.exists() {
            fs::rename(&self.target, &replaced).map_err(StoreError::io(&self.target, "move aside"))?;
        }
        if let Err(error) = fs::rename(&self.temporary, &self.target) {
            // What stood there stands there again, where that can be done.
            let _ = fs::rename(&replaced, &self.target);
            return Err(StoreError::io(&self.target, "rename into place")(error));
        }
        self.committed = true;
        sync_folder(folder)?;
        remove_if_there(&replaced)
    }

    /// [`NewFolder::commit`] that replaces nothing: false where something stands, and nothing of it stays.
    pub fn commit_new(mut self) -> Result<bool> {
        sync_folder(&self.temporary)?;
        let renamed = match renameat_with(CWD, &self.temporary, CWD, &self.target, RenameFlags::NOREPLACE) {
            // Not every file system has it; none renames a folder over one that holds anything.
            Err(Errno::INVAL | Errno::NOSYS) => fs::rename(&self.temporary, &self.target),
            renamed => renamed.map_err(io::Error::from),
        };
        use io::ErrorKind::{AlreadyExists, DirectoryNotEmpty, NotADirectory};
        match renamed {
            Err(e) if matches!(e.kind(), AlreadyExists | DirectoryNotEmpty | NotADirectory) => Ok(false),
            Err(e) => Err(StoreError::io(&self.target, "rename into place")(e)),
            Ok(()) => {
                self.committed = true;
                sync_folder(parent(&self.target)).map(|()| true)
            }
        }
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        if !self.committed {
            // Best effort, to free a full disk at once; `clean` removes what is left.
            let _ = fs::remove_dir_all(&self.temporary);
        }
    }
}

/// Deletes a folder such that half of it is never visible under its name.
pub fn remove_folder(path: &Path) -> Result<()> {
    let deleted = set_aside(path)?;
    remove_if_there(&deleted)
}

/// The first half of [`remove_folder`]: the folder is gone from its name, its content still there
/// under the name returned. A folder of which some part could not be deleted stays as it is.
pub fn set_aside(path: &Path) -> Result<PathBuf> {
    require_removable(path)?;
    let deleted = beside(path, DELETED);
    remove_if_there(&deleted)?;
    fs::rename(path, &deleted).map_err(StoreError::io(path, "move aside"))?;
    sync_folder(parent(path))?;
    Ok(deleted)
}

/// Refuses what this process should not delete, or could not: what is mounted there, immutable files, and
/// folders that it may not change or search. Links are not followed.
pub(super) fn require_removable(path: &Path) -> Result<()> {
    if !path.is_symlink() {
        mounts::require_none(path)?;
    }
    require_permitted(path)
}

fn require_permitted(path: &Path) -> Result<()> {
    let found = fs::symlink_metadata(path).map_err(StoreError::io(path, "examine"))?;
    if found.is_symlink() {
        return Ok(());
    }
    let needed = if found.is_dir() { Access::WRITE_OK | Access::EXEC_OK } else { Access::WRITE_OK };
    match rustix::fs::access(path, needed) {
        // A file without permission to write may be deleted all the same, but an immutable one may not.
        Err(Errno::ACCESS) if !found.is_dir() => {}
        Err(refused @ (Errno::ACCESS | Errno::PERM)) => {
            return Err(StoreError::io(path, "delete")(refused.into()));
        }
        _ => {}
    }
    if found.is_dir() {
        for entry in fs::read_dir(path).map_err(StoreError::io(path, "list"))? {
            require_permitted(&entry.map_err(StoreError::io(path, "list"))?.path())?;
        }
    }
    Ok(())
}

/// What killed processes left of [`NewFolder::create_alone`] for `target`, of this machine's processes those
/// that are gone.
pub fn left_beside(target: &Path) -> Vec<PathBuf> {
    let begin = temporary(target).file_name().map(|name| format!("{}.", name.to_string_lossy()));
    let Some(begin) = begin else { return Vec::new() };
    let is_left = |name: &str| {
        let process = name.strip_prefix(&begin).filter(|id| id.parse::<u32>().is_ok());
        process.is_some_and(|id| !Path::new("/proc").join(id).exists())
    };
    let entries = fs::read_dir(parent(target)).into_iter().flatten().flatten();
    let mut left: Vec<PathBuf> = entries
        .filter(|entry| entry.file_name().to_str().is_some_and(is_left))
        .map(|entry| entry.path())
        .collect();
    left.sort();
    left
}

/// Removes what a kill left in `folder` of names that are `ours`: unfinished writes and deletions. A folder
/// that was being replaced is restored if its successor was not committed. Returns the names, sorted.
pub fn clean(folder: &Path, ours: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for entry in fs::read_dir(folder).map_err(StoreError::io(folder, "list"))? {
        let name = entry.map_err(StoreError::io(folder, "list"))?.file_name();
        // Names this module did not make may be anything; its own are Unicode.
        if let Some(name) = name.to_str().filter(|name| leftover(name).is_some_and(&ours)) {
            left.push(name.to_owned());
        }
    }
    left.sort();
    for name in &left {
        let path = folder.join(name);
        match name.strip_prefix(REPLACED).map(|original| folder.join(original)) {
            Some(original) if !original.exists() => {
                fs::rename(&path, &original).map_err(StoreError::io(&path, "restore"))?
            }
            _ => remove_if_there(&path)?,
        }
    }
    if !left.is_empty() {
        sync_folder(folder)?;
    }
    Ok(left)
}

/// The name that one of this module's temporary names is for; none of another name.
pub(super) fn leftover(name: &str) -> Option<&str> {
    let name = [TEMPORARY, REPLACED, DELETED].iter().find_map(|prefix| name.strip_prefix(prefix))?;
    let one_of_many =
        name.strip_suffix(ONE_OF_MANY).and_then(|name| name.get(..name.len().checked_sub(RANDOM)?));
    Some(one_of_many.unwrap_or(name))
}

/// Behind the temporary name of a file that several processes may write at once, after [`RANDOM`] letters.
const ONE_OF_MANY: &str = ".one";
/// A point and six letters.
const RANDOM: usize = 7;

/// An empty file beside `path`, of this process alone, with the permissions of any new file.
pub fn one_of_many(path: &Path) -> io::Result<NamedTempFile> {
    let mut prefix = OsStr::new(TEMPORARY).to_owned();
    prefix.push(path.file_name().unwrap_or_default());
    prefix.push(".");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).rand_bytes(RANDOM - 1).suffix(ONE_OF_MANY);
    // `tempfile_in` would put the temporary name into its errors.
    builder.make_in(parent(path), |path| File::options().read(true).write(true).create_new(true).open(path))
}

/// Waits until the names in `folder` are on the disk.
pub fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(StoreError::io(folder, "synchronise"))
}

/// `path` with a prefix to its last component.
fn beside(path: &Path, prefix: &str) -> PathBuf {
    let mut name = OsStr::new(prefix).to_owned();
    name.push(path.file_name().unwrap_or_default());
    path.with_file_name(name)
}

/// The folder that `path` is in.
pub(super) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Removes a file or a whole folder, a symbolic link as itself; nothing there is fine.
pub(super) fn remove_if_there(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => {
            mounts::require_none(path)?;
            fs::remove_dir_all(path)
        }
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StoreError::io(path, "remove")(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_folder_takes_no_place_that_is_taken() {
        let lab = tempfile::tempdir().unwrap();
        let (target, empty) = (lab.path().join("out"), lab.path().join("empty"));
        let made = |target: &Path, content: &str| {
            let new = NewFolder::create_alone(target).unwrap();
            fs::write(new.path().join("file"), content).unwrap();
            new.commit_new().unwrap()
        };
        fs::create_dir(&empty).unwrap();
        assert!(made(&target, "first") && !made(&target, "second") && !made(&empty, "third"));
        assert_eq!(fs::read(target.join("file")).unwrap(), b"first");
        assert_eq!(names(lab.path()), ["empty", "out"]);
        fs::write(lab.path().join("taken"), "mine").unwrap();
        assert!(!made(&lab.path().join("taken"), "fourth"));
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_written_file_replaces_the_old_and_leaves_nothing_beside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock.toml");
        fs::write(folder.path().join(".tmp.lock.toml"), "torn").unwrap();
        for text in ["first", "second"] {
            write(&path, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(names(folder.path()), ["lock.toml"]);
    }

    #[test]
    fn a_full_disk_is_named_with_what_was_needed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.parquet");
        write(&path, b"old").unwrap();
        let full =
            write_with(&path, 123_456, |_| File::options().write(true).open("/dev/full")?.write_all(b"new"));
        let text = full.unwrap_err().to_string();
        assert!(
            text.contains("metrics.parquet`, which needs 123456 bytes") && text.contains("intact"),
            "{text}"
        );
        assert_eq!((fs::read(&path).unwrap(), names(folder.path()).len()), (b"old".to_vec(), 1));
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kept");
        write(&path, b"old").unwrap();
        // A folder with the name of the temporary file, which then cannot be created.
        fs::create_dir(folder.path().join(".tmp.kept")).unwrap();
        assert!(write(&path, b"new").is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }

    #[test]
    fn a_folder_appears_at_its_commit_only() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("step_1");
        for content in ["first", "second"] {
            let new = NewFolder::create(&target).unwrap();
            fs::write(new.path().join("state"), content).unwrap();
            assert_eq!(target.exists(), content == "second");
            new.commit().unwrap();
            assert_eq!(fs::read_to_string(target.join("state")).unwrap(), content);
            assert_eq!(names(folder.path()), ["step_1"]);
        }
        let abandoned = NewFolder::create(&target).unwrap();
        fs::write(abandoned.path().join("state"), "third").unwrap();
        drop(abandoned);
        assert_eq!(names(folder.path()), ["step_1"]);
        assert_eq!(fs::read_to_string(target.join("state")).unwrap(), "second");
        remove_folder(&target).unwrap();
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn what_a_kill_left_is_cleaned_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        for name in [".tmp.step_3", ".del.step_1", ".old.step_2", ".old.step_4", "step_4", "step_5"] {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("from"), name).unwrap();
        }
        for name in [".tmp.metrics.parquet", ".tmp.foreign", ".lock", ".hidden", "main.log"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(
            clean(folder.path(), |name| name != "foreign").unwrap(),
            [".del.step_1", ".old.step_2", ".old.step_4", ".tmp.metrics.parquet", ".tmp.step_3"]
        );
        let left = [".hidden", ".lock", ".tmp.foreign", "main.log", "step_2", "step_4", "step_5"];
        assert_eq!(names(folder.path()), left);
        let from = |name: &str| fs::read_to_string(folder.path().join(name).join("from")).unwrap();
        assert_eq!((from("step_2"), from("step_4")), (".old.step_2".into(), "step_4".into()));
    }

    #[test]
    fn an_error_of_one_of_many_has_no_temporary_name() {
        let folder = tempfile::tempdir().unwrap();
        let error = one_of_many(&folder.path().join("none/loss.png")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::NOENT.raw_os_error()), "{error}");
        assert!(!error.to_string().contains(TEMPORARY), "{error}");
    }

    #[test]
    fn the_name_of_one_of_many_is_known_for_what_it_is_for() {
        let folder = tempfile::tempdir().unwrap();
        let file = one_of_many(&folder.path().join("loss.png")).unwrap();
        let name = file.path().file_name().unwrap().to_str().unwrap();
        assert_eq!(leftover(name), Some("loss.png"), "{name}");
        assert_eq!(leftover(".tmp.loss.png"), Some("loss.png"));
        // What is too short for the letters, or would be cut within one.
        for foreign in ["é.one", "ééééé.one"] {
            assert_eq!(leftover(&format!(".tmp.{foreign}")), Some(foreign));
        }
        assert_eq!(leftover("loss.png.abcdef.one"), None);
    }

    /// An immutable file where this process may make one, else a folder that it may not write in; a superuser
    /// on a disk without such files is refused nothing.
    #[cfg(unix)]
    #[test]
    fn a_folder_of_which_a_part_cannot_be_deleted_stays_whole_under_its_name() {
        use std::os::unix::fs::PermissionsExt as _;
        let root = tempfile::tempdir().unwrap();
        let (folder, inside) = (root.path().join("run"), root.path().join("run/checkpoints"));
        fs::create_dir_all(&inside).unwrap();
        let held = inside.join("state");
        fs::write(&held, "1").unwrap();
        let chattr = |flag: &str| {
            let set = std::process::Command::new("chattr").arg(flag).arg(&held).output();
            set.is_ok_and(|set| set.status.success())
        };
        let immutable = chattr("+i");
        if !immutable {
            fs::set_permissions(&inside, fs::Permissions::from_mode(0o555)).unwrap();
        }
        let held_here = immutable || rustix::fs::access(&inside, Access::WRITE_OK).is_err();
        let refused = remove_folder(&folder);
        let whole = held.is_file() && names(root.path()) == ["run"];
        chattr("-i");
        if folder.exists() {
            fs::set_permissions(&inside, fs::Permissions::from_mode(0o755)).unwrap();
        }
        if held_here {
            let refused = refused.unwrap_err().to_string();
            assert!(refused.contains("cannot delete `") && refused.contains("run/checkpoints"), "{refused}");
            assert!(whole);
            remove_folder(&folder).unwrap();
        }
        assert!(names(root.path()).is_empty());
    }
}
