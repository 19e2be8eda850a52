//! The content of a lock: this file knows the keys, [`crate::proof::lock`] the file format.
//!
//! A difference in `numerics` stops a run; a difference elsewhere is reported. So a key belongs to `numerics`
//! if and only if another value can change a bit of the training state. The validation set changes none and
//! is in `environment`: a run may be evaluated on other text.

use std::ops::Range;

use super::data::{Data, SHARDS, remembered};
use super::device::{Device, OnDevice};
use super::initial::{self, Initial};
use super::locked::{ARITHMETIC_KEY, Locked};
use super::messages::Report;
use crate::data::{DataManifest, Dataset, ShardDigest};
use crate::experiment::{self, Compute, Experiment, Loaded, OptimizerKind};
use crate::optim::muon;
use crate::plan::memory::Storage;
use crate::proof::Hash;
use crate::proof::lock::{Difference, Lock, NOT_SET, Table};
use crate::train::{self, Trainer};

fn table<const N: usize>(pairs: [(&str, String); N]) -> Table {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// The lock of an experiment on this machine, without outputs. `manifest` has the digests of `data`.
pub fn lock<O: Locked>(
    loaded: &Loaded,
    data: &Data,
    manifest: &DataManifest,
    initial: Option<&Initial>,
    ops: &O,
) -> anyhow::Result<Lock> {
    let facts = ops.facts()?;
    let mut numerics = resolved_numerics(&loaded.experiment);
    // The arithmetic says it better: a GPU and its mirror have one.
    numerics.remove("device.kind");
    numerics.extend(training_data(&data.train, &manifest.train));
    numerics.insert("data.tokenizer_sha256".into(), hex::encode(data.tokenizer.sha256()));
    numerics.extend(facts.numerics);
    let optimizer = &loaded.experiment.optimizer;
    let mut without = |kernels: &str| numerics.retain(|key, _| !key.starts_with(kernels));
    if optimizer.ema_decay == 0.0 {
        without("cuda.kernels.average.cu");
    }
    if optimizer.kind != OptimizerKind::Muon {
        without("cuda.kernels.muon.cu");
    }
    initial::pin(initial, &mut numerics);
    numerics.insert("train.numerics_version".into(), train::NUMERICS_VERSION.to_string());
    if loaded.experiment.precision.compute == Compute::Auto {
        let cpu = numerics.get("device.kind").is_some_and(|kind| kind == "cpu");
        let actual = if cpu { "fp32" } else { "bf16" };
        numerics.insert("precision.compute".into(), actual.into());
    }
    let mut environment = machine();
    environment.insert("device".into(), ops.device_name());
    if let Some(set) = &data.validation {
        environment.insert(VALIDATION_SET.into(), hex::encode(set.sha256()));
    }
    environment.extend(evaluation_data(manifest));
    environment.extend(facts.environment);
    Ok(Lock { numerics, environment, source: source(), config: config(loaded), outputs: Table::new() })
}

/// The lock of an experiment that is not trained.
pub fn of_experiment(mut loaded: Loaded, report: Report) -> anyhow::Result<Lock> {
    let data = Data::open(&mut loaded)?;
    let initial = initial::read(&loaded.experiment, None, false)?;
    let device = Device::open(&loaded.experiment)?;
    initial.iter().try_for_each(|initial| initial.place(&mut loaded, &data, report))?;
    let experiment = loaded.experiment.clone();
    device.with(&experiment, ToLock { loaded, data, initial, report })
}

/// An experiment that is locked and not trained.
struct ToLock {
    loaded: Loaded,
    data: Data,
    initial: Option<Initial>,
    report: Report,
}

impl OnDevice for ToLock {
    type Output = Lock;

    /// Allocating chooses what is still to be chosen, such as algorithms.
    fn on<O: Locked>(self, ops: O, storage: &Storage, _: Option<f64>) -> anyhow::Result<Lock> {
        let ToLock { loaded, data, initial, report } = self;
        initial.iter().try_for_each(|initial| initial.require_fit(&loaded.experiment, storage.param))?;
        let trainer = Trainer::new(ops, &loaded.experiment)?;
        let manifest = data.manifest(remembered(SHARDS), report)?;
        lock(&loaded, &data, &manifest, initial.as_ref(), &trainer.ops)
    }
}

/// The keys that can change bits, as resolved, and the version of what only some experiments use.
pub fn resolved_numerics(experiment: &Experiment) -> Table {
    let reaching =
        experiment::flatten(experiment).into_iter().filter(|(key, value)| experiment::is_locked(key, value));
    let mut numerics: Table = reaching.map(|(key, value)| (key, plain(&value))).collect();
    // Where a rewind goes back to.
    if experiment.rewind_every() > 0 {
        numerics.insert("checkpoint.every".into(), experiment.rewind_every().to_string());
    }
    if experiment.optimizer.kind == OptimizerKind::Muon {
        numerics.insert("optimizer.muon_version".into(), muon::VERSION.to_string());
    }
    numerics
}

/// A value without the quotes of JSON.
pub fn plain(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Null => NOT_SET.into(),
        other => other.to_string(),
    }
}

/// Lines of the data manifest, in order: `data.shard.00000` for the prefix `data.shard`.
pub fn shards(prefix: &str, manifest: &[ShardDigest]) -> Table {
    let line = |shard: &ShardDigest| {
        format!("{}, {} tokens, sha256 {}", shard.name, shard.tokens, hex::encode(shard.sha256))
    };
    manifest.iter().enumerate().map(|(at, shard)| (format!("{prefix}.{at:05}"), line(shard))).collect()
}

/// The training data of a run: `data.shard.00000` and on, or of a mixture `data.mix.web.shard.00000`.
pub fn training_data(data: &Dataset, manifest: &[ShardDigest]) -> Table {
    let of_source = |(name, places): (&str, Range<usize>)| shards(&source_shards(name), &manifest[places]);
    match data.sources().next() {
        None => shards("data.shard", manifest),
        Some(_) => data.sources().flat_map(of_source).collect(),
    }
}

/// What the keys of a source's shards begin with.
pub fn source_shards(source: &str) -> String {
    format!("data.mix.{source}.shard")
}

/// The keys of a lock that hold what a run is measured on: the SHA-256 of its validation set, and name,
/// length and SHA-256 of HellaSwag's file.
pub const VALIDATION_SET: &str = "data.validation_sha256";
pub const TASKS: &str = "data.hellaswag";

/// How many ranks a run has, which changes no bit.
pub const RANKS: &str = "ranks";

/// What the keys of the shards of the validation set begin with.
pub const VALIDATION_SHARD: &str = "data.val_shard";

/// Whether two values of a lock's key are of one content. A note has the beginning of a long one.
pub fn is_same_set(was: &str, is: &str) -> bool {
    let [was, is] = [was, is].map(|set| set.rsplit_once("sha256 ").map_or(set, |(_, digest)| digest));
    is.starts_with(was.trim_end_matches('…'))
}

/// The evaluation data of a run: `data.val_shard.00000` and on, and `data.hellaswag`.
pub fn evaluation_data(manifest: &DataManifest) -> Table {
    let mut table = shards(VALIDATION_SHARD, &manifest.val);
    if let Some((name, bytes, sha256)) = &manifest.hellaswag {
        let line = format!("{name}, {bytes} bytes, sha256 {}", hex::encode(sha256));
        table.insert(TASKS.into(), line);
    }
    table
}

/// Operating system and processor. No host name, no user name.
fn machine() -> Table {
    let mut machine = table([
        ("arch", std::env::consts::ARCH.into()),
        ("os", std::env::consts::OS.into()),
        ("cpus", std::thread::available_parallelism().map_or("unknown".into(), |n| n.to_string())),
    ]);
    if let Ok(release) = std::fs::read_to_string("/proc/sys/kernel/osrelease") {
        machine.insert("kernel".into(), release.trim().into());
    }
    if let Ok(version) = std::fs::read_to_string("/sys/module/nvidia/version") {
        machine.insert("gpu.driver".into(), version.trim().into());
    }
    machine
}

/// Which program this is; see `build.rs`.
fn source() -> Table {
    let binary = std::env::current_exe()
        .and_then(std::fs::read)
        .map_or("unknown".into(), |b| Hash::of(&b).to_string());
    table([
        ("version", env!("CARGO_PKG_VERSION").into()),
        ("git_commit", env!("RUNNER_GIT_COMMIT").into()),
        ("dirty_patch", env!("RUNNER_DIRTY_PATCH").into()),
        ("rustc", env!("RUNNER_RUSTC").into()),
        ("target", env!("RUNNER_TARGET").into()),
        (
            "cargo_lock_sha256",
            Hash::of(include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock"))).to_string(),
        ),
        ("binary_sha256", binary),
    ])
}

/// Every key, its value and its origin.
fn config(loaded: &Loaded) -> Table {
    let origin = |key: &str| loaded.origins.get(key).map_or(String::new(), |origin| format!(" ({origin})"));
    let line = |(key, value): (String, serde_json::Value)| {
        let text = format!("{}{}", plain(&value), origin(&key));
        (key, text)
    };
    let values = experiment::flatten(&loaded.experiment).into_iter();
    values.filter(|(key, _)| experiment::is_recorded(key)).map(line).collect()
}

/// A sentence for a lock of a GPU from before its arithmetic had a name, or nothing.
pub fn older_arithmetic(locked: &Table, here: &Table) -> String {
    match here.get(ARITHMETIC_KEY) {
        Some(name) if locked.contains_key("cuda.nvrtc") && !locked.contains_key(ARITHMETIC_KEY) => format!(
            "\n  note: this lock is from a version whose bits depended on compiler, libraries and the \
             number of \
             multiprocessors; the kernels' arithmetic is `{name}` now, on any Hopper GPU and in its mirror, \
             and \
             has other bits"
        ),
        _ => String::new(),
    }
}

/// Differences, one a line; long lists are cut.
pub fn list(differences: &[Difference]) -> String {
    const SHOWN: usize = 12;
    let mut text: String =
        differences.iter().take(SHOWN).map(|difference| format!("\n  {difference}")).collect();
    if differences.len() > SHOWN {
        text.push_str(&format!("\n  and {} more", differences.len() - SHOWN));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_experiment_locks_what_reaches_the_bits_and_no_more() {
        let loaded = experiment::load_text(
            "t",
            "[model]\nlayers=1\nheads=1\nchannels=64\n[data]\ncorpus='kjv'\n[schedule]\nsteps=1",
            &[],
        )
        .expect("a whole experiment");
        let numerics = resolved_numerics(&loaded.experiment);
        assert_eq!(numerics["seed"], "1337");
        assert_eq!(numerics["data.order"], "shuffled", "no quotes of JSON");
        assert!(
            !numerics.keys().any(|key| key.starts_with("eval.") || key == "name" || key == "device.threads")
        );
        assert!(config(&loaded)["model.layers"].starts_with("1 (t:2"), "{}", config(&loaded)["model.layers"]);
    }

    #[test]
    fn an_experiment_that_goes_back_locks_its_checkpoints() {
        let text = "[model]\nlayers=1\nheads=1\nchannels=64\n[data]\ncorpus='kjv'\n[schedule]\nsteps=9\n\
                    [checkpoint]\nevery=3\n[guards]\non_diverge='rewind'\n";
        let numerics = |text: &str| {
            let loaded = experiment::load_text("t", text, &[]).expect("a whole experiment");
            resolved_numerics(&loaded.experiment)
        };
        assert_eq!(numerics(text)["checkpoint.every"], "3");
        assert!(!numerics(&text.replace("rewind", "stop")).contains_key("checkpoint.every"));
    }

    #[test]
    fn a_gpus_lock_from_before_its_arithmetic_had_a_name_is_refused_with_a_sentence() {
        let old = table([("cuda.nvrtc", "13.0".into()), ("cuda.sm_count", "132".into())]);
        let here = table([(ARITHMETIC_KEY, crate::ops::mirror::ARITHMETIC.into())]);
        let note = older_arithmetic(&old, &here);
        assert!(note.contains("hopper-bf16-v3") && note.contains("other bits"), "{note}");
        assert_eq!(older_arithmetic(&here, &here), "");
        assert_eq!(older_arithmetic(&old, &old), "", "a GPU without a mirror is held to all that it names");
        let lock = |numerics: Table| Lock {
            numerics,
            environment: Table::new(),
            source: Table::new(),
            config: Table::new(),
            outputs: Table::new(),
        };
        let expected = crate::run::expected::Expected {
            lock: lock(old),
            from: "`old.lock.toml`".into(),
            remedy: String::new(),
        };
        let refused = expected.require(&lock(here));
        assert!(refused.expect_err("other bits").0.contains("note: this lock is from a version"));
    }

    #[test]
    fn long_lists_are_cut() {
        let difference = |n: usize| Difference { key: n.to_string(), was: None, is: None };
        let text = list(&(0..20).map(difference).collect::<Vec<_>>());
        assert!(text.ends_with("and 8 more"), "{text}");
    }
}
