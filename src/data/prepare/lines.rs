//! A whole file of JSON lines in memory, recognised by its content as an input of `prepare` is.

use std::path::Path;

use super::super::error::DataError;
use super::InputFormat;
use super::command::{inside, quoted};
use super::input::{Examined, Input};
use super::kind::{Compression, HEAD_BYTES, InputKind, Remedy};

/// The command that writes the rows of a Parquet file as JSON lines.
const OF_PARQUET: &str = "python3 -c 'import json, sys, pyarrow.parquet as p; [print(json.dumps(r)) for r in \
                          p.read_table(sys.argv[1]).to_pylist()]' {}";

/// The bytes of a file, or of a pipe that is read to its end.
///
/// # Errors
///
/// A folder or device, and what the operating system refuses.
pub fn read_whole(path: &Path) -> Result<Vec<u8>, DataError> {
    Input::file(path, None)?.read()
}

/// The text of a file of JSON lines that holds `bytes`: without gzip or zstd and without a byte order mark.
/// Lines are not looked at: text of no other known format is taken for JSON lines.
///
/// # Errors
///
/// Content of another format; damaged compression; text that is not UTF-8.
pub fn json_lines(path: &Path, bytes: &[u8]) -> Result<String, DataError> {
    let compression = Compression::of(bytes);
    let input = Input::bytes(&path.to_string_lossy(), None, bytes.to_vec());
    let format = InputFormat::Jsonl;
    let examined = Examined { input: &input, format, compression, bytes: 0, note: None, stamp: None };
    let mut stream = examined.stream()?;
    stream.fill(HEAD_BYTES)?;
    let kind = InputKind::of(&stream.bytes, stream.done);
    if !matches!(kind, InputKind::JsonLines | InputKind::Text) {
        return Err(refusal(path, kind, compression));
    }
    stream.fill(usize::MAX)?;
    stream.text().map(str::to_owned)
}

/// The error for a file of another kind, with the command that makes JSON lines of it.
fn refusal(path: &Path, kind: InputKind, compression: Option<Compression>) -> DataError {
    let shown = quoted(&path.to_string_lossy());
    let made = |command: &str| {
        let command = inside(compression, command).replace("{}", &shown);
        format!("`{command} > tasks.jsonl` makes another file of it: give that")
    };
    let hint = match (kind, kind.remedy(), compression) {
        // Parquet is not read from a pipe.
        (InputKind::Parquet, _, Some(compression)) => {
            format!("unpack it first: `{} -dc {shown} > tasks.parquet`", compression.command())
        }
        (InputKind::Parquet, ..) => made(OF_PARQUET),
        (InputKind::Html | InputKind::Xml, ..) => {
            "a web server's answer was saved in place of the file: download it again".to_owned()
        }
        (_, Remedy::Filter(command), _) => made(command),
        (_, Remedy::Say(sentence), _) if sentence.contains("{}") => sentence.replace("{}", &shown),
        _ => "give a file with one JSON object a line".to_owned(),
    };
    let expected = "JSON lines, plain or compressed with gzip or zstd";
    DataError::Content { path: path.to_owned(), found: kind.name().to_owned(), expected, hint }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const ROWS: &str = "{\"text\": \"é b\"}\n{\"text\": \"c\"}\n";

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(bytes).unwrap();
        packed.finish().unwrap()
    }

    #[test]
    fn lines_are_read_plain_compressed_and_behind_a_byte_order_mark() {
        let marked = format!("\u{feff}{ROWS}");
        let long = format!("{}{ROWS}", "{\"text\": \"over a window\"}\n".repeat(9000));
        for text in [ROWS, &marked, &long, "not JSON: refused by its lines"] {
            let zstd = zstd::encode_all(text.as_bytes(), 1).unwrap();
            for bytes in [text.as_bytes(), &gzip(text.as_bytes()), &zstd] {
                let read = json_lines(Path::new("q"), bytes).unwrap();
                assert_eq!(read, text.trim_start_matches('\u{feff}'));
            }
        }
    }

    #[test]
    fn files_of_other_kinds_are_named_with_the_command_that_makes_lines_of_them() {
        let utf16: Vec<u8> = ROWS.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let marked = [&[0xff, 0xfe], &utf16[..]].concat();
        let table = b"goal,sol1,sol2,label\na,b,c,0\nd,e,f,1\n";
        for (bytes, says, helps) in [
            (&marked[..], "text in UTF-16", "`iconv -f UTF-16 -t UTF-8 'a q' > tasks.jsonl` makes"),
            (&utf16, "text in UTF-16", "iconv -f UTF-16LE"),
            (table, "a table of comma-separated values (CSV)", "csv.DictReader"),
            (
                &gzip(table),
                "a table of comma-separated values (CSV)",
                "`gzip -dc 'a q' | python3 -c 'import csv, json",
            ),
            (b"[{\"text\": \"a\"}]", "one JSON array", "json.load(open(sys.argv[1]))]' 'a q' > tasks.jsonl"),
            (b"{\n  \"text\": \"a\"\n}\n", "JSON, but not one object a line", "one JSON object a line"),
            (b"PAR1\x15\x04", "a Parquet file", "pyarrow.parquet as p;"),
            (&gzip(b"PAR1\x15\x04"), "a Parquet file", "`gzip -dc 'a q' > tasks.parquet`"),
            (b"<!DOCTYPE html><p>Log in", "a web page (HTML)", "download it again"),
            (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS", "--include='a q'`"),
            (&gzip(&gzip(ROWS.as_bytes())), "compressed twice", "`gzip -dc 'a q' | gzip -dc /dev/stdin >"),
            (b"\x89PNG\r\n", "a picture", "one JSON object a line"),
        ] {
            let error = json_lines(Path::new("a q"), bytes).unwrap_err().to_string();
            let expected = format!("`a q` is {says}: expected JSON lines, plain or compressed");
            assert!(error.starts_with(&expected) && error.contains(helps), "{error}\nlacks: {helps}");
        }
        let followed =
            |bytes: &[u8]| json_lines(Path::new("q"), &[&gzip(ROWS.as_bytes())[..], bytes].concat());
        assert_eq!(followed(&[0; 1000]).unwrap(), ROWS, "zeros fill a block");
        assert_eq!(followed(&[gzip(b"{}\n"), vec![0; 300_000]].concat()).unwrap(), format!("{ROWS}{{}}\n"));
        for other in [&b"x"[..], &[0, 0, 1], &[&[0u8; 512][..], &gzip(b"{}\n")].concat()] {
            let refused = followed(other).unwrap_err().to_string();
            assert!(refused.contains("gzip data go wrong or were cut off"), "{refused}");
        }
        let cut = json_lines(Path::new("q"), &gzip(ROWS.as_bytes())[..30]).unwrap_err().to_string();
        assert!(cut.contains("gzip data go wrong or were cut off"), "{cut}");
    }
}
