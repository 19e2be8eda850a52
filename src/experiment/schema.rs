//! Every key an experiment's file may hold, in one table.
//!
//! A row gives the type of the key, its default, and whether it may change a bit of the training state.
//! Parsing, the defaults layer, the resolved file and resume's comparison all read this table, and tests hold
//! it against [`super::Experiment`], so that no key can be missing in one of them. Rules that tie keys to
//! each other are not here but in `rules`.

use super::resolved::{Compute, DeviceKind, OnDiverge, Order, PartialSums, ScheduleKind, Simd, Tokenizer};

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
    Choice(&'static [&'static str]),
    /// The path of a file, relative to the experiment's file.
    File,
    /// One glob pattern or a list of them, relative to the experiment's file.
    Patterns,
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

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyRow {
    /// Section and key with a dot between them; top-level keys have no dot.
    pub name: &'static str,
    pub kind: ValueKind,
    pub default: Default,
    /// Whether it may change a bit of the training state.
    pub bits: bool,
}

impl KeyRow {
    const fn new(name: &'static str, kind: ValueKind, default: Default) -> KeyRow {
        KeyRow { name, kind, default, bits: false }
    }

    const fn bits(mut self) -> KeyRow {
        self.bits = true;
        self
    }

    /// `model` of `model.layers`; empty for a top-level key.
    pub fn section(&self) -> &'static str {
        self.name.split_once('.').map_or("", |(section, _)| section)
    }

    /// `layers` of `model.layers`.
    pub fn leaf(&self) -> &'static str {
        self.name.split_once('.').map_or(self.name, |(_, leaf)| leaf)
    }
}

/// The largest integer a TOML file can hold.
const TOML_MAX: u64 = i64::MAX as u64;
/// A bound on steps and tokens: more than any run has, and small enough that no product overflows.
const MANY: u64 = 1 << 48;

const fn int(name: &'static str, min: u64, max: u64, default: Default) -> KeyRow {
    KeyRow::new(name, ValueKind::Integer { min, max }, default)
}

const fn number(name: &'static str, min: f64, max: f64, open: Open, default: f64) -> KeyRow {
    KeyRow::new(name, ValueKind::Number { min, max, open }, Default::Number(default))
}

const fn boolean(name: &'static str, default: bool) -> KeyRow {
    KeyRow::new(name, ValueKind::Boolean, Default::Boolean(default))
}

const fn choice(name: &'static str, values: &'static [&'static str], default: &'static str) -> KeyRow {
    KeyRow::new(name, ValueKind::Choice(values), Default::Text(default))
}

const ABOVE_ZERO: (f64, f64, Open) = (0.0, f64::MAX, Open::Below);
const FROM_ZERO: (f64, f64, Open) = (0.0, f64::MAX, Open::Neither);
const FRACTION: (f64, f64, Open) = (0.0, 1.0, Open::Neither);
const DECAY: (f64, f64, Open) = (0.0, 1.0, Open::Above);

const fn ranged(name: &'static str, range: (f64, f64, Open), default: f64) -> KeyRow {
    number(name, range.0, range.1, range.2, default)
}

/// In the order in which the resolved file is written.
///
/// `data.train`, `model.init` and the paths beside them do not reach the bits: what they name does, and the
/// lock pins that by content, so a data set may lie in another folder on another machine.
pub(super) const KEYS: &[KeyRow] = &[
    KeyRow::new("name", ValueKind::Name, Default::Ruled),
    int("seed", 0, TOML_MAX, Default::Integer(1337)).bits(),
    //
    KeyRow::new("model.init", ValueKind::File, Default::Absent),
    KeyRow::new("model.descriptor", ValueKind::Text, Default::Absent),
    int("model.layers", 1, 1024, Default::Ruled).bits(),
    int("model.heads", 1, 1024, Default::Ruled).bits(),
    int("model.channels", 1, 1 << 17, Default::Ruled).bits(),
    int("model.context", 1, 1 << 20, Default::Ruled).bits(),
    int("model.vocab", 1, 1 << 16, Default::Ruled).bits(),
    //
    int("batch.micro", 1, 1 << 20, Default::Integer(4)).bits(),
    int("batch.seq_len", 1, 1 << 20, Default::Ruled).bits(),
    int("batch.tokens", 1, MANY, Default::Ruled).bits(),
    //
    choice("schedule.kind", ScheduleKind::NAMES, "cosine").bits(),
    int("schedule.steps", 1, MANY, Default::Ruled).bits(),
    // Resolved into `steps` when the data are open, so it is no part of the resolved experiment.
    int("schedule.epochs", 1, 1 << 20, Default::Absent),
    ranged("schedule.learning_rate", ABOVE_ZERO, 6e-4).bits(),
    int("schedule.warmup_steps", 0, MANY, Default::Integer(0)).bits(),
    ranged("schedule.final_fraction", FRACTION, 0.1).bits(),
    ranged("schedule.decay_fraction", FRACTION, 0.2).bits(),
    //
    ranged("optimizer.beta1", DECAY, 0.9).bits(),
    ranged("optimizer.beta2", DECAY, 0.95).bits(),
    ranged("optimizer.epsilon", ABOVE_ZERO, 1e-8).bits(),
    ranged("optimizer.weight_decay", FROM_ZERO, 0.1).bits(),
    ranged("optimizer.grad_clip", FROM_ZERO, 1.0).bits(),
    //
    ranged("guards.loss_z", FROM_ZERO, 0.0).bits(),
    ranged("guards.grad_z", FROM_ZERO, 0.0).bits(),
    int("guards.window", 2, 1 << 20, Default::Integer(128)).bits(),
    int("guards.patience", 1, MANY, Default::Integer(16)).bits(),
    choice("guards.on_diverge", OnDiverge::NAMES, "stop").bits(),
    //
    KeyRow::new("data.corpus", ValueKind::Choice(&["kjv"]), Default::Absent).bits(),
    KeyRow::new("data.train", ValueKind::Patterns, Default::Ruled),
    KeyRow::new("data.val", ValueKind::Patterns, Default::Ruled),
    choice("data.tokenizer", Tokenizer::NAMES, "gpt2").bits(),
    choice("data.order", Order::NAMES, "shuffled").bits(),
    boolean("data.overfit_single_batch", false).bits(),
    int("data.prefetch", 1, 1024, Default::Integer(2)),
    //
    int("eval.every", 0, MANY, Default::Integer(250)),
    int("eval.val_tokens", 1, MANY, Default::Integer(2_621_440)),
    KeyRow::new("eval.hellaswag", ValueKind::File, Default::Absent),
    //
    int("sample.every", 0, MANY, Default::Integer(0)),
    int("sample.tokens", 1, 1 << 20, Default::Integer(64)),
    KeyRow::new("sample.prompt", ValueKind::Text, Default::Text("")),
    ranged("sample.temperature", FROM_ZERO, 1.0),
    int("sample.top_k", 0, 1 << 16, Default::Integer(0)),
    //
    int("checkpoint.every", 0, MANY, Default::Integer(2000)),
    int("checkpoint.keep_last", 0, MANY, Default::Integer(0)),
    int("checkpoint.keep_every", 0, MANY, Default::Integer(0)),
    //
    int("memory.recompute", 0, 2, Default::Integer(0)),
    choice("memory.partial_sums", PartialSums::NAMES, "device"),
    //
    choice("precision.compute", Compute::NAMES, "auto").bits(),
    boolean("precision.master_weights", true).bits(),
    //
    int("kernels.gelu_fusion", 0, 2, Default::Integer(0)).bits(),
    boolean("kernels.cuda_graph", true),
    //
    int("parallel.workers", 1, 1 << 16, Default::Integer(1)).bits(),
    int("parallel.ranks", 0, 1 << 16, Default::Integer(0)),
    int("parallel.zero", 0, 2, Default::Integer(1)),
    int("parallel.timeout_s", 1, 1 << 20, Default::Integer(600)),
    //
    int("proof.digest_every", 0, MANY, Default::Integer(1)),
    int("proof.replay_every", 0, MANY, Default::Integer(0)),
    int("proof.audit_every", 0, MANY, Default::Integer(0)),
    int("proof.audit_pieces", 1, 1 << 16, Default::Integer(32)),
    //
    int("log.every", 1, MANY, Default::Integer(1)),
    int("log.gpu_every", 0, MANY, Default::Integer(10)),
    boolean("log.tensorboard", true),
    //
    ranged("plan.dollars_per_gpu_hour", FROM_ZERO, 3.5),
    //
    choice("device.kind", DeviceKind::NAMES, "auto").bits(),
    int("device.threads", 0, 4096, Default::Integer(0)),
    choice("device.simd", Simd::NAMES, "auto"),
];

/// The row of a dotted key.
pub(super) fn key(name: &str) -> Option<&'static KeyRow> {
    KEYS.iter().find(|key| key.name == name)
}

/// The largest number that a whole-number key takes; panics on a name that is no such key.
pub fn largest(name: &str) -> u64 {
    match key(name).map(|key| key.kind) {
        Some(ValueKind::Integer { max, .. }) => max,
        _ => panic!("`{name}` is no whole number in the table of keys"),
    }
}

/// Whether any key lies under this name.
pub(super) fn is_section(name: &str) -> bool {
    !name.is_empty() && KEYS.iter().any(|key| key.section() == name)
}

/// Each section once, in the order of the table.
pub(super) fn sections() -> Vec<&'static str> {
    let mut names: Vec<&str> =
        KEYS.iter().map(KeyRow::section).filter(|section| !section.is_empty()).collect();
    names.dedup();
    names
}

/// Whether a dotted key of the resolved experiment may change a bit of the training state.
///
/// Keys that only say where, how often or how fast never do: `name`, `data.train`, `model.init` and the other
/// paths (their content is pinned by the lock), `data.prefetch`, `eval.*`, `sample.*`, `checkpoint.*`,
/// `memory.recompute`, `kernels.cuda_graph`, `parallel.*` but for `parallel.workers`, `proof.*`, `log.*`,
/// `plan.*`, `device.threads` and `device.simd`; nor does `model.descriptor`, whose sizes are keys of their
/// own. A name that is no key is taken to matter.
pub fn reaches_the_bits(name: &str) -> bool {
    key(name).is_none_or(|key| key.bits)
}

/// Whether a dotted key names files, whose content the lock pins: the same value means other files elsewhere.
pub fn names_files(name: &str) -> bool {
    key(name).is_some_and(|key| matches!(key.kind, ValueKind::File | ValueKind::Patterns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_sections_lie_together() {
        let mut names: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), KEYS.len());
        let mut sorted = sections();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), sections().len(), "a section is split: {:?}", sections());
    }

    #[test]
    fn defaults_lie_in_their_own_range() {
        for key in KEYS {
            match (key.kind, key.default) {
                (ValueKind::Integer { min, max }, Default::Integer(d)) => {
                    assert!((min..=max).contains(&d), "{}", key.name)
                }
                (ValueKind::Number { min, max, open }, Default::Number(d)) => {
                    assert!(
                        d >= min
                            && d <= max
                            && !(open == Open::Below && d == min)
                            && !(open == Open::Above && d == max),
                        "{}",
                        key.name
                    );
                }
                (ValueKind::Choice(values), Default::Text(d)) => assert!(values.contains(&d), "{}", key.name),
                (ValueKind::Boolean, Default::Boolean(_))
                | (ValueKind::Text, Default::Text(_))
                | (_, Default::Absent | Default::Ruled) => {}
                other => panic!("{}: {other:?}", key.name),
            }
        }
    }

    #[test]
    fn settings_that_do_not_matter_are_told_from_those_that_do() {
        for quiet in [
            "name",
            "log.every",
            "log.tensorboard",
            "plan.dollars_per_gpu_hour",
            "eval.every",
            "eval.hellaswag",
            "checkpoint.keep_last",
            "memory.recompute",
            "kernels.cuda_graph",
            "device.threads",
        ] {
            assert!(!reaches_the_bits(quiet), "{quiet}");
        }
        for quiet in ["parallel.ranks", "parallel.zero", "parallel.timeout_s"] {
            assert!(!reaches_the_bits(quiet), "{quiet}");
        }
        for quiet in [
            "device.simd",
            "proof.digest_every",
            "sample.temperature",
            "data.prefetch",
            "data.train",
            "model.descriptor",
        ] {
            assert!(!reaches_the_bits(quiet), "{quiet}");
        }
        for loud in [
            "seed",
            "model.vocab_padded",
            "batch.micro",
            "schedule.steps",
            "precision.compute",
            "kernels.gelu_fusion",
            "guards.window",
        ] {
            assert!(reaches_the_bits(loud), "{loud}");
        }
        for loud in ["parallel.workers", "data.order", "device.kind", "optimizer.epsilon", "something.new"] {
            assert!(reaches_the_bits(loud), "{loud}");
        }
    }
}
