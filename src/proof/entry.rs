//! One ledger entry and its canonical bytes.
//!
//! The canonical bytes are the JSON text of the entry exactly as it stands in `ledger.jsonl`: fixed
//! keys in a fixed order, no spaces, floats as decimals *and* bits. So the digest of an entry can be
//! checked with any SHA-256 and no knowledge of JSON; and a reader can show that no other spelling
//! of the same entry passes. What an entry holds is a function of the experiment alone: nothing of
//! time, machine or how often the run was resumed, or a resumed run could not end in the same log.

use std::fmt::Write;

use serde::{Deserialize, Serialize};
use sha2::Digest;

use super::hash::{Hash, STEP};

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// The weights were updated.
    Update,
    /// The loss stood out too far from its window; no update.
    SkipLossZ,
    /// The gradient norm stood out too far from its window; no update.
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

/// The event of a rewind from a step that was not kept to the step of a checkpoint; it stands in the
/// entry of the latter.
pub fn rewind_event(from: u64, to: u64) -> String {
    format!("rewind from step {from} to step {to}")
}

/// The step that a [`rewind_event`] went back from.
pub fn rewound_from(event: &str) -> Option<u64> {
    event.strip_prefix("rewind from step ")?.split_once(" to step ")?.0.parse().ok()
}

/// What one optimizer step did. Two entries are equal when their canonical bytes are.
#[derive(Clone, Debug)]
pub struct Entry {
    pub step: u64,
    /// Training tokens seen up to and including this step.
    pub tokens: u64,
    /// State root after the step, on steps that were hashed.
    pub root: Option<Hash>,
    pub loss: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    pub learning_rate: f64,
    /// z-scores against the guards' windows; none while a window fills.
    pub loss_z: Option<f64>,
    pub grad_z: Option<f64>,
    pub action: Action,
    /// What else changed the bits of the run here: `rewind …`, `drift …`. What changed none
    /// (a resume, another number of GPUs) is a note in the file and in no hash.
    pub events: Vec<String>,
}

impl Entry {
    /// The entry's JSON text, on which its digest rests. Specified in `docs/digest.md`.
    pub fn canonical(&self) -> String {
        let mut text = format!(r#"{{"step":{},"tokens":{},"root":"#, self.step, self.tokens);
        match &self.root {
            Some(root) => write!(text, r#""{root}""#).expect("a string takes all"),
            None => text.push_str("null"),
        }
        for (name, value) in [
            ("loss", Some(self.loss)),
            ("grad_norm", Some(self.grad_norm)),
            ("learning_rate", Some(self.learning_rate)),
            ("loss_z", self.loss_z),
            ("grad_z", self.grad_z),
        ] {
            push_float(&mut text, name, value);
        }
        let events = serde_json::to_string(&self.events).expect("strings become JSON");
        write!(text, r#","action":"{}","events":{events}}}"#, self.action.name())
            .expect("a string takes all");
        text
    }

    /// `SHA256(tag("runner/step/v1") ‖ canonical bytes)`: the entry's leaf in the log.
    pub fn digest(&self) -> Hash {
        digest_of_canonical(self.canonical().as_bytes())
    }

    /// The fields in which two entries differ, with both values, bits included.
    pub fn differences(&self, other: &Entry) -> Vec<FieldDifference> {
        let number = |value: f64| format!("{value} (0x{:016x})", canonical_bits(value));
        let score = |value: Option<f64>| value.map_or("none".to_owned(), number);
        let fields = |entry: &Entry| {
            [
                ("step", entry.step.to_string()),
                ("tokens", entry.tokens.to_string()),
                ("loss", number(entry.loss)),
                ("grad_norm", number(entry.grad_norm)),
                ("learning_rate", number(entry.learning_rate)),
                ("loss_z", score(entry.loss_z)),
                ("grad_z", score(entry.grad_z)),
                ("action", entry.action.name().to_owned()),
                ("events", format!("{:?}", entry.events)),
                ("root", entry.root.map_or("not hashed".to_owned(), |root| root.to_string())),
            ]
        };
        let pairs = fields(self).into_iter().zip(fields(other));
        pairs
            .filter(|((_, a), (_, b))| a != b)
            .map(|((field, a), (_, b))| FieldDifference { field, a, b })
            .collect()
    }

    /// Reads canonical bytes, and refuses every other spelling of the same entry.
    pub fn parse(text: &str) -> Result<Entry, String> {
        let written: Written = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let entry = Entry {
            step: written.step,
            tokens: written.tokens,
            root: written.root,
            loss: float(&written.loss_bits)?,
            grad_norm: float(&written.grad_norm_bits)?,
            learning_rate: float(&written.learning_rate_bits)?,
            loss_z: written.loss_z_bits.as_deref().map(float).transpose()?,
            grad_z: written.grad_z_bits.as_deref().map(float).transpose()?,
            action: written.action,
            events: written.events,
        };
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
struct Written {
    step: u64,
    tokens: u64,
    root: Option<Hash>,
    #[serde(rename = "loss")]
    _loss: Option<f64>,
    loss_bits: String,
    #[serde(rename = "grad_norm")]
    _grad_norm: Option<f64>,
    grad_norm_bits: String,
    #[serde(rename = "learning_rate")]
    _learning_rate: Option<f64>,
    learning_rate_bits: String,
    #[serde(rename = "loss_z")]
    _loss_z: Option<f64>,
    loss_z_bits: Option<String>,
    #[serde(rename = "grad_z")]
    _grad_z: Option<f64>,
    grad_z_bits: Option<String>,
    action: Action,
    events: Vec<String>,
}

/// `,"name":decimal,"name_bits":"16 hex digits"`. The decimal is the shortest that reads back as the
/// same number, without an exponent; `null` when not finite.
fn push_float(text: &mut String, name: &str, value: Option<f64>) {
    let decimal = value.filter(|v| v.is_finite()).map_or("null".to_owned(), |v| v.to_string());
    let bits = value.map_or("null".to_owned(), |v| format!(r#""{:016x}""#, canonical_bits(v)));
    write!(text, r#","{name}":{decimal},"{name}_bits":{bits}"#).expect("a string takes all");
}

/// Processors differ in the sign and payload of the NaN they make; the ledger knows one.
fn canonical_bits(value: f64) -> u64 {
    if value.is_nan() { 0x7ff8_0000_0000_0000 } else { value.to_bits() }
}

fn float(bits: &str) -> Result<f64, String> {
    u64::from_str_radix(bits, 16)
        .map(f64::from_bits)
        .map_err(|_| format!("`{bits}` is not the 16 hexadecimal digits of an f64"))
}

/// A few characters of `text` from `byte` on.
fn tail(text: &str, byte: usize) -> String {
    let bytes = text.as_bytes();
    String::from_utf8_lossy(&bytes[byte..bytes.len().min(byte + 24)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proof::tree::tree_root;

    fn example() -> Entry {
        Entry {
            step: 7,
            tokens: 3_670_016,
            root: Some(Hash::of(b"state")),
            loss: 10.539388656616211,
            grad_norm: 43.5996,
            learning_rate: 1.71e-6,
            loss_z: None,
            grad_z: Some(-0.25),
            action: Action::Update,
            events: vec![],
        }
    }

    /// The entry of a step that came to nothing, after a rewind.
    fn skipped() -> Entry {
        Entry {
            step: 8,
            tokens: 4_194_304,
            root: None,
            loss: f64::NAN,
            grad_norm: f64::INFINITY,
            learning_rate: 2e-6,
            loss_z: None,
            grad_z: None,
            action: Action::SkipNonfinite,
            events: vec!["rewind to step 4".into()],
        }
    }

    #[test]
    fn texts_and_digests_are_those_of_the_specification() {
        let specification = include_str!("../../docs/digest.md");
        let documented =
            |text: String| assert!(specification.contains(&text), "not in docs/digest.md: {text}");
        let (first, second) = (example(), skipped());
        documented(format!("    {}\n    {}\n", first.canonical(), first.digest()));
        let both = tree_root(&[first.digest(), second.digest()]);
        documented(format!("    {}\n    {}\n    {both}\n", second.canonical(), second.digest()));
    }

    #[test]
    fn every_kind_of_entry_reads_back_equal() {
        let mut entry = example();
        let floats = [
            0.0,
            -0.0,
            1.0,
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::MIN_POSITIVE,
            5e-324,
            f64::MAX,
            0.1 + 0.2,
        ];
        for loss in floats {
            for action in [Action::Update, Action::SkipLossZ, Action::SkipGradZ, Action::SkipNonfinite] {
                entry = Entry { loss, loss_z: Some(loss), grad_z: None, root: None, action, ..entry };
                entry.events = vec!["drift `seed`: 1 → 2\n\"quoted\"".into()];
                let back = Entry::parse(&entry.canonical()).unwrap();
                assert_eq!(back, entry);
                assert_eq!(back.loss.is_nan(), loss.is_nan());
            }
        }
    }

    #[test]
    fn every_nan_is_the_same_entry() {
        let nan = |bits| Entry { loss: f64::from_bits(bits), ..example() }.digest();
        assert_eq!(nan(0x7ff8_0000_0000_0000), nan(0xfff8_0000_0000_0001));
    }

    #[test]
    fn another_spelling_of_an_entry_is_refused() {
        let text = example().canonical();
        for (from, to) in [
            ("43.5996", "43.6"),
            ("43.5996", "43.59960"),
            ("\"step\":7", "\"step\": 7"),
            ("4045ccbfb15b573f", "4045CCBFB15B573F"),
            ("\"events\":[]", "\"events\":[],\"more\":1"),
            ("update", "updated"),
            ("null", "0"),
        ] {
            let edited = text.replacen(from, to, 1);
            assert_ne!(edited, text);
            assert!(Entry::parse(&edited).is_err(), "{edited}");
        }
    }
}
