//! Room on the disk, checked before a run needs it.

use std::path::Path;

use super::{Result, StoreError};

/// Refuses a run in `folder`, which need not exist yet, if its files will take `needed` bytes and its disk
/// has less. `reused` bytes in the folder are among those needed, or will be deleted.
///
/// Where the system does not say how much is free, nothing is refused.
pub fn require(folder: &Path, needed: u64, reused: u64, what: &str) -> Result<()> {
    let Some(free) = free_bytes(folder) else { return Ok(()) };
    if needed <= free.saturating_add(reused) {
        return Ok(());
    }
    Err(StoreError::NoRoom { path: folder.into(), needed, what: what.into(), free })
}

/// Bytes that this user may still write on the disk of `folder`, or of its nearest existing parent.
#[cfg(unix)]
pub fn free_bytes(folder: &Path) -> Option<u64> {
    let folder = std::path::absolute(folder).ok()?;
    let there = folder.ancestors().find(|folder| folder.exists())?;
    let found = rustix::fs::statvfs(there).ok()?;
    // Some file systems, such as those of containers and networks, report no sizes.
    (found.f_blocks > 0).then(|| found.f_bavail.saturating_mul(found.f_frsize))
}

#[cfg(not(unix))]
pub fn free_bytes(_: &Path) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_its_disk_has_no_room_for_is_refused_before_its_folder_is_made() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("runs/a");
        require(&folder, 1000, 0, "1 checkpoint").unwrap();
        let error = require(&folder, u64::MAX / 2, 1000, "3 checkpoints of 3.1 EB").unwrap_err().to_string();
        assert!(error.contains("runs/a") && error.contains("3 checkpoints of 3.1 EB"), "{error}");
        assert!(error.contains("checkpoint.keep_last") && !folder.exists(), "{error}");
    }
}
