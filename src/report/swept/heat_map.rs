//! Two swept keys: a cell for each pair of values, with the mean of its runs.

use super::{counted, left_out, losses, quantity, values_of};
use crate::report::compare::ComparedRuns;
use crate::report::groups::RunKeys;
use crate::report::legend::shortened;
use crate::report::panel::{TEXT_SIZE, cross};
use crate::report::scene::{Align, Scene, text_width};
use crate::report::series::robust_top;
use crate::report::statistics::mean;
use crate::report::{ReportError, Theme};

const MARGIN: f64 = 30.0;
const TITLE_SIZE: f64 = 26.0;
/// The smallest text that is drawn.
const SMALLEST: f64 = 11.0;
/// Share of the cells that decides which colour is the last one.
const USUAL: f64 = 0.9;
/// Cells below which the worst has a colour of its own.
const FEW: usize = 10;
/// From the cells to the strip, and from its left side to its text; the size of that text.
const STRIP: (f64, f64, f64) = (24.0, 30.0, 18.0);
/// Rectangles of the strip that shows the colours.
const SHADES: usize = 64;

/// A cell: its runs' losses, and how many runs failed.
struct HeatMapCell {
    losses: Vec<f64>,
    failed: usize,
}

/// The colours of values, from the best to that from which on a worse one is not told from another.
struct Shades {
    best: f64,
    last: f64,
    /// Whether a cell is worse than `last`.
    is_cut: bool,
    /// Whether the highest value is the best.
    best_is_high: bool,
}

impl Shades {
    fn of(means: &[f64], best_is_high: bool) -> Shades {
        // As losses, of which the lowest is the best.
        let sign = if best_is_high { -1.0 } else { 1.0 };
        let losses: Vec<f64> = means.iter().map(|mean| sign * mean).collect();
        let low = losses.iter().copied().fold(f64::INFINITY, f64::min);
        let largest = losses.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        // A few cells have no usual ones among them, and of equal ones no other may have their colour.
        let robust = robust_top(&losses, USUAL, low).filter(|top| losses.len() >= FEW && *top > low);
        let high = robust.unwrap_or(largest);
        Shades { best: sign * low, last: sign * high, is_cut: largest > high, best_is_high }
    }

    fn share(&self, mean: f64) -> f64 {
        if self.last == self.best {
            0.0
        } else {
            ((mean - self.best) / (self.last - self.best)).clamp(0.0, 1.0)
        }
    }

    /// What stands at the ends of the strip: at the last colour, and at the first.
    fn labels(&self) -> [String; 2] {
        let beyond = if self.best_is_high { "≤ " } else { "≥ " };
        [format!("{}{}", if self.is_cut { beyond } else { "" }, shown(self.last)), shown(self.best)]
    }
}

/// Draws the number in which runs are compared over two keys, the first across and the second up.
pub fn draw(runs: &ComparedRuns, keys: [&String; 2], theme: Theme) -> Result<Scene, ReportError> {
    HeatMap::new(runs, keys)?.draw(theme)
}

/// The picture's content and the pixels of its parts.
struct HeatMap<'a> {
    runs: &'a ComparedRuns,
    keys: [&'a String; 2],
    across: Vec<String>,
    up: Vec<String>,
    /// Rows from below.
    cells: Vec<Vec<HeatMapCell>>,
    shades: Shades,
    /// The size of the values in cells; none where they could not be read.
    text: Option<f64>,
    left: f64,
    width: f64,
    height: f64,
}

/// Pixels above the cells.
const TOP: f64 = 150.0;

impl<'a> HeatMap<'a> {
    fn new(runs: &'a ComparedRuns, keys: [&'a String; 2]) -> Result<HeatMap<'a>, ReportError> {
        let [across, up] = keys.map(|key| values_of(runs, key));
        let failed = || runs.left_out.iter().filter(|run| run.failed).filter_map(|run| run.keys.as_ref());
        let cell = |x: &str, y: &str| {
            let is_here = |of: &RunKeys| of.get(keys[0]) == x && of.get(keys[1]) == y;
            HeatMapCell {
                losses: losses(runs, |run| is_here(&run.keys)),
                failed: failed().filter(|of| is_here(of)).count(),
            }
        };
        let cells: Vec<Vec<HeatMapCell>> =
            up.iter().map(|y| across.iter().map(|x| cell(x, y)).collect()).collect();
        let means: Vec<f64> = cells.iter().flatten().filter_map(|cell| mean(&cell.losses)).collect();
        let width = (1000.0 / across.len() as f64).floor().clamp(14.0, 220.0);
        let height = (600.0 / up.len() as f64).floor().clamp(26.0, 90.0);
        let mut labels = 0.0_f64;
        for value in &up {
            labels = labels.max(text_width(value, TEXT_SIZE, false)?);
        }
        Ok(HeatMap {
            runs,
            keys,
            text: text_size(&means, (width, height))?,
            shades: Shades::of(&means, runs.measure.is_better_high()),
            left: (MARGIN + labels.min(300.0) + 14.0).ceil(),
            across,
            up,
            cells,
            width,
            height,
        })
    }

    fn right(&self) -> f64 {
        self.left + self.width * self.across.len() as f64
    }

    fn bottom(&self) -> f64 {
        TOP + self.height * self.up.len() as f64
    }

    fn draw(&self, theme: Theme) -> Result<Scene, ReportError> {
        let mut labels = 0.0_f64;
        for label in self.shades.labels() {
            labels = labels.max(text_width(&label, STRIP.2, false)?);
        }
        let width = self.right() + STRIP.0 + STRIP.1 + labels + MARGIN;
        let page = (width.max(760.0).ceil() as u32, (self.bottom() + 90.0) as u32);
        let mut scene = Scene::new(page.0, page.1, theme.colors());
        self.head(&mut scene)?;
        let corner = |x: usize, y: usize| {
            (self.left + self.width * x as f64, self.bottom() - self.height * (y + 1) as f64)
        };
        let mut best = Vec::new();
        for (y, row) in self.cells.iter().enumerate() {
            for (x, cell) in row.iter().enumerate() {
                self.cell(&mut scene, cell, corner(x, y));
                if mean(&cell.losses) == Some(self.shades.best) {
                    best.push(corner(x, y));
                }
            }
        }
        best.into_iter().for_each(|corner| outline(&mut scene, corner, (self.width, self.height)));
        self.axis_labels(&mut scene)?;
        strip(&mut scene, &self.shades, (self.right() + STRIP.0, TOP, self.bottom()));
        Ok(scene)
    }

    /// Title, facts and the names of the keys.
    fn head(&self, scene: &mut Scene) -> Result<(), ReportError> {
        let (ink, quiet) = (scene.colors.text, scene.colors.quiet);
        let room = f64::from(scene.width) - 2.0 * MARGIN;
        let title = format!("{}: {}", counted(self.runs), quantity(self.runs));
        let title = shortened(&title, room, TITLE_SIZE, true)?;
        scene.text(title, (MARGIN, 46.0), TITLE_SIZE, true, Align::Left, ink);
        let facts = shortened(&self.facts(), room, TEXT_SIZE, false)?;
        scene.text(facts, (MARGIN, 82.0), TEXT_SIZE, false, Align::Left, quiet);
        let [across, up] = self.keys.map(String::as_str);
        scene.text(up, (MARGIN, TOP - 18.0), TEXT_SIZE, false, Align::Left, quiet);
        // Under its values, and on the page where these are narrow.
        let half = text_width(across, TEXT_SIZE, false)? / 2.0;
        let middle = ((self.left + self.right()) / 2.0).max(MARGIN + half);
        scene.text(across, (middle, self.bottom() + 66.0), TEXT_SIZE, false, Align::Center, quiet);
        Ok(())
    }

    fn facts(&self) -> String {
        let most = self.runs.groups.iter().map(|group| group.runs.len()).max().unwrap_or(0);
        let failed = self.runs.left_out.iter().filter(|run| run.failed).count();
        let best = if self.shades.best_is_high { "highest" } else { "lowest" };
        let mut parts = vec![format!("{best} framed")];
        if most > 1 {
            parts.push(format!("mean of up to {most} runs"));
        }
        if failed > 0 {
            parts.push(format!("× failed ({failed})"));
        }
        parts.extend(Some(left_out(self.runs)).filter(|text| !text.is_empty()));
        if self.text.is_none() {
            parts.push("cells are too narrow for values".to_owned());
        }
        parts.join("  ·  ")
    }

    fn cell(&self, scene: &mut Scene, cell: &HeatMapCell, corner: (f64, f64)) {
        let colors = scene.colors;
        let (middle, center) = (corner.0 + self.width / 2.0, corner.1 + self.height / 2.0);
        let area = rectangle(corner, (self.width - 1.0, self.height - 1.0));
        let Some(mean) = mean(&cell.losses) else {
            scene.polygon(area, colors.grid);
            if cell.failed > 0 {
                cross(scene, (middle, center));
            }
            return;
        };
        let color = colors.shade(self.shades.share(mean));
        scene.polygon(area, color);
        let ink = colors.ink_on(color);
        if let Some(size) = self.text {
            let has_count = cell.losses.len() > 1 && self.height >= 54.0;
            let base = center + 0.36 * size - if has_count { 11.0 } else { 0.0 };
            scene.text(shown(mean), (middle, base), size, false, Align::Center, ink);
            if has_count {
                let count = format!("n = {}", cell.losses.len());
                scene.text(count, (middle, base + 24.0), size.min(16.0), false, Align::Center, ink);
            }
        }
        if cell.failed > 0 {
            cross(scene, (corner.0 + self.width - 14.0, corner.1 + 13.0));
        }
    }

    /// The values below and at the left, smaller where they would touch, and every second one or fewer where
    /// that is not enough.
    fn axis_labels(&self, scene: &mut Scene) -> Result<(), ReportError> {
        let (color, room) = (scene.colors.text, self.width - 6.0);
        let mut widest = 1.0_f64;
        for value in &self.across {
            widest = widest.max(text_width(value, TEXT_SIZE, false)?);
        }
        let size = (TEXT_SIZE * room / widest).clamp(14.0, TEXT_SIZE);
        let every = (widest * size / TEXT_SIZE / room).ceil().max(1.0) as usize;
        for (x, value) in self.across.iter().enumerate().step_by(every) {
            let at = (self.left + self.width * (x as f64 + 0.5), self.bottom() + 28.0);
            scene.text(value, at, size, false, Align::Center, color);
        }
        for (y, value) in self.up.iter().enumerate() {
            let value = shortened(value, 300.0, TEXT_SIZE, false)?;
            let at = (self.left - 10.0, self.bottom() - self.height * (y as f64 + 0.5) + 7.0);
            scene.text(value, at, TEXT_SIZE.min(self.height - 4.0), false, Align::Right, color);
        }
        Ok(())
    }
}

fn rectangle((x, y): (f64, f64), (width, height): (f64, f64)) -> Vec<(f64, f64)> {
    vec![(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
}

/// The size of the values in cells, one for all; none where they would be too small to be read.
fn text_size(means: &[f64], (width, height): (f64, f64)) -> Result<Option<f64>, ReportError> {
    let mut widest = 1.0_f64;
    for mean in means {
        widest = widest.max(text_width(&shown(*mean), TEXT_SIZE, false)?);
    }
    let size = (TEXT_SIZE * (width - 8.0) / widest).min(TEXT_SIZE).min(height - 6.0);
    Ok((size >= SMALLEST).then_some(size))
}

/// Four places of a loss or a share, none of a speed.
fn shown(mean: f64) -> String {
    let places = match mean.abs() {
        ..100.0 => 4,
        100.0..1_000.0 => 2,
        _ => 0,
    };
    format!("{mean:.places$}")
}

fn outline(scene: &mut Scene, corner: (f64, f64), (width, height): (f64, f64)) {
    let mut points = rectangle((corner.0 + 1.0, corner.1 + 1.0), (width - 3.0, height - 3.0));
    points.push(points[0]);
    let color = scene.colors.skip;
    scene.line(points, 4.0, color);
}

/// The colours and the values at their ends.
fn strip(scene: &mut Scene, shades: &Shades, (left, top, bottom): (f64, f64, f64)) {
    let colors = scene.colors;
    let height = (bottom - top) / SHADES as f64;
    for shade in 0..SHADES {
        let color = colors.shade(1.0 - shade as f64 / (SHADES - 1) as f64);
        // Each reaches below the next, so that no gap is left between them.
        let reach = if shade + 1 == SHADES { height } else { height + 1.0 };
        scene.polygon(rectangle((left, top + height * shade as f64), (22.0, reach)), color);
    }
    for (y, text) in [top + 16.0, bottom].into_iter().zip(shades.labels()) {
        scene.text(text, (left + STRIP.1, y), STRIP.2, false, Align::Left, colors.text);
    }
}
