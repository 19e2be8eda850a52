//! Processes in the background: waited for with a bound, signalled, killed, and never left behind.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Finished, Lab};

/// How long a test waits for a step of a run before it fails.
const A_STEP: Duration = Duration::from_secs(120);

/// Waits until `done`, and fails when that takes longer than `within`.
#[track_caller]
pub fn wait_until(what: &str, within: Duration, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < within, "waited {within:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Sends a signal by the name that `kill` knows.
#[track_caller]
pub fn signal(process: u32, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &process.to_string()]).status();
    assert!(status.expect("kill runs").success(), "no process {process} to send SIG{name} to");
}

/// A process in the background. It is killed when the test drops it, passed or failed.
pub struct Running {
    what: String,
    child: Child,
    /// Files, because an unread pipe would block the process when it is full.
    stdout: File,
    stderr: File,
}

impl Running {
    pub fn start(what: &str, command: &mut Command) -> Running {
        let [stdout, stderr] = [(); 2].map(|()| tempfile::tempfile().expect("a temporary file"));
        let clone = |file: &File| file.try_clone().expect("a second handle");
        let child = command.stdin(Stdio::null()).stdout(clone(&stdout)).stderr(clone(&stderr)).spawn();
        let child = child.unwrap_or_else(|error| panic!("{what} does not start: {error}"));
        Running { what: what.to_owned(), child, stdout, stderr }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the run has `rows` rows of metrics, which must be before it ends.
    #[track_caller]
    pub fn wait_for_rows(&mut self, lab: &Lab, rows: usize) {
        self.wait_for_rows_of(lab, "ci", rows);
    }

    /// The same of the run `name`.
    #[track_caller]
    pub fn wait_for_rows_of(&mut self, lab: &Lab, name: &str, rows: usize) {
        let mut ended = false;
        wait_until(&format!("row {rows} of {}", self.what), A_STEP, || {
            ended = self.child.try_wait().expect("it can be asked").is_some();
            ended || lab.rows(name) >= rows
        });
        let (what, seen) = (self.what.clone(), lab.rows(name));
        assert!(seen >= rows, "{what} ended after {seen} rows, before row {rows}\n{}", self.read().1);
    }

    #[track_caller]
    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// Kills it with SIGKILL, which must be what ends it: a process that has ended by itself is a failure.
    #[track_caller]
    pub fn kill(mut self) {
        self.child.kill().expect("a signal can be sent");
        let status = self.child.wait().expect("it ends");
        assert_eq!(status.signal(), Some(9), "the kill came too late for {}: {status}", self.what);
    }

    /// What it leaves when it ends, which must be within some time.
    #[track_caller]
    pub fn end(mut self, within: Duration) -> Finished {
        let mut status: Option<ExitStatus> = None;
        wait_until(&format!("the end of {}", self.what), within, || {
            status = self.child.try_wait().expect("it can be asked");
            status.is_some()
        });
        let (stdout, stderr) = self.read();
        Finished { code: status.and_then(|status| status.code()), stdout, stderr }
    }

    /// Its stdout and stderr so far.
    fn read(&mut self) -> (String, String) {
        let read = |file: &mut File| {
            let mut bytes = Vec::new();
            file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("what it wrote");
            String::from_utf8_lossy(&bytes).into_owned()
        };
        (read(&mut self.stdout), read(&mut self.stderr))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended long ago.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The processes that are ranks of a run in `lab`, each with its number, from the environment variable
/// `variable`.
pub fn ranks(lab: &Lab, variable: &str) -> Vec<(u32, usize)> {
    let folder = lab.path("").display().to_string();
    let processes = std::fs::read_dir("/proc").expect("Linux").flatten().map(|entry| entry.path());
    let rank = |process: PathBuf| {
        let read = |file: &str| {
            std::fs::read(process.join(file)).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        };
        let command = read("cmdline")?;
        let ours = command.starts_with(env!("CARGO_BIN_EXE_runner"))
            && command.contains(folder.trim_end_matches('/'));
        let environment = read("environ").filter(|_| ours)?;
        let number = environment.split('\0').find_map(|v| v.strip_prefix(variable)?.strip_prefix('='))?;
        Some((process.file_name()?.to_str()?.parse().ok()?, number.parse().ok()?))
    };
    processes.filter_map(rank).collect()
}

/// The process of one rank, which must run.
#[track_caller]
pub fn process_of_rank(lab: &Lab, variable: &str, rank: usize) -> u32 {
    let found = ranks(lab, variable).into_iter().find(|(_, number)| *number == rank);
    found.unwrap_or_else(|| panic!("rank {rank} does not run")).0
}

/// Waits until no rank is left.
#[track_caller]
pub fn assert_no_rank_stays(lab: &Lab, variable: &str) {
    wait_until("the end of the last rank", Duration::from_secs(20), || ranks(lab, variable).is_empty());
}
