//! Float memory of the CPU device, aligned to cache lines.

use bytemuck::{Pod, Zeroable};

/// One cache line of floats: the unit of allocation, so that vector loads never straddle lines.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct CacheLine([f32; 16]);

/// A dense `f32` tensor whose first element is aligned to 64 bytes.
#[derive(Clone, Default)]
pub struct Buffer {
    lines: Vec<CacheLine>,
    len: usize,
}

impl Buffer {
    /// `len` zeros.
    pub fn zeroed(len: usize) -> Buffer {
        Buffer { lines: vec![CacheLine::zeroed(); len.div_ceil(16)], len }
    }

    /// `len` zeros, or nothing where the system refuses the memory.
    pub fn try_zeroed(len: usize) -> Option<Buffer> {
        let mut lines = Vec::new();
        lines.try_reserve_exact(len.div_ceil(16)).ok()?;
        lines.resize(len.div_ceil(16), CacheLine::zeroed());
        Some(Buffer { lines, len })
    }

    /// Makes room for at least `len` elements; what was there is kept or lost.
    pub fn reserve(&mut self, len: usize) {
        if self.len < len {
            *self = Buffer::zeroed(len);
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn as_slice(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }

    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}
