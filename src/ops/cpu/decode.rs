//! Decoding: few rows, each the newest token of a text so far, against a cache of keys and values.
//!
//! Bound by memory: the weights are read once for all rows, in the order in which they lie, and never
//! packed. An element of a product is the dot product of [`simd::dot`](super::simd::dot): 16 partial
//! sums in a tree, another order than the one chain of [`gemm`](super::gemm), so the bits of a logit
//! differ from those of the forward pass in training, by some 1e-6 of their size. Whatever the number
//! of rows, each gets the bits it would get alone.

use rayon::prelude::*;

use super::super::op::decode::NOT_WITH_SWIGLU;
use super::super::{
    DecodeAttention, DecodeEmbedding, DecodeLinear, Heads, KvCache, Nonlinearity, Perform, Result, Rows,
};
use super::buffer::Buffer;
use super::checks::{failed, indices, tokens, view, view_mut};
use super::engine::{Engine, blocks};
use super::math::{exp, gelu, squared_relu};
use super::simd::{Isa, LANES, Vectored, largest, run_vectors, sum_lanes, sum_of};
use super::{Cpu, Ids};
use pulp::Simd;

/// Output columns a task takes. No result depends on it.
const COLUMNS: usize = 64;

/// `out[i,:] = wte[ids[i],:] + wpe[positions[i],:]`.
pub fn embedding(out: &mut [f32], ids: &[u16], positions: &[u16], wte: &[f32], wpe: &[f32], channels: usize) {
    for ((out, id), position) in out.chunks_exact_mut(channels).zip(ids).zip(positions) {
        let token = &wte[usize::from(*id) * channels..][..channels];
        let place = &wpe[usize::from(*position) * channels..][..channels];
        out.iter_mut().zip(token).zip(place).for_each(|((out, token), place)| *out = token + place);
    }
}

/// The operands of [`linear`].
#[derive(Clone, Copy)]
pub struct CpuDecodeLinear<'a> {
    /// (n, c_in)
    pub x: &'a [f32],
    /// (c_out, c_in)
    pub weight: &'a [f32],
    pub bias: Option<&'a [f32]>,
    pub function: Option<Nonlinearity>,
    pub c_in: usize,
}

/// `out = x weightᵀ + bias`, through GELU or squared ReLU where that is asked for.
pub fn linear(engine: &Engine, out: &mut [f32], c_out: usize, layer: CpuDecodeLinear<'_>) {
    let rows = out.len() / c_out;
    let tasks = blocks(out, c_out, c_out, rows, COLUMNS);
    engine.install(|| {
        tasks.into_par_iter().enumerate().for_each(|(task, mut out)| {
            run_laned(engine.isa, ColumnBlock { out: &mut out, first: task * COLUMNS, layer });
        });
    });
}

/// Runs work whose `NV` vectors are the [`LANES`] partial sums.
fn run_laned(isa: Isa, work: impl Vectored) {
    run_vectors::<1>(isa, work);
}

/// The columns `first ..` of all rows.
struct ColumnBlock<'a, 'b> {
    out: &'a mut [&'b mut [f32]],
    first: usize,
    layer: CpuDecodeLinear<'a>,
}

impl Vectored for ColumnBlock<'_, '_> {
    #[inline(always)]
    fn run<S: Simd, const NV: usize>(self, simd: S) {
        let ColumnBlock { out, first, layer } = self;
        let CpuDecodeLinear { x, c_in, .. } = layer;
        let whole = out.len() / 4 * 4;
        for row in (0..whole).step_by(4) {
            columns::<S, NV, 4, 2>(simd, &mut out[row..row + 4], &x[row * c_in..], first, layer);
        }
        for row in whole..out.len() {
            columns::<S, NV, 1, 4>(simd, &mut out[row..=row], &x[row * c_in..], first, layer);
        }
    }
}

/// `ROWS` rows, `WIDTH` columns at a time.
#[inline(always)]
fn columns<S: Simd, const NV: usize, const ROWS: usize, const WIDTH: usize>(
    simd: S,
    out: &mut [&mut [f32]],
    x: &[f32],
    first: usize,
    layer: CpuDecodeLinear<'_>,
) {
    let CpuDecodeLinear { weight, c_in, .. } = layer;
    let rows: [&[f32]; ROWS] = std::array::from_fn(|row| &x[row * c_in..][..c_in]);
    let width = out[0].len();
    let mut column = 0;
    while column + WIDTH <= width {
        let weights: [&[f32]; WIDTH] =
            std::array::from_fn(|i| &weight[(first + column + i) * c_in..][..c_in]);
        for (out, sums) in out.iter_mut().zip(dots::<S, NV, ROWS, WIDTH>(simd, rows, weights)) {
            for (i, sum) in sums.into_iter().enumerate() {
                out[column + i] = finish(sum, first + column + i, layer);
            }
        }
        column += WIDTH;
    }
    for column in column..width {
        let weight = &weight[(first + column) * c_in..][..c_in];
        for (out, [sum]) in out.iter_mut().zip(dots::<S, NV, ROWS, 1>(simd, rows, [weight])) {
            out[column] = finish(sum, first + column, layer);
        }
    }
}

#[inline(always)]
fn finish(sum: f32, column: usize, layer: CpuDecodeLinear<'_>) -> f32 {
    let sum = layer.bias.map_or(sum, |bias| sum + bias[column]);
    match layer.function {
        Some(Nonlinearity::Gelu) => gelu(sum),
        Some(Nonlinearity::SquaredRelu) => squared_relu(sum),
        // SwiGLU is refused before.
        Some(Nonlinearity::Swiglu) | None => sum,
    }
}

/// The dot product of each row with each column, all equally long: the bits of [`dot`](super::simd::dot),
/// several at a time. Element i goes to partial sum `i mod 16`, and those are added as a tree.
#[inline(always)]
fn dots<S: Simd, const NV: usize, const ROWS: usize, const WIDTH: usize>(
    simd: S,
    rows: [&[f32]; ROWS],
    columns: [&[f32]; WIDTH],
) -> [[f32; WIDTH]; ROWS] {
    let mut sums = [[[simd.splat_f32s(0.0); NV]; WIDTH]; ROWS];
    let rows = rows.map(|row| row.as_chunks::<LANES>());
    let columns = columns.map(|column| column.as_chunks::<LANES>());
    for at in 0..rows[0].0.len() {
        let x: [[S::f32s; NV]; ROWS] = std::array::from_fn(|row| vectors::<S, NV>(&rows[row].0[at]));
        for column in 0..WIDTH {
            let w = vectors::<S, NV>(&columns[column].0[at]);
            for row in 0..ROWS {
                for v in 0..NV {
                    sums[row][column][v] = simd.mul_add_f32s(x[row][v], w[v], sums[row][column][v]);
                }
            }
        }
    }
    std::array::from_fn(|row| {
        std::array::from_fn(|column| {
            let mut lanes = [0.0f32; LANES];
            lanes.copy_from_slice(bytemuck::cast_slice(&sums[row][column]));
            for (lane, (x, w)) in lanes.iter_mut().zip(rows[row].1.iter().zip(columns[column].1)) {
                *lane = x.mul_add(*w, *lane);
            }
            sum_lanes(lanes)
        })
    })
}

/// Sixteen floats as vectors.
#[inline(always)]
fn vectors<S: Simd, const NV: usize>(floats: &[f32; LANES]) -> [S::f32s; NV] {
    std::array::from_fn(|v| {
        bytemuck::pod_read_unaligned(bytemuck::cast_slice(&floats[v * S::F32_LANES..][..S::F32_LANES]))
    })
}

/// The operands of [`attention`]: where `n` rows belong, and what they read.
pub struct CpuDecodeAttention<'a> {
    /// (n, NH + 2 KH, HS)
    pub qkv: &'a [f32],
    pub streams: &'a [u16],
    pub positions: &'a [u16],
    pub heads: Heads,
    /// P
    pub capacity: usize,
}

impl CpuDecodeAttention<'_> {
    /// Where a stream's keys (or values) of one of KH heads begin in the cache.
    fn head(&self, stream: u16, kv_head: usize) -> usize {
        (usize::from(stream) * self.heads.kv_heads + kv_head) * self.capacity * self.heads.head_size
    }
}

/// Writes keys and values (S, KH, P, HS) of all rows, then `out` (n, NH, HS): softmax over the positions
/// up to the row's own, the weighted values added in order of position.
pub fn attention(
    engine: &Engine,
    out: &mut [f32],
    keys: &mut [f32],
    values: &mut [f32],
    rows: &CpuDecodeAttention<'_>,
) {
    let Heads { heads, kv_heads, head_size } = rows.heads;
    let wide = rows.heads.qkv_channels();
    for (i, qkv) in rows.qkv.chunks_exact(wide).enumerate().take(rows.positions.len()) {
        for head in 0..kv_heads {
            let to = rows.head(rows.streams[i], head) + usize::from(rows.positions[i]) * head_size;
            let from = (heads + head) * head_size;
            keys[to..to + head_size].copy_from_slice(&qkv[from..from + head_size]);
            let from = from + kv_heads * head_size;
            values[to..to + head_size].copy_from_slice(&qkv[from..from + head_size]);
        }
    }
    let (keys, values) = (&*keys, &*values);
    engine.install(|| {
        out.par_chunks_mut(head_size).enumerate().for_each(|(index, out)| {
            let (row, head) = (index / heads, index % heads);
            let seen = usize::from(rows.positions[row]) + 1;
            let start = rows.head(rows.streams[row], head / rows.heads.sharing());
            let query = &rows.qkv[row * wide + head * head_size..][..head_size];
            let (keys, values) =
                (&keys[start..start + seen * head_size], &values[start..start + seen * head_size]);
            engine.with_scratch(seen, |scores| {
                run_laned(engine.isa, Attend { out, scores, query, keys, values })
            });
        });
    });
}

/// One head of one row: its keys and values lie in order of position.
struct Attend<'a> {
    out: &'a mut [f32],
    /// Scratch, one for each key.
    scores: &'a mut [f32],
    query: &'a [f32],
    keys: &'a [f32],
    values: &'a [f32],
}

impl Vectored for Attend<'_> {
    #[inline(always)]
    fn run<S: Simd, const NV: usize>(self, simd: S) {
        let Attend { out, scores, query, keys, values } = self;
        let head_size = out.len();
        let scale = 1.0 / (head_size as f32).sqrt();
        let (fours, rest) = scores.as_chunks_mut::<4>();
        let (four_keys, rest_keys) = keys.split_at(fours.len() * 4 * head_size);
        for (scores, keys) in fours.iter_mut().zip(four_keys.chunks_exact(4 * head_size)) {
            let keys: [&[f32]; 4] = std::array::from_fn(|i| &keys[i * head_size..][..head_size]);
            *scores = dots::<S, NV, 1, 4>(simd, [query], keys)[0].map(|score| score * scale);
        }
        for (score, key) in rest.iter_mut().zip(rest_keys.chunks_exact(head_size)) {
            *score = dots::<S, NV, 1, 1>(simd, [query], [key])[0][0] * scale;
        }
        soften(out, scores, values);
    }
}

/// `out = sum of softmax(scores)[j] * values[j]`, added in order of j.
#[inline(always)]
fn soften(out: &mut [f32], scores: &mut [f32], values: &[f32]) {
    let head_size = out.len();
    let max = largest(scores);
    scores.iter_mut().for_each(|score| *score = exp(*score - max));
    let inverse = 1.0 / sum_of(scores, |p| p);
    out.fill(0.0);
    for (p, value) in scores.iter().zip(values.chunks_exact(head_size)) {
        out.iter_mut().zip(value).for_each(|(out, v)| *out = p.mul_add(*v, *out));
    }
    out.iter_mut().for_each(|out| *out *= inverse);
}

impl Perform<DecodeEmbedding<'_, Buffer, Ids>> for Cpu {
    fn perform(&mut self, op: DecodeEmbedding<'_, Buffer, Ids>) -> Result<()> {
        const OP: &str = "decode_embedding";
        let DecodeEmbedding { out, ids, positions, wte, wpe, rows, channels } = op;
        let out = view_mut(OP, "out", out, rows * channels)?;
        let ids = tokens(OP, &ids.0, rows, wte.len() / channels)?;
        let wte = wte.as_slice();
        match wpe {
            Some(wpe) => {
                let positions = indices(OP, "position", &positions.0, rows, wpe.len() / channels)?;
                embedding(out, ids, positions, wte, wpe.as_slice(), channels);
            }
            None => {
                let alone = Rows { batch: 1, seq: rows };
                super::embedding::forward(&self.engine, out, ids, wte, None, alone, channels);
            }
        }
        Ok(())
    }
}

impl Perform<DecodeLinear<'_, Buffer>> for Cpu {
    fn perform(&mut self, op: DecodeLinear<'_, Buffer>) -> Result<()> {
        const OP: &str = "decode_linear";
        let DecodeLinear { out, x, weight, bias, function, shape } = op;
        if function == Some(Nonlinearity::Swiglu) {
            return Err(failed(OP, NOT_WITH_SWIGLU.into()));
        }
        let layer = CpuDecodeLinear {
            x: view(OP, "x", x, shape.input())?,
            weight: view(OP, "weight", weight, shape.weight())?,
            bias: bias.map(|bias| view(OP, "bias", bias, shape.c_out)).transpose()?,
            function,
            c_in: shape.c_in,
        };
        linear(&self.engine, view_mut(OP, "out", out, shape.output())?, shape.c_out, layer);
        Ok(())
    }
}

impl Perform<DecodeAttention<'_, Buffer, Ids>> for Cpu {
    fn perform(&mut self, op: DecodeAttention<'_, Buffer, Ids>) -> Result<()> {
        const OP: &str = "decode_attention";
        let DecodeAttention { out, cache, qkv, at, rows, heads } = op;
        let KvCache { keys, values, capacity } = cache;
        let streams = keys.len().min(values.len()) / (capacity * heads.kv_channels());
        let queries = CpuDecodeAttention {
            qkv: view(OP, "qkv", qkv, rows * heads.qkv_channels())?,
            streams: indices(OP, "stream", &at.streams.0, rows, streams)?,
            positions: indices(OP, "position", &at.positions.0, rows, capacity)?,
            heads,
            capacity,
        };
        let out = view_mut(OP, "out", out, rows * heads.channels())?;
        attention(&self.engine, out, keys.as_mut_slice(), values.as_mut_slice(), &queries);
        Ok(())
    }
}
