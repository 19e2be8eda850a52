//! Every file of `tests/cases` that a person can hand to the program, the command for it, and the right
//! outcome: exit code, words, and what is left behind. Files that are easy to get wrong come here.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::support::{Finished, Lab};

const PREPARE: &str = "data prepare --tokenizer byte --val-tokens 0 --out OUT";
const SAMPLE: &str = "--tokens 8 --prompt ab --temperature 0";
const EVAL: &str = "--task val --set eval.val_tokens=256";

/// The inputs and flags after the command, the exit code, and words of stdout or stderr.
type Case = (&'static str, i32, &'static [&'static str]);

/// `runner data prepare`. Refused files leave nothing in the folder.
const TEXTS: &[Case] = &[
    ("pages.jsonl", 0, &["3 documents, 205 bytes of text, 208 tokens"]),
    ("plain.parquet", 0, &["3 documents, 205 bytes of text, 208 tokens"]),
    ("pages.json", 0, &["`pages.json` is a file of JSON lines", "3 documents", "208 tokens"]),
    ("pages_array.json", 1, &["`pages_array.json` is one JSON array", "--format jsonl -`"]),
    ("pages.csv", 1, &["`pages.csv` is a table of comma-separated values", "--format jsonl -`"]),
    ("--format text pages.csv", 0, &["1 document, 228 bytes of text"]),
    ("pages.html", 1, &["`pages.html` is a web page (HTML)", "`--format text` takes it as text"]),
    ("--format text pages.html", 0, &["1 document, 306 bytes of text"]),
    ("pages.gz", 0, &["3 documents, 205 bytes of text, 208 tokens"]),
    ("pages.jsonl.gz", 0, &["3 documents, 205 bytes of text, 208 tokens"]),
    ("--format jsonl pages.jsonl.gz", 0, &["3 documents, 205 bytes of text, 208 tokens"]),
    ("dictionary.parquet", 0, &["4 documents, 273 bytes of text, 277 tokens"]),
    ("crc.parquet", 1, &["`crc.parquet` is damaged", "the checksum of page 0 differs"]),
    ("checked_v2.parquet", 0, &["3 documents, 205 bytes of text, 208 tokens"]),
    ("--column page.body.text nested.parquet", 0, &["3 documents, 205 bytes of text, 208 tokens"]),
    ("--column page.body.text nested_null.parquet", 1, &["`nested_null.parquet`", "row 2"]),
    ("plain.parquet empty_part.parquet", 0, &["`empty_part.parquet` has no rows", "208 tokens"]),
    ("empty_part.parquet", 1, &["`empty_part.parquet` holds no text"]),
];

/// `runner sample` and `runner eval` of a Hugging Face folder, with the words of the second.
const MODELS: &[Case] = &[
    (
        "hf_good",
        0,
        &["5.547555  256 tokens", "8.003430  256 bytes", "val_loss is that of the built-in text `kjv`"],
    ),
    ("hf_fp16", 0, &["5.547556  256 tokens"]),
    ("hf_sharded", 0, &["5.547555  256 tokens"]),
    ("hf_uniform", 0, &["5.549076  256 tokens"]),
    ("hf_nan", 1, &["`transformer.h.0.mlp.c_fc.weight`", "model.safetensors`", "NaN at [3, 5], element 101"]),
    (
        "hf_extra",
        1,
        &["holds the tensor `transformer.h.0.attn.q_norm.weight`, which its model does not have"],
    ),
    ("hf_huge", 1, &["the validation loss is not finite (NaN)", "overflow"]),
];

/// `runner run`.
const EXPERIMENTS: &[Case] = &[
    ("init_nan.toml", 1, &["`transformer.h.0.mlp.c_fc.weight`", "NaN at [3, 5], element 101"]),
    ("init_extra.toml", 1, &["holds the tensor `transformer.h.0.attn.q_norm.weight`"]),
    ("nan.toml", 4, &["10 of 10 steps were skipped"]),
    ("short_shard.toml", 0, &["4,000 training tokens", "not read: `short_train_000000.bin` (20 tokens)"]),
    ("train_is_val.toml", 0, &["the validation data are trained on", "`same_val_000000.bin`"]),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases")
}

/// A command in the folder of the cases, with a scratch folder for `OUT`.
fn made(command: &str) -> (Lab, Finished) {
    let lab = Lab::new();
    let out = lab.path("out").display().to_string();
    let words: Vec<&str> =
        command.split(' ').map(|word| if word == "OUT" { out.as_str() } else { word }).collect();
    let output = lab.command(&words).current_dir(folder()).output().expect("the program starts");
    (lab, Finished::from(output))
}

#[track_caller]
fn assert_outcome(command: &str, finished: &Finished, code: i32, words: &[&str]) {
    let said = format!("{}{}", finished.stdout, finished.stderr);
    assert_eq!(finished.code, Some(code), "{command}: {said}");
    for word in words {
        assert!(said.contains(word), "{command}: `{word}` is not in {said}");
    }
}

#[test]
fn texts_are_read_for_what_they_are_or_refused_and_leave_nothing() {
    for (input, code, words) in TEXTS {
        let (lab, finished) = made(&format!("{PREPARE} {input}"));
        assert_outcome(input, &finished, *code, words);
        let left = std::fs::read_dir(lab.path("out")).map_or(0, Iterator::count);
        assert_eq!(left > 0, *code == 0, "{input}: {left} files");
    }
}

#[test]
fn models_are_measured_and_sampled_or_refused_by_tensor_and_element() {
    for (model, code, words) in MODELS {
        for json in ["", " --json"] {
            let (_, measured) = made(&format!("eval {model} {EVAL}{json}"));
            assert_eq!(measured.stdout.is_empty(), *code != 0, "{model}: {}", measured.stdout);
            if json.is_empty() || *code != 0 {
                assert_outcome(model, &measured, *code, words);
            }
            let (_, sampled) = made(&format!("sample {model} {SAMPLE}{json}"));
            assert_eq!(sampled.code, Some(*code), "{model}: {}", sampled.stderr);
            assert_eq!(sampled.stdout.is_empty(), *code != 0, "{model}: {}", sampled.stdout);
        }
    }
    let (_, scored) = made("eval hf_uniform --task hellaswag --data hellaswag_nonascii.jsonl --json");
    let scored: serde_json::Value = serde_json::from_str(&scored.stdout).expect("JSON");
    let scores = ["", "_acc", "_acc_norm", "_acc_bytes"].map(|score| format!("hellaswag{score}"));
    assert_eq!(
        scores.map(|score| scored[score].as_f64()),
        [Some(1.0 / 3.0), Some(0.0), Some(1.0), Some(0.0)]
    );
}

#[test]
fn experiments_say_what_is_odd_or_are_refused_and_leave_nothing() {
    for (file, code, words) in EXPERIMENTS {
        let (lab, finished) = made(&format!("run {file} --runs OUT"));
        assert_outcome(file, &finished, *code, words);
        let run = lab.path("out").join(file.trim_end_matches(".toml"));
        assert_eq!(run.exists(), *code != 1, "{file}");
        if *code == 4 {
            let (runs, name) = (lab.path("out").display().to_string(), file.trim_end_matches(".toml"));
            let shown = lab.done(&["show", name, "--runs", &runs]).stdout;
            assert!(shown.starts_with("run          nan, stopped\n"), "{shown}");
        }
    }
}

#[test]
fn no_case_is_left_out_of_the_lists() {
    let lists = [TEXTS, MODELS, EXPERIMENTS].concat();
    let named: BTreeSet<&str> = lists.iter().flat_map(|(input, ..)| input.split(' ')).collect();
    for entry in std::fs::read_dir(folder()).expect("the folder").map(|entry| entry.expect("an entry")) {
        let name = entry.file_name().into_string().expect("UTF-8");
        // Scripts that write the cases, shards that experiments name, and the tasks beside a model.
        let beside = [".py", ".bin", "hellaswag_nonascii.jsonl"].iter().any(|end| name.ends_with(end));
        assert!(beside || named.contains(name.as_str()), "`{name}` is in no list");
    }
}
