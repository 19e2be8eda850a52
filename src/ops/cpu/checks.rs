//! Checks of operands before every operation: lengths, token ids, positions in a cache; and how much memory
//! there is.

use super::super::{DeviceError, Result};
use super::buffer::Buffer;

/// The device's name in errors.
pub const DEVICE: &str = "CPU";

pub fn failed(operation: &'static str, message: String) -> DeviceError {
    DeviceError::Failed { device: DEVICE.to_owned(), operation, message }
}

/// The first `len` elements of an operand. A buffer may be longer than a call needs.
pub fn view<'a>(operation: &'static str, name: &str, buf: &'a Buffer, len: usize) -> Result<&'a [f32]> {
    buf.as_slice()
        .get(..len)
        .ok_or_else(|| failed(operation, format!("`{name}` has {} elements, expected {len}", buf.len())))
}

pub fn view_mut<'a>(
    operation: &'static str,
    name: &str,
    buf: &'a mut Buffer,
    len: usize,
) -> Result<&'a mut [f32]> {
    let have = buf.len();
    buf.as_mut_slice()
        .get_mut(..len)
        .ok_or_else(|| failed(operation, format!("`{name}` has {have} elements, expected {len}")))
}

/// The first `len` ids, each below `vocab`.
pub fn tokens<'a>(operation: &'static str, ids: &'a [u16], len: usize, vocab: usize) -> Result<&'a [u16]> {
    let ids = ids
        .get(..len)
        .ok_or_else(|| failed(operation, format!("{} token ids are there, expected {len}", ids.len())))?;
    match ids.iter().position(|id| usize::from(*id) >= vocab) {
        Some(at) => Err(failed(
            operation,
            format!("token {} at position {at} is not below the vocabulary of {vocab}", ids[at]),
        )),
        None => Ok(ids),
    }
}

/// The first `len` positions or streams, each below `limit`.
pub fn indices<'a>(
    operation: &'static str,
    what: &str,
    ids: &'a [u16],
    len: usize,
    limit: usize,
) -> Result<&'a [u16]> {
    let ids = ids
        .get(..len)
        .ok_or_else(|| failed(operation, format!("{} {what}s are there, expected {len}", ids.len())))?;
    match ids.iter().find(|id| usize::from(**id) >= limit) {
        Some(id) => Err(failed(operation, format!("{what} {id} is not below {limit}"))),
        None => Ok(ids),
    }
}

/// Bytes of a transfer make whole floats.
pub fn whole_floats(operation: &'static str, rest: usize) -> Result<()> {
    if rest == 0 {
        Ok(())
    } else {
        Err(failed(operation, format!("{rest} bytes are left over, an element has 4")))
    }
}

/// A transfer between buffers of different lengths is a bug of the caller.
pub fn same_len(operation: &'static str, from: usize, to: usize) -> Result<()> {
    if from == to { Ok(()) } else { Err(failed(operation, format!("{from} elements do not fit {to}"))) }
}

/// Memory in bytes that Linux reports as available.
pub fn available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(1024 * line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?)
}
