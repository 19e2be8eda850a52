//! A device without memory: it computes nothing, and remembers which buffers were taken.
//!
//! The model is written once over [`Ops`], so running it here shows exactly which buffers it takes and,
//! under [`super::timed::Timed`], which operations it does on which shapes: what `runner plan` counts, in
//! milliseconds, for a model that would fill a GPU. Downloads give zeros, sums of squares are empty lists.
//! No shape is checked: devices that compute do that.

#![forbid(unsafe_code)]

use super::{Dtype, Ops, Result, Role, ScratchShape, op};

/// A device that only counts what is asked of it.
#[derive(Clone, Debug)]
pub struct Dry {
    /// Element type of weights and activations.
    dtype: Dtype,
    /// Bytes of every buffer so far, in order; token ids too.
    pub taken: Vec<u64>,
    /// The same, of what would lie in the host's memory.
    pub taken_of_host: Vec<u64>,
}

impl Dry {
    /// A device that would store weights and activations as `dtype`.
    pub fn new(dtype: Dtype) -> Dry {
        Dry { dtype, taken: Vec::new(), taken_of_host: Vec::new() }
    }
}

/// A buffer's length; there are no elements.
#[derive(Clone, Copy, Debug)]
pub struct Len(pub usize);

/// Writes an operation that does nothing.
macro_rules! do_nothing {
    ($($name:ident($Op:ident<$($of:ident),+>) -> $gives:ty;)*) => {
        $(
            fn $name(&mut self, _: op::$Op<'_, $(Self::$of),+>) -> Result<$gives> {
                Ok(<$gives>::default())
            }
        )*
    };
}

impl Ops for Dry {
    type Buf = Len;
    type Ids = Len;

    fn device_name(&self) -> String {
        "no device".to_owned()
    }

    fn dtype(&self, role: Role) -> Dtype {
        if role == Role::F32 { Dtype::F32 } else { self.dtype }
    }

    fn alloc(&mut self, role: Role, len: usize) -> Result<Len> {
        self.taken.push((len * self.dtype(role).size()) as u64);
        Ok(Len(len))
    }

    fn alloc_host(&mut self, len: usize) -> Result<Len> {
        self.taken_of_host.push(4 * len as u64);
        Ok(Len(len))
    }

    fn alloc_ids(&mut self, len: usize) -> Result<Len> {
        self.taken.push(2 * len as u64);
        Ok(Len(len))
    }

    fn alloc_scratch(&mut self, _: &ScratchShape) -> Result<()> {
        Ok(())
    }

    fn upload_ids(&mut self, _: &mut Len, _: &[u16]) -> Result<()> {
        Ok(())
    }

    fn upload(&mut self, _: &mut Len, _: &[f32]) -> Result<()> {
        Ok(())
    }

    fn upload_made(&mut self, _: &mut Len, _: impl FnOnce() -> Vec<f32>) -> Result<()> {
        Ok(())
    }

    fn download(&mut self, _: &Len, dst: &mut [f32]) -> Result<()> {
        dst.fill(0.0);
        Ok(())
    }

    fn read_at(&mut self, _: &Len, _: usize, dst: &mut [u8]) -> Result<()> {
        dst.fill(0);
        Ok(())
    }

    fn write_at(&mut self, _: &mut Len, _: usize, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }

    op::operations!(do_nothing);

    fn chunk(&self) -> usize {
        2048
    }

    fn fold_squares(&self, _: &[f64]) -> f64 {
        0.0
    }
}
