//! Runs in text: a table that fits a terminal, and one run in full.

use super::figures;
use super::summary::{RunSummary, State};
use super::table::{RunTable, TableCell, TableColumn};
use super::table_group::TableGroup;
use crate::proof::lock::Lock;
use crate::store::RunPaths;
use crate::store::contents;
use crate::store::notes::Notes;
use crate::units;

/// A column of the printed table with its cells.
pub(super) struct ListingColumn {
    title: String,
    /// Numbers are aligned to the right.
    right: bool,
    /// Columns with the highest are left out first when the terminal is narrow; 0 always stays.
    dispensable: u8,
    cells: Vec<String>,
    width: usize,
}

fn decimal(value: Option<f64>) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.4}"))
}

/// The columns that no one has chosen: name, title, how dispensable.
const DEFAULT: [(&str, &str, u8); 13] = [
    ("name", "name", 0),
    ("model", "model", 3),
    ("state", "state", 0),
    ("step", "step", 0),
    ("tokens", "tokens", 4),
    ("mean_loss", "mean loss", 2),
    ("val_loss", "val", 0),
    ("hellaswag", "hella", 1),
    ("tokens_per_s", "tok/s", 5),
    ("mfu", "MFU", 7),
    ("root", "root", 6),
    ("tags", "tags", 8),
    ("disk", "disk", 9),
];

/// The columns of groups that no one has chosen, and how dispensable they are.
const OF_GROUPS: [(&str, u8); 5] =
    [("step", 2), ("mean_loss", 3), ("val_loss", 0), ("hellaswag", 1), ("tokens_per_s", 4)];

/// The narrowest that a column is cut to.
const NARROWEST: usize = 8;

impl ListingColumn {
    fn new(
        title: &'static str,
        dispensable: u8,
        column: &TableColumn,
        values: &[TableCell],
    ) -> ListingColumn {
        let cells = values.iter().map(|cell| column.shown(cell)).collect();
        let right = !values.iter().any(|cell| matches!(cell, TableCell::Text(_)));
        ListingColumn { title: title.to_owned(), right, dispensable, cells, width: 0 }.measured()
    }

    /// Of texts as they are, aligned to the right.
    pub(super) fn of_texts(title: &str, dispensable: u8, cells: Vec<String>) -> ListingColumn {
        ListingColumn { title: title.to_owned(), right: true, dispensable, cells, width: 0 }.measured()
    }

    fn of_counts(title: &'static str, counts: &[usize]) -> ListingColumn {
        ListingColumn::of_texts(title, 0, counts.iter().map(usize::to_string).collect())
    }

    fn measured(mut self) -> ListingColumn {
        let widest = self.cells.iter().map(|cell| cell.chars().count()).max().unwrap_or(0);
        self.width = widest.max(self.title.chars().count());
        self
    }

    /// Makes the column narrower by `over`, but not narrower than [`NARROWEST`].
    fn cut(&mut self, over: usize) {
        self.width = self.width.saturating_sub(over).max(self.width.min(NARROWEST));
        self.cells.iter_mut().for_each(|cell| *cell = units::shortened_middle(cell, self.width));
    }

    fn padded(&self, text: &str) -> String {
        let width = self.width;
        if self.right { format!("{text:>width$}") } else { format!("{text:<width$}") }
    }
}

/// The columns that are shown where no one has chosen any.
fn default_columns() -> Vec<TableColumn> {
    let found = DEFAULT.iter().map(|(name, ..)| TableColumn::find(name));
    found.map(|column| column.expect("it is in the table")).collect()
}

/// The table in at most `width` columns, or in full without one, and why runs are broken. `chosen` columns
/// all stay.
pub fn table(table: &RunTable, chosen: Option<&[TableColumn]>, width: Option<usize>) -> String {
    if table.runs().next().is_none() {
        return String::new();
    }
    let mut parts: Vec<ListingColumn> = match chosen {
        Some(columns) => columns
            .iter()
            .map(|column| ListingColumn::new(column.name, 0, column, &table.cells(column)))
            .collect(),
        None => {
            let mut parts = Vec::new();
            for ((name, title, dispensable), column) in DEFAULT.into_iter().zip(default_columns()) {
                // A walk over all files, for nothing where it does not fit.
                let room = width.unwrap_or(usize::MAX);
                if name == "disk" && total(&parts) + "  1023.9 KiB".len() > room {
                    continue;
                }
                let part = ListingColumn::new(title, dispensable, &column, &table.cells(&column));
                // An empty column is left out.
                if dispensable == 0 || part.cells.iter().any(|cell| cell != "-") {
                    parts.push(part);
                }
            }
            parts
        }
    };
    for part in parts.iter_mut().filter(|part| chosen.is_none() && part.title == "step") {
        let of = table.runs().map(|run| match run.steps {
            Some(steps) if steps != run.step => format!("{}/{steps}", run.step),
            _ => run.step.to_string(),
        });
        part.cells = of.collect();
        part.width = part.cells.iter().map(String::len).max().unwrap_or(0).max(part.title.len());
    }
    let mut text = fitted(parts, 1, chosen.is_none(), width);
    for run in table.runs() {
        if let Some(why) = &run.why {
            let line = format!("{} is {}: {why}\n", run.name, run.state.name());
            text.push_str(&units::printable_lines(&line));
        }
    }
    text
}

/// A line a group: the value of `by`, how many runs have it, and the means of the columns.
pub fn groups(
    table: &RunTable,
    by: &TableColumn,
    chosen: Option<&[TableColumn]>,
    width: Option<usize>,
) -> String {
    let groups = table.groups(by);
    if groups.is_empty() {
        return String::new();
    }
    let columns: Vec<(TableColumn, u8)> = match chosen {
        Some(columns) => columns.iter().filter(|column| column.name != "name").map(|it| (*it, 0)).collect(),
        None => group_columns().into_iter().zip(OF_GROUPS.map(|(_, dispensable)| dispensable)).collect(),
    };
    let values: Vec<TableCell> = groups.iter().map(|group| group.value.clone()).collect();
    let counts = |count: fn(&TableGroup<'_>) -> usize| groups.iter().map(count).collect::<Vec<usize>>();
    let mut parts = vec![
        ListingColumn::new(by.name, 0, by, &values),
        ListingColumn::of_counts("runs", &counts(|group| group.runs().count())),
    ];
    for (title, counts) in [
        ("failed", counts(|group| group.failed().count())),
        ("unfinished", counts(|group| group.unfinished().count())),
    ] {
        if counts.iter().any(|count| *count > 0) {
            parts.push(ListingColumn::of_counts(title, &counts));
        }
    }
    let any_left_out = parts.len() > 2;
    for (column, dispensable) in columns.iter().filter(|(column, _)| column.name != by.name) {
        let (cells, measured): (Vec<TableCell>, Vec<usize>) =
            groups.iter().map(|group| group.cell(column)).unzip();
        let mut part = ListingColumn::new(column.name, *dispensable, column, &cells);
        for ((cell, measured), group) in part.cells.iter_mut().zip(measured).zip(&groups) {
            let counted = group.counted().len();
            if measured > 0 && measured < counted {
                cell.push_str(&format!(" ({measured} of {counted})"));
            }
        }
        parts.push(part.measured());
    }
    let mut text = fitted(parts, 1, chosen.is_none(), width);
    text.push_str(match any_left_out {
        true => "numbers are means over the runs of a group that are done\n",
        false => "numbers are means over the runs of a group\n",
    });
    for group in groups.iter().filter(|group| !group.is_final()) {
        let of = match group.unfinished().next() {
            Some(_) => "that are unfinished, and not final",
            None => "that failed",
        };
        text.push_str(&format!("of {} {} no run is done: ", by.name, by.shown(&group.value)));
        text.push_str(&format!("its numbers are of the runs {of}\n"));
    }
    text
}

/// The columns of groups where no one has chosen any.
pub fn group_columns() -> Vec<TableColumn> {
    OF_GROUPS.iter().map(|(name, _)| TableColumn::find(name).expect("it is in the table")).collect()
}

/// How wide the columns are together.
fn total(parts: &[ListingColumn]) -> usize {
    (parts.iter().map(|part| part.width + 2).sum::<usize>()).saturating_sub(2)
}

/// Lines of at most `width` columns: dispensable columns are left out, then the first `cut` are cut, the
/// widest first. Where that `may_lose` more, the last of those that are cut are left out, but for one, and
/// then the last ones, but for two.
pub(super) fn fitted(
    mut parts: Vec<ListingColumn>,
    mut cut: usize,
    may_lose: bool,
    width: Option<usize>,
) -> String {
    let width = width.unwrap_or(usize::MAX);
    while total(&parts) > width
        && let Some(at) = most_dispensable(&parts)
    {
        parts.remove(at);
    }
    let narrowest = |parts: &[ListingColumn], cut: usize| {
        let less = parts.iter().take(cut).map(|part| part.width.saturating_sub(NARROWEST));
        total(parts) - less.sum::<usize>()
    };
    while may_lose && parts.len() > 2 && narrowest(&parts, cut) > width {
        let last = if cut > 1 { cut } else { parts.len() };
        parts.remove(last - 1);
        cut = cut.min(last - 1);
    }
    loop {
        let over = total(&parts).saturating_sub(width);
        let wide = parts.iter_mut().take(cut).filter(|part| over > 0 && part.width > NARROWEST);
        let Some(widest) = wide.max_by_key(|part| part.width) else { break };
        widest.cut(over);
    }
    let line = |cell: &dyn Fn(&ListingColumn) -> String| {
        let cells: Vec<String> = parts.iter().map(|part| part.padded(&cell(part))).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    let mut text = line(&|part| units::shortened_middle(&part.title, part.width));
    let rows = parts.first().map_or(0, |part| part.cells.len());
    (0..rows).for_each(|at| text.push_str(&line(&|part| part.cells[at].clone())));
    text
}

/// The place of the column that is left out first; none where all of them stay.
fn most_dispensable(parts: &[ListingColumn]) -> Option<usize> {
    let (at, part) = parts.iter().enumerate().max_by_key(|(_, part)| part.dispensable)?;
    (part.dispensable > 0).then_some(at)
}

/// Everything that is known of one run.
pub fn in_full(run: &RunSummary) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        text.push_str(&format!("{name:<12} {}\n", units::printable_lines(&value)));
    };
    let none = || "-".to_owned();
    line("run", format!("{}, {}", run.name, run.state.name()));
    if let Some(why) = &run.why {
        line("", why.clone());
    }
    line("folder", run.folder.display().to_string());
    let parameters = run.parameters.map_or(String::new(), |n| format!(", {} parameters", units::count(n)));
    line("model", format!("{}{parameters}", run.model));
    if let Some(init) = &run.init {
        line("started from", init.clone());
    }
    line("device", run.device.clone().unwrap_or_else(none));
    let of = run.steps.map_or(String::new(), |steps| format!(" of {}", units::thousands(steps)));
    line("steps", format!("{}{of}, {}", units::thousands(run.step), units::counted(run.tokens, "token")));
    for (at, source) in run.sources.iter().enumerate() {
        line(if at == 0 { "sources" } else { "" }, source.to_string());
    }
    let figure = |name| run.figures.get(name);
    let over = match figures::tail(run.step.saturating_sub(run.skipped) as usize) {
        1 => ", of the last update".into(),
        over => format!(", of the last {over} updates"),
    };
    line("mean loss", format!("{}{over}", decimal(figure("mean_loss"))));
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
    if let Some(loss) = figure("ema_val_loss") {
        let score = figure("ema_hellaswag").map_or(String::new(), |score| format!(", HellaSwag {score:.4}"));
        line("average", format!("val loss {loss:.4}{score}"));
    }
    if run.skipped > 0 {
        line("skipped", units::counted(run.skipped, "step"));
    }
    if let (Some(speed), Some(step_ms)) = (figure("tokens_per_s"), figure("step_ms")) {
        let mfu = figure("mfu").map_or(String::new(), |mfu| format!(", {:.1}% MFU", 100.0 * mfu));
        let over = match run.step.min(figures::TIMED as u64) {
            1 => "of the last step".to_owned(),
            over => format!("medians of the last {over} steps"),
        };
        line("speed", format!("{} tok/s, {step_ms:.1} ms a step{mfu}; {over}", units::rounded(speed)));
        // In tokens: the steps of a warm-up have fewer.
        if let (State::Running, Some(all)) = (run.state, run.all_tokens.filter(|_| speed > 0.0)) {
            line("time left", units::duration(all.saturating_sub(run.tokens) as f64 / speed));
        }
    }
    match contents::bytes_in(&run.folder) {
        0 => {}
        bytes => line("disk", units::bytes(bytes)),
    }
    match Notes::read(&run.folder) {
        Ok(Notes { tags, notes }) => {
            let tags: Vec<String> = tags.into_iter().collect();
            if !tags.is_empty() {
                line("tags", tags.join(", "));
            }
            for (at, note) in notes.into_iter().enumerate() {
                line(if at == 0 { "notes" } else { "" }, note.replace('\n', &format!("\n{:13}", "")));
            }
        }
        Err(problem) => line("notes", problem.to_string()),
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
            init: None,
            parameters: Some(1_557_686_400),
            step: 31_000,
            steps: Some(32_000),
            all_tokens: Some(32_000 * 1_048_576),
            tokens: 32_505_856_000,
            sources: Vec::new(),
            skipped: 0,
            figures: Figures::of(&[MetricsRow {
                loss: Some(2.4),
                val_loss: Some(2.5),
                hellaswag: Some(0.51),
                hellaswag_acc_norm: Some(0.55),
                step_ms: Some(2500.0),
                tokens_per_s: Some(419_430.4),
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
            "419,430 tok/s, 2500.0 ms a step, 52.0% MFU; medians of the last 100 steps",
        ] {
            assert!(text.contains(says), "`{says}` is not in:\n{text}");
        }
    }
}
