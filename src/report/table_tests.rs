//! Runs as a table: columns, filters, orders, groups.

use std::path::PathBuf;

use serde_json::json;

use super::super::Figures;
use super::super::listing;
use super::super::summary::State;
use super::*;
use crate::experiment::{self, flatten};
use crate::store::notes::Notes;

const EXPERIMENT: &str = "[model]\ndescriptor = 'd12'\n[data]\ncorpus = 'kjv'\n[schedule]\nsteps = 10\n";

fn run(name: &str, step: u64, val_loss: Option<f64>, state: State) -> RunGlance {
    let rate = if name == "c" { "schedule.learning_rate=3e-3" } else { "schedule.learning_rate=1e-3" };
    let loaded = experiment::load_text(name, EXPERIMENT, &[rate.into(), format!("name={name}")]).unwrap();
    RunGlance {
        name: name.into(),
        folder: PathBuf::from("/nowhere").join(name),
        state,
        why: None,
        model: "d12".into(),
        parameters: Some(1000),
        step,
        steps: Some(10),
        tokens: 64 * step,
        skipped: 0,
        figures: Figures::default().with("val_loss", val_loss),
        last: None,
        unverified: None,
        root: None,
        numerics_id: None,
        device: None,
        settings: flatten(&loaded.experiment),
        notes: Notes::default(),
        odd_notes: None,
    }
}

fn runs() -> Vec<RunGlance> {
    vec![
        run("a", 10, Some(3.4), State::Done),
        run("b", 2, None, State::Broken),
        run("c", 7, Some(3.1), State::Stopped),
    ]
}

fn table() -> RunTable {
    RunTable::of(runs(), &[], &[], None).unwrap()
}

fn named(table: &RunTable) -> Vec<&str> {
    table.runs().map(|run| run.name.as_str()).collect()
}

fn filtered(text: &str) -> Result<Vec<String>, ReportError> {
    let table = table().filter(&Filter::parse(text)?)?;
    Ok(named(&table).into_iter().map(str::to_owned).collect())
}

#[test]
fn sorting_puts_rows_without_a_value_last_in_either_direction() {
    for (by, expected) in [
        ("val_loss", ["c", "a", "b"]),
        ("val_loss:desc", ["a", "c", "b"]),
        ("-val_loss", ["a", "c", "b"]),
        ("step", ["b", "c", "a"]),
        ("-schedule.learning_rate", ["c", "a", "b"]),
    ] {
        assert_eq!(named(&table().sort(&Sort::parse(by).unwrap())), expected, "{by}");
    }
    let mut with_nan = runs();
    with_nan.extend([f64::NAN, -f64::NAN].map(|loss| run("nan", 10, Some(loss), State::Done)));
    for (by, expected) in
        [("val_loss", ["c", "a", "nan", "nan", "b"]), ("-val_loss", ["a", "c", "nan", "nan", "b"])]
    {
        let table = RunTable::of(with_nan.clone(), &[], &[], None).unwrap();
        assert_eq!(named(&table.sort(&Sort::parse(by).unwrap())), expected, "{by}");
    }
    let refused = |by: &str| Sort::parse(by).map(drop).unwrap_err().to_string();
    assert!(refused("loss:up").contains("`asc` or `desc`"));
    assert!(
        refused("lost").contains("did you mean `loss`?") && refused("lost").contains("name, model, state")
    );
}

#[test]
fn filters_compare_numbers_text_and_keys() {
    for (filter, expected) in [
        ("val_loss < 3.3", &["c"][..]),
        ("val_loss>=3.1", &["a", "c"]),
        ("step != 7", &["a", "b"]),
        ("state == 'done'", &["a"]),
        ("state = broken", &["b"]),
        ("name ~ c", &["c"]),
        ("schedule.learning_rate > 1e-3", &["c"]),
        ("learning_rate = 0.001", &["a", "b"]),
        ("tokens < 1,000_000.5", &["a", "b", "c"]),
        ("tokens > -1e3", &["a", "b", "c"]),
        ("optimizer.beta1 < 0.5", &[]),
        ("log.tensorboard = true", &["a", "b", "c"]),
        ("model.init != x", &[]),
        ("data.corpus ~ kj", &["a", "b", "c"]),
    ] {
        assert_eq!(filtered(filter).unwrap_or_else(|error| panic!("{error}")), expected, "{filter}");
    }
    for (bad, says) in [
        ("val_loss", "no filter"),
        ("lost < 3", "no column `lost`"),
        ("step < many", "expected a number"),
        ("val_loss < 4,95", "expected a number such as 4.95"),
        ("val_loss < 4,94", "expected a number"),
        ("val_loss < 5,5", "expected a number"),
        ("val_loss < ,500", "expected a number"),
        ("learning_rate = 0,0030", "expected a number"),
        ("learning_rate = 0,003", "expected a number"),
        ("val_loss < 4.950,5", "expected a number"),
        ("step < 1,,000", "expected a number"),
        ("step ~ 1", "`~` is for text"),
        ("model.bias ~ true", "`==` or `!=`, for `~` is for text"),
        ("every > 3", "eval.every or sample.every or checkpoint.every or log.every"),
        ("log.tensorboard = yes", "`true` or `false`"),
    ] {
        let error = filtered(bad).unwrap_err().to_string();
        assert!(error.contains(says), "{bad}: {error}");
    }
}

#[test]
fn csv_has_a_header_and_empty_fields_for_what_is_not_there() {
    let csv = table().to_csv(&columns());
    let header: Vec<&str> = columns().iter().map(|column| column.name).collect();
    assert_eq!(csv.lines().next().unwrap(), header.join(","));
    assert_eq!(csv.lines().nth(2).unwrap(), "b,d12,broken,2,10,128,,,,,,,,,,0,,1000,");
}

#[test]
fn a_note_is_one_line_of_csv_without_control_characters() {
    let mut all = runs();
    all.truncate(1);
    all[0].notes.notes = vec!["red\u{1b}[31m\r\nsays \"no\", and\u{9b}2J".into()];
    let chosen = ["name", "note"].map(|name| TableColumn::find(name).unwrap());
    let csv = RunTable::of(all, &[], &[], None).unwrap().to_csv(&chosen);
    let note = "red\u{fffd}[31m\u{fffd} says \"\"no\"\", and\u{fffd}2J";
    assert_eq!(csv, format!("name,note\na,\"{note}\"\n"));
}

#[test]
fn what_differs_between_runs_are_the_keys_with_more_than_one_value() {
    let names = |table: RunTable| table.differing().iter().map(|column| column.name).collect::<Vec<_>>();
    assert_eq!(names(table()), ["schedule.learning_rate"]);
    assert_eq!(names(table().filter(&Filter::parse("name != c").unwrap()).unwrap()), [""; 0]);
}

#[test]
fn a_group_has_the_mean_of_its_numbers_and_the_value_that_all_share() {
    let mut all = runs();
    all[1] = run("b", 9, None, State::Done);
    let table = RunTable::of(all, &[], &[], None).unwrap();
    let column = |name: &str| TableColumn::find(name).unwrap();
    let by = column("learning_rate");
    let groups = table.groups(&by);
    let values: Vec<&TableCell> = groups.iter().map(|group| &group.value).collect();
    assert_eq!(values, [&TableCell::Number(1e-3), &TableCell::Number(3e-3)]);
    assert_eq!(groups[0].cell(&column("step")), (TableCell::Number(9.5), 2));
    assert_eq!(groups[0].cell(&column("val_loss")), (TableCell::Number(3.4), 1), "of those that have one");
    assert_eq!(groups[0].cell(&column("model")), (TableCell::Text("d12".into()), 2));
    assert_eq!(groups[0].cell(&column("name")), (TableCell::Text("2 values".into()), 2));
    let json = groups[0].to_json(&by, &[column("step"), column("val_loss")]);
    let expected = json!({
        "schedule.learning_rate": 1e-3,
        "runs": ["a", "b"],
        "failed": [],
        "unfinished": [],
        "counted": ["a", "b"],
        "step": 9.5,
        "val_loss": 3.4,
        "measured": {"step": 2, "val_loss": 1},
    });
    assert_eq!(json, expected);
    let text = listing::groups(&table, &by, None, None);
    let first: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(first[..4], ["0.001", "2", "0", "9.5"], "{text}");
    assert!(text.contains(" 3.4000 (1 of 2) "), "{text}");
}

#[test]
fn the_listing_fits_the_width_and_tells_why_a_run_is_broken() {
    let long = RunGlance {
        name: "gpt2_33b_a_rather_long_name_for_a_run".into(),
        root: Some("91e07c9d8ec24ba4e0274008b40c2943".into()),
        figures: Figures::default().with("tokens_per_s", Some(419_137.6)),
        ..run("a", 31_000, None, State::Running)
    };
    let broken = RunGlance { why: Some("`x` line 1: cut short".into()), ..run("b", 2, None, State::Broken) };
    let table = RunTable::of(vec![long, broken], &[], &[], None).unwrap();
    for width in [20, 30, 40, 60, 80, 100, 200] {
        let text = listing::table(&table, None, Some(width));
        assert!(text.lines().take(3).all(|line| line.chars().count() <= width), "{width}:\n{text}");
        assert!(text.ends_with("b is broken: `x` line 1: cut short\n"), "{text}");
    }
    let text = listing::table(&table, None, Some(20));
    assert_eq!(text.lines().next().unwrap().split_whitespace().collect::<Vec<_>>(), ["name", "state"]);
    let text = listing::table(&table, None, Some(40));
    assert!(text.contains("gpt2_") && text.contains("…") && text.contains("a_run "), "{text}");
    let text = listing::table(&table, None, None);
    let says = ["gpt2_33b_a_rather_long_name_for_a_run", "91e07c9d", "tok/s", "419,138", "31000/10", "disk"];
    assert!(says.iter().all(|says| text.contains(says)), "{text}");
    let chosen = ["name", "learning_rate", "tokens"].map(|name| TableColumn::find(name).unwrap());
    let text = listing::table(&table, Some(&chosen), Some(200));
    let second = text.lines().nth(2).unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!(second, ["b", "0.001", "128"], "{text}");
    assert_eq!(listing::table(&RunTable::of(Vec::new(), &[], &[], None).unwrap(), None, Some(80)), "");
}

#[test]
fn a_run_that_failed_is_in_no_mean_of_its_group_and_is_counted_beside_it() {
    let mut all = runs();
    for (run, val_loss) in all.iter_mut().zip([3.4, 3.2, f64::NAN]) {
        run.figures = Figures::default().with("val_loss", Some(val_loss));
    }
    all[1].state = State::Done;
    all[2].why = Some("diverged".into());
    let table = RunTable::of(all, &[], &[], None).unwrap();
    let val_loss = TableColumn::find("val_loss").unwrap();
    let groups = |by: &str| {
        let by = TableColumn::find(by).unwrap();
        let json = |group: &TableGroup<'_>| group.to_json(&by, &[val_loss]);
        (table.groups(&by).iter().map(json).collect::<Vec<_>>(), listing::groups(&table, &by, None, None))
    };
    let (json, text) = groups("model");
    assert_eq!(json[0]["val_loss"], (3.4 + 3.2) / 2.0);
    assert_eq!((&json[0]["runs"], &json[0]["failed"]), (&json!(["a", "b", "c"]), &json!(["c"])));
    assert!(text.starts_with("model  runs  failed  step"), "{text}");
    assert!(text.contains("that are done\n"), "{text}");
    let (json, text) = groups("schedule.learning_rate");
    assert_eq!((&json[1]["failed"], &json[1]["val_loss"]), (&json!(["c"]), &json!(null)));
    assert!(text.contains(" NaN "), "of a group without another:\n{text}");
    assert!(text.contains("of schedule.learning_rate 0.003 no run is done: its numbers are of"), "{text}");
    assert!(json[1]["val_loss_bits"].as_str().unwrap().starts_with("0x"), "{}", json[1]);
    assert_eq!(json[0].get("val_loss_bits"), None);
}

#[test]
fn a_run_that_is_unfinished_is_in_no_mean_of_its_group_unless_all_are() {
    let mut all = runs();
    all[1] = run("b", 2, Some(9.0), State::Running);
    let table = RunTable::of(all, &[], &[], None).unwrap();
    let val_loss = TableColumn::find("val_loss").unwrap();
    let by = TableColumn::find("learning_rate").unwrap();
    let groups = table.groups(&by);
    assert_eq!(groups[0].cell(&val_loss), (TableCell::Number(3.4), 1));
    assert_eq!(groups[0].to_json(&by, &[])["unfinished"], json!(["b"]));
    assert!(groups[0].is_final() && !groups[1].is_final());
    assert_eq!(groups[1].cell(&val_loss), (TableCell::Number(3.1), 1), "it has no other");
    assert_eq!(groups[1].to_json(&by, &[])["counted"], json!(["c"]));
    let text = listing::groups(&table, &by, None, None);
    assert!(text.starts_with("schedule.learning_rate  runs  unfinished  step"), "{text}");
    assert!(text.contains("that are done\n"), "{text}");
    let marked = "of schedule.learning_rate 0.003 no run is done: its numbers are of the runs that are \
                  unfinished, and not final\n";
    assert!(text.contains(marked), "{text}");
}

#[test]
fn a_state_that_no_run_can_have_is_refused_with_those_there_are() {
    let refused = filtered("state == diverged").unwrap_err().to_string();
    assert!(refused.contains("running, done, stopped, broken") && refused.contains("why ~ diverged"));
    assert!(filtered("state ~ do").is_ok());
}

#[test]
fn a_key_of_a_source_that_no_run_has_is_refused() {
    let refused = |runs: Vec<RunGlance>, column: &str| {
        let column = TableColumn::find(column).unwrap();
        RunTable::of(runs, &[column], &[], None).err().map(|error| error.to_string())
    };
    let weight = "data.mix.web.weight";
    assert!(refused(runs(), weight).unwrap().contains("none of them has `data.mix`"));
    assert_eq!(refused(Vec::new(), weight), None, "there is nothing to know of");
    let mut mixed = runs();
    mixed[0].settings.insert("data.mix.webs.weight".into(), json!(1.0));
    assert_eq!(
        refused(mixed.clone(), weight).unwrap(),
        "no run has the key `data.mix.web.weight`\n  hint: did you mean `data.mix.webs.weight`?"
    );
    assert_eq!(refused(mixed, "data.mix.webs.weight"), None);
    let unknown = TableColumn::find("data.mix.web.wieght").err().unwrap().to_string();
    assert!(unknown.contains("is `data.mix.NAME.weight` or another key of a source"), "{unknown}");
}
