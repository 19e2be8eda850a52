//! One GPU: its context, its streams, and the driver calls that everything else is built on.
//!
//! All work of a device goes to one non-blocking stream, so operations run in the order of the calls and need
//! no events between them; `lanes` sends some of it to a second stream, and orders the two. `cudarc`'s safe
//! layer is not used: it tracks every buffer with events, which costs two events an operation and forbids
//! graphs.

use std::cell::Cell;
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::{result, sys};

use super::libraries::{self, Library};
use crate::ops::{DeviceError, Result};

/// The oldest driver whose entry points are all here: CUDA 12.8.
const OLDEST_DRIVER: i32 = 12_080;

/// The properties of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuInfo {
    pub ordinal: usize,
    pub name: String,
    pub uuid: String,
    /// Compute capability, as in `sm_90`.
    pub major: u32,
    pub minor: u32,
    pub sm_count: u32,
    pub l2_bytes: u64,
    pub total_bytes: u64,
    /// Peak of the memory, bytes a second: both edges of its clock times the width of its bus. 0 where the
    /// driver does not tell.
    pub memory_bytes_per_s: u64,
    /// The most shared memory that one block may take.
    pub shared_bytes_per_block: u32,
}

impl GpuInfo {
    /// The target for the kernels' machine code. Hopper and Blackwell have instructions that only
    /// the architecture-specific target (`a`) offers.
    pub fn architecture(&self) -> String {
        let suffix = if self.major >= 9 && self.major != 12 { "a" } else { "" };
        format!("sm_{}{}{suffix}", self.major, self.minor)
    }

    /// Dense bf16 peak in FLOP/s from the vendor's data sheet, when this GPU is known.
    pub fn peak_bf16_flops(&self) -> Option<f64> {
        peak_bf16_flops(&self.name)
    }

    /// Dense bf16 peak in FLOP/s while the multiprocessors run at `mhz`: what their tensor cores do in a
    /// clock by the vendor's white papers, and no more than the data sheet says.
    pub fn bf16_flops_at(&self, mhz: f64) -> Option<f64> {
        let of_clock = match (self.major, self.minor) {
            (8, 0) => 2048.0,
            (8, 9) => 1024.0,
            (9, 0) => 4096.0,
            (10, 0) => 8192.0,
            _ => return None,
        };
        let peak = of_clock * f64::from(self.sm_count) * mhz * 1e6;
        Some(self.peak_bf16_flops().map_or(peak, |sheet| peak.min(sheet)))
    }
}

/// Dense bf16 tensor peak in FLOP/s by the name that the driver gives. The first match counts, so
/// longer names stand before their prefixes.
pub fn peak_bf16_flops(name: &str) -> Option<f64> {
    const PEAKS: &[(&str, f64)] = &[
        ("GB300", 2500e12),
        ("B300", 2500e12),
        ("GB200", 2500e12),
        ("B200", 2250e12),
        ("B100", 1750e12),
        ("GH200", 989e12),
        ("H200 NVL", 836e12),
        ("H200", 989e12),
        ("H100 PCIe", 756e12),
        ("H100 NVL", 835e12),
        ("H100", 989e12),
        ("H800", 989e12),
        ("H20", 148e12),
        ("A100", 312e12),
        ("A800", 312e12),
        ("A40", 149.7e12),
        ("A30", 165e12),
        ("A10G", 70e12),
        ("A10", 125e12),
        ("L40S", 362e12),
        ("L40", 181e12),
        ("L4", 121e12),
        ("RTX 6000 Ada", 364e12),
        ("RTX A6000", 154.8e12),
        ("RTX 5090", 209.5e12),
        ("RTX 4090", 165.2e12),
        ("RTX 4080", 97.5e12),
        ("RTX 3090", 71e12),
    ];
    // Whole words: `A10` must not match `A100`.
    let words = |text: &str| text.split([' ', '-']).map(str::to_owned).collect::<Vec<_>>();
    let name = words(name);
    PEAKS
        .iter()
        .find(|(key, _)| name.windows(words(key).len()).any(|run| run == words(key)))
        .map(|(_, peak)| *peak)
}

/// A GPU in use. Dropping the last handle gives the streams back; the context is the process's primary
/// one and stays, since any thread may still have it current.
pub struct Gpu {
    pub info: GpuInfo,
    context: sys::CUcontext,
    main: sys::CUstream,
    /// The side lane.
    side: sys::CUstream,
    /// Whether work goes to the side lane.
    aside: AtomicBool,
}

// SAFETY: a context and its streams are handles that the driver allows any thread to use; `bind` makes
// the context current on the calling thread first, and the driver locks its own structures.
unsafe impl Send for Gpu {}
// SAFETY: as above; no method hands out a mutable reference into the handle.
unsafe impl Sync for Gpu {}

impl Gpu {
    /// Opens GPU number `ordinal`, or says why it cannot.
    pub fn open(ordinal: usize) -> Result<Arc<Gpu>> {
        let info = gpus()?
            .into_iter()
            .nth(ordinal)
            .ok_or_else(|| DeviceError::Unavailable(format!("there is no GPU number {ordinal}")))?;
        let fail = |operation, e| failed(&info.name, operation, e);
        let device = result::device::get(ordinal as i32).map_err(|e| fail("cuDeviceGet", e))?;
        // SAFETY: `device` is a device that the driver has just named.
        let context = unsafe { result::primary_ctx::retain(device) }
            .map_err(|e| fail("cuDevicePrimaryCtxRetain", e))?;
        // SAFETY: `context` was retained in the line before.
        unsafe { result::ctx::set_current(context) }.map_err(|e| fail("cuCtxSetCurrent", e))?;
        let main = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(|e| fail("cuStreamCreate", e))?;
        let side = urgent_stream().map_err(|e| fail("cuStreamCreateWithPriority", e))?;
        Ok(Arc::new(Gpu { info, context, main, side, aside: AtomicBool::new(false) }))
    }

    /// Makes this device current on the calling thread, unless it is.
    pub fn bind(&self) -> Result<()> {
        thread_local!(static CURRENT: Cell<sys::CUcontext> = const { Cell::new(std::ptr::null_mut()) });
        if CURRENT.get() != self.context {
            // SAFETY: the context lives as long as `self`.
            unsafe { result::ctx::set_current(self.context) }.map_err(|e| self.fail("cuCtxSetCurrent", e))?;
            CURRENT.set(self.context);
        }
        Ok(())
    }

    /// The stream of the lane to which work goes now.
    pub fn stream(&self) -> sys::CUstream {
        if self.aside.load(Ordering::Relaxed) { self.side } else { self.main }
    }

    /// Chooses the lane to which work goes.
    pub(super) fn set_aside(&self, aside: bool) {
        self.aside.store(aside, Ordering::Relaxed);
    }

    /// The error of `operation` on this device.
    pub fn fail(&self, operation: &'static str, error: result::DriverError) -> DeviceError {
        failed(&self.info.name, operation, error)
    }

    /// An error of our own making: a shape or a length that an operation refuses.
    pub fn refuse(&self, operation: &'static str, message: impl Into<String>) -> DeviceError {
        DeviceError::Failed { device: self.info.name.clone(), operation, message: message.into() }
    }

    /// Bytes free on the device now; other processes share the same memory.
    pub fn free_bytes(&self) -> Result<u64> {
        self.bind()?;
        result::mem_get_info().map(|(free, _)| free as u64).map_err(|e| self.fail("cuMemGetInfo", e))
    }

    /// Waits for all work issued so far, on both lanes.
    pub fn synchronize(&self, operation: &'static str) -> Result<()> {
        self.bind()?;
        for stream in [self.main, self.side] {
            // SAFETY: the streams live as long as `self`.
            unsafe { result::stream::synchronize(stream) }.map_err(|e| self.fail(operation, e))?;
        }
        Ok(())
    }

    /// `bytes` of uninitialised device memory at a multiple of 256 bytes.
    ///
    /// `None` when the device has too little.
    pub fn allocate(&self, bytes: u64) -> Result<Option<u64>> {
        self.bind()?;
        // SAFETY: the address is handed to a `Slab`, which frees it once and after all its users.
        match unsafe { result::malloc_sync(bytes as usize) } {
            Ok(address) => Ok(Some(address)),
            Err(result::DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Ok(None),
            Err(e) => Err(self.fail("cuMemAlloc", e)),
        }
    }

    /// Gives memory of [`Gpu::allocate`] back; waits for work that uses it.
    ///
    /// # Safety
    /// `address` came from `allocate` of this device, was not freed, and nothing refers to it.
    pub unsafe fn release(&self, address: u64) {
        if self.synchronize("cuMemFree").is_ok() {
            // SAFETY: the caller's promise. A failure is ignored: the process is ending or the
            // context is already lost.
            let _ = unsafe { result::free_sync(address) };
        }
    }

    /// Sets `bytes` bytes to zero, in stream order.
    ///
    /// # Safety
    /// `address..address + bytes` lies in live device memory.
    pub unsafe fn zero(&self, address: u64, bytes: u64, operation: &'static str) -> Result<()> {
        self.bind()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { result::memset_d8_async(address, 0, bytes as usize, self.stream()) }
            .map_err(|e| self.fail(operation, e))
    }

    /// Copies between addresses of the device or of pinned host memory, in stream order.
    ///
    /// # Safety
    /// Both ranges lie in live memory and do not overlap.
    pub unsafe fn copy(&self, to: u64, from: u64, bytes: u64, operation: &'static str) -> Result<()> {
        self.bind()?;
        // SAFETY: the caller's promise.
        unsafe { sys::cuMemcpyAsync(to, from, bytes as usize, self.stream()) }
            .result()
            .map_err(|e| self.fail(operation, e))
    }

    /// Starts a copy to the device.
    ///
    /// # Safety
    /// `from` is pinned and stays as it is until the copy is done; `to` is live device memory.
    pub unsafe fn copy_to_device(
        &self,
        to: u64,
        from: *const u8,
        bytes: u64,
        operation: &'static str,
    ) -> Result<()> {
        self.bind()?;
        // SAFETY: the caller's promise.
        unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.cast::<c_void>(), bytes as usize, self.stream()) }
            .result()
            .map_err(|e| self.fail(operation, e))
    }

    /// Starts a copy from the device.
    ///
    /// # Safety
    /// `to` is pinned and untouched until the copy is done; `from` is live device memory.
    pub unsafe fn copy_to_host(
        &self,
        to: *mut u8,
        from: u64,
        bytes: u64,
        operation: &'static str,
    ) -> Result<()> {
        self.bind()?;
        // SAFETY: the caller's promise.
        unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast::<c_void>(), from, bytes as usize, self.stream()) }
            .result()
            .map_err(|e| self.fail(operation, e))
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if self.bind().is_ok() {
            for stream in [self.main, self.side] {
                // SAFETY: the streams were made by `open` and are not used after this.
                let _ = unsafe { result::stream::destroy(stream) };
            }
        }
    }
}

/// A stream of the highest priority: small copies and sums beside large products.
fn urgent_stream() -> Result<sys::CUstream, result::DriverError> {
    let (mut least, mut most, mut stream) = (0, 0, std::ptr::null_mut());
    let kind = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
    // SAFETY: the pointers are to live variables, and a context is current.
    unsafe {
        sys::cuCtxGetStreamPriorityRange(&raw mut least, &raw mut most).result()?;
        sys::cuStreamCreateWithPriority(&raw mut stream, kind, most).result()?;
    }
    Ok(stream)
}

/// A point in a stream that the host can wait for and measure from, and the other lane can wait for.
pub struct GpuEvent {
    event: sys::CUevent,
    gpu: Arc<Gpu>,
}

// SAFETY: an event is a handle that the driver lets any thread use.
unsafe impl Send for GpuEvent {}

impl GpuEvent {
    pub fn new(gpu: &Arc<Gpu>) -> Result<GpuEvent> {
        gpu.bind()?;
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)
            .map_err(|e| gpu.fail("cuEventCreate", e))?;
        Ok(GpuEvent { event, gpu: Arc::clone(gpu) })
    }

    /// Marks the end of the work issued so far on the lane in use.
    pub fn record(&self) -> Result<()> {
        self.gpu.bind()?;
        // SAFETY: event and stream are live.
        unsafe { result::event::record(self.event, self.gpu.stream()) }
            .map_err(|e| self.gpu.fail("cuEventRecord", e))
    }

    /// Makes the lane in use wait for the mark; the host does not wait.
    pub fn hold(&self) -> Result<()> {
        self.gpu.bind()?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: event and stream are live.
        unsafe { result::stream::wait_event(self.gpu.stream(), self.event, flags) }
            .map_err(|e| self.gpu.fail("cuStreamWaitEvent", e))
    }

    /// Waits until the work before the mark is done; at once when nothing was marked.
    pub fn wait(&self) -> Result<()> {
        self.gpu.bind()?;
        // SAFETY: the event is live.
        unsafe { result::event::synchronize(self.event) }.map_err(|e| self.gpu.fail("cuEventSynchronize", e))
    }

    /// Milliseconds on the device from `earlier` to this mark; waits for this one.
    pub fn ms_since(&self, earlier: &GpuEvent) -> Result<f32> {
        self.wait()?;
        // SAFETY: both events are live and were recorded on the same stream.
        unsafe { result::event::elapsed(earlier.event, self.event) }
            .map_err(|e| self.gpu.fail("cuEventElapsedTime", e))
    }
}

impl Drop for GpuEvent {
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            // SAFETY: the event is live and not used after this.
            let _ = unsafe { result::event::destroy(self.event) };
        }
    }
}

/// The driver's version as CUDA counts it: 13000 is 13.0. Loads the driver.
pub fn driver_version() -> Result<i32> {
    libraries::require(Library::Driver)?;
    let mut version = 0;
    // SAFETY: the pointer is to a live integer, and the driver is loaded.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().map_err(|e| {
        DeviceError::Unavailable(format!("the NVIDIA driver does not answer: {}", describe(e)))
    })?;
    Ok(version)
}

/// All GPUs that the driver shows.
pub fn gpus() -> Result<Vec<GpuInfo>> {
    let version = driver_version()?;
    if version < OLDEST_DRIVER {
        return Err(DeviceError::Unavailable(format!(
            "the NVIDIA driver is too old: it supports CUDA {}.{}, at least 12.8 is needed\n  hint: install \
             driver 570 or newer",
            version / 1000,
            version % 1000 / 10
        )));
    }
    let unavailable =
        |e| DeviceError::Unavailable(format!("the NVIDIA driver shows no usable GPU: {}", describe(e)));
    result::init().map_err(unavailable)?;
    let count = result::device::get_count().map_err(unavailable)?;
    if count == 0 {
        return Err(DeviceError::Unavailable(
            "the NVIDIA driver shows no GPU\n  hint: is CUDA_VISIBLE_DEVICES set?".into(),
        ));
    }
    (0..count).map(|ordinal| describe_gpu(ordinal).map_err(unavailable)).collect()
}

fn describe_gpu(ordinal: i32) -> Result<GpuInfo, result::DriverError> {
    use sys::CUdevice_attribute as Attribute;
    let device = result::device::get(ordinal)?;
    // SAFETY: `device` is a device that the driver has just named.
    let attribute =
        |which| unsafe { result::device::get_attribute(device, which) }.map(|value| value.max(0) as u32);
    let uuid = result::device::get_uuid(device)?.bytes.map(|byte| byte as u8);
    Ok(GpuInfo {
        ordinal: ordinal as usize,
        name: result::device::get_name(device)?,
        uuid: format!("GPU-{}", hex::encode(uuid)),
        major: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        minor: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        sm_count: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        l2_bytes: u64::from(attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?),
        // SAFETY: as above.
        total_bytes: unsafe { result::device::total_mem(device) }? as u64,
        memory_bytes_per_s: 1000 / 4 // kHz, and two edges of so many bits
            * u64::from(attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE).unwrap_or(0))
            * u64::from(attribute(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH).unwrap_or(0)),
        shared_bytes_per_block: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
    })
}

fn failed(device: &str, operation: &'static str, error: result::DriverError) -> DeviceError {
    let mut message = describe(error);
    // These errors come from earlier work and are reported by the next call, whichever that is.
    if (700..=719).contains(&(error.0 as u32)) {
        message.push_str(
            "\n  hint: an earlier operation may be the cause; with CUDA_LAUNCH_BLOCKING=1 it \
             reports the error itself",
        );
    }
    DeviceError::Failed { device: device.to_owned(), operation, message }
}

/// The driver's name and sentence for an error: `CUDA_ERROR_ILLEGAL_ADDRESS, an illegal memory access was
/// encountered`.
fn describe(error: result::DriverError) -> String {
    let text = |c: Result<&std::ffi::CStr, result::DriverError>| {
        c.map(|c| c.to_string_lossy().into_owned()).unwrap_or_default()
    };
    format!("{}, {}", text(error.error_name()), text(error.error_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_are_found_by_whole_words() {
        assert_eq!(peak_bf16_flops("NVIDIA H100 80GB HBM3"), Some(989e12));
        assert_eq!(peak_bf16_flops("NVIDIA H100 PCIe"), Some(756e12));
        assert_eq!(peak_bf16_flops("NVIDIA A100-SXM4-80GB"), Some(312e12));
        assert_eq!(peak_bf16_flops("NVIDIA A10"), Some(125e12));
        assert_eq!(peak_bf16_flops("NVIDIA GeForce RTX 4090"), Some(165.2e12));
        assert_eq!(peak_bf16_flops("NVIDIA L40S"), Some(362e12));
        assert_eq!(peak_bf16_flops("Some GPU of 2031"), None, "an unknown GPU has no peak, not a wrong one");
    }

    #[test]
    fn architectures_carry_their_suffix() {
        assert_eq!(gpu(8, 9).architecture(), "sm_89");
        assert_eq!(gpu(9, 0).architecture(), "sm_90a");
        assert_eq!(gpu(10, 0).architecture(), "sm_100a");
        assert_eq!(gpu(12, 0).architecture(), "sm_120");
    }

    #[test]
    fn the_peak_at_the_clock_of_the_data_sheet_is_the_data_sheets() {
        for (name, version, sm_count, mhz) in [
            ("NVIDIA H100 80GB HBM3", (9, 0), 132, 1830.0),
            ("NVIDIA A100-SXM4-80GB", (8, 0), 108, 1410.0),
            ("NVIDIA L40S", (8, 9), 142, 2490.0),
            ("NVIDIA B200", (10, 0), 148, 1855.0),
        ] {
            let gpu = GpuInfo { name: name.into(), sm_count, ..gpu(version.0, version.1) };
            let sheet = peak_bf16_flops(name).unwrap();
            let peak = gpu.bf16_flops_at(mhz).unwrap();
            assert!((peak / sheet - 1.0).abs() < 0.005, "{name}: {peak} beside {sheet}");
            assert_eq!(
                gpu.bf16_flops_at(mhz / 2.0).unwrap() * 2.0,
                gpu.bf16_flops_at(mhz / 4.0).unwrap() * 4.0
            );
            assert_eq!(gpu.bf16_flops_at(9999.0), Some(sheet));
        }
        assert_eq!(gpu(12, 0).bf16_flops_at(2000.0), None);
    }

    fn gpu(major: u32, minor: u32) -> GpuInfo {
        GpuInfo {
            ordinal: 0,
            name: String::new(),
            uuid: String::new(),
            major,
            minor,
            sm_count: 1,
            l2_bytes: 0,
            total_bytes: 0,
            memory_bytes_per_s: 0,
            shared_bytes_per_block: 0,
        }
    }
}
