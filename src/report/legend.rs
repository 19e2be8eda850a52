//! The legend: a strip above the panels, where it cannot cover data.

use super::ReportError;
use super::panel::{BAND_OPACITY, Dash, TEXT_SIZE, cross, dashed};
use super::scene::{Align, Color, Scene, text_width};

const ROW: f64 = 36.0;
/// Width of the sample before the text, and the room between two entries.
const SAMPLE: f64 = 46.0;
const GAP: f64 = 36.0;

/// A sample of a line or sign, and what it means.
pub struct LegendEntry {
    pub sample: LegendSample,
    pub text: String,
}

/// The sample before a legend entry.
pub enum LegendSample {
    Plain(Color),
    Smoothed(Color),
    Dots(Color),
    Cross,
    Moment(Dash, Color),
    Level(Dash),
    Band(Color),
    Dot(Color),
    Bar(Color),
}

/// Draws groups of entries, each on rows of its own, between `left` and `right`; returns where the strip
/// ends.
pub fn draw(
    scene: &mut Scene,
    groups: Vec<Vec<LegendEntry>>,
    top: f64,
    (left, right): (f64, f64),
) -> Result<f64, ReportError> {
    let mut y = top;
    for group in groups.into_iter().filter(|group| !group.is_empty()) {
        let mut x = left;
        y += ROW;
        for LegendEntry { sample, text } in group {
            let text = shortened(&text, right - left - SAMPLE - 12.0, TEXT_SIZE, false)?;
            let width = SAMPLE + 12.0 + text_width(&text, TEXT_SIZE, false)?;
            if x + width > right && x > left {
                (x, y) = (left, y + ROW);
            }
            sample.draw(scene, (x, y - 16.0));
            let color = scene.colors.text;
            scene.text(text, (x + SAMPLE + 12.0, y - 8.0), TEXT_SIZE, false, Align::Left, color);
            x += width + GAP;
        }
    }
    Ok(y)
}

impl LegendSample {
    /// Draws the sample around `(x + SAMPLE / 2, y)`.
    fn draw(&self, scene: &mut Scene, (x, y): (f64, f64)) {
        let colors = scene.colors;
        let across = |scene: &mut Scene, thickness: f64, color: Color| {
            scene.line(vec![(x, y), (x + SAMPLE, y)], thickness, color);
        };
        match self {
            LegendSample::Plain(color) => across(scene, 6.0, *color),
            LegendSample::Smoothed(color) => {
                let zigzag = (0..=8).map(|index| {
                    (x + f64::from(index) * SAMPLE / 8.0, if index % 2 == 0 { y - 8.0 } else { y + 8.0 })
                });
                scene.line(zigzag.collect(), 1.5, colors.faint(*color));
                across(scene, 3.5, *color);
            }
            LegendSample::Dots(color) => {
                across(scene, 2.5, *color);
                for share in [0.25, 0.75] {
                    scene.circle((x + share * SAMPLE, y), 5.0, *color);
                }
            }
            LegendSample::Cross => cross(scene, (x + SAMPLE / 2.0, y)),
            LegendSample::Moment(dash, color) => {
                dashed(scene, (x + SAMPLE / 2.0, y - 14.0), (x + SAMPLE / 2.0, y + 12.0), *dash, *color);
            }
            LegendSample::Band(color) => {
                let corners = [(x, y - 9.0), (x + SAMPLE, y - 9.0), (x + SAMPLE, y + 9.0), (x, y + 9.0)];
                scene.area(corners.to_vec(), *color, BAND_OPACITY);
                across(scene, 3.5, *color);
            }
            LegendSample::Dot(color) => scene.circle((x + SAMPLE / 2.0, y), 4.0, *color),
            LegendSample::Bar(color) => {
                let middle = x + SAMPLE / 2.0;
                scene.line(vec![(middle, y - 13.0), (middle, y + 13.0)], 2.5, *color);
                for (reach, y, width) in [(9.0, y - 13.0, 2.5), (12.0, y, 5.0), (9.0, y + 13.0, 2.5)] {
                    scene.line(vec![(middle - reach, y), (middle + reach, y)], width, *color);
                }
            }
            LegendSample::Level(dash) => dashed(scene, (x, y), (x + SAMPLE, y), *dash, colors.level),
        }
    }
}

/// A text cut with an ellipsis to a width in pixels.
pub fn shortened(text: &str, room: f64, size: f64, bold: bool) -> Result<String, ReportError> {
    let mut kept: Vec<char> = text.chars().collect();
    let mut shown = text.to_owned();
    while text_width(&shown, size, bold)? > room && !kept.is_empty() {
        kept.pop();
        shown = format!("{}…", kept.iter().collect::<String>());
    }
    Ok(shown)
}
