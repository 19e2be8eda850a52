//! Values of a `config.json`: sizes, and those that a model here must have.

use serde_json::Value;

use crate::experiment::largest;

/// A size, in the range of our key of this name.
///
/// # Errors
///
/// Another value, or none.
pub fn size(config: &Value, key: &str, ours: &str) -> Result<usize, String> {
    match config[key].as_u64() {
        Some(size) if (1..=largest(ours)).contains(&size) => Ok(size as usize),
        _ => Err(format!("{}, expected a whole number from 1 to {}", shown(config, key), largest(ours))),
    }
}

/// A key with what it is, for messages: `n_head` is -3, or is missing.
pub fn shown(config: &Value, key: &str) -> String {
    match config.get(key) {
        Some(value) => format!("`{key}` is {value}"),
        None => format!("`{key}` is missing"),
    }
}

/// A key, which values fit, and these in words.
pub type ExpectedValue<'a> = (&'a str, &'a dyn Fn(&Value) -> bool, String);

/// Refuses a configuration with a key that makes it compute something else; `what` says so. Where the file
/// has no such key, its value is one that fits.
///
/// # Errors
///
/// The first value that does not fit.
pub fn require(config: &Value, keys: &[ExpectedValue<'_>], what: &str) -> Result<(), String> {
    for (key, fits, expected) in keys {
        if let Some(value) = config.get(key).filter(|value| !fits(value)) {
            return Err(format!("`{key}` is {value}, expected {expected}: {what}"));
        }
    }
    Ok(())
}
