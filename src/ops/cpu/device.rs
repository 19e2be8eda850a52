//! The operations of [`Ops`] on the CPU: each checks lengths and token ids, and hands slices on.

use super::super::{
    AdamWUpdate, Add, AddPart, Attention, AttentionBackward, ChunkSquares, Classifier, ClassifierLoss,
    CopyPart, DecodeAttention, DecodeEmbedding, DecodeLinear, DeviceError, Dtype, Embedding,
    EmbeddingBackward, Gelu, KvCache, Layernorm, LayernormBackward, Linear, LinearBackwardInput,
    LinearBackwardInputGelu, LinearBackwardWeight, LinearGelu, Ops, ResidualLayernorm, Result, Role,
    ScratchShape, SumSquares,
};
use super::buffer::Buffer;
use super::checks::{
    DEVICE, available_bytes, failed, indices, same_len, tokens, view, view_mut, whole_floats,
};
use super::{Cpu, attention, classifier, decode, embedding, linear, norm, optimizer};
use super::{shared_scratch, thread_scratch};

/// Token ids in memory.
pub struct Ids(pub(super) Vec<u16>);

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

    fn embedding(&mut self, op: Embedding<'_, Buffer, Ids>) -> Result<()> {
        const OP: &str = "embedding";
        let Embedding { out, ids, wte, wpe, rows, channels } = op;
        let out = view_mut(OP, "out", out, rows.count() * channels)?;
        let wpe = view(OP, "wpe", wpe, rows.seq * channels)?;
        let ids = tokens(OP, &ids.0, rows.count(), wte.len() / channels)?;
        embedding::forward(&self.engine, out, ids, wte.as_slice(), wpe, rows, channels);
        Ok(())
    }

    fn layernorm(&mut self, op: Layernorm<'_, Buffer>) -> Result<()> {
        const OP: &str = "layernorm";
        let Layernorm { out, mean, rstd, x, weight, bias, rows, channels } = op;
        norm::forward(
            &self.engine,
            view_mut(OP, "out", out, rows * channels)?,
            view_mut(OP, "mean", mean, rows)?,
            view_mut(OP, "rstd", rstd, rows)?,
            view(OP, "x", x, rows * channels)?,
            view(OP, "weight", weight, channels)?,
            view(OP, "bias", bias, channels)?,
        );
        Ok(())
    }

    fn residual_layernorm(&mut self, op: ResidualLayernorm<'_, Buffer>) -> Result<()> {
        const OP: &str = "residual_layernorm";
        let (rows, channels) = (op.rows, op.channels);
        norm::forward_residual(
            &self.engine,
            norm::Residual {
                sum: view_mut(OP, "residual", op.residual, rows * channels)?,
                x: view(OP, "x", op.x, rows * channels)?,
                branch: view(OP, "branch", op.branch, rows * channels)?,
            },
            view_mut(OP, "out", op.out, rows * channels)?,
            view_mut(OP, "mean", op.mean, rows)?,
            view_mut(OP, "rstd", op.rstd, rows)?,
            view(OP, "weight", op.weight, channels)?,
            view(OP, "bias", op.bias, channels)?,
        );
        Ok(())
    }

    fn linear(&mut self, op: Linear<'_, Buffer>) -> Result<()> {
        const OP: &str = "linear";
        let Linear { out, x, weight, bias, shape } = op;
        let bias = bias.map(|bias| view(OP, "bias", bias, shape.c_out)).transpose()?;
        let out = view_mut(OP, "out", out, shape.output())?;
        let (x, weight) = (view(OP, "x", x, shape.input())?, view(OP, "weight", weight, shape.weight())?);
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
        linear::gelu(&self.engine, view_mut(OP, "out", out, len)?, view(OP, "pre", pre, len)?);
        Ok(())
    }

    fn attention(&mut self, op: Attention<'_, Buffer>) -> Result<()> {
        const OP: &str = "attention";
        let Attention { out, lse, qkv, rows, heads } = op;
        let len = rows.count() * heads.channels();
        let out = view_mut(OP, "out", out, len)?;
        let lse = view_mut(OP, "lse", lse, rows.count() * heads.heads)?;
        attention::forward(&self.engine, out, lse, view(OP, "qkv", qkv, 3 * len)?, rows, heads);
        Ok(())
    }

    fn classifier_loss(&mut self, op: ClassifierLoss<'_, Buffer, Ids>) -> Result<()> {
        const OP: &str = "classifier_loss";
        let ClassifierLoss { losses, losses_at, x, wte, targets, rows, channels, vocab } = op;
        let losses = &mut view_mut(OP, "losses", losses, losses_at + rows)?[losses_at..];
        let problem = classifier::Problem {
            x: view(OP, "x", x, rows * channels)?,
            wte: view(OP, "wte", wte, vocab.padded * channels)?,
            targets: tokens(OP, &targets.0, rows, vocab.used)?,
            channels,
            vocab,
        };
        classifier::run(&self.engine, &mut self.scratch, losses, problem, None);
        Ok(())
    }

    fn copy(&mut self, op: CopyPart<'_, Buffer>) -> Result<()> {
        const OP: &str = "copy";
        let CopyPart { dst, at, src, from, len } = op;
        let src = &view(OP, "src", src, from + len)?[from..];
        view_mut(OP, "dst", dst, at + len)?[at..].copy_from_slice(src);
        Ok(())
    }

    fn decode_embedding(&mut self, op: DecodeEmbedding<'_, Buffer, Ids>) -> Result<()> {
        const OP: &str = "decode_embedding";
        let DecodeEmbedding { out, ids, positions, wte, wpe, rows, channels } = op;
        let out = view_mut(OP, "out", out, rows * channels)?;
        let ids = tokens(OP, &ids.0, rows, wte.len() / channels)?;
        let positions = indices(OP, "position", &positions.0, rows, wpe.len() / channels)?;
        decode::embedding(out, ids, positions, wte.as_slice(), wpe.as_slice(), channels);
        Ok(())
    }

    fn decode_linear(&mut self, op: DecodeLinear<'_, Buffer>) -> Result<()> {
        const OP: &str = "decode_linear";
        let DecodeLinear { out, x, weight, bias, gelu, shape } = op;
        let layer = decode::Linear {
            x: view(OP, "x", x, shape.input())?,
            weight: view(OP, "weight", weight, shape.weight())?,
            bias: bias.map(|bias| view(OP, "bias", bias, shape.c_out)).transpose()?,
            gelu,
            c_in: shape.c_in,
        };
        decode::linear(&self.engine, view_mut(OP, "out", out, shape.output())?, shape.c_out, layer);
        Ok(())
    }

    fn decode_attention(&mut self, op: DecodeAttention<'_, Buffer, Ids>) -> Result<()> {
        const OP: &str = "decode_attention";
        let DecodeAttention { out, cache, qkv, at, rows, heads } = op;
        let KvCache { keys, values, capacity } = cache;
        let channels = heads.channels();
        let streams = keys.len().min(values.len()) / (capacity * channels);
        let queries = decode::Attention {
            qkv: view(OP, "qkv", qkv, 3 * rows * channels)?,
            streams: indices(OP, "stream", &at.streams.0, rows, streams)?,
            positions: indices(OP, "position", &at.positions.0, rows, capacity)?,
            heads,
            capacity,
        };
        let out = view_mut(OP, "out", out, rows * channels)?;
        decode::attention(&self.engine, out, keys.as_mut_slice(), values.as_mut_slice(), &queries);
        Ok(())
    }

    fn classifier(&mut self, op: Classifier<'_, Buffer, Ids>) -> Result<()> {
        const OP: &str = "classifier";
        let (rows, channels, vocab) = (op.rows, op.channels, op.vocab);
        let losses = &mut view_mut(OP, "losses", op.losses, op.losses_at + rows)?[op.losses_at..];
        let problem = classifier::Problem {
            x: view(OP, "x", op.x, rows * channels)?,
            wte: view(OP, "wte", op.wte, vocab.padded * channels)?,
            targets: tokens(OP, &op.targets.0, rows, vocab.used)?,
            channels,
            vocab,
        };
        let gradient = classifier::Gradient {
            dx: view_mut(OP, "dx", op.dx, rows * channels)?,
            dwte: view_mut(OP, "dwte", op.dwte, vocab.padded * channels)?,
            scale: op.scale,
            write: op.write,
        };
        classifier::run(&self.engine, &mut self.scratch, losses, problem, Some(gradient));
        Ok(())
    }

    fn layernorm_backward(&mut self, op: LayernormBackward<'_, Buffer>) -> Result<()> {
        const OP: &str = "layernorm_backward";
        let (rows, channels) = (op.rows, op.channels);
        let forward = norm::ForwardPass {
            x: view(OP, "x", op.x, rows * channels)?,
            weight: view(OP, "weight", op.weight, channels)?,
            mean: view(OP, "mean", op.mean, rows)?,
            rstd: view(OP, "rstd", op.rstd, rows)?,
        };
        let dout = view(OP, "dout", op.dout, rows * channels)?;
        let dx = view_mut(OP, "dx", op.dx, rows * channels)?;
        norm::backward_input(&self.engine, dx, op.dx_write, dout, forward);
        let dbias = view_mut(OP, "dbias", op.dbias, channels)?;
        let dweight = view_mut(OP, "dweight", op.dweight, channels)?;
        norm::backward_params(&self.engine, dweight, dbias, op.write, dout, forward);
        Ok(())
    }

    fn linear_backward_input(&mut self, op: LinearBackwardInput<'_, Buffer>) -> Result<()> {
        const OP: &str = "linear_backward_input";
        let LinearBackwardInput { dx, dout, weight, shape } = op;
        let dx = view_mut(OP, "dx", dx, shape.input())?;
        let dout = view(OP, "dout", dout, shape.output())?;
        linear::backward_input(&self.engine, dx, dout, view(OP, "weight", weight, shape.weight())?, shape);
        Ok(())
    }

    fn linear_backward_input_gelu(&mut self, op: LinearBackwardInputGelu<'_, Buffer>) -> Result<()> {
        const OP: &str = "linear_backward_input_gelu";
        let LinearBackwardInputGelu { dpre, dout, weight, pre, shape } = op;
        self.linear_backward_input(LinearBackwardInput { dx: dpre, dout, weight, shape })?;
        let dpre = view_mut(OP, "dpre", dpre, shape.input())?;
        linear::gelu_backward(&self.engine, dpre, view(OP, "pre", pre, shape.input())?);
        Ok(())
    }

    fn linear_backward_weight(&mut self, op: LinearBackwardWeight<'_, Buffer>) -> Result<()> {
        const OP: &str = "linear_backward_weight";
        let LinearBackwardWeight { dweight, dbias, dout, x, shape, write } = op;
        let operands = linear::OuterProduct {
            dout: view(OP, "dout", dout, shape.output())?,
            stride: shape.c_out,
            x: view(OP, "x", x, shape.input())?,
            rows: shape.rows,
            c_in: shape.c_in,
        };
        let dweight = view_mut(OP, "dweight", dweight, shape.weight())?;
        linear::backward_weight(&self.engine, dweight, operands, write, &mut self.scratch.packed);
        if let Some(dbias) = dbias {
            let dbias = view_mut(OP, "dbias", dbias, shape.c_out)?;
            linear::backward_bias(&self.engine, dbias, operands.dout, write);
        }
        Ok(())
    }

    fn attention_backward(&mut self, op: AttentionBackward<'_, Buffer>) -> Result<()> {
        const OP: &str = "attention_backward";
        let AttentionBackward { dqkv, dout, qkv, out, lse, rows, heads } = op;
        let len = rows.count() * heads.channels();
        let forward = attention::ForwardPass {
            qkv: view(OP, "qkv", qkv, 3 * len)?,
            out: view(OP, "out", out, len)?,
            lse: view(OP, "lse", lse, rows.count() * heads.heads)?,
        };
        let dqkv = view_mut(OP, "dqkv", dqkv, 3 * len)?;
        attention::backward(&self.engine, dqkv, view(OP, "dout", dout, len)?, forward, rows, heads);
        Ok(())
    }

    fn embedding_backward(&mut self, op: EmbeddingBackward<'_, Buffer, Ids>) -> Result<()> {
        const OP: &str = "embedding_backward";
        let EmbeddingBackward { dwte, dwpe, write, dout, ids, rows, channels } = op;
        let vocab = dwte.len() / channels;
        let ids = tokens(OP, &ids.0, rows.count(), vocab)?;
        let dout = view(OP, "dout", dout, rows.count() * channels)?;
        view(OP, "dwpe", dwpe, rows.seq * channels)?;
        self.by_token.sort(ids, vocab);
        let dwte = &mut dwte.as_mut_slice()[..vocab * channels];
        embedding::backward_tokens(&self.engine, dwte, dout, &self.by_token, channels);
        embedding::backward_positions(&self.engine, dwpe.as_mut_slice(), write, dout, rows, channels);
        Ok(())
    }

    fn sum_squares(&mut self, op: SumSquares<'_, Buffer>) -> Result<Vec<f64>> {
        let sum = |tensor: &&Buffer| optimizer::sum_squares(&self.engine, tensor.as_slice());
        Ok(op.tensors.iter().map(sum).collect())
    }

    fn chunk_squares(&mut self, op: ChunkSquares<'_, Buffer>) -> Result<Vec<f64>> {
        let mut sums = Vec::new();
        for (buf, part) in op.parts {
            let data = view("chunk_squares", "part", buf, part.end)?;
            sums.extend(optimizer::chunk_squares(&self.engine, &data[part.start..]));
        }
        Ok(sums)
    }

    fn adamw(&mut self, op: AdamWUpdate<'_, Buffer>) -> Result<()> {
        const OP: &str = "adamw";
        for mut slot in op.slots {
            let len = slot.adam_m.len();
            for other in [Some(slot.adam_v.len()), slot.master.as_ref().map(|m| m.len())] {
                same_len(OP, other.unwrap_or(len), len)?;
            }
            view(OP, "param", slot.param, slot.at + len)?;
            view(OP, "grad", slot.grad, slot.grad_at + len)?;
            optimizer::adamw(&self.engine, &mut slot, &op.scalars);
        }
        Ok(())
    }

    fn add(&mut self, op: Add<'_, Buffer>) -> Result<()> {
        same_len("add", op.src.len(), op.dst.len())?;
        optimizer::accumulate(&self.engine, op.dst.as_mut_slice(), op.src.as_slice());
        Ok(())
    }

    fn add_part(&mut self, op: AddPart<'_, Buffer>) -> Result<()> {
        const OP: &str = "add_part";
        let AddPart { dst, at, src, from, len } = op;
        let src = &view(OP, "src", src, from + len)?[from..];
        optimizer::accumulate(&self.engine, &mut view_mut(OP, "dst", dst, at + len)?[at..], src);
        Ok(())
    }

    fn chunk(&self) -> usize {
        optimizer::CHUNK
    }

    fn fold_squares(&self, chunks: &[f64]) -> f64 {
        optimizer::fold_squares(chunks)
    }
}
