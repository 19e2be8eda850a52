//! Whole numbers in arguments.

use std::num::{IntErrorKind, ParseIntError};
use std::str::FromStr;

/// A number of a type that has 0.
pub fn from_zero<T: FromStr<Err = ParseIntError>>(text: &str) -> Result<T, String> {
    parse(text, 0)
}

/// A number of a type without 0.
pub fn from_one<T: FromStr<Err = ParseIntError>>(text: &str) -> Result<T, String> {
    parse(text, 1)
}

fn parse<T: FromStr<Err = ParseIntError>>(text: &str, least: u8) -> Result<T, String> {
    text.parse().map_err(|error: ParseIntError| match error.kind() {
        IntErrorKind::PosOverflow => "the number is too large".to_owned(),
        _ => format!("expected a whole number from {least} on"),
    })
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    #[test]
    fn what_is_no_number_of_the_range_is_refused_with_the_range() {
        assert_eq!(from_zero("0"), Ok(0_u64));
        assert_eq!(from_one("7"), Ok(NonZeroU32::new(7).unwrap()));
        for text in ["-1", "a", "", "1.5"] {
            let refused = "expected a whole number from 0 on".to_owned();
            assert_eq!(from_zero::<u64>(text), Err(refused), "{text}");
        }
        assert_eq!(from_one::<NonZeroU32>("0"), Err("expected a whole number from 1 on".to_owned()));
        assert_eq!(from_one::<NonZeroU32>("4294967296"), Err("the number is too large".to_owned()));
    }
}
