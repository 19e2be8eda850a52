//! `runner report`: a run as one HTML page.

use std::path::{Path, PathBuf};

use super::{run_argument, verify};
use crate::experiment;
use crate::report::html::{Check, Page, Status};
use crate::store::{RunPaths, atomic};

/// Write a run as one HTML page that needs nothing else.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The run: a name under `--runs`, or a folder; the newest run by default
    run: Option<PathBuf>,
    /// The page [default: report.html in the run folder]
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Check nothing: `runner verify` reads every byte of checkpoints and data, which takes long for a large
    /// run
    #[arg(long)]
    no_verify: bool,
    /// Folder that holds the run folders
    #[arg(long, default_value = "runs", value_name = "DIR")]
    runs: PathBuf,
}

/// Writes the page, and prints its path to stdout. Damage is on the page, and no failure of this verb.
pub fn run(args: Args) -> anyhow::Result<()> {
    let folder = run_argument::find(args.run.as_deref(), &args.runs)?;
    let mut checks = if args.no_verify {
        unchecked(&folder)
    } else {
        anstream::eprintln!("checking every byte of {} (`--no-verify` leaves that out)", folder.display());
        verify::files_of(&folder)?
    };
    checks = condensed(checks);
    checks.extend(beyond_files(&folder));
    checks.extend(replays(&folder)?);
    let failed = checks.iter().filter(|check| check.status == Status::Failed).count();
    let page = Page::gather(&folder, checks)?.render()?;
    let out = args.out.unwrap_or_else(|| RunPaths::new(&folder).report());
    atomic::write(&out, page.as_bytes())?;
    if failed > 0 {
        anstream::eprintln!("{failed} checks failed: `runner verify {}` says more", folder.display());
    }
    println!("{}", out.display());
    Ok(())
}

fn unchecked(folder: &Path) -> Vec<Check> {
    let check = |name: &str, command: &str| Check {
        status: Status::NotChecked,
        name: name.into(),
        detail: format!("runner {command} {}", folder.display()),
    };
    vec![check("files against checkpoints, ledger, lock, metrics and data", "verify")]
}

/// The checks as promises, those of whole checkpoints in one: the page lists their roots elsewhere.
fn condensed(checks: Vec<Check>) -> Vec<Check> {
    let step_of = |check: &Check| {
        let step = check.name.strip_prefix("checkpoint ")?.parse::<u64>().ok()?;
        (check.status == Status::Passed).then_some(step)
    };
    let whole: Vec<u64> = checks.iter().filter_map(step_of).collect();
    let mut condensed: Vec<Check> = checks
        .into_iter()
        .filter(|check| whole.len() < 2 || step_of(check).is_none())
        .map(|check| Check { name: promise(&check.name), ..check })
        .collect();
    if whole.len() >= 2 {
        let steps: Vec<String> = whole.iter().map(u64::to_string).collect();
        let name = format!("every byte of {} checkpoints is what it was", whole.len());
        condensed.insert(
            0,
            Check { status: Status::Passed, name, detail: format!("at steps {}", steps.join(", ")) },
        );
    }
    condensed
}

/// What a check of `runner verify` promises, in the words of a reader.
fn promise(check: &str) -> String {
    let sentence = match check {
        "lock" => "the lock is as runner wrote it",
        "ledger" => "no line of the ledger was edited, moved or lost",
        "ledger and checkpoints" => "ledger and checkpoints tell of the same run",
        "outputs" => "the lock's outputs are those of the last checkpoint",
        "metrics.jsonl" => "every row of metrics.jsonl is what the ledger says",
        "metrics.parquet" => "every row of metrics.parquet is what the ledger says",
        "main.log" => "every line of main.log is what the ledger says",
        "data" => "the data are those that it was trained on",
        "this machine" => "the machine that wrote this page can make these bits",
        other => {
            let of = |prefix: &str| other.strip_prefix(prefix);
            return match (of("checkpoint ").and_then(|rest| rest.parse::<u64>().ok()), of("numerics of ")) {
                (Some(step), _) => format!("every byte of checkpoint {step} is what it was"),
                (_, Some(checkpoint)) => format!("{checkpoint} was made with the numerics of the lock"),
                _ => other.to_owned(),
            };
        }
    };
    sentence.to_owned()
}

/// The promises that no file can show: each with the command that checks it.
fn beyond_files(folder: &Path) -> [Check; 2] {
    let open = |name: &str, detail: String| Check { status: Status::NotChecked, name: name.into(), detail };
    [
        open(
            "trained again, it gives the same bits",
            format!("runner verify {} --replay 0..STEP", folder.display()),
        ),
        open(
            "killed and resumed, it ends in the same bits",
            "runner verify EXPERIMENT --twice, with the experiment's file".into(),
        ),
    ]
}

/// What `proof.replay_every` found: a run that made a step twice with other bits has stopped and kept both.
fn replays(folder: &Path) -> anyhow::Result<Option<Check>> {
    let paths = RunPaths::new(folder);
    let every = experiment::load(&paths.experiment(), &[])?.experiment.proof.replay_every;
    if every == 0 {
        return Ok(None);
    }
    let name = "made twice while it trained, a step gives the same bits".to_owned();
    let kept = folder.join("unrepeatable");
    Ok(Some(if kept.exists() {
        Check {
            status: Status::Failed,
            name,
            detail: format!("a step gave two states: both are in {}", kept.display()),
        }
    } else {
        Check { status: Status::Passed, name, detail: format!("every {every} steps, and none differed") }
    }))
}

#[cfg(test)]
mod tests {
    use super::{Check, Status, condensed, promise};

    #[test]
    fn whole_checkpoints_are_one_promise_and_damaged_ones_stay() {
        let check = |status, name: &str| Check { status, name: name.into(), detail: "root".into() };
        let (whole, damaged) = (Status::Passed, Status::Failed);
        let checks = vec![
            check(whole, "checkpoint 5"),
            check(damaged, "checkpoint 10"),
            check(whole, "checkpoint 15"),
        ];
        let names: Vec<String> = condensed(checks).into_iter().map(|check| check.name).collect();
        assert_eq!(
            names,
            ["every byte of 2 checkpoints is what it was", "every byte of checkpoint 10 is what it was"]
        );
        assert_eq!(condensed(vec![check(whole, "checkpoint 5")])[0].detail, "root");
    }

    #[test]
    fn checks_read_as_promises_and_unknown_ones_stay() {
        assert_eq!(promise("checkpoint 500"), "every byte of checkpoint 500 is what it was");
        assert_eq!(promise("checkpoint 500 in the ledger"), "checkpoint 500 in the ledger");
        assert_eq!(
            promise("numerics of checkpoint 5"),
            "checkpoint 5 was made with the numerics of the lock"
        );
        assert_eq!(promise("something new"), "something new");
    }
}
