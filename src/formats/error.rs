//! Errors of reading and writing models.

use std::path::PathBuf;

use crate::store::StoreError;

/// The result of everything in [`super`].
pub type Result<T, E = FormatError> = std::result::Result<T, E>;

/// Why a model could not be exported, or a file not be read as one. Every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    // ---- files ----
    #[error("cannot read `{}`: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("`{}` is no model: {found}\n  hint: {hint}", path.display())]
    NotAModel { path: PathBuf, found: String, hint: String },
    #[error(
        "`{}` has {got} bytes, its header alone has {expected}\n  hint: the file was cut short",
        path.display()
    )]
    CutShort { path: PathBuf, got: usize, expected: usize },
    #[error(
        "`{}` has {got} bytes, expected {expected} by its header\n  hint: {}", path.display(),
        if got < expected { "the file was cut short" } else { "something was written behind its end" }
    )]
    Length { path: PathBuf, got: u64, expected: u64 },
    #[error("`{}` is already there\n  hint: name another folder with `--out`, or delete it", path.display())]
    Exists { path: PathBuf },
    #[error("cannot write `{}`: {source}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error(
        "`{}` is not {what}, and not empty\n  hint: name another folder with `--out`; a new one is made",
        path.display()
    )]
    NotAStore { path: PathBuf, what: &'static str },
    #[error(transparent)]
    Store(#[from] StoreError),

    // ---- what a file says of the model ----
    #[error("`{}`: {problem}", path.display())]
    Config { path: PathBuf, problem: String },
    #[error("`{}`: {problem}", path.display())]
    Damaged { path: PathBuf, problem: String },
    #[error("`{}` is no model of llm.c: {what} at byte {byte} is {got}, expected {expected}", path.display())]
    Header { path: PathBuf, what: &'static str, byte: usize, got: i64, expected: String },
    #[error(
        "`{}` is a model of {got} {what}, the experiment's has {expected}\n  hint: leave the sizes out of \
         `[model]`, and they are the file's", path.display()
    )]
    Sizes { path: PathBuf, what: &'static str, got: usize, expected: usize },
    #[error(
        "`{}` is a model with `{key}` = {got}, the experiment's has {expected}\n  hint: leave the key out of \
         `[model]`, and it is the file's", path.display()
    )]
    Part { path: PathBuf, key: &'static str, got: serde_json::Value, expected: serde_json::Value },
    #[error("{format} cannot hold this model: {parts}\n  hint: {hint}")]
    Blocks { format: &'static str, parts: String, hint: String },

    #[error(
        "`{}`: {problem}\n  hint: text would become other tokens than the model has learned; \
         `data.tokenizer`, \"gpt2\" or \"byte\", says which all the same (`--set data.tokenizer=gpt2`)",
        path.display()
    )]
    Tokenizer { path: PathBuf, problem: String },

    // ---- parameters ----
    #[error(
        "tensor `{tensor}` in `{}` holds {} at {index:?}, element {element} of {elements}\n  hint: its \
         training diverged, or the file is damaged; nothing can be computed with it",
        path.display(),
        not_finite(*value)
    )]
    NotFinite {
        path: PathBuf,
        tensor: String,
        /// The place in the tensor as it is stored, and the same counted in row-major order from 0.
        index: Vec<usize>,
        element: usize,
        elements: usize,
        value: f64,
    },
    #[error(
        "`{}` holds the tensor `{tensor}`, which its model does not have\n  hint: it is a model of another \
         architecture, or of other sizes than its `config.json` says", path.display()
    )]
    Unused { path: PathBuf, tensor: String },
    #[error("`{}`: parameter `{tensor}` {problem}", path.display())]
    Parameter { path: PathBuf, tensor: String, problem: String },
    #[error(
        "row {row} of the token table of `{}` is padding, but holds numbers that are not 0\n  hint: they \
         would be lost; the vocabulary in the header may be too small", path.display()
    )]
    Padding { path: PathBuf, row: usize },
}

impl FormatError {
    /// Whether a file of a model is not what was written: cut short, changed, or with a header that does not
    /// fit what follows. A file of another kind is whole, and so is one with numbers that are not finite.
    pub fn is_damage(&self) -> bool {
        match self {
            FormatError::CutShort { .. }
            | FormatError::Length { .. }
            | FormatError::Damaged { .. }
            | FormatError::Padding { .. } => true,
            // The first two words, magic and version, say which kind of file it is.
            FormatError::Header { byte, .. } => *byte >= 8,
            // Tensors of another type are another kind of model, and a file that is gone is not there.
            FormatError::Store(StoreError::BadTensorOf { .. } | StoreError::Missing { .. }) => false,
            FormatError::Store(error) => error.is_damage(),
            _ => false,
        }
    }
}

/// The name of a number that is not finite.
fn not_finite(value: f64) -> &'static str {
    if value.is_nan() {
        "NaN"
    } else if value > 0.0 {
        "infinity"
    } else {
        "minus infinity"
    }
}
