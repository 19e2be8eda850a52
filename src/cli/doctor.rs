//! `runner doctor`: what this machine can train on, and what is missing.

use std::process::ExitCode;

use super::exit;
use crate::run::machine::{Cpu, KernelReport, Machine, examine};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print the findings as JSON.
    #[arg(long)]
    json: bool,
    /// Exit with code 3 unless a GPU can train.
    #[arg(long)]
    require_gpu: bool,
}

/// Examines the machine and prints what it is good for.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let machine = examine();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&machine)?);
    } else {
        print(&machine);
    }
    Ok(if args.require_gpu && !machine.usable { ExitCode::from(exit::NO_DEVICE) } else { ExitCode::SUCCESS })
}

fn print(machine: &Machine) {
    let Cpu { model, threads, simd } = &machine.cpu;
    println!("cpu        {model}, {threads} threads, {simd}");
    if let Some(version) = &machine.driver {
        println!("driver     {version}");
    }
    for library in &machine.libraries {
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
    for gpu in &machine.gpus {
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
    if let Some(KernelReport { files, cached, compile_ms, .. }) = &machine.kernels {
        println!("kernels    {files} files, {cached} from the cache, {compile_ms:.0} ms");
    }
    if let Some(test) = &machine.selftest {
        println!(
            "self-test  product off by {:.1e}, {:.0} TFLOP/s; copy {:.0} GB/s",
            test.gemm_error, test.gemm_tflops, test.copy_gb_per_s
        );
    }
    match &machine.problem {
        None => println!("training   on the GPU"),
        Some(problem) => println!("training   on the CPU alone: {problem}"),
    }
}
