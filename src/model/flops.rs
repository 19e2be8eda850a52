//! Floating-point operations of a token: the count behind MFU.

use super::weights::Weights;
use crate::experiment::Model;

/// Floating-point operations to train on one token: `6 N + 6 L C T`, N all parameters, as
/// llm.c counts (PaLM's formula with causal attention).
pub fn flops_per_token(model: &Model, seq_len: usize) -> f64 {
    let n = Weights::of(model).parameters() as f64;
    6.0 * n + 6.0 * (model.layers * model.channels * seq_len) as f64
}
