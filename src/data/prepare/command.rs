//! Commands in messages, which can be pasted into a shell as they are.

use super::super::error::DataError;
use super::input::{Input, Refused};
use super::kind::{Compression, InputKind, Remedy, extension};
use super::{InputFormat, PrepareOptions, ValSplit};

/// The formats that `prepare` reads.
const READ: &str = "text in UTF-8 or JSON lines, plain or compressed with gzip or zstd, or Parquet";

impl PrepareOptions {
    /// The error for the input at `at`, with a command that prepares the same in another way.
    pub(super) fn refuse(&self, inputs: &[Input], at: usize, refused: Refused) -> DataError {
        let (kind, compression) = match refused {
            Refused::Error(error) => return error,
            Refused::Kind { kind, compression } => (kind, compression),
        };
        let input = &inputs[at];
        let path = input.path().to_owned();
        let (found, expected) = match (input.declared(), compression) {
            (None, Some(compression)) if kind == InputKind::Parquet => {
                (format!("a Parquet file compressed with {}", compression.command()), READ)
            }
            (None, _) => (kind.name().to_owned(), READ),
            (Some(InputFormat::Text), _) => (kind.name().to_owned(), "text in UTF-8"),
            (Some(InputFormat::Jsonl), _) => (kind.name().to_owned(), "a file of JSON lines"),
            (Some(InputFormat::Parquet), _) => (kind.name().to_owned(), "a Parquet file"),
        };
        let mut hint = match (kind, compression) {
            (InputKind::Parquet, Some(compression)) => {
                self.filter(inputs, at, &format!("{} -dc {{}}", compression.command()))
            }
            _ => match kind.remedy() {
                Remedy::Filter(command) => self.filter(inputs, at, &inside(compression, command)),
                Remedy::Say(sentence) => sentence.replace("{}", &quoted(&path.to_string_lossy())),
            },
        };
        if input.declared().is_none() && kind.can_be(InputFormat::Text) {
            hint.push_str("; `--format text` takes it as text");
        }
        DataError::Content { path, found, expected, hint }
    }

    /// A command that pipes one input through a filter, and names the other inputs.
    fn filter(&self, inputs: &[Input], at: usize, filter: &str) -> String {
        let name = |input: &Input| match input.is_file() {
            true => quoted(&input.path().to_string_lossy()),
            false => "-".to_owned(),
        };
        let input = &inputs[at];
        let source = match input.is_file() {
            true => filter.replace("{}", &name(input)),
            false => format!("… | {}", filter.replace("{}", "/dev/stdin")),
        };
        let files: Vec<String> = (inputs.iter().enumerate())
            .map(|(other, input)| if other == at { "-".to_owned() } else { name(input) })
            .collect();
        let is_jsonl = filter.starts_with("python3") || extension(input.path()).starts_with("json");
        let format = match input.declared() {
            Some(InputFormat::Text) => " --format text",
            Some(InputFormat::Jsonl) => " --format jsonl",
            None if is_jsonl && inputs.len() == 1 => " --format jsonl",
            _ => "",
        };
        format!("`{source} | runner data prepare{}{format} {}`", self.arguments(), files.join(" "))
    }

    /// The options as arguments, those at their default left out.
    fn arguments(&self) -> String {
        let mut arguments =
            format!(" --out {} --name {}", quoted(&self.out.to_string_lossy()), quoted(&self.prefix));
        let mut add = |text: String| arguments.push_str(&text);
        let default = PrepareOptions::new(&self.out, &self.prefix, self.tokenizer);
        if self.tokenizer.name() != "gpt2" {
            add(format!(" --tokenizer {}", self.tokenizer.name()));
        }
        if self.column != default.column {
            add(format!(" --column {}", quoted(&self.column)));
        }
        if self.shard_tokens != default.shard_tokens {
            add(format!(" --shard-tokens {}", self.shard_tokens));
        }
        match self.val {
            ValSplit::Tokens(tokens) => add(format!(" --val-tokens {tokens}")),
            ValSplit::Fraction(fraction) if self.val != default.val => {
                add(format!(" --val-fraction {fraction}"))
            }
            ValSplit::Fraction(_) => {}
        }
        if self.skip_bad_rows > 0 {
            add(format!(" --skip-bad-rows {}", self.skip_bad_rows));
        }
        if self.overwrite {
            add(" --overwrite".to_owned());
        }
        arguments
    }
}

/// A filter for what is inside of a compression.
pub(super) fn inside(compression: Option<Compression>, filter: &str) -> String {
    match compression {
        None => filter.to_owned(),
        Some(compression) => {
            format!("{} -dc {{}} | {}", compression.command(), filter.replace("{}", "/dev/stdin"))
        }
    }
}

/// A word quoted for a POSIX shell.
pub(super) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:@%+,".contains(c);
    match !word.is_empty() && word.chars().all(plain) && !word.starts_with('-') {
        true => word.to_owned(),
        false if word.starts_with('-') => format!("'./{}'", word.replace('\'', "'\\''")),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_a_shell() {
        for (word, expected) in [
            ("a/b-1.txt", "a/b-1.txt"),
            ("my file", "'my file'"),
            ("it's", "'it'\\''s'"),
            ("", "''"),
            ("-x", "'./-x'"),
        ] {
            assert_eq!(quoted(word), expected);
        }
        assert_eq!(quoted("é.txt"), "'é.txt'");
    }
}
