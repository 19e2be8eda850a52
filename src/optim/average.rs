//! The average of the weights over the updates, kept beside them and evaluated beside them. No update reads
//! it.
//!
//! With decay `d` the average after update t is the mean of the weights after updates 1 to t, in which those
//! of update i weigh `d^(t - i)`: an exponential average without the weights that training started from,
//! corrected as AdamW's moments are. From one update to the next that is
//!
//! ```text
//! rate    = (1 - d) / (1 - d^t)                  in f64, rounded once to f32
//! average = fma(rate, w - average, average)      in f32, element by element
//! ```
//!
//! of the masters `w` where there are any, else of the parameters. A step that a guard skips is no update and
//! changes no average.

use super::{MASTER, Parameter, Slot, Start, StateRow, UpdateRule, UpdateStep, Workspace};
use crate::ops::{Average, Ops, Result};

/// The average of a parameter.
pub const AVERAGE: StateRow = StateRow { prefix: "ema/", label: "averaged weights", start: Start::Parameter };

/// An optimizer, and the average of the weights that it makes.
pub struct Averaged<R> {
    pub rule: R,
    /// The decay an update; none where no average is kept.
    pub decay: Option<f64>,
}

/// The weight of the weights after update `update`, counted from 1, in the average.
fn rate(decay: f64, update: u64) -> f32 {
    ((1.0 - decay) / (1.0 - libm::pow(decay, update as f64))) as f32
}

impl<R: UpdateRule> UpdateRule for Averaged<R> {
    fn state(&self, parameter: &Parameter<'_>) -> Vec<StateRow> {
        let mut state = self.rule.state(parameter);
        state.extend(self.decay.map(|_| AVERAGE));
        state
    }

    fn is_whole(&self, parameter: &Parameter<'_>) -> bool {
        self.rule.is_whole(parameter)
    }

    fn workspace(&self, parameters: &[Parameter<'_>]) -> Workspace {
        self.rule.workspace(parameters)
    }

    fn update<O: Ops>(
        &self,
        ops: &mut O,
        mut slots: Vec<Slot<'_, O>>,
        workspace: &mut [O::Buf],
        at: &UpdateStep,
    ) -> Result<()> {
        let Some(decay) = self.decay else { return self.rule.update(ops, slots, workspace, at) };
        let of_rule = slots.iter_mut().map(|slot| {
            let (_, state) = slot.state.split_last_mut().expect("the average is the last tensor");
            let Slot { parameter, at, grad, grad_at, .. } = *slot;
            Slot { parameter, at, param: &mut *slot.param, grad, grad_at, state }
        });
        let of_rule = of_rule.collect();
        self.rule.update(ops, of_rule, workspace, at)?;
        let rate = rate(decay, at.update);
        for Slot { parameter, at, param, state, .. } in slots {
            let (average, state) = state.split_last_mut().expect("the average is the last tensor");
            let rows = self.rule.state(&parameter);
            let master = rows.iter().position(|row| *row == MASTER).map(|master| &state[master]);
            ops.average(Average { average, param: &*param, at, master, rate })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_is_the_mean_of_the_weights_of_the_updates_by_their_age() {
        let (decay, weights) = (0.75, [3.0f64, -1.0, 0.5, 8.0, 2.0]);
        let mut average = 100.0f64;
        for (weight, update) in weights.iter().zip(1..) {
            average += f64::from(rate(decay, update)) * (weight - average);
            let parts = (0..update).map(|age| (decay.powi(age as i32), weights[(update - 1 - age) as usize]));
            let (sum, all) = parts.fold((0.0, 0.0), |(sum, all), (part, w)| (sum + part * w, all + part));
            assert!((average - sum / all).abs() < 1e-6, "{update}: {average} and {}", sum / all);
        }
        assert_eq!(rate(0.9999, 1), 1.0, "nothing is left of the weights before the first update");
    }
}
