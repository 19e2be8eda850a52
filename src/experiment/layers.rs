//! The layers of an experiment, each a figment provider that knows where its values are written.
//!
//! Weakest first: the defaults, the files from the base of the `extends` chain to the one named on the
//! command line, `RUNNER_…` variables, `--set`. Every layer is a figment [`Provider`], figment merges
//! them, and its metadata say which layer a merged value came from. Files are parsed here, with
//! `toml`'s spans, and not by figment's own provider, which keeps no positions and takes a missing
//! file for an empty one. Values are checked as they are read, also those that a stronger layer replaces.
//!
//! This module reads only files: the environment is passed in.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use figment::value::{Dict, Map, Value};
use figment::{Metadata, Profile, Provider};
use toml::de::{DeTable, DeValue};

use super::check::{self, Refusal};
use super::diagnostics::{Fault, Snippet, SourceFile, in_lines};
use super::schema::{self, KEYS, KeyRow, ValueKind};
use super::shipped::ShippedExperiment;
use super::sweep_declaration::{Declaration, SweepReader};

mod files;
mod tables;
mod variables;

use files::{folder_of, identity, read_base, read_file};
use tables::{is_table, put_nested, source_name_fault, table_fault, table_hint};
use variables::{PREFIX, misspelt, sounds_like, table_of};
pub(super) use variables::{is_setting, key_of, says_where};

/// Where a layer came from.
#[derive(Clone, Debug)]
pub(super) enum LayerSource {
    Defaults,
    /// Follows from other keys.
    Derived,
    File(Rc<SourceFile>),
    Variable {
        name: String,
        text: String,
    },
    Set {
        argument: String,
    },
}

/// A checked value and its place in its layer's text.
#[derive(Clone, Debug)]
pub(super) struct PlacedValue {
    pub value: Value,
    /// Bytes of the key and of the value.
    pub key_span: Range<usize>,
    pub span: Range<usize>,
    /// For defaults and derived values: a word on the reason.
    pub why: String,
}

/// One layer: some checked values from one source.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub source: LayerSource,
    /// Precedence. All variables share one rank, and so do all `--set`: neither outranks its own kind.
    pub rank: usize,
    /// The position of its faults in the report.
    pub order: usize,
    pub entries: BTreeMap<&'static str, PlacedValue>,
}

impl Layer {
    pub fn new(source: LayerSource, rank: usize, order: usize) -> Layer {
        Layer { source, rank, order, entries: BTreeMap::new() }
    }

    /// Adds a value without a place in a text.
    pub fn put(&mut self, key: &'static str, value: impl Into<Value>, why: impl Into<String>) {
        self.entries
            .insert(key, PlacedValue { value: value.into(), key_span: 0..0, span: 0..0, why: why.into() });
    }

    /// The place of a span of this layer's text, and the position of a fault there in the report.
    pub fn place(&self, span: Range<usize>) -> (Option<Snippet>, (usize, usize)) {
        let order = (self.order, span.start);
        let snippet = match &self.source {
            LayerSource::Defaults | LayerSource::Derived => None,
            LayerSource::File(file) => Some(file.snippet(span)),
            LayerSource::Variable { name, text } => Some(quoted("environment", text, name, &span)),
            LayerSource::Set { argument } => Some(quoted("--set", argument, "", &span)),
        };
        (snippet, order)
    }
}

/// A one-line source; for a variable its name is put before its text.
fn quoted(source: &str, text: &str, name: &str, span: &Range<usize>) -> Snippet {
    let lead = if name.is_empty() { String::new() } else { format!("{name}=") };
    let chars =
        |bytes: usize| String::from_utf8_lossy(&text.as_bytes()[..bytes.min(text.len())]).chars().count();
    let at = lead.chars().count();
    // A span that cannot lie in the text denotes the name: see `read_environment`.
    let mark = if *span == NAME_SPAN {
        0..at.saturating_sub(1).max(1)
    } else {
        at + chars(span.start)..(at + chars(span.end)).max(at + chars(span.start) + 1)
    };
    Snippet { source: source.to_string(), position: None, text: format!("{lead}{text}"), mark }
}

/// The span of a variable's name, which is not part of its text.
const NAME_SPAN: Range<usize> = usize::MAX..usize::MAX;

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        match &self.source {
            LayerSource::Defaults => Metadata::named("default"),
            LayerSource::Derived => Metadata::named("derived"),
            LayerSource::File(file) => Metadata::from("file", Path::new(&file.shown)),
            LayerSource::Variable { name, .. } => Metadata::from("environment", name.as_str()),
            LayerSource::Set { argument } => Metadata::from("--set", argument.as_str()),
        }
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let mut root = Dict::new();
        for (key, entry) in &self.entries {
            put_nested(&mut root, key, &entry.value);
        }
        Ok(Profile::Default.collect(root))
    }
}

/// All layers as read, weakest first, and what is wrong with them.
#[derive(Clone, Debug, Default)]
pub(super) struct Layers {
    pub list: Vec<Layer>,
    pub faults: Vec<Fault>,
    /// Keys with a refused value somewhere: rules that need them would only add noise.
    pub faulty: BTreeSet<&'static str>,
    /// Sections with an unknown key: a key missed there is probably that one.
    pub misspelt: BTreeSet<String>,
    /// A file could not be parsed, so what it sets is not known.
    pub unreadable: bool,
    /// What the command line or the environment says in place of a weaker layer's alternative.
    pub remarks: Vec<String>,
    /// The experiment is the program's own, and so is what it extends.
    pub shipped: bool,
    /// `[sweep]` of the file itself.
    pub sweep: Option<Declaration>,
}

/// The experiment's own text.
pub(super) enum ExperimentText<'a> {
    /// A file, read here.
    Path(&'a Path),
    /// Bytes with a name for messages; relative paths in them start from the working directory.
    Text { name: &'a str, bytes: &'a [u8] },
    /// One of the program's own; relative paths start from the folder `experiments` of the working directory.
    Shipped(&'a ShippedExperiment),
}

/// Reads every layer. Never fails: what is wrong is in `faults`.
pub(super) fn read(
    input: &ExperimentText<'_>,
    variables: &[(OsString, OsString)],
    sets: &[String],
) -> Layers {
    let mut layers = Layers::default();
    let mut files = Vec::new();
    match input {
        ExperimentText::Path(path) => match read_file(path) {
            Ok(bytes) => layers.read_chain(
                path.display().to_string(),
                bytes,
                folder_of(path),
                vec![identity(path)],
                &mut files,
            ),
            Err(error) => {
                layers.unreadable = true;
                layers.faults.push(Fault::new(format!("cannot read `{}`: {error}", path.display())));
            }
        },
        ExperimentText::Text { name, bytes } => layers.read_chain(
            (*name).to_string(),
            bytes.to_vec(),
            folder_of(Path::new("x")),
            Vec::new(),
            &mut files,
        ),
        ExperimentText::Shipped(shipped) => {
            layers.shipped = true;
            let path = super::shipped_path(shipped);
            let shown = path.display().to_string();
            layers.read_chain(
                shown,
                shipped.text.into(),
                folder_of(&path),
                vec![identity(&path)],
                &mut files,
            );
        }
    }
    let count = files.len();
    files.reverse();
    for (depth, layer) in files.iter_mut().enumerate() {
        layer.rank = depth + 1;
    }
    layers.list.push(defaults());
    layers.list.extend(files);
    layers.read_environment(variables, count + 1);
    layers.read_sets(sets, count + 2);
    layers
}

fn defaults() -> Layer {
    let mut layer = Layer::new(LayerSource::Defaults, 0, usize::MAX);
    for key in KEYS {
        match key.default {
            schema::Default::Integer(n) => layer.put(key.name, n, ""),
            schema::Default::Number(x) => layer.put(key.name, x, ""),
            schema::Default::Boolean(b) => layer.put(key.name, b, ""),
            schema::Default::Text(text) => layer.put(key.name, text, ""),
            schema::Default::Absent | schema::Default::Ruled => {}
        }
    }
    layer
}

impl Layers {
    /// Reads one file and then the one it extends, into `files`, strongest first.
    fn read_chain(
        &mut self,
        shown: String,
        bytes: Vec<u8>,
        folder: PathBuf,
        seen: Vec<PathBuf>,
        files: &mut Vec<Layer>,
    ) {
        let order = files.len();
        let (text, broken_at) = match String::from_utf8(bytes) {
            Ok(text) => (text, None),
            Err(error) => (
                String::from_utf8_lossy(error.as_bytes()).into_owned(),
                Some(error.utf8_error().valid_up_to()),
            ),
        };
        let file = Rc::new(SourceFile { shown: shown.clone(), text });
        let mut layer = Layer::new(LayerSource::File(file.clone()), 0, order);
        if let Some(at) = broken_at {
            self.unreadable = true;
            self.faults.push(
                Fault::new("the file is not UTF-8 text")
                    .at(layer.place(at..at))
                    .label("first byte that is not"),
            );
            return;
        }
        let (table, errors) = DeTable::parse_recoverable(&file.text);
        if !errors.is_empty() {
            self.unreadable = true;
            for error in errors {
                let span = error.span().unwrap_or(0..0);
                self.faults.push(Fault::new(format!("not TOML: {}", error.message())).at(layer.place(span)));
            }
            return;
        }
        let base = self.read_table(table.get_ref(), "", &folder, &mut layer);
        files.push(layer);
        let Some((base, span)) = base else { return };
        let place = files[order].place(span);
        let path = folder.join(&base);
        let path_shown = Path::new(&shown).parent().unwrap_or(Path::new("")).join(&base);
        let id = identity(&path);
        if seen.contains(&id) {
            self.unreadable = true;
            let chain: Vec<String> = files
                .iter()
                .filter_map(|layer| {
                    if let LayerSource::File(f) = &layer.source { Some(f.shown.clone()) } else { None }
                })
                .collect();
            self.faults.push(
                Fault::new("files extend one another in a circle")
                    .at(place)
                    .label("back to a file already read")
                    .note(format!("{} → {}", chain.join(" → "), path_shown.display())),
            );
            return;
        }
        let shipped = ShippedExperiment::of_file(&base).filter(|_| self.shipped);
        match shipped.map_or_else(|| read_base(&path), |base| Ok(base.text.into())) {
            Ok(bytes) => {
                let seen = seen.into_iter().chain([id]).collect();
                self.read_chain(path_shown.display().to_string(), bytes, folder_of(&path), seen, files);
            }
            Err(error) => {
                self.unreadable = true;
                let hint = check::not_expanded(&base)
                    .unwrap_or("the path starts from the folder of the file that extends it");
                self.faults.push(
                    Fault::new(format!("cannot read `{}`: {error}", path_shown.display()))
                        .at(place)
                        .hint(hint.to_string()),
                );
            }
        }
    }

    /// Reads one table of a file into `layer`; returns the value of `extends`, which only the top has.
    fn read_table(
        &mut self,
        table: &DeTable<'_>,
        section: &str,
        folder: &Path,
        layer: &mut Layer,
    ) -> Option<(String, Range<usize>)> {
        let mut extends = None;
        for (key, value) in table {
            let (word, key_span) = (key.get_ref().as_ref(), key.span());
            let dotted = if section.is_empty() { word.to_string() } else { format!("{section}.{word}") };
            // A quoted key may contain dots; such a key is unknown.
            let known = if word.contains('.') { None } else { schema::key(&dotted) };
            if let Some(key) = known {
                self.read_value(key, value.get_ref(), folder, key_span, value.span(), layer);
            } else if section.is_empty() && word == "extends" {
                match value.get_ref().as_str() {
                    Some(base) if !base.is_empty() => extends = Some((base.to_string(), value.span())),
                    _ => {
                        self.unreadable = true;
                        let fault = Fault::new("`extends` must be the path of a file");
                        self.faults.push(fault.at(layer.place(value.span())));
                    }
                }
            } else if section.is_empty() && word == "sweep" {
                self.read_sweep(value, key_span, folder, layer);
            } else if section == schema::MIX && schema::source_name_problem(word).is_some() {
                self.misspelt.insert(schema::MIX.to_string());
                self.faults.push(source_name_fault(word, layer.place(key_span)));
            } else if is_table(section, word) {
                match value.get_ref() {
                    DeValue::Table(inner) => {
                        self.read_table(inner, &dotted, folder, layer);
                    }
                    other => {
                        let label = format!("expected keys under `[{dotted}]`");
                        self.faults.push(
                            Fault::new(format!("`{dotted}` is a section, not {}", other.type_str()))
                                .at(layer.place(value.span()))
                                .label(label)
                                .hint(table_hint(&dotted, str::to_string)),
                        );
                        self.misspelt.extend([section.to_string(), dotted]);
                    }
                }
            } else {
                self.unknown(&dotted, section, layer.place(key_span), |key| key.to_string());
            }
        }
        extends
    }

    /// `[sweep]`, which only the file itself may hold, and none that it extends.
    fn read_sweep(
        &mut self,
        raw: &toml::Spanned<DeValue<'_>>,
        span: Range<usize>,
        folder: &Path,
        layer: &Layer,
    ) {
        if layer.order == 0 {
            self.sweep = Some(SweepReader { layers: self, layer, folder }.read(raw, span));
        } else {
            let fault = Fault::new("a sweep cannot be extended").at(layer.place(span));
            let hint = "move `[sweep]` into the file that is run, and what both need into a third file";
            self.faults.push(fault.hint(hint.to_string()));
        }
    }

    fn read_value(
        &mut self,
        key: &'static KeyRow,
        raw: &DeValue<'_>,
        folder: &Path,
        key_span: Range<usize>,
        span: Range<usize>,
        layer: &mut Layer,
    ) {
        match check::value(key, raw, folder) {
            Ok(value) => {
                layer.entries.insert(key.name, PlacedValue { value, key_span, span, why: String::new() });
            }
            Err(Refusal { message, label, hint }) => {
                self.faulty.insert(key.name);
                let fault = Fault::new(message).hint(hint);
                let at = |fault: Fault| fault.at(layer.place(span)).label(&label);
                self.faults.push(if label.is_empty() { fault } else { at(fault) });
            }
        }
    }

    /// Reports an unknown key; `spelt` writes a known one the way this source writes keys.
    pub fn unknown(
        &mut self,
        dotted: &str,
        section: &str,
        place: (Option<Snippet>, (usize, usize)),
        spelt: impl Fn(&str) -> String,
    ) {
        self.misspelt.insert(section.to_string());
        if let Some((schema::MIX, name)) = section.rsplit_once('.')
            && schema::source_name_problem(name).is_some()
        {
            self.misspelt.insert(schema::MIX.to_string());
            self.faults.push(source_name_fault(name, place));
            return;
        }
        if let Some(fault) = table_fault(dotted, section, &place, &spelt) {
            self.faults.push(fault);
            return;
        }
        let siblings: Vec<&str> = schema::rows_of(section).map(KeyRow::leaf).collect();
        let (near_section, near) = schema::neighbour(dotted, section);
        let hint = match (near_section, near) {
            (Some(near), _) => Some(format!("did you mean the section `{}`?", spelt(near))),
            (None, Some(near)) => Some(format!("did you mean `{}`?", spelt(&near))),
            (None, None) => None,
        };
        let label = match section {
            "" => String::new(),
            _ if siblings.is_empty() => String::new(),
            _ => format!("`{section}` has {}", siblings.join(", ")),
        };
        let mut fault = Fault::new(format!("unknown key `{dotted}`")).at(place).hint(hint);
        if label.chars().count() <= 60 {
            fault = fault.label(label);
        } else {
            let mut lines = in_lines(&siblings).into_iter();
            let first = lines.next().unwrap_or_default();
            fault = fault.label("not a key").note(format!("`{section}` has {first}"));
            fault = lines.fold(fault, Fault::note);
        }
        self.faults.push(fault);
    }

    /// `RUNNER_SCHEDULE__STEPS=100`: two underscores go one level down.
    ///
    /// Only names with two underscores, and `RUNNER_SEED`, set keys. CI services use the same prefix
    /// for variables of their own (`RUNNER_NAME`, `RUNNER_OS`, `RUNNER_TEMP`), which must not name a run.
    /// `RUNNER_SCHEDULE_STEPS` and `RUNNER_SCHEDULE`, which can only be mistakes, are refused.
    fn read_environment(&mut self, variables: &[(OsString, OsString)], order: usize) {
        let mut ours: Vec<(String, String)> = Vec::new();
        for (name, text) in variables {
            let name = name.to_string_lossy();
            if is_setting(&name) && text.to_str().is_none() {
                self.faults.push(Fault::new(format!("the value of `{name}` is not UTF-8")));
            } else if name.starts_with(PREFIX) {
                ours.push((name.into_owned(), text.to_string_lossy().into_owned()));
            }
        }
        ours.sort();
        let mut set: BTreeMap<String, (String, String)> = BTreeMap::new();
        for (name, text) in ours {
            let word = name[PREFIX.len()..].to_ascii_lowercase();
            let dotted = word.replace("__", ".");
            let mut layer = Layer::new(
                LayerSource::Variable { name: name.clone(), text: text.clone() },
                usize::MAX - 2,
                order,
            );
            let as_variable = |key: &str| format!("{PREFIX}{}", key.replace('.', "__").to_ascii_uppercase());
            if is_setting(&name) {
                if let Some((other, theirs)) = set.insert(dotted.clone(), (name.clone(), text.clone()))
                    && theirs != text
                {
                    let fault = Fault::new(format!("`{other}` and `{name}` both set `{dotted}`"));
                    let fault = fault.at(layer.place(NAME_SPAN)).note(format!("`{other}` is {theirs:?}"));
                    self.faults.push(fault.hint("unset one of the two".to_string()));
                }
                let section = dotted.rsplit_once('.').map_or("", |(section, _)| section).to_string();
                match schema::key(&dotted) {
                    Some(key) => self.read_bare(key, &text, 0, NAME_SPAN, &mut layer),
                    None => self.unknown(&dotted, &section, layer.place(NAME_SPAN), as_variable),
                }
            } else if let Some(key) =
                KEYS.iter().find(|key| key.name.contains('.') && sounds_like(key, &word))
            {
                self.faults.push(
                    Fault::new(format!("`{name}` sets nothing"))
                        .at(layer.place(NAME_SPAN))
                        .label("a section and two underscores stand before the key")
                        .hint(format!("did you mean `{}`?", as_variable(key.name))),
                );
            } else if let Some(table) = table_of(&word) {
                let hint = match is_table("", table) {
                    true => table_hint(table, as_variable),
                    false => format!("`{table}` belongs in a file"),
                };
                let fault = Fault::new(format!("`{name}` sets nothing")).at(layer.place(NAME_SPAN));
                self.faults.push(fault.label("takes no value from the environment").hint(hint));
            } else if let Some(meant) = misspelt(&name) {
                self.faults.push(
                    Fault::new(format!("`{name}` does nothing"))
                        .at(layer.place(NAME_SPAN))
                        .label("no variable of this program")
                        .hint(format!("did you mean `{meant}`?")),
                );
            }
            self.list.push(layer);
        }
    }

    /// `--set schedule.steps=100`, each key once.
    fn read_sets(&mut self, sets: &[String], order: usize) {
        let mut given: BTreeMap<&'static str, &str> = BTreeMap::new();
        for (at, argument) in sets.iter().enumerate() {
            let mut layer =
                Layer::new(LayerSource::Set { argument: argument.clone() }, usize::MAX - 1, order + at);
            let Some((written, text)) = argument.split_once('=') else {
                self.faults.push(
                    Fault::new("`--set` takes `key=value`")
                        .at(layer.place(0..argument.len()))
                        .label("no `=` here"),
                );
                continue;
            };
            let dotted = written.trim();
            let lead = written.len() - written.trim_start().len();
            let key_span = lead..lead + dotted.len();
            if dotted == "extends" {
                self.faults.push(Fault::new("`extends` belongs in a file").at(layer.place(key_span)));
                continue;
            }
            match schema::key(dotted) {
                Some(key) => {
                    if let Some(before) = given.insert(key.name, text) {
                        let message = format!("`--set` gives `{}` twice: {before:?} and {text:?}", key.name);
                        let fault = Fault::new(message).at(layer.place(key_span.clone()));
                        self.faults.push(fault.hint("leave one of the two out".to_string()));
                    }
                    self.read_bare(key, text, written.len() + 1, key_span, &mut layer);
                }
                None => {
                    let section = dotted.rsplit_once('.').map_or("", |(section, _)| section).to_string();
                    self.unknown(dotted, &section, layer.place(key_span), |key| key.to_string());
                }
            }
            self.list.push(layer);
        }
    }

    /// A value outside a file: TOML where it parses, else the bare text as a string. Keys that take
    /// text get the bare text also when it looks like a number. No text at all turns a key off that may be
    /// left out. `at` is the text's place in its source.
    fn read_bare(
        &mut self,
        key: &'static KeyRow,
        text: &str,
        at: usize,
        key_span: Range<usize>,
        layer: &mut Layer,
    ) {
        let trimmed = text.trim();
        if trimmed.is_empty() && key.default == schema::Default::Absent {
            // `--set eval.hellaswag=` clears the value of weaker layers.
            self.list.iter_mut().for_each(|weaker| drop(weaker.entries.remove(key.name)));
            return;
        }
        let folder = folder_of(Path::new("x"));
        let start = at + (text.len() - text.trim_start().len());
        let span = start..start + trimmed.len();
        // A text that may be empty, such as a prompt, keeps its spaces.
        let is_free = matches!((key.kind, key.default), (ValueKind::Text, schema::Default::Text(_)));
        let bare = DeValue::String(if is_free { text } else { trimmed }.into());
        let parsed = DeValue::parse(trimmed).ok().map(toml::Spanned::into_inner);
        let is_text =
            !matches!(key.kind, ValueKind::Integer { .. } | ValueKind::Number { .. } | ValueKind::Boolean);
        let raw = match parsed {
            Some(value @ (DeValue::String(_) | DeValue::Array(_))) => value,
            Some(value) if !is_text => value,
            _ => bare,
        };
        self.read_value(key, &raw, &folder, key_span, span, layer);
    }
}
