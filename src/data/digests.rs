//! SHA-256 of every shard, remembered between runs.
//!
//! Hashing ten billion tokens takes a quarter of a minute, too long for each start of a run, so the
//! digests of files are kept in the user's cache folder. The rules:
//!
//! * An entry counts while path, length and modification time (to the nanosecond) are what they were.
//! * A file modified within [`SETTLED`] of being hashed is not remembered: it might change again within
//!   the resolution of its time stamp.
//! * A cache that is damaged, locked away or cannot be written costs time, not more.
//! * Proof never trusts it: `runner verify` hashes every byte again.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::dataset::{Dataset, ShardDigest, ShardInfo};

/// Age that a file must have for its digest to be remembered.
pub const SETTLED: Duration = Duration::from_secs(2);

/// Digests of files by path.
#[derive(Debug, Default)]
pub struct DigestCache {
    file: Option<PathBuf>,
    entries: BTreeMap<PathBuf, Known>,
}

/// A file as it was when it was hashed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    bytes: u64,
    /// Nanoseconds since 1970.
    modified_ns: u128,
    sha256: String,
}

/// SHA-256 of a file, a megabyte in memory at a time.
pub fn file_sha256(path: &Path) -> io::Result<[u8; 32]> {
    let (mut file, mut hasher, mut buffer) = (File::open(path)?, Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().into()),
            read => hasher.update(&buffer[..read]),
        }
    }
}

/// Length and modification time of a file, when it has settled.
fn settled(path: &Path) -> Option<(u64, u128)> {
    let metadata = std::fs::metadata(path).ok()?;
    let modified = metadata.modified().ok()?;
    let old_enough = SystemTime::now().duration_since(modified).is_ok_and(|age| age >= SETTLED);
    let since_1970 = modified.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    old_enough.then_some((metadata.len(), since_1970.as_nanos()))
}

impl DigestCache {
    /// Knows nothing and remembers nothing: every byte is read.
    pub fn none() -> DigestCache {
        DigestCache::default()
    }

    /// What `file` remembers; nothing when it is not there or is not a cache.
    pub fn open(file: &Path) -> DigestCache {
        let entries =
            std::fs::read(file).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        DigestCache { file: Some(file.into()), entries }
    }

    fn get(&self, path: &Path) -> Option<[u8; 32]> {
        let known = self.entries.get(path)?;
        let (bytes, modified_ns) = settled(path)?;
        let mut sha256 = [0; 32];
        hex::decode_to_slice(&known.sha256, &mut sha256).ok()?;
        ((known.bytes, known.modified_ns) == (bytes, modified_ns)).then_some(sha256)
    }

    /// Bytes of a dataset's shards that no entry knows.
    pub fn unknown_bytes(&self, data: &Dataset) -> u64 {
        data.shards()
            .filter(|shard| shard.path.as_ref().is_none_or(|path| self.get(path).is_none()))
            .map(|s| s.bytes)
            .sum()
    }

    /// The manifest of `data`, several shards at a time. `hashed` is told of each shard that was read.
    pub fn manifest(&mut self, data: &Dataset, hashed: impl Fn(&ShardInfo) + Sync) -> Vec<ShardDigest> {
        let fresh = Mutex::new(Vec::new());
        let infos: Vec<ShardInfo> = data.shards().collect();
        let digest = |(at, info): (usize, &ShardInfo)| {
            let known = info.path.as_ref().and_then(|path| self.get(path));
            let sha256 = known.unwrap_or_else(|| {
                // Before reading: a change while it is read must not pass for what was read.
                let before = info.path.as_ref().and_then(|path| Some((path.clone(), settled(path)?)));
                let sha256 = data.shard_sha256(at);
                if let (Some(entry), Ok(mut fresh)) = (before, fresh.lock()) {
                    fresh.push((entry, sha256));
                }
                hashed(info);
                sha256
            });
            ShardDigest { name: info.name.clone(), tokens: info.tokens, sha256 }
        };
        let manifest = infos.par_iter().enumerate().map(digest).collect();
        for ((path, (bytes, modified_ns)), sha256) in fresh.into_inner().unwrap_or_default() {
            self.entries.insert(path, Known { bytes, modified_ns, sha256: hex::encode(sha256) });
        }
        manifest
    }

    /// SHA-256 of one file, read unless it is known.
    pub fn file(&mut self, path: &Path) -> io::Result<[u8; 32]> {
        if let Some(known) = self.get(path) {
            return Ok(known);
        }
        let before = settled(path);
        let sha256 = file_sha256(path)?;
        if let Some((bytes, modified_ns)) = before {
            self.entries.insert(path.into(), Known { bytes, modified_ns, sha256: hex::encode(sha256) });
        }
        Ok(sha256)
    }

    /// Writes the cache back, if it can.
    pub fn save(&self) {
        let Some(file) = &self.file else { return };
        let text = serde_json::to_vec_pretty(&self.entries).unwrap_or_default();
        let Some(folder) = file.parent() else { return };
        // Another process may save at the same time: each rename gives a whole file.
        let written = std::fs::create_dir_all(folder).and_then(|()| {
            let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
            std::io::Write::write_all(&mut temporary, &text)?;
            Ok(temporary.persist(file)?)
        });
        // A cache that cannot be written costs time, not more.
        drop(written);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::shard::header;
    use super::*;

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
        let data = Dataset::open(&[data.display().to_string()], 100).unwrap();
        let read = AtomicUsize::new(0);
        let mut cache = DigestCache::open(cache);
        let manifest = cache.manifest(&data, |_| {
            read.fetch_add(1, Ordering::Relaxed);
        });
        cache.save();
        assert_eq!(manifest, data.manifest());
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
        assert_eq!(first, <[u8; 32]>::from(Sha256::digest(std::fs::read(&file).unwrap())));
        let old = cache.entries[&file].clone();
        cache.entries.insert(file.clone(), Known { sha256: hex::encode([7; 32]), ..old });
        assert_eq!(cache.file(&file).unwrap(), [7; 32], "what is known is not read");
        shard(&file, &[1, 2, 4], 2 * hour);
        assert_ne!(cache.file(&file).unwrap(), first);
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
