//! Tells the program which sources it was built from, for the `[source]` table of a lock, and puts compiled
//! kernels into it.
//!
//! `KERNEL_PACK` names the file that `release/kernels.py` writes; without it the program carries no compiled
//! kernels, and NVRTC makes them on the machine that has the GPU.
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
    embed_kernels();
}

/// Leaves `kernels.pack` for the program: empty, or the file of `KERNEL_PACK` compressed with zlib.
fn embed_kernels() {
    println!("cargo::rerun-if-env-changed=KERNEL_PACK");
    let mut packed = Vec::new();
    if let Some(pack) = std::env::var_os("KERNEL_PACK").filter(|path| !path.is_empty()) {
        println!("cargo::rerun-if-changed={}", pack.display());
        let hint = "\n  hint: `python3 release/kernels.py FILE` writes it";
        let bytes = std::fs::read(&pack)
            .unwrap_or_else(|why| panic!("KERNEL_PACK names `{}`: {why}{hint}", pack.display()));
        let head = b"runner/cubins/v1\n";
        assert!(
            bytes.starts_with(head),
            "KERNEL_PACK names `{}`, which has no kernels{hint}",
            pack.display()
        );
        let mut encoder = flate2::write::ZlibEncoder::new(&mut packed, flate2::Compression::best());
        encoder.write_all(&bytes).and_then(|()| encoder.finish()).expect("memory takes it");
    }
    let folder = std::env::var_os("OUT_DIR").expect("cargo names a folder");
    std::fs::write(Path::new(&folder).join("kernels.pack"), packed).expect("cargo's folder can be written");
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
