//! `runner diff A B`: the first step, tensor, leaf and element in which two runs differ.
//!
//! Ledgers give the step, manifests the tensor; then a single tensor of each side is read. Two
//! checkpoint folders may be given instead of two runs.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Value, json};

use super::{exit, locking};
use crate::proof::lock::{self, Lock, differences};
use crate::proof::{Entry, FieldDifference, entry, ledger};
use crate::store::compare::{self, First, StateDifference};
use crate::store::{self, RunPaths, checkpoint};

/// Find the first step, tensor, leaf and element in which two runs differ.
#[derive(clap::Args)]
pub struct Args {
    /// A run: a name under `--runs`, or a folder; or the folder of a checkpoint.
    a: PathBuf,
    /// The other one.
    b: PathBuf,
    /// Folder that holds the run folders.
    #[arg(long, default_value = "runs", value_name = "DIR")]
    runs: PathBuf,
    /// Print the differences as JSON on stdout.
    #[arg(long)]
    json: bool,
}

/// How two runs differ.
#[derive(Debug, Default)]
pub struct Diff {
    /// Tables of the locks by name, with what differs in each.
    pub locks: Vec<(&'static str, Vec<lock::Difference>)>,
    /// Entries in both ledgers.
    pub entries: (usize, usize),
    /// The first entry that differs, by its place, and its fields.
    pub step: Option<(u64, Vec<FieldDifference>)>,
    /// Checkpoint steps that both runs have.
    pub compared: Vec<u64>,
    /// The first common checkpoint that differs.
    pub state: Option<(u64, StateDifference)>,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let folder = |path: &Path| if path.is_dir() { path.to_owned() } else { args.runs.join(path) };
    let (a, b) = (folder(&args.a), folder(&args.b));
    let is_checkpoint = |folder: &Path| folder.join(checkpoint::MANIFEST_FILE).is_file();
    let diff = match (is_checkpoint(&a), is_checkpoint(&b)) {
        (true, true) => {
            let step = checkpoint::inspect(&a)?.step;
            Diff {
                compared: vec![step],
                state: compare::checkpoints(&a, &b)?.map(|state| (step, state)),
                ..Diff::default()
            }
        }
        (false, false) => Diff::of(&a, &b)?,
        _ => anyhow::bail!(
            "a run and a checkpoint cannot be compared\n  hint: give two runs, or two folders of checkpoints"
        ),
    };
    if args.json {
        println!("{}", diff.to_json());
    } else {
        print!("{}", diff.to_text());
    }
    Ok(ExitCode::from(if diff.same_bits() { 0 } else { exit::PROOF }))
}

impl Diff {
    /// Compares two run folders.
    pub fn of(a: &Path, b: &Path) -> anyhow::Result<Diff> {
        let (a, b) = (RunPaths::new(a), RunPaths::new(b));
        for paths in [&a, &b] {
            if !paths.ledger().is_file() {
                return Err(store::StoreError::NoSuchRun { path: paths.folder().into() }.into());
            }
        }
        let (_, entries_a) = ledger::read(&a.ledger()).map_err(super::past::refuse_ledger)?;
        let (_, entries_b) = ledger::read(&b.ledger()).map_err(super::past::refuse_ledger)?;
        let (steps_a, steps_b) = (entry::steps(&entries_a), entry::steps(&entries_b));
        let mut diff = Diff {
            locks: locks(&a, &b)?,
            entries: (steps_a.len(), steps_b.len()),
            step: first_entry(&entries_a, &entries_b),
            ..Diff::default()
        };
        let in_b = store::list(&b.checkpoints())?;
        for (step, folder) in store::list(&a.checkpoints())? {
            let Some((_, other)) = in_b.iter().find(|(other, _)| *other == step) else { continue };
            diff.compared.push(step);
            if let Some(state) = compare::checkpoints(&folder, other)? {
                diff.state = Some((step, state));
                break;
            }
        }
        Ok(diff)
    }

    /// Whether everything that both have has the same bits.
    pub fn same_bits(&self) -> bool {
        self.step.is_none() && self.state.is_none()
    }

    /// A few lines that end in the first differing element.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for (name, changed) in self.locks.iter().filter(|(_, changed)| !changed.is_empty()) {
            let what = if *name == "numerics" {
                "what the bits depend on"
            } else {
                "recorded, no bit depends on it"
            };
            text.push_str(&format!("lock: {name} differ ({what}):{}\n", locking::list(changed)));
        }
        match (&self.step, self.entries) {
            (Some((step, fields)), _) => {
                text.push_str(&format!("ledger: step {step} is the first that differs\n"));
                text.extend(fields.iter().map(|field| format!("  {field}\n")));
            }
            (None, (a, b)) if a == b => text.push_str(&format!("ledger: {a} steps, all equal\n")),
            (None, (a, b)) => {
                text.push_str(&format!("ledger: {} steps equal; the runs have {a} and {b}\n", a.min(b)))
            }
        }
        match (&self.state, self.compared.as_slice()) {
            (Some((step, state)), _) => text.push_str(&state_text(*step, state)),
            (None, []) => text.push_str("checkpoints: none that both have\n"),
            (None, steps) => {
                text.push_str(&format!("checkpoints: {} that both have, all equal\n", steps.len()))
            }
        }
        text
    }

    fn to_json(&self) -> Value {
        let table = |(name, changed): &(&'static str, Vec<lock::Difference>)| {
            let rows: Vec<Value> =
                changed.iter().map(|d| json!({"key": d.key, "a": d.was, "b": d.is})).collect();
            ((*name).to_owned(), Value::from(rows))
        };
        let fields = |fields: &[FieldDifference]| -> Vec<Value> {
            fields.iter().map(|f| json!({"field": f.field, "a": f.a, "b": f.b})).collect()
        };
        json!({
            "same_bits": self.same_bits(),
            "lock": self.locks.iter().map(table).collect::<serde_json::Map<_, _>>(),
            "entries": [self.entries.0, self.entries.1],
            "first_step": self.step.as_ref().map(|(step, differing)| json!({"step": step, "fields": fields(differing)})),
            "checkpoints_compared": self.compared,
            "first_state": self.state.as_ref().map(|(step, state)| state_json(*step, state)),
        })
    }
}

/// Which tensors differ and the first of them, down to the element.
pub fn state_text(step: u64, state: &StateDifference) -> String {
    format!(
        "checkpoint of step {step}: {} of {} tensors differ\n  first: `{}`: {}\n",
        state.tensors.len(),
        state.of,
        state.tensors[0],
        state.first
    )
}

fn state_json(step: u64, state: &StateDifference) -> Value {
    let first = match &state.first {
        First::Values { dtype, shape, difference: d } => json!({
            "dtype": dtype, "shape": shape, "leaf": d.leaf, "byte": d.byte, "element": d.element, "coordinates": d.coordinates,
            "a": {"value": d.a.number, "bits": format!("{:#x}", d.a.bits)},
            "b": {"value": d.b.number, "bits": format!("{:#x}", d.b.bits)},
            "differing": d.differing, "elements": d.elements, "largest": d.largest,
        }),
        other => json!({"problem": other.to_string()}),
    };
    json!({"step": step, "tensors": state.tensors, "of": state.of, "first": first})
}

/// The first entry that differs and its fields.
pub fn first_entry(a: &[Entry], b: &[Entry]) -> Option<(u64, Vec<FieldDifference>)> {
    // The evaluation after the last step of one is compared with that of the other alone.
    let pairs = a.iter().zip(b).filter(|(a, b)| a != b && (a.loss.is_some() == b.loss.is_some()));
    pairs.map(|(a, b)| (a.step, a.differences(b))).find(|(_, fields)| !fields.is_empty())
}

fn locks(a: &RunPaths, b: &RunPaths) -> anyhow::Result<Vec<(&'static str, Vec<lock::Difference>)>> {
    if !a.lock_file().exists() || !b.lock_file().exists() {
        return Ok(Vec::new());
    }
    let read = |paths: &RunPaths| Lock::read(&paths.lock_file()).map_err(locking::refuse);
    let (a, b) = (read(a)?, read(b)?);
    Ok(vec![
        ("numerics", differences(&a.numerics, &b.numerics)),
        ("environment", differences(&a.environment, &b.environment)),
        ("source", differences(&a.source, &b.source)),
    ])
}
