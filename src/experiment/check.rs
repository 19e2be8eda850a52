//! One value against its row of the table: type, range, spelling.
//!
//! The result is a figment value of exactly the type that the resolved experiment wants, so that the final
//! extraction cannot fail. Knows nothing of layers or of other keys.

use std::path::{Component, Path, PathBuf};

use figment::value::Value;
use toml::de::DeValue;

use super::copy_place::{CopyPlace, NoPlace};
use super::declare::Word;
use super::diagnostics::nearest;
use super::foreign_names;
use super::schema::{Computed, KeyRow, Open, ValueKind};
use crate::units::thousands;

/// What a model's name begins with that is a checkpoint of a run: `run:NAME@STEP`.
pub const RUN_PREFIX: &str = "run:";

/// The hint on a faulty pattern.
pub const THEMSELVES: &str = "in a pattern `[[]`, `[*]` and `[?]` stand for the characters themselves";

/// Why a value is refused: a sentence, the text beside the caret, and perhaps a hint. Without a text beside
/// the caret the value is not shown.
#[derive(Debug, PartialEq)]
pub(super) struct Refusal {
    pub message: String,
    pub label: String,
    pub hint: Option<String>,
}

/// Checks `raw` for `key`. `folder` is what relative paths start from.
pub(super) fn value(key: &KeyRow, raw: &DeValue<'_>, folder: &Path) -> Result<Value, Refusal> {
    match key.kind {
        ValueKind::Integer { min, max } => integer(key, raw, min, max).map(Value::from),
        ValueKind::Number { .. } => number(key, raw).map(Value::from),
        ValueKind::Boolean => {
            raw.as_bool().map(Value::from).ok_or_else(|| wrong_type(key, raw, "`true` or `false`"))
        }
        ValueKind::Text => text(key, raw).map(Value::from),
        ValueKind::Name => name(key, raw).map(Value::from),
        ValueKind::Choice(words) => choice(key, raw, words).map(Value::from),
        ValueKind::File | ValueKind::Model => {
            let path = text(key, raw)?;
            if path.is_empty() {
                return Err(refusal(key, "must not be empty", "expected a path"));
            }
            // The caller knows where runs are.
            let is_run = key.kind == ValueKind::Model && path.starts_with(RUN_PREFIX);
            Ok(if is_run { Value::from(path) } else { Value::from(join(key, folder, path, false)?) })
        }
        ValueKind::Patterns => patterns(key, raw, folder).map(Value::from),
        ValueKind::Place => {
            let place = text(key, raw)?;
            match CopyPlace::parse(place) {
                Ok(_) if CopyPlace::is_url(place) => Ok(Value::from(place)),
                Ok(_) => Ok(Value::from(join(key, folder, place, false)?)),
                // What may be a secret is not shown.
                Err(why) => {
                    let label = if why == NoPlace::Secret { "" } else { "expected a place for copies" };
                    Err(refusal(key, &why.to_string(), label))
                }
            }
        }
    }
}

fn refusal(key: &KeyRow, what: &str, label: impl Into<String>) -> Refusal {
    Refusal { message: format!("`{}` {what}", key.name), label: label.into(), hint: None }
}

fn wrong_type(key: &KeyRow, raw: &DeValue<'_>, expected: &str) -> Refusal {
    refusal(key, &format!("must be {expected}, not {}", describe(raw)), format!("expected {expected}"))
}

/// A value as a message names it: the string "abc", the integer 3.
fn describe(raw: &DeValue<'_>) -> String {
    match raw {
        DeValue::String(s) if s.chars().count() <= 40 => format!("the string {s:?}"),
        DeValue::String(_) => "a string".into(),
        DeValue::Integer(i) => format!("the integer {}", shortened(&i.to_string())),
        DeValue::Float(f) => format!("the number {}", shortened(f.as_str())),
        DeValue::Boolean(b) => format!("`{b}`"),
        DeValue::Datetime(_) => "a date".into(),
        DeValue::Array(_) => "a list".into(),
        DeValue::Table(_) => "a table".into(),
    }
}

fn shortened(digits: &str) -> String {
    if digits.len() <= 40 { digits.to_string() } else { "with too many digits".to_string() }
}

fn integer(key: &KeyRow, raw: &DeValue<'_>, min: u64, max: u64) -> Result<u64, Refusal> {
    let range = key.kind.takes();
    // What is too large is told where the bound is, which `range` leaves out where nobody reaches it.
    let bounds = || format!("expected an integer from {min} to {}", thousands(max));
    let too_large = |given: &str| {
        refusal(key, &format!("is {given}, but at most {} is allowed", thousands(max)), bounds())
    };
    if let DeValue::Float(float) = raw
        && let Ok(x) = float.as_str().parse::<f64>()
        && x.fract() == 0.0
        && x >= 0.0
    {
        if x > max as f64 {
            return Err(too_large(&shortened(float.as_str())));
        }
        return Err(Refusal { hint: Some(format!("write `{}`", x as u64)), ..wrong_type(key, raw, &range) });
    }
    let DeValue::Integer(digits) = raw else { return Err(wrong_type(key, raw, &range)) };
    match i128::from_str_radix(digits.as_str(), digits.radix()) {
        Ok(n) if n >= i128::from(min) && n <= i128::from(max) => Ok(n as u64),
        Ok(n) if n > i128::from(max) => Err(too_large(&n.to_string())),
        Ok(n) => {
            Err(refusal(key, &format!("is {n}, but at least {min} is needed"), format!("expected {range}")))
        }
        Err(_) => Err(refusal(key, "is far out of range", bounds())),
    }
}

fn number(key: &KeyRow, raw: &DeValue<'_>) -> Result<f64, Refusal> {
    let ValueKind::Number { min, max, open } = key.kind else { return Err(wrong_type(key, raw, "a number")) };
    let digits = match raw {
        DeValue::Float(float) => float.as_str().to_string(),
        DeValue::Integer(integer) if integer.radix() == 10 => integer.as_str().to_string(),
        _ => return Err(wrong_type(key, raw, "a number")),
    };
    let range = key.kind.takes();
    let x: f64 = digits.parse().map_err(|_| wrong_type(key, raw, &range))?;
    let inside = |x: f64| {
        x >= min && x <= max && !(open == Open::Below && x == min) && !(open == Open::Above && x == max)
    };
    let refused = |why: &str| {
        refusal(key, &format!("is {}, which {why}", shortened(&digits)), format!("expected {range}"))
    };
    if !inside(x) {
        return Err(refused("is out of range"));
    }
    let computed = x as f32;
    match key.computed {
        Computed::Bits32 if !inside(computed.into()) || (computed == 0.0 && x != 0.0) => {
            Err(refused(&format!("becomes {computed:?} in the 32 bits that are computed with")))
        }
        Computed::Decimals if significant(&digits) != significant(&format!("{x:e}")) => Err(Refusal {
            hint: Some("write at most 15 digits".into()),
            ..refused("has more digits than count")
        }),
        // Minus zero equals zero but prints otherwise; the resolved file must not depend on it.
        _ => Ok(x + 0.0),
    }
}

/// The digits of a decimal without the zeros around them.
fn significant(decimal: &str) -> String {
    let mantissa = decimal.split(['e', 'E']).next().unwrap_or_default();
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    digits.trim_matches('0').to_owned()
}

fn text<'a>(key: &KeyRow, raw: &'a DeValue<'_>) -> Result<&'a str, Refusal> {
    raw.as_str().ok_or_else(|| wrong_type(key, raw, "a string"))
}

fn name<'a>(key: &KeyRow, raw: &'a DeValue<'_>) -> Result<&'a str, Refusal> {
    let name = text(key, raw)?;
    if let Some(problem) = name_problem(name) {
        return Err(Refusal {
            hint: Some("it names the run's folder: use letters, digits, `-`, `_`, `.` and spaces".into()),
            ..refusal(key, problem, "expected a name for a folder")
        });
    }
    Ok(name)
}

/// Bytes of the longest name of a run, or of shards.
pub const LONGEST_NAME: usize = 200;

/// Why a text cannot be a run folder's name on every file system.
pub fn name_problem(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("must not be empty")
    } else if name.len() > LONGEST_NAME {
        Some("is longer than 200 bytes")
    } else if !name.chars().all(may_name) {
        Some("has a character that a run folder's name may not have")
    } else if !name.starts_with(char::is_alphanumeric) {
        Some("must begin with a letter or a digit")
    } else if name.ends_with(' ') {
        Some("must not end with a space")
    } else {
        None
    }
}

/// A name for a run folder from the name of a file: what may not be in it becomes `_`.
pub(super) fn name_of_file(stem: &str) -> String {
    let name: String = stem.chars().map(|c| if may_name(c) { c } else { '_' }).collect();
    name.trim().to_owned()
}

fn may_name(c: char) -> bool {
    c.is_alphanumeric() || "-_. ".contains(c)
}

fn choice<'a>(key: &KeyRow, raw: &'a DeValue<'_>, words: &[Word]) -> Result<&'a str, Refusal> {
    let expected = key.kind.takes();
    let names = words.iter().map(|word| word.name);
    let Some(word) = raw.as_str() else { return Err(wrong_type(key, raw, &expected)) };
    if names.clone().any(|name| name == word) {
        return Ok(word);
    }
    let lower = word.to_lowercase();
    let same = foreign_names::word(&lower).filter(|here| names.clone().any(|name| name == *here));
    let hint = same.or_else(|| nearest(&lower, names)).map(|near| format!("did you mean \"{near}\"?"));
    Err(Refusal { hint, ..refusal(key, &format!("knows no {word:?}"), format!("expected {expected}")) })
}

fn patterns(key: &KeyRow, raw: &DeValue<'_>, folder: &Path) -> Result<Vec<String>, Refusal> {
    let expected = &key.kind.takes();
    let written: Vec<&str> = match raw {
        DeValue::String(one) => vec![one],
        DeValue::Array(many) => {
            let items = many
                .iter()
                .map(|item| item.get_ref().as_str().ok_or_else(|| wrong_type(key, item.get_ref(), expected)));
            items.collect::<Result<_, _>>()?
        }
        _ => return Err(wrong_type(key, raw, expected)),
    };
    for pattern in &written {
        if pattern.is_empty() {
            return Err(refusal(key, "must not hold an empty pattern", format!("expected {expected}")));
        }
        if let Err(error) = glob::Pattern::new(pattern) {
            let what = format!("holds {pattern:?}, which is no glob pattern");
            let label = format!("{} at character {}", error.msg, error.pos + 1);
            return Err(Refusal { hint: Some(THEMSELVES.into()), ..refusal(key, &what, label) });
        }
    }
    written.into_iter().map(|pattern| join(key, folder, pattern, true)).collect()
}

/// The hint that a path starts with what a shell would replace, which stands for itself here.
pub fn not_expanded(path: &str) -> Option<&'static str> {
    let first = path.split('/').next().unwrap_or_default();
    let replaced = first == "~" || first.starts_with('$') && !first.contains(['*', '?', '[']);
    replaced.then_some("`~` and `$HOME` are replaced by a shell alone: write the folder that they stand for")
}

/// `path` relative to `folder`, without `.` and leading `..` steps. In a pattern, special characters of the
/// folder's own name are escaped. An absolute path is left as it is. Values are text, so a folder whose path
/// is none is refused.
fn join(key: &KeyRow, folder: &Path, path: &str, as_pattern: bool) -> Result<String, Refusal> {
    if Path::new(path).is_absolute() {
        return Ok(path.to_string());
    }
    let mut base = folder.to_path_buf();
    let mut rest = PathBuf::new();
    for part in Path::new(path).components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if rest.as_os_str().is_empty() => {
                base.pop();
            }
            other => rest.push(other),
        }
    }
    if let Some(hint) = rest.to_str().and_then(not_expanded)
        && let Some(first) = rest.iter().next()
        && base.join(first).symlink_metadata().is_err()
    {
        let what = format!(
            "starts with `{}`, and `{}` has no such file",
            Path::new(first).display(),
            base.display()
        );
        return Err(Refusal { hint: Some(hint.into()), ..refusal(key, &what, "expected a path") });
    }
    let Some(base) = base.to_str() else {
        let what = format!("starts from `{}`, a folder whose path is not UTF-8", base.display());
        return Err(refusal(key, &what, "expected an absolute path, or a folder with another name"));
    };
    let base = if as_pattern { glob::Pattern::escape(base) } else { base.to_owned() };
    if rest.as_os_str().is_empty() {
        Ok(base)
    } else {
        Ok(Path::new(&base).join(rest).to_string_lossy().into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::super::schema;
    use super::*;

    fn check(key: &str, toml: &str) -> Result<Value, Refusal> {
        value(
            schema::key(key).unwrap(),
            DeValue::parse(toml).unwrap().get_ref(),
            Path::new("/work/[a]/experiments"),
        )
    }

    fn message(key: &str, toml: &str) -> String {
        check(key, toml).unwrap_err().message
    }

    #[test]
    fn integers_are_checked_for_type_and_range() {
        assert_eq!(check("schedule.steps", "18_865").unwrap().to_u128(), Some(18_865));
        assert_eq!(check("batch.micro", "0x10").unwrap().to_u128(), Some(16));
        assert_eq!(message("memory.recompute", "3"), "`memory.recompute` is 3, but at most 2 is allowed");
        for (given, said) in [("4503599627370496", "4503599627370496"), ("1e15", "1e15"), ("1e16", "1e16")] {
            assert_eq!(
                message("data.offset", given),
                format!("`data.offset` is {said}, but at most 281,474,976,710,656 is allowed")
            );
        }
        assert_eq!(message("schedule.steps", "-1"), "`schedule.steps` is -1, but at least 1 is needed");
        assert_eq!(check("schedule.steps", "1e5").unwrap_err().hint.as_deref(), Some("write `100000`"));
        assert!(message("schedule.steps", &"9".repeat(60)).contains("far out of range"));
        assert!(
            message("schedule.steps", "\"a\"")
                .contains("must be an integer, at least 1, not the string \"a\"")
        );
    }

    #[test]
    fn numbers_are_finite_and_inside_their_range() {
        assert_eq!(check("optimizer.grad_clip", "1").unwrap().to_f64(), Some(1.0));
        assert_eq!(check("schedule.learning_rate", "6e-4").unwrap().to_f64(), Some(6e-4));
        for bad in ["nan", "inf", "-inf", "1e999", "-1.0"] {
            assert!(check("optimizer.grad_clip", bad).is_err(), "{bad}");
        }
        assert!(check("optimizer.beta1", "1.0").is_err());
        assert!(check("optimizer.beta1", "0").is_ok());
        assert!(check("optimizer.epsilon", "0.0").is_err());
        assert_eq!(check("guards.loss_z", "-0.0").unwrap().to_f64().unwrap().to_bits(), 0);
    }

    #[test]
    fn a_choice_hints_at_the_nearest_word() {
        let refused = check("device.simd", "\"basline\"").unwrap_err();
        assert_eq!(refused.hint.as_deref(), Some("did you mean \"baseline\"?"));
        assert_eq!(refused.label, "expected \"auto\", \"avx512\", \"avx2\" or \"baseline\"");
    }

    #[test]
    fn names_cannot_leave_their_folder() {
        for bad in ["\"\"", "\"..\"", "\"a/b\"", "\" a\"", "\"a \"", "\".hidden\"", "\"a:b\"", "\"a\\tb\""] {
            assert!(check("name", bad).is_err(), "{bad}");
        }
        for good in ["\"gpt2_33b.v1-a\"", "\"a b\"", "\"été\""] {
            assert!(check("name", good).is_ok(), "{good}");
        }
        assert_eq!(name_of_file("essai été (2)"), "essai été _2_");
    }

    #[test]
    fn paths_start_from_the_files_folder() {
        let shards = |toml: &str| {
            check("data.train", toml).unwrap().into_array().unwrap()[0].as_str().unwrap().to_string()
        };
        assert_eq!(shards("\"../data/x_*.bin\""), "/work/[[]a[]]/data/x_*.bin");
        assert_eq!(shards("[\"./x.bin\", \"y.bin\"]"), "/work/[[]a[]]/experiments/x.bin");
        assert_eq!(shards("\"/data/*.bin\""), "/data/*.bin");
        assert_eq!(check("eval.hellaswag", "\"../h.jsonl\"").unwrap().as_str(), Some("/work/[a]/h.jsonl"));
        assert!(check("data.train", "[\"a\", 1]").is_err());
        let refused = check("data.train", "\"a[\"").unwrap_err();
        assert!(refused.hint.unwrap().contains("`[[]`"));
    }

    #[test]
    fn what_a_shell_would_replace_is_refused_unless_it_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let of = |name: &str, toml: &str| {
            value(schema::key(name).unwrap(), DeValue::parse(toml).unwrap().get_ref(), folder.path())
        };
        for (name, toml) in [
            ("data.train", "\"~/x_*.bin\""),
            ("data.val", "[\"x.bin\", \"$HOME/x.bin\"]"),
            ("eval.hellaswag", "\"${HOME}/h.jsonl\""),
            ("model.init", "\"~/model\""),
            ("checkpoint.copy_to", "\"~/copies\""),
        ] {
            let refused = of(name, toml).unwrap_err();
            assert!(refused.message.starts_with(&format!("`{name}` starts with `")), "{}", refused.message);
            assert!(refused.hint.unwrap().contains("by a shell alone"), "{name}");
        }
        for toml in ["\"a/~/x.bin\"", "\"~x.bin\"", "\"$*.bin\"", "\"./x~.bin\""] {
            assert!(of("data.train", toml).is_ok(), "{toml}");
        }
        std::fs::create_dir(folder.path().join("~")).unwrap();
        assert!(of("data.train", "\"~/x_*.bin\"").is_ok(), "a folder of this name");
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_that_is_not_utf_8_is_refused_where_a_path_starts_from_it() {
        use std::os::unix::ffi::OsStrExt;

        let folder = Path::new(std::ffi::OsStr::from_bytes(b"/work/r\xff"));
        for (name, relative, absolute) in [
            ("data.train", "\"x_*.bin\"", "\"/data/x_*.bin\""),
            ("model.init", "\"model\"", "\"/model\""),
            ("checkpoint.copy_to", "\"copies\"", "\"/copies\""),
        ] {
            let of = |toml: &str| {
                value(schema::key(name).unwrap(), DeValue::parse(toml).unwrap().get_ref(), folder)
            };
            let message = of(relative).unwrap_err().message;
            let expected =
                format!("`{name}` starts from `/work/r\u{fffd}`, a folder whose path is not UTF-8");
            assert_eq!(message, expected);
            assert!(of(absolute).is_ok(), "{name}");
        }
    }
}
