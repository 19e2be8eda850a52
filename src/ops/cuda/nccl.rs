//! NCCL as a carrier of bytes between GPUs: send and receive, nothing else.
//!
//! Its reductions are never used: their order depends on ring, protocol and message size. NCCL moves bytes;
//! every addition is done by our kernels. The functions are looked up here, because `cudarc`'s loader knows
//! neither Python's wheels nor the name `libnccl.so.2`, and because a result code that a later version adds
//! must not be taken for a value of an enum.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::{Arc, OnceLock};

use libloading::os::unix::Library as Handle;

use super::Cuda;
use super::driver::Gpu;
use super::libraries::{self, Library};
use super::memory::Buf;
use crate::ops::{DeviceError, Region, Result};

/// The identifier of a group: rank 0 makes it, all must know it.
pub const ID_BYTES: usize = 128;

#[derive(Clone, Copy)]
#[repr(C)]
struct UniqueId([u8; ID_BYTES]);

type Comm = *mut c_void;
type RawStream = *mut c_void;

/// `ncclInt8`: the unit in which everything is counted.
const BYTE: c_int = 0;

/// The functions of the library in use.
struct Api {
    get_version: unsafe extern "C" fn(*mut c_int) -> c_int,
    get_unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    comm_init_rank: unsafe extern "C" fn(*mut Comm, c_int, UniqueId, c_int) -> c_int,
    comm_abort: unsafe extern "C" fn(Comm) -> c_int,
    group_start: unsafe extern "C" fn() -> c_int,
    group_end: unsafe extern "C" fn() -> c_int,
    send: unsafe extern "C" fn(*const c_void, usize, c_int, c_int, Comm, RawStream) -> c_int,
    recv: unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, Comm, RawStream) -> c_int,
    get_error_string: unsafe extern "C" fn(c_int) -> *const c_char,
}

fn api() -> Result<&'static Api> {
    static API: OnceLock<Result<Api, String>> = OnceLock::new();
    let load = || {
        let path = libraries::load(Library::Nccl).map_err(|missing| missing.to_string())?.path;
        // SAFETY: NVIDIA's own library, which `libraries::load` has loaded already.
        let handle = unsafe { Handle::new(&path) }.map_err(|e| format!("{}: {e}", path.display()))?;
        macro_rules! symbol {
            ($name:literal) => {
                // SAFETY: the types above are those of `nccl.h`, unchanged since version 2.7.
                *unsafe { handle.get(concat!($name, "\0").as_bytes()) }
                    .map_err(|e| format!("{}: {e}", path.display()))?
            };
        }
        let api = Api {
            get_version: symbol!("ncclGetVersion"),
            get_unique_id: symbol!("ncclGetUniqueId"),
            comm_init_rank: symbol!("ncclCommInitRank"),
            comm_abort: symbol!("ncclCommAbort"),
            group_start: symbol!("ncclGroupStart"),
            group_end: symbol!("ncclGroupEnd"),
            send: symbol!("ncclSend"),
            recv: symbol!("ncclRecv"),
            get_error_string: symbol!("ncclGetErrorString"),
        };
        // The functions live as long as the process.
        std::mem::forget(handle);
        Ok(api)
    };
    API.get_or_init(load)
        .as_ref()
        .map_err(|why| DeviceError::Unavailable(format!("NCCL cannot be used: {why}")))
}

impl Api {
    fn check(&self, gpu: &Gpu, operation: &'static str, code: c_int) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the function gives a static string for every code.
        let text = unsafe { CStr::from_ptr((self.get_error_string)(code)) }.to_string_lossy().into_owned();
        Err(gpu.refuse(
            operation,
            format!("NCCL says: {text} (code {code})\n  hint: NCCL_DEBUG=WARN tells more"),
        ))
    }
}

/// Version of the library: 22703 is 2.27.3.
pub fn version() -> Result<u32> {
    let mut version = 0;
    // SAFETY: the pointer is valid for one number.
    let code = unsafe { (api()?.get_version)(&mut version) };
    if code == 0 {
        Ok(version.unsigned_abs())
    } else {
        Err(DeviceError::Unavailable(format!("NCCL does not report its version: code {code}")))
    }
}

/// A fresh identifier for a group: rank 0's, to be given to all.
pub fn unique_id() -> Result<[u8; ID_BYTES]> {
    let mut id = UniqueId([0; ID_BYTES]);
    // SAFETY: the pointer is valid for an identifier.
    let code = unsafe { (api()?.get_unique_id)(&mut id) };
    if code == 0 {
        Ok(id.0)
    } else {
        Err(DeviceError::Unavailable(format!("NCCL gives no identifier: code {code}")))
    }
}

/// This GPU's place in a group of GPUs.
pub struct NcclGroup {
    comm: Comm,
    gpu: Arc<Gpu>,
    api: &'static Api,
}

// SAFETY: a communicator may be used from any thread, by one at a time, which `&mut Cuda` sees to.
unsafe impl Send for NcclGroup {}

impl Drop for NcclGroup {
    /// Aborts what is still under way: it would wait without end for a rank that is gone.
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            // SAFETY: the communicator is live, and is not used any more.
            unsafe { (self.api.comm_abort)(self.comm) };
        }
    }
}

impl Cuda {
    /// Joins a group of `size` GPUs as number `rank`, and swaps a byte with each of `peers`, so that every
    /// connection is open and its memory allocated before the first step. All ranks call it.
    pub fn join_group(
        &mut self,
        id: [u8; ID_BYTES],
        rank: usize,
        size: usize,
        peers: &[usize],
    ) -> Result<NcclGroup> {
        const OP: &str = "ncclCommInitRank";
        let api = api()?;
        let gpu = Arc::clone(&self.kernels.gpu);
        gpu.bind()?;
        let mut comm: Comm = std::ptr::null_mut();
        // SAFETY: the pointer is valid, and this thread's context is the GPU's.
        let code = unsafe { (api.comm_init_rank)(&mut comm, size as c_int, UniqueId(id), rank as c_int) };
        api.check(&gpu, OP, code)?;
        let group = NcclGroup { comm, gpu, api };
        let mut bytes = self.memory.buffer("a first exchange", crate::ops::Dtype::F32, 2)?;
        for &peer in peers {
            let region = |at| Region { buf: 0, at, len: 4 };
            self.swap_regions(&group, peer, OP, &mut [&mut bytes], &[region(0)], &[region(4)])?;
        }
        self.kernels.gpu.synchronize(OP)?;
        Ok(group)
    }

    /// Gives the regions `gives` of `bufs` to `peer` and fills `takes` with what it gives. One piece of work
    /// on the stream: returns before it is done. The peer's regions have the same lengths in the same order.
    pub fn swap_regions(
        &mut self,
        group: &NcclGroup,
        peer: usize,
        operation: &'static str,
        bufs: &mut [&mut Buf],
        gives: &[Region],
        takes: &[Region],
    ) -> Result<()> {
        let NcclGroup { comm, gpu, api } = group;
        gpu.bind()?;
        let address = |region: &Region| -> Result<u64> {
            let buf = &bufs[region.buf];
            let fits = (region.at + region.len) as u64 <= buf.bytes();
            self.kernels
                .check(operation, fits, || format!("{region:?} of a tensor of {} bytes", buf.bytes()))?;
            Ok(buf.address() + region.at as u64)
        };
        let gives: Vec<(u64, usize)> =
            gives.iter().map(|region| Ok((address(region)?, region.len))).collect::<Result<_>>()?;
        let takes: Vec<(u64, usize)> =
            takes.iter().map(|region| Ok((address(region)?, region.len))).collect::<Result<_>>()?;
        let (peer, stream) = (peer as c_int, gpu.stream().cast());
        // SAFETY: every region lies in live memory of this GPU, which stays alive as long as the stream works
        // on it, as for any kernel; the group's calls are made by this thread alone.
        unsafe {
            api.check(gpu, operation, (api.group_start)())?;
            for (address, len) in gives {
                api.check(
                    gpu,
                    operation,
                    (api.send)(address as *const c_void, len, BYTE, peer, *comm, stream),
                )?;
            }
            for (address, len) in takes {
                api.check(
                    gpu,
                    operation,
                    (api.recv)(address as *mut c_void, len, BYTE, peer, *comm, stream),
                )?;
            }
            api.check(gpu, operation, (api.group_end)())
        }
    }
}
