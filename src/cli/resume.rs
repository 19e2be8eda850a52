//! `runner resume [RUN]`: continue from the newest whole checkpoint, to the bits of the uninterrupted run.

use std::path::PathBuf;
use std::process::ExitCode;

use super::reporter::{conclude, exit_code, reporter};
use crate::experiment::{self, Origin};
use crate::run::find;
use crate::run::open::{Continuation, Opened};
use crate::run::ranks;
use crate::run::train::train;
use crate::store::RunPaths;

/// Resume a run from its newest whole checkpoint.
#[derive(clap::Args)]
pub struct Args {
    /// The run: a name under `--runs`, or a folder. The newest run by default.
    run: Option<PathBuf>,
    /// Change a key first. A key that can change bits is refused without `--allow-drift`.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Folder that holds the run folders.
    #[arg(long, default_value = "runs", value_name = "DIR")]
    runs: PathBuf,
    /// Processes that share the work, one device each; the number may differ from before.
    #[arg(long, value_name = "N")]
    ranks: Option<usize>,
    /// Continue although something that the bits depend on has changed.
    #[arg(long)]
    allow_drift: bool,
    /// Print events as JSON lines on stdout.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let path = find::find(args.run.as_deref(), &args.runs)?;
    let loaded = experiment::load(&RunPaths::new(&path).experiment(), &args.set)?;
    let report = reporter(args.json);
    let edited = loaded.origins.values().any(|origin| matches!(origin, Origin::Set | Origin::Environment(_)));
    let how = Continuation { edited, allow_drift: args.allow_drift, expected: None };
    let experiment = loaded.experiment.clone();
    let ended = ranks::in_processes(&experiment, args.ranks, &args.runs, report, |place| {
        conclude(train(Opened::resume(loaded, &path, how, place, report)?)?, args.json)
    })?;
    Ok(exit_code(ended))
}
