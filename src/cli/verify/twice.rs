//! An experiment trained twice in fresh processes, and once more with a kill in the middle.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};

use super::Report;
use super::golden::Golden;
use crate::cli::diff::Diff;
use crate::formats::load_experiment;
use crate::proof::{Lock, ledger};
use crate::store::{self, Manifest, RunPaths, checkpoint};

pub struct Options {
    pub set: Vec<String>,
    pub expect: Option<PathBuf>,
    pub bless: Option<PathBuf>,
    pub keep: Option<PathBuf>,
}

/// The three runs and where they are.
struct Trial<'a> {
    program: PathBuf,
    experiment: &'a Path,
    runs: PathBuf,
    /// `--set` arguments, those of the user and our own.
    set: Vec<String>,
    steps: u64,
}

/// Times that a run may end before it is killed.
const ATTEMPTS: usize = 5;

pub fn run(path: &Path, options: &Options, report: &mut Report) -> anyhow::Result<()> {
    // Read first: a mistake in it should not cost two runs.
    let golden = options.expect.as_deref().map(|path| {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
        Golden::parse(path, &text)
    });
    let golden = golden.transpose()?;
    let loaded = load_experiment(path, &options.set)?;
    let temporary = tempfile::tempdir().context("cannot make a folder for the runs")?;
    let runs = options.keep.clone().unwrap_or_else(|| temporary.path().to_owned());
    let steps = loaded.experiment.schedule.steps;
    let mut set = options.set.clone();
    // Intervals change no bit; checkpoints to resume from and to compare are wanted.
    set.extend([format!("checkpoint.every={}", (steps / 4).max(1)), "checkpoint.keep_last=0".into()]);
    let trial = Trial { program: std::env::current_exe()?, experiment: path, runs, set, steps };

    for name in ["first", "second"] {
        trial.whole(name)?;
    }
    let killed_at = trial.killed("killed")?;
    let repeat = Diff::of(&trial.folder("first"), &trial.folder("second"))?;
    same(&repeat, "repeat", "two processes gave the same bits", report);
    let resumed = Diff::of(&trial.folder("first"), &trial.folder("killed"))?;
    match killed_at {
        Some(step) => {
            same(&resumed, "resume", &format!("killed after step {step} and resumed: the same bits"), report)
        }
        None => report.skipped("resume", "every run ended before it could be killed"),
    }

    let paths = RunPaths::new(&trial.folder("first"));
    let (entries, manifests) = (ledger::read(&paths.ledger())?.1, manifests(&paths)?);
    let lock = Lock::read(&paths.lock_file())?;
    if let Some((golden, file)) = golden.zip(options.expect.as_ref()) {
        golden_roots(path, &golden, file, golden.mismatch(&entries, &manifests), &lock, report);
    }
    if let Some(file) = &options.bless {
        if !report.is_ok() {
            report.failed("bless", "nothing is written: the runs do not agree");
            return Ok(());
        }
        let golden = Golden::of(lock.numerics_id(), &entries, &manifests);
        store::atomic::write(file, golden.to_text(&loaded.experiment.name).as_bytes())?;
        report.ok(
            "bless",
            format!(
                "{} roots and {} tensors in `{}`",
                golden.roots.len(),
                golden.tensors.len(),
                file.display()
            ),
        );
    }
    Ok(())
}

fn same(diff: &Diff, check: &str, good: &str, report: &mut Report) {
    if diff.same_bits() && diff.entries.0 == diff.entries.1 {
        report.ok(check, good);
    } else {
        report
            .failed(check, format!("the bits differ\n  {}", diff.to_text().trim_end().replace('\n', "\n  ")));
    }
}

/// Says whether the roots are golden, and what to do when they are not.
fn golden_roots(
    experiment: &Path,
    golden: &Golden,
    file: &Path,
    why: Option<String>,
    lock: &Lock,
    report: &mut Report,
) {
    let check = "golden roots";
    let Some(why) = why else {
        return report.ok(check, format!("as in `{}`", file.display()));
    };
    let id = lock.numerics_id();
    let numerics = match golden.numerics_id {
        Some(expected) if expected != id => {
            format!(
                "\n  the lock differs too: numerics_id was {expected}, is {id}; so a key, the data or a version has changed"
            )
        }
        _ => String::new(),
    };
    let bless = format!("runner verify {} --twice --bless {}", experiment.display(), file.display());
    report.failed(check, format!("{why}{numerics}\n  do: if the change of bits is meant, `{bless}`"));
}

fn manifests(paths: &RunPaths) -> store::Result<Vec<Manifest>> {
    store::list(&paths.checkpoints())?.into_iter().map(|(_, folder)| checkpoint::inspect(&folder)).collect()
}

impl Trial<'_> {
    fn folder(&self, name: &str) -> PathBuf {
        self.runs.join(name)
    }

    fn start(&self, name: &str) -> anyhow::Result<Child> {
        let mut command = self.command(&["run"]);
        command.arg(self.experiment).args(["--name", name, "--overwrite"]);
        for set in &self.set {
            command.args(["--set", set]);
        }
        Ok(command.spawn()?)
    }

    fn command(&self, verb: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(verb)
            .arg("--runs")
            .arg(&self.runs)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    /// Trains to the end.
    fn whole(&self, name: &str) -> anyhow::Result<()> {
        finished(self.start(name)?, name)
    }

    /// Kills a run in its middle and resumes it; the steps it had done, unless it was too fast.
    fn killed(&self, name: &str) -> anyhow::Result<Option<u64>> {
        for _ in 0..ATTEMPTS {
            let mut child = self.start(name)?;
            let paths = RunPaths::new(&self.folder(name));
            let lines = || {
                std::fs::read(paths.ledger())
                    .map_or(0, |text| text.iter().filter(|b| **b == b'\n').count() as u64)
            };
            while child.try_wait()?.is_none() && lines() < self.steps.div_ceil(2) {
                std::thread::sleep(Duration::from_millis(1));
            }
            // SIGKILL: nothing of the process runs any more.
            let ended = child.try_wait()?;
            child.kill()?;
            child.wait()?;
            let done = lines();
            match ended {
                None if done < self.steps => {
                    let mut command = self.command(&["resume", name]);
                    finished(command.spawn()?, name)?;
                    return Ok(Some(done));
                }
                Some(status) if !status.success() => bail!("run `{name}` failed with {status}"),
                _ => {}
            }
        }
        Ok(None)
    }
}

fn finished(child: Child, name: &str) -> anyhow::Result<()> {
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let tail: Vec<&str> = said.lines().rev().take(12).collect();
        bail!(
            "run `{name}` ended with {}:\n{}",
            output.status,
            tail.into_iter().rev().collect::<Vec<_>>().join("\n")
        );
    }
    Ok(())
}
