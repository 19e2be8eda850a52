//! Launches of `elementwise.cu`, sums of whole buffers; and copies.

use super::super::Cuda;
use super::super::args::{F32, In, Out, bindings};
use super::super::memory::Buf;
use super::super::modules::{Geometry, Kernels};
use crate::ops::{Add, AddPart, CopyPart, Perform, Result};

bindings! {
    "elementwise.cu" {
        struct AddArgs { dst: Out<F32>, src: In<F32>, length: u64 }
        kernel ADD(AddArgs) = "add_f32";
    }
}

/// `dst[at..at + len] += src[from..from + len]`.
fn add(k: &Kernels, op: AddPart<'_, Buf>) -> Result<()> {
    const OP: &str = "add";
    let AddPart { dst, at, src, from, len } = op;
    k.check(OP, at.is_multiple_of(4) && from.is_multiple_of(4), || {
        format!("{at} and {from} are no multiples of 4")
    })?;
    let args = AddArgs {
        dst: Out::at(k.f32(OP, "dst", dst, at + len)? + 4 * at as u64),
        src: In::at(k.f32(OP, "src", src, from + len)? + 4 * from as u64),
        length: len as u64,
    };
    // SAFETY: both lengths were checked.
    unsafe { k.launch(OP, &ADD, Geometry::new((len as u64).div_ceil(4096), 256), &args) }
}

impl Perform<CopyPart<'_, Buf>> for Cuda {
    fn perform(&mut self, op: CopyPart<'_, Buf>) -> Result<()> {
        const OP: &str = "copy";
        let CopyPart { dst, at, src, from, len } = op;
        self.check_length(OP, dst, at + len)?;
        self.check_length(OP, src, from + len)?;
        self.kernels.check(OP, dst.dtype() == src.dtype(), || {
            format!("`dst` is {}, `src` is {}", dst.dtype(), src.dtype())
        })?;
        self.written(dst);
        let size = src.dtype().size() as u64;
        let (to, from) = (dst.address() + at as u64 * size, src.address() + from as u64 * size);
        // SAFETY: both lengths were checked, and two tensors never overlap.
        unsafe { self.kernels.gpu.copy(to, from, len as u64 * size, OP) }
    }
}

impl Perform<Add<'_, Buf>> for Cuda {
    fn perform(&mut self, op: Add<'_, Buf>) -> Result<()> {
        let Add { dst, src } = op;
        self.kernels.check("add", src.len() == dst.len(), || {
            format!("{} elements do not fit {}", src.len(), dst.len())
        })?;
        let len = dst.len();
        add(&self.kernels, AddPart { dst, at: 0, src, from: 0, len })
    }
}

impl Perform<AddPart<'_, Buf>> for Cuda {
    fn perform(&mut self, op: AddPart<'_, Buf>) -> Result<()> {
        add(&self.kernels, op)
    }
}
