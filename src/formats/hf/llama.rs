//! Llama (Touvron et al. 2023) and Qwen3: RMSNorm, rotary positions, SwiGLU and no biases; Qwen3 with
//! QK-norm.
//!
//! Their tensors hold our numbers in another order of rows. Query, key and value, and the gate and the factor
//! of SwiGLU, are matrices of their own; the two channels of a pair that is rotated lie half a head apart,
//! ours side by side. Weights are (out, in) in both. Moving rows changes no bit.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::values::{self, ExpectedValue};
use crate::data::Tokenizer;
use crate::experiment::{ActivationKind, Model, NormKind, PositionKind};
use crate::formats::{FormatError, Precision, Result};
use crate::model::Weights;
use crate::proof::regular;
use crate::store::Tensor;
use crate::units::counted;

/// One of their tensors, and the rows of ours that it has.
pub struct Moved {
    pub theirs: String,
    pub ours: String,
    rows: usize,
    order: RowOrder,
}

/// Which row of ours a row of theirs is.
enum RowOrder {
    /// Of neighbours, from this one on.
    From(usize),
    /// Every other one, from this one on.
    Alternate(usize),
    /// From `first` on heads of `size`, each the first of all its pairs and then the second.
    Halves { first: usize, size: usize },
}

impl Moved {
    /// Of each of their rows that of ours. Nothing is kept for a row: a wrong configuration may have many.
    fn rows(&self) -> impl Iterator<Item = usize> {
        (0..self.rows).map(|row| match self.order {
            RowOrder::From(first) => first + row,
            RowOrder::Alternate(first) => first + 2 * row,
            RowOrder::Halves { first, size } => {
                let (head, within) = (row / size, row % size);
                first + head * size + 2 * (within % (size / 2)) + within / (size / 2)
            }
        })
    }
}

/// What `model_type` is: of a model whose blocks one of the two can hold.
pub fn model_type(model: &Model) -> Option<&'static str> {
    let fits = nearest(model).parts() == model.parts();
    fits.then_some(if model.qk_norm { "qwen3" } else { "llama" })
}

/// The model with the blocks that Llama or Qwen3 has instead, where it has others.
pub fn nearest(model: &Model) -> Model {
    Model {
        norm: NormKind::Rmsnorm,
        positions: PositionKind::Rotary,
        activation: ActivationKind::Swiglu,
        bias: false,
        logit_softcap: 0.0,
        ..model.clone()
    }
}

/// All tensors of a model, in our order.
pub fn tensors(model: &Model) -> Vec<Moved> {
    let specs = Weights::of(model);
    let (c, f, size) = (model.channels, model.mlp_channels(), model.head_size());
    let kv = model.kv_heads() * size;
    let mut all = Vec::new();
    let mut add = |theirs: String, ours: &str, rows, order| {
        all.push(Moved { theirs, ours: ours.to_owned(), rows, order });
    };
    add("model.embed_tokens.weight".into(), &specs.wte.name, model.vocab, RowOrder::From(0));
    for (l, block) in specs.layers.iter().enumerate() {
        let name = |rest: &str| format!("model.layers.{l}.{rest}.weight");
        let (qkv, fc) = (&block.qkv.weight.name, &block.fc.weight.name);
        add(name("input_layernorm"), &block.ln_1.weight.name, c, RowOrder::From(0));
        add(name("self_attn.q_proj"), qkv, c, RowOrder::Halves { first: 0, size });
        add(name("self_attn.k_proj"), qkv, kv, RowOrder::Halves { first: c, size });
        add(name("self_attn.v_proj"), qkv, kv, RowOrder::From(c + kv));
        let norms = [("q_norm", &block.head_norms.query), ("k_norm", &block.head_norms.key)];
        for (part, spec) in norms.into_iter().filter_map(|(part, spec)| Some((part, spec.as_ref()?))) {
            add(name(&format!("self_attn.{part}")), &spec.name, size, RowOrder::Halves { first: 0, size });
        }
        add(name("self_attn.o_proj"), &block.attn_proj.weight.name, c, RowOrder::From(0));
        add(name("post_attention_layernorm"), &block.ln_2.weight.name, c, RowOrder::From(0));
        add(name("mlp.gate_proj"), fc, f, RowOrder::Alternate(0));
        add(name("mlp.up_proj"), fc, f, RowOrder::Alternate(1));
        add(name("mlp.down_proj"), &block.fc_proj.weight.name, c, RowOrder::From(0));
    }
    add("model.norm.weight".into(), &specs.ln_f.weight.name, c, RowOrder::From(0));
    if let Some(head) = &specs.lm_head {
        add(super::CLASSIFIER.into(), &head.name, model.vocab, RowOrder::From(0));
    }
    all
}

/// Their tensors out of ours.
pub fn to_theirs(model: &Model, ours: Vec<Tensor>) -> Vec<Tensor> {
    let mut moved = tensors(model).into_iter().peekable();
    let mut theirs = Vec::new();
    // One by one, so that of a large model little more than one copy is in memory.
    for tensor in ours {
        while let Some(part) = moved.next_if(|moved| moved.ours == tensor.name) {
            let width = row_bytes(&tensor);
            let bytes = part.rows().flat_map(|row| &tensor.bytes[row * width..(row + 1) * width]).copied();
            let (bytes, shape) = (bytes.collect(), [&[part.rows], &tensor.shape[1..]].concat());
            theirs.push(Tensor { name: part.theirs, dtype: tensor.dtype, shape, bytes });
        }
    }
    theirs
}

/// Our tensors out of theirs, by name.
///
/// # Errors
///
/// A tensor that is missing, has another shape, or another type than the others that make one of ours.
pub fn to_ours(folder: &Path, model: &Model, mut theirs: BTreeMap<String, Tensor>) -> Result<Vec<Tensor>> {
    let specs: BTreeMap<String, Vec<usize>> =
        Weights::of(model).iter().map(|spec| (spec.name.clone(), spec.shape.clone())).collect();
    let mut ours: Vec<Tensor> = Vec::new();
    for moved in tensors(model) {
        let (name, of) = (&moved.theirs, &moved.ours);
        let bad = |problem: String| {
            let problem =
                format!("{problem}\n  hint: the configuration and the weights do not belong together");
            FormatError::Parameter { path: folder.into(), tensor: name.clone(), problem }
        };
        let tensor = theirs.remove(name).ok_or_else(|| bad("is missing".into()))?;
        let whole = &specs[of];
        let expected = [&[moved.rows], &whole[1..]].concat();
        if tensor.shape != expected {
            return Err(bad(format!("has the shape {:?}, expected {expected:?}", tensor.shape)));
        }
        if ours.last().is_none_or(|last| last.name != *of) {
            let no_memory =
                |problem| FormatError::Parameter { path: folder.into(), tensor: of.clone(), problem };
            let bytes = whole.iter().product::<usize>() * tensor.dtype.size();
            let bytes = regular::memory(bytes).map_err(no_memory)?;
            ours.push(Tensor { name: of.clone(), dtype: tensor.dtype, shape: whole.clone(), bytes });
        }
        let target = ours.last_mut().expect("one was added");
        if target.dtype != tensor.dtype {
            return Err(bad(format!(
                "is stored as {}, and others of `{}` as {}",
                tensor.dtype, target.name, target.dtype
            )));
        }
        let width = row_bytes(&tensor);
        for (row, bytes) in moved.rows().zip(tensor.bytes.chunks_exact(width)) {
            target.bytes[row * width..(row + 1) * width].copy_from_slice(bytes);
        }
    }
    Ok(ours)
}

fn row_bytes(tensor: &Tensor) -> usize {
    tensor.shape[1..].iter().product::<usize>() * tensor.dtype.size()
}

/// The configuration of a model of this [`model_type`].
pub fn config(model: &Model, kind: &str, precision: Precision, tokenizer: &Tokenizer) -> Value {
    let mut config = json!({
        "architectures": [super::architecture(model)],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": tokenizer.eot(),
        "eos_token_id": tokenizer.eot(),
        "head_dim": model.head_size(),
        "hidden_act": "silu",
        "hidden_size": model.channels,
        "initializer_range": 0.02,
        "intermediate_size": model.mlp_channels(),
        "max_position_embeddings": model.context,
        "model_type": kind,
        "num_attention_heads": model.heads,
        "num_hidden_layers": model.layers,
        "num_key_value_heads": model.kv_heads(),
        "rms_norm_eps": 1e-5,
        // Where older and where newer versions of `transformers` look.
        "rope_theta": model.rope_theta,
        "rope_parameters": { "rope_type": "default", "rope_theta": model.rope_theta },
        "tie_word_embeddings": model.tied_head,
        "torch_dtype": match precision { Precision::Fp32 => "float32", Precision::Bf16 => "bfloat16" },
        "use_cache": true,
        "vocab_size": model.vocab,
    });
    if kind == "llama" {
        config["mlp_bias"] = false.into();
    } else {
        config["use_sliding_window"] = false.into();
    }
    config
}

/// The model of a configuration of Llama or Qwen3. The padded vocabulary is computed, not read.
///
/// # Errors
///
/// A size out of the range of the key of its name, or a value that makes it compute something else.
pub fn sizes(config: &Value) -> Result<Model, String> {
    let size = |key: &str, ours: &str| values::size(config, key, ours);
    let gpt2 = Model::gpt2(
        size("num_hidden_layers", "model.layers")?,
        size("num_attention_heads", "model.heads")?,
        size("hidden_size", "model.channels")?,
        size("max_position_embeddings", "model.context")?,
        size("vocab_size", "model.vocab")?,
    );
    let (channels, heads) = (gpt2.channels, gpt2.heads);
    if !channels.is_multiple_of(heads) {
        return Err(format!(
            "`num_attention_heads` is {heads}, which does not divide `hidden_size`, {channels}"
        ));
    }
    if !(channels / heads).is_multiple_of(2) {
        let size = counted((channels / heads) as u64, "channel");
        return Err(format!("a head has {size}, expected an even number"));
    }
    let kv_heads = match config.get("num_key_value_heads") {
        None | Some(Value::Null) => heads,
        Some(_) => size("num_key_value_heads", "model.kv_heads")?,
    };
    if !heads.is_multiple_of(kv_heads) {
        return Err(format!(
            "`num_key_value_heads` is {kv_heads}, which does not divide `num_attention_heads`, {heads}"
        ));
    }
    let tied = config.get("tie_word_embeddings").unwrap_or(&Value::Bool(false));
    let tied_head = tied.as_bool().ok_or_else(|| format!("`tie_word_embeddings` is {tied}"))?;
    let rope_theta = theta(config)?;
    let model = Model {
        kv_heads: if kv_heads == heads { 0 } else { kv_heads },
        norm: NormKind::Rmsnorm,
        positions: PositionKind::Rotary,
        rope_theta,
        activation: ActivationKind::Swiglu,
        bias: false,
        tied_head,
        qk_norm: config["model_type"] == "qwen3",
        ..gpt2
    };
    require(config, &model)?;
    Ok(model)
}

/// The base of the angles. Every place that gives one must give the same: versions of `transformers` differ
/// in where they look.
///
/// # Errors
///
/// Places that differ, a number that fp32 cannot hold, and whatever scales positions or turns but a part of a
/// head.
fn theta(config: &Value) -> Result<f64, String> {
    let mut places = vec![("rope_theta".to_owned(), config.get("rope_theta"))];
    for name in ["rope_scaling", "rope_parameters"] {
        let Some(parameters) = config.get(name).filter(|parameters| !parameters.is_null()) else { continue };
        require_plain_rotation(name, parameters)?;
        places.push((format!("{name}.rope_theta"), parameters.get("rope_theta")));
    }
    let mut theta: Option<f64> = None;
    for (key, value) in places.into_iter().filter_map(|(key, value)| Some((key, value?))) {
        let fits = |found: &f64| (*found as f32).is_finite() && *found as f32 > 1.0;
        let Some(found) = value.as_f64().filter(fits) else {
            return Err(format!("`{key}` is {value}, expected a number above 1 that 32 bits can hold"));
        };
        if let Some(other) = theta.filter(|theta| *theta != found) {
            return Err(format!("`rope_theta` is given as {other} and, by `{key}`, as {found}"));
        }
        theta = Some(found);
    }
    Ok(theta.unwrap_or(10_000.0))
}

/// Refuses parameters of rotary positions, those of the key `name`, that are not of the plain ones.
fn require_plain_rotation(name: &str, parameters: &Value) -> Result<(), String> {
    let Some(object) = parameters.as_object() else {
        return Err(format!("`{name}` is {parameters}, expected null or an object"));
    };
    for (key, value) in object {
        let expected = match key.as_str() {
            "rope_type" | "type" if value != "default" => "\"default\"",
            "partial_rotary_factor" if value.as_f64() != Some(1.0) => "1.0",
            "rope_type" | "type" | "partial_rotary_factor" | "rope_theta" => continue,
            _ => "no such key",
        };
        return Err(format!("`{name}.{key}` is {value}, expected {expected}: {ONLY_THIS}"));
    }
    Ok(())
}

/// Why a value is refused.
const ONLY_THIS: &str = "nothing else is computed here";

/// Refuses a configuration with a key that makes it compute something else than `model`. Where the file has
/// no such key, its value is the one expected.
fn require(config: &Value, model: &Model) -> Result<(), String> {
    let number = |value: &Value, expected: usize| value.as_u64() == Some(expected as u64);
    let whole = |v: &Value| v.is_null() || v.as_f64() == Some(1.0);
    let full =
        |v: &Value| v.is_null() || v.as_array().is_some_and(|l| l.iter().all(|l| l == "full_attention"));
    let none = |v: &Value| v.is_null() || v.as_object().is_some_and(serde_json::Map::is_empty);
    let f = model.mlp_channels();
    let keys: [ExpectedValue; 12] = [
        ("hidden_act", &|v| v == "silu", "\"silu\"".into()),
        ("rms_norm_eps", &|v| v.as_f64() == Some(1e-5), "1e-5".into()),
        ("intermediate_size", &|v| number(v, f), format!("{f}, 8/3 of `hidden_size` in multiples of 64")),
        ("head_dim", &|v| v.is_null() || number(v, model.head_size()), "`hidden_size` by heads".into()),
        ("attention_bias", &|v| v == false, "false".into()),
        ("mlp_bias", &|v| v == false, "false".into()),
        ("partial_rotary_factor", &whole, "1.0".into()),
        ("is_causal", &|v| v == true, "true".into()),
        ("use_sliding_window", &|v| v == false, "false".into()),
        ("layer_types", &full, "\"full_attention\" of every layer".into()),
        ("per_layer_config", &none, "null".into()),
        ("quantization_config", &Value::is_null, "null".into()),
    ];
    // What `transformers` takes where these are missing is something else.
    for key in ["rms_norm_eps", "intermediate_size"] {
        if config.get(key).is_none() {
            return Err(format!("`{key}` is missing, expected a number"));
        }
    }
    values::require(config, &keys, ONLY_THIS)
}
