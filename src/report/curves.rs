//! A run's lines: its rows as points over the horizontal axis that was asked for.

use super::axis::label;
use super::run_data::RunData;
use super::series::{Point, smooth};
use super::{PlotOptions, ReportError, XAxis};
use crate::store::metrics::{Action, MetricsRow};
use crate::units::thousands;

/// An event between two steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// A resume; it changed no bit.
    Resume,
    /// The run went back to a checkpoint.
    Rewind,
    /// It went on with other numerics.
    Drift,
}

impl Moment {
    pub const ALL: [Moment; 3] = [Moment::Resume, Moment::Rewind, Moment::Drift];

    /// The word in the metrics.
    pub fn word(self) -> &'static str {
        match self {
            Moment::Resume => "resume",
            Moment::Rewind => "rewind",
            Moment::Drift => "drift",
        }
    }
}

/// A run's lines, ready to draw.
#[derive(Default)]
pub struct Curves {
    pub loss: Vec<Point>,
    pub loss_smooth: Vec<Point>,
    pub val_loss: Vec<Point>,
    pub hellaswag: Vec<Point>,
    pub learning_rate: Vec<Point>,
    pub grad_norm: Vec<Point>,
    pub grad_norm_smooth: Vec<Point>,
    pub tokens_per_s: Vec<Point>,
    pub tokens_per_s_smooth: Vec<Point>,
    /// Skipped steps; y may be NaN or infinite.
    pub skipped_loss: Vec<Point>,
    pub skipped_norm: Vec<Point>,
    pub moments: Vec<(Moment, f64)>,
    /// Steps over which the strong lines are smoothed: an odd number, the run's at most.
    pub window: usize,
    /// The last position.
    pub end: f64,
    /// Whether a point was left out because a logarithmic axis cannot show it.
    pub left_out: bool,
    /// Whether training failed, so that these lines say nothing about what axes should show.
    pub failed: bool,
}

impl Curves {
    pub fn new(run: &RunData, options: &PlotOptions, across: &Horizontal) -> Result<Curves, ReportError> {
        let positions = across.positions(run)?;
        let trained = run.trained().count();
        let half = options.smooth.unwrap_or(trained / 40) / 2;
        let half = half.min(trained.saturating_sub(1) / 2);
        let rows = || run.rows.iter().zip(&positions);
        let has_place = |x: f64| !options.log_x || x > 0.0;
        let training = |value: fn(&MetricsRow) -> Option<f64>| -> Vec<Point> {
            let points = rows()
                .filter(|(row, _)| !row.action.is_skip())
                .filter_map(|(row, at)| Some((at.update, value(row)?)));
            points.filter(|point| point.1.is_finite()).collect()
        };
        let skips = |value: fn(&MetricsRow) -> Option<f64>| -> Vec<Point> {
            let skipped = rows().filter(|(row, at)| row.action.is_skip() && has_place(at.update));
            skipped.map(|(row, at)| (at.update, value(row).unwrap_or(f64::NAN))).collect()
        };
        let all = |value: fn(&MetricsRow) -> Option<f64>| -> Vec<Point> {
            rows()
                .filter_map(|(row, at)| Some((at.update, value(row)?)))
                .filter(|point| point.1.is_finite())
                .collect()
        };
        let evaluations = |value: fn(&MetricsRow) -> Option<f64>| -> Vec<Point> {
            let points = rows().filter_map(|(row, at)| Some((at.evaluation, value(row)?)));
            points.filter(|point| point.1.is_finite() && has_place(point.0)).collect()
        };
        let moments = Moment::ALL.into_iter().flat_map(|moment| {
            let marked = rows().filter(move |(row, _)| row.events.iter().any(|event| event == moment.word()));
            marked.map(move |(_, at)| (moment, at.update))
        });
        let placed = |mut points: Vec<Point>| -> Vec<Point> {
            points.retain(|point| has_place(point.0));
            points
        };
        let (loss, grad_norm, tokens_per_s) =
            (training(|row| row.loss), training(|row| row.grad_norm), all(|row| row.tokens_per_s));
        Ok(Curves {
            loss_smooth: placed(smooth(&loss, half)),
            grad_norm_smooth: placed(smooth(&grad_norm, half)),
            tokens_per_s_smooth: placed(smooth(&tokens_per_s, half)),
            loss: placed(loss),
            grad_norm: placed(grad_norm),
            tokens_per_s: placed(tokens_per_s),
            val_loss: evaluations(|row| row.val_loss),
            hellaswag: evaluations(|row| row.hellaswag),
            learning_rate: placed(all(|row| row.learning_rate)),
            skipped_loss: skips(|row| row.loss),
            skipped_norm: skips(|row| row.grad_norm),
            moments: moments.filter(|(_, x)| has_place(*x)).collect(),
            window: 2 * half + 1,
            end: positions.last().map_or(0.0, |at| at.update),
            left_out: positions.iter().any(|at| !has_place(at.update) || !has_place(at.evaluation)),
            failed: run.failed.is_some(),
        })
    }
}

/// The horizontal axis: what it measures, and in which unit.
#[derive(Clone, Copy, Debug)]
pub struct Horizontal {
    x: XAxis,
    /// Of time: seconds in the unit, and its name.
    unit: (f64, &'static str),
}

/// The position of a row: after its update, and where it was evaluated, before that.
#[derive(Clone, Copy)]
struct At {
    update: f64,
    evaluation: f64,
}

impl Horizontal {
    /// The axis for these runs; time is in the unit that suits the longest.
    pub fn new<'a>(x: XAxis, runs: impl IntoIterator<Item = &'a RunData>) -> Horizontal {
        let seconds = runs
            .into_iter()
            .map(|run| run.rows.iter().filter_map(|row| row.step_ms).sum::<f64>() / 1e3)
            .fold(0.0, f64::max);
        let unit = match seconds {
            0.0..180.0 => (1.0, "seconds"),
            180.0..10_800.0 => (60.0, "minutes"),
            _ => (3600.0, "hours"),
        };
        Horizontal { x, unit }
    }

    /// A place on it: `step 19`, `2.5M tokens`.
    pub fn place(&self, at: f64) -> String {
        let text = label(at, at / 100.0);
        match self.x {
            XAxis::Step => format!("step {}", thousands(at as u64)),
            XAxis::Tokens => format!("{text} tokens"),
            XAxis::Flops => format!("{text} FLOPs"),
            XAxis::Hours => format!("{text} {}", self.unit.1),
            XAxis::LearningRate => format!("a rate of {text}"),
        }
    }

    /// By which share the ends of runs of equally many steps may differ on it.
    pub fn slack(&self) -> f64 {
        if self.x == XAxis::Hours { 0.01 } else { 1e-9 }
    }

    /// The text under it.
    pub fn title(&self, log: bool, left_out: bool) -> String {
        let name = match self.x {
            XAxis::Step => "optimizer step".to_owned(),
            XAxis::Tokens => "training tokens".to_owned(),
            XAxis::Flops => "training FLOPs".to_owned(),
            XAxis::Hours => format!("{} of training steps", self.unit.1),
            XAxis::LearningRate => "learning rate".to_owned(),
        };
        match (log, left_out) {
            (false, _) => name,
            (true, false) => format!("{name}, log scale"),
            (true, true) => format!("{name}, log scale without 0"),
        }
    }

    fn positions(&self, run: &RunData) -> Result<Vec<At>, ReportError> {
        let missing =
            |what: &'static str, why: &'static str| ReportError::NoAxis { run: run.name.clone(), what, why };
        let flops = run.model.as_ref().and_then(|model| model.flops_per_token);
        let scale = match self.x {
            XAxis::Step => {
                return Ok(run
                    .rows
                    .iter()
                    .map(|row| At { update: row.step as f64, evaluation: row.step as f64 })
                    .collect());
            }
            XAxis::Tokens | XAxis::Flops if !run.has_tokens => {
                return Err(missing("tokens", "main.log has steps alone"));
            }
            XAxis::Tokens => 1.0,
            XAxis::Flops => {
                flops.ok_or_else(|| missing("FLOPs", "its experiment.toml has no sizes of the model"))?
            }
            XAxis::Hours if run.rows.iter().all(|row| row.step_ms.is_none()) => {
                return Err(missing("times", "no row of it has one"));
            }
            XAxis::Hours => 1e-3 / self.unit.0,
            XAxis::LearningRate => {
                return rates(run).ok_or_else(|| {
                    missing("learning rates that rise", "it is no range test: `schedule.kind = \"range\"`")
                });
            }
        };
        let (mut before, mut tokens, mut less) = (0.0, 0, 0.0);
        let mut positions = Vec::with_capacity(run.rows.len());
        for row in &run.rows {
            let after = match self.x {
                XAxis::Hours => before + row.step_ms.unwrap_or(0.0) * scale,
                XAxis::Flops => {
                    let of_token = run.model.as_ref().map_or(0.0, |model| model.flops_less(row.step));
                    less += of_token * row.tokens.saturating_sub(tokens) as f64;
                    tokens = row.tokens;
                    row.tokens as f64 * scale - less
                }
                _ => row.tokens as f64 * scale,
            };
            // Evaluations come before the step's update; the last has a row of its own.
            let evaluation = if row.action == Action::Evaluate { after } else { before };
            positions.push(At { update: after, evaluation });
            before = after;
        }
        Ok(positions)
    }
}

/// The learning rate of each row: an evaluation stands before the update of its step, and the last, which has
/// no step, at the last rate. None where they do not rise.
fn rates(run: &RunData) -> Option<Vec<At>> {
    let mut before = 0.0;
    let mut positions = Vec::with_capacity(run.rows.len());
    for row in &run.rows {
        let rate = match row.action {
            Action::Evaluate => before,
            _ => row.learning_rate?,
        };
        if rate < before {
            return None;
        }
        positions.push(At { update: rate, evaluation: if before > 0.0 { before } else { rate } });
        before = rate;
    }
    (run.rows.first()?.learning_rate < Some(before)).then_some(positions)
}
