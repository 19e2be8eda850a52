//! Connections between ranks: bytes move, nothing is added.
//!
//! A [`Link`] carries host bytes, an [`Exchange`] the contents of device buffers; both know one
//! operation, a swap between two ranks whose numbers differ in one bit. Everything else follows: gathers
//! double what is known log2(N) times along the edges of this hypercube, so no rank ever talks to more than
//! log2(N) others, and ranks with neighbouring numbers, which share a host, exchange the most.
//!
//! Every swap has the name of its operation, so that an error can say which one did not return.

use super::{ExchangeError, Loss};
use crate::ops::{Ops, Region};

/// One rank's ends of the connections to the others.
pub trait Link: Send {
    /// This rank's number, from 0.
    fn rank(&self) -> usize;

    /// N: how many ranks there are, a power of two.
    fn size(&self) -> usize;

    /// Sends `bytes` to `peer` and returns what `peer` sends: both call, in the same order of swaps.
    /// `peer` differs from this rank's number in one bit.
    fn swap(
        &mut self,
        peer: usize,
        operation: &'static str,
        bytes: Vec<u8>,
    ) -> Result<Vec<u8>, ExchangeError>;

    /// Sets the optimizer step under way, for messages.
    fn mark(&mut self, _step: u64) {}

    /// Tells all ranks that this one is done: its end is then no failure.
    fn finish(&mut self) {}

    /// Tells all ranks that this one cannot go on, and why.
    fn fail(&mut self, _why: &str) {}

    /// The name of a rank's machine, for messages.
    fn host(&self, _rank: usize) -> String {
        "this process".into()
    }
}

/// A link that also moves what lies on devices.
pub trait Exchange<O: Ops>: Send {
    fn link(&mut self) -> &mut dyn Link;

    /// Sends the regions `gives` of `bufs` to `peer` and fills `takes` with what it sends, in order. Regions
    /// sent and filled do not overlap; the peer's regions have the same lengths.
    ///
    /// On a GPU this is one more piece of work on the lane in use: it returns before it is done.
    fn swap(
        &mut self,
        ops: &mut O,
        peer: usize,
        operation: &'static str,
        bufs: &mut [&mut O::Buf],
        gives: &[Region],
        takes: &[Region],
    ) -> Result<(), ExchangeError>;

    /// Whether this is the only rank: then nothing is divided either.
    fn alone(&self) -> bool {
        false
    }
}

/// The only rank.
pub struct Solo;

impl Link for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn swap(&mut self, peer: usize, operation: &'static str, _: Vec<u8>) -> Result<Vec<u8>, ExchangeError> {
        Err(no_peer(peer, operation))
    }
}

impl<O: Ops> Exchange<O> for Solo {
    fn link(&mut self) -> &mut dyn Link {
        self
    }

    fn swap(
        &mut self,
        _: &mut O,
        peer: usize,
        operation: &'static str,
        _: &mut [&mut O::Buf],
        _: &[Region],
        _: &[Region],
    ) -> Result<(), ExchangeError> {
        Err(no_peer(peer, operation))
    }

    fn alone(&self) -> bool {
        true
    }
}

fn no_peer(rank: usize, operation: &'static str) -> ExchangeError {
    ExchangeError::Lost {
        rank,
        host: "nowhere".into(),
        operation: operation.into(),
        why: Loss::ended("is not there: this run has one rank"),
        reported: false,
    }
}

/// Device buffers moved through host memory: any link, any device.
pub struct Hosted<L>(pub L);

impl<O: Ops, L: Link> Exchange<O> for Hosted<L> {
    fn link(&mut self) -> &mut dyn Link {
        &mut self.0
    }

    fn swap(
        &mut self,
        ops: &mut O,
        peer: usize,
        operation: &'static str,
        bufs: &mut [&mut O::Buf],
        gives: &[Region],
        takes: &[Region],
    ) -> Result<(), ExchangeError> {
        let mut bytes = vec![0; gives.iter().map(|region| region.len).sum()];
        let mut rest = bytes.as_mut_slice();
        for Region { buf, at, len } in gives {
            let (piece, behind) = rest.split_at_mut(*len);
            ops.read_at(bufs[*buf], *at, piece)?;
            rest = behind;
        }
        let taken = self.0.swap(peer, operation, bytes)?;
        let expected: usize = takes.iter().map(|region| region.len).sum();
        expect_len(peer, operation, expected, taken.len())?;
        let mut rest = taken.as_slice();
        for Region { buf, at, len } in takes {
            let (piece, behind) = rest.split_at(*len);
            ops.write_at(bufs[*buf], *at, piece)?;
            rest = behind;
        }
        Ok(())
    }
}

fn expect_len(rank: usize, operation: &str, expected: usize, found: usize) -> Result<(), ExchangeError> {
    if expected == found {
        return Ok(());
    }
    let bytes = |n: usize| format!("{n} bytes");
    Err(ExchangeError::Protocol {
        rank,
        operation: operation.into(),
        expected: bytes(expected),
        found: bytes(found),
    })
}

/// Gathers what every rank sends, by rank, on every rank.
pub fn all_gather(
    link: &mut dyn Link,
    operation: &'static str,
    bytes: Vec<u8>,
) -> Result<Vec<Vec<u8>>, ExchangeError> {
    // The messages of the ranks of an aligned block, twice as large after each round.
    let mut known = vec![bytes];
    while known.len() < link.size() {
        let peer = link.rank() ^ known.len();
        let theirs = unpack(peer, operation, known.len(), &link.swap(peer, operation, pack(&known))?)?;
        known = if peer < link.rank() { [theirs, known].concat() } else { [known, theirs].concat() };
    }
    Ok(known)
}

/// Sends what rank 0 gives to every rank; the others give nothing.
pub fn broadcast(
    link: &mut dyn Link,
    operation: &'static str,
    bytes: Vec<u8>,
) -> Result<Vec<u8>, ExchangeError> {
    let mine = if link.rank() == 0 { bytes } else { Vec::new() };
    Ok(all_gather(link, operation, mine)?.swap_remove(0))
}

/// Returns when every rank has called it.
pub fn barrier(link: &mut dyn Link, operation: &'static str) -> Result<(), ExchangeError> {
    all_gather(link, operation, Vec::new()).map(|_| ())
}

/// Messages one after the other, each behind its length as u64.
fn pack(messages: &[Vec<u8>]) -> Vec<u8> {
    let mut packed = Vec::with_capacity(messages.iter().map(|m| 8 + m.len()).sum());
    for message in messages {
        packed.extend_from_slice(&(message.len() as u64).to_le_bytes());
        packed.extend_from_slice(message);
    }
    packed
}

fn unpack(
    rank: usize,
    operation: &str,
    count: usize,
    mut packed: &[u8],
) -> Result<Vec<Vec<u8>>, ExchangeError> {
    let bad = |found: String| ExchangeError::Protocol {
        rank,
        operation: operation.into(),
        expected: format!("{count} messages with their lengths"),
        found,
    };
    let mut messages = Vec::with_capacity(count);
    for _ in 0..count {
        let (length, rest) =
            packed.split_first_chunk::<8>().ok_or_else(|| bad(format!("{} bytes", packed.len())))?;
        let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let message = rest
            .get(..length)
            .ok_or_else(|| bad(format!("a message of {length} bytes in {}", rest.len())))?;
        messages.push(message.to_vec());
        packed = &rest[length..];
    }
    if packed.is_empty() { Ok(messages) } else { Err(bad(format!("{} bytes more", packed.len()))) }
}

#[cfg(test)]
mod tests {
    use super::super::threads;
    use super::*;

    #[test]
    fn every_rank_learns_what_every_rank_gave_in_order() {
        for size in [1, 2, 4, 8] {
            let results = threads::run(size, |mut link| {
                let mine = format!("from {}", link.rank()).into_bytes();
                let all = all_gather(&mut link, "test", mine).expect("a gather");
                let mine = vec![link.rank() as u8; 3];
                let first = broadcast(&mut link, "test", mine).expect("a broadcast");
                barrier(&mut link, "test").expect("a barrier");
                (all, first)
            });
            let expected: Vec<Vec<u8>> = (0..size).map(|rank| format!("from {rank}").into_bytes()).collect();
            for (all, first) in results {
                assert_eq!(all, expected, "{size} ranks");
                assert_eq!(first, [0; 3]);
            }
        }
    }

    #[test]
    fn messages_that_are_none_are_refused() {
        for bad in [&[1u8, 2, 3][..], &[9, 0, 0, 0, 0, 0, 0, 0, 1], &[0; 9], &[255; 8]] {
            assert!(
                matches!(unpack(1, "test", 1, bad), Err(ExchangeError::Protocol { rank: 1, .. })),
                "{bad:?}"
            );
        }
        assert_eq!(unpack(1, "test", 2, &pack(&[vec![1], vec![]])).expect("two"), [vec![1], vec![]]);
    }
}
