//! `runner doctor`: what this machine can train on, and what is missing.

use std::process::ExitCode;

use super::{exit, streams};
use crate::run::machine::{CpuReport, EmbeddedReport, KernelReport, LibraryReport, Machine, examine};
use crate::units::noun;

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
    let mut lines = vec![format!("cpu        {model}, {threads} {}, {simd}", noun(*threads, "thread"))];
    lines.extend(machine.driver.as_ref().map(|version| format!("driver     {version}")));
    lines.extend(machine.libraries.iter().map(|library| library_text(library, machine)));
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
    if let Some(EmbeddedReport { architectures, nvrtc }) = &machine.embedded {
        lines.push(format!("compiled   for {} by NVRTC {nvrtc}, in this program", architectures.join(", ")));
    }
    if let Some(KernelReport { files, embedded, cached, compile_ms, .. }) = &machine.kernels {
        let compiled = files - embedded - cached;
        let counts = [(*embedded, "compiled in"), (*cached, "from the cache"), (compiled, "by NVRTC now")];
        let counts = counts.iter().filter(|(count, _)| *count > 0);
        let counts: Vec<String> = counts.map(|(count, how)| format!("{count} {how}")).collect();
        let (of_files, counts) = (noun(*files, "file"), counts.join(", "));
        lines.push(format!("kernels    {files} {of_files}: {counts}; {compile_ms:.0} ms"));
    }
    if let Some(test) = &machine.selftest {
        lines.push(format!(
            "self-test  product off by {:.1e}, {:.0} TFLOP/s; copy {:.0} GB/s",
            test.gemm_error, test.gemm_tflops, test.copy_gb_per_s
        ));
    }
    lines.push(match &machine.problem {
        None if machine.driver_suffices => "training   on the GPU, by its driver alone".to_owned(),
        None => "training   on the GPU".to_owned(),
        Some(problem) => format!("training   on the CPU alone: {problem}"),
    });
    lines.join("\n") + "\n"
}

/// A library, or why it is missing and whether that matters here.
fn library_text(library: &LibraryReport, machine: &Machine) -> String {
    let name = &library.name;
    let problem = library.problem.as_deref().unwrap_or("not found");
    match (&library.path, library.unneeded) {
        (Some(path), _) => {
            format!("{name:<10} {} ({})", library.version.as_deref().unwrap_or("found"), path.display())
        }
        (None, Some(_)) if machine.usable => format!("{name:<10} not found, and not needed here"),
        (None, Some(what)) => {
            let hint = problem.lines().last().unwrap_or_default();
            format!("{name:<10} not found; {what}\n{hint}")
        }
        (None, None) => format!("{name:<10} missing: {problem}"),
    }
}
