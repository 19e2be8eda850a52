//! Hugging Face's GPT-2: a folder that `transformers` loads as `GPT2LMHeadModel`.
//!
//! Its `Conv1D` weights are (in, out), ours (out, in); its names begin with `transformer.`; `lm_head` is tied
//! to `wte` and not stored; the token table has no padding rows. Transposing moves bits and changes none, so
//! [`read`] gives back what [`write`] was given, in the precision written.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{ExportError, Parameters, Precision, Result, encoded, tokenizer_files};
use crate::data::Tokenizer;
use crate::experiment::model_file::{self, CONFIG};
use crate::experiment::{Model, Sample};
use crate::model::Weights;
use crate::store::{Tensor, atomic, safetensors};

const PREFIX: &str = "transformer.";
const WEIGHTS: &str = "model.safetensors";
/// Tied to `wte`; a file may hold it nevertheless.
const CLASSIFIER: &str = "lm_head.weight";

/// What a folder says besides the parameters.
#[derive(Clone, Debug)]
pub struct About<'a> {
    pub tokenizer: Tokenizer,
    /// Gives `generation_config.json` its temperature and top-k.
    pub sample: &'a Sample,
    /// Where the model comes from: goes into the metadata of the safetensors file.
    pub origin: BTreeMap<String, String>,
}

/// Writes the files of a model into `folder`, which must be there.
pub fn write(folder: &Path, parameters: Parameters, precision: Precision, about: &About<'_>) -> Result<()> {
    let Parameters { model, tensors } = parameters;
    let pretty = |value: Value| format!("{value:#}\n").into_bytes();
    let mut files = vec![
        (CONFIG, pretty(config(&model, precision, &about.tokenizer))),
        ("generation_config.json", pretty(generation_config(&about.tokenizer, about.sample))),
    ];
    files.extend(tokenizer_files::files(&about.tokenizer, &model));
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
    let mut metadata = about.origin.clone();
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
    let model = model_file::config_sizes(&folder.join(CONFIG))?;
    let path = folder.join(WEIGHTS);
    let ours: BTreeSet<String> = Weights::of(&model).iter().map(|spec| spec.name.clone()).collect();
    let bare = |name: &str| name.strip_prefix(PREFIX).unwrap_or(name).to_owned();
    let theirs = safetensors::read_some(&path, |name| name == CLASSIFIER || ours.contains(&bare(name)))?;
    let (classifier, theirs): (Vec<Tensor>, Vec<Tensor>) =
        theirs.into_iter().partition(|tensor| tensor.name == CLASSIFIER);
    let parameters = Parameters::of_state(&model, theirs.into_iter().map(to_ours).collect())?;
    if classifier.iter().any(|tensor| tensor.bytes != parameters.tensors.wte.bytes) {
        let problem = "differs from `wte.weight`: GPT-2's classifier is its token table".into();
        return Err(ExportError::Parameter { tensor: CLASSIFIER.into(), problem });
    }
    Ok(parameters)
}

/// The file whose bytes are a folder's weights.
pub fn weights_file(folder: &Path) -> PathBuf {
    folder.join(WEIGHTS)
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

fn config(model: &Model, precision: Precision, tokenizer: &Tokenizer) -> Value {
    json!({
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.0,
        "bos_token_id": tokenizer.eot(),
        "embd_pdrop": 0.0,
        "eos_token_id": tokenizer.eot(),
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-5,
        "model_type": "gpt2",
        "n_ctx": model.context,
        "n_embd": model.channels,
        "n_head": model.heads,
        "n_inner": null,
        "n_layer": model.layers,
        "n_positions": model.context,
        "reorder_and_upcast_attn": false,
        "resid_pdrop": 0.0,
        "scale_attn_by_inverse_layer_idx": false,
        "scale_attn_weights": true,
        "summary_first_dropout": 0.0,
        "tie_word_embeddings": true,
        "torch_dtype": match precision { Precision::Fp32 => "float32", Precision::Bf16 => "bfloat16" },
        "use_cache": true,
        "vocab_size": model.vocab,
    })
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
mod tests {
    use std::fs;

    use super::*;
    use crate::experiment;
    use crate::formats::sample_parameters;
    use crate::ops::Dtype;

    fn sample() -> Sample {
        Sample { every: 0, tokens: 8, prompt: String::new(), temperature: 0.8, top_k: 40 }
    }

    fn written(parameters: &Parameters, precision: Precision) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        let tokenizer = Tokenizer::new(experiment::Tokenizer::Byte);
        let about = About { tokenizer, sample: &sample(), origin: BTreeMap::new() };
        write(folder.path(), parameters.clone(), precision, &about).expect("written");
        folder
    }

    #[test]
    fn a_folder_comes_back_bit_for_bit_in_both_precisions() {
        for (dtype, precision) in [(Dtype::F32, Precision::Fp32), (Dtype::BF16, Precision::Bf16)] {
            let parameters = sample_parameters(dtype);
            let folder = written(&parameters, precision);
            let back = read(folder.path()).expect("readable");
            assert_eq!(back.model, parameters.model);
            assert!(back.tensors.iter().eq(parameters.tensors.iter()), "{dtype}");
            let again = written(&back, precision);
            let bytes = |folder: &tempfile::TempDir| fs::read(folder.path().join(WEIGHTS)).expect("readable");
            assert_eq!(bytes(&folder), bytes(&again));
        }
    }

    #[test]
    fn transposing_moves_rows_to_columns() {
        assert_eq!(transposed::<2>(b"aabbccddeeff", 2, 3), b"aaddbbeeccff");
        assert_eq!(transposed::<2>(b"aaddbbeeccff", 3, 2), b"aabbccddeeff");
    }

    #[test]
    fn a_config_of_another_model_is_refused() {
        let folder = written(&sample_parameters(Dtype::F32), Precision::Fp32);
        let path = folder.path().join(CONFIG);
        let text = fs::read_to_string(&path).expect("readable");
        let refusal = |from: &str, to: &str| {
            assert!(text.contains(from), "{text}");
            fs::write(&path, text.replace(from, to)).expect("writable");
            read(folder.path()).expect_err("another model").to_string()
        };
        assert!(refusal("\"gpt2\"", "\"llama\"").contains("`model_type` is \"llama\""));
        assert!(refusal("\"n_layer\": 3", "\"n_layer\": -3").contains("`n_layer` is -3"));
        assert!(refusal("\"n_layer\": 3", "\"n_layer\": 4").contains("`h.3.ln_1.weight` is missing"));
    }

    /// The folder with its weights changed as tensors.
    fn changed(folder: &tempfile::TempDir, change: impl FnOnce(&mut Vec<Tensor>)) -> Result<Parameters> {
        let path = folder.path().join(WEIGHTS);
        let mut tensors = safetensors::read(&path).expect("readable");
        change(&mut tensors);
        safetensors::write(&path, &tensors, &BTreeMap::new()).expect("writable");
        read(folder.path())
    }

    #[test]
    fn names_without_prefix_masks_and_a_tied_classifier_are_read_as_the_same_model() {
        let parameters = sample_parameters(Dtype::F32);
        let folder = written(&parameters, Precision::Fp32);
        let back = changed(&folder, |tensors| {
            let wte = tensors.iter().find(|t| t.name == "transformer.wte.weight").expect("there").clone();
            tensors
                .iter_mut()
                .for_each(|t| t.name = t.name.strip_prefix(PREFIX).expect("prefixed").to_owned());
            tensors.push(Tensor { name: CLASSIFIER.into(), ..wte });
            tensors.push(Tensor {
                name: "h.0.attn.bias".into(),
                dtype: Dtype::I64,
                shape: vec![2],
                bytes: vec![7; 16],
            });
        });
        assert!(back.expect("readable").tensors.iter().eq(parameters.tensors.iter()));
    }

    #[test]
    fn tensors_that_are_missing_misshapen_or_untied_are_refused_by_name() {
        let refusal = |change: &dyn Fn(&mut Vec<Tensor>)| {
            changed(&written(&sample_parameters(Dtype::F32), Precision::Fp32), change)
                .expect_err("refused")
                .to_string()
        };
        let at = |tensors: &[Tensor], name: &str| tensors.iter().position(|t| t.name == name).expect("there");
        let missing = refusal(&|t| _ = t.remove(at(t, "transformer.h.2.mlp.c_fc.weight")));
        assert!(missing.contains("`h.2.mlp.c_fc.weight` is missing"), "{missing}");
        let misshapen = refusal(&|t| {
            let at = at(t, "transformer.h.0.attn.c_attn.weight");
            t[at].shape.reverse();
        });
        assert!(
            misshapen.contains("`h.0.attn.c_attn.weight` has the shape [8, 24], expected [24, 8]"),
            "{misshapen}"
        );
        let counted = refusal(&|t| {
            let at = at(t, "transformer.ln_f.bias");
            t[at] = Tensor { dtype: Dtype::U64, bytes: vec![0; 64], ..t[at].clone() };
        });
        assert!(counted.contains("`ln_f.bias` is stored as U64, expected F32 or BF16"), "{counted}");
        let untied = refusal(&|t| {
            let mut classifier = t[at(t, "transformer.wte.weight")].clone();
            classifier.name = CLASSIFIER.into();
            classifier.bytes[0] ^= 1;
            t.push(classifier);
        });
        assert!(untied.contains("`lm_head.weight` differs from `wte.weight`"), "{untied}");
    }
}
