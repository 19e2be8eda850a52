//! The last matrix product, softmax and cross-entropy in one, so that the logits never exist whole.

use super::outline::Outlined;
use super::{ElementBytes, Family, Operation, Work, volume};
use crate::ops::types::{Vocab, Write};

/// What a classifier does beside softmax and cross-entropy. The default is neither.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LogitTerms {
    /// Every logit `x` counts as `cap tanh(x / cap)` wherever one is read, and its gradient is multiplied by
    /// `1 - tanh²` (Gemma Team, "Gemma 2", 2024). Positive and finite. An infinite logit counts as the cap.
    pub softcap: Option<f32>,
    /// `z`: what is differentiated is `loss + z lse²` in place of the loss, which pulls the softmax's
    /// denominator to 1 (Chowdhery et al., "PaLM", 2022). Losses are reported without it, so that the curves
    /// of runs with and without it compare.
    pub z_loss: f32,
}

/// Caps logits on the host as [`LogitTerms::softcap`] does on a device: `cap tanh(x / cap)`, in f64 by the
/// pinned `libm`, rounded once. Order and the places of equals stay, but for neighbours that round to one.
pub fn softcapped(logits: &mut [f32], cap: f32) {
    let cap = f64::from(cap);
    for x in logits {
        *x = (cap * libm::tanh(f64::from(*x) / cap)) as f32;
    }
}

/// Token losses without gradients: `losses[losses_at + i] = logsumexp(x_i wteᵀ) - (x_i wteᵀ)[target_i]`
/// over the first `vocab.used` columns, each logit capped where `terms` say so.
pub struct ClassifierLoss<'a, B, I> {
    /// f32.
    pub losses: &'a mut B,
    /// Where the losses of these rows begin.
    pub losses_at: usize,
    /// (n, C), activation.
    pub x: &'a B,
    /// (V, C), parameter.
    pub wte: &'a B,
    /// (n).
    pub targets: &'a I,
    /// n.
    pub rows: usize,
    /// C.
    pub channels: usize,
    pub vocab: Vocab,
    /// The z-loss is no part of the losses.
    pub terms: LogitTerms,
}

impl<B, I> Outlined<B> for ClassifierLoss<'_, B, I> {}

impl<B, I> Operation for ClassifierLoss<'_, B, I> {
    fn family(&self) -> Family {
        Family::Classifier
    }

    fn label(&self) -> String {
        "classifier, loss alone".into()
    }

    fn work(&self, element: ElementBytes) -> Work {
        let ClassifierLoss { rows, channels, vocab, .. } = *self;
        Work {
            flops: 2.0 * volume(&[rows, channels, vocab.padded]),
            bytes: element.moved(rows * channels, channels * vocab.padded),
        }
    }
}

/// Losses as [`ClassifierLoss`], and the gradient of `scale` times their sum, with the z-loss of `terms`
/// added to it: that of a logit is `(softmax scale (1 + 2 z lse) - [target] scale) (1 - tanh²)`, the last
/// factor with a soft-cap alone. Works through `x` in chunks of rows that the shape fixes; `dwte` is summed
/// over chunks in order.
pub struct Classifier<'a, B, I> {
    /// f32.
    pub losses: &'a mut B,
    /// Where the losses of these rows begin.
    pub losses_at: usize,
    /// (n, 2), f32; set: of each row's softmax the base b and the sum s, so that the share of a logit x,
    /// capped if it is, is `2^(x log2 e - b) / s`.
    pub denominators: &'a mut B,
    /// (n, C), activation; set.
    pub dx: &'a mut B,
    /// (V, C), f32; written as `write` says. Rows past `vocab.used` get zeros.
    pub dwte: &'a mut B,
    /// (n, C), activation.
    pub x: &'a B,
    /// (V, C), parameter.
    pub wte: &'a B,
    /// (n).
    pub targets: &'a I,
    /// n.
    pub rows: usize,
    /// C.
    pub channels: usize,
    pub vocab: Vocab,
    pub terms: LogitTerms,
    pub scale: f32,
    pub write: Write,
}

impl<B, I> Operation for Classifier<'_, B, I> {
    fn family(&self) -> Family {
        Family::Classifier
    }

    fn label(&self) -> String {
        "classifier, forward and backward".into()
    }

    fn work(&self, element: ElementBytes) -> Work {
        let Classifier { rows, channels, vocab, .. } = *self;
        Work {
            flops: 6.0 * volume(&[rows, channels, vocab.padded]),
            bytes: element.moved(2 * rows * channels, 2 * channels * vocab.padded)
                + 4.0 * (channels * vocab.padded) as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_soft_cap_leaves_small_logits_bends_large_ones_and_keeps_their_order() {
        let mut logits = [0.0, 1e-4, -1.0, 2.0, 30.0, -1e9, f32::INFINITY, f32::NAN];
        softcapped(&mut logits, 30.0);
        assert_eq!(logits[..2], [0.0, 1e-4]);
        assert_eq!(logits[2..5], [-0.999_629_8, 1.997_042_3, 22.847_824]);
        assert_eq!(logits[5..7], [-30.0, 30.0]);
        assert!(logits[7].is_nan());
        let mut ascending: Vec<f32> = (-4000..4000).map(|i| i as f32 / 100.0).collect();
        softcapped(&mut ascending, 2.0);
        assert!(ascending.is_sorted() && ascending.iter().all(|x| x.abs() <= 2.0));
    }
}
