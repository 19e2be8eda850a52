//! The optimizer: the gradient norm, AdamW, and the average of the weights.

use std::ops::Range;

use super::outline::Outlined;
use super::{ElementBytes, Family, Operation, Work};

/// Sum of squares of each f32 tensor in f64, one number a tensor, over fixed chunks of
/// [`crate::ops::Ops::chunk`] elements that are added in order. The caller adds the tensors in order.
/// Waits for the device.
pub struct SumSquares<'a, B> {
    pub tensors: &'a [&'a B],
}

impl<B> Outlined<B> for SumSquares<'_, B> {}

impl<B> Operation for SumSquares<'_, B> {
    fn family(&self) -> Family {
        Family::GradientNorm
    }

    fn label(&self) -> String {
        "gradient norm".into()
    }

    /// Nothing is counted: the lengths are known to the device alone.
    fn work(&self, _: ElementBytes) -> Work {
        Work::default()
    }
}

/// The sums of squares of the chunks of parts of f32 tensors, part after part: what [`SumSquares`] adds up.
/// Each part starts at a multiple of [`crate::ops::Ops::chunk`] and ends at one or with its tensor. Waits
/// for the device.
pub struct ChunkSquares<'a, B> {
    pub parts: &'a [(&'a B, Range<usize>)],
}

impl<B> Outlined<B> for ChunkSquares<'_, B> {}

impl<B> Operation for ChunkSquares<'_, B> {
    fn family(&self) -> Family {
        Family::GradientNorm
    }

    fn label(&self) -> String {
        "gradient norm".into()
    }

    fn work(&self, _: ElementBytes) -> Work {
        Work::bytes(4.0 * self.parts.iter().map(|(_, part)| part.len()).sum::<usize>() as f64)
    }
}

/// One parameter tensor with all that AdamW reads and writes.
///
/// The update covers the elements `at..at + adam_m.len()` of the tensor: all of it, or the part of it whose
/// moments are kept here. `param` holds the whole tensor, the moments and the master that part alone, and
/// `grad` either. `id` numbers the tensor in the model's order and enters the counter of stochastic rounding.
pub struct ParamSlot<'a, B> {
    pub id: u32,
    /// First element of the part, a multiple of [`crate::ops::Ops::chunk`].
    pub at: usize,
    pub param: &'a mut B,
    /// fp32 copy that takes the update, when `param` is narrower and masters are kept.
    pub master: Option<&'a mut B>,
    pub grad: &'a B,
    /// Where in `grad` the part begins: `at`, or 0 where `grad` holds the part alone.
    pub grad_at: usize,
    pub adam_m: &'a mut B,
    pub adam_v: &'a mut B,
    /// Weight decay of this tensor: the experiment's for 2-D weights, else 0.
    pub weight_decay: f32,
}

/// Scalars of one AdamW update, computed on the host in f64 and rounded once.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    pub learning_rate: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub epsilon: f32,
    /// `1 / (1 - beta1^t)` and `1 / (1 - beta2^t)`, t the number of updates including this one.
    pub correction1: f32,
    pub correction2: f32,
    /// Every gradient is multiplied by this first: the clip factor, at most 1.
    pub grad_scale: f32,
    /// Key and step of stochastic rounding, used when a narrow `param` has no master.
    pub rounding_key: [u32; 2],
    pub step: u64,
}

/// AdamW (Loshchilov and Hutter 2019) over all tensors: decoupled decay, bias-corrected moments, epsilon
/// outside the root.
pub struct AdamWUpdate<'a, B> {
    pub slots: Vec<ParamSlot<'a, B>>,
    pub scalars: AdamW,
}

impl<B> Outlined<B> for AdamWUpdate<'_, B> {}

impl<B> Operation for AdamWUpdate<'_, B> {
    fn family(&self) -> Family {
        Family::Optimizer
    }

    fn label(&self) -> String {
        "AdamW".into()
    }

    /// Nothing is counted: the lengths are known to the device alone.
    fn work(&self, _: ElementBytes) -> Work {
        Work::default()
    }
}

/// One tensor of the average of the weights. With `w` the master where there is one, else the parameter,
///
/// ```text
/// average = fma(rate, w - average, average)
/// ```
///
/// for the elements `at..at + average.len()` of the parameter; the difference is rounded to f32.
pub struct Average<'a, B> {
    /// f32: the part of the tensor that is averaged here.
    pub average: &'a mut B,
    /// The whole parameter.
    pub param: &'a B,
    /// First element of the part, a multiple of [`crate::ops::Ops::chunk`].
    pub at: usize,
    /// fp32 master of the part, where masters are kept.
    pub master: Option<&'a B>,
    /// The weight of what is added, above 0 and at most 1.
    pub rate: f32,
}

impl<B> Outlined<B> for Average<'_, B> {}

impl<B> Operation for Average<'_, B> {
    fn family(&self) -> Family {
        Family::Optimizer
    }

    fn label(&self) -> String {
        "average of weights".into()
    }

    /// Nothing is counted: the length is known to the device alone.
    fn work(&self, _: ElementBytes) -> Work {
        Work::default()
    }
}
