//! The layout of a picture: header, legend, and the panels with their lines.
//!
//! Loss and HellaSwag, the two panels of llm.c's notebook, are side by side, with gradient
//! norm and learning rate below them on the same horizontal axes. Where no run has HellaSwag the loss
//! takes the left part alone, and the rest is stacked beside it. One run has colours by kind of line
//! (training, validation); several runs have a colour each, the same in every panel, and kinds differ by
//! stroke. [`charts`] draws the panels one by one, small, for a page that arranges them itself.

use super::axis::label;
use super::bands::{self, Bands};
use super::chart::{PanelKind, Span};
use super::curves::{Curves, Horizontal, Moment};
use super::legend::{self, LegendEntry, LegendSample, shortened};
use super::panel::{Dash, TEXT_SIZE};
use super::run_data::{Reference, RunData, references};
use super::scene::{Align, Color, Scene, text_width};
use super::theme::Colors;
use super::{Baselines, PlotGroup, PlotOptions, ReportError};
use crate::store::metrics::MetricsRow;
use crate::units::{counted, thousands};

const WIDTH: u32 = 1600;
const MARGIN: f64 = 30.0;
/// Room above a frame for its title, and below the lowest for labels and the axis title.
const TITLE_ROOM: f64 = 48.0;
const X_ROOM: f64 = 78.0;
/// Room between two columns of panels.
const COLUMN_GAP: f64 = 36.0;

/// The data of the page and its panels.
pub struct FigurePage<'a> {
    lines: Vec<NamedLine<'a>>,
    pub(super) curves: Vec<Curves>,
    /// Of the groups that the lines are means of; empty where each line is a run.
    pub(super) bands: Vec<Bands>,
    /// Published levels to compare with.
    pub(super) levels: Vec<Reference>,
    pub(super) options: &'a PlotOptions,
    pub(super) across: Horizontal,
    pub(super) colors: &'static Colors,
}

/// A line of the page: the runs behind it, of which a group has several.
struct NamedLine<'a> {
    name: &'a str,
    runs: &'a [RunData],
    /// How many more failed, and are not drawn.
    failed: usize,
}

/// Lays the page of runs out and draws it.
pub fn draw(runs: &[RunData], options: &PlotOptions) -> Result<Scene, ReportError> {
    FigurePage::new(runs, options)?.draw()
}

/// The page of groups of runs: a line for the mean of each, with its band.
pub fn draw_groups(groups: &[PlotGroup], options: &PlotOptions) -> Result<Scene, ReportError> {
    FigurePage::of_groups(groups, options)?.draw()
}

/// Each panel that there is data for as a picture of its own, small enough for a column of text.
pub fn charts(runs: &[RunData], options: &PlotOptions) -> Result<Vec<(PanelKind, Scene)>, ReportError> {
    const SIZE: (u32, f64) = (760, 400.0);
    let page = FigurePage::new(runs, options)?;
    let mut charts = Vec::new();
    for kind in PanelKind::ALL.into_iter().filter(|kind| *kind == PanelKind::Loss || page.has(*kind)) {
        let right = f64::from(SIZE.0) - 24.0;
        let strip = |scene: &mut Scene| legend::draw(scene, page.legend(Some(kind))?, -4.0, (8.0, right));
        let top = strip(&mut Scene::new(SIZE.0, 1, page.colors))?.max(0.0) + TITLE_ROOM;
        let mut scene = Scene::new(SIZE.0, (top + SIZE.1 + X_ROOM) as u32, page.colors);
        strip(&mut scene)?;
        let span = Span { left: 8.0, right, top, bottom: top + SIZE.1, lowest: true, aligned: false };
        page.panel(&mut scene, kind, span)?;
        charts.push((kind, scene));
    }
    Ok(charts)
}

impl<'a> FigurePage<'a> {
    fn draw(&self) -> Result<Scene, ReportError> {
        let head = |scene: &mut Scene| {
            let top = self.header(scene)?;
            legend::draw(scene, self.legend(None)?, top, (MARGIN, f64::from(WIDTH) - MARGIN))
        };
        // Laid out twice: first to measure the legend, then with room for the panels.
        let below = head(&mut Scene::new(WIDTH, 1, self.colors))?;
        let usual = if self.has(PanelKind::Hellaswag) { 1000.0_f64 } else { 900.0 };
        let height = usual.max(below + usual - 180.0);
        let mut scene = Scene::new(WIDTH, height as u32, self.colors);
        head(&mut scene)?;
        self.panels(&mut scene, below + TITLE_ROOM, height - X_ROOM)?;
        Ok(scene)
    }

    fn new(runs: &'a [RunData], options: &'a PlotOptions) -> Result<FigurePage<'a>, ReportError> {
        let across = Horizontal::new(options.x, runs);
        let curves: Vec<Curves> =
            runs.iter().map(|run| Curves::new(run, options, &across)).collect::<Result<_, _>>()?;
        let lines =
            runs.iter().map(|run| NamedLine { name: &run.name, runs: std::slice::from_ref(run), failed: 0 });
        FigurePage::of(lines.collect(), across, curves, Vec::new(), options)
    }

    fn of_groups(groups: &'a [PlotGroup], options: &'a PlotOptions) -> Result<FigurePage<'a>, ReportError> {
        let across = Horizontal::new(options.x, groups.iter().flat_map(|group| &group.runs));
        let (mut curves, mut bands) = (Vec::new(), Vec::new());
        for group in groups {
            let of_runs: Vec<Curves> =
                group.runs.iter().map(|run| Curves::new(run, options, &across)).collect::<Result<_, _>>()?;
            let (mean, band) = bands::of_group(&of_runs, across.slack());
            curves.push(mean);
            bands.push(band);
        }
        let lines = groups.iter().map(|group| NamedLine {
            name: &group.name,
            runs: &group.runs,
            failed: group.failed,
        });
        FigurePage::of(lines.collect(), across, curves, bands, options)
    }

    fn of(
        lines: Vec<NamedLine<'a>>,
        across: Horizontal,
        curves: Vec<Curves>,
        bands: Vec<Bands>,
        options: &'a PlotOptions,
    ) -> Result<FigurePage<'a>, ReportError> {
        if lines.is_empty() {
            return Err(ReportError::NoRuns);
        }
        let runs = lines.iter().flat_map(|line| line.runs);
        let chosen: Vec<Reference> = match &options.baselines {
            Baselines::Comparable => runs.filter_map(|run| run.model.as_ref()).flat_map(references).collect(),
            Baselines::Chosen(sizes) => sizes.iter().flat_map(|size| size.references()).collect(),
        };
        let mut levels: Vec<Reference> = Vec::new();
        let scored = curves.iter().any(|run| !run.hellaswag.is_empty());
        for reference in chosen {
            match levels.iter_mut().find(|level| level.name == reference.name) {
                // Its loss counts beside some of the runs.
                Some(known) => known.val_loss = known.val_loss.or(reference.val_loss),
                None if scored || reference.val_loss.is_some() => levels.push(reference),
                None => {}
            }
        }
        Ok(FigurePage { lines, curves, bands, levels, options, across, colors: options.theme.colors() })
    }

    /// Whether any run has such values.
    fn has(&self, kind: PanelKind) -> bool {
        self.curves.iter().any(|run| !kind.points(run).is_empty())
    }

    pub(super) fn single(&self) -> bool {
        self.lines.len() == 1 && self.bands.is_empty()
    }

    /// The name of the page, and the line below it.
    fn title(&self) -> (String, Option<String>) {
        match self.lines.as_slice() {
            [line] if self.single() => (line.name.to_owned(), Some(facts(&line.runs[0]))),
            lines if self.bands.is_empty() => (counted(lines.len() as u64, "run"), None),
            lines => {
                let runs: usize = lines.iter().map(|line| line.runs.len()).sum();
                let groups = counted(lines.len() as u64, "group");
                (format!("{} in {groups}", counted(runs as u64, "run")), None)
            }
        }
    }

    /// Title and facts; returns the height used.
    fn header(&self, scene: &mut Scene) -> Result<f64, ReportError> {
        let (title, facts) = self.title();
        let room = f64::from(WIDTH) - 2.0 * MARGIN;
        scene.text(
            shortened(&title, room, 34.0, true)?,
            (MARGIN, 50.0),
            34.0,
            true,
            Align::Left,
            self.colors.text,
        );
        let Some(facts) = facts else { return Ok(66.0) };
        let facts = shortened(&facts, room, TEXT_SIZE, false)?;
        scene.text(facts, (MARGIN, 86.0), TEXT_SIZE, false, Align::Left, self.colors.quiet);
        Ok(102.0)
    }

    /// The legend's groups: the runs, then the kinds of lines; those of one panel where one is given.
    fn legend(&self, only: Option<PanelKind>) -> Result<Vec<Vec<LegendEntry>>, ReportError> {
        let on = |kinds: &[PanelKind]| only.is_none_or(|only| kinds.contains(&only));
        let mut names = Vec::new();
        if !self.single() {
            let (mut rooms, mut tails) = (Vec::new(), Vec::new());
            // Two pixels less than a row has, for the rounding of widths.
            let row = f64::from(WIDTH) - 2.0 * MARGIN - legend::SAMPLE - 14.0;
            for (index, (line, curves)) in self.lines.iter().zip(&self.curves).enumerate() {
                let band = self.bands.get(index);
                let cut = band.and_then(|band| band.cut);
                let last = match (band.and_then(|band| band.last_val_loss), curves.val_loss.last()) {
                    _ if line.runs.iter().any(RunData::has_lost_validation) => {
                        "  (validation NaN)".to_owned()
                    }
                    (None, Some((x, loss))) if cut.is_some() => {
                        format!("  (validation {loss:.4} at {})", self.across.place(*x))
                    }
                    (of_group, of_line) => of_group
                        .or(of_line.map(|point| point.1))
                        .map_or(String::new(), |loss| format!("  (validation {loss:.4})")),
                };
                let n = band.map_or(String::new(), |_| format!(", n = {}", line.runs.len()));
                let until =
                    cut.map_or(String::new(), |x| format!(" until one ends at {}", self.across.place(x)));
                let failed = match line.failed {
                    0 => String::new(),
                    failed => format!(", {failed} failed"),
                };
                let tail = format!("{n}{until}{failed}{last}");
                rooms.push((line.name, row - text_width(&tail, TEXT_SIZE, false)?));
                tails.push(tail);
            }
            let lines = legend::shortened_names(&rooms)?.into_iter().zip(tails).enumerate();
            names.extend(lines.map(|(index, (name, tail))| LegendEntry {
                sample: LegendSample::Plain(self.colors.run(index)),
                text: name + &tail,
            }));
        }
        let mut kinds = Vec::new();
        if on(&[PanelKind::Loss, PanelKind::GradNorm, PanelKind::Throughput])
            && self.curves.iter().any(|run| !run.loss.is_empty())
        {
            let color = if self.single() { self.colors.run(0) } else { self.colors.quiet };
            let what =
                if only.is_some_and(|only| only != PanelKind::Loss) { "each step" } else { "training" };
            let smoothing = self.smoothing();
            if self.bands.is_empty() {
                let sample = if smoothing.is_empty() {
                    LegendSample::Plain(color)
                } else {
                    LegendSample::Smoothed(color)
                };
                kinds.push(LegendEntry { sample, text: format!("{what}{smoothing}") });
            } else {
                let text = format!("{what}, mean of runs{smoothing}");
                kinds.push(LegendEntry { sample: LegendSample::Plain(color), text });
            }
        }
        if on(&[PanelKind::Loss]) && self.curves.iter().any(|run| !run.val_loss.is_empty()) {
            let color =
                if self.single() { self.colors.validation } else { self.colors.strong(self.colors.quiet) };
            let text = if self.bands.is_empty() { "validation" } else { "validation, mean of runs" };
            kinds.push(LegendEntry { sample: LegendSample::Dots(color), text: text.to_owned() });
        }
        if let Some(text) = self.band_means() {
            kinds.push(LegendEntry { sample: LegendSample::Band(self.colors.quiet), text });
        }
        let skipped: usize = self.curves.iter().map(|run| run.skipped_loss.len()).sum();
        if on(&[PanelKind::Loss, PanelKind::GradNorm]) && skipped > 0 {
            kinds.push(LegendEntry {
                sample: LegendSample::Cross,
                text: format!("update skipped ({})", thousands(skipped as u64)),
            });
        }
        for moment in Moment::ALL {
            let times =
                self.curves.iter().flat_map(|run| &run.moments).filter(|(at, _)| *at == moment).count();
            if on(&[PanelKind::Loss, PanelKind::GradNorm, PanelKind::Hellaswag]) && times > 0 {
                let (dash, color, word) = self.mark(moment);
                kinds.push(LegendEntry {
                    sample: LegendSample::Moment(dash, color),
                    text: format!("{word} ({})", thousands(times as u64)),
                });
            }
        }
        let scored =
            only.unwrap_or(PanelKind::Hellaswag) == PanelKind::Hellaswag && self.has(PanelKind::Hellaswag);
        for reference in self
            .levels
            .iter()
            .filter(|_| on(&[PanelKind::Loss, PanelKind::Hellaswag]) && self.levels.len() <= 4)
        {
            let loss = reference
                .val_loss
                .filter(|_| on(&[PanelKind::Loss]))
                .map(|loss| format!("loss on FineWeb {loss:.3}"));
            let accuracy = scored.then(|| format!("HellaSwag {:.3}", reference.hellaswag));
            let values: Vec<String> = loss.into_iter().chain(accuracy).collect();
            if !values.is_empty() {
                let text = format!("{}: {}", reference.name, values.join(", "));
                kinds.push(LegendEntry { sample: LegendSample::Level(dash_of(reference)), text });
            }
        }
        if self.levels.len() > 4 && on(&[PanelKind::Loss, PanelKind::Hellaswag]) {
            let text = if scored { "GPT-2: loss on FineWeb, HellaSwag" } else { "GPT-2: loss on FineWeb" };
            kinds.push(LegendEntry { sample: LegendSample::Level(Dash::Dashed), text: text.to_owned() });
            if scored {
                kinds.push(LegendEntry {
                    sample: LegendSample::Level(Dash::Dotted),
                    text: "GPT-3: HellaSwag".to_owned(),
                });
            }
        }
        Ok(vec![names, kinds])
    }

    /// The smoothing of the strong lines, for the legend.
    fn smoothing(&self) -> String {
        let windows: Vec<usize> = self.curves.iter().map(|run| run.window).collect();
        match (windows.iter().min(), windows.iter().max()) {
            (_, Some(1)) | (None, _) | (_, None) => String::new(),
            (Some(low), Some(high)) if !self.bands.is_empty() => {
                let (low, high) = (thousands(*low as u64), thousands(*high as u64));
                let steps = if low == high { low } else { format!("{low} to {high}") };
                format!(" (smoothed over ≤ {steps} steps)")
            }
            (Some(low), Some(high)) if low == high => {
                format!(" (strong: smoothed over ≤ {} steps)", thousands(*low as u64))
            }
            (Some(low), Some(high)) => {
                format!(
                    " (strong: smoothed over ≤ {} to {} steps)",
                    thousands(*low as u64),
                    thousands(*high as u64)
                )
            }
        }
    }

    /// What bands are, for the legend; none where no group has one.
    fn band_means(&self) -> Option<String> {
        let sizes = || self.lines.iter().map(|line| line.runs.len()).filter(|_| !self.bands.is_empty());
        match (sizes().any(|n| n > 2), sizes().any(|n| n == 2)) {
            (true, true) => Some("95 % interval of the mean; of two runs their range".to_owned()),
            (true, false) => Some("95 % interval of the mean".to_owned()),
            (false, true) => Some("range of the two runs".to_owned()),
            (false, false) => None,
        }
    }

    /// The colour, stroke and name of an event.
    pub(super) fn mark(&self, moment: Moment) -> (Dash, Color, &'static str) {
        match moment {
            Moment::Resume => (Dash::Dotted, self.colors.resumed, "resumed"),
            Moment::Rewind => (Dash::Dashed, self.colors.changed, "rewound"),
            Moment::Drift => (Dash::Dotted, self.colors.changed, "drifted"),
        }
    }

    fn panels(&self, scene: &mut Scene, top: f64, bottom: f64) -> Result<(), ReportError> {
        let end = f64::from(WIDTH) - MARGIN;
        let beside: Vec<PanelKind> = [PanelKind::GradNorm, PanelKind::LearningRate]
            .into_iter()
            .filter(|kind| self.has(*kind))
            .collect();
        if self.has(PanelKind::Hellaswag) {
            let middle = f64::from(WIDTH) / 2.0;
            let below = if beside.is_empty() { bottom } else { top + 0.64 * (bottom - top - TITLE_ROOM) };
            for (column, kind) in [PanelKind::Loss, PanelKind::Hellaswag].into_iter().enumerate() {
                let (left, right) = if column == 0 {
                    (MARGIN, middle - COLUMN_GAP / 2.0)
                } else {
                    (middle + COLUMN_GAP / 2.0, end)
                };
                let lower = beside.get(column);
                self.panel(
                    scene,
                    kind,
                    Span { left, right, top, bottom: below, lowest: lower.is_none(), aligned: true },
                )?;
                if let Some(lower) = lower {
                    self.panel(
                        scene,
                        *lower,
                        Span { left, right, top: below + TITLE_ROOM, bottom, lowest: true, aligned: true },
                    )?;
                }
            }
            return Ok(());
        }
        let split = if beside.is_empty() { end } else { 900.0 };
        self.panel(
            scene,
            PanelKind::Loss,
            Span { left: MARGIN, right: split, top, bottom, lowest: true, aligned: true },
        )?;
        let count = beside.len().max(1) as f64;
        let height = (bottom - top - TITLE_ROOM * (count - 1.0)) / count;
        for (index, kind) in beside.iter().enumerate() {
            let top = top + index as f64 * (height + TITLE_ROOM);
            let lowest = index + 1 == beside.len();
            self.panel(
                scene,
                *kind,
                Span {
                    left: split + COLUMN_GAP,
                    right: end,
                    top,
                    bottom: top + height,
                    lowest,
                    aligned: false,
                },
            )?;
        }
        Ok(())
    }
}

/// GPT-2's levels are dashed, GPT-3's dotted.
pub fn dash_of(reference: &Reference) -> Dash {
    if reference.name.starts_with("GPT-2") { Dash::Dashed } else { Dash::Dotted }
}

/// The line of facts under a run's name.
fn facts(run: &RunData) -> String {
    let mut facts = Vec::new();
    if let Some(model) = &run.model {
        facts.push(model.descriptor.clone().unwrap_or_else(|| {
            format!("{}, {} wide", counted(model.layers as u64, "layer"), model.channels)
        }));
    }
    let steps = run.trained().count() as u64;
    facts.push(counted(steps, "step"));
    let tokens = run.rows.last().map_or(0, |row| row.tokens);
    if run.has_tokens && tokens > 0 {
        facts.push(format!("{} tokens", label(tokens as f64, tokens as f64 / 100.0)));
    }
    let last = |value: fn(&MetricsRow) -> Option<f64>| run.rows.iter().rev().find_map(value);
    facts.extend(last(|row| row.val_loss).map(|loss| format!("validation loss {loss:.4}")));
    facts.extend(last(|row| row.hellaswag).map(|accuracy| format!("HellaSwag {accuracy:.4}")));
    facts.join("  ·  ")
}
