//! What `verify` finds: every flipped bit, every rewritten history, every step that does not repeat.

use std::path::Path;

use runner::proof::{Entry, Head, Validation, ledger};
use runner::store::{self, Facts, Manifest, Records, RunPaths, Timing};
use serde_json::Value;

use crate::support::{Lab, flip_bit};

const CI: &str = "experiments/ci.toml";

pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).expect("a copy");
        }
    }
}

#[track_caller]
pub fn assert_finds(lab: &Lab, run: &str, arguments: &[&str], says: &[&str]) {
    let verified = lab.verify(run, arguments);
    assert_eq!(verified.code, Some(5), "{run}: {}{}", verified.stdout, verified.stderr);
    for text in says {
        assert!(verified.stdout.contains(text), "{run}: `{text}` is not in:\n{}", verified.stdout);
    }
}

/// The facts under which a checkpoint was saved.
pub fn facts(manifest: &Manifest) -> Facts {
    Facts {
        experiment: manifest.experiment.clone(),
        step: manifest.step,
        tokens: manifest.tokens,
        updates: manifest.updates,
        ledger: manifest.ledger,
        numerics: manifest.numerics.clone(),
        created_by: manifest.created_by.clone(),
        state_root: None,
    }
}

#[test]
fn a_run_without_its_checkpoints_is_held_to_the_end_of_its_ledger() {
    let lab = Lab::new();
    lab.run(CI, &[]).root();
    let run = lab.path("ci");
    std::fs::remove_dir_all(run.join("checkpoints")).expect("there are some");
    lab.verify("ci", &[]).assert_says(&["skipped outputs: no checkpoint is here"]);
    let ledger = std::fs::read_to_string(run.join("ledger.jsonl")).expect("a ledger");
    let cut = ledger.trim_end().rfind('\n').expect("lines");
    std::fs::write(run.join("ledger.jsonl"), &ledger[..=cut]).expect("writable");
    assert_finds(&lab, "ci", &[], &["outputs: the lock's are not those of checkpoints and ledger"]);
}

#[test]
fn a_whole_run_verifies_and_its_steps_repeat() {
    let lab = Lab::new();
    lab.run(CI, &[]).root();
    let verified = lab.verify("ci", &["--replay", "5..12"]);
    assert_eq!(verified.code, Some(0), "{}{}", verified.stdout, verified.stderr);
    assert!(verified.stdout.contains("steps 5 to 11 gave the same bits again"), "{}", verified.stdout);
    let json: Value =
        serde_json::from_str(&lab.verify("ci", &["--json", "--replay", "0..3"]).stdout).expect("JSON alone");
    assert_eq!(json["ok"], true);
    let checks = json["checks"].as_array().expect("a list");
    assert!(checks.len() > 5 && checks.iter().all(|check| check["status"] == "ok"), "{json:#}");
    lab.verify("ci", &["--replay", "3..12"]).assert_fails(2, &["no checkpoint of step 3", "hint:"]);
}

#[test]
fn every_flipped_bit_of_a_run_is_found_and_located() {
    let lab = Lab::new();
    lab.run(CI, &[]).root();
    let checkpoint = "checkpoints/step_00000010";
    let table: [(&str, f64, &[&str]); 7] = [
        (&format!("{checkpoint}/state.safetensors"), 0.9, &["checkpoint 10", "tensor `", "is damaged"]),
        (&format!("{checkpoint}/state.safetensors"), 0.0, &["checkpoint 10", "header"]),
        (&format!("{checkpoint}/manifest.json"), 0.5, &["checkpoint 10", "manifest.json"]),
        ("ledger.jsonl", 0.5, &["ledger.jsonl` line "]),
        ("lock.toml", 0.3, &["lock.toml"]),
        ("lock.toml", 0.9, &["lock.toml"]),
        ("metrics.jsonl", 0.505, &["metrics"]),
    ];
    for (number, (file, at, says)) in table.into_iter().enumerate() {
        let run = format!("run{number}");
        copy(&lab.path("ci"), &lab.path(&run));
        if file == "metrics.jsonl" {
            // The bits of a loss: an arbitrary byte may be one of a timing, which is not checked.
            let path = lab.path(&run).join(file);
            let text = std::fs::read_to_string(&path).expect("rows");
            let (before, after) = text.split_once("\"loss_bits\":\"0x").expect("bits");
            let digit = if after.starts_with('4') { '5' } else { '4' };
            std::fs::write(&path, format!("{before}\"loss_bits\":\"0x{digit}{}", &after[1..]))
                .expect("writable");
        } else {
            flip_bit(&lab.path(&run).join(file), at);
        }
        assert_finds(&lab, &run, &[], says);
    }
}

#[test]
fn a_ledger_that_was_cut_reordered_or_spliced_is_located() {
    let lab = Lab::new();
    lab.run(CI, &[]).root();
    lab.run(CI, &["--name", "other", "--set", "seed=2"]).root();
    let lines = lab.ledger("ci");
    let changed = |run: &str, lines: Vec<String>| {
        copy(&lab.path("ci"), &lab.path(run));
        std::fs::write(lab.path(run).join("ledger.jsonl"), lines.join("\n") + "\n").expect("writable");
    };
    changed("cut", lines[..17].to_vec());
    assert_finds(&lab, "cut", &[], &["checkpoint 20 in the ledger", "the ledger has fewer lines"]);
    let mut swapped = lines.clone();
    swapped.swap(8, 9);
    changed("swapped", swapped);
    assert_finds(&lab, "swapped", &[], &["ledger.jsonl` line 9"]);
    let spliced = lines[..7].iter().cloned().chain(lab.ledger("other")[7..].to_vec()).collect();
    changed("spliced", spliced);
    assert_finds(&lab, "spliced", &[], &["ledger.jsonl` line 8"]);
    // Consistent in itself, but not the log whose heads the checkpoints have.
    changed("foreign", lab.ledger("other"));
    assert_finds(&lab, "foreign", &[], &["checkpoint 5 in the ledger", "was rewritten"]);
}

/// Writes ledger, metrics and `main.log` of a run anew, of these entries. Gives the head after each.
pub fn rewrite_records(run: &Path, entries: &[Entry]) -> Vec<Head> {
    for file in ["ledger.jsonl", "metrics.jsonl", "metrics.parquet", "main.log"] {
        std::fs::remove_file(run.join(file)).expect("there");
    }
    let mut forged = Records::open(&RunPaths::new(run), None, None, 0).expect("writable");
    let timing = Timing { step_ms: 1.0, tokens_per_s: 1.0, mfu: None };
    let written = entries.iter().map(|entry| {
        forged.add(entry, entry.loss.map(|_| timing)).expect("written");
        forged.sync().expect("written")
    });
    written.collect()
}

/// Writes other entries, and heads of theirs into all checkpoints.
pub fn rewrite_history(run: &Path, entries: &[Entry]) {
    let heads = rewrite_records(run, entries);
    let checkpoints = run.join("checkpoints");
    for (_, folder) in store::list(&checkpoints).expect("some") {
        let (manifest, state) = store::load(&folder).expect("whole");
        let ledger = heads[manifest.step as usize - 1];
        store::save(&checkpoints, &state, &Facts { ledger, ..facts(&manifest) }).expect("saved");
    }
    let mut lock = runner::proof::Lock::read(&run.join("lock.toml")).expect("a lock");
    lock.outputs.clear();
    std::fs::write(run.join("lock.toml"), lock.to_text()).expect("writable");
}

/// Consistent in their own files and seals; each is found against another file.
#[test]
fn counts_drift_and_a_missing_last_evaluation_are_held_against_the_ledger() {
    let lab = Lab::new();
    lab.run(CI, &[]).root();
    let fresh = |name: &str| {
        copy(&lab.path("ci"), &lab.path(name));
        let checkpoints = lab.path(name).join("checkpoints");
        let (_, folder) = store::list(&checkpoints).expect("some").remove(1);
        (checkpoints, store::load(&folder).expect("whole"))
    };
    let (checkpoints, (manifest, state)) = fresh("tokens");
    let tokens = manifest.tokens + 1;
    store::save(&checkpoints, &state, &Facts { tokens, ..facts(&manifest) }).expect("saved");
    assert_finds(&lab, "tokens", &[], &["checkpoint 10 in the ledger: its manifest says 5121 tokens"]);
    let (checkpoints, (manifest, state)) = fresh("updates");
    store::save(&checkpoints, &state, &Facts { updates: 3, ..facts(&manifest) }).expect("saved");
    assert_finds(&lab, "updates", &[], &["its manifest says 3 updates, the ledger has 10"]);
    // A note that leave was given for other numerics, which no entry confirms.
    let (checkpoints, (manifest, state)) = fresh("drift");
    let mut other = facts(&manifest);
    other.numerics.insert("seed".into(), "2".into());
    store::save(&checkpoints, &state, &other).expect("saved");
    let mut lines = lab.ledger("drift");
    lines.insert(12, r#"{"note":{"after":12,"kind":"drift","text":"`seed` was 2, is 1337"}}"#.into());
    std::fs::write(lab.path("drift").join("ledger.jsonl"), lines.join("\n") + "\n").expect("writable");
    assert_finds(&lab, "drift", &[], &["numerics of checkpoint 10: not those of the lock", "`seed` was 2"]);
    fresh("unmeasured");
    let (_, entries) = ledger::read(&lab.path("ci").join("ledger.jsonl")).expect("a ledger");
    rewrite_records(&lab.path("unmeasured"), &entries[..20]);
    assert_finds(&lab, "unmeasured", &[], &["last evaluation: the run has ended"]);
}

/// An evaluation of a set that is not here cannot be measured again, and is counted.
#[test]
fn a_replay_says_how_many_evaluations_it_could_not_measure() {
    let lab = Lab::new();
    lab.run(CI, &[]).root();
    let run = lab.path("ci");
    let (_, mut entries) = ledger::read(&run.join("ledger.jsonl")).expect("a ledger");
    let last = entries.last_mut().and_then(|entry| entry.evaluation.as_mut()).expect("an evaluation");
    last.validation = Some(Validation { loss: 1.0, tokens: 4096 });
    rewrite_records(&run, &entries);
    let mut lock = runner::proof::Lock::read(&run.join("lock.toml")).expect("a lock");
    lock.outputs.clear();
    std::fs::write(run.join("lock.toml"), lock.to_text()).expect("writable");
    let says =
        "the entry of step 20 has a validation loss on 4,096 tokens, and the set of the run has 2,048 tokens";
    assert_finds(&lab, "ci", &[], &[says]);
    // As an older program noted that the set was exchanged.
    let mut ledger = ledger::Ledger::open(&run.join("ledger.jsonl")).expect("a ledger");
    ledger.note("environment", "`data.validation_sha256` was 00, is 11").expect("written");
    drop(ledger);
    let unmeasured = lab.verify("ci", &["--replay", "15..20"]);
    assert!(unmeasured.stdout.contains("again, but for 1 evaluation of other sets"), "{}", unmeasured.stdout);
}

/// A run whose whole history was rewritten consistently; only training again can tell.
#[test]
fn a_forged_history_does_not_survive_a_replay() {
    let lab = Lab::new();
    lab.run(CI, &[]).root();
    let run = lab.path("ci");
    let path = run.join("ledger.jsonl");
    let (_, mut entries) = ledger::read(&path).expect("a ledger");
    entries[7].loss = entries[7].loss.map(|loss| f64::from_bits(loss.to_bits() ^ 1));
    rewrite_history(&run, &entries);

    assert_eq!(lab.verify("ci", &[]).code, Some(0), "nothing shows but the bits");
    assert_finds(
        &lab,
        "ci",
        &["--replay", "5..10"],
        &["step 7 gave other bits", "loss: ", "suspect the hardware"],
    );
}

/// Rows that were cut, doubled or changed, and files that are empty or missing; the messages are tested in
/// the unit tests of the comparison.
#[test]
fn figures_that_are_not_the_ledgers_are_found_in_each_file() {
    let lab = Lab::new();
    lab.run(CI, &[]).root();
    /// A file, a change of its text, and the message that it must give.
    type Damage = (&'static str, fn(&str) -> String, &'static [&'static str]);
    let damage: [Damage; 5] = [
        (
            "metrics.jsonl",
            |text| text.lines().take(20).map(|l| format!("{l}\n")).collect(),
            &["line 21", "step 20"],
        ),
        (
            "metrics.jsonl",
            |text| text.replacen("\"val_loss\":5", "\"val_loss\":4", 1),
            &["line 1", "`val_loss`"],
        ),
        ("metrics.jsonl", |_| String::new(), &["the file has no row"]),
        ("main.log", |text| text.replacen("tel:5", "tel:4", 1), &["line 1", "`tel`"]),
        ("metrics.parquet", |_| String::new(), &["metrics.parquet"]),
    ];
    for (number, (file, change, says)) in damage.into_iter().enumerate() {
        let run = format!("run{number}");
        copy(&lab.path("ci"), &lab.path(&run));
        let path = lab.path(&run).join(file);
        let before = std::fs::read(&path).expect("the file");
        let after = change(&String::from_utf8_lossy(&before));
        assert_ne!(before, after.as_bytes(), "{file}: something is changed");
        std::fs::write(&path, after).expect("writable");
        assert_finds(&lab, &run, &[], says);
        let plotted = lab.verb("plot", &run, &[]);
        assert!(
            file != "metrics.jsonl" || plotted.stderr.contains("not verified") || plotted.code == Some(1)
        );
    }
    let whole = lab.verb("plot", "ci", &[]);
    assert!(whole.code == Some(0) && !whole.stderr.contains("not verified"), "{}", whole.stderr);
}

#[test]
fn an_experiment_is_trained_twice_killed_once_and_held_to_golden_roots() {
    let lab = Lab::new();
    let golden = lab.path("golden.txt").display().to_string();
    let short = [
        "--set",
        "schedule.steps=8",
        "--set",
        "schedule.warmup_steps=1",
        "--set",
        "eval.every=0",
        "--set",
        "sample.every=0",
    ];
    let twice = |more: &[&str]| lab.finish(&[&["verify", CI, "--twice"], short.as_slice(), more].concat());
    let blessed = twice(&["--bless", &golden]);
    assert_eq!(blessed.code, Some(0), "{}{}", blessed.stdout, blessed.stderr);
    assert!(blessed.stdout.contains("two processes gave the same bits"), "{}", blessed.stdout);

    let changed = twice(&["--expect", &golden, "--set", "schedule.learning_rate=2e-3"]);
    assert_eq!(changed.code, Some(5), "{}{}", changed.stdout, changed.stderr);
    for says in [
        "the root at step 1 is the first that differs",
        "first differing tensor at step 2: `adam_m/",
        "--bless",
    ] {
        assert!(changed.stdout.contains(says), "`{says}` is not in:\n{}", changed.stdout);
    }
}

#[test]
fn the_committed_roots_are_golden() {
    let lab = Lab::new();
    let verified = lab.finish(&["verify", CI, "--twice", "--expect", "tests/golden/ci_cpu.root"]);
    assert_eq!(verified.code, Some(0), "{}{}", verified.stdout, verified.stderr);
}
