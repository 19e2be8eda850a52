//! Our files in other programs: `transformers`, `lm-eval`'s formulas and TensorBoard, each in a
//! Python script.
//!
//! Python is `target/ci-venv/bin/python` (of other trackers `target/ci-trackers/bin/python`), into which
//! `.ci/run` installs what the scripts import, or what the environment variable `RUNNER_TEST_PYTHON` names.
//! These tests are ignored unless they are asked for, and fail where a package is missing.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Finished, Lab};

const CI: &str = "experiments/ci.toml";
const PROGRAM: &str = env!("CARGO_BIN_EXE_runner");

/// The Python that has the packages which the scripts import.
pub fn python() -> PathBuf {
    python_of("ci-venv")
}

/// The Python of a virtual environment below `target/`.
fn python_of(environment: &str) -> PathBuf {
    let ours = || Path::new(env!("CARGO_MANIFEST_DIR")).join("target").join(environment).join("bin/python");
    std::env::var_os("RUNNER_TEST_PYTHON").map_or_else(ours, PathBuf::from)
}

/// Trains the run `diverging`, which goes back to a checkpoint and diverges all the same.
pub fn rewinds_and_diverges(lab: &Lab) {
    let settings = [
        "schedule.learning_rate=1e30",
        "schedule.warmup_steps=0",
        "guards.patience=3",
        "checkpoint.every=1",
        "guards.on_diverge=\"rewind\"",
    ];
    let set: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    lab.run(CI, &[&["--name", "diverging"], &set[..]].concat())
        .assert_fails(4, &["back to the checkpoint of step"]);
}

/// Runs a script of `tests/`, which must succeed and say so. Those of other trackers have a virtual
/// environment of their own: other programs behave differently where their packages are found.
#[track_caller]
pub fn script(name: &str, arguments: &[&str], says: &str) {
    let environment = if name.starts_with("trackers/") { "ci-trackers" } else { "ci-venv" };
    let (root, python) = (Path::new(env!("CARGO_MANIFEST_DIR")), python_of(environment));
    let mut command = Command::new(&python);
    command.arg(root.join("tests").join(name)).args(arguments).current_dir(root);
    let output = command.output().unwrap_or_else(|error| panic!("{}: {error}", python.display()));
    let finished = Finished::from(output);
    finished.assert_says(&[says]);
    print!("{}", finished.stdout);
}

fn path(lab: &Lab, relative: &str) -> String {
    lab.path(relative).display().to_string()
}

/// A short run whose tokenizer is GPT-2's, beside `ci`, whose tokens are bytes.
fn trained_with_gpt2_tokens(lab: &Lab) {
    let keys = ["data.tokenizer=gpt2", "schedule.steps=4", "batch.micro=1", "batch.seq_len=256"];
    let set: Vec<&str> = keys.iter().flat_map(|key| ["--set", key]).collect();
    lab.run(CI, &[&["--name", "gpt2"], &set[..]].concat()).root();
}

#[test]
#[ignore = "skipped: needs Python with transformers; run with --include-ignored"]
fn transformers_gives_the_logits_and_tokens_of_an_exported_model() {
    let lab = Lab::new();
    lab.run(CI, &[]).root();
    trained_with_gpt2_tokens(&lab);
    let modern = "model.descriptor=modern:d6 model.context=64 batch.micro=1 schedule.steps=4";
    let llama =
        format!("{modern} model.qk_norm=false model.tied_head=true model.rope_theta=500.0 model.kv_heads=2");
    for (name, keys) in [("qwen3", modern), ("llama", llama.as_str())] {
        let set: Vec<&str> = keys.split(' ').flat_map(|key| ["--set", key]).collect();
        lab.run(CI, &[&["--name", name], &set[..]].concat()).root();
    }
    let runs = ["ci", "gpt2", "qwen3", "llama"];
    for (run, dtype) in runs.into_iter().flat_map(|run| [(run, "fp32"), (run, "bf16")]) {
        script("pytorch/hf_export.py", &[PROGRAM, &path(&lab, run), "--dtype", dtype], "relative error");
    }
}

#[test]
#[ignore = "skipped: needs Python with transformers; run with --include-ignored"]
fn a_model_of_transformers_gives_its_logits_here_and_training_starts_from_it() {
    script("pytorch/hf_init.py", &[PROGRAM], "two steps from each of four forms: state root ");
}

#[test]
#[ignore = "skipped: needs Python with transformers; run with --include-ignored"]
fn hellaswag_decisions_are_those_of_transformers_and_the_formulas_of_lm_eval() {
    let lab = Lab::new();
    lab.run(CI, &[]).root();
    let tasks = path(&lab, "tasks.jsonl");
    std::fs::write(&tasks, crate::hellaswag::jsonl()).expect("writable");
    let details = path(&lab, "details.jsonl");
    let evaluated = lab.verb("eval", "ci", &["--task", "hellaswag", "--data", &tasks, "--details", &details]);
    assert_eq!(evaluated.code, Some(0), "{}", evaluated.stderr);
    script("pytorch/hellaswag.py", &[&path(&lab, "ci"), &tasks, &details], "0 decisions differ");
}

#[test]
#[ignore = "skipped: needs Python with TensorBoard; run with --include-ignored"]
fn tensorboard_reads_every_number_once_after_a_kill_and_a_rewind() {
    let lab = Lab::new();
    lab.run(CI, &[]).root();
    // Cut at the checkpoint of step 10, as a kill after later steps leaves it, and go on.
    for step in ["15", "20"] {
        std::fs::remove_dir_all(lab.path(&format!("ci/checkpoints/step_000000{step}"))).expect("it is there");
    }
    lab.resume("ci", &[]).root();
    rewinds_and_diverges(&lab);
    for run in ["ci", "diverging"] {
        script("tensorboard/read.py", &[&path(&lab, run)], " points");
    }
}

/// `docs/first_step.md` is enough to make the first step of a run again: the initial weights to the bit, the
/// rest as closely as the arithmetic allows. And the script finds a seed that is not the run's.
#[test]
#[ignore = "skipped: needs Python with numpy; run with --include-ignored"]
fn the_first_step_is_made_again_from_the_page_alone() {
    let lab = Lab::new();
    let out = path(&lab, "shards");
    let prepare = ["data", "prepare", "--tokenizer", "byte", "--val-tokens", "0", "--out", &out, "README.md"];
    assert_eq!(lab.finish(&prepare).code, Some(0));
    let data = format!("data.train={out}/*_train_*.bin");
    for (name, rate) in [("first_step", "1e-3"), ("initial", "1e-30")] {
        let rate = format!("schedule.learning_rate={rate}");
        let set = ["--set", &data, "--set", &rate, "--name", name];
        lab.run("docs/first_step.toml", &set).root();
    }
    script("../docs/first_step.py", &[&path(&lab, "first_step")], "ok       new weights");
    script("../docs/first_step.py", &[&path(&lab, "initial")], "ok       initial weights, bits");
    let experiment = lab.path("initial/experiment.toml");
    let text =
        std::fs::read_to_string(&experiment).expect("an experiment").replace("seed = 1337", "seed = 1338");
    std::fs::write(&experiment, text).expect("writable");
    let again = Command::new(python()).arg("docs/first_step.py").arg(lab.path("initial")).output();
    let again = Finished::from(again.expect("Python"));
    assert_eq!(again.code, Some(1), "{}", again.stdout);
    assert!(again.stdout.contains("MISMATCH initial weights, bits"), "{}", again.stdout);
}
