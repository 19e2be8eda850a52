//! A file that the user names for a result: a plot, a page, a statement, a lock.
//!
//! It replaces an earlier result of the same kind and nothing else; into a device or a pipe, such as
//! `/dev/stdout`, the result is written.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use rustix::fs::Access;

use super::{Result, StoreError, atomic};

/// The bytes at the start of a file in which a result is recognised.
const START_BYTES: u64 = 4096;

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputKind {
    /// A picture in PNG or SVG.
    Picture,
    /// A page in HTML.
    Page,
    /// An in-toto statement.
    Statement,
    Lock,
    /// Golden roots.
    Roots,
    /// JSON lines with the decisions of HellaSwag.
    Decisions,
}

impl OutputKind {
    fn name(self) -> &'static str {
        match self {
            OutputKind::Picture => "a picture in PNG or SVG",
            OutputKind::Page => "a page in HTML",
            OutputKind::Statement => "an in-toto statement",
            OutputKind::Lock => "a lock",
            OutputKind::Roots => "a file of golden roots",
            OutputKind::Decisions => "JSON lines of an evaluation",
        }
    }

    /// Whether a file that begins so is an earlier result of this kind.
    fn begins(self, start: &[u8]) -> bool {
        let text = String::from_utf8_lossy(start);
        match self {
            OutputKind::Picture => start.starts_with(b"\x89PNG") || text.starts_with("<svg"),
            OutputKind::Page => text.starts_with("<!DOCTYPE html>"),
            OutputKind::Statement => text.contains("https://in-toto.io/Statement/"),
            OutputKind::Lock => text.contains("format = \"runner/lock/"),
            OutputKind::Roots => text.starts_with("# Golden roots of "),
            // The number of the task, and what was picked or how well its word was known.
            OutputKind::Decisions => text.lines().next().is_some_and(|line| {
                let has = |key: &str| line.contains(key);
                line.starts_with("{\"")
                    && has("\"task\":")
                    && (has("\"picked\":") || has("\"lambada\":{\"greedy\""))
            }),
        }
    }
}

/// Refuses a folder, and a file that is neither empty nor an earlier result of this kind.
fn require_kind(path: &Path, kind: OutputKind) -> Result<()> {
    let mut start = Vec::new();
    if !path.is_dir() {
        let read = File::open(path).and_then(|file| file.take(START_BYTES).read_to_end(&mut start));
        read.map_err(StoreError::io(path, "read"))?;
    }
    if path.is_dir() || !(start.is_empty() || kind.begins(&start)) {
        return Err(StoreError::OtherFile { path: path.into(), kind: kind.name() });
    }
    Ok(())
}

/// Writes a whole result to `path`, and makes the folders on the way to it. An empty file and an earlier
/// result are replaced.
///
/// # Errors
/// Another file, or a folder, is there; it cannot be written.
pub fn write(path: &Path, bytes: &[u8], kind: OutputKind) -> Result<()> {
    let Ok(found) = fs::metadata(path) else { return replace(path, bytes) };
    if !found.is_file() && !found.is_dir() {
        let written = File::options().write(true).open(path).and_then(|mut file| file.write_all(bytes));
        return written.map_err(StoreError::io(path, "write"));
    }
    require_kind(path, kind)?;
    // Of a symbolic link the file that it names.
    let target = fs::canonicalize(path).map_err(StoreError::io(path, "find"))?;
    replace(&target, bytes)
}

/// Writes a file and gives it its name. Several processes may do so at once: the last one's stays.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |source| StoreError::write(path, bytes.len() as u64)(source);
    let folder = atomic::parent(path);
    fs::create_dir_all(folder).map_err(StoreError::io(folder, "create"))?;
    let mut file = atomic::one_of_many(path).map_err(failed)?;
    // By the file itself: the errors of `NamedTempFile` have its temporary name.
    file.as_file_mut().write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    atomic::sync_folder(folder)
}

/// Refuses early what [`write`] would refuse after all the work: a file of another kind, a folder, a place
/// that cannot be written to.
///
/// # Errors
/// As those of [`write`].
pub fn require(path: &Path, kind: OutputKind) -> Result<()> {
    let found = fs::metadata(path);
    if found.as_ref().is_ok_and(|found| found.is_file() || found.is_dir()) {
        require_kind(path, kind)?;
    }
    if found.is_ok_and(|found| !found.is_file()) {
        return require_access(path, Access::WRITE_OK);
    }
    // Of a symbolic link the folder of the file that it names.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    require_folder(atomic::parent(&target))
}

/// Refuses early a folder in which nothing could be made after all the work. Where it is not there, the
/// nearest on the way to it is looked at.
///
/// # Errors
/// That one is no folder, or must not be written in.
pub fn require_folder(folder: &Path) -> Result<()> {
    // A link that leads nowhere is there, too.
    let there = |path: &&Path| path.as_os_str().is_empty() || path.symlink_metadata().is_ok();
    let nearest = folder.ancestors().find(there).unwrap_or(Path::new("."));
    let nearest = if nearest.as_os_str().is_empty() { Path::new(".") } else { nearest };
    match nearest.is_dir() {
        true => require_access(nearest, Access::WRITE_OK | Access::EXEC_OK),
        false => Err(StoreError::io(nearest, "write below")(io::ErrorKind::NotADirectory.into())),
    }
}

fn require_access(path: &Path, access: Access) -> Result<()> {
    rustix::fs::access(path, access).map_err(|errno| StoreError::io(path, "write to")(errno.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_earlier_result_is_replaced_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("notes.txt"), "mine").unwrap();
        fs::create_dir(path("folder")).unwrap();
        for name in ["notes.txt", "folder"] {
            let refused = write(&path(name), b"<svg/>", OutputKind::Picture).unwrap_err().to_string();
            assert!(refused.contains(name) && refused.contains("a picture in PNG or SVG"), "{refused}");
        }
        assert_eq!(fs::read(path("notes.txt")).unwrap(), b"mine");
        for line in
            ["{\"entry\":{\"step\":0}}", "{\"step\":0}", "{\"label\":1}\n{\"task\":0}", "{\"task\":\"mine\"}"]
        {
            fs::write(path("other.jsonl"), line).unwrap();
            write(&path("other.jsonl"), b"{}", OutputKind::Decisions).unwrap_err();
        }
        fs::write(path("decisions.jsonl"), "{\"acc\":{\"picked\":2},\"label\":1,\"task\":0}\n").unwrap();
        write(&path("decisions.jsonl"), b"{}", OutputKind::Decisions).unwrap();
        fs::write(path("empty"), "").unwrap();
        for name in ["new.svg", "new.svg", "empty"] {
            write(&path(name), b"<svg/>", OutputKind::Picture).unwrap();
            assert_eq!(fs::read(path(name)).unwrap(), b"<svg/>");
        }
    }

    #[test]
    fn what_cannot_be_written_is_refused_before_the_work_and_folders_are_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        require(&path("a/b/plot.svg"), OutputKind::Picture).unwrap();
        assert!(!path("a").exists(), "asking makes nothing");
        write(&path("a/b/plot.svg"), b"<svg/>", OutputKind::Picture).unwrap();
        require(&path("a/b/plot.svg"), OutputKind::Picture).unwrap();
        require(&path("a/b/plot.svg"), OutputKind::Page).unwrap_err();
        require(&path("a/b/plot.svg/page.html"), OutputKind::Page).unwrap_err();
        require(&path("a"), OutputKind::Page).unwrap_err();
        require(Path::new("/dev/null"), OutputKind::Page).unwrap();
        assert_eq!(fs::read_dir(path("a/b")).unwrap().count(), 1, "nothing half written stays");
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_that_could_not_be_made_or_written_in_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("file"), "").unwrap();
        fs::create_dir(path("held")).unwrap();
        std::os::unix::fs::symlink("nowhere", path("link")).unwrap();
        for good in ["", "a/b", "held"] {
            require_folder(&path(good)).unwrap();
        }
        assert!(!path("a").exists(), "asking makes nothing");
        for bad in ["file", "file/a", "link", "link/a"] {
            let refused = require_folder(&path(bad)).unwrap_err().to_string();
            assert!(refused.starts_with("cannot write below `"), "{bad}: {refused}");
        }
        fs::set_permissions(path("held"), fs::Permissions::from_mode(0o555)).unwrap();
        // Nothing holds the superuser.
        if rustix::fs::access(path("held"), Access::WRITE_OK).is_err() {
            for bad in ["held", "held/a/b"] {
                let refused = require_folder(&path(bad)).unwrap_err().to_string();
                assert!(refused.contains("cannot write to `") && refused.contains("held`"), "{refused}");
            }
        }
        fs::set_permissions(path("held"), fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn many_may_write_one_file_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plot.svg");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| write(&path, b"<svg/>", OutputKind::Picture).unwrap());
            }
        });
        assert_eq!(fs::read(&path).unwrap(), b"<svg/>");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_stays_one_and_a_device_is_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, "<svg>old</svg>").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write(&link, b"<svg/>", OutputKind::Picture).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"<svg/>");
        std::os::unix::fs::symlink("/dev/null", folder.path().join("null")).unwrap();
        write(&folder.path().join("null"), b"<svg/>", OutputKind::Picture).unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }
}
