//! Usage errors exit with 2 in every verb, with a hint for common mistakes.

use crate::support::{Finished, Lab};

const CI: &str = "experiments/ci.toml";

#[test]
fn a_run_or_an_experiment_that_is_not_there_is_usage_with_the_nearest_name() {
    let lab = Lab::new();
    lab.run(CI, &["--set", "schedule.steps=2", "--set", "schedule.warmup_steps=1"]).root();
    let runs = lab.path("").display().to_string();
    let with_runs = |arguments: &[&str]| lab.finish(&[arguments, &["--runs", &runs]].concat());
    for verb in ["resume", "show", "watch", "verify", "report", "sample", "eval", "plot"] {
        with_runs(&[verb, "cii"]).assert_fails(2, &["did you mean `ci`?"]);
    }
    with_runs(&["export", "cii", "--format", "hf"]).assert_fails(2, &["did you mean `ci`?"]);
    with_runs(&["diff", "ci", "cii"]).assert_fails(2, &["did you mean `ci`?"]);
    with_runs(&["show", "elsewhere"]).assert_fails(2, &["`runner show --runs"]);
    for verb in ["run", "lock", "plan", "config", "bench"] {
        lab.finish(&[verb, "quickstar"]).assert_fails(2, &["did you mean `experiments/quickstart.toml`?"]);
        lab.finish(&[verb, "zzzzzzzz"]).assert_fails(2, &["or one of these: ci, ci_cuda, "]);
    }
    lab.finish(&["config", CI, "--markdown"]).assert_fails(2, &["--markdown"]);
    lab.finish(&["config", "--json-schema", "--markdown"]).assert_fails(2, &["--markdown"]);
    lab.finish(&["data", "prepare", "--out", "o", "--format", "text", "--column", "a", CI])
        .assert_fails(2, &["there are no columns"]);
    lab.finish(&["verify", "quickstar", "--twice"]).assert_fails(2, &["experiments/quickstart.toml"]);
    with_runs(&["verify", CI]).assert_fails(2, &["`runner verify experiments/ci.toml --twice`"]);
    with_runs(&["plot", "ci", "--out", "x.pdf"]).assert_fails(2, &["x.pdf` ends in .pdf", ".png or .svg"]);
    assert!(!std::path::Path::new("x.pdf").exists());
    with_runs(&["run", CI, "--name", "b", "--lock", "none.toml"]).assert_fails(2, &["there is no lock"]);
    with_runs(&["run", CI, "--name", "../b"]).assert_fails(2, &["cannot name a run"]);
    with_runs(&["run", CI, "--name", "b", "--set", "log.ever=1"]).assert_fails(2, &["did you mean"]);
    with_runs(&["sample", "ci", "--checkpoint", "7"]).assert_fails(2, &["there are those of steps 2"]);
    with_runs(&["show", "--sort", "colour"]).assert_fails(2, &["there is no column `colour`"]);
}

#[test]
fn one_key_in_two_settings_is_usage() {
    let lab = Lab::new();
    for verb in ["config", "plan", "run", "lock", "bench"] {
        let mut command = lab.command(&[verb, CI, "--runs"]);
        command.arg(lab.path("")).args(["--set", "seed=1", "--set", "seed=2"]);
        let finished = Finished::from(command.output().expect("the program starts"));
        finished.assert_fails(2, &["`--set` gives `seed` twice: \"1\" and \"2\""]);
    }
    assert!(!lab.path("ci").exists());
}

#[test]
fn a_run_under_a_name_of_its_own_is_called_by_it() {
    let lab = Lab::new();
    let short = ["--set", "schedule.steps=2", "--set", "schedule.warmup_steps=1", "--set", "eval.every=0"];
    let run = lab.run(CI, &[&["--name", "a"], &short[..]].concat());
    assert!(run.stderr.starts_with("a, of the experiment ci: GPT-2 with "), "{}", run.stderr);
    assert!(lab.run(CI, &short).stderr.starts_with("ci: GPT-2 with "));
}

#[test]
fn an_experiment_that_is_a_link_to_nothing_is_said_to_be_one() {
    let lab = Lab::new();
    let link = lab.path("x.toml");
    std::os::unix::fs::symlink("gone.toml", &link).expect("a link");
    lab.finish(&["config", &link.display().to_string()])
        .assert_fails(2, &["there is no experiment", "what it points to is not there"]);
}

#[test]
fn an_error_of_the_system_is_said_once() {
    let lab = Lab::new();
    let out = lab.path("none/deeper");
    std::fs::write(lab.path("none"), "a file where a folder is expected").expect("writable");
    let failed = lab.finish(&["lock", CI, "--out", out.to_str().expect("UTF-8")]);
    failed.assert_fails(1, &["none"]);
    assert_eq!(failed.stderr.matches("ot a directory").count(), 1, "{}", failed.stderr);
}

#[test]
fn a_file_in_place_of_the_folder_of_runs_is_named() {
    let lab = Lab::new();
    lab.finish(&["show", "--runs", CI]).assert_fails(2, &["`experiments/ci.toml` is not a folder"]);
    lab.finish(&["prune", "--all", "--runs", CI]).assert_fails(2, &["`experiments/ci.toml` is not a folder"]);
    for verb in ["rm", "compare"] {
        lab.finish(&[verb, "x", "--runs", CI]).assert_fails(2, &["experiments/ci.toml/x"]);
    }
    let nowhere = lab.path("nowhere").display().to_string();
    for arguments in [&["show"][..], &["prune", "--all"]] {
        let refused = lab.finish(&[arguments, &["--runs", &nowhere]].concat());
        refused.assert_fails(2, &["there is no folder `", "nowhere`"]);
    }
}

#[test]
fn steps_that_a_run_cannot_have_are_refused_before_its_files_are_read() {
    let lab = Lab::new();
    lab.run(CI, &["--set", "schedule.steps=2", "--set", "schedule.warmup_steps=1"]).root();
    for (steps, says) in [("0..99", "the run has 2 steps"), ("1..2", "there is no checkpoint of step 1")] {
        let refused = lab.verify("ci", &["--replay", steps]);
        refused.assert_fails(2, &[says]);
        assert_eq!(refused.stdout, "", "{steps}");
    }
}

#[test]
fn a_folder_of_runs_whose_name_is_not_utf_8_is_text_in_json() {
    use std::os::unix::ffi::OsStrExt;

    let lab = Lab::new();
    let runs = lab.path("").join(std::ffi::OsStr::from_bytes(b"r\xff"));
    let with_runs = |arguments: &[&str]| {
        let mut command = lab.command(arguments);
        Finished::from(command.arg("--runs").arg(&runs).output().expect("the program starts"))
    };
    let short = ["--set", "schedule.steps=2", "--set", "schedule.warmup_steps=1"];
    let run = with_runs(&[&["run", CI, "--json"], &short[..]].concat());
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(run.stdout.contains("r\u{fffd}/ci/checkpoints"), "{}", run.stdout);
    let shown = with_runs(&["show", "--json"]);
    assert_eq!(shown.code, Some(0), "{}", shown.stderr);
    assert!(shown.stdout.contains("r\u{fffd}/ci\""), "{}", shown.stdout);
}
