//! Device memory, and the pinned host memory through which data comes and goes.
//!
//! The driver hands out memory in pieces of 2 MiB and takes time for each, so small buffers share
//! slabs. A slab is given back when the last buffer in it is dropped.

use std::sync::Arc;

use rayon::prelude::*;

use super::driver::{Gpu, GpuEvent};
use crate::ops::{DeviceError, Dtype, Result};

/// Buffers from this size on have a slab of their own.
const LARGE: u64 = 8 << 20;
/// The slab that smaller buffers share: large enough that the unused end costs little.
const SLAB: u64 = 64 << 20;
/// Every buffer starts at a multiple of this: the widest access of any kernel, with room to spare.
const ALIGNMENT: u64 = 256;
/// The driver rounds allocations to a multiple of this.
const PAGE: u64 = 2 << 20;

/// One allocation of the driver's.
struct Slab {
    address: u64,
    bytes: u64,
    gpu: Arc<Gpu>,
}

impl Drop for Slab {
    fn drop(&mut self) {
        // SAFETY: the address came from `allocate`, and every buffer in this slab held it alive.
        unsafe { self.gpu.release(self.address) }
    }
}

/// A piece of device memory, or of pinned host memory under the address that the device knows it by.
pub struct Allocation {
    address: u64,
    bytes: u64,
    _owner: Owner,
}

/// The allocation that keeps a piece of memory alive.
enum Owner {
    Slab(#[expect(dead_code, reason = "kept alive, not looked at")] Arc<Slab>),
    Pinned(#[expect(dead_code, reason = "kept alive, not looked at")] Pinned),
}

impl Allocation {
    pub fn address(&self) -> u64 {
        self.address
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// A dense float tensor on the GPU.
pub struct Buf {
    allocation: Allocation,
    len: usize,
    dtype: Dtype,
}

impl Buf {
    pub fn address(&self) -> u64 {
        self.allocation.address
    }

    #[expect(
        clippy::len_without_is_empty,
        reason = "the number of elements; no caller asks whether a tensor is empty"
    )]
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    pub fn bytes(&self) -> u64 {
        self.len as u64 * self.dtype.size() as u64
    }
}

/// Token ids on the GPU.
pub struct CudaIds {
    allocation: Allocation,
    len: usize,
}

impl CudaIds {
    pub fn address(&self) -> u64 {
        self.allocation.address
    }

    #[expect(clippy::len_without_is_empty, reason = "the room for ids; no caller asks whether it is empty")]
    pub fn len(&self) -> usize {
        self.len
    }
}

/// Hands out device memory.
pub struct Memory {
    gpu: Arc<Gpu>,
    /// The slab that small buffers come from, and how much of it is taken.
    open: Option<(Arc<Slab>, u64)>,
    taken_bytes: u64,
}

impl Memory {
    pub fn new(gpu: Arc<Gpu>) -> Memory {
        Memory { gpu, open: None, taken_bytes: 0 }
    }

    /// Bytes taken from the driver so far, rounded as the driver rounds; what was given back counts too.
    pub fn taken_bytes(&self) -> u64 {
        self.taken_bytes
    }

    /// Refuses when `bytes` are more than the device has free.
    pub fn check_free(&self, what: &str, bytes: u64) -> Result<()> {
        let free_bytes = self.gpu.free_bytes()?;
        if bytes > free_bytes { Err(self.out_of_memory(what, bytes, free_bytes)) } else { Ok(()) }
    }

    pub fn buffer(&mut self, what: &str, dtype: Dtype, len: usize) -> Result<Buf> {
        let allocation = self.allocate(what, len as u64 * dtype.size() as u64)?;
        Ok(Buf { allocation, len, dtype })
    }

    /// An fp32 tensor in pinned host memory. Its content is not defined before it is written.
    pub fn host_buffer(&mut self, len: usize) -> Result<Buf> {
        let bytes = len * Dtype::F32.size();
        let pinned = Pinned::unwritten(&self.gpu, bytes.max(1))?;
        // One address for host and device: unified addressing, which every GPU of ours has.
        let allocation =
            Allocation { address: pinned.pointer as u64, bytes: bytes as u64, _owner: Owner::Pinned(pinned) };
        Ok(Buf { allocation, len, dtype: Dtype::F32 })
    }

    pub fn ids(&mut self, len: usize) -> Result<CudaIds> {
        let allocation = self.allocate("token ids", len as u64 * 2)?;
        Ok(CudaIds { allocation, len })
    }

    /// `bytes` of zeroed memory.
    pub fn allocate(&mut self, what: &str, bytes: u64) -> Result<Allocation> {
        let size = rounded(bytes);
        let (slab, offset) = match &mut self.open {
            Some((slab, taken)) if *taken + size <= slab.bytes => {
                let offset = *taken;
                *taken += size;
                (Arc::clone(slab), offset)
            }
            _ if size >= LARGE => (self.slab(what, size.next_multiple_of(PAGE))?, 0),
            _ => {
                let slab = self.slab(what, SLAB)?;
                self.open = Some((Arc::clone(&slab), size));
                (slab, 0)
            }
        };
        let address = slab.address + offset;
        // SAFETY: the range was cut from a live slab and is handed out once.
        unsafe { self.gpu.zero(address, size, "alloc") }?;
        Ok(Allocation { address, bytes, _owner: Owner::Slab(slab) })
    }

    fn slab(&mut self, what: &str, bytes: u64) -> Result<Arc<Slab>> {
        match self.gpu.allocate(bytes)? {
            Some(address) => {
                self.taken_bytes += bytes;
                Ok(Arc::new(Slab { address, bytes, gpu: Arc::clone(&self.gpu) }))
            }
            None => Err(self.out_of_memory(what, bytes, self.gpu.free_bytes()?)),
        }
    }

    fn out_of_memory(&self, what: &str, need_bytes: u64, free_bytes: u64) -> DeviceError {
        let device = format!("{} ({} MiB in all)", self.gpu.info.name, self.gpu.info.total_bytes >> 20);
        DeviceError::OutOfMemory { device, what: what.to_owned(), need_bytes, free_bytes }
    }
}

/// Bytes that a buffer of `bytes` takes of a slab. The kernels may read a vector past the last element of a
/// row, never past this.
fn rounded(bytes: u64) -> u64 {
    bytes.max(1).next_multiple_of(ALIGNMENT)
}

/// Device memory that [`Memory`] takes for buffers of these sizes, in this order.
pub fn taken_bytes(sizes: &[u64]) -> u64 {
    let (mut taken, mut open) = (0u64, None);
    for size in sizes.iter().map(|bytes| rounded(*bytes)) {
        match &mut open {
            Some(used) if *used + size <= SLAB => *used += size,
            _ if size >= LARGE => taken = taken.saturating_add(size.next_multiple_of(PAGE)),
            _ => {
                taken = taken.saturating_add(SLAB);
                open = Some(size);
            }
        }
    }
    taken
}

/// Page-locked host memory, which the GPU reads and writes by itself.
struct Pinned {
    pointer: *mut u8,
    bytes: usize,
    gpu: Arc<Gpu>,
}

// SAFETY: the memory belongs to this value alone and may be used from any thread.
unsafe impl Send for Pinned {}

impl Pinned {
    fn new(gpu: &Arc<Gpu>, bytes: usize) -> Result<Pinned> {
        let pinned = Pinned::unwritten(gpu, bytes)?;
        // SAFETY: the memory is `bytes` long; it is zeroed so that reading it is defined.
        unsafe { pinned.pointer.write_bytes(0, bytes) };
        Ok(pinned)
    }

    /// Pinned memory that the host must not read before it is written.
    fn unwritten(gpu: &Arc<Gpu>, bytes: usize) -> Result<Pinned> {
        gpu.bind()?;
        // SAFETY: freed once, in `drop`.
        let pointer = unsafe { cudarc::driver::result::malloc_host(bytes, 0) }
            .map_err(|e| gpu.fail("cuMemHostAlloc", e))?;
        Ok(Pinned { pointer: pointer.cast(), bytes, gpu: Arc::clone(gpu) })
    }

    fn as_slice(&self) -> &[u8] {
        // SAFETY: the memory is live, initialised, and borrowed as long as `self`; callers wait for copies
        // into it before they read.
        unsafe { std::slice::from_raw_parts(self.pointer, self.bytes) }
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed mutably; callers wait for copies out of it first.
        unsafe { std::slice::from_raw_parts_mut(self.pointer, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Copies that are still under way read or write this memory.
        if self.gpu.synchronize("cuMemFreeHost").is_ok() {
            // SAFETY: allocated in `unwritten`, freed here alone.
            let _ = unsafe { cudarc::driver::result::free_host(self.pointer.cast()) };
        }
    }
}

/// A pinned buffer and the end of the last copy out of it.
struct PinnedSlot {
    pinned: Pinned,
    free: GpuEvent,
}

/// Copies into memory that the kernel may not have mapped yet: one thread would spend its time in page
/// faults.
pub fn copy_by_all_threads(to: &mut [u8], from: &[u8]) {
    const PART: usize = 1 << 20;
    to.par_chunks_mut(PART).zip(from.par_chunks(PART)).for_each(|(to, from)| to.copy_from_slice(from));
}

/// Copies between host and device.
///
/// Uploads rotate through slots, so that the host fills one while the GPU reads the others and
/// waits only when it is a full round ahead.
pub struct Staging {
    gpu: Arc<Gpu>,
    /// For tensors: large pieces.
    large: Vec<PinnedSlot>,
    /// For token ids and tables: small, and many in flight.
    small: Vec<PinnedSlot>,
    next_large: usize,
    next_small: usize,
}

const LARGE_BYTES: usize = 16 << 20;
const SMALL_BYTES: usize = 256 << 10;
const LARGE_SLOTS: usize = 2;
const SMALL_SLOTS: usize = 8;
/// Pinned host memory of one [`Staging`].
pub const PINNED_BYTES: u64 = (LARGE_SLOTS * LARGE_BYTES + SMALL_SLOTS * SMALL_BYTES) as u64;

impl Staging {
    pub fn new(gpu: &Arc<Gpu>) -> Result<Staging> {
        let slots = |count: usize, bytes| {
            (0..count)
                .map(|_| Ok(PinnedSlot { pinned: Pinned::new(gpu, bytes)?, free: GpuEvent::new(gpu)? }))
                .collect::<Result<Vec<_>>>()
        };
        Ok(Staging {
            gpu: Arc::clone(gpu),
            large: slots(LARGE_SLOTS, LARGE_BYTES)?,
            small: slots(SMALL_SLOTS, SMALL_BYTES)?,
            next_large: 0,
            next_small: 0,
        })
    }

    /// Copies `len` bytes to `address`; `fill(at, piece)` writes the bytes from `at` on into each piece.
    /// Returns before the copy is done; the source is free at once.
    ///
    /// # Safety
    /// `address..address + len` lies in live device memory.
    pub unsafe fn upload(
        &mut self,
        address: u64,
        len: u64,
        operation: &'static str,
        mut fill: impl FnMut(usize, &mut [u8]),
    ) -> Result<()> {
        let mut at = 0;
        while at < len {
            let small = len <= SMALL_BYTES as u64;
            let (slots, next) = if small {
                (&mut self.small, &mut self.next_small)
            } else {
                (&mut self.large, &mut self.next_large)
            };
            let count = slots.len();
            let slot = &mut slots[*next];
            *next = (*next + 1) % count;
            slot.free.wait()?;
            let piece = (len - at).min(slot.pinned.bytes as u64);
            fill(at as usize, &mut slot.pinned.as_mut_slice()[..piece as usize]);
            // SAFETY: the slot is not touched before its event says that the copy is done; the
            // target is the caller's promise.
            unsafe { self.gpu.copy_to_device(address + at, slot.pinned.pointer, piece, operation) }?;
            slot.free.record()?;
            at += piece;
        }
        Ok(())
    }

    /// Copies `len` bytes from `address`; `take(at, piece)` receives them in order. Waits for the device.
    ///
    /// # Safety
    /// `address..address + len` lies in live device memory.
    pub unsafe fn download(
        &mut self,
        address: u64,
        len: u64,
        operation: &'static str,
        mut take: impl FnMut(usize, &[u8]),
    ) -> Result<()> {
        if len == 0 {
            return self.gpu.synchronize(operation);
        }
        let slots = self.large.len();
        let pieces = len.div_ceil(LARGE_BYTES as u64);
        let size = |piece: u64| (len - piece * LARGE_BYTES as u64).min(LARGE_BYTES as u64);
        // One copy runs ahead of the piece that is being taken.
        for step in 0..=pieces {
            if step < pieces {
                let slot = &mut self.large[step as usize % slots];
                slot.free.wait()?;
                // SAFETY: as in `upload`; the slot is read only after its event.
                unsafe {
                    self.gpu.copy_to_host(
                        slot.pinned.pointer,
                        address + step * LARGE_BYTES as u64,
                        size(step),
                        operation,
                    )
                }?;
                slot.free.record()?;
            }
            if step > 0 {
                let piece = step - 1;
                let slot = &mut self.large[piece as usize % slots];
                slot.free.wait()?;
                take((piece * LARGE_BYTES as u64) as usize, &slot.pinned.as_slice()[..size(piece) as usize]);
            }
        }
        Ok(())
    }
}
