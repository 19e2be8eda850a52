//! Colours, for light and for dark surroundings.
//!
//! The first six light ones are Okabe and Ito's, which colour-blind readers can tell apart, and four more
//! follow; the dark ones are the same hues, lighter. Both tables have the same rows, so a light SVG can be
//! shown dark by a style sheet alone: [`dark_rules`].

use std::fmt::Write as _;

use super::scene::Color;

/// The background of the pictures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Theme {
    #[default]
    Light,
    Dark,
}

/// The colours of a theme.
#[derive(Debug)]
pub struct Colors {
    pub background: Color,
    pub text: Color,
    pub quiet: Color,
    pub grid: Color,
    pub frame: Color,
    /// Published levels.
    pub level: Color,
    /// Events: resumes, and what changed bits.
    pub resumed: Color,
    pub changed: Color,
    /// Skipped updates, in every run: no run has this colour.
    pub skip: Color,
    /// Validation of a lone run.
    pub validation: Color,
    /// The colour that a run's colour is mixed with for emphasis.
    pub emphasis: Color,
    /// One for each run, in this order; the eleventh run starts over.
    pub runs: [Color; 10],
    /// Of low, middling and high losses in a heat map.
    pub shades: [Color; 3],
}

static LIGHT: Colors = Colors {
    background: (0xff, 0xff, 0xff),
    text: (0x22, 0x22, 0x22),
    quiet: (0x66, 0x66, 0x66),
    grid: (0xe4, 0xe4, 0xe4),
    frame: (0x99, 0x99, 0x99),
    level: (0x55, 0x55, 0x55),
    resumed: (0xaa, 0xaa, 0xaa),
    changed: (0x99, 0x33, 0x99),
    skip: (0xd5, 0x5e, 0x00),
    validation: (0xd4, 0x92, 0x01),
    emphasis: (0x00, 0x00, 0x00),
    runs: [
        (0x00, 0x72, 0xb2),
        (0xe6, 0x9f, 0x00),
        (0x00, 0x9e, 0x73),
        (0xcc, 0x79, 0xa7),
        (0x56, 0xb4, 0xe9),
        (0x66, 0x4e, 0x96),
        (0x8a, 0x8f, 0x1e),
        (0xb0, 0x1f, 0x3c),
        (0x8c, 0x5a, 0x3a),
        (0x2b, 0x2f, 0x77),
    ],
    shades: [(0x08, 0x45, 0x8a), (0x6b, 0xae, 0xd6), (0xe9, 0xf1, 0xf9)],
};

static DARK: Colors = Colors {
    background: (0x16, 0x19, 0x1e),
    text: (0xe8, 0xe8, 0xe8),
    quiet: (0xa4, 0xa8, 0xae),
    grid: (0x2c, 0x31, 0x39),
    frame: (0x6a, 0x70, 0x78),
    level: (0xb4, 0xb8, 0xbe),
    resumed: (0x77, 0x7d, 0x86),
    changed: (0xd9, 0x86, 0xe0),
    skip: (0xff, 0x85, 0x3d),
    validation: (0xf2, 0xb5, 0x3a),
    emphasis: (0xfe, 0xfe, 0xfe),
    runs: [
        (0x4d, 0xa8, 0xe0),
        (0xf0, 0xb4, 0x3c),
        (0x35, 0xc4, 0x97),
        (0xe5, 0x9c, 0xc5),
        (0x8f, 0xd3, 0xff),
        (0xa7, 0x92, 0xe2),
        (0xc9, 0xce, 0x55),
        (0xf0, 0x6a, 0x84),
        (0xc9, 0x97, 0x74),
        (0x83, 0x8a, 0xf5),
    ],
    shades: [(0xcf, 0xe6, 0xff), (0x4d, 0x97, 0xcf), (0x1f, 0x2c, 0x3d)],
};

impl Theme {
    pub fn colors(self) -> &'static Colors {
        match self {
            Theme::Light => &LIGHT,
            Theme::Dark => &DARK,
        }
    }
}

impl Colors {
    /// The colour of a run by its place among those drawn.
    pub fn run(&self, index: usize) -> Color {
        self.runs[index % self.runs.len()]
    }

    /// A colour drawn back behind the strong lines.
    pub fn faint(&self, color: Color) -> Color {
        mix(color, self.background, 0.62)
    }

    /// A colour drawn out of the others.
    pub fn strong(&self, color: Color) -> Color {
        mix(color, self.emphasis, 0.4)
    }

    /// The colour of a loss in a heat map, from 0 for the lowest to 1.
    pub fn shade(&self, share: f64) -> Color {
        let [low, middle, high] = self.shades;
        if share < 0.5 { mix(low, middle, 2.0 * share) } else { mix(middle, high, 2.0 * share - 1.0) }
    }

    /// Black or white, whichever can be read on a colour.
    pub fn ink_on(&self, color: Color) -> Color {
        let sum = 299 * u32::from(color.0) + 587 * u32::from(color.1) + 114 * u32::from(color.2);
        if sum > 128_000 { (0, 0, 0) } else { (0xff, 0xff, 0xff) }
    }

    /// Every colour that a picture of one run may have.
    fn of_a_lone_run(&self) -> [Color; 12] {
        let run = self.run(0);
        let Colors {
            background, text, quiet, grid, frame, level, resumed, changed, skip, validation, ..
        } = *self;
        [
            background,
            text,
            quiet,
            grid,
            frame,
            level,
            resumed,
            changed,
            skip,
            validation,
            run,
            self.faint(run),
        ]
    }
}

/// A style sheet's rules that turn a light SVG of one run below `selector` into the dark one.
pub fn dark_rules(selector: &str) -> String {
    let mut rules = String::new();
    for (light, dark) in LIGHT.of_a_lone_run().into_iter().zip(DARK.of_a_lone_run()) {
        let (light, dark) = (hex(light), hex(dark));
        for paint in ["fill", "stroke"] {
            let _ = writeln!(rules, "{selector} [{paint}=\"{light}\"]{{{paint}:{dark}}}");
        }
    }
    rules
}

/// As plotters writes it.
fn hex((red, green, blue): Color) -> String {
    format!("#{red:02X}{green:02X}{blue:02X}")
}

/// A share of the way from one colour to another.
fn mix(from: Color, to: Color, share: f64) -> Color {
    let channel =
        |from: u8, to: u8| libm::round(f64::from(from) + share * (f64::from(to) - f64::from(from))) as u8;
    (channel(from.0, to.0), channel(from.1, to.1), channel(from.2, to.2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mixture_lies_between() {
        assert_eq!(mix((0, 100, 255), (255, 100, 0), 0.0), (0, 100, 255));
        assert_eq!(mix((0, 100, 255), (200, 100, 55), 0.5), (100, 100, 155));
    }

    #[test]
    fn no_two_light_colours_of_a_picture_are_one_or_a_rule_would_take_both() {
        let mut colors = LIGHT.of_a_lone_run().to_vec();
        colors.sort_unstable();
        colors.dedup();
        assert_eq!(colors.len(), LIGHT.of_a_lone_run().len());
    }

    /// Contrast after WCAG 2: text needs 4.5 against its background, lines 3.
    #[test]
    fn text_and_lines_stand_out_from_the_background() {
        let channel = |value: u8| {
            let share = f64::from(value) / 255.0;
            if share <= 0.04045 { share / 12.92 } else { libm::pow((share + 0.055) / 1.055, 2.4) }
        };
        let luminance = |(r, g, b): Color| 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
        let contrast = |a: Color, b: Color| {
            let (a, b) = (luminance(a), luminance(b));
            (a.max(b) + 0.05) / (a.min(b) + 0.05)
        };
        for colors in [&LIGHT, &DARK] {
            for text in [colors.text, colors.quiet, colors.level] {
                assert!(contrast(text, colors.background) >= 4.5, "{}", hex(text));
            }
            for line in [colors.runs[0], colors.skip, colors.changed] {
                assert!(contrast(line, colors.background) >= 3.0, "{}", hex(line));
            }
        }
    }
}
