//! How two checkpoints differ: by digests, so that only the first differing tensor is read.

use std::path::Path;

use super::checkpoint::{self, STATE_FILE};
use super::manifest::Manifest;
use super::safetensors::{self, Reader, Tensor};
use super::{Result, StoreError};
use crate::proof::compare::{TensorDifference, first_difference};

/// What differs between two states.
#[derive(Clone, Debug, PartialEq)]
pub struct StateDifference {
    /// Names of the tensors that differ, in byte order; those that only one side has included.
    pub tensors: Vec<String>,
    /// How many tensors one of the two states has, or both.
    pub of: usize,
    /// Where the first of them differs.
    pub first: First,
}

/// How the first differing tensor differs.
#[derive(Clone, Debug, PartialEq)]
pub enum First {
    /// Only one state has it.
    Missing { in_a: bool },
    /// Type or shape differ; both as text.
    Kind { a: String, b: String },
    /// Values differ.
    Values { dtype: &'static str, shape: Vec<usize>, difference: TensorDifference },
}

impl std::fmt::Display for First {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            First::Missing { in_a } => {
                write!(f, "only the {} has it", if *in_a { "second" } else { "first" })
            }
            First::Kind { a, b } => write!(f, "{a} and {b}"),
            First::Values { dtype, shape, difference } => write!(f, "{dtype} {shape:?}, {difference}"),
        }
    }
}

/// How two checkpoint folders differ; nothing when every byte of both states is equal.
///
/// Equal digests are not taken as proof: the files are then compared byte by byte, and a difference is an
/// error, because one of them disagrees with its manifest.
pub fn checkpoints(a: &Path, b: &Path) -> Result<Option<StateDifference>> {
    let (manifest_a, manifest_b) = (checkpoint::inspect(a)?, checkpoint::inspect(b)?);
    let (file_a, file_b) = (a.join(STATE_FILE), b.join(STATE_FILE));
    let tensors = differing(&manifest_a, &manifest_b);
    let Some(name) = tensors.first() else {
        return same_bytes(&file_a, &file_b).map(|()| None);
    };
    let (first_a, first_b) = (safetensors::read_one(&file_a, name)?, safetensors::read_one(&file_b, name)?);
    let first = match (first_a, first_b) {
        (Some(a), Some(b)) => first(&a, &b).ok_or_else(|| StoreError::DigestsDisagree {
            a: file_a,
            b: file_b,
            tensor: name.clone(),
        })?,
        (a, _) => First::Missing { in_a: a.is_none() },
    };
    let of = names(&manifest_a, &manifest_b).len();
    Ok(Some(StateDifference { tensors, of, first }))
}

/// How two states in memory differ.
pub fn states(a: &[Tensor], b: &[Tensor]) -> Option<StateDifference> {
    let find = |state: &[Tensor], name: &str| state.iter().position(|tensor| tensor.name == name);
    let mut names: Vec<&String> = a.iter().chain(b).map(|tensor| &tensor.name).collect();
    names.sort_unstable();
    names.dedup();
    let of = names.len();
    let pair = |name: &str| (find(a, name).map(|at| &a[at]), find(b, name).map(|at| &b[at]));
    let tensors: Vec<String> = names
        .into_iter()
        .filter(|name| {
            let (a, b) = pair(name);
            a != b
        })
        .cloned()
        .collect();
    let first = match pair(tensors.first()?) {
        (Some(a), Some(b)) => first(a, b)?,
        (a, _) => First::Missing { in_a: a.is_none() },
    };
    Some(StateDifference { tensors, of, first })
}

fn first(a: &Tensor, b: &Tensor) -> Option<First> {
    if (a.dtype, &a.shape) != (b.dtype, &b.shape) {
        let kind = |tensor: &Tensor| format!("{} {:?}", tensor.dtype, tensor.shape);
        return Some(First::Kind { a: kind(a), b: kind(b) });
    }
    let difference = first_difference(a.dtype.name(), &a.shape, &a.bytes, &b.bytes)?;
    Some(First::Values { dtype: a.dtype.name(), shape: a.shape.clone(), difference })
}

/// The tensors that either has, in byte order.
fn names<'a>(a: &'a Manifest, b: &'a Manifest) -> Vec<&'a String> {
    let mut names: Vec<&String> = a.tensors.keys().chain(b.tensors.keys()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn differing(a: &Manifest, b: &Manifest) -> Vec<String> {
    names(a, b).into_iter().filter(|name| a.tensors.get(*name) != b.tensors.get(*name)).cloned().collect()
}

fn same_bytes(a: &Path, b: &Path) -> Result<()> {
    let (mut left, mut right) = (Reader::open(a)?, Reader::open(b)?);
    loop {
        let (x, y) = (left.next_tensor()?, right.next_tensor()?);
        if x != y {
            let tensor = x.or(y).map(|tensor| tensor.name).unwrap_or_default();
            return Err(StoreError::DigestsDisagree { a: a.into(), b: b.into(), tensor });
        }
        if x.is_none() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::checkpoint::{save, tests::*};
    use super::*;

    #[test]
    fn a_flipped_bit_is_located_whether_or_not_the_manifest_knows() {
        let root = tempfile::tempdir().unwrap();
        let (a, b) = (root.path().join("a"), root.path().join("b"));
        std::fs::create_dir_all(&a).unwrap();
        std::fs::create_dir_all(&b).unwrap();
        save(&a, &state(3), &facts(3)).unwrap();
        save(&b, &state(3), &facts(3)).unwrap();
        let (a, b) = (a.join(checkpoint::folder_name(3)), b.join(checkpoint::folder_name(3)));
        assert_eq!(checkpoints(&a, &b).unwrap(), None);

        let file = b.join(STATE_FILE);
        let mut bytes = std::fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&file, bytes).unwrap();
        assert!(matches!(checkpoints(&a, &b), Err(StoreError::DigestsDisagree { .. })));

        let mut changed = state(3);
        let last = changed.last_mut().unwrap();
        *last.bytes.last_mut().unwrap() ^= 1;
        let name = last.name.clone();
        assert_eq!(states(&state(3), &changed).unwrap().tensors, std::slice::from_ref(&name));
        save(&root.path().join("b"), &changed, &facts(3)).unwrap();
        let found = checkpoints(&a, &b).unwrap().unwrap();
        assert_eq!(found.tensors, [name]);
        let First::Values { difference, .. } = &found.first else { panic!("{found:?}") };
        assert_eq!(difference.differing, 1);
        assert_eq!(states(&state(3), &changed).unwrap(), found);
    }
}
