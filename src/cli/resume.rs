//! `runner resume [RUN]`: go on from the newest whole checkpoint, to the bits of the uninterrupted run.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::exit::ProofRefusal;
use super::run_argument;
use super::session::{self, Session};
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
    let drift = match &found {
        Some((manifest, _)) => drift(&manifest.numerics, &session::numerics(&loaded.experiment)),
        None => Vec::new(),
    };
    if !drift.is_empty() && !args.allow_drift {
        return Err(refusal(&path, &drift).into());
    }
    let data = session::Data::open(&mut loaded)?;
    let device = session::Device::open(&loaded.experiment)?;
    if !args.set.is_empty() {
        crate::store::atomic::write(&folder.paths.experiment(), loaded.to_toml().as_bytes())?;
    }
    match &found {
        Some((manifest, _)) => anstream::eprintln!("resuming `{}` at step {}", path.display(), manifest.step),
        None => anstream::eprintln!("no whole checkpoint in `{}`: starting at step 0", path.display()),
    }
    Session { experiment: loaded.experiment, device, data, folder, json: args.json }.train(Some(session::Resume { found, drift }))
}

type Numerics = std::collections::BTreeMap<String, String>;

/// Keys whose values differ between a checkpoint and the present experiment, with both values.
fn drift(saved: &Numerics, now: &Numerics) -> Vec<String> {
    let keys: std::collections::BTreeSet<&String> = saved.keys().chain(now.keys()).collect();
    let show = |value: Option<&String>| value.map_or("nothing", String::as_str).to_owned();
    keys.into_iter()
        .filter(|key| saved.get(*key) != now.get(*key))
        .map(|key| format!("`{key}` was {}, is {}", show(saved.get(key)), show(now.get(key))))
        .collect()
}

fn refusal(path: &Path, drift: &[String]) -> ProofRefusal {
    let list: String = drift.iter().map(|d| format!("\n  {d}")).collect();
    ProofRefusal(format!(
        "the experiment of `{}` has changed since its checkpoint:{list}\n  hint: undo the change, or go on with `--allow-drift`, which is written into the ledger",
        path.display()
    ))
}
