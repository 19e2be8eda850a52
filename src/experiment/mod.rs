//! The experiment file: as written, its layers, and the resolved form the program runs on.
//!
//! A person writes TOML. [`load`] reads it strictly, lays `RUNNER_…` variables and `--set` over it with
//! figment, checks every value and every rule between keys, and reports all faults at once. What
//! comes out is an [`Experiment`] in which nothing is optional that the program needs, with the
//! [`Origin`] of each key. Loading looks at nothing but the files named and the environment: no data
//! is opened, no device asked, no memory planned.
//!
//! ```toml
//! extends = "base.toml"        # relative to this file; chains are fine, circles are refused
//!
//! [model]
//! descriptor = "d12"           # or layers, heads and channels
//!
//! [batch]
//! micro = 16
//!
//! [schedule]
//! steps = 1000
//!
//! [data]
//! train = "../data/train_*.bin"  # relative to this file
//! val = "../data/val_*.bin"
//! ```
//!
//! Layers, weakest first: defaults, base files, the file, `RUNNER_SCHEDULE__STEPS=100`, `--set
//! schedule.steps=100`. Where two ways to say one thing meet (a descriptor and sizes, a corpus and
//! shards, steps and epochs), both in one layer is a fault, and a stronger layer clears what a weaker one set
//! the other way. Paths become absolute when they are read, so the resolved file works from any folder; paths
//! in `RUNNER_…` and `--set` start from the working directory.

mod check;
mod copy_place;
mod declare;
mod defaults;
mod descriptor;
mod diagnostics;
mod foreign_names;
mod init_models;
mod json_schema;
mod key_row;
mod layers;
mod mix_weights;
mod model_keys;
mod origin;
mod reference;
mod resolved;
mod rules;
mod schema;
mod shipped;
mod step_batch;
mod sweep;
mod sweep_declaration;
mod sweep_draw;
mod template;
#[cfg(test)]
mod tests;
mod write;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::units::noun;

pub use check::RUN_PREFIX;
pub use check::{LONGEST_NAME, THEMSELVES, name_problem, not_expanded};
pub use copy_place::{CopyPlace, HAS_BUCKETS, NoPlace};
pub use defaults::{is_default, is_locked, is_recorded};
pub use descriptor::{Sizes, UnknownDescriptor, descriptors, is_given_by_descriptor, sizes};
pub use diagnostics::{ExperimentError, Fault, Snippet, nearest};
pub use init_models::{InitError, InitModels, checkpoint_name};
pub use json_schema::json_schema;
pub use model_keys::*;
pub use origin::Origin;
pub use reference::{KeyReference, KeysReference, SectionReference, UnknownKey, WordReference};
pub use resolved::*;
pub use schema::{key_of_source, keys, largest, names_files, pinned_by_content, reaches_the_bits};
pub use shipped::{SHIPPED, ShippedExperiment};
pub use step_batch::{StepSequences, scheduled_before};
pub use sweep::{Declared, Member, MemberSettings, Sweep, setting_text, settings_json, settings_text};
pub use template::template;
pub use write::{Hyperparameters, differences, flatten, hyperparameters, other_bits};

use layers::ExperimentText;

/// An experiment with the history of its keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    pub experiment: Experiment,
    /// Where each dotted key's value came from.
    pub origins: BTreeMap<String, Origin>,
    /// The file that was loaded, as it was named.
    pub path: PathBuf,
    /// `schedule.epochs`, while [`Loaded::resolve_epochs`] has yet to turn it into
    /// `schedule.steps`, which is 0 until then.
    pub epochs: Option<u64>,
    /// Whether `data.offset` follows from the data and the checkpoint whose optimizer goes on, while
    /// [`Loaded::resolve_offset`] has yet to set it; it is 0 until then.
    pub offset_follows: bool,
    /// What the command line or the environment says in place of an alternative in a file, a sentence each.
    pub remarks: Vec<String>,
}

/// An experiment of the folder `experiments`, without its data.
#[cfg(test)]
pub fn shipped(name: &str, sets: &[&str]) -> Experiment {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments").join(name);
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    load(&path, &sets).expect("it is complete").experiment
}

/// Loads an experiment's file with the process's environment and `sets`, each `key.path=value`.
///
/// Opens no model: an experiment whose sizes are those of the model that `model.init` names is refused here
/// and read by [`crate::run::initial::load_experiment`]. A run's own file has its sizes.
pub fn load(path: &Path, sets: &[String]) -> Result<Loaded, ExperimentError> {
    load_layers(&ExperimentText::Path(path), &environment(), sets)
}

/// As [`load`], with what knows the models that `model.init` can name. The bare name of a shipped experiment
/// names that one, where no file is called so.
pub fn load_with(path: &Path, sets: &[String], models: &dyn InitModels) -> Result<Loaded, ExperimentError> {
    load_layers_with(&named(path), &environment(), sets, models)
}

fn named(path: &Path) -> ExperimentText<'_> {
    ShippedExperiment::named(path).map_or(ExperimentText::Path(path), ExperimentText::Shipped)
}

/// Loads an experiment from text; messages call it `name`, and relative paths in it start from the
/// working directory. The environment and `sets` lie over it as over a file.
pub fn load_text(name: &str, text: &str, sets: &[String]) -> Result<Loaded, ExperimentError> {
    load_layers(&ExperimentText::Text { name, bytes: text.as_bytes() }, &environment(), sets)
}

/// Loads what a run wrote down of its experiment, as it stands: no environment lies over it.
pub fn load_recorded(path: &Path) -> Result<Loaded, ExperimentError> {
    load_layers(&ExperimentText::Path(path), &[], &[])
}

/// Loads what a run wrote down of its experiment, to check the run here: of the environment only what says
/// where files are and which device to use lies over it, and `sets`.
pub fn load_recorded_here(path: &Path, sets: &[String]) -> Result<Loaded, ExperimentError> {
    let mut variables = environment();
    variables.retain(|(name, _)| name.to_str().is_some_and(layers::says_where));
    load_layers(&ExperimentText::Path(path), &variables, sets)
}

/// Whether `sets` or this process's environment give a key a value, over every file.
pub fn is_set_over(key: &str, sets: &[String]) -> bool {
    let of_set = sets.iter().any(|set| set.split_once('=').is_some_and(|(name, _)| name.trim() == key));
    of_set
        || environment()
            .iter()
            .any(|(name, _)| name.to_str().and_then(layers::key_of).as_deref() == Some(key))
}

/// The variables of this process's environment that set keys.
pub fn setting_variables() -> Vec<String> {
    let names = environment().into_iter().map(|(name, _)| name.to_string_lossy().into_owned());
    names.filter(|name| layers::is_setting(name)).collect()
}

fn environment() -> Vec<(OsString, OsString)> {
    std::env::vars_os().collect()
}

fn load_layers(
    input: &ExperimentText<'_>,
    variables: &[(OsString, OsString)],
    sets: &[String],
) -> Result<Loaded, ExperimentError> {
    load_layers_with(input, variables, sets, &init_models::NoModels)
}

fn load_layers_with(
    input: &ExperimentText<'_>,
    variables: &[(OsString, OsString)],
    sets: &[String],
    models: &dyn InitModels,
) -> Result<Loaded, ExperimentError> {
    match declared(input, variables, sets, models)? {
        Declared::Experiment(loaded) => Ok(*loaded),
        Declared::Sweep(sweep) => Err(sweep.not_an_experiment()),
    }
}

/// Loads a file that declares one experiment, or a sweep of many.
pub fn load_declared(
    path: &Path,
    sets: &[String],
    models: &dyn InitModels,
) -> Result<Declared, ExperimentError> {
    declared(&named(path), &environment(), sets, models)
}

/// Loads what a sweep's folder holds of its declaration, as it stands: no environment lies over it. Each key
/// has the origin that it had when the sweep began.
pub fn load_recorded_sweep(path: &Path) -> Result<Sweep, ExperimentError> {
    match declared(&ExperimentText::Path(path), &[], &[], &init_models::NoModels)? {
        Declared::Sweep(sweep) => Ok(sweep.with_recorded_origins()),
        Declared::Experiment(_) => {
            let fault = Fault::new("it declares no sweep")
                .hint("a sweep's folder holds `sweep.toml` as runner wrote it; restore it".to_string());
            Err(ExperimentError::new(&path.display().to_string(), vec![fault]))
        }
    }
}

/// A resolved sweep from its text, read as one that a folder holds.
fn load_resolved_sweep(name: &str, text: &str) -> Result<Sweep, ExperimentError> {
    let text = ExperimentText::Text { name, bytes: text.as_bytes() };
    match declared(&text, &[], &[], &init_models::NoModels)? {
        Declared::Sweep(sweep) => Ok(sweep),
        Declared::Experiment(loaded) => {
            let fault = Fault::new(format!("`{}` declares no sweep", loaded.experiment.name));
            Err(ExperimentError::new(name, vec![fault]))
        }
    }
}

fn declared(
    input: &ExperimentText<'_>,
    variables: &[(OsString, OsString)],
    sets: &[String],
    models: &dyn InitModels,
) -> Result<Declared, ExperimentError> {
    let path = match input {
        ExperimentText::Path(path) => path.to_path_buf(),
        ExperimentText::Text { name, .. } => PathBuf::from(name),
        ExperimentText::Shipped(shipped) => shipped_path(shipped),
    };
    // A pipe such as `<(…)` has a number for its name, which the next one may have too.
    let is_pipe = std::fs::metadata(&path).is_ok_and(|found| !found.is_file() && !found.is_dir());
    let stem = match path.file_stem() {
        Some(_) if is_pipe => "experiment".to_owned(),
        stem => stem.map_or(String::new(), |stem| stem.to_string_lossy().into_owned()),
    };
    let mut layers = layers::read(input, variables, sets);
    let resolve = |layers| {
        let rules::Resolved { experiment, origins, epochs, offset_follows, remarks } =
            rules::resolve(layers, &stem, models)?;
        Ok(Loaded { experiment, origins, path: path.clone(), epochs, offset_follows, remarks })
    };
    let declared = match layers.sweep.take() {
        None => resolve(layers).map(|loaded| Declared::Experiment(Box::new(loaded))),
        Some(declaration) => sweep::expand(layers, &declaration, &path, &resolve).map(Declared::Sweep),
    };
    declared.map_err(|faults| ExperimentError::new(&path.display().to_string(), faults))
}

/// Where the experiment lies in a checkout.
fn shipped_path(shipped: &ShippedExperiment) -> PathBuf {
    Path::new("experiments").join(format!("{}.toml", shipped.name))
}

impl Loaded {
    /// The resolved form as TOML, with the origin of every key as a comment.
    ///
    /// Deterministic, and itself an experiment: it loads back as an equal [`Experiment`] from any
    /// folder, because its paths are absolute and no default is left to a later version.
    pub fn to_toml(&self) -> String {
        write::to_toml(self)
    }

    /// `{"experiment": …, "origins": …}`.
    pub fn to_json(&self) -> serde_json::Value {
        write::to_json(&self.experiment, &self.origins)
    }

    /// Turns `schedule.epochs` into `schedule.steps`, once the data are open.
    ///
    /// `sequences` is S, the sequences of the training data; what is left of the last epoch after
    /// the last whole step is not trained on. Without `schedule.epochs` nothing changes.
    pub fn resolve_epochs(&mut self, sequences: u64) -> Result<(), ExperimentError> {
        let Some(epochs) = self.epochs else { return Ok(()) };
        let refused = |message: String| {
            Err(ExperimentError::new(&self.path.display().to_string(), vec![Fault::new(message)]))
        };
        let passes = format!("{epochs} {} of {sequences}", noun(epochs, "epoch"));
        let passes = format!("{passes} {}", noun(sequences, "sequence"));
        let a_step = self.experiment.step_sequences();
        let steps = a_step.steps_within(u128::from(sequences) * u128::from(epochs));
        if steps == 0 {
            let a_step = a_step.of(0);
            let of_step = noun(a_step, "sequence");
            return refused(format!("{passes} make less than one step of {a_step} {of_step}"));
        }
        let warmup = self.experiment.schedule.warmup_steps;
        if warmup > steps {
            let of_warmup = noun(warmup, "step");
            return refused(format!(
                "the warm-up of {warmup} {of_warmup} is longer than the run of {steps} ({passes})"
            ));
        }
        let origin = format!(
            "{epochs} epochs of {sequences} sequences, {}",
            self.origins.get("schedule.epochs").unwrap_or(&Origin::Default)
        );
        self.origins.insert("schedule.steps".to_string(), Origin::Derived(origin));
        self.experiment.schedule.steps = steps;
        self.epochs = None;
        Ok(())
    }

    /// Sets a `data.offset` that follows from the data and a checkpoint, once both are open; `why` is its
    /// origin. One that a layer gives stays.
    pub fn resolve_offset(&mut self, offset: u64, why: String) {
        if std::mem::take(&mut self.offset_follows) {
            self.experiment.data.offset = offset;
            self.origins.insert("data.offset".to_string(), Origin::Derived(why));
        }
    }
}
