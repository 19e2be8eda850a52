//! The command line: one file a verb.

pub mod bench;
pub mod compare;
pub mod completions;
pub mod config;
mod console;
pub mod data;
pub mod diff;
pub mod doctor;
pub mod eval;
mod events_json;
pub mod exit;
mod experiment;
pub mod export;
pub mod help;
pub mod lock;
mod named;
pub mod new;
pub mod note;
mod numbers;
pub mod plan;
pub mod plot;
pub mod prune;
pub mod report;
mod reporter;
pub mod resume;
pub mod rm;
pub mod run;
pub mod sample;
pub mod show;
mod streams;
mod sweep;
mod sweep_plan;
pub mod verify;
pub mod watch;

use std::process::ExitCode;

use crate::run::stop;
use clap::{FromArgMatches, Parser, Subcommand};

/// Declarative, bit-for-bit reproducible pre-training of GPT-2.
#[derive(Parser)]
#[command(name = "runner", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Train an experiment from its first step.
    Run(run::Args),
    /// Resume a run from its newest whole checkpoint.
    Resume(resume::Args),
    /// Record what an experiment's bits depend on, for `run --lock`.
    Lock(lock::Args),
    /// Measure saved models: validation loss, HellaSwag, LAMBADA, ARC-easy, PIQA.
    Eval(eval::Args),
    /// Check a run to the byte, or that an experiment repeats.
    Verify(verify::Args),
    /// Find the first step, tensor, leaf and element in which two runs differ.
    Diff(diff::Args),
    /// Generate text with a saved model.
    Sample(sample::Args),
    /// Export a saved model for other programs, or its provenance.
    Export(export::Args),
    /// Estimate what a run needs: memory, steps, time, money, disk.
    Plan(plan::Args),
    /// Print the resolved experiment with the origin of every key.
    Config(config::Args),
    /// List runs, or show one in full.
    Show(show::Args),
    /// Write a new experiment to edit: every key with what it does.
    New(new::Args),
    /// Add a note or a tag to a run, or print what there is.
    Note(note::Args),
    /// Remove runs or sweeps: their folders with checkpoints and all.
    Rm(rm::Args),
    /// Remove checkpoints that a run need not keep; say which without `--yes`.
    Prune(prune::Args),
    /// Compare runs over their seeds: means, intervals, differences and how sure they are.
    Compare(compare::Args),
    /// Watch a run live: loss, speed, events, samples.
    Watch(watch::Args),
    /// Draw loss, HellaSwag, gradient norm and learning rate of one or more runs.
    Plot(plot::Args),
    /// Write a run as one self-contained HTML page.
    Report(report::Args),
    /// Fetch data sets; turn text into token shards.
    Data(data::DataArgs),
    /// Measure how fast an experiment trains on this machine.
    Bench(bench::Args),
    /// Examine this machine: libraries, GPUs, kernels, speed.
    Doctor(doctor::Args),
    /// Print completions for a shell.
    Completions(completions::Args),
    /// Print the manual page, or write a page for every verb.
    Man(completions::ManArgs),
}

impl Cli {
    /// Reads the process's arguments.
    ///
    /// # Errors
    /// A wrong command line, or one that asks for help or the version: see [`exit::answer`].
    pub fn from_arguments() -> Result<Cli, clap::Error> {
        Cli::from_arg_matches(&help::command().try_get_matches()?)
    }

    /// Runs the verb.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        stop::survive_file_limit()?;
        let done = |()| ExitCode::SUCCESS;
        match self.verb {
            Verb::Run(args) => run::run(args),
            Verb::Resume(args) => resume::run(args),
            Verb::Lock(args) => lock::run(args).map(done),
            Verb::Eval(args) => eval::run(args),
            Verb::Verify(args) => verify::run(args),
            Verb::Diff(args) => diff::run(args),
            Verb::Sample(args) => sample::run(args),
            Verb::Export(args) => export::run(args),
            Verb::Plan(args) => plan::run(args),
            Verb::Config(args) => config::run(args).map(done),
            Verb::Show(args) => show::run(args),
            Verb::New(args) => new::run(args).map(done),
            Verb::Note(args) => note::run(args).map(done),
            Verb::Rm(args) => rm::run(args).map(done),
            Verb::Prune(args) => prune::run(args),
            Verb::Compare(args) => compare::run(args),
            Verb::Watch(args) => watch::run(args),
            Verb::Plot(args) => plot::run(args).map(done),
            Verb::Report(args) => report::run(args).map(done),
            Verb::Data(args) => data::run(args).map(done),
            Verb::Bench(args) => bench::run(args),
            Verb::Doctor(args) => doctor::run(args),
            Verb::Completions(args) => completions::run(args).map(done),
            Verb::Man(args) => completions::man(args).map(done),
        }
    }
}
