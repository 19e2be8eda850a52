//! Event files for TensorBoard, written by hand: the numbers of a metrics row as scalars.
//!
//! A file is a sequence of records: length (u64), masked CRC-32C of it, a serialised `Event`, masked CRC-32C
//! of that, all little-endian (TFRecord). An `Event` is a protocol buffer with the fields `wall_time = 1`
//! (double), `step = 2` (int64), `file_version = 3` (string, in the first record alone) and `summary = 5`,
//! whose `value = 1` are messages of `tag = 1` (string) and `simple_value = 2` (float). TensorBoard's own
//! reader opens the result: `tests/tensorboard/read.py`.
//!
//! One file a run, under a fixed name. A resumed or rewound run cuts the records of the steps that will be
//! trained again, and with them whatever a kill left unfinished or the disk has damaged. The file only
//! repeats the metrics, so damage to it does not stop a run.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::append::AppendError;
use super::metrics::{COLUMNS, MetricsRow};
use crate::proof::regular;

/// The content of the first record of every file.
const VERSION: &str = "brain.Event:2";

/// Appends scalars to a run's event file.
#[derive(Debug)]
pub struct EventWriter {
    file: File,
    path: PathBuf,
}

impl EventWriter {
    /// Opens the event file at `path`, or starts it: records of `step` and later are dropped.
    pub fn resume(path: &Path, step: u64) -> Result<EventWriter, AppendError> {
        let fail = |action| move |source| AppendError::Io { action, path: path.to_owned(), source };
        let bytes = match regular::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            bytes => bytes.map_err(fail("read"))?,
        };
        let kept = kept_bytes(&bytes, step);
        let file = OpenOptions::new().append(true).create(true).open(path).map_err(fail("open"))?;
        if kept < bytes.len() {
            file.set_len(kept as u64).map_err(fail("truncate"))?;
        }
        let mut writer = EventWriter { file, path: path.to_owned() };
        if kept == 0 {
            let mut event = ProtoMessage::default();
            event.double(1, now()).string(3, VERSION);
            writer.write(&event.bytes)?;
        }
        Ok(writer)
    }

    /// Appends what is measured in a row.
    pub fn append(&mut self, row: &MetricsRow) -> Result<(), AppendError> {
        let mut summary = ProtoMessage::default();
        for column in COLUMNS.iter().filter(|column| !column.tag.is_empty()) {
            if let Some(value) = (column.get)(row) {
                let mut scalar = ProtoMessage::default();
                scalar.string(1, column.tag).float(2, value as f32);
                summary.message(1, &scalar);
            }
        }
        if summary.bytes.is_empty() {
            return Ok(());
        }
        let mut event = ProtoMessage::default();
        event.double(1, now()).varint(2, row.step).message(5, &summary);
        self.write(&event.bytes)
    }

    /// One record in one system call, so that a kill can tear only the last one.
    fn write(&mut self, event: &[u8]) -> Result<(), AppendError> {
        self.file.write_all(&record(event)).map_err(|source| AppendError::Io {
            action: "append to",
            path: self.path.clone(),
            source,
        })
    }
}

/// The time of a point, for TensorBoard's relative axis; no bit depends on it.
fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// CRC-32C, rotated and offset, as TFRecord has it: a CRC of data that holds CRCs would be weak.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn record(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    let mut bytes = Vec::with_capacity(event.len() + 16);
    bytes.extend(length);
    bytes.extend(masked_crc(&length).to_le_bytes());
    bytes.extend(event);
    bytes.extend(masked_crc(event).to_le_bytes());
    bytes
}

/// The first whole record and its length in the file.
fn first_record(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let crc = |bytes: &[u8]| bytes.first_chunk::<4>().map(|crc| u32::from_le_bytes(*crc));
    let length = bytes.first_chunk::<8>()?;
    if crc(&bytes[8..])? != masked_crc(length) {
        return None;
    }
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let event = bytes.get(12..length.checked_add(12)?)?;
    (crc(&bytes[12 + length..])? == masked_crc(event)).then_some((event, length + 16))
}

/// Bytes of the whole records before the first of `step` or later.
fn kept_bytes(bytes: &[u8], step: u64) -> usize {
    let mut kept = 0;
    while let Some((event, length)) = first_record(&bytes[kept..]) {
        match event_step(event) {
            Some(Some(at)) if at >= step => break,
            None => break,
            Some(_) => kept += length,
        }
    }
    kept
}

/// The step of an event, if it has one; `None` for bytes that are not an event that this module wrote.
fn event_step(mut event: &[u8]) -> Option<Option<u64>> {
    let mut step = None;
    while !event.is_empty() {
        let key = take_varint(&mut event)?;
        match (key >> 3, key & 7) {
            (2, 0) => step = Some(take_varint(&mut event)?),
            (_, 0) => drop(take_varint(&mut event)?),
            (_, 1) => event = event.get(8..)?,
            (_, 2) => {
                let length = usize::try_from(take_varint(&mut event)?).ok()?;
                event = event.get(length..)?;
            }
            (_, 5) => event = event.get(4..)?,
            _ => return None,
        }
    }
    Some(step)
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// A protocol buffer being built.
#[derive(Default)]
struct ProtoMessage {
    bytes: Vec<u8>,
}

impl ProtoMessage {
    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    /// Field number and wire type: 0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes.
    fn key(&mut self, field: u64, wire: u64) {
        self.raw_varint(field << 3 | wire);
    }

    fn varint(&mut self, field: u64, value: u64) -> &mut ProtoMessage {
        self.key(field, 0);
        self.raw_varint(value);
        self
    }

    fn double(&mut self, field: u64, value: f64) -> &mut ProtoMessage {
        self.key(field, 1);
        self.bytes.extend(value.to_le_bytes());
        self
    }

    fn float(&mut self, field: u64, value: f32) -> &mut ProtoMessage {
        self.key(field, 5);
        self.bytes.extend(value.to_le_bytes());
        self
    }

    fn delimited(&mut self, field: u64, bytes: &[u8]) -> &mut ProtoMessage {
        self.key(field, 2);
        self.raw_varint(bytes.len() as u64);
        self.bytes.extend(bytes);
        self
    }

    fn string(&mut self, field: u64, text: &str) -> &mut ProtoMessage {
        self.delimited(field, text.as_bytes())
    }

    fn message(&mut self, field: u64, message: &ProtoMessage) -> &mut ProtoMessage {
        self.delimited(field, &message.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::metrics::Action;

    fn row(step: u64) -> MetricsRow {
        MetricsRow { loss: Some(2.5), ..MetricsRow::new(step, 64 * (step + 1), Action::Update) }
    }

    fn steps(bytes: &[u8]) -> Vec<Option<u64>> {
        let (mut at, mut steps) = (0, Vec::new());
        while let Some((event, length)) = first_record(&bytes[at..]) {
            steps.push(event_step(event).expect("an event"));
            at += length;
        }
        assert_eq!(at, bytes.len(), "every byte belongs to a record");
        steps
    }

    #[test]
    fn a_record_has_the_bytes_that_the_format_asks_for() {
        // CRC-32C of the nine digits is the check value of the catalogue of parametrised CRCs: e3069283.
        assert_eq!(masked_crc(b"123456789"), 0xe306_9283_u32.rotate_right(15).wrapping_add(0xa282_ead8));
        let mut event = ProtoMessage::default();
        let mut scalar = ProtoMessage::default();
        scalar.string(1, "a").float(2, 1.0);
        let mut summary = ProtoMessage::default();
        summary.message(1, &scalar);
        event.double(1, 0.0).varint(2, 300).message(5, &summary);
        let expected = [
            &[0x09, 0, 0, 0, 0, 0, 0, 0, 0][..],
            &[0x10, 0xac, 0x02],
            &[0x2a, 10, 0x0a, 8, 0x0a, 1, b'a', 0x15, 0, 0, 0x80, 0x3f],
        ]
        .concat();
        assert_eq!(event.bytes, expected);
        let bytes = record(&event.bytes);
        assert_eq!(bytes[..8], (expected.len() as u64).to_le_bytes());
        assert_eq!(first_record(&bytes), Some((expected.as_slice(), bytes.len())));
        assert_eq!(event_step(&event.bytes), Some(Some(300)));
    }

    #[test]
    fn steps_that_come_again_are_cut_and_a_torn_end_with_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let mut writer = EventWriter::resume(&path, 0).unwrap();
        (0..5).for_each(|step| writer.append(&row(step)).unwrap());
        assert_eq!(
            steps(&std::fs::read(&path).unwrap()),
            [None, Some(0), Some(1), Some(2), Some(3), Some(4)]
        );

        let mut torn = std::fs::read(&path).unwrap();
        torn.truncate(torn.len() - 3);
        std::fs::write(&path, &torn).unwrap();
        let mut writer = EventWriter::resume(&path, 9).unwrap();
        assert_eq!(steps(&std::fs::read(&path).unwrap()).len(), 5, "the torn record is gone");
        writer.append(&row(4)).unwrap();

        let mut writer = EventWriter::resume(&path, 2).unwrap();
        writer.append(&row(2)).unwrap();
        assert_eq!(steps(&std::fs::read(&path).unwrap()), [None, Some(0), Some(1), Some(2)]);
        EventWriter::resume(&path, 0).unwrap();
        assert_eq!(steps(&std::fs::read(&path).unwrap()), [None], "starting over keeps the version alone");
    }

    #[test]
    fn a_damaged_record_is_cut_with_all_behind_it_and_stops_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let mut writer = EventWriter::resume(&path, 0).unwrap();
        (0..3).for_each(|step| writer.append(&row(step)).unwrap());
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let mut writer = EventWriter::resume(&path, 3).unwrap();
        writer.append(&row(3)).unwrap();
        let found = steps(&std::fs::read(&path).unwrap());
        assert!(found.len() < 5 && found.last() == Some(&Some(3)), "{found:?}");
        std::fs::write(&path, "no event file at all").unwrap();
        EventWriter::resume(&path, 3).unwrap();
        assert_eq!(steps(&std::fs::read(&path).unwrap()), [None]);
    }
}
