//! What a model's file says of its sizes: the part of an experiment that `model.init` brings along.
//!
//! Reads the `config.json` of a Hugging Face folder, or the header of the reference's `.bin`, and nothing of
//! the weights: that is [`crate::formats`]'s, which asks here for the sizes. Every size is held to what the
//! key of its name takes, so that no absurd header is believed.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::resolved::Model;
use super::rules::VOCAB_ALIGN;
use super::schema::{self, Kind};

/// The file that makes a folder a Hugging Face model.
pub const CONFIG: &str = "config.json";

const MAGIC: i32 = 20_240_326;
/// Bytes before the weights of a `.bin`.
pub const HEADER_BYTES: usize = 1024;

/// Why a file does not say which model it is.
#[derive(Debug, thiserror::Error)]
pub enum ModelFileError {
    #[error("cannot read `{}`: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("`{}`: {problem}", path.display())]
    Config { path: PathBuf, problem: String },
    #[error("`{}` is no model of the reference: {what} at byte {byte} is {got}, expected {expected}", path.display())]
    Header { path: PathBuf, what: &'static str, byte: usize, got: i64, expected: String },
    #[error("`{}` is no model of the reference: it has {got} bytes, its header alone has {HEADER_BYTES}\n  hint: the file was cut short", path.display())]
    Short { path: PathBuf, got: usize },
}

type Result<T> = std::result::Result<T, ModelFileError>;

/// The sizes of the model in a Hugging Face folder or a `.bin`.
pub fn sizes(path: &Path) -> Result<Model> {
    if path.is_dir() {
        return config_sizes(&path.join(CONFIG));
    }
    let io = |source| ModelFileError::Io { path: path.into(), source };
    let mut header = Vec::with_capacity(HEADER_BYTES);
    File::open(path).map_err(io)?.take(HEADER_BYTES as u64).read_to_end(&mut header).map_err(io)?;
    header_sizes(path, &header).map(|(model, _)| model)
}

/// The largest number that a key takes.
fn largest(key: &str) -> u64 {
    match schema::key(key).map(|key| key.kind) {
        Some(Kind::Integer { max, .. }) => max,
        _ => unreachable!("`{key}` is a whole number in the table of keys"),
    }
}

/// The sizes in a `config.json` of GPT-2. What would compute something else than GPT-2 is refused. The padded
/// vocabulary is ours, not the file's.
pub fn config_sizes(path: &Path) -> Result<Model> {
    let bad = |problem: String| ModelFileError::Config { path: path.into(), problem };
    let bytes = fs::read(path).map_err(|source| ModelFileError::Io { path: path.into(), source })?;
    let config: Value = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
    if config["model_type"] != "gpt2" {
        return Err(bad(format!("`model_type` is {}, expected \"gpt2\"", config["model_type"])));
    }
    let size = |key: &str, ours: &str| match config[key].as_u64() {
        Some(size) if (1..=largest(ours)).contains(&size) => Ok(size as usize),
        _ => Err(bad(format!(
            "`{key}` is {}, expected a whole number from 1 to {}",
            config[key],
            largest(ours)
        ))),
    };
    let (vocab, channels) = (size("vocab_size", "model.vocab")?, size("n_embd", "model.channels")?);
    let model = Model {
        init: None,
        descriptor: None,
        layers: size("n_layer", "model.layers")?,
        heads: size("n_head", "model.heads")?,
        channels,
        context: size("n_positions", "model.context")?,
        vocab,
        vocab_padded: vocab.next_multiple_of(VOCAB_ALIGN as usize),
    };
    if !channels.is_multiple_of(model.heads) {
        return Err(bad(format!("`n_head` is {}, which does not divide `n_embd`, {channels}", model.heads)));
    }
    // Each is GPT-2's where the file does not say.
    let wide = (4 * channels) as u64;
    type Expected<'a> = (&'a str, &'a dyn Fn(&Value) -> bool, &'a str);
    let gpt2: [Expected; 6] = [
        ("activation_function", &|v| v == "gelu_new" || v == "gelu_pytorch_tanh", "\"gelu_new\""),
        ("layer_norm_epsilon", &|v| v.as_f64() == Some(1e-5), "1e-5"),
        ("n_inner", &|v| v.as_u64() == Some(wide), "null or four times `n_embd`"),
        ("scale_attn_weights", &|v| v == true, "true"),
        ("scale_attn_by_inverse_layer_idx", &|v| v == false, "false"),
        ("tie_word_embeddings", &|v| v == true, "true"),
    ];
    for (key, fits, expected) in gpt2 {
        let value = &config[key];
        if !value.is_null() && !fits(value) {
            return Err(bad(format!(
                "`{key}` is {value}, expected {expected}: this model computes something else than GPT-2"
            )));
        }
    }
    Ok(model)
}

/// The sizes in the header of a `.bin` of the reference, and whether its numbers are bf16 (version 5) rather
/// than fp32 (version 3).
pub fn header_sizes(path: &Path, header: &[u8]) -> Result<(Model, bool)> {
    if header.len() < HEADER_BYTES {
        return Err(ModelFileError::Short { path: path.into(), got: header.len() });
    }
    let words = header.as_chunks().0;
    let word = |i: usize| i32::from_le_bytes(words[i]);
    let bad = |what, i: usize, expected: &str| ModelFileError::Header {
        path: path.into(),
        what,
        byte: 4 * i,
        got: word(i).into(),
        expected: expected.into(),
    };
    if word(0) != MAGIC {
        return Err(bad("the magic number", 0, "20240326"));
    }
    let narrow = match word(1) {
        3 => false,
        5 => true,
        _ => return Err(bad("the version", 1, "3 (fp32) or 5 (bf16)")),
    };
    let size = |what, i: usize, most: u64| match u64::try_from(word(i)) {
        Ok(size) if (1..=most).contains(&size) => Ok(size as usize),
        _ => Err(bad(what, i, &format!("at least 1 and at most {most}"))),
    };
    let most_tokens = largest("model.vocab");
    let model = Model {
        init: None,
        descriptor: None,
        context: size("the context", 2, largest("model.context"))?,
        vocab: size("the vocabulary", 3, most_tokens)?,
        layers: size("the number of layers", 4, largest("model.layers"))?,
        heads: size("the number of heads", 5, largest("model.heads"))?,
        channels: size("the number of channels", 6, largest("model.channels"))?,
        vocab_padded: size("the padded vocabulary", 7, 2 * most_tokens)?,
    };
    if !model.channels.is_multiple_of(model.heads) {
        return Err(bad("the number of heads", 5, &format!("a divisor of {} channels", model.channels)));
    }
    if model.vocab_padded < model.vocab {
        return Err(bad("the padded vocabulary", 7, &format!("at least the vocabulary, {}", model.vocab)));
    }
    Ok((model, narrow))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const OPENAI: &str = r#"{"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
        "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12,
        "n_positions": 1024, "resid_pdrop": 0.1, "summary_first_dropout": 0.1, "vocab_size": 50257}"#;

    fn refusal(change: impl Fn(&mut Value)) -> String {
        let folder = tempfile::tempdir().expect("a folder");
        let mut config: Value = serde_json::from_str(OPENAI).expect("JSON");
        change(&mut config);
        fs::write(folder.path().join(CONFIG), config.to_string()).expect("writable");
        sizes(folder.path()).map_or_else(|e| e.to_string(), |model| format!("{model:?}"))
    }

    #[test]
    fn openai_s_own_file_gives_gpt2_s_sizes() {
        let told = refusal(|_| ());
        assert!(
            told.contains(
                "layers: 12, heads: 12, channels: 768, context: 1024, vocab: 50257, vocab_padded: 50304"
            ),
            "{told}"
        );
    }

    #[test]
    fn a_config_that_computes_something_else_is_refused() {
        for (key, value, told) in [
            ("model_type", json!("llama"), "`model_type` is \"llama\", expected \"gpt2\""),
            (
                "activation_function",
                json!("relu"),
                "`activation_function` is \"relu\", expected \"gelu_new\"",
            ),
            ("layer_norm_epsilon", json!(1e-6), "expected 1e-5"),
            ("n_inner", json!(1000), "expected null or four times"),
            ("scale_attn_by_inverse_layer_idx", json!(true), "expected false"),
            ("tie_word_embeddings", json!(false), "expected true"),
            ("n_head", json!(7), "does not divide `n_embd`, 768"),
            ("n_layer", json!(-3), "`n_layer` is -3, expected a whole number from 1 to 1024"),
            ("n_layer", json!(1_000_000), "to 1024"),
            ("n_embd", json!(null), "`n_embd` is null"),
            ("vocab_size", json!(70_000), "to 65536"),
        ] {
            let got = refusal(|config| config[key] = value.clone());
            assert!(got.contains(told), "{key} {value}: {got}");
        }
        let none = sizes(Path::new("/nowhere/model.bin")).expect_err("nothing there").to_string();
        assert!(none.contains("cannot read `/nowhere/model.bin`"), "{none}");
    }
}
