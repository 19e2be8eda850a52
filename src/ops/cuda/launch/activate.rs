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

/// `out` of `pre`, by their addresses.
///
/// # Safety
/// Both are those of live buffers, of `length` outputs and of what they are made of.
pub unsafe fn forward_at(
    k: &Kernels,
    op: &'static str,
    function: Nonlinearity,
    out: u64,
    pre: u64,
    length: u64,
) -> Result<()> {
    let kernel: &Kernel<ActivateArgs> = match function {
        // SAFETY: the caller's promise.
        Nonlinearity::Gelu => return unsafe { gelu::forward_at(k, op, out, pre, length) },
        Nonlinearity::SquaredRelu => &SQUARED_RELU,
        Nonlinearity::Swiglu => &SWIGLU,
    };
    let args = ActivateArgs { out: Out::at(out), pre: In::at(pre), length };
    // SAFETY: the caller's promise.
    unsafe { k.launch(op, kernel, geometry(function, length), &args) }
}

/// `dpre` of `dout`, which may be one but with SwiGLU, and of `pre`, by their addresses.
///
/// # Safety
/// All are those of live buffers, `dout` of so many rows and channels.
pub unsafe fn backward_at(
    k: &Kernels,
    op: &'static str,
    function: Nonlinearity,
    [dpre, dout]: [u64; 2],
    pre: u64,
    [rows, channels]: [u64; 2],
) -> Result<()> {
    let kernel: &Kernel<ActivateBackwardArgs> = match function {
        Nonlinearity::Gelu => {
            // SAFETY: the caller's promise; no column sums are asked for.
            return unsafe { gelu::backward_at(k, op, 0, [dpre, dout], pre, rows, channels) };
        }
        Nonlinearity::SquaredRelu => &SQUARED_RELU_BACKWARD,
        Nonlinearity::Swiglu => &SWIGLU_BACKWARD,
    };
    let length = rows * channels;
    let args = ActivateBackwardArgs { dpre: Out::at(dpre), dout: In::at(dout), pre: In::at(pre), length };
    // SAFETY: the caller's promise.
    unsafe { k.launch(op, kernel, geometry(function, length), &args) }
}

pub fn forward(k: &Kernels, op: Activate<'_, Buf>) -> Result<()> {
    const OP: &str = "activate";
    let Activate { out, pre, function, rows, channels } = op;
    let len = rows * channels;
    let (out, pre) = (k.act(OP, "out", out, len)?, k.act(OP, "pre", pre, function.inputs() * len)?);
    // SAFETY: both lengths were checked.
    unsafe { forward_at(k, OP, function, out, pre, len as u64) }
}

pub fn backward(k: &Kernels, op: ActivateBackward<'_, Buf>) -> Result<()> {
    const OP: &str = "activate_backward";
    let (inputs, outputs) = (op.inputs(), op.outputs());
    let ActivateBackward { dpre, dout, pre, function, rows, channels } = op;
    let (to, pre) = (k.act(OP, "dpre", dpre, inputs)?, k.act(OP, "pre", pre, inputs)?);
    let dout = dout.map(|dout| k.act(OP, "dout", dout, outputs)).transpose()?;
    match function {
        Nonlinearity::Gelu => k.row_length(OP, channels)?,
        Nonlinearity::SquaredRelu => {}
        Nonlinearity::Swiglu => k.check(OP, dout.is_some(), || NOT_IN_PLACE.into())?,
    }
    let extent = [rows as u64, channels as u64];
    // SAFETY: all lengths were checked, and what is not given is allowed to be missing.
    unsafe { backward_at(k, OP, function, [to, dout.unwrap_or(to)], pre, extent) }
}
