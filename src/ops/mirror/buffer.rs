//! The mirror's tensors: bf16 or fp32 in memory, as a GPU has them.

use std::sync::atomic::{AtomicU64, Ordering};

use half::bf16;

use super::scalar::wide;
use crate::ops::Dtype;

#[derive(Clone, Debug)]
pub(super) enum MirrorValues {
    Bf16(Vec<bf16>),
    F32(Vec<f32>),
}

/// A dense tensor.
#[derive(Debug)]
pub struct MirrorBuffer {
    pub(super) data: MirrorValues,
    /// Tells this buffer from every other of the process.
    pub(super) id: u64,
}

impl MirrorBuffer {
    pub fn zeroed(dtype: Dtype, len: usize) -> MirrorBuffer {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let data = match dtype {
            Dtype::BF16 => MirrorValues::Bf16(vec![bf16::ZERO; len]),
            _ => MirrorValues::F32(vec![0.0; len]),
        };
        MirrorBuffer { data, id: NEXT.fetch_add(1, Ordering::Relaxed) }
    }

    pub fn len(&self) -> usize {
        match &self.data {
            MirrorValues::Bf16(data) => data.len(),
            MirrorValues::F32(data) => data.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The stored bytes, little-endian as on every machine that this runs on.
    pub fn bytes(&self) -> &[u8] {
        match &self.data {
            MirrorValues::Bf16(data) => bytemuck::cast_slice(data),
            MirrorValues::F32(data) => bytemuck::cast_slice(data),
        }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.data {
            MirrorValues::Bf16(data) => bytemuck::cast_slice_mut(data),
            MirrorValues::F32(data) => bytemuck::cast_slice_mut(data),
        }
    }

    /// Element `i`, widened.
    pub fn get(&self, i: usize) -> f32 {
        match &self.data {
            MirrorValues::Bf16(data) => wide(data[i]),
            MirrorValues::F32(data) => data[i],
        }
    }
}
