//! HellaSwag's jsonl (Zellers et al. 2019) as tokens, in the two wordings that are in use.
//!
//! llm.c encodes the context and `" " + ending` as they stand. lm-eval (below: the harness), whose `acc` and
//! `acc_norm` are published, puts the activity label before the context, removes the artefacts of WikiHow's
//! markup, and encodes context and ending as one text. Where a file has the original's `ctx_a` and `ctx_b`,
//! the harness capitalises the second sentence; a file with `ctx` alone has lost where it starts, and is
//! taken as it is.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::EvalError;
use super::harness::{encode_pair, is_python_space, lines};
use super::multiple_choice::{COMPLETIONS, Length, Prompt, Task};
use crate::data::Tokenizer;
use crate::proof::json;

/// A line of the file; everything else in it is ignored.
#[derive(Deserialize)]
struct HellaSwagLine {
    activity_label: Option<String>,
    ctx: Option<String>,
    ctx_a: Option<String>,
    ctx_b: Option<String>,
    /// A number, or one in quotes as some copies have it.
    label: Option<Value>,
    endings: Option<Vec<String>>,
}

/// Every line of `text` as a task, in order.
///
/// # Errors
///
/// The first line that is no JSON, lacks a field, has a label that names no ending, has not four
/// endings, or an ending without text.
pub fn parse(path: &Path, text: &str, tokenizer: &Tokenizer) -> Result<Vec<Task>, EvalError> {
    lines(path, "a HellaSwag task", text, |line| task(line, tokenizer))
}

fn task(line: &str, tokenizer: &Tokenizer) -> Result<Task, String> {
    let line: HellaSwagLine = json::parse_line(line.as_bytes())?;
    let missing = |field: &str| format!("the field `{field}` is missing");
    let plain = match (&line.ctx, &line.ctx_a, &line.ctx_b) {
        (Some(ctx), ..) => ctx.clone(),
        (None, Some(a), Some(b)) => format!("{a} {b}").trim_end().to_owned(),
        _ => return Err(missing("ctx")),
    };
    let harness = match (&line.ctx_a, &line.ctx_b) {
        (Some(a), Some(b)) => format!("{a} {}", capitalize(b)),
        _ => plain.clone(),
    };
    let activity = line.activity_label.ok_or_else(|| missing("activity_label"))?;
    let endings = line.endings.ok_or_else(|| missing("endings"))?;
    let endings: [String; COMPLETIONS] = endings.try_into().map_err(|endings: Vec<String>| {
        format!("it has {} endings, expected {COMPLETIONS}", endings.len())
    })?;
    let label = label(&line.label.ok_or_else(|| missing("label"))?)?;

    let query = clean(&format!("{activity}: {harness}"));
    let choices = endings.each_ref().map(|ending| clean(ending));
    if let Some(i) = choices.iter().position(|choice| choice.is_empty()) {
        return Err(format!("ending {i} has no text"));
    }
    let [a, b, c, d] = choices.each_ref().map(|choice| encode_pair(tokenizer, &query, &format!(" {choice}")));
    // The four agree on the context: it is encoded alone.
    let harness = Prompt { context: a.0, completions: [a.1, b.1, c.1, d.1] };
    if let Some(i) = harness.completions.iter().position(Vec::is_empty) {
        return Err(format!("ending {i} has no tokens of its own"));
    }
    Ok(Task {
        plain: Prompt {
            context: tokenizer.encode(&plain),
            completions: endings.each_ref().map(|ending| tokenizer.encode(&format!(" {ending}"))),
        },
        harness: Some(harness),
        label,
        lengths: choices.each_ref().map(|choice| Length::of(choice)),
    })
}

fn label(value: &Value) -> Result<usize, String> {
    let number = value.as_u64().or_else(|| value.as_str()?.parse().ok());
    match number.and_then(|n| usize::try_from(n).ok()) {
        Some(label) if label < COMPLETIONS => Ok(label),
        _ => Err(format!("the label is {value}, expected 0 to {}", COMPLETIONS - 1)),
    }
}

/// The harness's cleaning: trimmed; ` [title]` becomes `. `; text in brackets on one line is removed;
/// two spaces become one, in a single pass.
fn clean(text: &str) -> String {
    let text = text.trim_matches(is_python_space).replace(" [title]", ". ");
    let mut kept = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(open) = rest.find('[') {
        let inside = &rest[open..];
        kept.push_str(&rest[..open]);
        match inside.find([']', '\n']) {
            Some(end) if inside[end..].starts_with(']') => rest = &inside[end + 1..],
            _ => {
                kept.push('[');
                rest = &inside[1..];
            }
        }
    }
    kept.push_str(rest);
    kept.replace("  ", " ")
}

/// First character in upper case, all others in lower case, as Python's `str.capitalize`: of a character that
/// becomes several, such as `ß`, only the first is a capital.
fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    let mut first = chars.next().into_iter().flat_map(char::to_uppercase);
    let capital: String = first.next().into_iter().chain(first.flat_map(char::to_lowercase)).collect();
    capital + &chars.as_str().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment;

    fn gpt2() -> Tokenizer {
        Tokenizer::new(experiment::Tokenizer::Gpt2)
    }

    const GOOD: &str = concat!(
        r#"{"ind": 7, "activity_label": "High jump", "ctx": "A boy runs. he", "label": 2, "#,
        r#""endings": ["a", "b c", "d", "é"]}"#
    );

    #[test]
    fn both_wordings_of_a_line() {
        let tokenizer = gpt2();
        let task = &parse(Path::new("h"), GOOD, &tokenizer).unwrap()[0];
        let text = |tokens: &[u16]| tokenizer.decode(tokens);
        assert_eq!(text(&task.plain.context), "A boy runs. he");
        assert_eq!(text(&task.plain.completions[1]), " b c");
        let harness = task.harness.as_ref().unwrap();
        assert_eq!(text(&harness.context), "High jump: A boy runs. he");
        assert_eq!(text(&harness.completions[3]), " é");
        let lengths = [(1, 1), (3, 3), (1, 1), (1, 2)].map(|(chars, bytes)| Length { chars, bytes });
        assert_eq!((task.label, task.lengths), (2, lengths));
    }

    #[test]
    fn the_original_fields_are_worded_as_the_harness_does() {
        let line = concat!(
            r#"{"activity_label": "Jump", "ctx_a": "A boy.", "ctx_b": "the Boy", "label": "0", "#,
            r#""endings": ["a", "b", "c", "d"]}"#
        );
        let task = &parse(Path::new("h"), line, &gpt2()).unwrap()[0];
        assert_eq!(gpt2().decode(&task.plain.context), "A boy. the Boy");
        assert_eq!(gpt2().decode(&task.harness.as_ref().unwrap().context), "Jump: A boy. The boy");
        assert_eq!(task.label, 0);
    }

    /// Expected texts are those of the harness's `preprocess` in Python.
    #[test]
    fn cleaning_is_the_harness_s() {
        for (dirty, clean_text) in [
            (" Bake: How to [header] x  ", "Bake: How to x"),
            ("a [title] b [substeps] c", "a. b c"),
            ("a [title]b", "a. b"),
            ("open [never shut", "open [never shut"),
            ("[a [b] c]", " c]"),
            ("a [line\nbreak] [x]", "a [line\nbreak] "),
            ("a   b    c", "a  b  c"),
        ] {
            assert_eq!(clean(dirty), clean_text, "{dirty:?}");
        }
    }

    /// Expected texts are those of Python's `str.capitalize`.
    #[test]
    fn sentences_begin_with_a_capital_as_in_python() {
        for (text, capitalized) in
            [("the Boy", "The boy"), ("éTÉ", "Été"), ("ß Ä", "Ss ä"), ("ﬁNE", "Fine"), ("", "")]
        {
            assert_eq!(capitalize(text), capitalized);
        }
    }

    #[test]
    fn each_fault_names_its_line() {
        for (bad, says) in [
            ("<html>", "line 2 is not a HellaSwag task: expected value at column 1"),
            (&format!("{GOOD}\r{GOOD}\r"), "its lines end in CR alone, and are one line here\n  hint: `tr"),
            (&GOOD.replace("endings", "ends"), "the field `endings` is missing"),
            (&GOOD.replace("\"ctx\"", "\"context\""), "the field `ctx` is missing"),
            (&GOOD.replace("activity_label", "activity"), "the field `activity_label` is missing"),
            (&GOOD.replace("\"label\"", "\"gold\""), "the field `label` is missing"),
            (&GOOD.replace("\"label\": 2", "\"label\": 4"), "the label is 4, expected 0 to 3"),
            (&GOOD.replace("\"label\": 2", "\"label\": \"\""), "the label is \"\", expected 0 to 3"),
            (&GOOD.replace("\"d\", ", ""), "it has 3 endings, expected 4"),
            (&GOOD.replace("b c", "[x]"), "ending 1 has no text"),
            ("", "line 2 is not a HellaSwag task: it is empty"),
            (&GOOD.replace("\"ind\": 7", "\"label\": 3"), "the key `label` is there twice"),
            (&GOOD.replace("\"ind\": 7", "\"x\": {\"y\": 1, \"y\": 1}"), "the key `y` is there twice"),
        ] {
            let text = format!("{GOOD}\n{bad}\n{GOOD}");
            let error = parse(Path::new("h.jsonl"), &text, &gpt2()).unwrap_err().to_string();
            assert!(error.contains("`h.jsonl` line 2") && error.contains(says), "{error}");
        }
    }
}
