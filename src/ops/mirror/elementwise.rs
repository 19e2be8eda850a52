//! Copies and sums of tensors, element by element.

use super::Mirror;
use super::buffer::{MirrorBuffer, MirrorValues};
use super::checks::{float, float_mut, short};
use super::scalar::kept;
use crate::ops::cpu::checks::{failed, same_len};
use crate::ops::{Add, AddPart, CopyPart, Perform, Result};

/// `dst += src`.
fn add(dst: &mut [f32], src: &[f32]) {
    dst.iter_mut().zip(src).for_each(|(dst, src)| *dst = kept(*dst + src));
}

fn copy_part<T: Copy>(
    op: &'static str,
    dst: &mut [T],
    at: usize,
    src: &[T],
    from: usize,
    len: usize,
) -> Result<()> {
    let have = (src.len(), dst.len());
    let src = src.get(from..from + len).ok_or_else(|| short(op, "src", have.0, from + len))?;
    dst.get_mut(at..at + len).ok_or_else(|| short(op, "dst", have.1, at + len))?.copy_from_slice(src);
    Ok(())
}

impl Perform<CopyPart<'_, MirrorBuffer>> for Mirror {
    fn perform(&mut self, op: CopyPart<'_, MirrorBuffer>) -> Result<()> {
        const OP: &str = "copy";
        let CopyPart { dst, at, src, from, len } = op;
        self.written(dst);
        match (&mut dst.data, &src.data) {
            (MirrorValues::Bf16(dst), MirrorValues::Bf16(src)) => copy_part(OP, dst, at, src, from, len),
            (MirrorValues::F32(dst), MirrorValues::F32(src)) => copy_part(OP, dst, at, src, from, len),
            _ => Err(failed(OP, "`dst` and `src` have other types".into())),
        }
    }
}

impl Perform<Add<'_, MirrorBuffer>> for Mirror {
    fn perform(&mut self, op: Add<'_, MirrorBuffer>) -> Result<()> {
        const OP: &str = "add";
        let len = op.dst.len();
        same_len(OP, op.src.len(), len)?;
        add(float_mut(OP, "dst", op.dst, len)?, float(OP, "src", op.src, len)?);
        Ok(())
    }
}

impl Perform<AddPart<'_, MirrorBuffer>> for Mirror {
    fn perform(&mut self, op: AddPart<'_, MirrorBuffer>) -> Result<()> {
        const OP: &str = "add_part";
        let AddPart { dst, at, src, from, len } = op;
        let src = &float(OP, "src", src, from + len)?[from..];
        add(&mut float_mut(OP, "dst", dst, at + len)?[at..], src);
        Ok(())
    }
}
