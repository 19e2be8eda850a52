//! Opens a GPU: libraries, kernels, and the memory that every model needs.

use std::sync::Arc;

use super::compile::{self, Cubin, Stores};
use super::driver::{Gpu, driver_version, gpus};
use super::embedded::Embedded;
use super::gemm::{self, Gemm};
use super::graph::Graphs;
use super::lanes::Lanes;
use super::launch;
use super::memory::{Memory, Staging};
use super::modules::Kernels;
use super::scratch::{Scratch, Tables};
use super::sources::Source;
use super::{Cuda, CudaOptions, act_dtype, own_products, selftest};
use crate::ops::{DeviceError, Dtype, Result};

impl Cuda {
    /// Opens a GPU: finds the libraries, loads or compiles the kernels, and tries one of them.
    ///
    /// # Errors
    ///
    /// A library is missing, there is no such GPU, it is too old for bf16, it has no memory left, or it
    /// computes wrongly.
    pub fn open(options: &CudaOptions) -> Result<Cuda> {
        let all = gpus()?;
        let act = act_dtype(options.compute);
        let info = all.get(options.ordinal).ok_or_else(|| {
            DeviceError::Unavailable(format!(
                "GPU {} was asked for, the driver shows {}",
                options.ordinal,
                all.len()
            ))
        })?;
        if act == Dtype::BF16 && info.major < 8 {
            return Err(DeviceError::Unavailable(format!(
                "{} ({}) has no bf16\n  hint: set `precision.compute` to fp32",
                info.name,
                info.architecture()
            )));
        }
        // Missing libraries are named before anything is started.
        if !own_products(info, options) {
            gemm::cublaslt_version()?;
        }
        let stores = stores(options)?;
        let gpu = Gpu::open(options.ordinal)?;
        let mut memory = Memory::new(Arc::clone(&gpu));
        memory.check_free("the device's own buffers", gemm::workspace_bytes(gpu.info.major) + (256 << 20))?;
        let gemm = Gemm::new(&gpu, &mut memory)?;
        let mut cuda = Cuda {
            options: options.clone(),
            staging: Staging::new(&gpu)?,
            lanes: Lanes::new(&gpu)?,
            kernels: Kernels::new(gpu, act),
            gemm,
            memory,
            scratch: Scratch::default(),
            tables: Tables::default(),
            graphs: Graphs::default(),
            gelu_sums: None,
            head_size: None,
            stores,
        };
        cuda.load_kernels()?;
        selftest::digest_is_right(&mut cuda)?;
        Ok(cuda)
    }

    /// Loads all files but those that depend on the head size, each on a thread of its own.
    fn load_kernels(&mut self) -> Result<()> {
        let define = if self.kernels.act == Dtype::BF16 { "ACT_BF16=1" } else { "ACT_F32=1" };
        let architecture = self.kernels.gpu.info.architecture();
        self.load_sources(define, |source| source.only.is_none_or(|only| only == architecture))
    }

    /// Loads the files that have a variant under `define`.
    pub(super) fn load_sources(&mut self, define: &str, wanted: impl Fn(&Source) -> bool) -> Result<()> {
        let architecture = self.kernels.gpu.info.architecture();
        let stores = &self.stores;
        let defines = [define.to_owned()];
        let compiled: Vec<Result<Cubin, compile::CompileError>> = std::thread::scope(|scope| {
            let compile = |source| compile::compile(source, &architecture, &defines, stores);
            let threads: Vec<_> = launch::sources()
                .filter(|source| source.variants.contains(&define) && wanted(source))
                .map(|source| scope.spawn(move || compile(source)))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        let all = launch::kernels();
        for cubin in compiled {
            let cubin = cubin.map_err(compile::CompileError::into_device_error)?;
            let kernels: Vec<_> = all.iter().copied().filter(|kernel| kernel.file == cubin.file).collect();
            self.kernels.load(cubin, &kernels)?;
        }
        Ok(())
    }
}

/// Where machine code is looked for. A driver loads code of compilers up to its own CUDA's generation.
fn stores(options: &CudaOptions) -> Result<Stores> {
    let mut stores = Stores { cache: compile::cache_folder("cubins"), ..Stores::default() };
    let Some(pack) = Embedded::of_program()?.filter(|_| options.embedded) else { return Ok(stores) };
    let driver = driver_version()?;
    if driver / 1000 >= pack.nvrtc.major {
        stores.embedded = Some(pack);
    } else {
        stores.without = Some(format!(
            "the compiled kernels of this program need a driver for CUDA {}.0, and this one is for \
             CUDA {}.{} (driver 580 or newer does without a compiler)",
            pack.nvrtc.major,
            driver / 1000,
            driver % 1000 / 10
        ));
    }
    Ok(stores)
}
