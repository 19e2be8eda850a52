//! A run as a picture: loss, HellaSwag, learning rate and gradient norm over steps or tokens.
//!
//! In reading order: [`run_data`] loads runs and knows which published numbers they may stand
//! beside; [`series`] smooths, thins and finds ranges; [`axis`] finds ticks; [`scene`] is a list of
//! shapes that prints itself as SVG and PNG; [`panel`] draws one chart; [`figure`] lays the page out.
//! [`summary`] reads what a folder says of its run, and [`table`] sorts and filters many of them.
//!
//! Equal rows and options give equal bytes: no clock, no font of the machine, no hash order. A
//! picture hides nothing silently: what does not fit a frame is counted beside the panel's title,
//! and a step that a guard skipped is marked even where its value is off the scale or not a number.

mod axis;
mod figure;
mod panel;
mod run_data;
mod scene;
mod series;
pub mod summary;
pub mod table;

use std::io;
use std::path::{Path, PathBuf};

pub use run_data::{ModelFacts, RunData};

use crate::store::main_log::MainLogError;
use crate::store::metrics::MetricsError;
use crate::store::{StoreError, atomic};

/// What stands on the horizontal axis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XAxis {
    /// Optimizer steps.
    #[default]
    Step,
    /// Training tokens: comparable between batch sizes.
    Tokens,
}

/// How to draw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlotOptions {
    pub x: XAxis,
    /// Steps that a point of the strong line looks at; `None` takes a fortieth of the run, 1 smooths nothing.
    pub smooth: Option<usize>,
    /// Logarithmic loss axis.
    pub log_y: bool,
}

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("found no run `{run}`: expected a run folder, a name under `{}/`, or a main.log{}",
        run_data::RUNS, nearest.as_ref().map_or(String::new(), |name| format!("\n  hint: did you mean `{name}`?")))]
    NotFound { run: String, nearest: Option<String> },
    #[error("`{}` has no rows yet\n  hint: the first row appears after the first step", path.display())]
    Empty { path: PathBuf },
    #[error("nothing to plot: no run was given")]
    NoRuns,
    #[error("run `{run}` does not tell its tokens: main.log has steps alone\n  hint: use --x step")]
    NoTokens { run: String },
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    #[error(transparent)]
    MainLog(#[from] MainLogError),
    #[error("cannot read `{}`: {message}", path.display())]
    Experiment { path: PathBuf, message: String },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{message}")]
    Table { message: String },
    #[error("cannot draw: {message}")]
    Draw { message: String },
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl ReportError {
    fn draw(error: impl std::fmt::Display) -> ReportError {
        ReportError::Draw { message: error.to_string() }
    }
}

/// Draws runs into one figure and writes `loss.png` and `loss.svg` into a folder, each atomically.
/// Returns the paths written.
pub fn plot_runs(runs: &[RunData], options: &PlotOptions, out_dir: &Path) -> Result<Vec<PathBuf>, ReportError> {
    let scene = figure::draw(runs, options)?;
    std::fs::create_dir_all(out_dir).map_err(|source| ReportError::Io { action: "create", path: out_dir.to_owned(), source })?;
    let (png, svg) = (out_dir.join("loss.png"), out_dir.join("loss.svg"));
    atomic::write(&png, &scene.to_png()?)?;
    atomic::write(&svg, scene.to_svg()?.as_bytes())?;
    Ok(vec![png, svg])
}

#[cfg(test)]
mod tests;
