//! The reference of keys: what the table of keys and the doc comments of the experiment say, put together.
//!
//! [`KeysReference::find`] gives one key, one section or all; it prints as text, as JSON and as the page
//! `docs/configuration.md`. The JSON schema, for editors, is made of the same parts in `json_schema`.

use std::fmt::Write as _;

use serde::Serialize;

use super::declare::{SectionText, Word};
use super::resolved::{Experiment, MixSource};
use super::schema::{self, Bits, KeyRow, SOURCE_SECTION, ValueKind};

/// The columns that text is broken at.
const WIDTH: usize = 100;
/// The key that no layer but a file has.
const EXTENDS: &str = "extends";

/// Everything about one key.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KeyReference {
    /// Section and key with a dot between them.
    pub key: &'static str,
    /// What it does.
    pub meaning: &'static str,
    /// The type, and the range or the words.
    pub takes: String,
    /// In words, where it follows from other keys.
    pub default: &'static str,
    /// Of its number; empty for none.
    pub unit: &'static str,
    /// What it does to the bits, and whether a resume may change it.
    pub bits: String,
    /// Each word that it takes, and what it stands for.
    pub words: Vec<WordReference>,
    /// A value in TOML.
    pub example: &'static str,
}

/// A word that a key takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WordReference {
    pub word: &'static str,
    pub meaning: &'static str,
}

/// A section, or the keys in none.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SectionReference {
    /// Empty for the keys in none.
    pub section: &'static str,
    pub about: &'static str,
    pub keys: Vec<KeyReference>,
}

/// Some sections, each with some of its keys, in the order of the table.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct KeysReference(pub Vec<SectionReference>);

/// A word of the reference that is neither a key nor a section.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no key `{asked}`\n  hint: {hint}")]
pub struct UnknownKey {
    pub asked: String,
    pub hint: String,
}

impl KeyReference {
    fn of(row: &KeyRow) -> KeyReference {
        let (meaning, default) = said(row.name);
        KeyReference {
            key: row.name,
            meaning,
            takes: match row.kind {
                ValueKind::File => "a path, which starts from the folder of the file".into(),
                ValueKind::Model => {
                    "a path, which starts from the folder of the file, or `run:NAME@STEP`".into()
                }
                ValueKind::Place => {
                    "a folder, whose path starts from the folder of the file, or a URL: `file:///…`, \
                     `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`"
                        .into()
                }
                ValueKind::Patterns => {
                    "a glob pattern or a list of them, which start from the folder of the file".into()
                }
                kind => kind.takes(),
            },
            default,
            unit: row.unit,
            bits: bits(row.bits),
            words: match row.kind {
                ValueKind::Choice(words) => words.iter().map(WordReference::of).collect(),
                _ => Vec::new(),
            },
            example: row.example,
        }
    }

    /// `extends`, which is in no table: only a file has it.
    fn extends() -> KeyReference {
        KeyReference {
            key: EXTENDS,
            meaning: "Another experiment, whose keys hold where this file does not set them. Files may \
                      extend one another in a chain, not in a circle. It stands in a file alone: neither \
                      `--set` nor the environment takes it.",
            takes: "a path, which starts from the folder of the file".into(),
            default: "not set",
            unit: "",
            bits: "only the keys that it brings do".into(),
            words: Vec::new(),
            example: r#""gpt2_33b.toml""#,
        }
    }

    /// `layers` of `model.layers`.
    pub fn leaf(&self) -> &'static str {
        schema::leaf_of(self.key)
    }

    /// The example as a file has it.
    pub fn in_file(&self) -> String {
        let setting = format!("{} = {}", self.leaf(), self.example);
        match schema::section_of(self.key) {
            "" => setting,
            section => format!("[{section}]\n{setting}"),
        }
    }

    /// Names and texts of all that is known, but for the meaning.
    fn facts(&self) -> Vec<(&'static str, String)> {
        let mut facts = vec![("takes", self.takes.clone()), ("default", self.default.to_owned())];
        if !self.unit.is_empty() {
            facts.push(("unit", self.unit.to_owned()));
        }
        facts.push(("bits", self.bits.clone()));
        facts
    }
}

impl WordReference {
    fn of(word: &Word) -> WordReference {
        WordReference { word: word.name, meaning: word.meaning.trim() }
    }
}

/// What a key does, and its default in words.
fn said(name: &str) -> (&'static str, &'static str) {
    let (section, leaf) = (schema::section_of(name), schema::leaf_of(name));
    // Not a field: it becomes `schedule.steps`.
    let epochs = "Passes over the training data, which become `steps` when the data are open; what is left \
                  of the last one after the last whole step is not trained on. Excludes `steps`. Default: \
                  not set.";
    let keys = sections().find(|(name, _)| *name == section).map_or(&[][..], |(_, text)| text.keys);
    let text = keys.iter().find(|(key, _)| *key == leaf).map_or(epochs, |(_, text)| *text);
    let (meaning, default) = text.split_once("Default: ").unwrap_or((text, ""));
    (meaning.trim(), default.trim().trim_end_matches('.'))
}

/// Every section in the order of the page; a source of a mixture behind `[data]`.
fn sections() -> impl Iterator<Item = (&'static str, SectionText)> {
    let source = |name: &str| (name == "data").then_some((SOURCE_SECTION, MixSource::TEXT));
    Experiment::SECTIONS.iter().flat_map(move |section| [*section].into_iter().chain(source(section.0)))
}

fn bits(bits: Bits) -> String {
    match bits {
        Bits::Untouched => "changes none; `runner resume --set` may change it".into(),
        Bits::ReachedByRewind => {
            "changes none, and `runner resume --set` may change it; but with `guards.on_diverge = \
             \"rewind\"` the lock holds it, and `runner resume` refuses another value without \
             `--allow-drift`"
                .into()
        }
        Bits::Unrecorded => "changes none, and is in no lock; `runner resume --set` may change it".into(),
        Bits::Kept => "changes none; a run keeps it, and `runner resume` refuses another".into(),
        Bits::ByContent => {
            "the path changes none; what lies there does, and the lock pins that by SHA-256. A \
                            resume finds the same content in another folder"
                .into()
        }
        Bits::Through(keys) => format!("sets {keys}, and changes bits with them"),
        Bits::Reached | Bits::ReachedWhenSet => {
            "changes them: the lock holds it, and `runner resume` refuses another value without \
             `--allow-drift`"
                .into()
        }
    }
}

impl KeysReference {
    /// Every key.
    pub fn all() -> KeysReference {
        let of_section =
            |section: &'static str| schema::rows_of(section).map(KeyReference::of).collect::<Vec<_>>();
        let mut sections: Vec<SectionReference> = sections()
            .map(|(section, text)| SectionReference {
                section,
                about: text.about.trim(),
                keys: of_section(section),
            })
            .collect();
        sections[0].about = "What stands above the first section.";
        sections[0].keys.insert(0, KeyReference::extends());
        KeysReference(sections)
    }

    /// The keys that `asked` names: a section, a dotted key, or every key of this name in any section.
    ///
    /// # Errors
    /// It names none; the nearest name is in the hint.
    pub fn find(asked: &str) -> Result<KeysReference, UnknownKey> {
        let written = asked.trim().trim_matches(['[', ']']);
        let asked = &schema::as_in_reference(written);
        let KeysReference(mut sections) = KeysReference::all();
        if let Some(section) = sections.iter().find(|section| section.section == asked && !asked.is_empty()) {
            return Ok(KeysReference(vec![section.clone()]));
        }
        for section in &mut sections {
            section.keys.retain(|key| key.key == asked || key.leaf() == asked);
        }
        sections.retain(|section| !section.keys.is_empty());
        if !sections.is_empty() {
            return Ok(KeysReference(sections));
        }
        if asked.split('.').next() == Some("sweep") {
            let hint =
                "the tables of `[sweep]` take any key of an experiment: docs/sweeps.md tells how".to_owned();
            return Err(UnknownKey { asked: written.to_owned(), hint });
        }
        let (near_section, near_key) = schema::neighbour(asked, schema::section_of(asked));
        let near = near_section.map(str::to_owned).or(near_key);
        let hint = match near {
            Some(near) => format!("did you mean `{near}`?"),
            None => "`runner config --explain` lists every key".to_owned(),
        };
        Err(UnknownKey { asked: written.to_owned(), hint })
    }

    /// A line a key: its name, its default, and the first sentence on it.
    pub fn overview(&self) -> String {
        let mut out = String::new();
        for SectionReference { section, about, keys } in &self.0 {
            let title = if section.is_empty() { String::new() } else { format!("[{section}] ") };
            let _ = writeln!(out, "{title}{}", first_sentence(about));
            for key in keys {
                // A default in words is told in full by `--explain KEY`.
                let default = key.default.split([';', ',', '(']).next().unwrap_or_default().trim();
                let default = if default.chars().count() > 15 { "see there" } else { default };
                let sentence = first_sentence(key.meaning);
                let _ = writeln!(out, "  {:<27} {default:<15}  {sentence}", key.key);
            }
            out.push('\n');
        }
        out
    }

    /// All that is known of each key, for a terminal.
    pub fn in_full(&self) -> String {
        let mut out = String::new();
        for SectionReference { section, about, keys } in &self.0 {
            if keys.len() > 1 && !section.is_empty() {
                let _ = writeln!(out, "[{section}]\n{}\n", wrapped(about, "", ""));
            }
            for key in keys {
                let _ = writeln!(out, "{}\n{}\n", key.key, wrapped(key.meaning, "  ", "  "));
                for (name, text) in key.facts() {
                    let _ = writeln!(out, "{}", wrapped(&text, &format!("  {name:<9}"), &" ".repeat(11)));
                }
                for (at, WordReference { word, meaning }) in key.words.iter().enumerate() {
                    let name = if at == 0 { "words" } else { "" };
                    let lead = format!("  {name:<9}{:<14}", format!("\"{word}\""));
                    let _ = writeln!(out, "{}", wrapped(meaning, &lead, &" ".repeat(25)));
                }
                for (at, line) in key.in_file().lines().enumerate() {
                    let name = if at == 0 { "example" } else { "" };
                    let _ = writeln!(out, "  {name:<9}{line}");
                }
                if key.key != EXTENDS {
                    let bare = key.example.trim_matches('"');
                    let value = if bare.contains([' ', '*']) { format!("'{bare}'") } else { bare.to_owned() };
                    let _ = writeln!(out, "{:11}--set {}={value}", "", key.key);
                }
                out.push('\n');
            }
        }
        out
    }

    /// The page `docs/configuration.md`.
    pub fn markdown(&self) -> String {
        let mut out = String::from(PAGE_HEAD);
        for SectionReference { section, about, keys } in &self.0 {
            let title = if section.is_empty() { "Top".to_owned() } else { format!("`[{section}]`") };
            let _ = writeln!(out, "\n## {title}\n\n{}", wrapped(about, "", ""));
            for key in keys {
                let _ = writeln!(out, "\n### `{}`\n\n{}\n", key.key, wrapped(key.meaning, "", ""));
                for (name, text) in key.facts() {
                    let _ = writeln!(out, "{}", wrapped(&text, &format!("- **{name}**: "), "  "));
                }
                for WordReference { word, meaning } in &key.words {
                    let _ = writeln!(out, "{}", wrapped(meaning, &format!("- `\"{word}\"`: "), "  "));
                }
                let _ = writeln!(out, "\n```toml\n{}\n```", key.in_file());
            }
        }
        out
    }
}

const PAGE_HEAD: &str = "\
# Configuration

Every key of an experiment's file. This page is what `runner config --explain --markdown` prints: it
is made from the definitions that parse the file, and a test holds it to them. `runner config
--explain KEY` prints one key or one section, `--explain` alone a line a key.

An experiment is a TOML file. Its layers, weakest first: the defaults, the files that it extends,
the file, variables of the environment (`RUNNER_SCHEDULE__STEPS=100`, two underscores between
section and key), `--set schedule.steps=100`, each key once. `--set eval.hellaswag=` clears a key
that may be left out. Of the keys above the first section the environment sets `seed` alone
(`RUNNER_SEED=7`): `RUNNER_NAME` is a variable of CI services. `runner config FILE` prints the
result with the origin of every key. Paths start from the folder of the file that names them; in
`--set` and the environment from the working folder.

Editors complete and check these files with [runner.schema.json](runner.schema.json), which `runner
config --json-schema` prints: Taplo (Even Better TOML) and Tombi find it by the files `.taplo.toml`
and `tombi.toml` of this repository, or by a first line `#:schema PATH` in a file elsewhere.
";

/// Up to the first full stop that ends a sentence: another begins behind it.
pub(super) fn first_sentence(text: &str) -> &str {
    let begins = |at: &usize| text[at + 2..].starts_with(|c: char| c.is_uppercase() || c == '`');
    let end = text.match_indices(". ").map(|(at, _)| at).find(begins);
    end.map_or_else(|| text.trim_end_matches('.'), |at| &text[..at])
}

/// `text` broken between words, the first line behind `lead`, the others behind `indent`.
fn wrapped(text: &str, lead: &str, indent: &str) -> String {
    let (mut out, mut width) = (lead.to_owned(), lead.chars().count());
    let mut first = true;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if !first && width + 1 + length > WIDTH {
            out = format!("{}\n{indent}", out.trim_end());
            width = indent.chars().count();
            first = true;
        }
        if !first {
            out.push(' ');
            width += 1;
        }
        out.push_str(word);
        width += length;
        first = false;
    }
    out
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use toml::de::DeValue;

    use super::super::check;
    use super::super::schema::Default;
    use super::*;

    #[test]
    fn every_key_has_a_meaning_a_default_and_an_example_that_parses_and_is_not_the_default() {
        let KeysReference(sections) = KeysReference::all();
        let keys: Vec<KeyReference> = sections.into_iter().flat_map(|section| section.keys).collect();
        let rows = || schema::KEYS.iter().chain(schema::SOURCE_KEYS);
        assert_eq!(keys.len(), rows().count() + 1, "and `extends`");
        for row in rows() {
            let key = keys.iter().find(|key| key.key == row.name).expect("it is listed");
            assert!(key.meaning.len() > 10 && key.meaning.ends_with('.'), "{}: {:?}", key.key, key.meaning);
            let value = match row.default {
                Default::Integer(n) => n.to_string(),
                Default::Number(x) => format!("{x:?}"),
                Default::Boolean(b) => b.to_string(),
                Default::Text("") => "empty".to_string(),
                Default::Text(text) => text.to_string(),
                Default::Absent => "not set".to_string(),
                Default::Ruled => String::new(),
            };
            assert!(!key.default.is_empty() && key.default.starts_with(&value), "{}: {value:?}", key.key);
            for WordReference { word, meaning } in &key.words {
                assert!(meaning.ends_with('.'), "{} = \"{word}\" says nothing", key.key);
            }
            let example = DeValue::parse(row.example).unwrap_or_else(|error| panic!("{}: {error}", row.name));
            let checked = check::value(row, example.get_ref(), Path::new("/experiments"));
            assert!(checked.is_ok(), "{}: {checked:?}", row.name);
            assert_ne!(row.example.trim_matches('"'), value, "{}", row.name);
        }
    }

    #[test]
    fn a_key_a_section_and_a_name_in_many_sections_are_found_and_a_typing_error_gets_its_neighbour() {
        let keys = |asked: &str| -> Vec<&str> {
            let KeysReference(sections) =
                KeysReference::find(asked).unwrap_or_else(|error| panic!("{error}"));
            sections.iter().flat_map(|section| &section.keys).map(|key| key.key).collect()
        };
        assert_eq!(keys("schedule.warmup_steps"), ["schedule.warmup_steps"]);
        assert_eq!(keys("warmup_steps"), ["schedule.warmup_steps"]);
        assert_eq!(
            keys("[checkpoint]"),
            ["checkpoint.every", "checkpoint.keep_last", "checkpoint.keep_every", "checkpoint.copy_to"]
        );
        assert_eq!(keys("tokens"), ["batch.tokens", "sample.tokens"]);
        assert_eq!(keys("extends"), ["extends"]);
        let hint = |asked: &str| KeysReference::find(asked).unwrap_err().hint;
        assert_eq!(hint("schedule.warmup"), "did you mean `schedule.warmup_steps`?");
        assert_eq!(hint("optmizer"), "did you mean `optimizer`?");
        assert_eq!(hint("learning_rat"), "did you mean `schedule.learning_rate`?");
        assert_eq!(hint(""), "`runner config --explain` lists every key");
    }

    #[test]
    fn what_is_printed_of_a_key_says_what_it_does_to_the_bits() {
        let text = KeysReference::find("schedule.kind").unwrap().in_full();
        for says in ["takes    \"cosine\"", "default  cosine", "--allow-drift", "\"wsd\"", "kind = \"wsd\""] {
            assert!(text.contains(says), "`{says}` is not in:\n{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        let quiet = KeysReference::find("eval.every").unwrap().in_full();
        assert!(quiet.contains("changes none") && quiet.contains("unit     steps"), "{quiet}");
    }

    #[test]
    fn the_page_of_keys_is_what_the_program_prints() {
        let page = include_str!("../../docs/configuration.md");
        assert!(
            page == KeysReference::all().markdown(),
            "docs/configuration.md is stale: `runner config --explain --markdown > docs/configuration.md`"
        );
    }
}
