//! The page: header, legend, and the panels with their lines.
//!
//! The loss takes the left part. The right part stacks what there is data for: HellaSwag, learning
//! rate, gradient norm, over the same horizontal axis. The legend is a strip above the panels, where
//! it cannot cover data. One run has colours by kind of line (training, validation); several runs
//! have a colour each, and kinds differ by stroke. The colours are Okabe and Ito's, which colour-blind
//! readers can tell apart.

use super::axis::{Axis, Scale, grouped, label, trimmed};
use super::panel::{Dash, Panel, QUIET, TEXT, TEXT_SIZE, cross, dashed};
use super::run_data::{Reference, RunData, references};
use super::scene::{Align, Color, Scene, text_width};
use super::series::{Point, quantile, robust_top, smooth};
use super::{PlotOptions, ReportError, XAxis};
use crate::store::metrics::{Action, MetricsRow};

const WIDTH: u32 = 1600;
const HEIGHT: u32 = 900;
const MARGIN: f64 = 30.0;
const LEGEND_ROW: f64 = 36.0;
/// Room above a frame for its title, and below the lowest for labels and the axis title.
const TITLE_ROOM: f64 = 48.0;
const X_ROOM: f64 = 78.0;
/// Shares of the steps that decide the top of a range. The norm's spike outlasts the loss's fall.
const USUAL_LOSSES: f64 = 0.98;
const USUAL_NORMS: f64 = 0.95;

/// A run each, in this order; the seventh run begins again.
const COLORS: [Color; 6] =
    [(0x00, 0x72, 0xb2), (0xe6, 0x9f, 0x00), (0x00, 0x9e, 0x73), (0xcc, 0x79, 0xa7), (0x56, 0xb4, 0xe9), (0x66, 0x4e, 0x96)];

/// A run's lines, ready to draw.
struct Curves {
    color: Color,
    loss: Vec<Point>,
    loss_smooth: Vec<Point>,
    val_loss: Vec<Point>,
    hellaswag: Vec<Point>,
    learning_rate: Vec<Point>,
    grad_norm: Vec<Point>,
    grad_norm_smooth: Vec<Point>,
    /// Skipped steps, y may be anything, NaN included.
    skipped_loss: Vec<Point>,
    skipped_norm: Vec<Point>,
    resumed: Vec<f64>,
    /// Steps the strong lines look at.
    window: usize,
}

impl Curves {
    fn new(run: &RunData, options: &PlotOptions, color: Color) -> Result<Curves, ReportError> {
        if options.x == XAxis::Tokens && !run.has_tokens {
            return Err(ReportError::NoTokens { run: run.name.clone() });
        }
        let trained = run.trained().count();
        let window = options.smooth.unwrap_or(trained / 40).max(1);
        let x = |row: &MetricsRow| match options.x {
            XAxis::Step => row.step as f64,
            XAxis::Tokens => row.tokens as f64,
        };
        // Evaluations come before the step's update, so before its tokens.
        let mut tokens_before = 0.0;
        let mut evaluated_at = Vec::with_capacity(run.rows.len());
        for row in &run.rows {
            let tokens = if row.action == Action::Evaluate { row.tokens as f64 } else { tokens_before };
            evaluated_at.push(if options.x == XAxis::Step { row.step as f64 } else { tokens });
            tokens_before = row.tokens as f64;
        }
        let updates = |value: fn(&MetricsRow) -> Option<f64>| -> Vec<Point> {
            let updated = run.rows.iter().filter(|row| !row.action.is_skip());
            updated.filter_map(|row| Some((x(row), value(row)?))).filter(|point| point.1.is_finite()).collect()
        };
        let skips = |value: fn(&MetricsRow) -> Option<f64>| -> Vec<Point> {
            let skipped = run.rows.iter().filter(|row| row.action.is_skip());
            skipped.map(|row| (x(row), value(row).unwrap_or(f64::NAN))).collect()
        };
        let evaluations = |value: fn(&MetricsRow) -> Option<f64>| -> Vec<Point> {
            let points = run.rows.iter().zip(&evaluated_at).filter_map(|(row, &at)| Some((at, value(row)?)));
            points.filter(|point| point.1.is_finite()).collect()
        };
        let (loss, grad_norm) = (updates(|row| row.loss), updates(|row| row.grad_norm));
        let learning_rate = run.rows.iter().filter_map(|row| Some((x(row), row.learning_rate?)));
        let resumed = run.rows.iter().filter(|row| row.events.iter().any(|event| event == "resume"));
        Ok(Curves {
            color,
            loss_smooth: smooth(&loss, window / 2),
            grad_norm_smooth: smooth(&grad_norm, window / 2),
            loss,
            grad_norm,
            val_loss: evaluations(|row| row.val_loss),
            hellaswag: evaluations(|row| row.hellaswag),
            learning_rate: learning_rate.filter(|point| point.1.is_finite()).collect(),
            skipped_loss: skips(|row| row.loss),
            skipped_norm: skips(|row| row.grad_norm),
            resumed: resumed.map(x).collect(),
            window,
        })
    }

    fn light(&self) -> Color {
        mix(self.color, (255, 255, 255), 0.62)
    }
}

/// Lays the page out and draws it.
pub fn draw(runs: &[RunData], options: &PlotOptions) -> Result<Scene, ReportError> {
    if runs.is_empty() {
        return Err(ReportError::NoRuns);
    }
    let curves: Vec<Curves> = runs
        .iter()
        .enumerate()
        .map(|(index, run)| Curves::new(run, options, COLORS[index % COLORS.len()]))
        .collect::<Result<_, _>>()?;
    let mut levels: Vec<&Reference> = Vec::new();
    for reference in runs.iter().filter_map(|run| run.model.as_ref()).flat_map(references) {
        let shown = reference.val_loss.is_some() || curves.iter().any(|run| !run.hellaswag.is_empty());
        if shown && !levels.contains(&reference) {
            levels.push(reference);
        }
    }
    let page = Page { runs, curves, levels, options };
    let mut scene = Scene::new(WIDTH, HEIGHT);
    let top = page.header(&mut scene)?;
    let top = page.legend(&mut scene, top)?;
    page.panels(&mut scene, top)?;
    Ok(scene)
}

struct Page<'a> {
    runs: &'a [RunData],
    curves: Vec<Curves>,
    levels: Vec<&'a Reference>,
    options: &'a PlotOptions,
}

/// What a panel shows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Loss,
    Hellaswag,
    LearningRate,
    GradNorm,
}

impl Page<'_> {
    /// Title and facts; returns the height used.
    fn header(&self, scene: &mut Scene) -> Result<f64, ReportError> {
        let single = self.runs.len() == 1;
        let title = if single { self.runs[0].name.clone() } else { format!("{} runs", self.runs.len()) };
        let room = f64::from(WIDTH) - 2.0 * MARGIN;
        scene.text(shortened(&title, room, 34.0, true)?, (MARGIN, 50.0), 34.0, true, Align::Left, TEXT);
        if !single {
            return Ok(66.0);
        }
        let facts = shortened(&facts(&self.runs[0]), room, TEXT_SIZE, false)?;
        scene.text(facts, (MARGIN, 86.0), TEXT_SIZE, false, Align::Left, QUIET);
        Ok(102.0)
    }

    /// The strip of legend entries, wrapped; returns where it ends.
    fn legend(&self, scene: &mut Scene, top: f64) -> Result<f64, ReportError> {
        const SAMPLE: f64 = 46.0;
        let mut rows: Vec<Vec<(Sample, String)>> = Vec::new();
        let single = self.runs.len() == 1;
        if !single {
            let named = self.runs.iter().zip(&self.curves);
            let entry = |(run, curves): (&RunData, &Curves)| {
                let last =
                    curves.val_loss.last().map_or(String::new(), |(_, loss)| format!("  (validation {})", trimmed(*loss, 4)));
                Ok((Sample::Plain(curves.color), format!("{}{last}", shortened(&run.name, 520.0, TEXT_SIZE, false)?)))
            };
            rows.push(named.map(entry).collect::<Result<_, ReportError>>()?);
        }
        let mut kinds = Vec::new();
        if self.curves.iter().any(|run| !run.loss.is_empty()) {
            let color = if single { self.curves[0].color } else { QUIET };
            let windows: Vec<usize> = self.curves.iter().map(|run| run.window).collect();
            let strong = match (windows.iter().min(), windows.iter().max()) {
                (_, Some(1)) | (None, _) | (_, None) => String::new(),
                (Some(low), Some(high)) if low == high => format!(" (strong: smoothed over {} steps)", grouped(*low as u64)),
                (Some(low), Some(high)) => {
                    format!(" (strong: smoothed over {} to {} steps)", grouped(*low as u64), grouped(*high as u64))
                }
            };
            kinds.push((Sample::Smoothed(color), format!("training{strong}")));
        }
        if self.curves.iter().any(|run| !run.val_loss.is_empty()) {
            kinds.push((Sample::Dots(self.val_color(0, true)), "validation".to_owned()));
        }
        let skipped: usize = self.curves.iter().map(|run| run.skipped_loss.len()).sum();
        if skipped > 0 {
            kinds.push((Sample::Cross, format!("update skipped ({})", grouped(skipped as u64))));
        }
        let resumed: usize = self.curves.iter().map(|run| run.resumed.len()).sum();
        if resumed > 0 {
            kinds.push((Sample::Moment, format!("resumed ({})", grouped(resumed as u64))));
        }
        for reference in &self.levels {
            let loss = reference.val_loss.map(|loss| format!("loss on FineWeb {loss:.3}"));
            let hellaswag = self.curves.iter().any(|run| !run.hellaswag.is_empty());
            let accuracy = hellaswag.then(|| format!("HellaSwag {:.3}", reference.hellaswag));
            let values: Vec<String> = loss.into_iter().chain(accuracy).collect();
            kinds.push((Sample::Level(dash_of(reference)), format!("{}: {}", reference.name, values.join(", "))));
        }
        rows.push(kinds);

        let (mut y, end) = (top, f64::from(WIDTH) - MARGIN);
        for row in rows.into_iter().filter(|row| !row.is_empty()) {
            let mut x = MARGIN;
            y += LEGEND_ROW;
            for (sample, text) in row {
                let width = SAMPLE + 12.0 + text_width(&text, TEXT_SIZE, false)?;
                if x + width > end && x > MARGIN {
                    (x, y) = (MARGIN, y + LEGEND_ROW);
                }
                sample.draw(scene, (x, y - 16.0), SAMPLE);
                scene.text(text, (x + SAMPLE + 12.0, y - 8.0), TEXT_SIZE, false, Align::Left, TEXT);
                x += width + 36.0;
            }
        }
        Ok(y)
    }

    fn val_color(&self, run: usize, in_legend: bool) -> Color {
        if self.runs.len() == 1 {
            return mix(COLORS[1], (0, 0, 0), 0.08);
        }
        mix(if in_legend { QUIET } else { self.curves[run].color }, (0, 0, 0), 0.4)
    }

    fn panels(&self, scene: &mut Scene, top: f64) -> Result<(), ReportError> {
        let any = |points: fn(&Curves) -> &Vec<Point>| self.curves.iter().any(|run| !points(run).is_empty());
        let right: Vec<Kind> = [
            (Kind::Hellaswag, any(|run| &run.hellaswag)),
            (Kind::LearningRate, any(|run| &run.learning_rate)),
            (Kind::GradNorm, any(|run| &run.grad_norm)),
        ]
        .into_iter()
        .filter_map(|(kind, shown)| shown.then_some(kind))
        .collect();
        let (top, bottom) = (top + TITLE_ROOM, f64::from(HEIGHT) - X_ROOM);
        let split = if right.is_empty() { f64::from(WIDTH) - MARGIN } else { 900.0 };
        self.panel(scene, Kind::Loss, (MARGIN, split), (top, bottom), true)?;
        let height = (bottom - top - TITLE_ROOM * (right.len().max(1) - 1) as f64) / right.len().max(1) as f64;
        for (index, kind) in right.iter().enumerate() {
            let top = top + index as f64 * (height + TITLE_ROOM);
            let last = index + 1 == right.len();
            self.panel(scene, *kind, (split + 40.0, f64::from(WIDTH) - MARGIN), (top, top + height), last)?;
        }
        Ok(())
    }

    fn panel(&self, scene: &mut Scene, kind: Kind, span: (f64, f64), rows: (f64, f64), lowest: bool) -> Result<(), ReportError> {
        let (low, high, scale) = self.range(kind);
        let height = rows.1 - rows.0;
        let y = Axis::new(low, high, scale, ((height / 62.0) as usize).max(4));
        let mut label_width = 0.0_f64;
        for (_, label) in &y.ticks {
            label_width = label_width.max(text_width(label, TEXT_SIZE, false)?);
        }
        // The right panels stand under each other, so they share a left edge.
        let left = span.0 + if kind == Kind::Loss { label_width + 14.0 } else { 74.0_f64.max(label_width + 14.0) };
        let width = span.1 - left;
        let last = self.runs.iter().flat_map(|run| run.rows.last());
        let x_high = last.map(|row| if self.options.x == XAxis::Step { row.step } else { row.tokens }).max().unwrap_or(1);
        let panel = Panel {
            title: title(kind, scale).to_owned(),
            left,
            top: rows.0,
            width,
            height,
            x: Axis::new(0.0, x_high.max(1) as f64, Scale::Linear, (width / 105.0) as usize),
            y,
        };
        let x_title = match self.options.x {
            XAxis::Step => "optimizer step",
            XAxis::Tokens => "training tokens",
        };
        panel.frame(scene, lowest.then_some(x_title), &self.notes(kind, panel.y.high))?;
        self.lines(scene, kind, &panel);
        Ok(())
    }

    /// Low end, high end and scale of a panel's values.
    fn range(&self, kind: Kind) -> (f64, f64, Scale) {
        let values = |of: &dyn Fn(&Curves) -> Vec<f64>| -> Vec<f64> { self.curves.iter().flat_map(of).collect() };
        let y = |points: &[Point]| points.iter().map(|point| point.1).collect::<Vec<f64>>();
        let limits = |values: &[f64]| (quantile(values, 0.0).unwrap_or(0.0), quantile(values, 1.0).unwrap_or(1.0));
        match kind {
            Kind::Loss => {
                let mut all = values(&|run| [y(&run.loss), y(&run.val_loss)].concat());
                all.extend(self.levels.iter().filter_map(|reference| reference.val_loss));
                let (low, high) = limits(&all);
                if self.options.log_y && low > 0.0 {
                    return (low * 0.97, high * 1.03, Scale::Log);
                }
                let shown =
                    |run: &Curves| robust_top(&y(if run.loss.is_empty() { &run.val_loss } else { &run.loss }), USUAL_LOSSES, low);
                let level = self.levels.iter().filter_map(|reference| reference.val_loss).fold(f64::NEG_INFINITY, f64::max);
                let top = self.curves.iter().filter_map(shown).fold(level, f64::max);
                let top = if top.is_finite() { top } else { high };
                let space = 0.04 * (top - low);
                (low - space, top + space, Scale::Linear)
            }
            Kind::Hellaswag => {
                let mut all = values(&|run| y(&run.hellaswag));
                all.extend(self.levels.iter().map(|reference| reference.hellaswag));
                let (low, high) = limits(&all);
                let space = (0.08 * (high - low)).max(0.005);
                ((low - space).max(0.0), (high + space).min(1.0), Scale::Linear)
            }
            Kind::LearningRate => (0.0, limits(&values(&|run| y(&run.learning_rate))).1 * 1.06, Scale::Linear),
            Kind::GradNorm => {
                let top =
                    self.curves.iter().filter_map(|run| robust_top(&y(&run.grad_norm), USUAL_NORMS, 0.0)).fold(0.0, f64::max);
                (0.0, top * 1.06, Scale::Linear)
            }
        }
    }

    /// What the frame leaves out, from long to short: `▲ 640 steps above, max 11.1`.
    fn notes(&self, kind: Kind, top: f64) -> [String; 3] {
        let points = |run: &Curves| match kind {
            Kind::Loss => [run.loss.clone(), run.skipped_loss.clone()].concat(),
            Kind::GradNorm => [run.grad_norm.clone(), run.skipped_norm.clone()].concat(),
            Kind::Hellaswag | Kind::LearningRate => Vec::new(),
        };
        let values: Vec<f64> = self.curves.iter().flat_map(points).map(|point| point.1).collect();
        let above: Vec<f64> = values.iter().copied().filter(|&value| value.is_finite() && value > top).collect();
        let count = |number: usize| grouped(number as u64);
        let mut notes = [Vec::new(), Vec::new(), Vec::new()];
        if let Some(largest) = quantile(&above, 1.0) {
            let (steps, largest) = (if above.len() == 1 { "step" } else { "steps" }, label(largest, 0.1));
            notes[0].push(format!("▲ {} {steps} above, max {largest}", count(above.len())));
            notes[1].push(format!("▲ {} above, max {largest}", count(above.len())));
            notes[2].push(format!("▲ {} to {largest}", count(above.len())));
        }
        let broken = values.iter().filter(|value| !value.is_finite()).count();
        if broken > 0 {
            notes.iter_mut().for_each(|note| note.push(format!("{} not finite", count(broken))));
        }
        notes.map(|parts| parts.join(", "))
    }

    fn lines(&self, scene: &mut Scene, kind: Kind, panel: &Panel) {
        if kind != Kind::LearningRate {
            for run in &self.curves {
                run.resumed.iter().for_each(|&x| panel.moment(scene, x, Dash::Dotted, RESUMED));
            }
        }
        match kind {
            Kind::Loss => {
                self.curves.iter().for_each(|run| panel.line(scene, &run.loss, 1.3, run.light()));
                self.curves.iter().for_each(|run| panel.line(scene, &run.loss_smooth, 3.5, run.color));
                for reference in &self.levels {
                    reference.val_loss.into_iter().for_each(|loss| panel.level(scene, loss, dash_of(reference), LEVEL));
                }
                for (index, run) in self.curves.iter().enumerate() {
                    panel.line(scene, &run.val_loss, 2.5, self.val_color(index, false));
                    panel.dots(scene, &run.val_loss, 5.0, self.val_color(index, false));
                }
                self.curves.iter().flat_map(|run| &run.skipped_loss).for_each(|point| panel.skip(scene, *point));
            }
            Kind::Hellaswag => {
                for reference in &self.levels {
                    panel.level(scene, reference.hellaswag, dash_of(reference), LEVEL);
                }
                for run in &self.curves {
                    panel.line(scene, &run.hellaswag, 2.5, run.color);
                    panel.dots(scene, &run.hellaswag, 4.5, run.color);
                }
            }
            Kind::LearningRate => {
                // Runs often share a schedule: the ones below stay visible as rims.
                for (index, run) in self.curves.iter().enumerate() {
                    let above = (self.curves.len() - 1 - index) as f64;
                    panel.line(scene, &run.learning_rate, 3.0 + 4.0 * above.min(3.0), run.color);
                }
            }
            Kind::GradNorm => {
                self.curves.iter().for_each(|run| panel.line(scene, &run.grad_norm, 1.3, run.light()));
                self.curves.iter().for_each(|run| panel.line(scene, &run.grad_norm_smooth, 3.0, run.color));
                self.curves.iter().flat_map(|run| &run.skipped_norm).for_each(|point| panel.skip(scene, *point));
            }
        }
    }
}

const LEVEL: Color = (0x55, 0x55, 0x55);
const RESUMED: Color = (0xaa, 0xaa, 0xaa);

/// What stands before a legend entry.
enum Sample {
    Plain(Color),
    Smoothed(Color),
    Dots(Color),
    Cross,
    Moment,
    Level(Dash),
}

impl Sample {
    /// Draws the sample around `(x + width / 2, y)`.
    fn draw(&self, scene: &mut Scene, (x, y): (f64, f64), width: f64) {
        let across = |scene: &mut Scene, thickness: f64, color: Color| {
            scene.line(vec![(x, y), (x + width, y)], thickness, color);
        };
        match self {
            Sample::Plain(color) => across(scene, 6.0, *color),
            Sample::Smoothed(color) => {
                let zigzag =
                    (0..=8).map(|index| (x + f64::from(index) * width / 8.0, if index % 2 == 0 { y - 8.0 } else { y + 8.0 }));
                scene.line(zigzag.collect(), 1.5, mix(*color, (255, 255, 255), 0.62));
                across(scene, 3.5, *color);
            }
            Sample::Dots(color) => {
                across(scene, 2.5, *color);
                for share in [0.25, 0.75] {
                    scene.circle((x + share * width, y), 5.0, *color);
                }
            }
            Sample::Cross => cross(scene, (x + width / 2.0, y)),
            Sample::Moment => dashed(scene, (x + width / 2.0, y - 14.0), (x + width / 2.0, y + 12.0), Dash::Dotted, RESUMED),
            Sample::Level(dash) => dashed(scene, (x, y), (x + width, y), *dash, LEVEL),
        }
    }
}

fn dash_of(reference: &Reference) -> Dash {
    if reference.val_loss.is_some() { Dash::Dashed } else { Dash::Dotted }
}

fn title(kind: Kind, scale: Scale) -> &'static str {
    match (kind, scale) {
        (Kind::Loss, Scale::Log) => "Loss, nats per token, log scale",
        (Kind::Loss, Scale::Linear) => "Loss, nats per token",
        (Kind::Hellaswag, _) => "HellaSwag accuracy",
        (Kind::LearningRate, _) => "Learning rate",
        (Kind::GradNorm, _) => "Gradient norm",
    }
}

/// The line of facts under a run's name.
fn facts(run: &RunData) -> String {
    let mut facts = Vec::new();
    if let Some(model) = &run.model {
        facts.push(model.descriptor.clone().unwrap_or_else(|| format!("{} layers, {} wide", model.layers, model.channels)));
    }
    let steps = run.trained().count() as u64;
    facts.push(format!("{} step{}", grouped(steps), if steps == 1 { "" } else { "s" }));
    let tokens = run.rows.last().map_or(0, |row| row.tokens);
    if run.has_tokens && tokens > 0 {
        facts.push(format!("{} tokens", label(tokens as f64, tokens as f64 / 100.0)));
    }
    let last = |value: fn(&MetricsRow) -> Option<f64>| run.rows.iter().rev().find_map(value);
    facts.extend(last(|row| row.val_loss).map(|loss| format!("validation loss {loss:.4}")));
    facts.extend(last(|row| row.hellaswag).map(|accuracy| format!("HellaSwag {accuracy:.4}")));
    facts.join("  ·  ")
}

/// A text cut with an ellipsis to a width in pixels.
fn shortened(text: &str, room: f64, size: f64, bold: bool) -> Result<String, ReportError> {
    let mut kept: Vec<char> = text.chars().collect();
    let mut shown = text.to_owned();
    while text_width(&shown, size, bold)? > room && !kept.is_empty() {
        kept.pop();
        shown = format!("{}…", kept.iter().collect::<String>());
    }
    Ok(shown)
}

/// A share of the way from one colour to another.
fn mix(from: Color, to: Color, share: f64) -> Color {
    let channel = |from: u8, to: u8| libm::round(f64::from(from) + share * (f64::from(to) - f64::from(from))) as u8;
    (channel(from.0, to.0), channel(from.1, to.1), channel(from.2, to.2))
}
