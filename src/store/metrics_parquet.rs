//! `metrics.parquet`: the rows as columns, for polars, pandas and DuckDB. The only place that knows polars.
//!
//! Columns have the names of the JSON keys. Decimals are `Float64` (NaN and infinity included), bits
//! are `UInt64`, `events` is one string of words with spaces between. Null is "not measured". The
//! bits are what is read back.

use std::path::Path;

use polars::prelude::{
    Column, DataFrame, IntoColumn, NamedFrom, ParquetReader, ParquetWriter, PolarsError, SerReader, Series,
};

use super::atomic;
use super::columns::ColumnKind;
use super::metrics::{
    Action, COLUMNS, Column as MetricsColumn, MetricsError, MetricsRow, RowPlace, check_order,
};
use super::polars_panics::caught;
use crate::proof::regular;

/// Writes the rows; a reader sees the old file or the new one.
pub fn write(path: &Path, rows: &[MetricsRow]) -> Result<(), MetricsError> {
    let polars_error =
        |error: PolarsError| MetricsError::Parquet { path: path.to_owned(), message: error.to_string() };
    let mut frame = to_frame(rows).map_err(polars_error)?;
    let mut bytes = Vec::new();
    ParquetWriter::new(&mut bytes).finish(&mut frame).map_err(polars_error)?;
    Ok(atomic::write(path, &bytes)?)
}

/// Reads the rows back, from the bits.
pub fn read(path: &Path) -> Result<Vec<MetricsRow>, MetricsError> {
    let file = regular::open(path).map_err(|source| MetricsError::Io {
        action: "open",
        path: path.to_owned(),
        source,
    })?;
    let fault = |message: String| MetricsError::Parquet { path: path.to_owned(), message };
    let frame = caught(|| ParquetReader::new(file).finish()).map_err(fault)?;
    if let Some(message) = foreign_column(&frame) {
        return Err(MetricsError::Parquet { path: path.to_owned(), message });
    }
    caught(|| from_frame(&frame)).map_err(fault)?.into_iter().enumerate().try_fold(
        Vec::new(),
        |mut rows: Vec<MetricsRow>, (index, row)| {
            let row = row
                .and_then(|row| check_order(rows.last().map(|last| last.step), row.step).map(|()| row))
                .map_err(|message| MetricsError::Row {
                    path: path.to_owned(),
                    place: RowPlace::Row(index + 1),
                    message,
                })?;
            rows.push(row);
            Ok(rows)
        },
    )
}

fn to_frame(rows: &[MetricsRow]) -> Result<DataFrame, PolarsError> {
    let counts = |name: &str, get: fn(&MetricsRow) -> u64| {
        Series::new(name.into(), rows.iter().map(get).collect::<Vec<_>>()).into_column()
    };
    let decimals = |name: &str, get: fn(&MetricsRow) -> Option<f64>| {
        Series::new(name.into(), rows.iter().map(get).collect::<Vec<_>>()).into_column()
    };
    let texts = |name: &str, get: fn(&MetricsRow) -> String| {
        Series::new(name.into(), rows.iter().map(get).collect::<Vec<_>>()).into_column()
    };
    let mut columns: Vec<Column> = vec![counts("step", |row| row.step), counts("tokens", |row| row.tokens)];
    let measured = |column: &MetricsColumn| rows.iter().any(|row| (column.get)(row).is_some());
    let has = |column: &MetricsColumn| column.kind != ColumnKind::Average || measured(column);
    for column in COLUMNS.iter().filter(|column| column.is_exact() && has(column)) {
        columns.push(decimals(column.name, column.get));
        let bits: Vec<Option<u64>> = rows.iter().map(|row| (column.get)(row).map(f64::to_bits)).collect();
        columns.push(Series::new(format!("{}_bits", column.name).into(), bits).into_column());
    }
    columns.push(texts("action", |row| row.action.name().to_owned()));
    let timings = COLUMNS.iter().filter(|column| !column.is_exact());
    columns.extend(timings.map(|column| decimals(column.name, column.get)));
    columns.push(texts("events", |row| row.events.join(" ")));
    DataFrame::new(rows.len(), columns)
}

/// A column that this program does not write, or the bits of one that is not there.
fn foreign_column(frame: &DataFrame) -> Option<String> {
    let names: Vec<&str> = frame.get_column_names().into_iter().map(|name| name.as_str()).collect();
    let is_known = |name: &str| {
        ["step", "tokens", "action", "events"].contains(&name)
            || COLUMNS.iter().any(|column| column.name == name)
    };
    let fault = |name: &str| match name.strip_suffix("_bits").filter(|value| is_known(value)) {
        Some(value) if names.contains(&value) => None,
        Some(value) => Some(format!("the column `{name}` is there without `{value}`")),
        None => (!is_known(name)).then(|| format!("the column `{name}` was added: metrics have none of it")),
    };
    names.iter().find_map(|name| fault(name))
}

type RowOrFault = Result<MetricsRow, String>;

/// A missing column counts as not measured: an older program may have written the file.
fn from_frame(frame: &DataFrame) -> Result<Vec<RowOrFault>, PolarsError> {
    let counts = |name: &str| -> Result<Vec<Option<u64>>, PolarsError> {
        Ok(frame.column(name)?.u64()?.iter().collect())
    };
    let texts = |name: &str| -> Result<Vec<Option<String>>, PolarsError> {
        Ok(frame.column(name)?.str()?.iter().map(|text| text.map(str::to_owned)).collect())
    };
    let (steps, tokens) = (counts("step")?, counts("tokens")?);
    let (actions, events) = (texts("action")?, texts("events")?);
    let row = |index: usize| -> RowOrFault {
        let action = actions[index].as_deref().unwrap_or_default();
        let mut row = MetricsRow::new(
            steps[index].ok_or("`step` is null")?,
            tokens[index].ok_or("`tokens` is null")?,
            Action::from_name(action).ok_or_else(|| format!("`action`: unknown `{action}`"))?,
        );
        let words = events[index].as_deref().ok_or("`events` is null")?;
        row.events = words.split_whitespace().map(str::to_owned).collect();
        Ok(row)
    };
    let mut rows: Vec<RowOrFault> = (0..frame.height()).map(row).collect();
    for column in COLUMNS.iter().filter(|column| frame.column(column.name).is_ok()) {
        let mut values: Vec<Option<f64>> = frame.column(column.name)?.f64()?.iter().collect();
        let mut agree = vec![true; values.len()];
        if column.is_exact() {
            for (at, bits) in counts(&format!("{}_bits", column.name))?.into_iter().enumerate() {
                agree[at] = bits == values[at].map(f64::to_bits);
                values[at] = bits.map(f64::from_bits);
            }
        }
        for ((row, value), agrees) in rows.iter_mut().zip(values).zip(agree) {
            match row {
                Ok(_) if !agrees => *row = Err(format!("`{0}` is not what `{0}_bits` is", column.name)),
                Ok(row) => (column.set)(row, value),
                Err(_) => {}
            }
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_that_were_added_and_bits_without_a_number_are_refused_by_name() {
        let rows = [MetricsRow { loss: Some(2.5), ..MetricsRow::new(0, 64, Action::Update) }];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.parquet");
        let refused = |change: &dyn Fn(&mut DataFrame)| {
            let mut frame = to_frame(&rows).unwrap();
            change(&mut frame);
            ParquetWriter::new(std::fs::File::create(&path).unwrap()).finish(&mut frame).unwrap();
            read(&path).map(|rows| rows.len()).map_err(|error| error.to_string())
        };
        assert_eq!(refused(&|_| ()), Ok(1));
        for name in ["best_val_loss", "VAL_LOSS", "hellaswag_norm"] {
            let added = refused(&|frame| {
                let column = Series::new(name.into(), [0.5]).into_column();
                frame.with_column(column).unwrap();
            });
            assert!(added.unwrap_err().contains(&format!("the column `{name}` was added")), "{name}");
        }
        let orphan = refused(&|frame| {
            frame.drop_in_place("val_loss").unwrap();
        });
        assert!(orphan.unwrap_err().contains("`val_loss_bits` is there without `val_loss`"));
    }
}
