//! The argument `MODEL` of `sample` and `eval`: a run's checkpoint, or a model in another program's files.

use std::path::{Path, PathBuf};

use anyhow::ensure;

use super::find;
use super::messages::Report;
use crate::experiment::{self, Experiment, Tokenizer, model_file};
use crate::formats;
use crate::store::{Manifest, RunPaths, Tensor};

/// Where the model is that the argument names.
pub enum ModelArgument {
    Run(RunPaths),
    /// A Hugging Face folder or a `.bin`, absolute.
    Foreign(PathBuf),
}

/// A model with its parameters on the host.
pub struct LoadedModel {
    /// The run's, or one made up for a model that comes alone.
    pub experiment: Experiment,
    /// Parameters, under their names.
    pub state: Vec<Tensor>,
    /// What is known of a checkpoint.
    pub manifest: Option<Manifest>,
}

/// A model file or folder, a run's folder, or a run's name under `runs`.
pub fn find(argument: &Path, runs: &Path) -> anyhow::Result<ModelArgument> {
    if argument.is_file() || argument.join(model_file::CONFIG).is_file() {
        return Ok(ModelArgument::Foreign(std::path::absolute(argument)?));
    }
    Ok(ModelArgument::Run(RunPaths::new(&find::find(Some(argument), runs)?)))
}

impl ModelArgument {
    /// The experiment, with the keys that are set over it. A model that comes alone has its own sizes, the
    /// tokenizer that its vocabulary belongs to, and the embedded text to be measured on.
    pub fn experiment(&self, set: &[String]) -> anyhow::Result<Experiment> {
        match self {
            ModelArgument::Run(paths) => Ok(experiment::load(&paths.experiment(), set)?.experiment),
            ModelArgument::Foreign(path) => {
                let vocab = model_file::sizes(path)?.vocab;
                let tokenizer = Tokenizer::of_vocab(vocab);
                ensure!(
                    tokenizer.is_some(),
                    "`{}` has a vocabulary of {vocab}, which no tokenizer fills",
                    path.display()
                );
                let name = path.file_stem().map_or_else(|| "model".into(), |stem| stem.to_string_lossy());
                let table = |pairs: &[(&str, &str)]| {
                    let pairs =
                        pairs.iter().map(|(key, value)| ((*key).to_owned(), toml::Value::from(*value)));
                    toml::Value::Table(pairs.collect())
                };
                let tokenizer = if tokenizer == Some(Tokenizer::Byte) { "byte" } else { "gpt2" };
                let text = toml::Table::from_iter([
                    ("model".to_owned(), table(&[("init", &path.to_string_lossy())])),
                    ("data".to_owned(), table(&[("corpus", "kjv"), ("tokenizer", tokenizer)])),
                    (
                        "schedule".to_owned(),
                        toml::Value::Table(toml::Table::from_iter([("steps".to_owned(), 1.into())])),
                    ),
                ]);
                let loaded = experiment::load_text(&name, &text.to_string(), set)?;
                Ok(loaded.experiment)
            }
        }
    }

    /// The parameters of the checkpoint of `step` (the newest whole one without), or of the model.
    pub fn parameters(
        &self,
        experiment: Experiment,
        step: Option<u64>,
        report: Report,
    ) -> anyhow::Result<LoadedModel> {
        match self {
            ModelArgument::Run(paths) => {
                let (manifest, state) = find::load_parameters(paths, step, report)?;
                Ok(LoadedModel { experiment, state, manifest: Some(manifest) })
            }
            ModelArgument::Foreign(path) => {
                ensure!(step.is_none(), "`{}` is a model, not a run: it has no checkpoints", path.display());
                let parameters = formats::read_model(path)?;
                parameters.require(&experiment.model, path)?;
                Ok(LoadedModel {
                    experiment,
                    state: parameters.tensors.iter().cloned().collect(),
                    manifest: None,
                })
            }
        }
    }
}

impl LoadedModel {
    /// What it is, for people.
    pub fn title(&self) -> String {
        let LoadedModel { experiment, manifest, .. } = self;
        match manifest {
            Some(manifest) => {
                format!("{}, step {}, state root {}", experiment.name, manifest.step, manifest.state_root)
            }
            None => experiment.model.init.clone().unwrap_or_else(|| experiment.name.clone()),
        }
    }
}
