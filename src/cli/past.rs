//! What a resumed run was: its checkpoint, its lock, and what has changed since.

use super::exit::ProofRefusal;
use super::locking::{self, list, older_arithmetic};
use super::session::{Place, Resume};
use crate::proof::lock::{Difference, Lock, Table, differences};
use crate::proof::{LedgerError, LockError};
use crate::store::{self, Manifest, RunPaths, checkpoint};
use crate::train::RunError;
use crate::train::run::Records;

/// The past of a run; empty for a new one.
#[derive(Default)]
pub struct Past {
    pub resumed: bool,
    /// Whether its experiment is not what it was.
    pub edited: bool,
    /// The newest whole checkpoint.
    pub found: Option<store::Loaded>,
    lock: Option<Lock>,
    allow_drift: bool,
}

/// What differs between the past and now, allowed.
#[derive(Default)]
pub struct Changed {
    drift: Vec<Difference>,
    told: Vec<Difference>,
}

impl Past {
    /// Reads the lock of the run that `resume` goes on with.
    ///
    /// # Errors
    /// The lock is damaged. One that is missing is made anew: the checkpoint has its numerics too.
    pub fn of(place: &Place, resume: Option<Resume>) -> anyhow::Result<Past> {
        let (Some(Resume { found, allow_drift, edited }), Place::Open(folder)) = (resume, place) else {
            return Ok(Past::default());
        };
        let lock = match Lock::read(&folder.paths.lock_file()) {
            Ok(lock) => Some(lock),
            Err(LockError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
            Err(damaged) => return Err(locking::refuse(damaged)),
        };
        Ok(Past { resumed: true, edited, found, lock, allow_drift })
    }

    /// The numerics that the run was made with: those of the checkpoint, which decide, or of the lock.
    pub fn numerics(&self) -> Option<&Table> {
        let lock = self.lock.as_ref().map(|lock| &lock.numerics);
        self.found.as_ref().map(|(manifest, _)| &manifest.numerics).or(lock)
    }

    /// The lock with the origins of the first start: a resume reads the run's own resolved file.
    pub fn keep_config(&self, here: Lock) -> Lock {
        match &self.lock {
            Some(lock) if !self.edited => Lock { config: lock.config.clone(), ..here },
            _ => here,
        }
    }

    /// What has changed since. Without leave, other numerics are refused.
    pub fn changed(&self, here: &Lock) -> Result<Changed, ProofRefusal> {
        let drift = self.numerics().map_or_else(Vec::new, |numerics| differences(numerics, &here.numerics));
        if !drift.is_empty() && !self.allow_drift {
            let since = match &self.found {
                Some((manifest, _)) => format!("its checkpoint of step {}", manifest.step),
                None => "it was locked".into(),
            };
            return Err(ProofRefusal(format!(
                "what the bits of this run depend on has changed since {since}:{}{}\n  hint: undo the change, or go on with `--allow-drift`, which is written into the ledger",
                list(&drift),
                self.numerics().map_or_else(String::new, |was| older_arithmetic(was, &here.numerics))
            )));
        }
        let told = self.lock.as_ref().map_or_else(Vec::new, |lock| {
            let mut told = differences(&lock.environment, &here.environment);
            told.extend(differences(&lock.source, &here.source));
            told
        });
        Ok(Changed { drift, told })
    }
}

impl Changed {
    /// Tells the user and writes it into the ledger: drift into the next entry's hash, the rest as notes.
    /// `resumed` is the step that a resumed run goes on at.
    pub fn write(&self, records: &mut Records, resumed: Option<u64>) -> Result<(), RunError> {
        if let Some(step) = resumed {
            records.ledger.note("resume", &format!("at step {step}"))?;
            records.pending.resumed = true;
        }
        if !self.told.is_empty() {
            anstream::eprintln!("same numerics, made elsewhere before:{}", list(&self.told));
        }
        for difference in &self.told {
            records.ledger.note("environment", &difference.to_string())?;
        }
        for difference in &self.drift {
            // A run that is at its end has no next entry; the note is there at once.
            records.ledger.note("drift", &difference.to_string())?;
            records.pending.changes.push(format!("drift {difference}"));
        }
        Ok(())
    }
}

/// A ledger that is not what the checkpoint says is a mismatch, not a failure of the system.
pub fn refuse_ledger(error: LedgerError) -> anyhow::Error {
    match error {
        LedgerError::Io { .. } => error.into(),
        damaged => ProofRefusal(damaged.to_string()).into(),
    }
}

/// What a run ended in, from its newest checkpoint.
pub fn outputs(paths: &RunPaths) -> store::Result<Table> {
    let Some((_, folder)) = store::list(&paths.checkpoints())?.pop() else { return Ok(Table::new()) };
    Ok(outputs_of(&checkpoint::inspect(&folder)?))
}

/// The outputs that a last checkpoint stands for.
pub fn outputs_of(manifest: &Manifest) -> Table {
    let pairs = [
        ("step", manifest.step.to_string()),
        ("tokens", manifest.tokens.to_string()),
        ("state_root", manifest.state_root.to_string()),
        ("ledger_size", manifest.ledger.size.to_string()),
        ("ledger_root", manifest.ledger.root.to_string()),
    ];
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// Adds a finished run's outputs to its lock and writes it.
pub fn with_outputs(lock: Lock, paths: &RunPaths) -> store::Result<Lock> {
    let lock = Lock { outputs: outputs(paths)?, ..lock };
    store::atomic::write(&paths.lock_file(), lock.to_text().as_bytes())?;
    Ok(lock)
}
