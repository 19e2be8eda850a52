//! stdout and stderr of this process, either of which may be a closed pipe, a full disk or a closed terminal.
//! All output of this program goes through here, because the macros of the standard library panic in those
//! cases.

use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal, StdoutLock, Write};
use std::time::Duration;

use anyhow::Context;

use crate::units;

/// Writes text to stdout.
///
/// # Errors
/// Those of the system, including a closed reader ([`ErrorKind::BrokenPipe`]).
pub fn try_print(text: &str) -> io::Result<()> {
    let mut out = Patient(io::stdout().lock());
    out.write_all(text.as_bytes()).and_then(|()| out.flush())
}

/// stdout that waits where it is a pipe that does not: whoever set it so also reads it.
struct Patient(StdoutLock<'static>);

impl Patient {
    fn until_ready<T>(
        &mut self,
        mut act: impl FnMut(&mut StdoutLock<'static>) -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            match act(&mut self.0) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                done => return done,
            }
        }
    }
}

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.until_ready(|out| out.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.until_ready(Write::flush)
    }
}

/// Writes data without styles to stdout. A reader that has closed the pipe, as in `runner config … | head`,
/// is no error.
///
/// # Errors
/// stdout cannot be written, for example because its disk is full.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = Unstyled::stdout();
    unless_unread(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// As [`print`], for text with styles, which are left out where stdout is no terminal.
pub fn print_styled(text: &str) -> anyhow::Result<()> {
    let mut out = anstream::stdout().lock();
    unless_unread(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// stdout for what may hold anything: texts of models, names of files. A terminal gets it without control
/// characters, which would move its cursor or change its settings; a file or pipe gets every byte.
pub struct Unstyled {
    out: Patient,
    to_terminal: bool,
}

impl Unstyled {
    pub fn stdout() -> Unstyled {
        Unstyled { out: Patient(io::stdout().lock()), to_terminal: io::stdout().is_terminal() }
    }
}

impl Write for Unstyled {
    /// Writes whole characters.
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        if !self.to_terminal {
            return self.out.write(text);
        }
        let shown = units::printable_lines(&String::from_utf8_lossy(text));
        self.out.write_all(shown.as_bytes()).map(|()| text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// An error of stdout with its name; none where its reader has closed it.
pub fn unless_unread(written: io::Result<()>) -> anyhow::Result<()> {
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to stdout"),
    }
}

/// Writes a line for a person to stderr, with its styles on a terminal. An error is ignored, because there is
/// nowhere to report it.
pub fn say_line(line: impl Display) {
    // One write, so that lines of several ranks do not mix.
    let _ = anstream::stderr().lock().write_all(format!("{line}\n").as_bytes());
}

/// [`say_line`] with a format.
macro_rules! say {
    ($($format:tt)*) => { $crate::cli::streams::say_line(format_args!($($format)*)) };
}

pub(in crate::cli) use say;
