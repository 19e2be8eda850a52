//! The reference of keys as a person asks for it, and the JSON schema in the programs that editors ask.
//!
//! Taplo and Tombi are in `target/ci-venv/bin`, into which `.ci/run` installs them, or beside the Python that
//! the environment variable `RUNNER_TEST_PYTHON` names.

use std::path::Path;
use std::process::Command;

use crate::python::python;
use crate::support::{Finished, Lab};

#[test]
fn a_key_is_explained_and_a_mistyped_one_gets_its_neighbour() {
    let lab = Lab::new();
    let text = lab.done(&["config", "--explain", "schedule.warmup_steps"]).stdout;
    for says in ["default  0", "unit     steps", "--allow-drift", "--set schedule.warmup_steps=700"] {
        assert!(text.contains(says), "`{says}` is not in:\n{text}");
    }
    let json = lab.done(&["config", "--explain", "eval", "--json"]).stdout;
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((&json[0]["section"], &json[0]["keys"][0]["key"]), (&"eval".into(), &"eval.every".into()));
    assert!(lab.done(&["config", "--explain"]).stdout.lines().any(|line| line.starts_with("  device.simd ")));
    let near = "did you mean `schedule.warmup_steps`";
    lab.finish(&["config", "--explain", "schedule.warmup"]).assert_fails(2, &[near]);
    for (elsewhere, here) in [
        ("optimizer.lr", "schedule.learning_rate"),
        ("model.d_model", "model.channels"),
        ("max_iters", "schedule.steps"),
    ] {
        let near = format!("did you mean `{here}`");
        lab.finish(&["config", "--explain", elsewhere]).assert_fails(2, &[&near]);
    }
    let dropout = lab.finish(&["config", "experiments/ci.toml", "--set", "model.dropout=0.1"]);
    dropout.assert_fails(2, &["unknown key `model.dropout`"]);
    assert!(!dropout.stderr.contains("did you mean"), "{}", dropout.stderr);
    let gpu = lab.finish(&["config", "experiments/ci.toml", "--set", "device.kind=gpu"]);
    gpu.assert_fails(2, &["did you mean \"cuda\"?"]);
    lab.finish(&["config"]).assert_fails(2, &["EXPERIMENT"]);
    lab.finish(&["config", "experiments/ci.toml", "--explain", "seed"]).assert_fails(2, &["cannot be used"]);
}

/// The linters of two language servers, as a command line each.
fn linters() -> [Command; 2] {
    let python = python();
    let folder = python.parent().expect("a folder");
    ["taplo", "tombi"].map(|name| {
        let mut command = Command::new(folder.join(name));
        command.arg("lint");
        command
    })
}

#[track_caller]
fn lint(linter: &mut Command) -> Finished {
    Finished::from(linter.output().unwrap_or_else(|error| panic!("{linter:?}: {error}")))
}

#[test]
#[ignore = "skipped: needs taplo and tombi; run with --include-ignored"]
fn language_servers_accept_every_experiment_and_refuse_a_wrong_key_type_word_and_range() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let experiments = std::fs::read_dir(root.join("experiments")).expect("a folder").map(|entry| {
        let path = entry.expect("an entry").path();
        path.strip_prefix(root).expect("below the root").to_owned()
    });
    let experiments: Vec<_> = experiments.filter(|path| path.extension().is_some()).collect();
    assert!(experiments.len() > 7);
    for mut linter in linters() {
        let finished = lint(linter.args(&experiments).current_dir(root));
        assert_eq!(finished.code, Some(0), "{}{}", finished.stdout, finished.stderr);
    }
    let lab = Lab::new();
    // Tombi asks the network for a catalogue of schemas otherwise.
    std::fs::write(lab.path("tombi.toml"), "[schema]\ncatalog = { paths = [] }\n").expect("writable");
    let file = lab.path("x.toml");
    let schema = root.join("docs/runner.schema.json");
    let all = [
        ("seed = 7", true),
        ("seeed = 7", false),
        ("seed = \"7\"", false),
        ("[schedule]\nkind = \"cosin\"", false),
        ("[schedul]\nsteps = 1", false),
        ("[memory]\nrecompute = 3", false),
        ("[optimizer]\nbeta1 = 1.0", false),
        ("[data]\ntrain = [\"a\", 1]", false),
        ("[sweep.grid]\n\"schedule.learning_rate\" = [1e-3, 3e-3]\nseed = [0, 1]", true),
        ("[sweep.grid]\n\"schedule.kind\" = [\"wsd\", \"cosin\"]", false),
        ("[sweep.random]\nsamples = 4\nseed = 1\n[sweep.random.keys]\nseed = { integers = [0, 9] }", true),
        ("[sweep.random]\nsamples = 4\n[sweep.random.keys]\nseed = { integers = [0, 9] }", false),
        ("[sweep.random]\nsamples = 4\nseed = 1\n[sweep.random.keys]", false),
        ("[sweep]", false),
        ("extends = \"b.toml\"\n[data]\ntrain = [\"a\", \"b\"]", true),
    ];
    for (text, sound) in all {
        let directive = format!("#:schema {}\n\n{text}\n", schema.display());
        std::fs::write(&file, directive).expect("writable");
        for mut linter in linters() {
            let finished = lint(linter.arg(&file).current_dir(lab.path("")));
            let said = format!("{linter:?} of {text:?}: {}{}", finished.stdout, finished.stderr);
            assert_eq!(finished.code == Some(0), sound, "{said}");
        }
    }
}
