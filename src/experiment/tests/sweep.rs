//! Sweeps: their expansion, what is refused, and the resolved form.

use super::*;
use crate::experiment::init_models::NoModels;

fn declare(sweep: &str, env: &[(&str, &str)], sets: &[&str]) -> Result<Sweep, ExperimentError> {
    let text = format!("{SMALL}{sweep}");
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_string()).collect();
    let input = ExperimentText::Text { name: "x.toml", bytes: text.as_bytes() };
    match declared(&input, &variables(env), &sets, &NoModels)? {
        Declared::Sweep(sweep) => Ok(sweep),
        Declared::Experiment(_) => panic!("no sweep"),
    }
}

fn settings(sweep: &Sweep) -> Vec<String> {
    sweep.members.iter().map(|member| settings_text(&member.settings)).collect()
}

#[test]
fn a_grid_is_the_product_in_the_order_written_with_the_last_key_fastest() {
    let sweep =
        declare("[sweep.grid]\nseed = [2, 1]\n\"schedule.learning_rate\" = [3e-4, 1, 6e-4]\n", &[], &[]);
    let sweep = sweep.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(
        settings(&sweep),
        [
            "seed = 2, schedule.learning_rate = 0.0003",
            "seed = 2, schedule.learning_rate = 1.0",
            "seed = 2, schedule.learning_rate = 0.0006",
            "seed = 1, schedule.learning_rate = 0.0003",
            "seed = 1, schedule.learning_rate = 1.0",
            "seed = 1, schedule.learning_rate = 0.0006",
        ]
    );
    let fifth = &sweep.members[4];
    assert_eq!((fifth.number, fifth.loaded.experiment.seed), (5, 1));
    assert_eq!(fifth.loaded.experiment.schedule.learning_rate, 1.0);
    assert_eq!(fifth.loaded.origins["seed"].to_string(), "x.toml:8");
    assert_eq!((sweep.name.as_str(), fifth.loaded.experiment.name.as_str()), ("x", "x"));
}

#[test]
fn grid_zip_and_random_multiply_and_a_sample_does_not_depend_on_the_others() {
    const FIXED: &str = "[sweep.zip]\n\"schedule.steps\" = [10, 20]\n\"schedule.warmup_steps\" = [1, 2]\n\
                         [sweep.grid]\nseed = [0, 1]\n";
    let text = |samples: u32, more: &str| {
        format!(
            "{FIXED}[sweep.random]\nsamples = {samples}\nseed = 7\n[sweep.random.keys]\n\
             \"schedule.learning_rate\" = {{ log_uniform = [1e-4, 1e-2] }}\n{more}"
        )
    };
    let sweep = declare(&text(3, ""), &[], &[]).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(sweep.members.len(), 12);
    let last = &sweep.members[11];
    let keys: Vec<&str> = last.settings.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["seed", "schedule.steps", "schedule.warmup_steps", "schedule.learning_rate"]);
    let schedule = &last.loaded.experiment.schedule;
    assert_eq!((last.loaded.experiment.seed, schedule.steps, schedule.warmup_steps), (1, 20, 2));
    let rates = |sweep: &Sweep| -> Vec<String> {
        sweep.members[..3].iter().map(|member| member.settings[3].1.clone()).collect()
    };
    let more = declare(
        &text(
            5,
            "\"model.context\" = { integers = [1024, 9999] }\n\"schedule.kind\" = { choices = \
                                 [\"wsd\", \"linear\"] }\n",
        ),
        &[],
        &[],
    );
    let more = more.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(rates(&sweep), rates(&more));
    assert_ne!(rates(&sweep)[0], rates(&sweep)[1]);
}

#[test]
fn the_resolved_sweep_loads_back_with_equal_members_and_origins() {
    for sweep in [
        "[sweep.grid]\nseed = [0, 1]\n\"schedule.learning_rate\" = [3e-4, 1e-7]\n",
        "[sweep.grid]\n\"model.descriptor\" = [\"d6\", \"gpt3:c768\"]\n\"batch.micro\" = [1, 2]\n",
        "[sweep.zip]\n\"schedule.epochs\" = [1, 2]\n\"sample.prompt\" = [\"a # \\\"b\\\"\", \"\\u0007]\"]\n",
        "[sweep.grid]\n\"data.train\" = [\"a_*.bin\", [\"b.bin\", \"c.bin\"]]\n[data]\nval = \"v.bin\"\n",
        "[sweep.grid]\n\"batch.seq_len\" = [64, 128]\n\"precision.master_weights\" = [true]\n",
    ] {
        let base = if sweep.contains("epochs") { SMALL.replace("steps = 10", "") } else { SMALL.to_string() };
        let base =
            if sweep.contains("data.train") { base.replace("[data]\ncorpus = \"kjv\"\n", "") } else { base };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.toml");
        fs::write(&path, format!("{base}{sweep}")).unwrap();
        let load = |path: &Path| match declared(&ExperimentText::Path(path), &[], &[], &NoModels) {
            Ok(Declared::Sweep(sweep)) => sweep,
            other => panic!("{sweep}: {other:?}"),
        };
        let first = load(&path);
        let recorded = folder.path().join("sweep.toml");
        fs::write(&recorded, first.to_toml()).unwrap();
        let back =
            load_recorded_sweep(&recorded).unwrap_or_else(|error| panic!("{error}\n{}", first.to_toml()));
        assert_eq!(first.first_difference(&back), None, "{}", first.to_toml());
        let origin = &back.members[0].loaded.origins[&first.members[0].settings[0].0];
        assert!(origin.to_string().starts_with(&path.display().to_string()), "{origin}");
        assert_eq!(back.to_toml(), first.to_toml());
    }
}

#[test]
fn what_a_sweep_may_not_hold_is_refused_with_its_place() {
    let refused = |sweep: &str, set: &[&str]| {
        let error = declare(sweep, &[], set).expect_err(sweep);
        assert!(error.faults.iter().all(|fault| fault.place.is_some()), "{error}");
        error.to_string()
    };
    for (sweep, says, hint) in [
        ("[sweep]\n", "the sweep has no key", "[sweep.grid]"),
        ("[sweep.gird]\nseed = [1]\n", "unknown key `sweep.gird`", "did you mean `sweep.grid`?"),
        ("[sweep]\ngrid = 3\n", "`sweep.grid` is a section, not integer", "list of values"),
        ("[sweep.grid]\nseed = []\n", "`seed` needs a list of values", "[a, b, …]"),
        ("[sweep.grid]\nseed = 3\n", "`seed` needs a list of values", "outside `[sweep.grid]`"),
        ("[sweep.grid]\nseeds = [3]\n", "unknown key `seeds`", "did you mean `\"seed\"`?"),
        ("[sweep.grid]\nname = [\"a\"]\n", "`name` cannot be swept", "numbers"),
        ("[sweep.grid]\nbatch.micro = [1]\n", "is written in quotes", "`\"batch.micro\" = …`"),
        ("[sweep.grid]\nseed = [1, 1.5]\n", "`seed` must be an integer", "`[sweep.grid]`"),
        ("[sweep.grid]\n\"schedule.kind\" = [\"cosin\"]\n", "knows no \"cosin\"", "did you mean \"cosine\"?"),
        ("[sweep.grid]\nseed = [1, 2, 1]\n", "members 1 and 3 of the sweep are the same", "seed = 1"),
        ("[sweep.zip]\nseed = [1, 2]\n\"batch.micro\" = [1]\n", "`batch.micro` has 1", "same length"),
        ("[sweep.grid]\nseed = [1]\n[sweep.zip]\nseed = [2]\n", "`seed` is swept twice", "leave it in one"),
        ("[sweep.grid]\n\"schedule.warmup_steps\" = [5, 11]\n", "longer", "in member 2: schedule.warmup"),
        ("[sweep.random]\nsamples = 2\nseed = 1\n", "there is no `[sweep.random.keys]`", "log_uniform"),
        ("[sweep.random]\nsample = 2\n", "unknown key `sweep.random.sample`", "`[sweep.random.keys]`"),
        ("[sweep.random]\nseed = 1\nkeys = {}\n", "`sweep.random.samples` must be given", "drawn again"),
        ("[sweep.random]\nsamples = 0\nkeys = {}\n", "`sweep.random.samples` is 0", "must be given"),
    ] {
        let report = refused(sweep, &[]);
        assert!(report.contains(says) && report.contains(hint), "{sweep}\n{report}");
    }
    for (keys, says, hint) in [
        ("seed = [0, 9]", "needs what it is drawn from", "integers"),
        ("seed = { uniform = [0, 9] }", "`seed` cannot be drawn from `uniform`", "`integers` or `choices`"),
        ("seed = { integers = [9, 0] }", "not two rising numbers", "smaller"),
        ("seed = { integers = [1, 3] }", "are the same", "`samples`"),
        ("\"guards.loss_z\" = { log_uniform = [0.0, 3.0] }", "not two rising numbers", "above 0"),
        ("\"optimizer.beta1\" = { uniform = [0.5, 1.0] }", "`optimizer.beta1` is 1.0", "below 1"),
    ] {
        let sweep = format!("[sweep.random]\nsamples = 9\nseed = 1\n[sweep.random.keys]\n{keys}\n");
        let report = refused(&sweep, &[]);
        assert!(report.contains(says) && report.contains(hint), "{sweep}\n{report}");
    }
    let grid = "[sweep.grid]\nseed = [1, 2]\n\"eval.hellaswag\" = [\"h.jsonl\"]\n";
    assert!(refused(grid, &["seed=3"]).contains("`seed` is swept, and --set sets it too"));
    assert!(refused(grid, &["eval.hellaswag="]).contains("`eval.hellaswag` is swept, and --set sets it too"));
    let error = declare(grid, &[("RUNNER_SEED", "3")], &[]).unwrap_err().to_string();
    assert!(error.contains("`seed` is swept, and RUNNER_SEED sets it too"), "{error}");
    let large =
        format!("[sweep.grid]\nseed = {:?}\n\"batch.micro\" = {0:?}\n", (1..=101).collect::<Vec<u32>>());
    assert!(refused(&large, &[]).contains("more than 10000 members"));
}

#[test]
fn a_sweep_is_no_experiment_and_cannot_be_extended() {
    let sweep = format!("{SMALL}[sweep.grid]\nseed = [0, 1]\n");
    let error = text_with(&sweep, &[], &[]).unwrap_err().to_string();
    assert!(error.contains("declares a sweep of 2 runs") && error.contains("hint: "), "{error}");
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("base.toml"), sweep).unwrap();
    let path = folder.path().join("top.toml");
    fs::write(&path, "extends = \"base.toml\"\n").unwrap();
    let found = messages(file_with(&path));
    assert_eq!(found, ["a sweep cannot be extended"]);
}

#[test]
fn the_shipped_sweep_has_six_members() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments/sweep_ci.toml");
    let declared = declared(&ExperimentText::Path(&path), &[], &[], &NoModels);
    let Ok(Declared::Sweep(sweep)) = declared else { panic!("{declared:?}") };
    assert_eq!((sweep.name.as_str(), sweep.members.len()), ("sweep_ci", 6));
}

/// Knows runs whose model has as many layers as the step of the checkpoint.
struct Trunks;

impl InitModels for Trunks {
    fn checkpoint(&self, run: &str) -> Result<PathBuf, InitError> {
        let (name, step) = run.split_once('@').unwrap_or((run, "9"));
        Ok(format!("/runs/{name}/checkpoints/step_{step:0>8}").into())
    }

    fn sizes(&self, path: &Path) -> Result<Model, InitError> {
        let step = path.to_str().and_then(|path| path.rsplit('_').next()).expect("a step");
        let model = small_with(&[]).expect("whole").experiment.model;
        Ok(Model { layers: step.parse().expect("a number"), ..model })
    }

    fn tokenizer(&self, _: &Path) -> Result<Option<Tokenizer>, InitError> {
        Ok(None)
    }
}

#[test]
fn checkpoints_are_pinned_when_a_sweep_is_resolved_with_their_sizes_where_these_differ() {
    let base = SMALL.replace("[model]\ndescriptor = \"d12\"\n", "");
    let read = |sweep: &str| {
        let text = format!("{base}{sweep}");
        let input = ExperimentText::Text { name: "x.toml", bytes: text.as_bytes() };
        declared(&input, &[], &[], &Trunks)
    };
    let sweep = |text: &str| match read(text) {
        Ok(Declared::Sweep(sweep)) => sweep,
        other => panic!("{other:?}"),
    };
    let sizes = sweep("[sweep.grid]\n\"model.init\" = [\"run:a@2\", \"run:a\"]\nseed = [0, 1]\n");
    assert_eq!(
        settings(&sizes),
        [
            "model.init = run:a@2, seed = 0, model.layers = 2",
            "model.init = run:a@2, seed = 1, model.layers = 2",
            "model.init = run:a@9, seed = 0, model.layers = 9",
            "model.init = run:a@9, seed = 1, model.layers = 9",
        ]
    );
    sizes.require_recordable().unwrap_or_else(|error| panic!("{error}"));
    let alike =
        sweep("[optimizer]\nfrom_init = true\n[sweep.zip]\n\"model.init\" = [\"run:a@2\", \"run:b@2\"]\n");
    assert_eq!(settings(&alike), ["model.init = run:a@2", "model.init = run:b@2"]);
    assert!(alike.members.iter().all(|member| member.loaded.offset_follows));
    alike.require_recordable().unwrap_or_else(|error| panic!("{error}"));
    // Two names of one checkpoint are one member.
    let twice = read("[sweep.grid]\n\"model.init\" = [\"run:a@9\", \"run:a\"]\n").expect_err("the same");
    assert!(twice.to_string().contains("members 1 and 2 of the sweep are the same"), "{twice}");
}
