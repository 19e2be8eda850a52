//! Summing a group of gradients, once a worker has written the last of it.
//!
//! It is added to the partial sums of this rank's workers, and after the last of them to those of the other
//! ranks. With one rank and all sums on the device that happens when the backward pass is over. Else it is
//! work for the side lane, behind the backward pass of the remaining groups:
//! gradients leave for other ranks, or for the host's memory, and partial sums come from there.
//!
//! With ZeRO-2 a rank keeps the sums of its shard alone, and blocks write their gradients into two sets of
//! buffers in turn. That needs every gradient to be whole at the end of one backward pass: one worker a rank,
//! one micro-step a worker. Where there are more, the same experiment keeps its gradients whole: same bits.

use std::collections::BTreeMap;

use super::exchange::Exchange;
use super::shards::{Piece, Shards};
use super::tree::GradientTree;
use super::{ExchangeError, reduce};
use crate::experiment::Experiment;
use crate::model::{Group, ParamSpec, Weights};
use crate::ops::{self, CopyPart, Dtype, Ops, Result, Role};

/// How many blocks have gradients at a time with ZeRO-2: one is written, one is on its way.
const BLOCKS: usize = 2;

/// The gradients that the backward pass writes, of parameters like `like`: of all, or of [`BLOCKS`] blocks
/// at a time where a rank keeps `sharded` sums.
pub fn written(like: &Weights<ParamSpec>, sharded: bool) -> Weights<ParamSpec> {
    let written = like.clone();
    if sharded { written.with_blocks(BLOCKS) } else { written }
}

/// Whether each of `ranks` keeps gradients of its shard alone.
pub fn are_gradients_sharded(experiment: &Experiment, ranks: usize) -> bool {
    let whole_at_once = experiment.parallel.workers <= ranks && experiment.most_micro_steps() == 1;
    experiment.parallel.zero >= 2 && whole_at_once
}

/// The sums of one rank.
pub struct Sums<O: Ops> {
    tree: GradientTree<O>,
    shards: Shards,
    /// Gradients on their way in; none where there is no other rank.
    received: Option<O::Buf>,
    /// The sums of this rank's shard by tensor, where they alone are kept.
    own: Option<BTreeMap<usize, O::Buf>>,
    /// Whether a rank needs no more than its shard.
    sharded: bool,
}

impl<O: Ops> Sums<O> {
    /// Room for the sums, and for the gradients that the backward pass writes, on this `rank`. `sharded` is
    /// whether it needs the sums of no more than its shard.
    pub fn new(
        ops: &mut O,
        experiment: &Experiment,
        like: &Weights<ParamSpec>,
        shards: &Shards,
        rank: usize,
        sharded: bool,
    ) -> Result<(Sums<O>, Weights<O::Buf>)> {
        let ranks = shards.ranks();
        let divided = sharded && are_gradients_sharded(experiment, ranks);
        let grads = written(like, divided).try_map(|spec| ops.alloc(Role::F32, spec.len))?;
        let mut room = |piece: Piece| Ok((piece.tensor, ops.alloc(Role::F32, piece.len)?));
        let own = divided
            .then(|| shards.owned(rank).into_iter().map(&mut room).collect::<Result<_>>())
            .transpose()?;
        let tree = GradientTree::new(
            ops,
            experiment.parallel.workers / ranks,
            like,
            experiment.memory.partial_sums,
        )?;
        let half = Some(shards.largest_half()).filter(|_| ranks > 1);
        let received = half.map(|len| ops.alloc(Role::F32, len)).transpose()?;
        Ok((Sums { tree, shards: shards.clone(), received, own, sharded }, grads))
    }

    /// Whether groups are exchanged while others are computed, for which the backward pass hands them over
    /// one by one.
    pub fn by_groups(&self) -> bool {
        self.received.is_some() || self.own.is_some() || self.tree.is_on_host()
    }

    /// Takes in a group of what worker number `worker` left in `grads`. After the last worker and
    /// [`Ops::join_lanes`] the sums lie where [`Sums::parts`] says.
    pub fn take(
        &mut self,
        ops: &mut O,
        exchange: &mut dyn Exchange<O>,
        worker: usize,
        group: Group,
        grads: &mut Weights<O::Buf>,
    ) -> Result<(), ExchangeError> {
        if !self.by_groups() {
            return Ok(self.tree.fold(ops, worker, group, grads)?);
        }
        if self.own.is_some() {
            // The next block writes into the buffers of the block before this one, whose sums must have left
            // by then.
            ops.join_lanes()?;
        }
        ops::aside(ops, |ops| {
            self.tree.fold(ops, worker, group, grads)?;
            if worker + 1 == self.tree.workers() {
                self.exchange(ops, exchange, group, grads)
            } else {
                Ok(())
            }
        })
    }

    /// The upper levels of the tree.
    fn exchange(
        &mut self,
        ops: &mut O,
        exchange: &mut dyn Exchange<O>,
        group: Group,
        grads: &mut Weights<O::Buf>,
    ) -> Result<(), ExchangeError> {
        let Sums { shards, received, .. } = self;
        if let Some(received) = received {
            reduce::scatter_sum(exchange, ops, shards, group, grads.group_mut(group), received)?;
            if !self.sharded {
                let (what, size) = ("the gathering of gradients", Dtype::F32.size());
                reduce::gather(exchange, ops, shards, group, what, grads.group_mut(group), size)?;
            }
        }
        if let Some(own) = &mut self.own {
            let grads = grads.group(group);
            let rank = exchange.link().rank();
            let places = shards.held(group, rank, shards.rounds());
            for (place, piece) in places.iter().zip(shards.owned_of(group, rank)) {
                let own = own.get_mut(&piece.tensor).expect("a buffer for every piece of the shard");
                let (src, from) = (grads[place.tensor], place.start);
                ops.copy(CopyPart { dst: own, at: 0, src, from, len: place.len })?;
            }
        }
        Ok(())
    }

    /// Where the sums of these pieces lie: a buffer, and the element of it with which each begins.
    pub fn parts<'a>(&'a self, pieces: &[Piece], grads: &'a Weights<O::Buf>) -> Vec<(&'a O::Buf, usize)> {
        let whole: Vec<&O::Buf> = grads.iter().collect();
        let part = |piece: &Piece| match &self.own {
            Some(own) => (&own[&piece.tensor], 0),
            None => (whole[piece.tensor], piece.start),
        };
        pieces.iter().map(part).collect()
    }
}
