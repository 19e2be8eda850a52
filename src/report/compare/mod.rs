//! Groups of runs held against each other: means with intervals, differences with tests, and what it took to
//! reach a loss.
//!
//! [`runs`] reads the runs, [`common_ground`] leaves out those that cannot be compared, [`verdict`] says what
//! follows in sentences, [`text`] prints it. `docs/compare.md` has the formulas and the words.

mod common_ground;
mod measure;
mod runs;
#[cfg(test)]
mod tests;
pub mod text;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

pub use common_ground::notes_on_losses;
pub use measure::Measure;
pub use runs::{ComparedRun, ComparedRuns, LeftOutRun, NamedRun, RunGroup, ValidationPoint};

use self::runs::confounded;
use super::groups::{self, SEED};
use super::statistics::{self, SampleStatistics, TTest, holm, mean};

/// A run in its group.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GroupMember {
    pub run: String,
    pub seed: String,
    pub val_loss: f64,
    pub best_val_loss: f64,
    pub hellaswag: Option<f64>,
    /// In the metric that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<f64>,
    pub root: Option<String>,
    /// Where its figures disagree with its ledger; none if they agree.
    pub unverified: Option<String>,
    /// The first validation at or below the target; none where no validation was.
    pub to_target: Option<ValidationPoint>,
}

/// What the runs of a group took to reach the target: medians, in which a run that did not is above all
/// others.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GroupToTarget {
    pub reached: usize,
    /// None where the middle of the group has not reached it.
    pub steps: Option<f64>,
    pub tokens: Option<f64>,
    pub hours: Option<f64>,
}

/// A group in numbers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ComparedGroup {
    /// `schedule.learning_rate = 0.001`.
    pub group: String,
    pub keys: BTreeMap<String, String>,
    pub runs: Vec<GroupMember>,
    /// Runs of this kind that failed, and are in none of the numbers.
    pub failed: usize,
    pub val_loss: SampleStatistics,
    pub best_val_loss: SampleStatistics,
    pub hellaswag: Option<SampleStatistics>,
    /// In the metric that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<SampleStatistics>,
    /// In the measure of the verdict.
    #[serde(skip)]
    pub of_verdict: SampleStatistics,
    pub to_target: GroupToTarget,
}

impl ComparedGroup {
    /// How many different seeds its runs have.
    fn seeds(&self) -> usize {
        self.runs.iter().map(|run| run.seed.as_str()).collect::<BTreeSet<_>>().len()
    }

    /// The statistics of a measure; none where no run has it.
    pub fn statistics(&self, measure: Measure) -> Option<&SampleStatistics> {
        match measure {
            Measure::ValLoss => Some(&self.val_loss),
            Measure::BestValLoss => Some(&self.best_val_loss),
            Measure::Hellaswag => self.hellaswag.as_ref(),
            Measure::Metric(_) => self.metric.as_ref(),
        }
    }
}

/// How a difference was tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TestMethod {
    /// By the differences within pairs of runs of one seed.
    Paired,
    /// By the means and spreads of both groups.
    Welch,
}

/// A group minus another in one measure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GroupDifference {
    pub measure: Measure,
    /// Indices of the groups: `a` minus `b`.
    pub a: usize,
    pub b: usize,
    pub method: TestMethod,
    /// Seeds of each group that are in it, each by the mean of its runs or pairs; where seeds make the
    /// groups, runs. Of pairs twice the same.
    pub n: [usize; 2],
    /// Whether `n` are seeds, which they are unless seeds make the groups.
    pub of_seeds: bool,
    /// Runs of both groups that have no partner, and are not in it.
    pub unpaired: usize,
    pub difference: f64,
    /// None where there is nothing to test with; `why_untested` says what is missing.
    pub test: Option<TTest>,
    pub why_untested: Option<String>,
    /// `p` after Holm's correction over all tests of this measure, and their number.
    pub p_holm: Option<f64>,
    pub comparisons: usize,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The keys that make the groups.
    pub by: Vec<String>,
    /// What the verdict is about.
    pub measure: Measure,
    pub target_val_loss: f64,
    /// Whether what it took to reach the target is a part of the text.
    #[serde(skip)]
    shows_target: bool,
    pub groups: Vec<ComparedGroup>,
    /// Of every pair of groups, by measure.
    pub differences: Vec<GroupDifference>,
    pub left_out: Vec<LeftOutRun>,
    pub notes: Vec<String>,
    /// Sentences.
    pub verdict: Vec<String>,
}

impl Comparison {
    /// Compares groups. `target` is the validation loss to reach; without one it is the mean final loss of
    /// the worst group. None where there is no run to compare.
    pub fn of(runs: &ComparedRuns, target: Option<f64>) -> Option<Comparison> {
        let means = runs.groups.iter().filter_map(|group| mean(&losses(group)));
        let worst = means.max_by(f64::total_cmp)?;
        let shows_target = target.is_some() || runs.measure == Measure::ValLoss;
        let target = target.unwrap_or(worst);
        let groups: Vec<ComparedGroup> =
            runs.groups.iter().filter_map(|group| compared(group, runs, target)).collect();
        let mut comparison = Comparison {
            by: runs.by.clone(),
            measure: runs.measure,
            target_val_loss: target,
            shows_target,
            groups,
            differences: measures(runs.measure)
                .iter()
                .flat_map(|measure| differences(runs, *measure))
                .collect(),
            left_out: runs.left_out.clone(),
            notes: runs.notes.iter().cloned().chain(runs.notes_on_samples()).collect(),
            verdict: Vec::new(),
        };
        comparison.verdict = verdict::sentences(&comparison);
        Some(comparison)
    }

    /// The differences of a measure.
    pub fn of_measure(&self, measure: Measure) -> impl Iterator<Item = &GroupDifference> {
        self.differences.iter().filter(move |difference| difference.measure == measure)
    }

    /// The index of the group with the best mean in the measure of the verdict, the first of equals.
    pub fn best(&self) -> usize {
        self.best_of(&(0..self.groups.len()).collect::<Vec<_>>()).unwrap_or(0)
    }

    fn best_of(&self, groups: &[usize]) -> Option<usize> {
        let sign = if self.measure.is_better_high() { -1.0 } else { 1.0 };
        let mean = |index: usize| sign * self.groups[index].of_verdict.mean;
        groups.iter().copied().min_by(|a, b| mean(*a).total_cmp(&mean(*b)))
    }
}

/// What is compared where the verdict is about `measure`.
fn measures(measure: Measure) -> Vec<Measure> {
    match measure {
        Measure::Metric(_) => vec![measure],
        _ => Measure::USUAL.to_vec(),
    }
}

fn losses(group: &RunGroup) -> Vec<f64> {
    group.runs.iter().map(|run| run.val_loss).collect()
}

fn compared(group: &RunGroup, of: &ComparedRuns, target: f64) -> Option<ComparedGroup> {
    let (by, measure) = (&of.by, of.measure);
    let is_metric = matches!(measure, Measure::Metric(_));
    let values = |measure: Measure| group.runs.iter().filter_map(|run| measure.of(run)).collect::<Vec<f64>>();
    let member = |run: &ComparedRun| GroupMember {
        run: run.name.clone(),
        seed: run.keys.get(SEED).to_owned(),
        val_loss: run.val_loss,
        best_val_loss: run.best_val_loss,
        hellaswag: run.hellaswag,
        metric: measure.of(run).filter(|_| is_metric),
        root: run.root.clone(),
        unverified: run.unverified.clone(),
        to_target: run.validations.iter().find(|at| at.val_loss <= target).copied(),
    };
    let runs: Vec<GroupMember> = group.runs.iter().map(member).collect();
    Some(ComparedGroup {
        group: groups::label(by, &group.values),
        keys: by.iter().cloned().zip(group.values.iter().cloned()).collect(),
        failed: group.failed,
        val_loss: SampleStatistics::of(&values(Measure::ValLoss))?,
        best_val_loss: SampleStatistics::of(&values(Measure::BestValLoss))?,
        hellaswag: SampleStatistics::of(&values(Measure::Hellaswag)),
        metric: SampleStatistics::of(&values(measure)).filter(|_| is_metric),
        of_verdict: SampleStatistics::of(&values(measure))?,
        to_target: GroupToTarget {
            reached: runs.iter().filter(|run| run.to_target.is_some()).count(),
            steps: median(runs.iter().map(|run| run.to_target.map(|at| at.step as f64))),
            tokens: median(runs.iter().map(|run| run.to_target.map(|at| at.tokens as f64))),
            hours: median(runs.iter().map(|run| run.to_target.and_then(|at| at.hours))),
        },
        runs,
    })
}

/// The median, in which what is none lies above everything; none where that reaches the middle.
fn median(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    statistics::median(values.map(|value| value.unwrap_or(f64::INFINITY))).filter(|middle| middle.is_finite())
}

/// Every group minus every later one, corrected over all that could be tested.
fn differences(runs: &ComparedRuns, measure: Measure) -> Vec<GroupDifference> {
    let measured = |group: &RunGroup| group.runs.iter().any(|run| measure.of(run).is_some());
    let mut found = Vec::new();
    for (a, group) in runs.groups.iter().enumerate() {
        for (b, other) in runs.groups.iter().enumerate().skip(a + 1) {
            if measured(group) && measured(other) {
                found.push(difference(runs, measure, (a, group), (b, other)));
            }
        }
    }
    let p_values: Vec<f64> =
        found.iter().filter_map(|difference| Some(difference.test.as_ref()?.p)).collect();
    let mut corrected = holm(&p_values).into_iter();
    for difference in &mut found {
        difference.comparisons = p_values.len();
        difference.p_holm = difference.test.as_ref().and_then(|_| corrected.next());
    }
    found
}

fn difference(
    runs: &ComparedRuns,
    measure: Measure,
    (a, group): (usize, &RunGroup),
    (b, other): (usize, &RunGroup),
) -> GroupDifference {
    // Where seeds make the groups, other keys make the pairs, and each counts; as each timing does.
    let counts_seeds = runs.by.iter().all(|key| key != SEED) && !measure.is_timing();
    let confounded = confounded(&runs.pair_by, group, other);
    let pair_by: Vec<String> = runs.pair_by.iter().filter(|key| !confounded.contains(key)).cloned().collect();
    let values = |group: &RunGroup| -> Vec<PairValue> {
        let of = |run: &ComparedRun| {
            let seed = if counts_seeds { run.keys.get(SEED) } else { &run.name };
            Some(PairValue { key: run.keys.values(&pair_by), seed: seed.to_owned(), value: measure.of(run)? })
        };
        group.runs.iter().filter_map(of).collect()
    };
    let (ours, theirs) = (values(group), values(other));
    let runs_in_all = ours.len() + theirs.len();
    let pairs = if pair_by.is_empty() { None } else { pairs(&ours, &theirs) };
    let paired = pairs.as_ref().map_or(0, Vec::len);
    let (method, n, difference, test, why) = match pairs {
        Some(pairs) => {
            let pairs = by_seed(pairs);
            let why = why_no_pairs(&pairs);
            (TestMethod::Paired, [pairs.len(); 2], mean(&pairs), TTest::paired(&pairs), why)
        }
        None => {
            let ones = [&ours, &theirs].map(|group| group.len() == 1);
            let seeds = |group: Vec<PairValue>| by_seed(group.into_iter().map(|it| (it.seed, it.value)));
            let (x, y) = (seeds(ours), seeds(theirs));
            let difference = mean(&x).zip(mean(&y)).map(|(x, y)| x - y);
            let why = why_no_welch(ones, [x.len(), y.len()]);
            (TestMethod::Welch, [x.len(), y.len()], difference, TTest::welch(&x, &y), why)
        }
    };
    GroupDifference {
        measure,
        a,
        b,
        method,
        n,
        of_seeds: counts_seeds,
        unpaired: if method == TestMethod::Paired { runs_in_all - 2 * paired } else { 0 },
        difference: difference.unwrap_or(0.0),
        why_untested: test.is_none().then_some(why),
        test,
        p_holm: None,
        comparisons: 0,
    }
}

/// A run among those of its group.
struct PairValue {
    /// What it has in common with its partner.
    key: Vec<String>,
    seed: String,
    value: f64,
}

/// The differences within pairs of runs that agree in seed and all else but what makes the groups, each with
/// its seed; none where pairs are no use: fewer than two, not half of the smaller group, or not to be told.
fn pairs(ours: &[PairValue], theirs: &[PairValue]) -> Option<Vec<(String, f64)>> {
    let partners = |key: &Vec<String>, of: &[PairValue]| of.iter().filter(|other| other.key == *key).count();
    if ours.iter().chain(theirs).any(|it| partners(&it.key, ours) > 1 || partners(&it.key, theirs) > 1) {
        return None;
    }
    let pair = |one: &PairValue| {
        let other = theirs.iter().find(|other| other.key == one.key)?;
        Some((one.seed.clone(), one.value - other.value))
    };
    let found: Vec<(String, f64)> = ours.iter().filter_map(pair).collect();
    (found.len() >= 2 && 2 * found.len() >= ours.len().min(theirs.len())).then_some(found)
}

/// The mean of each seed, in the order of their first values: what runs of one seed have in common makes them
/// one sample.
fn by_seed(values: impl IntoIterator<Item = (String, f64)>) -> Vec<f64> {
    let mut seeds: Vec<(String, Vec<f64>)> = Vec::new();
    for (seed, value) in values {
        match seeds.iter_mut().find(|(of, _)| *of == seed) {
            Some((_, values)) => values.push(value),
            None => seeds.push((seed, vec![value])),
        }
    }
    seeds.iter().filter_map(|(_, values)| mean(values)).collect()
}

/// Why pairs gave no test, if they gave none.
fn why_no_pairs(pairs: &[f64]) -> String {
    match pairs {
        [_] => ONE_SEED.to_owned(),
        _ if pairs.iter().all(|difference| *difference == 0.0) => {
            format!("equal to the bit in all {} pairs", pairs.len())
        }
        _ => format!("all {} pairs differ by the same, which leaves no spread to test with", pairs.len()),
    }
}

const ONE_SEED: &str = "one seed, in several settings: how much is the seed's doing only more seeds can tell";

/// Why two groups that are no pairs gave no test, if they gave none: which have one run, and their seeds.
fn why_no_welch(ones: [bool; 2], seeds: [usize; 2]) -> String {
    match (ones, seeds) {
        ([true, true], _) => "one run each".to_owned(),
        ([true, _] | [_, true], _) => "one of the groups has one run".to_owned(),
        (_, [1, _] | [_, 1]) => ONE_SEED.to_owned(),
        _ => "the runs of each group are equal to the bit, which leaves no spread to test with".to_owned(),
    }
}
