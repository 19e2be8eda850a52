//! Tasks of evaluation: llm.c's `.bin` and HellaSwag's jsonl.

#![no_main]

#[path = "../exercise.rs"]
#[allow(dead_code)]
mod exercise;

libfuzzer_sys::fuzz_target!(|data: &[u8]| exercise::eval_file(data));
