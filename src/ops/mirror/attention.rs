//! Causal attention, as `kernels/attention_forward_hopper.cu` and `attention_backward_hopper.cu` compute it.
//!
//! Everything goes by tiles of 64 queries and 64 keys. A warpgroup owns 64 rows; in a row of 64 columns
//! thread q of four has the columns 8n + 2q and 8n + 2q + 1. Rows past the last token are zeros.

use half::bf16;
use rayon::prelude::*;

use super::Mirror;
use super::buffer::MirrorBuffer;
use super::checks::{act, float, float_mut};
use super::scalar::{LOG2_E, kept, ln, max, round, wide};
use super::special::exp2;
use super::tensor_core::{Left, Right, multiply};
use crate::ops::cpu::checks::failed;
use crate::ops::cpu::engine::Engine;
use crate::ops::cuda::launch::attention::scale;
use crate::ops::{Attention, AttentionBackward, Heads, Perform, Qkv, Result, Rows};

/// Queries and keys of a tile.
const TILE: usize = 64;
/// Where the maximum of a row begins.
const LOWEST: f32 = -1e30;

/// One head of one sequence in a matrix (B, T, slices, HS).
#[derive(Clone, Copy)]
struct HeadSlice<'a> {
    data: &'a [bf16],
    /// Element of the first token, and from token to token.
    first: usize,
    stride: usize,
    tokens: usize,
    head_size: usize,
}

impl<'a> HeadSlice<'a> {
    /// Slice `slice` of `slices` of sequence `batch`.
    fn new(
        data: &'a [bf16],
        rows: Rows,
        head_size: usize,
        batch: usize,
        slice: usize,
        slices: usize,
    ) -> Self {
        let stride = slices * head_size;
        let first = batch * rows.seq * stride + slice * head_size;
        HeadSlice { data, first, stride, tokens: rows.seq, head_size }
    }

    /// Queries of a head, and the keys and values that it shares.
    fn qkv(of: Qkv<&'a [bf16]>, rows: Rows, heads: Heads, batch: usize, head: usize) -> [HeadSlice<'a>; 3] {
        let Heads { heads: queries, kv_heads, head_size } = heads;
        let key = queries + head / heads.sharing();
        let new = |data, slice, slices| HeadSlice::new(data, rows, head_size, batch, slice, slices);
        let value = new(of.values, key + kv_heads, heads.slices(true));
        [new(of.qkv, head, of.slices), new(of.qkv, key, of.slices), value]
    }

    fn at(&self, token: usize, column: usize) -> bf16 {
        if token < self.tokens { self.data[self.first + token * self.stride + column] } else { bf16::ZERO }
    }

    /// The 64 rows of a tile as a left factor, summed along the head.
    fn rows(&self, engine: &Engine, tile: usize) -> Left {
        Left::new(engine, TILE, self.head_size, |row, k| self.at(tile * TILE + row, k))
    }

    /// The same rows as columns of a right factor, summed along the head.
    fn columns(&self, engine: &Engine, tile: usize) -> Right {
        Right::new(engine, self.head_size, TILE, |k, column| self.at(tile * TILE + column, k))
    }

    /// The 64 rows of a tile as terms of a sum.
    fn terms(&self, engine: &Engine, tile: usize) -> Right {
        Right::new(engine, TILE, self.head_size, |k, column| self.at(tile * TILE + k, column))
    }
}

/// A tile of numbers as a left factor in bf16, summed along its columns.
fn rounded(engine: &Engine, tile: &[f32]) -> Left {
    Left::new(engine, TILE, TILE, |row, k| round(tile[row * TILE + k]))
}

/// Each thread's sum of a row: its pairs of columns, ascending.
fn quad(row: &[f32]) -> [f32; 4] {
    std::array::from_fn(|q| {
        (0..TILE / 8).fold(0.0, |sum, n| sum + (row[8 * n + 2 * q] + row[8 * n + 2 * q + 1]))
    })
}

fn quad_sum(x: [f32; 4]) -> f32 {
    (x[0] + x[1]) + (x[2] + x[3])
}

/// What one tile of 64 rows of a head comes to.
struct RowTile {
    /// (64, HS)
    out: Vec<bf16>,
    /// (64)
    lse: Vec<f32>,
}

/// `out = softmax(scale Q Kᵀ) V` and lse (B, NH, T), the log-sum-exp of a row's scaled scores.
pub fn forward(
    engine: &Engine,
    out: &mut [bf16],
    lse: &mut [f32],
    qkv: Qkv<&[bf16]>,
    rows: Rows,
    heads: Heads,
) {
    let tiles = rows.seq.div_ceil(TILE);
    let jobs: Vec<_> = (0..rows.batch * heads.heads * tiles).collect();
    let results: Vec<RowTile> = engine.install(|| {
        let job = |job: &usize| {
            let (item, tile) = (job / tiles, job % tiles);
            forward_tile(
                engine,
                HeadSlice::qkv(qkv, rows, heads, item / heads.heads, item % heads.heads),
                tile,
            )
        };
        jobs.par_iter().map(job).collect()
    });
    let (head_size, channels) = (heads.head_size, heads.channels());
    for (job, result) in jobs.into_iter().zip(results) {
        let (item, first) = (job / tiles, job % tiles * TILE);
        let (batch, head) = (item / heads.heads, item % heads.heads);
        for (row, out_row) in result.out.chunks_exact(head_size).enumerate().take(rows.seq - first) {
            let at = (batch * rows.seq + first + row) * channels + head * head_size;
            out[at..][..head_size].copy_from_slice(out_row);
            lse[item * rows.seq + first + row] = result.lse[row];
        }
    }
}

/// Keys ascending, tile by tile. The maximum so far moves the sums so far; a thread's sum of a row goes
/// on over the tiles, and the four are added at the end.
fn forward_tile(engine: &Engine, [q, k, v]: [HeadSlice<'_>; 3], tile: usize) -> RowTile {
    let head_size = q.head_size;
    let (scale, scale_log2) = (scale(head_size), scale(head_size) * LOG2_E);
    let queries = q.rows(engine, tile);
    let mut out = vec![0.0f32; TILE * head_size];
    let mut tops = [LOWEST; TILE];
    let mut sums = [[0.0f32; 4]; TILE];
    for keys in 0..=tile {
        let mut s = vec![0.0f32; TILE * TILE];
        multiply(engine, &mut s, &queries, &k.columns(engine, keys));
        for (row, s) in s.chunks_exact_mut(TILE).enumerate() {
            let seen = if keys == tile { row + 1 } else { TILE };
            let top = s[..seen].iter().fold(tops[row], |top, s| max(top, *s));
            let shift = top * scale_log2;
            let rescale = exp2((tops[row] - top) * scale_log2);
            tops[row] = top;
            s[..seen].iter_mut().for_each(|s| *s = exp2(s.mul_add(scale_log2, -shift)));
            // Masked scores have no weight.
            s[seen..].fill(0.0);
            for (sum, new) in sums[row].iter_mut().zip(quad(s)) {
                *sum = sum.mul_add(rescale, new);
            }
            out[row * head_size..][..head_size].iter_mut().for_each(|o| *o *= rescale);
        }
        multiply(engine, &mut out, &rounded(engine, &s), &v.terms(engine, keys));
    }
    let row = |row: usize| {
        let sum = quad_sum(sums[row]);
        (1.0 / sum, kept(tops[row].mul_add(scale, ln(sum))))
    };
    let (inverse, lse): (Vec<f32>, Vec<f32>) = (0..TILE).map(row).unzip();
    let out = out.iter().enumerate().map(|(i, o)| round(o * inverse[i / head_size])).collect();
    RowTile { out, lse }
}

/// What the backward pass reads: out and dout (B,T,NH,HS), lse (B,NH,T).
#[derive(Clone, Copy)]
pub struct Backward<'a> {
    pub dout: &'a [bf16],
    pub qkv: Qkv<&'a [bf16]>,
    pub out: &'a [bf16],
    pub lse: &'a [f32],
    pub rows: Rows,
    pub heads: Heads,
}

/// Statistics of a head's rows, up to whole tiles: log-sum-exp, zero past T, and D, the sum of dout times
/// out.
struct Statistics {
    lse: Vec<f32>,
    delta: Vec<f32>,
}

/// With P = e^(S - lse) and dS = P (dP - D): dQ = scale dS K, dK = scale dSᵀ Q, dV = Pᵀ dout.
pub fn backward(engine: &Engine, dqkv: &mut [bf16], b: Backward<'_>) {
    let Backward { rows, heads, .. } = b;
    let (tiles, head_size) = (rows.seq.div_ceil(TILE), heads.head_size);
    let stride = heads.qkv_channels();
    let head = |item: usize| {
        let (batch, head) = (item / heads.heads, item % heads.heads);
        let of_head = |data| HeadSlice::new(data, rows, head_size, batch, head, heads.heads);
        let (dout, out) = (of_head(b.dout), of_head(b.out));
        let of = statistics(&b.lse[item * rows.seq..][..rows.seq], dout, out, tiles * TILE);
        BackwardHead { qkv: HeadSlice::qkv(b.qkv, rows, heads, batch, head), dout, of }
    };
    let all: Vec<_> = engine.install(|| (0..rows.batch * heads.heads).into_par_iter().map(head).collect());
    // A tile of what slice of (B, T, NH + 2 KH, HS): of queries, or of keys and values.
    let queries = (0..all.len()).flat_map(|item| (0..tiles).map(move |tile| (item, tile)));
    let groups = (0..rows.batch * heads.kv_heads).flat_map(|group| (0..tiles).map(move |tile| (group, tile)));
    let (queries, groups): (Vec<_>, Vec<_>) = (queries.collect(), groups.collect());
    let dq: Vec<_> = engine
        .install(|| queries.par_iter().map(|(item, tile)| query_tile(engine, &all[*item], *tile)).collect());
    let of_keys: Vec<_> = engine.install(|| {
        let of_group = |group: usize| &all[group * heads.sharing()..][..heads.sharing()];
        groups.par_iter().map(|(group, tile)| key_tile(engine, of_group(*group), *tile, tiles)).collect()
    });
    let mut write = |batch: usize, slice: usize, tile: usize, values: &[bf16]| {
        for (row, values) in values.chunks_exact(head_size).enumerate().take(rows.seq - tile * TILE) {
            let token = batch * rows.seq + tile * TILE + row;
            dqkv[token * stride + slice * head_size..][..head_size].copy_from_slice(values);
        }
    };
    for ((item, tile), values) in queries.into_iter().zip(dq) {
        write(item / heads.heads, item % heads.heads, tile, &values);
    }
    for ((group, tile), [dk, dv]) in groups.into_iter().zip(of_keys) {
        let (batch, key) = (group / heads.kv_heads, heads.heads + group % heads.kv_heads);
        write(batch, key, tile, &dk);
        write(batch, key + heads.kv_heads, tile, &dv);
    }
}

/// What the gradient reads of one head of queries.
struct BackwardHead<'a> {
    qkv: [HeadSlice<'a>; 3],
    dout: HeadSlice<'a>,
    of: Statistics,
}

/// D of a row: thread q of four takes the runs of eight columns q, q + 4, …, fused, then the four are added.
fn statistics(lse: &[f32], dout: HeadSlice<'_>, out: HeadSlice<'_>, padded: usize) -> Statistics {
    let delta = |row: usize| {
        let thread = |q: usize| {
            let columns = (q * 8..dout.head_size).step_by(32).flat_map(|first| first..first + 8);
            columns.fold(0.0, |sum, c| wide(dout.at(row, c)).mul_add(wide(out.at(row, c)), sum))
        };
        quad_sum(std::array::from_fn(thread))
    };
    let lse = (0..padded).map(|row| lse.get(row).copied().unwrap_or(0.0)).collect();
    Statistics { lse, delta: (0..padded).map(delta).collect() }
}

/// dQ of 64 queries: keys ascending.
fn query_tile(engine: &Engine, head: &BackwardHead<'_>, tile: usize) -> Vec<bf16> {
    let BackwardHead { qkv: [q, k, v], dout, of } = head;
    let head_size = q.head_size;
    let (scale, scale_log2) = (scale(head_size), scale(head_size) * LOG2_E);
    let (queries, gradients) = (q.rows(engine, tile), dout.rows(engine, tile));
    let mut dq = vec![0.0f32; TILE * head_size];
    for keys in 0..=tile {
        let (mut s, mut dp) = (vec![0.0f32; TILE * TILE], vec![0.0f32; TILE * TILE]);
        multiply(engine, &mut s, &queries, &k.columns(engine, keys));
        multiply(engine, &mut dp, &gradients, &v.columns(engine, keys));
        for (row, (s, dp)) in s.chunks_exact_mut(TILE).zip(dp.chunks_exact(TILE)).enumerate() {
            let (lse, delta) = (of.lse[tile * TILE + row] * LOG2_E, of.delta[tile * TILE + row]);
            for (column, (s, dp)) in s.iter_mut().zip(dp).enumerate() {
                let masked = keys == tile && column > row;
                let p = if masked { 0.0 } else { exp2(s.mul_add(scale_log2, -lse)) };
                *s = p * (dp - delta);
            }
        }
        multiply(engine, &mut dq, &rounded(engine, &s), &k.terms(engine, keys));
    }
    dq.iter().map(|x| round(x * scale)).collect()
}

/// dK and dV of 64 keys: heads that share them ascending, and the queries of each. Rows are keys here, and
/// the sums start from the statistics of their queries instead of zero: they come out as S - lse (not yet
/// scaled) and dP - D.
fn key_tile(engine: &Engine, group: &[BackwardHead<'_>], tile: usize, tiles: usize) -> [Vec<bf16>; 2] {
    let [_, k, v] = group[0].qkv;
    let head_size = k.head_size;
    let (scale, scale_log2) = (scale(head_size), scale(head_size) * LOG2_E);
    let (keys, values) = (k.rows(engine, tile), v.rows(engine, tile));
    let (mut dk, mut dv) = (vec![0.0f32; TILE * head_size], vec![0.0f32; TILE * head_size]);
    for (head, queries) in group.iter().flat_map(|head| (tile..tiles).map(move |queries| (head, queries))) {
        let BackwardHead { qkv: [q, ..], dout, of } = head;
        let start = |statistic: &dyn Fn(usize) -> f32| -> Vec<f32> {
            (0..TILE * TILE).map(|i| kept(statistic(queries * TILE + i % TILE))).collect()
        };
        let mut p = start(&|row| -of.lse[row] / scale);
        let mut ds = start(&|row| -of.delta[row]);
        multiply(engine, &mut p, &keys, &q.columns(engine, queries));
        multiply(engine, &mut ds, &values, &dout.columns(engine, queries));
        for (i, (p, ds)) in p.iter_mut().zip(&mut ds).enumerate() {
            let masked = queries == tile && i / TILE > i % TILE;
            *p = if masked { 0.0 } else { exp2(*p * scale_log2) };
            *ds *= *p;
        }
        multiply(engine, &mut dv, &rounded(engine, &p), &dout.terms(engine, queries));
        multiply(engine, &mut dk, &rounded(engine, &ds), &q.terms(engine, queries));
    }
    [dk.iter().map(|x| round(x * scale)).collect(), dv.iter().map(|x| round(*x)).collect()]
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

impl Perform<Attention<'_, MirrorBuffer>> for Mirror {
    fn perform(&mut self, op: Attention<'_, MirrorBuffer>) -> Result<()> {
        const OP: &str = "attention";
        let Attention { out, lse, qkv, values, rows, heads } = op;
        head_size(OP, heads)?;
        let out = self.act_mut(OP, "out", out, rows.count() * heads.channels())?;
        let lse = float_mut(OP, "lse", lse, rows.count() * heads.heads)?;
        let qkv = Qkv::of(qkv, values, rows, heads, |name, buf, len| act(OP, name, buf, len))?;
        forward(&self.engine, out, lse, qkv, rows, heads);
        Ok(())
    }
}

impl Perform<AttentionBackward<'_, MirrorBuffer>> for Mirror {
    fn perform(&mut self, op: AttentionBackward<'_, MirrorBuffer>) -> Result<()> {
        const OP: &str = "attention_backward";
        let AttentionBackward { dqkv, dout, qkv, values, out, lse, rows, heads } = op;
        head_size(OP, heads)?;
        let (len, wide) = (rows.count() * heads.channels(), rows.count() * heads.qkv_channels());
        let inputs = Backward {
            dout: act(OP, "dout", dout, len)?,
            qkv: Qkv::of(qkv, values, rows, heads, |name, buf, len| act(OP, name, buf, len))?,
            out: act(OP, "out", out, len)?,
            lse: float(OP, "lse", lse, rows.count() * heads.heads)?,
            rows,
            heads,
        };
        let dqkv = self.act_mut(OP, "dqkv", dqkv, wide)?;
        backward(&self.engine, dqkv, inputs);
        Ok(())
    }
}
