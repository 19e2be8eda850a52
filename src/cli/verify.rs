//! `runner verify`: a run checked to the byte, trained again in part, or an experiment trained twice.
//!
//! * `files`: locks, ledger, checkpoints and data of a run against each other and this machine.
//! * `replay`: steps of a run trained again, each root compared.
//! * `twice`: an experiment in fresh processes, one of them killed; `golden`: roots in a file.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;

use super::exit;
use crate::report::html;
use crate::run::find;
use crate::verify::{files, replay, twice};

/// Check a run to the byte, or that an experiment repeats.
#[derive(clap::Args)]
pub struct Args {
    /// The run: a name under `--runs`, or a folder; the newest run by default. With `--twice`, the
    /// experiment's TOML file.
    what: Option<PathBuf>,
    /// Train again from the checkpoint of step A (0: from the start) to step B, and compare every step.
    #[arg(long, value_name = "A..B", value_parser = parse_range, conflicts_with = "twice")]
    replay: Option<(u64, u64)>,
    /// Train the experiment twice, and once more with a kill in the middle; all must agree.
    #[arg(long, requires = "what")]
    twice: bool,
    /// With `--twice`: compare with golden roots.
    #[arg(long, value_name = "FILE", requires = "twice")]
    expect: Option<PathBuf>,
    /// With `--twice`: write the golden roots, when all runs agree.
    #[arg(long, value_name = "FILE", requires = "twice", conflicts_with = "expect")]
    bless: Option<PathBuf>,
    /// With `--twice`: set a key. May be repeated.
    #[arg(long, value_name = "KEY=VALUE", requires = "twice")]
    set: Vec<String>,
    /// With `--twice`: keep the run folders here.
    #[arg(long, value_name = "DIR", requires = "twice")]
    keep: Option<PathBuf>,
    /// Folder that holds the run folders.
    #[arg(long, default_value = "runs", value_name = "DIR")]
    runs: PathBuf,
    /// Print the checks as JSON on stdout.
    #[arg(long)]
    json: bool,
}

fn parse_range(text: &str) -> Result<(u64, u64), String> {
    let number = |text: &str| text.parse::<u64>().map_err(|_| format!("`{text}` is not a step"));
    let (from, to) = text.split_once("..").ok_or("expected A..B, such as 5..20")?;
    match (number(from)?, number(to)?) {
        (from, to) if from < to => Ok((from, to)),
        (from, to) => Err(format!("there is no step from {from} to {to}")),
    }
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut report = Report { json: args.json, checks: Vec::new() };
    if let (true, Some(experiment)) = (args.twice, &args.what) {
        let options =
            twice::Options { set: args.set, expect: args.expect, bless: args.bless, keep: args.keep };
        twice::run(experiment, &options, &mut report)?;
    } else {
        let folder = find::find(args.what.as_deref(), &args.runs)?;
        let run = files::verify(&folder, &mut report)?;
        if let Some((from, to)) = args.replay {
            match run {
                Some(run) => replay::verify(run, from..to, &mut report)?,
                None => report.failed("replay", "not begun: the files are not whole"),
            }
        }
    }
    Ok(report.finish())
}

/// The checks of the files of the run in `folder`, made without a word.
pub fn files_of(folder: &Path) -> anyhow::Result<Vec<html::Check>> {
    let mut report = Report { json: true, checks: Vec::new() };
    files::verify(folder, &mut report)?;
    let check = |(status, name, detail)| {
        let status = match status {
            Status::Ok => html::Status::Passed,
            Status::Failed => html::Status::Failed,
            Status::Skipped => html::Status::NotChecked,
        };
        html::Check { status, name, detail }
    };
    Ok(report.checks.into_iter().map(check).collect())
}

/// What a check came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Ok,
    Failed,
    /// It could not be made here, which proves nothing.
    Skipped,
}

/// The checks so far, printed as they are made.
pub struct Report {
    json: bool,
    checks: Vec<(Status, String, String)>,
}

impl Report {
    fn add(&mut self, status: Status, check: &str, detail: String) {
        if !self.json {
            match status {
                Status::Ok => anstream::println!("{GOOD}ok{GOOD:#}      {check}: {detail}"),
                Status::Failed => anstream::println!("{BAD}FAILED{BAD:#}  {check}: {detail}"),
                Status::Skipped => anstream::println!("skipped {check}: {detail}"),
            }
        }
        self.checks.push((status, check.to_owned(), detail));
    }

    pub fn ok(&mut self, check: &str, detail: impl Into<String>) {
        self.add(Status::Ok, check, detail.into());
    }

    pub fn failed(&mut self, check: &str, detail: impl Into<String>) {
        self.add(Status::Failed, check, detail.into());
    }

    pub fn skipped(&mut self, check: &str, detail: impl Into<String>) {
        self.add(Status::Skipped, check, detail.into());
    }

    pub fn is_ok(&self) -> bool {
        self.checks.iter().all(|(status, ..)| *status != Status::Failed)
    }

    fn finish(self) -> ExitCode {
        if self.json {
            let checks: Vec<_> = self
                .checks
                .iter()
                .map(|(status, check, detail)| {
                    let status = match status {
                        Status::Ok => "ok",
                        Status::Failed => "failed",
                        Status::Skipped => "skipped",
                    };
                    json!({"check": check, "status": status, "detail": detail})
                })
                .collect();
            println!("{}", json!({"ok": self.is_ok(), "checks": checks}));
        }
        ExitCode::from(if self.is_ok() { 0 } else { exit::PROOF })
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
