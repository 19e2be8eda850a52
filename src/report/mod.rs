//! A run as a picture: loss, HellaSwag, learning rate and gradient norm over steps or tokens.
//!
//! In reading order: [`run_data`] loads runs and knows which published numbers they may stand
//! beside; [`series`] smooths, thins and finds ranges; [`axis`] finds ticks; [`scene`] is a list of
//! shapes that prints itself as SVG and PNG; [`panel`] draws one chart; [`figure`] lays the page out.
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

use std::io::{self, Write};
use std::path::{Path, PathBuf};

pub use run_data::{ModelFacts, RunData};

use crate::store::main_log::MainLogError;
use crate::store::metrics::MetricsError;

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
    let png = write_atomically(out_dir, "loss.png", |path| scene.write_png(path))?;
    let svg = write_atomically(out_dir, "loss.svg", |path| {
        let text = scene.to_svg()?;
        let written = std::fs::File::create(path).and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|source| ReportError::Io { action: "write", path: path.to_owned(), source })
    })?;
    Ok(vec![png, svg])
}

/// Lets `write` fill a temporary file of the same ending, then renames it.
fn write_atomically(
    folder: &Path,
    name: &str,
    write: impl FnOnce(&Path) -> Result<(), ReportError>,
) -> Result<PathBuf, ReportError> {
    let path = folder.join(name);
    let io_error = |action| move |source| ReportError::Io { action, path: folder.join(name), source };
    let ending = format!(".{}", name.rsplit('.').next().unwrap_or_default());
    let temporary = tempfile::Builder::new().prefix(".plot-").suffix(&ending).tempfile_in(folder).map_err(io_error("create"))?;
    write(temporary.path())?;
    let file = temporary.persist(&path).map_err(|error| io_error("rename a temporary file to")(error.error))?;
    // Temporary files are private; a picture is for everyone whom the folder is for.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        file.set_permissions(std::fs::Permissions::from_mode(0o644)).map_err(io_error("set the permissions of"))?;
    }
    drop(file);
    Ok(path)
}

#[cfg(test)]
mod tests;
