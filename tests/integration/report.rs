//! `runner report`: the page of a run, in its folder and in a browser.
//!
//! The pictures that a browser takes stay under `target/tmp/report`, for the eye.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{Lab, flip_bit};

#[test]
fn the_page_tells_result_promises_and_damage() {
    let lab = Lab::new();
    let run = lab.run("experiments/ci.toml", &["--set", "proof.replay_every=7"]);
    let root = run.root();
    let written = lab.verb("report", "ci", &[]);
    assert_eq!(written.code, Some(0), "{}", written.stderr);
    let path = lab.path("ci/report.html");
    assert_eq!(Path::new(written.stdout.trim()), path);
    let page = std::fs::read_to_string(&path).expect("the page");
    for text in [
        root,
        "✓ passed",
        "finished after 20 steps",
        "experiments/ci.toml:",
        "numerics_id",
        std::env::consts::ARCH,
        "model.channels",
    ] {
        assert!(page.contains(text), "`{text}` is not on the page");
    }
    assert!(!page.contains("FAILED"), "{page}");

    // A flipped bit in a checkpoint: the page says so, and is still a page.
    flip_bit(&lab.path("ci/checkpoints/step_00000010/state.safetensors"), 0.99);
    let other = lab.path("elsewhere.html");
    let damaged = lab.verb("report", "ci", &["-o", other.to_str().expect("UTF-8")]);
    assert_eq!(damaged.code, Some(0), "{}", damaged.stderr);
    assert!(damaged.stderr.contains("1 check failed"), "{}", damaged.stderr);
    let page = std::fs::read_to_string(&other).expect("the page");
    assert!(page.contains("✗ FAILED") && page.contains("every byte of checkpoint 10"), "{page}");
    lab.verb("report", "ci", &["--no-verify"]);
    let page = std::fs::read_to_string(&path).expect("the page");
    // What the run itself made sure of stands without another look.
    assert!(page.contains("○ not checked") && page.matches("✓ passed").count() == 1, "{page}");
    assert!(!page.contains("no line of the ledger was edited"));
}

/// The browser, which must be installed.
fn chromium() -> PathBuf {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    std::env::split_paths(&folders)
        .flat_map(|folder| names.map(|name| folder.join(name)))
        .find(|path| path.is_file())
        .expect("chromium is in PATH")
}

/// Runs the browser without a window; gives what it writes to stdout.
fn browse(browser: &Path, profile: &Path, arguments: &[&str]) -> String {
    let output = Command::new(browser)
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("the browser starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
#[ignore = "skipped: needs chromium; run with --include-ignored"]
fn a_browser_shows_the_page_on_a_desk_on_a_phone_and_in_the_dark() {
    let browser = chromium();
    let lab = Lab::new();
    lab.run("experiments/ci.toml", &[]).root();
    assert_eq!(lab.verb("report", "ci", &[]).code, Some(0));
    let page = lab.path("ci/report.html");
    let url = format!("file://{}", page.display());
    let shots = Path::new(env!("CARGO_TARGET_TMPDIR")).join("report");
    std::fs::create_dir_all(&shots).expect("a folder for pictures");
    for (name, (width, height), dark) in
        [("desk", (1280, 2400), false), ("phone", (390, 3600), false), ("dark", (1280, 1200), true)]
    {
        let file = shots.join(format!("{name}.png"));
        let scheme = format!("--blink-settings=preferredColorScheme={}", if dark { 0 } else { 1 });
        let (size, target) =
            (format!("--window-size={width},{height}"), format!("--screenshot={}", file.display()));
        browse(&browser, &lab.path("profile"), &[&size, &scheme, &target, &url]);
        let png = std::fs::read(&file).expect("a picture");
        let side = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().expect("four bytes"));
        assert_eq!((side(16), side(20)), (width, height), "{name}");
        assert!(png.len() > 40_000, "{name} is next to empty: {} bytes", png.len());
    }

    // No width may need scrolling sideways.
    let frame = lab.path("frame.html");
    for width in [320, 390, 768, 1280] {
        let html = format!(
            "<iframe id=f width={width} height=800 src=\"{url}\"></iframe><p id=o></p>\
             <script>f.onload=()=>{{let d=f.contentDocument.documentElement;\
             o.textContent=`inner ${{d.scrollWidth-d.clientWidth}} over`}}</script>"
        );
        std::fs::write(&frame, html).expect("written");
        let flags = ["--allow-file-access-from-files", "--virtual-time-budget=5000", "--dump-dom"];
        let dom = browse(
            &browser,
            &lab.path("profile"),
            &[&flags[..], &[&format!("file://{}", frame.display())]].concat(),
        );
        assert!(
            dom.contains("inner 0 over"),
            "at {width} pixels: {}",
            dom.lines().last().unwrap_or_default()
        );
    }

    let pdf = shots.join("paper.pdf");
    browse(
        &browser,
        &lab.path("profile"),
        &["--no-pdf-header-footer", &format!("--print-to-pdf={}", pdf.display()), &url],
    );
    assert!(std::fs::read(&pdf).expect("a document").starts_with(b"%PDF"));
}
