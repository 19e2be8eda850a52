//! `model.init`: the model that training starts from, read before anything is allocated.
//!
//! It is a model of another program, or a checkpoint of a run, of which the weights are taken, and with
//! `optimizer.from_init` the optimizer's state too. It is hashed and read once. A resumed run has its weights
//! in its own checkpoint and does not need the model any more; the lock keeps its digest.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::data::{Data, SHARDS, remembered};
use super::error::{HINT, ProofRefusal, UsageError, in_words, is_damage};
use super::find::Binding;
use super::fit::{SavedState, Successor};
use super::messages::Report;
use super::recorded::require_made_with;
use super::{device, find, lock};
use crate::data::mixture;
use crate::experiment::{
    self, BatchKeys, Declared, Experiment, ExperimentError, GuardKeys, InitError, InitModels, Loaded, Member,
    Model, StepSequences, Sweep, Tokenizer, settings_text,
};
use crate::formats::{ForeignModel, Parameters, models_read, require_finite, require_sizes, values};
use crate::ops::{Dtype, Ops};
use crate::optim::AVERAGE;
use crate::proof::lock::Table;
use crate::store::checkpoint::{self, MANIFEST_FILE, STATE_FILE};
use crate::store::manifest::Manifest;
use crate::store::safetensors::Reader;
use crate::store::{LoadedCheckpoint, RunPaths};
use crate::train::run::INIT_UPDATES;
use crate::train::{Progress, Trainer};

/// The lock's keys for what `model.init` names: of a file its SHA-256, of a checkpoint its state root.
pub const INIT_KEYS: [&str; 2] = ["model.init_sha256", "model.init_root"];

/// The model that `model.init` names.
pub struct Initial {
    /// What the lock has of it: one of [`INIT_KEYS`] with its value; with the optimizer of a checkpoint its
    /// count of updates too.
    pinned: Vec<(&'static str, String)>,
    start: InitStart,
    /// Where the run of a checkpoint had come to, when its optimizer goes on from the first step.
    stream: Option<InitStream>,
    /// What nothing says of a checkpoint.
    remark: Option<String>,
}

/// Keys beside the data that the order of sequences follows from.
const STREAM_KEYS: [&str; 5] =
    ["seed", "batch.seq_len", "data.tokenizer", "data.order", "data.overfit_single_batch"];

/// A place in the stream of sequences of a checkpoint's run.
struct InitStream {
    run: String,
    /// What the bits of the run depended on when the checkpoint was made.
    numerics: Table,
    sequences: u64,
    /// Updates that its optimizer had made.
    updates: u64,
}

impl InitStream {
    /// By the manifest, which is sealed: a run's `experiment.toml` may have drifted since.
    /// `pinned` is the state root of the checkpoint, where that is known.
    fn of(folder: &Path, pinned: Option<&str>, guards: &GuardKeys) -> anyhow::Result<InitStream> {
        let (Manifest { numerics, .. }, counters) = load_pinned(folder, pinned, &Progress::is_counter)?;
        let steps = step_sequences(&numerics).with_context(|| {
            format!("the manifest in `{}` does not say how many tokens a step had", folder.display())
        })?;
        let at = Progress::of_counters(&counters, guards)?;
        let name = experiment::checkpoint_name(&folder.to_string_lossy());
        let run =
            name.as_deref().and_then(|name| name.strip_prefix(experiment::RUN_PREFIX)?.split('@').next());
        Ok(InitStream {
            run: run.unwrap_or("the checkpoint's run").to_owned(),
            numerics,
            sequences: steps.before(at.step) + at.data_offset,
            updates: at.updates,
        })
    }

    /// Whether `numerics` are of the same sequences in the same order, by the content of their shards.
    fn is_same(&self, numerics: &Table) -> bool {
        let of = |table: &Table| -> Table {
            let reads = |key: &str| {
                let mixed = key.starts_with("data.mix.") && !key.ends_with(".max_epochs");
                STREAM_KEYS.contains(&key) || key.starts_with("data.shard.") || mixed
            };
            // A shard may have another name.
            let content =
                |value: &str| value.split_once(", ").map_or(value, |(_, content)| content).to_owned();
            let kept = table.iter().filter(|(key, _)| reads(key));
            kept.map(|(key, value)| (key.clone(), content(value))).collect()
        };
        of(&self.numerics) == of(numerics)
    }
}

/// The sequences of each step, by the numerics of a run.
fn step_sequences(numerics: &Table) -> Option<StepSequences> {
    let tokens_warmup_steps = number(numerics, "batch.tokens_warmup_steps").unwrap_or(0);
    let batch = BatchKeys {
        // Without a warm-up no unit matters.
        micro: number(numerics, "batch.micro").unwrap_or(1).max(1),
        seq_len: number(numerics, "batch.seq_len").filter(|seq_len| *seq_len > 0)?,
        tokens: number(numerics, "batch.tokens")?,
        tokens_start: number(numerics, "batch.tokens_start").unwrap_or(0),
        tokens_warmup_steps,
        seq_len_start: 0,
        seq_len_warmup_steps: 0,
    };
    let workers = number(numerics, "parallel.workers").unwrap_or(1).max(1);
    Some(StepSequences::new(&batch, workers))
}

/// The value of a key, where it is a number of this kind.
fn number<T: std::str::FromStr>(numerics: &Table, key: &str) -> Option<T> {
    numerics.get(key)?.parse().ok()
}

/// What of the model training begins with.
enum InitStart {
    /// Nothing: a checkpoint of the run has it already.
    Past,
    Weights(Box<Parameters>),
    /// The state with this root in a folder of a checkpoint, which every rank reads its part of.
    State {
        folder: PathBuf,
        root: String,
    },
}

/// The model that `model.init` names, if any. `past` are the numerics of the run that is resumed.
///
/// # Errors
///
/// A file that is no such model, is damaged, or has other sizes than the experiment.
pub fn read(
    experiment: &Experiment,
    past: Option<&Table>,
    from_checkpoint: bool,
) -> anyhow::Result<Option<Initial>> {
    let Some(init) = &experiment.model.init else { return Ok(None) };
    let path = Path::new(init);
    if from_checkpoint && !path.exists() {
        let known = |key| Some((key, past?.get(key)?.clone()));
        let pinned: Vec<_> = INIT_KEYS.into_iter().chain([INIT_UPDATES]).filter_map(known).collect();
        if !pinned.is_empty() {
            return Ok(Some(Initial { pinned, start: InitStart::Past, stream: None, remark: None }));
        }
    }
    let model = InitModel::open(path)?;
    if let InitModel::Foreign(foreign) = &model
        && !from_checkpoint
        && !experiment.optimizer.from_init
    {
        // The lock names the bytes that were read, whatever has come to their place since.
        let (parameters, sha256) = foreign.read(&experiment.model)?;
        let pinned = vec![(INIT_KEYS[0], hex::encode(sha256))];
        let start = InitStart::Weights(Box::new(parameters));
        return Ok(Some(Initial { pinned, start, stream: None, remark: None }));
    }
    let ((key, root), remark) = model.pinned()?;
    let mut pinned = vec![(key, root.clone())];
    let (mut state, mut stream) = (None, None);
    if experiment.optimizer.from_init {
        let folder = model.checkpoint_folder()?;
        let at = InitStream::of(folder, Some(&root), &experiment.guards)?;
        pinned.push((INIT_UPDATES, at.updates.to_string()));
        stream = Some(at).filter(|_| !from_checkpoint);
        state = Some(folder.to_owned());
    }
    let start = match (from_checkpoint, state) {
        (true, _) => InitStart::Past,
        (false, Some(folder)) => InitStart::State { folder, root },
        (false, None) => {
            let folder = model.checkpoint_folder()?;
            InitStart::Weights(Box::new(weights_of(folder, &experiment.model, &root)?))
        }
    };
    Ok(Some(Initial { pinned, start, stream, remark }))
}

/// Refuses a model that an experiment cannot start from, as far as can be told without a device and without
/// its weights. `param` is how parameters are stored.
///
/// # Errors
///
/// What `model.init` names is missing, has other sizes, or has an optimizer that cannot go on.
pub fn require_fit(experiment: &Experiment, param: Dtype) -> anyhow::Result<()> {
    let Some(init) = &experiment.model.init else { return Ok(()) };
    let model = InitModel::open(Path::new(init))?;
    let sizes = model.sizes()?;
    if !experiment.optimizer.from_init {
        return Ok(require_sizes(&sizes, &experiment.model, model.path())?);
    }
    let folder = model.checkpoint_folder()?;
    InitStream::of(folder, None, &experiment.guards)?;
    let file = &folder.join(STATE_FILE);
    let (reader, numerics) = (Reader::open(file)?, &checkpoint::inspect(folder)?.numerics);
    let saved = SavedState { file, infos: reader.infos(), numerics };
    Ok(saved.require_fit(experiment, param, Successor::Other)?)
}

/// Refuses an experiment that goes on in a mixture of which its checkpoint's run has read so much that a
/// source's `max_epochs` would be passed. The data are read for it, where their digests are not remembered.
///
/// # Errors
///
/// That of a mixture; those of the data.
fn require_place(loaded: &Loaded, report: Report) -> anyhow::Result<()> {
    let Experiment { data, optimizer, .. } = &loaded.experiment;
    let is_limited = data.mix.values().any(|source| source.max_epochs.is_some());
    if !(is_limited && optimizer.from_init && loaded.offset_follows) {
        return Ok(());
    }
    let mut loaded = loaded.clone();
    let data = Data::open(&mut loaded)?;
    let initial = read(&loaded.experiment, None, false)?;
    initial.map_or(Ok(()), |initial| initial.place(&mut loaded, &data, report))
}

/// What a plan says of an experiment that would be refused for what it starts from; none of another.
pub fn refusal(loaded: &Loaded, param: Dtype, report: Report) -> Option<String> {
    let fit = require_fit(&loaded.experiment, param).and_then(|()| require_place(loaded, report));
    fit.err().map(|why| would_be_refused(&why))
}

/// What a plan says of a sweep that [`require_members`] refuses; none of another.
pub fn refusal_of_members(sweep: &Sweep, report: Report) -> Option<String> {
    require_members(sweep, report).err().map(|why| would_be_refused(&why))
}

fn would_be_refused(why: &anyhow::Error) -> String {
    let (text, hints) = in_words(why);
    format!("a run would be refused: {}", (text + &hints).replace(HINT, "; "))
}

/// Refuses the members of a sweep that could not start from their models.
///
/// # Errors
///
/// Those of [`require_fit`] and [`require_place`], with the number and the settings of the first such member.
pub fn require_members(sweep: &Sweep, report: Report) -> anyhow::Result<()> {
    // What many members start from is looked at once.
    let mut seen = BTreeSet::new();
    for Member { number, settings, loaded } in &sweep.members {
        let cannot = |why: anyhow::Error| {
            let member = format!("member {number} cannot start ({})", settings_text(settings));
            match is_damage(&why) {
                true => why.context(member),
                false => UsageError(format!("{member}: {why}")).into(),
            }
        };
        require_place(loaded, report).map_err(cannot)?;
        let Experiment { model, optimizer, guards, precision, device, .. } = &loaded.experiment;
        if model.init.is_none()
            || !seen.insert(format!("{:?}", (model, optimizer, guards, precision, device)))
        {
            continue;
        }
        let [first, other] = device::param_types(&loaded.experiment);
        let fit = require_fit(&loaded.experiment, first);
        fit.or_else(|why| require_fit(&loaded.experiment, other).map_err(|_| why)).map_err(cannot)?;
    }
    Ok(())
}

/// Refuses to delete the run in `doomed` for one that starts from it.
///
/// # Errors
///
/// `model.init` lies in that folder.
pub fn require_kept(experiment: &Experiment, doomed: &Path) -> Result<(), UsageError> {
    let Some(init) = &experiment.model.init else { return Ok(()) };
    let (init, doomed) = (Path::new(init), doomed.canonicalize());
    if let (Ok(init), Ok(doomed)) = (init.canonicalize(), &doomed)
        && init.starts_with(doomed)
    {
        return Err(UsageError(format!(
            "`{}`, where training starts from, is in the folder that would be deleted\n  hint: another \
             `--name` keeps both",
            init.display()
        )));
    }
    Ok(())
}

impl Initial {
    /// Refuses a checkpoint whose optimizer cannot go on in this experiment; weights alone were held to its
    /// sizes when they were read.
    ///
    /// # Errors
    ///
    /// Those of the function [`require_fit`].
    pub fn require_fit(&self, experiment: &Experiment, param: Dtype) -> anyhow::Result<()> {
        match &self.start {
            InitStart::State { .. } => require_fit(experiment, param),
            InitStart::Past | InitStart::Weights(_) => Ok(()),
        }
    }

    /// What is to be said of the model when a run begins.
    pub fn remark(&self) -> Option<&str> {
        self.remark.as_deref()
    }

    /// Sets a `data.offset` that no layer gives, where the optimizer goes on: to where the checkpoint's run
    /// had come to, if both read the same sequences in the same order, by the content of their shards; else
    /// to the start.
    ///
    /// # Errors
    ///
    /// The data cannot be read; what was passed over is more of a source of a mixture than may be read.
    pub fn place(&self, loaded: &mut Loaded, data: &Data, report: Report) -> anyhow::Result<()> {
        let Some(stream) = self.stream.as_ref().filter(|_| loaded.offset_follows) else { return Ok(()) };
        let manifest = data.manifest(remembered(SHARDS), report)?;
        let mut numerics = lock::resolved_numerics(&loaded.experiment);
        numerics.extend(lock::training_data(&data.train, &manifest.train));
        let (offset, why) = match stream.is_same(&numerics) {
            true => (stream.sequences, format!("where `{}` had come to in the same data", stream.run)),
            false => {
                let key = STREAM_KEYS.into_iter().find(|key| stream.numerics.get(*key) != numerics.get(*key));
                let what = key.map_or("the data are other than those".to_owned(), |key| {
                    format!("`{key}`, and so the order of the data, is not that")
                });
                (0, format!("{what} of `{}`", stream.run))
            }
        };
        loaded.resolve_offset(offset, why);
        Ok(mixture::require_epochs(&loaded.experiment, &data.order, offset)?)
    }

    /// Copies the model into a trainer before its first step, and the optimizer if that goes on.
    ///
    /// # Errors
    ///
    /// The device fails; a checkpoint cannot be read, is not of this experiment, or no more the one that was
    /// pinned.
    pub fn start<O: Ops>(self, trainer: &mut Trainer<O>) -> anyhow::Result<()> {
        match self.start {
            InitStart::Past => {}
            InitStart::Weights(parameters) => {
                let mut tensors = parameters.tensors.iter();
                trainer.start_from(|_| values(tensors.next().expect("both are in the model's order")))?;
            }
            InitStart::State { folder, root } => {
                let unused = |name: &str| name.starts_with(AVERAGE.prefix) && !trainer.keeps_average();
                let wanted = |name: &str| trainer.needs(name) && !unused(name);
                let (_, state) = load_pinned(&folder, Some(&root), &wanted)?;
                require_finite(&folder.join(STATE_FILE), &state)?;
                trainer.go_on_from(state)?;
            }
        }
        Ok(())
    }
}

/// Loads `wanted` tensors of a checkpoint, whose state root must be `pinned` if that is known.
///
/// # Errors
///
/// The checkpoint cannot be read, or is another one than was pinned.
fn load_pinned(
    folder: &Path,
    pinned: Option<&str>,
    wanted: &dyn Fn(&str) -> bool,
) -> anyhow::Result<LoadedCheckpoint> {
    let loaded = checkpoint::load_some(folder, wanted)?;
    let found = loaded.0.state_root.to_string();
    match pinned.filter(|pinned| *pinned != found) {
        None => Ok(loaded),
        Some(pinned) => Err(ProofRefusal(format!(
            "`model.init`: the checkpoint in `{}` has the state root {found}, and had {pinned} when it was \
             pinned: it was exchanged meanwhile\n  hint: begin again when nothing writes there any more",
            folder.display()
        ))
        .into()),
    }
}

/// Adds it to what the bits depend on.
pub fn pin(initial: Option<&Initial>, numerics: &mut Table) {
    for (key, value) in initial.iter().flat_map(|initial| &initial.pinned) {
        numerics.insert((*key).into(), value.clone());
    }
}

/// A model to start from: recognised, not read.
enum InitModel {
    Foreign(ForeignModel),
    /// The folder of a checkpoint, in its run's.
    Checkpoint(PathBuf),
}

impl InitModel {
    fn open(path: &Path) -> anyhow::Result<InitModel> {
        if !path.exists()
            && let Some((run, step)) = find::place_of_checkpoint(path)
        {
            return Err(anyhow::anyhow!("`model.init`: {}", find::no_checkpoint(&run, step)?));
        }
        anyhow::ensure!(
            path.exists(),
            "`model.init`: cannot read `{}`: it is not there\n  hint: `model.init` takes {}, or a checkpoint \
             of a run, `run:NAME@STEP`",
            path.display(),
            models_read()
        );
        match path.join(MANIFEST_FILE).is_file() {
            true => Ok(InitModel::Checkpoint(path.into())),
            false => Ok(InitModel::Foreign(ForeignModel::open(path)?)),
        }
    }

    /// The folder of a checkpoint.
    ///
    /// # Errors
    ///
    /// It is a model of another program, which has no optimizer.
    fn checkpoint_folder(&self) -> Result<&Path, UsageError> {
        match self {
            InitModel::Checkpoint(folder) => Ok(folder),
            InitModel::Foreign(model) => Err(UsageError(format!(
                "`{}` is a model without an optimizer to go on with\n  hint: set `optimizer.from_init` to \
                 false, or `model.init` to a checkpoint of a run, `run:NAME@STEP`",
                model.path().display()
            ))),
        }
    }

    /// The sizes; a checkpoint's are in its run's experiment.
    fn sizes(&self) -> anyhow::Result<Model> {
        match self {
            InitModel::Foreign(model) => Ok(model.sizes()?),
            InitModel::Checkpoint(folder) => Ok(experiment_of(folder)?.model),
        }
    }

    fn path(&self) -> &Path {
        match self {
            InitModel::Foreign(model) => model.path(),
            InitModel::Checkpoint(folder) => folder,
        }
    }

    /// What the lock has of the model, and what is to be said of it.
    fn pinned(&self) -> anyhow::Result<((&'static str, String), Option<String>)> {
        let [sha256, root] = INIT_KEYS;
        Ok(match self {
            InitModel::Foreign(model) => ((sha256, hex::encode(model.sha256()?)), None),
            InitModel::Checkpoint(folder) => {
                let manifest = checkpoint::inspect(folder)?;
                let lacks = match find::binding_of(folder, &manifest)? {
                    Binding::Root => None,
                    Binding::Head => Some("the ledger of its run has no state root of that step"),
                    Binding::Nothing => Some("the `ledger.jsonl` of its run is missing"),
                };
                let remark = lacks.map(|lacks| {
                    format!("`model.init`: nothing binds the checkpoint in `{}`: {lacks}", folder.display())
                });
                require_made_with(&experiment_of(folder)?, &manifest, &RunPaths::new(run_of(folder)))?;
                ((root, manifest.state_root.to_string()), remark)
            }
        })
    }
}

/// The parameters of a checkpoint, whose root is to be `pinned` and whose sizes must be those of `model`: the
/// fp32 masters where it has them.
fn weights_of(folder: &Path, model: &Model, pinned: &str) -> anyhow::Result<Parameters> {
    let (_, state) = load_pinned(folder, Some(pinned), &find::is_weight)?;
    let file = folder.join(STATE_FILE);
    require_finite(&file, &state)?;
    let parameters = Parameters::of_state(&file, &experiment_of(folder)?.model, state)?;
    parameters.require(model, folder)?;
    Ok(parameters)
}

/// The folder of the run that a checkpoint is of.
fn run_of(folder: &Path) -> &Path {
    folder.parent().and_then(Path::parent).unwrap_or(Path::new("."))
}

/// The experiment of the run that a checkpoint is of.
fn experiment_of(folder: &Path) -> Result<Experiment, ExperimentError> {
    Ok(experiment::load_recorded(&run_of(folder).join("experiment.toml"))?.experiment)
}

/// Loads an experiment's file as [`experiment::load`] does. What `model.init` leaves open is the model's:
/// sizes that are not given, and the folder of a run's checkpoint, which is one of `runs`.
pub fn load_experiment(path: &Path, sets: &[String], runs: &Path) -> Result<Loaded, ExperimentError> {
    experiment::load_with(path, sets, &Models { runs })
}

/// The same for a file that may declare a sweep.
pub fn load_declared(path: &Path, sets: &[String], runs: &Path) -> Result<Declared, ExperimentError> {
    experiment::load_declared(path, sets, &Models { runs })
}

struct Models<'a> {
    runs: &'a Path,
}

impl InitModels for Models<'_> {
    fn checkpoint(&self, run: &str) -> Result<PathBuf, InitError> {
        let hint = "`run:NAME@STEP` names a checkpoint of a run, `run:NAME` its newest";
        find::checkpoint(run, self.runs).map_err(|error| init_error(&error, hint))
    }

    fn sizes(&self, path: &Path) -> Result<Model, InitError> {
        let hint = || format!("`model.init` takes {}, or a checkpoint of a run", models_read());
        InitModel::open(path).and_then(|model| model.sizes()).map_err(|error| init_error(&error, &hint()))
    }

    fn tokenizer(&self, path: &Path) -> Result<Option<Tokenizer>, InitError> {
        // What is wrong with a model is said where it is read.
        let Ok(model) = InitModel::open(path) else { return Ok(None) };
        match (model.sizes(), &model) {
            (Err(_), _) => Ok(None),
            (Ok(_), InitModel::Checkpoint(folder)) => {
                Ok(experiment_of(folder).ok().map(|experiment| experiment.data.tokenizer))
            }
            (Ok(sizes), InitModel::Foreign(foreign)) => match foreign.tokenizer(sizes.vocab) {
                Ok(tokenizer) => Ok(Some(tokenizer)),
                Err(error) => Err(init_error(&error.into(), "set `data.tokenizer`")),
            },
        }
    }
}

/// An error whose message may end in a hint; `hint` is for one that has none.
fn init_error(error: &anyhow::Error, hint: &str) -> InitError {
    let text = error.to_string();
    let (message, hint) = text.split_once(HINT).unwrap_or((&text, hint));
    InitError { message: message.into(), hint: hint.into(), damage: is_damage(error) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::proof::{Hash, Head};
    use crate::store::{self, Facts, Tensor};

    /// Between the pin and the load, another checkpoint may have come into the folder.
    #[test]
    fn a_checkpoint_that_was_exchanged_after_it_was_pinned_is_not_loaded() {
        let checkpoints = tempfile::tempdir().expect("a folder");
        let folder = checkpoints.path().join(checkpoint::folder_name(3));
        let save = |weight: f32| {
            let bytes = weight.to_le_bytes().to_vec();
            let state = [Tensor { name: "wte.weight".into(), dtype: Dtype::F32, shape: vec![1], bytes }];
            let facts = Facts {
                experiment: "t".into(),
                step: 3,
                tokens: 3,
                updates: 3,
                ledger: Head { size: 3, root: Hash::of(b"three") },
                numerics: BTreeMap::new(),
                created_by: "runner test".into(),
                state_root: None,
            };
            store::save(checkpoints.path(), &state, &facts).expect("saved").state_root.to_string()
        };
        let pinned = save(1.0);
        let load = |pinned: Option<&str>| load_pinned(&folder, pinned, &|_| true);
        assert_eq!(load(Some(&pinned)).expect("whole").1.len(), 1);
        let other = save(2.0);
        assert!(load(None).is_ok() && load(Some(&other)).is_ok());
        let refused = load(Some(&pinned)).expect_err("another checkpoint");
        assert!(refused.is::<ProofRefusal>(), "{refused}");
        assert!(refused.to_string().contains("it was exchanged meanwhile"), "{refused}");
    }
}
