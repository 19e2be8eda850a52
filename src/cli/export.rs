//! `runner export RUN`: a saved model as files that other programs read, or the statement of how it was made.
//!
//! Takes no lock and changes no existing file: a run may be exported while it is training.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::ValueEnum;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

use super::reporter::reporter;
use super::streams::{self, say};
use crate::data::Tokenizer;
use crate::experiment::{self, Experiment};
use crate::formats::{Export, FORMATS, Format, FormatError, Parameters, Precision, Writer, slsa};
use crate::run::{ProofRefusal, find};
use crate::store::atomic::{self, NewFolder};
use crate::store::{Manifest, RunPaths};

/// Write a saved model in the files of other programs, or its provenance.
#[derive(clap::Args)]
pub struct Args {
    /// The run: a name under `--runs`, or a folder.
    run: PathBuf,
    /// The format of the files.
    #[arg(long, value_parser = format_names())]
    format: &'static Format,
    /// How to store the numbers. They come from the fp32 masters where the run has any.
    #[arg(long, value_enum, default_value = "fp32")]
    dtype: DtypeArg,
    /// Step of the checkpoint to export; the newest whole one by default.
    #[arg(long, value_name = "STEP")]
    checkpoint: Option<u64>,
    /// The folder to create, which must not exist. By default below `export/` in the run's folder. With
    /// `slsa`, a file; stdout by default.
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// With `slsa`: the builder of the run, as a URI.
    #[arg(long, value_name = "URI", default_value = slsa::BUILDER)]
    builder: String,
    /// Folder that holds the run folders.
    #[arg(long, default_value = "runs", value_name = "DIR")]
    runs: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DtypeArg {
    Fp32,
    Bf16,
}

/// The values of `--format`, which are the table's.
fn format_names() -> impl TypedValueParser<Value = &'static Format> {
    let names = FORMATS.iter().map(|format| PossibleValue::new(format.name).help(format.about));
    PossibleValuesParser::new(names).map(|name| {
        FORMATS.iter().find(|format| format.name == name).expect("clap takes the names of the table alone")
    })
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let paths = RunPaths::new(&find::find(Some(&args.run), &args.runs)?);
    let precision = match args.dtype {
        DtypeArg::Fp32 => Precision::Fp32,
        DtypeArg::Bf16 => Precision::Bf16,
    };
    let write = match args.format.writer {
        Writer::Model(write) => write,
        Writer::Statement(statement) => {
            let text =
                statement(paths.folder(), &args.builder).map_err(|error| ProofRefusal(error.to_string()))?;
            return print_statement(&text, args.out.as_deref());
        }
    };
    let experiment = experiment::load_recorded(&paths.experiment())?.experiment;
    let (manifest, state) = find::load_masters(&paths, args.checkpoint, reporter(false))?;
    let name = format!("step_{:08}_{}_{}", manifest.step, args.format.name, precision.name());
    let out = args.out.unwrap_or_else(|| paths.folder().join("export").join(name));
    if out.exists() {
        return Err(FormatError::Exists { path: out }.into());
    }
    let state_file = find::state_file(&paths, manifest.step);
    let parameters = Parameters::of_state(&state_file, &experiment.model, state)?;
    let folder = NewFolder::create(&out)?;
    let export = Export {
        parameters,
        precision,
        tokenizer: Tokenizer::new(experiment.data.tokenizer),
        sample: &experiment.sample,
        origin: origin(&experiment, &manifest),
    };
    write(folder.path(), export)?;
    folder.commit()?;
    say!("{}, step {}, state root {}", experiment.name, manifest.step, manifest.state_root);
    streams::print(&format!("{}\n", out.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Prints a statement, or writes it to a file.
fn print_statement(text: &str, out: Option<&Path>) -> anyhow::Result<ExitCode> {
    match out {
        None => streams::print(text)?,
        Some(file) => {
            atomic::write(file, text.as_bytes())?;
            streams::print(&format!("{}\n", file.display()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Run, step and state root of the file.
fn origin(experiment: &Experiment, manifest: &Manifest) -> BTreeMap<String, String> {
    let entries = [
        ("experiment", experiment.name.clone()),
        ("step", manifest.step.to_string()),
        ("tokens", manifest.tokens.to_string()),
        ("state_root", manifest.state_root.to_string()),
        ("created_by", manifest.created_by.clone()),
    ];
    entries.map(|(key, value)| (format!("runner.{key}"), value)).into()
}
