//! Promise 2: killed at any moment and resumed, a run ends in the bits of the uninterrupted run.

use std::time::Duration;

use runner::rng::Key;

use crate::support::Lab;

const CI: &str = "experiments/ci.toml";

/// Sends a signal by the name that `kill` knows.
fn signal(child: &std::process::Child, name: &str) {
    let status =
        std::process::Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status();
    assert!(status.expect("kill runs").success());
}

#[test]
fn kill_9_at_random_moments_and_resume_gives_the_uninterrupted_run() {
    let whole = Lab::new();
    let expected = whole.run(CI, &[]).root().to_owned();
    for trial in 0..6u64 {
        let lab = Lab::new();
        let key = Key::new(trial, "moments to kill at");
        let mut verb = ("run", CI);
        for kill in 0..3 {
            let mut child = lab.start(verb.0, verb.1, &[]);
            std::thread::sleep(Duration::from_micros((key.uniform(0, kill) * 1.5e6) as u64));
            // It may have finished by then; both ends are right.
            let _ = child.kill();
            child.wait().expect("it ends");
            // Killed before its folder existed: there is nothing to resume yet.
            if lab.path("ci/experiment.toml").exists() {
                verb = ("resume", "ci");
            } else if lab.path("ci").exists() {
                std::fs::remove_dir_all(lab.path("ci")).expect("it is ours");
            }
        }
        let finished = if verb.0 == "run" { lab.run(CI, &[]) } else { lab.resume("ci", &[]) };
        assert_eq!(finished.root(), expected, "trial {trial}");
        assert_eq!(lab.ledger("ci"), whole.ledger("ci"), "trial {trial}: ledger");
        assert_eq!(lab.metrics("ci"), whole.metrics("ci"), "trial {trial}: metrics");
        let main_log = |lab: &Lab| std::fs::read_to_string(lab.path("ci/main.log")).expect("main.log");
        assert_eq!(main_log(&lab), main_log(&whole), "trial {trial}: main.log");
        lab.verify("ci", &[]).assert_says(&[
            "metrics.jsonl: 21 lines",
            "metrics.parquet: 21 lines",
            "main.log: ",
        ]);
    }
}

#[test]
fn one_command_started_again_and_again_ends_in_the_uninterrupted_run_and_refuses_another() {
    let whole = Lab::new();
    let expected = whole.run(CI, &["--set", "eval.every=2"]).root().to_owned();
    let (lab, key) = (Lab::new(), Key::new(7, "moments to kill at"));
    let again = &["--or-resume", "--set", "eval.every=2"];
    for kill in 0..4 {
        let mut child = lab.start("run", CI, again);
        std::thread::sleep(Duration::from_micros((key.uniform(0, kill) * 1.2e6) as u64));
        let _ = child.kill();
        child.wait().expect("it ends");
    }
    assert_eq!(lab.run(CI, again).root(), expected);
    assert_eq!(lab.ledger("ci"), whole.ledger("ci"));
    assert_eq!(lab.run(CI, again).root(), expected, "a finished run is finished");
    // A kill before anything had begun.
    std::fs::create_dir_all(lab.path("new/checkpoints")).expect("a folder");
    std::fs::write(lab.path("new/lock.toml"), "half a lo").expect("a file");
    assert_eq!(lab.run(CI, &["--or-resume", "--name", "new"]).root(), expected);
    let other = lab.run(CI, &["--or-resume", "--set", "schedule.learning_rate=0.5"]);
    other.assert_fails(5, &["schedule.learning_rate"]);
}

#[test]
fn a_resumed_run_has_the_metrics_of_one_that_was_not_and_its_ledger_notes_the_resume() {
    let (whole, lab) = (Lab::new(), Lab::new());
    whole.run(CI, &[]).root();
    lab.run(CI, &[]).root();
    for step in ["15", "20"] {
        std::fs::remove_dir_all(lab.path(&format!("ci/checkpoints/step_000000{step}"))).expect("it is there");
    }
    lab.resume("ci", &[]).root();
    assert_eq!(lab.metrics("ci"), whole.metrics("ci"), "all but the timings, events too");
    let ledger = std::fs::read_to_string(lab.path("ci/ledger.jsonl")).expect("a ledger");
    assert!(ledger.contains("\"kind\":\"resume\",\"text\":\"at step 10\""), "{ledger}");
    let shown = lab.finish(&["show", "ci", "--runs", lab.path("").to_str().expect("UTF-8")]);
    assert!(shown.stdout.contains("step 10: resume") && shown.stderr.is_empty(), "{shown:?}");
}

#[test]
fn sigterm_saves_and_exits_130_and_the_run_goes_on_to_the_same_root() {
    let lab = Lab::new();
    let expected = Lab::new().run(CI, &[]).root().to_owned();
    let mut child = lab.start("run", CI, &["--set", "checkpoint.every=0"]);
    while !std::fs::read_to_string(lab.path("ci/metrics.jsonl")).is_ok_and(|rows| rows.lines().count() >= 3) {
        std::thread::sleep(Duration::from_millis(2));
    }
    signal(&child, "TERM");
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    let saved = std::fs::read_dir(lab.path("ci/checkpoints")).expect("a folder").count();
    assert_eq!(saved, 1, "one checkpoint at the step it stopped at");
    assert_eq!(lab.resume("ci", &[]).root(), expected);
}

#[test]
fn a_second_process_is_kept_out_of_the_folder() {
    let lab = Lab::new();
    let mut child = lab.start("run", CI, &["--set", "schedule.steps=100000"]);
    while !lab.path("ci/metrics.jsonl").exists() {
        std::thread::sleep(Duration::from_millis(2));
    }
    let pid = child.id().to_string();
    lab.resume("ci", &[]).assert_fails(1, &["is in use by process", &pid]);
    lab.run(CI, &["--overwrite"]).assert_fails(1, &["is in use by process", &pid]);
    child.kill().expect("it runs");
    child.wait().expect("it ends");
}

#[test]
fn starting_over_a_run_is_refused_and_overwriting_leaves_nothing_of_it() {
    let lab = Lab::new();
    lab.run(CI, &[]).root();
    lab.run(CI, &[]).assert_fails(1, &["there is already a run", "--overwrite", "runner resume"]);
    // Reference fault 8: old markers survive, and a later resume picks the old run.
    lab.run(CI, &["--overwrite", "--set", "schedule.steps=3", "--set", "schedule.warmup_steps=1"]).root();
    let left: Vec<_> = std::fs::read_dir(lab.path("ci/checkpoints")).expect("a folder").collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

/// Reference fault 6: changing the steps or the peak learning rate silently changes the schedule.
#[test]
fn a_changed_experiment_is_refused_by_key_and_goes_on_only_by_leave() {
    let lab = Lab::new();
    lab.run(CI, &[]).root();
    let change = ["--set", "schedule.learning_rate=0.002"];
    lab.resume("ci", &change).assert_fails(5, &["`schedule.learning_rate`", "0.002", "--allow-drift"]);
    lab.resume("ci", &["--set", "log.every=3"]).root();
    let allowed = lab.resume("ci", &["--set", "schedule.learning_rate=0.002", "--allow-drift"]);
    allowed.root();
    let ledger = std::fs::read_to_string(lab.path("ci/ledger.jsonl")).expect("a ledger");
    assert!(ledger.contains("drift") && ledger.contains("schedule.learning_rate"), "{ledger}");
}

#[test]
fn a_run_that_drifted_is_replayed_from_where_it_did_and_not_across() {
    let lab = Lab::new();
    lab.run(CI, &["--set", "schedule.steps=10"]).root();
    lab.resume("ci", &["--set", "schedule.steps=20", "--allow-drift"]).root();
    lab.verify("ci", &["--replay", "5..12"])
        .assert_fails(1, &["before 10 were made with other numerics", "from a checkpoint of step 10"]);
    lab.verify("ci", &["--replay", "10..20"]).assert_says(&["steps 10 to 20 gave the same bits again"]);
}

#[test]
fn a_damaged_checkpoint_is_named_and_passed_over_for_the_one_before() {
    let lab = Lab::new();
    let expected = lab.run(CI, &["--set", "checkpoint.keep_last=0"]).root().to_owned();
    let mut checkpoints: Vec<_> = std::fs::read_dir(lab.path("ci/checkpoints"))
        .expect("a folder")
        .map(|e| e.expect("an entry").path())
        .collect();
    checkpoints.sort();
    assert!(checkpoints.len() >= 3, "{checkpoints:?}");
    let newest = checkpoints.last().expect("some").join("state.safetensors");
    let mut bytes = std::fs::read(&newest).expect("a file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&newest, bytes).expect("writable");
    let resumed = lab.resume("ci", &[]);
    assert!(resumed.stderr.contains("passed over the checkpoint of step"), "{}", resumed.stderr);
    assert_eq!(resumed.root(), expected);
}
