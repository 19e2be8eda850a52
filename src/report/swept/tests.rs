//! Pictures of made-up sweeps.

use super::*;
use crate::report::compare::{LeftOutRun, Measure};
use crate::report::figures::Figures;
use crate::report::groups::{RunKeys, SEED};
use crate::store::metrics::MetricsRow;

/// Runs with these values of two keys and a seed; the loss is lowest in the middle.
fn sweep(across: &[&str], up: &[&str], seeds: u64) -> Vec<ComparedRun> {
    let mut runs = Vec::new();
    for (x, rate) in across.iter().enumerate() {
        for (y, decay) in up.iter().enumerate() {
            for seed in 0..seeds {
                let of = |at: usize, n: usize| at as f64 - n as f64 / 2.4;
                let loss = 3.0
                    + 0.02 * of(x, across.len()) * of(x, across.len())
                    + 0.01 * of(y, up.len()) * of(y, up.len())
                    + 0.013 * ((seed * 7 + x as u64 * 3 + y as u64) % 5) as f64;
                let mut run = ComparedRun::made_up(rate, seed, &[], loss);
                run.keys = keys(rate, decay, &seed.to_string());
                run.root = Some(format!("{x} {y} {seed}"));
                runs.push(run);
            }
        }
    }
    runs
}

fn keys(rate: &str, decay: &str, seed: &str) -> RunKeys {
    RunKeys::made_up(&[("schedule.learning_rate", rate), ("optimizer.weight_decay", decay), (SEED, seed)])
}

fn failed(rate: &str, decay: &str) -> LeftOutRun {
    LeftOutRun { run: "f".into(), why: "diverged".into(), failed: true, keys: Some(keys(rate, decay, "9")) }
}

fn of(runs: Vec<ComparedRun>, left_out: Vec<LeftOutRun>, by: &[&str]) -> ComparedRuns {
    let by: Vec<String> = by.iter().map(|key| (*key).to_owned()).collect();
    ComparedRuns::group(runs, left_out, Some(&by), Measure::ValLoss, Vec::new())
}

const RATE: &str = "schedule.learning_rate";
const DECAY: &str = "optimizer.weight_decay";
const RATES: [&str; 5] = ["0.0001", "0.0003", "0.001", "0.003", "0.01"];

fn svg(runs: &ComparedRuns) -> String {
    draw(runs, Theme::Light).unwrap().to_svg().unwrap()
}

#[test]
fn an_axis_is_logarithmic_beyond_a_decade_and_text_has_equal_steps() {
    let drawn = |rates: &[&str]| svg(&of(sweep(rates, &["0.1"], 3), Vec::new(), &[RATE]));
    assert!(drawn(&RATES).contains("schedule.learning_rate, log scale"));
    let linear = drawn(&["0.001", "0.002", "0.01"]);
    assert!(linear.contains("schedule.learning_rate") && !linear.contains("log scale"));
    let words = drawn(&["cosine", "linear", "0.1"]);
    assert!(words.contains("cosine") && words.contains("linear") && !words.contains("log scale"));
}

#[test]
fn what_a_bar_means_is_said_and_failed_runs_are_marked_where_they_were() {
    let of_seeds = |seeds| svg(&of(sweep(&RATES, &["0.1"], seeds), Vec::new(), &[RATE]));
    assert!(of_seeds(3).contains("mean with its 95 % interval"));
    assert!(of_seeds(2).contains("mean with the range of the two runs"));
    assert!(!of_seeds(1).contains("mean with"));
    let all_failed = svg(&of(sweep(&RATES, &["0.1"], 1), vec![failed("0.1", "0.1")], &[RATE]));
    assert!(all_failed.contains("failed (1 run)") && all_failed.contains("0.1"), "the axis has the value");
    let two_kinds = svg(&of(sweep(&RATES, &["0.0", "0.1"], 2), Vec::new(), &[RATE]));
    assert!(two_kinds.contains("optimizer.weight_decay = 0.1"));
}

#[test]
fn points_stand_at_their_value_and_kinds_that_share_one_within_half_the_way_to_the_next() {
    let alone = [vec![2, 0, 0], vec![0, 2, 0], vec![0, 0, 2]];
    assert_eq!(lines::shifts(&alone, &[100.0, 400.0, 1000.0]), vec![vec![0.0; 3]; 3]);
    let one_run_each = [vec![1, 1], vec![1, 1]];
    assert_eq!(lines::shifts(&one_run_each, &[100.0, 400.0]), vec![vec![0.0; 2]; 2]);
    let both = [vec![3, 1, 0], vec![2, 0, 1], vec![0, 0, 1]];
    let expected = vec![vec![-8.0, 0.0, 0.0], vec![8.0, 0.0, 0.0], vec![0.0; 3]];
    assert_eq!(lines::shifts(&both, &[100.0, 400.0, 1000.0]), expected);
    let near = lines::shifts(&[vec![2, 2], vec![2, 2]], &[100.0, 110.0]);
    assert_eq!(near, [[-4.0; 2], [4.0; 2]], "of ten pixels, less than five");
    let said = "schedule.learning_rate, log scale; kinds of one value side by side";
    let of_kinds = |up: &[&str]| svg(&of(sweep(&RATES, up, 2), Vec::new(), &[RATE]));
    assert!(of_kinds(&["0.0", "0.1"]).contains(said) && !of_kinds(&["0.1"]).contains("side by side"));
}

#[test]
fn a_heat_map_has_the_mean_in_every_cell() {
    let runs = of(sweep(&RATES, &["0.0", "0.1"], 2), vec![failed("0.1", "0.1")], &[RATE, DECAY]);
    let drawn = svg(&runs);
    for group in &runs.groups {
        let losses: Vec<f64> = group.runs.iter().map(|run| run.val_loss).collect();
        let text = format!("{:.4}", crate::report::statistics::mean(&losses).unwrap());
        assert!(drawn.contains(&text), "{text}");
    }
    assert!(drawn.contains("n = 2") && drawn.contains("× failed (1)"));
}

#[test]
fn one_run_and_a_hundred_have_a_picture_and_equal_runs_equal_bytes() {
    let many: Vec<String> = (1..=10).map(|at| format!("{}", f64::from(at) / 1000.0)).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for by in [&[RATE][..], &[RATE, DECAY]] {
        for runs in [sweep(&["0.1"], &["0.1"], 1), sweep(&many, &many, 1)] {
            for theme in [Theme::Light, Theme::Dark] {
                let runs = of(runs.clone(), Vec::new(), by);
                let drawn = draw(&runs, theme).unwrap().to_svg().unwrap();
                assert_eq!(drawn, draw(&runs, theme).unwrap().to_svg().unwrap());
                assert!(!drawn.contains("NaN") && !drawn.contains("inf"), "{by:?}");
            }
        }
    }
    let error = draw(&of(Vec::new(), Vec::new(), &[RATE]), Theme::Light).unwrap_err().to_string();
    assert!(error.contains("none of these runs can be compared"), "{error}");
}

/// Compares with the committed pictures; `RUNNER_BLESS=1` writes them again after an intended change.
#[test]
fn pictures_of_sweeps_are_the_committed_ones_to_the_byte() {
    let left_out = || vec![failed("0.01", "0.1")];
    for (name, runs) in [
        ("sweep", of(sweep(&RATES[..4], &["0.0", "0.1"], 3), left_out(), &[RATE])),
        ("sweep_heat_map", of(sweep(&RATES[..4], &["0.0", "0.1"], 2), left_out(), &[RATE, DECAY])),
    ] {
        crate::report::tests::assert_golden(name, &svg(&runs));
    }
}

/// Pictures to inspect: `RUNNER_PLOT_DIR=/tmp/plots cargo test --release --lib swept -- --ignored`.
#[test]
#[ignore = "writes pictures for the eye"]
fn sweep_gallery() {
    let folder = PathBuf::from(std::env::var_os("RUNNER_PLOT_DIR").expect("RUNNER_PLOT_DIR says where"));
    let write = |name: &str, runs: &ComparedRuns, theme| {
        plot(runs, theme, &folder.join(format!("{name}.png"))).unwrap();
    };
    let many: Vec<String> = (1..=10).map(|at| format!("{}", f64::from(at) / 1000.0)).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let some_failed = || vec![failed("0.01", "0.1"), failed("0.03", "0.1"), failed("0.03", "0.0")];
    write("line_3_seeds", &of(sweep(&RATES, &["0.1"], 3), some_failed(), &[RATE]), Theme::Light);
    write("line_kinds", &of(sweep(&RATES, &["0.0", "0.1", "0.2"], 2), Vec::new(), &[RATE]), Theme::Dark);
    write("line_one", &of(sweep(&["0.1"], &["0.1"], 1), Vec::new(), &[RATE]), Theme::Light);
    write("line_hundred", &of(sweep(&many, &["0.1"], 10), Vec::new(), &[RATE]), Theme::Light);
    write("line_hundred_kinds", &of(sweep(&many, &many, 1), Vec::new(), &[RATE]), Theme::Light);
    let words = ["cosine", "linear", "constant", "wsd"];
    write("line_words", &of(sweep(&words, &["0.1"], 2), Vec::new(), &[RATE]), Theme::Light);
    let fine: Vec<String> =
        (0..100).map(|at| format!("{:.6}", libm::pow(10.0, -4.0 + at as f64 / 50.0))).collect();
    let fine: Vec<&str> = fine.iter().map(String::as_str).collect();
    write("line_fine", &of(sweep(&fine, &["0.1"], 1), Vec::new(), &[RATE]), Theme::Light);
    write("map", &of(sweep(&RATES, &["0.0", "0.1", "0.2"], 3), some_failed(), &[RATE, DECAY]), Theme::Light);
    write("map_dark", &of(sweep(&RATES, &["0.0", "0.1"], 1), Vec::new(), &[RATE, DECAY]), Theme::Dark);
    write("map_one", &of(sweep(&["0.1"], &["0.1"], 1), Vec::new(), &[RATE, DECAY]), Theme::Light);
    write("map_hundred", &of(sweep(&many, &many, 1), Vec::new(), &[RATE, DECAY]), Theme::Light);
    write("map_fine", &of(sweep(&fine, &["0.1"], 1), Vec::new(), &[RATE, DECAY]), Theme::Light);
    write("map_tall", &of(sweep(&["0.1"], &fine[..40], 1), Vec::new(), &[RATE, DECAY]), Theme::Light);
}

#[test]
fn a_heat_map_frames_the_best_and_tells_two_values_apart() {
    let speed = Measure::metric("tokens_per_s").unwrap();
    let drawn = |measure: Measure, values: &[f64]| {
        let mut runs = sweep(&RATES[..values.len()], &["0.1"], 1);
        for (run, value) in runs.iter_mut().zip(values) {
            run.val_loss = *value;
            let row = MetricsRow {
                tokens_per_s: Some(*value),
                ..MetricsRow::new(0, 0, crate::store::metrics::Action::Update)
            };
            run.figures = Figures::of(&[row]);
        }
        let by = [RATE, DECAY].map(str::to_owned);
        svg(&ComparedRuns::group(runs, Vec::new(), Some(&by), measure, Vec::new()))
    };
    let losses = drawn(Measure::ValLoss, &[4.1379, 4.2991]);
    assert!(losses.contains("lowest framed") && !losses.contains('≥'), "both have a colour of their own");
    let cells = |picture: &str| {
        let fills = picture.lines().filter(|line| line.contains("<polygon")).take(3);
        fills.filter_map(|line| line.split("fill=").nth(1).map(str::to_owned)).collect::<Vec<_>>()
    };
    let [first, second] = [1, 2].map(|at| cells(&losses).get(at).cloned());
    assert_ne!(first, second);
    let speeds = drawn(speed, &[21003.019, 24222.59]);
    assert!(speeds.contains("highest framed"));
    assert!(speeds.contains("24223") && !speeds.contains("24222.59"), "no more digits than are read");
}
