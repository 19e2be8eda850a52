//! The argument `MODEL` of `sample` and `eval`: a run's checkpoint, or a model in another program's files.

use std::path::Path;

use super::error::require_usage;
use super::find;
use super::messages::{Message, Report};
use super::recorded::require_made_with;
use crate::data;
use crate::experiment::{self, Experiment, Model, Tokenizer};
use crate::formats::{ForeignModel, models_read};
use crate::store::{Manifest, RunPaths, Tensor};

/// The place of the model that the argument names.
pub enum ModelArgument {
    Run(RunPaths),
    Foreign(ForeignModel),
}

/// A model with its parameters on the host.
pub struct LoadedModel {
    /// The run's, or one made for a model without a run.
    pub experiment: Experiment,
    /// The run's name; None for a model without a run.
    pub run: Option<String>,
    /// Parameters, under their names.
    pub state: Vec<Tensor>,
    /// The facts about a checkpoint.
    pub manifest: Option<Manifest>,
    /// Whether the parameters are the average of the weights.
    pub ema: bool,
}

/// A run's folder, a run's name under `runs`, or a model's file or folder. A run takes precedence over a file
/// of its name, with a note.
pub fn find(argument: &Path, runs: &Path, report: Report) -> anyhow::Result<ModelArgument> {
    match find::find(Some(argument), runs) {
        Err(_) if argument.exists() => {
            Ok(ModelArgument::Foreign(ForeignModel::open(&std::path::absolute(argument)?)?))
        }
        found => {
            let folder = found?;
            let other = argument.canonicalize().is_ok_and(|there| folder.canonicalize().ok() != Some(there));
            if other {
                report.tell(&Message::RunBeforeFile { name: argument, folder: &folder });
            }
            Ok(ModelArgument::Run(RunPaths::new(&folder)))
        }
    }
}

/// The help text of the argument.
pub fn help() -> String {
    format!("The run: a name under `--runs`, or a folder. Or a model: {}", models_read())
}

impl ModelArgument {
    /// The experiment, with the keys that are set over it. A model without a run has its own sizes, the
    /// tokenizer of its files or that its vocabulary belongs to, and the embedded text for evaluation.
    ///
    /// # Errors
    ///
    /// The tokenizer is none of ours, and `set` names none.
    pub fn experiment(&self, set: &[String]) -> anyhow::Result<Experiment> {
        match self {
            ModelArgument::Run(paths) => Ok(experiment::load(&paths.experiment(), set)?.experiment),
            ModelArgument::Foreign(foreign) => {
                let (path, sizes) = (foreign.path(), foreign.sizes()?);
                let name = path.file_stem().map_or_else(|| "model".into(), |stem| stem.to_string_lossy());
                let given = experiment::is_set_over("data.tokenizer", set);
                let tokenizer = (!given).then(|| foreign.tokenizer(sizes.vocab)).transpose()?;
                let text = made_up(path, &sizes, tokenizer);
                Ok(experiment::load_text(&name, &text, set)?.experiment)
            }
        }
    }

    /// The parameters of the checkpoint of `step` (the newest whole one without), with `ema` the average of
    /// its weights; or those of the model.
    pub fn parameters(
        &self,
        experiment: Experiment,
        step: Option<u64>,
        ema: bool,
        report: Report,
    ) -> anyhow::Result<LoadedModel> {
        match self {
            ModelArgument::Run(paths) => {
                let load = if ema { find::load_average } else { find::load_parameters };
                let (manifest, state) = load(paths, step, report)?;
                require_made_with(&experiment, &manifest, paths)?;
                let run = Some(paths.name());
                Ok(LoadedModel { experiment, run, state, manifest: Some(manifest), ema })
            }
            ModelArgument::Foreign(foreign) => {
                let path = foreign.path().display();
                require_usage(step.is_none(), || {
                    format!("`{path}` is a model, not a run: it has no checkpoints")
                })?;
                require_usage(!ema, || {
                    format!("`{path}` is a model, not a run: it has no average of weights")
                })?;
                let (parameters, _) = foreign.read(&experiment.model)?;
                let state = parameters.tensors.iter().cloned().collect();
                Ok(LoadedModel { experiment, run: None, state, manifest: None, ema })
            }
        }
    }
}

/// The experiment of a model without a run, as text; without a tokenizer where another layer gives it.
fn made_up(path: &Path, sizes: &Model, tokenizer: Option<Tokenizer>) -> String {
    let tokenizer = tokenizer.map_or(String::new(), |tokenizer| {
        format!("tokenizer = \"{}\"\n", data::Tokenizer::new(tokenizer).name())
    });
    let Model { layers, heads, channels, context, vocab, .. } = *sizes;
    let path = toml::Value::from(&*path.to_string_lossy());
    let leaf = |key: &str| key.trim_start_matches("model.").to_owned();
    let parts: String =
        sizes.parts().into_iter().map(|(key, value)| format!("{} = {value}\n", leaf(key))).collect();
    format!(
        "[model]\ninit = {path}\nlayers = {layers}\nheads = {heads}\nchannels = {channels}\n\
         context = {context}\nvocab = {vocab}\n{parts}\
         [data]\ncorpus = \"kjv\"\n{tokenizer}\
         [schedule]\nsteps = 1\n"
    )
}

impl LoadedModel {
    /// What it is, for people.
    pub fn title(&self) -> String {
        let LoadedModel { experiment, run, manifest, ema, .. } = self;
        let what = if *ema { "the average of the weights, " } else { "" };
        match manifest {
            Some(manifest) => {
                // Weights alone are read and checked: the root is what the manifest says of the whole.
                let root = manifest.state_root;
                let (name, step) = (run.as_ref().unwrap_or(&experiment.name), manifest.step);
                format!("{name}, step {step}, {what}of the state {root} by its manifest")
            }
            None => experiment.model.init.clone().unwrap_or_else(|| experiment.name.clone()),
        }
    }
}
