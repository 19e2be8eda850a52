//! The first step, tensor, leaf and element in which two runs differ.
//!
//! Ledgers give the step, manifests the tensor; then a single tensor of each side is read. Two
//! checkpoint folders may be given instead of two runs.

use std::fmt;
use std::path::Path;

use crate::proof::lock::{self, Lock, differences};
use crate::proof::{Entry, FieldDifference, entry, ledger};
use crate::run::UsageError;
use crate::run::error::{refuse_ledger, refuse_lock};
use crate::run::lock::list;
use crate::store::compare::{self, StateDifference};
use crate::store::{self, RunPaths, checkpoint};
use crate::units::noun;

/// How two runs differ.
#[derive(Debug, Default)]
pub struct Diff {
    /// Tables of the locks by name, with what differs in each.
    pub locks: Vec<(&'static str, Vec<lock::Difference>)>,
    /// Entries in both ledgers; none where two checkpoints are compared.
    pub entries: Option<(usize, usize)>,
    /// The first entry that differs, by its place, and its fields.
    pub step: Option<(u64, Vec<FieldDifference>)>,
    /// Checkpoint steps that both runs have.
    pub compared: Vec<u64>,
    /// The first common checkpoint that differs.
    pub state: Option<(u64, StateDifference)>,
}

impl Diff {
    /// Compares the folders of two runs, or of two checkpoints.
    ///
    /// # Errors
    /// One is a run and the other a checkpoint, or a file of either is missing or damaged.
    pub fn of(a: &Path, b: &Path) -> anyhow::Result<Diff> {
        let is_checkpoint = |folder: &Path| folder.join(checkpoint::MANIFEST_FILE).is_file();
        match (is_checkpoint(a), is_checkpoint(b)) {
            (true, true) => {
                let step_of = |folder: &Path| checkpoint::inspect(folder).map(|manifest| manifest.step);
                let step = step_of(a)?;
                let other = step_of(b)?;
                if step != other {
                    return Err(UsageError(format!(
                        "one checkpoint is of step {step} and the other of step {other}\n  hint: compare \
                         those of one step"
                    ))
                    .into());
                }
                let state = compare::checkpoints(a, b)?.map(|state| (step, state));
                Ok(Diff { compared: vec![step], state, ..Diff::default() })
            }
            (false, false) => Diff::of_runs(a, b),
            _ => Err(UsageError(
                "a run and a checkpoint cannot be compared\n  hint: give two runs, or two folders of \
                 checkpoints"
                    .into(),
            )
            .into()),
        }
    }

    fn of_runs(a: &Path, b: &Path) -> anyhow::Result<Diff> {
        let (a, b) = (RunPaths::new(a), RunPaths::new(b));
        for paths in [&a, &b] {
            if !paths.ledger().is_file() {
                return Err(store::StoreError::NoSuchRun { path: paths.folder().into() }.into());
            }
        }
        let (_, entries_a) = ledger::read(&a.ledger()).map_err(refuse_ledger)?;
        let (_, entries_b) = ledger::read(&b.ledger()).map_err(refuse_ledger)?;
        let mut diff = Diff {
            locks: locks(&a, &b)?,
            entries: Some((entry::steps(&entries_a).len(), entry::steps(&entries_b).len())),
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
        if diff.compared.is_empty() && (entries_a.is_empty() || entries_b.is_empty()) {
            return Err(UsageError(format!(
                "`{}` and `{}` have no step and no checkpoint in common: there is nothing to compare",
                a.folder().display(),
                b.folder().display()
            ))
            .into());
        }
        Ok(diff)
    }

    /// Whether both have equally many steps.
    pub fn same_length(&self) -> bool {
        self.entries.is_none_or(|(a, b)| a == b)
    }

    /// Whether everything that both runs have has the same bits.
    pub fn same_bits(&self) -> bool {
        self.step.is_none() && self.state.is_none()
    }
}

impl fmt::Display for Diff {
    /// A text of a few lines, down to the first differing element.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, changed) in self.locks.iter().filter(|(_, changed)| !changed.is_empty()) {
            let what = if *name == "numerics" {
                "what the bits depend on"
            } else {
                "recorded, no bit depends on it"
            };
            writeln!(f, "lock: {name} differ ({what}):{}", list(changed))?;
        }
        match (&self.step, self.entries) {
            (Some((step, fields)), _) => {
                writeln!(f, "ledger: step {step} is the first that differs")?;
                fields.iter().try_for_each(|field| writeln!(f, "  {field}"))?;
            }
            (None, None) => {}
            (None, Some((a, b))) if a == b => writeln!(f, "ledger: {a} {}, all equal", noun(a, "step"))?,
            (None, Some((a, b))) => {
                let equal = a.min(b);
                writeln!(f, "ledger: {equal} {} equal; the runs have {a} and {b}", noun(equal, "step"))?;
            }
        }
        match (&self.state, self.compared.as_slice()) {
            (Some((step, state)), _) => f.write_str(&state_text(*step, state)),
            (None, []) => writeln!(f, "checkpoints: none that both have"),
            (None, steps) => writeln!(f, "checkpoints: {} that both have, all equal", steps.len()),
        }
    }
}

/// Which tensors differ and the first of them, down to the element.
pub fn state_text(step: u64, state: &StateDifference) -> String {
    format!(
        "checkpoint of step {step}: {} of {} {} differ\n  first: `{}`: {}\n",
        state.tensors.len(),
        state.of,
        noun(state.of, "tensor"),
        state.tensors[0],
        state.first
    )
}

/// The first entry that differs and its fields.
pub fn first_entry(a: &[Entry], b: &[Entry]) -> Option<(u64, Vec<FieldDifference>)> {
    // The evaluation after the last step of one is compared with that of the other alone.
    let pairs = a.iter().zip(b).filter(|(a, b)| a != b && (a.loss.is_some() == b.loss.is_some()));
    pairs.map(|(a, b)| (a.step, a.differences(b))).find(|(_, fields)| !fields.is_empty())
}

/// The tables of both locks, where both have one.
fn locks(a: &RunPaths, b: &RunPaths) -> anyhow::Result<Vec<(&'static str, Vec<lock::Difference>)>> {
    if !a.lock_file().exists() || !b.lock_file().exists() {
        return Ok(Vec::new());
    }
    let read = |paths: &RunPaths| Lock::read(&paths.lock_file()).map_err(refuse_lock);
    let (a, b) = (read(a)?, read(b)?);
    Ok(vec![
        ("numerics", differences(&a.numerics, &b.numerics)),
        ("environment", differences(&a.environment, &b.environment)),
        ("source", differences(&a.source, &b.source)),
    ])
}
