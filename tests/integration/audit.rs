//! Audited steps: kept while a run trains, computed again on this CPU, and not to be forged.

use std::path::PathBuf;
use std::time::Duration;

use runner::proof::{Entry, Hash, Lock, Opening, ledger};
use runner::store::audit::AuditFile;

use crate::process::wait_until;
use crate::support::{Lab, flip_bit};
use crate::verify::{assert_finds, rewrite_records};

const CI: &str = "experiments/ci_cuda.toml";
/// The name of the run.
const RUN: &str = "ci_cuda";
/// Few and short steps in the mirror; steps 2 and 4 are audited.
const SHORT: &[&str] = &[
    "device.kind=mirror",
    "batch.micro=2",
    "batch.seq_len=64",
    "schedule.steps=5",
    "schedule.warmup_steps=1",
    "eval.every=0",
    "sample.every=0",
    "checkpoint.every=0",
    "proof.audit_every=2",
];
/// All that there is.
const ALL: &[&str] = &["--audit", "100000"];

/// Trains the experiment with settings on top of [`SHORT`]; returns its state root.
fn train(lab: &Lab, more: &[&str]) -> String {
    let mut arguments = Vec::new();
    SHORT.iter().chain(more).for_each(|set| arguments.extend(["--set", set]));
    lab.run(CI, &arguments).root().to_owned()
}

fn file(lab: &Lab, step: u64) -> PathBuf {
    lab.path(RUN).join(format!("audit/step_{step:08}.bin"))
}

/// The ledger's lines without what audits add.
fn without_audits(lab: &Lab) -> Vec<Entry> {
    let (_, entries) = ledger::read(&lab.path(RUN).join("ledger.jsonl")).expect("a ledger");
    entries.into_iter().map(|entry| Entry { audit: None, ..entry }).collect()
}

#[test]
fn an_audited_run_has_the_bits_of_another_and_what_it_kept_is_computed_again() {
    // One micro-batch a step; accumulation; workers, and operations that run again in the backward pass.
    let shapes: [&[&str]; 3] = [
        &["parallel.workers=1", "batch.tokens=128"],
        &["parallel.workers=1", "batch.tokens=256", "precision.master_weights=false"],
        &["parallel.workers=2", "batch.tokens=512", "memory.recompute=2", "proof.replay_every=2"],
    ];
    for shape in shapes {
        let (lab, plain) = (Lab::new(), Lab::new());
        let root = train(&lab, &[shape, &["proof.audit_pieces=300"]].concat());
        assert_eq!(train(&plain, &[shape, &["proof.audit_every=0"]].concat()), root);
        assert_eq!(without_audits(&lab), without_audits(&plain));
        let verified = lab.verify(RUN, ALL);
        verified.assert_says(&[
            "audit of linear_backward_weight:",
            "audit of embedding_backward:",
            "audit of the update:",
            "audit of the tokens: the data's, in 2 of 2 steps",
            "parts that 2 steps kept",
            "left open: steps without an audit",
        ]);
        let some = lab.verify(RUN, &["--audit", "10", "--seed", "3", "--json"]);
        some.assert_says(&["\"ok\":true", "10 of "]);
        assert_ne!(lab.verify(RUN, &["--audit", "10", "--seed", "4", "--json"]).stdout, some.stdout);
        let drawn = [0; 2].map(|_| lab.verify(RUN, &["--audit", "10"]).stdout);
        assert_ne!(drawn[0], drawn[1], "without a seed the system draws one");
        let seed =
            |text: &str| text.split_once("drawn by `--seed ")?.1.split_once('`').map(|it| it.0.to_owned());
        let again = lab.verify(RUN, &["--audit", "10", "--seed", &seed(&drawn[0]).expect("a seed")]).stdout;
        assert_eq!(again, drawn[0]);
        // Checkpoints are large, and an audit reads none.
        std::fs::remove_dir_all(lab.path(RUN).join("checkpoints")).expect("there are some");
        lab.verify(RUN, ALL).assert_says(&["skipped outputs: no checkpoint is here", "audit of the update:"]);
    }
}

#[test]
fn every_change_of_what_was_kept_is_found_and_named() {
    let lab = Lab::new();
    train(&lab, &["parallel.workers=1", "batch.tokens=128"]);
    lab.verify(RUN, ALL).assert_says(&["audit of the update"]);
    let path = file(&lab, 2);
    let honest = AuditFile::read(&path).expect("an audit");
    let finds = |what: &str, change: &dyn Fn(&mut AuditFile), says: &str| {
        let mut forged = honest.clone();
        change(&mut forged);
        assert_ne!(forged, honest, "{what}: something is changed");
        forged.write(&path).expect("writable");
        let verified = lab.verify(RUN, ALL);
        assert_eq!(verified.code, Some(5), "{what}: {}{}", verified.stdout, verified.stderr);
        let named =
            ["audit of step 2", "step_00000002.bin"].iter().any(|name| verified.stdout.contains(name));
        assert!(named, "{what}: {}", verified.stdout);
        assert!(verified.stdout.contains(says), "{what}: `{says}` is not in:\n{}", verified.stdout);
    };
    // How many were drawn is no choice of the file's.
    finds("fewer pieces", &|file| file.pieces = 3, "not drawn under the terms");
    finds(
        "no piece",
        &|file| (file.pieces, file.matrices) = (0, Default::default()),
        "not drawn under the terms",
    );
    let first =
        |openings: &std::collections::BTreeMap<usize, Opening>| *openings.keys().next().expect("some");
    let unit = |opening: &mut Opening| {
        let bytes = opening.units.values_mut().next().expect("a unit");
        bytes[0] ^= 1;
    };
    let kept = "does not lead to the ledger";
    finds("a matrix", &|f| unit(f.matrices.get_mut(&first(&honest.matrices)).expect("one")), kept);
    for (number, _) in honest.matrices.iter().filter(|(_, opening)| !opening.path.is_empty()).take(1) {
        finds("a path", &|f| f.matrices.get_mut(number).expect("one").path[0].0[5] ^= 1, kept);
    }
    for when in [0, 1] {
        let tensor = first(&honest.tensors[when]);
        finds("a state", &|f| unit(f.tensors[when].get_mut(&tensor).expect("one")), kept);
    }
    finds("a digest", &|f| f.trace[9].0[0] ^= 1, "what the micro-batch computed have the root");
    finds("an old state", &|f| f.states[0] = f.states[1].clone(), "the state before the step have the root");
    finds("a new state", &|f| f.states[1][0].0[0] ^= 1, "the state after the step have the root");
    finds("a token", &|f| f.inputs[3] ^= 1, "the tokens are not those of the digest");
    finds("a step", &|f| f.step = 4, "does not begin as the audit of step 2");
    finds("nothing", &|f| drop(f.matrices.remove(&first(&honest.matrices))), "which was drawn");
    finds("no block of the update", &|f| f.tensors[1].clear(), "which nobody drew");
    let opening = honest.matrices.values().next().expect("one");
    let unused = (0..).find(|number| !honest.matrices.contains_key(number)).expect("a number");
    finds("more", &|f| drop(f.matrices.insert(unused, opening.clone())), "which nobody drew");
    finds("a gradient", &|f| f.gradients.push(vec![0; 8]), "gradients of blocks, 0 were drawn");
    // Two matrices of one shape, each with its own path, exchanged.
    let shape = |opening: &Opening| {
        let units: Vec<_> = opening.units.iter().map(|(at, bytes)| (*at, bytes.len())).collect();
        (units, opening.path.len())
    };
    let pairs = honest.matrices.iter().flat_map(|(a, left)| {
        let equal = honest.matrices.iter().filter(move |(b, right)| *b > a && shape(left) == shape(right));
        equal.map(move |(b, _)| (*a, *b))
    });
    let (a, b) = pairs.into_iter().next().expect("two matrices with equal parts");
    finds(
        "an exchange",
        &|f| {
            f.matrices.insert(a, honest.matrices[&b].clone());
            f.matrices.insert(b, honest.matrices[&a].clone());
        },
        kept,
    );
    // The file of another step, a damaged one, and none.
    std::fs::copy(file(&lab, 4), &path).expect("copied");
    assert!(lab.verify(RUN, ALL).stdout.contains("does not begin as the audit of step 2"));
    honest.write(&path).expect("writable");
    flip_bit(&path, 0.0);
    assert!(lab.verify(RUN, ALL).stdout.contains("does not begin as the audit of step 2"));
    std::fs::remove_file(&path).expect("deleted");
    let missing = lab.verify(RUN, ALL);
    assert!(missing.code == Some(5) && missing.stdout.contains("missing: 2\n"), "{}", missing.stdout);
}

/// Several ranks that share the state keep no blocks of the update; one rank that went through without a
/// resume does.
#[test]
fn a_file_without_the_blocks_of_an_update_is_refused_of_one_rank() {
    let [lab, shared] = [Lab::new(), Lab::new()];
    let two = ["parallel.workers=2", "batch.tokens=256"];
    let root = train(&lab, &two);
    assert_eq!(train(&shared, &[&two[..], &["parallel.ranks=2"]].concat()), root);
    shared
        .verify(RUN, ALL)
        .assert_says(&["skipped audit of the update: no block was kept in the steps 2, 4"]);
    std::fs::copy(file(&shared, 2), file(&lab, 2)).expect("a copy");
    assert_finds(&lab, RUN, ALL, &["audit of the update: no block was kept in the steps 2, and every rank"]);
}

/// The ledger rewritten so that it agrees with itself: then the root is another, or other parts are drawn.
#[test]
fn a_rewritten_ledger_does_not_fit_what_was_kept() {
    let lab = Lab::new();
    train(&lab, &["parallel.workers=1", "batch.tokens=128"]);
    let run = lab.path(RUN);
    let mut lock = Lock::read(&run.join("lock.toml")).expect("a lock");
    lock.outputs.clear();
    std::fs::write(run.join("lock.toml"), lock.to_text()).expect("writable");
    std::fs::remove_dir_all(run.join("checkpoints")).expect("deleted");
    std::fs::create_dir(run.join("checkpoints")).expect("made");
    let (_, entries) = ledger::read(&run.join("ledger.jsonl")).expect("a ledger");
    let finds = |change: fn(&mut [Entry]), says: &str| {
        let mut forged = entries.clone();
        change(&mut forged);
        rewrite_records(&run, &forged);
        assert_eq!(lab.verify(RUN, &[]).code, Some(0), "the files agree with each other");
        let verified = lab.verify(RUN, ALL);
        assert_eq!(verified.code, Some(5), "{}{}", verified.stdout, verified.stderr);
        assert!(verified.stdout.contains(says), "`{says}` is not in:\n{}", verified.stdout);
    };
    finds(|entries| entries[2].audit = Some(Hash::of(b"")), "what the micro-batch computed have the root");
    finds(|entries| entries[1].loss = Some(1.0), "audit of step 2: it ");
    finds(|entries| entries[2].grad_norm = Some(1.0), "audit of step 2: it ");
    finds(
        |entries| entries[3].root = Some(Hash::of(b"")),
        "audit of step 4: the digests of the state before",
    );
    // An audit that is asked for and gone is named, though it may have gone honestly.
    let mut forged = entries.clone();
    forged[2].audit = None;
    rewrite_records(&run, &forged);
    let strange = lab.verify(RUN, &[]);
    assert_eq!(strange.code, Some(5), "{}{}", strange.stdout, strange.stderr);
    assert!(strange.stdout.contains("the ledger has no audit of"), "{}", strange.stdout);
    std::fs::remove_file(file(&lab, 2)).expect("deleted");
    let says = "has none of 1 step that `proof.audit_every = 2` asks for: 2";
    let verified = lab.verify(RUN, &["--audit", "1"]);
    assert!(verified.stdout.contains(says), "`{says}` is not in:\n{}", verified.stdout);
}

/// The ledger says that they were written, and nothing can make them again.
#[test]
fn audits_whose_files_are_gone_are_a_failure_and_named() {
    let lab = Lab::new();
    train(&lab, &["parallel.workers=1", "batch.tokens=128"]);
    lab.verify(RUN, &[]).assert_says(&["ok      audits: 2 steps with one, 2 of the files here"]);
    std::fs::remove_file(file(&lab, 4)).expect("deleted");
    assert_finds(&lab, RUN, &[], &["FAILED  audits: 2 steps with one, 1 of the files here; missing: 4"]);
    std::fs::remove_dir_all(lab.path(RUN).join("audit")).expect("deleted");
    assert_finds(&lab, RUN, &[], &["0 of the files here; missing: 2, 4", "ci_cuda/audit` from a copy"]);
    assert_finds(&lab, RUN, ALL, &["FAILED  audit: not begun: the files are not whole"]);
}

/// Copies have no audits, which the ledger of a run that is brought back notes.
#[test]
fn audits_before_the_copy_that_a_run_was_brought_back_from_are_skipped_and_no_others() {
    let (lab, elsewhere) = (Lab::new(), Lab::new());
    let place = lab.path("copies");
    let copy_to = format!("checkpoint.copy_to={}", place.display());
    let root =
        train(&lab, &["parallel.workers=1", "batch.tokens=128", "checkpoint.every=3", copy_to.as_str()]);
    std::fs::remove_dir_all(place.join(RUN).join("step_00000005")).expect("the last copy");
    let resumed = elsewhere.resume(place.join(RUN).to_str().expect("UTF-8"), &[]);
    assert_eq!(resumed.root(), root);
    let says =
        "skipped audits: 2 steps with one, 1 of the files here; the run was brought back from its copy";
    elsewhere.verify(RUN, &[]).assert_says(&[says]);
    elsewhere.verify(RUN, &["--replay", "3..5"]).assert_says(&[says, "gave the same bits again"]);
    elsewhere
        .verify(RUN, ALL)
        .assert_says(&["of the steps 2 no file is here: not drawn", "audit of the update:"]);
    std::fs::remove_file(file(&elsewhere, 4)).expect("deleted");
    assert_finds(
        &elsewhere,
        RUN,
        &[],
        &["FAILED  audits: 2 steps with one, 0 of the files here; missing: 4"],
    );
}

#[test]
fn a_run_that_was_killed_while_it_was_audited_leaves_what_an_undisturbed_one_does() {
    let settings = ["parallel.workers=1", "batch.tokens=128", "schedule.steps=8", "checkpoint.every=3"];
    let whole = Lab::new();
    let root = train(&whole, &[&settings[..], &["proof.audit_every=1"]].concat());
    let killed = Lab::new();
    let mut arguments = Vec::new();
    let sets = SHORT.iter().chain(&settings).chain(&["proof.audit_every=1"]);
    sets.for_each(|set| arguments.extend(["--set", set]));
    let mut run = killed.start("run", CI, &arguments);
    for step in [2, 6] {
        let audit = file(&killed, step);
        wait_until("the file of an audit", Duration::from_secs(60), || audit.exists());
        // In the midst of the step after it, which is audited too.
        std::thread::sleep(Duration::from_millis(3 * step));
        run.kill();
        run = killed.start("resume", RUN, &[]);
    }
    assert_eq!(run.end(Duration::from_secs(120)).root(), root);
    assert_eq!(killed.ledger(RUN), whole.ledger(RUN));
    for step in 1..8 {
        let read = |lab: &Lab| std::fs::read(file(lab, step)).expect("an audit");
        assert!(read(&killed) == read(&whole), "step {step}");
    }
    killed.verify(RUN, ALL).assert_says(&["parts that 7 steps kept"]);
}

/// However many ranks share the work and the state, the ledger is the same; blocks of an update are kept
/// where rank 0 has all of it.
#[test]
fn any_number_of_ranks_leaves_the_same_ledger() {
    let on = |ranks: &str, zero: &str, updates: &str| {
        let lab = Lab::new();
        let settings = ["parallel.workers=4", "batch.tokens=512", "schedule.steps=3"];
        let ranks = format!("parallel.ranks={ranks}");
        let zero = format!("parallel.zero={zero}");
        train(&lab, &[&settings[..], &[&ranks, &zero]].concat());
        lab.verify(RUN, ALL).assert_says(&[updates, "audit of the tokens: the data's, in 1 of 1 step"]);
        lab.ledger(RUN)
    };
    let alone = on("1", "1", "audit of the update: ");
    assert_eq!(on("2", "0", "audit of the update: "), alone);
    assert_eq!(on("2", "1", "audit of the update: no block was kept"), alone);
    assert_eq!(on("4", "2", "audit of the update: no block was kept"), alone);
}

/// A run that went on under a new program has files of both; each program checks its own. Without a resume
/// one program made them all.
#[test]
fn audits_of_an_earlier_format_are_left_to_the_program_that_wrote_them() {
    let lab = Lab::new();
    train(&lab, &["parallel.workers=1", "batch.tokens=128"]);
    let age = |step, format| {
        let mut bytes = std::fs::read(file(&lab, step)).expect("an audit");
        assert_eq!(&bytes[..14], b"runner/audit/v");
        bytes[14] = format;
        std::fs::write(file(&lab, step), bytes).expect("writable");
    };
    age(2, b'3');
    assert_finds(
        &lab,
        RUN,
        ALL,
        &["FAILED  audits: of the steps 2 have the format `runner/audit/v3`", "the ledger has no resume"],
    );
    let path = lab.path(RUN).join("ledger.jsonl");
    let text = std::fs::read_to_string(&path).expect("a ledger");
    let mut lines: Vec<&str> = text.lines().collect();
    lines.insert(3, r#"{"note":{"after":3,"kind":"resume","text":"at step 3"}}"#);
    std::fs::write(&path, lines.join("\n") + "\n").expect("writable");
    for format in ["1", "2", "3"] {
        age(2, format.as_bytes()[0]);
        let skipped = format!(
            "skipped audits: of the steps 2 have the format `runner/audit/v{format}` of an earlier runner"
        );
        lab.verify(RUN, ALL).assert_says(&[&skipped, "in 1 of 1 step"]);
    }
    age(2, b'2');
    age(4, b'2');
    lab.verify(RUN, &[]).assert_says(&["ok      audits: 2 steps with one, 2 of the files here"]);
    lab.verify(RUN, ALL).assert_fails(2, &["the format `runner/audit/v2` of an earlier runner", "[source]"]);
}

#[test]
fn what_cannot_be_audited_is_refused_with_what_to_do() {
    let lab = Lab::new();
    let refused = |set: &[&str], says: &[&str]| {
        let sets: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).collect();
        lab.run("experiments/ci.toml", &sets).assert_fails(2, says);
    };
    refused(&["proof.audit_every=5"], &["a Hopper GPU computes in bf16", "`proof.replay_every`"]);
    let mirror = [
        "device.kind=mirror",
        "precision.compute=bf16",
        "model.channels=64",
        "model.heads=1",
        "proof.audit_every=5",
    ];
    refused(&[&mirror[..], &["proof.digest_every=2"]].concat(), &["the state root of every step"]);
    let plain = Lab::new();
    train(&plain, &["parallel.workers=1", "batch.tokens=128", "proof.audit_every=0"]);
    plain
        .verify(RUN, ALL)
        .assert_fails(2, &["no step in the ledger has an audit", "set `proof.audit_every`"]);
}
