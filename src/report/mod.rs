//! A run as a picture: loss, HellaSwag, gradient norm and learning rate over steps, tokens, FLOPs or hours.
//!
//! In reading order: [`run_data`] loads runs and knows which published numbers they may stand
//! beside; [`curves`] makes lines of them, [`series`] smooths, thins and finds ranges; [`axis`] finds
//! ticks; [`scene`] is a list of shapes that prints itself as SVG and PNG, in the colours of [`theme`];
//! [`panel`] draws a frame and what can be in one, [`chart`] says what each panel shows, [`legend`] what
//! the lines mean; [`figure`] lays the page out. [`html`] is the page of a run around its pictures.
//! [`figures`] summarises a run in one number for each column of its metrics; [`summary`] reads the state of
//! a run from its folder, [`glance`] that of many from the ends of their files, [`table`] sorts, filters and
//! groups them, [`listing`] prints either; [`follow`] keeps up with a run that goes on. [`groups`] sorts
//! runs by keys of their experiments, [`statistics`] says what follows from a few numbers with spread,
//! [`compare`] holds groups against each other, [`bands`] and [`swept`] draw them.
//!
//! Equal rows and options give equal bytes: no clock, no font of the machine, no hash order. A
//! picture hides nothing silently: what does not fit a frame is counted beside the panel's title,
//! and a step that a guard skipped is marked even where its value is off the scale or not a number.

mod axis;
mod bands;
pub mod best_loss;
mod chart;
pub mod compare;
mod curves;
mod figure;
mod figures;
pub mod follow;
pub mod glance;
mod groups;
pub mod html;
mod legend;
pub mod listing;
mod panel;
mod run_data;
mod scene;
mod series;
pub mod sources;
pub mod statistics;
pub mod summary;
pub mod sweep_listing;
pub mod swept;
pub mod table;
mod table_group;
mod theme;

use std::io;
use std::path::{Path, PathBuf};

pub use figures::{Figures, TIMED};
pub use run_data::{ModelFacts, RunData, Size, is_unended, unbound};
use scene::Scene;
pub use theme::{Theme, dark_rules};

use crate::store::StoreError;
use crate::store::main_log::MainLogError;
use crate::store::metrics::MetricsError;
use crate::store::output::{self, OutputKind};

/// The horizontal axis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XAxis {
    /// Optimizer steps.
    #[default]
    Step,
    /// Training tokens: comparable between batch sizes.
    Tokens,
    /// Floating-point operations of the training: comparable between model sizes.
    Flops,
    /// Time spent in training steps, without evaluations and checkpoints.
    Hours,
    /// The learning rate, of runs in which it rises: a range test.
    LearningRate,
}

/// Which published numbers are drawn as levels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Baselines {
    /// Those comparable with a run: same size, same tokenizer, web text.
    #[default]
    Comparable,
    /// Those of these sizes.
    Chosen(Vec<Size>),
}

/// How to draw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlotOptions {
    pub x: XAxis,
    /// Steps over which a point of the strong line is smoothed, an even number one more; `None` takes a
    /// fortieth of the run, 1 smooths nothing.
    pub smooth: Option<usize>,
    pub log_x: bool,
    /// Logarithmic axes of loss and gradient norm.
    pub log_y: bool,
    pub theme: Theme,
    pub baselines: Baselines,
}

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("found no run `{run}`: expected a run folder, a name under `{}`, or a main.log{}",
        runs.display(), nearest.as_ref().map_or(String::new(), |name| format!("\n  hint: did you mean \
                                                                               `{name}`?")))]
    NotFound { run: String, runs: PathBuf, nearest: Option<String> },
    #[error("`{}` has no rows yet\n  hint: the first row appears after the first step", path.display())]
    Empty { path: PathBuf },
    #[error("`{}` ends in .{ending}, which is not a format of pictures here\n  hint: name a file in .png or \
             .svg, or a folder for loss.png and loss.svg", path.display())]
    Ending { path: PathBuf, ending: String },
    #[error("`{}` is not a folder: expected one that holds run folders", path.display())]
    NoFolder { path: PathBuf },
    #[error("nothing to plot: no run was given")]
    NoRuns,
    #[error("run `{run}` has no {what}: {why}\n  hint: use --x step")]
    NoAxis { run: String, what: &'static str, why: &'static str },
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

/// Runs of one kind, drawn as their mean.
#[derive(Clone, Debug)]
struct PlotGroup {
    /// As shown in the legend.
    name: String,
    runs: Vec<RunData>,
    /// How many more there are whose training failed: they are in no number.
    failed: usize,
}

/// Draws runs into one figure. `out` is a file that ends in `.png` or `.svg`, or a folder for `loss.png`
/// and `loss.svg`. Each is written atomically. Returns the paths written.
///
/// Folders on the way to `out` are made, but for the folder of a run that is drawn into its own: one that is
/// gone is not to be there again with a picture in it.
pub fn plot_runs(runs: &[RunData], options: &PlotOptions, out: &Path) -> Result<Vec<PathBuf>, ReportError> {
    let paths = picture_paths(out, "loss")?;
    let own = runs.iter().filter_map(|run| run.folder.as_deref()).find(|folder| out.starts_with(folder));
    write_picture(&figure::draw(runs, options)?, paths, own)
}

/// Draws runs in groups by keys of their experiments into one figure: for each group the mean of its runs,
/// with a band of the 95 % interval of the mean, or of the range of two runs. `out` as in [`plot_runs`].
pub fn plot_groups(
    runs: Vec<RunData>,
    by: &[String],
    options: &PlotOptions,
    out: &Path,
) -> Result<(Vec<PathBuf>, Vec<String>), ReportError> {
    let paths = picture_paths(out, "loss")?;
    let (groups, notes) = groups::to_draw(runs, by)?;
    Ok((write_picture(&figure::draw_groups(&groups, options)?, paths, None)?, notes))
}

/// Refuses early what [`plot_runs`], whose `stem` is `loss`, or [`swept::plot`], whose is `sweep`, would
/// refuse when all is drawn: files and folders that cannot be written.
pub fn require_pictures(out: &Path, stem: &str) -> Result<(), ReportError> {
    let paths = picture_paths(out, stem)?;
    Ok(paths.iter().try_for_each(|path| output::require(path, OutputKind::Picture))?)
}

/// The files of a picture: `out` itself, or `stem.png` and `stem.svg` in that folder.
fn picture_paths(out: &Path, stem: &str) -> Result<Vec<PathBuf>, ReportError> {
    let ending = out.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase);
    match ending.as_deref() {
        Some("png" | "svg") => Ok(vec![out.to_owned()]),
        // A folder may have a dot in its name, and is then there.
        Some(ending) if !out.is_dir() => {
            Err(ReportError::Ending { path: out.to_owned(), ending: ending.to_owned() })
        }
        _ => Ok(vec![out.join(format!("{stem}.png")), out.join(format!("{stem}.svg"))]),
    }
}

/// Folders on the way are made, but for `own`, which must be there.
fn write_picture(
    scene: &Scene,
    paths: Vec<PathBuf>,
    own: Option<&Path>,
) -> Result<Vec<PathBuf>, ReportError> {
    for path in &paths {
        let svg = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("svg"));
        let picture = if svg { scene.to_svg()?.into_bytes() } else { scene.to_png()? };
        // Only now: to draw takes longer than to write.
        if let Some(folder) = own.filter(|folder| !folder.is_dir()) {
            let gone = io::Error::new(io::ErrorKind::NotFound, "the run's folder is not there any more");
            return Err(ReportError::Io { action: "draw into", path: folder.to_owned(), source: gone });
        }
        output::write(path, &picture, OutputKind::Picture)?;
    }
    Ok(paths)
}

/// One panel as a picture of its own.
#[derive(Clone, Debug)]
pub struct Chart {
    pub title: &'static str,
    pub svg: String,
}

/// Each panel that there is data for, small enough for a column of text.
pub fn charts(runs: &[RunData], options: &PlotOptions) -> Result<Vec<Chart>, ReportError> {
    let charts = figure::charts(runs, options)?;
    charts.into_iter().map(|(kind, scene)| Ok(Chart { title: kind.title(), svg: scene.to_svg()? })).collect()
}

#[cfg(test)]
mod tests;
