//! What a run's files say of each other, what a hash or lock kept elsewhere adds, and files written again.

use std::path::Path;

use runner::proof::{Evaluation, HellaSwag, Lock, ledger};
use runner::store::{self, Facts};

use crate::support::{Lab, sets};
use crate::verify::{assert_finds, copy, facts, rewrite_history, rewrite_records};

const CI: &str = "experiments/ci.toml";

/// Changes a lock and computes its digests again.
pub fn reseal(run: &Path, change: impl FnOnce(&mut Lock)) {
    let path = run.join("lock.toml");
    let mut lock = Lock::read(&path).expect("a lock");
    change(&mut lock);
    std::fs::write(&path, lock.to_text()).expect("writable");
}

#[test]
fn a_lock_that_was_sealed_again_is_held_to_experiment_ledger_and_checkpoints() {
    let lab = Lab::new();
    lab.run(CI, &[]).root();
    let fresh = |name: &str| {
        copy(&lab.path("ci"), &lab.path(name));
        lab.path(name)
    };
    let set = |table: fn(&mut Lock) -> &mut runner::proof::lock::Table, key: &'static str, value: &str| {
        let value = value.to_owned();
        move |lock: &mut Lock| drop(table(lock).insert(key.into(), value))
    };
    reseal(&fresh("value"), set(|lock| &mut lock.config, "eval.every", "7 (default)"));
    assert_finds(&lab, "value", &[], &["experiment: ", "`eval.every` was 7 (default), is 10"]);
    reseal(&fresh("added"), set(|lock| &mut lock.config, "eval.nonsense", "1"));
    assert_finds(&lab, "added", &[], &["`eval.nonsense` was 1, is not set"]);
    reseal(&fresh("removed"), |lock| drop(lock.config.remove("seed")));
    assert_finds(&lab, "removed", &[], &["`seed` was not set, is 1337"]);
    for key in ["step", "state_root", "end_size", "end_root"] {
        reseal(&fresh(key), move |lock| drop(lock.outputs.insert(key.into(), "9".into())));
        assert_finds(&lab, key, &[], &["outputs: ", &format!("`{key}` was 9, is ")]);
    }
    // Outputs that fit a run which was cut short, and not its experiment.
    let short = fresh("short");
    let (_, mut entries) = ledger::read(&short.join("ledger.jsonl")).expect("a ledger");
    entries.truncate(10);
    let head = *rewrite_records(&short, &entries).last().expect("entries");
    let all = store::list(&short.join("checkpoints")).expect("some");
    let later = all.iter().filter(|(step, _)| *step > 10);
    later.for_each(|(_, folder)| std::fs::remove_dir_all(folder).expect("removable"));
    let (_, folder) = all.iter().find(|(step, _)| *step == 10).expect("one in the middle");
    let (manifest, _) = store::load(folder).expect("whole");
    reseal(&short, |lock| lock.outputs = runner::run::outputs::of(&manifest, head));
    assert_finds(&lab, "short", &[], &["outputs: the lock's are of step 10, and the run ends at step 20"]);
    // What an older program, or a run that was killed at its end, leaves is no fault, and is said.
    let said = |run: &str, says: &str| {
        let verified = lab.verify(run, &[]);
        assert_eq!(verified.code, Some(0), "{}", verified.stdout);
        assert!(verified.stdout.contains(says), "{}", verified.stdout);
    };
    reseal(&fresh("older"), |lock| lock.outputs.retain(|key, _| !key.starts_with("end_")));
    said("older", "skipped outputs: the lock is older");
    reseal(&fresh("emptied"), |lock| lock.outputs.clear());
    said("emptied", "skipped outputs: all steps are made, and the lock has no outputs");
    lab.resume("emptied", &[]).root();
    said("emptied", "ok      outputs: 21 entries");

    let experiment = fresh("edited").join("experiment.toml");
    let text = std::fs::read_to_string(&experiment).expect("an experiment");
    std::fs::write(&experiment, text.replacen("every = 10", "every = 5", 1)).expect("writable");
    assert_finds(&lab, "edited", &[], &["`experiment.toml` is not what the lock holds", "every"]);

    let checkpoints = fresh("name").join("checkpoints");
    let (_, folder) = store::list(&checkpoints).expect("some").remove(1);
    let (manifest, state) = store::load(&folder).expect("whole");
    let other = Facts { experiment: "other".into(), ..facts(&manifest) };
    store::save(&checkpoints, &state, &other).expect("saved");
    assert_finds(&lab, "name", &[], &["it is called `ci`; the checkpoint of step 10 is of `other`"]);
}

/// A ledger whose own hashes agree, with events that no run writes and without an evaluation.
#[test]
fn events_that_no_run_writes_and_evaluations_that_are_missing_are_named() {
    let lab = Lab::new();
    lab.run(CI, &[]).root();
    let run = lab.path("ci");
    let (_, entries) = ledger::read(&run.join("ledger.jsonl")).expect("a ledger");
    for event in ["rewind from step 504 to step 5", "certified by the audit office"] {
        let mut forged = entries.clone();
        forged[5].events.push(event.into());
        rewrite_records(&run, &forged);
        assert_finds(&lab, "ci", &[], &["FAILED  events: the entry of step 5", event]);
    }
    let mut forged = entries.clone();
    forged[10].evaluation = Some(Evaluation::default());
    rewrite_records(&run, &forged);
    assert_finds(&lab, "ci", &[], &["skipped evaluations: ", "before the steps 10: "]);
    rewrite_records(&run, &entries);
    let whole = lab.verify("ci", &[]);
    assert!(whole.code == Some(0) && !whole.stdout.contains("evaluations:"), "{}", whole.stdout);
}

/// Ledger, checkpoints and lock agree with each other, and no run makes this event.
#[test]
fn a_run_does_not_go_on_from_a_ledger_with_an_event_that_no_run_writes() {
    let lab = Lab::new();
    lab.run(CI, &[]).root();
    let run = lab.path("ci");
    let (_, entries) = ledger::read(&run.join("ledger.jsonl")).expect("a ledger");
    reseal(&run, |lock| lock.outputs.clear());
    std::fs::remove_dir_all(run.join("checkpoints/step_00000020")).expect("the last checkpoint");
    for (event, why) in [
        ("certified by the audit office", "a run writes `rewind …` and `drift …` alone"),
        ("drift `seed` was 1, is 2", "`seed` was 1337"),
        ("drift `guards.on_diverge` was rewind, is rewind", "it has one value twice"),
        ("drift `weather.sky` was blue, is not set", "no lock has such a key"),
    ] {
        let mut forged = entries.clone();
        forged[5].events.push(event.into());
        let heads = rewrite_records(&run, &forged);
        for (step, folder) in store::list(&run.join("checkpoints")).expect("some") {
            let (manifest, state) = store::load(&folder).expect("whole");
            let forged = Facts { ledger: heads[step as usize - 1], ..facts(&manifest) };
            store::save(&run.join("checkpoints"), &state, &forged).expect("saved");
        }
        let before = lab.files("ci");
        let event = format!("the entry of step 5 has the event `{event}`");
        let says = ["ledger.jsonl", event.as_str(), why, "hint:"];
        lab.resume("ci", &[]).assert_fails(5, &says);
        lab.resume("ci", &["--allow-drift"]).assert_fails(5, &says);
        lab.verb("export", "ci", &["--format", "slsa"]).assert_fails(5, &says);
        assert!(lab.files("ci") == before, "a file was changed");
        assert_finds(&lab, "ci", &[], &["FAILED  events: ", &event, why]);
    }
}

/// Which of a run's three records of its model was edited does not matter, and neither do two of them.
#[test]
fn a_model_that_is_edited_in_any_of_a_runs_records_is_found_wherever_it_is_read() {
    let lab = Lab::new();
    lab.run(CI, &[]).root();
    let fresh = |name: &str| {
        copy(&lab.path("ci"), &lab.path(name));
        lab.path(name)
    };
    let edit = |run: &Path, from: &str, to: &str| {
        let path = run.join("experiment.toml");
        let text = std::fs::read_to_string(&path).expect("an experiment");
        assert!(text.contains(from), "{text}");
        std::fs::write(&path, text.replacen(from, to, 1)).expect("writable");
    };
    let forge = |run: &Path, key: &str, value: &str| {
        for (_, folder) in store::list(&run.join("checkpoints")).expect("some") {
            let (manifest, state) = store::load(&folder).expect("whole");
            let mut numerics = manifest.numerics.clone();
            numerics.insert(key.into(), value.into());
            let forged = Facts { numerics, ..facts(&manifest) };
            store::save(&run.join("checkpoints"), &state, &forged).expect("saved");
        }
    };
    let refused = |name: &str, says: &str| {
        for (verb, more) in [
            ("eval", &["--set", "eval.val_tokens=128"][..]),
            ("sample", &["--tokens", "2"]),
            ("export", &["--format", "hf"]),
        ] {
            lab.verb(verb, name, more).assert_fails(5, &[says, "hint: restore `experiment.toml`"]);
        }
        let init = format!("model.init=run:{name}");
        let branch = lab.run(CI, &["--name", "branch", "--set", &init]);
        assert!(branch.code != Some(0) && branch.stderr.contains(says), "{}", branch.stderr);
    };
    for (key, value) in [("model.heads", "4"), ("model.norm", "rmsnorm"), ("data.tokenizer", "gpt2")] {
        let name = format!("lock_{}", key.replace('.', "_"));
        reseal(&fresh(&name), |lock| drop(lock.numerics.insert(key.into(), value.into())));
        refused(&name, &format!("the lock of its run holds `{key}` = {value}, and its experiment has "));
        let verified = lab.verify(&name, &[]);
        assert!(verified.stdout.contains(&format!("`{key}` was {value}, is ")), "{}", verified.stdout);
        assert!(!verified.stdout.contains("cannot make these bits"), "{}", verified.stdout);
    }
    for (key, value, from, to) in [
        ("model.heads", "4", "heads = 2", "heads = 4"),
        ("model.norm", "rmsnorm", "norm = \"layernorm\"", "norm = \"rmsnorm\""),
    ] {
        let name = format!("honest_{}", key.replace('.', "_"));
        let run = fresh(&name);
        edit(&run, from, to);
        forge(&run, key, value);
        refused(&name, &format!("the lock of its run holds `{key}` = "));
    }
    // Without a lock, the checkpoints alone say what the model is.
    std::fs::remove_file(fresh("lockless").join("lock.toml")).expect("removable");
    lab.verb("eval", "lockless", &["--set", "eval.val_tokens=128"]).assert_says(&["val_loss"]);
}

#[test]
fn the_environment_changes_nothing_that_is_said_of_a_run_and_an_edit_by_it_is_recorded() {
    let lab = Lab::new();
    let short = ["--set", "schedule.steps=10", "--set", "schedule.warmup_steps=1"];
    lab.run(CI, &short).root();
    let runs = lab.path("").display().to_string();
    let with = |name: &str, value: &str, arguments: &[&str]| {
        let mut command = lab.command(&[arguments, &["--runs", &runs]].concat());
        crate::support::Finished::from(command.env(name, value).output().expect("it starts"))
    };
    let statement = with("RUNNER_SEED", "5", &["export", "ci", "--format", "slsa"]);
    statement.assert_says(&["\"seed\": 1337"]);
    let verified = with("RUNNER_SEED", "5", &["verify", "ci"]);
    assert!(verified.stdout.contains("ok      experiment: "), "{}", verified.stdout);

    std::fs::remove_dir_all(lab.path("ci/checkpoints/step_00000010")).expect("there");
    assert_eq!(with("RUNNER_EVAL__EVERY", "5", &["resume", "ci"]).code, Some(0));
    let text = std::fs::read_to_string(lab.path("ci/experiment.toml")).expect("an experiment");
    assert!(text.lines().any(|line| line.starts_with("every = 5 ") && line.ends_with("RUNNER_EVAL__EVERY")));
    lab.verify("ci", &[]).assert_says(&["ok      experiment: "]);
    lab.resume("ci", &["--set", "name=mine"]).assert_fails(2, &["of the experiment `ci`, not of `mine`"]);
}

/// Everything in the folder rewritten and sealed again: what is elsewhere tells, and so does a replay.
#[test]
fn a_run_is_held_to_a_head_a_root_a_lock_or_golden_roots_that_were_kept_elsewhere() {
    let lab = Lab::new();
    let root = lab.run(CI, &[]).root().to_owned();
    let run = lab.path("ci");
    let kept = lab.path("kept.lock.toml").display().to_string();
    std::fs::copy(run.join("lock.toml"), &kept).expect("a copy");
    let (log, mut entries) = ledger::read(&run.join("ledger.jsonl")).expect("a ledger");
    let head = log.head().root.to_string();
    let expect = |what: &str| lab.verify("ci", &["--expect", what]);
    let early = log.head_at(5).expect("five entries").root.to_string();
    for (what, says) in [
        (head.as_str(), "it is the head of the whole ledger, 21 entries"),
        (&head.to_uppercase(), "it is the head of the whole ledger, 21 entries"),
        (&root, "it is the state root at step 20"),
        (&early, "it is the head after 5 entries; it does not cover the 16 behind"),
        (&kept, "numerics and outputs, every entry of the ledger included, are those of"),
        ("tests/golden/ci_cpu.root", "those of `tests/golden/ci_cpu.root`: "),
    ] {
        expect(what).assert_says(&[&format!("ok      expected: {says}")[..]]);
    }
    expect(&head[..63]).assert_fails(2, &["neither a file nor a hash", "hint:"]);
    expect("tests").assert_fails(2, &["neither a file nor a hash"]);
    expect("experiments/ci.toml").assert_fails(1, &["experiments/ci.toml` line 4 is not"]);

    let last = entries.last_mut().and_then(|entry| entry.evaluation.as_mut()).expect("an evaluation");
    last.validation.as_mut().expect("a loss").loss = 1.0;
    let forged = *rewrite_records(&run, &entries).last().expect("entries");
    assert_finds(&lab, "ci", &[], &["outputs: ", "`end_root` was ", &forged.root.to_string()]);
    reseal(&run, |lock| drop(lock.outputs.insert("end_root".into(), forged.root.to_string())));
    assert_eq!(lab.verify("ci", &[]).code, Some(0), "the files agree");
    assert_finds(&lab, "ci", &["--expect", &head], &["FAILED  expected: ", "neither a head"]);
    assert_finds(&lab, "ci", &["--expect", &kept], &["FAILED  expected: ", "`end_root` was "]);
    expect(&root).assert_says(&["a root says nothing of losses and scores"]);
    assert_finds(&lab, "ci", &["--replay", "15..20"], &["the evaluation after the last step gave other"]);
}

#[test]
fn lost_and_damaged_figures_are_written_again_from_the_ledger_and_the_run_goes_on() {
    let lab = Lab::new();
    lab.run(CI, &[]).root();
    let whole = |file: &str| std::fs::read(lab.path("ci").join(file)).expect("a file");
    let files = ["metrics.jsonl", "metrics.parquet", "main.log"];
    let before = files.map(whole);
    lab.verify("ci", &["--rebuild"]).assert_says(&["ok      rebuild: nothing to do"]);
    // Timings are found in the other file.
    for (file, old) in files.iter().zip(&before) {
        std::fs::remove_file(lab.path("ci").join(file)).expect("there");
        assert_finds(&lab, "ci", &[], &[file, "--rebuild"]);
        lab.verify("ci", &["--rebuild"]).assert_says(&[&format!("rebuild: {file} written again")[..]]);
        assert!(whole(file) == *old, "{file}");
    }
    files.iter().for_each(|file| std::fs::write(lab.path("ci").join(file), "nonsense\n").expect("written"));
    lab.verify("ci", &["--rebuild"]).assert_says(&[
        "metrics.jsonl, metrics.parquet, main.log written again",
        "the timings of 20 steps are lost",
    ]);
    assert!(whole("main.log") == before[2]);
    lab.verify("ci", &["--replay", "10..15"]).assert_says(&["gave the same bits again"]);
    for verb in ["show", "plot", "report", "diff"] {
        let (run, more): (_, &[&str]) = ("ci", if verb == "diff" { &["ci"] } else { &[] });
        let ended = lab.verb(verb, run, more);
        assert_eq!(ended.code, Some(0), "{verb}: {}{}", ended.stdout, ended.stderr);
    }

    // A run that lost its files goes on when they are there again, to the same end.
    std::fs::remove_dir_all(lab.path("ci/checkpoints/step_00000020")).expect("there");
    for file in ["metrics.jsonl", "main.log"] {
        std::fs::remove_file(lab.path("ci").join(file)).expect("there");
        lab.resume("ci", &[]).assert_fails(1, &[file, "`runner verify RUN --rebuild`"]);
        lab.verify("ci", &["--rebuild"]);
    }
    std::fs::write(lab.path("ci/main.log"), "").expect("writable");
    lab.resume("ci", &[]).assert_fails(1, &["main.log` ends at no row", "--rebuild"]);
    lab.verify("ci", &["--rebuild"]);
    assert_eq!(lab.resume("ci", &[]).root(), include_str!("../golden/ci_cpu.root").trim());
    lab.verify("ci", &[]).assert_says(&["ok      outputs"]);

    // A ledger of another run makes no figures.
    lab.run(CI, &["--name", "other", "--set", "seed=2"]).root();
    std::fs::copy(lab.path("other/ledger.jsonl"), lab.path("ci/ledger.jsonl")).expect("a copy");
    let held = whole("metrics.jsonl");
    lab.verify("ci", &["--rebuild"]).assert_fails(5, &["nothing is rebuilt from", "another head"]);
    assert!(whole("metrics.jsonl") == held);
}

/// A kind of odd file, how it is made, and what must be said of it.
type Odd = (&'static str, fn(&Path), &'static str);

/// Whatever stands in a run's folder under the name of a file of its own: nothing is waited for, nothing ends
/// the process, and a refusal changes no file.
#[test]
fn files_of_a_run_that_are_pipes_loops_or_far_too_long_are_refused_by_name() {
    let lab = Lab::new();
    lab.run(CI, &["--set", "schedule.steps=5", "--set", "schedule.warmup_steps=1"]).root();
    let run = lab.path("ci");
    let pipe = |path: &Path| {
        let made = std::process::Command::new("mkfifo").arg(path).status().expect("mkfifo");
        assert!(made.success());
    };
    let huge = |path: &Path| {
        let file = std::fs::File::create(path).expect("a file");
        file.set_len(1 << 32).expect("a sparse file");
    };
    let circle = |path: &Path| std::os::unix::fs::symlink(path, path).expect("a link");
    let of_checkpoint = |file: &str| format!("checkpoints/step_00000005/{file}");
    let cases: [Odd; 3] = [("pipe", pipe, "a pipe"), ("huge", huge, "than "), ("circle", circle, "")];
    for file in [
        "lock.toml",
        "ledger.jsonl",
        "metrics.jsonl",
        "metrics.parquet",
        "main.log",
        &of_checkpoint("manifest.json"),
        &of_checkpoint("state.safetensors"),
    ] {
        let (path, kept) = (run.join(file), lab.path("kept"));
        std::fs::rename(&path, &kept).expect("there");
        for (kind, make, says) in cases {
            // Of files that may be long, a sparse one is only read.
            if kind == "huge"
                && !["lock.toml", "ledger.jsonl", &of_checkpoint("manifest.json")].contains(&file)
            {
                continue;
            }
            make(&path);
            let found = lab.verify("ci", &[]);
            assert_eq!(found.code, Some(5), "{file} is a {kind}: {}{}", found.stdout, found.stderr);
            let name = path.file_name().and_then(|name| name.to_str()).expect("UTF-8");
            let line = found.stdout.lines().find(|line| line.starts_with("FAILED") && line.contains(name));
            // The length of a state is looked at first.
            let says = if name == "state.safetensors" { "" } else { says };
            assert!(line.is_some_and(|line| line.contains(says)), "{file} is a {kind}: {}", found.stdout);
            for verb in ["show", "resume"] {
                let ended = lab.verb(verb, "ci", &[]);
                assert!(
                    matches!(ended.code, Some(0 | 1 | 2 | 5)),
                    "{verb}, {file} is a {kind}: {}",
                    ended.stderr
                );
            }
            std::fs::remove_file(&path).expect("there");
        }
        std::fs::rename(&kept, &path).expect("moved");
    }
    lab.verify("ci", &[]).assert_says(&["ok      outputs"]);
    let ledger = run.join("ledger.jsonl");
    let whole = std::fs::read(&ledger).expect("a ledger");
    std::fs::write(&ledger, [&whole, &b"more"[..]].concat()).expect("writable");
    assert_finds(
        &lab,
        "ci",
        &[],
        &["end of the ledger: line ", " has 4 bytes and no end, and the run has ended"],
    );
    std::fs::remove_file(&ledger).expect("there");
    std::fs::remove_file(run.join("lock.toml")).expect("there");
    lab.resume("ci", &[]).assert_fails(1, &["ledger.jsonl", "is missing"]);
    assert!(!ledger.exists(), "a ledger that is lost is not begun anew");
}

/// Other weights under heads that fit, in a step of which the ledger has no root.
#[test]
fn other_weights_in_a_checkpoint_without_a_root_in_the_ledger_do_not_survive() {
    let lab = Lab::new();
    lab.run(CI, &[]).root();
    let run = lab.path("ci");
    let (_, entries) = ledger::read(&run.join("ledger.jsonl")).expect("a ledger");
    let forge = |without: u64| {
        let mut forged = entries.clone();
        forged[without as usize - 1].root = None;
        let heads = rewrite_records(&run, &forged);
        let checkpoints = run.join("checkpoints");
        for (step, folder) in store::list(&checkpoints).expect("some") {
            let (manifest, mut state) = store::load(&folder).expect("whole");
            if step == without {
                let tensor = state.iter_mut().find(|it| it.name == "wpe.weight").expect("a tensor");
                tensor.bytes[4] ^= 1;
            }
            let forged = Facts { ledger: heads[step as usize - 1], ..facts(&manifest) };
            store::save(&checkpoints, &state, &forged).expect("saved");
        }
        reseal(&run, |lock| lock.outputs.clear());
    };
    forge(10);
    assert_eq!(lab.verify("ci", &[]).code, Some(0), "as a run that was stopped there");
    assert_finds(&lab, "ci", &["--replay", "5..10"], &["the checkpoint of step 10 has the state root"]);
    forge(20);
    assert_finds(&lab, "ci", &[], &["checkpoint 20 in the ledger: the ledger has no root of this step"]);
}

/// Figures that an honest run of these settings cannot have, in an otherwise consistent ledger.
#[test]
fn figures_of_sets_and_averages_that_a_run_has_none_of_are_refused() {
    let lab = Lab::new();
    lab.run(CI, &["--set", "optimizer.ema_decay=0"]).root();
    let forged = |name: &str, change: fn(&mut Evaluation)| {
        let run = lab.path(name);
        copy(&lab.path("ci"), &run);
        let (_, mut entries) = ledger::read(&run.join("ledger.jsonl")).expect("a ledger");
        change(entries.last_mut().and_then(|entry| entry.evaluation.as_mut()).expect("an evaluation"));
        rewrite_records(&run, &entries);
        reseal(&run, |lock| lock.outputs.clear());
    };
    forged("average", |of| of.ema_loss = Some(0.5));
    assert_finds(&lab, "average", &[], &["a figure of the average of the weights, and the run keeps none"]);
    forged("score", |of| {
        let (tasks, correct) = (10_042, Some(9_999));
        of.hellaswag = Some(HellaSwag {
            tasks,
            llmc_correct: 9_999,
            acc_correct: correct,
            acc_norm_correct: correct,
            acc_bytes_correct: correct,
        });
    });
    assert_finds(&lab, "score", &[], &["a score of HellaSwag on 10,042 tasks, and the lock names none"]);
}

/// A run whose weights are not finite has no usable model, whatever its lock and notes say.
#[test]
fn a_run_that_ended_in_weights_that_are_not_finite_is_not_done() {
    let lab = Lab::new();
    lab.run(CI, &[]).root();
    let checkpoints = lab.path("ci/checkpoints");
    let (_, folder) = store::list(&checkpoints).expect("some").pop().expect("the last");
    let (manifest, mut state) = store::load(&folder).expect("whole");
    let weight = state.iter_mut().find(|tensor| tensor.name == "wte.weight").expect("a parameter");
    weight.bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    store::save(&checkpoints, &state, &facts(&manifest)).expect("saved");
    let says = "it ended in numbers that are not finite: a number of `wte.weight` is not finite";
    assert_finds(&lab, "ci", &[], &[says]);
}

/// What a rewind dropped is made again, and must have diverged.
#[test]
fn a_rewind_that_the_run_did_not_make_does_not_survive_a_replay() {
    let lab = Lab::new();
    let guards = ["guards.on_diverge=rewind", "guards.patience=3", "checkpoint.every=5"];
    lab.run(CI, &sets(&guards)).root();
    let run = lab.path("ci");
    let (_, mut entries) = ledger::read(&run.join("ledger.jsonl")).expect("a ledger");
    entries[5].events.push("rewind from step 8 to step 5".into());
    rewrite_history(&run, &entries);
    lab.verify("ci", &[]).assert_says(&["ok      events: rewinds: 1"]);
    let says = "went back from step 8 to step 5, and these steps do not diverge when they are made again";
    for steps in ["0..10", "5..10"] {
        assert_finds(&lab, "ci", &["--replay", steps], &[says]);
    }
}
