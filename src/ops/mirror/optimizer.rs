//! AdamW, the average of the weights and sums of squares, as `kernels/adamw.cu` and `average.cu` compute
//! them.

use half::bf16;
use rayon::prelude::*;

use super::Mirror;
use super::buffer::MirrorBuffer;
use super::checks::{act, float, float_mut};
use super::scalar::{kept, round, warp_sum, wide};
use crate::ops::cpu::engine::Engine;
use crate::ops::cuda::launch::optimizer::{CHUNK, fold_squares};
use crate::ops::{AdamW, AdamWUpdate, Average, ChunkSquares, Perform, Result, SumSquares};
use crate::rng::Key;

/// One tensor, or the part of it that starts at its element `offset`; all slices have the same length.
pub struct TensorPart<'a> {
    pub param: &'a mut [bf16],
    pub master: Option<&'a mut [f32]>,
    pub grad: &'a [f32],
    pub adam_m: &'a mut [f32],
    pub adam_v: &'a mut [f32],
    pub offset: usize,
    pub id: u32,
    pub weight_decay: f32,
}

/// One step of AdamW. The parameter is the master rounded; without a master it is rounded up with the
/// probability of the 16 bits that are cut off, by word i % 4 of the Philox block (i / 4, step, tensor).
pub fn adamw(part: TensorPart<'_>, s: &AdamW) {
    let TensorPart { param, mut master, grad, adam_m, adam_v, offset, id, weight_decay } = part;
    for i in 0..param.len() {
        let p = master.as_ref().map_or_else(|| wide(param[i]), |master| master[i]);
        let g = grad[i] * s.grad_scale;
        let m = s.beta1.mul_add(adam_m[i], (1.0 - s.beta1) * g);
        let v = s.beta2.mul_add(adam_v[i], (1.0 - s.beta2) * g * g);
        let direction = m * s.correction1 / ((v * s.correction2).sqrt() + s.epsilon);
        let p = (-s.learning_rate).mul_add(weight_decay.mul_add(p, direction), p);
        (adam_m[i], adam_v[i]) = (kept(m), kept(v));
        match &mut master {
            Some(master) => {
                master[i] = kept(p);
                param[i] = round(p);
            }
            None => {
                let (index, word) = ((offset + i) as u64 / 4, (offset + i) % 4);
                let counter = [index as u32, (index >> 32) as u32, s.step as u32, id];
                param[i] = round_by_chance(p, Key(s.rounding_key).block(counter)[word]);
            }
        }
    }
}

pub(super) fn round_by_chance(x: f32, random: u32) -> bf16 {
    if !x.is_finite() {
        return round(x);
    }
    bf16::from_bits((x.to_bits().wrapping_add(random & 0xffff) >> 16) as u16)
}

/// Sums of squares of the chunks of 16,384 elements: squares of four neighbours are added in fp32, then
/// thread t of 256 adds the groups t, t + 256, … in f64, the butterfly of a warp, the eight warps in order.
/// [`crate::ops::cuda::launch::optimizer::fold_squares`] adds chunks.
pub fn chunk_squares(engine: &Engine, data: &[f32]) -> Vec<f64> {
    let chunk = |chunk: &[f32]| {
        let mut threads = [0.0f64; 256];
        for (group, x) in chunk.chunks(4).enumerate() {
            let square = |i: usize| x.get(i).map_or(0.0, |x| x * x);
            threads[group % 256] += f64::from(square(0) + square(1) + square(2) + square(3));
        }
        let warps = threads.as_chunks::<32>().0;
        let sum = warps[1..].iter().fold(warp_sum(warps[0]), |sum, lanes| sum + warp_sum(*lanes));
        // What a GPU makes of an fp32 NaN in f64.
        if sum.is_nan() { f64::from_bits(0x7fff_ffff_e000_0000) } else { sum }
    };
    engine.install(|| data.par_chunks(CHUNK as usize).map(chunk).collect())
}

impl Perform<SumSquares<'_, MirrorBuffer>, Vec<f64>> for Mirror {
    fn perform(&mut self, op: SumSquares<'_, MirrorBuffer>) -> Result<Vec<f64>> {
        let sum = |tensor: &&MirrorBuffer| {
            let data = float("sum_squares", "tensor", tensor, tensor.len())?;
            Ok(fold_squares(&chunk_squares(&self.engine, data)))
        };
        op.tensors.iter().map(sum).collect()
    }
}

impl Perform<ChunkSquares<'_, MirrorBuffer>, Vec<f64>> for Mirror {
    fn perform(&mut self, op: ChunkSquares<'_, MirrorBuffer>) -> Result<Vec<f64>> {
        let mut sums = Vec::new();
        for (buf, part) in op.parts {
            let data = float("chunk_squares", "part", buf, part.end)?;
            sums.extend(chunk_squares(&self.engine, &data[part.start..]));
        }
        Ok(sums)
    }
}

impl Perform<AdamWUpdate<'_, MirrorBuffer>> for Mirror {
    fn perform(&mut self, op: AdamWUpdate<'_, MirrorBuffer>) -> Result<()> {
        const OP: &str = "adamw";
        for slot in op.slots {
            let len = slot.adam_m.len();
            let param = self.act_mut(OP, "param", slot.param, slot.at + len)?;
            let part = TensorPart {
                param: &mut param[slot.at..],
                master: slot.master.map(|master| float_mut(OP, "master", master, len)).transpose()?,
                grad: &float(OP, "grad", slot.grad, slot.grad_at + len)?[slot.grad_at..],
                adam_m: float_mut(OP, "adam_m", slot.adam_m, len)?,
                adam_v: float_mut(OP, "adam_v", slot.adam_v, len)?,
                offset: slot.at,
                id: slot.id,
                weight_decay: slot.weight_decay,
            };
            adamw(part, &op.scalars);
        }
        Ok(())
    }
}

/// The average of the weights, whose element i is `weight(i)`.
fn average(average: &mut [f32], weight: impl Fn(usize) -> f32, rate: f32) {
    for (i, average) in average.iter_mut().enumerate() {
        *average = kept(rate.mul_add(weight(i) - *average, *average));
    }
}

impl Perform<Average<'_, MirrorBuffer>> for Mirror {
    fn perform(&mut self, op: Average<'_, MirrorBuffer>) -> Result<()> {
        const OP: &str = "average";
        let Average { average: buffer, param, at, master, rate } = op;
        let len = buffer.len();
        let kept = float_mut(OP, "average", buffer, len)?;
        match master {
            Some(master) => {
                let master = float(OP, "master", master, len)?;
                average(kept, |i| master[i], rate);
            }
            None => {
                let param = act(OP, "param", param, at + len)?;
                average(kept, |i| wide(param[at + i]), rate);
            }
        }
        Ok(())
    }
}
