//! `metrics.parquet`: the rows as columns, for polars, pandas and DuckDB. The only place that knows polars.
//!
//! Columns have the names of the JSON keys. Decimals are `Float64` (NaN and infinity included), bits
//! are `UInt64`, `events` is one string of words with spaces between. Null is "not measured". The
//! bits are what is read back.

use std::fs::File;
use std::path::Path;

use polars::prelude::{
    Column, DataFrame, IntoColumn, NamedFrom, ParquetReader, ParquetWriter, PolarsError, SerReader, Series,
};

use super::atomic;
use super::metrics::{Action, MetricsError, MetricsRow, Place, check_order};

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
    let file = File::open(path).map_err(|source| MetricsError::Io {
        action: "open",
        path: path.to_owned(),
        source,
    })?;
    let polars_error =
        |error: PolarsError| MetricsError::Parquet { path: path.to_owned(), message: error.to_string() };
    let frame = ParquetReader::new(file).finish().map_err(polars_error)?;
    from_frame(&frame).map_err(polars_error)?.into_iter().enumerate().try_fold(
        Vec::new(),
        |mut rows: Vec<MetricsRow>, (index, row)| {
            let row = row
                .and_then(|row| check_order(rows.last().map(|last| last.step), row.step).map(|()| row))
                .map_err(|message| MetricsError::Row {
                    path: path.to_owned(),
                    place: Place::Row(index + 1),
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
    let decimals = |name: &str, get: &dyn Fn(&MetricsRow) -> Option<f64>| {
        Series::new(name.into(), rows.iter().map(get).collect::<Vec<_>>()).into_column()
    };
    let texts = |name: &str, get: &dyn Fn(&MetricsRow) -> String| {
        Series::new(name.into(), rows.iter().map(get).collect::<Vec<_>>()).into_column()
    };
    let mut columns: Vec<Column> = vec![counts("step", |row| row.step), counts("tokens", |row| row.tokens)];
    for (index, name) in EXACT.into_iter().enumerate() {
        let value = |row: &MetricsRow| row.exact_values()[index].1;
        columns.push(decimals(name, &value));
        let bits: Vec<Option<u64>> = rows.iter().map(|row| value(row).map(f64::to_bits)).collect();
        columns.push(Series::new(format!("{name}_bits").into(), bits).into_column());
    }
    columns.push(texts("action", &|row| row.action.name().to_owned()));
    columns.push(decimals("step_ms", &|row| row.step_ms));
    columns.push(decimals("tokens_per_s", &|row| row.tokens_per_s));
    columns.push(decimals("mfu", &|row| row.mfu));
    columns.push(texts("events", &|row| row.events.join(" ")));
    DataFrame::new(rows.len(), columns)
}

/// The order of [`MetricsRow::exact_values`].
const EXACT: [&str; 9] = [
    "loss",
    "grad_norm",
    "learning_rate",
    "loss_z",
    "grad_z",
    "val_loss",
    "hellaswag",
    "hellaswag_acc",
    "hellaswag_acc_norm",
];

type RowOrFault = Result<MetricsRow, String>;

fn from_frame(frame: &DataFrame) -> Result<Vec<RowOrFault>, PolarsError> {
    let counts = |name: &str| -> Result<Vec<Option<u64>>, PolarsError> {
        Ok(frame.column(name)?.u64()?.iter().collect())
    };
    let decimals = |name: &str| -> Result<Vec<Option<f64>>, PolarsError> {
        Ok(frame.column(name)?.f64()?.iter().collect())
    };
    let texts = |name: &str| -> Result<Vec<Option<String>>, PolarsError> {
        Ok(frame.column(name)?.str()?.iter().map(|text| text.map(str::to_owned)).collect())
    };
    let (steps, tokens) = (counts("step")?, counts("tokens")?);
    let exact =
        EXACT.into_iter().map(|name| counts(&format!("{name}_bits"))).collect::<Result<Vec<_>, _>>()?;
    let (actions, events) = (texts("action")?, texts("events")?);
    let (step_ms, tokens_per_s, mfu) = (decimals("step_ms")?, decimals("tokens_per_s")?, decimals("mfu")?);
    let row = |index: usize| -> RowOrFault {
        let value = |column: usize| exact[column][index].map(f64::from_bits);
        let action = actions[index].as_deref().unwrap_or_default();
        Ok(MetricsRow {
            step: steps[index].ok_or("`step` is null")?,
            tokens: tokens[index].ok_or("`tokens` is null")?,
            loss: value(0),
            grad_norm: value(1),
            learning_rate: value(2),
            loss_z: value(3),
            grad_z: value(4),
            action: Action::from_name(action).ok_or_else(|| format!("`action`: unknown `{action}`"))?,
            val_loss: value(5),
            hellaswag: value(6),
            hellaswag_acc: value(7),
            hellaswag_acc_norm: value(8),
            step_ms: step_ms[index],
            tokens_per_s: tokens_per_s[index],
            mfu: mfu[index],
            events: events[index]
                .as_deref()
                .unwrap_or_default()
                .split_whitespace()
                .map(str::to_owned)
                .collect(),
        })
    };
    Ok((0..frame.height()).map(row).collect())
}
