//! Keys at their defaults: which of them a lock leaves out.

use super::schema::{Bits, Default, key, reaches_the_bits};

/// Whether a dotted key of this value is part of a lock's numerics: it reaches the bits, and is no default
/// that locks leave out.
pub fn is_locked(name: &str, value: &serde_json::Value) -> bool {
    let left_out = key(name).is_some_and(|key| key.bits == Bits::ReachedWhenSet);
    reaches_the_bits(name) && !(left_out && is_default(name, value))
}

/// Whether a lock has a dotted key at all.
pub fn is_recorded(name: &str) -> bool {
    key(name).is_none_or(|key| key.bits != Bits::Unrecorded)
}

/// Whether a dotted key of the resolved experiment has the value that it has where no layer sets it, and that
/// no other key decides.
pub fn is_default(name: &str, value: &serde_json::Value) -> bool {
    key(name).is_some_and(|key| match key.default {
        Default::Number(default) => value.as_f64() == Some(default),
        Default::Integer(default) => value.as_u64() == Some(default),
        Default::Text(default) => value.as_str() == Some(default),
        Default::Boolean(default) => value.as_bool() == Some(default),
        Default::Absent => value.is_null(),
        Default::Ruled => false,
    })
}
