//! The columns of a run's metrics: one table, from which the row, `metrics.jsonl`, `metrics.parquet`, the
//! event file and what reads them follow.
//!
//! Each line of the table is a column: its name, which is the key in JSON and the column in parquet; its
//! [`ColumnKind`]; its unit; its tag in TensorBoard, empty for none; how a run's rows are summarised in one
//! number; and how its value is taken from an entry of the ledger, or from the clock. All but
//! timings are exact: the files hold them a second time, under `NAME_bits`, as the bits of the double. A
//! timing has no bits. `main.log` is llm.c's format and has llm.c's five streams, whatever
//! the table lists.

use crate::proof::{Action, Entry, HellaSwag};

/// Where a column's numbers come from, which decides its position in a row and whether it has bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnKind {
    /// Computed by the optimizer step; exact.
    Training,
    /// Measured before the step's update; exact.
    Evaluation,
    /// The same of the average of the weights, in the files of runs alone that keep one.
    Average,
    /// Measured by a clock; no bit of a run depends on it.
    Timing,
}

/// How long a step took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    /// Wall-clock time of the step with its digest, milliseconds.
    pub step_ms: f64,
    pub tokens_per_s: f64,
    /// Model FLOPs utilisation, 0 to 1; `None` on a device whose peak is unknown.
    pub mfu: Option<f64>,
}

/// The sources of a row: an entry of the ledger, and the clock.
#[derive(Clone, Copy, Debug)]
pub struct Turn<'a> {
    pub entry: &'a Entry,
    /// None for the evaluation after the last step, and where a row is made from the ledger alone.
    pub timing: Option<Timing>,
}

impl Turn<'_> {
    fn val_loss(&self) -> Option<f64> {
        Some(self.entry.evaluation?.validation?.loss)
    }

    fn hellaswag(&self) -> Option<HellaSwag> {
        self.entry.evaluation?.hellaswag
    }

    fn ema_hellaswag(&self) -> Option<HellaSwag> {
        self.entry.evaluation?.ema_hellaswag
    }
}

/// How the rows of a run are summarised in one number of a column, such as the run's loss or its speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SummaryRule {
    /// The mean over the last hundredth of the updates, at least one and at most a hundred.
    Tail,
    /// The last one measured.
    Last,
    /// The median over the last hundred steps.
    Median,
    /// Not summarised.
    None,
}

/// A number of each row.
#[derive(Debug)]
pub struct Column {
    pub name: &'static str,
    mean_name: &'static str,
    pub kind: ColumnKind,
    pub unit: &'static str,
    /// The tag in event files; TensorBoard groups tags by the part before the slash. Empty: not written
    /// there.
    pub tag: &'static str,
    /// Of the column's name, in `runner show` and the report.
    pub summary: SummaryRule,
    pub get: fn(&MetricsRow) -> Option<f64>,
    pub set: fn(&mut MetricsRow, Option<f64>),
    pub from: fn(&Turn<'_>) -> Option<f64>,
}

impl Column {
    /// The name of a run's one number: the column's where it is one of its values or their median, another
    /// where it is a mean (`mean_loss`), so that `loss` is that of a step in every file and on every screen.
    pub fn figure_name(&self) -> &'static str {
        if self.summary == SummaryRule::Tail { self.mean_name } else { self.name }
    }

    /// Whether the better of two runs has the higher number.
    pub fn is_better_high(&self) -> bool {
        matches!(self.unit, "share of tasks" | "tokens a second" | "share of peak FLOPs")
    }

    /// Whether the files hold the column a second time, as bits.
    pub fn is_exact(&self) -> bool {
        self.kind != ColumnKind::Timing
    }
}

/// Declares the fields of [`MetricsRow`] and, in the same order, the table [`COLUMNS`].
macro_rules! columns {
    ($(
        $(#[$doc:meta])*
        $name:ident: $kind:ident, $unit:literal, $tag:literal, $summary:ident, $from:expr;
    )*) => {
        /// One step. `None` is "not measured"; NaN and infinity are values.
        #[derive(Clone, Debug)]
        pub struct MetricsRow {
            pub step: u64,
            /// Tokens trained on, this step's included.
            pub tokens: u64,
            pub action: Action,
            /// What changed the bits of the run here, a word each: `drift`, `rewind`.
            pub events: Vec<String>,
            $($(#[$doc])* pub $name: Option<f64>,)*
        }

        impl MetricsRow {
            /// A row of this position, with nothing measured yet.
            pub fn new(step: u64, tokens: u64, action: Action) -> MetricsRow {
                MetricsRow { step, tokens, action, events: Vec::new(), $($name: None,)* }
            }
        }

        /// Every number of a row, in the order of the files.
        pub static COLUMNS: &[Column] = &[$(Column {
            name: stringify!($name),
            mean_name: concat!("mean_", stringify!($name)),
            kind: ColumnKind::$kind,
            unit: $unit,
            tag: $tag,
            summary: SummaryRule::$summary,
            get: |row| row.$name,
            set: |row, value| row.$name = value,
            from: $from,
        },)*];
    };
}

columns! {
    /// Mean training loss of the step.
    loss: Training, "nats a token", "train/loss", Tail, |turn| turn.entry.loss;
    /// Global gradient norm before clipping.
    grad_norm: Training, "", "train/grad_norm", None, |turn| turn.entry.grad_norm;
    learning_rate: Training, "", "train/learning_rate", None, |turn| turn.entry.learning_rate;
    /// Distance of this loss from the mean of the window before it; `None` while the window fills.
    loss_z: Training, "standard deviations", "guard/loss_z", None, |turn| turn.entry.loss_z;
    grad_z: Training, "standard deviations", "guard/grad_z", None, |turn| turn.entry.grad_z;
    /// Mean validation loss before this step's update.
    val_loss: Evaluation, "nats a token", "eval/val_loss", Last, |turn| turn.val_loss();
    /// HellaSwag before this step's update, 0 to 1: llm.c's score.
    hellaswag: Evaluation, "share of tasks", "eval/hellaswag", Last, |turn| Some(turn.hellaswag()?.llmc());
    /// lm-eval's `acc`, `acc_norm` and `acc_bytes`; `None` where the tasks lack its wording.
    hellaswag_acc: Evaluation, "share of tasks", "", Last, |turn| turn.hellaswag()?.acc();
    hellaswag_acc_norm: Evaluation, "share of tasks", "eval/hellaswag_acc_norm", Last,
        |turn| turn.hellaswag()?.acc_norm();
    hellaswag_acc_bytes: Evaluation, "share of tasks", "", Last, |turn| turn.hellaswag()?.acc_bytes();
    /// The same numbers of the average of the weights.
    ema_val_loss: Average, "nats a token", "eval/ema_val_loss", Last, |turn| turn.entry.evaluation?.ema_loss;
    ema_hellaswag: Average, "share of tasks", "eval/ema_hellaswag", Last,
        |turn| Some(turn.ema_hellaswag()?.llmc());
    ema_hellaswag_acc: Average, "share of tasks", "", Last, |turn| turn.ema_hellaswag()?.acc();
    ema_hellaswag_acc_norm: Average, "share of tasks", "eval/ema_hellaswag_acc_norm", Last,
        |turn| turn.ema_hellaswag()?.acc_norm();
    ema_hellaswag_acc_bytes: Average, "share of tasks", "", Last, |turn| turn.ema_hellaswag()?.acc_bytes();
    /// Wall-clock time of the step with its digest.
    step_ms: Timing, "milliseconds", "speed/step_ms", Median, |turn| Some(turn.timing?.step_ms);
    tokens_per_s: Timing, "tokens a second", "speed/tokens_per_s", Median,
        |turn| Some(turn.timing?.tokens_per_s);
    /// Model FLOPs utilisation, 0 to 1; `None` on a device whose peak is unknown.
    mfu: Timing, "share of peak FLOPs", "speed/mfu", Median, |turn| turn.timing?.mfu;
}
