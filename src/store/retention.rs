//! Which checkpoints are kept.

use std::path::Path;

use super::{Result, atomic, checkpoint, contents};

/// `checkpoint.keep_last` and `checkpoint.keep_every`, and what a rewind needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Checkpoints kept; 0 keeps all.
    pub keep_last: usize,
    /// A step that is a multiple of this is never deleted; 0 is none.
    pub keep_every: u64,
    /// The newest step that is a multiple of this is never deleted, because a rewind goes back to it; 0 is
    /// none.
    pub rewind_every: u64,
}

impl Retention {
    /// The steps to delete, of `steps` in rising order.
    fn doomed(self, steps: &[u64]) -> Vec<u64> {
        if self.keep_last == 0 {
            return Vec::new();
        }
        let needed = steps.iter().rfind(|step| step.checked_rem(self.rewind_every) == Some(0));
        let old = &steps[..steps.len().saturating_sub(self.keep_last)];
        old.iter()
            .copied()
            .filter(|step| Some(step) != needed)
            .filter(|step| self.keep_every == 0 || !step.is_multiple_of(self.keep_every))
            .collect()
    }
}

/// The steps of the checkpoints that `retention` does not keep, in rising order.
///
/// One whole checkpoint is always kept: if none of those to keep looks whole ([`checkpoint::inspect`]), the
/// newest one that does is kept as well. States are not read back for this, which would cost more than the
/// save; only loading finds a damaged byte inside a file. A folder that holds what this program did not write
/// is kept too.
pub fn unkept(checkpoints: &Path, retention: Retention) -> Result<Vec<u64>> {
    let found = checkpoint::list(checkpoints)?;
    let mut doomed = retention.doomed(&found.iter().map(|(step, _)| *step).collect::<Vec<_>>());
    if doomed.is_empty() {
        return Ok(doomed);
    }
    let of = |step: u64| checkpoints.join(checkpoint::folder_name(step));
    doomed.retain(|step| contents::foreign_in_checkpoint(&of(*step)).is_ok_and(|found| found.is_empty()));
    let looks_whole =
        |step: &u64| checkpoint::inspect(&checkpoints.join(checkpoint::folder_name(*step))).is_ok();
    let kept_whole =
        found.iter().rev().map(|(step, _)| step).filter(|step| !doomed.contains(step)).any(looks_whole);
    if !kept_whole && let Some(last) = doomed.iter().rposition(looks_whole) {
        doomed.remove(last);
    }
    Ok(doomed)
}

/// Deletes the checkpoints that `retention` does not keep ([`unkept`]); returns their steps.
pub fn prune(checkpoints: &Path, retention: Retention) -> Result<Vec<u64>> {
    let doomed = unkept(checkpoints, retention)?;
    remove(checkpoints, &doomed)?;
    Ok(doomed)
}

/// Deletes the checkpoints of these steps.
pub fn remove(checkpoints: &Path, steps: &[u64]) -> Result<()> {
    steps.iter().try_for_each(|step| atomic::remove_folder(&checkpoints.join(checkpoint::folder_name(*step))))
}

#[cfg(test)]
mod tests {
    use super::super::checkpoint::{STATE_FILE, list, newest_whole, save, tests::*};
    use super::*;

    #[test]
    fn the_policy_table() {
        let steps = [250, 500, 750, 1000, 1250];
        let table: [(usize, u64, &[u64]); 8] = [
            (0, 0, &[]),
            (0, 500, &[]),
            (1, 0, &[250, 500, 750, 1000]),
            (2, 0, &[250, 500, 750]),
            (5, 0, &[]),
            (9, 0, &[]),
            (1, 500, &[250, 750]),
            (2, 1000, &[250, 500, 750]),
        ];
        for (keep_last, keep_every, doomed) in table {
            assert_eq!(
                Retention { keep_last, keep_every, rewind_every: 0 }.doomed(&steps),
                doomed,
                "keep_last {keep_last}, keep_every {keep_every}"
            );
        }
    }

    #[test]
    fn what_a_rewind_goes_back_to_stays() {
        let retention = Retention { keep_last: 1, keep_every: 0, rewind_every: 500 };
        assert_eq!(retention.doomed(&[500, 1000, 1100, 1200]), [500, 1100]);
        assert_eq!(retention.doomed(&[500, 1000]), [500]);
        assert_eq!(retention.doomed(&[100, 200]), [100], "none is scheduled");
    }

    #[test]
    fn a_checkpoint_that_holds_somebody_s_file_stays() {
        let folder = tempfile::tempdir().unwrap();
        for step in [1, 2, 3] {
            save(folder.path(), &state(step), &facts(step)).unwrap();
        }
        std::fs::write(folder.path().join(checkpoint::folder_name(1)).join("notes.txt"), "mine").unwrap();
        assert_eq!(
            prune(folder.path(), Retention { keep_last: 1, keep_every: 0, rewind_every: 0 }).unwrap(),
            [2]
        );
        assert_eq!(steps(folder.path()), [1, 3]);
    }

    fn steps(folder: &Path) -> Vec<u64> {
        list(folder).unwrap().iter().map(|(step, _)| *step).collect()
    }

    #[test]
    fn pruning_deletes_what_the_policy_gives_up() {
        let folder = tempfile::tempdir().unwrap();
        for step in [1, 2, 3, 4] {
            save(folder.path(), &state(step), &facts(step)).unwrap();
        }
        let retention = Retention { keep_last: 1, keep_every: 2, rewind_every: 0 };
        assert_eq!(prune(folder.path(), retention).unwrap(), [1, 3]);
        assert_eq!(steps(folder.path()), [2, 4]);
        assert_eq!(prune(folder.path(), retention).unwrap(), [0; 0]);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "nothing half deleted stays");
    }

    #[test]
    fn the_last_whole_checkpoint_stays_whatever_the_policy() {
        let folder = tempfile::tempdir().unwrap();
        for step in [1, 2, 3, 4] {
            save(folder.path(), &state(step), &facts(step)).unwrap();
        }
        for step in [3, 4] {
            let file = folder.path().join(checkpoint::folder_name(step)).join(STATE_FILE);
            std::fs::write(file, "cut short").unwrap();
        }
        assert_eq!(
            prune(folder.path(), Retention { keep_last: 1, keep_every: 0, rewind_every: 0 }).unwrap(),
            [1, 3]
        );
        assert_eq!(steps(folder.path()), [2, 4]);
        assert_eq!(newest_whole(folder.path()).unwrap().0.unwrap().0.step, 2);
    }
}
