//! Launches of `classifier_hopper.cu`: what surrounds the product that ends in the powers of a softmax.

use super::super::args::{Bf16, F32, F32x2, In, Out, U16, U32, bindings};
use super::super::modules::{Geometry, Kernels};
use super::gemm_hopper::STRIPE;
use crate::ops::{LogitTerms, Result, Vocab};

bindings! {
    "classifier_hopper.cu" as HOPPER {
        struct SoftmaxBasesArgs {
            x: In<Bf16>, weight: In<Bf16>, targets: In<U16>, denominators: Out<F32x2>,
            overflow: Out<U32>, n: u32, channels: u32, used: u32, cap: f32,
        }
        struct SoftmaxRowsArgs {
            powers: Out<Bf16>, scaled: Out<Bf16>, factors: Out<F32>, losses: Out<F32>,
            denominators: Out<F32x2>, stripes: In<F32x2>, logits: In<F32>, x: In<Bf16>, targets: In<U16>,
            overflow: Out<U32>, padded: u64, n: u32, channels: u32, stripe_count: u32, second: u32,
            gradient: u32, scale: f32, cap: f32, z_loss: f32,
        }
        kernel SOFTMAX_BASES(SoftmaxBasesArgs) = "softmax_bases";
        kernel SOFTMAX_ROWS(SoftmaxRowsArgs) = "softmax_rows";
    }
}

/// Bytes that the product leaves of its stripes.
pub fn stripes_bytes(rows: u64, padded: u64) -> u64 {
    8 * rows * padded.div_ceil(STRIPE)
}

/// What there is of each row beside the stripes, in one piece of scratch.
#[derive(Clone, Copy)]
pub struct RowScratch {
    /// Of a word: whether any row's powers have to be made again.
    pub overflow: u64,
    /// (n), f32: the logits of targets, by the product.
    pub logits: u64,
    /// (n), f32: what a row's gradient is multiplied by.
    pub factors: u64,
    /// (n, 2), f32: for where the caller keeps none.
    pub denominators: u64,
}

impl RowScratch {
    /// Bytes for so many rows.
    pub fn bytes(rows: u64) -> u64 {
        256 + 16 * rows.next_multiple_of(64)
    }

    /// Where things lie in [`Self::bytes`] bytes.
    pub fn at(address: u64, rows: u64) -> RowScratch {
        let column = 4 * rows.next_multiple_of(64);
        let logits = address + 256;
        let factors = logits + column;
        RowScratch { overflow: address, logits, factors, denominators: factors + column }
    }
}

/// One chunk: the addresses of what belongs to its rows.
#[derive(Clone, Copy)]
pub struct PowersChunk {
    pub rows: u64,
    pub channels: u64,
    pub vocab: Vocab,
    pub terms: LogitTerms,
    /// (n, C)
    pub x: u64,
    /// (V, C)
    pub weight: u64,
    /// (n)
    pub targets: u64,
    /// (n)
    pub losses: u64,
    /// (n, 2)
    pub denominators: u64,
    pub scratch: RowScratch,
    /// [`stripes_bytes`]
    pub stripes: u64,
}

/// What the gradients of a chunk are made of.
#[derive(Clone, Copy)]
pub struct PowersGradient {
    /// (n, V)
    pub powers: u64,
    /// (n, C): `x` times the factors of its rows.
    pub scaled: u64,
    pub scale: f32,
}

/// The bases of rows, by the logits of their targets.
///
/// # Safety
/// The chunk's addresses hold what their fields say.
pub unsafe fn softmax_bases(k: &Kernels, op: &'static str, chunk: &PowersChunk) -> Result<()> {
    k.row_length(op, chunk.channels as usize)?;
    let args = SoftmaxBasesArgs {
        x: In::at(chunk.x),
        weight: In::at(chunk.weight),
        targets: In::at(chunk.targets),
        denominators: Out::at(chunk.denominators),
        overflow: Out::at(chunk.scratch.overflow),
        n: chunk.rows as u32,
        channels: chunk.channels as u32,
        used: chunk.vocab.used as u32,
        cap: chunk.terms.softcap.unwrap_or(0.0),
    };
    // SAFETY: the caller's promise.
    unsafe { k.launch(op, &SOFTMAX_BASES, Geometry::new(chunk.rows.div_ceil(8), 256), &args) }
}

/// Losses, denominators and, where asked for, what the gradient's products need. `second`: the turn that
/// [`RowScratch::overflow`] asks for.
///
/// # Safety
/// As for [`softmax_bases`], and the product has left its stripes and, for a gradient, its powers.
pub unsafe fn softmax_rows(
    k: &Kernels,
    op: &'static str,
    chunk: &PowersChunk,
    gradient: Option<PowersGradient>,
    second: bool,
) -> Result<()> {
    let to = |address: fn(&PowersGradient) -> u64| gradient.as_ref().map_or(0, address);
    let args = SoftmaxRowsArgs {
        powers: Out::at(to(|gradient| gradient.powers)),
        scaled: Out::at(to(|gradient| gradient.scaled)),
        factors: Out::at(chunk.scratch.factors),
        losses: Out::at(chunk.losses),
        denominators: Out::at(chunk.denominators),
        stripes: In::at(chunk.stripes),
        logits: In::at(chunk.scratch.logits),
        x: In::at(chunk.x),
        targets: In::at(chunk.targets),
        overflow: Out::at(chunk.scratch.overflow),
        padded: chunk.vocab.padded as u64,
        n: chunk.rows as u32,
        channels: chunk.channels as u32,
        stripe_count: (chunk.vocab.padded as u64).div_ceil(STRIPE) as u32,
        second: u32::from(second),
        gradient: u32::from(gradient.is_some()),
        scale: gradient.map_or(0.0, |gradient| gradient.scale),
        cap: chunk.terms.softcap.unwrap_or(0.0),
        z_loss: chunk.terms.z_loss,
    };
    // SAFETY: the caller's promise.
    unsafe { k.launch(op, &SOFTMAX_ROWS, Geometry::new(chunk.rows.div_ceil(32), 256), &args) }
}
