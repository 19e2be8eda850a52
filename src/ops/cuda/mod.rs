//! The CUDA device: GPT-2's operations as kernels of our own and matrix multiplications of cuBLASLt.
//!
//! In reading order:
//!
//! * [`libraries`] finds CUDA's libraries; nothing is linked, so the binary starts anywhere.
//! * [`driver`] is one GPU with its streams, [`lanes`] the order between them, [`memory`] its memory and the
//!   copies in and out.
//! * [`sources`] and [`compile`] turn `kernels/*.cu` into machine code for the GPU at hand.
//! * [`args`], [`modules`] and [`launch`] tie each kernel to a typed function.
//! * [`product`] is a matrix product as a value; [`gemm`] multiplies matrices with pinned algorithms.
//! * `graph` replays repeated work.
//! * [`scratch`] plans the memory that operations need beside their operands.
//! * `device`, `linear` and `optimizer` put these together as [`crate::ops::Ops`].
//! * [`nccl`] carries bytes to other GPUs.
//! * `numerics` says what the bits depend on, for locks; [`selftest`] shows in a second whether all of it
//!   works, for `runner doctor`.
//!
//! Not done here: no operation waits for the device except those whose results the host reads, and
//! nothing is allocated once the first step has run.

pub mod args;
pub mod compile;
mod device;
pub mod driver;
pub mod gemm;
mod graph;
pub mod lanes;
pub mod launch;
pub mod libraries;
mod linear;
pub mod memory;
pub mod modules;
pub mod nccl;
mod numerics;
mod optimizer;
pub mod product;
pub mod scratch;
pub mod selftest;
pub mod sources;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use super::{DeviceError, Dtype, Heads, Result};
use crate::experiment::Compute;
use compile::Cubin;
use driver::{Gpu, GpuEvent, GpuInfo};
use gemm::Gemm;
use gemm::plan::GemmPlan;
use lanes::Lanes;
use memory::{Memory, Staging};
pub use memory::{PINNED_BYTES, taken_bytes};
use modules::Kernels;
use scratch::Scratch;
pub use scratch::{act_dtype, opened_plan, scratch_plan};

/// The settings of an experiment that the device needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaOptions {
    /// Which GPU, as the driver counts them.
    pub ordinal: usize,
    pub compute: Compute,
    /// 0: GELU of the stored value, in a kernel of its own or at the end of our own matrix products, with the
    /// same bits; 1: its forward pass inside cuBLASLt's, before rounding; 2: its gradient too. Only in bf16.
    pub gelu_fusion: u8,
    /// Whether a micro-step is captured as a CUDA graph and replayed. Changes no bit.
    pub cuda_graph: bool,
    /// Whether plans are read from and added to this user's plan file.
    pub user_plans: bool,
}

impl Default for CudaOptions {
    fn default() -> CudaOptions {
        CudaOptions { ordinal: 0, compute: Compute::Auto, gelu_fusion: 0, cuda_graph: true, user_plans: true }
    }
}

/// A GPU that can train GPT-2.
pub struct Cuda {
    options: CudaOptions,
    kernels: Kernels,
    gemm: Gemm,
    memory: Memory,
    staging: Staging,
    scratch: Scratch,
    /// The tables on the device, as last uploaded.
    tables: optimizer::Tables,
    graphs: graph::Graphs,
    lanes: Lanes,
    /// The column sums that GELU's gradient leaves for the weight gradient after it.
    gelu_sums: Option<linear::GeluSums>,
    /// Channels of a head, once the model is known.
    head_size: Option<usize>,
    /// Where machine code is kept.
    cache: Option<PathBuf>,
}

impl Cuda {
    /// Opens a GPU: finds the libraries, compiles or loads the kernels.
    ///
    /// # Errors
    ///
    /// A library is missing, there is no such GPU, it is too old for bf16, or it has no memory left.
    pub fn open(options: &CudaOptions) -> Result<Cuda> {
        // The libraries first: what is missing is then named before anything is started.
        let gpus = driver::gpus()?;
        compile::nvrtc_version()?;
        gemm::cublaslt_version()?;
        let act = act_dtype(options.compute);
        let info = gpus.get(options.ordinal).ok_or_else(|| {
            DeviceError::Unavailable(format!(
                "GPU {} was asked for, the driver shows {}",
                options.ordinal,
                gpus.len()
            ))
        })?;
        if act == Dtype::BF16 && info.major < 8 {
            return Err(DeviceError::Unavailable(format!(
                "{} ({}) has no bf16\n  hint: set `precision.compute` to fp32",
                info.name,
                info.architecture()
            )));
        }
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
            tables: optimizer::Tables::default(),
            graphs: graph::Graphs::default(),
            gelu_sums: None,
            head_size: None,
            cache: compile::cache_folder("cubins"),
        };
        cuda.load_kernels()?;
        Ok(cuda)
    }

    /// Compiles all files but those that depend on the head size, each on a thread of its own.
    fn load_kernels(&mut self) -> Result<()> {
        let define = if self.kernels.act == Dtype::BF16 { "ACT_BF16=1" } else { "ACT_F32=1" };
        let architecture = self.kernels.gpu.info.architecture();
        self.load_sources(define, |source| source.only.is_none_or(|only| only == architecture))
    }

    /// Makes sure that the fast attention kernels are loaded, where there are any for these heads.
    fn load_attention(&mut self, heads: Heads) -> Result<()> {
        if !launch::attention::is_fast(self.kernels.act, heads.head_size) {
            return Ok(());
        }
        let define = format!("HEAD_SIZE={}", heads.head_size);
        if self.attention_define() == Some(&define) {
            return Ok(());
        }
        let hopper = launch::attention_hopper::fits(&self.kernels.gpu, self.kernels.act, heads.head_size);
        self.load_sources(&define, |source| source.only.is_some() == hopper)
    }

    /// The head size of the attention kernels in use.
    fn attention_define(&self) -> Option<&str> {
        let cubins = self.kernels.cubins().iter().rev();
        cubins
            .flat_map(|cubin| &cubin.options)
            .find_map(|option| option.strip_prefix("-D").filter(|d| d.starts_with("HEAD_SIZE=")))
    }

    /// Compiles and loads the files that have a variant under `define`.
    fn load_sources(&mut self, define: &str, wanted: impl Fn(&sources::Source) -> bool) -> Result<()> {
        let architecture = self.kernels.gpu.info.architecture();
        let cache = self.cache.as_deref();
        let defines = [define.to_owned()];
        let compiled: Vec<Result<Cubin, compile::CompileError>> = std::thread::scope(|scope| {
            let compile = |source| compile::compile(source, &architecture, &defines, cache);
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

    pub fn gpu(&self) -> &GpuInfo {
        &self.kernels.gpu.info
    }

    /// The machine code in use, with the hashes of code and source.
    pub fn cubins(&self) -> &[Cubin] {
        self.kernels.cubins()
    }

    /// The pinned algorithms of all matrix multiplications so far.
    pub fn plans(&self) -> Vec<GemmPlan> {
        self.gemm.plans()
    }

    /// Pins the plans of a lock file. Call it before [`crate::ops::Ops::alloc_scratch`], which tunes what is
    /// left.
    ///
    /// # Errors
    ///
    /// A plan that this library and GPU cannot run as it is written.
    pub fn load_plans(&mut self, plans: &[GemmPlan]) -> Result<()> {
        self.gemm.load(plans)
    }

    /// The results of tuning in this process.
    pub fn tuned(&self) -> &[gemm::Tuned] {
        self.gemm.tuned()
    }

    /// cuBLASLt's version: 130100 is 13.1.0.
    pub fn cublaslt_version(&self) -> u64 {
        self.gemm.version()
    }

    /// Device memory taken from the driver so far.
    pub fn taken_bytes(&self) -> u64 {
        self.memory.taken_bytes()
    }

    /// Bytes of device memory that no process has taken.
    pub fn free_bytes(&self) -> Result<u64> {
        self.kernels.gpu.free_bytes()
    }

    /// Two marks for timing.
    fn marks(&self) -> Result<(GpuEvent, GpuEvent)> {
        Ok((GpuEvent::new(&self.kernels.gpu)?, GpuEvent::new(&self.kernels.gpu)?))
    }

    /// Milliseconds that the device takes for the work that `work` issues.
    pub fn time(&mut self, work: impl FnOnce(&mut Cuda) -> Result<()>) -> Result<f32> {
        let (start, end) = self.marks()?;
        start.record()?;
        work(self)?;
        end.record()?;
        end.ms_since(&start)
    }
}
