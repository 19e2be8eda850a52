//! Loaded kernels, and the one place where a kernel is launched.

use std::collections::BTreeMap;
use std::ffi::{CString, c_void};
use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::args::{Kernel, KernelArgs, KernelInfo};
use super::compile::Cubin;
use super::driver::Gpu;
use super::memory::{Buf, CudaIds};
use crate::ops::{Dtype, Result};

/// Shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    pub grid: [u64; 3],
    pub block: u32,
    /// Dynamic shared memory in bytes.
    pub shared: u64,
}

impl Geometry {
    pub fn new(grid: u64, block: u32) -> Geometry {
        Geometry { grid: [grid, 1, 1], block, shared: 0 }
    }

    pub fn new2(x: u64, y: u64, block: u32) -> Geometry {
        Geometry { grid: [x, y, 1], block, shared: 0 }
    }
}

/// Shared memory that a kernel may use without raising its limit.
const PLAIN_SHARED: u64 = 48 << 10;

/// A GPU with its kernels: what a launch needs.
pub struct Kernels {
    pub gpu: Arc<Gpu>,
    /// Element type of weights and activations.
    pub act: Dtype,
    /// By file and name: two files may hold the same kernel for different machines.
    functions: BTreeMap<(&'static str, &'static str), sys::CUfunction>,
    modules: Vec<sys::CUmodule>,
    cubins: Vec<Cubin>,
}

// SAFETY: functions and modules are handles that the driver lets any thread use.
unsafe impl Send for Kernels {}

impl Kernels {
    pub fn new(gpu: Arc<Gpu>, act: Dtype) -> Kernels {
        Kernels { gpu, act, functions: BTreeMap::new(), modules: Vec::new(), cubins: Vec::new() }
    }

    /// The code in use.
    pub fn cubins(&self) -> &[Cubin] {
        &self.cubins
    }

    /// Loads `cubin`, and finds `kernels` in it under the names that `rename` gives them.
    pub fn load(&mut self, cubin: Cubin, kernels: &[KernelInfo]) -> Result<()> {
        self.gpu.bind()?;
        let gpu = Arc::clone(&self.gpu);
        // SAFETY: the image is a whole cubin, whose hash was checked if it came from a file.
        let module = unsafe { result::module::load_data(cubin.code.as_ptr().cast()) }
            .map_err(|e| gpu.fail("cuModuleLoadData", e))?;
        self.modules.push(module);
        for kernel in kernels {
            let name = CString::new(kernel.name).expect("kernel names hold no NUL");
            // SAFETY: the module is loaded and lives as long as `self`.
            let function = unsafe { result::module::get_function(module, name) }.map_err(|_| {
                gpu.refuse("cuModuleGetFunction", format!("`{}` has no kernel `{}`", cubin.file, kernel.name))
            })?;
            self.check_arguments(function, kernel)?;
            self.functions.insert((kernel.file, kernel.name), function);
        }
        self.cubins.push(cubin);
        Ok(())
    }

    /// The compiled kernel must take one argument of the binding's size.
    fn check_arguments(&self, function: sys::CUfunction, kernel: &KernelInfo) -> Result<()> {
        let (mut offset, mut bytes) = (0, 0);
        // SAFETY: the function is live, and both integers are.
        unsafe { sys::cuFuncGetParamInfo(function, 0, &raw mut offset, &raw mut bytes) }
            .result()
            .map_err(|e| self.gpu.fail("cuFuncGetParamInfo", e))?;
        if bytes != kernel.bytes {
            return Err(self.gpu.refuse(
                "cuFuncGetParamInfo",
                format!(
                    "`{}` takes {bytes} bytes of arguments, its binding has {}",
                    kernel.name, kernel.bytes
                ),
            ));
        }
        Ok(())
    }

    /// Starts a kernel in stream order. An empty grid starts nothing.
    ///
    /// # Safety
    /// Every pointer in `args` is null where the kernel allows it, or the address of live device memory
    /// as long as the kernel reads or writes for this geometry.
    pub unsafe fn launch<A: KernelArgs>(
        &self,
        operation: &'static str,
        kernel: &Kernel<A>,
        geometry: Geometry,
        args: &A,
    ) -> Result<()> {
        let Geometry { grid, block, shared } = geometry;
        if grid.contains(&0) {
            return Ok(());
        }
        let Some(&function) = self.functions.get(&(A::FILE, kernel.name)) else {
            return Err(self
                .gpu
                .refuse(operation, format!("the kernel `{}` of {} is not loaded", kernel.name, A::FILE)));
        };
        if grid[0] > i32::MAX as u64 || grid[1] > 65_535 || grid[2] > 65_535 || block > 1024 {
            return Err(self
                .gpu
                .refuse(operation, format!("a grid of {grid:?} by {block} threads is past CUDA's limits")));
        }
        if shared > u64::from(self.gpu.info.shared_bytes_per_block) {
            let most = self.gpu.info.shared_bytes_per_block;
            return Err(self.gpu.refuse(
                operation,
                format!("`{}` needs {shared} bytes of shared memory, a block has {most}", kernel.name),
            ));
        }
        self.gpu.bind()?;
        if shared > PLAIN_SHARED {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is live; the size is within the device's limit.
            unsafe { sys::cuFuncSetAttribute(function, attribute, shared as i32) }
                .result()
                .map_err(|e| self.gpu.fail(operation, e))?;
        }
        let [x, y, z] = grid.map(|n| n as u32);
        let mut parameters = [std::ptr::from_ref(args).cast_mut().cast::<c_void>()];
        // SAFETY: the argument's size was checked when the kernel was loaded, the driver copies it before it
        // returns, and its pointers are the caller's promise.
        unsafe {
            result::launch_kernel(
                function,
                (x, y, z),
                (block, 1, 1),
                shared as u32,
                self.gpu.stream(),
                &mut parameters,
            )
        }
        .map_err(|e| self.gpu.fail(operation, e))
    }

    // ---- checks that launches share ---------------------------------------------------------------

    /// The address of a tensor that must hold `len` elements of the type of weights and activations.
    pub fn act(&self, operation: &'static str, name: &str, buf: &Buf, len: usize) -> Result<u64> {
        self.tensor(operation, name, buf, len, self.act)
    }

    /// The address of a tensor that must hold `len` floats.
    pub fn f32(&self, operation: &'static str, name: &str, buf: &Buf, len: usize) -> Result<u64> {
        self.tensor(operation, name, buf, len, Dtype::F32)
    }

    /// The address of a list that must hold `len` ids.
    pub fn ids(&self, operation: &'static str, name: &str, ids: &CudaIds, len: usize) -> Result<u64> {
        self.check(operation, ids.len() >= len, || {
            format!("`{name}` holds {} ids, {len} are needed", ids.len())
        })?;
        Ok(ids.address())
    }

    fn tensor(
        &self,
        operation: &'static str,
        name: &str,
        buf: &Buf,
        len: usize,
        dtype: Dtype,
    ) -> Result<u64> {
        self.check(operation, buf.dtype() == dtype, || {
            format!("`{name}` is {}, expected {dtype}", buf.dtype())
        })?;
        self.check(operation, buf.len() >= len, || {
            format!("`{name}` has {} elements, {len} are needed", buf.len())
        })?;
        Ok(buf.address())
    }

    /// Rows are read and written eight elements at a time.
    pub fn row_length(&self, operation: &'static str, length: usize) -> Result<()> {
        self.check(operation, length.is_multiple_of(8) && length > 0, || {
            format!("a row of {length} elements is not a multiple of 8")
        })
    }

    pub fn check(
        &self,
        operation: &'static str,
        holds: bool,
        message: impl FnOnce() -> String,
    ) -> Result<()> {
        if holds { Ok(()) } else { Err(self.gpu.refuse(operation, message())) }
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        if self.gpu.synchronize("cuModuleUnload").is_ok() {
            for module in &self.modules {
                // SAFETY: loaded by `load`, unloaded here alone, and no kernel of it runs any more.
                let _ = unsafe { result::module::unload(*module) };
            }
        }
    }
}
