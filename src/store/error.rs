//! Errors of files: which file, what was expected, what was found, what to do.

use std::io;
use std::path::{Path, PathBuf};

use crate::proof::Hash;
use crate::proof::digest::DigestError;
use crate::units;

/// An error of the store. Every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {doing} `{}`: {source}", path.display())]
    Io { path: PathBuf, doing: &'static str, source: io::Error },
    #[error("no space left to write `{}`{}\n  hint: what was saved before is intact; {}, and give the \
             command again; `runner resume` goes on with a run",
            path.display(), needs(*need_bytes), room(source))]
    DiskFull { path: PathBuf, need_bytes: u64, source: io::Error },
    #[error(
        "`{}` is there and is not {kind}: it is kept\n  hint: name another file, or delete it", path.display()
    )]
    OtherFile { path: PathBuf, kind: &'static str },
    #[error("`{}` is missing\n  hint: a whole checkpoint has `state.safetensors` and \
             `manifest.json`", path.display())]
    Missing { path: PathBuf },

    #[error("cannot store tensor `{name}`: {why}")]
    BadTensor { name: String, why: String },
    #[error("tensor `{name}` in `{}` {why}", path.display())]
    BadTensorOf { path: PathBuf, name: String, why: String },
    #[error("cannot store the state: {0}")]
    Digest(#[from] DigestError),
    #[error(
        "the state to be saved has the root {found}, but the trainer hashed {expected}\n  hint: memory \
         changed between hashing and saving; suspect the hardware, and resume from the last checkpoint"
    )]
    StateChanged { expected: Hash, found: Hash },

    #[error("`{}` is damaged in its header: {why}", path.display())]
    BadHeader { path: PathBuf, why: String },
    #[error(
        "`{}` has {found} bytes, expected {expected}\n  hint: {}",
        path.display(),
        if found < expected { "the file was cut short" } else { "something was written behind its end" }
    )]
    WrongLength { path: PathBuf, expected: u64, found: u64 },
    #[error(
        "tensor `{tensor}` in `{}` is damaged: its digest is {found}, expected {expected}",
        path.display()
    )]
    TensorDiffers { path: PathBuf, tensor: String, expected: Hash, found: Hash },
    #[error("`{}` {found} a tensor `{tensor}`, which its manifest {expected}\n  hint: the header is \
             damaged, or the two files belong to different checkpoints", path.display())]
    WrongTensors { path: PathBuf, tensor: String, found: &'static str, expected: &'static str },
    #[error("part {part} of {parts} of `{}` has the SHA-256 {found}, its manifest has {expected}\n  hint: \
             where every tensor is right, its header was changed, or the manifest was", path.display())]
    PartDiffers { path: PathBuf, part: usize, parts: usize, expected: Hash, found: Hash },
    #[error("the tensors of `{}` have the state root {found}, expected {expected}", path.display())]
    RootDiffers { path: PathBuf, expected: Hash, found: Hash },

    #[error("tensor `{tensor}` in `{}` and `{}` does not differ as the manifests say: one of the files is \
             damaged\n  hint: `runner verify` says which", a.display(), b.display())]
    DigestsDisagree { a: PathBuf, b: PathBuf, tensor: String },

    #[error(
        "`{}` is not the file of an audit: at byte {byte} {why}\n  \
         hint: it was cut short or damaged; restore it from a copy",
        path.display()
    )]
    BadAudit { path: PathBuf, byte: usize, why: String },
    #[error("`{}` has the format `{format}` of an earlier runner, which can check it", path.display())]
    EarlierAudit { path: PathBuf, format: &'static str },
    #[error("`{}` is not a checkpoint manifest: {why}", path.display())]
    BadManifest { path: PathBuf, why: String },
    #[error("`{}` has the format `{found}`, expected `{expected}`\n  hint: it was written by another \
             version of runner", path.display())]
    WrongFormat { path: PathBuf, expected: &'static str, found: String },
    #[error("`{}` was edited or damaged: its seal is {found}, its text gives {expected}", path.display())]
    SealBroken { path: PathBuf, expected: Hash, found: Hash },
    #[error("`{}` describes step {found}, but its folder is that of step {expected}\n  hint: the folder was \
             renamed or the manifest copied", path.display())]
    WrongStep { path: PathBuf, expected: u64, found: u64 },
    #[error("the checkpoint `{}` is not complete: {} did not write\n  hint: see that rank's own output, and \
             whether it shares this folder; the checkpoints before are whole",
        path.display(), ranks_text(ranks))]
    PartsMissing { path: PathBuf, ranks: Vec<usize> },
    #[error("the thread that saves checkpoints died: {why}")]
    WriterDied { why: String },

    #[error("`{name}` cannot name a run: {why}\n  hint: use letters, digits, `-`, `_`, `.` and spaces")]
    BadName { name: String, why: &'static str },
    #[error("there is already a run in `{}`\n  hint: `runner resume` goes on with it, `--name` starts \
             another, `--overwrite` deletes it", path.display())]
    RunExists { path: PathBuf },
    #[error("`{}` is not a run that runner made: it has no `lock.toml`, and no `experiment.toml` with \
             runner's first line and a ledger or checkpoints beside\n  hint: `--name` starts a run \
             elsewhere; `--overwrite` and `runner rm` delete runs alone", path.display())]
    NotARun { path: PathBuf },
    #[error("`{}` is a run whose `experiment.toml` is gone\n  hint: restore it from a copy of the run; \
             `--name` starts another run", path.display())]
    NoExperiment { path: PathBuf },
    #[error("the run in `{}` holds what runner did not write: {names}\n  hint: move that away, then \
             `--overwrite` or `runner rm` deletes the run", path.display())]
    Foreign { path: PathBuf, names: String },
    #[error("a file system is mounted at `{}`, and what is in it would be deleted\n  hint: unmount it first: \
             `umount` takes that path", path.display())]
    Mounted { path: PathBuf },
    #[error("`{}` has the name of a checkpoint, but is none: {found}\n  hint: move it away; the checkpoints \
             beside it are not touched", path.display())]
    NotACheckpoint { path: PathBuf, found: String },
    #[error("the run in `{}` will write {} ({what}), and its disk has {} free\n  hint: free some space, \
             set `checkpoint.keep_last` above 0 or lower it, raise `checkpoint.every`, or \
             `checkpoint.keep_every` where it is above 0, or name another disk with `--runs`",
            path.display(), units::bytes(*needed), units::bytes(*free))]
    NoRoom { path: PathBuf, needed: u64, what: String, free: u64 },
    #[error("`{}` line {line} is no note: {why}\n  hint: a line is {{\"note\":\"…\"}}, {{\"tag\":\"…\"}} or \
             {{\"untag\":\"…\"}}; remove or mend it", path.display())]
    BadNote { path: PathBuf, line: usize, why: String },
    #[error("`{}` is not the declaration of a sweep: {why}\n  hint: it was edited or damaged; restore it, or \
             start the sweep again with `--overwrite`", path.display())]
    BadSweep { path: PathBuf, why: String },
    #[error("there is already a sweep in `{}`\n  hint: `runner resume` goes on with it, `--name` takes \
             another folder; `--overwrite` deletes it where a sweep is run", path.display())]
    SweepExists { path: PathBuf },
    #[error("there is no sweep in `{}`", path.display())]
    NoSuchSweep { path: PathBuf },
    #[error("`{}` is not the folder of this run any more: it was moved, renamed or removed while the run \
             trained\n  hint: nothing more was written under that name; where the folder is now, `runner \
             resume` goes on from its newest checkpoint", path.display())]
    Moved { path: PathBuf },
    #[error("cannot {doing} `{object}`: {why}")]
    Object { doing: &'static str, object: String, why: String },
    #[error(
        "`{url}` is in a bucket, and this program was built without what speaks to one\n  hint: a \
             release has it, and so has `cargo build --release --features object-storage`; a folder \
             needs nothing"
    )]
    NoBuckets { url: String },
    #[error("the copy `{object}` is damaged: {why}")]
    DamagedCopy { object: String, why: String },
    #[error(
        "`{place}` holds copies of another run: that of step {step} is not of this one's ledger\n  hint: \
             name another place with `checkpoint.copy_to` or another run with `--name`, or delete them"
    )]
    OtherCopies { place: String, step: u64 },
    #[error("the checkpoint of step {step} is not on the ledger of its run any more")]
    NotOnLedger { step: u64 },
    #[error("there is no run in `{}`", path.display())]
    NoSuchRun { path: PathBuf },
    #[error("`{}` is in use by {}\n  hint: wait for it, or stop it; the lock ends with the \
             process", path.display(), pid.map_or("another process".to_owned(), |pid| format!("process \
                                                                                               {pid}")))]
    Locked { path: PathBuf, pid: Option<u32> },
}

/// Whether an error says that a file cannot grow: its disk is full, a quota is used up, or `ulimit -f` is
/// reached.
pub fn is_full(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(kind, StorageFull | QuotaExceeded | FileTooLarge)
}

fn needs(bytes: u64) -> String {
    if bytes > 0 { format!(", which needs {bytes} bytes") } else { String::new() }
}

/// How to make room for a file.
fn room(full: &io::Error) -> &'static str {
    match full.kind() {
        io::ErrorKind::FileTooLarge => "raise the limit of the size of files (`ulimit -f`)",
        _ => "free some space, or where `df -i` shows no inode left, delete some files",
    }
}

fn ranks_text(ranks: &[usize]) -> String {
    let shown: Vec<String> = ranks.iter().take(8).map(|rank| format!("rank {rank}")).collect();
    let more = if ranks.len() > 8 { format!(" and {} more", ranks.len() - 8) } else { String::new() };
    format!("{}{more}", shown.join(", "))
}

impl StoreError {
    /// Whether a file of a checkpoint is not what was written: cut short, changed or gone.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            StoreError::Missing { .. }
                | StoreError::BadTensorOf { .. }
                | StoreError::BadHeader { .. }
                | StoreError::WrongLength { .. }
                | StoreError::TensorDiffers { .. }
                | StoreError::WrongTensors { .. }
                | StoreError::PartDiffers { .. }
                | StoreError::RootDiffers { .. }
                | StoreError::DigestsDisagree { .. }
                | StoreError::BadManifest { .. }
                | StoreError::SealBroken { .. }
                | StoreError::WrongStep { .. }
        )
    }

    /// Turns an I/O error on `path` into an error that says what was being done.
    pub(super) fn io(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> StoreError {
        move |source| StoreError::Io { path: path.into(), doing, source }
    }

    /// The same for a write of `need_bytes` in all; a full disk is an error of its own.
    pub(super) fn write(path: &Path, need_bytes: u64) -> impl FnOnce(io::Error) -> StoreError {
        move |source| match source.kind() {
            kind if is_full(kind) => StoreError::DiskFull { path: path.into(), need_bytes, source },
            _ => StoreError::Io { path: path.into(), doing: "write", source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_of_a_full_disk_fits_a_run_that_keeps_all() {
        let error = StoreError::NoRoom { path: "a".into(), needed: 9, what: "two".into(), free: 3 };
        let text = error.to_string();
        assert!(text.contains("set `checkpoint.keep_last` above 0 or lower it"), "{text}");
    }
}
