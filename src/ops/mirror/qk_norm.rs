//! RMSNorm of each head's queries and keys, as `kernels/qk_norm.cu` computes it.

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::Mirror;
use super::buffer::MirrorBuffer;
use super::checks::{act, float, float_mut, row_length};
use super::reduce::{add_in_order, reduce_partials};
use super::rotary::{angles_of_norm, turned};
use super::scalar::{kept, round, wide};
use crate::ops::cpu::Ids;
use crate::ops::cpu::checks::failed;
use crate::ops::cpu::engine::Engine;
use crate::ops::cpu::rotary::RowAngles;
use crate::ops::op::outline::QkNormPart;
use crate::ops::{Heads, Perform, QkNorm, QkNormBackward, QkRotary, Result};

const EPSILON: f32 = 1e-5;

/// Lanes of a head: eight columns each.
fn lanes(head_size: usize) -> usize {
    (head_size / 8).next_power_of_two().max(8)
}

/// Sum over a head: each lane adds its eight columns in order with `f(sum, column)`, then the butterfly of
/// lane numbers that differ in lanes/2, …, 1.
fn head_sum(head_size: usize, f: impl Fn(f32, usize) -> f32) -> f32 {
    let columns = |lane: usize| (lane * 8).min(head_size)..(lane * 8 + 8).min(head_size);
    let mut lanes: Vec<f32> = (0..lanes(head_size)).map(|lane| columns(lane).fold(0.0, &f)).collect();
    while lanes.len() > 1 {
        let upper = lanes.split_off(lanes.len() / 2);
        lanes.iter_mut().zip(upper).for_each(|(a, b)| *a += b);
    }
    lanes[0]
}

/// Turns a head that is not rounded, if there are angles.
fn turn(head: &mut [f32], angles: Option<&[[f32; 2]]>, inverse: bool) {
    for (pair, angle) in head.as_chunks_mut::<2>().0.iter_mut().zip(angles.unwrap_or_default()) {
        *pair = turned(*pair, *angle, inverse);
    }
}

/// Queries and keys of `x` (n, NH + 2 KH, HS): `bf16((x rstd) weight)` with rstd one over the root of the
/// mean square and 1e-5, see [`head_sum`]; with `angles`, [`turned`] before it is rounded. Values are copied
/// where `out` is as long as `x`.
pub fn forward(
    engine: &Engine,
    out: &mut [bf16],
    rstd: &mut [f32],
    x: &[bf16],
    weights: [&[bf16]; 2],
    heads: Heads,
    angles: Option<RowAngles<'_>>,
) {
    let values = out.len() == x.len();
    let (width, normed, size) = (heads.qkv_channels(), heads.of_queries_and_keys(), heads.head_size);
    let row = |row, ((out, rstd), x): ((&mut [bf16], &mut [f32]), &[bf16])| {
        let angles = angles.map(|angles| angles.of(row));
        if values {
            out[normed * size..].copy_from_slice(&x[normed * size..]);
        }
        let vectors = out.chunks_exact_mut(size).zip(x.chunks_exact(size));
        for (head, ((out, x), rstd)) in vectors.zip(rstd).enumerate() {
            let x: Vec<f32> = x.iter().map(|x| wide(*x)).collect();
            let squares = head_sum(size, |sum, c| x[c].mul_add(x[c], sum));
            let scale = 1.0 / (squares / size as f32 + EPSILON).sqrt();
            let weights = weights[usize::from(head >= heads.heads)];
            let mut y: Vec<f32> = x.iter().zip(weights).map(|(x, w)| x * scale * wide(*w)).collect();
            turn(&mut y, angles, false);
            out.iter_mut().zip(y).for_each(|(out, y)| *out = round(y));
            *rstd = kept(scale);
        }
    };
    let rows = out.par_chunks_mut(heads.slices(values) * size).zip(rstd.par_chunks_mut(normed));
    let rows = rows.zip(x.par_chunks(width)).enumerate();
    engine.install(|| rows.for_each(|(number, of_row)| row(number, of_row)));
}

/// What the gradient of the queries, or of the keys, reads: x (n, count, HS) with NH heads or KH, weight
/// (HS), rstd (n, count), and the angles that they were turned by.
#[derive(Clone, Copy)]
pub struct HeadNorms<'a> {
    pub x: &'a [bf16],
    pub weight: &'a [bf16],
    pub rstd: &'a [f32],
    pub heads: Heads,
    pub count: usize,
    pub angles: Option<RowAngles<'a>>,
}

/// With dout turned back and not rounded, h = x rstd and g = dout weight, `dout` (n, count, HS) becomes
/// `bf16(rstd (g - h mean(g h)))`. Gives partial sums of dout h, one row for each block of heads, for
/// [`reduce_partials`].
///
/// The heads, row by row, are cut into blocks of max(ceil(n NH / 1024), ceil(n / 512) + 3), rounded up to 64;
/// there are as many blocks as queries have, and past the last keys they are zeros.
/// Of a block, group j of 16 (8 where a head has 16 lanes, 4 where 32) adds the heads j, j + 16, … in order
/// from zero; then the groups in order.
pub fn backward(engine: &Engine, dout: &mut [bf16], of: HeadNorms<'_>) -> Vec<f32> {
    let (size, rows) = (of.heads.head_size, dout.len() / of.heads.head_size / of.count);
    let queries = rows * of.heads.heads;
    let count = queries.div_ceil(1024).max(rows.div_ceil(512) + 3).next_multiple_of(64);
    let groups = 128 / lanes(size);
    let weight: Vec<f32> = of.weight.iter().map(|w| wide(*w)).collect();
    let inverse = 1.0 / size as f32;
    let block = |(number, dout): (usize, &mut [bf16])| -> Vec<f32> {
        let mut sums = vec![vec![0.0f32; size]; groups];
        for (at, dout) in dout.chunks_exact_mut(size).enumerate() {
            let (vector, sum) = (number * count + at, &mut sums[at % groups]);
            let rstd = of.rstd[vector];
            let h: Vec<f32> = of.x[vector * size..][..size].iter().map(|x| wide(*x) * rstd).collect();
            let mut back: Vec<f32> = dout.iter().map(|d| wide(*d)).collect();
            turn(&mut back, of.angles.map(|angles| angles.of(vector / of.count)), true);
            let g: Vec<f32> = back.iter().zip(&weight).map(|(d, w)| d * w).collect();
            for ((sum, d), h) in sum.iter_mut().zip(back).zip(&h) {
                *sum = d.mul_add(*h, *sum);
            }
            let mean = head_sum(size, |sum, c| g[c].mul_add(h[c], sum)) * inverse;
            for ((d, g), h) in dout.iter_mut().zip(g).zip(h) {
                *d = round(rstd * (-h).mul_add(mean, g));
            }
        }
        add_in_order(sums)
    };
    let mut partials: Vec<f32> =
        engine.install(|| dout.par_chunks_mut(count * size).enumerate().flat_map_iter(block).collect());
    partials.resize(queries.div_ceil(count) * size, 0.0);
    partials
}

fn check(op: &'static str, heads: Heads) -> Result<()> {
    row_length(op, heads.head_size)?;
    if heads.head_size > 256 {
        return Err(failed(op, format!("heads of {} channels are wider than 256", heads.head_size)));
    }
    Ok(())
}

/// These columns of a matrix with rows of `width`.
fn columns_of<T: Copy>(all: &[T], width: usize, columns: &Range<usize>) -> Vec<T> {
    all.chunks_exact(width).flat_map(|row| &row[columns.clone()]).copied().collect()
}

impl Perform<QkNorm<'_, MirrorBuffer, Ids>> for Mirror {
    fn perform(&mut self, op: QkNorm<'_, MirrorBuffer, Ids>) -> Result<()> {
        const OP: &str = "qk_norm";
        let QkNorm { out, rstd, x, q_weight, k_weight, rows, heads, values, rotary } = op;
        check(OP, heads)?;
        let angles = angles_of_norm(OP, rotary, rows, heads.head_size)?;
        let size = rows * heads.qkv_channels();
        let weights = [
            act(OP, "q_weight", q_weight, heads.head_size)?,
            act(OP, "k_weight", k_weight, heads.head_size)?,
        ];
        let out = self.act_mut(OP, "out", out, rows * heads.slices(values) * heads.head_size)?;
        let rstd = float_mut(OP, "rstd", rstd, rows * heads.of_queries_and_keys())?;
        forward(&self.engine, out, rstd, act(OP, "x", x, size)?, weights, heads, angles);
        Ok(())
    }
}

impl Perform<QkNormBackward<'_, MirrorBuffer, Ids>> for Mirror {
    fn perform(&mut self, op: QkNormBackward<'_, MirrorBuffer, Ids>) -> Result<()> {
        const OP: &str = "qk_norm_backward";
        let QkNormBackward { dqkv, dq_weight, dk_weight, write, x, q_weight, k_weight, rstd, rows, .. } = op;
        let heads = op.heads;
        check(OP, heads)?;
        let (width, normed, size) = (heads.qkv_channels(), heads.of_queries_and_keys(), heads.head_size);
        let angles = angles_of_norm(OP, op.rotary, rows, size)?;
        let dqkv = self.act_mut(OP, "dqkv", dqkv, rows * width)?;
        let x = act(OP, "x", x, rows * width)?;
        let rstd = float(OP, "rstd", rstd, rows * normed)?;
        let weights = [act(OP, "q_weight", q_weight, size)?, act(OP, "k_weight", k_weight, size)?];
        let gradients =
            [float_mut(OP, "dq_weight", dq_weight, size)?, float_mut(OP, "dk_weight", dk_weight, size)?];
        let parts = [0..heads.heads, heads.heads..normed];
        for (of_part, (weight, dweight)) in parts.into_iter().zip(weights.into_iter().zip(gradients)) {
            let (count, columns) = (of_part.len(), of_part.start * size..of_part.end * size);
            let (x, rstd) = (columns_of(x, width, &columns), columns_of(rstd, normed, &of_part));
            let mut dout = columns_of(dqkv, width, &columns);
            let of = HeadNorms { x: &x, weight, rstd: &rstd, heads, count, angles };
            let partials = backward(&self.engine, &mut dout, of);
            reduce_partials(dweight, write, &partials, size, 0);
            for (row, dx) in dqkv.chunks_exact_mut(width).zip(dout.chunks_exact(columns.len())) {
                row[columns.clone()].copy_from_slice(dx);
            }
        }
        Ok(())
    }
}

/// The buffers of the gradient of the queries alone, or of the keys: (n, count, HS), (HS), (n, count).
pub struct QkPartBuffers<'a> {
    pub dout: &'a mut MirrorBuffer,
    pub dweight: &'a mut MirrorBuffer,
    pub x: &'a MirrorBuffer,
    pub weight: &'a MirrorBuffer,
    pub rstd: &'a MirrorBuffer,
    pub rotary: Option<QkRotary<'a, MirrorBuffer, Ids>>,
}

impl Mirror {
    /// The queries' or the keys' part of [`QkNormBackward`].
    pub(super) fn qk_norm_part(&mut self, part: QkNormPart, bufs: QkPartBuffers<'_>) -> Result<()> {
        const OP: &str = "qk_norm_backward";
        let QkNormPart { rows, heads, write, .. } = part;
        let (count, len) = (part.count(), rows * part.count() * heads.head_size);
        let of = HeadNorms {
            x: act(OP, "x", bufs.x, len)?,
            weight: act(OP, "weight", bufs.weight, heads.head_size)?,
            rstd: float(OP, "rstd", bufs.rstd, rows * count)?,
            heads,
            count,
            angles: angles_of_norm(OP, bufs.rotary, rows, heads.head_size)?,
        };
        let dout = self.act_mut(OP, "dqkv", bufs.dout, len)?;
        let partials = backward(&self.engine, dout, of);
        let dweight = float_mut(OP, "dweight", bufs.dweight, heads.head_size)?;
        reduce_partials(dweight, write, &partials, heads.head_size, 0);
        Ok(())
    }
}
