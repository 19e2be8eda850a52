//! The functions between the layers of an MLP and their gradients, as `kernels/activate.cu` and
//! `kernels/gelu.cu` compute them.

use half::bf16;
use rayon::prelude::*;

use super::Mirror;
use super::buffer::MirrorBuffer;
use super::checks::act;
use super::scalar::{
    gelu, gelu_slope, round, squared_relu, squared_relu_slope, swiglu, swiglu_gradient, wide,
};
use crate::ops::cpu::checks::failed;
use crate::ops::cpu::engine::Engine;
use crate::ops::op::activate::NOT_IN_PLACE;
use crate::ops::{Activate, ActivateBackward, Nonlinearity, Perform, Result};

/// `out = bf16(f(pre))` of the stored `pre`.
pub fn forward(engine: &Engine, out: &mut [bf16], pre: &[bf16], function: Nonlinearity) {
    match function {
        Nonlinearity::Gelu => each(engine, out, pre, gelu),
        Nonlinearity::SquaredRelu => each(engine, out, pre, squared_relu),
        Nonlinearity::Swiglu => {
            let pairs = pre.as_chunks::<2>().0;
            let element =
                |(out, [gate, up]): (&mut bf16, &[bf16; 2])| *out = round(swiglu(wide(*gate), wide(*up)));
            engine.install(|| out.par_iter_mut().zip(pairs).for_each(element));
        }
    }
}

fn each(engine: &Engine, out: &mut [bf16], pre: &[bf16], f: impl Fn(f32) -> f32 + Sync) {
    engine.install(|| out.par_iter_mut().zip(pre).for_each(|(out, pre)| *out = round(f(wide(*pre)))));
}

/// `dpre = bf16(dpre f'(pre))` in place.
pub fn backward_in_place(
    engine: &Engine,
    dpre: &mut [bf16],
    pre: &[bf16],
    slope: impl Fn(f32) -> f32 + Sync,
) {
    let element = |(d, x): (&mut bf16, &bf16)| *d = round(wide(*d) * slope(wide(*x)));
    engine.install(|| dpre.par_iter_mut().zip(pre).for_each(element));
}

/// SwiGLU's gradient: `dpre` and `pre` are pairs of gate and up, twice as long as `dout`.
pub fn swiglu_backward(engine: &Engine, dpre: &mut [bf16], dout: &[bf16], pre: &[bf16]) {
    let pairs = dpre.as_chunks_mut::<2>().0.par_iter_mut().zip(pre.as_chunks::<2>().0);
    let element = |((dpre, [gate, up]), dout): ((&mut [bf16; 2], &[bf16; 2]), &bf16)| {
        *dpre = swiglu_gradient(wide(*dout), wide(*gate), wide(*up)).map(round);
    };
    engine.install(|| pairs.zip(dout).for_each(element));
}

impl Perform<Activate<'_, MirrorBuffer>> for Mirror {
    fn perform(&mut self, op: Activate<'_, MirrorBuffer>) -> Result<()> {
        const OP: &str = "activate";
        let Activate { out, pre, function, rows, channels } = op;
        let len = rows * channels;
        let out = self.act_mut(OP, "out", out, len)?;
        forward(&self.engine, out, act(OP, "pre", pre, function.inputs() * len)?, function);
        Ok(())
    }
}

impl Perform<ActivateBackward<'_, MirrorBuffer>> for Mirror {
    fn perform(&mut self, op: ActivateBackward<'_, MirrorBuffer>) -> Result<()> {
        const OP: &str = "activate_backward";
        let (inputs, outputs) = (op.inputs(), op.outputs());
        let ActivateBackward { dpre, dout, pre, function, .. } = op;
        let dpre = self.act_mut(OP, "dpre", dpre, inputs)?;
        let pre = act(OP, "pre", pre, inputs)?;
        let dout = dout.map(|dout| act(OP, "dout", dout, outputs)).transpose()?;
        if function == Nonlinearity::Swiglu {
            let dout = dout.ok_or_else(|| failed(OP, NOT_IN_PLACE.into()))?;
            swiglu_backward(&self.engine, dpre, dout, pre);
            return Ok(());
        }
        if let Some(dout) = dout {
            dpre.copy_from_slice(dout);
        }
        match function {
            Nonlinearity::Gelu => backward_in_place(&self.engine, dpre, pre, gelu_slope),
            _ => backward_in_place(&self.engine, dpre, pre, squared_relu_slope),
        }
        Ok(())
    }
}
