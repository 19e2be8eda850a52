//! Shards under training: faults are an error before the first step, or a warning that names the shard.

use std::path::Path;
use std::time::Duration;

use crate::process::{Running, wait_until};
use crate::support::Lab;
use crate::verify_claims::reseal;

/// llm.c's header and tokens of one letter each, always the same for a seed.
fn shard(seed: u32, tokens: usize) -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    for (at, word) in [20_240_520, 1, tokens as u32].into_iter().enumerate() {
        bytes[4 * at..4 * at + 4].copy_from_slice(&word.to_le_bytes());
    }
    let letter = |i: u32| 97 + (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 9) % 26;
    bytes.extend((0..tokens as u32).flat_map(|i| (letter(i) as u16).to_le_bytes()));
    bytes
}

fn experiment(lab: &Lab, name: &str, data: &str) -> String {
    let text = format!(
        "[model]\nlayers = 1\nheads = 2\nchannels = 8\n[data]\n{data}\n[batch]\nmicro = 2\nseq_len = \
         64\ntokens = 128\n\
         [schedule]\nsteps = 4\nlearning_rate = 1e-3\nwarmup_steps = 0\n[eval]\nevery = 2\nval_tokens = 256\n\
         [precision]\ncompute = \"fp32\"\n[device]\nkind = \"cpu\"\n"
    );
    std::fs::write(lab.path(name), text).expect("writable");
    lab.path(name).display().to_string()
}

fn write(lab: &Lab, name: &str, bytes: &[u8]) {
    std::fs::write(lab.path(name), bytes).expect("writable");
}

/// A lab with `a_train_0.bin`, `a_val_0.bin` and `a.toml` over them.
fn lab() -> (Lab, String) {
    let lab = Lab::new();
    write(&lab, "a_train_0.bin", &shard(1, 4000));
    write(&lab, "a_val_0.bin", &shard(2, 1000));
    let toml =
        experiment(&lab, "a.toml", "train = \"a_train_*.bin\"\nval = \"a_val_*.bin\"\ntokenizer = \"byte\"");
    (lab, toml)
}

#[test]
fn validation_data_that_are_trained_on_are_named() {
    let (lab, toml) = lab();
    let done = lab.run(&toml, &["--set", &format!("data.train={}", lab.path("a_*.bin").display())]);
    done.root();
    assert!(done.stderr.contains("same content in both: `a_val_0.bin`"), "{}", done.stderr);
    // By content, whatever the name.
    write(&lab, "a_train_1.bin", &shard(2, 1000));
    let done = lab.run(&toml, &["--name", "copied"]);
    done.root();
    assert!(done.stderr.contains("`a_val_0.bin` is `a_train_1.bin`"), "{}", done.stderr);
}

#[test]
fn a_shard_too_short_for_a_sequence_is_named_and_no_part_of_the_training_tokens() {
    let (lab, toml) = lab();
    write(&lab, "a_train_1.bin", &shard(3, 20));
    let done = lab.run(&toml, &["--set", "eval.val_tokens=2048"]);
    done.root();
    for says in [
        "4,000 training tokens",
        "`a_train_1.bin` (20 tokens)",
        "`eval.val_tokens` asks for 2,048 tokens",
        "hold 960",
    ] {
        assert!(done.stderr.contains(says), "`{says}` is not in:\n{}", done.stderr);
    }
}

#[test]
fn a_token_outside_the_vocabulary_is_found_before_the_first_step() {
    let (lab, toml) = lab();
    // The last token, which no sequence reads.
    let mut bytes = shard(1, 4000);
    bytes[1024 + 2 * 3999..].copy_from_slice(&300u16.to_le_bytes());
    write(&lab, "a_train_0.bin", &bytes);
    lab.run(&toml, &[]).assert_fails(1, &["a_train_0.bin` holds token 300 at position 3999 (byte 9022)"]);
    assert!(!lab.path("a").exists(), "nothing has begun");
}

#[test]
fn a_shard_that_is_cut_while_a_run_reads_it_ends_the_run_with_its_name() {
    let (lab, toml) = lab();
    let runs = lab.path("").display().to_string();
    let endless = ["run", &toml, "--runs", &runs, "--set", "schedule.steps=1000000", "--set", "eval.every=0"];
    let running = Running::start("the run", &mut lab.command(&endless));
    let rows = || std::fs::read_to_string(lab.path("a/metrics.jsonl")).map_or(0, |rows| rows.lines().count());
    wait_until("two rows", Duration::from_secs(60), || rows() >= 2);
    let shard = std::fs::File::options().write(true).open(lab.path("a_train_0.bin")).expect("there");
    shard.set_len(1100).expect("writable");
    let ended = running.end(Duration::from_secs(60));
    ended.assert_fails(1, &["a_train_0.bin` changed while it was read: it had 9024 bytes", "1100 bytes now"]);
}

#[test]
fn a_recorded_tokenizer_is_held_to_and_one_that_is_not_recorded_is_guessed_at() {
    let (lab, toml) = lab();
    write(&lab, "x.txt", &b"the text ".repeat(200));
    let out = lab.path("b").display().to_string();
    let input = lab.path("x.txt").display().to_string();
    lab.done(&["data", "prepare", "--tokenizer", "byte", "--val-tokens", "200", "--out", &out, &input]);
    let prepared = format!("data.train={}", lab.path("b/x_train_*.bin").display());
    lab.run(&toml, &["--name", "same", "--set", &prepared]).root();
    let gpt2 = ["--set", "data.tokenizer=gpt2", "--set", "model.vocab=50304"];
    lab.run(&toml, &[&["--set", &prepared], &gpt2[..]].concat()).assert_fails(
        1,
        &["was made with the tokenizer `byte`", "expected `gpt2`", "data.tokenizer = \"byte\""],
    );
    let done = lab.run(&toml, &gpt2);
    done.root();
    assert!(done.stderr.contains("`a_train_0.bin` (largest token 122, as with `byte`)"), "{}", done.stderr);
}

#[test]
fn verify_reads_the_validation_shards_and_hellaswag_as_it_reads_training_shards() {
    let (lab, toml) = lab();
    let task = "{\"ind\": 0, \"activity_label\": \"a\", \"ctx\": \"b c\", \"label\": 0, \
                \"endings\": [\"d\", \"e\", \"f\", \"g\"]}\n";
    write(&lab, "h.jsonl", task.as_bytes());
    let hellaswag = format!("eval.hellaswag={}", lab.path("h.jsonl").display());
    lab.run(&toml, &["--set", &hellaswag]).root();
    lab.verify("a", &[]).assert_says(&["evaluation data", "1 shard, 1,000 tokens, h.jsonl"]);
    for (name, bytes, key) in [
        ("a_val_0.bin", shard(5, 1000), "data.val_shard.00000"),
        ("h.jsonl", task.replace("\"g\"", "\"h\"").into_bytes(), "data.hellaswag"),
    ] {
        let before = std::fs::read(lab.path(name)).expect("readable");
        write(&lab, name, &bytes);
        let found = lab.verify("a", &[]);
        assert_eq!(found.code, Some(5), "{name}: {}{}", found.stdout, found.stderr);
        let all = format!("{}{}", found.stdout, found.stderr);
        assert!(all.contains("not what the run was measured on") && all.contains(key), "{name}: {all}");
        write(&lab, name, &before);
    }
    lab.verify("a", &[]).assert_says(&["evaluation data"]);
    // The digest of the validation tokens says nothing of HellaSwag's file.
    reseal(&lab.path("a"), |lock| {
        lock.environment.retain(|key, _| !key.starts_with("data.val_shard.") && key != "data.hellaswag");
    });
    crate::verify::assert_finds(&lab, "a", &[], &["FAILED  evaluation data: ", "data.hellaswag)"]);
}

#[test]
fn pipes_are_refused_where_a_file_is_needed_and_names_may_have_spaces_and_accents() {
    let (lab, toml) = lab();
    let pipe = lab.path("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    for key in ["data.train", "eval.hellaswag"] {
        lab.run(&toml, &["--set", &format!("{key}={}", pipe.display())])
            .assert_fails(1, &["pipe` is a pipe", "write it to a file first"]);
    }
    std::fs::copy(&toml, lab.path("mon essai été (2).toml")).expect("writable");
    let copy = lab.path("mon essai été (2).toml").display().to_string();
    lab.run(&copy, &[]).root();
    assert!(lab.path("mon essai été _2_/lock.toml").is_file());
    lab.verify("mon essai été _2_", &[]).assert_says(&["evaluation data"]);
}

#[test]
fn overwriting_and_resuming_leave_alone_what_runner_did_not_write() {
    let (lab, toml) = lab();
    lab.run(&toml, &[]).root();
    write(&lab, "a/notes.txt", b"mine");
    lab.run(&toml, &["--overwrite"]).assert_fails(1, &["holds what runner did not write: `notes.txt`"]);
    assert!(Path::new(&lab.path("a/ledger.jsonl")).exists());
    std::fs::remove_file(lab.path("a/notes.txt")).expect("ours");
    // A finished run has nothing to do: this one lacks its end.
    std::fs::remove_dir_all(lab.path("a/checkpoints/step_00000004")).expect("the last checkpoint");
    std::fs::create_dir(lab.path("a/checkpoints/step_00000099")).expect("a folder");
    lab.resume("a", &[])
        .assert_fails(1, &["step_00000099` has the name of a checkpoint, but is none: it is empty"]);
    std::fs::remove_dir(lab.path("a/checkpoints/step_00000099")).expect("ours");
    std::fs::create_dir_all(lab.path("b/plots")).expect("a folder");
    write(&lab, "b/plots/me.png", b"mine");
    lab.run(&toml, &["--overwrite", "--name", "b"]).assert_fails(1, &["b` is not a run"]);
    assert!(lab.path("b/plots/me.png").exists());
    lab.run(&toml, &["--overwrite"]).root();
}

#[test]
fn a_run_that_its_disk_has_no_room_for_is_refused_before_its_first_step() {
    let (lab, toml) = lab();
    let endless = [
        "--set",
        "schedule.steps=1000000000000",
        "--set",
        "checkpoint.every=1",
        "--set",
        "checkpoint.keep_last=0",
    ];
    lab.run(&toml, &endless).assert_fails(1, &["its disk has", "checkpoint.keep_last"]);
    assert!(!lab.path("a/lock.toml").exists());
}
