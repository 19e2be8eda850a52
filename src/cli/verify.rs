//! `runner verify`: a run checked to the byte, trained again in part, or an experiment trained twice.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::json;

use super::numbers::{from_one, from_zero};
use super::reporter::reporter;
use super::{exit, streams};
use crate::run::{UsageError, find, require_usage};
use crate::units;
use crate::verify::audit::{self, AuditOptions};
use crate::verify::expect::Anchor;
use crate::verify::{Check, Checks, Status, files, rebuild, replay, sweep, twice};

/// Check a run to the byte, or that an experiment repeats.
#[derive(clap::Args)]
pub struct Args {
    /// The run or sweep: a name under `--runs`, or a folder; the newest run by default. With `--twice`, an
    /// experiment: a TOML file, or the name of a shipped one.
    what: Option<PathBuf>,
    /// Train steps A to B - 1 again, from the checkpoint of step A (0: from the start), and compare each.
    #[arg(long, value_name = "A..B", value_parser = parse_range, conflicts_with = "twice",
        allow_hyphen_values = true)]
    replay: Option<(u64, u64)>,
    /// Compute N of the parts that the run's audits kept again, on this CPU.
    #[arg(long, value_name = "N", conflicts_with_all = ["twice", "replay"],
        value_parser = from_one::<NonZeroU32>)]
    audit: Option<NonZeroU32>,
    /// With `--audit`: which N; another number draws others. By default a number that the system draws, and
    /// that is shown.
    #[arg(long, value_name = "S", requires = "audit", value_parser = from_zero::<u64>)]
    seed: Option<u64>,
    /// Train the experiment twice, and once more with a kill in the middle; all must agree.
    #[arg(long, requires = "what")]
    twice: bool,
    /// What the run must have come to, kept elsewhere: the head of its ledger or a state root (64 hexadecimal
    /// digits), a lock, or golden roots; of a sweep, its hash. With `--twice`: golden roots.
    #[arg(long, value_name = "HASH|FILE")]
    expect: Option<PathBuf>,
    /// With `--twice`: write the golden roots, when all runs agree.
    #[arg(long, value_name = "FILE", requires = "twice", conflicts_with = "expect")]
    bless: Option<PathBuf>,
    /// With `--twice` or `--replay`: set a key. May be repeated. `device.kind=mirror` repeats on a CPU what a
    /// Hopper GPU computed.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// With `--twice`: keep the run folders here.
    #[arg(long, value_name = "DIR", requires = "twice")]
    keep: Option<PathBuf>,
    /// Folder that holds the run folders.
    #[arg(long, default_value = "runs", value_name = "DIR")]
    runs: PathBuf,
    /// First write again what of `metrics.jsonl`, `metrics.parquet` and `main.log` is lost or damaged, from
    /// the ledger. Timings that are lost stay empty.
    #[arg(long, conflicts_with = "twice")]
    rebuild: bool,
    /// Print the checks as JSON on stdout.
    #[arg(long)]
    json: bool,
}

fn parse_range(text: &str) -> Result<(u64, u64), String> {
    const EXPECTED: &str = "expected A..B, the steps from A on and before B, such as 5..20";
    let number = |text: &str| text.parse::<u64>().map_err(|_| format!("`{text}` is not a step: {EXPECTED}"));
    let (from, to) = text.split_once("..").ok_or(EXPECTED)?;
    match (number(from)?, number(to)?) {
        (from, to) if from < to => Ok((from, to)),
        (from, to) => Err(format!("there is no step from {from} to {to}: {EXPECTED}")),
    }
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let json = args.json;
    // An error of stdout does not end the checks.
    let mut shown = Ok(());
    let mut show = |check: &Check| {
        if !json && shown.is_ok() {
            shown = streams::print_styled(&to_text(check));
        }
    };
    let mut checks = Checks::new(&mut show);
    make(args, &mut checks)?;
    let ok = checks.all_passed();
    if json {
        let made: Vec<_> = checks
            .into_made()
            .iter()
            .map(|Check { status, name, detail }| {
                json!({"check": name, "status": word(*status), "detail": detail})
            })
            .collect();
        streams::print(&format!("{}\n", json!({"ok": ok, "checks": made})))?;
    }
    shown?;
    Ok(ExitCode::from(if ok { 0 } else { exit::PROOF }))
}

fn make(args: Args, checks: &mut Checks<'_>) -> anyhow::Result<()> {
    require_usage(args.set.is_empty() || args.twice || args.replay.is_some(), || {
        "`--set` goes with `--twice` or `--replay`: without them nothing is trained".into()
    })?;
    if let (true, Some(experiment)) = (args.twice, &args.what) {
        super::experiment::require(experiment)?;
        require_usage(args.expect.as_ref().is_none_or(|file| file.exists()), || {
            "the file that `--expect` names is not there\n  hint: `--bless` writes one".into()
        })?;
        let options = twice::TwiceOptions {
            set: args.set,
            runs: args.runs,
            expect: args.expect,
            bless: args.bless,
            keep: args.keep,
        };
        return twice::verify(experiment, &options, checks);
    }
    if let Some(set) = args.set.iter().find(|set| set.starts_with("data.") || set.starts_with("eval.")) {
        return Err(UsageError(format!(
            "`--set {set}`: a replay reads the data and measures the sets that the run's lock names\n  \
             hint: `--set` with `--replay` is for the device, such as `device.kind=mirror`"
        ))
        .into());
    }
    if let Some(folder) = find::find_sweep(args.what.as_deref(), &args.runs) {
        require_usage(args.replay.is_none() && args.audit.is_none() && !args.rebuild, || {
            "`--replay`, `--audit` and `--rebuild` take one run\n  hint: name a member, such as `NAME/001`"
                .into()
        })?;
        let expected = args.expect.map(|expected| {
            expected.to_string_lossy().to_ascii_lowercase().parse().map_err(|_| {
                UsageError(
                    "`--expect` of a sweep takes its hash, which `runner run` prints at its end".into(),
                )
            })
        });
        return sweep::verify(&folder, expected.transpose()?, checks, reporter(args.json));
    }
    let expected = args.expect.as_deref().map(Anchor::read).transpose()?;
    let folder = find::find(args.what.as_deref(), &args.runs)?;
    if let Some((from, to)) = args.replay {
        replay::require_possible(&folder, &(from..to))?;
    }
    if args.rebuild {
        rebuild::rebuild(&folder, checks)?;
    }
    let report = reporter(args.json);
    let run = files::verify(&folder, checks, report)?;
    match (&expected, &run) {
        (Some(expected), Some(run)) => expected.verify(run, checks),
        (Some(_), None) => checks.failed("expected", "not compared: the files are not whole"),
        (None, _) => {}
    }
    match (args.replay, args.audit, run) {
        (Some((from, to)), _, Some(run)) => replay::verify(run, from..to, &args.set, checks, report)?,
        (Some(_), _, None) => checks.failed("replay", "not begun: the files are not whole"),
        (None, Some(count), Some(run)) => {
            let drawn =
                || getrandom::u64().context("the system has no random numbers for the seed of the audit");
            let seed = args.seed.map_or_else(drawn, Ok)?;
            audit::verify(run, AuditOptions { count: count.get() as usize, seed }, checks, report)?
        }
        (None, Some(_), None) => checks.failed("audit", "not begun: the files are not whole"),
        (None, None, _) => {}
    }
    Ok(())
}

fn word(status: Status) -> &'static str {
    match status {
        Status::Passed => "ok",
        Status::Failed => "failed",
        Status::NotChecked => "skipped",
    }
}

/// A check as a line.
fn to_text(Check { status, name, detail }: &Check) -> String {
    let [name, detail] = [name, detail].map(|text| units::printable_lines(text));
    match status {
        Status::Passed => format!("{GOOD}ok{GOOD:#}      {name}: {detail}\n"),
        Status::Failed => format!("{BAD}FAILED{BAD:#}  {name}: {detail}\n"),
        Status::NotChecked => format!("skipped {name}: {detail}\n"),
    }
}

const GOOD: anstyle::Style =
    anstyle::Style::new().bold().fg_color(Some(anstyle::Color::Ansi(anstyle::AnsiColor::Green)));
const BAD: anstyle::Style =
    anstyle::Style::new().bold().fg_color(Some(anstyle::Color::Ansi(anstyle::AnsiColor::Red)));

#[cfg(test)]
mod tests {
    use super::parse_range;

    #[test]
    fn ranges_are_two_rising_steps() {
        assert_eq!(parse_range("5..20"), Ok((5, 20)));
        for wrong in ["5", "5..", "..5", "5..5", "7..5", "a..b", "-1..3"] {
            assert!(parse_range(wrong).is_err(), "{wrong}");
        }
    }
}
