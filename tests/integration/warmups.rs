//! Warm-ups of the batch and of the length of sequences: killed and resumed, shared by ranks, gone back
//! behind a bad stretch, in a mixture, in the mirror with its audits, in what counts tokens, in the lock, and
//! what is refused.

use std::time::Duration;

use runner::proof::ledger;

use crate::process::wait_until;
use crate::support::{Lab, MIRROR, sets};

const CI: &str = "experiments/ci.toml";
/// Units of 256 tokens, 4 sequences: 1 + 3 s / 12 of them in step s, 4 from step 12 on.
const BATCH: &[&str] = &["batch.tokens=1024", "batch.tokens_start=256", "batch.tokens_warmup_steps=12"];
/// Pieces of 8 tokens, of 16 from step 2, of 32 from step 6 and of 64 from step 12 on.
const PIECES: &[&str] = &["batch.seq_len_start=8", "batch.seq_len_warmup_steps=12"];

/// Tokens of all steps up to and with each of `steps`.
fn counted(steps: u64) -> Vec<u64> {
    let mut sum = 0;
    let of = |step: u64| 256 * (1 + 3 * step.min(12) / 12);
    (0..steps).map(|step| (sum, sum += of(step)).0 + of(step)).collect()
}

fn tokens(lab: &Lab, run: &str) -> Vec<u64> {
    let rows = lab.metrics(run).into_iter().filter(|row| row["action"] != "evaluate");
    rows.map(|row| row["tokens"].as_u64().expect("a number")).collect()
}

#[test]
fn a_run_that_was_killed_ends_in_the_bits_of_the_whole_one_and_ranks_change_none() {
    let lab = Lab::new();
    let all = [&sets(BATCH)[..], &sets(PIECES), &sets(&["sample.every=4"])].concat();
    let whole = lab.run(CI, &[&all[..], &["--name", "whole"]].concat()).root().to_owned();
    let mut run = lab.start("run", CI, &all);
    run.wait_for_rows(&lab, 7);
    let manifest = lab.path("ci/checkpoints/step_00000005/manifest.json");
    wait_until("the checkpoint of step 5", Duration::from_secs(60), || manifest.exists());
    run.kill();
    for other in ["batch.tokens_start=512", "batch.tokens_warmup_steps=13"] {
        let key = other.split('=').next().expect("a key");
        for drift in [&[][..], &["--allow-drift"]] {
            lab.resume("ci", &[&["--set", other], drift].concat())
                .assert_fails(5, &[key, "a run has one size of a step"]);
        }
    }
    // Step 2 had 256 tokens; by smaller units it has 384.
    for other in [&["parallel.workers=1"][..], &["batch.micro=1"], &["batch.micro=1", "parallel.workers=1"]] {
        let key = other[0].split('=').next().expect("a key");
        lab.resume("ci", &[&sets(other)[..], &["--allow-drift"]].concat())
            .assert_fails(5, &[key, "a run has one size of a step"]);
    }
    lab.resume("ci", &["--set", "batch.seq_len_start=16"]).assert_fails(5, &["batch.seq_len_start"]);
    assert_eq!(lab.resume("ci", &[]).root(), whole);
    for steps in ["0..4", "10..15"] {
        lab.verify("ci", &["--replay", steps]).assert_says(&["gave the same bits again"]);
    }
    for (zero, name) in [("parallel.zero=1", "zero1"), ("parallel.zero=0", "zero0")] {
        let ranks = sets(&["parallel.ranks=2", zero, "proof.replay_every=5"]);
        assert_eq!(lab.run(CI, &[&all[..], &ranks, &["--name", name]].concat()).root(), whole, "{zero}");
    }
}

#[test]
fn metrics_checkpoints_and_the_plan_count_the_tokens_that_steps_had() {
    let lab = Lab::new();
    lab.run(CI, &[&sets(BATCH)[..], &sets(PIECES)].concat()).root();
    let expected = counted(20);
    assert_eq!((expected[0], expected[4], expected[19]), (256, 1536, 14_336));
    assert_eq!(tokens(&lab, "ci"), expected);
    for step in [5usize, 10, 20] {
        let manifest = lab.path(&format!("ci/checkpoints/step_{step:08}/manifest.json"));
        let manifest = std::fs::read_to_string(manifest).expect("a manifest");
        let tokens = format!("\"tokens\": {}", expected[step - 1]);
        assert!(manifest.contains(&tokens), "{tokens}: {manifest}");
    }
    lab.verify("ci", &[]).assert_says(&["ok"]);
    let plan = lab.verb("plan", CI, &[&sets(BATCH)[..], &sets(PIECES), &["--json"]].concat()).stdout;
    let plan: serde_json::Value = serde_json::from_str(&plan).expect("JSON");
    let work = &plan["work"];
    assert_eq!((&work["tokens"], &work["tokens_per_step"]), (&14_336.into(), &1024.into()), "{work}");
    assert_eq!((&work["first_step_tokens"], &work["first_seq_len"]), (&256.into(), &8.into()), "{work}");
    lab.verb("plan", CI, &sets(BATCH)).assert_says(&["20 steps of 256 to 1,024 tokens"]);
}

#[test]
fn a_step_has_as_many_tokens_with_pieces_as_without_and_both_reach_the_whole() {
    let lab = Lab::new();
    let short = ["schedule.steps=3", "schedule.warmup_steps=1", "eval.every=0", "sample.every=0"];
    let run = |name: &str, more: &[&str]| {
        let all = [&sets(&short)[..], &sets(more), &["--name", name]].concat();
        let root = lab.run(CI, &all).root().to_owned();
        let lock = std::fs::read_to_string(lab.path(name).join("lock.toml")).expect("a lock");
        (root, lock.lines().filter(|line| !line.contains(" (")).collect::<String>())
    };
    let (plain, lock) = run("plain", &[]);
    assert!(!lock.contains("_start") && !lock.contains("warmup_steps = \"0\""), "{lock}");
    let none = ["batch.tokens_start=0", "batch.seq_len_start=0", "batch.seq_len_warmup_steps=0"];
    let (root, lock) = run("none", &none);
    assert_eq!(root, plain);
    assert!(!lock.contains("_start"), "{lock}");
    let flat = [
        "batch.tokens_start=512",
        "batch.tokens_warmup_steps=2",
        "batch.seq_len_start=64",
        "batch.seq_len_warmup_steps=2",
    ];
    let (root, lock) = run("flat", &flat);
    assert_eq!(root, plain, "warm-ups from a value to itself");
    assert!(!lock.contains("_start"), "such a warm-up is none: {lock}");
    // One that outlasts the run is said, with what the run has.
    let long = sets(&["batch.tokens=1024", "batch.tokens_start=512", "batch.tokens_warmup_steps=1000"]);
    let planned = lab.verb("plan", CI, &long);
    planned.assert_says(&["20 steps of 512 tokens", "`batch.tokens_warmup_steps` = 1000 outlasts"]);
    let (pieces, _) = run("pieces", PIECES);
    let (batch, _) = run("batch", &["batch.tokens_start=256", "batch.tokens_warmup_steps=3"]);
    assert!(pieces != plain && batch != plain && pieces != batch);
    assert_eq!(tokens(&lab, "pieces"), tokens(&lab, "plain"));
}

/// A learning rate that breaks the model: steps 1 to 3 have no finite loss, and the run goes back once, to
/// the checkpoint of step 2. Steps have 1, 2, 3 and 4 units of 256 tokens.
#[test]
fn a_run_that_goes_back_passes_over_what_the_steps_had_read() {
    let lab = Lab::new();
    let own = [
        "batch.tokens_warmup_steps=3",
        "data.mix.new.corpus=kjv_nt",
        "data.mix.new.weight=3",
        "data.mix.old.corpus=kjv_ot",
        "data.mix.old.weight=1",
        "schedule.learning_rate=1e30",
        "schedule.warmup_steps=0",
        "guards.patience=3",
        "guards.on_diverge=rewind",
        "checkpoint.every=2",
    ];
    lab.run(CI, &[&sets(BATCH)[..], &sets(&own)].concat())
        .assert_fails(4, &["back to the checkpoint of step 2"]);
    let (_, entries) = ledger::read(&lab.path("ci/ledger.jsonl")).expect("a ledger");
    let entries: Vec<_> = entries.into_iter().filter(|entry| entry.loss.is_some()).collect();
    assert!(entries[2].events.iter().any(|event| event == "rewind from step 3 to step 2"), "{entries:?}");
    let before = |step: usize| [0, 256, 768, 1536, 2560, 3584, 4608, 5632][step];
    for (step, entry) in entries.iter().enumerate() {
        let passed = if step >= 2 { before(4) - before(2) } else { 0 };
        assert_eq!(entry.sources.values().sum::<u64>(), before(step + 1) + passed, "step {step}");
        assert_eq!(entry.tokens, before(step + 1), "step {step}");
    }
    lab.verify("ci", &[]).assert_says(&["ok      sources"]);
    let steps = format!("0..{}", entries.len());
    lab.verify("ci", &["--replay", &steps]).assert_says(&["gave the same bits again"]);
}

/// A run that goes on with an optimizer begins its warm-ups anew, behind what the checkpoint's run had read.
#[test]
fn where_a_run_had_come_to_in_the_data_follows_from_the_steps_it_had() {
    let lab = Lab::new();
    lab.run(CI, &[&sets(BATCH)[..], &["--name", "base"]].concat()).root();
    let own = ["model.init=run:base@10", "optimizer.from_init=true", "schedule.steps=5"];
    lab.run(CI, &[&sets(&own)[..], &["--name", "next"]].concat()).root();
    let resolved = std::fs::read_to_string(lab.path("next/experiment.toml")).expect("resolved");
    let offset = format!("offset = {}", counted(10)[9] / 64);
    assert!(resolved.contains(&offset), "{offset}: {resolved}");
}

#[test]
fn the_mirror_has_both_warm_ups_and_its_audits_know_their_steps() {
    let lab = Lab::new();
    let warming = ["batch.tokens_warmup_steps=6", "batch.seq_len_warmup_steps=6", "schedule.steps=7"];
    for (name, parts) in [("gpt2", &[][..]), ("modern", &["model.positions=rotary", "model.qk_norm=true"])] {
        let all = [&sets(MIRROR)[..], &sets(BATCH), &sets(PIECES), &sets(&warming), &sets(parts)].concat();
        let audited = format!("{name}_audited");
        let more = [&sets(&["proof.audit_every=2"])[..], &["--name", &audited]].concat();
        let root = lab.run(CI, &[&all[..], &more].concat()).root().to_owned();
        assert_eq!(lab.run(CI, &[&all[..], &["--name", name]].concat()).root(), root, "{name}");
        let verified = lab.verify(&audited, &["--audit", "100000"]);
        assert_eq!(verified.code, Some(0), "{}{}", verified.stdout, verified.stderr);
        verified.assert_says(&["audit of embedding_backward:", "the data's, in 3 of 3 steps"]);
    }
}

#[test]
fn what_does_not_go_together_is_refused_by_key() {
    let lab = Lab::new();
    let refused = |settings: &[&str], says: &[&str]| lab.run(CI, &sets(settings)).assert_fails(2, says);
    refused(
        &["batch.tokens=1024", "batch.tokens_start=300", "batch.tokens_warmup_steps=5"],
        &["`batch.tokens_start` = 300 is not a multiple", "are 256 and 512"],
    );
    refused(
        &["batch.tokens=256", "batch.tokens_start=128", "batch.tokens_warmup_steps=5", "parallel.zero=2"],
        &[
            "`batch.tokens_start` = 128 is not a multiple",
            "`parallel.zero` = 2 takes one micro-step a worker: no batch warms up there",
            "the smallest valid `batch.tokens_start` is 256",
        ],
    );
    refused(
        &["batch.seq_len_start=24", "batch.seq_len_warmup_steps=5"],
        &["`batch.seq_len_start` = 24 is not a divisor", "the nearest divisors are 16 and 32"],
    );
    refused(&["batch.seq_len_start=8"], &["has no warm-up", "set `batch.seq_len_warmup_steps`"]);
}
