//! A lock that a run must match.

use std::path::Path;

use super::error::{ProofRefusal, refuse_lock};
use super::lock::{RANKS, list, older_arithmetic};
use super::messages::{Message, Report};
use super::outputs::is_of_the_end;
use crate::experiment::ShippedExperiment;
use crate::proof::lock::{Difference, Lock, Table, differences};

/// A lock that a run must match.
pub struct Expected {
    pub lock: Lock,
    /// Its name in messages.
    pub from: String,
    /// What to do where the lock may be passed over or made anew.
    pub remedy: String,
}

impl Expected {
    /// Reads a lock file, to which a run of `experiment` is held; damage is a refusal.
    pub fn read(path: &Path, experiment: &Path) -> anyhow::Result<Expected> {
        let lock = Lock::read(path).map_err(refuse_lock)?;
        // A shipped experiment goes by its bare name, and its lock stands in the working folder.
        let bare = Path::new(experiment.file_stem().unwrap_or_default());
        let beside = |experiment: &Path| path == experiment.with_extension("lock.toml");
        let by_name = ShippedExperiment::named(bare).is_some() && !beside(experiment);
        let experiment = if by_name && (beside(bare) || !experiment.is_file()) { bare } else { experiment };
        let (file, of) = (path.display(), experiment.display());
        let remedy = match beside(experiment) {
            true => format!("`--no-lock` runs without it; `runner lock {of} --overwrite` locks anew"),
            false => format!("`runner lock {of} --out {file} --overwrite` locks anew"),
        };
        Ok(Expected { lock, from: format!("`{file}`"), remedy })
    }

    /// Refuses other numerics, key by key.
    pub fn require(&self, here: &Lock) -> Result<(), ProofRefusal> {
        let changed = differences(&self.lock.numerics, &here.numerics);
        if changed.is_empty() {
            return Ok(());
        }
        Err(ProofRefusal(format!(
            "the bits that {} locks cannot be made here:{}{}\n  hint: undo the change, or run on a \
             machine that has what is locked; {}",
            self.from,
            list(&changed),
            older_arithmetic(&self.lock.numerics, &here.numerics),
            self.remedy
        )))
    }

    /// What differs without changing a bit. A lock that no run has made says nothing of ranks.
    pub fn made_elsewhere(&self, here: &Lock) -> Vec<Difference> {
        let mut found = differences(&self.lock.environment, &here.environment);
        found.extend(differences(&self.lock.source, &here.source));
        found.retain(|difference| difference.was.is_some() || difference.key != RANKS);
        found
    }

    /// Refuses outputs that differ from the locked ones, if the lock has any.
    pub fn require_outputs(&self, outputs: &Table, report: Report) -> Result<(), ProofRefusal> {
        let (locked, here) = (&self.lock.outputs, outputs);
        // A lock of an older program has fewer outputs.
        let changed = differences(locked, here).into_iter().filter(|difference| difference.was.is_some());
        let changed: Vec<Difference> = changed.collect();
        if locked.is_empty() || changed.is_empty() {
            return Ok(());
        }
        if changed.iter().all(|changed| changed.key == "ledger_root" || is_of_the_end(&changed.key)) {
            // The state is the locked one. The ledger has evaluations, on which no bit of it depends.
            report.tell(&Message::OtherEvaluations(&self.from));
            return Ok(());
        }
        Err(ProofRefusal(format!(
            "the numerics are those of {}, the outputs are not:{}\n  hint: `runner verify` this run with \
             `--replay`; if it cannot repeat itself either, suspect the hardware; if it can, the lock is \
             of a run that went on under other settings (`--allow-drift`: its ledger says so), which no run \
             from step 0 repeats, or a change of the program has changed bits without saying so",
            self.from,
            list(&changed)
        )))
    }
}
