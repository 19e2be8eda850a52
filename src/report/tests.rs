//! Whole pictures of small synthetic runs.

use super::chart::PanelKind;
use super::*;
use crate::rng::Key;
use crate::store::metrics::{Action, MetricsRow};

/// A run whose numbers look like training: a falling loss with noise, a spike of the gradient norm in
/// the warm-up, `skips` skipped steps, and evaluations.
fn synthetic(name: &str, seed: u64, steps: u64, skips: &[u64], hellaswag: bool) -> RunData {
    let noise = Key::new(seed, "test/plot");
    let (batch, warmup, start) = (524_288, (steps / 40).max(1) as f64, if hellaswag { 11.0 } else { 5.55 });
    let end = if hellaswag { 3.25 } else { 1.6 };
    let level = |step: f64| {
        end + (start - end) / libm::sqrt(1.0 + step * 1600.0 / steps as f64 / 4.0) + seed as f64 * 0.05
    };
    let every = (steps / 20).max(1);
    let mut rows: Vec<MetricsRow> = (0..=steps)
        .map(|step| {
            let at = step as f64;
            let mut row = MetricsRow::new(step, (step + 1).min(steps) * batch, Action::Update);
            if step % every == 0 || step == steps {
                row.val_loss = Some(level(at) + 0.03);
                row.hellaswag = hellaswag
                    .then(|| 0.245 + 0.055 * libm::sqrt(at / steps as f64) + 0.002 * noise.normal(step, 2));
            }
            if step == steps {
                row.action = Action::Evaluate;
                return row;
            }
            let rate = if at < warmup {
                (at + 1.0) / warmup
            } else {
                0.55 + 0.45 * libm::cos(std::f64::consts::PI * (at - warmup) / steps as f64)
            };
            row.learning_rate = Some(6e-4 * rate);
            row.loss = Some(level(at) + 0.05 * noise.normal(step, 0));
            row.grad_norm = Some(
                (0.35 + 30.0 * libm::exp(-at / warmup * 2.0)) * (1.0 + 0.15 * noise.normal(step, 1)).abs(),
            );
            row.step_ms = Some(250.0);
            row
        })
        .collect();
    for (index, &step) in skips.iter().enumerate() {
        let row = &mut rows[step as usize];
        match index % 3 {
            0 => (row.action, row.loss) = (Action::SkipLossZ, row.loss.map(|loss| loss * 1.9)),
            1 => (row.action, row.grad_norm) = (Action::SkipGradZ, Some(61.0)),
            _ => {
                (row.action, row.loss, row.grad_norm) =
                    (Action::SkipNonfinite, Some(f64::NAN), Some(f64::INFINITY))
            }
        }
    }
    let (layers, channels) = if hellaswag { (12, 768) } else { (4, 128) };
    let model = ModelFacts {
        kind: "GPT-2".to_owned(),
        descriptor: hellaswag.then(|| "d12".to_owned()),
        layers,
        channels,
        gpt2_tokens: hellaswag,
        embedded_corpus: !hellaswag,
        fineweb: hellaswag,
        parameters: None,
        flops_per_token: Some(if hellaswag { 8.0e8 } else { 5.5e6 }),
        pieces: None,
    };
    RunData {
        name: name.to_owned(),
        rows,
        has_tokens: true,
        model: Some(model),
        folder: None,
        unverified: None,
        failed: None,
    }
}

fn svg(runs: &[RunData], options: &PlotOptions) -> String {
    figure::draw(runs, options).unwrap().to_svg().unwrap()
}

/// Compares with a committed picture.
#[track_caller]
pub fn assert_golden(name: &str, drawn: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/plots/{name}.svg"));
    if std::env::var_os("RUNNER_BLESS").is_some() {
        std::fs::write(&path, drawn).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    let differs = drawn.lines().zip(golden.lines()).position(|(drawn, golden)| drawn != golden);
    assert!(
        drawn == golden,
        "the picture changed, first in line {:?} of {}",
        differs.map(|line| line + 1),
        path.display()
    );
}

/// Compares with the committed pictures; `RUNNER_BLESS=1` writes them again after an intended change.
#[test]
fn every_kind_of_picture_is_the_committed_one_to_the_byte() {
    let small = || {
        let mut run = synthetic("golden", 1, 40, &[12, 20, 30], false);
        run.rows[25].events.push("resume".to_owned());
        run.rows[33].events.push("rewind".to_owned());
        run
    };
    let web = |steps| synthetic(&format!("web-{steps}"), steps, steps, &[steps / 2], true);
    let dark = PlotOptions { theme: Theme::Dark, ..PlotOptions::default() };
    let log =
        PlotOptions { x: XAxis::Flops, log_x: true, log_y: true, smooth: Some(1), ..PlotOptions::default() };
    let hours =
        PlotOptions { x: XAxis::Hours, baselines: Baselines::Chosen(vec![]), ..PlotOptions::default() };
    for (name, runs, options) in [
        ("one", vec![small()], PlotOptions::default()),
        ("one_dark_hellaswag", vec![web(40)], dark),
        ("lengths_log_flops", vec![web(60), web(12)], log),
        ("hours", vec![small(), web(30)], hours),
    ] {
        let drawn = svg(&runs, &options);
        assert_golden(name, &drawn);
    }
    assert_golden("groups", &svg_of_groups(&[small_group("a", 3), small_group("b", 2)]));
}

/// Runs of several seeds under one name.
fn small_group(name: &str, runs: u64) -> PlotGroup {
    let of = |seed| synthetic(name, seed, 40, &[], false);
    PlotGroup { name: name.to_owned(), runs: (1..=runs).map(of).collect(), failed: 0 }
}

fn svg_of_groups(groups: &[PlotGroup]) -> String {
    figure::draw_groups(groups, &PlotOptions::default()).unwrap().to_svg().unwrap()
}

#[test]
fn a_group_is_one_line_and_its_legend_says_what_the_band_is() {
    let drawn = |sizes: &[u64]| {
        svg_of_groups(&sizes.iter().map(|runs| small_group("of a kind", *runs)).collect::<Vec<_>>())
    };
    assert!(drawn(&[3]).contains("3 runs in 1 group") && drawn(&[3]).contains("95 % interval of the mean"));
    assert!(drawn(&[2, 2]).contains("4 runs in 2 groups") && drawn(&[2]).contains("range of the two runs"));
    assert!(drawn(&[3, 2]).contains("95 % interval of the mean; of two runs their range"));
    let mut group = small_group("uneven", 3);
    group.runs[1].rows.truncate(20);
    let uneven = svg_of_groups(&[group.clone()]);
    assert!(uneven.contains("uneven, n = 3 until one ends at step 19  (validation "), "{uneven}");
    assert!(uneven.contains(" at step 18)"), "where the mean of validations was taken");
    let failed = svg_of_groups(&[PlotGroup { failed: 2, ..small_group("of a kind", 3) }]);
    assert!(failed.contains("of a kind, n = 3, 2 failed  (validation "), "{failed}");
    // An interval that reaches far below all runs does not set the range.
    for row in group.runs[2].rows.iter_mut().filter(|row| row.step == 18) {
        row.val_loss = Some(90.0);
    }
    let wide = svg_of_groups(&[group]);
    assert!(wide.lines().all(|line| !line.starts_with('-')), "no loss is below zero");
    assert!(!drawn(&[1]).contains("interval") && !drawn(&[1]).contains("polygon"));
    // Loss, validation and gradient norm have a band, and the legend its sample.
    assert_eq!(drawn(&[3]).matches("<polygon").count(), 4);
}

#[test]
fn the_legend_says_over_how_many_steps_a_line_is_smoothed() {
    let drawn = |steps, smooth| {
        svg(&[synthetic("a", 1, steps, &[], false)], &PlotOptions { smooth, ..PlotOptions::default() })
    };
    assert!(drawn(100, None).contains("smoothed over ≤ 3 steps"));
    assert!(drawn(100, Some(2)).contains("smoothed over ≤ 3 steps"));
    assert_eq!(drawn(100, Some(2)), drawn(100, Some(3)));
    assert!(drawn(12, Some(99_999)).contains("smoothed over ≤ 11 steps"));
    assert!(!drawn(100, Some(1)).contains("smoothed over"));
}

/// Discs as wide on either side as the lines: of the loss 3.5 pixels, of the rate 3, in quarters of a pixel.
#[test]
fn a_run_of_one_step_is_drawn_as_dots() {
    let drawn = |steps| svg(&[synthetic("a", 1, steps, &[], false)], &PlotOptions::default());
    let discs = |svg: &str, radius: u32| svg.matches(&format!(" r=\"{radius}\"")).count();
    assert!(discs(&drawn(1), 14) == 1 && discs(&drawn(1), 12) >= 1, "{}", drawn(1));
    assert_eq!(discs(&drawn(2), 14), 0);
}

#[test]
fn equal_input_gives_equal_bytes_of_both_files() {
    let runs = [synthetic("a", 1, 60, &[9], false), synthetic("b", 2, 50, &[], false)];
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str| -> Vec<Vec<u8>> {
        let paths = plot_runs(&runs, &PlotOptions::default(), &folder.path().join(name)).unwrap();
        assert_eq!(
            paths,
            [folder.path().join(name).join("loss.png"), folder.path().join(name).join("loss.svg")]
        );
        assert_eq!(
            std::fs::read_dir(folder.path().join(name)).unwrap().count(),
            2,
            "no temporary file may stay"
        );
        paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
    };
    let first = write("one");
    assert_eq!(first, write("two"));
    assert!(first[0].starts_with(b"\x89PNG"));
}

#[test]
fn what_the_frame_leaves_out_is_counted() {
    let drawn = svg(&[synthetic("spikes", 1, 300, &[100, 150, 200], false)], &PlotOptions::default());
    assert!(drawn.contains("update skipped (3)"));
    assert!(drawn.contains("61, 1 not finite"), "the skipped gradient norm of 61 is off the scale");
    assert!(drawn.contains("above, max"), "the skipped loss is off the scale");
    let of_one = |change: fn(&mut MetricsRow)| {
        let mut run = synthetic("above", 1, 60, &[], false);
        run.rows.iter_mut().for_each(|row| row.val_loss = row.val_loss.map(|_| 2.0));
        change(&mut run.rows[30]);
        svg(&[run], &PlotOptions { smooth: Some(1), ..PlotOptions::default() })
    };
    assert!(!of_one(|_| ()).contains("evaluation above"), "no validation is above");
    assert!(of_one(|row| row.val_loss = Some(900.0)).contains("max 900"), "the validation is off the scale");
}

#[test]
fn a_failed_run_does_not_decide_how_high_the_axes_of_others_reach() {
    let mut failed = synthetic("failed", 2, 60, &[], false);
    failed.failed = Some("diverged: 3 steps in a row were skipped".to_owned());
    for row in failed.rows.iter_mut() {
        row.loss = row.loss.map(|loss| if row.step < 5 { loss } else { 1e12 });
        row.learning_rate = row.learning_rate.map(|rate| rate * 1e9);
    }
    let whole = synthetic("whole", 1, 60, &[], false);
    for log_y in [false, true] {
        let options = PlotOptions { log_y, ..PlotOptions::default() };
        let both = svg(&[whole.clone(), failed.clone()], &options);
        assert!(both.contains("above, max 1T"), "of the loss: {both}");
        assert!(both.contains("60 steps above, max 600k"), "of the learning rate: {both}");
        let is_large = |line: &str| line.len() < 6 && line.ends_with(['k', 'B', 'T']);
        assert!(!both.lines().any(is_large), "no tick is so large: {both}");
        let alone = svg(&[failed.clone()], &options);
        assert!(!alone.contains("above, max 1T"), "it decides where there is no other: {alone}");
    }
}

#[test]
fn a_failed_run_does_not_decide_how_high_scores_and_speeds_reach() {
    let mut failed = synthetic("failed", 2, 60, &[], true);
    failed.failed = Some("diverged: 3 steps in a row were skipped".to_owned());
    let mut whole = synthetic("whole", 1, 60, &[], true);
    for row in failed.rows.iter_mut() {
        row.hellaswag = row.hellaswag.map(|_| 0.9);
        row.tokens_per_s = Some(4e9);
    }
    whole.rows.iter_mut().for_each(|row| row.tokens_per_s = Some(1000.0));
    let charts = charts(&[whole, failed], &PlotOptions::default()).unwrap();
    for (kind, largest) in [(PanelKind::Hellaswag, " 0.9"), (PanelKind::Throughput, " 4B")] {
        let chart = charts.iter().find(|chart| chart.title == kind.title()).unwrap();
        let counts = |line: &str| line.starts_with('▲') && line.ends_with(largest);
        assert!(chart.svg.lines().any(counts), "{largest}: {}", chart.svg);
    }
}

#[test]
fn published_levels_appear_only_beside_a_comparable_run() {
    let big = svg(&[synthetic("web", 1, 200, &[], true)], &PlotOptions::default());
    assert!(
        big.contains("GPT-2 124M: loss on FineWeb 3.425, HellaSwag 0.294")
            && big.contains("GPT-3 125M: HellaSwag 0.337")
    );
    let small = svg(&[synthetic("bible", 1, 200, &[], false)], &PlotOptions::default());
    assert!(!small.contains("GPT-") && !small.contains("HellaSwag"));
}

#[test]
fn a_level_is_drawn_once_and_its_loss_beside_a_run_on_fineweb() {
    let on_books = |name| {
        let mut run = synthetic(name, 1, 200, &[], true);
        run.model.as_mut().unwrap().fineweb = false;
        run
    };
    let books = svg(&[on_books("books")], &PlotOptions::default());
    assert!(books.contains("GPT-2 124M: HellaSwag 0.294") && !books.contains("FineWeb"));
    let mixed = [on_books("books"), synthetic("web", 2, 200, &[], true)];
    for runs in [&mixed[..], &[mixed[1].clone(), mixed[0].clone()]] {
        let both = svg(runs, &PlotOptions::default());
        assert_eq!(both.matches("GPT-2 124M: loss on FineWeb 3.425, HellaSwag 0.294").count(), 1);
        assert!(!both.contains("GPT-2 124M: HellaSwag"));
    }
    for level in mixed.iter().filter_map(|run| run.model.as_ref()).flat_map(run_data::references) {
        assert_eq!(
            figure::dash_of(&level) == panel::Dash::Dashed,
            level.name.starts_with("GPT-2"),
            "{level:?}"
        );
    }
}

#[test]
fn the_loss_is_drawn_over_the_rates_of_a_range_test_and_of_no_other_run() {
    let options = PlotOptions { x: XAxis::LearningRate, log_x: true, ..PlotOptions::default() };
    let mut range = synthetic("range", 1, 60, &[], false);
    for row in range.rows.iter_mut().filter(|row| row.action == Action::Update) {
        row.learning_rate = Some(libm::pow(10.0, row.step as f64 / 15.0 - 5.0));
    }
    let drawn = svg(&[range], &options);
    // From 1e-5 to less than 0.1.
    for label in ["learning rate, log scale", "\n1e-4\n", "\n0.01\n"] {
        assert!(drawn.contains(label), "{label}");
    }
    // What comes after divergence does not flatten what came before.
    let mut diverged = synthetic("diverged", 1, 60, &[], false);
    for row in diverged.rows.iter_mut().filter(|row| row.action == Action::Update) {
        row.learning_rate = Some(libm::pow(10.0, row.step as f64 / 15.0 - 5.0));
        row.loss = row.loss.map(|loss| if row.step < 50 { loss } else { loss * 1e18 });
    }
    let drawn = svg(&[diverged.clone()], &options);
    assert!(drawn.contains(" above, max ") && !drawn.contains("e17\n"), "{drawn}");
    assert!(
        svg(&[diverged.clone()], &PlotOptions::default()).contains("e18\n"),
        "over the steps all is in the frame"
    );
    // A loss that rises at once would leave nothing to see.
    let mut at_once = diverged;
    for row in at_once.rows.iter_mut() {
        row.loss = row.loss.map(|_| 3.0 + row.step as f64);
    }
    let drawn = svg(&[at_once], &options);
    assert!(drawn.contains("\n60\n") && !drawn.contains("max 62"), "{drawn}");
    let mut lost = synthetic("lost", 1, 60, &[], false);
    assert!(!lost.has_lost_validation());
    lost.rows.iter_mut().rev().find(|row| row.val_loss.is_some()).expect("it is validated").val_loss =
        Some(f64::NAN);
    let both = [synthetic("kept", 2, 60, &[], false), lost];
    assert_eq!(svg(&both, &PlotOptions::default()).matches("(validation NaN)").count(), 1);
    let cosine = synthetic("cosine", 1, 60, &[], false);
    let mut constant = synthetic("constant", 1, 60, &[], false);
    constant.rows.iter_mut().for_each(|row| row.learning_rate = row.learning_rate.map(|_| 1e-3));
    for run in [cosine, constant] {
        let error = figure::draw(&[run], &options).unwrap_err().to_string();
        assert!(error.contains("has no learning rates that rise") && error.contains("--x step"), "{error}");
    }
}

#[test]
fn tokens_need_a_run_that_tells_them() {
    let options = PlotOptions { x: XAxis::Tokens, ..PlotOptions::default() };
    assert!(svg(&[synthetic("a", 1, 60, &[], false)], &options).contains("training tokens"));
    let log = RunData { has_tokens: false, ..synthetic("log", 1, 60, &[], false) };
    let error = figure::draw(&[log], &options).unwrap_err().to_string();
    assert!(error.contains("`log`") && error.contains("--x step"), "{error}");
    assert!(matches!(figure::draw(&[], &options), Err(ReportError::NoRuns)));
    let sizeless = RunData { model: None, ..synthetic("old", 1, 60, &[], false) };
    let error = figure::draw(&[sizeless], &PlotOptions { x: XAxis::Flops, ..options.clone() })
        .unwrap_err()
        .to_string();
    assert!(error.contains("`old`") && error.contains("FLOPs"), "{error}");
    let mut timeless = synthetic("fast", 1, 60, &[], false);
    timeless.rows.iter_mut().for_each(|row| row.step_ms = None);
    let error =
        figure::draw(&[timeless], &PlotOptions { x: XAxis::Hours, ..options }).unwrap_err().to_string();
    assert!(error.contains("`fast`") && error.contains("time"), "{error}");
}

#[test]
fn runs_with_next_to_nothing_in_them_still_draw() {
    let one_row = |row: MetricsRow| RunData {
        name: "x".into(),
        rows: vec![row],
        has_tokens: true,
        model: None,
        folder: None,
        unverified: None,
        failed: None,
    };
    let empty = MetricsRow::new(0, 0, Action::Evaluate);
    for row in [
        empty.clone(),
        MetricsRow { val_loss: Some(4.0), ..empty.clone() },
        MetricsRow { loss: Some(f64::NAN), action: Action::SkipNonfinite, ..empty.clone() },
        MetricsRow {
            loss: Some(0.0),
            grad_norm: Some(0.0),
            learning_rate: Some(0.0),
            action: Action::Update,
            ..empty
        },
    ] {
        for (log_x, log_y) in [(false, false), (false, true), (true, true)] {
            let options = PlotOptions { log_x, log_y, ..PlotOptions::default() };
            let run = one_row(row.clone());
            let drawn = svg(std::slice::from_ref(&run), &options);
            assert!(!drawn.contains("NaN") && !drawn.contains("inf\"") && drawn.contains("Loss"), "{row:?}");
            assert!(!figure::charts(&[run], &options).unwrap().is_empty());
        }
    }
}

#[test]
fn baselines_are_chosen_by_hand_where_the_run_does_not_tell_its_size() {
    let log = RunData { model: None, has_tokens: false, ..synthetic("log_gpt2", 1, 60, &[], true) };
    let chosen = |sizes: &[Size]| {
        svg(
            std::slice::from_ref(&log),
            &PlotOptions { baselines: Baselines::Chosen(sizes.to_vec()), ..PlotOptions::default() },
        )
    };
    assert!(!chosen(&[]).contains("GPT-"));
    assert!(chosen(&[Size::M1558]).contains("GPT-2 1558M: loss on FineWeb 2.831, HellaSwag 0.489"));
    let all = chosen(&[Size::M124, Size::M350, Size::M774, Size::M1558]);
    assert!(
        ["GPT-2 124M", "GPT-2 350M", "GPT-2 774M", "GPT-2 1558M", "GPT-3 1.3B"]
            .iter()
            .all(|name| all.contains(name))
    );
}

/// The page of the report shows light pictures dark by its style sheet: no colour may lack a rule.
#[test]
fn every_colour_of_a_lone_runs_picture_has_a_dark_one() {
    let mut run = synthetic("golden", 1, 40, &[12, 20, 30], true);
    run.rows[25].events = vec!["resume".to_owned(), "drift".to_owned(), "rewind".to_owned()];
    let rules = theme::dark_rules(".plot");
    for (kind, chart) in figure::charts(&[run], &PlotOptions::default()).unwrap() {
        let drawn = chart.to_svg().unwrap();
        for piece in drawn.split("=\"#").skip(1) {
            assert!(
                rules.contains(&format!("=\"#{}\"]", &piece[..6])),
                "{kind:?}: #{} has no dark colour",
                &piece[..6]
            );
        }
    }
}

/// Pictures to inspect: `RUNNER_PLOT_DIR=/tmp/plots cargo test --release --lib report -- --ignored`.
#[test]
#[ignore = "writes pictures for the eye"]
fn gallery() {
    let folder = PathBuf::from(std::env::var_os("RUNNER_PLOT_DIR").expect("RUNNER_PLOT_DIR says where"));
    let mut small = synthetic("quickstart", 1, 300, &[100, 150, 200], false);
    small.rows[180].events.push("resume".to_owned());
    let large = synthetic("gpt2_124m", 0, 32_000, &[9_000, 9_001, 20_000, 27_000], true);
    let three: Vec<RunData> = (0..3)
        .map(|seed| {
            synthetic(
                ["baseline", "wider batch", "no guards"][seed as usize],
                3 * seed,
                19_560,
                &[8_000 + 999 * seed],
                true,
            )
        })
        .collect();
    let draw = |name: &str, runs: &[RunData], options: PlotOptions| {
        plot_runs(runs, &options, &folder.join(format!("{name}.png"))).unwrap();
    };
    let of = |x: XAxis| PlotOptions { x, ..PlotOptions::default() };
    let dark = || PlotOptions { theme: Theme::Dark, ..PlotOptions::default() };
    small.rows[220].events.push("rewind".to_owned());
    draw("small", std::slice::from_ref(&small), PlotOptions::default());
    draw("small_dark", std::slice::from_ref(&small), dark());
    draw("large", std::slice::from_ref(&large), PlotOptions::default());
    draw("large_dark", std::slice::from_ref(&large), dark());
    let sizes = vec![Size::M124, Size::M350, Size::M774, Size::M1558];
    draw(
        "large_all",
        std::slice::from_ref(&large),
        PlotOptions { baselines: Baselines::Chosen(sizes), ..PlotOptions::default() },
    );
    draw("log_tokens", &[large], PlotOptions { log_y: true, smooth: Some(200), ..of(XAxis::Tokens) });
    draw("three", &three, PlotOptions::default());
    draw("three_dark_hours", &three, PlotOptions { x: XAxis::Hours, ..dark() });
    let lengths = [
        three[0].clone(),
        synthetic("a tenth", 1, 1_956, &[700], true),
        synthetic("the start", 2, 120, &[], true),
    ];
    draw("lengths", &lengths, PlotOptions::default());
    draw("lengths_log", &lengths, PlotOptions { log_x: true, log_y: true, ..of(XAxis::Flops) });
    draw("log_steps", &[small.clone()], PlotOptions { log_x: true, ..PlotOptions::default() });
    let many: Vec<RunData> = (0..9)
        .map(|at| synthetic(&format!("depth sweep, run number {at}"), at, 4_000, &[], at % 2 == 0))
        .collect();
    draw("many", &many, PlotOptions::default());
    let group = |name: &str, seeds: std::ops::Range<u64>, hellaswag: bool| PlotGroup {
        name: name.to_owned(),
        runs: seeds.map(|seed| synthetic(name, seed, 2_000, &[], hellaswag)).collect(),
        failed: 0,
    };
    let groups = [
        group("schedule.learning_rate = 0.0003", 0..3, true),
        group("schedule.learning_rate = 0.001", 3..5, true),
        group("schedule.learning_rate = 0.003", 5..6, true),
    ];
    let ten: Vec<PlotGroup> =
        (0..10).map(|at| group(&format!("seed group {at}"), at..at + 10, false)).collect();
    for (name, groups, options) in [
        ("groups", &groups[..], PlotOptions::default()),
        ("groups_dark_hours", &groups[..], PlotOptions { x: XAxis::Hours, ..dark() }),
        ("groups_log", &groups[..1], PlotOptions { log_x: true, log_y: true, ..of(XAxis::Tokens) }),
        ("groups_hundred_runs", &ten[..], PlotOptions::default()),
    ] {
        let scene = figure::draw_groups(groups, &options).unwrap();
        crate::store::atomic::write(&folder.join(format!("{name}.png")), &scene.to_png().unwrap()).unwrap();
    }
    for (kind, chart) in figure::charts(&[small], &PlotOptions::default()).unwrap() {
        crate::store::atomic::write(&folder.join(format!("chart_{kind:?}.png")), &chart.to_png().unwrap())
            .unwrap();
    }
}
