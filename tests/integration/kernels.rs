//! The bindings of kernels against the folders of the sources: no file of either is left out.

use std::path::{Path, PathBuf};

use runner::ops::cuda::launch::{BINDINGS, sources};
use runner::ops::cuda::sources::HEADERS;

fn files(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let entries = std::fs::read_dir(folder).expect("the folder");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files
}

#[test]
fn every_file_of_kernels_is_embedded() {
    let name = |file: &PathBuf| file.file_name().expect("a name").to_str().expect("ASCII").to_owned();
    let files: Vec<String> = files("kernels").iter().map(name).collect();
    let mut embedded: Vec<&str> = sources().chain(HEADERS).map(|source| source.file).collect();
    embedded.sort_unstable();
    assert_eq!(embedded, files);
}

/// A file that is not in the list would go unchecked, and so would a struct that does without the macro.
#[test]
fn every_launch_file_with_bindings_is_in_the_list() {
    let (mut bound, mut declared) = (0, 0);
    for file in files("src/ops/cuda/launch").iter().filter(|file| !file.ends_with("tests.rs")) {
        let text = std::fs::read_to_string(file).expect("readable");
        assert!(!text.contains("impl KernelArgs"), "{}: use `bindings!`", file.display());
        let Some(start) = text.find("\nbindings! {\n") else { continue };
        bound += 1;
        let block = &text[start..][..text[start..].find("\n}\n").expect("the macro ends")];
        declared += block.lines().filter(|line| line.trim_start().starts_with("struct ")).count();
    }
    assert_eq!(bound, BINDINGS.len(), "files with bindings");
    let structs: usize = BINDINGS.iter().map(|file| (file.structs)().len()).sum();
    assert_eq!(declared, structs, "structs in their text");
}
