//! `runner run EXPERIMENT`: train from the first step.

use std::path::PathBuf;
use std::process::ExitCode;

use super::initial;
use super::lock;
use super::locking::Expected;
use super::ranks::{self, Role};
use super::resume;
use super::session::{self, Place, Session};
use super::team::Team;
use crate::experiment::{self, Loaded};
use crate::store::{RunFolder, RunPaths};

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
    /// Go on with a run of this name where there is one, as `runner resume` does: one command for a job that
    /// is started again and again. Other bits than the run's are refused.
    #[arg(long, conflicts_with = "overwrite")]
    or_resume: bool,
    /// Processes that share the work, one device each; by default one for each GPU of this machine.
    #[arg(long, value_name = "N")]
    ranks: Option<usize>,
    /// Hold the run to this lock; by default to the one beside the experiment, if there is one.
    #[arg(long, value_name = "FILE")]
    lock: Option<PathBuf>,
    /// Do not look for a lock beside the experiment.
    #[arg(long, conflicts_with = "lock")]
    no_lock: bool,
    /// Print events as JSON lines on stdout.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let loaded = experiment::load(&args.experiment, &args.set)?;
    match ranks::role(&loaded.experiment, args.ranks, &args.runs)? {
        Role::Parent(ranks) => ranks::parent(ranks, &args.runs),
        Role::Alone => train(args, loaded, None),
        Role::Rank(place) => ranks::as_rank(place, |place| train(args, loaded, Some(place))),
    }
}

fn train(args: Args, mut loaded: Loaded, rank: Option<&ranks::Place>) -> anyhow::Result<ExitCode> {
    let mut team = Team::join(rank, &loaded)?;
    let name = args.name.unwrap_or_else(|| loaded.experiment.name.clone());
    let path = args.runs.join(&name);
    let beside = lock::beside(&args.experiment);
    let lock = args.lock.or_else(|| Some(beside).filter(|beside| !args.no_lock && beside.exists()));
    let expected = lock.as_deref().map(Expected::read).transpose()?;
    // Rank 0 looks, for soon there will be a folder.
    if args.or_resume && team.agree("whether there is a run", RunPaths::new(&path).experiment().exists())? {
        let how = resume::How { edited: true, allow_drift: false, expected, json: args.json };
        return resume::go_on(team, &path, loaded, how);
    }
    if args.overwrite && team.is_first() {
        RunFolder::check_overwrite(&args.runs, &name)?;
    }
    let data = session::Data::open(&mut loaded)?;
    let initial = initial::read(&loaded.experiment, None, false)?;
    let device = session::Device::open_for(&loaded.experiment, &team)?;
    // Last, so that nothing is left behind when anything above fails.
    let place = match args.overwrite {
        _ if !team.is_first() => Place::Told,
        // A kill may have left a folder in which nothing had begun.
        false if args.or_resume => Place::Open(RunFolder::create_again(&args.runs, &name)?),
        false => Place::Open(RunFolder::create(&args.runs, &name, false)?),
        true => Place::Replace { runs: args.runs, name },
    };
    Session { loaded, device, data, initial, place, expected, team, json: args.json }.train(None)
}
