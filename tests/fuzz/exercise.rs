//! What the targets do with arbitrary bytes: read them, and check what the reader returns.
//!
//! An error must name the file; what is accepted must be as the reader describes it. Shared by the fuzz
//! targets and by the plain test that runs the seeds.

use std::path::Path;

use runner::data::Tokenizer;
use runner::{data, eval, experiment, formats, store};

const NAME: &str = "some/file";

/// An error names the file, and is a message rather than a dump.
fn refused(error: &dyn std::fmt::Display) {
    let text = error.to_string();
    assert!(text.contains(NAME), "a message without the file: {text}");
    assert!(text.len() < 4000, "a message of {} bytes", text.len());
}

pub fn shard(bytes: &[u8]) {
    match data::shard::check(Path::new(NAME), bytes, bytes.len() as u64) {
        Ok(header) => assert_eq!(bytes.len() as u64, data::shard::HEADER_BYTES + 2 * header.tokens),
        Err(error) => refused(&error),
    }
}

pub fn eval_file(bytes: &[u8]) {
    let tokenizer = Tokenizer::new(experiment::Tokenizer::Gpt2);
    let (vocab, seq_len) = (tokenizer.vocab(), 256);
    for of in [eval::Benchmark::Lambada, eval::Benchmark::ArcEasy, eval::Benchmark::Piqa] {
        questions(bytes, of, &tokenizer, seq_len);
    }
    match eval::TaskSet::parse(Path::new(NAME), bytes, &tokenizer, vocab, seq_len) {
        Err(error) => refused(&error),
        Ok(set) => {
            assert!(!set.tasks().is_empty());
            for task in set.tasks() {
                assert!(task.label < task.plain.completions.len());
                for prompt in std::iter::once(&task.plain).chain(&task.harness) {
                    assert!(!prompt.context.is_empty());
                    assert!(prompt.completions.iter().all(|tokens| (1..=seq_len).contains(&tokens.len())));
                    let tokens = prompt.completions.iter().chain([&prompt.context]).flatten();
                    assert!(tokens.into_iter().all(|&token| usize::from(token) < vocab));
                }
                assert!(task.lengths.iter().all(|length| 0 < length.chars && length.chars <= length.bytes));
            }
        }
    }
}

/// Questions of lm-eval's tasks.
fn questions(bytes: &[u8], of: eval::Benchmark, tokenizer: &Tokenizer, seq_len: usize) {
    match eval::QuestionSet::parse(Path::new(NAME), bytes, of, tokenizer, tokenizer.vocab(), seq_len) {
        Err(error) => refused(&error),
        Ok(set) => {
            assert!(!set.questions().is_empty());
            for question in set.questions() {
                assert!(question.label < question.continuations.len() && !question.context.is_empty());
                assert!(question.continuations.iter().all(|tokens| (1..=seq_len).contains(&tokens.len())));
                assert!(question.chars.iter().all(|chars| *chars > 0));
            }
        }
    }
}

pub fn safetensors_header(bytes: &[u8]) {
    match store::safetensors::infos(Path::new(NAME), bytes) {
        Err(error) => refused(&error),
        Ok(infos) => {
            let data: usize = infos.iter().map(|info| info.bytes).sum();
            assert!(data <= bytes.len());
            for info in &infos {
                assert_eq!(store::Tensor::byte_len(info.dtype, &info.shape), Some(info.bytes));
            }
        }
    }
    // The same bytes as another program's file, of which every other tensor is wanted.
    match store::safetensors::parse_floats(Path::new(NAME), bytes, |name| name.len() % 2 == 0) {
        Err(error) => refused(&error),
        Ok(floats) => {
            for tensor in &floats.tensors {
                assert_eq!(store::Tensor::byte_len(tensor.dtype, &tensor.shape), Some(tensor.bytes.len()));
            }
        }
    }
}

/// Both JSON files of a Hugging Face folder.
pub fn hf_json(bytes: &[u8]) {
    match formats::hf::parse_config(Path::new(NAME), bytes) {
        Err(error) => refused(&error),
        Ok(model) => {
            assert!(model.layers > 0 && model.channels.is_multiple_of(model.heads));
            assert!(model.context > 0 && (1..=model.vocab_padded).contains(&model.vocab));
        }
    }
    match formats::hf::parse_index(Path::new(NAME), bytes) {
        Err(error) => refused(&error),
        Ok(files) => assert!(files.values().all(|file| Path::new(file).components().count() == 1)),
    }
}

pub fn model_bin(bytes: &[u8]) {
    match formats::llmc::parse(Path::new(NAME), bytes) {
        Err(error) => refused(&error),
        Ok((parameters, precision)) => {
            let element = precision.dtype().size();
            for tensor in parameters.tensors.iter() {
                assert_eq!(tensor.bytes.len(), tensor.shape.iter().product::<usize>() * element);
            }
        }
    }
}

pub fn experiment_toml(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    // What another file says is not in these bytes.
    if text.contains("extends") {
        return;
    }
    match experiment::load_text(NAME, text, &[]) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(loaded) => {
            let written = loaded.to_toml();
            match experiment::load_text(NAME, &written, &[]) {
                Ok(again) => assert_eq!(again.experiment, loaded.experiment, "{written}"),
                Err(error) => panic!("what was written does not load: {error}\n{written}"),
            }
        }
    }
}
