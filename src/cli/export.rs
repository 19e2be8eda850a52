//! `runner export RUN`: a saved model as files that other programs read, the statement of how it was made, or
//! the run's numbers for programs that compare experiments.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;
use clap::builder::{NonEmptyStringValueParser, PossibleValue, PossibleValuesParser, TypedValueParser};

use super::numbers::from_zero;
use super::reporter::reporter;
use super::streams::{self, say};
use crate::formats::{FORMATS, Format, FormatWriter, Precision, TrackerWriter, WriteStatement, slsa};
use crate::run::export::{ExportRequest, Exported, export};
use crate::run::past_ledger::PastLedger;
use crate::run::{ProofRefusal, find, require_usage, track};
use crate::store::output::{self, OutputKind};
use crate::store::{RunPaths, checkpoint};
use crate::units;
use crate::verify;

/// Write a saved model in the files of other programs, its provenance, or the run for other trackers.
#[derive(clap::Args)]
pub struct Args {
    /// The run: a name under `--runs`, or a folder. With `mlflow` and `wandb` a sweep too.
    run: PathBuf,
    /// The format of the files.
    #[arg(long, value_parser = format_names())]
    format: &'static Format,
    /// How to store the numbers, which come from the fp32 masters where the run has any [default: fp32]
    #[arg(long, value_enum)]
    dtype: Option<DtypeArg>,
    /// Step of the checkpoint to export; the newest whole one by default.
    #[arg(long, value_name = "STEP", value_parser = from_zero::<u64>)]
    checkpoint: Option<u64>,
    /// Export the average of the weights, which a run with `optimizer.ema_decay` keeps.
    #[arg(long)]
    ema: bool,
    /// The folder to create, which must not exist. By default below `export/` in the run's folder. With
    /// `slsa`, a file; stdout by default. With `mlflow` and `wandb` a folder of many runs, to which this one
    /// is added, or in which it is replaced; `mlruns` or `wandb` by default.
    #[arg(short, long, value_name = "PATH")]
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
    let write = match args.format.writer {
        FormatWriter::Model(write) => write,
        FormatWriter::Statement(statement) => return attest(args, statement),
        FormatWriter::Tracker(tracker) => return add_to_tracker(args, tracker),
    };
    require_usage(args.builder.is_none(), || "`--builder` goes with `--format slsa`".into())?;
    let paths = RunPaths::new(&find::find(Some(&args.run), &args.runs)?);
    let precision = match args.dtype.unwrap_or(DtypeArg::Fp32) {
        DtypeArg::Fp32 => Precision::Fp32,
        DtypeArg::Bf16 => Precision::Bf16,
    };
    let request = ExportRequest {
        run: &paths,
        step: args.checkpoint,
        ema: args.ema,
        format: args.format.name,
        write,
        precision,
        out: args.out,
    };
    let Exported { name, manifest, folder } = export(request, reporter(false))?;
    let what = if args.ema { "the average of the weights, " } else { "" };
    say!("{name}, step {}, {what}of the state {} by its manifest", manifest.step, manifest.state_root);
    streams::print(&format!("{}\n", folder.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Adds a run, or the members of a sweep, to a folder of another tracker.
fn add_to_tracker(args: Args, tracker: TrackerWriter) -> anyhow::Result<ExitCode> {
    let of_models = args.dtype.is_some() || args.checkpoint.is_some() || args.builder.is_some() || args.ema;
    require_usage(!of_models, || {
        let name = args.format.name;
        format!(
            "`{name}` has a run's numbers and no model: `--dtype`, `--checkpoint`, `--ema`, `--builder` are \
             of others"
        )
    })?;
    let out = args.out.unwrap_or_else(|| tracker.folder.into());
    let (folders, missing) = track::folders(&args.run, &args.runs)?;
    for folder in folders {
        let run = track::read(&folder)?;
        let written = (tracker.write)(&out, &run)?;
        say!("{}, {} {}", run.name.name, run.rows.len(), units::noun(run.rows.len(), "row"));
        streams::print(&format!("{}\n", written.display()))?;
    }
    if missing > 0 {
        say!("members that have made no step and are left out: {missing}");
    }
    say!("next: {} {}", tracker.next, out.display());
    Ok(ExitCode::SUCCESS)
}

/// Prints the statement of how a run was made, or writes it to a file.
fn attest(args: Args, statement: WriteStatement) -> anyhow::Result<ExitCode> {
    require_usage(args.dtype.is_none() && !args.ema && args.checkpoint.is_none(), || {
        "a statement is of the run's newest checkpoint and has no numbers: `--checkpoint`, `--dtype` and \
         `--ema` are of models"
            .into()
    })?;
    let paths = RunPaths::new(&find::find(Some(&args.run), &args.runs)?);
    args.out.iter().try_for_each(|file| output::require(file, OutputKind::Statement))?;
    verify::lock::require_experiment(&paths)?;
    if let Some((_, newest)) = checkpoint::list(&paths.checkpoints())?.pop() {
        let newest = checkpoint::inspect(&newest)?;
        if let Some(ledger) = PastLedger::read(&paths, Some(&newest)) {
            ledger.require_events(&paths, &newest)?;
        }
    }
    let builder = args.builder.as_deref().unwrap_or(slsa::BUILDER);
    let text = statement(paths.folder(), builder).map_err(|error| ProofRefusal(error.to_string()))?;
    match &args.out {
        None => streams::print(&text)?,
        Some(file) => {
            output::write(file, text.as_bytes(), OutputKind::Statement)?;
            streams::print(&format!("{}\n", file.display()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
