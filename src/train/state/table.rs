//! The table of the training state: one row for each tensor that the next step reads.

use std::ops::Range;

use crate::experiment::Experiment;
use crate::model::{ParamSpec, Weights};
use crate::ops::Dtype;
use crate::optim::{self, UpdateRule};
use crate::parallel::Piece;
use crate::proof::{self, Hash};
use crate::train::Progress;

/// A tensor of the training state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its name in checkpoints and in the digest.
    pub name: String,
    /// Its name in the memory plan; many rows share one.
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
/// parameter, the second of each, and so on. The optimizer's buffers are allocated in this order.
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
    let states: Vec<_> = specs.iter().map(|spec| (spec, rule.state(&spec.parameter()))).collect();
    let most = states.iter().map(|(_, state)| state.len()).max().unwrap_or(0);
    let division = if sharded { Division::Sharded } else { Division::Replicated };
    for slot in 0..most {
        for (parameter, (spec, state)) in states.iter().enumerate() {
            let Some(tensor) = state.get(slot) else { continue };
            let name = format!("{}{}", tensor.prefix, spec.name);
            let home = Home::Optimizer { parameter, slot };
            rows.push(row(name, tensor.label, Dtype::F32, spec, division, home));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment;

    const TEXT: &str = "[model]\nlayers = 1\nheads = 1\nchannels = 32\n\
        [data]\ncorpus = 'kjv'\ntokenizer = 'byte'\n\
        [batch]\nmicro = 1\nseq_len = 8\n[schedule]\nsteps = 1\n[guards]\nwindow = 16\n";

    fn rows(param: Dtype, sharded: bool, sets: &[&str]) -> Vec<Row> {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        let experiment = experiment::load_text("t", TEXT, &sets).expect("a whole experiment").experiment;
        table(&experiment, &Weights::of(&experiment.model), param, sharded)
    }

    /// The names of the rows without those of parameters: each once, in the table's order.
    fn kinds(rows: &[Row]) -> Vec<String> {
        let mut kinds: Vec<String> = rows
            .iter()
            .map(|row| match row.home {
                Home::Host(_) => row.name.clone(),
                Home::Weights(_) => String::new(),
                Home::Optimizer { .. } => row.name.split('/').next().expect("a prefix").to_owned(),
            })
            .collect();
        kinds.dedup();
        kinds
    }

    #[test]
    fn the_names_are_those_that_checkpoints_have() {
        let host = [
            "train/step",
            "train/updates",
            "train/data_offset",
            "guard/skips_in_a_row",
            "guard/loss_window",
            "guard/grad_window",
            "",
        ];
        let all = |optimizer: &[&'static str]| [&host[..], optimizer].concat();
        assert_eq!(kinds(&rows(Dtype::F32, false, &[])), all(&["adam_m", "adam_v"]));
        assert_eq!(kinds(&rows(Dtype::BF16, false, &[])), all(&["adam_m", "adam_v", "master"]));
        let rounded = ["precision.master_weights=false"];
        assert_eq!(kinds(&rows(Dtype::BF16, false, &rounded)), all(&["adam_m", "adam_v"]));
    }

    #[test]
    fn ranks_share_what_the_optimizer_keeps_and_nothing_else() {
        for row in rows(Dtype::BF16, true, &[]) {
            let sharded = matches!(row.home, Home::Optimizer { .. });
            assert_eq!(row.division == Division::Sharded, sharded, "{}", row.name);
            let narrow = matches!(row.home, Home::Weights(_));
            assert_eq!(row.dtype == Dtype::BF16, narrow, "{}", row.name);
        }
        assert!(rows(Dtype::BF16, false, &[]).iter().all(|row| row.division == Division::Replicated));
    }

    #[test]
    fn padding_rows_take_memory_and_are_no_part_of_the_state() {
        let rows = rows(Dtype::F32, false, &[]);
        let row = |name: &str| rows.iter().find(|row| row.name == name).expect("a row");
        let wte = row("wte.weight");
        let [vocab, channels] = wte.shape[..] else { panic!("{:?}", wte.shape) };
        assert!(wte.len > vocab * channels, "the byte tokenizer's vocabulary is padded");
        let whole = Piece { tensor: 0, start: 0, len: wte.len };
        assert_eq!(wte.bytes_of(&whole), 0..wte.bytes());
        let padding = Piece { tensor: 0, start: vocab * channels, len: wte.len - vocab * channels };
        assert!(wte.bytes_of(&padding).is_empty());
        assert_eq!(row("guard/loss_window").bytes(), 16 * 8);
    }
}
