//! What goes into a lock: this file knows the keys, [`crate::proof::lock`] the file.
//!
//! A difference in `numerics` stops a run; a difference elsewhere is told. So a name belongs into
//! `numerics` when, and only when, another value can change a bit of the training state. The validation
//! set changes none and stands in `environment`: a run may be measured on other text.

use std::io::IsTerminal;
use std::path::Path;

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::exit::ProofRefusal;
use super::gpu_watch;
use super::initial::{self, Initial};
use super::session::Data;
use crate::data::{DigestCache, ShardDigest};
use crate::experiment::{self, Compute, Experiment, Loaded};
use crate::ops::cpu::{self, Cpu};
use crate::ops::cuda::libraries::{self, Library};
use crate::ops::cuda::{Cuda, compile};
use crate::ops::mirror::{self, Mirror};
use crate::ops::{DeviceError, Ops, Result};
use crate::parallel::{Exchange, ExchangeError, Hosted, Link as _, Tcp, nccl};
use crate::proof::lock::{Difference, Lock, Table, differences};
use crate::proof::{Hash, LockError};
use crate::train;

/// Names the arithmetic of a Hopper GPU and its mirror in `numerics`.
const ARITHMETIC_KEY: &str = "cuda.arithmetic";

/// What a device adds to a lock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceFacts {
    /// What its bits depend on: equal values mean equal bits.
    pub numerics: Table,
    /// What else is worth knowing of it.
    pub environment: Table,
}

/// A device that says what its bits depend on, and can be held to it.
pub trait Locked: Ops {
    /// Complete once the trainer has allocated everything.
    fn facts(&self) -> Result<DeviceFacts>;

    /// Takes choices that were made when the lock was (the algorithms of matrix multiplications), before
    /// the trainer allocates anything.
    fn pin(&mut self, numerics: &Table) -> Result<()>;

    /// Joins the devices of all ranks, to exchange what lies on them.
    fn join(&mut self, link: Tcp) -> Result<Box<dyn Exchange<Self>>, ExchangeError>;
}

/// SHA-256 of a library's file, remembered between runs: it is hundreds of megabytes.
fn library_sha256(library: Library) -> Result<String> {
    let path = libraries::require(library)?.path;
    let mut cache = cache(LIBRARIES);
    let sha256 = cache.file(&path);
    cache.save();
    sha256.map(hex::encode).map_err(|e| {
        DeviceError::Unavailable(format!("cannot read `{}`, which the bits depend on: {e}", path.display()))
    })
}

fn table<const N: usize>(pairs: [(&str, String); N]) -> Table {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

impl Locked for Cpu {
    fn facts(&self) -> Result<DeviceFacts> {
        Ok(DeviceFacts {
            numerics: table([
                ("cpu.numerics_version", cpu::NUMERICS_VERSION.to_string()),
                ("device.kind", "cpu".into()),
            ]),
            environment: Table::new(),
        })
    }

    fn pin(&mut self, _: &Table) -> Result<()> {
        Ok(())
    }

    fn join(&mut self, link: Tcp) -> Result<Box<dyn Exchange<Cpu>>, ExchangeError> {
        Ok(Box::new(Hosted(link)))
    }
}

impl Locked for Mirror {
    fn facts(&self) -> Result<DeviceFacts> {
        let numerics = table([(ARITHMETIC_KEY, mirror::ARITHMETIC.into())]);
        Ok(DeviceFacts { numerics, environment: Table::new() })
    }

    fn pin(&mut self, _: &Table) -> Result<()> {
        Ok(())
    }

    fn join(&mut self, link: Tcp) -> Result<Box<dyn Exchange<Mirror>>, ExchangeError> {
        Ok(Box::new(Hosted(link)))
    }
}

impl Locked for Cuda {
    fn facts(&self) -> Result<DeviceFacts> {
        let mut machinery = self.numerics()?;
        machinery.insert("cuda.cublaslt_sha256".into(), library_sha256(Library::CublasLt)?);
        let gpu = self.gpu();
        let mut environment = gpu_watch::environment(&gpu.uuid);
        // Where the mirror has the same bits, its name says all that they depend on.
        let numerics = if self.has_mirror() {
            environment.extend(machinery);
            table([(ARITHMETIC_KEY, mirror::ARITHMETIC.into())])
        } else {
            machinery.insert("device.kind".into(), "cuda".into());
            machinery
        };
        environment.extend(table([
            ("gpu.name", gpu.name.clone()),
            ("gpu.uuid", gpu.uuid.clone()),
            ("gpu.memory_bytes", gpu.total_bytes.to_string()),
        ]));
        Ok(DeviceFacts { numerics, environment })
    }

    fn pin(&mut self, numerics: &Table) -> Result<()> {
        self.restore_plans(numerics)
    }

    fn join(&mut self, link: Tcp) -> Result<Box<dyn Exchange<Cuda>>, ExchangeError> {
        let first = link.rank() == 0;
        let (exchange, how) = nccl::join(self, link)?;
        if first {
            anstream::eprintln!("exchange: {how}");
        }
        Ok(exchange)
    }
}

/// The lock of an experiment on this machine, without outputs.
///
/// `cache` holds the digests of shards; without one every byte is read.
pub fn lock<O: Locked>(
    loaded: &Loaded,
    data: &Data,
    initial: Option<&Initial>,
    ops: &O,
    cache: DigestCache,
) -> anyhow::Result<Lock> {
    let facts = ops.facts()?;
    let mut numerics = resolved_numerics(&loaded.experiment);
    // The arithmetic says it better: a GPU and its mirror have one.
    numerics.remove("device.kind");
    numerics.extend(data_numerics(data, cache));
    numerics.extend(facts.numerics);
    initial::lock(initial, &mut numerics);
    numerics.insert("train.numerics_version".into(), train::NUMERICS_VERSION.to_string());
    if loaded.experiment.precision.compute == Compute::Auto {
        let actual =
            if numerics.get("device.kind").is_some_and(|kind| kind == "cpu") { "fp32" } else { "bf16" };
        numerics.insert("precision.compute".into(), actual.into());
    }
    let mut environment = machine();
    environment.insert("device".into(), ops.device_name());
    if let Some(set) = &data.validation {
        environment.insert("data.validation_sha256".into(), hex::encode(set.sha256()));
    }
    environment.extend(facts.environment);
    Ok(Lock { numerics, environment, source: source(), config: config(loaded), outputs: Table::new() })
}

/// The keys that reach the bits, as resolved.
pub fn resolved_numerics(experiment: &Experiment) -> Table {
    let reaching =
        experiment::flatten(experiment).into_iter().filter(|(key, _)| experiment::reaches_the_bits(key));
    reaching.map(|(key, value)| (key, plain(&value))).collect()
}

/// A value without the quotes of JSON.
fn plain(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Null => "not set".into(),
        other => other.to_string(),
    }
}

fn data_numerics(data: &Data, cache: DigestCache) -> Table {
    let mut numerics = shards(&data.manifest(cache));
    numerics.insert("data.tokenizer_sha256".into(), hex::encode(data.tokenizer.sha256()));
    numerics
}

/// The data manifest: `data.shard.00000`, in order.
pub fn shards(manifest: &[ShardDigest]) -> Table {
    let line = |shard: &ShardDigest| {
        format!("{}, {} tokens, sha256 {}", shard.name, shard.tokens, hex::encode(shard.sha256))
    };
    manifest.iter().enumerate().map(|(at, shard)| (format!("data.shard.{at:05}"), line(shard))).collect()
}

impl Data {
    /// Name, tokens and SHA-256 of each training shard; a bar where that takes long.
    pub fn manifest(&self, mut cache: DigestCache) -> Vec<ShardDigest> {
        let bytes = cache.unknown_bytes(&self.train);
        let slow = bytes > 1 << 30;
        let bar = if slow && std::io::stderr().is_terminal() {
            ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr())
        } else {
            ProgressBar::hidden()
        };
        let style =
            ProgressStyle::with_template("hashing data {bar:32.cyan/dim} {bytes}/{total_bytes}  {eta} left");
        bar.set_style(style.expect("the template is valid").progress_chars("━╸─"));
        if slow && bar.is_hidden() {
            anstream::eprintln!("hashing {} of training data", HumanBytes(bytes));
        }
        let manifest = cache.manifest(&self.train, |shard| bar.inc(shard.bytes));
        bar.finish_and_clear();
        cache.save();
        manifest
    }
}

/// The digests of shards that this user's runs have hashed before.
pub fn user_cache() -> DigestCache {
    cache("shards.json")
}

const LIBRARIES: &str = "libraries.json";

fn cache(name: &str) -> DigestCache {
    compile::cache_folder(name).map_or_else(DigestCache::none, |file| DigestCache::open(&file))
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

/// Every key, its value and where that came from.
fn config(loaded: &Loaded) -> Table {
    let origin = |key: &str| loaded.origins.get(key).map_or(String::new(), |origin| format!(" ({origin})"));
    let line = |(key, value): (String, serde_json::Value)| {
        let text = format!("{}{}", plain(&value), origin(&key));
        (key, text)
    };
    experiment::flatten(&loaded.experiment).into_iter().map(line).collect()
}

/// A lock that a run is held to.
pub struct Expected {
    pub lock: Lock,
    /// How messages call it.
    pub from: String,
}

impl Expected {
    /// Reads a lock file; damage is a refusal.
    pub fn read(path: &Path) -> anyhow::Result<Expected> {
        let lock = Lock::read(path).map_err(refuse)?;
        Ok(Expected { lock, from: format!("`{}`", path.display()) })
    }

    /// Refuses other numerics, key by key.
    pub fn require(&self, here: &Lock) -> Result<(), ProofRefusal> {
        let changed = differences(&self.lock.numerics, &here.numerics);
        if changed.is_empty() {
            return Ok(());
        }
        Err(ProofRefusal(format!(
            "the bits that {} locks cannot be made here:{}{}\n  hint: undo the change, run on a machine that has what is locked, or lock anew with `runner lock`",
            self.from,
            list(&changed),
            older_arithmetic(&self.lock.numerics, &here.numerics)
        )))
    }

    /// Says on stderr what differs without changing a bit.
    pub fn tell(&self, here: &Lock) {
        let told = differences(&self.lock.environment, &here.environment)
            .into_iter()
            .chain(differences(&self.lock.source, &here.source))
            .collect::<Vec<_>>();
        if !told.is_empty() {
            anstream::eprintln!("same numerics as {}, made elsewhere:{}", self.from, list(&told));
        }
    }

    /// Refuses other outputs than the locked ones, if the lock has any.
    pub fn require_outputs(&self, outputs: &Table) -> Result<(), ProofRefusal> {
        let (locked, here) = (&self.lock.outputs, outputs);
        let changed = differences(locked, here);
        if locked.is_empty() || changed.is_empty() {
            return Ok(());
        }
        Err(ProofRefusal(format!(
            "the numerics are those of {}, the outputs are not:{}\n  hint: `runner verify` this run with `--replay`; if it cannot repeat itself either, suspect the hardware; else a change of the program has changed bits without saying so",
            self.from,
            list(&changed)
        )))
    }
}

/// A damaged lock is a mismatch, not a failure of the system.
pub fn refuse(error: LockError) -> anyhow::Error {
    match error {
        LockError::Io { .. } => error.into(),
        damaged => ProofRefusal(damaged.to_string()).into(),
    }
}

/// A sentence for a lock of a GPU from before its arithmetic had a name, or nothing.
pub fn older_arithmetic(locked: &Table, here: &Table) -> String {
    match here.get(ARITHMETIC_KEY) {
        Some(name) if locked.contains_key("cuda.nvrtc") && !locked.contains_key(ARITHMETIC_KEY) => format!(
            "\n  note: this lock is from a version whose bits depended on compiler, libraries and the number of \
             multiprocessors; the kernels' arithmetic is `{name}` now, on any Hopper GPU and in its mirror, and \
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
    fn a_gpus_lock_from_before_its_arithmetic_had_a_name_is_refused_with_a_sentence() {
        let old = table([("cuda.nvrtc", "13.0".into()), ("cuda.sm_count", "132".into())]);
        let here = table([(ARITHMETIC_KEY, mirror::ARITHMETIC.into())]);
        let note = older_arithmetic(&old, &here);
        assert!(note.contains("hopper-bf16-v1") && note.contains("other bits"), "{note}");
        assert_eq!(older_arithmetic(&here, &here), "");
        assert_eq!(older_arithmetic(&old, &old), "", "a GPU without a mirror is held to all that it names");
        let lock = |numerics: Table| Lock {
            numerics,
            environment: Table::new(),
            source: Table::new(),
            config: Table::new(),
            outputs: Table::new(),
        };
        let refused = Expected { lock: lock(old), from: "`old.lock.toml`".into() }.require(&lock(here));
        assert!(refused.expect_err("other bits").0.contains("note: this lock is from a version"));
    }

    #[test]
    fn long_lists_are_cut() {
        let difference = |n: usize| Difference { key: n.to_string(), was: None, is: None };
        let text = list(&(0..20).map(difference).collect::<Vec<_>>());
        assert!(text.ends_with("and 8 more"), "{text}");
    }
}
