//! Softmax and cross-entropy over rows of logits, as `kernels/classifier.cu` computes them.

use half::bf16;
use rayon::prelude::*;

use super::Mirror;
use super::buffer::MirrorBuffer;
use super::checks::{act, float, float_mut, row_length};
use super::linear::{self, WeightGradient};
use super::scalar::{exp, kept, ln, max, round, softcap, warp_sum, wide};
use crate::ops::cpu::Ids;
use crate::ops::cpu::checks::tokens;
use crate::ops::cpu::engine::Engine;
use crate::ops::cuda::launch::classifier::chunk_rows;
use crate::ops::op::outline::TableGradient;
use crate::ops::{Classifier, ClassifierLoss, LinearShape, LogitTerms, Perform, Result, Vocab, Write};

/// Threads of a row; each takes the chunks of eight columns t, t + 512, ….
const THREADS: usize = 512;
const LOWEST: f32 = f32::MIN;

/// A running maximum, and the sum of e^(x - maximum).
#[derive(Clone, Copy)]
struct LogSum {
    max: f32,
    sum: f32,
}

impl LogSum {
    fn add(&mut self, x: &[f32]) {
        let highest = x.iter().fold(LOWEST, |highest, x| max(highest, *x));
        if highest > self.max {
            self.sum *= exp(self.max - highest);
            self.max = highest;
        }
        for x in x {
            self.sum += exp(x - self.max);
        }
    }
}

/// Log of the sum of e^x over a row: by thread, chunk after chunk; the butterfly of a warp; the 16 warps in
/// order, from zero.
fn log_sum_exp(row: &[f32]) -> f32 {
    let mut threads = [LogSum { max: LOWEST, sum: 0.0 }; THREADS];
    for (chunk, x) in row.chunks(8).enumerate() {
        threads[chunk % THREADS].add(x);
    }
    let warps: Vec<LogSum> = threads
        .as_chunks::<32>()
        .0
        .iter()
        .map(|lanes| {
            let highest = lanes.iter().fold(lanes[0].max, |highest, lane| max(highest, lane.max));
            LogSum { max: highest, sum: warp_sum(lanes.map(|lane| lane.sum * exp(lane.max - highest))) }
        })
        .collect();
    let highest = warps.iter().fold(warps[0].max, |highest, warp| max(highest, warp.max));
    let sum = warps.iter().fold(0.0, |sum, warp| sum + warp.sum * exp(warp.max - highest));
    highest + ln(sum)
}

/// Rows of logits (n, V) with their targets (n) and losses (n).
struct LogitsRows<'a> {
    logits: &'a mut [bf16],
    losses: &'a mut [f32],
    targets: &'a [u16],
    vocab: Vocab,
    terms: LogitTerms,
}

/// A stored logit as the softmax sees it, and what its gradient is multiplied by.
#[inline(always)]
fn seen(stored: bf16, cap: Option<f32>) -> (f32, f32) {
    cap.map_or((wide(stored), 1.0), |cap| softcap(wide(stored), cap))
}

/// The loss of each row and, where `gradient` asks for it, the rows' log-sum-exp (n) and, in place of the
/// logits, the gradient of `scale` times the losses' sum.
fn classify_rows(engine: &Engine, rows: LogitsRows<'_>, gradient: Option<(f32, &mut [f32])>) {
    let (Vocab { used, padded }, terms) = (rows.vocab, rows.terms);
    let row = |logits: &mut [bf16], loss: &mut f32, target: u16, scale: Option<f32>| {
        let x: Vec<f32> = logits[..used].iter().map(|x| seen(*x, terms.softcap).0).collect();
        let lse = log_sum_exp(&x);
        *loss = kept(lse - x[usize::from(target)]);
        if let Some(scale) = scale {
            logit_gradients(logits, RowGradient { lse, target, terms, scale, first: 0, used });
        }
        lse
    };
    let logits = rows.logits.par_chunks_mut(padded);
    engine.install(|| match gradient {
        None => (logits, rows.losses, rows.targets).into_par_iter().for_each(|(logits, loss, target)| {
            row(logits, loss, *target, None);
        }),
        Some((scale, lse)) => (logits, rows.losses, rows.targets, lse)
            .into_par_iter()
            .for_each(|(logits, loss, target, lse)| *lse = kept(row(logits, loss, *target, Some(scale)))),
    });
}

/// The constants of a row's gradient.
#[derive(Clone, Copy)]
struct RowGradient {
    lse: f32,
    target: u16,
    terms: LogitTerms,
    scale: f32,
    /// The column of the first logit, a multiple of eight.
    first: usize,
    /// Columns of the vocabulary.
    used: usize,
}

/// Turns the logits of neighbouring columns of a row into their gradients, `e^(x - lse) weight` minus, at the
/// target, `scale`, times the soft-cap's slope; zero past the vocabulary.
fn logit_gradients(logits: &mut [bf16], row: RowGradient) {
    let RowGradient { lse, target, terms, scale, first, used } = row;
    let weight = match terms {
        LogitTerms { softcap: None, z_loss: 0.0 } => scale,
        LogitTerms { z_loss, .. } => scale * (2.0 * z_loss).mul_add(lse, 1.0),
    };
    let target = usize::from(target);
    for (column, out) in (first..).zip(logits) {
        let (x, slope) = seen(*out, terms.softcap);
        let share = exp(x - lse) * weight;
        let right = if column == target { scale } else { 0.0 };
        *out = match column {
            past if past >= used => bf16::ZERO,
            near if near / 8 == target / 8 => round((share - right) * slope),
            _ => round(share * slope),
        };
    }
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
    lse: &'a mut [f32],
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
    /// Of every row's logits (n), f32.
    pub lse: &'a MirrorBuffer,
    /// (n).
    pub targets: &'a Ids,
}

impl Mirror {
    /// Some rows of the gradient of the table, for an excerpt: of the logits and their gradients the columns
    /// of these rows. `dwte` (count, C).
    pub(super) fn table_gradient(
        &self,
        gradient: &TableGradient,
        dwte: &mut MirrorBuffer,
        inputs: TableGradientInputs<'_>,
    ) -> Result<()> {
        const OP: &str = "classifier";
        let TableGradient { rows, channels, vocab, terms, scale, write, first, count } = *gradient;
        let used = vocab.used;
        let targets = tokens(OP, &inputs.targets.0, rows, used)?;
        let (x, wte) =
            (act(OP, "x", inputs.x, rows * channels)?, act(OP, "wte", inputs.wte, count * channels)?);
        let lse = float(OP, "lse", inputs.lse, rows)?;
        let dwte = float_mut(OP, "dwte", dwte, count * channels)?;
        let size = chunk_rows(rows as u64, vocab.padded as u64, 2) as usize;
        let chunks = x.chunks(size * channels).zip(targets.chunks(size)).zip(lse.chunks(size));
        for (chunk, ((x, targets), lse)) in chunks.enumerate() {
            let whole = LinearShape { rows: targets.len(), c_in: channels, c_out: vocab.padded };
            let shape = LinearShape { c_out: count, ..whole };
            let mut dout = vec![bf16::ZERO; shape.output()];
            linear::forward(&self.engine, &mut dout, x, wte, None, shape);
            self.engine.install(|| {
                (dout.par_chunks_mut(count), targets, lse).into_par_iter().for_each(
                    |(logits, target, lse)| {
                        let row = RowGradient { lse: *lse, target: *target, terms, scale, first, used };
                        logit_gradients(logits, row);
                    },
                );
            });
            let write = if chunk > 0 { Write::Add } else { write };
            WeightGradient { dout: &dout, x, shape, write, whole }.weight(&self.engine, dwte);
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
        let rows = losses.len();
        let size = chunk_rows(rows as u64, vocab.padded as u64, 2) as usize;
        for first in (0..rows).step_by(size) {
            let shape = LinearShape { rows: size.min(rows - first), c_in: channels, c_out: vocab.padded };
            let x = &x[first * channels..][..shape.input()];
            let mut logits = vec![bf16::ZERO; shape.output()];
            linear::forward(&self.engine, &mut logits, x, wte, None, shape);
            let rows = LogitsRows {
                logits: &mut logits,
                losses: &mut losses[first..][..shape.rows],
                targets: &targets[first..],
                vocab,
                terms,
            };
            let Some(MirrorClassifierOutputs { lse, dx, dwte, scale, write }) = &mut gradient else {
                classify_rows(&self.engine, rows, None);
                continue;
            };
            classify_rows(&self.engine, rows, Some((*scale, &mut lse[first..][..shape.rows])));
            let dx = &mut dx[first * channels..][..shape.input()];
            linear::backward_input(&self.engine, dx, &logits, wte, shape);
            let write = if first > 0 { Write::Add } else { *write };
            WeightGradient { dout: &logits, x, shape, write, whole: shape }.weight(&self.engine, dwte);
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
            lse: float_mut(OP, "lse", op.lse, rows)?,
            dx: self.act_mut(OP, "dx", op.dx, rows * channels)?,
            dwte: float_mut(OP, "dwte", op.dwte, vocab.padded * channels)?,
            scale: op.scale,
            write: op.write,
        };
        self.classify(problem, Some(gradient));
        Ok(())
    }
}
