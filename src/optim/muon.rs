//! Muon (Jordan 2024): momentum, made orthogonal, for the matrices of the blocks; AdamW for the rest.
//!
//! The momentum of a matrix, with Nesterov's look ahead, is divided by its Frobenius norm, and five
//! iterations of Newton and Schulz's method bring its singular values near 1. With X (short, long) the
//! direction, transposed where the matrix has more rows than columns, an iteration is
//!
//! ```text
//! A = X Xᵀ,  B = a I + b A + c A Aᵀ,  X = B X        a, b, c = 3.4445, -4.775, 2.0315
//! ```
//!
//! in the device's activation type, each product summed in fp32 and rounded once. The coefficients are
//! Jordan's: steep at 0, so that five iterations bring singular values from 0.01 on into 0.7 to 1.2.
//!
//! An update is `0.2 sqrt(long)` times the direction (Liu et al. 2025): about as large as AdamW's, so that
//! both take one learning rate and one decay of the weights. Query, key and value stand above each other in
//! one tensor and are three matrices.
//!
//! The momentum's decay may be smaller in the first steps (`rates`).
//!
//! A matrix is updated whole: of ranks that share the optimizer's state each holds whole matrices.

use super::adamw::AdamWRule;
use super::{MASTER, ParamKind, Parameter, Slot, Start, StateRow, UpdateRule, UpdateStep, Workspace, rates};
use crate::experiment::{Experiment, OptimizerKeys};
use crate::ops::{
    Dtype, Linear, LinearBackwardInput, LinearShape, MatrixPart, MuonDirection, MuonPolynomial, MuonUpdate,
    Ops, Result,
};

/// The version of this arithmetic, in the lock of an experiment that uses it.
pub const VERSION: u32 = 1;

/// Decaying mean of the gradients.
const MOMENTUM: StateRow = StateRow { prefix: "muon_m/", label: "moments", start: Start::Zero };

const ITERATIONS: usize = 5;
const COEFFICIENTS: [f32; 3] = [3.4445, -4.775, 2.0315];

/// Muon with an experiment's settings.
pub struct MuonRule<'a> {
    pub adamw: AdamWRule<'a>,
    config: &'a OptimizerKeys,
}

impl<'a> MuonRule<'a> {
    /// The rule of an experiment on a device that stores parameters as `param`.
    pub fn new(experiment: &'a Experiment, param: Dtype) -> MuonRule<'a> {
        MuonRule { adamw: AdamWRule::new(experiment, param), config: &experiment.optimizer }
    }
}

/// The matrices of a parameter that are made orthogonal: none of a table or a vector.
fn matrices(parameter: &Parameter<'_>) -> impl Iterator<Item = MatrixPart> + use<> {
    let (parts, cols) = match (parameter.kind, parameter.shape) {
        (ParamKind::Matrix { rows }, [_, cols]) => (rows, *cols),
        _ => ([0; 3], 0),
    };
    let mut at = 0;
    parts.into_iter().filter(|rows| *rows > 0).map(move |rows| {
        let first = at;
        at += rows * cols;
        MatrixPart { at: first, rows, cols }
    })
}

/// The size of an update beside its direction, whose elements have the root mean square `1 / sqrt(long)`.
fn scale(matrix: MatrixPart) -> f32 {
    (0.2 * libm::sqrt(matrix.long() as f64)) as f32
}

/// The shapes of `X Xᵀ` and `B X`, and of `A Aᵀ`.
fn products(matrix: MatrixPart) -> [LinearShape; 2] {
    let (short, long) = (matrix.short(), matrix.long());
    [long, short].map(|c_in| LinearShape { rows: short, c_in, c_out: short })
}

/// Brings the singular values of the direction `x` near 1; the result is in `y`. The other buffers are room
/// for squares of its rows.
fn orthogonalize<O: Ops>(
    ops: &mut O,
    [x, y, gram, square]: [&mut O::Buf; 4],
    matrix: MatrixPart,
) -> Result<()> {
    let order = matrix.short();
    let [of_direction, of_square] = products(matrix);
    let (mut x, mut y) = (x, y);
    // An odd number, so that the last result is in `y`.
    const { assert!(ITERATIONS % 2 == 1) };
    for _ in 0..ITERATIONS {
        ops.linear(Linear { out: &mut *gram, x: &*x, weight: &*x, bias: None, shape: of_direction })?;
        ops.linear(Linear { out: &mut *square, x: &*gram, weight: &*gram, bias: None, shape: of_square })?;
        let coefficients = COEFFICIENTS;
        ops.muon_polynomial(MuonPolynomial { square: &mut *square, gram: &*gram, order, coefficients })?;
        ops.linear_backward_input(LinearBackwardInput {
            dx: &mut *y,
            dout: &*square,
            weight: &*x,
            shape: of_direction,
        })?;
        std::mem::swap(&mut x, &mut y);
    }
    Ok(())
}

impl UpdateRule for MuonRule<'_> {
    fn state(&self, parameter: &Parameter<'_>) -> Vec<StateRow> {
        match parameter.kind {
            ParamKind::Matrix { .. } if self.adamw.masters => vec![MOMENTUM, MASTER],
            ParamKind::Matrix { .. } => vec![MOMENTUM],
            ParamKind::Table | ParamKind::Head | ParamKind::Vector => self.adamw.state(parameter),
        }
    }

    fn is_whole(&self, parameter: &Parameter<'_>) -> bool {
        matches!(parameter.kind, ParamKind::Matrix { .. })
    }

    fn workspace(&self, parameters: &[Parameter<'_>]) -> Workspace {
        let all: Vec<MatrixPart> = parameters.iter().flat_map(matrices).collect();
        let most = |size: fn(MatrixPart) -> usize| all.iter().copied().map(size).max().unwrap_or(0);
        let (direction, square) =
            (most(MatrixPart::elements), most(|matrix| matrix.short() * matrix.short()));
        Workspace {
            buffers: vec![direction, direction, square, square],
            layers: all.iter().copied().flat_map(products).collect(),
        }
    }

    fn update<O: Ops>(
        &self,
        ops: &mut O,
        slots: Vec<Slot<'_, O>>,
        workspace: &mut [O::Buf],
        at: &UpdateStep,
    ) -> Result<()> {
        let is_matrix = |slot: &Slot<'_, O>| self.is_whole(&slot.parameter);
        let (matrices_of, others): (Vec<_>, Vec<_>) = slots.into_iter().partition(is_matrix);
        self.adamw.update(ops, others, &mut [], at)?;
        // An audit makes blocks of the others again, and has no room for matrices.
        if matrices_of.is_empty() {
            return Ok(());
        }
        let beta = rates::momentum(self.config, at.step) as f32;
        let [x, y, gram, square] = workspace else { unreachable!("four buffers, as `workspace` lists") };
        for Slot { parameter, param, grad, grad_at, state, .. } in matrices_of {
            let (momentum, mut master) = match state {
                [momentum] => (momentum, None),
                [momentum, master] => (momentum, Some(master)),
                _ => unreachable!("a slot has the tensors that `state` lists"),
            };
            let scalars = self.adamw.scalars(at, parameter.kind);
            for matrix in matrices(&parameter) {
                ops.muon_direction(MuonDirection {
                    direction: &mut *x,
                    momentum: &mut *momentum,
                    grad,
                    grad_at,
                    matrix,
                    beta,
                    grad_scale: scalars.grad_scale,
                })?;
                orthogonalize(ops, [&mut *x, &mut *y, &mut *gram, &mut *square], matrix)?;
                ops.muon_update(MuonUpdate {
                    id: parameter.id,
                    param: &mut *param,
                    master: master.as_deref_mut(),
                    direction: &*y,
                    matrix,
                    learning_rate: scalars.learning_rate,
                    weight_decay: self.adamw.weight_decay(parameter.kind),
                    scale: scale(matrix),
                    rounding_key: scalars.rounding_key,
                    step: at.step,
                })?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::{DeviceKeys, DeviceKind, Simd};
    use crate::ops::Role;
    use crate::ops::cpu::Cpu;
    use crate::rng::Key;

    #[test]
    fn an_update_has_a_fifth_of_the_root_of_the_long_side() {
        let of = |rows, cols| scale(MatrixPart { at: 0, rows, cols });
        assert_eq!(of(24, 40), (0.2 * libm::sqrt(40.0)) as f32);
        assert_eq!(of(24, 40), of(40, 24));
    }

    /// `x` (rows, cols) times its transpose, in f64.
    fn gram(x: &[f32], rows: usize, cols: usize) -> Vec<f64> {
        let dot = |a: usize, b: usize| {
            let pairs = x[a * cols..][..cols].iter().zip(&x[b * cols..][..cols]);
            pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        (0..rows * rows).map(|i| dot(i / rows, i % rows)).collect()
    }

    /// Eigenvalues of a symmetric matrix: Jacobi's rotations.
    fn eigenvalues(mut a: Vec<f64>, n: usize) -> Vec<f64> {
        for (p, q) in (0..30).flat_map(|_| (0..n).flat_map(|p| (p + 1..n).map(move |q| (p, q)))) {
            let angle = 0.5 * libm::atan2(2.0 * a[p * n + q], a[q * n + q] - a[p * n + p]);
            let (s, c) = (libm::sin(angle), libm::cos(angle));
            for k in 0..n {
                let (x, y) = (a[k * n + p], a[k * n + q]);
                (a[k * n + p], a[k * n + q]) = (c * x - s * y, s * x + c * y);
            }
            for k in 0..n {
                let (x, y) = (a[p * n + k], a[q * n + k]);
                (a[p * n + k], a[q * n + k]) = (c * x - s * y, s * x + c * y);
            }
        }
        (0..n).map(|i| a[i * n + i]).collect()
    }

    #[test]
    fn singular_values_come_near_one() {
        let mut ops =
            Cpu::new(&DeviceKeys { kind: DeviceKind::Cpu, threads: 1, simd: Simd::Auto }).expect("a CPU");
        let matrix = MatrixPart { at: 0, rows: 24, cols: 40 };
        let key = Key::new(1, "muon");
        // The first rows are larger than the last by a factor of 16.
        let value = |i: usize| key.normal(0, i as u64) * libm::exp2(-((i / 40) as f64) / 6.0);
        let values: Vec<f32> = (0..matrix.elements()).map(|i| value(i) as f32).collect();
        let norm = values.iter().map(|x| x * x).sum::<f32>().sqrt();
        let before = eigenvalues(gram(&values.iter().map(|x| x / norm).collect::<Vec<_>>(), 24, 40), 24);
        assert!(before.iter().any(|square| *square < 0.02 * 0.02), "{before:?}");
        let mut bufs = [960, 960, 576, 576].map(|len| ops.alloc(Role::Activation, len).expect("room"));
        ops.upload(&mut bufs[0], &values.iter().map(|x| x / norm).collect::<Vec<_>>()).expect("it fits");
        orthogonalize(&mut ops, bufs.each_mut(), matrix).expect("nothing can fail");
        let mut direction = vec![0.0; matrix.elements()];
        ops.download(&bufs[1], &mut direction).expect("it fits");
        for square in eigenvalues(gram(&direction, 24, 40), 24) {
            assert!((0.6..1.25).contains(&libm::sqrt(square)), "{square}");
        }
    }

    #[test]
    fn query_key_and_value_are_three_matrices_and_tables_none() {
        let of = |kind, shape: &[usize]| matrices(&Parameter { id: 0, kind, shape }).collect::<Vec<_>>();
        let part = |at, rows, cols| MatrixPart { at, rows, cols };
        let stacked = |rows| ParamKind::Matrix { rows };
        assert_eq!(of(stacked([8, 8, 8]), &[24, 8]), [part(0, 8, 8), part(64, 8, 8), part(128, 8, 8)]);
        assert_eq!(of(stacked([8, 2, 2]), &[12, 8]), [part(0, 8, 8), part(64, 2, 8), part(80, 2, 8)]);
        assert_eq!(of(stacked([32, 0, 0]), &[32, 8]), [part(0, 32, 8)]);
        assert_eq!(of(ParamKind::Table, &[32, 8]), []);
        assert_eq!(of(ParamKind::Head, &[32, 8]), []);
        assert_eq!(of(ParamKind::Vector, &[32]), []);
    }
}
