//! The files of a run against each other: lock, ledger, checkpoints, metrics, data.

use std::path::{Path, PathBuf};

use super::{Checks, events, lock as locked, measures, sources};
use crate::data::mixture::locked_shard;
use crate::data::{DataError, DataManifest, Dataset, DigestCache, ShardDigest, Tokenizer};
use crate::eval::parameters;
use crate::experiment::{self, Experiment, Loaded};
use crate::ops::DeviceError;
use crate::proof::ledger::{self, RESTORED};
use crate::proof::lock::{Lock, Table, differences};
use crate::proof::{Action, Entry, entry, regular};
use crate::run::data::Data;
use crate::run::device::Device;
use crate::run::locked::{DeviceFacts, Locked};
use crate::run::messages::Report;
use crate::run::{initial, lock, recorded};
use crate::store::audit;
use crate::store::derived::{self, AgreedRows, Reach};
use crate::store::manifest::Standing;
use crate::store::metrics::REBUILD;
use crate::store::{self, Manifest, RunPaths, StoreError, checkpoint, contents, run_folder};
use crate::train;
use crate::units::{self, noun};

/// A run whose files are whole.
pub struct WholeRun {
    pub paths: RunPaths,
    pub lock: Lock,
    pub log: ledger::Log,
    pub manifests: Vec<Manifest>,
    pub entries: Vec<Entry>,
    pub loaded: Loaded,
    /// None where the data are not on this machine.
    pub data: Option<Data>,
}

/// Checks the files of the run in `folder`; gives the run when nothing of it is damaged.
pub fn verify(folder: &Path, checks: &mut Checks<'_>, report: Report) -> anyhow::Result<Option<WholeRun>> {
    let paths = RunPaths::new(folder);
    // Checked first: a run that ends meanwhile is complete.
    let running = run_folder::holder(folder).is_some();
    if !paths.are_of_a_run() {
        return Err(StoreError::NoSuchRun { path: folder.into() }.into());
    }
    let (manifests, not_finite) = checkpoints(&paths, checks)?;
    let newest = manifests.last();
    let lock = locked::read(&paths, newest, checks);
    let ledger = read_ledger(&paths, &manifests, checks);
    let recorded = experiment::load_recorded(&paths.experiment())?;
    if let Some(lock) = &lock {
        locked::experiment(&recorded, lock, &manifests, checks);
        locked::measure(lock, checks);
    }
    if let (Some(lock), Some((log, entries))) = (&lock, &ledger) {
        let drift = locked::last_drift(log.notes(), entries, lock);
        locked::numerics(lock, &manifests, &drift, checks);
        events::verify(&recorded.experiment, lock, &drift, &manifests, entries, checks);
        locked::evaluations(&recorded.experiment, lock, entries, checks);
        measures::of_average(&recorded.experiment, &drift, entries, checks);
        locked::usable_end(lock, log.notes(), entries, not_finite.as_deref(), checks);
        locked::outputs(lock, newest, (log, entries), recorded.experiment.schedule.steps, checks);
        if let Some(torn) = log.torn().filter(|_| !lock.outputs.is_empty()) {
            let (line, bytes) = (torn.line, torn.bytes);
            let what =
                format!("line {line} has {bytes} bytes and no end, and the run has ended: they were added");
            checks.failed("end of the ledger", what);
        }
    }
    if let Some((log, entries)) = &ledger {
        sources::verify(&recorded.experiment, entries, checks);
        let reach = reach(newest, lock.as_ref(), running);
        let restored = log.notes().iter().filter(|note| note.kind == RESTORED).map(|note| note.after).max();
        audits(&paths, entries, (reach, restored.unwrap_or(0)), checks);
        derived_files(&paths, entries, reach, checks);
    }
    let mut loaded = experiment::load_recorded_here(&paths.experiment(), &[])?;
    let data = data(&mut loaded, lock.as_ref(), checks, report);
    if let (Some(lock), Some(data), Some((log, entries))) = (&lock, &data, &ledger) {
        measures::verify(lock, log.notes(), data, entries, checks);
        locked::last_evaluation(lock, data, entries, checks);
    }
    machine(&loaded, lock.as_ref(), checks);
    Ok(match (lock, ledger) {
        (Some(lock), Some((log, entries))) if checks.all_passed() => {
            Some(WholeRun { paths, lock, log, entries, manifests, loaded, data })
        }
        _ => None,
    })
}

/// Every file of an audit that the ledger names is here, and no other, as far as the run must have them. None
/// is read to its end: that is `--audit`. Copies have none, so those of steps before `restored` may be gone.
fn audits(paths: &RunPaths, entries: &[Entry], (reach, restored): (Reach, u64), checks: &mut Checks<'_>) {
    let steps: Vec<u64> =
        entries.iter().filter(|entry| entry.audit.is_some()).map(|entry| entry.step).collect();
    let (here, missing): (Vec<u64>, Vec<u64>) =
        steps.iter().partition(|step| audit::path(paths, **step).is_file());
    let what =
        format!("{} {} with one, {} of the files here", steps.len(), noun(steps.len(), "step"), here.len());
    let strange = audit::steps_in(&paths.audits()).into_iter().find(|step| !steps.contains(step));
    if let Some(step) = strange {
        let path = audit::path(paths, step);
        return checks.failed("audits", format!("the ledger has no audit of `{}`", path.display()));
    }
    let mut of_steps = steps.iter().map(|step| (*step, audit::path(paths, *step)));
    let other = of_steps.find(|(step, path)| path.is_file() && !audit::begins_as(path, *step));
    if let Some((step, path)) = other {
        let what = format!("`{}` does not begin as the audit of step {step} does", path.display());
        return checks.failed("audits", what);
    }
    let (left, missing): (Vec<u64>, Vec<u64>) = missing.into_iter().partition(|step| *step < restored);
    // A step's entry is written before its file, which a kill may have left out.
    let lost = missing.iter().any(|step| reach.ended || *step < reach.saved);
    match (steps.is_empty(), missing.is_empty()) {
        (false, true) if !left.is_empty() => checks.skipped(
            "audits",
            format!(
                "{what}; the run was brought back from its copy of step {restored}, which has none of the \
                 steps before\n  do: nobody can audit these steps here; where `{}` of the first folder is \
                 left, copy it",
                paths.audits().display()
            ),
        ),
        (true, _) => {}
        (false, true) => checks.passed("audits", format!("{what}; `--audit N` opens them")),
        _ if !lost => checks.skipped("audits", format!("{what}; the last was not written yet")),
        _ => {
            let missing: Vec<String> = missing.iter().map(u64::to_string).collect();
            let missing = missing.join(", ");
            checks.failed(
                "audits",
                format!(
                    "{what}; missing: {missing}\n  do: restore `{}` from a copy; nothing makes them again, \
                     and without them nobody can audit these steps",
                    paths.audits().display()
                ),
            );
        }
    }
}

/// Every byte of every checkpoint; and the first parameter of the newest whole one that is not finite.
fn checkpoints(paths: &RunPaths, checks: &mut Checks<'_>) -> store::Result<(Vec<Manifest>, Option<String>)> {
    let (mut whole, mut not_finite) = (Vec::new(), None);
    for (step, folder) in store::list(&paths.checkpoints())? {
        match store::load(&folder) {
            Ok((manifest, state)) => {
                let (tensors, bytes) = (noun(state.len(), "tensor"), units::bytes(manifest.file.bytes));
                checks.passed(
                    &format!("checkpoint {step}"),
                    format!("{} {tensors}, {bytes}, root {}", state.len(), manifest.state_root),
                );
                whole.push(manifest);
                not_finite = parameters::not_finite(&state).map(|tensor| tensor.name.clone());
            }
            // Another version's, or what could not be read, may be whole.
            Err(why @ (StoreError::WrongFormat { .. } | StoreError::Io { .. })) => {
                checks.failed(&format!("checkpoint {step}"), why.to_string());
            }
            Err(why) => checks.failed(
                &format!("checkpoint {step}"),
                format!("{why}\n  do: delete its folder; `runner resume` goes on from the one before"),
            ),
        }
    }
    if whole.is_empty() {
        checks.skipped("checkpoints", "there are none here");
    }
    for path in contents::beside_checkpoints(&paths.checkpoints()).unwrap_or_default() {
        checks.skipped("beside the checkpoints", format!("`{}` is none, and is not read", path.display()));
    }
    Ok((whole, not_finite))
}

type LedgerRead = (ledger::Log, Vec<Entry>);

/// Each line against its head, and the heads and roots in the checkpoints against the lines.
fn read_ledger(paths: &RunPaths, manifests: &[Manifest], checks: &mut Checks<'_>) -> Option<LedgerRead> {
    let (log, entries) = match ledger::read(&paths.ledger()) {
        Ok(read) => read,
        Err(why) => {
            checks.failed("ledger", why.to_string());
            return None;
        }
    };
    let torn = log
        .torn()
        .map_or(String::new(), |torn| format!("; line {} was left unfinished by a kill", torn.line));
    let steps = entry::steps(&entries).len();
    checks.passed("ledger", format!("{steps} {}, head {}{torn}", noun(steps, "step"), log.head().root));
    let (mut right, mut unbound) = (0, Vec::new());
    for manifest in manifests {
        let check = format!("checkpoint {} in the ledger", manifest.step);
        let recorded = manifest.step.checked_sub(1).and_then(|at| entries.get(usize::try_from(at).ok()?));
        let standing = manifest.standing(&log, &entries);
        if standing == Standing::Unmade {
            let what = "a run saves none before its first step\n  do: delete its folder: it was put there";
            checks.failed(&check, what);
        } else if !log.is_prefix(&manifest.ledger) {
            let found = log
                .head_at(manifest.ledger.size)
                .map_or("has fewer lines".into(), |head| format!("gives {}", head.root));
            checks.failed(
                &check,
                format!(
                    "its manifest has the head {} after {} {}, the ledger {found}\n  do: one of them is \
                     of another run, or was rewritten; restore it from a copy",
                    manifest.ledger.root,
                    manifest.ledger.size,
                    noun(manifest.ledger.size, "step")
                ),
            );
        } else if standing == Standing::OtherHead {
            let size = manifest.ledger.size;
            let entries = noun(size, "entry");
            let what = format!("its manifest has the head after {size} {entries}: each step has one");
            checks.failed(&check, what);
        } else if let Standing::OtherRoot(root) = standing {
            checks.failed(
                &check,
                format!("its state has the root {}, the ledger says {root}", manifest.state_root),
            );
        } else if let Some(entry) = recorded
            && let Some(what) = counted_otherwise(manifest, entry, &entries)
        {
            checks.failed(&check, what);
        } else if standing == Standing::Unbound && is_last(manifest) {
            let what = "the ledger has no root of this step, the run's last, whose state is always hashed\n  \
                        do: the ledger was edited; restore it from a copy";
            checks.failed(&check, what);
        } else if standing == Standing::Unbound {
            unbound.push(manifest.step.to_string());
        } else {
            right += 1;
        }
    }
    if !unbound.is_empty() {
        let what = format!(
            "the ledger has no root of the steps {}: they were saved when the run was stopped, and \
             `proof.digest_every` left them out; `--replay` makes them again",
            unbound.join(", ")
        );
        checks.skipped("ledger and checkpoints", what);
    }
    if right + unbound.len() == manifests.len() && right > 0 {
        checks.passed(
            "ledger and checkpoints",
            format!("heads and roots of {right} {} agree", noun(right, "checkpoint")),
        );
    }
    Some((log, entries))
}

/// Whether a checkpoint is of the last step of its run, by its own numerics.
fn is_last(manifest: &Manifest) -> bool {
    let steps = manifest.numerics.get("schedule.steps");
    steps.is_some_and(|steps| *steps == manifest.step.to_string())
}

/// The tokens or updates of a manifest, where the ledger counts others. `last` is the entry of its last step.
fn counted_otherwise(manifest: &Manifest, last: &Entry, entries: &[Entry]) -> Option<String> {
    let made = entries.iter().take_while(|entry| entry.step < manifest.step);
    let updates = made.filter(|entry| entry.action == Action::Update).count() as u64;
    let differing = |what, found: u64, counted: u64| {
        (found != counted).then(|| format!("its manifest says {found} {what}, the ledger has {counted}"))
    };
    differing("tokens", manifest.tokens, last.tokens).or(differing("updates", manifest.updates, updates))
}

/// How much of the derived files a run must have.
pub(super) fn reach(newest: Option<&Manifest>, lock: Option<&Lock>, running: bool) -> Reach {
    let ended = lock.is_some_and(|lock| !lock.outputs.is_empty());
    // Anyone can hold the folder of a run that has ended, which excuses nothing.
    Reach { saved: newest.map_or(0, |manifest| manifest.step), ended, running: running && !ended }
}

/// Metrics and `main.log` are made again from the ledger.
fn derived_files(paths: &RunPaths, entries: &[Entry], reach: Reach, checks: &mut Checks<'_>) {
    for (file, result) in derived::check(paths, entries, reach) {
        match result {
            Ok(AgreedRows { rows, unproven: 0 }) => {
                checks.passed(file, format!("{rows} {} as in the ledger", noun(rows, "line")))
            }
            Ok(AgreedRows { rows, unproven }) => checks.passed(
                file,
                format!(
                    "{rows} {} as in the ledger, but for {unproven} {} that it does not have",
                    noun(rows, "line"),
                    noun(unproven, "evaluation")
                ),
            ),
            Err(fault) => {
                checks.failed(file, format!("{fault}\n  do: figures in it are not the run's; {REBUILD}"))
            }
        }
    }
}

/// Every byte of the training and validation data and of HellaSwag's file.
fn data(loaded: &mut Loaded, locked: Option<&Lock>, checks: &mut Checks<'_>, report: Report) -> Option<Data> {
    let read = Data::open(loaded).and_then(|data| {
        let manifest = data.manifest(DigestCache::none(), report)?;
        Ok((data, manifest))
    });
    let (data, manifest) = match read {
        Ok(read) => read,
        Err(why) if why.downcast_ref().is_some_and(DataError::is_no_match) => {
            match locked.map(|lock| data_in_part(&loaded.experiment, lock)) {
                Some(Err(differs)) => checks.failed("data", differs),
                Some(Ok(files)) if files > 0 => {
                    let others = noun(files, "other file");
                    checks.skipped("data", format!("{why}\n  {files} {others} as in the lock"));
                }
                _ => checks.skipped("data", why.to_string()),
            }
            return None;
        }
        Err(why) => {
            checks.failed("data", why.to_string());
            return None;
        }
    };
    let Some(locked) = locked else { return Some(data) };
    let train = lock::training_data(&data.train, &manifest.train);
    let named = locked.numerics.iter().filter(|(key, _)| locked_shard(key).is_some());
    let named: Table = named.map(|(key, line)| (key.clone(), line.clone())).collect();
    let changed = differences(&named, &train);
    if changed.is_empty() {
        checks.passed("data", tokens(&manifest.train));
    } else {
        checks.failed(
            "data",
            format!(
                "not what was trained on:{}\n  do: restore the shards; nothing here can be repeated without \
                 them",
                lock::list(&changed)
            ),
        );
    }
    evaluation_data(&data, &manifest, locked, checks);
    Some(data)
}

/// The evaluation data against the lines of the lock; [`locked::measure`] says which it lacks.
fn evaluation_data(data: &Data, manifest: &DataManifest, locked: &Lock, checks: &mut Checks<'_>) {
    const CHECK: &str = "evaluation data";
    let kinds = [lock::VALIDATION_SHARD, lock::VALIDATION_SET, lock::TASKS];
    let kind_of = |key: &str| kinds.into_iter().find(|kind| key.starts_with(*kind));
    let named = locked.environment.iter().filter(|(key, _)| kind_of(key).is_some());
    let named: Table = named.map(|(key, line)| (key.clone(), line.clone())).collect();
    let names = |kind: &str| named.keys().any(|key| key.starts_with(kind));
    let mut found = lock::evaluation_data(manifest);
    let set = data.validation.iter();
    found.extend(set.map(|set| (lock::VALIDATION_SET.to_owned(), hex::encode(set.sha256()))));
    let is_measured = !found.is_empty();
    // What a lock does not name at all is that of an older program, or is told of by the lock alone.
    found.retain(|key, _| kind_of(key).is_some_and(names));
    let changed = differences(&named, &found);
    match (changed.is_empty(), named.is_empty()) {
        (false, _) => checks.failed(
            CHECK,
            format!(
                "not what the run was measured on:{}\n  do: restore the files; the state's bits do not \
                 depend on them, the scores do",
                lock::list(&changed)
            ),
        ),
        _ if !recorded::left_out(locked).is_empty() => {}
        (true, false) => {
            let shards = match names(lock::VALIDATION_SHARD) {
                true => tokens(&manifest.val),
                false => "the validation tokens are the lock's".to_owned(),
            };
            let tasks = manifest.hellaswag.iter().map(|(name, ..)| name.clone());
            checks.passed(CHECK, [shards].into_iter().chain(tasks).collect::<Vec<_>>().join(", "));
        }
        (true, true) if is_measured => checks.skipped(CHECK, "the lock is older and names none"),
        (true, true) => {}
    }
}

/// The number and length of shards, in words.
fn tokens(shards: &[ShardDigest]) -> String {
    let tokens = shards.iter().map(|shard| shard.tokens).sum();
    format!("{} {}, {}", shards.len(), noun(shards.len(), "shard"), units::counted(tokens, "token"))
}

/// How many of the data's files are here where some are not, and are what the lock holds; or what differs.
fn data_in_part(experiment: &Experiment, locked: &Lock) -> Result<usize, String> {
    let tokenizer = Tokenizer::new(experiment.data.tokenizer);
    let holds = |table: &Table, prefix: &str, line: &String| {
        table.iter().any(|(key, value)| key.starts_with(prefix) && value == line)
    };
    let mut files = 0;
    let sources = experiment.data.mix.iter().map(|(name, source)| (lock::source_shards(name), &source.train));
    let train = [("data.shard".to_owned(), &experiment.data.train)].into_iter().chain(sources);
    let val = (lock::VALIDATION_SHARD.to_owned(), &locked.environment, &experiment.data.val);
    let train = train.map(|(prefix, patterns)| (prefix, &locked.numerics, patterns));
    for (prefix, table, patterns) in train.chain([val]) {
        for pattern in patterns {
            let opened = Dataset::open(std::slice::from_ref(pattern), experiment.model.vocab, &tokenizer);
            let found = match opened.and_then(|data| DigestCache::none().manifest(&data, |_| ())) {
                Err(DataError::NoMatch { .. }) => continue,
                found => found.map_err(|why| why.to_string())?,
            };
            files += found.len();
            let lines = lock::shards(&prefix, &found);
            if let Some(other) = lines.values().find(|line| !holds(table, &prefix, line)) {
                return Err(format!("none of the lock's shards is this one: {other}\n  do: restore it"));
            }
        }
    }
    let tasks = experiment.eval.hellaswag.as_ref().map(Path::new).filter(|path| path.is_file());
    if let Some(path) = tasks {
        files += 1;
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let digest = path.metadata().and_then(|file| Ok((name, file.len(), regular::sha256(path)?.0)));
        let hellaswag = Some(digest.map_err(|why| format!("cannot read `{}`: {why}", path.display()))?);
        let found = lock::evaluation_data(&DataManifest { train: Vec::new(), val: Vec::new(), hellaswag });
        // The lock of an older program names none.
        let known = locked.environment.contains_key(lock::TASKS) || locked.outputs.contains_key("end_root");
        if let Some(other) =
            found.values().find(|line| known && !holds(&locked.environment, "data.hellaswag", line))
        {
            return Err(format!("HellaSwag's file is not the lock's: {other}\n  do: restore it"));
        }
    }
    Ok(files)
}

/// Whether this machine and program can make these bits.
fn machine(loaded: &Loaded, lock: Option<&Lock>, checks: &mut Checks<'_>) {
    let Some(lock) = lock else { return };
    let facts = match Device::open(&loaded.experiment) {
        Ok(Device::Cpu(cpu)) => cpu.facts(),
        Ok(Device::Cuda(cuda)) => cuda.facts(),
        Ok(Device::Mirror(mirror)) => mirror.facts(),
        Err(error) => match error.downcast::<DeviceError>() {
            Ok(error) => Err(error),
            Err(other) => return checks.skipped("this machine", other.to_string()),
        },
    };
    match facts {
        Err(why) => {
            let hint = locked::mirror_hint(lock, &loaded.experiment);
            checks.skipped("this machine", format!("it cannot make these bits: {why}{hint}"));
        }
        Ok(DeviceFacts { mut numerics, .. }) => {
            // Keys of the experiment are compared with the lock where no machine matters.
            let values = experiment::flatten(&loaded.experiment);
            let is_setting = |key: &str| {
                let known = values.contains_key(key) || experiment::keys().any(|known| known == key);
                known && key != "device.kind"
            };
            let versions = lock::resolved_numerics(&loaded.experiment).into_iter();
            numerics.extend(versions.filter(|(key, _)| key != "device.kind" && !is_setting(key)));
            numerics.insert("train.numerics_version".into(), train::NUMERICS_VERSION.to_string());
            match initial::read(&loaded.experiment, Some(&lock.numerics), true) {
                Ok(initial) => initial::pin(initial.as_ref(), &mut numerics),
                Err(why) => return checks.failed("model.init", why.to_string()),
            }
            // Before anything is allocated a GPU has only some of its kernels and plans, and perhaps others.
            let known = |key: &str| {
                !(key.starts_with("cuda.") || key == "device.kind")
                    || (numerics.contains_key(key) && lock.numerics.contains_key(key))
            };
            let compared = |table: &Table| -> Table {
                table
                    .iter()
                    .filter(|(key, _)| known(key) && !is_setting(key) && !is_data(key))
                    .map(|(k, v)| (k.clone(), v.clone()))
                    .collect()
            };
            let changed = differences(&compared(&lock.numerics), &compared(&numerics));
            if changed.is_empty() {
                checks.passed("this machine", "it has what the bits depend on");
            } else {
                checks.failed("this machine", format!("it cannot make these bits:{}", lock::list(&changed)));
            }
        }
    }
}

/// Whether a key of the lock is a digest of the training data.
fn is_data(key: &str) -> bool {
    locked_shard(key).is_some() || key == "data.tokenizer_sha256"
}

/// The folder of a checkpoint of a run.
pub fn checkpoint_folder(paths: &RunPaths, step: u64) -> PathBuf {
    paths.checkpoints().join(checkpoint::folder_name(step))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever holds the lock of a finished run's folder makes nothing in it unfinished.
    #[test]
    fn a_run_that_has_ended_is_not_running() {
        let outputs = [("step".to_owned(), "1".to_owned())].into();
        let ended = reach(None, Some(&Lock { outputs, ..Lock::default() }), true);
        assert!(ended.ended && !ended.running);
        let begun = reach(None, Some(&Lock::default()), true);
        assert!(!begun.ended && begun.running && reach(None, None, true).running);
    }
}
