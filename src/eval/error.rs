//! Errors of an evaluation: in the file of tasks, the checkpoint, or the model itself.

use std::path::PathBuf;

use crate::data::DataError;
use crate::ops::DeviceError;

/// Why a model could not be scored.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    #[error(
        "cannot read `{}`: {reason}\n  hint: HellaSwag's validation set is the jsonl file that \
         `eval.hellaswag` names; `runner data fetch hellaswag --out data` fetches it", path.display()
    )]
    Io { path: PathBuf, reason: std::io::Error },
    #[error("`{}` has no tasks: {found}", path.display())]
    Empty { path: PathBuf, found: &'static str },

    #[error(
        "cannot read `{}`: {reason}\n  hint: `FILE` in `--task NAME=FILE` is a jsonl file with the fields of \
         Hugging Face's data set `{data_set}`", path.display()
    )]
    Unread { path: PathBuf, data_set: &'static str, reason: std::io::Error },

    // ---- jsonl ----
    #[error(transparent)]
    Data(#[from] DataError),
    #[error("`{}` line {line} is not {of}: {why}", path.display())]
    Line { path: PathBuf, line: usize, of: &'static str, why: String },

    // ---- llm.c's file ----
    #[error("`{}` is damaged at byte {byte}: expected {expected}, got {got}", path.display())]
    Damaged { path: PathBuf, byte: usize, expected: String, got: String },

    // ---- any file, against the model ----
    #[error(
        "`{}` {place} holds token {token}, expected less than {vocab}, which the model's \
         vocabulary and the file's tokenizer have\n  hint: llm.c's files hold GPT-2 tokens; a model of \
         another tokenizer needs the jsonl",
        path.display()
    )]
    OutOfVocabulary { path: PathBuf, place: String, token: u16, vocab: usize },
    #[error(
        "`{}` {place}: a completion of {tokens} tokens does not fit sequences of {limit}\n  hint: raise \
         `batch.seq_len`, or leave this task out for so short a model",
        path.display()
    )]
    TooLong { path: PathBuf, place: String, tokens: usize, limit: usize },
    #[error(
        "`{}` {place} has no context: nothing but white space stands before what is scored\n  hint: white \
         space belongs to the word behind it; remove it or the task, or put text before it",
        path.display()
    )]
    NoContext { path: PathBuf, place: String },
    #[error("the model has room for {capacity} tokens a sequence, the tasks need {limit}")]
    Capacity { capacity: usize, limit: usize },

    // ---- scoring ----
    #[error(
        "the loss of `{}` {place}, completion {completion}, token {token} is {loss}: the weights are \
         broken, and a score would mean nothing",
        path.display()
    )]
    NotFinite { path: PathBuf, place: String, completion: usize, token: usize, loss: f32 },
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Exchange(#[from] crate::parallel::ExchangeError),

    // ---- checkpoints ----
    #[error(
        "the saved parameter `{tensor}` {problem}\n  hint: the experiment is not the one that was trained"
    )]
    Parameter { tensor: String, problem: String },
}
