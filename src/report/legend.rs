//! The legend: a strip above the panels, where it cannot cover data.

use std::collections::BTreeSet;

use super::ReportError;
use super::panel::{BAND_OPACITY, Dash, TEXT_SIZE, cross, dashed};
use super::scene::{Align, Color, Scene, text_width};
use crate::units::shortened_middle;

const ROW: f64 = 36.0;
/// Width of the sample before the text, and the room between two entries.
pub const SAMPLE: f64 = 46.0;
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

/// A text with an ellipsis in its middle where it does not fit a width in pixels: names often differ at the
/// end.
pub fn shortened(text: &str, room: f64, size: f64, bold: bool) -> Result<String, ReportError> {
    let mut shown = text.to_owned();
    let mut length = text.chars().count();
    while text_width(&shown, size, bold)? > room && length > 0 {
        length -= 1;
        shown = shortened_middle(text, length);
    }
    Ok(shown)
}

/// Names that fit, each into its own room. Where names that differ would look alike, the beginning that all
/// of them share is left out of each.
pub fn shortened_names(names: &[(&str, f64)]) -> Result<Vec<String>, ReportError> {
    let fit = |skipped: usize| -> Result<Vec<String>, ReportError> {
        let fitted = names.iter().map(|(name, room)| {
            let rest: String = name.chars().skip(skipped).collect();
            shortened(&if skipped > 0 { format!("…{rest}") } else { rest }, *room, TEXT_SIZE, false)
        });
        fitted.collect()
    };
    let whole = fit(0)?;
    let distinct: BTreeSet<&str> = names.iter().map(|(name, _)| *name).collect();
    if whole.iter().collect::<BTreeSet<_>>().len() == distinct.len() {
        return Ok(whole);
    }
    let shared = |a: &str, b: &str| a.chars().zip(b.chars()).take_while(|(a, b)| a == b).count();
    let first = names.first().map_or("", |(name, _)| *name);
    fit(names.iter().map(|(name, _)| shared(first, name)).min().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_cut_keeps_its_end() {
        let long = format!("{}_seed1/001", "a_long_name_".repeat(10));
        let shown = shortened(&long, 300.0, TEXT_SIZE, false).unwrap();
        assert!(
            shown.starts_with("a_long") && shown.contains('…') && shown.ends_with("_seed1/001"),
            "{shown}"
        );
        assert!(text_width(&shown, TEXT_SIZE, false).unwrap() <= 300.0);
        assert_eq!(shortened("short", 300.0, TEXT_SIZE, false).unwrap(), "short");
    }

    #[test]
    fn names_that_differ_look_different() {
        let names = ["1", "2"].map(|seed| format!("{0}_seed{seed}_{0}", "the_same_".repeat(20)));
        let shown = shortened_names(&[(&names[0], 300.0), (&names[1], 300.0)]).unwrap();
        assert!(shown[0].starts_with("…1_the") && shown[1].starts_with("…2_the"), "{shown:?}");
        assert_eq!(shortened_names(&[("a", 300.0), ("a", 300.0)]).unwrap(), ["a", "a"]);
    }
}
