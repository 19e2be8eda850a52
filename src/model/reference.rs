//! GPT-2's forward pass in f64, written plainly over the f64 operations of the device tests: what the logits
//! of a device are held against, exactly or with every stored tensor rounded.

use super::weights::{Affine, Weights};
use crate::experiment::Model;
use crate::ops::testing::reference::{AttentionShape, attention, gelu, layernorm, linear};

/// The nearest bf16, ties to even.
pub fn bf16(x: f64) -> f64 {
    half::bf16::from_f32(x as f32).to_f64()
}

/// Logits (the first `vocab`) of the token after each of the last `last` of `tokens`, row after row.
/// `store` is applied to the weights and to each tensor that a device stores between two operations.
pub fn logits(
    config: &Model,
    weights: &Weights<Vec<f32>>,
    tokens: &[u16],
    last: usize,
    store: impl Fn(f64) -> f64,
) -> Vec<f32> {
    let (n, c) = (tokens.len(), config.channels);
    let stored = |values: &[f32]| -> Vec<f64> { values.iter().map(|x| store(f64::from(*x))).collect() };
    let keep = |values: Vec<f64>| -> Vec<f64> { values.into_iter().map(&store).collect() };
    let norm = |x: &[f64], layer: &Affine<Vec<f32>>| {
        keep(layernorm(x, &stored(&layer.weight), &stored(&layer.bias), c).0)
    };
    let project = |x: &[f64], layer: &Affine<Vec<f32>>, c_in: usize, c_out: usize| {
        linear(x, &stored(&layer.weight), Some(&stored(&layer.bias)), n, c_in, c_out)
    };
    let add = |x: &[f64], branch: &[f64]| keep(x.iter().zip(branch).map(|(x, b)| x + b).collect());

    let (wte, wpe) = (stored(&weights.wte), stored(&weights.wpe));
    let at = |i: usize| usize::from(tokens[i / c]) * c + i % c;
    let mut x = keep((0..n * c).map(|i| wte[at(i)] + wpe[i]).collect());
    let shape = AttentionShape { batch: 1, seq: n, heads: config.heads, head_size: c / config.heads };
    for w in &weights.layers {
        let qkv = keep(project(&norm(&x, &w.ln_1), &w.qkv, c, 3 * c));
        let branch = keep(project(&keep(attention(&qkv, shape).0), &w.attn_proj, c, c));
        x = add(&x, &branch);
        // Decoding applies GELU to the sum before it is rounded.
        let hidden = project(&norm(&x, &w.ln_2), &w.fc, c, 4 * c).into_iter().map(gelu).collect();
        x = add(&x, &keep(project(&keep(hidden), &w.fc_proj, 4 * c, c)));
    }
    let normed = norm(&x, &weights.ln_f);
    let rows = linear(&normed[(n - last) * c..], &wte, None, last, c, config.vocab_padded);
    let used = rows.chunks(config.vocab_padded).flat_map(|row| &row[..config.vocab]);
    used.map(|x| *x as f32).collect()
}
