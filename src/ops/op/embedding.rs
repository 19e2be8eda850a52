//! Token and position embeddings.

use super::{ElementBytes, Family, Operation, Work};
use crate::ops::types::{Rows, Write};

/// `out[b,t,:] = wte[ids[b,t],:] + wpe[t,:]`; without `wpe` the bits of the token's row.
pub struct Embedding<'a, B, I> {
    /// (B, T, C), activation.
    pub out: &'a mut B,
    /// (B, T).
    pub ids: &'a I,
    /// (V, C), parameter.
    pub wte: &'a B,
    /// (at least T, C), parameter.
    pub wpe: Option<&'a B>,
    pub rows: Rows,
    /// C.
    pub channels: usize,
}

impl<B, I> Operation for Embedding<'_, B, I> {
    fn family(&self) -> Family {
        Family::Embedding
    }

    fn label(&self) -> String {
        "embedding".into()
    }

    fn work(&self, element: ElementBytes) -> Work {
        element.pass(2 * self.rows.count() * self.channels)
    }
}

/// Gradient of [`Embedding`]: that of the token table is added in order of position within each token, that
/// of the positions, where there is one, is summed over sequences in their order.
pub struct EmbeddingBackward<'a, B, I> {
    /// (V, C), f32; written as `dwte_write` says: a classifier that shares the table has written it before.
    /// Rows of tokens that do not occur get zeros on `Set`.
    pub dwte: &'a mut B,
    pub dwte_write: Write,
    /// V: the rows of `dwte`, padding included.
    pub vocab: usize,
    /// (at least T, C), f32; written as `write` says, rows past T get zeros on `Set`.
    pub dwpe: Option<&'a mut B>,
    pub write: Write,
    /// (B, T, C), activation.
    pub dout: &'a B,
    /// (B, T).
    pub ids: &'a I,
    pub rows: Rows,
    /// C.
    pub channels: usize,
}

impl<B, I> Operation for EmbeddingBackward<'_, B, I> {
    fn family(&self) -> Family {
        Family::EmbeddingBackward
    }

    fn label(&self) -> String {
        "embedding backward".into()
    }

    fn work(&self, element: ElementBytes) -> Work {
        element.pass(2 * self.rows.count() * self.channels)
    }
}
