//! The lock of a run against its checkpoints, its ledger and the experiment in its folder.
//!
//! Nothing ties `environment` and `source` to the run: they are what the program said of its machine and of
//! itself. The digests of evaluation data in `environment` are compared with the data, in [`super::files`].

use super::Checks;
use crate::experiment::{self, DeviceKind, Experiment, Loaded};
use crate::proof::ledger::{Log, NOT_FINITE, Note};
use crate::proof::lock::{Difference, DifferenceText, Lock, NOT_SET, differences};
use crate::proof::{Action, Entry, LockError, entry};
use crate::run::data::Data;
use crate::run::error::refuse_lock;
use crate::run::locked::is_mirrored;
use crate::run::{ProofRefusal, lock, outputs, recorded};
use crate::store::{Manifest, RunPaths};
use crate::units::noun;

/// What to add to a message that the experiment's device is not here.
pub(super) fn mirror_hint(lock: &Lock, experiment: &Experiment) -> &'static str {
    match is_mirrored(&lock.numerics) && experiment.device.kind != DeviceKind::Mirror {
        true => "\n  hint: `--set device.kind=mirror` makes the bits of a Hopper GPU on a CPU",
        false => "",
    }
}

/// The lock, if it is as it was written.
pub(super) fn read(paths: &RunPaths, newest: Option<&Manifest>, checks: &mut Checks<'_>) -> Option<Lock> {
    let path = paths.lock_file();
    match Lock::read(&path) {
        Ok(lock) => {
            checks.passed("lock", format!("numerics_id {}", lock.numerics_id()));
            Some(lock)
        }
        Err(why) => {
            // The newest checkpoint has a copy of the numerics, which may show the changed field.
            let damaged = matches!(&why, LockError::TableDiffers { table: "numerics", .. });
            let text = damaged.then(|| std::fs::read_to_string(&path).ok()).flatten();
            let content = text.and_then(|text| Lock::parse_unchecked(&text));
            let fields = newest.zip(content).map_or(String::new(), |(manifest, content)| {
                lock::list(&differences(&manifest.numerics, &content.numerics))
            });
            checks.failed(
                "lock",
                format!(
                    "{why}{}{fields}",
                    if fields.is_empty() { "" } else { "\n  against the newest checkpoint:" }
                ),
            );
            None
        }
    }
}

/// Where a run last went on with other numerics, by leave.
#[derive(Default)]
pub(super) struct Drift {
    /// The step before which it did; 0 when it never did.
    pub before: u64,
    /// Whether that step was made. A note is in no hash: what confirms it is its event in the entry of the
    /// step that followed.
    pub confirmed: bool,
    /// What changed, of all times, as the ledger says it, each with the step before which it did.
    changes: Vec<(u64, String)>,
}

impl Drift {
    /// Whether a key is among what changed.
    pub fn names(&self, key: &str) -> bool {
        self.changes.iter().any(|(_, text)| DifferenceText::of_key(text, key).is_some())
    }

    /// Whether the lock is of steps to come alone: what changed before them is in a note, and in no entry.
    pub fn is_pending(&self) -> bool {
        !self.confirmed && !self.changes.is_empty()
    }

    /// Whether a checkpoint of `step` may differ so from the lock: it has what the key was before it first
    /// changed from there on.
    fn allows(&self, step: u64, difference: &Difference) -> bool {
        let mut changes = self.changes.iter().filter(|(before, _)| *before >= step);
        let first = changes.find_map(|(_, text)| DifferenceText::of_key(text, &difference.key));
        first.is_some_and(|change| change.was(difference.was.as_ref()))
    }
}

/// The last drift of a ledger. That no step has followed a note is believed of a run that has not ended: its
/// lock is of steps to come.
pub(super) fn last_drift(notes: &[Note], entries: &[Entry], lock: &Lock) -> Drift {
    let of = |note: &Note| {
        let next = usize::try_from(note.after).ok().and_then(|at| entries.get(at));
        let confirmed = next.is_some_and(|next| next.drifts().next().is_some());
        let is_pending = note.after == entries.len() as u64 && lock.outputs.is_empty();
        (confirmed || is_pending).then_some((note.after, confirmed))
    };
    let is_drift = |note: &&Note| note.kind == "drift";
    let last = notes.iter().filter(is_drift).filter_map(of).max_by_key(|(before, _)| *before);
    let Some((before, confirmed)) = last else { return Drift::default() };
    let of_entry = |entry: &Entry| {
        let drifts = entry.drifts();
        drifts.map(|text| (entry.step, text.to_owned())).collect::<Vec<_>>()
    };
    let mut changes: Vec<(u64, String)> = entries.iter().flat_map(of_entry).collect();
    if !confirmed {
        let pending = notes.iter().filter(is_drift).filter(|note| note.after == before);
        changes.extend(pending.map(|note| (before, note.text.clone())));
    }
    Drift { before, confirmed, changes }
}

/// A lock has outputs where a run has a usable model: its last step and evaluation are finite, no note says
/// otherwise, and no parameter of its newest checkpoint, such as `parameter`, is not finite.
pub(super) fn usable_end(
    lock: &Lock,
    notes: &[Note],
    entries: &[Entry],
    parameter: Option<&str>,
    checks: &mut Checks<'_>,
) {
    if lock.outputs.is_empty() {
        return;
    }
    let mut noted = notes.iter().filter(|note| note.after == entries.len() as u64 && note.kind == NOT_FINITE);
    let of_weights = || parameter.map(|name| format!("a number of `{name}` is not finite"));
    let why = entry::not_finite_at_end(entries).or(noted.next_back().map(|note| note.text.clone()));
    let why = why.or_else(of_weights);
    if let Some(why) = why {
        let what = "the lock has the outputs of a run that ended well, and it ended in numbers that are not \
                    finite";
        checks.failed("end of the run", format!("{what}: {why}\n  do: one of them was edited"));
    }
}

/// Every checkpoint was made with the numerics of the lock, but for those before drift that was allowed.
pub(super) fn numerics(lock: &Lock, manifests: &[Manifest], drift: &Drift, checks: &mut Checks<'_>) {
    let differing = manifests.iter().filter_map(|manifest| {
        let changed = differences(&manifest.numerics, &lock.numerics);
        let named = |difference: &Difference| drift.allows(manifest.step, difference);
        let (named, foreign): (Vec<_>, Vec<_>) = changed.into_iter().partition(named);
        // What nobody allowed to change is the fault, and the rest is not listed beside it.
        let (is_allowed, listed) = if foreign.is_empty() { (true, named) } else { (false, foreign) };
        (!listed.is_empty()).then_some((manifest.step, is_allowed, listed))
    });
    let differing: Vec<(u64, bool, Vec<Difference>)> = differing.collect();
    // What many checkpoints in turn have otherwise is listed once.
    for same in differing.chunk_by(|a, b| (a.1, &a.2) == (b.1, &b.2)) {
        let steps: Vec<String> = same.iter().map(|(step, ..)| step.to_string()).collect();
        let check = format!("numerics of {} {}", noun(steps.len(), "checkpoint"), steps.join(", "));
        let (_, is_allowed, changed) = &same[0];
        let changed = lock::list(changed);
        match (is_allowed, drift.confirmed) {
            (true, true) => {
                checks.skipped(&check, format!("the ledger notes that drift was allowed:{changed}"));
            }
            (true, false) => checks.skipped(
                &check,
                format!(
                    "the lock is of the steps to come: the ledger notes that drift was allowed, and no step \
                     has been made since:{changed}"
                ),
            ),
            (false, _) => checks.failed(&check, format!("not those of the lock:{changed}")),
        }
    }
}

/// The experiment in the folder has the keys of the lock's `config` and `numerics`, and the name that each
/// checkpoint has. It is compared as the run wrote it, without the environment of this process.
pub(super) fn experiment(recorded: &Loaded, lock: &Lock, manifests: &[Manifest], checks: &mut Checks<'_>) {
    let changed = recorded::settings(recorded, lock);
    let name = &recorded.experiment.name;
    let other = manifests.iter().find(|manifest| manifest.experiment != *name);
    match (changed.is_empty(), other) {
        (true, None) => checks.passed("experiment", format!("{} keys are the lock's", lock.config.len())),
        (false, _) => checks.failed(
            "experiment",
            format!(
                "`experiment.toml` is not what the lock holds (lock and experiment):{}\n  do: one of them \
                 was edited; restore it from a copy",
                lock::list(&changed)
            ),
        ),
        (true, Some(manifest)) => checks.failed(
            "experiment",
            format!(
                "it is called `{name}`; the checkpoint of step {} is of `{}`\n  do: one of them was edited, \
                 or is of another run; restore it from a copy",
                manifest.step, manifest.experiment
            ),
        ),
    }
}

/// The lock names all that its settings have the run measured on, whether that is here or not.
pub(super) fn measure(lock: &Lock, checks: &mut Checks<'_>) {
    let left_out = recorded::left_out(lock);
    if !left_out.is_empty() {
        let what = format!(
            "the lock does not name all that the run was measured on ({}): that was taken out of it\n  do: \
             restore the lock from a copy",
            left_out.join(", ")
        );
        checks.failed("evaluation data", what);
    }
}

/// Refuses a run whose experiment is not what its lock holds.
///
/// # Errors
/// The first that differs, by key; a file that cannot be read.
pub fn require_experiment(paths: &RunPaths) -> anyhow::Result<()> {
    let recorded = experiment::load_recorded(&paths.experiment())?;
    let changed = recorded::settings(&recorded, &Lock::read(&paths.lock_file()).map_err(refuse_lock)?);
    match changed.is_empty() {
        true => Ok(()),
        false => Err(ProofRefusal(format!(
            "`{}` is not what the run's lock holds (lock and experiment):{}\n  hint: one of them was edited; \
             restore it from a copy",
            paths.experiment().display(),
            lock::list(&changed)
        ))
        .into()),
    }
}

/// The outputs in the lock are those of the newest checkpoint and of the ledger's end; without a checkpoint,
/// of the ledger.
pub(super) fn outputs(
    lock: &Lock,
    newest: Option<&Manifest>,
    (log, entries): (&Log, &[Entry]),
    steps: u64,
    checks: &mut Checks<'_>,
) {
    let head = log.head();
    if lock.outputs.is_empty() {
        let saved = newest.map_or(0, |manifest| manifest.step);
        if saved < steps && entry::steps(entries).len() as u64 >= steps {
            checks.skipped(
                "outputs",
                format!(
                    "all {steps} steps are in the ledger, the lock has no outputs, and no checkpoint here \
                     confirms the entries after step {saved}: the run was killed at its end, or its last \
                     checkpoint was removed\n  do: `runner resume` makes these steps again"
                ),
            );
        }
        if newest.is_some_and(|manifest| manifest.step == steps) {
            checks.skipped(
                "outputs",
                "all steps are made, and the lock has no outputs: the run was killed at its end, ended in \
                 numbers that are not finite, or they were removed\n  do: `runner resume` writes them",
            );
        }
        return;
    }
    let of_ledger = || outputs::of_ledger(log, entries);
    let found = newest.map_or_else(of_ledger, |manifest| outputs::of(manifest, head));
    let changed = differences(&lock.outputs, &found);
    let other = lock.outputs.get("step").filter(|step| changed.is_empty() && **step != steps.to_string());
    if let Some(step) = other {
        let what = format!(
            "the lock's are of step {step}, and the run ends at step {steps}\n  do: one of lock and \
             experiment was edited; restore it from a copy"
        );
        return checks.failed("outputs", what);
    }
    if newest.is_none() && changed.is_empty() {
        checks.skipped(
            "outputs",
            format!(
                "no checkpoint is here, so the state at the end is not compared; the ledger is the lock's, \
                 {} {}, head {}",
                head.size,
                noun(head.size, "entry"),
                head.root
            ),
        );
        return;
    }
    let unbound =
        |difference: &Difference| difference.was.is_none() && outputs::is_of_the_end(&difference.key);
    if changed.is_empty() {
        let entries = noun(head.size, "entry");
        checks.passed("outputs", format!("{} {entries}, head {}", head.size, head.root));
    } else if changed.iter().all(unbound) {
        checks.skipped(
            "outputs",
            "the lock is older and has no head behind the last step: the evaluation there is bound to no \
             other file",
        );
    } else {
        checks.failed(
            "outputs",
            format!("the lock's are not those of checkpoints and ledger:{}", lock::list(&changed)),
        );
    }
}

/// Steps before which the experiment measures and the ledger has no figure are named. That alone is no fault:
/// a resume may set another `eval.every` or turn a measure on, and the lock has the last settings alone.
pub(super) fn evaluations(experiment: &Experiment, lock: &Lock, entries: &[Entry], checks: &mut Checks<'_>) {
    const SHOWN: usize = 12;
    let every = experiment.eval.every;
    let is_set = |key: &str| lock.environment.get(key).is_some_and(|set| set != NOT_SET);
    let (validated, scored) = (is_set(lock::VALIDATION_SET), is_set(lock::TASKS));
    // Entries of version 1 do not say what was measured.
    let lacks = |entry: &&Entry| {
        entry.step.checked_rem(every) == Some(0)
            && entry.evaluation.is_some_and(|it| {
                it.is_empty() || (validated && it.validation.is_none()) || (scored && it.hellaswag.is_none())
            })
    };
    let missing: Vec<String> =
        entry::steps(entries).iter().filter(lacks).map(|entry| entry.step.to_string()).collect();
    if missing.is_empty() {
        return;
    }
    let more = match missing.len() {
        len if len > SHOWN => format!(" and {} more", len - SHOWN),
        _ => String::new(),
    };
    let shown = &missing[..missing.len().min(SHOWN)];
    checks.skipped(
        "evaluations",
        format!(
            "`eval.every` is {every}, and the ledger lacks what is measured before the steps {}{more}: it \
             was taken out, or the settings of evaluations were others then",
            shown.join(", ")
        ),
    );
}

/// A run that ended measured its last weights. No checkpoint has a head that covers that entry, so that a
/// ledger without it agrees with all of them.
pub(super) fn last_evaluation(lock: &Lock, data: &Data, entries: &[Entry], checks: &mut Checks<'_>) {
    let measured = data.validation.is_some() || data.hellaswag.is_some();
    let cut = entries.last().is_some_and(|last| last.action != Action::Evaluate && last.evaluation.is_some());
    if measured && cut && !lock.outputs.is_empty() {
        checks.failed(
            "last evaluation",
            "the run has ended, and the ledger has no evaluation after its last step\n  do: restore the \
             ledger from a copy; `runner eval` measures the weights again",
        );
    }
}
