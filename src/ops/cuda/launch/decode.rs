//! Launches of `decode.cu`: few rows, each the newest token of a text, against a cache of keys and values.

use super::super::Cuda;
use super::super::args::{Act, F32, In, Kernel, Out, U16, bindings};
use super::super::memory::{Buf, CudaIds};
use super::super::modules::{Geometry, Kernels};
use super::attention::{MOST_HEAD_SIZE, scale};
use crate::ops::op::decode::NOT_WITH_SWIGLU;
use crate::ops::{
    DecodeAttention, DecodeEmbedding, DecodeLinear, Dtype, Heads, KvCache, Nonlinearity, Perform, Result,
};

bindings! {
    "decode.cu" {
        struct DecodeEmbeddingArgs {
            out: Out<Act>, ids: In<U16>, positions: In<U16>, wte: In<Act>, wpe: In<Act>, rows: u32,
            channels: u32,
        }
        struct DecodeLinearArgs {
            out: Out<Act>, wide: Out<F32>, x: In<Act>, weight: In<Act>, bias: In<Act>, rows: u32,
            c_in: u32, c_out: u32, function: u32,
        }
        struct DecodeStoreArgs {
            keys: Out<Act>, values: Out<Act>, qkv: In<Act>, streams: In<U16>, positions: In<U16>,
            heads: u32, kv_heads: u32, head_size: u32, capacity: u32,
        }
        struct DecodeAttentionArgs {
            out: Out<Act>, keys: In<Act>, values: In<Act>, qkv: In<Act>, streams: In<U16>,
            positions: In<U16>, heads: u32, kv_heads: u32, head_size: u32, capacity: u32, scale: f32,
            unused: u32,
        }
        kernel EMBEDDING(DecodeEmbeddingArgs) = "decode_embedding";
        kernel STORE(DecodeStoreArgs) = "decode_store";
        each LINEAR;
        each ATTENTION;
    }
}

/// For 1, 2, 4 and 8 rows a block: the same sums, more of them for each weight that is read.
pub const LINEAR: [Kernel<DecodeLinearArgs>; 4] = [
    Kernel::new("decode_linear_1"),
    Kernel::new("decode_linear_2"),
    Kernel::new("decode_linear_4"),
    Kernel::new("decode_linear_8"),
];
/// 8 lanes a key for heads of up to 64 channels, 16 for the wider ones.
pub const ATTENTION: [Kernel<DecodeAttentionArgs>; 2] =
    [Kernel::new("decode_attention_8"), Kernel::new("decode_attention_16")];

fn embedding(k: &Kernels, op: DecodeEmbedding<'_, Buf, CudaIds>) -> Result<()> {
    const OP: &str = "decode_embedding";
    let DecodeEmbedding { out, ids, positions, wte, wpe, rows: n, channels } = op;
    k.row_length(OP, channels)?;
    let args = DecodeEmbeddingArgs {
        out: Out::at(k.act(OP, "out", out, n * channels)?),
        ids: In::at(k.ids(OP, "ids", ids, n)?),
        positions: In::at(k.ids(OP, "positions", positions, n)?),
        wte: In::at(k.act(OP, "wte", wte, channels)?),
        wpe: wpe.map_or(Ok(In::null()), |wpe| k.act(OP, "wpe", wpe, channels).map(In::at))?,
        rows: n as u32,
        channels: channels as u32,
    };
    let chunks = n as u64 * (channels as u64 / 8);
    // SAFETY: lengths were checked; ids and positions within the tables are the caller's promise, as for
    // every operation on ids.
    unsafe { k.launch(OP, &EMBEDDING, Geometry::new(chunks.div_ceil(256), 256), &args) }
}

fn linear(k: &Kernels, op: DecodeLinear<'_, Buf>) -> Result<()> {
    const OP: &str = "decode_linear";
    let DecodeLinear { out, x, weight, bias, function, shape } = op;
    k.check(OP, function != Some(Nonlinearity::Swiglu), || NOT_WITH_SWIGLU.into())?;
    let (n, c_in, c_out) = (shape.rows, shape.c_in, shape.c_out);
    k.row_length(OP, c_in)?;
    k.check(OP, n > 0, || "there are no rows".to_owned())?;
    let (narrow, wide) = match out.dtype() {
        Dtype::F32 if k.act != Dtype::F32 => (0, k.f32(OP, "out", out, n * c_out)?),
        _ => (k.act(OP, "out", out, n * c_out)?, 0),
    };
    let args = DecodeLinearArgs {
        out: Out::at(narrow),
        wide: Out::at(wide),
        x: In::at(k.act(OP, "x", x, n * c_in)?),
        weight: In::at(k.act(OP, "weight", weight, c_out * c_in)?),
        bias: bias.map_or(Ok(In::null()), |bias| k.act(OP, "bias", bias, c_out).map(In::at))?,
        rows: n as u32,
        c_in: c_in as u32,
        c_out: c_out as u32,
        function: match function {
            Some(Nonlinearity::Gelu) => 1,
            Some(Nonlinearity::SquaredRelu) => 2,
            Some(Nonlinearity::Swiglu) | None => 0,
        },
    };
    let size = n.next_power_of_two().min(8);
    let geometry = Geometry::new2((c_out as u64).div_ceil(8), (n as u64).div_ceil(size as u64), 256);
    // SAFETY: all lengths were checked; one of the two outputs is null, and the kernel writes the other.
    unsafe { k.launch(OP, &LINEAR[size.trailing_zeros() as usize], geometry, &args) }
}

fn attention(k: &Kernels, op: DecodeAttention<'_, Buf, CudaIds>) -> Result<()> {
    const OP: &str = "decode_attention";
    let DecodeAttention { out, cache, qkv, at, rows: n, heads } = op;
    let Heads { heads: count, kv_heads, head_size } = heads;
    let KvCache { keys, values, capacity } = cache;
    k.check(OP, head_size <= MOST_HEAD_SIZE, || {
        format!("heads of {head_size} channels are wider than {MOST_HEAD_SIZE}")
    })?;
    let stream = capacity * heads.kv_channels();
    let qkv = k.act(OP, "qkv", qkv, n * heads.qkv_channels())?;
    let (keys, values) = (k.act(OP, "keys", keys, stream)?, k.act(OP, "values", values, stream)?);
    let (streams, positions) =
        (k.ids(OP, "streams", at.streams, n)?, k.ids(OP, "positions", at.positions, n)?);
    let store = DecodeStoreArgs {
        keys: Out::at(keys),
        values: Out::at(values),
        qkv: In::at(qkv),
        streams: In::at(streams),
        positions: In::at(positions),
        heads: count as u32,
        kv_heads: kv_heads as u32,
        head_size: head_size as u32,
        capacity: capacity as u32,
    };
    let attend = DecodeAttentionArgs {
        out: Out::at(k.act(OP, "out", out, n * heads.channels())?),
        keys: In::at(keys),
        values: In::at(values),
        qkv: In::at(qkv),
        streams: In::at(streams),
        positions: In::at(positions),
        heads: count as u32,
        kv_heads: kv_heads as u32,
        head_size: head_size as u32,
        capacity: capacity as u32,
        scale: scale(head_size),
        unused: 0,
    };
    let kernel = &ATTENTION[usize::from(head_size > 64)];
    // SAFETY: lengths were checked; streams and positions within the cache are the caller's promise, as for
    // every operation on ids. The first kernel writes what the second reads.
    unsafe {
        k.launch(OP, &STORE, Geometry::new(n as u64, 256), &store)?;
        k.launch(OP, kernel, Geometry::new2(count as u64, n as u64, 256), &attend)
    }
}

impl Perform<DecodeEmbedding<'_, Buf, CudaIds>> for Cuda {
    fn perform(&mut self, op: DecodeEmbedding<'_, Buf, CudaIds>) -> Result<()> {
        self.written(op.out);
        embedding(&self.kernels, op)
    }
}

impl Perform<DecodeLinear<'_, Buf>> for Cuda {
    fn perform(&mut self, op: DecodeLinear<'_, Buf>) -> Result<()> {
        self.written(op.out);
        linear(&self.kernels, op)
    }
}

impl Perform<DecodeAttention<'_, Buf, CudaIds>> for Cuda {
    fn perform(&mut self, op: DecodeAttention<'_, Buf, CudaIds>) -> Result<()> {
        self.written(op.out);
        attention(&self.kernels, op)
    }
}
