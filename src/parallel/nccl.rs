//! Ranks with a GPU each: device memory moves by NCCL, the rest by the link.
//!
//! Swaps are work on the device's streams, like any kernel: on the lane in use, in the order of the calls.
//! The sum that reads what was received comes after it on the same lane; [`crate::ops::aside`] and
//! [`crate::ops::Ops::join_lanes`] order the lanes, and with them the calls of NCCL, alike on all ranks.

use super::exchange::{Exchange, Hosted, Link, all_gather, broadcast};
use super::rendezvous::host_name;
use super::{ExchangeError, Region};
use crate::ops::cuda::{Cuda, memory::Buf, nccl};

/// The GPUs of all ranks, joined.
pub struct Nccl<L> {
    link: L,
    group: nccl::NcclGroup,
}

/// Joins the devices of all ranks: by NCCL where each has a GPU of its own, else through host memory.
/// All ranks decide alike. Returns how bytes move.
pub fn join<L: Link + 'static>(
    cuda: &mut Cuda,
    mut link: L,
) -> Result<(Box<dyn Exchange<Cuda>>, String), ExchangeError> {
    let mine = match nccl::version() {
        Ok(version) => format!("{} {} {version}", host_name(), cuda.gpu().uuid),
        Err(why) => format!("without {why}"),
    };
    let all = all_gather(&mut link, "the list of GPUs", mine.into_bytes())?;
    let mut gpus: Vec<String> = all.iter().map(|gpu| String::from_utf8_lossy(gpu).into_owned()).collect();
    if let Some(without) = gpus.iter().find_map(|gpu| gpu.strip_prefix("without ")) {
        return Ok((
            Box::new(Hosted(link)),
            format!("through host memory, for a rank is without NCCL: {without}"),
        ));
    }
    gpus.sort();
    if gpus.windows(2).any(|pair| pair[0] == pair[1]) {
        return Ok((Box::new(Hosted(link)), "through host memory, for ranks share a GPU".into()));
    }
    let id = if link.rank() == 0 { nccl::unique_id()?.to_vec() } else { Vec::new() };
    let id = broadcast(&mut link, "the identifier of the GPUs' group", id)?;
    let (rank, size) = (link.rank(), link.size());
    let id = id.try_into().map_err(|id: Vec<u8>| ExchangeError::Protocol {
        rank: 0,
        operation: "the identifier of the GPUs' group".into(),
        expected: format!("{} bytes", nccl::ID_BYTES),
        found: format!("{} bytes", id.len()),
    })?;
    // A group of one talks to itself, which shows that the library works.
    let peers: Vec<usize> =
        if size == 1 { vec![0] } else { (0..size.trailing_zeros()).map(|bit| rank ^ 1 << bit).collect() };
    let group = cuda.join_group(id, rank, size, &peers)?;
    Ok((Box::new(Nccl { link, group }), "by NCCL".into()))
}

impl<L: Link> Exchange<Cuda> for Nccl<L> {
    fn link(&mut self) -> &mut dyn Link {
        &mut self.link
    }

    fn swap(
        &mut self,
        ops: &mut Cuda,
        peer: usize,
        operation: &'static str,
        bufs: &mut [&mut Buf],
        gives: &[Region],
        takes: &[Region],
    ) -> Result<(), ExchangeError> {
        Ok(ops.swap_regions(&self.group, peer, operation, bufs, gives, takes)?)
    }
}
