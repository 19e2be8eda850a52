//! A folder of its own for each test, and the program run in it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use crate::process::Running;

/// Whether the program, or a library in it, reads this variable: a layer of the experiment, colours, a
/// launcher's ranks. Tests set those they mean and inherit none: some CI sets `CI`, which colours a dumb
/// terminal.
pub fn reaches_the_program(name: &std::ffi::OsStr) -> bool {
    let name = name.to_string_lossy();
    let whole = ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "COLORTERM", "CI", "RANK", "WORLD_SIZE"];
    let begun = ["RUNNER_", "LOCAL_", "OMPI_", "PMIX_", "PMI_", "SLURM_"];
    whole.contains(&&*name) || begun.iter().any(|prefix| name.starts_with(prefix))
}

/// Settings under which `ci.toml` has sizes that have a mirror, and takes a few steps.
pub const MIRROR: &[&str] = &[
    "device.kind=mirror",
    "precision.compute=bf16",
    "model.heads=1",
    "eval.every=0",
    "sample.every=0",
    "schedule.steps=4",
];

/// `--set` before each of some settings.
pub fn sets<'a>(settings: &[&'a str]) -> Vec<&'a str> {
    settings.iter().flat_map(|setting| ["--set", *setting]).collect()
}

/// Arguments without each `--set` of a key that a later one sets again, which the program refuses: a test
/// adds its own settings to those of all.
fn set_once<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    let key = |at: usize| match arguments[at..] {
        ["--set", setting, ..] => setting.split_once('=').map(|(key, _)| key),
        _ => None,
    };
    let is_set_again =
        |at: usize| key(at).is_some() && (at + 1..arguments.len()).any(|later| key(later) == key(at));
    let is_dropped = |at: usize| is_set_again(at) || (at > 0 && is_set_again(at - 1));
    (0..arguments.len()).filter(|at| !is_dropped(*at)).map(|at| arguments[at]).collect()
}

/// A temporary folder for run folders, and the ways to run the program there.
pub struct Lab {
    folder: TempDir,
}

impl Lab {
    pub fn new() -> Lab {
        Lab { folder: tempfile::tempdir().expect("a temporary folder") }
    }

    pub fn path(&self, relative: &str) -> PathBuf {
        self.folder.path().join(relative)
    }

    /// The program with arguments, from the repository's root, with no inherited layer.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_runner"));
        command.args(set_once(arguments)).current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null());
        for name in std::env::vars_os().map(|(name, _)| name).filter(|name| reaches_the_program(name)) {
            command.env_remove(name);
        }
        command
    }

    fn training(&self, verb: &str, what: &str, arguments: &[&str]) -> Command {
        let mut command = self.command(&[verb, what, "--runs"]);
        command.arg(self.folder.path()).args(set_once(arguments));
        command
    }

    /// `runner run EXPERIMENT` to its end.
    pub fn run(&self, experiment: &str, arguments: &[&str]) -> Finished {
        Finished::from(self.training("run", experiment, arguments).output().expect("the program starts"))
    }

    /// `runner resume RUN` to its end.
    pub fn resume(&self, run: &str, arguments: &[&str]) -> Finished {
        Finished::from(self.training("resume", run, arguments).output().expect("the program starts"))
    }

    /// Any verb with a run or an experiment and `--runs`, to its end.
    pub fn verb(&self, verb: &str, what: &str, arguments: &[&str]) -> Finished {
        Finished::from(self.training(verb, what, arguments).output().expect("the program starts"))
    }

    /// The program with these arguments, to its end.
    pub fn finish(&self, arguments: &[&str]) -> Finished {
        Finished::from(self.command(arguments).output().expect("the program starts"))
    }

    /// The program with these arguments, which must succeed.
    #[track_caller]
    pub fn done(&self, arguments: &[&str]) -> Finished {
        let finished = self.finish(arguments);
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        finished
    }

    /// `runner verify RUN`.
    pub fn verify(&self, run: &str, arguments: &[&str]) -> Finished {
        Finished::from(self.training("verify", run, arguments).output().expect("the program starts"))
    }

    /// `runner diff A B`.
    pub fn diff(&self, a: &str, b: &str, arguments: &[&str]) -> Finished {
        Finished::from(
            self.training("diff", a, &[&[b], arguments].concat()).output().expect("the program starts"),
        )
    }

    /// Any verb with a run or an experiment and `--runs`, in the background.
    pub fn start(&self, verb: &str, what: &str, arguments: &[&str]) -> Running {
        Running::start(&format!("`runner {verb} {what}`"), &mut self.training(verb, what, arguments))
    }

    /// Every file of a run with its bytes, but for the lock that is held while a process works on it.
    pub fn files(&self, run: &str) -> BTreeMap<PathBuf, Vec<u8>> {
        fn collect(folder: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
            for entry in std::fs::read_dir(folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                match path.is_dir() {
                    true => collect(&path, files),
                    false => drop(files.insert(path.clone(), std::fs::read(path).expect("readable"))),
                }
            }
        }
        let mut files = BTreeMap::new();
        collect(&self.path(run), &mut files);
        files.retain(|path, _| !path.ends_with(".lock"));
        files
    }

    /// How many rows of metrics a run has; none before it has begun.
    pub fn rows(&self, run: &str) -> usize {
        let text = std::fs::read_to_string(self.path(run).join("metrics.jsonl")).unwrap_or_default();
        text.matches('\n').count()
    }

    /// The ledger of a run without notes of how often it was resumed.
    pub fn ledger(&self, run: &str) -> Vec<String> {
        lines(&self.path(run).join("ledger.jsonl"))
            .into_iter()
            .filter(|line| line.contains("\"step\""))
            .collect()
    }

    /// The rows of a run's metrics without timings.
    pub fn metrics(&self, run: &str) -> Vec<serde_json::Value> {
        lines(&self.path(run).join("metrics.jsonl"))
            .iter()
            .map(|line| {
                let mut row: serde_json::Value = serde_json::from_str(line).expect("a row is JSON");
                let fields = row.as_object_mut().expect("a row is an object");
                for timing in ["step_ms", "tokens_per_s", "mfu"] {
                    fields.remove(timing);
                }
                row
            })
            .collect()
    }
}

/// Flips one bit of a file, in the byte that lies at this share of its length: 0.0 is the first.
#[track_caller]
pub fn flip_bit(path: &Path, at: f64) {
    let mut bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let byte = (bytes.len() as f64 * at) as usize;
    bytes[byte] ^= 1;
    std::fs::write(path, bytes).expect("writable");
}

fn lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.lines().map(str::to_owned).collect()
}

/// What a finished process wrote, and how it ended.
#[derive(Debug)]
pub struct Finished {
    /// The exit code; none when a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Finished {
    fn from(output: Output) -> Finished {
        Finished {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).expect("stdout is UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("stderr is UTF-8"),
        }
    }
}

impl Finished {
    /// The state root that a successful run ends with.
    #[track_caller]
    pub fn root(&self) -> &str {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        let root = self.stdout.trim();
        assert!(root.len() == 64 && root.bytes().all(|b| b.is_ascii_hexdigit()), "stdout is `{root}`");
        root
    }

    /// It succeeded, and each of these is in stdout.
    #[track_caller]
    pub fn assert_says(&self, says: &[&str]) {
        assert_eq!(self.code, Some(0), "{}{}", self.stdout, self.stderr);
        for text in says {
            assert!(self.stdout.contains(text), "`{text}` is not in:\n{}", self.stdout);
        }
    }

    /// It ended with this exit code, and each of these is in stderr.
    #[track_caller]
    pub fn assert_fails(&self, code: i32, says: &[&str]) {
        assert_eq!(self.code, Some(code), "{}{}", self.stdout, self.stderr);
        for text in says {
            assert!(self.stderr.contains(text), "`{text}` is not in:\n{}", self.stderr);
        }
    }
}
