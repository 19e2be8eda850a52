//! Launches of `elementwise.cu`: sums of whole buffers.

use super::super::args::{F32, In, Kernel, Out, kernel_args};
use super::super::memory::Buf;
use super::super::modules::{Geometry, Kernels};
use crate::ops::Result;

kernel_args! { "elementwise.cu" AddArgs { dst: Out<F32>, src: In<F32>, length: u64 } }

pub const ADD: Kernel<AddArgs> = Kernel::new("add_f32");

/// `dst += src`.
pub fn add(k: &Kernels, dst: &mut Buf, src: &Buf) -> Result<()> {
    const OP: &str = "add";
    let length = dst.len();
    k.check(OP, src.len() == length, || format!("`src` has {} elements, `dst` {length}", src.len()))?;
    let args = AddArgs {
        dst: Out::at(k.f32(OP, "dst", dst, length)?),
        src: In::at(k.f32(OP, "src", src, length)?),
        length: length as u64,
    };
    // SAFETY: both lengths were checked.
    unsafe { k.launch(OP, &ADD, Geometry::new((length as u64).div_ceil(4096), 256), &args) }
}
