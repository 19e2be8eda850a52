//! `[sweep]` as it is written: which keys take which values, and which of them together.
//!
//! ```toml
//! [sweep.grid]                                   # every value with every other; the last key runs fastest
//! "schedule.learning_rate" = [3e-4, 6e-4]
//! seed = [0, 1, 2]
//!
//! [sweep.zip]                                    # lists of one length, walked together
//! "schedule.steps" = [100, 200]
//! "schedule.warmup_steps" = [10, 20]
//!
//! [sweep.random]
//! samples = 8
//! seed = 1
//! [sweep.random.keys]
//! "optimizer.weight_decay" = { uniform = [0.0, 0.2] }   # or log_uniform, integers, choices
//! ```
//!
//! A key is written in quotes when it has a dot. Every value is checked here as its key's own is.

use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::check::{self, Refusal};
use super::diagnostics::{Fault, nearest};
use super::layers::{Layer, Layers, PlacedValue};
use super::schema::{self, Default, KeyRow, ValueKind};
use super::sweep_draw::{self, DrawRange};
use crate::units::noun;

/// The most members of a sweep.
pub(super) const MOST: u64 = 10_000;

/// The parts of `[sweep]`.
const PARTS: [&str; 3] = ["grid", "zip", "random"];
/// What a key is drawn from.
const DRAWS: [&str; 4] = ["uniform", "log_uniform", "integers", "choices"];

static SAMPLES: KeyRow = schema::int("sweep.random.samples", 1, MOST, Default::Ruled);
static SEED: KeyRow = schema::int("sweep.random.seed", 0, schema::TOML_MAX, Default::Ruled);

/// Keys that change together: a row has a value for each.
#[derive(Clone, Debug)]
pub(super) struct SweptAxis {
    pub keys: Vec<SweptKey>,
    pub rows: Vec<Vec<PlacedValue>>,
}

/// A key under `[sweep]`, and where it stands.
#[derive(Clone, Debug)]
pub(super) struct SweptKey {
    pub key: &'static KeyRow,
    pub span: Range<usize>,
}

/// What a file declares under `[sweep]`: the product of its axes, the last fastest.
#[derive(Clone, Debug)]
pub(super) struct Declaration {
    /// Bytes of the word `sweep`.
    pub span: Range<usize>,
    pub axes: Vec<SweptAxis>,
}

/// An entry of a table, with both places.
type TableEntry<'a, 'i> = (&'a Spanned<DeString<'i>>, &'a Spanned<DeValue<'i>>);

/// The entries of a table in the order of the text.
fn in_order<'a, 'i>(table: &'a DeTable<'i>) -> Vec<TableEntry<'a, 'i>> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

/// Reads `[sweep]` of one file; what is wrong goes to the faults of `layers`.
pub(super) struct SweepReader<'a> {
    pub layers: &'a mut Layers,
    /// The layer of the file, for places.
    pub layer: &'a Layer,
    pub folder: &'a Path,
}

impl SweepReader<'_> {
    /// Reads the value of the key `sweep`, which stands at `span`.
    pub fn read(&mut self, raw: &Spanned<DeValue<'_>>, span: Range<usize>) -> Declaration {
        let mut axes = Vec::new();
        if let Some(table) = self.table(raw, "sweep", "`[sweep.grid]`, `[sweep.zip]` or `[sweep.random]`") {
            for (word, _) in table.iter().filter(|(word, _)| !PARTS.contains(&word.get_ref().as_ref())) {
                let near = nearest(word.get_ref(), PARTS).map(|near| format!("did you mean `sweep.{near}`?"));
                let hint = near.or(Some("a sweep has `grid`, `zip` and `random`".to_owned()));
                self.fault(&format!("unknown key `sweep.{}`", word.get_ref()), word.span(), hint);
            }
            let part = |name: &str| table.iter().find(|(word, _)| *word.get_ref() == name);
            let [grid, zip, random] = PARTS.map(|name| part(name).map(|(_, value)| value));
            grid.into_iter().for_each(|raw| axes.extend(self.grid(raw)));
            axes.extend(zip.and_then(|raw| self.zip(raw)));
            axes.extend(random.and_then(|raw| self.random(raw)));
            if axes.is_empty() && self.layers.faults.is_empty() {
                let hint = "write lists under `[sweep.grid]` or `[sweep.zip]`, or ranges under \
                            `[sweep.random.keys]`";
                self.fault("the sweep has no key", span.clone(), Some(hint.to_owned()));
            }
        }
        self.refuse_twice(&axes);
        Declaration { span, axes }
    }

    fn fault(&mut self, message: &str, span: Range<usize>, hint: Option<String>) {
        self.layers.faults.push(Fault::new(message).at(self.layer.place(span)).hint(hint));
    }

    fn table<'a, 'i>(
        &mut self,
        raw: &'a Spanned<DeValue<'i>>,
        name: &str,
        expected: &str,
    ) -> Option<&'a DeTable<'i>> {
        if let DeValue::Table(table) = raw.get_ref() {
            return Some(table);
        }
        let found = raw.get_ref().type_str();
        self.fault(
            &format!("`{name}` is a section, not {found}"),
            raw.span(),
            Some(format!("write {expected}")),
        );
        None
    }

    /// One axis a key.
    fn grid(&mut self, raw: &Spanned<DeValue<'_>>) -> Vec<SweptAxis> {
        let axis = |(key, values): (SweptKey, Vec<PlacedValue>)| SweptAxis {
            keys: vec![key],
            rows: values.into_iter().map(|value| vec![value]).collect(),
        };
        self.lists(raw, "sweep.grid").into_iter().map(axis).collect()
    }

    /// One axis for all keys.
    fn zip(&mut self, raw: &Spanned<DeValue<'_>>) -> Option<SweptAxis> {
        let lists = self.lists(raw, "sweep.zip");
        let (first, values) = lists.first()?;
        let length = values.len();
        if let Some((other, others)) = lists.iter().find(|(_, values)| values.len() != length) {
            let (a, b, n) = (first.key.name, other.key.name, others.len());
            let message = format!("`{a}` has {length} {}, and `{b}` has {n}", noun(length, "value"));
            let hint = "lists under `[sweep.zip]` are walked together: give each the same length".to_owned();
            self.fault(&message, other.span.clone(), Some(hint));
            return None;
        }
        let rows = (0..length).map(|row| lists.iter().map(|(_, values)| values[row].clone()).collect());
        Some(SweptAxis { rows: rows.collect(), keys: lists.into_iter().map(|(key, _)| key).collect() })
    }

    /// The keys of a part with their lists.
    fn lists(&mut self, raw: &Spanned<DeValue<'_>>, part: &str) -> Vec<(SweptKey, Vec<PlacedValue>)> {
        let Some(table) = self.table(raw, part, "keys, each with a list of values") else {
            return Vec::new();
        };
        let mut lists = Vec::new();
        for (word, list) in in_order(table) {
            let Some(key) = self.key(word, list, part) else { continue };
            if let Some(values) = self.values(key.key, list, part) {
                lists.push((key, values));
            }
        }
        lists
    }

    /// The row of a key that may be swept.
    fn key(
        &mut self,
        word: &Spanned<DeString<'_>>,
        value: &Spanned<DeValue<'_>>,
        part: &str,
    ) -> Option<SweptKey> {
        let (name, span) = (word.get_ref().as_ref(), word.span());
        let inner = value.get_ref().as_table().filter(|_| schema::is_section(name));
        match (schema::key(name), inner) {
            (Some(key), _) if key.name == "name" => {
                let hint = "it names the folder of the whole sweep; members are called by their numbers";
                self.fault("`name` cannot be swept", span, Some(hint.to_owned()));
                None
            }
            (Some(key), _) => Some(SweptKey { key, span }),
            (None, Some(inner)) => {
                let leaf = inner.keys().next().map_or("key", |leaf| leaf.get_ref().as_ref());
                let hint = format!("write `\"{name}.{leaf}\" = …` under `[{part}]`");
                self.fault("a swept key with a dot is written in quotes", span, Some(hint));
                None
            }
            (None, None) => {
                let section = name.rsplit_once('.').map_or("", |(section, _)| section).to_owned();
                let place = self.layer.place(span);
                self.layers.unknown(name, &section, place, |key| format!("\"{key}\""));
                None
            }
        }
    }

    /// The values of a list, each checked as the key's own value is.
    fn values(
        &mut self,
        key: &'static KeyRow,
        raw: &Spanned<DeValue<'_>>,
        part: &str,
    ) -> Option<Vec<PlacedValue>> {
        let list = raw.get_ref().as_array().filter(|list| !list.is_empty());
        let Some(list) = list else {
            let hint = format!("write `[a, b, …]`; a value that all members share stands outside `[{part}]`");
            self.fault(
                &format!("`{}` needs a list of values in `[{part}]`", key.name),
                raw.span(),
                Some(hint),
            );
            return None;
        };
        list.iter().map(|value| self.value(key, value.get_ref(), value.span(), part)).collect()
    }

    fn value(
        &mut self,
        key: &'static KeyRow,
        raw: &DeValue<'_>,
        span: Range<usize>,
        part: &str,
    ) -> Option<PlacedValue> {
        match check::value(key, raw, self.folder) {
            Ok(value) => Some(PlacedValue { value, key_span: span.clone(), span, why: String::new() }),
            Err(Refusal { message, label, hint }) => {
                self.layers.faulty.insert(key.name);
                let at = |fault: Fault| fault.at(self.layer.place(span)).label(&label);
                let fault = Fault::new(message).hint(hint);
                let fault = if label.is_empty() { fault } else { at(fault) };
                self.layers.faults.push(fault.note(format!("a value of the sweep, in `[{part}]`")));
                None
            }
        }
    }

    /// One axis with a row a sample.
    fn random(&mut self, raw: &Spanned<DeValue<'_>>) -> Option<SweptAxis> {
        const PART: &str = "sweep.random.keys";
        let table = self.table(raw, "sweep.random", "`samples`, `seed` and `[sweep.random.keys]`")?;
        for word in
            table.keys().filter(|word| !["samples", "seed", "keys"].contains(&word.get_ref().as_ref()))
        {
            let hint = format!("it has `samples`, `seed` and `keys`; a swept key stands under `[{PART}]`");
            self.fault(&format!("unknown key `sweep.random.{}`", word.get_ref()), word.span(), Some(hint));
        }
        let samples = self.whole(&SAMPLES, "samples", table, raw.span());
        let seed = self.whole(&SEED, "seed", table, raw.span());
        let Some(keys) = table.get("keys") else {
            let hint = "write `\"schedule.learning_rate\" = { log_uniform = [1e-4, 1e-2] }` there";
            self.fault(&format!("there is no `[{PART}]`"), raw.span(), Some(hint.to_owned()));
            return None;
        };
        let keys = self.table(keys, PART, "keys, each with what it is drawn from")?;
        let (samples, seed) = (samples?, seed?);
        let mut axis = SweptAxis { keys: Vec::new(), rows: vec![Vec::new(); usize::try_from(samples).ok()?] };
        for (word, from) in in_order(keys) {
            let Some(swept) = self.key(word, from, PART) else { continue };
            let Some(drawn) = self.drawn(&swept, from, seed, samples) else { continue };
            axis.keys.push(swept);
            axis.rows.iter_mut().zip(drawn).for_each(|(row, value)| row.push(value));
        }
        Some(axis).filter(|axis| !axis.keys.is_empty())
    }

    /// A whole number of `[sweep.random]`, which must be there.
    fn whole(
        &mut self,
        key: &'static KeyRow,
        word: &str,
        table: &DeTable<'_>,
        span: Range<usize>,
    ) -> Option<u64> {
        let Some(raw) = table.get(word) else {
            let hint = "a sample of a sweep is drawn again from `samples` and `seed`";
            self.fault(&format!("`{}` must be given", key.name), span, Some(hint.to_owned()));
            return None;
        };
        let placed = self.value(key, raw.get_ref(), raw.span(), "sweep.random")?;
        placed.value.to_u128().and_then(|n| u64::try_from(n).ok())
    }

    /// The values of a key in all samples.
    fn drawn(
        &mut self,
        swept: &SweptKey,
        from: &Spanned<DeValue<'_>>,
        seed: u64,
        samples: u64,
    ) -> Option<Vec<PlacedValue>> {
        const PART: &str = "sweep.random.keys";
        let key = swept.key;
        let entry =
            from.get_ref().as_table().filter(|table| table.len() == 1).and_then(|table| table.iter().next());
        let known = entry.filter(|(word, _)| DRAWS.contains(&word.get_ref().as_ref()));
        let Some((word, bounds)) = known else {
            let hint = "write `{ uniform = [a, b] }`, `{ log_uniform = [a, b] }`, `{ integers = [a, b] \
                        }` or `{ choices = [a, b, …] }`";
            let message = format!("`{}` needs what it is drawn from", key.name);
            self.fault(&message, from.span(), Some(hint.to_owned()));
            return None;
        };
        let stream = sweep_draw::stream(seed, key.name);
        if *word.get_ref() == "choices" {
            let choices = self.values(key, bounds, PART)?;
            let chosen = |sample| sweep_draw::below(stream, sample, choices.len() as u128) as usize;
            return Some((0..samples).map(|sample| choices[chosen(sample)].clone()).collect());
        }
        let range = self.range(key, word, bounds)?;
        let value = |sample| {
            let text = range.draw(stream, sample);
            let raw = DeValue::parse(&text).ok()?.into_inner();
            self.value(key, &raw, bounds.span(), PART)
        };
        (0..samples).map(value).collect()
    }

    /// The two bounds of a range, which must be values of the key, in rising order.
    fn range(
        &mut self,
        key: &'static KeyRow,
        word: &Spanned<DeString<'_>>,
        bounds: &Spanned<DeValue<'_>>,
    ) -> Option<DrawRange> {
        let name = word.get_ref().as_ref();
        let fitting = match key.kind {
            ValueKind::Integer { .. } => &["integers"][..],
            ValueKind::Number { .. } => &["uniform", "log_uniform"],
            _ => &[],
        };
        if !fitting.contains(&name) {
            let fitting: Vec<String> = fitting.iter().chain(&["choices"]).map(|n| format!("`{n}`")).collect();
            let message = format!("`{}` cannot be drawn from `{name}`", key.name);
            self.fault(&message, word.span(), Some(format!("it takes {}", fitting.join(" or "))));
            return None;
        }
        let values = self.values(key, bounds, "sweep.random.keys")?;
        let number = |placed: &PlacedValue| {
            let whole = placed.value.to_u128().map(|n| n as f64);
            whole.or_else(|| placed.value.to_f64())
        };
        let numbers: Vec<f64> = values.iter().filter_map(number).collect();
        let [from, to] = values.as_slice() else { return self.bad_range(key, bounds) };
        let rising =
            numbers.len() == 2 && numbers[0] < numbers[1] && (name != "log_uniform" || numbers[0] > 0.0);
        if !rising {
            return self.bad_range(key, bounds);
        }
        let whole = |placed: &PlacedValue| placed.value.to_u128().and_then(|n| u64::try_from(n).ok());
        Some(match name {
            "uniform" => DrawRange::Uniform(numbers[0], numbers[1]),
            "log_uniform" => DrawRange::LogUniform(numbers[0], numbers[1]),
            _ => DrawRange::Integers(whole(from)?, whole(to)?),
        })
    }

    fn bad_range(&mut self, key: &KeyRow, bounds: &Spanned<DeValue<'_>>) -> Option<DrawRange> {
        let hint = "write the smaller and the larger bound; `log_uniform` needs both above 0".to_owned();
        self.fault(
            &format!("the range of `{}` is not two rising numbers", key.name),
            bounds.span(),
            Some(hint),
        );
        None
    }

    /// Refuses a key in two parts.
    fn refuse_twice(&mut self, axes: &[SweptAxis]) {
        let keys: Vec<&SweptKey> = axes.iter().flat_map(|axis| &axis.keys).collect();
        for (at, swept) in keys.iter().enumerate() {
            if keys[..at].iter().any(|before| before.key.name == swept.key.name) {
                let hint = "leave it in one of `grid`, `zip` and `random`".to_owned();
                self.fault(&format!("`{}` is swept twice", swept.key.name), swept.span.clone(), Some(hint));
            }
        }
    }
}
