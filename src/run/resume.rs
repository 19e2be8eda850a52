//! The past of a resumed run: its checkpoint, its lock, and what has changed since.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::destination::Destination;
use super::error::{ProofRefusal, UsageError, refuse_lock, refuse_without_checkpoint};
use super::events;
use super::expected::Expected;
use super::find::state_file;
use super::fit::{SavedState, Successor};
use super::initial::INIT_KEYS;
use super::lock::{is_same_set, list, older_arithmetic};
use super::messages::{Message, Report};
use super::outputs;
use super::past_ledger::{self, PastLedger, has_trained};
use super::recorded::{self, origin, other_value};
use crate::eval::parameters;
use crate::experiment::{self, BatchKeys, Experiment, Loaded, Origin, StepSequences, flatten};
use crate::ops::Dtype;
use crate::proof::ledger::{self, RESUME};
use crate::proof::lock::{Difference, Lock, Table, differences};
use crate::proof::{Hash, Head, LockError, entry};
use crate::store::{self, Broken, Info, Manifest, RunPaths};
use crate::train::run::INIT_UPDATES;
use crate::train::{Recorder, RunError};
use crate::units::noun;

/// Keys that act before the first step alone, beside what `model.init` names.
const OF_THE_BEGINNING: [&str; 3] = ["data.offset", "optimizer.from_init", INIT_UPDATES];

/// Keys by which the sequences of the steps so far are counted.
const SIZES: [&str; 4] = ["batch.tokens", "batch.tokens_start", "batch.tokens_warmup_steps", "batch.seq_len"];

/// Keys by whose product the steps of a warm-up are rounded.
const ROUNDING: [&str; 2] = ["batch.micro", "parallel.workers"];

/// The checkpoint and settings of a resume.
pub struct Resume {
    /// The newest whole checkpoint; none starts at step 0.
    pub found: Option<store::LoadedCheckpoint>,
    /// None where it cannot be read: why is said when its records are opened.
    pub ledger: Option<PastLedger>,
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
        let (Some(resume), Destination::Open(folder)) = (resume, destination) else {
            return Ok(Past::default());
        };
        let Resume { found, ledger, allow_drift, edited } = resume;
        let lock = match Lock::read(&folder.paths.lock_file()) {
            Ok(lock) => Some(lock),
            Err(LockError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => None,
            Err(damaged) => return Err(refuse_lock(damaged)),
        };
        let file = found.as_ref().map(|(manifest, _)| state_file(&folder.paths, manifest.step));
        let state_file = file.unwrap_or_default();
        let (from, size) =
            found.as_ref().map_or((0, 0), |(manifest, _)| (manifest.step, manifest.ledger.size));
        let measured_on =
            ledger.as_ref().zip(lock.as_ref()).map(|(ledger, lock)| ledger.measured_on(from, lock));
        let lost_lock = match lock {
            Some(_) => ledger.is_some_and(|ledger| ledger.lost_lock_behind(size)),
            None => has_trained(&folder.paths, found.is_some()),
        };
        let measured_on = measured_on.unwrap_or_default();
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
    fn require_acting_drift(
        &self,
        drift: &[Difference],
        here: &Lock,
        experiment: &Experiment,
    ) -> Result<(), ProofRefusal> {
        let Some((manifest, _)) = &self.found else { return Ok(()) };
        let of_size = |key: &str| {
            SIZES.contains(&key)
                || (ROUNDING.contains(&key)
                    && had_other_sequences(&manifest.numerics, manifest.step, experiment))
        };
        if let Some(field) = drift.iter().find(|field| of_size(&field.key)) {
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
    pub fn changed(&self, experiment: &Experiment, here: &Lock) -> Result<Changed, ProofRefusal> {
        let mut drift =
            self.numerics().map_or_else(Vec::new, |numerics| differences(numerics, &here.numerics));
        self.require_one_mixture(&drift, here)?;
        self.require_same_beginning(&drift)?;
        self.require_acting_drift(&drift, here, experiment)?;
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
        drift.extend(self.lost_lock.then(events::lost_lock));
        let elsewhere = self.lock.as_ref().map_or_else(Vec::new, |lock| {
            let mut elsewhere = differences(&lock.environment, &here.environment);
            elsewhere.extend(differences(&lock.source, &here.source));
            elsewhere
        });
        Ok(Changed { drift, elsewhere })
    }
}

/// Whether one of the first `steps` steps, made with these numerics, had another number of sequences than
/// `experiment` gives it: those of a warm-up are whole micro-batches for every worker.
fn had_other_sequences(numerics: &Table, steps: u64, experiment: &Experiment) -> bool {
    let number = |key: &str| numerics.get(key)?.parse::<usize>().ok();
    let unit = ROUNDING.iter().try_fold(1usize, |unit, key| unit.checked_mul(number(key)?));
    unit.filter(|unit| *unit > 0).is_some_and(|micro| {
        let was = StepSequences::new(&BatchKeys { micro, ..experiment.batch.clone() }, 1);
        let is = experiment.step_sequences();
        (0..steps.min(experiment.batch.tokens_warmup_steps)).any(|step| was.of(step) != is.of(step))
    })
}

/// The final root of a run with nothing left to do: its lock has the outputs of the last step,
/// its newest checkpoint is that one and whole, and the experiment has no other value than the run's; of a
/// command that is `started_again`, none by which a bit could be another. Only reads.
///
/// # Errors
/// A checkpoint cannot be read; the lock lacks what it must name, or is not that of the run's last checkpoint
/// and ledger, or of the experiment; the ledger has an event that no run makes; or the run does not match
/// `expected`.
pub fn finished(
    paths: &RunPaths,
    loaded: &Loaded,
    expected: Option<&Expected>,
    started_again: bool,
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
    let is_other =
        other_value(&lock, loaded).is_some() && !(started_again && recorded::gives_same_bits(loaded, &lock));
    if !ended || is_other || entry::not_finite_at_end(&entries).is_some() {
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
    past_ledger::require_made(paths, (experiment.schedule.steps, &lock.numerics), &entries)?;
    let are_as_in_lock = |outputs: &Table| {
        let changed = differences(&lock.outputs, outputs);
        changed.iter().all(|difference| difference.was.is_none() && outputs::is_of_the_end(&difference.key))
    };
    let root = match found {
        Some((manifest, state)) => {
            if let Some(tensor) = parameters::not_finite(&state) {
                return Err(ProofRefusal(format!(
                    "the lock of this run has the outputs of one that ended well, and in its checkpoint of \
                     step {} a number of `{}` is not finite\n  hint: the lock was edited; restore it from a \
                     copy",
                    manifest.step, tensor.name
                ))
                .into());
            }
            are_as_in_lock(&outputs::of(&manifest, log.head())).then_some(manifest.state_root)
        }
        // Who deletes every checkpoint of a finished run means to: lock and ledger have what came out.
        None if broken.is_empty() => {
            let outputs = outputs::of_ledger(&log, &entries);
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
    let outputs = differences(&outputs::of(manifest, head), &lock.outputs).into_iter();
    // The lock of an older program says nothing of the ledger's end.
    changed.extend(outputs.filter(|of| !outputs::is_of_the_end(&of.key) || (of.is.is_some() && !is_cut)));
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

/// Whether a run's own file has other values than its lock, which then count as set: it was edited, or a kill
/// came between the two. A remark names them.
pub fn note_edits(loaded: &mut Loaded, paths: &RunPaths) -> bool {
    // What is wrong with either is said when the run goes on.
    let (Ok(lock), Ok(own)) =
        (Lock::read(&paths.lock_file()), experiment::load_recorded(&paths.experiment()))
    else {
        return false;
    };
    let edits: Vec<String> = recorded::config(&own, &lock).iter().map(Difference::to_string).collect();
    if !edits.is_empty() {
        loaded.remarks.push(format!(
            "`{}` has other values than the run's lock, and they count as set: {}",
            paths.experiment().display(),
            edits.join("; ")
        ));
    }
    !edits.is_empty()
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
            let text = difference.to_string();
            if events::is_lost_lock(&text) {
                report.tell(&Message::Remark(&text));
            }
            recorder.records.note("drift", &text)?;
            recorder.changes.push(format!("drift {text}"));
        }
        Ok(())
    }
}
