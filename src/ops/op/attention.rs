//! Causal self-attention over whole sequences.

use super::{ElementBytes, Family, Operation, Work, volume};
use crate::ops::Result;
use crate::ops::types::{Heads, Rows};

/// `out = softmax(scale Q Kᵀ) V` over the keys up to each query, scale `1/sqrt(HS)`.
pub struct Attention<'a, B> {
    /// (B, T, NH, HS), activation.
    pub out: &'a mut B,
    /// (B, NH, T), f32: log-sum-exp of the scaled scores, which the backward pass reads.
    pub lse: &'a mut B,
    /// (B, T, NH + 2 KH, HS), activation; without values (B, T, NH + KH, HS).
    pub qkv: &'a B,
    /// Where the values are if `qkv` has none, (B, T, NH + 2 KH, HS), activation: of a norm's input, whose
    /// queries and keys are not read.
    pub values: Option<&'a B>,
    pub rows: Rows,
    pub heads: Heads,
}

/// Where a device finds queries, keys and values, as its views or addresses.
#[derive(Clone, Copy)]
pub struct Qkv<T> {
    /// (B, T, slices, HS)
    pub qkv: T,
    /// (B, T, NH + 2 KH, HS), of which values alone are read: `qkv` where they lie beside queries and keys.
    pub values: T,
    /// NH + 2 KH, or without values NH + KH.
    pub slices: usize,
}

impl<T> Qkv<T> {
    /// Of [`Attention::qkv`] and [`Attention::values`], by a `view` of a named tensor's first elements.
    pub fn of<'a, B>(
        qkv: &'a B,
        values: Option<&'a B>,
        rows: Rows,
        heads: Heads,
        view: impl Fn(&'static str, &'a B, usize) -> Result<T>,
    ) -> Result<Qkv<T>> {
        let slices = heads.slices(values.is_none());
        Ok(Qkv {
            qkv: view("qkv", qkv, rows.count() * slices * heads.head_size)?,
            values: view("values", values.unwrap_or(qkv), rows.count() * heads.qkv_channels())?,
            slices,
        })
    }
}

impl<B> Operation for Attention<'_, B> {
    fn family(&self) -> Family {
        Family::Attention
    }

    fn label(&self) -> String {
        "attention".into()
    }

    fn work(&self, element: ElementBytes) -> Work {
        Work {
            flops: flops(self.rows, self.heads, 2),
            bytes: element.moved(self.rows.count() * (self.heads.channels() + self.heads.qkv_channels()), 0),
        }
    }
}

/// Gradient of [`Attention`]: `dqkv` is set. The softmax is computed again from `lse`.
pub struct AttentionBackward<'a, B> {
    /// (B, T, NH + 2 KH, HS), activation.
    pub dqkv: &'a mut B,
    /// (B, T, NH, HS), activation.
    pub dout: &'a B,
    /// As in [`Attention`], like the next.
    pub qkv: &'a B,
    pub values: Option<&'a B>,
    /// (B, T, NH, HS), activation.
    pub out: &'a B,
    /// (B, NH, T), f32.
    pub lse: &'a B,
    pub rows: Rows,
    pub heads: Heads,
}

impl<B> Operation for AttentionBackward<'_, B> {
    fn family(&self) -> Family {
        Family::AttentionBackward
    }

    fn label(&self) -> String {
        "attention backward".into()
    }

    fn work(&self, element: ElementBytes) -> Work {
        Work {
            flops: flops(self.rows, self.heads, 5),
            bytes: element
                .moved(2 * self.rows.count() * (self.heads.channels() + self.heads.qkv_channels()), 0),
        }
    }
}

/// FLOPs of `products` matrix products over the causal half of the score matrix: a multiplication and an
/// addition for each of half of T*T*HS terms.
fn flops(rows: Rows, heads: Heads, products: usize) -> f64 {
    volume(&[products, rows.batch, heads.heads, rows.seq, rows.seq, heads.head_size])
}
