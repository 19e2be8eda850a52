//! Hugging Face's GPT-2: a folder that `transformers` loads as `GPT2LMHeadModel`.
//!
//! Its `Conv1D` weights are (in, out), ours (out, in); its names begin with `transformer.`; `lm_head` is tied
//! to `wte` and not stored; the token table has no padding rows. Transposing moves bits and changes none, so
//! [`read`] gives back what [`write`] was given, in the precision written.
//!
//! [`config`] is `config.json`, [`tokenizer_files`] the tokenizer.

mod config;
mod tokenizer_files;

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use super::parameters::encoded;
use super::{Content, Export, FormatError, Parameters, Precision, Reader, Result};
use crate::data::Tokenizer;
use crate::experiment::Sample;
use crate::model::Weights;
use crate::store::{Tensor, atomic, safetensors};
use config::CONFIG;

const PREFIX: &str = "transformer.";
const WEIGHTS: &str = "model.safetensors";
/// Tied to `wte`; a file may hold it nevertheless.
const CLASSIFIER: &str = "lm_head.weight";

/// How such folders are read.
pub(super) const READER: Reader = Reader {
    what: "a Hugging Face folder of GPT-2",
    recognises: |path, content| matches!(content, Content::Folder) && path.join(CONFIG).exists(),
    sizes: |folder| config::sizes(&folder.join(CONFIG)),
    read,
    weights: |folder| folder.join(WEIGHTS),
};

/// Writes the files of a model into `folder`, which must be there.
pub fn write(folder: &Path, export: Export<'_>) -> Result<()> {
    let Export { parameters: Parameters { model, tensors }, precision, tokenizer, sample, origin } = export;
    let pretty = |value: Value| format!("{value:#}\n").into_bytes();
    let mut files = vec![
        (CONFIG, pretty(config::of(&model, precision, &tokenizer))),
        ("generation_config.json", pretty(generation_config(&tokenizer, sample))),
    ];
    files.extend(tokenizer_files::files(&tokenizer, &model));
    for (name, bytes) in files {
        atomic::write(&folder.join(name), &bytes)?;
    }
    // One by one, so that of a large model little more than one copy is in memory.
    let Weights { wte, wpe, layers, ln_f } = tensors;
    let affines =
        layers.into_iter().flat_map(|l| [l.ln_1, l.qkv, l.attn_proj, l.ln_2, l.fc, l.fc_proj]).chain([ln_f]);
    let ours = [wte, wpe].into_iter().chain(affines.flat_map(|affine| [affine.weight, affine.bias]));
    let theirs: Vec<Tensor> = ours.map(|tensor| to_theirs(tensor, precision)).collect();
    // `transformers` refuses a file that does not say "pt".
    let mut metadata = origin;
    metadata.insert("format".into(), "pt".into());
    safetensors::write(&folder.join(WEIGHTS), &theirs, &metadata)?;
    Ok(())
}

/// Reads the parameters of a folder that [`write`] made, or another of GPT-2 in F32 or BF16: OpenAI's, or
/// what `save_pretrained` wrote. Tensors that are no parameters of ours (masks of attention) are not read.
///
/// # Errors
///
/// Files that are missing or damaged, sizes that `config.json` does not give, tensors that do not fit them,
/// or a classifier that is not the token table.
pub fn read(folder: &Path) -> Result<Parameters> {
    let model = config::sizes(&folder.join(CONFIG))?;
    let path = folder.join(WEIGHTS);
    let ours: BTreeSet<String> = Weights::of(&model).iter().map(|spec| spec.name.clone()).collect();
    let bare = |name: &str| name.strip_prefix(PREFIX).unwrap_or(name).to_owned();
    let theirs = safetensors::read_some(&path, |name| name == CLASSIFIER || ours.contains(&bare(name)))?;
    let (classifier, theirs): (Vec<Tensor>, Vec<Tensor>) =
        theirs.into_iter().partition(|tensor| tensor.name == CLASSIFIER);
    let parameters = Parameters::of_state(&path, &model, theirs.into_iter().map(to_ours).collect())?;
    if classifier.iter().any(|tensor| tensor.bytes != parameters.tensors.wte.bytes) {
        let problem = "differs from `wte.weight`: GPT-2's classifier is its token table".into();
        return Err(FormatError::Parameter { path, tensor: CLASSIFIER.into(), problem });
    }
    Ok(parameters)
}

fn to_theirs(tensor: Tensor, precision: Precision) -> Tensor {
    let bytes = match encoded(&tensor, precision) {
        std::borrow::Cow::Owned(bytes) => bytes,
        std::borrow::Cow::Borrowed(_) => tensor.bytes,
    };
    let name = format!("{PREFIX}{}", tensor.name);
    flipped(Tensor { name, dtype: precision.dtype(), shape: tensor.shape, bytes })
}

fn to_ours(tensor: Tensor) -> Tensor {
    let name = tensor.name.strip_prefix(PREFIX).unwrap_or(&tensor.name).to_owned();
    flipped(Tensor { name, ..tensor })
}

/// The tensor transposed if it is the weight of a `Conv1D`: every matrix but the two tables.
fn flipped(tensor: Tensor) -> Tensor {
    let table = tensor.name.ends_with("wte.weight") || tensor.name.ends_with("wpe.weight");
    match tensor.shape[..] {
        [rows, columns] if !table => {
            let bytes = match tensor.dtype.size() {
                2 => transposed::<2>(&tensor.bytes, rows, columns),
                4 => transposed::<4>(&tensor.bytes, rows, columns),
                _ => transposed::<8>(&tensor.bytes, rows, columns),
            };
            Tensor { shape: vec![columns, rows], bytes, ..tensor }
        }
        _ => tensor,
    }
}

/// A row-major matrix of elements of `SIZE` bytes as its transpose.
fn transposed<const SIZE: usize>(bytes: &[u8], rows: usize, columns: usize) -> Vec<u8> {
    let elements = bytes.as_chunks::<SIZE>().0;
    let mut out = Vec::with_capacity(bytes.len());
    for column in 0..columns {
        for row in 0..rows {
            out.extend_from_slice(&elements[row * columns + column]);
        }
    }
    out
}

fn generation_config(tokenizer: &Tokenizer, sample: &Sample) -> Value {
    let mut config = json!({
        "bos_token_id": tokenizer.eot(),
        "eos_token_id": tokenizer.eot(),
        "pad_token_id": tokenizer.eot(),
        "do_sample": sample.temperature > 0.0,
    });
    if sample.temperature > 0.0 {
        config["temperature"] = sample.temperature.into();
        config["top_k"] = sample.top_k.into();
    }
    config
}

#[cfg(test)]
mod tests;
