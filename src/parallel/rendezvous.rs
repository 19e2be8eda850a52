//! How the ranks of a run find each other.
//!
//! Every rank listens on a port of its own. Rank 0 is found at an address that all know beforehand, or
//! through a file that it writes into a folder that all share. The others register there, each with the run's
//! identifier; when all have registered, rank 0 sends all of them the list of addresses, and each pair that
//! exchanges data connects. A process with another identifier, number of ranks, experiment or program is
//! refused with the reason: a file left by a killed run, or a process of another one, can only fail here,
//! with a message. Reasons, names and addresses are for those who know the run's key: a stranger is hung up
//! on ([`handshake`]), and keeps nobody waiting meanwhile.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::handshake::{self, KeySource, RANK_KEY, RankKey};
use super::wire::{self, Greeting, Purpose, RegistrationAnswer};

/// Where rank 0 can be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meeting {
    /// Rank 0 listens at this `host:port`, of which [`super::launch`] has checked the port.
    Tcp(String),
    /// Rank 0 writes where it listens into a file of this folder.
    Folder(PathBuf),
}

/// A rank's place in a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankPlace {
    pub rank: usize,
    /// N, a power of two.
    pub size: usize,
    /// Number among the ranks on this machine: which device is this rank's.
    pub local_rank: usize,
    /// Ranks on this machine.
    pub local_size: usize,
    /// Names the run and the attempt.
    pub run: String,
    pub meeting: Meeting,
    pub key: KeySource,
}

/// Why the ranks did not find each other.
#[derive(Debug, thiserror::Error)]
pub enum RendezvousError {
    #[error(
        "rank {rank} cannot listen{}: {source}\n  hint: {}",
        at.as_ref().map_or(String::new(), |at| format!(" at `{at}`")),
        if at.is_some() {
            "the port is taken: by an older run, or by the launcher itself; choose another MASTER_PORT"
        } else {
            "no free port"
        }
    )]
    Listen { rank: usize, at: Option<String>, source: io::Error },
    #[error("cannot {doing} `{}`: {source}\n  hint: the folder must be shared by all ranks", path.display())]
    Folder { doing: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "cannot take the ranks' common key from `{from}`: {source}\n  hint: {}",
        match from.as_str() {
            RANK_KEY => "all ranks of a run have one, of 16 letters or more",
            _ => "all ranks share the folder of `--runs` and run as one user, or have one RUNNER_RANK_KEY of \
                  16 letters or more; what was left there may be deleted while no run is starting, and the \
                  next makes a new one",
        }
    )]
    Key { from: String, source: io::Error },
    #[error("rank 0 refuses this rank: {why}")]
    Refused { why: String },
    #[error("rank {rank} did not find rank 0 of run `{run}` within {seconds} s: {last}\n  hint: {hint}")]
    NotFound { rank: usize, run: String, seconds: u64, last: String, hint: &'static str },
    #[error(
        "of {size} ranks of run `{run}` {} did not register within {seconds} s\n  hint: see why on their \
         machines; nothing was changed",
        ranks_text(missing)
    )]
    Missing { run: String, size: usize, missing: Vec<usize>, seconds: u64 },
    #[error(
        "the connection to rank {rank} on `{host}` at `{address}` could not be made: {source}\n  hint: \
         every rank must reach every other by TCP, on any port"
    )]
    Connection { rank: usize, host: String, address: String, source: io::Error },
}

fn ranks_text(ranks: &[usize]) -> String {
    let shown: Vec<String> = ranks.iter().take(8).map(usize::to_string).collect();
    let more = if ranks.len() > 8 { format!(" and {} more", ranks.len() - 8) } else { String::new() };
    format!("{} {}{more}", if ranks.len() == 1 { "rank" } else { "ranks" }, shown.join(", "))
}

/// The connections of one rank.
#[derive(Debug)]
pub struct Connections {
    /// The name of each rank's machine.
    pub hosts: Vec<String>,
    /// The ranks that this one is connected to, ascending.
    pub peers: Vec<(usize, TcpStream)>,
}

/// How long one greeting may take; a slower caller is not taken for a rank.
const GREETING: Duration = Duration::from_secs(5);
/// Callers that are asked at a time. The one that has waited longest gives way to the next, so that
/// strangers who keep silent keep no rank out.
const MOST_CALLERS: usize = 128;
const POLL: Duration = Duration::from_millis(5);

/// Brings the ranks together. `job` is what all must have been started with, hashed.
pub fn meet(place: &RankPlace, job: &str, timeout: Duration) -> Result<Connections, RendezvousError> {
    let deadline = Instant::now() + timeout;
    let rank = place.rank;
    let key = place.key.key().map_err(|(from, source)| RendezvousError::Key { from, source })?;
    let at = match &place.meeting {
        Meeting::Tcp(at) if rank == 0 => Some(at.clone()),
        _ => None,
    };
    let listener = match &at {
        // The address may be any interface's name as others see it: only the port is used here.
        Some(at) => TcpListener::bind((if is_loopback(at) { LOOPBACK } else { ANY }, port_of(at))),
        None => TcpListener::bind((ANY, 0)),
    }
    .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
    .map_err(|source| RendezvousError::Listen { rank, at, source })?;
    let port = listener.local_addr().map_or(0, |at| at.port());
    let door = Door::new(listener, key);
    let greeting = Greeting {
        purpose: Purpose::Register,
        run: place.run.clone(),
        job: job.into(),
        rank: rank as u32,
        size: place.size as u32,
        host: host_name(),
        port,
    };
    let ranks = if rank == 0 {
        let file = match &place.meeting {
            Meeting::Folder(folder) => Some(Notice::write(folder, &greeting)?),
            Meeting::Tcp(_) => None,
        };
        let ranks = host_ranks(&door, &greeting, place, timeout, deadline)?;
        drop(file);
        ranks
    } else {
        register(place, &greeting, &door.key, timeout, deadline)?
    };
    connect(place, &door, &greeting, ranks, timeout, deadline)
}

const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;
const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

fn is_loopback(at: &str) -> bool {
    at.starts_with("127.") || at.starts_with("localhost:")
}

fn port_of(at: &str) -> u16 {
    let port = at.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    port.expect("the launcher's port was checked")
}

/// Rank 0: takes registrations until all ranks have registered, and answers them.
fn host_ranks(
    door: &Door,
    ours: &Greeting,
    place: &RankPlace,
    timeout: Duration,
    deadline: Instant,
) -> Result<Vec<(String, String)>, RendezvousError> {
    let mut come: Vec<Option<(TcpStream, String, String)>> = (0..place.size).map(|_| None).collect();
    let waiting =
        |come: &[Option<_>]| (1..place.size).filter(|&rank| come[rank].is_none()).collect::<Vec<usize>>();
    while !waiting(&come).is_empty() {
        let Some((mut stream, from, theirs)) = door.next(deadline) else {
            let (run, missing) = (place.run.clone(), waiting(&come));
            let why = RendezvousError::Missing { run, size: place.size, missing, seconds: timeout.as_secs() };
            for (stream, ..) in come.iter_mut().flatten() {
                // The registered ranks are told which ones are missing, if they still listen.
                let _ = wire::write_answer(&Err(why.to_string()), stream);
            }
            return Err(why);
        };
        let taken = come.get(theirs.rank as usize).and_then(Option::as_ref).map(|(_, host, _)| host.clone());
        if let Some(why) = refusal(ours, &theirs, taken) {
            // The caller gets the reason, if it still listens.
            let _ = wire::write_answer(&Err(why), &mut stream);
            continue;
        }
        let address = SocketAddr::new(from.ip(), theirs.port).to_string();
        come[theirs.rank as usize] = Some((stream, theirs.host, address));
    }
    // Each rank knows for itself how it reached rank 0.
    let first = (ours.host.clone(), String::new());
    let ranks: Vec<(String, String)> = [first]
        .into_iter()
        .chain(come.iter().flatten().map(|(_, host, address)| (host.clone(), address.clone())))
        .collect();
    let answer: RegistrationAnswer = Ok(ranks.clone());
    for (stream, ..) in come.iter_mut().flatten() {
        // A rank that has ended by now is noticed when its connections are made.
        let _ = wire::write_answer(&answer, stream);
    }
    Ok(ranks)
}

/// Why a caller does not belong to this run, if it does not.
fn refusal(ours: &Greeting, theirs: &Greeting, taken: Option<String>) -> Option<String> {
    let Greeting { run, size, job, rank, .. } = theirs;
    if *run != ours.run {
        Some(format!(
            "this is run `{}`, not `{run}`\n  hint: another run listens here, or a process of an older one \
             calls",
            ours.run
        ))
    } else if *size != ours.size {
        Some(format!("this run has {} ranks, not {size}", ours.size))
    } else if *job != ours.job {
        Some(
            "it was started with another experiment, other settings or another build of the program\n  \
             hint: start all ranks by one command, from one file and one binary; runs that start at once \
             in one folder need a RUNNER_RUN_ID each"
                .into(),
        )
    } else if *rank == 0 || *rank >= ours.size {
        Some(format!("there is no place for a rank {rank} of {size} beside rank 0"))
    } else {
        taken.map(|host| {
            format!(
                "there is already a rank {rank}, on `{host}`\n  hint: the launcher has given one number twice"
            )
        })
    }
}

/// A connection on which a rank of this run has said who it is.
type Caller = (TcpStream, SocketAddr, Greeting);

/// The port of a rank. Each who connects is asked for key and greeting on a thread of its own: one who says
/// nothing, or takes its time, keeps nobody else waiting.
struct Door {
    listener: TcpListener,
    key: RankKey,
    asked: Sender<Caller>,
    callers: Receiver<Caller>,
    /// Those who have not said yet who they are, oldest first.
    strangers: RefCell<VecDeque<Weak<TcpStream>>>,
}

impl Door {
    fn new(listener: TcpListener, key: RankKey) -> Door {
        let (asked, callers) = mpsc::channel();
        Door { listener, key, asked, callers, strangers: RefCell::default() }
    }

    /// Keeps the newest callers alone who have not said yet who they are, and hangs up on the others.
    fn make_room(&self, stream: &Arc<TcpStream>) {
        let mut strangers = self.strangers.borrow_mut();
        strangers.retain(|stranger| stranger.strong_count() > 0);
        if strangers.len() >= MOST_CALLERS
            && let Some(oldest) = strangers.pop_front().and_then(|oldest| oldest.upgrade())
        {
            // Its thread then ends with an error.
            let _ = oldest.shutdown(Shutdown::Both);
        }
        strangers.push_back(Arc::downgrade(stream));
    }

    /// The next caller of this run; none at the deadline. Connections of other callers are closed.
    fn next(&self, deadline: Instant) -> Option<Caller> {
        loop {
            if let Ok((stream, from)) = self.listener.accept() {
                let stream = Arc::new(stream);
                self.make_room(&stream);
                let (key, asked) = (self.key.clone(), self.asked.clone());
                // Without a thread for it the caller is hung up on, and calls again if it is a rank.
                let _ = thread::Builder::new().name("a caller".into()).spawn(move || {
                    if let Ok((stream, greeting)) = greeted(stream, &key) {
                        // Nobody listens any more once all ranks have met.
                        let _ = asked.send((stream, from, greeting));
                    }
                });
            } else if let Ok(caller) = self.callers.recv_timeout(POLL) {
                return Some(caller);
            }
            if Instant::now() >= deadline {
                return None;
            }
        }
    }
}

fn greeted(stream: Arc<TcpStream>, key: &RankKey) -> io::Result<(TcpStream, Greeting)> {
    stream.set_nonblocking(false)?;
    let mut until = wire::Until { stream: &stream, deadline: Instant::now() + GREETING };
    handshake::answer(&mut until, key)?;
    let greeting = Greeting::read(&mut until)?;
    stream.set_read_timeout(Some(GREETING))?;
    stream.set_write_timeout(Some(GREETING))?;
    let stream = stream.try_clone()?;
    Ok((stream, greeting))
}

/// Any rank but 0: finds rank 0, registers, and returns host and address of all ranks.
fn register(
    place: &RankPlace,
    greeting: &Greeting,
    key: &RankKey,
    timeout: Duration,
    deadline: Instant,
) -> Result<Vec<(String, String)>, RendezvousError> {
    let mut last = String::from("nothing was tried yet");
    loop {
        let addresses = match &place.meeting {
            Meeting::Tcp(at) => vec![at.clone()],
            Meeting::Folder(folder) => match Notice::read(folder, &place.run) {
                Ok(addresses) => addresses,
                Err(why) => {
                    last = why;
                    Vec::new()
                }
            },
        };
        for address in addresses {
            match try_register(&address, greeting, key, deadline) {
                Ok(Ok(mut ranks)) if ranks.len() == place.size => {
                    ranks[0].1 = address;
                    return Ok(ranks);
                }
                Ok(Ok(ranks)) => last = format!("`{address}` lists {} ranks", ranks.len()),
                Ok(Err(why)) => return Err(RendezvousError::Refused { why }),
                Err(why) => last = format!("`{address}`: {why}"),
            }
        }
        if Instant::now() >= deadline {
            let hint = match place.meeting {
                Meeting::Tcp(_) => "is rank 0 running, and is MASTER_ADDR:MASTER_PORT its address?",
                Meeting::Folder(_) => {
                    "is rank 0 running, and do all ranks share this folder? A file left by a killed run may \
                     be deleted"
                }
            };
            let (rank, run) = (place.rank, place.run.clone());
            return Err(RendezvousError::NotFound { rank, run, seconds: timeout.as_secs(), last, hint });
        }
        thread::sleep(20 * POLL);
    }
}

fn try_register(
    address: &str,
    greeting: &Greeting,
    key: &RankKey,
    deadline: Instant,
) -> io::Result<RegistrationAnswer> {
    let mut stream = dial(address, key, GREETING)?;
    greeting.write(&mut stream)?;
    // The answer comes when the last rank has registered, or when rank 0, which may have started later, gives
    // up.
    let left = deadline.saturating_duration_since(Instant::now());
    stream.set_read_timeout(Some(left + GREETING))?;
    wire::read_answer(&mut stream).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            io::Error::new(error.kind(), "rank 0 answers there, but not all ranks have registered")
        }
        _ => error,
    })
}

/// Connects, and makes sure that a rank of this run answers within `patience`.
fn dial(address: &str, key: &RankKey, patience: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for at in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&at, GREETING) {
            Ok(mut stream) => {
                stream.set_read_timeout(Some(patience))?;
                handshake::call(&mut stream, key)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Connects to all ranks whose numbers differ in one bit: the higher number calls.
fn connect(
    place: &RankPlace,
    door: &Door,
    greeting: &Greeting,
    ranks: Vec<(String, String)>,
    timeout: Duration,
    deadline: Instant,
) -> Result<Connections, RendezvousError> {
    let greeting = Greeting { purpose: Purpose::Connection, ..greeting.clone() };
    let mut connections: Vec<Option<TcpStream>> = (0..place.size).map(|_| None).collect();
    let peers: Vec<usize> = (0..place.size.trailing_zeros()).map(|bit| place.rank ^ 1 << bit).collect();
    for &peer in peers.iter().filter(|peer| **peer < place.rank) {
        let (host, address) = &ranks[peer];
        // It may still wait for the answer that this rank has.
        let patience = deadline.saturating_duration_since(Instant::now()) + GREETING;
        let connection = dial(address, &door.key, patience)
            .and_then(|mut stream| greeting.write(&mut stream).map(|()| stream));
        connections[peer] = Some(connection.map_err(|source| {
            let (host, address) = (host.clone(), address.clone());
            RendezvousError::Connection { rank: peer, host, address, source }
        })?);
    }
    let awaited = |connections: &[Option<TcpStream>]| {
        peers.iter().copied().filter(|&peer| connections[peer].is_none()).collect::<Vec<_>>()
    };
    while !awaited(&connections).is_empty() {
        let Some((stream, _, theirs)) = door.next(deadline) else {
            let (run, missing) = (place.run.clone(), awaited(&connections));
            return Err(RendezvousError::Missing {
                run,
                size: place.size,
                missing,
                seconds: timeout.as_secs(),
            });
        };
        let ours =
            theirs.run == greeting.run && theirs.purpose == Purpose::Connection && theirs.job == greeting.job;
        if ours && awaited(&connections).contains(&(theirs.rank as usize)) {
            connections[theirs.rank as usize] = Some(stream);
        }
    }
    let hosts = ranks.into_iter().map(|(host, _)| host).collect();
    let peers = connections
        .into_iter()
        .enumerate()
        .filter_map(|(rank, connection)| Some((rank, connection?)))
        .collect();
    Ok(Connections { hosts, peers })
}

/// The file by which rank 0 is found; removed when all have registered. It is locked for so long: one that is
/// not was left by a process that was killed, and the next that meets in this folder removes it.
struct Notice {
    path: PathBuf,
    _lock: File,
}

/// The ending of its name, and while it is written.
const NOTICE: &str = "rank0";
const UNFINISHED: &str = "tmp";
/// How old a file without a word is at least that a kill left: others are being written.
const LEFT: Duration = Duration::from_secs(60);

impl Notice {
    fn path(folder: &Path, run: &str) -> PathBuf {
        let name: String =
            run.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
        folder.join(format!("{name}.{NOTICE}"))
    }

    /// Writes run, host and the addresses to try, one a line, in place of what an older attempt left.
    fn write(folder: &Path, greeting: &Greeting) -> Result<Notice, RendezvousError> {
        let path = Notice::path(folder, &greeting.run);
        let error = |doing| {
            let path = path.clone();
            move |source| RendezvousError::Folder { doing, path, source }
        };
        let Greeting { run, host, port, .. } = greeting;
        let outward = outward_ip().map_or(String::new(), |ip| format!("{}\n", SocketAddr::new(ip, *port)));
        let text = format!("{run}\n{host}\n127.0.0.1:{port}\n{outward}{host}:{port}\n");
        let temporary = path.with_extension(UNFINISHED);
        std::fs::create_dir_all(folder).map_err(error("create the folder of"))?;
        Notice::remove_left(folder, host);
        let mut lock = File::create(&temporary).map_err(error("write"))?;
        // Where the file system has no locks, nobody takes the file for one that was left.
        let _ = lock.try_lock();
        lock.write_all(text.as_bytes()).map_err(error("write"))?;
        std::fs::rename(&temporary, &path).map_err(error("write"))?;
        Ok(Notice { path, _lock: lock })
    }

    /// Removes what killed processes of this machine have left.
    fn remove_left(folder: &Path, host: &str) {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let is_notice = |ending: &OsStr| ending == NOTICE || ending == UNFINISHED;
        for path in entries.filter(|path| path.extension().is_some_and(is_notice)) {
            let age = || path.metadata().ok()?.modified().ok()?.elapsed().ok();
            let ours = std::fs::read_to_string(&path).is_ok_and(|text| match text.is_empty() {
                true => age().is_some_and(|age| age > LEFT),
                false => text.lines().nth(1) == Some(host),
            });
            if ours && File::open(&path).is_ok_and(|file| file.try_lock().is_ok()) {
                // Another may be doing so too.
                let _ = std::fs::remove_file(path);
            }
        }
    }

    /// The addresses at which rank 0 of `run` may listen, as seen from this machine.
    fn read(folder: &Path, run: &str) -> Result<Vec<String>, String> {
        let path = Notice::path(folder, run);
        let text = std::fs::read_to_string(&path).map_err(|e| format!("`{}`: {e}", path.display()))?;
        let mut lines = text.lines();
        if lines.next() != Some(run) {
            return Err(format!("`{}` is of another run", path.display()));
        }
        let host = lines.next().unwrap_or_default().to_owned();
        let here = host == host_name();
        // Loopback means another machine elsewhere.
        Ok(lines.filter(|at| here == at.starts_with("127.")).map(str::to_owned).collect())
    }
}

impl Drop for Notice {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// This machine's name, for messages.
pub fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "unknown host".into() } else { name.into() }
}

/// The address by which this machine leaves its network. Nothing is sent: the system is only asked
/// for the route to an address that is kept for documentation.
fn outward_ip() -> Option<IpAddr> {
    let socket = UdpSocket::bind((ANY, 0)).ok()?;
    socket.connect(("192.0.2.1", 9)).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_killed_processes_left_goes_with_the_next_and_what_is_held_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let greeting = |run: &str| Greeting {
            purpose: Purpose::Register,
            run: run.into(),
            job: String::new(),
            rank: 0,
            size: 2,
            host: host_name(),
            port: 7,
        };
        let at = |run: &str| Notice::path(folder.path(), run);
        let held = Notice::write(folder.path(), &greeting("held")).expect("written");
        let text = std::fs::read_to_string(at("held")).expect("it");
        std::fs::write(at("killed"), &text).expect("written");
        let unfinished = |run: &str| at(run).with_extension(UNFINISHED);
        std::fs::write(unfinished("killed"), &text).expect("written");
        std::fs::write(unfinished("begun"), "").expect("written");
        let old = File::create(unfinished("old")).expect("written");
        old.set_modified(std::time::SystemTime::now() - 2 * LEFT).expect("its time");
        drop(old);
        std::fs::write(at("elsewhere"), text.replace(&host_name(), "another machine")).expect("written");
        let next = Notice::write(folder.path(), &greeting("next")).expect("written");
        let there = ["held", "killed", "elsewhere", "next"].map(|run| at(run).exists());
        assert_eq!(there, [true, false, true, true]);
        assert_eq!(["killed", "begun", "old"].map(|run| unfinished(run).exists()), [false, true, false]);
        drop((held, next));
        assert!(!at("held").exists() && !at("next").exists());
    }
}
