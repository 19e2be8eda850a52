//! A run as an in-toto statement with SLSA provenance v1.
//!
//! The subject is the newest checkpoint, the dependencies are data, tokenizer and sources by hash, the
//! parameters are the experiment and the numerics of the lock. Formats: in-toto.io/Statement/v1 and
//! slsa.dev/provenance/v1. The statement is a function of the run: it has no clock, and it is not signed;
//! `cosign attest-blob` and the like sign it.
//!
//! What is attested was checked: every byte of the checkpoint, every line of the ledger.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::data::mixture::locked_shard;
use crate::experiment;
use crate::proof::lock::{Lock, Table, differences};
use crate::proof::{Entry, LedgerError, LockError, ledger, regular};
use crate::store::manifest::Standing;
use crate::store::{self, RunPaths, StoreError, checkpoint};

/// The type of the statement.
pub const STATEMENT: &str = "https://in-toto.io/Statement/v1";
/// The type of its predicate.
pub const PREDICATE: &str = "https://slsa.dev/provenance/v1";
/// How a run is made from its parameters; described in `docs/ci.md`.
pub const BUILD_TYPE: &str = "urn:runner:train:v1";
/// The default builder.
pub const BUILDER: &str = "urn:runner:local";

/// Why there is nothing to attest.
#[derive(Debug, thiserror::Error)]
pub enum SlsaError {
    #[error("there is no checkpoint in `{}` to attest", folder.display())]
    NoCheckpoint { folder: std::path::PathBuf },
    #[error(
        "the head of the checkpoint of step {step} is not in the ledger\n  \
         hint: `runner verify` says what differs"
    )]
    ForeignLedger { step: u64 },
    #[error(
        "the checkpoint of step {step} has another state root than the ledger\n  \
         hint: `runner verify` says what differs"
    )]
    OtherRoot { step: u64 },
    #[error(
        "the ledger has no state root of step {step}: the checkpoint was saved when the run was stopped, and \
         `proof.digest_every` left it out\n  hint: go on to the next checkpoint, or to the end"
    )]
    Unbound { step: u64 },
    #[error(
        "the checkpoint of step {step} was made with other numerics than the lock has: {difference}\n  \
         hint: where a resume changed them, go on to the next checkpoint; else `runner verify` says what was \
         edited"
    )]
    OtherNumerics { step: u64, difference: String },
    #[error(
        "the ledger's head is not the one that the lock has of its end\n  \
         hint: `runner verify` says what was edited"
    )]
    OtherEnd,
    #[error(
        "the run ended at step {end}, and its newest checkpoint is of step {step}\n  \
         hint: bring the last one back: a statement is of what the run came to"
    )]
    NotTheEnd { step: u64, end: String },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Experiment(#[from] experiment::ExperimentError),
}

/// What was changed by leave before a step, and changed the bits from there on: the numerics are those after
/// it.
fn drift(entries: &[Entry]) -> Vec<Value> {
    let of = |entry: &Entry| {
        let step = entry.step;
        entry.drifts().map(|change| json!({"step": step, "change": change})).collect::<Vec<_>>()
    };
    entries.iter().flat_map(of).collect()
}

/// The statement for the newest checkpoint of the run in `folder`, made by `builder`, a URI.
pub fn statement(folder: &Path, builder: &str) -> Result<Value, SlsaError> {
    let paths = RunPaths::new(folder);
    let lock = Lock::read(&paths.lock_file())?;
    let experiment = experiment::load_recorded(&paths.experiment())?.experiment;
    let (step, checkpoint, manifest) = loop {
        let Some((step, checkpoint)) = store::list(&paths.checkpoints())?.pop() else {
            return Err(SlsaError::NoCheckpoint { folder: folder.into() });
        };
        match store::load(&checkpoint) {
            // A run that goes on has saved a newer one, and deleted this one while it was read.
            Err(_) if !store::list(&paths.checkpoints())?.iter().any(|(other, _)| *other == step) => {}
            loaded => break (step, checkpoint, loaded?.0),
        }
    };
    let (log, entries) = ledger::read(&paths.ledger())?;
    if let Some(end) = lock.outputs.get("step").filter(|end| **end != step.to_string()) {
        return Err(SlsaError::NotTheEnd { step, end: end.clone() });
    }
    let ended = lock.outputs.get("end_root").filter(|root| **root != log.head().root.to_string());
    if ended.is_some() {
        return Err(SlsaError::OtherEnd);
    }
    let other = differences(&manifest.numerics, &lock.numerics).into_iter().next();
    if let Some(difference) = other {
        return Err(SlsaError::OtherNumerics { step, difference: difference.to_string() });
    }
    match manifest.standing(&log, &entries) {
        Standing::Bound => {}
        Standing::Unbound => return Err(SlsaError::Unbound { step }),
        Standing::OtherHead | Standing::Unmade => return Err(SlsaError::ForeignLedger { step }),
        Standing::OtherRoot(_) => return Err(SlsaError::OtherRoot { step }),
    }
    let inside = |file: &str| format!("checkpoints/{}/{file}", checkpoint::folder_name(step));
    let config: Map<String, Value> = experiment::flatten(&experiment).into_iter().collect();
    Ok(json!({
        "_type": STATEMENT,
        "subject": [
            file(&checkpoint.join(checkpoint::STATE_FILE), &inside(checkpoint::STATE_FILE))?,
            file(&checkpoint.join(checkpoint::MANIFEST_FILE), &inside(checkpoint::MANIFEST_FILE))?,
        ],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"experiment": config},
                "internalParameters": {
                    "numerics_id": lock.numerics_id(),
                    "numerics": lock.numerics,
                    "environment": lock.environment,
                    "changed_on_the_way": drift(&entries),
                },
                "resolvedDependencies": dependencies(&lock),
            },
            "runDetails": {
                "builder": {
                    "id": builder,
                    "version": versions(&lock.source),
                    "builderDependencies": builder_dependencies(&lock.source),
                },
                "metadata": {"invocationId": format!("{}/{}", lock.numerics_id(), manifest.ledger.root)},
                "byproducts": [
                    file(&paths.ledger(), "ledger.jsonl")?,
                    file(&paths.lock_file(), "lock.toml")?,
                    {"name": "state root", "digest": {"runnerStateRoot": manifest.state_root}},
                ],
            },
        },
    }))
}

/// A file of the run under its name there.
fn file(path: &Path, name: &str) -> Result<Value, StoreError> {
    let sha256 = regular::sha256(path).map_err(|source| StoreError::Io {
        path: path.into(),
        doing: "read",
        source,
    })?;
    Ok(json!({"name": name, "digest": {"sha256": sha256}}))
}

/// Sources, data and tokenizer.
fn dependencies(lock: &Lock) -> Vec<Value> {
    let mut found = Vec::new();
    if let Some(commit) = lock.source.get("git_commit").filter(|commit| *commit != "unknown") {
        let patch = lock.source.get("dirty_patch").map_or("unknown", String::as_str);
        found.push(
            json!({"name": "runner", "digest": {"gitCommit": commit}, "annotations": {"dirty_patch": patch}}),
        );
    }
    if let Some(sha256) = lock.source.get("cargo_lock_sha256") {
        found.push(json!({"name": "Cargo.lock", "digest": {"sha256": sha256}}));
    }
    let shards = lock.numerics.iter().filter_map(|(key, shard)| Some((locked_shard(key)?, shard)));
    for ((of, number), shard) in shards {
        // `name, 100 tokens, sha256 …`; a name may hold commas.
        let parts =
            shard.rsplit_once(", sha256 ").and_then(|(rest, sha256)| Some((rest.rsplit_once(", ")?, sha256)));
        let ((name, tokens), sha256) = parts.unwrap_or(((shard, "unknown"), "unknown"));
        let mut annotations = json!({"shard": number, "size": tokens});
        if let Some(source) = of.strip_prefix("data.mix.") {
            annotations["source"] = source.into();
        }
        found.push(json!({"name": name, "digest": {"sha256": sha256}, "annotations": annotations}));
    }
    if let Some(sha256) = lock.numerics.get("data.tokenizer_sha256") {
        let name = lock
            .numerics
            .get("data.tokenizer")
            .map_or("tokenizer".to_owned(), |name| format!("tokenizer {name}"));
        found.push(json!({"name": name, "digest": {"runnerTokenizer": sha256}}));
    }
    found
}

fn versions(source: &Table) -> Value {
    let of = |key: &str| source.get(key).map_or("unknown", String::as_str);
    json!({"runner": of("version"), "rustc": of("rustc"), "target": of("target")})
}

fn builder_dependencies(source: &Table) -> Vec<Value> {
    let binary = source.get("binary_sha256").filter(|sha256| *sha256 != "unknown");
    binary.map(|sha256| json!({"name": "runner", "digest": {"sha256": sha256}})).into_iter().collect()
}
