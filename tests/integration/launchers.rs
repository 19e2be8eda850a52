//! Real launchers, as far as they are installed: ranks they start end in the bits of one process, stop saved
//! when asked, and none stays behind.
//!
//! A launcher is looked for in `target/ci-launchers/*/bin`, where CI installs them, then along PATH. One that
//! is missing is `skipped`, and a failure where `REQUIRE_LAUNCHERS` names it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Finished, Lab, output_within};

const CI: &str = "experiments/ci.toml";
const EIGHT: &[&str] = &[
    "parallel.workers=8",
    "batch.tokens=1024",
    "schedule.steps=40",
    "checkpoint.every=5",
    "eval.every=0",
    "sample.every=0",
];
const SOON: Duration = Duration::from_secs(60);

/// One that starts ranks.
struct Launcher {
    name: &'static str,
    program: PathBuf,
    arguments: &'static [&'static str],
    /// The variable that numbers its ranks.
    rank: &'static str,
    /// The signal on which it lets its ranks save, however long that takes.
    stop: &'static str,
}

/// The launchers that are here.
fn launchers() -> Vec<Launcher> {
    let launcher = |name, says, arguments, rank, stop| {
        let program = if name == "torchrun" { "torchrun" } else { "mpiexec" };
        // Three have an mpiexec.
        let is_it = |program: &PathBuf| match says {
            "" => program.is_file(),
            _ => Command::new(program)
                .arg("--version")
                .output()
                .is_ok_and(|said| String::from_utf8_lossy(&said.stdout).contains(says)),
        };
        let found = folders().into_iter().map(|folder| folder.join(program)).find(is_it);
        if found.is_none() {
            let required = std::env::var("REQUIRE_LAUNCHERS").unwrap_or_default();
            assert!(
                !required.split(' ').any(|required| required == name),
                "REQUIRE_LAUNCHERS names {name}, which is not here"
            );
            eprintln!("skipped: no {name}");
        }
        found.map(|program| Launcher { name, program, arguments, rank, stop })
    };
    let torchrun: &[&str] = &["--standalone", "--max-restarts", "1", "--nproc-per-node", "2", "--no-python"];
    let all = [
        launcher("torchrun", "", torchrun, "RANK", "TERM"),
        launcher("openmpi", "Open MPI", &["--oversubscribe", "-np", "2"], "OMPI_COMM_WORLD_RANK", "USR1"),
        launcher("mpich", "HYDRA", &["-n", "2"], "PMI_RANK", "TERM"),
        launcher("intel", "Intel(R) MPI", &["-n", "2"], "PMI_RANK", "TERM"),
    ];
    all.into_iter().flatten().collect()
}

/// Where launchers are looked for.
fn folders() -> Vec<PathBuf> {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/ci-launchers");
    let entries = std::fs::read_dir(installed).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.path().join("bin")).collect();
    folders.sort();
    folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    folders
}

impl Launcher {
    /// Starts its ranks on what `script` says, in a process of the shell that each becomes.
    fn start(&self, lab: &Lab, script: &str) -> Child {
        let mut command = Command::new(&self.program);
        command.args(self.arguments).args(["sh", "-c", script]).current_dir(env!("CARGO_MANIFEST_DIR"));
        command
            .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
            .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
            .env("NO_COLOR", "1");
        command
            .env("TMPDIR", lab.path(""))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().expect("the launcher starts")
    }

    /// The processes that are ranks, with their numbers.
    fn ranks(&self, lab: &Lab) -> Vec<(String, usize)> {
        let processes = std::fs::read_dir("/proc").expect("Linux").flatten().map(|entry| entry.path());
        let rank = |process: PathBuf| {
            let command = std::fs::read(process.join("cmdline")).ok()?;
            let command = String::from_utf8_lossy(&command).into_owned();
            let mine = command.starts_with(PROGRAM) && command.contains(&*lab.path("").to_string_lossy());
            let environment = std::fs::read(process.join("environ")).ok().filter(|_| mine)?;
            let environment = String::from_utf8_lossy(&environment).into_owned();
            let number =
                environment.split('\0').find_map(|v| v.strip_prefix(self.rank)?.strip_prefix('='))?;
            Some((process.file_name()?.to_string_lossy().into_owned(), number.parse().ok()?))
        };
        processes.filter_map(rank).collect()
    }

    /// Waits until no rank is left.
    fn assert_nobody_stays(&self, lab: &Lab) {
        let began = Instant::now();
        while !self.ranks(lab).is_empty() {
            assert!(began.elapsed() < Duration::from_secs(20), "{}: ranks stay behind", self.name);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_runner");

/// The command that starts a run, for the shell.
fn run(lab: &Lab, more: &[&str]) -> String {
    let sets: Vec<String> = EIGHT.iter().chain(more).map(|set| format!("--set {set}")).collect();
    format!("exec {PROGRAM} run {CI} --runs {} {}", lab.path("").display(), sets.join(" "))
}

/// The same, or to go on with it where it has begun.
fn run_or_resume(lab: &Lab) -> String {
    format!("{} --or-resume", run(lab, &[]))
}

fn end(name: &str, child: Child) -> Finished {
    let output = output_within(name, child, SOON);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Finished { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

fn rows(lab: &Lab) -> usize {
    std::fs::read_to_string(lab.path("ci/metrics.jsonl")).map_or(0, |text| text.lines().count())
}

/// Waits for so many steps.
fn wait_for_rows(name: &str, lab: &Lab, child: &mut Child, count: usize) {
    let began = Instant::now();
    while rows(lab) < count {
        assert!(
            child.try_wait().expect("it can be asked").is_none(),
            "{name} has ended after {} steps",
            rows(lab)
        );
        assert!(began.elapsed() < SOON, "{name}: {} steps", rows(lab));
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn signal(process: &str, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), process]).status();
    assert!(status.expect("kill runs").success());
}

/// Steps of the newest checkpoint.
fn saved(lab: &Lab) -> usize {
    let folder = std::fs::read_dir(lab.path("ci/checkpoints")).expect("a folder");
    let names = folder.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter_map(|name| name.strip_prefix("step_")?.parse().ok()).max().expect("a checkpoint")
}

fn assert_stopped_and_saved(name: &str, lab: &Lab, said: &str) {
    assert_eq!(saved(lab), rows(lab), "{name}: what was done is not saved\n{said}");
    assert_eq!(lab.verify("ci", &[]).code, Some(0), "{name}");
}

fn alone() -> String {
    let lab = Lab::new();
    let sets: Vec<&str> = EIGHT.iter().flat_map(|set| ["--set", set]).collect();
    lab.run(CI, &sets).root().to_owned()
}

#[test]
fn ranks_of_a_real_launcher_end_in_the_root_of_one_process_and_one_of_them_speaks() {
    let expected = alone();
    for launcher in launchers() {
        let lab = Lab::new();
        let finished = end(launcher.name, launcher.start(&lab, &run(&lab, &[])));
        assert_eq!(finished.root(), expected, "{}: {}", launcher.name, finished.stderr);
        let said = |what: &str| finished.stderr.lines().filter(|line| line.contains(what)).count();
        assert_eq!(
            (said("devices: 2 ranks"), said("step 20/40 ")),
            (1, 1),
            "{}: {}",
            launcher.name,
            finished.stderr
        );
        launcher.assert_nobody_stays(&lab);
    }
}

#[test]
fn a_real_launcher_that_is_asked_to_stop_lets_its_ranks_save() {
    for launcher in launchers() {
        let lab = Lab::new();
        let mut child = launcher.start(&lab, &run(&lab, &["schedule.steps=1000000", "checkpoint.every=0"]));
        wait_for_rows(launcher.name, &lab, &mut child, 3);
        signal(&child.id().to_string(), launcher.stop);
        let ended = end(launcher.name, child);
        assert_ne!(ended.code, Some(0), "{}", launcher.name);
        launcher.assert_nobody_stays(&lab);
        assert_stopped_and_saved(launcher.name, &lab, &ended.stderr);
    }
}

#[test]
fn a_killed_rank_ends_all_under_a_real_launcher_and_the_run_goes_on_to_the_same_bits() {
    let expected = alone();
    for launcher in launchers() {
        let lab = Lab::new();
        let mut child = launcher.start(&lab, &run_or_resume(&lab));
        wait_for_rows(launcher.name, &lab, &mut child, 7);
        // It may just have done the last step; then nobody is left.
        if let Some((process, _)) = launcher.ranks(&lab).iter().find(|(_, rank)| *rank == 1) {
            signal(process, "KILL");
        }
        let mut ended = end(launcher.name, child);
        launcher.assert_nobody_stays(&lab);
        // torchrun has started them again by itself.
        if launcher.name != "torchrun" {
            assert_ne!(ended.code, Some(0), "{}: {}", launcher.name, ended.stderr);
            ended = end(launcher.name, launcher.start(&lab, &run_or_resume(&lab)));
        }
        assert_eq!(ended.root(), expected, "{}: {}", launcher.name, ended.stderr);
    }
}

#[test]
fn two_runs_of_a_real_launcher_that_meet_in_one_folder_do_not_mix() {
    // torchrun names its runs by itself.
    for launcher in launchers().into_iter().filter(|launcher| launcher.name != "torchrun") {
        let lab = Lab::new();
        let both = ["1", "2"].map(|seed| {
            let set = format!("seed={seed}");
            launcher
                .start(&lab, &format!("{} --name seed{seed}", run(&lab, &[&set, "parallel.timeout_s=20"])))
        });
        let [one, two] = both.map(|child| end(launcher.name, child));
        assert_ne!(one.root(), two.root(), "{}", launcher.name);
    }
}

/// As a launcher that is killed would leave them.
#[test]
fn ranks_whose_launcher_is_gone_save_and_end() {
    let lab = Lab::new();
    let command = run(&lab, &["schedule.steps=1000000", "checkpoint.every=0"]).replacen("exec ", "", 1);
    let script = format!("RANK=0 {command} & RANK=1 {command} & wait");
    let mut child = Command::new("sh");
    child.args(["-c", &script]).env("WORLD_SIZE", "2").current_dir(env!("CARGO_MANIFEST_DIR"));
    let mut child = child.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("a shell");
    wait_for_rows("a shell", &lab, &mut child, 3);
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    let shell =
        Launcher { name: "a shell", program: "sh".into(), arguments: &[], rank: "RANK", stop: "TERM" };
    shell.assert_nobody_stays(&lab);
    assert_stopped_and_saved("a shell", &lab, "");
}

/// As `scancel` and `systemctl stop` do; `timeout` asks a process twice.
#[test]
fn a_signal_to_every_process_of_a_run_is_one_wish_to_stop() {
    for ranks in ["2", "1"] {
        let lab = Lab::new();
        let endless = ["--set", "schedule.steps=1000000", "--set", "checkpoint.every=0", "--ranks", ranks];
        let sets: Vec<&str> = EIGHT.iter().flat_map(|set| ["--set", set]).chain(endless).collect();
        let mut child = lab.start("run", CI, &sets);
        wait_for_rows("runner", &lab, &mut child, 3);
        let own =
            Launcher { name: "runner", program: PROGRAM.into(), arguments: &[], rank: "RANK", stop: "TERM" };
        let parent = child.id().to_string();
        let mut all = vec![parent.clone(), parent];
        all.extend(own.ranks(&lab).into_iter().map(|(process, _)| process));
        let status = Command::new("kill").arg("-TERM").args(&all).status();
        assert!(status.expect("kill runs").success());
        assert_eq!(end("runner", child).code, Some(130));
        assert_stopped_and_saved("runner", &lab, "");
    }
}

#[test]
fn another_number_of_ranks_than_the_launcher_has_started_is_refused() {
    let lab = Lab::new();
    let mut command = lab.command(&[
        "run",
        CI,
        "--ranks",
        "4",
        "--set",
        "parallel.workers=8",
        "--set",
        "batch.tokens=1024",
    ]);
    let output = command.args(["--runs"]).arg(lab.path("")).env("RANK", "0").env("WORLD_SIZE", "2").output();
    let refused = Finished::from(output.expect("the program starts"));
    refused.assert_fails(1, &["the launcher has started 2 ranks, `--ranks` asks for 4"]);
}
