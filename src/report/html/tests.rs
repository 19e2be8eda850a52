//! Pages of small runs.

use std::path::Path;

use super::*;
use crate::store::main_log::MainLogWriter;
use crate::store::metrics::{Action, MetricsRow, MetricsWriter};

fn run(folder: &Path) {
    let mut metrics = MetricsWriter::create(folder).unwrap();
    for step in 0..30 {
        let mut row = MetricsRow::new(step, (step + 1) * 64, Action::Update);
        row.loss = Some(5.0 - step as f64 * 0.1);
        row.grad_norm = Some(1.0);
        row.step_ms = Some(20.0);
        row.tokens_per_s = Some(3200.0);
        if step == 11 {
            (row.action, row.loss, row.loss_z) = (Action::SkipLossZ, Some(9.5), Some(7.25));
        }
        metrics.append(&row).unwrap();
    }
}

#[test]
fn nothing_that_comes_from_a_file_reaches_the_page_as_markup() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("<b>&run");
    std::fs::create_dir_all(folder.join("samples")).unwrap();
    run(&folder);
    let evil = "</pre><script>alert('x')</script><img src=\"http://evil.example/x\">";
    std::fs::write(folder.join("samples/step_00000030.txt"), evil).unwrap();
    std::fs::write(folder.join("experiment.toml"), format!("name = {evil:?} # <i>origin</i>\n")).unwrap();
    std::fs::write(folder.join("lock.toml"), "<u>not a lock</u>").unwrap();
    std::fs::write(folder.join("ledger.jsonl"), "<s>not a ledger</s>\n").unwrap();
    let checks = vec![Check { status: Status::Failed, name: "<q>".into(), detail: "<em>".into() }];
    let page = HtmlPage::gather(&folder, checks).unwrap().render().unwrap();
    for raw in ["<script", "<img", "<i>", "<u>", "<s>", "<q>", "<em>", "<b>"] {
        assert!(!page.contains(raw), "{raw}");
    }
    for escaped in ["&lt;script&gt;", "&lt;i&gt;origin", "&lt;em&gt;", "&lt;b&gt;&amp;run"] {
        assert!(page.contains(escaped), "{escaped}");
    }
}

#[test]
fn the_page_needs_nothing_from_elsewhere_and_is_the_same_each_time() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path());
    let render = || HtmlPage::gather(folder.path(), Vec::new()).unwrap().render().unwrap();
    let page = render();
    assert_eq!(page, render());
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("default-src 'none'"));
    for loaded in ["://", "src=", "url(", "@import", "<script", "<link", "<iframe"] {
        assert!(!page.contains(loaded), "{loaded}");
    }
    assert_eq!(
        page.matches("<svg role=\"img\" aria-label=").count(),
        3,
        "loss, gradient norm and throughput"
    );
}

#[test]
fn what_is_damaged_is_shown_as_such_and_what_happened_is_told() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path());
    let page = HtmlPage::gather(folder.path(), Vec::new()).unwrap().render().unwrap();
    assert!(page.contains("There is no ledger") && page.contains("There is no lock"));
    assert!(page.contains("not verified: there is no ledger"));
    std::fs::write(folder.path().join("lock.toml"), "format = 1").unwrap();
    std::fs::write(folder.path().join("ledger.jsonl"), "{}\n").unwrap();
    let page = HtmlPage::gather(folder.path(), Vec::new()).unwrap().render().unwrap();
    assert!(page.contains("The ledger cannot be trusted") && page.contains("The lock cannot be trusted"));
    assert!(page.contains("skipped: loss 9.5000, z-score 7.25"));
    assert!(
        page.contains("median of the last 30 steps") && page.contains("Tokens per second, last 30 steps")
    );
    assert!(
        page.contains("1 above") || page.contains("1 step above"),
        "the plot counts what is off its scale"
    );
}

#[test]
fn a_run_that_is_only_a_log_of_llm_c_has_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = MainLogWriter::create(folder.path()).unwrap();
    log.append(&MetricsRow {
        val_loss: Some(4.0),
        hellaswag: Some(0.25),
        ..MetricsRow::new(0, 0, Action::Evaluate)
    })
    .unwrap();
    let page = HtmlPage::gather(folder.path(), Vec::new()).unwrap().render().unwrap();
    assert!(page.contains("4.0000") && page.contains("0.2500") && page.contains("no experiment.toml"));
}

#[test]
fn the_sensors_of_a_gpu_are_told_with_why_it_was_throttled() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path());
    let mut log = crate::store::gpu_log::GpuLog::open(&RunPaths::new(folder.path()).gpu_log()).unwrap();
    for (watts, throttled) in
        [(640.0, Vec::new()), (697.0, vec!["power_cap".to_owned()]), (698.0, vec!["power_cap".to_owned()])]
    {
        log.append(&GpuSample { watts: Some(watts), throttled, ..GpuSample::default() }).unwrap();
    }
    let page = HtmlPage::gather(folder.path(), Vec::new()).unwrap().render().unwrap();
    assert!(page.contains("GPU power, W") && page.contains(">697<"));
    assert!(page.contains("2 of 3 samples of the GPU's sensors found it throttled: power_cap."));
    assert!(!page.contains("GPU clock"), "the sensor did not tell it");
}

#[test]
fn an_empty_folder_is_an_error_that_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let error = HtmlPage::gather(folder.path(), Vec::new()).err().unwrap().to_string();
    assert!(error.contains("metrics"), "{error}");
}

#[test]
fn a_run_that_failed_says_so_in_its_heading() {
    let folder = tempfile::tempdir().unwrap();
    let mut metrics = MetricsWriter::create(folder.path()).unwrap();
    for step in 0..9 {
        let action = if step < 6 { Action::Update } else { Action::SkipLossZ };
        let row = MetricsRow { loss: Some(5.0), ..MetricsRow::new(step, (step + 1) * 64, action) };
        metrics.append(&row).unwrap();
    }
    let heading = |patience: u64| {
        let text = format!("[schedule]\nsteps = 20\n\n[guards]\npatience = {patience}\n");
        std::fs::write(folder.path().join("experiment.toml"), text).unwrap();
        HtmlPage::gather(folder.path(), Vec::new()).unwrap().render().unwrap()
    };
    let page = heading(3);
    assert!(page.contains("failed after 9 of 20 steps: diverged: 3 steps in a row were skipped"), "{page}");
    assert!(heading(4).contains("9 of 20 steps so far"));
}
