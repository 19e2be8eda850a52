//! Who knocks at a rank's port: both ends show that they know the run's key before anything else is said.
//!
//! Each end sends 16 fixed bytes and a random number. The caller then sends a code over both numbers under
//! the key, and only when that is right the listener sends its own. So a stranger who connects gets a random
//! number, is hung up on, and has changed nothing; what a rank calls by mistake gets no more. What follows on
//! the connection is neither encrypted nor signed: whoever can read or change packets between the machines is
//! not kept out (`docs/security.md`).

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit, Mac};
use rustix::fs::OFlags;
use rustix::io::Errno;
use sha2::{Digest, Sha256};

/// The variable that holds the ranks' common secret; without it they share a file.
pub const RANK_KEY: &str = "RUNNER_RANK_KEY";

/// The first bytes of every connection.
const MAGIC: &[u8; 16] = b"runner/ranks/v3\n";
const CALLER: &[u8] = b"runner/ranks/v3 caller";
const LISTENER: &[u8] = b"runner/ranks/v3 listener";
/// Letters that a key from a variable must have.
const SHORTEST: usize = 16;
/// Bytes of the longest file of a key.
const LONGEST: u64 = 4096;

/// The secret that the ranks of a run share.
#[derive(Clone, PartialEq, Eq)]
pub struct RankKey([u8; 32]);

/// Where a rank has its key from.
#[derive(Clone, PartialEq, Eq)]
pub enum KeySource {
    /// The text of a variable.
    Given(String),
    /// A file of this user's in the folder that all ranks share; the first that looks makes it.
    Folder(PathBuf),
}

/// A key stays out of every message.
impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeySource::Given(_) => f.write_str("Given(…)"),
            KeySource::Folder(folder) => write!(f, "Folder({})", folder.display()),
        }
    }
}

/// A new key, as a variable has it: 64 hexadecimal digits.
pub fn new_key() -> io::Result<String> {
    Ok(hex::encode(random()?))
}

impl KeySource {
    /// The key. An error names what was read.
    pub fn key(&self) -> Result<RankKey, (String, io::Error)> {
        match self {
            KeySource::Given(text) => RankKey::of(text).map_err(|why| (RANK_KEY.into(), why)),
            KeySource::Folder(folder) => {
                let path = folder.join(format!("key-{}", user()));
                let text = match read_own(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => make(folder, &path),
                    read => read,
                };
                text.and_then(|text| RankKey::of(&text)).map_err(|why| (path.display().to_string(), why))
            }
        }
    }
}

impl RankKey {
    fn of(text: &str) -> io::Result<RankKey> {
        let text = text.trim();
        if text.len() < SHORTEST {
            let why = format!("a key of {} letters, expected {SHORTEST} or more", text.len());
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(RankKey(Sha256::digest(text).into()))
    }

    /// HMAC-SHA256 of two numbers under this key, for one of the two ends.
    fn code(&self, end: &[u8], caller: &[u8; 32], listener: &[u8; 32]) -> Hmac<Sha256> {
        let code = Hmac::new_from_slice(&self.0).expect("a key may have any length");
        code.chain_update(end).chain_update(caller).chain_update(listener)
    }
}

/// Writes a new key for this user alone, unless another rank is faster; returns what the file then holds.
fn make(folder: &Path, path: &Path) -> io::Result<String> {
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    writeln!(file, "{}", new_key()?)?;
    match file.persist_noclobber(path) {
        Err(error) if error.error.kind() != io::ErrorKind::AlreadyExists => Err(error.error),
        _ => read_own(path),
    }
}

/// Reads a file that nobody else can have read or written: this user's own, of mode 600 or less, and no link
/// to another.
fn read_own(path: &Path) -> io::Result<String> {
    // A pipe must not keep the rank waiting.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let opened = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path);
    let refused = |why: String| io::Error::new(io::ErrorKind::PermissionDenied, why);
    let file = opened.map_err(|error| match error.raw_os_error() {
        Some(code) if code == Errno::LOOP.raw_os_error() => refused("it is a symbolic link".into()),
        _ => error,
    })?;
    let found = file.metadata()?;
    let (owner, us, mode) = (found.uid(), user(), found.mode() & 0o777);
    if !found.is_file() {
        return Err(refused("it is no file".into()));
    }
    if owner != us {
        return Err(refused(format!("it belongs to the user {owner}, and this process to {us}")));
    }
    if mode & 0o077 != 0 {
        return Err(refused(format!("others may read or write it: its mode is {mode:o}, expected 600")));
    }
    if found.len() > LONGEST {
        let why = format!("it has {} bytes, and a key at most {LONGEST}", found.len());
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    let mut text = String::new();
    file.take(LONGEST).read_to_string(&mut text)?;
    Ok(text)
}

/// The number of this process's user, so that two who share a folder have a key each.
fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn random() -> io::Result<[u8; 32]> {
    let mut number = [0; 32];
    getrandom::fill(&mut number).map_err(io::Error::other)?;
    Ok(number)
}

/// Sends this end's number, and returns it and the other's.
fn exchange(stream: &mut (impl Read + Write)) -> io::Result<([u8; 32], [u8; 32])> {
    let ours = random()?;
    stream.write_all(&[MAGIC.as_slice(), &ours].concat())?;
    stream.flush()?;
    let (mut magic, mut theirs) = ([0; 16], [0; 32]);
    stream.read_exact(&mut magic)?;
    if magic != *MAGIC {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "what listens there is not this program"));
    }
    stream.read_exact(&mut theirs)?;
    Ok((ours, theirs))
}

/// The calling end.
///
/// # Errors
/// The connection breaks, or the other end does not know the key.
pub fn call(stream: &mut (impl Read + Write), key: &RankKey) -> io::Result<()> {
    let (ours, theirs) = exchange(stream)?;
    let other = || {
        let why = "what listens there has another key: another run, or a process of an older one";
        io::Error::new(io::ErrorKind::PermissionDenied, why)
    };
    stream.write_all(&key.code(CALLER, &ours, &theirs).finalize().into_bytes())?;
    stream.flush()?;
    let mut code = [0; 32];
    stream.read_exact(&mut code).map_err(|_| other())?;
    key.code(LISTENER, &ours, &theirs).verify_slice(&code).map_err(|_| other())
}

/// The listening end. A caller who does not know the key gets nothing but a random number.
///
/// # Errors
/// The connection breaks, or the caller does not know the key.
pub fn answer(stream: &mut (impl Read + Write), key: &RankKey) -> io::Result<()> {
    let (ours, theirs) = exchange(stream)?;
    let mut code = [0; 32];
    stream.read_exact(&mut code)?;
    let stranger = |_| io::Error::new(io::ErrorKind::PermissionDenied, "a caller without the run's key");
    key.code(CALLER, &theirs, &ours).verify_slice(&code).map_err(stranger)?;
    stream.write_all(&key.code(LISTENER, &theirs, &ours).finalize().into_bytes())?;
    stream.flush()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::*;

    fn key(text: &str) -> RankKey {
        RankKey::of(text).expect("long enough")
    }

    /// What both ends make of a connection.
    fn ends(caller: &RankKey, listener: &RankKey) -> (io::Result<()>, io::Result<()>) {
        let (mut here, mut there) = UnixStream::pair().expect("a pair");
        thread::scope(|scope| {
            let answered = scope.spawn(move || answer(&mut there, listener));
            let called = call(&mut here, caller);
            drop(here);
            (called, answered.join().expect("no panic"))
        })
    }

    #[test]
    fn both_ends_agree_with_one_key_and_neither_does_with_two() {
        let [ours, theirs] = ["a key of the run", "a key of another"].map(key);
        let (called, answered) = ends(&ours, &ours);
        assert!(called.is_ok() && answered.is_ok());
        let (called, answered) = ends(&ours, &theirs);
        assert!(called.expect_err("another key").to_string().contains("has another key"));
        assert!(answered.expect_err("another key").to_string().contains("without the run's key"));
    }

    #[test]
    fn a_listener_that_repeats_what_it_hears_is_not_taken_for_a_rank() {
        let (mut here, mut there) = UnixStream::pair().expect("a pair");
        thread::scope(|scope| {
            scope.spawn(move || {
                let mut heard = [0; 48];
                let _ = there.read_exact(&mut heard).and_then(|()| there.write_all(&heard));
                let mut code = [0; 32];
                let _ = there.read_exact(&mut code).and_then(|()| there.write_all(&code));
            });
            assert!(call(&mut here, &key("a key of the run")).is_err());
        });
    }

    #[test]
    fn the_first_rank_makes_a_key_that_others_read_and_strangers_cannot() {
        let folder = tempfile::tempdir().expect("a folder");
        let source = KeySource::Folder(folder.path().join("ranks"));
        let keys: Vec<RankKey> = thread::scope(|scope| {
            let ranks: Vec<_> = (0..8).map(|_| scope.spawn(|| source.key().expect("a key"))).collect();
            ranks.into_iter().map(|rank| rank.join().expect("no panic")).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]));
        let mut files = std::fs::read_dir(folder.path().join("ranks")).expect("a folder");
        let file = files.next().expect("one").expect("an entry").path();
        assert!(files.next().is_none(), "what the slower ranks wrote is gone");
        assert_eq!(std::fs::metadata(&file).expect("it").permissions().mode() & 0o777, 0o600);
        assert_eq!(format!("{:?}", KeySource::Given("secret".into())), "Given(…)");
        std::fs::write(&file, "short\n").expect("writable");
        let (name, why) = source.key().map(|_| ()).expect_err("too short");
        assert!(name.ends_with(&format!("key-{}", user())) && why.to_string().contains("5 letters"));
    }

    #[test]
    fn a_key_that_others_could_have_read_or_written_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let source = KeySource::Folder(folder.path().into());
        let refused = |says: &str| {
            let (_, why) = source.key().map(|_| ()).expect_err(says);
            assert!(why.to_string().contains(says), "{why}");
        };
        source.key().expect("a key");
        let file = folder.path().join(format!("key-{}", user()));
        for mode in [0o644, 0o640, 0o622] {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("ours");
            refused(&format!("its mode is {mode:o}, expected 600"));
        }
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o400)).expect("ours");
        source.key().expect("a key that only its user can read");
        let beside = folder.path().join("beside");
        std::fs::rename(&file, &beside).expect("ours");
        std::os::unix::fs::symlink(&beside, &file).expect("a link");
        refused("it is a symbolic link");
        std::fs::remove_file(&file).expect("ours");
        std::os::unix::fs::symlink(folder.path().join("nothing"), &file).expect("a link");
        refused("it is a symbolic link");
        std::fs::remove_file(&file).expect("ours");
        std::fs::create_dir(&file).expect("a folder");
        refused("it is no file");
        std::fs::remove_dir(&file).expect("ours");
        for (text, says) in [(String::new(), "a key of 0 letters"), ("k".repeat(5000), "it has 5000 bytes")] {
            std::fs::write(&file, text).expect("writable");
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("ours");
            refused(says);
        }
    }
}
