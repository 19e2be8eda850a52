//! The CUDA device: the model's operations as kernels of our own. Their matrix products are ours on Hopper in
//! bf16, or cuBLASLt's where that is faster; elsewhere cuBLASLt's.
//!
//! In reading order:
//!
//! * [`libraries`] finds CUDA's libraries; nothing is linked, so the binary starts anywhere.
//! * [`driver`] is one GPU with its streams, [`lanes`] the order between them, [`memory`] its memory and the
//!   copies in and out.
//! * [`sources`] and [`compile`] turn `kernels/*.cu` into machine code for the GPU at hand, or take it from
//!   the program itself ([`embedded`]).
//! * [`args`] and [`modules`] tie each kernel to a typed function.
//! * [`product`] is a matrix product as a value; [`gemm`] multiplies matrices with pinned algorithms.
//! * `graph` replays repeated work.
//! * [`scratch`] is the memory that operations need beside their operands, `scratch_plan` how much that is.
//! * [`launch`] has the kernels and the operations that are made of them, one file for each `.cu` file;
//!   `linear`, `classifier` and `optimizer` those that take more. `device` names them as
//!   [`crate::ops::Ops`], and `open` opens a GPU.
//! * [`nccl`] carries bytes to other GPUs.
//! * `numerics` says what the bits depend on, for locks; [`selftest`] shows in a second whether all of it
//!   works, for `runner doctor`.
//!
//! Not done here: no operation waits for the device except those whose results the host reads, and
//! nothing is allocated once the first step has run.

mod activate;
pub mod args;
mod classifier;
pub mod compile;
mod device;
pub mod driver;
pub mod embedded;
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
mod open;
mod optimizer;
pub mod product;
pub mod scratch;
mod scratch_plan;
pub mod selftest;
pub mod sources;
#[cfg(test)]
mod tests;

use super::{Dtype, Result};
use crate::experiment::Compute;
use compile::{CodeOrigin, Cubin, Stores};
use driver::{GpuEvent, GpuInfo};
use gemm::Gemm;
use gemm::plan::GemmPlan;
use lanes::Lanes;
use launch::gemm_hopper;
use memory::{Buf, Memory, Staging};
pub use memory::{PINNED_BYTES, taken_bytes};
use modules::Kernels;
use scratch::Scratch;
pub use scratch_plan::{opened_plan, scratch_plan};

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
    /// Whether kernels that travel in the program are used; else NVRTC makes all. Changes no bit.
    pub embedded: bool,
}

impl CudaOptions {
    /// How far GELU is fused: a matter of bf16, for cuBLASLt has no such epilogue for every type.
    fn fusion(&self) -> u8 {
        if matches!(self.compute, Compute::Auto | Compute::Bf16) { self.gelu_fusion } else { 0 }
    }
}

impl Default for CudaOptions {
    fn default() -> CudaOptions {
        CudaOptions {
            ordinal: 0,
            compute: Compute::Auto,
            gelu_fusion: 0,
            cuda_graph: true,
            user_plans: true,
            embedded: true,
        }
    }
}

/// Element type of weights and activations under a precision.
pub fn act_dtype(compute: Compute) -> Dtype {
    match compute {
        Compute::Auto | Compute::Bf16 => Dtype::BF16,
        Compute::Fp32 | Compute::Tf32 => Dtype::F32,
    }
}

/// Whether our own kernels make every product on this GPU, so that cuBLASLt is not needed.
fn own_products(info: &GpuInfo, options: &CudaOptions) -> bool {
    gemm_hopper::fits(info) && act_dtype(options.compute) == Dtype::BF16 && options.gelu_fusion == 0
}

/// The column sums that GELU's gradient computed on its way: valid for one tensor until it is written.
#[derive(Clone, Copy, Debug)]
struct GeluSums {
    dpre: u64,
    rows: usize,
    width: usize,
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
    tables: scratch::Tables,
    graphs: graph::Graphs,
    lanes: Lanes,
    /// The column sums that GELU's gradient leaves for the weight gradient that reads what it wrote.
    gelu_sums: Option<GeluSums>,
    /// Channels of a head, once the model is known.
    head_size: Option<usize>,
    /// Where machine code is found.
    stores: Stores,
}

impl Cuda {
    /// A tensor was written: its column sums are no longer valid.
    fn written(&mut self, buf: &Buf) {
        if self.gelu_sums.is_some_and(|sums| sums.dpre == buf.address()) {
            self.gelu_sums = None;
        }
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

    /// cuBLASLt's version, 130100 for 13.1.0; `None` where our own products do without it.
    pub fn cublaslt_version(&self) -> Option<u64> {
        self.gemm.version()
    }

    /// Whether all that this device does needs the driver alone: neither NVRTC nor cuBLASLt.
    pub fn driver_suffices(&self) -> bool {
        self.cubins().iter().all(|cubin| cubin.origin == CodeOrigin::Embedded)
            && own_products(&self.kernels.gpu.info, &self.options)
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
