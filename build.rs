//! Tells the program which sources it was built from, for the `[source]` table of a lock.
//!
//! Every value is "unknown" where git or rustc cannot be asked: a build from an archive must work. Only
//! the sources are watched, not git's own files: "commit A and patch P" stays a true description of
//! what was compiled when P is committed later, and a commit alone rebuilds nothing.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// What reaches the binary.
const SOURCES: [&str; 5] = ["src", "kernels", "Cargo.toml", "Cargo.lock", "build.rs"];

fn main() {
    for source in SOURCES.iter().filter(|source| Path::new(source).exists()) {
        println!("cargo::rerun-if-changed={source}");
    }
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let values = [
        ("RUNNER_GIT_COMMIT", git(&["rev-parse", "HEAD"])),
        ("RUNNER_DIRTY_PATCH", dirty_patch()),
        ("RUNNER_RUSTC", output(&rustc, &["--version"])),
        ("RUNNER_TARGET", std::env::var("TARGET").ok()),
    ];
    for (name, value) in values {
        println!("cargo::rustc-env={name}={}", value.as_deref().unwrap_or("unknown").trim());
    }
}

/// "none", or git's object id of the difference between the last commit and the sources: tracked
/// changes as a patch, new files as name and object id.
fn dirty_patch() -> Option<String> {
    let mut patch =
        git(&[&["diff", "HEAD", "--binary", "--no-ext-diff", "--"], SOURCES.as_slice()].concat())?;
    let new = git(&[&["ls-files", "--others", "--exclude-standard", "--"], SOURCES.as_slice()].concat())?;
    for name in new.lines() {
        patch.push_str(&format!("{name} {}", git(&["hash-object", "--", name])?));
    }
    if patch.is_empty() {
        return Some("none".into());
    }
    let mut hash = Command::new("git")
        .args(["hash-object", "--stdin"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .ok()?;
    hash.stdin.take()?.write_all(patch.as_bytes()).ok()?;
    let out = hash.wait_with_output().ok()?;
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).into_owned())
}

fn git(arguments: &[&str]) -> Option<String> {
    output("git", arguments)
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let out = Command::new(program).args(arguments).stderr(Stdio::null()).output().ok()?;
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).into_owned())
}
