use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::*;
use crate::data::{Dataset, Tokenizer};

fn options(out: &Path) -> Options {
    Options {
        out: out.to_owned(),
        prefix: "t".to_owned(),
        tokenizer: Tokenizer::Byte,
        shard_tokens: 1000,
        val: ValSplit::Tokens(0),
        overwrite: false,
    }
}

fn run(texts: &[&str], options: &Options) -> Result<Summary, DataError> {
    let inputs: Vec<Input> = texts.iter().map(|text| Input::bytes("text", text.as_bytes().to_vec())).collect();
    prepare(&inputs, options, |_| ())
}

/// Names and contents of all files in a folder, hidden ones too.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entry = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.unwrap();
        (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
    };
    fs::read_dir(dir).unwrap().map(entry).collect()
}

fn tokens(file: &[u8]) -> Vec<u16> {
    file[1024..].chunks(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect()
}

#[test]
fn documents_follow_their_mark_in_order_of_the_inputs() {
    let dir = tempfile::tempdir().unwrap();
    let summary = run(&["ab<|endoftext|>c", "d"], &options(dir.path())).unwrap();
    let files = files(dir.path());
    assert_eq!(files.keys().collect::<Vec<_>>(), ["t_train_000001.bin"]);
    assert_eq!(tokens(&files["t_train_000001.bin"]), [256, 97, 98, 256, 99, 256, 100]);
    assert_eq!((summary.documents, summary.text_bytes, summary.train_tokens, summary.val_tokens), (3, 4, 7, 0));
}

#[test]
fn shards_are_cut_at_their_size_and_open_as_a_dataset() {
    let dir = tempfile::tempdir().unwrap();
    let text = "x".repeat(25);
    let options = Options { shard_tokens: 10, val: ValSplit::Tokens(12), ..options(dir.path()) };
    let summary = run(&[&text], &options).unwrap();
    let sizes: Vec<_> =
        summary.shards.iter().map(|s| (s.path.file_name().unwrap().to_str().unwrap().to_owned(), s.tokens)).collect();
    let expected = [("t_val_000000.bin", 10), ("t_val_000001.bin", 2), ("t_train_000001.bin", 10), ("t_train_000002.bin", 4)];
    assert_eq!(sizes, expected.map(|(name, tokens)| (name.to_owned(), tokens)));
    let train = Dataset::open(&[dir.path().join("t_train_*.bin").display().to_string()], 257).unwrap();
    assert_eq!((train.tokens(), train.sequences(3)), (14, 4));
}

#[test]
fn any_number_of_threads_writes_the_same_bytes() {
    let text: String = (0..400_000).map(|i| format!("word{} ", i % 977)).collect::<String>() + "<|endoftext|>end";
    let outputs: Vec<_> = [1, 2, 7]
        .into_iter()
        .map(|threads| {
            let dir = tempfile::tempdir().unwrap();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let options =
                Options { shard_tokens: 1 << 18, val: ValSplit::Fraction(0.1), tokenizer: gpt2(), ..options(dir.path()) };
            let summary = pool.install(|| run(&[&text], &options)).unwrap();
            assert_eq!(summary.documents, 2);
            files(dir.path())
        })
        .collect();
    assert!(outputs[0].len() > 3);
    assert!(outputs[0] == outputs[1] && outputs[0] == outputs[2], "shards differ with the number of threads");
}

fn gpt2() -> Tokenizer {
    Tokenizer::new(crate::experiment::Tokenizer::Gpt2)
}

#[test]
fn existing_shards_are_kept_unless_they_may_be_replaced_and_then_none_is_left_over() {
    let dir = tempfile::tempdir().unwrap();
    let long = Options { shard_tokens: 3, ..options(dir.path()) };
    run(&["abcdefgh"], &long).unwrap();
    fs::write(dir.path().join("other_train_000001.bin"), "kept").unwrap();
    fs::write(dir.path().join("t_train_notes.bin"), "kept").unwrap();
    let before = files(dir.path());
    let error = run(&["xy"], &options(dir.path())).unwrap_err().to_string();
    assert!(error.contains("t_train_000001.bin` exists already (3 shards"), "{error}");
    assert_eq!(files(dir.path()), before);
    run(&["xy"], &Options { overwrite: true, ..options(dir.path()) }).unwrap();
    let after = files(dir.path());
    assert_eq!(after.keys().collect::<Vec<_>>(), ["other_train_000001.bin", "t_train_000001.bin", "t_train_notes.bin"]);
    assert_eq!(tokens(&after["t_train_000001.bin"]), [256, 120, 121]);
}

#[test]
fn text_that_is_not_utf8_is_refused_with_its_byte() {
    let dir = tempfile::tempdir().unwrap();
    let refuse = |bytes: &[u8]| {
        let inputs = [Input::bytes("good.txt", b"fine".to_vec()), Input::bytes("latin.txt", bytes.to_vec())];
        prepare(&inputs, &options(dir.path()), |_| ()).unwrap_err().to_string()
    };
    let error = refuse(b"caf\xe9 au lait");
    assert!(error.contains("`latin.txt` is not UTF-8 text: invalid at byte 3 (0xe9)") && error.contains("iconv"), "{error}");
    assert!(refuse(&[0x1f, 0x8b, 8]).contains("gzip"));
    assert!(files(dir.path()).is_empty(), "nothing was written");
}

#[test]
fn inputs_without_text_are_refused_each_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let refuse = |content: &str| {
        let inputs = [Input::bytes("a.txt", b"a".to_vec()), Input::bytes("b.txt", content.as_bytes().to_vec())];
        prepare(&inputs, &options(dir.path()), |_| ()).unwrap_err().to_string()
    };
    assert!(refuse("").contains("`b.txt` holds no text: it is empty"));
    assert!(refuse(" \n<|endoftext|>\n").contains("`b.txt` holds no text: its 16 bytes are white space"));
    assert!(files(dir.path()).is_empty());
}

#[test]
fn an_empty_file_and_a_folder_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("empty.txt");
    fs::write(&path, "").unwrap();
    let error = prepare(&[Input::file(&path).unwrap()], &options(&dir.path().join("out")), |_| ()).unwrap_err();
    assert!(matches!(error, DataError::NoText { .. }), "{error}");
    assert!(Input::file(dir.path()).unwrap_err().to_string().contains("it is a folder"));
}

#[test]
fn a_byte_order_mark_is_not_text() {
    let dir = tempfile::tempdir().unwrap();
    run(&["\u{feff}a"], &options(dir.path())).unwrap();
    assert_eq!(tokens(&files(dir.path())["t_train_000001.bin"]), [256, 97]);
}

#[test]
fn options_out_of_range_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |options: Options| run(&["text"], &options).unwrap_err().to_string();
    let base = || options(dir.path());
    assert!(refused(Options { shard_tokens: 0, ..base() }).contains("`--shard-tokens` is 0"));
    assert!(refused(Options { shard_tokens: 1 << 31, ..base() }).contains("--shard-tokens"));
    assert!(refused(Options { val: ValSplit::Fraction(1.0), ..base() }).contains("`--val-fraction` is 1"));
    assert!(refused(Options { val: ValSplit::Fraction(f64::NAN), ..base() }).contains("--val-fraction"));
    assert!(refused(Options { prefix: "a/b".into(), ..base() }).contains("`--name` is `a/b`"));
    assert!(refused(Options { val: ValSplit::Tokens(5), ..base() }).contains("validation took all 5"));
    assert!(files(dir.path()).is_empty());
}

#[test]
fn progress_reaches_the_bytes_of_the_text() {
    let dir = tempfile::tempdir().unwrap();
    let inputs = [Input::bytes("a", b"one two".to_vec()), Input::bytes("b", b"three".to_vec())];
    let mut seen = 0;
    prepare(&inputs, &options(dir.path()), |bytes| seen += bytes).unwrap();
    assert_eq!(seen, 12);
}
