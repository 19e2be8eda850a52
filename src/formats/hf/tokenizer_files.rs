//! A tokenizer as Hugging Face's files.
//!
//! Both tokenizers are byte-level byte-pair encodings there: GPT-2's, and one without merges whose tokens are
//! the 256 bytes. Files hold text, so each byte is written as a printable character: itself where it
//! is one, else a character from U+0100 on (Radford et al. 2019, `bytes_to_unicode`).
//!
//! tiktoken keeps ranks, Hugging Face the pairs that were merged. A pair follows from the ranks: encoding the
//! token's own bytes with the lower ranks alone leaves two parts, which are what was merged.
//!
//! One difference remains: `<|endoftext|>` inside a text is markup to Hugging Face and plain text to us.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::data::Tokenizer;
use crate::data::tokenizer::END_OF_TEXT;
use crate::experiment::Model;

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

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::experiment;

    fn model() -> Model {
        Model::gpt2(1, 1, 8, 16, 50_257)
    }

    fn file(kind: experiment::Tokenizer, name: &str) -> Option<Vec<u8>> {
        files(&Tokenizer::new(kind), &model()).into_iter().find(|(n, _)| *n == name).map(|(_, bytes)| bytes)
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
