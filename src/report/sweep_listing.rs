//! The members of a sweep as a table: settings, state, loss.

use serde::Serialize;

use super::summary::RunSummary;
use super::table::TableColumn;
use crate::experiment::{setting_text, settings_json};
use crate::store::MemberFolder;
use crate::units::printable_lines;

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
        let run = member.folder.is_dir().then(|| RunSummary::read(&member.folder));
        MemberSummary {
            number: member.number,
            name: member.name.clone(),
            settings: settings_json(&member.settings),
            settings_as_written: member.settings.clone(),
            // A kill may have left a folder in which nothing had begun.
            run: run.filter(|run| run.steps.is_some()),
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

/// The table, and why members are broken or stopped.
pub fn text(members: &[MemberSummary]) -> String {
    let Some(first) = members.first() else { return String::new() };
    let keys: Vec<&str> = first.settings_as_written.iter().map(|(key, _)| key.as_str()).collect();
    // By its last part where that is the key in every table, filter and group.
    let title = |key: &&str| {
        let leaf = key.rsplit('.').next().unwrap_or(key);
        let names = TableColumn::find(leaf).is_ok_and(|column| column.name == *key);
        if names { leaf.to_owned() } else { (*key).to_owned() }
    };
    let mut rows: Vec<Vec<String>> = vec![
        std::iter::once("member".to_owned())
            .chain(keys.iter().map(title))
            .chain(["state", "step", "mean loss", "val"].map(str::to_owned))
            .collect(),
    ];
    for member in members {
        let bare = |text: String| match text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
            Some(word) if !word.contains('"') => word.to_owned(),
            _ => text,
        };
        let values = member.settings_as_written.iter().map(|(_, value)| bare(setting_text(value)));
        rows.push(std::iter::once(member.name.clone()).chain(values).chain(member.figures()).collect());
    }
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0))
        .collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}", width = *width)).collect();
        format!("{}\n", cells.join("  "))
    };
    let mut text: String = rows.iter().map(line).collect();
    for (member, run) in members.iter().filter_map(|member| Some((member, member.run.as_ref()?))) {
        if let Some(why) = &run.why {
            text.push_str(&format!("{} is {}: {why}\n", member.name, run.state.name()));
        }
    }
    printable_lines(&text)
}
