//! What happens to the weights between two steps: learning rates, AdamW's scalars, and the guards
//! that keep a bad step out. Host arithmetic in f64 with the pinned `libm`; no device, no model.

pub mod guards;
pub mod schedule;

pub use guards::{Guards, Verdict};
pub use schedule::learning_rate;

use crate::experiment::Optimizer;
use crate::ops::AdamW;
use crate::rng::Key;

/// The scalars of one update, each computed in f64 and rounded once.
///
/// `update` counts updates from 1; `grad_norm` is the global norm before clipping.
pub fn adamw_scalars(
    optimizer: &Optimizer,
    learning_rate: f64,
    update: u64,
    grad_norm: f64,
    seed: u64,
    step: u64,
) -> AdamW {
    let correction = |beta: f64| (1.0 / (1.0 - libm::pow(beta, update as f64))) as f32;
    let clip = if optimizer.grad_clip > 0.0 && grad_norm > optimizer.grad_clip {
        optimizer.grad_clip / grad_norm
    } else {
        1.0
    };
    AdamW {
        learning_rate: learning_rate as f32,
        beta1: optimizer.beta1 as f32,
        beta2: optimizer.beta2 as f32,
        epsilon: optimizer.epsilon as f32,
        correction1: correction(optimizer.beta1),
        correction2: correction(optimizer.beta2),
        grad_scale: clip as f32,
        rounding_key: Key::new(seed, "stochastic rounding").0,
        step,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADAM: Optimizer =
        Optimizer { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1, grad_clip: 1.0 };

    #[test]
    fn the_first_update_is_fully_corrected() {
        let scalars = adamw_scalars(&ADAM, 6e-4, 1, 0.5, 1, 0);
        assert_eq!(scalars.correction1, (1.0f64 / (1.0 - 0.9)) as f32);
        assert_eq!(scalars.correction2, (1.0f64 / (1.0 - 0.95)) as f32);
        assert_eq!(scalars.grad_scale, 1.0);
    }

    #[test]
    fn a_norm_above_the_limit_is_scaled_to_it_and_zero_turns_clipping_off() {
        assert_eq!(adamw_scalars(&ADAM, 6e-4, 5, 4.0, 1, 4).grad_scale, 0.25);
        let off = Optimizer { grad_clip: 0.0, ..ADAM };
        assert_eq!(adamw_scalars(&off, 6e-4, 5, 4.0, 1, 4).grad_scale, 1.0);
    }
}
