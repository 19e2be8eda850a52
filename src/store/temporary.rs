//! A temporary file beside the one it will replace, so that a reader sees the old file or the new one.

use std::io;
use std::path::Path;

use tempfile::NamedTempFile;

/// Creates an empty file in `path`'s folder, with its ending and the permissions of an ordinary new
/// file (tempfile's own are private). Fill it, then `persist` it at `path`; dropped, it is removed.
pub fn beside(path: &Path) -> io::Result<NamedTempFile> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let ending = path.extension().map_or(String::new(), |ending| format!(".{}", ending.to_string_lossy()));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".partial-").suffix(&ending);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder)
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_replaced_file_has_the_permissions_of_an_ordinary_one() {
        let folder = tempfile::tempdir().unwrap();
        let (ordinary, path) = (folder.path().join("ordinary"), folder.path().join("a.png"));
        std::fs::write(&ordinary, "").unwrap();
        beside(&path).unwrap().persist(&path).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&path), mode(&ordinary));
    }
}
