//! `runner completions SHELL` and `runner man [DIR]`: generated from the definitions that parse the
//! arguments.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Command;
use clap_complete::Shell;

use super::{help, streams};
use crate::store::atomic;

/// Print completions for a shell.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  runner completions bash > ~/.local/share/bash-completion/completions/runner
  runner completions zsh > ~/.zfunc/_runner        # with fpath+=~/.zfunc before compinit
  runner completions fish > ~/.config/fish/completions/runner.fish")]
pub struct Args {
    /// Which shell.
    shell: Shell,
}

/// Print the manual page, or write a page for every verb.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  runner man | man -l -
  runner man ~/.local/share/man/man1")]
pub struct ManArgs {
    /// Folder to write `runner.1`, `runner-run.1` and the others into.
    dir: Option<PathBuf>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut help::bare(), "runner", &mut text);
    streams::print(&String::from_utf8(text)?)
}

pub fn man(args: ManArgs) -> anyhow::Result<()> {
    let mut command = help::bare().disable_help_subcommand(true);
    command.build();
    match args.dir {
        None => streams::print(&page(&command, "runner")?),
        Some(dir) => {
            std::fs::create_dir_all(&dir).with_context(|| format!("cannot create `{}`", dir.display()))?;
            pages(&command, "runner", &dir)
        }
    }
}

/// Writes the pages of a command and of its subcommands, and prints their paths.
fn pages(command: &Command, name: &str, dir: &Path) -> anyhow::Result<()> {
    let path = dir.join(format!("{name}.1"));
    atomic::write(&path, page(command, name)?.as_bytes())?;
    streams::print(&format!("{}\n", path.display()))?;
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        pages(verb, &format!("{name}-{}", verb.get_name()), dir)?;
    }
    Ok(())
}

/// One page in roff.
fn page(command: &Command, name: &str) -> anyhow::Result<String> {
    let mut text = Vec::new();
    // No date: the same program prints the same page.
    let source = concat!("runner ", env!("CARGO_PKG_VERSION"));
    clap_mangen::Man::new(command.clone()).date("").source(source).render(&mut text)?;
    let mut text = with_examples(&String::from_utf8(text)?);
    if name == "runner" {
        text.push_str(&help::facts_as_roff());
    }
    Ok(text)
}

/// A page whose examples are a section of their own, line for line.
fn with_examples(page: &str) -> String {
    let Some((before, rest)) = page.split_once(".SH EXTRA\nExamples:\n") else { return page.to_owned() };
    let (examples, after) = match rest.find("\n.SH ") {
        Some(end) => rest.split_at(end + 1),
        None => (rest, ""),
    };
    let end = if examples.ends_with('\n') { "" } else { "\n" };
    format!("{before}.SH EXAMPLES\n.nf\n{examples}{end}.fi\n{after}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_has_a_page() {
        let folder = tempfile::tempdir().unwrap();
        man(ManArgs { dir: Some(folder.path().into()) }).unwrap();
        for verb in help::bare().get_subcommands() {
            let path = folder.path().join(format!("runner-{}.1", verb.get_name()));
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.contains(".SH NAME") && text.contains(".SH SYNOPSIS"), "{}", path.display());
        }
        let text = std::fs::read_to_string(folder.path().join("runner-run.1")).unwrap();
        assert!(text.contains(".SH EXAMPLES\n.nf\n") && !text.contains(".SH EXTRA"), "{text}");
        assert!(
            text.lines().any(|line| line.starts_with(".TH") && line.contains(env!("CARGO_PKG_VERSION"))),
            "{text}"
        );
        let text = std::fs::read_to_string(folder.path().join("runner.1")).unwrap();
        assert!(text.contains("EXIT STATUS") && text.contains("proof mismatch"), "{text}");
    }

    #[test]
    fn each_shell_completes_verbs_and_options() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut help::bare(), "runner", &mut text);
            let text = String::from_utf8(text).unwrap();
            assert!(text.contains("quickstart") || text.contains("resume"), "{shell}");
            assert!(text.contains("overwrite") && text.contains("plan"), "{shell}");
        }
    }
}
