//! `runner lock EXPERIMENT`: write down what its bits depend on, without training.

use std::path::{Path, PathBuf};

use super::initial;
use super::locking::{self, Locked};
use super::session::{self, Data};
use crate::experiment::{self, Loaded};
use crate::store;
use crate::train::Trainer;

/// Write down what an experiment's bits depend on, for `runner run --lock`.
#[derive(clap::Args)]
pub struct Args {
    /// The experiment's TOML file.
    experiment: PathBuf,
    /// Set a key, over file and environment. May be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Where to write; by default beside the experiment, where `runner run` finds it.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace a lock that is there.
    #[arg(long)]
    overwrite: bool,
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
    let mut loaded = experiment::load(&args.experiment, &args.set)?;
    let data = Data::open(&mut loaded)?;
    match session::Device::open(&loaded.experiment)? {
        session::Device::Cpu(cpu) => write(cpu, &loaded, &data, &out),
        session::Device::Cuda(cuda) => write(*cuda, &loaded, &data, &out),
        session::Device::Mirror(mirror) => write(mirror, &loaded, &data, &out),
    }
}

fn write<O: Locked>(ops: O, loaded: &Loaded, data: &Data, out: &Path) -> anyhow::Result<()> {
    // Allocating chooses what is still to be chosen, such as algorithms.
    let initial = initial::read(&loaded.experiment, None, false)?;
    let trainer = Trainer::new(ops, &loaded.experiment)?;
    let lock = locking::lock(loaded, data, initial.as_ref(), &trainer.ops, locking::user_cache())?;
    store::atomic::write(out, lock.to_text().as_bytes())?;
    anstream::eprintln!("locked {} numerics in `{}`", lock.numerics.len(), out.display());
    println!("{}", lock.numerics_id());
    Ok(())
}
