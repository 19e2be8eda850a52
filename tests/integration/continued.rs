//! `optimizer.from_init`: a run that goes on with the optimizer of another's checkpoint, as an experiment of
//! its own, has the bits of the one run that did all of it.

use runner::store::{self, Tensor};

use crate::support::{Finished, Lab, flip_bit};

const CI: &str = "experiments/ci.toml";

fn run(lab: &Lab, experiment: &str, name: &str, sets: &[&str]) -> Finished {
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    lab.run(experiment, &["--name", name].into_iter().chain(sets).collect::<Vec<_>>())
}

/// A checkpoint's state, but for what a run that goes on counts for itself.
fn state(lab: &Lab, name: &str, step: u64) -> Vec<Tensor> {
    let folder = lab.path(name).join(format!("checkpoints/step_{step:08}"));
    let (_, mut state) = store::load(&folder).unwrap_or_else(|error| panic!("{error}"));
    state.retain(|tensor| !["train/step", "train/data_offset"].contains(&tensor.name.as_str()));
    state
}

fn counter(lab: &Lab, name: &str, step: u64, counter: &str) -> u64 {
    let folder = lab.path(name).join(format!("checkpoints/step_{step:08}"));
    let (_, state) =
        store::load_some(&folder, |name| name == counter).unwrap_or_else(|error| panic!("{error}"));
    u64::from_le_bytes(*state[0].bytes.as_array().expect("a counter"))
}

/// Whether two states have equal tensors; the first that differs is named.
#[track_caller]
fn assert_equal(a: &[Tensor], b: &[Tensor]) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert!(a == b, "`{}` and `{}` differ", a.name, b.name);
    }
}

/// Warm-up, a constant rate, then a decay over two fifths of all steps: in one run of `steps`, and as a trunk
/// with a decay of its own from the trunk's checkpoint. `sets` are of all three.
fn decay_in_one_run_and_in_two(lab: &Lab, experiment: &str, steps: u64, sets: &[&str]) {
    let decay = steps * 2 / 5;
    let branch = steps - decay;
    let [all, of_trunk, of_tail] = [steps, branch + 1, decay].map(|steps| format!("schedule.steps={steps}"));
    let of = |more: &[&str]| [sets, more].concat().iter().map(|set| (*set).to_owned()).collect::<Vec<_>>();
    let start = |name: &str, more: &[&str]| {
        let sets = of(more);
        run(lab, experiment, name, &sets.iter().map(String::as_str).collect::<Vec<_>>()).root().to_owned()
    };
    start("whole", &["schedule.kind=wsd", "schedule.decay_fraction=0.4", &all]);
    start("trunk", &["schedule.kind=constant", &of_trunk]);
    let init = format!("model.init=run:trunk@{branch}");
    let tail = ["schedule.kind=wsd", "schedule.decay_fraction=1", "schedule.warmup_steps=0", &of_tail];
    start("tail", &[&[&*init, "optimizer.from_init=true"], &tail[..]].concat());
    assert_equal(&state(lab, "whole", steps), &state(lab, "tail", decay));
    // Every step on the way too, and what was measured at the end.
    let column = |rows: &[serde_json::Value], name: &str| -> Vec<String> {
        rows.iter().map(|row| row[format!("{name}_bits")].to_string()).collect()
    };
    let (whole, tail) = (lab.metrics("whole"), lab.metrics("tail"));
    for name in ["loss", "grad_norm", "learning_rate", "loss_z", "grad_z"] {
        assert_eq!(column(&whole[branch as usize..], name), column(&tail, name), "{name}");
    }
    assert_eq!(column(&whole[steps as usize..], "val_loss"), column(&tail[decay as usize..], "val_loss"));
}

#[test]
fn a_trunk_and_a_decay_from_its_checkpoint_have_the_bits_of_one_run() {
    let lab = Lab::new();
    let sets = ["checkpoint.every=4", "optimizer.ema_decay=0.9", "guards.loss_z=20"];
    decay_in_one_run_and_in_two(&lab, CI, 20, &sets);
    let sequences = 512 / 64;
    assert_eq!(counter(&lab, "tail", 8, "train/data_offset"), 12 * sequences);
    assert_eq!(counter(&lab, "tail", 8, "train/updates"), 20);
    let lock = std::fs::read_to_string(lab.path("tail/lock.toml")).expect("a lock");
    assert!(lock.contains("\"model.init_updates\" = \"12\"\n"), "{lock}");
    let shown = lab.verb("show", "tail", &[]).stdout;
    assert!(shown.contains(", with its optimizer after 12 updates"), "{shown}");
    lab.verify("tail", &["--replay", "0..8"]).assert_says(&["ok", "gave the same bits again"]);

    // By ranks, and killed before its first checkpoint.
    let root = lab.resume("tail", &[]).root().to_owned();
    let text = std::fs::read_to_string(lab.path("tail/experiment.toml")).expect("resolved");
    assert!(text.contains("offset = 96 "), "{text}");
    let copy = lab.path("again.toml");
    std::fs::write(&copy, text).expect("writable");
    let copy = copy.to_str().expect("UTF-8");
    assert_eq!(lab.run(copy, &["--name", "ranked", "--ranks", "2"]).root(), root);
    lab.start("run", copy, &["--name", "killed", "--set", "checkpoint.every=100"]).kill();
    assert_eq!(
        lab.run(copy, &["--name", "killed", "--set", "checkpoint.every=100", "--or-resume"]).root(),
        root
    );
}

#[test]
fn a_decay_in_the_mirror_goes_on_with_the_masters() {
    let lab = Lab::new();
    let sets = [
        "device.kind=mirror",
        "checkpoint.every=3",
        "schedule.warmup_steps=2",
        "eval.every=0",
        "sample.every=0",
    ];
    decay_in_one_run_and_in_two(&lab, "experiments/ci_cuda.toml", 5, &sets);
}

#[test]
fn a_run_may_go_on_from_one_that_went_on_and_its_updates_count_on() {
    let lab = Lab::new();
    let constant = ["schedule.kind=constant", "schedule.warmup_steps=0", "checkpoint.every=3"];
    run(&lab, CI, "whole", &[&constant[..], &["schedule.steps=9"]].concat()).root();
    let go_on = |name: &str, init: &str| {
        let init = format!("model.init=run:{init}");
        let more = [&*init, "optimizer.from_init=true", "schedule.steps=6"];
        run(&lab, CI, name, &[&constant[..], &more].concat()).root();
    };
    go_on("second", "whole@3");
    assert_equal(&state(&lab, "whole", 9), &state(&lab, "second", 6));
    go_on("third", "second@3");
    assert_equal(&state(&lab, "whole", 9), &state(&lab, "third", 3));
    // Its own steps are counted in what is shown of it.
    let json = lab.verb("show", "third", &["--json"]).stdout;
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["skipped"], 0, "{json}");
    lab.verify("third", &[]).assert_says(&["ok"]);
}

#[test]
fn other_data_begin_at_their_start_and_an_offset_that_is_given_holds() {
    let lab = Lab::new();
    run(&lab, CI, "base", &["schedule.steps=5"]).root();
    let offset = |name: &str, sets: &[&str]| {
        let all = [&["model.init=run:base@5", "optimizer.from_init=true", "schedule.steps=5"], sets].concat();
        run(&lab, CI, name, &all).root();
        counter(&lab, name, 5, "train/data_offset")
    };
    assert_eq!(offset("same", &[]), 40);
    assert_eq!(offset("wider", &["batch.tokens=1024"]), 40, "another batch of the same stream");
    assert_eq!(offset("other_text", &["data.corpus=kjv_nt"]), 0);
    assert_eq!(offset("other_seed", &["seed=7"]), 0);
    assert_eq!(offset("given", &["data.offset=3"]), 3);
    let written = std::fs::read_to_string(lab.path("other_text/experiment.toml")).expect("resolved");
    assert!(written.contains("the data are other than those of `base`"), "{written}");
    // By the checkpoint's own settings, whatever the run's became later.
    let drift = ["--set", "batch.tokens=1024", "--set", "schedule.steps=8", "--allow-drift"];
    lab.resume("base", &drift).root();
    assert_eq!(offset("drifted", &[]), 40);
    // By the content of the data, whatever their names.
    let data = |name: &str, text: &str| {
        std::fs::write(lab.path("text.txt"), text.repeat(400)).expect("writable");
        let (folder, text) = (lab.path(name), lab.path("text.txt"));
        let [folder, text] = [&folder, &text].map(|path| path.to_str().expect("UTF-8"));
        lab.finish(&["data", "prepare", "--tokenizer", "byte", "--out", folder, "--overwrite", text])
            .assert_says(&[]);
        format!("data.train={folder}/*train*.bin")
    };
    let first = data("data_a", "In the beginning was the word. ");
    let set = ["data.corpus=", &first, "schedule.steps=5", "eval.every=0"];
    run(&lab, CI, "own", &set).root();
    let go_on = |name: &str, train: &str| {
        let sets = [
            "model.init=run:own@5",
            "optimizer.from_init=true",
            "data.corpus=",
            train,
            "schedule.steps=5",
            "eval.every=0",
        ];
        run(&lab, CI, name, &sets)
    };
    let moved = data("data_b", "In the beginning was the word. ");
    go_on("moved", &moved)
        .assert_fails(2, &["are those of `own` under another name", "to 40 to go on there"]);
    go_on("moved", &first).root();
    data("data_a", "And the word was with its author. ");
    go_on("other", &first).assert_fails(2, &["have the name of those of `own`, and are others"]);
    // An offset without an optimizer: the stream of a run, without its first sequences.
    run(&lab, CI, "late", &["data.offset=8", "schedule.steps=4"]).root();
    lab.verify("late", &["--replay", "0..4"]).assert_says(&["ok"]);
}

#[test]
fn what_cannot_go_on_is_refused_before_anything_is_written() {
    let lab = Lab::new();
    run(&lab, CI, "base", &["schedule.steps=5"]).root();
    let refused = |sets: &[&str], says: &[&str]| {
        run(&lab, CI, "bad", &[&["optimizer.from_init=true"], sets].concat()).assert_fails(2, says);
        assert!(!lab.path("bad").exists());
    };
    let base = "model.init=run:base@5";
    refused(&[], &["`model.init` names", "hint: set `model.init`"]);
    refused(&[base, "optimizer.ema_decay=0.9"], &["`ema/", "is missing", "hint: give model, `precision`"]);
    refused(&[base, "model.heads=4"], &["has 2 heads, the experiment 4 (`model.heads`)"]);
    refused(&[base, "model.channels=128"], &["is F32 [", "this experiment needs F32 ["]);
    refused(&[base, "model.layers=1"], &["does not belong to this experiment"]);
    refused(&[base, "guards.window=4"], &["`guard/grad_window` has [5] values, `guards.window` is 4"]);
    // Nor is what it would go on from deleted first.
    let state = lab.path("base/checkpoints/step_00000005/state.safetensors");
    let over = ["--name", "base", "--overwrite", "--set", base];
    for sets in [&over[..], &[&over[..], &["--set", "optimizer.from_init=true"]].concat()] {
        lab.run(CI, sets)
            .assert_fails(2, &["is in the folder that would be deleted", "hint: another `--name`"]);
        assert!(state.exists());
    }
    run(&lab, CI, "done", &["schedule.steps=5"]).root();
    let whole = std::fs::read(&state).expect("a state");
    flip_bit(&state, 0.7);
    let over = ["--name", "done", "--overwrite", "--set", base, "--set", "optimizer.from_init=true"];
    lab.run(CI, &over).assert_fails(1, &["is damaged"]);
    lab.verify("done", &[]).assert_says(&["ok"]);
    std::fs::write(&state, whole).expect("writable");
    let exported = lab.verb("export", "base", &["--format", "llmc"]);
    let init = format!("model.init={}/model.bin", exported.stdout.trim());
    refused(&[&init], &["is a model without an optimizer"]);
    flip_bit(&lab.path("base/checkpoints/step_00000005/manifest.json"), 0.5);
    run(&lab, CI, "bad", &[base, "optimizer.from_init=true"])
        .assert_fails(2, &["manifest.json", "which checkpoints are whole"]);
}
