//! A process that trains a member of a sweep: what the sweep, which started it, tells it.
//!
//! A byte on its stdin asks it to stop, as a signal would. Its stdin ends when the sweep ends, and then it
//! ends too, so that a sweep that was killed leaves no process behind.

use std::io::Read;
use std::process::Command;

use signal_hook::consts::SIGTERM;

use super::ending::Ending;

/// Set for such a process, and for its ranks: how many members share the machine.
const JOBS: &str = "RUNNER_JOBS";

/// How many members of a sweep share the machine's CPUs, that of this process included.
pub fn jobs() -> usize {
    std::env::var(JOBS).ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1)
}

/// Makes `command` the process of a member, one of `jobs`. Its stdin must be a pipe.
pub fn prepare(command: &mut Command, jobs: usize) {
    command.env(JOBS, jobs.to_string());
}

/// Makes `command` no process of a sweep.
pub fn release(command: &mut Command) {
    command.env_remove(JOBS);
}

/// Where a sweep started this process, listens to it from now on.
pub fn follow_sweep() -> std::io::Result<()> {
    if std::env::var_os(JOBS).is_none() {
        return Ok(());
    }
    let listen = || {
        let mut byte = [0];
        while let Ok(1) = std::io::stdin().read(&mut byte) {
            // Whoever handles signals saves; before that there is nothing to save.
            if signal_hook::low_level::raise(SIGTERM).is_err() {
                Ending::Interrupted.at_once();
            }
        }
        Ending::Failed.at_once();
    };
    std::thread::Builder::new().name("sweep".into()).spawn(listen).map(|_| ())
}
