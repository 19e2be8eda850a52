//! `runner export RUN`: a run for other programs.

use std::path::PathBuf;

use clap::ValueEnum;

use super::exit::ProofRefusal;
use super::resume;
use crate::export::slsa;
use crate::store;

/// Write a run in a format of other programs.
#[derive(clap::Args)]
pub struct Args {
    /// The run: a name under `--runs`, or a folder. The newest run by default.
    run: Option<PathBuf>,
    /// What to write.
    #[arg(long, value_enum)]
    format: Format,
    /// Where to write it; stdout by default.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Who made the run, as a URI that names what you trust to have made it.
    #[arg(long, value_name = "URI", default_value = slsa::BUILDER)]
    builder: String,
    /// Folder that holds the run folders.
    #[arg(long, default_value = "runs", value_name = "DIR")]
    runs: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// An in-toto statement with SLSA provenance v1.
    Slsa,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let folder = resume::find(args.run.as_deref(), &args.runs)?;
    let text = match args.format {
        Format::Slsa => {
            // A run that is not whole is a mismatch: nothing of it is attested.
            let statement = slsa::statement(&folder, &args.builder).map_err(|error| ProofRefusal(error.to_string()))?;
            format!("{statement:#}\n")
        }
    };
    match args.out {
        None => print!("{text}"),
        Some(file) => {
            store::atomic::write(&file, text.as_bytes())?;
            anstream::eprintln!("wrote `{}`", file.display());
        }
    }
    Ok(())
}
