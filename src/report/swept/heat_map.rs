//! Two swept keys: a cell for each pair of values, with the mean of its runs.

use super::{left_out, losses, values_of};
use crate::report::axis::trimmed;
use crate::report::compare::ComparedRuns;
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
/// Rectangles of the strip that shows the colours.
const SHADES: usize = 64;

/// A cell: its runs' losses, and how many runs failed.
struct Cell {
    losses: Vec<f64>,
    failed: usize,
}

/// The colours of losses: up to which a loss is told from a higher one.
struct Shades {
    low: f64,
    high: f64,
    /// Whether a cell is above `high`.
    is_cut: bool,
}

impl Shades {
    fn of(means: &[f64]) -> Shades {
        let low = means.iter().copied().fold(f64::INFINITY, f64::min);
        let largest = means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let high = robust_top(means, USUAL, low).unwrap_or(largest);
        Shades { low, high, is_cut: largest > high }
    }

    fn share(&self, loss: f64) -> f64 {
        if self.high > self.low { ((loss - self.low) / (self.high - self.low)).clamp(0.0, 1.0) } else { 0.0 }
    }
}

/// Draws the final validation loss over two keys, the first across and the second up.
pub fn draw(runs: &ComparedRuns, keys: [&String; 2], theme: Theme) -> Result<Scene, ReportError> {
    let colors = theme.colors();
    let [across, up] = keys.map(|key| values_of(runs, key));
    let width = (1000.0 / across.len() as f64).floor().clamp(40.0, 220.0);
    let height = (600.0 / up.len() as f64).floor().clamp(26.0, 90.0);
    let mut labels = 0.0_f64;
    for value in &up {
        labels = labels.max(text_width(value, TEXT_SIZE, false)?);
    }
    let (left, top) = ((MARGIN + labels.min(300.0) + 14.0).ceil(), 150.0);
    let (right, bottom) = (left + width * across.len() as f64, top + height * up.len() as f64);
    let page = ((right + 150.0).max(760.0) as u32, (bottom + 90.0) as u32);
    let mut scene = Scene::new(page.0, page.1, colors);
    let room = f64::from(page.0) - 2.0 * MARGIN;
    let said = [
        (
            format!("{} runs: final validation loss, nats per token", runs.all().count()),
            TITLE_SIZE,
            true,
            46.0,
        ),
        (subtitle(runs, keys), TEXT_SIZE, false, 82.0),
    ];
    for (text, size, bold, y) in said {
        let text = shortened(&text, room, size, bold)?;
        let color = if bold { colors.text } else { colors.quiet };
        scene.text(text, (MARGIN, y), size, bold, Align::Left, color);
    }
    scene.text(keys[1].as_str(), (MARGIN, top - 18.0), TEXT_SIZE, false, Align::Left, colors.quiet);
    let middle = (left + right) / 2.0;
    scene.text(keys[0].as_str(), (middle, bottom + 66.0), TEXT_SIZE, false, Align::Center, colors.quiet);

    let cell = |x: &str, y: &str| Cell {
        losses: losses(runs, |run| run.keys.get(keys[0]) == x && run.keys.get(keys[1]) == y),
        failed: runs
            .left_out
            .iter()
            .filter(|run| run.failed)
            .filter_map(|run| run.keys.as_ref())
            .filter(|of| of.get(keys[0]) == x && of.get(keys[1]) == y)
            .count(),
    };
    let cells: Vec<Vec<Cell>> = up.iter().map(|y| across.iter().map(|x| cell(x, y)).collect()).collect();
    let means: Vec<f64> = cells.iter().flatten().filter_map(|cell| mean(&cell.losses)).collect();
    let shades = Shades::of(&means);
    let corner = |x: usize, y: usize| (left + width * x as f64, bottom - height * (y + 1) as f64);
    for (y, row) in cells.iter().enumerate() {
        for (x, cell) in row.iter().enumerate() {
            draw_cell(&mut scene, cell, &shades, corner(x, y), (width, height))?;
        }
    }
    for (y, row) in cells.iter().enumerate() {
        for (x, _) in row.iter().enumerate().filter(|(_, cell)| mean(&cell.losses) == Some(shades.low)) {
            outline(&mut scene, corner(x, y), (width, height));
        }
    }
    axis_labels(&mut scene, &across, &up, (left, bottom), (width, height))?;
    strip(&mut scene, &shades, (right + 24.0, top, bottom.max(top + 120.0)));
    Ok(scene)
}

fn subtitle(runs: &ComparedRuns, [across, up]: [&String; 2]) -> String {
    let most = runs.groups.iter().map(|group| group.runs.len()).max().unwrap_or(0);
    let failed: usize = runs.left_out.iter().filter(|run| run.failed).count();
    let mut parts = vec![format!("{across} across, {up} up")];
    if most > 1 {
        parts.push(format!("mean of up to {most} runs"));
    }
    if failed > 0 {
        parts.push(format!("× failed ({failed})"));
    }
    parts.extend(Some(left_out(runs)).filter(|text| !text.is_empty()));
    parts.push("lowest framed".to_owned());
    parts.join("  ·  ")
}

fn rectangle((x, y): (f64, f64), (width, height): (f64, f64)) -> Vec<(f64, f64)> {
    vec![(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
}

fn draw_cell(
    scene: &mut Scene,
    cell: &Cell,
    shades: &Shades,
    corner: (f64, f64),
    (width, height): (f64, f64),
) -> Result<(), ReportError> {
    let colors = scene.colors;
    let (middle, center) = (corner.0 + width / 2.0, corner.1 + height / 2.0);
    let Some(mean) = mean(&cell.losses) else {
        scene.polygon(rectangle(corner, (width - 1.0, height - 1.0)), colors.grid);
        if cell.failed > 0 {
            cross(scene, (middle, center));
        }
        return Ok(());
    };
    let color = colors.shade(shades.share(mean));
    scene.polygon(rectangle(corner, (width - 1.0, height - 1.0)), color);
    let text = trimmed(mean, 4);
    let size =
        (TEXT_SIZE * (width - 8.0) / text_width(&text, TEXT_SIZE, false)?).min(TEXT_SIZE).min(height - 6.0);
    let ink = colors.ink_on(color);
    if size >= SMALLEST {
        let lines = if cell.losses.len() > 1 && height >= 54.0 { 2 } else { 1 };
        let base = center + 0.36 * size - if lines == 2 { 11.0 } else { 0.0 };
        scene.text(text, (middle, base), size, false, Align::Center, ink);
        if lines == 2 {
            let count = format!("n = {}", cell.losses.len());
            scene.text(count, (middle, base + 24.0), size.min(16.0), false, Align::Center, ink);
        }
    }
    if cell.failed > 0 && width >= 60.0 {
        cross(scene, (corner.0 + width - 14.0, corner.1 + 13.0));
    }
    Ok(())
}

fn outline(scene: &mut Scene, corner: (f64, f64), (width, height): (f64, f64)) {
    let mut points = rectangle((corner.0 + 1.0, corner.1 + 1.0), (width - 3.0, height - 3.0));
    points.push(points[0]);
    let color = scene.colors.skip;
    scene.line(points, 4.0, color);
}

/// The values below and at the left, smaller where they would touch, and every second one or fewer where
/// that is not enough.
fn axis_labels(
    scene: &mut Scene,
    across: &[String],
    up: &[String],
    (left, bottom): (f64, f64),
    (width, height): (f64, f64),
) -> Result<(), ReportError> {
    let color = scene.colors.text;
    let mut widest = 1.0_f64;
    for value in across {
        widest = widest.max(text_width(value, TEXT_SIZE, false)?);
    }
    let size = (TEXT_SIZE * (width - 6.0) / widest).clamp(14.0, TEXT_SIZE);
    let every = (widest * size / TEXT_SIZE / (width - 6.0)).ceil().max(1.0) as usize;
    for (x, value) in across.iter().enumerate().filter(|(x, _)| x % every == 0) {
        let at = (left + width * (x as f64 + 0.5), bottom + 28.0);
        scene.text(value, at, size, false, Align::Center, color);
    }
    for (y, value) in up.iter().enumerate() {
        let value = shortened(value, 300.0, TEXT_SIZE, false)?;
        let at = (left - 10.0, bottom - height * (y as f64 + 0.5) + 7.0);
        scene.text(value, at, TEXT_SIZE.min(height - 4.0), false, Align::Right, color);
    }
    Ok(())
}

/// The colours and the losses at their ends.
fn strip(scene: &mut Scene, shades: &Shades, (left, top, bottom): (f64, f64, f64)) {
    let colors = scene.colors;
    let height = (bottom - top) / SHADES as f64;
    for shade in 0..SHADES {
        let color = colors.shade(1.0 - shade as f64 / (SHADES - 1) as f64);
        // Each reaches below the next, so that no gap is left between them.
        let reach = if shade + 1 == SHADES { height } else { height + 1.0 };
        scene.polygon(rectangle((left, top + height * shade as f64), (22.0, reach)), color);
    }
    let above = if shades.is_cut { "≥ " } else { "" };
    for (y, text) in
        [(top + 16.0, format!("{above}{}", trimmed(shades.high, 4))), (bottom, trimmed(shades.low, 4))]
    {
        scene.text(text, (left + 30.0, y), 18.0, false, Align::Left, colors.text);
    }
}
