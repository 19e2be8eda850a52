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

#[cfg(test)]
mod tests {
    use super::*;

    /// 124,475,904 parameters with the padded table, by hand; 6 · 12 · 768 · 1024 of attention.
    #[test]
    fn a_token_of_gpt2_124m_takes_803_mflop_and_a_table_that_is_looked_up_takes_none() {
        let gpt2 = Model::gpt2(12, 12, 768, 1024, 50_257);
        assert_eq!(flops_per_token(&gpt2, 1024), 6.0 * 124_475_904.0 + 6.0 * 12.0 * 768.0 * 1024.0);
        let untied = Model { tied_head: false, ..gpt2.clone() };
        assert_eq!(flops_per_token(&untied, 1024), flops_per_token(&gpt2, 1024));
        // Keys and values of 4 heads of 64 in place of 12: 2 · 8 · 64 rows fewer, of 768 weights and a bias.
        let grouped = Model { kv_heads: 4, ..gpt2.clone() };
        let fewer = 6.0 * 12.0 * (2.0 * 8.0 * 64.0) * 769.0;
        assert_eq!(flops_per_token(&grouped, 1024), flops_per_token(&gpt2, 1024) - fewer);
    }
}
