//! Micro-batches read ahead by a thread, so that the device does not wait for disk.
//!
//! The order of samples decides what is read: depth, speed and restarts change no token. The reader has no
//! end; it stops when it is dropped or moved to another step. Waits of the consumer are counted, so that
//! "data was never waited for" is measured.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender, TryRecvError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::dataset::Dataset;
use super::error::DataError;
use super::order::SampleOrder;
use crate::experiment::StepSequences;

/// One micro-batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// B·T tokens.
    pub inputs: Vec<u16>,
    /// B·T tokens, the inputs shifted by one.
    pub targets: Vec<u16>,
    /// Position of the first sequence in the stream of samples.
    pub position: u64,
}

/// Which part of each step's sequences is read: those of the virtual workers of one rank of several, which
/// divide a step evenly and in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankShare {
    pub rank: u64,
    /// At least 1.
    pub ranks: u64,
}

impl RankShare {
    /// All sequences.
    pub const WHOLE: RankShare = RankShare { rank: 0, ranks: 1 };
}

/// What to read: of every step the same share of its G sequences, a micro-batch at a time, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchPlan {
    pub order: SampleOrder,
    /// T: tokens a sequence.
    pub seq_len: usize,
    /// B: sequences a micro-batch.
    pub micro_batch: usize,
    /// G: sequences that each optimizer step takes from the stream, on all devices together.
    pub step_sequences: StepSequences,
    /// Which of a step's sequences are read here; always a multiple of `micro_batch`.
    pub share: RankShare,
    /// Read the positions of step 0 in every step.
    pub overfit_single_batch: bool,
    /// Micro-batches held ready; at least 1.
    pub depth: usize,
}

impl BatchPlan {
    /// Positions of the first sequence of each micro-batch of `step`; `offset` shifts the stream.
    fn positions(&self, step: u64, offset: u64) -> impl Iterator<Item = u64> + use<> {
        let step = if self.overfit_single_batch { 0 } else { step };
        let share = self.step_sequences.of(step) / self.share.ranks;
        let first = self.step_sequences.before(step) + offset + self.share.rank * share;
        (first..first + share).step_by(self.micro_batch)
    }

    fn check(&self) -> Result<(), DataError> {
        let RankShare { rank, ranks } = self.share;
        let unit = self.step_sequences.unit();
        let reason = if self.seq_len == 0 || self.micro_batch == 0 {
            format!("micro-batch {} and sequence length {} must not be 0", self.micro_batch, self.seq_len)
        } else if unit == 0 || rank >= ranks {
            format!("rank {rank} of {ranks} has no part of a step of multiples of {unit} sequences")
        } else if !unit.is_multiple_of(ranks * self.micro_batch as u64) {
            format!(
                "{ranks} ranks do not divide multiples of {unit} sequences into micro-batches of {}",
                self.micro_batch
            )
        } else {
            return Ok(());
        };
        Err(DataError::Plan { reason })
    }
}

/// How often and how long the consumer waited for a batch.
///
/// The first batch after a start or a seek cannot be ready; its wait is `startup`, not `waits`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// Batches delivered.
    pub batches: u64,
    /// Batches that were not ready when they were asked for.
    pub waits: u64,
    /// Time spent in those waits.
    pub waited: Duration,
    /// The longest of them.
    pub longest: Duration,
    /// Time until the first batch after each start or seek.
    pub startup: Duration,
}

/// Reads micro-batches ahead, endlessly.
#[derive(Debug)]
pub struct Prefetcher {
    data: Arc<Dataset>,
    plan: BatchPlan,
    reader: Option<ReaderThread>,
    waits: Waits,
    fresh: bool,
}

/// The thread and the two channels to it.
#[derive(Debug)]
struct ReaderThread {
    batches: Receiver<Result<Batch, DataError>>,
    used: mpsc::Sender<Batch>,
    thread: JoinHandle<()>,
}

impl Prefetcher {
    /// Starts reading at the first micro-batch of `step`, with the stream shifted by `offset`
    /// sequences (what rewinds have skipped; 0 in an undisturbed run).
    ///
    /// # Errors
    ///
    /// A plan that contradicts itself. [`Prefetcher::next`] returns errors in the data.
    pub fn start(
        data: Arc<Dataset>,
        plan: BatchPlan,
        step: u64,
        offset: u64,
    ) -> Result<Prefetcher, DataError> {
        plan.check()?;
        let mut prefetcher = Prefetcher { data, plan, reader: None, waits: Waits::default(), fresh: true };
        prefetcher.seek(step, offset)?;
        Ok(prefetcher)
    }

    /// Throws away what was read ahead and goes on at the first micro-batch of `step`.
    pub fn seek(&mut self, step: u64, offset: u64) -> Result<(), DataError> {
        self.stop();
        self.reader = Some(ReaderThread::spawn(self.data.clone(), self.plan.clone(), step, offset)?);
        self.fresh = true;
        Ok(())
    }

    /// The next micro-batch; waits when it is not ready yet.
    ///
    /// # Errors
    ///
    /// The error that the reader found, once; then [`DataError::ReaderStopped`] until the next seek.
    #[expect(
        clippy::should_implement_trait,
        reason = "an endless stream with errors and recycled buffers is not an Iterator"
    )]
    pub fn next(&mut self) -> Result<Batch, DataError> {
        let reader = self.reader.as_ref().ok_or(DataError::ReaderStopped)?;
        let batch = match reader.batches.try_recv() {
            Ok(batch) => batch,
            Err(TryRecvError::Disconnected) => return Err(DataError::ReaderStopped),
            Err(TryRecvError::Empty) => {
                let start = Instant::now();
                let batch = reader.batches.recv().map_err(|_| DataError::ReaderStopped)?;
                let waited = start.elapsed();
                if self.fresh {
                    self.waits.startup += waited;
                } else {
                    self.waits.waits += 1;
                    self.waits.waited += waited;
                    self.waits.longest = self.waits.longest.max(waited);
                }
                batch
            }
        };
        self.fresh = false;
        self.waits.batches += u64::from(batch.is_ok());
        batch
    }

    /// Gives a batch's buffers back, so that in the long run reading allocates nothing.
    pub fn recycle(&mut self, batch: Batch) {
        if let Some(reader) = &self.reader {
            // A reader that has stopped needs no buffers.
            let _ = reader.used.send(batch);
        }
    }

    /// Waits so far, over all seeks.
    pub fn waits(&self) -> Waits {
        self.waits
    }

    /// What is read.
    pub fn plan(&self) -> &BatchPlan {
        &self.plan
    }

    fn stop(&mut self) {
        if let Some(ReaderThread { batches, used, thread }) = self.reader.take() {
            // Without a receiver the reader's next send fails, also one that is blocked now.
            drop((batches, used));
            // A panic there has been printed already and reached the consumer as `ReaderStopped`.
            let _ = thread.join();
        }
    }
}

impl Drop for Prefetcher {
    fn drop(&mut self) {
        self.stop();
    }
}

impl ReaderThread {
    fn spawn(data: Arc<Dataset>, plan: BatchPlan, step: u64, offset: u64) -> Result<ReaderThread, DataError> {
        // The reader holds one batch beyond the channel while it waits to send it.
        let (sender, batches) = mpsc::sync_channel(plan.depth.max(1) - 1);
        let (used, returned) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("data".to_owned())
            .spawn(move || read_on(&data, &plan, step, offset, &sender, &returned))
            .map_err(|reason| DataError::Io {
                action: "start the thread that reads",
                path: "data".into(),
                reason,
            })?;
        Ok(ReaderThread { batches, used, thread })
    }
}

/// The body of the reading thread: reads batches until the receiver is dropped or an error is found.
fn read_on(
    data: &Dataset,
    plan: &BatchPlan,
    first_step: u64,
    offset: u64,
    sender: &SyncSender<Result<Batch, DataError>>,
    returned: &Receiver<Batch>,
) {
    for step in first_step.. {
        for position in plan.positions(step, offset) {
            let mut batch =
                returned.try_recv().unwrap_or(Batch { inputs: Vec::new(), targets: Vec::new(), position: 0 });
            let result = fill(data, plan, position, &mut batch).map(|()| batch);
            let failed = result.is_err();
            if sender.send(result).is_err() || failed {
                return;
            }
        }
    }
}

/// Reads the micro-batch that starts at `position`.
fn fill(data: &Dataset, plan: &BatchPlan, position: u64, batch: &mut Batch) -> Result<(), DataError> {
    batch.position = position;
    batch.inputs.resize(plan.micro_batch * plan.seq_len, 0);
    batch.targets.resize(plan.micro_batch * plan.seq_len, 0);
    let rows = batch.inputs.chunks_exact_mut(plan.seq_len).zip(batch.targets.chunks_exact_mut(plan.seq_len));
    for (p, (inputs, targets)) in (position..).zip(rows) {
        data.read(plan.order.sequence_at(p), inputs, targets)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;

    const T: usize = 4;

    /// Sequence s has the inputs 4s, 4s+1, 4s+2, 4s+3.
    fn data(sequences: u16) -> Arc<Dataset> {
        Arc::new(Dataset::from_tokens("count", (0..=sequences * T as u16).collect(), 1 << 16).unwrap())
    }

    fn plan(sequences: u64, micro_batch: usize, step_sequences: u64, shuffled: bool) -> BatchPlan {
        BatchPlan {
            order: SampleOrder::new(11, NonZeroU64::new(sequences).unwrap(), shuffled),
            seq_len: T,
            micro_batch,
            step_sequences: StepSequences::constant(step_sequences),
            share: RankShare::WHOLE,
            overfit_single_batch: false,
            depth: 3,
        }
    }

    /// The sequences that the next `batches` micro-batches hold.
    fn take(prefetcher: &mut Prefetcher, batches: usize) -> Vec<u64> {
        let mut sequences = Vec::new();
        for _ in 0..batches {
            let batch = prefetcher.next().unwrap();
            for (inputs, targets) in batch.inputs.chunks(T).zip(batch.targets.chunks(T)) {
                assert!(inputs.iter().zip(targets).all(|(i, t)| i + 1 == *t));
                sequences.push(u64::from(inputs[0]) / T as u64);
            }
            prefetcher.recycle(batch);
        }
        sequences
    }

    #[test]
    fn the_stream_is_the_order_whatever_micro_batch_and_depth() {
        let expected: Vec<u64> = (0..48).map(|p| plan(10, 1, 12, true).order.sequence_at(p)).collect();
        for (micro_batch, depth) in [(1, 1), (2, 8), (3, 0), (4, 2), (6, 3), (12, 5)] {
            let plan = BatchPlan { depth, ..plan(10, micro_batch, 12, true) };
            let mut prefetcher = Prefetcher::start(data(10), plan, 0, 0).unwrap();
            assert_eq!(take(&mut prefetcher, 48 / micro_batch), expected, "micro-batch {micro_batch}");
        }
    }

    #[test]
    fn a_start_in_the_middle_continues_the_stream() {
        let mut whole = Prefetcher::start(data(10), plan(10, 2, 6, true), 0, 0).unwrap();
        let all = take(&mut whole, 30);
        let mut late = Prefetcher::start(data(10), plan(10, 2, 6, true), 7, 0).unwrap();
        assert_eq!(take(&mut late, 9), all[42..]);
    }

    #[test]
    fn a_seek_drops_what_was_read_ahead_and_an_offset_shifts_the_stream() {
        let mut prefetcher = Prefetcher::start(data(100), plan(100, 2, 4, false), 0, 0).unwrap();
        assert_eq!(take(&mut prefetcher, 5), (0..10).collect::<Vec<_>>());
        prefetcher.seek(1, 0).unwrap();
        assert_eq!(take(&mut prefetcher, 2), [4, 5, 6, 7]);
        prefetcher.seek(1, 8).unwrap();
        assert_eq!(take(&mut prefetcher, 3), [12, 13, 14, 15, 16, 17]);
        assert_eq!(prefetcher.waits().batches, 10);
    }

    #[test]
    fn overfitting_repeats_the_first_step() {
        let plan = BatchPlan { overfit_single_batch: true, ..plan(100, 2, 4, false) };
        let mut prefetcher = Prefetcher::start(data(100), plan, 5, 0).unwrap();
        assert_eq!(take(&mut prefetcher, 4), [0, 1, 2, 3, 0, 1, 2, 3]);
    }

    #[test]
    fn shares_of_a_step_add_up_to_the_step() {
        let share = |rank| BatchPlan { share: RankShare { rank, ranks: 2 }, ..plan(100, 2, 8, false) };
        let mut left = Prefetcher::start(data(100), share(0), 1, 0).unwrap();
        let mut right = Prefetcher::start(data(100), share(1), 1, 0).unwrap();
        assert_eq!(take(&mut left, 4), [8, 9, 10, 11, 16, 17, 18, 19]);
        assert_eq!(take(&mut right, 4), [12, 13, 14, 15, 20, 21, 22, 23]);
    }

    /// Units of 4 sequences, 2 a rank: steps of 1, 1, 2, 3 and 3 of them.
    #[test]
    fn steps_of_a_warm_up_follow_each_other_in_the_stream() {
        let batch = |sets: &[&str]| {
            let text = "[model]\nlayers = 1\nheads = 1\nchannels = 8\n[data]\ncorpus = 'kjv'\n\
                        tokenizer = 'byte'\n[batch]\nmicro = 2\nseq_len = 4\ntokens = 48\ntokens_start = 16\n\
                        tokens_warmup_steps = 3\n[schedule]\nsteps = 9\n[parallel]\nworkers = 2";
            let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
            crate::experiment::load_text("t", text, &sets).unwrap().experiment.step_sequences()
        };
        let plan = |rank, ranks| BatchPlan {
            step_sequences: batch(&[]),
            share: RankShare { rank, ranks },
            ..plan(100, 2, 4, false)
        };
        let start = |plan, step, offset| Prefetcher::start(data(100), plan, step, offset).unwrap();
        assert_eq!(take(&mut start(plan(0, 1), 0, 0), 20), (0..40).collect::<Vec<_>>());
        assert_eq!(take(&mut start(plan(0, 2), 0, 0), 7), [0, 1, 4, 5, 8, 9, 10, 11, 16, 17, 18, 19, 20, 21]);
        assert_eq!(take(&mut start(plan(1, 2), 2, 0), 5), [12, 13, 14, 15, 22, 23, 24, 25, 26, 27]);
        assert_eq!(take(&mut start(plan(0, 1), 3, 5), 2), [21, 22, 23, 24], "step 3 begins at sequence 16");
    }

    #[test]
    fn a_fault_in_the_data_reaches_the_consumer_and_ends_the_stream() {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = super::super::shard::header(9).to_vec();
        bytes.extend([0, 1, 2, 3, 4, 5, 6, 900, 8].iter().flat_map(|t: &u16| t.to_le_bytes()));
        std::fs::write(dir.path().join("t.bin"), bytes).unwrap();
        let patterns = [dir.path().join("*.bin").display().to_string()];
        let data = Dataset::open(&patterns, 100, &crate::data::Tokenizer::Byte).unwrap();
        let mut prefetcher = Prefetcher::start(Arc::new(data), plan(2, 1, 2, false), 0, 0).unwrap();
        assert_eq!(prefetcher.next().unwrap().inputs, [0, 1, 2, 3]);
        assert!(matches!(prefetcher.next(), Err(DataError::OutOfVocabulary { position: 7, token: 900, .. })));
        assert!(matches!(prefetcher.next(), Err(DataError::ReaderStopped)));
        prefetcher.seek(0, 0).unwrap();
        assert_eq!(prefetcher.next().unwrap().inputs, [0, 1, 2, 3]);
    }

    #[test]
    fn a_contradictory_plan_is_refused() {
        let refused = |plan| matches!(Prefetcher::start(data(10), plan, 0, 0), Err(DataError::Plan { .. }));
        assert!(refused(plan(10, 3, 8, true)));
        assert!(refused(plan(10, 0, 8, true)));
        for (rank, ranks) in [(1, 1), (0, 0), (0, 8), (0, 3)] {
            assert!(refused(BatchPlan { share: RankShare { rank, ranks }, ..plan(10, 2, 8, true) }));
        }
        assert!(refused(BatchPlan { step_sequences: StepSequences::constant(0), ..plan(10, 2, 8, true) }));
        assert!(refused(BatchPlan { seq_len: 0, ..plan(10, 2, 8, true) }));
    }

    #[test]
    fn a_slow_consumer_never_waits() {
        let mut prefetcher = Prefetcher::start(data(100), plan(100, 2, 4, true), 0, 0).unwrap();
        for _ in 0..5 {
            let batch = prefetcher.next().unwrap();
            prefetcher.recycle(batch);
            // Ten thousand times what a batch takes, so that a busy machine does not matter.
            std::thread::sleep(Duration::from_millis(100));
        }
        let waits = prefetcher.waits();
        assert_eq!((waits.batches, waits.waits), (5, 0), "{waits:?}");
    }

    #[test]
    fn dropping_joins_a_reader_that_is_blocked() {
        let data = data(100);
        let mut prefetcher = Prefetcher::start(data.clone(), plan(100, 2, 4, true), 0, 0).unwrap();
        prefetcher.next().unwrap();
        drop(prefetcher);
        assert_eq!(Arc::strong_count(&data), 1, "the thread is gone");
    }
}
