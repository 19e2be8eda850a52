//! The checks of a run as sentences for its report page, and the guarantees that files alone cannot show.

use std::path::Path;

use super::{Check, Status};
use crate::experiment;
use crate::run::past_ledger;
use crate::store::RunPaths;

/// The sentence for files that were not checked.
pub fn unchecked(folder: &Path) -> Vec<Check> {
    let check = |name: &str, command: &str| Check {
        status: Status::NotChecked,
        name: name.into(),
        detail: format!("runner {command} {}", shell_word(folder)),
    };
    vec![check("files against checkpoints, ledger, lock, metrics and data", "verify")]
}

/// The checks of the files in `folder` as sentences, and the guarantees that no check of files can show.
pub fn of_run(checks: Vec<Check>, folder: &Path) -> anyhow::Result<Vec<Check>> {
    let mut checks = condensed(checks);
    checks.extend(beyond_files(folder));
    checks.extend(replays(folder)?);
    Ok(checks)
}

/// The checks as sentences, those of whole checkpoints in one: the page lists their roots elsewhere.
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

/// The sentence for a check of `runner verify`.
fn promise(check: &str) -> String {
    let sentence = match check {
        "lock" => "the lock is as runner wrote it",
        "ledger" => "no line of the ledger was edited, moved or lost",
        "ledger and checkpoints" => "ledger and checkpoints are of the same run",
        "events" => "every rewind and every drift in the ledger is one that the run could make",
        "sources" => "the ledger counts the tokens of each source as weights and steps make them",
        "experiment" => "the experiment in the folder is the one that was locked",
        "outputs" => "the lock's outputs are those of the last checkpoint and of the ledger's end",
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

/// A path as a word of a shell's command line.
fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+=:,@%".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text;
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// What trains the steps so far again, and that fewer may be asked for.
fn replay(folder: &Path, steps: u64) -> String {
    let command = format!("runner verify {} --replay 0..", shell_word(folder));
    match steps {
        0 => format!("{command}STEP, once it has made a STEP"),
        _ => format!("{command}{steps}, or fewer of its steps in less time"),
    }
}

/// The guarantees that no file can show, each with the command that checks it.
fn beyond_files(folder: &Path) -> [Check; 2] {
    let open = |name: &str, detail: String| Check { status: Status::NotChecked, name: name.into(), detail };
    [
        open(
            "trained again, it gives the same bits",
            replay(folder, past_ledger::steps_made(&RunPaths::new(folder))),
        ),
        open(
            "killed and resumed, it ends in the same bits",
            "runner verify EXPERIMENT --twice, with the experiment's file".into(),
        ),
    ]
}

/// The result of `proof.replay_every`: a run that made a step twice with other bits has stopped and kept both
/// states.
fn replays(folder: &Path) -> anyhow::Result<Option<Check>> {
    let paths = RunPaths::new(folder);
    let every = experiment::load_recorded(&paths.experiment())?.experiment.proof.replay_every;
    if every == 0 {
        return Ok(None);
    }
    let made = past_ledger::steps_made(&paths) / every;
    let name = "made twice while it trained, a step gives the same bits".to_owned();
    let kept = folder.join("unrepeatable");
    Ok(Some(if kept.exists() {
        Check {
            status: Status::Failed,
            name,
            detail: format!("a step gave two states: both are in {}", kept.display()),
        }
    } else if made == 0 {
        let detail = format!("none was: it is every {every}th step, and the run has made fewer");
        Check { status: Status::NotChecked, name, detail }
    } else {
        let detail = format!("every {every} steps by its settings now, and no two states are kept");
        Check { status: Status::Passed, name, detail }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_command_that_is_shown_can_be_pasted_into_a_shell() {
        let of = |folder: &str, steps| replay(Path::new(folder), steps);
        let rest = "or fewer of its steps in less time";
        assert_eq!(of("runs/ci", 20), format!("runner verify runs/ci --replay 0..20, {rest}"));
        assert_eq!(of("runs/a b", 20), format!("runner verify 'runs/a b' --replay 0..20, {rest}"));
        assert_eq!(shell_word(Path::new("it's")), r"'it'\''s'");
        assert_eq!(shell_word(Path::new("日本/1.0")), "日本/1.0");
        assert_eq!(unchecked(Path::new("a b"))[0].detail, "runner verify 'a b'");
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
