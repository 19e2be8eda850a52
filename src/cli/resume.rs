//! `runner resume [RUN]`: continue from the newest whole checkpoint, to the bits of the uninterrupted run; of
//! a sweep, train what is missing.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use super::numbers::from_one;
use super::reporter::{conclude, exit_code, reporter};
use super::sweep::{SweepPrinter, options};
use crate::experiment::{self, Origin};
use crate::run::find;
use crate::run::open::{Continuation, Opened};
use crate::run::train::train;
use crate::run::{copies, ranks, require_usage, sweep};
use crate::store::RunPaths;

/// Resume a run from its newest whole checkpoint, or a sweep with what is missing of it.
#[derive(clap::Args)]
pub struct Args {
    /// The run or sweep: a name under `--runs`, or a folder. The newest by default.
    /// `s3://BUCKET/PREFIX/NAME`, or another place of copies with a name, is first brought into `--runs`.
    run: Option<PathBuf>,
    /// Change a key first. A key that can change bits is refused without `--allow-drift`. An edit of the
    /// run's own `experiment.toml` counts as one.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Folder that holds the run folders.
    #[arg(long, default_value = "runs", value_name = "DIR")]
    runs: PathBuf,
    /// Processes that share the work, one device each; the number may differ from before.
    #[arg(long, value_name = "N", value_parser = from_one::<NonZeroUsize>)]
    ranks: Option<NonZeroUsize>,
    /// Of a sweep: train N members at a time. GPUs are divided among them, and the CPUs too.
    #[arg(long, value_name = "N", value_parser = from_one::<NonZeroUsize>)]
    jobs: Option<NonZeroUsize>,
    /// Continue although something that the bits depend on has changed, or `lock.toml` is missing.
    #[arg(long)]
    allow_drift: bool,
    /// Print events as JSON lines on stdout.
    #[arg(long)]
    json: bool,
}

pub fn run(mut args: Args) -> anyhow::Result<ExitCode> {
    let report = reporter(args.json);
    if let Some(address) = args.run.as_deref().and_then(copies::named) {
        args.run = Some(copies::fetch(&address, &args.runs, report)?);
    }
    if let Some(folder) = find::find_sweep(args.run.as_deref(), &args.runs) {
        require_usage(args.set.is_empty() && !args.allow_drift, || {
            "a sweep goes on as it was declared\n  hint: `--set` and `--allow-drift` take one member, such \
             as `NAME/001`"
                .into()
        })?;
        let (options, mut on) =
            (options(args.jobs, args.ranks.map(NonZeroUsize::get), args.json), SweepPrinter::new(args.json));
        let outcome = sweep::resume(&folder, &options, reporter(args.json), &mut |event| on.on(event))?;
        return on.conclude(&outcome);
    }
    require_usage(args.jobs.is_none(), || "`--jobs` is for a sweep, and this is one run".into())?;
    let path = find::find(args.run.as_deref(), &args.runs)?;
    let loaded = experiment::load(&RunPaths::new(&path).experiment(), &args.set)?;
    let edited = loaded.origins.values().any(|origin| matches!(origin, Origin::Set | Origin::Environment(_)));
    let how = Continuation { edited, allow_drift: args.allow_drift, started_again: false, expected: None };
    let experiment = loaded.experiment.clone();
    let asked = args.ranks.map(NonZeroUsize::get);
    // A run elsewhere has its ranks meet beside it: the folder of runs here need not be there, nor writable.
    let runs = match path.parent().filter(|_| !path.starts_with(&args.runs)) {
        Some(beside) => beside.to_owned(),
        None => args.runs.clone(),
    };
    let ended = ranks::in_processes(&experiment, asked, (&runs, &path), report, |place| {
        conclude(train(Opened::resume(loaded, &path, how, place, report)?)?, args.json)
    })?;
    Ok(exit_code(ended))
}
