//! The width of the text in this repository.

use std::path::{Path, PathBuf};

/// The most columns of a line.
const WIDTH: usize = 110;

/// Files below `folder` whose names end in one of `endings`; folders that a build makes are left out.
fn files(folder: &Path, endings: &[&str], found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if !["target", "runs", "data"].contains(&name.as_str()) && !name.starts_with('.') {
                files(&path, endings, found);
            }
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            found.push(path);
        }
    }
}

/// All sources.
fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in ["src", "tests", "kernels", "release"] {
        files(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join(folder),
            &[".rs", ".cu", ".cuh", ".py"],
            &mut found,
        );
    }
    assert!(found.len() > 400, "only {} files were found: is the search right?", found.len());
    found
}

/// The numbers of the lines that are too long. Tables are as wide as they are, and in Markdown headings,
/// transcripts and lines with a link.
fn too_long(text: &str, is_markdown: bool) -> Vec<usize> {
    let mut in_transcript = false;
    let mut is_free = |line: &str| {
        let fence = line.trim_start().starts_with("```");
        in_transcript ^= fence;
        let is_link = line.contains("](") || line.contains("https://");
        let is_table = line.trim_start_matches([' ', '/', '!']).starts_with('|');
        let cannot_break = line.starts_with('#') || line.starts_with("    ");
        is_table || is_markdown && (fence || in_transcript || is_link || cannot_break)
    };
    let lines = text.lines().enumerate().filter(|(_, line)| !is_free(line) && line.chars().count() > WIDTH);
    lines.map(|(number, _)| number + 1).collect()
}

#[test]
fn lines_have_at_most_110_columns() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = sources();
    files(&root.join("docs"), &[".py"], &mut found);
    files(root, &[".md"], &mut found);
    let faults: Vec<String> = found
        .iter()
        .flat_map(|path| {
            let text = std::fs::read_to_string(path).expect("UTF-8");
            let is_markdown = path.extension().is_some_and(|ending| ending == "md");
            let name = path.strip_prefix(root).expect("below the root").display().to_string();
            too_long(&text, is_markdown).into_iter().map(move |line| format!("{name}:{line}"))
        })
        .collect();
    assert!(faults.is_empty(), "over {WIDTH} columns: {}", faults.join(", "));
}

#[test]
fn a_long_line_is_found_wherever_it_may_be_broken() {
    let long = "word ".repeat(30);
    let text =
        format!("short\n{long}\n| {long} |\n```\n{long}\n```\n[{long}](file)\n{long}\n{}\n", "ü".repeat(110));
    assert_eq!(too_long(&text, true), [2, 8]);
    assert_eq!(too_long(&text, false), [2, 5, 7, 8]);
}

#[test]
fn no_file_has_more_than_600_lines() {
    let found = sources();
    let lines = |path: &PathBuf| std::fs::read_to_string(path).expect("UTF-8").lines().count();
    let long: Vec<&PathBuf> = found.iter().filter(|path| lines(path) > 600).collect();
    assert!(long.is_empty(), "over 600 lines: {long:?}");
}
