//! Any number of ranks ends in the bits of one; and a rank that fails stops all, and is named.

use std::time::Duration;

use crate::process::{Running, process_of_rank, signal, wait_until};
use crate::support::{Finished, Lab};

const CI: &str = "experiments/ci.toml";
/// The environment variable with a rank's number.
const RANK: &str = "RANK";
const SOON: Duration = Duration::from_secs(60);

/// Eight workers and few steps: evaluation, samples and checkpoints included.
const EIGHT: &[&str] = &[
    "--set",
    "parallel.workers=8",
    "--set",
    "batch.tokens=1024",
    "--set",
    "schedule.steps=12",
    "--set",
    "checkpoint.every=2",
    "--set",
    "eval.every=6",
    "--set",
    "sample.every=12",
];

/// For runs that are stopped midway: long enough that a signal after a few rows never comes too late.
const LONGER: &[&str] = &["--set", "schedule.steps=24"];

fn on<'a>(ranks: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [EIGHT, &["--ranks", ranks], more].concat()
}

/// The token table of 257 rows is padded to 384; with 1024 channels a shard lies in the padding alone.
#[test]
fn a_shard_of_padding_alone_changes_nothing() {
    let wide = |ranks| {
        let lab = Lab::new();
        let set = [
            "model.channels=1024",
            "model.layers=1",
            "parallel.workers=4",
            "batch.tokens=512",
            "schedule.steps=2",
        ];
        let off = ["schedule.warmup_steps=1", "eval.every=0", "sample.every=0", "checkpoint.every=1"];
        let mut arguments = vec!["--ranks", ranks];
        set.iter().chain(&off).for_each(|set| arguments.extend(["--set", set]));
        let root = lab.run(CI, &arguments).root().to_owned();
        lab.verify("ci", &[]).assert_says(&["ok"]);
        (root, read(&lab, "ledger.jsonl"))
    };
    let alone = wide("1");
    assert_eq!(wide("2"), alone);
    assert_eq!(wide("4"), alone);
}

fn read(lab: &Lab, file: &str) -> String {
    let path = lab.path("ci").join(file);
    String::from_utf8_lossy(&std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
        .into_owned()
}

#[test]
fn any_number_of_processes_ends_in_the_files_of_one() {
    let one = Lab::new();
    let expected = one.run(CI, &on("1", &[])).root().to_owned();
    for (ranks, more) in [("2", &[][..]), ("4", &["--set", "parallel.zero=0"]), ("8", &[])] {
        let lab = Lab::new();
        let finished = lab.run(CI, &on(ranks, more));
        assert_eq!(finished.root(), expected, "{ranks} ranks {more:?}\n{}", finished.stderr);
        assert_eq!(lab.metrics("ci"), one.metrics("ci"), "{ranks} ranks: metrics");
        for file in [
            "ledger.jsonl",
            "main.log",
            "samples/step_00000012.txt",
            "checkpoints/step_00000006/manifest.json",
            "checkpoints/step_00000012/manifest.json",
            "checkpoints/step_00000012/state.safetensors",
        ] {
            assert!(read(&lab, file) == read(&one, file), "{ranks} ranks: {file} is not that of one");
        }
        assert!(!lab.path(".ranks").exists(), "where they met is gone");
        assert_eq!(lab.verify("ci", &[]).code, Some(0), "{ranks} ranks");
    }
}

#[test]
fn a_run_goes_from_four_ranks_to_two_to_one_and_ends_in_the_bits_of_the_uninterrupted_one() {
    let whole = Lab::new();
    let expected = whole.run(CI, &on("1", LONGER)).root().to_owned();
    let lab = Lab::new();
    let mut run = lab.start("run", CI, &on("4", LONGER));
    run.wait_for_rows(&lab, 3);
    run.signal("TERM");
    run.end(SOON).assert_fails(130, &[]);
    let mut run = lab.start("resume", "ci", &["--ranks", "2"]);
    run.wait_for_rows(&lab, 8);
    run.signal("TERM");
    run.end(SOON).assert_fails(130, &[]);
    assert_eq!(lab.resume("ci", &["--ranks", "1"]).root(), expected);
    assert_eq!(lab.ledger("ci"), whole.ledger("ci"));
    assert_eq!(lab.metrics("ci"), whole.metrics("ci"));
    assert!(read(&lab, "ledger.jsonl").contains("ranks"), "the change of topology is noted");
}

/// The folder of runs where the command was given is neither needed nor made.
#[test]
fn ranks_of_a_run_elsewhere_meet_beside_it() {
    let lab = Lab::new();
    let expected = lab.run(CI, &on("1", &[])).root().to_owned();
    std::fs::remove_dir_all(lab.path("ci/checkpoints/step_00000012")).expect("the last checkpoint");
    let run = lab.path("ci").display().to_string();
    let mut command = lab.command(&["resume", &run, "--ranks", "2"]);
    let resumed = Finished::from(command.current_dir("/proc").output().expect("it starts"));
    assert_eq!(resumed.root(), expected);
    assert!(!lab.path(".ranks").exists(), "where they met is gone");
}

#[test]
fn each_rank_in_turn_killed_stops_all_by_name_and_the_run_goes_on_to_the_same_bits() {
    let whole = Lab::new();
    let expected = whole.run(CI, &on("1", LONGER)).root().to_owned();
    let lab = Lab::new();
    let mut run = lab.start("run", CI, &on("4", LONGER));
    for victim in 0..4 {
        run.wait_for_rows(&lab, 2 + 2 * victim);
        signal(process_of_rank(&lab, RANK, victim), "KILL");
        let ended = run.end(SOON);
        ended.assert_fails(1, &[&format!("rank {victim} (process "), "was killed"]);
        // The remaining processes say what happened; at the very start that may be only the parent.
        assert!(ended.stderr.contains(&format!("rank {victim} on `")), "{}", ended.stderr);
        run = lab.start("resume", "ci", &["--ranks", "4"]);
    }
    assert_eq!(run.end(SOON).root(), expected);
    assert_eq!(lab.ledger("ci"), whole.ledger("ci"));
    assert_eq!(lab.metrics("ci"), whole.metrics("ci"));
}

#[test]
fn a_rank_that_hangs_is_named_within_the_timeout_and_the_checkpoint_stands() {
    let lab = Lab::new();
    let endless =
        ["--set", "schedule.steps=1000000", "--set", "checkpoint.keep_last=2", "--set", "eval.every=0"];
    let arguments = [EIGHT, &endless, &["--set", "parallel.timeout_s=6", "--ranks", "4"]].concat();
    let mut run = lab.start("run", CI, &arguments);
    run.wait_for_rows(&lab, 3);
    signal(process_of_rank(&lab, RANK, 2), "STOP");
    let ended = run.end(Duration::from_secs(30));
    let said = |words: &str| ended.stderr.matches(words).count();
    assert_eq!((said("does not end and is killed"), said("was killed")), (1, 0), "{}", ended.stderr);
    ended.assert_fails(
        1,
        &[
            "rank 2 on `",
            "no sign of life",
            "last operation:",
            "rank 2 (process ",
            "does not end and is killed",
        ],
    );
    assert_eq!(lab.verify("ci", &[]).code, Some(0));
}

/// As by Ctrl-Z and `fg`, or when their machine is paused.
#[test]
fn ranks_that_were_all_stopped_and_continued_blame_nobody_and_go_on() {
    let lab = Lab::new();
    let mut run =
        lab.start("run", CI, &[EIGHT, LONGER, &["--set", "parallel.timeout_s=4", "--ranks", "4"]].concat());
    run.wait_for_rows(&lab, 3);
    let ranks = [0, 1, 2, 3].map(|rank| process_of_rank(&lab, RANK, rank));
    ranks.iter().for_each(|rank| signal(*rank, "STOP"));
    std::thread::sleep(Duration::from_secs(12));
    ranks.iter().for_each(|rank| signal(*rank, "CONT"));
    run.end(SOON).root();
}

#[test]
fn ranks_end_with_their_parent() {
    let lab = Lab::new();
    let mut run = lab.start(
        "run",
        CI,
        &[EIGHT, &["--set", "schedule.steps=1000000", "--set", "checkpoint.every=0", "--ranks", "2"]]
            .concat(),
    );
    run.wait_for_rows(&lab, 2);
    let ranks = [0, 1].map(|rank| process_of_rank(&lab, RANK, rank));
    run.kill();
    let runs = |process: &u32| {
        std::fs::read_to_string(format!("/proc/{process}/status"))
            .is_ok_and(|status| !status.contains("State:\tZ"))
    };
    let within = Duration::from_secs(20);
    wait_until("the end of ranks without a parent", within, || !ranks.iter().any(runs));
}

/// A process as a launcher would start it, with these variables.
fn launched(lab: &Lab, variables: &[(&str, &str)], arguments: &[&str]) -> Running {
    let mut command = lab.command(&["run", CI, "--runs"]);
    command.arg(lab.path("")).args(arguments).envs(variables.iter().copied());
    Running::start("a rank", &mut command)
}

/// Two of them, to their ends.
fn launched_both(lab: &Lab, variables: [&[(&str, &str)]; 2]) -> [Finished; 2] {
    variables.map(|variables| launched(lab, variables, EIGHT)).map(|rank| rank.end(2 * SOON))
}

#[test]
fn launchers_are_understood_and_the_order_of_starting_does_not_matter() {
    let expected = Lab::new().run(CI, &on("1", &[])).root().to_owned();
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|l| l.local_addr())
        .expect("a port")
        .port()
        .to_string();
    let torchrun = |rank| {
        [("RANK", rank), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port.as_str())]
    };
    let lab = Lab::new();
    let [one, zero] = launched_both(&lab, [&torchrun("1"), &torchrun("0")]);
    assert_eq!(zero.root(), expected);
    assert_eq!(
        (one.code, one.stdout.as_str(), one.stderr.as_str()),
        (Some(0), "", ""),
        "one rank alone writes"
    );

    let mpirun = |rank| {
        [("OMPI_COMM_WORLD_RANK", rank), ("OMPI_COMM_WORLD_SIZE", "2"), ("PMIX_NAMESPACE", "prterun-test@1")]
    };
    let lab = Lab::new();
    let [one, zero] = launched_both(&lab, [&mpirun("1"), &mpirun("0")]);
    assert_eq!(zero.root(), expected);
    assert_eq!(one.code, Some(0), "{}", one.stderr);
}

#[test]
fn ranks_started_with_other_settings_are_refused_before_anything_is_changed() {
    let lab = Lab::new();
    let slurm = |rank| {
        [
            ("SLURM_PROCID", rank),
            ("SLURM_STEP_NUM_TASKS", "2"),
            ("SLURM_JOB_ID", "7"),
            ("SLURM_STEP_ID", "0"),
            ("SLURM_LOCALID", rank),
        ]
    };
    let ranks = [("0", "1"), ("1", "2")].map(|(rank, seed)| {
        let other = ["--set", "parallel.timeout_s=3", "--set", &format!("seed={seed}")];
        launched(&lab, &slurm(rank), &[EIGHT, &other].concat())
    });
    let [zero, one] = ranks.map(|rank| rank.end(SOON));
    one.assert_fails(1, &["rank 0 refuses this rank", "another experiment"]);
    zero.assert_fails(1, &["rank 1 did not register within 3 s"]);
    assert!(!lab.path("ci").exists());
}

#[test]
fn numbers_of_ranks_that_do_not_divide_the_workers_are_refused() {
    let lab = Lab::new();
    for ranks in ["3", "16"] {
        lab.run(CI, &on(ranks, &[])).assert_fails(2, &["cannot share 8 virtual workers", "power of two"]);
    }
    assert!(!lab.path("ci").exists());
}
