//! Softmax and cross-entropy over rows of logits, as `kernels/classifier.cu` computes them.

use half::bf16;
use rayon::prelude::*;

use super::Mirror;
use super::buffer::MirrorBuffer;
use super::checks::{act, float_mut, row_length};
use super::linear::{self, WeightGradient};
use super::scalar::{exp, kept, ln, max, round, warp_sum, wide};
use crate::ops::cpu::Ids;
use crate::ops::cpu::checks::tokens;
use crate::ops::cpu::engine::Engine;
use crate::ops::cuda::launch::classifier::chunk_rows;
use crate::ops::op::outline::TableGradient;
use crate::ops::{Classifier, ClassifierLoss, LinearShape, Perform, Result, Vocab, Write};

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
pub struct LogitsRows<'a> {
    pub logits: &'a mut [bf16],
    pub losses: &'a mut [f32],
    pub targets: &'a [u16],
    pub vocab: Vocab,
}

/// The loss of each row and, with `scale`, the gradient of `scale` times their sum in place of the logits:
/// `(e^(x - lse) - [target]) scale`, zero past the vocabulary.
pub fn run(engine: &Engine, rows: LogitsRows<'_>, scale: Option<f32>) {
    let Vocab { used, padded } = rows.vocab;
    let row = |((logits, loss), target): ((&mut [bf16], &mut f32), &u16)| {
        let x: Vec<f32> = logits[..used].iter().map(|x| wide(*x)).collect();
        let (lse, target) = (log_sum_exp(&x), usize::from(*target));
        *loss = kept(lse - x[target]);
        let Some(scale) = scale else { return };
        for (column, (out, x)) in logits.iter_mut().zip(&x).enumerate() {
            let share = exp(x - lse) * scale;
            let right = if column == target { scale } else { 0.0 };
            *out = round(if column / 8 == target / 8 { share - right } else { share });
        }
        logits[used..].fill(bf16::ZERO);
    };
    engine.install(|| {
        let rows_of = rows.logits.par_chunks_mut(padded).zip(rows.losses.par_iter_mut());
        rows_of.zip(rows.targets.par_iter()).for_each(row);
    });
}

/// The operands of the classifier.
struct MirrorClassifierInputs<'a> {
    losses: &'a mut [f32],
    x: &'a [bf16],
    wte: &'a [bf16],
    targets: &'a [u16],
    channels: usize,
    vocab: Vocab,
}

struct MirrorClassifierOutputs<'a> {
    dx: &'a mut [bf16],
    dwte: &'a mut [f32],
    scale: f32,
    write: Write,
}

impl Mirror {
    /// Some rows of the gradient of the table, for an excerpt: the logits of every row are computed, and of
    /// their gradient the columns of these rows are kept. `dwte` (count, C).
    pub(super) fn table_gradient(
        &self,
        gradient: &TableGradient,
        dwte: &mut MirrorBuffer,
        x: &MirrorBuffer,
        wte: &MirrorBuffer,
        targets: &Ids,
    ) -> Result<()> {
        const OP: &str = "classifier";
        /// Rows of logits in memory at a time; rows do not depend on each other.
        const AT_A_TIME: usize = 128;
        let TableGradient { rows, channels, vocab, scale, write, first, count } = *gradient;
        let targets = tokens(OP, &targets.0, rows, vocab.used)?;
        let (x, wte) = (act(OP, "x", x, rows * channels)?, act(OP, "wte", wte, vocab.padded * channels)?);
        let dwte = float_mut(OP, "dwte", dwte, count * channels)?;
        let size = chunk_rows(rows as u64, vocab.padded as u64, 2) as usize;
        for (chunk, x) in x.chunks(size * channels).enumerate() {
            let mut dout = Vec::with_capacity(x.len() / channels * count);
            for (part, x) in x.chunks(AT_A_TIME * channels).enumerate() {
                let shape = LinearShape { rows: x.len() / channels, c_in: channels, c_out: vocab.padded };
                let (mut logits, mut losses) = (vec![bf16::ZERO; shape.output()], vec![0.0; shape.rows]);
                linear::forward(&self.engine, &mut logits, x, wte, None, shape);
                let targets = &targets[chunk * size + part * AT_A_TIME..];
                let rows = LogitsRows { logits: &mut logits, losses: &mut losses, targets, vocab };
                run(&self.engine, rows, Some(scale));
                let columns = |row: &[bf16]| row[first..first + count].to_vec();
                dout.extend(logits.chunks_exact(vocab.padded).flat_map(columns));
            }
            let whole = LinearShape { rows: x.len() / channels, c_in: channels, c_out: vocab.padded };
            let (shape, write) =
                (LinearShape { c_out: count, ..whole }, if chunk > 0 { Write::Add } else { write });
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
        let MirrorClassifierInputs { losses, x, wte, targets, channels, vocab } = problem;
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
            };
            run(&self.engine, rows, gradient.as_ref().map(|gradient| gradient.scale));
            let Some(MirrorClassifierOutputs { dx, dwte, write, .. }) = &mut gradient else { continue };
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
        let ClassifierLoss { losses, losses_at, x, wte, targets, rows, channels, vocab } = op;
        row_length(OP, vocab.padded)?;
        let problem = MirrorClassifierInputs {
            losses: &mut float_mut(OP, "losses", losses, losses_at + rows)?[losses_at..],
            x: act(OP, "x", x, rows * channels)?,
            wte: act(OP, "wte", wte, vocab.padded * channels)?,
            targets: tokens(OP, &targets.0, rows, vocab.used)?,
            channels,
            vocab,
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
        };
        let gradient = MirrorClassifierOutputs {
            dx: self.act_mut(OP, "dx", op.dx, rows * channels)?,
            dwte: float_mut(OP, "dwte", op.dwte, vocab.padded * channels)?,
            scale: op.scale,
            write: op.write,
        };
        self.classify(problem, Some(gradient));
        Ok(())
    }
}
