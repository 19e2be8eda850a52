//! Comparing and drawing groups of real runs.

use crate::support::{Finished, Lab};

const CI: &str = "experiments/ci.toml";

/// Two learning rates with two seeds each, a run of other tokens, one of another tokenizer and one that was
/// stopped before its end.
fn lab() -> Lab {
    let lab = Lab::new();
    let train = |name: &str, settings: &[&str]| {
        let sets: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
        lab.run(CI, &[&["--name", name][..], &sets].concat()).root();
    };
    for rate in ["1e-3", "2e-3"] {
        for seed in ["1", "2"] {
            let settings = [format!("schedule.learning_rate={rate}"), format!("seed={seed}")];
            train(&format!("r{rate}s{seed}"), &[&settings[0], &settings[1], "eval.every=5"]);
        }
    }
    train("short", &["schedule.steps=10", "seed=1"]);
    train("again", &["schedule.learning_rate=1e-3", "seed=1"]);
    train("bpe", &["data.tokenizer=gpt2", "seed=1"]);
    lab
}

fn compare(lab: &Lab, arguments: &[&str]) -> Finished {
    let runs = lab.path("");
    lab.finish(&[&["compare", "--runs", runs.to_str().expect("UTF-8")], arguments].concat())
}

#[test]
fn groups_of_runs_are_compared_by_seed_and_what_does_not_compare_is_named() {
    let lab = lab();
    let four = ["r1e-3s1", "r1e-3s2", "r2e-3s1", "r2e-3s2"];
    // Two that ended, and then lost their checkpoints to the disk's need.
    for run in &four[..2] {
        std::fs::remove_dir_all(lab.path(run).join("checkpoints")).expect("checkpoints");
    }
    let text = compare(&lab, &four);
    text.assert_says(&["schedule.learning_rate", "2 seeds, paired", "the only comparison", "reached"]);
    assert_eq!(text.stderr, "");

    let all = [&four[..], &["short", "bpe", "again", "r1e-3s1"], &["--json"]].concat();
    let json = compare(&lab, &all);
    let json: serde_json::Value = serde_json::from_str(&json.stdout).expect("JSON");
    let why = |run: &str| {
        let left_out = json["left_out"].as_array().expect("a list");
        left_out.iter().find(|out| out["run"] == run).expect("it is left out")["why"].as_str().expect("text")
    };
    assert!(why("short").contains("10,240") && why("short").contains("5,120 tokens in 10 steps"));
    assert!(why("bpe").contains("tokenizer"), "{}", why("bpe"));
    let notes = json["notes"].to_string();
    assert!(notes.contains("again ended in the bits of r1e-3s1"), "{notes}");
    assert!(notes.contains("r1e-3s1 was named twice"), "{notes}");
    assert_eq!(json["groups"][0]["val_loss"]["n"], 2);
    assert_eq!(json["differences"][0]["method"], "paired");

    // The mean is that of what the metrics say.
    let last = |run: &str| {
        let rows = lab.metrics(run);
        rows[rows.len() - 1]["val_loss"].as_f64().expect("a loss")
    };
    let mean = json["groups"][0]["val_loss"]["mean"].as_f64().expect("a number");
    assert!((mean - (last("r1e-3s1") + last("r1e-3s2")) / 2.0).abs() < 1e-12);

    compare(&lab, &["short", "r1e-3s1", "--by", "schedule.steps"]).assert_says(&[
        "One seed a group: no statement about the difference is possible",
        "groups differ in the tokens that they were trained on, 5,120 to 10,240",
    ]);
    compare(&lab, &["short", "r1e-3s1", "--by", "schedule.step"])
        .assert_fails(2, &["`schedule.step` is no key", "did you mean `schedule.steps`"]);
    compare(&lab, &["r1e-3s1", "--target", "nan"]).assert_fails(2, &["expected a number such as 3.28"]);
    compare(&lab, &["nothing"]).assert_fails(2, &["there is no run in"]);

    // A run that lost its figures, and one whose figures are not its ledger's.
    std::fs::remove_file(lab.path("short/metrics.jsonl")).expect("it is there");
    std::fs::remove_file(lab.path("short/metrics.parquet")).expect("it is there");
    compare(&lab, &["short"]).assert_fails(1, &["none of these runs can be compared", "short: broken"]);
    let path = lab.path("r2e-3s1/metrics.jsonl");
    let text = std::fs::read_to_string(&path).expect("metrics");
    let kept: Vec<&str> = text.lines().filter(|line| !line.starts_with("{\"step\":7,")).collect();
    std::fs::write(&path, kept.join("\n") + "\n").expect("writable");
    let text = compare(&lab, &four);
    assert!(text.stderr.contains("the figures of r2e-3s1 are not verified: "), "{}", text.stderr);
}

#[test]
fn groups_and_swept_keys_are_drawn_with_equal_bytes_again() {
    let lab = lab();
    let runs = lab.path("");
    let plot = |arguments: &[&str], out: &str| {
        let out = lab.path(out);
        let all = [
            "plot",
            "r1e-3s1",
            "r1e-3s2",
            "r2e-3s1",
            "r2e-3s2",
            "bpe",
            "--runs",
            runs.to_str().expect("UTF-8"),
        ];
        let drawn = lab.done(&[&all[..], arguments, &["--out", out.to_str().expect("UTF-8")]].concat());
        (std::fs::read(&out).expect("a picture"), drawn.stderr)
    };
    let by = ["--by", "schedule.learning_rate,data.tokenizer"];
    let (svg, _) = plot(&by, "by.svg");
    assert_eq!(plot(&by, "again.svg").0, svg);
    let svg = String::from_utf8(svg).expect("UTF-8");
    for says in
        ["5 runs in 3 groups", "learning_rate = 0.001, data.tokenizer = byte, n = 2", "range of the two runs"]
    {
        assert!(svg.contains(says), "`{says}` is not in the picture");
    }
    for (keys, says) in [
        ("schedule.learning_rate", "mean with the range of the two runs"),
        ("schedule.learning_rate,seed", "lowest framed"),
    ] {
        let (svg, stderr) = plot(&["--sweep", keys], "sweep.svg");
        assert!(String::from_utf8(svg).expect("UTF-8").contains(says), "{keys}");
        assert!(stderr.contains("bpe is left out: its tokenizer is `gpt2`"), "{stderr}");
        assert!(plot(&["--sweep", keys], "sweep.png").0.starts_with(b"\x89PNG"));
    }
    let refused = |arguments: &[&str], says: &str| {
        let all = ["plot", "r1e-3s1", "r1e-3s2", "--runs", runs.to_str().expect("UTF-8"), "--out", "x.png"];
        let found = lab.finish(&[&all[..], arguments].concat());
        assert!(found.code != Some(0) && found.stderr.contains(says), "{}", found.stderr);
    };
    refused(&["--by", "schedule.stps"], "did you mean `schedule.steps`");
    refused(&["--sweep", "a,b,c"], "takes one key, or two");
    refused(&["--sweep", "seed", "--x", "tokens"], "cannot be used with");
}

#[test]
fn a_metric_is_compared_drawn_and_listed_in_place_of_the_loss() {
    let lab = Lab::new();
    let base = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(CI).display().to_string();
    let file = lab.path("ema.toml");
    let keys = "\"optimizer.ema_decay\" = [0.0, 0.5, 0.9]\nseed = [0, 1, 2]";
    std::fs::write(&file, format!("extends = {base:?}\n[sweep.grid]\n{keys}\n")).expect("writable");
    lab.run(file.to_str().expect("UTF-8"), &["--jobs", "2"]).root();

    let by = ["ema", "--by", "optimizer.ema_decay", "--metric", "ema_val_loss"];
    let text = compare(&lab, &by);
    text.assert_says(&[
        "ema_val_loss (nats a token, lower is better)",
        "ema/001: it has no `ema_val_loss` after its last step",
        "has the lowest mean ema_val_loss",
    ]);
    assert!(!text.stdout.contains("final validation loss") && !text.stdout.contains("to a validation loss"));
    let json = compare(&lab, &[&by[..], &["--json"]].concat()).stdout;
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(
        (json["measure"].as_str(), json["differences"][0]["measure"].as_str()),
        (Some("ema_val_loss"), Some("ema_val_loss"))
    );
    let last = |run: &str| {
        let rows = lab.metrics(run);
        rows[rows.len() - 1]["ema_val_loss"].as_f64().expect("a loss")
    };
    let expected = ["ema/004", "ema/005", "ema/006"].map(last).iter().sum::<f64>() / 3.0;
    let mean = json["groups"][0]["metric"]["mean"].as_f64().expect("a number");
    assert!((mean - expected).abs() < 1e-12, "{mean} {expected}");
    // The weights of all are the same: of them nothing is to be told apart.
    compare(&lab, &by[..3]).assert_says(&["final validation loss", "equal"]);
    compare(&lab, &["ema", "--metric", "ema_loss"])
        .assert_fails(2, &["`ema_loss` is no metric", "did you mean `ema_val_loss`"]);
    compare(&lab, &["ema", "--metric", "tokens_per_s", "--by", "seed"])
        .assert_says(&["highest mean tokens_per_s"]);

    // The row of a member has its name, and the title says that averages are measured.
    let table = lab.verb("eval", "ema", &["--ema", "--task", "val", "--checkpoint", "20"]);
    assert!(
        table.stdout.starts_with("average of") && table.stdout.contains("\nema/004 "),
        "{}",
        table.stdout
    );
    lab.verb("eval", "ema", &["--checkpoint", "20,20"]).assert_fails(2, &["given twice"]);
    // A key by its last part; one key twice is no heat map.
    compare(&lab, &["ema", "--by", "ema_decay", "--metric", "ema_val_loss"])
        .assert_says(&["optimizer.ema_decay = 0.9"]);
    compare(&lab, &["ema", "--by", "every"]).assert_fails(2, &["`every` is the last part of several keys"]);
    let twice = ["--sweep", "seed,seed", "--out", "twice.svg"];
    lab.verb("plot", "ema", &twice).assert_fails(2, &["`--sweep` names `seed` twice"]);

    let out = lab.path("ema.svg");
    let sweep = ["--sweep", "optimizer.ema_decay", "--metric", "ema_val_loss", "--out"];
    let drawn = lab.verb("plot", "ema", &[&sweep[..], &[out.to_str().expect("UTF-8")]].concat());
    assert_eq!(drawn.code, Some(0), "{}", drawn.stderr);
    assert!(std::fs::read_to_string(&out).expect("a picture").contains("ema_val_loss, nats per token"));

    let show = |more: &[&str]| lab.verb("show", "ema", more);
    let columns =
        ["--columns", "seed,ema_decay,ema_val_loss", "--filter", "seed == 1", "--sort", "-ema_val_loss"];
    let shown = show(&columns).stdout;
    let first: Vec<&str> =
        shown.lines().map(|line| line.split_whitespace().next().unwrap_or_default()).collect();
    assert_eq!((first[0], first.len(), first[3]), ("name", 4, "ema/002"), "{shown}");
    assert_eq!(show(&["--csv", "--columns", "val_loss"]).stdout.lines().count(), 10);
    show(&["--group-by", "ema_decay"]).assert_says(&["0.9"]);
    lab.verb("show", "ema/001", &columns[..2]).assert_fails(2, &["is one run", "name a sweep"]);
}
