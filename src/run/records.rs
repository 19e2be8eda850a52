//! The files that a run keeps, opened at the step that it goes on at.

use super::error::refuse_ledger;
use crate::experiment::Experiment;
use crate::proof::{Head, Ledger, Lock};
use crate::store::RunFolder;
use crate::store::main_log::MainLogWriter;
use crate::store::metrics::MetricsWriter;
use crate::store::tensorboard::EventWriter;
use crate::train::run::{Pending, Records};

/// Opens the files of a run at `step`, dropping what they say of later steps: it will come again.
pub fn open(
    experiment: &Experiment,
    folder: &RunFolder,
    head: Option<Head>,
    step: u64,
    lock: &Lock,
) -> anyhow::Result<Records> {
    let ledger = match head {
        Some(head) => Ledger::resume(&folder.paths.ledger(), &head).map_err(refuse_ledger)?,
        None => {
            let mut ledger = Ledger::open(&folder.paths.ledger()).map_err(refuse_ledger)?;
            ledger.truncate_to(0)?;
            ledger
        }
    };
    let run = folder.paths.folder();
    Ok(Records {
        ledger,
        // A run that was killed before its first row has no files to go on with.
        metrics: if folder.paths.metrics_jsonl().exists() {
            MetricsWriter::resume(run, step)?
        } else {
            MetricsWriter::create(run)?
        },
        main_log: if folder.paths.main_log().exists() {
            MainLogWriter::resume(run, step)?
        } else {
            MainLogWriter::create(run)?
        },
        tensorboard: match experiment.log.tensorboard {
            true => Some(EventWriter::resume(&folder.paths.tensorboard(), step)?),
            false => None,
        },
        paths: folder.paths.clone(),
        numerics: lock.numerics.clone(),
        pending: Pending::default(),
    })
}
