//! Data sets from the Hugging Face hub and GitHub.
//!
//! A file is fetched into a part beside its final path ([`part`]), checked against the published length and
//! digest and against its format ([`check`]), and only then renamed: nothing half-written is ever taken for a
//! file. A cut or stalled connection is retried with growing pauses, and continues at the byte where it
//! stopped as long as the server still has the same file; so does the same command after a Ctrl-C.
//! [`catalogue`] lists the data sets, [`record`] notes which commit the files are from.
//!
//! Deliberately absent: a cache shared between folders, uploads, and any repository not in the catalogue.

#![forbid(unsafe_code)]

mod catalogue;
mod check;
mod download;
mod error;
mod http;
mod part;
mod record;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

pub use catalogue::{DataSet, Host, RemoteFile};
pub use check::FileKind;
pub use download::{FetchEvent, Fetched};
pub use error::FetchError;
pub use http::{Endpoints, Patience};
pub use record::{FetchRecord, RecordedFile};

use download::Download;
use http::{Client, is_commit};

/// What to fetch, and how.
#[derive(Clone, Debug)]
pub struct FetchRequest {
    pub data_set: DataSet,
    /// Of the set's files; see [`DataSet::files`].
    pub files: Vec<RemoteFile>,
    /// Folder of the data; made when missing.
    pub out: PathBuf,
    /// Commit, branch or tag; default: the one in the folder's record, else the set's own.
    pub revision: Option<String>,
    pub endpoints: Endpoints,
    /// Files at a time.
    pub parallel: usize,
    pub patience: Patience,
}

/// Fetches all files of a request, several at a time, and returns them in its order. `report` receives what
/// happens, with the index of the file; it is called from several threads.
///
/// Once `stop` is set, or a file has failed for good, requests under way are aborted; received bytes are
/// kept, and the next call continues from them.
///
/// # Errors
///
/// The first failure in the order of the files.
pub fn fetch(
    request: &FetchRequest,
    stop: &AtomicBool,
    report: impl Fn(usize, FetchEvent<'_>) + Sync,
) -> Result<Vec<Fetched>, FetchError> {
    let (host, repository) = request.data_set.repository();
    let client = Client::new(request.endpoints.clone(), request.patience);
    let record = FetchRecord::read(&request.out, request.data_set.name())
        .filter(|record| record.repository == repository);
    let asked = match (&request.revision, &record) {
        (Some(revision), _) => checked_revision(revision)?,
        (None, Some(record)) => record.revision.clone(),
        (None, None) => request.data_set.default_revision().to_owned(),
    };
    let missing = request.files.iter().find(|file| !request.out.join(&file.name).exists());
    let revision = match missing {
        Some(file) if host == Host::HuggingFace && !is_commit(&asked) => {
            let url = client.endpoints().url((host, repository), &asked, &file.path);
            let retry = |event: FetchEvent<'_>| report(0, event);
            stoppable(&client, stop, || commit_of(&client, &url, stop, &retry))?.unwrap_or(asked)
        }
        _ => asked,
    };
    let new = || FetchRecord::new(request.data_set.name(), repository, &revision);
    let record = Mutex::new(record.filter(|record| record.revision == revision).unwrap_or_else(new));

    let halt = AtomicBool::new(false);
    let next = AtomicUsize::new(0);
    let results = Mutex::new(vec![None; request.files.len()]);
    let one = |index: usize| {
        let file = &request.files[index];
        let download = Download {
            client: &client,
            file,
            url: client.endpoints().url((host, repository), &revision, &file.path),
            target: request.out.join(&file.name),
            stop: &halt,
            report: &|event| report(index, event),
        };
        let fetched = download.run()?;
        lock(&record).add(&request.out, &fetched)?;
        report(index, FetchEvent::Done(&fetched));
        Ok(fetched)
    };
    let worker = || {
        while !halt.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= request.files.len() {
                break;
            }
            let result = one(index);
            if result.is_err() {
                halt.store(true, Ordering::Relaxed);
            }
            lock(&results)[index] = Some(result.map_err(std::sync::Arc::new));
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..request.parallel.clamp(1, request.files.len().max(1))).map(|_| scope.spawn(worker)).collect();
        while workers.iter().any(|worker| !worker.is_finished()) {
            if stop.load(Ordering::Relaxed) || halt.load(Ordering::Relaxed) {
                halt.store(true, Ordering::Relaxed);
                client.shutdown();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    in_order(results.into_inner().unwrap_or_default(), stop)
}

type FetchOutcome = Option<Result<Fetched, std::sync::Arc<FetchError>>>;

/// All files, or the first failure that was not itself caused by another one.
fn in_order(results: Vec<FetchOutcome>, stop: &AtomicBool) -> Result<Vec<Fetched>, FetchError> {
    let mut fetched = Vec::with_capacity(results.len());
    let mut interrupted = stop.load(Ordering::Relaxed);
    for result in results {
        match result {
            Some(Ok(file)) => fetched.push(file),
            Some(Err(error)) => match std::sync::Arc::into_inner(error) {
                Some(FetchError::Interrupted) | None => interrupted = true,
                Some(error) => return Err(error),
            },
            None => interrupted = true,
        }
    }
    if interrupted { Err(FetchError::Interrupted) } else { Ok(fetched) }
}

/// The present commit of a branch of the hub; none where the server does not give it.
fn commit_of(
    client: &Client,
    url: &str,
    stop: &AtomicBool,
    report: &dyn Fn(FetchEvent<'_>),
) -> Result<Option<String>, FetchError> {
    let mut attempts = Attempts::new(client.patience());
    loop {
        let error = match client.commit(url) {
            Ok(commit) => return Ok(commit),
            Err(error) => error,
        };
        attempts.after(error, stop, report)?;
    }
}

/// Counts failures and computes the pause after each.
struct Attempts<'a> {
    patience: &'a Patience,
    failures: u32,
    wait: Duration,
}

impl<'a> Attempts<'a> {
    fn new(patience: &'a Patience) -> Attempts<'a> {
        Attempts { patience, failures: 0, wait: patience.first_wait }
    }

    /// Resets the count: the last attempt made progress.
    fn progressed(&mut self) {
        *self = Attempts::new(self.patience);
    }

    /// Waits after a temporary failure.
    ///
    /// # Errors
    ///
    /// The failure, if it is permanent or the last attempt; an interruption.
    fn after(
        &mut self,
        error: FetchError,
        stop: &AtomicBool,
        report: &dyn Fn(FetchEvent<'_>),
    ) -> Result<(), FetchError> {
        if stop.load(Ordering::Relaxed) {
            return Err(FetchError::Interrupted);
        }
        self.failures += 1;
        if !error.is_transient() {
            return Err(error);
        }
        if self.failures == self.patience.attempts {
            return Err(FetchError::GaveUp { attempts: self.failures, last: Box::new(error) });
        }
        let asked = Duration::from_secs(error.retry_after_s().unwrap_or(0));
        let pause = self.wait.max(asked).min(self.patience.longest_wait);
        self.wait = self.wait.saturating_mul(2);
        report(FetchEvent::Retry { error: &error, wait_s: pause.as_secs() });
        let end = Instant::now() + pause;
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            if stop.load(Ordering::Relaxed) {
                return Err(FetchError::Interrupted);
            }
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
        Ok(())
    }
}

/// Carries out a request that ends when `stop` is set.
fn stoppable<T: Send>(client: &Client, stop: &AtomicBool, request: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let worker = scope.spawn(request);
        while !worker.is_finished() {
            if stop.load(Ordering::Relaxed) {
                client.shutdown();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A revision as a part of an address.
fn checked_revision(revision: &str) -> Result<String, FetchError> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if revision.is_empty() || revision.starts_with('.') || !revision.chars().all(good) {
        return Err(FetchError::Revision { got: revision.to_owned() });
    }
    Ok(revision.to_owned())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
