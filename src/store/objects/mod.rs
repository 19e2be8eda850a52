//! Objects by name below a place for copies: files of a folder, or what lies in a bucket.
//!
//! An object is there whole or not at all. A name has `/` between its parts.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use super::{Result, StoreError, atomic};
use crate::experiment::CopyPlace;
use crate::proof::Hash;
use crate::proof::hash::Hashed;

#[cfg(feature = "object-storage")]
mod bucket;

/// Bytes that are read or sent at a time, at least.
const CHUNK: u64 = 16 << 20;

/// The objects below a place.
pub struct Objects {
    place: CopyPlace,
    kind: Kind,
}

enum Kind {
    Folder(PathBuf),
    #[cfg(feature = "object-storage")]
    Bucket(bucket::Bucket),
}

/// Counts bytes that are copied.
pub type Count<'a> = &'a dyn Fn(u64);

impl Objects {
    /// Opens a place; asks nobody yet.
    ///
    /// # Errors
    /// The environment has no keys for a bucket, or this program knows none.
    pub fn open(place: &CopyPlace) -> Result<Objects> {
        let kind = match place {
            CopyPlace::Folder(folder) => Kind::Folder(folder.clone()),
            #[cfg(feature = "object-storage")]
            CopyPlace::Bucket(url) => {
                Kind::Bucket(bucket::Bucket::open(url).map_err(|why| object_error("open", url, why))?)
            }
            #[cfg(not(feature = "object-storage"))]
            CopyPlace::Bucket(url) => return Err(StoreError::NoBuckets { url: url.clone() }),
        };
        Ok(Objects { place: place.clone(), kind })
    }

    /// An object's address, for messages.
    pub fn address(&self, name: &str) -> String {
        format!("{}/{name}", self.place)
    }

    /// The names directly below `name`, in order; none where nothing is.
    pub fn names(&self, name: &str) -> Result<Vec<String>> {
        let mut names = match &self.kind {
            Kind::Folder(folder) => {
                let folder = folder.join(name);
                let entries = match fs::read_dir(&folder) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                    entries => entries.map_err(StoreError::io(&folder, "list"))?,
                };
                let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
                names.collect::<io::Result<Vec<_>>>().map_err(StoreError::io(&folder, "list"))?
            }
            #[cfg(feature = "object-storage")]
            Kind::Bucket(bucket) => bucket.names(name).map_err(|why| self.error("list", name, why))?,
        };
        names.sort();
        Ok(names)
    }

    /// Writes an object.
    pub fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        match &self.kind {
            Kind::Folder(folder) => atomic::write(&place_for(&folder.join(name))?, bytes),
            #[cfg(feature = "object-storage")]
            Kind::Bucket(bucket) => bucket.put(name, bytes).map_err(|why| self.error("write", name, why)),
        }
    }

    /// Writes an object of what a reader gives, about so many `bytes`.
    pub fn put_all(&self, name: &str, from: &mut impl Read, bytes: u64, count: Count<'_>) -> Result<()> {
        match &self.kind {
            Kind::Folder(folder) => {
                let path = place_for(&folder.join(name))?;
                atomic::write_with(&path, bytes, |into| copy(from, into, count))
            }
            #[cfg(feature = "object-storage")]
            Kind::Bucket(bucket) => {
                bucket.put_all(name, from, bytes, count).map_err(|why| self.error("write", name, why))
            }
        }
    }

    /// Reads an object of at most `most` bytes; none where it is not there.
    pub fn get(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        let found = self.get_into(name, most, &mut bytes, &|_| ())?;
        Ok(found.then_some(bytes))
    }

    /// Reads at most so many bytes of an object into a new file, which is then on the disk; their SHA-256, or
    /// none where the object is not there.
    pub fn get_file(&self, name: &str, path: &Path, most: u64, count: Count<'_>) -> Result<Option<Hash>> {
        let file = File::create(path).map_err(StoreError::write(path, 0))?;
        let mut into = BufWriter::with_capacity(1 << 20, Hashed::new(file));
        let found = self.get_into(name, most, &mut into, count)?;
        let into = into.into_inner().map_err(|error| StoreError::write(path, 0)(error.into_error()))?;
        let (file, sha256) = into.finish();
        file.sync_all().map_err(StoreError::write(path, 0))?;
        Ok(found.then_some(sha256))
    }

    fn get_into(&self, name: &str, most: u64, into: &mut dyn Write, count: Count<'_>) -> Result<bool> {
        match &self.kind {
            Kind::Folder(folder) => {
                let path = folder.join(name);
                let file = match crate::proof::regular::open(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                    file => file.map_err(StoreError::io(&path, "open"))?,
                };
                let copied = copy(&mut file.take(most), into, count);
                copied.map_err(StoreError::io(&path, "copy")).map(|()| true)
            }
            #[cfg(feature = "object-storage")]
            Kind::Bucket(bucket) => {
                bucket.get_into(name, most, into, count).map_err(|why| self.error("read", name, why))
            }
        }
    }

    /// Deletes an object that may be there.
    pub fn delete(&self, name: &str) -> Result<()> {
        match &self.kind {
            Kind::Folder(folder) => {
                let path = folder.join(name);
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        Err(StoreError::io(&path, "delete")(error))
                    }
                    _ => Ok(()),
                }
            }
            #[cfg(feature = "object-storage")]
            Kind::Bucket(bucket) => bucket.delete(name).map_err(|why| self.error("delete", name, why)),
        }
    }

    #[cfg(feature = "object-storage")]
    fn error(&self, doing: &'static str, name: &str, why: String) -> StoreError {
        object_error(doing, &self.address(name), why)
    }
}

#[cfg(feature = "object-storage")]
fn object_error(doing: &'static str, object: &str, why: String) -> StoreError {
    StoreError::Object { doing, object: object.to_owned(), why }
}

/// The path of a file, whose folder is there afterwards.
fn place_for(path: &Path) -> Result<PathBuf> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(StoreError::write(folder, 0))?;
    Ok(path.to_owned())
}

fn copy(from: &mut impl Read, into: &mut (impl Write + ?Sized), count: Count<'_>) -> io::Result<()> {
    loop {
        match io::copy(&mut from.by_ref().take(CHUNK), into)? {
            0 => return Ok(()),
            bytes => count(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_comes_back_with_the_hash_of_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let objects = Objects::open(&CopyPlace::Folder(folder.path().join("place"))).unwrap();
        let bytes: Vec<u8> = (0..3_000_000u32).map(|i| (i ^ i >> 8) as u8).collect();
        let mut from = &bytes[..];
        objects.put_all("run/state", &mut from, bytes.len() as u64, &|_| ()).unwrap();
        let path = folder.path().join("back");
        let get = |name: &str, most: u64| objects.get_file(name, &path, most, &|_| ()).unwrap();
        assert_eq!(get("run/state", u64::MAX), Some(Hash::of(&bytes)));
        assert!(fs::read(&path).unwrap() == bytes);
        assert_eq!(get("run/state", 1000), Some(Hash::of(&bytes[..1000])));
        assert_eq!(get("run/other", u64::MAX), None);
    }
}
