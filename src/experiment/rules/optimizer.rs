//! Rules on what the optimizer's keys need of others.

use super::Rules;

/// The factors on the learning rates of groups of parameters.
const FACTORS: [&str; 4] =
    ["optimizer.rate_tables", "optimizer.rate_head", "optimizer.rate_vectors", "optimizer.rate_matrices"];

impl Rules {
    pub(super) fn optimizer(&mut self) {
        self.rates();
        self.momentum();
    }

    /// There is a group for each factor, and the product is a number that is computed with.
    fn rates(&mut self) {
        let factor_of_head = self.number("optimizer.rate_head").filter(|factor| *factor != 1.0);
        if factor_of_head.is_some() && self.boolean("model.tied_head") == Some(true) {
            let message = "`optimizer.rate_head` does nothing: `model.tied_head` is true, and the classifier \
                           is the token table";
            let keys = ["optimizer.rate_head", "model.tied_head"];
            let fault = self.clash(message.to_string(), &keys);
            let hint = "set `model.tied_head` to false, or `optimizer.rate_tables` in its place";
            self.refuse(fault.hint(hint.to_string()));
        }
        let Some(peak) = self.number("schedule.learning_rate") else { return };
        for key in FACTORS {
            let Some(factor) = self.number(key).filter(|factor| *factor != 0.0) else { continue };
            let rate = (peak * factor) as f32;
            if rate == 0.0 || !rate.is_finite() {
                let message = format!(
                    "the learning rate by `{key}` = {factor:?} becomes {rate:?} in the 32 bits that are \
                     computed with"
                );
                let fault = self.clash(message, &[key, "schedule.learning_rate"]);
                let hint = "0 leaves these parameters as they are; any other factor must keep the rate from \
                            1.5e-45 to 3.4e38";
                self.refuse(fault.hint(hint.to_string()));
            }
        }
        // A tied classifier is one of the tables.
        let head = (self.boolean("model.tied_head") != Some(true)).then_some(FACTORS[1]);
        let groups = FACTORS.into_iter().filter(|key| *key != FACTORS[1]).chain(head);
        if groups.clone().all(|key| self.number(key) == Some(0.0)) {
            let groups: Vec<&str> = groups.collect();
            let fault = self.clash("nothing would learn: every `optimizer.rate_*` is 0".to_string(), &groups);
            self.refuse(fault.hint("set one of them above 0".to_string()));
        }
    }

    /// A momentum has an optimizer with one, its warm-up too, and its first value has a warm-up.
    fn momentum(&mut self) {
        const WARMUP: &str = "optimizer.momentum_warmup_steps";
        const START: &str = "optimizer.momentum_start";
        const KIND: &str = "optimizer.kind";
        const MOMENTUM: &str = "optimizer.momentum";
        let (Some(warmup), Some(kind)) = (self.int(WARMUP), self.text(KIND)) else { return };
        if kind != "muon" && self.number(MOMENTUM).is_some_and(|momentum| momentum != 0.95) {
            let message = format!("`{MOMENTUM}` does nothing: it is Muon's, and `{KIND}` is \"{kind}\"");
            let fault = self.clash(message, &[MOMENTUM, KIND]);
            self.refuse(fault.hint(format!("leave it out, or set `{KIND}` to \"muon\"")));
        }
        if warmup > 0 && kind != "muon" {
            let message = format!("`{WARMUP}` does nothing: it is Muon's, and `{KIND}` is \"{kind}\"");
            let fault = self.clash(message, &[WARMUP, KIND]);
            self.refuse(fault.hint(format!("set `{WARMUP}` to 0, or `{KIND}` to \"muon\"")));
        } else if warmup == 0 && self.number(START).is_some_and(|start| start != 0.85) {
            let message = format!("`{START}` does nothing: the momentum of Muon has no warm-up");
            let fault = self.clash(message, &[START, WARMUP, KIND]);
            self.refuse(fault.hint(format!("set `{WARMUP}` to the steps of a warm-up")));
        }
    }
}
