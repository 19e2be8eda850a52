//! Ranks as threads of one process, for tests.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use super::{ExchangeError, Link, Loss};

/// A message and the operation it belongs to.
type TaggedMessage = (&'static str, Vec<u8>);

/// One thread's ends of the channels to all others.
pub struct Threads {
    rank: usize,
    to: Vec<Sender<TaggedMessage>>,
    from: Vec<Receiver<TaggedMessage>>,
    timeout: Duration,
    step: u64,
}

/// The ends for `size` ranks, a power of two, by rank. A rank that sends nothing for `timeout` is lost.
pub fn links(size: usize, timeout: Duration) -> Vec<Threads> {
    let mut ends: Vec<Threads> =
        (0..size).map(|rank| Threads { rank, to: Vec::new(), from: Vec::new(), timeout, step: 0 }).collect();
    for to in 0..size {
        for from in 0..size {
            let (sender, receiver) = mpsc::channel();
            ends[from].to.push(sender);
            ends[to].from.push(receiver);
        }
    }
    ends
}

impl Threads {
    fn lost(&self, rank: usize, operation: &str, why: String) -> ExchangeError {
        let operation = format!("{operation}, step {}", self.step);
        ExchangeError::Lost { rank, host: self.host(rank), operation, why: Loss::ended(why), reported: false }
    }
}

impl Link for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.to.len()
    }

    fn swap(
        &mut self,
        peer: usize,
        operation: &'static str,
        bytes: Vec<u8>,
    ) -> Result<Vec<u8>, ExchangeError> {
        let ended = || self.lost(peer, operation, "has ended".into());
        self.to[peer].send((operation, bytes)).map_err(|_| ended())?;
        match self.from[peer].recv_timeout(self.timeout) {
            Ok((theirs, bytes)) if theirs == operation => Ok(bytes),
            Ok((theirs, _)) => Err(ExchangeError::Protocol {
                rank: peer,
                operation: operation.into(),
                expected: "a message of this operation".into(),
                found: format!("one of {theirs}"),
            }),
            Err(RecvTimeoutError::Disconnected) => Err(ended()),
            Err(RecvTimeoutError::Timeout) => {
                Err(self.lost(peer, operation, format!("has said nothing for {} s", self.timeout.as_secs())))
            }
        }
    }

    fn mark(&mut self, step: u64) {
        self.step = step;
    }
}

/// Runs `work` on a thread for each of `size` ranks and gives the results by rank.
#[cfg(test)]
pub fn run<R: Send>(size: usize, work: impl Fn(Threads) -> R + Sync) -> Vec<R> {
    let work = &work;
    std::thread::scope(|scope| {
        let ranks: Vec<_> = links(size, Duration::from_secs(60))
            .into_iter()
            .map(|link| scope.spawn(move || work(link)))
            .collect();
        ranks.into_iter().map(|rank| rank.join().expect("the rank does not panic")).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_that_ends_or_falls_silent_is_named_with_the_operation() {
        let mut ends = links(2, Duration::from_millis(50)).into_iter();
        let (mut zero, one) = (ends.next().expect("rank 0"), ends.next().expect("rank 1"));
        zero.mark(7);
        let silent = zero.swap(1, "sum of gradients", vec![]).expect_err("nobody answers").to_string();
        assert!(
            silent.contains("rank 1")
                && silent.contains("nothing")
                && silent.contains("sum of gradients, step 7"),
            "{silent}"
        );
        drop(one);
        let ended = zero.swap(1, "sum of gradients", vec![]).expect_err("nobody is there").to_string();
        assert!(ended.contains("rank 1") && ended.contains("has ended"), "{ended}");
    }

    #[test]
    fn ranks_that_do_different_things_notice() {
        let results = run(2, |mut link| {
            let operation = if link.rank() == 0 { "losses" } else { "weights" };
            link.swap(link.rank() ^ 1, operation, vec![]).map(|_| ())
        });
        assert!(
            results.iter().any(|result| matches!(result, Err(ExchangeError::Protocol { .. }))),
            "{results:?}"
        );
    }
}
