//! The weights of a mixture as whole numbers, so that no rounding decides what a step reads.

use super::resolved::DataKeys;

/// The largest sum of whole weights.
const MOST_PARTS: u64 = 1 << 63;

impl DataKeys {
    /// The weights of the sources of the mixture, in the order of their names, as the smallest whole numbers
    /// of the same ratio; empty without a mixture.
    pub fn mix_weights(&self) -> Vec<u64> {
        let weights: Vec<f64> = self.mix.values().map(|source| source.weight).collect();
        whole_weights(&weights).expect("the rules have looked at them")
    }
}

/// The smallest whole numbers in the ratio of these numbers above zero, each taken as the shortest decimal
/// that reads back as it: 0.7 and 0.3 are 7 and 3. None where their sum is over [`MOST_PARTS`].
pub(super) fn whole_weights(weights: &[f64]) -> Option<Vec<u64>> {
    let decimals: Vec<(u128, i32)> = weights.iter().map(|weight| decimal(*weight)).collect();
    let least = decimals.iter().map(|(_, exponent)| *exponent).min().unwrap_or(0);
    let scaled = |(digits, exponent): &(u128, i32)| {
        digits.checked_mul(10u128.checked_pow(exponent.checked_sub(least)?.try_into().ok()?)?)
    };
    let scaled: Vec<u128> = decimals.iter().map(scaled).collect::<Option<_>>()?;
    let shared = scaled.iter().copied().fold(0, gcd).max(1);
    let sum = scaled.iter().try_fold(0u128, |sum, weight| sum.checked_add(weight / shared))?;
    (sum <= u128::from(MOST_PARTS)).then(|| scaled.iter().map(|weight| (weight / shared) as u64).collect())
}

/// Digits and exponent of ten of the shortest decimal: 0.25 is (25, −2).
fn decimal(x: f64) -> (u128, i32) {
    let text = format!("{x:e}");
    let (mantissa, exponent) = text.split_once('e').expect("the form of {:e}");
    let fraction = mantissa.split_once('.').map_or(0, |(_, fraction)| fraction.len() as i32);
    let digits: u128 = mantissa.replace('.', "").parse().expect("at most 17 digits");
    (digits, exponent.parse::<i32>().expect("an exponent") - fraction)
}

fn gcd(a: u128, b: u128) -> u128 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_the_decimals_as_written_whatever_their_sum() {
        assert_eq!(whole_weights(&[0.7, 0.3]), Some(vec![7, 3]));
        assert_eq!(whole_weights(&[70.0, 30.0]), Some(vec![7, 3]));
        assert_eq!(whole_weights(&[0.1, 0.2, 0.3]), Some(vec![1, 2, 3]));
        assert_eq!(whole_weights(&[1e-9, 1.0]), Some(vec![1, 1_000_000_000]));
        assert_eq!(whole_weights(&[5.0]), Some(vec![1]));
        assert_eq!(
            whole_weights(&[0.1 + 0.2, 0.7]),
            Some(vec![7_500_000_000_000_001, 17_500_000_000_000_000])
        );
        assert_eq!(whole_weights(&[]), Some(vec![]));
    }

    #[test]
    fn weights_without_a_countable_whole_are_refused() {
        for weights in [&[1e-30, 1.0][..], &[1e300, 1e-300], &[f64::MAX, f64::MIN_POSITIVE], &[1e19, 1.0]] {
            assert_eq!(whole_weights(weights), None, "{weights:?}");
        }
    }
}
