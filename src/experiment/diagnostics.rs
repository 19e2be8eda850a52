//! Errors in an experiment, reported so that the reader can correct them at once.
//!
//! A [`Fault`] is one thing to correct: a sentence, the place with its source line and a caret, notes on the
//! other keys involved, and a hint. An [`ExperimentError`] holds all of them, so that they can be corrected
//! together. Its `Display` is plain text; [`ExperimentError::styled`] is the same text with colours, for a
//! terminal. Nothing here prints.

use std::fmt::Write as _;
use std::ops::Range;

use anstyle::{AnsiColor, Style};

use crate::units::printable;

/// Columns of a source line that are shown; a longer line is cut around the caret.
const SHOWN_COLUMNS: usize = 100;

/// A file as read, kept for the source lines that messages quote.
#[derive(Debug)]
pub(super) struct SourceFile {
    /// The path as messages name it.
    pub shown: String,
    pub text: String,
}

impl SourceFile {
    /// Line and column, both counted from 1, columns in characters. `offset` is in bytes and may lie
    /// anywhere, past the end or inside a character included.
    pub fn position(&self, offset: usize) -> (usize, usize) {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        let line_start = before.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        let line = before.iter().filter(|&&b| b == b'\n').count() + 1;
        let column = String::from_utf8_lossy(&before[line_start..]).chars().count() + 1;
        (line, column)
    }

    /// The line around a span of bytes, with the span marked as far as it lies on that line.
    pub fn snippet(&self, span: Range<usize>) -> Snippet {
        let (line, column) = self.position(span.start);
        let text = self.text.split('\n').nth(line - 1).unwrap_or("").trim_end_matches('\r').to_string();
        let marked = String::from_utf8_lossy(
            &self.text.as_bytes()[span.start.min(self.text.len())..span.end.min(self.text.len())],
        )
        .chars()
        .take_while(|&c| c != '\n' && c != '\r')
        .count();
        Snippet {
            source: self.shown.clone(),
            position: Some((line, column)),
            text,
            mark: column - 1..column - 1 + marked.max(1),
        }
    }
}

/// One quoted line with a marked part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snippet {
    /// A file's path, `--set`, or `environment`.
    pub source: String,
    /// Line and column in a file, from 1.
    pub position: Option<(usize, usize)>,
    pub text: String,
    /// Characters of `text` under the caret.
    pub mark: Range<usize>,
}

/// One thing to correct.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// One sentence without a full stop.
    pub message: String,
    pub place: Option<Snippet>,
    /// The text beside the caret; may be empty.
    pub label: String,
    pub notes: Vec<String>,
    pub hint: Option<String>,
    /// Whether it is damage of a file that the experiment names, and not of the experiment.
    pub(super) damage: bool,
    /// Its position in the report: files as they extend one another, then environment, then `--set`.
    pub(super) order: (usize, usize),
}

impl Fault {
    pub(super) fn new(message: impl Into<String>) -> Fault {
        Fault {
            message: message.into(),
            place: None,
            label: String::new(),
            notes: Vec::new(),
            hint: None,
            damage: false,
            order: (0, 0),
        }
    }

    pub(super) fn at(mut self, (place, order): (Option<Snippet>, (usize, usize))) -> Fault {
        self.place = place;
        self.order = order;
        self
    }

    pub(super) fn label(mut self, label: impl Into<String>) -> Fault {
        self.label = label.into();
        self
    }

    pub(super) fn note(mut self, note: impl Into<String>) -> Fault {
        self.notes.push(note.into());
        self
    }

    pub(super) fn hint(mut self, hint: impl Into<Option<String>>) -> Fault {
        self.hint = hint.into();
        self
    }
}

/// Everything that is wrong with an experiment, in the order of the files.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.render(&Palette::PLAIN))]
pub struct ExperimentError {
    /// The experiment's file, or the name that the text was given.
    pub name: String,
    /// Never empty.
    pub faults: Vec<Fault>,
}

impl ExperimentError {
    pub(super) fn new(name: &str, mut faults: Vec<Fault>) -> ExperimentError {
        faults.sort_by_key(|fault| fault.order);
        faults.dedup();
        ExperimentError { name: name.to_string(), faults }
    }

    /// The experiment's name, and the one place besides where all faults are, if there is one.
    fn subject(&self) -> String {
        let mut places = self.faults.iter().map(|fault| fault.place.as_ref().map(|place| &place.source));
        match places.next().flatten() {
            Some(first) if *first != self.name && places.all(|other| other == Some(first)) => {
                format!("{} with {first}", self.name)
            }
            _ => self.name.clone(),
        }
    }

    /// Whether the experiment is right, and a model that it names is damaged.
    pub fn is_damage(&self) -> bool {
        self.faults.iter().all(|fault| fault.damage)
    }

    /// The report with terminal colours. Print it through `anstream`, which drops them where the output is no
    /// terminal and honours `NO_COLOR`.
    pub fn styled(&self) -> String {
        self.render(&Palette::COLOURED)
    }

    fn render(&self, palette: &Palette) -> String {
        let mut out = String::new();
        for fault in &self.faults {
            fault.render(palette, &mut out);
            out.push('\n');
        }
        let count = match self.faults.len() {
            1 => "1 fault".to_string(),
            n => format!("{n} faults"),
        };
        let _ = write!(out, "{} has {count}; nothing was started", printable(&self.subject()));
        out
    }
}

struct Palette {
    error: Style,
    strong: Style,
    frame: Style,
    hint: Style,
}

impl Palette {
    const PLAIN: Palette =
        Palette { error: Style::new(), strong: Style::new(), frame: Style::new(), hint: Style::new() };
    const COLOURED: Palette = Palette {
        error: AnsiColor::Red.on_default().bold(),
        strong: Style::new().bold(),
        frame: AnsiColor::Blue.on_default().bold(),
        hint: AnsiColor::Cyan.on_default().bold(),
    };
}

/// `text` between the codes of a style: none for a plain one.
fn paint(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

impl Fault {
    fn render(&self, palette: &Palette, out: &mut String) {
        let _ = writeln!(
            out,
            "{}{}",
            paint(palette.error, "error"),
            paint(palette.strong, &format!(": {}", printable(&self.message)))
        );
        let number = self
            .place
            .as_ref()
            .and_then(|place| place.position)
            .map_or(String::new(), |(line, _)| line.to_string());
        let margin = " ".repeat(number.len().max(2));
        let bar = paint(palette.frame, "|");
        if let Some(place) = &self.place {
            let position = place.position.map_or(String::new(), |(line, column)| format!(":{line}:{column}"));
            let _ = writeln!(
                out,
                "{margin}{} {}{position}",
                paint(palette.frame, "-->"),
                printable(&place.source)
            );
            let (text, mark) = window(&place.text, &place.mark);
            let number = paint(palette.frame, &format!("{number:>width$}", width = margin.len()));
            let _ = writeln!(out, "{margin} {bar}\n{number} {bar} {text}");
            let carets = paint(
                palette.error,
                format!("{} {}", "^".repeat(mark.len()), printable(&self.label)).trim_end(),
            );
            let _ = writeln!(out, "{margin} {bar} {}{carets}", " ".repeat(mark.start));
        }
        for note in &self.notes {
            let _ = writeln!(out, "{margin} {} note: {}", paint(palette.frame, "="), printable(note));
        }
        if let Some(hint) = &self.hint {
            let _ = writeln!(out, "{margin} {}: {}", paint(palette.hint, "hint"), printable(hint));
        }
    }
}

/// The part of a line that is shown, and the mark within it. One character in, one column out.
fn window(text: &str, mark: &Range<usize>) -> (String, Range<usize>) {
    let chars: Vec<char> = printable(text).chars().collect();
    if chars.len() <= SHOWN_COLUMNS {
        return (chars.into_iter().collect(), mark.clone());
    }
    let start = mark.start.saturating_sub(SHOWN_COLUMNS / 3).min(chars.len() - SHOWN_COLUMNS);
    let end = start + SHOWN_COLUMNS;
    let lead = if start > 0 { "…" } else { "" };
    let tail = if end < chars.len() { "…" } else { "" };
    let shown: String = chars[start..end].iter().collect();
    let shift = lead.chars().count();
    let mark_start = mark.start - start + shift;
    let mark_end = (mark.end.min(end).max(mark.start + 1) - start) + shift;
    (format!("{lead}{shown}{tail}"), mark_start..mark_end)
}

/// The candidate most similar to `word`, if one is similar enough.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let mut best: Option<(f64, &str)> = None;
    for candidate in candidates {
        let likeness = strsim::jaro_winkler(word, candidate)
            .max(strsim::normalized_damerau_levenshtein(word, candidate));
        if likeness > best.map_or(0.75, |(score, _)| score) {
            best = Some((likeness, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// Names with commas between them, in lines of at most some 80 columns.
pub(super) fn in_lines(names: &[&str]) -> Vec<String> {
    const WIDTH: usize = 80;
    let mut lines = vec![String::new()];
    for (i, name) in names.iter().enumerate() {
        let comma = if i + 1 < names.len() { "," } else { "" };
        let line = lines.last_mut().expect("there is one");
        if line.is_empty() {
            line.push_str(&format!("{name}{comma}"));
        } else if line.len() + 1 + name.len() + comma.len() <= WIDTH {
            line.push_str(&format!(" {name}{comma}"));
        } else {
            lines.push(format!("{name}{comma}"));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> SourceFile {
        SourceFile { shown: "x.toml".into(), text: text.into() }
    }

    #[test]
    fn positions_count_characters_and_survive_any_offset() {
        let source = file("a = 1\nä = \"ö\" # x\n");
        assert_eq!(source.position(0), (1, 1));
        assert_eq!(source.position(6), (2, 1));
        assert_eq!(source.position("a = 1\nä = ".len()), (2, 5));
        assert_eq!(source.position(7), (2, 2), "inside a character");
        assert_eq!(source.position(1000), (3, 1));
    }

    #[test]
    fn a_mark_stays_on_its_line_and_is_never_empty() {
        let source = file("x = [\n 1,\n]\n");
        assert_eq!(source.snippet(4..11).mark, 4..5);
        assert_eq!(source.snippet(12..12).mark, 0..1);
    }

    #[test]
    fn long_lines_are_cut_around_the_mark() {
        let (text, mark) = window(&format!("{}KEY{}", "a".repeat(300), "b".repeat(300)), &(300..303));
        let shown: String = text.chars().skip(mark.start).take(mark.len()).collect();
        assert_eq!(shown, "KEY");
        assert!(text.starts_with('…') && text.ends_with('…') && text.chars().count() == SHOWN_COLUMNS + 2);
    }

    #[test]
    fn control_characters_cannot_reach_the_terminal() {
        let fault = Fault::new("bad \u{1b}[31m key");
        let text = ExperimentError::new("x", vec![fault]).to_string();
        assert!(!text.contains('\u{1b}'), "{text:?}");
    }

    #[test]
    fn the_place_of_all_faults_is_named_beside_the_experiment() {
        let at = |shown: &str| {
            let source = SourceFile { shown: shown.into(), text: "a = 1".into() };
            Fault::new(shown).at((Some(source.snippet(0..1)), (0, 0)))
        };
        let count = |faults| ExperimentError::new("x.toml", faults).to_string();
        assert!(count(vec![at("--set")]).ends_with("x.toml with --set has 1 fault; nothing was started"));
        assert!(
            count(vec![at("--set"), at("environment")]).ends_with("x.toml has 2 faults; nothing was started")
        );
        assert!(count(vec![Fault::new("no place")]).ends_with("x.toml has 1 fault; nothing was started"));
    }

    #[test]
    fn colours_add_codes_and_change_no_letter() {
        let fault = Fault::new("wrong")
            .at((Some(file("a = 1").snippet(0..1)), (0, 0)))
            .label("here")
            .hint("mend it".to_string());
        let error = ExperimentError::new("x.toml", vec![fault]);
        let plain = anstream::adapter::strip_str(&error.styled()).to_string();
        assert_ne!(error.styled(), plain);
        assert_eq!(plain, error.to_string());
    }
}
