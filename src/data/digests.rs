//! SHA-256, largest token and passages of every shard, remembered between runs.
//!
//! Hashing ten billion tokens takes a quarter of a minute, too long for each start of a run, so the
//! digests of files are kept in the user's cache folder. The rules:
//!
//! * An entry counts while path, length, and the times of the last change of content and of anything
//!   (mtime and ctime, to the nanosecond) are what they were. `touch -r`, `cp -p` and `rsync -t` can set the
//!   first back; nothing but the clock of the system sets the second.
//! * A file modified within [`SETTLED`] of being hashed is not remembered: it might change again within
//!   the resolution of its time stamp.
//! * A cache that is damaged, or cannot be read or written, costs time and nothing else.
//! * Verification does not use it: `runner verify` hashes every byte again.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::dataset::{Dataset, ShardDigest, ShardInfo};
use super::error::DataError;
use super::passages::PassageSketch;
use super::shard::Scan;
use crate::proof::regular;

/// Age that a file must have for its digest to be remembered.
pub const SETTLED: Duration = Duration::from_secs(2);

/// Digests of files by path.
#[derive(Debug, Default)]
pub struct DigestCache {
    file: Option<PathBuf>,
    entries: BTreeMap<PathBuf, KnownDigest>,
}

/// What tells that a file was changed; times in nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stamp {
    bytes: u64,
    modified_ns: u128,
    changed_ns: u128,
}

/// A file as it was when it was hashed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KnownDigest {
    stamp: Stamp,
    sha256: String,
    /// Of shards alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    largest_token: Option<u16>,
    /// Of shards alone: the text of a [`PassageSketch`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    passages: Option<String>,
}

/// The stamp of a file, when it has settled.
pub fn settled(path: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(path).ok()?;
    let modified = metadata.modified().ok()?;
    let old_enough = SystemTime::now().duration_since(modified).is_ok_and(|age| age >= SETTLED);
    let since_1970 = modified.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let changed_ns = changed_ns(&metadata);
    old_enough.then_some(Stamp { bytes: metadata.len(), modified_ns: since_1970.as_nanos(), changed_ns })
}

#[cfg(unix)]
fn changed_ns(metadata: &Metadata) -> u128 {
    use std::os::unix::fs::MetadataExt;
    let of = |number: i64| u128::try_from(number).unwrap_or(0);
    of(metadata.ctime()) * 1_000_000_000 + of(metadata.ctime_nsec())
}

/// Windows tells no such time of a file.
#[cfg(not(unix))]
fn changed_ns(_: &Metadata) -> u128 {
    0
}

impl DigestCache {
    /// An empty cache that is never written: every byte is read.
    pub fn none() -> DigestCache {
        DigestCache::default()
    }

    /// The cache in `file`; empty if the file is missing or is not a cache.
    pub fn open(file: &Path) -> DigestCache {
        let entries =
            regular::read(file).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        DigestCache { file: Some(file.into()), entries }
    }

    /// The digest of `path`, and what else is known of it, if the file has not changed.
    fn get(&self, path: &Path) -> Option<([u8; 32], &KnownDigest)> {
        let known = self.entries.get(path)?;
        let stamp = settled(path)?;
        let mut sha256 = [0; 32];
        hex::decode_to_slice(&known.sha256, &mut sha256).ok()?;
        (known.stamp == stamp).then_some((sha256, known))
    }

    fn shard(&self, shard: &ShardInfo) -> Option<Scan> {
        let (sha256, known) = self.get(shard.path.as_ref()?)?;
        let passages = PassageSketch::parse(known.passages.as_ref()?)?;
        Some(Scan { sha256, largest: known.largest_token?, passages })
    }

    /// Bytes of a dataset's shards that no entry knows.
    pub fn unknown_bytes(&self, data: &Dataset) -> u64 {
        data.shards().filter(|shard| self.shard(shard).is_none()).map(|shard| shard.bytes).sum()
    }

    /// The manifest of `data`, several shards at a time. `hashed` is called for each shard that was read.
    ///
    /// # Errors
    ///
    /// A shard that cannot be read, and a token outside the vocabulary of `data`.
    pub fn manifest(
        &mut self,
        data: &Dataset,
        hashed: impl Fn(&ShardInfo) + Sync,
    ) -> Result<Vec<ShardDigest>, DataError> {
        let fresh = Mutex::new(Vec::new());
        let infos: Vec<ShardInfo> = data.shards().collect();
        let scan = |(at, info): (usize, &ShardInfo)| {
            if let Some(known) = self.shard(info) {
                return Ok(known);
            }
            // Before reading, so that a change during the reading is noticed later.
            let before = info.path.as_ref().and_then(|path| Some((path.clone(), settled(path)?)));
            let scan = data.scan(at)?;
            if let (Some(entry), Ok(mut fresh)) = (before, fresh.lock()) {
                fresh.push((entry, scan.clone()));
            }
            hashed(info);
            Ok(scan)
        };
        let scans: Result<Vec<Scan>, DataError> = infos.par_iter().enumerate().map(scan).collect();
        for ((path, stamp), Scan { sha256, largest, passages }) in fresh.into_inner().unwrap_or_default() {
            let (sha256, largest_token) = (hex::encode(sha256), Some(largest));
            let passages = Some(passages.to_text());
            self.entries.insert(path, KnownDigest { stamp, sha256, largest_token, passages });
        }
        let digest = |(at, (info, scan)): (usize, (&ShardInfo, Scan))| {
            let Scan { sha256, largest: largest_token, passages } = scan;
            data.require_vocab(at, largest_token)?;
            Ok(ShardDigest { name: info.name.clone(), tokens: info.tokens, sha256, largest_token, passages })
        };
        infos.iter().zip(scans?).enumerate().map(digest).collect()
    }

    /// SHA-256 of one file, read unless it is known.
    pub fn file(&mut self, path: &Path) -> io::Result<[u8; 32]> {
        if let Some((known, _)) = self.get(path) {
            return Ok(known);
        }
        let before = settled(path);
        let sha256 = regular::sha256(path)?.0;
        if let Some(stamp) = before {
            let sha256 = hex::encode(sha256);
            self.entries
                .insert(path.into(), KnownDigest { stamp, sha256, largest_token: None, passages: None });
        }
        Ok(sha256)
    }

    /// Writes the cache back, if possible: what it knows of paths that are UTF-8, as JSON is.
    pub fn save(&self) {
        let Some(file) = &self.file else { return };
        let entries: BTreeMap<&str, &KnownDigest> =
            self.entries.iter().filter_map(|(path, known)| Some((path.to_str()?, known))).collect();
        let text = serde_json::to_vec_pretty(&entries).unwrap_or_default();
        let Some(folder) = file.parent() else { return };
        // Another process may save at the same time: each rename gives a whole file.
        let written = std::fs::create_dir_all(folder).and_then(|()| {
            let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
            std::io::Write::write_all(&mut temporary, &text)?;
            Ok(temporary.persist(file)?)
        });
        // A cache that cannot be written costs time and nothing else.
        drop(written);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::shard::header;
    use super::super::tokenizer::Tokenizer;
    use super::*;
    use crate::proof::Hash;

    fn shard(path: &Path, tokens: &[u16], age: Duration) {
        let mut bytes = header(tokens.len() as u64).to_vec();
        bytes.extend(tokens.iter().flat_map(|t| t.to_le_bytes()));
        std::fs::write(path, bytes).unwrap();
        std::fs::File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_modified(SystemTime::now() - age)
            .unwrap();
    }

    fn manifest(cache: &Path, data: &Path) -> (Vec<ShardDigest>, usize) {
        let data = Dataset::open(&[data.display().to_string()], 100, &Tokenizer::Byte).unwrap();
        let read = AtomicUsize::new(0);
        let mut cache = DigestCache::open(cache);
        let hashed = |_: &ShardInfo| {
            read.fetch_add(1, Ordering::Relaxed);
        };
        let manifest = cache.manifest(&data, hashed).unwrap();
        cache.save();
        assert_eq!(manifest, DigestCache::none().manifest(&data, |_| ()).unwrap());
        (manifest, read.into_inner())
    }

    #[test]
    fn a_settled_file_is_read_once_and_again_when_it_changed() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, file) = (dir.path().join("cache/shards.json"), dir.path().join("t.bin"));
        let hour = Duration::from_secs(3600);
        shard(&file, &[1, 2, 3], hour);
        let (first, read) = manifest(&cache, &file);
        assert_eq!(read, 1);
        assert_eq!(manifest(&cache, &file), (first.clone(), 0));
        shard(&file, &[1, 2, 4], 2 * hour);
        let (second, read) = manifest(&cache, &file);
        assert_eq!(read, 1, "same length, another time");
        assert_ne!(first, second);
    }

    #[test]
    fn a_file_that_was_changed_and_given_its_old_time_back_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, file) = (dir.path().join("shards.json"), dir.path().join("t.bin"));
        shard(&file, &[1, 2, 3], Duration::from_secs(3600));
        let before = std::fs::metadata(&file).unwrap();
        let (first, _) = manifest(&cache, &file);
        // The system's clock of files may stand still for some milliseconds.
        while changed_ns(&std::fs::metadata(&file).unwrap()) == changed_ns(&before) {
            shard(&file, &[1, 2, 4], Duration::ZERO);
            let open = File::options().write(true).open(&file).unwrap();
            open.set_modified(before.modified().unwrap()).unwrap();
        }
        let after = std::fs::metadata(&file).unwrap();
        assert_eq!((after.len(), after.modified().unwrap()), (before.len(), before.modified().unwrap()));
        let (second, read) = manifest(&cache, &file);
        assert_eq!(read, 1);
        assert_ne!(first, second);
    }

    #[test]
    fn a_file_that_may_still_change_is_not_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, file) = (dir.path().join("shards.json"), dir.path().join("t.bin"));
        shard(&file, &[1, 2, 3], Duration::ZERO);
        assert_eq!(manifest(&cache, &file).1, 1);
        assert_eq!(manifest(&cache, &file).1, 1);
    }

    #[test]
    fn a_single_file_is_read_once_and_again_when_it_changed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t.bin");
        let hour = Duration::from_secs(3600);
        shard(&file, &[1, 2, 3], hour);
        let mut cache = DigestCache::open(&dir.path().join("files.json"));
        let first = cache.file(&file).unwrap();
        assert_eq!(first, Hash::of(&std::fs::read(&file).unwrap()).0);
        let old = cache.entries[&file].clone();
        cache.entries.insert(file.clone(), KnownDigest { sha256: hex::encode([7; 32]), ..old });
        assert_eq!(cache.file(&file).unwrap(), [7; 32], "what is known is not read");
        shard(&file, &[1, 2, 4], 2 * hour);
        assert_ne!(cache.file(&file).unwrap(), first);
    }

    #[test]
    fn a_token_outside_the_vocabulary_is_found_by_hashing_and_again_from_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, file) = (dir.path().join("shards.json"), dir.path().join("t.bin"));
        shard(&file, &[1, 99, 100, 3], Duration::from_secs(3600));
        let data = Dataset::open(&[file.display().to_string()], 100, &Tokenizer::Byte).unwrap();
        for read in [1, 0] {
            let mut cache_now = DigestCache::open(&cache);
            assert_eq!(cache_now.unknown_bytes(&data), 1032 * read);
            let error = cache_now.manifest(&data, |_| ()).unwrap_err().to_string();
            assert!(error.contains("t.bin` holds token 100 at position 2 (byte 1028)"), "{error}");
            cache_now.save();
        }
    }

    #[test]
    fn the_manifest_is_in_order_and_tells_contents_apart() {
        let dir = tempfile::tempdir().unwrap();
        shard(&dir.path().join("t_1.bin"), &[1, 2], Duration::ZERO);
        shard(&dir.path().join("t_2.bin"), &[1, 3], Duration::ZERO);
        let data =
            Dataset::open(&[dir.path().join("*.bin").display().to_string()], 10, &Tokenizer::Byte).unwrap();
        let manifest = DigestCache::none().manifest(&data, |_| ()).unwrap();
        assert_eq!(manifest.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(), ["t_1.bin", "t_2.bin"]);
        assert_ne!(manifest[0].sha256, manifest[1].sha256);
        let file = std::fs::read(dir.path().join("t_1.bin")).unwrap();
        assert_eq!(manifest[0].sha256, Hash::of(&file).0);
        assert_eq!((manifest[0].largest_token, manifest[1].largest_token), (2, 3));
    }

    #[test]
    fn a_damaged_cache_is_no_cache() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, file) = (dir.path().join("shards.json"), dir.path().join("t.bin"));
        shard(&file, &[1, 2, 3], Duration::from_secs(3600));
        manifest(&cache, &file);
        std::fs::write(&cache, "{").unwrap();
        assert_eq!(manifest(&cache, &file).1, 1);
    }
}
