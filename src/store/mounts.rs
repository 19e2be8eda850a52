//! What is mounted in a folder: it would be deleted with the folder, and the folder then stay half deleted.

use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::{Result, StoreError};

/// Refuses a folder on or in which a file system is mounted, a bind mount too, whose device may be the
/// folder's own. Where the system does not list its mounts, nothing is refused.
pub(super) fn require_none(folder: &Path) -> Result<()> {
    let Ok(listed) = std::fs::read("/proc/self/mountinfo") else { return Ok(()) };
    let Ok(folder) = folder.canonicalize() else { return Ok(()) };
    mounted_in(&listed, &folder).map_or(Ok(()), |path| Err(StoreError::Mounted { path }))
}

/// The first mount point of the list that is `folder` or lies in it. The fifth word of a line is a mount
/// point, with odd characters as a backslash and three octal digits.
fn mounted_in(listed: &[u8], folder: &Path) -> Option<PathBuf> {
    let points =
        listed.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    points
        .map(|point| PathBuf::from(std::ffi::OsString::from_vec(plain(point))))
        .find(|at| at.starts_with(folder))
}

fn plain(mut escaped: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(escaped.len());
    while let [first, rest @ ..] = escaped {
        let (byte, rest) = match (first, rest) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', rest @ ..]) => {
                (((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'), rest)
            }
            _ => (*first, rest),
        };
        bytes.push(byte);
        escaped = rest;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_on_a_folder_or_in_it_is_found_and_one_beside_it_is_not() {
        let listed = b"21 1 254:0 / / rw - ext4 /dev/vda rw\n\
                       88 21 254:0 /srv /runs/a\\040b/checkpoints rw,relatime shared:1 - ext4 /dev/vda rw\n\
                       89 21 0:50 / /runs/tmp rw - tmpfs none rw\n";
        let found = |folder: &str| mounted_in(listed, Path::new(folder));
        assert_eq!(found("/runs/a b"), Some("/runs/a b/checkpoints".into()));
        assert_eq!(found("/runs/tmp"), Some("/runs/tmp".into()));
        for other in ["/runs/a", "/runs/tmp/run", "/runs/t"] {
            assert_eq!(found(other), None, "{other}");
        }
        assert!(found("/").is_some());
    }
}
