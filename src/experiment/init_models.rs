//! What `model.init` can name, which this module does not know: formats of models and the folders of runs.

use std::path::{Path, PathBuf};

use super::check::RUN_PREFIX;
use super::model_keys::Model;
use super::resolved::Tokenizer;

/// Why a model gives no sizes: what is wrong with its file, and what to do.
#[derive(Clone, Debug)]
pub struct InitError {
    pub message: String,
    pub hint: String,
    /// Whether the model is there and damaged: nothing in the experiment would mend it.
    pub damage: bool,
}

/// Knows the models that `model.init` can name. This module knows neither formats of models nor runs: the
/// caller passes what does.
pub trait InitModels {
    /// The checkpoint of a run that stands behind [`RUN_PREFIX`](super::RUN_PREFIX): `NAME@STEP`, or `NAME`
    /// for the newest.
    fn checkpoint(&self, run: &str) -> Result<PathBuf, InitError>;

    /// The sizes of the model in a file or folder.
    fn sizes(&self, path: &Path) -> Result<Model, InitError>;

    /// The tokenizer of the model there; none where none can be told.
    ///
    /// # Errors
    ///
    /// It is none of ours.
    fn tokenizer(&self, path: &Path) -> Result<Option<Tokenizer>, InitError>;
}

/// `run:NAME@STEP` of the folder of a checkpoint in a run's, as people know it: `run:SWEEP/001@STEP` of a
/// member of a sweep. None of another path.
pub fn checkpoint_name(path: &str) -> Option<String> {
    let mut parts = path.rsplit('/');
    let step: u64 = parts.next()?.strip_prefix("step_")?.parse().ok()?;
    let (Some("checkpoints"), run) = (parts.next(), parts.next().filter(|run| !run.is_empty())?) else {
        return None;
    };
    let numbered = run.len() >= 3 && run.bytes().all(|digit| digit.is_ascii_digit());
    let sweep = parts.next().filter(|sweep| numbered && !sweep.is_empty());
    let sweep = sweep.map_or(String::new(), |sweep| format!("{sweep}/"));
    Some(format!("{RUN_PREFIX}{sweep}{run}@{step}"))
}

/// The [`InitModels`] of a caller that opens no model.
pub(super) struct NoModels;

impl InitModels for NoModels {
    fn checkpoint(&self, run: &str) -> Result<PathBuf, InitError> {
        Err(InitError {
            message: format!("the run `{run}` is not looked up here"),
            hint: "name the folder of its checkpoint".into(),
            damage: false,
        })
    }

    fn sizes(&self, path: &Path) -> Result<Model, InitError> {
        Err(InitError {
            message: format!("the sizes of `{}` are not read here", path.display()),
            hint: "set `model.layers`, `model.heads` and `model.channels`".into(),
            damage: false,
        })
    }

    fn tokenizer(&self, _: &Path) -> Result<Option<Tokenizer>, InitError> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::checkpoint_name;

    #[test]
    fn a_checkpoint_is_called_by_its_run_and_step() {
        let name = |path: &str| checkpoint_name(path);
        assert_eq!(name("/w/runs/trunk/checkpoints/step_00000600").as_deref(), Some("run:trunk@600"));
        assert_eq!(name("/w/runs/lr/001/checkpoints/step_00000010").as_deref(), Some("run:lr/001@10"));
        for other in ["/w/data/gpt2", "/w/checkpoints/step_x", "step_00000001", "/checkpoints/step_00000001"]
        {
            assert_eq!(name(other), None, "{other}");
        }
    }
}
