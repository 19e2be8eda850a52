//! `runner config EXPERIMENT`: the resolved experiment, and where each key came from.
//!
//! Reads what `runner run` would read and starts nothing. The output is itself an experiment, or a sweep.

use std::path::PathBuf;

use super::{experiment, streams};
use crate::experiment::Declared;

/// Print the resolved experiment with the origin of every key
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// The experiment's TOML file
    #[arg(value_name = "EXPERIMENT")]
    pub experiment: PathBuf,
    /// Set a key, over the file and the environment: `--set schedule.steps=100`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Print JSON instead of TOML
    #[arg(long)]
    pub json: bool,
}

/// Loads the experiment and prints it on stdout. A fault in it is an
/// [`experiment::ExperimentError`] inside the error: a matter of usage, exit code 2.
pub fn run(args: Args) -> anyhow::Result<()> {
    let text = match experiment::load_declared(&args.experiment, &args.sets)? {
        Declared::Experiment(loaded) if args.json => format!("{:#}\n", loaded.to_json()),
        Declared::Experiment(loaded) => loaded.to_toml(),
        Declared::Sweep(sweep) if args.json => format!("{:#}\n", sweep.to_json()),
        Declared::Sweep(sweep) => sweep.to_toml(),
    };
    streams::print(&text)
}
