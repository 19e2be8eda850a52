//! `runner watch RUN`: a view of a current or finished run in a terminal.
//!
//! It reads the files that the run writes and takes no lock, so any number of processes may watch, and ending
//! the view does not stop the run. [`follow`] reads, [`view`] draws, this file sets up the terminal and
//! restores it, whatever ends the view.

mod view;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use self::view::Look;
use super::streams;
use crate::report::follow::Followed;
use crate::report::listing;
use crate::report::summary::RunSummary;
use crate::run::find;

/// Watch a run live: loss, speed, events, samples. Works on finished runs too.
#[derive(clap::Args)]
#[command(after_help = "\
Keys: q, Esc or Ctrl-C ends the view, and never the run; l switches the loss to a logarithmic axis.
The speed is the median of the last 100 steps.
Without a terminal a summary is printed.

Examples:
  runner watch                # the run that was worked on last
  runner watch quickstart")]
pub struct Args {
    /// The run: a name under `--runs`, or a folder; the newest run by default.
    run: Option<PathBuf>,
    /// Folder that holds the run folders.
    #[arg(long, default_value = "runs", value_name = "DIR")]
    runs: PathBuf,
    /// Seconds between readings of the files.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds,
        allow_hyphen_values = true)]
    every: f64,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected seconds from 0.1 to 3600".to_owned()),
    }
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let folder = find::find(args.run.as_deref(), &args.runs)?;
    if !(std::io::stdout().is_terminal() && std::io::stdin().is_terminal()) {
        streams::print(&listing::in_full(&RunSummary::read(&folder)))?;
        return Ok(ExitCode::SUCCESS);
    }
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let followed = Followed::open(&folder);
    let mut terminal = ratatui::try_init().context("the terminal cannot be taken over")?;
    let shown = show_until_stopped(&mut terminal, followed, Duration::from_secs_f64(args.every), &stop);
    ratatui::restore();
    shown?;
    Ok(ExitCode::SUCCESS)
}

fn show_until_stopped(
    terminal: &mut DefaultTerminal,
    mut followed: Followed,
    every: Duration,
    stop: &AtomicBool,
) -> std::io::Result<()> {
    let mut look = Look::default();
    loop {
        followed.refresh();
        terminal.draw(|frame| view::draw(frame, &followed, look))?;
        let next = Instant::now() + every;
        // Keys and a new size are handled at once, files are read at intervals.
        while Instant::now() < next {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let wait = next.saturating_duration_since(Instant::now()).min(Duration::from_millis(100));
            if !event::poll(wait)? {
                continue;
            }
            match event::read()? {
                Event::Key(key) if key.kind == KeyEventKind::Press => match answer(key) {
                    KeyAction::Quit => return Ok(()),
                    KeyAction::Logarithmic => look.logarithmic = !look.logarithmic,
                    KeyAction::Nothing => continue,
                },
                Event::Resize(..) => {}
                _ => continue,
            }
            terminal.draw(|frame| view::draw(frame, &followed, look))?;
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum KeyAction {
    Quit,
    Logarithmic,
    Nothing,
}

fn answer(key: KeyEvent) -> KeyAction {
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => KeyAction::Quit,
        KeyCode::Char('q' | 'Q') | KeyCode::Esc => KeyAction::Quit,
        KeyCode::Char('l' | 'L') => KeyAction::Logarithmic,
        _ => KeyAction::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_that_end_the_view() {
        let key = |code, modifiers| answer(KeyEvent::new(code, modifiers));
        for quit in [KeyCode::Char('q'), KeyCode::Esc] {
            assert_eq!(key(quit, KeyModifiers::NONE), KeyAction::Quit);
        }
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::CONTROL), KeyAction::Quit);
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::NONE), KeyAction::Nothing);
        assert_eq!(key(KeyCode::Char('l'), KeyModifiers::NONE), KeyAction::Logarithmic);
    }
}
