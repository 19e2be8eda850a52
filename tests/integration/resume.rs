//! Killed at any moment and resumed, a run ends in the bits of the uninterrupted run.

use std::time::{Duration, Instant};

use runner::rng::Key;

use crate::process::wait_until;
use crate::support::{Lab, flip_bit};

const CI: &str = "experiments/ci.toml";

/// Twice the steps of the CI experiment, so that a kill after the twenty-fifth row is never too late.
const LONGER: [&str; 2] = ["--set", "schedule.steps=40"];

/// The rows of metrics after which the first, second and third kill of a run come at the earliest.
const KILLS: [usize; 3] = [1, 11, 21];

/// An uninterrupted run to compare with, its state root, and how long it took to its first step.
fn uninterrupted(settings: &[&str]) -> (Lab, String, Duration) {
    let lab = Lab::new();
    let began = Instant::now();
    let mut run = lab.start("run", CI, settings);
    run.wait_for_rows(&lab, 1);
    let startup = began.elapsed();
    let root = run.end(Duration::from_secs(120)).root().to_owned();
    (lab, root, startup)
}

/// A time below `most`.
fn below(most: Duration, key: Key, kill: u64) -> Duration {
    most.mul_f64(key.uniform(1, kill))
}

#[test]
fn kill_9_at_random_moments_and_resume_gives_the_uninterrupted_run() {
    let (whole, expected, startup) = uninterrupted(&LONGER);
    for trial in 0..6u64 {
        let lab = Lab::new();
        let key = Key::new(trial, "moments to kill at");
        let mut verb = ("run", CI, &LONGER[..]);
        for (kill, earliest) in (0..).zip(KILLS) {
            let mut run = lab.start(verb.0, verb.1, verb.2);
            if kill == trial {
                // Before its first step: in half of the trials one kill lands there.
                let (before, moment) = (lab.rows("ci"), below(startup, key, kill));
                let began = Instant::now();
                wait_until("the moment to kill at", 2 * startup, || {
                    began.elapsed() >= moment || lab.rows("ci") > before
                });
            } else {
                run.wait_for_rows(&lab, earliest + (key.uniform(0, kill) * 5.0) as usize);
                std::thread::sleep(below(Duration::from_millis(20), key, kill));
            }
            run.kill();
            // Killed before its folder existed: there is nothing to resume yet.
            if lab.path("ci/experiment.toml").exists() {
                verb = ("resume", "ci", &[]);
            } else if lab.path("ci").exists() {
                std::fs::remove_dir_all(lab.path("ci")).expect("it is ours");
            }
        }
        assert!(lab.rows("ci") < whole.rows("ci"), "trial {trial}: nothing was left to do");
        assert_eq!(lab.verb(verb.0, verb.1, verb.2).root(), expected, "trial {trial}");
        assert_eq!(lab.ledger("ci"), whole.ledger("ci"), "trial {trial}: ledger");
        assert_eq!(lab.metrics("ci"), whole.metrics("ci"), "trial {trial}: metrics");
        let main_log = |lab: &Lab| std::fs::read_to_string(lab.path("ci/main.log")).expect("main.log");
        assert_eq!(main_log(&lab), main_log(&whole), "trial {trial}: main.log");
        lab.verify("ci", &[]).assert_says(&[
            "metrics.jsonl: 41 lines",
            "metrics.parquet: 41 lines",
            "main.log: ",
        ]);
    }
}

#[test]
fn one_command_started_again_and_again_ends_in_the_uninterrupted_run_and_refuses_another() {
    let settings = [&LONGER[..], &["--set", "eval.every=2"]].concat();
    let (whole, expected, startup) = uninterrupted(&settings);
    let (lab, key) = (Lab::new(), Key::new(7, "moments to kill at"));
    let again = [&settings[..], &["--or-resume"]].concat();
    let first = lab.start("run", CI, &again);
    std::thread::sleep(below(startup, key, 9) / 2);
    first.kill();
    for (kill, earliest) in (0..).zip(KILLS) {
        let mut run = lab.start("run", CI, &again);
        run.wait_for_rows(&lab, earliest + (key.uniform(0, kill) * 5.0) as usize);
        run.kill();
    }
    assert_eq!(lab.run(CI, &again).root(), expected);
    assert_eq!(lab.ledger("ci"), whole.ledger("ci"));
    assert_eq!(lab.run(CI, &again).root(), expected, "a finished run is finished");
    // A kill before anything had begun.
    std::fs::create_dir_all(lab.path("new/checkpoints")).expect("a folder");
    std::fs::write(lab.path("new/lock.toml"), "half a lo").expect("a file");
    let new = [&LONGER[..], &["--or-resume", "--name", "new"]].concat();
    assert_eq!(lab.run(CI, &new).root(), expected);
    let other = [&LONGER[..], &["--or-resume", "--set", "schedule.learning_rate=0.5"]].concat();
    lab.run(CI, &other).assert_fails(5, &["schedule.learning_rate"]);
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
    let mut run = lab.start("run", CI, &["--set", "checkpoint.every=0"]);
    run.wait_for_rows(&lab, 3);
    run.signal("TERM");
    assert_eq!(run.end(Duration::from_secs(60)).code, Some(130));
    let saved = std::fs::read_dir(lab.path("ci/checkpoints")).expect("a folder").count();
    assert_eq!(saved, 1, "one checkpoint at the step it stopped at");
    assert_eq!(lab.resume("ci", &[]).root(), expected);
}

#[test]
fn a_second_process_is_kept_out_of_the_folder() {
    let lab = Lab::new();
    let mut run =
        lab.start("run", CI, &["--set", "schedule.steps=100000", "--set", "checkpoint.keep_last=2"]);
    run.wait_for_rows(&lab, 1);
    let pid = run.pid().to_string();
    lab.resume("ci", &[]).assert_fails(1, &["is in use by process", &pid]);
    lab.run(CI, &["--overwrite"]).assert_fails(1, &["is in use by process", &pid]);
    run.kill();
}

#[test]
fn starting_over_a_run_is_refused_and_overwriting_leaves_nothing_of_it() {
    let lab = Lab::new();
    lab.run(CI, &[]).root();
    lab.run(CI, &[]).assert_fails(1, &["there is already a run", "--overwrite", "runner resume"]);
    // In llm.c old markers of checkpoints survive, and a later resume picks the old run.
    lab.run(CI, &["--overwrite", "--set", "schedule.steps=3", "--set", "schedule.warmup_steps=1"]).root();
    let left: Vec<_> = std::fs::read_dir(lab.path("ci/checkpoints")).expect("a folder").collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

/// In llm.c other steps or another peak learning rate silently change the schedule on resume.
#[test]
fn a_changed_experiment_is_refused_by_key_and_goes_on_only_by_leave() {
    let lab = Lab::new();
    lab.run(CI, &[]).root();
    let change = ["--set", "schedule.learning_rate=0.002"];
    lab.resume("ci", &change).assert_fails(5, &["`schedule.learning_rate`", "0.002", "has ended"]);
    let allowed = [&change[..], &["--allow-drift"]].concat();
    lab.resume("ci", &allowed).assert_fails(2, &["no step is left that `schedule.learning_rate = 0.002`"]);
    std::fs::remove_dir_all(lab.path("ci/checkpoints/step_00000020")).expect("the last checkpoint");
    lab.resume("ci", &change).assert_fails(5, &["`schedule.learning_rate`", "--allow-drift"]);
    lab.resume("ci", &["--set", "log.every=3"]).root();
    std::fs::remove_dir_all(lab.path("ci/checkpoints/step_00000020")).expect("the last checkpoint");
    lab.resume("ci", &allowed).root();
    let ledger = std::fs::read_to_string(lab.path("ci/ledger.jsonl")).expect("a ledger");
    assert!(ledger.contains("drift") && ledger.contains("schedule.learning_rate"), "{ledger}");
}

/// Whichever way a key is changed, lock and experiment agree afterwards.
#[test]
fn an_edit_of_a_runs_own_experiment_counts_as_set() {
    let lab = Lab::new();
    let root = lab.run(CI, &[]).root().to_owned();
    let path = lab.path("ci/experiment.toml");
    let edit = |key: &str, value: &str| {
        // A finished run refuses another value: this one lacks its end.
        std::fs::remove_dir_all(lab.path("ci/checkpoints/step_00000020")).expect("the last checkpoint");
        let text = std::fs::read_to_string(&path).expect("an experiment");
        let line = text.lines().find(|line| line.starts_with(&format!("{key} = "))).expect("a line");
        std::fs::write(&path, text.replacen(line, &format!("{key} = {value}"), 1)).expect("writable");
    };
    edit("gpu_every", "7");
    let resumed = lab.resume("ci", &[]);
    assert!(resumed.stderr.contains("they count as set: `log.gpu_every` was "), "{}", resumed.stderr);
    assert_eq!(resumed.root(), root, "it changes no bit");
    lab.verify("ci", &[]).assert_says(&["ok      experiment: "]);
    let again = lab.resume("ci", &[]);
    assert_eq!(again.root(), root);
    assert!(!again.stderr.contains("count as set"), "{}", again.stderr);
    edit("learning_rate", "0.002");
    lab.resume("ci", &[]).assert_fails(5, &["`schedule.learning_rate`", "--allow-drift"]);
    assert_ne!(lab.resume("ci", &["--allow-drift"]).root(), root);
    lab.verify("ci", &[]).assert_says(&["ok      experiment: ", "rewinds: 0, changes by leave: 1"]);
    let lock = std::fs::read_to_string(lab.path("ci/lock.toml")).expect("a lock");
    assert!(lock.contains("\"schedule.learning_rate\" = \"0.002 ("), "{lock}");
}

#[test]
fn a_run_that_drifted_is_replayed_from_where_it_did_and_not_across() {
    let lab = Lab::new();
    lab.run(CI, &["--set", "schedule.steps=10"]).root();
    lab.resume("ci", &["--set", "schedule.steps=20", "--allow-drift"]).root();
    lab.verify("ci", &["--replay", "5..12"])
        .assert_fails(2, &["before 10 were made with other numerics", "from a checkpoint of step 10"]);
    lab.verify("ci", &["--replay", "10..20"]).assert_says(&["steps 10 to 19 gave the same bits again"]);
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
    flip_bit(&checkpoints.last().expect("some").join("state.safetensors"), 0.5);
    let resumed = lab.resume("ci", &[]);
    assert!(resumed.stderr.contains("skipped the checkpoint of step"), "{}", resumed.stderr);
    assert_eq!(resumed.root(), expected);
}
