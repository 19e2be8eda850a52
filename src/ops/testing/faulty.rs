//! A device with a fault: one bit of each `linear`'s first output is wrong, every time.

use crate::ops::{Dtype, Linear, Ops, Result, Role, ScratchShape, op};

/// A device that does one operation wrong.
pub struct Faulty<O>(pub O);

/// Writes a method that passes an operation on; that of `linear` flips a bit afterwards.
macro_rules! faulty {
    ($($name:ident($Op:ident<$($of:ident),+>) -> $gives:ty;)*) => {
        $(faulty! { @one $name($Op<$($of),+>) -> $gives })*
    };
    (@one linear(Linear<Buf>) -> $gives:ty) => {
        fn linear(&mut self, op: Linear<'_, Self::Buf>) -> Result<()> {
            let Linear { out, x, weight, bias, shape } = op;
            self.0.linear(Linear { out: &mut *out, x, weight, bias, shape })?;
            let mut byte = [0];
            self.0.read_at(out, 0, &mut byte)?;
            self.0.write_at(out, 0, &[byte[0] ^ 1])
        }
    };
    (@one $name:ident($Op:ident<$($of:ident),+>) -> $gives:ty) => {
        fn $name(&mut self, op: op::$Op<'_, $(Self::$of),+>) -> Result<$gives> {
            self.0.$name(op)
        }
    };
}

impl<O: Ops> Ops for Faulty<O> {
    type Buf = O::Buf;
    type Ids = O::Ids;

    fn device_name(&self) -> String {
        self.0.device_name()
    }

    fn dtype(&self, role: Role) -> Dtype {
        self.0.dtype(role)
    }

    fn alloc(&mut self, role: Role, len: usize) -> Result<O::Buf> {
        self.0.alloc(role, len)
    }

    fn alloc_ids(&mut self, len: usize) -> Result<O::Ids> {
        self.0.alloc_ids(len)
    }

    fn alloc_scratch(&mut self, shape: &ScratchShape) -> Result<()> {
        self.0.alloc_scratch(shape)
    }

    fn upload_ids(&mut self, dst: &mut O::Ids, ids: &[u16]) -> Result<()> {
        self.0.upload_ids(dst, ids)
    }

    fn upload(&mut self, dst: &mut O::Buf, src: &[f32]) -> Result<()> {
        self.0.upload(dst, src)
    }

    fn download(&mut self, src: &O::Buf, dst: &mut [f32]) -> Result<()> {
        self.0.download(src, dst)
    }

    fn read_at(&mut self, src: &O::Buf, at: usize, dst: &mut [u8]) -> Result<()> {
        self.0.read_at(src, at, dst)
    }

    fn write_at(&mut self, dst: &mut O::Buf, at: usize, src: &[u8]) -> Result<()> {
        self.0.write_at(dst, at, src)
    }

    fn synchronize(&mut self) -> Result<()> {
        self.0.synchronize()
    }

    op::operations!(faulty);

    fn chunk(&self) -> usize {
        self.0.chunk()
    }

    fn fold_squares(&self, chunks: &[f64]) -> f64 {
        self.0.fold_squares(chunks)
    }
}
