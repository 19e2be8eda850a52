//! Copies of checkpoints in another place, and runs that go on from there.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Finished, Lab, flip_bit};

pub const CI: &str = "experiments/ci.toml";
pub const STATE: &str = "state.safetensors";
const MANIFEST: &str = "manifest.json";

/// `--set checkpoint.copy_to=PLACE`.
fn copying(place: &str) -> Vec<String> {
    vec!["--set".into(), format!("checkpoint.copy_to={place}")]
}

fn run(lab: &Lab, place: &str) -> Finished {
    let set = copying(place);
    lab.run(CI, &set.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The steps of the whole copies in a folder.
pub fn whole(copies: &Path) -> Vec<u64> {
    let step = |name: &str| name.strip_prefix("step_")?.parse().ok();
    let entries = std::fs::read_dir(copies).into_iter().flatten().flatten();
    let found = entries.filter(|entry| entry.path().join(MANIFEST).exists());
    let mut steps: Vec<u64> = found.filter_map(|entry| step(entry.file_name().to_str()?)).collect();
    steps.sort_unstable();
    steps
}

pub fn step(copies: &Path, step: u64) -> PathBuf {
    copies.join(format!("step_{step:08}"))
}

/// Leaves the copies of these steps alone.
pub fn keep(copies: &Path, steps: &[u64]) {
    for other in whole(copies).into_iter().filter(|step| !steps.contains(step)) {
        std::fs::remove_dir_all(step(copies, other)).expect("it can be removed");
    }
}

/// The files of two runs that end in the same bits.
#[track_caller]
pub fn assert_same(ours: &Lab, theirs: &Lab) {
    assert_eq!(ours.ledger("ci"), theirs.ledger("ci"));
    assert_eq!(ours.metrics("ci"), theirs.metrics("ci"));
    ours.verify("ci", &[]).assert_says(&["ok"]);
}

#[test]
fn a_run_that_goes_on_from_a_copy_ends_in_the_bits_of_the_uninterrupted_one() {
    let (lab, elsewhere) = (Lab::new(), Lab::new());
    let place = lab.path("copies");
    let made = run(&lab, place.to_str().expect("UTF-8"));
    let copies = place.join("ci");
    assert_eq!(whole(&copies), [5, 10, 15, 20], "{}", made.stderr);
    let mut sums = Command::new("sha256sum");
    sums.args(["-c", "--quiet", "SHA256SUMS"]).current_dir(step(&copies, 10));
    let sums = sums.output().expect("sha256sum");
    assert!(sums.status.success(), "{}", String::from_utf8_lossy(&sums.stderr));
    for file in [lab.path("ci/lock.toml"), step(&copies, 20).join("lock.toml")] {
        assert!(!std::fs::read_to_string(file).expect("a lock").contains("copy_to"));
    }
    keep(&copies, &[5, 10]);
    // A copy without a manifest is none.
    std::fs::create_dir(step(&copies, 15)).expect("a folder");
    std::fs::copy(step(&copies, 10).join(STATE), step(&copies, 15).join(STATE)).expect("a file");
    let from = format!("file://{}", copies.display());
    let resumed = elsewhere.resume(&from, &[]);
    assert_eq!(resumed.root(), made.root());
    assert!(resumed.stderr.contains("at step 10 to"), "{}", resumed.stderr);
    assert_same(&elsewhere, &lab);
    assert_eq!(whole(&copies), [5, 10, 15, 20], "it goes on copying");
    // Where it is already, it goes on; a plain folder is an address too.
    assert_eq!(elsewhere.resume(copies.to_str().expect("UTF-8"), &[]).root(), made.root());
}

#[test]
fn a_damaged_copy_is_named_and_the_one_before_is_taken() {
    let (lab, elsewhere) = (Lab::new(), Lab::new());
    let place = lab.path("copies");
    let root = run(&lab, place.to_str().expect("UTF-8")).root().to_owned();
    let copies = place.join("ci");
    keep(&copies, &[10, 15]);
    let from = copies.to_str().expect("UTF-8");
    let damaged = step(&copies, 15).join(STATE);
    flip_bit(&damaged, 0.7);
    let resumed = elsewhere.resume(from, &[]);
    assert_eq!(resumed.root(), root);
    let named = format!("the copy `{}` is damaged: tensor `", damaged.display());
    assert!(resumed.stderr.contains(&named), "{}", resumed.stderr);
    keep(&copies, &[10]);
    for file in ["experiment.toml", "lock.toml", "ledger.jsonl", "metrics.jsonl", "main.log"] {
        let path = step(&copies, 10).join(file);
        flip_bit(&path, 0.5);
        let refused = Lab::new().resume(from, &[]);
        refused.assert_fails(5, &[&format!("the copy `{}` is damaged: its SHA-256", path.display())]);
        flip_bit(&path, 0.5);
    }
    // One that is far too long is not read into memory, nor copied.
    let log = step(&copies, 10).join("main.log");
    std::fs::OpenOptions::new()
        .write(true)
        .open(&log)
        .and_then(|file| file.set_len(1 << 36))
        .expect("a hole");
    Lab::new().resume(from, &[]).assert_fails(5, &["main.log` is damaged: its SHA-256"]);
    std::fs::remove_file(step(&copies, 10).join("main.log")).expect("it was there");
    Lab::new().resume(from, &[]).assert_fails(5, &["main.log` is damaged: it is missing"]);
}

#[test]
fn a_place_that_takes_nothing_stops_no_step_and_is_served_later() {
    let lab = Lab::new();
    let place = lab.path("copies");
    std::fs::write(&place, "a file").expect("writable");
    let made = run(&lab, place.to_str().expect("UTF-8"));
    let root = made.root().to_owned();
    assert_eq!(made.stderr.matches("cannot be copied to").count(), 1, "{}", made.stderr);
    assert!(made.stderr.contains("the checkpoints of steps 5, 10, 15, 20"), "{}", made.stderr);
    std::fs::remove_file(&place).expect("it was there");
    assert_eq!(lab.resume("ci", &[]).root(), root);
    assert_eq!(whole(&place.join("ci")), [5, 10, 15, 20]);
}

#[test]
fn copies_and_folders_of_other_runs_are_left_alone() {
    let (lab, other) = (Lab::new(), Lab::new());
    let place = lab.path("copies");
    let to = place.to_str().expect("UTF-8");
    run(&lab, to).root();
    let before = std::fs::read(step(&place.join("ci"), 5).join(STATE)).expect("a copy");
    let set = copying(to);
    let seed = other.run(CI, &["--set", "seed=7", &set[0], &set[1]]);
    seed.root();
    assert!(seed.stderr.contains("holds copies of another run"), "{}", seed.stderr);
    assert_eq!(std::fs::read(step(&place.join("ci"), 5).join(STATE)).expect("a copy"), before);
    let refused = other.resume(place.join("ci").to_str().expect("UTF-8"), &[]);
    refused.assert_fails(2, &["is there, and is not the run of", "--runs"]);
    other.resume(&format!("{to}/none"), &["--set", "seed=7"]).assert_fails(2, &["there is no run in"]);
    let none = format!("file://{to}/none");
    other.resume(&none, &[]).assert_fails(2, &["there is no whole copy of a run"]);
}

#[test]
fn or_resume_goes_on_from_the_copies_where_the_folder_is_gone() {
    let (lab, elsewhere) = (Lab::new(), Lab::new());
    let place = lab.path("copies");
    let set = copying(place.to_str().expect("UTF-8"));
    let or_resume = ["--or-resume", "--ranks", "2", &set[0], &set[1]];
    let root = lab.run(CI, &or_resume).root().to_owned();
    keep(&place.join("ci"), &[10]);
    let resumed = elsewhere.run(CI, &or_resume);
    assert_eq!(resumed.root(), root);
    assert!(resumed.stderr.contains("at step 10 to"), "{}", resumed.stderr);
    assert_same(&elsewhere, &lab);
}

/// A copy holds a run's files too; training in it would overwrite them.
#[test]
fn one_copy_is_no_run_and_is_left_as_it_is() {
    let lab = Lab::new();
    run(&lab, lab.path("copies").to_str().expect("UTF-8")).root();
    let copy = step(&lab.path("copies/ci"), 15);
    let before = lab.files("copies/ci");
    let one = copy.to_str().expect("UTF-8");
    for verb in ["resume", "verify", "show"] {
        lab.verb(verb, one, &[]).assert_fails(2, &["that is the copy of one checkpoint", "copies/ci`"]);
    }
    lab.verb("sample", one, &[]).assert_fails(1, &["it is the copy of a checkpoint", "copies/ci`"]);
    let by_name = ["--runs", "copies/ci", "--name", "step_00000015", "--or-resume"];
    let mut command = lab.command(&["run"]);
    command.current_dir(lab.path("")).arg(Path::new(env!("CARGO_MANIFEST_DIR")).join(CI)).args(by_name);
    Finished::from(command.output().expect("it starts")).assert_fails(1, &["is not a run that runner made"]);
    assert!(lab.files("copies/ci") == before);
    let inside = lab.path("").display().to_string();
    let refused = run(&lab, &format!("{inside}/"));
    refused.assert_fails(2, &["copies would lie in the run's own folder"]);
}

#[test]
fn a_sweep_takes_its_members_from_copies_when_it_is_to_go_on_and_they_are_its_own() {
    let lab = Lab::new();
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join(CI);
    let declare = |seeds: &str| {
        let text = format!(
            "extends = {base:?}\nname = \"lr\"\n[checkpoint]\ncopy_to = \"copies\"\n[schedule]\nsteps = 10\n\
             [sweep.grid]\nseed = {seeds}\n"
        );
        std::fs::write(lab.path("lr.toml"), text).expect("writable");
        lab.path("lr.toml").display().to_string()
    };
    let sweep = declare("[1, 2]");
    let hash = lab.run(&sweep, &[]).root().to_owned();
    let lose = || std::fs::remove_dir_all(lab.path("lr")).expect("removable");
    lose();
    let brought = lab.run(&sweep, &["--or-resume"]);
    assert_eq!(brought.root(), hash);
    assert!(brought.stderr.contains("copies/lr/001` at step 10 to"), "{}", brought.stderr);
    lose();
    lab.resume(lab.path("copies/lr").to_str().expect("UTF-8"), &[])
        .assert_fails(2, &["copies of the members of a sweep", "--or-resume"]);
    // A place that is lost is filled again, of members that are finished too.
    lab.run(&sweep, &["--or-resume"]).root();
    std::fs::remove_dir_all(lab.path("copies/lr/002")).expect("removable");
    lab.resume("lr", &[]).root();
    assert_eq!(whole(&lab.path("copies/lr/002")), [10], "the checkpoints that are there");
    lose();
    // Anew, and other members of the same name.
    let anew = lab.run(&sweep, &[]);
    assert!(anew.root() == hash && !anew.stderr.contains("at step 10 to"), "{}", anew.stderr);
    let other = declare("[1, 3]");
    let overwritten = lab.run(&other, &["--overwrite"]);
    assert_ne!(overwritten.root(), hash);
    let says = "002: not copied to `";
    assert!(overwritten.stderr.contains(says), "{}", overwritten.stderr);
    lose();
    lab.run(&other, &["--or-resume"])
        .assert_fails(2, &["copies/lr/002` holds copies of a run with `seed` = 2, and 3 is asked for"]);
}

#[test]
fn an_address_with_a_key_is_refused_and_not_repeated() {
    let refused = run(&Lab::new(), "s3://AKIA:hidden@bucket/runs");
    refused.assert_fails(2, &["`checkpoint.copy_to` must have neither `@`", "AWS_SECRET_ACCESS_KEY"]);
    assert!(!refused.stderr.contains("hidden"), "{}", refused.stderr);
    run(&Lab::new(), "ftp://host/runs").assert_fails(2, &["`file:///`, `s3://` or `gs://`"]);
}

#[cfg(not(feature = "object-storage"))]
#[test]
fn a_bucket_is_refused_by_a_program_that_knows_none() {
    let lab = Lab::new();
    let says = ["`checkpoint.copy_to`", "--features object-storage"];
    run(&lab, "s3://bucket/runs").assert_fails(2, &says);
    assert!(!lab.path("ci").exists());
}
