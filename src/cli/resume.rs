//! `runner resume [RUN]`: go on from the newest whole checkpoint, to the bits of the uninterrupted run.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::initial;
use super::locking::Expected;
use super::ranks::{self, Role};
use super::run_argument;
use super::session::{self, Place, Session};
use super::team::Team;
use crate::experiment::{self, Loaded};
use crate::store::{self, RunFolder, RunPaths, newest_whole};

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
    /// Processes that share the work, one device each: any number, whatever it was before.
    #[arg(long, value_name = "N")]
    ranks: Option<usize>,
    /// Go on although something that the bits depend on has changed.
    #[arg(long)]
    allow_drift: bool,
    /// Print events as JSON lines on stdout.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let path = run_argument::find(args.run.as_deref(), &args.runs)?;
    let loaded = experiment::load(&RunPaths::new(&path).experiment(), &args.set)?;
    match ranks::role(&loaded.experiment, args.ranks, &args.runs)? {
        Role::Parent(ranks) => ranks::parent(ranks, &args.runs),
        Role::Alone => train(args, &path, loaded, None),
        Role::Rank(place) => ranks::as_rank(place, |place| train(args, &path, loaded, Some(place))),
    }
}

fn train(args: Args, path: &Path, loaded: Loaded, rank: Option<&ranks::Place>) -> anyhow::Result<ExitCode> {
    let how =
        How { edited: !args.set.is_empty(), allow_drift: args.allow_drift, expected: None, json: args.json };
    go_on(Team::join(rank, &loaded)?, path, loaded, how)
}

/// How to go on.
pub struct How {
    /// Whether the experiment may have other keys than the run's own.
    pub edited: bool,
    pub allow_drift: bool,
    /// The lock to hold the run to.
    pub expected: Option<Expected>,
    pub json: bool,
}

/// Goes on with the run at `path`.
pub fn go_on(mut team: Team, path: &Path, mut loaded: Loaded, how: How) -> anyhow::Result<ExitCode> {
    let (place, found) = if team.is_first() {
        let folder = RunFolder::open(path)?;
        for path in store::contents::beside_checkpoints(&folder.paths.checkpoints())? {
            anstream::eprintln!("note: `{}` is no checkpoint, and is left alone", path.display());
        }
        let (found, broken) = newest_whole(&folder.paths.checkpoints())?;
        for (step, why) in &broken {
            anstream::eprintln!("passed over the checkpoint of step {step}: {why}");
        }
        (Place::Open(folder), found)
    } else {
        (Place::Told, None)
    };
    let data = session::Data::open(&mut loaded)?;
    let past = team.past(found.as_ref().map(|(manifest, _)| &manifest.numerics))?;
    let initial = initial::read(&loaded.experiment, past.as_ref(), past.is_some())?;
    let device = session::Device::open_for(&loaded.experiment, &team)?;
    match &found {
        Some((manifest, _)) => anstream::eprintln!("resuming `{}` at step {}", path.display(), manifest.step),
        None if team.is_first() => {
            anstream::eprintln!("no whole checkpoint in `{}`: starting at step 0", path.display())
        }
        None => {}
    }
    let resume = session::Resume { found, allow_drift: how.allow_drift, edited: how.edited };
    Session { loaded, device, data, initial, place, expected: how.expected, team, json: how.json }
        .train(Some(resume))
}
