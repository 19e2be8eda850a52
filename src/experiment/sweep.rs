//! A sweep: many experiments that one file declares, expanded into a list of members.
//!
//! The list is a pure function of the file, the environment and `--set`. Each member is an experiment of its
//! own, resolved with its settings as a layer between the file and the environment.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Loaded;
use super::diagnostics::{ExperimentError, Fault};
use super::init_models::checkpoint_name;
use super::layers::{Layer, LayerSource, Layers, PlacedValue};
use super::origin::Origin;
use super::rules::FROM_INIT;
use super::sweep_declaration::{Declaration, MOST, SweptAxis, SweptKey};
use super::write;
use crate::units::counted;

/// Swept keys in the order of the file, each with its value as TOML.
pub type MemberSettings = Vec<(String, String)>;

/// What a file declares.
#[derive(Debug)]
pub enum Declared {
    Experiment(Box<Loaded>),
    Sweep(Sweep),
}

/// Many experiments that differ in a few keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Sweep {
    /// Names the folder: the name that all members share.
    pub name: String,
    /// The file that declares it, as it was named.
    pub path: PathBuf,
    /// In the order of their numbers; never empty.
    pub members: Vec<Member>,
}

/// One experiment of a sweep.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// From 1.
    pub number: usize,
    pub settings: MemberSettings,
    pub loaded: Loaded,
}

/// `schedule.learning_rate = 0.0003, seed = 0`.
pub fn settings_text(settings: &[(String, String)]) -> String {
    let text = |(key, value): &(String, String)| format!("{key} = {}", setting_text(value));
    settings.iter().map(text).collect::<Vec<_>>().join(", ")
}

/// A setting's value as people know it: a checkpoint by its run and step.
pub fn setting_text(value: &str) -> String {
    let path = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
    path.and_then(checkpoint_name).unwrap_or_else(|| value.to_owned())
}

/// Settings as a JSON object: numbers and truth values as such.
pub fn settings_json(settings: &[(String, String)]) -> serde_json::Value {
    // What this program writes as TOML is JSON too.
    let value = |text: &str| serde_json::from_str(text).unwrap_or_else(|_| serde_json::Value::from(text));
    settings.iter().map(|(key, text)| (key.clone(), value(text))).collect()
}

impl Sweep {
    /// The resolved sweep as TOML: the keys that all members share with their origins, and the members'
    /// settings as lists. Itself a sweep, which loads back with equal members.
    pub fn to_toml(&self) -> String {
        write::sweep_to_toml(self)
    }

    /// `{"name": …, "members": [{"number": …, "settings": {…}, "experiment": …, "origins": …}, …]}`.
    pub fn to_json(&self) -> serde_json::Value {
        let member = |Member { number, settings, loaded }: &Member| {
            let mut member = loaded.to_json();
            member["number"] = (*number).into();
            member["settings"] = settings_json(settings);
            member
        };
        let members: Vec<_> = self.members.iter().map(member).collect();
        serde_json::json!({ "name": self.name, "members": members })
    }

    /// The first member that is another experiment or has other settings in `other`; where all are equal but
    /// one sweep has more, the first that is missing.
    pub fn first_difference(&self, other: &Sweep) -> Option<usize> {
        let same = |(a, b): &(&Member, &Member)| {
            a.settings == b.settings
                && a.loaded.experiment == b.loaded.experiment
                && a.loaded.epochs == b.loaded.epochs
                && a.loaded.offset_follows == b.loaded.offset_follows
        };
        let shared = self.members.iter().zip(&other.members).take_while(same).count();
        (shared < self.members.len().max(other.members.len())).then_some(shared + 1)
    }

    /// Refuses a sweep whose resolved form, read without its models, is another.
    ///
    /// # Errors
    ///
    /// The resolved form has errors, or other members.
    pub fn require_recordable(&self) -> Result<(), ExperimentError> {
        let name = self.path.display().to_string();
        let again = super::load_resolved_sweep(&name, &self.to_toml())?;
        match self.first_difference(&again) {
            None => Ok(()),
            Some(number) => {
                let message = format!("member {number} of the sweep is another in its resolved form");
                let hint = "give every key that differs between members under `[sweep]`".to_string();
                Err(ExperimentError::new(&name, vec![Fault::new(message).hint(hint)]))
            }
        }
    }

    /// The error of a place that takes one experiment.
    pub(super) fn not_an_experiment(&self) -> ExperimentError {
        let runs = counted(self.members.len() as u64, "run");
        let fault = Fault::new(format!("this file declares a sweep of {runs}")).hint(
            "one experiment is wanted here; `config`, `plan` and `run` take a sweep, and its runs are \
             `NAME/001` and on"
                .to_string(),
        );
        ExperimentError::new(&self.path.display().to_string(), vec![fault])
    }

    /// Takes the origins that stand as comments in a file that [`Sweep::to_toml`] wrote.
    pub(super) fn with_recorded_origins(mut self) -> Sweep {
        let text = std::fs::read_to_string(&self.path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let head = lines.first().and_then(|line| line.strip_prefix("# ")?.split_once(", resolved: "));
        for member in &mut self.members {
            for origin in member.loaded.origins.values_mut() {
                let Origin::File { line, .. } = origin else { continue };
                let recorded = lines.get(*line - 1).and_then(|line| line.rsplit_once(" # "));
                if let Some((_, was)) = recorded {
                    *origin = Origin::Derived(was.to_owned());
                }
            }
            if let Some((name, _)) = head {
                member.loaded.path = name.into();
            }
        }
        if let Some((name, _)) = head {
            self.path = name.into();
        }
        self
    }
}

/// Resolves the experiment of every member with `resolve`.
pub(super) fn expand(
    layers: Layers,
    declaration: &Declaration,
    path: &Path,
    resolve: &dyn Fn(Layers) -> Result<Loaded, Vec<Fault>>,
) -> Result<Sweep, Vec<Fault>> {
    let Some(at) = layers.list.iter().rposition(|layer| matches!(layer.source, LayerSource::File(_))) else {
        return Err(layers.faults);
    };
    let expansion = Expansion { file: layers.list[at].clone(), at, axes: &declaration.axes, layers };
    let place = || expansion.file.place(declaration.span.clone());
    if !expansion.layers.faults.is_empty() {
        // Mistakes of the file itself, and the rules that they allow to look at.
        return Err(resolve(expansion.layers_of(0)).err().unwrap_or(expansion.layers.faults));
    }
    let count = declaration.axes.iter().try_fold(1u64, |n, axis| n.checked_mul(axis.rows.len() as u64));
    let count = match count {
        Some(count) if count <= MOST => count as usize,
        _ => {
            let fault = Fault::new(format!("the sweep has more than {MOST} members")).at(place());
            return Err(vec![fault.hint("leave out values, or draw some with `[sweep.random]`".to_string())]);
        }
    };
    let overridden = expansion.overridden();
    if !overridden.is_empty() {
        return Err(overridden);
    }
    let mut faults: Vec<Fault> = Vec::new();
    let mut members = Vec::new();
    let mut numbers: BTreeMap<MemberSettings, usize> = BTreeMap::new();
    for index in 0..count {
        let (number, mut settings) = (index + 1, expansion.settings(index));
        let resolved = resolve(expansion.layers_of(index));
        if let Ok(loaded) = &resolved {
            settings.iter_mut().for_each(|setting| pin_init(setting, loaded));
        }
        if let Some(first) = numbers.insert(settings.clone(), number) {
            let message = format!("members {first} and {number} of the sweep are the same");
            let fault = Fault::new(message).at(place()).note(settings_text(&settings));
            let hint = "leave one out; a drawn sweep takes fewer `samples`, or another `seed` of its own";
            return Err(vec![fault.hint(hint.to_string())]);
        }
        match resolved {
            Ok(loaded) => members.push(Member { number, settings, loaded }),
            Err(found) => {
                for fault in found {
                    let same = |had: &Fault| had.message == fault.message && had.place == fault.place;
                    if !faults.iter().any(same) {
                        faults.push(fault.note(format!("in member {number}: {}", settings_text(&settings))));
                    }
                }
            }
        }
    }
    pin_sizes(&mut members);
    let name = members.first().map(|member| member.loaded.experiment.name.clone());
    match name {
        Some(name) if faults.is_empty() => Ok(Sweep { name, path: path.to_owned(), members }),
        _ => Err(faults),
    }
}

/// Gives `model.init` the value that it was resolved to: what is recorded of a sweep names the same models
/// when its runs have gone on, and wherever it is read.
fn pin_init((key, value): &mut (String, String), loaded: &Loaded) {
    if let ("model.init", Some(init)) = (key.as_str(), &loaded.experiment.model.init) {
        *value = write::quoted(init);
    }
}

/// Makes sizes that are those of the models of `model.init`, and differ, settings of the members: a recorded
/// sweep is read without its models.
fn pin_sizes(members: &mut [Member]) {
    let of_init = Origin::Derived(FROM_INIT.to_owned());
    let is_of_init = |member: &Member, key: &String| member.loaded.origins.get(key) == Some(&of_init);
    let keys: Vec<String> = members.first().map_or(Vec::new(), |first| {
        first.loaded.origins.keys().filter(|key| is_of_init(first, key)).cloned().collect()
    });
    for key in keys {
        let size = |member: &Member| write::flatten(&member.loaded.experiment)[&key].to_string();
        let sizes: Vec<String> = members.iter().map(size).collect();
        if sizes.iter().any(|size| *size != sizes[0]) && members.iter().all(|member| is_of_init(member, &key))
        {
            let settings = members.iter_mut().map(|member| &mut member.settings);
            settings.zip(sizes).for_each(|(settings, size)| settings.push((key.clone(), size)));
        }
    }
}

/// The layers of a sweep, from which those of each member are made.
struct Expansion<'a> {
    /// The file that declares the sweep, and its position among the layers.
    file: Layer,
    at: usize,
    axes: &'a [SweptAxis],
    layers: Layers,
}

impl Expansion<'_> {
    /// The keys of a member with their values, in the order of the file.
    fn values(&self, index: usize) -> Vec<(&SweptKey, &PlacedValue)> {
        let mut rest = index;
        let mut rows = Vec::new();
        for axis in self.axes.iter().rev() {
            rows.push((axis, rest % axis.rows.len().max(1)));
            rest /= axis.rows.len().max(1);
        }
        rows.reverse();
        rows.into_iter()
            .flat_map(|(axis, row)| axis.keys.iter().zip(axis.rows.get(row).into_iter().flatten()))
            .collect()
    }

    fn settings(&self, index: usize) -> MemberSettings {
        let setting = |(swept, placed): (&SweptKey, &PlacedValue)| {
            (swept.key.name.to_owned(), write::figment_value(&placed.value))
        };
        self.values(index).into_iter().map(setting).collect()
    }

    /// All layers with a member's settings right above the file.
    fn layers_of(&self, index: usize) -> Layers {
        let mut member = Layer::new(self.file.source.clone(), self.file.rank + 1, self.file.order);
        for (swept, placed) in self.values(index) {
            member.entries.insert(swept.key.name, placed.clone());
        }
        let mut layers = self.layers.clone();
        layers.list.insert(self.at + 1, member);
        layers
    }

    /// Swept keys that `--set` or the environment sets too.
    fn overridden(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        for layer in &self.layers.list[self.at + 1..] {
            for swept in self.axes.iter().flat_map(|axis| &axis.keys) {
                let name = swept.key.name;
                let (by, span) = match (&layer.source, layer.entries.get(name)) {
                    (LayerSource::Variable { name, .. }, Some(entry)) => {
                        (name.as_str(), entry.key_span.clone())
                    }
                    // `--set eval.hellaswag=` has no entry.
                    (LayerSource::Set { argument }, _) if key_of(argument) == name => {
                        ("--set", 0..name.len())
                    }
                    _ => continue,
                };
                let fault =
                    Fault::new(format!("`{name}` is swept, and {by} sets it too")).at(layer.place(span));
                faults.push(fault.hint(format!("leave it out, or take `{name}` out of the sweep")));
            }
        }
        faults
    }
}

/// The key of a `--set`.
fn key_of(argument: &str) -> &str {
    argument.split_once('=').map_or(argument, |(key, _)| key).trim()
}
