//! A loss that is not finite never reaches the weights, and a run that diverges says so.

use crate::support::Lab;

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
    lab.run(CI, &arguments).assert_fails(4, &["back to the checkpoint of step"]);
    let rewound = lab.ledger("ci").into_iter().filter(|entry| entry.contains("rewind from step")).count();
    assert_eq!(rewound, 1, "the entry after the rewind says so");
    let steps = lab.ledger("ci").len();
    lab.verify("ci", &["--replay", &format!("0..{steps}")])
        .assert_says(&["steps 0 to", "gave the same bits again"]);
}
