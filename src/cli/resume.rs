//! `runner resume [RUN]`: go on from the newest whole checkpoint, to the bits of the uninterrupted run.

use std::path::PathBuf;
use std::process::ExitCode;

use super::initial;
use super::run_argument;
use super::session::{self, Place, Session};
use crate::experiment;
use crate::store::{RunFolder, newest_whole};

/// Go on with a run from its newest whole checkpoint.
#[derive(clap::Args)]
pub struct Args {
    /// The run: a name under `--runs`, or a folder. The newest run by default.
    run: Option<PathBuf>,
    /// Change a key first. What reaches the bits is refused without `--allow-drift`.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Folder that holds the run folders.
    #[arg(long, default_value = "runs", value_name = "DIR")]
    runs: PathBuf,
    /// Go on although something that the bits depend on has changed.
    #[arg(long)]
    allow_drift: bool,
    /// Print events as JSON lines on stdout.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let path = run_argument::find(args.run.as_deref(), &args.runs)?;
    let folder = RunFolder::open(&path)?;
    let mut loaded = experiment::load(&folder.paths.experiment(), &args.set)?;

    let (found, broken) = newest_whole(&folder.paths.checkpoints())?;
    for (step, why) in &broken {
        anstream::eprintln!("passed over the checkpoint of step {step}: {why}");
    }
    let data = session::Data::open(&mut loaded)?;
    let past = found.as_ref().map(|(manifest, _)| &manifest.numerics);
    let initial = initial::read(&loaded.experiment, past, found.is_some())?;
    let device = session::Device::open(&loaded.experiment)?;
    match &found {
        Some((manifest, _)) => anstream::eprintln!("resuming `{}` at step {}", path.display(), manifest.step),
        None => anstream::eprintln!("no whole checkpoint in `{}`: starting at step 0", path.display()),
    }
    Session { loaded, device, data, initial, place: Place::Open(folder), expected: None, json: args.json }
        .train(Some(session::Resume { found, allow_drift: args.allow_drift, edited: !args.set.is_empty() }))
}
