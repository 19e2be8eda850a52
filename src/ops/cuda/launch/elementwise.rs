//! Launches of `elementwise.cu`: sums of whole buffers.

use super::super::args::{F32, In, Kernel, Out, kernel_args};
use super::super::memory::Buf;
use super::super::modules::{Geometry, Kernels};
use crate::ops::{AddPart, Result};

kernel_args! { "elementwise.cu" AddArgs { dst: Out<F32>, src: In<F32>, length: u64 } }

pub const ADD: Kernel<AddArgs> = Kernel::new("add_f32");

/// `dst[at..at + len] += src[from..from + len]`.
pub fn add(k: &Kernels, op: AddPart<'_, Buf>) -> Result<()> {
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
