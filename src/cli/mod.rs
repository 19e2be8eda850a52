//! The command line: one file a verb.

pub mod bench;
pub mod config;
mod console;
pub mod data;
pub mod diff;
pub mod doctor;
pub mod eval;
mod events_json;
pub mod exit;
pub mod export;
pub mod lock;
mod locking;
mod past;
pub mod plot;
pub mod report;
pub mod resume;
pub mod run;
mod run_argument;
pub mod sample;
mod session;
pub mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

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
    /// Go on with a run from its newest whole checkpoint.
    Resume(resume::Args),
    /// Write down what an experiment's bits depend on, for `run --lock`.
    Lock(lock::Args),
    /// Measure a saved model: validation loss, HellaSwag.
    Eval(eval::Args),
    /// Check a run to the byte, or that an experiment repeats.
    Verify(verify::Args),
    /// Find the first step, tensor, leaf and element in which two runs differ.
    Diff(diff::Args),
    /// Let a saved model write.
    Sample(sample::Args),
    /// Write a saved model for other programs: Hugging Face, llm.c; or its provenance.
    Export(export::Args),
    /// Print an experiment as it resolves, with the origin of every key.
    Config(config::Args),
    /// Draw loss, HellaSwag, gradient norm and learning rate of one or more runs.
    Plot(plot::Args),
    /// Write a run as one HTML page that needs nothing else.
    Report(report::Args),
    /// Turn text into token shards.
    Data(data::DataArgs),
    /// Measure how fast an experiment trains on this machine.
    Bench(bench::Args),
    /// Examine this machine: libraries, GPUs, kernels, speed.
    Doctor(doctor::Args),
}

impl Cli {
    /// Does what was asked for.
    pub fn run(self) -> anyhow::Result<ExitCode> {
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
            Verb::Config(args) => config::run(args).map(done),
            Verb::Plot(args) => plot::run(args).map(done),
            Verb::Report(args) => report::run(args).map(done),
            Verb::Data(args) => data::run(args).map(done),
            Verb::Bench(args) => bench::run(args),
            Verb::Doctor(args) => doctor::run(args),
        }
    }
}
