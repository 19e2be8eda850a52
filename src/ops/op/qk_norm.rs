//! RMSNorm of each head's queries and keys (Dehghani et al. 2023; as in Qwen3), epsilon 1e-5.

use super::{ElementBytes, Family, Operation, Work};
use crate::ops::types::{Heads, Write};

/// `out = x rstd weight` for each head's HS elements of queries and of keys, `rstd = 1/sqrt(mean(x²) + eps)`;
/// values are copied.
///
/// Sums over a head have an order that each device documents; it depends on HS alone.
pub struct QkNorm<'a, B> {
    /// (N, 3, NH, HS), activation.
    pub out: &'a mut B,
    /// (N, 2, NH), f32: of queries, then of keys.
    pub rstd: &'a mut B,
    /// (N, 3, NH, HS), activation.
    pub x: &'a B,
    /// (HS), parameter: shared by all heads.
    pub q_weight: &'a B,
    /// (HS), parameter.
    pub k_weight: &'a B,
    /// N.
    pub rows: usize,
    pub heads: Heads,
}

impl<B> Operation for QkNorm<'_, B> {
    fn family(&self) -> Family {
        Family::Layernorm
    }

    fn label(&self) -> String {
        "QK norm".into()
    }

    fn work(&self, element: ElementBytes) -> Work {
        element.pass(6 * self.rows * self.heads.channels())
    }
}

/// Gradient of [`QkNorm`]. With `h = x rstd` and `g = dout weight`, `dx = rstd (g - h mean(g h))`; the
/// gradients of the weights sum `dout h` over all rows and heads, in a fixed order.
pub struct QkNormBackward<'a, B> {
    /// (N, 3, NH, HS), activation: the gradient of `out` becomes that of `x` in place. Values are left alone.
    pub dqkv: &'a mut B,
    /// (HS), f32; written as `write` says.
    pub dq_weight: &'a mut B,
    /// (HS), f32; written as `write` says.
    pub dk_weight: &'a mut B,
    pub write: Write,
    /// (N, 3, NH, HS), activation: the input of the forward pass.
    pub x: &'a B,
    /// (HS), parameter.
    pub q_weight: &'a B,
    /// (HS), parameter.
    pub k_weight: &'a B,
    /// (N, 2, NH), f32.
    pub rstd: &'a B,
    /// N.
    pub rows: usize,
    pub heads: Heads,
}

impl<B> Operation for QkNormBackward<'_, B> {
    fn family(&self) -> Family {
        Family::LayernormBackward
    }

    fn label(&self) -> String {
        "QK norm backward".into()
    }

    fn work(&self, element: ElementBytes) -> Work {
        element.pass(6 * self.rows * self.heads.channels())
    }
}
