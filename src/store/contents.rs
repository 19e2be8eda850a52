//! What this program writes into a run's folder: `--overwrite` and `runner rm` delete only that, and anything
//! else is named in an error.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::checkpoint::{self, MANIFEST_FILE, STATE_FILE};
use super::main_log::MAIN_LOG;
use super::metrics::{JSONL, PARQUET};
use super::run_folder::{
    self, EXPERIMENT, GPU_LOG, LEDGER, LOCK, LOCK_FILE, NOTES, REPORT, RunPaths, TENSORBOARD, is_copy,
};
use super::{Result, StoreError, atomic, audit};
use crate::proof::regular;

/// The file that makes a folder a sweep.
pub(super) const SWEEP: &str = "sweep.toml";
/// Files of exported models.
const EXPORTED: [&str; 8] = [
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model.bin",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
];
/// How many names a message lists.
const LISTED: usize = 5;

/// Whether a file is an experiment or a sweep as this program writes it into a folder, and none that a person
/// wrote: by its first line. An empty one holds nothing to lose.
pub(super) fn is_resolved(path: &Path) -> bool {
    /// Bytes of a file's name and of the words behind it.
    const FIRST_LINE: u64 = 1 << 10;
    let mut beginning = Vec::new();
    let read = regular::open(path).and_then(|file| file.take(FIRST_LINE).read_to_end(&mut beginning));
    let beginning = String::from_utf8_lossy(&beginning);
    let first = beginning.lines().next().unwrap_or_default();
    read.is_ok_and(|bytes| bytes == 0 || (first.starts_with("# ") && first.contains(", resolved: ")))
}

/// The kind of an entry of a run's folder.
enum KnownEntry {
    File,
    /// A folder of files, whose names the function knows.
    Folder(fn(&str) -> bool),
    /// A folder of folders of files: the functions know the names of both.
    Folders(fn(&str) -> bool, fn(&str) -> bool),
}

/// Whether a file or folder of this name in a run's folder is this program's.
pub(super) fn is_known(name: &str) -> bool {
    known(name).is_some()
}

/// Whether a file of this name in a sweep's folder is this program's.
pub(super) fn is_of_sweep(name: &str) -> bool {
    [LOCK, SWEEP, "sweep.lock"].contains(&name)
}

/// Whether a folder of this name among checkpoints is one.
pub(super) fn is_checkpoint(name: &str) -> bool {
    checkpoint::step_of(name).is_some()
}

fn known(name: &str) -> Option<KnownEntry> {
    Some(match name {
        LOCK | EXPERIMENT | LOCK_FILE | LEDGER | JSONL | PARQUET | MAIN_LOG | TENSORBOARD | GPU_LOG
        | NOTES | REPORT => KnownEntry::File,
        "checkpoints" => KnownEntry::Folders(is_checkpoint, |file| {
            file == STATE_FILE || file == MANIFEST_FILE || is_numbered(file, ("rank_", 5, ".done"))
        }),
        "unrepeatable" => KnownEntry::Folders(is_checkpoint, |file| {
            ["first.safetensors", "second.safetensors"].contains(&file)
        }),
        "samples" => KnownEntry::Folder(|name| is_numbered(name, ("step_", 8, ".txt"))),
        "plots" => KnownEntry::Folder(|name| ["loss.svg", "loss.png"].contains(&name)),
        "audit" => KnownEntry::Folder(|name| audit::step_of(name).is_some()),
        "export" => KnownEntry::Folders(is_export, |file| EXPORTED.contains(&file)),
        _ => return None,
    })
}

/// Whether a name is a number, filled up with zeros to so many digits, between two texts.
fn is_numbered(name: &str, (before, digits, after): (&str, usize, &str)) -> bool {
    let number = name.strip_prefix(before).and_then(|rest| rest.strip_suffix(after)?.parse::<u64>().ok());
    number.is_some_and(|number| format!("{before}{number:0digits$}{after}") == name)
}

/// Whether a name is that of an exported model: `step_00000020_hf_fp32`, `step_00000020_llmc_bf16_ema`.
fn is_export(name: &str) -> bool {
    let rest = name.strip_suffix("_ema").unwrap_or(name);
    let step = rest.rsplit_once('_').and_then(|(rest, precision)| {
        let (step, format) = rest.rsplit_once('_')?;
        (["fp32", "bf16"].contains(&precision) && ["hf", "llmc"].contains(&format)).then_some(step)
    });
    step.is_some_and(is_checkpoint)
}

/// What is in the folder of a checkpoint that this program did not write; nothing in a folder that is not
/// there.
pub fn foreign_in_checkpoint(folder: &Path) -> Result<Vec<String>> {
    match (known("checkpoints"), folder.is_dir()) {
        (Some(KnownEntry::Folders(_, is_known)), true) => foreign_files(folder, is_known),
        _ => Ok(Vec::new()),
    }
}

/// Refuses a folder that is not a run: one without even a lock.
pub(super) fn require_run(folder: &Path) -> Result<()> {
    let paths = RunPaths::new(folder);
    // The first line of `experiment.toml` is that of `runner config` too, from which people make files.
    let has = |made: &[&str]| made.iter().any(|name| folder.join(name).exists());
    let is_run = has(&[LOCK, LEDGER, "checkpoints"]) && is_resolved(&paths.experiment());
    let is_sweep = has(&[LOCK, "sweep.lock", "logs"]) && is_resolved(&folder.join(SWEEP));
    // A lock alone is one that `runner lock` wrote for somebody to keep.
    let is_run = is_run || (has(&[LOCK, LEDGER, "checkpoints"]) && paths.lock_file().is_file());
    match (is_run, is_sweep) {
        _ if is_copy(folder) => Err(StoreError::NotARun { path: folder.into() }),
        (true, _) => Ok(()),
        (false, true) => Err(StoreError::SweepExists { path: folder.into() }),
        (false, false) => Err(StoreError::NotARun { path: folder.into() }),
    }
}

/// Refuses a folder without an experiment in which a run has begun all the same, or that holds something that
/// this program did not write. What a kill leaves of a beginning is a lock, or half of one.
pub(super) fn require_unbegun(folder: &Path) -> Result<()> {
    if !run_folder::is_used(folder)? {
        return Ok(());
    }
    require_ours(folder)?;
    match RunPaths::new(folder).lack_experiment() {
        true => Err(StoreError::NoExperiment { path: folder.into() }),
        false => Ok(()),
    }
}

/// Refuses a folder that is not a run, or holds something that this program did not write.
pub(super) fn require_ours(folder: &Path) -> Result<()> {
    require_run(folder)?;
    let mut foreign = Vec::new();
    for (name, path) in entries(folder, is_known)? {
        let known = known(&name);
        // Of a symbolic link only the link is deleted.
        let is_folder_here = fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir());
        match known {
            Some(KnownEntry::File) if name == EXPERIMENT && !is_resolved(&path) => foreign.push(name),
            Some(KnownEntry::File) if !is_folder_here => {}
            Some(KnownEntry::Folder(is_known)) if is_folder_here => {
                let inside = foreign_files(&path, is_known)?.into_iter();
                foreign.extend(inside.map(|file| format!("{name}/{file}")));
            }
            Some(KnownEntry::Folders(is_folder, is_known)) if is_folder_here => {
                for (step, path) in entries(&path, is_folder)? {
                    if !is_folder(&step) || !path.is_dir() {
                        foreign.push(format!("{name}/{step}"));
                        continue;
                    }
                    let inside = foreign_files(&path, is_known)?.into_iter();
                    foreign.extend(inside.map(|file| format!("{name}/{step}/{file}")));
                }
            }
            _ => foreign.push(name),
        }
    }
    match foreign.is_empty() {
        true => Ok(()),
        false => Err(StoreError::Foreign { path: folder.into(), names: listed(&foreign) }),
    }
}

/// Entries of a folder of files that are folders, or whose names the function does not know.
fn foreign_files(folder: &Path, is_known: fn(&str) -> bool) -> Result<Vec<String>> {
    let foreign = |(name, path): &(String, PathBuf)| !is_known(name) || path.is_dir();
    Ok(entries(folder, is_known)?.into_iter().filter(foreign).map(|(name, _)| name).collect())
}

/// Refuses folders that have the name of a checkpoint and no file of one: the checkpoint of that step could
/// not be saved without deleting them, and at its end the run would look for its outputs there.
pub(super) fn require_checkpoints(checkpoints: &Path) -> Result<()> {
    for (_, path) in checkpoint::list(checkpoints)? {
        let has = |file: &str| path.join(file).is_file();
        if has(STATE_FILE) || has(MANIFEST_FILE) {
            continue;
        }
        let found = match entries(&path, |_| false) {
            Err(_) => "it is no folder".to_owned(),
            Ok(entries) if entries.is_empty() => "it is empty".to_owned(),
            Ok(entries) => {
                let names: Vec<String> = entries.into_iter().map(|(name, _)| name).collect();
                format!("it holds {}", listed(&names))
            }
        };
        return Err(StoreError::NotACheckpoint { path, found });
    }
    Ok(())
}

/// Entries among the checkpoints that have other names, and are left alone.
pub fn beside_checkpoints(checkpoints: &Path) -> Result<Vec<PathBuf>> {
    let foreign = |(name, _): &(String, PathBuf)| checkpoint::step_of(name).is_none();
    Ok(entries(checkpoints, is_checkpoint)?.into_iter().filter(foreign).map(|(_, path)| path).collect())
}

/// Bytes of the files in a folder and its subfolders; links, and what cannot be read, count as 0.
pub fn bytes_in(folder: &Path) -> u64 {
    if folder.is_symlink() {
        return 0;
    }
    let entry = |entry: fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => bytes_in(&entry.path()),
        Ok(found) => found.len(),
        Err(_) => 0,
    };
    fs::read_dir(folder).map_or(0, |entries| entries.flatten().map(entry).sum())
}

/// Names and paths in a folder, sorted, without what a kill left half written of names that are `ours`.
pub(super) fn entries(folder: &Path, ours: impl Fn(&str) -> bool) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(StoreError::io(folder, "list"))? {
        let entry = entry.map_err(StoreError::io(folder, "list"))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !atomic::leftover(&name).is_some_and(&ours) {
            found.push((name, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

pub(super) fn listed(names: &[String]) -> String {
    let shown: Vec<String> = names.iter().take(LISTED).map(|name| format!("`{name}`")).collect();
    let more = names.len().saturating_sub(LISTED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::super::checkpoint::tests::*;
    use super::super::{RunFolder, save};
    use super::*;

    fn run(root: &Path) -> PathBuf {
        let run = RunFolder::create(root, "a", false).unwrap();
        fs::write(run.paths.experiment(), "").unwrap();
        save(&run.paths.checkpoints(), &state(3), &facts(3)).unwrap();
        run.paths.folder().to_owned()
    }

    #[test]
    fn only_what_this_program_wrote_is_deleted() {
        let root = tempfile::tempdir().unwrap();
        let folder = run(root.path());
        for name in ["samples/step_00000003.txt", "plots/loss.png", ".tmp.lock.toml", "metrics.jsonl"] {
            fs::write(folder.join(name), "").unwrap();
        }
        require_ours(&folder).unwrap();
        for folder_of in ["unrepeatable/step_00000003", "export/step_00000003_hf_fp32_ema"] {
            fs::create_dir_all(folder.join(folder_of)).unwrap();
        }
        fs::write(folder.join("export/step_00000003_hf_fp32_ema/config.json"), "").unwrap();
        require_ours(&folder).unwrap();
        for name in [
            "notes.txt",
            "plots/thesis.tex",
            "checkpoints/old",
            "checkpoints/step_00000003/copy.bin",
            "checkpoints/step_00000003/rank_of_my_students.done",
            "samples/step_by_step_guide.txt",
            "samples/step_12345.txt",
            "export/step_00000010_finetuned_bf16",
            "unrepeatable/step_00000003/thesis.safetensors",
            "export/step_mine",
        ] {
            fs::write(folder.join(name), "mine").unwrap();
            let error = RunFolder::create(root.path(), "a", true).unwrap_err().to_string();
            assert!(error.contains(&format!("`{name}`")) && error.contains("--overwrite"), "{name}: {error}");
            assert_eq!(fs::read(folder.join(name)).unwrap(), b"mine");
            fs::remove_file(folder.join(name)).unwrap();
        }
        fs::create_dir(folder.join("metrics")).unwrap();
        assert!(require_ours(&folder).unwrap_err().to_string().contains("`metrics`"));
    }

    #[test]
    fn a_folder_that_is_no_run_is_refused_and_kept() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("photos/plots")).unwrap();
        fs::write(root.path().join("photos/plots/me.png"), "mine").unwrap();
        for overwrite in [false, true] {
            let error = RunFolder::create(root.path(), "photos", overwrite).unwrap_err();
            assert!(matches!(error, StoreError::NotARun { .. }), "{error}");
        }
        assert!(root.path().join("photos/plots/me.png").exists());
        assert_eq!(fs::read_dir(root.path().join("photos")).unwrap().count(), 1, "no lock is left");
    }

    #[test]
    fn an_empty_or_foreign_folder_among_checkpoints_is_named_when_a_run_is_opened() {
        let root = tempfile::tempdir().unwrap();
        let folder = run(root.path());
        let odd = folder.join("checkpoints/step_00000009");
        fs::create_dir(&odd).unwrap();
        let refused = || RunFolder::open(&folder).unwrap_err().to_string();
        let error = refused();
        assert!(error.contains("step_00000009") && error.contains("it is empty"), "{error}");
        fs::write(odd.join("mine.txt"), "").unwrap();
        assert!(refused().contains("it holds `mine.txt`"), "{}", refused());
        // A checkpoint with one file missing is damaged, and skipped.
        fs::write(odd.join(MANIFEST_FILE), "").unwrap();
        RunFolder::open(&folder).unwrap();
        fs::create_dir(folder.join("checkpoints/backup")).unwrap();
        assert_eq!(
            beside_checkpoints(&folder.join("checkpoints")).unwrap(),
            [folder.join("checkpoints/backup")]
        );
    }
}
