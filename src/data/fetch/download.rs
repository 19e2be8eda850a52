//! Fetching one file: request it, continue where the last attempt stopped, check it, rename it to its final
//! name.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::super::shard;
use super::Attempts;
use super::catalogue::RemoteFile;
use super::check::START_BYTES;
use super::error::FetchError;
use super::http::{Client, HttpAnswer, ResumePoint};
use super::part::{Part, PartSource};
use crate::store::space;

/// Bytes that are read and written at a time.
const CHUNK_BYTES: usize = 256 << 10;

/// An event in the fetching of a file.
#[derive(Debug)]
pub enum FetchEvent<'a> {
    /// An answer arrived: bytes present already, and bytes in all.
    Started { have_bytes: u64, total_bytes: Option<u64> },
    /// More bytes.
    Received(u64),
    /// All bytes are there and are being checked.
    Checking,
    /// An attempt failed; the seconds until the next.
    Retry { error: &'a FetchError, wait_s: u64 },
    /// Complete, under its final name.
    Done(&'a Fetched),
}

/// A file that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    pub name: String,
    pub path: PathBuf,
    pub bytes: u64,
    /// In hex; none for a file that was there before and has no published digest.
    pub sha256: Option<String>,
    /// The digest was compared with a published one.
    pub verified: bool,
    /// It was there before.
    pub was_there: bool,
}

/// A file and everything that is needed to fetch it.
pub(super) struct Download<'a> {
    pub client: &'a Client,
    pub file: &'a RemoteFile,
    pub url: String,
    pub target: PathBuf,
    pub stop: &'a AtomicBool,
    pub report: &'a (dyn Fn(FetchEvent<'_>) + Sync),
}

impl Download<'_> {
    /// Fetches the file, in as many attempts as it takes.
    pub fn run(&self) -> Result<Fetched, FetchError> {
        if self.target.exists() {
            return self.existing();
        }
        let patience = self.client.patience();
        let mut attempts = Attempts::new(patience);
        loop {
            let mut received = 0;
            let error = match self.attempt(&mut received) {
                Ok(fetched) => return Ok(fetched),
                Err(error) => error,
            };
            if received >= patience.progress_bytes {
                attempts.progressed();
            }
            attempts.after(error, self.stop, self.report)?;
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// A file that exists already: it must have the format, and the pinned digest.
    fn existing(&self) -> Result<Fetched, FetchError> {
        let damaged = |reason: String| FetchError::Existing { path: self.target.clone(), reason };
        self.file.format.check_file(&self.target, &self.target).map_err(|e| damaged(e.to_string()))?;
        let bytes = fs::metadata(&self.target).map_err(FetchError::io("read", &self.target, 0))?.len();
        let sha256 = match self.file.sha256 {
            Some(expected) => {
                let got = self.sha256(&self.target)?;
                if got != expected {
                    return Err(damaged(format!("its SHA-256 is {got}, expected {expected}")));
                }
                Some(got)
            }
            None => None,
        };
        let verified = sha256.is_some();
        let (name, path) = (self.file.name.clone(), self.target.clone());
        Ok(Fetched { name, path, bytes, sha256, verified, was_there: true })
    }

    /// One request, from where the part ends to the end of the file.
    fn attempt(&self, received: &mut u64) -> Result<Fetched, FetchError> {
        let mut part = Part::open(&self.target, &self.url)?;
        let resumed = part.len() > 0;
        let whole = |part: &Part| part.len() > 0 && part.origin().and_then(|o| o.bytes) == Some(part.len());
        if !whole(&part) {
            let answer = self.client.get(&self.url, resume_of(&part).as_ref());
            if let Err(error) = answer.and_then(|answer| self.receive(&mut part, answer, received)) {
                if part.len() == 0 {
                    part.discard();
                }
                return Err(error);
            }
        }
        self.finish(part, resumed)
    }

    /// Appends the answer's bytes to the part, or starts the part again when it belongs to another file.
    fn receive(&self, part: &mut Part, answer: HttpAnswer, received: &mut u64) -> Result<(), FetchError> {
        let HttpAnswer { url, status, facts, body } = answer;
        if status != 200 && status != 206 {
            if status == 416 {
                part.restart(None)?;
            }
            return Err(FetchError::status(&url, status, facts.retry_after_s));
        }
        if facts.is_html {
            return Err(FetchError::WebPage { url, start: first_line(body) });
        }
        if let Some(encoding) = facts.encoding {
            return Err(FetchError::Encoding { url, encoding });
        }
        let total = if status == 206 { facts.range.map(|(_, total)| total) } else { facts.body_bytes };
        if let (Some(got_bytes), Some(expected_bytes)) = (total, facts.hub_bytes)
            && got_bytes != expected_bytes
        {
            return Err(FetchError::WrongLength {
                url,
                got_bytes,
                expected_bytes,
                whence: "as the hub says",
            });
        }
        let sha256 = self.file.sha256.map(str::to_owned).or(facts.hub_sha256);
        let bytes = total.or(facts.hub_bytes);
        if bytes.is_none() && sha256.is_none() {
            return Err(FetchError::NoLength { url });
        }
        let origin = PartSource { url: self.url.clone(), bytes, validator: facts.validator, sha256 };
        if status == 206 {
            let same = |old: &PartSource| (old.bytes, &old.sha256) == (origin.bytes, &origin.sha256);
            let fits = facts.range.is_some_and(|(first, _)| first == part.len());
            if !fits || !part.origin().is_some_and(same) {
                let asked = part.len();
                part.restart(None)?;
                return Err(FetchError::WrongRange { url, asked, got: facts.range_text });
            }
        } else {
            // A new file, one that changed meanwhile, or a server without ranges: from the start.
            part.restart(Some(origin))?;
        }
        // What is announced must fit, before the first byte of it is written.
        let folder = self.target.parent().unwrap_or(Path::new("."));
        let need_bytes = bytes.unwrap_or(0).saturating_sub(part.len());
        if space::free_bytes(folder).is_some_and(|free| free < need_bytes) {
            return Err(FetchError::DiskFull { path: self.target.clone(), need_bytes });
        }
        (self.report)(FetchEvent::Started { have_bytes: part.len(), total_bytes: bytes });
        self.copy(part, &url, body, received)
    }

    fn copy(
        &self,
        part: &mut Part,
        url: &str,
        body: ureq::Body,
        received: &mut u64,
    ) -> Result<(), FetchError> {
        let expected = part.origin().and_then(|origin| origin.bytes);
        let mut reader = body.into_reader();
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut window = StallWindow::new(self.client.patience());
        // The start is looked at before anything is written, so it is gathered first.
        let mut held = 0;
        loop {
            let read = reader.read(&mut buffer[held..]);
            if self.stopped() {
                return Err(FetchError::Interrupted);
            }
            let count = match read {
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.broken(url, part.len(), expected, error)),
            };
            held += count;
            *received += count as u64;
            (self.report)(FetchEvent::Received(count as u64));
            let starts = part.len() == 0;
            if !starts || held >= START_BYTES || count == 0 {
                if starts {
                    self.check_start(url, &buffer[..held.min(START_BYTES)])?;
                }
                part.write(&buffer[..held])?;
                held = 0;
            }
            if count == 0 {
                break;
            }
            window.add(count as u64, url, part.len())?;
        }
        match expected {
            Some(expected_bytes) if part.len() < expected_bytes => {
                let reason = "it was closed by the other side".to_owned();
                Err(FetchError::Cut { url: url.to_owned(), got_bytes: part.len(), expected_bytes, reason })
            }
            Some(expected_bytes) if part.len() > expected_bytes => {
                let got_bytes = part.len();
                part.restart(None)?;
                Err(FetchError::WrongLength {
                    url: url.to_owned(),
                    got_bytes,
                    expected_bytes,
                    whence: "as the server itself said",
                })
            }
            _ => Ok(()),
        }
    }

    /// The error for a failed read of a body.
    fn broken(&self, url: &str, got_bytes: u64, expected: Option<u64>, error: std::io::Error) -> FetchError {
        let error = ureq::Error::from(error);
        match (self.client.connection(url, &error), expected) {
            (FetchError::Stalled { url, seconds, .. }, _) => {
                FetchError::Stalled { url, seconds, received: 0, got_bytes }
            }
            (_, Some(expected_bytes)) => {
                FetchError::Cut { url: url.to_owned(), got_bytes, expected_bytes, reason: error.to_string() }
            }
            (other, None) => other,
        }
    }

    fn check_start(&self, url: &str, start: &[u8]) -> Result<(), FetchError> {
        if let Some(start) = shard::html_start(start) {
            return Err(FetchError::WebPage { url: url.to_owned(), start });
        }
        let content = |reason| FetchError::Content { url: url.to_owned(), reason: Box::new(reason) };
        self.file.format.check_start(&self.target, start).map_err(content)
    }

    /// Checks the whole part and gives it its name.
    fn finish(&self, part: Part, resumed: bool) -> Result<Fetched, FetchError> {
        (self.report)(FetchEvent::Checking);
        part.sync()?;
        let sha256 = self.sha256(part.path())?;
        let published = part.origin().and_then(|origin| origin.sha256.clone());
        if let Some(expected) = published.as_ref().filter(|expected| **expected != sha256) {
            let whence = if self.file.sha256.is_some() { "which is pinned" } else { "as the hub says" };
            let (url, expected) = (self.url.clone(), expected.clone());
            part.discard();
            return Err(FetchError::Digest { url, expected, got: sha256, whence, resumed });
        }
        if let Err(reason) = self.file.format.check_file(part.path(), &self.target) {
            part.discard();
            return Err(FetchError::Content { url: self.url.clone(), reason: Box::new(reason) });
        }
        let bytes = part.len();
        part.finish(&self.target)?;
        Ok(Fetched {
            name: self.file.name.clone(),
            path: self.target.clone(),
            bytes,
            sha256: Some(sha256),
            verified: published.is_some(),
            was_there: false,
        })
    }

    fn sha256(&self, path: &Path) -> Result<String, FetchError> {
        let mut file = fs::File::open(path).map_err(FetchError::io("read", path, 0))?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            if self.stopped() {
                return Err(FetchError::Interrupted);
            }
            match file.read(&mut buffer).map_err(FetchError::io("read", path, 0))? {
                0 => return Ok(hex::encode(hash.finalize())),
                count => hash.update(&buffer[..count]),
            }
        }
    }
}

/// How to ask for the rest of a part. Without anything that would notice another version: not at all.
fn resume_of(part: &Part) -> Option<ResumePoint> {
    let origin = part.origin().filter(|_| part.len() > 0)?;
    (origin.validator.is_some() || origin.sha256.is_some())
        .then(|| ResumePoint { from: part.len(), validator: origin.validator.clone() })
}

/// The first line of a page, for a message.
fn first_line(body: ureq::Body) -> String {
    let mut start = Vec::new();
    // A page that cannot be read is still a page.
    let _ = body.into_reader().take(200).read_to_end(&mut start);
    String::from_utf8_lossy(&start).trim_start().lines().next().unwrap_or("").chars().take(40).collect()
}

/// Notices a connection that is open but delivers next to nothing.
struct StallWindow {
    since: Instant,
    received: u64,
    length: Duration,
    least_bytes: u64,
}

impl StallWindow {
    fn new(patience: &super::Patience) -> StallWindow {
        StallWindow {
            since: Instant::now(),
            received: 0,
            length: patience.stall,
            least_bytes: patience.stall_bytes,
        }
    }

    fn add(&mut self, bytes: u64, url: &str, got_bytes: u64) -> Result<(), FetchError> {
        self.received += bytes;
        if self.since.elapsed() < self.length {
            return Ok(());
        }
        let (received, seconds) = (self.received, self.length.as_secs());
        if received < self.least_bytes {
            return Err(FetchError::Stalled { url: url.to_owned(), seconds, received, got_bytes });
        }
        (self.since, self.received) = (Instant::now(), 0);
        Ok(())
    }
}
