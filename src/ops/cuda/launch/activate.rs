//! Launches of `activate.cu`: squared ReLU, SwiGLU and their gradients; GELU's go to `gelu.cu`.

use super::super::args::{Act, In, Kernel, Out, bindings};
use super::super::memory::Buf;
use super::super::modules::{Geometry, Kernels};
use super::gelu;
use crate::ops::op::activate::NOT_IN_PLACE;
use crate::ops::{Activate, ActivateBackward, Nonlinearity, Result};

bindings! {
    "activate.cu" {
        struct ActivateArgs { out: Out<Act>, pre: In<Act>, length: u64 }
        struct ActivateBackwardArgs { dpre: Out<Act>, dout: In<Act>, pre: In<Act>, length: u64 }
        kernel SQUARED_RELU(ActivateArgs) = "squared_relu_forward";
        kernel SWIGLU(ActivateArgs) = "swiglu_forward";
        kernel SQUARED_RELU_BACKWARD(ActivateBackwardArgs) = "squared_relu_backward";
        kernel SWIGLU_BACKWARD(ActivateBackwardArgs) = "swiglu_backward";
    }
}

/// A thread has two chunks of eight elements of what is wider.
fn geometry(function: Nonlinearity, length: u64) -> Geometry {
    Geometry::new((length * function.inputs() as u64).div_ceil(4096), 256)
}

/// `out` of `pre`, twice as long, by their addresses.
///
/// # Safety
/// Both are those of live buffers, and `length` outputs fit.
pub unsafe fn swiglu_at(k: &Kernels, op: &'static str, out: u64, pre: u64, length: u64) -> Result<()> {
    let args = ActivateArgs { out: Out::at(out), pre: In::at(pre), length };
    // SAFETY: the caller's promise.
    unsafe { k.launch(op, &SWIGLU, geometry(Nonlinearity::Swiglu, length), &args) }
}

/// `out` of `pre`, by their addresses.
///
/// # Safety
/// Both are those of live buffers of `length`.
pub unsafe fn squared_relu_at(k: &Kernels, op: &'static str, out: u64, pre: u64, length: u64) -> Result<()> {
    let args = ActivateArgs { out: Out::at(out), pre: In::at(pre), length };
    // SAFETY: the caller's promise.
    unsafe { k.launch(op, &SQUARED_RELU, geometry(Nonlinearity::SquaredRelu, length), &args) }
}

/// `dout` becomes `dpre`, of `pre`, by their addresses.
///
/// # Safety
/// As for [`squared_relu_at`].
pub unsafe fn squared_relu_gradient_at(
    k: &Kernels,
    op: &'static str,
    dout: u64,
    pre: u64,
    length: u64,
) -> Result<()> {
    let args = ActivateBackwardArgs { dpre: Out::at(dout), dout: In::at(dout), pre: In::at(pre), length };
    // SAFETY: the caller's promise; the kernel allows `dpre` in the place of `dout`.
    unsafe { k.launch(op, &SQUARED_RELU_BACKWARD, geometry(Nonlinearity::SquaredRelu, length), &args) }
}

/// `dpre` of `dout` and `pre`, both of them twice as long, by their addresses.
///
/// # Safety
/// All are those of live buffers, and `length` outputs fit.
pub unsafe fn swiglu_gradient_at(
    k: &Kernels,
    op: &'static str,
    dpre: u64,
    dout: u64,
    pre: u64,
    length: u64,
) -> Result<()> {
    let args = ActivateBackwardArgs { dpre: Out::at(dpre), dout: In::at(dout), pre: In::at(pre), length };
    // SAFETY: the caller's promise.
    unsafe { k.launch(op, &SWIGLU_BACKWARD, geometry(Nonlinearity::Swiglu, length), &args) }
}

pub fn forward(k: &Kernels, op: Activate<'_, Buf>) -> Result<()> {
    const OP: &str = "activate";
    let Activate { out, pre, function, rows, channels } = op;
    let len = rows * channels;
    let kernel: &Kernel<ActivateArgs> = match function {
        Nonlinearity::Gelu => return gelu::forward(k, OP, out, pre, len),
        Nonlinearity::SquaredRelu => &SQUARED_RELU,
        Nonlinearity::Swiglu => &SWIGLU,
    };
    let args = ActivateArgs {
        out: Out::at(k.act(OP, "out", out, len)?),
        pre: In::at(k.act(OP, "pre", pre, function.inputs() * len)?),
        length: len as u64,
    };
    // SAFETY: both lengths were checked.
    unsafe { k.launch(OP, kernel, geometry(function, len as u64), &args) }
}

pub fn backward(k: &Kernels, op: ActivateBackward<'_, Buf>) -> Result<()> {
    const OP: &str = "activate_backward";
    let (inputs, outputs) = (op.inputs(), op.outputs());
    let ActivateBackward { dpre, dout, pre, function, rows, channels } = op;
    let (to, pre) = (k.act(OP, "dpre", dpre, inputs)?, k.act(OP, "pre", pre, inputs)?);
    let dout = dout.map(|dout| k.act(OP, "dout", dout, outputs)).transpose()?;
    let kernel = match function {
        Nonlinearity::Gelu => {
            k.row_length(OP, channels)?;
            let (rows, width) = (rows as u64, channels as u64);
            // SAFETY: all lengths were checked; no column sums are asked for.
            return unsafe { gelu::backward_at(k, OP, 0, [to, dout.unwrap_or(to)], pre, rows, width) };
        }
        Nonlinearity::SquaredRelu => &SQUARED_RELU_BACKWARD,
        Nonlinearity::Swiglu => {
            k.check(OP, dout.is_some(), || NOT_IN_PLACE.into())?;
            &SWIGLU_BACKWARD
        }
    };
    let args = ActivateBackwardArgs {
        dpre: Out::at(to),
        dout: In::at(dout.unwrap_or(to)),
        pre: In::at(pre),
        length: outputs as u64,
    };
    // SAFETY: all lengths were checked; the kernel that runs without `dout` allows `dpre` in its place.
    unsafe { k.launch(OP, kernel, geometry(function, outputs as u64), &args) }
}
