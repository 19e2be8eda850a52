//! Softmax and cross-entropy over rows of logits, as `kernels/classifier.cu` computes them.

use half::bf16;
use rayon::prelude::*;

use super::scalar::{exp, kept, ln, max, round, warp_sum, wide};
use crate::ops::Vocab;
use crate::ops::cpu::engine::Engine;

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
