//! Runs that start from a checkpoint of another, by their `model.init`: who needs what is to be deleted.

use std::path::{Path, PathBuf};

use crate::experiment::{self, Loaded};
use crate::report::ReportError;
use crate::report::glance::RunGlance;
use crate::report::summary::{self, State};
use crate::store::RunPaths;
use crate::store::sweep_folder::{SweepPaths, is_sweep, member_name};

/// A run with a `model.init`.
#[derive(Clone, Debug)]
pub struct Branch {
    /// Its folder below that of all runs.
    pub name: String,
    folder: PathBuf,
    /// What it starts from.
    pub init: PathBuf,
}

impl Branch {
    /// The branches under `runs`, members of sweeps too that have not begun. What cannot be read is none.
    ///
    /// # Errors
    /// The folder is there and cannot be listed, or is none.
    pub fn all(runs: &Path) -> Result<Vec<Branch>, ReportError> {
        let begun = summary::folders(runs)?.into_iter().filter_map(|folder| {
            let loaded = experiment::load_recorded(&RunPaths::new(&folder).experiment()).ok()?;
            Branch::of(folder, loaded, runs)
        });
        let folders = std::fs::read_dir(runs).into_iter().flatten().flatten().map(|entry| entry.path());
        let sweeps = folders.filter(|folder| is_sweep(folder)).filter_map(|folder| {
            let sweep = experiment::load_recorded_sweep(&SweepPaths::new(&folder).declaration()).ok()?;
            Some((folder, sweep.members))
        });
        let to_come = sweeps.flat_map(|(folder, members)| {
            let count = members.len();
            let placed = members.into_iter().map(move |it| (folder.join(member_name(it.number, count)), it));
            placed.filter(|(folder, _)| !RunPaths::new(folder).experiment().exists())
        });
        let to_come = to_come.filter_map(|(folder, member)| Branch::of(folder, member.loaded, runs));
        Ok(begun.chain(to_come).collect())
    }

    fn of(folder: PathBuf, loaded: Loaded, runs: &Path) -> Option<Branch> {
        let init = PathBuf::from(loaded.experiment.model.init?);
        let name = folder.strip_prefix(runs).unwrap_or(&folder).display().to_string();
        Some(Branch { name, init: real(&init), folder })
    }

    /// Whether it starts from something in `folder`, which may be a link: then what that names stays.
    pub fn starts_in(&self, folder: &Path) -> bool {
        !folder.is_symlink() && self.init.starts_with(real(folder))
    }

    /// Whether its own folder is `folder`, or in that.
    pub fn is_in(&self, folder: &Path) -> bool {
        real(&self.folder).starts_with(real(folder))
    }

    /// Whether its last step is made and saved.
    pub fn is_done(&self, runs: &Path) -> bool {
        RunGlance::read(&self.folder, runs).state == State::Done
    }
}

/// A path without links; of what is not there any more as it is written.
fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}
