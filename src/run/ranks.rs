//! One process for each device: the role of this process, and how it joins the others.
//!
//! Under mpirun, mpiexec, srun or torchrun every process reads its rank from its environment. Without them
//! the process that the user starts becomes the parent of the ranks.

use std::io::IsTerminal as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use super::ending::Ending;
use super::error::{StoppedOnRequest, UsageError, train_error};
use super::lock::resolved_numerics;
use super::messages::{Message, Report};
use super::{alerts, member, parent, stop};
use crate::experiment::{DeviceKind, Experiment};
use crate::ops::DeviceError;
use crate::ops::cuda::driver;
use crate::parallel::{ExchangeError, RankPlace, Tcp, launch, rendezvous};
use crate::proof::Hash;
use crate::train::TrainError;
use crate::units::noun;

/// The role of this process in a run.
enum Process {
    /// The only rank.
    Alone,
    /// The parent: starts this many ranks and watches them.
    Parent(usize),
    Rank(RankPlace),
}

/// How the work of a run's processes ended, seen from this one.
pub enum Ended {
    /// This process did it.
    Here(Ending),
    /// The ranks that this process started did, and this is their exit code; none where a signal ended one.
    Ranks(Option<i32>),
    /// It failed with an error that every rank has; rank 0 reports it.
    Everywhere,
}

/// Does a run's `work`, or starts the ranks that do. `asked` is `--ranks`, and `runs` the folder that all
/// ranks share; `folder` is the run's own. However it ends, one process has the user's command run.
pub fn in_processes(
    experiment: &Experiment,
    asked: Option<usize>,
    (runs, folder): (&Path, &Path),
    report: Report,
    work: impl FnOnce(Option<&RankPlace>) -> anyhow::Result<Ending>,
) -> anyhow::Result<Ended> {
    let process = process(experiment, asked, runs, report)?;
    if !matches!(process, Process::Rank(_)) {
        member::follow_sweep().context("cannot listen to the sweep")?;
    }
    if !matches!(&process, Process::Rank(place) if place.rank > 0) {
        alerts::prepare(folder, report);
    }
    let alerting = |how| {
        alerts::ended(&how);
        how
    };
    match process {
        Process::Alone => alerting(work(None)).map(Ended::Here),
        Process::Parent(ranks) => parent::start(ranks, runs, report).map(Ended::Ranks),
        Process::Rank(place) => as_rank(&place, || {
            alerting(work(Some(&place)).map_err(|error| explained(error, stop::came_before_training)))
        }),
    }
}

/// What this process is.
fn process(
    experiment: &Experiment,
    asked: Option<usize>,
    runs: &Path,
    report: Report,
) -> anyhow::Result<Process> {
    let workers = experiment.parallel.workers;
    let var = |name: &str| std::env::var(name).ok();
    let divides = |ranks: usize| ranks.is_power_of_two() && workers.is_multiple_of(ranks);
    let refuse = |ranks: usize, whose: &str| {
        UsageError(format!(
            "{ranks} {}, {whose}, cannot share {workers} {}\n  hint: the number of ranks must be a power \
             of two that divides `parallel.workers`; more workers change the bits",
            noun(ranks, "rank"),
            noun(workers, "virtual worker")
        ))
    };
    // A launcher that starts one process, such as a shell in Slurm, leaves starting ranks to this program.
    if let Some(place) = launch::place(&var, &runs.join(parent::FOLDER))?.filter(|place| place.size > 1) {
        let size = place.size;
        if let Some(asked) = asked.filter(|asked| ![0, size].contains(asked)) {
            return Err(UsageError(format!(
                "the launcher has started {size} ranks, `--ranks` asks for {asked}\n  hint: leave it to the \
                 launcher"
            ))
            .into());
        }
        if !divides(size) {
            return Err(refuse(size, "which the launcher has started").into());
        }
        return Ok(Process::Rank(place));
    }
    let ranks = match asked.unwrap_or(experiment.parallel.ranks) {
        0 => all_gpus(experiment, report)?,
        ranks if divides(ranks) => ranks,
        ranks => return Err(refuse(ranks, "as asked for").into()),
    };
    Ok(if ranks == 1 { Process::Alone } else { Process::Parent(ranks) })
}

/// Whether a launcher has started this process, and not a user in a terminal.
pub fn is_launched() -> bool {
    launch::is_launched(&|name| std::env::var(name).ok()) && !std::io::stdin().is_terminal()
}

/// As many of this machine's GPUs as the virtual workers can be divided among; 1 without any.
fn all_gpus(experiment: &Experiment, report: Report) -> anyhow::Result<usize> {
    let gpus = match experiment.device.kind {
        DeviceKind::Cpu | DeviceKind::Mirror => return Ok(1),
        DeviceKind::Cuda | DeviceKind::Auto => match driver::gpus() {
            Ok(gpus) => gpus.len(),
            // Opening the device reports what is missing, or takes the CPU.
            Err(DeviceError::Unavailable(_)) => return Ok(1),
            Err(error) => return Err(error.into()),
        },
    };
    let most = if gpus == 0 { 1 } else { 1 << gpus.ilog2() };
    let workers = experiment.parallel.workers;
    let used = most.min(workers);
    if used < gpus {
        report.tell(&Message::GpusLeftOver { used, gpus, workers });
    }
    Ok(used)
}

/// What all ranks must agree on before they exchange anything, hashed: the keys that can change bits, how
/// states are divided, and the program.
fn job(experiment: &Experiment) -> String {
    let mut text = format!("{} {}\n", env!("CARGO_PKG_VERSION"), env!("RUNNER_GIT_COMMIT"));
    for (key, value) in resolved_numerics(experiment) {
        text.push_str(&format!("{key} = {value}\n"));
    }
    text.push_str(&format!("parallel.zero = {}\n", experiment.parallel.zero));
    Hash::of(text.as_bytes()).to_string()
}

/// This rank's connections to the others.
pub fn join(place: &RankPlace, experiment: &Experiment, report: Report) -> anyhow::Result<Tcp> {
    let timeout = Duration::from_secs(experiment.parallel.timeout_s);
    let connections = rendezvous::meet(place, &job(experiment), timeout)?;
    let rank = place.rank;
    // A rank in a blocking device call cannot end by itself.
    let last_resort = Box::new(move |error: &ExchangeError| {
        if rank == 0 || !is_known_to_all(error) {
            report.tell(&Message::RankLost(error));
        }
        alerts::lost(error);
        Ending::Failed.at_once();
    });
    Tcp::start(place, connections, timeout, last_resort)
        .context("cannot start the threads of the connections between ranks")
}

/// Whether the rank that failed has sent its error to the others.
fn is_known_to_all(error: &ExchangeError) -> bool {
    matches!(error, ExchangeError::Lost { reported: true, .. })
}

/// Does a rank's `work`. An error names the rank; rank 0 reports an error that every rank has.
fn as_rank(place: &RankPlace, work: impl FnOnce() -> anyhow::Result<Ending>) -> anyhow::Result<Ended> {
    stop::begin().context("cannot listen to the parent")?;
    match work() {
        Ok(done) => Ok(Ended::Here(done)),
        Err(error) if error.is::<StoppedOnRequest>() => Ok(Ended::Here(Ending::Interrupted)),
        Err(error) if place.rank != 0 && is_everyones(&error) => Ok(Ended::Everywhere),
        Err(error) => Err(error.context(format!("rank {} on `{}`", place.rank, rendezvous::host_name()))),
    }
}

/// Before training begins, ranks that are asked to stop end at once: one that was asked too and has lost
/// another was stopped as well, and has not failed.
fn explained(error: anyhow::Error, was_stopped: impl FnOnce() -> bool) -> anyhow::Error {
    match alerts::exchange(&error).is_some() && was_stopped() {
        true => StoppedOnRequest.into(),
        false => error,
    }
}

/// Whether every rank has this error, so that rank 0 alone reports it.
fn is_everyones(error: &anyhow::Error) -> bool {
    match train_error(error) {
        Some(TrainError::RanksDiffer { .. }) => true,
        Some(TrainError::Exchange(error)) => is_known_to_all(error),
        _ => error.downcast_ref::<ExchangeError>().is_some_and(is_known_to_all),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::Loss;
    use crate::train::RunError;

    #[test]
    fn a_rank_that_lost_another_while_all_were_asked_to_stop_was_stopped() {
        let lost = || {
            let why = Loss { why: "its connection closed".into(), hangs: false };
            let (host, operation) = ("a".into(), "the numerics".into());
            let error = ExchangeError::Lost { rank: 1, host, operation, why, reported: false };
            anyhow::Error::from(RunError::Train(TrainError::Exchange(error)))
        };
        assert!(explained(lost(), || true).is::<StoppedOnRequest>());
        assert!(!explained(lost(), || false).is::<StoppedOnRequest>());
        assert!(!explained(anyhow::anyhow!("a full disk"), || true).is::<StoppedOnRequest>());
    }
}
