//! A format: one entry of the table.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::content::Content;
use super::error::Result;
use super::parameters::{Parameters, Precision};
use super::slsa::SlsaError;
use super::tracker::TrackedRun;
use crate::data::Tokenizer;
use crate::experiment::{self, Model, SampleKeys};
use crate::proof::Hash;

/// A format that a run can be exported in.
pub struct Format {
    /// Its name in `--format` and in the exported folder.
    pub name: &'static str,
    /// For the help: what is written.
    pub about: &'static str,
    /// How models in it are read; none of a format that is only written.
    pub reader: Option<FormatReader>,
    pub writer: FormatWriter,
}

/// Parameters, and the SHA-256 of each file of the weights, of the very bytes that were read.
pub type HashedParameters = (Parameters, Vec<Hash>);

/// How models in a format are recognised and read. The functions take the path that the user named.
pub struct FormatReader {
    /// For messages: what such a model is, with an article.
    pub what: &'static str,
    /// Whether the content is meant to be this format; a damaged file may be recognised all the same.
    pub recognises: fn(&Path, &Content) -> bool,
    /// The model's sizes, from a header or configuration.
    pub sizes: fn(&Path) -> Result<Model>,
    pub read: fn(&Path) -> Result<HashedParameters>,
    /// The tokenizer of the model's files; none where they say nothing of it. One that is none of ours is an
    /// error.
    pub tokenizer: fn(&Path) -> Result<Option<experiment::Tokenizer>>,
    /// The files whose bytes are the weights, always in the same order.
    pub weights: fn(&Path) -> Result<Vec<PathBuf>>,
}

/// Writes a saved model into a folder that is there.
pub type WriteModel = fn(&Path, Export<'_>) -> Result<()>;

/// The text about the run in a folder, for a builder with this URI.
pub type WriteStatement = fn(&Path, &str) -> Result<String, SlsaError>;

/// How a format is written.
pub enum FormatWriter {
    /// Files of a saved model.
    Model(WriteModel),
    /// A text about a run.
    Statement(WriteStatement),
    /// The numbers and settings of a run.
    Tracker(TrackerWriter),
}

/// How the numbers and settings of runs are written for a program that keeps and compares experiments.
#[derive(Clone, Copy)]
pub struct TrackerWriter {
    /// Adds a run to a folder of runs, or replaces it there. Returns where it is.
    pub write: fn(&Path, &TrackedRun) -> Result<PathBuf>,
    /// The folder in which the program looks by itself.
    pub folder: &'static str,
    /// The command that opens or uploads such a folder, which is its last word.
    pub next: &'static str,
}

/// A saved model on its way into another program's files.
pub struct Export<'a> {
    pub parameters: Parameters,
    pub precision: Precision,
    pub tokenizer: Tokenizer,
    /// Temperature and top-k, for formats that keep defaults of generation.
    pub sample: &'a SampleKeys,
    /// Run, step and state root, for formats that hold metadata.
    pub origin: BTreeMap<String, String>,
}
