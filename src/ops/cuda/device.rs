//! CUDA as [`Ops`]: its memory here; each operation is a `Perform` beside its launch, which checks operands,
//! starts kernels and returns.

use std::ops::Range;

use rayon::prelude::*;

use super::Cuda;
use super::classifier::ends_in_powers;
use super::launch::optimizer;
use super::linear::{gemm_keys, layer_keys};
use super::memory::{Buf, CudaIds, copy_by_all_threads};
use super::scratch_plan::planned;
use crate::ops::op::{operations, perform};
use crate::ops::{Dtype, LinearShape, Ops, ReplayKey, Result, Role, ScratchShape};

/// Floats that a thread rounds at a time.
const PART: usize = 1 << 16;

impl Ops for Cuda {
    type Buf = Buf;
    type Ids = CudaIds;

    // ---- memory ----------------------------------------------------------------------------

    fn device_name(&self) -> String {
        self.kernels.gpu.info.name.clone()
    }

    fn dtype(&self, role: Role) -> Dtype {
        match role {
            Role::Param | Role::Activation => self.kernels.act,
            Role::F32 => Dtype::F32,
        }
    }

    fn alloc(&mut self, role: Role, len: usize) -> Result<Buf> {
        let what = match role {
            Role::Param => "weights",
            Role::Activation => "activations",
            Role::F32 => "fp32 tensors",
        };
        self.memory.buffer(what, self.dtype(role), len)
    }

    fn alloc_host(&mut self, len: usize) -> Result<Buf> {
        self.memory.host_buffer(len)
    }

    fn alloc_ids(&mut self, len: usize) -> Result<CudaIds> {
        self.memory.ids(len)
    }

    /// Also tunes the matrix multiplications of this shape that have no plan yet.
    fn alloc_scratch(&mut self, shape: &ScratchShape) -> Result<()> {
        let powers = ends_in_powers(&self.kernels.gpu.info, self.kernels.act);
        for (which, bytes) in planned(shape, self.options.compute, powers) {
            self.scratch.get(&mut self.memory, which, bytes)?;
        }
        self.head_size = Some(shape.heads.head_size);
        self.load_attention(shape.heads)?;
        self.gemm.prepare(&self.kernels, &gemm_keys(shape, &self.options, powers), self.options.user_plans)
    }

    fn prepare_layers(&mut self, layers: &[LinearShape]) -> Result<()> {
        let keys = layer_keys(layers, &self.options);
        self.gemm.prepare(&self.kernels, &keys, self.options.user_plans)
    }

    fn upload_ids(&mut self, dst: &mut CudaIds, ids: &[u16]) -> Result<()> {
        const OP: &str = "upload_ids";
        let address = self.kernels.ids(OP, "dst", dst, ids.len())?;
        let bytes: &[u8] = bytemuck::cast_slice(ids);
        // SAFETY: the length was checked.
        unsafe {
            self.staging.upload(address, bytes.len() as u64, OP, |at, piece| {
                piece.copy_from_slice(&bytes[at..][..piece.len()])
            })
        }
    }

    fn upload(&mut self, dst: &mut Buf, src: &[f32]) -> Result<()> {
        const OP: &str = "upload";
        self.check_length(OP, dst, src.len())?;
        self.written(dst);
        let dtype = dst.dtype();
        let bytes = (src.len() * dtype.size()) as u64;
        // SAFETY: the length was checked.
        unsafe {
            self.staging.upload(dst.address(), bytes, OP, |at, piece| match dtype {
                Dtype::BF16 => {
                    let wide = &src[at / 2..][..piece.len() / 2];
                    let narrow = piece.as_chunks_mut::<2>().0;
                    let parts = narrow.par_chunks_mut(PART).zip(wide.par_chunks(PART));
                    parts.for_each(|(narrow, wide)| {
                        for (narrow, wide) in narrow.iter_mut().zip(wide) {
                            *narrow = half::bf16::from_f32(*wide).to_le_bytes();
                        }
                    });
                }
                _ => {
                    let source: &[u8] = bytemuck::cast_slice(&src[at / 4..][..piece.len() / 4]);
                    copy_by_all_threads(piece, source);
                }
            })
        }
    }

    fn download(&mut self, src: &Buf, dst: &mut [f32]) -> Result<()> {
        const OP: &str = "download";
        self.check_length(OP, src, dst.len())?;
        let dtype = src.dtype();
        let bytes = (dst.len() * dtype.size()) as u64;
        // SAFETY: the length was checked.
        unsafe {
            self.staging.download(src.address(), bytes, OP, |at, piece| match dtype {
                Dtype::BF16 => {
                    let target = &mut dst[at / 2..][..piece.len() / 2];
                    for (wide, narrow) in target.iter_mut().zip(piece.as_chunks::<2>().0) {
                        *wide = half::bf16::from_le_bytes(*narrow).to_f32();
                    }
                }
                _ => bytemuck::cast_slice_mut(&mut dst[at / 4..][..piece.len() / 4]).copy_from_slice(piece),
            })
        }
    }

    fn read_at(&mut self, src: &Buf, at: usize, dst: &mut [u8]) -> Result<()> {
        const OP: &str = "read_at";
        self.check_bytes(OP, src, at + dst.len())?;
        // SAFETY: the length was checked.
        unsafe {
            self.staging.download(src.address() + at as u64, dst.len() as u64, OP, |at, piece| {
                copy_by_all_threads(&mut dst[at..][..piece.len()], piece)
            })
        }
    }

    fn write_at(&mut self, dst: &mut Buf, at: usize, src: &[u8]) -> Result<()> {
        const OP: &str = "write_at";
        self.check_bytes(OP, dst, at + src.len())?;
        self.written(dst);
        let address = dst.address() + at as u64;
        // SAFETY: the length was checked.
        unsafe {
            self.staging.upload(address, src.len() as u64, OP, |at, piece| {
                piece.copy_from_slice(&src[at..][..piece.len()])
            })
        }
    }

    fn synchronize(&mut self) -> Result<()> {
        self.kernels.gpu.synchronize("synchronize")
    }

    fn merkle_roots(&mut self, bufs: &[(&Buf, Range<usize>)]) -> Result<Option<Vec<[u8; 32]>>> {
        self.roots(bufs).map(Some)
    }

    // ---- two lanes -------------------------------------------------------------------------

    fn turn_aside(&mut self) -> Result<()> {
        self.lanes.turn_aside()
    }

    fn turn_back(&mut self) -> Result<()> {
        self.lanes.turn_back()
    }

    fn join_lanes(&mut self) -> Result<()> {
        self.lanes.join()
    }

    // ---- repeated work --------------------------------------------------------------------

    fn identity(&self, buf: &Buf) -> u64 {
        buf.address()
    }

    fn replay(&mut self, key: ReplayKey) -> Result<bool> {
        self.replay_graph(key)
    }

    fn recorded(&mut self, key: ReplayKey) -> Result<()> {
        self.end_graph(key)
    }

    // ---- the operations --------------------------------------------------------------------

    operations!(perform);

    fn chunk(&self) -> usize {
        optimizer::CHUNK as usize
    }

    fn fold_squares(&self, chunks: &[f64]) -> f64 {
        optimizer::fold_squares(chunks)
    }
}

impl Cuda {
    pub(super) fn check_length(&self, op: &'static str, buf: &Buf, len: usize) -> Result<()> {
        self.kernels.check(op, len <= buf.len(), || format!("{len} elements of a tensor of {}", buf.len()))
    }

    fn check_bytes(&self, op: &'static str, buf: &Buf, bytes: usize) -> Result<()> {
        self.kernels.check(op, bytes as u64 <= buf.bytes(), || {
            format!("{bytes} bytes of a tensor of {}", buf.bytes())
        })
    }
}
