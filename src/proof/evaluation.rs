//! What was measured before a step, as counts and bits: validation loss and HellaSwag.

use std::fmt::Write;

use serde::Deserialize;

use super::entry::{float, push_float};

/// What was measured; empty where no evaluation was due.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Evaluation {
    pub validation: Option<Validation>,
    pub hellaswag: Option<HellaSwag>,
    /// The same of the average of the weights, where one is kept: its mean loss on the tokens of
    /// `validation`, and its counts on the tasks of `hellaswag`.
    pub ema_loss: Option<f64>,
    pub ema_hellaswag: Option<HellaSwag>,
}

impl Evaluation {
    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.validation.is_none() && self.hellaswag.is_none()
    }

    /// Its JSON text in an entry: `null` where nothing was measured. Specified in `docs/digest.md`.
    pub(super) fn push_canonical(&self, text: &mut String) {
        if self.is_empty() {
            return text.push_str("null");
        }
        let mut fields = String::new();
        push_float(&mut fields, "val_loss", self.validation.map(|validation| validation.loss));
        push_count(&mut fields, "val_tokens", self.validation.map(|validation| validation.tokens));
        let hellaswag = self.hellaswag;
        push_count(&mut fields, "hellaswag_tasks", hellaswag.map(|h| h.tasks));
        for (name, correct, score) in [
            ("hellaswag", hellaswag.map(|h| h.llmc_correct), hellaswag.map(|h| h.llmc())),
            ("hellaswag_acc", hellaswag.and_then(|h| h.acc_correct), hellaswag.and_then(|h| h.acc())),
            (
                "hellaswag_acc_norm",
                hellaswag.and_then(|h| h.acc_norm_correct),
                hellaswag.and_then(|h| h.acc_norm()),
            ),
        ] {
            push_count(&mut fields, &format!("{name}_correct"), correct);
            push_float(&mut fields, name, score);
        }
        if let Some(h) = hellaswag.filter(|h| h.acc_bytes_correct.is_some()) {
            push_count(&mut fields, "hellaswag_acc_bytes_correct", h.acc_bytes_correct);
            push_float(&mut fields, "hellaswag_acc_bytes", h.acc_bytes());
        }
        if self.ema_loss.is_some() {
            push_float(&mut fields, "ema_val_loss", self.ema_loss);
        }
        for (name, correct, score) in self.ema_hellaswag.iter().flat_map(HellaSwag::ema_counts) {
            if correct.is_some() {
                push_count(&mut fields, &format!("{name}_correct"), correct);
                push_float(&mut fields, name, score);
            }
        }
        text.push('{');
        text.push_str(fields.strip_prefix(',').expect("each field begins with a comma"));
        text.push('}');
    }
}

/// `,"name":count`.
fn push_count(text: &mut String, name: &str, count: Option<u64>) {
    let count = count.map_or("null".to_owned(), |count| count.to_string());
    write!(text, r#","{name}":{count}"#).expect("a string takes all");
}

/// An evaluation as it stands in the file. Counts and the bits of the loss decide; the comparison with the
/// canonical text shows that all else agrees.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenEvaluation {
    #[serde(rename = "val_loss")]
    _val_loss: Option<f64>,
    val_loss_bits: Option<String>,
    val_tokens: Option<u64>,
    hellaswag_tasks: Option<u64>,
    hellaswag_correct: Option<u64>,
    #[serde(rename = "hellaswag")]
    _hellaswag: Option<f64>,
    #[serde(rename = "hellaswag_bits")]
    _hellaswag_bits: Option<String>,
    hellaswag_acc_correct: Option<u64>,
    #[serde(rename = "hellaswag_acc")]
    _hellaswag_acc: Option<f64>,
    #[serde(rename = "hellaswag_acc_bits")]
    _hellaswag_acc_bits: Option<String>,
    hellaswag_acc_norm_correct: Option<u64>,
    #[serde(rename = "hellaswag_acc_norm")]
    _hellaswag_acc_norm: Option<f64>,
    #[serde(rename = "hellaswag_acc_norm_bits")]
    _hellaswag_acc_norm_bits: Option<String>,
    hellaswag_acc_bytes_correct: Option<u64>,
    #[serde(rename = "hellaswag_acc_bytes")]
    _hellaswag_acc_bytes: Option<f64>,
    #[serde(rename = "hellaswag_acc_bytes_bits")]
    _hellaswag_acc_bytes_bits: Option<String>,
    #[serde(rename = "ema_val_loss")]
    _ema_val_loss: Option<f64>,
    ema_val_loss_bits: Option<String>,
    ema_hellaswag_correct: Option<u64>,
    #[serde(rename = "ema_hellaswag")]
    _ema_hellaswag: Option<f64>,
    #[serde(rename = "ema_hellaswag_bits")]
    _ema_hellaswag_bits: Option<String>,
    ema_hellaswag_acc_correct: Option<u64>,
    #[serde(rename = "ema_hellaswag_acc")]
    _ema_hellaswag_acc: Option<f64>,
    #[serde(rename = "ema_hellaswag_acc_bits")]
    _ema_hellaswag_acc_bits: Option<String>,
    ema_hellaswag_acc_norm_correct: Option<u64>,
    #[serde(rename = "ema_hellaswag_acc_norm")]
    _ema_hellaswag_acc_norm: Option<f64>,
    #[serde(rename = "ema_hellaswag_acc_norm_bits")]
    _ema_hellaswag_acc_norm_bits: Option<String>,
    ema_hellaswag_acc_bytes_correct: Option<u64>,
    #[serde(rename = "ema_hellaswag_acc_bytes")]
    _ema_hellaswag_acc_bytes: Option<f64>,
    #[serde(rename = "ema_hellaswag_acc_bytes_bits")]
    _ema_hellaswag_acc_bytes_bits: Option<String>,
}

impl WrittenEvaluation {
    /// What was measured.
    pub(super) fn read(self) -> Result<Evaluation, String> {
        let ema_loss = float(self.ema_val_loss_bits)?;
        let validation = match (float(self.val_loss_bits)?, self.val_tokens) {
            (Some(loss), Some(tokens)) => Some(Validation { loss, tokens }),
            (None, None) => None,
            _ => return Err("`val_loss` and `val_tokens` stand together or not at all".into()),
        };
        let hellaswag = match (self.hellaswag_tasks, self.hellaswag_correct) {
            (Some(tasks @ 1..), Some(llmc_correct)) => Some(HellaSwag {
                tasks,
                llmc_correct,
                acc_correct: self.hellaswag_acc_correct,
                acc_norm_correct: self.hellaswag_acc_norm_correct,
                acc_bytes_correct: self.hellaswag_acc_bytes_correct,
            }),
            (None, None) => None,
            _ => return Err("`hellaswag_tasks` and `hellaswag_correct` stand together or not at all".into()),
        };
        let ema_hellaswag = match (hellaswag, self.ema_hellaswag_correct) {
            (_, None) => None,
            (Some(HellaSwag { tasks, .. }), Some(llmc_correct)) => Some(HellaSwag {
                tasks,
                llmc_correct,
                acc_correct: self.ema_hellaswag_acc_correct,
                acc_norm_correct: self.ema_hellaswag_acc_norm_correct,
                acc_bytes_correct: self.ema_hellaswag_acc_bytes_correct,
            }),
            (None, Some(_)) => return Err("`ema_hellaswag_correct` stands beside `hellaswag_correct`".into()),
        };
        if ema_loss.is_some() && validation.is_none() {
            return Err("`ema_val_loss` stands beside `val_loss`".into());
        }
        Ok(Evaluation { validation, hellaswag, ema_loss, ema_hellaswag })
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
    /// By lm-eval's `acc_bytes`; none, too, in an entry of an older program, whose text lacks its keys.
    pub acc_bytes_correct: Option<u64>,
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

    /// lm-eval's `acc_bytes`, 0 to 1.
    pub fn acc_bytes(&self) -> Option<f64> {
        self.acc_bytes_correct.map(|correct| self.share(correct))
    }

    /// These counts, without the one that `other`, of an older program, does not have.
    pub fn as_counted_in(self, other: &HellaSwag) -> HellaSwag {
        let acc_bytes_correct = self.acc_bytes_correct.filter(|_| other.acc_bytes_correct.is_some());
        HellaSwag { acc_bytes_correct, ..self }
    }

    /// The counts of the average of the weights and their shares, by the ledger's names.
    fn ema_counts(&self) -> [(&'static str, Option<u64>, Option<f64>); 4] {
        [
            ("ema_hellaswag", Some(self.llmc_correct), Some(self.llmc())),
            ("ema_hellaswag_acc", self.acc_correct, self.acc()),
            ("ema_hellaswag_acc_norm", self.acc_norm_correct, self.acc_norm()),
            ("ema_hellaswag_acc_bytes", self.acc_bytes_correct, self.acc_bytes()),
        ]
    }

    fn share(&self, correct: u64) -> f64 {
        correct as f64 / self.tasks as f64
    }
}
