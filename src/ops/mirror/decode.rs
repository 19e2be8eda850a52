//! Decoding: a few new tokens against the keys and values of all before them, as `kernels/decode.cu` does it.

use half::bf16;
use rayon::prelude::*;

use super::Mirror;
use super::buffer::{MirrorBuffer, MirrorValues};
use super::checks::{act, row_length, short};
use super::embedding::forward as embed;
use super::scalar::{exp, gelu, kept, max, round, squared_relu, warp_sum, wide};
use crate::ops::cpu::Ids;
use crate::ops::cpu::checks::{failed, indices, tokens};
use crate::ops::cpu::engine::Engine;
use crate::ops::cuda::launch::attention::scale;
use crate::ops::op::decode::NOT_WITH_SWIGLU;
use crate::ops::{
    DecodeAttention, DecodeEmbedding, DecodeLinear, Heads, KvCache, LinearShape, Nonlinearity, Perform,
    Result,
};

const LOWEST: f32 = f32::MIN;

/// The operands of [`linear`].
#[derive(Clone, Copy)]
pub struct MirrorDecodeLinear<'a> {
    /// (n, c_in)
    pub x: &'a [bf16],
    /// (c_out, c_in)
    pub weight: &'a [bf16],
    pub bias: Option<&'a [bf16]>,
    pub function: Option<Nonlinearity>,
    pub shape: LinearShape,
}

/// `x weightᵀ + bias`, through GELU or squared ReLU where that is asked for, (n, c_out), not rounded. Lane l
/// of 32 adds the columns 8l to 8l + 7, then those 256 further on, fused; then the butterfly.
pub fn linear(engine: &Engine, layer: MirrorDecodeLinear<'_>) -> Vec<f32> {
    let MirrorDecodeLinear { x, weight, bias, shape, .. } = layer;
    let element = |i: usize| {
        let (row, column) = (i / shape.c_out, i % shape.c_out);
        let (x, w) = (&x[row * shape.c_in..][..shape.c_in], &weight[column * shape.c_in..][..shape.c_in]);
        let lane = |lane: usize| {
            let columns = (lane * 8..shape.c_in).step_by(256).flat_map(|first| first..first + 8);
            columns.fold(0.0, |sum, k| wide(w[k]).mul_add(wide(x[k]), sum))
        };
        let y = warp_sum(std::array::from_fn(lane)) + bias.map_or(0.0, |bias| wide(bias[column]));
        match layer.function {
            Some(Nonlinearity::Gelu) => gelu(y),
            Some(Nonlinearity::SquaredRelu) => squared_relu(y),
            // SwiGLU is refused before.
            Some(Nonlinearity::Swiglu) | None => y,
        }
    };
    engine.install(|| (0..shape.output()).into_par_iter().map(element).collect())
}

/// The operands of [`attention`].
#[derive(Clone, Copy)]
pub struct Queries<'a> {
    /// (n, NH + 2 KH, HS)
    pub qkv: &'a [bf16],
    /// (n) each.
    pub streams: &'a [u16],
    pub positions: &'a [u16],
    pub heads: Heads,
    /// P of the cache (S, KH, P, HS).
    pub capacity: usize,
}

impl Queries<'_> {
    /// Where the keys or values of a row's stream, of one of KH heads, begin in the cache.
    fn cached(&self, row: usize, kv_head: usize) -> usize {
        let stream = usize::from(self.streams[row]);
        (stream * self.heads.kv_heads + kv_head) * self.capacity * self.heads.head_size
    }
}

/// Keys and values of the rows go to the cache.
pub fn store(keys: &mut [bf16], values: &mut [bf16], q: Queries<'_>) {
    let Heads { heads, kv_heads, head_size: size } = q.heads;
    for (row, qkv) in q.qkv.chunks_exact(q.heads.qkv_channels()).enumerate() {
        for head in 0..kv_heads {
            let to = q.cached(row, head) + usize::from(q.positions[row]) * size;
            keys[to..][..size].copy_from_slice(&qkv[(heads + head) * size..][..size]);
            values[to..][..size].copy_from_slice(&qkv[(heads + kv_heads + head) * size..][..size]);
        }
    }
}

/// `out[i,h,:]` over the positions up to the row's. A group of 8 or, for heads over 64, 16 lanes takes the
/// keys g, g + G, … of G groups, its softmax moved after every four; then the groups in order.
pub fn attention(out: &mut [bf16], keys: &[bf16], values: &[bf16], q: Queries<'_>) {
    let size = q.heads.head_size;
    let lanes = if size > 64 { 16 } else { 8 };
    let count = 256 / lanes;
    for (item, out) in out.chunks_exact_mut(size).enumerate() {
        let (row, head) = (item / q.heads.heads, item % q.heads.heads);
        let start = q.cached(row, head / q.heads.sharing());
        let query = &q.qkv[row * q.heads.qkv_channels() + head * size..][..size];
        let query: Vec<f32> = query.iter().map(|x| wide(*x) * scale(size)).collect();
        let score = |key: usize| {
            let key = &keys[start + key * size..][..size];
            let mut parts: Vec<f32> = (0..lanes)
                .map(|lane| {
                    let columns = (lane * 8).min(size)..(lane * 8 + 8).min(size);
                    columns.fold(0.0, |dot, c| query[c].mul_add(wide(key[c]), dot))
                })
                .collect();
            while parts.len() > 1 {
                let upper = parts.split_off(parts.len() / 2);
                parts.iter_mut().zip(upper).for_each(|(a, b)| *a += b);
            }
            parts[0]
        };
        let last = usize::from(q.positions[row]);
        let groups: Vec<PartialSoftmax> = (0..count)
            .map(|group| {
                let mut state = PartialSoftmax { top: LOWEST, total: 0.0, sum: vec![0.0; size] };
                for first in (0..=last).step_by(4 * count) {
                    let seen = |u: &usize| first + u * count + group <= last;
                    let four: Vec<(usize, f32)> = (0..4)
                        .filter(seen)
                        .map(|u| first + u * count + group)
                        .map(|key| (key, score(key)))
                        .collect();
                    state.add(&four, |key, c| wide(values[start + key * size + c]));
                }
                state
            })
            .collect();
        let highest = groups.iter().fold(groups[0].top, |highest, group| max(highest, group.top));
        let factors: Vec<f32> = groups.iter().map(|group| exp(group.top - highest)).collect();
        let mix = |of: &dyn Fn(&PartialSoftmax) -> f32| {
            groups.iter().zip(&factors).fold(0.0, |sum, (group, f)| f.mul_add(of(group), sum))
        };
        let whole = mix(&|group| group.total);
        for (c, out) in out.iter_mut().enumerate() {
            *out = round(mix(&|group| group.sum[c]) / whole);
        }
    }
}

/// A softmax so far: the highest score, the sum of weights, and the weighted values.
struct PartialSoftmax {
    top: f32,
    total: f32,
    sum: Vec<f32>,
}

impl PartialSoftmax {
    fn add(&mut self, keys: &[(usize, f32)], value: impl Fn(usize, usize) -> f32) {
        let highest = keys.iter().fold(self.top, |highest, (_, score)| max(highest, *score));
        let rescale = exp(self.top - highest);
        self.top = highest;
        self.total *= rescale;
        self.sum.iter_mut().for_each(|sum| *sum *= rescale);
        for (key, score) in keys {
            let p = exp(score - highest);
            self.total += p;
            self.sum.iter_mut().enumerate().for_each(|(c, sum)| *sum = p.mul_add(value(*key, c), *sum));
        }
    }
}

impl Perform<DecodeEmbedding<'_, MirrorBuffer, Ids>> for Mirror {
    fn perform(&mut self, op: DecodeEmbedding<'_, MirrorBuffer, Ids>) -> Result<()> {
        const OP: &str = "decode_embedding";
        let DecodeEmbedding { out, ids, positions, wte, wpe, rows, channels } = op;
        let out = self.act_mut(OP, "out", out, rows * channels)?;
        let ids = tokens(OP, &ids.0, rows, wte.len() / channels)?;
        let wte = act(OP, "wte", wte, wte.len())?;
        match wpe {
            Some(wpe) => {
                let positions = indices(OP, "position", &positions.0, rows, wpe.len() / channels)?;
                let places = ids.iter().zip(positions).map(|(id, at)| (usize::from(*id), usize::from(*at)));
                embed(out, places, wte, Some(act(OP, "wpe", wpe, wpe.len())?), channels);
            }
            None => embed(out, ids.iter().map(|id| (usize::from(*id), 0)), wte, None, channels),
        }
        Ok(())
    }
}

impl Perform<DecodeLinear<'_, MirrorBuffer>> for Mirror {
    fn perform(&mut self, op: DecodeLinear<'_, MirrorBuffer>) -> Result<()> {
        const OP: &str = "decode_linear";
        let DecodeLinear { out, x, weight, bias, function, shape } = op;
        if function == Some(Nonlinearity::Swiglu) {
            return Err(failed(OP, NOT_WITH_SWIGLU.into()));
        }
        row_length(OP, shape.c_in)?;
        let layer = MirrorDecodeLinear {
            x: act(OP, "x", x, shape.input())?,
            weight: act(OP, "weight", weight, shape.weight())?,
            bias: bias.map(|bias| act(OP, "bias", bias, shape.c_out)).transpose()?,
            function,
            shape,
        };
        let sums = linear(&self.engine, layer);
        self.written(out);
        let have = out.len();
        let fits = || short(OP, "out", have, shape.output());
        match &mut out.data {
            MirrorValues::Bf16(out) => {
                let out = out.get_mut(..shape.output()).ok_or_else(fits)?;
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out = round(sum));
            }
            MirrorValues::F32(out) => {
                let out = out.get_mut(..shape.output()).ok_or_else(fits)?;
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out = kept(sum));
            }
        }
        Ok(())
    }
}

impl Perform<DecodeAttention<'_, MirrorBuffer, Ids>> for Mirror {
    fn perform(&mut self, op: DecodeAttention<'_, MirrorBuffer, Ids>) -> Result<()> {
        const OP: &str = "decode_attention";
        let DecodeAttention { out, cache, qkv, at, rows, heads } = op;
        let KvCache { keys, values, capacity } = cache;
        let cached = keys.len().min(values.len());
        let queries = Queries {
            qkv: act(OP, "qkv", qkv, rows * heads.qkv_channels())?,
            streams: indices(OP, "stream", &at.streams.0, rows, cached / (capacity * heads.kv_channels()))?,
            positions: indices(OP, "position", &at.positions.0, rows, capacity)?,
            heads,
            capacity,
        };
        let (keys, values) =
            (self.act_mut(OP, "keys", keys, cached)?, self.act_mut(OP, "values", values, cached)?);
        store(keys, values, queries);
        attention(self.act_mut(OP, "out", out, rows * heads.channels())?, keys, values, queries);
        Ok(())
    }
}
