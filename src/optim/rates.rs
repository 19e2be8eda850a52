//! What an update takes from its step and from the group of a parameter: factors on the learning rate, and
//! the decay of Muon's momentum in the first steps. Functions of the keys and the step's number alone, so
//! that a resumed run needs no state for them.

use super::ParamKind;
use crate::experiment::OptimizerKeys;

/// What the schedule's learning rate is multiplied by for parameters of this kind. The product, in f64, is
/// rounded once; a factor of 1 changes no bit of it.
pub fn factor(config: &OptimizerKeys, kind: ParamKind) -> f64 {
    match kind {
        ParamKind::Table => config.rate_tables,
        ParamKind::Head => config.rate_head,
        ParamKind::Vector => config.rate_vectors,
        ParamKind::Matrix { .. } => config.rate_matrices,
    }
}

/// The decay of Muon's momentum at `step` (from 0): in a straight line from `momentum_start` at step 0 to
/// `momentum` at step `momentum_warmup_steps`, and that from there on.
pub fn momentum(config: &OptimizerKeys, step: u64) -> f64 {
    let OptimizerKeys { momentum, momentum_start: start, momentum_warmup_steps: warmup, .. } = *config;
    if step >= warmup {
        return momentum;
    }
    start + (momentum - start) * (step as f64 / warmup as f64)
}

#[cfg(test)]
mod tests {
    use super::super::adamw::tests::ADAM;
    use super::*;

    #[test]
    fn each_kind_has_its_own_factor() {
        let config =
            OptimizerKeys { rate_tables: 2.0, rate_head: 3.0, rate_vectors: 4.0, rate_matrices: 5.0, ..ADAM };
        let kinds = [
            (ParamKind::Table, 2.0),
            (ParamKind::Head, 3.0),
            (ParamKind::Vector, 4.0),
            (ParamKind::Matrix { rows: [1, 0, 0] }, 5.0),
            (ParamKind::Matrix { rows: [1, 1, 1] }, 5.0),
        ];
        for (kind, expected) in kinds {
            assert_eq!(factor(&config, kind), expected, "{kind:?}");
            assert_eq!(factor(&ADAM, kind), 1.0, "{kind:?}");
        }
    }

    #[test]
    fn the_momentum_goes_in_a_straight_line_and_stays() {
        let config = OptimizerKeys { momentum_warmup_steps: 300, ..ADAM };
        assert_eq!(momentum(&config, 0), 0.85);
        assert!((momentum(&config, 1) - (0.85 + 0.1 / 300.0)).abs() < 1e-15);
        assert!((momentum(&config, 150) - 0.9).abs() < 1e-15);
        assert!(momentum(&config, 299) < 0.95);
        for step in [300, 301, u64::MAX] {
            assert_eq!(momentum(&config, step), 0.95);
        }
        let falling = OptimizerKeys { momentum_start: 0.99, ..config };
        assert!(momentum(&falling, 1) < 0.99 && momentum(&falling, 299) > 0.95);
    }

    #[test]
    fn without_a_warm_up_the_momentum_is_what_the_key_says_in_every_step() {
        for step in [0, 1, 1000] {
            assert_eq!(momentum(&ADAM, step).to_bits(), 0.95_f64.to_bits());
        }
    }
}
