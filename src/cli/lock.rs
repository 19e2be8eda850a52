//! `runner lock EXPERIMENT`: record what its bits depend on, without training.

use std::path::{Path, PathBuf};

use super::experiment;
use super::reporter::reporter;
use super::streams::{self, say};
use crate::run::lock;
use crate::store::output::{self, OutputKind};

/// Record what an experiment's bits depend on, for `runner run --lock`.
#[derive(clap::Args)]
pub struct Args {
    /// A TOML file, or the name of a shipped experiment: quickstart, ci, ….
    experiment: PathBuf,
    /// Set a key, over file and environment. May be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Where to write; by default beside the experiment, where `runner run` finds it.
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace an existing lock.
    #[arg(long)]
    overwrite: bool,
    /// Folder that holds the runs that `model.init` may name.
    #[arg(long, default_value = "runs", value_name = "DIR")]
    runs: PathBuf,
}

/// The lock that goes with an experiment's file: `ci.lock.toml` beside `ci.toml`.
pub fn beside(experiment: &Path) -> PathBuf {
    experiment.with_extension("lock.toml")
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let out = args.out.unwrap_or_else(|| beside(&args.experiment));
    if out.exists() && !args.overwrite {
        anyhow::bail!(
            "`{}` is there already\n  hint: `--overwrite` replaces it; `--out` writes another",
            out.display()
        );
    }
    output::require(&out, OutputKind::Lock)?;
    let lock =
        lock::of_experiment(experiment::load(&args.experiment, &args.set, &args.runs)?, reporter(false))?;
    output::write(&out, lock.to_text().as_bytes(), OutputKind::Lock)?;
    say!("locked {} numerics in `{}`", lock.numerics.len(), out.display());
    streams::print(&format!("{}\n", lock.numerics_id()))
}
