//! The lock: what the bits depend on is recorded, and a change is refused by name.

use std::path::Path;

use runner::proof::Lock;

use crate::support::Lab;

const CI: &str = "experiments/ci.toml";
/// Four steps are enough where the bits are not the point.
const SHORT: [&str; 4] = ["--set", "schedule.steps=4", "--set", "schedule.warmup_steps=1"];

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    SHORT.into_iter().chain(more.iter().copied()).collect()
}

/// Changes a lock and computes its digests again.
fn edit(path: &Path, change: impl FnOnce(&mut Lock)) {
    let mut lock = Lock::read(path).expect("a lock");
    change(&mut lock);
    std::fs::write(path, lock.to_text()).expect("writable");
}

#[test]
fn a_lock_made_before_or_by_a_run_gives_its_bits_again_elsewhere() {
    let lab = Lab::new();
    let file = lab.path("made.lock.toml").display().to_string();
    let id = lab.done(&[&["lock", CI, "--out", &file], SHORT.as_slice()].concat());
    let first = lab.run(CI, &with(&["--lock", &file]));
    let root = first.root().to_owned();
    let of_run = Lock::read(&lab.path("ci/lock.toml")).expect("a lock");
    assert_eq!(id.stdout.trim(), of_run.numerics_id().to_string(), "locked before is locked by the run");
    assert_eq!(of_run.outputs["state_root"], root);

    // "Elsewhere": another machine and program, which is reported and changes nothing.
    let carried = lab.path("carried.toml");
    std::fs::copy(lab.path("ci/lock.toml"), &carried).expect("a copy");
    edit(&carried, |lock| {
        lock.environment.insert("kernel".into(), "0.0.1".into());
        lock.source.insert("git_commit".into(), "f00d".into());
    });
    let again = lab.run(CI, &with(&["--name", "again", "--lock", &carried.display().to_string()]));
    assert_eq!(again.root(), root);
    for difference in ["same numerics as", "`kernel` was 0.0.1, is ", "`git_commit` was f00d"] {
        assert!(again.stderr.contains(difference), "{}", again.stderr);
    }
}

#[test]
fn other_numerics_than_the_locked_ones_are_refused_field_by_field() {
    let lab = Lab::new();
    let file = lab.path("l.toml");
    let name = file.display().to_string();
    lab.done(&[&["lock", CI, "--out", &name], SHORT.as_slice()].concat());
    lab.run(CI, &with(&["--lock", &name, "--set", "seed=7", "--set", "batch.micro=1"]))
        .assert_fails(5, &["`seed` was 1337, is 7", "`batch.micro` was 2, is 1", "hint:"]);
    edit(&file, |lock| drop(lock.numerics.insert("cpu.numerics_version".into(), "0".into())));
    lab.run(CI, &with(&["--lock", &name])).assert_fails(5, &["`cpu.numerics_version` was 0, is "]);
    assert!(!lab.path("ci/experiment.toml").exists(), "nothing was begun");
    // A run that is refused deletes nothing of an older run.
    lab.run(CI, &SHORT).root();
    lab.run(CI, &with(&["--lock", &name, "--overwrite"])).assert_fails(5, &["cpu.numerics_version"]);
    assert!(lab.path("ci/metrics.jsonl").exists());
}

#[test]
fn a_lock_beside_the_experiment_is_used_unasked() {
    let lab = Lab::new();
    let experiment = lab.path("mine.toml");
    std::fs::copy(CI, &experiment).expect("a copy");
    let name = experiment.display().to_string();
    lab.done(&[&["lock", &name], SHORT.as_slice()].concat());
    assert!(lab.path("mine.lock.toml").exists());
    lab.finish(&["lock", &name]).assert_fails(1, &["is there already", "--overwrite"]);
    lab.run(&name, &with(&["--set", "seed=7"])).assert_fails(
        5,
        &["mine.lock.toml", "`seed`", "`--no-lock` runs without it", "mine.toml --overwrite` locks anew"],
    );
    lab.run(&name, &with(&["--set", "seed=7", "--no-lock"])).root();
}

#[test]
fn locked_outputs_that_do_not_come_out_are_refused() {
    let lab = Lab::new();
    let root = lab.run(CI, &SHORT).root().to_owned();
    let file = lab.path("l.toml");
    std::fs::copy(lab.path("ci/lock.toml"), &file).expect("a copy");
    let other = root.replace(|c: char| c.is_ascii_hexdigit(), "0");
    edit(&file, |lock| drop(lock.outputs.insert("state_root".into(), other)));
    let run = lab.run(CI, &with(&["--name", "b", "--lock", &file.display().to_string()]));
    run.assert_fails(5, &["the outputs are not", "`state_root` was 000", &root]);
}

#[test]
fn a_flipped_bit_in_a_lock_is_located_and_refused_by_run_resume_and_verify() {
    let lab = Lab::new();
    lab.run(CI, &SHORT).root();
    let file = lab.path("ci/lock.toml");
    let text = std::fs::read_to_string(&file).expect("a lock");
    let flipped = text.replacen("\"seed\" = \"1337\"", "\"seed\" = \"1336\"", 1);
    assert_ne!(text, flipped);
    std::fs::write(&file, flipped).expect("writable");
    let says = ["lock.toml", "table `numerics` was changed", "hint:"];
    lab.run(CI, &with(&["--name", "b", "--lock", &file.display().to_string()])).assert_fails(5, &says);
    lab.resume("ci", &[]).assert_fails(5, &says);
    let verified = lab.verify("ci", &[]);
    assert_eq!(verified.code, Some(5), "{}", verified.stdout);
    // The checkpoint's copy of the numerics shows which field.
    assert!(verified.stdout.contains("`seed` was 1337, is 1336"), "{}", verified.stdout);
}

#[test]
fn a_changed_token_in_a_shard_is_named_and_refused() {
    let lab = Lab::new();
    let text = lab.path("text.txt");
    std::fs::write(&text, "In the beginning was the Word. ".repeat(2000)).expect("writable");
    let out = lab.path("data").display().to_string();
    lab.done(&[
        "data",
        "prepare",
        &text.display().to_string(),
        "--out",
        &out,
        "--tokenizer",
        "byte",
        "--val-tokens",
        "4096",
    ]);
    let mut shards: Vec<_> =
        std::fs::read_dir(lab.path("data")).expect("a folder").map(|e| e.expect("an entry").path()).collect();
    shards.sort();
    let train = shards.iter().find(|p| p.display().to_string().contains("train")).expect("a training shard");
    let experiment = lab.path("own.toml");
    let own = std::fs::read_to_string(CI)
        .expect("readable")
        .replace("corpus = \"kjv\"", "train = \"data/*train*.bin\"\nval = \"data/*val*.bin\"");
    std::fs::write(&experiment, own).expect("writable");
    lab.run(&experiment.display().to_string(), &with(&["--set", "checkpoint.every=2"])).root();
    assert_eq!(lab.verify("own", &[]).code, Some(0));

    let mut bytes = std::fs::read(train).expect("a shard");
    let middle = (bytes.len() / 2) & !1;
    bytes[middle] ^= 1;
    std::fs::write(train, bytes).expect("writable");
    let name = train.file_name().expect("a name").to_string_lossy().into_owned();
    let says = ["`data.shard.00000` was ", name.as_str(), "sha256"];
    // A finished run has nothing to refuse: this one lacks its end.
    std::fs::remove_dir_all(lab.path("own/checkpoints/step_00000004")).expect("the last checkpoint");
    lab.resume("own", &[]).assert_fails(5, &says);
    let verified = lab.verify("own", &[]);
    assert_eq!(verified.code, Some(5));
    for text in says {
        assert!(verified.stdout.contains(text), "{}", verified.stdout);
    }
}
