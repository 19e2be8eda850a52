//! The argument `EXPERIMENT` of many verbs: a TOML file or the name of a shipped one, and `--set` over it.

use std::path::{Path, PathBuf};

use super::streams::say;
use crate::experiment::{Declared, Loaded, SHIPPED, ShippedExperiment, Sweep, nearest};
use crate::run::initial;
use crate::run::{UsageError, require_usage};

/// The default folder of experiments.
const FOLDER: &str = "experiments";

/// Loads an experiment; a run that it starts from is in the folder `runs`.
///
/// # Errors
/// The file is missing or has errors.
pub fn load(path: &Path, sets: &[String], runs: &Path) -> anyhow::Result<Loaded> {
    require(path)?;
    let loaded = initial::load_experiment(path, sets, runs)?;
    say_remarks(&loaded.remarks);
    Ok(loaded)
}

/// Loads an experiment, or a sweep of many; runs that they start from are in the folder `runs`.
///
/// # Errors
/// The file is missing or has errors.
pub fn load_declared(path: &Path, sets: &[String], runs: &Path) -> anyhow::Result<Declared> {
    require(path)?;
    Ok(initial::load_declared(path, sets, runs)?)
}

/// Says what is to be known of settings: that another way to say the same puts them away, or that they do
/// nothing.
pub fn say_remarks(remarks: &[String]) {
    remarks.iter().for_each(|remark| say!("note: {remark}"));
}

/// The same of what declares one experiment or a sweep, where no run begins that says it itself.
pub fn say_all_replaced(declared: &Declared) {
    match declared {
        Declared::Experiment(loaded) => say_remarks(&loaded.remarks),
        Declared::Sweep(sweep) => say_remarks(&common_remarks(sweep)),
    }
}

/// What is to be known of every member.
pub fn common_remarks(sweep: &Sweep) -> Vec<String> {
    let [first, others @ ..] = sweep.members.as_slice() else { return Vec::new() };
    let of_all = |remark: &&String| others.iter().all(|member| member.loaded.remarks.contains(remark));
    first.loaded.remarks.iter().filter(of_all).cloned().collect()
}

/// Refuses a missing experiment, and suggests a similar one.
pub fn require(path: &Path) -> Result<(), UsageError> {
    let is_shipped = ShippedExperiment::named(path).is_some();
    require_usage(is_shipped || !path.is_dir(), || {
        format!(
            "`{}` is a folder, and an experiment is a TOML file\n  hint: `runner resume` and other verbs \
             take the folder of a run",
            path.display()
        )
    })?;
    let found = path.try_exists();
    if let (Err(error), false) = (&found, is_shipped) {
        return require_usage(false, || {
            format!(
                "cannot look for the experiment `{}`: {error}\n  hint: is a folder on the way closed to you?",
                path.display()
            )
        });
    }
    require_usage(found.unwrap_or(false) || is_shipped, || {
        let hint = match meant(path) {
            _ if path.is_symlink() => "it is a symbolic link, and what it points to is not there".to_owned(),
            None => {
                let names: Vec<&str> = SHIPPED.iter().map(|shipped| shipped.name).collect();
                format!("an experiment is a TOML file, or one of these: {}", names.join(", "))
            }
            Some(near) => format!("did you mean `{}`?", near.display()),
        };
        format!("there is no experiment `{}`\n  hint: {hint}", path.display())
    })?;
    let file = path.with_extension("toml");
    if is_shipped && file.is_file() {
        say!("note: `{}` is the shipped experiment; `./{}` is the file here", path.display(), file.display());
    }
    Ok(())
}

/// The experiment most similar to `path`, beside it or in the folder of experiments.
fn meant(path: &Path) -> Option<PathBuf> {
    let beside = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_stem()?.to_string_lossy();
    let near = |folder: &Path| {
        let files = std::fs::read_dir(folder).ok()?.flatten().map(|entry| PathBuf::from(entry.file_name()));
        let experiments = files.filter(|file| file.extension().is_some_and(|ending| ending == "toml"));
        let mut names: Vec<String> =
            experiments.filter_map(|file| Some(file.file_stem()?.to_str()?.to_owned())).collect();
        names.sort();
        let nearest = nearest(&name, names.iter().map(String::as_str))?;
        Some(folder.join(format!("{nearest}.toml")))
    };
    let shipped = || nearest(&name, SHIPPED.iter().map(|shipped| shipped.name)).map(PathBuf::from);
    let found = near(beside).or_else(|| near(Path::new(FOLDER))).or_else(shipped)?;
    Some(found.strip_prefix(".").map(Path::to_owned).unwrap_or(found))
}
