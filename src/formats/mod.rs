//! A trained model in other programs' files, both ways, the statement of how a run was made, and a run's
//! numbers for programs that compare experiments.
//!
//! [`FORMATS`] lists every format: what `--format` calls it, how its files are recognised by content, and the
//! functions that read and write them. `export`, `model.init`, `sample PATH`, `eval PATH` and their help walk
//! this table. A format is a file or folder of this module and its line here.
//!
//! Models pass through [`Parameters`]. Written and read again, a file has the same bytes, and the parameters
//! the same bits. Nothing here trains or computes: tests show that the other program computes the same.
//! [`slsa`] is only written, and reads a run: it says what was made, of what and how. [`mlflow`] and
//! [`wandb`] are only written too, of a [`tracker::TrackedRun`].

#![forbid(unsafe_code)]

mod content;
mod error;
mod format;
pub mod hf;
pub mod llmc;
pub mod mlflow;
mod parameters;
pub mod slsa;
pub mod tracker;
pub mod wandb;

use std::path::{Path, PathBuf};

pub use content::Content;
pub use error::{FormatError, Result};
pub use format::{Export, Format, FormatReader, FormatWriter, TrackerWriter, WriteModel, WriteStatement};
pub use parameters::{Parameters, Precision, require_finite, require_sizes, values};

use sha2::{Digest, Sha256};

use crate::experiment::{Model, Tokenizer};
use crate::proof::{Hash, regular};

/// Every format, in the order of the help.
pub static FORMATS: [Format; 5] = [
    Format {
        name: "hf",
        about: "A folder for `transformers`: safetensors, configuration, tokenizer",
        reader: Some(hf::READER),
        writer: FormatWriter::Model(hf::write),
    },
    Format {
        name: "llmc",
        about: "llm.c's `model.bin`: version 3 for fp32, 5 for bf16",
        reader: Some(llmc::READER),
        writer: FormatWriter::Model(|folder, export| {
            llmc::write(&folder.join("model.bin"), &export.parameters, export.precision).map(drop)
        }),
    },
    Format {
        name: "slsa",
        about: "An in-toto statement with SLSA provenance v1, of the newest checkpoint",
        reader: None,
        writer: FormatWriter::Statement(|run, builder| Ok(format!("{:#}\n", slsa::statement(run, builder)?))),
    },
    Format {
        name: "mlflow",
        about: "Settings and numbers for MLflow's file store, of a run or a sweep",
        reader: None,
        writer: FormatWriter::Tracker(TrackerWriter {
            write: mlflow::write,
            folder: "mlruns",
            next: "MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri",
        }),
    },
    Format {
        name: "wandb",
        about: "Settings and numbers for Weights & Biases, as runs to upload",
        reader: None,
        writer: FormatWriter::Tracker(TrackerWriter {
            write: wandb::write,
            folder: "wandb",
            next: "wandb sync",
        }),
    },
];

/// The formats that are read.
fn readers() -> impl Iterator<Item = &'static FormatReader> {
    FORMATS.iter().filter_map(|format| format.reader.as_ref())
}

/// For messages and help: which models are read.
pub fn models_read() -> String {
    readers().map(|reader| reader.what).collect::<Vec<_>>().join(", or ")
}

/// A model in another program's files: recognised, not read.
#[derive(Clone)]
pub struct ForeignModel {
    path: PathBuf,
    reader: &'static FormatReader,
}

impl ForeignModel {
    /// Finds out by content which format a path holds.
    ///
    /// # Errors
    ///
    /// Nothing is there, or no format's model.
    pub fn open(path: &Path) -> Result<ForeignModel> {
        let content = content::look(path)?;
        match readers().find(|reader| (reader.recognises)(path, &content)) {
            Some(reader) => Ok(ForeignModel { path: path.into(), reader }),
            None => Err(content::not_a_model(path, &content, &models_read())),
        }
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model's sizes, without its weights.
    pub fn sizes(&self) -> Result<Model> {
        (self.reader.sizes)(&self.path)
    }

    /// The tokenizer of its tokens, of which there are `vocab`: by its files, or else by that number.
    ///
    /// # Errors
    ///
    /// It is none of ours; files that cannot be read.
    pub fn tokenizer(&self, vocab: usize) -> Result<Tokenizer> {
        let by_size = || {
            Tokenizer::of_vocab(vocab).ok_or_else(|| FormatError::Tokenizer {
                path: self.path.clone(),
                problem: format!(
                    "its vocabulary of {vocab} is of no tokenizer here: that of bytes has 257 tokens, \
                     GPT-2's 50257, padded to 50304 at most"
                ),
            })
        };
        (self.reader.tokenizer)(&self.path)?.map_or_else(by_size, Ok)
    }

    /// The parameters, whose sizes must be those of `model`, and [`ForeignModel::sha256`] of what was read.
    pub fn read(&self, model: &Model) -> Result<(Parameters, [u8; 32])> {
        let (parameters, digests) = (self.reader.read)(&self.path)?;
        parameters.require(model, &self.path)?;
        Ok((parameters, joined(&digests)))
    }

    /// SHA-256 of the file that holds the weights; of several files, that of their digests one after another.
    pub fn sha256(&self) -> Result<[u8; 32]> {
        let files = (self.reader.weights)(&self.path)?;
        let hash = |path: PathBuf| regular::sha256(&path).map_err(|source| FormatError::Io { path, source });
        let digests: Result<Vec<Hash>> = files.into_iter().map(hash).collect();
        Ok(joined(&digests?))
    }
}

fn joined(digests: &[Hash]) -> [u8; 32] {
    match digests {
        [Hash(digest)] => *digest,
        digests => Sha256::digest(digests.iter().flat_map(|digest| digest.0).collect::<Vec<u8>>()).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::parameters::sample_parameters;
    use crate::ops::Dtype;

    /// Else another file might be trained on than the lock names.
    #[test]
    fn the_digest_that_comes_with_parameters_is_of_the_files_that_they_were_read_from() {
        let folder = tempfile::tempdir().expect("a folder");
        let model = folder.path().join("model.bin");
        llmc::write(&model, &sample_parameters(Dtype::F32), Precision::Fp32).expect("written");
        let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
        for path in [model, cases.join("hf_good"), cases.join("hf_sharded"), cases.join("hf_fp16")] {
            let foreign = ForeignModel::open(&path).expect("a model");
            let sizes = foreign.sizes().expect("sizes");
            let (_, sha256) = foreign.read(&sizes).expect("readable");
            assert_eq!(sha256, foreign.sha256().expect("readable"), "{}", path.display());
        }
    }
}
