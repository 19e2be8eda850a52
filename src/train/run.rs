//! The loop around the optimizer step: evaluate, step, record, save, until the last step, a request to
//! stop, or divergence.
//!
//! Of several ranks every one goes through the same loop and sees the same numbers. All measure and sample,
//! so that none waits for another; rank 0 alone keeps records, and checkpoints are written by all.
//!
//! The order within one turn of the loop is fixed: what is evaluated or sampled at step `s` reads the
//! weights before step `s`. Nothing in this file changes what a step computes; evaluation, samples,
//! hashing and checkpoints may come and go without changing a bit of the training state.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::events::{Event, Listener};
use super::trainer::{StepReport, Trainer};
use super::{RunError, TrainError, replay};
use crate::data::{Prefetcher, StreamDecoder, Tokenizer, ValidationSet};
use crate::eval::{self, Scores, TaskSet};
use crate::experiment::{Experiment, OnDiverge};
use crate::generate::{GenerateError, Sampling, generate};
use crate::model::flops::flops_per_token;
use crate::ops::Ops;
use crate::optim::Verdict;
use crate::parallel::exchange;
use crate::proof::{self, Entry, Hash, Ledger};
use crate::rng::Key;
use crate::store::checkpoint::folder_name;
use crate::store::main_log::MainLogWriter;
use crate::store::metrics::{self, MetricsRow, MetricsWriter};
use crate::store::tensorboard::EventWriter;
use crate::store::writer::{Completion, PartJob};
use crate::store::{Facts, Job, Loaded, RunPaths, Saved, Saving, Site, Writer, load_some, newest_whole};

/// A run with everything open: what [`Run::finish`] turns into a trained model.
pub struct Run<O: Ops> {
    pub experiment: Experiment,
    pub trainer: Trainer<O>,
    pub feed: Prefetcher,
    pub validation: Option<ValidationSet>,
    pub hellaswag: Option<TaskSet>,
    pub tokenizer: Tokenizer,
    pub paths: RunPaths,
    pub writer: Writer,
    /// Rank 0's.
    pub records: Option<Records>,
    /// Set by a signal: finish the step, save, stop.
    pub stop: Arc<AtomicBool>,
    /// The device's peak rate at the experiment's precision, where it is known.
    pub peak_flops: Option<f64>,
}

/// The files a run keeps.
pub struct Records {
    pub paths: RunPaths,
    pub ledger: Ledger,
    pub metrics: MetricsWriter,
    pub main_log: MainLogWriter,
    /// For TensorBoard, when that is wanted.
    pub tensorboard: Option<EventWriter>,
    /// What the bits depend on, for the manifest of each checkpoint.
    pub numerics: std::collections::BTreeMap<String, String>,
    /// What has happened since the last step, for the next step's row and entry.
    pub pending: Pending,
}

/// What happened between two steps.
#[derive(Clone, Debug, Default)]
pub struct Pending {
    /// The run was resumed, which changes no bit: metrics tell it, the ledger's entries do not.
    pub resumed: bool,
    /// What changed bits, in the ledger's words: `drift …`, `rewind …`.
    pub changes: Vec<String>,
}

impl Pending {
    /// One word for each thing that happened.
    fn words(&self) -> Vec<String> {
        let changes = self.changes.iter().filter_map(|change| change.split(' ').next().map(str::to_owned));
        self.resumed.then(|| "resume".to_owned()).into_iter().chain(changes).collect()
    }
}

impl Records {
    fn append(&mut self, row: &MetricsRow) -> Result<(), RunError> {
        self.metrics.append(row)?;
        if let Some(events) = &mut self.tensorboard {
            events.append(row)?;
        }
        Ok(self.main_log.append(row)?)
    }

    /// Returns when rows and entries are on the disk.
    fn sync(&self) -> Result<(), RunError> {
        self.ledger.sync()?;
        self.metrics.sync()?;
        Ok(self.main_log.sync()?)
    }

    fn write_parquet(&self) -> Result<(), RunError> {
        Ok(self.metrics.write_parquet(&self.paths.metrics_parquet())?)
    }
}

/// What was measured before a step, where it was due.
struct Measured {
    val_loss: Option<f64>,
    hellaswag: Option<Scores>,
}

impl Measured {
    fn any(&self) -> bool {
        self.val_loss.is_some() || self.hellaswag.is_some()
    }

    fn write(&self, row: &mut MetricsRow) {
        row.val_loss = self.val_loss;
        if let Some(scores) = &self.hellaswag {
            row.hellaswag = Some(scores.reference);
            // Sums over the plain wording are not the harness's scores and do not go under their names.
            row.hellaswag_acc = scores.harness.then_some(scores.acc);
            row.hellaswag_acc_norm = scores.harness.then_some(scores.acc_norm);
        }
    }
}

/// How a run ended, other than by an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Finished { root: Hash },
    Interrupted { step: u64 },
    Diverged { step: u64 },
}

impl<O: Ops> Run<O> {
    /// Trains from where the trainer stands to the end.
    pub fn finish(&mut self, out: &mut dyn Listener) -> Result<Outcome, RunError> {
        let started = Instant::now();
        let steps = self.experiment.schedule.steps;
        out.on(&Event::Began { step: self.trainer.progress().step, steps });
        // A second divergence before any new checkpoint would go back to the same place for ever.
        let mut rewound_to = None;
        loop {
            let step = self.trainer.progress().step;
            let measured =
                Measured { val_loss: self.evaluate(step, out)?, hellaswag: self.hellaswag(step, out)? };
            self.sample(step, out)?;
            if step == steps {
                if let Some(records) = self.records.as_mut().filter(|_| measured.any()) {
                    let mut row =
                        MetricsRow::new(step, step * self.experiment.batch.tokens, metrics::Action::Evaluate);
                    measured.write(&mut row);
                    records.append(&row)?;
                }
                break;
            }

            let began = Instant::now();
            let report = self.step(step)?;
            let root = due(self.experiment.proof.digest_every, step + 1, steps)
                .then(|| self.trainer.state_root())
                .transpose()?;
            let seconds = began.elapsed().as_secs_f64();
            self.record(&measured, &report, root, seconds, out)?;

            if self.trainer.progress().guards.diverged() {
                let skips = self.trainer.progress().guards.skips_in_a_row;
                out.on(&Event::Diverged { step, skips });
                match self.rewind(step, rewound_to, out)? {
                    Some(to) => rewound_to = Some(to),
                    None => {
                        self.settle(out)?;
                        return Ok(Outcome::Diverged { step });
                    }
                }
                continue;
            }
            let stop = self.agree_to_stop()?;
            if stop || due(self.experiment.checkpoint.every, step + 1, steps) {
                self.checkpoint(root, out)?;
            }
            self.announce_saved(out)?;
            if stop && step + 1 < steps {
                self.settle(out)?;
                out.on(&Event::Interrupted { step: step + 1 });
                return Ok(Outcome::Interrupted { step: step + 1 });
            }
        }
        self.settle(out)?;
        let root = self.trainer.state_root()?;
        let waits = self.feed.waits();
        out.on(&Event::Finished { step: steps, root, seconds: started.elapsed().as_secs_f64(), waits });
        Ok(Outcome::Finished { root })
    }

    /// One optimizer step; every `proof.replay_every`th is made twice.
    fn step(&mut self, step: u64) -> Result<StepReport, RunError> {
        let every = self.experiment.proof.replay_every;
        if every == 0 || !(step + 1).is_multiple_of(every) {
            return self.trainer.step(&mut self.feed).map_err(|error| match error {
                // It names the step, and another rank's failure is none of this step's.
                TrainError::Exchange(_) => error.into(),
                error => RunError::Step { step, error },
            });
        }
        replay::twice(&mut self.trainer, &mut self.feed, &self.paths, |trainer, feed| trainer.step(feed))
    }

    /// Validation loss, when it is due before `step`.
    fn evaluate(&mut self, step: u64, out: &mut dyn Listener) -> Result<Option<f64>, RunError> {
        let (Some(set), true) =
            (&self.validation, due_before(self.experiment.eval.every, step, self.experiment.schedule.steps))
        else {
            return Ok(None);
        };
        let (ops, model, losses, link) = self.trainer.for_evaluation();
        let sequences = set.sequences();
        let what = "validating";
        let progress = |done| out.on(&Event::Evaluating { what, done, sequences });
        let val_loss = eval::validation_loss_of_ranks(ops, model, losses, link, set, progress)?;
        out.on(&Event::Evaluated { step, val_loss, val_tokens: set.tokens() });
        Ok(Some(val_loss))
    }

    /// HellaSwag, when it is due before `step`: together with the validation loss.
    fn hellaswag(&mut self, step: u64, out: &mut dyn Listener) -> Result<Option<Scores>, RunError> {
        let (Some(set), true) =
            (&self.hellaswag, due_before(self.experiment.eval.every, step, self.experiment.schedule.steps))
        else {
            return Ok(None);
        };
        let (ops, model, losses, link) = self.trainer.for_evaluation();
        let what = "HellaSwag";
        let progress = |done, sequences| out.on(&Event::Evaluating { what, done, sequences });
        let scores = eval::hellaswag(ops, model, losses, link, set, progress)?;
        out.on(&Event::HellaSwag { step, scores });
        Ok(Some(scores))
    }

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
        let eot = self.tokenizer.eot();
        let Some((ops, params, decoder)) = self.trainer.for_sampling() else { return Ok(()) };
        let written = generate(ops, decoder, params, &prompt, sample.tokens, &[0], &sampling, |_, token| {
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
        if self.records.is_some() {
            let path = self.paths.samples().join(format!("step_{step:08}.txt"));
            crate::store::atomic::write(&path, format!("{}{text}\n", sample.prompt).as_bytes())?;
        }
        out.on(&Event::Sampled { step, prompt: sample.prompt.clone(), text });
        Ok(())
    }

    /// Writes a step into ledger, metrics and main.log, and tells the listener.
    fn record(
        &mut self,
        measured: &Measured,
        report: &StepReport,
        root: Option<Hash>,
        seconds: f64,
        out: &mut dyn Listener,
    ) -> Result<(), RunError> {
        let Some(records) = &mut self.records else { return Ok(()) };
        let tokens_per_s = self.experiment.batch.tokens as f64 / seconds;
        let mfu = self.peak_flops.map(|peak| {
            tokens_per_s * flops_per_token(&self.experiment.model, self.experiment.batch.seq_len) / peak
        });
        let tokens = (report.step + 1) * self.experiment.batch.tokens;
        let pending = std::mem::take(&mut records.pending);
        let words = pending.words();
        records.ledger.append(&ledger_entry(report, tokens, root, pending.changes))?;
        let mut row = MetricsRow::new(report.step, tokens, metrics_action(report.verdict));
        row.loss = Some(report.loss);
        row.grad_norm = Some(report.grad_norm);
        row.learning_rate = Some(report.learning_rate);
        row.loss_z = report.loss_z;
        row.grad_z = report.grad_z;
        row.events = words;
        measured.write(&mut row);
        row.step_ms = Some(seconds * 1e3);
        row.tokens_per_s = Some(tokens_per_s);
        row.mfu = mfu;
        records.append(&row)?;
        out.on(&Event::Stepped {
            report: report.clone(),
            steps: self.experiment.schedule.steps,
            step_ms: seconds * 1e3,
            tokens_per_s,
            mfu,
            root,
        });
        Ok(())
    }

    /// Whether any rank has been asked to stop: then all do, after the same step.
    fn agree_to_stop(&mut self) -> Result<bool, RunError> {
        let asked = vec![u8::from(self.stop.load(Ordering::SeqCst))];
        let all = exchange::all_gather(self.trainer.link(), "the question whether to stop", asked)
            .map_err(TrainError::from)?;
        Ok(all.iter().flatten().any(|&asked| asked != 0))
    }

    /// Copies the state and hands it to the writer.
    fn checkpoint(&mut self, root: Option<Hash>, out: &mut dyn Listener) -> Result<(), RunError> {
        // One snapshot at a time: the memory of the last one must be free before the next is taken.
        let before = self.writer.wait()?;
        announce(before, out);
        let progress = self.trainer.progress();
        let facts = self.records.as_ref().map(|records| Facts {
            experiment: self.experiment.name.clone(),
            step: progress.step,
            tokens: progress.step * self.experiment.batch.tokens,
            updates: progress.updates,
            ledger: records.ledger.head(),
            numerics: records.numerics.clone(),
            created_by: concat!("runner ", env!("CARGO_PKG_VERSION")).into(),
            state_root: root,
        });
        if let Some(records) = &self.records {
            // Rows and entries up to a checkpoint are on disk before it is: a resume finds no gap.
            records.sync()?;
        }
        match (self.trainer.link().size(), facts) {
            (1, Some(facts)) => {
                let state = self.trainer.state()?;
                self.writer.submit(Job { state, facts })?;
            }
            (_, facts) => self.checkpoint_part(facts)?,
        }
        if let Some(records) = &self.records {
            records.write_parquet()?;
        }
        Ok(())
    }

    /// This rank's part of a checkpoint that all write; rank 0 has the facts.
    fn checkpoint_part(&mut self, facts: Option<Facts>) -> Result<(), RunError> {
        let (rank, ranks) = (self.trainer.link().rank(), self.trainer.link().size());
        let site =
            Site::new(&self.paths.checkpoints(), self.trainer.progress().step, &self.trainer.state_infos())?;
        let timeout = Duration::from_secs(self.experiment.parallel.timeout_s);
        let completion = match facts {
            Some(facts) => Some(Completion { folder: site.prepare()?, facts, ranks, timeout }),
            None => None,
        };
        exchange::barrier(self.trainer.link(), "the start of a checkpoint").map_err(TrainError::from)?;
        let pieces = self.trainer.read_pieces()?;
        let step = self.trainer.progress().step;
        self.writer.submit_part(PartJob { site, step, rank, pieces, completion })?;
        Ok(())
    }

    fn announce_saved(&mut self, out: &mut dyn Listener) -> Result<(), RunError> {
        let saved = self.writer.poll()?;
        if saved.is_none()
            && let Some(saving) = self.writer.saving()
        {
            out.on(&saving_event(saving));
        }
        announce(saved, out);
        Ok(())
    }

    /// Waits until everything is on disk, on all ranks.
    fn settle(&mut self, out: &mut dyn Listener) -> Result<(), RunError> {
        while let Some(saving) = self.writer.saving() {
            out.on(&saving_event(saving));
            std::thread::sleep(Duration::from_millis(20));
        }
        let saved = self.writer.wait()?;
        announce(saved, out);
        if let Some(records) = &self.records {
            records.sync()?;
            records.write_parquet()?;
        }
        exchange::barrier(self.trainer.link(), "the end of a checkpoint").map_err(TrainError::from)?;
        Ok(())
    }

    /// The newest whole checkpoint: rank 0 looks for it, the others load what they need of the same.
    fn newest_checkpoint(&mut self) -> Result<Option<Loaded>, RunError> {
        const NONE: u64 = u64::MAX;
        let checkpoints = self.paths.checkpoints();
        let found = if self.records.is_some() { newest_whole(&checkpoints)?.0 } else { None };
        let step = found.as_ref().map_or(NONE, |(manifest, _)| manifest.step).to_le_bytes().to_vec();
        let step = exchange::broadcast(self.trainer.link(), "the choice of a checkpoint", step)
            .map_err(TrainError::from)?;
        let step = step.try_into().map_or(NONE, u64::from_le_bytes);
        if found.is_some() || step == NONE {
            return Ok(found);
        }
        Ok(Some(load_some(&checkpoints.join(folder_name(step)), |name| self.trainer.needs(name))?))
    }

    /// Goes back to the newest whole checkpoint and moves the stream of samples past what was read,
    /// when the experiment says so and there is somewhere new to go.
    fn rewind(
        &mut self,
        step: u64,
        rewound_to: Option<u64>,
        out: &mut dyn Listener,
    ) -> Result<Option<u64>, RunError> {
        if self.experiment.guards.on_diverge != OnDiverge::Rewind {
            return Ok(None);
        }
        self.settle(out)?;
        let Some((manifest, state)) =
            self.newest_checkpoint()?.filter(|(manifest, _)| Some(manifest.step) != rewound_to)
        else {
            return Ok(None);
        };
        self.trainer.restore(state)?;
        let behind = (step + 1 - manifest.step) * self.experiment.sequences_per_step();
        self.trainer.skip_data(behind);
        self.feed.seek(manifest.step, self.trainer.progress().data_offset).map_err(TrainError::from)?;
        if let Some(records) = &mut self.records {
            records.ledger.truncate_to(manifest.ledger.size)?;
            records.pending.changes.push(proof::entry::rewind_event(step, manifest.step));
            records.metrics = MetricsWriter::resume(self.paths.folder(), manifest.step)?;
            records.main_log = MainLogWriter::resume(self.paths.folder(), manifest.step)?;
            if let Some(events) = &mut records.tensorboard {
                *events = EventWriter::resume(&self.paths.tensorboard(), manifest.step)?;
            }
        }
        out.on(&Event::Rewound { from_step: step, to_step: manifest.step });
        Ok(Some(manifest.step))
    }
}

fn saving_event(saving: Saving) -> Event {
    Event::Saving { step: saving.step, done_bytes: saving.done_bytes, bytes: saving.bytes }
}

fn announce(saved: Option<Saved>, out: &mut dyn Listener) {
    if let Some(saved) = saved {
        out.on(&Event::CheckpointSaved {
            step: saved.manifest.step,
            path: saved.folder,
            bytes: saved.manifest.file.bytes,
        });
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

/// What the ledger says of a step.
pub fn ledger_entry(report: &StepReport, tokens: u64, root: Option<Hash>, events: Vec<String>) -> Entry {
    Entry {
        step: report.step,
        tokens,
        root,
        loss: report.loss,
        grad_norm: report.grad_norm,
        learning_rate: report.learning_rate,
        loss_z: report.loss_z,
        grad_z: report.grad_z,
        action: ledger_action(report.verdict),
        events,
    }
}

fn ledger_action(verdict: Verdict) -> proof::Action {
    match verdict {
        Verdict::Update => proof::Action::Update,
        Verdict::SkipLoss => proof::Action::SkipLossZ,
        Verdict::SkipGrad => proof::Action::SkipGradZ,
        Verdict::SkipNonfinite => proof::Action::SkipNonfinite,
    }
}

fn metrics_action(verdict: Verdict) -> metrics::Action {
    match verdict {
        Verdict::Update => metrics::Action::Update,
        Verdict::SkipLoss => metrics::Action::SkipLossZ,
        Verdict::SkipGrad => metrics::Action::SkipGradZ,
        Verdict::SkipNonfinite => metrics::Action::SkipNonfinite,
    }
}
