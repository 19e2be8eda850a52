//! The resolved experiment, line by line: each key with its value and where that came from.
//!
//! The file that a run keeps has one key a line and the origin behind it as a comment. Reading the text
//! keeps both, and survives a change of the schema.

/// A key of the experiment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Dotted.
    pub key: String,
    /// As TOML; `None` where it is not set.
    pub value: Option<String>,
    pub origin: String,
}

/// Every key of the text, in its order. Other lines (a person may have edited the file) are left out.
pub fn settings(text: &str) -> Vec<Setting> {
    let mut section = String::new();
    let mut settings = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = format!("{name}.");
            continue;
        }
        // Derived keys, and keys that are not set, are comments.
        let line = line.strip_prefix("# ").unwrap_or(line);
        let is_key = |key: &str| {
            !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        };
        let setting = if let Some((key, rest)) = line.split_once(" = ").filter(|(key, _)| is_key(key)) {
            let (value, origin) = split_comment(rest);
            Setting {
                key: format!("{section}{key}"),
                value: Some(value.to_owned()),
                origin: origin.to_owned(),
            }
        } else if let Some(key) = line.strip_suffix(" is not set").filter(|key| is_key(key)) {
            Setting { key: format!("{section}{key}"), value: None, origin: String::new() }
        } else {
            continue;
        };
        settings.push(setting);
    }
    settings
}

/// A TOML value and the comment behind it: a `#` inside quotes starts none.
fn split_comment(text: &str) -> (&str, &str) {
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in text.char_indices() {
        match c {
            '#' if !quoted => return (text[..at].trim(), text[at + 1..].trim()),
            '"' if !escaped => quoted = !quoted,
            _ => {}
        }
        escaped = quoted && c == '\\' && !escaped;
    }
    (text.trim(), "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment;

    #[test]
    fn every_key_of_the_file_that_a_run_writes_is_read_with_its_origin() {
        let text = "[model]\ndescriptor='d6'\n[data]\ncorpus='kjv'\ntokenizer='byte'\n\
                    [schedule]\nsteps=7\n[sample]\nprompt='a # \"b\" = c'";
        let loaded = experiment::load_text("t", text, &["optimizer.beta1=0.8".into()]).unwrap();
        let settings = settings(&loaded.to_toml());
        let find = |key: &str| {
            let setting =
                settings.iter().find(|setting| setting.key == key).unwrap_or_else(|| panic!("no {key}"));
            (setting.value.as_deref(), setting.origin.as_str())
        };
        assert_eq!(find("schedule.steps"), (Some("7"), "t:7"));
        assert_eq!(find("optimizer.beta1"), (Some("0.8"), "--set"));
        assert_eq!(find("model.layers").0, Some("6"), "a size that the descriptor gives is a comment");
        assert_eq!(find("sample.prompt"), (Some(r##""a # \"b\" = c""##), "t:9"));
        assert_eq!(find("eval.hellaswag"), (None, ""));
        let keys = experiment::flatten(&loaded.experiment);
        for key in keys.keys() {
            find(key);
        }
    }

    #[test]
    fn other_lines_are_left_out() {
        assert!(settings("# x.toml, resolved: every key\n\nhello\n= 3\n").is_empty());
    }
}
