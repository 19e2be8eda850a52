//! Mean loss over a fixed set of tokens.

use super::EvalError;
use crate::data::ValidationSet;
use crate::model::Gpt2;
use crate::model::gpt2::MicroBatch;
use crate::ops::Ops;
use crate::parallel::Link;
use crate::parallel::exchange::all_gather;

/// Mean loss a token over the whole set, summed in f64 in the set's order, by all ranks together, each of
/// which does every Nth batch.
///
/// Every micro-batch has the model's full capacity: a short last one is filled with repeats whose
/// losses are dropped, so that one shape of every operation serves the whole set. `losses` holds at
/// least `capacity` tokens; `progress` is called with the number of sequences that this rank has come to.
pub fn validation_loss<O: Ops>(
    ops: &mut O,
    model: &mut Gpt2<O>,
    losses: &mut O::Buf,
    link: &mut dyn Link,
    set: &ValidationSet,
    progress: &mut dyn FnMut(usize),
) -> Result<f64, EvalError> {
    let (rank, ranks) = (link.rank(), link.size());
    let rows = model.capacity();
    let mut host = vec![0.0f32; rows.count()];
    let (mut inputs, mut targets) = (vec![0; rows.count()], vec![0; rows.count()]);
    let mut mine = Vec::new();
    for (batch, sequences) in set.batches(rows.batch).zip((0..).step_by(rows.batch)).skip(rank).step_by(ranks)
    {
        let tokens = batch.inputs.len();
        inputs[..tokens].copy_from_slice(batch.inputs);
        targets[..tokens].copy_from_slice(batch.targets);
        model.forward(ops, &MicroBatch { inputs: &inputs, targets: &targets, rows, losses_at: 0 }, losses)?;
        ops.download(losses, &mut host)?;
        mine.extend(host[..tokens].iter().flat_map(|loss| loss.to_le_bytes()));
        progress(sequences + batch.sequences);
    }
    let all = all_gather(link, "the gathering of validation losses", mine)?;
    let mut rest: Vec<_> = all
        .iter()
        .map(|bytes| bytes.as_chunks::<4>().0.iter().map(|loss| f32::from_le_bytes(*loss)))
        .collect();
    // One running sum from first to last, so that it depends on neither batches nor ranks.
    let mut sum = 0.0f64;
    for (number, batch) in set.batches(rows.batch).enumerate() {
        let losses = rest[number % ranks].by_ref().take(batch.inputs.len());
        sum = losses.fold(sum, |sum, loss| sum + f64::from(loss));
    }
    Ok(sum / set.tokens() as f64)
}
