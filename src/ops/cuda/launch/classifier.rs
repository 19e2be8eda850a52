//! Launches of `classifier.cu`: softmax, cross-entropy and its gradient over a chunk of logits.

use super::super::args::{Act, F32, F32x2, In, Out, U16, bindings};
use super::super::modules::{Geometry, Kernels};
use crate::ops::{LogitTerms, Result, Vocab};

bindings! {
    "classifier.cu" {
        struct ClassifierArgs {
            logits: Out<Act>, losses: Out<F32>, denominators: Out<F32x2>, targets: In<U16>, padded: u64,
            used: u64, scale: f32, cached: u32, cap: f32, z_loss: f32,
        }
        kernel LOSS(ClassifierArgs) = "classifier_loss";
        kernel LOSS_CAPPED(ClassifierArgs) = "classifier_loss_capped";
        kernel GRADIENT(ClassifierArgs) = "classifier_gradient";
        kernel GRADIENT_Z(ClassifierArgs) = "classifier_gradient_z";
        kernel GRADIENT_CAPPED(ClassifierArgs) = "classifier_gradient_capped";
    }
}

/// The most bytes that a chunk of logits, or of their powers, takes. Larger chunks read and write `dwte` less
/// often; this one holds 8192 rows of GPT-2's vocabulary in bf16.
const LOGITS_BYTES: u64 = 800 << 20;

/// Rows of each chunk of `n` rows, a function of the shape alone: all chunks but the last have this many.
pub fn chunk_rows(n: u64, padded: u64, element_bytes: u64) -> u64 {
    let most = (LOGITS_BYTES / (padded * element_bytes)).max(128);
    let chunks = n.div_ceil(most).max(1);
    n.div_ceil(chunks).next_multiple_of(128)
}

/// One chunk: `rows` rows of logits, with the addresses of what belongs to them.
pub struct LogitsChunk {
    pub logits: u64,
    pub losses: u64,
    /// Of the rows' denominators; not read by [`loss`].
    pub denominators: u64,
    pub targets: u64,
    pub rows: u64,
    pub vocab: Vocab,
    pub terms: LogitTerms,
}

impl LogitsChunk {
    fn args(&self, scale: f32, cached: bool) -> ClassifierArgs {
        ClassifierArgs {
            logits: Out::at(self.logits),
            losses: Out::at(self.losses),
            denominators: Out::at(self.denominators),
            targets: In::at(self.targets),
            padded: self.vocab.padded as u64,
            used: self.vocab.used as u64,
            scale,
            cached: u32::from(cached),
            cap: self.terms.softcap.unwrap_or(0.0),
            z_loss: self.terms.z_loss,
        }
    }
}

/// Losses alone.
///
/// # Safety
/// The chunk's addresses hold `rows` rows, losses and targets.
pub unsafe fn loss(k: &Kernels, op: &'static str, chunk: &LogitsChunk) -> Result<()> {
    let kernel = if chunk.terms.softcap.is_some() { &LOSS_CAPPED } else { &LOSS };
    // SAFETY: the caller's promise.
    unsafe { k.launch(op, kernel, Geometry::new(chunk.rows, 512), &chunk.args(1.0, false)) }
}

/// Losses and denominators, and the gradient of `scale` times the sum of losses and z-losses in place of the
/// logits.
///
/// # Safety
/// As for [`loss`], and `denominators` holds two numbers a row.
pub unsafe fn gradient(k: &Kernels, op: &'static str, chunk: &LogitsChunk, scale: f32) -> Result<()> {
    let row_bytes = chunk.vocab.padded as u64 * k.act.size() as u64;
    // A little is taken by the kernel's own variables.
    let cached = row_bytes + 1024 <= u64::from(k.gpu.info.shared_bytes_per_block);
    let geometry = Geometry { shared: if cached { row_bytes } else { 0 }, ..Geometry::new(chunk.rows, 512) };
    let kernel = match chunk.terms {
        LogitTerms { softcap: None, z_loss: 0.0 } => &GRADIENT,
        LogitTerms { softcap: None, .. } => &GRADIENT_Z,
        LogitTerms { softcap: Some(_), .. } => &GRADIENT_CAPPED,
    };
    // SAFETY: the caller's promise.
    unsafe { k.launch(op, kernel, geometry, &chunk.args(scale, cached)) }
}

/// Refuses rows of logits that the kernels are not written for.
pub fn check(k: &Kernels, op: &'static str, vocab: Vocab) -> Result<()> {
    k.row_length(op, vocab.padded)?;
    k.check(op, vocab.used <= vocab.padded && vocab.used > 0, || {
        format!("{} of {} columns are used", vocab.used, vocab.padded)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_the_rows_evenly_and_stay_small() {
        assert_eq!(chunk_rows(16_384, 50_304, 2), 8192);
        assert_eq!(chunk_rows(65_536, 50_304, 2), 8192);
        assert_eq!(chunk_rows(4096, 50_304, 2), 4096);
        assert_eq!(chunk_rows(100, 384, 2), 128, "a small batch is one chunk");
        let rows = chunk_rows(20_000, 50_304, 2);
        assert!(rows.is_multiple_of(128) && rows * 50_304 * 2 <= LOGITS_BYTES, "{rows}");
    }
}
