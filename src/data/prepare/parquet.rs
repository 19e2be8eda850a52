//! Parquet: the text of one column, a row group at a time.
//!
//! Only the chunks of that column are read. The checksums of their pages are compared where the writer made
//! some, which polars does not do. The column's Parquet type decides, and not the Arrow schema in the
//! metadata, so a dictionary of texts (a pandas Categorical) is read as the texts it stands for.

use std::io::{Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use flate2::Crc;
use polars_arrow::array::{Array, StructArray, Utf8ViewArray};
use polars_arrow::datatypes::{ArrowDataType, Field};
use polars_parquet::parquet::metadata::{ColumnChunkMetadata, FileMetadata};
use polars_parquet::parquet::schema::Repetition;
use polars_parquet::parquet::schema::types::{
    ParquetType, PhysicalType, PrimitiveConvertedType, PrimitiveLogicalType,
};
use polars_parquet::read::{BasicDecompressor, PageReader, column_iter_to_arrays, read_metadata};
use polars_parquet_format::PageHeader;
use polars_parquet_format::thrift::protocol::TCompactInputProtocol;

use super::super::error::DataError;
use super::input::{Input, ReadSeek};
use crate::proof::regular::require_memory;
use crate::store::polars_panics::caught;

/// A Parquet file with a column of text.
pub(super) struct ParquetTable<'a> {
    path: PathBuf,
    file: Box<dyn ReadSeek + 'a>,
    bytes: u64,
    metadata: FileMetadata,
    /// The place of the column among those that hold values.
    leaf: usize,
    /// The column alone, with what it is nested in.
    field: Field,
    column: &'a str,
}

/// The rows of a row group.
pub(super) struct ParquetRows {
    /// Rows before it.
    pub start: usize,
    pub rows: usize,
    arrays: Vec<Box<dyn Array>>,
}

impl<'a> ParquetTable<'a> {
    /// Reads the footer. `column` is a name, or the names of what it is nested in and its own, with dots.
    ///
    /// # Errors
    ///
    /// Bytes that are no Parquet file, or one without such a column of strings.
    pub fn open(input: &'a Input, column: &'a str) -> Result<ParquetTable<'a>, DataError> {
        let path = input.path().to_owned();
        let mut file = input.open()?;
        let damaged = |problem: String| wrong(&path, problem);
        let (mut start, mut end) = ([0; 4], [0; 4]);
        let bytes = file.seek(SeekFrom::End(0)).map_err(DataError::io("read", &path))?;
        let mut look = || {
            file.rewind()?;
            file.read_exact(&mut start)?;
            file.seek(SeekFrom::End(-4))?;
            file.read_exact(&mut end)
        };
        if look().is_err() || &start != b"PAR1" {
            return Err(damaged("it does not start with `PAR1`".to_owned()));
        }
        if bytes < 12 || &end != b"PAR1" {
            return Err(damaged(
                "it does not end in `PAR1`: it was cut off, or bytes follow its end".to_owned(),
            ));
        }
        let metadata = caught(|| read_metadata(&mut file)).map_err(damaged)?;
        let groups = metadata.row_groups.iter();
        let rows = groups.map(|group| group.num_rows()).try_fold(0, usize::checked_add);
        if rows != Some(metadata.num_rows) {
            let held = rows.map_or("more than can be counted".into(), |rows: usize| rows.to_string());
            let problem =
                format!("its footer says {} rows, and its row groups hold {held}", metadata.num_rows);
            return Err(DataError::Damaged { path, problem });
        }
        let (leaf, field) = find(&path, &metadata, column)?;
        Ok(ParquetTable { path, file, bytes, metadata, leaf, field, column })
    }

    /// Length of the file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Rows in all.
    pub fn rows(&self) -> usize {
        self.metadata.num_rows
    }

    /// Row groups.
    pub fn groups(&self) -> usize {
        self.metadata.row_groups.len()
    }

    /// Reads and decodes one row group.
    ///
    /// # Errors
    ///
    /// A page whose checksum differs, and data that cannot be decoded.
    pub fn group(&mut self, at: usize) -> Result<ParquetRows, DataError> {
        let start = self.metadata.row_groups[..at].iter().map(|group| group.num_rows()).sum();
        let group = &self.metadata.row_groups[at];
        let rows = group.num_rows();
        let failed = |problem: String| DataError::Damaged {
            path: self.path.clone(),
            problem: format!("rows {start} to {} cannot be read: {problem}", start + rows),
        };
        if rows == 0 {
            return Ok(ParquetRows { start, rows, arrays: Vec::new() });
        }
        let chunk = group
            .parquet_columns()
            .get(self.leaf)
            .ok_or_else(|| failed("its column is missing".to_owned()))?;
        let bytes = read_chunk(&mut self.file, self.bytes, chunk).map_err(failed)?;
        check_pages(&bytes, chunk.num_values()).map_err(failed)?;
        let arrays = caught(|| {
            let pages = PageReader::new(Cursor::new(bytes.into()), chunk, vec![], usize::MAX);
            let types = vec![&chunk.descriptor().descriptor.primitive_type];
            let columns = vec![BasicDecompressor::new(pages, vec![])];
            column_iter_to_arrays(columns, types, self.field.clone(), None)
        });
        let (arrays, _) = arrays.map_err(failed)?;
        let found: usize = arrays.iter().map(|array| array.len()).sum();
        if found != rows {
            return Err(failed(format!("its pages hold {found} rows")));
        }
        Ok(ParquetRows { start, rows, arrays })
    }

    /// The error that a row has no text.
    pub fn null(&self, row: usize) -> DataError {
        DataError::NullText { path: self.path.clone(), column: self.column.to_owned(), row }
    }
}

impl ParquetRows {
    /// The text of each row, none where it is null.
    pub fn texts(&self) -> Vec<Option<&str>> {
        let mut texts = Vec::with_capacity(self.rows);
        for array in &self.arrays {
            let mut array: &dyn Array = array.as_ref();
            let mut present = vec![true; array.len()];
            while let Some(group) = array.as_any().downcast_ref::<StructArray>() {
                present.iter_mut().enumerate().for_each(|(row, present)| *present &= group.is_valid(row));
                array = group.values()[0].as_ref();
            }
            let strings = array.as_any().downcast_ref::<Utf8ViewArray>();
            let strings = strings.expect("the field was built to end in a column of strings");
            texts.extend(strings.iter().zip(present).map(|(text, present)| text.filter(|_| present)));
        }
        texts
    }
}

fn wrong(path: &Path, problem: String) -> DataError {
    DataError::WrongFormat { path: path.to_owned(), format: "Parquet file", problem }
}

/// The place of `column` among the leaves, and it as a field of Arrow.
fn find(path: &Path, metadata: &FileMetadata, column: &str) -> Result<(usize, Field), DataError> {
    let leaves = metadata.schema().columns();
    let dotted = |leaf: &[_]| leaf.iter().map(ToString::to_string).collect::<Vec<String>>().join(".");
    let names: Vec<String> = leaves.iter().map(|leaf| dotted(&leaf.path_in_schema)).collect();
    let mut found = names.iter().enumerate().filter(|(_, name)| *name == column);
    let (first, again) = (found.next(), found.count());
    if again > 0 {
        let (path, column) = (path.to_owned(), column.to_owned());
        return Err(DataError::ColumnTwice { path, column, times: again + 1 });
    }
    let Some((leaf, _)) = first else {
        let has: Vec<String> = names.iter().take(24).map(|name| format!("`{name}`")).collect();
        let (path, column) = (path.to_owned(), column.to_owned());
        return Err(DataError::NoColumn { path, column, has: has.join(", ") });
    };
    let refused = |got: String| {
        let (path, column) = (path.to_owned(), column.to_owned());
        DataError::ColumnType { path, column, got }
    };
    let mut levels = Vec::new();
    let mut fields = metadata.schema().fields();
    for name in &leaves[leaf].path_in_schema {
        let level = fields.iter().find(|field| field.name() == name.as_str());
        let level = level.ok_or_else(|| refused("no values".to_owned()))?;
        if level.get_field_info().repetition == Repetition::Repeated {
            return Err(refused("a list in each row".to_owned()));
        }
        levels.push(level);
        fields = match level {
            ParquetType::GroupType { fields, .. } => fields,
            ParquetType::PrimitiveType(_) => &[],
        };
    }
    let primitive = &leaves[leaf].descriptor.primitive_type;
    let is_text = primitive.physical_type == PhysicalType::ByteArray
        && (matches!(
            primitive.converted_type,
            Some(PrimitiveConvertedType::Utf8 | PrimitiveConvertedType::Json | PrimitiveConvertedType::Enum)
        ) || matches!(primitive.logical_type, Some(PrimitiveLogicalType::String)));
    if !is_text {
        let kind = primitive.converted_type.map(|kind| format!(" ({kind:?})")).unwrap_or_default();
        return Err(refused(format!("{:?}{kind}", primitive.physical_type)));
    }
    let mut dtype = ArrowDataType::Utf8View;
    let mut field = None;
    for level in levels.iter().rev() {
        let nullable = level.get_field_info().repetition == Repetition::Optional;
        let this = Field::new(level.name().into(), dtype.clone(), nullable);
        dtype = ArrowDataType::Struct(vec![this.clone()]);
        field = Some(this);
    }
    Ok((leaf, field.ok_or_else(|| refused("no values".to_owned()))?))
}

/// The bytes of one column in a row group, which must lie within the file.
fn read_chunk(
    file: &mut (impl Read + Seek + ?Sized),
    file_bytes: u64,
    chunk: &ColumnChunkMetadata,
) -> Result<Vec<u8>, String> {
    let range = caught(|| Ok::<_, String>(chunk.byte_range()))?;
    if range.end > file_bytes || range.start > range.end {
        return Err(format!("its column is at bytes {} to {}, past the end", range.start, range.end));
    }
    let mut bytes = Vec::new();
    let length = range.end - range.start;
    file.seek(SeekFrom::Start(range.start)).map_err(|e| e.to_string())?;
    let read = file.take(length).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if (read as u64) < length { Err("the file was cut while it was read".to_owned()) } else { Ok(bytes) }
}

/// Compares the checksum of each page of a column chunk with its bytes, where the writer made one: the CRC-32
/// of the page as it is in the file, without its header (`PageHeader.crc` of the Parquet format). Refuses
/// pages that claim to hold more than there is memory for.
fn check_pages(chunk: &[u8], values: i64) -> Result<(), String> {
    let (mut at, mut seen, mut page) = (0, 0, 0);
    while seen < values {
        let mut rest = Cursor::new(&chunk[at..]);
        let mut protocol = TCompactInputProtocol::new(&mut rest, 64 << 20);
        let header = PageHeader::read_from_in_protocol(&mut protocol)
            .map_err(|error| format!("the header of its page {page} is damaged: {error}"))?;
        let body = at + rest.position() as usize;
        let length = usize::try_from(header.compressed_page_size).ok();
        let Some(bytes) = length.and_then(|length| chunk.get(body..body.checked_add(length)?)) else {
            return Err(format!("its page {page} does not fit its column"));
        };
        if let Some(expected) = header.crc {
            let mut crc = Crc::new();
            crc.update(bytes);
            if crc.sum() != expected as u32 {
                return Err(format!(
                    "the checksum of page {page} differs: its bytes give {:08x}, its header says {:08x}",
                    crc.sum(),
                    expected as u32
                ));
            }
        }
        let of_page = (header.data_page_header.map(|page| page.num_values))
            .or(header.data_page_header_v2.map(|page| page.num_values));
        let of_dictionary = header.dictionary_page_header.map(|page| page.num_values);
        seen += i64::from(of_page.unwrap_or(0).max(0));
        // What decoding takes: the page without compression, and a view for each value.
        let claimed = usize::try_from(header.uncompressed_page_size);
        let claimed = claimed.map_err(|_| format!("its page {page} claims a negative size"))?;
        let viewed = seen.saturating_add(of_dictionary.unwrap_or(0).max(0).into());
        let views = usize::try_from(viewed).unwrap_or(usize::MAX).saturating_mul(16);
        require_memory(claimed.max(views))
            .map_err(|why| format!("what its pages up to {page} hold {why}"))?;
        (at, page) = (body + bytes.len(), page + 1);
        if at >= chunk.len() && seen < values {
            return Err(format!("its {page} pages hold {seen} values of {values}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_claim_more_than_there_is_memory_are_refused() {
        // The header of a page without a byte that has so many values, in Thrift's compact protocol: type and
        // sizes, then values and encodings.
        let header = |values: &[u8]| {
            [&[0x15, 0, 0x15, 0, 0x15, 0, 0x2c, 0x15], values, &[0x15, 0, 0x15, 0, 0x15, 0, 0, 0]].concat()
        };
        // Zigzag of 5.
        assert_eq!(check_pages(&header(&[10]), 5), Ok(()));
        // As often as the most that fits passes what a process can address.
        let most = header(&[0xfe, 0xff, 0xff, 0xff, 0x0f]);
        let refused = check_pages(&most.repeat(1 << 16), i64::MAX).unwrap_err();
        assert!(refused.ends_with("and there is not so much memory"), "{refused}");
    }
}
