//! Sweeps: trained, killed, stopped, failed in part, and compared by one hash.

use std::path::Path;
use std::time::Duration;

use runner::proof::SweepLock;

use crate::process::{Running, assert_no_rank_stays, ranks, wait_until};
use crate::support::{Finished, Lab, flip_bit};

const SOON: Duration = Duration::from_secs(120);
/// Set for the process of a member.
const MEMBER: &str = "RUNNER_JOBS";

/// A sweep over `ci.toml` called `lr`; `keys` is what stands under `[sweep.grid]`.
fn declare(lab: &Lab, keys: &str) -> String {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments/ci.toml");
    let path = lab.path("lr.toml");
    std::fs::write(&path, format!("extends = {:?}\n[sweep.grid]\n{keys}\n", base.display().to_string()))
        .expect("writable");
    path.display().to_string()
}

const FOUR: &str = "\"schedule.learning_rate\" = [1e-3, 3e-3]\nseed = [0, 1]";
const TWO: &str = "seed = [0, 1]";

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder").flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn the_hash_does_not_depend_on_jobs_and_every_member_is_an_ordinary_run() {
    let lab = Lab::new();
    let sweep = declare(&lab, FOUR);
    let one = lab.run(&sweep, &["--name", "one"]);
    let hash = one.root().to_owned();
    for line in ["001 begins: schedule.learning_rate = 0.001, seed = 0", "004 done in", "val loss", "root "] {
        assert!(one.stderr.contains(line), "{}", one.stderr);
    }
    assert!(!one.stderr.contains("step"), "members' own lines are in their logs: {}", one.stderr);
    assert_eq!(
        names(&lab.path("one")),
        [".lock", "001", "002", "003", "004", "logs", "sweep.lock", "sweep.toml"]
    );
    assert_eq!(lab.run(&sweep, &["--name", "two", "--jobs", "2"]).root(), hash);
    lab.verify("two/003", &["--replay", "5..10"]).assert_says(&["gave the same bits again"]);
    lab.diff("one/003", "two/003", &[]).assert_says(&["all equal"]);
    lab.diff("one", "two", &[]).assert_says(&["members: 4, all equal"]);
    lab.verify("one", &["--expect", &hash]).assert_says(&["001: ", "4 members, hash", "it is the hash"]);
    let alone = lab.run("experiments/ci.toml", &["--set", "seed=1", "--set", "schedule.learning_rate=3e-3"]);
    lab.diff("ci", "one/004", &[]).assert_says(&["all equal"]);
    assert_eq!(alone.root(), lab.resume("one/004", &[]).root());
    lab.verb("show", "one", &[]).assert_says(&["learning_rate", "0.003", "done", &hash]);
    lab.run("experiments/ci.toml", &["--overwrite"]).root();
    let newest = lab.done(&["resume", "--runs", &lab.path("").display().to_string()]);
    assert_ne!(newest.stdout.trim(), hash, "a run was worked on later");
    let finished = lab.resume("one", &[]);
    assert!(finished.stderr.contains("nothing to do"), "{}", finished.stderr);
    assert_eq!(finished.root(), hash);
}

#[test]
fn events_of_members_have_their_numbers() {
    let lab = Lab::new();
    let run = lab.run(&declare(&lab, TWO), &["--json", "--jobs", "2"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let events: Vec<serde_json::Value> =
        run.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    for member in [1, 2] {
        let of = |event: &str| {
            let same = |value: &&serde_json::Value| value["event"] == event && value["member"] == member;
            events.iter().filter(same).count()
        };
        assert_eq!((of("member_began"), of("step"), of("finished"), of("member_ended")), (1, 20, 1, 1));
    }
    let last = events.last().expect("events");
    assert_eq!((last["event"].as_str(), last["left"].as_u64()), (Some("sweep_ended"), Some(0)));
}

/// Processes of members end with the sweep that started them, and what is missing is trained, whenever the
/// kill came; what was finished is not touched.
#[test]
fn a_sweep_that_is_killed_goes_on_with_what_is_missing_to_the_same_hash() {
    let lab = Lab::new();
    let sweep = declare(&lab, TWO);
    let hash = lab.run(&sweep, &["--name", "whole"]).root().to_owned();
    for delay in [0, 5, 15, 40, 100, 250, 500, 800] {
        let name = format!("killed_{delay}");
        let mut run = lab.command(&["run", &sweep, "--name", &name, "--runs"]);
        let run = Running::start("a sweep", run.arg(lab.path("")));
        std::thread::sleep(Duration::from_millis(delay));
        run.kill();
        assert_no_rank_stays(&lab, MEMBER);
        let ended = lab.path(&name).join("001/plots/loss.png");
        let written = |path: &Path| path.metadata().and_then(|file| file.modified()).ok();
        let before = written(&ended);
        // `resume`, once there is something to resume.
        let went_on = match lab.path(&name).join("sweep.toml").is_file() {
            true => lab.resume(&name, &[]),
            false => lab.run(&sweep, &["--name", &name, "--or-resume"]),
        };
        assert_eq!(went_on.root(), hash, "killed after {delay} ms");
        assert!(before.is_none() || written(&ended) == before, "a finished member was repeated");
        lab.verify(&name, &["--expect", &hash]).assert_says(&["2 members"]);
    }
}

#[test]
fn a_signal_stops_and_saves_the_members_and_the_sweep_goes_on_to_the_same_hash() {
    let longer = ["--set", "schedule.steps=300", "--set", "checkpoint.every=0"];
    let lab = Lab::new();
    let sweep = declare(&lab, TWO);
    let hash =
        lab.run(&sweep, &[&["--name", "whole", "--jobs", "2"], &longer[..]].concat()).root().to_owned();
    for name in ["INT", "TERM", "HUP"] {
        // Where the tests themselves were started by `nohup`, hangups are ignored from the outset.
        let mut command = std::process::Command::new("env");
        command.args(["--default-signal=HUP", env!("CARGO_BIN_EXE_runner"), "run", &sweep, "--runs"]);
        command.arg(lab.path("")).args(["--name", name, "--jobs", "2"]).args(longer);
        let run = Running::start("a sweep", command.current_dir(env!("CARGO_MANIFEST_DIR")));
        wait_until("both members", SOON, || {
            ["001", "002"].iter().all(|member| lab.rows(&format!("{name}/{member}")) > 3)
        });
        run.signal(name);
        let ended = run.end(SOON);
        ended.assert_fails(130, &["001 stopped", "002 stopped", "2 members are left", "goes on"]);
        let newest = lab.command(&["verify", "--runs"]).arg(lab.path("")).output().expect("it starts");
        let newest = Finished::from(newest).stdout;
        assert!(newest.contains("2 of 2 members have not ended"), "{newest}");
        assert_eq!(names(&lab.path(name).join("001/checkpoints")).len(), 1, "saved where it was stopped");
        assert!(ranks(&lab, MEMBER).is_empty());
        assert_eq!(lab.resume(name, &[]).root(), hash);
    }
}

#[test]
fn a_member_that_fails_or_diverges_stops_no_other_and_is_listed() {
    let lab = Lab::new();
    let sweep = declare(&lab, "\"schedule.learning_rate\" = [1e30, 1e-3]\n\"data.corpus\" = [\"kjv\"]");
    let diverging = ["--set", "schedule.warmup_steps=0", "--set", "guards.patience=3"];
    let run = lab.run(&sweep, &diverging);
    run.assert_fails(
        1,
        &["001 failed", "exit code 4: diverged at step", "002 done", "logs", "does so again"],
    );
    assert!(run.stdout.is_empty(), "no hash of a sweep that is not whole: {}", run.stdout);
    assert!(!lab.path("lr/sweep.lock").exists());
    lab.resume("lr", &[]).assert_fails(1, &["001 goes on", "002 is finished", "exit code 4"]);
    lab.verb("show", "lr", &[]).assert_says(&["stopped", "done", "001 is stopped"]);
    let verified = lab.verify("lr", &[]);
    assert!(verified.stdout.contains("1 of 2 members has not ended"), "{}", verified.stdout);

    // A process that is killed is no more than a member that failed.
    let lab = Lab::new();
    let sweep = declare(&lab, TWO);
    let run = lab.start("run", &sweep, &["--set", "schedule.steps=300"]);
    wait_until("the first member", SOON, || lab.rows("lr/001") > 3);
    let [(member, _)] = ranks(&lab, MEMBER)[..] else { panic!("one member trains") };
    crate::process::signal(member, "KILL");
    run.end(SOON).assert_fails(1, &["001 failed", "it was killed", "002 done"]);
    assert_eq!(lab.resume("lr", &["--jobs", "2"]).root().len(), 64);
}

#[test]
fn what_was_changed_afterwards_is_named() {
    let lab = Lab::new();
    let sweep = declare(&lab, TWO);
    lab.run(&sweep, &[]).root();
    lab.run(&sweep, &["--name", "other", "--set", "schedule.steps=21"]).root();
    let differing = lab.diff("lr", "other", &[]);
    assert_eq!(differing.code, Some(5), "{}", differing.stderr);
    assert!(differing.stdout.contains("member 1 is the first that differs"), "{}", differing.stdout);
    let failing = |says: &str| {
        let verified = lab.verify("lr", &[]);
        assert_eq!(verified.code, Some(5), "{}", verified.stderr);
        assert!(verified.stdout.contains(says), "`{says}` is not in:\n{}", verified.stdout);
    };
    let lock = std::fs::read_to_string(lab.path("lr/sweep.lock")).expect("a lock");
    std::fs::copy(lab.path("other/sweep.lock"), lab.path("lr/sweep.lock")).expect("copied");
    failing("member 1 is not what was locked");
    lab.resume("lr", &[]).assert_fails(5, &["give", "says", "a member was changed"]);
    flip_bit(&lab.path("lr/sweep.lock"), 0.5);
    failing("is not the lock of a sweep as runner writes it");
    std::fs::write(lab.path("lr/sweep.lock"), lock).expect("writable");
    let metrics = std::fs::read_to_string(lab.path("lr/002/metrics.jsonl")).expect("metrics");
    std::fs::write(lab.path("lr/002/metrics.jsonl"), metrics.replacen("\"loss\":5", "\"loss\":4", 1))
        .expect("writable");
    failing("002: metrics.jsonl");
    lab.resume("lr", &[]).assert_fails(1, &["002 failed", "metrics.jsonl", "001 is finished"]);
    std::fs::remove_dir_all(lab.path("lr/002")).expect("removed");
    std::fs::rename(lab.path("other/002"), lab.path("lr/002")).expect("moved");
    failing("002: declaration");
    lab.resume("lr", &[]).assert_fails(1, &["002 failed", "`schedule.steps` = 21, the sweep declares 20"]);
    // Another experiment of the same name neither replaces the sweep nor goes on with it.
    lab.run(&sweep, &[]).assert_fails(1, &["already a sweep", "--overwrite"]);
    let edited = lab.run(&declare(&lab, "seed = [0, 2]"), &["--or-resume"]);
    edited.assert_fails(2, &["holds another sweep", "member 2 has `seed` = 1, not 2"]);
    lab.run("experiments/ci.toml", &["--name", "lr", "--overwrite"]).assert_fails(1, &["already a sweep"]);
    let again = lab.run(&sweep, &["--overwrite"]);
    assert!(again.stderr.contains("002 begins: seed = 2"), "{}", again.stderr);
    lab.verify("lr", &[]).assert_says(&["2 members"]);
}

/// A lock says what a run came to; without the run there is nothing that it was held to.
#[test]
fn a_member_of_which_only_the_lock_is_there_has_not_ended() {
    let lab = Lab::new();
    let hash = lab.run(&declare(&lab, TWO), &[]).root().to_owned();
    for member in ["001", "002"].map(|name| lab.path("lr").join(name)) {
        let lock = std::fs::read(member.join("lock.toml")).expect("a lock");
        std::fs::remove_dir_all(&member).expect("removable");
        std::fs::create_dir(&member).expect("a folder");
        std::fs::write(member.join("lock.toml"), lock).expect("writable");
    }
    let verified = lab.verify("lr", &["--expect", &hash]);
    assert_eq!(verified.code, Some(5), "{}{}", verified.stdout, verified.stderr);
    for says in ["FAILED  sweep.lock: ", "2 of 2 members have not ended", "not begun", "FAILED  expected: "] {
        assert!(verified.stdout.contains(says), "`{says}` is not in:\n{}", verified.stdout);
    }
    let resumed = lab.resume("lr", &[]);
    resumed.assert_fails(1, &["001 failed", "002 failed"]);
    assert!(resumed.stdout.is_empty(), "no hash of what was not trained: {}", resumed.stdout);
    for member in ["lr/001", "lr/002"] {
        std::fs::remove_dir_all(lab.path(member)).expect("removable");
    }
    assert_eq!(lab.resume("lr", &[]).root(), hash);
}

/// What is lost of a member that has trained is said, and no verb takes it for one that has not begun.
#[test]
fn a_member_whose_experiment_or_lock_is_lost_is_damaged() {
    let lab = Lab::new();
    lab.run(&declare(&lab, "seed = [0, 1, 2]"), &[]).root();
    let runs = lab.path("").display().to_string();
    for lost in ["001/experiment.toml", "002/lock.toml", "sweep.lock"] {
        std::fs::remove_file(lab.path("lr").join(lost)).expect("removable");
    }
    let shown = lab.finish(&["show", "lr", "--runs", &runs]);
    assert_eq!(shown.code, Some(0), "{}", shown.stderr);
    for says in ["001 is broken: ", "001/experiment.toml` is gone: restore it"] {
        assert!(shown.stdout.contains(says), "`{says}` is not in:\n{}", shown.stdout);
    }
    assert!(!shown.stdout.contains("not begun"), "{}", shown.stdout);
    let of_one = lab.finish(&["show", "lr/002", "--runs", &runs]);
    let of_all = lab.finish(&["show", "--runs", &runs]);
    for (name, shown) in [("002", &shown), ("002", &of_one), ("lr/002", &of_all)] {
        let says = format!("the figures of {name} are not verified: its `lock.toml` is gone");
        assert!(shown.stderr.contains(&says), "{}", shown.stderr);
    }
    let table = lab.finish(&["show", "lr", "--columns", "state", "--csv", "--runs", &runs]);
    assert!(table.stdout.contains("lr/001,broken\n"), "{}{}", table.stdout, table.stderr);
    let verified = lab.verify("lr", &[]);
    assert_eq!(verified.code, Some(5), "{}{}", verified.stdout, verified.stderr);
    for says in ["FAILED  001: ", "is gone, of a run that has begun", "FAILED  002: lock: "] {
        assert!(verified.stdout.contains(says), "`{says}` is not in:\n{}", verified.stdout);
    }
    for verb in ["show", "verify"] {
        lab.finish(&[verb, "lr/001", "--runs", &runs]).assert_fails(5, &["whose `experiment.toml` is gone"]);
    }
    std::fs::write(lab.path("lr/001/experiment.toml"), "nonsense").expect("writable");
    let verified = lab.verify("lr", &[]);
    assert!(verified.stdout.contains("FAILED  001: "), "{}{}", verified.stdout, verified.stderr);
}

/// A kill between the lock and the experiment leaves a folder that is no run yet.
#[test]
fn a_member_that_was_killed_before_it_had_an_experiment_is_trained_all_the_same() {
    let lab = Lab::new();
    let hash = lab.run(&declare(&lab, TWO), &[]).root().to_owned();
    let member = lab.path("lr/002");
    std::fs::remove_dir_all(&member).expect("removable");
    std::fs::create_dir_all(member.join("checkpoints")).expect("a folder");
    for (file, text) in [(".lock", "1\n"), ("lock.toml", "half a lo")] {
        std::fs::write(member.join(file), text).expect("writable");
    }
    assert_eq!(lab.resume("lr", &[]).root(), hash);
    lab.verify("lr", &[]).assert_says(&["2 members"]);
}

/// The same of a run that is no member.
#[test]
fn a_run_that_was_killed_before_it_had_an_experiment_is_not_in_the_way() {
    let lab = Lab::new();
    std::fs::create_dir_all(lab.path("ci/checkpoints")).expect("a folder");
    for (file, text) in [(".lock", "1\n"), ("lock.toml", "half a lo")] {
        std::fs::write(lab.path("ci").join(file), text).expect("writable");
    }
    lab.run("experiments/ci.toml", &[]).root();
    lab.verify("ci", &[]).assert_says(&["ok"]);
}

#[test]
fn sweeps_are_equal_by_members_that_were_trained_and_a_lost_declaration_is_named() {
    let lab = Lab::new();
    lab.run(&declare(&lab, TWO), &[]).root();
    for name in ["a", "b"] {
        std::fs::create_dir(lab.path(name)).expect("a folder");
        std::fs::copy(lab.path("lr/sweep.toml"), lab.path(name).join("sweep.toml")).expect("copied");
    }
    lab.diff("a", "b", &[]).assert_fails(1, &["has begun: there is nothing to compare"]);
    for name in ["a", "b"] {
        crate::verify::copy(&lab.path("lr/001"), &lab.path(name).join("001"));
    }
    lab.diff("a", "b", &[]).assert_says(&["members: 2, 1 equal, 1 has begun in neither"]);
    lab.diff("lr", "lr", &[]).assert_says(&["members: 2, all equal"]);
    std::fs::remove_file(lab.path("lr/sweep.toml")).expect("removable");
    lab.verify("lr", &[]).assert_fails(2, &["sweep.toml` is missing, which declares the sweep there"]);
}

#[test]
fn verbs_that_take_one_run_name_the_members_of_a_sweep() {
    let lab = Lab::new();
    let sweep = declare(&lab, TWO);
    let refused = |arguments: &[&str], says: &[&str]| lab.finish(arguments).assert_fails(2, says);
    let runs = lab.path("").display().to_string();
    refused(&["run", "experiments/ci.toml", "--jobs", "2", "--runs", &runs], &["`--jobs` and `--member`"]);
    refused(&["run", &sweep, "--member", "3", "--runs", &runs], &["no member 3", "has 2"]);
    refused(&["run", &sweep, "--set", "seed=1", "--runs", &runs], &["`seed` is swept"]);
    refused(&["bench", &sweep], &["declares a sweep of 2 runs", "hint: "]);
    assert_eq!(names(&lab.path("")), ["lr.toml"], "nothing was written");
    lab.run(&sweep, &["--member", "2"]).root();
    assert_eq!(names(&lab.path("lr")), [".lock", "002", "logs", "sweep.toml"]);
    refused(&["show", "lr/001", "--runs", &runs], &["has not begun", "`runner resume lr`"]);
    refused(&["show", "lr/3", "--runs", &runs], &["has 2 members, `lr/001` and on"]);
    refused(&["sample", "lr", "--runs", &runs], &["that is a sweep", "`lr/001`"]);
    refused(
        &["resume", "lr", "--set", "log.every=2", "--runs", &runs],
        &["as it was declared", "`NAME/001`"],
    );
    refused(&["verify", "lr", "--replay", "0..5", "--runs", &runs], &["take one run", "`NAME/001`"]);
    let mut resume = lab.command(&["resume", "lr", "--runs", &runs]);
    let resume = Finished::from(resume.env("RUNNER_SEED", "3").output().expect("it starts"));
    resume.assert_fails(2, &["`RUNNER_SEED` sets a key", "unset it"]);
    lab.resume("lr", &[]).root();
    // The environment of the start is part of the declaration, and stays out of a resume of its members.
    let mut run = lab.command(&["run", &sweep, "--name", "set", "--member", "1", "--runs", &runs]);
    let run = Finished::from(run.env("RUNNER_SCHEDULE__STEPS", "10").output().expect("it starts"));
    run.root();
    let whole = lab.resume("set", &[]);
    whole.root();
    assert_eq!((lab.ledger("set/001").len(), lab.ledger("set/002").len()), (11, 11));
}

#[test]
fn a_plan_sums_up_its_members_and_the_resolved_sweep_is_a_sweep() {
    let lab = Lab::new();
    let sweep = declare(&lab, "\"schedule.steps\" = [20, 40]");
    lab.done(&["plan", &sweep, "--gpu", "h100"]).assert_says(&[
        "lr: 2 runs",
        "002",
        "schedule.steps = 40",
        "all",
    ]);
    let plan = lab.done(&["plan", &sweep, "--json"]).stdout;
    let plan: serde_json::Value = serde_json::from_str(&plan).expect("JSON");
    let sum = |key: &str| -> f64 {
        plan["members"]
            .as_array()
            .expect("members")
            .iter()
            .map(|one| one[key].as_f64().expect("a number"))
            .sum()
    };
    assert_eq!((sum("tokens"), plan["tokens"].as_f64()), (30_720.0, Some(30_720.0)));
    assert_eq!(plan["total_s"].as_f64(), Some(sum("total_s")));
    let resolved = lab.done(&["config", &sweep]).stdout;
    let back = lab.path("back.toml");
    std::fs::write(&back, &resolved).expect("writable");
    let again = lab.done(&["config", &back.display().to_string()]).stdout;
    let settings = |text: &str| -> Vec<String> {
        text.lines()
            .map(|line| line.split(" #").next().unwrap_or_default().trim_end().to_owned())
            .skip(1)
            .collect()
    };
    assert_eq!(settings(&resolved), settings(&again));
}

/// One of them makes the run; the others are refused, and hurt nothing. Members of a sweep start together.
#[test]
fn eight_at_once_make_one_run_and_one_sweep_and_all_its_members() {
    let lab = Lab::new();
    let sweep = declare(&lab, "seed = [0, 1, 2, 3, 4, 5, 6, 7]");
    let short = ["--set", "schedule.steps=4", "--set", "schedule.warmup_steps=1"];
    let all = |commands: Vec<Vec<&str>>| -> Vec<Finished> {
        let start = |arguments: Vec<&str>| {
            let mut command = lab.command(&arguments);
            command.arg("--runs").arg(lab.path("")).args(short);
            Running::start("one of eight", &mut command)
        };
        let running: Vec<Running> = commands.into_iter().map(start).collect();
        running.into_iter().map(|one| one.end(SOON)).collect()
    };
    for what in ["experiments/ci.toml", &sweep] {
        let ended = all(vec![vec!["run", what]; 8]);
        let done = ended.iter().filter(|one| one.code == Some(0)).count();
        assert_eq!(done, 1, "{ended:?}");
        for refused in ended.iter().filter(|one| one.code != Some(0)) {
            let said = ["already a", "is in use by"].iter().any(|why| refused.stderr.contains(why));
            assert!(refused.code == Some(1) && said, "{refused:?}");
        }
    }
    lab.verify("ci", &[]).assert_says(&["ledger"]);
    let hash = lab.verify("lr", &[]);
    hash.assert_says(&["8 members, hash"]);
    let numbers: Vec<String> = (1..=8).map(|number| number.to_string()).collect();
    let members = numbers.iter().map(|number| vec!["run", &sweep, "--name", "array", "--member", number]);
    assert!(all(members.collect()).iter().all(|one| one.code == Some(0)));
    let array = lab.resume("array", &[]);
    assert!(hash.stdout.contains(array.root()), "{}", hash.stdout);
}

#[test]
fn the_worked_example_has_the_lock_that_its_page_tells_of() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let lock = SweepLock::read(&root.join("docs/example_sweep/sweep.lock")).unwrap_or_else(|e| panic!("{e}"));
    let page = std::fs::read_to_string(root.join("docs/example_sweep.md")).expect("a page");
    assert!(page.contains(&lock.hash().to_string()), "another hash: {}", lock.hash());
    let text = std::fs::read_to_string(root.join("experiments/example_sweep.toml")).expect("a sweep");
    let sweep: toml::Table = text.parse().expect("TOML");
    let list = |key: &str| sweep["sweep"]["grid"][key].as_array().expect("a list").clone();
    let mut members = lock.members.iter();
    for rate in list("schedule.learning_rate") {
        for seed in list("seed") {
            let member = members.next().expect("a member");
            let number = |key: &str| member[&format!("setting.{key}")].parse::<f64>().ok();
            assert_eq!(number("schedule.learning_rate"), rate.as_float());
            assert_eq!(number("seed"), seed.as_integer().map(|seed| seed as f64));
            assert_eq!(member["step"], sweep["schedule"]["steps"].to_string());
        }
    }
    assert!(members.next().is_none());
}
