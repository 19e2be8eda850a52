//! The shapes that the steps of an experiment have.

use crate::experiment::Experiment;
use crate::model::gpt2::scratch_shape;
use crate::ops::{Rows, ScratchShape};

/// The largest shapes of an experiment's training, and its shortest pieces, for which attention needs more.
pub fn training_shape(experiment: &Experiment) -> ScratchShape {
    let rows = Rows { batch: experiment.batch.micro, seq: experiment.batch.seq_len };
    ScratchShape { least_seq: experiment.batch.seq_len_of(0), ..scratch_shape(&experiment.model, rows, true) }
}

/// The rows of each micro-batch of a step.
pub fn rows_of(experiment: &Experiment, step: u64) -> Rows {
    let [batch, seq] = experiment.pieces_of(step);
    Rows { batch, seq }
}
