//! The listener that records a run: events become entries of the ledger, rows of metrics and sample files.

use super::RunError;
use super::events::{Evaluatee, Event, Listener};
use super::trainer::StepReport;
use crate::eval::Scores;
use crate::optim::Verdict;
use crate::proof::entry::rewind_event;
use crate::proof::ledger::NOT_FINITE;
use crate::proof::{self, Action, Entry, Evaluation, Head, HellaSwag, Validation};
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
                let lost_lock = self.records.lost_lock_since(*entries)?;
                self.records.rewind(*entries, *to_step)?;
                if lost_lock {
                    // The entry that told of it is gone, and the lock is still one made again.
                    let text = proof::lock::lost_lock().to_string();
                    self.records.note_again("drift", &text)?;
                    self.changes.push(format!("drift {text}"));
                }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{RunFolder, Timing};

    #[test]
    fn a_rewind_behind_the_entry_that_told_of_a_lost_lock_tells_of_it_again() {
        let root = tempfile::tempdir().unwrap();
        let paths = RunFolder::create(root.path(), "run", false).unwrap().paths.clone();
        let lost = format!("drift {}", proof::lock::lost_lock());
        for (told_at, again) in [(2, false), (5, true), (6, true)] {
            let mut recorder = Recorder::new(Records::open(&paths, None, None, 0).unwrap());
            for step in 0..8 {
                let mut entry = Entry {
                    loss: Some(5.0),
                    grad_norm: Some(1.0),
                    learning_rate: Some(6e-4),
                    ..Entry::new(step, (step + 1) * 64, Action::Update)
                };
                if step == told_at {
                    entry.events.push(lost.clone());
                }
                let timing = Timing { step_ms: 1.0, tokens_per_s: 1.0, mfu: None };
                recorder.records.add(&entry, Some(timing)).unwrap();
            }
            recorder.on(&Event::Rewound { from_step: 7, to_step: 5, entries: 5 }).unwrap();
            let rewind = rewind_event(7, 5);
            let expected = if again { vec![lost.clone(), rewind] } else { vec![rewind] };
            assert_eq!(recorder.changes, expected, "told at {told_at}");
        }
    }
}
