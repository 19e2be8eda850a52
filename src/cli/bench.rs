//! `runner bench EXPERIMENT`: how fast an experiment trains here, and where the time goes.
//!
//! Steps are whole optimizer steps on the experiment's own data, each ended by the one wait for the
//! device that every step has. The table below comes from one more step in which every operation is
//! waited for; see [`crate::ops::timed`].

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use serde_json::json;

use super::session::{self, Device};
use crate::data::Prefetcher;
use crate::experiment::{self, Experiment};
use crate::model::flops::flops_per_token;
use crate::ops::timed::{Record, Timed};
use crate::ops::{Ops, Role};
use crate::plan::memory::Storage;
use crate::train::{TrainError, Trainer};
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
    #[arg(long, default_value_t = 5)]
    steps: usize,
    /// Print the result as JSON on stdout.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut loaded = experiment::load(&args.experiment, &args.set)?;
    let data = session::Data::open(&mut loaded)?;
    // One device is measured, whatever a run would take.
    loaded.experiment.parallel.ranks = 1;
    let experiment = &loaded.experiment;
    let feed = session::feed(experiment, &data, 0, 0)?;
    let result = match Device::open(experiment)? {
        Device::Cpu(cpu) => {
            let plan = session::memory_plan(experiment, &session::cpu_storage(&cpu, experiment)).total();
            measure(Timed::new(cpu), experiment, feed, args.steps, None, plan, |_| peak_resident_bytes())?
        }
        Device::Cuda(cuda) => {
            let plan = session::memory_plan(experiment, &Storage::cuda(experiment)).total();
            session::require_memory(&cuda, experiment, plan)?;
            let peak = session::peak_flops(&cuda);
            measure(Timed::new(*cuda), experiment, feed, args.steps, peak, plan, |timed| {
                Some(timed.inner.taken_bytes())
            })?
        }
        Device::Mirror(mirror) => {
            let plan = session::memory_plan(experiment, &Storage::mirror(experiment)).total();
            measure(Timed::new(mirror), experiment, feed, args.steps, None, plan, |_| peak_resident_bytes())?
        }
    };
    if args.json {
        println!("{}", result.to_json())
    } else {
        print!("{}", result.to_text())
    }
    Ok(ExitCode::SUCCESS)
}

/// What was measured.
struct Measured {
    title: String,
    device: String,
    /// Medians.
    step_ms: f64,
    hashed_step_ms: f64,
    tokens_per_s: f64,
    mfu: Option<f64>,
    planned_bytes: u64,
    peak_bytes: Option<u64>,
    data_waits: u64,
    operations: Vec<(String, Record)>,
}

fn measure<O: Ops>(
    device: Timed<O>,
    experiment: &Experiment,
    mut feed: Prefetcher,
    steps: usize,
    peak_flops: Option<f64>,
    planned_bytes: u64,
    peak_bytes: impl Fn(&Timed<O>) -> Option<u64>,
) -> Result<Measured, TrainError> {
    let mut trainer = Trainer::new(device, experiment)?;
    for _ in 0..2 {
        trainer.step(&mut feed)?;
    }
    let step_ms = median_ms(steps, || trainer.step(&mut feed).map(|_| ()))?;
    let hashed_step_ms = median_ms(steps, || {
        trainer.step(&mut feed)?;
        trainer.state_root().map(|_| ())
    })?;
    let peak_bytes = peak_bytes(&trainer.ops);
    trainer.ops.start();
    trainer.step(&mut feed)?;
    trainer.state_root()?;
    let mut operations: Vec<(String, Record)> =
        trainer.ops.finish().into_iter().map(|(label, record)| (label.name, record)).collect();
    operations.sort_by_key(|(_, record)| std::cmp::Reverse(record.time));

    let tokens_per_s = experiment.batch.tokens as f64 / step_ms * 1e3;
    let flops = flops_per_token(&experiment.model, experiment.batch.seq_len);
    Ok(Measured {
        title: format!(
            "{}: B {}, T {}, {} tokens a step",
            experiment.name,
            experiment.batch.micro,
            experiment.batch.seq_len,
            units::thousands(experiment.batch.tokens)
        ),
        device: format!("{}, {} activations", trainer.ops.device_name(), trainer.ops.dtype(Role::Activation)),
        step_ms,
        hashed_step_ms,
        tokens_per_s,
        mfu: peak_flops.map(|peak| tokens_per_s * flops / peak),
        planned_bytes,
        peak_bytes,
        data_waits: feed.waits().waits,
        operations,
    })
}

fn median_ms(count: usize, mut step: impl FnMut() -> Result<(), TrainError>) -> Result<f64, TrainError> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count.max(1) {
        let start = Instant::now();
        step()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// Most memory this process ever held, where the system tells.
fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

impl Measured {
    fn to_text(&self) -> String {
        let mfu = self.mfu.map_or("unknown".into(), |mfu| format!("{:.1}%", 100.0 * mfu));
        let peak = self.peak_bytes.map_or("unknown".into(), units::bytes);
        let mut text = format!(
            "{}\n{}\n\nstep       {:.1} ms, median\nspeed      {} tok/s, MFU {mfu}\nhashed     {:.1} ms with the state digest, {:+.2}%\n\
             memory     {peak} at the peak, {} planned\ndata       waited for {} times\n\n",
            self.title,
            self.device,
            self.step_ms,
            units::thousands(self.tokens_per_s as u64),
            self.hashed_step_ms,
            100.0 * (self.hashed_step_ms / self.step_ms - 1.0),
            units::bytes(self.planned_bytes),
            self.data_waits,
        );
        let total: f64 = self.operations.iter().map(|(_, r)| r.time.as_secs_f64()).sum();
        text.push_str(&format!(
            "{:<38} {:>6} {:>10} {:>6} {:>9} {:>8}\n",
            "operation", "calls", "ms a step", "share", "TFLOP/s", "GB/s"
        ));
        for (name, record) in &self.operations {
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

    fn to_json(&self) -> serde_json::Value {
        let operations: Vec<_> = self
            .operations
            .iter()
            .map(|(name, r)| {
                json!({"name": name, "calls": r.calls, "ms": r.time.as_secs_f64() * 1e3, "flops": r.flops, "bytes": r.bytes})
            })
            .collect();
        json!({
            "title": self.title,
            "device": self.device,
            "step_ms": self.step_ms,
            "hashed_step_ms": self.hashed_step_ms,
            "tokens_per_s": self.tokens_per_s,
            "mfu": self.mfu,
            "planned_bytes": self.planned_bytes,
            "peak_bytes": self.peak_bytes,
            "data_waits": self.data_waits,
            "operations": operations,
        })
    }
}
