//! Decoding: few rows, each the newest token of a text so far.
//!
//! The bits of a row depend on that row, its stream and its position alone, never on how many rows there
//! are: a text is the same whether it is written alone or beside others. They need not be the bits of the
//! operations over whole sequences. Families are those of the like operations in training: nothing plans
//! the speed of decoding.

use super::outline::Outlined;
use super::{ElementBytes, Family, LinearShape, Operation, Work};
use crate::ops::types::{Heads, Nonlinearity};

/// `out[i,:] = wte[ids[i],:] + wpe[positions[i],:]`; without `wpe` the bits of the token's row.
pub struct DecodeEmbedding<'a, B, I> {
    /// (n, C), activation.
    pub out: &'a mut B,
    /// (n).
    pub ids: &'a I,
    /// (n); not read without `wpe`.
    pub positions: &'a I,
    /// (V, C), parameter.
    pub wte: &'a B,
    /// (P, C), parameter.
    pub wpe: Option<&'a B>,
    /// n.
    pub rows: usize,
    /// C.
    pub channels: usize,
}

impl<B, I> Outlined<B> for DecodeEmbedding<'_, B, I> {}

impl<B, I> Operation for DecodeEmbedding<'_, B, I> {
    fn family(&self) -> Family {
        Family::Embedding
    }

    fn label(&self) -> String {
        "decode embedding".into()
    }

    fn work(&self, element: ElementBytes) -> Work {
        element.pass(3 * self.rows * self.channels)
    }
}

/// `out = x weightᵀ + bias`, then through `function`, which reads the sum before it is rounded. SwiGLU is not
/// among them: [`super::Activate`] follows.
pub struct DecodeLinear<'a, B> {
    /// (n, c_out), activation or f32.
    pub out: &'a mut B,
    /// (n, c_in), activation.
    pub x: &'a B,
    /// (c_out, c_in), parameter.
    pub weight: &'a B,
    /// (c_out), parameter.
    pub bias: Option<&'a B>,
    pub function: Option<Nonlinearity>,
    pub shape: LinearShape,
}

/// Why [`DecodeLinear`] with SwiGLU is refused, on every device.
pub(in crate::ops) const NOT_WITH_SWIGLU: &str = "SwiGLU is an operation of its own after decoding's layer";

impl<B> Outlined<B> for DecodeLinear<'_, B> {}

impl<B> Operation for DecodeLinear<'_, B> {
    fn family(&self) -> Family {
        Family::Linear
    }

    fn label(&self) -> String {
        format!("decode linear {} to {}", self.shape.c_in, self.shape.c_out)
    }

    fn work(&self, element: ElementBytes) -> Work {
        self.shape.forward(element)
    }
}

/// Keys and values of one layer, (S, KH, P, HS) each, activations: S streams of P positions.
pub struct KvCache<'a, B> {
    pub keys: &'a mut B,
    pub values: &'a mut B,
    /// P. Positions are below it.
    pub capacity: usize,
}

/// Which position of which stream each row of a decoding pass is.
pub struct RowPositions<'a, I> {
    /// (n).
    pub streams: &'a I,
    /// (n).
    pub positions: &'a I,
}

/// Writes the keys and values of `qkv` into the cache, then attends: row i sees the positions 0 to
/// `at.positions[i]` of its stream, the weighted values added in order of position. Rows of one stream may
/// come together, each sees those before it.
pub struct DecodeAttention<'a, B, I> {
    /// (n, NH, HS), activation.
    pub out: &'a mut B,
    pub cache: KvCache<'a, B>,
    /// (n, NH + 2 KH, HS), activation.
    pub qkv: &'a B,
    pub at: RowPositions<'a, I>,
    /// n.
    pub rows: usize,
    pub heads: Heads,
}

impl<B, I> Outlined<B> for DecodeAttention<'_, B, I> {}

impl<B, I> Operation for DecodeAttention<'_, B, I> {
    fn family(&self) -> Family {
        Family::Attention
    }

    fn label(&self) -> String {
        "decode attention".into()
    }

    /// Nothing is counted: the positions are known to the device alone.
    fn work(&self, _: ElementBytes) -> Work {
        Work::default()
    }
}
