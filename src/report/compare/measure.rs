//! The numbers of a run in which groups are compared.

use serde::{Serialize, Serializer};

use super::runs::ComparedRun;
use crate::experiment::nearest;
use crate::report::{ReportError, figures};
use crate::store::columns::ColumnKind;
use crate::store::metrics::Column;

/// A number of a run in which groups are compared.
#[derive(Clone, Copy, Debug)]
pub enum Measure {
    /// After the last step: the measure of the verdict, where no other is asked for.
    ValLoss,
    /// The lowest of a run's validations.
    BestValLoss,
    Hellaswag,
    /// The one number of a run in a column of its metrics, in place of the others.
    Metric(&'static Column),
}

impl Measure {
    /// What is compared where no metric is asked for.
    pub const USUAL: [Measure; 3] = [Measure::ValLoss, Measure::BestValLoss, Measure::Hellaswag];

    /// The metric of this name: a column of which a run has one number.
    ///
    /// # Errors
    /// There is no such column.
    pub fn metric(asked: &str) -> Result<Measure, ReportError> {
        let named = || figures::columns().map(Column::figure_name);
        match figures::columns().find(|column| column.figure_name() == asked.trim()) {
            Some(column) => Ok(Measure::Metric(column)),
            None if asked.trim() == Measure::BestValLoss.key() => Err(ReportError::Table {
                message: "`best_val_loss` is what is compared without `--metric`, beside the final loss"
                    .into(),
            }),
            None => {
                let near =
                    nearest(asked, named()).map_or(String::new(), |near| format!("did you mean `{near}`? "));
                let names = named().collect::<Vec<_>>().join(", ");
                let message = format!("`{asked}` is no metric of a run\n  hint: {near}there are {names}");
                Err(ReportError::Table { message })
            }
        }
    }

    /// Whether it is of the machine: runs of one seed, with equal bits, have their own.
    pub(super) fn is_timing(self) -> bool {
        matches!(self, Measure::Metric(column) if column.kind == ColumnKind::Timing)
    }

    /// Its name in JSON, and where a person asks for it.
    pub fn key(self) -> &'static str {
        match self {
            Measure::ValLoss => "val_loss",
            Measure::BestValLoss => "best_val_loss",
            Measure::Hellaswag => "hellaswag",
            Measure::Metric(column) => column.figure_name(),
        }
    }

    /// Digits behind the point of a value whose error is `scale`: two that count, four to eight in all; of a
    /// speed none.
    pub(super) fn decimals(self, scale: f64) -> usize {
        match self.key() {
            "tokens_per_s" => 0,
            _ if scale > 0.0 => (1.0 - libm::floor(libm::log10(scale))).clamp(4.0, 8.0) as usize,
            _ => 4,
        }
    }

    /// Its name in a sentence.
    pub fn name(self) -> &'static str {
        match self {
            Measure::ValLoss => "final validation loss",
            Measure::BestValLoss => "best validation loss",
            Measure::Hellaswag => "HellaSwag",
            Measure::Metric(column) => column.figure_name(),
        }
    }

    /// Its name in a later sentence.
    pub(super) fn short_name(self) -> &'static str {
        match self {
            Measure::ValLoss | Measure::BestValLoss => "loss",
            other => other.name(),
        }
    }

    /// The unit; none of a number without.
    pub fn unit(self) -> &'static str {
        match self {
            Measure::ValLoss | Measure::BestValLoss => "nats a token",
            Measure::Hellaswag => "share of tasks",
            Measure::Metric(column) => column.unit,
        }
    }

    /// Whether the better of two runs has the higher number.
    pub fn is_better_high(self) -> bool {
        match self {
            Measure::ValLoss | Measure::BestValLoss => false,
            Measure::Hellaswag => true,
            Measure::Metric(column) => column.is_better_high(),
        }
    }

    /// `lowest`, or `highest` where that is better.
    pub(super) fn superlative(self) -> &'static str {
        if self.is_better_high() { "highest" } else { "lowest" }
    }

    /// `lower`, or `higher` where that is better.
    pub(super) fn comparative(self) -> &'static str {
        if self.is_better_high() { "higher" } else { "lower" }
    }

    /// The number of a run, if it has one.
    pub fn of(self, run: &ComparedRun) -> Option<f64> {
        match self {
            Measure::ValLoss => Some(run.val_loss),
            Measure::BestValLoss => Some(run.best_val_loss),
            Measure::Hellaswag => run.hellaswag,
            Measure::Metric(column) => run.metric(column),
        }
    }
}

impl PartialEq for Measure {
    fn eq(&self, other: &Measure) -> bool {
        let is_metric = |measure: &Measure| matches!(measure, Measure::Metric(_));
        (self.key(), is_metric(self)) == (other.key(), is_metric(other))
    }
}

impl Serialize for Measure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.key())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_found_by_the_name_that_show_has_for_it_and_knows_which_end_is_better() {
        let found = |name: &str| Measure::metric(name).map_err(|error| error.to_string());
        for (name, is_better_high) in [
            ("val_loss", false),
            ("ema_val_loss", false),
            ("mean_loss", false),
            ("step_ms", false),
            ("hellaswag_acc_norm", true),
            ("tokens_per_s", true),
            ("mfu", true),
        ] {
            assert_eq!(found(name).map(|measure| measure.is_better_high()), Ok(is_better_high), "{name}");
        }
        let refused = found("ema_valloss").expect_err("no such column");
        assert!(
            refused.contains("did you mean `ema_val_loss`") && refused.contains("mean_loss"),
            "{refused}"
        );
        assert!(found("grad_norm").is_err(), "a run has no one number of it");
        assert_eq!(found("tokens_per_s").map(|measure| measure.decimals(0.1)), Ok(0));
        assert_eq!(found("val_loss").map(|measure| measure.decimals(0.1)), Ok(4));
    }
}
