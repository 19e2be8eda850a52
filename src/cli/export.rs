//! `runner export RUN`: a saved model as files that other programs read, or the statement of how it was made.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::ValueEnum;
use clap::builder::{NonEmptyStringValueParser, PossibleValue, PossibleValuesParser, TypedValueParser};

use super::reporter::reporter;
use super::streams::{self, say};
use crate::formats::{FORMATS, Format, FormatWriter, Precision, slsa};
use crate::run::export::{ExportRequest, Exported, export};
use crate::run::{ProofRefusal, find, require_usage};
use crate::store::RunPaths;
use crate::store::output::{self, OutputKind};
use crate::verify;

/// Write a saved model in the files of other programs, or its provenance.
#[derive(clap::Args)]
pub struct Args {
    /// The run: a name under `--runs`, or a folder.
    run: PathBuf,
    /// The format of the files.
    #[arg(long, value_parser = format_names())]
    format: &'static Format,
    /// How to store the numbers, which come from the fp32 masters where the run has any [default: fp32]
    #[arg(long, value_enum)]
    dtype: Option<DtypeArg>,
    /// Step of the checkpoint to export; the newest whole one by default.
    #[arg(long, value_name = "STEP")]
    checkpoint: Option<u64>,
    /// The folder to create, which must not exist. By default below `export/` in the run's folder. With
    /// `slsa`, a file; stdout by default.
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// With `slsa`: the builder of the run, as a URI.
    #[arg(long, value_name = "URI", value_parser = NonEmptyStringValueParser::new())]
    builder: Option<String>,
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
    let precision = match args.dtype.unwrap_or(DtypeArg::Fp32) {
        DtypeArg::Fp32 => Precision::Fp32,
        DtypeArg::Bf16 => Precision::Bf16,
    };
    let write = match args.format.writer {
        FormatWriter::Model(write) => {
            require_usage(args.builder.is_none(), || "`--builder` goes with `--format slsa`".into())?;
            write
        }
        FormatWriter::Statement(statement) => {
            require_usage(args.dtype.is_none(), || {
                "a statement has no numbers: `--dtype` is of models".into()
            })?;
            verify::lock::require_experiment(&paths)?;
            let builder = args.builder.as_deref().unwrap_or(slsa::BUILDER);
            let text = statement(paths.folder(), builder).map_err(|error| ProofRefusal(error.to_string()))?;
            return print_statement(&text, args.out.as_deref());
        }
    };
    let request = ExportRequest {
        run: &paths,
        step: args.checkpoint,
        format: args.format.name,
        write,
        precision,
        out: args.out,
    };
    let Exported { name, manifest, folder } = export(request, reporter(false))?;
    say!("{name}, step {}, state root {}", manifest.step, manifest.state_root);
    streams::print(&format!("{}\n", folder.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Prints a statement, or writes it to a file.
fn print_statement(text: &str, out: Option<&Path>) -> anyhow::Result<ExitCode> {
    match out {
        None => streams::print(text)?,
        Some(file) => {
            output::write(file, text.as_bytes(), OutputKind::Statement)?;
            streams::print(&format!("{}\n", file.display()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
