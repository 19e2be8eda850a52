//! The data sets that are known by name: which repository, which files, pinned to what.
//!
//! Digests are pinned here only for files on other servers: for its own files the Hugging Face hub publishes
//! the SHA-256.

use super::check::FileKind;
use super::error::FetchError;

/// Tokens a shard of the pre-tokenised set holds.
const SHARD_TOKENS: u64 = 100_000_000;

/// A data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataSet {
    /// FineWeb-Edu as GPT-2 tokens, 100 M a shard.
    FineWebEdu100B,
    /// The sample of 10 B tokens of FineWeb-Edu as text in parquet.
    FineWebEdu,
    /// HellaSwag's validation tasks.
    HellaSwag,
    /// Plays by Shakespeare, 1.1 MB.
    TinyShakespeare,
}

/// The server that a repository is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// Data sets of the Hugging Face hub.
    HuggingFace,
    /// Files of repositories on GitHub.
    GitHub,
}

/// A file to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Path inside the repository.
    pub path: String,
    /// Path under the folder of the data.
    pub name: String,
    pub format: FileKind,
    /// SHA-256 in hex, where it is pinned here.
    pub sha256: Option<&'static str>,
}

impl DataSet {
    pub const ALL: [DataSet; 4] =
        [DataSet::FineWebEdu100B, DataSet::FineWebEdu, DataSet::HellaSwag, DataSet::TinyShakespeare];

    /// The name on the command line and in the record.
    pub fn name(self) -> &'static str {
        match self {
            DataSet::FineWebEdu100B => "fineweb-edu-100b",
            DataSet::FineWebEdu => "fineweb-edu",
            DataSet::HellaSwag => "hellaswag",
            DataSet::TinyShakespeare => "tinyshakespeare",
        }
    }

    /// Host and repository.
    pub fn repository(self) -> (Host, &'static str) {
        match self {
            DataSet::FineWebEdu100B => (Host::HuggingFace, "karpathy/fineweb-edu-100B-gpt2-token-shards"),
            DataSet::FineWebEdu => (Host::HuggingFace, "HuggingFaceFW/fineweb-edu"),
            DataSet::HellaSwag => (Host::GitHub, "rowanz/hellaswag"),
            DataSet::TinyShakespeare => (Host::GitHub, "karpathy/char-rnn"),
        }
    }

    /// The default revision. A branch of the hub is pinned to its commit at the first answer.
    pub fn default_revision(self) -> &'static str {
        match self {
            DataSet::FineWebEdu100B | DataSet::FineWebEdu => "main",
            DataSet::HellaSwag => "a29ff8e9a04bba4bd6588223785ce105328adc57",
            DataSet::TinyShakespeare => "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e",
        }
    }

    /// Numbered files there are, and how many are fetched by default; none for a single file.
    ///
    /// 100 shards are the 10 B tokens that `experiments/gpt2_124m.toml` trains on; all 1000 are 200 GB.
    pub fn shards(self) -> Option<(usize, usize)> {
        match self {
            DataSet::FineWebEdu100B => Some((1000, 100)),
            DataSet::FineWebEdu => Some((14, 14)),
            DataSet::HellaSwag | DataSet::TinyShakespeare => None,
        }
    }

    /// The files, the first `shards` numbered ones where the set has such.
    ///
    /// # Errors
    ///
    /// More than there are, or none.
    pub fn files(self, shards: Option<usize>) -> Result<Vec<RemoteFile>, FetchError> {
        let most = self.shards().map_or(1, |(most, _)| most);
        let count = shards.unwrap_or(self.shards().map_or(1, |(_, default)| default));
        if !(1..=most).contains(&count) {
            return Err(FetchError::Shards { data_set: self.name(), got: count, most });
        }
        let same_name = |path: String, format| RemoteFile { name: path.clone(), path, format, sha256: None };
        let single = |path: &str, name: &str, format, sha256| {
            vec![RemoteFile { path: path.to_owned(), name: name.to_owned(), format, sha256: Some(sha256) }]
        };
        Ok(match self {
            DataSet::FineWebEdu100B => std::iter::once("edu_fineweb_val_000000.bin".to_owned())
                .chain((1..=count).map(|i| format!("edu_fineweb_train_{i:06}.bin")))
                .map(|path| same_name(path, FileKind::Shard))
                .collect(),
            DataSet::FineWebEdu => (0..count)
                .map(|i| RemoteFile {
                    path: format!("sample/10BT/{i:03}_00000.parquet"),
                    name: format!("fineweb-edu/{i:03}_00000.parquet"),
                    format: FileKind::Parquet,
                    sha256: None,
                })
                .collect(),
            DataSet::HellaSwag => single(
                "data/hellaswag_val.jsonl",
                "hellaswag_val.jsonl",
                FileKind::Jsonl,
                "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588",
            ),
            DataSet::TinyShakespeare => single(
                "data/tinyshakespeare/input.txt",
                "tinyshakespeare.txt",
                FileKind::Text,
                "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            ),
        })
    }

    /// Training tokens in `shards` shards of the pre-tokenised set.
    pub fn tokens(shards: usize) -> u64 {
        shards as u64 * SHARD_TOKENS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shards_are_those_that_the_experiments_name() {
        let files = DataSet::FineWebEdu100B.files(Some(2)).unwrap();
        let names: Vec<_> = files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(
            names,
            ["edu_fineweb_val_000000.bin", "edu_fineweb_train_000001.bin", "edu_fineweb_train_000002.bin"]
        );
        assert_eq!(DataSet::FineWebEdu100B.files(None).unwrap().len(), 101);
        assert_eq!(DataSet::FineWebEdu.files(None).unwrap()[13].path, "sample/10BT/013_00000.parquet");
    }

    #[test]
    fn a_number_of_shards_that_does_not_exist_is_refused() {
        for (set, shards) in
            [(DataSet::FineWebEdu100B, 0), (DataSet::FineWebEdu100B, 1001), (DataSet::HellaSwag, 2)]
        {
            let error = set.files(Some(shards)).unwrap_err().to_string();
            assert!(error.contains("`--shards` is") && error.contains(set.name()), "{error}");
        }
    }

    #[test]
    fn what_is_pinned_is_written_as_digests_and_commits_are() {
        let hex = |text: &str, digits| text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit());
        for set in [DataSet::HellaSwag, DataSet::TinyShakespeare] {
            assert!(hex(set.default_revision(), 40));
            assert!(set.files(None).unwrap().iter().all(|file| hex(file.sha256.unwrap(), 64)));
        }
    }
}
