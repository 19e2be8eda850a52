//! An experiment trained twice in fresh processes, and once more with a kill in the middle.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;

use super::Checks;
use super::diff::Diff;
use super::golden::Golden;
use crate::experiment::Experiment;
use crate::ops::DeviceError;
use crate::proof::{Entry, Lock, ledger};
use crate::run::ending::NO_DEVICE;
use crate::run::initial::load_experiment;
use crate::run::{StoppedOnRequest, alerts, member, stop};
use crate::store::output::{self, OutputKind};
use crate::store::{self, Manifest, RunFolder, RunPaths, checkpoint};
use crate::units::noun;

/// What to compare the runs with, and where to keep them.
pub struct TwiceOptions {
    /// `--set` arguments of the experiment.
    pub set: Vec<String>,
    /// The folder of the run that it may start from.
    pub runs: PathBuf,
    /// A file of golden roots to compare with.
    pub expect: Option<PathBuf>,
    /// A file of golden roots to write, when all runs agree.
    pub bless: Option<PathBuf>,
    /// Where to keep the run folders.
    pub keep: Option<PathBuf>,
}

/// The three runs and where they are.
struct TwiceRuns<'a> {
    program: PathBuf,
    experiment: &'a Path,
    runs: PathBuf,
    /// Where the runs' stderr goes: an unread pipe would block them when it is full.
    logs: PathBuf,
    /// `--set` arguments, those of the user and our own.
    set: Vec<String>,
    steps: u64,
    /// Set when a signal asks to stop: the run under way is killed, and its folder removed.
    asked: Arc<AtomicBool>,
}

/// A run whose bits are compared with golden roots.
struct Made {
    entries: Vec<Entry>,
    manifests: Vec<Manifest>,
    lock: Lock,
}

/// How often a run that ends before its kill is started again, to be killed earlier.
const ATTEMPTS: u32 = 5;

/// Makes the three runs of the experiment at `path` and checks that they agree, and that they are golden.
///
/// # Errors
/// A run fails, or a file cannot be read or written.
pub fn verify(path: &Path, options: &TwiceOptions, checks: &mut Checks<'_>) -> anyhow::Result<()> {
    // Read before the runs, so that a mistake in it is found at once.
    let golden = options.expect.as_deref().map(|path| {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
        Golden::parse(path, &text)
    });
    let golden = golden.transpose()?;
    if let Some(file) = &options.bless {
        output::require(file, OutputKind::Roots)?;
    }
    let loaded = load_experiment(path, &options.set, &options.runs)?;
    let temporary = tempfile::tempdir()
        .context("cannot make a folder for the runs\n  hint: `TMPDIR` names another place for them")?;
    let asked = Arc::<AtomicBool>::default();
    let request = asked.clone();
    stop::on_requests(move || request.store(true, Ordering::SeqCst))?;
    let steps = loaded.experiment.schedule.steps;
    let mut own = intervals(&loaded.experiment);
    // The runs are in a folder of their own, and what they start from is not.
    own.extend(loaded.experiment.model.init.as_ref().map(|init| format!("model.init={init}")));
    // A key is given once, and ours hold.
    let key = |set: &str| set.split('=').next().unwrap_or_default().trim().to_owned();
    let is_ours = |set: &&String| own.iter().any(|own| key(own) == key(set));
    let set = options.set.iter().filter(|set| !is_ours(set)).chain(&own).cloned().collect();
    let trial = TwiceRuns {
        program: std::env::current_exe()?,
        experiment: path,
        runs: options.keep.clone().unwrap_or_else(|| temporary.path().join("runs")),
        logs: temporary.path().to_owned(),
        set,
        steps,
        asked,
    };
    trial.whole("first")?;
    trial.whole("second")?;
    let killed_after = trial.killed("killed")?;
    let repeat = Diff::of(&trial.folder("first"), &trial.folder("second"))?;
    same(&repeat, "repeat", "two processes gave the same bits", checks);
    match killed_after {
        Some(step) => {
            let resumed = Diff::of(&trial.folder("first"), &trial.folder("killed"))?;
            same(
                &resumed,
                "resume",
                &format!("killed with {step} {} done and resumed: the same bits", noun(step, "step")),
                checks,
            );
        }
        None => checks.failed(
            "resume",
            format!(
                "nothing was killed: {ATTEMPTS} runs of {steps} {} ended before their kill\n  do: use \
                 more steps, with `--set schedule.steps=N`",
                noun(steps, "step")
            ),
        ),
    }
    let made = Made::read(&RunPaths::new(&trial.folder("first")))?;
    if let Some((golden, file)) = golden.zip(options.expect.as_ref()) {
        golden_roots(path, &golden, file, &made, checks);
    }
    if let Some(file) = &options.bless {
        bless(file, &loaded.experiment.name, &made, checks)?;
    }
    Ok(())
}

/// Settings of the runs: checkpoints to resume from and to compare are wanted. Intervals change no bit, but
/// where a rewind goes back to a checkpoint.
fn intervals(experiment: &Experiment) -> Vec<String> {
    let every = (experiment.schedule.steps / 4).max(1);
    let every = (experiment.rewind_every() == 0).then(|| format!("checkpoint.every={every}"));
    every.into_iter().chain(["checkpoint.keep_last=0".into()]).collect()
}

fn same(diff: &Diff, check: &str, good: &str, checks: &mut Checks<'_>) {
    if diff.same_bits() && diff.same_length() {
        checks.passed(check, good);
    } else {
        let lines = diff.to_string().trim_end().replace('\n', "\n  ");
        checks.failed(check, format!("the bits differ\n  {lines}"));
    }
}

/// Whether the roots are golden, and what to do when they are not.
fn golden_roots(experiment: &Path, golden: &Golden, file: &Path, made: &Made, checks: &mut Checks<'_>) {
    let check = "golden roots";
    let why = match golden.compare(&made.entries, &made.manifests) {
        Ok(compared) => return checks.passed(check, format!("as in `{}`: {compared}", file.display())),
        Err(why) => why,
    };
    let id = made.lock.numerics_id();
    let numerics = match golden.numerics_id {
        Some(expected) if expected != id => format!(
            "\n  the lock differs too: numerics_id was {expected}, is {id}; so a key, the data or a version \
             has changed"
        ),
        _ => String::new(),
    };
    let bless = format!("runner verify {} --twice --bless {}", experiment.display(), file.display());
    checks.failed(check, format!("{why}{numerics}\n  do: if the change of bits is meant, `{bless}`"));
}

/// Writes the golden roots of runs that agree.
fn bless(file: &Path, name: &str, made: &Made, checks: &mut Checks<'_>) -> anyhow::Result<()> {
    if !checks.all_passed() {
        checks.failed("bless", "nothing is written: the runs do not agree");
        return Ok(());
    }
    let golden = Golden::of(made.lock.numerics_id(), &made.entries, &made.manifests);
    output::write(file, golden.to_text(name).as_bytes(), OutputKind::Roots)?;
    let (roots, tensors) = (golden.roots.len(), golden.tensors.len());
    let [of_roots, of_tensors] = [noun(roots, "root"), noun(tensors, "tensor")];
    let what = format!("{roots} {of_roots} and {tensors} {of_tensors} in `{}`", file.display());
    checks.passed("bless", what);
    Ok(())
}

impl Made {
    fn read(paths: &RunPaths) -> anyhow::Result<Made> {
        let (_, entries) = ledger::read(&paths.ledger())?;
        let folders = store::list(&paths.checkpoints())?.into_iter();
        let manifests =
            folders.map(|(_, folder)| checkpoint::inspect(&folder)).collect::<store::Result<_>>()?;
        Ok(Made { entries, manifests, lock: Lock::read(&paths.lock_file())? })
    }
}

impl TwiceRuns<'_> {
    fn folder(&self, name: &str) -> PathBuf {
        self.runs.join(name)
    }

    fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.stderr"))
    }

    fn start(&self, name: &str) -> anyhow::Result<Child> {
        let mut command = self.command(name, "run")?;
        command.arg(self.experiment).args(["--name", name, "--overwrite"]);
        for set in &self.set {
            command.args(["--set", set]);
        }
        Ok(command.spawn()?)
    }

    fn command(&self, name: &str, verb: &str) -> anyhow::Result<Command> {
        let mut command = Command::new(&self.program);
        command
            .arg(verb)
            .arg("--runs")
            .arg(&self.runs)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(File::create(self.log(name)).context("cannot keep what the runs say")?);
        // It ends with this process, and its end is nobody else's news.
        member::prepare(&mut command, 1);
        command.env_remove(alerts::COMMAND);
        Ok(command)
    }

    /// Trains to the end.
    fn whole(&self, name: &str) -> anyhow::Result<()> {
        self.finished(self.start(name)?, name)
    }

    /// Kills a run in its middle and resumes it; the steps that it had done. None when every attempt came too
    /// late: the first kill is at half of the steps, each further one at half of the steps before.
    fn killed(&self, name: &str) -> anyhow::Result<Option<u64>> {
        let paths = RunPaths::new(&self.folder(name));
        for attempt in 1..=ATTEMPTS {
            // The lines of its ledger are counted: those of a run before it are not this one's.
            remove_run(&paths)?;
            let mut child = self.start(name)?;
            let done = || {
                std::fs::read(paths.ledger())
                    .map_or(0, |text| text.iter().filter(|byte| **byte == b'\n').count() as u64)
            };
            let kill_after = (self.steps >> attempt).max(1);
            while child.try_wait()?.is_none() && done() < kill_after {
                self.pause(&mut child, Duration::from_millis(1))?;
            }
            // SIGKILL: nothing of the process runs any more.
            child.kill()?;
            let status = child.wait()?;
            let done = done();
            if status.signal() == Some(signal_hook::consts::SIGKILL) && done < self.steps {
                let child = self.command(name, "resume")?.arg(name).spawn()?;
                self.finished(child, name)?;
                return Ok(Some(done));
            }
            if status.signal() != Some(signal_hook::consts::SIGKILL) && !status.success() {
                self.failed(name, status)?;
            }
        }
        Ok(None)
    }

    fn finished(&self, mut child: Child, name: &str) -> anyhow::Result<()> {
        let status = loop {
            match child.try_wait()? {
                Some(status) => break status,
                None => self.pause(&mut child, Duration::from_millis(10))?,
            }
        };
        if status.success() { Ok(()) } else { self.failed(name, status) }
    }

    /// Waits a little; where a signal has asked to stop, kills the run instead.
    fn pause(&self, child: &mut Child, time: Duration) -> anyhow::Result<()> {
        if self.asked.load(Ordering::SeqCst) {
            child.kill()?;
            child.wait()?;
            return Err(StoppedOnRequest.into());
        }
        std::thread::sleep(time);
        Ok(())
    }

    /// The error of a run that failed, with the last that it said.
    fn failed(&self, name: &str, status: ExitStatus) -> anyhow::Result<()> {
        let said = std::fs::read(self.log(name)).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<&str> = said.lines().collect();
        let tail = lines[lines.len().saturating_sub(12)..].join("\n");
        Err(run_error(format!("run `{name}` ended with {status}:\n{tail}"), status))
    }
}

/// The error of a run that ended with `status`: one without a device is that here too.
fn run_error(text: String, status: ExitStatus) -> anyhow::Error {
    match status.code() == Some(i32::from(NO_DEVICE)) {
        true => DeviceError::Unavailable(text).into(),
        false => anyhow::Error::msg(text),
    }
}

/// Removes the run in a folder, if there is one, as `--overwrite` does.
fn remove_run(paths: &RunPaths) -> store::Result<()> {
    if paths.have_begun() { RunFolder::remove(paths.folder(), true) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::{intervals, run_error};
    use crate::experiment;
    use crate::ops::DeviceError;

    #[test]
    fn a_run_without_a_device_is_told_from_one_that_failed() {
        let error = |code: i32| run_error("run `first` ended".into(), ExitStatus::from_raw(code << 8));
        assert!(matches!(error(3).downcast_ref(), Some(DeviceError::Unavailable(_))));
        assert!(!error(1).is::<DeviceError>());
        assert_eq!(error(3).to_string(), "run `first` ended");
    }

    #[test]
    fn where_a_rewind_goes_back_to_is_the_experiments_own() {
        let text = "[model]\nlayers=1\nheads=1\nchannels=64\n[data]\ncorpus='kjv'\n[schedule]\nsteps=20\n\
                    [guards]\non_diverge='rewind'\n";
        let of = |text: &str| {
            let loaded = experiment::load_text("t", text, &[]).expect("a whole experiment");
            intervals(&loaded.experiment)
        };
        assert_eq!(of(text), ["checkpoint.keep_last=0"]);
        assert_eq!(of(&text.replace("rewind", "stop")), ["checkpoint.every=5", "checkpoint.keep_last=0"]);
    }
}
