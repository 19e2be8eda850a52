//! Layernorm and RMSNorm over the channels of a row, alone or after a residual addition, and their gradients.
//! RMSNorm is a layernorm whose mean is 0 and whose gradient has no average of g: neither is summed.
//!
//! Row sums are 16 fixed partial sums in a tree ([`simd::sum_of`]); sums over rows are one chain a
//! channel in order of rows.

use rayon::prelude::*;

use super::super::op::norm::OTHER_BIAS;
use super::super::{Layernorm, LayernormBackward, NormAgain, Perform, ResidualLayernorm, Result, Write};
use super::Cpu;
use super::buffer::Buffer;
use super::checks::{failed, view, view_mut};
use super::engine::Engine;
use super::linear::add;
use super::simd::{self, LANES, sum_lanes, sum_of, vectorize};

const EPSILON: f32 = 1e-5;
/// Rows a task takes. No result depends on it.
const ROWS: usize = 8;

/// The vectors of a norm, (C) each; no bias is one of zeros.
#[derive(Clone, Copy)]
pub struct NormVectors<'a> {
    pub weight: &'a [f32],
    pub bias: Option<&'a [f32]>,
}

/// `out = (x - mean) * rstd * weight + bias` of one row; gives (mean, rstd). RMSNorm's mean is 0.
#[inline(always)]
fn normalize(out: &mut [f32], x: &[f32], vectors: NormVectors<'_>, rms: bool) -> (f32, f32) {
    let NormVectors { weight, bias } = vectors;
    let channels = x.len() as f32;
    let mean = if rms { 0.0 } else { sum_of(x, |x| x) / channels };
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
    let each = out.iter_mut().zip(x).zip(weight);
    if let Some(bias) = bias {
        for (((out, x), weight), bias) in each.zip(bias) {
            *out = ((x - mean) * rstd).mul_add(*weight, *bias);
        }
    } else {
        for ((out, x), weight) in each {
            *out = ((x - mean) * rstd).mul_add(*weight, 0.0);
        }
    }
    (mean, rstd)
}

/// The outputs of a norm beside `out`: (N) each, no mean for RMSNorm.
pub struct NormStatistics<'a> {
    pub mean: Option<&'a mut [f32]>,
    pub rstd: &'a mut [f32],
}

/// A group of rows of `out`, with their statistics.
type OutRows<'a> = ((&'a mut [f32], Option<&'a mut [f32]>), &'a mut [f32]);

impl<'a> NormStatistics<'a> {
    /// With `out` (N, C), in groups of [`ROWS`] rows.
    fn groups(self, out: &'a mut [f32], channels: usize) -> Vec<OutRows<'a>> {
        let mut means = self.mean.map(|mean| mean.chunks_mut(ROWS));
        let mean = || means.as_mut().and_then(Iterator::next);
        let means = std::iter::repeat_with(mean);
        out.chunks_mut(ROWS * channels).zip(means).zip(self.rstd.chunks_mut(ROWS)).collect()
    }
}

/// The norm of some rows.
#[inline(always)]
fn normalize_rows(((out, mut mean), rstd): OutRows<'_>, x: &[f32], vectors: NormVectors<'_>) {
    let channels = vectors.weight.len();
    for (i, (out, x)) in out.chunks_exact_mut(channels).zip(x.chunks_exact(channels)).enumerate() {
        let (average, deviation) = normalize(out, x, vectors, mean.is_none());
        rstd[i] = deviation;
        if let Some(mean) = &mut mean {
            mean[i] = average;
        }
    }
}

/// The norm of every row of `x`.
pub fn forward(
    engine: &Engine,
    out: &mut [f32],
    statistics: NormStatistics<'_>,
    x: &[f32],
    vectors: NormVectors<'_>,
) {
    let channels = vectors.weight.len();
    let groups = statistics.groups(out, channels);
    engine.install(|| {
        groups.into_par_iter().zip(x.par_chunks(ROWS * channels)).for_each(|(to, x)| {
            vectorize!(engine.isa, |_| normalize_rows(to, x, vectors));
        });
    });
}

/// A residual addition, `sum = x + branch`, each (N, C).
pub struct Residual<'a> {
    pub sum: &'a mut [f32],
    pub x: &'a [f32],
    pub branch: &'a [f32],
}

/// The residual addition, then the norm of its sum.
pub fn forward_residual(
    engine: &Engine,
    residual: Residual<'_>,
    out: &mut [f32],
    statistics: NormStatistics<'_>,
    vectors: NormVectors<'_>,
) {
    let channels = vectors.weight.len();
    let Residual { sum: residual, x, branch } = residual;
    let groups = statistics.groups(out, channels);
    engine.install(|| {
        (
            groups.into_par_iter(),
            residual.par_chunks_mut(ROWS * channels),
            x.par_chunks(ROWS * channels),
            branch.par_chunks(ROWS * channels),
        )
            .into_par_iter()
            .for_each(|(to, residual, x, branch)| {
                vectorize!(engine.isa, |_| {
                    for ((residual, x), branch) in residual.iter_mut().zip(x).zip(branch) {
                        *residual = x + branch;
                    }
                    normalize_rows(to, residual, vectors);
                });
            });
    });
}

/// Results of the forward pass that the backward pass reads; no mean of RMSNorm.
#[derive(Clone, Copy)]
pub struct LayernormForward<'a> {
    pub x: &'a [f32],
    pub weight: &'a [f32],
    pub mean: Option<&'a [f32]>,
    pub rstd: &'a [f32],
}

impl LayernormForward<'_> {
    /// The mean of a row, 0 for RMSNorm.
    #[inline(always)]
    fn mean(&self, row: usize) -> f32 {
        self.mean.map_or(0.0, |mean| mean[row])
    }
}

/// The output of every row again, from the statistics that the forward pass left.
pub fn forward_again(engine: &Engine, out: &mut [f32], forward: LayernormForward<'_>, bias: Option<&[f32]>) {
    let channels = forward.weight.len();
    let row = |(row, (out, x, rstd)): (usize, (&mut [f32], &[f32], &f32))| {
        let mean = forward.mean(row);
        for (c, (out, x)) in out.iter_mut().zip(x).enumerate() {
            let bias = bias.map_or(0.0, |bias| bias[c]);
            *out = ((x - mean) * rstd).mul_add(forward.weight[c], bias);
        }
    };
    engine.install(|| {
        let rows = (out.par_chunks_mut(channels), forward.x.par_chunks(channels), forward.rstd);
        rows.into_par_iter()
            .enumerate()
            .with_min_len(ROWS)
            .for_each(|it| vectorize!(engine.isa, |_| row(it)));
    });
}

/// Gradient of the input: with `h = (x - mean) rstd` and `g = dout weight`,
/// `dx = rstd (g - mean(g) - h mean(g h))`; of RMSNorm without mean and mean(g).
pub fn backward_input(
    engine: &Engine,
    dx: &mut [f32],
    write: Write,
    dout: &[f32],
    forward: LayernormForward<'_>,
) {
    let channels = forward.weight.len();
    let weight = forward.weight;
    let rms = forward.mean.is_none();
    engine.install(|| {
        (
            dx.par_chunks_mut(channels),
            dout.par_chunks(channels),
            forward.x.par_chunks(channels),
            forward.rstd,
        )
            .into_par_iter()
            .enumerate()
            .with_min_len(ROWS)
            .for_each(|(row, (dx, dout, x, rstd))| {
                let row = BackwardRow { x, weight, mean: forward.mean(row), rstd: *rstd };
                vectorize!(engine.isa, |_| {
                    if rms {
                        backward_row::<true>(dx, write, dout, row)
                    } else {
                        backward_row::<false>(dx, write, dout, row)
                    }
                });
            });
    });
}

/// What the gradient of a row reads of the forward pass: x and weight (C).
#[derive(Clone, Copy)]
struct BackwardRow<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    mean: f32,
    rstd: f32,
}

#[inline(always)]
fn backward_row<const RMS: bool>(dx: &mut [f32], write: Write, dout: &[f32], row: BackwardRow<'_>) {
    let BackwardRow { x, weight, mean, rstd } = row;
    let channels = x.len();
    let (mut g_lanes, mut gh_lanes) = ([0.0f32; LANES], [0.0f32; LANES]);
    let mut each = |i: usize, dout: f32, x: f32, weight: f32| {
        let g = dout * weight;
        if !RMS {
            g_lanes[i] += g;
        }
        gh_lanes[i] = g.mul_add((x - mean) * rstd, gh_lanes[i]);
    };
    // Loops of a known length: else RMSNorm's becomes scalar code, and takes seven times as long.
    let ((douts, last_dout), (xs, last_x)) = (dout.as_chunks::<LANES>(), x.as_chunks::<LANES>());
    let (weights, last_weight) = weight.as_chunks::<LANES>();
    for ((dout, x), weight) in douts.iter().zip(xs).zip(weights) {
        for i in 0..LANES {
            each(i, dout[i], x[i], weight[i]);
        }
    }
    for (i, ((dout, x), weight)) in last_dout.iter().zip(last_x).zip(last_weight).enumerate() {
        each(i, *dout, *x, *weight);
    }
    let mean_g = if RMS { 0.0 } else { simd::sum_lanes(g_lanes) / channels as f32 };
    let mean_gh = simd::sum_lanes(gh_lanes) / channels as f32;
    for (((dx, dout), x), weight) in dx.iter_mut().zip(dout).zip(x).zip(weight) {
        let h = (x - mean) * rstd;
        let value = rstd * h.mul_add(-mean_gh, dout * weight - mean_g);
        *dx = match write {
            Write::Set => value,
            Write::Add => *dx + value,
        };
    }
}

/// Channels that a task of [`backward_params`] takes. No result depends on it.
const WIDTH: usize = 64;

/// Gradients of weight and, where there is one, bias: one chain a channel in order of rows, from zero.
pub fn backward_params(
    engine: &Engine,
    dweight: &mut [f32],
    dbias: Option<&mut [f32]>,
    write: Write,
    dout: &[f32],
    forward: LayernormForward<'_>,
) {
    let mut biases = dbias.map(|dbias| dbias.chunks_mut(WIDTH));
    let dbias = std::iter::repeat_with(|| biases.as_mut().and_then(Iterator::next));
    let blocks: Vec<_> = dweight.chunks_mut(WIDTH).zip(dbias).enumerate().collect();
    engine.install(|| {
        blocks.into_par_iter().for_each(|(block, (dweight, dbias))| {
            vectorize!(engine.isa, |_| backward_block(block * WIDTH, dweight, dbias, write, dout, forward));
        });
    });
}

/// The gradients of the channels from `first` on, at most [`WIDTH`] of them.
#[inline(always)]
fn backward_block(
    first: usize,
    dweight: &mut [f32],
    dbias: Option<&mut [f32]>,
    write: Write,
    dout: &[f32],
    forward: LayernormForward<'_>,
) {
    let (channels, width) = (forward.weight.len(), dweight.len());
    let store = |to: &mut [f32], sums: &[f32]| match write {
        Write::Set => to.copy_from_slice(sums),
        Write::Add => add(to, sums),
    };
    let mut weights = [0.0f32; WIDTH];
    let mut biases = [0.0f32; WIDTH];
    let rows = dout.chunks_exact(channels).zip(forward.x.chunks_exact(channels)).zip(forward.rstd);
    for (row, ((dout, x), rstd)) in rows.enumerate() {
        let (mean, dout) = (forward.mean(row), &dout[first..first + width]);
        for ((dout, x), weight) in dout.iter().zip(&x[first..first + width]).zip(&mut weights[..width]) {
            *weight = dout.mul_add((x - mean) * rstd, *weight);
        }
        if dbias.is_some() {
            add(&mut biases[..width], dout);
        }
    }
    store(dweight, &weights[..width]);
    if let Some(dbias) = dbias {
        store(dbias, &biases[..width]);
    }
}

impl Perform<Layernorm<'_, Buffer>> for Cpu {
    fn perform(&mut self, op: Layernorm<'_, Buffer>) -> Result<()> {
        const OP: &str = "layernorm";
        let Layernorm { out, mean, rstd, x, weight, bias, rows, channels } = op;
        forward(
            &self.engine,
            view_mut(OP, "out", out, rows * channels)?,
            statistics(OP, mean, rstd, rows)?,
            view(OP, "x", x, rows * channels)?,
            vectors(OP, weight, bias, channels)?,
        );
        Ok(())
    }
}

fn statistics<'a>(
    op: &'static str,
    mean: Option<&'a mut Buffer>,
    rstd: &'a mut Buffer,
    rows: usize,
) -> Result<NormStatistics<'a>> {
    let mean = mean.map(|mean| view_mut(op, "mean", mean, rows)).transpose()?;
    Ok(NormStatistics { mean, rstd: view_mut(op, "rstd", rstd, rows)? })
}

fn vectors<'a>(
    op: &'static str,
    weight: &'a Buffer,
    bias: Option<&'a Buffer>,
    channels: usize,
) -> Result<NormVectors<'a>> {
    let bias = bias.map(|bias| view(op, "bias", bias, channels)).transpose()?;
    Ok(NormVectors { weight: view(op, "weight", weight, channels)?, bias })
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
            statistics(OP, op.mean, op.rstd, rows)?,
            vectors(OP, op.weight, op.bias, channels)?,
        );
        Ok(())
    }
}

impl Perform<LayernormBackward<'_, Buffer>> for Cpu {
    fn perform(&mut self, op: LayernormBackward<'_, Buffer>) -> Result<()> {
        const OP: &str = "layernorm_backward";
        if !op.again_fits() {
            return Err(failed(OP, OTHER_BIAS.into()));
        }
        let (rows, channels) = (op.rows, op.channels);
        let forward = LayernormForward {
            x: view(OP, "x", op.x, rows * channels)?,
            weight: view(OP, "weight", op.weight, channels)?,
            mean: op.mean.map(|mean| view(OP, "mean", mean, rows)).transpose()?,
            rstd: view(OP, "rstd", op.rstd, rows)?,
        };
        if let Some(NormAgain { out, bias }) = op.again {
            let bias = bias.map(|bias| view(OP, "bias", bias, channels)).transpose()?;
            forward_again(&self.engine, view_mut(OP, "out", out, rows * channels)?, forward, bias);
        }
        let dout = view(OP, "dout", op.dout, rows * channels)?;
        let dx = view_mut(OP, "dx", op.dx, rows * channels)?;
        backward_input(&self.engine, dx, op.dx_write, dout, forward);
        let dbias = op.dbias.map(|dbias| view_mut(OP, "dbias", dbias, channels)).transpose()?;
        let dweight = view_mut(OP, "dweight", op.dweight, channels)?;
        backward_params(&self.engine, dweight, dbias, op.write, dout, forward);
        Ok(())
    }
}
