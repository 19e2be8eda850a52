//! `optimizer.ema_decay`: an average of the weights that is kept, proven and evaluated beside them.

use std::collections::BTreeMap;

use runner::ops::Dtype;
use runner::store::{self, Tensor};

use crate::support::Lab;

const CI: &str = "experiments/ci.toml";
const MIRROR: &[&str] = &["--set", "device.kind=mirror", "--set", "eval.every=0", "--set", "sample.every=0"];
const EMA: &[&str] = &["--set", "optimizer.ema_decay=0.75"];

fn state(lab: &Lab, run: &str, step: u64) -> BTreeMap<String, Tensor> {
    let folder = lab.path(run).join(format!("checkpoints/step_{step:08}"));
    let (_, state) = store::load(&folder).unwrap_or_else(|error| panic!("{error}"));
    state.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    match tensor.dtype {
        Dtype::BF16 => {
            let wide = |b: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            tensor.bytes.as_chunks().0.iter().map(wide).collect()
        }
        _ => tensor.bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
    }
}

/// The averages of a run with a checkpoint after each of `steps`, all of them updates, from its weights, by
/// a loop over elements; and the averages of its checkpoints.
fn assert_is_the_average(lab: &Lab, run: &str, steps: u64, decay: f64) {
    let mut averages: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for step in 1..=steps {
        let state = state(lab, run, step);
        let rate = ((1.0 - decay) / (1.0 - decay.powi(step as i32))) as f32;
        for (name, tensor) in state.iter().filter(|(name, _)| !name.contains('/')) {
            let weights = values(state.get(&format!("master/{name}")).unwrap_or(tensor));
            // The rate of the first update is 1: what the average was before it matters no more, but for
            // the rounding of the difference.
            let Some(average) = averages.get_mut(name) else {
                averages.insert(name.clone(), values(&state[&format!("ema/{name}")]));
                assert_eq!(rate, 1.0);
                let near = averages[name].iter().zip(&weights).all(|(e, w)| (e - w).abs() <= 1e-6);
                assert!(near, "{name} after the first update");
                continue;
            };
            average.iter_mut().zip(&weights).for_each(|(e, w)| *e = rate.mul_add(w - *e, *e));
            let kept = values(&state[&format!("ema/{name}")]);
            assert!(*average == kept, "{name} after step {step}");
        }
    }
}

#[test]
fn the_average_is_that_of_a_plain_loop_and_no_weight_changes_for_it() {
    let lab = Lab::new();
    let every =
        ["--set", "checkpoint.every=1", "--set", "schedule.steps=6", "--set", "schedule.warmup_steps=2"];
    let plain = lab.run(CI, &[&every, &["--name", "plain"][..]].concat()).root().to_owned();
    let averaged = lab.run(CI, &[&every, EMA, &["--name", "averaged"]].concat()).root().to_owned();
    assert_ne!(plain, averaged, "the average is part of the state");
    assert_is_the_average(&lab, "averaged", 6, 0.75);
    let (plain, mut averaged) = (state(&lab, "plain", 6), state(&lab, "averaged", 6));
    averaged.retain(|name, _| !name.starts_with("ema/"));
    assert!(plain == averaged, "another state beside the average");

    // In bf16: of the masters, and without these of the parameters.
    for (name, masters) in [("masters", "true"), ("rounded", "false")] {
        let masters = format!("precision.master_weights={masters}");
        let sets = [&every, MIRROR, EMA, &["--set", &masters, "--name", name, "--set", "schedule.steps=3"]];
        lab.run("experiments/ci_cuda.toml", &sets.concat()).root();
        assert_is_the_average(&lab, name, 3, 0.75);
    }
}

#[test]
fn what_was_measured_of_the_average_is_proven_and_any_way_to_the_end_has_its_bits() {
    let lab = Lab::new();
    let finished = lab.run(CI, EMA);
    let root = finished.root().to_owned();
    assert!(finished.stderr.contains("val loss of the average"), "{}", finished.stderr);
    let rows = lab.metrics("ci");
    let of = |row: usize, column: &str| rows[row][column].as_f64().expect("measured");
    assert_eq!(of(0, "ema_val_loss").to_bits(), of(0, "val_loss").to_bits(), "before the first update");
    assert!(of(20, "ema_val_loss") > of(20, "val_loss"), "a falling loss: the average lags behind");
    assert!(rows[1].get("ema_val_loss").is_none(), "{}", rows[1]);
    lab.verify("ci", &["--replay", "0..20"]).assert_says(&["ok", "gave the same bits again"]);

    let shown = lab.verb("show", "ci", &[]).stdout;
    let average = format!("average      val loss {:.4}", of(20, "ema_val_loss"));
    assert!(shown.contains(&average), "`{average}` is not in:\n{shown}");

    // A saved average is as good as it was in training, and another than the weights.
    let json = lab.verb("eval", "ci", &["--ema", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert_eq!(
        (json["val_loss"].as_f64(), &json["weights"]),
        (Some(of(20, "ema_val_loss")), &"average".into())
    );
    let text =
        |more: &[&str]| lab.verb("sample", "ci", &[&["--tokens", "16", "--json"], more].concat()).stdout;
    assert_ne!(text(&["--ema"]), text(&[]));
    let exported = lab.verb("export", "ci", &["--format", "hf", "--ema"]);
    exported.assert_says(&["export/step_00000020_hf_fp32_ema"]);
    let json = lab.verb(
        "eval",
        exported.stdout.trim(),
        &[
            "--json",
            "--set",
            "eval.val_tokens=2048",
            "--set",
            "batch.seq_len=64",
            "--set",
            "device.kind=cpu",
            "--set",
            "precision.compute=fp32",
        ],
    );
    let json: serde_json::Value = serde_json::from_str(&json.stdout).expect(&json.stderr);
    assert_eq!(json["val_loss"].as_f64(), Some(of(20, "ema_val_loss")));

    // A figure of the average that was edited is found in the metrics, and one in the ledger too.
    for (file, says) in [("metrics.jsonl", "`ema_val_loss`"), ("ledger.jsonl", "line 1")] {
        let path = lab.path("ci").join(file);
        let text = std::fs::read_to_string(&path).expect("readable");
        let (before, behind) = text.split_once(r#""ema_val_loss":"#).expect("measured");
        std::fs::write(&path, format!(r#"{before}"ema_val_loss":1{behind}"#)).expect("writable");
        let refused = lab.verify("ci", &[]);
        assert!(refused.code == Some(5) && refused.stdout.contains(says), "{refused:?}");
        std::fs::write(&path, text).expect("writable");
    }

    // Killed and resumed, and shared by ranks.
    let killed = Lab::new();
    let slow = [EMA, &["--set", "checkpoint.every=2"]].concat();
    let mut run = killed.start("run", CI, &slow);
    run.wait_for_rows(&killed, 7);
    run.kill();
    assert_eq!(killed.resume("ci", &[]).root(), root);
    assert_eq!(killed.ledger("ci"), lab.ledger("ci"));
    for ranked in [&["--ranks", "2"][..], &["--ranks", "2", "--set", "parallel.zero=0"]] {
        let shared = Lab::new();
        assert_eq!(shared.run(CI, &[EMA, ranked].concat()).root(), root, "{ranked:?}");
        assert_eq!(shared.ledger("ci"), lab.ledger("ci"), "{ranked:?}");
    }
}

#[test]
fn a_run_without_an_average_gets_none_and_says_so() {
    let lab = Lab::new();
    lab.run(CI, &["--set", "schedule.steps=5"]).root();
    let lock = std::fs::read_to_string(lab.path("ci/lock.toml")).expect("a lock");
    let numerics =
        lock.split_once("[numerics]").and_then(|(_, rest)| rest.split_once("\n[")).expect("a table").0;
    assert!(!numerics.contains("ema_decay"), "locks of before have no such key:\n{numerics}");
    for verb in ["eval", "sample"] {
        lab.verb(verb, "ci", &["--ema"])
            .assert_fails(2, &["has no average of the weights", "optimizer.ema_decay"]);
    }
    lab.verb("export", "ci", &["--format", "hf", "--ema"]).assert_fails(2, &["has no average"]);
    let on = ["--set", "optimizer.ema_decay=0.9", "--set", "schedule.steps=9"];
    lab.resume("ci", &on).assert_fails(5, &["optimizer.ema_decay"]);
}
