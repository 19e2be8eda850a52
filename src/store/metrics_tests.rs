use super::*;

fn row(step: u64) -> MetricsRow {
    MetricsRow {
        loss: Some(4.25),
        grad_norm: Some(0.1 + 0.2),
        learning_rate: Some(6e-4),
        loss_z: (step > 2).then_some(-1.25),
        val_loss: (step.is_multiple_of(2)).then_some(4.5),
        step_ms: Some(12.5),
        ..MetricsRow::new(step, (step + 1) * 512, Action::Update)
    }
}

/// Rows with values that formats tend to lose.
fn awkward_rows() -> Vec<MetricsRow> {
    let nan_with_payload = f64::from_bits(0xfff8_0000_0000_0abc);
    vec![
        row(0),
        MetricsRow {
            loss: Some(f64::NAN),
            grad_norm: Some(nan_with_payload),
            action: Action::SkipNonfinite,
            ..row(1)
        },
        MetricsRow { loss: Some(f64::INFINITY), loss_z: Some(f64::NEG_INFINITY), ..row(2) },
        MetricsRow {
            loss: Some(-0.0),
            grad_norm: Some(5e-324),
            hellaswag: Some(0.1),
            hellaswag_acc_norm: Some(0.3),
            hellaswag_acc_bytes: Some(0.35),
            ..row(3)
        },
        MetricsRow { events: vec!["resume".into(), "drift".into()], action: Action::SkipGradZ, ..row(4) },
        MetricsRow {
            val_loss: Some(f64::NAN),
            ema_val_loss: Some(4.5),
            ema_hellaswag: Some(0.2),
            ..MetricsRow::new(5, 2560, Action::Evaluate)
        },
    ]
}

fn assert_same(left: &[MetricsRow], right: &[MetricsRow]) {
    assert_eq!(left.len(), right.len());
    for (left, right) in left.iter().zip(right) {
        assert!(left.same_bits(right), "{left:?}\n{right:?}");
        assert_eq!((left.step_ms, left.mfu, &left.events), (right.step_ms, right.mfu, &right.events));
    }
}

#[test]
fn a_line_shows_the_decimal_beside_its_bits() {
    let line = row(0).to_line();
    assert!(
        line.starts_with(r#"{"step":0,"tokens":512,"loss":4.25,"loss_bits":"0x4011000000000000","#),
        "{line}"
    );
    assert!(line.contains(r#""loss_bits":"0x4011000000000000","grad_norm":0.30000000000000004,"#), "{line}");
    assert!(line.contains(r#""loss_z":null,"loss_z_bits":null,"#), "{line}");
    assert!(line.ends_with("}\n") && line.matches('\n').count() == 1);
}

#[test]
fn nan_and_infinity_survive_json() {
    for row in awkward_rows() {
        let line = row.to_line();
        assert_same(&[MetricsRow::from_line(&line).unwrap()], &[row]);
    }
    let line = awkward_rows()[1].to_line();
    assert!(line.contains(r#""loss":null,"loss_bits":"0x7ff8000000000000""#), "{line}");
}

#[test]
fn parquet_gives_back_equal_bits() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = MetricsWriter::create(folder.path()).unwrap();
    for row in awkward_rows() {
        writer.append(&row).unwrap();
    }
    let parquet = folder.path().join(PARQUET);
    writer.write_parquet(&parquet).unwrap();
    writer.write_parquet(&parquet).unwrap();
    assert_same(&metrics_parquet::read(&parquet).unwrap(), &awkward_rows());
    let names: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "no temporary file may stay: {names:?}");

    std::fs::remove_file(folder.path().join(JSONL)).unwrap();
    assert_same(&read(folder.path()).unwrap(), &awkward_rows());
}

#[test]
fn a_killed_and_resumed_file_equals_the_uninterrupted_one() {
    let (whole, killed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut writer = MetricsWriter::create(whole.path()).unwrap();
    (0..8).for_each(|step| writer.append(&row(step)).unwrap());

    let mut writer = MetricsWriter::create(killed.path()).unwrap();
    (0..6).for_each(|step| writer.append(&row(step)).unwrap());
    let path = killed.path().join(JSONL);
    let torn = std::fs::read_to_string(&path).unwrap() + &row(6).to_line()[..40];
    std::fs::write(&path, torn).unwrap();
    let mut writer = MetricsWriter::resume(killed.path(), 4).unwrap();
    (4..8).for_each(|step| writer.append(&row(step)).unwrap());

    assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(whole.path().join(JSONL)).unwrap());
}

#[test]
fn rows_lost_before_the_resumed_step_are_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = MetricsWriter::create(folder.path()).unwrap();
    (0..3).for_each(|step| writer.append(&row(step)).unwrap());
    let error = MetricsWriter::resume(folder.path(), 5).unwrap_err().to_string();
    assert!(error.contains("step 2") && error.contains("step 5"), "{error}");
    assert_eq!(read(folder.path()).unwrap().len(), 3, "a refusal must not cut rows");
}

#[test]
fn faults_name_the_line_and_the_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(JSONL);
    let fault = |text: String| {
        std::fs::write(&path, text).unwrap();
        read(folder.path()).unwrap_err().to_string()
    };
    let good = row(0).to_line();
    let lied = row(1).to_line().replace("\"loss\":4.25", "\"loss\":4.26");
    let error = fault(format!("{good}{lied}"));
    assert!(
        error.contains("line 2") && error.contains("`loss` is 4.26") && error.contains("which is 4.25"),
        "{error}"
    );
    let error = fault(format!("{good}{{\"step\":1}}\n"));
    assert!(error.contains("line 2") && error.contains("tokens"), "{error}");
    let error = fault(format!("{good}{good}"));
    assert!(error.contains("line 2") && error.contains("step 0 follows step 0"), "{error}");
    let error = fault(good.replace("0x4011", "4011"));
    assert!(error.contains("line 1") && error.contains("`loss_bits`"), "{error}");
}

#[test]
fn a_folder_without_metrics_is_named() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(read(folder.path()), Err(MetricsError::Missing { .. })));
}

/// The files are read by other programs: their keys and order are fixed.
#[test]
fn a_row_has_these_keys_in_this_order() {
    let line = row(0).to_line();
    let keys = "step tokens loss loss_bits grad_norm grad_norm_bits learning_rate learning_rate_bits loss_z \
        loss_z_bits grad_z grad_z_bits action val_loss val_loss_bits hellaswag hellaswag_bits hellaswag_acc \
        hellaswag_acc_bits hellaswag_acc_norm hellaswag_acc_norm_bits \
        hellaswag_acc_bytes hellaswag_acc_bytes_bits step_ms tokens_per_s mfu events";
    let found: Vec<&str> = line
        .split('"')
        .skip(1)
        .step_by(2)
        .filter(|text| keys.split_whitespace().any(|key| key == *text))
        .collect();
    assert_eq!(found.join(" "), keys);
}

/// Polars panics on some of them.
#[test]
fn a_damaged_parquet_file_is_an_error_and_no_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(PARQUET);
    metrics_parquet::write(&path, &awkward_rows()).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let mut refused = 0;
    for at in (whole.len() - 1500..whole.len()).step_by(3) {
        for bit in [1, 4, 7] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << bit;
            std::fs::write(&path, damaged).unwrap();
            refused += u32::from(metrics_parquet::read(&path).is_err());
        }
    }
    assert!(refused > 100, "{refused}");
}

#[test]
fn columns_of_the_average_are_in_the_files_of_runs_alone_that_keep_one() {
    let plain = row(0);
    let averaged = MetricsRow { ema_val_loss: Some(4.25), ..row(1) };
    assert!(!plain.to_line().contains("ema_"), "{}", plain.to_line());
    let behind = r#","ema_val_loss":4.25,"ema_val_loss_bits":"0x4011000000000000","step_ms":"#;
    assert!(averaged.to_line().contains(behind), "{}", averaged.to_line());
    let folder = tempfile::tempdir().unwrap();
    let columns = |rows: &[MetricsRow]| {
        let path = folder.path().join(PARQUET);
        metrics_parquet::write(&path, rows).unwrap();
        assert_same(&metrics_parquet::read(&path).unwrap(), rows);
        let bytes = std::fs::read(&path).unwrap();
        bytes.windows(4).any(|text| text == b"ema_")
    };
    assert!(!columns(std::slice::from_ref(&plain)));
    assert!(columns(&[plain, averaged]));
}

#[test]
fn keys_of_a_newer_program_are_passed_over_and_missing_columns_are_not_measured() {
    let line = r#"{"step":3,"tokens":4,"novelty":{"a":[1]},"action":"update","events":[]}"#;
    let row = MetricsRow::from_line(line).unwrap();
    assert_eq!((row.step, row.tokens, row.loss, row.mfu), (3, 4, None, None));
}
