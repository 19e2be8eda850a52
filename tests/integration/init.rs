//! `model.init`, and models that are read without a run: whole files, and damaged ones.

use std::path::{Path, PathBuf};

use crate::support::{Finished, Lab};

const CI: &str = "experiments/ci.toml";

/// A trained model in a run `ci`, and its export in some format.
fn exported(lab: &Lab, format: &str, dtype: &str) -> PathBuf {
    if !lab.path("ci").exists() {
        lab.run(CI, &[]).root();
    }
    let finished = lab.verb("export", "ci", &["--format", format, "--dtype", dtype]);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let folder = PathBuf::from(finished.stdout.trim());
    if format == "llmc" { folder.join("model.bin") } else { folder }
}

/// Trains the CI experiment from a model, as the run `name`.
fn train_from(lab: &Lab, name: &str, init: &Path, more: &[&str]) -> Finished {
    let init = format!("model.init={}", init.display());
    lab.run(CI, &[&["--name", name, "--set", &init], more].concat())
}

fn val_losses(lab: &Lab, run: &str) -> Vec<serde_json::Value> {
    lab.metrics(run).iter().map(|row| row["val_loss"].clone()).filter(|loss| !loss.is_null()).collect()
}

#[test]
fn training_starts_from_the_weights_of_any_form_with_their_bits() {
    let lab = Lab::new();
    let forms = [exported(&lab, "hf", "fp32"), exported(&lab, "llmc", "fp32")];
    let roots: Vec<String> = forms
        .iter()
        .zip(["from_hf", "from_llmc"])
        .map(|(form, name)| train_from(&lab, name, form, &[]).root().to_owned())
        .collect();
    assert_eq!(roots[0], roots[1]);
    assert_ne!(roots[0], lab.run(CI, &["--name", "from_noise"]).root(), "the model was not read");
    // Before the first step the model is as good as when it was exported.
    assert_eq!(val_losses(&lab, "from_hf")[0], *val_losses(&lab, "ci").last().expect("measured at the end"));
    let lock = std::fs::read_to_string(lab.path("from_hf/lock.toml")).expect("a lock");
    assert!(lock.contains("\"model.init_sha256\" = "), "{lock}");
    assert!(
        lab.verify("from_hf", &["--replay", "0..3"]).code == Some(0),
        "a replay starts from the model too"
    );

    // bf16 files hold other numbers, the same in both forms.
    let narrow = [exported(&lab, "hf", "bf16"), exported(&lab, "llmc", "bf16")];
    let roots: Vec<String> = narrow
        .iter()
        .zip(["from_hf_bf16", "from_llmc_bf16"])
        .map(|(form, name)| train_from(&lab, name, form, &["--set", "schedule.steps=5"]).root().to_owned())
        .collect();
    assert_eq!(roots[0], roots[1]);
}

#[test]
fn sizes_come_from_the_file_when_none_are_given() {
    let lab = Lab::new();
    let model = exported(&lab, "llmc", "fp32");
    let experiment = lab.path("tuned.toml");
    let text = format!(
        "[model]\ninit = '{}'\n[data]\ncorpus = 'kjv'\ntokenizer = 'byte'\n[batch]\nmicro = 2\nseq_len = 32\n\
         [schedule]\nsteps = 2\n[eval]\nevery = 0\n[device]\nkind = 'cpu'",
        model.strip_prefix(lab.path("")).expect("inside").display()
    );
    std::fs::write(&experiment, text).expect("writable");
    lab.run(experiment.to_str().expect("UTF-8"), &[]).root();
    let resolved = std::fs::read_to_string(lab.path("tuned/experiment.toml")).expect("resolved");
    for line in ["layers = 2", "heads = 2", "channels = 64", "context = 64", "vocab = 257"] {
        assert!(
            resolved.lines().any(|l| l.starts_with(line) && l.ends_with("# from model.init")),
            "`{line}` in\n{resolved}"
        );
    }
    // The run goes on without the file, which its checkpoint replaces; a new one does not.
    std::fs::remove_file(&model).expect("removable");
    lab.resume("tuned", &["--set", "schedule.steps=3", "--allow-drift"]).root();
    let again = lab.run(experiment.to_str().expect("UTF-8"), &["--name", "again"]);
    again.assert_fails(2, &["cannot read `", "model.bin`", "`model.init` takes a Hugging Face folder"]);
}

#[test]
fn another_model_under_the_same_name_is_refused_on_resume() {
    let lab = Lab::new();
    let model = exported(&lab, "llmc", "fp32");
    train_from(&lab, "tuned", &model, &[]).root();
    std::fs::copy(exported(&lab, "llmc", "bf16"), &model).expect("copied");
    // A finished run has nothing to refuse: this one lacks its end.
    std::fs::remove_dir_all(lab.path("tuned/checkpoints/step_00000020")).expect("the last checkpoint");
    lab.resume("tuned", &[]).assert_fails(5, &["`model.init_sha256` was"]);
}

#[test]
fn a_model_that_does_not_fit_or_is_damaged_is_refused_before_the_first_step() {
    let lab = Lab::new();
    let (folder, file) = (exported(&lab, "hf", "fp32"), exported(&lab, "llmc", "fp32"));
    let refused = |init: &Path, set: &[&str], says: &[&str]| {
        train_from(&lab, "refused", init, set).assert_fails(1, says);
        assert!(!lab.path("refused").exists(), "a folder was made");
    };
    refused(
        &file,
        &["--set", "model.layers=3"],
        &["is a model of 2 layers, the experiment's has 3", "leave the sizes out"],
    );
    refused(&folder, &["--set", "model.vocab=300"], &["is a model of 257 tokens, the experiment's has 300"]);
    refused(&folder, &["--set", "model.context=65"], &["64 positions, the experiment's has 65"]);
    refused(&lab.path("nothing"), &[], &["cannot read `", "nothing`"]);

    let whole = std::fs::read(&file).expect("readable");
    let damaged = lab.path("damaged.bin");
    for (bytes, says) in [
        (&whole[..whole.len() - 4], "the file was cut short"),
        (&whole[..1000], "its header alone has 1024"),
        (b"<html>404</html>", "is no model: it is a web page"),
        (&[&[0; 4], &whole[4..]].concat(), "is no model: it begins with the bytes 00 00 00 00"),
        (&[&whole[..4], &7i32.to_le_bytes(), &whole[8..]].concat(), "the version at byte 4 is 7"),
        (&[&whole[..16], &i32::MAX.to_le_bytes(), &whole[20..]].concat(), "layers at byte 16 is 2147483647"),
    ] {
        std::fs::write(&damaged, bytes).expect("writable");
        refused(&damaged, &[], &[says]);
    }
    let weights = folder.join("model.safetensors");
    let whole = std::fs::read(&weights).expect("readable");
    let mut long_header = whole.clone();
    long_header[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    for (bytes, says) in [
        (&whole[..whole.len() - 1], "bytes"),
        (&long_header, "it claims 18446744073709551615 bytes"),
        (&[b"XXXX", &whole[4..]].concat(), "model.safetensors"),
    ] {
        std::fs::write(&weights, bytes).expect("writable");
        refused(&folder, &[], &[says]);
    }
}

#[test]
fn a_model_writes_and_is_measured_without_a_run() {
    let lab = Lab::new();
    let (folder, file) = (exported(&lab, "hf", "fp32"), exported(&lab, "llmc", "fp32"));
    let write = |what: &str| {
        let arguments = [
            "--prompt",
            "And",
            "--tokens",
            "40",
            "--seed",
            "3",
            "--temperature",
            "0.8",
            "--set",
            "device.kind=cpu",
        ];
        let finished = lab.verb("sample", what, &arguments);
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        finished.stdout
    };
    let text = write("ci");
    assert_eq!(write(folder.to_str().expect("UTF-8")), text);
    assert_eq!(write(file.to_str().expect("UTF-8")), text);
    let measure = |what: &str, set: &[&str]| {
        let finished = lab.verb(
            "eval",
            what,
            &[&["--json", "--set", "eval.val_tokens=2048", "--set", "device.kind=cpu"], set].concat(),
        );
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        serde_json::from_str::<serde_json::Value>(&finished.stdout).expect("JSON")["val_loss"].clone()
    };
    let alone =
        measure(folder.to_str().expect("UTF-8"), &["--set", "batch.micro=2", "--set", "batch.seq_len=64"]);
    assert_eq!(alone, measure("ci", &[]));
    lab.verb("sample", file.to_str().expect("UTF-8"), &["--checkpoint", "3"])
        .assert_fails(2, &["it has no checkpoints"]);
}

#[test]
fn several_texts_come_in_order_and_each_is_what_it_would_be_alone() {
    let lab = Lab::new();
    lab.run(CI, &[]).root();
    let write = |arguments: &[&str]| {
        let finished =
            lab.verb("sample", "ci", &[&["--prompt", "And", "--tokens", "80"], arguments].concat());
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        finished.stdout
    };
    let one = write(&[]);
    let several = write(&["--samples", "11"]);
    let texts: Vec<&str> = several.trim_end_matches('\n').split("\n---\n").collect();
    assert_eq!(texts.len(), 11, "{several}");
    assert_eq!(texts[0], one.trim_end_matches('\n'), "the first is the one that is written alone");
    let lines = write(&["--samples", "11", "--json"]);
    assert_eq!(lines.lines().count(), 11, "{lines}");
    for (line, text) in lines.lines().zip(&texts) {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(format!("And{}", line["text"].as_str().expect("text")).trim_end_matches('\n'), *text);
    }
    // The model has 64 positions and the texts 81 tokens.
    let finished = lab.verb("sample", "ci", &["--tokens", "100", "--temperature", "0"]);
    assert!(
        finished.stderr.contains("past 64 tokens a text goes on from its newer half"),
        "{}",
        finished.stderr
    );
}
