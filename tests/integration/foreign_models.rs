//! Models of other programs: what is read, what is refused, and with which message.
//!
//! The folders are those of `tests/cases`, which `tests/cases/models.py` writes.

use std::path::{Path, PathBuf};

use runner::store::{Facts, Manifest, Tensor};
use serde_json::Value;

use crate::support::{Finished, Lab};

/// The loss of `hf_good` on 256 tokens of the built-in text, as `transformers` has it to six digits.
const LOSS: &str = "5.547555";

fn case(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases").join(name).display().to_string()
}

fn eval(lab: &Lab, model: &str, more: &[&str]) -> Finished {
    let arguments = ["--task", "val", "--set", "eval.val_tokens=256", "--set", "device.kind=cpu"];
    lab.verb("eval", model, &[&arguments[..], more].concat())
}

fn sample(lab: &Lab, model: &str, more: &[&str]) -> Finished {
    let arguments = ["--tokens", "8", "--prompt", "ab", "--temperature", "0", "--set", "device.kind=cpu"];
    lab.verb("sample", model, &[&arguments[..], more].concat())
}

/// `runner run` of an experiment that starts from the model.
fn train(lab: &Lab, model: &str) -> Finished {
    let text = format!(
        "[model]\ninit = '{model}'\n[data]\ncorpus = 'kjv'\ntokenizer = 'byte'\n\
         [batch]\nmicro = 2\nseq_len = 64\ntokens = 128\n[schedule]\nsteps = 2\nwarmup_steps = 0\n\
         [eval]\nevery = 0\n[precision]\ncompute = 'fp32'\n[device]\nkind = 'cpu'\n"
    );
    let experiment = lab.path("tuned.toml");
    std::fs::write(&experiment, text).expect("writable");
    lab.run(experiment.to_str().expect("UTF-8"), &[])
}

/// `sample`, `eval` and `model.init` refuse the model with these words, and leave nothing behind.
#[track_caller]
fn refused(lab: &Lab, model: &str, says: &[&str]) {
    refused_with(lab, model, 1, says);
}

/// The same of a model that is damaged.
#[track_caller]
fn damaged(lab: &Lab, model: &str, says: &[&str]) {
    refused_with(lab, model, 5, says);
}

#[track_caller]
fn refused_with(lab: &Lab, model: &str, code: i32, says: &[&str]) {
    for finished in [sample(lab, model, &[]), eval(lab, model, &["--json"])] {
        finished.assert_fails(code, says);
        assert_eq!(finished.stdout, "");
    }
    let trained = train(lab, model);
    let codes = if code == 5 { [5, 5] } else { [1, 2] };
    assert!(trained.code.is_some_and(|code| codes.contains(&code)), "{:?} {}", trained.code, trained.stderr);
    for text in says {
        assert!(trained.stderr.contains(text), "`{text}` is not in:\n{}", trained.stderr);
    }
    assert!(!lab.path("tuned").exists(), "a folder was made");
}

/// A copy of a case's folder in the lab.
fn copy(lab: &Lab, name: &str) -> PathBuf {
    let to = lab.path(name);
    std::fs::create_dir(&to).expect("a folder");
    for entry in std::fs::read_dir(case(name)).expect("a case") {
        let from = entry.expect("an entry").path();
        std::fs::copy(&from, to.join(from.file_name().expect("a name"))).expect("copied");
    }
    to
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn a_whole_model_is_read_in_one_file_or_two_and_in_fp16() {
    let lab = Lab::new();
    let loss = |model: &str| {
        let finished = eval(&lab, &case(model), &[]);
        finished.assert_says(&["val_loss", "256 tokens"]);
        finished.stdout.split_whitespace().nth(1).expect("a number").to_owned()
    };
    assert_eq!((loss("hf_good"), loss("hf_sharded")), (LOSS.to_owned(), LOSS.to_owned()));
    // fp16 has 11 bits of the weights' 24: the loss moves in the fifth digit.
    let narrow: f64 = loss("hf_fp16").parse().expect("a number");
    assert!((narrow - 5.547555).abs() < 1e-4, "{narrow}");

    let whole = sample(&lab, &case("hf_good"), &[]);
    whole.assert_says(&["ab"]);
    assert_eq!(sample(&lab, &case("hf_sharded"), &[]).stdout, whole.stdout);
    sample(&lab, &case("hf_fp16"), &[]).assert_says(&["ab"]);

    // The same numbers in another number of files train to the same bits.
    let root = |model: &str| {
        let root = train(&lab, &case(model)).root().to_owned();
        std::fs::remove_dir_all(lab.path("tuned")).expect("removable");
        root
    };
    assert_eq!(root("hf_good"), root("hf_sharded"));
    assert_ne!(root("hf_good"), root("hf_fp16"), "fp16 holds other numbers");
}

#[test]
fn nan_in_the_weights_is_refused_by_file_tensor_and_element() {
    let lab = Lab::new();
    refused(
        &lab,
        &case("hf_nan"),
        &[
            "hf_nan/model.safetensors` holds NaN at [3, 5], element 101 of 256",
            "tensor `transformer.h.0.mlp.c_fc.weight`",
        ],
    );
    // The same in llm.c's file, whose first number is that of `wte.weight`.
    train(&lab, &case("hf_good")).root();
    let exported = lab.verb("export", "tuned", &["--format", "llmc"]);
    exported.assert_says(&["llmc_fp32"]);
    let file = PathBuf::from(exported.stdout.trim()).join("model.bin");
    let mut bytes = std::fs::read(&file).expect("readable");
    bytes[1024 + 4 * 9..][..4].copy_from_slice(&f32::NEG_INFINITY.to_le_bytes());
    let infinite = lab.path("damaged.bin");
    std::fs::write(&infinite, &bytes).expect("writable");
    std::fs::remove_dir_all(lab.path("tuned")).expect("removable");
    let says = ["damaged.bin` holds minus infinity at [1, 1], element 9 of 2056", "tensor `wte.weight`"];
    refused(&lab, text(&infinite), &says);
    // Sizes that are not given are read from the header: the experiment is not what is wrong.
    std::fs::write(&infinite, &bytes[..100]).expect("writable");
    damaged(&lab, text(&infinite), &["damaged.bin` has 100 bytes, its header alone has 1024", "cut short"]);
    bytes[16..20].copy_from_slice(&i32::MAX.to_le_bytes());
    std::fs::write(&infinite, &bytes).expect("writable");
    damaged(&lab, text(&infinite), &["layers at byte 16 is 2147483647"]);
}

#[test]
fn tensors_that_gpt2_does_not_have_are_refused_by_name() {
    let lab = Lab::new();
    let says = ["hf_extra/model.safetensors` holds the tensor `transformer.h.0.attn.q_norm.weight`"];
    refused(&lab, &case("hf_extra"), &says);
}

#[test]
fn losses_and_logits_that_are_not_finite_fail_in_words() {
    let lab = Lab::new();
    let huge = case("hf_huge");
    for json in [&[][..], &["--json"]] {
        let measured = eval(&lab, &huge, json);
        measured.assert_fails(1, &["the validation loss is not finite"]);
        assert_eq!(measured.stdout, "");
        let written = sample(&lab, &huge, json);
        written.assert_fails(1, &["the logits of text 0, token 0 are not finite"]);
        assert!(!written.stdout.contains('\0') && !written.stdout.contains("null"), "{}", written.stdout);
    }
    let logits = ["--logits", "--prompt", "ab", "--set", "device.kind=cpu"];
    lab.verb("sample", &huge, &logits).assert_fails(1, &["are not finite"]);
    sample(&lab, &huge, &["--logits"]).assert_fails(2, &["--logits", "cannot be used with"]);
    let tasks = case("hellaswag_nonascii.jsonl");
    let arguments = ["--task", "hellaswag", "--data", &tasks, "--json", "--set", "device.kind=cpu"];
    let scored = lab.verb("eval", &huge, &arguments);
    scored.assert_fails(1, &["hellaswag_nonascii.jsonl` line 1"]);
}

#[test]
fn a_checkpoint_that_is_not_finite_is_neither_measured_nor_exported() {
    let lab = Lab::new();
    train(&lab, &case("hf_good")).root();
    // A whole checkpoint, saved by the program's own writer, of a model that holds one infinity.
    let folder = lab.path("tuned/checkpoints/step_00000002");
    let (manifest, mut state) = runner::store::load(&folder).expect("whole");
    let bias = state.iter_mut().find(|tensor| tensor.name == "h.0.ln_2.bias").expect("there");
    bias.bytes[8..12].copy_from_slice(&f32::INFINITY.to_le_bytes());
    std::fs::remove_dir_all(&folder).expect("removable");
    resave(&lab.path("tuned/checkpoints"), &manifest, &state);
    let says =
        ["tensor `h.0.ln_2.bias`", "step_00000002/state.safetensors` holds infinity at [2], element 2 of 8"];
    lab.verb("eval", "tuned", &["--json"]).assert_fails(1, &says);
    lab.verb("sample", "tuned", &[]).assert_fails(1, &says);
    for format in ["hf", "llmc"] {
        lab.verb("export", "tuned", &["--format", format]).assert_fails(1, &says);
    }
    assert!(!lab.path("tuned/export").exists());
}

/// Writes a checkpoint again with other tensors.
fn resave(checkpoints: &Path, manifest: &Manifest, state: &[Tensor]) {
    let manifest = manifest.clone();
    let facts = Facts {
        experiment: manifest.experiment,
        step: manifest.step,
        tokens: manifest.tokens,
        updates: manifest.updates,
        ledger: manifest.ledger,
        numerics: manifest.numerics,
        created_by: manifest.created_by,
        state_root: None,
    };
    runner::store::save(checkpoints, state, &facts).expect("saved");
}

#[test]
fn hellaswag_divides_by_characters_as_lm_eval_does() {
    let lab = Lab::new();
    let tasks = case("hellaswag_nonascii.jsonl");
    let arguments = ["--task", "hellaswag", "--data", &tasks, "--json", "--set", "device.kind=cpu"];
    let finished = lab.verb("eval", &case("hf_uniform"), &arguments);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let scores: Value = serde_json::from_str(&finished.stdout).expect("JSON");
    let score = |name: &str| scores[name].as_f64().unwrap_or_else(|| panic!("{name} in {scores}"));
    assert_eq!(score("hellaswag_acc_norm"), 1.0);
    assert_eq!((score("hellaswag_acc"), score("hellaswag_acc_bytes")), (0.0, 0.0));
}

#[test]
fn files_that_are_no_models_are_said_to_be_what_they_are() {
    let lab = Lab::new();
    let path = lab.path("model.bin");
    for (bytes, says) in [
        (
            &b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 548118077\n"[..],
            "Git LFS pointer",
        ),
        (b"<!DOCTYPE html>\n<html></html>\n", "it is a web page"),
        (b"\x1f\x8b\x08\0\0\0\0\0", "compressed with gzip"),
        (b"\x28\xb5\x2f\xfd\0\0", "compressed with zstd"),
        (b"PK\x03\x04\0\0\0\0", "a file of PyTorch"),
        (b"\x80\x02\x8a\nl\xfc", "from transformers import GPT2LMHeadModel"),
        (b"GGUF\x03\0\0\0", "a model in GGUF"),
        (b"", "it is empty"),
        (b"{\"model_type\": \"gpt2\"}", "give the folder"),
        (b"\x88\xd8\x34\x01\x01\0\0\0", "it begins with the bytes 88 d8 34 01"),
    ] {
        std::fs::write(&path, bytes).expect("writable");
        refused(&lab, text(&path), &["model.bin` is no model: ", says]);
    }
    let weights = lab.path("lone.safetensors");
    std::fs::copy(case("hf_good/model.safetensors"), &weights).expect("copied");
    refused(&lab, text(&weights), &["give the folder with its `config.json`"]);
    refused(&lab, text(&lab.path("")), &["it is a folder without `config.json`"]);

    train(&lab, &case("hf_good")).root();
    let run = lab.path("tuned");
    std::fs::rename(&run, lab.path("finished")).expect("renamed");
    let of_a_run = train(&lab, text(&lab.path("finished")));
    of_a_run.assert_fails(2, &["it is the folder of a run", "runner export"]);
    let checkpoint = lab.path("finished/checkpoints/step_00000002");
    let says = ["it is a checkpoint of a run", "--checkpoint"];
    let measured = |path: &Path| lab.finish(&["eval", text(path), "--task", "val"]);
    measured(&checkpoint).assert_fails(1, &says);
    refused(&lab, text(&checkpoint.join("state.safetensors")), &says);
    // Training starts from it.
    train(&lab, text(&checkpoint)).root();
}

#[test]
fn a_pipe_is_refused_without_waiting_for_it() {
    let lab = Lab::new();
    let pipe = lab.path("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo");
    assert!(made.success());
    refused(&lab, text(&pipe), &["pipe` is no model: it is a pipe"]);
}

#[test]
fn weights_in_other_files_are_refused_by_name_with_the_command_that_converts_them() {
    let lab = Lab::new();
    let folder = copy(&lab, "hf_good");
    std::fs::rename(folder.join("model.safetensors"), folder.join("pytorch_model.bin")).expect("renamed");
    let command = format!("M.from_pretrained('{0}').save_pretrained('{0}/safetensors')", folder.display());
    refused(&lab, text(&folder), &["its weights are in `pytorch_model.bin`", &command]);
    std::fs::remove_file(folder.join("pytorch_model.bin")).expect("removable");
    refused(&lab, text(&folder), &["it has no `model.safetensors`"]);
    let pointer = b"version https://git-lfs.github.com/spec/v1\n";
    std::fs::write(folder.join("model.safetensors"), pointer).expect("writable");
    refused(&lab, text(&folder), &["model.safetensors` is no model: it is a Git LFS pointer"]);
}

#[test]
fn files_that_are_not_what_their_index_says_are_refused() {
    let lab = Lab::new();
    let folder = copy(&lab, "hf_sharded");
    let index = folder.join("model.safetensors.index.json");
    let whole = std::fs::read_to_string(&index).expect("readable");
    let (first, second) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    let swapped = whole.replacen(second, first, 1);
    assert_ne!(swapped, whole);
    std::fs::write(&index, swapped).expect("writable");
    damaged(&lab, text(&folder), &["index.json`: `", "though it is listed there"]);
    std::fs::write(&index, whole.replace(second, "../hf_good/model.safetensors")).expect("writable");
    refused(&lab, text(&folder), &["expected the name of a file"]);
    std::fs::write(&index, whole).expect("writable");
    std::fs::remove_file(folder.join(second)).expect("removable");
    refused(&lab, text(&folder), &["cannot read `", second]);
}

#[test]
fn the_text_that_a_model_without_a_run_is_measured_on_is_named() {
    let lab = Lab::new();
    let finished = eval(&lab, &case("hf_good"), &["--json"]);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    assert!(finished.stderr.contains("built-in text `kjv`"), "{}", finished.stderr);
    let value: Value = serde_json::from_str(&finished.stdout).expect("JSON");
    assert_eq!(value["val_data"], "kjv");
}

#[test]
fn a_file_or_folder_of_the_same_name_does_not_hide_a_run() {
    let lab = Lab::new();
    train(&lab, &case("hf_good")).root();
    let here = lab.path("here");
    std::fs::create_dir(&here).expect("a folder");
    let show = |argument: &str| {
        let mut command = lab.command(&["eval", argument, "--json", "--runs"]);
        let arguments = ["--set", "eval.val_tokens=256", "--set", "device.kind=cpu"];
        command.arg(lab.path("")).args(arguments).current_dir(&here);
        Finished::from(command.output().expect("the program starts"))
    };
    let alone = show("tuned");
    assert_eq!((alone.code, alone.stderr.contains("./tuned")), (Some(0), false), "{}", alone.stderr);
    std::fs::write(here.join("tuned"), "notes").expect("writable");
    let beside_a_file = show("tuned");
    assert_eq!(beside_a_file.stdout, alone.stdout);
    assert!(beside_a_file.stderr.contains("`./tuned` is the file or folder"), "{}", beside_a_file.stderr);
    show("./tuned").assert_fails(1, &["is no model: it begins with the bytes"]);
    std::fs::remove_file(here.join("tuned")).expect("removable");
    std::fs::create_dir(here.join("tuned")).expect("a folder");
    assert_eq!(show("tuned").stdout, alone.stdout);
}

#[test]
fn a_model_of_other_tokens_is_refused_unless_the_tokenizer_is_named() {
    let lab = Lab::new();
    let folder = copy(&lab, "hf_good");
    let write = |name: &str, content: &str| std::fs::write(folder.join(name), content).expect("writable");
    let experiment = lab.path("unnamed.toml");
    let unnamed = format!(
        "[model]\ninit = '{}'\n[data]\ncorpus = 'kjv'\n[batch]\nmicro = 2\nseq_len = 64\n\
         [schedule]\nsteps = 2\n[eval]\nevery = 0\n[device]\nkind = 'cpu'\n",
        folder.display()
    );
    std::fs::write(&experiment, unnamed).expect("writable");
    let train = |more: &[&str]| lab.run(text(&experiment), more);
    let refused = |says: &str| {
        let hint = "--set data.tokenizer=gpt2";
        for finished in [sample(&lab, text(&folder), &[]), eval(&lab, text(&folder), &["--json"])] {
            finished.assert_fails(1, &[says, hint]);
            assert_eq!(finished.stdout, "");
        }
        train(&[]).assert_fails(2, &[says, hint]);
        assert!(!lab.path("unnamed").exists(), "a folder was made");
        let named = eval(&lab, text(&folder), &["--set", "data.tokenizer=byte"]);
        named.assert_says(&["val_loss", LOSS]);
    };
    write("tokenizer_config.json", r#"{"tokenizer_class": "LlamaTokenizer"}"#);
    refused("its `tokenizer_config.json` says \"LlamaTokenizer\", which is not GPT-2's");
    write("tokenizer.json", r#"{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}"#);
    refused("its `tokenizer.json` has 1 token, not those of GPT-2");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::remove_file(folder.join(name)).expect("removable");
    }
    // The vocabulary of bytes alone says which tokenizer it is, in training too.
    eval(&lab, text(&folder), &[]).assert_says(&["val_loss", LOSS]);
    train(&[]).root();
    let resolved = std::fs::read_to_string(lab.path("unnamed/experiment.toml")).expect("resolved");
    let line = resolved.lines().find(|line| line.starts_with("tokenizer = ")).expect("a tokenizer");
    assert!(line.contains("\"byte\"") && line.ends_with("# from model.init"), "{line}");
    let too_many = train(&["--name", "many", "--set", "data.tokenizer=gpt2"]);
    too_many
        .assert_fails(2, &["a vocabulary of 257 is too small", "has room for the tokenizer \"byte\" alone"]);

    // One of another size is known by the files of an export, and by nothing else.
    let wide = ["model.vocab=300", "schedule.steps=1", "schedule.warmup_steps=0"];
    let wide: Vec<&str> = wide.iter().flat_map(|set| ["--set", *set]).collect();
    lab.run("experiments/ci.toml", &wide).root();
    let exported = lab.verb("export", "ci", &["--format", "hf"]);
    exported.assert_says(&["hf_fp32"]);
    let exported = PathBuf::from(exported.stdout.trim());
    eval(&lab, text(&exported), &[]).assert_says(&["val_loss"]);
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::remove_file(exported.join(name)).expect("removable");
    }
    let says = ["its vocabulary of 300 is of no tokenizer here", "--set data.tokenizer"];
    eval(&lab, text(&exported), &[]).assert_fails(1, &says);
    eval(&lab, text(&exported), &["--set", "data.tokenizer=byte"]).assert_says(&["val_loss"]);
}
