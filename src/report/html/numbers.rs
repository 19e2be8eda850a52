//! The metrics in a few numbers.

use super::super::figures::{Figures, TIMED, tail, updates};
use super::super::run_data::RunData;
use super::super::series::quantile;
use super::super::statistics::median;
use crate::store::metrics::MetricsRow;

/// The results of a run.
pub struct Numbers {
    /// Steps done, skipped ones included.
    pub steps: u64,
    pub tokens: u64,
    /// Mean training loss over the last updates, and over how many.
    pub loss: Option<(f64, usize)>,
    /// The last one measured, and the best with its step.
    pub val_loss: Option<(f64, f64, u64)>,
    pub hellaswag: Option<f64>,
    pub hellaswag_acc: Option<f64>,
    pub hellaswag_acc_norm: Option<f64>,
    /// Of the average of the weights.
    pub ema_val_loss: Option<f64>,
    pub ema_hellaswag: Option<f64>,
    /// Seconds in steps.
    pub seconds: f64,
    /// Over how many of the last steps times are summarised, as in `runner show`.
    pub timed: usize,
    /// Median, fifth and ninety-fifth percentile over these steps.
    pub tokens_per_s: Option<[f64; 3]>,
    pub step_ms: Option<[f64; 3]>,
    pub mfu: Option<f64>,
    pub skipped: usize,
    pub resumed: usize,
    pub rewound: usize,
}

impl Numbers {
    pub fn of(run: &RunData) -> Numbers {
        let rows = &run.rows;
        let last = |value: fn(&MetricsRow) -> Option<f64>| rows.iter().rev().filter_map(value).take(TIMED);
        let figures = Figures::of(rows);
        let best =
            rows.iter().filter_map(|row| Some((row.val_loss?, row.step))).min_by(|a, b| a.0.total_cmp(&b.0));
        let happened =
            |word: &str| rows.iter().filter(|row| row.events.iter().any(|event| event == word)).count();
        Numbers {
            steps: run.trained().count() as u64,
            tokens: rows.last().map_or(0, |row| row.tokens),
            loss: figures.get("mean_loss").map(|loss| (loss, tail(updates(rows)))),
            val_loss: figures.get("val_loss").zip(best).map(|(last, (best, step))| (last, best, step)),
            hellaswag: figures.get("hellaswag"),
            hellaswag_acc: figures.get("hellaswag_acc"),
            hellaswag_acc_norm: figures.get("hellaswag_acc_norm"),
            ema_val_loss: figures.get("ema_val_loss"),
            ema_hellaswag: figures.get("ema_hellaswag"),
            seconds: rows.iter().filter_map(|row| row.step_ms).sum::<f64>() / 1e3,
            timed: last(|row| row.tokens_per_s).count(),
            tokens_per_s: spread(last(|row| row.tokens_per_s)),
            step_ms: spread(last(|row| row.step_ms)),
            mfu: figures.get("mfu"),
            skipped: rows.iter().filter(|row| row.action.is_skip()).count(),
            resumed: happened("resume"),
            rewound: happened("rewind"),
        }
    }
}

/// Median, fifth and ninety-fifth percentile; `None` of none.
pub fn spread(values: impl Iterator<Item = f64>) -> Option<[f64; 3]> {
    let values: Vec<f64> = values.collect();
    Some([median(values.iter().copied())?, quantile(&values, 0.05)?, quantile(&values, 0.95)?])
}
