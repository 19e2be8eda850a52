//! A command of the user's that is run when a run has ended, for whoever does not watch it.
//!
//! It comes from the environment alone: no experiment, lock or folder of a run starts a program. Whatever it
//! does changes neither the exit code nor a bit.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::ending::Ending;
use super::error::{self, StoppedOnRequest, train_error};
use super::messages::{Message, Report};
use super::{member, stop};
use crate::eval::EvalError;
use crate::parallel::{ExchangeError, launch};
use crate::proof::ledger;
use crate::store::RunPaths;
use crate::train::{RunError, TrainError};

/// The variable that holds the command, for `sh -c`.
pub const COMMAND: &str = "RUNNER_ALERTS_COMMAND";
/// How long it may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Why the command is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AlertKind {
    Finished,
    /// Stopped on request.
    Stopped,
    Diverged,
    Failed,
    /// A rank, or its device, made no progress.
    Hung,
}

impl AlertKind {
    const fn word(self) -> &'static str {
        match self {
            AlertKind::Finished => "finished",
            AlertKind::Stopped => "stopped",
            AlertKind::Diverged => "diverged",
            AlertKind::Failed => "failed",
            AlertKind::Hung => "hung",
        }
    }

    fn of(error: &anyhow::Error) -> AlertKind {
        match error.downcast_ref::<RunError>() {
            Some(RunError::Eval(EvalError::NotFinite { .. })) => AlertKind::Diverged,
            _ if error.is::<StoppedOnRequest>() => AlertKind::Stopped,
            _ if exchange(error).is_some_and(ExchangeError::is_hang) => AlertKind::Hung,
            _ => AlertKind::Failed,
        }
    }
}

impl From<Ending> for AlertKind {
    fn from(ending: Ending) -> AlertKind {
        match ending {
            Ending::Finished => AlertKind::Finished,
            Ending::Failed => AlertKind::Failed,
            Ending::Diverged => AlertKind::Diverged,
            Ending::Interrupted => AlertKind::Stopped,
        }
    }
}

/// The failure of another rank that an error tells of.
pub(super) fn exchange(error: &anyhow::Error) -> Option<&ExchangeError> {
    match train_error(error) {
        Some(TrainError::Exchange(error)) => Some(error),
        Some(_) => None,
        None => error.downcast_ref(),
    }
}

/// What a process has to run.
struct Alert {
    command: OsString,
    folder: PathBuf,
    report: Report,
}

/// That of this process, until it is run: a run ends once.
static ALERT: Mutex<Option<Alert>> = Mutex::new(None);

/// The command; an empty one is none.
fn given() -> Option<OsString> {
    std::env::var_os(COMMAND).filter(|command| !command.is_empty())
}

/// From now on this process runs the command, if there is one, when the run in `folder` ends.
pub fn prepare(folder: &Path, report: Report) {
    let alert = given().map(|command| Alert { command, folder: folder.to_owned(), report });
    *ALERT.lock().unwrap_or_else(PoisonError::into_inner) = alert;
}

/// How much longer a process may take to end because it waits for the command.
pub fn time() -> Duration {
    given().map_or(Duration::ZERO, |_| LIMIT)
}

/// Runs the command once the run has ended so.
pub fn ended(how: &anyhow::Result<Ending>) {
    match how {
        Ok(ending) => {
            let kind = AlertKind::from(*ending);
            raise(kind, &format!("the run has {}", past(kind)));
        }
        Err(error) => raise(AlertKind::of(error), &error::in_words(error).0),
    }
}

/// Runs the command because a rank failed and this process is about to end at once.
pub fn lost(error: &ExchangeError) {
    raise(if error.is_hang() { AlertKind::Hung } else { AlertKind::Failed }, &error.to_string());
}

fn past(kind: AlertKind) -> &'static str {
    match kind {
        AlertKind::Stopped => "stopped on request, saved",
        kind => kind.word(),
    }
}

/// Runs the command and waits for it. What goes wrong is said and is no error.
pub fn raise(kind: AlertKind, message: &str) {
    let alert = ALERT.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(alert) = alert else { return };
    let why = match alert.start(kind, message).and_then(|child| wait(child, LIMIT)) {
        Ok(Some(status)) if status.success() => return,
        Ok(Some(status)) => format!("ended with {status}"),
        Ok(None) => format!("did not end within {} s and was killed", LIMIT.as_secs()),
        Err(error) => format!("could not be run: {error}"),
    };
    alert.report.tell(&Message::Remark(&format!("the command in `{COMMAND}` {why}")));
}

impl Alert {
    fn start(&self, kind: AlertKind, message: &str) -> std::io::Result<Child> {
        let last = ledger::last_step(&RunPaths::new(&self.folder).ledger());
        let step = last.as_ref().map(|entry| (entry.step + 1).to_string());
        let root = last.and_then(|entry| entry.root).map(|root| root.to_string());
        // Its stdout must not mix with the run's, which others read.
        let stderr = std::io::stderr().as_fd().try_clone_to_owned()?;
        let mut command = Command::new("sh");
        // A `runner` in it is no rank of this run and no member of its sweep.
        for name in launch::names() {
            command.env_remove(name);
        }
        member::release(&mut command);
        command
            .arg("-c")
            .arg(&self.command)
            .env("RUNNER_EVENT", kind.word())
            .env("RUNNER_RUN", std::path::absolute(&self.folder)?)
            .env("RUNNER_STEP", step.unwrap_or_default())
            .env("RUNNER_ROOT", root.unwrap_or_default())
            .env("RUNNER_MESSAGE", message)
            .env_remove(stop::WATCHED)
            .stdin(Stdio::null())
            .stdout(stderr)
            .process_group(0)
            .spawn()
    }
}

/// Waits for a command; none where it took too long, and was killed with all that it started.
fn wait(mut child: Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let began = Instant::now();
    while began.elapsed() < limit {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // It leads a group of its own, so that its number names all that it started.
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        kill_process_group(group, Signal::KILL)?;
    }
    child.wait()?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::Loss;

    fn shell(command: &str) -> Child {
        Command::new("sh").args(["-c", command]).process_group(0).spawn().expect("there is a shell")
    }

    #[test]
    fn a_command_that_does_not_end_is_killed_with_what_it_started() {
        let folder = tempfile::tempdir().expect("a folder");
        let late = folder.path().join("late");
        let child = shell(&format!("(sleep 1; touch {}) & wait", late.display()));
        assert!(wait(child, Duration::from_millis(200)).expect("it can be waited for").is_none());
        std::thread::sleep(Duration::from_millis(1500));
        assert!(!late.exists());
        let status = wait(shell("exit 3"), LIMIT).expect("it can be waited for").expect("it ends");
        assert_eq!(status.code(), Some(3));
    }

    #[test]
    fn a_rank_that_makes_no_progress_is_told_from_one_that_died() {
        let lost = |hangs: bool| {
            let error = ExchangeError::Lost {
                rank: 1,
                host: "a".into(),
                operation: "the sum of gradients".into(),
                why: Loss { why: "has come no further".into(), hangs },
                reported: true,
            };
            AlertKind::of(&anyhow::Error::from(RunError::Train(TrainError::Exchange(error))))
        };
        assert_eq!(lost(false), AlertKind::Failed);
        assert_eq!(lost(true), AlertKind::Hung);
        assert_eq!(AlertKind::of(&anyhow::anyhow!("a full disk")), AlertKind::Failed);
    }
}
