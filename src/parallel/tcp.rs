//! Ranks as processes, joined by TCP: on one machine or many.
//!
//! One thread for each connection reads frames, so that a swap never blocks both of its ends, and one thread
//! sends heartbeats. From them a waiting rank tells three cases apart: the other has died (its connection
//! closes), is stopped or out of reach (no heartbeat for `parallel.timeout_s`), or waits itself for a third
//! rank, whose own peers then find the cause. The rank that finds a failed rank reports it to all others
//! before it ends, so every rank stops, and names the same one.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::clock::Clock;
use super::error::Loss;
use super::rendezvous::{Connections, RankPlace};
use super::wire::{Body, Frame};
use super::{ExchangeError, Link};

/// How often a waiting rank checks the others.
const LOOK: Duration = Duration::from_millis(50);
/// How long a rank that knows of a failure may take to end by itself, before its process is ended.
const GRACE: Duration = Duration::from_secs(5);

/// Ends the process when this rank cannot end by itself because a device call does not return.
pub type LastResort = Box<dyn Fn(&ExchangeError) + Send>;

/// The connections of one rank.
pub struct Tcp {
    shared: Arc<RankState>,
    inboxes: BTreeMap<usize, Receiver<(String, u64, Vec<u8>)>>,
    /// Whether this rank is done: its end is then no failure.
    finished: bool,
}

/// The state that the threads of a rank share.
struct RankState {
    rank: usize,
    hosts: Vec<String>,
    connections: BTreeMap<usize, Connection>,
    now: Mutex<Now>,
    failure: Mutex<Option<RankFailure>>,
    closing: AtomicBool,
    timeout: Duration,
    /// Every time below is one of this clock: a rank that was stopped and continued blames nobody for it.
    clock: Clock,
}

/// The connection to one other rank.
struct Connection {
    /// Whole frames are written under the lock.
    stream: Mutex<TcpStream>,
    /// Another handle to it, that closes it while another thread writes.
    closer: TcpStream,
    /// Whether this rank has closed it, so that its end is expected.
    cut: AtomicBool,
    last: Mutex<Sign>,
}

/// The last state known of another rank.
#[derive(Clone, Debug)]
struct Sign {
    operation: String,
    step: u64,
    seen: Duration,
    waiting: Option<u32>,
    progress: u64,
    /// Since when `progress` has not changed.
    since: Duration,
    ended: bool,
}

/// The current operation of this rank.
#[derive(Clone, Debug)]
struct Now {
    operation: &'static str,
    step: u64,
    waiting: Option<u32>,
    progress: u64,
    /// Since when `progress` has not changed.
    since: Duration,
    /// Whether training has begun: before, loading and tuning may take any time.
    steady: bool,
}

/// The first failure that this rank knows of.
#[derive(Clone, Debug)]
struct RankFailure {
    rank: usize,
    host: String,
    operation: String,
    why: Loss,
    /// Whether another rank found it and reported it to this one.
    reported: bool,
    since: Duration,
    /// Whether it has been returned as an error.
    noticed: bool,
}

impl RankFailure {
    /// The message to the other ranks.
    fn abort(&self) -> Body {
        Body::Abort { rank: self.rank as u32, host: self.host.clone(), why: self.why.clone() }
    }

    fn error(&self) -> ExchangeError {
        let RankFailure { rank, host, operation, why, reported, .. } = self.clone();
        ExchangeError::Lost { rank, host, operation, why, reported }
    }
}

/// A connection on which every byte received counts as a heartbeat: a large frame may take longer than the
/// timeout.
struct Noted<'a> {
    stream: TcpStream,
    last: &'a Mutex<Sign>,
    clock: &'a Clock,
}

impl Read for Noted<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(into)?;
        // The end of a connection, which this rank may have cut itself, is none.
        if read > 0 {
            lock(self.last).seen = self.clock.now();
        }
        Ok(read)
    }
}

/// The time between two heartbeats.
fn beat(timeout: Duration) -> Duration {
    (timeout / 8).clamp(LOOK, Duration::from_secs(1))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tcp {
    /// Starts the threads. `last_resort` ends the process when this rank does not end by itself.
    pub fn start(
        place: &RankPlace,
        connections: Connections,
        timeout: Duration,
        last_resort: LastResort,
    ) -> io::Result<Tcp> {
        let clock = Clock::new(2 * beat(timeout));
        let now = clock.now();
        let mut readers = Vec::new();
        let mut inboxes = BTreeMap::new();
        let mut shared = BTreeMap::new();
        for (peer, stream) in connections.peers {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(None)?;
            stream.set_write_timeout(Some(timeout))?;
            let (sender, receiver) = mpsc::channel();
            readers.push((peer, stream.try_clone()?, sender));
            inboxes.insert(peer, receiver);
            let (operation, step) = ("the start".to_owned(), 0);
            let last =
                Sign { operation, step, seen: now, waiting: None, progress: 0, since: now, ended: false };
            let closer = stream.try_clone()?;
            shared.insert(
                peer,
                Connection {
                    stream: Mutex::new(stream),
                    closer,
                    cut: AtomicBool::new(false),
                    last: Mutex::new(last),
                },
            );
        }
        let shared = Arc::new(RankState {
            rank: place.rank,
            hosts: connections.hosts,
            connections: shared,
            now: Mutex::new(Now {
                operation: "the start",
                step: 0,
                waiting: None,
                progress: 0,
                since: now,
                steady: false,
            }),
            failure: Mutex::new(None),
            closing: AtomicBool::new(false),
            timeout,
            clock,
        });
        for (peer, stream, inbox) in readers {
            let shared = shared.clone();
            thread::Builder::new()
                .name(format!("from rank {peer}"))
                .spawn(move || shared.read(peer, stream, &inbox))?;
        }
        let watched = shared.clone();
        thread::Builder::new().name("signs of life".into()).spawn(move || watched.watch(&last_resort))?;
        Ok(Tcp { shared, inboxes, finished: false })
    }
}

impl Link for Tcp {
    fn rank(&self) -> usize {
        self.shared.rank
    }

    fn size(&self) -> usize {
        self.shared.hosts.len()
    }

    fn swap(
        &mut self,
        peer: usize,
        operation: &'static str,
        bytes: Vec<u8>,
    ) -> Result<Vec<u8>, ExchangeError> {
        let step = self.shared.enter(operation, Some(peer));
        let result =
            self.shared.give(peer, operation, step, bytes).and_then(|()| self.take(peer, operation, step));
        self.shared.enter(operation, None);
        result
    }

    fn mark(&mut self, step: u64) {
        let mut now = lock(&self.shared.now);
        (now.step, now.steady) = (step, true);
        now.progress += 1;
        now.since = self.shared.clock.now();
    }

    fn host(&self, rank: usize) -> String {
        self.shared.hosts[rank].clone()
    }

    fn finish(&mut self) {
        self.finished = true;
    }

    fn fail(&mut self, why: &str) {
        self.shared.fail(self.shared.rank, Loss::ended(format!("stopped: {why}")));
    }
}

impl Tcp {
    /// Waits for the peer's side of a swap.
    fn take(&self, peer: usize, operation: &'static str, step: u64) -> Result<Vec<u8>, ExchangeError> {
        let began = self.shared.clock.now();
        loop {
            // A message received before a rank ended still counts.
            match self.inboxes[&peer].recv_timeout(LOOK) {
                Ok((theirs, at, bytes)) if theirs == operation && at == step => return Ok(bytes),
                Ok((theirs, at, _)) => {
                    return Err(ExchangeError::Protocol {
                        rank: peer,
                        operation: format!("{operation}, step {step}"),
                        expected: "a message of the same operation".into(),
                        found: format!("one of {theirs}, step {at}"),
                    });
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            if let Some(error) = self.shared.notice() {
                return Err(error);
            }
            if let Some(why) = self.shared.blame(peer, began) {
                self.shared.fail(peer, why);
            }
        }
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        if !self.finished {
            self.shared.fail(self.shared.rank, Loss::ended("stopped on an error of its own"));
        }
        self.shared.closing.store(true, Ordering::SeqCst);
        self.shared.leave();
    }
}

impl RankState {
    /// Records what this rank does now; returns the step.
    fn enter(&self, operation: &'static str, waiting: Option<usize>) -> u64 {
        let mut now = lock(&self.now);
        now.operation = operation;
        now.waiting = waiting.map(|peer| peer as u32);
        now.progress += 1;
        now.since = self.clock.now();
        now.step
    }

    fn give(&self, peer: usize, operation: &str, step: u64, bytes: Vec<u8>) -> Result<(), ExchangeError> {
        // After a failure nothing more is started.
        if let Some(error) = self.notice() {
            return Err(error);
        }
        let written =
            Frame::write(operation, step, &Body::Data(bytes), &mut *lock(&self.connections[&peer].stream));
        if let Err(error) = written {
            self.fail_unless_told(peer, format!("takes no more bytes ({error})"));
        }
        self.notice().map_or(Ok(()), Err)
    }

    /// The failure, if there is one.
    fn notice(&self) -> Option<ExchangeError> {
        let mut failure = lock(&self.failure);
        let failure = failure.as_mut()?;
        failure.noticed = true;
        Some(failure.error())
    }

    /// Why the wait for `peer` is over, if it is.
    fn blame(&self, peer: usize, began: Duration) -> Option<Loss> {
        let sign = lock(&self.connections[&peer].last).clone();
        let seconds = |since| self.clock.since(since).as_secs();
        let begun = lock(&self.now).steady;
        if sign.ended {
            Some(Loss::ended("has ended before this operation"))
        } else if let Some(why) = self.silence(&sign) {
            Some(why)
        } else if begun
            && sign.waiting.is_none()
            // By its own last sign of life: of one stopped since then, only its silence is known.
            && sign.seen.saturating_sub(sign.since) > self.timeout
        {
            Some(Loss::hangs(format!("is alive but has come no further for {} s", seconds(sign.since))))
        } else if begun && self.clock.since(began) > 4 * self.timeout {
            Some(Loss::hangs(format!("was waited for over {} s", seconds(began))))
        } else {
            None
        }
    }

    /// Why a rank counts as out of reach: it has sent nothing for longer than the timeout.
    fn silence(&self, sign: &Sign) -> Option<Loss> {
        let silent = self.clock.since(sign.seen);
        let why = |seconds| {
            format!(
                "has given no sign of life for {seconds} s: it is stopped, or its machine is out of reach"
            )
        };
        (silent > self.timeout).then(|| Loss::hangs(why(silent.as_secs())))
    }

    /// Finds what a rank in a blocking device call cannot notice: a rank that sends nothing, or one, perhaps
    /// this one, whose device does not finish.
    fn look_around(&self) {
        if self.closing.load(Ordering::SeqCst) || lock(&self.failure).is_some() {
            return;
        }
        for (peer, connection) in &self.connections {
            let sign = lock(&connection.last).clone();
            if let Some(why) = self.silence(&sign).filter(|_| !sign.ended) {
                // The peer does not read, so the connection may be full: no thread may block on writing to
                // it. What fits tells a peer that is continued later why it is alone.
                connection.cut.store(true, Ordering::SeqCst);
                let _ = connection.closer.set_write_timeout(Some(LOOK));
                self.fail(*peer, why);
                let _ = connection.closer.shutdown(Shutdown::Both);
                return;
            }
        }
        let now = lock(&self.now).clone();
        // Twice the timeout: a rank that waits for this one reports first, and knows better which rank
        // failed.
        let busy = self.clock.since(now.since);
        if now.steady && now.waiting.is_none() && busy > 2 * self.timeout {
            let seconds = busy.as_secs();
            let why =
                format!("has come no further for {seconds} s: its device is stuck, or waits for one that is");
            self.fail(self.rank, Loss::hangs(why));
        }
    }

    /// Blames `peer` for a closed connection unless some rank tells in a moment what happened: a rank that
    /// was stopped for long finds its connections closed, and in one of them why.
    fn fail_unless_told(&self, peer: usize, why: String) {
        for _ in 0..4 {
            if lock(&self.failure).is_some() || self.closing.load(Ordering::SeqCst) {
                return;
            }
            thread::sleep(LOOK);
        }
        self.fail(peer, Loss::ended(why));
    }

    /// Records the first failure and sends it to all ranks.
    fn fail(&self, rank: usize, why: Loss) {
        let operation = {
            let Now { operation, step, .. } = lock(&self.now).clone();
            let ours = format!("{operation}, step {step}");
            let last = self.connections.get(&rank).map(|connection| lock(&connection.last).clone());
            match last.map(|sign| format!("{}, step {}", sign.operation, sign.step)) {
                Some(theirs) if theirs != ours => format!("{theirs} (this rank was in {ours})"),
                _ => ours,
            }
        };
        self.record(rank, self.hosts[rank].clone(), operation, why, false);
    }

    fn record(&self, rank: usize, host: String, operation: String, why: Loss, reported: bool) {
        // Held until all are informed: a thread that sees the failure may end this rank at once.
        let mut known = lock(&self.failure);
        if known.is_some() {
            return;
        }
        let since = self.clock.now();
        let failure = RankFailure { rank, host, operation, why, reported, since, noticed: false };
        self.broadcast(&failure.operation, &failure.abort());
        *known = Some(failure);
    }

    /// Sends a frame on all connections that are not being written to.
    fn broadcast(&self, operation: &str, body: &Body) {
        let step = lock(&self.now).step;
        for connection in self.connections.values() {
            // A busy connection is one whose other end does not read.
            if let Ok(mut stream) = connection.stream.try_lock() {
                let _ = Frame::write(operation, step, body, &mut *stream);
            }
        }
    }

    /// The last frames on every connection, also on those that were busy when a failure was reported.
    fn leave(&self) {
        let Now { operation, step, .. } = lock(&self.now).clone();
        let failure = lock(&self.failure).clone();
        for connection in self.connections.values() {
            let mut stream = lock(&connection.stream);
            if let Some(failure) = &failure {
                let _ = Frame::write(&failure.operation, step, &failure.abort(), &mut *stream);
            }
            let _ = Frame::write(operation, step, &Body::Bye, &mut *stream);
            let _ = stream.shutdown(Shutdown::Write);
        }
    }

    /// The body of a reading thread: reads frames until the connection ends.
    fn read(&self, peer: usize, stream: TcpStream, inbox: &Sender<(String, u64, Vec<u8>)>) {
        let connection = &self.connections[&peer];
        let mut stream = Noted { stream, last: &connection.last, clock: &self.clock };
        while let Ok(Frame { operation, step, body }) = Frame::read(&mut stream) {
            {
                let mut sign = lock(&connection.last);
                (sign.seen, sign.operation, sign.step) = (self.clock.now(), operation.clone(), step);
                match body {
                    Body::Beat { waiting, progress } => {
                        if progress != sign.progress {
                            (sign.progress, sign.since) = (progress, sign.seen);
                        }
                        sign.waiting = waiting;
                    }
                    Body::Data(_) => sign.since = sign.seen,
                    Body::Bye => sign.ended = true,
                    Body::Abort { .. } => {}
                }
            }
            match body {
                Body::Data(bytes) => {
                    // When this rank is ending, the receiver is gone.
                    let _ = inbox.send((operation, step, bytes));
                }
                Body::Abort { rank, host, why } => self.record(rank as usize, host, operation, why, true),
                Body::Beat { .. } | Body::Bye => {}
            }
        }
        let expected = self.closing.load(Ordering::SeqCst) || connection.cut.load(Ordering::SeqCst);
        if !lock(&connection.last).ended && !expected {
            self.fail_unless_told(peer, "has died: its connection closed".into());
        }
    }

    /// The body of the watching thread: sends heartbeats, and ends the process as a last resort.
    fn watch(&self, last_resort: &LastResort) {
        while !self.closing.load(Ordering::SeqCst) {
            let Now { operation, waiting, progress, .. } = lock(&self.now).clone();
            self.broadcast(operation, &Body::Beat { waiting, progress });
            self.look_around();
            let stuck = lock(&self.failure)
                .clone()
                .filter(|failure| !failure.noticed && self.clock.since(failure.since) > GRACE);
            if let Some(failure) = stuck {
                last_resort(&failure.error());
                return;
            }
            thread::sleep(beat(self.timeout));
        }
    }
}

#[cfg(test)]
#[path = "tcp_tests.rs"]
mod tests;
