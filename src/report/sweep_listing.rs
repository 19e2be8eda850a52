//! The members of a sweep as a table: settings, state, loss.

use serde::Serialize;

use super::listing::{ListingColumn, fitted};
use super::summary::RunSummary;
use super::table::TableColumn;
use crate::experiment::{setting_text, settings_json};
use crate::store::{MemberFolder, RunPaths};
use crate::units::{printable, printable_lines};

/// A member and its run.
#[derive(Debug, Serialize)]
pub struct MemberSummary {
    pub number: usize,
    #[serde(skip)]
    name: String,
    #[serde(skip)]
    settings_as_written: Vec<(String, String)>,
    pub settings: serde_json::Value,
    /// None before it has begun.
    pub run: Option<RunSummary>,
}

impl MemberSummary {
    /// Reads a member's run, if it has begun.
    pub fn read(member: &MemberFolder) -> MemberSummary {
        // A kill may have left a folder in which nothing had begun.
        let begun = RunPaths::new(&member.folder).have_begun();
        MemberSummary {
            number: member.number,
            name: member.name.clone(),
            settings: settings_json(&member.settings),
            settings_as_written: member.settings.clone(),
            run: begun.then(|| RunSummary::read(&member.folder)),
        }
    }

    /// Its cells behind the settings.
    fn figures(&self) -> [String; 4] {
        let Some(run) = &self.run else { return ["not begun", "-", "-", "-"].map(str::to_owned) };
        let steps = run.steps.filter(|steps| *steps != run.step);
        let figure = |name| run.figures.get(name).map_or("-".to_owned(), |value| format!("{value:.4}"));
        [
            run.state.name().to_owned(),
            steps.map_or(run.step.to_string(), |steps| format!("{}/{steps}", run.step)),
            figure("mean_loss"),
            figure("val_loss"),
        ]
    }
}

/// The table in at most `width` columns, or in full without one, and why members are broken or stopped.
pub fn text(members: &[MemberSummary], width: Option<usize>) -> String {
    let Some(first) = members.first() else { return String::new() };
    // By its last part where that is the key in every table, filter and group.
    let title = |key: &str| {
        let leaf = key.rsplit('.').next().unwrap_or(key);
        let names = TableColumn::find(leaf).is_ok_and(|column| column.name == key);
        if names { leaf.to_owned() } else { key.to_owned() }
    };
    let bare = |text: String| match text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
        Some(word) if !word.contains('"') => word.to_owned(),
        _ => text,
    };
    let names = members.iter().map(|member| member.name.clone()).collect();
    let mut parts = vec![ListingColumn::of_texts("member", 0, names)];
    for (at, (key, _)) in first.settings_as_written.iter().enumerate() {
        let values = members.iter().map(|member| {
            let value = member.settings_as_written.get(at).map(|(_, value)| bare(setting_text(value)));
            printable(&value.unwrap_or_default())
        });
        parts.push(ListingColumn::of_texts(&title(key), 0, values.collect()));
    }
    let cut = parts.len();
    let figures: Vec<[String; 4]> = members.iter().map(MemberSummary::figures).collect();
    for (at, (title, dispensable)) in
        [("state", 0), ("step", 1), ("mean loss", 2), ("val", 0)].iter().enumerate()
    {
        let cells = figures.iter().map(|figures| figures[at].clone()).collect();
        parts.push(ListingColumn::of_texts(title, *dispensable, cells));
    }
    let mut text = fitted(parts, cut, true, width);
    for (member, run) in members.iter().filter_map(|member| Some((member, member.run.as_ref()?))) {
        if let Some(why) = &run.why {
            text.push_str(&printable_lines(&format!("{} is {}: {why}\n", member.name, run.state.name())));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(number: usize, corpus: &str) -> MemberSummary {
        let settings = [("data.train", corpus), ("seed", "1")];
        MemberSummary {
            number,
            name: format!("{number:03}"),
            settings_as_written: settings.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec(),
            settings: serde_json::Value::Null,
            run: None,
        }
    }

    #[test]
    fn the_table_is_fitted_to_the_width_and_whole_without_one() {
        let long = "\"/a/rather/long/path/to/the/shards/of/some/text_*.bin\"";
        let members = [member(1, long), member(2, "\"b\"")];
        let whole = text(&members, None);
        assert!(whole.contains(long.trim_matches('"')) && whole.contains("mean loss"), "{whole}");
        for width in [30, 40, 60, 80] {
            let text = text(&members, Some(width));
            assert!(text.lines().all(|line| line.chars().count() <= width), "{width}:\n{text}");
            assert!(text.contains("not begun") && text.contains("001"), "{text}");
        }
        let narrow = text(&members, Some(40));
        assert!(narrow.contains("seed") && narrow.contains("val") && narrow.contains("…"), "{narrow}");
        assert!(!narrow.contains("mean loss"), "{narrow}");
    }
}
