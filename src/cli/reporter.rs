//! Prints the messages of a run: messages and bars on stderr, events on stderr or as JSON on stdout.

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::sync::Arc;

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};
use serde_json::json;

use super::console::Console;
use super::events_json::JsonEvents;
use super::exit;
use super::streams::{self, say};
use crate::experiment::Experiment;
use crate::plan::memory::Category;
use crate::run::ending::Ending;
use crate::run::lock::list;
use crate::run::messages::{ExperimentSummary, LongWork, Message, NOT_COPIED, Report, Reporter};
use crate::run::ranks::Ended;
use crate::run::sensors;
use crate::run::train::Trained;
use crate::train::Listener;
use crate::train::run::Outcome;
use crate::units::{self, noun};

/// Prints for people, or JSON for programs.
struct Terminal {
    json: bool,
}

static PERSON: Terminal = Terminal { json: false };
static PROGRAM: Terminal = Terminal { json: true };

/// The reporter of this process.
pub fn reporter(json: bool) -> Report {
    if json { &PROGRAM } else { &PERSON }
}

impl Reporter for Terminal {
    fn tell(&self, message: &Message<'_>) {
        match message {
            Message::RankKilled { rank, process, status } => {
                exit::print(&format!("rank {rank} (process {process}) was killed: {status}"));
            }
            Message::RankStuck { rank, process } => {
                exit::print(&format!("rank {rank} (process {process}) does not end and is killed"));
            }
            Message::RankLost(error) => exit::print(&error.to_string()),
            message => say!("{}", units::printable_lines(&text(message))),
        }
    }

    fn progress(&self, work: LongWork, total: u64) -> Box<dyn Fn(u64) + Sync> {
        let bar = match work {
            LongWork::Hashing => hashing(total),
            LongWork::Auditing => {
                bar(total, "computing again {bar:32.cyan/dim} {pos}/{len} parts  {eta} left")
            }
            LongWork::Replaying => bar(total, "replaying {bar:32.cyan/dim} {pos}/{len} steps  {eta} left"),
            LongWork::Validating => bar(total, "validating {wide_bar} {pos}/{len} {eta}"),
            LongWork::Copying => copying(total),
            LongWork::HellaSwag => bar(total, "HellaSwag {wide_bar} {pos}/{len} {eta}"),
            LongWork::Scoring(of) => {
                bar(total, &format!("{} {{wide_bar}} {{pos}}/{{len}} {{eta}}", of.name()))
            }
        };
        Box::new(move |done| bar.inc(done))
    }

    fn training(&self, experiment: &Experiment, sensors: Arc<sensors::SharedReadings>) -> Box<dyn Listener> {
        if self.json {
            Box::new(JsonEvents::new(sensors))
        } else {
            Box::new(Console::new(experiment.log.every, sensors))
        }
    }
}

/// A bar on stderr that is cleared with its last handle.
fn bar(total: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("the template is valid");
    ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr())
        .with_style(style.progress_chars("━╸─"))
        .with_finish(ProgressFinish::AndClear)
}

/// A bar where hashing takes long; a line where there is no terminal.
fn hashing(bytes: u64) -> ProgressBar {
    if bytes <= 1 << 30 {
        return ProgressBar::hidden();
    }
    if !std::io::stderr().is_terminal() {
        say!("hashing {} of data", HumanBytes(bytes));
        return ProgressBar::hidden();
    }
    bar(bytes, "hashing data {bar:32.cyan/dim} {bytes}/{total_bytes}  {eta} left")
}

/// A bar where there is a terminal; a line elsewhere.
fn copying(bytes: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        say!("copying {} of checkpoints", HumanBytes(bytes));
        return ProgressBar::hidden();
    }
    bar(bytes, "copying checkpoints {bar:32.cyan/dim} {bytes}/{total_bytes}  {eta} left")
}

fn text(message: &Message<'_>) -> String {
    match message {
        Message::CheckpointPassedOver { step, why } => {
            format!("skipped the checkpoint of step {step}: {why}")
        }
        Message::CheckpointUnbound { step } => format!(
            "note: the ledger has no state root of step {step}: the checkpoint was saved when the run was \
             stopped, and `proof.digest_every` left it out; `runner verify RUN --replay` makes it again"
        ),
        Message::LedgerMissing { step } => format!(
            "note: the run's `ledger.jsonl` is missing: nothing says that the checkpoint of step {step} is \
             the run's; restore it from a copy"
        ),
        Message::Resuming { folder, from: Some(step), .. } => {
            format!("resuming `{}` at step {step}", folder.display())
        }
        Message::Resuming { folder, from: None, made } => {
            let again = match made {
                0 => String::new(),
                made => format!(", and making the {} again that it had made", units::counted(*made, "step")),
            };
            format!("no whole checkpoint in `{}`: starting at step 0{again}", folder.display())
        }
        Message::NothingToDo { folder, steps } => {
            let all = if *steps == 1 { "its" } else { "all its" };
            format!("nothing to do: `{}` has done {all} {steps} {}", folder.display(), noun(*steps, "step"))
        }
        Message::Training(summary) => summary_text(summary),
        Message::Exchange(how) => format!("exchange: {how}"),
        Message::MadeElsewhere { lock: Some(lock), differences } => {
            format!("same numerics as {lock}, made elsewhere:{}", list(differences))
        }
        Message::MadeElsewhere { lock: None, differences } => {
            format!("same numerics, made elsewhere before:{}", list(differences))
        }
        Message::OtherEvaluations(lock) => format!(
            "the state is that of {lock}, the ledger has another head: its run was evaluated at other \
             steps, or by an older program"
        ),
        Message::RunBeforeFile { name, folder } => format!(
            "`{0}` names the run `{1}` here; `./{0}` is the file or folder",
            name.display(),
            folder.display()
        ),
        Message::Remark(remark) => format!("note: {remark}"),
        Message::NotACheckpoint(path) => {
            format!("note: `{}` is no checkpoint, and is left alone", path.display())
        }
        Message::Folder(folder) => format!("folder: {}", folder.display()),
        Message::NoSensors(why) => format!("the GPU's sensors cannot be read: {why}"),
        Message::GpusLeftOver { used, gpus, workers } => format!(
            "{used} of {gpus} GPUs are used: `parallel.workers` is {workers}, and the number of ranks is a \
             power of two that divides it"
        ),
        Message::LauncherGone => "the process that started this rank has ended: saving and stopping".into(),
        Message::CopyFailed { place, why } => format!(
            "checkpoints cannot be copied to `{place}` now; it is tried again at the next one and at the \
             end: {why}"
        ),
        Message::NotCopied { place, steps, why, run, name } => {
            let [of_which, of] = ["checkpoint", "step"].map(|one| noun(steps.len() as u64, one));
            let steps = steps.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
            format!(
                "{NOT_COPIED}`{place}`: the {of_which} of {of} {steps}: {why}\n  hint: what is not copied is \
                 whole in `{}`; `runner resume {name}` copies what is missing",
                run.checkpoints().display(),
            )
        }
        Message::Fetched { from, step, folder } => {
            format!("brought `{from}` at step {step} to `{}`", folder.display())
        }
        Message::RankKilled { .. } | Message::RankStuck { .. } | Message::RankLost(_) => String::new(),
    }
}

/// A summary of model, device, data and memory before training.
fn summary_text(summary: &ExperimentSummary<'_>) -> String {
    let ExperimentSummary { name, experiment, memory, .. } = summary;
    let name = match experiment.name == *name {
        true => name.clone(),
        false => format!("{name}, of the experiment {}", experiment.name),
    };
    let m = &experiment.model;
    let part = |category| units::bytes(memory.category(category));
    let device = match experiment.parallel.ranks {
        0 | 1 => format!("device: {}", summary.device),
        ranks => format!("devices: {ranks} ranks, the first {}", summary.device),
    };
    let samples = match memory.category(Category::Samples) {
        0 => String::new(),
        samples => format!(", samples {}", units::bytes(samples)),
    };
    let sources: String = summary.sources.iter().map(|source| format!("\nsource {source}")).collect();
    let lines = [
        format!(
            "{name}: {} with {} parameters: {}",
            m.kind(),
            units::count(summary.parameters),
            units::network(m.layers, m.heads, m.channels, m.context)
        ),
        device,
        format!(
            "data: {}, {} of {}, {} to validate on{sources}",
            units::counted(summary.train_tokens, "training token"),
            units::counted(experiment.schedule.steps, "step"),
            units::thousands_to(experiment.tokens_of(0), experiment.largest_step_tokens()),
            units::thousands(summary.val_tokens),
        ),
        format!(
            "memory: {} planned: weights {}, gradients {}, optimizer {}, activations {}{samples}, scratch \
             {}; {} on the host",
            units::bytes(memory.total()),
            part(Category::Parameters),
            part(Category::Gradients),
            part(Category::Optimizer),
            part(Category::Activations),
            part(Category::Scratch),
            part(Category::Host),
        ),
    ];
    lines.join("\n")
}

/// Prints the files of a training and how it ended.
pub fn conclude(trained: Trained, json: bool) -> anyhow::Result<Ending> {
    // The copier waits at the end, when all else is said.
    let Trained { outcome, kept, found_finished, copier: _copier } = trained;
    let ending = Ending::from(&outcome);
    if let (Some(step), Outcome::Finished { root }) = (found_finished, outcome) {
        // It was finished before: this process skipped nothing and took no time.
        let event = json!({
            "event": "finished",
            "step": step,
            "skipped": 0,
            "root": root.to_string(),
            "seconds": 0.0,
        });
        streams::print(&if json { format!("{event}\n") } else { format!("{root}\n") })?;
    }
    let Some(kept) = kept else { return Ok(ending) };
    // Before anything else may fail: with its outputs a run has ended.
    let outputs = match outcome {
        Outcome::Finished { .. } => kept.keep_outputs(reporter(json)),
        _ => Ok(()),
    };
    let drawn = kept.draw();
    for plot in drawn.iter().flatten().filter(|_| !json) {
        say!("plot: {}", plot.display());
    }
    if let Outcome::Finished { root } = outcome {
        // Where both are one terminal, it shows the root already.
        if !(json || io::stdout().is_terminal() && io::stderr().is_terminal()) {
            // The run is complete, even if this cannot be printed.
            streams::print(&format!("{root}\n")).unwrap_or_else(|error| say!("{error:#}"));
        }
    }
    outputs?;
    drawn.map(|_| ending)
}

/// The exit code of a run's processes.
pub fn exit_code(ended: Ended) -> ExitCode {
    ExitCode::from(match ended {
        Ended::Here(ending) => ending.code(),
        Ended::Ranks(code) => code.and_then(|code| u8::try_from(code).ok()).unwrap_or(exit::FAILED),
        Ended::Everywhere => exit::FAILED,
    })
}
