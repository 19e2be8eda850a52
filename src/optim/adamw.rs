//! AdamW (Loshchilov and Hutter 2019): what it keeps for a parameter, and the scalars of an update.
//!
//! Two moments for every parameter, and an fp32 master where the parameter is stored narrower. The
//! arithmetic of an element is the device's, [`Ops::adamw`].

use super::{
    MASTER, ParamKind, Parameter, Slot, Start, StateRow, UpdateRule, UpdateStep, keeps_masters, rates,
};
use crate::experiment::{self, Experiment};
use crate::ops::{AdamW, AdamWUpdate, Dtype, Ops, ParamSlot, Result};
use crate::rng::Key;

/// Decaying mean of the gradients.
const FIRST: StateRow = StateRow { prefix: "adam_m/", label: "moments", start: Start::Zero };
/// Decaying mean of their squares.
const SECOND: StateRow = StateRow { prefix: "adam_v/", label: "moments", start: Start::Zero };

/// AdamW with an experiment's settings.
pub struct AdamWRule<'a> {
    config: &'a experiment::OptimizerKeys,
    seed: u64,
    /// Whether updates go to fp32 masters, from which parameters are rounded.
    pub(super) masters: bool,
}

impl<'a> AdamWRule<'a> {
    /// The rule of an experiment on a device that stores parameters as `param`.
    pub fn new(experiment: &'a Experiment, param: Dtype) -> AdamWRule<'a> {
        let masters = keeps_masters(experiment, param);
        AdamWRule { config: &experiment.optimizer, seed: experiment.seed, masters }
    }

    /// The scalars of one update of parameters of this kind, each computed in f64 and rounded once.
    pub(super) fn scalars(&self, at: &UpdateStep, kind: ParamKind) -> AdamW {
        let config = self.config;
        let correction = |beta: f64| (1.0 / (1.0 - libm::pow(beta, at.update as f64))) as f32;
        let clip = if config.grad_clip > 0.0 && at.grad_norm > config.grad_clip {
            config.grad_clip / at.grad_norm
        } else {
            1.0
        };
        AdamW {
            learning_rate: (at.learning_rate * rates::factor(config, kind)) as f32,
            beta1: config.beta1 as f32,
            beta2: config.beta2 as f32,
            epsilon: config.epsilon as f32,
            correction1: correction(config.beta1),
            correction2: correction(config.beta2),
            grad_scale: clip as f32,
            rounding_key: Key::new(self.seed, "stochastic rounding").0,
            step: at.step,
        }
    }

    /// Matrices and tables decay, vectors do not.
    pub(super) fn weight_decay(&self, kind: ParamKind) -> f32 {
        match kind {
            ParamKind::Table | ParamKind::Head | ParamKind::Matrix { .. } => self.config.weight_decay as f32,
            ParamKind::Vector => 0.0,
        }
    }
}

impl UpdateRule for AdamWRule<'_> {
    fn state(&self, _parameter: &Parameter<'_>) -> Vec<StateRow> {
        if self.masters { vec![FIRST, SECOND, MASTER] } else { vec![FIRST, SECOND] }
    }

    fn update<O: Ops>(
        &self,
        ops: &mut O,
        slots: Vec<Slot<'_, O>>,
        _workspace: &mut [O::Buf],
        at: &UpdateStep,
    ) -> Result<()> {
        let slot = |slot| {
            let Slot { parameter, at, param, grad, grad_at, state } = slot;
            let (adam_m, adam_v, master) = match state {
                [adam_m, adam_v] => (adam_m, adam_v, None),
                [adam_m, adam_v, master] => (adam_m, adam_v, Some(master)),
                _ => unreachable!("a slot has the tensors that `state` lists"),
            };
            let (id, weight_decay) = (parameter.id, self.weight_decay(parameter.kind));
            ParamSlot { id, at, param, master, grad, grad_at, adam_m, adam_v, weight_decay }
        };
        // Parameters of one learning rate are one operation: all of them, unless groups have factors.
        let mut updates: Vec<AdamWUpdate<'_, O::Buf>> = Vec::new();
        for each in slots {
            let scalars = self.scalars(at, each.parameter.kind);
            let rate = |update: &AdamWUpdate<'_, O::Buf>| update.scalars.learning_rate.to_bits();
            let known = updates.iter_mut().find(|update| rate(update) == scalars.learning_rate.to_bits());
            match known {
                Some(update) => update.slots.push(slot(each)),
                None => updates.push(AdamWUpdate { slots: vec![slot(each)], scalars }),
            }
        }
        updates.into_iter().try_for_each(|update| ops.adamw(update))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The defaults.
    pub const ADAM: experiment::OptimizerKeys = experiment::OptimizerKeys {
        kind: experiment::OptimizerKind::AdamW,
        momentum: 0.95,
        momentum_warmup_steps: 0,
        momentum_start: 0.85,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        rate_tables: 1.0,
        rate_head: 1.0,
        rate_vectors: 1.0,
        rate_matrices: 1.0,
        grad_clip: 1.0,
        z_loss: 0.0,
        ema_decay: 0.0,
        from_init: false,
    };

    fn rule(config: &experiment::OptimizerKeys) -> AdamWRule<'_> {
        AdamWRule { config, seed: 1, masters: false }
    }

    fn at(update: u64, grad_norm: f64) -> UpdateStep {
        UpdateStep { learning_rate: 6e-4, grad_norm, update, step: update - 1 }
    }

    #[test]
    fn the_first_update_is_fully_corrected() {
        let scalars = rule(&ADAM).scalars(&at(1, 0.5), ParamKind::Table);
        assert_eq!(scalars.correction1, (1.0f64 / (1.0 - 0.9)) as f32);
        assert_eq!(scalars.correction2, (1.0f64 / (1.0 - 0.95)) as f32);
        assert_eq!(scalars.grad_scale, 1.0);
    }

    #[test]
    fn a_norm_above_the_limit_is_scaled_to_it_and_zero_turns_clipping_off() {
        assert_eq!(rule(&ADAM).scalars(&at(5, 4.0), ParamKind::Table).grad_scale, 0.25);
        let off = experiment::OptimizerKeys { grad_clip: 0.0, ..ADAM };
        assert_eq!(rule(&off).scalars(&at(5, 4.0), ParamKind::Table).grad_scale, 1.0);
    }

    #[test]
    fn the_factor_of_a_group_is_on_its_learning_rate_alone() {
        let plain = rule(&ADAM).scalars(&at(3, 0.5), ParamKind::Head);
        assert_eq!(plain.learning_rate.to_bits(), 6e-4_f32.to_bits());
        let config = experiment::OptimizerKeys { rate_head: 1.7, ..ADAM };
        let head = rule(&config).scalars(&at(3, 0.5), ParamKind::Head);
        assert_eq!(head.learning_rate, (6e-4 * 1.7) as f32);
        let table = rule(&config).scalars(&at(3, 0.5), ParamKind::Table);
        assert_eq!(table.learning_rate.to_bits(), 6e-4_f32.to_bits());
        let others = |scalars: AdamW| (scalars.beta1, scalars.correction2, scalars.grad_scale, scalars.step);
        assert_eq!(others(head), others(plain));
    }

    #[test]
    fn weights_decay_and_vectors_do_not() {
        let kinds =
            [ParamKind::Table, ParamKind::Head, ParamKind::Matrix { rows: [1, 0, 0] }, ParamKind::Vector];
        assert_eq!(kinds.map(|kind| rule(&ADAM).weight_decay(kind)), [0.1, 0.1, 0.1, 0.0]);
    }
}
