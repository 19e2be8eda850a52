//! The operations of [`Ops`] in the mirror: each checks its operands and hands slices on.

use half::bf16;

use super::attention::{self, Backward};
use super::buffer::{Buffer, Data};
use super::linear::{self, WeightGradient};
use super::norm::{self, ForwardPass, Normalised, WeightGradients};
use super::{GeluSums, Mirror, classifier, decode, embedding, optimizer};
use crate::ops::cpu::checks::{available_bytes, failed, indices, tokens};
use crate::ops::cuda::launch::classifier::chunk_rows;
use crate::ops::cuda::launch::optimizer::{CHUNK, fold_squares};
use crate::ops::{
    AdamWUpdate, Add, AddPart, Attention, AttentionBackward, ChunkSquares, Classifier, ClassifierLoss,
    CopyPart, DecodeAttention, DecodeEmbedding, DecodeLinear, DeviceError, Dtype, Embedding,
    EmbeddingBackward, Gelu, Heads, KvCache, Layernorm, LayernormBackward, Linear, LinearBackwardInput,
    LinearBackwardInputGelu, LinearBackwardWeight, LinearGelu, LinearShape, Ops, ResidualLayernorm, Result,
    Role, ScratchShape, SumSquares, Vocab, Write,
};

/// Token ids in memory.
pub struct Ids(Vec<u16>);

fn short(op: &'static str, name: &str, have: usize, len: usize) -> DeviceError {
    failed(op, format!("`{name}` has {have} elements, {len} are needed"))
}

fn wrong(op: &'static str, name: &str, expected: Dtype) -> DeviceError {
    failed(op, format!("`{name}` is not {expected}"))
}

/// The first `len` elements of a tensor of activations or weights.
fn act<'a>(op: &'static str, name: &str, buf: &'a Buffer, len: usize) -> Result<&'a [bf16]> {
    let Data::Bf16(data) = &buf.data else { return Err(wrong(op, name, Dtype::BF16)) };
    data.get(..len).ok_or_else(|| short(op, name, data.len(), len))
}

fn float<'a>(op: &'static str, name: &str, buf: &'a Buffer, len: usize) -> Result<&'a [f32]> {
    let Data::F32(data) = &buf.data else { return Err(wrong(op, name, Dtype::F32)) };
    data.get(..len).ok_or_else(|| short(op, name, data.len(), len))
}

fn float_mut<'a>(op: &'static str, name: &str, buf: &'a mut Buffer, len: usize) -> Result<&'a mut [f32]> {
    let have = buf.len();
    let Data::F32(data) = &mut buf.data else { return Err(wrong(op, name, Dtype::F32)) };
    data.get_mut(..len).ok_or_else(|| short(op, name, have, len))
}

fn same_len(op: &'static str, a: usize, b: usize) -> Result<()> {
    if a == b { Ok(()) } else { Err(failed(op, format!("{a} elements do not fit {b}"))) }
}

/// Rows are read eight elements at a time.
fn row_length(op: &'static str, length: usize) -> Result<()> {
    if length > 0 && length.is_multiple_of(8) {
        return Ok(());
    }
    Err(failed(op, format!("a row of {length} elements is not a multiple of 8")))
}

fn head_size(op: &'static str, heads: Heads) -> Result<()> {
    if matches!(heads.head_size, 64 | 128) {
        return Ok(());
    }
    Err(failed(
        op,
        format!(
            "heads of {} channels: the mirror has those of 64 and 128, as Hopper's own kernels do\n  \
             hint: choose `model.heads` so that `model.channels` / `model.heads` is 64 or 128",
            heads.head_size
        ),
    ))
}

impl Mirror {
    /// A tensor of activations that is about to be written: what was known of its columns is no longer so.
    fn act_mut<'a>(
        &mut self,
        op: &'static str,
        name: &str,
        buf: &'a mut Buffer,
        len: usize,
    ) -> Result<&'a mut [bf16]> {
        self.written(buf);
        let have = buf.len();
        let Data::Bf16(data) = &mut buf.data else { return Err(wrong(op, name, Dtype::BF16)) };
        data.get_mut(..len).ok_or_else(|| short(op, name, have, len))
    }

    fn written(&mut self, buf: &Buffer) {
        self.gelu_sums = self.gelu_sums.take().filter(|sums| sums.buffer != buf.id);
    }

    /// A weight gradient with the sums in the order of `whole`, of which it may be an excerpt, and the bias
    /// gradient from the `known` sums of GELU's gradient where there are any.
    pub(super) fn weight_gradient(
        &self,
        op: LinearBackwardWeight<'_, Buffer>,
        whole: LinearShape,
        known: Option<&[f32]>,
    ) -> Result<()> {
        const OP: &str = "linear_backward_weight";
        let LinearBackwardWeight { dweight, dbias, dout, x, shape, write } = op;
        let gradient = WeightGradient {
            dout: act(OP, "dout", dout, shape.output())?,
            x: act(OP, "x", x, shape.input())?,
            shape,
            write,
            whole,
        };
        gradient.weight(&self.engine, float_mut(OP, "dweight", dweight, shape.weight())?);
        if let Some(dbias) = dbias {
            gradient.bias(&self.engine, float_mut(OP, "dbias", dbias, shape.c_out)?, known);
        }
        Ok(())
    }

    /// The partial sums that GELU's gradient `dout` leaves for the bias gradient.
    pub(super) fn sums_after_gelu(&self, dout: &Buffer, shape: LinearShape) -> Result<Vec<f32>> {
        let dout = act("linear_backward_weight", "dout", dout, shape.output())?;
        Ok(linear::gelu_sums(&self.engine, dout, shape.c_out))
    }

    /// Losses and, where asked for, gradients, one chunk of rows after the other.
    fn classify(&self, problem: Problem<'_>, mut gradient: Option<Gradient<'_>>) {
        let Problem { losses, x, wte, targets, channels, vocab } = problem;
        let rows = losses.len();
        let size = chunk_rows(rows as u64, vocab.padded as u64, 2) as usize;
        for first in (0..rows).step_by(size) {
            let shape = LinearShape { rows: size.min(rows - first), c_in: channels, c_out: vocab.padded };
            let x = &x[first * channels..][..shape.input()];
            let mut logits = vec![bf16::ZERO; shape.output()];
            linear::forward(&self.engine, &mut logits, x, wte, None, shape);
            let rows = classifier::Rows {
                logits: &mut logits,
                losses: &mut losses[first..][..shape.rows],
                targets: &targets[first..],
                vocab,
            };
            classifier::run(&self.engine, rows, gradient.as_ref().map(|gradient| gradient.scale));
            let Some(Gradient { dx, dwte, write, .. }) = &mut gradient else { continue };
            let dx = &mut dx[first * channels..][..shape.input()];
            linear::backward_input(&self.engine, dx, &logits, wte, shape);
            let write = if first > 0 { Write::Add } else { *write };
            WeightGradient { dout: &logits, x, shape, write, whole: shape }.weight(&self.engine, dwte);
        }
    }
}

/// The operands of the classifier.
struct Problem<'a> {
    losses: &'a mut [f32],
    x: &'a [bf16],
    wte: &'a [bf16],
    targets: &'a [u16],
    channels: usize,
    vocab: Vocab,
}

struct Gradient<'a> {
    dx: &'a mut [bf16],
    dwte: &'a mut [f32],
    scale: f32,
    write: Write,
}

impl Ops for Mirror {
    type Buf = Buffer;
    type Ids = Ids;

    fn device_name(&self) -> String {
        format!("mirror of Hopper in bf16, {} CPU threads", self.engine.threads)
    }

    fn dtype(&self, role: Role) -> Dtype {
        match role {
            Role::Param | Role::Activation => Dtype::BF16,
            Role::F32 => Dtype::F32,
        }
    }

    fn alloc(&mut self, role: Role, len: usize) -> Result<Buffer> {
        let dtype = self.dtype(role);
        let (need, free) = ((len * dtype.size()) as u64, available_bytes().unwrap_or(u64::MAX));
        if need > free {
            return Err(DeviceError::OutOfMemory {
                device: "mirror".into(),
                what: format!("{role:?} buffer of {len} elements"),
                need_bytes: need,
                free_bytes: free,
            });
        }
        Ok(Buffer::zeroed(dtype, len))
    }

    fn alloc_ids(&mut self, len: usize) -> Result<Ids> {
        Ok(Ids(vec![0; len]))
    }

    fn alloc_scratch(&mut self, shape: &ScratchShape) -> Result<()> {
        row_length("alloc_scratch", shape.channels)
    }

    fn upload_ids(&mut self, dst: &mut Ids, ids: &[u16]) -> Result<()> {
        let have = dst.0.len();
        let to = dst.0.get_mut(..ids.len()).ok_or_else(|| short("upload_ids", "dst", have, ids.len()))?;
        to.copy_from_slice(ids);
        Ok(())
    }

    fn upload(&mut self, dst: &mut Buffer, src: &[f32]) -> Result<()> {
        const OP: &str = "upload";
        self.written(dst);
        let have = dst.len();
        let fits = || short(OP, "dst", have, src.len());
        match &mut dst.data {
            Data::Bf16(data) => {
                let to = data.get_mut(..src.len()).ok_or_else(fits)?;
                to.iter_mut().zip(src).for_each(|(to, from)| *to = bf16::from_f32(*from));
            }
            Data::F32(data) => data.get_mut(..src.len()).ok_or_else(fits)?.copy_from_slice(src),
        }
        Ok(())
    }

    fn download(&mut self, src: &Buffer, dst: &mut [f32]) -> Result<()> {
        if dst.len() > src.len() {
            return Err(short("download", "src", src.len(), dst.len()));
        }
        dst.iter_mut().enumerate().for_each(|(i, to)| *to = src.get(i));
        Ok(())
    }

    fn read_at(&mut self, src: &Buffer, at: usize, dst: &mut [u8]) -> Result<()> {
        let stored = src.bytes().get(at..at + dst.len());
        dst.copy_from_slice(stored.ok_or_else(|| short("read_at", "src", src.len(), at + dst.len()))?);
        Ok(())
    }

    fn write_at(&mut self, dst: &mut Buffer, at: usize, src: &[u8]) -> Result<()> {
        self.written(dst);
        let have = dst.len();
        let stored = dst.bytes_mut().get_mut(at..at + src.len());
        stored.ok_or_else(|| short("write_at", "dst", have, at + src.len()))?.copy_from_slice(src);
        Ok(())
    }

    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }

    fn embedding(&mut self, op: Embedding<'_, Buffer, Ids>) -> Result<()> {
        const OP: &str = "embedding";
        let Embedding { out, ids, wte, wpe, rows, channels } = op;
        row_length(OP, channels)?;
        let out = self.act_mut(OP, "out", out, rows.count() * channels)?;
        let ids = tokens(OP, &ids.0, rows.count(), wte.len() / channels)?;
        let places = ids.iter().enumerate().map(|(i, id)| (usize::from(*id), i % rows.seq));
        let wpe = act(OP, "wpe", wpe, rows.seq * channels)?;
        embedding::forward(out, places, act(OP, "wte", wte, wte.len())?, wpe, channels);
        Ok(())
    }

    fn layernorm(&mut self, op: Layernorm<'_, Buffer>) -> Result<()> {
        const OP: &str = "layernorm";
        let Layernorm { out, mean, rstd, x, weight, bias, rows, channels } = op;
        row_length(OP, channels)?;
        let to = Normalised {
            out: self.act_mut(OP, "out", out, rows * channels)?,
            mean: float_mut(OP, "mean", mean, rows)?,
            rstd: float_mut(OP, "rstd", rstd, rows)?,
        };
        let (weight, bias) = (act(OP, "weight", weight, channels)?, act(OP, "bias", bias, channels)?);
        norm::forward(&self.engine, to, act(OP, "x", x, rows * channels)?, weight, bias);
        Ok(())
    }

    fn residual_layernorm(&mut self, op: ResidualLayernorm<'_, Buffer>) -> Result<()> {
        const OP: &str = "residual_layernorm";
        let ResidualLayernorm { residual, out, mean, rstd, x, branch, weight, bias, rows, channels } = op;
        let sum = self.act_mut(OP, "residual", residual, rows * channels)?;
        let (x, branch) = (act(OP, "x", x, rows * channels)?, act(OP, "branch", branch, rows * channels)?);
        norm::add_branch(sum, x, branch);
        self.layernorm(Layernorm { out, mean, rstd, x: residual, weight, bias, rows, channels })
    }

    fn linear(&mut self, op: Linear<'_, Buffer>) -> Result<()> {
        const OP: &str = "linear";
        let Linear { out, x, weight, bias, shape } = op;
        let out = self.act_mut(OP, "out", out, shape.output())?;
        let bias = bias.map(|bias| act(OP, "bias", bias, shape.c_out)).transpose()?;
        let (x, weight) = (act(OP, "x", x, shape.input())?, act(OP, "weight", weight, shape.weight())?);
        linear::forward(&self.engine, out, x, weight, bias, shape);
        Ok(())
    }

    fn linear_gelu(&mut self, op: LinearGelu<'_, Buffer>) -> Result<()> {
        let LinearGelu { out, pre, x, weight, bias, shape } = op;
        self.linear(Linear { out: pre, x, weight, bias: Some(bias), shape })?;
        self.gelu(Gelu { out, pre, len: shape.output() })
    }

    fn gelu(&mut self, op: Gelu<'_, Buffer>) -> Result<()> {
        const OP: &str = "gelu";
        let Gelu { out, pre, len } = op;
        let out = self.act_mut(OP, "out", out, len)?;
        linear::gelu_forward(&self.engine, out, act(OP, "pre", pre, len)?);
        Ok(())
    }

    fn attention(&mut self, op: Attention<'_, Buffer>) -> Result<()> {
        const OP: &str = "attention";
        let Attention { out, lse, qkv, rows, heads } = op;
        head_size(OP, heads)?;
        let len = rows.count() * heads.channels();
        let out = self.act_mut(OP, "out", out, len)?;
        let lse = float_mut(OP, "lse", lse, rows.count() * heads.heads)?;
        attention::forward(&self.engine, out, lse, act(OP, "qkv", qkv, 3 * len)?, rows, heads);
        Ok(())
    }

    fn classifier_loss(&mut self, op: ClassifierLoss<'_, Buffer, Ids>) -> Result<()> {
        const OP: &str = "classifier_loss";
        let ClassifierLoss { losses, losses_at, x, wte, targets, rows, channels, vocab } = op;
        row_length(OP, vocab.padded)?;
        let problem = Problem {
            losses: &mut float_mut(OP, "losses", losses, losses_at + rows)?[losses_at..],
            x: act(OP, "x", x, rows * channels)?,
            wte: act(OP, "wte", wte, vocab.padded * channels)?,
            targets: tokens(OP, &targets.0, rows, vocab.used)?,
            channels,
            vocab,
        };
        self.classify(problem, None);
        Ok(())
    }

    fn copy(&mut self, op: CopyPart<'_, Buffer>) -> Result<()> {
        const OP: &str = "copy";
        let CopyPart { dst, at, src, from, len } = op;
        self.written(dst);
        match (&mut dst.data, &src.data) {
            (Data::Bf16(dst), Data::Bf16(src)) => copy_part(OP, dst, at, src, from, len),
            (Data::F32(dst), Data::F32(src)) => copy_part(OP, dst, at, src, from, len),
            _ => Err(failed(OP, "`dst` and `src` have other types".into())),
        }
    }

    fn decode_embedding(&mut self, op: DecodeEmbedding<'_, Buffer, Ids>) -> Result<()> {
        const OP: &str = "decode_embedding";
        let DecodeEmbedding { out, ids, positions, wte, wpe, rows, channels } = op;
        let out = self.act_mut(OP, "out", out, rows * channels)?;
        let ids = tokens(OP, &ids.0, rows, wte.len() / channels)?;
        let positions = indices(OP, "position", &positions.0, rows, wpe.len() / channels)?;
        let places = ids.iter().zip(positions).map(|(id, at)| (usize::from(*id), usize::from(*at)));
        let wte = act(OP, "wte", wte, wte.len())?;
        embedding::forward(out, places, wte, act(OP, "wpe", wpe, wpe.len())?, channels);
        Ok(())
    }

    fn decode_linear(&mut self, op: DecodeLinear<'_, Buffer>) -> Result<()> {
        const OP: &str = "decode_linear";
        let DecodeLinear { out, x, weight, bias, gelu, shape } = op;
        row_length(OP, shape.c_in)?;
        let layer = decode::Linear {
            x: act(OP, "x", x, shape.input())?,
            weight: act(OP, "weight", weight, shape.weight())?,
            bias: bias.map(|bias| act(OP, "bias", bias, shape.c_out)).transpose()?,
            gelu,
            shape,
        };
        let sums = decode::linear(&self.engine, layer);
        self.written(out);
        let have = out.len();
        let fits = || short(OP, "out", have, shape.output());
        match &mut out.data {
            Data::Bf16(out) => {
                let out = out.get_mut(..shape.output()).ok_or_else(fits)?;
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out = super::scalar::round(sum));
            }
            Data::F32(out) => out.get_mut(..shape.output()).ok_or_else(fits)?.copy_from_slice(&sums),
        }
        Ok(())
    }

    fn decode_attention(&mut self, op: DecodeAttention<'_, Buffer, Ids>) -> Result<()> {
        const OP: &str = "decode_attention";
        let DecodeAttention { out, cache, qkv, at, rows, heads } = op;
        let KvCache { keys, values, capacity } = cache;
        let channels = heads.channels();
        let cached = keys.len().min(values.len());
        let queries = decode::Queries {
            qkv: act(OP, "qkv", qkv, 3 * rows * channels)?,
            streams: indices(OP, "stream", &at.streams.0, rows, cached / (capacity * channels))?,
            positions: indices(OP, "position", &at.positions.0, rows, capacity)?,
            heads,
            capacity,
        };
        let (keys, values) =
            (self.act_mut(OP, "keys", keys, cached)?, self.act_mut(OP, "values", values, cached)?);
        decode::store(keys, values, queries);
        decode::attention(self.act_mut(OP, "out", out, rows * channels)?, keys, values, queries);
        Ok(())
    }

    fn classifier(&mut self, op: Classifier<'_, Buffer, Ids>) -> Result<()> {
        const OP: &str = "classifier";
        let (rows, channels, vocab) = (op.rows, op.channels, op.vocab);
        row_length(OP, vocab.padded)?;
        let problem = Problem {
            losses: &mut float_mut(OP, "losses", op.losses, op.losses_at + rows)?[op.losses_at..],
            x: act(OP, "x", op.x, rows * channels)?,
            wte: act(OP, "wte", op.wte, vocab.padded * channels)?,
            targets: tokens(OP, &op.targets.0, rows, vocab.used)?,
            channels,
            vocab,
        };
        let gradient = Gradient {
            dx: self.act_mut(OP, "dx", op.dx, rows * channels)?,
            dwte: float_mut(OP, "dwte", op.dwte, vocab.padded * channels)?,
            scale: op.scale,
            write: op.write,
        };
        self.classify(problem, Some(gradient));
        Ok(())
    }

    fn layernorm_backward(&mut self, op: LayernormBackward<'_, Buffer>) -> Result<()> {
        const OP: &str = "layernorm_backward";
        let (rows, channels) = (op.rows, op.channels);
        row_length(OP, channels)?;
        let forward = ForwardPass {
            x: act(OP, "x", op.x, rows * channels)?,
            weight: act(OP, "weight", op.weight, channels)?,
            mean: float(OP, "mean", op.mean, rows)?,
            rstd: float(OP, "rstd", op.rstd, rows)?,
        };
        let weights = WeightGradients {
            dweight: float_mut(OP, "dweight", op.dweight, channels)?,
            dbias: float_mut(OP, "dbias", op.dbias, channels)?,
            write: op.write,
        };
        let dx = self.act_mut(OP, "dx", op.dx, rows * channels)?;
        norm::backward(
            &self.engine,
            dx,
            op.dx_write,
            weights,
            act(OP, "dout", op.dout, rows * channels)?,
            forward,
        );
        Ok(())
    }

    fn linear_backward_input(&mut self, op: LinearBackwardInput<'_, Buffer>) -> Result<()> {
        const OP: &str = "linear_backward_input";
        let LinearBackwardInput { dx, dout, weight, shape } = op;
        let dx = self.act_mut(OP, "dx", dx, shape.input())?;
        let (dout, weight) =
            (act(OP, "dout", dout, shape.output())?, act(OP, "weight", weight, shape.weight())?);
        linear::backward_input(&self.engine, dx, dout, weight, shape);
        Ok(())
    }

    fn linear_backward_input_gelu(&mut self, op: LinearBackwardInputGelu<'_, Buffer>) -> Result<()> {
        const OP: &str = "linear_backward_input_gelu";
        let LinearBackwardInputGelu { dpre, dout, weight, pre, shape } = op;
        self.linear_backward_input(LinearBackwardInput { dx: dpre, dout, weight, shape })?;
        let buffer = dpre.id;
        let values = self.act_mut(OP, "dpre", dpre, shape.input())?;
        let pre = act(OP, "pre", pre, shape.input())?;
        linear::gelu_gradient(&self.engine, values, pre);
        let partials = linear::gelu_sums(&self.engine, values, shape.c_in);
        self.gelu_sums = Some(GeluSums { buffer, rows: shape.rows, width: shape.c_in, partials });
        Ok(())
    }

    fn linear_backward_weight(&mut self, op: LinearBackwardWeight<'_, Buffer>) -> Result<()> {
        let (dout, whole) = (op.dout.id, op.shape);
        let left = |sums: &GeluSums| (sums.buffer, sums.rows, sums.width) == (dout, whole.rows, whole.c_out);
        let known = self.gelu_sums.as_ref().filter(|sums| left(sums));
        self.weight_gradient(op, whole, known.map(|sums| sums.partials.as_slice()))
    }

    fn attention_backward(&mut self, op: AttentionBackward<'_, Buffer>) -> Result<()> {
        const OP: &str = "attention_backward";
        let AttentionBackward { dqkv, dout, qkv, out, lse, rows, heads } = op;
        head_size(OP, heads)?;
        let len = rows.count() * heads.channels();
        let backward = Backward {
            dout: act(OP, "dout", dout, len)?,
            qkv: act(OP, "qkv", qkv, 3 * len)?,
            out: act(OP, "out", out, len)?,
            lse: float(OP, "lse", lse, rows.count() * heads.heads)?,
            rows,
            heads,
        };
        let dqkv = self.act_mut(OP, "dqkv", dqkv, 3 * len)?;
        attention::backward(&self.engine, dqkv, backward);
        Ok(())
    }

    fn embedding_backward(&mut self, op: EmbeddingBackward<'_, Buffer, Ids>) -> Result<()> {
        const OP: &str = "embedding_backward";
        let EmbeddingBackward { dwte, dwpe, write, dout, ids, rows, channels } = op;
        let vocab = dwte.len() / channels;
        let ids = tokens(OP, &ids.0, rows.count(), vocab)?;
        let dout = act(OP, "dout", dout, rows.count() * channels)?;
        let dwte = float_mut(OP, "dwte", dwte, vocab * channels)?;
        embedding::backward_tokens(&self.engine, dwte, dout, ids, channels);
        let table = dwpe.len();
        float(OP, "dwpe", dwpe, rows.seq * channels)?;
        let dwpe = float_mut(OP, "dwpe", dwpe, table)?;
        embedding::backward_positions(dwpe, write, dout, rows, channels);
        Ok(())
    }

    fn sum_squares(&mut self, op: SumSquares<'_, Buffer>) -> Result<Vec<f64>> {
        let sum = |tensor: &&Buffer| {
            let data = float("sum_squares", "tensor", tensor, tensor.len())?;
            Ok(fold_squares(&optimizer::chunk_squares(&self.engine, data)))
        };
        op.tensors.iter().map(sum).collect()
    }

    fn chunk_squares(&mut self, op: ChunkSquares<'_, Buffer>) -> Result<Vec<f64>> {
        let mut sums = Vec::new();
        for (buf, part) in op.parts {
            let data = float("chunk_squares", "part", buf, part.end)?;
            sums.extend(optimizer::chunk_squares(&self.engine, &data[part.start..]));
        }
        Ok(sums)
    }

    fn adamw(&mut self, op: AdamWUpdate<'_, Buffer>) -> Result<()> {
        const OP: &str = "adamw";
        for slot in op.slots {
            let len = slot.adam_m.len();
            let param = self.act_mut(OP, "param", slot.param, slot.at + len)?;
            let part = optimizer::Part {
                param: &mut param[slot.at..],
                master: slot.master.map(|master| float_mut(OP, "master", master, len)).transpose()?,
                grad: &float(OP, "grad", slot.grad, slot.grad_at + len)?[slot.grad_at..],
                adam_m: float_mut(OP, "adam_m", slot.adam_m, len)?,
                adam_v: float_mut(OP, "adam_v", slot.adam_v, len)?,
                offset: slot.at,
                id: slot.id,
                weight_decay: slot.weight_decay,
            };
            optimizer::adamw(part, &op.scalars);
        }
        Ok(())
    }

    fn add(&mut self, op: Add<'_, Buffer>) -> Result<()> {
        const OP: &str = "add";
        let len = op.dst.len();
        same_len(OP, op.src.len(), len)?;
        optimizer::add(float_mut(OP, "dst", op.dst, len)?, float(OP, "src", op.src, len)?);
        Ok(())
    }

    fn add_part(&mut self, op: AddPart<'_, Buffer>) -> Result<()> {
        const OP: &str = "add_part";
        let AddPart { dst, at, src, from, len } = op;
        let src = &float(OP, "src", src, from + len)?[from..];
        optimizer::add(&mut float_mut(OP, "dst", dst, at + len)?[at..], src);
        Ok(())
    }

    fn chunk(&self) -> usize {
        CHUNK as usize
    }

    fn fold_squares(&self, chunks: &[f64]) -> f64 {
        fold_squares(chunks)
    }
}

fn copy_part<T: Copy>(
    op: &'static str,
    dst: &mut [T],
    at: usize,
    src: &[T],
    from: usize,
    len: usize,
) -> Result<()> {
    let have = (src.len(), dst.len());
    let src = src.get(from..from + len).ok_or_else(|| short(op, "src", have.0, from + len))?;
    dst.get_mut(at..at + len).ok_or_else(|| short(op, "dst", have.1, at + len))?.copy_from_slice(src);
    Ok(())
}
