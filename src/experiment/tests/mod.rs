//! The whole way from files, variables and `--set` to the resolved experiment or the full report.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::layers::ExperimentText;
use super::*;

mod layers;
mod mixture;
mod report;
mod rules;
mod sweep;

/// A short valid experiment.
const SMALL: &str = "[model]\ndescriptor = \"d12\"\n[schedule]\nsteps = 10\n[data]\ncorpus = \"kjv\"\n";

fn variables(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    pairs.iter().map(|(name, text)| (name.into(), text.into())).collect()
}

fn text_with(text: &str, env: &[(&str, &str)], sets: &[&str]) -> Result<Loaded, ExperimentError> {
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_string()).collect();
    load_layers(&ExperimentText::Text { name: "x.toml", bytes: text.as_bytes() }, &variables(env), &sets)
}

fn small_with(sets: &[&str]) -> Result<Loaded, ExperimentError> {
    text_with(SMALL, &[], sets)
}

fn file_with(path: &Path) -> Result<Loaded, ExperimentError> {
    load_layers(&ExperimentText::Path(path), &[], &[])
}

fn messages(result: Result<Loaded, ExperimentError>) -> Vec<String> {
    result.unwrap_err().faults.into_iter().map(|fault| fault.message).collect()
}

fn shipped() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments");
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    files.retain(|path| !path.ends_with("sweep_ci.toml") && !path.ends_with("example_sweep.toml"));
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
        let back = load_layers(&ExperimentText::Text { name, bytes: text.as_bytes() }, &[], &[])
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
fn the_headline_run_accumulates_8_micro_batches_a_worker() {
    let e = shipped_named("gpt2_33b.toml").experiment;
    assert_eq!(e.name, "gpt2_33b");
    assert_eq!((e.parallel.workers, e.most_micro_steps()), (8, 8));
    assert_eq!((e.model.layers, e.model.heads, e.model.channels, e.model.context), (48, 25, 1600, 1024));
    assert_eq!((e.model.vocab, e.model.vocab_padded), (50257, 50304));
    assert_eq!(e.step_sequences().of(0), 1024);
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

// ---- anything at all -------------------------------------------------------------------------------

/// TOML-like lines: known and unknown keys with all kinds of values.
fn lines() -> impl Strategy<Value = String> {
    let names: Vec<&str> = schema::KEYS
        .iter()
        .map(schema::KeyRow::leaf)
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
    match load_layers(&ExperimentText::Text { name: "x.toml", bytes }, env, sets) {
        Ok(loaded) => {
            let text = loaded.to_toml();
            let back =
                load_layers(&ExperimentText::Text { name: "y.toml", bytes: text.as_bytes() }, &[], &[]);
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
    fn random_settings_never_panic(
        key in prop::sample::select(schema::KEYS.iter().map(|key| key.name).collect::<Vec<_>>()),
        text in ".{0,20}",
        raw in ".{0,30}",
    ) {
        let variable = format!("RUNNER_{}", key.replace('.', "__").to_uppercase());
        let env = variables(&[(&variable, &text.replace('\0', ""))]);
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
