//! Linear layers and the classifier: matrix multiplications with what is fused around them.
//!
//! With `kernels.gelu_fusion` 0, GELU sees what is stored. Our own products then do it on their way,
//! cuBLASLt's are followed by a pass, and the bits of GELU are the same. The option's other values ask for
//! cuBLASLt's fusion, which sees the sum before rounding.

use super::gemm::Operands;
use super::gemm::plan::{Epilogue, GemmKey, Product, Types};
use super::launch::{classifier, gelu, gemm_hopper, reduce};
use super::memory::{Buf, Ids};
use super::scratch::Use;
use super::{Cuda, Options};
use crate::experiment::Compute;
use crate::ops::{Dtype, Result, ScratchShape, Vocab, Write};

/// The column sums that GELU's gradient computed on its way: valid for one tensor until it is written.
#[derive(Clone, Copy, Debug)]
pub struct GeluSums {
    dpre: u64,
    rows: usize,
    width: usize,
}

/// Rows, input and output width of a linear layer.
#[derive(Clone, Copy)]
pub struct Shape {
    pub n: usize,
    pub c_in: usize,
    pub c_out: usize,
}

impl Shape {
    fn key(self, product: Product, options: &Options, epilogue: Epilogue) -> GemmKey {
        let types = match (options.compute, product) {
            (Compute::Fp32, _) => Types::F32,
            (Compute::Tf32, _) => Types::Tf32,
            (Compute::Auto | Compute::Bf16, Product::BackwardWeight) => Types::Bf16ToF32,
            (Compute::Auto | Compute::Bf16, _) => Types::Bf16,
        };
        GemmKey {
            product,
            rows: self.n as u64,
            c_in: self.c_in as u64,
            c_out: self.c_out as u64,
            types,
            epilogue,
        }
    }
}

/// Fusion is a matter of bf16: cuBLASLt has no such epilogue for every type.
fn fusion(options: &Options) -> u8 {
    if matches!(options.compute, Compute::Auto | Compute::Bf16) { options.gelu_fusion } else { 0 }
}

fn gelu_epilogues(options: &Options) -> (Epilogue, Epilogue) {
    let forward = if fusion(options) >= 1 { Epilogue::BiasGelu } else { Epilogue::BiasThenGelu };
    let backward = if fusion(options) >= 2 { Epilogue::GeluGradient } else { Epilogue::ThenGeluGradient };
    (forward, backward)
}

/// Every matrix multiplication that training (or, without `backward`, evaluating) GPT-2 on
/// micro-batches of `shape` asks for.
pub fn gemm_keys(shape: &ScratchShape, options: &Options) -> Vec<GemmKey> {
    let n = shape.rows.count();
    let c = shape.channels;
    let (gelu_forward, gelu_backward) = gelu_epilogues(options);
    // GELU's gradient leaves the sums that are the gradient of the bias before it, unless cuBLASLt fuses it.
    let before_gelu = if fusion(options) >= 2 { Epilogue::BiasGradient } else { Epilogue::Nothing };
    use Epilogue::{Bias, BiasGradient, Nothing};
    let mut layers = vec![
        (Shape { n, c_in: c, c_out: 3 * c }, [Bias, Nothing, BiasGradient]),
        (Shape { n, c_in: c, c_out: c }, [Bias, Nothing, BiasGradient]),
        (Shape { n, c_in: c, c_out: 4 * c }, [gelu_forward, Nothing, before_gelu]),
        (Shape { n, c_in: 4 * c, c_out: c }, [Bias, gelu_backward, BiasGradient]),
    ];
    for (_, rows) in chunks(n, shape.vocab, super::act_dtype(options.compute)) {
        layers.push((Shape { n: rows, c_in: c, c_out: shape.vocab.padded }, [Nothing; 3]));
    }
    let mut keys = Vec::new();
    for (layer, [forward, input, weight]) in layers {
        keys.push(layer.key(Product::Forward, options, forward));
        if shape.backward {
            keys.push(layer.key(Product::BackwardInput, options, input));
            keys.push(layer.key(Product::BackwardWeight, options, weight));
        }
    }
    keys.sort();
    keys.dedup();
    keys
}

/// First row and number of rows of each chunk of the classifier.
fn chunks(n: usize, vocab: Vocab, act: Dtype) -> Vec<(usize, usize)> {
    let rows = classifier::chunk_rows(n as u64, vocab.padded as u64, act.size() as u64) as usize;
    (0..n).step_by(rows).map(|first| (first, rows.min(n - first))).collect()
}

impl Cuda {
    /// A tensor was written: what was known of its columns is no longer so.
    pub(super) fn written(&mut self, buf: &Buf) {
        if self.gelu_sums.is_some_and(|sums| sums.dpre == buf.address()) {
            self.gelu_sums = None;
        }
    }

    pub(super) fn linear_forward(
        &mut self,
        op: &'static str,
        out: &mut Buf,
        x: &Buf,
        weight: &Buf,
        bias: Option<&Buf>,
        shape: Shape,
    ) -> Result<()> {
        let k = &self.kernels;
        let operands = Operands {
            left: k.act(op, "x", x, shape.n * shape.c_in)?,
            right: k.act(op, "weight", weight, shape.c_out * shape.c_in)?,
            out: k.act(op, "out", out, shape.n * shape.c_out)?,
            add: false,
            bias: bias.map_or(Ok(0), |bias| k.act(op, "bias", bias, shape.c_out))?,
            pre: 0,
            sums: 0,
        };
        self.written(out);
        let epilogue = if bias.is_some() { Epilogue::Bias } else { Epilogue::Nothing };
        // SAFETY: all lengths were checked.
        unsafe {
            self.gemm.run(&self.kernels, op, shape.key(Product::Forward, &self.options, epilogue), operands)
        }
    }

    pub(super) fn linear_gelu_forward(
        &mut self,
        out: &mut Buf,
        pre: &mut Buf,
        x: &Buf,
        weight: &Buf,
        bias: &Buf,
        shape: Shape,
    ) -> Result<()> {
        const OP: &str = "linear_gelu";
        let size = shape.n * shape.c_out;
        let k = &self.kernels;
        let operands = Operands {
            left: k.act(OP, "x", x, shape.n * shape.c_in)?,
            right: k.act(OP, "weight", weight, shape.c_out * shape.c_in)?,
            out: k.act(OP, "out", out, size)?,
            add: false,
            bias: k.act(OP, "bias", bias, shape.c_out)?,
            pre: k.act(OP, "pre", pre, size)?,
            sums: 0,
        };
        self.written(out);
        self.written(pre);
        let key = shape.key(Product::Forward, &self.options, gelu_epilogues(&self.options).0);
        let whole = key.epilogue == Epilogue::BiasGelu || self.gemm.own(key)?.is_some();
        let operands = if whole { operands } else { Operands { out: operands.pre, ..operands } };
        // SAFETY: all lengths were checked.
        unsafe { self.gemm.run(&self.kernels, OP, key, operands) }?;
        if whole { Ok(()) } else { gelu::forward(&self.kernels, OP, out, pre, size) }
    }

    /// `out = gelu(pre)` for recomputation: only where the forward pass rounded `pre` first, as this does.
    pub(super) fn gelu_again(&mut self, out: &mut Buf, pre: &Buf, len: usize) -> Result<()> {
        const OP: &str = "gelu";
        self.kernels.check(OP, fusion(&self.options) == 0, || {
            "a GELU inside the matrix multiplication sees the sum before rounding, so it cannot be computed again from what was stored\n  \
             hint: set `memory.recompute` or `kernels.gelu_fusion` to 0"
                .into()
        })?;
        self.written(out);
        gelu::forward(&self.kernels, OP, out, pre, len)
    }

    pub(super) fn backward_input(
        &mut self,
        op: &'static str,
        dx: &mut Buf,
        dout: &Buf,
        weight: &Buf,
        pre: Option<&Buf>,
        shape: Shape,
    ) -> Result<()> {
        let k = &self.kernels;
        let size = shape.n * shape.c_in;
        let mut operands = Operands {
            left: k.act(op, "dout", dout, shape.n * shape.c_out)?,
            right: k.act(op, "weight", weight, shape.c_out * shape.c_in)?,
            out: k.act(op, "dx", dx, size)?,
            add: false,
            bias: 0,
            pre: pre.map_or(Ok(0), |pre| k.act(op, "pre", pre, size))?,
            sums: 0,
        };
        self.written(dx);
        let epilogue = if pre.is_some() { gelu_epilogues(&self.options).1 } else { Epilogue::Nothing };
        let key = shape.key(Product::BackwardInput, &self.options, epilogue);
        let mut leaves_sums = None;
        if epilogue == Epilogue::ThenGeluGradient {
            let bytes = reduce::partials_bytes(shape.n as u64, shape.c_in as u64);
            let sums = self.scratch.get(&mut self.memory, Use::GeluPartials, bytes)?;
            leaves_sums = Some(sums);
            if self.gemm.own(key)?.is_some() {
                operands.sums = sums;
            }
        }
        // SAFETY: all lengths were checked, and the scratch holds the sums.
        unsafe { self.gemm.run(&self.kernels, op, key, operands) }?;
        let (Some(pre), Some(sums)) = (pre, leaves_sums) else { return Ok(()) };
        if operands.sums == 0 {
            gelu::backward_in_place(&self.kernels, op, sums, dx, pre, shape.n, shape.c_in)?;
        }
        self.gelu_sums = Some(GeluSums { dpre: dx.address(), rows: shape.n, width: shape.c_in });
        Ok(())
    }

    pub(super) fn backward_weight(
        &mut self,
        dweight: &mut Buf,
        dbias: Option<&mut Buf>,
        dout: &Buf,
        x: &Buf,
        shape: Shape,
        write: Write,
    ) -> Result<()> {
        const OP: &str = "linear_backward_weight";
        let k = &self.kernels;
        let Shape { n, c_in, c_out } = shape;
        let mut operands = Operands {
            left: k.act(OP, "dout", dout, n * c_out)?,
            right: k.act(OP, "x", x, n * c_in)?,
            out: k.f32(OP, "dweight", dweight, c_out * c_in)?,
            add: write == Write::Add,
            bias: 0,
            pre: 0,
            sums: 0,
        };
        // GELU's gradient has added the columns when it made this tensor.
        let known = self
            .gelu_sums
            .is_some_and(|sums| sums.dpre == dout.address() && sums.rows == n && sums.width == c_out);
        let epilogue = if dbias.is_some() && !known { Epilogue::BiasGradient } else { Epilogue::Nothing };
        let key = shape.key(Product::BackwardWeight, &self.options, epilogue);
        let own = self.gemm.own(key)?;
        let (mut partials, mut partial_rows) = (0, (n as u64).div_ceil(reduce::COLUMN_ROWS));
        if dbias.is_some() {
            let which = if known { Use::GeluPartials } else { Use::ColumnPartials };
            partials =
                self.scratch.get(&mut self.memory, which, reduce::partials_bytes(n as u64, c_out as u64))?;
        }
        if let (Epilogue::BiasGradient, Some(tiling)) = (epilogue, &own) {
            operands.sums = partials;
            partial_rows = gemm_hopper::sum_rows(&key, tiling);
        }
        // SAFETY: all lengths were checked, and the scratch holds the sums.
        unsafe { self.gemm.run(&self.kernels, OP, key, operands) }?;
        let Some(dbias) = dbias else { return Ok(()) };
        let k = &self.kernels;
        if epilogue == Epilogue::BiasGradient && own.is_none() {
            reduce::column_sum(k, OP, partials, dout, n, c_out)?;
        }
        let width = c_out as u64;
        let targets =
            reduce::Targets { first: k.f32(OP, "dbias", dbias, c_out)?, second: 0, split: width, width };
        reduce::reduce_partials(k, OP, targets, partials, partial_rows, write)
    }
}

/// The tensors of the classifier.
pub struct Classifier<'a> {
    pub losses: &'a mut Buf,
    pub at: usize,
    pub x: &'a Buf,
    pub wte: &'a Buf,
    pub targets: &'a Ids,
    pub n: usize,
    pub channels: usize,
    pub vocab: Vocab,
}

/// Where the classifier's gradients go.
pub struct ClassifierGradient<'a> {
    pub dx: &'a mut Buf,
    pub dwte: &'a mut Buf,
    pub scale: f32,
    pub write: Write,
}

impl Cuda {
    /// Losses and, where asked for, gradients, one chunk of rows after the other. Within a chunk `dwte`
    /// is summed by the matrix multiplication, over chunks in order.
    pub(super) fn classify(
        &mut self,
        op: &'static str,
        c: Classifier<'_>,
        gradient: Option<ClassifierGradient<'_>>,
    ) -> Result<()> {
        let Classifier { losses, at, x, wte, targets, n, channels, vocab } = c;
        let k = &self.kernels;
        let size = n * channels;
        let x = k.act(op, "x", x, size)?;
        let wte = k.act(op, "wte", wte, vocab.padded * channels)?;
        let losses = k.f32(op, "losses", losses, at + n)? + 4 * at as u64;
        let targets = k.ids(op, "targets", targets, n)?;
        let gradient = gradient
            .map(|g| {
                let addresses =
                    (k.act(op, "dx", g.dx, size)?, k.f32(op, "dwte", g.dwte, vocab.padded * channels)?);
                Ok((addresses, g.scale, g.write))
            })
            .transpose()?;
        let element = k.act.size();
        let chunks = chunks(n, vocab, k.act);
        let most = chunks.first().map_or(0, |(_, rows)| *rows);
        let logits =
            self.scratch.get(&mut self.memory, Use::Logits, (most * vocab.padded * element) as u64)?;
        for (first, rows) in chunks {
            let offset = (first * channels * element) as u64;
            let layer = Shape { n: rows, c_in: channels, c_out: vocab.padded };
            let forward =
                Operands { left: x + offset, right: wte, out: logits, add: false, bias: 0, pre: 0, sums: 0 };
            let chunk = classifier::Chunk {
                logits,
                losses: losses + 4 * first as u64,
                targets: targets + 2 * first as u64,
                rows: rows as u64,
            };
            // SAFETY: all lengths were checked, and the scratch holds the largest chunk.
            unsafe {
                self.gemm.run(
                    &self.kernels,
                    op,
                    layer.key(Product::Forward, &self.options, Epilogue::Nothing),
                    forward,
                )?;
                let Some(((dx, dwte), scale, write)) = gradient else {
                    classifier::loss(&self.kernels, op, &chunk, vocab)?;
                    continue;
                };
                classifier::gradient(&self.kernels, op, &chunk, vocab, scale)?;
                let input = Operands {
                    left: logits,
                    right: wte,
                    out: dx + offset,
                    add: false,
                    bias: 0,
                    pre: 0,
                    sums: 0,
                };
                self.gemm.run(
                    &self.kernels,
                    op,
                    layer.key(Product::BackwardInput, &self.options, Epilogue::Nothing),
                    input,
                )?;
                let add = write == Write::Add || first > 0;
                let weight =
                    Operands { left: logits, right: x + offset, out: dwte, add, bias: 0, pre: 0, sums: 0 };
                self.gemm.run(
                    &self.kernels,
                    op,
                    layer.key(Product::BackwardWeight, &self.options, Epilogue::Nothing),
                    weight,
                )?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{Heads, ParamCount, Rows};

    fn shape(backward: bool) -> ScratchShape {
        let vocab = Vocab { used: 50_257, padded: 50_304 };
        ScratchShape {
            rows: Rows { batch: 16, seq: 1024 },
            channels: 768,
            heads: Heads { heads: 12, head_size: 64 },
            vocab,
            backward,
            params: ParamCount { tensors: 148, elements: 124_439_808 },
        }
    }

    #[test]
    fn training_asks_for_three_products_a_layer_and_evaluation_for_one() {
        let options = Options::default();
        assert_eq!(gemm_keys(&shape(true), &options).len(), 3 * 5);
        assert_eq!(gemm_keys(&shape(false), &options).len(), 5);
    }

    #[test]
    fn fusion_changes_the_epilogues_of_the_mlp_alone() {
        let plain = gemm_keys(&shape(true), &Options::default());
        let fused = gemm_keys(&shape(true), &Options { gelu_fusion: 2, ..Options::default() });
        let epilogues = |a: &[GemmKey], b: &[GemmKey]| -> Vec<_> {
            a.iter().filter(|key| !b.contains(key)).map(|key| key.epilogue).collect()
        };
        assert_eq!(
            epilogues(&fused, &plain),
            [Epilogue::BiasGelu, Epilogue::GeluGradient, Epilogue::BiasGradient]
        );
        assert_eq!(
            epilogues(&plain, &fused),
            [Epilogue::BiasThenGelu, Epilogue::ThenGeluGradient, Epilogue::Nothing]
        );
    }

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
