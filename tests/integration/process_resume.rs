//! What a resume does not change: a finished run, and the origins of the keys that it does not set.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use runner::proof::Lock;
use runner::proof::lock::Table;

use crate::support::Lab;
use crate::verify::copy;
use crate::verify_claims::reseal;

const CI: &str = "experiments/ci.toml";

/// Content and time of every file below a folder.
fn files(folder: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            let changed = path.metadata().and_then(|about| about.modified()).expect("a time");
            found.insert(path.clone(), (std::fs::read(&path).expect("readable"), changed));
        }
    }
    found
}

#[test]
fn resuming_a_finished_run_changes_no_file_and_says_so() {
    let lab = Lab::new();
    let root = lab.run(CI, &[]).root().to_owned();
    let before = files(&lab.path("ci"));
    for (verb, what, arguments) in [
        ("resume", "ci", &[][..]),
        ("resume", "ci", &["--ranks", "2"]),
        ("resume", "ci", &["--set", "log.every=1"]),
        ("run", CI, &["--or-resume"]),
        ("run", CI, &["--or-resume", "--set", "log.every=3", "--set", "device.threads=1"]),
        ("run", CI, &["--or-resume", "--set", "eval.every=5"]),
    ] {
        let resumed = lab.verb(verb, what, arguments);
        assert_eq!(resumed.root(), root, "{verb} {arguments:?}");
        assert!(resumed.stderr.starts_with("nothing to do: "), "{verb} {arguments:?}: {}", resumed.stderr);
        assert_eq!(resumed.stderr.lines().count(), 1, "{}", resumed.stderr);
        assert!(files(&lab.path("ci")) == before, "{verb} {arguments:?} changed a file");
    }
    let event: serde_json::Value =
        serde_json::from_str(&lab.resume("ci", &["--json"]).stdout).expect("one line of JSON");
    assert_eq!((&event["event"], &event["root"]), (&"finished".into(), &root.as_str().into()));
    for (set, key) in [("log.every=3", "`log.every = 3`"), ("eval.val_tokens=64", "`eval.val_tokens = 64`")] {
        let words =
            ["ended at step 20", "no step is left", key, "hint: `--set schedule.steps=N --allow-drift`"];
        lab.resume("ci", &["--set", set]).assert_fails(2, &words);
        let mut after = files(&lab.path("ci"));
        // The one that keeps other processes out names the last.
        let lock = lab.path("ci/.lock");
        after.insert(lock.clone(), before[&lock].clone());
        assert!(after == before, "--set {set} changed a file");
    }
    let more = ["--set", "schedule.steps=22", "--allow-drift"];
    assert_ne!(lab.resume("ci", &more).root(), root, "there was something to do");
    assert!(lab.metrics("ci").iter().any(|row| row["step"] == 21));
}

#[test]
fn a_key_that_is_set_on_resume_leaves_the_origins_of_all_others() {
    let lab = Lab::new();
    lab.run(CI, &["--set", "log.gpu_every=7"]).root();
    // A finished run refuses another value: this one lacks its end.
    std::fs::remove_dir_all(lab.path("ci/checkpoints/step_00000020")).expect("the last checkpoint");
    let read = |file: &str| std::fs::read_to_string(lab.path("ci").join(file)).expect("readable");
    let before = ["experiment.toml", "lock.toml"].map(read);
    lab.resume("ci", &["--set", "log.every=3"]).root();
    let after = ["experiment.toml", "lock.toml"].map(read);
    for (before, after) in before.iter().zip(&after) {
        let changed: Vec<_> = before.lines().zip(after.lines()).filter(|(was, is)| was != is).collect();
        assert_eq!(before.lines().count(), after.lines().count());
        let other = |(_, is): &&(&str, &str)| {
            !is.contains("--set") && !is.starts_with("config_id") && !is.starts_with("outputs_id")
        };
        assert_eq!(changed.iter().find(other), None);
        assert!(changed.iter().any(|(_, is)| is.contains("3") && is.contains("--set")), "{changed:?}");
        assert!(after.contains("experiments/ci.toml:"), "{after}");
    }
}

#[test]
fn a_finished_run_whose_lock_or_experiment_was_edited_is_refused_and_stays_as_it_is() {
    let lab = Lab::new();
    lab.run(CI, &[]).root();
    type In = fn(&mut Lock) -> &mut Table;
    type Edits<'a> = &'a [(In, &'a str, &'a str)];
    let (numerics, config, outputs): (In, In, In) =
        (|lock| &mut lock.numerics, |lock| &mut lock.config, |lock| &mut lock.outputs);
    let cases: &[(&str, Edits, &str)] = &[
        ("numerics", &[(numerics, "optimizer.beta1", "0.8")], "`optimizer.beta1` was 0.9, is 0.8"),
        ("added", &[(numerics, "model.norm", "rmsnorm")], "`model.norm` was not set, is rmsnorm"),
        (
            "both",
            &[(numerics, "optimizer.beta1", "0.8"), (config, "optimizer.beta1", "0.8 (default)")],
            "`optimizer.beta1` was 0.9, is 0.8",
        ),
        ("root", &[(outputs, "state_root", "00")], "is 00"),
        ("before", &[(outputs, "step", "9")], "`step` was 20, is 9"),
        ("behind", &[(outputs, "step", "30")], "`step` was 20, is 30"),
        ("no_step", &[(outputs, "step", "x")], "`step` was 20, is x"),
        ("longer", &[(outputs, "end_size", "30")], "`end_size` was 21, is 30"),
        ("other_end", &[(outputs, "end_root", "00")], "`end_root` was "),
    ];
    let refused = |name: &str, says: &str| {
        let before = files(&lab.path(name));
        lab.resume(name, &[]).assert_fails(5, &[says, "hint:", "restore it from a copy"]);
        assert!(files(&lab.path(name)) == before, "{name}: a file was changed");
    };
    for (name, edits, says) in cases {
        copy(&lab.path("ci"), &lab.path(name));
        reseal(&lab.path(name), |lock| {
            edits
                .iter()
                .for_each(|(table, key, value)| drop(table(lock).insert((*key).into(), (*value).into())));
        });
        if *name == "both" {
            let experiment = lab.path(name).join("experiment.toml");
            let text = std::fs::read_to_string(&experiment).expect("an experiment");
            std::fs::write(&experiment, text.replacen("beta1 = 0.9", "beta1 = 0.8", 1)).expect("writable");
        }
        refused(name, says);
    }
    // The experiment with the table of origins, and no more.
    copy(&lab.path("ci"), &lab.path("origins"));
    let experiment = lab.path("origins/experiment.toml");
    let text = std::fs::read_to_string(&experiment).expect("an experiment");
    std::fs::write(&experiment, text.replacen("beta1 = 0.9", "beta1 = 0.8", 1)).expect("writable");
    reseal(&lab.path("origins"), |lock| {
        lock.config.insert("optimizer.beta1".into(), "0.8 (default)".into());
    });
    refused("origins", "`optimizer.beta1` was 0.9, is 0.8");
}

/// A new lock would be made of whatever is on the disk now.
#[test]
fn a_run_that_has_trained_and_lost_its_lock_goes_on_by_leave_alone() {
    let lab = Lab::new();
    let root = lab.run(CI, &[]).root().to_owned();
    let lock = lab.path("ci/lock.toml");
    let lose = || std::fs::remove_file(&lock).expect("there");
    let refused = |hint: &str| {
        let before = lab.files("ci");
        let says = ["lock.toml` is missing", "hint: put it back", hint];
        lab.resume("ci", &[]).assert_fails(5, &says);
        lab.run(CI, &["--or-resume"]).assert_fails(5, &says);
        assert!(lab.files("ci") == before, "a file was changed");
    };
    lose();
    refused("the run has ended, and no step is left");
    lab.resume("ci", &["--allow-drift"]).assert_fails(5, &["the run has ended, and no step is left"]);
    std::fs::remove_dir_all(lab.path("ci/checkpoints/step_00000020")).expect("the last checkpoint");
    refused("`runner resume --allow-drift`");
    let drift = "`lock.toml` was missing, is made of what was here at the resume";
    let allowed = lab.resume("ci", &["--allow-drift"]);
    assert_eq!(allowed.root(), root);
    assert!(allowed.stderr.lines().any(|line| line == format!("note: {drift}")), "{}", allowed.stderr);
    // As after a kill before the next checkpoint: the entry with the event is gone, and the note is not.
    std::fs::remove_dir_all(lab.path("ci/checkpoints/step_00000020")).expect("the last checkpoint");
    assert_eq!(lab.resume("ci", &[]).root(), root);
    let ledger = std::fs::read_to_string(lab.path("ci/ledger.jsonl")).expect("a ledger");
    assert!(ledger.contains(&format!("\"events\":[\"drift {drift}\"]")), "{ledger}");
    lab.verify("ci", &[]).assert_says(&["ok      events: rewinds: 0, changes by leave: 1"]);
}
