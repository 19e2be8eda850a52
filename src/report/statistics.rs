//! What can be said of a few numbers with spread: means with intervals, tests of a difference, and their
//! correction where many are made.
//!
//! All of it supposes what Student's t does: runs that are independent of each other, and errors near enough
//! to normal. Sums run in the order of the values. `docs/compare.md` has the formulas.

use serde::Serialize;

/// The share of intervals that hold the true value.
pub const CONFIDENCE: f64 = 0.95;

/// Values of one group in a few numbers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SampleStatistics {
    pub n: usize,
    pub mean: f64,
    /// Standard deviation of the values with n - 1; none of one value.
    pub sd: Option<f64>,
    /// Of the mean, 95 %, by Student's t; none of one value.
    pub interval: Option<[f64; 2]>,
}

impl SampleStatistics {
    /// Of finite values; none where there are none.
    pub fn of(values: &[f64]) -> Option<SampleStatistics> {
        let mean = mean(values)?;
        let sd = sd(values, mean);
        let interval = sd.map(|sd| {
            let n = values.len() as f64;
            around(mean, critical(n - 1.0) * sd / libm::sqrt(n))
        });
        Some(SampleStatistics { n: values.len(), mean, sd, interval })
    }
}

/// Student's test of a difference of two means.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TTest {
    pub t: f64,
    /// Degrees of freedom; with Welch's test not a whole number.
    pub df: f64,
    /// The probability, were there no difference, of one as large as this in either direction.
    pub p: f64,
    /// Of the difference, 95 %.
    pub interval: [f64; 2],
}

impl TTest {
    /// Of the mean of differences within pairs; none of fewer than two pairs, and none where all pairs differ
    /// by the same, which leaves no spread to hold the mean against.
    pub fn paired(differences: &[f64]) -> Option<TTest> {
        let mean = mean(differences)?;
        let n = differences.len() as f64;
        TTest::of(mean, sd(differences, mean)? / libm::sqrt(n), n - 1.0)
    }

    /// Of `mean(a) - mean(b)`, the spreads of which may differ (Welch 1947, Satterthwaite's degrees of
    /// freedom); none unless both have two values and one has spread.
    pub fn welch(a: &[f64], b: &[f64]) -> Option<TTest> {
        let (mean_a, mean_b) = (mean(a)?, mean(b)?);
        let (n_a, n_b) = (a.len() as f64, b.len() as f64);
        let square = |sd: f64, n: f64| sd * sd / n;
        let (a, b) = (square(sd(a, mean_a)?, n_a), square(sd(b, mean_b)?, n_b));
        let df = (a + b) * (a + b) / (a * a / (n_a - 1.0) + b * b / (n_b - 1.0));
        TTest::of(mean_a - mean_b, libm::sqrt(a + b), df)
    }

    fn of(difference: f64, error: f64, df: f64) -> Option<TTest> {
        let t = difference / error;
        let found =
            TTest { t, df, p: two_sided_p(t, df), interval: around(difference, critical(df) * error) };
        (error > 0.0 && df.is_finite()).then_some(found)
    }
}

/// Holm's correction (1979) for as many tests as there are values: the probability that any test of the
/// family finds a difference where there is none stays below what a corrected value is held to, however the
/// tests depend on each other.
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|a, b| p_values[*a].total_cmp(&p_values[*b]));
    let mut corrected = vec![0.0; p_values.len()];
    let mut highest = 0.0_f64;
    for (rank, at) in order.into_iter().enumerate() {
        highest = highest.max((p_values.len() - rank) as f64 * p_values[at]).min(1.0);
        corrected[at] = highest;
    }
    corrected
}

/// The median, of an even number the mean of the middle two; `None` of none.
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    Some((values[values.len().checked_sub(1)? / 2] + values[values.len() / 2]) / 2.0)
}

/// The mean, as the first value and the mean distance from it: exact where all values are one.
pub fn mean(values: &[f64]) -> Option<f64> {
    let first = *values.first()?;
    Some(first + values.iter().map(|value| value - first).sum::<f64>() / values.len() as f64)
}

fn sd(values: &[f64], mean: f64) -> Option<f64> {
    let squares: f64 = values.iter().map(|value| (value - mean) * (value - mean)).sum();
    (values.len() > 1).then(|| libm::sqrt(squares / (values.len() - 1) as f64))
}

fn around(middle: f64, reach: f64) -> [f64; 2] {
    [middle - reach, middle + reach]
}

/// The probability that Student's t with `df` degrees of freedom is further from 0 than `t`.
fn two_sided_p(t: f64, df: f64) -> f64 {
    let square = t * t;
    incomplete_beta(df / 2.0, 0.5, df / (df + square), square / (df + square))
}

/// The t beyond which 5 % lie, by bisection. One degree of freedom needs the largest, 12.7.
fn critical(df: f64) -> f64 {
    let (mut low, mut high) = (1.9, 13.0);
    for _ in 0..64 {
        let middle = (low + high) / 2.0;
        if two_sided_p(middle, df) > 1.0 - CONFIDENCE { low = middle } else { high = middle }
    }
    (low + high) / 2.0
}

/// The regularised incomplete beta function at `x`, where `y` is 1 - x: by the continued fraction (DLMF
/// 8.17.22) on the side on which it converges fast.
fn incomplete_beta(a: f64, b: f64, x: f64, y: f64) -> f64 {
    if x <= 0.0 || y <= 0.0 {
        return if x <= 0.0 { 0.0 } else { 1.0 };
    }
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - incomplete_beta(b, a, y, x);
    }
    let ln_front =
        a * libm::log(x) + b * libm::log(y) + libm::lgamma(a + b) - libm::lgamma(a) - libm::lgamma(b);
    // Lentz's method from the first term on: `fraction` is 1 + d1/(1 + d2/(1 + …)).
    let (mut fraction, mut c, mut d) = (1.0, 1.0, 0.0);
    for term in 1..100_000 {
        let m = f64::from(term / 2);
        let coefficient = if term % 2 == 0 {
            m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m))
        } else {
            -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0))
        };
        d = 1.0 / nonzero(1.0 + coefficient * d);
        c = nonzero(1.0 + coefficient / c);
        fraction *= c * d;
        if (c * d - 1.0).abs() < 1e-15 {
            break;
        }
    }
    libm::exp(ln_front) / (a * fraction)
}

/// A divisor that is no zero.
fn nonzero(value: f64) -> f64 {
    if value.abs() < 1e-300 { 1e-300 } else { value }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    /// What `tests/statistics/reference.py` writes.
    #[derive(Deserialize)]
    struct Scipy {
        two_sided_p: Vec<[f64; 3]>,
        critical: Vec<[f64; 2]>,
        samples: Vec<ScipySample>,
        paired: Vec<ScipyTest>,
        welch: Vec<ScipyTest>,
        holm: Vec<[Vec<f64>; 2]>,
    }

    #[derive(Deserialize)]
    struct ScipySample {
        values: Vec<f64>,
        mean: f64,
        sd: f64,
        interval: [f64; 2],
    }

    #[derive(Deserialize)]
    struct ScipyTest {
        a: Vec<f64>,
        b: Vec<f64>,
        t: f64,
        df: f64,
        p: f64,
        interval: [f64; 2],
    }

    fn scipy() -> Scipy {
        serde_json::from_str(include_str!("../../tests/fixtures/statistics.json")).unwrap()
    }

    #[track_caller]
    fn near(ours: f64, theirs: f64, share: f64, what: &str) {
        assert!((ours - theirs).abs() <= share * theirs.abs(), "{what}: {ours}, SciPy has {theirs}");
    }

    #[test]
    fn students_t_is_scipys_from_one_degree_of_freedom_to_a_million_and_far_into_the_tail() {
        let scipy = scipy();
        assert!(scipy.two_sided_p.iter().any(|[.., p]| *p < 1e-100));
        for [t, df, p] in scipy.two_sided_p {
            // The logarithm of the gamma function of half a million has eight digits behind the point.
            let share = if df > 1e4 { 1e-8 } else { 1e-11 };
            near(two_sided_p(t, df), p, share, &format!("t {t}, {df} degrees of freedom"));
            near(two_sided_p(-t, df), p, share, &format!("t -{t}, {df} degrees of freedom"));
        }
        for [df, t] in scipy.critical {
            near(critical(df), t, 1e-9, &format!("{df} degrees of freedom"));
        }
    }

    #[test]
    fn means_intervals_tests_and_the_correction_are_scipys() {
        let scipy = scipy();
        for ScipySample { values, mean, sd, interval } in scipy.samples {
            let ours = SampleStatistics::of(&values).unwrap();
            near(ours.mean, mean, 1e-14, "mean");
            near(ours.sd.unwrap(), sd, 1e-7, "standard deviation");
            let [low, high] = ours.interval.unwrap();
            near(low, interval[0], 1e-9, "lower end");
            near(high, interval[1], 1e-9, "upper end");
        }
        let same = |ours: TTest, theirs: &ScipyTest| {
            near(ours.t, theirs.t, 1e-9, "t");
            near(ours.df, theirs.df, 1e-9, "degrees of freedom");
            near(ours.p, theirs.p, 1e-9, "p");
            near(ours.interval[0], theirs.interval[0], 1e-9, "lower end");
            near(ours.interval[1], theirs.interval[1], 1e-9, "upper end");
        };
        for test in &scipy.paired {
            let differences: Vec<f64> = test.a.iter().zip(&test.b).map(|(a, b)| a - b).collect();
            same(TTest::paired(&differences).unwrap(), test);
        }
        for test in &scipy.welch {
            same(TTest::welch(&test.a, &test.b).unwrap(), test);
        }
        for [p_values, corrected] in scipy.holm {
            for (ours, theirs) in holm(&p_values).into_iter().zip(corrected) {
                near(ours, theirs, 1e-14, "Holm");
            }
        }
    }

    #[test]
    fn without_spread_or_of_one_value_there_is_no_test_and_never_a_nan() {
        let one = SampleStatistics::of(&[3.1]).unwrap();
        assert_eq!((one.n, one.mean, one.sd, one.interval), (1, 3.1, None, None));
        let equal = SampleStatistics::of(&[3.1; 3]).unwrap();
        assert_eq!((equal.mean, equal.sd, equal.interval), (3.1, Some(0.0), Some([3.1, 3.1])));
        assert_eq!(SampleStatistics::of(&[]), None);
        assert_eq!(TTest::paired(&[0.0; 3]), None);
        assert_eq!(TTest::paired(&[0.25, 0.25]), None);
        assert_eq!(TTest::paired(&[0.25]), None);
        assert_eq!(TTest::welch(&[3.0, 3.0], &[3.5, 3.5]), None);
        assert_eq!(TTest::welch(&[3.0], &[3.5, 3.6]), None);
        assert!(TTest::welch(&[3.0, 3.0], &[3.5, 3.6]).is_some());
        assert!(holm(&[]).is_empty());
    }

    proptest! {
        #[test]
        fn exchanging_the_groups_turns_the_sign_and_nothing_else(
            a in prop::collection::vec(0.1f64..10.0, 2..9), b in prop::collection::vec(0.1f64..10.0, 2..9),
        ) {
            if let (Some(there), Some(back)) = (TTest::welch(&a, &b), TTest::welch(&b, &a)) {
                prop_assert_eq!(there.t, -back.t);
                prop_assert_eq!(there.p, back.p);
                prop_assert_eq!(there.interval, [-back.interval[1], -back.interval[0]]);
                prop_assert!((0.0..=1.0).contains(&there.p));
            }
        }

        /// The test and the interval say the same: 0 is outside where p is below 5 %.
        #[test]
        fn an_interval_leaves_zero_out_exactly_where_p_is_below_a_twentieth(
            differences in prop::collection::vec(-1.0f64..1.5, 2..9),
        ) {
            if let Some(test) = TTest::paired(&differences) {
                let [low, high] = test.interval;
                prop_assume!((test.p - 0.05).abs() > 1e-9);
                prop_assert_eq!(low > 0.0 || high < 0.0, test.p < 0.05);
            }
        }

        #[test]
        fn a_correction_makes_no_value_smaller_and_keeps_their_order(
            p_values in prop::collection::vec(0.0f64..=1.0, 0..20),
        ) {
            let corrected = holm(&p_values);
            for (at, p) in p_values.iter().enumerate() {
                prop_assert!(corrected[at] >= *p && corrected[at] <= 1.0);
                for (other, q) in p_values.iter().enumerate() {
                    prop_assert!(p > q || corrected[at] <= corrected[other]);
                }
            }
        }
    }
}
