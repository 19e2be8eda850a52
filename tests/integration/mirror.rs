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
