//! What a run needs and does not have: the checkpoints of its own, those that it was to start from, and
//! settings with which it cannot go on. All of it is refused or said before anything is written.

use std::fs;

use crate::support::{Finished, Lab};

const CI: &str = "experiments/ci.toml";

/// A verb with `--runs` of the lab.
fn verb(lab: &Lab, arguments: &[&str]) -> Finished {
    let runs = lab.path("").display().to_string();
    lab.finish(&[arguments, &["--runs", &runs]].concat())
}

fn set(keys: &[&'static str]) -> Vec<&'static str> {
    keys.iter().flat_map(|key| ["--set", key]).collect()
}

#[test]
fn a_resume_that_is_refused_leaves_every_file_as_it_was() {
    let lab = Lab::new();
    lab.run(CI, &["--set", "schedule.steps=10", "--set", "schedule.warmup_steps=1"]).root();
    let before = lab.files("ci");
    let refused = |keys: &[&'static str], code: i32, says: &[&str]| {
        let more = [set(keys), vec!["--set", "schedule.steps=12", "--allow-drift"]].concat();
        lab.resume("ci", &more).assert_fails(code, says);
        assert!(lab.files("ci") == before, "{keys:?} changed a file");
    };
    let fit = "a resume cannot go on with";
    refused(
        &["optimizer.ema_decay=0.9"],
        2,
        &[fit, "`ema/", "is missing", "start another run from the weights"],
    );
    refused(&["model.layers=1"], 2, &[fit, "does not belong to this experiment"]);
    refused(&["model.layers=3"], 2, &[fit, "is missing"]);
    refused(&["model.channels=128"], 2, &[fit, "this experiment needs F32 ["]);
    refused(&["model.heads=4"], 2, &[fit, "it has 2 heads, the experiment 4 (`model.heads`)"]);
    refused(&["guards.window=4"], 2, &[fit, "`guard/grad_window` has [8] values, `guards.window` is 4"]);
    lab.resume("ci", &["--set", "schedule.steps=5", "--allow-drift"])
        .assert_fails(2, &["`schedule.steps` is 5, and the run has made 10 steps", "set it to 10 or more"]);
    assert!(lab.files("ci") == before, "fewer steps changed a file");
    // What acts before the first step alone would be in the lock and do nothing.
    let begun = "a run keeps where it began";
    refused(&["data.offset=96"], 5, &[begun, "`data.offset`", "its own checkpoint of step 10"]);
    let other = Lab::new();
    other.run(CI, &["--set", "schedule.steps=5"]).root();
    let exported = other.verb("export", "ci", &["--format", "llmc"]).stdout;
    let init = format!("model.init={}/model.bin", exported.trim());
    let more = ["--set", &init, "--set", "schedule.steps=12", "--allow-drift"];
    lab.resume("ci", &more).assert_fails(5, &[begun, "`model.init_sha256`"]);
    assert!(lab.files("ci") == before, "`model.init` changed a file");
    lab.verify("ci", &[]).assert_says(&["ok"]);
    // Files with which it cannot go on.
    let drift = ["--set", "schedule.steps=12", "--allow-drift"];
    for lost in ["main.log", "metrics.jsonl", "ledger.jsonl"] {
        let kept = fs::read(lab.path("ci").join(lost)).expect("it is there");
        let half = &kept[..kept.len() / 2];
        for damaged in [None, Some(half)] {
            match damaged {
                None => fs::remove_file(lab.path("ci").join(lost)).expect("removable"),
                Some(half) => fs::write(lab.path("ci").join(lost), half).expect("writable"),
            }
            let here = lab.files("ci");
            let refused = lab.resume("ci", &drift);
            assert!(matches!(refused.code, Some(1 | 5)) && refused.stderr.contains(lost), "{refused:?}");
            assert!(lab.files("ci") == here, "{lost}: a file was changed");
        }
        fs::write(lab.path("ci").join(lost), kept).expect("writable");
    }
    lab.resume("ci", &drift).root();
}

#[test]
fn a_run_without_checkpoints_says_so_wherever_it_is_asked_for_one() {
    let lab = Lab::new();
    let root = lab.run(CI, &["--set", "schedule.steps=5"]).root().to_owned();
    fs::remove_dir_all(lab.path("ci/checkpoints")).expect("it is there");
    let hint = "hint: the run has none: one is saved every `checkpoint.every` steps and at the end";
    verb(&lab, &["sample", "ci"]).assert_fails(2, &["there is no whole checkpoint in", hint]);
    verb(&lab, &["eval", "ci"]).assert_fails(2, &["there is no whole checkpoint in", hint]);
    verb(&lab, &["export", "ci", "--format", "hf"]).assert_fails(2, &[hint]);
    verb(&lab, &["sample", "ci", "--checkpoint", "3"]).assert_fails(2, &["step_00000003`", hint]);
    lab.verify("ci", &["--replay", "2..4"]).assert_fails(
        2,
        &["no checkpoint of step 2", "from its start, `--replay 0..4`, and it has no checkpoint"],
    );
    for init in ["run:ci@3", "run:ci"] {
        let init = format!("model.init={init}");
        lab.run(CI, &["--name", "tail", "--set", &init]).assert_fails(2, &["no checkpoint", hint]);
    }
    // It is done all the same, and its ledger is not deleted to train it again.
    let before = lab.files("ci");
    let again = lab.resume("ci", &[]);
    assert_eq!(again.root(), root);
    assert!(again.stderr.contains("nothing to do"), "{}", again.stderr);
    lab.resume("ci", &["--set", "schedule.steps=8", "--allow-drift"]).assert_fails(
        2,
        &["was done, and has no whole checkpoint", "would delete its ledger", "--overwrite"],
    );
    assert!(lab.files("ci") == before);
    // One that was not done begins again, and says what that costs.
    let mut run =
        lab.start("run", CI, &["--name", "cut", "--set", "checkpoint.every=0", "--set", "schedule.steps=60"]);
    run.wait_for_rows_of(&lab, "cut", 3);
    run.kill();
    let resumed = lab.resume("cut", &[]);
    resumed.root();
    assert!(resumed.stderr.contains("starting at step 0, and making the "), "{}", resumed.stderr);
}

/// A trunk with checkpoints of steps 5 and 10, and a branch from each: one is done, the other was cut short.
fn trunk_and_branches(lab: &Lab) {
    let trunk = ["schedule.steps=15", "checkpoint.every=5", "checkpoint.keep_last=0"];
    lab.run(CI, &[vec!["--name", "trunk"], set(&trunk)].concat()).root();
    lab.run(
        CI,
        &[
            "--name",
            "done",
            "--set",
            "model.init=run:trunk@5",
            "--set",
            "schedule.steps=3",
            "--set",
            "schedule.warmup_steps=1",
        ],
    )
    .root();
    let mut cut = lab.start(
        "run",
        CI,
        &[
            "--name",
            "cut",
            "--set",
            "model.init=run:trunk@10",
            "--set",
            "checkpoint.every=0",
            "--set",
            "schedule.steps=400",
        ],
    );
    cut.wait_for_rows_of(lab, "cut", 2);
    cut.kill();
}

#[test]
fn what_other_runs_start_from_is_not_removed_unasked() {
    let lab = Lab::new();
    trunk_and_branches(&lab);
    verb(&lab, &["rm", "trunk"])
        .assert_fails(2, &["`cut` is not done, and starts from", "step_00000010`", "`--force` removes"]);
    verb(&lab, &["rm", "--dry-run", "trunk"]).assert_says(&[]);
    let step = |step: u64| lab.path(&format!("trunk/checkpoints/step_{step:08}"));
    let pruned = verb(&lab, &["prune", "trunk", "--keep-last", "1", "--yes"]);
    assert_eq!(pruned.code, Some(0), "{}", pruned.stderr);
    for says in ["keeps step 10: `cut`", "`done` started from step 5", "loses the checkpoint of step 5:"] {
        assert!(pruned.stderr.contains(says) || pruned.stdout.contains(says), "{says}: {pruned:?}");
    }
    assert!(!step(5).exists() && step(10).exists() && step(15).exists());
    // What it was to start from, and is gone, is named; also with the whole run.
    lab.verify("done", &["--replay", "0..3"])
        .assert_fails(1, &["step_00000005", "there are those of steps 10, 15"]);
    verb(&lab, &["rm", "trunk", "--force"]).assert_says(&[]);
    lab.resume("cut", &[])
        .assert_fails(1, &["`model.init`: there is no checkpoint", "there is no run in", "any more"]);
    lab.verify("done", &[]).assert_says(&["ok"]);
    assert_eq!(verb(&lab, &["rm", "cut", "done"]).code, Some(0));
}

#[test]
fn together_with_what_starts_from_it_a_run_is_removed_and_a_link_alone() {
    let lab = Lab::new();
    trunk_and_branches(&lab);
    std::os::unix::fs::symlink(lab.path("trunk"), lab.path("link")).expect("a link");
    for name in ["link", "link/", "link/."] {
        let dry = verb(&lab, &["rm", "--dry-run", name]);
        let said = [dry.stdout.as_str(), &dry.stderr].concat();
        assert!(said.contains("link`, a link; what is in `") && said.contains("trunk` stays"), "{said}");
    }
    assert_eq!(verb(&lab, &["rm", "link/"]).code, Some(0));
    assert!(!lab.path("link").exists() && lab.path("trunk/lock.toml").exists());
    let twice = lab.path("trunk").display().to_string();
    let removed = verb(&lab, &["rm", "trunk", &twice, "cut"]);
    assert_eq!(removed.code, Some(0), "{}", removed.stderr);
    assert!(!lab.path("trunk").exists() && !lab.path("cut").exists() && lab.path("done").exists());
}
