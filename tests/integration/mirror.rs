//! The mirror: a Hopper GPU's bits without one.

use crate::support::Lab;

/// Made on a GPU by `runner verify experiments/ci_cuda.toml --twice --bless`.
const GOLDEN: &str = include_str!("../golden/ci_cuda_hopper.root");

#[test]
fn a_run_in_the_mirror_ends_in_the_root_of_a_gpu() {
    let mut roots = GOLDEN.lines().filter_map(|line| line.strip_prefix("root "));
    let (step, root) = roots.next_back().and_then(|line| line.split_once(' ')).expect("golden roots");
    assert_eq!(step, "20");
    let lab = Lab::new();
    let run = lab.run("experiments/ci_cuda.toml", &["--set", "device.kind=mirror"]);
    assert_eq!(run.root(), root);
}

#[test]
fn what_the_mirror_lacks_is_refused_before_anything_is_opened() {
    let lab = Lab::new();
    let refused = |set: &str, says: &str| {
        lab.run("experiments/ci_cuda.toml", &["--set", "device.kind=mirror", "--set", set])
            .assert_fails(2, &[says, "device.kind"]);
    };
    refused("precision.compute=fp32", "the mirror computes in bf16");
    refused("model.heads=4", "heads of 32 have no mirror");
    refused("kernels.gelu_fusion=1", "which the mirror lacks");
}

#[test]
fn steps_are_replayed_on_the_device_that_is_asked_for() {
    let lab = Lab::new();
    lab.run("experiments/ci_cuda.toml", &["--set", "device.kind=mirror", "--set", "schedule.steps=6"]).root();
    lab.verify("ci_cuda", &["--replay", "5..6", "--set", "device.threads=1"])
        .assert_says(&["replay: step 5 gave the same bits again"]);
    // A CPU's own arithmetic is another, and is told from a difference.
    let cpu = ["--replay", "5..6", "--set", "device.kind=cpu", "--set", "precision.compute=fp32"];
    let refused = lab.verify("ci_cuda", &cpu);
    let mirror = "hint: `--set device.kind=mirror` makes the bits of a Hopper GPU on a CPU";
    assert!(refused.code == Some(5), "{refused:?}");
    for says in ["not begun: the bits cannot be made here", mirror] {
        assert!(refused.stdout.contains(says), "`{says}` is not in:\n{}", refused.stdout);
    }
    lab.verify("ci_cuda", &["--replay", "5..6", "--set", "eval.val_tokens=4096"])
        .assert_fails(2, &["measures the sets that the run's lock names"]);
    lab.verify("ci_cuda", &["--set", "device.kind=cpu"]).assert_fails(2, &["`--set` goes with"]);
}
