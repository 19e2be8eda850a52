//! Comparisons of made-up runs. The expected numbers are SciPy's (`ttest_rel`, `ttest_ind` with
//! `equal_var=False`), computed apart.

use proptest::prelude::*;

use super::*;

fn compare(runs: Vec<ComparedRun>, by: Option<&[String]>) -> Comparison {
    Comparison::of(&ComparedRuns::group(runs, Vec::new(), by, Measure::ValLoss, Vec::new()), None).unwrap()
}

fn runs(groups: &[(&str, &[(u64, f64)])]) -> Vec<ComparedRun> {
    let of = |(rate, values): &(&str, &[(u64, f64)])| -> Vec<ComparedRun> {
        values.iter().map(|(seed, loss)| ComparedRun::made_up(rate, *seed, &[5.0, 4.0], *loss)).collect()
    };
    groups.iter().flat_map(of).collect()
}

const THREE_SEEDS: [(&str, &[(u64, f64)]); 2] =
    [("0.001", &[(0, 3.1233), (1, 3.1321), (2, 3.1288)]), ("0.01", &[(0, 3.0968), (1, 3.1200), (2, 3.1071)])];

fn final_losses(comparison: &Comparison) -> Vec<&GroupDifference> {
    comparison.of_measure(Measure::ValLoss).collect()
}

#[test]
fn runs_that_differ_in_the_seed_are_a_group_and_are_paired_by_it() {
    let comparison = compare(runs(&THREE_SEEDS), None);
    assert_eq!(comparison.by, ["schedule.learning_rate"]);
    assert_eq!(comparison.groups[0].val_loss.n, 3);
    let [difference] = final_losses(&comparison)[..] else { panic!("one pair of groups") };
    assert_eq!((difference.method, difference.n), (TestMethod::Paired, [3, 3]));
    let test = difference.test.as_ref().unwrap();
    // ttest_rel([3.1233, 3.1321, 3.1288], [3.0968, 3.1200, 3.1071])
    assert!((test.t - 4.7481787).abs() < 1e-6 && (test.p - 0.04160672).abs() < 1e-7, "{test:?}");
    assert_eq!((difference.p_holm, difference.comparisons), (Some(test.p), 1));
    let verdict = comparison.verdict.join(" ");
    for says in ["schedule.learning_rate = 0.01 has the lowest", "With 3 seeds each, paired", "p = 0.042"] {
        assert!(verdict.contains(says), "`{says}` is not in: {verdict}");
    }
}

#[test]
fn without_common_seeds_both_groups_count_by_themselves() {
    let comparison = compare(
        runs(&[
            ("0.001", &[(0, 3.1233), (1, 3.1321), (2, 3.1288)]),
            ("0.01", &[(3, 3.0968), (4, 3.1200), (5, 3.1071)]),
        ]),
        None,
    );
    let difference = final_losses(&comparison)[0];
    assert_eq!((difference.method, difference.n), (TestMethod::Welch, [3, 3]));
    let test = difference.test.as_ref().unwrap();
    // ttest_ind of the same with equal_var=False
    assert!((test.p - 0.08104968).abs() < 1e-7 && (test.df - 2.5727924).abs() < 1e-6, "{test:?}");
    assert!(
        comparison.verdict.join(" ").contains("no difference from schedule.learning_rate = 0.001 is shown")
    );
}

#[test]
fn pairs_need_half_of_the_smaller_group_and_seeds_that_occur_once() {
    let method = |a: &[(u64, f64)], b: &[(u64, f64)]| {
        let comparison =
            compare(runs(&[("0.1", a), ("0.2", b)]), Some(&["schedule.learning_rate".to_owned()]));
        (final_losses(&comparison)[0].method, final_losses(&comparison)[0].n)
    };
    let five = [(0, 3.0), (1, 3.1), (2, 3.3), (3, 3.2), (4, 3.5)];
    assert_eq!(method(&five, &[(3, 3.1), (4, 3.3)]), (TestMethod::Paired, [2, 2]));
    let partly = compare(runs(&[("0.1", &five), ("0.2", &[(3, 3.1), (4, 3.3)])]), None);
    assert_eq!(final_losses(&partly)[0].unpaired, 3);
    assert!(partly.to_text().contains("0.1 - 0.2: 3 runs have no partner of their seed, and are not in it"));
    let one_common = [(4, 3.1), (5, 3.3), (6, 3.2)];
    assert_eq!(method(&five, &one_common), (TestMethod::Welch, [5, 3]));
    let two_of_five = [(3, 3.1), (4, 3.2), (5, 3.3), (6, 3.2), (7, 3.1)];
    assert_eq!(method(&five, &two_of_five), (TestMethod::Welch, [5, 5]));
    // Seed 0 twice, of different bits.
    let mut twice = runs(&[("0.1", &[(0, 3.0), (0, 3.1), (1, 3.2)]), ("0.2", &[(0, 3.3), (1, 3.2)])]);
    twice[1].root = Some("other".to_owned());
    assert_eq!(final_losses(&compare(twice, None))[0].method, TestMethod::Welch);
}

/// With `--by` another key, what else differs belongs to the pair.
#[test]
fn a_pair_agrees_in_every_key_that_does_not_make_the_groups() {
    let all = runs(&[("0.1", &[(0, 3.0), (1, 3.1)]), ("0.2", &[(0, 3.5), (1, 3.6)])]);
    let by_seed = compare(all, Some(&["seed".to_owned()]));
    let difference = final_losses(&by_seed)[0];
    assert_eq!((difference.method, difference.n), (TestMethod::Paired, [2, 2]));
    assert!((difference.difference + 0.1).abs() < 1e-12);
    assert!(by_seed.notes.iter().any(|note| note.contains("seed = 0 has runs of different schedule.")));
}

#[test]
fn one_seed_a_group_gives_no_statement() {
    let comparison = compare(runs(&[("0.1", &[(0, 3.0)]), ("0.2", &[(0, 3.5)])]), None);
    assert!(final_losses(&comparison)[0].test.is_none());
    let [verdict] = &comparison.verdict[..] else { panic!("{:?}", comparison.verdict) };
    assert!(
        verdict.starts_with("One seed a group: no statement about the difference is possible."),
        "{verdict}"
    );
    assert!(verdict.contains("schedule.learning_rate = 0.1 has the lowest"), "{verdict}");
    assert!(comparison.to_text().contains("no test: one run each"));
}

#[test]
fn runs_that_are_equal_to_the_bit_are_one_run_in_a_group_and_no_difference_between_groups() {
    let mut repeated = runs(&THREE_SEEDS[..1]);
    repeated.push(repeated[0].clone());
    repeated[3].name = "again".into();
    let comparison = compare(repeated, None);
    assert_eq!(comparison.groups[0].val_loss.n, 3);
    assert!(comparison.notes[0].starts_with("again ended in the bits of 0.001-0"), "{:?}", comparison.notes);

    let mut looked_at_more = runs(&THREE_SEEDS[..1]);
    for run in &mut looked_at_more {
        let seed = run.keys.get("seed").to_owned();
        let keys = [("schedule.learning_rate", "0.001"), ("seed", &seed), ("eval.every", "5")];
        run.keys = groups::RunKeys::made_up(&keys);
    }
    let both = [runs(&THREE_SEEDS[..1]), looked_at_more].concat();
    let comparison = compare(both, Some(&["eval.every".to_owned()]));
    let difference = final_losses(&comparison)[0];
    assert_eq!(difference.why_untested.as_deref(), Some("equal to the bit in all 3 pairs"));
    assert!(comparison.verdict[0].starts_with("The groups have equal values of"), "{:?}", comparison.verdict);
    assert!(comparison.verdict[0].contains("to the bit"), "{:?}", comparison.verdict);
}

#[test]
fn a_lone_surviving_run_is_no_winner_and_failed_runs_are_named() {
    let failed = |rate: &str, seed| {
        let run = ComparedRun::made_up(rate, seed, &[], 9.0);
        LeftOutRun { run: run.name, why: "diverged".into(), failed: true, keys: Some(run.keys) }
    };
    let all = [runs(&THREE_SEEDS), runs(&[("0.1", &[(0, 2.0)])])].concat();
    let left_out = vec![failed("0.1", 1), failed("0.1", 2), failed("0.5", 0)];
    let comparison =
        Comparison::of(&ComparedRuns::group(all, left_out, None, Measure::ValLoss, Vec::new()), None)
            .unwrap();
    let failed: Vec<usize> = comparison.groups.iter().map(|group| group.failed).collect();
    assert_eq!(failed, [0, 0, 2]);
    assert_eq!(
        comparison.notes,
        ["every run of schedule.learning_rate = 0.5 has failed, so it is no group here: 0.5-0"]
    );
    let verdict = comparison.verdict.join(" ");
    for says in [
        "0.1 has the lowest mean final validation loss, 2.0000 over one run (2 of its kind failed)",
        "No statement is possible about its difference",
        "Of the 2 groups that can be tested schedule.learning_rate = 0.01 has the lowest",
        "3 runs have failed and are in no number here",
    ] {
        assert!(verdict.contains(says), "`{says}` is not in: {verdict}");
    }
}

/// The runs that ended differ in the seed alone; those that failed had another learning rate.
#[test]
fn failed_runs_of_another_kind_are_not_counted_to_a_group() {
    let left_out: Vec<LeftOutRun> = [0, 1]
        .map(|seed| ComparedRun::made_up("30", seed, &[], 9.0))
        .map(|run| LeftOutRun { run: run.name, why: "diverged".into(), failed: true, keys: Some(run.keys) })
        .into();
    let compared = ComparedRuns::group(runs(&THREE_SEEDS[..1]), left_out, None, Measure::ValLoss, Vec::new());
    assert_eq!(compared.by, ["schedule.learning_rate"]);
    let groups: Vec<_> = compared.groups.iter().map(|group| (group.runs.len(), group.failed)).collect();
    assert_eq!(groups, [(3, 0)]);
    assert!(compared.notes[0].starts_with("every run of schedule.learning_rate = 30 has failed"));
}

#[test]
fn many_comparisons_are_corrected_and_the_number_is_said() {
    let rates = ["0.1", "0.2", "0.3", "0.4", "0.5"];
    let losses =
        [[3.0, 3.1, 3.05], [3.02, 3.13, 3.06], [3.3, 3.41, 3.36], [3.6, 3.7, 3.66], [4.0, 4.1, 4.06]];
    let all: Vec<ComparedRun> = rates
        .iter()
        .zip(losses)
        .flat_map(|(rate, losses)| {
            let of = |(seed, loss): (usize, f64)| ComparedRun::made_up(rate, seed as u64, &[], loss);
            losses.into_iter().enumerate().map(of).collect::<Vec<_>>()
        })
        .collect();
    let comparison = compare(all, None);
    assert_eq!(final_losses(&comparison).len(), 10);
    for difference in final_losses(&comparison) {
        let p = difference.test.as_ref().unwrap().p;
        assert_eq!(difference.comparisons, 10);
        assert!(difference.p_holm.unwrap() >= p && difference.p_holm.unwrap() <= 10.0 * p);
    }
    assert!(
        comparison.verdict.join(" ").contains("after Holm over 10 comparisons"),
        "{:?}",
        comparison.verdict
    );
}

#[test]
fn the_target_is_the_worst_groups_loss_and_a_run_that_misses_it_counts_as_slowest() {
    let comparison = compare(runs(&THREE_SEEDS), None);
    let worst = (3.1233 + 3.1321 + 3.1288) / 3.0;
    assert!((comparison.target_val_loss - worst).abs() < 1e-12);
    let [slow, fast] = [0, 1].map(|group: usize| comparison.groups[group].to_target.clone());
    // One of three is at or below the mean: the middle of the group is not.
    assert_eq!((slow.reached, slow.steps), (1, None));
    assert_eq!(
        (fast.reached, fast.steps, fast.tokens, fast.hours),
        (3, Some(20.0), Some(10_240.0), Some(1.0))
    );
    let early = Comparison::of(
        &ComparedRuns::group(runs(&THREE_SEEDS), Vec::new(), None, Measure::ValLoss, Vec::new()),
        Some(4.0),
    );
    assert_eq!(early.unwrap().groups[0].to_target.steps, Some(10.0));
    assert_eq!(median([Some(1.0), None].into_iter()), None);
    assert_eq!(median([Some(1.0), None, Some(3.0)].into_iter()), Some(3.0));
    assert_eq!(median([None].into_iter()), None);
}

#[test]
fn hellaswag_is_compared_where_both_groups_have_it() {
    let mut all = runs(&THREE_SEEDS);
    assert!(!compare(all.clone(), None).to_text().contains("HellaSwag"));
    for (index, run) in all.iter_mut().enumerate() {
        run.hellaswag = (index != 2).then_some(0.25 + 0.01 * index as f64);
    }
    let comparison = compare(all, None);
    assert_eq!(comparison.groups[0].hellaswag.as_ref().unwrap().n, 2);
    let difference = comparison.of_measure(Measure::Hellaswag).next().unwrap();
    assert_eq!((difference.method, difference.n), (TestMethod::Paired, [2, 2]));
    assert!(comparison.to_text().contains("HellaSwag (share of tasks, higher is better)"));
}

#[test]
fn nothing_to_compare_is_none() {
    assert_eq!(
        Comparison::of(
            &ComparedRuns::group(Vec::new(), Vec::new(), None, Measure::ValLoss, Vec::new()),
            None
        ),
        None
    );
}

proptest! {
    /// Whatever finite losses runs have: no number in text or JSON is NaN or infinite.
    #[test]
    fn no_number_that_is_printed_is_not_finite(
        losses in prop::collection::vec((0u64..4, 0usize..4, prop_oneof![Just(3.0), 0.5f64..12.0]), 1..24),
    ) {
        let rates = ["0.1", "0.2", "0.3", "1e-3"];
        let of = |(index, (seed, rate, loss)): (usize, &(u64, usize, f64))| {
            let mut run = ComparedRun::made_up(rates[*rate], *seed, &[5.0], *loss);
            run.root = Some(index.to_string());
            run
        };
        let comparison = compare(losses.iter().enumerate().map(of).collect(), None);
        let text = comparison.to_text();
        let json = serde_json::to_string(&comparison).unwrap();
        let words = |text: &str| text.contains("NaN") || text.contains("inf ") || text.contains("inf)");
        prop_assert!(!words(&text) && !words(&json), "{}", text);
        for difference in &comparison.differences {
            prop_assert!(difference.difference.is_finite());
            if let Some(test) = &difference.test {
                prop_assert!(test.t.is_finite() && test.p.is_finite() && test.interval[1].is_finite());
            }
        }
    }

    /// The order in which runs are named decides nothing but ties.
    #[test]
    fn naming_runs_in_another_order_changes_no_mean_and_no_p(seed in 0u64..1000) {
        let all = runs(&THREE_SEEDS);
        let mut turned = all.clone();
        turned.rotate_left((seed % 6) as usize);
        let (one, other) = (compare(all, None), compare(turned, None));
        for (a, b) in one.differences.iter().zip(&other.differences) {
            prop_assert!((a.difference - b.difference).abs() < 1e-12);
            prop_assert!((a.test.as_ref().unwrap().p - b.test.as_ref().unwrap().p).abs() < 1e-9);
        }
        for (a, b) in one.groups.iter().zip(&other.groups) {
            prop_assert_eq!(&a.group, &b.group);
            prop_assert!((a.val_loss.mean - b.val_loss.mean).abs() < 1e-12);
        }
    }
}

#[test]
fn runs_from_two_checkpoints_are_paired_by_seed_wherever_they_go_on_in_the_data() {
    let mut runs = Vec::new();
    for (init, offset) in [("a@4", "32"), ("a@8", "64")] {
        for seed in 0..3 {
            let mut run = ComparedRun::made_up("0.1", seed, &[], 3.0 + 0.1 * seed as f64);
            let keys = [("model.init", init), ("data.offset", offset), (SEED, &seed.to_string())];
            run.keys = groups::RunKeys::made_up(&keys);
            run.root = Some(format!("{init} {seed}"));
            runs.push(run);
        }
    }
    let comparison = compare(runs, Some(&["model.init".to_owned()]));
    let difference = final_losses(&comparison)[0];
    assert_eq!((difference.method, difference.n), (TestMethod::Paired, [3, 3]));
    let [note] = &comparison.notes[..] else { panic!("one note: {:?}", comparison.notes) };
    assert!(note.contains("start from different weights (model.init)"), "{note}");
}

/// Two seeds of the better setting had no partner, and were bad ones.
#[test]
fn where_pairs_and_means_say_the_opposite_the_pairs_count() {
    let comparison = compare(
        runs(&[
            ("0.1", &[(0, 3.1000), (1, 3.2001), (2, 3.3002), (3, 2.0), (4, 2.1)]),
            ("0.2", &[(0, 3.0900), (1, 3.1900), (2, 3.2901)]),
        ]),
        None,
    );
    let verdict = comparison.verdict.join(" ");
    assert!(verdict.contains("schedule.learning_rate = 0.1 has the lowest mean"), "{verdict}");
    assert!(verdict.contains("it is the other way round"), "{verdict}");
    assert!(verdict.contains("of schedule.learning_rate = 0.2 is better, by 0.01007"), "{verdict}");
    assert!(!verdict.contains("no difference"), "{verdict}");
}

#[test]
fn seeds_are_counted_and_not_the_runs_that_share_them() {
    let mut shared = runs(&[
        ("0.1", &[(0, 3.10), (1, 3.20), (2, 3.31)]),
        ("0.2", &[(0, 3.00), (1, 3.11), (2, 3.20)]),
        ("0.1", &[(0, 3.11), (1, 3.22), (2, 3.30)]),
        ("0.2", &[(0, 3.02), (1, 3.10), (2, 3.21)]),
    ]);
    for (at, run) in shared.iter_mut().enumerate() {
        let decay = if at < 6 { "0.0" } else { "0.1" };
        let (rate, seed) = (run.keys.get("schedule.learning_rate").to_owned(), run.keys.get(SEED).to_owned());
        run.keys = groups::RunKeys::made_up(&[
            ("schedule.learning_rate", &rate),
            (SEED, &seed),
            ("optimizer.weight_decay", decay),
        ]);
        run.root = Some(at.to_string());
    }
    let by_rate = compare(shared.clone(), Some(&["schedule.learning_rate".to_owned()]));
    let difference = final_losses(&by_rate)[0];
    assert_eq!((difference.method, difference.n), (TestMethod::Paired, [3, 3]));
    // ttest_1samp of the means of each seed's two pairs: [0.095, 0.105, 0.1].
    let test = difference.test.as_ref().unwrap();
    assert!((test.t - 34.6410162).abs() < 1e-4 && (difference.difference - 0.1).abs() < 1e-12, "{test:?}");
    let verdict = by_rate.verdict.join(" ");
    assert!(verdict.contains("With 3 seeds each, paired, its loss is lower"), "{verdict}");
    assert!(by_rate.notes.iter().any(|note| note.contains("6 runs of 3 seeds")), "{:?}", by_rate.notes);
    let alone = compare(shared, Some(&["eval.every".to_owned()]));
    assert!(alone.verdict[0].contains("12 runs of 3 seeds"), "{:?}", alone.verdict);
}

/// Of three groups the middle one has both decays: the outer two differ in it, and still are pairs.
#[test]
fn two_of_many_groups_may_differ_in_a_key_that_a_third_mixes() {
    let mut all = runs(&[
        ("0.1", &[(0, 3.10), (1, 3.20), (2, 3.31)]),
        ("0.2", &[(0, 3.00), (1, 3.11), (2, 3.20)]),
        ("0.3", &[(0, 2.90), (1, 3.02), (2, 3.11)]),
    ]);
    for (at, run) in all.iter_mut().enumerate() {
        let (rate, seed) = (run.keys.get("schedule.learning_rate").to_owned(), run.keys.get(SEED).to_owned());
        let decay = if at < 4 { "0.0" } else { "0.1" };
        run.keys = groups::RunKeys::made_up(&[
            ("schedule.learning_rate", &rate),
            (SEED, &seed),
            ("optimizer.weight_decay", decay),
        ]);
    }
    let comparison = compare(all, Some(&["schedule.learning_rate".to_owned()]));
    let outer = final_losses(&comparison).into_iter().find(|it| (it.a, it.b) == (0, 2)).unwrap();
    assert_eq!((outer.method, outer.n), (TestMethod::Paired, [3, 3]));
    let says = "schedule.learning_rate = 0.1 and schedule.learning_rate = 0.3 (0.0, 0.1) differ in \
                optimizer.weight_decay too";
    assert!(comparison.notes.iter().any(|note| note.contains(says)), "{:?}", comparison.notes);
}

/// A grid without seeds: its runs are one sample, however many settings it has.
#[test]
fn one_seed_in_many_settings_is_one_sample() {
    let mut grid = runs(&[("0.1", &[(0, 3.10), (0, 3.20)]), ("0.2", &[(0, 3.0), (0, 3.101)])]);
    for (at, run) in grid.iter_mut().enumerate() {
        let rate = run.keys.get("schedule.learning_rate").to_owned();
        let decay = ["0.0", "0.1"][at % 2];
        run.keys = groups::RunKeys::made_up(&[
            ("schedule.learning_rate", &rate),
            (SEED, "0"),
            ("optimizer.weight_decay", decay),
        ]);
        run.root = Some(at.to_string());
    }
    let comparison = compare(grid, Some(&["schedule.learning_rate".to_owned()]));
    let difference = final_losses(&comparison)[0];
    assert!(difference.test.is_none(), "{difference:?}");
    assert!(comparison.verdict[0].contains("one seed, in several settings"), "{:?}", comparison.verdict);
    let note = "2 runs of one seed: they are no sample of seeds, so its interval says nothing of them";
    assert!(comparison.notes.iter().any(|it| it.contains(note)), "{:?}", comparison.notes);
}

/// Each group has two values of another key, and none of them is the other's.
#[test]
fn groups_without_a_common_value_of_another_key_are_said_to_differ_in_it() {
    let mut all = runs(&[("0.1", &[(0, 3.10), (1, 3.20)]), ("0.2", &[(0, 3.0), (1, 3.1)])]);
    for (run, warmup) in all.iter_mut().zip(["1", "2", "5", "6"]) {
        let (rate, seed) = (run.keys.get("schedule.learning_rate").to_owned(), run.keys.get(SEED).to_owned());
        run.keys = groups::RunKeys::made_up(&[
            ("schedule.learning_rate", &rate),
            (SEED, &seed),
            ("schedule.warmup_steps", warmup),
        ]);
    }
    let comparison = compare(all, Some(&["schedule.learning_rate".to_owned()]));
    let says = "(1 or 2, 5 or 6) differ in schedule.warmup_steps too";
    assert!(comparison.notes.iter().any(|note| note.contains(says)), "{:?}", comparison.notes);
}

/// A rate that goes with the warm-up: one cannot be told from the other, and seeds still make pairs.
#[test]
fn a_key_that_goes_with_the_groups_is_said_and_keeps_no_runs_apart() {
    let mut zipped = runs(&THREE_SEEDS);
    for run in &mut zipped {
        let (rate, seed) = (run.keys.get("schedule.learning_rate").to_owned(), run.keys.get(SEED).to_owned());
        let warmup = if rate == "0.001" { "2" } else { "4" };
        run.keys = groups::RunKeys::made_up(&[
            ("schedule.learning_rate", &rate),
            (SEED, &seed),
            ("schedule.warmup_steps", warmup),
        ]);
    }
    let comparison = compare(zipped, Some(&["schedule.warmup_steps".to_owned()]));
    let difference = final_losses(&comparison)[0];
    assert_eq!((difference.method, difference.n), (TestMethod::Paired, [3, 3]));
    let says = "groups differ in schedule.learning_rate too (0.001, 0.01)";
    assert!(comparison.notes.iter().any(|note| note.contains(says)), "{:?}", comparison.notes);
}

#[test]
fn what_a_descriptor_is_made_of_is_no_other_difference() {
    let mut runs = runs(&THREE_SEEDS);
    for run in &mut runs {
        let (rate, seed) = (run.keys.get("schedule.learning_rate").to_owned(), run.keys.get(SEED).to_owned());
        let [descriptor, norm] =
            if rate == "0.001" { ["d12", "layernorm"] } else { ["modern:d12", "rmsnorm"] };
        run.keys = groups::RunKeys::made_up(&[
            ("schedule.learning_rate", &rate),
            (SEED, &seed),
            ("model.descriptor", descriptor),
            ("model.norm", norm),
        ]);
    }
    let comparison = compare(runs, Some(&["model.descriptor".to_owned()]));
    let notes = comparison.notes.join("\n");
    assert!(
        notes.contains("groups differ in schedule.learning_rate too") && !notes.contains("model.norm"),
        "{notes}"
    );
}
