//! `model.init`: the model that training starts from, read before anything is allocated.
//!
//! It is a model of another program, or a checkpoint of a run, of which the weights are taken. It is hashed
//! and read once. A resumed run has its weights in its own checkpoint and does not need the model any more;
//! the lock keeps its digest.

use std::path::{Path, PathBuf};

use super::find;
use crate::experiment::{self, Declared, Experiment, ExperimentError, InitError, InitModels, Loaded, Model};
use crate::formats::{ForeignModel, Parameters, models_read, require_finite, values};
use crate::ops::{Ops, Result};
use crate::proof::lock::Table;
use crate::store::checkpoint::{self, MANIFEST_FILE, STATE_FILE};
use crate::train::Trainer;

/// The lock's keys for what `model.init` names: of a file its SHA-256, of a checkpoint its state root.
pub const INIT_KEYS: [&str; 2] = ["model.init_sha256", "model.init_root"];

/// The model that `model.init` names.
pub struct Initial {
    /// What the lock has of it: one of [`INIT_KEYS`], and its value.
    pinned: (&'static str, String),
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
    if from_checkpoint && !path.exists() {
        let known = |key| Some((key, past?.get(key)?.clone()));
        if let Some(pinned) = INIT_KEYS.into_iter().find_map(known) {
            return Ok(Some(Initial { pinned, parameters: None }));
        }
    }
    let model = InitModel::open(path)?;
    let pinned = model.pinned()?;
    let parameters = (!from_checkpoint).then(|| model.read(&experiment.model)).transpose()?;
    Ok(Some(Initial { pinned, parameters }))
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
    if let Some(Initial { pinned: (key, value), .. }) = initial {
        numerics.insert((*key).into(), value.clone());
    }
}

/// A model to start from: recognised, not read.
enum InitModel {
    Foreign(ForeignModel),
    /// The folder of a checkpoint, in its run's.
    Checkpoint(PathBuf),
}

impl InitModel {
    fn open(path: &Path) -> anyhow::Result<InitModel> {
        match path.join(MANIFEST_FILE).is_file() {
            true => Ok(InitModel::Checkpoint(path.into())),
            false => Ok(InitModel::Foreign(ForeignModel::open(path)?)),
        }
    }

    /// The sizes; a checkpoint's are in its run's experiment.
    fn sizes(&self) -> anyhow::Result<Model> {
        match self {
            InitModel::Foreign(model) => Ok(model.sizes()?),
            InitModel::Checkpoint(folder) => {
                let run = folder.parent().and_then(Path::parent).unwrap_or(Path::new("."));
                Ok(experiment::load_recorded(&run.join("experiment.toml"))?.experiment.model)
            }
        }
    }

    fn pinned(&self) -> anyhow::Result<(&'static str, String)> {
        let [sha256, root] = INIT_KEYS;
        Ok(match self {
            InitModel::Foreign(model) => (sha256, hex::encode(model.sha256()?)),
            InitModel::Checkpoint(folder) => (root, checkpoint::inspect(folder)?.state_root.to_string()),
        })
    }

    /// The parameters, whose sizes must be those of `model`: of a checkpoint the fp32 masters where it has
    /// them.
    fn read(&self, model: &Model) -> anyhow::Result<Parameters> {
        match self {
            InitModel::Foreign(foreign) => Ok(foreign.read(model)?),
            InitModel::Checkpoint(folder) => {
                let (_, state) = checkpoint::load_some(folder, find::is_weight)?;
                let file = folder.join(STATE_FILE);
                require_finite(&file, &state)?;
                let parameters = Parameters::of_state(&file, &self.sizes()?, state)?;
                parameters.require(model, folder)?;
                Ok(parameters)
            }
        }
    }
}

/// Loads an experiment's file as [`experiment::load`] does. What `model.init` leaves open is the model's:
/// sizes that are not given, and the folder of a run's checkpoint, which is one of `runs`.
pub fn load_experiment(path: &Path, sets: &[String], runs: &Path) -> Result<Loaded, ExperimentError> {
    experiment::load_with(path, sets, &Models { runs })
}

/// The same for a file that may declare a sweep.
pub fn load_declared(path: &Path, sets: &[String], runs: &Path) -> Result<Declared, ExperimentError> {
    experiment::load_declared(path, sets, &Models { runs })
}

struct Models<'a> {
    runs: &'a Path,
}

impl InitModels for Models<'_> {
    fn checkpoint(&self, run: &str) -> Result<PathBuf, InitError> {
        let hint = "`run:NAME@STEP` names a checkpoint of a run, `run:NAME` its newest";
        find::checkpoint(run, self.runs).map_err(|error| init_error(&error, hint))
    }

    fn sizes(&self, path: &Path) -> Result<Model, InitError> {
        let hint = || format!("`model.init` takes {}, or a checkpoint of a run", models_read());
        InitModel::open(path).and_then(|model| model.sizes()).map_err(|error| init_error(&error, &hint()))
    }
}

/// An error whose message may end in a hint; `hint` is for one that has none.
fn init_error(error: &anyhow::Error, hint: &str) -> InitError {
    let text = error.to_string();
    let (message, hint) = text.split_once("\n  hint: ").unwrap_or((&text, hint));
    InitError { message: message.into(), hint: hint.into() }
}
