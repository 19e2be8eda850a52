//! Many devices, one result: how the gradients of a step are folded, divided and exchanged.
//!
//! The order of every addition is fixed by the experiment: V virtual workers are added by a balanced tree. N
//! ranks, N a divisor of V, each run V/N neighbouring workers and so hold a subtree; the upper levels of the
//! same tree are walked by exchange. Ranks that differ in bit k of their number meet at level k, each gives
//! away half of what it holds and adds the other half: after log2(N) rounds every rank has the whole sum of
//! its own shard. So the bits of N ranks are those of one.
//!
//! * [`sums`]: what becomes of gradients while the backward pass goes on, by [`tree`], the workers of one
//!   rank, and [`reduce`], sums scattered over ranks and shards gathered from them.
//! * [`shards`]: which part of which tensor belongs to which rank.
//! * [`exchange`]: the traits that move bytes between ranks, and nothing else; [`Solo`] for one rank,
//!   [`tcp`] for processes, which find each other by [`rendezvous`] and
//!   talk in the frames of [`wire`] once each has shown that it knows the run's key ([`handshake`]); [`nccl`]
//!   for their GPUs. [`launch`] reads the variables of launchers.
//!
//! Deliberately absent: any arithmetic of a communication library (its order depends on rings, protocols
//! and sizes), and any knowledge of what a step is.

mod clock;
pub mod error;
pub mod exchange;
pub mod handshake;
pub mod launch;
pub mod nccl;
pub mod reduce;
pub mod rendezvous;
pub mod shards;
pub mod sums;
pub mod tcp;
#[cfg(test)]
pub mod threads;
pub mod tree;
pub mod wire;

pub use crate::ops::Region;
pub use error::{ExchangeError, Loss};
pub use exchange::{Exchange, Hosted, Link, Solo};
pub use rendezvous::{Meeting, RankPlace, RendezvousError};
pub use shards::{Piece, Shards};
pub use sums::Sums;
pub use tcp::Tcp;
