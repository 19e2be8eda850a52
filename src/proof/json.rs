//! JSON that others wrote: no object may have a key twice, of which most readers keep one in silence.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;

use serde::de::{Deserialize, DeserializeOwned, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// A value in which no object has a key twice, at any depth.
struct Unambiguous;

/// Reads one JSON value.
///
/// # Errors
/// It is no JSON, is no `T`, or has a key twice.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice::<Unambiguous>(bytes)?;
    serde_json::from_slice(bytes)
}

/// Reads the one JSON value of a line.
///
/// # Errors
/// Those of [`parse`], in the words of [`fault_in_line`].
pub fn parse_line<T: DeserializeOwned>(line: &[u8]) -> Result<T, String> {
    parse(line).map_err(|error| fault_in_line(line, &error))
}

/// What is wrong with a line that was read alone: serde's number of the line, always 1, is left out, and the
/// column is said where the text is no JSON.
pub fn fault_in_line(line: &[u8], error: &serde_json::Error) -> String {
    let message = error.to_string();
    let problem = message.rsplit_once(" at line ").map_or(message.as_str(), |(problem, _)| problem);
    match error.classify() {
        serde_json::error::Category::Data => problem.to_owned(),
        _ => format!("{} at column {}", not_in_json(line, error).unwrap_or(problem), error.column()),
    }
}

/// What others write into JSON and JSON does not have, where the fault in this line is that.
pub fn not_in_json(line: &[u8], error: &serde_json::Error) -> Option<&'static str> {
    if error.is_data() {
        return None;
    }
    let message = error.to_string();
    let surrogate = ["unexpected end of hex escape", "lone leading surrogate in hex escape"];
    if surrogate.iter().any(|fault| message.starts_with(fault)) {
        return Some("a lone surrogate (half of a pair, which no text has)");
    }
    let from = line.get(error.column().saturating_sub(1)..).unwrap_or_default();
    let words: [(&[u8], _); 2] = [
        (b"NaN", "`NaN` (which JSON does not have)"),
        (b"Infinity", "`Infinity` (which JSON does not have)"),
    ];
    words.into_iter().find(|(word, _)| from.starts_with(word)).map(|(_, what)| what)
}

/// What to say of a line that is no JSON and holds the ends of others: a lone CR ends none.
pub fn lone_cr(line: &[u8]) -> Option<&'static str> {
    line.trim_ascii().contains(&b'\r').then_some(
        ": its lines end in CR alone, and are one line here\n  hint: `tr '\\r' '\\n' < FILE > NEW` mends \
         them",
    )
}

impl<'de> Deserialize<'de> for Unambiguous {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Unambiguous, D::Error> {
        deserializer.deserialize_any(Unambiguous)
    }
}

impl<'de> Visitor<'de> for Unambiguous {
    type Value = Unambiguous;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Unambiguous, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Unambiguous, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Unambiguous, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Unambiguous, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Unambiguous, E> {
        Ok(self)
    }

    fn visit_unit<E>(self) -> Result<Unambiguous, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Unambiguous, A::Error> {
        while list.next_element::<Unambiguous>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Unambiguous, A::Error> {
        let mut keys = BTreeSet::new();
        while let Some(key) = object.next_key::<Cow<'de, str>>()? {
            object.next_value::<Unambiguous>()?;
            if let Some(key) = keys.replace(key) {
                return Err(A::Error::custom(format!("the key `{key}` is there twice")));
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_key_that_stands_twice_is_refused_at_any_depth_and_however_it_is_written() {
        for (text, key) in [
            (r#"{"a":1,"a":1}"#, "a"),
            (r#"{"a":{"b":[0,{"c":null,"d":"","c":true}]}}"#, "c"),
            (r#"{"a":1,"\u0061":2}"#, "a"),
        ] {
            let error = parse_line::<Value>(text.as_bytes()).unwrap_err();
            assert_eq!(error, format!("the key `{key}` is there twice"));
        }
        let twice_apart = r#"[{"a":{"a":-1}},{"a":1.5e3,"A":18446744073709551615}]"#;
        assert_eq!(parse::<Value>(twice_apart.as_bytes()).unwrap()[1]["a"], 1500.0);
    }

    #[test]
    fn a_fault_in_a_line_names_its_column_alone() {
        let fault = |text: &str| parse_line::<Vec<u8>>(text.as_bytes()).unwrap_err();
        assert_eq!(fault("[1, x]"), "expected value at column 5");
        assert_eq!(fault("[1, NaN]"), "`NaN` (which JSON does not have) at column 5");
        assert_eq!(fault("[-Infinity]"), "`Infinity` (which JSON does not have) at column 3");
        for half in [r#"["a\ud800b"]"#, r#"["\udc00"]"#, r#"["\ud800\u0041"]"#] {
            assert!(fault(half).starts_with("a lone surrogate (half of a pair, which"), "{}", fault(half));
        }
        assert_eq!(fault("[1] 2"), "trailing characters at column 5");
        assert_eq!(fault("[1, \" at line 7\"]"), "invalid type: string \" at line 7\", expected u8");
    }
}
