//! Launches of `muon.cu`: what surrounds the matrix products of Muon.

use super::super::Cuda;
use super::super::args::{Act, F32, F64, In, Out, bindings};
use super::super::memory::Buf;
use super::super::modules::Geometry;
use super::super::scratch::Use;
use crate::ops::{MatrixPart, MuonDirection, MuonPolynomial, MuonUpdate, Perform, Result};

bindings! {
    "muon.cu" {
        struct MuonDirectionArgs {
            direction: Out<Act>, momentum: Out<F32>, grad: In<F32>, partials: Out<F64>, rows: u64, cols: u64,
            beta: f32, grad_scale: f32,
        }
        struct MuonPolynomialArgs {
            square: Out<Act>, gram: In<Act>, order: u64, a: f32, b: f32, c: f32, unused: u32,
        }
        struct MuonUpdateArgs {
            param: Out<Act>, master: Out<F32>, direction: In<Act>, rows: u64, cols: u64, offset: u64,
            step: u64, learning_rate: f32, weight_decay: f32, scale: f32, id: u32, rounding_key: [u32; 2],
        }
        kernel MOMENTUM(MuonDirectionArgs) = "muon_momentum";
        kernel NORMALIZE(MuonDirectionArgs) = "muon_normalize";
        kernel POLYNOMIAL(MuonPolynomialArgs) = "muon_polynomial";
        kernel UPDATE(MuonUpdateArgs) = "muon_update";
    }
}

/// Elements whose squares one block adds.
pub const CHUNK: u64 = 4096;

/// The least norm that a direction is divided by.
pub const LEAST_NORM: f64 = 1e-7;

/// Rows and columns of the part of a matrix that one block moves.
const TILE: usize = 64;

fn tiles(matrix: MatrixPart) -> Geometry {
    Geometry::new((matrix.rows.div_ceil(TILE) * matrix.cols.div_ceil(TILE)) as u64, 256)
}

/// Bytes of the sums that a matrix of `len` elements leaves.
pub fn partials_bytes(len: u64) -> u64 {
    8 * len.div_ceil(CHUNK)
}

impl Perform<MuonDirection<'_, Buf>> for Cuda {
    fn perform(&mut self, op: MuonDirection<'_, Buf>) -> Result<()> {
        const OP: &str = "muon_direction";
        let MuonDirection { direction, momentum, grad, grad_at, matrix, beta, grad_scale } = op;
        let bytes = partials_bytes(matrix.elements() as u64);
        let partials = self.scratch.get(&mut self.memory, Use::MuonPartials, bytes)?;
        self.written(direction);
        let k = &self.kernels;
        let grad_at = grad_at + matrix.at;
        let args = MuonDirectionArgs {
            direction: Out::at(k.act(OP, "direction", direction, matrix.elements())?),
            momentum: Out::at(k.f32(OP, "momentum", momentum, matrix.end())? + 4 * matrix.at as u64),
            grad: In::at(k.f32(OP, "grad", grad, grad_at + matrix.elements())? + 4 * grad_at as u64),
            partials: Out::at(partials),
            rows: matrix.rows as u64,
            cols: matrix.cols as u64,
            beta,
            grad_scale,
        };
        // SAFETY: all lengths were checked, and the scratch holds the sums.
        unsafe {
            k.launch(OP, &MOMENTUM, Geometry::new((matrix.elements() as u64).div_ceil(CHUNK), 256), &args)?;
            k.launch(OP, &NORMALIZE, tiles(matrix), &args)
        }
    }
}

impl Perform<MuonPolynomial<'_, Buf>> for Cuda {
    fn perform(&mut self, op: MuonPolynomial<'_, Buf>) -> Result<()> {
        const OP: &str = "muon_polynomial";
        let MuonPolynomial { square, gram, order, coefficients: [a, b, c] } = op;
        self.written(square);
        let (k, len) = (&self.kernels, order * order);
        let args = MuonPolynomialArgs {
            square: Out::at(k.act(OP, "square", square, len)?),
            gram: In::at(k.act(OP, "gram", gram, len)?),
            order: order as u64,
            a,
            b,
            c,
            unused: 0,
        };
        // SAFETY: all lengths were checked.
        unsafe { k.launch(OP, &POLYNOMIAL, Geometry::new((len as u64).div_ceil(1024), 256), &args) }
    }
}

impl Perform<MuonUpdate<'_, Buf>> for Cuda {
    fn perform(&mut self, op: MuonUpdate<'_, Buf>) -> Result<()> {
        const OP: &str = "muon_update";
        let (k, matrix) = (&self.kernels, op.matrix);
        let (at, element) = (matrix.at as u64, op.param.dtype().size() as u64);
        let master = |buf: &Buf| Ok(k.f32(OP, "master", buf, matrix.end())? + 4 * at);
        let args = MuonUpdateArgs {
            param: Out::at(k.act(OP, "param", op.param, matrix.end())? + element * at),
            master: Out::at(op.master.as_deref().map_or(Ok(0), master)?),
            direction: In::at(k.act(OP, "direction", op.direction, matrix.elements())?),
            rows: matrix.rows as u64,
            cols: matrix.cols as u64,
            offset: at,
            step: op.step,
            learning_rate: op.learning_rate,
            weight_decay: op.weight_decay,
            scale: op.scale,
            id: op.id,
            rounding_key: op.rounding_key,
        };
        // SAFETY: all lengths were checked.
        unsafe { k.launch(OP, &UPDATE, tiles(matrix), &args) }
    }
}
