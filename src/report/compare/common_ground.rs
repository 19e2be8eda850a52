//! What runs must have in common to be compared, and what is to be known of those that are.

use std::collections::BTreeSet;
use std::path::Path;

use super::runs::{BUDGET, ComparedRun, LeftOutRun, ReadRun, RunGroup};
use crate::proof::Lock;
use crate::report::groups::{self, RunKeys, SEED};
use crate::store::RunPaths;
use crate::units;

/// The key of what training starts from.
const INIT: &str = "model.init";

/// What runs must have in common to be compared.
pub(super) struct CommonGround {
    of: fn(&ComparedRun) -> String,
    /// Why the first is left out, beside one of those that stay.
    why: fn(&ComparedRun, &ComparedRun) -> String,
}

pub(super) static COMMON_GROUND: [CommonGround; 3] = [
    CommonGround {
        of: |run| run.tokenizer.clone(),
        why: |odd, usual| {
            let name = |run: &ComparedRun| run.keys.get("data.tokenizer").to_owned();
            format!(
                "its tokenizer is `{}` and that of the others `{}`: losses in nats a token do not compare",
                name(odd),
                name(usual)
            )
        },
    },
    CommonGround {
        of: |run| run.validation_set.clone(),
        why: |_, _| {
            "it was validated on other tokens than the others: data, eval.val_tokens or batch.seq_len differ"
                .to_owned()
        },
    },
    CommonGround {
        of: |run| run.tokens.to_string(),
        why: |odd, usual| {
            let budget = |run: &ComparedRun| {
                format!("{} in {}", units::counted(run.tokens, "token"), units::counted(run.steps, "step"))
            };
            let key = BUDGET.iter().find(|key| odd.keys.get(key) != usual.keys.get(key));
            let advice = key.map_or(String::new(), |key| format!(": `--by {key}` makes groups of them"));
            format!("it was trained on {}, the others on {}{advice}", budget(odd), budget(usual))
        },
    },
];

/// Of runs by name and folder whose losses stand beside each other though they do not compare: two of them,
/// and why. What is wrong with a lock, others say.
pub fn notes_on_losses(runs: &[(&str, &Path)]) -> Vec<String> {
    let lock = |folder: &Path| Lock::read(&RunPaths::new(folder).lock_file()).ok();
    let locks: Vec<(&str, Lock)> =
        runs.iter().filter_map(|(name, folder)| Some((*name, lock(folder)?))).collect();
    let differing = |of: fn(&Lock) -> Option<&String>| {
        let mut known = locks.iter().filter_map(|(name, lock)| Some((*name, of(lock)?)));
        let (first, usual) = known.next()?;
        let (odd, _) = known.find(|(_, value)| *value != usual)?;
        Some((first, odd))
    };
    if let Some((first, odd)) = differing(tokenizer) {
        return vec![format!(
            "`{first}` and `{odd}` have different tokenizers: losses in nats a token do not compare"
        )];
    }
    let validated = differing(validation_set).map(|(first, odd)| {
        format!("`{first}` and `{odd}` were validated on different tokens: validation losses do not compare")
    });
    validated.into_iter().collect()
}

/// The hash of the tokens that a run is validated on.
pub(super) fn validation_set(lock: &Lock) -> Option<&String> {
    lock.environment.get("data.validation_sha256")
}

/// The hash of a run's tokenizer.
pub(super) fn tokenizer(lock: &Lock) -> Option<&String> {
    lock.numerics.get("data.tokenizer_sha256")
}

/// Of those that are compared in their scores of HellaSwag.
pub(super) static TASKS: CommonGround = CommonGround {
    of: |run| run.tasks.clone().unwrap_or_default(),
    why: |_, _| "it has HellaSwag on other tasks than the others".to_owned(),
};

impl CommonGround {
    /// Of these members those stay that have what most have, or the first of them.
    pub(super) fn hold(&self, read: &mut [ReadRun], members: &[usize]) {
        let values: Vec<(usize, String)> = members
            .iter()
            .filter_map(|member| Some((*member, (self.of)(read[*member].as_ref().ok()?))))
            .collect();
        let count = |value: &str| values.iter().filter(|(_, other)| other == value).count();
        // `max_by_key` takes the last of equals.
        let Some((usual, common)) = values.iter().rev().max_by_key(|(_, value)| count(value)) else { return };
        let Ok(usual) = read[*usual].clone() else { return };
        for (member, _) in values.iter().filter(|(_, value)| value != common) {
            if let Ok(odd) = &read[*member] {
                let why = (self.why)(odd, &usual);
                let (run, keys) = (odd.name.clone(), Some(odd.keys.clone()));
                read[*member] = Err(LeftOutRun { run, why, failed: false, keys });
            }
        }
    }
}

/// Which groups are no samples of seeds.
pub(super) fn notes_on_samples(by: &[String], pair_by: &[String], groups: &[RunGroup]) -> Vec<String> {
    let note = |group: &RunGroup| {
        let keys: Vec<&RunKeys> = group.runs.iter().map(|run| &run.keys).collect();
        groups::notes_on_sample(by, pair_by, &group.values, &keys)
    };
    groups.iter().flat_map(note).collect()
}

/// What is to be known of groups before they are compared. HellaSwag of other tasks than the first is taken
/// out.
pub(super) fn notes_on(by: &[String], groups: &mut [RunGroup]) -> Vec<String> {
    let mut notes = Vec::new();
    if by.len() > 1 && by.iter().any(|key| key == SEED) {
        notes.push(
            "each group is of one seed: what is found is of these seeds, whose runs are no sample of others"
                .to_owned(),
        );
    }
    let all = || groups.iter().flat_map(|group| &group.runs);
    let starts: BTreeSet<&str> = all().map(|run| run.keys.get(INIT)).collect();
    if starts.len() > 1 {
        notes.push(format!(
            "runs start from different weights ({INIT}): the tokens that these were trained on before are \
             counted nowhere here"
        ));
    }
    let range = |of: fn(&ComparedRun) -> u64| Some((all().map(of).min()?, all().map(of).max()?));
    let uneven = |of| range(of).filter(|(low, high)| low != high);
    if let Some((low, high)) = uneven(|run| run.tokens) {
        let (low, high) = (units::thousands(low), units::thousands(high));
        notes.push(format!("groups differ in the tokens that they were trained on, {low} to {high}"));
    } else if let Some((low, high)) = uneven(|run| run.steps) {
        let (low, high) = (units::thousands(low), units::thousands(high));
        notes.push(format!("runs make {low} to {high} steps of equally many tokens in all"));
    }
    if let Some((low, high)) = uneven(|run| run.validations.len() as u64) {
        notes.push(format!(
            "the best validation loss is the lowest of {low} validations in one run and of \
                            {high} in another: more give a lower one"
        ));
    }
    let tasks = all().find_map(|run| run.hellaswag.and(run.tasks.clone()));
    for run in groups.iter_mut().flat_map(|group| &mut group.runs) {
        if run.hellaswag.is_some() && run.tasks != tasks {
            run.hellaswag = None;
            notes.push(format!("{} has HellaSwag on other tasks: its score is not compared", run.name));
        }
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    type Change = fn(&mut ComparedRun);

    fn why(read: &[ReadRun]) -> Vec<&str> {
        read.iter().filter_map(|run| run.as_ref().err().map(|run| run.why.as_str())).collect()
    }

    #[test]
    fn the_odd_run_is_left_out_and_said_to_differ_in_tokenizer_validation_data_or_tokens() {
        let of = |seed, change: Change| {
            let mut run = ComparedRun::made_up("0.1", seed, &[], 3.0);
            change(&mut run);
            run
        };
        let usual = |seed| of(seed, |_| ());
        let changes: [(Change, &str); 3] = [
            (|run| run.tokenizer = "gpt2".into(), "nats a token do not compare"),
            (|run| run.validation_set = "w".into(), "validated on other tokens"),
            (|run| (run.tokens, run.steps) = (20_480, 40), "trained on 20,480 tokens in 40 steps"),
        ];
        for (common, (change, says)) in COMMON_GROUND.iter().zip(changes) {
            let mut read: Vec<ReadRun> = vec![Ok(of(0, change)), Ok(usual(1)), Ok(usual(2))];
            common.hold(&mut read, &[0, 1, 2]);
            assert!(read[0].is_err() && why(&read).len() == 1 && why(&read)[0].contains(says), "{read:?}");
            // Of two the first stays.
            let mut read: Vec<ReadRun> = vec![Ok(of(0, change)), Ok(usual(1))];
            common.hold(&mut read, &[0, 1]);
            assert!(read[0].is_ok() && read[1].is_err());
        }
    }

    #[test]
    fn runs_whose_losses_stand_beside_each_other_are_said_not_to_compare() {
        let root = tempfile::tempdir().unwrap();
        let folder = |name: &str, tokenizer: &str, tokens: &str| {
            let folder = root.path().join(name);
            std::fs::create_dir(&folder).unwrap();
            let mut lock = Lock::default();
            lock.numerics.insert("data.tokenizer_sha256".into(), tokenizer.into());
            lock.environment.insert("data.validation_sha256".into(), tokens.into());
            std::fs::write(folder.join("lock.toml"), lock.to_text()).unwrap();
            folder
        };
        let [a, b, c] = [("a", "byte", "x"), ("b", "byte", "y"), ("c", "gpt2", "y")]
            .map(|(name, tokenizer, tokens)| (name, folder(name, tokenizer, tokens)));
        let notes = |runs: &[&(&str, std::path::PathBuf)]| {
            notes_on_losses(&runs.iter().map(|(name, folder)| (*name, folder.as_path())).collect::<Vec<_>>())
        };
        assert!(notes(&[&a, &a]).is_empty());
        assert!(notes(&[&a, &b])[0].starts_with("`a` and `b` were validated on different tokens"));
        assert!(notes(&[&a, &b, &c])[0].starts_with("`a` and `c` have different tokenizers"));
        assert!(notes(&[&a, &("gone", root.path().join("gone"))]).is_empty());
    }
}
