//! The classifier, as `kernels/classifier_hopper.cu` and the product that ends in powers of 2 compute it.

use std::f32::consts::LN_2;

use half::bf16;
use rayon::prelude::*;

use super::Mirror;
use super::buffer::MirrorBuffer;
use super::checks::{act, float, float_mut, row_length};
use super::linear::{self, WeightGradient};
use super::scalar::{LOG2_E, kept, ln, max, round, softcap, warp_sum, wide};
use super::special::exp2;
use crate::ops::cpu::Ids;
use crate::ops::cpu::checks::tokens;
use crate::ops::cpu::engine::Engine;
use crate::ops::cuda::launch::classifier::chunk_rows;
use crate::ops::cuda::launch::gemm_hopper;
use crate::ops::op::outline::TableGradient;
use crate::ops::{Classifier, ClassifierLoss, LinearShape, LogitTerms, Perform, Result, Vocab, Write};

/// Columns whose powers are added before those of others.
const STRIPE: usize = gemm_hopper::STRIPE as usize;
/// Warps that share a row's stripes.
const WARPS: usize = 8;
/// The least and the largest sum, 2^64, that ask for no other base.
const LEAST: f32 = 0.5;
const MOST: f32 = 18_446_744_073_709_551_616.0;

/// A logit as the softmax sees it, and what its gradient is multiplied by.
#[inline(always)]
fn seen(x: f32, cap: Option<f32>) -> (f32, f32) {
    cap.map_or((x, 1.0), |cap| softcap(x, cap))
}

/// One logit's power of 2.
struct Power {
    exponent: f32,
    value: f32,
    /// The value times the soft-cap's slope: what its gradient is made of.
    stored: bf16,
}

/// `2^(y log2 e - base)` of a logit, of -infinity none.
#[inline(always)]
fn power(x: f32, base: f32, cap: Option<f32>) -> Power {
    let (y, slope) = seen(x, cap);
    let none = cap.is_some() && x == f32::NEG_INFINITY;
    let exponent = if none { x } else { y.mul_add(LOG2_E, -base) };
    let value = exp2(exponent);
    Power { exponent, value, stored: round(if cap.is_some() { value * slope } else { value }) }
}

/// The largest exponent, and the sum of powers.
#[derive(Clone, Copy)]
struct PowerSum {
    highest: f32,
    sum: f32,
}

impl PowerSum {
    const NONE: PowerSum = PowerSum { highest: f32::NEG_INFINITY, sum: 0.0 };

    fn plus(self, other: PowerSum) -> PowerSum {
        PowerSum { highest: max(self.highest, other.highest), sum: self.sum + other.sum }
    }
}

/// The powers of a stripe's logits, of which `out` gets as many as it has room for: thread q of four the
/// columns 8n + 2q and 8n + 2q + 1 in pairs, then neighbouring threads, then the two pairs of threads.
fn stripe(logits: &[f32], out: &mut [bf16], base: f32, cap: Option<f32>) -> PowerSum {
    let mut threads = [PowerSum::NONE; 4];
    for pair in 0..STRIPE / 2 {
        let [even, odd] = [0, 1].map(|i| {
            let column = 2 * pair + i;
            let power = power(logits.get(column).copied().unwrap_or(f32::NEG_INFINITY), base, cap);
            if let Some(out) = out.get_mut(column) {
                *out = power.stored;
            }
            power
        });
        let both = PowerSum { highest: max(even.exponent, odd.exponent), sum: even.value + odd.value };
        threads[pair % 4] = threads[pair % 4].plus(both);
    }
    let [a, b, c, d] = threads;
    a.plus(b).plus(c.plus(d))
}

/// Those of a row: warp w of 8 the stripes w, w + 8, …, then the warps in order.
fn row_powers(logits: &[f32], out: &mut [bf16], base: f32, cap: Option<f32>) -> PowerSum {
    let mut warps = [PowerSum::NONE; WARPS];
    for (index, out) in out.chunks_mut(STRIPE).enumerate() {
        let first = (index * STRIPE).min(logits.len());
        let logits = &logits[first..logits.len().min(first + STRIPE)];
        warps[index % WARPS] = warps[index % WARPS].plus(stripe(logits, out, base, cap));
    }
    warps.into_iter().skip(1).fold(warps[0], PowerSum::plus)
}

/// About `x · w`, for a base: lane l of 32 the chunks of eight l, l + 32, …, each product fused to the sum
/// before; the butterfly.
fn near_product(x: &[bf16], w: &[bf16]) -> f32 {
    let mut lanes = [0.0f32; 32];
    for (chunk, (x, w)) in x.chunks(8).zip(w.chunks(8)).enumerate() {
        let lane = &mut lanes[chunk % 32];
        *lane = x.iter().zip(w).fold(*lane, |sum, (x, w)| wide(*x).mul_add(wide(*w), sum));
    }
    warp_sum(lanes)
}

/// What a row's losses and gradients come from.
#[derive(Clone, Copy)]
struct RowSoftmax {
    base: f32,
    sum: f32,
}

impl RowSoftmax {
    /// Of a row's logits, with their powers in `out` (V). `near` is about the target's logit.
    fn of(logits: &[f32], out: &mut [bf16], near: f32, cap: Option<f32>) -> RowSoftmax {
        let mut base = seen(near, cap).0 * LOG2_E;
        let mut powers = row_powers(logits, out, base, cap);
        if powers.sum > MOST || powers.sum < LEAST {
            base += powers.highest;
            powers = row_powers(logits, out, base, cap);
        }
        RowSoftmax { base, sum: powers.sum }
    }

    /// The exponent of the target's power, and the soft-cap's slope there.
    fn at_target(&self, logit: f32, cap: Option<f32>) -> (f32, f32) {
        let (y, slope) = seen(logit, cap);
        (y.mul_add(LOG2_E, -self.base), slope)
    }

    /// Rounding leaves a little less than nothing; far less is of logits past all precision.
    fn loss(&self, target_logit: f32, cap: Option<f32>) -> f32 {
        let loss = (-self.at_target(target_logit, cap).0).mul_add(LN_2, ln(self.sum));
        let bounded = if loss < -1e-3 { f32::NAN } else { 0.0 };
        kept(if loss <= 0.0 { bounded } else { loss })
    }

    /// `1 + 2 z lse`.
    fn weight(&self, z_loss: f32) -> f32 {
        (2.0 * z_loss).mul_add(self.base.mul_add(LN_2, ln(self.sum)), 1.0)
    }

    /// What the powers are multiplied by to become the gradient of the loss times `scale`.
    fn factor(&self, scale: f32, z_loss: f32) -> f32 {
        scale * self.weight(z_loss) / self.sum
    }

    /// What stands for the target's power in the gradient.
    fn target(&self, logit: f32, terms: LogitTerms) -> bf16 {
        let (exponent, slope) = self.at_target(logit, terms.softcap);
        round((exp2(exponent) - self.sum / self.weight(terms.z_loss)) * slope)
    }
}

/// `out = bf16(x factor)` with a factor for each row. out, x (n, C).
fn multiply_rows<T: Sync>(
    engine: &Engine,
    out: &mut [bf16],
    x: &[T],
    factors: &[f32],
    value: impl Fn(&T) -> f32 + Sync,
) {
    let channels = x.len() / factors.len();
    engine.install(|| {
        let rows = (out.par_chunks_mut(channels), x.par_chunks(channels), factors);
        rows.into_par_iter().for_each(|(out, x, factor)| {
            out.iter_mut().zip(x).for_each(|(out, x)| *out = round(value(x) * factor));
        });
    });
}

/// The classifier's input times the factors of its rows. x (n, C).
fn scaled(engine: &Engine, x: &[bf16], factors: &[f32]) -> Vec<bf16> {
    let mut out = vec![bf16::ZERO; x.len()];
    multiply_rows(engine, &mut out, x, factors, |x| wide(*x));
    out
}

/// The operands of the classifier.
struct MirrorClassifierInputs<'a> {
    losses: &'a mut [f32],
    x: &'a [bf16],
    wte: &'a [bf16],
    targets: &'a [u16],
    channels: usize,
    vocab: Vocab,
    terms: LogitTerms,
}

struct MirrorClassifierOutputs<'a> {
    denominators: &'a mut [f32],
    dx: &'a mut [bf16],
    dwte: &'a mut [f32],
    scale: f32,
    write: Write,
}

/// What rows of the table's gradient are computed from.
pub(super) struct TableGradientInputs<'a> {
    /// (n, C), bf16.
    pub x: &'a MirrorBuffer,
    /// The rows of the table (count, C), bf16.
    pub wte: &'a MirrorBuffer,
    /// Of every row (n, 2), f32.
    pub denominators: &'a MirrorBuffer,
    /// (n).
    pub targets: &'a Ids,
}

impl Mirror {
    /// Some rows of the gradient of the table, for an excerpt: of the powers the columns of these rows.
    /// `dwte` (count, C).
    pub(super) fn table_gradient(
        &self,
        gradient: &TableGradient,
        dwte: &mut MirrorBuffer,
        inputs: TableGradientInputs<'_>,
    ) -> Result<()> {
        const OP: &str = "classifier";
        let TableGradient { rows, channels, vocab, terms, scale, write, first, count } = *gradient;
        let LogitTerms { softcap, z_loss } = terms;
        let targets = tokens(OP, &inputs.targets.0, rows, vocab.used)?;
        let (x, wte) =
            (act(OP, "x", inputs.x, rows * channels)?, act(OP, "wte", inputs.wte, count * channels)?);
        let denominators = float(OP, "denominators", inputs.denominators, 2 * rows)?.as_chunks().0;
        let dwte = float_mut(OP, "dwte", dwte, count * channels)?;
        let size = chunk_rows(rows as u64, vocab.padded as u64, 2) as usize;
        let chunks = x.chunks(size * channels).zip(targets.chunks(size)).zip(denominators.chunks(size));
        for (chunk, ((x, targets), denominators)) in chunks.enumerate() {
            let whole = LinearShape { rows: targets.len(), c_in: channels, c_out: vocab.padded };
            let shape = LinearShape { c_out: count, ..whole };
            let sums = linear::forward_sums(&self.engine, x, wte, shape);
            let mut powers = vec![bf16::ZERO; shape.output()];
            let used = vocab.used.saturating_sub(first).min(count);
            let row = |out: &mut [bf16], logits: &[f32], target: u16, [base, sum]: [f32; 2]| {
                let of_used = out[..used].iter_mut().zip(logits);
                of_used.for_each(|(out, x)| *out = power(*x, base, softcap).stored);
                let softmax = RowSoftmax { base, sum };
                if let Some(at) = usize::from(target).checked_sub(first).filter(|at| *at < count) {
                    out[at] = softmax.target(logits[at], terms);
                }
                softmax.factor(scale, z_loss)
            };
            let factors: Vec<f32> = self.engine.install(|| {
                let rows = (powers.par_chunks_mut(count), sums.par_chunks(count), targets, denominators);
                let rows = rows.into_par_iter();
                rows.map(|(out, logits, target, denominator)| row(out, logits, *target, *denominator))
                    .collect()
            });
            let x = scaled(&self.engine, x, &factors);
            let write = if chunk > 0 { Write::Add } else { write };
            WeightGradient { dout: &powers, x: &x, shape, write, whole }.weight(&self.engine, dwte);
        }
        Ok(())
    }

    /// Losses and, where asked for, gradients, one chunk of rows after the other.
    fn classify(
        &self,
        problem: MirrorClassifierInputs<'_>,
        mut gradient: Option<MirrorClassifierOutputs<'_>>,
    ) {
        let MirrorClassifierInputs { losses, x, wte, targets, channels, vocab, terms } = problem;
        let LogitTerms { softcap, z_loss } = terms;
        let engine = &self.engine;
        let size = chunk_rows(losses.len() as u64, vocab.padded as u64, 2) as usize;
        for (chunk, losses) in losses.chunks_mut(size).enumerate() {
            let first = chunk * size;
            let shape = LinearShape { rows: losses.len(), c_in: channels, c_out: vocab.padded };
            let x = &x[first * channels..][..shape.input()];
            let sums = linear::forward_sums(engine, x, wte, shape);
            let mut powers = vec![bf16::ZERO; shape.output()];
            let row = |out: &mut [bf16], logits: &[f32], x: &[bf16], loss: &mut f32, target: u16| {
                let target = usize::from(target);
                let near = near_product(x, &wte[target * channels..][..channels]);
                let softmax = RowSoftmax::of(&logits[..vocab.used], out, near, softcap);
                *loss = softmax.loss(logits[target], softcap);
                out[target] = softmax.target(logits[target], terms);
                softmax
            };
            let softmaxes: Vec<RowSoftmax> = engine.install(|| {
                let logits = (powers.par_chunks_mut(vocab.padded), sums.par_chunks(vocab.padded));
                let rows = (x.par_chunks(channels), losses, &targets[first..][..shape.rows]);
                let rows = logits.into_par_iter().zip(rows);
                rows.map(|((out, logits), (x, loss, target))| row(out, logits, x, loss, *target)).collect()
            });
            let Some(MirrorClassifierOutputs { denominators, dx, dwte, scale, write }) = &mut gradient else {
                continue;
            };
            let pairs = denominators[2 * first..].chunks_mut(2).zip(&softmaxes);
            pairs.for_each(|(pair, of)| pair.copy_from_slice(&[kept(of.base), kept(of.sum)]));
            let factors: Vec<f32> = softmaxes.iter().map(|softmax| softmax.factor(*scale, z_loss)).collect();
            let dx = &mut dx[first * channels..][..shape.input()];
            let sums = linear::backward_input_sums(engine, &powers, wte, shape);
            multiply_rows(engine, dx, &sums, &factors, |sum| *sum);
            let x = scaled(engine, x, &factors);
            let write = if first > 0 { Write::Add } else { *write };
            WeightGradient { dout: &powers, x: &x, shape, write, whole: shape }.weight(engine, dwte);
        }
    }
}

impl Perform<ClassifierLoss<'_, MirrorBuffer, Ids>> for Mirror {
    fn perform(&mut self, op: ClassifierLoss<'_, MirrorBuffer, Ids>) -> Result<()> {
        const OP: &str = "classifier_loss";
        let ClassifierLoss { losses, losses_at, x, wte, targets, rows, channels, vocab, terms } = op;
        row_length(OP, vocab.padded)?;
        let problem = MirrorClassifierInputs {
            losses: &mut float_mut(OP, "losses", losses, losses_at + rows)?[losses_at..],
            x: act(OP, "x", x, rows * channels)?,
            wte: act(OP, "wte", wte, vocab.padded * channels)?,
            targets: tokens(OP, &targets.0, rows, vocab.used)?,
            channels,
            vocab,
            terms,
        };
        self.classify(problem, None);
        Ok(())
    }
}

impl Perform<Classifier<'_, MirrorBuffer, Ids>> for Mirror {
    fn perform(&mut self, op: Classifier<'_, MirrorBuffer, Ids>) -> Result<()> {
        const OP: &str = "classifier";
        let (rows, channels, vocab) = (op.rows, op.channels, op.vocab);
        row_length(OP, vocab.padded)?;
        let problem = MirrorClassifierInputs {
            losses: &mut float_mut(OP, "losses", op.losses, op.losses_at + rows)?[op.losses_at..],
            x: act(OP, "x", op.x, rows * channels)?,
            wte: act(OP, "wte", op.wte, vocab.padded * channels)?,
            targets: tokens(OP, &op.targets.0, rows, vocab.used)?,
            channels,
            vocab,
            terms: op.terms,
        };
        let gradient = MirrorClassifierOutputs {
            denominators: float_mut(OP, "denominators", op.denominators, 2 * rows)?,
            dx: self.act_mut(OP, "dx", op.dx, rows * channels)?,
            dwte: float_mut(OP, "dwte", op.dwte, vocab.padded * channels)?,
            scale: op.scale,
            write: op.write,
        };
        self.classify(problem, Some(gradient));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However far the base's own logit is from the product's.
    #[test]
    fn a_row_that_is_sure_of_its_target_has_no_loss_and_no_gradient() {
        let mut logits: Vec<f32> = (0..500).map(|i| -(i as f32)).collect();
        logits[300] = 900.0;
        for (softcap, off) in [0.0, 1e-4, -1e-4, 0.3, -0.3, 20.0, -20.0, 500.0, -500.0]
            .into_iter()
            .flat_map(|off| [(None, off), (Some(1000.0), off)])
        {
            let mut powers = vec![bf16::ZERO; 512];
            let softmax = RowSoftmax::of(&logits, &mut powers, 900.0 + off, softcap);
            let loss = softmax.loss(900.0, softcap);
            assert!((0.0..=2e-6).contains(&loss) && !loss.is_sign_negative(), "{softcap:?}, {off}: {loss}");
            let terms = LogitTerms { softcap, z_loss: 0.0 };
            let gradient = wide(softmax.target(900.0, terms)) * softmax.factor(1.0, 0.0);
            assert!(gradient.abs() <= 2e-6, "{softcap:?}, {off}: {gradient}");
            assert!((0.5..=MOST).contains(&softmax.sum), "{softcap:?}, {off}: {}", softmax.sum);
        }
    }

    #[test]
    fn losses_are_those_of_f64_for_any_base() {
        let logits: Vec<f32> = (0..257).map(|i| ((i * 37 % 101) as f32 - 50.0) * 3.0).collect();
        let exact = |target: usize| {
            let highest = logits.iter().fold(f32::MIN, |a, b| a.max(*b));
            let sum: f64 = logits.iter().map(|x| libm::exp(f64::from(x - highest))).sum();
            libm::log(sum) + f64::from(highest - logits[target])
        };
        for target in [0, 5, 100, 256] {
            for off in [0.0, 1.0, -1.0, 200.0, -200.0] {
                let softmax = RowSoftmax::of(&logits, &mut [bf16::ZERO; 384], logits[target] + off, None);
                let (loss, exact) = (f64::from(softmax.loss(logits[target], None)), exact(target));
                assert!((loss - exact).abs() <= 1e-6 * (1.0 + exact), "{target}, {off}: {loss}, {exact}");
            }
        }
    }
}
