//! Muon, as `kernels/muon.cu` computes it.

use half::bf16;

use super::Mirror;
use super::buffer::MirrorBuffer;
use super::checks::{act, float, float_mut};
use super::optimizer::round_by_chance;
use super::scalar::{kept, round, warp_sum, wide};
use crate::ops::cuda::launch::muon::{CHUNK, LEAST_NORM};
use crate::ops::cuda::launch::optimizer::fold_squares;
use crate::ops::{MuonDirection, MuonPolynomial, MuonUpdate, Perform, Result};
use crate::rng::Key;

/// The squares of a chunk in f64, where they are exact: thread t of 256 adds the elements t, t + 256, …, the
/// butterfly of a warp its threads, then the eight warps in order.
fn chunk_squares(chunk: &[f32]) -> f64 {
    let mut threads = [0.0f64; 256];
    for (i, x) in chunk.iter().enumerate() {
        threads[i % 256] += f64::from(*x) * f64::from(*x);
    }
    let warps = threads.as_chunks::<32>().0;
    warps[1..].iter().fold(warp_sum(warps[0]), |sum, lanes| sum + warp_sum(*lanes))
}

impl Perform<MuonDirection<'_, MirrorBuffer>> for Mirror {
    fn perform(&mut self, op: MuonDirection<'_, MirrorBuffer>) -> Result<()> {
        const OP: &str = "muon_direction";
        let MuonDirection { direction, momentum, grad, grad_at, matrix, beta, grad_scale } = op;
        let direction = self.act_mut(OP, "direction", direction, matrix.elements())?;
        let momentum = &mut float_mut(OP, "momentum", momentum, matrix.end())?[matrix.at..];
        let grad = &float(OP, "grad", grad, grad_at + matrix.end())?[grad_at + matrix.at..];
        let ahead = |m: f32, grad: f32| beta.mul_add(m, (1.0 - beta) * (grad * grad_scale));
        let mut u = vec![0.0; matrix.elements()];
        for ((u, m), grad) in u.iter_mut().zip(momentum).zip(grad) {
            *m = kept(ahead(*m, *grad));
            *u = ahead(*m, *grad);
        }
        let norm = fold_squares(&u.chunks(CHUNK as usize).map(chunk_squares).collect::<Vec<_>>()).sqrt();
        let scale = (1.0 / if norm < LEAST_NORM { LEAST_NORM } else { norm }) as f32;
        for (i, u) in u.into_iter().enumerate() {
            direction[matrix.in_direction(i / matrix.cols, i % matrix.cols)] = round(u * scale);
        }
        Ok(())
    }
}

impl Perform<MuonPolynomial<'_, MirrorBuffer>> for Mirror {
    fn perform(&mut self, op: MuonPolynomial<'_, MirrorBuffer>) -> Result<()> {
        const OP: &str = "muon_polynomial";
        let MuonPolynomial { square, gram, order, coefficients: [a, b, c] } = op;
        let square = self.act_mut(OP, "square", square, order * order)?;
        let gram = act(OP, "gram", gram, order * order)?;
        for (i, (square, gram)) in square.iter_mut().zip(gram).enumerate() {
            let sum = c.mul_add(wide(*square), b * wide(*gram));
            *square = round(if i / order == i % order { sum + a } else { sum });
        }
        Ok(())
    }
}

impl Perform<MuonUpdate<'_, MirrorBuffer>> for Mirror {
    fn perform(&mut self, op: MuonUpdate<'_, MirrorBuffer>) -> Result<()> {
        const OP: &str = "muon_update";
        let MuonUpdate { id, param, master, direction, matrix, rounding_key, step, .. } = op;
        let direction = act(OP, "direction", direction, matrix.elements())?;
        let param = &mut self.act_mut(OP, "param", param, matrix.end())?[matrix.at..];
        let moved = |w: f32, i: usize| {
            let x = wide(direction[matrix.in_direction(i / matrix.cols, i % matrix.cols)]);
            (-op.learning_rate).mul_add(op.weight_decay.mul_add(w, op.scale * x), w)
        };
        match master {
            Some(master) => {
                let master = &mut float_mut(OP, "master", master, matrix.end())?[matrix.at..];
                for (i, (param, master)) in param.iter_mut().zip(master).enumerate() {
                    let w = moved(*master, i);
                    *master = kept(w);
                    *param = round(w);
                }
            }
            None => param.iter_mut().enumerate().for_each(|(i, param): (usize, &mut bf16)| {
                let at = (matrix.at + i) as u64;
                let counter = [(at / 4) as u32, ((at / 4) >> 32) as u32, step as u32, id];
                let random = Key(rounding_key).block(counter)[at as usize % 4];
                *param = round_by_chance(moved(wide(*param), i), random);
            }),
        }
        Ok(())
    }
}
