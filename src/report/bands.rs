//! Several runs as one line with a band: their mean, and how far it can be trusted.

use super::curves::Curves;
use super::series::Point;
use super::statistics::SampleStatistics;

/// A place on a band: x, its lower and its upper edge.
pub type BandPoint = (f64, f64, f64);

/// The bands around the mean lines of a group; empty where fewer than two runs have a line.
#[derive(Clone, Debug, Default)]
pub struct Bands {
    pub loss: Vec<BandPoint>,
    pub val_loss: Vec<BandPoint>,
    pub hellaswag: Vec<BandPoint>,
    pub grad_norm: Vec<BandPoint>,
    pub tokens_per_s: Vec<BandPoint>,
    /// Where the shortest run has ended, and with it the mean, while others go on; none where all end at one
    /// place.
    pub cut: Option<f64>,
    /// The mean of the runs' last validation losses; none where the mean line is cut. Over hours, where no
    /// two runs end at one place, the line itself ends a little before.
    pub last_val_loss: Option<f64>,
}

/// How far values reach around their mean: the 95 % interval of the mean of three and more, all of two, and
/// nothing of one.
pub fn spread(values: &[f64]) -> Option<[f64; 2]> {
    match values {
        [a, b] => Some([a.min(*b), a.max(*b)]),
        _ => SampleStatistics::of(values)?.interval,
    }
}

/// The mean of runs as one run's lines, with their bands. Skipped steps and events of all stay. Ends that
/// differ by up to a share of `slack` are one place.
pub fn of_group(runs: &[Curves], slack: f64) -> (Curves, Bands) {
    let line = |of: fn(&Curves) -> &Vec<Point>| {
        mean_line(&runs.iter().map(|run| of(run).as_slice()).collect::<Vec<_>>())
    };
    let (loss, loss_band) = line(|run| &run.loss_smooth);
    let (val_loss, val_loss_band) = line(|run| &run.val_loss);
    let (hellaswag, hellaswag_band) = line(|run| &run.hellaswag);
    let (grad_norm, grad_norm_band) = line(|run| &run.grad_norm_smooth);
    let (tokens_per_s, tokens_per_s_band) = line(|run| &run.tokens_per_s_smooth);
    let curves = Curves {
        loss: loss.clone(),
        loss_smooth: loss,
        val_loss,
        hellaswag,
        learning_rate: line(|run| &run.learning_rate).0,
        grad_norm: grad_norm.clone(),
        grad_norm_smooth: grad_norm,
        tokens_per_s: tokens_per_s.clone(),
        tokens_per_s_smooth: tokens_per_s,
        skipped_loss: runs.iter().flat_map(|run| run.skipped_loss.clone()).collect(),
        skipped_norm: runs.iter().flat_map(|run| run.skipped_norm.clone()).collect(),
        moments: runs.iter().flat_map(|run| run.moments.clone()).collect(),
        window: runs.iter().map(|run| run.window).max().unwrap_or(1),
        end: runs.iter().map(|run| run.end).fold(0.0, f64::max),
        left_out: runs.iter().any(|run| run.left_out),
        failed: false,
    };
    let end = runs.iter().map(|run| run.end).fold(f64::INFINITY, f64::min);
    let bands = Bands {
        loss: loss_band,
        val_loss: val_loss_band,
        hellaswag: hellaswag_band,
        grad_norm: grad_norm_band,
        tokens_per_s: tokens_per_s_band,
        cut: Some(end).filter(|end| *end < (1.0 - slack) * curves.end),
        last_val_loss: None,
    };
    let last: Vec<f64> = runs.iter().filter_map(|run| Some(run.val_loss.last()?.1)).collect();
    let mean = SampleStatistics::of(&last).map(|statistics| statistics.mean);
    let bands = Bands { last_val_loss: mean.filter(|_| bands.cut.is_none()), ..bands };
    (curves, bands)
}

/// The mean of lines and the band around it, where all of them are: from the latest first point to the
/// earliest last one, at the places of the line with the most points there. Between its points a line is
/// straight. Lines without a point do not count.
fn mean_line(lines: &[&[Point]]) -> (Vec<Point>, Vec<BandPoint>) {
    let lines: Vec<&[Point]> = lines.iter().copied().filter(|line| !line.is_empty()).collect();
    let first = lines.iter().map(|line| line[0].0).fold(f64::NEG_INFINITY, f64::max);
    let last = lines.iter().map(|line| line[line.len() - 1].0).fold(f64::INFINITY, f64::min);
    let within = |line: &&[Point]| line.iter().filter(|(x, _)| (first..=last).contains(x)).count();
    // `max_by_key` takes the last of equals.
    let Some(densest) = lines.iter().rev().max_by_key(|line| within(line)) else { return Default::default() };
    let mut places = vec![0; lines.len()];
    let (mut means, mut band) = (Vec::new(), Vec::new());
    for (x, _) in densest.iter().filter(|(x, _)| (first..=last).contains(x)) {
        let values: Vec<f64> =
            lines.iter().zip(&mut places).map(|(line, place)| value_at(line, *x, place)).collect();
        let Some(statistics) = SampleStatistics::of(&values) else { continue };
        means.push((*x, statistics.mean));
        band.extend(spread(&values).map(|[low, high]| (*x, low, high)));
    }
    (means, band)
}

/// The value of a line at `x`, which lies within it; `place` is the index of a point before it, and moves on.
fn value_at(line: &[Point], x: f64, place: &mut usize) -> f64 {
    while line.get(*place + 1).is_some_and(|next| next.0 <= x) {
        *place += 1;
    }
    let (before, y) = line[*place];
    match line.get(*place + 1) {
        Some((after, next)) if x > before => y + (x - before) / (after - before) * (next - y),
        _ => y,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_validation_of_a_group_is_the_mean_of_those_of_its_runs_wherever_these_end() {
        let run = |end: f64, loss: f64| Curves {
            val_loss: vec![(0.0, 9.0), (end, loss)],
            end,
            ..Curves::default()
        };
        let of = |ends: [f64; 2], slack| {
            let bands = of_group(&[run(ends[0], 5.0), run(ends[1], 4.0)], slack).1;
            (bands.last_val_loss, bands.cut)
        };
        assert_eq!(of([100.0, 100.5], 0.01), (Some(4.5), None));
        assert_eq!(of([100.0, 150.0], 0.01), (None, Some(100.0)));
        assert_eq!(of([199.0, 200.0], 0.0), (None, Some(199.0)), "steps are counted exactly");
    }

    #[test]
    fn a_mean_line_lies_where_all_lines_are_and_its_band_is_the_interval_of_the_mean() {
        let line = |shift: f64, from: i32, to: i32| -> Vec<Point> {
            (from..=to).map(|x| (f64::from(x), f64::from(x) + shift)).collect()
        };
        let (a, b, c) = (line(0.0, 0, 9), line(0.3, 2, 12), line(0.6, 0, 8));
        let (mean, band) = mean_line(&[&a, &b, &c]);
        assert_eq!((mean[0].0, mean[mean.len() - 1].0, mean.len()), (2.0, 8.0, 7));
        for ((x, y), (_, low, high)) in mean.into_iter().zip(band) {
            assert!((y - x - 0.3).abs() < 1e-12);
            // Standard deviation 0.3 and n = 3: 4.3027 times 0.3 over the root of 3.
            assert!((high - y - 0.745241).abs() < 1e-5 && (y - low - 0.745241).abs() < 1e-5, "{low} {high}");
        }
    }

    #[test]
    fn two_lines_have_their_range_and_one_has_no_band() {
        let (a, b): (Vec<Point>, Vec<Point>) =
            (vec![(0.0, 4.0), (10.0, 2.0)], vec![(0.0, 3.0), (5.0, 4.0), (10.0, 1.0)]);
        let (mean, band) = mean_line(&[&a, &b, &[]]);
        assert_eq!(mean, [(0.0, 3.5), (5.0, 3.5), (10.0, 1.5)]);
        assert_eq!(band, [(0.0, 3.0, 4.0), (5.0, 3.0, 4.0), (10.0, 1.0, 2.0)]);
        let (mean, band) = mean_line(&[&a]);
        assert_eq!((mean, band.len()), (a, 0));
        assert_eq!(mean_line(&[&[], &[]]).0, []);
    }

    #[test]
    fn lines_that_never_stand_side_by_side_have_no_mean() {
        assert_eq!(mean_line(&[&[(0.0, 1.0), (1.0, 1.0)], &[(2.0, 1.0), (3.0, 1.0)]]).0, []);
    }
}
