//! `runner note RUN`: what a person says of a run, kept in its folder.

use std::path::PathBuf;

use super::streams;
use crate::run::{find, require_usage};
use crate::store::notes::{self, Notes, Remark};
use crate::units;

/// Add a note or a tag to a run, or print what there is.
#[derive(clap::Args)]
pub struct Args {
    /// The run: a name under `--runs`, or a folder.
    run: PathBuf,
    /// The note.
    text: Option<String>,
    /// Add a tag, by which `show` can filter. May be repeated.
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
    /// Take a tag away. May be repeated.
    #[arg(long, value_name = "TAG")]
    untag: Vec<String>,
    /// Folder that holds the run folders.
    #[arg(long, default_value = "runs", value_name = "DIR")]
    runs: PathBuf,
}

/// Prints the notes of the run to stdout if none is added.
pub fn run(args: Args) -> anyhow::Result<()> {
    let folder = find::find(Some(&args.run), &args.runs)?;
    for tag in args.tag.iter().chain(&args.untag) {
        let sound =
            !tag.is_empty() && !tag.contains(|c: char| c.is_whitespace() || c.is_control() || c == ',');
        require_usage(sound, || format!("{tag:?} is no tag\n  hint: a tag is one word without a comma"))?;
    }
    let there = Notes::read(&folder)?;
    for tag in &args.untag {
        require_usage(there.tags.contains(tag), || {
            let tags: Vec<&str> = there.tags.iter().map(String::as_str).collect();
            let tags = if tags.is_empty() { "none".to_owned() } else { tags.join(", ") };
            format!("the run has no tag `{tag}`\n  hint: its tags are {tags}")
        })?;
    }
    let text = args.text.as_deref().map(str::trim);
    require_usage(text != Some(""), || "the note is empty\n  hint: `runner note RUN \"what I saw\"`".into())?;
    let remarks: Vec<Remark> = (args.untag.iter().cloned().map(Remark::Untag))
        .chain(args.tag.iter().cloned().map(Remark::Tag))
        .chain(text.map(|text| Remark::Note(text.to_owned())))
        .collect();
    if remarks.is_empty() {
        let tags = there.tags.iter().map(|tag| format!("tag: {tag}\n"));
        let notes = there.notes.iter().map(|note| format!("{}\n", units::printable_lines(note)));
        return streams::print(&tags.chain(notes).collect::<String>());
    }
    Ok(notes::append(&folder, &remarks)?)
}
