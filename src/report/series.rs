//! From numbers to a picture: smoothing, thinning and the range to show.
//!
//! A picture has about a thousand columns of pixels and a run may have 400,000 steps. No outlier is hidden:
//! thinning keeps the extremes of every column, and a range that leaves values out reports how many and how
//! far.

/// A point of a line; x ascends along a line.
pub type Point = (f64, f64);

/// A smoothed copy of a line: at every point the value there of a straight line fitted by least
/// squares to the neighbours, `half` on either side.
///
/// A fit follows a slope up to both ends, where a plain mean would lag. Near the first point fewer
/// neighbours count, a quarter of the points before on either side, because a loss falls steeply there and a
/// logarithmic axis shows it large; near the last those behind it are not there. Points must be finite.
pub fn smooth(points: &[Point], half: usize) -> Vec<Point> {
    // Prefix sums of x, y, x², xy around the middle of the x-range, for digits.
    let middle = points.first().zip(points.last()).map_or(0.0, |(first, last)| (first.0 + last.0) / 2.0);
    let mut sums = vec![[0.0; 4]];
    for &(x, y) in points {
        let (x, [a, b, c, d]) = (x - middle, sums[sums.len() - 1]);
        sums.push([a + x, b + y, c + x * x, d + x * y]);
    }
    let fit = |(index, &(x, _)): (usize, &Point)| {
        let reach = half.min(index.div_ceil(4));
        let (from, to) = (index - reach, (index + reach + 1).min(points.len()));
        let count = (to - from) as f64;
        let [sx, sy, sxx, sxy] = std::array::from_fn(|moment| sums[to][moment] - sums[from][moment]);
        let spread = sxx - sx * sx / count;
        // A single point, or several at one x, has no slope; neither has rounding noise.
        let slope =
            if spread > 1e-9 * sxx.abs().max(1e-300) { (sxy - sx * sy / count) / spread } else { 0.0 };
        (x, sy / count + slope * (x - middle - sx / count))
    };
    points.iter().enumerate().map(fit).collect()
}

/// Thins a line to at most four points a column of `width` columns: the first, the lowest, the highest
/// and the last, in their order. Drawn, it covers the same pixels.
pub fn thin(points: &[Point], width: usize) -> Vec<Point> {
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return Vec::new() };
    if points.len() <= 2 * width || last.0 <= first.0 {
        return points.to_vec();
    }
    let column = |x: f64| ((x - first.0) / (last.0 - first.0) * width as f64) as usize;
    let mut kept = Vec::new();
    for group in points.chunk_by(|a, b| column(a.0) == column(b.0)) {
        let extreme = |sign: f64| {
            (1..group.len()).fold(
                0,
                |best, index| if sign * group[index].1 > sign * group[best].1 { index } else { best },
            )
        };
        let mut indices = [0, extreme(-1.0), extreme(1.0), group.len() - 1];
        indices.sort_unstable();
        let mut previous = None;
        for index in indices {
            if previous != Some(index) {
                kept.push(group[index]);
            }
            previous = Some(index);
        }
    }
    kept
}

/// The value below which a share of the values lies, between two of them on the straight line from one to the
/// other, as NumPy has it; `None` of none.
pub fn quantile(values: &[f64], share: f64) -> Option<f64> {
    let sorted = ascending(values);
    let place = share * sorted.len().checked_sub(1)? as f64;
    let index = place as usize;
    let (below, part) = (*sorted.get(index)?, place - index as f64);
    let above = sorted.get(index + 1).filter(|_| part > 0.0);
    Some(above.map_or(below, |above| below + part * (above - below)))
}

fn ascending(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The top of a range that shows the run rather than its first steps: the largest value, unless the highest
/// values are so far above a `share` of all that they would flatten it.
///
/// `floor` is the bottom of the range. Values must be finite.
pub fn robust_top(values: &[f64], share: f64, floor: f64) -> Option<f64> {
    let sorted = ascending(values);
    let largest = *sorted.last()?;
    // One of the values: between two, a few steps would let a spike reach into what is usual.
    let usual = sorted[(share * (sorted.len() - 1) as f64) as usize];
    let height = usual - floor;
    Some(if largest - floor <= 1.6 * height { largest } else { usual + 0.12 * height })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoothing_leaves_a_straight_line_straight_up_to_both_ends() {
        let line: Vec<Point> = (0..50).map(|x| (f64::from(x) + 1e6, 3.0 - 0.5 * f64::from(x))).collect();
        let smooth = smooth(&line, 8);
        assert_eq!(smooth.len(), line.len());
        for ((x, y), (_, smoothed)) in line.iter().zip(smooth) {
            assert!((y - smoothed).abs() < 1e-6, "at {x}: {y} became {smoothed}");
        }
    }

    #[test]
    fn smoothing_quiets_noise_and_keeps_the_first_point() {
        let noisy: Vec<Point> =
            (0..200).map(|x| (f64::from(x), if x % 2 == 0 { 1.0 } else { -1.0 })).collect();
        let smoothed = smooth(&noisy, 10);
        assert_eq!(smoothed[0], noisy[0]);
        assert!(smoothed[20..].iter().all(|point| point.1.abs() < 0.2));
        assert_eq!(smooth(&noisy, 0), noisy);
        assert!(smooth(&[], 3).is_empty());
    }

    #[test]
    fn thinning_keeps_every_columns_extremes() {
        let mut line: Vec<Point> = (0..10_000).map(|x| (f64::from(x), 0.0)).collect();
        (line[4_321].1, line[7_777].1) = (9.0, -9.0);
        let thinned = thin(&line, 100);
        assert!(thinned.len() <= 4 * 101, "{}", thinned.len());
        assert!(thinned.contains(&line[4_321]) && thinned.contains(&line[7_777]));
        assert!(thinned.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!((thinned[0], thinned[thinned.len() - 1]), (line[0], line[9_999]));
    }

    #[test]
    fn a_quantile_lies_between_values_as_numpy_has_it() {
        let of = |values: &[f64], share| quantile(values, share).unwrap();
        // Places 0.2 and 3.8 of 0 to 4.
        let five = [130.0, 90.0, 110.0, 120.0, 100.0];
        assert!((of(&five, 0.05) - 92.0).abs() < 1e-9 && (of(&five, 0.95) - 128.0).abs() < 1e-9);
        assert_eq!((of(&five, 0.0), of(&five, 0.5), of(&five, 1.0)), (90.0, 110.0, 130.0));
        assert_eq!((of(&[1.0, 2.0], 0.5), of(&[7.0], 0.95)), (1.5, 7.0));
        assert_eq!(of(&[1.0, f64::INFINITY], 0.0), 1.0);
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn a_spike_does_not_set_the_range_but_a_steady_fall_does() {
        let mut norms = vec![1.0; 1000];
        norms[..5].fill(40.0);
        assert_eq!(robust_top(&norms, 0.98, 0.0), Some(1.12));
        let falling: Vec<f64> = (0..300).map(|step| 5.6 - f64::from(step) / 100.0).collect();
        assert_eq!(robust_top(&falling, 0.98, 2.0), Some(5.6));
        assert_eq!(robust_top(&[], 0.98, 0.0), None);
    }
}
