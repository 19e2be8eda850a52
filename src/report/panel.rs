//! One chart: a frame with axes, and what can be drawn inside it.

use super::ReportError;
use super::axis::Axis;
use super::bands::BandPoint;
use super::scene::{Align, Color, Scene, text_width};
use super::series::{Point, thin};
use super::theme::Colors;

/// Em of tick labels and the legend.
pub const TEXT_SIZE: f64 = 22.0;
const TITLE_SIZE: f64 = 24.0;
const NOTE_SIZE: f64 = 19.0;
/// Of bands, so that lines and other bands show through.
pub const BAND_OPACITY: f64 = 0.25;

/// A rectangle for data, in pixels, and its axes. Labels are outside, below and to the left; the title is
/// above.
pub struct Panel {
    pub title: String,
    pub left: f64,
    pub top: f64,
    pub width: f64,
    pub height: f64,
    /// Room at the right of the frame, for the names of levels.
    pub gutter: f64,
    pub x: Axis,
    pub y: Axis,
}

/// How a line is broken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Dash {
    Dashed,
    Dotted,
}

impl Dash {
    /// Pixels drawn and pixels left out.
    fn lengths(self) -> (f64, f64) {
        match self {
            Dash::Dashed => (14.0, 8.0),
            Dash::Dotted => (3.0, 6.0),
        }
    }
}

impl Panel {
    /// Em of the names beside levels.
    pub const LEVEL_TEXT: f64 = 18.0;

    fn right(&self) -> f64 {
        self.left + self.width
    }

    fn bottom(&self) -> f64 {
        self.top + self.height
    }

    /// Pixels of a point; outside the frame where its values are outside the axes.
    pub fn at(&self, (x, y): Point) -> (f64, f64) {
        (self.left + self.x.position(x) * self.width, self.bottom() - self.y.position(y) * self.height)
    }

    /// Grid, frame, tick labels and title. The first of the notes that fits is drawn at the right of the
    /// title; the last is always drawn, inside the frame if necessary.
    pub fn frame(
        &self,
        scene: &mut Scene,
        x_title: Option<&str>,
        notes: &[String],
    ) -> Result<(), ReportError> {
        let Colors { text: ink, quiet, grid, frame, .. } = *scene.colors;
        for (value, label) in &self.y.ticks {
            let (_, y) = self.at((self.x.low, *value));
            scene.line(vec![(self.left, y), (self.right(), y)], 1.0, grid);
            scene.text(label, (self.left - 10.0, y + 8.0), TEXT_SIZE, false, Align::Right, ink);
        }
        for (value, label) in &self.x.ticks {
            let (x, _) = self.at((*value, self.y.low));
            scene.line(vec![(x, self.top), (x, self.bottom())], 1.0, grid);
            if x_title.is_some() {
                scene.text(label, (x, self.bottom() + 30.0), TEXT_SIZE, false, Align::Center, ink);
            }
        }
        let corners = [(self.left, self.top), (self.left, self.bottom()), (self.right(), self.bottom())];
        scene.line(corners.to_vec(), 1.5, frame);
        if let Some(title) = x_title {
            let middle = self.left + self.width / 2.0;
            scene.text(title, (middle, self.bottom() + 62.0), TEXT_SIZE, false, Align::Center, quiet);
        }
        scene.text(&self.title, (self.left, self.top - 14.0), TITLE_SIZE, true, Align::Left, ink);
        let end = self.right() + self.gutter;
        let room = end - self.left - text_width(&self.title, TITLE_SIZE, true)? - 20.0;
        for (index, note) in notes.iter().enumerate().filter(|(_, note)| !note.is_empty()) {
            let fits = text_width(note, NOTE_SIZE, false)? <= room;
            if fits || index + 1 == notes.len() {
                let anchor =
                    if fits { (end, self.top - 14.0) } else { (self.right() - 6.0, self.top + 24.0) };
                scene.text(note, anchor, NOTE_SIZE, false, Align::Right, quiet);
                break;
            }
        }
        Ok(())
    }

    /// A line through points, cut at the frame; of a single point a dot.
    pub fn line(&self, scene: &mut Scene, points: &[Point], width: f64, color: Color) {
        // Thinned as pixels, because the columns of a logarithmic axis are not those of its values.
        let pixels =
            thin(&points.iter().map(|point| self.at(*point)).collect::<Vec<_>>(), self.width as usize);
        if let [(x, y)] = pixels[..]
            && (self.top..=self.bottom()).contains(&y)
        {
            scene.circle((x, y), width, color);
        }
        let mut piece: Vec<(f64, f64)> = Vec::new();
        for pair in pixels.windows(2) {
            match clip(pair[0], pair[1], self.top, self.bottom()) {
                Some((from, to)) => {
                    if piece.last() != Some(&from) {
                        scene.line(std::mem::take(&mut piece), width, color);
                        piece.push(from);
                    }
                    piece.push(to);
                }
                None => scene.line(std::mem::take(&mut piece), width, color),
            }
        }
        scene.line(piece, width, color);
    }

    /// A band behind lines, cut at the frame: in each column of pixels from its lowest to its highest edge.
    pub fn band(&self, scene: &mut Scene, points: &[BandPoint], color: Color) {
        let pixels: Vec<[f64; 3]> = points
            .iter()
            .map(|(x, low, high)| {
                let ((x, bottom), (_, top)) = (self.at((*x, *low)), self.at((*x, *high)));
                [x, bottom, top]
            })
            .collect();
        let columns = pixels.chunk_by(|a, b| libm::floor(a[0]) == libm::floor(b[0])).map(|column| {
            let edge = |at: usize, pick: fn(f64, f64) -> f64| {
                column.iter().map(|pixel| pixel[at]).reduce(pick).unwrap_or(self.top)
            };
            let inside = |y: f64| y.clamp(self.top, self.bottom());
            (column[0][0], inside(edge(1, f64::max)), inside(edge(2, f64::min)))
        });
        let columns: Vec<(f64, f64, f64)> = columns.collect();
        if columns.len() > 1 {
            let lower = columns.iter().map(|(x, bottom, _)| (*x, *bottom));
            let upper = columns.iter().rev().map(|(x, _, top)| (*x, *top));
            scene.area(lower.chain(upper).collect(), color, BAND_OPACITY);
        }
    }

    /// Discs with a rim at points inside the frame, at most one every 24 pixels.
    pub fn dots(&self, scene: &mut Scene, points: &[Point], radius: f64, color: Color) {
        let rim = scene.colors.background;
        let mut last = f64::NEG_INFINITY;
        for (index, point) in points.iter().enumerate() {
            let (x, y) = self.at(*point);
            let apart = x - last >= 24.0 || index + 1 == points.len();
            if apart && (self.top..=self.bottom()).contains(&y) {
                scene.circle((x, y), radius + 1.5, rim);
                scene.circle((x, y), radius, color);
                last = x;
            }
        }
    }

    /// A level across the frame.
    pub fn level(&self, scene: &mut Scene, value: f64, dash: Dash, color: Color) {
        let (_, y) = self.at((self.x.low, value));
        if (self.top..=self.bottom()).contains(&y) {
            dashed(scene, (self.left, y), (self.right(), y), dash, color);
        }
    }

    /// Names of levels at the right of the frame, moved apart where they would cover each other.
    pub fn level_names(&self, scene: &mut Scene, levels: &[(f64, &str)]) {
        let mut names: Vec<(f64, &str)> =
            levels.iter().map(|(value, name)| (self.at((self.x.low, *value)).1, *name)).collect();
        names.sort_by(|a, b| a.0.total_cmp(&b.0));
        let apart = Panel::LEVEL_TEXT * 1.15;
        for at in 1..names.len() {
            names[at].0 = names[at].0.max(names[at - 1].0 + apart);
        }
        // Names pushed over the lower edge are moved up again.
        let mut lowest = self.bottom();
        for name in names.iter_mut().rev() {
            name.0 = name.0.min(lowest);
            lowest = name.0 - apart;
        }
        let color = scene.colors.level;
        for (y, name) in names {
            scene.text(name, (self.right() + 8.0, y + 6.0), Panel::LEVEL_TEXT, false, Align::Left, color);
        }
    }

    /// A broken vertical line.
    pub fn moment(&self, scene: &mut Scene, x: f64, dash: Dash, color: Color) {
        let (x, _) = self.at((x, self.y.low));
        dashed(scene, (x, self.top), (x, self.bottom()), dash, color);
    }

    /// A cross where an update was skipped. A value off the scale, and one that is no number, goes to
    /// the edge with an arrow over it.
    pub fn skip(&self, scene: &mut Scene, (x, y): Point) {
        let value = if y.is_finite() { y } else { f64::INFINITY };
        let off = value > self.y.high;
        let (x, y) = self.at((x, if off { self.y.high } else { value.max(self.y.low) }));
        let y = if off { y + 18.0 } else { y };
        cross(scene, (x, y));
        if off {
            let skip = scene.colors.skip;
            scene.polygon(vec![(x - 6.0, y - 10.0), (x + 6.0, y - 10.0), (x, y - 18.0)], skip);
        }
    }
}

/// A cross with a rim.
pub fn cross(scene: &mut Scene, (x, y): (f64, f64)) {
    let Colors { background, skip, .. } = *scene.colors;
    for (reach, width, color) in [(8.0, 6.5, background), (6.5, 3.5, skip)] {
        scene.line(vec![(x - reach, y - reach), (x + reach, y + reach)], width, color);
        scene.line(vec![(x - reach, y + reach), (x + reach, y - reach)], width, color);
    }
}

/// A broken line between two points, horizontal or vertical.
pub fn dashed(scene: &mut Scene, from: (f64, f64), to: (f64, f64), dash: Dash, color: Color) {
    let length = (to.0 - from.0).abs() + (to.1 - from.1).abs();
    let direction = ((to.0 - from.0) / length, (to.1 - from.1) / length);
    let (drawn, left_out) = dash.lengths();
    let mut start = 0.0;
    while start < length {
        let end = (start + drawn).min(length);
        let at = |distance: f64| (from.0 + distance * direction.0, from.1 + distance * direction.1);
        scene.line(vec![at(start), at(end)], 2.5, color);
        start += drawn + left_out;
    }
}

/// The part of a segment between two heights; `None` where there is none.
fn clip(from: (f64, f64), to: (f64, f64), top: f64, bottom: f64) -> Option<((f64, f64), (f64, f64))> {
    if from.1.max(to.1) < top || from.1.min(to.1) > bottom {
        return None;
    }
    let inside = |end: (f64, f64), other: (f64, f64)| {
        let y = end.1.clamp(top, bottom);
        if y == end.1 { end } else { (end.0 + (y - end.1) / (other.1 - end.1) * (other.0 - end.0), y) }
    };
    Some((inside(from, to), inside(to, from)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_cut_at_the_frame() {
        assert_eq!(clip((0.0, -10.0), (10.0, 10.0), 0.0, 5.0), Some(((5.0, 0.0), (7.5, 5.0))));
        assert_eq!(clip((0.0, 1.0), (10.0, 2.0), 0.0, 5.0), Some(((0.0, 1.0), (10.0, 2.0))));
        assert_eq!(clip((0.0, -3.0), (10.0, -1.0), 0.0, 5.0), None);
    }
}
