//! The final validation loss of runs, or another number of theirs, over one swept key, or over two as a heat
//! map.
//!
//! Runs that cannot be compared are left out and counted; those whose training failed are marked where their
//! keys are. Equal runs give equal bytes, as in all pictures.

mod heat_map;
mod lines;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use super::compare::{ComparedRun, ComparedRuns};
use super::groups::order;
use super::scene::Scene;
use super::{ReportError, Theme, picture_paths, write_picture};
use crate::units;

/// Draws the number in which `runs` are compared over the keys that `runs` are grouped by, of which there are
/// one or two. `out` is a file that ends in `.png` or `.svg`, or a folder for `sweep.png` and `sweep.svg`.
pub fn plot(runs: &ComparedRuns, theme: Theme, out: &Path) -> Result<Vec<PathBuf>, ReportError> {
    let paths = picture_paths(out, "sweep")?;
    write_picture(&draw(runs, theme)?, paths, None)
}

fn draw(runs: &ComparedRuns, theme: Theme) -> Result<Scene, ReportError> {
    if runs.all().next().is_none() {
        let message = "nothing to plot: none of these runs can be compared".to_owned();
        return Err(ReportError::Table { message });
    }
    match runs.by.as_slice() {
        [key] => lines::draw(runs, key, theme),
        [across, up] => heat_map::draw(runs, [across, up], theme),
        _ => Err(ReportError::Table { message: "expected one swept key, or two".to_owned() }),
    }
}

/// The values of a key in runs that are compared or failed, in their order.
fn values_of(runs: &ComparedRuns, key: &str) -> Vec<String> {
    let failed = runs.left_out.iter().filter(|run| run.failed).filter_map(|run| run.keys.as_ref());
    let keys = runs.all().map(|run| &run.keys).chain(failed);
    let mut values: Vec<String> = keys.map(|keys| keys.get(key).to_owned()).collect();
    values.sort_by(|a, b| order(a, b));
    values.dedup();
    values
}

/// The numbers of runs that a test picks.
fn losses(runs: &ComparedRuns, of: impl Fn(&ComparedRun) -> bool) -> Vec<f64> {
    runs.all().filter(|run| of(run)).map(|run| runs.value(run)).collect()
}

/// What is drawn, with its unit.
fn quantity(runs: &ComparedRuns) -> String {
    match (runs.measure.name(), runs.measure.unit()) {
        (name, "") => name.to_owned(),
        (name, unit) => format!("{name}, {}", unit.replace(" a ", " per ")),
    }
}

/// `1 run`, `24 runs`.
fn counted(runs: &ComparedRuns) -> String {
    units::counted(runs.all().count() as u64, "run")
}

/// What is said beside the title of runs that are not in the picture.
fn left_out(runs: &ComparedRuns) -> String {
    match runs.left_out.iter().filter(|run| !run.failed).count() {
        0 => String::new(),
        1 => "1 run left out".to_owned(),
        n => format!("{n} runs left out"),
    }
}
