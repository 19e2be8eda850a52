//! Parquet: the text of one column, a row group at a time.

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use polars::prelude::{ArrowDataType, DataFrame, ParquetReader, PolarsError, SerReader};

use super::super::error::DataError;

/// A parquet file with a column of text.
pub(super) struct Table<'a> {
    path: PathBuf,
    bytes: &'a [u8],
    column: &'a str,
    metadata: Metadata,
    /// Rows of each row group.
    groups: Vec<usize>,
}

/// The type that polars shares the footer as, which it does not name in public.
type Metadata = Arc<polars::prelude::FileMetadata>;

impl<'a> Table<'a> {
    /// Reads the footer.
    ///
    /// # Errors
    ///
    /// Bytes that are no parquet file, or one without such a column of strings.
    pub fn open(path: &Path, bytes: &'a [u8], column: &'a str) -> Result<Table<'a>, DataError> {
        let damaged = |problem: String| DataError::WrongFormat {
            path: path.to_owned(),
            format: "Parquet file",
            problem,
        };
        if !bytes.starts_with(b"PAR1") {
            return Err(damaged("it does not start with `PAR1`".to_owned()));
        }
        if bytes.len() < 12 || !bytes.ends_with(b"PAR1") {
            return Err(damaged("it does not end in `PAR1`: the file was cut off".to_owned()));
        }
        let mut reader = ParquetReader::new(Cursor::new(bytes));
        let schema = guarded(|| reader.schema()).map_err(damaged)?;
        let metadata = guarded(|| reader.get_metadata().cloned()).map_err(damaged)?;
        let Some(field) = schema.get(column) else {
            let has: Vec<String> = schema.iter_names().map(|name| format!("`{name}`")).collect();
            return Err(DataError::NoColumn {
                path: path.to_owned(),
                column: column.to_owned(),
                has: has.join(", "),
            });
        };
        if !matches!(field.dtype(), ArrowDataType::Utf8 | ArrowDataType::LargeUtf8 | ArrowDataType::Utf8View)
        {
            let (path, column, got) = (path.to_owned(), column.to_owned(), format!("{:?}", field.dtype()));
            return Err(DataError::ColumnType { path, column, got });
        }
        let groups = metadata.row_groups.iter().map(|group| group.num_rows()).collect();
        Ok(Table { path: path.to_owned(), bytes, column, metadata, groups })
    }

    /// Rows in all.
    pub fn rows(&self) -> usize {
        self.groups.iter().sum()
    }

    /// The row groups in order.
    pub fn groups(&self) -> impl Iterator<Item = Result<Group, DataError>> {
        let starts = self.groups.iter().scan(0, |next, rows| {
            let start = *next;
            *next += rows;
            Some((start, *rows))
        });
        starts.filter(|(_, rows)| *rows > 0).map(|(start, rows)| self.group(start, rows))
    }

    fn group(&self, start: usize, rows: usize) -> Result<Group, DataError> {
        let mut reader = ParquetReader::new(Cursor::new(self.bytes));
        reader.set_metadata(self.metadata.clone());
        let reader = reader.with_columns(Some(vec![self.column.to_owned()])).with_slice(Some((start, rows)));
        let frame = guarded(|| reader.finish()).map_err(|problem| DataError::WrongFormat {
            path: self.path.clone(),
            format: "Parquet file",
            problem: format!("rows {start} to {} cannot be read: {problem}", start + rows),
        })?;
        Ok(Group { start, frame })
    }
}

/// The rows of a row group.
pub(super) struct Group {
    /// Rows before it.
    pub start: usize,
    frame: DataFrame,
}

impl Group {
    /// The text of each row.
    ///
    /// # Errors
    ///
    /// A row without one.
    pub fn texts(&self, path: &Path) -> Result<Vec<&str>, DataError> {
        let wrong = |problem: String| DataError::WrongFormat {
            path: path.to_owned(),
            format: "Parquet file",
            problem,
        };
        let column =
            self.frame.columns().first().ok_or_else(|| wrong("a row group has no columns".to_owned()))?;
        let strings = column.str().map_err(|e| wrong(e.to_string()))?;
        let null =
            |row| DataError::NullText { path: path.to_owned(), column: column.name().to_string(), row };
        strings.iter().enumerate().map(|(row, text)| text.ok_or_else(|| null(self.start + row))).collect()
    }
}

/// Reads with polars. On some damaged files it panics instead of failing; that is a damaged file here too.
fn guarded<T>(read: impl FnOnce() -> Result<T, PolarsError>) -> Result<T, String> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied());
            Err(format!("it is damaged: {}", text.unwrap_or("its pages do not fit its footer")))
        }
    }
}
