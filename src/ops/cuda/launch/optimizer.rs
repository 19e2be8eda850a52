//! Launches of `adamw.cu`: the update of all tensors, and the sums of squares of all gradients.

use super::super::args::Element;
use super::super::args::{Act, F32, F64, In, Out, bindings};
use super::super::modules::{Geometry, Kernels};
use crate::ops::{AdamW, Result};

bindings! {
    "adamw.cu" {
        /// One row of the table that [`AdamwArgs`] points to.
        struct AdamwTensor {
            param: Out<Act>, master: Out<F32>, grad: In<F32>, adam_m: Out<F32>, adam_v: Out<F32>,
            length: u64, offset: u64, first: u64, weight_decay: f32, id: u32,
        }
        struct AdamwArgs {
            tensors: In<AdamwTensor>, step: u64, count: u32, learning_rate: f32, beta1: f32, beta2: f32,
            epsilon: f32, correction1: f32, correction2: f32, grad_scale: f32, rounding_key: [u32; 2],
        }
        /// One row of the table that [`SquaresArgs`] points to.
        struct SquaresTensor { data: In<F32>, length: u64, first: u64 }
        struct SquaresArgs {
            tensors: In<SquaresTensor>, partials: Out<F64>, sums: Out<F64>, chunks: u64, count: u32,
            unused: u32,
        }
        kernel ADAMW(AdamwArgs) = "adamw";
        kernel SQUARES_PARTIAL(SquaresArgs) = "sum_squares_partial";
        kernel SQUARES_REDUCE(SquaresArgs) = "sum_squares_reduce";
    }
}

impl Element for AdamwTensor {
    const C_NAME: &'static str = "AdamwTensor";
}

impl Element for SquaresTensor {
    const C_NAME: &'static str = "SquaresTensor";
}

/// Elements of a tensor that one block works on.
pub const CHUNK: u64 = 16_384;

/// Blocks that a tensor of `length` elements takes.
pub fn chunks(length: u64) -> u64 {
    length.div_ceil(CHUNK)
}

/// # Safety
/// `table` holds `count` rows whose `first` ascends in steps of [`chunks`], `blocks` in all, and whose
/// tensors are live.
pub unsafe fn adamw(k: &Kernels, table: u64, count: u32, blocks: u64, update: &AdamW) -> Result<()> {
    let args = AdamwArgs {
        tensors: In::at(table),
        step: update.step,
        count,
        learning_rate: update.learning_rate,
        beta1: update.beta1,
        beta2: update.beta2,
        epsilon: update.epsilon,
        correction1: update.correction1,
        correction2: update.correction2,
        grad_scale: update.grad_scale,
        rounding_key: update.rounding_key,
    };
    // SAFETY: the caller's promise.
    unsafe { k.launch("adamw", &ADAMW, Geometry::new(blocks, 256), &args) }
}

/// The sum that `sum_squares_reduce` computes from a tensor's partial sums, on the host: thread t of 256 adds
/// partials t, t + 256, …; 32 threads are added by a butterfly, the eight warps by index.
pub fn fold_squares(partials: &[f64]) -> f64 {
    let mut threads = [0.0f64; 256];
    for (i, partial) in partials.iter().enumerate() {
        threads[i % 256] += partial;
    }
    let warp = |lanes: &mut [f64]| {
        let mut step = 16;
        while step > 0 {
            // Lane 0 of the butterfly: its sums are those of a tree that folds the upper half onto the lower.
            for lane in 0..step {
                lanes[lane] += lanes[lane + step];
            }
            step /= 2;
        }
        lanes[0]
    };
    threads.chunks_mut(32).map(warp).reduce(|sum, warp| sum + warp).unwrap_or(0.0)
}

/// Sets `partials`, `blocks` f64: the first half of [`sum_squares`].
///
/// # Safety
/// As for [`sum_squares`].
pub unsafe fn chunk_squares(k: &Kernels, table: u64, partials: u64, count: u32, blocks: u64) -> Result<()> {
    let args = SquaresArgs {
        tensors: In::at(table),
        partials: Out::at(partials),
        sums: Out::at(0),
        chunks: blocks,
        count,
        unused: 0,
    };
    // SAFETY: the caller's promise.
    unsafe { k.launch("chunk_squares", &SQUARES_PARTIAL, Geometry::new(blocks, 256), &args) }
}

/// Sets `sums`, `count` f64.
///
/// # Safety
/// As for [`adamw`]; `partials` holds `blocks` f64.
pub unsafe fn sum_squares(
    k: &Kernels,
    table: u64,
    partials: u64,
    sums: u64,
    count: u32,
    blocks: u64,
) -> Result<()> {
    let args = SquaresArgs {
        tensors: In::at(table),
        partials: Out::at(partials),
        sums: Out::at(sums),
        chunks: blocks,
        count,
        unused: 0,
    };
    // SAFETY: the caller's promise.
    unsafe {
        k.launch("sum_squares", &SQUARES_PARTIAL, Geometry::new(blocks, 256), &args)?;
        k.launch("sum_squares", &SQUARES_REDUCE, Geometry::new(u64::from(count), 256), &args)
    }
}
