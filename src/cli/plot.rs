//! `runner plot`: draws runs.

use std::path::PathBuf;

use clap::ValueEnum;

use super::streams::{self, say};
use crate::report::{self, Baselines, PlotOptions, RunData, Size, Theme, XAxis};
use crate::run::UsageError;

/// Draw loss, HellaSwag, gradient norm and learning rate of one run or several.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Run folder, name under `--runs`, or a main.log file of llm.c
    #[arg(value_name = "RUN", required = true)]
    run: Vec<String>,
    /// Folder that holds the run folders
    #[arg(long, default_value = "runs", value_name = "DIR")]
    runs: PathBuf,
    /// A file ending in .png or .svg, or a folder for loss.png and loss.svg [default: plots/ in the
    /// run folder, when there is one run]
    #[arg(short, long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// The horizontal axis
    #[arg(long, value_enum, default_value = "step")]
    x: X,
    /// Steps the strong line averages over; 1 smooths nothing [default: a fortieth of the run]
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u32).range(1..))]
    smooth: Option<u32>,
    /// Logarithmic axes; y is that of loss and gradient norm
    #[arg(long, value_enum, value_name = "AXES")]
    log: Option<LogArg>,
    /// Colours
    #[arg(long, value_enum, default_value = "light")]
    theme: ThemeArg,
    /// Published GPT-2 and GPT-3 models to draw as levels; may be repeated [default: of the runs' own
    /// size, where the text is comparable]
    #[arg(long, value_enum, value_name = "SIZE")]
    baseline: Vec<Baseline>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum X {
    /// Optimizer steps
    Step,
    /// Training tokens: comparable between batch sizes
    Tokens,
    /// Floating-point operations: comparable between model sizes
    Flops,
    /// Time spent in training steps
    Hours,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogArg {
    X,
    Y,
    Xy,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ThemeArg {
    Light,
    Dark,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Baseline {
    None,
    #[value(name = "124m", alias = "124M")]
    M124,
    #[value(name = "350m", alias = "350M")]
    M350,
    #[value(name = "774m", alias = "774M")]
    M774,
    #[value(name = "1558m", alias = "1558M")]
    M1558,
}

impl Baseline {
    fn size(self) -> Option<Size> {
        match self {
            Baseline::None => None,
            Baseline::M124 => Some(Size::M124),
            Baseline::M350 => Some(Size::M350),
            Baseline::M774 => Some(Size::M774),
            Baseline::M1558 => Some(Size::M1558),
        }
    }
}

/// Draws, and prints the paths written to stdout.
pub fn run(args: Args) -> anyhow::Result<()> {
    let runs: Vec<RunData> =
        args.run.iter().map(|run| RunData::load(run, &args.runs)).collect::<Result<_, _>>()?;
    for run in &runs {
        if let Some(why) = &run.unverified {
            say!("the curves of {} are not verified: {why}", run.name);
        }
    }
    let own_folder = match runs.as_slice() {
        [run] => run.folder.as_ref().map(|folder| folder.join("plots")),
        _ => None,
    };
    let out = args.out.or(own_folder).ok_or_else(|| {
        UsageError(
            "where should the pictures go?\n  hint: several runs, or a lone main.log, need --out PATH".into(),
        )
    })?;
    let options = PlotOptions {
        x: match args.x {
            X::Step => XAxis::Step,
            X::Tokens => XAxis::Tokens,
            X::Flops => XAxis::Flops,
            X::Hours => XAxis::Hours,
        },
        smooth: args.smooth.map(|steps| steps as usize),
        log_x: matches!(args.log, Some(LogArg::X | LogArg::Xy)),
        log_y: matches!(args.log, Some(LogArg::Y | LogArg::Xy)),
        theme: match args.theme {
            ThemeArg::Light => Theme::Light,
            ThemeArg::Dark => Theme::Dark,
        },
        baselines: match args.baseline.as_slice() {
            [] => Baselines::Comparable,
            chosen => Baselines::Chosen(chosen.iter().filter_map(|baseline| baseline.size()).collect()),
        },
    };
    for path in report::plot_runs(&runs, &options, &out)? {
        streams::print(&format!("{}\n", path.display()))?;
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
        plot(&[run, "--x", "tokens", "--smooth", "5", "--log", "xy", "--theme", "dark"]).unwrap();
        let plots = folder.path().join("plots");
        assert!(plots.join("loss.png").is_file() && plots.join("loss.svg").is_file());

        let log = folder.path().join("main.log");
        std::fs::write(&log, "s:0 tel:5.0\ns:10 tel:4.1\n").unwrap();
        let both = [run, log.to_str().unwrap()];
        assert!(plot(&both).unwrap_err().to_string().contains("--out"));
        let out = folder.path().join("both");
        plot(&[both[0], both[1], "--out", out.to_str().unwrap()]).unwrap();
        assert!(out.join("loss.png").is_file());

        let svg = folder.path().join("deep/curve.svg");
        plot(&[run, "-o", svg.to_str().unwrap(), "--baseline", "124M"]).unwrap();
        assert!(std::fs::read_to_string(&svg).unwrap().contains("GPT-2 124M"));
        assert_eq!(
            std::fs::read_dir(svg.parent().unwrap()).unwrap().count(),
            1,
            "only the file that was named"
        );
    }
}
