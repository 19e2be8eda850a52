//! Learning-rate schedules: a pure function of the step.

use crate::experiment::{ScheduleKeys, ScheduleKind};

/// The learning rate of `step` (from 0).
///
/// All kinds but `range` begin with a linear warm-up, `(step + 1) / warmup` of the peak, and end at
/// `final_fraction` of it; `constant` stays at the peak, `wsd` (warm-up, stable, decay) falls by
/// `1 - sqrt` over its last `decay_fraction` of the steps (Hägele et al. 2024). `range` (Smith 2017, here
/// with equal factors) begins at `final_fraction` of the peak and would reach the peak one step behind the
/// last.
pub fn learning_rate(schedule: &ScheduleKeys, step: u64) -> f64 {
    let peak = schedule.learning_rate;
    if step < schedule.warmup_steps {
        return peak * (step + 1) as f64 / schedule.warmup_steps as f64;
    }
    let floor = peak * schedule.final_fraction;
    let past_warmup = ratio(step, schedule.warmup_steps, schedule.steps);
    match schedule.kind {
        ScheduleKind::Constant => peak,
        ScheduleKind::Linear => peak + (floor - peak) * past_warmup,
        ScheduleKind::Cosine => {
            floor + 0.5 * (1.0 + libm::cos(std::f64::consts::PI * past_warmup)) * (peak - floor)
        }
        ScheduleKind::Wsd => {
            let decay_steps = libm::round(schedule.decay_fraction * schedule.steps as f64) as u64;
            let start = schedule.steps.saturating_sub(decay_steps).max(schedule.warmup_steps);
            if step < start {
                return peak;
            }
            floor + (1.0 - libm::sqrt(ratio(step, start, schedule.steps))) * (peak - floor)
        }
        ScheduleKind::Range => peak * libm::pow(schedule.final_fraction, 1.0 - past_warmup),
    }
}

/// How far `step` is from `from` to `to`, in [0, 1].
fn ratio(step: u64, from: u64, to: u64) -> f64 {
    if to <= from {
        return 1.0;
    }
    ((step.saturating_sub(from)) as f64 / (to - from) as f64).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: ScheduleKind) -> ScheduleKeys {
        ScheduleKeys {
            kind,
            steps: 32_000,
            learning_rate: 6e-4,
            warmup_steps: 700,
            final_fraction: 0.1,
            decay_fraction: 0.2,
        }
    }

    #[test]
    fn llm_c_printed_this_rate_at_its_second_step() {
        // llm.c printed `lr 1.71e-06` at step 2 of 32000, counted from 1.
        let lr = learning_rate(&schedule(ScheduleKind::Cosine), 1);
        assert_eq!(format!("{lr:.2e}"), "1.71e-6");
    }

    #[test]
    fn warm_up_reaches_the_peak_and_every_kind_keeps_its_promise_at_the_end() {
        for kind in [ScheduleKind::Cosine, ScheduleKind::Linear, ScheduleKind::Constant, ScheduleKind::Wsd] {
            let s = schedule(kind);
            for step in [699, 700] {
                assert!((learning_rate(&s, step) - 6e-4).abs() < 1e-18, "{kind:?} at {step}");
            }
            let last = learning_rate(&s, 32_000);
            let expected = if kind == ScheduleKind::Constant { 6e-4 } else { 6e-5 };
            assert!((last - expected).abs() < 1e-18, "{kind:?}: {last}");
        }
    }

    #[test]
    fn halfway_cosine_and_linear_are_the_mean_and_wsd_is_still_at_the_peak() {
        let halfway = 700 + (32_000 - 700) / 2;
        assert!((learning_rate(&schedule(ScheduleKind::Cosine), halfway) - 3.3e-4).abs() < 1e-15);
        assert!((learning_rate(&schedule(ScheduleKind::Linear), halfway) - 3.3e-4).abs() < 1e-15);
        assert_eq!(learning_rate(&schedule(ScheduleKind::Wsd), 25_599), 6e-4);
        // A quarter of the way down, half of the height is gone.
        let quarter = learning_rate(&schedule(ScheduleKind::Wsd), 25_600 + 1_600);
        assert!((quarter - 3.3e-4).abs() < 1e-15, "{quarter}");
        let fifth = learning_rate(&schedule(ScheduleKind::Linear), 700 + (32_000 - 700) / 5);
        assert!((fifth - (6e-4 - 0.2 * 5.4e-4)).abs() < 1e-15, "{fifth}");
    }

    #[test]
    fn a_range_test_climbs_to_the_peak_by_one_factor() {
        let schedule = ScheduleKeys {
            warmup_steps: 0,
            final_fraction: 1e-4,
            steps: 400,
            ..schedule(ScheduleKind::Range)
        };
        let rates: Vec<f64> = (0..=400).map(|step| learning_rate(&schedule, step)).collect();
        assert_eq!((rates[0], rates[400]), (6e-4 * 1e-4, 6e-4));
        // Four decades in 400 steps: a tenth of a decade is ten steps.
        for step in 0..=390 {
            let factor = rates[step + 10] / rates[step];
            assert!((factor / libm::pow(10.0, 0.1) - 1.0).abs() < 1e-12, "at {step}: {factor}");
        }
    }

    #[test]
    fn no_warm_up_starts_at_the_peak() {
        let s = ScheduleKeys { warmup_steps: 0, ..schedule(ScheduleKind::Cosine) };
        assert!((learning_rate(&s, 0) - 6e-4).abs() < 1e-18);
    }
}
