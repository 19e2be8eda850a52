//! Copies of a run's checkpoints in another place, each with what a resume from there needs.
//!
//! `PLACE/NAME/step_00002000/` has the state, the run's records up to then, `SHA256SUMS` of all, and
//! `manifest.json`, which is written last: without it there is no copy. Nothing but a checkpoint's own folder
//! is ever written, so that a kill leaves what was whole before as it was.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::checkpoint::{self, MANIFEST_FILE, STATE_FILE};
use super::main_log::MAIN_LOG;
use super::manifest::{Manifest, Standing};
use super::metrics::{self, JSONL};
use super::metrics_parquet;
use super::objects::{Count, Objects};
use super::parts::{self, FileHashes};
use super::run_folder::{EXPERIMENT, LEDGER, LOCK_FILE, SUMS};
use super::{Result, RunPaths, StoreError};
use crate::experiment::CopyPlace;
use crate::proof::entry::rewind_of;
use crate::proof::hash::Hashed;
use crate::proof::ledger::{self, Ledger, RESTORED};
use crate::proof::regular::{self, Lines};
use crate::proof::{Entry, Hash, Head, Lock};

/// The run's files that a copy has. The ledger is read last: its head shows that nobody went back meanwhile.
const RECORDS: [&str; 5] = [EXPERIMENT, LOCK_FILE, JSONL, MAIN_LOG, LEDGER];
/// Bytes of the longest manifest and list of digests that are read.
const LONGEST: u64 = 64 << 20;
/// Bytes of a record beyond that for each step: far more than any step writes.
const LONGEST_OF_STEP: u64 = 1 << 20;

/// The copies of one run.
pub struct Copies {
    objects: Objects,
    name: String,
}

impl Copies {
    /// Those of the run `name` in a place; asks nobody yet.
    ///
    /// # Errors
    /// The place is a bucket that this program, or this environment, does not know.
    pub fn open(place: &CopyPlace, name: &str) -> Result<Copies> {
        Ok(Copies { objects: Objects::open(place)?, name: name.to_owned() })
    }

    /// Where they are, for messages.
    pub fn address(&self) -> String {
        self.objects.address(&self.name)
    }

    /// The steps of the copies that are whole, oldest first.
    pub fn steps(&self) -> Result<Vec<u64>> {
        let mut steps = Vec::new();
        for step in self.objects.names(&self.name)?.iter().filter_map(|name| checkpoint::step_of(name)) {
            if self.objects.names(&self.folder(step))?.iter().any(|name| name == MANIFEST_FILE) {
                steps.push(step);
            }
        }
        Ok(steps)
    }

    fn folder(&self, step: u64) -> String {
        format!("{}/{}", self.name, checkpoint::folder_name(step))
    }

    fn object(&self, step: u64, file: &str) -> String {
        format!("{}/{file}", self.folder(step))
    }

    fn address_of(&self, step: u64, file: &str) -> String {
        self.objects.address(&self.object(step, file))
    }

    /// The manifest of a copy.
    pub fn manifest(&self, step: u64) -> Result<Manifest> {
        let address = self.address_of(step, MANIFEST_FILE);
        let text = self.fetched(step, MANIFEST_FILE)?;
        let manifest = Manifest::parse(Path::new(&address), &text)?;
        match manifest.step == step {
            true => Ok(manifest),
            false => {
                Err(StoreError::WrongStep { path: address.into(), expected: step, found: manifest.step })
            }
        }
    }

    fn fetched(&self, step: u64, file: &str) -> Result<Vec<u8>> {
        let bytes = self.objects.get(&self.object(step, file), LONGEST)?;
        bytes.ok_or_else(|| self.missing(step, file))
    }

    fn missing(&self, step: u64, file: &str) -> StoreError {
        StoreError::DamagedCopy { object: self.address_of(step, file), why: "it is missing".into() }
    }

    /// Refuses a place that holds copies of another run, at these `steps`: the newest whose entry the ledger
    /// has must be of it, and what is newer of its numerics. So must be what the run went back behind.
    pub fn require_of(&self, paths: &RunPaths, steps: &[u64]) -> Result<()> {
        // What is wrong with ledger or lock is their run's concern.
        let Ok((log, entries)) = ledger::read(&paths.ledger()) else { return Ok(()) };
        let Ok(lock) = Lock::read(&paths.lock_file()) else { return Ok(()) };
        for &step in steps.iter().rev() {
            let Manifest { ledger: Head { size, root }, numerics, .. } = self.manifest(step)?;
            match log.head_at(size) {
                Some(head) if head.root == root => return Ok(()),
                // The run is not that far, and may get there again.
                None if numerics == lock.numerics => {}
                Some(_) if numerics == lock.numerics && went_back_behind(&entries, step) => {}
                _ => return Err(StoreError::OtherCopies { place: self.address(), step }),
            }
        }
        Ok(())
    }

    /// Copies the checkpoint of `step`, replacing another one's copy. `count` takes bytes of the state.
    ///
    /// # Errors
    /// The checkpoint is not whole or its run went back behind it; the place does not take it.
    pub fn save(&self, paths: &RunPaths, step: u64, count: Count<'_>) -> Result<()> {
        let folder = paths.checkpoints().join(checkpoint::folder_name(step));
        let manifest = checkpoint::inspect(&folder)?;
        let state = folder.join(STATE_FILE);
        let mut file = File::open(&state).map_err(StoreError::io(&state, "open"))?;
        let text = manifest.to_text();
        self.objects.delete(&self.object(step, MANIFEST_FILE))?;
        let again = file.try_clone().map_err(StoreError::io(&state, "open"))?;
        let ((part_bytes, parts), stop) = (manifest.file.sha256.parts(), AtomicBool::new(false));
        let hashed = thread::scope(|scope| {
            let hashing = scope.spawn(|| parts::hash_file(&again, part_bytes, &stop));
            let put =
                self.objects.put_all(&self.object(step, STATE_FILE), &mut file, manifest.file.bytes, count);
            stop.store(put.is_err(), Ordering::Relaxed);
            let hashed = hashing.join().expect("hashing does not panic");
            put.and_then(|()| hashed.map_err(StoreError::io(&state, "read")))
        })?;
        let FileHashes { whole, parts: found } = hashed.expect("it is stopped after an error alone");
        checkpoint::require_parts(&state, parts, &found)?;
        let mut sums = BTreeMap::from([(STATE_FILE, whole)]);
        for record in RECORDS {
            let path = paths.folder().join(record);
            let entries = if record == LEDGER { manifest.ledger.size } else { u64::MAX };
            let (file, bytes) = open_record(&path, entries).map_err(StoreError::io(&path, "read"))?;
            let mut from = Hashed::new(file.take(bytes));
            self.objects.put_all(&self.object(step, record), &mut from, bytes, &|_| ())?;
            sums.insert(record, from.finish().1);
        }
        if Ledger::require(&paths.ledger(), Some(&manifest.ledger)).is_err() {
            return Err(StoreError::NotOnLedger { step });
        }
        sums.insert(MANIFEST_FILE, Hash::of(text.as_bytes()));
        let sums: String = sums.iter().map(|(file, sum)| format!("{sum}  {file}\n")).collect();
        self.objects.put(&self.object(step, SUMS), sums.as_bytes())?;
        self.objects.put(&self.object(step, MANIFEST_FILE), text.as_bytes())
    }

    /// Makes a run's folder of the copy of `step`: every byte is held to `SHA256SUMS`, every tensor to the
    /// manifest, and that to the ledger.
    ///
    /// # Errors
    /// An object is missing or damaged, which is named by its address, or the place cannot be read.
    pub fn restore(&self, step: u64, paths: &RunPaths, count: Count<'_>) -> Result<()> {
        let manifest = self.manifest(step)?;
        let sums = self.sums(step)?;
        let folder = paths.checkpoints().join(checkpoint::folder_name(step));
        fs::create_dir_all(&folder).map_err(StoreError::write(&folder, 0))?;
        let damaged =
            |file: &str, why: String| StoreError::DamagedCopy { object: self.address_of(step, file), why };
        let hold = |file: &str, found: Hash| match sums.get(file) {
            Some(expected) if *expected == found => Ok(()),
            expected => {
                let expected = expected.map_or("nothing".into(), Hash::to_string);
                Err(damaged(file, format!("its SHA-256 is {found}, `{SUMS}` has {expected}")))
            }
        };
        for file in [MANIFEST_FILE].iter().chain(&RECORDS) {
            let path = if *file == MANIFEST_FILE { folder.join(file) } else { paths.folder().join(file) };
            // What is longer is cut there, and so has another SHA-256.
            let most = manifest.step.saturating_mul(LONGEST_OF_STEP).saturating_add(LONGEST);
            let found = self.objects.get_file(&self.object(step, file), &path, most, &|_| ())?;
            hold(file, found.ok_or_else(|| self.missing(step, file))?)?;
        }
        let state = folder.join(STATE_FILE);
        let most = manifest.file.bytes.saturating_add(1);
        let found = self.objects.get_file(&self.object(step, STATE_FILE), &state, most, count)?;
        let sum = found.ok_or_else(|| self.missing(step, STATE_FILE))?;
        checkpoint::load(&folder).map(drop).map_err(|error| match error {
            StoreError::Io { .. } | StoreError::DiskFull { .. } => error,
            error => {
                let here = folder.display().to_string();
                let there = self.objects.address(&self.folder(step));
                damaged(STATE_FILE, error.to_string().replace(&here, &there))
            }
        })?;
        hold(STATE_FILE, sum)?;
        let (log, entries) =
            ledger::read(&paths.ledger()).map_err(|error| damaged(LEDGER, error.to_string()))?;
        if !matches!(manifest.standing(&log, &entries), Standing::Bound | Standing::Unbound) {
            return Err(damaged(LEDGER, format!("it is not that of `{MANIFEST_FILE}`")));
        }
        // Those who verify the run expect no audits of the steps before.
        if entries.iter().any(|entry| entry.audit.is_some()) {
            Ledger::open(&paths.ledger())
                .and_then(|mut ledger| ledger.note(RESTORED, &format!("from a copy of step {step}")))
                .map_err(|error| damaged(LEDGER, error.to_string()))?;
        }
        // A finished run is not opened again to write it.
        let rows = metrics::read_jsonl(&paths.metrics_jsonl());
        let table = rows.and_then(|rows| match rows.is_empty() {
            true => Ok(()),
            false => metrics_parquet::write(&paths.metrics_parquet(), &rows),
        });
        table.map_err(|error| damaged(JSONL, error.to_string()))
    }

    fn sums(&self, step: u64) -> Result<BTreeMap<String, Hash>> {
        let text = self.fetched(step, SUMS)?;
        let line = |line: &str| {
            let (sum, file) = line.split_once("  ")?;
            Some((file.to_owned(), sum.parse().ok()?))
        };
        let sums = String::from_utf8_lossy(&text).lines().map(line).collect::<Option<BTreeMap<_, _>>>();
        let bad = || "a line is not `SHA-256  FILE`".to_owned();
        sums.ok_or_else(|| StoreError::DamagedCopy { object: self.address_of(step, SUMS), why: bad() })
    }
}

/// Whether a run went back from a step at or behind `step` to one before it.
fn went_back_behind(entries: &[Entry], step: u64) -> bool {
    let mut rewinds = entries.iter().flat_map(|entry| &entry.events).filter_map(|event| rewind_of(event));
    rewinds.any(|(from, to)| to < step && step <= from)
}

/// A record, and how many bytes of it are copied: its whole lines, of a ledger up to the last of so many
/// `entries`, with the notes before it.
fn open_record(path: &Path, entries: u64) -> io::Result<(File, u64)> {
    let mut file = regular::open(path)?;
    let (mut lines, mut bytes, mut seen) = (Lines::of(file.try_clone()?), 0, 0);
    while seen < entries
        && let Some(line) = lines.next_line()?
    {
        bytes += line.len() as u64 + 1;
        seen += u64::from(line.starts_with(b"{\"entry\":"));
    }
    file.rewind()?;
    Ok((file, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proof::Action;

    #[test]
    fn a_record_is_copied_up_to_its_last_whole_line_or_entry() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(LEDGER);
        let copied = |text: &str, entries: u64| {
            fs::write(&path, text).unwrap();
            let (file, bytes) = open_record(&path, entries).unwrap();
            io::read_to_string(file.take(bytes)).unwrap()
        };
        let [note, entry] = ["{\"note\":1}\n", "{\"entry\":1}\n"];
        let ledger = [note, entry, note, entry, note].concat();
        assert_eq!(copied(&ledger, 0), "");
        assert_eq!(copied(&ledger, 1), [note, entry].concat());
        assert_eq!(copied(&ledger, 2), [note, entry, note, entry].concat());
        assert_eq!(copied(&ledger, 3), ledger);
        assert_eq!(copied("a\nb\ntorn", u64::MAX), "a\nb\n");
        // A record without a newline that is larger than memory.
        File::options().write(true).open(&path).unwrap().set_len(1 << 36).unwrap();
        assert!(open_record(&path, u64::MAX).unwrap_err().to_string().contains("and is no record"));
    }

    #[test]
    fn copies_that_a_run_went_back_behind_are_its_own() {
        let mut entries: Vec<Entry> = (0..12).map(|step| Entry::new(step, step, Action::Update)).collect();
        assert!(!went_back_behind(&entries, 7));
        entries[5].events.push("rewind from step 8 to step 5".into());
        let behind: Vec<u64> = (0..12).filter(|step| went_back_behind(&entries, *step)).collect();
        assert_eq!(behind, [6, 7, 8]);
    }
}
