//! `runner bench EXPERIMENT`: how fast an experiment trains here, and where the time goes.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use super::{experiment, streams};
use crate::ops::timed::OperationTime;
use crate::run::bench::{Measured, bench};
use crate::units;

/// Measure how fast an experiment trains on this machine.
#[derive(clap::Args)]
pub struct Args {
    /// The experiment's TOML file.
    experiment: PathBuf,
    /// Set a key, over file and environment. May be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Steps to time, after two that warm up.
    #[arg(long, default_value = "5")]
    steps: NonZeroUsize,
    /// Print the result as JSON on stdout.
    #[arg(long)]
    json: bool,
    /// Folder that holds the runs that `model.init` may name.
    #[arg(long, default_value = "runs", value_name = "DIR")]
    runs: PathBuf,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let measured = bench(experiment::load(&args.experiment, &args.set, &args.runs)?, args.steps.get())?;
    streams::print(&if args.json { format!("{}\n", to_json(&measured)) } else { to_text(&measured) })?;
    Ok(ExitCode::SUCCESS)
}

/// The experiment and its micro-batch.
fn title(measured: &Measured) -> String {
    let Measured { name, micro_batch, seq_len, step_tokens, .. } = measured;
    format!("{name}: B {micro_batch}, T {seq_len}, {} tokens a step", units::thousands(*step_tokens))
}

fn to_text(measured: &Measured) -> String {
    let mfu = measured.mfu.map_or("unknown".into(), |mfu| format!("{:.1}%", 100.0 * mfu));
    let peak = measured.peak_bytes.map_or("unknown".into(), units::bytes);
    let mut text = format!(
        "{}\n{}\n\nstep       {:.1} ms, median\nspeed      {} tok/s, MFU {mfu}\nhashed     {:.1} ms with \
         the state digest, {:+.2}%\n\
         memory     {peak} at the peak, {} planned\ndata       waited for {} times\n\n",
        title(measured),
        measured.device,
        measured.step_ms,
        units::thousands(measured.tokens_per_s as u64),
        measured.hashed_step_ms,
        100.0 * (measured.hashed_step_ms / measured.step_ms - 1.0),
        units::bytes(measured.planned_bytes),
        measured.data_waits,
    );
    let total: f64 = measured.operations.iter().map(|(_, r)| r.time.as_secs_f64()).sum();
    text.push_str(&format!(
        "{:<38} {:>6} {:>10} {:>6} {:>9} {:>8}\n",
        "operation", "calls", "ms a step", "share", "TFLOP/s", "GB/s"
    ));
    for (name, record) in &measured.operations {
        let seconds = record.time.as_secs_f64();
        let rate = |work: f64, unit: f64| {
            if work > 0.0 { format!("{:.2}", work / seconds / unit) } else { "-".into() }
        };
        text.push_str(&format!(
            "{name:<38} {:>6} {:>10.2} {:>5.1}% {:>9} {:>8}\n",
            record.calls,
            seconds * 1e3,
            100.0 * seconds / total,
            rate(record.flops, 1e12),
            rate(record.bytes, 1e9),
        ));
    }
    text.push_str(&format!("{:<38} {:>6} {:>10.2}\n", "all, each waited for", "", total * 1e3));
    text
}

fn to_json(measured: &Measured) -> serde_json::Value {
    let operation = |(name, r): &(String, OperationTime)| {
        json!({
            "name": name, "calls": r.calls, "ms": r.time.as_secs_f64() * 1e3, "flops": r.flops,
            "bytes": r.bytes,
        })
    };
    let operations: Vec<_> = measured.operations.iter().map(operation).collect();
    json!({
        "title": title(measured),
        "device": measured.device,
        "step_ms": measured.step_ms,
        "hashed_step_ms": measured.hashed_step_ms,
        "tokens_per_s": measured.tokens_per_s,
        "mfu": measured.mfu,
        "planned_bytes": measured.planned_bytes,
        "peak_bytes": measured.peak_bytes,
        "data_waits": measured.data_waits,
        "operations": operations,
    })
}
