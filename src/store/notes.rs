//! `notes.jsonl`: what a person says of a run: notes and tags.
//!
//! No part of the proof: nothing hashes it, and `verify` does not read it. A line is `{"note":"…"}`,
//! `{"tag":"…"}` or `{"untag":"…"}`, appended whole, so that two who write at once lose nothing, and a run
//! may be going on meanwhile. A person may edit the file.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::append::complete_lines;
use super::{Result, RunPaths, StoreError};
use crate::proof::{json, regular};

/// Bytes of the longest file that is read.
const LONGEST: u64 = 16 << 20;

/// A line of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Remark {
    Note(String),
    Tag(String),
    Untag(String),
}

/// What was said of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Notes {
    pub tags: BTreeSet<String>,
    /// In the order in which they were written.
    pub notes: Vec<String>,
}

impl Notes {
    /// Reads the notes of the run in `folder`; without a file there are none. A last line that is not
    /// finished is left out.
    ///
    /// # Errors
    /// The file cannot be read, or a line is none of its own.
    pub fn read(folder: &Path) -> Result<Notes> {
        let path = RunPaths::new(folder).notes();
        let bytes = match regular::read_within(&path, LONGEST) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Notes::default()),
            bytes => bytes.map_err(StoreError::io(&path, "read"))?,
        };
        let mut notes = Notes::default();
        for (index, line) in complete_lines(&bytes).enumerate() {
            let bad = |why| StoreError::BadNote { path: path.clone(), line: index + 1, why };
            let remark = json::parse_line(line).map_err(bad)?;
            match remark {
                Remark::Note(text) => notes.notes.push(text),
                Remark::Tag(tag) => drop(notes.tags.insert(tag)),
                Remark::Untag(tag) => drop(notes.tags.remove(&tag)),
            }
        }
        Ok(notes)
    }
}

/// Adds remarks to the notes of the run in `folder`.
///
/// # Errors
/// The file cannot be written.
pub fn append(folder: &Path, remarks: &[Remark]) -> Result<()> {
    let path = RunPaths::new(folder).notes();
    let mut text = String::new();
    // A line that a kill or an editor left without its end.
    if regular::read_within(&path, LONGEST).is_ok_and(|bytes| bytes.last().is_some_and(|byte| *byte != b'\n'))
    {
        text.push('\n');
    }
    for remark in remarks {
        text += &serde_json::to_string(remark).expect("strings become JSON");
        text.push('\n');
    }
    let mut file =
        File::options().create(true).append(true).open(&path).map_err(StoreError::io(&path, "open"))?;
    file.write_all(text.as_bytes()).map_err(StoreError::write(&path, text.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_and_tags_add_up_and_a_tag_can_be_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Notes::read(folder.path()).unwrap(), Notes::default());
        let tag = |tag: &str| Remark::Tag(tag.into());
        append(folder.path(), &[tag("a"), tag("b"), Remark::Note("line\none \"1\"".into())]).unwrap();
        append(folder.path(), &[tag("b"), Remark::Untag("a".into()), Remark::Note("two".into())]).unwrap();
        let notes = Notes::read(folder.path()).unwrap();
        assert_eq!(notes.tags.into_iter().collect::<Vec<_>>(), ["b"]);
        assert_eq!(notes.notes, ["line\none \"1\"", "two"]);
    }

    #[test]
    fn an_unfinished_line_is_left_out_and_a_foreign_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = RunPaths::new(folder.path()).notes();
        std::fs::write(&path, "{\"note\":\"a\"}\n{\"note\":\"b").unwrap();
        assert_eq!(Notes::read(folder.path()).unwrap().notes, ["a"]);
        append(folder.path(), &[Remark::Note("c".into())]).unwrap();
        let error = Notes::read(folder.path()).unwrap_err().to_string();
        assert!(error.contains("notes.jsonl` line 2") && error.contains("hint: "), "{error}");
        std::fs::write(&path, "{\"mote\":\"a\"}\n").unwrap();
        let error = Notes::read(folder.path()).unwrap_err().to_string();
        assert!(error.contains("line 1") && error.contains("mote"), "{error}");
    }
}
