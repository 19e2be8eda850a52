//! The classifier: three products and softmax cross-entropy between them, one chunk of rows after the other.
//!
//! Where our own products make it (bf16 on Hopper) the first one ends in powers of 2, and no pass over the
//! logits follows ([`classifier_hopper`]). Elsewhere logits are stored, and a pass makes losses and gradients
//! of them ([`classifier`]).

use super::Cuda;
use super::driver::GpuInfo;
use super::launch::classifier_hopper::{self, PowersChunk, PowersGradient, RowScratch};
use super::launch::{classifier, gemm_hopper};
use super::linear::key;
use super::memory::{Buf, CudaIds};
use super::product::{Epilogue, GemmKey, Operands, Product, SoftmaxOperands};
use super::scratch::Use;
use crate::ops::{Classifier, ClassifierLoss, Dtype, LinearShape, LogitTerms, Perform, Result, Vocab, Write};

/// First row and number of rows of each chunk.
pub fn chunks(n: usize, vocab: Vocab, act: Dtype) -> Vec<(usize, usize)> {
    let rows = classifier::chunk_rows(n as u64, vocab.padded as u64, act.size() as u64) as usize;
    (0..n).step_by(rows).map(|first| (first, rows.min(n - first))).collect()
}

/// Whether the first product ends in powers of 2.
pub fn ends_in_powers(info: &GpuInfo, act: Dtype) -> bool {
    gemm_hopper::fits(info) && act == Dtype::BF16
}

/// Of the output, the input gradient and the weight gradient.
pub fn epilogues(ends_in_powers: bool) -> [Epilogue; 3] {
    if ends_in_powers {
        [Epilogue::Softmax, Epilogue::RowFactors, Epilogue::Nothing]
    } else {
        [Epilogue::Nothing; 3]
    }
}

impl Perform<ClassifierLoss<'_, Buf, CudaIds>> for Cuda {
    fn perform(&mut self, op: ClassifierLoss<'_, Buf, CudaIds>) -> Result<()> {
        const OP: &str = "classifier_loss";
        let ClassifierLoss { losses, losses_at, x, wte, targets, rows, channels, vocab, terms } = op;
        let k = &self.kernels;
        let rows = ClassifierRows {
            x: k.act(OP, "x", x, rows * channels)?,
            wte: k.act(OP, "wte", wte, vocab.padded * channels)?,
            losses: k.f32(OP, "losses", losses, losses_at + rows)? + 4 * losses_at as u64,
            targets: k.ids(OP, "targets", targets, rows)?,
            rows,
            channels,
            vocab,
            terms,
        };
        // SAFETY: all lengths were checked.
        unsafe { self.classify(OP, &rows, None) }
    }
}

impl Perform<Classifier<'_, Buf, CudaIds>> for Cuda {
    fn perform(&mut self, op: Classifier<'_, Buf, CudaIds>) -> Result<()> {
        self.written(op.dx);
        const OP: &str = "classifier";
        let (rows, channels, vocab) = (op.rows, op.channels, op.vocab);
        let k = &self.kernels;
        let classified = ClassifierRows {
            x: k.act(OP, "x", op.x, rows * channels)?,
            wte: k.act(OP, "wte", op.wte, vocab.padded * channels)?,
            losses: k.f32(OP, "losses", op.losses, op.losses_at + rows)? + 4 * op.losses_at as u64,
            targets: k.ids(OP, "targets", op.targets, rows)?,
            rows,
            channels,
            vocab,
            terms: op.terms,
        };
        let gradient = ClassifierGradient {
            denominators: k.f32(OP, "denominators", op.denominators, 2 * rows)?,
            dx: k.act(OP, "dx", op.dx, rows * channels)?,
            dwte: k.f32(OP, "dwte", op.dwte, vocab.padded * channels)?,
            scale: op.scale,
            write: op.write,
        };
        // SAFETY: all lengths were checked.
        unsafe { self.classify(OP, &classified, Some(gradient)) }
    }
}

impl Cuda {
    /// Losses and, where asked for, gradients. Within a chunk `dwte` is summed by the matrix multiplication,
    /// over chunks in order.
    ///
    /// # Safety
    /// The addresses are those of live tensors of the shapes that the structs give.
    unsafe fn classify(
        &mut self,
        op: &'static str,
        c: &ClassifierRows,
        gradient: Option<ClassifierGradient>,
    ) -> Result<()> {
        classifier::check(&self.kernels, op, c.vocab)?;
        let act = self.kernels.act;
        let powers = ends_in_powers(&self.kernels.gpu.info, act);
        let chunks = chunks(c.rows, c.vocab, act);
        let most = chunks.first().map_or(0, |(_, rows)| *rows) as u64;
        let room =
            if powers { self.powers_room(c, most, gradient.is_some())? } else { self.logits_room(c, most)? };
        for (first, rows) in chunks {
            let chunk = c.chunk(first, rows, act);
            let gradient = gradient.map(|gradient| gradient.chunk(c, first, act));
            // SAFETY: the caller's promise, and the scratch holds the largest chunk.
            unsafe {
                match &room {
                    ClassifierRoom::Logits(logits) => self.classify_logits(op, &chunk, gradient, *logits)?,
                    ClassifierRoom::Powers(powers) => self.classify_powers(op, &chunk, gradient, powers)?,
                }
            }
        }
        Ok(())
    }

    fn logits_room(&mut self, c: &ClassifierRows, most: u64) -> Result<ClassifierRoom> {
        let bytes = most * c.vocab.padded as u64 * self.kernels.act.size() as u64;
        Ok(ClassifierRoom::Logits(self.scratch.get(&mut self.memory, Use::Logits, bytes)?))
    }

    fn powers_room(&mut self, c: &ClassifierRows, most: u64, gradient: bool) -> Result<ClassifierRoom> {
        let (padded, channels) = (c.vocab.padded as u64, c.channels as u64);
        let mut get = |which, bytes| self.scratch.get(&mut self.memory, which, bytes);
        let stripes = get(Use::SoftmaxStripes, classifier_hopper::stripes_bytes(most, padded))?;
        let rows = RowScratch::at(get(Use::SoftmaxRows, RowScratch::bytes(most))?, most);
        let (mut powers, mut scaled) = (0, 0);
        if gradient {
            powers = get(Use::Logits, 2 * most * padded)?;
            scaled = get(Use::ScaledInput, 2 * most * channels)?;
        }
        Ok(ClassifierRoom::Powers(PowersRoom { stripes, rows, powers, scaled }))
    }

    /// One chunk, by stored logits.
    ///
    /// # Safety
    /// As for [`Self::classify`], and `logits` has room for the chunk's.
    unsafe fn classify_logits(
        &mut self,
        op: &'static str,
        c: &ClassifierRows,
        gradient: Option<ClassifierGradient>,
        logits: u64,
    ) -> Result<()> {
        let [forward, input, weight] = self.classifier_keys(c, false);
        let chunk = classifier::LogitsChunk {
            logits,
            losses: c.losses,
            denominators: gradient.map_or(0, |gradient| gradient.denominators),
            targets: c.targets,
            rows: c.rows as u64,
            vocab: c.vocab,
            terms: c.terms,
        };
        // SAFETY: the caller's promise.
        unsafe {
            self.gemm.run(&self.kernels, op, forward, Operands::new(c.x, c.wte, logits))?;
            let Some(ClassifierGradient { dx, dwte, scale, write, .. }) = gradient else {
                return classifier::loss(&self.kernels, op, &chunk);
            };
            classifier::gradient(&self.kernels, op, &chunk, scale)?;
            self.gemm.run(&self.kernels, op, input, Operands::new(logits, c.wte, dx))?;
            let operands = Operands { add: write == Write::Add, ..Operands::new(logits, c.x, dwte) };
            self.gemm.run(&self.kernels, op, weight, operands)
        }
    }

    /// One chunk, by powers: the product and the rows behind it twice, of which the second time does nothing
    /// unless a sum became too large or too small.
    ///
    /// # Safety
    /// As for [`Self::classify`], and the room is that of a chunk.
    unsafe fn classify_powers(
        &mut self,
        op: &'static str,
        c: &ClassifierRows,
        gradient: Option<ClassifierGradient>,
        room: &PowersRoom,
    ) -> Result<()> {
        let [forward, input, weight] = self.classifier_keys(c, true);
        let PowersRoom { stripes, rows: scratch, powers, scaled } = *room;
        let chunk = PowersChunk {
            rows: c.rows as u64,
            channels: c.channels as u64,
            vocab: c.vocab,
            terms: c.terms,
            x: c.x,
            weight: c.wte,
            targets: c.targets,
            losses: c.losses,
            denominators: gradient.map_or(scratch.denominators, |gradient| gradient.denominators),
            scratch,
            stripes,
        };
        let kept = gradient.map(|gradient| PowersGradient { powers, scaled, scale: gradient.scale });
        // SAFETY: the caller's promise.
        unsafe {
            classifier_hopper::softmax_bases(&self.kernels, op, &chunk)?;
            for second in [false, true] {
                let softmax = SoftmaxOperands {
                    used: c.vocab.used,
                    cap: c.terms.softcap,
                    targets: c.targets,
                    at_targets: scratch.logits,
                    overflow: if second { scratch.overflow } else { 0 },
                };
                let operands = Operands {
                    sums: stripes,
                    row_terms: chunk.denominators,
                    softmax: Some(softmax),
                    ..Operands::new(c.x, c.wte, powers)
                };
                self.gemm.run(&self.kernels, op, forward, operands)?;
                classifier_hopper::softmax_rows(&self.kernels, op, &chunk, kept, second)?;
            }
            let Some(ClassifierGradient { dx, dwte, write, .. }) = gradient else { return Ok(()) };
            let operands = Operands { row_terms: scratch.factors, ..Operands::new(powers, c.wte, dx) };
            self.gemm.run(&self.kernels, op, input, operands)?;
            let operands = Operands { add: write == Write::Add, ..Operands::new(powers, scaled, dwte) };
            self.gemm.run(&self.kernels, op, weight, operands)
        }
    }

    fn classifier_keys(&self, c: &ClassifierRows, powers: bool) -> [GemmKey; 3] {
        let shape = LinearShape { rows: c.rows, c_in: c.channels, c_out: c.vocab.padded };
        let [forward, input, weight] = epilogues(powers);
        [(Product::Forward, forward), (Product::BackwardInput, input), (Product::BackwardWeight, weight)]
            .map(|(product, epilogue)| key(shape, product, &self.options, epilogue))
    }
}

/// Scratch for one chunk.
enum ClassifierRoom {
    Logits(u64),
    Powers(PowersRoom),
}

struct PowersRoom {
    stripes: u64,
    rows: RowScratch,
    /// (n, V), or 0 where they are not kept.
    powers: u64,
    /// (n, C), or 0.
    scaled: u64,
}

/// The operands of the classifier as device addresses, and their shape.
#[derive(Clone, Copy)]
struct ClassifierRows {
    x: u64,
    wte: u64,
    /// Of the first row's loss.
    losses: u64,
    targets: u64,
    rows: usize,
    channels: usize,
    vocab: Vocab,
    terms: LogitTerms,
}

impl ClassifierRows {
    /// Some of the rows.
    fn chunk(&self, first: usize, rows: usize, act: Dtype) -> ClassifierRows {
        ClassifierRows {
            x: self.x + (first * self.channels * act.size()) as u64,
            losses: self.losses + 4 * first as u64,
            targets: self.targets + 2 * first as u64,
            rows,
            ..*self
        }
    }
}

/// Where the classifier's gradients go.
#[derive(Clone, Copy)]
struct ClassifierGradient {
    denominators: u64,
    dx: u64,
    dwte: u64,
    scale: f32,
    write: Write,
}

impl ClassifierGradient {
    /// Of the chunk of rows that begins with `first`.
    fn chunk(&self, c: &ClassifierRows, first: usize, act: Dtype) -> ClassifierGradient {
        ClassifierGradient {
            denominators: self.denominators + 8 * first as u64,
            dx: self.dx + (first * c.channels * act.size()) as u64,
            write: if first > 0 { Write::Add } else { self.write },
            ..*self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_every_row_once() {
        for n in [1, 127, 128, 16_384, 20_001] {
            let chunks = chunks(n, Vocab { used: 50_257, padded: 50_304 }, Dtype::BF16);
            let mut next = 0;
            for (first, rows) in chunks {
                assert_eq!(first, next);
                next += rows;
            }
            assert_eq!(next, n);
        }
    }
}
