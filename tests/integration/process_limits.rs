//! Limits that a shell sets, and what a refused run leaves behind.

use std::path::Path;
use std::process::Command;

use crate::support::{Finished, Lab};

const CI: &str = "experiments/ci.toml";

/// The program in a shell whose files may have this many blocks of 512 bytes.
fn limited(lab: &Lab, blocks: u32, arguments: &[&str]) -> Finished {
    let program = lab.command(arguments);
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -f {blocks}; exec \"$@\""), "sh"]);
    command.arg(program.get_program()).args(program.get_args()).current_dir(env!("CARGO_MANIFEST_DIR"));
    Finished::from(command.output().expect("a shell"))
}

/// `ulimit -f` kills by a signal whoever does not expect it, in the middle of a write.
#[test]
fn a_limit_on_the_size_of_files_is_an_error_like_a_full_disk_and_the_run_goes_on_without_it() {
    let golden = include_str!("../golden/ci_cpu.root").trim();
    // Too small for metrics.parquet, and for the tensors of a checkpoint.
    for (blocks, file) in [(16, "metrics.parquet"), (400, "state.safetensors")] {
        let lab = Lab::new();
        let runs = lab.path("").display().to_string();
        let ended = limited(&lab, blocks, &["run", CI, "--runs", &runs]);
        ended.assert_fails(1, &["no space left to write", file, "`ulimit -f`"]);
        assert_eq!(lab.resume("ci", &[]).root(), golden);
        assert_eq!(lab.verify("ci", &[]).code, Some(0));
    }
    let lab = Lab::new();
    let text = lab.path("text.txt");
    std::fs::write(&text, "In the beginning was the Word. ".repeat(200)).expect("writable");
    let (text, out) = (text.display().to_string(), lab.path("out"));
    let prepare = ["data", "prepare", "--tokenizer", "byte", "--val-tokens", "0", "--out"];
    let ended = limited(&lab, 4, &[&prepare[..], &[&out.display().to_string(), &text]].concat());
    ended.assert_fails(1, &["out/text_train_000001.bin", "File too large"]);
    assert_eq!(left_in(&out), [""; 0]);
}

/// Names in a folder, or none where there is none.
fn left_in(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
    names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_run_that_is_refused_leaves_nothing_with_one_process_and_with_ranks() {
    let lab = Lab::new();
    let lock = "experiments/locks/ci_cuda_hopper.lock.toml";
    for ranks in ["1", "2"] {
        let runs = lab.path("runs/deeper");
        let arguments =
            ["run", CI, "--ranks", ranks, "--runs", &runs.display().to_string()].map(str::to_owned);
        for (more, code) in [
            (&["--lock", lock][..], 5),
            (&["--set", "model.init=/nonexistent"], 1),
            (&["--set", "eval.hellaswag=/nonexistent"], 1),
            (&["--set", "eval.every=0", "--set", "data.corpus=", "--set", "data.train=/nonexistent/*"], 1),
        ] {
            let arguments: Vec<&str> =
                arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
            let refused = lab.finish(&arguments);
            assert_eq!(refused.code, Some(code), "{more:?}: {}", refused.stderr);
            assert!(!lab.path("runs").exists(), "{ranks} ranks, {more:?}");
        }
    }
    std::fs::create_dir(lab.path("runs")).expect("a folder");
    let runs = lab.path("runs").display().to_string();
    lab.finish(&["run", CI, "--ranks", "2", "--runs", &runs, "--lock", lock])
        .assert_fails(5, &["refused"; 0]);
    assert!(lab.path("runs").exists(), "a folder that was there stays");
}
