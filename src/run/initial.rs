//! `model.init`: the model that training starts from, read before anything is allocated.
//!
//! The file is hashed and read once. A resumed run has its weights in its checkpoint and does not need the
//! file any more; the lock keeps its digest.

use std::path::Path;

use crate::experiment::Experiment;
use crate::formats::{ForeignModel, Parameters, values};
use crate::ops::{Ops, Result};
use crate::proof::lock::Table;
use crate::train::Trainer;

/// The lock's key for the content of `model.init`.
pub const INIT_SHA256: &str = "model.init_sha256";

/// The model that `model.init` names.
pub struct Initial {
    sha256: String,
    /// None where a checkpoint has the weights already.
    parameters: Option<Parameters>,
}

/// The model that `model.init` names, if any. `past` are the numerics of the run that is resumed.
///
/// # Errors
///
/// A file that is no such model, is damaged, or has other sizes than the experiment.
pub fn read(
    experiment: &Experiment,
    past: Option<&Table>,
    from_checkpoint: bool,
) -> anyhow::Result<Option<Initial>> {
    let Some(init) = &experiment.model.init else { return Ok(None) };
    let path = Path::new(init);
    let known = past.and_then(|past| past.get(INIT_SHA256)).filter(|_| from_checkpoint && !path.exists());
    if let Some(sha256) = known {
        return Ok(Some(Initial { sha256: sha256.clone(), parameters: None }));
    }
    let model = ForeignModel::open(path)?;
    let sha256 = hex::encode(model.sha256()?);
    if from_checkpoint {
        return Ok(Some(Initial { sha256, parameters: None }));
    }
    let parameters = model.read(&experiment.model)?;
    Ok(Some(Initial { sha256, parameters: Some(parameters) }))
}

impl Initial {
    /// Copies the model into a trainer before its first step.
    pub fn start<O: Ops>(self, trainer: &mut Trainer<O>) -> Result<()> {
        let Some(parameters) = self.parameters else { return Ok(()) };
        let mut tensors = parameters.tensors.iter();
        trainer.start_from(|_| values(tensors.next().expect("both are in the model's order")))
    }
}

/// Adds it to what the bits depend on.
pub fn lock(initial: Option<&Initial>, numerics: &mut Table) {
    if let Some(initial) = initial {
        numerics.insert(INIT_SHA256.into(), initial.sha256.clone());
    }
}
