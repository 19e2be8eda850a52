//! A picture as a list of shapes, and its two printers: SVG and PNG.
//!
//! Coordinates are pixels of the finished picture, from the upper left corner. plotters' backends take whole
//! pixels and do not smooth wide lines, so both printers draw enlarged: the SVG in quarter pixels under a
//! `viewBox`, the PNG three times as large and then averaged down, which smooths every edge. Text is real
//! text in the SVG; the PNG, and every measurement, uses the embedded font, so the bytes do not depend on the
//! machine's fonts.

use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::OnceLock;

use plotters::backend::{BitMapBackend, DrawingBackend, SVGBackend};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{
    Color as _, FontFamily, FontStyle, FontTransform, RGBColor, ShapeStyle, TextStyle, register_font,
};

use super::ReportError;
use super::theme::Colors;

/// Red, green, blue.
pub type Color = (u8, u8, u8);

/// Side of the text at its anchor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    Left,
    Center,
    Right,
}

#[derive(Clone, Debug)]
enum Shape {
    Line { points: Vec<(f64, f64)>, width: f64, color: Color },
    Polygon { points: Vec<(f64, f64)>, color: Color, opacity: f64 },
    Circle { center: (f64, f64), radius: f64, color: Color },
    Text { text: String, anchor: (f64, f64), size: f64, bold: bool, align: Align, color: Color },
}

/// A picture of a size in pixels, on the background of its colours.
#[derive(Clone, Debug)]
pub struct Scene {
    pub width: u32,
    pub height: u32,
    pub colors: &'static Colors,
    shapes: Vec<Shape>,
}

/// Pixels of the drawing a pixel of the finished picture, each way.
const SVG_SCALE: u32 = 4;
const PNG_SCALE: u32 = 3;

/// The size that plotters calls a font's, over the em it draws: fixed in its SVG backend, and the
/// embedded font's line height in the bitmap.
const SVG_SIZE_PER_EM: f64 = 1.24;
const PNG_SIZE_PER_EM: f64 = 1.164;

impl Scene {
    pub fn new(width: u32, height: u32, colors: &'static Colors) -> Scene {
        Scene { width, height, colors, shapes: Vec::new() }
    }

    /// A line through points.
    pub fn line(&mut self, points: Vec<(f64, f64)>, width: f64, color: Color) {
        if points.len() > 1 {
            self.shapes.push(Shape::Line { points, width, color });
        }
    }

    /// A filled polygon, convex.
    pub fn polygon(&mut self, points: Vec<(f64, f64)>, color: Color) {
        self.shapes.push(Shape::Polygon { points, color, opacity: 1.0 });
    }

    /// A filled area through which what was drawn before shows; every vertical cuts its edge twice at most.
    pub fn area(&mut self, points: Vec<(f64, f64)>, color: Color, opacity: f64) {
        self.shapes.push(Shape::Polygon { points, color, opacity });
    }

    /// A disc.
    pub fn circle(&mut self, center: (f64, f64), radius: f64, color: Color) {
        self.shapes.push(Shape::Circle { center, radius, color });
    }

    /// One line of text; `anchor` is on its baseline, `size` is the em.
    pub fn text(
        &mut self,
        text: impl Into<String>,
        anchor: (f64, f64),
        size: f64,
        bold: bool,
        align: Align,
        color: Color,
    ) {
        self.shapes.push(Shape::Text { text: text.into(), anchor, size, bold, align, color });
    }

    /// The picture as SVG.
    pub fn to_svg(&self) -> Result<String, ReportError> {
        let mut svg = String::new();
        let size = (self.width * SVG_SCALE, self.height * SVG_SCALE);
        self.draw(
            &mut SVGBackend::with_string(&mut svg, size),
            f64::from(SVG_SCALE),
            SVG_SIZE_PER_EM,
            false,
        )?;
        // The backend uses one size for the page and its grid.
        let grid = format!("width=\"{}\" height=\"{}\" viewBox", size.0, size.1);
        Ok(svg.replacen(&grid, &format!("width=\"{}\" height=\"{}\" viewBox", self.width, self.height), 1))
    }

    /// The picture as a PNG file.
    pub fn to_png(&self) -> Result<Vec<u8>, ReportError> {
        let large = (self.width * PNG_SCALE, self.height * PNG_SCALE);
        let mut pixels = vec![255; 3 * large.0 as usize * large.1 as usize];
        self.draw(
            &mut BitMapBackend::with_buffer(&mut pixels, large),
            f64::from(PNG_SCALE),
            PNG_SIZE_PER_EM,
            true,
        )?;
        let small = average_down(&pixels, large.0 as usize, PNG_SCALE as usize);
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, self.width, self.height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.set_compression(png::Compression::Fast);
        encoder.set_filter(png::FilterType::Sub);
        encoder.set_adaptive_filter(png::AdaptiveFilterType::Adaptive);
        let mut writer = encoder.write_header().map_err(ReportError::draw)?;
        writer.write_image_data(&small).map_err(ReportError::draw)?;
        writer.finish().map_err(ReportError::draw)?;
        Ok(file)
    }

    /// Draws every shape, enlarged. `by_segments` draws a wide line segment by segment with round
    /// joints: plotters' own outline of a wide path breaks where a noisy line doubles back.
    fn draw<B: DrawingBackend>(
        &self,
        backend: &mut B,
        scale: f64,
        size_per_em: f64,
        by_segments: bool,
    ) -> Result<(), ReportError>
    where
        B::ErrorType: 'static,
    {
        register_fonts()?;
        let at = |(x, y): (f64, f64)| (libm::round(x * scale) as i32, libm::round(y * scale) as i32);
        let far = at((f64::from(self.width), f64::from(self.height)));
        backend
            .draw_rect((0, 0), far, &rgb(self.colors.background).filled(), true)
            .map_err(ReportError::draw)?;
        for shape in &self.shapes {
            match shape {
                Shape::Line { points, width, color } => {
                    let stroke = libm::round(width * scale).max(1.0) as u32;
                    let style =
                        ShapeStyle { color: rgb(*color).to_rgba(), filled: true, stroke_width: stroke };
                    let mut points: Vec<_> = points.iter().copied().map(at).collect();
                    points.dedup();
                    if by_segments {
                        for pair in points.windows(2) {
                            backend.draw_line(pair[0], pair[1], &style).map_err(ReportError::draw)?;
                        }
                        let joints = points.get(1..points.len().saturating_sub(1)).unwrap_or_default();
                        for joint in joints.iter().filter(|_| stroke > 2) {
                            backend
                                .draw_circle(*joint, stroke / 2, &style, true)
                                .map_err(ReportError::draw)?;
                        }
                    } else if points.len() > 1 {
                        backend.draw_path(points, &style).map_err(ReportError::draw)?;
                    }
                }
                Shape::Polygon { points, color, opacity } => {
                    backend
                        .fill_polygon(points.iter().copied().map(at), &rgb(*color).mix(*opacity))
                        .map_err(ReportError::draw)?;
                }
                Shape::Circle { center, radius, color } => {
                    let radius = libm::round(radius * scale) as u32;
                    backend
                        .draw_circle(at(*center), radius, &rgb(*color).filled(), true)
                        .map_err(ReportError::draw)?;
                }
                Shape::Text { text, anchor, size, bold, align, color } => {
                    let horizontal = match align {
                        Align::Left => HPos::Left,
                        Align::Center => HPos::Center,
                        Align::Right => HPos::Right,
                    };
                    let color = rgb(*color);
                    let style = font(size * scale * size_per_em, *bold)
                        .color(&color)
                        .pos(Pos::new(horizontal, VPos::Top));
                    // From the top of the text as each backend sees it down to the baseline.
                    let ascent = if by_segments { size * size_per_em / 2.0 } else { size * 0.76 };
                    let top = at((anchor.0, anchor.1 - ascent));
                    // An SVG is shown with a font that has more.
                    let text = if by_segments { drawable(text, *bold) } else { Cow::from(text) };
                    backend.draw_text(&text, &style, top).map_err(ReportError::draw)?;
                }
            }
        }
        backend.present().map_err(ReportError::draw)
    }
}

/// How wide a text is, in pixels; `size` is the em.
pub fn text_width(text: &str, size: f64, bold: bool) -> Result<f64, ReportError> {
    register_fonts()?;
    // Measured large, because plotters gives whole pixels.
    let ((left, _), (right, _)) = font(100.0 * PNG_SIZE_PER_EM, bold)
        .font
        .layout_box(&drawable(text, bold))
        .map_err(|error| ReportError::Draw { message: error.to_string() })?;
    Ok(f64::from(right - left) * size / 100.0)
}

/// The text with `?` for every character that the embedded font does not have.
fn drawable(text: &str, bold: bool) -> Cow<'_, str> {
    if text.chars().all(|c| has_glyph(c, bold)) {
        return Cow::from(text);
    }
    text.chars().map(|c| if has_glyph(c, bold) { c } else { '?' }).collect()
}

/// Whether a character leaves any mark where it should: the font draws nothing for one that it does not have.
fn has_glyph(c: char, bold: bool) -> bool {
    if c.is_ascii() || c.is_whitespace() {
        return true;
    }
    let mut marks = false;
    let mark = |_, _, _| -> Result<(), Infallible> {
        marks = true;
        Ok(())
    };
    let drawn = font(20.0, bold).font.draw(&c.to_string(), (0, 0), mark);
    drawn.is_err() || marks
}

fn rgb((red, green, blue): Color) -> RGBColor {
    RGBColor(red, green, blue)
}

fn font(size: f64, bold: bool) -> TextStyle<'static> {
    let style = if bold { FontStyle::Bold } else { FontStyle::Normal };
    plotters::style::FontDesc::new(FontFamily::SansSerif, size, style).transform(FontTransform::None).into()
}

/// Registers the embedded font with plotters, once in a process.
fn register_fonts() -> Result<(), ReportError> {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    let registered = REGISTERED.get_or_init(|| {
        let normal = register_font("sans-serif", FontStyle::Normal, include_bytes!("fonts/DejaVuSans.ttf"));
        let bold = register_font("sans-serif", FontStyle::Bold, include_bytes!("fonts/DejaVuSans-Bold.ttf"));
        normal.is_ok() && bold.is_ok()
    });
    if *registered {
        Ok(())
    } else {
        Err(ReportError::Draw { message: "the embedded font is damaged".to_owned() })
    }
}

/// Averages squares of `factor` × `factor` pixels; `width` is the large picture's. Three bytes a pixel.
fn average_down(pixels: &[u8], width: usize, factor: usize) -> Vec<u8> {
    let row_bytes = 3 * width;
    let mut small = Vec::with_capacity(pixels.len() / (factor * factor));
    for rows in pixels.chunks_exact(row_bytes * factor) {
        for column in 0..width / factor {
            for channel in 0..3 {
                let sum: usize = (0..factor * factor)
                    .map(|index| {
                        rows[index / factor * row_bytes + 3 * (column * factor + index % factor) + channel]
                            as usize
                    })
                    .sum();
                small.push(((sum + factor * factor / 2) / (factor * factor)) as u8);
            }
        }
    }
    small
}

#[cfg(test)]
mod tests {
    use super::super::theme::Theme;
    use super::*;

    #[test]
    fn averaging_smooths_an_edge() {
        let white_and_black = [[255u8; 9], [0; 9]].concat();
        let rows: Vec<u8> = white_and_black.repeat(3);
        assert_eq!(average_down(&rows, 6, 3), [255, 255, 255, 0, 0, 0]);
        let one_black_column: Vec<u8> = [[255u8; 6].as_slice(), &[0; 3]].concat().repeat(3);
        assert_eq!(average_down(&one_black_column, 3, 3), [170, 170, 170]);
    }

    #[test]
    fn svg_text_is_text_in_a_generic_family_and_escaped() {
        let mut scene = Scene::new(100, 50, Theme::Light.colors());
        scene.text("a < b", (10.0, 20.0), 10.0, true, Align::Left, (0, 0, 0));
        let svg = scene.to_svg().unwrap();
        assert!(svg.contains("width=\"100\" height=\"50\" viewBox=\"0 0 400 200\""), "{svg}");
        assert!(
            svg.contains("font-family=\"sans-serif\" font-size=\"40\"") && svg.contains("a &lt; b"),
            "{svg}"
        );
    }

    #[test]
    fn a_longer_text_is_wider_and_the_font_has_the_signs_we_use() {
        let narrow = text_width("loss", 22.0, false).unwrap();
        assert!(narrow > 30.0 && narrow < 60.0, "{narrow}");
        assert!(text_width("loss, smoothed", 22.0, false).unwrap() > 2.0 * narrow);
    }

    #[test]
    fn a_character_that_the_font_has_not_is_a_sign_in_the_png_and_itself_in_the_svg() {
        let drawn = |text: &str| {
            let mut scene = Scene::new(200, 50, Theme::Light.colors());
            scene.text(text, (10.0, 30.0), 22.0, false, Align::Left, (0, 0, 0));
            (scene.to_png().unwrap(), scene.to_svg().unwrap())
        };
        let ((foreign, svg), (known, _)) = (drawn("日本 é э"), drawn("?? é э"));
        assert!(foreign == known && svg.contains("日本 é э"));
        let width = |text| text_width(text, 22.0, true).unwrap();
        assert_eq!((width("日本"), drawable("▲ … × ·", false)), (width("??"), "▲ … × ·".into()));
    }
}
