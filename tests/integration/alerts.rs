//! The command in `RUNNER_ALERTS_COMMAND`: when it is run, with what, and that it changes nothing.

use std::process::Command;
use std::time::Duration;

use crate::process::{Running, process_of_rank, signal};
use crate::support::{Finished, Lab};

const CI: &str = "experiments/ci.toml";
const VARIABLE: &str = "RUNNER_ALERTS_COMMAND";
const SOON: Duration = Duration::from_secs(60);
/// Writes what it is given, a variable a line, and says something on stdout.
const WRITE: &str = "echo said; env | grep ^RUNNER_ > \"$ALERT_FILE\"";

fn alerting(lab: &Lab, command: &str, arguments: &[&str]) -> Command {
    let mut run = lab.command(&["run", CI, "--runs"]);
    run.arg(lab.path("")).args(arguments).env(VARIABLE, command).env("ALERT_FILE", lab.path("alert"));
    run
}

fn finish(run: &mut Command) -> Finished {
    Finished::from(run.output().expect("the program starts"))
}

/// A variable that the command was given.
fn given(lab: &Lab, name: &str) -> String {
    let text = std::fs::read_to_string(lab.path("alert")).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(&format!("{name}=")).map(str::to_owned));
    value.unwrap_or_else(|| panic!("no {name} in:\n{text}"))
}

#[test]
fn a_finished_run_has_it_run_with_event_step_and_root() {
    let lab = Lab::new();
    let run = finish(&mut alerting(&lab, WRITE, &[]));
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert_eq!(given(&lab, "RUNNER_EVENT"), "finished");
    assert_eq!(given(&lab, "RUNNER_ROOT"), run.root());
    assert_eq!(given(&lab, "RUNNER_STEP"), "20");
    assert_eq!(given(&lab, "RUNNER_RUN"), lab.path("ci").display().to_string());
    assert!(!run.stdout.contains("said") && run.stderr.contains("said"), "{}", run.stdout);
    assert!(!lab.files("ci").values().any(|bytes| bytes.windows(10).any(|part| part == b"ALERT_FILE")));
}

#[test]
fn a_command_that_fails_is_said_and_changes_nothing() {
    let lab = Lab::new();
    let root = lab.run(CI, &["--name", "alone"]).root().to_owned();
    let run = finish(&mut alerting(&lab, "exit 7", &[]));
    assert_eq!((run.code, run.root()), (Some(0), root.as_str()), "{}", run.stderr);
    let said = "the command in `RUNNER_ALERTS_COMMAND` ended with exit status: 7";
    assert!(run.stderr.contains(said), "{}", run.stderr);
    assert_eq!(lab.ledger("ci"), lab.ledger("alone"));
}

#[test]
fn a_run_that_is_stopped_or_refused_has_it_run() {
    let lab = Lab::new();
    let longer =
        ["--set", "schedule.steps=100000", "--set", "checkpoint.keep_last=1", "--set", "eval.every=0"];
    let mut run = Running::start("a run", &mut alerting(&lab, WRITE, &longer));
    run.wait_for_rows(&lab, 2);
    run.signal("TERM");
    assert_eq!(run.end(SOON).code, Some(130));
    assert_eq!(given(&lab, "RUNNER_EVENT"), "stopped");
    let again = finish(&mut alerting(&lab, WRITE, &longer));
    assert_eq!(again.code, Some(1));
    assert_eq!(given(&lab, "RUNNER_EVENT"), "failed");
    assert!(
        given(&lab, "RUNNER_MESSAGE").contains("there is already a run"),
        "{}",
        given(&lab, "RUNNER_MESSAGE")
    );
}

#[test]
fn rank_0_has_it_run_for_another_that_is_killed_and_the_parent_for_rank_0() {
    for (killed, says) in [(1, "rank 1 on"), (0, "rank 0 was killed by a signal")] {
        let lab = Lab::new();
        let longer = ["--set", "schedule.steps=100000", "--set", "checkpoint.keep_last=1"];
        let ranks = [&["--ranks", "2", "--set", "parallel.workers=2"][..], &longer].concat();
        let mut run = Running::start("two ranks", &mut alerting(&lab, WRITE, &ranks));
        run.wait_for_rows(&lab, 2);
        signal(process_of_rank(&lab, "RANK", killed), "KILL");
        assert_ne!(run.end(SOON).code, Some(0));
        assert_eq!(given(&lab, "RUNNER_EVENT"), "failed");
        assert!(given(&lab, "RUNNER_MESSAGE").contains(says), "{}", given(&lab, "RUNNER_MESSAGE"));
    }
}

#[test]
fn no_experiment_can_name_a_command() {
    let lab = Lab::new();
    let file = lab.path("x.toml");
    let text = std::fs::read_to_string(CI).expect("it is there");
    std::fs::write(&file, format!("{text}\n[alerts]\ncommand = \"touch started\"\n")).expect("writable");
    let why = "an experiment starts no program";
    for (what, more) in [(file.to_str().expect("UTF-8"), vec![]), (CI, vec!["--set", "alerts.command=x"])] {
        let refused = lab.run(what, &more);
        refused.assert_fails(2, &[why, "RUNNER_ALERTS_COMMAND"]);
    }
}

/// The command of a member's first rank starts the program itself, as a hook that goes on to the next run
/// may.
#[test]
fn a_program_in_the_command_is_no_rank_and_no_member_of_the_sweep() {
    let lab = Lab::new();
    let sweep = lab.path("pair.toml");
    let base = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(CI).display().to_string();
    std::fs::write(&sweep, format!("extends = {base:?}\n[sweep.grid]\nseed = [0, 1]\n")).expect("writable");
    let hook = format!(
        "env > \"$ALERT_FILE.$$\"; env -u {VARIABLE} {} run {base} --runs '{}' --name next.$$",
        env!("CARGO_BIN_EXE_runner"),
        lab.path("").display()
    );
    let mut run = lab.command(&["run", sweep.to_str().expect("UTF-8"), "--ranks", "2", "--runs"]);
    run.arg(lab.path("")).args(["--set", "parallel.workers=2"]);
    let run = finish(run.env(VARIABLE, hook).env("ALERT_FILE", lab.path("alert")));
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let files: Vec<_> = std::fs::read_dir(lab.path("")).expect("a folder").flatten().collect();
    let of = |start: &str| {
        let start = start.to_owned();
        let is_it = move |name: &std::ffi::OsStr| name.to_string_lossy().starts_with(&start);
        files.iter().map(|file| file.path()).filter(move |path| path.file_name().is_some_and(&is_it))
    };
    assert_eq!(of("alert.").count(), 2, "one for each member");
    for given in of("alert.") {
        let text = std::fs::read_to_string(given).expect("UTF-8");
        let names =
            ["RANK=", "WORLD_SIZE=", "LOCAL_RANK=", "RUNNER_JOBS=", "RUNNER_RUN_ID=", "RUNNER_RANK_KEY="];
        for name in names {
            assert!(!text.lines().any(|line| line.starts_with(name)), "{name} in\n{text}");
        }
    }
    assert_eq!(of("next.").filter(|run| run.join("plots/loss.png").is_file()).count(), 2, "whole runs");
}

#[test]
fn the_runs_of_a_check_tell_nobody() {
    let lab = Lab::new();
    let mut check = lab.command(&["verify", CI, "--twice"]);
    let check = finish(check.env(VARIABLE, WRITE).env("ALERT_FILE", lab.path("alert")));
    assert_eq!(check.code, Some(0), "{}", check.stderr);
    assert!(!lab.path("alert").exists());
}
