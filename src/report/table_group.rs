//! The runs that have one value of a column, and what is said of them together.

use std::collections::BTreeSet;

use serde_json::{Map, Value as Json};

use super::glance::RunGlance;
use super::summary::State;
use super::table::{TableCell, TableColumn};

/// The runs that have one value of a column.
pub struct TableGroup<'a> {
    pub value: TableCell,
    pub(super) rows: Vec<&'a RunGlance>,
}

/// Whether training ended in a failure, and not by its last step or a request.
fn has_failed(run: &RunGlance) -> bool {
    run.state == State::Stopped && run.why.is_some()
}

/// Whether the last step is still to be made, or not known to be.
fn is_unfinished(run: &RunGlance) -> bool {
    run.state != State::Done && !has_failed(run)
}

impl TableGroup<'_> {
    /// The runs, in the order of the table.
    pub fn runs(&self) -> impl Iterator<Item = &RunGlance> {
        self.rows.iter().copied()
    }

    /// The runs whose training failed.
    pub fn failed(&self) -> impl Iterator<Item = &RunGlance> {
        self.runs().filter(|run| has_failed(run))
    }

    /// The runs that are neither done nor failed.
    pub fn unfinished(&self) -> impl Iterator<Item = &RunGlance> {
        self.runs().filter(|run| is_unfinished(run))
    }

    /// Whether a run is done, so that the numbers are those of the end.
    pub fn is_final(&self) -> bool {
        self.runs().any(|run| run.state == State::Done)
    }

    /// The runs that the means are of: those that are done; without any the unfinished ones, and of a group
    /// that failed as a whole all.
    pub fn counted(&self) -> Vec<&RunGlance> {
        match (self.is_final(), self.unfinished().next()) {
            (true, _) => self.runs().filter(|run| run.state == State::Done).collect(),
            (false, Some(_)) => self.unfinished().collect(),
            (false, None) => self.runs().collect(),
        }
    }

    /// The mean of the numbers of a column over the runs that are [counted](TableGroup::counted), where there
    /// are any; else the one value that all have. And how many of the runs have a value.
    pub fn cell(&self, column: &TableColumn) -> (TableCell, usize) {
        let cells: Vec<TableCell> = self.counted().into_iter().map(|run| column.cell(run)).collect();
        let numbers: Vec<f64> = cells.iter().filter_map(TableCell::as_number).collect();
        let measured = cells.iter().filter(|cell| **cell != TableCell::Missing).count();
        let cell = match cells.first() {
            Some(first) if cells.iter().all(|cell| cell == first) => first.clone(),
            _ if !numbers.is_empty() => TableCell::Number(numbers.iter().sum::<f64>() / numbers.len() as f64),
            _ => {
                let values: BTreeSet<String> = cells.iter().map(TableCell::plain).collect();
                TableCell::Text(format!("{} values", values.len()))
            }
        };
        (cell, measured)
    }

    /// An object with the value, the names of the runs, of those that failed, of those that are unfinished
    /// and of those that count; the columns; and of how many runs each has a value.
    pub fn to_json(&self, by: &TableColumn, columns: &[TableColumn]) -> Json {
        let (mut object, mut measured) = (Map::new(), Map::new());
        for column in columns {
            let (cell, runs) = self.cell(column);
            cell.put(column.name, &mut object);
            measured.insert(column.name.to_owned(), runs.into());
        }
        self.value.put(by.name, &mut object);
        for (name, runs) in [
            ("runs", self.runs().collect()),
            ("failed", self.failed().collect()),
            ("unfinished", self.unfinished().collect()),
            ("counted", self.counted()),
        ] {
            let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
            object.insert(name.to_owned(), names.into());
        }
        object.insert("measured".to_owned(), measured.into());
        object.into()
    }
}
