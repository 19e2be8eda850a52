//! One number of a run for each column of its metrics: the same in `runner show`, in the table of runs and on
//! the page of a run.

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::statistics::median;
use crate::store::columns::{ColumnKind, SummaryRule};
use crate::store::metrics::{Action, COLUMNS, Column, MetricsRow};

/// The columns that have a number of a run, in their order.
pub fn columns() -> impl Iterator<Item = &'static Column> {
    COLUMNS.iter().filter(|column| column.summary != SummaryRule::None)
}

/// The numbers of a run, by column; none where nothing was measured. Columns of the average of the weights
/// are left out where nothing was.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures(Vec<(&'static str, Option<f64>)>);

impl Figures {
    /// Summarises the rows of a run.
    pub fn of(rows: &[MetricsRow]) -> Figures {
        Figures::of_end(rows, updates(rows))
    }

    /// The same from the last rows of a run that made so many updates: at least [`tail`] of them, [`TIMED`]
    /// rows with a time, and the row of the last evaluation.
    pub fn of_end(rows: &[MetricsRow], updates: usize) -> Figures {
        let of = |column| (column, figure(column, rows, updates));
        // Those of an average are there only where one is kept.
        let has =
            |(column, value): &(&Column, Option<f64>)| column.kind != ColumnKind::Average || value.is_some();
        let figures = columns().map(of).filter(has);
        Figures(figures.map(|(column, value)| (column.figure_name(), value)).collect())
    }

    /// The number called `name`: [`Column::figure_name`].
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.iter().find(|(column, _)| *column == name)?.1
    }

    /// The columns of which there is a number, with it.
    pub fn measured(&self) -> impl Iterator<Item = (&'static str, f64)> {
        self.0.iter().filter_map(|(column, value)| Some((*column, (*value)?)))
    }

    /// With another number called `name`.
    #[cfg(test)]
    pub fn with(mut self, name: &'static str, value: Option<f64>) -> Figures {
        self.0.retain(|(column, _)| *column != name);
        self.0.push((name, value));
        self
    }
}

/// An object with a key a column, and one more for the bits of a number that JSON has no decimal for.
impl Serialize for Figures {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        for (name, value) in &self.0 {
            object.serialize_entry(name, value)?;
            if let Some(bits) = value.and_then(bits_beside) {
                object.serialize_entry(&format!("{name}_bits"), &bits)?;
            }
        }
        object.end()
    }
}

/// The bits of a number that is `null` in JSON, as `metrics.jsonl` has them: what was measured, and is not
/// finite.
pub fn bits_beside(value: f64) -> Option<String> {
    (!value.is_finite()).then(|| format!("0x{:016x}", value.to_bits()))
}

/// The most steps whose times are summarised: the last ones.
pub const TIMED: usize = 100;

/// The steps that were updates.
pub fn updates(rows: &[MetricsRow]) -> usize {
    rows.iter().filter(|row| row.action == Action::Update).count()
}

/// How many updates the mean over the end of a run looks at: a hundredth of them, one to a hundred.
pub fn tail(updates: usize) -> usize {
    (updates / 100).clamp(1, 100).min(updates)
}

fn figure(column: &Column, rows: &[MetricsRow], updates: usize) -> Option<f64> {
    let last_first = || rows.iter().rev().filter_map(column.get);
    match column.summary {
        SummaryRule::None => None,
        SummaryRule::Last => last_first().next(),
        SummaryRule::Median => median(last_first().take(TIMED)),
        SummaryRule::Tail => {
            let last = rows.iter().rev().filter(|row| row.action == Action::Update);
            let values: Vec<f64> = last.filter_map(column.get).take(tail(updates)).collect();
            (!values.is_empty()).then(|| values.iter().rev().sum::<f64>() / values.len() as f64)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_is_a_mean_over_the_end_the_score_the_last_and_the_speed_the_median_of_a_hundred_steps() {
        let rows: Vec<MetricsRow> = (0..300)
            .map(|step| MetricsRow {
                loss: Some(if step == 299 { f64::NAN } else { step as f64 }),
                val_loss: (step % 100 == 0).then_some(step as f64),
                step_ms: Some(if step < 200 { 900.0 } else { 10.0 }),
                ..MetricsRow::new(
                    step,
                    step + 1,
                    if step == 299 { Action::SkipNonfinite } else { Action::Update },
                )
            })
            .collect();
        let figures = Figures::of(&rows);
        // 299 updates: the last two; the skipped step is none of them.
        assert_eq!(figures.get("mean_loss"), Some(297.5));
        assert_eq!((figures.get("val_loss"), figures.get("step_ms")), (Some(200.0), Some(10.0)));
        assert_eq!((figures.get("hellaswag"), figures.get("grad_norm")), (None, None));
        assert_eq!(Figures::of(&[]).get("mean_loss"), None);
        let odd = Figures::default().with("val_loss", Some(f64::INFINITY)).with("mfu", None);
        let json = serde_json::json!({"val_loss": null, "val_loss_bits": "0x7ff0000000000000", "mfu": null});
        assert_eq!(serde_json::to_value(odd).unwrap(), json);
        // The last hundred rows tell as much.
        assert_eq!(Figures::of_end(&rows[200..], 299), figures);
    }
}
