//! `runner new NAME`: a new experiment to edit, made from a shipped one.

use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::builder::PossibleValuesParser;

use super::streams::{self, say};
use crate::experiment::{SHIPPED, name_problem, template};
use crate::run::UsageError;
use crate::store;

/// Write a new experiment to edit: every key with what it does.
#[derive(clap::Args)]
pub struct Args {
    /// Its name, or the path of the file; `.toml` is added.
    name: PathBuf,
    /// The shipped experiment whose values it begins with.
    #[arg(long, default_value = "quickstart", value_parser = PossibleValuesParser::new(names()))]
    from: String,
}

fn names() -> Vec<&'static str> {
    SHIPPED.iter().filter(|shipped| !shipped.is_sweep()).map(|shipped| shipped.name).collect()
}

/// Prints the path of the new file to stdout.
///
/// # Errors
/// There is a file of this name already; the name cannot be that of a run.
pub fn run(args: Args) -> anyhow::Result<()> {
    let mut path = args.name.clone();
    if path.extension().is_none_or(|ending| ending != "toml") {
        path.as_mut_os_string().push(".toml");
    }
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    if let Some(problem) = name_problem(&name) {
        let hint = "it names the run too: use letters, digits, `-`, `_`, `.` and spaces";
        return Err(UsageError(format!("`{name}` {problem}\n  hint: {hint}")).into());
    }
    let from = SHIPPED.iter().find(|shipped| shipped.name == args.from).expect("clap knows the names");
    let written = new_file(&path, template(&path, from).as_bytes());
    match written {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let hint = "choose another name, or remove that file first";
            return Err(
                UsageError(format!("there is already a file `{}`\n  hint: {hint}", path.display())).into()
            );
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let folder = path.parent().unwrap_or(Path::new(".")).display();
            let file = path.display();
            return Err(UsageError(format!(
                "cannot write `{file}`: there is no folder `{folder}`\n  hint: make it first: \
                 `mkdir -p '{folder}'`"
            ))
            .into());
        }
        written => written.with_context(|| format!("cannot write `{}`", path.display()))?,
    }
    say!("from `{}`: {}", from.name, from.about());
    let file = match path.display().to_string() {
        file if file.contains(char::is_whitespace) => format!("'{file}'"),
        file => file,
    };
    say!("edit it; then `runner plan {file}` and `runner run {file}`");
    if SHIPPED.iter().any(|shipped| shipped.name == name) {
        say!("note: `runner run {name}` runs the shipped experiment, and not this file");
    }
    streams::print(&format!("{}\n", path.display()))
}

/// Writes a file that is not there yet, whole or not at all.
fn new_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = store::atomic::one_of_many(path)?;
    file.as_file_mut().write_all(bytes)?;
    file.persist_noclobber(path).map_err(|error| error.error)?;
    Ok(())
}
