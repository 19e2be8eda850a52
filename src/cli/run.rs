//! `runner run EXPERIMENT`: train from the first step; of a sweep, all its members.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use super::numbers::from_one;
use super::reporter::{conclude, exit_code, reporter};
use super::sweep::{SweepPrinter, options};
use super::{experiment, lock};
use crate::experiment::Declared;
use crate::run::open::{Existing, Opened, RunRequest};
use crate::run::train::train;
use crate::run::{UsageError, ranks, require_usage, sweep};

/// Train an experiment, or all members of a sweep, from the first step.
#[derive(clap::Args)]
pub struct Args {
    /// A TOML file, or the name of a shipped experiment: quickstart, ci, ….
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
    /// Resume a run of this name if there is one, here or in `checkpoint.copy_to`, as `runner resume` does:
    /// one command for a job that is started repeatedly. A change that would give other bits is refused;
    /// a run that has ended stays as it is.
    #[arg(long, conflicts_with = "overwrite")]
    or_resume: bool,
    /// Processes that share the work, one device each; by default one for each GPU of this machine.
    #[arg(long, value_name = "N", value_parser = from_one::<NonZeroUsize>)]
    ranks: Option<NonZeroUsize>,
    /// Of a sweep: train N members at a time. GPUs are divided among them, and the CPUs too.
    #[arg(long, value_name = "N", value_parser = from_one::<NonZeroUsize>)]
    jobs: Option<NonZeroUsize>,
    /// Of a sweep: train this member alone, as one job of an array does.
    #[arg(long, value_name = "NUMBER", conflicts_with = "jobs", value_parser = from_one::<NonZeroUsize>)]
    member: Option<NonZeroUsize>,
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
    let existing = match (args.overwrite, args.or_resume) {
        (true, _) => Existing::Replace,
        (_, true) => Existing::Resume,
        _ => Existing::Refuse,
    };
    let (loaded, of_sweep) = match experiment::load_declared(&args.experiment, &args.set, &args.runs)? {
        Declared::Experiment(loaded) => (*loaded, None),
        Declared::Sweep(sweep) => {
            require_usage(args.lock.is_none(), || {
                "`--lock` is of one run, and this is a sweep\n  hint: `runner verify NAME --expect HASH` \
                 compares a sweep with the hash of another"
                    .into()
            })?;
            let name = args.name.as_deref().unwrap_or(&sweep.name);
            let Some(number) = args.member else {
                let options = options(args.jobs, args.ranks.map(NonZeroUsize::get), args.json);
                let (report, mut on) = (reporter(args.json), SweepPrinter::new(args.json));
                let to = (args.runs.as_path(), name);
                experiment::say_remarks(&experiment::common_remarks(&sweep));
                let outcome =
                    sweep::start(&sweep, to, existing, &options, report, &mut |event| on.on(event))?;
                return on.conclude(&outcome);
            };
            let (paths, folder, member) =
                sweep::member(&sweep, (&args.runs, name), number.get(), reporter(args.json))?;
            (member.loaded, Some((paths.folder().to_owned(), folder.name)))
        }
    };
    require_usage(of_sweep.is_some() || (args.jobs.is_none() && args.member.is_none()), || {
        "`--jobs` and `--member` are for a sweep, and this file declares one run".into()
    })?;
    if let Some(lock) = args.lock.as_ref().filter(|lock| !lock.exists()) {
        return Err(UsageError(format!(
            "there is no lock `{0}`\n  hint: `runner lock {1} --out {0}` writes one",
            lock.display(),
            args.experiment.display()
        ))
        .into());
    }
    let report = reporter(args.json);
    let beside = Some(lock::beside(&args.experiment));
    let beside = beside.filter(|beside| !args.no_lock && of_sweep.is_none() && beside.exists());
    let (runs, name) = of_sweep
        .unwrap_or_else(|| (args.runs.clone(), args.name.unwrap_or_else(|| loaded.experiment.name.clone())));
    let request = RunRequest { name, runs, existing, lock: args.lock.or(beside) };
    let experiment = loaded.experiment.clone();
    let folder = request.runs.join(&request.name);
    let asked = args.ranks.map(NonZeroUsize::get);
    let ended = ranks::in_processes(&experiment, asked, (&args.runs, &folder), report, |place| {
        conclude(train(Opened::start(loaded, request, place, report)?)?, args.json)
    })?;
    Ok(exit_code(ended))
}
