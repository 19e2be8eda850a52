//! A device that keeps time: wraps any [`Ops`] and, when asked to, measures every operation.
//!
//! While recording it waits for the device after each operation, so the parts are exact to the cost
//! of one launch and one wait (some 15 µs on CUDA), and their sum is a little more than a step takes
//! undisturbed. While not recording it only passes calls on. Beside the time stand the operation's
//! floating-point operations and the bytes it must move at least: each input read once, each output
//! written once.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::{
    AdamW, Dtype, Heads, KvCache, Ops, ParamSlot, Places, Result, Role, Rows, ScratchShape, Vocab, Write,
};

/// A device and the times of its operations.
pub struct Timed<O> {
    pub inner: O,
    recording: bool,
    records: BTreeMap<String, Record>,
}

/// What one kind of operation took, all calls together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Record {
    pub calls: u64,
    pub time: Duration,
    pub flops: f64,
    pub bytes: f64,
}

/// The least an operation must do.
struct Work {
    flops: f64,
    bytes: f64,
}

impl<O: Ops> Timed<O> {
    /// Wraps a device; nothing is recorded yet.
    pub fn new(inner: O) -> Timed<O> {
        Timed { inner, recording: false, records: BTreeMap::new() }
    }

    /// Starts with empty records.
    pub fn start(&mut self) {
        self.recording = true;
        self.records.clear();
    }

    /// Stops recording and gives what was recorded, by operation and shape.
    pub fn finish(&mut self) -> BTreeMap<String, Record> {
        self.recording = false;
        std::mem::take(&mut self.records)
    }

    fn timed<R>(
        &mut self,
        name: impl FnOnce() -> String,
        work: Work,
        call: impl FnOnce(&mut O) -> Result<R>,
    ) -> Result<R> {
        if !self.recording {
            return call(&mut self.inner);
        }
        let start = Instant::now();
        let result = call(&mut self.inner)?;
        self.inner.synchronize()?;
        let time = start.elapsed();
        let record = self.records.entry(name()).or_default();
        record.calls += 1;
        record.time += time;
        record.flops += work.flops;
        record.bytes += work.bytes;
        Ok(result)
    }

    /// Bytes of so many elements of activations and of weights.
    fn moved(&self, activations: usize, weights: usize) -> f64 {
        let size = |role| self.inner.dtype(role).size();
        (activations * size(Role::Activation) + weights * size(Role::Param)) as f64
    }

    /// A product of (n, k) and (k, m) with its operands' bytes; `wide` of its elements are f32 besides.
    fn product(&self, n: usize, k: usize, m: usize, wide: usize) -> Work {
        Work { flops: 2.0 * (n * k * m) as f64, bytes: self.moved(n * (k + m), k * m) + 4.0 * wide as f64 }
    }

    fn pass(&self, activations: usize) -> Work {
        Work { flops: 0.0, bytes: self.moved(activations, 0) }
    }
}

/// Multiply-adds of causal attention, two of them for each of `products` matrix products.
fn attention_flops(rows: Rows, heads: Heads, products: usize) -> f64 {
    (products * rows.batch * heads.heads * rows.seq * rows.seq * heads.head_size) as f64
}

impl<O: Ops> Ops for Timed<O> {
    type Buf = O::Buf;
    type Ids = O::Ids;

    fn device_name(&self) -> String {
        self.inner.device_name()
    }

    fn dtype(&self, role: Role) -> Dtype {
        self.inner.dtype(role)
    }

    fn alloc(&mut self, role: Role, len: usize) -> Result<O::Buf> {
        self.inner.alloc(role, len)
    }

    fn alloc_host(&mut self, len: usize) -> Result<O::Buf> {
        self.inner.alloc_host(len)
    }

    fn alloc_ids(&mut self, len: usize) -> Result<O::Ids> {
        self.inner.alloc_ids(len)
    }

    fn alloc_scratch(&mut self, shape: &ScratchShape) -> Result<()> {
        self.inner.alloc_scratch(shape)
    }

    fn upload_ids(&mut self, dst: &mut O::Ids, ids: &[u16]) -> Result<()> {
        let work = Work { flops: 0.0, bytes: 2.0 * ids.len() as f64 };
        self.timed(|| "token upload".into(), work, |o| o.upload_ids(dst, ids))
    }

    fn upload(&mut self, dst: &mut O::Buf, src: &[f32]) -> Result<()> {
        self.inner.upload(dst, src)
    }

    fn download(&mut self, src: &O::Buf, dst: &mut [f32]) -> Result<()> {
        let work = Work { flops: 0.0, bytes: 4.0 * dst.len() as f64 };
        self.timed(|| "losses to the host".into(), work, |o| o.download(src, dst))
    }

    fn read_at(&mut self, src: &O::Buf, at: usize, dst: &mut [u8]) -> Result<()> {
        self.inner.read_at(src, at, dst)
    }

    fn write_at(&mut self, dst: &mut O::Buf, at: usize, src: &[u8]) -> Result<()> {
        self.inner.write_at(dst, at, src)
    }

    fn synchronize(&mut self) -> Result<()> {
        self.inner.synchronize()
    }

    fn merkle_roots(&mut self, bufs: &[(&O::Buf, Range<usize>)]) -> Result<Option<Vec<[u8; 32]>>> {
        let work = Work { flops: 0.0, bytes: bufs.iter().map(|(_, bytes)| bytes.len() as f64).sum() };
        let hashed = self.timed(|| "state digest".into(), work, |o| o.merkle_roots(bufs))?;
        if hashed.is_none() {
            // The host hashes instead; nothing was done here.
            self.records.remove("state digest");
        }
        Ok(hashed)
    }

    fn embedding(
        &mut self,
        out: &mut O::Buf,
        ids: &O::Ids,
        wte: &O::Buf,
        wpe: &O::Buf,
        rows: Rows,
        channels: usize,
    ) -> Result<()> {
        let work = self.pass(2 * rows.count() * channels);
        self.timed(|| "embedding".into(), work, |o| o.embedding(out, ids, wte, wpe, rows, channels))
    }

    fn layernorm(
        &mut self,
        out: &mut O::Buf,
        mean: &mut O::Buf,
        rstd: &mut O::Buf,
        x: &O::Buf,
        weight: &O::Buf,
        bias: &O::Buf,
        n: usize,
        channels: usize,
    ) -> Result<()> {
        let work = self.pass(2 * n * channels);
        self.timed(
            || "layernorm".into(),
            work,
            |o| o.layernorm(out, mean, rstd, x, weight, bias, n, channels),
        )
    }

    fn residual_layernorm(
        &mut self,
        residual: &mut O::Buf,
        out: &mut O::Buf,
        mean: &mut O::Buf,
        rstd: &mut O::Buf,
        x: &O::Buf,
        branch: &O::Buf,
        weight: &O::Buf,
        bias: &O::Buf,
        n: usize,
        channels: usize,
    ) -> Result<()> {
        let work = self.pass(4 * n * channels);
        self.timed(
            || "residual + layernorm".into(),
            work,
            |o| o.residual_layernorm(residual, out, mean, rstd, x, branch, weight, bias, n, channels),
        )
    }

    fn linear(
        &mut self,
        out: &mut O::Buf,
        x: &O::Buf,
        weight: &O::Buf,
        bias: Option<&O::Buf>,
        n: usize,
        c_in: usize,
        c_out: usize,
    ) -> Result<()> {
        let work = self.product(n, c_in, c_out, 0);
        self.timed(
            || format!("linear {c_in} to {c_out}"),
            work,
            |o| o.linear(out, x, weight, bias, n, c_in, c_out),
        )
    }

    fn linear_gelu(
        &mut self,
        out: &mut O::Buf,
        pre: &mut O::Buf,
        x: &O::Buf,
        weight: &O::Buf,
        bias: &O::Buf,
        n: usize,
        c_in: usize,
        c_out: usize,
    ) -> Result<()> {
        let work = {
            let Work { flops, bytes } = self.product(n, c_in, c_out, 0);
            Work { flops, bytes: bytes + self.moved(n * c_out, 0) }
        };
        self.timed(
            || format!("linear + gelu {c_in} to {c_out}"),
            work,
            |o| o.linear_gelu(out, pre, x, weight, bias, n, c_in, c_out),
        )
    }

    fn gelu(&mut self, out: &mut O::Buf, pre: &O::Buf, len: usize) -> Result<()> {
        let work = self.pass(2 * len);
        self.timed(|| "gelu again".into(), work, |o| o.gelu(out, pre, len))
    }

    fn attention(
        &mut self,
        out: &mut O::Buf,
        lse: &mut O::Buf,
        qkv: &O::Buf,
        rows: Rows,
        heads: Heads,
    ) -> Result<()> {
        let work = Work {
            flops: attention_flops(rows, heads, 2),
            bytes: self.moved(4 * rows.count() * heads.heads * heads.head_size, 0),
        };
        self.timed(|| "attention".into(), work, |o| o.attention(out, lse, qkv, rows, heads))
    }

    fn classifier_loss(
        &mut self,
        losses: &mut O::Buf,
        at: usize,
        x: &O::Buf,
        wte: &O::Buf,
        targets: &O::Ids,
        n: usize,
        channels: usize,
        vocab: Vocab,
    ) -> Result<()> {
        let work = Work {
            flops: 2.0 * (n * channels * vocab.padded) as f64,
            bytes: self.moved(n * channels, channels * vocab.padded),
        };
        self.timed(
            || "classifier, loss alone".into(),
            work,
            |o| o.classifier_loss(losses, at, x, wte, targets, n, channels, vocab),
        )
    }

    fn copy(&mut self, dst: &mut O::Buf, to: usize, src: &O::Buf, from: usize, len: usize) -> Result<()> {
        let work = self.pass(2 * len);
        self.timed(|| "copy".into(), work, |o| o.copy(dst, to, src, from, len))
    }

    fn identity(&self, buf: &O::Buf) -> u64 {
        self.inner.identity(buf)
    }

    fn turn_aside(&mut self) -> Result<()> {
        self.inner.turn_aside()
    }

    fn turn_back(&mut self) -> Result<()> {
        self.inner.turn_back()
    }

    fn join_lanes(&mut self) -> Result<()> {
        self.inner.join_lanes()
    }

    // What is replayed as a whole has no parts to time.
    fn replay(&mut self, key: [u64; 4]) -> Result<bool> {
        if self.recording { Ok(false) } else { self.inner.replay(key) }
    }

    fn recorded(&mut self, key: [u64; 4]) -> Result<()> {
        if self.recording { Ok(()) } else { self.inner.recorded(key) }
    }

    fn decode_embedding(
        &mut self,
        out: &mut O::Buf,
        ids: &O::Ids,
        positions: &O::Ids,
        wte: &O::Buf,
        wpe: &O::Buf,
        n: usize,
        channels: usize,
    ) -> Result<()> {
        let work = self.pass(3 * n * channels);
        self.timed(
            || "decode embedding".into(),
            work,
            |o| o.decode_embedding(out, ids, positions, wte, wpe, n, channels),
        )
    }

    fn decode_linear(
        &mut self,
        out: &mut O::Buf,
        x: &O::Buf,
        weight: &O::Buf,
        bias: Option<&O::Buf>,
        gelu: bool,
        n: usize,
        c_in: usize,
        c_out: usize,
    ) -> Result<()> {
        let work = self.product(n, c_in, c_out, 0);
        self.timed(
            || format!("decode linear {c_in} to {c_out}"),
            work,
            |o| o.decode_linear(out, x, weight, bias, gelu, n, c_in, c_out),
        )
    }

    fn decode_attention(
        &mut self,
        out: &mut O::Buf,
        cache: KvCache<'_, O::Buf>,
        qkv: &O::Buf,
        at: Places<'_, O::Ids>,
        n: usize,
        heads: Heads,
    ) -> Result<()> {
        // Positions are the device's secret: the table shows time alone.
        let work = Work { flops: 0.0, bytes: 0.0 };
        self.timed(|| "decode attention".into(), work, |o| o.decode_attention(out, cache, qkv, at, n, heads))
    }

    fn classifier(
        &mut self,
        losses: &mut O::Buf,
        at: usize,
        dx: &mut O::Buf,
        dwte: &mut O::Buf,
        x: &O::Buf,
        wte: &O::Buf,
        targets: &O::Ids,
        n: usize,
        channels: usize,
        vocab: Vocab,
        scale: f32,
        write: Write,
    ) -> Result<()> {
        let work = {
            let bytes = self.moved(2 * n * channels, 2 * channels * vocab.padded)
                + 4.0 * (channels * vocab.padded) as f64;
            Work { flops: 6.0 * (n * channels * vocab.padded) as f64, bytes }
        };
        self.timed(
            || "classifier, forward and backward".into(),
            work,
            |o| o.classifier(losses, at, dx, dwte, x, wte, targets, n, channels, vocab, scale, write),
        )
    }

    fn layernorm_backward(
        &mut self,
        dx: &mut O::Buf,
        dx_write: Write,
        dweight: &mut O::Buf,
        dbias: &mut O::Buf,
        write: Write,
        dout: &O::Buf,
        x: &O::Buf,
        weight: &O::Buf,
        mean: &O::Buf,
        rstd: &O::Buf,
        n: usize,
        channels: usize,
    ) -> Result<()> {
        let work = self.pass((3 + usize::from(dx_write == Write::Add)) * n * channels);
        self.timed(
            || "layernorm backward".into(),
            work,
            |o| {
                o.layernorm_backward(
                    dx, dx_write, dweight, dbias, write, dout, x, weight, mean, rstd, n, channels,
                )
            },
        )
    }

    fn linear_backward_input(
        &mut self,
        dx: &mut O::Buf,
        dout: &O::Buf,
        weight: &O::Buf,
        n: usize,
        c_in: usize,
        c_out: usize,
    ) -> Result<()> {
        let work = self.product(n, c_out, c_in, 0);
        self.timed(
            || format!("input gradient {c_out} to {c_in}"),
            work,
            |o| o.linear_backward_input(dx, dout, weight, n, c_in, c_out),
        )
    }

    fn linear_backward_input_gelu(
        &mut self,
        dpre: &mut O::Buf,
        dout: &O::Buf,
        weight: &O::Buf,
        pre: &O::Buf,
        n: usize,
        c_in: usize,
        c_out: usize,
    ) -> Result<()> {
        let work = {
            let Work { flops, bytes } = self.product(n, c_out, c_in, 0);
            Work { flops, bytes: bytes + self.moved(n * c_in, 0) }
        };
        self.timed(
            || format!("input gradient + gelu {c_out} to {c_in}"),
            work,
            |o| o.linear_backward_input_gelu(dpre, dout, weight, pre, n, c_in, c_out),
        )
    }

    fn linear_backward_weight(
        &mut self,
        dweight: &mut O::Buf,
        dbias: Option<&mut O::Buf>,
        dout: &O::Buf,
        x: &O::Buf,
        n: usize,
        c_in: usize,
        c_out: usize,
        write: Write,
    ) -> Result<()> {
        let work = {
            let wide = (1 + usize::from(write == Write::Add)) * c_in * c_out;
            Work {
                flops: 2.0 * (n * c_in * c_out) as f64,
                bytes: self.moved(n * (c_in + c_out), 0) + 4.0 * wide as f64,
            }
        };
        self.timed(
            || format!("weight and bias gradient {c_in} to {c_out}"),
            work,
            |o| o.linear_backward_weight(dweight, dbias, dout, x, n, c_in, c_out, write),
        )
    }

    fn attention_backward(
        &mut self,
        dqkv: &mut O::Buf,
        dout: &O::Buf,
        qkv: &O::Buf,
        out: &O::Buf,
        lse: &O::Buf,
        rows: Rows,
        heads: Heads,
    ) -> Result<()> {
        let work = Work {
            flops: attention_flops(rows, heads, 5),
            bytes: self.moved(8 * rows.count() * heads.heads * heads.head_size, 0),
        };
        self.timed(
            || "attention backward".into(),
            work,
            |o| o.attention_backward(dqkv, dout, qkv, out, lse, rows, heads),
        )
    }

    fn embedding_backward(
        &mut self,
        dwte: &mut O::Buf,
        dwpe: &mut O::Buf,
        write: Write,
        dout: &O::Buf,
        ids: &O::Ids,
        rows: Rows,
        channels: usize,
    ) -> Result<()> {
        let work = self.pass(2 * rows.count() * channels);
        self.timed(
            || "embedding backward".into(),
            work,
            |o| o.embedding_backward(dwte, dwpe, write, dout, ids, rows, channels),
        )
    }

    fn sum_squares(&mut self, bufs: &[&O::Buf]) -> Result<Vec<f64>> {
        // Lengths are the device's secret: the table shows time alone.
        let work = Work { flops: 0.0, bytes: 0.0 };
        self.timed(|| "gradient norm".into(), work, |o| o.sum_squares(bufs))
    }

    fn chunk(&self) -> usize {
        self.inner.chunk()
    }

    fn chunk_squares(&mut self, parts: &[(&O::Buf, Range<usize>)]) -> Result<Vec<f64>> {
        let work =
            Work { flops: 0.0, bytes: 4.0 * parts.iter().map(|(_, part)| part.len()).sum::<usize>() as f64 };
        self.timed(|| "gradient norm".into(), work, |o| o.chunk_squares(parts))
    }

    fn fold_squares(&self, chunks: &[f64]) -> f64 {
        self.inner.fold_squares(chunks)
    }

    fn adamw(&mut self, slots: &mut [ParamSlot<'_, Self>], update: &AdamW) -> Result<()> {
        let work = Work { flops: 0.0, bytes: 0.0 };
        let mut inner: Vec<ParamSlot<'_, O>> = slots
            .iter_mut()
            .map(|slot| ParamSlot {
                id: slot.id,
                at: slot.at,
                param: &mut *slot.param,
                master: slot.master.as_deref_mut(),
                grad: slot.grad,
                grad_at: slot.grad_at,
                adam_m: &mut *slot.adam_m,
                adam_v: &mut *slot.adam_v,
                weight_decay: slot.weight_decay,
            })
            .collect();
        self.timed(|| "AdamW".into(), work, |o| o.adamw(&mut inner, update))
    }

    fn add(&mut self, dst: &mut O::Buf, src: &O::Buf) -> Result<()> {
        let work = Work { flops: 0.0, bytes: 0.0 };
        self.timed(|| "sum of workers".into(), work, |o| o.add(dst, src))
    }

    fn add_part(&mut self, dst: &mut O::Buf, at: usize, src: &O::Buf, from: usize, len: usize) -> Result<()> {
        let work = Work { flops: 0.0, bytes: 12.0 * len as f64 };
        self.timed(|| "sum of workers".into(), work, |o| o.add_part(dst, at, src, from, len))
    }
}
