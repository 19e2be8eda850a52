//! A run against something that was kept elsewhere: the head of its ledger, a state root, a lock or golden
//! roots.
//!
//! The files of a run show that they agree with each other. Whoever can write all of them can make others
//! that agree too; only what they cannot write shows that these are the same.

use std::path::{Path, PathBuf};

use super::Checks;
use super::files::WholeRun;
use super::golden::Golden;
use crate::proof::Hash;
use crate::proof::lock::{Difference, Lock, differences};
use crate::run::error::refuse_lock;
use crate::run::lock::list;
use crate::run::{UsageError, require_usage};
use crate::units;

/// What a run must have come to.
pub enum Anchor {
    /// The head of its ledger, or a state root.
    Hash(Hash),
    /// The numerics and outputs of a lock.
    Lock(PathBuf, Box<Lock>),
    /// State roots and tensors, and the numerics where the file names them.
    Golden(PathBuf, Golden),
}

impl Anchor {
    /// A hash as 64 hexadecimal digits, small or capital, or the path of a lock or of golden roots, of which
    /// the last may stand alone, and be a head.
    ///
    /// # Errors
    /// It is neither a hash nor a file that is there, or the file is damaged or neither of the two.
    pub fn read(what: &Path) -> anyhow::Result<Anchor> {
        if let Some(hash) = what.to_str().and_then(|text| text.to_ascii_lowercase().parse().ok()) {
            return Ok(Anchor::Hash(hash));
        }
        require_usage(what.is_file(), || {
            format!(
                "`--expect {}` is neither a file nor a hash\n  hint: a head or a state root has 64 \
                 hexadecimal digits; `runner verify RUN` prints both",
                what.display()
            )
        })?;
        let text = std::fs::read_to_string(what).map_err(|why| {
            UsageError(format!(
                "cannot read `{}`, which `--expect` names: {why}\n  hint: it takes a lock or golden roots",
                what.display()
            ))
        })?;
        if text.contains("format = \"runner/lock/") {
            return Ok(Anchor::Lock(what.into(), Box::new(Lock::parse(what, &text).map_err(refuse_lock)?)));
        }
        Ok(Anchor::Golden(what.into(), Golden::parse(what, &text)?))
    }

    /// Compares a run whose files are whole.
    pub fn verify(&self, run: &WholeRun, checks: &mut Checks<'_>) {
        match self.compare(run) {
            Ok(what) => checks.passed("expected", what),
            Err(why) => checks.failed("expected", why),
        }
    }

    /// What agrees, or what differs.
    fn compare(&self, run: &WholeRun) -> Result<String, String> {
        match self {
            Anchor::Hash(hash) => of_hash(*hash, run),
            Anchor::Lock(path, lock) => {
                let numerics = differences(&lock.numerics, &run.lock.numerics);
                // A lock without outputs, or with those of an older program, expects less.
                let outputs = differences(&lock.outputs, &run.lock.outputs);
                let outputs = outputs.into_iter().filter(|difference| difference.was.is_some());
                let changed: Vec<Difference> = numerics.into_iter().chain(outputs).collect();
                let what = match lock.outputs.contains_key("end_root") {
                    true => "numerics and outputs, every entry of the ledger included, are",
                    false if lock.outputs.is_empty() => "the numerics are",
                    false => "numerics and outputs, without the evaluation after the last step, are",
                };
                match changed.is_empty() {
                    true => Ok(format!("{what} those of `{}`", path.display())),
                    false => Err(format!("not what `{}` locks:{}", path.display(), list(&changed))),
                }
            }
            Anchor::Golden(path, golden) => match golden.compare(&run.entries, &run.manifests) {
                Ok(compared) => {
                    require_numerics(golden, run, path)?;
                    let (step, root) = compared.last;
                    let state = held(root, run).filter(|(held_at, _)| *held_at == step);
                    state.ok_or_else(|| of_ledger_alone(root, step))?;
                    Ok(format!("those of `{}`: {compared}", path.display()))
                }
                // A file with nothing but a hash may be a head's.
                Err(_) if golden.last.is_some_and(|hash| run.log.head().root == hash) => {
                    of_hash(run.log.head().root, run)
                }
                Err(why) => Err(format!("not the roots of `{}`: {why}", path.display())),
            },
        }
    }
}

/// Golden roots are of one set of numerics, where their file names it.
fn require_numerics(golden: &Golden, run: &WholeRun, path: &Path) -> Result<(), String> {
    let here = run.lock.numerics_id();
    golden.numerics_id.filter(|expected| *expected != here).map_or(Ok(()), |expected| {
        Err(format!(
            "the roots are those of `{}`, whose numerics_id is {expected}; the run's is {here}\n  do: keep \
             only the lines of roots where other numerics are meant to give the same bits",
            path.display()
        ))
    })
}

/// The step after which a state has this root, and what shows it: a checkpoint here, of which every byte was
/// read, or the outputs of the lock.
fn held(root: Hash, run: &WholeRun) -> Option<(u64, &'static str)> {
    if let Some(manifest) = run.manifests.iter().rev().find(|manifest| manifest.state_root == root) {
        return Some((manifest.step, ""));
    }
    let outputs = &run.lock.outputs;
    let is_output = outputs.get("state_root") == Some(&root.to_string());
    let step = outputs.get("step").filter(|_| is_output)?.parse().ok()?;
    Some((step, ", as lock and ledger say: its checkpoint is not here"))
}

/// Why a root that no state here has is not the expected one.
fn of_ledger_alone(root: Hash, step: u64) -> String {
    format!(
        "the ledger alone has {root}, as the state root at step {step}: no checkpoint of it is here, nor \
         have the lock's outputs it\n  do: expect the root of a checkpoint that is here, or the ledger's head"
    )
}

/// Finds a hash among the heads that the ledger has had, the last first, and among the state roots.
fn of_hash(hash: Hash, run: &WholeRun) -> Result<String, String> {
    let head = run.log.head();
    if head.root == hash {
        return Ok(format!("it is the head of the whole ledger, {}", units::counted(head.size, "entry")));
    }
    if let Some((step, shown)) = held(hash, run) {
        return Ok(format!(
            "it is the state root at step {step}{shown}; a root says nothing of losses and scores, the head \
             {} does",
            head.root
        ));
    }
    if let Some(size) = run.log.size_at(&hash) {
        let later = head.size - size;
        let entries = units::noun(size, "entry");
        return Ok(format!("it is the head after {size} {entries}; it does not cover the {later} behind"));
    }
    if let Some(entry) = run.entries.iter().rev().find(|entry| entry.root == Some(hash)) {
        return Err(of_ledger_alone(hash, entry.step + 1));
    }
    let root = run.entries.iter().rev().find_map(|entry| entry.root);
    Err(format!(
        "{hash} is neither a head of the ledger nor a state root of this run; its head is {}, its last root \
         {}",
        head.root,
        root.map_or("none".to_owned(), |root| root.to_string())
    ))
}
