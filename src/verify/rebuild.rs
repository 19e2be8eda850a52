//! `runner verify --rebuild`: files that are made from the ledger, written again where they are lost or
//! damaged.

use std::path::Path;

use super::Checks;
use super::files::reach;
use crate::proof::{Lock, ledger};
use crate::run::ProofRefusal;
use crate::run::error::refuse_ledger;
use crate::store::{self, RunFolder, checkpoint, derived};
use crate::units::noun;

/// Writes again what of `metrics.jsonl`, `metrics.parquet` and `main.log` disagrees with the ledger of the
/// run in `folder`, or is missing.
///
/// # Errors
/// Another process has the run; its ledger is damaged, is not that of its checkpoints, or is of an older
/// program and has no evaluations; a file cannot be written.
pub fn rebuild(folder: &Path, checks: &mut Checks<'_>) -> anyhow::Result<()> {
    let run = RunFolder::open(folder)?;
    let (log, entries) = ledger::read(&run.paths.ledger()).map_err(refuse_ledger)?;
    let mut newest = None;
    for (step, folder) in store::list(&run.paths.checkpoints())? {
        // A damaged manifest is reported by the checks that follow.
        let Ok(manifest) = checkpoint::inspect(&folder) else { continue };
        if !log.is_prefix(&manifest.ledger) {
            return Err(ProofRefusal(format!(
                "nothing is rebuilt from `{}`: the checkpoint of step {step} has another head\n  hint: \
                 restore the ledger from a copy",
                run.paths.ledger().display()
            ))
            .into());
        }
        newest = Some(manifest);
    }
    let lock = Lock::read(&run.paths.lock_file()).ok();
    let reach = reach(newest.as_ref(), lock.as_ref(), false);
    let checked = derived::check(&run.paths, &entries, reach);
    let lost: Vec<&str> =
        checked.iter().filter(|(_, result)| result.is_err()).map(|(file, _)| *file).collect();
    if lost.is_empty() {
        checks.passed("rebuild", "nothing to do: metrics and `main.log` are the ledger's");
        return Ok(());
    }
    if entries.iter().any(|entry| entry.evaluation.is_none()) {
        return Err(ProofRefusal(format!(
            "`{}` is of an older program and holds no evaluations: {} cannot be made from it\n  hint: \
             restore the files from a copy",
            run.paths.ledger().display(),
            lost.join(", ")
        ))
        .into());
    }
    let untimed = store::rebuild::rebuild(&run.paths, &entries, &lost)?;
    let timings = match untimed {
        0 => String::new(),
        steps => format!("; the timings of {steps} {} are lost", noun(steps, "step")),
    };
    checks.passed("rebuild", format!("{} written again from the ledger{timings}", lost.join(", ")));
    Ok(())
}
