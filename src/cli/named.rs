//! The runs that arguments name, and those of sweeps.

use std::path::{Path, PathBuf};

use crate::report::compare::NamedRun;
use crate::run::{UsageError, find, require_usage};
use crate::store::{RunPaths, sweep_folder};

/// The folders of the runs that arguments name: a run, or all members of a sweep. A run is called by its
/// folder, a member by its sweep and number, and where two would have one name both by the whole path.
///
/// # Errors
/// There is no such run, or a sweep's declaration is damaged.
pub fn named(arguments: &[PathBuf], runs: &Path) -> anyhow::Result<Vec<NamedRun>> {
    let mut found: Vec<NamedRun> = Vec::new();
    for argument in arguments {
        match sweep(argument, runs) {
            Some(folder) => found.extend(members(&folder)?),
            None => {
                let folder = find::find(Some(argument), runs)?;
                found.push(NamedRun { name: name(&folder), folder });
            }
        }
    }
    let ambiguous =
        |run: &NamedRun| found.iter().any(|other| other.name == run.name && other.folder != run.folder);
    let whole: Vec<bool> = found.iter().map(ambiguous).collect();
    for (run, _) in found.iter_mut().zip(whole).filter(|(_, whole)| *whole) {
        run.name = run.folder.display().to_string();
    }
    Ok(found)
}

/// Refuses a folder of runs that was named and is not there. The usual one comes with the first run.
pub fn require_runs(runs: &Path) -> Result<(), UsageError> {
    require_usage(runs == Path::new("runs") || runs.exists(), || {
        format!("there is no folder `{}`\n  hint: `--runs` names a folder that holds runs", runs.display())
    })
}

/// The folder of the sweep that an argument names, if it names one.
pub fn sweep(argument: &Path, runs: &Path) -> Option<PathBuf> {
    find::find_sweep(Some(argument), runs)
}

/// The runs of a sweep, also those that have not begun.
pub fn members(sweep: &Path) -> anyhow::Result<Vec<NamedRun>> {
    let of = RunPaths::new(sweep).name();
    let members = sweep_folder::members(sweep)?.into_iter();
    Ok(members
        .map(|member| NamedRun { name: format!("{of}/{}", member.name), folder: member.folder })
        .collect())
}

/// A run's name, behind that of its sweep where it is a member of one.
fn name(folder: &Path) -> String {
    let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let name = RunPaths::new(folder).name();
    match absolute.parent().filter(|parent| sweep_folder::is_sweep(parent)) {
        Some(sweep) => format!("{}/{name}", RunPaths::new(sweep).name()),
        None => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_stands_for_its_members_and_runs_of_one_name_are_told_apart() {
        let root = tempfile::tempdir().unwrap();
        for folder in ["lr/001", "lr/002", "a/x", "b/x"] {
            std::fs::create_dir_all(root.path().join(folder)).unwrap();
            std::fs::write(root.path().join(folder).join("experiment.toml"), "").unwrap();
        }
        std::fs::write(root.path().join("lr/sweep.toml"), "[sweep.zip]\nseed = [0, 1, 2]\n").unwrap();
        let names = |arguments: &[&str]| -> Vec<String> {
            let arguments: Vec<PathBuf> = arguments.iter().map(PathBuf::from).collect();
            named(&arguments, root.path()).unwrap().into_iter().map(|run| run.name).collect()
        };
        assert_eq!(names(&["lr"]), ["lr/001", "lr/002", "lr/003"]);
        assert_eq!(names(&["lr/002", "a/x"]), ["lr/002", "x"]);
        let [a, b] = &names(&["a/x", "b/x"])[..] else { panic!("two runs") };
        assert!(a.ends_with("a/x") && b.ends_with("b/x"), "{a} {b}");
        assert!(named(&["nothing".into()], root.path()).is_err());
    }
}
