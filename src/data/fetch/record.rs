//! The record of what was fetched from where: `NAME.fetched.json` beside the data.
//!
//! It pins a data set: a branch of the hub is turned into its commit at the first fetch, and later fetches
//! of more files ask for that commit, so that one folder never holds files of two versions.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::download::Fetched;
use super::error::FetchError;
use crate::store::atomic;

/// The record of a data set in a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchRecord {
    pub data_set: String,
    pub repository: String,
    /// A commit, or a branch where the server does not give its commit.
    pub revision: String,
    /// By name in the folder.
    pub files: BTreeMap<String, RecordedFile>,
}

/// A file of the record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedFile {
    pub bytes: u64,
    pub sha256: String,
    /// Whether the digest was compared with one that the server or this program publishes.
    pub verified: bool,
}

impl FetchRecord {
    pub fn new(data_set: &str, repository: &str, revision: &str) -> FetchRecord {
        let (data_set, repository, revision) =
            (data_set.to_owned(), repository.to_owned(), revision.to_owned());
        FetchRecord { data_set, repository, revision, files: BTreeMap::new() }
    }

    /// Where the record of a data set is.
    pub fn path(out: &Path, data_set: &str) -> PathBuf {
        out.join(format!("{data_set}.fetched.json"))
    }

    /// The record in a folder; none if there is none, or none that can be read.
    pub fn read(out: &Path, data_set: &str) -> Option<FetchRecord> {
        let text = std::fs::read(FetchRecord::path(out, data_set)).ok()?;
        serde_json::from_slice::<FetchRecord>(&text).ok().filter(|record| record.data_set == data_set)
    }

    /// Notes a file and writes the record. A file that was there before, of unknown digest, is not noted.
    pub fn add(&mut self, out: &Path, fetched: &Fetched) -> Result<(), FetchError> {
        let Some(sha256) = fetched.sha256.clone() else { return Ok(()) };
        let file = RecordedFile { bytes: fetched.bytes, sha256, verified: fetched.verified };
        if self.files.insert(fetched.name.clone(), file.clone()) == Some(file) {
            return Ok(());
        }
        let path = FetchRecord::path(out, &self.data_set);
        let mut text = serde_json::to_vec_pretty(self).expect("strings and numbers become JSON");
        text.push(b'\n');
        let need = text.len() as u64;
        atomic::write(&path, &text)
            .map_err(|e| FetchError::io("write", &path, need)(std::io::Error::other(e)))
    }
}
