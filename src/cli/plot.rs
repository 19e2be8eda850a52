//! `runner plot`: draws runs.

use std::path::{Path, PathBuf};

use clap::ValueEnum;

use super::compare::say_unverified;
use super::named;
use super::streams::{self, say};
use crate::report::compare::{ComparedRuns, Measure, notes_on_losses};
use crate::report::{self, Baselines, PlotOptions, RunData, Size, Theme, XAxis};
use crate::run::{UsageError, require_usage};
use crate::store::RunPaths;
use crate::store::run_folder::is_copy;

/// Draw loss, HellaSwag, gradient norm and learning rate of one run or several.
///
/// `--by` draws groups of runs, each as the mean of its runs with a band; `--sweep` the final validation
/// loss, or another `--metric`, over a key that runs differ in.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Run folder, name under `--runs`, sweep, or a main.log file of llm.c
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
    /// The most steps that a straight line is fitted to for each point of the strong line: an odd number, an
    /// even one takes one more; 1 smooths nothing. Fewer near both ends: after n steps those at most n / 4
    /// away, and none beyond the last [default: a fortieth of the run]
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
    /// Keys of the experiment that make groups: a line for the mean of each, and a band over its runs;
    /// failed runs are left out
    #[arg(long, value_name = "KEY,…", value_delimiter = ',')]
    by: Vec<String>,
    /// The final validation loss over this key, or over two as a heat map
    #[arg(long, value_name = "KEY[,KEY]", value_delimiter = ',',
        conflicts_with_all = ["by", "x", "smooth", "log", "baseline"])]
    sweep: Vec<String>,
    /// With `--sweep`: the number of each run to draw, as `runner compare --metric` takes it
    #[arg(long, value_name = "METRIC", requires = "sweep")]
    metric: Option<String>,
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
    /// The learning rate of a range test, logarithmic
    #[value(name = "learning_rate")]
    LearningRate,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
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
    let paths = if args.sweep.is_empty() { lines(args)? } else { swept(args)? };
    for path in paths {
        streams::print(&format!("{}\n", path.display()))?;
    }
    Ok(())
}

/// Runs, or groups of them, over steps.
fn lines(args: Args) -> anyhow::Result<Vec<PathBuf>> {
    let chosen = &args.baseline;
    let is_none = |baseline: &Baseline| *baseline == Baseline::None;
    require_usage(!chosen.iter().any(is_none) || chosen.iter().all(is_none), || {
        "`--baseline none` stands beside another\n  hint: leave one of them out".to_owned()
    })?;
    args.out.iter().try_for_each(|out| report::require_pictures(out, "loss"))?;
    let runs = load(&args)?;
    for run in &runs {
        if let Some(why) = &run.unverified {
            say!("the curves of {} are not verified: {why}", run.name);
        }
    }
    let own_folder = match runs.as_slice() {
        [run] => run.folder.as_ref().filter(|folder| !is_copy(folder)).map(|folder| folder.join("plots")),
        _ => None,
    };
    let out = args.out.clone().or(own_folder).ok_or_else(no_out)?;
    let options = options(&args);
    let folders: Vec<(&str, &Path)> =
        runs.iter().filter_map(|run| Some((run.name.as_str(), run.folder.as_deref()?))).collect();
    notes_on_losses(&folders).iter().for_each(|note| say!("{note}"));
    Ok(if args.by.is_empty() {
        let colors = options.theme.colors().runs.len();
        if runs.len() > colors {
            say!(
                "{} runs share {colors} colours, every {colors}th has the same: `--by KEY` draws groups",
                runs.len()
            );
        }
        report::plot_runs(&runs, &options, &out)?
    } else {
        let (paths, notes) = report::plot_groups(runs, &args.by, &options, &out)?;
        notes.iter().for_each(|note| say!("{note}"));
        paths
    })
}

/// The runs of the arguments; of a sweep those that have begun.
fn load(args: &Args) -> anyhow::Result<Vec<RunData>> {
    let mut runs = Vec::new();
    for argument in &args.run {
        let Some(sweep) = named::sweep(Path::new(argument), &args.runs) else {
            runs.push(RunData::load(argument, &args.runs)?);
            continue;
        };
        for member in named::members(&sweep)? {
            if RunPaths::new(&member.folder).metrics_jsonl().exists() {
                runs.push(RunData { name: member.name, ..RunData::from_folder(&member.folder)? });
            } else {
                say!("{} is not drawn: it has not begun", member.name);
            }
        }
    }
    Ok(runs)
}

/// The final loss over swept keys.
fn swept(args: Args) -> anyhow::Result<Vec<PathBuf>> {
    require_usage(args.sweep.len() <= 2, || {
        "`--sweep` takes one key, or two for a heat map\n  hint: `--by` makes groups by any number".to_owned()
    })?;
    let measure = args.metric.as_deref().map_or(Ok(Measure::ValLoss), Measure::metric)?;
    let out = args.out.clone().ok_or_else(no_out)?;
    report::require_pictures(&out, "sweep")?;
    let arguments: Vec<PathBuf> = args.run.iter().map(PathBuf::from).collect();
    let runs = ComparedRuns::read(&named::named(&arguments, &args.runs)?, Some(&args.sweep), measure)?;
    require_usage(runs.by.len() == args.sweep.len(), || {
        format!("`--sweep` names `{}` twice", runs.by.join("`, `"))
    })?;
    for run in &runs.left_out {
        say!("{} is left out: {}", run.run, run.why);
    }
    say_unverified(&runs);
    runs.notes.iter().for_each(|note| say!("{note}"));
    if runs.by.len() > 1 {
        // Over one key, runs that differ in others have a colour for each.
        runs.notes_on_samples().iter().for_each(|note| say!("{note}"));
    }
    Ok(report::swept::plot(&runs, theme(args.theme), &out)?)
}

fn no_out() -> UsageError {
    UsageError(
        "where should the pictures go?\n  hint: several runs, or a lone main.log, need --out PATH".into(),
    )
}

fn theme(theme: ThemeArg) -> Theme {
    match theme {
        ThemeArg::Light => Theme::Light,
        ThemeArg::Dark => Theme::Dark,
    }
}

fn options(args: &Args) -> PlotOptions {
    PlotOptions {
        x: match args.x {
            X::Step => XAxis::Step,
            X::Tokens => XAxis::Tokens,
            X::Flops => XAxis::Flops,
            X::Hours => XAxis::Hours,
            X::LearningRate => XAxis::LearningRate,
        },
        smooth: args.smooth.map(|steps| steps as usize),
        log_x: matches!(args.log, Some(LogArg::X | LogArg::Xy)) || matches!(args.x, X::LearningRate),
        log_y: matches!(args.log, Some(LogArg::Y | LogArg::Xy)),
        theme: theme(args.theme),
        baselines: match args.baseline.as_slice() {
            [] => Baselines::Comparable,
            chosen => Baselines::Chosen(chosen.iter().filter_map(|baseline| baseline.size()).collect()),
        },
    }
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

        let both = plot(&[run, "--baseline", "none", "--baseline", "124m"]).unwrap_err();
        assert!(both.to_string().contains("`--baseline none` stands beside another"));

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
