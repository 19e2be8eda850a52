//! Tables within tables: sections, and the sources of a mixture below `[data]`.

use figment::value::{Dict, Value};

use crate::experiment::diagnostics::{Fault, Snippet};
use crate::experiment::schema;

/// Puts a value where its dotted key says.
pub(super) fn put_nested(table: &mut Dict, key: &str, value: &Value) {
    match key.split_once('.') {
        None => drop(table.insert(key.to_string(), value.clone())),
        Some((section, rest)) => {
            let inner = table.entry(section.to_string()).or_insert_with(|| Value::from(Dict::new()));
            if let Value::Dict(_, inner) = inner {
                put_nested(inner, rest, value);
            }
        }
    }
}

/// Whether a word in a section is the name of a table: a section, `mix`, or a source of it.
pub(super) fn is_table(section: &str, word: &str) -> bool {
    match section {
        "" => schema::is_section(word),
        "data" => word == "mix",
        section => section == schema::MIX,
    }
}

/// The refusal of a table's name, or of one that no source may have, where a key stands.
pub(super) fn table_fault(
    dotted: &str,
    section: &str,
    place: &(Option<Snippet>, (usize, usize)),
    spelt: impl Fn(&str) -> String,
) -> Option<Fault> {
    let leaf = dotted.rsplit_once('.').map_or(dotted, |(_, leaf)| leaf);
    if dotted.split('.').next() == Some("alerts") {
        let fault = Fault::new(format!("`{dotted}` is no key: an experiment starts no program"));
        let hint = "set the variable `RUNNER_ALERTS_COMMAND` where the run is started; docs/cluster.md";
        return Some(fault.at(place.clone()).label("a command").hint(hint.to_string()));
    }
    if section == schema::MIX && schema::source_name_problem(leaf).is_some() {
        return Some(source_name_fault(leaf, place.clone()));
    }
    let fault = || Fault::new(format!("`{dotted}` is a section, not a key")).at(place.clone());
    is_table(section, leaf).then(|| fault().label("takes no value itself").hint(table_hint(dotted, spelt)))
}

/// What to set in place of a table itself; `spelt` writes a key the way its source writes keys.
pub(super) fn table_hint(dotted: &str, spelt: impl Fn(&str) -> String) -> String {
    let source = match dotted {
        schema::MIX => format!("{dotted}.NAME"),
        _ => dotted.to_string(),
    };
    let key = |leaf: &str| spelt(&format!("{source}.{leaf}"));
    if source.starts_with(schema::MIX) {
        let [train, corpus, weight] = ["train", "corpus", "weight"].map(key);
        return format!("set `{train}` to a pattern of token shards, or `{corpus}`, and `{weight}`");
    }
    let leaf = schema::rows_of(dotted).next().map_or("KEY", |row| row.leaf());
    format!("set a key of it, such as `{}`", key(leaf))
}

/// The refusal of a name for a source of a mixture, at a place.
pub(super) fn source_name_fault(name: &str, place: (Option<Snippet>, (usize, usize))) -> Fault {
    let why = schema::source_name_problem(name).unwrap_or_default();
    let fault = Fault::new(format!("`{name}` cannot name a source of `data.mix`: it {why}")).at(place);
    fault.hint("call it `books`, `web-2024` or the like".to_string())
}
