//! The same bits again, under settings that must not change them, on every CPU.

use crate::support::Lab;

const CI: &str = "experiments/ci.toml";

/// The state root that `experiments/ci.toml` ends in on every CPU.
const GOLDEN: &str = include_str!("../golden/ci_cpu.root");

#[test]
fn the_ci_experiment_ends_in_the_committed_root() {
    assert_eq!(Lab::new().run(CI, &[]).root(), GOLDEN.trim());
}

#[test]
fn settings_that_do_not_matter_change_no_bit() {
    let settings: [&[&str]; 10] = [
        &["device.threads=1"],
        &["device.threads=3"],
        &["memory.recompute=1"],
        &["memory.recompute=2"],
        &["eval.every=0", "sample.every=0"],
        &["eval.every=1", "sample.every=7"],
        &["checkpoint.every=0", "proof.digest_every=0"],
        &[
            "checkpoint.every=1",
            "checkpoint.keep_last=1",
            "log.every=5",
            "log.tensorboard=false",
            "log.gpu_every=0",
        ],
        &["data.prefetch=1"],
        &["proof.replay_every=3"],
    ];
    for settings in settings {
        let arguments: Vec<&str> = settings.iter().flat_map(|s| ["--set", s]).collect();
        assert_eq!(Lab::new().run(CI, &arguments).root(), GOLDEN.trim(), "{settings:?}");
    }
}

/// The state root of a short run on a SIMD width, which this CPU must have.
fn root_with_simd(width: &str) -> String {
    // Without fused multiply-add in hardware each one is a library call: few steps, few tokens.
    let simd = format!("device.simd={width}");
    let settings = [
        "schedule.steps=2",
        "schedule.warmup_steps=1",
        "batch.tokens=256",
        "eval.every=0",
        "sample.every=0",
        &simd,
    ];
    let arguments: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    Lab::new().run(CI, &arguments).root().to_owned()
}

#[test]
#[ignore = "skipped: needs a CPU with AVX2; run with --include-ignored"]
fn simd_avx2_changes_no_bit() {
    assert_eq!(root_with_simd("avx2"), root_with_simd("baseline"));
}

#[test]
#[ignore = "skipped: needs a CPU with AVX-512; run with --include-ignored"]
fn simd_avx512_changes_no_bit() {
    assert_eq!(root_with_simd("avx512"), root_with_simd("baseline"));
}

#[test]
fn the_seed_changes_the_bits() {
    let root = |seed: &str| {
        let seed = format!("seed={seed}");
        Lab::new()
            .run(CI, &["--set", "schedule.steps=1", "--set", "schedule.warmup_steps=1", "--set", &seed])
            .root()
            .to_owned()
    };
    assert_ne!(root("1"), root("2"));
}

#[test]
fn virtual_workers_change_the_order_of_sums_and_nothing_else() {
    let losses = |workers: &str| {
        let lab = Lab::new();
        let workers = format!("parallel.workers={workers}");
        lab.run(CI, &["--set", "schedule.steps=3", "--set", "schedule.warmup_steps=1", "--set", &workers])
            .root();
        lab.metrics("ci").iter().filter_map(|row| row["loss"].as_f64()).collect::<Vec<_>>()
    };
    let one = losses("1");
    for workers in ["2", "4"] {
        let several = losses(workers);
        assert_eq!((one.len(), several.len()), (3, 3), "a loss a step");
        for (a, b) in one.iter().zip(several) {
            assert!((a - b).abs() < 1e-5, "{workers} workers: {a} and {b}");
        }
    }
}
