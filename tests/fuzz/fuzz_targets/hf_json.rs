//! `config.json` and `model.safetensors.index.json` of a Hugging Face folder.

#![no_main]

#[path = "../exercise.rs"]
#[allow(dead_code)]
mod exercise;

libfuzzer_sys::fuzz_target!(|data: &[u8]| exercise::hf_json(data));
