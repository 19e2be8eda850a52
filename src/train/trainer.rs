//! One model in training on one rank's device, and what a single optimizer step does to it.
//!
//! A step is organised by virtual workers: each folds its micro-batches into f32 gradients, the tree of
//! [`crate::parallel`] adds the workers, and then the host reads the losses and the gradient norm, once, and
//! the guards decide whether the optimizer runs.
//!
//! Of N ranks each runs V/N neighbouring workers. Then gradients are exchanged along the tree's upper levels,
//! and losses gathered in the stream's order, so that every rank decides on the same numbers. With
//! `parallel.zero = 1` a rank keeps the optimizer's state of its shard alone, updates that, and the new
//! weights are gathered; with 2 it keeps the sums of its shard alone as well; with 0 the sums are gathered
//! and everyone updates everything. None of it changes a bit.
//!
//! Gradients are exchanged on the side lane, behind the backward pass. The new weights are gathered on the
//! main lane: a few milliseconds a step, after which the digest and the next forward pass find them in the
//! order of one stream.

use std::ops::Range;

use super::audit::draw::Terms;
use super::audit::trace::{Audit, BatchRun};
use super::shapes::{rows_of, training_shape};
use super::state::{self, OptimizerState, Row};
use super::{Progress, TrainError};
use crate::data::{Prefetcher, RankShare};
use crate::experiment::Experiment;
use crate::model::decode::Room;
use crate::model::gpt2::MicroBatch;
use crate::model::init::initial_values;
use crate::model::{Decoder, Gpt2, ParamSpec, Weights};
use crate::ops::{ChunkSquares, Dtype, Ops, Result, Role, SumSquares, Write};
use crate::optim::{Slot, Start, UpdateRule, UpdateStep, Verdict, learning_rate, update_rule};
use crate::parallel::exchange::all_gather;
use crate::parallel::{Exchange, ExchangeError, Link, Shards, Solo, Sums, reduce};
use crate::store::Tensor;

/// Everything that training needs on a device, and the host state that the next step reads.
pub struct Trainer<O: Ops> {
    /// The first field, so that it is dropped first: the device cannot synchronise while it waits for ranks
    /// that have ended.
    pub(super) exchange: Box<dyn Exchange<O>>,
    pub ops: O,
    pub model: Gpt2<O>,
    pub(super) shards: Shards,
    /// The training state, tensor by tensor.
    pub(super) table: Vec<Row>,
    /// What the optimizer keeps of it for the parameters that are updated here: all of them, or this rank's
    /// shard.
    pub(super) optimizer: OptimizerState<O::Buf>,
    /// Whether that is a shard, and sums and weights are exchanged as such.
    pub(super) sharded: bool,
    /// The gradients that the backward pass writes.
    pub(super) grads: Weights<O::Buf>,
    pub(super) sums: Sums<O>,
    /// Losses of every token of a step, in the order of the stream; there is room for the largest step.
    losses: O::Buf,
    host_losses: Vec<f32>,
    /// Room for samples, when there will be any.
    decoder: Option<Decoder<O>>,
    pub(super) experiment: Experiment,
    pub(super) progress: Progress,
    /// The audit that the next step is to be given.
    pub(super) audit: Option<Audit>,
}

/// The report of a step.
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
        let shape = training_shape(experiment);
        let mut model = Gpt2::with_scratch(&mut ops, &experiment.model, &shape, experiment.memory.recompute)?;
        model.z_loss = experiment.optimizer.z_loss as f32;
        let rule = update_rule(experiment, ops.dtype(Role::Param));
        let shards = Shards::new(&model.specs, ops.chunk(), ranks, |spec| rule.is_whole(&spec.parameter()));
        let (sums, grads) = Sums::new(&mut ops, experiment, &model.specs, &shards, rank, sharded)?;
        let table = state::table(experiment, &model.specs, ops.dtype(Role::Param), sharded);
        let updated = if sharded { shards.owned(rank) } else { shards.whole() };
        let parameters: Vec<_> = model.specs.iter().map(ParamSpec::parameter).collect();
        let workspace = rule.workspace(&parameters);
        let optimizer = OptimizerState::alloc(&mut ops, &table, updated, &workspace)?;
        let step_tokens = experiment.batch.tokens as usize;
        let decoder = experiment.sample_positions().map(|positions| Room { streams: 1, positions });
        let decoder = decoder.map(|room| Decoder::new(&mut ops, &experiment.model, room)).transpose()?;
        let mut trainer = Trainer {
            losses: ops.alloc(Role::F32, step_tokens)?,
            host_losses: vec![0.0; step_tokens],
            progress: Progress { data_offset: experiment.data.offset, ..Progress::new(&experiment.guards) },
            decoder,
            audit: None,
            experiment: experiment.clone(),
            ops,
            model,
            exchange,
            shards,
            table,
            optimizer,
            sharded,
            grads,
            sums,
        };
        trainer.start_from(|spec| initial_values(spec, experiment.seed))?;
        Ok(trainer)
    }

    /// Puts `values` of each tensor, padding left out or zero, in place of the weights, and of what the
    /// optimizer keeps as a copy of them: where training starts, before its first step.
    pub fn start_from(&mut self, mut values: impl FnMut(&ParamSpec) -> Vec<f32>) -> Result<()> {
        let Trainer { ops, model, optimizer, experiment, .. } = self;
        let rule = update_rule(experiment, ops.dtype(Role::Param));
        for (at, (spec, param)) in model.specs.iter().zip(model.params.iter_mut()).enumerate() {
            let values = values(spec);
            ops.upload(param, &values)?;
            let Some(part) = optimizer.of_mut(at) else { continue };
            let range = part.piece.start.min(values.len())..part.piece.end().min(values.len());
            for (row, buf) in rule.state(&spec.parameter()).iter().zip(&mut part.bufs) {
                if row.start == Start::Parameter {
                    ops.upload(buf, &values[range.clone()])?;
                }
            }
        }
        Ok(())
    }

    /// Starts from the saved state of another run, before the first step: with its weights, all that its
    /// optimizer keeps, its count of updates and the guards' windows. Steps and the place in the data are
    /// this run's own.
    ///
    /// # Errors
    ///
    /// As [`Trainer::restore`].
    pub fn go_on_from(&mut self, state: Vec<Tensor>) -> Result<(), TrainError> {
        let Progress { step, data_offset, .. } = self.progress;
        self.restore(state)?;
        self.progress = Progress { step, data_offset, ..self.progress.clone() };
        Ok(())
    }

    /// The lines to the other ranks.
    pub fn link(&mut self) -> &mut dyn Link {
        self.exchange.link()
    }

    /// The sequences of each step that this rank reads: those of its workers.
    pub fn share(&mut self) -> RankShare {
        RankShare { rank: self.link().rank() as u64, ranks: self.link().size() as u64 }
    }

    /// The progress of training.
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

    /// One optimizer step on the next sequences of `feed`, which reads this rank's [`Trainer::share`]:
    /// gradients of all micro-batches, added over workers and ranks; the mean of all losses, in the order of
    /// the data; the norm of all gradients, tensor after tensor; the guards' verdict on both; and, unless
    /// they skip the step, the update.
    ///
    /// # Errors
    /// The device, a shard of data or the link to another rank failed. What a failed step leaves is not used.
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
            self.gather_weights()?;
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
        let step = self.progress.step;
        let rows = rows_of(&self.experiment, step);
        let scale = self.experiment.loss_scale(step);
        let (rank, ranks) = (self.exchange.link().rank(), self.exchange.link().size());
        let mut losses_at = rank * (self.step_tokens() / ranks);
        let micro_steps = self.experiment.micro_steps_of(step);
        let terms = Terms {
            recompute: self.experiment.memory.recompute,
            pieces: self.experiment.proof.audit_pieces as u64,
        };
        let Trainer { ops, model, exchange, shards, grads, sums, losses, audit, .. } = self;
        for worker in 0..self.experiment.parallel.workers / ranks {
            for micro_step in 0..micro_steps {
                let batch = feed.next()?;
                let micro = MicroBatch { inputs: &batch.inputs, targets: &batch.targets, rows, losses_at };
                let (first, last) = (micro_step == 0, micro_step + 1 == micro_steps);
                let write = if first { Write::Set } else { Write::Add };
                let audit = audit.as_mut().filter(|audit| worker == 0 && last && audit.traces());
                // The first may have to wait for what the worker before it left on the side lane.
                if let Some(audit) = audit {
                    let run = BatchRun { model: &mut *model, batch: micro, losses, grads, scale, write };
                    let by_groups = sums.by_groups();
                    audit.trace(ops, run, terms, |ops, group, grads| {
                        if by_groups {
                            Ok(sums.take(ops, &mut **exchange, worker, group, grads)?)
                        } else {
                            Ok(())
                        }
                    })?;
                } else if sums.by_groups() && (last || (first && worker > 0)) {
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

    /// Tokens of the step that is made.
    fn step_tokens(&self) -> usize {
        self.experiment.tokens_of(self.progress.step) as usize
    }

    /// Every rank's losses to all.
    fn gather_losses(&mut self) -> Result<(), ExchangeError> {
        let tokens = self.step_tokens();
        let Trainer { exchange, ops, shards, losses, .. } = self;
        if shards.ranks() == 1 {
            return Ok(());
        }
        let block = tokens / shards.ranks() * Dtype::F32.size();
        reduce::gather_blocks(&mut **exchange, ops, "the gathering of losses", losses, block)
    }

    fn mean_loss(&mut self) -> Result<f64> {
        let tokens = self.step_tokens();
        let losses = &mut self.host_losses[..tokens];
        self.ops.download(&self.losses, losses)?;
        Ok(mean(losses))
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
        let pieces = self.optimizer.pieces();
        let sums = self.sums.parts(&pieces, &self.grads).into_iter().zip(&pieces);
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

    /// The optimizer's update of the parameters, or of this rank's shard of them.
    fn update(&mut self, learning_rate: f64, grad_norm: f64) -> Result<()> {
        self.progress.updates += 1;
        let Progress { step, updates: update, .. } = self.progress;
        let Trainer { ops, model, optimizer, sums, grads, experiment, .. } = self;
        let gradients = sums.parts(&optimizer.pieces(), grads);
        let mut params = model.specs.iter().zip(model.params.iter_mut()).enumerate();
        let mut slots = Vec::with_capacity(gradients.len());
        let (parts, workspace) = optimizer.for_update();
        for (part, (grad, grad_at)) in parts.iter_mut().zip(gradients) {
            let (_, (spec, param)) = params
                .find(|(at, _)| *at == part.piece.tensor)
                .expect("parts are of the model's parameters, in its order");
            let (parameter, at, state) = (spec.parameter(), part.piece.start, &mut part.bufs[..]);
            slots.push(Slot { parameter, at, param, grad, grad_at, state });
        }
        let rule = update_rule(experiment, ops.dtype(Role::Param));
        rule.update(ops, slots, workspace, &UpdateStep { learning_rate, grad_norm, update, step })
    }

    /// Every rank's new weights to all, where each updates its shard.
    pub(super) fn gather_weights(&mut self) -> Result<(), ExchangeError> {
        if !self.sharded {
            return Ok(());
        }
        let size = self.ops.dtype(Role::Param).size();
        let Trainer { exchange, ops, shards, model, .. } = self;
        shards.groups().try_for_each(|group| {
            let weights = model.params.group_mut(group);
            reduce::gather(&mut **exchange, ops, shards, group, "the gathering of weights", weights, size)
        })
    }
}

/// Mean of token losses, summed in f64 from first to last.
pub fn mean(losses: &[f32]) -> f64 {
    losses.iter().map(|&l| f64::from(l)).sum::<f64>() / losses.len() as f64
}
