//! A run as one HTML page that needs nothing else: no script, no font, no picture from elsewhere.
//!
//! [`HtmlPage::gather`] reads the run's folder; damage is shown, not hidden. The caller makes the checks and
//! passes them in. [`markup`] lays it out, [`config`] reads the resolved experiment line by line, [`numbers`]
//! condenses the metrics.
//!
//! Everything read from a file is escaped; the page's policy forbids loading anything. The same
//! run gives the same bytes: no clock.

mod config;
mod markup;
mod numbers;
#[cfg(test)]
mod tests;

use std::path::Path;

use config::Setting;

use super::{PlotOptions, ReportError, RunData, charts, summary};
use crate::proof::entry::Entry;
use crate::proof::ledger::{self, Log};
use crate::proof::lock::Lock;
use crate::store::gpu_log::GpuSample;
use crate::store::{Manifest, RunPaths, checkpoint};

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Passed,
    Failed,
    /// Not made.
    NotChecked,
}

/// A guarantee, and the result of its check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub status: Status,
    pub name: String,
    pub detail: String,
}

/// Text that the model wrote at a step.
struct WrittenSample {
    step: u64,
    text: String,
}

/// A checkpoint, or what is wrong with it.
struct ListedCheckpoint {
    step: u64,
    manifest: Result<Manifest, String>,
}

/// Everything that the page shows.
pub struct HtmlPage {
    run: RunData,
    settings: Vec<Setting>,
    /// `None` where there is no such file; what is wrong with one that is damaged.
    lock: Option<Result<Lock, String>>,
    ledger: Option<Result<(Log, Vec<Entry>), String>>,
    checkpoints: Vec<ListedCheckpoint>,
    samples: Vec<WrittenSample>,
    /// Readings of the GPU's sensors; empty without a GPU.
    sensors: Vec<GpuSample>,
    checks: Vec<Check>,
}

impl HtmlPage {
    /// Reads the run in `folder`; `checks` are the guarantees with their results.
    ///
    /// # Errors
    /// There are no metrics yet, or a file cannot be read. Damage to lock, ledger or a checkpoint is content.
    pub fn gather(folder: &Path, checks: Vec<Check>) -> Result<HtmlPage, ReportError> {
        let paths = RunPaths::new(folder);
        let run = RunData::from_folder(folder)?;
        let settings = match std::fs::read_to_string(paths.experiment()) {
            Ok(text) => config::settings(&text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(ReportError::Io { action: "read", path: paths.experiment(), source }),
        };
        let checkpoints = checkpoint::list(&paths.checkpoints())?.into_iter().map(|(step, folder)| {
            let manifest = checkpoint::inspect(&folder).map_err(|why| why.to_string());
            ListedCheckpoint { step, manifest }
        });
        Ok(HtmlPage {
            run,
            settings,
            lock: paths
                .lock_file()
                .exists()
                .then(|| Lock::read(&paths.lock_file()).map_err(|why| why.to_string())),
            ledger: paths
                .ledger()
                .exists()
                .then(|| ledger::read(&paths.ledger()).map_err(|why| why.to_string())),
            checkpoints: checkpoints.collect(),
            samples: samples(&paths.samples())?,
            sensors: sensors(&paths.gpu_log()),
            checks,
        })
    }

    /// The page.
    pub fn render(&self) -> Result<String, ReportError> {
        let charts = charts(std::slice::from_ref(&self.run), &PlotOptions::default())?;
        Ok(markup::page(self, &charts).into_string())
    }

    /// Why the run failed, as `runner show` has it; none if nothing did.
    fn failed(&self) -> Option<String> {
        let notes = match &self.ledger {
            Some(Ok((log, _))) => log.notes().iter().filter(|note| note.after == log.size()).collect(),
            _ => Vec::new(),
        };
        let patience = self.setting("guards.patience").and_then(|patience| patience.parse().ok());
        summary::failed(&self.run.rows, &notes, patience)
    }

    /// The value of a key of the experiment, as written.
    fn setting(&self, key: &str) -> Option<&str> {
        self.settings.iter().find(|setting| setting.key == key).and_then(|setting| setting.value.as_deref())
    }
}

/// The lines of `gpu.jsonl` that can be read: readings prove nothing, so a torn line is no fault.
fn sensors(path: &Path) -> Vec<GpuSample> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The samples in a folder, newest first.
fn samples(folder: &Path) -> Result<Vec<WrittenSample>, ReportError> {
    let io = |source| ReportError::Io { action: "read", path: folder.to_owned(), source };
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(io)?,
    };
    let mut samples = Vec::new();
    for entry in entries {
        let path = entry.map_err(io)?.path();
        let step = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .and_then(|stem| stem.strip_prefix("step_")?.parse().ok());
        if let Some(step) = step {
            let bytes = std::fs::read(&path).map_err(|source| ReportError::Io {
                action: "read",
                path: path.clone(),
                source,
            })?;
            samples.push(WrittenSample { step, text: String::from_utf8_lossy(&bytes).into_owned() });
        }
    }
    samples.sort_by_key(|sample| std::cmp::Reverse(sample.step));
    Ok(samples)
}
