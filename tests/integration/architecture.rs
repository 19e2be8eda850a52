//! Dependencies point down the layers and never up: read from the `use` lines. A module's tests may
//! look anywhere.

use std::path::{Path, PathBuf};

/// From the top down. A module may use those of lower layers and of its own layer.
const LAYERS: [&[&str]; 6] = [
    &["cli"],
    &["plan", "train", "report", "formats", "generate", "eval"],
    &["model", "optim", "parallel", "store", "proof", "data"],
    &["ops"],
    &["experiment"],
    &["rng", "units"],
];

fn layer(module: &str) -> usize {
    LAYERS
        .iter()
        .position(|layer| layer.contains(&module))
        .unwrap_or_else(|| panic!("`{module}` is in no layer"))
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
            files.push(path);
        }
    }
}

#[test]
fn no_module_uses_one_above_it() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&src, &mut files);
    let mut faults = Vec::new();
    let mut uses = 0;
    for file in files {
        let inside = file.strip_prefix(&src).expect("below src");
        let module =
            inside.components().next().expect("a name").as_os_str().to_string_lossy().replace(".rs", "");
        if ["lib", "main"].contains(&module.as_str()) {
            continue;
        }
        let text = std::fs::read_to_string(&file).expect("readable");
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for used in code.split("crate::").skip(1) {
                let used: String = used.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
                if used.is_empty() {
                    continue;
                }
                uses += 1;
                if layer(&used) < layer(&module) {
                    faults.push(format!("{}:{}: `{module}` uses `{used}`", inside.display(), number + 1));
                }
            }
        }
    }
    assert!(uses > 50, "only {uses} uses were found: is the search right?");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
