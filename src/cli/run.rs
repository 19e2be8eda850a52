//! `runner run EXPERIMENT`: train from the first step.

use std::path::PathBuf;
use std::process::ExitCode;

use super::session::{self, Session};
use crate::experiment;
use crate::store::RunFolder;

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
    /// Print events as JSON lines on stdout.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut loaded = experiment::load(&args.experiment, &args.set)?;
    let data = session::Data::open(&mut loaded)?;
    let device = session::Device::open(&loaded.experiment)?;
    let name = args.name.as_deref().unwrap_or(&loaded.experiment.name);
    // Last, so that nothing is left behind when anything above fails.
    let folder = RunFolder::create(&args.runs, name, args.overwrite)?;
    crate::store::atomic::write(&folder.paths.experiment(), loaded.to_toml().as_bytes())?;
    Session { experiment: loaded.experiment, device, data, folder, json: args.json }.train(None)
}
