//! The resolved experiment as text: the file in a run's folder, JSON, and the difference of two.
//!
//! The text is a function of the experiment and its origins alone, in the order of the table, so it
//! can be compared byte for byte.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use figment::value::{Num, Value};
use serde_json::Value as Json;

use super::Loaded;
use super::origin::Origin;
use super::resolved::Experiment;
use super::rules::given_by_descriptor;
use super::schema::{KeyRow, is_hyperparameter, reaches_the_bits, rows_with};
use super::sweep::Sweep;
use crate::units::printable;

/// Comments start at this column at the furthest; longer lines push theirs out.
const COMMENT_COLUMN: usize = 44;

/// Every leaf of an experiment under its dotted key.
pub fn flatten(experiment: &Experiment) -> BTreeMap<String, Json> {
    let mut leaves = BTreeMap::new();
    // Plain structs of numbers, text and lists always serialise.
    if let Ok(top) = serde_json::to_value(experiment) {
        add_leaves(String::new(), top, &mut leaves);
    }
    leaves
}

/// The keys of an experiment by which other programs compare runs, each with its value: a number, a flag or a
/// text.
pub type Hyperparameters = BTreeMap<String, Json>;

/// The keys that are set and reach the bits; a list is its text in JSON.
pub fn hyperparameters(experiment: &Experiment) -> Hyperparameters {
    let set = flatten(experiment).into_iter().filter(|(key, _)| is_hyperparameter(key));
    set.filter_map(|(key, value)| match value {
        Json::Null => None,
        Json::Array(items) if items.is_empty() => None,
        Json::Array(_) => Some((key, Json::String(value.to_string()))),
        value => Some((key, value)),
    })
    .collect()
}

fn add_leaves(key: String, value: Json, leaves: &mut BTreeMap<String, Json>) {
    let Json::Object(table) = value else {
        leaves.insert(key, value);
        return;
    };
    for (leaf, value) in table {
        let dotted = if key.is_empty() { leaf } else { format!("{key}.{leaf}") };
        add_leaves(dotted, value, leaves);
    }
}

/// A value as TOML; none for a key that is not set.
fn toml_value(value: &Json) -> Option<String> {
    match value {
        Json::Null => None,
        Json::String(text) => Some(quoted(text)),
        Json::Number(number) => Some(match number.as_f64() {
            Some(x) if number.is_f64() => format!("{x:?}"),
            _ => number.to_string(),
        }),
        Json::Array(items) if items.is_empty() => None,
        Json::Array(items) => {
            Some(format!("[{}]", items.iter().filter_map(toml_value).collect::<Vec<_>>().join(", ")))
        }
        other => Some(other.to_string()),
    }
}

/// A basic TOML string on one line, whatever it holds.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A merged value the way a message shows it.
pub(super) fn figment_value(value: &Value) -> String {
    match value {
        Value::String(_, text) => quoted(text),
        Value::Bool(_, b) => b.to_string(),
        Value::Num(_, Num::F64(x)) => format!("{x:?}"),
        Value::Num(_, n) => n.to_u128().map_or_else(|| format!("{n:?}"), |n| n.to_string()),
        Value::Array(_, items) => {
            format!("[{}]", items.iter().map(figment_value).collect::<Vec<_>>().join(", "))
        }
        other => format!("{other:?}"),
    }
}

/// A line of the resolved file: a setting, or a comment on a key that is not set, and its origin.
struct ResolvedLine {
    key: &'static KeyRow,
    setting: String,
    origin: String,
}

/// Every key in the order of the table. Keys that are not set, and sizes that the descriptor gives, are
/// comments.
fn resolved_lines(loaded: &Loaded) -> Vec<ResolvedLine> {
    let Loaded { experiment, origins, epochs, offset_follows, .. } = loaded;
    let leaves = flatten(experiment);
    let by_descriptor = given_by_descriptor();
    let origin = |key: &str| origins.get(key).map_or(String::new(), |origin| printable(&origin.to_string()));
    let row = |key: &KeyRow| -> (String, String) {
        let value = if key.name == "schedule.epochs" {
            epochs.map(|n| n.to_string())
        } else {
            leaves.get(key.name).and_then(toml_value)
        };
        let leaf = key.leaf();
        let implied = by_descriptor.contains(key.name) && experiment.model.descriptor.is_some();
        let later = (key.name == "schedule.steps" && epochs.is_some())
            || (key.name == "data.offset" && *offset_follows);
        match value {
            None => (format!("# {leaf} is not set"), String::new()),
            Some(_) if later => (format!("# {leaf} is known when the data are open"), String::new()),
            Some(value) if implied => (format!("# {leaf} = {value}"), origin(key.name)),
            Some(value) => (format!("{leaf} = {value}"), origin(key.name)),
        }
    };
    let mut lines = Vec::new();
    for key in rows_with(experiment.data.mix.keys().map(String::as_str)) {
        let (setting, from) = row(key);
        lines.push(ResolvedLine { key, setting, origin: from });
        if key.name == "model.vocab" {
            let setting = format!("# vocab_padded = {}", experiment.model.vocab_padded);
            lines.push(ResolvedLine { key, setting, origin: origin("model.vocab_padded") });
        }
    }
    lines
}

/// Lines in their sections.
fn write_lines(out: &mut String, lines: &[ResolvedLine]) {
    let mut section = "";
    for ResolvedLine { key, setting, origin } in lines {
        if key.section() != section {
            section = key.section();
            let _ = write!(out, "\n[{section}]\n");
        }
        if origin.is_empty() {
            let _ = writeln!(out, "{setting}");
        } else {
            let _ = writeln!(out, "{setting:<COMMENT_COLUMN$} # {origin}");
        }
    }
}

/// The resolved file. It has every key with its origin behind it. Loading it gives the same experiment.
pub(super) fn to_toml(loaded: &Loaded) -> String {
    let name = printable(&loaded.path.display().to_string());
    let mut out = format!("# {name}, resolved: every key, and where its value came from.\n");
    write_lines(&mut out, &resolved_lines(loaded));
    out
}

/// A resolved sweep: every key whose value all members share, and for each swept key a list with a value for
/// each member. Loading it gives the same members.
pub(super) fn sweep_to_toml(sweep: &Sweep) -> String {
    let name = printable(&sweep.path.display().to_string());
    let mut out =
        format!("# {name}, resolved: the keys that all members share, and where their values came from.\n");
    let Some(first) = sweep.members.first() else { return out };
    let mut lines = resolved_lines(&first.loaded);
    let swept = |key: &str| first.settings.iter().any(|(name, _)| name == key);
    for member in &sweep.members {
        for (line, other) in lines.iter_mut().zip(resolved_lines(&member.loaded)) {
            if swept(line.key.name) {
                line.setting = format!("# {} is swept", line.key.leaf());
                line.origin.clear();
            } else if line.setting != other.setting {
                line.setting = format!("# {} follows from the settings of the member", line.key.leaf());
                line.origin.clear();
            }
        }
    }
    write_lines(&mut out, &lines);
    let _ = write!(out, "\n# {} members, in the order of these lists.\n[sweep.zip]\n", sweep.members.len());
    for (at, (key, _)) in first.settings.iter().enumerate() {
        let values: Vec<&str> = sweep.members.iter().map(|member| member.settings[at].1.as_str()).collect();
        let list = format!("{} = [{}]", quoted(key), values.join(", "));
        let origin = first.loaded.origins.get(key).map_or(String::new(), |from| printable(&from.to_string()));
        let _ = writeln!(out, "{list:<COMMENT_COLUMN$} # {origin}");
    }
    out
}

/// The resolved experiment and the origin of each dotted key.
pub(super) fn to_json(experiment: &Experiment, origins: &BTreeMap<String, Origin>) -> Json {
    let origins: BTreeMap<&String, String> =
        origins.iter().map(|(key, origin)| (key, origin.to_string())).collect();
    serde_json::json!({ "experiment": experiment, "origins": origins })
}

/// The first key that reaches the bits and has another value in a run than asked for, with both values.
pub fn other_bits(run: &Experiment, asked: &Loaded) -> Option<(String, String, String)> {
    let (run, values) = (flatten(run), flatten(&asked.experiment));
    let follows = |key: &str| {
        (key == "schedule.steps" && asked.epochs.is_some()) || (key == "data.offset" && asked.offset_follows)
    };
    let mut other = values
        .iter()
        .filter(|(key, value)| reaches_the_bits(key) && !follows(key) && run.get(*key) != Some(*value));
    let (key, value) = other.next()?;
    let has = run.get(key).map_or("none".to_owned(), ToString::to_string);
    Some((key.clone(), has, value.to_string()))
}

/// Dotted keys that differ, with both values as TOML, in the byte order of the keys.
pub fn differences(a: &Experiment, b: &Experiment) -> Vec<(String, String, String)> {
    let shown = |value: Option<&Json>| value.and_then(toml_value).unwrap_or_else(|| "not set".to_string());
    let (a, b) = (flatten(a), flatten(b));
    let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let keys = keys.into_iter().filter(|key| a.get(*key) != b.get(*key));
    keys.map(|key| (key.clone(), shown(a.get(key)), shown(b.get(key)))).collect()
}
