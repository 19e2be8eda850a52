//! Copies and sums of tensors, element by element.

use rayon::prelude::*;

use super::super::{Add, AddPart, CopyPart, Perform, Result};
use super::Cpu;
use super::buffer::Buffer;
use super::checks::{same_len, view, view_mut};
use super::engine::Engine;
use super::linear::{ELEMENTS, add};
use super::simd::vectorize;

/// `dst += src`.
pub fn accumulate(engine: &Engine, dst: &mut [f32], src: &[f32]) {
    engine.install(|| {
        dst.par_chunks_mut(ELEMENTS)
            .zip(src.par_chunks(ELEMENTS))
            .for_each(|(dst, src)| vectorize!(engine.isa, |_| add(dst, src)));
    });
}

impl Perform<CopyPart<'_, Buffer>> for Cpu {
    fn perform(&mut self, op: CopyPart<'_, Buffer>) -> Result<()> {
        const OP: &str = "copy";
        let CopyPart { dst, at, src, from, len } = op;
        let src = &view(OP, "src", src, from + len)?[from..];
        view_mut(OP, "dst", dst, at + len)?[at..].copy_from_slice(src);
        Ok(())
    }
}

impl Perform<Add<'_, Buffer>> for Cpu {
    fn perform(&mut self, op: Add<'_, Buffer>) -> Result<()> {
        same_len("add", op.src.len(), op.dst.len())?;
        accumulate(&self.engine, op.dst.as_mut_slice(), op.src.as_slice());
        Ok(())
    }
}

impl Perform<AddPart<'_, Buffer>> for Cpu {
    fn perform(&mut self, op: AddPart<'_, Buffer>) -> Result<()> {
        const OP: &str = "add_part";
        let AddPart { dst, at, src, from, len } = op;
        let src = &view(OP, "src", src, from + len)?[from..];
        accumulate(&self.engine, &mut view_mut(OP, "dst", dst, at + len)?[at..], src);
        Ok(())
    }
}
