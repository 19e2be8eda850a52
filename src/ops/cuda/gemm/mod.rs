//! Matrix multiplication through cuBLASLt or kernels of our own, with pinned algorithms.
//!
//! cuBLASLt can do each product in dozens of ways that differ in speed and in bits, and on Hopper our own
//! kernels have a few more, which do all that surrounds a product on their way: there, in bf16, the library
//! is a choice and may be absent. Here every
//! shape has one plan: taken from a lock file, from this user's earlier tuning, or tuned now, and
//! from then on used for every call. Only a shape that nobody announced (a short last batch, a
//! prompt) takes the first candidate, a function of library version, GPU and shape.
//!
//! In bf16 on Hopper the order of a sum is a function of the shape ([`gemm_hopper::order`]): only algorithms
//! of that order are candidates, and a plan decides the speed alone.
//!
//! Matrices are row-major and dense; cuBLASLt thinks in columns, so each product is written
//! transposed: `out = x weightᵀ` becomes `outᵀ = weight xᵀ`.

mod cublaslt;
pub mod plan;
mod tune;

use std::collections::BTreeMap;
use std::sync::Arc;

use cudarc::cublaslt::{result, sys};

use super::driver::Gpu;
use super::launch::gemm_hopper;
use super::libraries::{self, Library};
use super::memory::{Allocation, Memory};
use super::modules::Kernels;
use super::product::{GemmKey, Operands, Tiling};
use crate::ops::{DeviceError, Result};
use cublaslt::{Descriptors, Preference, adds_in_order, attributes};
use plan::{Algorithm, CublasLt, GemmPlan, UserPlans};
pub use tune::Tuned;

/// Bytes of workspace on `major`: NVIDIA's advice is 32 MiB from Hopper on; twice that opens a few
/// more split-K plans.
pub fn workspace_bytes(major: u32) -> u64 {
    if major >= 9 { 64 << 20 } else { 32 << 20 }
}

/// A pinned algorithm, ready to run.
enum Ready {
    CublasLt(Descriptors, sys::cublasLtMatmulAlgo_t),
    Hopper(Tiling),
}

/// A plan that was checked here, with what runs it.
struct PinnedPlan {
    ready: Ready,
    record: GemmPlan,
    /// Whether the shape was known before the first step, and the plan is worth keeping.
    announced: bool,
}

/// cuBLASLt, opened.
struct LtLibrary {
    handle: sys::cublasLtHandle_t,
    version: u64,
}

/// Matrix products on one GPU.
pub struct Gemm {
    gpu: Arc<Gpu>,
    library: Option<LtLibrary>,
    workspace: Allocation,
    /// Counters that order the parts of our own split sums; zero between products.
    turns: Allocation,
    plans: BTreeMap<GemmKey, PinnedPlan>,
    tuned: Vec<Tuned>,
}

// SAFETY: the handle and the descriptors are used by one thread at a time: every method that runs
// or changes them takes `&mut self`.
unsafe impl Send for Gemm {}

impl Gemm {
    /// Uses cuBLASLt where it is found.
    pub fn new(gpu: &Arc<Gpu>, memory: &mut Memory) -> Result<Gemm> {
        gpu.bind()?;
        let library = match cublaslt_version() {
            Ok(version) => {
                let handle = result::create_handle().map_err(|e| fail(gpu, "cublasLtCreate", e))?;
                Some(LtLibrary { handle, version })
            }
            Err(_) => None,
        };
        let workspace =
            memory.allocate("matrix multiplication workspace", workspace_bytes(gpu.info.major))?;
        let turns = memory.allocate("turns of split sums", gemm_hopper::TURNS_BYTES)?;
        Ok(Gemm {
            gpu: Arc::clone(gpu),
            library,
            workspace,
            turns,
            plans: BTreeMap::new(),
            tuned: Vec::new(),
        })
    }

    /// cuBLASLt's version, 130100 for 13.1.0; `None` without the library.
    pub fn version(&self) -> Option<u64> {
        self.library.as_ref().map(|library| library.version)
    }

    fn handle(&self) -> Result<sys::cublasLtHandle_t> {
        let library = self.library.as_ref().map(|library| library.handle);
        library.ok_or_else(|| match libraries::require(Library::CublasLt) {
            Err(missing) => missing,
            Ok(_) => self.gpu.refuse("cublasLtCreate", "the library was not there when the GPU was opened"),
        })
    }

    /// The plans of all shapes that were announced, by key.
    pub fn plans(&self) -> Vec<GemmPlan> {
        self.plans.values().filter(|plan| plan.announced).map(|plan| plan.record.clone()).collect()
    }

    /// The results of tuning in this process.
    pub fn tuned(&self) -> &[Tuned] {
        &self.tuned
    }

    /// Pins the plans of a lock file. Each is checked on this library and GPU: a plan that does not fit
    /// is an error that names it.
    pub fn load(&mut self, plans: &[GemmPlan]) -> Result<()> {
        for record in plans {
            self.pin(record, true)?;
        }
        Ok(())
    }

    /// Makes sure that each of `keys` has a plan: from a lock, the program's own, this user's file, or by
    /// timing. Without `known_plans`, all that no lock has pinned are timed.
    pub fn prepare(&mut self, kernels: &Kernels, keys: &[GemmKey], known_plans: bool) -> Result<()> {
        let (info, workspace) = (&self.gpu.info, self.workspace.bytes());
        let file = known_plans.then(|| UserPlans::of_user(&info.name, self.version(), workspace));
        let mut known = Vec::new();
        if let Some(file) = &file {
            known = plan::shipped(&info.architecture(), info.sm_count, self.version(), workspace);
            known.extend(file.read());
        }
        let mut open = Vec::new();
        for key in keys {
            if self.plans.get(key).is_some_and(|plan| plan.announced) || open.contains(key) {
                continue;
            }
            // Of the program's own some are cuBLASLt's, which may not be here; this user's follow them. A
            // plan that the library refuses was written by another build of the same version.
            let pinned =
                known.iter().filter(|plan| plan.key == *key).any(|plan| self.pin(plan, true).is_ok());
            if !pinned {
                open.push(*key);
            }
        }
        if open.is_empty() {
            return Ok(());
        }
        let tuned = self.tune(kernels, &open)?;
        for result in &tuned {
            self.pin(&result.plan, true)?;
        }
        if let Some(file) = file {
            let plans: Vec<GemmPlan> = tuned.iter().map(|result| result.plan.clone()).collect();
            // Tuning again next time is all that a file that cannot be written costs.
            let _ = file.add(&plans);
        }
        self.tuned.extend(tuned);
        Ok(())
    }

    /// The tiling of our own kernel that does the operation of `key` whole, or `None` where cuBLASLt's
    /// product is followed by kernels for the rest.
    pub fn own(&mut self, key: GemmKey) -> Result<Option<Tiling>> {
        match &self.plan(key)?.ready {
            Ready::Hopper(tiling) => Ok(Some(*tiling)),
            Ready::CublasLt(..) => Ok(None),
        }
    }

    fn plan(&mut self, key: GemmKey) -> Result<&PinnedPlan> {
        if !self.plans.contains_key(&key) {
            let record = self.first_candidate(key)?;
            self.pin(&record, false)?;
        }
        Ok(&self.plans[&key])
    }

    /// Runs a product in stream order: all of the operation, or what cuBLASLt can do of it (see
    /// [`Gemm::own`]).
    ///
    /// # Safety
    /// The addresses are those of live device buffers that hold the matrices of `key`.
    pub unsafe fn run(
        &mut self,
        kernels: &Kernels,
        operation: &'static str,
        key: GemmKey,
        operands: Operands,
    ) -> Result<()> {
        self.gpu.bind()?;
        let Operands { left, right, out, bias, pre, sums, row_terms, .. } = operands;
        if [left, right, out, bias, pre, sums, row_terms].iter().any(|address| address % 256 != 0) {
            // The plans were chosen for this alignment.
            return Err(self
                .gpu
                .refuse(operation, format!("a matrix does not start at a multiple of 256 bytes ({key})")));
        }
        self.plan(key)?;
        // SAFETY: the caller's promise about the addresses; the plan was checked for this shape.
        unsafe { self.start(kernels, operation, &self.plans[&key], &operands) }
    }

    /// # Safety
    /// As for [`Gemm::run`].
    unsafe fn start(
        &self,
        kernels: &Kernels,
        operation: &'static str,
        plan: &PinnedPlan,
        operands: &Operands,
    ) -> Result<()> {
        match &plan.ready {
            // SAFETY: the caller's promise; every product leaves the turns at zero.
            Ready::Hopper(tiling) => unsafe {
                gemm_hopper::launch(
                    kernels,
                    operation,
                    &plan.record.key,
                    tiling,
                    operands,
                    self.turns.address(),
                )
            },
            Ready::CublasLt(descriptors, algo) => {
                let fail = |e| fail(&self.gpu, operation, e);
                descriptors.set_pointers(&operands.only(plan.record.key.epilogue)).map_err(fail)?;
                // SAFETY: the caller's promise.
                unsafe {
                    cublaslt::launch(self.handle()?, descriptors, algo, operands, &self.workspace, &self.gpu)
                }
                .map_err(fail)
            }
        }
    }

    /// Checks `record` on this library and GPU, and pins it.
    fn pin(&mut self, record: &GemmPlan, announced: bool) -> Result<()> {
        let ready = self.ready(record)?;
        self.plans.insert(record.key, PinnedPlan { ready, record: record.clone(), announced });
        Ok(())
    }

    fn ready(&self, record: &GemmPlan) -> Result<Ready> {
        match &record.algorithm {
            Algorithm::CublasLt(plan)
                if self.has_own(&record.key)
                    && (plan.attributes.split_k > 1 || gemm_hopper::only_own(&record.key)) =>
            {
                Err(self.gpu.refuse(
                    "gemm",
                    format!("the plan for {} adds in another order than this architecture's", record.key),
                ))
            }
            Algorithm::CublasLt(plan) => self.ready_cublaslt(&record.key, plan),
            Algorithm::Hopper { hopper } => {
                let flaw = if gemm_hopper::fits(&self.gpu.info) {
                    gemm_hopper::flaw(&record.key, hopper)
                } else {
                    Some("is for Hopper's instructions, which this GPU lacks")
                };
                match flaw {
                    Some(flaw) => {
                        Err(self.gpu.refuse("gemm_hopper", format!("the plan for {} {flaw}", record.key)))
                    }
                    None => Ok(Ready::Hopper(*hopper)),
                }
            }
        }
    }

    fn ready_cublaslt(&self, key: &GemmKey, plan: &CublasLt) -> Result<Ready> {
        let refuse =
            |why: &str| self.gpu.refuse("cublasLtMatmulAlgoCheck", format!("the plan for {key} {why}"));
        let handle = self.handle()?;
        let words = plan.words().ok_or_else(|| refuse("is not 64 bytes in hexadecimal"))?;
        let algo = sys::cublasLtMatmulAlgo_t { data: words };
        let descriptors =
            Descriptors::new(key).map_err(|e| fail(&self.gpu, "cublasLtMatmulDescCreate", e))?;
        let mut checked = std::mem::MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed();
        // SAFETY: all descriptors are live; an all-zero result is a valid one.
        let (status, checked) = unsafe {
            let Descriptors { desc, a, b, d } = descriptors;
            (
                sys::cublasLtMatmulAlgoCheck(handle, desc, a, b, d, d, &raw const algo, checked.as_mut_ptr()),
                checked.assume_init(),
            )
        };
        if status.result().is_err() {
            return Err(refuse("is not one that this cuBLASLt can run here"));
        }
        if checked.workspaceSize as u64 > self.workspace.bytes() {
            return Err(refuse("needs a larger workspace"));
        }
        let attributes =
            attributes(&algo).map_err(|e| fail(&self.gpu, "cublasLtMatmulAlgoConfigGetAttribute", e))?;
        if attributes != plan.attributes {
            return Err(refuse(&format!("says {:?}, its 64 bytes mean {attributes:?}", plan.attributes)));
        }
        Ok(Ready::CublasLt(descriptors, algo))
    }

    /// What is likeliest fastest, without trying.
    fn first_candidate(&self, key: GemmKey) -> Result<GemmPlan> {
        Ok(self.candidates(&key)?.swap_remove(0))
    }

    /// What is worth trying, likeliest fastest first; never empty: the heuristic's answers that add in the
    /// order of this product, and our own tilings.
    fn candidates(&self, key: &GemmKey) -> Result<Vec<GemmPlan>> {
        let mut plans = Vec::new();
        let own = self.has_own(key);
        if !own || self.library.is_some() && !gemm_hopper::only_own(key) {
            plans = self.heuristic(key)?;
            plans.retain(|plan| match &plan.algorithm {
                Algorithm::CublasLt(lt) => !own || lt.attributes.split_k <= 1,
                Algorithm::Hopper { .. } => false,
            });
        }
        if own {
            let tilings = gemm_hopper::tilings(key).into_iter();
            plans.extend(
                tilings.map(|hopper| GemmPlan { key: *key, algorithm: Algorithm::Hopper { hopper } }),
            );
        }
        if plans.is_empty() {
            return Err(self.gpu.refuse(
                "cublasLtMatmulAlgoGetHeuristic",
                format!("cuBLASLt has no algorithm with a fixed order of sums for {key}"),
            ));
        }
        Ok(plans)
    }

    /// Whether our own kernels can make this product here: its bits are then those of [`gemm_hopper::order`],
    /// whoever multiplies.
    fn has_own(&self, key: &GemmKey) -> bool {
        gemm_hopper::fits(&self.gpu.info) && !gemm_hopper::tilings(key).is_empty()
    }

    /// The heuristic's answers that add in a fixed order.
    fn heuristic(&self, key: &GemmKey) -> Result<Vec<GemmPlan>> {
        const REQUESTED: usize = 24;
        let handle = self.handle()?;
        let descriptors =
            Descriptors::new(key).map_err(|e| fail(&self.gpu, "cublasLtMatmulDescCreate", e))?;
        let error = |e| fail(&self.gpu, "cublasLtMatmulAlgoGetHeuristic", e);
        let preference = Preference::new(self.workspace.bytes()).map_err(error)?;
        let mut found = Vec::<sys::cublasLtMatmulHeuristicResult_t>::with_capacity(REQUESTED);
        let mut count = 0;
        let Descriptors { desc, a, b, d } = descriptors;
        // SAFETY: all descriptors are live, and the array has room for as many as are asked for.
        unsafe {
            let status = sys::cublasLtMatmulAlgoGetHeuristic(
                handle,
                desc,
                a,
                b,
                d,
                d,
                preference.0,
                REQUESTED as i32,
                found.as_mut_ptr(),
                &raw mut count,
            );
            status
                .result()
                .map_err(|e| self.gpu.refuse("cublasLtMatmulAlgoGetHeuristic", format!("{e:?} for {key}")))?;
            found.set_len(count.max(0) as usize);
        }
        let mut plans = Vec::new();
        for candidate in found.iter().filter(|c| c.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS) {
            let attributes = attributes(&candidate.algo).map_err(error)?;
            if adds_in_order(&attributes) && candidate.workspaceSize as u64 <= self.workspace.bytes() {
                let algo = CublasLt::encode(candidate.algo.data);
                let plan = CublasLt { algo, attributes, workspace_bytes: candidate.workspaceSize as u64 };
                plans.push(GemmPlan { key: *key, algorithm: Algorithm::CublasLt(plan) });
            }
        }
        Ok(plans)
    }
}

impl Drop for Gemm {
    fn drop(&mut self) {
        if let Some(library) = &self.library
            && self.gpu.synchronize("cublasLtDestroy").is_ok()
        {
            // SAFETY: created in `new`, destroyed here alone; no work uses it any more.
            let _ = unsafe { result::destroy_handle(library.handle) };
        }
    }
}

/// cuBLASLt's version. Loads the library.
pub fn cublaslt_version() -> Result<u64> {
    libraries::require(Library::CublasLt)?;
    // SAFETY: the library is loaded; the call has no arguments.
    Ok(unsafe { sys::cublasLtGetVersion() } as u64)
}

fn fail(gpu: &Gpu, operation: &'static str, error: result::CublasError) -> DeviceError {
    let hint = match error.0 {
        sys::cublasStatus_t::CUBLAS_STATUS_ARCH_MISMATCH => "\n  hint: this cuBLASLt is too old for this GPU",
        sys::cublasStatus_t::CUBLAS_STATUS_EXECUTION_FAILED => {
            "\n  hint: an earlier operation may be the cause; with CUDA_LAUNCH_BLOCKING=1 it reports the \
             error itself"
        }
        _ => "",
    };
    gpu.refuse(operation, format!("{:?}{hint}", error.0))
}
