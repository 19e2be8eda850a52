//! The CPU device: the oracle of every kernel test, and the embedded default.
//!
//! Everything is `f32`. Results are the same bits for any number of threads, any instruction set
//! and any machine (up to the payload of a NaN): each element has one order of additions, fixed by
//! the shape and written at its function. [`NUMERICS_VERSION`] changes whenever such an order, a
//! polynomial or a chunk length changes.
//!
//! * [`tile`]: register tiles, which [`attention`] is built on; [`gemm`]: matrix products; [`decode`] does
//!   without.
//! * [`simd`]: one kernel body for every vector width; [`math`]: exponential, GELU, SwiGLU.
//! * [`engine`]: threads and scratch; [`buffer`]: aligned memory.
//!
//! A file of operations holds, for each, its [`super::Perform`], which checks lengths and token ids, and the
//! arithmetic on slices, which relies on that. `device` is the memory.

mod activate;
mod attention;
mod buffer;
pub(in crate::ops) mod checks;
mod classifier;
mod decode;
mod device;
mod elementwise;
mod embedding;
pub(in crate::ops) mod engine;
mod gemm;
pub mod libm_vectors;
mod linear;
mod math;
mod muon;
mod norm;
mod optimizer;
mod qk_norm;
pub(in crate::ops) mod rotary;
pub(in crate::ops) mod simd;
#[cfg(test)]
mod tests;
mod tile;

use std::sync::Arc;

use super::{Result, ScratchShape};
use crate::experiment::DeviceKeys;
pub use buffer::Buffer;
pub use device::Ids;
pub use engine::threads;

use engine::Engine;

/// Names the arithmetic of this device; part of a lock's numerics.
pub const NUMERICS_VERSION: u32 = 1;

/// A CPU with its threads.
pub struct Cpu {
    engine: Engine,
    /// Of the classifier's last rows; kept between calls.
    logits: Buffer,
    by_token: embedding::ByToken,
}

impl Cpu {
    /// Bytes of scratch held now.
    #[cfg(test)]
    fn held_scratch_bytes(&mut self) -> u64 {
        4 * (self.logits.len() + self.engine.scratch_len()) as u64
    }

    /// The threads of [`threads`] for `device.threads`, and the instruction set of `device.simd`.
    ///
    /// # Errors
    /// [`super::DeviceError::Unavailable`] when the CPU lacks the instruction set or threads cannot start.
    pub fn new(device: &DeviceKeys) -> Result<Cpu> {
        let engine = Engine::open(device)?;
        Ok(Cpu { engine, logits: Buffer::default(), by_token: embedding::ByToken::default() })
    }

    /// Threads that share the work.
    pub fn threads(&self) -> usize {
        self.engine.threads
    }

    /// Those threads. Who calls operations from one of them does not wake the pool for each: some 600 times
    /// in a step of the quick start.
    pub fn pool(&self) -> Arc<rayon::ThreadPool> {
        Arc::clone(&self.engine.pool)
    }
}

/// Scratch of the CPU device for micro-batches of up to `shape`, by name, in bytes.
pub fn scratch_bytes(shape: &ScratchShape, threads: usize) -> Vec<(String, u64)> {
    [("logits", logits_len(shape)), ("threads", threads * thread_scratch(shape))]
        .into_iter()
        .map(|(name, floats)| (name.to_owned(), 4 * floats as u64))
        .collect()
}

fn logits_len(shape: &ScratchShape) -> usize {
    classifier::logits_len(shape.rows.count(), shape.vocab)
}

/// Floats of each thread's scratch.
fn thread_scratch(shape: &ScratchShape) -> usize {
    let attention = attention::scratch_len(shape.rows.seq, shape.heads.head_size, shape.backward);
    attention
        .max(gemm::multiply_scratch(shape.rows.count()))
        .max(gemm::multiply_outer_scratch(linear::ROW_CHUNK))
}
