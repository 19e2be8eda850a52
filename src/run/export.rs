//! A checkpoint's model in the files of another program.
//!
//! Takes no lock and changes no existing file: a run may be exported while it is training.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::find;
use super::messages::{Message, Report};
use super::recorded::require_made_with;
use crate::data::Tokenizer;
use crate::experiment::{self, Experiment};
use crate::formats::{Export, FormatError, Parameters, Precision, WriteModel};
use crate::store::atomic::{self, NewFolder};
use crate::store::{Manifest, RunPaths, output};

/// The model to export, and how.
pub struct ExportRequest<'a> {
    pub run: &'a RunPaths,
    /// Step of the checkpoint; the newest whole one without.
    pub step: Option<u64>,
    /// The average of the weights in place of the weights.
    pub ema: bool,
    /// The format's name, and how it writes.
    pub format: &'static str,
    pub write: WriteModel,
    pub precision: Precision,
    /// The folder to create; below `export/` in the run's folder without.
    pub out: Option<PathBuf>,
}

/// What was exported.
pub struct Exported {
    /// Name of the experiment.
    pub name: String,
    pub manifest: Manifest,
    pub folder: PathBuf,
}

/// Writes a checkpoint's model, from its fp32 masters where there are any. The folder appears whole, or not.
///
/// # Errors
/// There is no such checkpoint, the folder exists, or cannot be written.
pub fn export(request: ExportRequest<'_>, report: Report) -> anyhow::Result<Exported> {
    let ExportRequest { run, step, ema, format, write, precision, out } = request;
    let experiment = experiment::load_recorded(&run.experiment())?.experiment;
    let exists = |folder: &PathBuf| match folder.exists() {
        true => Err(FormatError::Exists { path: folder.clone() }),
        false => Ok(()),
    };
    // Before the checkpoint is read.
    out.iter().try_for_each(exists)?;
    output::require_folder(out.as_deref().unwrap_or(&run.folder().join("export")))?;
    let load = if ema { find::load_average } else { find::load_masters };
    let (manifest, state) = load(run, step, report)?;
    require_made_with(&experiment, &manifest, run)?;
    let average = if ema { "_ema" } else { "" };
    let name = format!("step_{:08}_{format}_{}{average}", manifest.step, precision.name());
    let folder = out.unwrap_or_else(|| run.folder().join("export").join(name));
    exists(&folder)?;
    let state_file = find::state_file(run, manifest.step);
    let export = Export {
        parameters: Parameters::of_state(&state_file, &experiment.model, state)?,
        precision,
        tokenizer: Tokenizer::new(experiment.data.tokenizer),
        sample: &experiment.sample,
        origin: origin(&experiment, &manifest, ema),
    };
    for left in atomic::left_beside(&folder) {
        let what = format!("`{}` is half an export that was killed: delete it", left.display());
        report.tell(&Message::Remark(&what));
    }
    let new = NewFolder::create_alone(&folder)?;
    write(new.path(), export)?;
    if !new.commit_new()? {
        return Err(FormatError::Exists { path: folder }.into());
    }
    Ok(Exported { name: run.name(), manifest, folder })
}

/// Run, step and state root of the file.
fn origin(experiment: &Experiment, manifest: &Manifest, ema: bool) -> BTreeMap<String, String> {
    let entries = [
        ("experiment", experiment.name.clone()),
        ("step", manifest.step.to_string()),
        ("tokens", manifest.tokens.to_string()),
        ("state_root", manifest.state_root.to_string()),
        ("created_by", manifest.created_by.clone()),
    ];
    let average = ema.then(|| ("weights", "average".to_owned()));
    entries.into_iter().chain(average).map(|(key, value)| (format!("runner.{key}"), value)).collect()
}
