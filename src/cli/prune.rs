//! `runner prune RUN…`: the checkpoints that the rules of retention do not keep.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::exit;
use super::named::require_runs;
use super::numbers::{from_one, from_zero};
use super::streams::say;
use crate::experiment;
use crate::report::summary;
use crate::run::branches::Branch;
use crate::run::find;
use crate::store::{Retention, RunFolder, RunPaths, checkpoint, contents, retention};
use crate::units;

/// Remove checkpoints that a run need not keep; say which without `--yes`.
#[derive(clap::Args)]
pub struct Args {
    /// The runs or sweeps: names under `--runs`, or folders; or `--all`.
    #[arg(required_unless_present = "all")]
    run: Vec<PathBuf>,
    /// Every run under `--runs`.
    #[arg(long, conflicts_with = "run")]
    all: bool,
    /// Keep so many of the newest; by default the run's `checkpoint.keep_last`, where 0 keeps all.
    #[arg(long, value_name = "N", value_parser = from_one::<NonZeroUsize>)]
    keep_last: Option<NonZeroUsize>,
    /// Keep those of steps that are a multiple of this; by default the run's `checkpoint.keep_every`.
    #[arg(long, value_name = "STEPS", value_parser = from_zero::<u64>)]
    keep_every: Option<u64>,
    /// Remove them.
    #[arg(long)]
    yes: bool,
    /// Folder that holds the run folders.
    #[arg(long, default_value = "runs", value_name = "DIR")]
    runs: PathBuf,
}

/// Goes on behind a run that cannot be pruned, and fails at the end.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let folders = match args.all {
        true => {
            require_runs(&args.runs)?;
            summary::folders(&args.runs)?
        }
        false => folders(&args)?,
    };
    let folders = summary::once(folders, PathBuf::as_path);
    let branches = Branch::all(&args.runs)?;
    let (mut freed, mut failed) = (0, false);
    for folder in &folders {
        match prune(folder, &args, &branches) {
            Ok(bytes) => freed += bytes,
            Err(error) => {
                failed = true;
                exit::print(&error.to_string());
            }
        }
    }
    match (freed, args.yes) {
        (0, _) if failed => {}
        (0, _) => say!("nothing to remove"),
        (freed, true) => say!("{} freed", units::bytes(freed)),
        (freed, false) => say!("{} would be freed; `--yes` removes them", units::bytes(freed)),
    }
    Ok(if failed { ExitCode::from(exit::FAILED) } else { ExitCode::SUCCESS })
}

/// The folders of the runs that were named, and of the members of sweeps.
fn folders(args: &Args) -> anyhow::Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for run in &args.run {
        match find::find_sweep(Some(run), &args.runs) {
            Some(sweep) => folders.extend(summary::folders(&sweep)?),
            None => folders.push(find::find(Some(run), &args.runs)?),
        }
    }
    Ok(folders)
}

/// The bytes of what is removed, or would be. Checkpoints from which runs start that are not done are kept.
fn prune(folder: &Path, args: &Args, branches: &[Branch]) -> anyhow::Result<u64> {
    let paths = RunPaths::new(folder);
    let experiment = experiment::load_recorded(&paths.experiment())?.experiment;
    let own = &experiment.checkpoint;
    let retention = Retention {
        keep_last: args.keep_last.map_or(own.keep_last, NonZeroUsize::get),
        keep_every: args.keep_every.unwrap_or(own.keep_every),
        rewind_every: experiment.rewind_every(),
    };
    let shown = folder.display();
    if retention.keep_last == 0 {
        say!("`{shown}` keeps all: its `checkpoint.keep_last` is 0, and `--keep-last` is not given");
        return Ok(0);
    }
    let held = if args.yes { Some(RunFolder::open(folder)?) } else { None };
    let checkpoints = paths.checkpoints();
    let of_step = |step: u64| checkpoints.join(checkpoint::folder_name(step));
    let mut steps = retention::unkept(&checkpoints, retention)?;
    for (step, folder) in checkpoint::list(&checkpoints)? {
        let foreign = contents::foreign_in_checkpoint(&folder)?;
        if !foreign.is_empty() {
            say!(
                "`{shown}` keeps step {step}: its folder holds `{}`, which runner did not write",
                foreign[0]
            );
        }
    }
    steps.retain(|step| {
        let from_it: Vec<&Branch> =
            branches.iter().filter(|branch| branch.starts_in(&of_step(*step))).collect();
        let needs = from_it.iter().find(|branch| !branch.is_done(&args.runs));
        match (needs, from_it.first()) {
            (Some(Branch { name, .. }), _) => {
                say!("`{shown}` keeps step {step}: `{name}`, which is not done, starts from its checkpoint")
            }
            (None, Some(Branch { name, .. })) => {
                say!("`{name}` started from step {step} of `{shown}`: a replay of its first steps needs that")
            }
            (None, None) => {}
        }
        needs.is_none()
    });
    if args.yes && !steps.is_empty() {
        keep_one_whole(&checkpoints, &mut steps)?;
    }
    let bytes = steps.iter().map(|step| contents::bytes_in(&of_step(*step))).sum();
    if !steps.is_empty() {
        let listed: Vec<String> = steps.iter().map(u64::to_string).collect();
        let (does, size) = (if args.yes { "loses" } else { "would lose" }, units::bytes(bytes));
        let [of_which, of] = ["checkpoint", "step"].map(|one| units::noun(steps.len(), one));
        say!("`{shown}` {does} the {of_which} of {of} {}: {size}", listed.join(", "));
    }
    if held.is_some() {
        retention::remove(&checkpoints, &steps)?;
    }
    Ok(bytes)
}

/// Takes the newest whole checkpoint out of the `steps` that are to go where none that stays is whole. Every
/// byte is read, from the newest on, until one is.
fn keep_one_whole(checkpoints: &Path, steps: &mut Vec<u64>) -> anyhow::Result<()> {
    let found = checkpoint::list(checkpoints)?;
    let stay = found.iter().rev().filter(|(step, _)| !steps.contains(step));
    let go = found.iter().rev().filter(|(step, _)| steps.contains(step));
    let Some((whole, _)) = stay.chain(go).find(|(_, folder)| checkpoint::load(folder).is_ok()) else {
        return Ok(());
    };
    if steps.contains(whole) {
        say!("`{}` keeps step {whole}: none that would stay is whole", checkpoints.display());
        steps.retain(|step| step != whole);
    }
    Ok(())
}
