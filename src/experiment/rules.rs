//! From merged layers to the resolved experiment: what follows from what, and which keys go together.
//!
//! A rule only uses keys whose values are valid in every layer, so one mistake is one fault. A rule that is
//! broken points at the strongest layer involved (the `--set` that broke a sound file, not the file)
//! and names the other keys with their values and origins. Nothing is allocated and no data is opened
//! here; what only the data can tell (`schedule.epochs`, where in them a checkpoint's run had come to) is
//! settled later by [`super::Loaded::resolve_epochs`] and [`super::Loaded::resolve_offset`].

use std::collections::{BTreeMap, BTreeSet};

use figment::value::{Dict, Value};
use figment::{Figment, Provider as _};

use super::check;
use super::diagnostics::Fault;
use super::init_models::InitModels;
use super::key_row::MANY;
use super::layers::{Layer, LayerSource, Layers, PlacedValue};
use super::model_keys::VOCAB_ALIGN;
use super::origin::{Origin, origin_in};
use super::resolved::Experiment;
use super::schema::{self, KEYS};
use super::write;
use crate::units::thousands;

mod audit;
mod continued;
mod data;
mod model;
mod optimizer;
mod schedule;
mod warmups;
mod without_effect;

/// The origin of sizes that `model.init` gives.
pub(super) const FROM_INIT: &str = "from model.init";

/// Pairs of ways to say one thing. Both in one layer is a fault; a stronger layer that sets one clears the
/// other in a weaker layer.
const EXCLUSIVE: [(&[&str], &[&str]); 5] = [
    (&["model.descriptor"], &["model.layers", "model.heads", "model.channels"]),
    (&["data.corpus"], &["data.train", "data.val"]),
    (&["data.corpus"], &[schema::MIX]),
    (&["data.train"], &[schema::MIX]),
    (&["schedule.steps"], &["schedule.epochs"]),
];

/// Whether a key is one of these, or of the sources of a mixture where `data.mix` is among them.
fn is_among(key: &str, keys: &[&str]) -> bool {
    keys.iter().any(|name| key == *name || (*name == schema::MIX && schema::is_of_source(key)))
}

/// The result of resolving.
pub(super) struct Resolved {
    pub experiment: Experiment,
    pub origins: BTreeMap<String, Origin>,
    pub epochs: Option<u64>,
    pub offset_follows: bool,
    pub remarks: Vec<String>,
}

/// Merges the layers, applies every rule, and extracts the experiment. `stem` names the run when no
/// layer does.
pub(super) fn resolve(
    mut layers: Layers,
    stem: &str,
    models: &dyn InitModels,
) -> Result<Resolved, Vec<Fault>> {
    if layers.unreadable {
        return Err(layers.faults);
    }
    choose_between_alternatives(&mut layers);
    let figment = layers.list.iter().fold(Figment::new(), |figment, layer| figment.merge(layer));
    let derived = Layer::new(LayerSource::Derived, usize::MAX, usize::MAX);
    let merged = figment.find_value("").unwrap_or_else(|_| Value::from(Dict::new()));
    let mut rules = Rules { layers, figment, merged, derived };
    rules.name(stem);
    rules.init(models);
    rules.init_tokenizer(models);
    rules.model();
    rules.batch();
    rules.schedule();
    rules.optimizer();
    rules.numerics();
    rules.data();
    rules.continued();
    rules.run();
    rules.without_effect();
    rules.finish()
}

fn is_set(entry: &PlacedValue) -> bool {
    entry.value.as_array().is_none_or(|list| !list.is_empty())
}

fn choose_between_alternatives(layers: &mut Layers) {
    for (one, other) in EXCLUSIVE {
        let strongest = |keys: &[&str], layers: &Layers| {
            let set = |(key, entry): (&&str, &PlacedValue)| is_among(key, keys) && is_set(entry);
            layers.list.iter().filter(|layer| layer.entries.iter().any(set)).map(|layer| layer.rank).max()
        };
        let (Some(a), Some(b)) = (strongest(one, layers), strongest(other, layers)) else { continue };
        if a == b {
            let find = |keys: &[&str]| {
                let layers = layers.list.iter().filter(|layer| layer.rank == a);
                let mut found = layers.flat_map(|layer| {
                    layer
                        .entries
                        .iter()
                        .filter(|(key, _)| is_among(key, keys))
                        .map(move |entry| (layer, entry))
                });
                found.next().map(|(layer, (key, entry))| (*key, layer, entry.clone()))
            };
            let (Some((key, layer, entry)), Some((rival, rival_layer, rival_entry))) =
                (find(other), find(one))
            else {
                continue;
            };
            let fault = Fault::new(format!("`{key}` and `{rival}` exclude each other"))
                .at(layer.place(entry.key_span.clone()))
                .label(format!("`{rival}` is set too"))
                .note(format!("`{rival}` is set at {}", origin_in(rival_layer, &rival_entry)))
                .hint("keep one of the two".to_string());
            layers.faults.push(fault);
            let of_table = KEYS.iter().map(|key| key.name);
            layers.faulty.extend(of_table.filter(|key| is_among(key, one) || is_among(key, other)));
            layers.faulty.extend([key, rival]);
        } else {
            let (taken, taken_back) = if a < b { (other, one) } else { (one, other) };
            layers.remarks.extend(replacement(layers, a.max(b), taken, taken_back));
            for layer in &mut layers.list {
                layer.entries.retain(|key, _| !is_among(key, taken_back));
            }
        }
    }
}

/// What the command line or the environment, at `rank`, sets of the keys `taken`, and what of a weaker
/// layer's it thereby puts away.
fn replacement(layers: &Layers, rank: usize, taken: &[&str], taken_back: &[&str]) -> Option<String> {
    let first = |keys: &[&str], at_rank: bool| {
        let mut layers = layers.list.iter().filter(|layer| (layer.rank == rank) == at_rank);
        layers.find_map(|layer| {
            let mut entries = layer.entries.iter();
            let (key, entry) = entries.find(|(key, entry)| is_among(key, keys) && is_set(entry))?;
            Some((if schema::is_of_source(key) { schema::MIX } else { *key }, origin_in(layer, entry)))
        })
    };
    let ((key, origin), (away, was)) = (first(taken, true)?, first(taken_back, false)?);
    matches!(origin, Origin::Set | Origin::Environment(_))
        .then(|| format!("`{key}` ({origin}) takes the place of `{away}` ({was})"))
}

struct Rules {
    layers: Layers,
    figment: Figment,
    /// What the layers give together: figment would merge them anew for each key.
    merged: Value,
    derived: Layer,
}

impl Rules {
    // ---- look-ups --------------------------------------------------------------------------

    /// The value of a key; none when no layer sets it, or its value in one of them is invalid.
    fn get(&self, key: &str) -> Option<Value> {
        if self.layers.faulty.contains(key) {
            return None;
        }
        self.derived
            .entries
            .get(key)
            .map(|entry| entry.value.clone())
            .or_else(|| self.merged.find_ref(key).cloned())
    }

    fn int(&self, key: &str) -> Option<u64> {
        self.get(key)?.to_u128().and_then(|n| u64::try_from(n).ok())
    }

    fn text(&self, key: &str) -> Option<String> {
        self.get(key)?.into_string()
    }

    fn boolean(&self, key: &str) -> Option<bool> {
        self.get(key)?.to_bool()
    }

    fn number(&self, key: &str) -> Option<f64> {
        let number = self.get(key)?.to_num()?;
        number.to_f64().or_else(|| number.to_u128().map(|whole| whole as f64))
    }

    fn list_is_empty(&self, key: &str) -> bool {
        self.get(key).is_none_or(|value| value.as_array().is_none_or(<[Value]>::is_empty))
    }

    /// The layer that a merged value came from, by figment's metadata, and its entry there.
    fn entry(&self, key: &str) -> Option<(&Layer, &PlacedValue)> {
        if let Some(entry) = self.derived.entries.get(key) {
            return Some((&self.derived, entry));
        }
        let metadata = self.figment.get_metadata(self.merged.find_ref(key)?.tag())?;
        let mut layers = self.layers.list.iter().rev().filter(|layer| layer.metadata() == *metadata);
        layers.find_map(|layer| layer.entries.get(key).map(|entry| (layer, entry)))
    }

    fn origin(&self, key: &str) -> Option<Origin> {
        self.entry(key).map(|(layer, entry)| origin_in(layer, entry))
    }

    /// Whether a missing key is missing indeed, and not hidden behind another fault.
    fn truly_missing(&self, keys: &[&str]) -> bool {
        keys.iter().all(|key| {
            let section = schema::section_of(key);
            !self.layers.faulty.contains(key) && !self.layers.misspelt.contains(section)
        })
    }

    // ---- reports ---------------------------------------------------------------------------

    fn derive(&mut self, key: &'static str, value: impl Into<Value>, why: impl Into<String>) {
        self.derived.put(key, value, why);
    }

    /// A fault between keys, placed at the strongest of them that is written in a text.
    fn clash(&self, message: String, keys: &[&str]) -> Fault {
        let mut strongest: Option<(&str, &Layer, &PlacedValue)> = None;
        for key in keys {
            if let Some((layer, entry)) = self.entry(key)
                && !matches!(layer.source, LayerSource::Defaults | LayerSource::Derived)
                && strongest.is_none_or(|(_, best, _)| layer.rank > best.rank)
            {
                strongest = Some((key, layer, entry));
            }
        }
        let mut fault = Fault::new(message);
        if let Some((_, layer, entry)) = strongest {
            fault = fault.at(layer.place(entry.span.clone()));
        }
        for key in keys.iter().filter(|key| strongest.is_none_or(|(at, ..)| at != **key)) {
            if let (Some(value), Some(origin)) = (self.get(key), self.origin(key)) {
                fault = fault.note(format!("`{key}` is {} ({origin})", write::figment_value(&value)));
            }
        }
        fault
    }

    fn refuse(&mut self, fault: Fault) {
        self.layers.faults.push(fault);
    }

    // ---- the rules -------------------------------------------------------------------------

    fn name(&mut self, stem: &str) {
        if self.get("name").is_some() || !self.truly_missing(&["name"]) {
            return;
        }
        let name = check::name_of_file(stem);
        match check::name_problem(&name) {
            None => self.derive("name", name.as_str(), "default: the file's name"),
            Some(problem) => {
                self.refuse(
                    Fault::new(format!("the file's name cannot name the run: {stem:?} {problem}"))
                        .hint("set `name`".to_string()),
                );
            }
        }
    }

    /// The step is a whole number of micro-batches for every worker.
    fn batch(&mut self) {
        let workers = self.int("parallel.workers");
        if let Some(workers) = workers
            && !workers.is_power_of_two()
        {
            let above = workers.next_power_of_two();
            let message = format!("`parallel.workers` = {workers} is not a power of two");
            let fault = self
                .clash(message, &["parallel.workers"])
                .label("gradients of workers are added in a balanced tree");
            self.refuse(fault.hint(format!("the nearest are {} and {above}", above / 2)));
            return;
        }
        let (Some(micro), Some(seq_len), Some(workers)) =
            (self.int("batch.micro"), self.int("batch.seq_len"), workers)
        else {
            return;
        };
        // At most 2^20 · 2^20 · 2^16, so no overflow.
        let unit = micro * seq_len * workers;
        if self.get("batch.tokens").is_none() && self.truly_missing(&["batch.tokens"]) {
            if unit > MANY {
                let message = format!(
                    "micro × seq_len × workers = {unit} tokens a step, but at most {} are allowed",
                    thousands(MANY)
                );
                let fault = self.clash(message, &["batch.micro", "batch.seq_len", "parallel.workers"]);
                self.refuse(fault.hint("lower one of them".to_string()));
                return;
            }
            self.derive("batch.tokens", unit, "from micro · seq_len · workers");
        }
        let Some(tokens) = self.int("batch.tokens") else { return };
        if tokens % unit != 0 {
            let below = tokens / unit * unit;
            let message =
                format!("`batch.tokens` = {tokens} is not a multiple of micro × seq_len × workers = {unit}");
            let fault =
                self.clash(message, &["batch.tokens", "batch.micro", "batch.seq_len", "parallel.workers"]);
            let hint = if below == 0 {
                format!("the smallest valid `batch.tokens` is {unit}")
            } else {
                format!("the nearest valid `batch.tokens` are {below} and {}", below + unit)
            };
            self.refuse(fault.hint(hint));
        } else if self.int("parallel.zero") == Some(2) && tokens != unit {
            let message = format!(
                "`parallel.zero` = 2 needs one micro-step a worker, and `batch.tokens` makes it {}",
                tokens / unit
            );
            let fault = self
                .clash(
                    message,
                    &["parallel.zero", "batch.tokens", "batch.micro", "batch.seq_len", "parallel.workers"],
                )
                .note(
                    "a worker adds its micro-batches up before anything is divided, so it holds its whole \
                     gradient until then",
                );
            // More workers would leave no smaller step to a warm-up.
            let warms_up = self.int("batch.tokens_warmup_steps").is_some_and(|steps| steps > 0);
            let fault = fault.hint(match warms_up {
                true => "set `parallel.zero` to 1: with 2 no batch warms up".to_string(),
                false => format!(
                    "set `parallel.zero` to 1; more workers would change the bits, `parallel.workers` = {} \
                     fits",
                    workers * (tokens / unit)
                ),
            });
            self.refuse(fault);
        } else {
            self.warmups(unit);
        }
    }

    /// Precision, device and fusion.
    fn numerics(&mut self) {
        let (Some(compute), Some(device)) = (self.text("precision.compute"), self.text("device.kind")) else {
            return;
        };
        if device == "cpu" && (compute == "bf16" || compute == "tf32") {
            let message = format!("the CPU computes in fp32, not in {compute}");
            let fault = self.clash(message, &["precision.compute", "device.kind"]);
            self.refuse(fault.hint("set `precision.compute` to \"fp32\" or \"auto\"".to_string()));
            return;
        }
        if device == "mirror" && (compute == "fp32" || compute == "tf32") {
            let message = format!("the mirror computes in bf16, as a Hopper GPU does, not in {compute}");
            let fault = self.clash(message, &["precision.compute", "device.kind"]);
            self.refuse(fault.hint("set `precision.compute` to \"bf16\" or \"auto\"".to_string()));
            return;
        }
        if let ("mirror", Some(fusion @ 1..)) = (device.as_str(), self.int("kernels.gelu_fusion")) {
            let message = format!(
                "`kernels.gelu_fusion` = {fusion} is cuBLASLt's own arithmetic, which the mirror lacks"
            );
            let fault = self.clash(message, &["kernels.gelu_fusion", "device.kind"]);
            self.refuse(fault.hint("set `kernels.gelu_fusion` to 0".to_string()));
            return;
        }
        self.audit(&device, &compute);
        let may_be_bf16 = compute == "bf16" || (compute == "auto" && device != "cpu");
        if self.boolean("precision.master_weights") == Some(false) && !may_be_bf16 {
            let fault = self.clash(
                "`precision.master_weights = false` needs bf16 weights: in fp32 there is nothing to round"
                    .to_string(),
                &["precision.master_weights", "precision.compute", "device.kind"],
            );
            self.refuse(fault);
        }
        if let (Some(fusion @ 1..), Some(recompute @ 1..)) =
            (self.int("kernels.gelu_fusion"), self.int("memory.recompute"))
            && may_be_bf16
        {
            let message = format!(
                "`kernels.gelu_fusion` = {fusion} and `memory.recompute` = {recompute} do not go together \
                 in bf16"
            );
            let fault = self
                .clash(message, &["kernels.gelu_fusion", "memory.recompute", "precision.compute"])
                .note(
                    "fused, GELU reads the fp32 sum of the matrix multiplication; computed again, it \
                     would read that sum rounded to bf16",
                )
                .note("`memory.recompute` promises to change no bit, and so could not keep its promise")
                .hint("set one of the two to 0".to_string());
            self.refuse(fault);
        }
    }

    fn run(&mut self) {
        if self.text("guards.on_diverge").as_deref() == Some("rewind")
            && self.int("checkpoint.every") == Some(0)
        {
            let message = "`guards.on_diverge = \"rewind\"` needs checkpoints to go back to".to_string();
            let fault = self.clash(message, &["guards.on_diverge", "checkpoint.every"]);
            self.refuse(fault.hint("set `checkpoint.every` above 0".to_string()));
        }
    }

    // ---- the end ---------------------------------------------------------------------------

    fn finish(mut self) -> Result<Resolved, Vec<Fault>> {
        if !self.layers.faults.is_empty() {
            return Err(self.layers.faults);
        }
        let (epochs, offset_follows) = (self.int("schedule.epochs"), self.offset_follows());
        let mut origins: BTreeMap<String, Origin> = BTreeMap::new();
        for key in schema::rows_with(self.sources().iter().map(String::as_str)) {
            if let Some(origin) = self.origin(key.name) {
                origins.insert(key.name.to_string(), origin);
            } else if key.default == schema::Default::Absent {
                origins.insert(key.name.to_string(), Origin::Default);
            }
        }
        origins.insert("model.vocab_padded".to_string(), Origin::Derived("from model.vocab".to_string()));
        if offset_follows {
            let origin = Origin::Derived("known when the data are open".to_string());
            origins.insert("data.offset".to_string(), origin);
        }
        let padded = self.int("model.vocab").unwrap_or(0).next_multiple_of(VOCAB_ALIGN);
        self.derive("model.vocab_padded", padded, "from model.vocab");
        match self.figment.merge(&self.derived).extract::<Experiment>() {
            Ok(experiment) => {
                Ok(Resolved { experiment, origins, epochs, offset_follows, remarks: self.layers.remarks })
            }
            // Every value was checked against the table, so this is a gap in the table.
            Err(error) => Err(error.into_iter().map(|error| Fault::new(error.to_string())).collect()),
        }
    }
}

/// Keys that are a section's alternatives, for the resolved file: these are written as comments.
pub(super) fn given_by_descriptor() -> BTreeSet<&'static str> {
    EXCLUSIVE[0].1.iter().copied().collect()
}
