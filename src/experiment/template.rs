//! A new experiment to edit: the keys of a shipped one with their values, and every other key as a comment.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Component, Path};

use super::descriptor;
use super::layers::{self, ExperimentText, Layer, LayerSource};
use super::reference::{KeyReference, KeysReference, first_sentence};
use super::schema::{self, Default};
use super::shipped::ShippedExperiment;

/// The text of a new experiment that will be saved at `path`, with the values of `from` and, of the files
/// that it extends, of those too.
///
/// Each key stands under what it does. A key that is not set is a comment without a blank behind its `#`,
/// with its default, which may be the descriptor's, or else an example. Data are where they are to `from`: in
/// `data` of the working folder.
pub fn template(path: &Path, from: &ShippedExperiment) -> String {
    let layers = layers::read(&ExperimentText::Shipped(from), &[], &[]);
    let value = |key: &str| {
        let mut found = None;
        for layer in &layers.list {
            if let (LayerSource::File(file), Some(entry)) = (&layer.source, layer.entries.get(key)) {
                found = Some(file.text[entry.span.clone()].replace("\"../", &format!("\"{}", to_here(path))));
            }
        }
        found
    };
    let descriptor = value("model.descriptor").unwrap_or_default();
    let given = descriptor::parts(descriptor.trim_matches('"'));
    let mut out = head(path, from);
    let KeysReference(sections) = KeysReference::all();
    for section in sections {
        let names = match section.section {
            schema::SOURCE_SECTION => sources(&layers.list),
            name => vec![name.to_owned()],
        };
        for name in names {
            if !name.is_empty() {
                let _ = write!(out, "\n[{name}]\n# {}.\n\n", first_sentence(section.about));
            }
            for key in section.keys.iter().filter(|key| schema::described(key.key).is_some()) {
                let words: Vec<&str> = key.words.iter().map(|word| word.word).collect();
                let words = if words.is_empty() { String::new() } else { format!(" ({})", words.join(", ")) };
                out.push_str(&comment(&format!("{}{words}.", first_sentence(key.meaning))));
                let _ = match value([&name, key.leaf()].join(".").trim_start_matches('.')) {
                    Some(value) => writeln!(out, "{} = {value}", key.leaf()),
                    None => {
                        let part = given.iter().find(|(name, _)| *name == key.key);
                        let unset = part.map_or_else(|| unset(key), |(_, part)| part.to_string());
                        writeln!(out, "#{} = {unset}", key.leaf())
                    }
                };
            }
        }
    }
    out
}

/// The tables of the sources of a mixture.
fn sources(layers: &[Layer]) -> Vec<String> {
    let keys = layers.iter().flat_map(|layer| layer.entries.keys());
    let tables: BTreeSet<&str> =
        keys.filter(|key| schema::is_of_source(key)).map(|key| schema::section_of(key)).collect();
    tables.into_iter().map(str::to_owned).collect()
}

fn head(path: &Path, from: &ShippedExperiment) -> String {
    let (path, name, about) = (path.display(), from.name, comment(&format!("{}.", from.about())));
    format!(
        "{about}#\n# Made from `{name}`. To look, to count what it takes, to train:\n#\n\
         #     runner config {path}\n#     runner plan {path}\n#     runner run {path}\n#\n\
         # A line that begins with `#` and a key sets nothing: without the `#` it does.\n\
         # `runner config --explain KEY` tells all of a key.\n\n"
    )
}

/// A comment in lines of at most 100 columns.
fn comment(text: &str) -> String {
    let mut out = String::new();
    let mut line = String::from("#");
    for word in text.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > 100 {
            out += &(line + "\n");
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    out + &line + "\n"
}

/// The default of a key, or an example where it has none that a file could hold.
fn unset(key: &KeyReference) -> String {
    match schema::described(key.key).map(|row| row.default) {
        Some(Default::Integer(n)) => n.to_string(),
        Some(Default::Number(x)) => format!("{x:?}"),
        Some(Default::Boolean(b)) => b.to_string(),
        Some(Default::Text(text)) => format!("{text:?}"),
        Some(Default::Absent | Default::Ruled) | None => key.example.to_owned(),
    }
}

/// The way from the folder of `path` to the working folder, with a slash at its end.
fn to_here(path: &Path) -> String {
    let folder = path.parent().unwrap_or(Path::new(""));
    let below = folder.components().filter(|part| !matches!(part, Component::CurDir));
    if below.clone().all(|part| matches!(part, Component::Normal(_))) {
        return "../".repeat(below.count());
    }
    let here = std::env::current_dir().unwrap_or_default();
    format!("{}/", here.display())
}

#[cfg(test)]
mod tests {
    use super::super::shipped::SHIPPED;
    use super::super::{differences, load_layers};
    use super::*;

    #[test]
    fn a_new_experiment_is_the_one_it_was_made_from_but_for_its_name() {
        for from in SHIPPED.iter().filter(|shipped| !shipped.is_sweep()) {
            let text = template(Path::new("experiments/mine.toml"), from);
            let name = "experiments/mine.toml";
            let original = load_layers(&ExperimentText::Shipped(from), &[], &[]).unwrap().experiment;
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("experiments/mine.toml");
            std::fs::create_dir(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &text).unwrap();
            let loaded = load_layers(&ExperimentText::Path(&path), &[], &[]);
            let mut mine = loaded.unwrap_or_else(|error| panic!("{text}\n{error}")).experiment;
            let here = std::env::current_dir().unwrap();
            let moved = |text: &String| text.replace(folder.path().to_str().unwrap(), here.to_str().unwrap());
            mine.data.train = mine.data.train.iter().map(moved).collect();
            mine.data.val = mine.data.val.iter().map(moved).collect();
            mine.eval.hellaswag = mine.eval.hellaswag.as_ref().map(moved);
            mine.model.init = mine.model.init.as_ref().map(moved);
            let changed = differences(&original, &mine);
            let keys: Vec<&str> = changed.iter().map(|(key, ..)| key.as_str()).collect();
            assert_eq!(keys, ["name"], "{name} from {}", from.name);
            assert!(text.lines().all(|line| line.chars().count() <= 110), "{text}");
        }
    }

    #[test]
    fn keys_that_the_descriptor_sets_stand_there_with_its_values() {
        let line = |name: &str, key: &str| {
            let from = SHIPPED.iter().find(|shipped| shipped.name == name).expect("it is shipped");
            let text = template(Path::new("mine.toml"), from);
            text.lines().find(|line| line.starts_with(&format!("#{key} = "))).expect("a comment").to_owned()
        };
        for (key, modern, gpt2) in [
            ("norm", "\"rmsnorm\"", "\"layernorm\""),
            ("bias", "false", "true"),
            ("qk_norm", "true", "false"),
        ] {
            assert_eq!(line("modern_124m", key), format!("#{key} = {modern}"));
            assert_eq!(line("gpt2_124m", key), format!("#{key} = {gpt2}"));
        }
    }

    #[test]
    fn every_key_stands_in_a_new_experiment_and_can_be_switched_on() {
        let text = template(Path::new("mine.toml"), &SHIPPED[0]);
        for row in schema::KEYS {
            let is_key = |line: &str| line.trim_start_matches('#').starts_with(&format!("{} = ", row.leaf()));
            assert!(text.lines().any(is_key), "{}", row.name);
        }
        assert!(text.contains("train = \"data/") || text.contains("#train = "), "{text}");
    }
}
