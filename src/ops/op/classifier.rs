//! The last matrix product, softmax and cross-entropy in one, so that the logits never exist whole.

use super::outline::Outlined;
use super::{ElementBytes, Family, Operation, Work};
use crate::ops::types::{Vocab, Write};

/// Token losses without gradients: `losses[losses_at + i] = logsumexp(x_i wteᵀ) - (x_i wteᵀ)[target_i]`
/// over the first `vocab.used` columns.
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
            flops: 2.0 * (rows * channels * vocab.padded) as f64,
            bytes: element.moved(rows * channels, channels * vocab.padded),
        }
    }
}

/// Losses as [`ClassifierLoss`], and the gradient of `scale` times their sum. Works through `x` in chunks of
/// rows that the shape fixes; `dwte` is summed over chunks in order.
pub struct Classifier<'a, B, I> {
    /// f32.
    pub losses: &'a mut B,
    /// Where the losses of these rows begin.
    pub losses_at: usize,
    /// (n), f32; set: the logarithm of each row's sum of exponentials.
    pub lse: &'a mut B,
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
            flops: 6.0 * (rows * channels * vocab.padded) as f64,
            bytes: element.moved(2 * rows * channels, 2 * channels * vocab.padded)
                + 4.0 * (channels * vocab.padded) as f64,
        }
    }
}
