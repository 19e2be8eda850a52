//! Runs in groups: by keys of their experiments, or by all that they differ in but the seed.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value as Json;

use super::{PlotGroup, ReportError, RunData};
use crate::data::mixture::locked_shard;
use crate::experiment;
use crate::proof::Hash;
use crate::proof::lock::Lock;
use crate::store::RunPaths;
use crate::units;

/// The key whose values make runs of one kind a sample.
pub const SEED: &str = "seed";

/// The event of a step before which the settings of a run were changed.
pub const DRIFT: &str = "drift";

/// The keys of one run's experiment, as text.
///
/// What the lock has resolved counts: `precision.compute` is what was used and not `auto`, and training data
/// and initial weights are their content and not their paths.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunKeys(BTreeMap<String, String>);

impl RunKeys {
    /// Reads the experiment in a run's folder; `lock` is the run's.
    pub fn read(folder: &Path, lock: Option<&Lock>) -> Result<RunKeys, ReportError> {
        let path = RunPaths::new(folder).experiment();
        let fault = |error: &dyn std::fmt::Display| {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
            ReportError::Experiment { path: path.clone(), message: first }
        };
        let loaded = experiment::load_recorded(&path).map_err(|error| fault(&error))?;
        let leaves = experiment::flatten(&loaded.experiment);
        let mut keys: BTreeMap<String, String> =
            leaves.iter().map(|(key, value)| (key.clone(), text_of(value))).collect();
        // Padding follows from `model.vocab`.
        keys.remove("model.vocab_padded");
        if let Some(lock) = lock {
            let resolved = lock.numerics.iter().filter(|(key, _)| leaves.contains_key(*key));
            let resolved: Vec<_> = resolved.map(|(key, value)| (key.clone(), value.clone())).collect();
            keys.extend(resolved.into_iter().filter(|(key, _)| key != "model.vocab_padded"));
            keys.extend(contents(lock));
            if let Some(name) = keys.get("model.init").and_then(|path| checkpoint(path, lock)) {
                keys.insert("model.init".to_owned(), name);
            }
        }
        Ok(RunKeys(keys))
    }

    /// The value of a key, `not set` where it has none.
    pub fn get(&self, key: &str) -> &str {
        self.0.get(key).map_or("not set", String::as_str)
    }

    /// The values of several keys, in their order.
    pub fn values(&self, keys: &[String]) -> Vec<String> {
        keys.iter().map(|key| self.get(key).to_owned()).collect()
    }

    #[cfg(test)]
    pub fn made_up(pairs: &[(&str, &str)]) -> RunKeys {
        RunKeys(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }
}

/// The content of training data and initial weights, from a lock.
fn contents(lock: &Lock) -> Vec<(String, String)> {
    let short = |hash: &str| hash.chars().take(8).collect::<String>();
    // By the key that names them: `data.shard.00000` is of `data.train`, `data.mix.web.shard.00000` of
    // `data.mix.web.train`.
    let mut shards: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (key, line) in &lock.numerics {
        if let (Some((of, _)), Some((_, content))) = (locked_shard(key), line.split_once(", ")) {
            shards.entry(format!("{of}.train")).or_default().push(content);
        }
    }
    let mut contents: Vec<(String, String)> = Vec::new();
    for (key, shards) in shards {
        let text = match &shards[..] {
            [only] => format!("sha256 {}", short(only.rsplit(' ').next().unwrap_or_default())),
            many => {
                format!("{} shards, {}", many.len(), short(&Hash::of(many.join("\n").as_bytes()).to_string()))
            }
        };
        contents.push((key, text));
    }
    let init = lock.numerics.get("model.init_sha256");
    contents.extend(init.map(|hash| ("model.init".to_owned(), format!("sha256 {}", short(hash)))));
    contents
}

/// A checkpoint to start from, by its run and step and its state root in the lock; none of another model.
fn checkpoint(path: &str, lock: &Lock) -> Option<String> {
    let root = lock.numerics.get("model.init_root")?;
    let name = experiment::checkpoint_name(path).unwrap_or_else(|| "a checkpoint".to_owned());
    Some(format!("{name}, root {}", root.chars().take(8).collect::<String>()))
}

pub(super) fn text_of(value: &Json) -> String {
    match value {
        Json::Null => "not set".to_owned(),
        Json::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The keys that can change a result and are not equal in all runs, in byte order; the seed is none of them.
pub fn differing<'a>(runs: impl Iterator<Item = &'a RunKeys> + Clone) -> Vec<String> {
    let names: BTreeSet<&String> = runs.clone().flat_map(|keys| keys.0.keys()).collect();
    let matters = |key: &str| experiment::pinned_by_content(key) || experiment::reaches_the_bits(key);
    let differs = |key: &str| runs.clone().map(|keys| keys.get(key)).collect::<BTreeSet<_>>().len() > 1;
    let names = names.into_iter().filter(|key| *key != SEED && matters(key) && differs(key));
    names.cloned().collect()
}

/// The keys of experiments that are asked for, in full or by their last part where that names one key; each
/// once.
///
/// # Errors
/// What is no key of an experiment, or the last part of several.
pub fn named_keys<'a>(
    asked: &[String],
    runs: impl Iterator<Item = &'a RunKeys> + Clone,
) -> Result<Vec<String>, ReportError> {
    let mut keys = Vec::new();
    for asked in asked {
        let key = named_key(asked, runs.clone())?;
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    Ok(keys)
}

fn named_key<'a>(
    asked: &str,
    runs: impl Iterator<Item = &'a RunKeys> + Clone,
) -> Result<String, ReportError> {
    let names: BTreeSet<&str> = runs.flat_map(|keys| keys.0.keys()).map(String::as_str).collect();
    if names.is_empty() || names.contains(asked) {
        return Ok(asked.to_owned());
    }
    let ending = format!(".{asked}");
    let ending: Vec<&str> = names.iter().filter(|name| name.ends_with(&ending)).copied().collect();
    let (what, hint) = match (&ending[..], experiment::nearest(asked, names.iter().copied())) {
        ([only], _) => return Ok((*only).to_owned()),
        ([], Some(near)) => ("no key of an experiment", format!("did you mean `{near}`?")),
        ([], None) => ("no key of an experiment", "`runner config EXPERIMENT` lists the keys".to_owned()),
        (several, _) => ("the last part of several keys", format!("one of `{}`", several.join("`, `"))),
    };
    Err(ReportError::Table { message: format!("`{asked}` is {what}\n  hint: {hint}") })
}

/// Indices of runs with equal values of the keys `by`, with these values; groups in the order of their
/// values, numbers by size.
pub fn group_by<'a>(
    by: &[String],
    runs: impl Iterator<Item = &'a RunKeys>,
) -> Vec<(Vec<String>, Vec<usize>)> {
    let mut groups: Vec<(Vec<String>, Vec<usize>)> = Vec::new();
    for (index, keys) in runs.enumerate() {
        let values = keys.values(by);
        match groups.iter_mut().find(|(found, _)| *found == values) {
            Some((_, members)) => members.push(index),
            None => groups.push((values, vec![index])),
        }
    }
    groups.sort_by(|(a, _), (b, _)| {
        let orders = a.iter().zip(b).map(|(a, b)| order(a, b));
        orders.fold(Ordering::Equal, Ordering::then)
    });
    groups
}

/// Numbers by size and before text; text by its bytes, but for whole numbers in it, which count by size:
/// `run:trunk@600` before `run:trunk@1000`.
pub fn order(a: &str, b: &str) -> Ordering {
    match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(x), Ok(y)) => x.total_cmp(&y),
        (Ok(_), Err(_)) => Ordering::Less,
        (Err(_), Ok(_)) => Ordering::Greater,
        (Err(_), Err(_)) => pieces(a).cmp(&pieces(b)).then_with(|| a.cmp(b)),
    }
}

/// A text in pieces that compare by themselves: digits, without leading zeros, by how many they are and then
/// by their bytes, and what is between them by its bytes.
fn pieces(text: &str) -> Vec<(usize, &str)> {
    let both = |a: u8, b: u8| a.is_ascii_digit() == b.is_ascii_digit();
    let pieces = text.as_bytes().chunk_by(|a, b| both(*a, *b));
    let mut at = 0;
    pieces
        .map(|piece| {
            let piece = &text[at..at + piece.len()];
            at += piece.len();
            match piece.starts_with(|first: char| first.is_ascii_digit()) {
                true => (piece.trim_start_matches('0').len() + 1, piece.trim_start_matches('0')),
                false => (usize::MAX, piece),
            }
        })
        .collect()
}

/// What makes a group of runs, of these values of the keys `by`, other than a sample of seeds: more than one
/// value of one of the `others`, or runs of one seed.
pub fn notes_on_sample(
    by: &[String],
    others: &[String],
    values: &[String],
    runs: &[&RunKeys],
) -> Vec<String> {
    let label = label(by, values);
    let values_of = |key: &str| runs.iter().map(|keys| keys.get(key)).collect::<BTreeSet<_>>();
    let mut notes = Vec::new();
    for key in others.iter().filter(|key| *key != SEED) {
        let values = values_of(key);
        if values.len() > 1 {
            let values: Vec<&str> = values.into_iter().collect();
            notes.push(format!("{label} has runs of different {key} ({})", values.join(", ")));
        }
    }
    let runs = runs.len();
    match values_of(SEED).len() {
        _ if by.iter().any(|key| key == SEED) => {}
        1 if runs > 1 => notes.push(format!(
            "{label} has {runs} runs of one seed: they are no sample of seeds, so its interval says \
             nothing of them"
        )),
        seeds if seeds < runs => notes.push(format!(
            "{label} has {runs} runs of {seeds} seeds: its interval takes them for independent, and may \
             be too narrow"
        )),
        _ => {}
    }
    notes
}

/// Runs in groups to draw by the keys `by`, and notes on what is no sample of seeds.
///
/// # Errors
/// `by` names no key of an experiment, or a run has no experiment that can be read.
pub fn to_draw(runs: Vec<RunData>, by: &[String]) -> Result<(Vec<PlotGroup>, Vec<String>), ReportError> {
    let read = |run: &RunData| match &run.folder {
        Some(folder) => RunKeys::read(folder, Lock::read(&RunPaths::new(folder).lock_file()).ok().as_ref()),
        None => Err(ReportError::Table {
            message: format!("`{}` is a log alone, and has no keys to be grouped by", run.name),
        }),
    };
    let keys: Vec<RunKeys> = runs.iter().map(read).collect::<Result<_, _>>()?;
    let by = &named_keys(by, keys.iter())?;
    let (failed, runs): (Vec<_>, Vec<_>) =
        runs.into_iter().zip(keys).partition(|(run, _)| run.failed.is_some());
    let left_out = failed.iter().filter_map(|(run, _)| {
        let steps = units::counted(run.trained().count() as u64, "step");
        Some(format!("{} is left out: {}, after {steps}", run.name, run.failed.as_ref()?))
    });
    let left_out: Vec<String> = left_out.collect();
    if runs.is_empty() && !failed.is_empty() {
        let message = format!(
            "nothing to plot: all of these runs have failed\n  hint: without `--by` each is drawn\n  {}",
            left_out.join("\n  ")
        );
        return Err(ReportError::Table { message });
    }
    let (runs, keys): (Vec<RunData>, Vec<RunKeys>) = runs.into_iter().unzip();
    let failed: Vec<RunKeys> = failed.into_iter().map(|(_, keys)| keys).collect();
    let drifted = runs.iter().filter_map(|run| {
        let row = run.rows.iter().find(|row| row.events.iter().any(|event| event == DRIFT))?;
        Some(format!(
            "{} went on under other settings from step {}: its keys are the last",
            run.name, row.step
        ))
    });
    let drifted: Vec<String> = drifted.collect();
    let mut runs: Vec<Option<RunData>> = runs.into_iter().map(Some).collect();
    let others: Vec<String> = differing(keys.iter()).into_iter().filter(|key| !by.contains(key)).collect();
    let groups = group_by(by, keys.iter());
    let of = |members: &[usize]| members.iter().map(|member| &keys[*member]).collect::<Vec<_>>();
    let lost = group_by(by, failed.iter());
    let lost = lost.iter().filter(|(values, _)| groups.iter().all(|(drawn, _)| drawn != values));
    let lost = lost
        .map(|(values, _)| format!("every run of {} has failed, so it is no group here", label(by, values)));
    let of_samples =
        groups.iter().flat_map(|(values, members)| notes_on_sample(by, &others, values, &of(members)));
    let notes = left_out.into_iter().chain(lost).chain(of_samples).chain(drifted).collect();
    let groups = groups.into_iter().map(|(values, members)| PlotGroup {
        name: label(by, &values),
        failed: failed.iter().filter(|keys| keys.values(by) == values).count(),
        runs: members.into_iter().filter_map(|member| runs[member].take()).collect(),
    });
    Ok((groups.collect(), notes))
}

/// `schedule.learning_rate = 0.001, seed = 2`; what a group of no key is called.
pub fn label(by: &[String], values: &[String]) -> String {
    if by.is_empty() {
        return "all runs".to_owned();
    }
    let pairs: Vec<String> = by.iter().zip(values).map(|(key, value)| format!("{key} = {value}")).collect();
    pairs.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs() -> Vec<RunKeys> {
        let run = |rate, seed, every| {
            RunKeys::made_up(&[("schedule.learning_rate", rate), ("seed", seed), ("eval.every", every)])
        };
        vec![run("0.01", "1", "5"), run("0.002", "1", "5"), run("0.01", "0", "7"), run("auto", "2", "5")]
    }

    #[test]
    fn runs_that_differ_in_the_seed_and_in_how_often_they_are_looked_at_are_of_one_kind() {
        let runs = runs();
        assert_eq!(differing(runs.iter()), ["schedule.learning_rate"]);
        assert_eq!(differing(runs[..1].iter()), [""; 0]);
    }

    #[test]
    fn groups_stand_in_the_order_of_numbers_and_text_comes_last() {
        let runs = runs();
        let by = ["schedule.learning_rate".to_owned()];
        let groups = group_by(&by, runs.iter());
        let labels: Vec<String> = groups.iter().map(|(values, _)| values.join(",")).collect();
        assert_eq!(labels, ["0.002", "0.01", "auto"]);
        assert_eq!(groups[1].1, [0, 2]);
        assert_eq!(label(&by, &groups[0].0), "schedule.learning_rate = 0.002");
        assert_eq!(group_by(&[], runs.iter()).len(), 1);
        let mut texts = ["run:b@1", "run:a@1000, root 0a", "run:a@600, root ff", "run:a@60", "run:a"];
        texts.sort_by(|a, b| order(a, b));
        assert_eq!(texts, ["run:a", "run:a@60", "run:a@600, root ff", "run:a@1000, root 0a", "run:b@1"]);
    }

    #[test]
    fn a_key_is_named_in_full_or_by_its_last_part_and_what_is_none_is_refused_with_a_hint() {
        let mut runs = runs();
        runs.push(RunKeys::made_up(&[("sample.every", "0")]));
        let named = |asked: &[&str]| {
            let asked: Vec<String> = asked.iter().map(|key| (*key).to_owned()).collect();
            named_keys(&asked, runs.iter())
        };
        let rate = "schedule.learning_rate";
        assert_eq!(named(&["eval.every", "learning_rate", rate]).unwrap(), ["eval.every", rate]);
        for (wrong, meant) in
            [("eval.evry", "did you mean `eval.every`?"), ("every", "one of `eval.every`, `sample.every`")]
        {
            let error = named(&[wrong]).unwrap_err().to_string();
            assert!(error.contains(meant), "{error}");
        }
    }
}
