//! What people tried who had not written the program: folders that move, files that stand in the way,
//! variables that mean something else, two processes at once.

use std::process::Command;
use std::time::Duration;

use runner::proof::Lock;
use runner::store;

use crate::process::{signal, wait_until};
use crate::support::{Finished, Lab, flip_bit};
use crate::verify::assert_finds;

const CI: &str = "experiments/ci.toml";
const SHORT: [&str; 4] = ["--set", "schedule.steps=4", "--set", "schedule.warmup_steps=1"];
const LONG: [&str; 4] = ["--set", "schedule.steps=1000000", "--set", "checkpoint.keep_last=2"];

#[test]
fn a_run_whose_folder_was_moved_ends_and_writes_nothing_into_its_successor() {
    let lab = Lab::new();
    let mut first = lab.start("run", CI, &LONG);
    first.wait_for_rows(&lab, 3);
    std::fs::rename(lab.path("ci"), lab.path("elsewhere")).expect("moved");
    let root = lab.run(CI, &SHORT).root().to_owned();
    first.end(Duration::from_secs(60)).assert_fails(1, &["is not the folder of this run any more", "hint:"]);
    let verified = lab.verify("ci", &[]);
    assert!(verified.code == Some(0) && verified.stdout.contains(&root), "{}", verified.stdout);
    assert_eq!(lab.verify("elsewhere", &[]).code, Some(0), "what was written before is whole");
}

/// A refusal at the end would come after minutes of work.
#[test]
fn a_place_that_cannot_be_written_is_refused_before_the_work() {
    let lab = Lab::new();
    lab.run(CI, &SHORT).root();
    std::fs::write(lab.path("notes"), "mine").expect("writable");
    let [page, picture, other] =
        ["notes/a.html", "notes/a.svg", "notes/a"].map(|name| lab.path(name).display().to_string());
    let verb = |verb: &str, more: &[&str]| lab.verb(verb, "ci", more);
    let runs = lab.path("notes").display().to_string();
    for refused in [
        verb("report", &["--out", &page]),
        verb("export", &["--format", "slsa", "--out", &other]),
        verb("export", &["--format", "hf", "--out", &other]),
        lab.finish(&["plot", &lab.path("ci").display().to_string(), "--out", &picture]),
        lab.finish(&["lock", CI, "--out", &other]),
        lab.finish(&["data", "fetch", "tinyshakespeare", "--out", &other]),
        lab.finish(&["run", CI, "--runs", &runs]),
    ] {
        refused.assert_fails(1, &["cannot write below `", "notes`"]);
        assert!(refused.stdout.is_empty(), "{}", refused.stdout);
    }
    assert_eq!(std::fs::read(lab.path("notes")).expect("kept"), b"mine");
}

#[test]
fn a_result_replaces_its_like_alone() {
    let lab = Lab::new();
    lab.run(CI, &SHORT).root();
    let mine = lab.path("mine.html");
    std::fs::copy(CI, &mine).expect("a copy");
    let shown = mine.display().to_string();
    let verb = |verb: &str, more: &[&str]| lab.verb(verb, "ci", more);
    let page = lab.path("page.html").display().to_string();
    for refused in [
        verb("report", &["--out", &shown]),
        verb("export", &["--format", "slsa", "--out", &shown]),
        lab.finish(&["lock", CI, "--out", &shown, "--overwrite"]),
    ] {
        refused.assert_fails(1, &["mine.html` is there and is not", "it is kept", "hint:"]);
    }
    verb("report", &["--out", "page.pdf"]).assert_fails(2, &["`page.pdf` does not end in .html"]);
    assert_eq!(std::fs::read(&mine).expect("kept"), std::fs::read(CI).expect("readable"));
    for _ in 0..2 {
        assert_eq!(verb("report", &["--no-verify", "--out", &page]).code, Some(0));
    }
    // A device stays one, also behind a link.
    let device = lab.path("device");
    std::os::unix::fs::symlink("/dev/null", &device).expect("a link");
    let said = verb("export", &["--format", "slsa", "--out", &device.display().to_string()]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(device.is_symlink() && !std::fs::metadata("/dev/null").expect("there").is_file());
}

#[test]
fn only_what_is_certainly_this_programs_is_deleted() {
    let lab = Lab::new();
    lab.run(CI, &SHORT).root();
    lab.done(&["export", "ci", "--format", "hf", "--runs", &lab.path("").display().to_string()]);
    let overwrite = [&SHORT[..], &["--overwrite"]].concat();
    for file in [
        "export/step_00000004_hf_fp32/README.md",
        "plots/fig1.png",
        "checkpoints/.tmp.step_5/thesis.txt",
        ".tmp.notes-of-mine",
    ] {
        let path = lab.path("ci").join(file);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(&path, "mine").expect("written");
        let first = file.split('/').next().expect("a name");
        lab.run(CI, &overwrite).assert_fails(1, &["holds what runner did not write", first, "hint:"]);
        assert_eq!(std::fs::read(&path).expect("kept"), b"mine", "{file}");
        std::fs::remove_file(&path).expect("removed");
        let _ = std::fs::remove_dir(path.parent().expect("a folder"));
    }
    lab.run(CI, &overwrite).root();
}

#[test]
fn the_environment_says_where_things_are_and_changes_no_check() {
    let lab = Lab::new();
    lab.run(CI, &SHORT).root();
    let runs = lab.path("").display().to_string();
    let with = |name: &str, value: &str, arguments: &[&str]| {
        let mut command = lab.command(&[arguments, &["--runs", &runs]].concat());
        Finished::from(command.env(name, value).output().expect("it starts"))
    };
    for (name, value) in [
        ("RUNNER_SEED", "3"),
        ("RUNNER_SCHEDULE__STEPS", "7"),
        ("RUNNER_MODEL__LAYERS", "9"),
        ("RUNNER_A__B", "1"),
    ] {
        let verified = with(name, value, &["verify", "ci", "--replay", "0..2"]);
        assert_eq!(verified.code, Some(0), "{name}: {}{}", verified.stdout, verified.stderr);
    }
    with("RUNNER_STEPS", "5", &["run", CI]).assert_fails(2, &["did you mean `RUNNER_SCHEDULE__STEPS`?"]);
    // GitHub's runners have this one.
    assert_eq!(with("RUNNER_NAME", "x", &["verify", "ci"]).code, Some(0));
}

#[test]
fn a_statement_of_an_edited_experiment_is_refused() {
    let lab = Lab::new();
    lab.run(CI, &SHORT).root();
    let path = lab.path("ci/experiment.toml");
    let text = std::fs::read_to_string(&path).expect("readable");
    std::fs::write(&path, text.replace("seed = 1337", "seed = 7")).expect("written");
    let said = lab.verb("export", "ci", &["--format", "slsa"]);
    said.assert_fails(5, &["experiment.toml` is not what the run's lock holds", "`seed` was 1337", "is 7"]);
    assert_eq!(said.stdout, "");
}

#[test]
fn steps_before_a_drift_are_not_blamed_on_the_hardware() {
    let lab = Lab::new();
    lab.run(CI, &["--set", "schedule.steps=10"]).root();
    lab.resume("ci", &["--set", "schedule.steps=20", "--allow-drift"]).root();
    lab.verify("ci", &["--replay", "0..5"]).assert_fails(2, &["before 10 were made with other numerics"]);
    lab.verify("ci", &["--replay", "20..21"]).assert_fails(2, &["has 20 steps", "its last step is 19"]);
}

#[test]
fn data_that_are_here_in_part_are_checked_in_part() {
    let lab = Lab::new();
    let cases = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    for file in ["short_train_000001.bin", "short_val_000000.bin"] {
        std::fs::copy(cases.join(file), lab.path(file)).expect("a copy");
    }
    let experiment = cases.join("short_shard.toml").display().to_string();
    let pattern = |name: &str| lab.path(name).display().to_string();
    let train = format!("data.train={}", pattern("short_train_*.bin"));
    let val = format!("data.val={}", pattern("short_val_*.bin"));
    lab.run(&experiment, &["--set", &train, "--set", &val]).root();
    std::fs::remove_file(lab.path("short_val_000000.bin")).expect("removed");
    lab.verify("short_shard", &[]).assert_says(&["skipped data: ", "1 other file as in the lock"]);
    flip_bit(&lab.path("short_train_000001.bin"), 0.5);
    assert_finds(&lab, "short_shard", &[], &["FAILED  data: none of the lock's shards is this one"]);
}

#[test]
fn a_hash_alone_in_a_file_may_be_a_head_and_have_capitals() {
    let lab = Lab::new();
    let root = lab.run(CI, &SHORT).root().to_owned();
    let (log, _) = runner::proof::ledger::read(&lab.path("ci/ledger.jsonl")).expect("a ledger");
    let file = lab.path("kept");
    for hash in [root, log.head().root.to_string()] {
        std::fs::write(&file, format!("{}\n", hash.to_uppercase())).expect("written");
        let expect = file.display().to_string();
        lab.verify("ci", &["--expect", &expect]).assert_says(&["ok      expected: "]);
    }
}

#[test]
fn a_name_means_the_run_of_that_name_whatever_else_is_called_so() {
    let lab = Lab::new();
    lab.run(CI, &SHORT).root();
    let runs = lab.path("").display().to_string();
    let here = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(here.path().join("ci")).expect("a folder");
    let in_folder = |arguments: &[&str]| {
        let mut command = lab.command(&[arguments, &["--runs", &runs]].concat());
        Finished::from(command.current_dir(here.path()).output().expect("it starts"))
    };
    for empty in [true, false] {
        if !empty {
            std::fs::write(here.path().join("ci/experiment.toml"), "nonsense").expect("written");
        }
        for arguments in [&["plot", "ci"][..], &["diff", "ci", "ci"], &["show", "ci"], &["verify", "ci"]] {
            let said = in_folder(arguments);
            assert_eq!(said.code, Some(0), "{arguments:?}: {}", said.stderr);
        }
    }
}

#[test]
fn two_exports_at_once_leave_one_whole_folder_and_touch_no_other() {
    let lab = Lab::new();
    lab.run(CI, &SHORT).root();
    let (out, beside) = (lab.path("out"), lab.path(".tmp.out"));
    std::fs::create_dir(&beside).expect("a folder");
    std::fs::write(beside.join("mine"), "mine").expect("written");
    let out = out.display().to_string();
    let started: [crate::process::Running; 3] =
        [0; 3].map(|_| lab.start("export", "ci", &["--format", "hf", "--out", &out]));
    let ended = started.map(|export| export.end(Duration::from_secs(60)));
    assert!(ended.iter().any(|export| export.code == Some(0)), "{ended:?}");
    for failed in ended.iter().filter(|export| export.code != Some(0)) {
        failed.assert_fails(1, &["out` is already there"]);
    }
    assert_eq!(std::fs::read(beside.join("mine")).expect("kept"), b"mine");
    assert!(lab.path("out/model.safetensors").is_file());
    let left = std::fs::read_dir(lab.path("")).expect("a folder").filter(|entry| {
        entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with(".tmp.out."))
    });
    assert_eq!(left.count(), 0);
    // What a killed export left is the user's to delete: the name may be theirs.
    let left = lab.path(".tmp.other.4294967295");
    std::fs::create_dir(&left).expect("a folder");
    let other = lab.path("other").display().to_string();
    let exported = lab.verb("export", "ci", &["--format", "hf", "--out", &other]);
    assert!(exported.code == Some(0) && left.is_dir(), "{exported:?}");
    assert!(exported.stderr.contains(".tmp.other.4294967295` is half an export"), "{}", exported.stderr);
}

#[test]
fn a_proof_that_is_stopped_leaves_no_folder_and_no_process() {
    for name in ["TERM", "INT"] {
        let lab = Lab::new();
        let temporary = lab.path("temporary");
        std::fs::create_dir(&temporary).expect("a folder");
        let arguments = [&["verify", CI, "--twice"][..], &LONG].concat();
        let mut command = lab.command(&arguments);
        let proof = crate::process::Running::start("a proof", command.env("TMPDIR", &temporary));
        let ledger = || {
            let mut runs = std::fs::read_dir(&temporary).ok()?.flatten();
            runs.find_map(|entry| std::fs::metadata(entry.path().join("runs/first/ledger.jsonl")).ok())
        };
        wait_until("a step of the first run", Duration::from_secs(60), || {
            ledger().is_some_and(|file| file.len() > 0)
        });
        signal(proof.pid(), name);
        let ended = proof.end(Duration::from_secs(30));
        ended.assert_fails(130, &["stopped on request"]);
        assert_eq!(std::fs::read_dir(&temporary).expect("a folder").count(), 0);
    }
}

#[test]
fn a_copy_of_hard_links_that_goes_on_does_not_grow_the_original() {
    let lab = Lab::new();
    lab.run(CI, &[]).root();
    std::fs::remove_dir_all(lab.path("ci/checkpoints/step_00000020")).expect("the last checkpoint");
    let read = || {
        ["ledger.jsonl", "metrics.jsonl", "main.log"]
            .map(|file| std::fs::read(lab.path("ci").join(file)).expect("readable"))
    };
    let before = read();
    let copied = Command::new("cp").arg("-al").args([lab.path("ci"), lab.path("copy")]).status();
    assert!(copied.expect("cp").success());
    lab.resume("copy", &["--set", "schedule.learning_rate=2e-3", "--allow-drift"]).root();
    assert!(read() == before, "the original has changed");
    lab.verify("copy", &[]).assert_says(&["skipped numerics of checkpoints 5, 10, 15: the ledger notes"]);
}

#[test]
fn a_run_that_could_not_write_its_end_is_not_done() {
    let lab = Lab::new();
    lab.run(CI, &SHORT).root();
    let state = || {
        let shown =
            lab.done(&["show", "--csv", "--columns", "state", "--runs", &lab.path("").display().to_string()]);
        shown.stdout.lines().nth(1).map(|line| line.split(',').nth(1).unwrap_or_default().to_owned())
    };
    assert_eq!(state().as_deref(), Some("done"));
    let path = lab.path("ci/lock.toml");
    let lock = Lock::read(&path).expect("a lock");
    std::fs::write(&path, Lock { outputs: Default::default(), ..lock }.to_text()).expect("written");
    assert_eq!(state().as_deref(), Some("stopped"));
    assert!(lab.verb("show", "ci", &[]).stdout.starts_with("run          ci, stopped"));
    lab.resume("ci", &[]).root();
    assert_eq!(state().as_deref(), Some("done"));
}

#[test]
fn numbers_of_nothing_are_usage_errors() {
    let lab = Lab::new();
    for arguments in [
        &["run", CI, "--ranks", "0"][..],
        &["bench", CI, "--steps", "0"],
        &["data", "prepare", "--out", "x", "--shard-tokens", "0", "README.md"],
        &["data", "prepare", "--out", "x", "--val-fraction", "nan", "README.md"],
        &["data", "prepare", "--out", "x", "--name", "a/b", "README.md"],
        &["data", "prepare", "--out", "x", "--column", "body", "README.md"],
        &["data", "prepare", "--out", "x", "--skip-bad-rows", "3", "README.md"],
    ] {
        let said = lab.finish(arguments);
        assert_eq!(said.code, Some(2), "{arguments:?}: {}", said.stderr);
    }
    assert!(!std::path::Path::new("x").exists());
    lab.run(CI, &SHORT).root();
    for arguments in [
        &["--format", "hf", "--builder", "https://example.org"][..],
        &["--format", "slsa", "--builder", ""],
        &["--format", "slsa", "--dtype", "bf16"],
    ] {
        assert_eq!(lab.verb("export", "ci", arguments).code, Some(2), "{arguments:?}");
    }
    let runs = lab.path("").display().to_string();
    let shown = lab.finish(&["show", "--filter", "loss < NaN", "--runs", &runs]);
    shown.assert_fails(2, &["expected a number"]);
}

/// A disk that fills between the first two files of a run leaves a folder that nothing can be done with.
#[test]
fn a_run_that_could_not_write_its_experiment_leaves_no_folder() {
    let root = tempfile::tempdir().expect("a folder");
    let folder = store::RunFolder::create(root.path(), "a", false).expect("made");
    folder.abandon().expect("removed");
    assert!(!root.path().join("a").exists());
    drop(folder);
}
