//! An experiment against what was recorded of a run: its lock, and the manifests of its checkpoints.

use std::path::Path;

use super::error::{ProofRefusal, refuse_lock};
use super::lock;
use crate::experiment::{
    self, Compute, Experiment, Loaded, Origin, flatten, is_default, is_recorded, names_files,
    reaches_the_bits,
};
use crate::proof::LockError;
use crate::proof::lock::{Difference, Lock, Table};
use crate::store::{Manifest, RunPaths};

/// The origin of a key in a lock's table, where the key has this value there.
pub fn origin<'a>(lock: &'a Lock, key: &str, value: &serde_json::Value) -> Option<&'a str> {
    let rest = lock.config.get(key)?.strip_prefix(&lock::plain(value))?;
    // A text may look like another one with its origin, or be the beginning of one. Each has an origin.
    let is_text = value.is_string();
    if rest.is_empty() {
        return (!is_text).then_some(rest);
    }
    let origin = rest.strip_prefix(" (")?.strip_suffix(')')?;
    (!is_text || is_one_origin(origin)).then_some(origin)
}

/// Whether this is an origin alone, and not the rest of a text with one: whose parentheses do not match.
fn is_one_origin(origin: &str) -> bool {
    let mut open = 0usize;
    let matched = origin.chars().all(|letter| {
        match letter {
            '(' => open += 1,
            ')' => match open.checked_sub(1) {
                Some(left) => open = left,
                None => return false,
            },
            _ => {}
        }
        true
    });
    // A path may have one of them alone.
    (matched && open == 0) || !origin.contains(" (")
}

/// The first key, with its value, that the experiment has otherwise than a run's lock. The lock of an older
/// program lacks keys, which then had what is their default now.
pub fn other_value(lock: &Lock, loaded: &Loaded) -> Option<(String, String)> {
    let known = |key: &str, value: &serde_json::Value| {
        is_recorded(key) && (lock.config.contains_key(key) || !is_default(key, value))
    };
    let mut values = flatten(&loaded.experiment).into_iter().filter(|(key, value)| known(key, value));
    let other = values.find(|(key, value)| origin(lock, key, value).is_none());
    other.map(|(key, value)| (key, lock::plain(&value)))
}

/// Whether a finished run of this lock has the bits of the experiment, whose values may be others: none of a
/// key that reaches the bits, that names files, or of the name.
pub fn gives_same_bits(loaded: &Loaded, lock: &Lock) -> bool {
    let values = flatten(&loaded.experiment);
    let must_be = |key: &str| key == "name" || reaches_the_bits(key) || names_files(key);
    let same = values
        .iter()
        .filter(|(key, value)| must_be(key) && (lock.config.contains_key(*key) || !is_default(key, value)))
        .all(|(key, value)| origin(lock, key, value).is_some());
    same && numerics(loaded, lock).is_empty()
}

/// Keys of the experiment whose values the lock has otherwise. A key that the lock does not know was added by
/// a newer program, if it has its default.
pub fn settings(recorded: &Loaded, lock: &Lock) -> Vec<Difference> {
    let mut settings = config(recorded, lock);
    settings.extend(numerics(recorded, lock));
    settings
}

/// Those of them by the lock's table of values and origins.
pub fn config(recorded: &Loaded, lock: &Lock) -> Vec<Difference> {
    let values = flatten(&recorded.experiment);
    let config = values
        .iter()
        .filter(|(key, value)| is_recorded(key) && origin(lock, key, value).is_none())
        .filter_map(|(key, value)| difference(recorded, &lock.config, key, &lock::plain(value)));
    let removed = lock.config.iter().filter(|(key, _)| !values.contains_key(*key));
    let removed = removed.map(|(key, was)| Difference { key: key.clone(), was: Some(was.clone()), is: None });
    config.chain(removed).collect()
}

/// Those of them that reach the bits, by the lock's numerics.
pub fn numerics(recorded: &Loaded, lock: &Lock) -> Vec<Difference> {
    let experiment = &recorded.experiment;
    let auto = experiment.precision.compute == Compute::Auto;
    let here = lock::resolved_numerics(experiment);
    // Of a key that numerics leave out, the experiment has the default.
    let values = flatten(experiment);
    let left_out =
        lock.numerics.iter().filter(|(key, _)| !here.contains_key(*key)).filter_map(|(key, was)| {
            let is = lock::plain(values.get(key)?);
            (is != *was).then(|| Difference { key: key.clone(), was: Some(was.clone()), is: Some(is) })
        });
    let other = here
        .iter()
        .filter(|(key, value)| lock.numerics.get(*key) != Some(value))
        .filter(|(key, _)| *key != "device.kind" && !(auto && *key == "precision.compute"))
        .filter(|(key, _)| is_known(key, &lock.numerics))
        .filter_map(|(key, value)| difference(recorded, &lock.numerics, key, value));
    other.chain(left_out.collect::<Vec<_>>()).collect()
}

/// Whether a lock is of a program that names all that a run is measured on: one that knows this key.
pub fn knows_all(lock: &Lock) -> bool {
    lock.config.contains_key("proof.audit_every")
}

/// What a lock does not name of the data that its own settings have the run measured on.
pub fn left_out(lock: &Lock) -> Vec<&'static str> {
    let is = |key: &str, value: serde_json::Value| origin(lock, key, &value).is_some();
    if !knows_all(lock) || !lock.config.contains_key("eval.every") || is("eval.every", 0.into()) {
        return Vec::new();
    }
    let scored = !is("eval.hellaswag", serde_json::Value::Null);
    let names = |begin: &str| lock.environment.keys().any(|key| key.starts_with(begin));
    let implied = [lock::VALIDATION_SET, lock::VALIDATION_SHARD].into_iter();
    implied.chain(scored.then_some(lock::TASKS)).filter(|begin| !names(begin)).collect()
}

/// Refuses a lock that has less than its program wrote.
pub fn require_measure(lock: &Lock, path: &Path) -> Result<(), ProofRefusal> {
    let left_out = left_out(lock);
    match left_out.is_empty() {
        true => Ok(()),
        false => Err(ProofRefusal(format!(
            "`{}` does not name what the run is measured on (`{}`): that was taken out of it\n  hint: \
             restore it from a copy",
            path.display(),
            left_out.join("`, `")
        ))),
    }
}

/// Whether the numerics of a lock can be held to a key: those of an older program have no `checkpoint.every`,
/// and say nothing of where a rewind goes back to.
pub fn is_known(key: &str, locked: &Table) -> bool {
    key != "checkpoint.every" || locked.contains_key(key)
}

/// That the experiment has `value` of a key, and `table` another; none of a new key at its default.
fn difference(recorded: &Loaded, table: &Table, key: &str, value: &str) -> Option<Difference> {
    let is_new =
        !table.contains_key(key) && matches!(recorded.origins.get(key), None | Some(Origin::Default));
    (!is_new).then(|| Difference {
        key: key.to_owned(),
        was: table.get(key).cloned(),
        is: Some(value.to_owned()),
    })
}

/// Whether a name in numerics is a key of an experiment, and not a fact that was found in files or on a
/// device.
fn is_key(key: &str, here: &Table) -> bool {
    here.contains_key(key) || experiment::keys().any(|known| known == key)
}

/// Refuses an experiment with another model, or another tokenizer, than its checkpoint was made with or the
/// lock in its folder holds: the parameters may fit all the same, as with another number of heads.
///
/// # Errors
/// The first key that differs; a lock that is damaged.
pub(super) fn require_made_with(
    experiment: &Experiment,
    manifest: &Manifest,
    paths: &RunPaths,
) -> anyhow::Result<()> {
    let of_checkpoint = format!("the checkpoint of step {} was made with", manifest.step);
    require_model(experiment, &manifest.numerics, &of_checkpoint)?;
    let lock = match Lock::read(&paths.lock_file()) {
        Ok(lock) => lock,
        // Without one, the checkpoint alone says what the model is.
        Err(LockError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(damaged) => return Err(refuse_lock(damaged)),
    };
    Ok(require_model(experiment, &lock.numerics, "the lock of its run holds")?)
}

/// Refuses an experiment with another model or tokenizer than `numerics`, which `what` says the origin of.
fn require_model(experiment: &Experiment, numerics: &Table, what: &str) -> Result<(), ProofRefusal> {
    let here = lock::resolved_numerics(experiment);
    // Those of before say nothing of the model.
    if !numerics.contains_key("model.layers") {
        return Ok(());
    }
    // Of a key that one of them lacks, it has the default.
    let is_of_model =
        |key: &&String| (key.starts_with("model.") && is_key(key, &here)) || *key == "data.tokenizer";
    let mut keys = numerics.keys().chain(here.keys()).filter(is_of_model);
    keys.find(|key| here.get(*key) != numerics.get(*key)).map_or(Ok(()), |key| {
        let of = |value: Option<&String>| value.map_or("the default", String::as_str).to_owned();
        Err(ProofRefusal(format!(
            "{what} `{key}` = {}, and its experiment has {}\n  hint: restore `experiment.toml`, or \
             `lock.toml`, from a copy: `runner verify` says what was edited",
            of(numerics.get(key)),
            of(here.get(key))
        )))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_names_all_that_its_settings_have_the_run_measured_on() {
        let table = |pairs: &[(&str, &str)]| -> Table {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let config = table(&[
            ("eval.every", "10 (default)"),
            ("eval.hellaswag", "h.jsonl (a.toml:3)"),
            ("proof.audit_every", "0 (default)"),
        ]);
        let environment = table(&[
            ("data.hellaswag", "h.jsonl, 9 bytes, sha256 00"),
            ("data.val_shard.00000", "v.bin, 9 tokens, sha256 00"),
            ("data.validation_sha256", "00"),
        ]);
        let whole = Lock { config, environment, ..Lock::default() };
        assert!(left_out(&whole).is_empty());
        for (key, begin) in [
            ("data.hellaswag", "data.hellaswag"),
            ("data.val_shard.00000", "data.val_shard"),
            ("data.validation_sha256", "data.validation_sha256"),
        ] {
            let mut lock = whole.clone();
            lock.environment.remove(key);
            assert_eq!(left_out(&lock), [begin]);
            let refused = require_measure(&lock, Path::new("lock.toml")).expect_err("a line is gone");
            assert!(refused.0.contains(begin), "{refused}");
            for (key, value) in [("eval.every", "0 (--set)"), ("eval.every", "0")] {
                let mut off = lock.clone();
                off.config.insert(key.into(), value.into());
                assert!(left_out(&off).is_empty(), "nothing is measured");
            }
            let mut older = lock.clone();
            older.config.remove("proof.audit_every");
            assert!(left_out(&older).is_empty(), "a lock of an older program");
        }
        let mut unscored = whole;
        unscored.config.insert("eval.hellaswag".into(), "not set (default)".into());
        unscored.environment.remove("data.hellaswag");
        assert!(left_out(&unscored).is_empty());
    }

    #[test]
    fn the_lock_of_an_older_program_is_not_held_to_where_a_rewind_goes_back_to() {
        let text = "[model]\nlayers=1\nheads=1\nchannels=64\n[data]\ncorpus='kjv'\n[schedule]\nsteps=9\n\
                    [checkpoint]\nevery=3\n[guards]\non_diverge='rewind'\n";
        let loaded = experiment::load_text("t", text, &[]).expect("a whole experiment");
        let mut lock = Lock { numerics: lock::resolved_numerics(&loaded.experiment), ..Lock::default() };
        assert_eq!(numerics(&loaded, &lock).len(), 0);
        lock.numerics.insert("checkpoint.every".into(), "5".into());
        assert_eq!(numerics(&loaded, &lock).len(), 1);
        lock.numerics.remove("checkpoint.every");
        assert_eq!(numerics(&loaded, &lock).len(), 0);
    }

    #[test]
    fn a_text_with_parentheses_is_neither_its_beginning_nor_itself_with_its_origin() {
        let reads = |written: &str, value: serde_json::Value| {
            let config = [("sample.prompt".to_owned(), written.to_owned())].into();
            let lock = Lock { config, ..Lock::default() };
            origin(&lock, "sample.prompt", &value).map(str::to_owned)
        };
        let is = |written: &str, value: &str, from: &str| {
            assert_eq!(reads(written, value.into()).as_deref(), Some(from), "{written}");
        };
        is("Hello (default)", "Hello", "default");
        is("Hello (world) (a.toml:3)", "Hello (world)", "a.toml:3");
        is("Hello (a (1) (b).toml:3)", "Hello", "a (1) (b).toml:3");
        is("Hello (a).toml:3)", "Hello", "a).toml:3");
        for (written, other) in [
            ("Hello (world) (a.toml:3)", "Hello"),
            ("Hello (wor (a.toml:3)", "Hello"),
            ("Hello (a) (b) (a.toml:3)", "Hello (a)"),
            ("Hello (a.toml:3)", "Hello (a.toml:3)"),
            ("Hello (a.toml:3)", "Hell"),
        ] {
            assert_eq!(reads(written, other.into()), None, "{written}");
        }
        assert_eq!(reads("7 (a (b.toml:3)", 7.into()).as_deref(), Some("a (b.toml:3"));
        assert_eq!(reads("7", 7.into()).as_deref(), Some(""));
        assert_eq!(reads("70 (default)", 7.into()), None);
    }
}
