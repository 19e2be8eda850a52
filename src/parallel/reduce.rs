//! Sums scattered over ranks, and shards gathered from them, one group of tensors at a time.
//!
//! [`scatter_sum`] walks the levels of the tree over workers that lie above one rank, from the bottom: in
//! round k the ranks whose numbers differ in bit k swap halves, and each adds the half that it keeps. The sum
//! of two is the same from either side, so the order of additions is the tree's. [`gather`] walks back. A
//! rank moves (N-1)/N of the tensors each way, half of it between neighbours, and an eighth leaves a host of
//! eight.

use super::ExchangeError;
use super::exchange::Exchange;
use super::shards::{Piece, Shards};
use crate::model::Group;
use crate::ops::{AddPart, Dtype, Ops, Region};

/// Adds the gradients (f32) of all ranks: afterwards each rank's shard of the group's tensors `grads` is the
/// whole sum, the rest of them is not to be used. `received` holds [`Shards::largest_half`] elements.
pub fn scatter_sum<O: Ops>(
    exchange: &mut dyn Exchange<O>,
    ops: &mut O,
    shards: &Shards,
    group: Group,
    grads: Vec<&mut O::Buf>,
    received: &mut O::Buf,
) -> Result<(), ExchangeError> {
    const SIZE: usize = Dtype::F32.size();
    let rank = exchange.link().rank();
    let inbox = grads.len();
    let mut bufs = grads;
    bufs.push(received);
    for round in 0..shards.rounds() {
        let peer = rank ^ 1 << round;
        let gives = regions(&shards.held(group, peer, round + 1), SIZE);
        let kept = shards.held(group, rank, round + 1);
        let mut at = 0;
        let into_inbox = |piece: &Piece| {
            let region = Region { buf: inbox, at: at * SIZE, len: piece.len * SIZE };
            at += piece.len;
            region
        };
        let takes: Vec<Region> = kept.iter().map(into_inbox).collect();
        // A small group has nothing to swap for some pairs; both ranks compute that.
        if gives.is_empty() && takes.is_empty() {
            continue;
        }
        exchange.swap(ops, peer, "the sum of gradients", &mut bufs, &gives, &takes)?;
        let (received, grads) = bufs.split_last_mut().expect("the inbox is last");
        let mut from = 0;
        for Piece { tensor, start, len } in kept {
            ops.add_part(AddPart { dst: grads[tensor], at: start, src: received, from, len })?;
            from += len;
        }
    }
    Ok(())
}

/// Brings every rank's shard of the group's tensors `bufs`, elements of `size` bytes, to every rank.
pub fn gather<O: Ops>(
    exchange: &mut dyn Exchange<O>,
    ops: &mut O,
    shards: &Shards,
    group: Group,
    operation: &'static str,
    mut bufs: Vec<&mut O::Buf>,
    size: usize,
) -> Result<(), ExchangeError> {
    let rank = exchange.link().rank();
    for round in (0..shards.rounds()).rev() {
        let peer = rank ^ 1 << round;
        let gives = regions(&shards.held(group, rank, round + 1), size);
        let takes = regions(&shards.held(group, peer, round + 1), size);
        if !(gives.is_empty() && takes.is_empty()) {
            exchange.swap(ops, peer, operation, &mut bufs, &gives, &takes)?;
        }
    }
    Ok(())
}

/// Brings every rank's block of a buffer, `block` bytes each and in order of the ranks, to every rank.
pub fn gather_blocks<O: Ops>(
    exchange: &mut dyn Exchange<O>,
    ops: &mut O,
    operation: &'static str,
    buf: &mut O::Buf,
    block: usize,
) -> Result<(), ExchangeError> {
    let (rank, size) = (exchange.link().rank(), exchange.link().size());
    let mut known = 1;
    while known < size {
        let peer = rank ^ known;
        let region = |rank: usize| Region { buf: 0, at: rank / known * known * block, len: known * block };
        exchange.swap(ops, peer, operation, &mut [&mut *buf], &[region(rank)], &[region(peer)])?;
        known *= 2;
    }
    Ok(())
}

fn regions(pieces: &[Piece], size: usize) -> Vec<Region> {
    pieces
        .iter()
        .map(|piece| Region { buf: piece.tensor, at: piece.start * size, len: piece.len * size })
        .collect()
}
