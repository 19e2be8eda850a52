//! The text of the help: verbs in groups, examples, exit codes.
//!
//! It is generated from the clap definitions of the verbs; this file adds the groups and examples.
//! Completions and manual pages are generated from the same command, so none of the three can list an option
//! that does not exist.

use std::fmt::Write;

use clap::{Arg, Command, CommandFactory, ValueHint};

use super::Cli;

/// Verbs that belong together, in the order of a run's life. A verb in no group is listed under `More`.
const GROUPS: [(&str, &[&str]); 6] = [
    ("Before", &["new", "config", "plan", "data", "lock", "doctor", "bench"]),
    ("Train", &["run", "resume"]),
    ("Look", &["show", "compare", "watch", "plot", "report", "sample", "eval"]),
    ("Tidy", &["note", "rm", "prune"]),
    ("Prove", &["verify", "diff"]),
    ("Take away", &["export"]),
];
/// Verbs about the program itself.
const PROGRAM: (&str, &[&str]) = ("This program", &["completions", "man", "help"]);

/// Examples of verbs that define none of their own.
const EXAMPLES: [(&str, &str); 17] = [
    (
        "run",
        "  runner run quickstart\n  \
         runner run sweep_ci --jobs 2\n  \
         runner run gpt2_124m --name first --set batch.micro=32\n  \
         runner run ci --overwrite --json | jq -c 'select(.event == \"step\").loss'",
    ),
    (
        "resume",
        "  runner resume                        # the run that was worked on last\n  runner resume \
         quickstart\n  \
         runner resume quickstart --set log.every=10",
    ),
    (
        "config",
        "  runner config gpt2_33b\n  RUNNER_SEED=7 runner config ci --set \
         batch.micro=1\n  runner config --explain\n  runner config --explain schedule\n  runner config \
         --json-schema > runner.schema.json",
    ),
    ("lock", "  runner lock ci\n  runner lock ci --out elsewhere.lock.toml"),
    (
        "data",
        "  runner data fetch hellaswag\n  runner data prepare --out data books/*.txt\n  runner data prepare \
         --out data --tokenizer byte --val-fraction 0.05 text.txt",
    ),
    (
        "plot",
        "  runner plot quickstart\n  runner plot first second --x tokens --log xy --out both.svg\n  \
         runner plot log_gpt2_124M/main.log --baseline 124m --theme dark --out reference.png\n  \
         runner plot runs/lr* --by schedule.learning_rate --out groups.png\n  \
         runner plot runs/lr* --sweep schedule.learning_rate --out sweep.svg",
    ),
    ("report", "  runner report quickstart\n  runner report quickstart --out page.html --no-verify"),
    (
        "sample",
        "  runner sample quickstart --prompt 'And God said' --tokens 200\n  runner sample quickstart \
         --temperature 0",
    ),
    ("eval", "  runner eval quickstart\n  runner eval quickstart --checkpoint all --task piqa=piqa.jsonl"),
    (
        "verify",
        "  runner verify quickstart\n  runner verify quickstart --replay 500..520\n  \
         runner verify quickstart --expect kept.lock.toml\n  runner verify quickstart --rebuild\n  \
         runner verify ci --twice --bless ci.root",
    ),
    ("diff", "  runner diff first second"),
    (
        "export",
        "  runner export quickstart --format hf --out model\n  runner export quickstart --format slsa --out \
         provenance.json\n  runner export sweep_ci --format mlflow --out mlruns",
    ),
    ("new", "  runner new mine\n  runner new wide.toml --from gpt2_124m"),
    (
        "note",
        "  runner note quickstart 'loss rises behind step 900'\n  runner note quickstart --tag baseline",
    ),
    ("rm", "  runner rm first second --dry-run"),
    ("prune", "  runner prune --all\n  runner prune first --keep-last 1 --yes"),
    ("bench", "  runner bench gpt2_124m --steps 10"),
];

/// Facts for all verbs, in the help and the manual.
const FACTS: [(&str, &[(&str, &str)]); 2] = [
    (
        "Settings",
        &[
            ("--set KEY=VALUE", "sets a key of the experiment, over everything else"),
            (
                "RUNNER_SECTION__KEY",
                "in the environment does so too, over the file: RUNNER_SCHEDULE__STEPS=100",
            ),
            ("NO_COLOR", "turns colours off; without a terminal there are none, but for CLICOLOR_FORCE=1"),
        ],
    ),
    (
        "Exit codes",
        &[
            ("0", "done"),
            ("1", "failed"),
            ("2", "usage or configuration"),
            ("3", "no usable device"),
            ("4", "diverged; the last good checkpoint stands"),
            ("5", "proof mismatch or damage: bits are not what they must be"),
            ("130", "interrupted, after a checkpoint"),
        ],
    ),
];

/// The program as completions and manual pages see it.
pub fn bare() -> Command {
    let mut command = Cli::command();
    for (verb, examples) in EXAMPLES {
        if command.find_subcommand(verb).is_some() {
            command = command.mut_subcommand(verb, |verb| verb.after_help(format!("Examples:\n{examples}")));
        }
    }
    with_negative_numbers(command)
}

/// Options whose values are no files, so that a shell offers none.
const NO_FILES: [&str; 9] =
    ["set", "explain", "task", "gpu", "by", "columns", "checkpoint", "metric", "sweep"];

/// Options take negative numbers as their values, so that what refuses one says which are expected.
fn with_negative_numbers(command: Command) -> Command {
    let of_option = |arg: Arg| {
        let takes_value = !arg.is_positional() && arg.get_action().takes_values();
        if !takes_value {
            return arg;
        }
        let is_free = arg.get_long().is_some_and(|name| NO_FILES.contains(&name));
        let arg = arg.allow_negative_numbers(true);
        if is_free { arg.value_hint(ValueHint::Other) } else { arg }
    };
    command.mut_args(of_option).mut_subcommands(with_negative_numbers)
}

/// The program as it parses its arguments: `runner help` shows verbs in groups.
pub fn command() -> Command {
    let command = bare();
    let (overview, facts) = (overview(&command), facts());
    command
        .help_template("{about}\n\n{usage-heading} {usage}\n\n{before-help}Options:\n{options}{after-help}")
        .before_help(overview)
        .after_help(facts)
}

const HEADING: anstyle::Style = anstyle::Style::new().bold().underline();
const LITERAL: anstyle::Style = anstyle::Style::new().bold();

fn heading(text: &mut String, title: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{HEADING}{title}:{HEADING:#}");
}

fn row(text: &mut String, name: &str, width: usize, says: &str) {
    let _ = writeln!(text, "  {LITERAL}{name:<width$}{LITERAL:#}  {says}");
}

/// Every verb with its first line, in groups.
fn overview(command: &Command) -> String {
    let about = |verb: &str| match verb {
        "help" => Some("Print this, or the help of a verb: runner help VERB".to_owned()),
        verb => command
            .find_subcommand(verb)
            .map(|verb| verb.get_about().map_or(String::new(), ToString::to_string)),
    };
    let grouped: Vec<&str> =
        GROUPS.iter().chain([&PROGRAM]).flat_map(|(_, verbs)| verbs.iter().copied()).collect();
    let more: Vec<&str> =
        command.get_subcommands().map(Command::get_name).filter(|verb| !grouped.contains(verb)).collect();
    let mut text = String::new();
    for (title, verbs) in GROUPS.iter().copied().chain([("More", more.as_slice()), PROGRAM]) {
        let rows: Vec<(&str, String)> = verbs.iter().filter_map(|verb| Some((*verb, about(verb)?))).collect();
        if rows.is_empty() {
            continue;
        }
        heading(&mut text, title);
        rows.iter().for_each(|(verb, says)| row(&mut text, verb, 11, says));
        text.push('\n');
    }
    text.trim_end().to_owned()
}

fn facts() -> String {
    let mut text = String::new();
    for (title, rows) in FACTS {
        heading(&mut text, title);
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        rows.iter().for_each(|(name, says)| row(&mut text, name, width, says));
        text.push('\n');
    }
    heading(&mut text, "To begin");
    text.push_str("  runner run quickstart\n  runner show quickstart");
    text
}

/// [`FACTS`] as sections of a manual page.
pub fn facts_as_roff() -> String {
    let mut text = String::new();
    for (title, rows) in FACTS {
        let title = if title == "Exit codes" { "EXIT STATUS" } else { "ENVIRONMENT AND SETTINGS" };
        let _ = writeln!(text, ".SH \"{title}\"");
        for (name, says) in rows {
            let _ = writeln!(text, ".TP\n\\fB{}\\fR\n{says}", name.replace('-', "\\-"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn the_definitions_are_sound() {
        command().debug_assert();
    }

    #[test]
    fn a_number_out_of_its_range_is_refused_with_the_range() {
        for (line, says) in [
            ("sample a --seed -1", "'-1' for '--seed <SEED>': expected a whole number from 0 on"),
            ("run a --ranks 0", "'0' for '--ranks <N>': expected a whole number from 1 on"),
            ("run a --member 0", "'0' for '--member <NUMBER>': expected a whole number from 1 on"),
            ("verify a --audit 0", "'0' for '--audit <N>': expected a whole number from 1 on"),
            ("prune --all --keep-last -2", "'-2' for '--keep-last <N>': expected a whole number from 1 on"),
            ("watch --every -1", "expected seconds from 0.1 to 3600"),
            ("watch --every -inf", "expected seconds from 0.1 to 3600"),
            ("compare a --target -inf", "expected a number such as 3.28"),
            (
                "verify a --replay -1..3",
                "`-1` is not a step: expected A..B, the steps from A on and before B",
            ),
            ("verify a --replay -1..-3", "`-1` is not a step: expected A..B"),
            ("verify a --replay -3", "'-3' for '--replay <A..B>': expected A..B"),
            ("verify a --replay 3..-1", "`-1` is not a step: expected A..B"),
            ("verify a --replay 3..3", "there is no step from 3 to 3: expected A..B"),
        ] {
            let words = ["runner"].into_iter().chain(line.split(' '));
            let refused = bare().try_get_matches_from(words).expect_err(line).to_string();
            assert!(refused.contains(says), "{line}: {refused}");
        }
        for line in [
            "data prepare a --out b --val-fraction -0.1",
            "compare a --target -5",
            "sample a --temperature -1",
            "sample a --temperature -.5 --top-p -inf",
        ] {
            let words = ["runner"].into_iter().chain(line.split(' '));
            assert!(bare().try_get_matches_from(words).is_ok(), "{line}: its range is held to later");
        }
    }

    #[test]
    fn every_verb_stands_in_the_help_once_and_has_an_example() {
        let help = plain(&command().render_help().to_string());
        for verb in bare().get_subcommands() {
            let name = verb.get_name();
            let lines = help.lines().filter(|line| line.split_whitespace().next() == Some(name)).count();
            assert_eq!(lines, 1, "`{name}` in:\n{help}");
            assert!(verb.get_about().is_some(), "`{name}` says nothing of itself");
        }
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
    }

    #[test]
    fn a_shell_offers_no_files_where_none_are_taken() {
        let command = bare();
        let run = command.find_subcommand("run").expect("a verb");
        let hint = |name: &str| {
            run.get_arguments().find(|arg| arg.get_long() == Some(name)).map(Arg::get_value_hint)
        };
        assert_eq!(hint("set"), Some(ValueHint::Other));
        assert_ne!(hint("lock"), Some(ValueHint::Other));
    }

    /// Options `--out` of a verb and of those below it, each of which has the short form `-o`.
    fn outs(verb: &Command) -> usize {
        let out = verb.get_arguments().find(|argument| argument.get_long() == Some("out"));
        if let Some(out) = out {
            assert_eq!(out.get_short(), Some('o'), "of `{}`", verb.get_name());
        }
        usize::from(out.is_some()) + verb.get_subcommands().map(outs).sum::<usize>()
    }

    #[test]
    fn every_verb_that_writes_where_it_is_told_takes_the_short_form_too() {
        assert!(outs(&bare()) >= 6);
    }

    /// The words of a command line, single quotes honoured, up to a pipe, a redirection or a comment.
    fn words(line: &str) -> Vec<String> {
        let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
        for c in line.chars().chain([' ']) {
            match c {
                '\'' => quoted = !quoted,
                ' ' if !quoted => {
                    if ["|", ">", "#"].contains(&word.as_str()) {
                        return words;
                    }
                    words.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
                }
                c => word.push(c),
            }
        }
        words
    }

    #[test]
    fn every_example_in_the_help_is_a_command_that_parses() {
        let mut examples = 0;
        for verb in bare().get_subcommands() {
            let help = verb.get_after_help().map(|help| plain(&help.to_string())).unwrap_or_default();
            for line in help
                .lines()
                .map(str::trim)
                .filter(|line| line.starts_with("runner ") || line.starts_with("RUNNER_"))
            {
                let words = words(line);
                let words = words.iter().skip_while(|word| *word != "runner");
                let parsed = bare().try_get_matches_from(words);
                assert!(
                    parsed.is_ok(),
                    "`{line}`: {}",
                    parsed.err().map_or(String::new(), |error| error.to_string())
                );
                assert!(
                    line.contains(&format!("runner {}", verb.get_name())),
                    "`{line}` is no example of `{}`",
                    verb.get_name()
                );
                examples += 1;
            }
        }
        assert!(examples > 30, "{examples} examples");
    }
}
