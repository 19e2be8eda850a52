//! The format of bytes, recognised by their start and never by a name alone.

use std::path::Path;

use super::super::shard::{self, MAGIC};
use super::InputFormat;

/// Bytes that recognition needs, where there are as many.
pub(super) const HEAD_BYTES: usize = 64 << 10;

/// The format of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InputKind {
    Text,
    JsonLines,
    Parquet,
    /// One JSON array, of which each element may be a document.
    JsonArray,
    /// JSON over several lines that is no array.
    JsonDocument,
    Csv,
    Tsv,
    Html,
    Xml,
    /// Bytes of zero and no other sign.
    Binary,
    UnreadFormat(&'static UnreadFormat),
}

/// A format that is known and not read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct UnreadFormat {
    at: usize,
    magic: &'static [u8],
    pub name: &'static str,
    pub remedy: Remedy,
}

/// What to do with an input that is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remedy {
    /// A command that writes text or JSON lines; `{}` is the file.
    Filter(&'static str),
    /// A sentence; `{}` is the file.
    Say(&'static str),
}

/// How an input is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    Gzip,
    Zstd,
}

impl Compression {
    /// By the first bytes.
    pub fn of(head: &[u8]) -> Option<Compression> {
        match head {
            [0x1f, 0x8b, ..] => Some(Compression::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Compression::Zstd),
            _ => None,
        }
    }

    /// The command that undoes it with `-dc`.
    pub fn command(self) -> &'static str {
        match self {
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        }
    }
}

use Remedy::{Filter, Say};

const fn foreign(at: usize, magic: &'static [u8], name: &'static str, remedy: Remedy) -> UnreadFormat {
    UnreadFormat { at, magic, name, remedy }
}

/// UTF-16 that has no mark at its start.
static UTF_16_LE: UnreadFormat = foreign(0, b"", "text in UTF-16", Filter("iconv -f UTF-16LE -t UTF-8 {}"));
static UTF_16_BE: UnreadFormat = foreign(0, b"", "text in UTF-16", Filter("iconv -f UTF-16BE -t UTF-8 {}"));

/// UTF-32 comes before UTF-16, whose mark it starts with.
static FOREIGN: [UnreadFormat; 20] = [
    foreign(0, b"\xfd7zXZ\0", "compressed with xz", Filter("xz -dc {}")),
    foreign(4, b"1AY&SY", "compressed with bzip2", Filter("bzip2 -dc {}")),
    foreign(0, b"\x04\x22\x4d\x18", "compressed with lz4", Filter("lz4 -dc {}")),
    foreign(0, b"PK\x03\x04", "a zip archive", Filter("unzip -p {}")),
    foreign(0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", Filter("7z x -so {}")),
    foreign(257, b"ustar", "a tar archive", Filter("tar -xOf {}")),
    foreign(0, b"{\\rtf", "a document in rich text (RTF)", Filter("unrtf --text {}")),
    foreign(0, b"%PDF-", "a PDF document", Filter("pdftotext {} -")),
    foreign(0, b"\xff\xfe\0\0", "text in UTF-32", Filter("iconv -f UTF-32 -t UTF-8 {}")),
    foreign(0, b"\0\0\xfe\xff", "text in UTF-32", Filter("iconv -f UTF-32 -t UTF-8 {}")),
    foreign(0, b"\xff\xfe", "text in UTF-16", Filter("iconv -f UTF-16 -t UTF-8 {}")),
    foreign(0, b"\xfe\xff", "text in UTF-16", Filter("iconv -f UTF-16 -t UTF-8 {}")),
    foreign(
        0,
        b"version https://git-lfs",
        "a pointer of Git LFS",
        Say("`git lfs pull --include={}` gets the file"),
    ),
    foreign(0, &MAGIC.to_le_bytes(), "a token shard already", Say("name it in `data.train`")),
    foreign(0, b"ARROW1", "an Arrow file", Say("write it as Parquet or JSON lines")),
    foreign(0, b"SQLite format 3\0", "an SQLite database", Say("write its texts as JSON lines")),
    foreign(0, b"\x89PNG", "a picture", Say("name text, JSON lines or Parquet")),
    foreign(0, b"\xff\xd8\xff", "a picture", Say("name text, JSON lines or Parquet")),
    foreign(0, b"\x1f\x8b", "compressed twice", Filter("gzip -dc {}")),
    foreign(0, b"\x28\xb5\x2f\xfd", "compressed twice", Filter("zstd -dc {}")),
];

impl InputKind {
    /// What `head`, the start of an uncompressed input, holds. `whole` says that nothing follows it.
    pub fn of(head: &[u8], whole: bool) -> InputKind {
        if head.starts_with(b"PAR1") {
            return InputKind::Parquet;
        }
        let has =
            |foreign: &&UnreadFormat| head.get(foreign.at..).is_some_and(|at| at.starts_with(foreign.magic));
        if let Some(foreign) = FOREIGN.iter().find(has) {
            return InputKind::UnreadFormat(foreign);
        }
        if let Some(kind) = zeros(head) {
            return kind;
        }
        if shard::html_start(head).is_some() {
            let xml = head.trim_ascii_start().starts_with(b"<?xml");
            return if xml { InputKind::Xml } else { InputKind::Html };
        }
        let text = String::from_utf8_lossy(head);
        let text = text.trim_start_matches('\u{feff}').trim_start();
        let first_tag = text.split_once('>').map_or("", |(tag, _)| tag);
        if first_tag.starts_with('<') && first_tag.contains(" xmlns") {
            return InputKind::Xml;
        }
        if text.starts_with('{') {
            return braces(text, whole);
        }
        let after = text.strip_prefix('[').map(str::trim_start);
        if after.is_some_and(|after| after.starts_with('{') && after[1..].trim_start().starts_with('"')) {
            return InputKind::JsonArray;
        }
        match () {
            () if is_table(text, ',', whole) => InputKind::Csv,
            () if is_table(text, '\t', whole) => InputKind::Tsv,
            () => InputKind::Text,
        }
    }

    /// Uses the name where content alone is ambiguous: text whose name says table, page or JSON is taken for
    /// that.
    pub fn named(self, extension: &str) -> InputKind {
        match (self, extension) {
            (InputKind::Text, "csv") => InputKind::Csv,
            (InputKind::Text, "tsv" | "tab") => InputKind::Tsv,
            (InputKind::Text, "html" | "htm" | "xhtml") => InputKind::Html,
            (InputKind::Text, "xml") => InputKind::Xml,
            (InputKind::Text, "json") => InputKind::JsonDocument,
            _ => self,
        }
    }

    /// The format in which it is read by default.
    pub fn format(self) -> Option<InputFormat> {
        match self {
            InputKind::Text => Some(InputFormat::Text),
            InputKind::JsonLines => Some(InputFormat::Jsonl),
            InputKind::Parquet => Some(InputFormat::Parquet),
            _ => None,
        }
    }

    /// Whether it can be read as `format`, or at least tried.
    pub fn can_be(self, format: InputFormat) -> bool {
        match format {
            InputFormat::Text => !matches!(self, InputKind::Parquet | InputKind::UnreadFormat(_)),
            InputFormat::Jsonl => {
                matches!(
                    self,
                    InputKind::JsonLines | InputKind::Text | InputKind::JsonDocument | InputKind::Binary
                )
            }
            InputFormat::Parquet => !matches!(self, InputKind::UnreadFormat(_)),
        }
    }

    /// Its name in messages, after "it is".
    pub fn name(self) -> &'static str {
        match self {
            InputKind::Text => "text",
            InputKind::JsonLines => "a file of JSON lines",
            InputKind::Parquet => "a Parquet file",
            InputKind::JsonArray => "one JSON array",
            InputKind::JsonDocument => "JSON, but not one object a line",
            InputKind::Csv => "a table of comma-separated values (CSV)",
            InputKind::Tsv => "a table of tab-separated values (TSV)",
            InputKind::Html => "a web page (HTML)",
            InputKind::Xml => "an XML document",
            InputKind::Binary => "binary: it holds bytes of zero",
            InputKind::UnreadFormat(foreign) => foreign.name,
        }
    }

    /// What to do with it where it is not read.
    pub fn remedy(self) -> Remedy {
        match self {
            InputKind::Csv => Filter(
                "python3 -c 'import csv, json, sys; [print(json.dumps(r)) for r in \
                 csv.DictReader(open(sys.argv[1], newline=\"\"))]' {}",
            ),
            InputKind::Tsv => Filter(
                "python3 -c 'import csv, json, sys; [print(json.dumps(r)) for r in \
                 csv.DictReader(open(sys.argv[1], newline=\"\"), delimiter=\"\\t\")]' {}",
            ),
            InputKind::JsonArray => Filter(
                "python3 -c 'import json, sys; [print(json.dumps(r)) for r in \
                 json.load(open(sys.argv[1]))]' {}",
            ),
            InputKind::JsonDocument => Say("write one object a line"),
            InputKind::Html | InputKind::Xml => Say("take the text out of it first"),
            InputKind::Parquet => Say("leave out `--format`, or say `--format parquet`"),
            InputKind::Text | InputKind::JsonLines | InputKind::Binary => {
                Say("name text, JSON lines or Parquet")
            }
            InputKind::UnreadFormat(foreign) => foreign.remedy,
        }
    }
}

/// The end of a name that says what is inside, in lower case and without that of a compression.
pub(super) fn extension(path: &Path) -> String {
    let end = |path: &Path| path.extension().map(|end| end.to_string_lossy().to_ascii_lowercase());
    match end(path) {
        Some(last) if ["gz", "zst", "xz", "bz2", "lz4"].contains(&last.as_str()) => {
            end(Path::new(path.file_stem().unwrap_or_default())).unwrap_or_default()
        }
        last => last.unwrap_or_default(),
    }
}

/// UTF-16 without a mark, or binary; text has no zeros.
fn zeros(head: &[u8]) -> Option<InputKind> {
    let count = |from: usize| head.iter().skip(from).step_by(2).filter(|&&byte| byte == 0).count();
    let (even, odd) = (count(0), count(1));
    let half = head.len() / 2;
    match () {
        () if even + odd == 0 => None,
        () if even == 0 && 5 * odd >= 2 * half => Some(InputKind::UnreadFormat(&UTF_16_LE)),
        () if odd == 0 && 5 * even >= 2 * half => Some(InputKind::UnreadFormat(&UTF_16_BE)),
        () => Some(InputKind::Binary),
    }
}

/// The format of content that starts with `{`.
fn braces(text: &str, whole: bool) -> InputKind {
    let inside = text[1..].trim_start();
    let is_json = inside.starts_with('"') || inside.starts_with('}');
    let (line, ended) = text.split_once('\n').map_or((text, whole), |(line, _)| (line, true));
    let object = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(line).is_ok();
    match () {
        () if object || (is_json && !ended && !line.contains('\n')) => InputKind::JsonLines,
        // A first line that is damaged, or an object over many lines.
        () if is_json && line.trim_end().len() > 1 && line.contains("\":") => InputKind::JsonLines,
        () if is_json => InputKind::JsonDocument,
        () => InputKind::Text,
    }
}

/// Whether the lines have the same number of fields, at least two, and the first names them.
fn is_table(text: &str, separator: char, whole: bool) -> bool {
    let mut lines: Vec<&str> = text.lines().take(21).collect();
    if !whole || lines.len() > 20 {
        // The last may be cut.
        lines.pop();
    }
    let lines: Vec<&str> = lines.into_iter().filter(|line| !line.trim().is_empty()).collect();
    let [header, rows @ ..] = lines.as_slice() else { return false };
    let names = fields(header, separator);
    let is_name = |name: &str| {
        let name = name.trim_matches('"');
        name.starts_with(|c: char| c.is_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_alphanumeric() || "_-.".contains(c))
    };
    names.len() >= 2
        && rows.len() >= 2
        && names.iter().all(|name| is_name(name))
        && rows.iter().all(|row| fields(row, separator).len() == names.len())
}

/// The fields of a line; separators within double quotes are part of a field.
fn fields(line: &str, separator: char) -> Vec<&str> {
    let mut quoted = false;
    line.split(|c| {
        quoted ^= c == '"';
        c == separator && !quoted
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_recognised_by_its_start() {
        let utf16: Vec<u8> = "It was the best of times".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let utf16_be: Vec<u8> = "It was the best".encode_utf16().flat_map(u16::to_be_bytes).collect();
        let mut tar = vec![b'a'; 512];
        tar[257..262].copy_from_slice(b"ustar");
        for (head, expected) in [
            (&b"Plain text, of two lines,\nwith commas, at that.\nAnd more, of course.\n"[..], "text"),
            (b"[1] A note.\n[2] Another.\n", "text"),
            (b"{curly braces} and no JSON}", "text"),
            (b"{\\rtf1\\ansi A letter.}", "a document in rich text (RTF)"),
            (b"Dear Sir,\nThank you,\nYours,\nI\n", "text"),
            (b"{\"text\": \"a\"}\n{\"text\": \"b\"}\n", "a file of JSON lines"),
            (b"\xef\xbb\xbf{\"text\": \"a\"}\n", "a file of JSON lines"),
            (b"{\"text\": \"a long line that is cut", "a file of JSON lines"),
            (b"{\"text\": \"a damaged line\nand so on", "a file of JSON lines"),
            (b"{\n  \"text\": \"a\"\n}\n", "JSON, but not one object a line"),
            (b"[\n {\"text\": \"a\"},\n", "one JSON array"),
            (b"id,text\n0,\"a, b\"\n1,c\n", "a table of comma-separated values (CSV)"),
            (b"id\ttext\n0\ta\n1\tc\n", "a table of tab-separated values (TSV)"),
            (b"<!DOCTYPE html>\n<p>", "a web page (HTML)"),
            (b"<?xml version=\"1.0\"?>\n<a/>", "an XML document"),
            (b"<mediawiki xmlns=\"http://x\">", "an XML document"),
            (b"PAR1\x15\x04", "a Parquet file"),
            (b"\xff\xfeI\0t\0", "text in UTF-16"),
            (b"\xff\xfe\0\0I\0\0\0", "text in UTF-32"),
            (&utf16, "text in UTF-16"),
            (&utf16_be, "text in UTF-16"),
            (b"\xfd7zXZ\0\0", "compressed with xz"),
            (b"BZh91AY&SY", "compressed with bzip2"),
            (b"PK\x03\x04\x14", "a zip archive"),
            (&tar, "a tar archive"),
            (b"%PDF-1.7", "a PDF document"),
            (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
            (&MAGIC.to_le_bytes(), "a token shard already"),
            (b"\x7fELF\x02\x01\x01\0\0\0", "binary: it holds bytes of zero"),
        ] {
            assert_eq!(InputKind::of(head, true).name(), expected, "{}", String::from_utf8_lossy(head));
        }
    }

    #[test]
    fn a_name_says_what_is_inside_the_compression() {
        for (name, expected) in
            [("a.JSONL.gz", "jsonl"), ("a.txt", "txt"), ("a.gz", ""), ("a", ""), ("a.b/c", "")]
        {
            assert_eq!(extension(Path::new(name)), expected, "{name}");
        }
    }
}
