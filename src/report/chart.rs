//! The content of each panel: its range, its lines, and what it leaves out.

use super::axis::{Axis, Scale, label};
use super::bands::BandPoint;
use super::curves::Curves;
use super::figure::{FigurePage, dash_of};
use super::panel::{Panel, TEXT_SIZE};
use super::scene::{Scene, text_width};
use super::series::{Point, quantile, robust_top};
use super::{ReportError, XAxis};
use crate::units::{counted, thousands};

/// Shares of the steps that decide the top of a range. The norm's spike outlasts the loss's fall.
const USUAL_LOSSES: f64 = 0.98;
const USUAL_NORMS: f64 = 0.95;

/// The quantity of a panel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PanelKind {
    Loss,
    Hellaswag,
    GradNorm,
    LearningRate,
    Throughput,
}

impl PanelKind {
    pub const ALL: [PanelKind; 5] = [
        PanelKind::Loss,
        PanelKind::Hellaswag,
        PanelKind::GradNorm,
        PanelKind::LearningRate,
        PanelKind::Throughput,
    ];

    /// The panel's name.
    pub fn title(self) -> &'static str {
        match self {
            PanelKind::Loss => "Loss, nats per token",
            PanelKind::Hellaswag => "HellaSwag accuracy",
            PanelKind::GradNorm => "Gradient norm",
            PanelKind::LearningRate => "Learning rate",
            PanelKind::Throughput => "Tokens per second",
        }
    }

    /// The line without which the panel is not drawn.
    pub fn points(self, run: &Curves) -> &[Point] {
        match self {
            PanelKind::Loss => &run.loss,
            PanelKind::Hellaswag => &run.hellaswag,
            PanelKind::GradNorm => &run.grad_norm,
            PanelKind::LearningRate => &run.learning_rate,
            PanelKind::Throughput => &run.tokens_per_s,
        }
    }
}

/// The position of a panel in pixels, its labels included; titles are above `top`, and the labels of the
/// lowest panel of a column below `bottom`.
#[derive(Clone, Copy)]
pub struct Span {
    pub left: f64,
    pub right: f64,
    pub top: f64,
    pub bottom: f64,
    pub lowest: bool,
    /// Whether it shares its right edge with panels that have levels.
    pub aligned: bool,
}

impl FigurePage<'_> {
    /// Draws the panel of a kind.
    pub fn panel(&self, scene: &mut Scene, kind: PanelKind, span: Span) -> Result<(), ReportError> {
        let (low, high, scale) = self.range(kind);
        let height = span.bottom - span.top;
        let y = Axis::new(low, high, scale, ((height / 62.0) as usize).max(4));
        // Panels under each other share their edges.
        let mut label_width = 66.0_f64;
        for (_, label) in &y.ticks {
            label_width = label_width.max(text_width(label, TEXT_SIZE, false)?);
        }
        let levels = self.level_values(kind);
        let mut gutter = 0.0_f64;
        for level in self
            .levels
            .iter()
            .filter(|level| span.aligned || levels.iter().any(|(_, name)| *name == level.name))
        {
            gutter = gutter.max(text_width(level.name, Panel::LEVEL_TEXT, false)? + 14.0);
        }
        let left = span.left + label_width + 14.0;
        let width = span.right - gutter - left;
        let log = self.options.log_y && scale == Scale::Log;
        let panel = Panel {
            title: format!("{}{}", kind.title(), if log { ", log scale" } else { "" }),
            left,
            top: span.top,
            width,
            height,
            gutter,
            x: self.x_axis((width / 105.0) as usize),
            y,
        };
        let left_out = self.curves.iter().any(|run| run.left_out);
        let x_title = span.lowest.then(|| self.across.title(self.options.log_x, left_out));
        panel.frame(scene, x_title.as_deref(), &self.notes(kind, panel.y.high))?;
        self.lines(scene, kind, &panel);
        panel.level_names(scene, &levels);
        Ok(())
    }

    fn x_axis(&self, ticks: usize) -> Axis {
        let high = self.curves.iter().map(|run| run.end).fold(0.0, f64::max);
        let high = if high > 0.0 { high } else { 1.0 };
        if !self.options.log_x {
            return Axis::new(0.0, high, Scale::Linear, ticks);
        }
        let firsts = self
            .curves
            .iter()
            .flat_map(|run| [&run.loss, &run.val_loss, &run.hellaswag].map(|points| points.first().copied()));
        let low = firsts.flatten().map(|point| point.0).fold(high, f64::min);
        Axis::new(low, if high > low { high } else { low * 10.0 }, Scale::Log, ticks)
    }

    /// Published levels of a panel, with their names.
    fn level_values(&self, kind: PanelKind) -> Vec<(f64, &'static str)> {
        let value = |reference: &super::run_data::Reference| match kind {
            PanelKind::Loss => reference.val_loss.map(|loss| (loss, reference.name)),
            PanelKind::Hellaswag => Some((reference.hellaswag, reference.name)),
            _ => None,
        };
        self.levels.iter().filter_map(value).collect()
    }

    /// Low end, high end and scale of a panel's values.
    fn range(&self, kind: PanelKind) -> (f64, f64, Scale) {
        let values =
            |of: &dyn Fn(&Curves) -> Vec<f64>| -> Vec<f64> { self.curves.iter().flat_map(of).collect() };
        // How high an axis reaches is for those that did not fail to say.
        let all_failed = self.curves.iter().all(|run| run.failed);
        let whole = || self.curves.iter().filter(move |run| all_failed || !run.failed);
        let top = |of: &dyn Fn(&Curves) -> Vec<f64>| -> f64 {
            quantile(&whole().flat_map(of).collect::<Vec<f64>>(), 1.0).unwrap_or(1.0)
        };
        // What follows divergence is above the frame where it would flatten what a range test is made for.
        let y = |run: &Curves, points: &[Point]| {
            let end = self.range_test_end(run);
            points.iter().filter(|point| point.0 < end).map(|point| point.1).collect::<Vec<f64>>()
        };
        let limits =
            |values: &[f64]| (quantile(values, 0.0).unwrap_or(0.0), quantile(values, 1.0).unwrap_or(1.0));
        match kind {
            PanelKind::Loss => {
                let losses = |run: &Curves| [y(run, &run.loss), y(run, &run.val_loss)].concat();
                let levels = self.level_values(kind);
                let mut all = values(&losses);
                all.extend(levels.iter().map(|level| level.0));
                let level = levels.iter().map(|level| level.0).fold(f64::NEG_INFINITY, f64::max);
                let low = limits(&all).0;
                let high = top(&losses).max(level).max(low);
                // A wide band does not flatten the lines: it is cut at the frame.
                let edges = self.bands_of(kind).flat_map(|(_, band)| band).map(|(_, edge, _)| *edge);
                let edge = edges.fold(f64::INFINITY, f64::min);
                if self.options.log_y && low > 0.0 {
                    return (edge.clamp(low * 0.9, low) * 0.97, high * 1.03, Scale::Log);
                }
                let shown = |run: &Curves| {
                    robust_top(
                        &y(run, if run.loss.is_empty() { &run.val_loss } else { &run.loss }),
                        USUAL_LOSSES,
                        low,
                    )
                };
                let top = whole().filter_map(shown).fold(level, f64::max);
                let top = if top.is_finite() { top } else { high };
                let space = 0.04 * (top - low);
                let low = edge.clamp(low - 4.0 * space.max(0.0), low);
                (low - space, top + space, Scale::Linear)
            }
            PanelKind::Hellaswag => {
                let scores = |run: &Curves| y(run, &run.hellaswag);
                let edges = self.bands_of(kind).flat_map(|(_, band)| band);
                let mut others: Vec<f64> = edges.flat_map(|(_, low, high)| [*low, *high]).collect();
                others.extend(self.level_values(kind).iter().map(|level| level.0));
                let (low, highest) = limits(&[values(&scores), others.clone()].concat());
                others.extend(whole().flat_map(scores));
                let high = quantile(&others, 1.0).unwrap_or(highest);
                let space = (0.08 * (high - low)).max(0.005);
                ((low - space).max(0.0), (high + space).min(1.0), Scale::Linear)
            }
            PanelKind::LearningRate => (
                0.0,
                top(&|run| run.learning_rate.iter().map(|point| point.1).collect()) * 1.06,
                Scale::Linear,
            ),
            PanelKind::GradNorm => {
                let positive = |run: &Curves| -> Vec<f64> {
                    y(run, &run.grad_norm).into_iter().filter(|norm| *norm > 0.0).collect()
                };
                if let Some(low) = quantile(&values(&positive), 0.0).filter(|_| self.options.log_y) {
                    return (low * 0.9, top(&positive).max(low) * 1.1, Scale::Log);
                }
                let top = whole()
                    .filter_map(|run| robust_top(&y(run, &run.grad_norm), USUAL_NORMS, 0.0))
                    .fold(0.0, f64::max);
                (0.0, top * 1.06, Scale::Linear)
            }
            PanelKind::Throughput => (
                0.0,
                top(&|run| run.tokens_per_s.iter().map(|point| point.1).collect()) * 1.06,
                Scale::Linear,
            ),
        }
    }

    /// The learning rate at which the loss of a range test has risen above its first value by as much as it
    /// had fallen below; without end on other axes, and where fewer than a tenth of the steps come before.
    fn range_test_end(&self, run: &Curves) -> f64 {
        let first = run.loss.first().filter(|_| self.options.x == XAxis::LearningRate && !self.options.log_y);
        let Some((_, first)) = first else { return f64::INFINITY };
        let mut lowest = *first;
        let risen = run.loss.iter().position(|(_, loss)| {
            lowest = lowest.min(*loss);
            loss - first > (first - lowest).max(0.1 * first)
        });
        let risen = risen.filter(|steps| 10 * steps >= run.loss.len());
        risen.map_or(f64::INFINITY, |steps| run.loss[steps].0)
    }

    /// What the frame leaves out, from long to short: `▲ 640 steps and 1 evaluation above, max 11.1`.
    fn notes(&self, kind: PanelKind, top: f64) -> [String; 3] {
        let points = |run: &Curves| match kind {
            PanelKind::Loss => [run.loss.clone(), run.skipped_loss.clone()].concat(),
            PanelKind::GradNorm => [run.grad_norm.clone(), run.skipped_norm.clone()].concat(),
            PanelKind::LearningRate => run.learning_rate.clone(),
            PanelKind::Throughput => run.tokens_per_s.clone(),
            PanelKind::Hellaswag => Vec::new(),
        };
        let evaluations = |run: &Curves| match kind {
            PanelKind::Loss => run.val_loss.clone(),
            PanelKind::Hellaswag => run.hellaswag.clone(),
            _ => Vec::new(),
        };
        let of = |points: &dyn Fn(&Curves) -> Vec<Point>| -> Vec<f64> {
            self.curves.iter().flat_map(points).map(|point| point.1).collect()
        };
        let is_above = |value: &f64| value.is_finite() && *value > top;
        let values = of(&points);
        let steps: Vec<f64> = values.iter().copied().filter(is_above).collect();
        let evaluations: Vec<f64> = of(&evaluations).into_iter().filter(is_above).collect();
        let count = |number: usize| thousands(number as u64);
        let mut notes = [Vec::new(), Vec::new(), Vec::new()];
        if let Some(largest) = quantile(&[&steps[..], &evaluations].concat(), 1.0) {
            let (all, largest) = (count(steps.len() + evaluations.len()), label(largest, 0.1));
            let counts = [(steps.len(), "step"), (evaluations.len(), "evaluation")];
            let counts = counts.into_iter().filter(|(number, _)| *number > 0);
            let counts: Vec<String> = counts.map(|(number, what)| counted(number as u64, what)).collect();
            notes[0].push(format!("▲ {} above, max {largest}", counts.join(" and ")));
            notes[1].push(format!("▲ {all} above, max {largest}"));
            notes[2].push(format!("▲ {all} to {largest}"));
        }
        let broken = values.iter().filter(|value| !value.is_finite()).count();
        if broken > 0 {
            notes.iter_mut().for_each(|note| note.push(format!("{} not finite", count(broken))));
        }
        notes.map(|parts| parts.join(", "))
    }

    /// The bands of a panel; without groups there are none.
    fn bands_of(&self, kind: PanelKind) -> impl Iterator<Item = (usize, &[BandPoint])> {
        self.bands.iter().enumerate().flat_map(move |(index, bands)| {
            let of: [&[BandPoint]; 2] = match kind {
                PanelKind::Loss => [&bands.loss, &bands.val_loss],
                PanelKind::Hellaswag => [&bands.hellaswag, &[]],
                PanelKind::GradNorm => [&bands.grad_norm, &[]],
                PanelKind::LearningRate => [&[], &[]],
                PanelKind::Throughput => [&bands.tokens_per_s, &[]],
            };
            of.into_iter().map(move |band| (index, band))
        })
    }

    fn lines(&self, scene: &mut Scene, kind: PanelKind, panel: &Panel) {
        let colors = self.colors;
        for (index, band) in self.bands_of(kind) {
            panel.band(scene, band, colors.run(index));
        }
        let runs = || self.curves.iter().enumerate().map(|(index, run)| (run, colors.run(index)));
        if matches!(kind, PanelKind::Loss | PanelKind::GradNorm | PanelKind::Hellaswag) {
            for (moment, x) in self.curves.iter().flat_map(|run| &run.moments) {
                let (dash, color, _) = self.mark(*moment);
                panel.moment(scene, *x, dash, color);
            }
        }
        // The faint lines of all runs first, then the strong ones.
        let noisy = |scene: &mut Scene,
                     weak: fn(&Curves) -> &[Point],
                     strong: fn(&Curves) -> &[Point],
                     width: f64| {
            runs().for_each(|(run, color)| panel.line(scene, weak(run), 1.3, colors.faint(color)));
            runs().for_each(|(run, color)| panel.line(scene, strong(run), width, color));
        };
        let level = |scene: &mut Scene| {
            for reference in &self.levels {
                let value =
                    if kind == PanelKind::Loss { reference.val_loss } else { Some(reference.hellaswag) };
                value
                    .into_iter()
                    .for_each(|value| panel.level(scene, value, dash_of(reference), colors.level));
            }
        };
        match kind {
            PanelKind::Loss => {
                noisy(scene, |run| &run.loss, |run| &run.loss_smooth, 3.5);
                level(scene);
                for (run, color) in runs() {
                    let color = if self.single() { colors.validation } else { colors.strong(color) };
                    panel.line(scene, &run.val_loss, 2.5, color);
                    panel.dots(scene, &run.val_loss, 5.0, color);
                }
                self.curves
                    .iter()
                    .flat_map(|run| &run.skipped_loss)
                    .for_each(|point| panel.skip(scene, *point));
            }
            PanelKind::Hellaswag => {
                level(scene);
                for (run, color) in runs() {
                    panel.line(scene, &run.hellaswag, 2.5, color);
                    panel.dots(scene, &run.hellaswag, 4.5, color);
                }
            }
            PanelKind::LearningRate => {
                // Runs often share a schedule: lower lines are drawn wider, so that they stay visible.
                for (index, (run, color)) in runs().enumerate() {
                    let same = |other: &&Curves| {
                        other.learning_rate.iter().zip(&run.learning_rate).all(|(a, b)| a == b)
                    };
                    let above = self.curves[index + 1..].iter().filter(same).count();
                    panel.line(scene, &run.learning_rate, 3.0 + 4.0 * above.min(3) as f64, color);
                }
            }
            PanelKind::GradNorm => {
                noisy(scene, |run| &run.grad_norm, |run| &run.grad_norm_smooth, 3.0);
                self.curves
                    .iter()
                    .flat_map(|run| &run.skipped_norm)
                    .for_each(|point| panel.skip(scene, *point));
            }
            PanelKind::Throughput => {
                noisy(scene, |run| &run.tokens_per_s, |run| &run.tokens_per_s_smooth, 3.0)
            }
        }
    }
}
