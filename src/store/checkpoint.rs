//! Checkpoints: a training state and a manifest that proves it, in one folder.
//!
//! `checkpoints/step_00002000/{state.safetensors, manifest.json}` appears by rename when both files
//! are on the disk, and two runs with the same bits write the same bytes. Loading checks every
//! byte before it gives out a state, and names the tensor that is damaged.
//!
//! Only the trainer knows what the tensors mean; the state is whatever the next step reads.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use rayon::prelude::*;

use super::atomic::{self, NewFolder};
use super::manifest::{FORMAT, Facts, FileRecord, FileSums, Manifest};
use super::parts::{PART_BYTES, PartsHasher};
use super::safetensors::{Layout, Reader, Tensor};
use super::{Result, StoreError};
use crate::proof::{Hash, regular, state_root, tensor_digest};

pub const STATE_FILE: &str = "state.safetensors";
pub const MANIFEST_FILE: &str = "manifest.json";
/// Bytes of tensors that are hashed side by side while as many are read.
pub const GROUP_BYTES: usize = 2 * PART_BYTES as usize;
/// Bytes of the longest manifest that is read: of some hundred thousand tensors.
const LONGEST_MANIFEST: u64 = 64 << 20;

/// A checkpoint read back whole: its manifest, and its tensors sorted by name.
pub type LoadedCheckpoint = (Manifest, Vec<Tensor>);

/// Steps whose checkpoints did not load, and why.
pub type Broken = Vec<(u64, StoreError)>;

/// Name of the folder of a step's checkpoint.
pub fn folder_name(step: u64) -> String {
    format!("step_{step:08}")
}

/// The step in a checkpoint folder's name, if it is one.
pub fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step_")?.parse().ok()?;
    (folder_name(step) == name).then_some(step)
}

/// Digest of a stored tensor.
pub fn digest(tensor: &Tensor) -> Hash {
    tensor_digest(&tensor.name, tensor.dtype.name(), &tensor.shape_u64(), &tensor.bytes)
}

/// Saves `state` under `checkpoints`, replacing a checkpoint of the same step.
///
/// Tensors are hashed while they are written. On any error nothing of the attempt stays, and what was
/// saved before is untouched.
pub fn save(checkpoints: &Path, state: &[Tensor], facts: &Facts) -> Result<Manifest> {
    save_counting(checkpoints, state, facts, &AtomicU64::new(0))
}

/// As [`save`]; counts in `done_bytes` the bytes of tensors written so far.
pub fn save_counting(
    checkpoints: &Path,
    state: &[Tensor],
    facts: &Facts,
    done_bytes: &AtomicU64,
) -> Result<Manifest> {
    save_through(|path| File::create(path), checkpoints, state, facts, done_bytes)
}

/// As [`save`], with a function that creates the state file, so that a test can pass in a full disk.
fn save_through(
    create: impl Fn(&Path) -> io::Result<File>,
    checkpoints: &Path,
    state: &[Tensor],
    facts: &Facts,
    done_bytes: &AtomicU64,
) -> Result<Manifest> {
    let layout = Layout::new(state, &BTreeMap::new())?;
    let target = checkpoints.join(folder_name(facts.step));
    let folder = NewFolder::create(&target)?;
    // Errors name the final path of the file, because its temporary folder is removed by then.
    let (file_path, need_bytes) = (target.join(STATE_FILE), layout.file_bytes());

    let mut out =
        create(&folder.path().join(STATE_FILE)).map_err(StoreError::write(&file_path, need_bytes))?;
    let data = || layout.order().iter().map(|&i| &state[i].bytes[..]);
    let write = || -> io::Result<()> {
        out.write_all(layout.header())?;
        for bytes in data() {
            out.write_all(bytes)?;
            done_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        out.sync_all()
    };
    // Threads of their own: a task that waits for a disk must not sit in the pool that trains.
    let (written, digests) = thread::scope(|scope| {
        let write = scope.spawn(write);
        let mut sha256 = PartsHasher::default();
        sha256.push(&std::iter::once(layout.header()).chain(data()).collect::<Vec<_>>());
        let tensors = state.iter().map(|tensor| (tensor.name.clone(), digest(tensor))).collect();
        (write.join().expect("writing does not panic"), Digests { sha256: sha256.finish(), tensors })
    });
    written.map_err(StoreError::write(&file_path, need_bytes))?;

    let manifest = manifest_of(facts, need_bytes, digests)?;
    atomic::write(&folder.path().join(MANIFEST_FILE), manifest.to_text().as_bytes())?;
    folder.commit()?;
    Ok(manifest)
}

/// The manifest of a state's file with these digests; refused when they are not those of the state that the
/// trainer hashed.
pub(super) fn manifest_of(facts: &Facts, bytes: u64, digests: Digests) -> Result<Manifest> {
    let Digests { sha256, tensors } = digests;
    let state_root = root_of(&tensors);
    if let Some(expected) = facts.state_root.filter(|expected| *expected != state_root) {
        return Err(StoreError::StateChanged { expected, found: state_root });
    }
    Ok(Manifest {
        format: FORMAT.into(),
        experiment: facts.experiment.clone(),
        step: facts.step,
        tokens: facts.tokens,
        updates: facts.updates,
        state_root,
        ledger: facts.ledger,
        numerics: facts.numerics.clone(),
        created_by: facts.created_by.clone(),
        file: FileRecord { name: STATE_FILE.into(), bytes, sha256: FileSums::Parts(sha256) },
        tensors,
    })
}

fn root_of(tensors: &BTreeMap<String, Hash>) -> Hash {
    state_root(tensors.iter().map(|(name, digest)| (name.as_str(), *digest)))
        .expect("a map has no name twice")
}

/// The checkpoints in a folder by step, oldest first, whole or not. A folder that is not there has none.
pub fn list(checkpoints: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(checkpoints) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(StoreError::io(checkpoints, "list"))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(StoreError::io(checkpoints, "list"))?;
        if let Some(step) = entry.file_name().to_str().and_then(step_of) {
            found.push((step, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// Reads the manifest and compares what can be compared without reading the state: format, seal,
/// step and the length of the file.
pub fn inspect(folder: &Path) -> Result<Manifest> {
    let path = folder.join(MANIFEST_FILE);
    let text = match regular::read_within(&path, LONGEST_MANIFEST) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(StoreError::Missing { path }),
        text => text.map_err(StoreError::io(&path, "read"))?,
    };
    let manifest = Manifest::parse(&path, &text)?;
    let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if let Some(expected) = step_of(name).filter(|step| *step != manifest.step) {
        return Err(StoreError::WrongStep { path, expected, found: manifest.step });
    }
    if manifest.file.name != STATE_FILE {
        let why = format!("its `file` is `{}`, expected `{STATE_FILE}`", manifest.file.name);
        return Err(StoreError::BadManifest { path, why });
    }
    let file = folder.join(STATE_FILE);
    match regular::open(&file).and_then(|file| file.metadata()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(StoreError::Missing { path: file }),
        Err(e) => Err(StoreError::io(&file, "open")(e)),
        Ok(found) if found.len() != manifest.file.bytes => {
            Err(StoreError::WrongLength { path: file, expected: manifest.file.bytes, found: found.len() })
        }
        Ok(_) => Ok(manifest),
    }
}

/// The digests of a state's file: of its parts, and of each tensor.
pub(super) struct Digests {
    pub sha256: Vec<Hash>,
    pub tensors: BTreeMap<String, Hash>,
}

/// Reads a whole file and hashes its parts and every tensor.
pub(super) fn read_whole(path: &Path) -> Result<Digests> {
    read_on(Reader::open(path)?, PartsHasher::default(), |_, _| Ok(()))
}

/// Hashes with `sha256` what `reader` reads; `take` receives each tensor with its digest, in order.
fn read_on(
    mut reader: Reader,
    mut sha256: PartsHasher,
    mut take: impl FnMut(Tensor, Hash) -> Result<()>,
) -> Result<Digests> {
    sha256.push(&[reader.header()]);
    let mut tensors = BTreeMap::new();
    let mut next = reader.next_group(GROUP_BYTES)?;
    while !next.is_empty() {
        // The next tensors are read while these are hashed twice.
        let group = std::mem::take(&mut next);
        let bytes: Vec<&[u8]> = group.iter().map(|tensor| &tensor.bytes[..]).collect();
        let digests = || group.iter().map(digest).collect::<Vec<Hash>>();
        let hash = || rayon::join(|| sha256.push(&bytes), digests).1;
        let (digests, read) = rayon::join(hash, || reader.next_group(GROUP_BYTES));
        for (tensor, found) in group.into_iter().zip(digests) {
            tensors.insert(tensor.name.clone(), found);
            take(tensor, found)?;
        }
        next = read?;
    }
    Ok(Digests { sha256: sha256.finish(), tensors })
}

/// Opens the state file and compares its header with the manifest.
fn open_state(path: &Path, manifest: &Manifest) -> Result<Reader> {
    let reader = Reader::open(path)?;
    let wrong_tensors = |tensor: &str, found, expected| StoreError::WrongTensors {
        path: path.into(),
        tensor: tensor.into(),
        found,
        expected,
    };
    if let Some(info) = reader.infos().iter().find(|info| !manifest.tensors.contains_key(&info.name)) {
        return Err(wrong_tensors(&info.name, "has", "does not list"));
    }
    if let Some(missing) =
        manifest.tensors.keys().find(|name| !reader.infos().iter().any(|info| info.name == **name))
    {
        return Err(wrong_tensors(missing, "lacks", "lists"));
    }
    Ok(reader)
}

/// Loads the tensors whose names are `wanted`, without reading the others. What is returned is checked
/// against the manifest, and the manifest against its root.
pub fn load_some(folder: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<LoadedCheckpoint> {
    let manifest = inspect(folder)?;
    let path = folder.join(STATE_FILE);
    let mut reader = open_state(&path, &manifest)?;
    let found = root_of(&manifest.tensors);
    if found != manifest.state_root {
        return Err(StoreError::RootDiffers { path, expected: manifest.state_root, found });
    }
    let mut state = Vec::new();
    while let Some(info) = reader.infos().first() {
        if !wanted(&info.name) {
            reader.skip_tensor();
            continue;
        }
        state.extend(reader.next_tensor()?);
    }
    let differs = state.par_iter().find_map_any(|tensor| {
        let (found, expected) = (digest(tensor), manifest.tensors[&tensor.name]);
        (found != expected).then(|| (tensor.name.clone(), expected, found))
    });
    if let Some((tensor, expected, found)) = differs {
        return Err(StoreError::TensorDiffers { path, tensor, expected, found });
    }
    state.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((manifest, state))
}

/// Loads a checkpoint, or says what is wrong with it: every byte of both files is checked.
pub fn load(folder: &Path) -> Result<LoadedCheckpoint> {
    let manifest = inspect(folder)?;
    let path = folder.join(STATE_FILE);
    let reader = open_state(&path, &manifest)?;
    let mut state = Vec::with_capacity(reader.infos().len());
    let (part_bytes, parts) = manifest.file.sha256.parts();
    let read = read_on(reader, PartsHasher::of(part_bytes), |tensor, found| {
        let expected = manifest.tensors[&tensor.name];
        if found != expected {
            return Err(StoreError::TensorDiffers {
                path: path.clone(),
                tensor: tensor.name,
                expected,
                found,
            });
        }
        state.push(tensor);
        Ok(())
    })?;
    let found = root_of(&manifest.tensors);
    if found != manifest.state_root {
        return Err(StoreError::RootDiffers { path, expected: manifest.state_root, found });
    }
    require_parts(&path, parts, &read.sha256)?;
    state.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((manifest, state))
}

/// Refuses a state's file whose parts are not those of its manifest.
pub(super) fn require_parts(path: &Path, expected: &[Hash], found: &[Hash]) -> Result<()> {
    let parts = expected.len();
    match expected.iter().zip(found).enumerate().find(|(_, (expected, found))| expected != found) {
        None if found.len() == parts => Ok(()),
        None => Err(StoreError::WrongLength {
            path: path.into(),
            expected: PART_BYTES * parts as u64,
            found: PART_BYTES * found.len() as u64,
        }),
        Some((at, (&expected, &found))) => {
            Err(StoreError::PartDiffers { path: path.into(), part: at + 1, parts, expected, found })
        }
    }
}

/// The newest checkpoint that loads whole, and why each newer one does not.
pub fn newest_whole(checkpoints: &Path) -> Result<(Option<LoadedCheckpoint>, Broken)> {
    newest(checkpoints, load)
}

/// The newest checkpoint that `load` accepts, and why it refused each newer one.
pub fn newest(
    checkpoints: &Path,
    load: impl Fn(&Path) -> Result<LoadedCheckpoint>,
) -> Result<(Option<LoadedCheckpoint>, Broken)> {
    let mut broken = Vec::new();
    for (step, folder) in list(checkpoints)?.into_iter().rev() {
        match load(&folder) {
            Ok(loaded) => return Ok((Some(loaded), broken)),
            Err(why) => broken.push((step, why)),
        }
    }
    Ok((None, broken))
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
pub(super) mod tests;
