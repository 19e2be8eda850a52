//! The file of an audited step: parts of what flowed in one micro-batch, and of the state before and after
//! the step, each with the hashes that tie it to the ledger. `docs/audit.md` has the format.
//!
//! Reading checks that the file is one, whole, and says which byte is wrong; whether it is true is for
//! `runner verify --audit`. The file needs no hash of its own: the ledger has the roots.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::{Result, RunPaths, StoreError, atomic, checkpoint};
use crate::proof::{Hash, Opening, regular};

/// The first bytes of a file.
const MAGIC: &[u8] = b"runner/audit/v4\n";
/// Those of files whose traces were of other operations: classifiers had no `lse`; a layer's weights came
/// before its input, and nothing was computed again beside a gradient; classifiers had an `lse` in place of
/// denominators, and attention behind a norm of heads read its values beside them.
const MAGICS_BEFORE: [&[u8]; 3] = [b"runner/audit/v1\n", b"runner/audit/v2\n", b"runner/audit/v3\n"];

/// What is kept of an audited step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditFile {
    /// Steps done before it.
    pub step: u64,
    /// `memory.recompute` of the run then: it decides which operations the micro-batch had.
    pub recompute: u8,
    /// `proof.audit_pieces` of the run then: how many excerpts were drawn.
    pub pieces: u64,
    /// Token ids of the micro-batch, and those that follow them.
    pub inputs: Vec<u16>,
    pub targets: Vec<u16>,
    /// Digests of the two numbers before, of the token ids and of every matrix; their root is in the ledger.
    pub trace: Vec<Hash>,
    /// Digests of the tensors of the state before and after the step, by rising names.
    pub states: [Vec<Hash>; 2],
    /// Tiles of matrices by number.
    pub matrices: BTreeMap<usize, Opening>,
    /// Leaves of tensors of the state, by their place in `states`.
    pub tensors: [BTreeMap<usize, Opening>; 2],
    /// Gradients of the blocks of parameters in f32, where no matrix of the micro-batch holds them.
    pub gradients: Vec<Vec<u8>>,
}

/// The file of an audited step.
pub fn path(run: &RunPaths, step: u64) -> PathBuf {
    run.audits().join(format!("{}.bin", checkpoint::folder_name(step)))
}

/// The step of a file with this name.
pub(super) fn step_of(name: &str) -> Option<u64> {
    checkpoint::step_of(name.strip_suffix(".bin")?)
}

/// The steps that a folder has files of, rising.
pub fn steps_in(folder: &Path) -> Vec<u64> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut steps: Vec<u64> =
        entries.filter_map(|entry| entry.file_name().to_str().and_then(step_of)).collect();
    steps.sort_unstable();
    steps
}

/// Deletes the files of `step` and later ones: a run that goes back makes them anew.
pub(super) fn drop_from(folder: &Path, step: u64) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(()) };
    for entry in entries {
        let entry = entry.map_err(StoreError::io(folder, "list"))?;
        if entry.file_name().to_str().and_then(step_of).is_some_and(|found| found >= step) {
            std::fs::remove_file(entry.path()).map_err(StoreError::io(&entry.path(), "delete"))?;
        }
    }
    Ok(())
}

/// The format of a file that an earlier version wrote, and this one does not read.
pub fn earlier_format(path: &Path) -> Option<&'static str> {
    let mut start = [0; MAGIC.len()];
    std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut start)).ok()?;
    earlier(&start)
}

fn earlier(bytes: &[u8]) -> Option<&'static str> {
    let magic = MAGICS_BEFORE.into_iter().find(|magic| bytes.starts_with(magic))?;
    std::str::from_utf8(magic).ok().map(str::trim)
}

/// Whether a file begins as the audit of `step` does. The rest is for [`AuditFile::read`].
pub fn begins_as(path: &Path, step: u64) -> bool {
    let mut start = [0; MAGIC.len() + 8];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut start));
    let is_one = MAGICS_BEFORE.into_iter().chain([MAGIC]).any(|magic| start.starts_with(magic));
    read.is_ok() && is_one && start.ends_with(&step.to_le_bytes())
}

impl AuditFile {
    /// Writes the file whole, or leaves what was there.
    pub fn write(&self, path: &Path) -> Result<()> {
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(StoreError::io(folder, "create"))?;
        atomic::write(path, &self.to_bytes())
    }

    /// Reads a file.
    ///
    /// # Errors
    /// It is missing, or not such a file to the last byte.
    pub fn read(path: &Path) -> Result<AuditFile> {
        let bytes = regular::read(path).map_err(StoreError::io(path, "read"))?;
        if let Some(format) = earlier(&bytes) {
            return Err(StoreError::EarlierAudit { path: path.into(), format });
        }
        let mut cursor = Cursor { bytes: &bytes, at: 0 };
        cursor.file().map_err(|why| StoreError::BadAudit { path: path.into(), byte: cursor.at, why })
    }

    /// All integers are little-endian u64; lists begin with their length.
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        put(&mut out, self.step);
        put(&mut out, self.recompute.into());
        put(&mut out, self.pieces);
        for tokens in [&self.inputs, &self.targets] {
            put(&mut out, tokens.len() as u64);
            out.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
        }
        put_hashes(&mut out, &self.trace);
        self.states.iter().for_each(|digests| put_hashes(&mut out, digests));
        for openings in [&self.matrices, &self.tensors[0], &self.tensors[1]] {
            put(&mut out, openings.len() as u64);
            for (number, Opening { units, path }) in openings {
                put(&mut out, *number as u64);
                put(&mut out, units.len() as u64);
                for (unit, bytes) in units {
                    put(&mut out, *unit as u64);
                    put_bytes(&mut out, bytes);
                }
                put_hashes(&mut out, path);
            }
        }
        put(&mut out, self.gradients.len() as u64);
        self.gradients.iter().for_each(|bytes| put_bytes(&mut out, bytes));
        out
    }
}

fn put(out: &mut Vec<u8>, number: u64) {
    out.extend(number.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_hashes(out: &mut Vec<u8>, hashes: &[Hash]) {
    put(out, hashes.len() as u64);
    hashes.iter().for_each(|hash| out.extend(hash.0));
}

/// Reads from a place; an error is what was expected there.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

type Understood<T> = std::result::Result<T, String>;

impl<'a> Cursor<'a> {
    fn file(&mut self) -> Understood<AuditFile> {
        if !self.bytes.starts_with(MAGIC) {
            return Err("expected the words `runner/audit/v4`".into());
        }
        self.at = MAGIC.len();
        let file = AuditFile {
            step: self.number()?,
            recompute: u8::try_from(self.number()?).map_err(|_| "expected 0, 1 or 2")?,
            pieces: self.number()?,
            inputs: self.tokens()?,
            targets: self.tokens()?,
            trace: self.hashes()?,
            states: [self.hashes()?, self.hashes()?],
            matrices: self.openings()?,
            tensors: [self.openings()?, self.openings()?],
            gradients: self.list(8, Cursor::string)?,
        };
        match self.at == self.bytes.len() {
            true => Ok(file),
            false => Err("expected the end of the file".into()),
        }
    }

    fn take(&mut self, len: usize) -> Understood<&'a [u8]> {
        let left = &self.bytes[self.at..];
        let taken =
            left.get(..len).ok_or_else(|| format!("expected {len} bytes, {} are left", left.len()))?;
        self.at += len;
        Ok(taken)
    }

    fn number(&mut self) -> Understood<u64> {
        let bytes = self.take(8)?;
        Ok(u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
    }

    /// A length of a list whose elements take at least `element` bytes each.
    fn count(&mut self, element: usize) -> Understood<usize> {
        let (at, count) = (self.at, self.number()?);
        let most = (self.bytes.len() - self.at) / element;
        usize::try_from(count).ok().filter(|count| *count <= most).ok_or_else(|| {
            self.at = at;
            format!("{count} elements are more than the file has room for")
        })
    }

    fn list<T>(&mut self, element: usize, read: impl Fn(&mut Self) -> Understood<T>) -> Understood<Vec<T>> {
        (0..self.count(element)?).map(|_| read(self)).collect()
    }

    fn string(&mut self) -> Understood<Vec<u8>> {
        let len = self.count(1)?;
        Ok(self.take(len)?.to_vec())
    }

    fn tokens(&mut self) -> Understood<Vec<u16>> {
        self.list(2, |cursor| Ok(u16::from_le_bytes(cursor.take(2)?.try_into().expect("two bytes"))))
    }

    fn hashes(&mut self) -> Understood<Vec<Hash>> {
        self.list(32, |cursor| Ok(Hash(cursor.take(32)?.try_into().expect("32 bytes"))))
    }

    /// Numbered things; the numbers rise, so that a file has one spelling.
    fn numbered<T>(&mut self, read: impl Fn(&mut Self) -> Understood<T>) -> Understood<BTreeMap<usize, T>> {
        let mut all = BTreeMap::new();
        for _ in 0..self.count(16)? {
            let number = usize::try_from(self.number()?).map_err(|_| "expected a smaller number")?;
            if all.last_key_value().is_some_and(|(last, _)| *last >= number) {
                return Err(format!("expected a number above the one before, found {number}"));
            }
            all.insert(number, read(self)?);
        }
        Ok(all)
    }

    fn openings(&mut self) -> Understood<BTreeMap<usize, Opening>> {
        self.numbered(|cursor| {
            Ok(Opening { units: cursor.numbered(Cursor::string)?, path: cursor.hashes()? })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> AuditFile {
        let hash = |n: u8| Hash([n; 32]);
        let opening = Opening { units: BTreeMap::from([(3, vec![1, 2]), (9, vec![])]), path: vec![hash(4)] };
        AuditFile {
            step: 20,
            recompute: 1,
            pieces: 32,
            inputs: vec![1, 65535],
            targets: vec![7],
            trace: vec![hash(1), hash(2)],
            states: [vec![hash(3)], vec![]],
            matrices: BTreeMap::from([(0, opening.clone()), (5, opening.clone())]),
            tensors: [BTreeMap::new(), BTreeMap::from([(2, opening)])],
            gradients: vec![vec![1; 8]],
        }
    }

    #[test]
    fn a_file_reads_back_and_every_cut_of_it_is_named_by_its_byte() {
        let folder = tempfile::tempdir().expect("a folder");
        let paths = RunPaths::new(folder.path());
        let path = path(&paths, 20);
        example().write(&path).expect("written");
        assert_eq!(AuditFile::read(&path).expect("a file"), example());
        let bytes = example().to_bytes();
        for len in 0..bytes.len() {
            std::fs::write(&path, &bytes[..len]).expect("writable");
            let error = AuditFile::read(&path).expect_err("a cut file").to_string();
            assert!(error.contains("step_00000020.bin") && error.contains("byte"), "{error}");
        }
        std::fs::write(&path, [&bytes[..], b"x"].concat()).expect("writable");
        assert!(
            AuditFile::read(&path).expect_err("a longer file").to_string().contains("the end of the file")
        );
    }

    #[test]
    fn a_file_of_an_earlier_format_is_known_for_what_it_is_and_is_no_damage() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = path(&RunPaths::new(folder.path()), 20);
        example().write(&path).expect("written");
        assert!(earlier_format(&path).is_none() && begins_as(&path, 20));
        let bytes = example().to_bytes();
        for format in ["runner/audit/v1", "runner/audit/v2"] {
            let start = format!("{format}\n").into_bytes();
            std::fs::write(&path, [&start, &bytes[MAGIC.len()..]].concat()).expect("writable");
            assert_eq!(earlier_format(&path), Some(format));
            assert!(begins_as(&path, 20) && !begins_as(&path, 21));
            let error = AuditFile::read(&path).expect_err("another format").to_string();
            assert!(error.contains(format) && !error.contains("damaged"), "{error}");
        }
        std::fs::write(&path, [b"runner/audit/v9\n", &bytes[MAGIC.len()..]].concat()).expect("writable");
        assert!(earlier_format(&path).is_none() && !begins_as(&path, 20));
        assert!(matches!(AuditFile::read(&path), Err(StoreError::BadAudit { .. })));
    }

    #[test]
    fn going_back_deletes_what_is_made_anew_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let paths = RunPaths::new(folder.path());
        for step in [10, 20, 30] {
            example().write(&path(&paths, step)).expect("written");
        }
        std::fs::write(paths.audits().join("notes.txt"), "mine").expect("writable");
        drop_from(&paths.audits(), 20).expect("deleted");
        assert!(path(&paths, 10).exists() && paths.audits().join("notes.txt").exists());
        assert!(!path(&paths, 20).exists() && !path(&paths, 30).exists());
        drop_from(&folder.path().join("none"), 0).expect("nothing to do");
    }
}
