//! The listener that records a run: events become entries of the ledger, rows of metrics and sample files.

use super::RunError;
use super::events::{Evaluatee, Event, Listener};
use super::trainer::StepReport;
use crate::eval::Scores;
use crate::optim::Verdict;
use crate::proof::entry::rewind_event;
use crate::proof::ledger::NOT_FINITE;
use crate::proof::{Action, Entry, Evaluation, Head, HellaSwag, Validation};
use crate::store::{Records, SessionStatus};

/// Keeps the records of a run. Events since the last step go into the next entry.
pub struct Recorder {
    pub records: Records,
    /// Measured before the next step.
    evaluation: Evaluation,
    /// What changed the bits before the next step, as the ledger writes it: `drift …`, `rewind …`.
    pub changes: Vec<String>,
}

impl Recorder {
    /// A recorder without any event yet.
    pub fn new(records: Records) -> Recorder {
        Recorder { records, evaluation: Evaluation::default(), changes: Vec::new() }
    }
}

impl Listener for Recorder {
    fn on(&mut self, event: &Event) -> Result<(), RunError> {
        match event {
            Event::Evaluated { of: Evaluatee::Weights, val_loss, val_tokens, .. } => {
                self.evaluation.validation = Some(Validation { loss: *val_loss, tokens: *val_tokens });
            }
            Event::Evaluated { of: Evaluatee::Average, val_loss, .. } => {
                self.evaluation.ema_loss = Some(*val_loss);
            }
            Event::HellaSwag { of: Evaluatee::Weights, scores, .. } => {
                self.evaluation.hellaswag = Some(correct_counts(scores));
            }
            Event::HellaSwag { of: Evaluatee::Average, scores, .. } => {
                self.evaluation.ema_hellaswag = Some(correct_counts(scores));
            }
            Event::Sampled { step, prompt, text } => {
                self.records.sample(*step, &format!("{prompt}{text}\n"))?;
            }
            Event::Stepped { report, tokens, timing, root, audit, sources } => {
                let sources = sources.clone();
                let step = Entry { root: *root, audit: *audit, sources, ..ledger_entry(report, *tokens) };
                let evaluation = Some(std::mem::take(&mut self.evaluation));
                let entry = Entry { events: std::mem::take(&mut self.changes), evaluation, ..step };
                self.records.add(&entry, Some(*timing))?;
            }
            Event::Completed { steps, tokens } => {
                let evaluation = std::mem::take(&mut self.evaluation);
                if !evaluation.is_empty() {
                    self.records.add(&last_entry(*steps, *tokens, evaluation), None)?;
                }
            }
            Event::NotFinite { step, why } => {
                self.records.note(NOT_FINITE, why)?;
                self.records.end(*step, SessionStatus::Failure)?;
            }
            Event::Diverged { step, .. } => self.records.end(step + 1, SessionStatus::Failure)?,
            Event::Finished { step, .. } => self.records.end(*step, SessionStatus::Success)?,
            Event::Rewound { from_step, to_step, entries } => {
                self.records.rewind(*entries, *to_step)?;
                self.changes.push(rewind_event(*from_step, *to_step));
            }
            _ => {}
        }
        Ok(())
    }

    fn make_durable(&mut self) -> Result<Option<Head>, RunError> {
        Ok(Some(self.records.sync()?))
    }
}

/// A step's own part of its entry: its numbers, and the guards' decision. `tokens` are those seen,
/// the step's included.
pub fn ledger_entry(report: &StepReport, tokens: u64) -> Entry {
    let action = match report.verdict {
        Verdict::Update => Action::Update,
        Verdict::SkipLoss => Action::SkipLossZ,
        Verdict::SkipGrad => Action::SkipGradZ,
        Verdict::SkipNonfinite => Action::SkipNonfinite,
    };
    Entry {
        loss: Some(report.loss),
        grad_norm: Some(report.grad_norm),
        learning_rate: Some(report.learning_rate),
        loss_z: report.loss_z,
        grad_z: report.grad_z,
        ..Entry::new(report.step, tokens, action)
    }
}

/// The entry of the evaluation after the last step.
fn last_entry(step: u64, tokens: u64, evaluation: Evaluation) -> Entry {
    Entry { evaluation: Some(evaluation), ..Entry::new(step, tokens, Action::Evaluate) }
}

/// Scores as the ledger has them. Sums over the plain wording are not lm-eval's scores and are not recorded
/// under their names.
pub fn correct_counts(scores: &Scores) -> HellaSwag {
    let [llmc, acc, acc_norm, acc_bytes] = scores.correct.map(|correct| correct as u64);
    let of_harness = |correct| scores.harness.then_some(correct);
    HellaSwag {
        tasks: scores.tasks as u64,
        llmc_correct: llmc,
        acc_correct: of_harness(acc),
        acc_norm_correct: of_harness(acc_norm),
        acc_bytes_correct: of_harness(acc_bytes),
    }
}
