//! The processes that train the members of a sweep, each with a command line that a person could write.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::Context;

use super::places::VISIBLE;
use super::{ChildOptions, MemberEnd};
use crate::experiment;
use crate::run::ending::Ending;
use crate::run::messages::NOT_COPIED;
use crate::run::{member, parent};
use crate::store::{MemberFolder, SweepPaths};

/// Bytes of a log that are searched for the reason of a failure.
const TAIL: u64 = 64 << 10;

/// A process that trains a member.
pub(super) struct MemberProcess {
    /// The member's place in the list of members.
    pub member: usize,
    /// Its place among the processes that train at the same time.
    pub place: usize,
    pub began: Instant,
    process: Child,
    /// Passes on what it writes to stdout.
    events: Option<JoinHandle<()>>,
    log: PathBuf,
    /// Bytes in the log before this process.
    log_begin: u64,
}

/// How to start a member.
pub(super) struct Starter<'a> {
    pub program: PathBuf,
    pub paths: &'a SweepPaths,
    pub options: &'a ChildOptions,
    /// The GPUs that each of the processes that train at the same time may see.
    pub places: &'a [Option<String>],
    /// Takes the events of members, with the member's number; used with `--json`.
    pub said: Sender<(usize, String)>,
}

impl Starter<'_> {
    /// Starts the process of a member: of one that is `begun`, or of a new one.
    pub fn start(
        &self,
        at: usize,
        folder: &MemberFolder,
        begun: bool,
        place: usize,
    ) -> anyhow::Result<MemberProcess> {
        let log = self.paths.log(&folder.name);
        let written = File::options().append(true).create(true).open(&log);
        let written = written.with_context(|| format!("cannot open `{}`", log.display()))?;
        let mut command = self.command(folder, begun)?;
        let log_begin = written.metadata().map_or(0, |file| file.len());
        command.stdin(Stdio::piped()).stderr(written);
        command.stdout(if self.options.json { Stdio::piped() } else { Stdio::null() });
        member::prepare(&mut command, self.places.len());
        if let Some(gpus) = &self.places[place] {
            command.env(VISIBLE, gpus);
        }
        parent::own_group(&mut command);
        let mut process = command.spawn().with_context(|| format!("cannot start member {}", folder.name))?;
        let mut events = None;
        if let Some(stdout) = process.stdout.take() {
            let (number, said) = (folder.number, self.said.clone());
            let pass_on = move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    // The sweep has ended: nobody listens.
                    let _ = said.send((number, line));
                }
            };
            events = Some(std::thread::Builder::new().name("events".into()).spawn(pass_on)?);
        }
        Ok(MemberProcess { member: at, place, began: Instant::now(), process, events, log, log_begin })
    }

    fn command(&self, folder: &MemberFolder, begun: bool) -> anyhow::Result<Command> {
        let sweep = std::path::absolute(self.paths.folder())?;
        let runs = sweep.parent().unwrap_or(Path::new("/"));
        let mut command = Command::new(&self.program);
        if begun {
            command.arg("resume").arg(sweep.join(&folder.name));
        } else {
            command.arg("run").arg(SweepPaths::new(&sweep).declaration());
            command.args(["--member", &folder.number.to_string(), "--name", &self.paths.name()]);
        }
        command.arg("--runs").arg(runs);
        if let Some(ranks) = self.options.ranks {
            command.args(["--ranks", &ranks.to_string()]);
        }
        if self.options.json {
            command.arg("--json");
        }
        // The declaration has what they said when the sweep began.
        for name in experiment::setting_variables() {
            command.env_remove(name);
        }
        Ok(command)
    }
}

impl MemberProcess {
    /// How it ended, if it has; then all its events are passed on. `asked` is whether it was asked to stop.
    pub fn ended(&mut self, asked: bool) -> anyhow::Result<Option<MemberEnd>> {
        let status = self.process.try_wait().context("cannot wait for a member")?;
        if status.is_some()
            && let Some(events) = self.events.take()
        {
            // It cannot panic.
            let _ = events.join();
        }
        Ok(status.map(|status| self.end(status, asked)))
    }

    fn end(&self, status: ExitStatus, asked: bool) -> MemberEnd {
        let code = status.code();
        match code {
            Some(0) => MemberEnd::Finished,
            _ if asked && code.is_none_or(|code| code == i32::from(Ending::Interrupted.code())) => {
                MemberEnd::Stopped
            }
            Some(code) => {
                let diverged = code == i32::from(Ending::Diverged.code());
                let otherwise = if diverged { "it diverged" } else { "it said nothing" };
                let why = self.reason().unwrap_or_else(|| otherwise.to_owned());
                MemberEnd::Failed { code: Some(code), why }
            }
            None => MemberEnd::Failed { code: None, why: format!("it was killed: {status}") },
        }
    }

    /// Asks it to save and stop.
    pub fn ask_to_stop(&mut self) {
        if let Some(stdin) = &mut self.process.stdin {
            // One that has just ended needs no asking.
            let _ = stdin.write_all(b"s").and_then(|()| stdin.flush());
        }
    }

    /// What it said last of why it ended.
    fn reason(&self) -> Option<String> {
        reason(&self.tail()?)
    }

    /// What it said of checkpoints that are not copied, if there are some.
    pub fn not_copied(&self) -> Option<String> {
        let tail = self.tail()?;
        let (_, said) = tail.rsplit_once(NOT_COPIED)?;
        let line = said.lines().next()?;
        Some(format!("{NOT_COPIED}{line}"))
    }

    /// The end of what it has written into the log.
    fn tail(&self) -> Option<String> {
        let mut file = File::open(&self.log).ok()?;
        let length = file.metadata().ok()?.len();
        let from = self.log_begin.max(length.saturating_sub(TAIL));
        file.seek(SeekFrom::Start(from)).ok()?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail).ok()?;
        Some(String::from_utf8_lossy(&tail).into_owned())
    }
}

/// The last line of a log that says what went wrong, or else its last line.
fn reason(log: &str) -> Option<String> {
    let lines: Vec<&str> = log.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let why =
        |line: &&&str| ["error: ", "diverged at", "not finite: "].iter().any(|lead| line.starts_with(lead));
    let line = lines.iter().rev().find(why).or(lines.last())?;
    Some(line.strip_prefix("error: ").unwrap_or(line).to_owned())
}

impl Drop for MemberProcess {
    /// Kills it, where the sweep ends before it.
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::reason;

    #[test]
    fn the_reason_of_a_failure_is_the_last_line_that_says_what_went_wrong() {
        let log = "folder: runs/lr/001\nerror: no space left\n  hint: free some space\n";
        assert_eq!(reason(log).as_deref(), Some("no space left"));
        let log = "step 3\ndiverged at step 7: 2 steps in a row were skipped\nplot: a.png\n";
        assert!(reason(log).unwrap().starts_with("diverged at step 7"));
        assert_eq!(reason("thread 'main' panicked\n\n").as_deref(), Some("thread 'main' panicked"));
        assert_eq!(reason(""), None);
    }
}
