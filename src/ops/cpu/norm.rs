//! Layernorm over the channels of a row, alone or after a residual addition, and its gradient.
//!
//! Row sums are 16 fixed partial sums in a tree ([`simd::sum_of`]); sums over rows are one chain a
//! channel in order of rows.

use rayon::prelude::*;

use super::super::{Layernorm, LayernormBackward, Perform, ResidualLayernorm, Result, Write};
use super::Cpu;
use super::buffer::Buffer;
use super::checks::{view, view_mut};
use super::engine::Engine;
use super::linear::add;
use super::simd::{self, LANES, sum_lanes, sum_of, vectorize};

const EPSILON: f32 = 1e-5;
/// Rows a task takes. No result depends on it.
const ROWS: usize = 8;

/// `out = (x - mean) * rstd * weight + bias` of one row; gives (mean, rstd).
#[inline(always)]
fn normalize(out: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32]) -> (f32, f32) {
    let channels = x.len() as f32;
    let mean = sum_of(x, |x| x) / channels;
    let mut lanes = [0.0f32; LANES];
    let (blocks, tail) = x.as_chunks::<LANES>();
    for block in blocks {
        for i in 0..LANES {
            lanes[i] = (block[i] - mean).mul_add(block[i] - mean, lanes[i]);
        }
    }
    for i in 0..tail.len() {
        lanes[i] = (tail[i] - mean).mul_add(tail[i] - mean, lanes[i]);
    }
    let rstd = 1.0 / (sum_lanes(lanes) / channels + EPSILON).sqrt();
    for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
        *out = ((x - mean) * rstd).mul_add(*weight, *bias);
    }
    (mean, rstd)
}

/// Layernorm of every row of `x`.
pub fn forward(
    engine: &Engine,
    out: &mut [f32],
    mean: &mut [f32],
    rstd: &mut [f32],
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
) {
    let channels = weight.len();
    engine.install(|| {
        (
            out.par_chunks_mut(ROWS * channels),
            mean.par_chunks_mut(ROWS),
            rstd.par_chunks_mut(ROWS),
            x.par_chunks(ROWS * channels),
        )
            .into_par_iter()
            .for_each(|(out, mean, rstd, x)| {
                vectorize!(engine.isa, |_| {
                    for (i, (out, x)) in
                        out.chunks_exact_mut(channels).zip(x.chunks_exact(channels)).enumerate()
                    {
                        (mean[i], rstd[i]) = normalize(out, x, weight, bias);
                    }
                });
            });
    });
}

/// A residual addition, `sum = x + branch`, each (N, C).
pub struct Residual<'a> {
    pub sum: &'a mut [f32],
    pub x: &'a [f32],
    pub branch: &'a [f32],
}

/// The residual addition, then layernorm of its sum.
pub fn forward_residual(
    engine: &Engine,
    residual: Residual<'_>,
    out: &mut [f32],
    mean: &mut [f32],
    rstd: &mut [f32],
    weight: &[f32],
    bias: &[f32],
) {
    let channels = weight.len();
    let Residual { sum: residual, x, branch } = residual;
    engine.install(|| {
        (
            residual.par_chunks_mut(ROWS * channels),
            out.par_chunks_mut(ROWS * channels),
            mean.par_chunks_mut(ROWS),
            rstd.par_chunks_mut(ROWS),
            x.par_chunks(ROWS * channels),
            branch.par_chunks(ROWS * channels),
        )
            .into_par_iter()
            .for_each(|(residual, out, mean, rstd, x, branch)| {
                vectorize!(engine.isa, |_| {
                    for ((residual, x), branch) in residual.iter_mut().zip(x).zip(branch) {
                        *residual = x + branch;
                    }
                    for (i, (out, x)) in
                        out.chunks_exact_mut(channels).zip(residual.chunks_exact(channels)).enumerate()
                    {
                        (mean[i], rstd[i]) = normalize(out, x, weight, bias);
                    }
                });
            });
    });
}

/// Results of the forward pass that the backward pass reads.
#[derive(Clone, Copy)]
pub struct LayernormForward<'a> {
    pub x: &'a [f32],
    pub weight: &'a [f32],
    pub mean: &'a [f32],
    pub rstd: &'a [f32],
}

/// Gradient of the input: with `h = (x - mean) rstd` and `g = dout weight`,
/// `dx = rstd (g - mean(g) - h mean(g h))`.
pub fn backward_input(
    engine: &Engine,
    dx: &mut [f32],
    write: Write,
    dout: &[f32],
    forward: LayernormForward<'_>,
) {
    let channels = forward.weight.len();
    engine.install(|| {
        (
            dx.par_chunks_mut(channels),
            dout.par_chunks(channels),
            forward.x.par_chunks(channels),
            forward.mean,
            forward.rstd,
        )
            .into_par_iter()
            .with_min_len(ROWS)
            .for_each(|(dx, dout, x, mean, rstd)| {
                vectorize!(engine.isa, |_| backward_row(dx, write, dout, x, forward.weight, *mean, *rstd));
            });
    });
}

#[inline(always)]
fn backward_row(dx: &mut [f32], write: Write, dout: &[f32], x: &[f32], weight: &[f32], mean: f32, rstd: f32) {
    let channels = x.len();
    let mut lanes = [[0.0f32; LANES]; 2];
    let mut each = |dout: &[f32], x: &[f32], weight: &[f32]| {
        for (i, ((dout, x), weight)) in dout.iter().zip(x).zip(weight).enumerate() {
            let g = dout * weight;
            lanes[0][i] += g;
            lanes[1][i] = g.mul_add((x - mean) * rstd, lanes[1][i]);
        }
    };
    let whole = channels / LANES * LANES;
    for at in (0..whole).step_by(LANES) {
        each(&dout[at..at + LANES], &x[at..at + LANES], &weight[at..at + LANES]);
    }
    each(&dout[whole..], &x[whole..], &weight[whole..]);
    let mean_g = simd::sum_lanes(lanes[0]) / channels as f32;
    let mean_gh = simd::sum_lanes(lanes[1]) / channels as f32;
    for (((dx, dout), x), weight) in dx.iter_mut().zip(dout).zip(x).zip(weight) {
        let h = (x - mean) * rstd;
        let value = rstd * h.mul_add(-mean_gh, dout * weight - mean_g);
        *dx = match write {
            Write::Set => value,
            Write::Add => *dx + value,
        };
    }
}

/// Gradients of weight and bias: one chain a channel in order of rows, from zero.
pub fn backward_params(
    engine: &Engine,
    dweight: &mut [f32],
    dbias: &mut [f32],
    write: Write,
    dout: &[f32],
    forward: LayernormForward<'_>,
) {
    const WIDTH: usize = 64;
    let channels = forward.weight.len();
    engine.install(|| {
        dweight.par_chunks_mut(WIDTH).zip(dbias.par_chunks_mut(WIDTH)).enumerate().for_each(
            |(block, (dweight, dbias))| {
                vectorize!(engine.isa, |_| {
                    let (first, width) = (block * WIDTH, dweight.len());
                    let mut weights = [0.0f32; WIDTH];
                    let mut biases = [0.0f32; WIDTH];
                    let rows = dout
                        .chunks_exact(channels)
                        .zip(forward.x.chunks_exact(channels))
                        .zip(forward.mean.iter().zip(forward.rstd));
                    for ((dout, x), (mean, rstd)) in rows {
                        let sums = weights[..width].iter_mut().zip(&mut biases[..width]);
                        for ((dout, x), (weight, bias)) in
                            dout[first..first + width].iter().zip(&x[first..first + width]).zip(sums)
                        {
                            *weight = dout.mul_add((x - mean) * rstd, *weight);
                            *bias += dout;
                        }
                    }
                    match write {
                        Write::Set => {
                            dweight.copy_from_slice(&weights[..width]);
                            dbias.copy_from_slice(&biases[..width]);
                        }
                        Write::Add => {
                            add(dweight, &weights[..width]);
                            add(dbias, &biases[..width]);
                        }
                    }
                });
            },
        );
    });
}

impl Perform<Layernorm<'_, Buffer>> for Cpu {
    fn perform(&mut self, op: Layernorm<'_, Buffer>) -> Result<()> {
        const OP: &str = "layernorm";
        let Layernorm { out, mean, rstd, x, weight, bias, rows, channels } = op;
        forward(
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
}

impl Perform<ResidualLayernorm<'_, Buffer>> for Cpu {
    fn perform(&mut self, op: ResidualLayernorm<'_, Buffer>) -> Result<()> {
        const OP: &str = "residual_layernorm";
        let (rows, channels) = (op.rows, op.channels);
        forward_residual(
            &self.engine,
            Residual {
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
}

impl Perform<LayernormBackward<'_, Buffer>> for Cpu {
    fn perform(&mut self, op: LayernormBackward<'_, Buffer>) -> Result<()> {
        const OP: &str = "layernorm_backward";
        let (rows, channels) = (op.rows, op.channels);
        let forward = LayernormForward {
            x: view(OP, "x", op.x, rows * channels)?,
            weight: view(OP, "weight", op.weight, channels)?,
            mean: view(OP, "mean", op.mean, rows)?,
            rstd: view(OP, "rstd", op.rstd, rows)?,
        };
        let dout = view(OP, "dout", op.dout, rows * channels)?;
        let dx = view_mut(OP, "dx", op.dx, rows * channels)?;
        backward_input(&self.engine, dx, op.dx_write, dout, forward);
        let dbias = view_mut(OP, "dbias", op.dbias, channels)?;
        let dweight = view_mut(OP, "dweight", op.dweight, channels)?;
        backward_params(&self.engine, dweight, dbias, op.write, dout, forward);
        Ok(())
    }
}
