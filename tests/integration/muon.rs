//! `optimizer.kind = "muon"`: resumed, verified, shared by ranks, in the mirror, and beside PyTorch's.

use crate::support::Lab;

const CI: &str = "experiments/ci.toml";
const MUON: &[&str] = &["--set", "optimizer.kind=muon"];
/// Sizes that have a mirror.
const MIRROR: &[&str] = &[
    "--set",
    "device.kind=mirror",
    "--set",
    "precision.compute=bf16",
    "--set",
    "model.heads=1",
    "--set",
    "eval.every=0",
    "--set",
    "sample.every=0",
    "--set",
    "schedule.steps=6",
];

#[test]
fn a_run_that_was_killed_ends_in_the_bits_of_the_whole_one_and_verify_holds_it() {
    let lab = Lab::new();
    let whole = lab.run(CI, &[MUON, &["--name", "whole"]].concat()).root().to_owned();
    assert_ne!(whole, lab.run(CI, &["--name", "adamw"]).root());
    let mut run = lab.start("run", CI, MUON);
    run.wait_for_rows(&lab, 11);
    run.kill();
    lab.resume("ci", &["--set", "optimizer.kind=adamw"]).assert_fails(5, &["optimizer.kind"]);
    assert_eq!(lab.resume("ci", &[]).root(), whole);
    lab.verify("ci", &["--replay", "10..15"]).assert_says(&["replay"]);
    let lock = |run: &str| std::fs::read_to_string(lab.path(run).join("lock.toml")).expect("a lock");
    assert!(lock("whole").contains("optimizer.muon_version"), "{}", lock("whole"));
    assert!(!lock("adamw").contains("muon_version"), "locks of before have no such key");
}

#[test]
fn the_mirror_trains_with_muon_and_audits_leave_matrices_out() {
    let lab = Lab::new();
    let audited = ["--set", "proof.audit_every=3", "--name", "audited"];
    let root = lab.run(CI, &[MUON, MIRROR, &audited].concat()).root().to_owned();
    assert_eq!(lab.run(CI, &[MUON, MIRROR, &["--name", "plain"]].concat()).root(), root);
    let verified = lab.verify("audited", &["--audit", "40"]);
    verified.assert_says(&["audit of the update", "the updates of matrices, which Muon makes as a whole"]);
    let sets = ["--set", "precision.master_weights=false", "--name", "rounded"];
    assert_ne!(lab.run(CI, &[MUON, MIRROR, &sets].concat()).root(), root);
}

/// Needs Python with torch:
/// `RUNNER_TEST_PYTHON=python cargo test --release --test integration muon -- --ignored`
#[test]
#[ignore = "needs torch"]
fn updates_are_those_of_pytorchs_muon() {
    let lab = Lab::new();
    let every = ["--set", "checkpoint.every=1", "--set", "optimizer.grad_clip=0"];
    lab.run(CI, &[MUON, &every, &["--name", "fp32"][..]].concat());
    lab.run(CI, &[MUON, MIRROR, &every, &["--name", "bf16"]].concat());
    for run in ["fp32", "bf16"] {
        let finished = std::process::Command::new(crate::python::python())
            .arg("tests/pytorch/muon.py")
            .arg(lab.path(run))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("Python starts");
        let stderr = String::from_utf8_lossy(&finished.stderr);
        assert!(finished.status.success(), "{run}: {}{stderr}", String::from_utf8_lossy(&finished.stdout));
        print!("{}", String::from_utf8_lossy(&finished.stdout));
    }
}
