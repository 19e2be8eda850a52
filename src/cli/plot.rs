//! `runner plot`: draws runs.

use std::path::PathBuf;

use anyhow::Context;
use clap::ValueEnum;

use crate::report::{self, PlotOptions, RunData, XAxis};

/// Draw loss, HellaSwag, learning rate and gradient norm of one run, or of several over each other.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Run folder, name under runs/, or a main.log file of the reference
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<String>,
    /// Folder for loss.png and loss.svg [default: plots/ in the run folder, when there is one run]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// What stands on the horizontal axis
    #[arg(long, value_enum, default_value = "step")]
    x: X,
    /// Steps the strong line averages over; 1 smooths nothing [default: a fortieth of the run]
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u32).range(1..))]
    smooth: Option<u32>,
    /// Logarithmic loss axis
    #[arg(long)]
    log_y: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum X {
    Step,
    Tokens,
}

/// Draws, and prints the paths written to stdout.
pub fn run(args: Args) -> anyhow::Result<()> {
    let runs: Vec<RunData> = args.runs.iter().map(|run| RunData::load(run)).collect::<Result<_, _>>()?;
    let own_folder = match runs.as_slice() {
        [run] => run.folder.as_ref().map(|folder| folder.join("plots")),
        _ => None,
    };
    let out = args
        .out
        .or(own_folder)
        .context("where should the pictures go?\n  hint: several runs, or a lone main.log, need --out DIR")?;
    let options = PlotOptions {
        x: match args.x {
            X::Step => XAxis::Step,
            X::Tokens => XAxis::Tokens,
        },
        smooth: args.smooth.map(|steps| steps as usize),
        log_y: args.log_y,
    };
    for path in report::plot_runs(&runs, &options, &out)? {
        println!("{}", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::store::metrics::{Action, MetricsRow, MetricsWriter};

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        plot: Args,
    }

    fn plot(arguments: &[&str]) -> anyhow::Result<()> {
        run(Command::try_parse_from(["plot"].iter().chain(arguments))?.plot)
    }

    #[test]
    fn one_run_draws_into_its_folder_and_several_need_out() {
        let folder = tempfile::tempdir().unwrap();
        let mut metrics = MetricsWriter::create(folder.path()).unwrap();
        for step in 0..20 {
            let row = MetricsRow::new(step, (step + 1) * 64, Action::Update);
            metrics.append(&MetricsRow { loss: Some(5.0 - step as f64 * 0.1), ..row }).unwrap();
        }
        let run = folder.path().to_str().unwrap();
        plot(&[run, "--x", "tokens", "--smooth", "5", "--log-y"]).unwrap();
        let plots = folder.path().join("plots");
        assert!(plots.join("loss.png").is_file() && plots.join("loss.svg").is_file());

        let log = folder.path().join("main.log");
        std::fs::write(&log, "s:0 tel:5.0\ns:10 tel:4.1\n").unwrap();
        let both = [run, log.to_str().unwrap()];
        assert!(plot(&both).unwrap_err().to_string().contains("--out"));
        let out = folder.path().join("both");
        plot(&[both[0], both[1], "--out", out.to_str().unwrap()]).unwrap();
        assert!(out.join("loss.png").is_file());
    }
}
