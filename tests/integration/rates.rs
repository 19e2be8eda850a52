//! Learning rates by group of parameters and the warm-up of Muon's momentum: killed and resumed, shared by
//! ranks, in the mirror with its audits, in the lock, and what is refused.

use crate::support::{Lab, MIRROR, sets};

const CI: &str = "experiments/ci.toml";
const RATES: &[&str] = &[
    "model.tied_head=false",
    "optimizer.rate_tables=4",
    "optimizer.rate_head=0.5",
    "optimizer.rate_vectors=2",
    "optimizer.rate_matrices=1.5",
];
/// The warm-up ends in the middle of the run.
const MUON: &[&str] =
    &["optimizer.kind=muon", "optimizer.momentum_warmup_steps=12", "optimizer.momentum_start=0.5"];

#[test]
fn a_run_that_was_killed_ends_in_the_bits_of_the_whole_one_and_ranks_change_none() {
    let lab = Lab::new();
    let all = [&sets(RATES)[..], &sets(MUON)].concat();
    let whole = lab.run(CI, &[&all[..], &["--name", "whole"]].concat()).root().to_owned();
    let mut run = lab.start("run", CI, &all);
    run.wait_for_rows(&lab, 7);
    run.kill();
    for other in ["optimizer.rate_vectors=1", "optimizer.momentum_start=0.6"] {
        let key = other.split('=').next().expect("a key");
        lab.resume("ci", &["--set", other]).assert_fails(5, &[key]);
    }
    assert_eq!(lab.resume("ci", &[]).root(), whole);
    lab.verify("ci", &["--replay", "10..15"]).assert_says(&["replay"]);
    for (zero, name) in [("parallel.zero=1", "zero1"), ("parallel.zero=0", "zero0")] {
        let ranks = sets(&["parallel.ranks=2", zero]);
        assert_eq!(lab.run(CI, &[&all[..], &ranks, &["--name", name]].concat()).root(), whole, "{zero}");
    }
}

#[test]
fn each_key_changes_the_run_and_its_default_neither_run_nor_lock() {
    let lab = Lab::new();
    let short = ["schedule.steps=3", "schedule.warmup_steps=1", "eval.every=0", "sample.every=0"];
    let base = [&sets(&short)[..], &sets(&["model.tied_head=false", "optimizer.kind=muon"])].concat();
    let run = |name: &str, more: &[&str]| {
        let root = lab.run(CI, &[&base[..], &sets(more), &["--name", name]].concat()).root().to_owned();
        let lock = std::fs::read_to_string(lab.path(name).join("lock.toml")).expect("a lock");
        (root, lock.lines().filter(|line| !line.contains(" (")).collect::<String>())
    };
    let (plain, lock) = run("plain", &[]);
    assert!(!lock.contains("optimizer.rate_") && !lock.contains("optimizer.momentum_"), "{lock}");
    let defaults = [
        "optimizer.rate_tables=1",
        "optimizer.rate_head=1",
        "optimizer.rate_vectors=1.0",
        "optimizer.rate_matrices=1",
        "optimizer.momentum_warmup_steps=0",
        "optimizer.momentum_start=0.85",
    ];
    let (root, lock) = run("defaults", &defaults);
    assert_eq!(root, plain);
    assert!(!lock.contains("optimizer.rate_") && !lock.contains("optimizer.momentum_"), "{lock}");
    let mut roots = vec![plain];
    let keys = [&RATES[1..], &["optimizer.momentum_warmup_steps=2"]].concat();
    for (number, key) in keys.into_iter().enumerate() {
        let (root, lock) = run(&format!("key{number}"), &[key]);
        assert!(lock.contains(key.split('=').next().expect("a key")), "{key}: {lock}");
        roots.push(root);
    }
    let count = roots.len();
    roots.sort_unstable();
    roots.dedup();
    assert_eq!(roots.len(), count);
}

#[test]
fn the_mirror_has_the_rates_and_its_audits_hold_updates_to_them() {
    let lab = Lab::new();
    for (name, optimizer) in [("adamw", &["optimizer.kind=adamw"][..]), ("muon", MUON)] {
        let all = [&sets(RATES)[..], &sets(optimizer), &sets(MIRROR)].concat();
        let audited = format!("{name}_audited");
        let more = [&sets(&["proof.audit_every=2"])[..], &["--name", &audited]].concat();
        let root = lab.run(CI, &[&all[..], &more].concat()).root().to_owned();
        assert_eq!(lab.run(CI, &[&all[..], &["--name", name]].concat()).root(), root, "{name}");
        let verified = lab.verify(&audited, &["--audit", "40"]);
        assert_eq!(verified.code, Some(0), "{}{}", verified.stdout, verified.stderr);
        verified.assert_says(&["audit of the update"]);
    }
}

/// Metrics have the schedule's rate, before any factor.
#[test]
fn the_learning_rate_that_is_logged_is_the_schedules() {
    let lab = Lab::new();
    lab.run(CI, &[&sets(RATES)[..], &["--name", "rates"]].concat()).root();
    lab.run(CI, &["--name", "plain"]).root();
    let rates = |run: &str| -> Vec<String> {
        let text = std::fs::read_to_string(lab.path(run).join("ledger.jsonl")).expect("a ledger");
        let rows = text.lines().map(|line| serde_json::from_str(line).expect("JSON"));
        let rate =
            |row: serde_json::Value| Some(row["entry"].get("learning_rate_bits")?.as_str()?.to_owned());
        rows.filter_map(rate).collect()
    };
    assert_eq!(rates("rates").len(), 20);
    assert_eq!(rates("rates"), rates("plain"));
}

#[test]
fn what_does_not_go_together_is_refused_by_key() {
    let lab = Lab::new();
    let refused = |settings: &[&str], says: &[&str]| lab.run(CI, &sets(settings)).assert_fails(2, says);
    refused(&["optimizer.rate_head=2"], &["`optimizer.rate_head` does nothing", "`model.tied_head` is true"]);
    refused(
        &["optimizer.momentum_warmup_steps=5"],
        &["`optimizer.momentum_warmup_steps` does nothing", "`optimizer.kind` is \"adamw\""],
    );
    refused(
        &["optimizer.kind=muon", "optimizer.momentum_start=0.5"],
        &["`optimizer.momentum_start` does nothing", "optimizer.momentum_warmup_steps"],
    );
    refused(&["optimizer.rate_tables=-1"], &["optimizer.rate_tables"]);
    refused(
        &["schedule.learning_rate=1e30", "optimizer.rate_vectors=1e30"],
        &["optimizer.rate_vectors", "schedule.learning_rate", "32 bits"],
    );
}
