//! Runs the seeds of the fuzz targets, and simple mutations of them, through the targets' functions.
//!
//! Not a fuzzer: the mutations are the same each time, and few enough for every run of the tests. The targets
//! themselves, which follow coverage, are in `tests/fuzz`.

use std::path::{Path, PathBuf};

use runner::rng::Key;

#[path = "../fuzz/exercise.rs"]
mod exercise;

/// Mutations of each seed.
const MUTATIONS: u64 = 400;

/// The seeds of a target by name; each target has some.
fn seeds(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds").join(target);
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(&folder).expect("seeds").map(|e| e.expect("an entry").path()).collect();
    paths.sort();
    assert!(paths.len() >= 3, "{} has hardly any seeds", folder.display());
    paths.into_iter().map(|path| (path.clone(), std::fs::read(path).expect("readable"))).collect()
}

/// Damages bytes in the ways in which files are damaged: flips, cuts, holes, absurd numbers in headers, parts
/// of another file.
fn mutate(bytes: &mut Vec<u8>, other: &[u8], random: impl Fn(u64) -> u64) {
    for change in 0..=random(0) % 3 {
        let random = |what: u64, below: usize| (random(1 + 8 * change + what) % below.max(1) as u64) as usize;
        let at = random(0, bytes.len());
        match random(1, 8) {
            0 => bytes.truncate(at),
            1 => bytes.extend_from_slice(&other[..random(2, other.len() + 1)]),
            2 if !bytes.is_empty() => bytes[at] ^= 1 << random(3, 8),
            3 if !bytes.is_empty() => bytes[at] = random(3, 256) as u8,
            // A number of a header.
            4 | 5 if bytes.len() >= 4 => {
                let word = [0, 1, -1, i32::MAX, i32::MIN, 65_535, 50_257, 1 << 24][random(3, 8)];
                let word_at = random(4, 16).min(bytes.len() / 4 - 1) * 4;
                bytes[word_at..word_at + 4].copy_from_slice(&word.to_le_bytes());
            }
            6 => {
                let end = (at + random(5, 64)).min(bytes.len());
                bytes.drain(at..end);
            }
            _ => {
                let from = random(6, other.len());
                let part = &other[from..(from + random(7, 32)).min(other.len())];
                bytes.splice(at..at, part.iter().copied());
            }
        }
    }
}

fn run(target: &str, exercise: fn(&[u8])) {
    let seeds = seeds(target);
    for (index, (path, seed)) in seeds.iter().enumerate() {
        exercise(seed);
        let other = &seeds[(index + 1) % seeds.len()].1;
        for round in 0..MUTATIONS {
            let mut bytes = seed.clone();
            mutate(&mut bytes, other, |i| u64::from(Key([11, index as u32]).block_at(round, i)[0]));
            let outcome = std::panic::catch_unwind(|| exercise(&bytes));
            assert!(
                outcome.is_ok(),
                "mutation {round} of {}: {:?}",
                path.display(),
                String::from_utf8_lossy(&bytes)
            );
        }
    }
}

#[test]
fn token_shards() {
    run("shard", exercise::shard);
}

#[test]
fn evaluation_files() {
    run("eval_file", exercise::eval_file);
}

#[test]
fn safetensors_headers() {
    run("safetensors_header", exercise::safetensors_header);
}

#[test]
fn configurations_and_indices_of_hugging_face() {
    run("hf_json", exercise::hf_json);
}

#[test]
fn model_files_of_llm_c() {
    run("model_bin", exercise::model_bin);
}

#[test]
fn experiments() {
    run("experiment_toml", exercise::experiment_toml);
}
