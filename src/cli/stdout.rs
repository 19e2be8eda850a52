//! Data on stdout, for readers that may have seen enough.

use std::io::{self, Write};

/// Writes to stdout. A reader that is gone, as in `runner config … | head`, is no error.
pub fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}
