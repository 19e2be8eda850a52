//! Learning rates by group of parameters, and the warm-up of Muon's momentum, in whole steps.

use super::ranks_tests::{End, experiment_with, train, train_all};
use crate::parallel::Solo;

const MUON: &str = "optimizer.kind=muon";
/// A model with all groups, and an average of the weights, which follows them.
const UNTIED: [&str; 4] =
    ["batch.tokens=64", "model.channels=64", "model.tied_head=false", "optimizer.ema_decay=0.9"];
const GROUPS: [&str; 4] = ["rate_tables", "rate_head", "rate_vectors", "rate_matrices"];

fn steps(sets: &[&str], steps: usize) -> End {
    train(&experiment_with(&[&UNTIED[..], sets].concat()), Box::new(Solo), None, steps)
}

/// The group of a tensor of the state, by its parameter's name; none of the host's values.
fn group_of(tensor: &str) -> Option<&'static str> {
    let parameter = ["adam_m/", "adam_v/", "muon_m/", "ema/", "master/"]
        .iter()
        .find_map(|prefix| tensor.strip_prefix(prefix))
        .unwrap_or(tensor);
    match parameter {
        "wte.weight" | "wpe.weight" => Some("rate_tables"),
        "lm_head.weight" => Some("rate_head"),
        name if name.ends_with(".bias") || name.contains("ln_") => Some("rate_vectors"),
        name if name.starts_with("h.") => Some("rate_matrices"),
        _ => None,
    }
}

/// From the same start, the gradients of the first step are the same. So with a factor of 2 on one group that
/// group ends the step in the bits of a run at twice the rate, and the others in those of the plain run.
#[test]
fn a_factor_of_2_on_a_group_doubles_the_rate_of_that_group_alone() {
    for kind in ["optimizer.kind=adamw", MUON] {
        let plain = steps(&[kind], 1).state;
        let doubled = steps(&[kind, "schedule.learning_rate=1.2e-3"], 1).state;
        for group in GROUPS {
            let set = format!("optimizer.{group}=2");
            let state = steps(&[kind, &set], 1).state;
            assert_eq!(state.len(), plain.len());
            let mut moved = 0;
            for ((ours, plain), doubled) in state.iter().zip(&plain).zip(&doubled) {
                let is_of_group = group_of(&ours.name) == Some(group);
                assert_eq!(ours, if is_of_group { doubled } else { plain }, "{kind}, {group}: {}", ours.name);
                moved += usize::from(ours != plain);
            }
            // Parameters and their averages; the moments of a first step know no rate.
            let follows_rates = |name: &str| !name.contains("m/") && !name.contains("v/");
            let expected =
                state.iter().filter(|t| group_of(&t.name) == Some(group) && follows_rates(&t.name)).count();
            assert!(moved > 0 && moved <= expected, "{kind}, {group}: {moved} of {expected} moved");
        }
    }
}

#[test]
fn a_factor_of_0_keeps_a_group_and_factors_of_1_change_no_bit() {
    for kind in ["optimizer.kind=adamw", MUON] {
        let start = steps(&[kind], 0).state;
        let trained = steps(&[kind, "optimizer.rate_matrices=0"], 2).state;
        for (before, after) in start.iter().zip(&trained) {
            if group_of(&after.name) == Some("rate_matrices") && after.name.starts_with("h.") {
                assert_eq!(before, after, "{kind}");
            }
        }
        let ones = GROUPS.map(|group| format!("optimizer.{group}=1.0"));
        let ones: Vec<&str> = ones.iter().map(String::as_str).chain([kind]).collect();
        assert_eq!(steps(&ones, 2), steps(&[kind], 2), "{kind}");
    }
}

#[test]
fn a_warm_up_of_the_momentum_ends_in_the_plain_momentum() {
    let warm = ["optimizer.momentum_warmup_steps=4", "optimizer.momentum_start=0.5"];
    let first = steps(&[&[MUON][..], &warm].concat(), 1);
    assert_eq!(first.state, steps(&[MUON, "optimizer.momentum=0.5"], 1).state, "step 0 has the start");
    assert_ne!(first.state, steps(&[MUON], 1).state);
    // A momentum that goes from a value to itself is that value.
    let flat = ["optimizer.momentum_warmup_steps=4", "optimizer.momentum_start=0.95"];
    assert_eq!(steps(&[&[MUON][..], &flat].concat(), 3).roots, steps(&[MUON], 3).roots);
}

#[test]
fn any_number_of_ranks_and_a_resume_keep_the_rates_of_groups() {
    let sets = |zero| {
        let own = [
            "optimizer.rate_tables=3",
            "optimizer.rate_head=0.5",
            "optimizer.rate_vectors=2",
            "optimizer.rate_matrices=0.25",
            zero,
        ];
        [&UNTIED[..], &own].concat()
    };
    let muon = [MUON, "optimizer.momentum_warmup_steps=2"];
    for kind in [&["optimizer.kind=adamw"][..], &muon] {
        let with = |zero| experiment_with(&[&sets(zero)[..], kind].concat());
        let one = train(&with("parallel.zero=1"), Box::new(Solo), None, 3);
        for (zero, size) in [("parallel.zero=0", 2), ("parallel.zero=1", 4), ("parallel.zero=2", 8)] {
            assert_eq!(train_all(size, &with(zero), None, 3), one, "{kind:?}: {size} ranks, {zero}");
        }
        let half = train(&with("parallel.zero=1"), Box::new(Solo), None, 1);
        let rest = train_all(2, &with("parallel.zero=1"), Some(&half.state), 2);
        assert_eq!(rest.roots, one.roots[1..], "{kind:?}: saved on one, resumed on two");
    }
}
