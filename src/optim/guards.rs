//! The guards: a step whose loss or gradient norm is an outlier does not change the weights.
//!
//! The z-score of a new value is taken against the window *before* it, so that an outlier cannot
//! hide in its own statistics; a skipped value never enters the window; a value that is not finite
//! is skipped whatever the thresholds. The windows are part of the training state, so a resumed run decides
//! as the uninterrupted one.

use std::collections::VecDeque;

/// The last accepted values of one quantity.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    size: usize,
    values: VecDeque<f64>,
}

impl Window {
    pub fn new(size: usize) -> Window {
        Window { size, values: VecDeque::with_capacity(size) }
    }

    /// A window with these values, oldest first; more than `size` keep the newest.
    pub fn from_values(size: usize, values: &[f64]) -> Window {
        let mut window = Window::new(size);
        values.iter().for_each(|&v| window.push(v));
        window
    }

    /// How many values it holds when it is full.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Oldest first.
    pub fn values(&self) -> impl Iterator<Item = f64> {
        self.values.iter().copied()
    }

    /// How many standard deviations `value` is above the window's mean; `None` until it is full.
    /// Mean and population variance are summed from oldest to newest.
    pub fn z_score(&self, value: f64) -> Option<f64> {
        if self.values.len() < self.size {
            return None;
        }
        let n = self.size as f64;
        let mean = self.values().sum::<f64>() / n;
        let variance = self.values().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
        let distance = value - mean;
        Some(if distance == 0.0 { 0.0 } else { distance / libm::sqrt(variance) })
    }

    fn push(&mut self, value: f64) {
        if self.values.len() == self.size {
            self.values.pop_front();
        }
        self.values.push_back(value);
    }
}

/// The guards' decision on a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Update,
    SkipLoss,
    SkipGrad,
    SkipNonfinite,
}

impl Verdict {
    /// The word in metrics, ledger and console.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Update => "update",
            Verdict::SkipLoss => "skip_loss_z",
            Verdict::SkipGrad => "skip_grad_z",
            Verdict::SkipNonfinite => "skip_nonfinite",
        }
    }
}

/// A verdict and the z-scores behind it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judgement {
    pub verdict: Verdict,
    pub loss_z: Option<f64>,
    pub grad_z: Option<f64>,
}

/// The guards with their windows.
#[derive(Clone, Debug, PartialEq)]
pub struct Guards {
    config: crate::experiment::GuardKeys,
    pub loss: Window,
    pub grad: Window,
    /// Steps skipped since the last update.
    pub skips_in_a_row: u64,
}

impl Guards {
    pub fn new(config: &crate::experiment::GuardKeys) -> Guards {
        Guards {
            loss: Window::new(config.window),
            grad: Window::new(config.window),
            skips_in_a_row: 0,
            config: config.clone(),
        }
    }

    /// The verdict on a step, whose values enter the windows if it is an update.
    pub fn judge(&mut self, loss: f64, grad_norm: f64) -> Judgement {
        let (loss_z, grad_z) = (self.loss.z_score(loss), self.grad.z_score(grad_norm));
        let over = |z: Option<f64>, limit: f64| limit > 0.0 && z.is_some_and(|z| z > limit);
        let verdict = if !loss.is_finite() || !grad_norm.is_finite() {
            Verdict::SkipNonfinite
        } else if over(loss_z, self.config.loss_z) {
            Verdict::SkipLoss
        } else if over(grad_z, self.config.grad_z) {
            Verdict::SkipGrad
        } else {
            Verdict::Update
        };
        if verdict == Verdict::Update {
            self.loss.push(loss);
            self.grad.push(grad_norm);
            self.skips_in_a_row = 0;
        } else {
            self.skips_in_a_row += 1;
        }
        Judgement { verdict, loss_z, grad_z }
    }

    /// Whether training has diverged: `guards.patience` steps in a row were skipped.
    pub fn diverged(&self) -> bool {
        self.skips_in_a_row >= self.config.patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::OnDiverge;

    fn guards() -> Guards {
        let mut guards = Guards::new(&crate::experiment::GuardKeys {
            loss_z: 5.0,
            grad_z: 5.0,
            window: 128,
            patience: 3,
            on_diverge: OnDiverge::Stop,
        });
        for i in 0..128 {
            let wobble = f64::from(i % 7) * 0.01;
            assert_eq!(guards.judge(3.0 + wobble, 1.0 + wobble).verdict, Verdict::Update);
        }
        guards
    }

    /// llm.c counts a value in its own window of 128, where its z-score cannot pass 11.27.
    #[test]
    fn an_outlier_is_measured_against_the_window_before_it() {
        let judged = guards().judge(1e6, 1.0);
        assert_eq!(judged.verdict, Verdict::SkipLoss);
        assert!(judged.loss_z.expect("full") > 1e6);
    }

    /// In llm.c a NaN enters the window, after which no outlier is detected.
    #[test]
    fn a_value_that_is_not_finite_is_skipped_and_forgotten() {
        let mut guards = guards();
        let before = guards.loss.clone();
        for bad in [(f64::NAN, 1.0), (f64::INFINITY, 1.0), (3.0, f64::NAN)] {
            assert_eq!(guards.judge(bad.0, bad.1).verdict, Verdict::SkipNonfinite);
        }
        assert_eq!(guards.loss, before);
        assert!(guards.diverged());
        assert_eq!(guards.judge(3.0, 1.0).verdict, Verdict::Update);
        assert!(!guards.diverged());
    }

    #[test]
    fn thresholds_of_zero_watch_only_for_values_that_are_not_finite() {
        let mut guards = guards();
        guards.config.loss_z = 0.0;
        guards.config.grad_z = 0.0;
        assert_eq!(guards.judge(1e9, 1e9).verdict, Verdict::Update);
        assert_eq!(guards.judge(f64::NAN, 1.0).verdict, Verdict::SkipNonfinite);
    }

    #[test]
    fn the_norm_is_guarded_as_the_loss_is_and_a_fall_is_no_fault() {
        let mut guards = guards();
        assert_eq!(guards.judge(3.0, 50.0).verdict, Verdict::SkipGrad);
        assert_eq!(guards.judge(0.5, 0.01).verdict, Verdict::Update);
    }

    #[test]
    fn a_window_that_is_not_full_gives_no_score() {
        let mut window = Window::new(3);
        window.push(1.0);
        window.push(2.0);
        assert_eq!(window.z_score(9.0), None);
        window.push(3.0);
        let z = window.z_score(4.0).expect("full");
        assert!((z - 2.0 / libm::sqrt(2.0 / 3.0)).abs() < 1e-12);
        window.push(4.0);
        assert_eq!(window.values().collect::<Vec<_>>(), [2.0, 3.0, 4.0]);
    }
}
