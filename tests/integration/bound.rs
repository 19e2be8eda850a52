//! Figures and files that agree with themselves and with no other file of their run: found by `verify`, and
//! refused by whoever would go on from them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use runner::proof::{Lock, ledger};
use runner::store;

use crate::support::{Lab, flip_bit};
use crate::verify::{assert_finds, copy, facts, rewrite_records};
use crate::verify_claims::reseal;

const CI: &str = "experiments/ci.toml";

/// A finished run of ten steps, with checkpoints at 5 and 10 unless `more` says otherwise.
fn trained(lab: &Lab, more: &[&str]) {
    let short = ["schedule.steps=10", "schedule.warmup_steps=1", "checkpoint.every=5"];
    let sets = short.iter().chain(more).flat_map(|set| ["--set", set]);
    lab.run(CI, &sets.collect::<Vec<_>>()).root();
}

/// Changes one weight of a checkpoint and makes its manifest fit.
fn forge_weight(run: &Path, step: u64) {
    let checkpoints = run.join("checkpoints");
    let listed = store::list(&checkpoints).expect("some");
    let folder = &listed.iter().find(|(of, _)| *of == step).expect("it is there").1;
    let (manifest, mut state) = store::load(folder).expect("whole");
    let weight = state.iter_mut().find(|tensor| tensor.name == "wte.weight").expect("a weight");
    weight.bytes[2] ^= 0x40;
    store::save(&checkpoints, &state, &facts(&manifest)).expect("saved");
}

fn insert_line(file: &Path, at: usize, line: &str) {
    let text = fs::read_to_string(file).expect("a file");
    let mut lines: Vec<&str> = text.lines().collect();
    lines.insert(at, line);
    fs::write(file, lines.join("\n") + "\n").expect("writable");
}

#[test]
fn a_note_of_drift_excuses_nothing_that_no_step_confirms() {
    let lab = Lab::new();
    trained(&lab, &[]);
    for at in [10, 11] {
        let name = format!("forged_{at}");
        copy(&lab.path("ci"), &lab.path(&name));
        reseal(&lab.path(&name), |lock| drop(lock.numerics.insert("seed".into(), "7".into())));
        let note = format!(r#"{{"note":{{"after":{at},"kind":"drift","text":"`seed` was 1337, is 7"}}}}"#);
        insert_line(&lab.path(&name).join("ledger.jsonl"), at, &note);
        assert_finds(&lab, &name, &[], &["FAILED  numerics of checkpoints 5, 10", "`seed` was 1337, is 7"]);
    }
    // One that happened excuses the key that it names, and no other.
    let more = ["--set", "schedule.steps=12", "--set", "seed=7", "--allow-drift"];
    lab.resume("ci", &more).root();
    lab.verify("ci", &[]).assert_says(&["skipped numerics of checkpoints 5, 10", "drift was allowed"]);
    let checkpoints = lab.path("ci/checkpoints");
    let (manifest, state) = store::load(&checkpoints.join("step_00000005")).expect("whole");
    let mut facts = facts(&manifest);
    facts.numerics.insert("schedule.learning_rate".into(), "0.5".into());
    store::save(&checkpoints, &state, &facts).expect("saved");
    assert_finds(&lab, "ci", &[], &["FAILED  numerics of checkpoint 5", "`schedule.learning_rate` was 0.5"]);
}

#[test]
fn what_drift_is_said_to_have_changed_is_held_to_the_checkpoints_before_it() {
    let lab = Lab::new();
    trained(&lab, &[]);
    lab.resume("ci", &["--set", "schedule.steps=12", "--set", "seed=7", "--allow-drift"]).root();
    lab.resume("ci", &["--set", "schedule.steps=14", "--set", "seed=9", "--allow-drift"]).root();
    lab.verify("ci", &[]).assert_says(&["skipped numerics of checkpoints 5, 10", "drift was allowed"]);
    let checkpoints = lab.path("ci/checkpoints");
    let (manifest, state) = store::load(&checkpoints.join("step_00000005")).expect("whole");
    let mut facts = facts(&manifest);
    facts.numerics.insert("seed".into(), "99".into());
    store::save(&checkpoints, &state, &facts).expect("saved");
    assert_finds(&lab, "ci", &[], &["FAILED  numerics of checkpoint 5", "`seed` was 99, is 9"]);
}

/// The true state of a step under the number of one that the ledger does not have.
#[test]
fn a_checkpoint_beyond_the_ledger_is_found_and_not_taken() {
    let lab = Lab::new();
    trained(&lab, &[]);
    let checkpoints = lab.path("ci/checkpoints");
    let (manifest, mut state) = store::load(&checkpoints.join("step_00000010")).expect("whole");
    let counter = state.iter_mut().find(|tensor| tensor.name == "train/step").expect("a counter");
    counter.bytes = 11u64.to_le_bytes().to_vec();
    store::save(&checkpoints, &state, &store::Facts { step: 11, ..facts(&manifest) }).expect("saved");
    reseal(&lab.path("ci"), |lock| lock.outputs.clear());
    assert_finds(&lab, "ci", &[], &["checkpoint 11 in the ledger", "the head after 10 entries"]);
    let says = ["the checkpoint of step 11", "which its `ledger.jsonl` does not have"];
    for (verb, more) in [("sample", &[][..]), ("eval", &[]), ("export", &["--format", "hf"])] {
        lab.verb(verb, "ci", more).assert_fails(5, &says);
    }
    lab.verb("export", "ci", &["--format", "slsa"]).assert_fails(5, &["is not in the ledger"]);
    lab.run(CI, &["--name", "branch", "--set", "model.init=run:ci@11"]).assert_fails(5, &says);
    lab.resume("ci", &["--set", "schedule.steps=12", "--allow-drift"]).assert_fails(5, &says);
}

#[test]
fn a_resume_is_refused_what_no_step_would_be_made_with_or_what_would_miscount_tokens() {
    let lab = Lab::new();
    trained(&lab, &[]);
    let longer = ["--set", "schedule.steps=12", "--allow-drift", "--set"];
    for set in ["batch.tokens=1024", "batch.seq_len=32"] {
        let refused = lab.resume("ci", &[&longer[..], &[set]].concat());
        refused.assert_fails(5, &["a run has one size of a step", "run:NAME@10"]);
    }
    // As a kill before its last words leaves it.
    reseal(&lab.path("ci"), |lock| lock.outputs.clear());
    let before = lab.files("ci");
    lab.resume("ci", &["--set", "seed=7", "--allow-drift"])
        .assert_fails(5, &["the run has made its 10 steps", "`seed`"]);
    assert!(lab.files("ci") == before);
    lab.resume("ci", &[]).root();
}

#[test]
fn a_checkpoint_whose_state_is_not_the_ledger_s_is_refused_by_all_who_would_go_on_from_it() {
    let lab = Lab::new();
    trained(&lab, &[]);
    forge_weight(&lab.path("ci"), 10);
    reseal(&lab.path("ci"), |lock| lock.outputs.clear());
    let says = ["the checkpoint of step 10", "has the state root", "the ledger"];
    assert_finds(&lab, "ci", &[], &["its state has the root"]);
    lab.resume("ci", &["--set", "checkpoint.keep_last=1"]).assert_fails(5, &says);
    for (verb, more) in [("sample", &[][..]), ("eval", &[]), ("export", &["--format", "hf"])] {
        lab.verb(verb, "ci", more).assert_fails(5, &says);
    }
    lab.verb("export", "ci", &["--format", "slsa"]).assert_fails(5, &["another state root than the ledger"]);
    let init = ["--name", "branch", "--set", "model.init=run:ci@10"];
    lab.run(CI, &init).assert_fails(5, &says);
    // Of an ended run whose last checkpoint is gone there is nothing to state.
    let lab = Lab::new();
    trained(&lab, &[]);
    fs::remove_dir_all(lab.path("ci/checkpoints/step_00000010")).expect("removable");
    let statement = lab.verb("export", "ci", &["--format", "slsa"]);
    statement.assert_fails(5, &["the run ended at step 10", "newest checkpoint is of step 5"]);
}

/// The losses of two sets would stand in one column, and the best of them be of either.
#[test]
fn a_run_is_measured_on_one_validation_set_whatever_drift_is_allowed() {
    let lab = Lab::new();
    trained(&lab, &["eval.every=5", "eval.val_tokens=1024"]);
    let on = |steps: u64, more: &[&str]| {
        let steps = format!("schedule.steps={steps}");
        let sets = std::iter::once(steps.as_str()).chain(more.iter().copied()).flat_map(|set| ["--set", set]);
        lab.resume("ci", &sets.chain(["--allow-drift"]).collect::<Vec<_>>())
    };
    let says = ["a run is measured on one set: `data.validation_sha256` was", "`runner eval`"];
    let before = lab.files("ci");
    on(15, &["eval.val_tokens=2048"]).assert_fails(5, &says);
    assert!(lab.files("ci") == before);
    // Also when it was turned off in between.
    on(15, &["eval.every=0"]).root();
    on(20, &["eval.every=5", "eval.val_tokens=2048"]).assert_fails(5, &says);
    on(20, &["eval.every=5"]).root();
    lab.verify("ci", &[]).assert_says(&["ok      evaluation data"]);
}

/// A state renamed to another step would be trained on with the data and the learning rate of that step.
#[test]
fn a_checkpoint_under_the_number_of_another_step_is_refused() {
    let lab = Lab::new();
    trained(&lab, &[]);
    let checkpoints = lab.path("ci/checkpoints");
    let [five, ten] = ["step_00000005", "step_00000010"].map(|name| store::load(&checkpoints.join(name)));
    let (ten, state) = (ten.expect("whole").0, five.expect("whole").1);
    store::save(&checkpoints, &state, &facts(&ten)).expect("saved");
    let says = ["it is of step 10, and `train/step` of its state is of another"];
    assert_finds(&lab, "ci", &[], &says);
    lab.verb("sample", "ci", &["--checkpoint", "10"]).assert_fails(5, &says);
}

#[test]
fn a_run_without_its_ledger_says_what_is_missing_and_what_to_do() {
    let lab = Lab::new();
    trained(&lab, &[]);
    fs::remove_file(lab.path("ci/ledger.jsonl")).expect("removable");
    let before = lab.files("ci");
    lab.resume("ci", &[]).assert_fails(1, &["ledger.jsonl` is missing", "restore it", "run:NAME@STEP"]);
    assert!(lab.files("ci") == before);
    assert_finds(&lab, "ci", &[], &["ledger.jsonl` is missing"]);
}

#[test]
fn a_checkpoint_that_no_root_binds_is_said_to_be_one() {
    let lab = Lab::new();
    let rarely = ["proof.digest_every=0", "schedule.steps=400", "checkpoint.every=0", "eval.every=0"];
    let sets: Vec<&str> = rarely.iter().flat_map(|set| ["--set", set]).collect();
    let mut run = lab.start("run", CI, &sets);
    run.wait_for_rows(&lab, 3);
    run.signal("TERM");
    run.end(Duration::from_secs(60)).assert_fails(130, &[]);
    let says = "note: the ledger has no state root of step";
    let sampled = lab.verb("sample", "ci", &["--tokens", "1"]);
    assert!(sampled.code == Some(0) && sampled.stderr.contains(says), "{}", sampled.stderr);
    let resumed = lab.resume("ci", &[]);
    assert!(resumed.stderr.contains(says), "{}", resumed.stderr);
    resumed.root();
}

#[test]
fn checkpoints_have_a_root_in_the_ledger_however_rarely_steps_are_hashed() {
    let lab = Lab::new();
    for every in ["0", "7"] {
        let name = format!("every_{every}");
        trained(&lab, &[&format!("proof.digest_every={every}"), &format!("name={name}")]);
        lab.verify(&name, &[]).assert_says(&["heads and roots of 2 checkpoints agree"]);
        forge_weight(&lab.path(&name), 5);
        assert_finds(&lab, &name, &[], &["checkpoint 5 in the ledger", "its state has the root"]);
    }
}

#[test]
fn a_ledger_that_is_not_the_lock_s_is_said_wherever_its_figures_are_shown() {
    let lab = Lab::new();
    trained(&lab, &[]);
    let (_, mut entries) = ledger::read(&lab.path("ci/ledger.jsonl")).expect("a ledger");
    let evaluation = entries.last_mut().and_then(|last| last.evaluation.as_mut()).expect("evaluated");
    evaluation.validation.as_mut().expect("validated").loss = 1.25;
    rewrite_records(&lab.path("ci"), &entries);
    let says = "the ledger's head is not the one that the lock has of its end";
    for arguments in [&["show", "ci"][..], &["show"], &["compare", "ci"], &["report", "ci"]] {
        let runs = lab.path("").display().to_string();
        let shown = lab.finish(&[arguments, &["--runs", &runs]].concat());
        let all = format!("{}{}", shown.stdout, shown.stderr);
        let page = fs::read_to_string(lab.path("ci/report.html")).unwrap_or_default();
        assert!(all.contains(says) || page.contains("lock has of its end"), "{arguments:?}: {all}");
    }
}

/// Parameters fit any number of heads, and give another model with each.
#[test]
fn a_checkpoint_is_read_as_the_model_that_it_was_made_with() {
    let lab = Lab::new();
    trained(&lab, &[]);
    lab.verb("eval", "ci", &["--set", "model.heads=4"]).assert_fails(5, &["`model.heads` = 2", "has 4"]);
    let path = lab.path("ci/experiment.toml");
    let text = fs::read_to_string(&path).expect("text");
    let edited = text.replacen("heads = 2 ", "heads = 4 ", 1).replacen(
        "learning_rate = 0.001",
        "learning_rate = 0.1",
        1,
    );
    assert!(edited.matches("heads = 4").count() == 1 && edited.contains("learning_rate = 0.1"), "{text}");
    fs::write(&path, edited).expect("writable");
    for (verb, more) in [("sample", &[][..]), ("eval", &[]), ("export", &["--format", "hf"])] {
        lab.verb(verb, "ci", more).assert_fails(5, &["was made with `model.heads` = 2"]);
    }
    let runs = lab.path("").display().to_string();
    let shown = lab.finish(&["show", "--columns", "learning_rate", "--runs", &runs]);
    assert!(
        shown.stderr.contains("not verified: `experiment.toml` has `model.heads` = 4"),
        "{}",
        shown.stderr
    );
}

/// No lock has an end yet; the head of the newest checkpoint is what binds its ledger.
#[test]
fn the_forged_ledger_of_a_run_that_has_not_ended_is_said_wherever_its_figures_are_shown() {
    let lab = Lab::new();
    trained(&lab, &["eval.every=5"]);
    reseal(&lab.path("ci"), |lock| lock.outputs.clear());
    let (_, mut entries) = ledger::read(&lab.path("ci/ledger.jsonl")).expect("a ledger");
    let evaluation = entries[5].evaluation.as_mut().expect("evaluated");
    evaluation.validation.as_mut().expect("validated").loss = 1.25;
    rewrite_records(&lab.path("ci"), &entries);
    let runs = lab.path("").display().to_string();
    let says = "the ledger does not have the head of the checkpoint of step 10";
    for arguments in [&["show", "ci"][..], &["show"], &["plot", "ci"]] {
        let shown = lab.finish(&[arguments, &["--runs", &runs]].concat());
        assert!(shown.stderr.contains(says), "{arguments:?}: {}", shown.stderr);
    }
    let out = lab.path("mlruns").display().to_string();
    let tracked = lab.finish(&["export", "ci", "--runs", &runs, "--format", "mlflow", "--out", &out]);
    tracked.assert_fails(5, &["the figures of", says]);
    // A folder that only has the name of a newer checkpoint binds nothing, and excuses nothing.
    fs::create_dir(lab.path("ci/checkpoints/step_99999999")).expect("a folder");
    let shown = lab.finish(&["plot", "ci", "--runs", &runs]);
    assert!(shown.stderr.contains(says), "{}", shown.stderr);
    let tracked = lab.finish(&["export", "ci", "--runs", &runs, "--format", "mlflow", "--out", &out]);
    tracked.assert_fails(5, &["the figures of", says]);
}

/// No step made it: a run that was killed before its first checkpoint begins at step 0 from its seed.
#[test]
fn a_checkpoint_of_step_0_is_taken_by_nobody() {
    let lab = Lab::new();
    trained(&lab, &[]);
    let checkpoints = lab.path("ci/checkpoints");
    let (manifest, mut state) = store::load(&checkpoints.join("step_00000005")).expect("whole");
    let counter = state.iter_mut().find(|tensor| tensor.name == "train/step").expect("a counter");
    counter.bytes = 0u64.to_le_bytes().to_vec();
    let ledger = ledger::Log::default().head();
    let planted = store::Facts { step: 0, tokens: 0, updates: 0, ledger, ..facts(&manifest) };
    fs::remove_dir_all(&checkpoints).expect("removable");
    store::save(&checkpoints, &state, &planted).expect("saved");
    reseal(&lab.path("ci"), |lock| lock.outputs.clear());
    assert_finds(&lab, "ci", &[], &["checkpoint 0 in the ledger: a run saves none before its first step"]);
    let says = ["the checkpoint of step 0", "a run saves none before its first", "move the checkpoint away"];
    for (verb, more) in [("sample", &[][..]), ("eval", &[]), ("export", &["--format", "hf"])] {
        lab.verb(verb, "ci", more).assert_fails(5, &says);
    }
    lab.run(CI, &["--name", "branch", "--set", "model.init=run:ci@0"]).assert_fails(5, &says);
    lab.resume("ci", &[]).assert_fails(5, &says);
}

#[test]
fn a_ledger_that_is_damaged_binds_no_checkpoint_and_one_that_is_missing_is_said_to_be() {
    let lab = Lab::new();
    trained(&lab, &[]);
    copy(&lab.path("ci"), &lab.path("lost"));
    forge_weight(&lab.path("ci"), 10);
    flip_bit(&lab.path("ci/ledger.jsonl"), 0.3);
    let says = ["the checkpoint of step 10", "cannot be held to its ledger", "`runner verify ci`"];
    for (verb, more) in [("sample", &[][..]), ("eval", &[]), ("export", &["--format", "hf"])] {
        lab.verb(verb, "ci", more).assert_fails(5, &says);
    }
    lab.run(CI, &["--name", "branch", "--set", "model.init=run:ci@10"]).assert_fails(5, &says);
    reseal(&lab.path("ci"), |lock| lock.outputs.clear());
    lab.resume("ci", &[]).assert_fails(5, &says);

    fs::remove_file(lab.path("lost/ledger.jsonl")).expect("removable");
    let sampled = lab.verb("sample", "lost", &["--tokens", "1"]);
    let says = "note: the run's `ledger.jsonl` is missing: nothing says that the checkpoint of step 10";
    assert!(sampled.code == Some(0) && sampled.stderr.contains(says), "{}", sampled.stderr);
    let from = ["--name", "branch", "--set", "model.init=run:lost@10", "--set", "schedule.steps=2"];
    let branch = lab.run(CI, &[&from[..], &["--set", "schedule.warmup_steps=1"]].concat());
    assert!(branch.stderr.contains("note: `model.init`: nothing binds the checkpoint"), "{}", branch.stderr);
    branch.root();
}

/// A statement is of a lock and a checkpoint that belong together.
#[test]
fn a_lock_with_other_numerics_or_another_end_is_not_attested_and_ends_no_run() {
    let lab = Lab::new();
    trained(&lab, &[]);
    for (name, forged) in [("seed", "seed"), ("end", "")] {
        copy(&lab.path("ci"), &lab.path(name));
        reseal(&lab.path(name), |lock| match forged {
            "" => drop(lock.outputs.insert("end_root".into(), "0".repeat(64))),
            key => {
                lock.numerics.insert(key.into(), "7".into());
                lock.config.insert(key.into(), "7 (default)".into());
            }
        });
    }
    let experiment = lab.path("seed/experiment.toml");
    let text = fs::read_to_string(&experiment).expect("text");
    fs::write(&experiment, text.replacen("seed = 1337", "seed = 7   ", 1)).expect("writable");
    let slsa = ["--format", "slsa"];
    lab.verb("export", "seed", &slsa).assert_fails(5, &["made with other numerics", "`seed` was 1337, is 7"]);
    lab.verb("export", "end", &slsa).assert_fails(5, &["not the one that the lock has of its end"]);
    lab.resume("seed", &[]).assert_fails(5, &["`seed`"]);
}

/// The evaluation after the last step is cut off in every file when there are more steps.
#[test]
fn a_run_made_longer_and_killed_has_no_row_of_its_old_end() {
    let lab = Lab::new();
    trained(&lab, &[]);
    let longer = ["--set", "schedule.steps=400", "--set", "checkpoint.every=300", "--allow-drift"];
    let mut run = lab.start("resume", "ci", &longer);
    run.wait_for_rows(&lab, 14);
    run.kill();
    let verified = lab.verify("ci", &[]);
    assert_eq!(verified.code, Some(0), "{}", verified.stdout);
}

#[test]
fn evaluation_data_and_a_good_end_are_held_to_what_else_the_lock_and_ledger_say() {
    let lab = Lab::new();
    trained(&lab, &[]);
    let fresh = |name: &str| {
        copy(&lab.path("ci"), &lab.path(name));
        lab.path(name)
    };
    let without_shards =
        |lock: &mut Lock| lock.environment.retain(|key, _| !key.starts_with("data.val_shard."));
    reseal(&fresh("fewer"), without_shards);
    assert_finds(&lab, "fewer", &[], &["FAILED  evaluation data: ", "(data.val_shard)"]);
    lab.resume("fewer", &[]).assert_fails(5, &["lock.toml", "`data.val_shard`", "hint: restore it"]);
    reseal(&fresh("unended"), |lock| {
        without_shards(lock);
        lock.outputs.clear();
    });
    assert_finds(&lab, "unended", &[], &["FAILED  evaluation data: ", "(data.val_shard)"]);
    lab.resume("unended", &[]).assert_fails(5, &["`data.val_shard`"]);
    reseal(&fresh("set"), |lock| drop(lock.environment.remove("data.validation_sha256")));
    assert_finds(&lab, "set", &[], &["FAILED  evaluation data: ", "(data.validation_sha256)"]);
    reseal(&fresh("other"), |lock| {
        lock.environment.insert("data.validation_sha256".into(), "0".repeat(64));
    });
    assert_finds(&lab, "other", &[], &["evaluation data", "data.validation_sha256"]);
    let note = r#"{"note":{"after":11,"kind":"not_finite","text":"a weight"}}"#;
    insert_line(&fresh("noted").join("ledger.jsonl"), 11, note);
    assert_finds(&lab, "noted", &[], &["end of the run", "a weight"]);
}

#[test]
fn folders_that_a_resume_would_delete_or_never_reach_are_named_at_its_start() {
    let lab = Lab::new();
    trained(&lab, &[]);
    reseal(&lab.path("ci"), |lock| lock.outputs.clear());
    let step = |step: u64| lab.path("ci/checkpoints").join(format!("step_{step:08}"));
    fs::rename(step(10), step(25)).expect("movable");
    lab.resume("ci", &[]).assert_fails(1, &["step_00000025", "beyond the run's last, 10"]);
    fs::rename(step(25), step(10)).expect("movable");
    fs::write(step(10).join("state.safetensors"), "cut").expect("writable");
    fs::write(step(10).join("notes.txt"), "mine").expect("writable");
    lab.resume("ci", &[]).assert_fails(1, &["step_00000010", "holds `notes.txt`"]);
    assert_eq!(fs::read_to_string(step(10).join("notes.txt")).expect("kept"), "mine");
    fs::remove_file(step(10).join("notes.txt")).expect("removable");
    lab.resume("ci", &[]).root();
    // A folder with somebody's file is not pruned.
    fs::write(step(5).join("notes.txt"), "mine").expect("writable");
    let pruned = lab.verb("prune", "ci", &["--keep-last", "1", "--yes"]);
    assert!(pruned.stderr.contains("keeps step 5: its folder holds `notes.txt`"), "{}", pruned.stderr);
    assert!(step(5).join("notes.txt").exists());
}

#[test]
fn outputs_of_a_run_without_checkpoints_are_held_to_its_ledger() {
    let lab = Lab::new();
    trained(&lab, &[]);
    fs::remove_dir_all(lab.path("ci/checkpoints")).expect("removable");
    lab.verify("ci", &[]).assert_says(&["skipped outputs: no checkpoint is here"]);
    lab.resume("ci", &[]).root();
    let hash = "ab".repeat(32);
    let forged =
        [("state_root", hash.as_str()), ("tokens", "999999"), ("ledger_root", &hash), ("ledger_size", "9")];
    for (key, value) in forged {
        copy(&lab.path("ci"), &lab.path(key));
        reseal(&lab.path(key), |lock| drop(lock.outputs.insert(key.into(), value.into())));
        let says = format!("`{key}` was {value}, is ");
        assert_finds(&lab, key, &[], &["FAILED  outputs: ", &says]);
        lab.resume(key, &[]).assert_fails(5, &["is not that of its ledger", &says, "hint:"]);
    }
}

#[test]
fn a_root_that_the_ledger_alone_has_is_not_the_expected_one() {
    let lab = Lab::new();
    trained(&lab, &[]);
    let run = lab.path("ci");
    let (_, entries) = ledger::read(&run.join("ledger.jsonl")).expect("a ledger");
    let root = |step: usize| entries[step - 1].root.expect("every step is hashed").to_string();
    let at_five = "ok      expected: it is the state root at step 5";
    lab.verify("ci", &["--expect", &root(5)]).assert_says(&[at_five]);
    let unheld = ["FAILED  expected: ", "the ledger alone has"];
    assert_finds(&lab, "ci", &["--expect", &root(9)], &unheld);
    let file = lab.path("golden.root");
    let expect = file.display().to_string();
    let golden = |text: String| fs::write(&file, text).expect("writable");
    let of = |id: &str| format!("numerics_id {id}\nroot 9 {}\nroot 10 {}\n", root(9), root(10));
    let id = Lock::read(&run.join("lock.toml")).expect("a lock").numerics_id().to_string();
    golden(of(&id));
    lab.verify("ci", &["--expect", &expect]).assert_says(&["ok      expected: those of", ": 2 roots"]);
    let other = "0".repeat(64);
    golden(of(&other));
    assert_finds(&lab, "ci", &["--expect", &expect], &["FAILED  expected: ", &other, &id]);
    golden(format!("root 9 {}\n", root(9)));
    assert_finds(&lab, "ci", &["--expect", &expect], &unheld);
    golden(root(10));
    lab.verify("ci", &["--expect", &expect]).assert_says(&["ok      expected: those of", ": 1 root"]);
    fs::remove_dir_all(run.join("checkpoints/step_00000010")).expect("removable");
    reseal(&run, |lock| lock.outputs.clear());
    lab.verify("ci", &[]).assert_says(&["skipped outputs: all 10 steps are in the ledger", "after step 5"]);
    assert_finds(&lab, "ci", &["--expect", &expect], &unheld);
}
