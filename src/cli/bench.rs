//! `runner bench EXPERIMENT`: how fast an experiment trains here, and where the time goes.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use super::numbers::from_one;
use super::{experiment, streams};
use crate::run::bench::{Measured, StepPart, bench};
use crate::units;

/// Measure how fast an experiment trains on this machine.
#[derive(clap::Args)]
pub struct Args {
    /// A TOML file, or the name of a shipped experiment: quickstart, ci, ….
    experiment: PathBuf,
    /// Set a key, over file and environment. May be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Steps to time, after two that warm up.
    #[arg(long, default_value = "5", value_parser = from_one::<NonZeroUsize>)]
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
    format!("{name}: B {micro_batch}, T {seq_len}, {} a step", units::counted(*step_tokens, "token"))
}

fn to_text(measured: &Measured) -> String {
    let mfu = measured.mfu.map_or("unknown".into(), |mfu| format!("{:.1}%", 100.0 * mfu));
    let peak = measured.peak_bytes.map_or("unknown".into(), units::bytes);
    let load = measured.load.map_or(String::new(), |load| {
        let of_clock = measured
            .mfu_at_clock
            .map_or(String::new(), |mfu| format!(", MFU {:.1}% of the peak at this clock", 100.0 * mfu));
        format!(
            "clock      {:.0} MHz on average, {:.0} of {:.0} W{of_clock}\n",
            load.sm_mhz, load.watts, load.limit_watts
        )
    });
    let mut text = format!(
        "{}\n{}\n\nstep       {:.1} ms, median\nspeed      {} tok/s, MFU {mfu}\n{load}hashed     {:.1} ms \
         with the state digest, {:+.2}%\n\
         memory     {peak} at the peak, {} planned\ndata       waited for {} {}\n\n",
        title(measured),
        measured.device,
        measured.step_ms,
        units::rounded(measured.tokens_per_s),
        measured.hashed_step_ms,
        100.0 * (measured.hashed_step_ms / measured.step_ms - 1.0),
        units::bytes(measured.planned_bytes),
        measured.data_waits,
        units::noun(measured.data_waits, "time"),
    );
    let total: f64 = measured.operations.iter().map(|part| part.record.time.as_secs_f64()).sum();
    let widest = measured.operations.iter().map(|part| part.name.len()).max().unwrap_or(0).max(38);
    // Of a device without known peaks the columns would be empty.
    let floors = measured.operations.iter().any(|part| part.floor.is_some());
    let columns =
        |floor: &str, gap: &str| if floors { format!(" {floor:>9} {gap:>8}") } else { String::new() };
    text.push_str(&format!(
        "{:<widest$} {:>6} {:>10}{} {:>6} {:>9} {:>8}\n",
        "operation",
        "calls",
        "ms a step",
        columns("floor", "gap"),
        "share",
        "TFLOP/s",
        "GB/s"
    ));
    let ms = |seconds: f64| format!("{:.2}", seconds * 1e3);
    for StepPart { name, record, floor } in &measured.operations {
        let seconds = record.time.as_secs_f64();
        let rate = |work: f64, unit: f64| {
            if work > 0.0 { format!("{:.2}", work / seconds / unit) } else { "-".into() }
        };
        let (floor, gap) = match floor.map(|floor| floor.as_secs_f64()) {
            Some(floor) => (ms(floor), ms(seconds - floor)),
            None => ("-".into(), "-".into()),
        };
        text.push_str(&format!(
            "{name:<widest$} {:>6} {:>10}{} {:>5.1}% {:>9} {:>8}\n",
            record.calls,
            ms(seconds),
            columns(&floor, &gap),
            100.0 * seconds / total,
            rate(record.flops, 1e12),
            rate(record.bytes, 1e9),
        ));
    }
    let least: f64 = measured.operations.iter().filter_map(|part| part.floor).map(|f| f.as_secs_f64()).sum();
    let sums = columns(&ms(least), &ms(total - least));
    text.push_str(&format!("{:<widest$} {:>6} {:>10}{sums}\n", "all, each waited for", "", ms(total)));
    text
}

fn to_json(measured: &Measured) -> serde_json::Value {
    let operation = |StepPart { name, record: r, floor }: &StepPart| {
        json!({
            "name": name, "calls": r.calls, "ms": r.time.as_secs_f64() * 1e3, "flops": r.flops,
            "bytes": r.bytes, "floor_ms": floor.map(|floor| floor.as_secs_f64() * 1e3),
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
        "mfu_at_clock": measured.mfu_at_clock,
        "sm_mhz": measured.load.map(|load| load.sm_mhz),
        "watts": measured.load.map(|load| load.watts),
        "limit_watts": measured.load.map(|load| load.limit_watts),
        "planned_bytes": measured.planned_bytes,
        "peak_bytes": measured.peak_bytes,
        "data_waits": measured.data_waits,
        "operations": operations,
    })
}
