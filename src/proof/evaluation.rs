//! What was measured before a step, as counts and bits: validation loss and HellaSwag.

/// What was measured; nothing where nothing was due.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Evaluation {
    pub validation: Option<Validation>,
    pub hellaswag: Option<HellaSwag>,
}

impl Evaluation {
    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.validation.is_none() && self.hellaswag.is_none()
    }
}

/// Loss over a fixed set of tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Validation {
    /// Mean loss, nats a token: one f64 sum from the first token to the last, divided once.
    pub loss: f64,
    /// Tokens in the set.
    pub tokens: u64,
}

/// Tasks decided right. Each score is one of these counts divided by `tasks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HellaSwag {
    pub tasks: u64,
    /// By llm.c's rule.
    pub llmc_correct: u64,
    /// By lm-eval's `acc` and `acc_norm`; none where the tasks lack its wording.
    pub acc_correct: Option<u64>,
    pub acc_norm_correct: Option<u64>,
}

impl HellaSwag {
    /// llm.c's score, 0 to 1.
    pub fn llmc(&self) -> f64 {
        self.share(self.llmc_correct)
    }

    /// lm-eval's `acc`, 0 to 1.
    pub fn acc(&self) -> Option<f64> {
        self.acc_correct.map(|correct| self.share(correct))
    }

    /// lm-eval's `acc_norm`, 0 to 1.
    pub fn acc_norm(&self) -> Option<f64> {
        self.acc_norm_correct.map(|correct| self.share(correct))
    }

    fn share(&self, correct: u64) -> f64 {
        correct as f64 / self.tasks as f64
    }
}
