//! One process a device: who starts them, where each belongs, and how they end together.
//!
//! Under mpirun, mpiexec, srun or torchrun every process finds its place in its environment. Without them the
//! process that a person starts becomes the parent: it starts one process for each rank, with the same
//! command line, and watches. A line on a child's stdin is a wish to stop, and the end of it is the end of
//! the parent, after which no child stays.

use std::io::{IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;

use super::{exit, stop};
use crate::experiment::{DeviceKind, Experiment, Loaded};
use crate::ops::DeviceError;
use crate::ops::cuda::driver;
pub use crate::parallel::Place;
use crate::parallel::{ExchangeError, Meeting, Tcp, launch, rendezvous};
use crate::proof::Hash;
use crate::train::{RunError, TrainError};

/// How long ranks may take to end after one has failed: all know of it at once, and those that are stuck in a
/// call of the device's end themselves within five seconds.
const GRACE: Duration = Duration::from_secs(10);

/// What this process is in a run.
pub enum Role {
    /// The only rank.
    Alone,
    /// Starts so many ranks and watches them.
    Parent(usize),
    Rank(Place),
}

/// The role of this process. `asked` is `--ranks`, and `runs` the folder that all ranks share.
pub fn role(experiment: &Experiment, asked: Option<usize>, runs: &Path) -> anyhow::Result<Role> {
    let workers = experiment.parallel.workers;
    let var = |name: &str| std::env::var(name).ok();
    let divides = |ranks: usize| ranks.is_power_of_two() && workers.is_multiple_of(ranks);
    let refuse = |ranks: usize, whose: &str| {
        anyhow::anyhow!(
            "{whose} {ranks} ranks cannot share {workers} virtual workers\n  hint: the number of ranks must be a power of two that divides `parallel.workers`; more workers change the bits"
        )
    };
    // A launcher that starts one process (a shell of Slurm's, say) leaves the rest to this program.
    if let Some(place) = launch::place(&var, &runs.join(".ranks"))?.filter(|place| place.size > 1) {
        let size = place.size;
        if let Some(asked) = asked.filter(|asked| ![0, size].contains(asked)) {
            anyhow::bail!(
                "the launcher has started {size} ranks, `--ranks` asks for {asked}\n  hint: leave it to the launcher"
            );
        }
        return if divides(size) { Ok(Role::Rank(place)) } else { Err(refuse(size, "the launcher's")) };
    }
    let ranks = match asked.unwrap_or(experiment.parallel.ranks) {
        0 => all_gpus(experiment)?,
        ranks if divides(ranks) => ranks,
        ranks => return Err(refuse(ranks, "the asked for")),
    };
    Ok(if ranks == 1 { Role::Alone } else { Role::Parent(ranks) })
}

/// Whether a launcher has started this process, and nobody sits before it.
pub fn is_launched() -> bool {
    launch::is_launched(&|name| std::env::var(name).ok()) && !std::io::stdin().is_terminal()
}

/// As many of this machine's GPUs as the virtual workers can be divided among; 1 without any.
fn all_gpus(experiment: &Experiment) -> anyhow::Result<usize> {
    let gpus = match experiment.device.kind {
        DeviceKind::Cpu | DeviceKind::Mirror => return Ok(1),
        DeviceKind::Cuda | DeviceKind::Auto => match driver::gpus() {
            Ok(gpus) => gpus.len(),
            // Opening the device will say what is missing, or take the CPU.
            Err(DeviceError::Unavailable(_)) => return Ok(1),
            Err(error) => return Err(error.into()),
        },
    };
    let most = if gpus == 0 { 1 } else { 1 << gpus.ilog2() };
    let ranks = most.min(experiment.parallel.workers);
    if ranks < gpus {
        anstream::eprintln!(
            "{ranks} of {gpus} GPUs are used: `parallel.workers` is {}, and the number of ranks is a power of two that divides it",
            experiment.parallel.workers
        );
    }
    Ok(ranks)
}

/// What all ranks must agree on before they exchange anything: the keys that reach the bits, how states are
/// divided, and the program.
fn job(experiment: &Experiment) -> String {
    let mut text = format!("{} {}\n", env!("CARGO_PKG_VERSION"), env!("RUNNER_GIT_COMMIT"));
    for (key, value) in super::locking::resolved_numerics(experiment) {
        text.push_str(&format!("{key} = {value}\n"));
    }
    text.push_str(&format!("parallel.zero = {}\n", experiment.parallel.zero));
    Hash::of(text.as_bytes()).to_string()
}

/// This rank's lines to the others.
pub fn join(place: &Place, loaded: &Loaded) -> anyhow::Result<Tcp> {
    let timeout = Duration::from_secs(loaded.experiment.parallel.timeout_s);
    let lines = rendezvous::meet(place, &job(&loaded.experiment), timeout)?;
    let rank = place.rank;
    // A rank that hangs in a call of the device's cannot end by itself.
    let last_resort = Box::new(move |error: &ExchangeError| {
        if rank == 0 || !told(error) {
            exit::print(&format!("{error}"));
        }
        exit::at_once(exit::FAILED);
    });
    Tcp::start(place, lines, timeout, last_resort)
        .context("cannot start the threads of the lines between ranks")
}

fn told(error: &ExchangeError) -> bool {
    matches!(error, ExchangeError::Lost { told: true, .. })
}

/// Does a rank's `work`. An error says whose it is; one that every rank has is rank 0's to tell.
pub fn as_rank(
    place: Place,
    work: impl FnOnce(&Place) -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    stop::begin().context("cannot listen to the parent")?;
    let error = match work(&place) {
        Ok(code) => return Ok(code),
        Err(error) => error,
    };
    if place.rank != 0 && is_everyones(&error) {
        return Ok(ExitCode::from(exit::FAILED));
    }
    Err(error.context(format!("rank {} on `{}`", place.rank, rendezvous::host_name())))
}

/// Whether every rank has this error, so that rank 0 alone tells of it.
fn is_everyones(error: &anyhow::Error) -> bool {
    let train = match error.downcast_ref::<RunError>() {
        Some(RunError::Train(train) | RunError::Step { error: train, .. }) => Some(train),
        _ => error.downcast_ref::<TrainError>(),
    };
    match train {
        Some(TrainError::RanksDiffer { .. }) => true,
        Some(TrainError::Exchange(error)) => told(error),
        _ => error.downcast_ref::<ExchangeError>().is_some_and(told),
    }
}

/// Starts `ranks` processes with this command line and watches them to their end.
pub fn parent(ranks: usize, runs: &Path) -> anyhow::Result<ExitCode> {
    let program = std::env::current_exe().context("cannot find this program to start its ranks")?;
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let run = format!("{}-{}-{nanos}", rendezvous::host_name(), std::process::id());
    // Asked for before the children start, so that no signal falls between.
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    stop::on_wishes(move || {
        count.fetch_add(1, Ordering::SeqCst);
    })?;
    let mut family = Family { children: Vec::new(), folder: runs.join(".ranks") };
    for rank in 0..ranks {
        let place = Place {
            rank,
            size: ranks,
            local_rank: rank,
            local_size: ranks,
            run: run.clone(),
            meeting: Meeting::Folder(family.folder.clone()),
        };
        let mut command = Command::new(&program);
        command
            .args(std::env::args_os().skip(1))
            .envs(launch::variables(&place))
            .env(stop::WATCHED, "1")
            .stdin(Stdio::piped());
        command.env_remove("MASTER_ADDR").env_remove("MASTER_PORT");
        // Only its reductions use NVLS, and ours are not its.
        command.env("NCCL_NVLS_ENABLE", "0");
        if rank > 0 {
            command.stdout(Stdio::null());
        }
        own_group(&mut command);
        family.children.push(Process { child: command.spawn().context("cannot start a rank")?, ended: None });
    }
    family.watch(&asked)
}

#[cfg(unix)]
fn own_group(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    // An interrupt from the terminal reaches the parent alone, who passes it on once.
    command.process_group(0);
}

#[cfg(not(unix))]
fn own_group(_: &mut Command) {}

struct Process {
    child: Child,
    ended: Option<ExitStatus>,
}

/// The ranks of this machine.
struct Family {
    children: Vec<Process>,
    /// Where they met.
    folder: PathBuf,
}

impl Family {
    /// Waits for all; passes wishes to stop on; ends what does not end by itself.
    fn watch(&mut self, asked: &AtomicUsize) -> anyhow::Result<ExitCode> {
        let mut passed_on = 0;
        let mut failed: Option<Instant> = None;
        while self.children.iter().any(|process| process.ended.is_none()) {
            let wishes = asked.load(Ordering::SeqCst);
            for _ in passed_on..wishes {
                self.ask_to_stop();
            }
            passed_on = wishes;
            for (rank, process) in
                self.children.iter_mut().enumerate().filter(|(_, process)| process.ended.is_none())
            {
                let Some(status) = process.child.try_wait().context("cannot wait for a rank")? else {
                    continue;
                };
                process.ended = Some(status);
                // Who ends as all do may leave rank 0 to draw and to tidy up.
                let together = [exit::INTERRUPTED, exit::DIVERGED].map(|code| Some(i32::from(code)));
                if !status.success() && !together.contains(&status.code()) && failed.is_none() {
                    failed = Some(Instant::now());
                }
                if status.code().is_none() {
                    exit::print(&format!(
                        "rank {rank} (process {}) was killed: {status}",
                        process.child.id()
                    ));
                }
            }
            if failed.is_some_and(|since| since.elapsed() > GRACE) {
                self.kill();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let codes: Vec<Option<i32>> =
            self.children.iter().map(|p| p.ended.and_then(|status| status.code())).collect();
        let first = codes.iter().find(|code| **code != Some(0));
        let code = if codes[0] == Some(0) { first.copied().unwrap_or(Some(0)) } else { codes[0] };
        Ok(ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(exit::FAILED)))
    }

    fn ask_to_stop(&mut self) {
        for process in self.children.iter_mut().filter(|process| process.ended.is_none()) {
            if let Some(stdin) = &mut process.child.stdin {
                // A rank that has just ended needs no asking.
                let _ = stdin.write_all(b"s").and_then(|()| stdin.flush());
            }
        }
    }

    fn kill(&mut self) {
        for (rank, process) in
            self.children.iter_mut().enumerate().filter(|(_, process)| process.ended.is_none())
        {
            exit::print(&format!("rank {rank} (process {}) does not end and is killed", process.child.id()));
            let _ = process.child.kill();
        }
    }
}

impl Drop for Family {
    /// Leaves no rank behind, however the parent ends.
    fn drop(&mut self) {
        for process in self.children.iter_mut().filter(|process| process.ended.is_none()) {
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
        // Empty unless another run of this folder is just meeting.
        let _ = std::fs::remove_dir(&self.folder);
    }
}
