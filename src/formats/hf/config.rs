//! `config.json`, read and written: GPT-2's here, others' in [`super::llama`].
//!
//! Every size must be in the range of the key of its name, and every key that would change the computation
//! must have GPT-2's value.

use std::path::Path;

use serde_json::{Value, json};

use super::llama;
use super::values::{self, ExpectedValue};
use crate::data::Tokenizer;
use crate::experiment::Model;
use crate::formats::content::read_json;
use crate::formats::{FormatError, Precision, Result};
use crate::proof::json::parse as parse_json;

/// The file that makes a folder a Hugging Face model.
pub const CONFIG: &str = "config.json";

/// The model in a `config.json`. A configuration of another computation is refused. The padded
/// vocabulary is computed, not read.
pub fn sizes(path: &Path) -> Result<Model> {
    parse(path, &read_json(path)?)
}

/// [`sizes`] of a file that is in memory.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<Model> {
    let bad = |problem: String| FormatError::Config { path: path.into(), problem };
    let damaged = |e: serde_json::Error| FormatError::Damaged { path: path.into(), problem: e.to_string() };
    let config: Value = parse_json(bytes).map_err(damaged)?;
    match config["model_type"].as_str() {
        Some("gpt2") => {}
        Some("llama" | "qwen3") => return llama::sizes(&config).map_err(bad),
        _ => {
            let model_type = values::shown(&config, "model_type");
            return Err(bad(format!("{model_type}, expected \"gpt2\", \"llama\" or \"qwen3\"")));
        }
    }
    let size = |key: &str, ours: &str| values::size(&config, key, ours).map_err(bad);
    let (vocab, channels) = (size("vocab_size", "model.vocab")?, size("n_embd", "model.channels")?);
    let (layers, heads) = (size("n_layer", "model.layers")?, size("n_head", "model.heads")?);
    let model = Model::gpt2(layers, heads, channels, size("n_positions", "model.context")?, vocab);
    if !channels.is_multiple_of(model.heads) {
        return Err(bad(format!("`n_head` is {}, which does not divide `n_embd`, {channels}", model.heads)));
    }
    require_one_size(&config).map_err(bad)?;
    require_gpt2(&config, channels).map_err(bad)?;
    Ok(model)
}

/// Refuses a size of GPT-2 that is given under two names, with two values: `transformers` takes the other.
fn require_one_size(config: &Value) -> Result<(), String> {
    const ALIASES: [(&str, &str); 5] = [
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
        ("hidden_size", "n_embd"),
        ("max_position_embeddings", "n_positions"),
        ("n_ctx", "n_positions"),
    ];
    let other = |(alias, key): &(&str, &str)| config.get(alias).is_some_and(|value| *value != config[key]);
    ALIASES.into_iter().find(other).map_or(Ok(()), |(alias, key)| {
        Err(format!("`{alias}` is {}, and `{key}` {}: they are one size", config[alias], config[key]))
    })
}

/// Refuses a configuration with a key that makes it compute something else than GPT-2 with `channels`. Where
/// the file has no such key, its value is GPT-2's.
fn require_gpt2(config: &Value, channels: usize) -> Result<(), String> {
    let wide = (4 * channels) as u64;
    let empty = |value: &Value| value.as_object().is_some_and(serde_json::Map::is_empty);
    let keys: [ExpectedValue; 12] = [
        ("activation_function", &|v| v == "gelu_new" || v == "gelu_pytorch_tanh", "\"gelu_new\"".into()),
        ("layer_norm_epsilon", &|v| v.as_f64() == Some(1e-5), "1e-5".into()),
        ("n_inner", &|v| v.is_null() || v.as_u64() == Some(wide), "null or four times `n_embd`".into()),
        ("scale_attn_weights", &|v| v == true, "true".into()),
        ("scale_attn_by_inverse_layer_idx", &|v| v == false, "false".into()),
        ("reorder_and_upcast_attn", &|v| v == false, "false".into()),
        ("tie_word_embeddings", &|v| v == true, "true".into()),
        ("add_cross_attention", &|v| v == false, "false".into()),
        ("is_causal", &|v| v == true, "true".into()),
        ("pruned_heads", &empty, "{}".into()),
        ("per_layer_config", &|v| v.is_null() || empty(v), "null".into()),
        ("quantization_config", &Value::is_null, "null".into()),
    ];
    values::require(config, &keys, "this model computes something else than GPT-2")
}

/// The configuration of a model; none of blocks that no architecture has.
pub fn of(model: &Model, precision: Precision, tokenizer: &Tokenizer) -> Option<Value> {
    if let Some(kind) = llama::model_type(model) {
        return Some(llama::config(model, kind, precision, tokenizer));
    }
    model.has_gpt2_blocks().then(|| gpt2(model, precision, tokenizer))
}

fn gpt2(model: &Model, precision: Precision, tokenizer: &Tokenizer) -> Value {
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const OPENAI: &str = r#"{"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1, "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256,
        "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024,
        "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1,
        "summary_first_dropout": 0.1, "vocab_size": 50257}"#;

    fn refusal(change: impl Fn(&mut Value)) -> String {
        let folder = tempfile::tempdir().expect("a folder");
        let mut config: Value = serde_json::from_str(OPENAI).expect("JSON");
        change(&mut config);
        fs::write(folder.path().join(CONFIG), config.to_string()).expect("writable");
        sizes(&folder.path().join(CONFIG)).map_or_else(|e| e.to_string(), |model| format!("{model:?}"))
    }

    #[test]
    fn openai_s_own_file_gives_gpt2_s_sizes() {
        let says = refusal(|_| ());
        assert!(
            says.contains(
                "layers: 12, heads: 12, kv_heads: 0, channels: 768, context: 1024, vocab: 50257, \
                 vocab_padded: 50304"
            ),
            "{says}"
        );
    }

    #[test]
    fn a_config_that_computes_something_else_is_refused() {
        for (key, value, says) in [
            ("model_type", json!("opt"), "`model_type` is \"opt\", expected \"gpt2\", \"llama\" or"),
            (
                "activation_function",
                json!("relu"),
                "`activation_function` is \"relu\", expected \"gelu_new\"",
            ),
            ("layer_norm_epsilon", json!(1e-6), "expected 1e-5"),
            ("n_inner", json!(1000), "expected null or four times"),
            ("scale_attn_by_inverse_layer_idx", json!(true), "expected false"),
            ("tie_word_embeddings", json!(false), "expected true"),
            ("reorder_and_upcast_attn", json!(true), "`reorder_and_upcast_attn` is true, expected false"),
            ("add_cross_attention", json!(true), "expected false"),
            ("is_causal", json!(false), "`is_causal` is false, expected true"),
            ("num_hidden_layers", json!(6), "`num_hidden_layers` is 6, and `n_layer` 12: they are one size"),
            ("num_attention_heads", json!(6), "`num_attention_heads` is 6, and `n_head` 12"),
            ("hidden_size", json!(null), "`hidden_size` is null, and `n_embd` 768"),
            ("max_position_embeddings", json!(16), "`max_position_embeddings` is 16, and `n_positions` 1024"),
            ("n_ctx", json!(512), "`n_ctx` is 512, and `n_positions` 1024"),
            ("pruned_heads", json!({"0": [1]}), "`pruned_heads` is {\"0\":[1]}, expected {}"),
            ("quantization_config", json!({"bits": 8}), "`quantization_config` is {\"bits\":8}"),
            ("activation_function", json!(null), "`activation_function` is null"),
            ("n_head", json!(7), "does not divide `n_embd`, 768"),
            ("n_layer", json!(-3), "`n_layer` is -3, expected a whole number from 1 to 1024"),
            ("n_layer", json!(1_000_000), "to 1024"),
            ("n_embd", json!(null), "`n_embd` is null"),
            ("vocab_size", json!(70_000), "to 65536"),
        ] {
            let got = refusal(|config| config[key] = value.clone());
            assert!(got.contains(says), "{key} {value}: {got}");
        }
        let missing = refusal(|config| _ = config.as_object_mut().expect("an object").remove("n_layer"));
        assert!(missing.contains("`n_layer` is missing, expected a whole number"), "{missing}");
        for (key, same) in [("hidden_size", 768), ("num_hidden_layers", 12), ("is_causal", 1)] {
            let same = if key == "is_causal" { json!(true) } else { json!(same) };
            let read = refusal(|config| config[key] = same.clone());
            assert!(read.contains("layers: 12, heads: 12"), "{key}: {read}");
        }
        let none = sizes(Path::new("/nowhere/config.json")).expect_err("nothing there").to_string();
        assert!(none.contains("cannot read `/nowhere/config.json`"), "{none}");
    }
}
