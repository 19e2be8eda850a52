//! Runs in text: a table that fits a terminal, and one run in full.

use super::summary::{RunSummary, State};
use crate::proof::lock::Lock;
use crate::store::RunPaths;
use crate::units;

/// A column of the printed table.
struct ListingColumn {
    title: &'static str,
    /// Numbers are aligned to the right.
    right: bool,
    /// Columns with the highest are left out first when the terminal is narrow; 0 always stays.
    dispensable: u8,
    cell: fn(&RunSummary) -> String,
}

const fn column(
    title: &'static str,
    right: bool,
    dispensable: u8,
    cell: fn(&RunSummary) -> String,
) -> ListingColumn {
    ListingColumn { title, right, dispensable, cell }
}

fn decimal(value: Option<f64>) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.4}"))
}

static COLUMNS: [ListingColumn; 11] = [
    column("name", false, 0, |run| run.name.clone()),
    column("model", false, 3, |run| run.model.clone()),
    column("state", false, 0, |run| run.state.name().into()),
    column("step", true, 0, |run| match run.steps {
        Some(steps) if steps != run.step => format!("{}/{steps}", run.step),
        _ => run.step.to_string(),
    }),
    column("tokens", true, 4, |run| units::count(run.tokens)),
    column("loss", true, 2, |run| decimal(run.figures.get("loss"))),
    column("val", true, 0, |run| decimal(run.figures.get("val_loss"))),
    column("hella", true, 1, |run| decimal(run.figures.get("hellaswag"))),
    column("tok/s", true, 5, |run| {
        run.figures.get("tokens_per_s").map_or_else(|| "-".into(), |speed| units::thousands(speed as u64))
    }),
    column("MFU", true, 7, |run| {
        run.figures.get("mfu").map_or_else(|| "-".into(), |mfu| format!("{:.1}%", 100.0 * mfu))
    }),
    column("root", false, 6, |run| {
        run.root.as_ref().map_or_else(|| "-".into(), |root| root.chars().take(8).collect())
    }),
];

/// A column with its cells.
struct ListingCells {
    column: &'static ListingColumn,
    cells: Vec<String>,
    width: usize,
}

impl ListingCells {
    fn of(column: &'static ListingColumn, runs: &[&RunSummary]) -> ListingCells {
        let cells: Vec<String> = runs.iter().map(|run| (column.cell)(run)).collect();
        let widest = cells.iter().map(|cell| cell.chars().count()).max().unwrap_or(0);
        ListingCells { column, cells, width: widest.max(column.title.len()) }
    }

    /// Makes the column narrower by `over`, but not narrower than 8.
    fn cut(&mut self, over: usize) {
        self.width = self.width.saturating_sub(over).max(8);
        for cell in self.cells.iter_mut().filter(|cell| cell.chars().count() > self.width) {
            *cell = cell.chars().take(self.width - 1).chain(['…']).collect();
        }
    }

    fn padded(&self, text: String) -> String {
        let width = self.width;
        if self.column.right { format!("{text:>width$}") } else { format!("{text:<width$}") }
    }
}

/// The table in at most `width` columns, and why runs are broken.
pub fn table(runs: &[&RunSummary], width: usize) -> String {
    if runs.is_empty() {
        return String::new();
    }
    let mut parts: Vec<ListingCells> = COLUMNS.iter().map(|column| ListingCells::of(column, runs)).collect();
    // An empty column is left out.
    parts.retain(|part| part.column.dispensable == 0 || part.cells.iter().any(|cell| cell != "-"));
    let total = |parts: &[ListingCells]| parts.iter().map(|part| part.width + 2).sum::<usize>() - 2;
    while total(&parts) > width {
        let (at, part) =
            parts.iter().enumerate().max_by_key(|(_, part)| part.column.dispensable).expect("names stay");
        if part.column.dispensable == 0 {
            // Then long names are cut.
            let over = total(&parts) - width;
            parts[0].cut(over);
            break;
        }
        parts.remove(at);
    }
    let line = |cell: &dyn Fn(&ListingCells) -> String| {
        let cells: Vec<String> = parts.iter().map(|part| part.padded(cell(part))).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    let mut text = line(&|part| part.column.title.to_owned());
    for at in 0..runs.len() {
        text.push_str(&line(&|part| part.cells[at].clone()));
    }
    for run in runs {
        if let Some(why) = &run.why {
            text.push_str(&format!("{} is {}: {why}\n", run.name, run.state.name()));
        }
    }
    text
}

/// Everything that is known of one run.
pub fn in_full(run: &RunSummary) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| text.push_str(&format!("{name:<12} {value}\n"));
    let none = || "-".to_owned();
    line("run", format!("{}, {}", run.name, run.state.name()));
    if let Some(why) = &run.why {
        line("", why.clone());
    }
    line("folder", run.folder.display().to_string());
    let parameters = run.parameters.map_or(String::new(), |n| format!(", {} parameters", units::count(n)));
    line("model", format!("{}{parameters}", run.model));
    line("device", run.device.clone().unwrap_or_else(none));
    let of = run.steps.map_or(String::new(), |steps| format!(" of {}", units::thousands(steps)));
    line("steps", format!("{}{of}, {} tokens", units::thousands(run.step), units::thousands(run.tokens)));
    let figure = |name| run.figures.get(name);
    line("loss", decimal(figure("loss")));
    let best = run
        .best_val_loss
        .filter(|best| Some(*best) != figure("val_loss"))
        .map_or(String::new(), |best| format!(", best {best:.4}"));
    line("val loss", format!("{}{best}", decimal(figure("val_loss"))));
    if let Some(score) = figure("hellaswag") {
        let harness =
            figure("hellaswag_acc_norm").map_or(String::new(), |acc| format!(", acc_norm {acc:.4}"));
        line("HellaSwag", format!("{score:.4}{harness}"));
    }
    if run.skipped > 0 {
        line("skipped", format!("{} steps", units::thousands(run.skipped)));
    }
    if let (Some(speed), Some(step_ms)) = (figure("tokens_per_s"), figure("step_ms")) {
        let mfu = figure("mfu").map_or(String::new(), |mfu| format!(", {:.1}% MFU", 100.0 * mfu));
        line("speed", format!("{} tok/s, {step_ms:.1} ms a step{mfu}", units::thousands(speed as u64)));
        if let (State::Running, Some(steps)) = (run.state, run.steps) {
            line("time left", units::duration(steps.saturating_sub(run.step) as f64 * step_ms / 1e3));
        }
    }
    line("root", run.root.clone().unwrap_or_else(none));
    line("numerics", run.numerics_id.clone().unwrap_or_else(none));
    for (at, checkpoint) in run.checkpoints.iter().enumerate() {
        let what = match &checkpoint.problem {
            Some(problem) => problem.clone(),
            None => units::bytes(checkpoint.bytes),
        };
        line(if at == 0 { "checkpoints" } else { "" }, format!("step {}: {what}", checkpoint.step));
    }
    const SHOWN: usize = 12;
    for (at, incident) in run.incidents.iter().take(SHOWN).enumerate() {
        line(if at == 0 { "incidents" } else { "" }, format!("step {}: {}", incident.step, incident.what));
    }
    if run.incidents.len() > SHOWN {
        line("", format!("and {} more", run.incidents.len() - SHOWN));
    }
    for (at, setting) in settings(run).into_iter().enumerate() {
        line(if at == 0 { "settings" } else { "" }, setting);
    }
    text
}

/// The keys that are not defaults, with their origins, from the lock.
fn settings(run: &RunSummary) -> Vec<String> {
    let Ok(lock) = Lock::read(&RunPaths::new(&run.folder).lock_file()) else { return Vec::new() };
    let set = lock
        .config
        .into_iter()
        .filter(|(_, value)| !value.ends_with("(default)") && !value.contains("(default:"));
    set.map(|(key, value)| format!("{key} = {value}")).collect()
}

#[cfg(test)]
mod tests {
    use crate::report::Figures;
    use crate::store::metrics::{Action, MetricsRow};
    use std::path::PathBuf;

    use super::*;
    use crate::report::summary::Incident;

    fn run(name: &str, why: Option<&str>) -> RunSummary {
        RunSummary {
            name: name.into(),
            folder: PathBuf::from("/nowhere").join(name),
            state: if why.is_some() { State::Broken } else { State::Running },
            why: why.map(str::to_owned),
            model: "gpt2:d48".into(),
            parameters: Some(1_557_686_400),
            step: 31_000,
            steps: Some(32_000),
            tokens: 32_505_856_000,
            skipped: 0,
            figures: Figures::of(&[MetricsRow {
                loss: Some(2.4),
                val_loss: Some(2.5),
                hellaswag: Some(0.51),
                hellaswag_acc_norm: Some(0.55),
                step_ms: Some(2500.0),
                tokens_per_s: Some(419_137.0),
                mfu: Some(0.52),
                ..MetricsRow::new(0, 0, Action::Update)
            }]),
            best_val_loss: Some(2.45),
            unverified: None,
            root: Some("91e07c9d8ec24ba4e0274008b40c294394424b56bb6e65f8e5af21aef63901df".into()),
            numerics_id: None,
            device: None,
            checkpoints: Vec::new(),
            incidents: vec![Incident { step: 7, what: "resume".into() }],
        }
    }

    #[test]
    fn the_table_fits_the_width_and_tells_why_a_run_is_broken() {
        let (a, b) =
            (run("gpt2_33b_a_rather_long_name_for_a_run", None), run("b", Some("`x` line 1: cut short")));
        for width in [60, 80, 100, 200] {
            let text = table(&[&a, &b], width);
            assert!(text.lines().take(3).all(|line| line.chars().count() <= width), "{width}:\n{text}");
            assert!(text.ends_with("b is broken: `x` line 1: cut short\n"), "{text}");
        }
        assert!(table(&[&a], 200).contains("91e07c9d"));
        assert!(table(&[&b], 80).contains("tok/s"), "{}", table(&[&b], 80));
        assert_eq!(table(&[], 80), "");
    }

    #[test]
    fn a_run_in_full_has_time_left_and_incidents() {
        let text = in_full(&run("a", None));
        for says in [
            "a, running",
            "1.56 B parameters",
            "31,000 of 32,000",
            "best 2.4500",
            "41m 40s",
            "step 7: resume",
            "acc_norm",
        ] {
            assert!(text.contains(says), "`{says}` is not in:\n{text}");
        }
    }
}
