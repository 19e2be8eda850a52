//! Whether bytes are a file of the expected format: checked at the start, before anything is written, and as
//! a whole, before the file gets its name.

use std::path::Path;

use super::super::error::DataError;
use super::super::read_at::ReadAt;
use super::super::shard;
use crate::proof::json;

/// A kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A token shard.
    Shard,
    /// JSON objects, one a line.
    Jsonl,
    Parquet,
    /// UTF-8.
    Text,
}

/// Bytes that [`FileKind::check_start`] needs, where the file has as many.
pub(super) const START_BYTES: usize = 512;

/// The first and last bytes of a parquet file.
const PARQUET_MAGIC: &[u8; 4] = b"PAR1";

impl FileKind {
    /// The name in messages.
    fn name(self) -> &'static str {
        match self {
            FileKind::Shard => "token shard",
            FileKind::Jsonl => "file of JSON lines",
            FileKind::Parquet => "Parquet file",
            FileKind::Text => "text",
        }
    }

    /// Looks at the first bytes of a file called `path`.
    ///
    /// # Errors
    ///
    /// A start that no file of this format has.
    pub(super) fn check_start(self, path: &Path, start: &[u8]) -> Result<(), DataError> {
        let wrong = |expected: &str| DataError::WrongFormat {
            path: path.to_owned(),
            format: self.name(),
            problem: format!("it starts with {}, expected {expected}", shown(start)),
        };
        match self {
            FileKind::Shard => match start.first_chunk() {
                Some(magic) if u32::from_le_bytes(*magic) == shard::MAGIC => Ok(()),
                _ => Err(wrong("the magic 20240520")),
            },
            FileKind::Parquet if !start.starts_with(PARQUET_MAGIC) => Err(wrong("`PAR1`")),
            FileKind::Jsonl if start.trim_ascii_start().first() != Some(&b'{') => Err(wrong("`{`")),
            // A character may be cut at the end of the start.
            FileKind::Text if std::str::from_utf8(start).is_err_and(|e| e.error_len().is_some()) => {
                Err(wrong("UTF-8"))
            }
            _ => Ok(()),
        }
    }

    /// Checks a whole file at `at`, which messages call `path`.
    ///
    /// # Errors
    ///
    /// A start or end that readers of the format would refuse.
    pub(super) fn check_file(self, at: &Path, path: &Path) -> Result<(), DataError> {
        let file = ReadAt::open(at)?;
        let wrong =
            |problem: String| DataError::WrongFormat { path: path.to_owned(), format: self.name(), problem };
        if file.bytes() == 0 {
            return Err(wrong("it is empty".to_owned()));
        }
        let mut start = vec![0; file.bytes().min(shard::HEADER_BYTES) as usize];
        file.read(0, &mut start)?;
        if self == FileKind::Shard {
            return shard::check(path, &start, file.bytes()).map(|_| ());
        }
        self.check_start(path, &start[..start.len().min(START_BYTES)])?;
        if self == FileKind::Parquet {
            let mut end = [0; 4];
            file.read(file.bytes().saturating_sub(4), &mut end[..file.bytes().min(4) as usize])?;
            return match &end == PARQUET_MAGIC && file.bytes() >= 12 {
                true => Ok(()),
                false => Err(wrong(
                    "it does not end in `PAR1`: it was cut off, or bytes follow its end".to_owned(),
                )),
            };
        }
        // The largest of these, HellaSwag's, has 12 MB.
        let bytes = std::fs::read(at).map_err(DataError::io("read", path))?;
        if self == FileKind::Text {
            return std::str::from_utf8(&bytes)
                .map(|_| ())
                .map_err(|error| wrong(format!("it is not UTF-8 at byte {}", error.valid_up_to())));
        }
        let mut lines = bytes.trim_ascii_end().split(|&b| b == b'\n');
        let (first, last) = (lines.next().unwrap_or_default(), lines.next_back());
        for (which, line) in [("first", Some(first)), ("last", last)] {
            if let Some(Err(e)) = line.map(json::parse_line::<serde_json::Map<String, serde_json::Value>>) {
                return Err(wrong(format!("its {which} line is no JSON object: {e}")));
            }
        }
        Ok(())
    }
}

/// A few bytes for a message.
fn shown(start: &[u8]) -> String {
    let few = &start[..start.len().min(16)];
    match few {
        [] => "nothing".to_owned(),
        _ if few.iter().all(|b| (0x20..0x7f).contains(b)) => format!("`{}`", String::from_utf8_lossy(few)),
        _ => format!("the bytes {}", hex::encode(few)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(format: FileKind, bytes: &[u8]) -> Result<(), String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        format.check_file(file.path(), Path::new("data/x")).map_err(|e| e.to_string())
    }

    #[test]
    fn good_files_pass() {
        let mut shard = shard::header(1).to_vec();
        shard.extend([7, 0]);
        assert_eq!(whole(FileKind::Shard, &shard), Ok(()));
        assert_eq!(whole(FileKind::Parquet, b"PAR1 data PAR1"), Ok(()));
        assert_eq!(whole(FileKind::Jsonl, b"{\"a\": 1}\n{\"b\": 2}\n"), Ok(()));
        assert_eq!(whole(FileKind::Jsonl, b"{\"a\": 1}"), Ok(()));
        assert_eq!(whole(FileKind::Text, "naïve".as_bytes()), Ok(()));
    }

    #[test]
    fn bad_files_are_named_with_what_is_wrong() {
        for (format, bytes, says) in [
            (FileKind::Shard, &b"PAR1"[..], "`data/x` is not a token shard: expected magic"),
            (FileKind::Shard, &shard::header(5)[..], "promises 5 tokens"),
            (FileKind::Shard, b"", "it is empty"),
            (FileKind::Parquet, b"PAR1 data", "does not end in `PAR1`"),
            (FileKind::Parquet, b"PAR1PAR1", "does not end in `PAR1`"),
            (FileKind::Parquet, b"{\"a\": 1}", "it starts with `{\"a\": 1}`, expected `PAR1`"),
            (FileKind::Jsonl, b"[1]\n", "it starts with the bytes 5b315d0a, expected `{`"),
            (FileKind::Jsonl, b"{\"a\": 1}\n{\"b\"", "its last line is no JSON object"),
            (FileKind::Jsonl, b"{\"a\"\n{}", "its first line is no JSON object"),
            (FileKind::Text, b"caf\xe9 au lait", "it starts with the bytes 636166e9"),
        ] {
            let error = whole(format, bytes).unwrap_err();
            assert!(error.contains(says) && error.contains("data/x"), "{error}\nlacks: {says}");
        }
    }

    #[test]
    fn a_start_may_end_inside_a_character() {
        assert!(FileKind::Text.check_start(Path::new("x"), &"é".as_bytes()[..1]).is_ok());
    }
}
