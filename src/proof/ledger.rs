//! `ledger.jsonl`: one entry a step, an append-only log whose head every checkpoint carries.
//!
//! A line is `{"entry":<canonical bytes>,"head":"<root>"}`, the root being that of the RFC 9162 tree
//! over the digests of all entries up to this one. So a reader finds an edited, lost, moved or
//! inserted line by itself and by number. A consistent rewrite of the whole file disagrees with the heads in
//! the checkpoint manifests: see [`Log::is_prefix`].
//!
//! A line `{"note":{…}}` records something that changes no bit (a resume, another number of GPUs). Notes
//! enter no hash: a resumed run must end in the log of the uninterrupted one.
//!
//! Lines are written whole but not synchronised one by one. A kill leaves at most a torn last line,
//! which opening drops; call [`Ledger::sync`] before a checkpoint refers to the head.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::entry::{self, Entry, digest_of_canonical};
use super::hash::Hash;
use super::regular::LONGEST_LINE;
use super::tree::{Frontier, tree_root};
use super::{json, regular};

/// How many entries a log has, and the root of the tree over their digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    pub size: u64,
    pub root: Hash,
}

/// The kind of the note that a run was resumed.
pub const RESUME: &str = "resume";
/// The kind of the note that a run stopped because a loss or a weight was not finite.
pub const NOT_FINITE: &str = "not_finite";
/// The kind of the note that a run with audits was brought back from a copy, which has none.
pub const RESTORED: &str = "restored";

/// A note: something that happened to a run without changing its bits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Note {
    /// Entries in the log when it was written: the step that comes next.
    pub after: u64,
    /// One word: [`RESUME`], [`NOT_FINITE`], [`RESTORED`], `environment`, `drift`.
    pub kind: String,
    pub text: String,
}

/// A last line without its end: what a kill in the middle of a write leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TornLine {
    /// Counted from one.
    pub line: u64,
    pub bytes: u64,
}

/// An error in a ledger.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("cannot {doing} `{}`: {source}{}", path.display(), full_disk_hint(source))]
    Io { path: PathBuf, doing: &'static str, source: io::Error },
    #[error("`{}` is missing: without it no checkpoint can be held to the steps that made it\n  hint: \
             restore it from a copy; another run may start from a checkpoint, by `model.init = \
             \"run:NAME@STEP\"`", path.display())]
    Missing { path: PathBuf },
    #[error("`{}` line {line}: {why}\n  hint: the line was edited or the disk damaged it; `runner resume` \
             goes on from the last checkpoint before it", path.display())]
    BadLine { path: PathBuf, line: u64, why: String },
    #[error("`{}` line {line}: its head is {found}, but the entries up to it give {expected}\n  hint: this \
             line or its entry was edited, moved, inserted, or the one before it removed", path.display())]
    WrongHead { path: PathBuf, line: u64, expected: Hash, found: Hash },
    #[error("`{}` has {have} entries, expected at least {want}\n  hint: lines were lost; an earlier \
             checkpoint may still fit", path.display())]
    TooShort { path: PathBuf, have: u64, want: u64 },
    #[error("the first {size} entries of `{}` have the root {found}, expected {expected}\n  hint: this \
             ledger belongs to another run than the checkpoint, or was rewritten", path.display())]
    NotAPrefix { path: PathBuf, size: u64, expected: Hash, found: Hash },
}

fn full_disk_hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            "\n  hint: free some space and run `runner resume`; the entries before this one are intact"
        }
        _ => "",
    }
}

fn cannot_open(path: &Path) -> impl FnOnce(io::Error) -> LedgerError {
    move |source| match source.kind() {
        io::ErrorKind::NotFound => LedgerError::Missing { path: path.into() },
        _ => LedgerError::Io { path: path.into(), doing: "open", source },
    }
}

type Result<T, E = LedgerError> = std::result::Result<T, E>;

/// The log in a ledger file: digests, not entries, about 40 bytes a step.
#[derive(Clone, Debug, Default)]
pub struct Log {
    digests: Vec<Hash>,
    /// Byte in the file at which each entry's line starts.
    starts: Vec<u64>,
    frontier: Frontier,
    /// Bytes of whole lines.
    end: u64,
    notes: Vec<Note>,
    torn: Option<TornLine>,
}

impl Log {
    /// Entries in the log.
    pub fn size(&self) -> u64 {
        self.frontier.size()
    }

    /// The head over all entries.
    pub fn head(&self) -> Head {
        Head { size: self.size(), root: self.frontier.root() }
    }

    /// The head when the log had `size` entries; none if it never had that many.
    pub fn head_at(&self, size: u64) -> Option<Head> {
        let digests = self.digests.get(..usize::try_from(size).ok()?)?;
        Some(Head { size, root: tree_root(digests) })
    }

    /// How many entries the log had when its root was `root`; none if it never was.
    pub fn size_at(&self, root: &Hash) -> Option<u64> {
        let mut frontier = Frontier::new();
        self.digests.iter().find_map(|digest| {
            frontier.push(*digest);
            (frontier.root() == *root).then(|| frontier.size())
        })
    }

    /// Whether this log once had that head and has only grown since.
    pub fn is_prefix(&self, head: &Head) -> bool {
        self.head_at(head.size).as_ref() == Some(head)
    }

    pub fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// The line that a kill left unfinished, if opening found one.
    pub fn torn(&self) -> Option<TornLine> {
        self.torn
    }
}

/// A ledger open for appending. The run folder's lock keeps a second writer out.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    file: File,
    log: Log,
}

impl Ledger {
    /// Opens the ledger at `path` or starts an empty one; checks every line and drops a torn last
    /// one ([`Log::torn`] says so).
    pub fn open(path: &Path) -> Result<Ledger> {
        Ledger::open_within(path, u64::MAX)
    }

    /// Opens the ledger as it was at `head`, a checkpoint's. Later entries are dropped unread: the
    /// run will produce them again. Notes written right after the head stay.
    pub fn resume(path: &Path, head: &Head) -> Result<Ledger> {
        let ledger = Ledger::open_within(path, head.size)?;
        require_head(path, &ledger.log, head)?;
        ledger.cut(ledger.log.end)?;
        Ok(ledger)
    }

    /// Refuses what [`Ledger::resume`] would, or without a head [`Ledger::open`], and changes nothing.
    pub fn require(path: &Path, head: Option<&Head>) -> Result<()> {
        let file = match regular::open(path) {
            Err(missing) if missing.kind() == io::ErrorKind::NotFound && head.is_none() => return Ok(()),
            file => file.map_err(cannot_open(path))?,
        };
        let log = scan(path, &file, head.map_or(u64::MAX, |head| head.size), |_| ())?;
        head.map_or(Ok(()), |head| require_head(path, &log, head))
    }

    fn open_within(path: &Path, limit: u64) -> Result<Ledger> {
        if path.exists() {
            regular::open(path).map_err(cannot_open(path))?;
        }
        let mut options = OpenOptions::new();
        // A ledger that is to have entries is not begun.
        options.read(true).append(true).create(limit == u64::MAX || limit == 0);
        let file = options.open(path).map_err(cannot_open(path))?;
        let log = scan(path, &file, limit, |_| ())?;
        let ledger = Ledger { path: path.into(), file, log };
        if ledger.log.torn.is_some() && limit == u64::MAX {
            ledger.cut(ledger.log.end)?;
        }
        Ok(ledger)
    }

    /// Adds an entry and gives the new head. On an error the file ends as it did before.
    pub fn append(&mut self, entry: &Entry) -> Result<Head> {
        let canonical = entry.canonical();
        let digest = digest_of_canonical(canonical.as_bytes());
        let mut frontier = self.log.frontier.clone();
        frontier.push(digest);
        let start = self.log.end;
        self.write_line(&format!("{{\"entry\":{canonical},\"head\":\"{}\"}}\n", frontier.root()))?;
        self.log.frontier = frontier;
        self.log.digests.push(digest);
        self.log.starts.push(start);
        Ok(self.log.head())
    }

    /// Writes a note.
    pub fn note(&mut self, kind: &str, text: &str) -> Result<()> {
        let note = Note { after: self.log.size(), kind: kind.into(), text: text.into() };
        let json = serde_json::to_string(&note).expect("strings and numbers become JSON");
        self.write_line(&format!("{{\"note\":{json}}}\n"))?;
        self.log.notes.push(note);
        Ok(())
    }

    /// Drops the entries past `size`, as a resume from an older checkpoint needs.
    pub fn truncate_to(&mut self, size: u64) -> Result<()> {
        let have = self.log.size();
        if size > have {
            return Err(LedgerError::TooShort { path: self.path.clone(), have, want: size });
        }
        let keep = usize::try_from(size).expect("no larger than the length of a vector");
        if let Some(&end) = self.log.starts.get(keep) {
            self.cut(end)?;
            self.log.end = end;
            self.log.starts.truncate(keep);
            self.log.digests.truncate(keep);
            self.log.notes.retain(|note| note.after <= size);
            self.log.frontier = Frontier::new();
            self.log.digests.iter().for_each(|digest| self.log.frontier.push(*digest));
        }
        Ok(())
    }

    /// Waits until every line is on the disk: before a checkpoint refers to the head.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|source| self.io("write", source))
    }

    /// The entries' digests and heads.
    pub fn log(&self) -> &Log {
        &self.log
    }

    pub fn head(&self) -> Head {
        self.log.head()
    }

    pub fn is_prefix(&self, head: &Head) -> bool {
        self.log.is_prefix(head)
    }

    fn write_line(&mut self, line: &str) -> Result<()> {
        if let Err(source) = self.file.write_all(line.as_bytes()) {
            // Half a line must not stay in front of the next one. If even this fails, opening will
            // find a torn or bad line and name it.
            let _ = self.file.set_len(self.log.end);
            return Err(self.io("append to", source));
        }
        self.log.end += line.len() as u64;
        Ok(())
    }

    fn cut(&self, end: u64) -> Result<()> {
        self.file
            .set_len(end)
            .and_then(|()| self.file.sync_data())
            .map_err(|source| self.io("truncate", source))
    }

    fn io(&self, doing: &'static str, source: io::Error) -> LedgerError {
        LedgerError::Io { path: self.path.clone(), doing, source }
    }
}

/// Refuses a log that does not end in `head`.
fn require_head(path: &Path, log: &Log, head: &Head) -> Result<()> {
    let found = log.head();
    if found.size < head.size {
        return Err(LedgerError::TooShort { path: path.into(), have: found.size, want: head.size });
    }
    if found.root != head.root {
        return Err(LedgerError::NotAPrefix {
            path: path.into(),
            size: head.size,
            expected: head.root,
            found: found.root,
        });
    }
    Ok(())
}

/// Reads and checks a ledger without changing it: for `verify` and `diff`. A torn last line is left
/// out and reported by [`Log::torn`].
pub fn read(path: &Path) -> Result<(Log, Vec<Entry>)> {
    read_up_to(path, u64::MAX)
}

/// As [`read`], of the first `size` entries: what a checkpoint after so many steps is held to.
pub fn read_up_to(path: &Path, size: u64) -> Result<(Log, Vec<Entry>)> {
    let file = regular::open(path).map_err(cannot_open(path))?;
    let mut entries = Vec::new();
    let log = scan(path, &file, size, |entry| entries.push(entry))?;
    Ok((log, entries))
}

/// The end of a ledger.
#[derive(Debug)]
pub struct LedgerEnd {
    pub entries: Vec<Entry>,
    /// The root behind the last entry, as its line has it.
    pub root: Option<Hash>,
    /// Those behind the last entry.
    pub notes: Vec<Note>,
}

/// Bytes of an entry, about.
const ENTRY_BYTES: u64 = 1 << 10;

/// Reads the last `count` entries or a few less, and checks none of their heads: for a list of many runs.
///
/// None where a line is not a ledger's, or the file cannot be read: [`read`] says what is wrong.
pub fn read_end(path: &Path, count: usize) -> Option<LedgerEnd> {
    let mut window = count as u64 * ENTRY_BYTES;
    loop {
        let (bytes, at_start) = regular::read_last_lines(path, window).ok()?;
        // A note may be longer than a window, notes may fill one, and the last entry may be of no step.
        match end_of(&bytes, count) {
            Some(end) if at_start || end.entries.len() >= count.min(2) => return Some(end),
            None if at_start || !bytes.is_empty() => return None,
            _ => {}
        }
        window *= 4;
    }
}

/// The entry of the last step, by the end of a ledger, whose last entry may be of an evaluation.
pub fn last_step(path: &Path) -> Option<Entry> {
    entry::steps(&read_end(path, 2)?.entries).last().cloned()
}

fn end_of(bytes: &[u8], count: usize) -> Option<LedgerEnd> {
    let (mut entries, mut notes, mut root) = (Vec::new(), Vec::new(), None);
    let lines = bytes.strip_suffix(b"\n")?.rsplit(|byte| *byte == b'\n');
    for line in lines {
        match parse_line(line).ok()? {
            LedgerLine::Note(note) if entries.is_empty() => notes.push(note),
            LedgerLine::Note(_) => {}
            LedgerLine::Entry { entry, head, .. } => {
                root = root.or(Some(head));
                entries.push(*entry);
            }
        }
        if entries.len() == count {
            break;
        }
    }
    entries.reverse();
    notes.reverse();
    Some(LedgerEnd { entries, root, notes })
}

/// An entry's line, neither parsed nor held to its head.
pub struct EntryLine(String);

impl EntryLine {
    /// The bits of a number of the entry; none where it has none.
    pub fn bits(&self, name: &str) -> Option<u64> {
        let (_, rest) = self.0.split_once(&format!("\"{name}_bits\":\""))?;
        u64::from_str_radix(rest.get(..16)?, 16).ok()
    }

    /// Whether the line has this text.
    pub fn contains(&self, text: &str) -> bool {
        self.0.contains(text)
    }

    /// The entry with the head behind it; none where the line is no entry's.
    pub fn parse(&self) -> Option<(Entry, Hash)> {
        match parse_line(self.0.as_bytes()).ok()? {
            LedgerLine::Entry { entry, head, .. } => Some((*entry, head)),
            LedgerLine::Note(_) => None,
        }
    }
}

/// The lines of the entries from step `first` on, by step, read from the end of the file.
///
/// None where a line is not a ledger's, or the file cannot be read or begins later: [`read`] says what is
/// wrong.
pub fn lines_from(path: &Path, first: u64) -> Option<BTreeMap<u64, EntryLine>> {
    let step_of = |line: &str| line.strip_prefix(r#"{"entry":{"step":"#)?.split(',').next()?.parse().ok();
    let mut window = 128 * ENTRY_BYTES;
    loop {
        let (bytes, whole) = regular::read_last_lines(path, window).ok()?;
        let mut lines = BTreeMap::new();
        for line in std::str::from_utf8(&bytes).ok()?.lines().rev() {
            match step_of(line) {
                Some(step) => drop(lines.insert(step, EntryLine(line.to_owned()))),
                None if line.starts_with("{\"note\":") => {}
                None => return None,
            }
            if lines.contains_key(&first) {
                return Some(lines);
            }
        }
        if whole {
            return None;
        }
        window *= 4;
    }
}

/// The losses of all validations in a ledger whose last head is that of its lines. Entries without one are
/// hashed and not parsed: for a list of many runs.
///
/// None where a line is not a ledger's, the last head is another, an entry of version 1 does not say what was
/// measured, or the file cannot be read: [`read`] says what is wrong.
pub fn validation_losses(path: &Path) -> Option<Vec<f64>> {
    const NOTHING: &[u8] = br#""evaluation":null}"#;
    const HEAD: &[u8] = br#","head":""#;
    let mut lines = BufReader::with_capacity(1 << 18, regular::open(path).ok()?);
    let (mut losses, mut line) = (Vec::new(), Vec::new());
    let (mut frontier, mut last_head) = (Frontier::default(), None);
    loop {
        line.clear();
        (&mut lines).take(LONGEST_LINE).read_until(b'\n', &mut line).ok()?;
        // A line that a kill left unfinished is none.
        let Some(line) = line.strip_suffix(b"\n") else { break };
        let quick = line.strip_prefix(br#"{"entry":"#).and_then(|rest| rest.strip_suffix(br#""}"#));
        let quick = quick.and_then(|rest| rest.split_at_checked(rest.len().checked_sub(HEAD.len() + 64)?));
        if let Some((canonical, head)) = quick.filter(|(canonical, _)| canonical.ends_with(NOTHING)) {
            frontier.push(digest_of_canonical(canonical));
            last_head = Some(std::str::from_utf8(head.strip_prefix(HEAD)?).ok()?.parse().ok()?);
        } else if let LedgerLine::Entry { entry, digest, head } = parse_line(line).ok()? {
            frontier.push(digest);
            last_head = Some(head);
            losses.extend(entry.evaluation?.validation.map(|validation| validation.loss));
        }
    }
    last_head.is_none_or(|head: Hash| head == frontier.root()).then_some(losses)
}

/// Reads up to `limit` entries and the notes behind them, checking each head.
fn scan(path: &Path, file: &File, limit: u64, mut visit: impl FnMut(Entry)) -> Result<Log> {
    let mut lines = BufReader::new(file);
    let mut log = Log::default();
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        let length = (&mut lines).take(LONGEST_LINE).read_until(b'\n', &mut bytes);
        let length =
            length.map_err(|source| LedgerError::Io { path: path.into(), doing: "read", source })? as u64;
        if length == LONGEST_LINE {
            let why = format!("it has more than {LONGEST_LINE} bytes, and is no entry");
            return Err(LedgerError::BadLine { path: path.into(), line, why });
        }
        if length == 0 {
            break;
        }
        let full = log.size() == limit;
        if bytes.pop() != Some(b'\n') {
            log.torn = (!full).then_some(TornLine { line, bytes: length });
            break;
        }
        let parsed = match parse_line(&bytes) {
            Ok(LedgerLine::Entry { .. }) | Err(_) if full => break,
            parsed => parsed.map_err(|why| LedgerError::BadLine { path: path.into(), line, why })?,
        };
        match parsed {
            LedgerLine::Note(note) if note.after == log.size() => log.notes.push(note),
            LedgerLine::Note(note) => {
                let why = format!("a note written after {} entries stands after {}", note.after, log.size());
                return Err(LedgerError::BadLine { path: path.into(), line, why });
            }
            LedgerLine::Entry { entry, digest, head: found } => {
                log.frontier.push(digest);
                let expected = log.frontier.root();
                if found != expected {
                    return Err(LedgerError::WrongHead { path: path.into(), line, expected, found });
                }
                log.digests.push(digest);
                log.starts.push(log.end);
                visit(*entry);
            }
        }
        log.end += length;
    }
    Ok(log)
}

enum LedgerLine {
    Entry { entry: Box<Entry>, digest: Hash, head: Hash },
    Note(Note),
}

fn parse_line(bytes: &[u8]) -> Result<LedgerLine, String> {
    let text = std::str::from_utf8(bytes)
        .map_err(|e| format!("not UTF-8 from byte {} of the line", e.valid_up_to()))?;
    if let Some(note) = text.strip_prefix("{\"note\":").and_then(|rest| rest.strip_suffix('}')) {
        let note = json::parse_line(note.as_bytes());
        return note.map(LedgerLine::Note).map_err(|e| format!("not a note: {e}"));
    }
    let inner = text.strip_prefix("{\"entry\":").and_then(|rest| rest.strip_suffix("\"}"));
    let (canonical, head) = inner
        .and_then(|rest| rest.rsplit_once(",\"head\":\""))
        .ok_or("neither `{\"entry\":…,\"head\":\"…\"}` nor `{\"note\":…}`")?;
    Ok(LedgerLine::Entry {
        entry: Box::new(Entry::parse(canonical)?),
        digest: digest_of_canonical(canonical.as_bytes()),
        head: head.parse().map_err(|e: super::hash::NotAHash| e.to_string())?,
    })
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
