//! Blocks of other models than GPT-2: the same bits under every setting that must not change them, killed and
//! resumed, in the mirror with its audits, and what is refused.

use crate::support::{Lab, MIRROR, sets};

const CI: &str = "experiments/ci.toml";
const MODERN: &[&str] = &[
    "model.norm=rmsnorm",
    "model.positions=rotary",
    "model.activation=swiglu",
    "model.bias=false",
    "model.tied_head=false",
    "model.qk_norm=true",
];
const RELU2: &[&str] = &["model.activation=relu2", "model.positions=rotary", "model.qk_norm=true"];
const GROUPED: &[&str] = &["model.kv_heads=1", "model.positions=rotary", "model.qk_norm=true"];
/// State roots that `ci.toml` ends in with these, on every CPU.
const MODERN_ROOT: &str = "5e8422b6dd5bb39f0cf3611af7d26d92209dfb027ae210c999f97cd2e88723ff";
const RELU2_ROOT: &str = "8a0daa7a4b68c14a9415f3a2fe3de508207ae8536a688ee39c0db70eb9cd912e";
const GROUPED_ROOT: &str = "3442ed1c5eb41240eee22b081371e89e32046d005b75189e0cb5074604f17f17";
/// State roots that `ci_cuda.toml` ended in on an H200: with grouped queries; with all parts of `MODERN`;
/// with squared ReLU, capped logits and a z-loss.
const HOPPER_ROOTS: [(&[&str], &str); 3] = [
    (GROUPED, "b34d1b9e00571366f3e1a9b1ebaed4cc4707aa7d51b291e71157b401491dc631"),
    (MODERN, "bcf25dad202190667c92a17891dca7f897e665d1c77abaebd2389910a1bc651c"),
    (
        &[
            "model.activation=relu2",
            "model.positions=rotary",
            "model.qk_norm=true",
            "model.logit_softcap=30.0",
            "optimizer.z_loss=1e-4",
        ],
        "41f4980d7cffd1c4787ad65b8acd3e64370ddf9b730888023577f532e54d64c3",
    ),
];

#[test]
fn settings_that_do_not_matter_change_no_bit() {
    let lab = Lab::new();
    for (name, blocks, golden) in
        [("modern", MODERN, MODERN_ROOT), ("relu2", RELU2, RELU2_ROOT), ("grouped", GROUPED, GROUPED_ROOT)]
    {
        let root = |number: usize, more: &[&str]| {
            let name = format!("{name}{number}");
            let arguments = [&sets(blocks)[..], &sets(more), &["--name", &name]].concat();
            lab.run(CI, &arguments).root().to_owned()
        };
        let plain = root(0, &[]);
        assert_eq!(plain, golden, "{name}: the root of every CPU");
        let settings: [&[&str]; 6] = [
            &["device.threads=1"],
            &["memory.recompute=1"],
            &["memory.recompute=2"],
            &["parallel.ranks=2", "parallel.zero=1"],
            &["parallel.ranks=2", "parallel.zero=0"],
            &["eval.every=0", "sample.every=7", "proof.replay_every=5"],
        ];
        for (number, settings) in settings.into_iter().enumerate() {
            assert_eq!(root(1 + number, settings), plain, "{name} {settings:?}");
        }
    }
}

#[test]
fn each_part_is_another_model() {
    let lab = Lab::new();
    let mut roots = Vec::new();
    for (number, part) in
        MODERN.iter().chain(&["model.activation=relu2", "model.kv_heads=1", "seed=1337"]).enumerate()
    {
        let name = format!("part{number}");
        let short = ["schedule.steps=1", "schedule.warmup_steps=1", "eval.every=0", "sample.every=0"];
        let arguments = [&sets(&[part])[..], &sets(&short), &["--name", &name]].concat();
        roots.push(lab.run(CI, &arguments).root().to_owned());
        let lock = std::fs::read_to_string(lab.path(&name).join("lock.toml")).expect("a lock");
        let key = part.split('=').next().expect("a key");
        // Locks of before have none of these keys.
        let numerics = lock.split("\n[").find(|section| section.starts_with("numerics]")).expect("there");
        let has = |key: &str| numerics.contains(&format!("\n\"{key}\" = "));
        let parts = MODERN.iter().chain(&["model.kv_heads=1"]);
        let held = parts.filter(|part| has(part.split('=').next().expect("a key"))).count();
        let own = usize::from(key.starts_with("model."));
        assert_eq!((held, has(key)), (own, true), "{part}: {lock}");
    }
    let count = roots.len();
    roots.sort_unstable();
    roots.dedup();
    assert_eq!(roots.len(), count);
}

#[test]
fn a_run_that_was_killed_ends_in_the_bits_of_the_whole_one_and_verify_holds_it() {
    let lab = Lab::new();
    let whole = lab.run(CI, &[&sets(MODERN)[..], &["--name", "whole"]].concat()).root().to_owned();
    let mut run = lab.start("run", CI, &sets(MODERN));
    run.wait_for_rows(&lab, 11);
    run.kill();
    lab.resume("ci", &["--set", "model.qk_norm=false"]).assert_fails(5, &["model.qk_norm"]);
    assert_eq!(lab.resume("ci", &[]).root(), whole);
    lab.verify("ci", &["--replay", "10..15"]).assert_says(&["replay"]);
    let sampled = lab.verb("sample", "ci", &["--prompt", "And God", "--tokens", "40", "--seed", "1"]);
    assert_eq!(sampled.code, Some(0), "{}", sampled.stderr);
    assert!(sampled.stdout.starts_with("And God"), "{}", sampled.stdout);
    lab.verb("export", "ci", &["--format", "llmc"])
        .assert_fails(1, &["cannot hold this model", "model.norm"]);
}

#[test]
fn muon_trains_the_matrices_of_other_blocks() {
    let lab = Lab::new();
    // One micro-step a worker, as ZeRO 2 needs.
    let muon = [&sets(MODERN)[..], &["--set", "optimizer.kind=muon", "--set", "batch.tokens=256"]].concat();
    let whole = lab.run(CI, &[&muon[..], &["--name", "whole"]].concat()).root().to_owned();
    let ranks = sets(&["parallel.ranks=2", "parallel.zero=2"]);
    assert_eq!(lab.run(CI, &[&muon[..], &ranks, &["--name", "ranks"]].concat()).root(), whole);
}

#[test]
fn the_mirror_trains_them_and_its_audits_hold() {
    let lab = Lab::new();
    // Two heads, so that they can share keys.
    let grouped = [GROUPED, &["model.heads=2", "model.channels=128"]].concat();
    for (name, blocks) in [("modern", MODERN), ("relu2", RELU2), ("grouped", &grouped)] {
        let audited = format!("{name}_audited");
        let arguments = [&sets(MIRROR)[..], &sets(blocks), &["--name", &audited]].concat();
        let more = sets(&["proof.audit_every=2", "proof.audit_pieces=200", "memory.recompute=2"]);
        let root = lab.run(CI, &[&arguments[..], &more].concat()).root().to_owned();
        let plain = [&sets(MIRROR)[..], &sets(blocks), &["--name", name]].concat();
        assert_eq!(lab.run(CI, &plain).root(), root, "{name}");
        let verified = lab.verify(&audited, &["--audit", "200"]);
        assert_eq!(verified.code, Some(0), "{}{}", verified.stdout, verified.stderr);
    }
}

#[test]
fn runs_in_the_mirror_end_in_the_roots_of_a_gpu() {
    let lab = Lab::new();
    for (blocks, root) in HOPPER_ROOTS {
        let arguments = [&sets(blocks)[..], &["--set", "device.kind=mirror", "--overwrite"]].concat();
        assert_eq!(lab.run("experiments/ci_cuda.toml", &arguments).root(), root, "{blocks:?}");
    }
}

#[test]
fn what_does_not_go_together_is_refused_by_key() {
    let lab = Lab::new();
    let refused = |settings: &[&str], says: &[&str]| lab.run(CI, &sets(settings)).assert_fails(2, says);
    refused(&["model.rope_theta=500.0"], &["`model.rope_theta` does nothing", "model.positions"]);
    refused(&["model.positions=rotary", "model.rope_theta=0.5"], &["model.rope_theta"]);
    refused(
        &["model.positions=rotary", "model.channels=66", "model.heads=6"],
        &["heads of 11 cannot be rotated", "model.heads"],
    );
    refused(&["model.logit_softcap=1e-40"], &["`model.logit_softcap` = 1e-40 is too small", "0.001"]);
    refused(&["model.logit_softcap=1e300"], &["`model.logit_softcap` is 1e300", "out of range"]);
    refused(&["optimizer.z_loss=1e-60"], &["`optimizer.z_loss`", "becomes 0.0 in the 32 bits"]);
    refused(&["optimizer.z_loss=1e-40"], &["`optimizer.z_loss` = 1e-40 is too small"]);
    refused(
        &["model.kv_heads=2", "model.heads=3", "model.channels=96"],
        &["`model.kv_heads` = 2 does not divide `model.heads` = 3", "choose 1, or 0"],
    );
    refused(&["model.norm=batchnorm"], &["model.norm", "layernorm", "rmsnorm"]);
    refused(&["model.activation=silu"], &["model.activation", "swiglu"]);
    refused(
        &["model.activation=swiglu", "kernels.gelu_fusion=1"],
        &["kernels.gelu_fusion", "model.activation"],
    );
}

#[test]
fn a_model_goes_on_from_the_blocks_of_its_checkpoint() {
    let lab = Lab::new();
    let short = sets(&["schedule.steps=2", "schedule.warmup_steps=1", "checkpoint.every=2"]);
    lab.run(CI, &[&sets(MODERN)[..], &short, &["--name", "first"]].concat()).root();
    let experiment = "[data]\ncorpus = \"kjv\"\ntokenizer = \"byte\"\n[model]\ninit = \"run:first@2\"\n\
        [batch]\nmicro = 2\nseq_len = 64\n[schedule]\nsteps = 1\n[eval]\nevery = 0\n\
        [device]\nkind = \"cpu\"\n";
    let path = lab.path("continued.toml");
    std::fs::write(&path, experiment).expect("writable");
    let path = path.to_str().expect("UTF-8");
    lab.run(path, &["--name", "second"]).root();
    let resolved = std::fs::read_to_string(lab.path("second/experiment.toml")).expect("there");
    for key in ["norm = \"rmsnorm\"", "activation = \"swiglu\"", "tied_head = false", "from model.init"] {
        assert!(resolved.contains(key), "{key}: {resolved}");
    }
    let other = ["--set", "model.norm=layernorm", "--name", "third"];
    lab.run(path, &other).assert_fails(1, &["model.norm", "rmsnorm"]);
}

/// RMSNorm with biases has the tensors of layernorm: the state fits an edited experiment.
#[test]
fn a_part_that_was_edited_in_a_runs_experiment_is_found_both_ways() {
    let lab = Lab::new();
    let short = sets(&["schedule.steps=2", "schedule.warmup_steps=1", "checkpoint.every=2"]);
    for (name, part, other) in [
        ("plain", "model.norm=layernorm", ["norm = \"layernorm\"", "norm = \"rmsnorm\""]),
        ("rms", "model.norm=rmsnorm", ["norm = \"rmsnorm\"", "norm = \"layernorm\""]),
        ("capped", "model.logit_softcap=30.0", ["logit_softcap = 30.0", "logit_softcap = 0.0"]),
    ] {
        lab.run(CI, &[&short[..], &["--set", part, "--name", name]].concat()).root();
        let path = lab.path(name).join("experiment.toml");
        let text = std::fs::read_to_string(&path).expect("there");
        assert!(text.contains(other[0]), "{text}");
        std::fs::write(&path, text.replace(other[0], other[1])).expect("writable");
        let key = part.split('=').next().expect("a key");
        for verb in ["sample", "eval"] {
            let refused = lab.verb(verb, name, &[]);
            assert_eq!(refused.code, Some(5), "{verb} {name}: {}", refused.stderr);
            assert!(refused.stderr.contains(key), "{verb} {name}: {}", refused.stderr);
        }
    }
}
