//! Layer normalisation and RMSNorm, as `kernels/layernorm.cu` computes them. RMSNorm is a layernorm whose
//! mean is 0 and whose gradient has no average of g; no bias is one of zeros.

use half::bf16;
use rayon::prelude::*;

use super::Mirror;
use super::buffer::MirrorBuffer;
use super::checks::{act, float, float_mut, row_length};
use super::reduce::reduce_partials;
use super::scalar::{kept, round, warp_sum, wide};
use crate::ops::cpu::checks::failed;
use crate::ops::cpu::engine::Engine;
use crate::ops::op::norm::OTHER_BIAS;
use crate::ops::{Layernorm, LayernormBackward, NormAgain, Perform, ResidualLayernorm, Result, Write};

const EPSILON: f32 = 1e-5;
const LANES: usize = 32;

/// Sum over a row of what its threads have: the butterfly of each warp, then the warps in order.
fn add_threads(threads: &[f32]) -> f32 {
    let mut warps = threads.as_chunks::<LANES>().0.iter().map(|lanes| warp_sum(*lanes));
    let first = warps.next().unwrap_or(0.0);
    warps.fold(first, |sum, warp| sum + warp)
}

/// Thread t of `threads` has the chunks of eight columns t, t + threads, …; `f(sum, column)` adds one column.
fn each_thread(threads: usize, channels: usize, f: impl Fn(f32, usize) -> f32) -> Vec<f32> {
    let chunks = |thread: usize| (thread..channels / 8).step_by(threads);
    let sum = |thread| chunks(thread).flat_map(|chunk| chunk * 8..chunk * 8 + 8).fold(0.0, &f);
    (0..threads).map(sum).collect()
}

/// The outputs of the forward pass: out (n, C), mean and rstd (n); no mean of RMSNorm.
pub struct Normalised<'a> {
    pub out: &'a mut [bf16],
    pub mean: Option<&'a mut [f32]>,
    pub rstd: &'a mut [f32],
}

/// `out = (x - mean) rstd weight + bias` for each row; rstd is one over the root of the variance and 1e-5.
///
/// Sums of a row, first of x, but for RMSNorm, then of the squared distances from the mean: eight columns at
/// a time by 32 threads up to 2048 channels, 64 up to 4096 and so on, see [`each_thread`]; then
/// [`add_threads`].
pub fn forward(engine: &Engine, to: Normalised<'_>, x: &[bf16], weight: &[bf16], bias: Option<&[bf16]>) {
    let channels = weight.len();
    let threads = LANES * channels.div_ceil(2048).next_power_of_two();
    let rms = to.mean.is_none();
    let row = |((out, rstd), x): ((&mut [bf16], &mut f32), &[bf16])| -> f32 {
        let x: Vec<f32> = x.iter().map(|x| wide(*x)).collect();
        let sum_of = |f: &dyn Fn(f32, usize) -> f32| add_threads(&each_thread(threads, channels, f));
        let average = if rms { 0.0 } else { sum_of(&|sum, c| sum + x[c]) / channels as f32 };
        let square = |sum: f32, c: usize| (x[c] - average).mul_add(x[c] - average, sum);
        let variance = sum_of(&square) / channels as f32;
        let scale = 1.0 / (variance + EPSILON).sqrt();
        for (c, out) in out.iter_mut().enumerate() {
            let bias = bias.map_or(0.0, |bias| wide(bias[c]));
            *out = round(((x[c] - average) * scale).mul_add(wide(weight[c]), bias));
        }
        *rstd = kept(scale);
        kept(average)
    };
    let rows = to.out.par_chunks_mut(channels).zip(to.rstd.par_iter_mut()).zip(x.par_chunks(channels));
    engine.install(|| match to.mean {
        Some(mean) => mean.par_iter_mut().zip(rows).for_each(|(mean, it)| *mean = row(it)),
        None => rows.for_each(|it| {
            row(it);
        }),
    });
}

/// `sum = bf16(x + branch)`.
pub fn add_branch(sum: &mut [bf16], x: &[bf16], branch: &[bf16]) {
    for ((sum, x), branch) in sum.iter_mut().zip(x).zip(branch) {
        *sum = round(wide(*x) + wide(*branch));
    }
}

/// What the gradient reads of the forward pass: x (n, C), weight (C), mean and rstd (n); no mean of RMSNorm.
#[derive(Clone, Copy)]
pub struct MirrorLayernormForward<'a> {
    pub x: &'a [bf16],
    pub weight: &'a [bf16],
    pub mean: Option<&'a [f32]>,
    pub rstd: &'a [f32],
}

/// `out` of [`forward`] again, from the statistics that it left.
fn forward_again(
    engine: &Engine,
    out: &mut [bf16],
    forward: MirrorLayernormForward<'_>,
    bias: Option<&[bf16]>,
) {
    let channels = forward.weight.len();
    let row = |(row, (out, x)): (usize, (&mut [bf16], &[bf16]))| {
        let (mean, rstd) = (forward.mean.map_or(0.0, |mean| mean[row]), forward.rstd[row]);
        for (c, (out, x)) in out.iter_mut().zip(x).enumerate() {
            let bias = bias.map_or(0.0, |bias| wide(bias[c]));
            *out = round(((wide(*x) - mean) * rstd).mul_add(wide(forward.weight[c]), bias));
        }
    };
    let rows = out.par_chunks_mut(channels).zip(forward.x.par_chunks(channels)).enumerate();
    engine.install(|| rows.for_each(row));
}

/// Where the gradients of the weights go: (C) each, none of a bias that is not there.
pub struct WeightGradients<'a> {
    pub dweight: &'a mut [f32],
    pub dbias: Option<&'a mut [f32]>,
    pub write: Write,
}

/// With h = (x - mean) rstd and g = dout weight: `dx (=|+=) rstd (g - avg(g) - h avg(g h))`, dweight the sum
/// of dout h and dbias that of dout over the rows. For RMSNorm there is no mean and no avg(g).
///
/// Sums of a row: eight columns at a time by as many threads as there are such chunks, or 512 that take
/// several, then [`add_threads`]. Weights: blocks of rows, at most some 512 of them and each a multiple of
/// four rows, are added row by row from zero, then [`reduce_partials`].
pub fn backward(
    engine: &Engine,
    dx: &mut [bf16],
    dx_write: Write,
    weights: WeightGradients<'_>,
    dout: &[bf16],
    forward: MirrorLayernormForward<'_>,
) {
    let channels = forward.weight.len();
    let (rows, threads) =
        (dout.len() / channels, if channels <= 4096 { (channels / 8).next_multiple_of(LANES) } else { 512 });
    let block_rows = rows.div_ceil(512).next_multiple_of(4).max(4);
    let weight: Vec<f32> = forward.weight.iter().map(|w| wide(*w)).collect();
    let inverse = 1.0 / channels as f32;
    let rms = forward.mean.is_none();
    let block = |(number, (dx, dout)): (usize, (&mut [bf16], &[bf16]))| {
        let mut partials = vec![0.0f32; 2 * channels];
        let (dweight, dbias) = partials.split_at_mut(channels);
        for (at, (dx, dout)) in dx.chunks_exact_mut(channels).zip(dout.chunks_exact(channels)).enumerate() {
            let row = number * block_rows + at;
            let (mean, rstd) = (forward.mean.map_or(0.0, |mean| mean[row]), forward.rstd[row]);
            let d: Vec<f32> = dout.iter().map(|d| wide(*d)).collect();
            let x = &forward.x[row * channels..][..channels];
            let h: Vec<f32> = x.iter().map(|x| (wide(*x) - mean) * rstd).collect();
            for c in 0..channels {
                dweight[c] = d[c].mul_add(h[c], dweight[c]);
                dbias[c] += d[c];
            }
            let average = |f: &dyn Fn(f32, usize) -> f32| {
                // The warps are added to zero here.
                (0.0 + add_threads(&each_thread(threads, channels, f))) * inverse
            };
            // With an average of 0 the fused product below is the product that RMSNorm rounds.
            let avg_g = if rms { 0.0 } else { average(&|sum, c| sum + d[c] * weight[c]) };
            let avg_gh = average(&|sum, c| (d[c] * weight[c]).mul_add(h[c], sum));
            for (c, dx) in dx.iter_mut().enumerate() {
                let old = if dx_write == Write::Add { wide(*dx) } else { 0.0 };
                let centred = (-h[c]).mul_add(avg_gh, d[c].mul_add(weight[c], -avg_g));
                *dx = round(rstd.mul_add(centred, old));
            }
        }
        partials
    };
    let size = block_rows * channels;
    let blocks = dx.par_chunks_mut(size).zip(dout.par_chunks(size)).enumerate();
    let partials: Vec<f32> = engine.install(|| blocks.flat_map_iter(block).collect());
    reduce_partials(weights.dweight, weights.write, &partials, 2 * channels, 0);
    if let Some(dbias) = weights.dbias {
        reduce_partials(dbias, weights.write, &partials, 2 * channels, channels);
    }
}

impl Perform<Layernorm<'_, MirrorBuffer>> for Mirror {
    fn perform(&mut self, op: Layernorm<'_, MirrorBuffer>) -> Result<()> {
        const OP: &str = "layernorm";
        let Layernorm { out, mean, rstd, x, weight, bias, rows, channels } = op;
        row_length(OP, channels)?;
        let to = Normalised {
            out: self.act_mut(OP, "out", out, rows * channels)?,
            mean: mean.map(|mean| float_mut(OP, "mean", mean, rows)).transpose()?,
            rstd: float_mut(OP, "rstd", rstd, rows)?,
        };
        let bias = bias.map(|bias| act(OP, "bias", bias, channels)).transpose()?;
        let weight = act(OP, "weight", weight, channels)?;
        forward(&self.engine, to, act(OP, "x", x, rows * channels)?, weight, bias);
        Ok(())
    }
}

impl Perform<ResidualLayernorm<'_, MirrorBuffer>> for Mirror {
    fn perform(&mut self, op: ResidualLayernorm<'_, MirrorBuffer>) -> Result<()> {
        const OP: &str = "residual_layernorm";
        let ResidualLayernorm { residual, out, mean, rstd, x, branch, weight, bias, rows, channels } = op;
        let sum = self.act_mut(OP, "residual", residual, rows * channels)?;
        let (x, branch) = (act(OP, "x", x, rows * channels)?, act(OP, "branch", branch, rows * channels)?);
        add_branch(sum, x, branch);
        self.perform(Layernorm { out, mean, rstd, x: residual, weight, bias, rows, channels })
    }
}

impl Perform<LayernormBackward<'_, MirrorBuffer>> for Mirror {
    fn perform(&mut self, op: LayernormBackward<'_, MirrorBuffer>) -> Result<()> {
        const OP: &str = "layernorm_backward";
        if !op.again_fits() {
            return Err(failed(OP, OTHER_BIAS.into()));
        }
        let (rows, channels) = (op.rows, op.channels);
        row_length(OP, channels)?;
        let forward = MirrorLayernormForward {
            x: act(OP, "x", op.x, rows * channels)?,
            weight: act(OP, "weight", op.weight, channels)?,
            mean: op.mean.map(|mean| float(OP, "mean", mean, rows)).transpose()?,
            rstd: float(OP, "rstd", op.rstd, rows)?,
        };
        if let Some(NormAgain { out, bias }) = op.again {
            let bias = bias.map(|bias| act(OP, "bias", bias, channels)).transpose()?;
            let out = self.act_mut(OP, "out", out, rows * channels)?;
            forward_again(&self.engine, out, forward, bias);
        }
        let weights = WeightGradients {
            dweight: float_mut(OP, "dweight", op.dweight, channels)?,
            dbias: op.dbias.map(|dbias| float_mut(OP, "dbias", dbias, channels)).transpose()?,
            write: op.write,
        };
        let dx = self.act_mut(OP, "dx", op.dx, rows * channels)?;
        backward(&self.engine, dx, op.dx_write, weights, act(OP, "dout", op.dout, rows * channels)?, forward);
        Ok(())
    }
}
