//! The model's forward pass in f64, written plainly over the f64 operations of the device tests: the logits
//! of a device are compared with it, exact or with every stored tensor rounded.

use super::gpt2::heads;
use super::init::initial_values;
use super::weights::{Affine, ParamSpec, Weights};
use crate::experiment::{ActivationKind, Model, NormKind, PositionKind};
use crate::ops::testing::reference::{attention, gelu, layernorm, linear};
use crate::ops::{DeviceError, Rows};
use crate::rng::Key;

/// How far a device in bf16 may be from f64, in units of what rounding every stored tensor to the nearest
/// bf16 does to this model. A device rounds the same tensors, once each; the order of its sums in fp32
/// decides only which way a number near a tie falls, so that its error is another draw from the same
/// distribution. A test below shows how little draws differ.
pub const ROUNDINGS: f64 = 2.0;

/// A model that is quick on any device, and not divisible where it need not be.
pub fn small_model() -> Model {
    Model::gpt2(3, 2, 128, 160, 500)
}

/// The small model, and others of its sizes.
pub fn small_models() -> Vec<Model> {
    let bare = Model { bias: false, qk_norm: true, tied_head: false, ..small_model() };
    variants(small_model()).into_iter().chain([bare]).collect()
}

/// A model of GPT-2, and others of its sizes that between them have every part that a block may be made of.
pub fn variants(gpt2: Model) -> Vec<Model> {
    let modern = Model {
        norm: NormKind::Rmsnorm,
        positions: PositionKind::Rotary,
        activation: ActivationKind::Swiglu,
        bias: false,
        tied_head: false,
        qk_norm: true,
        ..gpt2.clone()
    };
    let rotary = Model { kv_heads: 1, positions: PositionKind::Rotary, rope_theta: 500.0, ..gpt2.clone() };
    let relu2 = Model {
        activation: ActivationKind::Relu2,
        norm: NormKind::Rmsnorm,
        logit_softcap: 5.0,
        ..gpt2.clone()
    };
    vec![gpt2, modern, rotary, relu2]
}

/// A model of GPT-2's vocabulary and context.
pub fn gpt2(layers: usize, heads: usize, channels: usize) -> Model {
    Model::gpt2(layers, heads, channels, 1024, 50_257)
}

/// Weights as they start but for larger queries, keys and values, so that attention is not flat.
pub fn steep_weights(config: &Model) -> Weights<Vec<f32>> {
    let values = |spec: &ParamSpec| {
        let scale = if spec.name.ends_with("c_attn.weight") { 5.0 } else { 1.0 };
        initial_values(spec, 3).into_iter().map(|x| scale * x).collect()
    };
    Weights::of(config).try_map(|spec| Ok::<_, DeviceError>(values(spec))).expect("numbers")
}

/// Texts of many lengths, up to the small model's context. Two of one length read 48 tokens before the last
/// four, which are passes of 32 and of 16 rows in turns.
pub fn texts(config: &Model) -> Vec<Vec<u16>> {
    let text = |(len, number): (u64, u64)| {
        let key = Key::new(number, "decoding");
        (0..len).map(|i| (key.uniform(0, i) * config.vocab as f64) as u16).collect()
    };
    [160, 97, 5, 64, 33, 70, 80, 12, 41, 52, 52].into_iter().zip(0..).map(text).collect()
}

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
    let bias = |layer: &Affine<Vec<f32>>| layer.bias.as_deref().map(stored);
    let norm = |x: &[f64], layer: &Affine<Vec<f32>>| {
        let normed = match config.norm {
            NormKind::Layernorm => {
                layernorm(x, &stored(&layer.weight), &bias(layer).unwrap_or(vec![0.0; c]), c).0
            }
            NormKind::Rmsnorm => rmsnorm(x, &stored(&layer.weight), bias(layer).as_deref()),
        };
        keep(normed)
    };
    let project = |x: &[f64], layer: &Affine<Vec<f32>>, c_in: usize, c_out: usize| {
        linear(x, &stored(&layer.weight), bias(layer).as_deref(), n, c_in, c_out)
    };
    let add = |x: &[f64], branch: &[f64]| keep(x.iter().zip(branch).map(|(x, b)| x + b).collect());

    let wte = stored(&weights.wte);
    let wpe = weights.wpe.as_deref().map_or(vec![0.0; n * c], stored);
    let at = |i: usize| usize::from(tokens[i / c]) * c + i % c;
    let mut x = keep((0..n * c).map(|i| wte[at(i)] + wpe[i]).collect());
    let hs = config.head_size();
    let (rows, heads) = (Rows { batch: 1, seq: n }, heads(config));
    let keys = c..c + heads.kv_channels();
    for w in &weights.layers {
        let mut qkv = keep(project(&norm(&x, &w.ln_1), &w.qkv, c, heads.qkv_channels()));
        for (position, row) in qkv.chunks_mut(heads.qkv_channels()).enumerate() {
            let parts = [(0..c, &w.head_norms.query), (keys.clone(), &w.head_norms.key)];
            for (columns, weight) in parts {
                let part = &mut row[columns];
                // Normed and turned in one pass, or one of the two, or neither.
                if let Some(weight) = weight {
                    let weight = stored(weight);
                    part.chunks_mut(hs).for_each(|head| {
                        head.copy_from_slice(&rmsnorm(head, &weight, None));
                    });
                }
                if config.positions == PositionKind::Rotary {
                    part.chunks_mut(hs).for_each(|head| rotate(head, position, config.rope_theta));
                }
                if weight.is_some() || config.positions == PositionKind::Rotary {
                    part.iter_mut().for_each(|x| *x = store(*x));
                }
            }
        }
        let branch = keep(project(&keep(attention(&qkv, rows, heads).0), &w.attn_proj, c, c));
        x = add(&x, &branch);
        let wide = project(&norm(&x, &w.ln_2), &w.fc, c, config.mlp_inputs());
        let hidden: Vec<f64> = match config.activation {
            // Decoding applies these two to the sum before it is rounded.
            ActivationKind::Gelu => wide.into_iter().map(gelu).collect(),
            ActivationKind::Relu2 => wide.into_iter().map(|x| x.max(0.0) * x.max(0.0)).collect(),
            ActivationKind::Swiglu => {
                keep(wide).chunks(2).map(|pair| pair[0] / (1.0 + libm::exp(-pair[0])) * pair[1]).collect()
            }
        };
        x = add(&x, &keep(project(&keep(hidden), &w.fc_proj, config.mlp_channels(), c)));
    }
    let normed = norm(&x, &weights.ln_f);
    let head = stored(weights.classifier());
    let rows = linear(&normed[(n - last) * c..], &head, None, last, c, config.vocab_padded);
    let used = rows.chunks(config.vocab_padded).flat_map(|row| &row[..config.vocab]);
    let cap = config.logit_softcap;
    used.map(|x| if cap > 0.0 { (cap * libm::tanh(x / cap)) as f32 } else { *x as f32 }).collect()
}

/// `x / sqrt(mean(x²) + 1e-5) weight + bias` of each row as long as `weight`.
fn rmsnorm(x: &[f64], weight: &[f64], bias: Option<&[f64]>) -> Vec<f64> {
    let width = weight.len();
    let row = |row: &[f64]| -> Vec<f64> {
        let rms = (row.iter().map(|x| x * x).sum::<f64>() / width as f64 + 1e-5).sqrt();
        (0..width).map(|i| row[i] / rms * weight[i] + bias.map_or(0.0, |bias| bias[i])).collect()
    };
    x.chunks(width).flat_map(row).collect()
}

/// Turns neighbouring channels of a head by `position theta^(-2i/HS)`.
fn rotate(head: &mut [f64], position: usize, theta: f64) {
    let size = head.len() as f64;
    for (i, pair) in head.chunks_mut(2).enumerate() {
        let angle = position as f64 * libm::pow(theta, -2.0 * i as f64 / size);
        let (cos, sin) = (libm::cos(angle), libm::sin(angle));
        let (a, b) = (pair[0], pair[1]);
        (pair[0], pair[1]) = (a * cos - b * sin, a * sin + b * cos);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn distance(a: &[f32], b: &[f32]) -> f64 {
        assert_eq!(a.len(), b.len());
        let square = |x: f64| x * x;
        let off: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
        (off / b.iter().map(|b| square(f64::from(*b))).sum::<f64>()).sqrt()
    }

    /// Each number is moved by up to four units in the last place of fp32 before it is rounded to bf16, as
    /// another order of the sums would move it.
    #[test]
    fn draws_of_rounding_errors_are_far_nearer_to_each_other_than_the_bound_on_a_device() {
        for config in small_models() {
            compare_draws(&config);
        }
    }

    fn compare_draws(config: &Model) {
        let weights = steep_weights(config);
        for text in texts(config) {
            let exact = logits(config, &weights, &text, 4, |x| x);
            let nearest = distance(&logits(config, &weights, &text, 4, bf16), &exact);
            assert!(nearest > 1e-3, "rounding shows: {nearest:.1e}");
            for draw in 0..3 {
                let (key, count) = (Key::new(draw, "rounding"), Cell::new(0));
                let moved = |x: f64| {
                    count.set(count.get() + 1);
                    bf16(x * (1.0 + (key.uniform(0, count.get()) - 0.5) * 2f64.powi(-20)))
                };
                let other = distance(&logits(config, &weights, &text, 4, moved), &exact);
                let ratio = other / nearest;
                println!("{} tokens: {nearest:.1e}, then {other:.1e}, {ratio:.2} times", text.len());
                // Half of the way to the bound.
                assert!(ratio < 1.0 + (ROUNDINGS - 1.0) / 2.0, "{} tokens: {ratio:.2}", text.len());
            }
        }
    }
}
