//! Runs as a table: chosen columns, filtered, sorted, grouped, as CSV and as JSON.
//!
//! A column is a fact of a run, a number of its metrics, or a key of its experiment, by its dotted name or by
//! its last part where that names one key. [`super::listing`] prints the table for a terminal.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use rayon::prelude::*;
use serde_json::{Map, Value as Json};

use super::ReportError;
use super::best_loss::best_val_loss;
use super::figures;
use super::glance::RunGlance;
use super::summary::State;
use super::table_group::TableGroup;
use crate::experiment;
use crate::store::columns::ColumnKind;
use crate::store::contents;
use crate::store::metrics::{COLUMNS, Column};
use crate::units;

/// A value of the table.
#[derive(Clone, Debug, PartialEq)]
pub enum TableCell {
    Missing,
    Count(u64),
    Number(f64),
    Flag(bool),
    Text(String),
}

/// Where a column's values come from.
#[derive(Clone, Copy)]
enum ColumnSource {
    Fact(fn(&RunGlance) -> TableCell),
    Figure(&'static str),
    /// A metric that is not summarised: that of the last step.
    Last(&'static Column),
    Key(&'static str),
}

/// A column of the table.
#[derive(Clone, Copy)]
pub struct TableColumn {
    pub name: &'static str,
    source: ColumnSource,
}

fn texts(text: Option<&String>) -> TableCell {
    text.map_or(TableCell::Missing, |text| TableCell::Text(text.clone()))
}

fn number(value: Option<f64>) -> TableCell {
    value.map_or(TableCell::Missing, TableCell::Number)
}

const fn fact(name: &'static str, cell: fn(&RunGlance) -> TableCell) -> TableColumn {
    TableColumn { name, source: ColumnSource::Fact(cell) }
}

/// The facts of a run; the numbers of its metrics stand behind `tokens`.
static BEFORE: [TableColumn; 6] = [
    fact("name", |run| TableCell::Text(run.name.clone())),
    fact("model", |run| TableCell::Text(run.model.clone())),
    fact("state", |run| TableCell::Text(run.state.name().to_owned())),
    fact("step", |run| TableCell::Count(run.step)),
    fact("steps", |run| run.steps.map_or(TableCell::Missing, TableCell::Count)),
    fact("tokens", |run| TableCell::Count(run.tokens)),
];
static AFTER: [TableColumn; 4] = [
    fact("skipped", |run| TableCell::Count(run.skipped)),
    fact("root", |run| texts(run.root.as_ref())),
    fact("parameters", |run| run.parameters.map_or(TableCell::Missing, TableCell::Count)),
    fact("why", |run| texts(run.why.as_ref())),
];
/// Columns that stand in a table only where they are asked for.
static MORE: [TableColumn; 6] = [
    fact("tags", |run| match run.notes.tags.is_empty() {
        true => TableCell::Missing,
        false => TableCell::Text(run.notes.tags.iter().cloned().collect::<Vec<_>>().join(" ")),
    }),
    fact("note", |run| texts(run.notes.notes.last())),
    fact("disk", |run| TableCell::Count(contents::bytes_in(&run.folder))),
    fact("device", |run| texts(run.device.as_ref())),
    fact("numerics_id", |run| texts(run.numerics_id.as_ref())),
    fact("best_val_loss", |run| number(best_val_loss(&run.folder))),
];

/// The columns of a table that no one has chosen, in order: those of a run, and in their middle those of its
/// metrics of which a run has one number.
pub fn columns() -> Vec<TableColumn> {
    let figures = figures::columns().filter(|column| column.kind != ColumnKind::Average).map(of_figure);
    BEFORE.iter().copied().chain(figures).chain(AFTER).collect()
}

fn of_figure(column: &Column) -> TableColumn {
    let name = column.figure_name();
    TableColumn { name, source: ColumnSource::Figure(name) }
}

/// Every column but those of experiments' keys: first those of [`columns`].
fn all() -> impl Iterator<Item = TableColumn> {
    let of_average = figures::columns().filter(|column| column.kind == ColumnKind::Average).map(of_figure);
    columns().into_iter().chain(of_average).chain(MORE)
}

/// The name of every column but those of experiments' keys.
pub fn names() -> Vec<&'static str> {
    all().map(|column| column.name).collect()
}

impl TableColumn {
    /// The column that `asked` names.
    ///
    /// # Errors
    /// It names none, or a key of many sections.
    pub fn find(asked: &str) -> Result<TableColumn, ReportError> {
        let asked = asked.trim();
        if let Some(column) = all().find(|column| column.name == asked) {
            return Ok(column);
        }
        let keys: Vec<&'static str> = match experiment::key_of_source(asked) {
            Some(key) => vec![key],
            None => experiment::keys().filter(|key| is_named(key, asked)).collect(),
        };
        let metric = COLUMNS.iter().find(|column| column.name == asked);
        match (&keys[..], metric) {
            ([key], _) => Ok(TableColumn { name: key, source: ColumnSource::Key(key) }),
            ([], Some(metric)) => Ok(TableColumn { name: metric.name, source: ColumnSource::Last(metric) }),
            ([], None) => Err(unknown(asked)),
            (many, _) => Err(ReportError::Table {
                message: format!("`{asked}` is a key of many sections\n  hint: it is {}", many.join(" or ")),
            }),
        }
    }

    pub(super) fn cell(&self, run: &RunGlance) -> TableCell {
        match self.source {
            ColumnSource::Fact(cell) => cell(run),
            ColumnSource::Figure(name) => number(run.figures.get(name)),
            ColumnSource::Last(column) => number(run.last.as_ref().and_then(column.get)),
            ColumnSource::Key(key) => {
                match run.settings.get(key).map_or(TableCell::Missing, TableCell::of_json) {
                    // As it is asked for: `run:NAME@STEP`.
                    TableCell::Text(path) if key == "model.init" => {
                        TableCell::Text(experiment::checkpoint_name(&path).unwrap_or(path))
                    }
                    cell => cell,
                }
            }
        }
    }

    /// A value as a person reads it.
    pub fn shown(&self, cell: &TableCell) -> String {
        match (self.name, cell) {
            (_, TableCell::Missing) => "-".into(),
            ("tokens" | "parameters", TableCell::Count(n)) => units::count(*n),
            ("disk", TableCell::Count(n)) => units::bytes(*n),
            ("root" | "numerics_id", TableCell::Text(hash)) => hash.chars().take(8).collect(),
            ("mfu", TableCell::Number(share)) => format!("{:.1}%", 100.0 * share),
            ("tokens_per_s", TableCell::Number(speed)) => units::rounded(*speed),
            ("step_ms", TableCell::Number(ms)) => format!("{ms:.1}"),
            // The mean of a group.
            ("tokens" | "parameters", TableCell::Number(n)) => units::count(n.round() as u64),
            ("disk", TableCell::Number(n)) => units::bytes(n.round() as u64),
            ("step" | "steps" | "skipped", TableCell::Number(n)) => {
                let places = usize::from(n.fract() != 0.0);
                format!("{n:.places$}")
            }
            (_, TableCell::Number(value)) if !matches!(self.source, ColumnSource::Key(_)) => {
                if value.abs() < 1e7 || !value.is_finite() {
                    format!("{value:.4}")
                } else {
                    format!("{value:.4e}")
                }
            }
            (_, cell) => units::printable(&cell.plain()),
        }
    }
}

/// Refuses a key of a source that no run has.
fn require_source(column: &TableColumn, runs: &[RunGlance]) -> Result<(), ReportError> {
    let is_of_source = experiment::key_of_source(column.name).is_some();
    if !is_of_source || runs.is_empty() || runs.iter().any(|run| run.settings.contains_key(column.name)) {
        return Ok(());
    }
    let keys = runs.iter().flat_map(|run| run.settings.keys());
    let keys: BTreeSet<&str> = keys.filter_map(|key| experiment::key_of_source(key)).collect();
    let hint = match experiment::nearest(column.name, keys.iter().copied()) {
        _ if keys.is_empty() => "none of them has `data.mix`".to_owned(),
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("they have {}", keys.into_iter().collect::<Vec<_>>().join(", ")),
    };
    let message = format!("no run has the key `{}`\n  hint: {hint}", column.name);
    Err(ReportError::Table { message })
}

/// Whether a key is called so: in full, or by its last part.
fn is_named(key: &str, asked: &str) -> bool {
    key == asked || key.rsplit_once('.').is_some_and(|(_, leaf)| leaf == asked)
}

fn unknown(asked: &str) -> ReportError {
    let names = names();
    let near = experiment::nearest(
        asked,
        names.iter().copied().chain(COLUMNS.iter().map(|it| it.name)).chain(experiment::keys()),
    );
    let near = match asked.starts_with("data.mix") {
        true => "a column of a mixture is `data.mix.NAME.weight` or another key of a source; ".to_owned(),
        false => near.map_or(String::new(), |near| format!("did you mean `{near}`? ")),
    };
    let message = format!(
        "there is no column `{asked}`\n  hint: {near}the columns are {}, and each key of an experiment \
         (`runner config --explain`)",
        names.join(", ")
    );
    ReportError::Table { message }
}

impl TableCell {
    fn of_json(value: &Json) -> TableCell {
        match value {
            Json::Null => TableCell::Missing,
            Json::Bool(flag) => TableCell::Flag(*flag),
            Json::Number(number) => match number.as_u64() {
                Some(n) => TableCell::Count(n),
                None => TableCell::Number(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => TableCell::Text(text.clone()),
            Json::Array(items) if items.is_empty() => TableCell::Missing,
            list => {
                let items = list.as_array().into_iter().flatten().filter_map(Json::as_str);
                TableCell::Text(items.collect::<Vec<_>>().join(" "))
            }
        }
    }

    fn to_json(&self) -> Json {
        match self {
            TableCell::Missing => Json::Null,
            TableCell::Count(n) => (*n).into(),
            TableCell::Number(x) => (*x).into(),
            TableCell::Flag(flag) => (*flag).into(),
            TableCell::Text(text) => text.as_str().into(),
        }
    }

    /// Puts it into an object under `name`; a number that JSON has no decimal for with its bits.
    pub(super) fn put(&self, name: &str, object: &mut Map<String, Json>) {
        object.insert(name.to_owned(), self.to_json());
        if let TableCell::Number(x) = self
            && let Some(bits) = figures::bits_beside(*x)
        {
            object.insert(format!("{name}_bits"), bits.into());
        }
    }

    /// As text, without any unit; empty where it is missing.
    pub fn plain(&self) -> String {
        match self {
            TableCell::Missing => String::new(),
            TableCell::Count(n) => n.to_string(),
            TableCell::Number(x) if x.is_finite() => Json::from(*x).to_string(),
            TableCell::Number(x) => x.to_string(),
            TableCell::Flag(flag) => flag.to_string(),
            TableCell::Text(text) => text.clone(),
        }
    }

    pub(super) fn as_number(&self) -> Option<f64> {
        match self {
            TableCell::Count(n) => Some(*n as f64),
            TableCell::Number(x) => Some(*x),
            _ => None,
        }
    }

    /// Whether there is a value that stands somewhere in an order: numbers that are none do not.
    fn has_order(&self) -> bool {
        !matches!(self, TableCell::Missing) && !self.as_number().is_some_and(f64::is_nan)
    }

    /// Numbers come before text, then numbers that are none, then missing values.
    fn order(&self, other: &TableCell) -> Ordering {
        let rank = |cell: &TableCell| match cell {
            TableCell::Number(x) if x.is_nan() => 2,
            TableCell::Count(_) | TableCell::Number(_) => 0,
            TableCell::Flag(_) | TableCell::Text(_) => 1,
            TableCell::Missing => 3,
        };
        let by_rank = rank(self).cmp(&rank(other));
        by_rank.then_with(|| match (self.as_number(), other.as_number()) {
            (Some(a), Some(b)) => a.total_cmp(&b),
            _ => self.plain().cmp(&other.plain()),
        })
    }

    /// A field of CSV on one line and without control characters: empty where it is missing, in quotes where
    /// the text needs them or is empty.
    fn to_csv(&self) -> String {
        let text = units::printable(&self.plain());
        let is_text = matches!(self, TableCell::Text(_));
        if is_text && (text.is_empty() || text.contains([',', '"'])) {
            format!("\"{}\"", text.replace('"', "\"\""))
        } else {
            text
        }
    }
}

/// One `column op value`.
#[derive(Clone)]
pub struct Filter {
    column: TableColumn,
    op: Op,
    value: String,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Op {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// The text has this part.
    Contains,
}

impl Filter {
    /// Reads `column op value`: `=` or `==`, `!=`, `<`, `<=`, `>`, `>=`, or `~` for "contains". Blanks do not
    /// matter.
    ///
    /// # Errors
    /// There is no such column, or no operator.
    pub fn parse(text: &str) -> Result<Filter, ReportError> {
        const OPS: [(&str, Op); 8] = [
            ("==", Op::Equal),
            ("!=", Op::NotEqual),
            ("<=", Op::LessOrEqual),
            (">=", Op::GreaterOrEqual),
            ("<", Op::Less),
            (">", Op::Greater),
            ("~", Op::Contains),
            ("=", Op::Equal),
        ];
        let found = text.find(['=', '!', '<', '>', '~']).and_then(|at| {
            let (column, rest) = text.split_at(at);
            OPS.iter().find_map(|(sign, op)| rest.strip_prefix(sign).map(|value| (column, *op, value)))
        });
        let Some((column, op, value)) = found else {
            let message =
                format!("`{text}` is no filter\n  hint: write it as 'val_loss < 3.3' or 'state == done'");
            return Err(ReportError::Table { message });
        };
        let value = value.trim().trim_matches(['\'', '"']);
        let column = TableColumn::find(column)?;
        let is_state = State::ALL.iter().any(|state| state.name() == value);
        if column.name == "state" && op != Op::Contains && !is_state {
            let states = State::ALL.map(State::name).join(", ");
            let message = format!(
                "`{value}` is no state of a run\n  hint: the states are {states}; 'why ~ {value}' finds runs \
                 by why they stopped"
            );
            return Err(ReportError::Table { message });
        }
        Ok(Filter { column, op, value: value.to_owned() })
    }

    /// Whether a value passes; a missing one never does.
    fn passes(&self, cell: &TableCell) -> Result<bool, ReportError> {
        let wrong = |expected: &str| ReportError::Table {
            message: format!(
                "`{}` cannot be compared with `{}`: expected {expected}",
                self.column.name, self.value
            ),
        };
        let order = match cell {
            TableCell::Missing => return Ok(false),
            TableCell::Text(text) if self.op == Op::Contains => return Ok(text.contains(&self.value)),
            TableCell::Text(text) => text.as_str().cmp(&self.value),
            TableCell::Flag(_) if self.op == Op::Contains => {
                return Err(wrong("`==` or `!=`, for `~` is for text"));
            }
            TableCell::Flag(flag) => match self.value.as_str() {
                "true" | "false" => flag.to_string().as_str().cmp(&self.value),
                _ => return Err(wrong("`true` or `false`")),
            },
            TableCell::Count(_) | TableCell::Number(_) if self.op == Op::Contains => {
                return Err(wrong("`==`, `<` or the like, for `~` is for text"));
            }
            number => {
                let value = units::parse_number(&self.value).filter(|value| !value.is_nan());
                let value = value.ok_or_else(|| wrong("a number such as 4.95 or 1,000,000"))?;
                match number.as_number().unwrap_or(f64::NAN).partial_cmp(&value) {
                    Some(order) => order,
                    // Not a number: equal to nothing, and different from everything.
                    None => return Ok(self.op == Op::NotEqual),
                }
            }
        };
        Ok(match self.op {
            Op::Equal => order.is_eq(),
            Op::NotEqual => order.is_ne(),
            Op::Less => order.is_lt(),
            Op::LessOrEqual => order.is_le(),
            Op::Greater => order.is_gt(),
            Op::GreaterOrEqual => order.is_ge(),
            Op::Contains => false,
        })
    }
}

/// The order of a table.
#[derive(Clone)]
pub struct Sort {
    column: TableColumn,
    descending: bool,
}

impl Sort {
    /// Reads `COLUMN`, `-COLUMN` or `COLUMN:desc`.
    ///
    /// # Errors
    /// There is no such column or order.
    pub fn parse(by: &str) -> Result<Sort, ReportError> {
        let (name, descending) = match (by.strip_prefix('-'), by.split_once(':')) {
            (Some(name), _) => (name, true),
            (None, None) => (by, false),
            (None, Some((name, "asc"))) => (name, false),
            (None, Some((name, "desc"))) => (name, true),
            (None, Some((_, order))) => {
                let message = format!("`{order}` is no order: expected `asc` or `desc`");
                return Err(ReportError::Table { message });
            }
        };
        Ok(Sort { column: TableColumn::find(name)?, descending })
    }
}

/// A table of runs.
pub struct RunTable {
    rows: Vec<RunGlance>,
}

impl RunTable {
    /// The runs in the order given.
    ///
    /// # Errors
    /// One of these columns is of a source of a mixture that no run has.
    pub fn of(
        runs: Vec<RunGlance>,
        chosen: &[TableColumn],
        filters: &[Filter],
        sort: Option<&Sort>,
    ) -> Result<RunTable, ReportError> {
        let named = filters.iter().map(|filter| filter.column).chain(sort.map(|sort| sort.column));
        let named: Vec<TableColumn> = chosen.iter().copied().chain(named).collect();
        named.iter().try_for_each(|column| require_source(column, &runs))?;
        Ok(RunTable { rows: runs })
    }

    /// The rows that pass `filter`; a missing value passes none.
    ///
    /// # Errors
    /// The values cannot be compared with that of the filter.
    pub fn filter(self, filter: &Filter) -> Result<RunTable, ReportError> {
        let cells = self.cells(&filter.column);
        let mut rows = Vec::new();
        for (row, cell) in self.rows.into_iter().zip(cells) {
            if filter.passes(&cell)? {
                rows.push(row);
            }
        }
        Ok(RunTable { rows })
    }

    /// Sorted; rows without a value come last in either order, behind those whose value is no number; equal
    /// ones keep their order.
    pub fn sort(self, by: &Sort) -> RunTable {
        let cells = self.cells(&by.column);
        let mut rows: Vec<(TableCell, RunGlance)> = cells.into_iter().zip(self.rows).collect();
        rows.sort_by(|(a, _), (b, _)| match by.descending && a.has_order() && b.has_order() {
            true => b.order(a),
            false => a.order(b),
        });
        RunTable { rows: rows.into_iter().map(|(_, run)| run).collect() }
    }

    /// The runs, in order.
    pub fn runs(&self) -> impl Iterator<Item = &RunGlance> {
        self.rows.iter()
    }

    /// The values of a column.
    pub fn cells(&self, column: &TableColumn) -> Vec<TableCell> {
        self.rows.par_iter().map(|row| column.cell(row)).collect()
    }

    /// The keys of the experiments in which the runs differ, but for their names.
    pub fn differing(&self) -> Vec<TableColumn> {
        let differ = |key: &&'static str| {
            let mut values = self.rows.iter().map(|row| row.settings.get(*key));
            let first = values.next();
            *key != "name" && values.any(|value| Some(value) != first)
        };
        let settings = self.rows.iter().flat_map(|row| row.settings.keys());
        let of_sources: BTreeSet<&'static str> =
            settings.filter_map(|key| experiment::key_of_source(key)).collect();
        let keys = experiment::keys().chain(of_sources).filter(differ);
        keys.map(|key| TableColumn { name: key, source: ColumnSource::Key(key) }).collect()
    }

    /// The runs by their values of a column, in the order of the values.
    pub fn groups(&self, by: &TableColumn) -> Vec<TableGroup<'_>> {
        let mut groups: Vec<TableGroup<'_>> = Vec::new();
        for (row, value) in self.rows.iter().zip(self.cells(by)) {
            match groups.iter_mut().find(|group| group.value == value) {
                Some(group) => group.rows.push(row),
                None => groups.push(TableGroup { value, rows: vec![row] }),
            }
        }
        groups.sort_by(|a, b| a.value.order(&b.value));
        groups
    }

    /// Comma-separated values with a header, a line a row, each ended by a newline (RFC 4180's quotes). A
    /// line break in a text is a blank, a control character `\u{fffd}`.
    pub fn to_csv(&self, columns: &[TableColumn]) -> String {
        let name = |column: &TableColumn| TableCell::Text(column.name.to_owned()).to_csv();
        let mut csv = columns.iter().map(name).collect::<Vec<_>>().join(",") + "\n";
        let line = |row: &RunGlance| {
            let fields: Vec<String> = columns.iter().map(|column| column.cell(row).to_csv()).collect();
            fields.join(",") + "\n"
        };
        let lines: Vec<String> = self.rows.par_iter().map(line).collect();
        csv += &lines.concat();
        csv
    }

    /// A list with an object a run, by the names of the columns.
    pub fn to_json(&self, columns: &[TableColumn]) -> Json {
        let object = |row: &RunGlance| -> Map<String, Json> {
            let mut object = Map::new();
            columns.iter().for_each(|column| column.cell(row).put(column.name, &mut object));
            object
        };
        self.rows.par_iter().map(object).collect::<Vec<_>>().into()
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
