//! The weights of a folder: one safetensors file, or several that an index lists.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::formats::content::{converted, read_json, require_file};
use crate::formats::{FormatError, Result};
use crate::proof::{Hash, json};
use crate::store::{Tensor, safetensors};

/// The weights in one file.
pub const WEIGHTS: &str = "model.safetensors";
/// Which of several files holds which tensor, as `save_pretrained(max_shard_size=…)` writes it.
pub const INDEX: &str = "model.safetensors.index.json";
/// The names of other libraries' files, none of which are read.
pub const FOREIGN: [&str; 5] = [
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "tf_model.h5",
    "flax_model.msgpack",
    "rust_model.ot",
];

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The files that hold the weights: the one file if it is there, as `transformers` has it, else those of the
/// index, in order of their names.
///
/// # Errors
///
/// Neither exists, with the name of what does; an index that is damaged, or names a file outside the folder.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    if folder.join(WEIGHTS).exists() {
        return Ok(vec![folder.join(WEIGHTS)]);
    }
    if folder.join(INDEX).exists() {
        let names: BTreeSet<String> = index(folder)?.into_values().collect();
        return Ok(names.into_iter().map(|name| folder.join(name)).collect());
    }
    if let Some(name) = FOREIGN.into_iter().find(|name| folder.join(name).exists()) {
        return Err(FormatError::NotAModel {
            path: folder.into(),
            found: format!("its weights are in `{name}`"),
            hint: converted(Some(folder)),
        });
    }
    Err(FormatError::NotAModel {
        path: folder.into(),
        found: format!("it has no `{WEIGHTS}`"),
        hint: "download the weights as well as the configuration".into(),
    })
}

/// Tensor to file name.
fn index(folder: &Path) -> Result<BTreeMap<String, String>> {
    let path = folder.join(INDEX);
    parse_index(&path, &read_json(&path)?)
}

/// Tensor to file name, from an index in memory; each is the name of a file beside the index.
pub fn parse_index(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, String>> {
    let bad = |problem: String| FormatError::Config { path: path.into(), problem };
    let damaged = |e: serde_json::Error| FormatError::Damaged { path: path.into(), problem: e.to_string() };
    let Index { weight_map } = json::parse(bytes).map_err(damaged)?;
    let inside = |name: &str| Path::new(name).file_name().is_some_and(|file| file == name);
    match weight_map.iter().find(|(_, file)| !inside(file)) {
        Some((tensor, file)) => Err(bad(format!("`{tensor}` is in {file:?}, expected the name of a file"))),
        None => Ok(weight_map),
    }
}

/// Each tensor whose name is `wanted` with the file that holds it, and the others' names.
pub struct Found {
    pub tensors: Vec<(PathBuf, Tensor)>,
    pub others: Vec<(PathBuf, String)>,
    /// Of the [`files`], as they were read.
    pub sha256: Vec<Hash>,
}

/// Reads the wanted tensors of all files.
///
/// # Errors
///
/// As [`files`] and [`safetensors::read_floats`]; files that hold other tensors than the index says.
pub fn read(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<Found> {
    let files = files(folder)?;
    let mut found = Found { tensors: Vec::new(), others: Vec::new(), sha256: Vec::new() };
    for file in &files {
        require_file(file)?;
        let (floats, sha256) = safetensors::read_floats(file, &wanted)?;
        found.sha256.push(sha256);
        found.tensors.extend(floats.tensors.into_iter().map(|tensor| (file.clone(), tensor)));
        found.others.extend(floats.others.into_iter().map(|name| (file.clone(), name)));
    }
    if files != [folder.join(WEIGHTS)] {
        require_as_indexed(folder, &found)?;
    }
    Ok(found)
}

/// Refuses files that do not hold just the tensors that the index lists for them.
fn require_as_indexed(folder: &Path, found: &Found) -> Result<()> {
    let listed: BTreeSet<(PathBuf, String)> =
        index(folder)?.into_iter().map(|(tensor, file)| (folder.join(file), tensor)).collect();
    let tensors = found.tensors.iter().map(|(file, tensor)| (file.clone(), tensor.name.clone()));
    let held: BTreeSet<(PathBuf, String)> = tensors.chain(found.others.iter().cloned()).collect();
    let Some((file, tensor)) = listed.symmetric_difference(&held).next() else { return Ok(()) };
    let listed = listed.contains(&(file.clone(), tensor.clone()));
    let problem = match listed {
        true => format!("`{tensor}` is not in `{}`, though it is listed there", file.display()),
        false => format!("`{tensor}` is in `{}`, though it is not listed there", file.display()),
    };
    let hint = "hint: the index and the files belong to different models";
    Err(FormatError::Damaged { path: folder.join(INDEX), problem: format!("{problem}\n  {hint}") })
}
