//! What is at a path that should be a model, checked before anything is read as one.
//!
//! Other files (a web server's page, a Git LFS pointer, a file that is still compressed) are refused as what
//! they are, with the command that helps.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

use super::error::{FormatError, Result};
use crate::proof::regular;
use crate::store::RunPaths;
use crate::store::checkpoint::MANIFEST_FILE;
use crate::store::run_folder::is_copy;

/// Bytes of a file that are examined.
const START_BYTES: u64 = 1024;

/// What is at a path.
pub enum Content {
    Folder,
    /// A plain file, and its first bytes.
    File(Vec<u8>),
}

/// Examines a path without blocking: a pipe is not opened.
///
/// # Errors
///
/// Nothing is there, it cannot be read, or it is a pipe, socket or device.
pub fn look(path: &Path) -> Result<Content> {
    let io = |source| FormatError::Io { path: path.into(), source };
    let kind = fs::metadata(path).map_err(io)?.file_type();
    if kind.is_dir() {
        return Ok(Content::Folder);
    }
    if !kind.is_file() {
        return Err(FormatError::NotAModel {
            path: path.into(),
            found: "it is a pipe, a socket or a device".into(),
            hint: "a model is read more than once: save it as a file first".into(),
        });
    }
    let mut start = Vec::new();
    File::open(path).map_err(io)?.take(START_BYTES).read_to_end(&mut start).map_err(io)?;
    Ok(Content::File(start))
}

/// Refuses what is certainly not a model's file. The first check of every file that a format reads.
///
/// # Errors
///
/// As [`look`]; a folder; a file that [`mistaken`] knows.
pub fn require_file(path: &Path) -> Result<()> {
    let refuse = |found: String, hint: String| FormatError::NotAModel { path: path.into(), found, hint };
    match look(path)? {
        Content::Folder => Err(refuse("it is a folder, expected a file".into(), "give the file".into())),
        Content::File(start) => match mistaken(path, &start) {
            Some((found, hint)) => Err(refuse(found.into(), hint)),
            None => Ok(()),
        },
    }
}

/// Bytes of the longest JSON of a model that is read: a tokenizer of 262,144 tokens has half as many.
const LONGEST_JSON: u64 = 64 << 20;

/// The bytes of a JSON file of a model.
///
/// # Errors
///
/// As [`require_file`]; it is far too long.
pub fn read_json(path: &Path) -> Result<Vec<u8>> {
    require_file(path)?;
    regular::read_within(path, LONGEST_JSON).map_err(|source| FormatError::Io { path: path.into(), source })
}

/// What a file is that begins with `start`, if that is a common mistake, and what to do.
pub fn mistaken(path: &Path, start: &[u8]) -> Option<(&'static str, String)> {
    if is_safetensors(start) {
        // First, because the length at their start may look like one of the marks below.
        return None;
    }
    let shown = quoted(path);
    let text = String::from_utf8_lossy(&start[..start.len().min(64)]).trim_start().to_ascii_lowercase();
    if start.starts_with(b"version https://git-lfs") {
        let hint = "`git lfs pull` in its repository fetches the file that it stands for";
        return Some(("it is a Git LFS pointer", hint.into()));
    }
    if ["<!doctype html", "<html", "<?xml"].iter().any(|tag| text.starts_with(tag)) {
        let hint = "a web server's answer was saved in place of the file: download it again";
        return Some(("it is a web page (HTML or XML)", hint.into()));
    }
    let packed = |with: &'static str, command: &str| {
        (with, format!("unpack it first: `{command} {shown} > unpacked`, and give that file"))
    };
    match start {
        [0x1f, 0x8b, ..] => Some(packed("it is compressed with gzip", "gzip -dc")),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(packed("it is compressed with zstd", "zstd -dc")),
        [b'P', b'K', 3, 4, ..] | [0x80, 2..=5, ..] => {
            Some(("it is a file of PyTorch", converted(path.parent())))
        }
        [0x89, b'H', b'D', b'F', ..] => {
            Some(("it is a file of HDF5, as TensorFlow writes it", converted(path.parent())))
        }
        [b'G', b'G', b'U', b'F', ..] => {
            Some(("it is a model in GGUF", "take the Hugging Face folder that it was made from".into()))
        }
        _ if start.get(257..262) == Some(b"ustar") => {
            Some(("it is a tar archive", format!("unpack it first: `tar -xf {shown}`")))
        }
        _ => None,
    }
}

/// The command that turns the other files of a Hugging Face folder into safetensors.
pub fn converted(folder: Option<&Path>) -> String {
    let folder = folder.filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = folder.display();
    format!(
        "only safetensors are read; this makes them: `python -c \"from transformers import GPT2LMHeadModel \
         as M; M.from_pretrained('{folder}').save_pretrained('{folder}/safetensors')\"`"
    )
}

/// The error for a path that no format recognises: what it is instead, and what to do. `models` names the
/// formats that are read.
pub fn not_a_model(path: &Path, content: &Content, models: &str) -> FormatError {
    let (found, hint) = match content {
        Content::Folder => folder(path, models),
        Content::File(start) => match mistaken(path, start) {
            Some((found, hint)) => (found.to_owned(), hint),
            None => file(path, start, models),
        },
    };
    FormatError::NotAModel { path: path.into(), found, hint }
}

fn folder(path: &Path, models: &str) -> (String, String) {
    let (found, hint) = if is_copy(path) && RunPaths::new(path).experiment().is_file() {
        let there = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let copies = quoted(there.parent().unwrap_or(&there));
        ("it is the copy of a checkpoint", format!("`runner resume {copies}` brings its run back"))
    } else if RunPaths::new(path).experiment().is_file() {
        (
            "it is the folder of a run",
            format!(
                "`model.init` takes a checkpoint, `run:NAME@STEP` or `run:NAME`; `runner export {} --format \
                 hf` writes the model",
                quoted(path)
            ),
        )
    } else if path.join(MANIFEST_FILE).is_file() {
        let hint = "`sample`, `eval` and `export` take the run, and the step with `--checkpoint`";
        ("it is a checkpoint of a run", hint.to_owned())
    } else {
        ("it is a folder without `config.json`", format!("a model is {models}"))
    };
    (found.to_owned(), hint)
}

fn file(path: &Path, start: &[u8], models: &str) -> (String, String) {
    let folder = path.parent().unwrap_or(Path::new("."));
    match start {
        [] => ("it is empty".into(), "nothing was written to it".into()),
        _ if is_safetensors(start) && folder.join(MANIFEST_FILE).is_file() => self::folder(folder, models),
        _ if is_safetensors(start) => (
            "it is safetensors, which do not say the sizes of a model".into(),
            format!("give the folder with its `config.json`: {}", quoted(folder)),
        ),
        [b'{', ..] => ("it is JSON".into(), format!("give the folder that it is in: {}", quoted(folder))),
        _ => {
            let first: Vec<String> = start.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
            let found = format!("it begins with the bytes {}, as no model does", first.join(" "));
            (found, format!("a model is {models}"))
        }
    }
}

/// Whether a file begins as safetensors do: the length of the header in 8 bytes, then its JSON.
fn is_safetensors(start: &[u8]) -> bool {
    matches!(start, [_, _, _, _, _, 0, 0, 0, b'{', ..])
}

/// A path quoted for a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_s_length_is_not_taken_for_the_mark_of_another_format() {
        // 640 bytes of header begin like a pickle, 35,615 like gzip.
        for length in [640u64, 35_615] {
            let start = [&length.to_le_bytes()[..], b"{\"a\":{}}"].concat();
            assert_eq!(mistaken(Path::new("x"), &start), None);
            assert!(mistaken(Path::new("x"), &start[..8]).is_some());
        }
    }

    #[test]
    fn commands_in_hints_quote_what_a_shell_would_split() {
        assert_eq!(quoted(Path::new("a/b-1.bin")), "a/b-1.bin");
        assert_eq!(quoted(Path::new("my model's.bin")), r"'my model'\''s.bin'");
    }
}
