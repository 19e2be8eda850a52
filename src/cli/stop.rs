//! Wishes to stop: who may ask, and which of several askings are one.
//!
//! The first wish lets the step at hand finish, saves and ends; a second one ends at once. Launchers, schedulers and
//! `timeout` ask several times within a moment: a process, its group and its parent, by SIGINT and then by SIGTERM.
//! So what comes in one moment is one wish; and only whom a person asks ends at once. A rank of this program's is asked
//! that by its parent; one under a launcher never, as launchers kill for themselves what does not end.
//!
//! Before training begins a signal ends the process, as it does any other: nothing could be saved.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};

use super::exit;

/// SIGUSR1 because mpirun and srun only pass it on to all ranks: after SIGTERM they kill, before a large model is saved.
const SIGNALS: [i32; 3] = [SIGINT, SIGTERM, SIGUSR1];
/// Signals no further apart than this are one wish.
const MOMENT: Duration = Duration::from_millis(200);
/// How often a rank looks whether its launcher is still there.
const LOOK: Duration = Duration::from_secs(1);

/// Set for a child whose stdin is held by its parent.
pub const WATCHED: &str = "RUNNER_WATCHED";

/// The flag that the first wish to stop sets. `ranks` is how many share the work.
pub fn flag(ranks: usize) -> std::io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let (set, alone) = (stop.clone(), ranks == 1);
    on_wishes(move || {
        if set.swap(true, Ordering::SeqCst) && alone {
            exit::at_once(exit::INTERRUPTED);
        }
    })?;
    if std::env::var_os(WATCHED).is_some() {
        listen_to_parent(stop.clone())?;
    } else if !alone {
        stop_without_launcher(stop.clone())?;
    }
    Ok(stop)
}

/// Calls `wish` from now on whenever a signal asks to stop.
pub fn on_wishes(mut wish: impl FnMut() + Send + 'static) -> std::io::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new(SIGNALS)?;
    let listen = move || {
        let mut last: Option<Instant> = None;
        for _ in signals.forever() {
            if last.replace(Instant::now()).is_none_or(|last| last.elapsed() > MOMENT) {
                wish();
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(listen).map(|_| ())
}

/// Listens to the parent: a byte asks to stop, a second byte or the end of the stream ends this process.
fn listen_to_parent(stop: Arc<AtomicBool>) -> std::io::Result<()> {
    let listen = move || {
        let mut byte = [0];
        let mut asked = false;
        while let Ok(1) = std::io::stdin().read(&mut byte) {
            stop.store(true, Ordering::SeqCst);
            if asked {
                exit::at_once(exit::INTERRUPTED);
            }
            asked = true;
        }
        exit::at_once(exit::FAILED);
    };
    std::thread::Builder::new().name("parent".into()).spawn(listen).map(|_| ())
}

/// Asks to stop when the process that started this rank is gone: whoever killed its launcher wants no rank to go on.
fn stop_without_launcher(stop: Arc<AtomicBool>) -> std::io::Result<()> {
    let launcher = std::os::unix::process::parent_id();
    let watch = move || {
        while std::os::unix::process::parent_id() == launcher {
            std::thread::sleep(LOOK);
        }
        stop.store(true, Ordering::SeqCst);
    };
    std::thread::Builder::new().name("launcher".into()).spawn(watch).map(|_| ())
}
