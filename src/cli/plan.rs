//! `runner plan EXPERIMENT`: what a run, or every run of a sweep, needs in memory, time, money and disk,
//! before anything is started.
//! For people in at most 80 columns, or as JSON.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use super::numbers::from_zero;
use super::reporter::reporter;
use super::{experiment, streams, sweep_plan};
use crate::experiment::{Declared, largest};
use crate::plan::data_facts::DataFacts;
use crate::plan::memory::{Category, PlanEntry, Share};
use crate::plan::{RunPlan, SweepPlan, Target};
use crate::run::{initial, require_usage};
use crate::units::{self, counted, noun};

/// Estimate what a run needs: memory, steps, time, money, disk. Needs no GPU and no data; what is there is
/// looked at.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  runner plan gpt2_33b --gpu h100 --gpus 8
  runner plan gpt2_124m --gpu rtx4090 --set batch.micro=16
  runner plan gpt2_124m --json | jq .memory.total_bytes")]
pub struct Args {
    /// A TOML file, or the name of a shipped experiment: quickstart, ci, ….
    experiment: PathBuf,
    /// Set a key, over file and environment. May be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Plan for this GPU: h100, h100-pcie, h200, gh200, b200, a100, a100-40, l40s, a10, l4, rtx4090, rtx3090,
    /// or `cpu`. By default this machine's GPU; without one, h100 for an experiment on CUDA and else this
    /// CPU.
    #[arg(long, value_name = "GPU")]
    gpu: Option<String>,
    /// How many of them, in one machine.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = from_zero::<u64>)]
    gpus: u64,
    /// Print the plan as JSON on stdout.
    #[arg(long)]
    json: bool,
    /// Folder that holds the runs that `model.init` may name.
    #[arg(long, default_value = "runs", value_name = "DIR")]
    runs: PathBuf,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let declared = experiment::load_declared(&args.experiment, &args.set, &args.runs)?;
    experiment::say_all_replaced(&declared);
    let first = match &declared {
        Declared::Experiment(loaded) => loaded,
        Declared::Sweep(sweep) => &sweep.members[0].loaded,
    };
    let target = Target::choose(args.gpu.as_deref(), &first.experiment)?;
    let gpus = args.gpus;
    let most = largest("parallel.workers");
    require_usage(gpus.is_power_of_two() && gpus <= most, || {
        let most = units::thousands(most);
        format!("`--gpus` is {gpus}, expected a power of two, at most {most}: it divides the virtual workers")
    })?;
    require_usage(gpus == 1 || !matches!(target, Target::Cpu { .. }), || {
        format!("`--gpus` is {gpus}, but the plan is for a CPU\n  hint: name the GPU with `--gpu h100`")
    })?;
    let share = Share { devices: args.gpus };
    let text = match declared {
        Declared::Experiment(mut loaded) => {
            let data = DataFacts::look(&mut loaded)?;
            let mut plan = RunPlan::of(&loaded.experiment, target, share, data)?;
            let param = target.storage(&loaded.experiment).param;
            plan.notes.extend(initial::refusal(&loaded, param, reporter(args.json)));
            if args.json { serde_json::to_string_pretty(&plan)? + "\n" } else { to_text(&plan) }
        }
        Declared::Sweep(sweep) => {
            let refusal = initial::refusal_of_members(&sweep, reporter(args.json));
            let mut plan = SweepPlan::of(sweep, args.gpu.as_deref(), share)?;
            plan.notes.extend(refusal);
            if args.json { serde_json::to_string_pretty(&plan)? + "\n" } else { sweep_plan::to_text(&plan) }
        }
    };
    streams::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn mib(bytes: u64) -> String {
    units::thousands(bytes.div_ceil(1 << 20))
}

pub fn hours(seconds: f64) -> String {
    let minutes = (seconds / 60.0).round() as u64;
    match minutes {
        0..60 => units::duration(seconds),
        60..6_000 => format!("{}h {:02}m", minutes / 60, minutes % 60),
        _ => format!("{:.1} days", seconds / 86_400.0),
    }
}

fn dollars(amount: f64) -> String {
    if amount == 0.0 { String::new() } else { format!(", ${}", units::thousands(amount.round() as u64)) }
}

fn title(category: Category) -> &'static str {
    match category {
        Category::Parameters => "parameters",
        Category::Gradients => "gradients",
        Category::Optimizer => "optimizer",
        Category::Activations => "activations",
        Category::Samples => "samples (evaluation uses the training's buffers)",
        Category::Scratch => "scratch",
        Category::Host => "host",
    }
}

/// The whole plan.
fn to_text(plan: &RunPlan) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = PlanText(plan).write(&mut out);
    out
}

/// A plan as text.
struct PlanText<'a>(&'a RunPlan);

impl PlanText<'_> {
    fn write(&self, out: &mut String) -> std::fmt::Result {
        let (m, d) = (&self.0.model, &self.0.device);
        let parameters = units::count(m.parameters);
        writeln!(out, "{}: {} with {parameters} parameters", self.0.experiment, m.kind)?;
        writeln!(out, "  {}", units::network(m.layers, m.heads, m.channels, m.context))?;
        let count = if d.count > 1 { format!("{} × ", d.count) } else { String::new() };
        let rates = if d.measured { "rates measured on such a card" } else { "an estimate" };
        writeln!(out, "  on {count}{}, {}: {rates}", d.name, d.precision)?;
        self.write_memory(out)?;
        self.write_work(out)?;
        self.write_time(out)?;
        self.write_disk(out)?;
        for note in &self.0.notes {
            writeln!(out)?;
            wrapped(out, "note: ", note)?;
        }
        Ok(())
    }

    fn write_memory(&self, out: &mut String) -> std::fmt::Result {
        let memory = &self.0.memory;
        writeln!(out, "\nmemory{:>50}", if self.0.device.count > 1 { "MiB, each" } else { "MiB" })?;
        for category in Category::ALL {
            let entries: Vec<_> = memory.entries.iter().filter(|entry| entry.category == category).collect();
            if entries.is_empty() || category == Category::Host {
                continue;
            }
            writeln!(out, "  {}", title(category))?;
            // Entries below one MiB share one line.
            let (small, large): (Vec<&PlanEntry>, Vec<&PlanEntry>) =
                entries.into_iter().partition(|entry| entry.bytes < 1 << 20);
            for entry in &large {
                writeln!(out, "    {:<40} {:>11}", entry.name, mib(entry.bytes))?;
            }
            if !small.is_empty() {
                let name = if small.len() == 1 {
                    small[0].name.clone()
                } else {
                    format!("{} small buffers", small.len())
                };
                writeln!(out, "    {name:<40} {:>11}", mib(small.iter().map(|entry| entry.bytes).sum()))?;
            }
        }
        writeln!(out, "  {:<42} {:>11}", "total", mib(memory.total_bytes))?;
        self.write_fit(out)?;
        writeln!(out, "  {:<42} {:>11}", "on the host", mib(memory.host_bytes))?;
        for entry in
            memory.entries.iter().filter(|entry| entry.category == Category::Host && entry.bytes >= 1 << 20)
        {
            writeln!(out, "    {:<49} {:>2}", entry.name, mib(entry.bytes))?;
        }
        Ok(())
    }

    /// Whether the run fits the device, and what would make it fit.
    fn write_fit(&self, out: &mut String) -> std::fmt::Result {
        let memory = &self.0.memory;
        let Some(usable) = memory.usable_bytes else { return Ok(()) };
        if memory.total_bytes <= usable {
            let free = mib(usable - memory.total_bytes);
            return writeln!(out, "  fits: {free} MiB of {} stay free", mib(usable));
        }
        let missing = mib(memory.total_bytes - usable);
        writeln!(out, "  does not fit: {missing} MiB more than the {} there are", mib(usable))?;
        for advice in &memory.advice {
            let bits = if advice.changes_bits { "other bits" } else { "same bits" };
            let pace = 100.0 * (advice.step_factor - 1.0);
            let total = mib(advice.total_bytes);
            writeln!(out, "    {:<40} {total:>7} MiB, {pace:+.1}% time, {bits}", advice.change)?;
        }
        if memory.advice.is_empty() {
            writeln!(out, "    no single change makes it fit: take a smaller model or more GPUs")?;
        }
        Ok(())
    }

    fn write_work(&self, out: &mut String) -> std::fmt::Result {
        let work = &self.0.work;
        writeln!(out, "\nwork")?;
        writeln!(
            out,
            "  {} of {} {}: {} {}",
            counted(work.steps, "step"),
            units::thousands_to(work.first_step_tokens, work.tokens_per_step),
            noun(work.tokens_per_step, "token"),
            units::count(work.tokens),
            noun(work.tokens, "token")
        )?;
        if let Some(seq_len) = work.first_seq_len {
            writeln!(out, "  pieces of {} at first", counted(seq_len as u64, "token"))?;
        }
        let each = if self.0.device.count > 1 { " on each GPU" } else { "" };
        writeln!(out, "  {} a step{each}", counted(work.micro_steps_per_device, "micro-batch"))?;
        writeln!(
            out,
            "  {:.2} GFLOP a token, {:.2e} FLOP in all",
            self.0.model.flops_per_token / 1e9,
            work.flops
        )?;
        match (work.epochs, self.0.data.train_tokens) {
            (Some(epochs), Some(tokens)) => {
                writeln!(out, "  {epochs:.2} epochs over {}", counted(tokens, "token"))
            }
            _ => self.0.data.sources.iter().try_for_each(|source| writeln!(out, "  source {source}")),
        }
    }

    fn write_time(&self, out: &mut String) -> std::fmt::Result {
        let time = &self.0.time;
        writeln!(out, "\ntime")?;
        let mut parts =
            vec![format!("gradients {:.1}", time.gradients_ms), format!("update {:.1}", time.update_ms)];
        for (name, ms) in [("digest", time.digest_ms), ("exchange", time.exchange_ms)] {
            if ms > 0.0 {
                parts.push(format!("{name} {ms:.1}"));
            }
        }
        writeln!(out, "  {:.1} ms a step: {}", time.step_ms, parts.join(", "))?;
        let mfu = time.mfu.map_or(String::new(), |mfu| format!(", {:.1}% MFU", 100.0 * mfu));
        writeln!(out, "  {} a second{mfu}", counted(time.tokens_per_s.round() as u64, "token"))?;
        if time.evaluations > 0 {
            writeln!(out, "  {} for {}", hours(time.evaluation_s), counted(time.evaluations, "evaluation"))?;
        }
        let price = if time.dollars_per_hour > 0.0 {
            format!(" at ${:.2} an hour", time.dollars_per_hour)
        } else {
            String::new()
        };
        writeln!(out, "  the run: {}{}{price}", hours(time.total_s), dollars(time.dollars))?;
        if let Some(llmc) = &time.llmc {
            writeln!(
                out,
                "  at llm.c's {} tok/s a GPU: {}{}, evaluation aside",
                units::rounded(llmc.tokens_per_s_per_gpu),
                hours(llmc.total_s),
                dollars(llmc.dollars)
            )?;
        }
        Ok(())
    }

    fn write_disk(&self, out: &mut String) -> std::fmt::Result {
        let disk = &self.0.disk;
        writeln!(out, "\ndisk")?;
        writeln!(
            out,
            "  {} for {} of {} at a time, of {} saved",
            units::bytes(disk.checkpoints_kept.saturating_mul(disk.checkpoint_bytes)),
            counted(disk.checkpoints_kept, "checkpoint"),
            units::bytes(disk.checkpoint_bytes),
            units::thousands(disk.checkpoints_saved)
        )?;
        writeln!(out, "  {} for metrics, ledger and logs", units::bytes(disk.records_bytes))
    }
}

/// A paragraph of at most 80 columns with a hanging indent.
pub fn wrapped(out: &mut String, lead: &str, text: &str) -> std::fmt::Result {
    let indent = lead.chars().count();
    let (mut line, mut empty) = (lead.to_owned(), true);
    for word in text.split_whitespace() {
        if !empty && line.chars().count() + 1 + word.chars().count() > 80 {
            writeln!(out, "{line}")?;
            (line, empty) = (" ".repeat(indent), true);
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    writeln!(out, "{line}")
}

#[cfg(test)]
mod tests {
    use super::to_text;
    use crate::plan::run_plan::tests::plan;

    #[test]
    fn a_plan_fits_80_columns_whether_the_run_fits_or_not() {
        let fits = to_text(&plan("gpt2_33b.toml", "h100", 8, &["parallel.workers=1"]));
        let not = to_text(&plan("gpt2_33b.toml", "a100-40", 1, &[]));
        assert!(fits.contains("fits: ") && not.contains("does not fit"), "{fits}{not}");
        for line in fits.lines().chain(not.lines()) {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
}
