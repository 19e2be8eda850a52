//! Runs as a data frame: sorted, filtered, written as CSV. The one table that `runner show` prints.

use polars::prelude::{
    AnyValue, BooleanChunked, ChunkCompareEq, ChunkCompareIneq, Column, DataFrame, DataType, NamedFrom,
    PolarsError, Series, SortMultipleOptions,
};

use super::ReportError;
use super::figures;
use super::summary::RunSummary;

/// The names of the table's columns, in order: those of a run, and in their middle those of its metrics of
/// which a run has one number.
pub fn columns() -> Vec<&'static str> {
    let before = ["name", "model", "state", "step", "steps", "tokens"];
    let after = ["skipped", "root", "parameters", "why"];
    let figures = figures::columns().map(|column| column.name);
    before.into_iter().chain(figures).chain(after).collect()
}

/// A table of runs.
#[derive(Clone, Debug)]
pub struct RunTable {
    frame: DataFrame,
}

/// One `column op value`.
#[derive(Clone, Debug, PartialEq)]
pub struct Filter {
    column: String,
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

impl From<PolarsError> for ReportError {
    fn from(error: PolarsError) -> ReportError {
        ReportError::Table { message: error.to_string() }
    }
}

fn known(column: &str) -> Result<(), ReportError> {
    if columns().contains(&column) {
        return Ok(());
    }
    let columns = columns().join(", ");
    Err(ReportError::Table {
        message: format!("there is no column `{column}`\n  hint: the columns are {columns}"),
    })
}

impl Filter {
    /// Reads `column op value`: `==`, `!=`, `<`, `<=`, `>`, `>=`, or `~` for "contains". Blanks do not
    /// matter.
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
        let filter = Filter { column: column.trim().to_owned(), op, value: value.to_owned() };
        known(&filter.column)?;
        Ok(filter)
    }

    fn mask(&self, column: &Series) -> Result<BooleanChunked, ReportError> {
        let wrong = |expected: &str| ReportError::Table {
            message: format!(
                "`{}` cannot be compared with `{}`: expected {expected}",
                self.column, self.value
            ),
        };
        if column.dtype() == &DataType::String {
            let text = column.str()?;
            let value = self.value.as_str();
            return Ok(match self.op {
                Op::Equal => text.equal(value),
                Op::NotEqual => text.not_equal(value),
                Op::Less => text.lt(value),
                Op::LessOrEqual => text.lt_eq(value),
                Op::Greater => text.gt(value),
                Op::GreaterOrEqual => text.gt_eq(value),
                Op::Contains => text.iter().map(|text| text.map(|text| text.contains(value))).collect(),
            });
        }
        let value: f64 = self.value.replace(['_', ','], "").parse().map_err(|_| wrong("a number"))?;
        let numbers = column.cast(&DataType::Float64)?;
        let numbers = numbers.f64()?;
        Ok(match self.op {
            Op::Equal => numbers.equal(value),
            Op::NotEqual => numbers.not_equal(value),
            Op::Less => numbers.lt(value),
            Op::LessOrEqual => numbers.lt_eq(value),
            Op::Greater => numbers.gt(value),
            Op::GreaterOrEqual => numbers.gt_eq(value),
            Op::Contains => return Err(wrong("`==`, `<` or the like, for `~` is for text")),
        })
    }
}

impl RunTable {
    /// The runs in the order given.
    pub fn of(runs: &[RunSummary]) -> Result<RunTable, ReportError> {
        fn column<'a, T>(name: &str, values: impl Iterator<Item = T> + 'a) -> Column
        where
            Series: NamedFrom<Vec<T>, [T]>,
        {
            Series::new(name.into(), values.collect::<Vec<T>>()).into()
        }
        let rows = runs.iter();
        let counts = |name: &str, values: &dyn Fn(&RunSummary) -> Option<u64>| -> Column {
            Series::new(name.into(), runs.iter().map(values).collect::<Vec<Option<u64>>>()).into()
        };
        let mut columns = vec![
            column("name", rows.clone().map(|run| run.name.as_str())),
            column("model", rows.clone().map(|run| run.model.as_str())),
            column("state", rows.clone().map(|run| run.state.name())),
            column("step", rows.clone().map(|run| run.step)),
            counts("steps", &|run| run.steps),
            column("tokens", rows.clone().map(|run| run.tokens)),
        ];
        let figure = |name| decimals(name, rows.clone().map(|run| run.figures.get(name)));
        columns.extend(figures::columns().map(|column| figure(column.name)));
        columns.extend([
            column("skipped", rows.clone().map(|run| run.skipped)),
            texts("root", rows.clone().map(|run| run.root.as_deref())),
            counts("parameters", &|run| run.parameters),
            texts("why", rows.clone().map(|run| run.why.as_deref())),
        ]);
        Ok(RunTable { frame: DataFrame::new(runs.len(), columns)? })
    }

    /// The rows that pass `filter`; a missing value passes no filter.
    pub fn filter(&self, filter: &Filter) -> Result<RunTable, ReportError> {
        let mask = filter.mask(self.frame.column(&filter.column)?.as_materialized_series())?;
        Ok(RunTable { frame: self.frame.filter(&mask)? })
    }

    /// Sorted by `COLUMN` or `COLUMN:desc`; rows without a value come last.
    pub fn sort(&self, by: &str) -> Result<RunTable, ReportError> {
        let (column, descending) = match by.split_once(':') {
            None => (by, false),
            Some((column, "asc")) => (column, false),
            Some((column, "desc")) => (column, true),
            Some((_, order)) => {
                return Err(ReportError::Table {
                    message: format!("`{order}` is no order: expected `asc` or `desc`"),
                });
            }
        };
        known(column)?;
        let options = SortMultipleOptions::default()
            .with_order_descending(descending)
            .with_nulls_last(true)
            .with_maintain_order(true)
            .with_multithreaded(false);
        Ok(RunTable { frame: self.frame.sort([column], options)? })
    }

    /// Names of the runs, in order.
    pub fn names(&self) -> Result<Vec<String>, ReportError> {
        Ok(self.frame.column("name")?.str()?.iter().flatten().map(str::to_owned).collect())
    }

    /// Comma-separated values with a header, each line ended by a newline (RFC 4180's quotes).
    pub fn to_csv(&self) -> Result<String, ReportError> {
        let mut csv = columns().join(",") + "\n";
        for row in 0..self.frame.height() {
            let fields = self.frame.columns().iter().map(|column| Ok(csv_field(&column.get(row)?)));
            csv += &(fields.collect::<Result<Vec<_>, PolarsError>>()?.join(",") + "\n");
        }
        Ok(csv)
    }
}

/// A value as a field of CSV: empty where it is missing, in quotes where the text needs them or is empty.
fn csv_field(value: &AnyValue<'_>) -> String {
    match value {
        AnyValue::Null => String::new(),
        AnyValue::Float64(number) if number.is_finite() => serde_json::Value::from(*number).to_string(),
        AnyValue::Float64(number) => number.to_string(),
        AnyValue::UInt64(number) => number.to_string(),
        value => {
            let text = value.str_value();
            if text.is_empty() || text.contains([',', '"', '\n', '\r']) {
                format!("\"{}\"", text.replace('"', "\"\""))
            } else {
                text.into_owned()
            }
        }
    }
}

fn decimals(name: &str, values: impl Iterator<Item = Option<f64>>) -> Column {
    Series::new(name.into(), values.collect::<Vec<Option<f64>>>()).into()
}

fn texts<'a>(name: &str, values: impl Iterator<Item = Option<&'a str>>) -> Column {
    Series::new(name.into(), values.collect::<Vec<Option<&str>>>()).into()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::Figures;
    use super::super::summary::State;
    use super::*;

    fn run(name: &str, step: u64, val_loss: Option<f64>, state: State) -> RunSummary {
        RunSummary {
            name: name.into(),
            folder: PathBuf::from(name),
            state,
            why: None,
            model: "d12".into(),
            parameters: Some(1000),
            step,
            steps: Some(10),
            tokens: 64 * step,
            skipped: 0,
            figures: Figures::default().with("val_loss", val_loss),
            best_val_loss: None,
            unverified: None,
            root: None,
            numerics_id: None,
            device: None,
            checkpoints: Vec::new(),
            incidents: Vec::new(),
        }
    }

    fn table() -> RunTable {
        RunTable::of(&[
            run("a", 10, Some(3.4), State::Done),
            run("b", 2, None, State::Broken),
            run("c", 7, Some(3.1), State::Stopped),
        ])
        .unwrap()
    }

    #[test]
    fn sorting_puts_rows_without_a_value_last_in_either_direction() {
        assert_eq!(table().sort("val_loss").unwrap().names().unwrap(), ["c", "a", "b"]);
        assert_eq!(table().sort("val_loss:desc").unwrap().names().unwrap(), ["a", "c", "b"]);
        assert_eq!(table().sort("step").unwrap().names().unwrap(), ["b", "c", "a"]);
        assert!(table().sort("loss:up").unwrap_err().to_string().contains("`asc` or `desc`"));
        assert!(table().sort("lost").unwrap_err().to_string().contains("the columns are name, model"));
    }

    #[test]
    fn filters_compare_numbers_and_text() {
        let names = |text: &str| table().filter(&Filter::parse(text).unwrap()).unwrap().names().unwrap();
        assert_eq!(names("val_loss < 3.3"), ["c"]);
        assert_eq!(names("val_loss>=3.1"), ["a", "c"]);
        assert_eq!(names("step != 7"), ["a", "b"]);
        assert_eq!(names("state == 'done'"), ["a"]);
        assert_eq!(names("state = broken"), ["b"]);
        assert_eq!(names("name ~ c"), ["c"]);
        for (bad, says) in [("val_loss", "no filter"), ("lost < 3", "no column `lost`")] {
            let error = Filter::parse(bad).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        let error = table().filter(&Filter::parse("step < many").unwrap()).unwrap_err().to_string();
        assert!(error.contains("expected a number"), "{error}");
    }

    #[test]
    fn csv_has_a_header_and_empty_fields_for_what_is_not_there() {
        let csv = table().to_csv().unwrap();
        assert_eq!(csv.lines().next().unwrap(), columns().join(","));
        assert_eq!(csv.lines().nth(2).unwrap(), "b,d12,broken,2,10,128,,,,,,,,,,0,,1000,");
    }
}
