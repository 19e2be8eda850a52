//! `runner eval` with the tasks of lm-eval, and of many models at once.

use serde_json::Value;

use crate::support::{Finished, Lab, sets};

const UNIFORM: &str = "tests/cases/hf_uniform";
const CI: &str = "experiments/ci.toml";

fn fixture(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(format!("tests/fixtures/{name}.jsonl")).expect("a fixture");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn json(finished: &Finished) -> Vec<Value> {
    finished.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Where every byte costs ln 257, each choice costs its bytes and the space before it.
fn picked(choices: &[&str], label: usize) -> [bool; 2] {
    let cost = |choice: &str| (choice.len() + 1) as f64;
    let a_char = |choice: &str| cost(choice) / choice.chars().count() as f64;
    let lowest = |of: &dyn Fn(&str) -> f64| {
        (1..choices.len()).fold(0, |best, i| if of(choices[i]) < of(choices[best]) { i } else { best })
    };
    [lowest(&cost) == label, lowest(&a_char) == label]
}

fn shares(decided: &[[bool; 2]]) -> [Option<f64>; 2] {
    let share = |i: usize| decided.iter().filter(|right| right[i]).count() as f64 / decided.len() as f64;
    [Some(share(0)), Some(share(1))]
}

#[test]
fn a_model_that_knows_nothing_scores_what_the_lengths_of_the_answers_say() {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let words: Vec<usize> = fixture("lambada")
        .iter()
        .map(|line| text(&line["text"]).rsplit(' ').next().expect("a word").len() + 1)
        .collect();
    let mean = words.iter().sum::<usize>() as f64 / words.len() as f64;
    let arc: Vec<[bool; 2]> = fixture("arc_easy")
        .iter()
        .map(|line| {
            let list = |of: &str| -> Vec<&str> {
                line["choices"][of].as_array().expect("a list").iter().filter_map(Value::as_str).collect()
            };
            let label = list("label").iter().position(|label| *label == line["answerKey"]);
            picked(&list("text"), label.expect("a label"))
        })
        .collect();
    let piqa: Vec<[bool; 2]> = fixture("piqa")
        .iter()
        .map(|line| {
            let solutions = [text(&line["sol1"]), text(&line["sol2"])];
            let label = line["label"].as_u64().expect("a label") as usize;
            picked(&[&solutions[0], &solutions[1]], label)
        })
        .collect();

    let lab = Lab::new();
    let file = |name: &str| format!("{name}=tests/fixtures/{name}.jsonl");
    let details = lab.path("details.jsonl").display().to_string();
    let [lambada, arc_easy, piqa_file] = ["lambada", "arc_easy", "piqa"].map(file);
    let tasks = ["--task", &piqa_file, "--task", &lambada, "--task", &arc_easy, "--details", &details];
    let measured = lab.done(&[&["eval", UNIFORM, "--json"], &tasks[..]].concat());
    let [scores] = &json(&measured)[..] else { panic!("one line: {}", measured.stdout) };
    assert_eq!([0, 1].map(|i| scores[["arc_easy_acc", "arc_easy_acc_norm"][i]].as_f64()), shares(&arc));
    assert_eq!([0, 1].map(|i| scores[["piqa_acc", "piqa_acc_norm"][i]].as_f64()), shares(&piqa));
    assert_eq!(scores["lambada_acc"].as_f64(), Some(0.0), "of equal logits the first is not the word's");
    let perplexity = scores["lambada_perplexity"].as_f64().expect("a number");
    assert!(
        (libm::log(perplexity) / (mean * libm::log(257.0)) - 1.0).abs() < 1e-6,
        "{perplexity}, mean {mean}"
    );
    let counts = ["lambada_tasks", "arc_easy_tasks", "piqa_tasks"].map(|name| scores[name].as_u64());
    assert_eq!(counts, [words.len(), arc.len(), piqa.len()].map(|count| Some(count as u64)));
    assert!(scores["val_loss"].is_null() && scores["hellaswag"].is_null(), "{scores}");

    let decisions = std::fs::read_to_string(&details).expect("details");
    assert_eq!(decisions.lines().count(), words.len() + arc.len() + piqa.len());
    let printed = lab.done(&[&["eval", UNIFORM], &tasks[..6]].concat()).stdout;
    let names: Vec<&str> = printed.lines().filter_map(|line| line.split(' ').next()).collect();
    let expected = [
        "piqa_acc",
        "piqa_acc_norm",
        "lambada_acc",
        "lambada_perplexity",
        "arc_easy_acc",
        "arc_easy_acc_norm",
    ];
    assert_eq!(names, expected);
    assert!(printed.contains(&format!("{} tasks", piqa.len())), "{printed}");
}

#[test]
fn tasks_that_cannot_be_scored_are_refused_by_file_line_and_field() {
    let lab = Lab::new();
    let eval = |arguments: &[&str]| lab.finish(&[&["eval", UNIFORM], arguments].concat());
    eval(&["--task", "piqa"]).assert_fails(2, &["`--task piqa` needs its file", "`--task piqa=FILE`"]);
    eval(&["--task", "arc"]).assert_fails(2, &["`val`, `hellaswag`, `lambada`, `arc_easy`, `piqa`"]);
    eval(&["--task", "piqa="]).assert_fails(2, &["there is no file behind `=`"]);
    eval(&["--task", "piqa=a", "--task", "piqa=b"]).assert_fails(2, &["`--task piqa` is given twice"]);
    eval(&["--task", "val", "--task", "piqa", "--data", "a"])
        .assert_fails(2, &["`--task NAME=FILE` for each"]);
    eval(&["--task", "piqa=a", "--data", "b"]).assert_fails(2, &["`--data` is the file of one `--task`"]);
    eval(&["--task", "piqa", "--data", "nowhere"])
        .assert_fails(1, &["cannot read `nowhere`", "data set `baber/piqa`"]);
    eval(&["--task", "piqa=tests/fixtures/arc_easy.jsonl"]).assert_fails(
        1,
        &[
            "arc_easy.jsonl` line 1 is not a PIQA task: the field `sol1` is missing",
            "`question`, `choices`, `answerKey` are the fields of `--task arc_easy`",
        ],
    );
    let table = lab.path("piqa.csv");
    std::fs::write(&table, "goal,sol1,sol2,label\na,b,c,0\nd,e,f,1\n").expect("writable");
    let task = format!("piqa={}", table.display());
    eval(&["--task", &task]).assert_fails(1, &["piqa.csv` is a table of comma-separated values", "csv.Dict"]);
    eval(&["--task", "piqa=/dev/zero"]).assert_fails(1, &["cannot read `/dev/zero`: it is a device"]);
    eval(&["--task", "val", "--details", "d"]).assert_fails(2, &["`--details` needs HellaSwag or a task"]);
    let two = ["eval", UNIFORM, UNIFORM, "--task", "piqa=tests/fixtures/piqa.jsonl", "--details", "d"];
    lab.finish(&two).assert_fails(2, &["`--details` is for one model"]);
    eval(&["--checkpoint", "all"]).assert_fails(2, &["is a model, not a run: it has no checkpoints"]);
    eval(&["--checkpoint", "last"]).assert_fails(2, &["expected a step or `all`"]);
}

#[test]
fn every_checkpoint_of_a_run_has_its_line_and_the_numbers_it_has_alone() {
    let lab = Lab::new();
    lab.run(CI, &[]).root();
    let piqa = "piqa=tests/fixtures/piqa.jsonl";
    let tasks = ["--task", "val", "--task", piqa];
    let all = lab.verb("eval", "ci", &[&["--checkpoint", "all", "--json"], &tasks[..]].concat());
    assert_eq!(all.code, Some(0), "{}", all.stderr);
    let lines = json(&all);
    let steps: Vec<u64> = lines.iter().filter_map(|line| line["step"].as_u64()).collect();
    assert_eq!(steps, [5, 10, 15, 20]);
    for line in &lines {
        let step = line["step"].to_string();
        let alone = lab.verb("eval", "ci", &[&["--checkpoint", &step, "--json"], &tasks[..]].concat());
        assert_eq!(json(&alone), std::slice::from_ref(line));
    }
    let losses: Vec<f64> = lines.iter().filter_map(|line| line["val_loss"].as_f64()).collect();
    assert!(losses.is_sorted_by(|a, b| a > b), "{losses:?}");
    let recorded: Vec<Value> =
        lab.metrics("ci").iter().filter(|row| row["val_loss"].is_f64()).cloned().collect();
    assert_eq!(recorded.last().map(|row| &row["val_loss"]), lines.last().map(|line| &line["val_loss"]));

    // Two models as a table; then one checkpoint is damaged, and the others are still measured.
    let run = lab.path("ci").display().to_string();
    let models = ["eval", &run, UNIFORM, "--task", "val", "--set", "eval.val_tokens=256"];
    let table = lab.done(&models);
    let rows: Vec<Vec<&str>> = table.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["model", "step", "val_loss", "val_bits_per_byte"]);
    assert_eq!((rows[1][0], rows[1][1]), (run.as_str(), "20"));
    assert_eq!(rows[2][..3], [UNIFORM, "-", "5.549076"]);
    assert!(table.stderr.contains("measured 2 models on"), "{}", table.stderr);

    let state = lab.path("ci/checkpoints/step_00000010/state.safetensors");
    std::fs::File::options().write(true).open(state).and_then(|file| file.set_len(999)).expect("writable");
    let rest = lab.verb("eval", "ci", &["--checkpoint", "5,10,20,21", "--task", "val"]);
    rest.assert_fails(5, &["step_00000010", "step_00000021", "2 of 4 models could not be measured"]);
    for verb in ["eval", "sample"] {
        lab.verb(verb, "ci", &["--checkpoint", "10"]).assert_fails(5, &["step_00000010", "cut short"]);
    }
    let steps: Vec<&str> = rest.stdout.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert_eq!(steps, ["step", "5", "20"]);
}

#[test]
fn tokens_that_the_tokenizer_does_not_have_give_no_bits_a_byte() {
    let lab = Lab::new();
    lab.run(CI, &sets(&["model.vocab=300", "schedule.steps=1", "schedule.warmup_steps=0"])).root();
    let mut shard = vec![0; 1024];
    for (at, word) in [20_240_520u32, 1, 500].into_iter().enumerate() {
        shard[4 * at..4 * at + 4].copy_from_slice(&word.to_le_bytes());
    }
    let measure = |largest: u16| {
        let tokens = (0..500u16).map(|i| if i == 10 { largest } else { 97 + i % 26 });
        let bytes: Vec<u8> = shard.iter().copied().chain(tokens.flat_map(u16::to_le_bytes)).collect();
        std::fs::write(lab.path("padded.bin"), bytes).expect("writable");
        let file = lab.path("padded.bin").display().to_string();
        let measured = lab.verb("eval", "ci", &["--json", "--task", "val", "--data", &file]);
        assert_eq!(measured.code, Some(0), "{}", measured.stderr);
        (json(&measured).remove(0), measured.stderr)
    };
    let (whole, said) = measure(256);
    assert!(whole["val_bits_per_byte"].is_f64() && whole["val_bytes"].is_u64(), "{whole}");
    assert!(!said.contains("another tokenizer"), "{said}");
    let (padded, said) = measure(280);
    assert!(padded["val_loss"].is_f64(), "{padded}");
    assert!(padded["val_bits_per_byte"].is_null() && padded["val_bytes"].is_null(), "{padded}");
    assert!(said.contains("may be of another tokenizer") && said.contains("largest token is 280"), "{said}");

    // Of a source of a mixture they are null as well, and not left out.
    let mixed = ["data.mix.new.corpus=kjv_nt", "data.mix.new.weight=1", "data.mix.old.corpus=kjv_ot"];
    let short = ["data.mix.old.weight=1", "model.vocab=300", "schedule.steps=1", "schedule.warmup_steps=0"];
    lab.run(CI, &[&["--name", "mixed"][..], &sets(&mixed), &sets(&short)].concat()).root();
    let val = format!("data.mix.old.val={}", lab.path("padded.bin").display());
    let measured = lab.verb("eval", "mixed", &["--json", "--by-source", "--set", &val]);
    assert_eq!(measured.code, Some(0), "{}", measured.stderr);
    let of_sources = json(&measured).remove(0);
    assert!(of_sources["val_loss/old"].is_f64() && of_sources["val_bits_per_byte/new"].is_f64());
    assert_eq!(of_sources.get("val_bits_per_byte/old"), Some(&Value::Null), "{of_sources}");
}

/// Needs Python with lm-eval, tokenizers, safetensors and numpy:
/// `RUNNER_TEST_PYTHON=python cargo test --release --test integration eval -- --ignored`
#[test]
#[ignore = "needs lm-eval"]
fn lambada_arc_easy_and_piqa_are_those_of_lm_eval() {
    let finished = std::process::Command::new(crate::python::python())
        .args(["tests/pytorch/tasks_lm_eval.py", env!("CARGO_BIN_EXE_runner")])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("Python starts");
    let stderr = String::from_utf8_lossy(&finished.stderr);
    assert!(finished.status.success(), "{}{stderr}", String::from_utf8_lossy(&finished.stdout));
    print!("{}", String::from_utf8_lossy(&finished.stdout));
}
