use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use polars::prelude::*;

use super::writer::ShardWriter;
use super::{Input, InputFormat, PrepareOptions, PrepareSummary, ValSplit, prepare};
use crate::data::{DataError, Dataset, Tokenizer};

fn options(out: &Path) -> PrepareOptions {
    PrepareOptions {
        shard_tokens: 1000,
        val: ValSplit::Tokens(0),
        ..PrepareOptions::new(out, "t", Tokenizer::Byte)
    }
}

fn run(texts: &[&str], options: &PrepareOptions) -> Result<PrepareSummary, DataError> {
    let inputs: Vec<Input> = texts
        .iter()
        .map(|text| Input::bytes("text", Some(InputFormat::Text), text.as_bytes().to_vec()))
        .collect();
    prepare(&inputs, options, |_, _| ())
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
    assert_eq!(
        (summary.documents, summary.text_bytes, summary.train_tokens, summary.val_tokens),
        (3, 4, 7, 0)
    );
}

#[test]
fn shards_are_cut_at_their_size_and_open_as_a_dataset() {
    let dir = tempfile::tempdir().unwrap();
    let text = "x".repeat(25);
    let options = PrepareOptions { shard_tokens: 10, val: ValSplit::Tokens(12), ..options(dir.path()) };
    let summary = run(&[&text], &options).unwrap();
    let sizes: Vec<_> = summary
        .shards
        .iter()
        .map(|s| (s.path.file_name().unwrap().to_str().unwrap().to_owned(), s.tokens))
        .collect();
    let expected = [
        ("t_val_000000.bin", 10),
        ("t_val_000001.bin", 2),
        ("t_train_000001.bin", 10),
        ("t_train_000002.bin", 4),
    ];
    assert_eq!(sizes, expected.map(|(name, tokens)| (name.to_owned(), tokens)));
    let patterns = [dir.path().join("t_train_*.bin").display().to_string()];
    let train = Dataset::open(&patterns, 257, &Tokenizer::Byte).unwrap();
    assert_eq!((train.tokens(), train.sequences(3)), (14, 4));
}

#[test]
fn any_number_of_threads_writes_the_same_bytes() {
    let text: String =
        (0..400_000).map(|i| format!("word{} ", i % 977)).collect::<String>() + "<|endoftext|>end";
    let outputs: Vec<_> = [1, 2, 7]
        .into_iter()
        .map(|threads| {
            let dir = tempfile::tempdir().unwrap();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let options = PrepareOptions {
                shard_tokens: 1 << 18,
                val: ValSplit::Fraction(0.1),
                tokenizer: gpt2(),
                ..options(dir.path())
            };
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
    let long = PrepareOptions { shard_tokens: 3, ..options(dir.path()) };
    run(&["abcdefgh"], &long).unwrap();
    fs::write(dir.path().join("other_train_000001.bin"), "kept").unwrap();
    fs::write(dir.path().join("t_train_notes.bin"), "kept").unwrap();
    let before = files(dir.path());
    let error = run(&["xy"], &options(dir.path())).unwrap_err().to_string();
    assert!(error.contains("t_train_000001.bin` exists already (3 shards"), "{error}");
    assert_eq!(files(dir.path()), before);
    run(&["xy"], &PrepareOptions { overwrite: true, ..options(dir.path()) }).unwrap();
    let after = files(dir.path());
    assert_eq!(
        after.keys().collect::<Vec<_>>(),
        ["other_train_000001.bin", "t_train_000001.bin", "t_train_notes.bin"]
    );
    assert_eq!(tokens(&after["t_train_000001.bin"]), [256, 120, 121]);
}

#[test]
fn shards_that_another_process_writes_meanwhile_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    for overwrite in [false, true] {
        let options = PrepareOptions { overwrite, ..options(dir.path()) };
        let mut writer = ShardWriter::new(&options).unwrap();
        writer.write(&[256, 97], false).unwrap();
        let other = dir.path().join("t_train_000007.bin");
        fs::write(&other, "another's").unwrap();
        writer.finish().unwrap();
        assert_eq!(fs::read(&other).unwrap(), b"another's");
        fs::remove_file(other).unwrap();
    }
}

#[test]
fn text_that_is_not_utf8_is_refused_with_its_byte() {
    let dir = tempfile::tempdir().unwrap();
    let refuse = |bytes: &[u8]| {
        let inputs = [
            Input::bytes("good.txt", Some(InputFormat::Text), b"fine".to_vec()),
            Input::bytes("latin.txt", Some(InputFormat::Text), bytes.to_vec()),
        ];
        prepare(&inputs, &options(dir.path()), |_, _| ()).unwrap_err().to_string()
    };
    let error = refuse(b"caf\xe9 au lait");
    assert!(
        error.contains("`latin.txt` is not UTF-8 text: invalid at byte 3 (0xe9)") && error.contains("iconv"),
        "{error}"
    );
    assert!(refuse(&[0x1f, 0x8b, 8]).contains("gzip"));
    assert!(files(dir.path()).is_empty(), "nothing was written");
}

#[test]
fn inputs_without_text_are_refused_each_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let refuse = |content: &str| {
        let inputs = [
            Input::bytes("a.txt", Some(InputFormat::Text), b"a".to_vec()),
            Input::bytes("b.txt", Some(InputFormat::Text), content.as_bytes().to_vec()),
        ];
        prepare(&inputs, &options(dir.path()), |_, _| ()).unwrap_err().to_string()
    };
    assert!(refuse("").contains("`b.txt` holds no text: it is empty"));
    let white = refuse(" \n<|endoftext|>\n");
    assert!(white.contains("`b.txt` holds no text: it has white space and document marks alone, 16 bytes"));
    assert!(files(dir.path()).is_empty());
}

#[test]
fn an_empty_file_and_a_folder_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("empty.txt");
    fs::write(&path, "").unwrap();
    let error = prepare(&[Input::file(&path, None).unwrap()], &options(&dir.path().join("out")), |_, _| ())
        .unwrap_err();
    assert!(matches!(error, DataError::NoText { .. }), "{error}");
    assert!(Input::file(dir.path(), None).unwrap_err().to_string().contains("it is a folder"));
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
    let refused = |options: PrepareOptions| run(&["text"], &options).unwrap_err().to_string();
    let base = || options(dir.path());
    assert!(refused(PrepareOptions { shard_tokens: 0, ..base() }).contains("`--shard-tokens` is 0"));
    assert!(refused(PrepareOptions { shard_tokens: 1 << 31, ..base() }).contains("--shard-tokens"));
    assert!(
        refused(PrepareOptions { val: ValSplit::Fraction(1.0), ..base() }).contains("`--val-fraction` is 1")
    );
    assert!(
        refused(PrepareOptions { val: ValSplit::Fraction(f64::NAN), ..base() }).contains("--val-fraction")
    );
    assert!(refused(PrepareOptions { prefix: "a/b".into(), ..base() }).contains("`--name` is `a/b`"));
    assert!(refused(PrepareOptions { val: ValSplit::Tokens(5), ..base() }).contains("validation took all 5"));
    assert!(files(dir.path()).is_empty());
}

#[test]
fn progress_reaches_the_bytes_of_the_text() {
    let dir = tempfile::tempdir().unwrap();
    let inputs = [
        Input::bytes("a", Some(InputFormat::Text), b"one two".to_vec()),
        Input::bytes("b", Some(InputFormat::Text), b"three".to_vec()),
    ];
    let mut seen = Vec::new();
    prepare(&inputs, &options(dir.path()), |bytes, total| seen.push((bytes, total))).unwrap();
    assert_eq!(seen, [(7, 12), (5, 12)]);
}

// ---- JSON lines and parquet ----

fn jsonl(text: &str) -> Input {
    Input::bytes("x.jsonl", Some(InputFormat::Jsonl), text.as_bytes().to_vec())
}

/// A parquet file of these columns, with `group` rows in a row group.
fn table(columns: Vec<Column>, group: usize) -> Vec<u8> {
    let mut frame = DataFrame::new_infer_height(columns).unwrap();
    let mut bytes = Vec::new();
    ParquetWriter::new(&mut bytes).with_row_group_size(Some(group)).finish(&mut frame).unwrap();
    bytes
}

fn parquet(texts: &[&str], group: usize) -> Input {
    let columns = vec![
        Column::new("id".into(), (0..texts.len() as i64).collect::<Vec<_>>()),
        Column::new("text".into(), texts),
    ];
    Input::bytes("x.parquet", Some(InputFormat::Parquet), table(columns, group))
}

fn shard(inputs: &[Input], options: &PrepareOptions) -> Result<(PrepareSummary, Vec<u16>), String> {
    let summary = prepare(inputs, options, |_, _| ()).map_err(|e| e.to_string())?;
    Ok((summary, tokens(&files(&options.out)["t_train_000001.bin"])))
}

#[test]
fn every_row_is_a_document_and_marks_in_it_are_text() {
    let dir = tempfile::tempdir().unwrap();
    let rows = ["ab", "c<|endoftext|>d", "", " \n", "é"];
    let lines: String =
        rows.iter().map(|text| format!("{}\n", serde_json::json!({"id": 1, "text": text}))).collect();
    let expected: Vec<u16> = [&rows[0], &rows[1], &rows[4]]
        .iter()
        .flat_map(|text| std::iter::once(256).chain(text.bytes().map(u16::from)))
        .collect();
    for inputs in [[jsonl(&lines)], [parquet(&rows, 100)], [parquet(&rows, 2)]] {
        let options = PrepareOptions { overwrite: true, ..options(dir.path()) };
        let (summary, tokens) = shard(&inputs, &options).unwrap();
        assert_eq!(tokens, expected);
        assert_eq!((summary.documents, summary.text_bytes), (3, 19));
    }
}

#[test]
fn formats_mix_in_the_order_of_the_inputs_and_share_the_split() {
    let dir = tempfile::tempdir().unwrap();
    let text = Input::bytes("x.txt", Some(InputFormat::Text), b"T".to_vec());
    let inputs = [text, jsonl("{\"text\": \"J\"}\n{\"text\": \"K\"}"), parquet(&["P"], 1)];
    let (_, tokens) = shard(&inputs, &options(dir.path())).unwrap();
    assert_eq!(tokens, [256, 84, 256, 74, 256, 75, 256, 80]);
    // By bytes of input: the text, and the line that begins before the share ends.
    let examined = inputs.iter().map(|input| input.examine("text").ok().expect("it is good"));
    let total: u64 = examined.map(|input| input.bytes).sum();
    let options = PrepareOptions {
        val: ValSplit::Fraction(3.0 / total as f64),
        overwrite: true,
        ..options(dir.path())
    };
    let (summary, tokens) = shard(&inputs, &options).unwrap();
    assert_eq!(tokens, [256, 75, 256, 80]);
    assert_eq!((summary.val_tokens, summary.train_tokens), (4, 4));
}

#[test]
fn another_column_can_be_named_and_gives_its_text() {
    let dir = tempfile::tempdir().unwrap();
    let options = PrepareOptions { column: "body".to_owned(), ..options(dir.path()) };
    let columns = vec![Column::new("text".into(), ["no"]), Column::new("body".into(), ["B"])];
    let input = Input::bytes("x.parquet", Some(InputFormat::Parquet), table(columns, 9));
    let (_, tokens) = shard(&[jsonl("{\"text\": 1, \"body\": \"A\"}"), input], &options).unwrap();
    assert_eq!(tokens, [256, 65, 256, 66]);
}

#[test]
fn rows_give_the_same_shards_for_any_number_of_threads_and_batches() {
    let rows: Vec<String> = (0..20_000).map(|i| format!("row {i} says {}", "word ".repeat(i % 97))).collect();
    let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
    let lines: String = rows.iter().map(|text| format!("{}\n", serde_json::json!({"text": text}))).collect();
    let mut outputs = Vec::new();
    for (threads, input) in [(1, jsonl(&lines)), (3, jsonl(&lines)), (2, parquet(&rows, 777))] {
        let dir = tempfile::tempdir().unwrap();
        let options = PrepareOptions { shard_tokens: 1 << 18, tokenizer: gpt2(), ..options(dir.path()) };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert_eq!(pool.install(|| prepare(&[input], &options, |_, _| ())).unwrap().documents, 20_000);
        outputs.push(files(dir.path()));
    }
    assert!(outputs[0].len() > 3 && outputs[0] == outputs[1] && outputs[0] == outputs[2]);
}

#[test]
fn a_fault_in_the_last_line_leaves_no_shard() {
    let dir = tempfile::tempdir().unwrap();
    let lines = "{\"text\": \"good\"}\n".repeat(5000);
    for (last, says) in [
        (
            "{\"text\": \"cut",
            "`x.jsonl` line 5001 is no document: it is no JSON object: EOF while parsing a string",
        ),
        ("{\"body\": \"x\"}", "line 5001 is no document: it has no column `text`, but `body`"),
        (
            "{\"text\": 7}",
            "line 5001 is no document: invalid type: integer `7`, expected a string in the column `text`",
        ),
    ] {
        let error = shard(&[jsonl(&format!("{lines}{last}"))], &options(dir.path())).unwrap_err();
        assert!(error.contains(says), "{error}\nlacks: {says}");
        assert!(files(dir.path()).is_empty());
    }
}

#[test]
fn jsonl_without_text_and_other_files_under_its_name_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (content, says) in [
        ("", "`x.jsonl` holds no text: it is empty"),
        ("\n\n", "every line's text is empty or white space"),
        ("{\"text\": \" \"}\n", "every line's text is empty or white space"),
        ("<!DOCTYPE html>\n<p>", "`x.jsonl` is a web page (HTML): expected a file of JSON lines"),
        ("plain text", "line 1 is no document: it is no JSON object"),
    ] {
        let error = shard(&[jsonl(content)], &options(dir.path())).unwrap_err();
        assert!(error.contains(says), "{error}\nlacks: {says}");
    }
    let bytes = b"{\"text\": \"caf\xe9\"}".to_vec();
    let error =
        shard(&[Input::bytes("x.jsonl", Some(InputFormat::Jsonl), bytes)], &options(dir.path())).unwrap_err();
    assert!(error.contains("line 1 is no document") && error.contains("unicode"), "{error}");
}

#[test]
fn parquet_without_the_column_or_with_other_types_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refuse = |columns: Vec<Column>| {
        let input = Input::bytes("x.parquet", Some(InputFormat::Parquet), table(columns, 9));
        shard(&[input], &options(dir.path())).unwrap_err()
    };
    let ids = || Column::new("id".into(), [1i64, 2]);
    let error = refuse(vec![ids(), Column::new("body".into(), ["a", "b"])]);
    assert!(
        error.contains("`x.parquet` has no column `text`, but `id`, `body`") && error.contains("--column"),
        "{error}"
    );
    // Of the same length, so that the file is whole with the other name.
    let mut twice = table(vec![Column::new("text".into(), ["a"]), Column::new("tex_".into(), ["b"])], 9);
    for at in 0..twice.len() - 4 {
        if &twice[at..at + 4] == b"tex_" {
            twice[at + 3] = b't';
        }
    }
    let error =
        shard(&[Input::bytes("x.parquet", Some(InputFormat::Parquet), twice.clone())], &options(dir.path()));
    let error = error.unwrap_err();
    assert!(error.contains("`x.parquet` has the column `text` 2 times: expected it once"), "{error}");
    let followed = Input::bytes("x.parquet", Some(InputFormat::Parquet), [&twice[..], b"\n"].concat());
    let error = shard(&[followed], &options(dir.path())).unwrap_err();
    assert!(error.contains("does not end in `PAR1`: it was cut off, or bytes follow its end"), "{error}");
    let error = refuse(vec![Column::new("text".into(), [1i64, 2])]);
    assert!(error.contains("the column `text` of `x.parquet` holds Int64: expected strings"), "{error}");
    let error = refuse(vec![Column::new("text".into(), [&b"raw"[..], b"\xff"])]);
    assert!(error.contains("holds ByteArray: expected strings"), "{error}");
    let error = refuse(vec![ids(), Column::new("text".into(), [Some("a"), None])]);
    assert!(error.contains("row 1 of `x.parquet`") && error.contains("its `text` is null"), "{error}");
    let error = refuse(vec![Column::new("text".into(), [""; 0])]);
    assert!(error.contains("`x.parquet` holds no text: it has no row with text"), "{error}");
    assert!(files(dir.path()).is_empty());
}

#[test]
fn parquet_that_is_cut_or_damaged_is_refused_and_never_panics() {
    let dir = tempfile::tempdir().unwrap();
    let rows: Vec<String> = (0..300).map(|i| format!("row {i}")).collect();
    let whole = table(vec![Column::new("text".into(), rows)], 100);
    let try_it = |bytes: Vec<u8>| {
        let input = Input::bytes("x.parquet", Some(InputFormat::Parquet), bytes);
        shard(&[input], &PrepareOptions { overwrite: true, ..options(dir.path()) })
    };
    assert!(try_it(whole.clone()).is_ok());
    for len in [0, 3, 4, 11, 100, whole.len() - 1] {
        let error = try_it(whole[..len].to_vec()).unwrap_err();
        assert!(error.contains("x.parquet"), "{len}: {error}");
    }
    let mut refused = 0;
    for at in (0..whole.len()).step_by(7) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        // A flipped bit in a page may be text still; it may not be a panic.
        refused += usize::from(try_it(bytes).is_err());
    }
    assert!(refused > 50, "only {refused} damages were noticed");
    // The footer's number of rows: field 3, after the schema, an i64 of 300 in Thrift's compact protocol.
    let length = u32::from_le_bytes(whole[whole.len() - 8..][..4].try_into().unwrap()) as usize;
    let footer = whole.len() - 8 - length;
    let at = whole[footer..].windows(3).position(|bytes| bytes == [0x16, 0xd8, 0x04]).unwrap();
    let mut other = whole.clone();
    other[footer + at + 1] += 2;
    let error = try_it(other).unwrap_err();
    assert!(error.contains("its footer says 301 rows, and its row groups hold 300"), "{error}");
}

#[test]
fn a_request_to_stop_leaves_nothing_that_was_begun() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(&dir.path().join("out"));
    assert!(!options.stop.ask(), "nothing is written yet, and nobody hears it");
    let inputs = [Input::bytes("text", Some(InputFormat::Text), b"ab".to_vec())];
    let stopped = prepare(&inputs, &options, |_, _| {
        assert_eq!(files(&options.out).len(), 1, "the first shard is begun");
        assert!(options.stop.ask());
        assert!(!options.stop.ask(), "once is enough");
    });
    assert!(matches!(stopped, Err(DataError::Stopped)), "{stopped:?}");
    assert!(!options.out.exists());
}

#[test]
fn a_file_that_grows_while_it_is_read_is_refused_and_leaves_nothing() {
    use std::io::Write as _;
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in [("x.txt", "Plain words.\n"), ("x.jsonl", "{\"text\": \"a\"}\n")] {
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        let options = options(&dir.path().join("out"));
        let inputs = || [Input::file(&path, None).unwrap()];
        let grown = prepare(&inputs(), &options, |_, _| {
            fs::File::options().append(true).open(&path).unwrap().write_all(content.as_bytes()).unwrap();
        });
        let refused = grown.unwrap_err().to_string();
        assert!(refused.contains(name) && refused.contains("it changed while it was read"), "{refused}");
        assert!(!options.out.exists());
        prepare(&inputs(), &options, |_, _| ()).unwrap();
        fs::remove_dir_all(&options.out).unwrap();
    }
}

#[test]
fn what_a_killed_prepare_left_is_removed_and_what_another_writes_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let other = fs::File::create(path(".prepare-other1.tmp")).unwrap();
    other.lock().unwrap();
    for name in [".prepare-killed.tmp", ".prepare-notes", "x.tmp"] {
        fs::write(path(name), "x").unwrap();
    }
    run(&["ab"], &options(dir.path())).unwrap();
    let expected = [".prepare-notes", ".prepare-other1.tmp", "t_train_000001.bin", "x.tmp"];
    assert_eq!(files(dir.path()).keys().collect::<Vec<_>>(), expected);
}

#[test]
fn a_name_that_is_too_long_is_refused_before_a_folder_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let longest = PrepareOptions { prefix: "n".repeat(200), ..options(&out) };
    run(&["ab"], &longest).unwrap();
    fs::remove_dir_all(&out).unwrap();
    let longer = PrepareOptions { prefix: "n".repeat(201), ..options(&out) };
    let refused = run(&["ab"], &longer).unwrap_err().to_string();
    assert_eq!(refused, "`--name` is a name of 201 bytes: expected at most 200");
    assert!(!out.exists());
}
