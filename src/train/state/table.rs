//! The table of the training state: one row for each tensor that the next step reads.

use crate::experiment::Experiment;
use crate::model::{ParamSpec, Weights};
use crate::ops::Dtype;
use crate::optim::{self, UpdateRule};
use crate::parallel::Piece;
use crate::proof::{self, Hash};
use crate::train::Progress;

use std::ops::Range;

/// A tensor of the training state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its name in checkpoints and in the digest.
    pub name: String,
    /// What the memory plan calls it; many rows share one.
    pub label: &'static str,
    pub dtype: Dtype,
    /// Of the whole tensor, weights without their padding rows; of a guard's window when it is full.
    pub shape: Vec<usize>,
    /// Elements of the whole tensor in memory, with padding rows.
    pub len: usize,
    pub division: Division,
    pub home: Home,
}

/// How ranks share a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Division {
    /// Every rank has all of it.
    Replicated,
    /// Every rank has its shard.
    Sharded,
}

/// Where a tensor lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// On the host: a value of [`Progress`], by its position in its list.
    Host(usize),
    /// On the device: a parameter, by its position in the model's order.
    Weights(usize),
    /// On the device: a tensor that the optimizer keeps for a parameter, by its position in
    /// [`UpdateRule::state`].
    Optimizer { parameter: usize, slot: usize },
}

impl Row {
    /// The parameter that a tensor of the device is or belongs to; none of a host value.
    pub fn parameter(&self) -> Option<usize> {
        match self.home {
            Home::Host(_) => None,
            Home::Weights(parameter) | Home::Optimizer { parameter, .. } => Some(parameter),
        }
    }

    /// Elements, without padding.
    fn logical_len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of the whole tensor as it is saved.
    pub fn bytes(&self) -> usize {
        self.logical_len() * self.dtype.size()
    }

    /// The bytes of a piece that belong to the state: without padding rows, which are no part of it.
    pub fn bytes_of(&self, piece: &Piece) -> Range<usize> {
        let end = self.logical_len();
        let size = self.dtype.size();
        piece.start.min(end) * size..piece.end().min(end) * size
    }

    /// The tensor's digest from the Merkle root of its bytes.
    pub fn digest(&self, root: &Hash) -> Hash {
        let shape: Vec<u64> = self.shape.iter().map(|&d| d as u64).collect();
        proof::tensor_digest_from_root(&self.name, self.dtype.name(), &shape, self.bytes() as u64, root)
    }
}

/// The training state of an experiment with these parameters, stored as `param`. `sharded` is whether ranks
/// share what the optimizer keeps.
///
/// The host's values come first, then the parameters, then what the optimizer keeps: the first tensor of each
/// parameter, the second of each, and so on. Device buffers are allocated in this order.
pub fn table(experiment: &Experiment, specs: &Weights<ParamSpec>, param: Dtype, sharded: bool) -> Vec<Row> {
    let mut rows = Vec::new();
    for (at, (name, value)) in Progress::new(&experiment.guards).values().into_iter().enumerate() {
        let (dtype, shape) = value.kind();
        let (len, division) = (shape.iter().product(), Division::Replicated);
        rows.push(Row {
            name: name.into(),
            label: "host values",
            dtype,
            shape,
            len,
            division,
            home: Home::Host(at),
        });
    }
    let row = |name, label, dtype, spec: &ParamSpec, division, home| Row {
        name,
        label,
        dtype,
        shape: spec.shape.clone(),
        len: spec.len,
        division,
        home,
    };
    for (at, spec) in specs.iter().enumerate() {
        let (name, home) = (spec.name.clone(), Home::Weights(at));
        rows.push(row(name, "weights", param, spec, Division::Replicated, home));
    }
    let rule = optim::update_rule(experiment, param);
    let kept: Vec<_> = specs.iter().map(|spec| (spec, rule.state(&spec.shape))).collect();
    let most = kept.iter().map(|(_, state)| state.len()).max().unwrap_or(0);
    let division = if sharded { Division::Sharded } else { Division::Replicated };
    for slot in 0..most {
        for (parameter, (spec, state)) in kept.iter().enumerate() {
            let Some(kept) = state.get(slot) else { continue };
            let name = format!("{}{}", kept.prefix, spec.name);
            let home = Home::Optimizer { parameter, slot };
            rows.push(row(name, kept.label, Dtype::F32, spec, division, home));
        }
    }
    rows
}
