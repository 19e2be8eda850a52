//! What this machine can train on, and what is missing.
//!
//! Everything is tried: libraries are loaded, kernels compiled, a small product is computed and checked,
//! memory is copied. Each failure has a hint.

use std::path::PathBuf;

use serde::Serialize;

use crate::ops::cuda::compile::CodeOrigin;
use crate::ops::cuda::driver::{self, Gpu, GpuInfo};
use crate::ops::cuda::embedded::Embedded;
use crate::ops::cuda::libraries::{self, Library};
use crate::ops::cuda::selftest::{self, SelfTest};
use crate::ops::cuda::{Cuda, CudaOptions, compile, gemm};

/// All that was found.
#[derive(Debug, Serialize)]
pub struct Machine {
    pub cpu: CpuReport,
    pub driver: Option<String>,
    pub libraries: Vec<LibraryReport>,
    pub gpus: Vec<GpuReport>,
    /// What the program carries of the kernels.
    pub embedded: Option<EmbeddedReport>,
    pub kernels: Option<KernelReport>,
    pub selftest: Option<SelfTest>,
    /// Whether a GPU can train.
    pub usable: bool,
    /// Whether it does so, in bf16, with NVIDIA's driver alone.
    pub driver_suffices: bool,
    /// Why not.
    pub problem: Option<String>,
}

/// The processor.
#[derive(Debug, Serialize)]
pub struct CpuReport {
    pub model: String,
    pub threads: usize,
    pub simd: &'static str,
}

/// A library of CUDA: where it is and what it is for, or why it is missing.
#[derive(Debug, Serialize)]
pub struct LibraryReport {
    pub name: String,
    pub enables: &'static str,
    #[serde(serialize_with = "crate::units::serialize_some_path")]
    pub path: Option<PathBuf>,
    pub version: Option<String>,
    pub problem: Option<String>,
    /// What does without it, if anything does, as a sentence.
    pub unneeded: Option<&'static str>,
}

/// A GPU that the driver shows.
#[derive(Debug, Serialize)]
pub struct GpuReport {
    pub ordinal: usize,
    pub name: String,
    pub uuid: String,
    pub architecture: String,
    pub sm_count: u32,
    pub total_bytes: u64,
    pub free_bytes: Option<u64>,
    /// Dense bf16 peak from the data sheet, when the GPU is known.
    pub peak_bf16_tflops: Option<f64>,
}

/// Kernels that were compiled before the program was.
#[derive(Debug, Serialize)]
pub struct EmbeddedReport {
    pub architectures: Vec<String>,
    /// The compiler that made them.
    pub nvrtc: String,
}

/// The kernels that were loaded.
#[derive(Debug, Serialize)]
pub struct KernelReport {
    pub files: usize,
    /// Files whose machine code is in the program.
    pub embedded: usize,
    /// Files that NVRTC compiled earlier, whose machine code was on disk.
    pub cached: usize,
    /// The longest time that a file took.
    pub compile_ms: f64,
    #[serde(serialize_with = "crate::units::serialize_some_path")]
    pub cache: Option<PathBuf>,
}

/// Tries everything that training on a GPU needs.
pub fn examine() -> Machine {
    let libraries = Library::ALL.map(examine_library).into();
    let gpus = driver::gpus();
    let mut machine = Machine {
        cpu: cpu(),
        driver: driver_version(),
        libraries,
        gpus: gpus.as_deref().unwrap_or_default().iter().map(examine_gpu).collect(),
        embedded: Embedded::of_program().ok().flatten().map(|pack| EmbeddedReport {
            architectures: pack.architectures.clone(),
            nvrtc: pack.nvrtc.to_string(),
        }),
        kernels: None,
        selftest: None,
        usable: false,
        driver_suffices: false,
        problem: None,
    };
    let tried =
        Cuda::open(&CudaOptions { user_plans: false, ..CudaOptions::default() }).and_then(|mut cuda| {
            machine.kernels = Some(kernels(&cuda));
            machine.driver_suffices = cuda.driver_suffices();
            selftest::run(&mut cuda)
        });
    match tried {
        Ok(test) => {
            machine.usable = test.passes();
            machine.problem = (!machine.usable)
                .then(|| format!("the GPU multiplies wrongly: error {:.1e}", test.gemm_error));
            machine.selftest = Some(test);
        }
        Err(error) => machine.problem = Some(error.to_string()),
    }
    machine
}

fn examine_library(library: Library) -> LibraryReport {
    let found = libraries::load(library);
    let version = found.is_ok().then(|| library_version(library)).flatten();
    LibraryReport {
        name: library.to_string(),
        enables: library.enables(),
        path: found.as_ref().ok().map(|loaded| loaded.path.clone()),
        version,
        problem: found.err().map(|missing| missing.to_string()),
        unneeded: match library {
            Library::Nvrtc => {
                Embedded::of_program().ok().flatten().map(|_| "the kernels in this program do without it")
            }
            Library::CublasLt => Some("a Hopper GPU in bf16 does without it"),
            Library::Driver | Library::Nccl => None,
        },
    }
}

fn library_version(library: Library) -> Option<String> {
    match library {
        Library::Driver => {
            driver::driver_version().ok().map(|v| format!("CUDA {}.{}", v / 1000, v % 1000 / 10))
        }
        Library::Nvrtc => compile::nvrtc_version().ok().map(|version| version.to_string()),
        Library::CublasLt => {
            gemm::cublaslt_version().ok().map(|v| format!("{}.{}.{}", v / 10_000, v / 100 % 100, v % 100))
        }
        Library::Nccl => None,
    }
}

fn examine_gpu(info: &GpuInfo) -> GpuReport {
    GpuReport {
        ordinal: info.ordinal,
        name: info.name.clone(),
        uuid: info.uuid.clone(),
        architecture: info.architecture(),
        sm_count: info.sm_count,
        total_bytes: info.total_bytes,
        free_bytes: Gpu::open(info.ordinal).and_then(|gpu| gpu.free_bytes()).ok(),
        peak_bf16_tflops: info.peak_bf16_flops().map(|peak| peak / 1e12),
    }
}

fn kernels(cuda: &Cuda) -> KernelReport {
    let cubins = cuda.cubins();
    let count = |origin| cubins.iter().filter(|cubin| cubin.origin == origin).count();
    KernelReport {
        files: cubins.len(),
        embedded: count(CodeOrigin::Embedded),
        cached: count(CodeOrigin::Cache),
        compile_ms: cubins.iter().map(|cubin| cubin.compile_ms).fold(0.0, f64::max),
        cache: compile::cache_folder("cubins"),
    }
}

/// The kernel driver's version, as its module states it: `580.159.04`.
fn driver_version() -> Option<String> {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let words = text.lines().next()?.split_whitespace();
    words
        .map(str::to_owned)
        .find(|word| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.'))
}

fn cpu() -> CpuReport {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        info.lines().find_map(|line| line.strip_prefix("model name").and_then(|rest| rest.split_once(':')));
    CpuReport {
        model: model.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, model)| model.trim().to_owned()),
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        simd: simd(),
    }
}

#[cfg(target_arch = "x86_64")]
fn simd() -> &'static str {
    if is_x86_feature_detected!("avx512f") {
        "AVX-512"
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        "AVX2"
    } else {
        "SSE2"
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn simd() -> &'static str {
    "baseline"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_the_machine_has_and_why_it_cannot_train_on_a_gpu() {
        let machine = examine();
        assert!(!machine.cpu.model.is_empty() && machine.cpu.threads > 0);
        assert_eq!(machine.libraries.len(), 4);
        for library in &machine.libraries {
            assert!(library.path.is_some() != library.problem.is_some(), "{library:?}");
        }
        assert_eq!(machine.usable, machine.problem.is_none(), "{machine:?}");
        serde_json::to_string(&machine).expect("the report is JSON");
    }
}
