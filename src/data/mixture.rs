//! What a run reads of each source of its mixture. All of it follows from the experiment and the number of
//! sequences that the sources have, so it is known before the first step.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use serde::Serialize;

use super::dataset::Dataset;
use super::error::DataError;
use super::interleaving::Interleaving;
use super::order::{MixedSource, SampleOrder};
use crate::experiment::{Experiment, Order};
use crate::units;

/// What a run reads of one source.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SourceUse {
    pub name: String,
    /// Its share of the sequences by weight, from 0 to 1.
    pub share: f64,
    /// Sequences in one epoch of it.
    pub sequences: u64,
    /// Training tokens that the run reads of it.
    pub tokens: u64,
    pub epochs: f64,
    pub max_epochs: Option<u64>,
}

impl std::fmt::Display for SourceUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let SourceUse { name, share, tokens, epochs, max_epochs, .. } = self;
        let (percent, tokens) = (100.0 * share, units::counted(*tokens, "token"));
        write!(f, "{name}: {percent:.1}%, {tokens}, {epochs:.2} epochs")?;
        max_epochs.map_or(Ok(()), |most| write!(f, " of at most {most}"))
    }
}

/// The order in which a run of the experiment reads `data`.
///
/// # Errors
///
/// Data, or a source of them, without a sequence.
pub fn order(experiment: &Experiment, data: &Dataset) -> Result<SampleOrder, DataError> {
    let (seq_len, shuffled) = (experiment.batch.seq_len, experiment.data.order == Order::Shuffled);
    if experiment.data.mix.is_empty() {
        return Ok(SampleOrder::new(experiment.seed, data.require_sequences(seq_len)?, shuffled));
    }
    let mut sources = Vec::new();
    for ((name, places), weight) in data.sources().zip(experiment.data.mix_weights()) {
        let sequences = NonZeroU64::new(data.sequences_of(places, seq_len))
            .ok_or_else(|| DataError::SourceTooShort { name: name.to_owned(), seq_len })?;
        sources.push(MixedSource { name, sequences, weight });
    }
    Ok(SampleOrder::mixed(experiment.seed, &sources, shuffled))
}

/// Of a key in a lock that holds a shard which is trained on, whose it is and its number: `data` of
/// `data.shard.00000`, of a mixture `data.mix.web` of `data.mix.web.shard.00000`.
pub fn locked_shard(key: &str) -> Option<(&str, &str)> {
    let (of, number) = key.rsplit_once(".shard.")?;
    let is_source = of.strip_prefix("data.mix.").is_some_and(|name| !name.contains('.'));
    ((of == "data" || is_source) && number.bytes().all(|b| b.is_ascii_digit())).then_some((of, number))
}

/// Where the stream of samples stands after so many steps of the experiment; rewinds have moved it by `offset`.
fn position(experiment: &Experiment, steps: u64, offset: u64) -> u64 {
    let steps = if experiment.data.overfit_single_batch { steps.min(1) } else { steps };
    experiment.sequences_before(steps) + offset
}

/// The training tokens of each source in the stream of samples, up to its place after `steps` steps; what
/// rewinds passed over, `offset` sequences, is part of them. None without a mixture.
pub fn tokens_of_sources(experiment: &Experiment, steps: u64, offset: u64) -> BTreeMap<String, u64> {
    let mix = &experiment.data.mix;
    if mix.is_empty() {
        return BTreeMap::new();
    }
    let interleaving = Interleaving::of(&experiment.data.mix_weights());
    let counts = interleaving.counts(position(experiment, steps, offset));
    mix.keys().cloned().zip(counts.into_iter().map(|count| count * experiment.batch.seq_len as u64)).collect()
}

/// What a run of the experiment reads of each source, in the order of their names; none without a mixture.
pub fn uses(experiment: &Experiment, order: &SampleOrder) -> Vec<SourceUse> {
    let offset = experiment.data.offset;
    let passed_over = tokens_of_sources(experiment, 0, offset);
    let tokens = tokens_of_sources(experiment, experiment.schedule.steps, offset);
    let weights = experiment.data.mix_weights();
    let sum: u64 = weights.iter().sum();
    let mut uses = Vec::new();
    for (((name, source), sequences), weight) in
        experiment.data.mix.iter().zip(order.sequences()).zip(weights)
    {
        let share = weight as f64 / sum as f64;
        let tokens = tokens[name] - passed_over[name];
        let epochs = tokens as f64 / (sequences * experiment.batch.seq_len as u64) as f64;
        let max_epochs = source.max_epochs;
        uses.push(SourceUse { name: name.clone(), share, sequences, tokens, epochs, max_epochs });
    }
    uses
}

/// What `data.offset` passes over before the first step.
#[derive(Clone, Debug, PartialEq)]
pub struct PassedOver {
    sequences: u64,
    /// The epochs of each source, which without a mixture has no name.
    epochs: Vec<(String, f64)>,
}

impl PassedOver {
    /// Whether all that there is of a source is passed over, once or more often.
    pub fn is_whole(&self) -> bool {
        self.epochs.iter().any(|(_, epochs)| *epochs >= 1.0)
    }
}

impl std::fmt::Display for PassedOver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sequences = units::counted(self.sequences, "sequence");
        write!(f, "`data.offset` passes over {sequences} before the first step:")?;
        for (at, (name, epochs)) in self.epochs.iter().enumerate() {
            let of = if name.is_empty() { "the data".to_owned() } else { format!("`{name}`") };
            write!(f, "{} {epochs:.2} epochs of {of}", if at > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

/// What `data.offset` of the experiment passes over; none where it is 0.
pub fn passed_over(experiment: &Experiment, order: &SampleOrder) -> Option<PassedOver> {
    let sequences = experiment.data.offset;
    let mix = &experiment.data.mix;
    let names = || mix.keys().cloned().chain(mix.is_empty().then(String::new));
    let epochs = order.counts(sequences).into_iter().zip(order.sequences());
    let epochs = epochs.map(|(count, whole)| count as f64 / whole as f64);
    (sequences > 0).then(|| PassedOver { sequences, epochs: names().zip(epochs).collect() })
}

/// Refuses a run that would pass over a source more often than `max_epochs` says; `offset` as in
/// [`tokens_of_sources`].
///
/// # Errors
///
/// [`DataError::EpochLimit`], with the number of steps that fit.
pub fn require_epochs(experiment: &Experiment, order: &SampleOrder, offset: u64) -> Result<(), DataError> {
    let steps = experiment.schedule.steps;
    let read_after = |steps| order.counts(position(experiment, steps, offset));
    for (at, ((name, source), sequences)) in experiment.data.mix.iter().zip(order.sequences()).enumerate() {
        let Some(max_epochs) = source.max_epochs else { continue };
        let (read, allowed) = (read_after(steps)[at], max_epochs.saturating_mul(sequences));
        if read <= allowed {
            continue;
        }
        // The last number of steps that fits.
        let (mut fits, mut too_many) = (0, steps);
        while too_many - fits > 1 {
            let middle = fits + (too_many - fits) / 2;
            if read_after(middle)[at] <= allowed { fits = middle } else { too_many = middle }
        }
        let fits = match fits {
            0 => "not even one step fits".to_owned(),
            fits => format!("set `schedule.steps` to {fits}, which fit"),
        };
        let epochs = read as f64 / sequences as f64;
        let (source_name, passed_over) = (name.clone(), order.counts(offset)[at]);
        return Err(DataError::EpochLimit {
            source_name,
            read,
            passed_over,
            epochs,
            max_epochs,
            allowed,
            fits,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::load_text;

    /// 10 books of 8 tokens and 100 pages of the web, 3 : 1, 4 sequences a step.
    fn mixed(sets: &[&str]) -> (Experiment, SampleOrder) {
        let text = "[model]\nlayers = 1\nheads = 1\nchannels = 8\n[data]\ntokenizer = 'byte'\n\
                    [data.mix.books]\ncorpus = 'kjv'\nweight = 3\n[data.mix.web]\ncorpus = 'kjv'\nweight = 1\n\
                    [batch]\nmicro = 4\nseq_len = 8\n[schedule]\nsteps = 10\n[eval]\nevery = 0\n";
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        let experiment = load_text("t", text, &sets).unwrap().experiment;
        let source = |name: &str, sequences: usize| {
            let tokens = (0..=8 * sequences).map(|i| (i % 256) as u16).collect();
            (name.to_owned(), Dataset::from_tokens(name, tokens, 257).unwrap())
        };
        let data = Dataset::mixed(vec![source("books", 10), source("web", 100)], 257);
        let order = order(&experiment, &data).unwrap();
        (experiment, order)
    }

    #[test]
    fn what_a_run_reads_is_known_before_it_begins() {
        let (experiment, order) = mixed(&["data.mix.books.max_epochs=3"]);
        let uses = uses(&experiment, &order);
        let shown: Vec<String> = uses.iter().map(SourceUse::to_string).collect();
        assert_eq!(
            shown,
            ["books: 75.0%, 240 tokens, 3.00 epochs of at most 3", "web: 25.0%, 80 tokens, 0.10 epochs"]
        );
        assert!(require_epochs(&experiment, &order, 0).is_ok());
        // A rewind that passes over two sequences.
        let error = require_epochs(&experiment, &order, 2).unwrap_err().to_string();
        assert!(error.contains("set `schedule.steps` to 9, which fit"), "{error}");
        assert!(error.contains(", with 2 that `data.offset` and rewinds pass over"), "{error}");
        assert!(error.contains("or lower `data.offset`, raise `max_epochs`"), "{error}");
    }

    #[test]
    fn what_an_offset_passes_over_is_said_in_epochs() {
        assert_eq!((passed_over(&mixed(&[]).0, &mixed(&[]).1)), None);
        let said = |sets: &[&str]| {
            let (experiment, order) = mixed(sets);
            let passed = passed_over(&experiment, &order).unwrap();
            (passed.is_whole(), passed.to_string())
        };
        let text = |n: &str, books: &str, web: &str| {
            format!(
                "`data.offset` passes over {n} sequences before the first step: {books} epochs of `books`, \
                 {web} epochs of `web`"
            )
        };
        assert_eq!(said(&["data.offset=8"]), (false, text("8", "0.60", "0.02")));
        assert_eq!(said(&["data.offset=4000"]), (true, text("4,000", "300.00", "10.00")));
        let (mut experiment, _) = mixed(&["data.offset=25"]);
        experiment.data.mix.clear();
        let order = SampleOrder::new(1, NonZeroU64::new(10).unwrap(), true);
        let passed = passed_over(&experiment, &order).unwrap().to_string();
        assert!(passed.ends_with("25 sequences before the first step: 2.50 epochs of the data"), "{passed}");
    }

    #[test]
    fn the_steps_that_fit_are_the_most_that_do() {
        let (mut experiment, order) = mixed(&["data.mix.books.max_epochs=2", "schedule.steps=100"]);
        let Err(DataError::EpochLimit { read: 300, allowed: 20, fits, .. }) =
            require_epochs(&experiment, &order, 0)
        else {
            panic!("it is refused")
        };
        assert_eq!(fits, "set `schedule.steps` to 6, which fit");
        for (steps, fit) in [(6, true), (7, false)] {
            experiment.schedule.steps = steps;
            assert_eq!(require_epochs(&experiment, &order, 0).is_ok(), fit, "{steps} steps");
        }
    }

    #[test]
    fn the_tokens_of_sources_add_up_to_those_of_the_stream() {
        let (experiment, _) = mixed(&[]);
        for (steps, offset) in [(0, 0), (1, 0), (7, 0), (7, 5), (1 << 40, 3)] {
            let tokens = tokens_of_sources(&experiment, steps, offset);
            assert_eq!(tokens.values().sum::<u64>(), (4 * steps + offset) * 8);
        }
        let (experiment, _) = mixed(&["data.overfit_single_batch=true"]);
        assert_eq!(tokens_of_sources(&experiment, 9, 0), tokens_of_sources(&experiment, 1, 0));
    }

    #[test]
    fn a_source_without_a_sequence_is_named() {
        let (experiment, _) = mixed(&[]);
        let source =
            |name: &str, n: usize| (name.to_owned(), Dataset::from_tokens(name, vec![1; n], 257).unwrap());
        let data = Dataset::mixed(vec![source("books", 9), source("web", 8)], 257);
        let error = order(&experiment, &data).unwrap_err().to_string();
        assert!(error.contains("the source `web` of `data.mix` holds no sequence of 8"), "{error}");
    }

    #[test]
    fn keys_of_shards_are_told_from_other_keys_of_a_lock() {
        assert_eq!(locked_shard("data.shard.00012"), Some(("data", "00012")));
        assert_eq!(locked_shard("data.mix.shard.shard.00000"), Some(("data.mix.shard", "00000")));
        for other in ["data.mix.shard.weight", "data.val_shard.00000", "data.mix.a.weight", "x.shard.0"] {
            assert_eq!(locked_shard(other), None, "{other}");
        }
    }
}
