//! `model.init`, and models that are read without a run: whole files, and damaged ones.

use std::path::{Path, PathBuf};

use crate::support::{Finished, Lab, flip_bit};

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
    let refused_with = |code: i32, init: &Path, set: &[&str], says: &[&str]| {
        train_from(&lab, "refused", init, set).assert_fails(code, says);
        assert!(!lab.path("refused").exists(), "a folder was made");
    };
    let refused = |init: &Path, set: &[&str], says: &[&str]| refused_with(1, init, set, says);
    refused(
        &file,
        &["--set", "model.layers=3"],
        &["is a model of 2 layers, the experiment's has 3", "leave the sizes out"],
    );
    refused(&folder, &["--set", "model.vocab=300"], &["is a model of 257 tokens, the experiment's has 300"]);
    refused(&folder, &["--set", "model.context=65"], &["64 positions, the experiment's has 65"]);
    refused(&lab.path("nothing"), &[], &["`model.init`: cannot read `", "nothing`", "`run:NAME@STEP`"]);

    let whole = std::fs::read(&file).expect("readable");
    let damaged = lab.path("damaged.bin");
    // Damage is 5 in every verb; another kind of file is whole.
    for (code, bytes, says) in [
        (5, &whole[..whole.len() - 4], "the file was cut short"),
        (5, &whole[..1000], "its header alone has 1024"),
        (1, b"<html>404</html>", "is no model: it is a web page"),
        (1, &[&[0; 4], &whole[4..]].concat(), "is no model: it begins with the bytes 00 00 00 00"),
        (1, &[&whole[..4], &7i32.to_le_bytes(), &whole[8..]].concat(), "the version at byte 4 is 7"),
        (5, &[&whole[..16], &i32::MAX.to_le_bytes(), &whole[20..]].concat(), "at byte 16 is 2147483647"),
    ] {
        std::fs::write(&damaged, bytes).expect("writable");
        refused_with(code, &damaged, &[], &[says]);
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
        refused_with(5, &folder, &[], &[says]);
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

/// Weights of a run's checkpoint: by name, by folder, in other steps, and gone afterwards.
#[test]
fn training_starts_from_a_checkpoint_of_a_run_and_the_lock_has_its_root() {
    let lab = Lab::new();
    let base = lab.run(CI, &["--set", "checkpoint.keep_last=0"]).root().to_owned();
    let step = |step: u64| lab.path("ci/checkpoints").join(format!("step_{step:08}"));
    let from = |name: &str, init: &str, more: &[&str]| {
        let init = format!("model.init={init}");
        lab.run(CI, &[&["--name", name, "--set", &init, "--set", "schedule.steps=8"], more].concat())
    };
    let named = from("named", "run:ci@20", &[]).root().to_owned();
    for (name, init) in [("newest", "run:ci".to_owned()), ("by_folder", step(20).display().to_string())] {
        assert_eq!(from(name, &init, &[]).root(), named, "{name}");
    }
    let exported = exported(&lab, "hf", "fp32");
    assert_eq!(from("of_file", &exported.display().to_string(), &[]).root(), named, "the same weights");
    assert_ne!(from("of_step_5", "run:ci@5", &[]).root(), named);
    assert_eq!(val_losses(&lab, "named")[0], *val_losses(&lab, "ci").last().expect("at the end"));

    let read = |file: &str| std::fs::read_to_string(lab.path("named").join(file)).expect("readable");
    assert!(
        read("lock.toml").contains(&format!("\"model.init_root\" = \"{base}\"")),
        "{}",
        read("lock.toml")
    );
    let written = read("experiment.toml");
    let init = written.lines().find(|line| line.starts_with("init = ")).expect("it has a model").to_owned();
    assert!(init.contains("/ci/checkpoints/step_00000020\"") && init.contains("run:ci@20, --set"), "{init}");
    let shown = lab.verb("show", "named", &[]).stdout;
    let lineage = shown.lines().find(|line| line.starts_with("started from ")).unwrap_or_default();
    assert!(lineage.ends_with(&format!("/ci/checkpoints/step_00000020, root {base}")), "{shown}");
    lab.verify("named", &["--replay", "0..3"]).assert_says(&["steps 0 to 2 gave the same bits again"]);
    let runs = lab.path("").display().to_string();
    let twice = ["--twice", "--runs", &runs, "--set", "model.init=run:ci", "--set", "schedule.steps=8"];
    lab.finish(&[&["verify", CI], &twice[..]].concat()).assert_says(&["two processes gave the same bits"]);

    from("bad", "run:ci@7", &[])
        .assert_fails(2, &["no checkpoint", "step_00000007`", "those of steps 5, 10"]);
    from("bad", "run:ci@x", &[]).assert_fails(2, &["`x` in `ci@x` is not a step"]);
    from("bad", "run:co@5", &[]).assert_fails(2, &["there is no run in", "--set", "`runner show --runs"]);
    let wider = ["--set", "model.channels=192"];
    from("bad", "run:ci@5", &wider).assert_fails(1, &["is a model of ", "the experiment's has 192"]);
    // In the last third, where the weights are; the moments before them are not read.
    flip_bit(&step(5).join("state.safetensors"), 0.9);
    from("bad", "run:ci@5", &[]).assert_fails(5, &["step_00000005/state.safetensors`"]);
    assert!(!lab.path("bad").exists());

    // What the run began from is in its own checkpoints.
    std::fs::remove_dir_all(lab.path("named/checkpoints/step_00000008")).expect("the last checkpoint");
    std::fs::remove_dir_all(lab.path("ci")).expect("the first run");
    assert_eq!(lab.resume("named", &[]).root(), named);
    lab.verify("named", &["--replay", "0..3"]).assert_fails(1, &["step_00000020"]);
}
