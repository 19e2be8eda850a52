//! Finds the run that an argument names, and a checkpoint in it.

use std::path::{Path, PathBuf};

use super::copies;
use super::error::{HINT, ProofRefusal, UsageError, refuse_without_checkpoint, require_usage};
use super::messages::{Message, Report};
use crate::eval::parameters;
use crate::experiment::nearest;
use crate::formats::require_finite;
use crate::optim::{AVERAGE, MASTER};
use crate::proof::{LedgerError, ledger};
use crate::store::manifest::Standing;
use crate::store::run_folder::{is_copy, is_place};
use crate::store::sweep_folder::{is_sweep, members, newest_sweep};
use crate::store::{self, LoadedCheckpoint, Manifest, RunPaths, SweepPaths, checkpoint};
use crate::units::noun;

/// The folder of a run: `run` itself if it is one, else that name under `runs`; the newest of `runs` when
/// none is given. A file or folder called `run` that is not a run does not hide the one under `runs`; with
/// `./` before the name only the working folder is searched.
///
/// # Errors
/// There is no such run; the nearest name is in the hint. Its experiment is gone.
pub fn find(run: Option<&Path>, runs: &Path) -> anyhow::Result<PathBuf> {
    let is_run = |folder: &Path| RunPaths::new(folder).are_of_a_run();
    let folder = match run {
        Some(run) if is_place(run) => run.to_owned(),
        Some(run) if is_run(&runs.join(run)) => runs.join(run),
        Some(run) if run.is_dir() => run.to_owned(),
        Some(run) => runs.join(run),
        None => store::newest_run(runs)?.ok_or_else(|| {
            UsageError(format!(
                "there is no run in `{}`\n  hint: `runner run EXPERIMENT` makes one; `--runs` names another \
                 folder",
                runs.display()
            ))
        })?,
    };
    if RunPaths::new(&folder).lack_experiment() {
        return Err(ProofRefusal(format!(
            "`{}` is a run whose `experiment.toml` is gone\n  hint: restore it from a copy of the run",
            folder.display()
        ))
        .into());
    }
    if !is_run(&folder) {
        let hint = hint(run.unwrap_or(&folder), runs);
        return Err(UsageError(format!("there is no run in `{}`\n  hint: {hint}", folder.display())).into());
    }
    Ok(folder)
}

/// The folder of the sweep that an argument names, where it names one and no run: `asked` itself, or that
/// name under `runs`. Without an argument the sweep that was worked on last, if no run was later.
pub fn find_sweep(asked: Option<&Path>, runs: &Path) -> Option<PathBuf> {
    let Some(asked) = asked else { return newest_sweep(runs) };
    let under = (!is_place(asked)).then(|| runs.join(asked));
    let is_run = |folder: &PathBuf| RunPaths::new(folder).are_of_a_run();
    let folders = under.into_iter().chain([asked.to_owned()]);
    folders.into_iter().find(|folder| is_run(folder) || is_sweep(folder)).filter(|folder| !is_run(folder))
}

/// A hint for `asked`, which is not a run.
fn hint(asked: &Path, runs: &Path) -> String {
    if asked.is_file() && asked.extension().is_some_and(|ending| ending == "toml") {
        return format!(
            "that is an experiment: `runner run {0}` trains it, and `runner verify {0} --twice` proves that \
             it repeats",
            asked.display()
        );
    }
    if is_copy(asked) {
        let there = std::path::absolute(asked).unwrap_or_else(|_| asked.to_owned());
        let copies = there.parent().unwrap_or(&there).display();
        return format!(
            "that is the copy of one checkpoint: `runner resume {copies}` brings the run back, from its \
             newest copy that is whole"
        );
    }
    if copies::are_of_a_sweep(asked) {
        return "there are copies of the members of a sweep: `runner run SWEEP.toml --or-resume` brings them \
                back, where its `checkpoint.copy_to` names the folder above"
            .to_owned();
    }
    let sweep = [runs.join(asked), asked.to_owned()].map(|folder| SweepPaths::new(&folder));
    if let Some(sweep) = sweep.iter().find(|sweep| sweep.lock_file().is_file() && !is_sweep(sweep.folder())) {
        return format!(
            "`{}` is missing, which declares the sweep there: restore it from a copy; its members are runs",
            sweep.declaration().display()
        );
    }
    if find_sweep(Some(asked), runs).is_some() {
        return format!("that is a sweep: name one of its members, such as `{}/001`", asked.display());
    }
    let called = asked.parent().filter(|called| !called.as_os_str().is_empty());
    let of_sweep = called.and_then(|called| Some((called.display(), find_sweep(Some(called), runs)?)));
    if let Some((called, members)) =
        of_sweep.and_then(|(called, sweep)| Some((called, members(&sweep).ok()?)))
    {
        return match members.iter().any(|member| asked.ends_with(&member.name)) {
            true => format!("this member has not begun: `runner resume {called}` trains what is missing"),
            false => {
                format!(
                    "the sweep `{called}` has {} {}, `{called}/{}` and on",
                    members.len(),
                    noun(members.len(), "member"),
                    members[0].name
                )
            }
        };
    }
    let names = store::run_names(runs);
    let name = asked.file_name().unwrap_or_default().to_string_lossy();
    match nearest(&name, names.iter().map(String::as_str)) {
        Some(near) => format!("did you mean `{near}`?"),
        None if names.is_empty() => "`--runs` names another folder of runs".to_owned(),
        None => format!("`runner show --runs {}` lists the runs there are", runs.display()),
    }
}

/// The parameters, and nothing else, of the checkpoint of `step`, or of the newest whole one. Skipped ones
/// are reported. Numbers that are not finite are refused.
pub fn load_parameters(
    paths: &RunPaths,
    step: Option<u64>,
    report: Report,
) -> anyhow::Result<LoadedCheckpoint> {
    load_some(paths, step, report, &parameters::is_parameter)
}

/// As [`load_parameters`], of the average of the weights, under the names of the parameters.
///
/// # Errors
/// As there, and the checkpoint has no average.
pub fn load_average(paths: &RunPaths, step: Option<u64>, report: Report) -> anyhow::Result<LoadedCheckpoint> {
    let (manifest, mut state) = load_some(paths, step, report, &|name| name.starts_with(AVERAGE.prefix))?;
    require_usage(!state.is_empty(), || {
        format!(
            "the checkpoint `{}` has no average of the weights\n  hint: a run with `optimizer.ema_decay` \
             above 0 keeps one",
            paths.checkpoints().join(checkpoint::folder_name(manifest.step)).display()
        )
    })?;
    for tensor in &mut state {
        if let Some(name) = tensor.name.strip_prefix(AVERAGE.prefix) {
            tensor.name = name.to_owned();
        }
    }
    Ok((manifest, state))
}

/// As [`load_parameters`], and their fp32 masters where there are any.
pub fn load_masters(paths: &RunPaths, step: Option<u64>, report: Report) -> anyhow::Result<LoadedCheckpoint> {
    load_some(paths, step, report, &is_weight)
}

/// Whether a tensor of the state is a parameter or the fp32 master of one.
pub(super) fn is_weight(name: &str) -> bool {
    parameters::is_parameter(name) || name.starts_with(MASTER.prefix)
}

/// The folder of a checkpoint by `NAME@STEP`, or by `NAME` the newest of the run; absolute.
///
/// # Errors
/// There is no such run or checkpoint, or the step is no number.
pub(super) fn checkpoint(name: &str, runs: &Path) -> anyhow::Result<PathBuf> {
    let (run, step) = match name.rsplit_once('@') {
        Some((run, step)) => {
            let number = step.parse::<u64>();
            (run, Some(number.map_err(|_| UsageError(format!("`{step}` in `{name}` is not a step")))?))
        }
        None => (name, None),
    };
    let paths = RunPaths::new(&std::path::absolute(find(Some(Path::new(run)), runs)?)?);
    let there = store::list(&paths.checkpoints())?;
    match step {
        Some(step) => match there.into_iter().find(|(of, _)| *of == step) {
            Some((_, folder)) => Ok(folder),
            None => Err(no_checkpoint(&paths, step)?.into()),
        },
        None => match there.into_iter().next_back() {
            Some((_, folder)) => Ok(folder),
            None => {
                Err(UsageError(format!("the run `{run}` has no checkpoint\n  hint: {}", none_yet(&paths)))
                    .into())
            }
        },
    }
}

fn load_some(
    paths: &RunPaths,
    step: Option<u64>,
    report: Report,
    wanted: &dyn Fn(&str) -> bool,
) -> anyhow::Result<LoadedCheckpoint> {
    let checkpoints = paths.checkpoints();
    let load = |folder: &Path| checkpoint::load_some(folder, wanted);
    let (manifest, state) = match step {
        Some(step) => {
            let folder = checkpoints.join(checkpoint::folder_name(step));
            if !folder.is_dir() {
                return Err(no_checkpoint(paths, step)?.into());
            }
            load(&folder)?
        }
        None => {
            let (found, broken) = checkpoint::newest(&checkpoints, load)?;
            passed_over(&broken, report);
            found.ok_or_else(|| {
                let hint = match broken.is_empty() {
                    true => none_yet(paths),
                    false => format!("`runner verify {}` says what is wrong with those there", paths.name()),
                };
                let checkpoints = checkpoints.display();
                let message = format!("there is no whole checkpoint in `{checkpoints}`\n  hint: {hint}");
                refuse_without_checkpoint(&broken, message)
            })?
        }
    };
    require_finite(&state_file(paths, manifest.step), &state)?;
    require_root(paths, &manifest, report)?;
    Ok((manifest, state))
}

/// Refuses a checkpoint whose state is not the one that its run's ledger has of that step, and says when the
/// ledger has none, or is not there.
///
/// # Errors
/// The two roots differ; the ledger is damaged before that step, or cannot be read.
pub fn require_root(paths: &RunPaths, manifest: &Manifest, report: Report) -> anyhow::Result<()> {
    let step = manifest.step;
    match binding(paths, manifest)? {
        Binding::Root => {}
        Binding::Head => report.tell(&Message::CheckpointUnbound { step }),
        Binding::Nothing => report.tell(&Message::LedgerMissing { step }),
    }
    Ok(())
}

/// What a checkpoint could be held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Binding {
    /// The root that the ledger has of its step.
    Root,
    /// The ledger's head alone: the step was not hashed.
    Head,
    /// There is no ledger.
    Nothing,
}

/// Holds a checkpoint to the entries up to it of the run's ledger.
fn binding(paths: &RunPaths, manifest: &Manifest) -> anyhow::Result<Binding> {
    let (step, run) = (manifest.step, paths.folder().display());
    let read = match ledger::read_up_to(&paths.ledger(), manifest.ledger.size) {
        Err(LedgerError::Missing { .. }) if step > 0 => return Ok(Binding::Nothing),
        Err(LedgerError::Missing { .. }) => Default::default(),
        Err(why @ LedgerError::Io { .. }) => return Err(why.into()),
        Err(why) => {
            let why = why.to_string();
            let what = why.split(HINT).next().unwrap_or_default();
            return Err(ProofRefusal(format!(
                "the checkpoint of step {step} in `{run}` cannot be held to its ledger: {what}{HINT}`runner \
                 verify {}` says what was changed: restore `ledger.jsonl` from a copy",
                paths.name()
            ))
            .into());
        }
        Ok(read) => read,
    };
    let what = match manifest.standing(&read.0, &read.1) {
        Standing::Bound => return Ok(Binding::Root),
        Standing::Unbound => return Ok(Binding::Head),
        Standing::Unmade => "number of no step that was made: a run saves none before its first".to_owned(),
        Standing::OtherHead => format!(
            "head {} after {} {}, which its `ledger.jsonl` does not have",
            manifest.ledger.root,
            manifest.ledger.size,
            noun(manifest.ledger.size, "entry")
        ),
        Standing::OtherRoot(root) => format!("state root {}, the ledger {root}", manifest.state_root),
    };
    Err(ProofRefusal(format!(
        "the checkpoint of step {step} in `{run}` has the {what}\n  hint: one of the two was changed: move \
         the checkpoint away, or restore one from a copy"
    ))
    .into())
}

/// What a checkpoint's folder could be held to; refused as [`require_root`] does.
pub(super) fn binding_of(folder: &Path, manifest: &Manifest) -> anyhow::Result<Binding> {
    let run = folder.parent().and_then(Path::parent);
    run.map_or(Ok(Binding::Nothing), |run| binding(&RunPaths::new(run), manifest))
}

/// That a run has no checkpoint of `step`, and of which steps it has some.
pub fn no_checkpoint(paths: &RunPaths, step: u64) -> store::Result<UsageError> {
    let there = store::list(&paths.checkpoints())?;
    let steps: Vec<String> = there.iter().map(|(step, _)| step.to_string()).collect();
    let hint = match steps.is_empty() {
        false => format!("there are those of steps {}", steps.join(", ")),
        true if paths.are_of_a_run() => none_yet(paths),
        true => format!(
            "there is no run in `{}` any more: train it again, or name another checkpoint",
            paths.folder().display()
        ),
    };
    let folder = paths.checkpoints().join(checkpoint::folder_name(step));
    Ok(UsageError(format!("there is no checkpoint `{}`\n  hint: {hint}", folder.display())))
}

/// What to do about a run without a checkpoint.
fn none_yet(paths: &RunPaths) -> String {
    format!(
        "the run has none: one is saved every `checkpoint.every` steps and at the end; `runner show {}` says \
         how far it is, and whether its checkpoints were deleted after it was done",
        paths.name()
    )
}

/// The run and the step of a path that is the place of a checkpoint, whether there is one or not.
pub(super) fn place_of_checkpoint(path: &Path) -> Option<(RunPaths, u64)> {
    let step = checkpoint::step_of(path.file_name()?.to_str()?)?;
    let run = path.parent()?.parent()?;
    let paths = RunPaths::new(run);
    (paths.checkpoints() == path.parent()?).then_some((paths, step))
}

/// The file of a checkpoint's tensors.
pub fn state_file(paths: &RunPaths, step: u64) -> PathBuf {
    paths.checkpoints().join(checkpoint::folder_name(step)).join(checkpoint::STATE_FILE)
}

/// Reports the damaged checkpoints that a search has skipped.
pub(super) fn passed_over(broken: &checkpoint::Broken, report: Report) {
    for (step, why) in broken {
        report.tell(&Message::CheckpointPassedOver { step: *step, why });
    }
}
