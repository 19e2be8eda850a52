//! `runner diff A B`: the first step, tensor, leaf and element in which two runs differ.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Value, json};

use super::{exit, streams};
use crate::proof::FieldDifference;
use crate::proof::lock;
use crate::run::{UsageError, find};
use crate::store::compare::{First, StateDifference};
use crate::units::printable_lines;
use crate::verify::diff::Diff;
use crate::verify::sweep::SweepDiff;

/// Find the first step, tensor, leaf and element in which two runs differ.
#[derive(clap::Args)]
pub struct Args {
    /// A run or a sweep: a name under `--runs`, or a folder; or the folder of a checkpoint.
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

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    // A checkpoint is the folder of no run.
    let folder = |path: &Path| match find::find(Some(path), &args.runs) {
        Err(_) if path.is_dir() => Ok(path.to_owned()),
        found => found,
    };
    match [&args.a, &args.b].map(|path| find::find_sweep(Some(path), &args.runs)) {
        [Some(a), Some(b)] => return diff_sweeps(&a, &b, args.json),
        [None, None] => {}
        _ => {
            return Err(UsageError(
                "a sweep and a run cannot be compared\n  hint: name a member, such as `NAME/001`".into(),
            )
            .into());
        }
    }
    let diff = Diff::of(&folder(&args.a)?, &folder(&args.b)?)?;
    if args.json {
        streams::print(&format!("{}\n", to_json(&diff)))?;
    } else {
        streams::print(&printable_lines(&diff.to_string()))?;
    }
    Ok(ExitCode::from(if diff.same_bits() { 0 } else { exit::PROOF }))
}

/// The first member in which two sweeps differ.
fn diff_sweeps(a: &Path, b: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let diff = SweepDiff::of(a, b)?;
    if json {
        let first = diff.first.as_ref().map(|first| {
            json!({
                "member": first.number,
                "settings": [first.settings.0, first.settings.1],
                "diff": first.diff.as_ref().map(to_json),
            })
        });
        let value = json!({
            "same": diff.first.is_none(), "members": diff.members, "equal": diff.equal,
            "not_ended": diff.open, "first": first,
        });
        streams::print(&format!("{value}\n"))?;
    } else {
        streams::print(&printable_lines(&diff.to_string()))?;
    }
    Ok(ExitCode::from(if diff.first.is_none() { 0 } else { exit::PROOF }))
}

fn to_json(diff: &Diff) -> Value {
    let table = |(name, changed): &(&'static str, Vec<lock::Difference>)| {
        let rows: Vec<Value> = changed.iter().map(|d| json!({"key": d.key, "a": d.was, "b": d.is})).collect();
        ((*name).to_owned(), Value::from(rows))
    };
    let fields = |fields: &[FieldDifference]| -> Vec<Value> {
        fields.iter().map(|f| json!({"field": f.field, "a": f.a, "b": f.b})).collect()
    };
    json!({
        "same_bits": diff.same_bits(),
        "lock": diff.locks.iter().map(table).collect::<serde_json::Map<_, _>>(),
        "entries": diff.entries.map(|(a, b)| [a, b]),
        "first_step": diff.step.as_ref().map(|(step, differing)| {
            json!({"step": step, "fields": fields(differing)})
        }),
        "checkpoints_compared": diff.compared,
        "first_state": diff.state.as_ref().map(|(step, state)| state_json(*step, state)),
    })
}

fn state_json(step: u64, state: &StateDifference) -> Value {
    let first = match &state.first {
        First::Values { dtype, shape, difference: d } => json!({
            "dtype": dtype, "shape": shape, "leaf": d.leaf, "byte": d.byte, "element": d.element,
            "coordinates": d.coordinates,
            "a": {"value": d.a.number, "bits": format!("{:#x}", d.a.bits)},
            "b": {"value": d.b.number, "bits": format!("{:#x}", d.b.bits)},
            "differing": d.differing, "elements": d.elements, "largest": d.largest,
            "not_finite": d.not_finite,
        }),
        other => json!({"problem": other.to_string()}),
    };
    json!({"step": step, "tensors": state.tensors, "of": state.of, "first": first})
}
