//! Launches of `gelu.cu`.

use super::super::args::{Act, F32, In, Out, bindings};
use super::super::memory::Buf;
use super::super::modules::{Geometry, Kernels};
use super::reduce::column_geometry;
use crate::ops::Result;

bindings! {
    "gelu.cu" {
        struct GeluArgs { out: Out<Act>, pre: In<Act>, length: u64 }
        struct GeluBackwardArgs {
            dpre: Out<Act>, partials: Out<F32>, dout: In<Act>, pre: In<Act>, rows: u64, width: u64,
        }
        kernel FORWARD(GeluArgs) = "gelu_forward";
        kernel BACKWARD(GeluBackwardArgs) = "gelu_backward";
    }
}

/// `op` names the calling operation in messages; it may be larger.
///
/// # Safety
/// Both addresses are those of `length` elements.
pub unsafe fn forward_at(k: &Kernels, op: &'static str, out: u64, pre: u64, length: u64) -> Result<()> {
    let args = GeluArgs { out: Out::at(out), pre: In::at(pre), length };
    // SAFETY: the caller's promise.
    unsafe { k.launch(op, &FORWARD, Geometry::new(length.div_ceil(4096), 256), &args) }
}

/// Writes where no memory is, as a kernel with a defect would.
#[cfg(test)]
pub fn fault(k: &Kernels) {
    let args = GeluArgs { out: Out::at(256), pre: In::at(512), length: 4096 };
    // SAFETY: none; the context is lost by design, and with it the process's use of the GPU.
    unsafe { k.launch("fault", &FORWARD, Geometry::new(1, 256), &args) }.expect("a launch is only asked for");
}

/// Multiplies `dpre` (n, width) by GELU's slope at `pre` in place, and leaves its partial column sums.
pub fn backward_in_place(
    k: &Kernels,
    op: &'static str,
    partials: u64,
    dpre: &mut Buf,
    pre: &Buf,
    n: usize,
    width: usize,
) -> Result<()> {
    k.row_length(op, width)?;
    let (dpre, pre) = (k.act(op, "dpre", dpre, n * width)?, k.act(op, "pre", pre, n * width)?);
    // SAFETY: the lengths were checked; the scratch is the caller's promise.
    unsafe { backward_at(k, op, partials, [dpre, dpre], pre, n as u64, width as u64) }
}

/// # Safety
/// `dpre`, `dout`, which may be one, and `pre` are addresses of `rows` times `width` elements, and `partials`
/// has room for their sums, or is 0 where none are wanted.
pub unsafe fn backward_at(
    k: &Kernels,
    op: &'static str,
    partials: u64,
    [dpre, dout]: [u64; 2],
    pre: u64,
    rows: u64,
    width: u64,
) -> Result<()> {
    let args = GeluBackwardArgs {
        dpre: Out::at(dpre),
        partials: Out::at(partials),
        dout: In::at(dout),
        pre: In::at(pre),
        rows,
        width,
    };
    // SAFETY: the caller's promise; the kernel allows dout and dpre to be one.
    unsafe { k.launch(op, &BACKWARD, column_geometry(rows, width), &args) }
}
