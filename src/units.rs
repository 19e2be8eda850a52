//! Numbers and foreign text for people: bytes, counts, durations, and what a terminal may be given. The one
//! place that formats them.

use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

/// `1.5 GiB`, `40.2 MiB`, `512 B`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// `1.56 B`, `124.5 M`, `812 k`, `42`.
pub fn count(n: u64) -> String {
    match n {
        0..1_000 => n.to_string(),
        1_000..1_000_000 => format!("{:.1} k", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.2} B", n as f64 / 1e9),
    }
}

/// `2d 03h`, `1h 05m`, `3m 20s`, `12 s`.
pub fn duration(seconds: f64) -> String {
    let s = seconds.max(0.0).round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3_600 => format!("{}m {:02}s", s / 60, s % 60),
        3_600..86_400 => format!("{}h {:02}m", s / 3_600, s % 3_600 / 60),
        _ => format!("{}d {:02}h", s / 86_400, s % 86_400 / 3_600),
    }
}

/// `1,048,576`.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// [`thousands`] of the nearest whole number.
pub fn rounded(value: f64) -> String {
    thousands(value.round() as u64)
}

/// A noun beside its count: `step` of 1 and else `steps`; so `batch`, `batches` and `entry`, `entries`.
pub fn noun<N: PartialEq + From<u8>>(n: N, one: &str) -> String {
    match one.strip_suffix('y') {
        _ if n == N::from(1) => one.to_owned(),
        Some(stem) if !stem.ends_with('e') => format!("{stem}ies"),
        None if one.ends_with("ch") => format!("{one}es"),
        _ => format!("{one}s"),
    }
}

/// What goes with [`noun`] in the past tense.
pub fn were<N: PartialEq + From<u8>>(n: N) -> &'static str {
    if n == N::from(1) { "was" } else { "were" }
}

/// The same in the present perfect: `has` or `have`.
pub fn have<N: PartialEq + From<u8>>(n: N) -> &'static str {
    if n == N::from(1) { "has" } else { "have" }
}

/// `1 step`, `12,000 steps`.
pub fn counted(n: u64, one: &str) -> String {
    format!("{} {}", thousands(n), noun(n, one))
}

/// `4 layers, 1 head, 128 channels, 128 tokens of context`.
pub fn network(layers: usize, heads: usize, channels: usize, context: usize) -> String {
    let of = |n: usize, one: &str| format!("{n} {}", noun(n, one));
    let sizes = [of(layers, "layer"), of(heads, "head"), of(channels, "channel"), of(context, "token")];
    format!("{} of context", sizes.join(", "))
}

/// `65,536 to 524,288`, or one number where both are the same.
pub fn thousands_to(first: u64, last: u64) -> String {
    let to = format!("{} to {}", thousands(first), thousands(last));
    if first == last { thousands(last) } else { to }
}

/// Text on one line with control characters replaced by a visible one, so that it cannot move the cursor.
pub fn printable(text: &str) -> String {
    printable_lines(text).replace(['\n', '\t'], " ")
}

/// The same with its lines: what a model wrote, or a person, for a terminal.
pub fn printable_lines(text: &str) -> String {
    let stays = |c: char| !c.is_control() || c == '\n' || c == '\t';
    text.chars().map(|c| if stays(c) { c } else { '\u{fffd}' }).collect()
}

/// Text of at most `width` characters: in the middle of a longer one `…` stands for what is left out.
pub fn shortened_middle(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    let Some(kept) = width.checked_sub(1) else { return String::new() };
    let end = kept.div_ceil(2);
    let begin = text.chars().take(kept - end);
    begin.chain(['…']).chain(text.chars().skip(length - end)).collect()
}

/// A path as text, for JSON: where it is not UTF-8, `\u{fffd}` stands in it.
pub fn path_text(path: &Path) -> String {
    path.display().to_string()
}

/// For `serialize_with`: a path by its [`path_text`].
pub fn serialize_path<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&path.display())
}

/// The same of a path that may be missing.
pub fn serialize_some_path<S: Serializer>(path: &Option<PathBuf>, to: S) -> Result<S::Ok, S::Error> {
    path.as_deref().map(path_text).serialize(to)
}

/// A number as a person writes it: `,` or `_` may stand between its thousands, and nowhere else.
pub fn parse_number(text: &str) -> Option<f64> {
    let (whole, rest) = text.split_at(text.find(['.', 'e', 'E']).unwrap_or(text.len()));
    let is_whole = !whole.contains([',', '_']);
    let mut groups = whole.trim_start_matches(['-', '+']).split([',', '_']);
    let first = groups.next().unwrap_or_default();
    let is_thousand = |group: &str| group.len() == 3 && group.bytes().all(|byte| byte.is_ascii_digit());
    let begins = matches!(first.len(), 1..=3) && !first.starts_with('0');
    let is_grouped = is_whole || (begins && groups.all(is_thousand));
    (is_grouped && !rest.contains([',', '_'])).then(|| text.replace([',', '_'], "").parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_people_write_them() {
        assert_eq!(bytes(512), "512 B");
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(1_048_576), "1,048,576");
        assert_eq!(bytes(1536 << 20), "1.5 GiB");
        assert_eq!(count(1_557_686_400), "1.56 B");
        assert_eq!(count(124_475_904), "124.5 M");
        assert_eq!(duration(59.4), "59 s");
        assert_eq!(duration(200.0), "3m 20s");
        assert_eq!(duration(3_900.0), "1h 05m");
        assert_eq!(duration(183_600.0), "2d 03h");
        assert_eq!(thousands(1_048_576), "1,048,576");
        assert_eq!(thousands(12), "12");
    }

    #[test]
    fn a_long_text_loses_its_middle_and_keeps_its_end() {
        assert_eq!(shortened_middle("sweep/001", 9), "sweep/001");
        assert_eq!(shortened_middle("a_long_sweep/001", 8), "a_l…/001");
        assert_eq!(shortened_middle("a_long_sweep/001", 9), "a_lo…/001");
        assert_eq!(shortened_middle("äöü", 2), "…ü");
        assert_eq!((shortened_middle("abc", 1), shortened_middle("abc", 0)), ("…".into(), String::new()));
        assert_eq!((rounded(83_572.5), rounded(83_573.4)), ("83,573".into(), "83,573".into()));
    }

    #[test]
    fn a_count_of_one_has_a_noun_of_one() {
        assert_eq!(
            (noun(1u64, "step"), noun(0u64, "step"), noun(2usize, "step")),
            ("step".into(), "steps".into(), "steps".into())
        );
        assert_eq!((noun(1u8, "entry"), noun(2u8, "entry")), ("entry".into(), "entries".into()));
        assert_eq!((noun(3u32, "key"), noun(3u32, "micro-batch")), ("keys".into(), "micro-batches".into()));
        assert_eq!((counted(1, "run"), counted(12_000, "run")), ("1 run".into(), "12,000 runs".into()));
    }

    #[cfg(unix)]
    #[test]
    fn a_path_that_is_not_utf_8_is_text_in_json() {
        use std::os::unix::ffi::OsStrExt;

        #[derive(Serialize)]
        struct Paths {
            #[serde(serialize_with = "serialize_path")]
            one: PathBuf,
            #[serde(serialize_with = "serialize_some_path")]
            some: Option<PathBuf>,
            #[serde(serialize_with = "serialize_some_path")]
            none: Option<PathBuf>,
        }
        let path = PathBuf::from(std::ffi::OsStr::from_bytes(b"r\xff/a"));
        let paths = Paths { one: path.clone(), some: Some(path), none: None };
        let json = serde_json::to_value(paths).unwrap();
        let expected = serde_json::json!({"one": "r\u{fffd}/a", "some": "r\u{fffd}/a", "none": null});
        assert_eq!(json, expected);
    }
}
