//! The operations a device must offer to train GPT-2: one trait, and the devices that implement it.
//!
//! The model in [`crate::model`] is written once over [`Ops`]. `cpu` is the oracle of every kernel
//! test and the embedded default; `cuda` is the product, [`mirror`] its arithmetic on a CPU. [`dry`] counts
//! without computing, [`timed`] wraps any device and measures it, [`traced`] watches it. An operation is as
//! large as fusing pays for on a GPU, and no larger: launch geometry, packing, algorithm plans and scratch
//! stay behind the trait. Its arguments are one struct of [`op`], which also holds the list of all
//! operations.
//!
//! # Promises every implementation keeps
//!
//! * The result of an operation is a function of its inputs' bits and of the shapes: not of threads,
//!   SIMD width, launch geometry, time or what ran before.
//! * Float sums have an order given by the shape. No float atomics.
//! * Every output element is written; buffers marked `Write::Set` need no clearing before.
//!
//! Shape letters: `B` sequences, `T` tokens a sequence, `C` channels, `NH` heads, `HS = C/NH`,
//! `V` vocabulary as padded in memory. `N = B*T` rows. All matrices are row-major and dense.

/// Writes the methods of a device `O` inside another, `inner`, that the other one hands on as they are.
macro_rules! pass_on {
    () => {
        fn device_name(&self) -> String {
            self.inner.device_name()
        }

        fn dtype(&self, role: Role) -> Dtype {
            self.inner.dtype(role)
        }

        fn alloc(&mut self, role: Role, len: usize) -> Result<O::Buf> {
            self.inner.alloc(role, len)
        }

        fn alloc_host(&mut self, len: usize) -> Result<O::Buf> {
            self.inner.alloc_host(len)
        }

        fn alloc_ids(&mut self, len: usize) -> Result<O::Ids> {
            self.inner.alloc_ids(len)
        }

        fn alloc_scratch(&mut self, shape: &ScratchShape) -> Result<()> {
            self.inner.alloc_scratch(shape)
        }

        fn prepare_layers(&mut self, layers: &[LinearShape]) -> Result<()> {
            self.inner.prepare_layers(layers)
        }

        fn upload(&mut self, dst: &mut O::Buf, src: &[f32]) -> Result<()> {
            self.inner.upload(dst, src)
        }

        fn upload_made(&mut self, dst: &mut O::Buf, make: impl FnOnce() -> Vec<f32>) -> Result<()> {
            self.inner.upload_made(dst, make)
        }

        fn read_at(&mut self, src: &O::Buf, at: usize, dst: &mut [u8]) -> Result<()> {
            self.inner.read_at(src, at, dst)
        }

        fn write_at(&mut self, dst: &mut O::Buf, at: usize, src: &[u8]) -> Result<()> {
            self.inner.write_at(dst, at, src)
        }

        fn synchronize(&mut self) -> Result<()> {
            self.inner.synchronize()
        }

        fn turn_aside(&mut self) -> Result<()> {
            self.inner.turn_aside()
        }

        fn turn_back(&mut self) -> Result<()> {
            self.inner.turn_back()
        }

        fn join_lanes(&mut self) -> Result<()> {
            self.inner.join_lanes()
        }

        fn chunk(&self) -> usize {
            self.inner.chunk()
        }

        fn fold_squares(&self, chunks: &[f64]) -> f64 {
            self.inner.fold_squares(chunks)
        }
    };
}

pub mod cpu;
pub mod cuda;
pub mod dry;
pub mod mirror;
pub mod op;
#[cfg(test)]
pub mod testing;
pub mod timed;
pub mod traced;
mod types;

use std::ops::Range;

pub use op::*;
pub use types::*;

/// Declares the method of each operation.
macro_rules! declare {
    ($($name:ident($Op:ident<$($of:ident),+>) -> $gives:ty;)*) => {
        $(
            #[doc = concat!("Runs [`", stringify!($Op), "`].")]
            fn $name(&mut self, op: $Op<'_, $(Self::$of),+>) -> Result<$gives>;
        )*
    };
}

/// A device that can train GPT-2.
///
/// All methods take `&mut self`: a device is one ordered stream of work, with a second one at its side for
/// work whose result is needed later ([`aside`]). On CUDA they return before the work is done;
/// [`Ops::download`], [`Ops::sum_squares`], [`Ops::chunk_squares`] and [`Ops::synchronize`] wait.
pub trait Ops {
    /// A dense float tensor on the device. Its length is fixed when it is allocated.
    type Buf: Send;
    /// Token ids on the device.
    type Ids: Send;

    // ---- memory ----------------------------------------------------------------------------

    /// Name of the device for people: `AMD EPYC 9354, 2 threads` or `NVIDIA H100 80GB HBM3`.
    fn device_name(&self) -> String;
    /// Element type in which this device stores `role`.
    fn dtype(&self, role: Role) -> Dtype;
    /// A zeroed buffer of `len` elements.
    fn alloc(&mut self, role: Role, len: usize) -> Result<Self::Buf>;
    /// `len` elements of f32, undefined until written, in the host's memory where the device has memory of
    /// its own. Only [`Ops::copy`] takes such a buffer; it can move data while other work goes on.
    fn alloc_host(&mut self, len: usize) -> Result<Self::Buf> {
        self.alloc(Role::F32, len)
    }
    /// Room for `len` token ids.
    fn alloc_ids(&mut self, len: usize) -> Result<Self::Ids>;
    /// Allocates the scratch that operations on micro-batches of this shape need: once, before the first.
    fn alloc_scratch(&mut self, shape: &ScratchShape) -> Result<()>;
    /// Chooses how [`Linear`] without bias and [`LinearBackwardInput`] are computed in shapes that are not
    /// the model's. Called before the first operation.
    fn prepare_layers(&mut self, _layers: &[LinearShape]) -> Result<()> {
        Ok(())
    }
    fn upload_ids(&mut self, dst: &mut Self::Ids, ids: &[u16]) -> Result<()>;
    /// Replaces the first `src.len()` elements, rounded to the buffer's type, to nearest even.
    fn upload(&mut self, dst: &mut Self::Buf, src: &[f32]) -> Result<()>;
    /// The same with values that are made for it, and for no device without memory.
    fn upload_made(&mut self, dst: &mut Self::Buf, make: impl FnOnce() -> Vec<f32>) -> Result<()> {
        self.upload(dst, &make())
    }
    /// The first `dst.len()` elements, widened to f32.
    fn download(&mut self, src: &Self::Buf, dst: &mut [f32]) -> Result<()>;
    /// `dst.len()` stored bytes from byte `at` on, little-endian, exactly.
    fn read_at(&mut self, src: &Self::Buf, at: usize, dst: &mut [u8]) -> Result<()>;
    /// Replaces `src.len()` stored bytes from byte `at` on.
    fn write_at(&mut self, dst: &mut Self::Buf, at: usize, src: &[u8]) -> Result<()>;
    /// The first `dst.len()` stored bytes.
    fn read_bytes(&mut self, src: &Self::Buf, dst: &mut [u8]) -> Result<()> {
        self.read_at(src, 0, dst)
    }
    /// Replaces the first `src.len()` stored bytes.
    fn write_bytes(&mut self, dst: &mut Self::Buf, src: &[u8]) -> Result<()> {
        self.write_at(dst, 0, src)
    }
    fn synchronize(&mut self) -> Result<()>;
    /// Merkle roots of a range of stored bytes of each buffer, as `docs/digest.md` specifies, when the
    /// device can hash where the bytes are; `None` sends the caller to [`Ops::read_at`]. A range starts
    /// at a multiple of 16.
    fn merkle_roots(&mut self, _bufs: &[(&Self::Buf, Range<usize>)]) -> Result<Option<Vec<[u8; 32]>>> {
        Ok(None)
    }

    // ---- two lanes -------------------------------------------------------------------------
    //
    // A device without a second stream does all work in the order of the calls, which satisfies what the two
    // lanes promise.

    /// Sends the work that follows to the side lane, where it runs after everything issued so far, on either
    /// lane. See [`aside`].
    fn turn_aside(&mut self) -> Result<()> {
        Ok(())
    }
    /// Sends the work that follows to the main lane again, without waiting for the side lane.
    fn turn_back(&mut self) -> Result<()> {
        Ok(())
    }
    /// Work issued after this, on either lane, runs after everything issued to the side lane.
    fn join_lanes(&mut self) -> Result<()> {
        Ok(())
    }

    // ---- repeated work --------------------------------------------------------------------

    /// A number that tells this buffer from every other live one, on devices where [`Ops::replay`] needs it.
    fn identity(&self, _buf: &Self::Buf) -> u64 {
        0
    }
    /// Repeats the work that was last recorded under `key`, and returns whether it did. If not, the caller
    /// does the work and ends it with [`Ops::recorded`]; a device may record it meanwhile. Equal keys promise
    /// the same operations on the same buffers with the same scalars.
    fn replay(&mut self, _key: ReplayKey) -> Result<bool> {
        Ok(false)
    }
    /// Marks the end of work that [`Ops::replay`] left to the caller.
    fn recorded(&mut self, _key: ReplayKey) -> Result<()> {
        Ok(())
    }

    // ---- the operations --------------------------------------------------------------------

    op::operations!(declare);

    /// Elements of a fixed chunk of [`SumSquares`]; a multiple of 2048, so that a chunk is whole
    /// leaves of the state digest at every width. Tensors are divided among devices at such chunks only.
    fn chunk(&self) -> usize;

    /// One tensor's sum of squares from those of all its chunks, to the bits of [`Ops::sum_squares`].
    fn fold_squares(&self, chunks: &[f64]) -> f64;
}

/// Issues `work` on the side lane of `ops`: it runs after all work issued before it, and later work does not
/// wait for it until [`Ops::join_lanes`]. Until then what it reads must not be written, and what it writes
/// must not be read or written.
pub fn aside<O: Ops, E: From<DeviceError>>(
    ops: &mut O,
    work: impl FnOnce(&mut O) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    ops.turn_aside()?;
    let done = work(ops);
    let back = ops.turn_back();
    // The first failure is the cause.
    done?;
    Ok(back?)
}
