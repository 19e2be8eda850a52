//! Runs in the files that Weights & Biases keeps of a run made offline, which `wandb sync` uploads:
//! `offline-run-ID/run-ID.wandb`.
//!
//! The file has the form of LevelDB's logs: behind seven bytes of head, blocks of 32768 bytes, filled
//! with pieces of records, each behind zlib's CRC-32 (u32) of its type and bytes, its length (u16) and
//! its type (1 whole, 2 first, 3 middle, 4 last), all little-endian. What does not hold the seven bytes
//! of a piece's head at the end of a block is zeros. A record is a protocol buffer `Record` of
//! `wandb_internal.proto`: header, run, a `history` a step, summary, exit. `wandb sync` itself uploads
//! the result in `tests/trackers/wandb_sync.py`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};

use super::error::Result;
use super::tracker::{PROJECT, TrackedRun, TrackedStatus, holds, points};
use crate::experiment::Hyperparameters;
use crate::store::atomic::{self, NewFolder};
use crate::store::protobuf::ProtoMessage;

/// `:W&B`, the magic number, and the version 0.
const HEAD: [u8; 7] = *b":W&B\xe1\xbe\0";
const BLOCK: usize = 32768;
/// Bytes before each piece of a record.
const PIECE_HEAD: usize = 7;
/// Digits of a run's id.
const DIGITS: usize = 16;

/// Writes a run into `out`, a folder of such runs. A file that has the same bytes already stays, and with it
/// the mark that it was uploaded.
pub fn write(out: &Path, run: &TrackedRun) -> Result<PathBuf> {
    let id = run.name.id(DIGITS);
    holds(out, "a folder of Weights & Biases", |name| name.contains("run-"))?;
    let folder = out.join(format!("offline-run-{id}"));
    let file = format!("run-{id}.wandb");
    let bytes = log(&records(run, &id));
    if fs::read(folder.join(&file)).is_ok_and(|there| there == bytes) {
        return Ok(folder);
    }
    let new = NewFolder::create(&folder)?;
    atomic::write(&new.path().join(&file), &bytes)?;
    new.commit()?;
    Ok(folder)
}

/// The records of a run, in their order.
fn records(run: &TrackedRun, id: &str) -> Vec<ProtoMessage> {
    let ((began, ended), times) = (run.span(), run.times());
    let mut last: BTreeMap<String, String> = BTreeMap::new();
    let mut history = Vec::new();
    for (row, time) in run.rows.iter().zip(&times) {
        let mut items: BTreeMap<&str, String> =
            points(row).map(|(tag, value)| (tag, number(value))).collect();
        items.insert("tokens", row.tokens.to_string());
        items.insert("_step", row.step.to_string());
        items.insert("_timestamp", number(*time));
        items.insert("_runtime", number(time - began));
        history.push(record(2, &history_record(&items, row.step)));
        last.extend(items.into_iter().map(|(key, value)| (key.to_owned(), value)));
    }
    last.extend(run.figures.iter().map(|(name, value)| (format!("summary/{name}"), number(*value))));
    let (mut version, mut header) = (ProtoMessage::default(), ProtoMessage::default());
    version.string(1, concat!("runner ", env!("CARGO_PKG_VERSION")));
    header.message(1, &version);
    let mut records = vec![record(21, &header), record(17, &run_record(run, id, began))];
    records.extend(history);
    records.push(record(3, &nested_items(&last)));
    // The exit codes of `runner` itself.
    let code = match run.status {
        TrackedStatus::Running => None,
        TrackedStatus::Finished => Some(0),
        TrackedStatus::Failed => Some(4),
        TrackedStatus::Stopped => Some(130),
    };
    if let Some(code) = code {
        let mut exit = ProtoMessage::default();
        exit.varint(1, code).varint(2, (ended - began) as u64);
        records.push(record(18, &exit));
    }
    for (index, record) in records.iter_mut().enumerate() {
        let mut numbered = ProtoMessage::default();
        numbered.varint(1, index as u64 + 1);
        numbered.bytes.append(&mut record.bytes);
        *record = numbered;
    }
    records
}

/// A record with one field, which says what kind it is.
fn record(kind: u64, content: &ProtoMessage) -> ProtoMessage {
    let mut record = ProtoMessage::default();
    record.message(kind, content);
    record
}

/// The items of a history or summary: keys with their values in JSON.
fn nested_items<T: AsRef<str>>(items: &BTreeMap<T, String>) -> ProtoMessage {
    let mut message = ProtoMessage::default();
    for (key, json) in items {
        let mut item = ProtoMessage::default();
        message.message(1, item.string(2, key.as_ref()).string(16, json));
    }
    message
}

fn history_record(items: &BTreeMap<&str, String>, step: u64) -> ProtoMessage {
    let (mut history, mut number) = (nested_items(items), ProtoMessage::default());
    history.message(2, number.varint(1, step));
    history
}

fn run_record(run: &TrackedRun, id: &str, began: f64) -> ProtoMessage {
    let (mut record, mut config, mut start) =
        (ProtoMessage::default(), ProtoMessage::default(), ProtoMessage::default());
    let facts: Map<String, Json> =
        run.facts.iter().map(|(key, value)| ((*key).to_owned(), value.clone().into())).collect();
    for (key, value) in
        sections(&run.hyperparameters).into_iter().chain([("runner".to_owned(), facts.into())])
    {
        let mut item = ProtoMessage::default();
        config.message(1, item.string(1, &key).string(16, &value.to_string()));
    }
    record.string(1, id).string(3, PROJECT).message(4, &config);
    if let Some(sweep) = &run.sweep {
        record.string(6, &sweep.name.name);
    }
    record.string(8, &run.name.name);
    if let Some(note) = &run.note {
        record.string(9, note);
    }
    for tag in &run.tags {
        record.string(10, tag);
    }
    start.varint(1, began as u64).varint(2, (began.fract() * 1e9) as u64);
    record.message(17, &start);
    if let Some(commit) = &run.commit {
        let mut git = ProtoMessage::default();
        record.message(21, git.string(2, commit));
    }
    record
}

/// Keys with dots as objects of sections, as the experiment's file has them.
fn sections(keys: &Hyperparameters) -> Map<String, Json> {
    let mut top = Map::new();
    for (key, value) in keys {
        match key.split_once('.') {
            None => drop(top.insert(key.clone(), value.clone())),
            Some((section, leaf)) => {
                let section = top.entry(section).or_insert_with(|| Map::new().into());
                let section = section.as_object_mut().expect("no key has a section's name");
                section.insert(leaf.to_owned(), value.clone());
            }
        }
    }
    top
}

/// A number in JSON, with the words of Python's `json` for those that are not finite.
fn number(value: f64) -> String {
    match value.is_finite() {
        true => serde_json::to_string(&value).expect("a number becomes JSON"),
        false if value.is_nan() => "NaN".into(),
        false => if value > 0.0 { "Infinity" } else { "-Infinity" }.into(),
    }
}

/// The file of these records.
fn log(records: &[ProtoMessage]) -> Vec<u8> {
    let mut file = HEAD.to_vec();
    for record in records {
        let (mut rest, mut begun) = (&record.bytes[..], false);
        loop {
            let room = BLOCK - file.len() % BLOCK;
            if room < PIECE_HEAD {
                file.resize(file.len() + room, 0);
                continue;
            }
            let (piece, after) = rest.split_at(rest.len().min(room - PIECE_HEAD));
            let kind: u8 = match (begun, after.is_empty()) {
                (false, true) => 1,
                (false, false) => 2,
                (true, false) => 3,
                (true, true) => 4,
            };
            file.extend(crc32fast::hash(&[&[kind], piece].concat()).to_le_bytes());
            file.extend((piece.len() as u16).to_le_bytes());
            file.push(kind);
            file.extend(piece);
            (rest, begun) = (after, true);
            if rest.is_empty() {
                break;
            }
        }
    }
    file
}

#[cfg(test)]
mod tests {
    use super::super::tracker::tests::run;
    use super::*;

    #[test]
    fn a_log_has_the_bytes_that_the_format_asks_for() {
        // The check value of the catalogue of parametrised CRCs.
        assert_eq!(crc32fast::hash(b"123456789"), 0xcbf4_3926);
        let record = |bytes: usize| ProtoMessage { bytes: vec![7; bytes] };
        let pieces = |file: &[u8]| {
            let (mut at, mut found) = (HEAD.len(), Vec::new());
            while at < file.len() {
                if BLOCK - at % BLOCK < PIECE_HEAD {
                    at = at.next_multiple_of(BLOCK);
                    continue;
                }
                let length = usize::from(u16::from_le_bytes([file[at + 4], file[at + 5]]));
                let content = &file[at + 6..at + 7 + length];
                assert_eq!(file[at..at + 4], crc32fast::hash(content).to_le_bytes());
                found.push((at, file[at + 6], length));
                at += 7 + length;
            }
            assert_eq!(at, file.len());
            found
        };
        assert_eq!(pieces(&log(&[record(3), record(0)])), [(7, 1, 3), (17, 1, 0)]);
        // One that fills its block, one that leaves six bytes, one over three blocks.
        let full = BLOCK - 2 * PIECE_HEAD;
        assert_eq!(pieces(&log(&[record(full), record(1)])), [(7, 1, full), (BLOCK, 1, 1)]);
        assert_eq!(pieces(&log(&[record(full - 6), record(1)])), [(7, 1, full - 6), (BLOCK, 1, 1)]);
        let (first, whole) = (BLOCK - 14, BLOCK - 7);
        let long = [(7, 2, first), (BLOCK, 3, whole), (2 * BLOCK, 4, 5)];
        assert_eq!(pieces(&log(&[record(first + whole + 5)])), long);
    }

    #[test]
    fn the_same_run_is_left_and_another_state_of_it_replaces_it() {
        let root = tempfile::tempdir().unwrap();
        let mut run = run();
        let folder = write(root.path(), &run).unwrap();
        let (file, mark) = (format!("run-{}.wandb", run.name.id(DIGITS)), "uploaded");
        let first = fs::read(folder.join(&file)).unwrap();
        fs::write(folder.join(mark), "").unwrap();
        assert_eq!(write(root.path(), &run).unwrap(), folder);
        assert!(folder.join(mark).exists(), "nothing has changed");
        run.rows.pop();
        assert_eq!(write(root.path(), &run).unwrap(), folder);
        assert!(!folder.join(mark).exists() && fs::read(folder.join(&file)).unwrap() != first);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn keys_are_sections_and_numbers_that_are_not_finite_have_pythons_words() {
        let keys = [("seed", 7.into()), ("schedule.kind", "wsd".into()), ("schedule.steps", 3.into())];
        let keys: Hyperparameters = keys.map(|(key, value): (&str, Json)| (key.to_owned(), value)).into();
        let expected = serde_json::json!({"seed": 7, "schedule": {"kind": "wsd", "steps": 3}});
        assert_eq!(Json::Object(sections(&keys)), expected);
        assert_eq!([f64::NAN, f64::NEG_INFINITY, 0.1].map(number), ["NaN", "-Infinity", "0.1"]);
    }
}
