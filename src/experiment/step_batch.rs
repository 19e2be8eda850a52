//! What an optimizer step is made of: how many sequences it reads and how long the pieces are that it trains
//! on. Both follow from the step's number and from `[batch]` by whole numbers alone, so that a resume, a
//! rewind and a replay need no state of a warm-up.

use std::ops::Range;

use super::resolved::{BatchKeys, Experiment, OnDiverge, OptimizerKeys, OptimizerKind};
use crate::units::noun;

/// The sequences of each step. In a warm-up their number goes in a straight line, rounded down to units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepSequences {
    /// Sequences that every step has a multiple of: one micro-batch for each virtual worker.
    unit: u64,
    /// Units of step 0, at least 1.
    start: u64,
    /// Units of step `warmup` and of those after it, at least `start`.
    target: u64,
    warmup: u64,
}

impl StepSequences {
    /// Those of `[batch]` with so many virtual workers.
    pub fn new(batch: &BatchKeys, workers: usize) -> StepSequences {
        let unit = (batch.micro * workers) as u64;
        let units = |tokens: u64| tokens / batch.seq_len as u64 / unit;
        let (target, warmup) = (units(batch.tokens), batch.tokens_warmup_steps);
        let start = if warmup > 0 { units(batch.tokens_start).min(target) } else { target };
        StepSequences { unit, start, target, warmup }
    }

    /// `sequences` in every step.
    pub fn constant(sequences: u64) -> StepSequences {
        StepSequences { unit: sequences, start: 1, target: 1, warmup: 0 }
    }

    /// What the sequences of every step are a multiple of.
    pub fn unit(self) -> u64 {
        self.unit
    }

    /// G: sequences of a step.
    pub fn of(self, step: u64) -> u64 {
        let StepSequences { unit, start, target, warmup } = self;
        let units = match step < warmup {
            true => start + narrow(u128::from(target - start) * u128::from(step) / u128::from(warmup)),
            false => target,
        };
        unit * units
    }

    /// Sequences of all steps before this one.
    pub fn before(self, step: u64) -> u64 {
        narrow(self.before_wide(step))
    }

    fn before_wide(self, step: u64) -> u128 {
        let [unit, start, target] = [self.unit, self.start, self.target].map(u128::from);
        let warming = u128::from(step.min(self.warmup));
        let grown = sum_of_floors(warming, target - start, u128::from(self.warmup));
        unit * (start * warming + grown + target * (u128::from(step) - warming))
    }

    /// The most steps, from step 0 on, that read no more than so many sequences.
    pub fn steps_within(self, sequences: u128) -> u64 {
        let (mut fit, mut too_many) =
            (0, narrow(sequences / u128::from((self.unit * self.start).max(1)) + 1));
        while too_many - fit > 1 {
            let middle = fit + (too_many - fit) / 2;
            if self.before_wide(middle) <= sequences { fit = middle } else { too_many = middle }
        }
        fit
    }
}

/// As 64 bits; more than fit are the most.
fn narrow(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// The sum of `floor(a i / m)` over i from 0 to n - 1, as Euclid's algorithm goes: what is whole in the slope
/// is added in closed form, and the points below the rest of the line are counted along the other axis.
fn sum_of_floors(mut n: u128, mut a: u128, mut m: u128) -> u128 {
    let (mut b, mut sum) = (0, 0);
    while n > 0 && a > 0 {
        sum += n * (n - 1) / 2 * (a / m) + n * (b / m);
        (a, b) = (a % m, b % m);
        let top = a * n + b;
        (n, b) = (top / m, top % m);
        (a, m) = (m, a);
    }
    sum
}

impl BatchKeys {
    /// t: tokens of the pieces that a step trains on, a divisor of `seq_len`.
    pub fn seq_len_of(&self, step: u64) -> usize {
        let BatchKeys { seq_len, seq_len_start: start, seq_len_warmup_steps: warmup, .. } = *self;
        if step >= warmup {
            return seq_len;
        }
        let most = start + ((seq_len - start) as u128 * u128::from(step) / u128::from(warmup)) as usize;
        (start..=most).rev().find(|t| seq_len.is_multiple_of(*t)).unwrap_or(start)
    }

    /// The same keys without warm-ups: those of a step after them.
    pub fn after_warmups(&self) -> BatchKeys {
        BatchKeys {
            tokens_start: 0,
            tokens_warmup_steps: 0,
            seq_len_start: 0,
            seq_len_warmup_steps: 0,
            ..self.clone()
        }
    }
}

/// The last step, at most `step`, with a checkpoint after every `every` steps; 0 for none.
pub fn scheduled_before(every: u64, step: u64) -> u64 {
    step.checked_rem(every).map_or(0, |behind| step - behind)
}

impl Experiment {
    /// The sequences of each step.
    pub fn step_sequences(&self) -> StepSequences {
        StepSequences::new(&self.batch, self.parallel.workers)
    }

    /// Sequences of all steps before this one.
    pub fn sequences_before(&self, step: u64) -> u64 {
        self.step_sequences().before(step)
    }

    /// Steps between the checkpoints that a rewind goes back to; 0 where divergence ends the run.
    pub fn rewind_every(&self) -> u64 {
        match self.guards.on_diverge {
            OnDiverge::Rewind => self.checkpoint.every,
            OnDiverge::Stop => 0,
        }
    }

    /// The last step, at most `step`, with a checkpoint by `checkpoint.every` after it; 0 for none.
    pub fn scheduled_before(&self, step: u64) -> u64 {
        scheduled_before(self.checkpoint.every, step)
    }

    /// Micro-batches that a virtual worker folds in a step.
    pub fn micro_steps_of(&self, step: u64) -> u64 {
        let sequences = self.step_sequences();
        sequences.of(step) / sequences.unit
    }

    /// The most of them that a step has: after the warm-up.
    pub fn most_micro_steps(&self) -> u64 {
        self.step_sequences().target
    }

    /// Tokens of a step.
    pub fn tokens_of(&self, step: u64) -> u64 {
        self.step_sequences().of(step) * self.batch.seq_len as u64
    }

    /// Tokens of all steps before this one.
    pub fn tokens_before(&self, step: u64) -> u64 {
        self.sequences_before(step).saturating_mul(self.batch.seq_len as u64)
    }

    /// Tokens of the largest step: the last.
    pub fn largest_step_tokens(&self) -> u64 {
        self.tokens_of(self.schedule.steps.saturating_sub(1))
    }

    /// Warm-ups that go on beyond the last step, one line each.
    pub fn unfinished_warmups(&self) -> Vec<String> {
        let (steps, last) = (self.schedule.steps, self.schedule.steps.saturating_sub(1));
        let of_run = noun(steps, "step");
        let line = |key: &str, value: u64, of_last: u64, target: u64, what: &str| {
            (of_last < target).then(|| {
                format!(
                    "`batch.{key}` = {value} outlasts the {steps} {of_run}: the last has {what} {of_last} \
                     {} and not of {target}",
                    noun(of_last, "token")
                )
            })
        };
        let BatchKeys { tokens, tokens_warmup_steps, seq_len, seq_len_warmup_steps, .. } = self.batch;
        let pieces = self.batch.seq_len_of(last) as u64;
        let of_tokens =
            line("tokens_warmup_steps", tokens_warmup_steps, self.tokens_of(last), tokens, "a batch of");
        let of_pieces =
            line("seq_len_warmup_steps", seq_len_warmup_steps, pieces, seq_len as u64, "sequences of");
        let OptimizerKeys { kind, momentum, momentum_start, momentum_warmup_steps: warmup, .. } =
            self.optimizer;
        let grows = kind == OptimizerKind::Muon && momentum_start != momentum;
        let of_momentum = (grows && last < warmup).then(|| {
            format!(
                "`optimizer.momentum_warmup_steps` = {warmup} outlasts the {steps} {of_run}: the last has \
                 not come to a momentum of {momentum}"
            )
        });
        of_tokens.into_iter().chain(of_pieces).chain(of_momentum).collect()
    }

    /// What the gradient of a token's loss is multiplied by in a step: one over the step's tokens.
    pub fn loss_scale(&self, step: u64) -> f32 {
        (1.0 / self.tokens_of(step) as f64) as f32
    }

    /// How a step sees its micro-batches: so many pieces of so many tokens. They are the sequences that were
    /// read, `micro` of `seq_len` tokens, each cut into equal pieces.
    pub fn pieces_of(&self, step: u64) -> [usize; 2] {
        let seq_len = self.batch.seq_len_of(step);
        [self.batch.micro * (self.batch.seq_len / seq_len), seq_len]
    }

    /// The run's steps by the tokens of their pieces, from the first on.
    pub fn piece_stages(&self) -> Vec<(Range<u64>, usize)> {
        let BatchKeys { seq_len, seq_len_start: start, seq_len_warmup_steps: warmup, .. } = self.batch;
        let (mut stages, mut step) = (Vec::new(), 0);
        while step < self.schedule.steps {
            let tokens = self.batch.seq_len_of(step);
            // The first step of pieces as long as the next divisor.
            let longer = (tokens + 1..=seq_len).find(|t| seq_len.is_multiple_of(*t));
            let first = longer.map(|t| {
                narrow(((t - start) as u128 * u128::from(warmup)).div_ceil((seq_len - start) as u128))
            });
            let end = first.unwrap_or(u64::MAX).min(self.schedule.steps);
            stages.push((step..end, tokens));
            step = end;
        }
        stages
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::experiment::load_text;

    /// Two workers, micro-batches of 2 sequences of 12 tokens: the unit is 4 sequences, 48 tokens.
    fn experiment(sets: &[&str]) -> Experiment {
        let text = "[model]\nlayers = 1\nheads = 1\nchannels = 8\n[data]\ncorpus = 'kjv'\n\
                    tokenizer = 'byte'\n[batch]\nmicro = 2\nseq_len = 12\ntokens = 240\n[schedule]\n\
                    steps = 20\n[parallel]\nworkers = 2\n";
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        load_text("t", text, &sets).unwrap().experiment
    }

    #[test]
    fn without_a_warm_up_every_step_is_the_same() {
        let e = experiment(&[]);
        for step in [0, 1, 7, 1 << 40] {
            assert_eq!((e.tokens_of(step), e.micro_steps_of(step)), (240, 5));
            assert_eq!((e.sequences_before(step), e.tokens_before(step)), (20 * step, 240 * step));
            assert_eq!((e.pieces_of(step), e.loss_scale(step)), ([2, 12], (1.0f64 / 240.0) as f32));
        }
        assert_eq!(e.piece_stages(), [(0..20, 12)]);
        assert_eq!(e.step_sequences().steps_within(99), 4);
    }

    /// From 1 unit to 5 over 6 steps: 1 + 4 s / 6 units, rounded down.
    #[test]
    fn the_tokens_of_a_step_grow_in_a_line_of_whole_units() {
        let e = experiment(&["batch.tokens_start=48", "batch.tokens_warmup_steps=6"]);
        let units: Vec<u64> = (0..9).map(|step| e.micro_steps_of(step)).collect();
        assert_eq!(units, [1, 1, 2, 3, 3, 4, 5, 5, 5]);
        assert_eq!((0..3).map(|step| e.tokens_of(step)).collect::<Vec<_>>(), [48, 48, 96]);
        let before: Vec<u64> = (0..10).map(|step| e.sequences_before(step)).collect();
        assert_eq!(before, [0, 4, 8, 16, 28, 40, 56, 76, 96, 116]);
        assert_eq!((e.tokens_before(7), e.loss_scale(2)), (912, (1.0f64 / 96.0) as f32));
        assert_eq!(e.most_micro_steps(), 5);
        for (sequences, steps) in [(3, 0), (4, 1), (39, 4), (40, 5), (55, 5), (56, 6), (96, 8), (115, 8)] {
            assert_eq!(e.step_sequences().steps_within(sequences), steps, "{sequences}");
        }
    }

    /// From 2 to 12 tokens over 5 steps: 2 + 2 s, and of these the divisors 2, 4, 6, 6 and 6 for 8 and 10.
    #[test]
    fn pieces_are_the_largest_divisors_on_the_line() {
        let e = experiment(&["batch.seq_len_start=2", "batch.seq_len_warmup_steps=5"]);
        let pieces: Vec<[usize; 2]> = (0..7).map(|step| e.pieces_of(step)).collect();
        assert_eq!(pieces, [[12, 2], [6, 4], [4, 6], [4, 6], [4, 6], [2, 12], [2, 12]]);
        assert_eq!(e.piece_stages(), [(0..1, 2), (1..2, 4), (2..5, 6), (5..20, 12)]);
        assert_eq!((e.tokens_of(0), e.sequences_before(3)), (240, 60), "as many tokens as without");
        let e = experiment(&["batch.seq_len_start=12", "batch.seq_len_warmup_steps=5"]);
        assert_eq!((e.pieces_of(0), e.piece_stages()), ([2, 12], vec![(0..20, 12)]));
        let e = experiment(&["batch.seq_len_start=1", "batch.seq_len_warmup_steps=100"]);
        assert_eq!(e.piece_stages(), [(0..10, 1), (10..19, 2), (19..20, 3)]);
        assert_eq!(e.batch.after_warmups(), experiment(&[]).batch);
    }

    #[test]
    fn a_momentum_that_warms_up_beyond_the_last_step_is_said() {
        let unfinished =
            |more: &[&str]| experiment(&[&["optimizer.kind=muon"], more].concat()).unfinished_warmups();
        assert_eq!(
            unfinished(&["optimizer.momentum_warmup_steps=300"]),
            ["`optimizer.momentum_warmup_steps` = 300 outlasts the 20 steps: the last has not come to a \
              momentum of 0.95"]
        );
        assert!(unfinished(&["optimizer.momentum_warmup_steps=19"]).is_empty());
        assert!(unfinished(&[]).is_empty());
    }

    #[test]
    fn no_sample_goes_past_what_was_trained_on() {
        let e = experiment(&["batch.seq_len_start=2", "batch.seq_len_warmup_steps=5"]);
        let after: Vec<usize> = [0, 1, 2, 3, 5, 6].map(|steps| e.trained_positions_after(steps)).to_vec();
        assert_eq!(after, [2, 2, 4, 6, 6, 12]);
        assert_eq!(e.trained_positions(), 12);
    }

    proptest! {
        #[test]
        fn sums_are_those_of_the_steps(
            start in 1u64..9, more in 0u64..40, warmup in 0u64..60, unit in 1u64..5,
        ) {
            let steps = StepSequences { unit, start, target: start + more, warmup };
            let mut sum = 0;
            for step in 0..80 {
                prop_assert_eq!(steps.before(step), sum);
                prop_assert!(steps.of(step) <= steps.of(step + 1) && steps.of(step).is_multiple_of(unit));
                prop_assert_eq!(steps.steps_within(u128::from(sum)), step);
                sum += steps.of(step);
            }
        }

        #[test]
        fn stages_are_those_of_the_steps(divisor in 0usize..12, warmup in 1u64..200) {
            let mut e = experiment(&["model.context=60", "batch.seq_len=60", "batch.tokens=240"]);
            let divisors: Vec<usize> = (1..=60).filter(|t| 60 % t == 0).collect();
            (e.batch.seq_len_start, e.batch.seq_len_warmup_steps) = (divisors[divisor], warmup);
            e.schedule.steps = 150;
            let mut next = 0;
            for (steps, tokens) in e.piece_stages() {
                prop_assert!(steps.start == next && steps.end > next);
                prop_assert!(steps.clone().all(|step| e.batch.seq_len_of(step) == tokens));
                next = steps.end;
            }
            prop_assert_eq!(next, 150);
        }

        #[test]
        fn large_numbers_do_not_overflow(
            start in 1u64..1 << 40, target in 1u64..1 << 40, warmup in 1u64..1 << 48,
        ) {
            let steps = StepSequences { unit: 1, start: start.min(target), target, warmup };
            let [before, after] = [warmup / 2, warmup / 2 + 1].map(|step| steps.before_wide(step));
            prop_assert_eq!(after - before, u128::from(steps.of(warmup / 2)));
        }
    }
}
