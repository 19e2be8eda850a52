//! Hugging Face's models: a folder that `transformers` loads, of GPT-2's blocks as `GPT2LMHeadModel`, of
//! others as [`llama`] says.
//!
//! GPT-2's `Conv1D` weights are (in, out), ours (out, in); its names begin with `transformer.`; `lm_head` is
//! tied to `wte` and not stored; the token table has no padding rows. Transposing moves bits and changes
//! none, so [`read`] gives back what [`write`] was given, in the precision written.
//!
//! [`config`] is `config.json`, [`weights`] the files of the weights, [`tokenizer_files`] the tokenizer.

mod config;
mod llama;
mod tokenizer_files;
mod values;
mod weights;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Value, json};

use super::content::Content;
use super::error::{FormatError, Result};
use super::format::{Export, FormatReader};
use super::parameters::{Parameters, Precision};
use super::parameters::{encoded, require_finite};
use crate::data::Tokenizer;
use crate::experiment::{Model, SampleKeys};
use crate::model::Weights;
use crate::proof::Hash;
use crate::store::{Tensor, atomic, safetensors};
use config::CONFIG;
use weights::{FOREIGN, INDEX, WEIGHTS};

pub use config::parse as parse_config;
pub use weights::parse_index;

const PREFIX: &str = "transformer.";
/// Tied to `wte`; a file may hold it nevertheless.
const CLASSIFIER: &str = "lm_head.weight";

/// How such folders are read.
pub(super) const READER: FormatReader = FormatReader {
    what: "a Hugging Face folder of GPT-2, Llama or Qwen3",
    recognises: |path, content| {
        let mut names = [CONFIG, WEIGHTS, INDEX].into_iter().chain(FOREIGN);
        matches!(content, Content::Folder) && names.any(|name| path.join(name).exists())
    },
    sizes: |folder| config::sizes(&folder.join(CONFIG)),
    read: read_hashed,
    tokenizer: tokenizer_files::found,
    weights: weights::files,
};

/// Writes the files of a model into `folder`, which must be there.
pub fn write(folder: &Path, export: Export<'_>) -> Result<()> {
    let Export { parameters: Parameters { model, tensors }, precision, tokenizer, sample, origin } = export;
    let pretty = |value: Value| format!("{value:#}\n").into_bytes();
    let configuration = config::of(&model, precision, &tokenizer).ok_or_else(|| no_architecture(&model))?;
    let mut files = vec![
        (CONFIG, pretty(configuration)),
        ("generation_config.json", pretty(generation_config(&tokenizer, sample))),
    ];
    files.extend(tokenizer_files::files(&tokenizer, &model));
    for (name, bytes) in files {
        atomic::write(&folder.join(name), &bytes)?;
    }
    let ours = tensors.into_tensors().into_iter().map(|tensor| in_precision(tensor, precision));
    let theirs: Vec<Tensor> = match llama::model_type(&model) {
        Some(_) => llama::to_theirs(&model, ours.collect()),
        // One by one, so that of a large model little more than one copy is in memory.
        None => ours.map(to_theirs).collect(),
    };
    // `transformers` refuses a file that does not say "pt".
    let mut metadata = origin;
    metadata.insert("format".into(), "pt".into());
    safetensors::write(&folder.join(WEIGHTS), &theirs, &metadata)?;
    Ok(())
}

/// The architecture that holds a model's blocks; none of blocks that none has.
pub fn architecture(model: &Model) -> Option<&'static str> {
    match llama::model_type(model) {
        Some("qwen3") => Some("Qwen3ForCausalLM"),
        Some(_) => Some("LlamaForCausalLM"),
        None => model.has_gpt2_blocks().then_some("GPT2LMHeadModel"),
    }
}

/// Refuses a model of blocks that no architecture has, by the keys in which it is not of the nearest.
fn no_architecture(model: &Model) -> FormatError {
    let gpt2 = Model::gpt2(1, 1, 1, 1, 1);
    let llama = llama::nearest(model);
    let nearest = [gpt2, llama].into_iter().min_by_key(|other| model.parts_beside(other).len());
    let nearest = nearest.expect("there are two");
    let name = architecture(&nearest).expect("it is of one");
    let trained = nearest.parts_beside(model).join(", ");
    FormatError::Blocks {
        format: "a Hugging Face folder",
        parts: model.parts_beside(&nearest).join(", "),
        hint: format!("the nearest is `{name}`: a model trained with {trained} is exported as one"),
    }
}

/// Reads the parameters of a folder that [`write`] made, or another of these architectures: OpenAI's, or what
/// `save_pretrained` wrote, in one file or several, each tensor in F32, BF16 or F16 (widened to F32).
///
/// # Errors
///
/// Files that are missing or damaged, sizes that `config.json` does not give, tensors that do not fit them or
/// are not finite, tensors that GPT-2 does not have, or a classifier that is not the token table.
pub fn read(folder: &Path) -> Result<Parameters> {
    read_hashed(folder).map(|(parameters, _)| parameters)
}

/// [`read`], with the SHA-256 of each file of the weights as it was read.
fn read_hashed(folder: &Path) -> Result<(Parameters, Vec<Hash>)> {
    let model = config::sizes(&folder.join(CONFIG))?;
    if llama::model_type(&model).is_some() {
        return read_llama(folder, &model);
    }
    let names: BTreeSet<String> = Weights::of(&model).iter().map(|spec| spec.name.clone()).collect();
    let found = weights::read(folder, |name| name == CLASSIFIER || names.contains(bare(name)))?;
    if let Some((file, name)) = found.others.into_iter().find(|(_, name)| !is_mask(bare(name), &model)) {
        return Err(FormatError::Unused { path: file, tensor: name });
    }
    let mut state: BTreeMap<String, Tensor> = BTreeMap::new();
    for (file, tensor) in found.tensors {
        require_finite(&file, [&tensor])?;
        let name = bare(&tensor.name).to_owned();
        if state.insert(name.clone(), flipped(Tensor { name: name.clone(), ..tensor })).is_some() {
            let problem = format!("is given twice, with and without `{PREFIX}`");
            return Err(FormatError::Parameter { path: file, tensor: name, problem });
        }
    }
    let classifier = state.remove(CLASSIFIER);
    let parameters = Parameters::of_state(folder, &model, state.into_values().collect())?;
    if let Some(classifier) = classifier {
        require_tied(folder, &classifier, &parameters.tensors.wte)?;
    }
    Ok((parameters, found.sha256))
}

/// [`read_hashed`] of Llama or Qwen3.
fn read_llama(folder: &Path, model: &Model) -> Result<(Parameters, Vec<Hash>)> {
    let names: BTreeSet<String> = llama::tensors(model).into_iter().map(|moved| moved.theirs).collect();
    let found = weights::read(folder, |name| name == CLASSIFIER || names.contains(name))?;
    if let Some((file, name)) = found.others.into_iter().next() {
        return Err(FormatError::Unused { path: file, tensor: name });
    }
    let mut theirs: BTreeMap<String, Tensor> = BTreeMap::new();
    for (file, tensor) in found.tensors {
        require_finite(&file, [&tensor])?;
        theirs.insert(tensor.name.clone(), tensor);
    }
    let classifier = if model.tied_head { theirs.remove(CLASSIFIER) } else { None };
    let parameters = Parameters::of_state(folder, model, llama::to_ours(folder, model, theirs)?)?;
    if let Some(classifier) = classifier {
        require_tied(folder, &classifier, &parameters.tensors.wte)?;
    }
    Ok((parameters, found.sha256))
}

/// A tensor's name without the prefix that a model saved without its classifier lacks.
fn bare(name: &str) -> &str {
    name.strip_prefix(PREFIX).unwrap_or(name)
}

/// Whether a tensor is the causal mask of a layer or the number at its masked positions: constants
/// that older files hold.
fn is_mask(name: &str, model: &Model) -> bool {
    let layer = name.strip_prefix("h.").and_then(|rest| rest.split_once('.'));
    layer.is_some_and(|(layer, rest)| {
        layer.parse().is_ok_and(|layer: usize| layer < model.layers)
            && (rest == "attn.bias" || rest == "attn.masked_bias")
    })
}

/// Refuses a classifier with other numbers than the token table: GPT-2's are one.
fn require_tied(folder: &Path, classifier: &Tensor, wte: &Tensor) -> Result<()> {
    let bits = |tensor| encoded(tensor, Precision::Fp32);
    if classifier.shape == wte.shape && bits(classifier) == bits(wte) {
        return Ok(());
    }
    let problem = "differs from the token table, which it is tied to".into();
    Err(FormatError::Parameter { path: folder.into(), tensor: CLASSIFIER.into(), problem })
}

fn in_precision(tensor: Tensor, precision: Precision) -> Tensor {
    let bytes = match encoded(&tensor, precision) {
        Cow::Owned(bytes) => bytes,
        Cow::Borrowed(_) => tensor.bytes,
    };
    Tensor { dtype: precision.dtype(), bytes, ..tensor }
}

fn to_theirs(tensor: Tensor) -> Tensor {
    let name = format!("{PREFIX}{}", tensor.name);
    flipped(Tensor { name, ..tensor })
}

/// The tensor transposed if it is the weight of a `Conv1D`: every matrix but the two tables.
fn flipped(tensor: Tensor) -> Tensor {
    let tables = ["wte.weight", "wpe.weight", CLASSIFIER];
    let table = tables.iter().any(|table| tensor.name.ends_with(table));
    match tensor.shape[..] {
        [rows, columns] if !table => {
            let bytes = match tensor.dtype.size() {
                2 => transposed::<2>(&tensor.bytes, rows, columns),
                _ => transposed::<4>(&tensor.bytes, rows, columns),
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

fn generation_config(tokenizer: &Tokenizer, sample: &SampleKeys) -> Value {
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
