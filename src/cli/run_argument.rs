//! The argument `RUN` of several verbs: which folder is meant, and which checkpoint in it.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::store::{self, Loaded, RunPaths, StoreError, checkpoint};

/// The folder of a run: `run` itself if it is a folder, else that name under `runs`; the newest of
/// `runs` when none is given.
pub fn find(run: Option<&Path>, runs: &Path) -> anyhow::Result<PathBuf> {
    let folder = match run {
        Some(run) if run.is_dir() => run.to_owned(),
        Some(run) => runs.join(run),
        None => store::newest_run(runs)?.with_context(|| format!("there is no run in `{}`", runs.display()))?,
    };
    if !RunPaths::new(&folder).experiment().is_file() {
        return Err(StoreError::NoSuchRun { path: folder }.into());
    }
    Ok(folder)
}

/// The checkpoint of `step`, or the newest whole one. Those passed over are named on stderr.
pub fn load_checkpoint(paths: &RunPaths, step: Option<u64>) -> anyhow::Result<Loaded> {
    let checkpoints = paths.checkpoints();
    if let Some(step) = step {
        return Ok(store::load(&checkpoints.join(checkpoint::folder_name(step)))?);
    }
    let (found, broken) = store::newest_whole(&checkpoints)?;
    for (step, why) in &broken {
        anstream::eprintln!("passed over the checkpoint of step {step}: {why}");
    }
    found.with_context(|| format!("there is no whole checkpoint in `{}`", checkpoints.display()))
}
