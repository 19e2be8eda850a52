//! `runner run EXPERIMENT`: train from the first step.

use std::path::PathBuf;
use std::process::ExitCode;

use super::reporter::{conclude, exit_code, reporter};
use super::{experiment, lock};
use crate::run::UsageError;
use crate::run::open::{Existing, Opened, RunRequest};
use crate::run::ranks;
use crate::run::train::train;

/// Train an experiment from its first step.
#[derive(clap::Args)]
pub struct Args {
    /// The experiment's TOML file.
    experiment: PathBuf,
    /// Set a key, over file and environment: `--set schedule.steps=100`. May be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Name of the run folder; the experiment's name by default.
    #[arg(long)]
    name: Option<String>,
    /// Folder that holds the run folders.
    #[arg(long, default_value = "runs", value_name = "DIR")]
    runs: PathBuf,
    /// Delete a run of this name first.
    #[arg(long)]
    overwrite: bool,
    /// Resume a run of this name if there is one, as `runner resume` does: one command for a job that is
    /// started repeatedly. A change that would give other bits is refused.
    #[arg(long, conflicts_with = "overwrite")]
    or_resume: bool,
    /// Processes that share the work, one device each; by default one for each GPU of this machine.
    #[arg(long, value_name = "N")]
    ranks: Option<usize>,
    /// Require this lock; by default the one beside the experiment, if there is one.
    #[arg(long, value_name = "FILE")]
    lock: Option<PathBuf>,
    /// Ignore a lock beside the experiment.
    #[arg(long, conflicts_with = "lock")]
    no_lock: bool,
    /// Print events as JSON lines on stdout.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let loaded = experiment::load(&args.experiment, &args.set)?;
    if let Some(lock) = args.lock.as_ref().filter(|lock| !lock.exists()) {
        return Err(UsageError(format!(
            "there is no lock `{0}`\n  hint: `runner lock {1} --out {0}` writes one",
            lock.display(),
            args.experiment.display()
        ))
        .into());
    }
    let report = reporter(args.json);
    let beside = lock::beside(&args.experiment);
    let request = RunRequest {
        name: args.name.unwrap_or_else(|| loaded.experiment.name.clone()),
        runs: args.runs.clone(),
        existing: match (args.overwrite, args.or_resume) {
            (true, _) => Existing::Replace,
            (_, true) => Existing::Resume,
            _ => Existing::Refuse,
        },
        lock: args.lock.or_else(|| Some(beside).filter(|beside| !args.no_lock && beside.exists())),
    };
    let experiment = loaded.experiment.clone();
    let ended = ranks::in_processes(&experiment, args.ranks, &args.runs, report, |place| {
        conclude(train(Opened::start(loaded, request, place, report)?)?, args.json)
    })?;
    Ok(exit_code(ended))
}
