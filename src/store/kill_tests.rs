//! A process that saves as fast as it can is killed at arbitrary moments: what it leaves must open,
//! load and go on. The moment of the kill is random, and over many runs it hits every stage; the test asserts
//! that it hits a working process.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::checkpoint::{newest_whole, tests::*};
use super::*;
use crate::ops::Dtype;
use crate::proof::Evaluation;
use crate::proof::entry::{Action, Entry};
use crate::proof::ledger::Ledger;
use crate::rng::Key;

const FOLDER: &str = "RUNNER_TEST_KILLED_RUN";

fn entry(step: u64) -> Entry {
    let number = step as f64;
    let (tokens, action) = (step * 1024, Action::Update);
    Entry {
        step,
        tokens,
        root: None,
        loss: Some(number),
        grad_norm: Some(1.0 / number),
        learning_rate: Some(6e-4),
        loss_z: None,
        grad_z: None,
        action,
        events: vec![],
        evaluation: Some(Evaluation::default()),
        audit: None,
        sources: Default::default(),
    }
}

/// A state that is large enough for most of the time to go into writing it.
fn large(step: u64) -> Vec<Tensor> {
    let mut tensors = state(step);
    let bytes = vec![step as u8; 4 << 20];
    tensors.push(Tensor { name: "x/large".into(), dtype: Dtype::F32, shape: vec![1 << 20], bytes });
    tensors
}

/// The work of the process that is killed: resume, then a step, a ledger entry and a checkpoint, repeatedly.
fn train(folder: &Path, steps: u64) -> u64 {
    let run = RunFolder::open(folder).unwrap();
    let (whole, broken) = newest_whole(&run.paths.checkpoints()).unwrap();
    assert!(broken.is_empty(), "a kill never leaves a checkpoint that looks whole and is not: {broken:?}");
    let (manifest, loaded) = whole.unwrap();
    assert!(loaded == large(manifest.step), "the state of step {}", manifest.step);
    let mut ledger = Ledger::resume(&run.paths.ledger(), &manifest.ledger).unwrap();
    let mut writer =
        Writer::new(&run.paths.checkpoints(), Retention { keep_last: 2, keep_every: 0, rewind_every: 0 });
    for step in manifest.step + 1..=manifest.step + steps {
        let head = ledger.append(&entry(step)).unwrap();
        ledger.sync().unwrap();
        writer.submit(SaveJob { state: large(step), facts: Facts { ledger: head, ..facts(step) } }).unwrap();
    }
    writer.wait().unwrap();
    manifest.step
}

/// The step of the newest checkpoint.
fn newest(folder: &Path) -> u64 {
    list(&RunPaths::new(folder).checkpoints()).unwrap().last().map_or(0, |(step, _)| *step)
}

#[test]
#[ignore = "the process that the next test kills"]
fn trains_until_killed() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        train(&PathBuf::from(folder), u64::MAX / 2);
    }
}

#[test]
fn a_run_killed_at_any_moment_goes_on_from_a_whole_checkpoint() {
    let root = tempfile::tempdir().unwrap();
    let run = RunFolder::create(root.path(), "killed", false).unwrap();
    std::fs::write(run.paths.experiment(), "").unwrap();
    let ledger = Ledger::open(&run.paths.ledger()).unwrap();
    save(&run.paths.checkpoints(), &large(0), &Facts { ledger: ledger.head(), ..facts(0) }).unwrap();
    let folder = run.paths.folder().to_owned();
    drop(run);
    let mut before = 0;
    for kill in 0..8 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::kill_tests::trains_until_killed", "--ignored"])
            .env(FOLDER, &folder)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // It works once a checkpoint newer than those found is there.
        let began = Instant::now();
        while newest(&folder) <= before {
            assert!(began.elapsed() < Duration::from_secs(60), "no checkpoint for a minute");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(u64::from(Key::new(kill, "kill").block_at(0, 0)[0] % 60)));
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9), "it was to be killed at work");
        before = train(&folder, 1) + 1;
    }
    let (_, entries) = crate::proof::ledger::read(&folder.join("ledger.jsonl")).unwrap();
    assert_eq!(
        entries,
        (1..=entries.len() as u64).map(entry).collect::<Vec<_>>(),
        "no step is lost or doubled"
    );
    assert!(
        entries.len() >= 16,
        "each of eight processes did a step before its kill, and one was done after"
    );
}
