//! The last matrix product, softmax and cross-entropy in one, in chunks of rows.
//!
//! Logits exist for [`ROW_CHUNK`] rows at a time; the gradient takes their place. Columns past
//! `vocab.used` are never computed.

use std::f32::consts::LOG2_E;

use rayon::prelude::*;

use super::super::{Classifier, ClassifierLoss, LogitTerms, Perform, Result, Vocab, Write};
use super::buffer::Buffer;
use super::checks::{tokens, view, view_mut};
use super::engine::Engine;
use super::gemm::{self, Finish, StridedMut};
use super::linear::{OuterProduct, ROW_CHUNK, backward_weight};
use super::math::{exp, ln, softcap};
use super::simd::{largest, sum_of, vectorize};
use super::tile::{RightOperand, Strided};
use super::{Cpu, Ids};

/// The constants of a call.
#[derive(Clone, Copy)]
pub struct ClassifierInputs<'a> {
    /// (n, C)
    pub x: &'a [f32],
    /// (V, C)
    pub wte: &'a [f32],
    pub targets: &'a [u16],
    pub channels: usize,
    pub vocab: Vocab,
    pub terms: LogitTerms,
}

/// The outputs of the backward pass.
pub struct ClassifierOutputs<'a> {
    /// (n, 2)
    pub denominators: &'a mut [f32],
    pub dx: &'a mut [f32],
    pub dwte: &'a mut [f32],
    pub scale: f32,
    pub write: Write,
}

/// Floats of logits that a call on `n` rows needs.
pub fn logits_len(n: usize, vocab: Vocab) -> usize {
    n.min(ROW_CHUNK) * vocab.padded
}

/// Losses of all rows and, if asked, the gradient of `scale * sum of losses`.
///
/// The gradient of `wte` is a left fold over chunks of [`ROW_CHUNK`] rows.
pub fn run(
    engine: &Engine,
    logits: &mut Buffer,
    losses: &mut [f32],
    problem: ClassifierInputs<'_>,
    mut gradient: Option<ClassifierOutputs<'_>>,
) {
    let ClassifierInputs { x, wte, targets, channels, vocab, terms } = problem;
    let n = losses.len();
    if let Some(ClassifierOutputs { dwte, write: Write::Set, .. }) = &mut gradient {
        dwte[vocab.used * channels..].fill(0.0);
    }
    logits.reserve(logits_len(n, vocab));
    for first in (0..n).step_by(ROW_CHUNK) {
        let rows = ROW_CHUNK.min(n - first);
        let x = &x[first * channels..(first + rows) * channels];
        let logits = &mut logits.as_mut_slice()[..rows * vocab.padded];
        gemm::multiply(
            engine,
            StridedMut { data: logits, stride: vocab.padded, columns: vocab.used },
            Strided { data: x, stride: channels },
            RightOperand::Columns { data: wte, stride: channels },
            channels,
            Finish::Set,
        );
        let (losses, targets) = (&mut losses[first..first + rows], &targets[first..first + rows]);
        engine.install(|| match &mut gradient {
            None => (logits.par_chunks_mut(vocab.padded), losses, targets).into_par_iter().for_each(
                |(logits, loss, target)| {
                    vectorize!(engine.isa, |_| (*loss, _) =
                        row(&mut logits[..vocab.used], usize::from(*target), None, terms));
                },
            ),
            Some(ClassifierOutputs { denominators, scale, .. }) => {
                let denominators = denominators[2 * first..2 * (first + rows)].par_chunks_mut(2);
                let scale = Some(*scale);
                (logits.par_chunks_mut(vocab.padded), losses, denominators, targets)
                    .into_par_iter()
                    .for_each(|(logits, loss, denominator, target)| {
                        let mut lse = 0.0;
                        vectorize!(engine.isa, |_| (*loss, lse) =
                            row(&mut logits[..vocab.used], usize::from(*target), scale, terms));
                        denominator.copy_from_slice(&[lse * LOG2_E, 1.0]);
                    });
            }
        });
        if let Some(ClassifierOutputs { dx, dwte, write, .. }) = &mut gradient {
            let dx = &mut dx[first * channels..(first + rows) * channels];
            gemm::multiply(
                engine,
                StridedMut::dense(dx, channels),
                Strided { data: logits, stride: vocab.padded },
                RightOperand::Rows { data: wte, stride: channels },
                vocab.used,
                Finish::Set,
            );
            let write = if first == 0 { *write } else { Write::Add };
            let dwte = &mut dwte[..vocab.used * channels];
            let operands = OuterProduct { dout: logits, stride: vocab.padded, x, rows, c_in: channels };
            backward_weight(engine, dwte, operands, write);
        }
    }
}

/// One row of the classifier: [`cross_entropy`], or with terms [`cross_entropy_with`].
#[inline(always)]
fn row(logits: &mut [f32], target: usize, scale: Option<f32>, terms: LogitTerms) -> (f32, f32) {
    match terms {
        LogitTerms { softcap: None, z_loss: 0.0 } => cross_entropy(logits, target, scale),
        LogitTerms { softcap: None, z_loss } => {
            cross_entropy_with(logits, target, scale, z_loss, |x| (x, 1.0))
        }
        LogitTerms { softcap: Some(cap), z_loss } => {
            cross_entropy_with(logits, target, scale, z_loss, |x| softcap(x, cap))
        }
    }
}

/// Loss and log-sum-exp: `ln(sum of exp(x - max)) + (max - x[target])` and the same logarithm plus `max`;
/// with `scale`, `logits` become `scale * (softmax - one_hot(target))`.
#[inline(always)]
fn cross_entropy(logits: &mut [f32], target: usize, scale: Option<f32>) -> (f32, f32) {
    let max = largest(logits);
    let sum = sum_of(logits, |x| exp(x - max));
    let log = ln(sum);
    let loss = log + (max - logits[target]);
    if let Some(scale) = scale {
        let factor = scale / sum;
        logits.iter_mut().for_each(|x| *x = exp(*x - max) * factor);
        logits[target] -= scale;
    }
    (loss, log + max)
}

/// [`cross_entropy`] of logits that `cap` gives with their slopes; with `scale`, `logits` become
/// `(softmax scale (1 + 2 z lse) - scale one_hot(target)) slope`.
#[inline(always)]
fn cross_entropy_with(
    logits: &mut [f32],
    target: usize,
    scale: Option<f32>,
    z_loss: f32,
    cap: impl Fn(f32) -> (f32, f32),
) -> (f32, f32) {
    // A cap keeps the order: the largest is that of the largest.
    let max = cap(largest(logits)).0;
    let sum = sum_of(logits, |x| exp(cap(x).0 - max));
    let log = ln(sum);
    let lse = log + max;
    let (at_target, target_slope) = cap(logits[target]);
    let loss = log + (max - at_target);
    if let Some(scale) = scale {
        let factor = scale / sum * (2.0 * z_loss).mul_add(lse, 1.0);
        for x in logits.iter_mut() {
            let (capped, slope) = cap(*x);
            *x = exp(capped - max) * factor * slope;
        }
        logits[target] = (exp(at_target - max) * factor - scale) * target_slope;
    }
    (loss, lse)
}

impl Perform<ClassifierLoss<'_, Buffer, Ids>> for Cpu {
    fn perform(&mut self, op: ClassifierLoss<'_, Buffer, Ids>) -> Result<()> {
        const OP: &str = "classifier_loss";
        let ClassifierLoss { losses, losses_at, x, wte, targets, rows, channels, vocab, terms } = op;
        let losses = &mut view_mut(OP, "losses", losses, losses_at + rows)?[losses_at..];
        let problem = ClassifierInputs {
            x: view(OP, "x", x, rows * channels)?,
            wte: view(OP, "wte", wte, vocab.padded * channels)?,
            targets: tokens(OP, &targets.0, rows, vocab.used)?,
            channels,
            vocab,
            terms,
        };
        run(&self.engine, &mut self.logits, losses, problem, None);
        Ok(())
    }
}

impl Perform<Classifier<'_, Buffer, Ids>> for Cpu {
    fn perform(&mut self, op: Classifier<'_, Buffer, Ids>) -> Result<()> {
        const OP: &str = "classifier";
        let (rows, channels, vocab) = (op.rows, op.channels, op.vocab);
        let losses = &mut view_mut(OP, "losses", op.losses, op.losses_at + rows)?[op.losses_at..];
        let problem = ClassifierInputs {
            x: view(OP, "x", op.x, rows * channels)?,
            wte: view(OP, "wte", op.wte, vocab.padded * channels)?,
            targets: tokens(OP, &op.targets.0, rows, vocab.used)?,
            channels,
            vocab,
            terms: op.terms,
        };
        let gradient = ClassifierOutputs {
            denominators: view_mut(OP, "denominators", op.denominators, 2 * rows)?,
            dx: view_mut(OP, "dx", op.dx, rows * channels)?,
            dwte: view_mut(OP, "dwte", op.dwte, vocab.padded * channels)?,
            scale: op.scale,
            write: op.write,
        };
        run(&self.engine, &mut self.logits, losses, problem, Some(gradient));
        Ok(())
    }
}
