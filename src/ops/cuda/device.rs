//! The operations of [`Ops`] on CUDA: each checks its operands, starts its kernels and returns.

use std::ops::Range;

use super::Cuda;
use super::launch::layernorm::{Affine, Residual, Statistics};
use super::launch::{attention, decode, elementwise, embedding, layernorm, optimizer};
use super::linear::{Classifier, ClassifierGradient, Shape, gemm_keys};
use super::memory::{Buf, Ids};
use super::scratch::{Use, planned};
use crate::ops::{
    AdamW, Dtype, Heads, KvCache, Ops, ParamSlot, Places, Result, Role, Rows, ScratchShape, Vocab, Write,
};

impl Ops for Cuda {
    type Buf = Buf;
    type Ids = Ids;

    // ---- memory ----------------------------------------------------------------------------

    fn device_name(&self) -> String {
        self.kernels.gpu.info.name.clone()
    }

    fn dtype(&self, role: Role) -> Dtype {
        match role {
            Role::Param | Role::Activation => self.kernels.act,
            Role::F32 => Dtype::F32,
        }
    }

    fn alloc(&mut self, role: Role, len: usize) -> Result<Buf> {
        let what = match role {
            Role::Param => "weights",
            Role::Activation => "activations",
            Role::F32 => "fp32 tensors",
        };
        self.memory.buffer(what, self.dtype(role), len)
    }

    fn alloc_host(&mut self, len: usize) -> Result<Buf> {
        self.memory.host_buffer(len)
    }

    fn alloc_ids(&mut self, len: usize) -> Result<Ids> {
        self.memory.ids(len)
    }

    /// Also tunes the matrix multiplications of this shape that have no plan yet.
    fn alloc_scratch(&mut self, shape: &ScratchShape) -> Result<()> {
        for (which, bytes) in planned(shape, self.options.compute) {
            self.scratch.get(&mut self.memory, which, bytes)?;
        }
        self.load_attention(shape.heads)?;
        self.gemm.prepare(&self.kernels, &gemm_keys(shape, &self.options), self.options.user_plans)
    }

    fn upload_ids(&mut self, dst: &mut Ids, ids: &[u16]) -> Result<()> {
        const OP: &str = "upload_ids";
        let address = self.kernels.ids(OP, "dst", dst, ids.len())?;
        let bytes: &[u8] = bytemuck::cast_slice(ids);
        // SAFETY: the length was checked.
        unsafe {
            self.staging.upload(address, bytes.len() as u64, OP, |at, piece| {
                piece.copy_from_slice(&bytes[at..][..piece.len()])
            })
        }
    }

    fn upload(&mut self, dst: &mut Buf, src: &[f32]) -> Result<()> {
        const OP: &str = "upload";
        self.check_length(OP, dst, src.len())?;
        self.written(dst);
        let dtype = dst.dtype();
        let bytes = (src.len() * dtype.size()) as u64;
        // SAFETY: the length was checked.
        unsafe {
            self.staging.upload(dst.address(), bytes, OP, |at, piece| match dtype {
                Dtype::BF16 => {
                    let source = &src[at / 2..][..piece.len() / 2];
                    for (narrow, wide) in piece.as_chunks_mut::<2>().0.iter_mut().zip(source) {
                        *narrow = half::bf16::from_f32(*wide).to_le_bytes();
                    }
                }
                _ => piece.copy_from_slice(bytemuck::cast_slice(&src[at / 4..][..piece.len() / 4])),
            })
        }
    }

    fn download(&mut self, src: &Buf, dst: &mut [f32]) -> Result<()> {
        const OP: &str = "download";
        self.check_length(OP, src, dst.len())?;
        let dtype = src.dtype();
        let bytes = (dst.len() * dtype.size()) as u64;
        // SAFETY: the length was checked.
        unsafe {
            self.staging.download(src.address(), bytes, OP, |at, piece| match dtype {
                Dtype::BF16 => {
                    let target = &mut dst[at / 2..][..piece.len() / 2];
                    for (wide, narrow) in target.iter_mut().zip(piece.as_chunks::<2>().0) {
                        *wide = half::bf16::from_le_bytes(*narrow).to_f32();
                    }
                }
                _ => bytemuck::cast_slice_mut(&mut dst[at / 4..][..piece.len() / 4]).copy_from_slice(piece),
            })
        }
    }

    fn read_at(&mut self, src: &Buf, at: usize, dst: &mut [u8]) -> Result<()> {
        const OP: &str = "read_at";
        self.check_bytes(OP, src, at + dst.len())?;
        // SAFETY: the length was checked.
        unsafe {
            self.staging.download(src.address() + at as u64, dst.len() as u64, OP, |at, piece| {
                dst[at..][..piece.len()].copy_from_slice(piece)
            })
        }
    }

    fn write_at(&mut self, dst: &mut Buf, at: usize, src: &[u8]) -> Result<()> {
        const OP: &str = "write_at";
        self.check_bytes(OP, dst, at + src.len())?;
        self.written(dst);
        let address = dst.address() + at as u64;
        // SAFETY: the length was checked.
        unsafe {
            self.staging.upload(address, src.len() as u64, OP, |at, piece| {
                piece.copy_from_slice(&src[at..][..piece.len()])
            })
        }
    }

    fn synchronize(&mut self) -> Result<()> {
        self.kernels.gpu.synchronize("synchronize")
    }

    fn merkle_roots(&mut self, bufs: &[(&Buf, Range<usize>)]) -> Result<Option<Vec<[u8; 32]>>> {
        self.roots(bufs).map(Some)
    }

    // ---- two lanes -------------------------------------------------------------------------

    fn turn_aside(&mut self) -> Result<()> {
        self.lanes.turn_aside()
    }

    fn turn_back(&mut self) -> Result<()> {
        self.lanes.turn_back()
    }

    fn join_lanes(&mut self) -> Result<()> {
        self.lanes.join()
    }

    // ---- work that comes again -------------------------------------------------------------

    fn identity(&self, buf: &Buf) -> u64 {
        buf.address()
    }

    fn replay(&mut self, key: [u64; 4]) -> Result<bool> {
        self.replay_graph(key)
    }

    fn recorded(&mut self, key: [u64; 4]) -> Result<()> {
        self.end_graph(key)
    }

    // ---- the forward pass ------------------------------------------------------------------

    fn embedding(
        &mut self,
        out: &mut Buf,
        ids: &Ids,
        wte: &Buf,
        wpe: &Buf,
        rows: Rows,
        channels: usize,
    ) -> Result<()> {
        self.written(out);
        embedding::forward(&self.kernels, out, ids, wte, wpe, rows, channels)
    }

    fn layernorm(
        &mut self,
        out: &mut Buf,
        mean: &mut Buf,
        rstd: &mut Buf,
        x: &Buf,
        weight: &Buf,
        bias: &Buf,
        n: usize,
        channels: usize,
    ) -> Result<()> {
        self.written(out);
        layernorm::forward(
            &self.kernels,
            out,
            None,
            Statistics { mean, rstd },
            x,
            Affine { weight, bias },
            n,
            channels,
        )
    }

    fn residual_layernorm(
        &mut self,
        residual: &mut Buf,
        out: &mut Buf,
        mean: &mut Buf,
        rstd: &mut Buf,
        x: &Buf,
        branch: &Buf,
        weight: &Buf,
        bias: &Buf,
        n: usize,
        channels: usize,
    ) -> Result<()> {
        self.written(residual);
        self.written(out);
        let residual = Residual { sum: residual, branch };
        layernorm::forward(
            &self.kernels,
            out,
            Some(residual),
            Statistics { mean, rstd },
            x,
            Affine { weight, bias },
            n,
            channels,
        )
    }

    fn linear(
        &mut self,
        out: &mut Buf,
        x: &Buf,
        weight: &Buf,
        bias: Option<&Buf>,
        n: usize,
        c_in: usize,
        c_out: usize,
    ) -> Result<()> {
        self.linear_forward("linear", out, x, weight, bias, Shape { n, c_in, c_out })
    }

    fn linear_gelu(
        &mut self,
        out: &mut Buf,
        pre: &mut Buf,
        x: &Buf,
        weight: &Buf,
        bias: &Buf,
        n: usize,
        c_in: usize,
        c_out: usize,
    ) -> Result<()> {
        self.linear_gelu_forward(out, pre, x, weight, bias, Shape { n, c_in, c_out })
    }

    fn gelu(&mut self, out: &mut Buf, pre: &Buf, len: usize) -> Result<()> {
        self.gelu_again(out, pre, len)
    }

    fn attention(&mut self, out: &mut Buf, lse: &mut Buf, qkv: &Buf, rows: Rows, heads: Heads) -> Result<()> {
        self.load_attention(heads)?;
        self.written(out);
        attention::forward(&self.kernels, out, lse, qkv, rows, heads)
    }

    fn classifier_loss(
        &mut self,
        losses: &mut Buf,
        at: usize,
        x: &Buf,
        wte: &Buf,
        targets: &Ids,
        n: usize,
        channels: usize,
        vocab: Vocab,
    ) -> Result<()> {
        self.classify("classifier_loss", Classifier { losses, at, x, wte, targets, n, channels, vocab }, None)
    }

    fn copy(&mut self, dst: &mut Buf, to: usize, src: &Buf, from: usize, len: usize) -> Result<()> {
        const OP: &str = "copy";
        self.check_length(OP, dst, to + len)?;
        self.check_length(OP, src, from + len)?;
        self.kernels.check(OP, dst.dtype() == src.dtype(), || {
            format!("`dst` is {}, `src` is {}", dst.dtype(), src.dtype())
        })?;
        self.written(dst);
        let size = src.dtype().size() as u64;
        let (to, from) = (dst.address() + to as u64 * size, src.address() + from as u64 * size);
        // SAFETY: both lengths were checked, and two tensors never overlap.
        unsafe { self.kernels.gpu.copy(to, from, len as u64 * size, OP) }
    }

    // ---- decoding --------------------------------------------------------------------------

    fn decode_embedding(
        &mut self,
        out: &mut Buf,
        ids: &Ids,
        positions: &Ids,
        wte: &Buf,
        wpe: &Buf,
        n: usize,
        channels: usize,
    ) -> Result<()> {
        self.written(out);
        decode::embedding(&self.kernels, out, ids, positions, wte, wpe, n, channels)
    }

    fn decode_linear(
        &mut self,
        out: &mut Buf,
        x: &Buf,
        weight: &Buf,
        bias: Option<&Buf>,
        gelu: bool,
        n: usize,
        c_in: usize,
        c_out: usize,
    ) -> Result<()> {
        self.written(out);
        decode::linear(&self.kernels, out, x, weight, bias, gelu, n, c_in, c_out)
    }

    fn decode_attention(
        &mut self,
        out: &mut Buf,
        cache: KvCache<'_, Buf>,
        qkv: &Buf,
        at: Places<'_, Ids>,
        n: usize,
        heads: Heads,
    ) -> Result<()> {
        self.written(out);
        decode::attention(&self.kernels, out, cache, qkv, at, n, heads)
    }

    // ---- the backward pass -----------------------------------------------------------------

    fn classifier(
        &mut self,
        losses: &mut Buf,
        at: usize,
        dx: &mut Buf,
        dwte: &mut Buf,
        x: &Buf,
        wte: &Buf,
        targets: &Ids,
        n: usize,
        channels: usize,
        vocab: Vocab,
        scale: f32,
        write: Write,
    ) -> Result<()> {
        self.written(dx);
        let gradient = ClassifierGradient { dx, dwte, scale, write };
        self.classify(
            "classifier",
            Classifier { losses, at, x, wte, targets, n, channels, vocab },
            Some(gradient),
        )
    }

    fn layernorm_backward(
        &mut self,
        dx: &mut Buf,
        dx_write: Write,
        dweight: &mut Buf,
        dbias: &mut Buf,
        write: Write,
        dout: &Buf,
        x: &Buf,
        weight: &Buf,
        mean: &Buf,
        rstd: &Buf,
        n: usize,
        channels: usize,
    ) -> Result<()> {
        self.written(dx);
        let partials = self.scratch.get(
            &mut self.memory,
            Use::LayernormPartials,
            layernorm::partials_bytes(n as u64, channels as u64),
        )?;
        layernorm::backward(
            &self.kernels,
            partials,
            dx,
            dx_write,
            dweight,
            dbias,
            write,
            dout,
            x,
            weight,
            mean,
            rstd,
            n,
            channels,
        )
    }

    fn linear_backward_input(
        &mut self,
        dx: &mut Buf,
        dout: &Buf,
        weight: &Buf,
        n: usize,
        c_in: usize,
        c_out: usize,
    ) -> Result<()> {
        self.backward_input("linear_backward_input", dx, dout, weight, None, Shape { n, c_in, c_out })
    }

    fn linear_backward_input_gelu(
        &mut self,
        dpre: &mut Buf,
        dout: &Buf,
        weight: &Buf,
        pre: &Buf,
        n: usize,
        c_in: usize,
        c_out: usize,
    ) -> Result<()> {
        self.backward_input(
            "linear_backward_input_gelu",
            dpre,
            dout,
            weight,
            Some(pre),
            Shape { n, c_in, c_out },
        )
    }

    fn linear_backward_weight(
        &mut self,
        dweight: &mut Buf,
        dbias: Option<&mut Buf>,
        dout: &Buf,
        x: &Buf,
        n: usize,
        c_in: usize,
        c_out: usize,
        write: Write,
    ) -> Result<()> {
        self.backward_weight(dweight, dbias, dout, x, Shape { n, c_in, c_out }, write)
    }

    fn attention_backward(
        &mut self,
        dqkv: &mut Buf,
        dout: &Buf,
        qkv: &Buf,
        out: &Buf,
        lse: &Buf,
        rows: Rows,
        heads: Heads,
    ) -> Result<()> {
        self.load_attention(heads)?;
        self.written(dqkv);
        let delta =
            self.scratch.get(&mut self.memory, Use::AttentionDelta, attention::delta_bytes(rows, heads))?;
        attention::backward(&self.kernels, delta, dqkv, dout, qkv, out, lse, rows, heads)
    }

    fn embedding_backward(
        &mut self,
        dwte: &mut Buf,
        dwpe: &mut Buf,
        write: Write,
        dout: &Buf,
        ids: &Ids,
        rows: Rows,
        channels: usize,
    ) -> Result<()> {
        let [list, counts, partials] = embedding::sort_scratch_bytes(rows.count() as u64, channels as u64);
        let (scratch, memory) = (&mut self.scratch, &mut self.memory);
        let scratch = embedding::SortScratch {
            lists: [scratch.get(memory, Use::SortFirst, list)?, scratch.get(memory, Use::SortSecond, list)?],
            counts: scratch.get(memory, Use::SortCounts, counts)?,
            partials: scratch.get(memory, Use::EmbeddingPartials, partials)?,
        };
        embedding::backward(&self.kernels, scratch, dwte, dwpe, write, dout, ids, rows, channels)
    }

    // ---- the optimizer ---------------------------------------------------------------------

    fn sum_squares(&mut self, bufs: &[&Buf]) -> Result<Vec<f64>> {
        self.squares(bufs)
    }

    fn adamw(&mut self, slots: &mut [ParamSlot<'_, Self>], update: &AdamW) -> Result<()> {
        self.update(slots, update)
    }

    fn add(&mut self, dst: &mut Buf, src: &Buf) -> Result<()> {
        self.kernels.check("add", src.len() == dst.len(), || {
            format!("{} elements do not fit {}", src.len(), dst.len())
        })?;
        let len = dst.len();
        elementwise::add(&self.kernels, dst, 0, src, 0, len)
    }

    fn add_part(&mut self, dst: &mut Buf, at: usize, src: &Buf, from: usize, len: usize) -> Result<()> {
        elementwise::add(&self.kernels, dst, at, src, from, len)
    }

    fn chunk(&self) -> usize {
        optimizer::CHUNK as usize
    }

    fn chunk_squares(&mut self, parts: &[(&Buf, Range<usize>)]) -> Result<Vec<f64>> {
        self.squares_of_chunks(parts)
    }

    fn fold_squares(&self, chunks: &[f64]) -> f64 {
        optimizer::fold_squares(chunks)
    }
}

impl Cuda {
    fn check_length(&self, op: &'static str, buf: &Buf, len: usize) -> Result<()> {
        self.kernels.check(op, len <= buf.len(), || format!("{len} elements of a tensor of {}", buf.len()))
    }

    fn check_bytes(&self, op: &'static str, buf: &Buf, bytes: usize) -> Result<()> {
        self.kernels.check(op, bytes as u64 <= buf.bytes(), || {
            format!("{bytes} bytes of a tensor of {}", buf.bytes())
        })
    }
}
