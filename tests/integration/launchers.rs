//! Real launchers: the ranks they start end in the bits of one process, save and stop on a signal, and none
//! is left running.
//!
//! A launcher is looked for in `target/ci-launchers/*/bin` and `target/ci-venv/bin`, where CI installs them,
//! then along PATH. Its tests are ignored unless they are asked for, and fail where it is missing.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::process::{Running, assert_no_rank_stays, process_of_rank, ranks, signal, wait_until};
use crate::support::{Finished, Lab};

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

/// The launcher of this name, which must be installed.
fn launcher(name: &'static str) -> Launcher {
    let torchrun: &[&str] = &["--standalone", "--max-restarts", "1", "--nproc-per-node", "2", "--no-python"];
    // Three have an mpiexec; they differ in the name that it prints.
    let (program, calls_itself, arguments, rank, stop) = match name {
        "torchrun" => ("torchrun", "", torchrun, "RANK", "TERM"),
        "openmpi" => {
            ("mpiexec", "Open MPI", &["--oversubscribe", "-np", "2"][..], "OMPI_COMM_WORLD_RANK", "USR1")
        }
        "mpich" => ("mpiexec", "HYDRA", &["-n", "2"][..], "PMI_RANK", "TERM"),
        "intel" => ("mpiexec", "Intel(R) MPI", &["-n", "2"][..], "PMI_RANK", "TERM"),
        _ => panic!("no launcher is known as {name}"),
    };
    let is_it = |program: &PathBuf| {
        let version = || Command::new(program).arg("--version").output();
        let says = |text: &[u8]| String::from_utf8_lossy(text).contains(calls_itself);
        program.is_file() && (calls_itself.is_empty() || version().is_ok_and(|said| says(&said.stdout)))
    };
    let found = folders().into_iter().map(|folder| folder.join(program)).find(is_it);
    let program = found.unwrap_or_else(|| panic!("{name} is not installed: `.ci/run` says how"));
    Launcher { name, program, arguments, rank, stop }
}

/// Where launchers are looked for.
fn folders() -> Vec<PathBuf> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
    let entries = std::fs::read_dir(target.join("ci-launchers")).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.path().join("bin")).collect();
    folders.sort();
    folders.push(target.join("ci-venv/bin"));
    folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    folders
}

impl Launcher {
    /// Starts its ranks on what `script` says, in a process of the shell that each becomes.
    fn start(&self, lab: &Lab, script: &str) -> Running {
        let mut command = Command::new(&self.program);
        command.args(self.arguments).args(["sh", "-c", script]).current_dir(env!("CARGO_MANIFEST_DIR"));
        command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        command.env("NO_COLOR", "1").env("TMPDIR", lab.path(""));
        Running::start(self.name, &mut command)
    }
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_runner");

/// The shell command that starts a run.
fn run(lab: &Lab, more: &[&str]) -> String {
    let key = |set: &str| set.split('=').next().map(str::to_owned);
    let own: Vec<_> = more.iter().map(|set| key(set)).collect();
    let all = EIGHT.iter().filter(|set| !own.contains(&key(set))).chain(more);
    let sets: Vec<String> = all.map(|set| format!("--set {set}")).collect();
    format!("exec {PROGRAM} run {CI} --runs {} {}", lab.path("").display(), sets.join(" "))
}

/// The same, or resumes it if it has begun.
fn run_or_resume(lab: &Lab) -> String {
    format!("{} --or-resume", run(lab, &[]))
}

/// Steps of the newest checkpoint.
fn saved(lab: &Lab) -> usize {
    let folder = std::fs::read_dir(lab.path("ci/checkpoints")).expect("a folder");
    let names = folder.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter_map(|name| name.strip_prefix("step_")?.parse().ok()).max().expect("a checkpoint")
}

fn assert_stopped_and_saved(name: &str, lab: &Lab, said: &str) {
    assert_eq!(saved(lab), lab.rows("ci"), "{name}: what was done is not saved\n{said}");
    assert_eq!(lab.verify("ci", &[]).code, Some(0), "{name}");
}

fn alone() -> String {
    let lab = Lab::new();
    let sets: Vec<&str> = EIGHT.iter().flat_map(|set| ["--set", set]).collect();
    lab.run(CI, &sets).root().to_owned()
}

fn ranks_end_in_the_root_of_one_process_and_one_of_them_writes(launcher: &Launcher) {
    let expected = alone();
    let lab = Lab::new();
    let finished = launcher.start(&lab, &run(&lab, &[])).end(SOON);
    assert_eq!(finished.root(), expected, "{}", finished.stderr);
    let said = |what: &str| finished.stderr.lines().filter(|line| line.contains(what)).count();
    assert_eq!((said("devices: 2 ranks"), said("step 20/40 ")), (1, 1), "{}", finished.stderr);
    assert_no_rank_stays(&lab, launcher.rank);
}

fn a_launcher_that_is_asked_to_stop_lets_its_ranks_save(launcher: &Launcher) {
    let lab = Lab::new();
    let mut running = launcher.start(&lab, &run(&lab, &["schedule.steps=1000000", "checkpoint.every=0"]));
    running.wait_for_rows(&lab, 3);
    running.signal(launcher.stop);
    let ended = running.end(SOON);
    assert_ne!(ended.code, Some(0));
    assert_no_rank_stays(&lab, launcher.rank);
    assert_stopped_and_saved(launcher.name, &lab, &ended.stderr);
}

fn a_killed_rank_ends_all_and_the_run_goes_on_to_the_same_bits(launcher: &Launcher) {
    let expected = alone();
    let lab = Lab::new();
    let mut running = launcher.start(&lab, &run_or_resume(&lab));
    running.wait_for_rows(&lab, 7);
    // It is saved beside the steps, on a disk that may be slow.
    wait_until("a checkpoint", SOON, || lab.path("ci/checkpoints/step_00000005").exists());
    signal(process_of_rank(&lab, launcher.rank, 1), "KILL");
    let mut ended = running.end(SOON);
    assert_no_rank_stays(&lab, launcher.rank);
    // torchrun starts them again by itself.
    if launcher.name != "torchrun" {
        assert_ne!(ended.code, Some(0), "{}", ended.stderr);
        assert!(lab.rows("ci") < 41, "the kill came too late");
        ended = launcher.start(&lab, &run_or_resume(&lab)).end(SOON);
    }
    assert_eq!(ended.root(), expected, "{}", ended.stderr);
    assert!(ended.stderr.contains("resuming"), "it was killed and goes on\n{}", ended.stderr);
}

fn two_runs_that_meet_in_one_folder_do_not_mix(launcher: &Launcher) {
    let lab = Lab::new();
    let both = ["1", "2"].map(|seed| {
        let set = format!("seed={seed}");
        launcher.start(&lab, &format!("{} --name seed{seed}", run(&lab, &[&set, "parallel.timeout_s=20"])))
    });
    let [one, two] = both.map(|running| running.end(SOON));
    assert_ne!(one.root(), two.root());
}

/// The same tests under each launcher, in a module of its name.
macro_rules! under {
    ($launcher:ident: $($test:ident),+) => {
        mod $launcher {
            $(
                #[test]
                #[ignore = concat!("skipped: needs ", stringify!($launcher), "; run with --include-ignored")]
                fn $test() {
                    super::$test(&super::launcher(stringify!($launcher)));
                }
            )+
        }
    };
    ($($launcher:ident),+) => {
        $(under! {
            $launcher:
            ranks_end_in_the_root_of_one_process_and_one_of_them_writes,
            a_launcher_that_is_asked_to_stop_lets_its_ranks_save,
            a_killed_rank_ends_all_and_the_run_goes_on_to_the_same_bits,
            // torchrun names its runs by itself: this test is easy for it.
            two_runs_that_meet_in_one_folder_do_not_mix
        })+
    };
}

under! { torchrun, openmpi, mpich, intel }

/// As a killed launcher leaves them.
#[test]
fn ranks_whose_launcher_is_gone_save_and_end() {
    let lab = Lab::new();
    let command = run(&lab, &["schedule.steps=1000000", "checkpoint.every=0"]).replacen("exec ", "", 1);
    let script = format!("RANK=0 {command} & RANK=1 {command} & wait");
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]).env("WORLD_SIZE", "2").current_dir(env!("CARGO_MANIFEST_DIR"));
    let mut shell = Running::start("a shell", &mut shell);
    shell.wait_for_rows(&lab, 3);
    shell.kill();
    assert_no_rank_stays(&lab, "RANK");
    assert_stopped_and_saved("a shell", &lab, "");
}

/// As `scancel` and `systemctl stop` do; `timeout` signals a process twice.
#[test]
fn a_signal_to_every_process_of_a_run_stops_it_once() {
    for count in ["2", "1"] {
        let lab = Lab::new();
        let endless = ["--set", "schedule.steps=1000000", "--set", "checkpoint.every=0", "--ranks", count];
        let sets: Vec<&str> = EIGHT.iter().flat_map(|set| ["--set", set]).chain(endless).collect();
        let mut running = lab.start("run", CI, &sets);
        running.wait_for_rows(&lab, 3);
        let ranks = ranks(&lab, "RANK");
        assert_eq!(ranks.len(), if count == "2" { 2 } else { 0 }, "one rank is the process itself");
        let parent = running.pid();
        let all = [parent, parent].into_iter().chain(ranks.into_iter().map(|(process, _)| process));
        let status = Command::new("kill").arg("-TERM").args(all.map(|process| process.to_string())).status();
        assert!(status.expect("kill runs").success());
        running.end(SOON).assert_fails(130, &[]);
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
    refused.assert_fails(2, &["the launcher has started 2 ranks, `--ranks` asks for 4"]);
}
