//! What can be wrong with a model that comes in or goes out.

use std::path::PathBuf;

use crate::experiment::model_file::ModelFileError;
use crate::store::StoreError;

/// Why a model could not be exported, or a file not be read as one.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error(
        "parameter `{tensor}` {problem}\n  hint: these parameters and the experiment's `[model]` do not belong together"
    )]
    Parameter { tensor: String, problem: String },
    #[error("`{}` is already there\n  hint: name another folder with `--out`, or delete it", path.display())]
    Exists { path: PathBuf },
    #[error("cannot read `{}`: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("`{}` has {got} bytes, expected {expected} after its header\n  hint: {}", path.display(), if got < expected { "the file was cut short" } else { "something was written behind its end" })]
    Length { path: PathBuf, got: u64, expected: u64 },
    #[error(
        "row {row} of the token table of `{}` is padding, but holds numbers that are not 0\n  hint: they would be lost; the vocabulary in the header may be too small", path.display()
    )]
    Padding { path: PathBuf, row: usize },
    #[error(
        "`{}` is a model of {got} {what}, the experiment's has {expected}\n  hint: leave the sizes out of `[model]`, and they are the file's", path.display()
    )]
    Sizes { path: PathBuf, what: &'static str, got: usize, expected: usize },
    #[error(transparent)]
    File(#[from] ModelFileError),
    #[error(transparent)]
    Store(#[from] StoreError),
}
