//! From gradients to new weights: learning rates, the optimizer's update, and the guards that skip a bad
//! step. Host arithmetic in f64 with the pinned `libm`; no model.
//!
//! An optimizer is an [`UpdateRule`]: it says which tensors it keeps for a parameter, and how its operation
//! is called. The training state, checkpoints, digests, ZeRO and the memory plan follow from that; nothing
//! outside the optimizer's own file and its operation knows which tensors there are.

pub mod adamw;
pub mod average;
pub mod guards;
pub mod muon;
mod rates;
pub mod schedule;

pub use average::AVERAGE;
pub use guards::{Guards, Verdict};
pub use schedule::learning_rate;

use crate::experiment::{Experiment, OptimizerKind};
use crate::ops::{Dtype, LinearShape, Ops, Result};

/// A tensor that an optimizer keeps for a parameter and reads in the next update: f32, of the parameter's
/// shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateRow {
    /// Its name in the state is this before the parameter's, and ends with a slash.
    pub prefix: &'static str,
    /// Its name in the memory plan.
    pub label: &'static str,
    pub start: Start,
}

/// The content of an optimizer's tensor before the first update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    Zero,
    /// The parameter's values, before they are rounded to its type.
    Parameter,
}

/// An fp32 copy of a parameter that is stored narrower: it takes the updates, and the parameter is rounded
/// from it.
pub const MASTER: StateRow = StateRow { prefix: "master/", label: "master weights", start: Start::Parameter };

/// Whether parameters stored as `param` have masters.
fn keeps_masters(experiment: &Experiment, param: Dtype) -> bool {
    param != Dtype::F32 && experiment.precision.master_weights
}

/// The kind of a parameter, for the optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamKind {
    /// Rows that are looked up: tokens, positions.
    Table,
    /// The classifier, where it is not the table of tokens.
    Head,
    /// Weights of a linear layer, (out, in), or of up to three that stand above each other: the rows of each.
    Matrix { rows: [usize; 3] },
    /// Biases, and the vectors of norms.
    Vector,
}

/// A parameter, as far as an optimizer looks at it.
#[derive(Clone, Copy, Debug)]
pub struct Parameter<'a> {
    /// Number in the model's order; enters the counter of stochastic rounding.
    pub id: u32,
    pub kind: ParamKind,
    /// Of the whole parameter, without padding rows.
    pub shape: &'a [usize],
}

/// A parameter in an update, or the part of it that is updated on this rank.
pub struct Slot<'a, O: Ops> {
    pub parameter: Parameter<'a>,
    /// First element of the part.
    pub at: usize,
    /// The whole parameter.
    pub param: &'a mut O::Buf,
    /// The gradient, whole or the part alone.
    pub grad: &'a O::Buf,
    /// Where in `grad` the part begins.
    pub grad_at: usize,
    /// The part of what [`UpdateRule::state`] lists, in its order.
    pub state: &'a mut [O::Buf],
}

/// Which update it is, and how far it goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UpdateStep {
    /// The schedule's, before the factor of a parameter's group.
    pub learning_rate: f64,
    /// Global norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Counts updates from 1.
    pub update: u64,
    /// Counts steps from 0, skipped ones included.
    pub step: u64,
}

/// What an update takes on the device beside the state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workspace {
    /// Lengths of buffers of activations. They hold nothing between updates.
    pub buffers: Vec<usize>,
    /// Layers whose outputs or input gradients it computes, without bias.
    pub layers: Vec<LinearShape>,
}

/// An optimizer.
pub trait UpdateRule {
    /// The tensors kept for a parameter. Parameters may differ in them.
    fn state(&self, parameter: &Parameter<'_>) -> Vec<StateRow>;

    /// Whether a parameter can only be updated as a whole, and is on one rank.
    fn is_whole(&self, _parameter: &Parameter<'_>) -> bool {
        false
    }

    /// What updating `parameters` takes beside the state.
    fn workspace(&self, _parameters: &[Parameter<'_>]) -> Workspace {
        Workspace::default()
    }

    /// One update of all `slots`, which are in the model's order. `workspace` has the buffers that
    /// [`UpdateRule::workspace`] lists.
    fn update<O: Ops>(
        &self,
        ops: &mut O,
        slots: Vec<Slot<'_, O>>,
        workspace: &mut [O::Buf],
        at: &UpdateStep,
    ) -> Result<()>;
}

/// The optimizer of an experiment on a device that stores parameters as `param`, with the average of the
/// weights if it keeps one.
pub fn update_rule(experiment: &Experiment, param: Dtype) -> impl UpdateRule {
    let decay = Some(experiment.optimizer.ema_decay).filter(|decay| *decay > 0.0);
    let rule = match experiment.optimizer.kind {
        OptimizerKind::AdamW => Rule::AdamW(adamw::AdamWRule::new(experiment, param)),
        OptimizerKind::Muon => Rule::Muon(muon::MuonRule::new(experiment, param)),
    };
    average::Averaged { rule, decay }
}

/// The optimizer that `optimizer.kind` names.
enum Rule<'a> {
    AdamW(adamw::AdamWRule<'a>),
    Muon(muon::MuonRule<'a>),
}

/// What the rule in `$of` answers.
macro_rules! ask {
    ($of:expr, $rule:ident => $answer:expr) => {
        match $of {
            Rule::AdamW($rule) => $answer,
            Rule::Muon($rule) => $answer,
        }
    };
}

impl UpdateRule for Rule<'_> {
    fn state(&self, parameter: &Parameter<'_>) -> Vec<StateRow> {
        ask!(self, rule => rule.state(parameter))
    }

    fn is_whole(&self, parameter: &Parameter<'_>) -> bool {
        ask!(self, rule => rule.is_whole(parameter))
    }

    fn workspace(&self, parameters: &[Parameter<'_>]) -> Workspace {
        ask!(self, rule => rule.workspace(parameters))
    }

    fn update<O: Ops>(
        &self,
        ops: &mut O,
        slots: Vec<Slot<'_, O>>,
        workspace: &mut [O::Buf],
        at: &UpdateStep,
    ) -> Result<()> {
        ask!(self, rule => rule.update(ops, slots, workspace, at))
    }
}
