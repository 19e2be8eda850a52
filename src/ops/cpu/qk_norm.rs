//! RMSNorm of each head's queries and keys, and its gradient.
//!
//! With rotary positions, heads are turned ([`super::rotary`]) after the norm, and back before its gradient.
//! Sums over a head are 16 fixed partial sums in a tree ([`simd::dot`](super::simd::dot)). Gradients of the
//! weights are added over the heads of a row, row by row, in blocks of 64 rows from zero; then the blocks in
//! order.

use rayon::prelude::*;

use super::super::{Heads, Perform, QkNorm, QkNormBackward, Result, Write};
use super::buffer::Buffer;
use super::checks::{view, view_mut};
use super::engine::Engine;
use super::linear::add;
use super::rotary::{RowAngles, angles_of_norm, turn};
use super::simd::{LANES, dot, sum_lanes, vectorize};
use super::{Cpu, Ids};

const EPSILON: f32 = 1e-5;
/// Rows whose weight gradients are added first.
const BLOCK_ROWS: usize = 64;

/// `out = x rstd weight` of one head; gives rstd.
#[inline(always)]
fn normalize(out: &mut [f32], x: &[f32], weight: &[f32]) -> f32 {
    let rstd = 1.0 / (dot(x, x) / x.len() as f32 + EPSILON).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * rstd * weight;
    }
    rstd
}

/// Queries and keys of every row of `x` (N, NH + 2 KH, HS), turned by `angles` if there are any, and the
/// values where `out` is as long; `weights` are those of queries and of keys.
pub fn forward(
    engine: &Engine,
    out: &mut [f32],
    rstd: &mut [f32],
    x: &[f32],
    weights: [&[f32]; 2],
    heads: Heads,
    angles: Option<RowAngles<'_>>,
) {
    let values = out.len() == x.len();
    let (width, normed, size) = (heads.qkv_channels(), heads.of_queries_and_keys(), heads.head_size);
    engine.install(|| {
        let rows = out.par_chunks_mut(heads.slices(values) * size).zip(rstd.par_chunks_mut(normed));
        let rows = rows.zip(x.par_chunks(width)).enumerate().with_min_len(8);
        rows.for_each(|(row, ((out, rstd), x))| {
            let angles = angles.map(|angles| angles.of(row));
            vectorize!(engine.isa, |_| {
                let vectors = out.chunks_exact_mut(size).zip(x.chunks_exact(size));
                for (head, ((out, x), rstd)) in vectors.zip(rstd.iter_mut()).enumerate() {
                    *rstd = normalize(out, x, weights[usize::from(head >= heads.heads)]);
                    if let Some(angles) = angles {
                        turn(out, angles, 1.0);
                    }
                }
                if values {
                    out[normed * size..].copy_from_slice(&x[normed * size..]);
                }
            });
        });
    });
}

/// What the gradient reads of the forward pass: x (N, NH + 2 KH, HS), the weights of queries and of keys (HS)
/// each, rstd (N, NH + KH), and the angles that the output was turned by.
#[derive(Clone, Copy)]
pub struct QkNormForward<'a> {
    pub x: &'a [f32],
    pub weights: [&'a [f32]; 2],
    pub rstd: &'a [f32],
    pub heads: Heads,
    pub angles: Option<RowAngles<'a>>,
}

/// The gradient of one head in place; adds `dout h` to `sums`.
#[inline(always)]
fn backward_head(d: &mut [f32], sums: &mut [f32], x: &[f32], weight: &[f32], rstd: f32) {
    let mut lanes = [0.0f32; LANES];
    let mut each = |sums: &mut [f32], d: &[f32], x: &[f32], weight: &[f32]| {
        for (i, (((sum, d), x), weight)) in sums.iter_mut().zip(d).zip(x).zip(weight).enumerate() {
            lanes[i] = (d * weight).mul_add(x * rstd, lanes[i]);
            *sum = d.mul_add(x * rstd, *sum);
        }
    };
    let whole = x.len() / LANES * LANES;
    for at in (0..whole).step_by(LANES) {
        let columns = at..at + LANES;
        each(&mut sums[columns.clone()], &d[columns.clone()], &x[columns.clone()], &weight[columns]);
    }
    each(&mut sums[whole..], &d[whole..], &x[whole..], &weight[whole..]);
    let mean = sum_lanes(lanes) / x.len() as f32;
    for ((d, x), weight) in d.iter_mut().zip(x).zip(weight) {
        *d = rstd * (x * rstd).mul_add(-mean, *d * weight);
    }
}

/// Turns the gradient of the output into that of the input, and gives those of the weights, (2, HS).
pub fn backward(engine: &Engine, dqkv: &mut [f32], forward: QkNormForward<'_>) -> Vec<f32> {
    let QkNormForward { x, weights, rstd, heads, angles } = forward;
    let (width, normed, size) = (heads.qkv_channels(), heads.of_queries_and_keys(), heads.head_size);
    let block = |number, ((dqkv, x), rstd): ((&mut [f32], &[f32]), &[f32])| {
        let mut sums = vec![0.0f32; 2 * size];
        vectorize!(engine.isa, |_| {
            let rows = dqkv.chunks_exact_mut(width).zip(x.chunks_exact(width));
            for (row, ((dqkv, x), rstd)) in rows.zip(rstd.chunks_exact(normed)).enumerate() {
                let angles = angles.map(|angles| angles.of(number * BLOCK_ROWS + row));
                let vectors = dqkv.chunks_exact_mut(size).zip(x.chunks_exact(size)).zip(rstd);
                for (head, ((d, x), rstd)) in vectors.enumerate() {
                    let part = usize::from(head >= heads.heads);
                    let sums = &mut sums[part * size..][..size];
                    if let Some(angles) = angles {
                        turn(d, angles, -1.0);
                    }
                    backward_head(d, sums, x, weights[part], *rstd);
                }
            }
        });
        sums
    };
    let rows = dqkv.par_chunks_mut(BLOCK_ROWS * width).zip(x.par_chunks(BLOCK_ROWS * width));
    let rows = rows.zip(rstd.par_chunks(BLOCK_ROWS * normed));
    let blocks: Vec<Vec<f32>> =
        engine.install(|| rows.enumerate().map(|(number, rows)| block(number, rows)).collect());
    let mut total = vec![0.0; 2 * size];
    blocks.iter().for_each(|block| add(&mut total, block));
    total
}

impl Perform<QkNorm<'_, Buffer, Ids>> for Cpu {
    fn perform(&mut self, op: QkNorm<'_, Buffer, Ids>) -> Result<()> {
        const OP: &str = "qk_norm";
        let QkNorm { out, rstd, x, q_weight, k_weight, rows, heads, values, rotary } = op;
        let angles = angles_of_norm(OP, rotary, rows, heads.head_size)?;
        let size = rows * heads.qkv_channels();
        forward(
            &self.engine,
            view_mut(OP, "out", out, rows * heads.slices(values) * heads.head_size)?,
            view_mut(OP, "rstd", rstd, rows * heads.of_queries_and_keys())?,
            view(OP, "x", x, size)?,
            [
                view(OP, "q_weight", q_weight, heads.head_size)?,
                view(OP, "k_weight", k_weight, heads.head_size)?,
            ],
            heads,
            angles,
        );
        Ok(())
    }
}

impl Perform<QkNormBackward<'_, Buffer, Ids>> for Cpu {
    fn perform(&mut self, op: QkNormBackward<'_, Buffer, Ids>) -> Result<()> {
        const OP: &str = "qk_norm_backward";
        let QkNormBackward { dqkv, dq_weight, dk_weight, write, x, q_weight, k_weight, rstd, rows, .. } = op;
        let (heads, rotary) = (op.heads, op.rotary);
        let (size, wide) = (heads.head_size, rows * heads.qkv_channels());
        let forward = QkNormForward {
            x: view(OP, "x", x, wide)?,
            weights: [view(OP, "q_weight", q_weight, size)?, view(OP, "k_weight", k_weight, size)?],
            rstd: view(OP, "rstd", rstd, rows * heads.of_queries_and_keys())?,
            heads,
            angles: angles_of_norm(OP, rotary, rows, size)?,
        };
        let dq_weight = view_mut(OP, "dq_weight", dq_weight, size)?;
        let dk_weight = view_mut(OP, "dk_weight", dk_weight, size)?;
        let sums = backward(&self.engine, view_mut(OP, "dqkv", dqkv, wide)?, forward);
        for (gradient, sums) in [dq_weight, dk_weight].into_iter().zip(sums.chunks_exact(size)) {
            match write {
                Write::Set => gradient.copy_from_slice(sums),
                Write::Add => add(gradient, sums),
            }
        }
        Ok(())
    }
}
