//! Axes: a range, round places for ticks, and short labels.

/// How values map to positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    Linear,
    /// Base 10; the range must be positive.
    Log,
}

/// A range of values with its ticks.
#[derive(Clone, Debug)]
pub struct Axis {
    pub low: f64,
    pub high: f64,
    pub scale: Scale,
    /// Value and label, ascending, all inside the range.
    pub ticks: Vec<(f64, String)>,
}

impl Axis {
    /// An axis from `low` to `high` with about `wanted` ticks or fewer.
    pub fn new(low: f64, high: f64, scale: Scale, wanted: usize) -> Axis {
        // A range without width has no positions: its value is put in the middle, and zero at the edge.
        let (low, high) = match scale {
            _ if high > low => (low, high),
            _ if low == 0.0 => (0.0, 1.0),
            Scale::Log if low > 0.0 => (low / 1.1, low * 1.1),
            _ => (low - 0.1 * low.abs(), low + 0.1 * low.abs()),
        };
        let values = match scale {
            Scale::Linear => linear_ticks(low, high, wanted),
            Scale::Log => log_ticks(low, high, wanted),
        };
        let spacing = values.windows(2).map(|pair| pair[1] - pair[0]).fold(f64::INFINITY, f64::min);
        let ticks = values.into_iter().map(|value| (value, label(value, spacing))).collect();
        Axis { low, high, scale, ticks }
    }

    /// Where a value stands: 0 at the low end, 1 at the high end; outside the range beyond these.
    pub fn position(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Log => {
                let (low, high) = (libm::log10(self.low), libm::log10(self.high));
                (libm::log10(value.max(f64::MIN_POSITIVE)) - low) / (high - low)
            }
        }
    }
}

/// 10 to a whole power, exact where a double can be.
fn power_of_ten(exponent: i32) -> f64 {
    let power = (0..exponent.unsigned_abs()).fold(1.0, |power, _| power * 10.0);
    if exponent < 0 { 1.0 / power } else { power }
}

/// Multiples of 1, 2, 2.5 or 5 times a power of ten.
fn linear_ticks(low: f64, high: f64, wanted: usize) -> Vec<f64> {
    let rough = (high - low) / wanted.max(1) as f64;
    // Ends alone where the numbers between are too close together or too far apart for doubles.
    if !(f64::MIN_POSITIVE..=f64::MAX).contains(&rough) {
        return vec![low, high];
    }
    let decade = libm::floor(libm::log10(rough)) as i32;
    let step = [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|mantissa| (mantissa, decade))
        .find(|&(mantissa, decade)| mantissa * power_of_ten(decade) >= rough * (1.0 - 1e-9));
    let (mantissa, decade) = step.unwrap_or((10.0, decade));
    // Whole multiples first and the power of ten last, so that 0.3 is 3/10 and not 0.30000000000000004.
    let at = |multiple: f64| {
        if decade < 0 {
            multiple * mantissa / power_of_ten(-decade)
        } else {
            multiple * mantissa * power_of_ten(decade)
        }
    };
    let slack = (high - low) * 1e-9;
    let first = libm::ceil((low - slack).max(f64::MIN) / at(1.0)) as i64;
    let last = libm::floor((high + slack).min(f64::MAX) / at(1.0)) as i64;
    (first..=last).map(|multiple| at(multiple as f64)).collect()
}

/// The densest of a few sets of round numbers that does not give too many; a range too narrow for
/// any of them gets linear ticks, and so does one that is not positive.
fn log_ticks(low: f64, high: f64, wanted: usize) -> Vec<f64> {
    if low <= 0.0 {
        return linear_ticks(low, high, wanted);
    }
    const SETS: [&[f64]; 4] =
        [&[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0], &[1.0, 2.0, 3.0, 5.0], &[1.0, 3.0], &[1.0]];
    let decades = libm::floor(libm::log10(low)) as i32..=libm::floor(libm::log10(high)) as i32;
    let inside = |set: &[f64]| -> Vec<f64> {
        let all = decades.clone().flat_map(|decade| {
            set.iter().map(move |mantissa| {
                if decade < 0 { mantissa / power_of_ten(-decade) } else { mantissa * power_of_ten(decade) }
            })
        });
        all.filter(|value| (low..=high).contains(value)).collect()
    };
    let ticks = SETS.into_iter().map(inside).find(|ticks| ticks.len() <= wanted + 2).unwrap_or_else(|| {
        // Of very many decades every so-many-th.
        let all = inside(&[1.0]);
        let every = all.len().div_ceil(wanted.max(1));
        all.into_iter().step_by(every).collect()
    });
    if ticks.len() >= 3 { ticks } else { linear_ticks(low, high, wanted) }
}

/// A tick's label: `0.25`, `30`, `1k`, `2.5M`, `6e-4`, with as many digits as the spacing of the ticks needs.
pub fn label(value: f64, spacing: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let size = value.abs();
    if !(1e-2..1e15).contains(&size) {
        let exponent = libm::floor(libm::log10(size) + 1e-9) as i32;
        // In two steps: the power of ten of a denormal is no double.
        let half = -exponent / 2;
        let mantissa = value * power_of_ten(half) * power_of_ten(-exponent - half);
        return format!("{}e{exponent}", trimmed(mantissa, 2));
    }
    let (unit, name) = [(1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")]
        .into_iter()
        .find(|(unit, _)| size >= *unit)
        .unwrap_or((1.0, ""));
    let spacing = if spacing.is_finite() && spacing > 0.0 { spacing / unit } else { 1e-2 };
    let digits = libm::ceil(-libm::log10(spacing) - 1e-9).clamp(0.0, 6.0) as usize;
    // A spacing of 0.25 has two digits where its power of ten has one.
    format!("{}{name}", trimmed(value / unit, digits + 1))
}

/// A decimal with at most `digits` digits behind the point and no zeros at its end.
pub fn trimmed(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(low: f64, high: f64, scale: Scale, wanted: usize) -> Vec<String> {
        Axis::new(low, high, scale, wanted).ticks.into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_round_and_labels_short() {
        assert_eq!(labels(0.0, 32_000.0, Scale::Linear, 7), ["0", "5k", "10k", "15k", "20k", "25k", "30k"]);
        assert_eq!(labels(0.0, 2.1e9, Scale::Linear, 5), ["0", "500M", "1B", "1.5B", "2B"]);
        assert_eq!(labels(0.0, 6.3e-4, Scale::Linear, 4), ["0", "2e-4", "4e-4", "6e-4"]);
        assert_eq!(labels(2.44, 3.9, Scale::Linear, 4), ["2.5", "3", "3.5"]);
        assert_eq!(labels(0.24, 0.31, Scale::Linear, 4), ["0.24", "0.26", "0.28", "0.3"]);
        assert_eq!(labels(0.0, 300.0, Scale::Linear, 6), ["0", "50", "100", "150", "200", "250", "300"]);
    }

    /// Of numbers that a diverged run may have, or a damaged file.
    #[test]
    fn an_axis_of_the_smallest_and_the_largest_doubles_ends() {
        for (low, high) in
            [(5e-324, 1e-320), (-1e308, 1e308), (1e-320, 1e308), (0.0, f64::MAX), (0.0, 5e-324), (1.0, 1.0)]
        {
            for scale in [Scale::Linear, Scale::Log] {
                let ticks = Axis::new(low, high, scale, 6).ticks;
                assert!(ticks.len() < 1000, "{low} to {high}: {}", ticks.len());
                assert!(ticks.iter().all(|(_, label)| !label.contains("inf")), "{ticks:?}");
            }
        }
        assert_eq!(label(2e-320, 1e-320), "2e-320");
    }

    #[test]
    fn log_ticks_are_round_in_any_width_of_range() {
        assert_eq!(labels(2.3, 11.2, Scale::Log, 7), ["3", "4", "5", "6", "8", "10"]);
        assert_eq!(labels(0.01, 2000.0, Scale::Log, 5), ["0.01", "0.1", "1", "10", "100", "1k"]);
        assert_eq!(labels(3.0, 3.2, Scale::Log, 4), ["3", "3.05", "3.1", "3.15", "3.2"]);
        assert_eq!(labels(1e-4, 1e30, Scale::Log, 5), ["1e-4", "1k", "10B", "1e17", "1e24"]);
    }

    #[test]
    fn positions_run_from_0_to_1() {
        let linear = Axis::new(2.0, 4.0, Scale::Linear, 4);
        assert_eq!([2.0, 3.0, 4.0, 5.0].map(|value| linear.position(value)), [0.0, 0.5, 1.0, 1.5]);
        let log = Axis::new(1.0, 100.0, Scale::Log, 4);
        assert_eq!([1.0, 10.0, 100.0].map(|value| log.position(value)), [0.0, 0.5, 1.0]);
        for scale in [Scale::Linear, Scale::Log] {
            let position = Axis::new(3.0, 3.0, scale, 4).position(3.0);
            assert!((position - 0.5).abs() < 1e-9, "a lone value stands in the middle: {position}");
        }
        assert_eq!(Axis::new(0.0, 0.0, Scale::Linear, 4).position(0.0), 0.0);
    }

    #[test]
    fn numbers_read_easily() {
        assert_eq!(
            [label(3.2e20, 0.1), label(-4e-5, 1e-5), label(12.25, 0.25)],
            ["3.2e20", "-4e-5", "12.25"]
        );
        assert_eq!(trimmed(2.50, 3), "2.5");
        assert_eq!(trimmed(100.0, 0), "100");
    }
}
