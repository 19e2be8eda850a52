//! JSON lines: the text of one field of each line.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, Visitor};

use super::super::error::DataError;
use crate::proof::json;

/// A line of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct JsonLine<'a> {
    /// From 1.
    pub number: u64,
    /// Where it starts in the file.
    pub start: u64,
    /// Without its end.
    pub bytes: &'a [u8],
}

/// The lines that hold something, of a part of a file that begins with line `first` at byte `start`.
pub(super) fn lines(bytes: &[u8], first: u64, mut start: u64) -> impl Iterator<Item = JsonLine<'_>> {
    let numbered = bytes.split(|&byte| byte == b'\n').zip(first..).map(move |(bytes, number)| {
        let line = JsonLine { number, start, bytes };
        start += bytes.len() as u64 + 1;
        line
    });
    numbered.filter(|line| !line.bytes.trim_ascii().is_empty())
}

/// The text in `column` of a line.
///
/// # Errors
///
/// A line that is no JSON object, has no such field, something else than a string in it, or a field twice.
pub(super) fn text<'a>(path: &Path, line: JsonLine<'a>, column: &str) -> Result<Cow<'a, str>, DataError> {
    let refused = |problem| DataError::Line { path: path.to_owned(), line: line.number, problem };
    let mut json = serde_json::Deserializer::from_slice(line.bytes);
    let read = FieldOf { name: column }.deserialize(&mut json).and_then(|text| json.end().map(|()| text));
    read.map_err(|error| {
        let problem = json::fault_in_line(line.bytes, &error);
        match error.classify() {
            serde_json::error::Category::Data => refused(problem),
            _ => {
                let skip = json::not_in_json(line.bytes, &error)
                    .map(|_| "\n  hint: `--skip-bad-rows N` leaves out up to N such rows");
                let hint = json::lone_cr(line.bytes).or(skip).unwrap_or_default();
                refused(format!("it is no JSON object: {problem}{hint}"))
            }
        }
    })
}

/// Reads one field of an object and passes over the others.
struct FieldOf<'c> {
    name: &'c str,
}

impl<'de> DeserializeSeed<'de> for FieldOf<'_> {
    type Value = Cow<'de, str>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for FieldOf<'_> {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut found, mut others) = (None, Vec::<Cow<'de, str>>::new());
        let twice = |key: &str| A::Error::custom(format!("the column `{key}` is there twice"));
        while let Some(key) = map.next_key_seed(TextField { of: None })? {
            if key == self.name {
                let value = map.next_value_seed(TextField { of: Some(self.name) })?;
                if found.replace(value).is_some() {
                    return Err(twice(&key));
                }
            } else if others.contains(&key) {
                return Err(twice(&key));
            } else {
                map.next_value::<IgnoredAny>()?;
                others.push(key);
            }
        }
        found.ok_or_else(|| {
            let has: Vec<String> = others.iter().take(12).map(|key| format!("`{key}`")).collect();
            let has = if has.is_empty() { "nothing".to_owned() } else { has.join(", ") };
            A::Error::custom(format!(
                "it has no column `{}`, but {has}\n  hint: name one with `--column`",
                self.name
            ))
        })
    }
}

/// A string, borrowed from the line where nothing in it is escaped.
struct TextField<'c> {
    /// The column it is in, for messages.
    of: Option<&'c str>,
}

impl<'de> DeserializeSeed<'de> for TextField<'_> {
    type Value = Cow<'de, str>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for TextField<'_> {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.of {
            Some(column) => write!(f, "a string in the column `{column}`"),
            None => f.write_str("a name"),
        }
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &[u8]) -> Result<String, String> {
        let line = JsonLine { number: 7, start: 0, bytes: line };
        text(Path::new("x.jsonl"), line, "text").map(Cow::into_owned).map_err(|e| e.to_string())
    }

    #[test]
    fn the_column_is_found_among_others_and_unescaped() {
        assert_eq!(read(br#"{"id": [1, {"text": 2}], "text": "plain", "n": null}"#).unwrap(), "plain");
        assert_eq!(read(r#"{"text": "a\n\"é\" \u00e9 \ud83e\udd80"}"#.as_bytes()).unwrap(), "a\n\"é\" é 🦀");
        assert_eq!(read(br#" {"text":""} "#).unwrap(), "");
    }

    #[test]
    fn each_fault_names_its_line() {
        for (line, says) in [
            (&br#"{"text": "cut"#[..], "it is no JSON object: EOF while parsing a string at column 13"),
            (br#"{"text": "a"} x"#, "it is no JSON object: trailing characters at column 15"),
            (b"{\"text\": \"a\"}\r{\"text\": \"b\"}\r", "its lines end in CR alone, and are one line here"),
            (br#"["text"]"#, "invalid type: sequence, expected a JSON object"),
            (br#"{"body": "a", "id": 1}"#, "it has no column `text`, but `body`, `id`"),
            (b"{}", "it has no column `text`, but nothing"),
            (br#"{"text": 5}"#, "invalid type: integer `5`, expected a string in the column `text`"),
            (br#"{"text": null}"#, "invalid type: null, expected a string in the column `text`"),
            (br#"{"text": "a", "text": "b"}"#, "the column `text` is there twice"),
            (br#"{"id": 1, "text": "a", "id": 2}"#, "the column `id` is there twice"),
            (b"{\"text\": \"caf\xe9\"}", "invalid unicode code point"),
            (br#"{"text": "a\ud800b"}"#, "it is no JSON object: a lone surrogate (half of a pair, which"),
            (br#"{"text": "\udc00"}"#, "such rows"),
            (br#"{"id": NaN, "text": "a"}"#, "`NaN` (which JSON does not have) at column 8\n  hint: `--skip"),
        ] {
            let error = read(line).unwrap_err();
            assert!(error.contains("`x.jsonl` line 7") && error.contains(says), "{error}\nlacks: {says}");
        }
    }

    #[test]
    fn blank_lines_count_and_say_nothing() {
        let found: Vec<_> =
            lines(b"{}\n\r\n \n{\"a\":1}\r\n", 11, 100).map(|line| (line.number, line.start)).collect();
        assert_eq!(found, [(11, 100), (14, 107)]);
        assert_eq!(lines(b"", 1, 0).count(), 0);
    }
}
