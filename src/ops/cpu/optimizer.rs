//! What the optimizer needs: norms in f64, AdamW, and the average of the weights.

use rayon::prelude::*;

use super::super::{AdamW, AdamWUpdate, Average, ChunkSquares, ParamSlot, Perform, Result, SumSquares};
use super::Cpu;
use super::buffer::Buffer;
use super::checks::{same_len, view};
use super::engine::Engine;
use super::linear::ELEMENTS;
use super::simd::{LANES, sum_lanes, vectorize};

/// Elements whose squares are summed before partial sums are added: part of the numerics.
pub const CHUNK: usize = 64 * 1024;

/// Sum of squares in f64: chunks of [`CHUNK`] elements, in each 16 partial sums (lane `i mod 16`)
/// that are added as a balanced tree; the chunks are added in order. A square of an f32 is exact in
/// f64, so only the additions round.
pub fn sum_squares(engine: &Engine, data: &[f32]) -> f64 {
    fold_squares(&chunk_squares(engine, data))
}

/// The sum of squares of each chunk.
pub fn chunk_squares(engine: &Engine, data: &[f32]) -> Vec<f64> {
    engine.install(|| {
        data.par_chunks(CHUNK).map(|chunk| vectorize!(engine.isa, |_| sum_squares_chunk(chunk))).collect()
    })
}

/// Adds the chunks in order.
pub fn fold_squares(chunks: &[f64]) -> f64 {
    chunks.iter().fold(0.0, |total, chunk| total + chunk)
}

#[inline(always)]
fn sum_squares_chunk(data: &[f32]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let (blocks, tail) = data.as_chunks::<LANES>();
    for block in blocks {
        for i in 0..LANES {
            let x = f64::from(block[i]);
            lanes[i] += x * x;
        }
    }
    for (i, x) in tail.iter().enumerate() {
        let x = f64::from(*x);
        lanes[i] += x * x;
    }
    sum_lanes(lanes)
}

/// One tensor of AdamW (Loshchilov and Hutter 2019). With `fma(a, b, c) = a b + c` rounded once,
///
/// ```text
/// g = grad * grad_scale
/// m = fma(beta1, m, (1 - beta1) * g)
/// v = fma(beta2, v, ((1 - beta2) * g) * g)
/// u = (m * correction1) / (sqrt(v * correction2) + epsilon)
/// p = fma(-learning_rate, fma(weight_decay, p, u), p)
/// ```
pub fn adamw(engine: &Engine, slot: &mut ParamSlot<'_, Buffer>, update: &AdamW) {
    let part = slot.at..slot.at + slot.adam_m.len();
    let param = match slot.master.as_deref_mut() {
        Some(master) => master.as_mut_slice(),
        None => &mut slot.param.as_mut_slice()[part.clone()],
    };
    engine.install(|| {
        (
            param.par_chunks_mut(ELEMENTS),
            slot.adam_m.as_mut_slice().par_chunks_mut(ELEMENTS),
            slot.adam_v.as_mut_slice().par_chunks_mut(ELEMENTS),
            slot.grad.as_slice()[slot.grad_at..][..part.len()].par_chunks(ELEMENTS),
        )
            .into_par_iter()
            .for_each(|(p, m, v, g)| {
                vectorize!(engine.isa, |_| adamw_chunk(p, m, v, g, slot.weight_decay, update))
            });
    });
    if let Some(master) = slot.master.as_deref() {
        slot.param.as_mut_slice()[part].copy_from_slice(master.as_slice());
    }
}

#[inline(always)]
fn adamw_chunk(p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], weight_decay: f32, update: &AdamW) {
    let AdamW { learning_rate, beta1, beta2, epsilon, correction1, correction2, grad_scale, .. } = *update;
    let (rest1, rest2) = (1.0 - beta1, 1.0 - beta2);
    for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
        let g = g * grad_scale;
        *m = beta1.mul_add(*m, rest1 * g);
        *v = beta2.mul_add(*v, rest2 * g * g);
        let step = (*m * correction1) / ((*v * correction2).sqrt() + epsilon);
        *p = (-learning_rate).mul_add(weight_decay.mul_add(*p, step), *p);
    }
}

impl Perform<SumSquares<'_, Buffer>, Vec<f64>> for Cpu {
    fn perform(&mut self, op: SumSquares<'_, Buffer>) -> Result<Vec<f64>> {
        let sum = |tensor: &&Buffer| sum_squares(&self.engine, tensor.as_slice());
        Ok(op.tensors.iter().map(sum).collect())
    }
}

impl Perform<ChunkSquares<'_, Buffer>, Vec<f64>> for Cpu {
    fn perform(&mut self, op: ChunkSquares<'_, Buffer>) -> Result<Vec<f64>> {
        let mut sums = Vec::new();
        for (buf, part) in op.parts {
            let data = view("chunk_squares", "part", buf, part.end)?;
            sums.extend(chunk_squares(&self.engine, &data[part.start..]));
        }
        Ok(sums)
    }
}

impl Perform<AdamWUpdate<'_, Buffer>> for Cpu {
    fn perform(&mut self, op: AdamWUpdate<'_, Buffer>) -> Result<()> {
        const OP: &str = "adamw";
        for mut slot in op.slots {
            let len = slot.adam_m.len();
            for other in [Some(slot.adam_v.len()), slot.master.as_ref().map(|m| m.len())] {
                same_len(OP, other.unwrap_or(len), len)?;
            }
            view(OP, "param", slot.param, slot.at + len)?;
            view(OP, "grad", slot.grad, slot.grad_at + len)?;
            adamw(&self.engine, &mut slot, &op.scalars);
        }
        Ok(())
    }
}

/// The average of the weights, element by element; [`Average`] has the formula.
pub fn average(engine: &Engine, average: &mut [f32], weights: &[f32], rate: f32) {
    engine.install(|| {
        average
            .par_chunks_mut(ELEMENTS)
            .zip(weights.par_chunks(ELEMENTS))
            .for_each(|(average, weights)| vectorize!(engine.isa, |_| average_chunk(average, weights, rate)));
    });
}

#[inline(always)]
fn average_chunk(average: &mut [f32], weights: &[f32], rate: f32) {
    for (average, weight) in average.iter_mut().zip(weights) {
        *average = rate.mul_add(weight - *average, *average);
    }
}

impl Perform<Average<'_, Buffer>> for Cpu {
    fn perform(&mut self, op: Average<'_, Buffer>) -> Result<()> {
        const OP: &str = "average";
        let Average { average: kept, param, at, master, rate } = op;
        let len = kept.len();
        let weights = match master {
            Some(master) => {
                same_len(OP, master.len(), len)?;
                master.as_slice()
            }
            None => &view(OP, "param", param, at + len)?[at..],
        };
        average(&self.engine, kept.as_mut_slice(), weights, rate);
        Ok(())
    }
}
