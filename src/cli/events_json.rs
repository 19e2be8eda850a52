//! Events as JSON lines on stdout, for programs.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::streams::{self, say};
use crate::run::sensors::SharedReadings;
use crate::train::{Event, Listener, RunError};
use crate::units::path_text;

/// Prints each event as one JSON object a line, as long as stdout takes them.
pub struct JsonEvents {
    /// Steps done, for the thread that reads the GPU's sensors.
    sensors: Arc<SharedReadings>,
    /// Whether writing to stdout has failed. Then no more lines are written, and training goes on.
    refused: bool,
}

impl JsonEvents {
    pub fn new(sensors: Arc<SharedReadings>) -> JsonEvents {
        JsonEvents { sensors, refused: false }
    }

    fn print(&mut self, event: &Value) {
        if self.refused {
            return;
        }
        let Err(error) = streams::try_print(&format!("{event}\n")) else { return };
        self.refused = true;
        let why = match error.kind() {
            ErrorKind::BrokenPipe => "stdout was closed by its reader".to_owned(),
            _ => format!("cannot write to stdout: {error}"),
        };
        say!("{why}; training goes on without events");
    }
}

impl Listener for JsonEvents {
    fn on(&mut self, event: &Event) -> Result<(), RunError> {
        if let Event::Stepped { report, .. } = event {
            self.sensors.step.store(report.step + 1, Ordering::Relaxed);
        }
        let value = match event {
            Event::Began { step, steps, .. } => json!({"event": "began", "step": step, "steps": steps}),
            Event::Stepped { report, timing, root, .. } => json!({
                "event": "step",
                "step": report.step,
                "loss": report.loss,
                "grad_norm": report.grad_norm,
                "learning_rate": report.learning_rate,
                "loss_z": report.loss_z,
                "grad_z": report.grad_z,
                "action": report.verdict.name(),
                "step_ms": timing.step_ms,
                "tokens_per_s": timing.tokens_per_s,
                "mfu": timing.mfu,
                "root": root.map(|root| root.to_string()),
            }),
            Event::Evaluating { .. } | Event::Saving { .. } | Event::Completed { .. } => return Ok(()),
            Event::Evaluated { step, of, val_loss, val_tokens } => {
                let name = format!("{}val_loss", of.prefix());
                json!({"event": "evaluation", "step": step, name: val_loss, "val_tokens": val_tokens})
            }
            Event::HellaSwag { step, of, scores } => {
                let mut value = json!({"event": "hellaswag", "step": step, "tasks": scores.tasks});
                for (name, score) in scores.named() {
                    value[format!("{}{name}", of.prefix())] = score.into();
                }
                value
            }
            Event::Sampled { step, prompt, text } => {
                json!({"event": "sample", "step": step, "prompt": prompt, "text": text})
            }
            Event::CheckpointSaved { step, path, bytes } => {
                json!({"event": "checkpoint", "step": step, "path": path_text(path), "bytes": bytes})
            }
            Event::Rewound { from_step, to_step, .. } => {
                json!({"event": "rewind", "from_step": from_step, "to_step": to_step})
            }
            Event::NotRewound { step, why } => json!({"event": "not_rewound", "step": step, "why": why}),
            Event::Diverged { step, skips } => json!({"event": "diverged", "step": step, "skips": skips}),
            Event::NotFinite { step, why } => json!({"event": "not_finite", "step": step, "why": why}),
            Event::Interrupted { step } => json!({"event": "interrupted", "step": step}),
            Event::Finished { step, skipped, root, seconds, .. } => json!({
                "event": "finished",
                "step": step,
                "skipped": skipped,
                "root": root.to_string(),
                "seconds": seconds,
            }),
        };
        self.print(&value);
        Ok(())
    }
}
