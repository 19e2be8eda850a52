//! One model in training on one rank's device, and what a single optimizer step does to it.
//!
//! A step is organised by virtual workers: each folds its micro-batches into f32 gradients, the tree
//! of [`crate::parallel`] adds the workers, and then the host looks once: at the losses and at the
//! gradient norm, to let the guards decide whether AdamW runs.
//!
//! Of N ranks each runs V/N neighbouring workers. Then gradients are exchanged along the tree's upper levels,
//! and losses gathered in the stream's order, so that every rank judges by the same numbers. With
//! `parallel.zero = 1` a rank keeps moments and masters of its shard alone, updates that, and the new weights
//! are gathered; with 2 it keeps the sums of its shard alone as well; with 0 the sums are gathered and
//! everyone updates everything. None of it changes a bit.
//!
//! Gradients are exchanged on the side lane, behind the backward pass. The new weights are gathered on the
//! main lane: a few milliseconds a step, after which the digest and the next forward pass find them in the
//! order of one stream.

use std::ops::Range;

use super::TrainError;
use crate::data::Prefetcher;
use crate::experiment::Experiment;
use crate::model::decode::Room;
use crate::model::gpt2::MicroBatch;
use crate::model::init::initial_values;
use crate::model::{Decoder, Gpt2, ParamSpec, Weights};
use crate::ops::{AdamWUpdate, ChunkSquares, Dtype, Ops, ParamSlot, Result, Role, Rows, SumSquares, Write};
use crate::optim::{Guards, Verdict, adamw_scalars, learning_rate};
use crate::parallel::exchange::all_gather;
use crate::parallel::{Exchange, ExchangeError, Link, Piece, Shards, Solo, Sums, reduce};

/// Everything that training needs on a device, and the host state that the next step reads.
pub struct Trainer<O: Ops> {
    /// First, so that it is the first to go: the device cannot come to rest while it waits for ranks that are
    /// gone.
    pub(super) exchange: Box<dyn Exchange<O>>,
    pub ops: O,
    pub model: Gpt2<O>,
    pub(super) shards: Shards,
    /// The parts of the tensors whose moments and masters are kept here, in the model's order: all of
    /// them, or this rank's shard.
    pub(super) kept: Vec<Piece>,
    /// Whether `kept` is a shard, and sums and weights are exchanged as such.
    pub(super) sharded: bool,
    /// One for each of `kept`.
    pub(super) adam_m: Vec<O::Buf>,
    pub(super) adam_v: Vec<O::Buf>,
    /// fp32 masters, where parameters are narrower and masters are wanted.
    pub(super) masters: Option<Vec<O::Buf>>,
    /// What the backward pass writes.
    grads: Weights<O::Buf>,
    sums: Sums<O>,
    /// Losses of every token of a step, in the order of the stream.
    losses: O::Buf,
    host_losses: Vec<f32>,
    /// Room for samples, when there will be any.
    decoder: Option<Decoder<O>>,
    experiment: Experiment,
    pub(super) progress: Progress,
}

/// The host state that the next step reads.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// Optimizer steps done; the number of the next one.
    pub step: u64,
    /// Steps that reached the weights: AdamW's `t`.
    pub updates: u64,
    /// Sequences by which rewinds have moved the stream of samples on.
    pub data_offset: u64,
    pub guards: Guards,
}

/// What a step did.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    pub step: u64,
    /// Mean loss a token, summed in f64 in stream order.
    pub loss: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    pub learning_rate: f64,
    pub loss_z: Option<f64>,
    pub grad_z: Option<f64>,
    pub verdict: Verdict,
}

/// Device, weights and room for a text.
pub type ForSampling<'a, O> = (&'a mut O, &'a Weights<<O as Ops>::Buf>, &'a mut Decoder<O>);

impl<O: Ops> Trainer<O> {
    /// A trainer that is the only rank; see [`Trainer::join`].
    pub fn new(ops: O, experiment: &Experiment) -> Result<Trainer<O>> {
        Trainer::join(ops, experiment, Box::new(Solo))
    }

    /// Allocates everything and initialises the weights from the experiment's seed. The number of ranks
    /// divides `parallel.workers`.
    pub fn join(
        mut ops: O,
        experiment: &Experiment,
        mut exchange: Box<dyn Exchange<O>>,
    ) -> Result<Trainer<O>> {
        let (rank, ranks) = (exchange.link().rank(), exchange.link().size());
        let sharded = experiment.parallel.zero >= 1 && !exchange.alone();
        let rows = Rows { batch: experiment.batch.micro, seq: experiment.batch.seq_len };
        let model = Gpt2::zeroed(&mut ops, &experiment.model, rows, experiment.memory.recompute, true)?;
        let shards = Shards::new(&model.specs, ops.chunk(), ranks);
        let (sums, grads) = Sums::new(&mut ops, experiment, &model.specs, &shards, rank, sharded)?;
        let kept = if sharded { shards.owned(rank) } else { shards.whole() };
        let parts = |ops: &mut O| {
            kept.iter().map(|piece| ops.alloc(Role::F32, piece.len)).collect::<Result<Vec<_>>>()
        };
        let (adam_m, adam_v) = (parts(&mut ops)?, parts(&mut ops)?);
        let masters = if ops.dtype(Role::Param) != Dtype::F32 && experiment.precision.master_weights {
            Some(parts(&mut ops)?)
        } else {
            None
        };
        let step_tokens = experiment.batch.tokens as usize;
        let decoder = experiment.sample_positions().map(|positions| Room { streams: 1, positions });
        let decoder = decoder.map(|room| Decoder::new(&mut ops, &experiment.model, room)).transpose()?;
        let mut trainer = Trainer {
            losses: ops.alloc(Role::F32, step_tokens)?,
            host_losses: vec![0.0; step_tokens],
            progress: Progress {
                step: 0,
                updates: 0,
                data_offset: 0,
                guards: Guards::new(&experiment.guards),
            },
            decoder,
            experiment: experiment.clone(),
            ops,
            model,
            exchange,
            shards,
            kept,
            sharded,
            adam_m,
            adam_v,
            masters,
            grads,
            sums,
        };
        trainer.start_from(|spec| initial_values(spec, experiment.seed))?;
        Ok(trainer)
    }

    /// Puts `values` of each tensor, padding left out or zero, in place of the weights and their masters:
    /// where training starts, before its first step.
    pub fn start_from(&mut self, mut values: impl FnMut(&ParamSpec) -> Vec<f32>) -> Result<()> {
        let masters = self.masters.iter_mut().flatten();
        let mut kept = self.kept.iter().zip(masters).peekable();
        for (tensor, (spec, param)) in self.model.specs.iter().zip(self.model.params.iter_mut()).enumerate() {
            let values = values(spec);
            self.ops.upload(param, &values)?;
            if let Some((piece, master)) = kept.next_if(|(piece, _)| piece.tensor == tensor) {
                let part = piece.start.min(values.len())..piece.end().min(values.len());
                self.ops.upload(master, &values[part])?;
            }
        }
        Ok(())
    }

    /// The lines to the other ranks.
    pub fn link(&mut self) -> &mut dyn Link {
        self.exchange.link()
    }

    /// The sequences of each step that this rank reads: those of its workers.
    pub fn share(&mut self) -> Range<u64> {
        let (rank, ranks) = (self.link().rank() as u64, self.link().size() as u64);
        let sequences = self.experiment.sequences_per_step() / ranks;
        rank * sequences..(rank + 1) * sequences
    }

    /// Where training stands.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Device, model, a buffer for losses and the lines to other ranks, for work that leaves the training
    /// state alone.
    pub fn for_evaluation(&mut self) -> (&mut O, &mut Gpt2<O>, &mut O::Buf, &mut dyn Link) {
        (&mut self.ops, &mut self.model, &mut self.losses, self.exchange.link())
    }

    /// Device, weights and room for a text, for samples, which leave the training state alone. None where
    /// the experiment has no samples.
    pub fn for_sampling(&mut self) -> Option<ForSampling<'_, O>> {
        Some((&mut self.ops, &self.model.params, self.decoder.as_mut()?))
    }

    /// Moves the stream of samples on by `sequences`, after a rewind.
    pub fn skip_data(&mut self, sequences: u64) {
        self.progress.data_offset += sequences;
    }

    /// One optimizer step on the next sequences of `feed`, which reads this rank's [`Trainer::share`].
    pub fn step(&mut self, feed: &mut Prefetcher) -> Result<StepReport, TrainError> {
        let step = self.progress.step;
        self.exchange.link().mark(step);
        self.gradients(feed)?;
        self.gather_losses()?;
        let loss = self.mean_loss()?;
        let grad_norm = self.grad_norm()?;
        let rate = learning_rate(&self.experiment.schedule, step);
        let judged = self.progress.guards.judge(loss, grad_norm);
        if judged.verdict == Verdict::Update {
            self.update(rate, grad_norm)?;
        }
        self.progress.step += 1;
        Ok(StepReport {
            step,
            loss,
            grad_norm,
            learning_rate: rate,
            loss_z: judged.loss_z,
            grad_z: judged.grad_z,
            verdict: judged.verdict,
        })
    }

    /// The gradients of the mean loss over the step's tokens, added up over all workers, and this rank's part
    /// of the token losses, in their place in `losses`.
    fn gradients(&mut self, feed: &mut Prefetcher) -> Result<(), TrainError> {
        let rows = self.model.capacity();
        let scale = (1.0 / self.experiment.batch.tokens as f64) as f32;
        let (rank, ranks) = (self.exchange.link().rank(), self.exchange.link().size());
        let mut losses_at = rank * (self.host_losses.len() / ranks);
        let micro_steps = self.experiment.micro_steps_per_worker();
        let Trainer { ops, model, exchange, shards, grads, sums, losses, .. } = self;
        for worker in 0..self.experiment.parallel.workers / ranks {
            for micro_step in 0..micro_steps {
                let batch = feed.next()?;
                let micro = MicroBatch { inputs: &batch.inputs, targets: &batch.targets, rows, losses_at };
                let (first, last) = (micro_step == 0, micro_step + 1 == micro_steps);
                let write = if first { Write::Set } else { Write::Add };
                // The first may have to wait for what the worker before it left on the side lane.
                if sums.by_groups() && (last || (first && worker > 0)) {
                    let mut go_on = |ops: &mut O, group, grads: &mut Weights<O::Buf>| {
                        if last { sums.take(ops, &mut **exchange, worker, group, grads) } else { Ok(()) }
                    };
                    model.forward_backward_by_groups(ops, &micro, losses, grads, scale, write, &mut go_on)?;
                } else {
                    model.forward_backward(ops, &micro, losses, grads, scale, write)?;
                }
                losses_at += rows.count();
                feed.recycle(batch);
            }
            if !sums.by_groups() {
                shards
                    .groups()
                    .try_for_each(|group| sums.take(ops, &mut **exchange, worker, group, grads))?;
            }
        }
        Ok(ops.join_lanes()?)
    }

    /// Every rank's losses to all.
    fn gather_losses(&mut self) -> Result<(), ExchangeError> {
        let Trainer { exchange, ops, shards, losses, .. } = self;
        if shards.ranks() == 1 {
            return Ok(());
        }
        let block = self.host_losses.len() / shards.ranks() * Dtype::F32.size();
        reduce::gather_blocks(&mut **exchange, ops, "the gathering of losses", losses, block)
    }

    fn mean_loss(&mut self) -> Result<f64> {
        self.ops.download(&self.losses, &mut self.host_losses)?;
        Ok(mean(&self.host_losses))
    }

    /// Square root of the tensors' sums of squares, added in the model's order.
    fn grad_norm(&mut self) -> Result<f64, TrainError> {
        let squares = if self.sharded {
            self.squares_of_shards()?
        } else {
            self.ops.sum_squares(SumSquares { tensors: &self.grads.iter().collect::<Vec<_>>() })?
        };
        Ok(libm::sqrt(squares.iter().sum::<f64>()))
    }

    /// Each tensor's sum of squares: those of this rank's chunks go to all ranks, and every rank adds all
    /// chunks in their order.
    fn squares_of_shards(&mut self) -> Result<Vec<f64>, TrainError> {
        let sums = self.sums.parts(&self.kept, &self.grads).into_iter().zip(&self.kept);
        let parts: Vec<(&O::Buf, Range<usize>)> =
            sums.map(|((buf, at), piece)| (buf, at..at + piece.len)).collect();
        let mine = self.ops.chunk_squares(ChunkSquares { parts: &parts })?;
        let bytes = mine.iter().flat_map(|sum| sum.to_le_bytes()).collect();
        let all = all_gather(self.exchange.link(), "the gradient norm", bytes)?;
        let mut sums: Vec<_> = all
            .iter()
            .map(|bytes| bytes.as_chunks::<8>().0.iter().map(|sum| f64::from_le_bytes(*sum)))
            .collect();
        let mut chunks = vec![Vec::new(); self.model.specs.iter().count()];
        for (rank, piece) in self.shards.all() {
            chunks[piece.tensor].extend(sums[*rank].by_ref().take(piece.len.div_ceil(self.ops.chunk())));
        }
        Ok(chunks.iter().map(|chunks| self.ops.fold_squares(chunks)).collect())
    }

    fn update(&mut self, rate: f64, grad_norm: f64) -> Result<(), TrainError> {
        self.progress.updates += 1;
        let Progress { step, updates, .. } = self.progress;
        let scalars =
            adamw_scalars(&self.experiment.optimizer, rate, updates, grad_norm, self.experiment.seed, step);
        let decay = self.experiment.optimizer.weight_decay as f32;
        let masters: Box<dyn Iterator<Item = Option<&mut O::Buf>>> = match &mut self.masters {
            Some(masters) => Box::new(masters.iter_mut().map(Some)),
            None => Box::new(std::iter::repeat_with(|| None)),
        };
        let moments = self.adam_m.iter_mut().zip(self.adam_v.iter_mut());
        let sums = self.sums.parts(&self.kept, &self.grads);
        let mut kept = self.kept.iter().zip(sums).zip(moments).zip(masters).peekable();
        let mut slots: Vec<ParamSlot<'_, O::Buf>> = Vec::with_capacity(self.kept.len());
        for (tensor, (spec, param)) in self.model.specs.iter().zip(self.model.params.iter_mut()).enumerate() {
            // At most one piece of each tensor is kept here.
            let Some((((piece, (grad, grad_at)), (adam_m, adam_v)), master)) =
                kept.next_if(|(((piece, _), _), _)| piece.tensor == tensor)
            else {
                continue;
            };
            let weight_decay = if spec.decay { decay } else { 0.0 };
            let at = piece.start;
            slots.push(ParamSlot {
                id: spec.id,
                at,
                param,
                master,
                grad,
                grad_at,
                adam_m,
                adam_v,
                weight_decay,
            });
        }
        self.ops.adamw(AdamWUpdate { slots, scalars })?;
        if self.sharded {
            let size = self.ops.dtype(Role::Param).size();
            let Trainer { exchange, ops, shards, model, .. } = self;
            let what = "the gathering of weights";
            for group in shards.groups() {
                reduce::gather(
                    &mut **exchange,
                    ops,
                    shards,
                    group,
                    what,
                    model.params.group_mut(group),
                    size,
                )?;
            }
        }
        Ok(())
    }
}

/// Mean of token losses, summed in f64 from first to last.
pub fn mean(losses: &[f32]) -> f64 {
    losses.iter().map(|&l| f64::from(l)).sum::<f64>() / losses.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment;
    use crate::ops::dry::Dry;
    use crate::plan::memory::{Category, MemoryPlan, Scratch, Storage};

    #[test]
    fn the_memory_plan_is_what_the_trainer_allocates() {
        let text = "[model]\nlayers = 3\nheads = 2\nchannels = 32\n[data]\ncorpus = 'kjv'\ntokenizer = 'byte'\n[batch]\nmicro = 2\n\
            seq_len = 8\ntokens = 128\n[schedule]\nsteps = 1\n[parallel]\nworkers = 8\n[precision]\nmaster_weights = MASTERS\n\
            [memory]\nrecompute = LEVEL\npartial_sums = 'PLACE'\n[sample]\nevery = SAMPLES\n";
        for (masters, level, place) in
            [("true", "0", "device"), ("true", "1", "host"), ("false", "2", "device")]
        {
            let samples = if level == "2" { "5" } else { "0" };
            let text = text
                .replace("MASTERS", masters)
                .replace("LEVEL", level)
                .replace("SAMPLES", samples)
                .replace("PLACE", place);
            let experiment = experiment::load_text("t", &text, &[]).expect("a whole experiment").experiment;
            let storage = Storage { scratch: Scratch::default(), ..Storage::cuda(&experiment) };
            let plan = MemoryPlan::of(&experiment, &Storage { taken: |sizes| sizes.iter().sum(), ..storage });
            let trainer = Trainer::new(Dry::new(Dtype::BF16), &experiment).expect("nothing can fail");
            // The token ids of a decoder are too few to be planned.
            let ids = if level == "2" { 3 * 2 * 32 } else { 0 };
            assert_eq!(
                plan.total() + ids,
                trainer.ops.taken.iter().sum::<u64>(),
                "masters {masters}, recompute {level}"
            );
            let largest = trainer.model.specs.iter().map(|spec| 4 * spec.len as u64).max();
            let staged = largest.filter(|_| place == "host").unwrap_or(0);
            assert_eq!(plan.category(Category::Scratch), staged, "{place}");
            let on_host = plan
                .entries
                .iter()
                .find(|entry| entry.name == "sums of virtual workers" && entry.category == Category::Host);
            assert_eq!(
                on_host.map_or(0, |entry| entry.bytes),
                trainer.ops.taken_of_host.iter().sum::<u64>(),
                "{place}"
            );
        }
    }
}
