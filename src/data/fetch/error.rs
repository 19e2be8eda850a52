//! Errors between a server and a file, and whether a second attempt may succeed.

use std::io;
use std::path::{Path, PathBuf};

use super::super::error::DataError;
use crate::store::error::is_full;
use crate::units::noun;

/// Why a file could not be fetched. Every message names the address or the file.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    // ---- the request ----
    /// An endpoint that is no address.
    #[error("`{variable}` is `{value}`: expected an address like `https://huggingface.co`")]
    Endpoint { variable: &'static str, value: String },
    /// More files than the data set has, or none.
    #[error("`--shards` is {got}: `{data_set}` has 1 to {most}")]
    Shards { data_set: &'static str, got: usize, most: usize },
    /// A revision that could not be part of an address.
    #[error("`--revision` is `{got}`: expected a commit, branch or tag")]
    Revision { got: String },

    // ---- the connection ----
    /// No connection, or one that broke before an answer.
    #[error("cannot reach `{url}`: {reason}\n  hint: {hint}")]
    Connection { url: String, reason: String, hint: &'static str },
    /// The connection ended early.
    #[error("the connection to `{url}` was cut after {got_bytes} of {expected_bytes} bytes: {reason}")]
    Cut { url: String, got_bytes: u64, expected_bytes: u64, reason: String },
    /// Nothing, or next to nothing, was received for a while.
    #[error(
        "`{url}` stalled: {received} bytes in {seconds} s, at byte {got_bytes}\n  hint: what came is kept; \
         the same command goes on there"
    )]
    Stalled { url: String, seconds: u64, received: u64, got_bytes: u64 },
    /// All attempts failed.
    #[error(
        "gave up after {attempts} {}; the last: {last}\n  hint: what came is kept; the same command \
         goes on there",
        noun(*attempts, "attempt")
    )]
    GaveUp { attempts: u32, last: Box<FetchError> },

    // ---- the answer ----
    /// A status without a file.
    #[error("`{url}` answered {status} {meaning}\n  hint: {hint}")]
    Status {
        url: String,
        status: u16,
        meaning: &'static str,
        hint: &'static str,
        /// Seconds to wait, where the server says so.
        retry_after_s: Option<u64>,
    },
    /// A web page.
    #[error(
        "`{url}` gave a web page where a file was expected: it starts with `{start}`\n  hint: a login page, \
         a proxy or a wrong endpoint; look at it in a browser"
    )]
    WebPage { url: String, start: String },
    /// A redirect that must not or cannot be followed.
    #[error("`{url}` redirects to `{to}`: {why}")]
    Redirect { url: String, to: String, why: &'static str },
    /// A length other than the published one.
    #[error(
        "`{url}` has {got_bytes} bytes, expected {expected_bytes}, {whence}\n  hint: a proxy or mirror \
         gives another file; try another `HF_ENDPOINT` or revision"
    )]
    WrongLength { url: String, got_bytes: u64, expected_bytes: u64, whence: &'static str },
    /// Neither length nor digest: a cut could not be noticed.
    #[error(
        "`{url}` does not say how long the file is, and no digest of it is published: a cut could not be \
         noticed"
    )]
    NoLength { url: String },
    /// A part of the file that was not asked for.
    #[error("`{url}` was asked for the bytes from {asked} on and gave `{got}`")]
    WrongRange { url: String, asked: u64, got: String },
    /// Compressed though plain bytes were asked for.
    #[error("`{url}` sends the file with the encoding `{encoding}`, though plain bytes were asked for")]
    Encoding { url: String, encoding: String },

    // ---- the content ----
    /// The bytes are not the published ones.
    #[error(
        "`{url}` has the SHA-256 {got}, expected {expected}, {whence}\n  hint: nothing was kept; fetch \
         again, or find out who changed the file"
    )]
    Digest { url: String, expected: String, got: String, whence: &'static str, resumed: bool },
    /// The bytes are not a file of the format.
    #[error("`{url}` is not what it should be; nothing was kept: {reason}")]
    Content { url: String, reason: Box<DataError> },

    // ---- the disk ----
    /// No room.
    #[error(
        "no space left to write `{path}`, which needs {need_bytes} more bytes\n  hint: free some space; the \
         same command goes on where it stopped"
    )]
    DiskFull { path: PathBuf, need_bytes: u64 },
    /// An error of the operating system.
    #[error("cannot {action} `{path}`: {reason}")]
    Io { action: &'static str, path: PathBuf, reason: io::Error },
    /// Two downloads of one file.
    #[error("`{path}` is being downloaded by another process\n  hint: wait for it, or stop it")]
    Busy { path: PathBuf },
    /// A file is there and is not a good one.
    #[error("`{path}` is there already, but damaged: {reason}\n  hint: delete it and fetch again")]
    Existing { path: PathBuf, reason: String },

    /// Interrupted by the user.
    #[error("interrupted; what came is kept, and the same command goes on there")]
    Interrupted,
}

impl FetchError {
    /// Whether the same request may succeed a moment later.
    pub fn is_transient(&self) -> bool {
        match self {
            FetchError::Connection { .. }
            | FetchError::Cut { .. }
            | FetchError::Stalled { .. }
            | FetchError::WrongRange { .. } => true,
            // A digest that is wrong after a resume may come from the old part; from the start it will not
            // change.
            FetchError::Digest { resumed, .. } => *resumed,
            FetchError::Status { status, .. } => {
                matches!(status, 408 | 416 | 425 | 429 | 500 | 502 | 503 | 504)
            }
            _ => false,
        }
    }

    /// Whether the request itself is wrong.
    pub fn is_usage(&self) -> bool {
        matches!(self, FetchError::Endpoint { .. } | FetchError::Shards { .. } | FetchError::Revision { .. })
    }

    /// Seconds that the server asked to wait.
    pub(super) fn retry_after_s(&self) -> Option<u64> {
        match self {
            FetchError::Status { retry_after_s, .. } => *retry_after_s,
            _ => None,
        }
    }

    /// An error of the operating system; a full disk is an error of its own.
    pub(super) fn io(
        action: &'static str,
        path: &Path,
        need_bytes: u64,
    ) -> impl FnOnce(io::Error) -> FetchError {
        move |reason| match reason.kind() {
            kind if is_full(kind) => FetchError::DiskFull { path: path.to_owned(), need_bytes },
            _ => FetchError::Io { action, path: path.to_owned(), reason },
        }
    }

    /// A status other than success.
    pub(super) fn status(url: &str, status: u16, retry_after_s: Option<u64>) -> FetchError {
        let (meaning, hint) = match status {
            401 | 403 => (
                "not allowed",
                "the data set may be private or gated: set `HF_TOKEN`, or accept its terms on its page",
            ),
            404 => (
                "not found",
                "the file, data set or revision does not exist there; check `--revision` and `HF_ENDPOINT`",
            ),
            410 => ("gone", "the file was removed from the server"),
            416 => (
                "range not satisfiable",
                "the file on the server is shorter than the bytes received before; it will be fetched from \
                 the start",
            ),
            429 => ("too many requests", "wait a while, lower `--parallel`, or set `HF_TOKEN`"),
            500..=599 => ("the server failed", "wait a while and run the same command again"),
            _ => ("unexpected", "look at the address in a browser"),
        };
        FetchError::Status { url: url.to_owned(), status, meaning, hint, retry_after_s }
    }
}
