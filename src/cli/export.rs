//! `runner export RUN`: a saved model as files that other programs read, or the statement of how it was made.
//!
//! Takes no lock and changes nothing that is there: a run may be exported while it goes on.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;

use super::reporter::reporter;
use crate::data::Tokenizer;
use crate::experiment::{self, Experiment};
use crate::formats::{ExportError, Parameters, Precision, hf, llmc, slsa};
use crate::run::{ProofRefusal, find};
use crate::store::atomic::{self, NewFolder};
use crate::store::{Manifest, RunPaths};

/// Write a saved model for other programs: Hugging Face, llm.c; or its provenance.
#[derive(clap::Args)]
pub struct Args {
    /// The run: a name under `--runs`, or a folder.
    run: PathBuf,
    /// Whose files to write.
    #[arg(long, value_enum)]
    format: Format,
    /// How to store the numbers. They come from the fp32 masters where the run has any.
    #[arg(long, value_enum, default_value = "fp32")]
    dtype: DtypeArg,
    /// Step of the checkpoint to export; the newest whole one by default.
    #[arg(long, value_name = "STEP")]
    checkpoint: Option<u64>,
    /// The folder to make, which must not be there. By default below `export/` in the run's folder. With
    /// `slsa`, a file; stdout by default.
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// With `slsa`: who made the run, as a URI that names what you trust to have made it.
    #[arg(long, value_name = "URI", default_value = slsa::BUILDER)]
    builder: String,
    /// Folder that holds the run folders.
    #[arg(long, default_value = "runs", value_name = "DIR")]
    runs: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// A folder for `transformers`: safetensors, configuration, tokenizer.
    Hf,
    /// The reference's `model.bin`: version 3 for fp32, 5 for bf16.
    Llmc,
    /// An in-toto statement with SLSA provenance v1, of the newest checkpoint.
    Slsa,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DtypeArg {
    Fp32,
    Bf16,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let paths = RunPaths::new(&find::find(Some(&args.run), &args.runs)?);
    let precision = match args.dtype {
        DtypeArg::Fp32 => Precision::Fp32,
        DtypeArg::Bf16 => Precision::Bf16,
    };
    let format = match args.format {
        Format::Hf => "hf",
        Format::Llmc => "llmc",
        Format::Slsa => return provenance(&paths, &args),
    };
    let experiment = experiment::load(&paths.experiment(), &[])?.experiment;
    let (manifest, state) = find::load_masters(&paths, args.checkpoint, reporter(false))?;
    let name = format!("step_{:08}_{format}_{}", manifest.step, precision.name());
    let out = args.out.unwrap_or_else(|| paths.folder().join("export").join(name));
    if out.exists() {
        return Err(ExportError::Exists { path: out }.into());
    }
    let parameters = Parameters::of_state(&experiment.model, state)?;
    let folder = NewFolder::create(&out)?;
    match args.format {
        // It has returned already.
        Format::Slsa => {}
        Format::Hf => {
            let tokenizer = Tokenizer::new(experiment.data.tokenizer);
            let about =
                hf::About { tokenizer, sample: &experiment.sample, origin: origin(&experiment, &manifest) };
            hf::write(folder.path(), parameters, precision, &about)?;
        }
        Format::Llmc => {
            llmc::write(&folder.path().join("model.bin"), &parameters, precision)?;
        }
    }
    folder.commit()?;
    anstream::eprintln!("{}, step {}, state root {}", experiment.name, manifest.step, manifest.state_root);
    println!("{}", out.display());
    Ok(ExitCode::SUCCESS)
}

/// What was made, of what and how. A run that is not whole is a mismatch: nothing of it is attested.
fn provenance(paths: &RunPaths, args: &Args) -> anyhow::Result<ExitCode> {
    let statement =
        slsa::statement(paths.folder(), &args.builder).map_err(|error| ProofRefusal(error.to_string()))?;
    let text = format!("{statement:#}\n");
    match &args.out {
        None => print!("{text}"),
        Some(file) => {
            atomic::write(file, text.as_bytes())?;
            println!("{}", file.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Which bits of which run the file holds.
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
