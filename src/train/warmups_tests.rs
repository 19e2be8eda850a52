//! Warm-ups of the batch and of the length of sequences, in whole steps.

use super::ranks_tests::{End, experiment_with, train, train_all};
use crate::parallel::Solo;

/// 2 layers of 64 channels; two micro-batches of one sequence of 8 tokens for each of 2 workers.
const SMALL: [&str; 4] =
    ["model.channels=64", "parallel.workers=2", "batch.tokens=32", "optimizer.ema_decay=0.9"];
/// 2, 4, 6 and 8 sequences in the first steps, and pieces of 2, 2, 4, 4 and 8 tokens.
const BOTH: [&str; 5] = [
    "batch.tokens=64",
    "batch.tokens_start=16",
    "batch.tokens_warmup_steps=3",
    "batch.seq_len_start=2",
    "batch.seq_len_warmup_steps=4",
];

fn steps(sets: &[&str], steps: usize) -> End {
    train(&experiment_with(&[&SMALL[..], sets].concat()), Box::new(Solo), None, steps)
}

#[test]
fn a_warm_up_from_a_value_to_itself_is_the_plain_run() {
    let plain = steps(&[], 3);
    assert_eq!(steps(&["batch.tokens_start=32", "batch.tokens_warmup_steps=9"], 3), plain);
    assert_eq!(steps(&["batch.seq_len_start=8", "batch.seq_len_warmup_steps=9"], 3), plain);
}

/// The first step reads what a run of smaller steps reads, and its loss and gradient are of these tokens.
#[test]
fn the_first_step_of_a_batch_that_warms_up_is_that_of_a_run_of_smaller_steps() {
    let warm = ["batch.tokens=64", "batch.tokens_start=16", "batch.tokens_warmup_steps=2"];
    for ranks in [1, 2] {
        let run = |sets: &[&str], steps| {
            let experiment = experiment_with(&[&SMALL[..], sets].concat());
            train_all(ranks, &experiment, None, steps)
        };
        assert_eq!(run(&warm, 1), run(&["batch.tokens=16"], 1));
        let (two, plain) = (run(&warm, 2), run(&["batch.tokens=16"], 2));
        assert!(two.roots[0] == plain.roots[0] && two.roots[1] != plain.roots[1]);
    }
}

/// In the order of the file, T tokens cut into pieces are the sequences of a run with shorter ones.
#[test]
fn pieces_are_what_a_run_of_shorter_sequences_trains_on() {
    for more in [&[][..], &["model.positions=rotary", "model.qk_norm=true", "memory.recompute=2"]] {
        let own = ["data.order=sequential", "model.context=8", "batch.micro=2"];
        let run = |sets: &[&str]| {
            let all = [&SMALL[..], &own, more, sets].concat();
            train(&experiment_with(&all), Box::new(Solo), None, 2)
        };
        // Step 0 and 1 have pieces of 2 tokens, as no divisor of 8 is 3.
        let pieces = run(&["batch.seq_len_start=2", "batch.seq_len_warmup_steps=6"]);
        assert_eq!(pieces, run(&["batch.seq_len=2", "batch.micro=8"]), "{more:?}");
        assert_ne!(pieces.roots, run(&[]).roots, "{more:?}");
    }
}

#[test]
fn any_number_of_ranks_and_a_resume_keep_both_warm_ups() {
    for kind in ["optimizer.kind=adamw", "optimizer.kind=muon"] {
        let with = |zero| experiment_with(&[&SMALL[..], &BOTH, &[kind, "parallel.workers=2", zero]].concat());
        let one = train(&with("parallel.zero=1"), Box::new(Solo), None, 6);
        for zero in ["parallel.zero=0", "parallel.zero=1"] {
            assert_eq!(train_all(2, &with(zero), None, 6), one, "{kind}, {zero}");
        }
        let half = train_all(2, &with("parallel.zero=1"), None, 2);
        let rest = train(&with("parallel.zero=1"), Box::new(Solo), Some(&half.state), 4);
        assert_eq!(rest.roots, one.roots[2..], "{kind}: saved on two, resumed on one");
    }
}
