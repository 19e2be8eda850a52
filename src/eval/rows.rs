//! How surprising a model finds texts: contexts, each with a continuation whose losses count.
//!
//! Rows are packed into micro-batches that all have as many tokens as the model has room for, in a few
//! lengths, so that the matrix multiplications see the one shape that training uses and short rows do
//! not pay for long ones. Attention is causal and every other operation works row by row, so neither
//! the padding behind a row nor its neighbours reach its losses.

use std::path::Path;

use super::EvalError;
use crate::model::gpt2::MicroBatch;
use crate::model::{Gpt2, LogitRows};
use crate::ops::{Ops, Rows};
use crate::parallel::Link;
use crate::parallel::exchange::all_gather;

/// Sequences times heads in one batch: what a grid of every GPU holds.
const MOST_HEADS: usize = 65_535;

/// The shortest rows that batches are made for; longer ones double.
const SHORTEST: usize = 64;

/// A context and a continuation, as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScoredRow {
    pub tokens: Vec<u16>,
    /// Tokens at the end that are the continuation.
    pub scored: usize,
}

/// The surprise at one continuation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Surprise {
    /// Sum of its tokens' losses in nats, in f64 from first to last: minus its log-likelihood.
    pub nats: f64,
    pub tokens: usize,
    /// Whether each of its tokens is the likeliest one, the first of equals; none where nobody asked.
    pub greedy: Option<bool>,
}

impl ScoredRow {
    /// Both as one row, which loses the start of its context where it is longer than `seq_len` inputs and the
    /// target of the last: positions that were never trained would make noise of the score.
    pub fn new(context: &[u16], continuation: &[u16], seq_len: usize) -> ScoredRow {
        let cut = (context.len() + continuation.len()).saturating_sub(seq_len + 1);
        let tokens = context[cut..].iter().chain(continuation).copied().collect();
        ScoredRow { tokens, scored: continuation.len() }
    }

    /// Tokens that the model reads: all but the last.
    pub fn inputs(&self) -> usize {
        self.tokens.len() - 1
    }
}

/// Refuses a context and its continuations that a model of this vocabulary and length cannot score. Messages
/// name the `place` in the file.
pub fn check(
    path: &Path,
    place: impl Fn() -> String,
    context: &[u16],
    continuations: &[Vec<u16>],
    vocab: usize,
    seq_len: usize,
) -> Result<(), EvalError> {
    let mut tokens = context.iter().chain(continuations.iter().flatten());
    if let Some(&token) = tokens.find(|token| usize::from(**token) >= vocab) {
        return Err(EvalError::OutOfVocabulary { path: path.into(), place: place(), token, vocab });
    }
    let longest = continuations.iter().map(Vec::len).max().unwrap_or(0);
    // One token of context precedes the first that is predicted.
    if longest > seq_len {
        return Err(EvalError::TooLong {
            path: path.into(),
            place: place(),
            tokens: longest,
            limit: seq_len,
        });
    }
    if context.is_empty() {
        return Err(EvalError::NoContext { path: path.into(), place: place() });
    }
    Ok(())
}

/// A loss that is not finite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NotFiniteLoss {
    /// Index of the row, and token of its continuation.
    pub row: usize,
    pub token: usize,
    pub loss: f32,
}

/// A model on its device, with what scoring needs.
pub struct Scorer<'a, O: Ops> {
    pub ops: &'a mut O,
    pub model: &'a mut Gpt2<O>,
    /// f32, at least the model's capacity.
    pub losses: &'a mut O::Buf,
    /// With it, it is also found whether rows are greedy.
    pub likeliest: Option<&'a mut LogitRows<O::Buf>>,
}

/// The surprise at each row, by all ranks together, each of which does every Nth batch. `progress` is called
/// with how many of how many rows are done.
///
/// # Errors
///
/// A loss that is not finite, as `not_finite` words it, whatever the device finds, and a model with less room
/// than a row needs.
pub fn surprises<O: Ops>(
    scorer: Scorer<'_, O>,
    link: &mut dyn Link,
    rows: &[ScoredRow],
    not_finite: &dyn Fn(NotFiniteLoss) -> EvalError,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Surprise>, EvalError> {
    let Scorer { ops, model, losses, mut likeliest } = scorer;
    let (rank, ranks) = (link.rank(), link.size());
    let capacity = model.capacity();
    let limit = rows.iter().map(ScoredRow::inputs).max().unwrap_or(0);
    if capacity.seq < limit {
        return Err(EvalError::Capacity { capacity: capacity.seq, limit });
    }
    let batches = batches(rows, &shapes(capacity, model.config.heads));
    let mut host = vec![0.0f32; capacity.count()];
    let mut done = 0;
    let mut mine: Vec<u8> = Vec::new();
    let mut failure: Option<Failure> = None;
    for (number, (shape, batch)) in batches.iter().enumerate() {
        done += batch.len();
        if number % ranks != rank {
            continue;
        }
        if failure.is_some() {
            // The other ranks wait for as many numbers.
            mine.extend(batch.iter().flat_map(|_| to_bytes(f64::NAN, None)));
            continue;
        }
        let (inputs, targets) = pack(batch.iter().map(|row| &rows[*row]), *shape);
        let micro_batch = MicroBatch { inputs: &inputs, targets: &targets, rows: *shape, losses_at: 0 };
        model.forward(ops, &micro_batch, losses)?;
        ops.download(losses, &mut host)?;
        let lanes = (0..).step_by(shape.seq).zip(batch.iter().map(|row| &rows[*row]));
        // The places of the continuations' tokens in the micro-batch.
        let places: Vec<_> =
            lanes.map(|(at, row)| at + row.inputs() - row.scored..at + row.inputs()).collect();
        let greedy = match &mut likeliest {
            None => vec![None; batch.len()],
            Some(room) => {
                let flat: Vec<usize> = places.iter().cloned().flatten().collect();
                let mut found = model.likeliest(ops, room, &flat)?.into_iter();
                let is = |place: &std::ops::Range<usize>| {
                    let right = place.clone().filter(|at| found.next() == Some(targets[*at]));
                    Some(right.count() == place.len())
                };
                places.iter().map(is).collect()
            }
        };
        for ((row, place), greedy) in batch.iter().zip(places).zip(greedy) {
            let scored = &host[place];
            mine.extend(to_bytes(nats(scored), greedy));
            if let Some(token) = scored.iter().position(|loss| !loss.is_finite()) {
                let loss = NotFiniteLoss { row: *row, token, loss: scored[token] };
                failure.get_or_insert(Failure { batch: number, loss });
            }
        }
        progress(done, rows.len());
    }
    let all = all_gather(link, "the gathering of scores", mine)?;
    let mut rest: Vec<_> = all.iter().map(|bytes| bytes.as_chunks().0.iter().map(from_bytes)).collect();
    // Sums of finite losses are finite, so that every rank sees whether any has failed.
    if rest.iter().cloned().flatten().any(|(nats, _)| !nats.is_finite()) {
        let failures = all_gather(link, "the gathering of failures", Failure::to_bytes(failure))?;
        // The first batch that failed is the one that one rank alone would have come to.
        let first = failures.iter().filter_map(|bytes| Failure::from_bytes(bytes)).min_by_key(|f| f.batch);
        if let Some(Failure { loss, .. }) = first {
            return Err(not_finite(loss));
        }
    }
    let mut surprises = vec![Surprise::default(); rows.len()];
    for (number, (_, batch)) in batches.iter().enumerate() {
        for (&row, (nats, greedy)) in batch.iter().zip(&mut rest[number % ranks]) {
            surprises[row] = Surprise { nats, tokens: rows[row].scored, greedy };
        }
    }
    Ok(surprises)
}

/// Batches of exactly the capacity's tokens, by rising length of their rows; the last is the capacity's own.
fn shapes(capacity: Rows, heads: usize) -> Vec<Rows> {
    let lengths = std::iter::successors(Some(SHORTEST), |length| Some(2 * length))
        .take_while(|length| *length < capacity.seq);
    let whole = lengths.filter(|length| capacity.count().is_multiple_of(*length));
    let batches = whole.map(|seq| Rows { batch: capacity.count() / seq, seq });
    batches.filter(|rows| rows.batch * heads <= MOST_HEADS).chain([capacity]).collect()
}

/// The indices of all rows in batches, each row in the shortest shape that it fits.
fn batches(rows: &[ScoredRow], shapes: &[Rows]) -> Vec<(Rows, Vec<usize>)> {
    let mut batches = Vec::new();
    let mut shorter = 0;
    for shape in shapes {
        let fits = |row: &usize| (shorter + 1..=shape.seq).contains(&rows[*row].inputs());
        let fitting: Vec<usize> = (0..rows.len()).filter(fits).collect();
        batches.extend(fitting.chunks(shape.batch).map(|batch| (*shape, batch.to_vec())));
        shorter = shape.seq;
    }
    batches
}

/// Rows side by side, filled up with zeros behind each of them and below.
fn pack<'a>(rows: impl Iterator<Item = &'a ScoredRow>, shape: Rows) -> (Vec<u16>, Vec<u16>) {
    let (mut inputs, mut targets) = (vec![0; shape.count()], vec![0; shape.count()]);
    let lanes = inputs.chunks_exact_mut(shape.seq).zip(targets.chunks_exact_mut(shape.seq));
    for (row, (input, target)) in rows.zip(lanes) {
        input[..row.inputs()].copy_from_slice(&row.tokens[..row.inputs()]);
        target[..row.inputs()].copy_from_slice(&row.tokens[1..]);
    }
    (inputs, targets)
}

/// The sum of the losses at a row's continuation.
fn nats(scored: &[f32]) -> f64 {
    scored.iter().map(|&loss| f64::from(loss)).sum()
}

/// What a rank sends of a row.
fn to_bytes(nats: f64, greedy: Option<bool>) -> [u8; 9] {
    let mut bytes = [greedy.map_or(2, u8::from); 9];
    bytes[..8].copy_from_slice(&nats.to_le_bytes());
    bytes
}

fn from_bytes(&[a, b, c, d, e, f, g, h, greedy]: &[u8; 9]) -> (f64, Option<bool>) {
    (f64::from_le_bytes([a, b, c, d, e, f, g, h]), (greedy < 2).then_some(greedy == 1))
}

/// The first loss of a rank that is not finite, and the batch of it, counted over all ranks.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Failure {
    batch: usize,
    loss: NotFiniteLoss,
}

impl Failure {
    /// What a rank sends: nothing where it has not failed.
    fn to_bytes(failure: Option<Failure>) -> Vec<u8> {
        let numbers = |Failure { batch, loss: NotFiniteLoss { row, token, loss } }| {
            [batch as u64, row as u64, token as u64, u64::from(f32::to_bits(loss))]
        };
        failure.map(numbers).into_iter().flatten().flat_map(u64::to_le_bytes).collect()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Failure> {
        let numbers: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|n| u64::from_le_bytes(*n)).collect();
        let &[batch, row, token, loss] = numbers.as_slice() else { return None };
        let [batch, row, token] = [batch, row, token].map(|number| number as usize);
        Some(Failure { batch, loss: NotFiniteLoss { row, token, loss: f32::from_bits(loss as u32) } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_have_the_capacity_s_tokens_in_every_length() {
        let shapes = shapes(Rows { batch: 4, seq: 1024 }, 12);
        assert_eq!(
            shapes.iter().map(|s| (s.batch, s.seq)).collect::<Vec<_>>(),
            [(64, 64), (32, 128), (16, 256), (8, 512), (4, 1024)]
        );
        assert_eq!(super::shapes(Rows { batch: 3, seq: 50 }, 2), [Rows { batch: 3, seq: 50 }]);
        assert_eq!(super::shapes(Rows { batch: 1, seq: 150 }, 2), [Rows { batch: 1, seq: 150 }]);
        let many = super::shapes(Rows { batch: 512, seq: 1024 }, 12);
        assert_eq!(many[0], Rows { batch: 4096, seq: 128 }, "8192 sequences of 12 heads are too many");
    }
}
