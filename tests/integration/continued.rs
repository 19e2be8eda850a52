//! `optimizer.from_init`: a run that goes on with the optimizer of another's checkpoint, as an experiment of
//! its own, has the bits of the one run that did all of it.

use std::path::Path;

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
        store::load_some(&folder, &|name| name == counter).unwrap_or_else(|error| panic!("{error}"));
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
    // Where a run began stays what it was, whatever has become of the checkpoint.
    let again = ["--or-resume", "--name", "same", "--set", "optimizer.from_init=true", "--set"];
    let init = format!("model.init={}", lab.path("base/checkpoints/step_00000005").display());
    let away = lab.path("away");
    std::fs::rename(lab.path("base"), &away).expect("it can be moved");
    let went_on = lab.run(CI, &[&again[..], &[&init, "--set", "schedule.steps=5"]].concat());
    assert!(went_on.stderr.contains("nothing to do"), "{}", went_on.stderr);
    std::fs::rename(away, lab.path("base")).expect("it can be moved back");
    let written = std::fs::read_to_string(lab.path("other_text/experiment.toml")).expect("resolved");
    assert!(written.contains("the data are other than those of `base`"), "{written}");
    // By the checkpoint's own settings, whatever the run's became later.
    let drift = ["--set", "seed=9", "--set", "schedule.steps=8", "--allow-drift"];
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
        run(&lab, CI, name, &sets).root();
        counter(&lab, name, 5, "train/data_offset")
    };
    let moved = data("data_b", "In the beginning was the word. ");
    assert_eq!(go_on("moved", &moved), 40, "the same data in another folder");
    data("data_a", "And the word was with its author. ");
    assert_eq!(go_on("other", &first), 0, "other data in the same folder");
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
    lab.run(CI, &over).assert_fails(5, &["is damaged"]);
    lab.verify("done", &[]).assert_says(&["ok"]);
    std::fs::write(&state, whole).expect("writable");
    let exported = lab.verb("export", "base", &["--format", "llmc"]);
    let init = format!("model.init={}/model.bin", exported.stdout.trim());
    refused(&[&init], &["is a model without an optimizer"]);
    flip_bit(&lab.path("base/checkpoints/step_00000005/manifest.json"), 0.5);
    run(&lab, CI, "bad", &[base, "optimizer.from_init=true"])
        .assert_fails(5, &["manifest.json", "was edited or damaged"]);
}

/// A trunk of 13 steps with checkpoints every 4.
fn trunk(lab: &Lab) {
    run(lab, CI, "trunk", &["schedule.kind=constant", "schedule.steps=13", "checkpoint.every=4"]).root();
}

/// Warm-downs of 8 steps from checkpoints of the trunk; `sweep` is the section that names them.
fn warm_downs(lab: &Lab, sweep: &str) -> String {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join(CI).display().to_string();
    let text = format!(
        "extends = {base:?}\n[optimizer]\nfrom_init = true\n[schedule]\nkind = \"wsd\"\nsteps = 8\n\
         decay_fraction = 1.0\nwarmup_steps = 0\n{sweep}\n"
    );
    let path = lab.path("down.toml");
    std::fs::write(&path, text).expect("writable");
    path.display().to_string()
}

#[test]
fn a_sweep_over_checkpoints_of_a_trunk_goes_on_after_a_kill_without_the_trunk_it_is_done_with() {
    let lab = Lab::new();
    trunk(&lab);
    let grid = "[sweep.grid]\n\"model.init\" = [\"run:trunk@4\", \"run:trunk@8\", \"run:trunk\"]";
    let sweep = warm_downs(&lab, grid);
    // What could not start is refused before there is a folder, and what the plan says is what a run does.
    for (sets, says) in [
        (&["--set", "optimizer.ema_decay=0.9"][..], "`ema/"),
        (&["--set", "model.channels=128"], "this experiment needs F32 ["),
        (&["--set", "model.heads=4"], "it has 2 heads, the experiment 4"),
    ] {
        let refused = lab.run(&sweep, &[&["--name", "bad"], sets].concat());
        refused.assert_fails(2, &["member 1 cannot start (model.init = run:trunk@4): ", says, "hint: "]);
        assert!(!lab.path("bad").exists());
        let planned = lab.verb("plan", &sweep, sets).stdout;
        let planned = planned.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            planned.contains("note: a run would be refused: member 1") && planned.contains(says),
            "{planned}"
        );
    }
    let missing = warm_downs(&lab, &grid.replace("trunk@8", "trunk@7"));
    lab.run(&missing, &["--name", "bad"]).assert_fails(
        2,
        &["step_00000007", "in member 2: model.init = \"run:trunk@7\"", "steps 4, 8, 12, 13"],
    );
    assert!(!lab.path("bad").exists());
    let sweep = warm_downs(&lab, grid);
    lab.verb("plan", &sweep, &[]).assert_says(&["model.init = run:trunk@4", "model.init = run:trunk@13"]);

    let hash = lab.run(&sweep, &["--name", "whole"]).root().to_owned();
    for (member, step) in [("001", 4), ("002", 8), ("003", 13)] {
        let lock = std::fs::read_to_string(lab.path(&format!("whole/{member}/lock.toml"))).expect("a lock");
        let saved = store::load(&lab.path(&format!("trunk/checkpoints/step_{step:08}"))).expect("whole");
        let root = saved.0.state_root;
        assert!(lock.contains(&format!("\"model.init_root\" = \"{root}\"\n")), "{root}\n{lock}");
        assert_eq!(counter(&lab, &format!("whole/{member}"), 8, "train/data_offset"), step * 8);
    }
    // The resolved form is the sweep, and is read without the trunk.
    let resolved = lab.verb("config", &sweep, &[]).stdout;
    assert!(
        resolved.contains("checkpoints/step_00000013\"") && !resolved.contains("\"run:trunk"),
        "{resolved}"
    );
    let copy = lab.path("copy.toml");
    std::fs::write(&copy, resolved).expect("writable");
    assert_eq!(lab.run(copy.to_str().expect("UTF-8"), &["--name", "copy", "--jobs", "2"]).root(), hash);

    for delay in [60, 250, 600] {
        let name = format!("killed_{delay}");
        let killed = lab.start("run", &sweep, &["--name", &name]);
        std::thread::sleep(std::time::Duration::from_millis(delay));
        killed.kill();
        // Runs go on; what `run:trunk` named stays what it was.
        let went_on = match lab.path(&name).join("sweep.toml").is_file() {
            true => lab.resume(&name, &[]),
            false => lab.run(&sweep, &["--name", &name, "--or-resume"]),
        };
        assert_eq!(went_on.root(), hash, "killed after {delay} ms");
    }
    lab.verb("show", "whole", &[]).assert_says(&["run:trunk@4", "run:trunk@13", &hash]);
    let shown =
        lab.verb("show", "whole", &["--columns", "model.init,data.offset,val_loss", "--sort", "-offset"]);
    let lines: Vec<&str> = shown.stdout.lines().collect();
    assert!(
        lines[1].contains("003") && lines[1].contains("run:trunk@13") && lines[1].contains("104"),
        "{lines:?}"
    );
    let one = lab.verb("show", "whole", &["--filter", "model.init ~ trunk@8", "--columns", "val_loss"]);
    assert_eq!(one.stdout.lines().count(), 2, "{}", one.stdout);
    lab.verb("compare", "whole", &["--by", "model.init"])
        .assert_says(&["run:trunk@4, root ", "One seed a group"]);
    let picture = lab.path("init.svg");
    let drawn =
        lab.verb("plot", "whole", &["--sweep", "model.init", "--out", picture.to_str().expect("UTF-8")]);
    assert_eq!(drawn.code, Some(0), "{}", drawn.stderr);
    let svg = std::fs::read_to_string(&picture).expect("a picture");
    let at = |name: &str| svg.find(name).unwrap_or_else(|| panic!("no {name}"));
    assert!(at("trunk@4") < at("trunk@8") && at("trunk@8") < at("trunk@13"), "steps in their order");

    // A finished sweep needs the trunk no more.
    std::fs::remove_dir_all(lab.path("trunk")).expect("it is there");
    assert!(lab.resume("whole", &[]).stderr.contains("nothing to do"));
    lab.verify("whole", &["--expect", &hash]).assert_says(&["it is the hash"]);
}

#[test]
fn a_sweep_from_one_checkpoint_may_set_the_place_and_draw_the_checkpoint() {
    let lab = Lab::new();
    trunk(&lab);
    let one = "[model]\ninit = \"run:trunk@8\"\n[sweep.zip]\n\"data.offset\" = [3, 64]\n\
               \"optimizer.from_init\" = [false, true]";
    let sweep = warm_downs(&lab, one);
    lab.run(&sweep, &["--name", "placed"]).root();
    let offset = |run: &str| counter(&lab, run, 8, "train/data_offset");
    assert_eq!((offset("placed/001"), offset("placed/002")), (3, 64));
    let alone =
        ["model.init=run:trunk@8", "optimizer.from_init=true", "schedule.steps=8", "schedule.kind=wsd"];
    let tail = ["schedule.decay_fraction=1", "schedule.warmup_steps=0"];
    run(&lab, CI, "alone", &[&alone[..], &tail].concat()).root();
    lab.diff("placed/002", "alone", &[]).assert_says(&["all equal"]);

    let random = "[sweep.random]\nsamples = 4\nseed = 3\n[sweep.random.keys]\n\"model.init\" = { choices = \
                  [\"run:trunk@4\", \"run:trunk@8\"] }\nseed = { integers = [1, 1000] }";
    let sweep = warm_downs(&lab, random);
    let member = lab.run(&sweep, &["--name", "drawn", "--member", "2"]);
    assert_eq!(member.code, Some(0), "{}", member.stderr);
    assert_eq!(offset("drawn/002"), 0, "another seed is another stream");
    lab.resume("drawn", &[]).root();
}

#[test]
fn plan_and_lock_say_what_a_run_would_refuse() {
    let lab = Lab::new();
    trunk(&lab);
    let base = ["model.init=run:trunk@8", "optimizer.from_init=true", "schedule.steps=8"];
    let with = |verb: &str, more: &[&str], arguments: &[&str]| {
        let sets: Vec<&str> = base.iter().chain(more).flat_map(|set| ["--set", set]).collect();
        lab.verb(verb, CI, &[&sets, arguments].concat())
    };
    let out = lab.path("out.lock.toml");
    let to = ["--out", out.to_str().expect("UTF-8")];
    for (set, says) in [
        ("optimizer.ema_decay=0.5", "is missing"),
        ("model.layers=1", "does not belong to this experiment"),
        ("guards.window=4", "`guards.window` is 4"),
    ] {
        let planned = with("plan", &[set], &[]);
        let text = planned.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.contains("note: a run would be refused: `optimizer.from_init`"), "{text}");
        assert!(text.contains(says), "{text}");
        with("lock", &[set], &to).assert_fails(2, &[says]);
        assert!(!out.exists());
    }
    with("plan", &["model.init=run:trunk@9"], &[]).assert_fails(2, &["step_00000009"]);
    let weights = with("plan", &["optimizer.from_init=false", "model.channels=128"], &["--json"]).stdout;
    assert!(weights.contains("a run would be refused") && weights.contains("64 channels"), "{weights}");
    assert!(!with("plan", &[], &[]).stdout.contains("refused"));

    // The lock has the place, and a run with it goes on there.
    assert_eq!(with("lock", &[], &to).code, Some(0));
    let lock = std::fs::read_to_string(&out).expect("a lock");
    assert!(lock.contains("\"data.offset\" = \"64\"\n"), "{lock}");
    with("run", &[], &["--name", "locked", "--lock", to[1]]).root();
    let config = with("config", &[], &[]).stdout;
    assert!(config.contains("# offset is known when the data are open"), "{config}");
}
