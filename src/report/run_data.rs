//! A run for the plots: its rows, and the facts about its model that a fair comparison needs.

use std::path::{Path, PathBuf};

use super::{ReportError, groups, summary};
use crate::experiment::{self, BatchKeys, Experiment, Model, Sizes};
use crate::model::flops::{attention_flops, flops_per_token};
use crate::model::weights::Weights;
use crate::proof::ledger::{self, Log, RESUME};
use crate::proof::lock::differences;
use crate::proof::{Entry, LedgerError, Lock};
use crate::store::main_log::{self, MAIN_LOG};
use crate::store::metrics::{self, JSONL, MetricsRow, PARQUET};
use crate::store::run_folder::is_place;
use crate::store::{self, Manifest, RunPaths, SweepPaths, checkpoint, derived, run_folder, run_names};

/// One run, loaded.
#[derive(Clone, Debug)]
pub struct RunData {
    /// As shown in the legend.
    pub name: String,
    /// Steps ascending.
    pub rows: Vec<MetricsRow>,
    /// False for a `main.log`, which does not have tokens.
    pub has_tokens: bool,
    /// What the model is, where that is known.
    pub model: Option<ModelFacts>,
    /// The run folder; `None` for a lone log file.
    pub folder: Option<PathBuf>,
    /// Where the rows disagree with the run's ledger; `None` if they agree.
    pub unverified: Option<String>,
    /// Why its training failed; `None` where it did not, and while it runs.
    pub failed: Option<String>,
}

/// The facts that decide with which published numbers a run may be compared.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelFacts {
    /// GPT-2, or what its blocks have that GPT-2's have not.
    pub kind: String,
    /// As written in the experiment: `d12`.
    pub descriptor: Option<String>,
    pub layers: usize,
    pub channels: usize,
    /// GPT-2's tokens: a loss in nats a token is comparable only between equal tokenizers.
    pub gpt2_tokens: bool,
    /// Trained on embedded text, not on shards.
    pub embedded_corpus: bool,
    /// Validates on FineWeb, by the name of its shards: losses of other text are not comparable.
    pub fineweb: bool,
    /// Parameters, padded rows of the vocabulary included, and floating-point operations a token: where the
    /// sizes that they follow from are known.
    pub parameters: Option<u64>,
    pub flops_per_token: Option<f64>,
    /// The batch of a run whose pieces warm up: the FLOPs of a token are those of the longest.
    pub pieces: Option<BatchKeys>,
}

impl ModelFacts {
    /// By how much the operations of a token in this step are fewer than `flops_per_token`.
    pub fn flops_less(&self, step: u64) -> f64 {
        let shorter = self.pieces.as_ref().map_or(0, |batch| batch.seq_len - batch.seq_len_of(step));
        attention_flops(self.layers * self.channels, shorter)
    }
}

impl RunData {
    /// Finds and loads a run: a run folder, the name of one under `runs`, or a `main.log`.
    pub fn load(run: &str, runs: &Path) -> Result<RunData, ReportError> {
        let path = Path::new(run);
        let named = runs.join(run);
        if named.is_dir() && !is_place(path) {
            RunData::from_folder(&named)
        } else if path.is_file() {
            RunData::from_log(path)
        } else if path.is_dir() {
            RunData::from_folder(path)
        } else {
            Err(ReportError::NotFound {
                run: run.to_owned(),
                runs: runs.to_owned(),
                nearest: experiment::nearest(run, run_names(runs).iter().map(String::as_str))
                    .map(str::to_owned),
            })
        }
    }

    /// Loads a run folder: metrics where there are any, else its `main.log`.
    pub fn from_folder(folder: &Path) -> Result<RunData, ReportError> {
        let log = folder.join(MAIN_LOG);
        let has_metrics = folder.join(JSONL).exists() || folder.join(PARQUET).exists();
        let (mut run, lock) = if !has_metrics && log.is_file() {
            (RunData::from_log(&log)?, None)
        } else {
            let running = run_folder::holder(folder).is_some();
            let lock = Lock::read(&RunPaths::new(folder).lock_file()).ok();
            let path = RunPaths::new(folder).ledger();
            let ledger = path.exists().then(|| ledger::read(&path));
            let mut rows = metrics::read(folder)?;
            let unverified =
                unverified(&RunPaths::new(folder), &rows, ledger.as_ref(), lock.as_ref(), running);
            if let Some(Ok((log, _))) = &ledger {
                mark_resumes(&mut rows, log);
            }
            let log = ledger.and_then(Result::ok).map(|(log, _)| log);
            let failed = if running { None } else { why_failed(folder, &rows, log.as_ref()) };
            let (name, model) = (String::new(), None);
            (RunData { name, rows, has_tokens: true, model, folder: None, unverified, failed }, lock)
        };
        run.name = name_of(folder);
        run.model = ModelFacts::read(folder, lock.as_ref())?;
        run.folder = Some(folder.to_owned());
        run.refuse_empty(folder)
    }

    /// Loads a log in llm.c's format, named after its folder if the file is just `main.log`.
    pub fn from_log(path: &Path) -> Result<RunData, ReportError> {
        let rows = main_log::read(path)?;
        let parent =
            path.parent().filter(|parent| path.ends_with(MAIN_LOG) && !parent.as_os_str().is_empty());
        let name = parent.map_or_else(|| name_of(path), name_of);
        let unverified = Some("a log alone has no ledger".to_owned());
        let (model, folder, failed) = (None, None, None);
        RunData { name, rows, has_tokens: false, model, folder, unverified, failed }.refuse_empty(path)
    }

    fn refuse_empty(self, path: &Path) -> Result<RunData, ReportError> {
        if self.rows.is_empty() { Err(ReportError::Empty { path: path.to_owned() }) } else { Ok(self) }
    }

    /// The rows of training steps, skipped ones included.
    pub fn trained(&self) -> impl Iterator<Item = &MetricsRow> {
        self.rows.iter().filter(|row| row.loss.is_some())
    }

    /// Whether the last validation gave no number, whatever earlier ones gave.
    pub fn has_lost_validation(&self) -> bool {
        self.rows.iter().rev().find_map(|row| row.val_loss).is_some_and(|loss| !loss.is_finite())
    }
}

/// Why the training of a run ended early, or in numbers that are not finite.
fn why_failed(folder: &Path, rows: &[MetricsRow], log: Option<&Log>) -> Option<String> {
    let notes = log.into_iter().flat_map(|log| log.notes().iter().filter(|note| note.after == log.size()));
    summary::failed(rows, &notes.collect::<Vec<_>>(), patience(folder))
}

/// `guards.patience` of a run, by itself, so that a run of another program has it too.
fn patience(folder: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(RunPaths::new(folder).experiment()).ok()?;
    let table: toml::Table = text.parse().ok()?;
    u64::try_from(table.get("guards")?.get("patience")?.as_integer()?).ok()
}

impl ModelFacts {
    /// Reads the experiment of a run folder; a folder without one, such as llm.c's, has no facts.
    ///
    /// Only a few keys are read, so that a plot of an old run survives a change of the schema.
    fn read(folder: &Path, lock: Option<&Lock>) -> Result<Option<ModelFacts>, ReportError> {
        let path = folder.join("experiment.toml");
        if !path.exists() {
            return Ok(None);
        }
        let fault = |message: String| ReportError::Experiment { path: path.clone(), message };
        let text = std::fs::read_to_string(&path).map_err(|error| fault(error.to_string()))?;
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| fault(error.to_string()))?;
        let key = |section: &str, key: &str| table.get(section).and_then(|section| section.get(key));
        let size = |section: &str, name: &str| {
            key(section, name).and_then(toml::Value::as_integer).and_then(|size| usize::try_from(size).ok())
        };
        let text =
            |section: &str, name: &str| key(section, name).and_then(toml::Value::as_str).map(str::to_owned);
        let descriptor = text("model", "descriptor");
        // The sizes that a descriptor stands for are comments in the resolved file.
        let named = descriptor.as_deref().and_then(|descriptor| experiment::sizes(descriptor).ok());
        let sizes = named.or_else(|| {
            let seq_len = size("batch", "seq_len");
            Some(Sizes {
                layers: size("model", "layers")?,
                channels: size("model", "channels")?,
                heads: size("model", "heads").unwrap_or(1),
                context: size("model", "context").or(seq_len).unwrap_or(0),
            })
        });
        let Some(Sizes { layers, channels, heads, context }) = sizes else { return Ok(None) };
        let context = size("model", "context").unwrap_or(context);
        let whole = size("model", "vocab").map(|vocab| {
            let gpt2 = Model::gpt2(layers, heads, channels, context, vocab);
            with_parts(gpt2, table.get("model"))
        });
        let flops = |model: &Model| Some(flops_per_token(model, size("batch", "seq_len")?));
        Ok(Some(ModelFacts {
            kind: whole.as_ref().map_or("GPT-2".into(), Model::kind),
            descriptor,
            layers,
            channels,
            gpt2_tokens: text("data", "tokenizer").as_deref() == Some("gpt2"),
            embedded_corpus: text("data", "corpus").is_some_and(|corpus| !corpus.is_empty())
                || key("data", "mix").is_some_and(has_corpus),
            fineweb: on_fineweb(lock, key("data", "val")),
            parameters: whole.as_ref().map(|model| Weights::of(model).parameters()),
            flops_per_token: whole.as_ref().and_then(flops),
            // A file of an older program has not all keys, and no warm-up.
            pieces: table
                .get("batch")
                .and_then(|batch| batch.clone().try_into().ok())
                .filter(|batch: &BatchKeys| (1..batch.seq_len).contains(&batch.seq_len_start)),
        }))
    }
}

/// Whether a run validates on FineWeb, by the names of its shards: those that its lock has, or else those
/// that `data.val` asks for.
fn on_fineweb(lock: Option<&Lock>, asked: Option<&toml::Value>) -> bool {
    let mut shards: Vec<&str> = lock
        .iter()
        .flat_map(|lock| &lock.environment)
        .filter(|(key, _)| key.starts_with("data.val_shard."))
        .filter_map(|(_, shard)| shard.split(',').next())
        .collect();
    if shards.is_empty() {
        let patterns = match asked {
            Some(toml::Value::Array(patterns)) => patterns.as_slice(),
            one => one.map_or(&[][..], std::slice::from_ref),
        };
        let texts = patterns.iter().filter_map(toml::Value::as_str);
        shards = texts.filter_map(|text| text.rsplit('/').next()).collect();
    }
    !shards.is_empty() && shards.iter().all(|name| name.to_ascii_lowercase().contains("fineweb"))
}

/// Whether a source of a mixture is an embedded text.
fn has_corpus(mix: &toml::Value) -> bool {
    mix.as_table().is_some_and(|sources| sources.values().any(|source| source.get("corpus").is_some()))
}

/// The model with what the keys of `[model]` say that its blocks are made of; keys that an older or newer
/// program wrote otherwise are passed over.
fn with_parts(model: Model, keys: Option<&toml::Value>) -> Model {
    let Ok(mut fields) = serde_json::to_value(&model) else { return model };
    for (key, _) in model.parts() {
        let leaf = key.trim_start_matches("model.");
        let Some(Ok(given)) = keys.and_then(|keys| keys.get(leaf)).map(serde_json::to_value) else {
            continue;
        };
        let was = std::mem::replace(&mut fields[leaf], given);
        if serde_json::from_value::<Model>(fields.clone()).is_err() {
            fields[leaf] = was;
        }
    }
    serde_json::from_value(fields).unwrap_or(model)
}

/// Where the rows of a run disagree with its ledger, or that with what binds it; `None` if they agree.
/// `ledger` is none where there is no such file.
pub(super) fn unverified(
    paths: &RunPaths,
    rows: &[MetricsRow],
    ledger: Option<&Result<(Log, Vec<Entry>), LedgerError>>,
    lock: Option<&Lock>,
    running: bool,
) -> Option<String> {
    let running = is_unended(running, lock);
    match ledger {
        None => Some("there is no ledger".into()),
        Some(Err(problem)) => Some(problem.to_string().lines().next().unwrap_or_default().to_owned()),
        Some(Ok((log, entries))) => {
            let other = derived::unverified(rows, entries, running);
            other.or_else(|| unbound(paths, log, lock, running)).or_else(|| without_lock(paths, entries))
        }
    }
}

/// That the lock of a run with steps is gone.
fn without_lock(paths: &RunPaths, entries: &[Entry]) -> Option<String> {
    let is_gone = !entries.is_empty() && matches!(paths.lock_file().try_exists(), Ok(false));
    is_gone.then(|| {
        "its `lock.toml` is gone, and nothing else says what it was trained and measured on: restore it from \
         a copy"
            .to_owned()
    })
}

/// Whether files of a run may lag behind each other: a process holds its folder, and it has not ended. Of a
/// lock that was read before the other files.
pub fn is_unended(running: bool, lock: Option<&Lock>) -> bool {
    running && lock.is_none_or(|lock| lock.outputs.is_empty())
}

/// The first key of a run's experiment that reaches the bits and is not what its lock holds.
pub(super) fn edited(recorded: &Experiment, lock: &Lock) -> Option<String> {
    let values = experiment::flatten(recorded);
    // What is chosen when the run begins stands in the lock as it was chosen.
    let chosen = |key: &str| key == "device.kind" || key == "precision.compute";
    let mut locked = values.iter().filter(|(key, value)| experiment::is_locked(key, value) && !chosen(key));
    locked.find_map(|(key, value)| {
        let (was, is) = (lock.numerics.get(key)?, groups::text_of(value));
        (*was != is).then(|| format!("`experiment.toml` has `{key}` = {is}, and the lock {was}"))
    })
}

/// Where a ledger is not the one that the lock has of its end, or that its newest checkpoint was saved with.
pub fn unbound(paths: &RunPaths, log: &Log, lock: Option<&Lock>, running: bool) -> Option<String> {
    let running = is_unended(running, lock);
    let root = lock.filter(|_| !running).and_then(|lock| lock.outputs.get("end_root"));
    if root.is_some_and(|root| *root != log.head().root.to_string()) {
        return Some("the ledger's head is not the one that the lock has of its end".to_owned());
    }
    let recorded = experiment::load_recorded(&paths.experiment()).ok();
    if let Some(edited) = recorded.zip(lock).and_then(|(recorded, lock)| edited(&recorded.experiment, lock)) {
        return Some(edited);
    }
    // What is wrong with a checkpoint, `verify` says: the newest that can be read binds the ledger.
    let mut saved = store::list(&paths.checkpoints()).ok()?.into_iter().rev();
    let Manifest { step, ledger: head, numerics, .. } =
        saved.find_map(|(_, folder)| checkpoint::inspect(&folder).ok())?;
    // A run that goes on may have saved it since the ledger was read.
    let is_newer = running && head.size > log.size();
    if !is_newer && !log.is_prefix(&head) {
        return Some(format!("the ledger does not have the head of the checkpoint of step {step}"));
    }
    let drifted = log.notes().iter().any(|note| note.kind == "drift" && note.after >= step);
    let other = lock
        .filter(|_| !running && !drifted)
        .and_then(|lock| differences(&numerics, &lock.numerics).into_iter().next())?;
    Some(format!("the lock has other numerics than the checkpoint of step {step}: {other}"))
}

/// Adds the event `resume` to the rows of the steps at which a run was resumed, which its ledger notes.
pub(super) fn mark_resumes(rows: &mut [MetricsRow], log: &Log) {
    for note in log.notes().iter().filter(|note| note.kind == RESUME) {
        let row = rows.iter_mut().find(|row| row.step == note.after);
        if let Some(row) = row.filter(|row| row.events.first().is_none_or(|event| event != RESUME)) {
            row.events.insert(0, RESUME.to_owned());
        }
    }
}

fn name_of(path: &Path) -> String {
    let absolute = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = |path: &Path| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    match absolute.parent().filter(|sweep| SweepPaths::new(sweep).declaration().is_file()) {
        Some(sweep) => format!("{}/{}", name(sweep), name(&absolute)),
        None => name(&absolute),
    }
}

/// A published number for a model of some size, drawn as a level across a panel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reference {
    pub name: &'static str,
    /// Loss of OpenAI's checkpoint on FineWeb's validation shard, nats a token.
    pub val_loss: Option<f64>,
    /// HellaSwag accuracy, 0 to 1.
    pub hellaswag: f64,
}

/// Sizes, as layers and channels, with what OpenAI's models of that size reached.
static REFERENCES: [(usize, usize, Reference); 10] = [
    (12, 768, Reference { name: "GPT-2 124M", val_loss: Some(3.424958), hellaswag: 0.294463 }),
    (24, 1024, Reference { name: "GPT-2 350M", val_loss: Some(3.083089), hellaswag: 0.375224 }),
    (36, 1280, Reference { name: "GPT-2 774M", val_loss: Some(3.000580), hellaswag: 0.431986 }),
    (48, 1600, Reference { name: "GPT-2 1558M", val_loss: Some(2.831273), hellaswag: 0.488946 }),
    (12, 768, Reference { name: "GPT-3 125M", val_loss: None, hellaswag: 0.337 }),
    (24, 1024, Reference { name: "GPT-3 350M", val_loss: None, hellaswag: 0.436 }),
    (36, 1280, Reference { name: "GPT-3 760M", val_loss: None, hellaswag: 0.510 }),
    (24, 1536, Reference { name: "GPT-3 760M", val_loss: None, hellaswag: 0.510 }),
    (48, 1600, Reference { name: "GPT-3 1.3B", val_loss: None, hellaswag: 0.547 }),
    (24, 2048, Reference { name: "GPT-3 1.3B", val_loss: None, hellaswag: 0.547 }),
];

/// A size of which OpenAI published a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    M124,
    M350,
    M774,
    M1558,
}

impl Size {
    /// GPT-2's and GPT-3's numbers of this size.
    pub fn references(self) -> impl Iterator<Item = Reference> {
        let (layers, channels) = match self {
            Size::M124 => (12, 768),
            Size::M350 => (24, 1024),
            Size::M774 => (36, 1280),
            Size::M1558 => (48, 1600),
        };
        of_size(layers, channels)
    }
}

/// The published numbers that a run may be compared with: same size, same tokens, text from shards, and for
/// the loss FineWeb's.
pub fn references(model: &ModelFacts) -> impl Iterator<Item = Reference> {
    let comparable = model.gpt2_tokens && !model.embedded_corpus;
    let fineweb = model.fineweb;
    of_size(model.layers, model.channels)
        .filter(move |_| comparable)
        .map(move |level| Reference { val_loss: level.val_loss.filter(|_| fineweb), ..level })
}

fn of_size(layers: usize, channels: usize) -> impl Iterator<Item = Reference> {
    REFERENCES
        .iter()
        .filter(move |(l, c, _)| (*l, *c) == (layers, channels))
        .map(|(_, _, reference)| *reference)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn experiment(folder: &Path, model: &str, data: &str) {
        std::fs::write(
            folder.join("experiment.toml"),
            format!("name = 'x'\n[model]\n{model}\n[data]\n{data}\n"),
        )
        .unwrap();
    }

    #[test]
    fn only_a_run_of_that_size_and_tokenizer_on_shards_gets_reference_lines() {
        let folder = tempfile::tempdir().unwrap();
        let names = |model: &str, data: &str| -> Vec<&str> {
            experiment(folder.path(), model, data);
            let facts = ModelFacts::read(folder.path(), None).unwrap().unwrap();
            references(&facts).map(|reference| reference.name).collect()
        };
        let d12 = "descriptor = 'd12'\nlayers = 12\nchannels = 768";
        assert_eq!(names(d12, "tokenizer = 'gpt2'"), ["GPT-2 124M", "GPT-3 125M"]);
        assert_eq!(names(d12, "tokenizer = 'byte'\ncorpus = 'kjv'"), [""; 0]);
        assert_eq!(names(d12, "tokenizer = 'gpt2'\ncorpus = 'kjv'"), [""; 0]);
        let mixed = |source: &str| format!("tokenizer = 'gpt2'\n[data.mix.a]\n{source}");
        assert_eq!(names(d12, &mixed("corpus = 'kjv_ot'")), [""; 0]);
        assert_eq!(names(d12, &mixed("train = 'x_*.bin'")), ["GPT-2 124M", "GPT-3 125M"]);
        assert_eq!(names("layers = 6\nchannels = 384", "tokenizer = 'gpt2'"), [""; 0]);
        assert_eq!(names("layers = 24\nchannels = 1536", "tokenizer = 'gpt2'"), ["GPT-3 760M"]);
    }

    #[test]
    fn the_loss_on_fineweb_is_a_level_of_runs_that_validate_on_it_alone() {
        let folder = tempfile::tempdir().unwrap();
        let loss = |lock: Option<&Lock>, val: &str| {
            let data = format!("[data]\ntrain='x_*.bin'\nval={val}\n[schedule]\nsteps=1");
            let text = format!("[model]\ndescriptor='d12'\n{data}");
            let loaded = experiment::load_text("t", &text, &[]).unwrap();
            std::fs::write(folder.path().join("experiment.toml"), loaded.to_toml()).unwrap();
            let facts = ModelFacts::read(folder.path(), lock).unwrap().unwrap();
            references(&facts).next().and_then(|level| level.val_loss)
        };
        assert_eq!(loss(None, "'../data/edu_fineweb_val_*.bin'"), Some(3.424958));
        assert_eq!(loss(None, "['/x/fineweb_val_0.bin', '/x/fineweb_val_1.bin']"), Some(3.424958));
        assert_eq!(loss(None, "'fineweb/books_val_*.bin'"), None);
        assert_eq!(loss(None, "['fineweb_val_0.bin', 'books_val_0.bin']"), None);
        let lock = |shard: &str| {
            let shard = ("data.val_shard.00000".to_owned(), format!("{shard}, 2000 tokens, sha256 00"));
            Lock { environment: [shard].into(), ..Lock::default() }
        };
        assert_eq!(loss(Some(&lock("edu_fineweb_val_000000.bin")), "'*val*.bin'"), Some(3.424958));
        assert_eq!(loss(Some(&lock("books_val_000000.bin")), "'fineweb_val_*.bin'"), None);
    }

    /// In the file of a run whose model has a name, its sizes are comments.
    #[test]
    fn the_file_that_a_run_writes_tells_sizes_and_flops() {
        let text = "[model]\ndescriptor='d12'\n[data]\ntrain='x_*.bin'\nval='y_*.bin'\n[schedule]\nsteps=1";
        let loaded = experiment::load_text("t", text, &[]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("experiment.toml"), loaded.to_toml()).unwrap();
        let facts = ModelFacts::read(folder.path(), None).unwrap().unwrap();
        assert_eq!((facts.layers, facts.channels, references(&facts).count()), (12, 768, 2));
        let expected = flops_per_token(&loaded.experiment.model, loaded.experiment.batch.seq_len);
        assert_eq!((facts.parameters, facts.flops_per_token), (Some(124_475_904), Some(expected)));
    }

    #[test]
    fn a_run_whose_lock_has_outputs_is_not_excused_by_whoever_holds_its_folder() {
        let outputs = [("step".to_owned(), "1".to_owned())].into();
        let ended = Lock { outputs, ..Lock::default() };
        assert!(is_unended(true, None) && is_unended(true, Some(&Lock::default())));
        assert!(!is_unended(true, Some(&ended)) && !is_unended(false, None));
        let folder = tempfile::tempdir().unwrap();
        let (paths, empty) = (RunPaths::new(folder.path()), Ok((Log::default(), Vec::new())));
        let added = [MetricsRow::new(0, 64, metrics::Action::Update)];
        let said = |lock| unverified(&paths, &added, Some(&empty), Some(lock), true);
        let begun = Lock::default();
        assert_eq!(said(&begun), None);
        assert!(said(&ended).unwrap().contains("was added"));
    }

    #[test]
    fn a_folder_with_only_a_log_loads_under_its_own_name() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("log_gpt2_124M");
        std::fs::create_dir(&run).unwrap();
        std::fs::write(run.join(MAIN_LOG), "s:0 tel:11.0\n").unwrap();
        for path in [run.clone(), run.join(MAIN_LOG)] {
            let loaded = RunData::load(path.to_str().unwrap(), Path::new("runs")).unwrap();
            assert_eq!(RunData::load("log_gpt2_124M", folder.path()).unwrap().name, loaded.name);
            assert_eq!((loaded.name.as_str(), loaded.has_tokens), ("log_gpt2_124M", false));
        }
    }

    #[test]
    fn what_cannot_be_loaded_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunPaths::new(&folder.path().join("such-a-run"));
        std::fs::create_dir(run.folder()).unwrap();
        std::fs::write(run.experiment(), "").unwrap();
        let error = RunData::load("no-such-run", folder.path()).unwrap_err().to_string();
        assert!(error.contains("`no-such-run`") && error.contains("did you mean `such-a-run`"), "{error}");
        std::fs::write(folder.path().join(JSONL), "").unwrap();
        let error = RunData::from_folder(folder.path()).unwrap_err().to_string();
        assert!(error.contains("no rows"), "{error}");
        std::fs::write(folder.path().join(JSONL), "{}\n").unwrap();
        let error = RunData::from_folder(folder.path()).unwrap_err().to_string();
        assert!(error.contains("line 1"), "{error}");
    }
}
