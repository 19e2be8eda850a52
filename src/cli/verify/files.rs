//! The files of a run against each other: lock, ledger, checkpoints, metrics, data.

use std::path::Path;

use serde_json::Value;

use super::Report;
use crate::cli::initial;
use crate::cli::locking::{self, DeviceFacts, Locked, list};
use crate::cli::session::{Data, Device};
use crate::data::{DataError, DigestCache};
use crate::experiment::{self, Loaded};
use crate::ops::DeviceError;
use crate::proof::lock::{Lock, Table, differences};
use crate::proof::{Entry, LockError, ledger};
use crate::store::{self, Manifest, RunPaths, StoreError, checkpoint};

/// A run whose files are whole.
pub struct WholeRun {
    pub paths: RunPaths,
    pub lock: Lock,
    pub entries: Vec<Entry>,
    pub loaded: Loaded,
    /// None where the data are not on this machine.
    pub data: Option<Data>,
}

/// Checks the files of the run in `folder`; gives the run when nothing of it is damaged.
pub fn verify(folder: &Path, report: &mut Report) -> anyhow::Result<Option<WholeRun>> {
    let paths = RunPaths::new(folder);
    if !paths.experiment().is_file() {
        return Err(StoreError::NoSuchRun { path: folder.into() }.into());
    }
    let manifests = checkpoints(&paths, report)?;
    let newest = manifests.last();
    let lock = lock(&paths, newest, report);
    let ledger = read_ledger(&paths, &manifests, report);
    if let (Some(lock), Some((log, entries))) = (&lock, &ledger) {
        let drifted = log.notes().iter().any(|note| note.kind == "drift");
        locked_numerics(lock, &manifests, drifted, report);
        outputs(lock, newest, report);
        metrics(&paths, entries, report)?;
    }
    let mut loaded = experiment::load(&paths.experiment(), &[])?;
    let data = data(&mut loaded, lock.as_ref(), report);
    machine(&loaded, lock.as_ref(), report);
    Ok(match (lock, ledger) {
        (Some(lock), Some((_, entries))) if report.is_ok() => {
            Some(WholeRun { paths, lock, entries, loaded, data })
        }
        _ => None,
    })
}

/// Every byte of every checkpoint.
fn checkpoints(paths: &RunPaths, report: &mut Report) -> store::Result<Vec<Manifest>> {
    let mut whole = Vec::new();
    for (step, folder) in store::list(&paths.checkpoints())? {
        match store::load(&folder) {
            Ok((manifest, state)) => {
                let bytes = crate::units::bytes(manifest.file.bytes);
                report.ok(
                    &format!("checkpoint {step}"),
                    format!("{} tensors, {bytes}, root {}", state.len(), manifest.state_root),
                );
                whole.push(manifest);
            }
            Err(why) => report.failed(
                &format!("checkpoint {step}"),
                format!("{why}\n  do: delete its folder; `runner resume` goes on from the one before"),
            ),
        }
    }
    if whole.is_empty() {
        report.skipped("checkpoints", "there are none yet");
    }
    Ok(whole)
}

fn lock(paths: &RunPaths, newest: Option<&Manifest>, report: &mut Report) -> Option<Lock> {
    let path = paths.lock_file();
    match Lock::read(&path) {
        Ok(lock) => {
            report.ok("lock", format!("numerics_id {}", lock.numerics_id()));
            Some(lock)
        }
        Err(why) => {
            // The newest checkpoint has a copy of the numerics, which may tell the field.
            let damaged = matches!(&why, LockError::TableDiffers { table: "numerics", .. });
            let content = std::fs::read_to_string(&path)
                .ok()
                .filter(|_| damaged)
                .and_then(|text| Lock::parse_unchecked(&text));
            let fields = newest.zip(content).map_or(String::new(), |(manifest, content)| {
                list(&differences(&manifest.numerics, &content.numerics))
            });
            report.failed(
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

type Ledger = (ledger::Log, Vec<Entry>);

/// Each line against its head, and the heads and roots in the checkpoints against the lines.
fn read_ledger(paths: &RunPaths, manifests: &[Manifest], report: &mut Report) -> Option<Ledger> {
    let (log, entries) = match ledger::read(&paths.ledger()) {
        Ok(read) => read,
        Err(why) => {
            report.failed("ledger", why.to_string());
            return None;
        }
    };
    let torn = log
        .torn()
        .map_or(String::new(), |torn| format!("; line {} was left unfinished by a kill", torn.line));
    report.ok("ledger", format!("{} steps, head {}{torn}", log.size(), log.head().root));
    let mut right = 0;
    for manifest in manifests {
        let check = format!("checkpoint {} in the ledger", manifest.step);
        let recorded = manifest.step.checked_sub(1).and_then(|at| entries.get(usize::try_from(at).ok()?));
        if !log.is_prefix(&manifest.ledger) {
            let found = log
                .head_at(manifest.ledger.size)
                .map_or("has fewer lines".into(), |head| format!("gives {}", head.root));
            report.failed(
                &check,
                format!(
                    "its manifest has the head {} after {} steps, the ledger {found}\n  do: one of them is of another run, or was rewritten; restore it from a copy",
                    manifest.ledger.root, manifest.ledger.size
                ),
            );
        } else if let Some(Entry { root: Some(root), .. }) = recorded
            && *root != manifest.state_root
        {
            report.failed(
                &check,
                format!("its state has the root {}, the ledger says {root}", manifest.state_root),
            );
        } else {
            right += 1;
        }
    }
    if right == manifests.len() && right > 0 {
        report.ok("ledger and checkpoints", format!("{right} heads and roots agree"));
    }
    Some((log, entries))
}

/// Every checkpoint was made with the numerics of the lock, but for drift that was allowed.
fn locked_numerics(lock: &Lock, manifests: &[Manifest], drifted: bool, report: &mut Report) {
    for manifest in manifests {
        let changed = differences(&manifest.numerics, &lock.numerics);
        let check = format!("numerics of checkpoint {}", manifest.step);
        match (changed.is_empty(), drifted) {
            (true, _) => {}
            (false, true) => {
                report.skipped(&check, format!("the ledger notes that drift was allowed:{}", list(&changed)))
            }
            (false, false) => report.failed(&check, format!("not those of the lock:{}", list(&changed))),
        }
    }
}

fn outputs(lock: &Lock, newest: Option<&Manifest>, report: &mut Report) {
    let found = newest.map(crate::cli::past::outputs_of).unwrap_or_default();
    let changed = differences(&lock.outputs, &found);
    if !lock.outputs.is_empty() && !changed.is_empty() {
        report.failed(
            "outputs",
            format!("the lock's are not those of the newest checkpoint:{}", list(&changed)),
        );
    }
}

/// The bits in the metrics are those of the ledger.
fn metrics(paths: &RunPaths, entries: &[Entry], report: &mut Report) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(paths.metrics_jsonl()).unwrap_or_default();
    let mut rows = 0;
    for (number, line) in text.lines().enumerate() {
        let Ok(row) = serde_json::from_str::<Value>(line) else {
            // A kill leaves the last line unfinished; resuming drops it.
            if number + 1 < text.lines().count() {
                report.failed(
                    "metrics",
                    format!("line {} of `{}` is not JSON", number + 1, paths.metrics_jsonl().display()),
                );
            }
            continue;
        };
        let entry = row["step"].as_u64().and_then(|step| entries.get(usize::try_from(step).ok()?));
        let Some(entry) = entry.filter(|_| row["action"] != "evaluate") else { continue };
        rows += 1;
        for (field, value) in
            [("loss", entry.loss), ("grad_norm", entry.grad_norm), ("learning_rate", entry.learning_rate)]
        {
            let bits = row[format!("{field}_bits")]
                .as_str()
                .and_then(|b| u64::from_str_radix(b.trim_start_matches("0x"), 16).ok());
            let same = bits.is_some_and(|bits| {
                bits == value.to_bits() || (f64::from_bits(bits).is_nan() && value.is_nan())
            });
            if !same {
                report.failed(
                    "metrics",
                    format!(
                        "line {}: {field} of step {} is not the ledger's {value}",
                        number + 1,
                        entry.step
                    ),
                );
                return Ok(());
            }
        }
    }
    report.ok("metrics", format!("{rows} rows have the ledger's bits"));
    Ok(())
}

/// Every byte of the training data.
fn data(loaded: &mut Loaded, lock: Option<&Lock>, report: &mut Report) -> Option<Data> {
    let data = match Data::open(loaded) {
        Ok(data) => data,
        Err(why) if matches!(why.downcast_ref(), Some(DataError::NoMatch { .. })) => {
            report.skipped("data", why.to_string());
            return None;
        }
        Err(why) => {
            report.failed("data", why.to_string());
            return None;
        }
    };
    let found = locking::shards(&data.manifest(DigestCache::none()));
    let Some(lock) = lock else { return Some(data) };
    let locked: Table = lock
        .numerics
        .iter()
        .filter(|(key, _)| key.starts_with("data.shard."))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    let changed = differences(&locked, &found);
    if changed.is_empty() {
        report.ok(
            "data",
            format!("{} shards, {} tokens", found.len(), crate::units::thousands(data.train.tokens())),
        );
    } else {
        report.failed(
            "data",
            format!(
                "not what was trained on:{}\n  do: restore the shards; nothing here can be repeated without them",
                list(&changed)
            ),
        );
    }
    Some(data)
}

/// Whether this machine and program can make these bits.
fn machine(loaded: &Loaded, lock: Option<&Lock>, report: &mut Report) {
    let Some(lock) = lock else { return };
    let facts = match Device::open(&loaded.experiment) {
        Ok(Device::Cpu(cpu)) => cpu.facts(),
        Ok(Device::Cuda(cuda)) => cuda.facts(),
        Ok(Device::Mirror(mirror)) => mirror.facts(),
        Err(error) => match error.downcast::<DeviceError>() {
            Ok(error) => Err(error),
            Err(other) => return report.skipped("this machine", other.to_string()),
        },
    };
    match facts {
        Err(why) => report.skipped("this machine", format!("it cannot make these bits: {why}")),
        Ok(DeviceFacts { mut numerics, .. }) => {
            numerics.extend(
                locking::resolved_numerics(&loaded.experiment)
                    .into_iter()
                    .filter(|(key, _)| key != "device.kind"),
            );
            numerics.insert("train.numerics_version".into(), crate::train::NUMERICS_VERSION.to_string());
            match initial::read(&loaded.experiment, Some(&lock.numerics), true) {
                Ok(initial) => initial::lock(initial.as_ref(), &mut numerics),
                Err(why) => return report.failed("model.init", why.to_string()),
            }
            // Before anything is allocated a GPU knows only some of its kernels and plans, and maybe others.
            let known = |key: &str| {
                !(key.starts_with("cuda.") || key == "device.kind")
                    || (numerics.contains_key(key) && lock.numerics.contains_key(key))
            };
            let compared = |table: &Table| -> Table {
                table
                    .iter()
                    .filter(|(key, _)| known(key) && *key != "precision.compute" && !is_data(key))
                    .map(|(k, v)| (k.clone(), v.clone()))
                    .collect()
            };
            let changed = differences(&compared(&lock.numerics), &compared(&numerics));
            if changed.is_empty() {
                report.ok("this machine", "it has what the bits depend on");
            } else {
                report.failed("this machine", format!("it cannot make these bits:{}", list(&changed)));
            }
        }
    }
}

/// What was compared with the data themselves.
fn is_data(key: &str) -> bool {
    key.starts_with("data.shard.") || key == "data.tokenizer_sha256"
}

/// The folder of a checkpoint of a run.
pub fn checkpoint_folder(paths: &RunPaths, step: u64) -> std::path::PathBuf {
    paths.checkpoints().join(checkpoint::folder_name(step))
}
