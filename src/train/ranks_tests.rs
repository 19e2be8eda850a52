//! Ranks as threads of one process end in the bits of a single rank.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{StepReport, Trainer};
use crate::data::{BatchPlan, Dataset, Prefetcher, mixture};
use crate::experiment::{self, Experiment};
use crate::ops::cpu::Cpu;
use crate::parallel::threads::{self, Threads};
use crate::parallel::{Exchange, Hosted, Link as _, Solo};
use crate::proof::Hash;
use crate::store::Tensor;

/// Wide enough that tensors are divided: the token table has two chunks, the MLP's weights four each.
const TEXT: &str = "seed = 1\n[model]\nlayers = 2\nheads = 4\nchannels = 256\n\
    [data]\ncorpus = 'kjv'\ntokenizer = 'byte'\n\
    [batch]\nmicro = 1\nseq_len = 8\ntokens = 128\n[schedule]\nsteps = 6\n[optimizer]\ngrad_clip = 0.5\n\
    [guards]\nloss_z = 3.0\ngrad_z = 3.0\nwindow = 3\n\
    [parallel]\nworkers = 8\n[device]\nkind = 'cpu'\nthreads = 1";

fn experiment(zero: u8) -> Experiment {
    experiment_with(&[&format!("parallel.zero={zero}")])
}

/// With these settings; of two for one key, the last counts.
pub(super) fn experiment_with(sets: &[&str]) -> Experiment {
    let key = |set: &str| set.split_once('=').expect("a key and a value").0.to_owned();
    let last: BTreeMap<String, String> = sets.iter().map(|set| (key(set), (*set).to_owned())).collect();
    let sets: Vec<String> = last.into_values().collect();
    experiment::load_text("t", TEXT, &sets).expect("a whole experiment").experiment
}

/// The reports and the final state of a rank.
#[derive(Debug, PartialEq)]
pub(super) struct End {
    reports: Vec<StepReport>,
    pub roots: Vec<Hash>,
    pub state: Vec<Tensor>,
}

/// Trains `steps` steps on this rank, from a saved state if there is one.
pub(super) fn train(
    experiment: &Experiment,
    exchange: Box<dyn Exchange<Cpu>>,
    from: Option<&[Tensor]>,
    steps: usize,
) -> End {
    let cpu = Cpu::new(&experiment.device).expect("a CPU");
    let mut trainer = Trainer::join(cpu, experiment, exchange).expect("a trainer");
    if let Some(state) = from {
        trainer.restore(state.to_vec()).expect("the state fits");
    }
    let data =
        Dataset::from_tokens("t", (0..6000).map(|i| (i * i % 251) as u16).collect(), 257).expect("tokens");
    let plan = BatchPlan {
        order: mixture::order(experiment, &data).expect("some"),
        seq_len: experiment.batch.seq_len,
        micro_batch: experiment.batch.micro,
        step_sequences: experiment.step_sequences(),
        share: trainer.share(),
        overfit_single_batch: false,
        depth: 1,
    };
    let mut feed = Prefetcher::start(Arc::new(data), plan, trainer.progress().step, 0).expect("a reader");
    let (mut reports, mut roots) = (Vec::new(), Vec::new());
    for _ in 0..steps {
        reports.push(trainer.step(&mut feed).expect("a step"));
        roots.push(trainer.state_root().expect("a root"));
    }
    End { reports, roots, state: trainer.state().expect("a state") }
}

/// The common result of all of `size` ranks, which must agree.
fn train_on(size: usize, zero: u8, from: Option<&[Tensor]>, steps: usize) -> End {
    train_all(size, &experiment(zero), from, steps)
}

pub(super) fn train_all(size: usize, experiment: &Experiment, from: Option<&[Tensor]>, steps: usize) -> End {
    let mut ends = threads::run(size, |link: Threads| train(experiment, Box::new(Hosted(link)), from, steps));
    let end = ends.pop().expect("a rank");
    let zero = experiment.parallel.zero;
    assert!(ends.iter().all(|other| *other == end), "{size} ranks, ZeRO {zero}: the ranks see the same");
    end
}

#[test]
fn any_number_of_ranks_ends_in_the_bits_of_one_whatever_each_keeps() {
    let one = train(&experiment(1), Box::new(Solo), None, 3);
    for zero in [0, 1] {
        for size in [1, 2, 4, 8] {
            assert_eq!(train_on(size, zero, None, 3), one, "{size} ranks, ZeRO {zero}");
        }
    }
}

#[test]
fn matrices_that_are_updated_as_a_whole_change_no_bit() {
    let with = |zero: u8| {
        let zero = format!("parallel.zero={zero}");
        experiment_with(&["optimizer.kind=muon", "optimizer.ema_decay=0.9", "batch.tokens=64", &zero])
    };
    let one = train(&with(1), Box::new(Solo), None, 3);
    assert!(one.state.iter().any(|tensor| tensor.name == "muon_m/h.1.mlp.c_fc.weight"));
    for (zero, size) in [(0, 2), (1, 2), (1, 4), (1, 8), (2, 2), (2, 8)] {
        assert_eq!(train_all(size, &with(zero), None, 3), one, "{size} ranks, ZeRO {zero}");
    }
    let half = train(&with(1), Box::new(Solo), None, 1);
    let rest = train_all(4, &with(1), Some(&half.state), 2);
    assert_eq!(rest.roots, one.roots[1..], "saved on one, resumed on four");
}

#[test]
fn gradients_that_are_divided_as_well_change_no_bit() {
    let one_micro_step = "batch.tokens=64";
    let one = train(&experiment_with(&[one_micro_step]), Box::new(Solo), None, 3);
    let zero_2 = experiment_with(&[one_micro_step, "parallel.zero=2"]);
    for size in [1, 2, 4, 8] {
        assert_eq!(train_all(size, &zero_2, None, 3), one, "{size} ranks");
    }
    let deeper = ["model.layers=5", one_micro_step];
    let one = train(&experiment_with(&deeper), Box::new(Solo), None, 2);
    let zero_2 = experiment_with(&[&deeper[..], &["parallel.zero=2"]].concat());
    assert_eq!(train_all(8, &zero_2, None, 2), one, "more blocks than buffers for their gradients");
}

#[test]
fn partial_sums_that_wait_elsewhere_change_no_bit() {
    for sets in [&[][..], &["batch.tokens=64"]] {
        let one = train(&experiment_with(sets), Box::new(Solo), None, 2);
        let host = experiment_with(&[sets, &["memory.partial_sums=host"]].concat());
        for size in [1, 2, 4, 8] {
            assert_eq!(train_all(size, &host, None, 2), one, "{size} ranks, {sets:?}");
        }
        assert_eq!(train(&host, Box::new(Solo), None, 2), one, "alone, {sets:?}");
    }
}

#[test]
fn saved_on_four_ranks_and_resumed_on_any_gives_the_uninterrupted_run() {
    let whole = train(&experiment(1), Box::new(Solo), None, 4);
    let saved = train_on(4, 1, None, 2).state;
    for (size, zero) in [(1, 1), (2, 1), (2, 0), (8, 1)] {
        let end = train_on(size, zero, Some(&saved), 2);
        assert_eq!(end.roots, whole.roots[2..], "{size} ranks, ZeRO {zero}");
        assert_eq!(end.reports, whole.reports[2..]);
        assert_eq!(end.state, whole.state);
    }
}

#[test]
fn the_optimizers_state_is_divided_among_the_ranks() {
    let experiment = experiment(1);
    let lens = threads::run(4, |link| {
        let rank = link.rank();
        let cpu = Cpu::new(&experiment.device).expect("a CPU");
        let trainer = Trainer::join(cpu, &experiment, Box::new(Hosted(link))).expect("a trainer");
        (rank, trainer.optimizer.pieces().iter().map(|piece| piece.len).sum::<usize>())
    });
    let all: usize = crate::model::Weights::of(&experiment.model).parameters() as usize;
    assert_eq!(lens.iter().map(|(_, len)| len).sum::<usize>(), all);
    for (rank, len) in lens {
        assert!(len < all / 2, "rank {rank} keeps {len} of {all}");
    }
}

#[test]
fn a_rank_restores_from_the_tensors_that_it_needs() {
    let saved = train_on(4, 1, None, 1);
    let experiment = experiment(1);
    let needed = threads::run(4, |link| {
        let cpu = Cpu::new(&experiment.device).expect("a CPU");
        let mut trainer = Trainer::join(cpu, &experiment, Box::new(Hosted(link))).expect("a trainer");
        let needed: Vec<Tensor> =
            saved.state.iter().filter(|tensor| trainer.needs(&tensor.name)).cloned().collect();
        let names: Vec<String> = needed.iter().map(|tensor| tensor.name.clone()).collect();
        trainer.restore(needed).expect("nothing is missing");
        assert_eq!(trainer.state_root().expect("a root"), saved.roots[0]);
        names
    });
    for names in &needed {
        assert!(names.len() < saved.state.len(), "no rank needs everything");
    }
    for tensor in &saved.state {
        assert!(needed.iter().any(|names| names.contains(&tensor.name)), "`{}` is restored", tensor.name);
    }
}

#[test]
fn a_rank_whose_weights_differ_is_named() {
    let experiment = experiment(1);
    let errors = threads::run(4, |link| {
        let rank = link.rank();
        let cpu = Cpu::new(&experiment.device).expect("a CPU");
        let mut trainer = Trainer::join(cpu, &experiment, Box::new(Hosted(link))).expect("a trainer");
        trainer.state_root().expect("all are equal at first");
        if rank == 2 {
            let mut state = trainer.host_copy_of_weights();
            state[7] ^= 1;
            trainer.overwrite_weights(&state);
        }
        trainer.state_root().expect_err("one differs").to_string()
    });
    for error in errors {
        assert!(error.contains("rank 2 on ") && error.contains("3 of 4 have"), "{error}");
    }
}

impl Trainer<Cpu> {
    fn host_copy_of_weights(&mut self) -> Vec<u8> {
        use crate::ops::Ops as _;
        let mut bytes = vec![0; 64];
        self.ops
            .read_bytes(self.model.params.wpe.as_ref().expect("a table"), &mut bytes)
            .expect("a download");
        bytes
    }

    fn overwrite_weights(&mut self, bytes: &[u8]) {
        use crate::ops::Ops as _;
        self.ops.write_bytes(self.model.params.wpe.as_mut().expect("a table"), bytes).expect("an upload");
    }
}
