//! What is known of one key: its type, its default, its unit, an example, and whether it may change a bit.
//!
//! [`super::schema`] is the table of all keys.

use super::declare::Word;

/// What a key takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum ValueKind {
    Integer {
        min: u64,
        max: u64,
    },
    /// A finite number; an integer is accepted. The bounds belong to the range unless `open`.
    Number {
        min: f64,
        max: f64,
        open: Open,
    },
    Boolean,
    Text,
    /// Text that can name a folder.
    Name,
    Choice(&'static [Word]),
    /// The path of a file, relative to the experiment's file.
    File,
    /// The same of a model, or `run:NAME@STEP`.
    Model,
    /// The path of a folder, relative to the experiment's file, or a URL.
    Place,
    /// One glob pattern or a list of them, relative to the experiment's file.
    Patterns,
}

impl ValueKind {
    /// What it takes, in words: an integer from 0 to 2.
    pub fn takes(self) -> String {
        match self {
            ValueKind::Integer { min, max } if max >= 1 << 31 => format!("an integer, at least {min}"),
            ValueKind::Integer { min, max } => format!("an integer from {min} to {max}"),
            ValueKind::Number { min, max, open } => match (max < f64::MAX, open) {
                (false, Open::Below) => format!("a number above {min}"),
                (false, _) => format!("a number, at least {min}"),
                (true, Open::Neither) => format!("a number from {min} to {max}"),
                (true, Open::Below) => format!("a number above {min}, at most {max}"),
                (true, Open::Above) => format!("a number from {min} to below {max}"),
            },
            ValueKind::Boolean => "`true` or `false`".into(),
            ValueKind::Text => "a string".into(),
            ValueKind::Name => "a name for a folder".into(),
            ValueKind::Choice(words) => one_of(words),
            ValueKind::File => "a path".into(),
            ValueKind::Model => "a path or `run:NAME@STEP`".into(),
            ValueKind::Place => "a folder or a URL".into(),
            ValueKind::Patterns => "a glob pattern or a list of them".into(),
        }
    }
}

/// `"a"`, `"a" or "b"`, `"a", "b" or "c"`.
fn one_of(words: &[Word]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("{:?}", word.name)).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}

/// Which bounds of a range lie outside it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Open {
    Neither,
    Below,
    Above,
}

/// The default of a key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Default {
    Integer(u64),
    Number(f64),
    Boolean(bool),
    Text(&'static str),
    /// Not set, and the program does without.
    Absent,
    /// Follows from other keys, or must be given: `rules` decides.
    Ruled,
}

/// What a key has to do with the bits of the training state.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Bits {
    /// Another value changes none.
    Untouched,
    /// The same, and no lock has it.
    Unrecorded,
    /// Another value changes none, and a run keeps it: every checkpoint has it.
    Kept,
    /// A path: what lies there reaches the bits, and the lock pins that by content.
    ByContent,
    /// It sets these keys, which reach the bits.
    Through(&'static str),
    /// Another value changes none, but where a rewind goes back to a checkpoint: then the lock has it.
    ReachedByRewind,
    /// Another value may change one.
    Reached,
    /// The same, and locks leave out the default: they were made before there was the key.
    ReachedWhenSet,
}

/// What a number is computed with in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Computed {
    /// In the end in 32 bits, also where it is multiplied by another before.
    Bits32,
    Bits64,
    /// As the decimals that are written.
    Decimals,
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyRow {
    /// Section and key with a dot between them; top-level keys have no dot.
    pub name: &'static str,
    pub kind: ValueKind,
    pub default: Default,
    pub bits: Bits,
    /// Of a number that is no integer.
    pub computed: Computed,
    /// Of its number; empty for a pure number, and for what is none.
    pub unit: &'static str,
    /// A value in TOML, other than the default.
    pub example: &'static str,
}

impl KeyRow {
    pub const fn new(name: &'static str, kind: ValueKind, default: Default) -> KeyRow {
        let (bits, computed) = (Bits::Untouched, Computed::Bits32);
        KeyRow { name, kind, default, bits, computed, unit: "", example: "" }
    }

    pub const fn bits(mut self) -> KeyRow {
        self.bits = Bits::Reached;
        self
    }

    pub const fn touching(mut self, bits: Bits) -> KeyRow {
        self.bits = bits;
        self
    }

    pub const fn computed(mut self, computed: Computed) -> KeyRow {
        self.computed = computed;
        self
    }

    pub const fn unit(mut self, unit: &'static str) -> KeyRow {
        self.unit = unit;
        self
    }

    pub const fn example(mut self, example: &'static str) -> KeyRow {
        self.example = example;
        self
    }

    /// `model` of `model.layers`; empty for a top-level key.
    pub fn section(&self) -> &'static str {
        section_of(self.name)
    }

    /// `layers` of `model.layers`.
    pub fn leaf(&self) -> &'static str {
        leaf_of(self.name)
    }
}

/// `model` of `model.layers`, `data.mix.web` of `data.mix.web.weight`; empty for a top-level key.
pub(super) fn section_of(key: &str) -> &str {
    key.rsplit_once('.').map_or("", |(section, _)| section)
}

/// `layers` of `model.layers`.
pub(super) fn leaf_of(key: &str) -> &str {
    key.rsplit_once('.').map_or(key, |(_, leaf)| leaf)
}

/// The largest integer a TOML file can hold.
pub(super) const TOML_MAX: u64 = i64::MAX as u64;
/// A bound on steps and tokens: more than any run has, and small enough that no product overflows.
pub(super) const MANY: u64 = 1 << 48;

pub(super) const fn int(name: &'static str, min: u64, max: u64, default: Default) -> KeyRow {
    KeyRow::new(name, ValueKind::Integer { min, max }, default)
}

pub(super) const fn number(name: &'static str, min: f64, max: f64, open: Open, default: f64) -> KeyRow {
    KeyRow::new(name, ValueKind::Number { min, max, open }, Default::Number(default))
}

pub(super) const fn boolean(name: &'static str, default: bool) -> KeyRow {
    KeyRow::new(name, ValueKind::Boolean, Default::Boolean(default))
}

pub(super) const fn choice(name: &'static str, words: &'static [Word], default: &'static str) -> KeyRow {
    KeyRow::new(name, ValueKind::Choice(words), Default::Text(default))
}

pub(super) const ABOVE_ZERO: (f64, f64, Open) = (0.0, f64::MAX, Open::Below);
pub(super) const FROM_ZERO: (f64, f64, Open) = (0.0, f64::MAX, Open::Neither);
/// For caps of logits: far above it, x is the difference of numbers so close that fp32 keeps little of it.
pub(super) const TO_A_THOUSAND: (f64, f64, Open) = (0.0, 1e3, Open::Neither);
/// For numbers that fp32 computes with, and that mean nothing above.
pub(super) const TO_A_MILLION: (f64, f64, Open) = (0.0, 1e6, Open::Neither);
pub(super) const FRACTION: (f64, f64, Open) = (0.0, 1.0, Open::Neither);
pub(super) const DECAY: (f64, f64, Open) = (0.0, 1.0, Open::Above);

pub(super) const fn ranged(name: &'static str, range: (f64, f64, Open), default: f64) -> KeyRow {
    number(name, range.0, range.1, range.2, default)
}
