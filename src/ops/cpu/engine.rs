//! Threads, instruction set and scratch of the CPU device.

use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use super::buffer::Buffer;
use super::simd::Isa;
use crate::experiment::DeviceKeys;
use crate::ops::{DeviceError, Result};
use crate::proof::merkle_root;

/// A thread pool of its own, so that nothing else in the process shares the threads.
pub struct Engine {
    pub isa: Isa,
    pub threads: usize,
    /// Shared with whoever works inside it while the engine itself is lent out.
    pub pool: Arc<rayon::ThreadPool>,
    /// One a thread. What a scratch held before never reaches a result.
    scratch: Vec<Mutex<Buffer>>,
}

/// Threads that work where `device.threads` is `asked`: for 0 as many as the system has CPUs, and never more
/// than [`most_threads`].
pub fn threads(asked: usize) -> usize {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    if asked == 0 { cpus } else { asked.min(most_threads(cpus)) }
}

/// Threads of which more would wait for each other longer than they work.
fn most_threads(cpus: usize) -> usize {
    (4 * cpus).max(64)
}

impl Engine {
    /// The threads of [`threads`] and the instruction set of `device.simd`.
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`] when the CPU lacks the instruction set or threads cannot start.
    pub fn open(device: &DeviceKeys) -> Result<Engine> {
        let threads = threads(device.threads);
        Engine::new(Isa::new(device.simd)?, threads).map_err(|e| {
            DeviceError::Unavailable(format!(
                "cannot start {threads} CPU threads: {e}\n  hint: lower `device.threads`"
            ))
        })
    }

    /// `threads` of them; the caller's thread waits while they work.
    pub fn new(isa: Isa, threads: usize) -> Result<Engine, rayon::ThreadPoolBuildError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("cpu-{i}"))
            .build()?;
        let scratch = (0..threads).map(|_| Mutex::new(Buffer::default())).collect();
        Ok(Engine { isa, threads, pool: Arc::new(pool), scratch })
    }

    /// Runs `work` inside the pool: rayon's parallel iterators in it use the pool's threads.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(work)
    }

    /// The Merkle root of each of `parts`, hashed where they lie by all threads.
    pub fn merkle_roots(&self, parts: &[&[u8]]) -> Vec<[u8; 32]> {
        self.install(|| parts.par_iter().map(|part| merkle_root(part).0).collect())
    }

    /// Lends this thread's scratch, `len` floats with unspecified contents, aligned to 64 bytes.
    ///
    /// `work` must not start parallel work: a stolen task would wait for the same scratch.
    pub fn with_scratch<R>(&self, len: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
        let thread = rayon::current_thread_index().unwrap_or(0);
        let mut buffer = self.scratch[thread].lock().unwrap_or_else(PoisonError::into_inner);
        buffer.reserve(len);
        work(&mut buffer.as_mut_slice()[..len])
    }

    /// Floats of all threads' scratch.
    #[cfg(test)]
    pub fn scratch_len(&mut self) -> usize {
        self.scratch
            .iter_mut()
            .map(|buffer| buffer.get_mut().unwrap_or_else(PoisonError::into_inner).len())
            .sum()
    }

    /// Grows every thread's scratch to `len` floats.
    pub fn reserve_scratch(&mut self, len: usize) {
        for buffer in &mut self.scratch {
            buffer.get_mut().unwrap_or_else(PoisonError::into_inner).reserve(len);
        }
    }
}

/// Splits a row-major matrix of `stride` columns into blocks of `width` columns and `height` rows,
/// each as the list of its rows' parts: what lets tasks write column blocks without sharing.
/// Only the first `columns` columns are handed out. Blocks come row block by row block.
pub fn blocks(
    data: &mut [f32],
    stride: usize,
    columns: usize,
    height: usize,
    width: usize,
) -> Vec<Vec<&mut [f32]>> {
    let across = columns.div_ceil(width);
    let mut all = Vec::new();
    for band in data.chunks_mut(height * stride) {
        let first = all.len();
        let rows = band.len().div_ceil(stride);
        all.extend((0..across).map(|_| Vec::with_capacity(rows)));
        for row in band.chunks_mut(stride) {
            let used = columns.min(row.len());
            for (block, part) in row[..used].chunks_mut(width).enumerate() {
                all[first + block].push(part);
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn far_more_threads_than_cpus_are_not_started() {
        assert_eq!([1, 2, 16, 17, 128].map(most_threads), [64, 64, 64, 68, 512]);
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        assert_eq!([0, 1, 64].map(threads), [cpus, 1, 64]);
        assert_eq!(threads(usize::MAX), most_threads(cpus));
    }
}
