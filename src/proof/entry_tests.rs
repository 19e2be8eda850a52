use super::*;
use crate::proof::tree::tree_root;
use crate::proof::{HellaSwag, Validation};

fn example() -> Entry {
    Entry {
        step: 7,
        tokens: 3_670_016,
        root: Some(Hash::of(b"state")),
        loss: Some(10.539388656616211),
        grad_norm: Some(43.5996),
        learning_rate: Some(1.71e-6),
        loss_z: None,
        grad_z: Some(-0.25),
        action: Action::Update,
        events: vec![],
        evaluation: None,
        audit: None,
        sources: Default::default(),
    }
}

/// The entry of a skipped step, after a rewind.
fn skipped() -> Entry {
    Entry {
        step: 8,
        tokens: 4_194_304,
        root: None,
        loss: Some(f64::NAN),
        grad_norm: Some(f64::INFINITY),
        learning_rate: Some(2e-6),
        loss_z: None,
        grad_z: None,
        action: Action::SkipNonfinite,
        events: vec!["rewind to step 4".into()],
        evaluation: None,
        audit: None,
        sources: Default::default(),
    }
}

fn evaluation() -> Evaluation {
    Evaluation {
        validation: Some(Validation { loss: 3.28125, tokens: 10_485_760 }),
        hellaswag: Some(HellaSwag {
            tasks: 10_042,
            llmc_correct: 3_004,
            acc_correct: Some(2_905),
            acc_norm_correct: None,
            acc_bytes_correct: None,
        }),
        ..Evaluation::default()
    }
}

/// The entry of the evaluation after the last step.
fn evaluated() -> Entry {
    Entry {
        step: 9,
        root: None,
        loss: None,
        grad_norm: None,
        learning_rate: None,
        grad_z: None,
        action: Action::Evaluate,
        evaluation: Some(evaluation()),
        ..example()
    }
}

#[test]
fn texts_and_digests_are_those_of_the_specification() {
    let specification = include_str!("../../docs/digest.md");
    let documented = |text: String| assert!(specification.contains(&text), "not in docs/digest.md: {text}");
    let (first, second) = (example(), skipped());
    documented(format!("    {}\n    {}\n", first.canonical(), first.digest()));
    let both = tree_root(&[first.digest(), second.digest()]);
    documented(format!("    {}\n    {}\n    {both}\n", second.canonical(), second.digest()));
    let unmeasured = Entry { evaluation: Some(Evaluation::default()), ..example() };
    documented(format!("    {}\n    {}\n", unmeasured.canonical(), unmeasured.digest()));
    documented(format!("    {}\n    {}\n", evaluated().canonical(), evaluated().digest()));
}

#[test]
fn entries_of_both_versions_read_back_and_no_kind_has_the_keys_of_another() {
    let measured = Entry { evaluation: Some(evaluation()), ..skipped() };
    let unmeasured = Entry { evaluation: Some(Evaluation::default()), ..example() };
    let audited = Entry { audit: Some(Hash::of(b"trace")), ..unmeasured.clone() };
    for entry in [example(), measured, unmeasured, audited, evaluated()] {
        assert_eq!(Entry::parse(&entry.canonical()).unwrap(), entry);
    }
    assert!(example() != Entry { evaluation: Some(Evaluation::default()), ..example() });
    for wrong in [
        Entry { loss: None, ..example() },
        Entry { loss: Some(1.0), ..evaluated() },
        Entry { evaluation: None, ..evaluated() },
        Entry { audit: Some(Hash::of(b"trace")), ..evaluated() },
        Entry { evaluation: Some(Evaluation::default()), ..evaluated() },
    ] {
        assert!(Entry::parse(&wrong.canonical()).is_err(), "{}", wrong.canonical());
    }
    let lied = evaluated().canonical().replace("3004", "3005");
    assert!(Entry::parse(&lied).unwrap_err().contains("not the canonical text"), "{lied}");
}

/// What an older program did not count is no key of its entries, and no difference.
#[test]
fn entries_with_and_without_the_count_by_bytes_read_back_and_agree() {
    let with = |acc_bytes_correct| {
        let hellaswag = evaluation().hellaswag.map(|counts| HellaSwag { acc_bytes_correct, ..counts });
        Entry { evaluation: Some(Evaluation { hellaswag, ..evaluation() }), ..example() }
    };
    let (old, new) = (with(None), with(Some(2_000)));
    assert!(!old.canonical().contains("acc_bytes"));
    let key = "\"hellaswag_acc_bytes_correct\":2000,\"hellaswag_acc_bytes\":0.199";
    assert!(new.canonical().contains(key), "{}", new.canonical());
    for entry in [&old, &new] {
        assert_eq!(Entry::parse(&entry.canonical()).unwrap(), *entry);
    }
    let spelt_out = new.canonical().replace("_correct\":2000", "_correct\":null");
    assert!(Entry::parse(&spelt_out).is_err(), "{spelt_out}");
    assert!(old.differences(&new).is_empty() && new.differences(&old).is_empty());
    assert_eq!(new.differences(&with(Some(2_001)))[0].field, "hellaswag");
}

#[test]
fn what_one_run_alone_measured_is_no_difference_and_what_both_did_is() {
    let with = |loss| {
        let validation = Some(Validation { loss, tokens: 8 });
        Entry { evaluation: Some(Evaluation { validation, ..Evaluation::default() }), ..example() }
    };
    assert!(example().differences(&with(3.0)).is_empty());
    assert_eq!(with(3.0).differences(&with(3.5))[0].field, "val_loss");
}

#[test]
fn what_was_measured_of_the_average_stands_behind_the_weights_and_never_without_them() {
    let of_average = HellaSwag { llmc_correct: 3_009, ..evaluation().hellaswag.expect("it has one") };
    let both = Evaluation { ema_loss: Some(3.1875), ema_hellaswag: Some(of_average), ..evaluation() };
    let entry = Entry { evaluation: Some(both), ..evaluated() };
    let text = entry.canonical();
    let plain = evaluated().canonical();
    assert!(text.starts_with(plain.trim_end_matches('}')), "{text}\n{plain}");
    let fields =
        r#","ema_val_loss":3.1875,"ema_val_loss_bits":"4009800000000000","ema_hellaswag_correct":3009,"#;
    assert!(text.contains(fields) && !text.contains("ema_hellaswag_acc_norm"), "{text}");
    assert_eq!(Entry::parse(&text).expect("canonical").canonical(), text);
    assert_eq!(entry.differences(&Entry { evaluation: Some(evaluation()), ..evaluated() }), []);
    let other = Evaluation { ema_loss: Some(3.0), ..both };
    assert_eq!(entry.differences(&Entry { evaluation: Some(other), ..evaluated() })[0].field, "ema_val_loss");
    for alone in [Evaluation { validation: None, ..both }, Evaluation { hellaswag: None, ..both }] {
        let text = Entry { evaluation: Some(alone), ..evaluated() }.canonical();
        let error = Entry::parse(&text).expect_err("half an evaluation");
        assert!(error.contains("stands beside"), "{error}");
    }
}

#[test]
fn every_kind_of_entry_reads_back_equal() {
    let mut entry = example();
    let floats = [
        0.0,
        -0.0,
        1.0,
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::MIN_POSITIVE,
        5e-324,
        f64::MAX,
        0.1 + 0.2,
    ];
    for loss in floats {
        for action in [Action::Update, Action::SkipLossZ, Action::SkipGradZ, Action::SkipNonfinite] {
            entry = Entry { loss: Some(loss), loss_z: Some(loss), grad_z: None, root: None, action, ..entry };
            entry.events = vec!["drift `seed`: 1 → 2\n\"quoted\"".into()];
            let back = Entry::parse(&entry.canonical()).unwrap();
            assert_eq!(back, entry);
            assert_eq!(back.loss.map(f64::is_nan), Some(loss.is_nan()));
        }
    }
}

#[test]
fn every_nan_is_the_same_entry() {
    let nan = |bits| Entry { loss: Some(f64::from_bits(bits)), ..example() }.digest();
    assert_eq!(nan(0x7ff8_0000_0000_0000), nan(0xfff8_0000_0000_0001));
}

#[test]
fn another_spelling_of_an_entry_is_refused() {
    let text = example().canonical();
    for (from, to) in [
        ("43.5996", "43.6"),
        ("43.5996", "43.59960"),
        ("\"step\":7", "\"step\": 7"),
        ("4045ccbfb15b573f", "4045CCBFB15B573F"),
        ("\"events\":[]", "\"events\":[],\"more\":1"),
        ("update", "updated"),
        ("null", "0"),
    ] {
        let edited = text.replacen(from, to, 1);
        assert_ne!(edited, text);
        assert!(Entry::parse(&edited).is_err(), "{edited}");
    }
}

#[test]
fn the_tokens_of_sources_stand_last_by_name_and_no_other_spelling_is_read() {
    let sources = [("web".to_owned(), 320), ("books".to_owned(), 960)].into();
    let entry = Entry { sources, ..example() };
    let text = entry.canonical();
    assert!(text.ends_with(r#""events":[],"sources":{"books":960,"web":320}}"#), "{text}");
    assert_eq!(Entry::parse(&text).unwrap(), entry);
    assert_ne!(entry.digest(), example().digest());
    for (from, to) in [
        (r#"{"books":960,"web":320}"#, r#"{"web":320,"books":960}"#),
        (r#"{"books":960,"web":320}"#, r#"{"books":960,"books":960,"web":320}"#),
        (r#"{"books":960,"web":320}"#, "{}"),
        ("320", "-320"),
        ("320", "320.0"),
    ] {
        assert!(Entry::parse(&text.replacen(from, to, 1)).is_err(), "{to}");
    }
    let told = entry.differences(&Entry { sources: [("books".to_owned(), 1280)].into(), ..example() });
    assert_eq!(told.iter().map(|difference| difference.field).collect::<Vec<_>>(), ["sources"]);
    let evaluate = Entry { sources: entry.sources, ..evaluated() };
    assert!(Entry::parse(&evaluate.canonical()).is_err(), "an evaluation reads no training data");
}

#[test]
fn a_rewind_is_read_as_it_is_written_and_no_other_text_is_one() {
    assert_eq!(rewind_of(&rewind_event(14, 10)), Some((14, 10)));
    for text in
        ["rewind to step 4", "rewind from step 014 to step 10", "rewind from step 14 to step 10 ", "drift"]
    {
        assert_eq!(rewind_of(text), None, "{text}");
    }
    let mut entries: Vec<Entry> = (0..4).map(|step| Entry::new(step, step, Action::Update)).collect();
    assert_eq!(last_rewound_to(&entries), None);
    entries[1].events.push(rewind_event(3, 1));
    entries[2].events.extend(["drift `seed` was 1, is 2".to_owned(), rewind_event(5, 2)]);
    assert_eq!(last_rewound_to(&entries), Some(2));
}
