//! `runner compare`: groups of runs held against each other.

use std::path::PathBuf;
use std::process::ExitCode;

use super::named::named;
use super::streams::{self, say};
use crate::report::compare::{ComparedRuns, Comparison, Measure};

/// Compare runs over their seeds: means, intervals, differences and how sure they are.
///
/// Runs that differ in nothing but the seed are a group; `--by` makes groups by other keys. Differences
/// between groups are paired by seed where seeds match. What the words mean stands in docs/compare.md.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  runner compare first second third
  runner compare runs/lr* --by schedule.learning_rate
  runner compare runs/lr* --by schedule.learning_rate --target 3.28
  runner compare ema --by optimizer.ema_decay --metric ema_val_loss
  runner compare runs/* --json | jq .verdict")]
pub struct Args {
    /// Runs or sweeps: names under `--runs`, or folders.
    #[arg(value_name = "RUN", required = true)]
    run: Vec<PathBuf>,
    /// Keys of the experiment that make the groups [default: all in which runs differ, but for the seed].
    #[arg(long, value_name = "KEY,…", value_delimiter = ',')]
    by: Option<Vec<String>>,
    /// The validation loss to reach [default: the mean final loss of the worst group].
    #[arg(long, value_name = "LOSS", value_parser = finite, allow_hyphen_values = true)]
    target: Option<f64>,
    /// The number of each run to compare, in place of final and best validation loss and HellaSwag: any that
    /// `runner show --columns` has of the metrics, such as ema_val_loss.
    #[arg(long, value_name = "METRIC")]
    metric: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Folder that holds the run folders.
    #[arg(long, default_value = "runs", value_name = "DIR")]
    runs: PathBuf,
}

fn finite(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite());
    number.ok_or_else(|| "expected a number such as 3.28".to_owned())
}

/// Says of which runs the figures are not verified.
pub fn say_unverified(runs: &ComparedRuns) {
    for run in runs.all() {
        if let Some(why) = &run.unverified {
            say!("the figures of {} are not verified: {why}", run.name);
        }
    }
}

/// Prints the comparison. Runs that cannot be compared are listed with the reason, and are no failure unless
/// none is left.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let measure = args.metric.as_deref().map_or(Ok(Measure::ValLoss), Measure::metric)?;
    let found = named(&args.run, &args.runs)?;
    let runs = ComparedRuns::read(&found, args.by.as_deref(), measure)?;
    say_unverified(&runs);
    let Some(comparison) = Comparison::of(&runs, args.target) else {
        let whys: Vec<String> = runs.left_out.iter().map(|run| format!("{}: {}", run.run, run.why)).collect();
        anyhow::bail!("none of these runs can be compared\n  {}", whys.join("\n  "));
    };
    let text = match args.json {
        true => serde_json::to_string_pretty(&comparison)? + "\n",
        false => comparison.to_text(),
    };
    streams::print(&text)?;
    Ok(ExitCode::SUCCESS)
}
