//! What a person sees of runs without training: plan, show, watch, completions.

use crate::support::Lab;

const CI: &str = "experiments/ci.toml";

#[test]
fn a_plan_needs_neither_gpu_nor_data_and_is_json_for_machines() {
    let lab = Lab::new();
    let plan =
        lab.done(&["plan", "experiments/gpt2_33b.toml", "--gpu", "h100", "--gpus", "8", "--json"]).stdout;
    let plan: serde_json::Value = serde_json::from_str(&plan).expect("JSON");
    assert_eq!(plan["model"]["parameters"], 1_557_686_400u64);
    assert_eq!(plan["memory"]["fits"], true);
    let days = plan["time"]["reference"]["total_s"].as_f64().expect("a number") / 86_400.0;
    assert!((days - 1.0).abs() < 0.04, "{days}");
    lab.finish(&["plan", CI, "--gpu", "h9000"]).assert_fails(2, &["no GPU is known as `h9000`"]);
    lab.finish(&["plan", "experiments/gpt2_33b.toml", "--gpu", "h100", "--gpus", "3"])
        .assert_fails(2, &["power of two"]);
    for gpus in ["131072", "9223372036854775808", "0"] {
        lab.finish(&["plan", CI, "--gpu", "h100", "--gpus", gpus])
            .assert_fails(2, &["expected a power of two, at most 65,536"]);
    }
    let dear = lab.done(&[
        "plan",
        "experiments/gpt2_124m.toml",
        "--gpu",
        "h100",
        "--set",
        "plan.dollars_per_gpu_hour=100",
    ]);
    assert!(dear.stdout.contains("at $100.00 an hour"), "{}", dear.stdout);
}

#[test]
fn show_lists_runs_sorts_filters_and_tells_why_one_is_broken() {
    let lab = Lab::new();
    lab.run(CI, &[]).root();
    lab.run(CI, &["--name", "short", "--set", "schedule.steps=5", "--set", "schedule.warmup_steps=1"]).root();
    lab.run(CI, &["--name", "bad"]).root();
    std::fs::remove_file(lab.path("bad/checkpoints/step_00000020/state.safetensors")).expect("it is there");
    let runs = lab.path("");
    let show = |arguments: &[&str]| {
        let runs = runs.to_str().expect("UTF-8");
        lab.done(&[&["show", "--runs", runs], arguments].concat()).stdout
    };
    let text = show(&[]);
    assert!(text.lines().any(|line| line.starts_with("ci ") && line.contains("done")), "{text}");
    assert!(text.contains("bad is broken: ") && text.contains("state.safetensors` is missing"), "{text}");
    let csv = show(&["--csv", "--sort", "step:desc", "--filter", "state == done"]);
    let names: Vec<&str> = csv.lines().skip(1).filter_map(|line| line.split(',').next()).collect();
    assert_eq!(names, ["ci", "short"]);
    let json: serde_json::Value = serde_json::from_str(&show(&["ci", "--json"])).expect("JSON");
    assert_eq!(json["root"], include_str!("../golden/ci_cpu.root").trim());
    assert_eq!(json["checkpoints"].as_array().expect("a list").len(), 4);
    assert!(show(&["ci"]).contains("20 of 20"));
}

#[test]
fn watching_without_a_terminal_prints_a_summary_and_ends() {
    let lab = Lab::new();
    lab.run(CI, &[]).root();
    let text = lab.verb("watch", "ci", &[]);
    assert_eq!(text.code, Some(0), "{}", text.stderr);
    assert!(text.stdout.contains("ci, done") && text.stdout.contains("val loss"), "{}", text.stdout);
}

#[test]
fn help_completions_and_the_manual_know_every_verb() {
    let lab = Lab::new();
    let help = lab.done(&["help"]).stdout;
    let bash = lab.done(&["completions", "bash"]).stdout;
    let man = lab.done(&["man"]).stdout;
    for verb in ["run", "resume", "plan", "show", "watch", "verify", "export", "completions"] {
        assert!(help.contains(&format!("  {verb} ")), "`{verb}` is not in:\n{help}");
        assert!(bash.contains(verb) && man.contains(verb), "{verb}");
    }
    assert!(man.starts_with(".ie") || man.contains(".TH runner 1"), "{man}");
    assert!(lab.done(&["help", "run"]).stdout.contains("Examples:"));
}
