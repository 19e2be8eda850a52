//! The CPU device: the reference, the oracle of every kernel test, and the embedded default.
//!
//! Everything is `f32`. Results are the same bits for any number of threads, any instruction set
//! and any machine (up to the payload of a NaN): each element has one order of additions, fixed by
//! the shape and written at its function. [`NUMERICS_VERSION`] changes whenever such an order, a
//! polynomial or a chunk length changes.
//!
//! * [`gemm`]: matrix products; [`attention`] and [`classifier`] are built on its tiles; [`decode`] does
//!   without.
//! * [`simd`]: one kernel body for every vector width; [`math`]: exponential and GELU.
//! * [`engine`]: threads and scratch; [`buffer`]: aligned memory.
//!
//! This file checks lengths and token ids and then hands slices to the operation's module, which may
//! rely on them. It deliberately knows no arithmetic.

mod attention;
mod buffer;
mod checks;
mod classifier;
mod decode;
mod embedding;
mod engine;
mod gemm;
mod linear;
mod math;
mod norm;
mod optimizer;
mod simd;
#[cfg(test)]
mod tests;

use std::ops::Range;

use super::{
    AdamW, DeviceError, Dtype, Heads, KvCache, Ops, ParamSlot, Places, Result, Role, Rows, ScratchShape,
    Vocab, Write,
};
use crate::experiment::Device;
pub use buffer::Buffer;
use checks::{available_bytes, failed, indices, same_len, tokens, view, view_mut, whole_floats};
use engine::Engine;
use norm::Saved;
use simd::Isa;

/// Names the arithmetic of this device; part of a lock's numerics.
pub const NUMERICS_VERSION: u32 = 1;

/// A CPU with its threads.
pub struct Cpu {
    engine: Engine,
    scratch: classifier::Scratch,
    by_token: embedding::ByToken,
}

/// Token ids in memory.
pub struct Ids(Vec<u16>);

impl Cpu {
    /// Bytes of scratch held now.
    #[cfg(test)]
    fn held_scratch_bytes(&mut self) -> u64 {
        4 * (self.scratch.len() + self.engine.scratch_len()) as u64
    }

    /// `device.threads` threads (0: all that the system offers) and the instruction set of `device.simd`.
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`] when the CPU lacks the instruction set or threads cannot start.
    pub fn new(device: &Device) -> Result<Cpu> {
        let threads = match device.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let engine = Engine::new(Isa::new(device.simd)?, threads).map_err(|e| {
            DeviceError::Unavailable(format!(
                "cannot start {threads} CPU threads: {e}\n  hint: lower `device.threads`"
            ))
        })?;
        Ok(Cpu { engine, scratch: classifier::Scratch::default(), by_token: embedding::ByToken::default() })
    }

    /// Threads that share the work.
    pub fn threads(&self) -> usize {
        self.engine.threads
    }
}

/// Scratch of the CPU device for micro-batches of up to `shape`, by name, in bytes.
pub fn scratch_bytes(shape: &ScratchShape, threads: usize) -> Vec<(String, u64)> {
    let (logits, packed) = shared_scratch(shape);
    [("logits", logits), ("packed operand", packed), ("threads", threads * thread_scratch(shape))]
        .into_iter()
        .map(|(name, floats)| (name.to_owned(), 4 * floats as u64))
        .collect()
}

/// Floats of (logits, packed operand).
fn shared_scratch(shape: &ScratchShape) -> (usize, usize) {
    let (logits, packed) = classifier::Scratch::lens(shape.rows.count(), shape.channels, shape.vocab);
    (logits, if shape.backward { packed.max(linear::packed_len(4 * shape.channels)) } else { 0 })
}

/// Floats of each thread's scratch.
fn thread_scratch(shape: &ScratchShape) -> usize {
    let attention = attention::scratch_len(shape.rows.seq, shape.heads.head_size, shape.backward);
    attention
        .max(gemm::multiply_scratch(shape.rows.count()))
        .max(gemm::multiply_outer_scratch(linear::ROW_CHUNK))
}

const DEVICE: &str = "CPU";

impl Ops for Cpu {
    type Buf = Buffer;
    type Ids = Ids;

    fn device_name(&self) -> String {
        let model = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        });
        let threads = self.engine.threads;
        let plural = if threads == 1 { "" } else { "s" };
        format!("{}, {threads} thread{plural}", model.as_deref().unwrap_or(std::env::consts::ARCH))
    }

    fn dtype(&self, _: Role) -> Dtype {
        Dtype::F32
    }

    fn alloc(&mut self, role: Role, len: usize) -> Result<Buffer> {
        Buffer::try_zeroed(len).ok_or_else(|| DeviceError::OutOfMemory {
            device: DEVICE.to_owned(),
            what: format!("{role:?} buffer of {len} elements"),
            need_bytes: 4 * len as u64,
            free_bytes: available_bytes().unwrap_or(0),
        })
    }

    fn alloc_ids(&mut self, len: usize) -> Result<Ids> {
        Ok(Ids(vec![0; len]))
    }

    fn alloc_scratch(&mut self, shape: &ScratchShape) -> Result<()> {
        let (logits, packed) = shared_scratch(shape);
        self.scratch.reserve(logits, packed);
        self.engine.reserve_scratch(thread_scratch(shape));
        Ok(())
    }

    fn upload_ids(&mut self, dst: &mut Ids, ids: &[u16]) -> Result<()> {
        let have = dst.0.len();
        let to = dst
            .0
            .get_mut(..ids.len())
            .ok_or_else(|| failed("upload_ids", format!("{} ids do not fit {have}", ids.len())))?;
        to.copy_from_slice(ids);
        Ok(())
    }

    fn upload(&mut self, dst: &mut Buffer, src: &[f32]) -> Result<()> {
        view_mut("upload", "dst", dst, src.len())?.copy_from_slice(src);
        Ok(())
    }

    fn download(&mut self, src: &Buffer, dst: &mut [f32]) -> Result<()> {
        dst.copy_from_slice(view("download", "src", src, dst.len())?);
        Ok(())
    }

    fn read_at(&mut self, src: &Buffer, at: usize, dst: &mut [u8]) -> Result<()> {
        const OP: &str = "read_at";
        let (floats, rest) = dst.as_chunks_mut::<4>();
        whole_floats(OP, at % 4 + rest.len())?;
        let stored = &view(OP, "src", src, at / 4 + floats.len())?[at / 4..];
        for (to, from) in floats.iter_mut().zip(stored) {
            *to = from.to_le_bytes();
        }
        Ok(())
    }

    fn write_at(&mut self, dst: &mut Buffer, at: usize, src: &[u8]) -> Result<()> {
        const OP: &str = "write_at";
        let (floats, rest) = src.as_chunks::<4>();
        whole_floats(OP, at % 4 + rest.len())?;
        let stored = &mut view_mut(OP, "dst", dst, at / 4 + floats.len())?[at / 4..];
        for (to, from) in stored.iter_mut().zip(floats) {
            *to = f32::from_le_bytes(*from);
        }
        Ok(())
    }

    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }

    fn embedding(
        &mut self,
        out: &mut Buffer,
        ids: &Ids,
        wte: &Buffer,
        wpe: &Buffer,
        rows: Rows,
        channels: usize,
    ) -> Result<()> {
        const OP: &str = "embedding";
        let out = view_mut(OP, "out", out, rows.count() * channels)?;
        let wpe = view(OP, "wpe", wpe, rows.seq * channels)?;
        let ids = tokens(OP, ids, rows.count(), wte.len() / channels)?;
        embedding::forward(&self.engine, out, ids, wte.as_slice(), wpe, rows, channels);
        Ok(())
    }

    fn layernorm(
        &mut self,
        out: &mut Buffer,
        mean: &mut Buffer,
        rstd: &mut Buffer,
        x: &Buffer,
        weight: &Buffer,
        bias: &Buffer,
        n: usize,
        channels: usize,
    ) -> Result<()> {
        const OP: &str = "layernorm";
        norm::forward(
            &self.engine,
            view_mut(OP, "out", out, n * channels)?,
            view_mut(OP, "mean", mean, n)?,
            view_mut(OP, "rstd", rstd, n)?,
            view(OP, "x", x, n * channels)?,
            view(OP, "weight", weight, channels)?,
            view(OP, "bias", bias, channels)?,
        );
        Ok(())
    }

    fn residual_layernorm(
        &mut self,
        residual: &mut Buffer,
        out: &mut Buffer,
        mean: &mut Buffer,
        rstd: &mut Buffer,
        x: &Buffer,
        branch: &Buffer,
        weight: &Buffer,
        bias: &Buffer,
        n: usize,
        channels: usize,
    ) -> Result<()> {
        const OP: &str = "residual_layernorm";
        norm::forward_residual(
            &self.engine,
            view_mut(OP, "residual", residual, n * channels)?,
            view_mut(OP, "out", out, n * channels)?,
            view_mut(OP, "mean", mean, n)?,
            view_mut(OP, "rstd", rstd, n)?,
            view(OP, "x", x, n * channels)?,
            view(OP, "branch", branch, n * channels)?,
            view(OP, "weight", weight, channels)?,
            view(OP, "bias", bias, channels)?,
        );
        Ok(())
    }

    fn linear(
        &mut self,
        out: &mut Buffer,
        x: &Buffer,
        weight: &Buffer,
        bias: Option<&Buffer>,
        n: usize,
        c_in: usize,
        c_out: usize,
    ) -> Result<()> {
        const OP: &str = "linear";
        let bias = bias.map(|bias| view(OP, "bias", bias, c_out)).transpose()?;
        let out = view_mut(OP, "out", out, n * c_out)?;
        linear::forward(
            &self.engine,
            out,
            view(OP, "x", x, n * c_in)?,
            view(OP, "weight", weight, c_out * c_in)?,
            bias,
            c_in,
            c_out,
        );
        Ok(())
    }

    fn linear_gelu(
        &mut self,
        out: &mut Buffer,
        pre: &mut Buffer,
        x: &Buffer,
        weight: &Buffer,
        bias: &Buffer,
        n: usize,
        c_in: usize,
        c_out: usize,
    ) -> Result<()> {
        self.linear(pre, x, weight, Some(bias), n, c_in, c_out)?;
        self.gelu(out, pre, n * c_out)
    }

    fn gelu(&mut self, out: &mut Buffer, pre: &Buffer, len: usize) -> Result<()> {
        const OP: &str = "gelu";
        linear::gelu(&self.engine, view_mut(OP, "out", out, len)?, view(OP, "pre", pre, len)?);
        Ok(())
    }

    fn attention(
        &mut self,
        out: &mut Buffer,
        lse: &mut Buffer,
        qkv: &Buffer,
        rows: Rows,
        heads: Heads,
    ) -> Result<()> {
        const OP: &str = "attention";
        let len = rows.count() * heads.heads * heads.head_size;
        let out = view_mut(OP, "out", out, len)?;
        let lse = view_mut(OP, "lse", lse, rows.count() * heads.heads)?;
        attention::forward(&self.engine, out, lse, view(OP, "qkv", qkv, 3 * len)?, rows, heads);
        Ok(())
    }

    fn classifier_loss(
        &mut self,
        losses: &mut Buffer,
        at: usize,
        x: &Buffer,
        wte: &Buffer,
        targets: &Ids,
        n: usize,
        channels: usize,
        vocab: Vocab,
    ) -> Result<()> {
        const OP: &str = "classifier_loss";
        let losses = &mut view_mut(OP, "losses", losses, at + n)?[at..];
        let problem = classifier::Problem {
            x: view(OP, "x", x, n * channels)?,
            wte: view(OP, "wte", wte, vocab.padded * channels)?,
            targets: tokens(OP, targets, n, vocab.used)?,
            channels,
            vocab,
        };
        classifier::run(&self.engine, &mut self.scratch, losses, problem, None);
        Ok(())
    }

    fn copy(&mut self, dst: &mut Buffer, to: usize, src: &Buffer, from: usize, len: usize) -> Result<()> {
        const OP: &str = "copy";
        let src = &view(OP, "src", src, from + len)?[from..];
        view_mut(OP, "dst", dst, to + len)?[to..].copy_from_slice(src);
        Ok(())
    }

    fn decode_embedding(
        &mut self,
        out: &mut Buffer,
        ids: &Ids,
        positions: &Ids,
        wte: &Buffer,
        wpe: &Buffer,
        n: usize,
        channels: usize,
    ) -> Result<()> {
        const OP: &str = "decode_embedding";
        let out = view_mut(OP, "out", out, n * channels)?;
        let ids = tokens(OP, ids, n, wte.len() / channels)?;
        let positions = indices(OP, "position", positions, n, wpe.len() / channels)?;
        decode::embedding(out, ids, positions, wte.as_slice(), wpe.as_slice(), channels);
        Ok(())
    }

    fn decode_linear(
        &mut self,
        out: &mut Buffer,
        x: &Buffer,
        weight: &Buffer,
        bias: Option<&Buffer>,
        gelu: bool,
        n: usize,
        c_in: usize,
        c_out: usize,
    ) -> Result<()> {
        const OP: &str = "decode_linear";
        let layer = decode::Linear {
            x: view(OP, "x", x, n * c_in)?,
            weight: view(OP, "weight", weight, c_out * c_in)?,
            bias: bias.map(|bias| view(OP, "bias", bias, c_out)).transpose()?,
            gelu,
            c_in,
        };
        decode::linear(&self.engine, view_mut(OP, "out", out, n * c_out)?, c_out, layer);
        Ok(())
    }

    fn decode_attention(
        &mut self,
        out: &mut Buffer,
        cache: KvCache<'_, Buffer>,
        qkv: &Buffer,
        at: Places<'_, Ids>,
        n: usize,
        heads: Heads,
    ) -> Result<()> {
        const OP: &str = "decode_attention";
        let KvCache { keys, values, capacity } = cache;
        let channels = heads.heads * heads.head_size;
        let streams = keys.len().min(values.len()) / (capacity * channels);
        let rows = decode::Attention {
            qkv: view(OP, "qkv", qkv, 3 * n * channels)?,
            streams: indices(OP, "stream", at.streams, n, streams)?,
            positions: indices(OP, "position", at.positions, n, capacity)?,
            heads,
            capacity,
        };
        let out = view_mut(OP, "out", out, n * channels)?;
        decode::attention(&self.engine, out, keys.as_mut_slice(), values.as_mut_slice(), &rows);
        Ok(())
    }

    fn classifier(
        &mut self,
        losses: &mut Buffer,
        at: usize,
        dx: &mut Buffer,
        dwte: &mut Buffer,
        x: &Buffer,
        wte: &Buffer,
        targets: &Ids,
        n: usize,
        channels: usize,
        vocab: Vocab,
        scale: f32,
        write: Write,
    ) -> Result<()> {
        const OP: &str = "classifier";
        let losses = &mut view_mut(OP, "losses", losses, at + n)?[at..];
        let problem = classifier::Problem {
            x: view(OP, "x", x, n * channels)?,
            wte: view(OP, "wte", wte, vocab.padded * channels)?,
            targets: tokens(OP, targets, n, vocab.used)?,
            channels,
            vocab,
        };
        let gradient = classifier::Gradient {
            dx: view_mut(OP, "dx", dx, n * channels)?,
            dwte: view_mut(OP, "dwte", dwte, vocab.padded * channels)?,
            scale,
            write,
        };
        classifier::run(&self.engine, &mut self.scratch, losses, problem, Some(gradient));
        Ok(())
    }

    fn layernorm_backward(
        &mut self,
        dx: &mut Buffer,
        dx_write: Write,
        dweight: &mut Buffer,
        dbias: &mut Buffer,
        write: Write,
        dout: &Buffer,
        x: &Buffer,
        weight: &Buffer,
        mean: &Buffer,
        rstd: &Buffer,
        n: usize,
        channels: usize,
    ) -> Result<()> {
        const OP: &str = "layernorm_backward";
        let saved = Saved {
            x: view(OP, "x", x, n * channels)?,
            weight: view(OP, "weight", weight, channels)?,
            mean: view(OP, "mean", mean, n)?,
            rstd: view(OP, "rstd", rstd, n)?,
        };
        let dout = view(OP, "dout", dout, n * channels)?;
        norm::backward_input(&self.engine, view_mut(OP, "dx", dx, n * channels)?, dx_write, dout, saved);
        let dbias = view_mut(OP, "dbias", dbias, channels)?;
        norm::backward_params(
            &self.engine,
            view_mut(OP, "dweight", dweight, channels)?,
            dbias,
            write,
            dout,
            saved,
        );
        Ok(())
    }

    fn linear_backward_input(
        &mut self,
        dx: &mut Buffer,
        dout: &Buffer,
        weight: &Buffer,
        n: usize,
        c_in: usize,
        c_out: usize,
    ) -> Result<()> {
        const OP: &str = "linear_backward_input";
        let dx = view_mut(OP, "dx", dx, n * c_in)?;
        linear::backward_input(
            &self.engine,
            dx,
            view(OP, "dout", dout, n * c_out)?,
            view(OP, "weight", weight, c_out * c_in)?,
            c_in,
            c_out,
        );
        Ok(())
    }

    fn linear_backward_input_gelu(
        &mut self,
        dpre: &mut Buffer,
        dout: &Buffer,
        weight: &Buffer,
        pre: &Buffer,
        n: usize,
        c_in: usize,
        c_out: usize,
    ) -> Result<()> {
        const OP: &str = "linear_backward_input_gelu";
        self.linear_backward_input(dpre, dout, weight, n, c_in, c_out)?;
        linear::gelu_backward(
            &self.engine,
            view_mut(OP, "dpre", dpre, n * c_in)?,
            view(OP, "pre", pre, n * c_in)?,
        );
        Ok(())
    }

    fn linear_backward_weight(
        &mut self,
        dweight: &mut Buffer,
        dbias: Option<&mut Buffer>,
        dout: &Buffer,
        x: &Buffer,
        n: usize,
        c_in: usize,
        c_out: usize,
        write: Write,
    ) -> Result<()> {
        const OP: &str = "linear_backward_weight";
        let dout = view(OP, "dout", dout, n * c_out)?;
        let dweight = view_mut(OP, "dweight", dweight, c_out * c_in)?;
        linear::backward_weight(
            &self.engine,
            dweight,
            dout,
            c_out,
            view(OP, "x", x, n * c_in)?,
            n,
            c_in,
            write,
            &mut self.scratch.packed,
        );
        if let Some(dbias) = dbias {
            linear::backward_bias(&self.engine, view_mut(OP, "dbias", dbias, c_out)?, dout, write);
        }
        Ok(())
    }

    fn attention_backward(
        &mut self,
        dqkv: &mut Buffer,
        dout: &Buffer,
        qkv: &Buffer,
        out: &Buffer,
        lse: &Buffer,
        rows: Rows,
        heads: Heads,
    ) -> Result<()> {
        const OP: &str = "attention_backward";
        let len = rows.count() * heads.heads * heads.head_size;
        attention::backward(
            &self.engine,
            view_mut(OP, "dqkv", dqkv, 3 * len)?,
            view(OP, "dout", dout, len)?,
            view(OP, "qkv", qkv, 3 * len)?,
            view(OP, "out", out, len)?,
            view(OP, "lse", lse, rows.count() * heads.heads)?,
            rows,
            heads,
        );
        Ok(())
    }

    fn embedding_backward(
        &mut self,
        dwte: &mut Buffer,
        dwpe: &mut Buffer,
        write: Write,
        dout: &Buffer,
        ids: &Ids,
        rows: Rows,
        channels: usize,
    ) -> Result<()> {
        const OP: &str = "embedding_backward";
        let vocab = dwte.len() / channels;
        let ids = tokens(OP, ids, rows.count(), vocab)?;
        let dout = view(OP, "dout", dout, rows.count() * channels)?;
        view(OP, "dwpe", dwpe, rows.seq * channels)?;
        self.by_token.sort(ids, vocab);
        embedding::backward_tokens(
            &self.engine,
            &mut dwte.as_mut_slice()[..vocab * channels],
            dout,
            &self.by_token,
            channels,
        );
        embedding::backward_positions(&self.engine, dwpe.as_mut_slice(), write, dout, rows, channels);
        Ok(())
    }

    fn sum_squares(&mut self, bufs: &[&Buffer]) -> Result<Vec<f64>> {
        Ok(bufs.iter().map(|buf| optimizer::sum_squares(&self.engine, buf.as_slice())).collect())
    }

    fn chunk(&self) -> usize {
        optimizer::CHUNK
    }

    fn chunk_squares(&mut self, parts: &[(&Buffer, Range<usize>)]) -> Result<Vec<f64>> {
        let mut sums = Vec::new();
        for (buf, part) in parts {
            let data = view("chunk_squares", "part", buf, part.end)?;
            sums.extend(optimizer::chunk_squares(&self.engine, &data[part.start..]));
        }
        Ok(sums)
    }

    fn fold_squares(&self, chunks: &[f64]) -> f64 {
        optimizer::fold_squares(chunks)
    }

    fn adamw(&mut self, slots: &mut [ParamSlot<'_, Cpu>], update: &AdamW) -> Result<()> {
        const OP: &str = "adamw";
        for slot in slots {
            let len = slot.adam_m.len();
            for other in [Some(slot.adam_v.len()), slot.master.as_ref().map(|m| m.len())] {
                same_len(OP, other.unwrap_or(len), len)?;
            }
            view(OP, "param", slot.param, slot.at + len)?;
            view(OP, "grad", slot.grad, slot.grad_at + len)?;
            optimizer::adamw(&self.engine, slot, update);
        }
        Ok(())
    }

    fn add(&mut self, dst: &mut Buffer, src: &Buffer) -> Result<()> {
        same_len("add", src.len(), dst.len())?;
        optimizer::accumulate(&self.engine, dst.as_mut_slice(), src.as_slice());
        Ok(())
    }

    fn add_part(&mut self, dst: &mut Buffer, at: usize, src: &Buffer, from: usize, len: usize) -> Result<()> {
        const OP: &str = "add_part";
        let src = &view(OP, "src", src, from + len)?[from..];
        optimizer::accumulate(&self.engine, &mut view_mut(OP, "dst", dst, at + len)?[at..], src);
        Ok(())
    }
}
