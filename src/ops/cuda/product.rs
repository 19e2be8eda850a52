//! A matrix product as a value: its operands, its shape and what is fused with it, whichever library computes
//! it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ops::Nonlinearity;

/// The three products of a linear layer with weight (c_out, c_in), all matrices row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Product {
    /// out (rows, c_out) = x weightᵀ.
    Forward,
    /// dx (rows, c_in) = dout weight.
    BackwardInput,
    /// dweight (c_out, c_in) = doutᵀ x.
    BackwardWeight,
}

/// Element types of inputs and output, and the unit that multiplies. Sums are always fp32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Types {
    /// bf16 in, bf16 out.
    Bf16,
    /// bf16 in, fp32 out.
    Bf16ToF32,
    /// fp32 in and out, fp32 products.
    F32,
    /// fp32 in and out, TF32 products.
    Tf32,
}

/// What the operation does beside the product. What cuBLASLt cannot fuse (what has `Then` in its name, and
/// the gradient of a bias), kernels of their own do after its product; our own products do all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Epilogue {
    Nothing,
    /// Adds a bias of length c_out.
    Bias,
    /// Adds a bias, stores the sum beside, and applies GELU.
    BiasGelu,
    /// Multiplies by the derivative of GELU at the stored pre-activation.
    GeluGradient,
    /// Adds a bias, rounds and stores the sum beside, and applies GELU to what was stored.
    BiasThenGelu,
    /// Rounds, multiplies by the derivative of GELU at the stored pre-activation, and adds the columns of the
    /// result.
    ThenGeluGradient,
    /// Adds the columns of `dout` beside: the gradient of the bias.
    BiasGradient,
    /// [`Epilogue::BiasGelu`] without bias.
    Gelu,
    /// [`Epilogue::BiasThenGelu`] without bias.
    ThenGelu,
    /// Adds a bias, rounds and stores the sum beside, and applies SwiGLU to what was stored: half as wide.
    BiasThenSwiglu,
    /// [`Epilogue::BiasThenSwiglu`] without bias.
    ThenSwiglu,
    /// Rounds, and makes the gradient of SwiGLU of it and of the stored pre-activation: twice as wide.
    ThenSwigluGradient,
    /// [`Epilogue::BiasThenGelu`] with squared ReLU.
    BiasThenRelu2,
    /// [`Epilogue::BiasThenRelu2`] without bias.
    ThenRelu2,
    /// Rounds, and multiplies by the derivative of squared ReLU at the stored pre-activation.
    ThenRelu2Gradient,
    /// Powers of 2 for a softmax in place of the product, and what each row's add up to.
    Softmax,
    /// Multiplies each row by a number of its own.
    RowFactors,
}

impl Epilogue {
    /// Whether a bias is added to the product.
    pub fn adds_bias(self) -> bool {
        use Epilogue::{Bias, BiasGelu, BiasThenGelu, BiasThenRelu2, BiasThenSwiglu};
        matches!(self, Bias | BiasGelu | BiasThenGelu | BiasThenRelu2 | BiasThenSwiglu)
    }

    /// Whether cuBLASLt applies GELU or its derivative, to the sum before it is rounded.
    pub fn fuses_gelu(self) -> bool {
        matches!(self, Epilogue::BiasGelu | Epilogue::Gelu | Epilogue::GeluGradient)
    }

    /// The function that is applied, itself or its derivative, to what was rounded.
    pub fn then(self) -> Option<Nonlinearity> {
        use Epilogue::{BiasThenGelu, ThenGelu, ThenGeluGradient};
        use Epilogue::{BiasThenRelu2, ThenRelu2, ThenRelu2Gradient};
        use Epilogue::{BiasThenSwiglu, ThenSwiglu, ThenSwigluGradient};
        match self {
            BiasThenGelu | ThenGelu | ThenGeluGradient => Some(Nonlinearity::Gelu),
            BiasThenRelu2 | ThenRelu2 | ThenRelu2Gradient => Some(Nonlinearity::SquaredRelu),
            BiasThenSwiglu | ThenSwiglu | ThenSwigluGradient => Some(Nonlinearity::Swiglu),
            Epilogue::Nothing | Epilogue::Bias | Epilogue::BiasGradient => None,
            Epilogue::BiasGelu | Epilogue::Gelu | Epilogue::GeluGradient => None,
            Epilogue::Softmax | Epilogue::RowFactors => None,
        }
    }
}

/// The key of a plan: all that the choice of an algorithm depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GemmKey {
    pub product: Product,
    pub rows: u64,
    pub c_in: u64,
    pub c_out: u64,
    pub types: Types,
    pub epilogue: Epilogue,
}

impl GemmKey {
    /// Multiplications and additions.
    pub fn flops(&self) -> f64 {
        2.0 * self.rows as f64 * self.c_in as f64 * self.c_out as f64
    }
}

impl fmt::Display for GemmKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let GemmKey { product, rows, c_in, c_out, types, epilogue } = self;
        write!(f, "{product:?} rows {rows}, {c_in} -> {c_out}, {types:?}, {epilogue:?}")
    }
}

/// How a product of `gemm_hopper.cu` is cut into pieces of work. Changes no bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Tiling {
    /// Columns of a tile; its rows are 128.
    pub width: u32,
    /// Blocks that share what they load: 1 or 2.
    pub cluster: u32,
    /// Tiles above each other that are worked on before the next column.
    pub group: u32,
}

/// Where a product's matrices lie, by their role in [`Product`].
#[derive(Clone, Copy)]
pub struct Operands {
    /// The left factor: `x`, `dout`, `dout`.
    pub left: u64,
    /// The right factor: `weight`, `weight`, `x`.
    pub right: u64,
    /// 0 with `Softmax`: the powers are not kept.
    pub out: u64,
    /// Adds to `out` instead of replacing it.
    pub add: bool,
    /// For the epilogues that have one, else 0.
    pub bias: u64,
    /// The pre-activation: written by the epilogues with a function, read by those with its gradient.
    pub pre: u64,
    /// For the function of `pre` beside its gradient, by our own products; else 0.
    pub again: u64,
    /// Partial column sums of our own products with `ThenGeluGradient` or `BiasGradient`, and with `Softmax`
    /// what it leaves of stripes, (stripes, rows, 2) f32; else 0.
    pub sums: u64,
    /// f32: with `RowFactors` the factors (rows), with `Softmax` the bases, the first numbers of (rows, 2);
    /// else 0.
    pub row_terms: u64,
    /// With `Softmax` alone.
    pub softmax: Option<SoftmaxOperands>,
}

/// What the product of a classifier needs to end in the powers of a softmax.
#[derive(Clone, Copy)]
pub struct SoftmaxOperands {
    /// Columns that mean a token.
    pub used: usize,
    /// Of the logits, soft.
    pub cap: Option<f32>,
    /// (rows), u16: a column of each row.
    pub targets: u64,
    /// (rows), f32: gets the product there, uncapped.
    pub at_targets: u64,
    /// Of a word on the device: where that is 0, nothing is done. 0: always.
    pub overflow: u64,
}

impl Operands {
    /// A product that replaces `out`, without epilogue.
    pub fn new(left: u64, right: u64, out: u64) -> Operands {
        Operands {
            left,
            right,
            out,
            add: false,
            bias: 0,
            pre: 0,
            again: 0,
            sums: 0,
            row_terms: 0,
            softmax: None,
        }
    }

    /// Without the addresses that cuBLASLt does not use under `epilogue`.
    pub fn only(self, epilogue: Epilogue) -> Operands {
        let bias = epilogue.adds_bias();
        Operands {
            bias: if bias { self.bias } else { 0 },
            pre: if epilogue.fuses_gelu() { self.pre } else { 0 },
            ..self
        }
    }
}
