//! Random draws of a sweep: a value is a pure function of the sweep's seed, the key and the number of the
//! sample, so another key or more samples change none that were drawn before.

use crate::rng;

/// What a value is drawn from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum DrawRange {
    /// Every number from the first to the second is as likely.
    Uniform(f64, f64),
    /// The same for its logarithm; both are above 0.
    LogUniform(f64, f64),
    /// Every integer from the first to the second, both included.
    Integers(u64, u64),
}

/// Significant digits of a drawn number: enough to tell samples apart, and short in a table.
const DIGITS: usize = 6;

/// The random stream of a key.
pub(super) fn stream(seed: u64, key: &str) -> rng::Key {
    rng::Key::new(seed, &format!("sweep/{key}"))
}

/// A whole number below `n`, which is at least 1.
pub(super) fn below(stream: rng::Key, sample: u64, n: u128) -> u64 {
    let [a, b, ..] = stream.block_at(0, sample);
    let word = u128::from(a) << 32 | u128::from(b);
    ((word * n) >> 64) as u64
}

impl DrawRange {
    /// The value of a sample, as TOML.
    pub fn draw(self, stream: rng::Key, sample: u64) -> String {
        let u = stream.uniform(0, sample);
        match self {
            DrawRange::Uniform(from, to) => number(from + u * (to - from), from, to),
            DrawRange::LogUniform(from, to) => {
                let (low, high) = (libm::log(from), libm::log(to));
                number(libm::exp(low + u * (high - low)), from, to)
            }
            DrawRange::Integers(from, to) => {
                let count = u128::from(to - from) + 1;
                (from + below(stream, sample, count)).to_string()
            }
        }
    }
}

/// A number with [`DIGITS`] digits, within its range also after it was rounded.
fn number(x: f64, from: f64, to: f64) -> String {
    let rounded: f64 = format!("{x:.*e}", DIGITS - 1).parse().unwrap_or(x);
    format!("{:?}", rounded.clamp(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_stay_in_their_range_reach_its_ends_and_do_not_depend_on_other_keys() {
        let stream = stream(3, "schedule.learning_rate");
        let numbers = |range: DrawRange| -> Vec<f64> {
            (0..2000).map(|sample| range.draw(stream, sample).parse().unwrap()).collect()
        };
        let uniform = numbers(DrawRange::Uniform(0.25, 0.75));
        assert!(uniform.iter().all(|x| (0.25..=0.75).contains(x)));
        let mean = uniform.iter().sum::<f64>() / 2000.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
        let log = numbers(DrawRange::LogUniform(1e-4, 1e-2));
        assert!(log.iter().all(|x| (1e-4..=1e-2).contains(x)));
        let below = log.iter().filter(|x| **x < 1e-3).count();
        assert!((900..1100).contains(&below), "half of the draws lie in each decade: {below}");
        let dice = numbers(DrawRange::Integers(1, 6));
        assert_eq!((1..=6).filter(|face| dice.contains(&f64::from(*face))).count(), 6);
        assert!(dice.iter().all(|x| (1.0..=6.0).contains(x)));
        assert!(DrawRange::Integers(0, u64::MAX).draw(stream, 0).parse::<u64>().is_ok());
    }

    #[test]
    fn the_first_draws_of_a_seed_are_fixed() {
        let draw = |seed, key, sample| DrawRange::LogUniform(1e-4, 1e-2).draw(stream(seed, key), sample);
        let first: Vec<String> = (0..3).map(|sample| draw(0, "schedule.learning_rate", sample)).collect();
        assert_eq!(first, ["0.000245257", "0.000390165", "0.00308162"]);
        assert_ne!(draw(1, "schedule.learning_rate", 0), first[0]);
        assert_ne!(draw(0, "optimizer.epsilon", 0), first[0]);
    }
}
