//! The process that starts the ranks of one machine, with its own command line, and watches them to their
//! end.
//!
//! A byte on a rank's stdin asks it to stop. Its stdin ends when the parent ends, and then the rank ends too.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;

use super::alerts::{self, AlertKind};
use super::ending::Ending;
use super::messages::{Message, Report};
use super::stop;
use crate::parallel::handshake::{self, KeySource};
use crate::parallel::{Meeting, RankPlace, launch, rendezvous};

/// The folder in which ranks find each other, in the folder of all runs.
pub const FOLDER: &str = ".ranks";

/// How long ranks may take to end after one has failed: all are informed at once, and ranks in a blocking
/// device call end their process within five seconds.
const GRACE: Duration = Duration::from_secs(10);

/// Starts `ranks` processes with this command line and watches them to their end: the exit code of rank 0, or
/// of the first that failed where rank 0 did not; none where a signal ended it.
pub fn start(ranks: usize, runs: &Path, report: Report) -> anyhow::Result<Option<i32>> {
    let program = std::env::current_exe().context("cannot find this program to start its ranks")?;
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let run = format!("{}-{}-{nanos}", rendezvous::host_name(), std::process::id());
    let key = handshake::new_key().context("cannot make a key for the ranks")?;
    // Counted before the children start, so that no signal falls between.
    let requests = Arc::new(AtomicUsize::new(0));
    let count = requests.clone();
    stop::on_requests(move || {
        count.fetch_add(1, Ordering::SeqCst);
    })?;
    let folder = runs.join(FOLDER);
    let missing = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
    let above = runs.ancestors().take_while(missing).map(Path::to_owned);
    let folders = std::iter::once(folder.clone()).chain(above).collect();
    let mut started = StartedRanks { ranks: Vec::new(), folders, report };
    for rank in 0..ranks {
        let place = RankPlace {
            rank,
            size: ranks,
            local_rank: rank,
            local_size: ranks,
            run: run.clone(),
            meeting: Meeting::Folder(folder.clone()),
            key: KeySource::Given(key.clone()),
        };
        let mut command = Command::new(&program);
        command
            .args(std::env::args_os().skip(1))
            .envs(launch::variables(&place))
            .env(stop::WATCHED, "1")
            .stdin(Stdio::piped());
        command.env_remove("MASTER_ADDR").env_remove("MASTER_PORT");
        // Only NCCL's reductions use NVLS, and they are not used here.
        command.env("NCCL_NVLS_ENABLE", "0");
        if rank > 0 {
            command.stdout(Stdio::null());
        }
        own_group(&mut command);
        let process = command.spawn().context("cannot start a rank")?;
        started.ranks.push(StartedRank { process, ended: None, stuck: false });
    }
    started.watch(&requests)
}

#[cfg(unix)]
pub(super) fn own_group(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    // An interrupt from the terminal reaches only the parent, which passes it on once.
    command.process_group(0);
}

#[cfg(not(unix))]
pub(super) fn own_group(_: &mut Command) {}

struct StartedRank {
    process: Child,
    ended: Option<ExitStatus>,
    /// Whether it did not end by itself and was killed, which has been said.
    stuck: bool,
}

/// The ranks of this machine.
struct StartedRanks {
    ranks: Vec<StartedRank>,
    /// The folder in which they found each other, and those above it that were not there before. Each is
    /// deleted at the end if it is empty: a run that was refused leaves nothing.
    folders: Vec<PathBuf>,
    report: Report,
}

impl StartedRanks {
    /// Waits for all; passes requests to stop on; kills ranks that do not end.
    fn watch(&mut self, requests: &AtomicUsize) -> anyhow::Result<Option<i32>> {
        let mut passed_on = 0;
        let mut failed: Option<Instant> = None;
        while self.ranks.iter().any(|rank| rank.ended.is_none()) {
            let asked = requests.load(Ordering::SeqCst);
            for _ in passed_on..asked {
                self.ask_to_stop();
            }
            passed_on = asked;
            if self.look()? && failed.is_none() {
                failed = Some(Instant::now());
            }
            if failed.is_some_and(|since| since.elapsed() > GRACE + alerts::time()) {
                self.kill();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let codes: Vec<Option<i32>> =
            self.ranks.iter().map(|rank| rank.ended.and_then(|status| status.code())).collect();
        // Rank 0 has the user's command run, unless it could not.
        match &self.ranks[0] {
            StartedRank { stuck: true, .. } => alerts::raise(AlertKind::Hung, "rank 0 did not end: killed"),
            _ if codes[0].is_none() => alerts::raise(AlertKind::Failed, "rank 0 was killed by a signal"),
            _ => {}
        }
        let first = codes.iter().find(|code| **code != Some(0));
        Ok(if codes[0] == Some(0) { first.copied().unwrap_or(Some(0)) } else { codes[0] })
    }

    /// Records which ranks have ended; returns whether one of them failed.
    fn look(&mut self) -> anyhow::Result<bool> {
        let (mut failed, report) = (false, self.report);
        for (number, rank) in self.running() {
            let Some(status) = rank.process.try_wait().context("cannot wait for a rank")? else { continue };
            rank.ended = Some(status);
            // Other ranks may end while rank 0 still draws plots and writes files.
            let together = [Ending::Interrupted, Ending::Diverged].map(|ending| i32::from(ending.code()));
            failed |= !status.success() && !status.code().is_some_and(|code| together.contains(&code));
            if status.code().is_none() && !rank.stuck {
                let process = rank.process.id();
                report.tell(&Message::RankKilled { rank: number, process, status });
            }
        }
        Ok(failed)
    }

    fn ask_to_stop(&mut self) {
        for (_, rank) in self.running() {
            if let Some(stdin) = &mut rank.process.stdin {
                // A rank that has just ended needs no asking.
                let _ = stdin.write_all(b"s").and_then(|()| stdin.flush());
            }
        }
    }

    fn kill(&mut self) {
        let report = self.report;
        for (number, rank) in self.running().filter(|(_, rank)| !rank.stuck) {
            rank.stuck = true;
            report.tell(&Message::RankStuck { rank: number, process: rank.process.id() });
            let _ = rank.process.kill();
        }
    }

    /// The ranks that have not ended, with their numbers.
    fn running(&mut self) -> impl Iterator<Item = (usize, &mut StartedRank)> {
        self.ranks.iter_mut().enumerate().filter(|(_, rank)| rank.ended.is_none())
    }
}

impl Drop for StartedRanks {
    /// Kills the remaining ranks, however the parent ends.
    fn drop(&mut self) {
        for (_, rank) in self.running() {
            let _ = rank.process.kill();
            let _ = rank.process.wait();
        }
        // Empty unless ranks of another run are using it, or there is a run.
        for folder in &self.folders {
            let _ = std::fs::remove_dir(folder);
        }
    }
}
