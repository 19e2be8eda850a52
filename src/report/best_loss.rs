//! The lowest validation loss of a run, by its whole ledger: the one number of a list that its end does not
//! tell. Every line is hashed for it, once: what was found is kept in the user's cache folder while the
//! ledger stays as it is, by the rules of [`crate::data::digests`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::summary::RunSummary;
use crate::data::digests::{Stamp, settled};
use crate::ops::cuda::compile::cache_folder;
use crate::proof::{ledger, regular};
use crate::store::{RunPaths, atomic};

/// The cache's file.
const LEDGERS: &str = "ledgers.json";

/// A ledger as it was when all of its lines were hashed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KnownLedger {
    stamp: Stamp,
    /// None where nothing was validated.
    best_val_loss: Option<f64>,
}

/// What is known of ledgers, and whether that is more than the cache has.
#[derive(Default)]
struct KnownLedgers {
    by_path: BTreeMap<PathBuf, KnownLedger>,
    grown: bool,
}

static KNOWN: LazyLock<Mutex<KnownLedgers>> = LazyLock::new(|| {
    let text = cache_folder(LEDGERS).and_then(|file| regular::read(&file).ok());
    let by_path = text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    Mutex::new(KnownLedgers { by_path, grown: false })
});

/// The lowest finite validation loss of the run in `folder`: of its ledger, or where that is not whole of all
/// its rows.
pub(super) fn best_val_loss(folder: &Path) -> Option<f64> {
    let lock = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let path = RunPaths::new(folder).ledger();
    let place = path.canonicalize().ok();
    // Before reading, so that a change during the reading is noticed later.
    let stamp = place.as_deref().and_then(settled);
    if let (Some(place), Some(stamp)) = (&place, &stamp)
        && let Some(known) = lock().by_path.get(place).filter(|known| known.stamp == *stamp)
    {
        return known.best_val_loss;
    }
    let Some(losses) = ledger::validation_losses(&path) else {
        return RunSummary::read(folder).best_val_loss;
    };
    let best_val_loss = losses.into_iter().filter(|loss| loss.is_finite()).min_by(f64::total_cmp);
    if let (Some(place), Some(stamp)) = (place, stamp) {
        let mut known = lock();
        known.by_path.insert(place, KnownLedger { stamp, best_val_loss });
        known.grown = true;
    }
    best_val_loss
}

/// Keeps what was found, of paths that are UTF-8 as JSON is. A cache that cannot be written costs time and
/// nothing else.
pub fn remember() {
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(file) = cache_folder(LEDGERS).filter(|_| known.grown) else { return };
    known.by_path.retain(|ledger, _| ledger.to_str().is_some() && ledger.exists());
    known.grown = false;
    let text = serde_json::to_vec_pretty(&known.by_path).unwrap_or_default();
    let made = file.parent().map(std::fs::create_dir_all);
    drop(made.map(|_| atomic::write(&file, &text)));
}
