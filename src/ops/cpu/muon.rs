//! Muon, element by element; [`crate::ops::op`] has the formulas.

use rayon::prelude::*;

use super::super::{MuonDirection, MuonPolynomial, MuonUpdate, Perform, Result};
use super::Cpu;
use super::buffer::Buffer;
use super::checks::{view, view_mut};
use super::linear::ELEMENTS;
use super::optimizer::sum_squares;
use super::simd::vectorize;

/// The least norm that a direction is divided by.
const LEAST_NORM: f64 = 1e-7;

/// `fma(beta, m, (1 - beta) * grad * grad_scale)`: the next momentum, and what is ahead of that.
#[derive(Clone, Copy)]
struct Ahead {
    beta: f32,
    grad_scale: f32,
}

impl Ahead {
    #[inline(always)]
    fn of(self, m: f32, grad: f32) -> f32 {
        self.beta.mul_add(m, (1.0 - self.beta) * (grad * self.grad_scale))
    }

    /// Moves the momentum on, and writes what is ahead of it.
    #[inline(always)]
    fn step(self, u: &mut [f32], m: &mut [f32], grad: &[f32]) {
        for ((u, m), g) in u.iter_mut().zip(m).zip(grad) {
            *m = self.of(*m, *g);
            *u = self.of(*m, *g);
        }
    }

    /// A line of the direction: elements of the matrix that are `step` apart.
    #[inline(always)]
    fn line(self, line: &mut [f32], m: &[f32], grad: &[f32], step: usize, scale: f32) {
        for ((x, m), g) in line.iter_mut().zip(m.iter().step_by(step)).zip(grad.iter().step_by(step)) {
            *x = self.of(*m, *g) * scale;
        }
    }
}

impl Perform<MuonDirection<'_, Buffer>> for Cpu {
    fn perform(&mut self, op: MuonDirection<'_, Buffer>) -> Result<()> {
        const OP: &str = "muon_direction";
        let MuonDirection { direction, momentum, grad, grad_at, matrix, beta, grad_scale } = op;
        let len = matrix.elements();
        let direction = view_mut(OP, "direction", direction, len)?;
        let momentum = &mut view_mut(OP, "momentum", momentum, matrix.end())?[matrix.at..];
        let grad = &view(OP, "grad", grad, grad_at + matrix.end())?[grad_at + matrix.at..];
        let (engine, ahead) = (&self.engine, Ahead { beta, grad_scale });
        engine.install(|| {
            let parts = (
                direction.par_chunks_mut(ELEMENTS),
                momentum.par_chunks_mut(ELEMENTS),
                grad.par_chunks(ELEMENTS),
            );
            parts.into_par_iter().for_each(|(u, m, g)| vectorize!(engine.isa, |_| ahead.step(u, m, g)));
        });
        let norm = libm::sqrt(sum_squares(engine, direction));
        let scale = (1.0 / norm.max(LEAST_NORM)) as f32;
        let step = if matrix.is_tall() { matrix.cols } else { 1 };
        engine.install(|| {
            direction.par_chunks_mut(matrix.long()).enumerate().for_each(|(at, line)| {
                let first = if matrix.is_tall() { at } else { at * matrix.cols };
                let (m, g) = (&momentum[first..], &grad[first..]);
                vectorize!(engine.isa, |_| ahead.line(line, m, g, step, scale));
            });
        });
        Ok(())
    }
}

/// A row of `fma(c, square, b gram) + a I`.
#[inline(always)]
fn polynomial_row(square: &mut [f32], gram: &[f32], row: usize, [a, b, c]: [f32; 3]) {
    for (square, gram) in square.iter_mut().zip(gram) {
        *square = c.mul_add(*square, b * gram);
    }
    square[row] += a;
}

impl Perform<MuonPolynomial<'_, Buffer>> for Cpu {
    fn perform(&mut self, op: MuonPolynomial<'_, Buffer>) -> Result<()> {
        const OP: &str = "muon_polynomial";
        let MuonPolynomial { square, gram, order, coefficients } = op;
        let square = view_mut(OP, "square", square, order * order)?;
        let gram = view(OP, "gram", gram, order * order)?;
        let isa = self.engine.isa;
        self.engine.install(|| {
            let rows = square.par_chunks_mut(order).zip(gram.par_chunks(order)).enumerate();
            rows.for_each(|(row, (square, gram))| {
                vectorize!(isa, |_| polynomial_row(square, gram, row, coefficients));
            });
        });
        Ok(())
    }
}

/// A row of weights, and the elements of its direction, which are `step` apart.
#[inline(always)]
fn update_row(weights: &mut [f32], direction: &[f32], step: usize, update: Scalars) {
    let Scalars { learning_rate, weight_decay, scale } = update;
    for (w, x) in weights.iter_mut().zip(direction.iter().step_by(step)) {
        *w = (-learning_rate).mul_add(weight_decay.mul_add(*w, scale * x), *w);
    }
}

#[derive(Clone, Copy)]
struct Scalars {
    learning_rate: f32,
    weight_decay: f32,
    scale: f32,
}

impl Perform<MuonUpdate<'_, Buffer>> for Cpu {
    fn perform(&mut self, op: MuonUpdate<'_, Buffer>) -> Result<()> {
        const OP: &str = "muon_update";
        let MuonUpdate { param, master, direction, matrix, learning_rate, weight_decay, scale, .. } = op;
        let direction = view(OP, "direction", direction, matrix.elements())?;
        let part = matrix.at..matrix.end();
        let param = &mut view_mut(OP, "param", param, part.end)?[part.clone()];
        let scalars = Scalars { learning_rate, weight_decay, scale };
        let step = if matrix.is_tall() { matrix.rows } else { 1 };
        let isa = self.engine.isa;
        let all = |weights: &mut [f32]| {
            weights.par_chunks_mut(matrix.cols).enumerate().for_each(|(row, weights)| {
                let direction = &direction[matrix.in_direction(row, 0)..];
                vectorize!(isa, |_| update_row(weights, direction, step, scalars));
            });
        };
        match master {
            None => self.engine.install(|| all(param)),
            Some(master) => {
                let master = &mut view_mut(OP, "master", master, part.end)?[part];
                self.engine.install(|| all(master));
                param.copy_from_slice(master);
            }
        }
        Ok(())
    }
}
