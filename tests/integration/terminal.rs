//! What only a terminal shows: colours, the bar, the root once, and no control character of a model's.

use std::process::{Command, Output, Stdio};

use crate::support::{Lab, reaches_the_program};

const CI: &str = "experiments/ci.toml";

/// The program in a terminal of its own, of 24 lines and this many columns: everything that it writes there,
/// and its exit code.
fn in_terminal(lab: &Lab, columns: u32, arguments: &[&str], variables: &[(&str, &str)]) -> (String, i32) {
    let program = lab.command(arguments);
    let quote =
        |word: &std::ffi::OsStr| format!("'{}'", word.to_str().expect("UTF-8").replace('\'', "'\\''"));
    let words: Vec<String> =
        std::iter::once(program.get_program()).chain(program.get_args()).map(quote).collect();
    let inner = format!("stty rows 24 cols {columns}; exec {}", words.join(" "));
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", &inner, "/dev/null"]);
    command.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null()).env("TERM", "xterm-256color");
    for name in std::env::vars_os().map(|(name, _)| name).filter(|name| reaches_the_program(name)) {
        command.env_remove(name);
    }
    command.envs(variables.iter().copied());
    let Output { status, stdout, .. } = command.output().expect("skipped: needs script, of util-linux");
    (String::from_utf8(stdout).expect("UTF-8"), status.code().expect("an exit code"))
}

/// The text without the sequences that colour it or move the cursor.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        if c == '\u{1b}' {
            rest.by_ref().skip(1).find(char::is_ascii_alphabetic);
        } else {
            plain.push(c);
        }
    }
    plain
}

#[test]
#[ignore = "skipped: needs script, of util-linux"]
fn a_run_shows_its_root_once_its_bar_has_its_own_numbers_and_a_models_text_moves_no_cursor() {
    let golden = include_str!("../golden/ci_cpu.root").trim();
    for columns in [120, 80, 20, 1] {
        let lab = Lab::new();
        let runs = lab.path("").display().to_string();
        let (text, code) = in_terminal(&lab, columns, &["run", CI, "--runs", &runs], &[]);
        assert_eq!(code, 0, "{text}");
        let shown = plain(&text);
        assert_eq!(shown.matches(golden).count(), 1, "{columns} columns: {shown}");
        // The sample at step 20 has \x02 and \x04.
        assert!(shown.contains("sample at step 20:"), "{shown}");
        let moves = |c: char| c.is_control() && !"\r\n\t\u{1b}".contains(c);
        assert!(!text.contains(moves), "{columns} columns: {text:?}");
        // Of 20 steps; an evaluation has 32 sequences.
        for wrong in ["/20 steps  validating", "32/20", "validating 0/20"] {
            assert!(!shown.contains(wrong), "{columns} columns: `{wrong}` in {shown}");
        }
    }
}

#[test]
#[ignore = "skipped: needs script, of util-linux"]
fn colours_are_for_terminals_and_can_be_turned_off() {
    let lab = Lab::new();
    let runs = lab.path("").display().to_string();
    lab.run(CI, &["--set", "schedule.steps=2", "--set", "schedule.warmup_steps=1"]).root();
    let verify = ["verify", "ci", "--runs", &runs];
    let (coloured, code) = in_terminal(&lab, 80, &verify, &[]);
    assert!(code == 0 && coloured.contains("\u{1b}[1m\u{1b}[32mok"), "{coloured:?}");
    for variable in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let (text, code) = in_terminal(&lab, 80, &verify, &[variable]);
        assert!(code == 0 && !text.contains('\u{1b}'), "{variable:?}: {text:?}");
        assert_eq!(plain(&coloured), text);
    }
    // Some CI has it set and runs steps in a terminal; a person can ask for colours in a pipe.
    let (text, _) = in_terminal(&lab, 80, &verify, &[("CI", "true"), ("NO_COLOR", "1")]);
    assert!(!text.contains('\u{1b}'), "{text:?}");
    assert!(!lab.verify("ci", &[]).stdout.contains('\u{1b}'));
    let forced = lab.command(&verify).env("CLICOLOR_FORCE", "1").output().expect("it starts");
    assert!(String::from_utf8_lossy(&forced.stdout).contains("\u{1b}[32mok"), "{forced:?}");
}

#[test]
#[ignore = "skipped: needs script, of util-linux"]
fn a_prompt_or_a_text_with_control_characters_is_shown_and_not_obeyed() {
    let lab = Lab::new();
    let runs = lab.path("").display().to_string();
    lab.run(CI, &["--set", "schedule.steps=2", "--set", "schedule.warmup_steps=1"]).root();
    let sample = ["sample", "ci", "--runs", &runs, "--tokens", "40", "--prompt", "a\u{1b}[2Jb\u{7}c"];
    let (text, code) = in_terminal(&lab, 80, &sample, &[]);
    assert!(code == 0 && text.contains("a\u{fffd}[2Jb\u{fffd}c"), "{text:?}");
    // The name of a file that is not there, and a line of a damaged file, are as foreign.
    let (text, code) = in_terminal(&lab, 80, &["config", "a\u{1b}[31mb.toml"], &[]);
    assert!(code == 2 && text.contains("`a\u{fffd}[31mb.toml`"), "{text:?}");
    std::fs::write(lab.path("ci/main.log"), "s:0 tel:\u{1b}[2J1\n").expect("writable");
    let (text, code) = in_terminal(&lab, 80, &["verify", "ci", "--runs", &runs], &[]);
    assert!(code == 5 && text.contains("`s:0 tel:\u{fffd}[2J1`"), "{text:?}");
    // Data that is no terminal's keeps every byte.
    assert!(lab.done(&sample).stdout.starts_with("a\u{1b}[2Jb\u{7}c"));
}
