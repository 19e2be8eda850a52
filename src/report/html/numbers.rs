//! The metrics in a few numbers.

use super::super::run_data::RunData;
use super::super::series::quantile;
use crate::store::metrics::{Action, MetricsRow};

/// What a run came to.
pub struct Numbers {
    /// Steps done, skipped ones included.
    pub steps: u64,
    pub tokens: u64,
    /// Mean training loss of the last fiftieth of the updates, and over how many.
    pub loss: Option<(f64, usize)>,
    /// The last one measured, and the best with its step.
    pub val_loss: Option<(f64, f64, u64)>,
    pub hellaswag: Option<f64>,
    pub hellaswag_acc: Option<f64>,
    pub hellaswag_acc_norm: Option<f64>,
    /// Seconds in steps.
    pub seconds: f64,
    /// Median, fifth and ninety-fifth percentile over the steps.
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
        let last = |value: fn(&MetricsRow) -> Option<f64>| rows.iter().rev().find_map(value);
        let spread = |value: fn(&MetricsRow) -> Option<f64>| spread(rows.iter().filter_map(value));
        let updates = rows.iter().filter(|row| row.action == Action::Update);
        let losses: Vec<f64> = updates.filter_map(|row| row.loss).filter(|loss| loss.is_finite()).collect();
        let looked_at = (losses.len() / 50).max(1).min(losses.len());
        let tail = &losses[losses.len() - looked_at..];
        let best =
            rows.iter().filter_map(|row| Some((row.val_loss?, row.step))).min_by(|a, b| a.0.total_cmp(&b.0));
        let happened =
            |word: &str| rows.iter().filter(|row| row.events.iter().any(|event| event == word)).count();
        Numbers {
            steps: run.trained().count() as u64,
            tokens: rows.last().map_or(0, |row| row.tokens),
            loss: (!tail.is_empty()).then(|| (tail.iter().sum::<f64>() / tail.len() as f64, tail.len())),
            val_loss: last(|row| row.val_loss).zip(best).map(|(last, (best, step))| (last, best, step)),
            hellaswag: last(|row| row.hellaswag),
            hellaswag_acc: last(|row| row.hellaswag_acc),
            hellaswag_acc_norm: last(|row| row.hellaswag_acc_norm),
            seconds: rows.iter().filter_map(|row| row.step_ms).sum::<f64>() / 1e3,
            tokens_per_s: spread(|row| row.tokens_per_s),
            step_ms: spread(|row| row.step_ms),
            mfu: spread(|row| row.mfu).map(|[median, ..]| median),
            skipped: rows.iter().filter(|row| row.action.is_skip()).count(),
            resumed: happened("resume"),
            rewound: happened("rewind"),
        }
    }
}

/// Median, fifth and ninety-fifth percentile; `None` of none.
pub fn spread(values: impl Iterator<Item = f64>) -> Option<[f64; 3]> {
    let values: Vec<f64> = values.collect();
    Some([quantile(&values, 0.5)?, quantile(&values, 0.05)?, quantile(&values, 0.95)?])
}
