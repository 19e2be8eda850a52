//! A comparison in text.

use super::{Comparison, GroupDifference, Measure, TestMethod};
use crate::units;

/// Differences that are printed at most; beyond, those of the best group.
const PRINTED: usize = 21;

/// A number with its sign; 0 has none.
pub fn signed(value: f64, places: usize) -> String {
    let text = format!("{value:+.places$}");
    if text.trim_start_matches(['+', '-', '0', '.']).is_empty() { text[1..].to_owned() } else { text }
}

/// `p = 0.031`, `p < 0.0001`.
pub fn p_value(p: f64) -> String {
    if p < 1e-4 { "p < 0.0001".to_owned() } else { format!("p = {}", bare_p(p)) }
}

/// Two digits that count, and at least two behind the point.
fn bare_p(p: f64) -> String {
    if p < 1e-4 {
        return "<0.0001".to_owned();
    }
    let places = (1.0 - libm::floor(libm::log10(p))).clamp(2.0, 5.0) as usize;
    format!("{p:.places$}")
}

/// Rows of cells, aligned; the first column to the left.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(
                |(at, (cell, width))| {
                    if at == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
                },
            )
            .collect();
        text.push_str(&format!("  {}\n", cells.join("  ").trim_end()));
    }
    text
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

fn dash() -> String {
    "-".to_owned()
}

impl Comparison {
    /// Tables of groups, differences and the target, then what was left out, notes and the verdict.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for measure in super::measures(self.measure) {
            text.push_str(&self.measure(measure));
        }
        if self.shows_target {
            text.push_str(&self.target());
        }
        if !self.left_out.is_empty() {
            text.push_str("not compared\n");
            for run in &self.left_out {
                text.push_str(&format!("  {}: {}\n", run.run, run.why));
            }
            text.push('\n');
        }
        if !self.notes.is_empty() {
            text.push_str("to be known\n");
            self.notes.iter().for_each(|note| text.push_str(&format!("  {note}\n")));
            text.push('\n');
        }
        text.push_str("verdict\n");
        self.verdict.iter().for_each(|sentence| text.push_str(&format!("  {sentence}\n")));
        units::printable_lines(&text)
    }

    /// The heading of the column of groups, and the name of one in it.
    fn heading(&self) -> String {
        if self.by.is_empty() { "group".to_owned() } else { self.by.join(", ") }
    }

    fn short(&self, group: usize) -> String {
        let group = &self.groups[group];
        if self.by.is_empty() {
            return group.group.clone();
        }
        let values: Vec<&str> =
            self.by.iter().filter_map(|key| group.keys.get(key)).map(String::as_str).collect();
        values.join(", ")
    }

    /// Groups and differences in one measure; nothing where no run has it.
    fn measure(&self, measure: Measure) -> String {
        let measured = || self.groups.iter().filter_map(|group| group.statistics(measure));
        if measured().next().is_none() {
            return String::new();
        }
        let is_final =
            |group: &super::ComparedGroup| group.runs.iter().all(|run| run.best_val_loss == run.val_loss);
        if measure == Measure::BestValLoss && self.groups.iter().all(is_final) {
            return "best validation loss: in every run that of the last step\n\n".to_owned();
        }
        let comma = if measure.unit().is_empty() { "" } else { ", " };
        let unit = format!("{}{comma}{} is better", measure.unit(), measure.comparative());
        let smallest = measured().filter_map(|s| s.sd).filter(|sd| *sd > 0.0).fold(f64::INFINITY, f64::min);
        let places = measure.decimals(if smallest.is_finite() { smallest } else { 0.0 });
        let failed = self.groups.iter().any(|group| group.failed > 0);
        let mut rows = vec![row([&self.heading(), "n", "mean", "sd", "95 % interval"])];
        for (index, group) in self.groups.iter().enumerate() {
            let Some(s) = group.statistics(measure) else { continue };
            let interval =
                s.interval.map_or_else(dash, |[low, high]| format!("{low:.places$} to {high:.places$}"));
            let sd = s.sd.map_or_else(dash, |sd| format!("{sd:.places$}"));
            rows.push(row([
                &self.short(index),
                &s.n.to_string(),
                &format!("{:.places$}", s.mean),
                &sd,
                &interval,
            ]));
        }
        if failed {
            rows[0].push("failed".to_owned());
            let groups = self.groups.iter().filter(|group| group.statistics(measure).is_some());
            rows[1..].iter_mut().zip(groups).for_each(|(row, group)| row.push(group.failed.to_string()));
        }
        format!("{} ({unit})\n{}{}\n", measure.name(), table(&rows), self.differences(measure))
    }

    fn differences(&self, measure: Measure) -> String {
        let all: Vec<&GroupDifference> = self.of_measure(measure).collect();
        if all.is_empty() {
            return String::new();
        }
        let best = self.best();
        let printed: Vec<&GroupDifference> = match all.len() > PRINTED {
            true => all.iter().copied().filter(|d| d.a == best || d.b == best).collect(),
            false => all.clone(),
        };
        let mut rows = vec![row(["difference", "n", "a - b", "95 % interval", "p", "Holm"])];
        for difference in &printed {
            let names = format!("{} - {}", self.short(difference.a), self.short(difference.b));
            let unit = if difference.of_seeds { "seeds" } else { "runs" };
            let n = match (difference.method, difference.n) {
                (TestMethod::Paired, [n, _]) => format!("{n} {unit}, paired"),
                (TestMethod::Welch, [a, b]) => format!("{a} and {b} {unit}"),
            };
            let reach = difference.test.as_ref().map(|test| (test.interval[1] - test.interval[0]) / 2.0);
            let places = measure.decimals(reach.unwrap_or(0.0));
            let interval = difference.test.as_ref().map_or_else(dash, |test| {
                let [low, high] = test.interval.map(|end| signed(end, places));
                format!("{low} to {high}")
            });
            let p = difference.test.as_ref().map_or_else(dash, |test| bare_p(test.p));
            let corrected = difference.p_holm.map_or_else(dash, bare_p);
            rows.push(row([&names, &n, &signed(difference.difference, places), &interval, &p, &corrected]));
        }
        let mut text = table(&rows);
        if printed.len() < all.len() {
            let rest = all.len() - printed.len();
            text.push_str(&format!("  and {rest} between other groups: `--json` has them\n"));
        }
        let remarks: Vec<String> = printed.iter().filter_map(|difference| self.remark(difference)).collect();
        const SAID: usize = 6;
        remarks.iter().take(SAID).for_each(|remark| text.push_str(remark));
        if remarks.len() > SAID {
            text.push_str(&format!("  and {} more such remarks: `--json` has them\n", remarks.len() - SAID));
        }
        text
    }

    /// Why a difference has no test, or which runs are not in it.
    fn remark(&self, difference: &GroupDifference) -> Option<String> {
        let what = match (&difference.why_untested, difference.unpaired) {
            (Some(why), _) => format!("no test: {why}"),
            (None, 0) => return None,
            (None, 1) => "1 run has no partner of its seed, and is not in it".to_owned(),
            (None, n) => format!("{n} runs have no partner of their seed, and are not in it"),
        };
        Some(format!("  {} - {}: {what}\n", self.short(difference.a), self.short(difference.b)))
    }

    fn target(&self) -> String {
        let mut rows = vec![row([&self.heading(), "reached", "steps", "tokens", "hours"])];
        for (index, group) in self.groups.iter().enumerate() {
            let to = &group.to_target;
            let whole = |value: Option<f64>| value.map_or_else(dash, units::rounded);
            let hours = to.hours.map_or_else(dash, hours);
            let reached = format!("{} of {}", to.reached, group.runs.len());
            rows.push(row([&self.short(index), &reached, &whole(to.steps), &whole(to.tokens), &hours]));
        }
        format!(
            "to a validation loss of {:.4} (median of the first validations at or below it)\n{}\n",
            self.target_val_loss,
            table(&rows)
        )
    }
}

/// Three digits that count.
fn hours(hours: f64) -> String {
    if hours == 0.0 {
        return "0".to_owned();
    }
    let places = (2.0 - libm::floor(libm::log10(hours))).clamp(0.0, 9.0) as usize;
    format!("{hours:.places$}")
}
