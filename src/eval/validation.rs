//! Mean loss over a fixed set of tokens.

use crate::data::ValidationSet;
use crate::model::Gpt2;
use crate::model::gpt2::MicroBatch;
use crate::ops::{Ops, Result};

/// Mean loss a token over the whole set, summed in f64 in the set's order.
///
/// Every micro-batch has the model's full capacity: a short last one is filled with repeats whose
/// losses are dropped, so that one shape of every operation serves the whole set. `losses` holds at
/// least `capacity` tokens; `progress` is told how many sequences are done.
pub fn validation_loss<O: Ops>(
    ops: &mut O,
    model: &mut Gpt2<O>,
    losses: &mut O::Buf,
    set: &ValidationSet,
    mut progress: impl FnMut(usize),
) -> Result<f64> {
    let rows = model.capacity();
    let mut host = vec![0.0f32; rows.count()];
    let (mut inputs, mut targets) = (vec![0; rows.count()], vec![0; rows.count()]);
    let (mut sum, mut done) = (0.0f64, 0);
    for batch in set.batches(rows.batch) {
        let tokens = batch.inputs.len();
        inputs[..tokens].copy_from_slice(batch.inputs);
        targets[..tokens].copy_from_slice(batch.targets);
        model.forward(ops, &MicroBatch { inputs: &inputs, targets: &targets, rows, losses_at: 0 }, losses)?;
        ops.download(losses, &mut host)?;
        // One running sum from first to last, so that the grouping into batches cannot show.
        sum = host[..tokens].iter().fold(sum, |sum, &loss| sum + f64::from(loss));
        done += batch.sequences;
        progress(done);
    }
    Ok(sum / set.tokens() as f64)
}
