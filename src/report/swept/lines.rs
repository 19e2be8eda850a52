//! One swept key: a point a run, and the mean of runs of one kind with its interval.

use super::{counted, left_out, losses, quantity, values_of};
use crate::report::axis::{Axis, Scale};
use crate::report::bands::spread;
use crate::report::compare::{ComparedRun, ComparedRuns, RunGroup};
use crate::report::groups::{RunKeys, SEED, group_by, label};
use crate::report::legend::{self, LegendEntry, LegendSample};
use crate::report::panel::{Panel, TEXT_SIZE, cross};
use crate::report::scene::{Align, Color, Scene, text_width};
use crate::report::statistics::mean;
use crate::report::{ReportError, Theme};

const SIZE: (u32, f64) = (1200, 560.0);
const MARGIN: f64 = 30.0;

/// Draws the number in which runs are compared over `key`; a colour for each kind of runs that differ in
/// other keys than this and the seed.
pub fn draw(runs: &ComparedRuns, key: &str, theme: Theme) -> Result<Scene, ReportError> {
    let colors = theme.colors();
    let values = values_of(runs, key);
    let kind_by: Vec<String> = runs.pair_by.iter().filter(|name| *name != SEED).cloned().collect();
    let kinds: Vec<Vec<String>> =
        group_by(&kind_by, runs.all().map(|run| &run.keys)).into_iter().map(|(kind, _)| kind).collect();
    let entries = || legend_of(runs, &kind_by, &kinds, theme);
    let strip =
        |scene: &mut Scene| legend::draw(scene, entries(), 66.0, (MARGIN, f64::from(SIZE.0) - MARGIN));
    // Laid out twice: first to measure the legend.
    let top = strip(&mut Scene::new(SIZE.0, 1, colors))? + 48.0;
    let mut scene = Scene::new(SIZE.0, (top + SIZE.1 + 78.0) as u32, colors);
    let title = format!("{} over {key}", counted(runs));
    let title = legend::shortened(&title, f64::from(SIZE.0) - 2.0 * MARGIN, 34.0, true)?;
    scene.text(title, (MARGIN, 50.0), 34.0, true, Align::Left, colors.text);
    strip(&mut scene)?;
    let y = height(runs, &kind_by, &kinds, &values, key);
    let mut labels = 66.0_f64;
    for (_, label) in &y.ticks {
        labels = labels.max(text_width(label, TEXT_SIZE, false)?);
    }
    let left = MARGIN + labels + 14.0;
    let width = f64::from(SIZE.0) - MARGIN - left;
    let places = Places::of(&values, width)?;
    let panel = Panel {
        title: capitalised(quantity(runs)),
        left,
        top,
        width,
        height: SIZE.1,
        gutter: 0.0,
        x: places.axis.clone(),
        y,
    };
    let log = if places.axis.scale == Scale::Log { ", log scale" } else { "" };
    let found: Vec<Vec<Vec<f64>>> = kinds
        .iter()
        .map(|kind| {
            let of =
                |run: &ComparedRun, value: &str| is_of(run, &kind_by, kind) && run.keys.get(key) == value;
            values.iter().map(|value| losses(runs, |run| of(run, value))).collect()
        })
        .collect();
    let at = |value: &String| panel.at((places.of_value(value, &values), panel.y.low)).0;
    let pixels: Vec<f64> = values.iter().map(at).collect();
    let sizes: Vec<Vec<usize>> = found.iter().map(|kind| kind.iter().map(Vec::len).collect()).collect();
    let shifts = shifts(&sizes, &pixels);
    let apart = shifts.iter().flatten().any(|shift| *shift != 0.0);
    let apart = if apart { "; kinds of one value side by side" } else { "" };
    panel.frame(&mut scene, Some(&format!("{key}{log}{apart}")), &[left_out(runs)])?;
    for (index, (found, shifts)) in found.into_iter().zip(shifts).enumerate() {
        let found = values.iter().zip(found).zip(shifts).map(|((value, losses), shift)| PlaceOfRuns {
            x: places.of_value(value, &values),
            shift,
            losses,
        });
        let kind =
            KindOfRuns { found: found.collect(), color: colors.run(index), is_joined: places.is_number };
        kind.draw(&mut scene, &panel);
    }
    for keys in failed(runs) {
        let (x, _) = panel.at((places.of_value(keys.get(key), &values), panel.y.high));
        cross(&mut scene, (x, panel.top + 14.0));
    }
    Ok(scene)
}

fn is_of(run: &ComparedRun, kind_by: &[String], kind: &[String]) -> bool {
    run.keys.values(kind_by) == kind
}

fn failed(runs: &ComparedRuns) -> impl Iterator<Item = &RunKeys> {
    runs.left_out.iter().filter(|run| run.failed).filter_map(|run| run.keys.as_ref())
}

/// As a heading; the name of a metric stays as it is written everywhere.
fn capitalised(text: String) -> String {
    match text.strip_prefix('f') {
        Some(rest) => format!("F{rest}"),
        None => text,
    }
}

/// Pixels to the right for each kind at each place, by how many runs it has there: kinds that share a place,
/// one of them with a bar, stand side by side, within two fifths of the way to the nearest other place.
/// `pixels` are the places, ascending.
pub(super) fn shifts(sizes: &[Vec<usize>], pixels: &[f64]) -> Vec<Vec<f64>> {
    let mut shifts = vec![vec![0.0; pixels.len()]; sizes.len()];
    for (place, x) in pixels.iter().enumerate() {
        let here: Vec<usize> = (0..sizes.len()).filter(|kind| sizes[*kind][place] > 0).collect();
        if here.len() < 2 || here.iter().all(|kind| sizes[*kind][place] < 2) {
            continue;
        }
        let others = pixels.iter().enumerate().filter(|(other, _)| *other != place);
        let room = others.map(|(_, other)| (other - x).abs()).fold(f64::INFINITY, f64::min);
        let middle = (here.len() - 1) as f64 / 2.0;
        let apart = (60.0 / here.len() as f64).min(16.0).min(0.4 * room / middle);
        for (at, kind) in here.into_iter().enumerate() {
            shifts[kind][place] = apart * (at as f64 - middle);
        }
    }
    shifts
}

/// The losses of runs of one kind at one place.
struct PlaceOfRuns {
    x: f64,
    /// Pixels to the right.
    shift: f64,
    losses: Vec<f64>,
}

/// Runs of one kind, place by place.
struct KindOfRuns {
    found: Vec<PlaceOfRuns>,
    color: Color,
    /// Whether a line joins the means.
    is_joined: bool,
}

impl KindOfRuns {
    /// Draws the line of means, then intervals, runs, and means of several runs.
    fn draw(&self, scene: &mut Scene, panel: &Panel) {
        let (strong, color) = (scene.colors.strong(self.color), self.color);
        let at = |place: &PlaceOfRuns, loss: f64| {
            let (x, y) = panel.at((place.x, loss));
            (x + place.shift, y)
        };
        let means =
            self.found.iter().filter_map(|place| Some((at(place, mean(&place.losses)?), place.losses.len())));
        let means: Vec<((f64, f64), usize)> = means.collect();
        if self.is_joined {
            scene.line(means.iter().map(|(mean, _)| *mean).collect(), 2.0, color);
        }
        for place in &self.found {
            if let Some([low, high]) = spread(&place.losses) {
                let ((x, low), (_, high)) = (at(place, low), at(place, high));
                scene.line(vec![(x, low), (x, high)], 2.5, strong);
                for end in [low, high] {
                    scene.line(vec![(x - 11.0, end), (x + 11.0, end)], 2.5, strong);
                }
            }
            for loss in &place.losses {
                scene.circle(at(place, *loss), 5.5, scene.colors.background);
                scene.circle(at(place, *loss), 4.5, color);
            }
        }
        for ((x, y), _) in means.into_iter().filter(|(_, n)| *n > 1) {
            scene.line(vec![(x - 14.0, y), (x + 14.0, y)], 5.0, strong);
        }
    }
}

/// The range of losses and intervals.
fn height(
    runs: &ComparedRuns,
    kind_by: &[String],
    kinds: &[Vec<String>],
    values: &[String],
    key: &str,
) -> Axis {
    let mut ends = losses(runs, |_| true);
    for kind in kinds {
        let spreads = values.iter().filter_map(|value| {
            spread(&losses(runs, |run| is_of(run, kind_by, kind) && run.keys.get(key) == value))
        });
        ends.extend(spreads.flatten().collect::<Vec<f64>>());
    }
    let low = ends.iter().copied().fold(f64::INFINITY, f64::min);
    let high = ends.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let space = 0.06 * (high - low).max(0.01);
    Axis::new(low - space, high + space, Scale::Linear, 8)
}

/// How many runs of each kind there are at each place.
fn sizes(runs: &ComparedRuns, kind_by: &[String], kinds: &[Vec<String>]) -> Vec<usize> {
    let of =
        |group: &RunGroup, kind: &[String]| group.runs.iter().filter(|run| is_of(run, kind_by, kind)).count();
    runs.groups.iter().flat_map(|group| kinds.iter().map(move |kind| of(group, kind))).collect()
}

fn legend_of(
    runs: &ComparedRuns,
    kind_by: &[String],
    kinds: &[Vec<String>],
    theme: Theme,
) -> Vec<Vec<LegendEntry>> {
    let colors = theme.colors();
    let entry = |sample, text: &str| LegendEntry { sample, text: text.to_owned() };
    let mut named = Vec::new();
    if kinds.len() > 1 {
        let kinds = kinds.iter().enumerate();
        named.extend(
            kinds.map(|(at, kind)| entry(LegendSample::Plain(colors.run(at)), &label(kind_by, kind))),
        );
    }
    let color = if kinds.len() > 1 { colors.quiet } else { colors.run(0) };
    let mut signs = vec![entry(LegendSample::Dot(color), "a run")];
    let sizes = sizes(runs, kind_by, kinds);
    let many = sizes.iter().any(|n| *n > 2);
    let text = match (many, sizes.contains(&2)) {
        (true, true) => "mean with its 95 % interval; of two runs their range",
        (true, false) => "mean with its 95 % interval",
        (false, true) => "mean with the range of the two runs",
        (false, false) => "",
    };
    if !text.is_empty() {
        signs.push(entry(LegendSample::Bar(colors.strong(color)), text));
    }
    match failed(runs).count() {
        0 => {}
        1 => signs.push(entry(LegendSample::Cross, "failed (1 run)")),
        n => signs.push(entry(LegendSample::Cross, &format!("failed ({n} runs)"))),
    }
    vec![named, signs]
}

/// Where values lie on the horizontal axis: numbers by size, with a logarithmic axis where they span more
/// than a decade, and text in equal steps.
struct Places {
    axis: Axis,
    is_number: bool,
}

impl Places {
    fn of(values: &[String], width: f64) -> Result<Places, ReportError> {
        let numbers: Vec<f64> =
            values.iter().filter_map(|value| value.parse().ok()).filter(|x: &f64| x.is_finite()).collect();
        if numbers.len() < values.len() {
            let ticks = values.iter().enumerate().map(|(at, value)| (at as f64, value.clone())).collect();
            let axis = Axis { low: -0.5, high: values.len() as f64 - 0.5, scale: Scale::Linear, ticks };
            let axis = Axis { ticks: thinned(&axis, width)?, ..axis };
            return Ok(Places { axis, is_number: false });
        }
        let (low, high) = (numbers[0], numbers[numbers.len() - 1]);
        let ticks = (width / 105.0) as usize;
        let mut axis = if low > 0.0 && high / low > 10.0 {
            let space = libm::pow(high / low, 0.05);
            Axis::new(low / space, high * space, Scale::Log, ticks)
        } else {
            let space = if high > low { 0.05 * (high - low) } else { 0.1 * low.abs().max(1e-6) };
            Axis::new(low - space, high + space, Scale::Linear, ticks)
        };
        // The swept values themselves where they have room.
        let own: Vec<(f64, String)> = numbers.into_iter().zip(values.iter().cloned()).collect();
        let own = Axis { ticks: own, ..axis.clone() };
        if thinned(&own, width)?.len() == own.ticks.len() {
            axis = own;
        }
        Ok(Places { axis, is_number: true })
    }

    fn of_value(&self, value: &str, values: &[String]) -> f64 {
        match value.parse() {
            Ok(number) if self.is_number => number,
            _ => values.iter().position(|other| other == value).unwrap_or(0) as f64,
        }
    }
}

/// The ticks of an axis without those whose label would touch the one before.
fn thinned(axis: &Axis, width: f64) -> Result<Vec<(f64, String)>, ReportError> {
    let (mut kept, mut free) = (Vec::new(), f64::NEG_INFINITY);
    for (value, label) in &axis.ticks {
        let (at, half) = (axis.position(*value) * width, text_width(label, TEXT_SIZE, false)? / 2.0);
        if at - half >= free {
            kept.push((*value, label.clone()));
            free = at + half + 14.0;
        }
    }
    Ok(kept)
}
