//! The layout: progress on top, the loss in the middle, numbers, events and the last sample below. For 80 by
//! 24 characters and larger.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, Chart, Dataset, GraphType, LineGauge, Paragraph, Wrap};

use crate::report::TIMED;
use crate::report::follow::Followed;
use crate::report::summary::State;
use crate::units;

/// The viewer's settings.
#[derive(Clone, Copy, Debug, Default)]
pub struct Look {
    pub logarithmic: bool,
}

/// Draws the state of a run.
pub fn draw(frame: &mut Frame<'_>, run: &Followed, look: Look) {
    let [title, progress, chart, below, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(6),
        Constraint::Length(10),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(title_line(run), title);
    frame.render_widget(gauge(run), progress);
    draw_chart(frame, chart, run, look);
    let [numbers, texts] = Layout::horizontal([Constraint::Length(38), Constraint::Min(20)]).areas(below);
    frame.render_widget(Paragraph::new(number_lines(run)).block(Block::bordered().title(" now ")), numbers);
    let [events, sample] = Layout::vertical([Constraint::Length(5), Constraint::Min(3)]).areas(texts);
    draw_events(frame, events, run);
    draw_sample(frame, sample, run);
    let axis = if look.logarithmic { "linear" } else { "logarithmic" };
    let keys_are = format!(" q quits   l {axis} loss   speed: median of the last {TIMED} steps");
    frame.render_widget(Line::from(keys_are).dim(), keys);
}

fn title_line(run: &Followed) -> Line<'static> {
    let colour = match run.state {
        State::Running => Color::Cyan,
        State::Done => Color::Green,
        State::Stopped => Color::Yellow,
        State::Broken => Color::Red,
    };
    let mut spans = vec![
        Span::from(format!(" {}", run.name)).bold(),
        Span::from(format!("  {}  ", run.model)),
        Span::styled(run.state.name(), Style::new().fg(colour).add_modifier(Modifier::BOLD)),
    ];
    match &run.why {
        Some(why) => spans.push(Span::from(format!(": {why}"))),
        None => spans.push(Span::from(format!("  {}", run.device)).dim()),
    }
    Line::from(spans)
}

fn gauge(run: &Followed) -> LineGauge<'static> {
    let (ratio, of) = match run.steps {
        Some(steps) if steps > 0 => {
            ((run.done as f64 / steps as f64).min(1.0), format!("/{}", units::thousands(steps)))
        }
        _ => (0.0, String::new()),
    };
    let left =
        run.seconds_left().map_or(String::new(), |seconds| format!("  {} left", units::duration(seconds)));
    let label = format!(" step {}{of}  {:.1}%{left} ", units::thousands(run.done), 100.0 * ratio);
    LineGauge::default()
        .ratio(ratio)
        .label(label)
        .filled_symbol("━")
        .unfilled_symbol("─")
        .filled_style(Style::new().fg(Color::Cyan))
}

/// Means of at most `buckets` stretches of equal length: steps and losses, without what is not finite.
fn thinned(run: &Followed, buckets: usize) -> Vec<(f64, f64)> {
    let size = run.points.len().div_ceil(buckets.max(1)).max(1);
    run.points
        .chunks(size)
        .filter_map(|chunk| {
            let finite: Vec<f64> =
                chunk.iter().map(|point| point.loss).filter(|loss| loss.is_finite()).collect();
            let middle = chunk[chunk.len() / 2].step as f64;
            (!finite.is_empty()).then(|| (middle, finite.iter().sum::<f64>() / finite.len() as f64))
        })
        .collect()
}

fn draw_chart(frame: &mut Frame<'_>, area: Rect, run: &Followed, look: Look) {
    // Two dots a cell lie beside each other.
    let mut loss = thinned(run, 2 * usize::from(area.width.saturating_sub(10)));
    let mut val: Vec<(f64, f64)> = run
        .val
        .iter()
        .filter(|(_, loss)| loss.is_finite())
        .map(|(step, loss)| (*step as f64, *loss))
        .collect();
    if look.logarithmic {
        loss.iter_mut().chain(&mut val).for_each(|(_, y)| *y = libm::log10(y.max(1e-9)));
    }
    let title = if look.logarithmic { " loss, logarithmic: " } else { " loss: " };
    let block = Block::bordered().title(Line::from(vec![
        title.into(),
        "⠒⠒ training".cyan(),
        "  ".into(),
        "• validation ".yellow(),
    ]));
    let all = loss.iter().chain(&val);
    let (mut low, mut high) =
        all.fold((f64::MAX, f64::MIN), |(low, high), (_, y)| (low.min(*y), high.max(*y)));
    if low > high {
        frame.render_widget(Paragraph::new("no step yet").block(block), area);
        return;
    }
    let margin = (0.05 * (high - low)).max(1e-3);
    (low, high) = (low - margin, high + margin);
    if !look.logarithmic {
        // No loss is below zero.
        low = low.max(0.0);
    }
    let last = run
        .points
        .last()
        .map_or(0, |point| point.step)
        .max(run.val.last().map_or(0, |(step, _)| *step))
        .max(1);
    let label = |y: f64| axis_label(if look.logarithmic { libm::exp10(y) } else { y });
    let y_labels = [label(low), label((low + high) / 2.0), label(high)];
    let x_labels = ["0".to_owned(), units::thousands(last / 2), units::thousands(last)];
    let datasets = vec![
        Dataset::default().marker(Marker::Braille).graph_type(GraphType::Line).cyan().data(&loss),
        Dataset::default().marker(Marker::Dot).graph_type(GraphType::Scatter).yellow().data(&val),
    ];
    let chart = Chart::new(datasets)
        .block(block)
        .x_axis(Axis::default().bounds([0.0, last as f64]).labels(x_labels).dim())
        .y_axis(Axis::default().bounds([low, high]).labels(y_labels).dim());
    frame.render_widget(chart, area);
}

/// A number of the axis: a large one by its power of ten.
fn axis_label(y: f64) -> String {
    if y.abs() < 1e6 { format!("{y:>6.3}") } else { format!("{y:>6.1e}") }
}

fn number_lines(run: &Followed) -> Vec<Line<'static>> {
    let z = |score: Option<f64>| score.map_or_else(|| "z -".to_owned(), |z| format!("z {z:+.2}"));
    let mut lines = Vec::new();
    let mut line = |name: &str, value: String| {
        lines.push(Line::from(vec![Span::from(format!("{name:<7}")).dim(), value.into()]))
    };
    if let Some(row) = &run.last {
        line("loss", format!("{:.5} ({})", row.loss.unwrap_or(f64::NAN), z(row.loss_z)));
        line("norm", format!("{:.4} ({})", row.grad_norm.unwrap_or(f64::NAN), z(row.grad_z)));
        line("lr", row.learning_rate.map_or_else(|| "-".into(), |rate| format!("{rate:.3e}")));
        let (speed, mfu) = run.speed();
        let mfu = mfu.map_or(String::new(), |mfu| format!("  {:.1}% MFU", 100.0 * mfu));
        let speed = speed.map_or_else(|| "-".into(), units::rounded);
        line("speed", format!("{speed} tok/s{mfu}"));
    }
    let score = run.hellaswag.map_or(String::new(), |(_, score)| format!("  HellaSwag {score:.4}"));
    line(
        "val",
        run.val.last().map_or_else(|| "-".into(), |(step, loss)| format!("{loss:.4} at {step}{score}")),
    );
    line("tokens", units::count(run.tokens));
    line("ledger", {
        let root = run
            .root
            .as_ref()
            .map_or(String::new(), |root| format!(", root {}…", root.get(..8).unwrap_or(root)));
        format!("{}{root}", units::counted(run.entries, "entry"))
    });
    if let Some(gpu) = &run.gpu {
        line("GPU", gpu.to_text());
    }
    lines
}

fn draw_events(frame: &mut Frame<'_>, area: Rect, run: &Followed) {
    let room = usize::from(area.height.saturating_sub(2));
    let title = if run.events.len() > room {
        format!(" {}, the last ", units::counted(run.events.len() as u64, "event"))
    } else {
        " events ".to_owned()
    };
    let lines: Vec<Line<'_>> = match run.events.len() {
        0 => vec![Line::from("none: no skip, no resume").dim()],
        count => run.events[count.saturating_sub(room)..]
            .iter()
            .map(|(step, what)| {
                Line::from(vec![Span::from(format!("step {step} ")).dim(), what.as_str().into()])
            })
            .collect(),
    };
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(title)), area);
}

fn draw_sample(frame: &mut Frame<'_>, area: Rect, run: &Followed) {
    let (title, text) = match &run.sample {
        Some((step, text)) => (format!(" sample at step {step} "), text.as_str()),
        None => (" sample ".to_owned(), "none yet"),
    };
    // Samples may hold any bytes: only printable characters are sent to the terminal.
    let text: String = text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect();
    let paragraph = Paragraph::new(text).wrap(Wrap { trim: true }).block(Block::bordered().title(title));
    frame.render_widget(paragraph, area);
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::store::gpu_log::{GpuLog, GpuSample};
    use crate::store::metrics::{Action, MetricsRow, MetricsWriter};

    /// A run of 600 steps of 1000 with evaluations, a skip and a sample.
    fn run(folder: &std::path::Path) -> Followed {
        let text = "[model]\nlayers = 4\nheads = 4\nchannels = 128\n[data]\ncorpus = \
                    'kjv'\n[schedule]\nsteps = 1000\n";
        std::fs::write(folder.join("experiment.toml"), text).unwrap();
        let mut writer = MetricsWriter::create(folder).unwrap();
        for step in 0..600_u64 {
            let loss = 2.0 + 4.0 / (1.0 + step as f64 / 40.0) + 0.05 * ((step * 37 % 11) as f64 - 5.0) / 5.0;
            let action = if step == 311 { Action::SkipLossZ } else { Action::Update };
            writer
                .append(&MetricsRow {
                    loss: Some(loss),
                    grad_norm: Some(0.75),
                    learning_rate: Some(6e-4),
                    loss_z: Some(if step == 311 { 9.5 } else { -0.25 }),
                    val_loss: step.is_multiple_of(100).then_some(loss + 0.1),
                    tokens_per_s: Some(52_683.0),
                    mfu: Some(0.523),
                    ..MetricsRow::new(step, (step + 1) * 1024, action)
                })
                .unwrap();
        }
        std::fs::create_dir(folder.join("samples")).unwrap();
        std::fs::write(
            folder.join("samples/step_00000500.txt"),
            "And God said,\u{1b}[2J Let there be light: and there was light.\n",
        )
        .unwrap();
        let sample =
            GpuSample { sm_mhz: Some(1755), watts: Some(688.0), celsius: Some(64), ..GpuSample::default() };
        GpuLog::open(&folder.join("gpu.jsonl")).unwrap().append(&sample).unwrap();
        let mut followed = Followed::open(folder);
        followed.refresh();
        followed.name = "quickstart".into();
        followed.device = "AMD EPYC, 2 threads".into();
        followed
    }

    fn picture(run: &Followed, width: u16, height: u16, look: Look) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, run, look)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let cells = buffer.content.chunks(usize::from(width));
        let lines =
            cells.map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned());
        lines.collect::<Vec<_>>().join("\n") + "\n"
    }

    /// `WATCH_BLESS=1 cargo test` writes the picture anew; look at it then.
    #[test]
    fn the_view_at_80_by_24_is_the_one_that_was_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let shown = picture(&run(folder.path()), 80, 24, Look::default());
        if std::env::var_os("WATCH_BLESS").is_some() {
            std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/src/cli/watch/view_80x24.txt"), &shown)
                .unwrap();
        }
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cli/watch/view_80x24.txt");
        assert_eq!(shown, std::fs::read_to_string(path).unwrap(), "\n{shown}");
    }

    #[test]
    fn everything_stands_in_the_view_at_every_size_and_nothing_of_a_sample_escapes() {
        let folder = tempfile::tempdir().unwrap();
        let run = run(folder.path());
        for (width, height) in [(80, 24), (120, 40), (200, 60)] {
            for logarithmic in [false, true] {
                let shown = picture(&run, width, height, Look { logarithmic });
                for says in [
                    "quickstart",
                    "4x128",
                    "stopped",
                    "step 600/1,000",
                    "60.0%",
                    "52,683 tok/s",
                    "52.3% MFU",
                    "step 311 skip_loss_z",
                    "Let there be",
                    "688 W",
                ] {
                    assert!(shown.contains(says), "`{says}` is not in:\n{shown}");
                }
                assert!(!shown.contains('\u{1b}'));
            }
        }
        // A terminal that is too small must not cause a panic.
        for (width, height) in [(1, 1), (10, 3), (40, 10)] {
            picture(&run, width, height, Look::default());
        }
    }

    #[test]
    fn the_axis_of_a_loss_beyond_a_million_is_short_and_begins_at_zero() {
        assert_eq!((axis_label(2.0654), axis_label(9.5e16)), (" 2.065".to_owned(), "9.5e16".to_owned()));
        let folder = tempfile::tempdir().unwrap();
        let mut run = run(folder.path());
        run.points.last_mut().unwrap().loss = 1e20;
        let shown = picture(&run, 80, 24, Look::default());
        assert!(shown.contains("│ 0.000│") && shown.contains("e1"), "{shown}");
    }

    #[test]
    fn a_run_without_a_step_is_shown_too() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("experiment.toml"), "nonsense").unwrap();
        let mut followed = Followed::open(folder.path());
        followed.refresh();
        let shown = picture(&followed, 80, 24, Look::default());
        assert!(shown.contains("no step yet") && shown.contains("broken"), "{shown}");
    }
}
