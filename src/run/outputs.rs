//! The outputs in a run's lock: what its checkpoints and its ledger say came out.

use super::error::refuse_ledger;
use crate::proof::ledger::{self, Log};
use crate::proof::lock::{Lock, Table};
use crate::proof::{Entry, Head, entry};
use crate::store::{self, Manifest, RunPaths, checkpoint};

/// The outputs of a run: those of its last checkpoint, and the head of the ledger at its end, which covers
/// the evaluation after the last step.
pub fn of(last: &Manifest, end: Head) -> Table {
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
pub fn of_ledger(log: &Log, entries: &[Entry]) -> Table {
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
            of(&checkpoint::inspect(&folder)?, log.head())
        }
        None => Table::new(),
    };
    let lock = Lock { outputs, ..lock };
    store::atomic::write(&paths.lock_file(), lock.to_text().as_bytes())?;
    Ok(lock)
}
