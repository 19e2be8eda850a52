//! Linear layers, as `kernels/gemm_hopper.cu` computes them; cuBLASLt's plans that sum in one chain have the
//! same bits.
//!
//! Every product is a chain of [`super::tensor_core`] over k ascending. A weight gradient may be cut in
//! parts, each a chain, that are added to memory in order ([`gemm_hopper::Order`]).

use half::bf16;
use rayon::prelude::*;

use super::activate::backward_in_place;
use super::buffer::MirrorBuffer;
use super::checks::{act, float_mut};
use super::reduce::{BLOCK_ROWS, add_in_order, column_sum, reduce_partials};
use super::scalar::{gelu_slope, kept, round, wide};
use super::tensor_core::{Left, Right, multiply};
use super::{GeluColumnSums, Mirror};
use crate::ops::cpu::checks::failed;
use crate::ops::cpu::engine::Engine;
use crate::ops::cuda::launch::gemm_hopper::{self, Order};
use crate::ops::cuda::product::{Epilogue, GemmKey, Product, Types};
use crate::ops::op::linear::NO_ROOM;
use crate::ops::{
    Activate, ActivateBackward, Linear, LinearActivate, LinearBackwardInput, LinearBackwardInputActivate,
    LinearBackwardWeight, LinearShape, Nonlinearity, Perform, Result, Write,
};

/// Rows of a block of terms: what parts and bias chains are counted in.
const TERMS: usize = 64;

/// The sums of `x weightᵀ` in fp32. x (n, c_in), weight (c_out, c_in).
pub fn forward_sums(engine: &Engine, x: &[bf16], weight: &[bf16], shape: LinearShape) -> Vec<f32> {
    let LinearShape { rows, c_in, c_out } = shape;
    let mut sums = vec![0.0; rows * c_out];
    let left = Left::new(engine, rows, c_in, |row, k| x[row * c_in + k]);
    let right = Right::new(engine, c_in, c_out, |k, column| weight[column * c_in + k]);
    multiply(engine, &mut sums, &left, &right);
    sums
}

/// `out = bf16(x weightᵀ + bias)`.
fn forward(
    engine: &Engine,
    out: &mut [bf16],
    x: &[bf16],
    weight: &[bf16],
    bias: Option<&[bf16]>,
    shape: LinearShape,
) {
    let sums = forward_sums(engine, x, weight, shape);
    for (out, sums) in out.chunks_exact_mut(shape.c_out).zip(sums.chunks_exact(shape.c_out)) {
        for (column, (out, sum)) in out.iter_mut().zip(sums).enumerate() {
            *out = round(sum + bias.map_or(0.0, |bias| wide(bias[column])));
        }
    }
}

/// The sums of `dout weight` in fp32. dout (n, c_out), weight (c_out, c_in).
pub fn backward_input_sums(engine: &Engine, dout: &[bf16], weight: &[bf16], shape: LinearShape) -> Vec<f32> {
    let LinearShape { rows, c_in, c_out } = shape;
    let mut sums = vec![0.0; rows * c_in];
    let left = Left::new(engine, rows, c_out, |row, k| dout[row * c_out + k]);
    let right = Right::new(engine, c_out, c_in, |k, column| weight[k * c_in + column]);
    multiply(engine, &mut sums, &left, &right);
    sums
}

/// `dx = bf16(dout weight)`.
fn backward_input(engine: &Engine, dx: &mut [bf16], dout: &[bf16], weight: &[bf16], shape: LinearShape) {
    let sums = backward_input_sums(engine, dout, weight, shape);
    dx.iter_mut().zip(sums).for_each(|(dx, sum)| *dx = round(sum));
}

/// The partial column sums of a GELU's gradient as stored, one row for each 128 rows. A column's 128 rows are
/// added as the registers of a tile hold them: thread r of 8 adds the rows r, r + 8, r + 64 and r + 72 of a
/// warp's 32, threads that differ by 4, 2 and 1 are added, then four warps.
pub fn gelu_sums(engine: &Engine, dpre: &[bf16], width: usize) -> Vec<f32> {
    let block = |dpre: &[bf16]| -> Vec<f32> {
        // Rows past the last do not count.
        let at = |row: usize, column: usize| dpre.get(row * width + column).map_or(0.0, |x| wide(*x));
        let warp = |warp: usize| -> Vec<f32> {
            let column = |column: usize| {
                let row = |row: usize| at(warp * 16 + row, column);
                let thread = |r: usize| (row(r) + row(r + 8)) + (row(r + 64) + row(r + 72));
                let pair = |r: usize| thread(r) + thread(r + 4);
                (pair(0) + pair(2)) + (pair(1) + pair(3))
            };
            (0..width).map(column).collect()
        };
        add_in_order((0..4).map(warp).collect())
    };
    engine.install(|| dpre.par_chunks(BLOCK_ROWS * width).flat_map_iter(block).collect())
}

/// The operands of a weight gradient.
#[derive(Clone, Copy)]
pub struct WeightGradient<'a> {
    /// (n, c_out)
    pub dout: &'a [bf16],
    /// (n, c_in)
    pub x: &'a [bf16],
    pub shape: LinearShape,
    pub write: Write,
    /// The shape that gives the order of sums: this one, or that of which it is an excerpt.
    pub whole: LinearShape,
}

impl WeightGradient<'_> {
    fn order(&self) -> Order {
        let LinearShape { rows, c_in, c_out } = self.whole;
        gemm_hopper::order(&GemmKey {
            product: Product::BackwardWeight,
            rows: rows as u64,
            c_in: c_in as u64,
            c_out: c_out as u64,
            types: Types::Bf16ToF32,
            epilogue: Epilogue::BiasGradient,
        })
    }

    /// The blocks of terms of each part.
    fn parts(&self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let (blocks, splits) = (self.shape.rows.div_ceil(TERMS), self.order().splits as usize);
        (0..splits).map(move |part| blocks * part / splits..blocks * (part + 1) / splits)
    }

    /// `dweight (=|+=) doutᵀ x`, part after part.
    pub fn weight(&self, engine: &Engine, dweight: &mut [f32]) {
        let LinearShape { rows, c_in, c_out } = self.shape;
        for (part, blocks) in self.parts().enumerate() {
            let first = blocks.start * TERMS;
            let k = (blocks.end * TERMS).min(rows) - first;
            let mut sums = vec![0.0; c_out * c_in];
            let left = Left::new(engine, c_out, k, |row, k| self.dout[(first + k) * c_out + row]);
            let right = Right::new(engine, k, c_in, |k, column| self.x[(first + k) * c_in + column]);
            multiply(engine, &mut sums, &left, &right);
            let add = part > 0 || self.write == Write::Add;
            for (out, sum) in dweight.iter_mut().zip(sums) {
                *out = kept(if add { *out } else { 0.0 } + sum);
            }
        }
    }

    /// `dbias (=|+=)` column sums of `dout`: `known` where GELU's gradient has left partial sums, chains of
    /// products with ones, or a pass of its own.
    pub fn bias(&self, engine: &Engine, dbias: &mut [f32], known: Option<&[f32]>) {
        let c_out = self.shape.c_out;
        let own;
        let partials = match (known, self.order().bias_chains) {
            (Some(known), _) => known,
            (None, Some(chains)) => {
                own = self.bias_chains(engine, chains as usize);
                &own
            }
            (None, None) => {
                own = column_sum(engine, self.dout, c_out);
                &own
            }
        };
        reduce_partials(dbias, self.write, partials, c_out, 0);
    }

    /// For each part, chain j of `chains` has the blocks that are j modulo `chains`.
    fn bias_chains(&self, engine: &Engine, chains: usize) -> Vec<f32> {
        let LinearShape { rows, c_out, .. } = self.shape;
        let mut partials = Vec::with_capacity(self.order().splits as usize * chains * c_out);
        for part in self.parts() {
            for chain in 0..chains {
                let terms: Vec<usize> = part
                    .clone()
                    .filter(|block| block % chains == chain)
                    .flat_map(|block| block * TERMS..(block + 1) * TERMS)
                    .collect();
                let dout = |k: usize, column: usize| {
                    if terms[k] < rows { self.dout[terms[k] * c_out + column] } else { bf16::ZERO }
                };
                let mut sums = vec![0.0; c_out];
                let ones = Left::new(engine, 1, terms.len(), |_, _| bf16::ONE);
                multiply(engine, &mut sums, &ones, &Right::new(engine, terms.len(), c_out, dout));
                partials.extend(sums);
            }
        }
        partials
    }
}

impl Perform<Linear<'_, MirrorBuffer>> for Mirror {
    fn perform(&mut self, op: Linear<'_, MirrorBuffer>) -> Result<()> {
        const OP: &str = "linear";
        let Linear { out, x, weight, bias, shape } = op;
        let out = self.act_mut(OP, "out", out, shape.output())?;
        let bias = bias.map(|bias| act(OP, "bias", bias, shape.c_out)).transpose()?;
        let (x, weight) = (act(OP, "x", x, shape.input())?, act(OP, "weight", weight, shape.weight())?);
        forward(&self.engine, out, x, weight, bias, shape);
        Ok(())
    }
}

impl Perform<LinearActivate<'_, MirrorBuffer>> for Mirror {
    fn perform(&mut self, op: LinearActivate<'_, MirrorBuffer>) -> Result<()> {
        let channels = op.channels();
        let LinearActivate { out, pre, x, weight, bias, function, shape } = op;
        self.perform(Linear { out: pre, x, weight, bias, shape })?;
        self.perform(Activate { out, pre, function, rows: shape.rows, channels })
    }
}

impl Perform<LinearBackwardInput<'_, MirrorBuffer>> for Mirror {
    fn perform(&mut self, op: LinearBackwardInput<'_, MirrorBuffer>) -> Result<()> {
        const OP: &str = "linear_backward_input";
        let LinearBackwardInput { dx, dout, weight, shape } = op;
        let dx = self.act_mut(OP, "dx", dx, shape.input())?;
        let (dout, weight) =
            (act(OP, "dout", dout, shape.output())?, act(OP, "weight", weight, shape.weight())?);
        backward_input(&self.engine, dx, dout, weight, shape);
        Ok(())
    }
}

impl Perform<LinearBackwardInputActivate<'_, MirrorBuffer>> for Mirror {
    fn perform(&mut self, op: LinearBackwardInputActivate<'_, MirrorBuffer>) -> Result<()> {
        const OP: &str = "linear_backward_input_activate";
        let LinearBackwardInputActivate { dpre, room, dout, weight, pre, again, function, shape } = op;
        let (rows, channels) = (shape.rows, shape.c_in);
        if let Some(out) = again {
            self.perform(Activate { out, pre, function, rows, channels })?;
        }
        if function == Nonlinearity::Swiglu {
            let room = room.ok_or_else(|| failed(OP, NO_ROOM.into()))?;
            self.perform(LinearBackwardInput { dx: room, dout, weight, shape })?;
            return self.perform(ActivateBackward { dpre, dout: Some(room), pre, function, rows, channels });
        }
        self.perform(LinearBackwardInput { dx: dpre, dout, weight, shape })?;
        if function == Nonlinearity::SquaredRelu {
            return self.perform(ActivateBackward { dpre, dout: None, pre, function, rows, channels });
        }
        let buffer = dpre.id;
        let values = self.act_mut(OP, "dpre", dpre, shape.input())?;
        let pre = act(OP, "pre", pre, shape.input())?;
        backward_in_place(&self.engine, values, pre, gelu_slope);
        let partials = gelu_sums(&self.engine, values, shape.c_in);
        self.gelu_sums = Some(GeluColumnSums { buffer, rows: shape.rows, width: shape.c_in, partials });
        Ok(())
    }
}

impl Perform<LinearBackwardWeight<'_, MirrorBuffer>> for Mirror {
    fn perform(&mut self, op: LinearBackwardWeight<'_, MirrorBuffer>) -> Result<()> {
        let (dout, whole) = (op.dout.id, op.shape);
        let left =
            |sums: &GeluColumnSums| (sums.buffer, sums.rows, sums.width) == (dout, whole.rows, whole.c_out);
        let known = self.gelu_sums.as_ref().filter(|sums| left(sums));
        self.weight_gradient(op, whole, known.map(|sums| sums.partials.as_slice()))
    }
}

impl Mirror {
    /// A weight gradient with the sums in the order of `whole`, of which it may be an excerpt, and the bias
    /// gradient from the `known` sums of GELU's gradient where there are any.
    pub(super) fn weight_gradient(
        &self,
        op: LinearBackwardWeight<'_, MirrorBuffer>,
        whole: LinearShape,
        known: Option<&[f32]>,
    ) -> Result<()> {
        const OP: &str = "linear_backward_weight";
        let LinearBackwardWeight { dweight, dbias, dout, x, shape, write } = op;
        let gradient = WeightGradient {
            dout: act(OP, "dout", dout, shape.output())?,
            x: act(OP, "x", x, shape.input())?,
            shape,
            write,
            whole,
        };
        gradient.weight(&self.engine, float_mut(OP, "dweight", dweight, shape.weight())?);
        if let Some(dbias) = dbias {
            gradient.bias(&self.engine, float_mut(OP, "dbias", dbias, shape.c_out)?, known);
        }
        Ok(())
    }

    /// The partial sums that GELU's gradient `dout` leaves for the bias gradient.
    pub(super) fn sums_after_gelu(&self, dout: &MirrorBuffer, shape: LinearShape) -> Result<Vec<f32>> {
        let dout = act("linear_backward_weight", "dout", dout, shape.output())?;
        Ok(gelu_sums(&self.engine, dout, shape.c_out))
    }
}
