//! Linear layers: `out = x weightᵀ + bias` and its gradients.

use rayon::prelude::*;

use super::super::{
    Activate, ActivateBackward, Linear, LinearActivate, LinearBackwardInput, LinearBackwardInputActivate,
    LinearBackwardWeight, LinearShape, Nonlinearity, Ops, Perform, Result, Write,
};
use super::Cpu;
use super::buffer::Buffer;
use super::checks::{failed, view, view_mut};
use super::engine::Engine;
use super::gemm::{self, Chunked, Finish, StridedMut};
use super::simd::vectorize;
use super::tile::{RightOperand, Strided};
use crate::ops::op::linear::NO_ROOM;

/// Rows of a batch whose outer products are summed in one chain: the sum over the batch is a left
/// fold over chunks of this many rows. Part of the numerics.
pub const ROW_CHUNK: usize = 256;

/// Elements a task of an elementwise operation takes. No result depends on it.
pub const ELEMENTS: usize = 16 * 1024;

/// `out = x weightᵀ + bias`. Each element is one chain over `c_in`, then one addition of the bias.
pub fn forward(
    engine: &Engine,
    out: &mut [f32],
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    shape: LinearShape,
) {
    let LinearShape { c_in, c_out, .. } = shape;
    let finish = bias.map_or(Finish::Set, Finish::Bias);
    let right = RightOperand::Columns { data: weight, stride: c_in };
    let x = Strided { data: x, stride: c_in };
    gemm::multiply(engine, StridedMut::dense(out, c_out), x, right, c_in, finish);
}

/// `dx = dout weight`. Each element is one chain over `c_out`.
pub fn backward_input(engine: &Engine, dx: &mut [f32], dout: &[f32], weight: &[f32], shape: LinearShape) {
    let LinearShape { c_in, c_out, .. } = shape;
    let right = RightOperand::Rows { data: weight, stride: c_in };
    let dout = Strided { data: dout, stride: c_out };
    gemm::multiply(engine, StridedMut::dense(dx, c_in), dout, right, c_out, Finish::Set);
}

/// The factors of a weight gradient. `dout` has rows of `stride`, of which the first
/// `dweight.len() / c_in` columns count.
#[derive(Clone, Copy)]
pub struct OuterProduct<'a> {
    pub dout: &'a [f32],
    pub stride: usize,
    /// (rows, c_in)
    pub x: &'a [f32],
    pub rows: usize,
    pub c_in: usize,
}

/// `dweight (+)= doutᵀ x`: a left fold over chunks of [`ROW_CHUNK`] rows, each one chain from zero.
pub fn backward_weight(engine: &Engine, dweight: &mut [f32], operands: OuterProduct<'_>, write: Write) {
    let OuterProduct { dout, stride, x, rows, c_in } = operands;
    let (left, right) = (Strided { data: dout, stride }, Strided { data: x, stride: c_in });
    gemm::multiply_outer(engine, dweight, left, right, Chunked { steps: rows, chunk: ROW_CHUNK }, write);
}

/// `dbias (+)= column sums of dout`: each column one chain of additions in order of rows, from zero.
pub fn backward_bias(engine: &Engine, dbias: &mut [f32], dout: &[f32], write: Write) {
    const WIDTH: usize = 64;
    let columns = dbias.len();
    engine.install(|| {
        dbias.par_chunks_mut(WIDTH).enumerate().for_each(|(block, dbias)| {
            vectorize!(engine.isa, |_| {
                let mut sums = [0.0f32; WIDTH];
                let sums = &mut sums[..dbias.len()];
                for row in dout.chunks_exact(columns) {
                    add(sums, &row[block * WIDTH..block * WIDTH + dbias.len()]);
                }
                match write {
                    Write::Set => dbias.copy_from_slice(sums),
                    Write::Add => add(dbias, sums),
                }
            });
        });
    });
}

#[inline(always)]
pub fn add(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

impl Perform<Linear<'_, Buffer>> for Cpu {
    fn perform(&mut self, op: Linear<'_, Buffer>) -> Result<()> {
        const OP: &str = "linear";
        let Linear { out, x, weight, bias, shape } = op;
        let bias = bias.map(|bias| view(OP, "bias", bias, shape.c_out)).transpose()?;
        let out = view_mut(OP, "out", out, shape.output())?;
        let (x, weight) = (view(OP, "x", x, shape.input())?, view(OP, "weight", weight, shape.weight())?);
        forward(&self.engine, out, x, weight, bias, shape);
        Ok(())
    }
}

impl Perform<LinearActivate<'_, Buffer>> for Cpu {
    fn perform(&mut self, op: LinearActivate<'_, Buffer>) -> Result<()> {
        let channels = op.channels();
        let LinearActivate { out, pre, x, weight, bias, function, shape } = op;
        self.linear(Linear { out: pre, x, weight, bias, shape })?;
        self.activate(Activate { out, pre, function, rows: shape.rows, channels })
    }
}

impl Perform<LinearBackwardInput<'_, Buffer>> for Cpu {
    fn perform(&mut self, op: LinearBackwardInput<'_, Buffer>) -> Result<()> {
        const OP: &str = "linear_backward_input";
        let LinearBackwardInput { dx, dout, weight, shape } = op;
        let dx = view_mut(OP, "dx", dx, shape.input())?;
        let dout = view(OP, "dout", dout, shape.output())?;
        backward_input(&self.engine, dx, dout, view(OP, "weight", weight, shape.weight())?, shape);
        Ok(())
    }
}

impl Perform<LinearBackwardInputActivate<'_, Buffer>> for Cpu {
    fn perform(&mut self, op: LinearBackwardInputActivate<'_, Buffer>) -> Result<()> {
        const OP: &str = "linear_backward_input_activate";
        let LinearBackwardInputActivate { dpre, room, dout, weight, pre, again, function, shape } = op;
        let (rows, channels) = (shape.rows, shape.c_in);
        if let Some(out) = again {
            self.activate(Activate { out, pre, function, rows, channels })?;
        }
        if function != Nonlinearity::Swiglu {
            self.linear_backward_input(LinearBackwardInput { dx: dpre, dout, weight, shape })?;
            return self.activate_backward(ActivateBackward {
                dpre,
                dout: None,
                pre,
                function,
                rows,
                channels,
            });
        }
        let room = room.ok_or_else(|| failed(OP, NO_ROOM.into()))?;
        self.linear_backward_input(LinearBackwardInput { dx: room, dout, weight, shape })?;
        self.activate_backward(ActivateBackward { dpre, dout: Some(room), pre, function, rows, channels })
    }
}

impl Perform<LinearBackwardWeight<'_, Buffer>> for Cpu {
    fn perform(&mut self, op: LinearBackwardWeight<'_, Buffer>) -> Result<()> {
        const OP: &str = "linear_backward_weight";
        let LinearBackwardWeight { dweight, dbias, dout, x, shape, write } = op;
        let operands = OuterProduct {
            dout: view(OP, "dout", dout, shape.output())?,
            stride: shape.c_out,
            x: view(OP, "x", x, shape.input())?,
            rows: shape.rows,
            c_in: shape.c_in,
        };
        let dweight = view_mut(OP, "dweight", dweight, shape.weight())?;
        backward_weight(&self.engine, dweight, operands, write);
        if let Some(dbias) = dbias {
            let dbias = view_mut(OP, "dbias", dbias, shape.c_out)?;
            backward_bias(&self.engine, dbias, operands.dout, write);
        }
        Ok(())
    }
}
