//! `lock.toml`: what the bits of a run depend on, and where they were made.
//!
//! Five tables of names and texts. `numerics` must be equal for equal bits, and its digest is the
//! `numerics_id`; `environment` and `source` are recorded, and differences in them only reported; `config`
//! has each key with its origin; `outputs` has what came out. The file starts with the digest of each table,
//! so that damage has a place, and its text is a function of the tables: any other spelling is refused. The
//! digests do not prove an origin: anyone who edits the file can compute them again. A lock is tied to its
//! run by the copy of `numerics` in every checkpoint's manifest.
//!
//! Callers decide what is in the tables: this module knows no key.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::hash::{Hash, LOCK};
use super::regular;

/// The format that this version writes and reads.
pub const FORMAT: &str = "runner/lock/v1";

/// Names and values, in byte order of the names.
pub type Table = BTreeMap<String, String>;

/// The content of a lock file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lock {
    /// What the bits depend on.
    pub numerics: Table,
    /// The machine. No bit depends on it.
    pub environment: Table,
    /// The program.
    pub source: Table,
    /// Every key of the experiment with its origin.
    pub config: Table,
    /// The outputs of the run; empty until it has ended.
    pub outputs: Table,
}

/// An error in a lock file.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("cannot read `{}`: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("`{}` line {line} is not a lock: {why}\n  hint: {DAMAGED}", path.display())]
    Syntax { path: PathBuf, line: usize, why: String },
    #[error("`{}` has the format `{found}`, expected `{FORMAT}`\n  hint: it is damaged, or was written by \
             another version of runner", path.display())]
    Format { path: PathBuf, found: String },
    #[error("`{}`: table `{table}` was changed: its digest is {found}, the head of the file says \
             {expected}\n  hint: {DAMAGED}", path.display())]
    TableDiffers { path: PathBuf, table: &'static str, expected: Hash, found: Hash },
    #[error("`{}` line {line} is not as runner writes it\n  hint: {DAMAGED}", path.display())]
    Spelling { path: PathBuf, line: usize },
}

/// Bytes of the longest lock that is read: of some hundred thousand shards.
const LONGEST: u64 = 64 << 20;

const DAMAGED: &str = "the file was edited or damaged; restore it, or make a new one with `runner lock`";

/// The file as serde reads it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenLock {
    #[serde(rename = "format")]
    _format: String,
    numerics_id: Hash,
    environment_id: Hash,
    source_id: Hash,
    config_id: Hash,
    outputs_id: Hash,
    numerics: Table,
    environment: Table,
    source: Table,
    config: Table,
    outputs: Table,
}

impl Lock {
    /// Digest of `numerics`: equal ids mean equal bits.
    pub fn numerics_id(&self) -> Hash {
        table_digest("numerics", &self.numerics)
    }

    fn tables(&self) -> [(&'static str, &Table); 5] {
        [
            ("numerics", &self.numerics),
            ("environment", &self.environment),
            ("source", &self.source),
            ("config", &self.config),
            ("outputs", &self.outputs),
        ]
    }

    /// The text of the file.
    pub fn to_text(&self) -> String {
        let mut text = String::from(HEAD);
        text.push_str(&format!("format = \"{FORMAT}\"\n"));
        for (name, table) in self.tables() {
            text.push_str(&format!("{name}_id = \"{}\"\n", table_digest(name, table)));
        }
        for (name, table) in self.tables() {
            text.push_str(&format!("\n[{name}]\n"));
            for (key, value) in table {
                text.push_str(&format!("{} = {}\n", quoted(key), quoted(value)));
            }
        }
        text
    }

    /// Reads the text of the lock at `path`, which messages name.
    pub fn parse(path: &Path, text: &str) -> Result<Lock, LockError> {
        #[derive(Deserialize)]
        struct Format {
            format: String,
        }
        let syntax = |e: toml::de::Error| {
            let line =
                e.span().map_or(1, |span| 1 + text.bytes().take(span.start).filter(|b| *b == b'\n').count());
            LockError::Syntax { path: path.into(), line, why: e.message().to_owned() }
        };
        let Format { format } = toml::from_str(text).map_err(syntax)?;
        if format != FORMAT {
            return Err(LockError::Format { path: path.into(), found: format });
        }
        let w: WrittenLock = toml::from_str(text).map_err(syntax)?;
        let lock = Lock {
            numerics: w.numerics,
            environment: w.environment,
            source: w.source,
            config: w.config,
            outputs: w.outputs,
        };
        let ids = [w.numerics_id, w.environment_id, w.source_id, w.config_id, w.outputs_id];
        for ((table, content), expected) in lock.tables().into_iter().zip(ids) {
            let found = table_digest(table, content);
            if found != expected {
                return Err(LockError::TableDiffers { path: path.into(), table, expected, found });
            }
        }
        let expected = lock.to_text();
        if expected != text {
            let same = expected.lines().zip(text.lines()).take_while(|(a, b)| a == b).count();
            return Err(LockError::Spelling { path: path.into(), line: same + 1 });
        }
        Ok(lock)
    }

    /// The tables of a text whose digests are wrong, to report what differs. Nothing is verified.
    pub fn parse_unchecked(text: &str) -> Option<Lock> {
        let w: WrittenLock = toml::from_str(text).ok()?;
        Some(Lock {
            numerics: w.numerics,
            environment: w.environment,
            source: w.source,
            config: w.config,
            outputs: w.outputs,
        })
    }

    /// Reads and checks the lock at `path`.
    pub fn read(path: &Path) -> Result<Lock, LockError> {
        let bytes = regular::read_within(path, LONGEST)
            .map_err(|source| LockError::Io { path: path.into(), source })?;
        let text = std::str::from_utf8(&bytes).map_err(|e| LockError::Syntax {
            path: path.into(),
            line: 1 + bytes[..e.valid_up_to()].iter().filter(|b| **b == b'\n').count(),
            why: "not UTF-8".into(),
        })?;
        Lock::parse(path, text)
    }
}

const HEAD: &str = "\
# What the bits of a run depend on, and where they were made. Written by runner, checked to the byte.
# Equal [numerics] give equal bits. [environment] and [source] are recorded; differences are only told.
";

/// `SHA256(tag("runner/lock/v1") ‖ name ‖ each key ‖ each value)`, every text behind its length as u32.
fn table_digest(name: &str, table: &Table) -> Hash {
    let texts = table.iter().flat_map(|(key, value)| [key.as_str(), value]);
    texts_digest(LOCK.hasher(), std::iter::once(name).chain(texts))
}

/// What `hasher` has read, and then texts, each behind its length as u32.
pub(super) fn texts_digest<'a>(mut hasher: Sha256, texts: impl Iterator<Item = &'a str>) -> Hash {
    for text in texts {
        hasher.update(u32::try_from(text.len()).expect("a lock is far smaller than 4 GiB").to_le_bytes());
        hasher.update(text.as_bytes());
    }
    Hash(hasher.finalize().into())
}

/// A basic TOML string on one line.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A key whose values differ between two tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub key: String,
    pub was: Option<String>,
    pub is: Option<String>,
}

/// The differences between a lock's values and others, in byte order of the keys.
pub fn differences(was: &Table, is: &Table) -> Vec<Difference> {
    let mut keys: Vec<&String> = was.keys().chain(is.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    keys.into_iter()
        // A key without a value is written as not set, by a program that knows it.
        .filter(|key| set(was.get(*key)) != set(is.get(*key)))
        .map(|key| Difference { key: key.clone(), was: was.get(key).cloned(), is: is.get(key).cloned() })
        .collect()
}

/// What a key without a value is written as.
pub const NOT_SET: &str = "not set";

fn set(value: Option<&String>) -> Option<&String> {
    value.filter(|value| *value != NOT_SET)
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` was {}{IS}{}", self.key, shown(self.was.as_ref()), shown(self.is.as_ref()))
    }
}

/// What stands between the two values in the text of a [`Difference`].
const IS: &str = ", is ";

/// The text of a [`Difference`], as a ledger has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DifferenceText<'a> {
    pub key: &'a str,
    values: &'a str,
}

/// What a ledger calls the lock of its run.
const OF_RUN: &str = "lock.toml";

/// What is noted of a lock that was missing.
pub fn lost_lock() -> Difference {
    Difference {
        key: OF_RUN.into(),
        was: Some("missing".into()),
        is: Some("made of what was here at the resume".into()),
    }
}

/// Whether a change by leave is a lock made again, and none of numerics.
pub fn is_lost_lock(text: &str) -> bool {
    DifferenceText::of_key(text, OF_RUN).is_some()
}

impl<'a> DifferenceText<'a> {
    /// None of what is no such text.
    pub fn parse(text: &'a str) -> Option<DifferenceText<'a>> {
        let (key, values) = text.strip_prefix('`')?.split_once("` was ")?;
        values.contains(IS).then_some(DifferenceText { key, values })
    }

    /// The same of a text that is of this key.
    pub fn of_key(text: &'a str, key: &str) -> Option<DifferenceText<'a>> {
        DifferenceText::parse(text).filter(|change| change.key == key)
    }

    /// What the key was and what it is. A value may itself have what stands between the two: then there is
    /// more than one way to read it.
    fn readings(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.values.match_indices(IS).map(move |(at, _)| (&self.values[..at], &self.values[at + IS.len()..]))
    }

    /// What the key was, by the first way to read it.
    pub fn was_text(self) -> Option<&'a str> {
        self.readings().next().map(|(was, _)| was)
    }

    /// What the key was before it was this text.
    pub fn was_before(self, is: &str) -> Option<&'a str> {
        self.values.strip_suffix(is)?.strip_suffix(IS)
    }

    /// Whether the key was of this value.
    pub fn was(self, value: Option<&String>) -> bool {
        self.readings().any(|(was, _)| was == shown(value))
    }

    /// Whether the key is of this value since.
    pub fn is(self, value: Option<&String>) -> bool {
        self.readings().any(|(_, is)| is == shown(value))
    }

    /// Whether the key was what it is since `before`.
    pub fn follows(self, before: DifferenceText<'_>) -> bool {
        before.readings().any(|(_, is)| self.readings().any(|(was, _)| was == is))
    }

    /// Whether it has one value twice. Two that are shortened may look the same.
    pub fn changes_nothing(self) -> bool {
        self.readings().any(|(was, is)| was == is && !was.ends_with(CUT))
    }
}

fn shown(value: Option<&String>) -> String {
    value.map_or(NOT_SET.to_owned(), |value| shortened(value))
}

/// What a value ends with that is shortened.
const CUT: char = '…';

/// Values such as the plan of a matrix multiplication are longer than a line.
fn shortened(value: &str) -> String {
    match value.char_indices().nth(96) {
        Some((end, _)) => format!("{}{CUT}", &value[..end]),
        None if value.is_empty() => "empty".into(),
        None => value.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(pairs: &[(&str, &str)]) -> Table {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn lock() -> Lock {
        Lock {
            numerics: table(&[("seed", "1337"), ("data.shard.00000", "a \"quoted\" name\\with\nall\u{1b}")]),
            environment: table(&[("kernel", "6.1")]),
            source: Table::new(),
            config: table(&[("seed", "1337, default")]),
            outputs: Table::new(),
        }
    }

    #[test]
    fn a_key_that_is_not_set_is_as_one_that_is_not_there() {
        let [was, is] = [&[("a", "not set"), ("b", "1")][..], &[("b", "2")]].map(table);
        let found: Vec<String> = differences(&was, &is).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["`b` was 1, is 2"]);
    }

    fn parse(text: &str) -> Result<Lock, LockError> {
        Lock::parse(Path::new("lock.toml"), text)
    }

    #[test]
    fn a_lock_reads_back_equal() {
        assert_eq!(parse(&lock().to_text()).unwrap(), lock());
        assert_eq!(parse(&Lock::default().to_text()).unwrap(), Lock::default());
    }

    #[test]
    fn the_numerics_id_is_the_documented_one() {
        let numerics = table(&[("batch.micro", "4"), ("seed", "1337")]);
        let id = Lock { numerics, ..Lock::default() }.numerics_id();
        assert!(include_str!("../../docs/digest.md").contains(&format!("`seed` = `1337` | `{id}`")), "{id}");
    }

    #[test]
    fn every_bit_of_a_lock_is_guarded() {
        let good = lock().to_text().into_bytes();
        for byte in 0..good.len() {
            for bit in 0..7 {
                let mut bad = good.clone();
                bad[byte] ^= 1 << bit;
                let bad = String::from_utf8(bad).expect("seven bits stay ASCII");
                assert!(parse(&bad).is_err(), "byte {byte} bit {bit}: {bad}");
            }
        }
    }

    #[test]
    fn an_edit_is_located_by_table_or_line() {
        let text = lock().to_text();
        let of = |from: &str, to: &str| parse(&text.replacen(from, to, 1)).unwrap_err();
        assert!(matches!(
            of("\"seed\" = \"1337\"", "\"seed\" = \"1338\""),
            LockError::TableDiffers { table: "numerics", .. }
        ));
        assert!(matches!(of("6.1", "6.2"), LockError::TableDiffers { table: "environment", .. }));
        let syntax = of("\n[environment]", "\n[environment");
        assert!(matches!(syntax, LockError::Syntax { line: 14 | 15, .. }), "{syntax}");
        assert!(matches!(of("# What", "# what"), LockError::Spelling { line: 1, .. }));
        assert!(matches!(of("lock/v1", "lock/v2"), LockError::Format { .. }));
    }

    #[test]
    fn moving_text_between_keys_and_values_changes_the_digest() {
        let id = |pairs: &[(&str, &str)]| table_digest("numerics", &table(pairs));
        assert_ne!(id(&[("a", "bc")]), id(&[("ab", "c")]));
        assert_ne!(id(&[("a", "b"), ("c", "d")]), id(&[("a", "bcd")]));
        assert_ne!(table_digest("source", &Table::new()), id(&[]));
    }

    #[test]
    fn the_text_of_a_difference_is_read_back() {
        let (a, b, comma) = ("a".to_owned(), "b".to_owned(), "a, is b".to_owned());
        let text = |was: Option<&String>, is: Option<&String>| {
            Difference { key: "seed".into(), was: was.cloned(), is: is.cloned() }.to_string()
        };
        let (first, second) = (text(None, Some(&a)), text(Some(&a), Some(&comma)));
        let [first, second] = [&first, &second].map(|text| DifferenceText::parse(text).expect("a text"));
        assert_eq!((first.key, first.was_text()), ("seed", Some("not set")));
        assert_eq!((second.was_before(&comma), second.was_before("a")), (Some("a"), None));
        assert!(first.was(None) && first.is(Some(&a)) && !first.is(Some(&b)) && !first.was(Some(&a)));
        assert!(second.follows(first) && !first.follows(second) && !second.changes_nothing());
        assert!(second.was(Some(&a)) && second.is(Some(&comma)), "a value with what stands between the two");
        let same = text(Some(&b), Some(&b));
        assert!(DifferenceText::parse(&same).is_some_and(DifferenceText::changes_nothing));
        let long = ["c", "d"].map(|end| format!("{}{end}", "x".repeat(99)));
        let long = text(Some(&long[0]), Some(&long[1]));
        assert!(DifferenceText::parse(&long).is_some_and(|text| !text.changes_nothing()));
        for other in ["seed was 1, is 2", "`seed`: 1 → 2", "`seed` was 1", "of the weather"] {
            assert_eq!(DifferenceText::parse(other), None, "{other}");
        }
    }

    #[test]
    fn differences_name_key_and_both_values() {
        let (a, b) =
            (table(&[("a", "1"), ("b", "2"), ("c", "3")]), table(&[("b", "2"), ("c", "4"), ("d", "")]));
        let told: Vec<String> = differences(&a, &b).iter().map(Difference::to_string).collect();
        assert_eq!(told, ["`a` was 1, is not set", "`c` was 3, is 4", "`d` was not set, is empty"]);
    }
}
