//! The past of a resumed run: its checkpoint, its lock, and what has changed since.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::destination::Destination;
use super::error::{ProofRefusal, UsageError, refuse_ledger, refuse_lock, refuse_without_checkpoint};
use super::events;
use super::expected::Expected;
use super::find::state_file;
use super::fit::{SavedState, Successor};
use super::initial::INIT_KEYS;
use super::lock::{TASKS, VALIDATION_SET, is_same_set, list, older_arithmetic, resolved_numerics};
use super::messages::{Message, Report};
use super::recorded::{self, origin, other_value};
use crate::experiment::{self, Experiment, Loaded, Origin, flatten};
use crate::ops::Dtype;
use crate::proof::ledger::{self, Log, Note, RESUME};
use crate::proof::lock::{Difference, Lock, Table, differences};
use crate::proof::{Entry, Hash, Head, LockError, entry};
use crate::store::checkpoint;
use crate::store::{self, Broken, Info, Manifest, RunPaths};
use crate::train::run::INIT_UPDATES;
use crate::train::{Recorder, RunError};
use crate::units::noun;

/// Keys that act before the first step alone, beside what `model.init` names.
const OF_THE_BEGINNING: [&str; 3] = ["data.offset", "optimizer.from_init", INIT_UPDATES];

/// Keys by which the sequences of the steps so far are counted.
const SIZES: [&str; 4] = ["batch.tokens", "batch.tokens_start", "batch.tokens_warmup_steps", "batch.seq_len"];

/// What a ledger calls the lock of its run.
const LOCK: &str = "lock.toml";

/// What drift begins with that is a lock made again, and no change of numerics.
pub const LOST_LOCK: &str = "`lock.toml` was missing";

/// The checkpoint and settings of a resume.
pub struct Resume {
    /// The newest whole checkpoint; none starts at step 0.
    pub found: Option<store::LoadedCheckpoint>,
    /// Whether what the bits depend on may have changed.
    pub allow_drift: bool,
    /// Whether a key was set to another value than in the run's own experiment.
    pub edited: bool,
}

/// The past of a run; empty for a new one.
#[derive(Default)]
pub struct Past {
    pub resumed: bool,
    /// Whether its experiment has changed.
    pub edited: bool,
    /// The newest whole checkpoint.
    pub found: Option<store::LoadedCheckpoint>,
    /// The file of its state; empty without one.
    state_file: PathBuf,
    lock: Option<Lock>,
    /// Whether it has trained and its lock is missing.
    lost_lock: bool,
    allow_drift: bool,
    /// What the steps up to the checkpoint were measured on, as the lock has it or had it.
    measured_on: Table,
}

/// Allowed differences from the past.
#[derive(Default)]
pub struct Changed {
    /// Numerics, and a lock that is missing.
    drift: Vec<Difference>,
    /// Differences that change no bit.
    elsewhere: Vec<Difference>,
}

impl Past {
    /// Reads the lock of the run that `resume` goes on with.
    ///
    /// # Errors
    /// The lock is damaged. One that is missing is made again, as [`require_lock`] allows.
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
        let file = found.as_ref().map(|(manifest, _)| state_file(&folder.paths, manifest.step));
        let state_file = file.unwrap_or_default();
        let from = found.as_ref().map_or(0, |(manifest, _)| manifest.step);
        let measured_on = lock.as_ref().map_or(Table::new(), |lock| measured_on(&folder.paths, from, lock));
        let made = found.as_ref().map_or(0, |(manifest, _)| manifest.ledger.size);
        let lost_lock = match lock {
            Some(_) => was_made_again(&folder.paths, made),
            None => has_trained(&folder.paths, found.is_some()),
        };
        Ok(Past { resumed: true, edited, found, state_file, lock, lost_lock, allow_drift, measured_on })
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

    /// Whether the run has its outputs, after as many steps.
    fn ended_at(&self, steps: &str) -> bool {
        let of_lock = self.lock.as_ref().and_then(|lock| lock.outputs.get("step"));
        let saved = self.found.as_ref().map(|(manifest, _)| manifest.step.to_string());
        of_lock.is_some_and(|step| step == steps) && saved.is_some_and(|step| step == steps)
    }

    /// A run does not end before what it has made. A finished run takes no other value: its files would tell
    /// of settings that no step was made with.
    pub fn require_steps_left(&self, loaded: &Loaded) -> Result<(), UsageError> {
        let steps = loaded.experiment.schedule.steps;
        if let Some((Manifest { step, .. }, _)) = self.found.as_ref().filter(|(saved, _)| saved.step > steps)
        {
            return Err(UsageError(format!(
                "`schedule.steps` is {steps}, and the run has made {step} {}\n  hint: set it to {step} or \
                 more; another run may start from an earlier checkpoint, by `model.init = \"run:NAME@STEP\"`",
                noun(*step, "step")
            )));
        }
        let other = self.lock.as_ref().filter(|_| self.ended_at(&steps.to_string()));
        other.and_then(|lock| other_value(lock, loaded)).map_or(Ok(()), |(key, value)| {
            Err(UsageError(format!(
                "the run ended at step {steps}: no step is left that `{key} = {value}` could change\n  hint: \
                 `--set schedule.steps=N --allow-drift` makes steps up to N"
            )))
        })
    }

    /// Refuses what no `--allow-drift` makes right: which sequence of which source stands at a position, and
    /// so how much was read of each, follows from one set of weights and one size of a step from step 0 on.
    fn require_one_mixture(&self, drift: &[Difference], here: &Lock) -> Result<(), ProofRefusal> {
        let is_weight = |key: &str| key.starts_with("data.mix.") && key.ends_with(".weight");
        let mixed = |numerics: &Table| numerics.keys().any(|key| is_weight(key));
        if !mixed(&here.numerics) && !self.numerics().is_some_and(mixed) {
            return Ok(());
        }
        let of_positions =
            |key: &str| is_weight(key) || SIZES.contains(&key) || key == "data.overfit_single_batch";
        drift.iter().find(|field| of_positions(&field.key)).map_or(Ok(()), |field| {
            Err(ProofRefusal(format!(
                "a run has one mixture: {field}\n  hint: what it has read of each source follows from \
                 weights that hold from step 0; start another run from its weights, by \
                 `model.init = \"run:NAME@STEP\"`"
            )))
        })
    }

    /// Refuses what no `--allow-drift` makes right: another size of a step, by which the tokens read so far
    /// and the place in the data are counted, and a change with which no step would be made.
    fn require_acting_drift(&self, drift: &[Difference], here: &Lock) -> Result<(), ProofRefusal> {
        let Some((manifest, _)) = &self.found else { return Ok(()) };
        if let Some(field) = drift.iter().find(|field| SIZES.contains(&field.key.as_str())) {
            return Err(ProofRefusal(format!(
                "a run has one size of a step: {field}\n  hint: its place in the data and its count of \
                 tokens follow from it; another run goes on with another, by `model.init = \"run:NAME@{0}\"` \
                 and `optimizer.from_init = true`",
                manifest.step
            )));
        }
        let is_end = here.numerics.get("schedule.steps") == Some(&manifest.step.to_string());
        // What has ended is refused by [`Past::require_steps_left`].
        let is_end = is_end && self.allow_drift && !self.ended_at(&manifest.step.to_string());
        match drift.first().filter(|_| is_end) {
            None => Ok(()),
            Some(field) => Err(ProofRefusal(format!(
                "the run has made its {} {}: no step is left that {field} could change\n  hint: undo the \
                 change, or set `schedule.steps` to more",
                manifest.step,
                noun(manifest.step, "step")
            ))),
        }
    }

    /// Refuses a checkpoint that a trainer of the experiment cannot take, with parameters stored as `param`.
    pub fn require_fit(&self, experiment: &Experiment, param: Dtype) -> Result<(), UsageError> {
        let Some((manifest, state)) = &self.found else { return Ok(()) };
        let infos: Vec<Info> = state.iter().map(Info::of).collect();
        let saved = SavedState { file: &self.state_file, infos: &infos, numerics: &manifest.numerics };
        saved.require_fit(experiment, param, Successor::Resumed)
    }

    /// Refuses what no `--allow-drift` makes right: a run goes on from its own checkpoint, and reads no more
    /// where it was to begin.
    fn require_same_beginning(&self, drift: &[Difference]) -> Result<(), ProofRefusal> {
        let Some((manifest, _)) = &self.found else { return Ok(()) };
        let is_of_it = |key: &str| OF_THE_BEGINNING.contains(&key) || INIT_KEYS.contains(&key);
        drift.iter().find(|field| is_of_it(&field.key)).map_or(Ok(()), |field| {
            Err(ProofRefusal(format!(
                "a run keeps where it began: {field}\n  hint: it goes on from its own checkpoint of step {}, \
                 where this changes nothing: undo the change, or start another run. A model that was itself \
                 changed since may be moved away: this run does not need it any more",
                manifest.step
            )))
        })
    }

    /// Refuses what no `--allow-drift` makes right: the validation losses of a run, or its scores, are of one
    /// set.
    pub fn require_same_measure(&self, here: &Lock) -> Result<(), ProofRefusal> {
        let changed = differences(&self.measured_on, &here.environment);
        let other = |field: &&Difference| {
            (field.was.as_ref()).zip(field.is.as_ref()).is_some_and(|(was, is)| !is_same_set(was, is))
        };
        changed.iter().find(other).map_or(Ok(()), |field| {
            Err(ProofRefusal(format!(
                "a run is measured on one set: {field}\n  hint: the steps made so far have figures of the \
                 first, which would stand beside those of the other; bring the first back, or turn the \
                 measure off and use `runner eval`, which measures any checkpoint on any set"
            )))
        })
    }

    /// What has changed since. Other numerics are refused unless allowed.
    pub fn changed(&self, here: &Lock) -> Result<Changed, ProofRefusal> {
        let mut drift =
            self.numerics().map_or_else(Vec::new, |numerics| differences(numerics, &here.numerics));
        self.require_one_mixture(&drift, here)?;
        self.require_same_beginning(&drift)?;
        self.require_acting_drift(&drift, here)?;
        if !drift.is_empty() && !self.allow_drift {
            let since = match &self.found {
                Some((manifest, _)) => format!("its checkpoint of step {}", manifest.step),
                None => "it was locked".into(),
            };
            let hint = match here.numerics.get("schedule.steps").is_some_and(|steps| self.ended_at(steps)) {
                true => "the run has ended: no step is left for the change; undo it",
                false => "undo the change, or go on with `--allow-drift`, which is written into the ledger",
            };
            return Err(ProofRefusal(format!(
                "what the bits of this run depend on has changed since {since}:{}{}\n  hint: {hint}",
                list(&drift),
                self.numerics().map_or_else(String::new, |was| older_arithmetic(was, &here.numerics))
            )));
        }
        drift.extend(self.lost_lock.then(|| Difference {
            key: LOCK.into(),
            was: Some("missing".into()),
            is: Some("made of what was here at the resume".into()),
        }));
        let elsewhere = self.lock.as_ref().map_or_else(Vec::new, |lock| {
            let mut elsewhere = differences(&lock.environment, &here.environment);
            elsewhere.extend(differences(&lock.source, &here.source));
            elsewhere
        });
        Ok(Changed { drift, elsewhere })
    }
}

/// What the steps of a run before step `from` were measured on: as its lock has it, or the last note of a
/// measure that was turned off. What is wrong with a ledger is said when the run goes on.
fn measured_on(paths: &RunPaths, from: u64, lock: &Lock) -> Table {
    let Ok((log, entries)) = ledger::read(&paths.ledger()) else { return Table::new() };
    let evaluations =
        || entries.iter().filter(|entry| entry.step < from).filter_map(|entry| entry.evaluation.as_ref());
    let validated = evaluations().any(|evaluation| evaluation.validation.is_some());
    let scored = evaluations().any(|evaluation| evaluation.hellaswag.is_some());
    let turned_off = |key: &str| {
        let was = |note: &Note| {
            let set = note.text.strip_prefix(&format!("`{key}` was "))?.strip_suffix(", is not set")?;
            (set != "not set").then(|| set.to_owned())
        };
        log.notes().iter().rev().filter(|note| note.kind == "environment").find_map(was)
    };
    let sets = [(validated, VALIDATION_SET), (scored, TASKS)].into_iter().filter(|(measured, _)| *measured);
    let found = sets.filter_map(|(_, key)| {
        let set = lock.environment.get(key).cloned().or_else(|| turned_off(key))?;
        Some((key.to_owned(), set))
    });
    found.collect()
}

/// The final root of a run with nothing left to do: its lock has the outputs of the last step,
/// its newest checkpoint is that one and whole, and the experiment has no other value than the run's. Only
/// reads.
///
/// # Errors
/// A checkpoint cannot be read; the lock lacks what it must name, or is not that of the run's last checkpoint
/// and ledger, or of the experiment; the ledger has an event that no run makes; or the run does not match
/// `expected`.
pub fn finished(
    paths: &RunPaths,
    loaded: &Loaded,
    expected: Option<&Expected>,
    report: Report,
) -> anyhow::Result<Option<Hash>> {
    // What is wrong with a lock is said when the run goes on.
    let Ok(lock) = Lock::read(&paths.lock_file()) else { return Ok(None) };
    recorded::require_measure(&lock, &paths.lock_file())?;
    if lock.outputs.is_empty() {
        return Ok(None);
    }
    let (found, broken) = store::newest_whole(&paths.checkpoints())?;
    // What is wrong with a ledger is said when the run goes on.
    let Ok((log, entries)) = ledger::read(&paths.ledger()) else { return Ok(None) };
    let experiment = &loaded.experiment;
    if let Some((manifest, _)) = &found {
        require_lock_of(manifest, &lock, log.head(), experiment)?;
    }
    let ended = lock.outputs.get("step") == Some(&experiment.schedule.steps.to_string());
    if !ended || other_value(&lock, loaded).is_some() || entry::not_finite_at_end(&entries).is_some() {
        return Ok(None);
    }
    let changed = recorded::numerics(loaded, &lock);
    if !changed.is_empty() {
        return Err(ProofRefusal(format!(
            "the experiment is not what the lock of this run holds (lock and experiment):{}\n  hint: the run \
             has ended, and no step is left for a change; one of the two was edited: restore it from a copy",
            list(&changed)
        ))
        .into());
    }
    require_made(paths, &lock.numerics, &entries)?;
    let are_as_in_lock = |outputs: &Table| {
        let changed = differences(&lock.outputs, outputs);
        changed.iter().all(|difference| difference.was.is_none() && is_of_the_end(&difference.key))
    };
    let root = match found {
        Some((manifest, _)) => are_as_in_lock(&outputs(&manifest, log.head())).then_some(manifest.state_root),
        // Who deletes every checkpoint of a finished run means to: lock and ledger have what came out.
        None if broken.is_empty() => {
            let outputs = outputs_of_ledger(&log, &entries);
            if !are_as_in_lock(&outputs) {
                return Err(ProofRefusal(format!(
                    "the lock of this run is not that of its ledger (lock and ledger):{}\n  hint: the run \
                     has ended, and one of the two was edited since: restore it from a copy; `runner verify` \
                     says more",
                    list(&differences(&lock.outputs, &outputs))
                ))
                .into());
            }
            lock.outputs.get("state_root").and_then(|root| root.parse().ok())
        }
        None => None,
    };
    let Some(root) = root else { return Ok(None) };
    if let Some(expected) = expected {
        expected.require(&lock)?;
        expected.require_outputs(&lock.outputs, report)?;
    }
    Ok(Some(root))
}

/// Refuses a lock with outputs that is not of the run's newest checkpoint, `manifest`, and of its ledger,
/// which ends at `head`: going on would write it anew, and hide that it was edited. A run without its last
/// checkpoint, or without the ledger's last entry where it measures its last weights, makes these again.
fn require_lock_of(
    manifest: &Manifest,
    lock: &Lock,
    head: Head,
    experiment: &Experiment,
) -> Result<(), ProofRefusal> {
    let ended_at = lock.outputs.get("step").and_then(|step| step.parse::<u64>().ok());
    if ended_at.is_some_and(|step| manifest.step < step) && manifest.step < experiment.schedule.steps {
        return Ok(());
    }
    let is_cut = experiment.eval.every > 0 && head.size <= manifest.ledger.size;
    let mut changed = differences(&manifest.numerics, &lock.numerics);
    let outputs = differences(&outputs(manifest, head), &lock.outputs).into_iter();
    // The lock of an older program says nothing of the ledger's end.
    changed.extend(outputs.filter(|of| !is_of_the_end(&of.key) || (of.is.is_some() && !is_cut)));
    if changed.is_empty() {
        return Ok(());
    }
    Err(ProofRefusal(format!(
        "the lock of this run is not that of its checkpoint of step {} (checkpoint and lock):{}\n  hint: the \
         run has ended, and its lock was edited since, or its ledger: restore it from a copy; \
         `runner verify` says more",
        manifest.step,
        list(&changed)
    )))
}

/// Refuses to train a run that was done from its start again: its ledger would be deleted for that. Its
/// checkpoints are `broken`.
pub fn require_not_done(paths: &RunPaths, broken: &Broken) -> anyhow::Result<()> {
    // What is wrong with a lock is said when the run goes on.
    let done = Lock::read(&paths.lock_file()).is_ok_and(|lock| !lock.outputs.is_empty());
    if !done {
        return Ok(());
    }
    let message = format!(
        "`{}` was done, and has no whole checkpoint to go on from: a resume would delete its ledger and \
         train it again from its start\n  hint: bring a checkpoint back, or train the experiment under \
         another `--name`; `runner run … --overwrite` begins it anew",
        paths.folder().display()
    );
    Err(refuse_without_checkpoint(broken, message))
}

/// Whether a run has made steps, by its ledger; `saved` is whether a checkpoint was found. That a ledger is
/// missing is said when the run goes on.
fn has_trained(paths: &RunPaths, saved: bool) -> bool {
    (saved && paths.ledger().exists()) || steps_made(paths) > 0
}

/// Whether a lock was made again, by leave, behind the `size` entries that a checkpoint has: a kill has taken
/// the entry that said so, and not the note.
fn was_made_again(paths: &RunPaths, size: u64) -> bool {
    let is_told =
        |note: &Note| note.after >= size && note.kind == "drift" && note.text.starts_with(LOST_LOCK);
    ledger::read(&paths.ledger()).is_ok_and(|(log, _)| log.notes().iter().any(is_told))
}

/// Refuses to make a lock for a run that has trained, and had one from its first step on: what it was trained
/// and measured on would be whatever is here now. `saved` is the step of the checkpoint that was found. With
/// leave it is made, unless the run of so many `steps` has ended: no entry is left that could say so.
pub fn require_lock(
    paths: &RunPaths,
    saved: Option<u64>,
    steps: u64,
    allow_drift: bool,
) -> Result<(), ProofRefusal> {
    let is_missing = matches!(paths.lock_file().try_exists(), Ok(false));
    let has_ended = saved.is_some_and(|step| step >= steps);
    if !is_missing || !has_trained(paths, saved.is_some()) || (allow_drift && !has_ended) {
        return Ok(());
    }
    let otherwise = match has_ended {
        true => "; the run has ended, and no step is left whose entry could tell of another",
        false => {
            ", or from where it was kept; `runner resume --allow-drift` makes one of what is here now, which \
             is written into the ledger"
        }
    };
    Err(ProofRefusal(format!(
        "`{}` is missing, and the run has trained: nothing else says what it was trained and measured on\n  \
         hint: put it back from a copy{otherwise}",
        paths.lock_file().display()
    )))
}

/// Refuses a ledger in which an entry up to the checkpoint of `saved` has an event that no run makes.
pub fn require_events(paths: &RunPaths, saved: &Manifest) -> Result<(), ProofRefusal> {
    // What is wrong with it is said when the run goes on.
    let Ok((_, entries)) = ledger::read_up_to(&paths.ledger(), saved.ledger.size) else { return Ok(()) };
    require_made(paths, &saved.numerics, &entries)
}

/// Refuses `entries` of which one has an event that no run of the numerics makes.
fn require_made(paths: &RunPaths, numerics: &Table, entries: &[Entry]) -> Result<(), ProofRefusal> {
    // What is wrong with it is said when the run goes on.
    let Ok(own) = experiment::load_recorded(&paths.experiment()) else { return Ok(()) };
    let here = resolved_numerics(&own.experiment);
    // What was changed by leave behind the checkpoint.
    let has_changed = |key: &str| numerics.get(key) != here.get(key);
    let found = events::fault(&own.experiment, numerics, &has_changed, entry::steps(entries));
    found.map_or(Ok(()), |(step, why)| {
        Err(ProofRefusal(format!(
            "`{}`: the entry of step {step} has {why}\n  hint: the ledger was edited, or is of another run; \
             restore it from a copy",
            paths.ledger().display()
        )))
    })
}

/// How many steps a run has made, by the end of its ledger.
pub fn steps_made(paths: &RunPaths) -> u64 {
    ledger::last_step(&paths.ledger()).map_or(0, |last| last.step + 1)
}

/// Sets a `data.offset` that follows from a checkpoint and the data to the one that the run began with,
/// whatever has become of the checkpoint since.
pub fn keep_offset(loaded: &mut Loaded, paths: &RunPaths) {
    if !loaded.offset_follows {
        return;
    }
    // What is wrong with either is said when the run goes on.
    let Ok(own) = experiment::load_recorded(&paths.experiment()) else { return };
    let offset = own.experiment.data.offset;
    let lock = Lock::read(&paths.lock_file()).ok();
    let was = lock.as_ref().and_then(|lock| origin(lock, "data.offset", &offset.into()));
    loaded.resolve_offset(offset, was.unwrap_or("where the run began").to_owned());
}

/// Gives the keys of a run's own file the origins that they had when the run was started.
pub fn keep_origins(loaded: &mut Loaded, paths: &RunPaths) {
    // What is wrong with a lock is said when the run goes on.
    let Ok(lock) = Lock::read(&paths.lock_file()) else { return };
    let values = flatten(&loaded.experiment);
    for (key, now) in &mut loaded.origins {
        let own = matches!(now, Origin::File { path, .. } if paths.experiment() == Path::new(path));
        let was = values.get(key).filter(|_| own).and_then(|value| origin(&lock, key, value));
        if let Some(was) = was {
            *now = Origin::Derived(was.to_owned());
        }
    }
    // The file's first line names the experiment that it was resolved from.
    let own = std::fs::read_to_string(paths.experiment()).unwrap_or_default();
    if let Some((name, _)) = own.strip_prefix("# ").and_then(|text| text.split_once(", resolved: ")) {
        loaded.path = name.into();
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
            if difference.key == LOCK {
                report.tell(&Message::Remark(&difference.to_string()));
            }
            recorder.records.note("drift", &difference.to_string())?;
            recorder.changes.push(format!("drift {difference}"));
        }
        Ok(())
    }
}

/// The outputs of a run: those of its last checkpoint, and the head of the ledger at its end, which covers
/// the evaluation after the last step.
pub fn outputs(last: &Manifest, end: Head) -> Table {
    let pairs = [
        ("step", last.step.to_string()),
        ("tokens", last.tokens.to_string()),
        ("state_root", last.state_root.to_string()),
        ("ledger_size", last.ledger.size.to_string()),
        ("ledger_root", last.ledger.root.to_string()),
    ];
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).chain(self::end(end)).collect()
}

/// The outputs of a run as its ledger alone has them: those of its last step, and its end.
pub fn outputs_of_ledger(log: &Log, entries: &[Entry]) -> Table {
    let mut outputs = end(log.head());
    let Some(last) = entry::steps(entries).last() else { return outputs };
    outputs.insert("step".into(), (last.step + 1).to_string());
    outputs.insert("tokens".into(), last.tokens.to_string());
    if let Some(root) = last.root {
        outputs.insert("state_root".into(), root.to_string());
    }
    if let Some(head) = log.head_at(last.step + 1) {
        outputs.insert("ledger_size".into(), head.size.to_string());
        outputs.insert("ledger_root".into(), head.root.to_string());
    }
    outputs
}

/// Those of them that name the whole ledger.
fn end(head: Head) -> Table {
    let pairs = [("end_size", head.size.to_string()), ("end_root", head.root.to_string())];
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// Whether an output is of the ledger's end. A lock of an older program has none of these.
pub fn is_of_the_end(key: &str) -> bool {
    key.starts_with("end_")
}

/// Adds a finished run's outputs to its lock and writes it.
pub fn with_outputs(lock: Lock, paths: &RunPaths) -> anyhow::Result<Lock> {
    let outputs = match store::list(&paths.checkpoints())?.pop() {
        Some((_, folder)) => {
            let (log, _) = ledger::read(&paths.ledger()).map_err(refuse_ledger)?;
            outputs(&checkpoint::inspect(&folder)?, log.head())
        }
        None => Table::new(),
    };
    let lock = Lock { outputs, ..lock };
    store::atomic::write(&paths.lock_file(), lock.to_text().as_bytes())?;
    Ok(lock)
}
