//! The loop around the optimizer step: evaluate, sample, step, report, save, until the last step, a request
//! to stop, or divergence.
//!
//! Of several ranks every one goes through the same loop and sees the same numbers. All measure and sample,
//! so that none waits for another; what rank 0's listeners record is the run's record, and checkpoints are
//! written by all.
//!
//! The order within one turn of the loop is fixed: what is evaluated or sampled at step `s` reads the
//! weights before step `s`. Nothing in this file changes what a step computes; evaluation, samples,
//! hashing and checkpoints may come and go without changing a bit of the training state.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::events::{Evaluatee, Event, Listener};
use super::finite::LastState;
use super::trainer::{StepReport, Trainer};
use super::{RunError, TrainError, audit, replay};
use crate::data::{Prefetcher, StreamDecoder, Tokenizer, ValidationSet, mixture};
use crate::eval::{self, EvalError, TaskSet};
use crate::experiment::Experiment;
use crate::generate::{GenerateError, Sampling, Texts, generate};
use crate::model::flops::flops_per_token;
use crate::ops::Ops;
use crate::optim::Verdict;
use crate::parallel::exchange;
use crate::proof::Hash;
use crate::rng::Key;
use crate::store::{Timing, Writer};
use crate::units::{noun, were};

/// The key of the numerics with the updates that were made before the checkpoint whose optimizer a run goes
/// on with.
pub const INIT_UPDATES: &str = "model.init_updates";

/// A run with everything open; [`Run::finish`] trains it.
pub struct Run<O: Ops> {
    pub experiment: Experiment,
    pub trainer: Trainer<O>,
    pub feed: Prefetcher,
    pub validation: Option<ValidationSet>,
    pub hellaswag: Option<TaskSet>,
    pub tokenizer: Tokenizer,
    pub writer: Writer,
    /// What the bits depend on, for the manifest of each checkpoint.
    pub numerics: BTreeMap<String, String>,
    /// What the state after the last step was found to hold, once it is saved.
    pub last_state: LastState,
    /// The checkpoint that the run last went back to, by the ledger of a resumed run. Rank 0 has it.
    pub rewound_to: Option<u64>,
    /// Set by a signal: finish the step, save, stop.
    pub stop: Arc<AtomicBool>,
    /// The device's peak rate at the experiment's precision, where it is known.
    pub peak_flops: Option<f64>,
}

/// How a run ended, other than by an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Finished {
        root: Hash,
    },
    Interrupted {
        step: u64,
    },
    Diverged {
        step: u64,
    },
    /// A loss or weight is not finite, so the run has no usable model.
    NotFinite {
        step: u64,
    },
}

impl<O: Ops> Run<O> {
    /// Trains from the trainer's current step to the end.
    pub fn finish(&mut self, out: &mut dyn Listener) -> Result<Outcome, RunError> {
        let started = Instant::now();
        let steps = self.experiment.schedule.steps;
        let (step, all_tokens) = (self.trainer.progress().step, self.experiment.tokens_before(steps));
        let tokens = self.experiment.tokens_before(step);
        out.on(&Event::Began { step, steps, tokens, all_tokens })?;
        self.drop_audits()?;
        // A second divergence before any new checkpoint would go back to the same place for ever.
        let (mut rewound_to, mut last) = (self.rewound_to, None);
        while self.trainer.progress().step < steps {
            match self.turn(&mut rewound_to, out)? {
                ControlFlow::Continue(verdict) => last = Some(verdict),
                ControlFlow::Break(outcome) => return Ok(outcome),
            }
        }
        self.end(last, started, out)
    }

    /// One iteration of the loop. Returns the guards' verdict on its step, or how the run ended.
    fn turn(
        &mut self,
        rewound_to: &mut Option<u64>,
        out: &mut dyn Listener,
    ) -> Result<ControlFlow<Outcome, Verdict>, RunError> {
        let (step, steps) = (self.trainer.progress().step, self.experiment.schedule.steps);
        let not_finite = self.evaluate(step, out)?;
        if not_finite.is_none() {
            self.sample(step, out)?;
        }
        let (verdict, root) = self.step(step, *rewound_to, out)?;
        if let Some(why) = not_finite {
            // The step is still made, because its ledger entry holds the evaluation.
            return self.end_not_finite(why, out).map(ControlFlow::Break);
        }
        if self.trainer.progress().guards.diverged() {
            let skips = self.trainer.progress().guards.skips_in_a_row;
            out.on(&Event::Diverged { step, skips })?;
            *rewound_to = self.rewind(step, *rewound_to, out)?;
            if rewound_to.is_some() {
                return Ok(ControlFlow::Continue(verdict));
            }
            self.settle(out)?;
            return Ok(ControlFlow::Break(Outcome::Diverged { step }));
        }
        let stop = self.agree_to_stop()?;
        if stop || due(self.experiment.checkpoint.every, step + 1, steps) {
            self.checkpoint(root, out)?;
        }
        self.announce_saved(out)?;
        if stop && step + 1 < steps {
            self.settle(out)?;
            out.on(&Event::Interrupted { step: step + 1 })?;
            return Ok(ControlFlow::Break(Outcome::Interrupted { step: step + 1 }));
        }
        Ok(ControlFlow::Continue(verdict))
    }

    /// Evaluates and samples after the last step, and checks whether the run has a usable model. `last` is
    /// the guards' verdict on the last step, if one was made.
    fn end(
        &mut self,
        last: Option<Verdict>,
        started: Instant,
        out: &mut dyn Listener,
    ) -> Result<Outcome, RunError> {
        let steps = self.experiment.schedule.steps;
        let mut why = self.evaluate(steps, out)?;
        if why.is_none() {
            self.sample(steps, out)?;
        }
        out.on(&Event::Completed { steps, tokens: self.experiment.tokens_before(steps) })?;
        if why.is_none() && last == Some(Verdict::SkipNonfinite) {
            why = Some(format!("loss or gradient norm of step {}, the last, is not finite", steps - 1));
        }
        // The memory of the last snapshot must be free before the state may be read again.
        self.settle(out)?;
        if why.is_none() {
            why = self.came_to_nothing()?;
        }
        if let Some(why) = why {
            return self.end_not_finite(why, out);
        }
        let root = self.trainer.state_root()?;
        let (waits, seconds) = (self.feed.waits(), started.elapsed().as_secs_f64());
        out.on(&Event::Finished { step: steps, skipped: self.skipped(), root, seconds, waits })?;
        Ok(Outcome::Finished { root })
    }

    /// Steps made that updated the weights: without those before the checkpoint whose optimizer the run goes
    /// on with.
    pub(super) fn updates(&self) -> u64 {
        let before = self.numerics.get(INIT_UPDATES).and_then(|updates| updates.parse().ok()).unwrap_or(0);
        self.trainer.progress().updates - before
    }

    /// Steps made that did not update the weights.
    fn skipped(&self) -> u64 {
        self.trainer.progress().step - self.updates()
    }

    /// Ends a run in which a number that must be finite is not. Nothing more is saved; existing checkpoints
    /// are kept.
    fn end_not_finite(&mut self, why: String, out: &mut dyn Listener) -> Result<Outcome, RunError> {
        let step = self.trainer.progress().step;
        let (skipped, steps) = (self.skipped(), noun(step, "step"));
        let why = format!("{why}; {skipped} of {step} {steps} {} skipped", were(skipped));
        out.on(&Event::NotFinite { step, why })?;
        self.settle(out)?;
        Ok(Outcome::NotFinite { step })
    }

    /// One optimizer step with its digest and audit, timed and reported. Returns the guards' verdict, and the
    /// state root where it was hashed. The step that the run `went_back` to is not audited: the state before
    /// it is no longer the ledger's, because the data behind it were skipped.
    fn step(
        &mut self,
        step: u64,
        went_back: Option<u64>,
        out: &mut dyn Listener,
    ) -> Result<(Verdict, Option<Hash>), RunError> {
        let (steps, seq_len) = (self.experiment.schedule.steps, self.experiment.batch.seq_len_of(step));
        let began = Instant::now();
        let audited = went_back != Some(step) && audit::draw::due(self.experiment.proof.audit_every, step);
        if audited {
            let head = out.make_durable()?;
            self.trainer.begin_audit(head).map_err(|error| of_step(step, error))?;
        }
        let report = self.train(step)?;
        let every = [self.experiment.proof.digest_every, self.experiment.checkpoint.every];
        let root = every
            .iter()
            .any(|every| due(*every, step + 1, steps))
            .then(|| self.trainer.state_root())
            .transpose()?;
        let seconds = began.elapsed().as_secs_f64();
        let tokens_per_s = self.experiment.tokens_of(step) as f64 / seconds;
        let flops = flops_per_token(&self.experiment.model, seq_len);
        let mfu = self.peak_flops.map(|peak| tokens_per_s * flops / peak);
        let timing = Timing { step_ms: seconds * 1e3, tokens_per_s, mfu };
        let (verdict, audit) = (report.verdict, self.trainer.audit_root());
        let offset = self.trainer.progress().data_offset;
        let sources = mixture::tokens_of_sources(&self.experiment, step + 1, offset);
        let tokens = self.experiment.tokens_before(step + 1);
        out.on(&Event::Stepped { report: report.clone(), tokens, timing, root, audit, sources })?;
        if audited {
            let head = out.make_durable()?;
            let kept = self.trainer.end_audit(&report, head);
            if let Some(kept) = kept.map_err(|error| of_step(step, error))? {
                self.writer.keep_audit(&kept)?;
            }
        }
        Ok((verdict, root))
    }

    /// The step itself; every `proof.replay_every`th is made twice.
    fn train(&mut self, step: u64) -> Result<StepReport, RunError> {
        let every = self.experiment.proof.replay_every;
        if every == 0 || !(step + 1).is_multiple_of(every) {
            return self.trainer.step(&mut self.feed).map_err(|error| of_step(step, error));
        }
        replay::twice(&mut self.trainer, &mut self.feed, &self.writer, |trainer, feed| trainer.step(feed))
    }

    /// Validation loss and HellaSwag, when they are due before `step`. Returns why the weights are unusable,
    /// when a loss is not finite.
    fn evaluate(&mut self, step: u64, out: &mut dyn Listener) -> Result<Option<String>, RunError> {
        if !due_before(self.experiment.eval.every, step, self.experiment.schedule.steps) {
            return Ok(None);
        }
        let Run { trainer, validation, hellaswag, .. } = self;
        let sets = EvalSets { validation: validation.as_ref(), hellaswag: hellaswag.as_ref() };
        let why = sets.measure(trainer, step, Evaluatee::Weights, out)?;
        if why.is_some() || !trainer.keeps_average() {
            return Ok(why);
        }
        trainer.with_average(|trainer| sets.measure(trainer, step, Evaluatee::Average, out))?
    }

    /// A text, when one is due before `step`.
    fn sample(&mut self, step: u64, out: &mut dyn Listener) -> Result<(), RunError> {
        let sample = &self.experiment.sample;
        if step == 0 || !due_before(sample.every, step, self.experiment.schedule.steps) {
            return Ok(());
        }
        let mut prompt = vec![self.tokenizer.eot()];
        prompt.extend(self.tokenizer.encode(&sample.prompt));
        let sampling = Sampling {
            temperature: sample.temperature,
            top_k: sample.top_k,
            top_p: 1.0,
            key: Key::new(self.experiment.seed, &format!("sample at step {step}")),
        };
        let (mut characters, mut text) = (StreamDecoder::new(self.tokenizer), String::new());
        let (eot, vocab) = (self.tokenizer.eot(), self.tokenizer.vocab());
        let Some((ops, params, decoder)) = self.trainer.for_sampling() else { return Ok(()) };
        let positions = self.experiment.trained_positions_after(step);
        let (count, sampling) = (sample.tokens, &sampling);
        let texts = Texts { prompt: &prompt, count, numbers: &[0], sampling, vocab, positions };
        let written = generate(ops, decoder, params, texts, |_, token| {
            if token != eot {
                text.push_str(&characters.push(token));
            }
            token != eot
        });
        text.push_str(&characters.finish());
        match written {
            Ok(()) => {}
            Err(GenerateError::Device(error)) => return Err(TrainError::from(error).into()),
            // The guards judge the training; the sample says why it ends here.
            Err(not_finite) => text.push_str(&format!("[{not_finite}]")),
        }
        out.on(&Event::Sampled { step, prompt: sample.prompt.clone(), text })
    }

    /// Whether any rank was asked to stop: then all stop, after the same step.
    fn agree_to_stop(&mut self) -> Result<bool, RunError> {
        let asked = vec![u8::from(self.stop.load(Ordering::SeqCst))];
        let all = exchange::all_gather(self.trainer.link(), "the question whether to stop", asked)
            .map_err(TrainError::from)?;
        Ok(all.iter().flatten().any(|&asked| asked != 0))
    }
}

/// What a run is evaluated on.
struct EvalSets<'a> {
    validation: Option<&'a ValidationSet>,
    hellaswag: Option<&'a TaskSet>,
}

impl EvalSets<'_> {
    /// Measures what the trainer's model holds before `step`: the weights, or their average. Returns why that
    /// is unusable, when a loss is not finite.
    fn measure<O: Ops>(
        &self,
        trainer: &mut Trainer<O>,
        step: u64,
        of: Evaluatee,
        out: &mut dyn Listener,
    ) -> Result<Option<String>, RunError> {
        let (validating, scoring) = match of {
            Evaluatee::Weights => ("validating", "HellaSwag"),
            Evaluatee::Average => ("validating the average", "HellaSwag of the average"),
        };
        if let Some(set) = self.validation {
            let (ops, model, losses, link) = trainer.for_evaluation();
            let (what, sequences, mut reported) = (validating, set.sequences(), Ok(()));
            let mut progress = |done| report(&mut reported, out, Event::Evaluating { what, done, sequences });
            let val_loss = eval::validation_loss(ops, model, losses, link, set, &mut progress)?;
            reported?;
            out.on(&Event::Evaluated { step, of, val_loss, val_tokens: set.tokens() })?;
            if !val_loss.is_finite() {
                return Ok(Some(format!("the validation loss{} at step {step} is {val_loss}", of.whose())));
            }
        }
        if let Some(set) = self.hellaswag {
            let (ops, model, losses, link) = trainer.for_evaluation();
            let mut reported = Ok(());
            let mut progress = |done, sequences| {
                report(&mut reported, out, Event::Evaluating { what: scoring, done, sequences })
            };
            let scores = eval::hellaswag(ops, model, losses, link, set, &mut progress);
            reported?;
            match scores {
                Ok(scores) => out.on(&Event::HellaSwag { step, of, scores })?,
                Err(why @ EvalError::NotFinite { .. }) => return Ok(Some(why.to_string())),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }
}

/// An error of a step. That of an exchange names its own step, and another rank's failure is not one of this
/// step.
fn of_step(step: u64, error: TrainError) -> RunError {
    match error {
        TrainError::Exchange(_) => error.into(),
        error => RunError::Step { step, error },
    }
}

/// Reports from within work that cannot be interrupted; keeps the first error.
fn report(reported: &mut Result<(), RunError>, out: &mut dyn Listener, event: Event) {
    if reported.is_ok() {
        *reported = out.on(&event);
    }
}

/// Whether something that happens after every `every`th step and after the last is due after `done` steps.
fn due(every: u64, done: u64, steps: u64) -> bool {
    done == steps || (every > 0 && done.is_multiple_of(every))
}

/// Whether something that happens before every `every`th step and after the last is due before `step`.
fn due_before(every: u64, step: u64, steps: u64) -> bool {
    every > 0 && (step.is_multiple_of(every) || step == steps)
}
