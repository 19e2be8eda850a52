//! The functions between the layers of an MLP and their gradients, element by element.

use rayon::prelude::*;

use super::super::op::activate::NOT_IN_PLACE;
use super::super::{Activate, ActivateBackward, Nonlinearity, Perform, Result};
use super::Cpu;
use super::buffer::Buffer;
use super::checks::{failed, view, view_mut};
use super::engine::Engine;
use super::linear::ELEMENTS;
use super::math;
use super::simd::vectorize;

/// `out = f(pre)`.
pub fn forward(engine: &Engine, out: &mut [f32], pre: &[f32], function: Nonlinearity) {
    match function {
        Nonlinearity::Gelu => each(engine, out, pre, math::gelu),
        Nonlinearity::SquaredRelu => each(engine, out, pre, math::squared_relu),
        Nonlinearity::Swiglu => swiglu(engine, out, pre),
    }
}

fn each(engine: &Engine, out: &mut [f32], pre: &[f32], f: impl Fn(f32) -> f32 + Copy + Sync) {
    engine.install(|| {
        out.par_chunks_mut(ELEMENTS).zip(pre.par_chunks(ELEMENTS)).for_each(|(out, pre)| {
            vectorize!(engine.isa, |_| out.iter_mut().zip(pre).for_each(|(out, pre)| *out = f(*pre)));
        });
    });
}

fn swiglu(engine: &Engine, out: &mut [f32], pre: &[f32]) {
    engine.install(|| {
        out.par_chunks_mut(ELEMENTS).zip(pre.par_chunks(2 * ELEMENTS)).for_each(|(out, pre)| {
            vectorize!(engine.isa, |_| out
                .iter_mut()
                .zip(pre.as_chunks::<2>().0)
                .for_each(|(out, [gate, up])| *out = math::swiglu(*gate, *up)));
        });
    });
}

/// `dpre *= f'(pre)`, of all functions but SwiGLU.
pub fn backward_in_place(
    engine: &Engine,
    dpre: &mut [f32],
    pre: &[f32],
    derivative: impl Fn(f32) -> f32 + Copy + Sync,
) {
    engine.install(|| {
        dpre.par_chunks_mut(ELEMENTS).zip(pre.par_chunks(ELEMENTS)).for_each(|(dpre, pre)| {
            vectorize!(engine.isa, |_| dpre
                .iter_mut()
                .zip(pre)
                .for_each(|(dpre, pre)| *dpre *= derivative(*pre)));
        });
    });
}

/// SwiGLU's gradient: `dpre` and `pre` are pairs of gate and up, twice as long as `dout`.
fn swiglu_backward(engine: &Engine, dpre: &mut [f32], dout: &[f32], pre: &[f32]) {
    engine.install(|| {
        let tasks = dpre.par_chunks_mut(2 * ELEMENTS).zip(pre.par_chunks(2 * ELEMENTS));
        tasks.zip(dout.par_chunks(ELEMENTS)).for_each(|((dpre, pre), dout)| {
            vectorize!(engine.isa, |_| {
                let pairs = dpre.as_chunks_mut::<2>().0.iter_mut().zip(pre.as_chunks::<2>().0);
                pairs
                    .zip(dout)
                    .for_each(|((dpre, [gate, up]), dout)| *dpre = math::swiglu_gradient(*dout, *gate, *up));
            });
        });
    });
}

impl Perform<Activate<'_, Buffer>> for Cpu {
    fn perform(&mut self, op: Activate<'_, Buffer>) -> Result<()> {
        const OP: &str = "activate";
        let Activate { out, pre, function, rows, channels } = op;
        let len = rows * channels;
        let out = view_mut(OP, "out", out, len)?;
        forward(&self.engine, out, view(OP, "pre", pre, function.inputs() * len)?, function);
        Ok(())
    }
}

impl Perform<ActivateBackward<'_, Buffer>> for Cpu {
    fn perform(&mut self, op: ActivateBackward<'_, Buffer>) -> Result<()> {
        const OP: &str = "activate_backward";
        let (inputs, outputs) = (op.inputs(), op.outputs());
        let ActivateBackward { dpre, dout, pre, function, .. } = op;
        let (dpre, pre) = (view_mut(OP, "dpre", dpre, inputs)?, view(OP, "pre", pre, inputs)?);
        let dout = dout.map(|dout| view(OP, "dout", dout, outputs)).transpose()?;
        if function == Nonlinearity::Swiglu {
            let dout = dout.ok_or_else(|| failed(OP, NOT_IN_PLACE.into()))?;
            swiglu_backward(&self.engine, dpre, dout, pre);
            return Ok(());
        }
        if let Some(dout) = dout {
            dpre.copy_from_slice(dout);
        }
        match function {
            Nonlinearity::Gelu => backward_in_place(&self.engine, dpre, pre, math::gelu_derivative),
            _ => backward_in_place(&self.engine, dpre, pre, math::squared_relu_derivative),
        }
        Ok(())
    }
}
