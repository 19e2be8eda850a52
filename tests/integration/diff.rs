//! `diff` goes from two runs down to one element.

use runner::store::{self, Facts};
use serde_json::Value;

use crate::support::{Lab, flip_bit};

const CI: &str = "experiments/ci.toml";
const SHORT: [&str; 8] = [
    "--set",
    "schedule.steps=4",
    "--set",
    "schedule.warmup_steps=1",
    "--set",
    "checkpoint.every=2",
    "--set",
    "eval.every=0",
];

fn run(lab: &Lab, name: &str, more: &[&str]) {
    lab.run(CI, &[&["--name", name], SHORT.as_slice(), more].concat()).root();
}

#[test]
fn equal_runs_do_not_differ() {
    let lab = Lab::new();
    run(&lab, "a", &[]);
    run(&lab, "b", &["--set", "device.threads=1"]);
    let diff = lab.diff("a", "b", &[]);
    assert_eq!(diff.code, Some(0), "{}", diff.stdout);
    for says in [
        "environment differ (recorded, no bit depends on it)",
        "4 steps, all equal",
        "2 that both have, all equal",
    ] {
        assert!(diff.stdout.contains(says), "`{says}` is not in:\n{}", diff.stdout);
    }
}

#[test]
fn another_seed_is_named_from_the_lock_down_to_the_first_element() {
    let lab = Lab::new();
    run(&lab, "a", &[]);
    run(&lab, "b", &["--set", "seed=2"]);
    let diff = lab.diff("a", "b", &[]);
    assert_eq!(diff.code, Some(5));
    let says = [
        "`seed` was 1337, is 2",
        "step 0 is the first that differs",
        "loss: ",
        "checkpoint of step 2",
        "first: `adam_m/",
        "element 0",
    ];
    for text in says {
        assert!(diff.stdout.contains(text), "`{text}` is not in:\n{}", diff.stdout);
    }
}

#[test]
fn one_flipped_bit_is_found_in_its_tensor_leaf_and_element_with_both_values() {
    let lab = Lab::new();
    run(&lab, "a", &[]);
    run(&lab, "b", &[]);
    let checkpoints = lab.path("b/checkpoints");
    let (manifest, mut state) = store::load(&checkpoints.join("step_00000004")).expect("whole");
    let tensor = state.iter_mut().find(|tensor| tensor.name == "wte.weight").expect("a tensor");
    // Element 2000 of [257, 64] is [31, 16], in the second leaf of 1024 floats.
    tensor.bytes[4 * 2000] ^= 1;
    let bits = u32::from_le_bytes(tensor.bytes[8000..8004].try_into().expect("four"));
    let facts = Facts {
        experiment: manifest.experiment.clone(),
        step: manifest.step,
        tokens: manifest.tokens,
        updates: manifest.updates,
        ledger: manifest.ledger,
        numerics: manifest.numerics.clone(),
        created_by: manifest.created_by.clone(),
        state_root: None,
    };
    store::save(&checkpoints, &state, &facts).expect("saved");

    let diff: Value = serde_json::from_str(&lab.diff("a", "b", &["--json"]).stdout).expect("JSON alone");
    let state = &diff["first_state"];
    assert_eq!(state["step"], 4);
    assert_eq!(state["tensors"], serde_json::json!(["wte.weight"]));
    let first = &state["first"];
    assert_eq!((first["leaf"].as_u64(), first["element"].as_u64()), (Some(1), Some(2000)));
    assert_eq!(first["coordinates"], serde_json::json!([31, 16]));
    assert_eq!(first["differing"], 1);
    assert_eq!(first["b"]["bits"], format!("{bits:#x}"));
    assert_eq!(first["a"]["bits"], format!("{:#x}", bits ^ 1));
}

#[test]
fn a_damaged_file_is_called_damaged_and_not_different() {
    let lab = Lab::new();
    run(&lab, "a", &[]);
    run(&lab, "b", &[]);
    let step = |run: &str| lab.path(run).join("checkpoints/step_00000002").display().to_string();
    let files = [step("b") + "/state.safetensors", step("b") + "/manifest.json"];
    let refused = |says: &str| {
        lab.diff("a", "b", &[]).assert_fails(5, &[says]);
        lab.diff(&step("a"), &step("b"), &[]).assert_fails(5, &[says]);
    };
    flip_bit(files[0].as_ref(), 0.99);
    refused("one of the files is damaged");
    std::fs::write(&files[0], "cut short").expect("writable");
    refused(&files[0]);
    std::fs::write(&files[1], "{}").expect("writable");
    refused("is not a checkpoint manifest");
}
