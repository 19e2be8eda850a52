//! The console of a run, on stderr: one line a step, and on a terminal a progress bar below, which shows an
//! evaluation while there is one, and the progress of a checkpoint that is being written.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::streams::say;
use crate::optim::Verdict;
use crate::run::sensors::SharedReadings;
use crate::store::Timing;
use crate::train::{Event, Listener, RunError, StepReport};
use crate::units::{self, noun, were};

/// Writes events as lines; on a terminal, with colours and a progress bar.
pub struct Console {
    bar: ProgressBar,
    /// The evaluation that the bar shows; none when it shows the steps.
    evaluating: Option<&'static str>,
    /// The checkpoint that is being written, for the bar's end.
    saving: Option<String>,
    /// Steps done.
    done: u64,
    /// Readings of the GPU's sensors, where they are taken.
    gpu: Arc<SharedReadings>,
    every: u64,
    /// When the last line of an ordinary step was written, and the least time until the next one.
    last_line: Option<Instant>,
    calm: Duration,
    started: Instant,
    /// Step and time of the first event, for the time left.
    first_step: u64,
    steps: u64,
    /// Training tokens: before the first step here, up to now, and of all steps.
    first_tokens: u64,
    tokens: u64,
    all_tokens: u64,
}

impl Console {
    /// A console that prints every `every`th step, and every step with an event. On a terminal,
    /// where the bar shows each step, ordinary lines come at most twice a second.
    pub fn new(every: u64, gpu: Arc<SharedReadings>) -> Console {
        let (target, calm) = if std::io::stderr().is_terminal() {
            (ProgressDrawTarget::stderr(), Duration::from_millis(500))
        } else {
            (ProgressDrawTarget::hidden(), Duration::ZERO)
        };
        Console {
            bar: ProgressBar::with_draw_target(None, target),
            evaluating: None,
            saving: None,
            done: 0,
            gpu,
            every: every.max(1),
            last_line: None,
            calm,
            started: Instant::now(),
            first_step: 0,
            steps: 0,
            first_tokens: 0,
            tokens: 0,
            all_tokens: 0,
        }
    }

    fn line(&self, text: &str) {
        if self.bar.is_hidden() {
            say!("{text}");
        } else {
            self.bar.suspend(|| say!("{text}"));
        }
    }

    /// Shows the progress of an evaluation.
    fn evaluating(&mut self, what: &'static str, done: u64, of: u64) {
        let text = format!("{what} {done}/{of}");
        if self.evaluating != Some(what) {
            self.evaluating = Some(what);
            self.show(Some(style("{bar:32.green/dim} {msg}  {eta} left")), (done, of), text);
            self.bar.reset_eta();
        } else {
            self.show(None, (done, of), text);
        }
    }

    /// Shows the steps again.
    fn show_steps(&mut self) {
        let is_new = self.evaluating.take().is_some() || self.bar.length() != Some(self.steps);
        let saving = self.saving.as_ref().map_or(String::new(), |saving| format!("  {saving}"));
        let text = format!("{}/{} steps  {}{saving}", self.done, self.steps, self.left());
        self.show(is_new.then(|| style("{bar:32.cyan/dim} {msg}")), (self.done, self.steps), text);
    }

    /// Sets all of the bar. Each of its setters may draw it, so the text holds its own numbers: none of
    /// what it showed before is seen under the new ones.
    fn show(&self, style: Option<ProgressStyle>, (done, of): (u64, u64), text: String) {
        if let Some(style) = style {
            self.bar.set_style(style);
        }
        self.bar.set_message(text);
        self.bar.update(|bar| {
            bar.set_len(of);
            bar.set_pos(done);
        });
    }

    fn stepped(&mut self, report: &StepReport, tokens: u64, timing: &Timing) {
        let Timing { step_ms, tokens_per_s, mfu } = *timing;
        let done = report.step + 1;
        self.tokens = tokens;
        self.gpu.step.store(done, Ordering::Relaxed);
        self.done = done;
        self.show_steps();
        let usual = report.verdict == Verdict::Update;
        let step = report.step;
        if usual && done != self.steps && step != self.first_step {
            if !step.is_multiple_of(self.every)
                || self.last_line.is_some_and(|last| last.elapsed() < self.calm)
            {
                return;
            }
            self.last_line = Some(Instant::now());
        }
        let width = self.steps.to_string().len();
        let gpu = self.gpu.latest().map_or(String::new(), |sample| format!(" | {}", sample.to_text()));
        let mfu = mfu.map_or(String::new(), |m| format!(" | {:4.1}% MFU", 100.0 * m));
        let mut line = format!(
            "step {step:>width$}/{} | loss {:.6} ({}) | norm {:.4} ({}) | lr {:.2e} | {step_ms:.1} ms{mfu} \
             | {tokens_per_s:.0} tok/s{gpu}",
            self.steps,
            report.loss,
            z(report.loss_z),
            report.grad_norm,
            z(report.grad_z),
            report.learning_rate,
        );
        if !usual {
            line = format!("{WARN}{line} | {}: weights unchanged{WARN:#}", report.verdict.name());
        }
        self.line(&line);
    }

    /// Time left at the mean speed of this process, in tokens: the steps of a warm-up have fewer.
    fn left(&self) -> String {
        let here = self.tokens.saturating_sub(self.first_tokens).max(1) as f64;
        let left = self.all_tokens.saturating_sub(self.tokens) as f64;
        let seconds = self.started.elapsed().as_secs_f64() / here * left;
        format!("{} left", units::duration(seconds))
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is valid").progress_chars("━╸─")
}

const BOLD: anstyle::Style = anstyle::Style::new().bold();
const DIM: anstyle::Style = anstyle::Style::new().dimmed();
const WARN: anstyle::Style =
    anstyle::Style::new().fg_color(Some(anstyle::Color::Ansi(anstyle::AnsiColor::Yellow)));

/// A z-score as llm.c prints it: signed, and `-` while the window fills.
fn z(score: Option<f64>) -> String {
    score.map_or_else(|| "z -".into(), |z| format!("z {z:+.2}"))
}

impl Listener for Console {
    fn on(&mut self, event: &Event) -> Result<(), RunError> {
        match event {
            Event::Began { step, steps, tokens, all_tokens } => {
                self.started = Instant::now();
                (self.first_step, self.steps) = (*step, *steps);
                (self.first_tokens, self.tokens, self.all_tokens) = (*tokens, *tokens, *all_tokens);
                self.done = *step;
                self.show_steps();
                self.bar.enable_steady_tick(Duration::from_millis(250));
            }
            Event::Stepped { report, tokens, timing, .. } => self.stepped(report, *tokens, timing),
            Event::Completed { .. } => {}
            Event::Evaluating { what, done, sequences } => {
                self.evaluating(what, *done as u64, *sequences as u64)
            }
            Event::Saving { step, done_bytes, bytes } => {
                self.saving = Some(format!(
                    "saving step {step}: {} of {}",
                    units::bytes(*done_bytes),
                    units::bytes(*bytes)
                ));
                self.show_steps();
            }
            Event::Evaluated { step, of, val_loss, val_tokens } => {
                self.show_steps();
                self.line(&format!(
                    "{BOLD}val loss{} {val_loss:.6}{BOLD:#} at step {step} on {}",
                    of.whose(),
                    units::counted(*val_tokens, "token")
                ));
            }
            Event::HellaSwag { step, of, scores } => {
                self.show_steps();
                let [llmc, acc, acc_norm, _] =
                    scores.named().map(|(name, score)| format!("{}{name} {score:.4}", of.prefix()));
                let tasks = units::counted(scores.tasks as u64, "task");
                self.line(&format!("{BOLD}{llmc}{BOLD:#} ({acc}, {acc_norm}) at step {step} on {tasks}"));
            }
            Event::Sampled { step, prompt, text } => {
                let [prompt, text] = [prompt, text].map(|text| units::printable_lines(text));
                self.line(&format!("sample at step {step}:\n{DIM}{prompt}{DIM:#}{text}\n"));
            }
            Event::CheckpointSaved { step, path, bytes } => {
                self.saving = None;
                self.show_steps();
                self.line(&format!(
                    "checkpoint at step {step}: {} ({})",
                    path.display(),
                    units::bytes(*bytes)
                ));
            }
            Event::Rewound { from_step, to_step, .. } => {
                self.done = *to_step;
                self.show_steps();
                self.line(&format!(
                    "{WARN}diverged at step {from_step}: back to the checkpoint of step {to_step}, on with \
                     the data behind{WARN:#}"
                ));
            }
            Event::NotRewound { why, .. } => {
                self.line(&format!("{WARN}not gone back: {why}{WARN:#}"));
            }
            Event::Diverged { step, skips } => {
                self.line(&format!(
                    "{WARN}diverged at step {step}: {skips} {} in a row {} skipped{WARN:#}",
                    noun(*skips, "step"),
                    were(*skips)
                ));
            }
            Event::NotFinite { why, .. } => {
                self.bar.finish_and_clear();
                self.line(&format!("{WARN}not finite: {why}{WARN:#}"));
            }
            Event::Interrupted { step } => {
                self.bar.finish_and_clear();
                let are = if *step == 1 { "is" } else { "are" };
                self.line(&format!("stopped as asked: {step} {} {are} done and saved", noun(*step, "step")));
            }
            Event::Finished { step, skipped, root, seconds, waits } => {
                self.bar.finish_and_clear();
                let waited = match waits.waits {
                    0 => "data was never waited for".to_owned(),
                    n => format!(
                        "data was waited for {n} {}, {:.1} ms in all",
                        noun(n, "time"),
                        waits.waited.as_secs_f64() * 1e3
                    ),
                };
                let skipped = match skipped {
                    0 => String::new(),
                    n => format!(", {n} of them skipped"),
                };
                let (steps, took) = (noun(*step, "step"), units::duration(*seconds));
                self.line(&format!("{step} {steps} done in {took}{skipped}; {waited}"));
                self.line(&format!("{BOLD}state root {root}{BOLD:#}"));
            }
        }
        Ok(())
    }
}
