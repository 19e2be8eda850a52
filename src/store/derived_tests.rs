use std::path::PathBuf;

use super::*;
use crate::proof::{Evaluation, HellaSwag, Validation};
use crate::store::main_log::MainLogWriter;
use crate::store::metrics::MetricsWriter;
use crate::store::{Records, Timing};

const ENDED: Reach = Reach { saved: 6, ended: true, running: false };

fn entry(step: u64) -> Entry {
    let validation = (step.is_multiple_of(2)).then_some(Validation { loss: 4.0 - step as f64, tokens: 64 });
    let hellaswag = validation.map(|_| HellaSwag {
        tasks: 3,
        llmc_correct: step % 3,
        acc_correct: None,
        acc_norm_correct: Some(1),
        acc_bytes_correct: Some(1),
    });
    let skipped = step == 3;
    Entry {
        step,
        tokens: (step + 1) * 64,
        root: None,
        loss: Some(if skipped { -f64::NAN } else { 5.0 - step as f64 / 7.0 }),
        grad_norm: Some(1.0),
        learning_rate: Some(1e-3),
        loss_z: (step > 3).then_some(-0.5),
        grad_z: None,
        action: if skipped { Action::SkipNonfinite } else { Action::Update },
        events: if step == 4 { vec!["rewind from step 5 to step 4".into()] } else { vec![] },
        evaluation: Some(Evaluation { validation, hellaswag, ..Evaluation::default() }),
        audit: None,
        sources: Default::default(),
    }
}

fn entries() -> Vec<Entry> {
    let last = Entry {
        tokens: 6 * 64,
        loss: None,
        grad_norm: None,
        learning_rate: None,
        loss_z: None,
        action: Action::Evaluate,
        ..entry(6)
    };
    (0..6).map(entry).chain([last]).collect()
}

/// A run of six steps and the evaluation after them.
fn run(entries: &[Entry]) -> (tempfile::TempDir, RunPaths) {
    let folder = tempfile::tempdir().unwrap();
    let paths = RunPaths::new(folder.path());
    let mut records = Records::open(&paths, None, None, 0).unwrap();
    for entry in entries {
        let timing = Timing { step_ms: 1.5, tokens_per_s: 1e4, mfu: None };
        records.add(entry, entry.loss.map(|_| timing)).unwrap();
    }
    records.sync().unwrap();
    (folder, paths)
}

fn faults(paths: &RunPaths, extent: Reach) -> Vec<String> {
    let checked = check(paths, &entries(), extent);
    checked.into_iter().filter_map(|(_, result)| result.err().map(|fault| fault.to_string())).collect()
}

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

fn write(path: &Path, lines: &[String]) {
    std::fs::write(path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
}

#[test]
fn the_files_of_a_whole_run_agree_and_timings_are_free() {
    let (_folder, paths) = run(&entries());
    assert_eq!(faults(&paths, ENDED), [""; 0]);
    let text = std::fs::read_to_string(paths.metrics_jsonl())
        .unwrap()
        .replace("\"step_ms\":1.5", "\"step_ms\":99.0");
    std::fs::write(paths.metrics_jsonl(), text).unwrap();
    assert_eq!(faults(&paths, ENDED), [""; 0]);
    let agreed: Vec<AgreedRows> =
        check(&paths, &entries(), ENDED).into_iter().map(|(_, result)| result.unwrap()).collect();
    // Of main.log: a line of each step, two of each evaluation, one of the skip.
    assert_eq!(agreed.iter().map(|agreed| agreed.rows).collect::<Vec<_>>(), [7, 7, 6 + 2 * 4 + 1]);
}

/// Timings are in no ledger, but they are times; and a program that did not measure a column wrote no key of
/// it.
#[test]
fn timings_are_numbers_from_zero_and_keys_of_newer_columns_may_be_missing() {
    for (wrong, says) in [("-1.5", "-1.5 at step"), ("1e999", "number out of range")] {
        let (_folder, paths) = run(&entries());
        let text = std::fs::read_to_string(paths.metrics_jsonl()).unwrap();
        let text = text.replacen("\"step_ms\":1.5", &format!("\"step_ms\":{wrong}"), 1);
        std::fs::write(paths.metrics_jsonl(), text).unwrap();
        let found = faults(&paths, ENDED);
        assert!(found.len() == 1 && found[0].contains(says), "{found:?}");
    }
    let mut older = entries();
    for entry in &mut older {
        let hellaswag = entry.evaluation.as_mut().and_then(|evaluation| evaluation.hellaswag.as_mut());
        hellaswag.into_iter().for_each(|counts| counts.acc_bytes_correct = None);
    }
    let (_folder, paths) = run(&older);
    let text = std::fs::read_to_string(paths.metrics_jsonl()).unwrap();
    let keys = ",\"hellaswag_acc_bytes\":null,\"hellaswag_acc_bytes_bits\":null";
    assert_eq!(text.matches(keys).count(), 7);
    std::fs::write(paths.metrics_jsonl(), text.replace(keys, "")).unwrap();
    assert!(check(&paths, &older, ENDED).iter().all(|(_, result)| result.is_ok()));
    // Where the ledger has a number, its key must be there.
    let cut = text.replace(",\"val_loss\":4.0,\"val_loss_bits\":\"0x4010000000000000\"", "");
    assert_ne!(cut, text);
    std::fs::write(paths.metrics_jsonl(), cut).unwrap();
    let found = check(&paths, &older, ENDED).swap_remove(0).1.unwrap_err().to_string();
    assert!(found.contains("`val_loss`: nothing at step 0, the ledger has 4"), "{found}");
}

#[test]
fn a_key_that_stands_twice_in_a_row_is_refused() {
    let (_folder, paths) = run(&entries());
    let text = std::fs::read_to_string(paths.metrics_jsonl()).unwrap();
    let doubled = text.replacen("{\"step\":0", "{\"loss\":1.0,\"step\":0", 1);
    std::fs::write(paths.metrics_jsonl(), doubled).unwrap();
    let found = faults(&paths, ENDED);
    assert!(found[0].contains("line 1: `loss` stands twice"), "{found:?}");
}

/// A change of the lines of a file, and what must be said of it.
type Damage = (fn(&mut Vec<String>), &'static [&'static str]);

fn assert_each_is_found(path: fn(&RunPaths) -> PathBuf, table: &[Damage]) {
    for (number, (damage, says)) in table.iter().enumerate() {
        let (_folder, paths) = run(&entries());
        let mut changed = lines(&path(&paths));
        damage(&mut changed);
        write(&path(&paths), &changed);
        let found = faults(&paths, ENDED);
        assert_eq!(found.len(), 1, "{number}: {found:?}");
        for text in *says {
            assert!(found[0].contains(text), "{number}: `{text}` is not in {found:?}");
        }
    }
}

#[test]
fn every_damage_to_the_rows_is_found_and_named_by_row_and_column() {
    let table: [Damage; 11] = [
        (|rows| drop(rows.remove(2)), &["metrics.jsonl` line 3", "row of step 2 is missing"]),
        (|rows| rows.truncate(6), &["line 7", "row of step 6 is missing"]),
        (|rows| rows.clear(), &["line 1", "the file has no row"]),
        (|rows| rows.insert(3, rows[2].clone()), &["line 4", "step 2 stands a second time"]),
        (|rows| rows.push(rows[6].replace("\"step\":6", "\"step\":7")), &["line 8", "step 7 was added"]),
        (|rows| rows.swap(1, 2), &["line 2", "step 2 stands before that of step 1"]),
        (
            |rows| {
                rows[2] = rows[2].replace("2.0,\"val_loss_bits\":\"0x4000", "2.5,\"val_loss_bits\":\"0x4004")
            },
            &["line 3, `val_loss`", "2.5 at step 2, the ledger has 2"],
        ),
        (|rows| rows[3] = rows[3].replace("skip_nonfinite", "update"), &["line 4, `action`"]),
        (|rows| rows[0] = rows[0].replace("\"tokens\":64", "\"tokens\":65"), &["line 1, `tokens`"]),
        (|rows| rows[4] = rows[4].replace("[\"rewind\"]", "[]"), &["line 5, `events`"]),
        (
            |rows| rows[4] = rows[4].replace("{\"step\"", "{\"note\":1,\"step\""),
            &["line 5", "keys were added"],
        ),
    ];
    assert_each_is_found(RunPaths::metrics_jsonl, &table);
}

#[test]
fn every_damage_to_main_log_is_found() {
    let table: [Damage; 6] = [
        (|lines| drop(lines.remove(2)), &["main.log` line 3", "s:0 trl"]),
        (|lines| drop(lines.pop()), &["step 6 is missing"]),
        (|lines| lines.clear(), &["the file has no row"]),
        (|lines| lines.push("s:7 tel:1.0000".into()), &["`s:7 tel:1.0000` was added"]),
        (|lines| lines.swap(0, 1), &["line 1, `tel`"]),
        (
            |lines| lines[0] = lines[0].replace("4.0000", "3.9000"),
            &["line 1, `tel`", "3.9", "s:0 tel:4.0000"],
        ),
    ];
    assert_each_is_found(RunPaths::main_log, &table);
}

#[test]
fn a_file_that_is_not_there_or_another_runs_is_found() {
    for file in [RunPaths::metrics_jsonl, RunPaths::metrics_parquet, RunPaths::main_log] {
        let (_folder, paths) = run(&entries());
        std::fs::remove_file(file(&paths)).unwrap();
        assert_eq!(faults(&paths, ENDED).len(), 1, "{:?}", file(&paths));
        std::fs::write(file(&paths), "").unwrap();
        assert_eq!(faults(&paths, ENDED).len(), 1, "{:?} is empty", file(&paths));
    }
    let (_folder, paths) = run(&entries());
    let mut other = entries();
    other[1].loss = Some(4.5);
    let (_other, others) = run(&other);
    std::fs::copy(others.metrics_parquet(), paths.metrics_parquet()).unwrap();
    assert!(faults(&paths, ENDED)[0].contains("`metrics.parquet` row 2, `loss`: 4.5 at step 1"));
    // A copy of a checkpoint before the end.
    let (_short, short) = run(&entries()[..4]);
    std::fs::copy(short.metrics_parquet(), paths.metrics_parquet()).unwrap();
    assert!(faults(&paths, ENDED)[0].contains("row 5, `step`: the row of step 4 is missing"));
    assert_eq!(faults(&paths, Reach { saved: 4, ended: false, running: false }), [""; 0]);
}

#[test]
fn what_a_kill_leaves_behind_the_newest_checkpoint_is_no_fault_and_before_it_is() {
    let entries = &entries()[..6];
    // A kill hits one write: that of the row, after which main.log has nothing, or that of main.log.
    let cut = |path: &Path, bytes: usize| {
        let whole = std::fs::read(path).unwrap();
        std::fs::write(path, &whole[..whole.len() - bytes]).unwrap();
    };
    for row_is_torn in [true, false] {
        let (_folder, paths) = run(entries);
        if row_is_torn {
            cut(&paths.metrics_jsonl(), 20);
            let last = lines(&paths.main_log()).pop().unwrap().len() + 1;
            cut(&paths.main_log(), last);
        } else {
            cut(&paths.main_log(), 3);
        }
        let found = |saved, running| {
            let checked = check(&paths, entries, Reach { saved, ended: false, running });
            checked.into_iter().filter(|(_, result)| result.is_err()).count()
        };
        assert_eq!(found(4, false), 0);
        assert!(found(6, false) > 0);
        assert_eq!(found(4, true), 0);
        assert!(found(6, true) > 0, "a process that writes adds to the end");
    }
}

#[test]
fn a_ledger_of_version_1_leaves_evaluations_unproven_and_proves_the_rest() {
    let old: Vec<Entry> = (0..6).map(|step| Entry { evaluation: None, ..entry(step) }).collect();
    let mut rows: Vec<MetricsRow> = entries().iter().map(|entry| MetricsRow::of(entry, None)).collect();
    rows[3].events.insert(0, "resume".into());
    assert_eq!(compare(&rows, &old), Ok(AgreedRows { rows: 7, unproven: 4 }));
    let folder = tempfile::tempdir().unwrap();
    let paths = RunPaths::new(folder.path());
    let mut metrics = MetricsWriter::create(folder.path()).unwrap();
    let mut log = MainLogWriter::create(folder.path()).unwrap();
    for row in &rows {
        metrics.append(row).unwrap();
        log.append(row).unwrap();
    }
    metrics.write_parquet(&paths.metrics_parquet()).unwrap();
    let checked: Vec<usize> =
        check(&paths, &old, ENDED).into_iter().map(|(_, result)| result.unwrap().unproven).collect();
    assert_eq!(checked, [4, 4, 0]);
    assert_eq!(unverified(&rows, &old, false), None);
    rows[5].loss = Some(1.0);
    assert!(unverified(&rows, &old, false).unwrap().contains("row 6, `loss`"));
    assert!(unverified(&rows[..3], &entries(), false).unwrap().contains("step 3 is missing"));
    assert_eq!(unverified(&rows[..3], &entries(), true), None);
}

/// Files of a run are read line by line, and what is no line is not read to its end.
#[test]
fn a_file_of_one_line_that_is_larger_than_memory_is_refused() {
    for file in [RunPaths::metrics_jsonl, RunPaths::main_log] {
        let (_folder, paths) = run(&entries());
        let open = std::fs::File::options().write(true).open(file(&paths)).unwrap();
        open.set_len(1 << 36).unwrap();
        let found = faults(&paths, ENDED);
        assert!(found.len() == 1 && found[0].contains("cannot be read: line "), "{found:?}");
        assert!(found[0].contains("has more than 16777216 bytes"), "{found:?}");
    }
}
