//! Runs in the programs of others that compare experiments: TensorBoard's HParams tab, MLflow, and Weights &
//! Biases. Those that need Python packages are ignored unless they are asked for.

use std::fs;
use std::time::Duration;

use crate::process::wait_until;
use crate::python::{rewinds_and_diverges, script};
use crate::support::Lab;

const CI: &str = "experiments/ci.toml";
const PROGRAM: &str = env!("CARGO_BIN_EXE_runner");

/// Runs with every kind of past: `resumed` went on from a checkpoint before its end, and with more steps;
/// `diverging` was rewound and diverged; `killed` was killed; `lr` is a sweep.
fn runs_of_every_kind() -> Lab {
    let lab = Lab::new();
    lab.run(CI, &["--name", "resumed"]).root();
    for step in ["15", "20"] {
        let checkpoint = format!("resumed/checkpoints/step_000000{step}");
        fs::remove_dir_all(lab.path(&checkpoint)).expect("it is there");
    }
    lab.resume("resumed", &["--set", "schedule.steps=25", "--allow-drift"]).root();
    rewinds_and_diverges(&lab);
    let killed = lab.start("run", CI, &["--name", "killed", "--set", "schedule.steps=2000"]);
    wait_until("rows of the run to kill", Duration::from_secs(120), || lab.rows("killed") > 10);
    killed.kill();
    lab.run("experiments/sweep_ci.toml", &["--name", "lr", "--set", "schedule.steps=5"]).assert_says(&[]);
    lab
}

#[test]
#[ignore = "skipped: needs Python with TensorBoard; run with --include-ignored"]
fn tensorboard_compares_runs_by_their_keys_and_shows_each_once_with_its_end() {
    let lab = runs_of_every_kind();
    let members: Vec<String> = (1..=6).map(|number| format!("lr/{number:03}=SUCCESS")).collect();
    let runs = lab.path("").display().to_string();
    let named = ["resumed=SUCCESS", "diverging=FAILURE", "killed=UNKNOWN"].map(str::to_owned);
    let arguments: Vec<&str> =
        [&runs].into_iter().chain(&named).chain(&members).map(String::as_str).collect();
    script("tensorboard/hparams.py", &arguments, "9 sessions, ");
    for run in ["resumed", "diverging", "killed", "lr/006"] {
        script("tensorboard/read.py", &[&lab.path(run).display().to_string()], " points");
    }
}

#[test]
#[ignore = "skipped: needs Python with MLflow; run with --include-ignored"]
fn mlflow_reads_every_step_of_exported_runs_once_and_a_sweep_as_their_parent() {
    let lab = runs_of_every_kind();
    let runs = lab.path("").display().to_string();
    let arguments = [PROGRAM, &runs, "resumed=FINISHED", "diverging=FAILED", "killed=KILLED", "lr=FINISHED"];
    script("trackers/mlflow_store.py", &arguments, "10 runs, ");
}

#[test]
#[ignore = "skipped: needs Python with wandb; run with --include-ignored"]
fn wandb_uploads_every_step_of_exported_runs_once_and_a_sweep_as_their_group() {
    let lab = runs_of_every_kind();
    let runs = lab.path("").display().to_string();
    let arguments = [PROGRAM, &runs, "resumed=0", "diverging=4", "killed=130", "lr=0"];
    script("trackers/wandb_sync.py", &arguments, "9 runs uploaded, ");
}

#[test]
fn what_is_no_run_as_its_ledger_has_it_and_no_folder_of_the_tracker_is_refused() {
    let lab = Lab::new();
    lab.run(CI, &["--set", "schedule.steps=5"]).root();
    let out = |name: &str| lab.path(name).display().to_string();
    let export = |more: &[&str]| lab.verb("export", "ci", more);
    for format in ["mlflow", "wandb"] {
        let (mine, new) = (out("mine"), out(&format!("new_{format}")));
        fs::create_dir_all(&mine).expect("a folder");
        fs::write(lab.path("mine/thesis.tex"), "mine").expect("writable");
        export(&["--format", format, "--out", &mine]).assert_fails(1, &["`", "not empty", "hint: "]);
        assert_eq!(fs::read_dir(&mine).expect("a folder").count(), 1);
        export(&["--format", format, "--dtype", "bf16"]).assert_fails(2, &["no model", "--dtype"]);
        let done = export(&["--format", format, "--out", &new]);
        assert!(done.code == Some(0) && done.stderr.contains(&new), "{}", done.stderr);
        assert!(done.stdout.starts_with(&new), "{}", done.stdout);
    }
    let metrics = lab.path("ci/metrics.jsonl");
    let text = fs::read_to_string(&metrics).expect("UTF-8");
    fs::write(&metrics, text.replacen("\"tokens\":512,", "\"tokens\":513,", 1)).expect("writable");
    let refused = export(&["--format", "mlflow", "--out", &out("other")]);
    refused.assert_fails(5, &["not what its ledger says", "tokens", "--rebuild"]);
    assert!(!lab.path("other").exists());
}
