//! Rules on how long to train and on the learning rate.

use figment::value::Value;

use super::super::diagnostics::Fault;
use super::Rules;

impl Rules {
    pub(super) fn schedule(&mut self) {
        let (steps, epochs) = (self.int("schedule.steps"), self.int("schedule.epochs"));
        if steps.is_none() && epochs.is_none() && self.truly_missing(&["schedule.steps", "schedule.epochs"]) {
            let hint = "set `schedule.steps`, or `schedule.epochs` to pass over the data that many times";
            self.refuse(Fault::new("the experiment does not say how long to train").hint(hint.to_string()));
        }
        if let (Some(steps), Some(warmup)) = (steps, self.int("schedule.warmup_steps"))
            && warmup > steps
        {
            let message = format!("the warm-up of {warmup} steps is longer than the run of {steps}");
            let fault = self.clash(message, &["schedule.warmup_steps", "schedule.steps"]);
            self.refuse(fault);
        }
        if self.text("schedule.kind").as_deref() == Some("range") {
            self.range_test();
        }
        self.smallest_rate();
        self.shares_without_effect();
        if steps.is_none() && epochs.is_some() {
            self.derive("schedule.steps", 0u64, "from schedule.epochs");
        }
    }

    /// Says of shares that the kind of schedule does not use. No fault: a sweep over kinds sets them for all.
    fn shares_without_effect(&mut self) {
        let Some(kind) = self.text("schedule.kind") else { return };
        // With their defaults, which a resolved experiment lists.
        let shares = [
            ("schedule.decay_fraction", 0.2, kind == "wsd"),
            ("schedule.final_fraction", 0.1, kind != "constant"),
        ];
        for (key, default, used) in shares {
            if !used && self.number(key).is_some_and(|share| share != default) {
                let remark = format!("`{key}` does nothing: `schedule.kind` is \"{kind}\"");
                self.layers.remarks.push(remark);
            }
        }
    }

    /// The rate that a schedule comes down to, or that a range test begins at, is a number that is computed
    /// with.
    fn smallest_rate(&mut self) {
        const SHARE: &str = "schedule.final_fraction";
        const PEAK: &str = "schedule.learning_rate";
        let (Some(kind), Some(share), Some(peak)) =
            (self.text("schedule.kind"), self.number(SHARE), self.number(PEAK))
        else {
            return;
        };
        if kind == "constant" || share == 0.0 || (peak * share) as f32 != 0.0 {
            return;
        }
        let which = if kind == "range" { "first" } else { "last" };
        let message = format!(
            "the {which} learning rate, `{SHARE}` = {share:?} of the peak, becomes 0.0 in the 32 bits that \
             are computed with"
        );
        let fault = self.clash(message, &[SHARE, PEAK]);
        self.refuse(fault.hint(match which {
            "first" => format!("set `{SHARE}` to the first share of the peak: 1e-4"),
            _ => format!("set `{SHARE}` to 0.0, or so that the rate is at least 1.5e-45"),
        }));
    }

    /// A range test has a first rate, and begins there.
    fn range_test(&mut self) {
        if self.get("schedule.final_fraction").is_some_and(is_zero) {
            let message = "a range test that begins at a learning rate of 0 stays there".to_string();
            let fault = self.clash(message, &["schedule.kind", "schedule.final_fraction"]);
            self.refuse(
                fault.hint("set `schedule.final_fraction` to the first share of the peak: 1e-4".to_string()),
            );
        }
        if self.int("schedule.warmup_steps").is_some_and(|warmup| warmup > 0) {
            let message = "a range test has no warm-up: it begins with the smallest rate".to_string();
            let fault = self.clash(message, &["schedule.kind", "schedule.warmup_steps"]);
            self.refuse(fault.hint("set `schedule.warmup_steps` to 0".to_string()));
        }
    }
}

/// Whether a number is 0, written as `0` or `0.0`.
fn is_zero(value: Value) -> bool {
    value.to_num().is_some_and(|number| number.to_f64() == Some(0.0) || number.to_u128() == Some(0))
}
