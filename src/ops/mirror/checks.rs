//! Checks of operands before every operation: types and lengths.

use half::bf16;

use super::Mirror;
use super::buffer::{MirrorBuffer, MirrorValues};
use crate::ops::cpu::checks::failed;
use crate::ops::{DeviceError, Dtype, Result};

/// An operand that is too short.
pub fn short(op: &'static str, name: &str, have: usize, len: usize) -> DeviceError {
    failed(op, format!("`{name}` has {have} elements, {len} are needed"))
}

fn wrong(op: &'static str, name: &str, expected: Dtype) -> DeviceError {
    failed(op, format!("`{name}` is not {expected}"))
}

/// The first `len` elements of a tensor of activations or weights.
pub fn act<'a>(op: &'static str, name: &str, buf: &'a MirrorBuffer, len: usize) -> Result<&'a [bf16]> {
    let MirrorValues::Bf16(data) = &buf.data else { return Err(wrong(op, name, Dtype::BF16)) };
    data.get(..len).ok_or_else(|| short(op, name, data.len(), len))
}

/// The first `len` elements of a tensor of fp32.
pub fn float<'a>(op: &'static str, name: &str, buf: &'a MirrorBuffer, len: usize) -> Result<&'a [f32]> {
    let MirrorValues::F32(data) = &buf.data else { return Err(wrong(op, name, Dtype::F32)) };
    data.get(..len).ok_or_else(|| short(op, name, data.len(), len))
}

/// As [`float`], to be written.
pub fn float_mut<'a>(
    op: &'static str,
    name: &str,
    buf: &'a mut MirrorBuffer,
    len: usize,
) -> Result<&'a mut [f32]> {
    let have = buf.len();
    let MirrorValues::F32(data) = &mut buf.data else { return Err(wrong(op, name, Dtype::F32)) };
    data.get_mut(..len).ok_or_else(|| short(op, name, have, len))
}

/// Rows are read eight elements at a time.
pub fn row_length(op: &'static str, length: usize) -> Result<()> {
    if length > 0 && length.is_multiple_of(8) {
        return Ok(());
    }
    Err(failed(op, format!("a row of {length} elements is not a multiple of 8")))
}

impl Mirror {
    /// A tensor of activations that is about to be written: what was known of its columns is no longer so.
    pub(super) fn act_mut<'a>(
        &mut self,
        op: &'static str,
        name: &str,
        buf: &'a mut MirrorBuffer,
        len: usize,
    ) -> Result<&'a mut [bf16]> {
        self.written(buf);
        let have = buf.len();
        let MirrorValues::Bf16(data) = &mut buf.data else { return Err(wrong(op, name, Dtype::BF16)) };
        data.get_mut(..len).ok_or_else(|| short(op, name, have, len))
    }

    pub(super) fn written(&mut self, buf: &MirrorBuffer) {
        self.gelu_sums = self.gelu_sums.take().filter(|sums| sums.buffer != buf.id);
    }
}
