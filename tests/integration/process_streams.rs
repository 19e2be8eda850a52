//! Closed or full stdout and stderr stop no training, and no verb panics on them.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::support::{Finished, Lab};

const CI: &str = "experiments/ci.toml";

/// A stream that its reader has closed.
fn unread() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

/// A stream whose disk is full.
fn full() -> Stdio {
    File::options().write(true).open("/dev/full").expect("Linux").into()
}

fn training(lab: &Lab, name: &str, arguments: &[&str]) -> Command {
    let mut command = lab.command(&["run", CI, "--name", name, "--runs"]);
    command.arg(lab.path("")).args(arguments);
    command
}

/// Asserts that all twenty steps of a run and the evaluation after them are done, and its files are whole.
#[track_caller]
fn assert_done(lab: &Lab, name: &str) {
    assert_eq!(lab.ledger(name).len(), 21);
    lab.verify(name, &[]).assert_says(&["metrics.jsonl: "]);
}

#[test]
fn training_goes_on_when_nobody_reads_its_events() {
    let lab = Lab::new();
    let mut command = training(&lab, "unread", &["--json"]);
    let mut run = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut line = String::new();
    let mut reader = BufReader::new(run.stdout.take().expect("a pipe"));
    reader.read_line(&mut line).expect("the first event");
    assert!(line.starts_with("{\"event\":\"began\""), "{line}");
    drop(reader);
    let ended = Finished::from(run.wait_with_output().expect("it ends"));
    ended.assert_fails(0, &["stdout was closed by its reader"]);
    assert_done(&lab, "unread");
}

#[test]
fn training_goes_on_when_stdout_or_stderr_is_full_and_says_so_once() {
    let lab = Lab::new();
    for (name, arguments) in [("events", &["--json"][..]), ("root", &[])] {
        let ended = training(&lab, name, arguments).stdout(full()).output().expect("it starts");
        let ended = Finished::from(ended);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert_eq!(ended.stderr.matches("No space left on device").count(), 1, "{}", ended.stderr);
        assert_done(&lab, name);
    }
    let ended = training(&lab, "silent", &[]).stderr(full()).output().expect("it starts");
    assert_eq!(Finished::from(ended).root(), include_str!("../golden/ci_cpu.root").trim());
    let ended = training(&lab, "gone", &[]).stderr(unread()).stdout(unread()).status().expect("it starts");
    assert_eq!(ended.code(), Some(0));
    assert_done(&lab, "gone");
}

/// Verbs that only print, on a run called `ci`.
const PRINTING: [&[&str]; 16] = [
    &["help"],
    &["help", "run"],
    &["--version"],
    &["man"],
    &["completions", "bash"],
    &["config", CI],
    &["config", CI, "--json"],
    &["plan", CI],
    &["doctor"],
    &["doctor", "--json"],
    &["show", "ci"],
    &["show", "ci", "--json"],
    &["watch", "ci"],
    &["verify", "ci"],
    &["diff", "ci", "ci"],
    &["sample", "ci", "--tokens", "4"],
];

#[test]
fn verbs_that_print_end_quietly_without_a_reader_and_fail_once_on_a_full_disk() {
    let lab = Lab::new();
    lab.run(CI, &[]).root();
    let runs = lab.path("").display().to_string();
    for arguments in PRINTING {
        let of_run = ["show", "watch", "verify", "diff", "sample"].contains(&arguments[0]);
        let runs = if of_run { vec!["--runs", &runs] } else { Vec::new() };
        let to = |stdout: Stdio| {
            let mut command = lab.command(&[arguments, &runs].concat());
            Finished::from(command.stdout(stdout).stderr(Stdio::piped()).output().expect("it starts"))
        };
        let quiet = to(unread());
        assert_eq!(quiet.code, Some(0), "{arguments:?}: {}", quiet.stderr);
        for word in ["error", "panicked"] {
            assert!(!quiet.stderr.contains(word), "{arguments:?}: {}", quiet.stderr);
        }
        let failed = to(full());
        failed.assert_fails(1, &["error: cannot write to stdout: No space left on device"]);
        assert_eq!(failed.stderr.matches("No space left").count(), 1, "{arguments:?}: {}", failed.stderr);
    }
}

#[test]
fn verbs_end_as_they_would_where_stderr_is_closed_or_full() {
    let lab = Lab::new();
    for stderr in [unread as fn() -> Stdio, full] {
        let ended = lab.command(&["run", "none.toml"]).stderr(stderr()).status().expect("it starts");
        assert_eq!(ended.code(), Some(2));
        let ended = lab.command(&["run", "--nonsense"]).stderr(stderr()).status().expect("it starts");
        assert_eq!(ended.code(), Some(2));
    }
}
