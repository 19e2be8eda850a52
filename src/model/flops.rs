//! Floating-point operations of a token: the count behind MFU.

use super::weights::Weights;
use crate::experiment::Model;

/// Floating-point operations to train on one token: `6 N + 6 L C T`, N all parameters, as
/// llm.c counts (PaLM's formula with causal attention). A token table that is not the classifier too is only
/// looked up, and not counted.
pub fn flops_per_token(model: &Model, seq_len: usize) -> f64 {
    let weights = Weights::of(model);
    let looked_up = if weights.lm_head.is_some() { weights.wte.len as u64 } else { 0 };
    let n = (weights.parameters() - looked_up) as f64;
    6.0 * n + attention_flops(model.layers * model.channels, seq_len)
}

/// Those of them that attention has in sequences of `seq_len` tokens, of L·C channels of all layers.
pub fn attention_flops(channels: usize, seq_len: usize) -> f64 {
    6.0 * (channels * seq_len) as f64
}
