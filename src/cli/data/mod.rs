//! `runner data`: downloads data sets, and makes token shards from text.

mod fetch;
mod prepare;

use clap::{Args, Subcommand};

/// Fetch data sets, and prepare training data.
#[derive(Debug, Args)]
pub struct DataArgs {
    #[command(subcommand)]
    command: DataCommand,
}

#[derive(Debug, Subcommand)]
enum DataCommand {
    /// Download a data set from the Hugging Face hub or GitHub
    ///
    /// A file is checked against its published length and SHA-256 and gets its name when it is complete. A
    /// stopped download continues where it stopped. `HF_ENDPOINT` and `GITHUB_RAW_ENDPOINT` name other
    /// servers, `HF_TOKEN` is sent to the hub.
    Fetch(fetch::FetchArgs),
    /// Encode text, JSON lines or Parquet into token shards
    ///
    /// Text is split into documents at a literal `<|endoftext|>` and at the end of each file; a JSON line or
    /// a Parquet row is a document. The token of that name is put before each document. The shards are the
    /// same for any number of threads.
    Prepare(prepare::PrepareArgs),
}

/// Runs `runner data …`.
pub fn run(args: DataArgs) -> anyhow::Result<()> {
    match args.command {
        DataCommand::Fetch(args) => fetch::run(args),
        DataCommand::Prepare(args) => prepare::run(args),
    }
}
