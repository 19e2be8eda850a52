//! The mirror as [`Ops`]: its memory here; each operation is a `Perform` beside its arithmetic.

use std::ops::Range;

use half::bf16;

use super::Mirror;
use super::buffer::{MirrorBuffer, MirrorValues};
use super::checks::{row_length, short};
use crate::ops::cpu::Ids;
use crate::ops::cpu::checks::available_bytes;
use crate::ops::cuda::launch::optimizer::{CHUNK, fold_squares};
use crate::ops::op::{operations, perform};
use crate::ops::{DeviceError, Dtype, Ops, Result, Role, ScratchShape};

impl Ops for Mirror {
    type Buf = MirrorBuffer;
    type Ids = Ids;

    fn device_name(&self) -> String {
        format!("mirror of Hopper in bf16, {} CPU threads", self.engine.threads)
    }

    fn dtype(&self, role: Role) -> Dtype {
        match role {
            Role::Param | Role::Activation => Dtype::BF16,
            Role::F32 => Dtype::F32,
        }
    }

    fn alloc(&mut self, role: Role, len: usize) -> Result<MirrorBuffer> {
        let dtype = self.dtype(role);
        let (need, free) = ((len * dtype.size()) as u64, available_bytes().unwrap_or(u64::MAX));
        if need > free {
            return Err(DeviceError::OutOfMemory {
                device: "mirror".into(),
                what: format!("{role:?} buffer of {len} elements"),
                need_bytes: need,
                free_bytes: free,
            });
        }
        Ok(MirrorBuffer::zeroed(dtype, len))
    }

    fn alloc_ids(&mut self, len: usize) -> Result<Ids> {
        Ok(Ids::zeroed(len))
    }

    fn alloc_scratch(&mut self, shape: &ScratchShape) -> Result<()> {
        row_length("alloc_scratch", shape.channels)
    }

    fn upload_ids(&mut self, dst: &mut Ids, ids: &[u16]) -> Result<()> {
        dst.upload(ids)
    }

    fn upload(&mut self, dst: &mut MirrorBuffer, src: &[f32]) -> Result<()> {
        const OP: &str = "upload";
        self.written(dst);
        let have = dst.len();
        let fits = || short(OP, "dst", have, src.len());
        match &mut dst.data {
            MirrorValues::Bf16(data) => {
                let to = data.get_mut(..src.len()).ok_or_else(fits)?;
                to.iter_mut().zip(src).for_each(|(to, from)| *to = bf16::from_f32(*from));
            }
            MirrorValues::F32(data) => data.get_mut(..src.len()).ok_or_else(fits)?.copy_from_slice(src),
        }
        Ok(())
    }

    fn download(&mut self, src: &MirrorBuffer, dst: &mut [f32]) -> Result<()> {
        if dst.len() > src.len() {
            return Err(short("download", "src", src.len(), dst.len()));
        }
        dst.iter_mut().enumerate().for_each(|(i, to)| *to = src.get(i));
        Ok(())
    }

    fn read_at(&mut self, src: &MirrorBuffer, at: usize, dst: &mut [u8]) -> Result<()> {
        let stored = src.bytes().get(at..at + dst.len());
        dst.copy_from_slice(stored.ok_or_else(|| short("read_at", "src", src.len(), at + dst.len()))?);
        Ok(())
    }

    fn merkle_roots(&mut self, bufs: &[(&MirrorBuffer, Range<usize>)]) -> Result<Option<Vec<[u8; 32]>>> {
        let parts = bufs.iter().map(|(buf, range)| {
            let stored = buf.bytes().get(range.clone());
            stored.ok_or_else(|| short("merkle_roots", "src", buf.len(), range.end))
        });
        let parts = parts.collect::<Result<Vec<&[u8]>>>()?;
        Ok(Some(self.engine.merkle_roots(&parts)))
    }

    fn write_at(&mut self, dst: &mut MirrorBuffer, at: usize, src: &[u8]) -> Result<()> {
        self.written(dst);
        let have = dst.len();
        let stored = dst.bytes_mut().get_mut(at..at + src.len());
        stored.ok_or_else(|| short("write_at", "dst", have, at + src.len()))?.copy_from_slice(src);
        Ok(())
    }

    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }

    operations!(perform);

    fn chunk(&self) -> usize {
        CHUNK as usize
    }

    fn fold_squares(&self, chunks: &[f64]) -> f64 {
        fold_squares(chunks)
    }
}
