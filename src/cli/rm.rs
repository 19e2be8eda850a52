//! `runner rm RUN…`: removes runs and sweeps, and nothing that this program did not write.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::streams::say;
use crate::run::find;
use crate::store::sweep_folder::{SweepFolder, is_sweep};
use crate::store::{RunFolder, RunPaths, StoreError, contents};
use crate::units;

/// Remove runs or sweeps: their folders with checkpoints and all.
#[derive(clap::Args)]
pub struct Args {
    /// The runs or sweeps: names under `--runs`, or folders.
    #[arg(required = true)]
    run: Vec<PathBuf>,
    /// Say what would be removed, and remove nothing.
    #[arg(long)]
    dry_run: bool,
    /// Folder that holds the run folders.
    #[arg(long, default_value = "runs", value_name = "DIR")]
    runs: PathBuf,
}

/// Removes all of the runs, or none if one of them may not be removed.
///
/// # Errors
/// A folder is no run, holds what this program did not write, or a process works on it.
pub fn run(args: Args) -> anyhow::Result<()> {
    let mut folders = BTreeSet::new();
    for run in &args.run {
        let folder = folder(run, &args.runs)?;
        remove(&folder, false)?;
        folders.insert(folder);
    }
    for folder in folders {
        let bytes = units::bytes(contents::bytes_in(&folder));
        if args.dry_run {
            say!("would remove `{}`, {bytes}", folder.display());
        } else {
            remove(&folder, true)?;
            say!("removed `{}`, {bytes}", folder.display());
        }
    }
    Ok(())
}

fn remove(folder: &Path, act: bool) -> Result<(), StoreError> {
    if is_sweep(folder) { SweepFolder::remove(folder, act) } else { RunFolder::remove(folder, act) }
}

/// The folder of a sweep or a run, also of one whose experiment is lost.
fn folder(run: &Path, runs: &Path) -> anyhow::Result<PathBuf> {
    if let Some(sweep) = find::find_sweep(Some(run), runs) {
        return Ok(sweep);
    }
    let left = |folder: &Path| RunPaths::new(folder).lock_file().is_file().then(|| folder.to_owned());
    let folder =
        find::find(Some(run), runs).or_else(|error| left(&runs.join(run)).or(left(run)).ok_or(error))?;
    // `.` has no name by which it could be moved aside.
    Ok(if folder.file_name().is_none() { folder.canonicalize()? } else { folder })
}
