//! What `model.init` can name, which this module does not know: formats of models and the folders of runs.

use std::path::{Path, PathBuf};

use super::resolved::{Experiment, Model};

/// Why a model gives no sizes: what is wrong with its file, and what to do.
#[derive(Clone, Debug)]
pub struct InitError {
    pub message: String,
    pub hint: String,
}

/// Knows the models that `model.init` can name. This module knows neither formats of models nor runs: the
/// caller passes what does.
pub trait InitModels {
    /// The checkpoint of a run that stands behind [`RUN_PREFIX`](super::RUN_PREFIX): `NAME@STEP`, or `NAME`
    /// for the newest.
    fn checkpoint(&self, run: &str) -> Result<PathBuf, InitError>;

    /// The sizes of the model in a file or folder.
    fn sizes(&self, path: &Path) -> Result<Model, InitError>;

    /// How far the run of a checkpoint had come there.
    fn progress(&self, checkpoint: &Path) -> Result<InitProgress, InitError>;
}

/// How far the run of a checkpoint had come.
#[derive(Clone, Debug)]
pub struct InitProgress {
    /// The run's name.
    pub run: String,
    /// Its experiment.
    pub experiment: Experiment,
    /// Sequences of its stream that it had read or passed over.
    pub sequences: u64,
}

/// The [`InitModels`] of a caller that opens no model.
pub(super) struct NoModels;

impl InitModels for NoModels {
    fn checkpoint(&self, run: &str) -> Result<PathBuf, InitError> {
        Err(InitError {
            message: format!("the run `{run}` is not looked up here"),
            hint: "name the folder of its checkpoint".into(),
        })
    }

    fn sizes(&self, path: &Path) -> Result<Model, InitError> {
        Err(InitError {
            message: format!("the sizes of `{}` are not read here", path.display()),
            hint: "set `model.layers`, `model.heads` and `model.channels`".into(),
        })
    }
    fn progress(&self, checkpoint: &Path) -> Result<InitProgress, InitError> {
        Err(InitError {
            message: format!("how far `{}` had come is not read here", checkpoint.display()),
            hint: "set `data.offset`".into(),
        })
    }
}
