//! Requests to stop: where they come from, and which signals count as one request.
//!
//! After the first request the current step is finished and saved, and the process ends; a second one ends it
//! at once. Launchers, schedulers and `timeout` send several signals within a moment: to a process, its group
//! and its parent, SIGINT and then SIGTERM. So signals close together count as one request; and only a
//! process that a user started ends at once. A rank of this program does so when its parent asks; one under a
//! launcher never does, because launchers kill ranks that do not end.
//!
//! Before training begins a request ends the process at once: nothing could be saved.

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGXFSZ};

use super::ending::Ending;
use super::messages::{Message, Report};

/// SIGUSR1 because mpirun and srun only pass it on to all ranks: after SIGTERM they kill, before a large
/// model is saved. SIGHUP comes when a terminal or its connection is closed.
const SIGNALS: [i32; 4] = [SIGINT, SIGTERM, SIGUSR1, SIGHUP];
/// Signals no further apart than this are one request.
const MOMENT: Duration = Duration::from_millis(200);
/// How often a rank checks that its launcher is still running.
const LOOK: Duration = Duration::from_secs(1);

/// Set for a child whose stdin is held by its parent.
pub const WATCHED: &str = "RUNNER_WATCHED";

/// Created when training begins; the first request to stop sets it.
static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();
/// Whether training has begun.
static TRAINS: AtomicBool = AtomicBool::new(false);
/// The process that started this one.
static LAUNCHER: OnceLock<u32> = OnceLock::new();

/// Turns the death that `ulimit -f` brings into an error of the write, as on a full disk: the kernel sends
/// its signal only to a process that has no handler.
pub fn survive_file_limit() -> std::io::Result<()> {
    signal_hook::flag::register(SIGXFSZ, Arc::default()).map(|_| ())
}

/// In a rank, listens to the parent from the start of the process on.
pub fn begin() -> std::io::Result<()> {
    LAUNCHER.get_or_init(std::os::unix::process::parent_id);
    if std::env::var_os(WATCHED).is_some() { listen_to_parent() } else { Ok(()) }
}

/// The flag that the first request to stop sets. `launched` is whether this process was started by a
/// launcher, or by a parent of this program's.
pub fn flag(launched: bool, report: Report) -> std::io::Result<Arc<AtomicBool>> {
    let stop = STOP.get_or_init(Default::default).clone();
    let set = stop.clone();
    on_requests(move || {
        if set.swap(true, Ordering::SeqCst) && !launched {
            Ending::Interrupted.at_once();
        }
    })?;
    if launched && std::env::var_os(WATCHED).is_none() {
        stop_without_launcher(stop.clone(), report)?;
    }
    Ok(stop)
}

/// From now on a request to stop saves.
pub fn training_begins() {
    TRAINS.store(true, Ordering::SeqCst);
}

/// Whether this rank was asked to stop before it trained. All ranks are asked within a moment, so one that
/// has just lost another may still be asked.
pub fn came_before_training() -> bool {
    let asked = || STOP.get().is_some_and(|stop| stop.load(Ordering::SeqCst));
    let began = Instant::now();
    while !TRAINS.load(Ordering::SeqCst) && !asked() && began.elapsed() < MOMENT {
        std::thread::sleep(Duration::from_millis(10));
    }
    !TRAINS.load(Ordering::SeqCst) && asked()
}

/// Calls `request` from now on whenever a signal asks to stop.
pub fn on_requests(mut request: impl FnMut() + Send + 'static) -> std::io::Result<()> {
    let heard = SIGNALS.into_iter().filter(|&signal| signal != SIGHUP || !is_ignored(SIGHUP));
    let mut signals = signal_hook::iterator::Signals::new(heard)?;
    let listen = move || {
        let mut last: Option<Instant> = None;
        for _ in signals.forever() {
            if last.replace(Instant::now()).is_none_or(|last| last.elapsed() > MOMENT) {
                request();
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(listen).map(|_| ())
}

/// Whether this process was started to ignore a signal, as `nohup` does with SIGHUP: then it stays ignored.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}

/// Listens to the parent: a byte asks to stop, a second byte or the end of the stream ends this process.
fn listen_to_parent() -> std::io::Result<()> {
    let listen = move || {
        let mut byte = [0];
        let mut asked = false;
        while let Ok(1) = std::io::stdin().read(&mut byte) {
            match STOP.get() {
                Some(stop) if !asked => stop.store(true, Ordering::SeqCst),
                _ => Ending::Interrupted.at_once(),
            }
            asked = true;
        }
        Ending::Failed.at_once();
    };
    std::thread::Builder::new().name("parent".into()).spawn(listen).map(|_| ())
}

/// Requests a stop when the process that started this rank has ended: after a launcher is killed no rank
/// should go on.
fn stop_without_launcher(stop: Arc<AtomicBool>, report: Report) -> std::io::Result<()> {
    let launcher = *LAUNCHER.get_or_init(std::os::unix::process::parent_id);
    let watch = move || {
        while std::os::unix::process::parent_id() == launcher {
            std::thread::sleep(LOOK);
        }
        if !stop.swap(true, Ordering::SeqCst) {
            report.tell(&Message::LauncherGone);
        }
    };
    std::thread::Builder::new().name("launcher".into()).spawn(watch).map(|_| ())
}
