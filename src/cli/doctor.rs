//! `runner doctor`: what this machine can train on, and what is missing.

use std::process::ExitCode;

use super::{exit, streams};
use crate::run::machine::{CpuReport, KernelReport, Machine, examine};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print the findings as JSON.
    #[arg(long)]
    json: bool,
    /// Exit with code 3 unless a GPU can train.
    #[arg(long)]
    require_gpu: bool,
}

/// Examines the machine and prints what it can do.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let machine = examine();
    streams::print(&if args.json {
        serde_json::to_string_pretty(&machine)? + "\n"
    } else {
        to_text(&machine)
    })?;
    Ok(if args.require_gpu && !machine.usable { ExitCode::from(exit::NO_DEVICE) } else { ExitCode::SUCCESS })
}

/// The findings, a line each.
fn to_text(machine: &Machine) -> String {
    let CpuReport { model, threads, simd } = &machine.cpu;
    let mut lines = vec![format!("cpu        {model}, {threads} threads, {simd}")];
    lines.extend(machine.driver.as_ref().map(|version| format!("driver     {version}")));
    lines.extend(machine.libraries.iter().map(|library| {
        let name = &library.name;
        match &library.path {
            Some(path) => {
                let version = library.version.as_deref().unwrap_or("found");
                format!("{name:<10} {version} ({})", path.display())
            }
            None => {
                format!("{name:<10} missing: {}", library.problem.as_deref().unwrap_or("not found"))
            }
        }
    }));
    for gpu in &machine.gpus {
        let free = gpu.free_bytes.map_or_else(|| "?".to_owned(), |bytes| (bytes >> 20).to_string());
        let peak = gpu
            .peak_bf16_tflops
            .map_or_else(|| "unknown peak".to_owned(), |peak| format!("{peak:.0} TFLOP/s bf16 peak"));
        lines.push(format!(
            "gpu {}      {}, {}, {} SMs, {} MiB, {free} MiB free, {peak}",
            gpu.ordinal,
            gpu.name,
            gpu.architecture,
            gpu.sm_count,
            gpu.total_bytes >> 20
        ));
    }
    if let Some(KernelReport { files, cached, compile_ms, .. }) = &machine.kernels {
        lines.push(format!("kernels    {files} files, {cached} from the cache, {compile_ms:.0} ms"));
    }
    if let Some(test) = &machine.selftest {
        lines.push(format!(
            "self-test  product off by {:.1e}, {:.0} TFLOP/s; copy {:.0} GB/s",
            test.gemm_error, test.gemm_tflops, test.copy_gb_per_s
        ));
    }
    lines.push(match &machine.problem {
        None => "training   on the GPU".to_owned(),
        Some(problem) => format!("training   on the CPU alone: {problem}"),
    });
    lines.join("\n") + "\n"
}
