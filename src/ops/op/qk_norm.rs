//! RMSNorm of each head's queries and keys (Dehghani et al. 2023; as in Qwen3), epsilon 1e-5.

use super::{ElementBytes, Family, Operation, RotaryAt, Work};
use crate::ops::types::{Heads, Write};

/// `out = x rstd weight` for each head's HS elements of queries and of keys, `rstd = 1/sqrt(mean(x²) + eps)`;
/// values are copied where `out` has them. With `rotary` what [`Rotary`](super::Rotary) makes of `out`,
/// rounded once.
///
/// Sums over a head have an order that each device documents; it depends on HS alone.
pub struct QkNorm<'a, B, I> {
    /// (N, NH + 2 KH, HS), activation; without `values` (N, NH + KH, HS).
    pub out: &'a mut B,
    /// (N, NH + KH), f32: of queries, then of keys.
    pub rstd: &'a mut B,
    /// (N, NH + 2 KH, HS), activation.
    pub x: &'a B,
    /// (HS), parameter: shared by all heads.
    pub q_weight: &'a B,
    /// (HS), parameter.
    pub k_weight: &'a B,
    /// N.
    pub rows: usize,
    pub heads: Heads,
    /// Whether `out` gets the values too.
    pub values: bool,
    pub rotary: Option<QkRotary<'a, B, I>>,
}

/// The turn of queries and keys by their positions, as [`Rotary`](super::Rotary) has it.
pub struct QkRotary<'a, B, I> {
    /// (P, HS/2, 2), f32: [`super::rotary_table`] of at least as many positions as `at` has.
    pub table: &'a B,
    /// The base that `table` was made with: from it the audit makes the table again.
    pub theta: f64,
    /// Of as many rows as the norm has.
    pub at: RotaryAt<'a, I>,
}

impl<B, I> Clone for QkRotary<'_, B, I> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B, I> Copy for QkRotary<'_, B, I> {}

/// The row of the table of operations for an operation on queries and keys.
fn label(name: &str, rotary: bool) -> String {
    if rotary { format!("{name}, rotary") } else { name.to_owned() }
}

impl<B, I> Operation for QkNorm<'_, B, I> {
    fn family(&self) -> Family {
        Family::Layernorm
    }

    fn label(&self) -> String {
        label("QK norm", self.rotary.is_some())
    }

    fn work(&self, element: ElementBytes) -> Work {
        element.pass(2 * self.rows * self.heads.slices(self.values) * self.heads.head_size)
    }
}

/// Gradient of [`QkNorm`]. With `h = x rstd` and `g = dout weight`, `dx = rstd (g - h mean(g h))`; the
/// gradients of the weights sum `dout h` over all rows and heads, in a fixed order. With `rotary`, `dout` is
/// first turned back, and not rounded.
pub struct QkNormBackward<'a, B, I> {
    /// (N, NH + 2 KH, HS), activation: the gradient of `out` becomes that of `x` in place. Values are left
    /// alone.
    pub dqkv: &'a mut B,
    /// (HS), f32; written as `write` says.
    pub dq_weight: &'a mut B,
    /// (HS), f32; written as `write` says.
    pub dk_weight: &'a mut B,
    pub write: Write,
    /// (N, NH + 2 KH, HS), activation: the input of the forward pass.
    pub x: &'a B,
    /// (HS), parameter.
    pub q_weight: &'a B,
    /// (HS), parameter.
    pub k_weight: &'a B,
    /// (N, NH + KH), f32.
    pub rstd: &'a B,
    /// N.
    pub rows: usize,
    pub heads: Heads,
    /// That of the forward pass.
    pub rotary: Option<QkRotary<'a, B, I>>,
}

impl<B, I> Operation for QkNormBackward<'_, B, I> {
    fn family(&self) -> Family {
        Family::LayernormBackward
    }

    fn label(&self) -> String {
        label("QK norm backward", self.rotary.is_some())
    }

    fn work(&self, element: ElementBytes) -> Work {
        element.pass(3 * self.rows * self.heads.of_queries_and_keys() * self.heads.head_size)
    }
}
