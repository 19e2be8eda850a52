//! Experiments: layers, checks, messages, and the way back to TOML.

#![no_main]

#[path = "../exercise.rs"]
#[allow(dead_code)]
mod exercise;

libfuzzer_sys::fuzz_target!(|data: &[u8]| exercise::experiment_toml(data));
