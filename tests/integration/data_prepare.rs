//! `runner data prepare` on inputs that are easy to get wrong: read, or refused with a command that works.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::process::wait_until;
use crate::support::{Finished, Lab};

const PAGES: [&str; 3] = [
    "A kettle boils sooner with its lid on, because less steam gets away.",
    "The ferry leaves at noon. It carries forty cars, and bicycles go free.",
    "Rye is sown in autumn; it stands under the snow and is cut in July.",
];

fn json_lines() -> String {
    PAGES.iter().map(|page| format!("{}\n", serde_json::json!({ "text": page }))).collect()
}

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases").join(name)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).expect("memory");
    // As the command of that name does.
    encoder.include_checksum(true).expect("an option of zstd");
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

/// `runner data prepare` of `files`, named from the lab's folder, with tokens of one byte.
fn prepare(lab: &Lab, arguments: &[&str]) -> Command {
    let mut command =
        lab.command(&["data", "prepare", "--tokenizer", "byte", "--val-tokens", "0", "--out", "out"]);
    command.current_dir(lab.path("")).args(arguments);
    command
}

fn finish(mut command: Command) -> Finished {
    Finished::from(command.output().expect("the program starts"))
}

fn write(lab: &Lab, name: &str, bytes: impl AsRef<[u8]>) {
    std::fs::write(lab.path(name), bytes).expect("writable");
}

/// The shards in `out`, which is emptied.
fn shards(lab: &Lab) -> Vec<Vec<u8>> {
    let Ok(entries) = std::fs::read_dir(lab.path("out")) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    let bytes = paths.iter().map(|path| std::fs::read(path).expect("readable")).collect();
    std::fs::remove_dir_all(lab.path("out")).expect("ours");
    bytes
}

#[test]
fn what_is_reasonable_to_read_gives_the_shard_of_the_plain_file_under_any_name() {
    let lab = Lab::new();
    write(&lab, "pages.jsonl", json_lines());
    finish(prepare(&lab, &["pages.jsonl"])).assert_says(&["3 documents, 205 bytes of text, 208 tokens"]);
    let expected = shards(&lab);
    assert_eq!(&expected[0][12..20], b"TOK1byte", "the shard records its tokenizer");
    let marked = PAGES.join("<|endoftext|>");
    for (name, bytes) in [
        ("pages.json", json_lines().into_bytes()),
        ("pages.txt", json_lines().into_bytes()),
        ("pages.gz", gzip(json_lines().as_bytes())),
        ("pages.jsonl.gz", gzip(json_lines().as_bytes())),
        ("pages.jsonl.zst", zstd(json_lines().as_bytes())),
        ("marked.txt", marked.clone().into_bytes()),
        ("marked.txt.gz", [gzip(&marked.as_bytes()[..50]), gzip(&marked.as_bytes()[50..])].concat()),
        ("marked", zstd(marked.as_bytes())),
        ("plain.dat", std::fs::read(case("plain.parquet")).expect("a fixture")),
        ("v2.parquet", std::fs::read(case("checked_v2.parquet")).expect("a fixture")),
    ] {
        write(&lab, name, bytes);
        let done = finish(prepare(&lab, &[name]));
        done.assert_says(&["3 documents, 205 bytes of text, 208 tokens"]);
        assert!(shards(&lab) == expected, "{name} gives another shard");
        let says = ["pages.json", "pages.txt"].contains(&name);
        assert_eq!(says, done.stderr.contains("whatever its name says"), "{name}: {}", done.stderr);
    }
    finish(prepare(&lab, &["--format", "jsonl", "pages.jsonl.gz"])).assert_says(&["208 tokens"]);
    finish(prepare(&lab, &["--overwrite", "--format", "text", "pages.jsonl"])).assert_says(&["1 document, "]);
}

#[test]
fn a_pipe_is_read_as_one() {
    let lab = Lab::new();
    write(&lab, "pages.jsonl.gz", gzip(json_lines().as_bytes()));
    for path in ["-", "/dev/stdin"] {
        let mut child =
            prepare(&lab, &[path]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        let bytes = std::fs::read(lab.path("pages.jsonl.gz")).expect("readable");
        child.stdin.take().expect("piped").write_all(&bytes).expect("it reads");
        let done = Finished::from(child.wait_with_output().expect("it ends"));
        done.assert_says(&["3 documents, 205 bytes of text, 208 tokens", "data_train_000001.bin"]);
        shards(&lab);
    }
    let binary = env!("CARGO_BIN_EXE_runner");
    let script = format!(
        "{binary} data prepare --tokenizer byte --val-tokens 0 --out out <(gzip -dc pages.jsonl.gz) <(echo \
         four)"
    );
    let done = Command::new("bash").args(["-c", &script]).current_dir(lab.path("")).output().expect("bash");
    Finished::from(done).assert_says(&["4 documents, 210 bytes of text, 214 tokens"]);
    finish(prepare(&lab, &["--overwrite", "/dev/zero"])).assert_fails(1, &["/dev/zero", "it is a device"]);
}

/// The commands in the hints are run as they stand.
#[test]
fn what_is_not_read_is_refused_by_name_and_the_command_of_the_hint_works() {
    let lab = Lab::new();
    let rows: String = PAGES.iter().enumerate().map(|(i, page)| format!("{i},\"{page}\"\n")).collect();
    let array = serde_json::to_string(&PAGES.map(|page| serde_json::json!({ "text": page }))).expect("JSON");
    let utf16: Vec<u8> = format!("\u{feff}{}", PAGES[0]).encode_utf16().flat_map(u16::to_le_bytes).collect();
    write(&lab, "my pages.csv", format!("id,text\n{rows}"));
    write(&lab, "table", format!("id,text\n{rows}"));
    write(&lab, "pages.json", array);
    write(&lab, "utf16.txt", utf16);
    write(&lab, "pages.jsonl", json_lines());
    for (compress, name) in [("xz", "pages.jsonl.xz"), ("bzip2", "pages.jsonl.bz2")] {
        let packed = Command::new(compress).args(["-c", "pages.jsonl"]).current_dir(lab.path("")).output();
        write(&lab, name, packed.unwrap_or_else(|e| panic!("{compress}: {e}")).stdout);
    }
    for (name, found, tokens) in [
        ("my pages.csv", "a table of comma-separated values", "208 tokens"),
        ("table", "a table of comma-separated values", "208 tokens"),
        ("pages.json", "one JSON array", "208 tokens"),
        ("utf16.txt", "text in UTF-16", "69 tokens"),
        ("pages.jsonl.xz", "compressed with xz", "208 tokens"),
        ("pages.jsonl.bz2", "compressed with bzip2", "208 tokens"),
    ] {
        let refused = finish(prepare(&lab, &[name]));
        refused.assert_fails(1, &[&format!("`{name}` is {found}"), "hint:"]);
        assert!(!lab.path("out").exists(), "{name}: something is left");
        let hint = refused.stderr.split_once("hint: `").expect("a command").1;
        let command = hint
            .split('`')
            .next()
            .expect("its end")
            .replace("runner data", &format!("{} data", env!("CARGO_BIN_EXE_runner")));
        let done = Command::new("sh").args(["-c", &command]).current_dir(lab.path("")).output().expect("sh");
        let done = Finished::from(done);
        assert!(
            done.code == Some(0) && done.stdout.contains(tokens),
            "{command}\n{}{}",
            done.stdout,
            done.stderr
        );
        shards(&lab);
    }
    finish(prepare(&lab, &["--format", "text", "table"])).assert_says(&["1 document, "]);
}

#[test]
fn what_no_command_helps_with_is_refused_by_name_too() {
    let lab = Lab::new();
    write(&lab, "page.html", "<!DOCTYPE html>\n<p>A page.</p>\n");
    write(&lab, "feed.xml", "<?xml version=\"1.0\"?>\n<feed/>\n");
    write(&lab, "paper.txt", "%PDF-1.7\n");
    write(&lab, "letter.txt", "{\\rtf1\\ansi A letter.}\n");
    write(&lab, "pointer.parquet", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n");
    write(&lab, "program", b"\x7fELF\x02\x01\x01\0\0\0");
    write(&lab, "plain.parquet.gz", gzip(&std::fs::read(case("plain.parquet")).expect("a fixture")));
    write(&lab, "twice.gz", gzip(&gzip(b"text")));
    write(&lab, "cut.gz", &gzip(json_lines().as_bytes())[..60]);
    let mut damaged = zstd(PAGES.join(" ").repeat(50).as_bytes());
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0x10;
    write(&lab, "damaged.zst", damaged);
    finish(prepare(&lab, &["--name", "t", "page.html"]))
        .assert_fails(1, &["a web page (HTML)", "--format text"]);
    finish(prepare(&lab, &["--format", "text", "page.html"])).assert_says(&["1 document, "]);
    for shard in std::fs::read_dir(lab.path("out")).expect("written") {
        std::fs::rename(shard.expect("an entry").path(), lab.path("shard.txt")).expect("ours");
    }
    for (name, says) in [
        ("feed.xml", "an XML document"),
        ("paper.txt", "a PDF document"),
        ("letter.txt", "a document in rich text (RTF)"),
        ("pointer.parquet", "git lfs pull --include=pointer.parquet"),
        ("program", "binary"),
        ("plain.parquet.gz", "a Parquet file compressed with gzip"),
        ("twice.gz", "compressed twice"),
        ("cut.gz", "is damaged: after"),
        ("damaged.zst", "is damaged: after"),
        ("shard.txt", "name it in `data.train`"),
    ] {
        finish(prepare(&lab, &[name])).assert_fails(1, &[name, says]);
        assert!(shards(&lab).is_empty(), "{name}: something is left");
    }
}

#[test]
fn parquet_is_read_in_every_form_and_its_checksums_are_compared() {
    let lab = Lab::new();
    let path = |name: &str| case(name).display().to_string();
    let read = |arguments: &[&str]| finish(prepare(&lab, arguments));
    read(&[&path("dictionary.parquet")]).assert_says(&["4 documents, 273 bytes of text, 277 tokens"]);
    shards(&lab);
    let empty = read(&[&path("plain.parquet"), &path("empty_part.parquet")]);
    empty.assert_says(&["3 documents, 205 bytes of text, 208 tokens"]);
    assert!(empty.stderr.contains("empty_part.parquet` has no rows"), "{}", empty.stderr);
    let expected = shards(&lab);
    read(&["--column", "page.body.text", &path("nested.parquet")]).assert_says(&["208 tokens"]);
    assert_eq!(shards(&lab), expected);
    for (arguments, says) in [
        (vec!["crc.parquet"], vec!["the checksum of page 0 differs", "rows 0 to 3"]),
        (vec!["empty_part.parquet"], vec!["holds no text: it has no row with text"]),
        (
            vec!["nested.parquet"],
            vec!["has no column `text`, but `page.url`, `page.body.text`, `tags.list.element`"],
        ),
        (vec!["nested.parquet", "--column", "tags.list.element"], vec!["holds a list in each row"]),
        (
            vec!["nested_null.parquet", "--column", "page.body.text"],
            vec!["row 2 of", "is null", "--skip-bad-rows"],
        ),
    ] {
        let file = path(arguments[0]);
        let all: Vec<&str> = arguments[1..].iter().copied().chain([file.as_str()]).collect();
        read(&all).assert_fails(1, &says);
        assert!(shards(&lab).is_empty());
    }
    let skipped = read(&["--skip-bad-rows", "1", "--column", "page.body.text", &path("nested_null.parquet")]);
    skipped.assert_says(&["2 documents"]);
    assert!(skipped.stderr.contains("1 bad row was left out"), "{}", skipped.stderr);
}

#[test]
fn bad_rows_are_left_out_when_asked_counted_and_listed_and_one_too_many_refuses() {
    let lab = Lab::new();
    let lines = "{\"text\": \"a\"}\n{\"text\": 7}\n\nnot \
                 JSON\n{\"body\": \"b\"}\n{\"text\": \" \"}\n{\"text\": \"c\"}\n";
    write(&lab, "x.jsonl", lines);
    finish(prepare(&lab, &["x.jsonl"])).assert_fails(1, &["line 2 is no document"]);
    std::fs::write(lab.path("bad.jsonl"), "{\"text\": 5}\n").expect("writable");
    let mut command = lab.command(&["data", "prepare", "--tokenizer", "byte", "--skip-bad-rows", "2"]);
    command.current_dir(lab.path("")).args(["--out", "new/folders", "bad.jsonl"]);
    let none = finish(command);
    none.assert_fails(1, &["1 bad row was left out, and no other has text: bad.jsonl:1: "]);
    assert!(!lab.path("new").exists(), "folders of a refused preparation stay");
    let refused = finish(prepare(&lab, &["--skip-bad-rows", "2", "x.jsonl"]));
    refused.assert_fails(
        1,
        &["x.jsonl:5: it has no column `text`", "one bad row more than `--skip-bad-rows 2`"],
    );
    assert!(shards(&lab).is_empty());
    let done = finish(prepare(&lab, &["--skip-bad-rows", "3", "x.jsonl", "x.jsonl"]));
    done.assert_fails(1, &["x.jsonl:2: ", "--skip-bad-rows 3"]);
    let done = finish(prepare(&lab, &["--skip-bad-rows", "3", "x.jsonl"]));
    done.assert_says(&["2 documents, 2 bytes of text"]);
    for says in [
        "3 bad rows were left out",
        "x.jsonl:2: ",
        "x.jsonl:4: it is no JSON object",
        "x.jsonl:5: ",
        "1 document of white space alone",
    ] {
        assert!(done.stderr.contains(says), "`{says}` is not in:\n{}", done.stderr);
    }
}

/// The pipe stays open: what reads it to its end waits for ever.
#[test]
fn a_wrong_name_or_destination_is_refused_before_standard_input_is_read() {
    let lab = Lab::new();
    write(&lab, "x.txt", "text");
    finish(prepare(&lab, &["x.txt"])).assert_says(&["text, 5 tokens"]);
    for (arguments, code, says) in [
        (["--name", "a/b"], 2, "`--name` is `a/b`"),
        (["--shard-tokens", "0"], 2, "`--shard-tokens` is 0"),
        (["--out", "x.txt/out"], 1, "cannot write below `x.txt`"),
        (["--name", "x"], 1, "exists already"),
    ] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let mut command = lab.command(&["data", "prepare", "-", "--tokenizer", "byte"]);
        command.current_dir(lab.path("")).args(arguments);
        if arguments[0] != "--out" {
            command.args(["--out", "out"]);
        }
        command.stdin(reader).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        wait_until(&format!("the refusal of {arguments:?}"), Duration::from_secs(60), || {
            child.try_wait().expect("it can be asked").is_some()
        });
        drop(writer);
        Finished::from(child.wait_with_output().expect("it has ended")).assert_fails(code, &[says]);
    }
}

#[test]
fn overwriting_replaces_shards_and_nothing_that_only_has_their_name() {
    let lab = Lab::new();
    write(&lab, "x.txt", "text");
    finish(prepare(&lab, &["x.txt"])).assert_says(&["1 document, "]);
    write(&lab, "out/x_train_000007.bin", "my notes");
    finish(prepare(&lab, &["--overwrite", "x.txt"])).assert_fails(1, &["x_train_000007.bin", "is none"]);
    assert_eq!(std::fs::read(lab.path("out/x_train_000007.bin")).expect("kept"), b"my notes");
    let done = finish(prepare(&lab, &["--name", "y", "x.txt", "./x.txt"]));
    done.assert_says(&["2 documents"]);
    assert!(done.stderr.contains("named more than once"), "{}", done.stderr);
}
