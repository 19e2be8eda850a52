//! Event files for TensorBoard, written by hand: hyperparameters, and the numbers of metrics rows as scalars.
//!
//! A file is a sequence of records: length (u64), masked CRC-32C of it, a serialised `Event`, masked CRC-32C
//! of that, all little-endian (TFRecord). An `Event` is a protocol buffer with the fields `wall_time = 1`
//! (double), `step = 2` (int64), `file_version = 3` (string, in the first record alone) and `summary = 5`,
//! whose `value = 1` are messages of `tag = 1` (string) and `simple_value = 2` (float). TensorBoard's own
//! reader opens the result: `tests/tensorboard/read.py`. The second record has the hyperparameters, by which
//! the HParams tab compares runs, and the last one how the run ended.
//!
//! One file a run, under a fixed name. A resumed or rewound run cuts the records of the steps that will be
//! trained again, and with them whatever a kill left unfinished or the disk has damaged. The file only
//! repeats the metrics, so damage to it does not stop a run.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::append::AppendError;
use super::atomic;
use super::hparams::{self, SessionStatus};
use super::metrics::{COLUMNS, MetricsRow};
use super::protobuf::ProtoMessage;
use crate::experiment::Hyperparameters;
use crate::proof::regular;

/// The content of the first record of every file.
const VERSION: &str = "brain.Event:2";

/// Appends to a run's event file.
#[derive(Debug)]
pub struct EventWriter {
    file: File,
    path: PathBuf,
    hyperparameters: Hyperparameters,
    /// The time of the last record: none is earlier, whatever the clock says.
    last: f64,
}

impl EventWriter {
    /// Opens the event file at `path`, or starts it: records of `step` and later are dropped. Its head is
    /// written again where the hyperparameters are not those in it.
    pub fn resume(
        path: &Path,
        hyperparameters: Hyperparameters,
        step: u64,
    ) -> Result<EventWriter, AppendError> {
        let bytes = match regular::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            bytes => bytes.map_err(io_error(path, "read"))?,
        };
        let kept = &bytes[..kept_bytes(&bytes, step)];
        let began = first_record(kept).and_then(|(event, _)| wall_time(event)).unwrap_or_else(now);
        let head = head(&hyperparameters, began);
        let head_is_there = kept.starts_with(&head);
        if !head_is_there {
            atomic::write(path, &[head, steps_of(kept)].concat())?;
        }
        let file = OpenOptions::new().append(true).open(path).map_err(io_error(path, "open"))?;
        if head_is_there && kept.len() < bytes.len() {
            file.set_len(kept.len() as u64).map_err(io_error(path, "truncate"))?;
        }
        let last = last_time(kept).max(began);
        Ok(EventWriter { file, path: path.to_owned(), hyperparameters, last })
    }

    /// Drops the records of `step` and later.
    pub fn rewind(&mut self, step: u64) -> Result<(), AppendError> {
        *self = EventWriter::resume(&self.path, std::mem::take(&mut self.hyperparameters), step)?;
        Ok(())
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
        match summary.bytes.is_empty() {
            true => Ok(()),
            false => {
                let time = self.time();
                self.write(&event(time, Some(row.step), &summary))
            }
        }
    }

    /// Appends how the run ended, with `step` steps made. A run that goes on drops it with that step.
    pub fn end(&mut self, step: u64, status: SessionStatus) -> Result<(), AppendError> {
        let time = self.time();
        self.write(&event(time, Some(step), &hparams::session_end(status, time)))
    }

    /// The time of the next record. A clock that was set back stands still here until it has caught up.
    fn time(&mut self) -> f64 {
        self.last = self.last.max(now());
        self.last
    }

    /// One record in one system call, so that a kill can tear only the last one.
    fn write(&mut self, event: &ProtoMessage) -> Result<(), AppendError> {
        self.file.write_all(&record(&event.bytes)).map_err(io_error(&self.path, "append to"))
    }
}

fn io_error(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> AppendError {
    let path = path.to_owned();
    move |source| AppendError::Io { action, path, source }
}

/// The records before the first step: the version, and the hyperparameters of a run that `began` then.
fn head(hyperparameters: &Hyperparameters, began: f64) -> Vec<u8> {
    let mut version = ProtoMessage::default();
    version.double(1, began).string(3, VERSION);
    let start = event(began, None, &hparams::session_start(hyperparameters, began));
    [record(&version.bytes), record(&start.bytes)].concat()
}

fn event(time: f64, step: Option<u64>, summary: &ProtoMessage) -> ProtoMessage {
    let mut event = ProtoMessage::default();
    event.double(1, time);
    if let Some(step) = step {
        event.varint(2, step);
    }
    event.message(5, summary);
    event
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

/// The records that have a step.
fn steps_of(mut bytes: &[u8]) -> Vec<u8> {
    let mut found = Vec::new();
    while let Some((event, length)) = first_record(bytes) {
        if let Some(Some(_)) = event_step(event) {
            found.extend(&bytes[..length]);
        }
        bytes = &bytes[length..];
    }
    found
}

/// When an event was written, which stands first in those of this module.
fn wall_time(event: &[u8]) -> Option<f64> {
    let time = event.strip_prefix(&[0x09])?.first_chunk::<8>()?;
    Some(f64::from_le_bytes(*time))
}

/// The latest time of the records; 0 without any.
fn last_time(mut bytes: &[u8]) -> f64 {
    let mut last = 0.0;
    while let Some((event, length)) = first_record(bytes) {
        last = wall_time(event).unwrap_or(0.0).max(last);
        bytes = &bytes[length..];
    }
    last
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::metrics::Action;

    fn row(step: u64) -> MetricsRow {
        MetricsRow { loss: Some(2.5), ..MetricsRow::new(step, 64 * (step + 1), Action::Update) }
    }

    fn open(path: &Path, step: u64) -> EventWriter {
        opened_with(path, 6e-4, step)
    }

    fn opened_with(path: &Path, rate: f64, step: u64) -> EventWriter {
        let keys = [("schedule.learning_rate", rate.into()), ("precision.master_weights", true.into())];
        let keys = keys.map(|(key, value)| (key.to_owned(), value)).into();
        EventWriter::resume(path, keys, step).unwrap()
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
        let mut writer = open(&path, 0);
        (0..5).for_each(|step| writer.append(&row(step)).unwrap());
        assert_eq!(
            steps(&std::fs::read(&path).unwrap()),
            [None, None, Some(0), Some(1), Some(2), Some(3), Some(4)]
        );

        let mut torn = std::fs::read(&path).unwrap();
        torn.truncate(torn.len() - 3);
        std::fs::write(&path, &torn).unwrap();
        let mut writer = open(&path, 9);
        assert_eq!(steps(&std::fs::read(&path).unwrap()).len(), 6, "the torn record is gone");
        writer.append(&row(4)).unwrap();

        let mut writer = open(&path, 2);
        writer.append(&row(2)).unwrap();
        assert_eq!(steps(&std::fs::read(&path).unwrap()), [None, None, Some(0), Some(1), Some(2)]);
        open(&path, 0);
        assert_eq!(steps(&std::fs::read(&path).unwrap()), [None, None], "starting over keeps the head alone");
    }

    #[test]
    fn times_never_fall_when_the_clock_is_set_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let mut writer = open(&path, 0);
        writer.append(&row(0)).unwrap();
        writer.last += 1e6;
        let ahead = writer.last;
        (1..3).for_each(|step| writer.append(&row(step)).unwrap());
        open(&path, 3).append(&row(3)).unwrap();
        open(&path, 4).end(4, SessionStatus::Success).unwrap();
        let (bytes, mut times) = (std::fs::read(&path).unwrap(), Vec::new());
        let mut rest = &bytes[..];
        while let Some((event, length)) = first_record(rest) {
            times.push(wall_time(event).unwrap());
            rest = &rest[length..];
        }
        assert_eq!(times[3..], [ahead; 4], "{times:?}");
        assert!(times.is_sorted(), "{times:?}");
        // Without the records of then the clock is believed again.
        open(&path, 1).append(&row(1)).unwrap();
        assert!(last_time(&std::fs::read(&path).unwrap()) < ahead);
    }

    #[test]
    fn a_damaged_record_is_cut_with_all_behind_it_and_stops_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let mut writer = open(&path, 0);
        (0..3).for_each(|step| writer.append(&row(step)).unwrap());
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let mut writer = open(&path, 3);
        writer.append(&row(3)).unwrap();
        let found = steps(&std::fs::read(&path).unwrap());
        assert!(found.len() < 6 && found.last() == Some(&Some(3)), "{found:?}");
        std::fs::write(&path, "no event file at all").unwrap();
        open(&path, 3);
        assert_eq!(steps(&std::fs::read(&path).unwrap()), [None, None]);
    }

    #[test]
    fn a_run_that_goes_on_drops_its_end_and_with_other_keys_writes_its_head_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let read = || std::fs::read(&path).unwrap();
        let mut writer = open(&path, 0);
        (0..3).for_each(|step| writer.append(&row(step)).unwrap());
        let three = read();
        writer.end(3, SessionStatus::Success).unwrap();
        assert_eq!(steps(&read()), [None, None, Some(0), Some(1), Some(2), Some(3)]);
        open(&path, 3);
        assert_eq!(read(), three, "nothing but the end is gone");

        opened_with(&path, 3e-4, 2).append(&row(2)).unwrap();
        assert_eq!(steps(&read()), [None, None, Some(0), Some(1), Some(2)]);
        let (version, at) = (first_record(&three).unwrap(), first_record(&three).unwrap().1);
        assert_eq!(first_record(&read()).unwrap(), version, "it began when it began");
        let start = |bytes: &[u8]| first_record(&bytes[at..]).unwrap().0.to_vec();
        let rate = |rate: f64| [&[0x11][..], &rate.to_le_bytes()].concat();
        let holds = |event: &[u8], part: &[u8]| event.windows(part.len()).any(|window| window == part);
        assert!(holds(&start(&three), &rate(6e-4)) && !holds(&start(&three), &rate(3e-4)));
        assert!(holds(&start(&read()), &rate(3e-4)) && !holds(&start(&read()), &rate(6e-4)));
        // A file of before, which has no hyperparameters, gets them.
        std::fs::write(&path, [&three[..at], &steps_of(&three)].concat()).unwrap();
        open(&path, 3);
        assert_eq!(read(), three);
    }
}
