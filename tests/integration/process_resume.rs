//! What a resume does not change: a finished run, and the origins of the keys that it does not set.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::support::Lab;

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
