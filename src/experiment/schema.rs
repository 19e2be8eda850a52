//! Every key an experiment's file may hold, in one table.
//!
//! A row gives the type of the key, its default, its unit, an example, and whether it may change a bit of the
//! training state. Parsing, the defaults layer, the resolved file, resume's comparison and the reference of
//! keys all read this table, and tests hold it against [`super::Experiment`], so that no key can be missing
//! in one of them. What a key does is the doc comment of its field there. Rules that tie keys to each other
//! are not here but in `rules`.

use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use super::declare::Word;
use super::diagnostics::nearest;
use super::foreign_names;
use super::key_row::{
    ABOVE_ZERO, DECAY, FRACTION, FROM_ZERO, MANY, TO_A_MILLION, TO_A_THOUSAND, boolean, choice, ranged,
};
pub(super) use super::key_row::{
    Bits, Computed, Default, KeyRow, Open, TOML_MAX, ValueKind, int, leaf_of, section_of,
};
use super::model_keys::{ActivationKind, NormKind, PositionKind};
use super::resolved::{
    Compute, DeviceKind, OnDiverge, OptimizerKind, Order, PartialSums, ScheduleKind, Simd, Tokenizer,
};

/// The embedded texts.
const CORPORA: &[Word] = &[
    Word { name: "kjv", meaning: " The King James Bible: 4.6 million bytes." },
    Word { name: "kjv_ot", meaning: " Its Old Testament alone: 39 books." },
    Word { name: "kjv_nt", meaning: " Its New Testament alone: 27 books." },
];

/// In the order in which the resolved file is written.
///
/// `data.train`, `model.init` and the paths beside them do not reach the bits: what they name does, and the
/// lock pins that by content, so a data set may lie in another folder on another machine.
pub(super) const KEYS: &[KeyRow] = &[
    KeyRow::new("name", ValueKind::Name, Default::Ruled).touching(Bits::Kept).example(r#""gpt2_seed_7""#),
    int("seed", 0, TOML_MAX, Default::Integer(1337)).bits().example("7"),
    //
    KeyRow::new("model.init", ValueKind::Model, Default::Absent)
        .touching(Bits::ByContent)
        .example(r#""../data/gpt2""#),
    KeyRow::new("model.descriptor", ValueKind::Text, Default::Absent)
        .touching(Bits::Through("the other keys of `[model]`"))
        .example(r#""d12""#),
    int("model.layers", 1, 1024, Default::Ruled).bits().unit("layers").example("4"),
    int("model.heads", 1, 1024, Default::Ruled).bits().unit("heads").example("4"),
    int("model.kv_heads", 0, 1024, Default::Integer(0))
        .touching(Bits::ReachedWhenSet)
        .unit("heads")
        .example("2"),
    int("model.channels", 1, 1 << 17, Default::Ruled).bits().unit("channels").example("128"),
    int("model.context", 1, 1 << 20, Default::Ruled).bits().unit("tokens").example("1024"),
    int("model.vocab", 1, 1 << 16, Default::Ruled).bits().unit("tokens").example("50257"),
    choice("model.norm", NormKind::WORDS, "layernorm").touching(Bits::ReachedWhenSet).example(r#""rmsnorm""#),
    choice("model.positions", PositionKind::WORDS, "learned")
        .touching(Bits::ReachedWhenSet)
        .example(r#""rotary""#),
    ranged("model.rope_theta", (1.0, f64::MAX, Open::Below), 10_000.0)
        .touching(Bits::ReachedWhenSet)
        .example("500_000.0"),
    choice("model.activation", ActivationKind::WORDS, "gelu")
        .touching(Bits::ReachedWhenSet)
        .example(r#""swiglu""#),
    boolean("model.bias", true).touching(Bits::ReachedWhenSet).example("false"),
    boolean("model.tied_head", true).touching(Bits::ReachedWhenSet).example("false"),
    boolean("model.qk_norm", false).touching(Bits::ReachedWhenSet).example("true"),
    ranged("model.logit_softcap", TO_A_THOUSAND, 0.0).touching(Bits::ReachedWhenSet).example("30.0"),
    //
    int("batch.micro", 1, 1 << 20, Default::Integer(4)).bits().unit("sequences").example("16"),
    int("batch.seq_len", 1, 1 << 20, Default::Ruled).bits().unit("tokens").example("1024"),
    int("batch.tokens", 1, MANY, Default::Ruled).bits().unit("tokens").example("524_288"),
    int("batch.tokens_start", 0, MANY, Default::Integer(0))
        .touching(Bits::ReachedWhenSet)
        .unit("tokens")
        .example("65_536"),
    int("batch.tokens_warmup_steps", 0, MANY, Default::Integer(0))
        .touching(Bits::ReachedWhenSet)
        .unit("steps")
        .example("2000"),
    int("batch.seq_len_start", 0, 1 << 20, Default::Integer(0))
        .touching(Bits::ReachedWhenSet)
        .unit("tokens")
        .example("128"),
    int("batch.seq_len_warmup_steps", 0, MANY, Default::Integer(0))
        .touching(Bits::ReachedWhenSet)
        .unit("steps")
        .example("2000"),
    //
    choice("schedule.kind", ScheduleKind::WORDS, "cosine").bits().example(r#""wsd""#),
    int("schedule.steps", 1, MANY, Default::Ruled).bits().unit("steps").example("18_865"),
    // Resolved into `steps` when the data are open, so it is no part of the resolved experiment.
    int("schedule.epochs", 1, 1 << 20, Default::Absent)
        .touching(Bits::Through("schedule.steps"))
        .unit("passes over the data")
        .example("2"),
    ranged("schedule.learning_rate", ABOVE_ZERO, 6e-4).bits().example("3e-3"),
    int("schedule.warmup_steps", 0, MANY, Default::Integer(0)).bits().unit("steps").example("700"),
    ranged("schedule.final_fraction", FRACTION, 0.1)
        .bits()
        .computed(Computed::Bits64)
        .unit("share of the peak")
        .example("0.0"),
    ranged("schedule.decay_fraction", FRACTION, 0.2)
        .bits()
        .computed(Computed::Bits64)
        .unit("share of the steps")
        .example("0.1"),
    //
    choice("optimizer.kind", OptimizerKind::WORDS, "adamw")
        .touching(Bits::ReachedWhenSet)
        .example(r#""muon""#),
    ranged("optimizer.momentum", DECAY, 0.95).touching(Bits::ReachedWhenSet).example("0.9"),
    int("optimizer.momentum_warmup_steps", 0, MANY, Default::Integer(0))
        .touching(Bits::ReachedWhenSet)
        .unit("steps")
        .example("300"),
    ranged("optimizer.momentum_start", DECAY, 0.85).touching(Bits::ReachedWhenSet).example("0.8"),
    ranged("optimizer.beta1", DECAY, 0.9).bits().example("0.8"),
    ranged("optimizer.beta2", DECAY, 0.95).bits().example("0.999"),
    ranged("optimizer.epsilon", ABOVE_ZERO, 1e-8).bits().example("1e-6"),
    ranged("optimizer.weight_decay", FROM_ZERO, 0.1).bits().example("0.0"),
    ranged("optimizer.rate_tables", FROM_ZERO, 1.0).touching(Bits::ReachedWhenSet).example("10.0"),
    ranged("optimizer.rate_head", FROM_ZERO, 1.0).touching(Bits::ReachedWhenSet).example("0.5"),
    ranged("optimizer.rate_vectors", FROM_ZERO, 1.0).touching(Bits::ReachedWhenSet).example("2.0"),
    ranged("optimizer.rate_matrices", FROM_ZERO, 1.0).touching(Bits::ReachedWhenSet).example("0.5"),
    ranged("optimizer.grad_clip", FROM_ZERO, 1.0).bits().example("0.5"),
    ranged("optimizer.z_loss", TO_A_MILLION, 0.0).touching(Bits::ReachedWhenSet).example("1e-4"),
    ranged("optimizer.ema_decay", DECAY, 0.0).touching(Bits::ReachedWhenSet).example("0.999"),
    boolean("optimizer.from_init", false).touching(Bits::ReachedWhenSet).example("true"),
    //
    ranged("guards.loss_z", FROM_ZERO, 0.0)
        .bits()
        .computed(Computed::Bits64)
        .unit("standard deviations")
        .example("5.0"),
    ranged("guards.grad_z", FROM_ZERO, 0.0)
        .bits()
        .computed(Computed::Bits64)
        .unit("standard deviations")
        .example("5.0"),
    int("guards.window", 2, 1 << 20, Default::Integer(128)).bits().unit("steps").example("64"),
    int("guards.patience", 1, MANY, Default::Integer(16)).bits().unit("steps").example("8"),
    choice("guards.on_diverge", OnDiverge::WORDS, "stop").bits().example(r#""rewind""#),
    //
    KeyRow::new("data.corpus", ValueKind::Choice(CORPORA), Default::Absent).bits().example(r#""kjv""#),
    KeyRow::new("data.train", ValueKind::Patterns, Default::Ruled)
        .touching(Bits::ByContent)
        .example(r#""../data/edu_fineweb_train_*.bin""#),
    KeyRow::new("data.val", ValueKind::Patterns, Default::Ruled)
        .example(r#""../data/edu_fineweb_val_*.bin""#),
    choice("data.tokenizer", Tokenizer::WORDS, "gpt2").bits().example(r#""byte""#),
    choice("data.order", Order::WORDS, "shuffled").bits().example(r#""sequential""#),
    int("data.offset", 0, MANY, Default::Integer(0))
        .touching(Bits::ReachedWhenSet)
        .unit("sequences")
        .example("38_400"),
    boolean("data.overfit_single_batch", false).bits().example("true"),
    int("data.prefetch", 1, 1024, Default::Integer(2)).unit("micro-batches").example("8"),
    //
    int("eval.every", 0, MANY, Default::Integer(250)).unit("steps").example("100"),
    int("eval.val_tokens", 1, MANY, Default::Integer(2_621_440)).unit("tokens").example("10_485_760"),
    KeyRow::new("eval.hellaswag", ValueKind::File, Default::Absent)
        .example(r#""../data/hellaswag_val.jsonl""#),
    //
    int("sample.every", 0, MANY, Default::Integer(0)).unit("steps").example("500"),
    int("sample.tokens", 1, 1 << 20, Default::Integer(64)).unit("tokens").example("200"),
    KeyRow::new("sample.prompt", ValueKind::Text, Default::Text("")).example(r#""And God said""#),
    ranged("sample.temperature", FROM_ZERO, 1.0).computed(Computed::Bits64).example("0.8"),
    int("sample.top_k", 0, 1 << 16, Default::Integer(0)).unit("tokens").example("50"),
    //
    int("checkpoint.every", 0, MANY, Default::Integer(2000))
        .touching(Bits::ReachedByRewind)
        .unit("steps")
        .example("500"),
    int("checkpoint.keep_last", 0, MANY, Default::Integer(0)).unit("checkpoints").example("3"),
    int("checkpoint.keep_every", 0, MANY, Default::Integer(0)).unit("steps").example("10_000"),
    KeyRow::new("checkpoint.copy_to", ValueKind::Place, Default::Absent)
        .touching(Bits::Unrecorded)
        .example(r#""s3://bucket/runs""#),
    //
    int("memory.recompute", 0, 2, Default::Integer(0)).example("1"),
    choice("memory.partial_sums", PartialSums::WORDS, "device").example(r#""host""#),
    //
    choice("precision.compute", Compute::WORDS, "auto").bits().example(r#""bf16""#),
    boolean("precision.master_weights", true).bits().example("false"),
    //
    int("kernels.gelu_fusion", 0, 2, Default::Integer(0)).bits().example("1"),
    boolean("kernels.cuda_graph", true).example("false"),
    //
    int("parallel.workers", 1, 1 << 16, Default::Integer(1)).bits().unit("workers").example("8"),
    int("parallel.ranks", 0, 1 << 16, Default::Integer(0)).unit("ranks").example("4"),
    int("parallel.zero", 0, 2, Default::Integer(1)).example("2"),
    int("parallel.timeout_s", 1, 1 << 20, Default::Integer(600)).unit("seconds").example("3600"),
    //
    int("proof.digest_every", 0, MANY, Default::Integer(1)).unit("steps").example("10"),
    int("proof.replay_every", 0, MANY, Default::Integer(0)).unit("steps").example("1000"),
    int("proof.audit_every", 0, MANY, Default::Integer(0)).unit("steps").example("1000"),
    int("proof.audit_pieces", 1, 1 << 16, Default::Integer(32)).unit("pieces").example("64"),
    //
    int("log.every", 1, MANY, Default::Integer(1)).unit("steps").example("10"),
    int("log.gpu_every", 0, MANY, Default::Integer(10)).unit("seconds").example("60"),
    boolean("log.tensorboard", true).example("false"),
    //
    ranged("plan.dollars_per_gpu_hour", FROM_ZERO, 3.5)
        .computed(Computed::Bits64)
        .unit("dollars")
        .example("2.5"),
    //
    choice("device.kind", DeviceKind::WORDS, "auto").bits().example(r#""cpu""#),
    int("device.threads", 0, 4096, Default::Integer(0)).unit("threads").example("4"),
    choice("device.simd", Simd::WORDS, "auto").example(r#""avx2""#),
];

/// What the keys of each source of a mixture begin with: `data.mix.web.weight`.
pub(super) const MIX: &str = "data.mix";
/// What the reference calls the table of a source.
pub(super) const SOURCE_SECTION: &str = "data.mix.NAME";

/// The keys of a source of `[data.mix]`, which stands for `NAME`. In a resolved file they follow `[data]`.
pub(super) const SOURCE_KEYS: &[KeyRow] = &[
    KeyRow::new("data.mix.NAME.corpus", ValueKind::Choice(CORPORA), Default::Absent)
        .bits()
        .example(r#""kjv_nt""#),
    KeyRow::new("data.mix.NAME.train", ValueKind::Patterns, Default::Ruled)
        .touching(Bits::ByContent)
        .example(r#""../data/web_train_*.bin""#),
    KeyRow::new(
        "data.mix.NAME.weight",
        ValueKind::Number { min: 0.0, max: f64::MAX, open: Open::Below },
        Default::Ruled,
    )
    .bits()
    .computed(Computed::Decimals)
    .unit("parts of the sum of all weights")
    .example("0.7"),
    KeyRow::new("data.mix.NAME.val", ValueKind::Patterns, Default::Absent)
        .example(r#""../data/web_val_*.bin""#),
    int("data.mix.NAME.max_epochs", 1, MANY, Default::Absent).unit("passes over the source").example("4"),
];

/// The row of a dotted key.
pub(super) fn key(name: &str) -> Option<&'static KeyRow> {
    KEYS.iter().find(|key| key.name == name).or_else(|| source_key(name))
}

/// The row of a key as the reference calls it, `data.mix.NAME.weight`.
pub(super) fn described(name: &str) -> Option<&'static KeyRow> {
    KEYS.iter().chain(SOURCE_KEYS).find(|row| row.name == name)
}

/// What the reference calls a section or a key: `data.mix.NAME.weight` of `data.mix.web.weight`.
pub(super) fn as_in_reference(asked: &str) -> String {
    if asked != MIX && !is_of_source(asked) {
        return asked.to_owned();
    }
    match asked[MIX.len()..].trim_start_matches('.').split_once('.') {
        None => SOURCE_SECTION.to_owned(),
        Some((_, leaf)) => format!("{SOURCE_SECTION}.{leaf}"),
    }
}

/// Rows of keys of sources, each made when its name is first met, and kept as those of the table are.
static SOURCE_ROWS: LazyLock<Mutex<BTreeMap<String, &'static KeyRow>>> = LazyLock::new(Mutex::default);

/// The row of a key like `data.mix.web.weight`.
fn source_key(name: &str) -> Option<&'static KeyRow> {
    let (source, leaf) = name.strip_prefix(MIX)?.strip_prefix('.')?.split_once('.')?;
    let row = SOURCE_KEYS.iter().find(|row| row.leaf() == leaf)?;
    if source_name_problem(source).is_some() {
        return None;
    }
    let mut rows = SOURCE_ROWS.lock().unwrap_or_else(PoisonError::into_inner);
    let made = || -> &'static KeyRow { Box::leak(Box::new(KeyRow { name: name.to_owned().leak(), ..*row })) };
    Some(rows.entry(name.to_owned()).or_insert_with(made))
}

/// Whether a key is of a source of a mixture.
pub(super) fn is_of_source(key: &str) -> bool {
    key.strip_prefix(MIX).is_some_and(|rest| rest.starts_with('.'))
}

/// Why a source of a mixture cannot be called so.
pub(super) fn source_name_problem(name: &str) -> Option<&'static str> {
    let may = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
    match name.bytes().next() {
        None => Some("is empty"),
        Some(first) if !first.is_ascii_lowercase() && !first.is_ascii_digit() => {
            Some("does not begin with a lower-case letter or a digit")
        }
        _ if !name.bytes().all(may) => Some("has other characters than a to z, 0 to 9, `_` and `-`"),
        _ if name.len() > 40 => Some("is longer than 40 characters"),
        _ => None,
    }
}

/// The rows of an experiment with these sources, in the order of the resolved file.
pub(super) fn rows_with<'a>(sources: impl Iterator<Item = &'a str>) -> Vec<&'static KeyRow> {
    let at = KEYS.iter().rposition(|row| row.section() == "data").map_or(KEYS.len(), |at| at + 1);
    let of_source = |source: &'a str| {
        SOURCE_KEYS.iter().filter_map(move |row| key(&format!("{MIX}.{source}.{}", row.leaf())))
    };
    KEYS[..at].iter().chain(sources.flat_map(of_source)).chain(&KEYS[at..]).collect()
}

/// Every dotted key that a resolved experiment has, in the order of the table.
pub fn keys() -> impl Iterator<Item = &'static str> {
    KEYS.iter().map(|key| key.name).filter(|name| *name != "schedule.epochs")
}

/// A dotted key of a source of a mixture, `data.mix.web.weight`; none of what is no such key.
pub fn key_of_source(name: &str) -> Option<&'static str> {
    source_key(name).map(|row| row.name)
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

/// The keys of a section, `data.mix.web` too.
pub(super) fn rows_of(section: &str) -> impl Iterator<Item = &'static KeyRow> {
    let is_source = is_of_source(section);
    let of_source = SOURCE_KEYS.iter().filter(move |_| is_source);
    KEYS.iter().filter(move |key| key.section() == section).chain(of_source)
}

/// Each section once, in the order of the table.
pub(super) fn sections() -> Vec<&'static str> {
    let mut names: Vec<&str> =
        KEYS.iter().map(KeyRow::section).filter(|section| !section.is_empty()).collect();
    names.dedup();
    names
}

/// What was probably meant by a key that is not known: a section, or else a dotted key.
///
/// The right key in the wrong section comes first, unless many sections have it; then what other programs
/// call so, then a similar key of the section, then a similar key anywhere.
pub(super) fn neighbour(dotted: &str, section: &str) -> (Option<&'static str>, Option<String>) {
    let leaf = leaf_of(dotted);
    let siblings = rows_of(section);
    if is_of_source(section) {
        let near = nearest(leaf, siblings.map(KeyRow::leaf)).map(|leaf| format!("{section}.{leaf}"));
        return (None, near);
    }
    if foreign_names::is_of_what_is_not_here(leaf) {
        return (None, None);
    }
    let mut elsewhere = KEYS.iter().filter(|key| key.leaf() == leaf);
    let moved = elsewhere.next().filter(|_| elsewhere.next().is_none()).map(|key| key.name);
    let named = moved.or_else(|| foreign_names::key(leaf)).map(str::to_string);
    let near = named
        .or_else(|| {
            nearest(leaf, siblings.map(KeyRow::leaf))
                .map(|leaf| if section.is_empty() { leaf.to_string() } else { format!("{section}.{leaf}") })
        })
        .or_else(|| nearest(dotted, KEYS.iter().map(|key| key.name)).map(str::to_string));
    (nearest(dotted, sections()).filter(|_| section.is_empty()), near)
}

/// Whether a dotted key of the resolved experiment may change a bit of the training state.
///
/// Keys that only say where, how often or how fast never do: `name`, `data.train`, `model.init` and the other
/// paths (their content is pinned by the lock), `data.prefetch`, `eval.*`, `sample.*`, `checkpoint.*`,
/// `memory.recompute`, `kernels.cuda_graph`, `parallel.*` but for `parallel.workers`, `proof.*`, `log.*`,
/// `plan.*`, `device.threads` and `device.simd`; nor does `model.descriptor`, whose sizes are keys of their
/// own. `checkpoint.every` does where `guards.on_diverge` is `rewind`, which locks add by themselves. A name
/// that is no key is taken to matter.
pub fn reaches_the_bits(name: &str) -> bool {
    key(name).is_none_or(|key| matches!(key.bits, Bits::Reached | Bits::ReachedWhenSet))
}

/// Whether a dotted key is one that runs are compared by: it reaches the bits, by its value or by what it
/// names.
pub(super) fn is_hyperparameter(name: &str) -> bool {
    key(name).is_some_and(|key| {
        !matches!(key.bits, Bits::Untouched | Bits::ReachedByRewind | Bits::Unrecorded | Bits::Kept)
    })
}

/// Whether a dotted key names what is trained on or from, which the lock pins by content.
pub fn pinned_by_content(name: &str) -> bool {
    key(name).is_some_and(|key| key.bits == Bits::ByContent)
}

/// Whether a dotted key names files, whose content the lock pins: the same value means other files elsewhere.
pub fn names_files(name: &str) -> bool {
    key(name).is_some_and(|key| matches!(key.kind, ValueKind::File | ValueKind::Model | ValueKind::Patterns))
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
                (ValueKind::Choice(words), Default::Text(d)) => {
                    assert!(words.iter().any(|word| word.name == d), "{}", key.name)
                }
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
