//! The GPU's arithmetic on a CPU: the third implementation of the operations, and the specification of the
//! numerics `hopper-bf16-v3`.
//!
//! A training step here ends in the bits of the same step on a Hopper GPU in bf16 (`kernels/*.cu` on the fast
//! path of sm_90a). Each file stands beside the kernels that it mirrors and is written to be read: what an
//! operation rounds, and the order of its sums, is its code; launch geometry appears only where it decides an
//! order. `docs/arithmetic.md` says the same in prose.
//!
//! * [`scalar`]: roundings and elementary functions; [`special`]: those of the special-function unit;
//!   [`tensor_core`]: the chain of products and sums.
//! * `linear`, `activate`, `norm`, `qk_norm`, `rotary`, `attention`, `classifier`, `embedding`,
//!   `elementwise`, `optimizer`, `reduce`, `decode`: the arithmetic, as functions over slices of bf16 and
//!   f32, and below it the operations, which check operands.
//! * `device` is the memory.
//!
//! Deliberately not here: other head sizes than 64 and 128, fp32 and tf32, cuBLASLt's own fusions of GELU,
//! and GPUs before Hopper, whose tensor cores add in other ways.

#![forbid(unsafe_code)]

mod activate;
mod attention;
mod buffer;
mod checks;
mod classifier;
mod decode;
mod device;
mod elementwise;
mod embedding;
mod linear;
mod muon;
mod norm;
mod optimizer;
mod qk_norm;
mod recompute;
mod reduce;
mod rotary;
pub mod scalar;
pub mod special;
pub mod tensor_core;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use super::Result;
use super::cpu::engine::Engine;
use crate::experiment::DeviceKeys;
pub use buffer::MirrorBuffer;

/// Names the arithmetic in locks. Any change of a bit needs another name.
pub const ARITHMETIC: &str = "hopper-bf16-v3";

/// Partial column sums that GELU's gradient left for the bias gradient that follows.
struct GeluColumnSums {
    /// The buffer that holds the gradient, by number.
    buffer: u64,
    rows: usize,
    width: usize,
    partials: Vec<f32>,
}

/// A CPU that computes as a Hopper GPU does.
pub struct Mirror {
    engine: Engine,
    gelu_sums: Option<GeluColumnSums>,
}

impl Mirror {
    /// The threads of [`super::cpu::threads`] for `device.threads`, and the instruction set of `device.simd`;
    /// no bit depends on either.
    ///
    /// # Errors
    /// [`super::DeviceError::Unavailable`] when the CPU lacks the instruction set or threads cannot start.
    pub fn new(device: &DeviceKeys) -> Result<Mirror> {
        Ok(Mirror { engine: Engine::open(device)?, gelu_sums: None })
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
