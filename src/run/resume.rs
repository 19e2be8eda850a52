//! What a resumed run was: its checkpoint, its lock, and what has changed since.

use std::io::ErrorKind;

use super::destination::Destination;
use super::error::{ProofRefusal, refuse_lock};
use super::lock::{list, older_arithmetic};
use super::messages::{Message, Report};
use crate::proof::LockError;
use crate::proof::ledger::RESUME;
use crate::proof::lock::{Difference, Lock, Table, differences};
use crate::store::{self, Manifest, RunPaths, checkpoint};
use crate::train::{Recorder, RunError};

/// Where a resumed run goes on.
pub struct Resume {
    /// The newest whole checkpoint; none starts at step 0.
    pub found: Option<store::Loaded>,
    /// Whether what the bits depend on may have changed.
    pub allow_drift: bool,
    /// Whether a key was set that the run's own experiment does not have so.
    pub edited: bool,
}

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
    /// Numerics.
    drift: Vec<Difference>,
    /// What changes no bit.
    elsewhere: Vec<Difference>,
}

impl Past {
    /// Reads the lock of the run that `resume` goes on with.
    ///
    /// # Errors
    /// The lock is damaged. One that is missing is made anew: the checkpoint has its numerics too.
    pub fn of(destination: &Destination, resume: Option<Resume>) -> anyhow::Result<Past> {
        let (Some(Resume { found, allow_drift, edited }), Destination::Open(folder)) = (resume, destination)
        else {
            return Ok(Past::default());
        };
        let lock = match Lock::read(&folder.paths.lock_file()) {
            Ok(lock) => Some(lock),
            Err(LockError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => None,
            Err(damaged) => return Err(refuse_lock(damaged)),
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
        let elsewhere = self.lock.as_ref().map_or_else(Vec::new, |lock| {
            let mut elsewhere = differences(&lock.environment, &here.environment);
            elsewhere.extend(differences(&lock.source, &here.source));
            elsewhere
        });
        Ok(Changed { drift, elsewhere })
    }
}

impl Changed {
    /// Reports what differs and writes it into the ledger: drift into the next entry's hash, the rest as
    /// notes. `resumed` is the step that a resumed run goes on at.
    pub fn write(
        &self,
        recorder: &mut Recorder,
        resumed: Option<u64>,
        report: Report,
    ) -> Result<(), RunError> {
        if let Some(step) = resumed {
            recorder.records.note(RESUME, &format!("at step {step}"))?;
        }
        if !self.elsewhere.is_empty() {
            report.tell(&Message::MadeElsewhere { lock: None, differences: &self.elsewhere });
        }
        for difference in &self.elsewhere {
            recorder.records.note("environment", &difference.to_string())?;
        }
        for difference in &self.drift {
            // A run that is at its end has no next entry; the note is there at once.
            recorder.records.note("drift", &difference.to_string())?;
            recorder.changes.push(format!("drift {difference}"));
        }
        Ok(())
    }
}

/// What a run ended in, from its newest checkpoint.
fn outputs(paths: &RunPaths) -> store::Result<Table> {
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
