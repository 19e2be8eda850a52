//! What a comparison says, in sentences.

use super::text::{p_value, signed};
use super::{Comparison, GroupDifference, Measure, TestMethod};
use crate::units::noun;

/// What a corrected p must stay below.
const LEVEL: f64 = 0.05;
/// Groups that are named one by one.
const NAMED: usize = 8;

/// Of the measure compared: which group is best, and of which others that can be said; then what weakens it.
pub fn sentences(comparison: &Comparison) -> Vec<String> {
    let mut said = Vec::new();
    match comparison.groups.len() {
        1 => said.push(alone(comparison)),
        _ if comparison.of_measure(comparison.measure).all(|difference| difference.test.is_none()) => {
            said.push(untested(comparison));
        }
        _ => said.extend(best_against_others(comparison)),
    }
    let failed: Vec<&str> =
        comparison.left_out.iter().filter(|run| run.failed).map(|run| run.run.as_str()).collect();
    if !failed.is_empty() {
        let runs = if failed.len() == 1 { "run has" } else { "runs have" };
        said.push(format!(
            "{} {runs} failed and {} in no number here ({}): all of this is said of training that ended.",
            failed.len(),
            if failed.len() == 1 { "is" } else { "are" },
            named(&failed)
        ));
    }
    said
}

fn alone(comparison: &Comparison) -> String {
    let group = &comparison.groups[0];
    let loss = &group.of_verdict;
    let places = comparison.measure.decimals(loss.sd.unwrap_or(0.0));
    let spread = match (loss.n, loss.interval) {
        (runs, Some([low, high])) => {
            let of = match group.seeds() {
                seeds if seeds == runs => format!("{runs} seeds"),
                1 => format!("{runs} runs of one seed"),
                seeds => format!("{runs} runs of {seeds} seeds"),
            };
            format!(" with {of} (95 % interval of the mean {low:.places$} to {high:.places$})")
        }
        _ => " in one run, of which no spread is known".to_owned(),
    };
    format!(
        "There is one group, so nothing is compared: its {} is {:.places$}{spread}.",
        comparison.measure.name(),
        loss.mean
    )
}

/// Where no two groups could be tested.
fn untested(comparison: &Comparison) -> String {
    let best = &comparison.groups[comparison.best()];
    let places = comparison.measure.decimals(best.of_verdict.sd.unwrap_or(0.0));
    let (measure, mean) = (comparison.measure, best.of_verdict.mean);
    let lowest =
        format!("{} has the {} {}, {mean:.places$}", best.group, measure.superlative(), measure.name());
    if comparison.groups.iter().all(|group| group.of_verdict.n == 1) {
        return format!(
            "One seed a group: no statement about the difference is possible. Here {lowest}; how much of \
             that is the seed's doing only more seeds can tell."
        );
    }
    if comparison.of_measure(comparison.measure).all(|difference| difference.difference == 0.0) {
        return format!(
            "The groups have equal values of {} to the bit: what makes them differ changed nothing in it \
             (`--metric` compares another number).",
            measure.name()
        );
    }
    let why =
        comparison.of_measure(comparison.measure).find_map(|difference| difference.why_untested.clone());
    format!("No difference could be tested ({}). Here {lowest}.", why.unwrap_or_default())
}

/// The lowest group beside all others; where it has no test at all, the lowest of those that have one too.
fn best_against_others(comparison: &Comparison) -> Vec<String> {
    let best = comparison.best();
    let mut said = vec![format!("Of {} groups {}.", comparison.groups.len(), lowest(comparison, best))];
    said.extend(against_others(comparison, best));
    let tested: Vec<usize> = (0..comparison.groups.len())
        .filter(|group| beside(comparison, *group).any(|(_, difference)| difference.test.is_some()))
        .collect();
    if !tested.contains(&best)
        && let Some(next) = comparison.best_of(&tested)
    {
        said.push(format!("Of the {} groups that can be tested {}.", tested.len(), lowest(comparison, next)));
        said.extend(against_others(comparison, next));
    }
    said
}

/// `A has the lowest mean final validation loss, 3.1277 over 3 runs`.
fn lowest(comparison: &Comparison, group: usize) -> String {
    let group = &comparison.groups[group];
    let places = comparison.measure.decimals(group.of_verdict.sd.unwrap_or(0.0));
    let runs = match group.of_verdict.n {
        1 => "one run".to_owned(),
        n => format!("{n} runs"),
    };
    let failed = match group.failed {
        0 => String::new(),
        n => format!(" ({n} of its kind failed)"),
    };
    format!(
        "{} has the {} mean {}, {:.places$} over {runs}{failed}",
        group.group,
        comparison.measure.superlative(),
        comparison.measure.name(),
        group.of_verdict.mean
    )
}

/// The other groups with their differences from one.
fn beside(comparison: &Comparison, group: usize) -> impl Iterator<Item = (&str, &GroupDifference)> {
    comparison.of_measure(comparison.measure).filter_map(move |difference| {
        let other = match group {
            at if at == difference.a => difference.b,
            at if at == difference.b => difference.a,
            _ => return None,
        };
        Some((comparison.groups[other].group.as_str(), difference))
    })
}

fn against_others(comparison: &Comparison, best: usize) -> Vec<String> {
    let is_better_high = comparison.measure.is_better_high();
    let (mut worse, mut alike, mut untested) = (Vec::new(), Vec::new(), Vec::new());
    let (mut turned, mut equal) = (Vec::new(), Vec::new());
    for (name, difference) in beside(comparison, best) {
        match (difference.p_holm, difference.a == best) {
            (Some(p), is_a) if p < LEVEL && is_a == ((difference.difference < 0.0) != is_better_high) => {
                worse.push((name, difference))
            }
            (Some(p), _) if p < LEVEL => turned.push((name, difference)),
            (Some(_), _) => alike.push((name, difference)),
            (None, _) if difference.method == TestMethod::Paired && difference.difference == 0.0 => {
                equal.push(name);
            }
            (None, _) => untested.push((name, difference.why_untested.as_deref().unwrap_or_default())),
        }
    }
    let mut said = shown(&worse, (comparison.measure, best));
    said.extend(turned.iter().map(|other| turned_round(*other, comparison.measure)));
    said.extend(not_shown(&alike, (comparison.measure, best)));
    if !equal.is_empty() {
        said.push(format!("Seed by seed it is that of {}, to the bit.", named(&equal)));
    }
    if let Some((_, first)) = untested.first() {
        let alone = untested.iter().all(|(_, why)| why == first);
        let names: Vec<String> = untested
            .iter()
            .map(|(name, why)| if alone { (*name).to_owned() } else { format!("{name} ({why})") })
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let why = if alone { format!(": {first}") } else { String::new() };
        said.push(format!("No statement is possible about its difference from {}{why}.", named(&names)));
    }
    said
}

/// The groups that are shown to be worse than the best.
fn shown(others: &[(&str, &GroupDifference)], of: (Measure, usize)) -> Vec<String> {
    if others.len() > NAMED / 2 {
        let names: Vec<&str> = others.iter().map(|(name, _)| *name).collect();
        let worst = others.iter().filter_map(|(_, difference)| difference.p_holm).fold(0.0, f64::max);
        return vec![format!(
            "It is {} than that of {} (each with {} or less after Holm over {}).",
            of.0.comparative(),
            named(&names),
            p_value(worst),
            family(others[0].1)
        )];
    }
    others
        .iter()
        .map(|(name, difference)| {
            format!(
                "{}, its {} is {} than that of {name} by {}.",
                seeds(difference),
                of.0.short_name(),
                of.0.comparative(),
                evidence(difference, of)
            )
        })
        .collect()
}

/// A group with the worse mean that is shown to be better by the test: runs without a partner are in the
/// means alone, and a seed counts there as often as it has runs.
fn turned_round((name, difference): (&str, &GroupDifference), measure: Measure) -> String {
    // Of the two the one that the pairs show to be better.
    let a_is_better = (difference.difference < 0.0) != measure.is_better_high();
    let better = if a_is_better { difference.a } else { difference.b };
    let why = match difference.unpaired {
        0 => "In the means a seed counts as often as it has runs, here once".to_owned(),
        1 => "The means also have the one run without a partner, so the pairs count".to_owned(),
        runs => format!("The means also have the {runs} runs without a partner, so the pairs count"),
    };
    format!(
        "{}, it is the other way round: the {} of {name} is better, by {}. {why}.",
        seeds(difference),
        measure.short_name(),
        evidence(difference, (measure, better)),
    )
}

/// The groups of which nothing is shown.
fn not_shown(others: &[(&str, &GroupDifference)], of: (Measure, usize)) -> Vec<String> {
    let sentence = |(name, difference): &(&str, &GroupDifference)| {
        format!(
            "{}, no difference from {name} is shown: {}. That is no proof that they are equal.",
            seeds(difference),
            evidence(difference, of)
        )
    };
    if others.len() <= NAMED / 2 {
        return others.iter().map(sentence).collect();
    }
    let names: Vec<&str> = others.iter().map(|(name, _)| *name).collect();
    vec![format!(
        "It is not told apart from {} at 5 % after Holm over {}. That is no proof that they are equal.",
        named(&names),
        family(others[0].1)
    )]
}

/// `With 3 seeds each, paired`; where seeds make the groups, `With 6 pairs`.
fn seeds(difference: &GroupDifference) -> String {
    let of_seeds = difference.of_seeds;
    match (difference.method, difference.n) {
        (TestMethod::Paired, [pairs, _]) if of_seeds => format!("With {pairs} seeds each, paired"),
        (TestMethod::Paired, [pairs, _]) => format!("With {pairs} pairs"),
        (TestMethod::Welch, [a, b]) if of_seeds && a == b => format!("With {a} seeds each"),
        (TestMethod::Welch, [a, b]) if of_seeds => format!("With {a} and {b} seeds"),
        (TestMethod::Welch, [a, b]) if a == b => format!("With {a} runs each"),
        (TestMethod::Welch, [a, b]) => format!("With {a} and {b} runs"),
    }
}

/// `0.0123 (95 % interval 0.0100 to 0.0146; p = 0.03 after Holm over 10 comparisons)`, as what the other is
/// worse than the best.
fn evidence(difference: &GroupDifference, (measure, best): (Measure, usize)) -> String {
    let Some(test) = &difference.test else { return String::new() };
    let turn = if (difference.a == best) == measure.is_better_high() { 1.0 } else { -1.0 };
    let mut ends = test.interval.map(|end| turn * end);
    ends.sort_by(f64::total_cmp);
    let places = measure.decimals((ends[1] - ends[0]) / 2.0);
    let end = |value: f64| signed(value, places).trim_start_matches('+').to_owned();
    let corrected = match difference.comparisons {
        1 => format!("{}, the only comparison", p_value(test.p)),
        _ => {
            format!("{} after Holm over {}", p_value(difference.p_holm.unwrap_or(test.p)), family(difference))
        }
    };
    format!(
        "{} (95 % interval {} to {}; {corrected})",
        end(turn * difference.difference),
        end(ends[0]),
        end(ends[1])
    )
}

fn family(difference: &GroupDifference) -> String {
    let count = difference.comparisons;
    format!("{count} {}", noun(count, "comparison"))
}

/// Names in a sentence, the first of many. Where one has a comma of its own, `;` stands between them.
fn named(names: &[&str]) -> String {
    let between = if names.iter().any(|name| name.contains(',')) { "; " } else { ", " };
    match names {
        [one] => (*one).to_owned(),
        _ if names.len() > NAMED => {
            format!("{} and {} more", names[..NAMED].join(between), names.len() - NAMED)
        }
        [before @ .., last] => format!("{} and {last}", before.join(between)),
        [] => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_between_commas_unless_they_have_some() {
        assert_eq!(named(&["div/004", "div/005", "div/006"]), "div/004, div/005 and div/006");
        assert_eq!(named(&["a = 1, b = 2", "a = 2, b = 1", "c"]), "a = 1, b = 2; a = 2, b = 1 and c");
    }
}
