//! The CPU as [`Ops`]: its memory here; each operation is a `Perform` beside its arithmetic.

use std::ops::Range;

use super::super::op::{operations, perform};
use super::super::{DeviceError, Dtype, Ops, Result, Role, ScratchShape};
use super::buffer::Buffer;
use super::checks::{DEVICE, available_bytes, failed, view, view_mut, whole_floats};
use super::{Cpu, logits_len, optimizer, thread_scratch};

/// Token ids in memory.
pub struct Ids(pub(in crate::ops) Vec<u16>);

impl Ids {
    /// `len` ids, all 0.
    pub fn zeroed(len: usize) -> Ids {
        Ids(vec![0; len])
    }

    /// Replaces the first ones.
    pub fn upload(&mut self, ids: &[u16]) -> Result<()> {
        let have = self.0.len();
        let to = self
            .0
            .get_mut(..ids.len())
            .ok_or_else(|| failed("upload_ids", format!("{} ids do not fit {have}", ids.len())))?;
        to.copy_from_slice(ids);
        Ok(())
    }
}

impl Ops for Cpu {
    type Buf = Buffer;
    type Ids = Ids;

    fn device_name(&self) -> String {
        let model = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        });
        let threads = self.engine.threads;
        let plural = if threads == 1 { "" } else { "s" };
        format!("{}, {threads} thread{plural}", model.as_deref().unwrap_or(std::env::consts::ARCH))
    }

    fn dtype(&self, _: Role) -> Dtype {
        Dtype::F32
    }

    fn alloc(&mut self, role: Role, len: usize) -> Result<Buffer> {
        Buffer::try_zeroed(len).ok_or_else(|| DeviceError::OutOfMemory {
            device: DEVICE.to_owned(),
            what: format!("{role:?} buffer of {len} elements"),
            need_bytes: 4 * len as u64,
            free_bytes: available_bytes().unwrap_or(0),
        })
    }

    fn alloc_ids(&mut self, len: usize) -> Result<Ids> {
        Ok(Ids::zeroed(len))
    }

    fn alloc_scratch(&mut self, shape: &ScratchShape) -> Result<()> {
        self.logits.reserve(logits_len(shape));
        self.engine.reserve_scratch(thread_scratch(shape));
        Ok(())
    }

    fn upload_ids(&mut self, dst: &mut Ids, ids: &[u16]) -> Result<()> {
        dst.upload(ids)
    }

    fn upload(&mut self, dst: &mut Buffer, src: &[f32]) -> Result<()> {
        view_mut("upload", "dst", dst, src.len())?.copy_from_slice(src);
        Ok(())
    }

    fn download(&mut self, src: &Buffer, dst: &mut [f32]) -> Result<()> {
        dst.copy_from_slice(view("download", "src", src, dst.len())?);
        Ok(())
    }

    fn read_at(&mut self, src: &Buffer, at: usize, dst: &mut [u8]) -> Result<()> {
        const OP: &str = "read_at";
        let (floats, rest) = dst.as_chunks_mut::<4>();
        whole_floats(OP, at % 4 + rest.len())?;
        let stored = &view(OP, "src", src, at / 4 + floats.len())?[at / 4..];
        for (to, from) in floats.iter_mut().zip(stored) {
            *to = from.to_le_bytes();
        }
        Ok(())
    }

    /// What is hashed is little-endian: another machine's goes through [`Ops::read_at`].
    fn merkle_roots(&mut self, bufs: &[(&Buffer, Range<usize>)]) -> Result<Option<Vec<[u8; 32]>>> {
        if cfg!(target_endian = "big") {
            return Ok(None);
        }
        let parts = bufs.iter().map(|(buf, range)| {
            let stored = view("merkle_roots", "src", buf, range.end.div_ceil(4))?;
            Ok(&bytemuck::cast_slice(stored)[range.clone()])
        });
        let parts = parts.collect::<Result<Vec<&[u8]>>>()?;
        Ok(Some(self.engine.merkle_roots(&parts)))
    }

    fn write_at(&mut self, dst: &mut Buffer, at: usize, src: &[u8]) -> Result<()> {
        const OP: &str = "write_at";
        let (floats, rest) = src.as_chunks::<4>();
        whole_floats(OP, at % 4 + rest.len())?;
        let stored = &mut view_mut(OP, "dst", dst, at / 4 + floats.len())?[at / 4..];
        for (to, from) in stored.iter_mut().zip(floats) {
            *to = f32::from_le_bytes(*from);
        }
        Ok(())
    }

    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }

    operations!(perform);

    fn chunk(&self) -> usize {
        optimizer::CHUNK
    }

    fn fold_squares(&self, chunks: &[f64]) -> f64 {
        optimizer::fold_squares(chunks)
    }
}
