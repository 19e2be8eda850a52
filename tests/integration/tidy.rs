//! Many runs in order: the table of runs, notes, removing and pruning, and new experiments.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::{Finished, Lab, flip_bit};

const CI: &str = "experiments/ci.toml";

/// A verb with `--runs` of the lab.
fn verb(lab: &Lab, arguments: &[&str]) -> Finished {
    let runs = lab.path("").display().to_string();
    lab.finish(&[arguments, &["--runs", &runs]].concat())
}

#[track_caller]
fn done(lab: &Lab, arguments: &[&str]) -> String {
    let finished = verb(lab, arguments);
    assert_eq!(finished.code, Some(0), "{arguments:?}: {}", finished.stderr);
    finished.stdout
}

/// Three short runs with two learning rates.
fn three_runs() -> Lab {
    let lab = Lab::new();
    for (name, seed, rate) in [("a", "1", "1e-3"), ("b", "2", "1e-3"), ("c", "1", "2e-3")] {
        let (seed, rate) = (format!("seed={seed}"), format!("schedule.learning_rate={rate}"));
        lab.run(CI, &["--name", name, "--set", &seed, "--set", &rate]).root();
    }
    lab
}

#[test]
fn the_table_of_runs_has_any_key_as_a_column_a_filter_an_order_and_a_group() {
    let lab = three_runs();
    let csv = done(&lab, &["show", "--columns", "seed,learning_rate,grad_norm", "--sort", "-seed", "--csv"]);
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines[0], "name,seed,schedule.learning_rate,grad_norm");
    assert!(lines[1].starts_with("b,2,0.001,") && lines[1].len() > "b,2,0.001,".len(), "{csv}");
    let listed = done(&lab, &["show", "--differing", "--filter", "seed = 1"]);
    let words =
        |line: usize| listed.lines().nth(line).map(|line| line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(words(0).unwrap(), ["name", "schedule.learning_rate", "state", "mean_loss", "val_loss"]);
    assert_eq!(words(2).unwrap()[..3], ["c", "0.002", "done"]);
    let json =
        done(&lab, &["show", "--group-by", "schedule.learning_rate", "--columns", "val_loss", "--json"]);
    let groups: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(groups[0]["runs"], json!(["a", "b"]));
    let of = |name: &str| -> f64 {
        let json = done(&lab, &["show", name, "--json"]);
        serde_json::from_str::<Value>(&json).expect("JSON")["val_loss"].as_f64().expect("a number")
    };
    assert_eq!(groups[0]["val_loss"].as_f64(), Some((of("a") + of("b")) / 2.0));
    let full: Value = serde_json::from_str(&done(&lab, &["show", "--json"])).expect("JSON");
    assert!(full[2]["disk_bytes"].as_u64() > Some(1 << 20) && full[2]["tags"] == json!([]), "{full}");
    verb(&lab, &["show", "--columns", "seeed"])
        .assert_fails(2, &["no column `seeed`", "did you mean `seed`?"]);
    verb(&lab, &["show", "--filter", "every > 1"]).assert_fails(2, &["eval.every or sample.every"]);
}

/// What a list says of a run and what is said of it alone, by the names of columns.
fn listed_and_alone(lab: &Lab, name: &str) -> (Value, Value) {
    const COLUMNS: &str =
        "state,step,steps,tokens,mean_loss,val_loss,step_ms,tokens_per_s,skipped,root,parameters,why";
    let filter = format!("name = {name}");
    let listed = done(lab, &["show", "--columns", COLUMNS, "--filter", &filter, "--json"]);
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    let mut alone: Value = serde_json::from_str(&done(lab, &["show", name, "--json"])).expect("JSON");
    let fields = alone.as_object_mut().expect("an object");
    fields.retain(|key, _| key == "name" || COLUMNS.split(',').any(|column| column == key));
    (listed[0].clone(), alone)
}

/// A run whose files are too long to be read in full for a list, and of which guards skip steps.
const LONG: [&str; 26] = [
    "--set",
    "schedule.steps=1500",
    "--set",
    "model.layers=1",
    "--set",
    "model.heads=1",
    "--set",
    "model.channels=16",
    "--set",
    "batch.seq_len=16",
    "--set",
    "batch.micro=1",
    "--set",
    "batch.tokens=32",
    "--set",
    "eval.every=400",
    "--set",
    "eval.val_tokens=64",
    "--set",
    "checkpoint.every=600",
    "--set",
    "guards.loss_z=2",
    "--set",
    "sample.every=0",
    "--set",
    "log.every=500",
];

#[test]
fn a_list_says_of_a_long_run_what_is_said_of_it_alone_though_it_reads_the_ends_of_files() {
    let lab = Lab::new();
    lab.run(CI, &LONG).root();
    let (listed, alone) = listed_and_alone(&lab, "ci");
    assert_eq!(listed, alone);
    assert!(listed["state"] == "done" && listed["skipped"].as_u64() > Some(10), "{listed}");
    // Stopped between its checkpoints, behind the last evaluation.
    for file in ["metrics.jsonl", "ledger.jsonl"] {
        let path = lab.path("ci").join(file);
        let text = fs::read_to_string(&path).expect("UTF-8");
        let steps = text.lines().filter(|line| !line.starts_with("{\"note\"")).take(1390);
        fs::write(&path, steps.map(|line| format!("{line}\n")).collect::<String>()).expect("writable");
    }
    fs::remove_dir_all(lab.path("ci/checkpoints/step_00001500")).expect("it is there");
    let (listed, alone) = listed_and_alone(&lab, "ci");
    assert_eq!(listed, alone);
    assert!(listed["state"] == "stopped" && listed["step"] == 1390, "{listed}");
    // Rows before the last few that a figure is made of: the last evaluation, and losses of the mean.
    let path = lab.path("ci/metrics.jsonl");
    let text = fs::read_to_string(&path).expect("UTF-8");
    for forged in [
        forge(&text, "val_loss", |row| row["val_loss"].is_f64()),
        forge(&text, "loss", |row| row["step"] == 1376),
    ] {
        fs::write(&path, forged).expect("writable");
        assert!(verb(&lab, &["show"]).stderr.contains("the figures of ci are not verified"));
    }
    // The best loss of all is of the ledger, whose heads are held to its lines.
    fs::write(&path, &text).expect("writable");
    let ledger = lab.path("ci/ledger.jsonl");
    let whole = fs::read_to_string(&ledger).expect("UTF-8");
    let best = ["show", "--columns", "best_val_loss", "--csv"];
    // Old enough to be remembered, which an edit ends.
    std::thread::sleep(std::time::Duration::from_millis(2100));
    let before = done(&lab, &best);
    assert_eq!(done(&lab, &best), before);
    let (head, bits) = ("\"val_loss\":", "\"val_loss_bits\":\"");
    let (at, of_bits) = (whole.find(head).expect("there"), whole.find(bits).expect("there"));
    let end = at + whole[at..].find(',').expect("more");
    let forged = format!(
        "{}{head}0.5{}{bits}3fe0000000000000{}",
        &whole[..at],
        &whole[end..of_bits],
        &whole[of_bits + bits.len() + 16..]
    );
    fs::write(&ledger, forged).expect("writable");
    let after = verb(&lab, &best);
    assert!(before.contains(',') && !after.stdout.contains("0.5\n"), "{}", after.stdout);
    fs::write(&ledger, whole).expect("writable");
    assert_eq!(done(&lab, &best), before);
    // A number that the ledger does not have, and a line that is none.
    let (before, last) = text.trim_end().rsplit_once('\n').expect("many lines");
    fs::write(&path, format!("{before}\n{}\n", last.replace("\"tokens\":", "\"tokens\":1")))
        .expect("writable");
    assert!(verb(&lab, &["show"]).stderr.contains("the figures of ci are not verified"));
    fs::write(&path, format!("{before}\nhello\n")).expect("writable");
    assert!(done(&lab, &["show"]).contains("ci is broken: "));
}

#[test]
fn a_path_is_a_place_and_no_name_below_the_folder_of_runs() {
    let lab = Lab::new();
    let short = ["--set", "schedule.steps=2", "--set", "schedule.warmup_steps=1"];
    for runs in ["work/runs", "work/other", "other"] {
        fs::create_dir_all(lab.path(runs)).expect("a folder");
        let runs = lab.path(runs).display().to_string();
        lab.finish(&[&["run", CI, "--name", "r", "--runs", &runs][..], &short].concat()).root();
    }
    fs::create_dir(lab.path("work/r")).expect("a folder");
    let work = |arguments: &[&str]| {
        let mut command = lab.command(arguments);
        command.current_dir(lab.path("work"));
        crate::support::Finished::from(command.output().expect("it starts"))
    };
    for verb in ["rm", "verify", "show", "plot"] {
        let refused = work(&[verb, "./r"]);
        assert!(refused.code != Some(0) && lab.path("work/runs/r/lock.toml").exists(), "{verb} ./r");
    }
    assert_eq!(work(&["rm", "../other/r"]).code, Some(0));
    assert!(lab.path("work/other/r").exists() && !lab.path("other/r").exists());
    // A run without its experiment keeps its lock whatever is refused.
    fs::remove_file(lab.path("work/runs/r/experiment.toml")).expect("removable");
    let experiment = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(CI).display().to_string();
    work(&["run", &experiment, "--name", "r", "--or-resume"])
        .assert_fails(1, &["whose `experiment.toml` is gone"]);
    assert!(lab.path("work/runs/r/lock.toml").exists());
}

/// The rows of a run with 0.5 in place of a number of the last row that is `wanted`.
fn forge(rows: &str, name: &str, wanted: impl Fn(&serde_json::Value) -> bool) -> String {
    let mut lines: Vec<String> = rows.lines().map(str::to_owned).collect();
    let parsed = |line: &String| serde_json::from_str(line).expect("JSON");
    let line = lines.iter_mut().rev().find(|line| wanted(&parsed(line))).expect("such a row");
    let row: serde_json::Value = parsed(line);
    for (name, forged) in [(name.to_owned(), "0.5"), (format!("{name}_bits"), "\"0x3fe0000000000000\"")] {
        *line = line.replacen(&format!("\"{name}\":{}", row[&name]), &format!("\"{name}\":{forged}"), 1);
    }
    lines.join("\n") + "\n"
}

/// An experiment or a sweep in a folder of its own, by hand or from `runner config`, is nobody's run.
#[test]
fn a_file_that_a_person_wrote_is_neither_deleted_nor_replaced_by_any_verb() {
    let lab = Lab::new();
    let base = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(CI);
    let by_hand = format!("# mine\nextends = {base:?}\n");
    let resolved = lab.done(&["config", CI]).stdout + "# precious\n";
    let runs = lab.path("").display().to_string();
    for (name, file, text) in [
        ("hand", "experiment.toml", by_hand.clone()),
        ("config", "experiment.toml", resolved),
        ("sweep", "sweep.toml", by_hand + "[sweep.grid]\nseed = [1, 2]\n"),
    ] {
        fs::create_dir(lab.path(name)).expect("a folder");
        let path = lab.path(name).join(file);
        fs::write(&path, &text).expect("writable");
        let path = path.display().to_string();
        let folder = lab.path(name).display().to_string();
        for arguments in [
            &["run", &path, "--name", name, "--overwrite"][..],
            &["run", &path, "--name", name, "--or-resume"],
            &["run", CI, "--name", name, "--overwrite"],
            &["run", CI, "--name", name, "--or-resume"],
            &["resume", &folder],
            &["rm", &folder],
            &["rm", name],
        ] {
            let refused = lab.finish(&[arguments, &["--runs", &runs]].concat());
            assert!(matches!(refused.code, Some(1 | 2)), "{arguments:?}: {}", refused.stderr);
            assert_eq!(fs::read_to_string(&path).expect("it is there"), text, "{arguments:?}");
            assert_eq!(fs::read_dir(lab.path(name)).expect("a folder").count(), 1, "{arguments:?}");
        }
    }
}

#[test]
fn a_sweep_is_listed_by_its_name_and_its_members_pruned_and_removed_as_a_whole() {
    let lab = Lab::new();
    lab.run("experiments/sweep_ci.toml", &["--name", "lr", "--set", "schedule.steps=5"]).assert_says(&[]);
    lab.run(CI, &["--name", "alone"]).root();
    let csv = done(&lab, &["show", "--columns", "state,seed,learning_rate", "--csv"]);
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!((lines.len(), lines[0]), (8, "name,state,seed,schedule.learning_rate"), "{csv}");
    assert_eq!((lines[1], lines[2]), ("alone,done,1337,0.001", "lr/001,done,0,0.0003"), "{csv}");
    assert!(done(&lab, &["show", "lr/001"]).contains("001, done"));
    let dry = verb(&lab, &["prune", "lr", "--keep-last", "1"]);
    assert!(dry.code == Some(0) && dry.stderr.contains("nothing to remove"), "{}", dry.stderr);
    // A link to the sweep makes no run a second time.
    std::os::unix::fs::symlink(lab.path("lr"), lab.path("a_link")).expect("a link");
    let pruned = verb(&lab, &["prune", "--all"]).stderr;
    assert!(pruned.contains("lr/001` keeps all") && !pruned.contains("a_link"), "{pruned}");
    let json = done(&lab, &["show", "--group-by", "model", "--json"]);
    let groups: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(groups[0]["runs"].as_array().map(Vec::len), Some(7), "{groups}");
    fs::remove_file(lab.path("a_link")).expect("a link");
    done(&lab, &["rm", "lr/003"]);
    let gone = done(&lab, &["show", "lr"]);
    assert!(gone.contains(", of 6 members of which 1 is no longer there"), "{gone}");
    fs::write(lab.path("lr/002/mine.txt"), "mine").expect("writable");
    verb(&lab, &["rm", "lr"]).assert_fails(1, &["`mine.txt`"]);
    fs::remove_file(lab.path("lr/002/mine.txt")).expect("it is there");
    done(&lab, &["rm", "lr"]);
    assert!(!lab.path("lr").exists() && lab.path("alone").exists());
}

#[test]
fn notes_and_tags_are_shown_and_are_no_part_of_the_proof() {
    let lab = three_runs();
    let before = done(&lab, &["verify", "a"]);
    done(&lab, &["note", "a", "the loss\nis odd", "--tag", "keep", "--tag", "odd"]);
    done(&lab, &["note", "a", "--untag", "odd"]);
    assert_eq!(done(&lab, &["note", "a"]), "tag: keep\nthe loss\nis odd\n");
    assert_eq!(done(&lab, &["verify", "a"]), before);
    assert!(done(&lab, &["show", "a"]).contains("notes        the loss\n             is odd"));
    assert_eq!(
        done(&lab, &["show", "--filter", "tags ~ keep", "--columns", "tags", "--csv"]),
        "name,tags\na,keep\n"
    );
    done(&lab, &["note", "a", "\u{1b}[31mred"]);
    let shown = done(&lab, &["show", "a"]);
    assert!(shown.contains("[31mred") && !shown.contains('\u{1b}'), "{shown}");
    verb(&lab, &["note", "a", "--tag", "two words"]).assert_fails(2, &["is no tag"]);
    verb(&lab, &["note", "a", "--untag", "odd"]).assert_fails(2, &["no tag `odd`", "its tags are keep"]);
    verb(&lab, &["note", "a", " "]).assert_fails(2, &["the note is empty"]);
    fs::write(lab.path("b/notes.jsonl"), "hello\n").expect("writable");
    let listed = verb(&lab, &["show"]);
    assert!(listed.code == Some(0) && listed.stderr.contains("b/notes.jsonl` line 1"), "{}", listed.stderr);
    let one = verb(&lab, &["show", "b", "--json"]);
    assert!(one.code == Some(0) && one.stderr.contains("b/notes.jsonl` line 1"), "{}", one.stderr);
    lab.run(CI, &["--name", "b", "--overwrite"]).root();
    assert!(!lab.path("b/notes.jsonl").exists(), "--overwrite knows the file");
}

#[test]
fn rm_removes_runs_and_nothing_that_is_not_one() {
    let lab = three_runs();
    fs::create_dir(lab.path("photos")).expect("new");
    fs::write(lab.path("photos/me.png"), "mine").expect("writable");
    fs::write(lab.path("b/thesis.tex"), "mine").expect("writable");
    verb(&lab, &["rm", "a", "b"]).assert_fails(1, &["`thesis.tex`", "hint: move that away"]);
    verb(&lab, &["rm", "a", "photos"]).assert_fails(2, &["there is no run in"]);
    let dry = verb(&lab, &["rm", "a", "c", "--dry-run"]);
    assert!(dry.code == Some(0) && dry.stderr.contains("would remove `"), "{}", dry.stderr);
    assert!(["a", "b", "c"].iter().all(|name| lab.path(name).join("ledger.jsonl").exists()), "all or none");
    // Of a run whose experiment is lost, the lock is enough.
    fs::remove_file(lab.path("c/experiment.toml")).expect("it is there");
    done(&lab, &["rm", "a", "c", "a"]);
    let mut left: Vec<String> = (fs::read_dir(lab.path("")).expect("a folder"))
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    left.sort();
    assert_eq!(left, ["b", "photos"]);
    assert_eq!(fs::read(lab.path("b/thesis.tex")).expect("it is there"), b"mine");
}

#[test]
fn a_run_that_goes_on_is_neither_removed_nor_pruned() {
    let lab = Lab::new();
    let mut running =
        lab.start("run", CI, &["--set", "schedule.steps=100000", "--set", "checkpoint.keep_last=1"]);
    running.wait_for_rows(&lab, 3);
    verb(&lab, &["rm", "ci", "--dry-run"]).assert_fails(1, &["in use by process"]);
    verb(&lab, &["rm", "ci"]).assert_fails(1, &["in use by process"]);
    verb(&lab, &["prune", "ci", "--yes"]).assert_fails(1, &["in use by process"]);
    done(&lab, &["note", "ci", "still going"]);
    assert!(lab.path("ci/ledger.jsonl").exists());
}

#[test]
fn prune_says_what_retention_would_drop_and_drops_it_when_told() {
    let lab = three_runs();
    let steps = |name: &str| {
        let mut steps: Vec<String> = (fs::read_dir(lab.path(name).join("checkpoints")).expect("a folder"))
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        steps.sort();
        steps
    };
    let all = ["step_00000005", "step_00000010", "step_00000015", "step_00000020"];
    let own = verb(&lab, &["prune", "a"]);
    assert!(own.stderr.contains("keeps all: its `checkpoint.keep_last` is 0"), "{}", own.stderr);
    let dry = verb(&lab, &["prune", "--all", "--keep-last", "1", "--keep-every", "10"]);
    assert!(dry.stderr.contains("a` would lose the checkpoints of steps 5, 15: "), "{}", dry.stderr);
    assert!(dry.stderr.contains("`--yes` removes them"), "{}", dry.stderr);
    assert_eq!(steps("a"), all);
    done(&lab, &["prune", "a", "b", "--keep-last", "1", "--keep-every", "10", "--yes"]);
    assert_eq!(
        (steps("a"), steps("b")),
        (vec![all[1].into(), all[3].into()], vec![all[1].into(), all[3].into()])
    );
    assert_eq!(steps("c"), all);
    let verified = lab.verify("a", &[]);
    assert_eq!(verified.code, Some(0), "{}", verified.stderr);
    verb(&lab, &["prune", "a", "--keep-last", "0"]).assert_fails(2, &["keep-last"]);
    flip_bit(&lab.path("c/checkpoints/step_00000020/state.safetensors"), 0.9);
    let whole = verb(&lab, &["prune", "c", "--keep-last", "1", "--yes"]);
    assert!(whole.stderr.contains("keeps step 15: none that would stay is whole"), "{}", whole.stderr);
    assert_eq!(steps("c"), all[2..]);
}

/// The program in a folder without a checkout.
fn elsewhere(lab: &Lab, arguments: &[&str]) -> Finished {
    let mut command: Command = lab.command(arguments);
    Finished::from(command.current_dir(lab.path("")).output().expect("the program starts"))
}

#[test]
fn a_new_experiment_and_a_shipped_one_run_without_a_checkout() {
    let lab = Lab::new();
    let made = elsewhere(&lab, &["new", "mine", "--from", "ci"]);
    assert_eq!((made.code, made.stdout.as_str()), (Some(0), "mine.toml\n"), "{}", made.stderr);
    let root = include_str!("../golden/ci_cpu.root").trim();
    assert_eq!(elsewhere(&lab, &["run", "mine.toml"]).root(), root);
    assert_eq!(elsewhere(&lab, &["run", "ci"]).root(), root);
    let named = elsewhere(&lab, &["new", "ci"]);
    assert!(named.stderr.contains("`runner run ci` runs the shipped experiment"), "{}", named.stderr);
    let config = elsewhere(&lab, &["config", "ci"]);
    assert!(config.stderr.contains("`ci` is the shipped experiment; `./ci.toml` is"), "{}", config.stderr);
    fs::remove_file(lab.path("ci.toml")).expect("it was made");
    assert_eq!(elsewhere(&lab, &["lock", "ci"]).code, Some(0));
    elsewhere(&lab, &["run", "ci", "--name", "locked", "--set", "model.vocab=300"])
        .assert_fails(5, &["`--no-lock` runs without it; `runner lock ci --overwrite` locks anew"]);
    elsewhere(&lab, &["new", "mine"]).assert_fails(2, &["already a file `mine.toml`"]);
    let missing = elsewhere(&lab, &["new", "no/such/mine"]);
    missing.assert_fails(2, &["there is no folder `no/such`", "mkdir -p 'no/such'"]);
    assert!(!missing.stderr.contains(".tmp."), "{}", missing.stderr);
    elsewhere(&lab, &["new", "mine/.hidden"]).assert_fails(2, &["must begin with a letter"]);
    elsewhere(&lab, &["run", "quickstar"]).assert_fails(2, &["did you mean `quickstart`?"]);
    let config = elsewhere(&lab, &["config", "gpt2_420b"]);
    let here = fs::canonicalize(lab.path("")).expect("it is there");
    let data = Path::new(&here).join("data/edu_fineweb_train_*.bin");
    assert!(config.stdout.contains(data.to_str().expect("UTF-8")), "{}{}", config.stdout, config.stderr);
    assert!(config.stdout.contains("# experiments/gpt2_33b.toml:"), "{}", config.stdout);
    // A file of the name goes before.
    fs::write(lab.path("ci"), "seed = \"x\"").expect("writable");
    elsewhere(&lab, &["config", "ci"]).assert_fails(2, &["`seed` must be an integer"]);
}
