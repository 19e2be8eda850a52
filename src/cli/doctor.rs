//! `runner doctor`: what this machine can train on, and what is missing.
//!
//! Everything is tried, nothing is assumed: libraries are loaded, kernels compiled, a small product is
//! multiplied and checked, memory is copied. What fails says what to do.

use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use crate::ops::cuda::driver::{self, Gpu, GpuInfo};
use crate::ops::cuda::libraries::{self, Library};
use crate::ops::cuda::selftest::{self, SelfTest};
use crate::ops::cuda::{Cuda, Options, compile, gemm};

/// No usable GPU where one was required.
const NO_DEVICE: u8 = 3;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print the findings as JSON.
    #[arg(long)]
    json: bool,
    /// Exit with code 3 unless a GPU can train.
    #[arg(long)]
    require_gpu: bool,
}

/// All that was found.
#[derive(Debug, Serialize)]
struct Report {
    cpu: Cpu,
    driver: Option<String>,
    libraries: Vec<LibraryReport>,
    gpus: Vec<GpuReport>,
    kernels: Option<KernelReport>,
    selftest: Option<SelfTest>,
    /// Whether a GPU can train.
    usable: bool,
    /// Why not.
    problem: Option<String>,
}

#[derive(Debug, Serialize)]
struct Cpu {
    model: String,
    threads: usize,
    simd: &'static str,
}

#[derive(Debug, Serialize)]
struct LibraryReport {
    name: String,
    enables: &'static str,
    path: Option<PathBuf>,
    version: Option<String>,
    problem: Option<String>,
}

#[derive(Debug, Serialize)]
struct GpuReport {
    ordinal: usize,
    name: String,
    uuid: String,
    architecture: String,
    sm_count: u32,
    total_bytes: u64,
    free_bytes: Option<u64>,
    /// Dense bf16 peak from the data sheet, when the GPU is known.
    peak_bf16_tflops: Option<f64>,
}

#[derive(Debug, Serialize)]
struct KernelReport {
    files: usize,
    /// Files whose machine code was on disk.
    cached: usize,
    compile_ms: f64,
    cache: Option<PathBuf>,
}

/// Examines the machine and prints what it is good for.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let report = examine();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(if args.require_gpu && !report.usable { ExitCode::from(NO_DEVICE) } else { ExitCode::SUCCESS })
}

fn examine() -> Report {
    let libraries = Library::ALL.map(examine_library).into();
    let gpus = driver::gpus();
    let mut report = Report {
        cpu: cpu(),
        driver: driver_version(),
        libraries,
        gpus: gpus.as_deref().unwrap_or_default().iter().map(examine_gpu).collect(),
        kernels: None,
        selftest: None,
        usable: false,
        problem: None,
    };
    let tried = Cuda::open(&Options { user_plans: false, ..Options::default() }).and_then(|mut cuda| {
        report.kernels = Some(kernels(&cuda));
        selftest::run(&mut cuda)
    });
    match tried {
        Ok(test) => {
            report.usable = test.passes();
            report.problem = (!report.usable)
                .then(|| format!("the GPU multiplies wrongly: error {:.1e}", test.gemm_error));
            report.selftest = Some(test);
        }
        Err(error) => report.problem = Some(error.to_string()),
    }
    report
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
    }
}

fn library_version(library: Library) -> Option<String> {
    match library {
        Library::Driver => {
            driver::driver_version().ok().map(|v| format!("CUDA {}.{}", v / 1000, v % 1000 / 10))
        }
        Library::Nvrtc => compile::nvrtc_version().ok().map(|(major, minor)| format!("{major}.{minor}")),
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
    KernelReport {
        files: cubins.len(),
        cached: cubins.iter().filter(|cubin| cubin.cached).count(),
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

fn cpu() -> Cpu {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        info.lines().find_map(|line| line.strip_prefix("model name").and_then(|rest| rest.split_once(':')));
    Cpu {
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

fn print(report: &Report) {
    let Cpu { model, threads, simd } = &report.cpu;
    println!("cpu        {model}, {threads} threads, {simd}");
    if let Some(version) = &report.driver {
        println!("driver     {version}");
    }
    for library in &report.libraries {
        match (&library.path, &library.problem) {
            (Some(path), _) => {
                println!(
                    "{:<10} {} ({})",
                    library.name,
                    library.version.as_deref().unwrap_or("found"),
                    path.display()
                )
            }
            (None, problem) => {
                println!("{:<10} missing: {}", library.name, problem.as_deref().unwrap_or("not found"))
            }
        }
    }
    for gpu in &report.gpus {
        let free = gpu.free_bytes.map_or_else(|| "?".to_owned(), |bytes| (bytes >> 20).to_string());
        let peak = gpu
            .peak_bf16_tflops
            .map_or_else(|| "unknown peak".to_owned(), |peak| format!("{peak:.0} TFLOP/s bf16 peak"));
        println!(
            "gpu {}      {}, {}, {} SMs, {} MiB, {free} MiB free, {peak}",
            gpu.ordinal,
            gpu.name,
            gpu.architecture,
            gpu.sm_count,
            gpu.total_bytes >> 20
        );
    }
    if let Some(KernelReport { files, cached, compile_ms, .. }) = &report.kernels {
        println!("kernels    {files} files, {cached} from the cache, {compile_ms:.0} ms");
    }
    if let Some(test) = &report.selftest {
        println!(
            "self-test  product off by {:.1e}, {:.0} TFLOP/s; copy {:.0} GB/s",
            test.gemm_error, test.gemm_tflops, test.copy_gb_per_s
        );
    }
    match &report.problem {
        None => println!("training   on the GPU"),
        Some(problem) => println!("training   on the CPU alone: {problem}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_says_what_the_machine_has_and_why_it_cannot_train_on_a_gpu() {
        let report = examine();
        print(&report);
        assert!(!report.cpu.model.is_empty() && report.cpu.threads > 0);
        assert_eq!(report.libraries.len(), 4);
        for library in &report.libraries {
            assert!(library.path.is_some() != library.problem.is_some(), "{library:?}");
        }
        assert_eq!(report.usable, report.problem.is_none(), "{report:?}");
        serde_json::to_string(&report).expect("the report is JSON");
    }
}
