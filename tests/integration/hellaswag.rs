//! HellaSwag during training and alone: the same scores, from both file formats, and no bit of training
//! changed.

use serde_json::Value;

use crate::support::Lab;

const CI: &str = "experiments/ci.toml";
const GOLDEN: &str = include_str!("../golden/ci_cpu.root");
const SCORES: [&str; 4] = ["hellaswag", "hellaswag_acc", "hellaswag_acc_norm", "hellaswag_acc_bytes"];

/// Made-up tasks in which shorter endings, longer endings and true ones compete.
fn tasks() -> Vec<(String, [String; 4], usize)> {
    let words = [
        "the king",
        "of Judah",
        "went up",
        "and smote",
        "them all",
        "in that day",
        "unto the LORD",
        "zzz qqq",
    ];
    let word = |i: usize| words[i % words.len()];
    (0..30)
        .map(|i| {
            let ending =
                |e: usize| (0..=(i + e) % 3).map(|j| word(i * 3 + e * 5 + j)).collect::<Vec<_>>().join(" ");
            (
                format!("And it came to pass that {} {}", word(i), word(i + 3)),
                [0, 1, 2, 3].map(ending),
                (i * 7) % 4,
            )
        })
        .collect()
}

pub fn jsonl() -> String {
    let line = |(ctx, endings, label): (String, [String; 4], usize)| {
        serde_json::json!({"activity_label": "War", "ctx": ctx, "endings": endings, "label": label})
            .to_string()
            + "\n"
    };
    tasks().into_iter().map(line).collect()
}

/// The same tasks as llm.c's script would write them, with a token a byte.
fn eval_bin() -> Vec<u8> {
    let mut stream: Vec<u16> = Vec::new();
    let mut longest = 0;
    for (i, (ctx, endings, label)) in tasks().into_iter().enumerate() {
        let mut example = vec![u16::MAX, 0, i as u16, label as u16, 4];
        for text in std::iter::once(ctx).chain(endings.map(|ending| format!(" {ending}"))) {
            example.push(text.len() as u16);
            example.extend(text.bytes().map(u16::from));
        }
        example[1] = 2 * example.len() as u16;
        longest = longest.max(i32::from(example[1]));
        stream.extend(example);
    }
    let mut header = [0i32; 256];
    header[..4].copy_from_slice(&[20_240_522, 1, 30, longest]);
    header.iter().flat_map(|v| v.to_le_bytes()).chain(stream.iter().flat_map(|v| v.to_le_bytes())).collect()
}

/// A lab with both files, and a run of the CI experiment that scored the jsonl on its way.
fn trained() -> Lab {
    let lab = Lab::new();
    std::fs::write(lab.path("tasks.jsonl"), jsonl()).expect("writable");
    std::fs::write(lab.path("tasks.bin"), eval_bin()).expect("writable");
    let finished =
        lab.run(CI, &["--set", &format!("eval.hellaswag=\"{}\"", lab.path("tasks.jsonl").display())]);
    assert_eq!(finished.root(), GOLDEN.trim(), "HellaSwag changed the bits of training");
    lab
}

fn eval(lab: &Lab, file: &str, arguments: &[&str]) -> Value {
    let file = lab.path(file).display().to_string();
    let standard = ["--task", "hellaswag", "--data", &file, "--json"];
    let output = lab.verb("eval", "ci", &[&standard[..], arguments].concat());
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    serde_json::from_str(&output.stdout).expect("stdout is JSON")
}

#[test]
fn training_records_all_three_scores_and_eval_finds_the_same_alone() {
    let lab = trained();
    let rows = lab.metrics("ci");
    let scored: Vec<&Value> = rows.iter().filter(|row| row["hellaswag"].is_f64()).collect();
    assert_eq!(
        scored.iter().map(|row| row["step"].as_u64()).collect::<Vec<_>>(),
        [Some(0), Some(10), Some(20)]
    );
    let last = scored.last().expect("three rows");
    let alone = eval(&lab, "tasks.jsonl", &[]);
    for name in SCORES {
        assert_eq!(alone[name], last[name], "{name}");
    }
    let main_log = std::fs::read_to_string(lab.path("ci/main.log")).expect("main.log");
    assert!(main_log.contains("s:20 eval:"), "{main_log}");

    // The default is what the experiment evaluates, and an older checkpoint is found by its step.
    let all = lab.verb("eval", "ci", &["--json"]);
    let all: Value = serde_json::from_str(&all.stdout).expect("stdout is JSON");
    assert_eq!((&all["val_loss"], &all["hellaswag"]), (&last["val_loss"], &last["hellaswag"]));
    assert_eq!(eval(&lab, "tasks.jsonl", &["--checkpoint", "10"])["hellaswag"], scored[1]["hellaswag"]);
}

#[test]
fn the_numbers_behind_each_decision_do_not_depend_on_the_batch_and_agree_between_formats() {
    let lab = trained();
    let details = |file: &str, micro: &str| -> Vec<Value> {
        let path = lab.path("details.jsonl");
        eval(&lab, file, &["--details", path.to_str().expect("UTF-8"), "--set", micro]);
        let text = std::fs::read_to_string(path).expect("details");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };
    let two = details("tasks.jsonl", "batch.micro=2");
    assert_eq!(two.len(), 30);
    for micro in ["batch.micro=1", "batch.micro=4"] {
        assert_eq!(details("tasks.jsonl", micro), two, "{micro}");
    }
    let from_bin = details("tasks.bin", "batch.micro=2");
    assert_eq!(from_bin.len(), 30);
    for (a, b) in two.iter().zip(&from_bin) {
        assert_eq!(a["hellaswag"], b["hellaswag"], "{a}");
        assert!(b.get("hellaswag_acc").is_none() && b.get("hellaswag_plain_acc").is_some(), "{b}");
    }
}

/// A missing file must not turn HellaSwag off without an error.
#[test]
fn a_missing_or_faulty_file_ends_a_run_before_its_folder_exists() {
    let lab = Lab::new();
    let file = lab.path("tasks.jsonl");
    let set = format!("eval.hellaswag=\"{}\"", file.display());
    lab.run(CI, &["--set", &set]).assert_fails(1, &["cannot read", "tasks.jsonl"]);
    std::fs::write(&file, jsonl().replacen("\"label\":3", "\"label\":9", 1)).expect("writable");
    lab.run(CI, &["--set", &set]).assert_fails(1, &["tasks.jsonl` line", "the label is 9"]);
    assert!(!lab.path("ci").exists());
}

#[test]
fn eval_refuses_what_it_cannot_measure() {
    let lab = Lab::new();
    lab.verb("eval", "ci", &[]).assert_fails(2, &["there is no run in"]);
    lab.run(CI, &["--set", "schedule.steps=1", "--set", "schedule.warmup_steps=1"]).root();
    lab.verb("eval", "ci", &["--task", "hellaswag"]).assert_fails(2, &["names no HellaSwag file", "--data"]);
    lab.verb("eval", "ci", &["--checkpoint", "7"]).assert_fails(2, &["step_00000007"]);
    lab.verb("eval", "ci", &["--set", "model.layers=3"]).assert_fails(5, &["`model.layers` = 2", "has 3"]);
    lab.verb("eval", "ci", &["--data", "x"]).assert_fails(2, &["--task"]);
}

/// Needs Python with lm-eval, safetensors and numpy:
/// `RUNNER_TEST_PYTHON=python cargo test --release --test integration lm_eval -- --ignored`
#[test]
#[ignore = "needs lm-eval"]
fn the_scores_are_those_of_lm_eval_beyond_ascii_too() {
    let finished = std::process::Command::new(crate::python::python())
        .args(["tests/pytorch/hellaswag_lm_eval.py", env!("CARGO_BIN_EXE_runner")])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("Python starts");
    let stderr = String::from_utf8_lossy(&finished.stderr);
    assert!(finished.status.success(), "{stderr}");
    print!("{}", String::from_utf8_lossy(&finished.stdout));
}
