//! The whole way from files, variables and `--set` to the resolved experiment or the full report.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::layers::Input;
use super::*;

/// A sound experiment of few words.
const SMALL: &str = "[model]\ndescriptor = \"d12\"\n[schedule]\nsteps = 10\n[data]\ncorpus = \"kjv\"\n";

fn variables(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    pairs.iter().map(|(name, text)| (name.into(), text.into())).collect()
}

fn text_with(text: &str, env: &[(&str, &str)], sets: &[&str]) -> Result<Loaded, ExperimentError> {
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_string()).collect();
    load_layers(&Input::Text { name: "x.toml", bytes: text.as_bytes() }, &variables(env), &sets)
}

fn small_with(sets: &[&str]) -> Result<Loaded, ExperimentError> {
    text_with(SMALL, &[], sets)
}

fn file_with(path: &Path) -> Result<Loaded, ExperimentError> {
    load_layers(&Input::Path(path), &[], &[])
}

fn messages(result: Result<Loaded, ExperimentError>) -> Vec<String> {
    result.unwrap_err().faults.into_iter().map(|fault| fault.message).collect()
}

fn shipped() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments");
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    files
}

fn shipped_named(name: &str) -> Loaded {
    file_with(&Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments").join(name))
        .unwrap_or_else(|error| panic!("{error}"))
}

/// The report as a snapshot: trailing blanks aside, every byte counts.
fn assert_report(error: &ExperimentError, expected: &str) {
    let report: Vec<String> = error.to_string().lines().map(|line| line.trim_end().to_string()).collect();
    let expected: Vec<String> =
        expected.trim_matches('\n').lines().map(|line| line.trim_end().to_string()).collect();
    assert!(report == expected, "the report is\n\n{}\n", report.join("\n"));
}

// ---- shipped experiments -----------------------------------------------------------------------

#[test]
fn every_shipped_experiment_loads_and_its_resolved_form_loads_back_equal() {
    assert!(shipped().len() >= 6);
    for path in shipped() {
        let loaded = file_with(&path).unwrap_or_else(|error| panic!("{error}"));
        let text = loaded.to_toml();
        let name = "runs/somewhere/experiment.toml";
        let back = load_layers(&Input::Text { name, bytes: text.as_bytes() }, &[], &[])
            .unwrap_or_else(|error| panic!("{text}\n{error}"));
        assert_eq!(back.experiment, loaded.experiment, "{}", path.display());
        assert_eq!(differences(&back.experiment, &loaded.experiment), [], "{}", path.display());
        assert_eq!(text, file_with(&path).unwrap().to_toml(), "the text is not a function of the input");
    }
}

#[test]
fn a_resolved_file_loads_back_from_another_folder() {
    let loaded = shipped_named("gpt2_33b.toml");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("experiment.toml");
    fs::write(&path, loaded.to_toml()).unwrap();
    assert_eq!(file_with(&path).unwrap().experiment, loaded.experiment);
}

#[test]
fn the_headline_run_accumulates_64_micro_batches_on_one_device() {
    let e = shipped_named("gpt2_33b.toml").experiment;
    assert_eq!(e.name, "gpt2_33b");
    assert_eq!(e.micro_steps_on(1), 64);
    assert_eq!(e.micro_steps_on(8), 8);
    assert_eq!((e.model.layers, e.model.heads, e.model.channels, e.model.context), (48, 25, 1600, 1024));
    assert_eq!((e.model.vocab, e.model.vocab_padded), (50257, 50304));
    assert_eq!(e.sequences_per_step(), 1024);
    assert!(
        e.data.train[0].ends_with("/data/edu_fineweb_train_*.bin") && !e.data.train[0].contains(".."),
        "{:?}",
        e.data.train
    );
}

#[test]
fn the_long_run_differs_from_the_headline_run_in_length_and_guards_alone() {
    let changed =
        differences(&shipped_named("gpt2_33b.toml").experiment, &shipped_named("gpt2_420b.toml").experiment);
    let keys: Vec<&str> = changed.iter().map(|(key, ..)| key.as_str()).collect();
    assert_eq!(keys, ["guards.grad_z", "guards.loss_z", "name", "schedule.steps"]);
    assert_eq!(changed[3], ("schedule.steps".into(), "32000".into(), "400000".into()));
}

// ---- the table and the types ---------------------------------------------------------------------

#[test]
fn the_table_and_the_resolved_experiment_have_the_same_keys() {
    let mut from_type: Vec<String> =
        write::flatten(&small_with(&[]).unwrap().experiment).into_keys().collect();
    from_type.retain(|key| key != "model.vocab_padded");
    let mut from_table: Vec<String> = schema::KEYS.iter().map(|key| key.name.to_string()).collect();
    from_table.retain(|key| key != "schedule.epochs");
    from_table.sort();
    assert_eq!(from_type, from_table);
}

#[test]
fn every_default_is_in_the_documentation_of_its_field() {
    let (mut section, mut doc, mut seen) = (String::new(), String::new(), 0);
    for line in include_str!("resolved.rs").lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("/// ") {
            doc.push_str(text);
            doc.push(' ');
        } else if let Some(name) = line.strip_prefix("pub struct ").and_then(|rest| rest.split_once(' ')) {
            section =
                if name.0 == "Experiment" { String::new() } else { format!("{}.", name.0.to_lowercase()) };
        } else if let Some((field, _)) = line.strip_prefix("pub ").and_then(|rest| rest.split_once(':'))
            && let Some(key) = schema::key(&format!("{section}{field}"))
        {
            let value = match key.default {
                schema::Default::Integer(n) => n.to_string(),
                schema::Default::Number(x) => format!("{x:?}"),
                schema::Default::Boolean(b) => b.to_string(),
                schema::Default::Text("") => "empty".to_string(),
                schema::Default::Text(text) => text.to_string(),
                schema::Default::Absent => "not set".to_string(),
                schema::Default::Ruled => String::new(),
            };
            assert!(
                doc.contains(&format!("Default: {value}")),
                "`{}` says {doc:?}, its default is {value:?}",
                key.name
            );
            seen += 1;
        }
        if !line.starts_with("///") && !line.starts_with("#[") {
            doc.clear();
        }
    }
    assert_eq!(seen, schema::KEYS.len() - 1, "all but `schedule.epochs`");
}

// ---- layers --------------------------------------------------------------------------------------

#[test]
fn layers_override_each_other_in_order_and_every_key_knows_its_origin() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("bases")).unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write(
        "bases/root.toml",
        "seed = 1\n[model]\ndescriptor = \"d12\"\n[batch]\nmicro = 1\n[data]\ntrain = \"t_*.bin\"\nval = \"v.bin\"\n",
    );
    write("bases/middle.toml", "extends = \"root.toml\"\nseed = 2\n[batch]\nmicro = 2\nseq_len = 64\n");
    write("top.toml", "extends = \"bases/middle.toml\"\nseed = 3\n[schedule]\nsteps = 5\nwarmup_steps = 1\n");
    let path = folder.path().join("top.toml");
    let env = variables(&[
        ("RUNNER_SCHEDULE__STEPS", "100"),
        ("RUNNER_SCHEDULE__WARMUP_STEPS", "7"),
        ("OTHER", "1"),
    ]);
    let loaded = load_layers(&Input::Path(&path), &env, &["schedule.warmup_steps = 9".into()])
        .unwrap_or_else(|e| panic!("{e}"));
    let e = &loaded.experiment;
    assert_eq!(
        (e.seed, e.batch.micro, e.batch.seq_len, e.schedule.steps, e.schedule.warmup_steps),
        (3, 2, 64, 100, 9)
    );
    let origin = |key: &str| loaded.origins[key].to_string();
    assert_eq!(origin("seed"), format!("{}:2", path.display()));
    assert_eq!(origin("batch.micro"), format!("{}:4", folder.path().join("bases/middle.toml").display()));
    assert_eq!(origin("schedule.steps"), "RUNNER_SCHEDULE__STEPS");
    assert_eq!(loaded.origins["schedule.warmup_steps"], Origin::Set);
    assert_eq!(loaded.origins["optimizer.beta1"], Origin::Default);
    assert_eq!(origin("model.layers"), "from descriptor d12");
    assert_eq!(origin("name"), "default: the file's name");
    // Patterns start from the folder of the file that holds them, not from the one that extends it.
    let bases = folder.path().canonicalize().unwrap().join("bases");
    assert_eq!(e.data.train, [bases.join("t_*.bin").display().to_string()]);
    assert!(
        schema::KEYS
            .iter()
            .filter(|key| key.name != "schedule.epochs")
            .all(|key| loaded.origins.contains_key(key.name))
    );
}

#[test]
fn a_missing_file_and_a_missing_base_are_faults() {
    let folder = tempfile::tempdir().unwrap();
    let top = folder.path().join("top.toml");
    assert!(messages(file_with(&top))[0].starts_with("cannot read"));
    fs::write(&top, "seed = 1\nextends = \"nowhere.toml\"\n").unwrap();
    let error = file_with(&top).unwrap_err();
    assert!(error.faults[0].message.contains("nowhere.toml"), "{error}");
    assert_eq!(error.faults[0].place.as_ref().unwrap().position, Some((2, 11)));
    assert!(messages(file_with(folder.path()))[0].starts_with("cannot read"));
}

#[test]
fn files_that_extend_one_another_in_a_circle_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.toml"), "extends = \"b.toml\"\n").unwrap();
    fs::write(folder.path().join("b.toml"), "extends = \"./a.toml\"\n").unwrap();
    assert_eq!(messages(file_with(&folder.path().join("a.toml"))), ["files extend one another in a circle"]);
    fs::write(folder.path().join("a.toml"), "extends = \"a.toml\"\n").unwrap();
    assert_eq!(messages(file_with(&folder.path().join("a.toml"))), ["files extend one another in a circle"]);
}

#[test]
fn a_stronger_layer_takes_back_the_other_way_to_say_it() {
    let sized =
        small_with(&["model.layers=2", "model.heads=2", "model.channels=64", "batch.seq_len=32"]).unwrap();
    assert_eq!((sized.experiment.model.descriptor, sized.experiment.model.channels), (None, 64));
    assert_eq!(sized.experiment.model.context, 32, "follows the sequence length");
    let shards = small_with(&["data.train=a.bin", "data.val=b.bin"]).unwrap().experiment.data;
    assert_eq!((shards.corpus, shards.train.len()), (None, 1));
    assert_eq!(
        messages(small_with(&["model.layers=2"])),
        ["`model.heads` and `model.channels` must be given too"]
    );
}

#[test]
fn both_ways_in_one_layer_are_refused() {
    let both =
        SMALL.replace("[schedule]", "layers = 2\n[schedule]").replace("corpus", "train = \"a\"\ncorpus");
    let both = both.replace("steps = 10", "steps = 10\nepochs = 1");
    let found = messages(text_with(&both, &[], &[]));
    assert_eq!(
        found,
        [
            "`model.layers` and `model.descriptor` exclude each other",
            "`schedule.epochs` and `schedule.steps` exclude each other",
            "`data.train` and `data.corpus` exclude each other"
        ]
    );
}

#[test]
fn bare_text_is_a_string_where_a_string_is_wanted() {
    let e =
        small_with(&["name=2024", "sample.prompt=true", "schedule.kind = linear", "optimizer.grad_clip=1"])
            .unwrap()
            .experiment;
    assert_eq!(
        (e.name.as_str(), e.sample.prompt.as_str(), e.schedule.kind),
        ("2024", "true", ScheduleKind::Linear)
    );
    let e = small_with(&["sample.prompt=\"a # b = c\"", "data.train=['a.bin', 'b.bin']", "eval.every=0"])
        .unwrap()
        .experiment;
    assert_eq!((e.sample.prompt.as_str(), e.data.train.len()), ("a # b = c", 2));
}

#[test]
fn variables_of_ci_services_set_nothing_and_slips_are_refused() {
    let ci = [
        ("RUNNER_NAME", "Hosted Agent 2"),
        ("RUNNER_OS", "Linux"),
        ("RUNNER_TEMP", "/tmp"),
        ("RUNNER_LOG", "debug"),
    ];
    assert_eq!(text_with(SMALL, &ci, &[]).unwrap(), small_with(&[]).unwrap());
    assert_eq!(text_with(SMALL, &[("RUNNER_SEED", "7")], &[]).unwrap().experiment.seed, 7);
    let slip = text_with(SMALL, &[("RUNNER_SCHEDULE_WARMUP_STEPS", "7")], &[]).unwrap_err();
    assert_eq!(slip.faults[0].hint.as_deref(), Some("did you mean `RUNNER_SCHEDULE__WARMUP_STEPS`?"));
    let unknown = text_with(SMALL, &[("RUNNER_SCHEDULE__STEP", "7")], &[]).unwrap_err();
    assert_eq!(unknown.faults[0].hint.as_deref(), Some("did you mean `RUNNER_SCHEDULE__STEPS`?"));
}

// ---- rules ---------------------------------------------------------------------------------------

/// Each line breaks one rule of a sound experiment and gives exactly one fault.
#[test]
fn every_rule_between_keys_is_kept() {
    let cases: &[(&[&str], &str)] = &[
        (&["model.descriptor=d13"], "no model is called `d13`"),
        (
            &["model.descriptor=gpt3:c5140"],
            "`gpt3:c5140` cannot be built: 5140 channels are not a multiple of the head size 128",
        ),
        (
            &["model.layers=1", "model.heads=3", "model.channels=64"],
            "`model.channels` = 64 is not a multiple of `model.heads` = 3",
        ),
        (
            &["model.layers=1", "model.heads=1", "model.channels=160", "device.kind=cuda"],
            "160 channels in heads of 160 cannot run on CUDA: it takes multiples of 8 in heads of at most 128",
        ),
        (&["batch.seq_len=2048"], "sequences of 2048 tokens do not fit a model that reads 1024"),
        (
            &["model.vocab=50000"],
            "a vocabulary of 50000 is too small for the tokenizer \"gpt2\", which has 50257 tokens",
        ),
        (&["parallel.workers=6"], "`parallel.workers` = 6 is not a power of two"),
        (
            &["batch.tokens=1000"],
            "`batch.tokens` = 1000 is not a multiple of micro × seq_len × workers = 4096",
        ),
        (
            &["parallel.zero=2", "batch.tokens=8192"],
            "`parallel.zero` = 2 needs one micro-step a worker, and `batch.tokens` makes it 2",
        ),
        (&["schedule.warmup_steps=11"], "the warm-up of 11 steps is longer than the run of 10"),
        (&["device.kind=cpu", "precision.compute=bf16"], "the CPU computes in fp32, not in bf16"),
        (&["device.kind=cpu", "precision.compute=tf32"], "the CPU computes in fp32, not in tf32"),
        (
            &["precision.compute=fp32", "precision.master_weights=false"],
            "`precision.master_weights = false` needs bf16 weights: in fp32 there is nothing to round",
        ),
        (
            &["kernels.gelu_fusion=1", "memory.recompute=2"],
            "`kernels.gelu_fusion` = 1 and `memory.recompute` = 2 do not go together in bf16",
        ),
        (&["data.train=a.bin"], "evaluation every 250 steps needs validation data"),
        (&["data.train=[]", "data.val=v.bin"], "the experiment has no data to train on"),
        (&["eval.val_tokens=1023"], "`eval.val_tokens` = 1023 is less than one sequence of 1024 tokens"),
        (
            &["guards.on_diverge=rewind", "checkpoint.every=0"],
            "`guards.on_diverge = \"rewind\"` needs checkpoints to go back to",
        ),
        (&["extends=a.toml"], "`extends` belongs in a file"),
        (&["seed"], "`--set` takes `key=value`"),
    ];
    for (sets, expected) in cases {
        assert_eq!(messages(small_with(sets)), [*expected], "{sets:?}");
    }
}

#[test]
fn what_the_rules_allow_loads() {
    for sets in [
        &["kernels.gelu_fusion=2", "memory.recompute=0"][..],
        &["kernels.gelu_fusion=1", "memory.recompute=1", "precision.compute=fp32"],
        &["kernels.gelu_fusion=1", "memory.recompute=1", "device.kind=cpu"],
        &["precision.master_weights=false"],
        &["data.train=a.bin", "eval.every=0"],
        &["schedule.warmup_steps=10"],
        &["model.descriptor=gpt3:c5120", "device.kind=cuda"],
        &["model.context=4096", "batch.seq_len=2048"],
        &["model.vocab=65536"],
        &["batch.tokens=32768", "parallel.workers=8"],
        &["batch.tokens=32768", "parallel.workers=8", "parallel.zero=2"],
    ] {
        small_with(sets).unwrap_or_else(|error| panic!("{sets:?}\n{error}"));
    }
}

#[test]
fn sizes_follow_the_tokenizer_the_descriptor_and_each_other() {
    let e = small_with(&["model.descriptor=gpt3:c768", "data.tokenizer=byte", "parallel.workers=2"])
        .unwrap()
        .experiment;
    assert_eq!((e.model.vocab, e.model.vocab_padded), (257, 384));
    assert_eq!((e.model.context, e.batch.seq_len), (2048, 2048));
    assert_eq!(e.batch.tokens, 4 * 2048 * 2, "one micro-batch a worker");
}

#[test]
fn missing_keys_are_reported_together() {
    assert_eq!(
        messages(text_with("", &[], &[])),
        [
            "the experiment has no model",
            "the experiment does not say how long to train",
            "the experiment has no data to train on"
        ]
    );
}

#[test]
fn epochs_become_steps_when_the_data_are_open() {
    let mut loaded =
        text_with(&SMALL.replace("steps = 10", "epochs = 2\nwarmup_steps = 5"), &[], &["batch.tokens=8192"])
            .unwrap();
    assert_eq!((loaded.epochs, loaded.experiment.schedule.steps), (Some(2), 0));
    let unresolved = text_with(&loaded.to_toml(), &[], &[]).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((&unresolved.experiment, unresolved.epochs), (&loaded.experiment, Some(2)));
    assert!(loaded.clone().resolve_epochs(3).unwrap_err().to_string().contains("less than one step"));
    assert!(
        loaded
            .clone()
            .resolve_epochs(16)
            .unwrap_err()
            .to_string()
            .contains("warm-up of 5 steps is longer than the run of 4")
    );
    loaded.resolve_epochs(103).unwrap();
    assert_eq!((loaded.epochs, loaded.experiment.schedule.steps), (None, 25), "206 sequences, 8 a step");
    let back = text_with(&loaded.to_toml(), &[], &[]).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(back.experiment, loaded.experiment);
}

// ---- the report ----------------------------------------------------------------------------------

#[test]
fn all_faults_come_in_one_report() {
    let text = r#"seed = "x"

[model]
descripter = "d12"

[batch]
micro = 16
seq_len = 1024
tokens = 1_000_000

[schedule]
warmup = 700
steps = 1e5

[optmizer]
beta1 = 0.9

[data]
corpus = "kjv"
workers = 2
"#;
    let error = text_with(text, &[("RUNNER_MEMORY__RECOMPUTE", "3")], &["schedule.kind=cosin", "log.evry=1"])
        .unwrap_err();
    assert_report(&error, SEVERAL_FAULTS);
}

const SEVERAL_FAULTS: &str = r#"
error: `seed` must be an integer, at least 0, not the string "x"
  --> x.toml:1:8
   |
 1 | seed = "x"
   |        ^^^ expected an integer, at least 0

error: unknown key `model.descripter`
  --> x.toml:4:1
   |
 4 | descripter = "d12"
   | ^^^^^^^^^^ not a key
   = note: `model` has init, descriptor, layers, heads, channels, context, vocab
   hint: did you mean `model.descriptor`?

error: `batch.tokens` = 1000000 is not a multiple of micro × seq_len × workers = 16384
  --> x.toml:9:10
   |
 9 | tokens = 1_000_000
   |          ^^^^^^^^^
   = note: `batch.micro` is 16 (x.toml:7)
   = note: `batch.seq_len` is 1024 (x.toml:8)
   = note: `parallel.workers` is 1 (default)
   hint: the nearest valid `batch.tokens` are 999424 and 1015808

error: unknown key `schedule.warmup`
  --> x.toml:12:1
   |
12 | warmup = 700
   | ^^^^^^ not a key
   = note: `schedule` has kind, steps, epochs, learning_rate, warmup_steps, final_fraction, decay_fraction
   hint: did you mean `schedule.warmup_steps`?

error: `schedule.steps` must be an integer, at least 1, not the number 1e5
  --> x.toml:13:9
   |
13 | steps = 1e5
   |         ^^^ expected an integer, at least 1
   hint: write `100000`

error: unknown key `optmizer`
  --> x.toml:15:2
   |
15 | [optmizer]
   |  ^^^^^^^^
   hint: did you mean the section `optimizer`?

error: unknown key `data.workers`
  --> x.toml:20:1
   |
20 | workers = 2
   | ^^^^^^^ not a key
   = note: `data` has corpus, train, val, tokenizer, order, overfit_single_batch, prefetch
   hint: did you mean `parallel.workers`?

error: `memory.recompute` is 3, but at most 2 is allowed
  --> environment
   |
   | RUNNER_MEMORY__RECOMPUTE=3
   |                          ^ expected an integer from 0 to 2

error: `schedule.kind` knows no "cosin"
  --> --set
   |
   | schedule.kind=cosin
   |               ^^^^^ expected "cosine", "linear", "constant" or "wsd"
   hint: did you mean "cosine"?

error: unknown key `log.evry`
  --> --set
   |
   | log.evry=1
   | ^^^^^^^^ `log` has every, gpu_every, tensorboard
   hint: did you mean `log.every`?

x.toml has 10 faults; nothing was started
"#;

#[test]
fn several_syntax_faults_come_in_one_report() {
    let error = text_with("seed = \n[model\nlayers = 2\nheads == 3\n", &[], &["seed=1.5"]).unwrap_err();
    assert!(error.faults.len() >= 3, "{error}");
    assert!(
        error
            .faults
            .iter()
            .filter(|fault| fault.message.starts_with("not TOML"))
            .all(|fault| fault.place.is_some()),
        "{error}"
    );
}

#[test]
fn a_rule_points_at_the_layer_that_broke_it() {
    let sound = format!("{SMALL}[batch]\ntokens = 8192\n");
    text_with(&sound, &[], &[]).unwrap();
    let error = text_with(&sound, &[], &["batch.micro=3"]).unwrap_err();
    assert_report(&error, RULE_BROKEN_BY_SET);
}

const RULE_BROKEN_BY_SET: &str = r#"
error: `batch.tokens` = 8192 is not a multiple of micro × seq_len × workers = 3072
  --> --set
   |
   | batch.micro=3
   |             ^
   = note: `batch.tokens` is 8192 (x.toml:8)
   = note: `batch.seq_len` is 1024 (from model.context)
   = note: `parallel.workers` is 1 (default)
   hint: the nearest valid `batch.tokens` are 6144 and 9216

x.toml has 1 fault; nothing was started
"#;

#[test]
fn bytes_that_are_not_text_are_refused_where_they_stand() {
    let error = load_layers(&Input::Text { name: "x.toml", bytes: b"seed = 1\nname = \"\xff\"\n" }, &[], &[])
        .unwrap_err();
    assert_eq!(error.faults[0].message, "the file is not UTF-8 text");
    assert_eq!(error.faults[0].place.as_ref().unwrap().position, Some((2, 9)));
}

// ---- anything at all -------------------------------------------------------------------------------

/// TOML-like lines: known and unknown keys with all kinds of values.
fn lines() -> impl Strategy<Value = String> {
    let names: Vec<&str> = schema::KEYS
        .iter()
        .map(schema::Key::leaf)
        .chain(schema::sections())
        .chain(["extends", "x", "\"a.b\"", "é"])
        .collect();
    let values = [
        "1",
        "0",
        "-1",
        "3.5",
        "1e400",
        "nan",
        "true",
        "\"kjv\"",
        "\"d12\"",
        "[]",
        "[\"a\", 1]",
        "{}",
        "{a = 1}",
        "1979-05-27",
        "'",
        "\"\u{1b}\"",
        "0x7fffffffffffffff",
        "99999999999999999999999",
    ];
    let line = (prop::sample::select(names), prop::sample::select(values.to_vec()), 0..4u8).prop_map(
        |(name, value, form)| match form {
            0 => format!("[{name}]"),
            1 => format!("{name}.{name} = {value}"),
            _ => format!("{name} = {value}"),
        },
    );
    prop::collection::vec(line, 0..12).prop_map(|lines| lines.join("\n"))
}

fn loads_or_reports(bytes: &[u8], env: &[(OsString, OsString)], sets: &[String]) {
    match load_layers(&Input::Text { name: "x.toml", bytes }, env, sets) {
        Ok(loaded) => {
            let text = loaded.to_toml();
            let back = load_layers(&Input::Text { name: "y.toml", bytes: text.as_bytes() }, &[], &[]);
            assert_eq!(back.unwrap_or_else(|error| panic!("{text}\n{error}")).experiment, loaded.experiment);
        }
        Err(error) => {
            assert!(!error.faults.is_empty());
            assert!(error.to_string().len() <= error.styled().len());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        loads_or_reports(&bytes, &[], &[]);
    }

    #[test]
    fn random_lines_never_panic(text in lines(), tail in ".{0,20}") {
        loads_or_reports(text.as_bytes(), &[], &[]);
        loads_or_reports(format!("{text}\n{tail}").as_bytes(), &[], &[]);
    }

    #[test]
    fn random_settings_never_panic(key in prop::sample::select(schema::KEYS.iter().map(|key| key.name).collect::<Vec<_>>()), text in ".{0,20}", raw in ".{0,30}") {
        let env = variables(&[(&format!("RUNNER_{}", key.replace('.', "__").to_uppercase()), &text.replace('\0', ""))]);
        loads_or_reports(SMALL.as_bytes(), &env, &[]);
        loads_or_reports(SMALL.as_bytes(), &[], &[format!("{key}={text}"), raw]);
    }

    /// Whatever text a run is given, it comes back from its folder unchanged.
    #[test]
    fn any_prompt_survives_the_resolved_file(prompt in any::<String>()) {
        let mut loaded = small_with(&[]).unwrap();
        loaded.experiment.sample.prompt = prompt;
        let back = text_with(&loaded.to_toml(), &[], &[]).unwrap();
        prop_assert_eq!(back.experiment.sample.prompt, loaded.experiment.sample.prompt);
    }
}
