//! Polars on damaged files: it panics on some of them, which is an error of the file and none of this
//! program.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Readings that are going on.
static READING: AtomicUsize = AtomicUsize::new(0);

/// Reads with polars; a panic of it is an error, and prints nothing.
pub fn caught<T, E: ToString>(read: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    silence();
    READING.fetch_add(1, Ordering::SeqCst);
    let result = panic::catch_unwind(AssertUnwindSafe(read));
    READING.fetch_sub(1, Ordering::SeqCst);
    let panic = match result {
        Ok(read) => return read.map_err(|error| error.to_string()),
        Err(panic) => panic,
    };
    let text =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    Err(format!("it is damaged: {}", text.unwrap_or("its pages do not fit its footer")))
}

/// Prints no panic that begins in polars while it reads: another thread of it may be the one that panics.
fn silence() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let is_of_polars = info.location().is_some_and(|place| place.file().contains("polars"));
            if READING.load(Ordering::SeqCst) == 0 || !is_of_polars {
                before(info);
            }
        }));
    });
}
