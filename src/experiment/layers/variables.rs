//! Environment variables: which set a key, and which are meant to.

use super::super::schema;

/// The prefix of variables that set keys.
pub(super) const PREFIX: &str = "RUNNER_";

/// Whether a variable of this name sets a key.
pub(in super::super) fn is_setting(name: &str) -> bool {
    name.strip_prefix(PREFIX)
        .is_some_and(|word| word.contains("__") || word.contains('.') || word.eq_ignore_ascii_case("seed"))
}

/// Whether a variable's word means this key, without the two underscores between section and key.
pub(super) fn sounds_like(key: &schema::KeyRow, word: &str) -> bool {
    key.name.replace('.', "_") == word || key.leaf() == word
}

/// The section, or what else stands in files alone, that a variable's word is the name of. `RUNNER_LOG` is
/// others' too, as `RUNNER_NAME` is.
pub(super) fn table_of(word: &str) -> Option<&'static str> {
    let tables = schema::sections().into_iter().chain(["extends", "sweep"]);
    tables.filter(|table| *table != "log").find(|table| *table == word)
}

/// The key that a variable of this name would set, if there is one.
pub(in super::super) fn key_of(name: &str) -> Option<String> {
    name.strip_prefix(PREFIX).map(|word| word.to_ascii_lowercase().replace("__", "."))
}

/// Whether a variable says where files are or which device to use, which no fact about a run depends on.
pub(in super::super) fn says_where(name: &str) -> bool {
    let key = key_of(name).filter(|key| schema::key(key).is_some());
    key.is_some_and(|key| schema::names_files(&key) || key.starts_with("device."))
}

/// Variables that a person sets and that set no key.
const OTHERS: [&str; 3] = ["RUNNER_ALERTS_COMMAND", "RUNNER_RANK_KEY", "RUNNER_RUN_ID"];

/// Which of these a name is but for a letter or two.
pub(super) fn misspelt(name: &str) -> Option<&'static str> {
    let is_near = |other: &&str| *other != name && strsim::normalized_damerau_levenshtein(other, name) > 0.85;
    if OTHERS.contains(&name) { None } else { OTHERS.into_iter().find(is_near) }
}
