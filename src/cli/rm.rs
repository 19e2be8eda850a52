//! `runner rm RUN…`: removes runs and sweeps, and nothing that this program did not write.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::streams::say;
use crate::run::branches::Branch;
use crate::run::{UsageError, find, require_usage};
use crate::store::run_folder::is_place;
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
    /// Remove also what a run that is not done starts from, by its `model.init`.
    #[arg(long)]
    force: bool,
    /// Folder that holds the run folders.
    #[arg(long, default_value = "runs", value_name = "DIR")]
    runs: PathBuf,
}

/// Removes all of the runs, or none if one of them may not be removed.
///
/// # Errors
/// A folder is no run, holds what this program did not write, or a process works on it; a run that is not
/// done starts from it.
pub fn run(args: Args) -> anyhow::Result<()> {
    // By where they are: one may be named twice, or as a member of a sweep that is named too.
    let mut folders = BTreeMap::new();
    for run in &args.run {
        let folder = folder(run, &args.runs)?;
        remove(&folder, false)?;
        folders.insert(place(&folder), folder);
    }
    let places: Vec<PathBuf> = folders.keys().cloned().collect();
    folders.retain(|place, _| !places.iter().any(|other| place != other && place.starts_with(other)));
    let is_kept = |branch: &Branch| !places.iter().any(|place| branch.is_in(place));
    let branches: Vec<Branch> = Branch::all(&args.runs)?.into_iter().filter(is_kept).collect();
    for place in folders.keys() {
        for branch in branches.iter().filter(|branch| branch.starts_in(place)) {
            say_needed(branch, &args)?;
        }
    }
    for folder in folders.into_values() {
        let what = described(&folder);
        if args.dry_run {
            say!("would remove {what}");
        } else {
            remove(&folder, true)?;
            say!("removed {what}");
        }
    }
    Ok(())
}

/// Says who starts from what is removed, and refuses where that run is not done.
fn say_needed(branch: &Branch, args: &Args) -> Result<(), UsageError> {
    let (name, init) = (&branch.name, branch.init.display());
    if branch.is_done(&args.runs) {
        say!("`{name}` started from `{init}`: a replay of its first steps needs that");
        return Ok(());
    }
    require_usage(args.force || args.dry_run, || {
        format!(
            "`{name}` is not done, and starts from `{init}`\n  hint: let it end first, or name it too; \
             `--force` removes this all the same"
        )
    })?;
    say!("`{name}` is not done, and starts from `{init}`");
    Ok(())
}

/// Where a folder is, a link as itself.
fn place(folder: &Path) -> PathBuf {
    let within = folder.parent().filter(|within| !within.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let within = within.canonicalize().unwrap_or_else(|_| within.to_owned());
    folder.file_name().map_or(within.clone(), |name| within.join(name))
}

/// What is removed, and its bytes; of a link that.
fn described(folder: &Path) -> String {
    let shown = folder.display();
    match std::fs::read_link(folder) {
        Ok(target) => format!("`{shown}`, a link; what is in `{}` stays", target.display()),
        Err(_) => format!("`{shown}`, {}", units::bytes(contents::bytes_in(folder))),
    }
}

fn remove(folder: &Path, act: bool) -> Result<(), StoreError> {
    match place(folder).parent().filter(|within| is_sweep(within)) {
        _ if is_sweep(folder) => SweepFolder::remove(folder, act),
        Some(sweep) => SweepFolder::remove_member(sweep, folder, act),
        None => RunFolder::remove(folder, act),
    }
}

/// The folder of a sweep or a run, also of one whose experiment is lost.
fn folder(run: &Path, runs: &Path) -> anyhow::Result<PathBuf> {
    // Without a slash or a dot behind the last name, by which a link would be followed.
    let run = &run.components().collect::<PathBuf>();
    if let Some(sweep) = find::find_sweep(Some(run), runs) {
        return Ok(sweep);
    }
    let left = |folder: &Path| RunPaths::new(folder).lock_file().is_file().then(|| folder.to_owned());
    let named = || if is_place(run) { None } else { left(&runs.join(run)) };
    let folder = find::find(Some(run), runs).or_else(|error| named().or_else(|| left(run)).ok_or(error))?;
    // `.` has no name by which it could be moved aside.
    Ok(if folder.file_name().is_none() { folder.canonicalize()? } else { folder })
}
