//! A tokenizer as Hugging Face's files.
//!
//! Both tokenizers are byte-level byte-pair encodings there: GPT-2's, and one without merges whose tokens are
//! the 256 bytes. Files hold text, so each byte is written as a printable character: itself where it
//! is one, else a character from U+0100 on (Radford et al. 2019, `bytes_to_unicode`).
//!
//! tiktoken keeps ranks, Hugging Face the pairs that were merged. A pair follows from the ranks: encoding the
//! token's own bytes with the lower ranks alone leaves two parts, which are what was merged.
//!
//! [`found`] reads them back: the tokens and their numbers must be ours.
//!
//! One difference remains: `<|endoftext|>` inside a text is markup to Hugging Face and plain text to us.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::data::Tokenizer;
use crate::data::tokenizer::END_OF_TEXT;
use crate::experiment::{self, Model};
use crate::formats::content::read_json;
use crate::formats::{FormatError, Result};
use crate::proof::json::parse as parse_json;
use crate::units::noun;

/// Names and contents of the files.
pub fn files(tokenizer: &Tokenizer, model: &Model) -> Vec<(&'static str, Vec<u8>)> {
    let tokens: Vec<Vec<u8>> = (0..tokenizer.eot()).map(|token| tokenizer.decode_bytes(&[token])).collect();
    let merges: Vec<[String; 2]> = merges(&tokens).iter().map(|pair| pair.map(printable)).collect();
    let mut vocab: Map<String, Value> =
        tokens.iter().zip(0..).map(|(bytes, id)| (printable(bytes), json!(id))).collect();
    vocab.insert(END_OF_TEXT.into(), tokenizer.eot().into());

    let text = |value: &Value| value.to_string().into_bytes();
    let mut files = vec![
        ("tokenizer.json", text(&fast(tokenizer, &vocab, &merges))),
        ("tokenizer_config.json", format!("{:#}\n", config(tokenizer, model)).into_bytes()),
    ];
    // What GPT-2's own tokenizer class reads.
    if let Tokenizer::Gpt2(_) = tokenizer {
        let lines: String = merges.iter().map(|[left, right]| format!("{left} {right}\n")).collect();
        files.push(("vocab.json", text(&Value::Object(vocab))));
        files.push(("merges.txt", format!("#version: 0.2\n{lines}").into_bytes()));
    }
    files
}

/// `tokenizer.json`: the whole pipeline, as the `tokenizers` library has it.
fn fast(tokenizer: &Tokenizer, vocab: &Map<String, Value>, merges: &[[String; 2]]) -> Value {
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [{
            "id": tokenizer.eot(), "content": END_OF_TEXT, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true,
        }],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
            "merges": merges,
        },
    })
}

fn config(tokenizer: &Tokenizer, model: &Model) -> Value {
    json!({
        "tokenizer_class": match tokenizer {
            Tokenizer::Gpt2(_) => "GPT2Tokenizer",
            Tokenizer::Byte => "PreTrainedTokenizerFast",
        },
        "model_max_length": model.context,
        "add_prefix_space": false,
        "clean_up_tokenization_spaces": false,
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
    })
}

/// The pair that was merged into each token of more than one byte, in order of rank.
fn merges(tokens: &[Vec<u8>]) -> Vec<[&[u8]; 2]> {
    let ranks: BTreeMap<&[u8], usize> =
        tokens.iter().enumerate().map(|(rank, token)| (token.as_slice(), rank)).collect();
    let longer = tokens.iter().enumerate().filter(|(_, token)| token.len() > 1);
    longer.map(|(rank, token)| last_pair(token, rank, &ranks)).collect()
}

/// The two parts of `token` before its own merge, which has the rank `rank`.
fn last_pair<'a>(token: &'a [u8], rank: usize, ranks: &BTreeMap<&[u8], usize>) -> [&'a [u8]; 2] {
    // Where parts begin, and the token's end.
    let mut cuts: Vec<usize> = (0..=token.len()).collect();
    while cuts.len() > 3 {
        let merged = |i: usize| ranks.get(&token[cuts[i]..cuts[i + 2]]).copied().filter(|&r| r < rank);
        let lowest = (0..cuts.len() - 2).filter_map(|i| Some((merged(i)?, i))).min();
        let (_, i) = lowest.expect("every token of a byte-pair encoding was merged from two of lower rank");
        cuts.remove(i + 1);
    }
    [&token[..cuts[1]], &token[cuts[1]..]]
}

/// Bytes in printable characters.
fn printable(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| character(byte)).collect()
}

/// GPT-2's character for a byte: itself if it is printable and no space in Latin-1, else the next free one
/// from U+0100 on.
fn character(byte: u8) -> char {
    let stands = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if stands(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&other| !stands(other)).count() as u32;
    char::from_u32(0x100 + before).expect("68 characters from U+0100 on exist")
}

/// Files of tokenizers of other kinds than ours.
const OTHER_FILES: [&str; 6] = [
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "tekken.json",
    "qwen.tiktoken",
];
/// What `tokenizer_class` may be where no file has the tokens: GPT-2's, or any.
const CLASSES: [&str; 4] =
    ["GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"];

/// The tokenizer that a folder's files are of; none where they do not say. Tokens behind the last of ours may
/// have been added.
///
/// # Errors
///
/// It is none of ours, or a file cannot be read.
pub fn found(folder: &Path) -> Result<Option<experiment::Tokenizer>> {
    let other = |problem: String| Err(FormatError::Tokenizer { path: folder.into(), problem });
    for name in ["tokenizer.json", "vocab.json"] {
        let Some(file) = read(&folder.join(name))? else { continue };
        let is_whole = name == "tokenizer.json";
        if is_whole && changes_text(&file) {
            return other(format!("its `{name}` has a `normalizer`, which changes text as GPT-2's does not"));
        }
        let tokens = if is_whole { all_tokens(&file) } else { numbered(&file) };
        let kinds = [experiment::Tokenizer::Gpt2, experiment::Tokenizer::Byte];
        return match kinds.into_iter().find(|kind| are_of(&tokens, &Tokenizer::new(*kind))) {
            Some(kind) => Ok(Some(kind)),
            None => {
                let (count, tokens) = (tokens.len(), noun(tokens.len(), "token"));
                other(format!("its `{name}` has {count} {tokens}, not those of GPT-2"))
            }
        };
    }
    if let Some(name) = OTHER_FILES.into_iter().find(|name| folder.join(name).exists()) {
        return other(format!("its tokenizer is in `{name}`, and so not GPT-2's"));
    }
    let class = read(&folder.join("tokenizer_config.json"))?.map(|config| config["tokenizer_class"].clone());
    match class.as_ref().and_then(Value::as_str) {
        Some(class) if !CLASSES.contains(&class) => {
            other(format!("its `tokenizer_config.json` says \"{class}\", which is not GPT-2's"))
        }
        _ => Ok(None),
    }
}

/// A JSON file; none where there is none.
fn read(path: &Path) -> Result<Option<Value>> {
    if !path.exists() {
        return Ok(None);
    }
    let bytes = read_json(path)?;
    let bad =
        |error: serde_json::Error| FormatError::Damaged { path: path.into(), problem: error.to_string() };
    parse_json(&bytes).map(Some).map_err(bad)
}

/// Numbers and tokens of a map from token to number.
fn numbered(vocab: &Value) -> BTreeSet<(u64, &str)> {
    let tokens = vocab.as_object().into_iter().flatten();
    tokens.filter_map(|(token, number)| Some((number.as_u64()?, token.as_str()))).collect()
}

/// Those of a `tokenizer.json`; of another model than a byte-pair encoding, none.
fn all_tokens(file: &Value) -> BTreeSet<(u64, &str)> {
    let model = &file["model"];
    if !(model["type"].is_null() || model["type"] == "BPE") {
        return BTreeSet::new();
    }
    let added = file["added_tokens"].as_array().into_iter().flatten();
    let added = added.filter_map(|token| Some((token["id"].as_u64()?, token["content"].as_str()?)));
    numbered(&model["vocab"]).into_iter().chain(added).collect()
}

/// Whether a `tokenizer.json` changes text before it is cut into tokens.
fn changes_text(file: &Value) -> bool {
    let normalizer = &file["normalizer"];
    !normalizer.is_null() && normalizer["normalizers"] != json!([])
}

/// Whether the first tokens are just those of a tokenizer.
fn are_of(tokens: &BTreeSet<(u64, &str)>, tokenizer: &Tokenizer) -> bool {
    let eot = tokenizer.eot();
    let text =
        |id: u16| if id == eot { END_OF_TEXT.into() } else { printable(&tokenizer.decode_bytes(&[id])) };
    let first = tokens.iter().take_while(|(number, _)| *number <= u64::from(eot));
    first.clone().count() == tokenizer.vocab()
        && first.zip(0..=eot).all(|((number, token), id)| *number == u64::from(id) && *token == text(id))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use sha2::{Digest, Sha256};

    use super::*;
    use crate::experiment;

    fn model() -> Model {
        Model::gpt2(1, 1, 8, 16, 50_257)
    }

    fn file(kind: experiment::Tokenizer, name: &str) -> Option<Vec<u8>> {
        files(&Tokenizer::new(kind), &model()).into_iter().find(|(n, _)| *n == name).map(|(_, bytes)| bytes)
    }

    /// What is found in a folder with these files.
    fn found_in(files: &[(&str, Vec<u8>)]) -> std::result::Result<Option<experiment::Tokenizer>, String> {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, bytes) in files {
            fs::write(folder.path().join(name), bytes).expect("writable");
        }
        found(folder.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn files_of_our_tokenizers_are_known_and_others_are_refused() {
        use experiment::Tokenizer::{Byte, Gpt2};
        for kind in [Gpt2, Byte] {
            let written = files(&Tokenizer::new(kind), &model());
            assert_eq!(found_in(&written), Ok(Some(kind)));
        }
        let of = |name: &str| (name.to_owned(), file(Gpt2, name).expect("there"));
        let (vocab, fast) = (of("vocab.json"), of("tokenizer.json"));
        assert_eq!(found_in(&[("vocab.json", vocab.1.clone())]), Ok(Some(Gpt2)));
        let changed = |change: &dyn Fn(&mut Value)| {
            let mut file: Value = serde_json::from_slice(&fast.1).expect("JSON");
            change(&mut file);
            found_in(&[("tokenizer.json", file.to_string().into_bytes())])
        };
        let empty = json!({"type": "Sequence", "normalizers": []});
        assert_eq!(changed(&|file| file["normalizer"] = empty.clone()), Ok(Some(Gpt2)));
        let pad = json!({"id": 50_257, "content": "<pad>"});
        let added = changed(&|file| file["added_tokens"].as_array_mut().expect("a list").push(pad.clone()));
        assert_eq!(added, Ok(Some(Gpt2)), "a token behind ours");
        type Change = fn(&mut Value);
        let cases: [(Change, &str); 4] = [
            (|file| file["normalizer"] = json!({"type": "Lowercase"}), "has a `normalizer`, which changes"),
            (|file| file["model"]["vocab"] = json!({"a": 0}), "has 2 tokens, not those of GPT-2"),
            (|file| file["model"]["type"] = json!("Unigram"), "has 0 tokens"),
            (
                |file| {
                    file["model"]["vocab"]["a"] = json!(65);
                    file["model"]["vocab"]["b"] = json!(64);
                },
                "has 50257 tokens, not those of GPT-2",
            ),
        ];
        for (change, says) in cases {
            let refused = changed(&change).expect_err("another tokenizer");
            assert!(refused.contains(says) && refused.contains("--set data.tokenizer"), "{refused}");
        }
        let class = |class: &str| {
            found_in(&[("tokenizer_config.json", json!({"tokenizer_class": class}).to_string().into_bytes())])
        };
        assert_eq!((class("GPT2Tokenizer"), found_in(&[])), (Ok(None), Ok(None)));
        assert!(class("LlamaTokenizer").expect_err("another").contains("says \"LlamaTokenizer\""));
        let sentences = found_in(&[("tokenizer.model", vec![10])]).expect_err("another");
        assert!(sentences.contains("its tokenizer is in `tokenizer.model`"), "{sentences}");
        let damaged = found_in(&[("tokenizer.json", b"{".to_vec())]).expect_err("damaged");
        assert!(damaged.contains("tokenizer.json`: EOF"), "{damaged}");
    }

    #[test]
    fn bytes_have_the_published_characters() {
        assert_eq!(printable(b"a \n\x00\x7f\xa0\xad\xff"), "aĠĊĀġłŃÿ");
    }

    #[test]
    fn the_merges_are_the_published_ones() {
        let merges = String::from_utf8(file(experiment::Tokenizer::Gpt2, "merges.txt").expect("there"))
            .expect("UTF-8");
        let lines: Vec<&str> = merges.lines().collect();
        assert_eq!(lines.len(), 50_001);
        assert_eq!(lines[..5], ["#version: 0.2", "Ġ t", "Ġ a", "h e", "i n"]);
        // OpenAI's `vocab.bpe` has this SHA-256 (it stands in tiktoken's source).
        let hash = hex::encode(Sha256::digest(merges.as_bytes()));
        assert_eq!(hash, "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5");
    }

    #[test]
    fn the_byte_tokenizer_has_a_token_a_byte_and_no_merges() {
        let fast = file(experiment::Tokenizer::Byte, "tokenizer.json").expect("there");
        let fast: Value = serde_json::from_slice(&fast).expect("JSON");
        assert_eq!(fast["model"]["vocab"].as_object().expect("a map").len(), 257);
        assert_eq!(
            (&fast["model"]["vocab"]["Ġ"], &fast["model"]["vocab"][END_OF_TEXT]),
            (&json!(32), &json!(256))
        );
        assert_eq!(fast["model"]["merges"], json!([]));
        assert_eq!(file(experiment::Tokenizer::Byte, "merges.txt"), None);
    }
}
