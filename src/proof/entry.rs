//! One ledger entry and its canonical bytes.
//!
//! The canonical bytes are the JSON text of the entry exactly as it stands in `ledger.jsonl`: fixed
//! keys in a fixed order, no spaces, floats as decimals *and* bits. So the digest of an entry can be checked
//! with any SHA-256 and no JSON parser, and every other spelling of the same entry is refused. An entry is a
//! function of the experiment alone, not of time, machine or resumes; else a resumed run could not end in the
//! same log.
//!
//! Version 2 of an entry has the key `evaluation`, version 1 has not; both are read and checked.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};
use sha2::Digest;

use super::evaluation::{Evaluation, WrittenEvaluation};
use super::hash::{Hash, STEP};
use super::json;

/// The outcome of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// The weights were updated.
    Update,
    /// The loss's z-score was above its limit; no update.
    SkipLossZ,
    /// The gradient norm's z-score was above its limit; no update.
    SkipGradZ,
    /// Loss or gradient norm was NaN or infinite; no update.
    SkipNonfinite,
    /// No training: the evaluation after the last update.
    Evaluate,
}

impl Action {
    pub const ALL: [Action; 5] =
        [Action::Update, Action::SkipLossZ, Action::SkipGradZ, Action::SkipNonfinite, Action::Evaluate];

    /// The word in the ledger and in the metrics.
    pub fn name(self) -> &'static str {
        match self {
            Action::Update => "update",
            Action::SkipLossZ => "skip_loss_z",
            Action::SkipGradZ => "skip_grad_z",
            Action::SkipNonfinite => "skip_nonfinite",
            Action::Evaluate => "evaluate",
        }
    }

    pub fn from_name(name: &str) -> Option<Action> {
        Action::ALL.into_iter().find(|action| action.name() == name)
    }

    /// Whether a guard kept the update from the weights.
    pub fn is_skip(self) -> bool {
        matches!(self, Action::SkipLossZ | Action::SkipGradZ | Action::SkipNonfinite)
    }
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The event of a rewind from a step that was dropped to the step of a checkpoint, in whose entry it is
/// recorded.
pub fn rewind_event(from: u64, to: u64) -> String {
    format!("rewind from step {from} to step {to}")
}

/// The steps that a [`rewind_event`] went back from and to; none of every other text.
pub fn rewind_of(event: &str) -> Option<(u64, u64)> {
    let (from, to) = event.strip_prefix("rewind from step ")?.split_once(" to step ")?;
    let (from, to) = (from.parse().ok()?, to.parse().ok()?);
    (rewind_event(from, to) == event).then_some((from, to))
}

/// The step that the last rewind among these entries went back to.
pub fn last_rewound_to(entries: &[Entry]) -> Option<u64> {
    let mut events = entries.iter().rev().flat_map(|entry| &entry.events);
    events.find_map(|event| rewind_of(event)).map(|(_, to)| to)
}

/// The record of one optimizer step, or of the evaluation after the last. Two entries are equal when their
/// canonical bytes are.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Steps done before it.
    pub step: u64,
    /// Training tokens seen up to and including this step.
    pub tokens: u64,
    /// State root after the step, on steps that were hashed.
    pub root: Option<Hash>,
    /// Mean loss of the step. This and the two below are there exactly when a step was made.
    pub loss: Option<f64>,
    /// Global gradient norm before clipping.
    pub grad_norm: Option<f64>,
    pub learning_rate: Option<f64>,
    /// z-scores against the guards' windows; none while a window fills.
    pub loss_z: Option<f64>,
    pub grad_z: Option<f64>,
    pub action: Action,
    /// What else changed the bits of the run here: `rewind …`, `drift …`. What changed no bit (a resume,
    /// another number of GPUs) is a note in the file and in no hash.
    pub events: Vec<String>,
    /// What was measured before the step; none in an entry of version 1, which does not say.
    pub evaluation: Option<Evaluation>,
    /// Root of what the audited micro-batch of the step computed (`docs/audit.md`), in an audited step.
    pub audit: Option<Hash>,
    /// Of a mixture: tokens of each source in the stream up to the end of the step, what rewinds passed over
    /// included. Empty in all other entries.
    pub sources: BTreeMap<String, u64>,
}

impl Entry {
    /// An entry with nothing else in it.
    pub fn new(step: u64, tokens: u64, action: Action) -> Entry {
        Entry {
            step,
            tokens,
            action,
            root: None,
            loss: None,
            grad_norm: None,
            learning_rate: None,
            loss_z: None,
            grad_z: None,
            events: Vec::new(),
            evaluation: None,
            audit: None,
            sources: BTreeMap::new(),
        }
    }
}

/// The entries of steps, without that of the evaluation after the last one.
pub fn steps(entries: &[Entry]) -> &[Entry] {
    match entries.split_last() {
        Some((last, steps)) if last.action == Action::Evaluate => steps,
        _ => entries,
    }
}

/// Why a run that ends with these entries has no usable model, if it has none: the last step, or the last
/// validation, gave a number that is not finite.
pub fn not_finite_at_end(entries: &[Entry]) -> Option<String> {
    let trained = steps(entries).last().filter(|last| last.action == Action::SkipNonfinite);
    if let Some(last) = trained {
        return Some(format!("loss or gradient norm of step {}", last.step));
    }
    let validation = |entry: &Entry| {
        let loss = entry.evaluation.as_ref()?.validation.as_ref()?.loss;
        Some((entry.step, loss))
    };
    let (step, loss) = entries.iter().rev().find_map(validation)?;
    (!loss.is_finite()).then(|| format!("the validation loss at step {step} is {loss}"))
}

impl Entry {
    /// What was changed by leave before the step, `--allow-drift`: a text for each key.
    pub fn drifts(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.events.iter().filter_map(|event| event.strip_prefix("drift "))
    }

    /// The entry's JSON text, on which its digest rests. Specified in `docs/digest.md`.
    pub fn canonical(&self) -> String {
        let mut text = format!(r#"{{"step":{},"tokens":{},"root":"#, self.step, self.tokens);
        match &self.root {
            Some(root) => write!(text, r#""{root}""#).expect("a string takes all"),
            None => text.push_str("null"),
        }
        for (name, value) in [
            ("loss", self.loss),
            ("grad_norm", self.grad_norm),
            ("learning_rate", self.learning_rate),
            ("loss_z", self.loss_z),
            ("grad_z", self.grad_z),
        ] {
            push_float(&mut text, name, value);
        }
        let events = serde_json::to_string(&self.events).expect("strings become JSON");
        write!(text, r#","action":"{}","events":{events}"#, self.action.name()).expect("a string takes all");
        if let Some(evaluation) = &self.evaluation {
            text.push_str(",\"evaluation\":");
            evaluation.push_canonical(&mut text);
        }
        if let Some(root) = &self.audit {
            write!(text, r#","audit":"{root}""#).expect("a string takes all");
        }
        if !self.sources.is_empty() {
            let sources = serde_json::to_string(&self.sources).expect("names and numbers become JSON");
            write!(text, r#","sources":{sources}"#).expect("a string takes all");
        }
        text.push('}');
        text
    }

    /// `SHA256(tag("runner/step/v1") ‖ canonical bytes)`: the entry's leaf in the log.
    pub fn digest(&self) -> Hash {
        digest_of_canonical(self.canonical().as_bytes())
    }

    /// The fields in which two entries differ, with both values, bits included. What was measured before one
    /// of them alone, or audited in one alone, is no difference: no bit of the training depends on it.
    pub fn differences(&self, other: &Entry) -> Vec<FieldDifference> {
        let number = |value: Option<f64>| {
            value.map_or("none".to_owned(), |v| format!("{v} (0x{:016x})", canonical_bits(v)))
        };
        let fields = |entry: &Entry| {
            vec![
                ("step", entry.step.to_string()),
                ("tokens", entry.tokens.to_string()),
                ("loss", number(entry.loss)),
                ("grad_norm", number(entry.grad_norm)),
                ("learning_rate", number(entry.learning_rate)),
                ("loss_z", number(entry.loss_z)),
                ("grad_z", number(entry.grad_z)),
                ("action", entry.action.name().to_owned()),
                ("events", format!("{:?}", entry.events)),
                ("root", entry.root.map_or("not hashed".to_owned(), |root| root.to_string())),
            ]
        };
        let (mut mine, mut others) = (fields(self), fields(other));
        if let (Some(a), Some(b)) = (&self.evaluation, &other.evaluation) {
            if let (Some(a), Some(b)) = (a.validation, b.validation) {
                mine.push(("val_loss", number(Some(a.loss))));
                others.push(("val_loss", number(Some(b.loss))));
            }
            if let (Some(a), Some(b)) = (a.hellaswag, b.hellaswag) {
                mine.push(("hellaswag", format!("{:?}", a.as_counted_in(&b))));
                others.push(("hellaswag", format!("{:?}", b.as_counted_in(&a))));
            }
            if let (Some(a), Some(b)) = (a.ema_loss, b.ema_loss) {
                mine.push(("ema_val_loss", number(Some(a))));
                others.push(("ema_val_loss", number(Some(b))));
            }
            if let (Some(a), Some(b)) = (a.ema_hellaswag, b.ema_hellaswag) {
                mine.push(("ema_hellaswag", format!("{a:?}")));
                others.push(("ema_hellaswag", format!("{b:?}")));
            }
        }
        if !self.sources.is_empty() && !other.sources.is_empty() {
            mine.push(("sources", format!("{:?}", self.sources)));
            others.push(("sources", format!("{:?}", other.sources)));
        }
        if let (Some(a), Some(b)) = (&self.audit, &other.audit) {
            mine.push(("audit", a.to_string()));
            others.push(("audit", b.to_string()));
        }
        let pairs = mine.into_iter().zip(others);
        pairs
            .filter(|((_, a), (_, b))| a != b)
            .map(|((field, a), (_, b))| FieldDifference { field, a, b })
            .collect()
    }

    /// Reads canonical bytes, and refuses every other spelling of the same entry.
    pub fn parse(text: &str) -> Result<Entry, String> {
        let written: WrittenEntry =
            serde_json::from_str(text).map_err(|e| json::fault_in_line(text.as_bytes(), &e))?;
        let entry = Entry {
            step: written.step,
            tokens: written.tokens,
            root: written.root,
            loss: float(written.loss_bits)?,
            grad_norm: float(written.grad_norm_bits)?,
            learning_rate: float(written.learning_rate_bits)?,
            loss_z: float(written.loss_z_bits)?,
            grad_z: float(written.grad_z_bits)?,
            action: written.action,
            events: written.events,
            evaluation: match written.evaluation {
                None => None,
                Some(evaluation) => Some(evaluation.map_or_else(|| Ok(Evaluation::default()), |e| e.read())?),
            },
            audit: written.audit,
            sources: written.sources,
        };
        entry.check()?;
        let canonical = entry.canonical();
        if canonical == text {
            Ok(entry)
        } else {
            let byte = canonical.bytes().zip(text.bytes()).take_while(|(a, b)| a == b).count();
            Err(format!(
                "not the canonical text of its own values: expected `{}` from byte {byte} of the entry",
                tail(&canonical, byte)
            ))
        }
    }
}

impl Entry {
    /// A step has its numbers; the evaluation after the last has what it measured and nothing else.
    fn check(&self) -> Result<(), String> {
        let numbers = [self.loss, self.grad_norm, self.learning_rate];
        let right = match self.action {
            Action::Evaluate => {
                let z = [self.loss_z, self.grad_z];
                self.evaluation.is_some_and(|evaluation| !evaluation.is_empty())
                    && numbers.into_iter().chain(z).all(|number| number.is_none())
                    && self.root.is_none()
                    && self.audit.is_none()
                    && self.events.is_empty()
                    && self.sources.is_empty()
            }
            _ => numbers.iter().all(Option::is_some),
        };
        match right {
            true => Ok(()),
            false => Err(format!("an entry with the action `{}` does not have these keys", self.action)),
        }
    }
}

/// A field in which two entries differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldDifference {
    pub field: &'static str,
    pub a: String,
    pub b: String,
}

impl std::fmt::Display for FieldDifference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} and {}", self.field, self.a, self.b)
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        self.canonical() == other.canonical()
    }
}

/// Digest of an entry whose canonical bytes are at hand.
pub(super) fn digest_of_canonical(bytes: &[u8]) -> Hash {
    Hash(STEP.hasher().chain_update(bytes).finalize().into())
}

/// An entry as it stands in the file. Bits decide; decimals are for people, and the comparison
/// with the canonical text shows that they agree.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenEntry {
    step: u64,
    tokens: u64,
    root: Option<Hash>,
    #[serde(rename = "loss")]
    _loss: Option<f64>,
    loss_bits: Option<String>,
    #[serde(rename = "grad_norm")]
    _grad_norm: Option<f64>,
    grad_norm_bits: Option<String>,
    #[serde(rename = "learning_rate")]
    _learning_rate: Option<f64>,
    learning_rate_bits: Option<String>,
    #[serde(rename = "loss_z")]
    _loss_z: Option<f64>,
    loss_z_bits: Option<String>,
    #[serde(rename = "grad_z")]
    _grad_z: Option<f64>,
    grad_z_bits: Option<String>,
    action: Action,
    events: Vec<String>,
    /// None without the key, `Some(None)` for `null`.
    #[serde(default, deserialize_with = "present")]
    evaluation: Option<Option<WrittenEvaluation>>,
    #[serde(default)]
    audit: Option<Hash>,
    #[serde(default)]
    sources: BTreeMap<String, u64>,
}

/// Tells a key that is `null` from one that is not there.
fn present<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Option<WrittenEvaluation>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// `,"name":decimal,"name_bits":"16 hex digits"`. The decimal is the shortest that reads back as the
/// same number, without an exponent; `null` when not finite.
pub(super) fn push_float(text: &mut String, name: &str, value: Option<f64>) {
    let decimal = value.filter(|v| v.is_finite()).map_or("null".to_owned(), |v| v.to_string());
    let bits = value.map_or("null".to_owned(), |v| format!(r#""{:016x}""#, canonical_bits(v)));
    write!(text, r#","{name}":{decimal},"{name}_bits":{bits}"#).expect("a string takes all");
}

/// Processors differ in the sign and payload of the NaN they produce; the ledger has one form.
pub fn canonical_bits(value: f64) -> u64 {
    if value.is_nan() { 0x7ff8_0000_0000_0000 } else { value.to_bits() }
}

pub(super) fn float(bits: Option<String>) -> Result<Option<f64>, String> {
    let Some(bits) = bits else { return Ok(None) };
    u64::from_str_radix(&bits, 16)
        .map(|bits| Some(f64::from_bits(bits)))
        .map_err(|_| format!("`{bits}` is not the 16 hexadecimal digits of an f64"))
}

/// A few characters of `text` from `byte` on.
fn tail(text: &str, byte: usize) -> String {
    let bytes = text.as_bytes();
    String::from_utf8_lossy(&bytes[byte..bytes.len().min(byte + 24)]).into_owned()
}

#[cfg(test)]
#[path = "entry_tests.rs"]
mod tests;
