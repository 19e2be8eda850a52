//! A loss that is not finite never reaches the weights, and a run that diverges says so.

use std::time::Duration;

use crate::support::{Lab, sets};

const CI: &str = "experiments/ci.toml";

/// A learning rate that breaks the model within a few steps.
const BREAKING: [&str; 8] = [
    "--set",
    "schedule.learning_rate=1e30",
    "--set",
    "schedule.warmup_steps=0",
    "--set",
    "guards.patience=3",
    "--set",
    "checkpoint.every=1",
];

/// In llm.c a NaN loss enters the weights, later checkpoints replace the good ones, and a skipped step
/// leaves no trace in main.log.
#[test]
fn a_diverging_run_skips_stops_with_exit_4_and_leaves_a_trace() {
    let lab = Lab::new();
    lab.run(CI, &BREAKING).assert_fails(4, &["skip_nonfinite", "diverged at step"]);
    let rows = lab.metrics("ci");
    assert_eq!(rows.last().expect("rows")["action"], "skip_nonfinite");
    let main_log = std::fs::read_to_string(lab.path("ci/main.log")).expect("main.log");
    assert!(main_log.contains("skip"), "{main_log}");
}

#[test]
fn rewind_goes_back_once_and_stops_when_the_data_were_not_to_blame() {
    let lab = Lab::new();
    let arguments: Vec<&str> =
        BREAKING.into_iter().chain(["--set", "guards.on_diverge=\"rewind\""]).collect();
    lab.run(CI, &arguments).assert_fails(
        4,
        &["back to the checkpoint of step", "not gone back: it went back to the checkpoint of step"],
    );
    let rewound = lab.ledger("ci").into_iter().filter(|entry| entry.contains("rewind from step")).count();
    assert_eq!(rewound, 1, "the entry after the rewind says so");
    let steps = lab.ledger("ci").len();
    lab.verify("ci", &["--replay", &format!("0..{steps}")]).assert_says(&[
        "ok      events: rewinds: 1",
        "steps 0 to",
        "gave the same bits again",
    ]);
}

#[test]
fn a_run_that_has_no_checkpoint_yet_says_so_and_keeps_its_interval() {
    let lab = Lab::new();
    let settings = [
        "schedule.learning_rate=1e30",
        "schedule.warmup_steps=0",
        "guards.patience=3",
        "guards.on_diverge=rewind",
        "checkpoint.every=10",
    ];
    lab.run(CI, &sets(&settings)).assert_fails(4, &["not gone back: there is no checkpoint yet"]);
    lab.resume("ci", &sets(&["checkpoint.every=2"])).assert_fails(5, &["`checkpoint.every` was 10, is 2"]);
}

/// Where it was stopped there is a checkpoint, to which the uninterrupted run could not go back.
#[test]
fn a_run_that_was_stopped_goes_back_to_no_checkpoint_of_its_stop() {
    let lab = Lab::new();
    let settings = [
        "schedule.steps=400",
        "schedule.learning_rate=1e30",
        "schedule.warmup_steps=0",
        "guards.patience=300",
        "guards.on_diverge=rewind",
        "checkpoint.every=1000",
        "eval.every=0",
        "sample.every=0",
    ];
    let mut run = lab.start("run", CI, &sets(&settings));
    run.wait_for_rows(&lab, 3);
    run.signal("INT");
    run.end(Duration::from_secs(60)).assert_fails(130, &["stopped as asked"]);
    let resumed = lab.resume("ci", &[]);
    resumed.assert_fails(4, &["not gone back: there is no checkpoint yet"]);
    assert!(!resumed.stderr.contains("back to the checkpoint of step"), "{}", resumed.stderr);
}

/// Ten steps, fewer than `guards.patience`, none of which has a finite loss.
#[test]
fn a_run_without_one_finite_loss_is_not_done_however_short_it_is() {
    let lab = Lab::new();
    let case = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cases");
    let init = format!("model.init=\"{case}/hf_huge\"");
    let runs = lab.path("").display().to_string();
    let run = |name: &str, set: &[&str]| {
        lab.run(&format!("{case}/nan.toml"), &[&["--name", name, "--set", &init], set].concat())
    };
    let show = |name: &str| lab.done(&["show", name, "--runs", &runs]).stdout;
    let skipped = run("nan", &[]);
    skipped.assert_fails(4, &["not finite: ", "10 of 10 steps were skipped"]);
    assert!(skipped.stdout.is_empty(), "no root of a run that came to nothing: {}", skipped.stdout);
    let shown = show("nan");
    assert!(shown.contains("nan, stopped") && shown.contains("not finite: "), "{shown}");
    assert!(shown.contains("skipped      10 steps"), "{shown}");
    let resumed = lab.resume("nan", &[]);
    assert_eq!(resumed.code, Some(4), "the end is the same again: {}", resumed.stderr);
    assert!(!show("nan").contains("nan, done"));
    assert_eq!(lab.verify("nan", &[]).code, Some(0), "what it wrote is what it computed");

    run("val", &["--set", "eval.every=5"])
        .assert_fails(4, &["not finite: the validation loss at step 0 is NaN", "1 of 1 step was skipped"]);
    assert!(show("val").contains("val, stopped"), "{}", show("val"));
    assert_eq!(lab.verify("val", &[]).code, Some(0));
}

/// As in `compare` and `show --group-by`.
#[test]
fn a_run_that_diverged_is_in_no_mean_of_a_picture() {
    let lab = Lab::new();
    lab.run(CI, &["--name", "bad"].into_iter().chain(BREAKING).collect::<Vec<_>>())
        .assert_fails(4, &["diverged at step"]);
    lab.run(CI, &["--name", "good"]);
    let (runs, out) = (lab.path("").display().to_string(), lab.path("by.svg").display().to_string());
    let plot = |arguments: &[&str]| {
        lab.finish(&[&["plot", "--runs", runs.as_str(), "--out", out.as_str()][..], arguments].concat())
    };
    let drawn = plot(&["good", "bad", "--by", "batch.tokens"]);
    drawn.assert_says(&[]);
    assert!(drawn.stderr.contains("bad is left out: diverged: 3 steps in a row"), "{}", drawn.stderr);
    let svg = std::fs::read_to_string(&out).expect("a picture");
    assert!(svg.contains(", n = 1, 1 failed  (validation ") && !svg.contains("NaN"));
    let apart = plot(&["good", "bad", "--by", "schedule.learning_rate"]);
    assert!(apart.stderr.contains("has failed, so it is no group here"), "{}", apart.stderr);
    let alone = plot(&["bad", "--by", "seed"]);
    assert!(alone.code != Some(0) && alone.stderr.contains("all of these runs have failed"));
}
